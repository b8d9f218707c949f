"""Structures among others whose labels have another unit or sign, from energy differences and work.

Each structure k of two kinds has a label x_k: 0 for usual ones, 1 for those whose energies, forces or stress
are multiplied by a factor c. For a factor, labels are found that make the energy differences of all pairs of
similar structures meet the work. A structure is labelled 1 if the median error of its pairs is less than half
of that with the label 0, first with the better label of each partner, and then with that which the partner
has, until no label changes (iterated conditional modes, Besag 1986, doi:10.1111/j.2517-6161.1986.tb01412.x).
"""

from collections.abc import Callable, Collection

import numpy as np

from molequi.lint.fits import absolute_fit, medians_of
from molequi.lint.foreign import Case, Told, cases_of_energies, cases_of_forces, cases_of_stress
from molequi.lint.frames import Frames
from molequi.lint.pairs import Pairs
from molequi.lint.springs import stiff_frames
from molequi.lint.work import usable

_LEAST_PAIRS = 30
_LEAST = 3  # structures, and pairs of each
_BETTER = 0.5  # error of a structure with and without a factor
_LEAST_TOUCHED = 15  # pairs
_BETTER_CUT = 0.35
_BETTER_ALL = 0.25, 0.65  # of the error of all pairs with such structures; of the stress
_LEFT, _SLOPES = 0.6, (0.7, 1.4)  # of the energy differences, with the factor; over the work
_THAN_NONE, _LARGE, _ALMOST = 0.7, 8.0, 0.7
_FOREIGN = 3.0  # times the usual error
_STEPS, _ROUNDS = 10, 5

