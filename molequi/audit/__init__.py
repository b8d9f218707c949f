"""Proof of a model's symmetry and physics: `print(audit(model, structures))`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from molequi.audit.checks import CHECKS
from molequi.audit.foreign import BlackBox, Declared, as_auditable
from molequi.audit.groups import Symmetries, symmetries
from molequi.audit.lie import LieReport, lie_errors
from molequi.audit.report import Report, Row, Tolerances
from molequi.audit.study import Study, check_draws, structures_of
from molequi.audit.symmetry_reports import Comparison, compare, compare_models, symmetry_report, verify
from molequi.checkpoint import load
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, did_you_mean
from molequi.readers.load import load_dataset
from molequi.symmetry import Group

__all__ = [
    "CHECKS",
    "BlackBox",
    "Comparison",
    "Declared",
    "LieReport",
    "Report",
    "Row",
    "Symmetries",
    "Tolerances",
    "compare_models",
    "audit",
    "audit_files",
    "compare",
    "labelled",
    "lie_errors",
    "symmetry_report",
    "symmetries",
    "unlabelled",
    "verify",
]

# Checks that need no differences of an energy.
SYMMETRIES = (
    "not zero",
    "rotation",
    "reflection",
    "translation",
    "permutation",
    "edge order",
    "batch",
    "lattice",
    "supercell",
    "momentum",
)


def audit(
    model: nn.Module,
    structures,
    *,
    group: str | Group | None = None,
    draws: int = 16,
    seed: int = 0,
    checks: Sequence[str] | None = None,
    tolerance: Tolerances | None = None,
    limit: int = 16,
) -> Report:
    """Measures whether a model has the symmetry that it declares and behaves as physics does; a model that is always zero fails.

    model: a Model, an ASE calculator (as `BlackBox` asks it), or a module that says its `quantities`, `cutoff` and `group`, as `Declared` does
    of any module; it is copied, not changed.
    group: by which it is judged, such as "SE(3)", "O(2)", "Oh" or a `symmetry.Group`; None is the one that the model declares. What was
    measured beyond it is shown without a verdict.
    structures: whatever `data.load_dataset` takes: a Dataset, Graphs, ase.Atoms, a file. At most `limit` of them are used, spread evenly.
    draws: tries of each structure and check, half of them with the atoms shaken by about 5 % of a bond. seed: of the draws.
    checks: names from CHECKS; None is all of them. tolerance: see Tolerances.
    Everything is judged in float64 and through the neighbour search; the errors of float32 are shown beside.
    Raises ConfigError for unknown checks, DataError or ModelError for structures that the model cannot take.
    """
    model = as_auditable(model)
    rough = getattr(model, "precision", None) == "float32" and isinstance(model, BlackBox)
    names = [*(SYMMETRIES if rough else CHECKS)] if checks is None else list(checks)
    tolerance = tolerance or (Tolerances.single() if rough else Tolerances())
    if isinstance(checks, str) or not names:
        raise ConfigError(f"checks={checks!r}: wanted a list of names from {', '.join(CHECKS)}")
    for name in names:
        if name not in CHECKS:
            raise ConfigError(f"check {name!r} is not known{did_you_mean(name, CHECKS)}")
    check_draws(draws)
    from molequi import __version__

    used, given = structures_of(structures, limit)
    study = Study(model, used, draws=draws, seed=seed, tolerance=tolerance, declared=group)
    rows = [row for name in names for row in CHECKS[name](study)]
    return Report(
        rows=tuple(rows),
        model=_name(model),
        group=str(study.group),
        structures=len(used),
        given=given,
        draws=draws,
        seed=seed,
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tolerance=tolerance,
    )


def audit_files(
    model: str | Path, structures: str | Path, *, index: str | int | slice = ":", **options
) -> Report:
    """`audit` of a saved model on the structures of a file; labels in the file are not needed.

    index: which frames, as in ASE (":100", "::10", 0). options: those of `audit`. Raises, besides what `audit` raises,
    DataError for files and frames that are not there and CheckpointError for what is no model file.
    """
    return audit(load(model), unlabelled(structures, index), **options)


def unlabelled(structures: str | Path, index: str | int | slice = ":") -> Dataset:
    """The structures of a file without their labels; index: which frames, as in ASE."""
    return load_dataset(structures, only=("charge", "spin"), index=None if index == ":" else index)


def labelled(structures: str | Path, index: str | int | slice = ":") -> Dataset:
    """The structures of a file with their labels; index: which frames, as in ASE."""
    return load_dataset(structures, index=None if index == ":" else index)


def _name(model: nn.Module) -> str:
    inner = getattr(model, "calculator", None) or getattr(model, "module", None)
    if isinstance(model, (BlackBox, Declared)):
        return type(inner).__name__
    backbone = getattr(model, "backbone", None)
    return type(model).__name__ if backbone is None else f"{type(model).__name__}({type(backbone).__name__})"
