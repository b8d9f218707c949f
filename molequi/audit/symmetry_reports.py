"""Symmetry reports of models: measure, verify and compare them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from molequi.audit.checks import CHECKS
from molequi.audit.foreign import as_auditable
from molequi.audit.report import Row, Tolerances
from molequi.audit.study import Study, check_draws, structures_of
from molequi.checkpoint import load
from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.levels import check_single
from molequi.symmetry_report import SymmetryReport, record_of
from molequi.util.digests import weights_digest
from molequi.util.html import FAILS, HOLDS, html_heading, html_table
from molequi.util.tables import text_table

# Checks of a symmetry report: those that need no finite differences.
STATED = ("rotation", "reflection", "translation", "permutation", "batch", "lattice", "features")
GROWTH = 10.0  # an error may be so many times larger than in the earlier report
FLOOR = {
    "float64": 1e-13,
    "float32": 1e-5,
    "own": 1e-5,
}  # round-off, which depends on the weights; smaller errors count as equal
MOST = 200  # atoms in a report, unless a single structure has more; that one is drawn twice


def symmetry_report(
    model: object, structures: object, *, draws: int = 4, seed: int = 0, limit: int = 3
) -> SymmetryReport:
    """Measure the symmetry report of a model.

    `fit` writes a report into each model file. To write one by hand:
    ``mq.save(model, path, metadata=model.metadata | {"symmetry_report": report.to_dict()})``.

    Parameters
    ----------
    model : Model, Ensemble, Declared or BlackBox
        The model; it is copied, not changed.
    structures : Dataset, Graph, ase.Atoms, list of these, or path
        Whatever `audit` takes. The smallest of an even choice are used and kept in the report.
    draws : int
        Random transforms of each structure.
    seed : int
        Seed of the random transforms.
    limit : int
        At most so many structures are used.

    Returns
    -------
    SymmetryReport
        The largest error of each check.

    Raises
    ------
    ConfigError, DataError, ModelError
        As `audit` does.
    """
    from molequi import __version__

    model = as_auditable(model)
    check_draws(draws)
    used, _ = structures_of(structures, 8 * limit, model)
    used = sorted(used, key=lambda g: g.num_nodes)[:limit]
    while len(used) > 1 and sum(g.num_nodes for g in used) > MOST:
        used.pop()
    draws = draws if used[0].num_nodes <= MOST else 2
    return _measured(model, used, draws, seed, __version__)


def _measured(model: nn.Module, used: list[Graph], draws: int, seed: int, version: str) -> SymmetryReport:
    model = as_auditable(model)
    study = Study(model, used, draws=draws, seed=seed, tolerance=Tolerances())
    rows = [row for name in ("not zero", *STATED) for row in CHECKS[name](study)]
    checks = {"float64": _largest(rows, "maximum"), "float32": _largest(rows, "float32")}
    dtype = str(next((p.dtype for p in model.parameters()), "none")).removeprefix("torch.")
    fast, unusable = getattr(model, "program", None) is not None, ""
    if fast or dtype not in ("float32", "float64"):
        try:
            own = Study(model, used, draws=draws, seed=seed, tolerance=Tolerances.single(), as_it_is=True)
            checks["own"] = _largest(
                [row for name in STATED if name != "features" for row in CHECKS[name](own)], "maximum"
            )
        except RuntimeError as error:
            if fast:
                raise
            # torch has no such operation in this precision: the errors count as not finite, and the report
            # says why
            unusable, checks["own"] = str(error).splitlines()[0], dict.fromkeys(checks["float64"])
    return SymmetryReport(
        group=str(study.group),
        checks=checks,
        failed=list(dict.fromkeys(r.check for r in rows if r.verdict == "fail")),
        own=dtype,
        unusable=unusable,
        quantities=list(study.measurable),
        accelerated=fast,
        weights=weights_digest(model.state_dict()),
        structures=[record_of(g) for g in used],
        draws=draws,
        seed=seed,
        molequi=version,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _largest(rows: list[Row], attribute: str) -> dict[str, float | None]:
    """The largest error of each check; None for one that is not finite."""
    found: dict[str, float | None] = {}
    for row in rows:
        value = getattr(row, attribute)
        if value is not None and row.verdict != "not applicable":
            known = found.get(row.check, 0.0)
            found[row.check] = None if known is None or not value < float("inf") else max(known, value)
    return found


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two symmetry reports, check by check.

    Parameters
    ----------
    old, new : SymmetryReport
        The earlier and the later report.
    grown : tuple of (str, str)
        Precision and check of each error that is more than ten times the earlier one, or no longer finite.
    weaker : str
        What the new model lacks: a larger group, or quantities that could be measured. Empty if nothing.
    """

    old: SymmetryReport
    new: SymmetryReport
    grown: tuple[tuple[str, str], ...]
    weaker: str

    @property
    def passed(self) -> bool:
        """Whether no error grew, nothing is weaker, and no check fails that passed before."""
        return not self.grown and not self.weaker and not self.failed

    @property
    def failed(self) -> list[str]:
        """Checks that fail now and passed before."""
        return [check for check in self.new.failed if check not in self.old.failed]

    def raise_if_grown(self) -> "Comparison":
        """Return the comparison itself if it passed.

        Raises
        ------
        ModelError
            If it did not pass. The message has the table.
        """
        if not self.passed:
            raise ModelError(str(self))
        return self

    def to_json(self) -> str:
        """Both reports and the verdict as JSON."""
        parts = {"old": self.old.to_dict(), "new": self.new.to_dict()}
        return json.dumps(
            {"passed": self.passed, "grown": self.grown, "weaker": self.weaker, **parts},
            indent=1,
            allow_nan=False,
        )

    def _rows(self) -> list[tuple[str, ...]]:
        rows = []
        for way, checks in self.new.checks.items():
            for check, value in checks.items():
                known = _way(self.old.checks, way).get(check, "")
                rows.append(
                    (
                        f"{way} {check}",
                        *[
                            "not finite" if v is None else v if v == "" else f"{v:.1e}"
                            for v in (known, value)
                        ],
                        "GROWN" if (way, check) in self.grown else "as before",
                    )
                )
        return rows

    @property
    def summary(self) -> str:
        """The verdict and its reasons in one line."""
        wrong = [
            self.weaker,
            *[f"{check} fails" for check in self.failed],
            *[f"the error of {check} in {way} grew" for way, check in self.grown],
        ]
        wrong.append(f"{self.new.own}: {self.new.unusable}" if self.new.unusable else "")
        return "nothing grew" if self.passed else "REFUSED: " + "; ".join(filter(None, wrong))

    def __str__(self) -> str:
        return "\n".join([*text_table(_HEAD, self._rows()), self.summary])

    def _repr_html_(self) -> str:
        rows = self._rows()
        colours = [FAILS if row[-1] == "GROWN" else HOLDS for row in rows]
        title = f"symmetry reports of {self.old.date} and {self.new.date}"
        return html_heading(title, self.summary) + html_table(_HEAD, rows, colours)

    __repr__ = __str__