Terms = Callable[[np.ndarray | int, np.ndarray | int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def some_foreign_labels(
    frames: Frames, pairs: Pairs, allow: Collection[str] = ()
) -> tuple[list[Told], Frames, Pairs]:
    """Structures with energies, forces or a stress of another unit or sign than those of the majority.

    Parameters
    ----------
    frames : Frames
        The structures.
    pairs : Pairs
        Pairs of similar structures.
    allow : collection of str
        Heuristics that are overruled.

    Returns
    -------
    (list of (Case, array of int), Frames, Pairs)
        What is wrong with which structures; and both with the labels as they should be.
    """
    volumes = np.zeros(len(frames))
    for ends in (pairs.first, pairs.second):
        volumes[ends] = pairs.volume
    cases = [*cases_of_energies(frames), *cases_of_forces(), *cases_of_stress(volumes)]
    cases = [case for case in cases if case.name not in allow]
    told: list[Told] = []
    for _ in range(_ROUNDS):
        case, numbers = _best(frames, pairs, cases)
        if case is None:
            case, numbers = _by_springs(frames, cases)
        if case is None:
            break
        if case.quantity == "forces":
            numbers = np.union1d(numbers, _by_springs(frames, [case])[1])
        numbers = numbers[frames.known(case.quantity)[numbers]]
        told.append((case, numbers))
        values = np.broadcast_to(case.factor, len(frames))
        frames = frames.corrected(case.quantity, numbers, values[numbers])
        pairs = _corrected(pairs, frames, case.quantity, numbers, values)
    return told, frames, pairs


def _by_springs(frames: Frames, cases: list[Case]) -> tuple[Case | None, np.ndarray]:
    """The case that bonds to hydrogen show, and the structures that it is about; None if there is none."""
    factors = {one.meaning: float(one.factor) for one in cases if one.quantity == "forces"}
    meaning, numbers = stiff_frames(frames, factors)
    return next((one for one in cases if one.meaning == meaning), None), numbers


def _corrected(pairs: Pairs, frames: Frames, quantity: str, numbers: np.ndarray, values: np.ndarray) -> Pairs:
    """Pairs with the labels of some structures multiplied by a factor."""
    factors = np.ones(len(frames))
    factors[numbers] = values[numbers]
    both = np.stack([factors[pairs.first], factors[pairs.second]], axis=1)
    changed = dict(vars(pairs))
    changed["difference"] = frames.energy[pairs.second] - frames.energy[pairs.first]
    if quantity == "forces":
        changed["works"] = pairs.works * both
    if quantity == "stress":
        changed["pulls"] = pairs.pulls * both[:, :, None, None]
    return Pairs(**changed)


def _best(frames: Frames, pairs: Pairs, cases: list[Case]) -> tuple[Case | None, np.ndarray]:
    """The case that explains most, and the structures that it is about; None if none does."""
    every = usable(pairs)
    found: list[tuple[float, float, Case, np.ndarray]] = []
    for case in cases:
        chosen = every.where(every.strained) if case.quantity == "stress" else every
        if len(chosen) < _LEAST_PAIRS:
            continue
        terms = _terms_of(frames, chosen, case)
        labels = _labelled(chosen, len(frames), terms)
        small = case.quantity == "stress"  # whose work is small, so that single structures are less sure
        gain, left = _gain(chosen, terms, labels, _BETTER_ALL[1] if small else _BETTER_ALL[0])
        if small:
            cut = _cut(chosen, len(frames), terms)
            other, its = _gain(chosen, terms, cut, _BETTER_CUT)
            if other > _ALMOST * gain:
                gain, left, labels = other, its, cut
        if gain > 0:
            found.append((gain, left, case, np.flatnonzero(labels)))
    if not found:
        return None, np.zeros(0, dtype=int)
    most = max(gain for gain, *_ in found)
    _, _, case, numbers = min((one for one in found if one[0] > 0.9 * most), key=lambda one: one[1])
    return case, numbers


def _gain(pairs: Pairs, terms: Terms, labels: np.ndarray, least: float) -> tuple[float, float]:
    """By how much labels reduce the errors of pairs, and the mean error that is left (eV).

    No gain if the reduction is not clear, or if what is left is no work of forces and stress.
    """
    touched = labels[pairs.first] | labels[pairs.second]
    if labels.sum() < _LEAST or touched.sum() < _LEAST_TOUCHED:
        return 0.0, 0.0
    both = np.stack([labels[pairs.first], labels[pairs.second]], axis=1)
    difference, work, parts = (t[touched] for t in terms(*both.T))
    own = (parts * both[touched]).sum(1)
    usual, before, _ = (t[touched] for t in terms(0, 0))
    left, gains = np.abs(difference - work), np.abs(usual - before) - np.abs(difference - work)
    # What these labels have to explain, and what they explain.
    slope = float(absolute_fit(own[:, None], difference - work + own)[0]) if own.any() else 1.0
    whole = float(absolute_fit(work[:, None], difference)[0])
    random = np.random.default_rng(0)
    again = [gains[random.integers(len(gains), size=len(gains))].sum() for _ in range(100)]
    if (
        gains.sum() < least * np.abs(usual - before).sum()
        or gains.sum() < 4 * np.std(again)
        or left.sum() > _LEFT * np.abs(difference).sum()
        or not (_SLOPES[0] < whole < _SLOPES[1] and _SLOPES[0] < slope < _SLOPES[1])
    ):
        return 0.0, 0.0
    return float(gains.sum()), float(left.mean())


def _cut(pairs: Pairs, size: int, terms: Terms) -> np.ndarray:
    """The beginning or the end of the data, as long as it fits best with the label 1; at most half."""
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    flip = pairs.first > pairs.second
    none, both = (np.abs(np.subtract(*terms(a, a)[:2])) for a in (0, 1))
    late = np.where(flip, *(np.abs(np.subtract(*terms(*ab)[:2])) for ab in ((1, 0), (0, 1))))
    early = np.where(flip, *(np.abs(np.subtract(*terms(*ab)[:2])) for ab in ((0, 1), (1, 0))))

    def over(where: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Of each cut t, the sum of the values of pairs with where < t."""
        return np.concatenate([[0.0], np.cumsum(np.bincount(where, weights=value, minlength=size))])

    # Pairs with high < t lie before the cut, those with low >= t behind it.
    end = over(high, none) + (over(low, late) - over(high, late)) + (both.sum() - over(low, both))
    start = over(high, both) + (over(low, early) - over(high, early)) + (none.sum() - over(low, none))
    end[: size // 2], start[size - size // 2 + 1 :] = np.inf, np.inf
    t, late_one = (end.argmin(), True) if end.min() <= start.min() else (start.argmin(), False)
    return (np.arange(size) >= t) if late_one else (np.arange(size) < t)


def _terms_of(frames: Frames, pairs: Pairs, case: Case) -> Terms:
    """Energy differences and works of all pairs (eV) by the labels of their structures, and the parts of the
    works that the case is about, shape (P, 2). With the label 2, such a part is left out.
    """
    values = np.broadcast_to(case.factor, len(frames)).astype(float)
    energies = np.stack([frames.energy[pairs.first], frames.energy[pairs.second]], axis=1)
    strains = np.nan_to_num((pairs.pulls * pairs.strain[:, None]).sum((2, 3)))
    factors = np.stack([values[pairs.first], values[pairs.second]], axis=1)

    def terms(first: np.ndarray | int, second: np.ndarray | int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = np.stack(np.broadcast_arrays(first, second, pairs.first)[:2], axis=1).astype(int)
        scale = np.choose(labels, [np.ones_like(factors), factors, np.zeros_like(factors)])
        e = energies * np.where(labels == 1, factors, 1.0) if case.quantity == "energy" else energies
        work = pairs.works * scale if case.quantity == "forces" else pairs.works
        strain = strains * scale if case.quantity == "stress" else strains
        changed = {"energy": np.zeros_like(work), "forces": work, "stress": strain}[case.quantity]
        return e[:, 1] - e[:, 0], (work + strain).sum(1), changed

    return terms


def _labelled(pairs: Pairs, size: int, terms: Terms) -> np.ndarray:
    """Which structures have the label 1."""
    ends = np.concatenate([pairs.first, pairs.second])
    several = np.bincount(ends, minlength=size) >= _LEAST
    known = {(a, b): np.abs(np.subtract(*terms(a, b)[:2])) for a in range(3) for b in range(3)}

    def medians(own: int, labels: np.ndarray | None) -> np.ndarray:
        if labels is None:
            first = np.minimum(known[own, 0], known[own, 1])
            second = np.minimum(known[0, own], known[1, own])
        else:
            first = np.where(labels[pairs.second], known[own, 1], known[own, 0])
            second = np.where(labels[pairs.first], known[1, own], known[0, own])
        return medians_of(np.concatenate([first, second]), ends, size)

    labels: np.ndarray | None = None
    for _ in range(_STEPS):
        zero, one = medians(0, labels), medians(1, labels)
        usual = float(np.median(np.minimum(zero, one)[several])) if several.any() else np.inf
        new = several & (one < _BETTER * zero) & (zero > _FOREIGN * usual)
        if labels is not None and np.array_equal(new, labels):
            break
        labels = new
    assert labels is not None
    # A small factor must be better than none of the label at all, unless the label is far larger than others.
    none, one = medians(2, labels), medians(1, labels)
    size_of = medians_of(np.abs(terms(0, 0)[2]).T.ravel(), ends, size)
    large = size_of > _LARGE * np.median(size_of[several & ~labels]) if (several & ~labels).any() else labels
    return labels & ((one < _THAN_NONE * none) | large | (size_of == 0.0))
