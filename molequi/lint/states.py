"""Structures, and groups of them, whose energies differ from similar ones by something else than work."""

import numpy as np

from molequi.lint.frames import Frames
from molequi.lint.pairs import Pairs
from molequi.lint.report import Finding, finding
from molequi.lint.work import rest_of, usable

_LEAST_PAIRS = 60
_OUTLIER, _LEAST_ERROR = 10.0, 0.1  # times the typical error of such pairs; eV


def _compared(frames: Frames, pairs: Pairs) -> tuple[Pairs, np.ndarray, np.ndarray] | None:
    """Usable pairs, the error of each (eV), and what is usual for pairs that are so far apart; None if
    nothing fits, so that there is another finding or structures are too different.
    """
    chosen = usable(pairs)
    invented = (frames.energy[chosen.first] == 0.0) | (frames.energy[chosen.second] == 0.0)  # found as such
    chosen = chosen.where(~invented)
    if len(chosen) < _LEAST_PAIRS:
        return None
    error = rest_of(chosen)
    distance = chosen.moved + 2 * np.abs(chosen.strain).max((1, 2))
    usual = np.empty(len(chosen))
    for rows in np.array_split(np.argsort(distance), max(1, min(10, len(chosen) // 30))):
        usual[rows] = max(np.median(error[rows]), 1e-3)
    if np.median(error) > 0.7 * np.median(np.abs(chosen.difference)):
        return None
    return chosen, error, usual


def inconsistent_frames(frames: Frames, pairs: Pairs) -> list[Finding]:
    """Single structures whose energy differs from all similar ones by something else than work.

    Each structure has several similar ones. If its error with all of them but one is ten times what pairs of
    this distance usually have, and 0.1 eV or more, its energy or its forces are foreign. One may fit by
    chance: if two structures exchanged their forces, the mean of both is right.

    Parameters
    ----------
    frames : Frames
        The structures.
    pairs : Pairs
        Pairs of similar structures.
    """
    compared = _compared(frames, pairs)
    if compared is None:
        return []
    chosen, error, usual = compared
    ratio, partners = _second_smallest(error / usual, chosen, len(frames))
    in_eV, _ = _second_smallest(error, chosen, len(frames))
    wrong = np.flatnonzero((partners >= 3) & (ratio > _OUTLIER) & (in_eV > _LEAST_ERROR))
    if not len(wrong):
        return []
    wrong = wrong[np.argsort(-in_eV[wrong])]
    text = (
        f"the energy differs from those of similar structures by up to {in_eV[wrong[0]]:.2g} eV beyond the "
        f"work of the forces ({np.median(error):.2g} eV is usual): energy or forces of another structure, a "
        "calculation that did not converge, or another electronic state; compute them again or leave them "
        "out"
    )
    return [finding("inconsistent-frames", "error", text, frames.origins, wrong.tolist())]


def _second_smallest(values: np.ndarray, pairs: Pairs, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the values of all pairs of a structure the second smallest one, and how many there are."""
    ends, both = np.concatenate([pairs.first, pairs.second]), np.concatenate([values, values])
    order = np.lexsort((both, ends))
    ends, both = ends[order], both[order]
    count = np.bincount(ends, minlength=size)
    start = np.cumsum(count) - count
    found = np.full(size, np.inf)
    several = count >= 2
    found[several] = both[start[several] + 1]
    return found, count


def shifted_groups(frames: Frames, pairs: Pairs) -> list[Finding]:
    """Groups of structures whose energies differ from similar ones of the same atoms by one constant.

    Structures are joined where the work explains their energy difference. If that leaves a group by itself,
    although its members are similar to others, and the difference beyond work is the same for them (to a
    fifth), its energies have another zero.

    Parameters
    ----------
    frames : Frames
        The structures.
    pairs : Pairs
        Pairs of similar structures.
    """
    compared = _compared(frames, pairs)
    if compared is None:
        return []
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    chosen, error, usual = compared
    fits = error < np.maximum(_OUTLIER * usual, _LEAST_ERROR)
    shape = (len(frames), len(frames))
    joined = coo_matrix((np.ones(fits.sum()), (chosen.first[fits], chosen.second[fits])), shape=shape)
    group = connected_components(joined, directed=False)[1]
    sizes = np.bincount(group)
    signed = chosen.difference - chosen.work - np.nan_to_num(chosen.by_stress).sum((1, 2))
    found = []
    for one in np.flatnonzero(sizes >= 5):
        members = np.flatnonzero(group == one)
        out = (group[chosen.first] == one) != (group[chosen.second] == one)
        # From the larger group to this one.
        others = np.where(group[chosen.first] == one, group[chosen.second], group[chosen.first])
        out &= sizes[others] > sizes[one]
        if out.sum() < 5:
            continue
        step = np.where(group[chosen.second[out]] == one, signed[out], -signed[out])
        offset = float(np.median(step))
        apart = np.abs(step - offset)
        if np.median(apart) < 0.2 * abs(offset) and (step * offset > 0).mean() > 0.95:
            text = (
                f"energies of {len(members)} of {len(frames)} structures are {offset:.4g} eV from those of "
                "similar structures of the same atoms, beyond the work of the forces: another zero of "
                "energy, another code, or another electronic state; bring all energies to one zero"
            )
            found.append(finding("energy-offsets", "error", text, frames.origins, members.tolist()))
    return found
