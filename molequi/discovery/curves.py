"""Measures of symmetry followed through training, or over any list of models."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from molequi.discovery.orbits import spectrum
from molequi.errors import ConfigError
from molequi.util import tables as table

Measure = Callable[[nn.Module], float | Mapping[str, float]]


def errors(
    structures, *, checks: Sequence[str] = ("rotation",), draws: int = 4, limit: int = 4, **options
) -> Measure:
    """A measure: the largest error of each quantity in checks of `audit`, whether the model declares the symmetry or not.

    checks: of "rotation", "reflection", "translation", "permutation", "features" and the like. draws, limit, options: as in `audit`.
    A model whose group is "nothing" is measured against E(n).
    """

    def measure(model: nn.Module) -> dict[str, float]:
        from molequi.audit import audit

        found: dict[str, float] = {}
        against = {"group": "E(n)"} if getattr(model, "group", None) == "nothing" else {}
        for row in audit(
            model, structures, checks=checks, draws=draws, limit=limit, **against | options
        ).rows:
            if row.maximum is not None:
                name = f"{row.check} of {row.quantity}"
                found[name] = max(found.get(name, 0.0), row.maximum)
        return found

    return measure


def shares(structures, of: str, **options) -> Measure:
    """A measure: the orbit spectrum of a quantity, an irrep of the features or a layer; options as in `spectrum`."""

    def measure(model: nn.Module) -> dict[str, float]:
        found = spectrum(model, structures, of, **options)
        return {**found.shares, "higher": found.rest}

    return measure


def lie(structures, **options) -> Measure:
    """A measure: the local equivariance error, LEE, of each quantity and irrep of it; options as in `lie_errors`."""

    def measure(model: nn.Module) -> dict[str, float]:
        from molequi.audit.lie import lie_errors

        return {
            f"{row.quantity} {row.irrep}": row.lee
            for row in lie_errors(model, structures, **options).rows
            if row.measured
        }

    return measure


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Measures of several models, `columns` by name, at `at`; `plotting.curves` draws them."""

    at: tuple[float | str, ...]
    columns: dict[str, tuple[float, ...]]
    label: str = "model"

    @property
    def summary(self) -> str:
        changes = [
            f"{name} from {values[0]:.2e} to {values[-1]:.2e}" for name, values in self.columns.items()
        ]
        return "; ".join(changes)

    def _rows(self) -> list[list[str]]:
        return [
            [
                f"{at:g}" if isinstance(at, (int, float)) else at,
                *(f"{values[k]:.3e}" for values in self.columns.values()),
            ]
            for k, at in enumerate(self.at)
        ]

    def __str__(self) -> str:
        return "\n".join(table.text_table((self.label, *self.columns), self._rows()))

    def _repr_html_(self) -> str:
        return table.html_heading("symmetry of several models", self.summary) + table.html_table(
            (self.label, *self.columns), self._rows()
        )

    def to_json(self) -> str:
        columns = {name: table.json_ready(list(values)) for name, values in self.columns.items()}
        return json.dumps(
            {"label": self.label, "at": list(self.at), "columns": columns}, indent=1, allow_nan=False
        )


def follow(
    models: Mapping[float | str, nn.Module | str | os.PathLike] | Sequence[nn.Module | str | os.PathLike],
    measures: Mapping[str, Measure],
    *,
    label: str = "model",
) -> Curves:
    """Measures of each of several models, one after another: checkpoints of a training, or plain, augmented and strict nets.

    models: models or model files, by the epoch or the name under which they are shown; a plain sequence is counted from 0, files are
    called by their names, with folders where names repeat. measures: functions of a model that give a number, or several by name:
    `errors(…)` and `shares(…)` of this file, a loss, or your own. label: what the first column counts. Raises ConfigError, and what `load`
    and the measures raise.
    """
    from molequi.checkpoint import load

    if not isinstance(models, Mapping):
        if isinstance(models, (str, os.PathLike, nn.Module)):
            raise ConfigError(
                f"models: found one {type(models).__name__}; wanted several, as a list or by name"
            )
        several = list(models)
        models = dict(zip(_names(several), several))
    if not models or not measures:
        raise ConfigError(f"{'models' if not models else 'measures'}: found none; wanted at least one")
    for at, model in models.items():
        if not isinstance(model, (str, os.PathLike, nn.Module)):
            raise ConfigError(
                f"models: {at!r} is of type {type(model).__name__}; wanted a torch.nn.Module or a model file"
            )
    rows = [measured(load(m) if isinstance(m, (str, os.PathLike)) else m, measures) for m in models.values()]
    names = dict.fromkeys(name for row in rows for name in row)
    return Curves(
        at=tuple(models),
        columns={n: tuple(row.get(n, float("nan")) for row in rows) for n in names},
        label=label,
    )


def _names(models: list) -> list[float | str]:
    """Numbers of models, names of files: with as many folders as it takes to tell those of the same name apart."""
    paths = {
        k: Path(m).parent / Path(m).stem for k, m in enumerate(models) if isinstance(m, (str, os.PathLike))
    }
    found: list[float | str] = list(range(len(models)))
    for k, path in paths.items():
        alike = [p for p in paths.values() if p.name == path.name]
        depths = (
            n
            for n in range(1, 1 + max(len(p.parts) for p in alike))
            if len({p.parts[-n:] for p in alike}) == len(alike)
        )
        depth = next(depths, None)
        if depth is None:
            raise ConfigError(
                f"models: {os.fspath(models[k])!r} would be shown by a name that another one has; give them by name: {{name: model}}"
            )
        found[k] = Path(*path.parts[-depth:]).as_posix()
    return found


def measured(model: nn.Module, measures: Mapping[str, Measure]) -> dict[str, float]:
    """All measures of a model in one table: those that give several numbers under "name: part". Raises ConfigError for what is no number,
    and for two numbers of one name.
    """
    out: dict[str, float] = {}
    for name, measure in measures.items():
        value = measure(model)
        for column, number in (
            {f"{name}: {k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
        ).items():
            if column in out:
                raise ConfigError(
                    f"measures: {name!r} gives a number {column!r}, and so does another one; call it by another name"
                )
            try:
                out[column] = float(number.detach() if isinstance(number, Tensor) else number)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"measure {column!r}: found {type(number).__name__} {str(number)[:60]}; wanted one number, or several by name, "
                    "as {'mean': 0.1, 'largest': 0.3}"
                ) from error
    return out
