"""`lint`: read data, make all checks, measure what a training costs."""

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt

from molequi.data.dataset import Dataset
from molequi.data.heuristics import checked_allow
from molequi.errors import DataError, DataWarning
from molequi.lint.checking import all_findings, sampled_checks
from molequi.lint.costs import measured_costs
from molequi.lint.frames import Frames
from molequi.lint.report import SEVERITIES, Finding, LintReport
from molequi.model import Model
from molequi.quantities import Quantity
from molequi.readers.load import read_dataset, reader_of
from molequi.util.signature import check_keywords

# What the readers refuse or warn of, and a lint says itself.
_OF_READERS = ("close-atoms", "coincident-atoms", "force-scale", "energy-scale")


@check_keywords()
def lint(
    data: Any,
    *,
    allow: Sequence[str] = (),
    cutoff: Annotated[float, Gt(0)] = 5.0,
    costs: bool = True,
    model: Model | None = None,
    index: str | int | slice = ":",
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
) -> LintReport:
    """Look for faults in data before a training: units, signs, foreign labels, duplicates, lonely atoms.

    Parameters
    ----------
    data : Dataset, path, sequence or mapping
        One Dataset, or anything that `load_dataset` takes. A mapping has parts by name, ``{"train": …,
        "valid": …}``; of several paths or Datasets in a list each is a part. Parts are also compared with
        each other.
    allow : sequence of str
        Heuristics that are overruled, such as "close-atoms" for dimers at 0.35 Å that are wanted; see
        `molequi.data.heuristics`.
    cutoff : float, > 0
        Cutoff of the model in Å, for neighbors and costs.
    costs : bool
        Measure edges, memory and time of an epoch on a sample.
    model : Model, optional
        The model to measure; by default a PaiNN of 64 channels.
    index : str, int or slice
        Structures of each file in ASE's manner: ":", "::10".
    keys, units, partial, quantities
        As in `read_ase`, for data that are read here.

    Notes
    -----
    Most checks work on all structures in blocks. Of more than 10,000, structures are compared with each other
    in a sample of 10,000, and neighbors in crystals are searched in 20,000; `LintReport.sampled` says so.

    Returns
    -------
    LintReport
        Findings with file and frame, a summary of the labels, and costs. `LintReport.passed` is False if
        there is an error.

    Raises
    ------
    ConfigError
        For heuristics and options that do not exist.
    DataError
        If there is no such file. A file that cannot be read is a finding.

    Examples
    --------
    >>> import molequi as mq
    >>> report = mq.lint(mq.shipped("ethanol_300K.xyz"), index=":100", costs=False)
    >>> report.passed, [finding.name for finding in report.findings]
    (True, ['reference-energies'])
    """
    allow = checked_allow(allow, "lint: allow")
    options: dict[str, Any] = {"keys": keys, "units": units, "partial": partial, "quantities": quantities}
    options |= {"index": index} if index != ":" else {}
    parts: dict[str, Dataset] = {}
    found: list[Finding] = []
    for name, one in _named_parts(data).items():
        part, own = _read(one, options)
        found += own
        if part is not None:
            parts[name] = part
    allowed = checked_allow([*allow, *(name for part in parts.values() for name in part.allow)])
    found = [one for one in found if one.name not in allowed]
    if not parts:
        return LintReport(findings=tuple(found), allowed=allowed)
    frames = Frames(parts)
    found += all_findings(frames, cutoff, allowed)
    return LintReport(
        findings=tuple(sorted(found, key=lambda one: SEVERITIES.index(one.severity))),
        summaries={name: part.summary() for name, part in parts.items()},
        costs=measured_costs(frames, cutoff, model) if costs else {},
        structures=len(frames),
        allowed=allowed,
        skipped=_skipped(frames),
        sampled=sampled_checks(frames),
    )


def _named_parts(data: Any) -> dict[str, Any]:
    """The parts by name."""
    if isinstance(data, Mapping):
        if not data:
            raise DataError("lint: no parts; wanted at least one, such as {'train': data}")
        return {str(name): part for name, part in data.items()}
    several = isinstance(data, (list, tuple)) and len(data) > 1
    if several and all(isinstance(one, Dataset) for one in data):
        return {f"part {k}": one for k, one in enumerate(data)}
    if several and all(
        isinstance(one, os.PathLike) or (isinstance(one, str) and Path(one).exists()) for one in data
    ):
        return {_short(one, data): one for one in data}
    return {"data": data}


def _short(path: Any, paths: Sequence[Any]) -> str:
    """The name of a file, with its folder if another file has the same name."""
    names = [Path(one).name for one in paths]
    return Path(path).name if names.count(Path(path).name) == 1 else str(path)


def _read(what: Any, options: Mapping[str, Any]) -> tuple[Dataset | None, list[Finding]]:
    """One part, and what its reader says of it."""
    reader, _ = reader_of(what)
    options = dict(options)
    if reader is not None and "allow" in inspect.signature(reader).parameters:
        options["allow"] = _OF_READERS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            data = read_dataset(what, options, where="lint")
        except DataError as error:
            if isinstance(what, (str, os.PathLike)) and not Path(what).exists():
                raise
            return None, [Finding(name="unreadable", severity="error", message=str(error))]
    if reader is not None:
        data = data[:]
        data.allow = ()  # what was allowed above is looked for by the checks
    said = dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, DataWarning))
    for one in caught:
        if not issubclass(one.category, DataWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return data, [Finding(name="reader-warnings", severity="warning", message=text) for text in said]


def _skipped(frames: Frames) -> dict[str, str]:
    """Checks that these data do not allow, and why."""
    if not frames.molecules:
        return {"units and forces": "plain points have no physics that is known here"}
    out = {}
    energy, forces = frames.has("energy"), frames.has("forces")
    if not energy:
        out["energies"] = "no labels of 'energy' were read; keys={'energy': …} names another column"
    if not forces:
        out["forces against energies"] = "no labels of 'forces' were read"
    elif energy and not frames.same:
        out["forces against energies"] = "no two structures have the same atoms"
    if not frames.has("stress"):
        out["stress"] = "no labels of 'stress' were read"
    return out
