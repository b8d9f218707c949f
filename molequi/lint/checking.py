"""All checks of a lint, and those that are made before each training."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

from molequi.data.dataset import Dataset
from molequi.errors import DataWarning
from molequi.lint.compositions import energy_groups, per_atom_energies, reference_energies
from molequi.lint.frames import Frames
from molequi.lint.geometry import close_atoms, lonely_atoms
from molequi.lint.labels import missing_labels, outliers, repeated_labels, zero_labels
from molequi.lint.mechanics import sums_of_forces
from molequi.lint.pairs import Pairs, similar_pairs
from molequi.lint.report import SEVERITIES, Finding
from molequi.lint.scales import unit_of_energies, unit_of_forces, unit_of_length, unusual_scales
from molequi.lint.states import inconsistent_frames, shifted_groups
from molequi.lint.twins import almost_equal, equal
from molequi.lint.work import energies_against_forces, shifted_forces, stress_against_energies

Check = Callable[[Frames], list[Finding]]
_LEAST, _LEAST_OF_PART, _AT_START = 20, 100, 600  # structures
# What a finding explains, so that it is not said twice.
_EXPLAINED = {
    "length-unit": (
        *("close-atoms", "coincident-atoms", "far-atoms", "no-neighbors", "energy-force-scale", "force-unit"),
        *("near-duplicates", "inconsistent-frames", "force-outliers", "stress-unit"),
    ),
    "force-unit": ("force-scale", "force-outliers"),
    "per-atom-energies": (
        *("energy-scale", "energy-groups", "energy-outliers", "energy-offsets", "inconsistent-frames"),
    ),
    "energy-groups": ("energy-scale", "energy-outliers", "inconsistent-frames", "energy-offsets"),
    "energy-force-scale": (
        "inconsistent-frames",
        "shifted-forces",
        "stress-unit",
        "energy-groups",
        "energy-offsets",
    ),
    "shifted-forces": ("inconsistent-frames", "repeated-labels", "net-torque", "stress-unit"),
    "force-scale": ("force-outliers",),
    "energy-offsets": ("inconsistent-frames",),
    "energy-unit": ("energy-scale",),
    **dict.fromkeys(
        ("stress-sign", "stress-unit", "stress-order"), ("inconsistent-frames", "energy-offsets")
    ),
}


def all_findings(frames: Frames, cutoff: float, allow: Collection[str]) -> list[Finding]:
    """What all checks find, errors first.

    Parameters
    ----------
    frames : Frames
        The structures.
    cutoff : float
        Cutoff of the model in Å.
    allow : collection of str
        Heuristics that are overruled.
    """
    found = _made([missing_labels, equal], frames)
    if frames.molecules and "length-unit" not in allow and unit_of_length(frames):
        found += _made([*_of_labels(), unusual_scales], frames)  # distances and work mean nothing yet
    elif frames.molecules:
        checks: list[Check] = [
            close_atoms,
            partial(lonely_atoms, cutoff=cutoff),
            almost_equal,
            outliers,
            unusual_scales,
        ]
        found += _made(checks, frames) + _with_parts(frames)
    return _ordered(found, allow)


def _with_parts(frames: Frames) -> list[Finding]:
    """Findings on the labels of all structures, and of each part by itself.

    Beside good data the work of the forces in wrong ones is noise, so that together nothing would be found.
    """
    found = _made(_of_labels(), frames) + _by_work(frames)
    if len(frames.parts) < 2:
        return found
    own = []
    for name, data in frames.parts.items():
        if len(data) < _LEAST_OF_PART:  # too few for a statement of their own
            continue
        part = Frames({name: data})
        for one in _made(_of_labels(), part) + _by_work(part):
            if one.severity != "info":
                own.append(replace(one, message=f"{name}: {one.message}"))
    names = {one.name for one in own}
    return [one for one in found if one.name not in names] + own


def _of_labels() -> list[Check]:
    """Checks of labels that are cheap and sure."""
    return [
        *(unit_of_length, unit_of_forces, unit_of_energies, zero_labels, repeated_labels, sums_of_forces),
        *(per_atom_energies, energy_groups, reference_energies),
    ]


def _made(checks: Collection[Check], frames: Frames) -> list[Finding]:
    return [one for check in checks for one in check(frames)]


def _by_work(frames: Frames) -> list[Finding]:
    """Findings from energies, forces and stress together."""
    pairs: Pairs = similar_pairs(frames)
    checks = (
        *(energies_against_forces, shifted_forces, inconsistent_frames, shifted_groups),
        stress_against_energies,
    )
    return [one for check in checks for one in check(frames, pairs)]


def _ordered(found: Collection[Finding], allow: Collection[str]) -> list[Finding]:
    """Findings that are not allowed and not explained by others, errors first."""
    kept = [one for one in found if one.name not in allow]
    explained = {name for one in kept for name in _EXPLAINED.get(one.name, ())}
    kept = [one for one in kept if one.name not in explained]
    return sorted(kept, key=lambda one: SEVERITIES.index(one.severity))


def warn_of_faults(parts: Mapping[str, Dataset]) -> None:
    """Warn (DataWarning) of labels that are wrong beyond doubt, before a training.

    At most 600 structures of all parts are looked at, which takes a fraction of a second, and none of fewer
    than 20, which are examples rather than data. Only findings of severity "error" are named. Equal
    structures are not searched again, see `molequi.data.overlap`.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The parts by name. Heuristics that one of them allows (`Dataset.allow`) are overruled.
    """
    allow = {name for data in parts.values() for name in data.allow}
    frames = Frames(parts).sample(_AT_START)
    if len(frames) < _LEAST or not frames.molecules:
        return
    for one in _ordered(_with_parts(frames), allow):
        if one.severity == "error":
            where = f" ({one.where})" if one.origins else ""
            warnings.warn(
                f"{one.message}{where}. Look closer with molequi lint; if these data are as they should be, "
                f"say allow=[{one.name!r}] where they are read",
                DataWarning,
                stacklevel=3,
            )
