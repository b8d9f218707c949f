"""Audits of models: run all checks on structures of the user."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import nn

from molequi.audit.checks import CHECKS
from molequi.audit.foreign import BlackBox, Declared, as_auditable
from molequi.audit.report import Report, Tolerances
from molequi.audit.study import Study, check_draws, structures_of
from molequi.checkpoint import check_order
from molequi.data.dataset import Dataset
from molequi.domain import read_as_trained, totals_taken
from molequi.errors import ConfigError, did_you_mean
from molequi.quantities import KNOWN
from molequi.readers.load import load_dataset
from molequi.symmetry import Group
from molequi.util.signature import check_keywords

# Checks that need no finite differences of an energy.
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


_PRECISION = "measured in float64 always, with the errors in float32 beside them; leave it out"


class AuditOptions(TypedDict, total=False):
    """Options of `audit`, for functions that pass them on."""

    group: str | Group | None
    draws: int
    seed: int
    checks: Sequence[str] | None
    tolerance: Tolerances | None
    limit: int
    device: str | torch.device | None


@check_keywords({"dtype": _PRECISION, "precision": _PRECISION})
def audit(
    model: object,
    structures: object,
    *,
    group: str | Group | None = None,
    draws: int = 16,
    seed: int = 0,
    checks: Sequence[str] | None = None,
    tolerance: Tolerances | None = None,
    limit: int = 16,
    device: str | torch.device | None = None,
) -> Report:
    """Measure whether a model has the symmetry that it declares, and whether its outputs obey physics.

    Every check runs in float64 and includes the neighbor search. The errors in float32 are reported too. A
    model whose outputs are always zero fails.

    Parameters
    ----------
    model : Model, Ensemble, str, Path, Declared, BlackBox or ASE calculator
        A model or its file. The model is copied, not changed. A calculator is used as a `BlackBox`. Any other
        module must have the attributes ``quantities``, ``cutoff`` and ``group``; `Declared` gives them to any
        module.
    structures : Dataset, Graph, ase.Atoms, list of these, or path
        Whatever `load_dataset` takes. Labels are not needed.
    group : str or Group, optional
        The group by which the model is judged, such as "SE(3)", "O(2)" or "Oh". By default the one that the
        model declares. Elements outside of it are measured and reported without a verdict.
    draws : int
        Random transforms of each structure and check, at least 2. In every second one the atoms are rattled
        by about 5 % of a bond length.
    seed : int
        Seed of the random transforms.
    checks : sequence of str, optional
        Names from `CHECKS`; by default all of them.
    tolerance : Tolerances, optional
        The largest errors that pass.
    limit : int
        At most so many structures are used, spread evenly over those given.
    device : {"auto", "cpu", "cuda", "cuda:1"}, optional
        Where it runs; by default where the model is, and a model of a file on CUDA if this machine has it.

    Returns
    -------
    Report
        One row for each check and quantity.

    Raises
    ------
    ConfigError
        For unknown checks and groups, and for a model that does not declare what is needed.
    DataError, ModelError
        For structures that the model cannot take.

    Examples
    --------
    >>> import molequi as mq
    >>> water = mq.Graph.single([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], ["O", "H", "H"])
    >>> model = mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1), ["energy", "forces"])
    >>> mq.audit(model, [water], draws=2, checks=["rotation", "permutation"]).passed
    True
    """
    check_order("audit", model, structures)
    model = as_auditable(model, device=device)
    rough = isinstance(model, BlackBox) and model.precision == "float32"
    names = [*(SYMMETRIES if rough else CHECKS)] if checks is None else list(checks)
    tolerance = tolerance or (Tolerances.single() if rough else Tolerances())
    if isinstance(checks, str) or not names:
        raise ConfigError(f"checks={checks!r}: wanted a list of names from {', '.join(CHECKS)}")
    for name in names:
        if name not in CHECKS:
            raise ConfigError(f"check {name!r} is not known{did_you_mean(name, CHECKS)}")
    check_draws(draws)
    from molequi import __version__

    used, given = structures_of(structures, limit, model)
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
    model: str | Path,
    structures: str | Path,
    *,
    index: str | int | slice = ":",
    **options: Unpack[AuditOptions],
) -> Report:
    """Run `audit` for a model file on the structures of another file.

    Parameters
    ----------
    model : path
        A model file.
    structures : path
        A file of structures. Labels are not needed.
    index : str, int or slice
        Which frames, as in ASE: ":100", "::10", 0.
    **options
        Options of `audit`.

    Returns
    -------
    Report
        The report of `audit`.

    Raises
    ------
    CheckpointError
        If the first file is not a model file.
    DataError
        If the second file or a frame does not exist.
    """
    there = as_auditable(model, device=options.get("device"))  # checked before structures are read
    return audit(there, unlabelled(there, structures, index), **options)


def unlabelled(model: object, structures: str | Path, index: str | int | slice = ":") -> Dataset:
    """Structures of a file without their labels, read as the training data of a model were read.

    Total charges and spins are read if the model takes them.

    Parameters
    ----------
    model : Model, Ensemble, Declared or BlackBox
        The model.
    structures : path
        A file that `load_dataset` reads.
    index : str, int or slice
        Which frames, as in ASE.

    Returns
    -------
    Dataset
        One structure for each frame.
    """
    return read_as_trained(model, structures, {"index": _own(index)}, only=totals_taken(model))


def labelled(structures: str | Path, index: str | int | slice = ":") -> Dataset:
    """Structures of a file with all known quantities that it has; arguments as in `unlabelled`."""
    return load_dataset(structures, only=tuple(KNOWN), index=_own(index))


def _own(index: str | int | slice) -> str | int | slice | None:
    """The index for `load_dataset`. None, for all frames, is allowed for every format."""
    return None if index == ":" else index


def _name(model: nn.Module) -> str:
    inner = getattr(model, "calculator", None) or getattr(model, "module", None)
    if isinstance(model, (BlackBox, Declared)):
        return type(inner).__name__
    backbone = getattr(model, "backbone", None)
    return type(model).__name__ if backbone is None else f"{type(model).__name__}({type(backbone).__name__})"
