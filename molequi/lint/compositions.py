"""Energies against compositions: per atom or total, groups with another zero, elements without a
reference.
"""

from collections.abc import Mapping

import numpy as np

from molequi.data.statistics import undetermined
from molequi.lint.fits import absolute_fit
from molequi.lint.foreign import Told, cases_of_energies
from molequi.lint.frames import Frames
from molequi.lint.report import Finding, finding
from molequi.quantities import SYMBOLS

_BINDING = 10.0  # eV per atom; tungsten has 8.9, diamond 7.4, and no solid more (Kittel, cohesive energies)
_PRESSED = 0.7  # of the sum of the covalent radii
_GROUPS = 30  # values of a column that is one of groups


def reference_energies(frames: Frames) -> list[Finding]:
    """Elements whose atomic reference energies the compositions do not determine.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    if not np.isfinite(frames.energy).any():
        return []
    table = frames.compositions(slice(None))
    kinds = np.unique(table, axis=0)
    # Single atoms give the energies of their elements themselves.
    single = set(frames.z[frames.starts[frames.counts == 1]].tolist())
    blind = [s for s in undetermined(kinds, frames.elements)[0] if SYMBOLS.index(s) not in single]
    once = [SYMBOLS[e] for e, n in zip(frames.elements, (table > 0).sum(0)) if n == 1]
    found = []
    if len(blind) > 1 or (blind and len(frames.elements) > 1):
        text = (
            f"{', '.join(blind)}: their atomic reference energies cannot be told apart by the {len(kinds)} "
            f"composition{'s' * (len(kinds) != 1)} of these data. A model is exact for these compositions "
            "alone; for others give normalization={'reference_energies': …}"
        )
        found.append(finding("reference-energies", "info", text))
    once = [s for s in once if s not in blind and SYMBOLS.index(s) not in single and len(frames) > 1]
    if once:
        text = f"{', '.join(once)} occur in one structure only, which alone decides their reference energy"
        columns = [frames.elements.index(SYMBOLS.index(s)) for s in once]
        numbers = np.flatnonzero(table[:, columns].any(1)).tolist()
        found.append(finding("reference-energies", "warning", text, frames.origins, numbers))
    return found


def _several(frames: Frames) -> np.ndarray:
    """Structures of several atoms with an energy that is not zero."""
    known = np.isfinite(frames.energy) & (frames.counts > 1) & (frames.energy != 0.0)
    return np.flatnonzero(known)


def _fit(table: np.ndarray, energy: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Energies of elements with the smallest sum of absolute deviations per atom."""
    return absolute_fit(table / counts[:, None], energy / counts)


def per_atom_energies(frames: Frames) -> tuple[list[Finding], Frames]:
    """Energies per atom, in all structures or in some.

    A total energy is a sum over atoms to within the binding energy, 10 eV per atom at most. An energy that
    misses this sum, and meets it when it is multiplied by the number of atoms, is an energy per atom.

    Parameters
    ----------
    frames : Frames
        The structures.

    Returns
    -------
    (list of Finding, Frames)
        And the structures with total energies.
    """
    chosen = _several(frames)
    counts = frames.counts[chosen]
    if len(chosen) < 10 or len(np.unique(counts)) < 2:
        return _mixed_in_one_size(frames, chosen)
    table = frames.compositions(chosen)
    energy = frames.energy[chosen]
    as_total = _fit(table, energy, counts)
    rest = np.abs(energy - table @ as_total) / counts
    as_mean = _fit(table, energy * counts, counts)
    other = np.abs(energy * counts - table @ as_mean) / counts
    ratio = counts.max() / counts.min()
    if (
        ratio > 1.5
        and np.median(rest) > 10 * np.median(other)
        and np.median(rest) > 0.1 * np.median(np.abs(as_total))
    ):
        text = (
            "energies do not grow with the number of atoms: as sums over elements they are off by "
            f"{np.median(rest):.3g} eV per atom, as means over atoms by {np.median(other):.3g}. They are "
            "energies per atom; multiply them by the number of atoms"
        )
        means = chosen[other < max(10 * float(np.median(other)), 1e-3)]
        if len(means) < len(chosen):
            text += f" (so {len(means)} of {len(chosen)}; the others fit neither, or are total energies)"
        told = [finding("per-atom-energies", "error", text, frames.origins, means.tolist())]
        return told, frames.corrected("energy", means, frames.counts[means])
    usual = max(5 * float(np.median(rest)), 0.05 * float(np.median(np.abs(energy / counts))), 1e-3)
    multiplied = np.abs(energy * counts - table @ as_total) / counts
    wrong = chosen[
        (rest > 2 * usual) & (multiplied < usual) & (rest > 0.5 * np.abs(table @ as_total) / counts)
    ]
    return _mixed(frames, wrong, len(chosen))


def _mixed(frames: Frames, wrong: np.ndarray, total: int) -> tuple[list[Finding], Frames]:
    if not len(wrong):
        return [], frames
    text = (
        f"{len(wrong)} of {total} energies are energies per atom, and the others total energies: multiplied "
        "by the number of atoms they agree with the others"
    )
    told = [finding("per-atom-energies", "error", text, frames.origins, wrong.tolist())]
    return told, frames.corrected("energy", wrong, frames.counts[wrong])


