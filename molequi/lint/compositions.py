"""Energies against compositions: per atom or total, groups with another zero, elements without a
reference.
"""

from collections.abc import Mapping

import numpy as np

from molequi.data.statistics import undetermined
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
    table = frames.compositions(range(len(frames)))
    # Single atoms give the energies of their elements themselves.
    single = {int(g.z[0]) for g, n in zip(frames.graphs, frames.counts) if n == 1}
    blind, once = undetermined(table, frames.elements)
    blind = [s for s in blind if SYMBOLS.index(s) not in single]
    found = []
    if len(blind) > 1 or (blind and len(frames.elements) > 1):
        kinds = len(np.unique(table, axis=0))
        text = (
            f"{', '.join(blind)}: their atomic reference energies cannot be told apart by the {kinds} "
            f"composition{'s' * (kinds != 1)} of these data. A model is exact for these compositions alone; "
            "for others give normalization={'reference_energies': …}"
        )
        found.append(finding("reference-energies", "info", text))
    once = [s for s in once if SYMBOLS.index(s) not in single and len(frames) > 1]
    if once:
        text = f"{', '.join(once)} occur in one structure only, which alone decides their reference energy"
        rare = set(once)
        numbers = [k for k, g in enumerate(frames.graphs) if {SYMBOLS[z] for z in g.z.tolist()} & rare]
        found.append(finding("reference-energies", "warning", text, frames.origins, numbers))
    return found


def _several(frames: Frames) -> np.ndarray:
    """Structures of several atoms with an energy that is not zero."""
    known = np.isfinite(frames.energy) & (frames.counts > 1) & (frames.energy != 0.0)
    return np.flatnonzero(known)


def _fit(table: np.ndarray, energy: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Energies of elements with the smallest sum of absolute deviations per atom."""
    x, y = table / counts[:, None], energy / counts
    weight = np.ones(len(y))
    solution = np.zeros(x.shape[1])
    small = 1e-6 * np.abs(y).mean() + 1e-12
    for _ in range(30):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
        weight = 1 / np.maximum(np.abs(y - x @ solution), small)
    return solution


def per_atom_energies(frames: Frames) -> list[Finding]:
    """Energies per atom, in all structures or in some.

    A total energy is a sum over atoms to within the binding energy, 10 eV per atom at most. An energy that
    misses this sum, and meets it when it is multiplied by the number of atoms, is an energy per atom.

    Parameters
    ----------
    frames : Frames
        The structures.
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
        return [finding("per-atom-energies", "error", text, frames.origins, chosen.tolist())]
    usual = max(5 * float(np.median(rest)), 0.05 * float(np.median(np.abs(energy / counts))), 1e-3)
    multiplied = np.abs(energy * counts - table @ as_total) / counts
    wrong = chosen[
        (rest > 2 * usual) & (multiplied < usual) & (rest > 0.5 * np.abs(table @ as_total) / counts)
    ]
    return _mixed(frames, wrong, len(chosen))


def _mixed(frames: Frames, wrong: np.ndarray, total: int) -> list[Finding]:
    if not len(wrong):
        return []
    text = (
        f"{len(wrong)} of {total} energies are energies per atom, and the others total energies: multiplied "
        "by the number of atoms they agree with the others"
    )
    return [finding("per-atom-energies", "error", text, frames.origins, wrong.tolist())]


def _mixed_in_one_size(frames: Frames, chosen: np.ndarray) -> list[Finding]:
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
    far[far] = [frames.near(k)[1].min() > _PRESSED for k in chosen[far].tolist()]
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