_HEAD = ("check", "old", "new", "")


def compare(old: SymmetryReport, new: SymmetryReport) -> Comparison:
    """Compare two symmetry reports that were measured on the same structures.

    Parameters
    ----------
    old, new : SymmetryReport
        The earlier and the later report.

    Returns
    -------
    Comparison
        Which errors grew, and what became weaker.
    """
    grown = []
    for way, checks in new.checks.items():
        before = _way(old.checks, way)
        for check, value in checks.items():
            known = before.get(
                check, value
            )  # a check that the old report does not have counts by whether it fails
            if (value is None and known is not None) or (
                value is not None and known is not None and value > GROWTH * max(known, FLOOR[way])
            ):
                grown.append((way, check))
    lost = [
        c
        for c in (*old.quantities, *old.checks["float64"])
        if c not in (*new.quantities, *new.checks["float64"])
    ]
    weaker = (
        []
        if new.declared.holds(old.declared)
        else [f"the old model declares {old.group}, the new one {new.group}"]
    )
    weaker += [f"{', '.join(lost)} cannot be measured any more"] if lost else []
    return Comparison(old=old, new=new, grown=tuple(grown), weaker="; ".join(weaker))


def _way(checks: Mapping[str, Mapping], way: str) -> Mapping:
    """Errors in one precision. A model in float32 has no column "own", because "float32" is the same."""
    return checks.get(way, checks["float32"])


def verify(model: nn.Module | str | os.PathLike) -> Comparison:
    """Measure a model again on the structures of its symmetry report, and compare.

    ``molequi info --verify`` does this for a file. `SymmetryReport.verify` is its first part: it checks that
    the report belongs to the weights, and measures nothing.

    Parameters
    ----------
    model : Model, Ensemble or path
        A model with a symmetry report, or its file.

    Returns
    -------
    Comparison
        The errors of the report against those of now; ``raise_if_grown()`` refuses a model whose errors grew.

    Raises
    ------
    ModelError
        If the model has no report, one for other weights, or several levels of theory.
    CheckpointError
        If the file cannot be loaded.

    Examples
    --------
    >>> print(mq.audit.verify("model.safetensors"))  # doctest: +SKIP
    """
    from molequi import __version__

    where, checked = "", model
    if isinstance(model, (str, os.PathLike)):
        where, checked = f"{model}: ", load(Path(model))
    check_single(checked)
    report = getattr(checked, "symmetry_report", None)
    if not isinstance(checked, nn.Module) or not isinstance(report, SymmetryReport):
        raise ModelError(
            f"{where}the model has no symmetry report; `fit` writes one, and audit.symmetry_report measures "
            "one"
        )
    checked = getattr(checked, "mean_model", checked)  # a Laplace approximation has the report of its model
    report = report.verify(checked)
    return compare(report, _measured(checked, report.graphs, report.draws, report.seed, __version__))


def compare_models(
    new: str | os.PathLike,
    old: str | os.PathLike,
    structures: object,
    *,
    draws: int = 4,
    seed: int = 0,
    limit: int = 16,
) -> Comparison:
    """Measure two model files on the same structures and compare their symmetry errors, for instance before a
    new model replaces the old one.

    Parameters
    ----------
    new, old : path
        The new model file and the one that it replaces. If the old file has a symmetry report, the smaller of
        the reported error and the error measured now counts.
    structures : Dataset, Graph, ase.Atoms, list of these, or path
        Whatever `audit` takes.
    draws, seed, limit : int
        As in `audit`.

    Returns
    -------
    Comparison
        Which errors grew, and what became weaker.
    """
    from molequi import __version__

    check_draws(draws)
    models = [load(Path(path)) for path in (old, new)]
    used, _ = structures_of(structures, limit, models[1])
    first, second = (_measured(model, used, draws, seed, __version__) for model in models)
    kept = models[0].symmetry_report
    if kept is not None:
        checks = {
            way: {c: _smaller(v, kept.checks.get(way, {}).get(c)) for c, v in row.items()}
            for way, row in first.checks.items()
        }
        first = replace(first, checks=checks)
    return compare(first, second)


def _smaller(now: float | None, before: float | None) -> float | None:
    """The smaller error; an error that cannot be measured now stays so."""
    return now if now is None or before is None else min(now, before)