def _mixed_in_one_size(frames: Frames, chosen: np.ndarray) -> tuple[list[Finding], Frames]:
    """Energies per atom among total energies of structures that all have the same number of atoms."""
    wrong: list[int] = []
    for members in frames.same:
        known = np.intersect1d(members, chosen)
        n = int(frames.counts[members[0]])
        if len(known) < 3 or n < 3:
            continue
        energy = frames.energy[known]
        largest = float(np.median(energy[np.abs(energy) >= np.quantile(np.abs(energy), 0.7)]))
        usual = max(0.01 * abs(largest), 1e-3)
        near = np.abs(energy - largest) < 5 * usual
        mean = np.abs(energy * n - largest) < 5 * usual
        if near.sum() >= 2 and (near | mean).mean() > 0.95 and abs(largest) > _BINDING * n:
            wrong += known[mean & ~near].tolist()
    return _mixed(frames, np.array(wrong, dtype=int), len(chosen))


def unit_of_some_energies(frames: Frames) -> tuple[list[Told], Frames]:
    """Energies in another unit, among others of which the sums over elements are known.

    The majority decides the energies of the elements. Energies that are far from their sum, and meet it when
    they are multiplied by the factor of a unit, are of this unit. Nearly all that are far must be so, since
    energies of dissociated structures may have any value.

    Parameters
    ----------
    frames : Frames
        The structures.

    Returns
    -------
    (list of (Case, array of int), Frames)
        What is wrong with which structures; and the structures with these energies in eV.
    """
    chosen = _several(frames)
    if len(chosen) < 10:
        return [], frames
    counts, energy, table = frames.counts[chosen], frames.energy[chosen], frames.compositions(chosen)
    level = table @ _fit(table, energy, counts) / counts
    rest = np.abs(energy / counts - level)
    usual = max(5 * float(np.median(rest)), 0.01 * float(np.median(np.abs(level))), 1e-3)
    far = rest > 5 * usual
    cases = [case for case in cases_of_energies(frames) if case.name == "energy-unit"]
    off = [np.abs(energy * case.factor / counts - level) for case in cases]
    for case, own in zip(cases, off):
        meets = (own <= np.min(off, axis=0)) & (own < np.maximum(usual, 0.05 * np.abs(level)))
        those = chosen[far & meets]
        if len(those) >= 3 and len(those) >= 0.8 * far.sum():
            return [(case, those)], frames.corrected("energy", those, case.factor)
    return [], frames


def energy_groups(frames: Frames) -> list[Finding]:
    """Groups of structures whose energies differ from the others by more than any binding energy.

    Energies of elements are fitted with the smallest sum of absolute deviations, so that the majority
    decides. Structures whose remainders are more than 10 eV per atom from the median, with a gap between them
    and all others, have another zero: other reference energies, another code or another unit. The message
    names the file, the part or the column, such as ``config_type``, that they have in common.

    Parameters
    ----------
    frames : Frames
        The structures.
    """
    chosen = _several(frames)
    if len(chosen) < 10:
        return []
    counts, energy = frames.counts[chosen], frames.energy[chosen]
    table = frames.compositions(chosen)
    rest = (energy - table @ _fit(table, energy, counts)) / counts
    level = float(np.median(rest))
    far = np.abs(rest - level) > _BINDING
    # Atoms that are pressed together may have any energy.
    far[far] = frames.tightest_of(chosen[far].tolist()) > _PRESSED
    off = np.abs(rest - level)
    if not far.any() or far.mean() > 0.5 or off[far].min() < 1.5 * off[~far].max():
        return []  # energies that are spread over the whole range are of another unit
    numbers = chosen[far]
    name = next((n for n, values in _columns(frames).items() if _describes(values[chosen], far)), "")
    which = f" ({name} {_columns(frames)[name][numbers[0]]})" if name else ""
    change = _explained(table, rest, counts, far, frames.elements, level)
    text = (
        f"energies of {len(numbers)} of {len(chosen)} structures{which} are "
        f"{np.median(rest[far]) - level:.4g} eV per atom from the sums over elements that fit all others; "
        f"binding energies are 10 at most{change}. Another reference energy, another code, or another unit: "
        "bring all energies to one zero"
    )
    return [finding("energy-groups", "error", text, frames.origins, numbers.tolist())]


def _explained(
    table: np.ndarray,
    rest: np.ndarray,
    counts: np.ndarray,
    far: np.ndarray,
    elements: tuple[int, ...],
    level: float,
) -> str:
    """The one element whose reference energy explains the difference, in words."""
    off = (rest[far] - level) * counts[far]
    for column, element in enumerate(elements):
        n = table[far, column]
        if (n > 0).all() and len(np.unique(table[far] / counts[far, None], axis=0)) > 1:
            shift = float(np.median(off / n))
            if np.abs(off - shift * n).max() < 0.02 * np.abs(off).max():
                return f"; {shift:.5g} eV for each {SYMBOLS[element]} explains it"
    return ""


def _columns(frames: Frames) -> Mapping[str, np.ndarray]:
    """Groups of all structures by their name: files, parts, and columns with few values."""
    files = np.array([str(o).rpartition(", ")[0] for o in frames.origins])
    found = {"file": files, "part": np.array(list(frames.parts))[frames.part]}
    shared = set.intersection(*(set(data.info) for data in frames.parts.values()))
    for name in sorted(shared):
        values = np.array([str(v) for data in frames.parts.values() for v in data.info[name]])
        if 1 < len(set(values)) <= _GROUPS:
            found[name] = values
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _describes(values: np.ndarray, far: np.ndarray) -> bool:
    """Whether the structures that are far are one group, and no other is in it."""
    own = set(values[far])
    return len(own) == 1 and not (own & set(values[~far]))
