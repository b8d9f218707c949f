"""All checks of a lint, and those that are made before each training."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from molequi.data.dataset import Dataset
from molequi.errors import DataWarning
from molequi.lint.compositions import (
    energy_groups,
    per_atom_energies,
    reference_energies,
    unit_of_some_energies,
)
from molequi.lint.foreign import Told, foreign_findings
from molequi.lint.frames import Frames
from molequi.lint.geometry import close_atoms, lonely_atoms
from molequi.lint.labels import missing_labels, outliers, repeated_labels, zero_labels
from molequi.lint.mechanics import sums_of_forces
from molequi.lint.mixtures import some_foreign_labels
from molequi.lint.pairs import Pairs, similar_pairs
from molequi.lint.report import SEVERITIES, Finding
from molequi.lint.scales import unit_of_energies, unit_of_length, unit_of_some_lengths, unusual_scales
from molequi.lint.springs import unit_of_forces
from molequi.lint.states import inconsistent_frames, shifted_groups
from molequi.lint.twins import almost_equal, equal
from molequi.lint.work import energies_against_forces, shifted_forces, stress_against_energies

Check = Callable[[Frames], list[Finding]]
_LEAST, _LEAST_OF_PART, _AT_START = 20, 100, 600  # structures
SAMPLED = 10_000  # structures that are compared with each other
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
        found += _made([unusual_scales], frames) + _of_labels(frames, allow)[0]  # distances mean little yet
    elif frames.molecules:
        checks: list[Check] = [close_atoms, partial(lonely_atoms, cutoff=cutoff), outliers, unusual_scales]
        found += _made(checks, frames) + almost_equal(frames.sample(SAMPLED)) + _with_parts(frames, allow)
    return _ordered(found, allow)


def sampled_checks(frames: Frames) -> dict[str, str]:
    """Checks that looked at some of the structures only, and at how many.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    found = {}
    if frames.molecules and len(frames) > SAMPLED:
        text = (
            f"{len(frames.sample(SAMPLED))} of {len(frames)} structures, in runs from the whole of the data"
        )
        names = "almost equal structures, energies against forces and stress, bonds to hydrogen"
        found[names] = text
    if frames.molecules and not frames.searched.all():
        found["distances in crystals"] = f"{frames.searched.sum()} of {len(frames)} structures"
    return found


def _with_parts(frames: Frames, allow: Collection[str]) -> list[Finding]:
    """Findings on the labels of all structures, and of each part by itself.

    Beside good data the work of the forces in wrong ones is noise, so that together nothing would be found.
    Parts with an error of their own are left out of those that are looked at together.
    """
    if len(frames.parts) < 2:
        return _by_labels(frames, allow)
    own: list[Finding] = []
    good: list[str] = []
    for name, data in frames.parts.items():
        told = _by_labels(Frames({name: data}), allow) if len(data) >= _LEAST_OF_PART else []
        told = [one for one in told if one.severity != "info"]
        good += [name] if not told else []
        own += [replace(one, message=f"{name}: {one.message}") for one in told]
    left = Frames({name: frames.parts[name] for name in good}) if good else frames
    names = {one.name for one in own}
    return [one for one in _by_labels(left, allow) if one.name not in names] + own


def _by_labels(frames: Frames, allow: Collection[str]) -> list[Finding]:
    """Findings from labels alone, and from energies, forces and stress together."""
    found, told, frames = _of_labels(frames, allow)
    sample = frames.sample(SAMPLED)
    above = np.arange(len(frames)) if sample is frames else sample.rows
    pairs: Pairs = similar_pairs(sample)
    scale = energies_against_forces(sample, pairs)
    if not scale:
        more, sample, pairs = some_foreign_labels(sample, pairs, allow)
        told += [(case, above[rows]) for case, rows in more]
    checks = (shifted_forces, inconsistent_frames, shifted_groups, stress_against_energies)
    found += scale + [one for check in checks for one in check(sample, pairs)]
    found += energy_groups(sample if len(sample) == len(frames) else frames)
    return found + foreign_findings(frames, told)


def _of_labels(frames: Frames, allow: Collection[str]) -> tuple[list[Finding], list[Told], Frames]:
    """Findings of checks of labels that are cheap and sure, labels of some structures that are foreign, and
    the structures with these labels as they should be.
    """
    found, told = _made([unit_of_length], frames), list[Told]()
    if not found and "length-unit" not in allow:
        found, foreign = unit_of_some_lengths(frames)
        frames = frames.subset(np.flatnonzero(~foreign)) if foreign.any() else frames
    found += unit_of_forces(frames.sample(SAMPLED))
    checks: list[Check] = [unit_of_energies, zero_labels, repeated_labels, sums_of_forces, reference_energies]
    found += _made(checks, frames)
    if "per-atom-energies" not in allow:
        some, frames = per_atom_energies(frames)
        found += some
    if "energy-unit" not in allow and not any(f.name in ("energy-unit", "per-atom-energies") for f in found):
        told, frames = unit_of_some_energies(frames)
    return found, told, frames


def _made(checks: Collection[Check], frames: Frames) -> list[Finding]:
    return [one for check in checks for one in check(frames)]


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
    for one in _ordered(_with_parts(frames, allow), allow):
        if one.severity == "error":
            where = f" ({one.where})" if one.origins else ""
            warnings.warn(
                f"{one.message}{where}. Look closer with molequi lint; if these data are as they should be, "
                f"say allow=[{one.name!r}] where they are read",
                DataWarning,
                stacklevel=3,
            )
