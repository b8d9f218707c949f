"""Symmetry curves: measures of symmetry of several models, such as the checkpoints of a training."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from molequi.discovery.spectrum import orbit_spectrum
from molequi.errors import ConfigError
from molequi.util import tables as table
from molequi.util.html import html_heading, html_table

Measure = Callable[[nn.Module], float | Mapping[str, float]]


def audit_errors(
    structures: Any,
    *,
    checks: Sequence[str] = ("rotation",),
    draws: int = 4,
    limit: int = 4,
    **options: Any,
) -> Measure:
    """A measure: the largest error of each quantity in checks of `audit`.

    Models that declare the group "nothing" are compared with E(n).

    Parameters
    ----------
    structures : Graph, list of Graph, Dataset, path, …
        Whatever `audit` accepts.
    checks : sequence of str
        "rotation", "reflection", "translation", "permutation", "features", …
    draws, limit, options
        As in `audit`.

    Returns
    -------
    callable
        Takes a model, returns errors by name.
    """

    def measure(model: nn.Module) -> dict[str, float]:
        from molequi.audit import audit

        found: dict[str, float] = {}
        settings = dict(options)
        if getattr(model, "group", None) == "nothing":
            settings.setdefault("group", "E(n)")
        for row in audit(model, structures, checks=checks, draws=draws, limit=limit, **settings).rows:
            if row.maximum is not None:
                name = f"{row.check} of {row.quantity}"
                found[name] = max(found.get(name, 0.0), row.maximum)
        return found

    return measure


def spectrum_shares(structures: Any, output: str, **options: Any) -> Measure:
    """A measure: the shares of the orbit spectrum of a quantity, an irrep of the features or a layer.

    Parameters
    ----------
    structures, output, options
        As in `orbit_spectrum`.

    Returns
    -------
    callable
        Takes a model, returns shares by degree.
    """

    def measure(model: nn.Module) -> dict[str, float]:
        found = orbit_spectrum(model, structures, output, **options)
        return {**found.shares, "higher": found.remainder}

    return measure


def local_equivariance_errors(structures: Any, **options: Any) -> Measure:
    """A measure: the local equivariance error (LEE) of each quantity and irrep.

    Parameters
    ----------
    structures, options
        As in `audit.lie_errors`.

    Returns
    -------
    callable
        Takes a model, returns errors by name.
    """

    def measure(model: nn.Module) -> dict[str, float]:
        from molequi.audit.lie import lie_errors

        return {
            f"{row.quantity} {row.irrep}": row.lee
            for row in lie_errors(model, structures, **options).rows
            if row.measured
        }

    return measure


@dataclass(frozen=True, kw_only=True)
class SymmetryCurves:
    """Measures of several models; ``print`` shows them, `plotting.symmetry_curves` draws them.

    Attributes
    ----------
    x : tuple of float or str
        Epochs or names of the models.
    values : dict
        Values of each measure, in the order of `x`.
    x_label : str
        What `x` is.
    """

    x: tuple[float | str, ...]
    values: dict[str, tuple[float, ...]]
    x_label: str = "model"

    @property
    def summary(self) -> str:
        """First and last value of each measure."""
        return "; ".join(f"{name} from {v[0]:.2e} to {v[-1]:.2e}" for name, v in self.values.items())

    def _rows(self) -> list[list[str]]:
        return [
            [
                f"{x:g}" if isinstance(x, (int, float)) else x,
                *(f"{values[k]:.3e}" for values in self.values.values()),
            ]
            for k, x in enumerate(self.x)
        ]

    def __str__(self) -> str:
        return "\n".join(table.text_table((self.x_label, *self.values), self._rows()))

    def _repr_html_(self) -> str:
        return html_heading("symmetry of several models", self.summary) + html_table(
            (self.x_label, *self.values), self._rows()
        )

    __repr__ = __str__

    def to_json(self) -> str:
        """All values as JSON."""
        values = {name: table.json_ready(list(v)) for name, v in self.values.items()}
        return json.dumps(
            {"x_label": self.x_label, "x": list(self.x), "values": values}, indent=1, allow_nan=False
        )


def symmetry_curves(
    models: Mapping[float | str, nn.Module | str | os.PathLike] | Sequence[nn.Module | str | os.PathLike],
    measures: Mapping[str, Measure],
    *,
    x_label: str = "model",
) -> SymmetryCurves:
    """Apply measures of symmetry to several models, such as the checkpoints of a training.

    Parameters
    ----------
    models : mapping or sequence
        Models or model files, by epoch or name. Models of a sequence are numbered from 0; files get their
        names, with folders if names repeat.
    measures : mapping of str to callable
        Functions of a model that return a number, or several by name: `audit_errors`, `spectrum_shares`,
        `local_equivariance_errors`, a loss, or your own.
    x_label : str
        Title of the first column.

    Returns
    -------
    SymmetryCurves
        One column for each measure.

    Raises
    ------
    ConfigError
        For no models, no measures, or a measure that returns no number.

    Examples
    --------
    >>> import torch
    >>> models = {"small": torch.nn.Linear(1, 1), "large": torch.nn.Linear(4, 4)}
    >>> curves = symmetry_curves(models, {"size": lambda model: model.weight.numel()})
    >>> curves.values
    {'size': (1.0, 16.0)}
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
    for x, model in models.items():
        if not isinstance(model, (str, os.PathLike, nn.Module)):
            raise ConfigError(
                f"models: {x!r} is of type {type(model).__name__}; wanted a torch.nn.Module or a model file"
            )
    rows = [
        evaluate_measures(load(m) if isinstance(m, (str, os.PathLike)) else m, measures)
        for m in models.values()
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    return SymmetryCurves(
        x=tuple(models),
        values={n: tuple(row.get(n, float("nan")) for row in rows) for n in names},
        x_label=x_label,
    )


def _names(models: list[nn.Module | str | os.PathLike]) -> list[float | str]:
    """Numbers of models, and names of files with as many folders as it takes to distinguish them."""
    paths = {
        k: Path(m).parent / Path(m).stem for k, m in enumerate(models) if isinstance(m, (str, os.PathLike))
    }
    found: list[float | str] = list(range(len(models)))
    for k, path in paths.items():
        same_name = [p for p in paths.values() if p.name == path.name]
        depths = (
            n
            for n in range(1, 1 + max(len(p.parts) for p in same_name))
            if len({p.parts[-n:] for p in same_name}) == len(same_name)
        )
        depth = next(depths, None)
        if depth is None:
            raise ConfigError(
                f"models: the file {path.as_posix()!r} occurs twice; give models by name: {{name: model}}"
            )
        found[k] = Path(*path.parts[-depth:]).as_posix()
    return found


def evaluate_measures(model: nn.Module, measures: Mapping[str, Measure]) -> dict[str, float]:
    """All measures of a model; several numbers of one measure get the names "measure: part".

    Raises ConfigError for a value that is no number, and for a name that occurs twice.
    """
    out: dict[str, float] = {}
    for name, measure in measures.items():
        value = measure(model)
        values = (
            {f"{name}: {k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
        )
        for column, number in values.items():
            if column in out:
                raise ConfigError(
                    f"measures: {name!r} returns a number named {column!r}, and so does another measure; "
                    "rename it"
                )
            try:
                out[column] = float(number.detach() if isinstance(number, Tensor) else number)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"measure {column!r}: found {type(number).__name__} {str(number)[:60]}; wanted one "
                    "number, or "
                    "several by name, as {'mean': 0.1, 'largest': 0.3}"
                ) from error
    return out
