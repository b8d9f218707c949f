"""Which of several networks is best, and which cannot be told from it.

The error of a network is its mean over the seeds, E = mean_s Σ_i e_si / Σ_i n_i, where e_si is the sum of the
absolute errors of structure i after the training with seed s, and n_i how many there are. Errors scatter by
factors, so the difference is that of logarithms, ln E_b - ln E_a. Its variance has two parts::

    seeds        r_a² / S_a + r_b² / S_b                     r: relative standard deviation over the S seeds
    structures   G / (G - 1) Σ_i (u_bi - u_ai)² / (Σ_i n_i)²   u_i = (e_i - E n_i) / E, for the G structures,
                                                           with e_i the mean of e_si over the seeds

Two networks are apart if their difference is above t standard deviations, by one of two tests of 2.5 % each:

1. r is the largest of all networks, since two seeds may be alike by chance. t is the quantile of Student's
   distribution; the degrees of freedom are Σ (S - 1), times max(2 / networks, 1/2) because a largest one is
   not a mean.
2. r is the own one of each, so that a network that scatters widely does not hide the differences of others.
   The degrees of freedom are those of Welch and Satterthwaite (B. L. Welch, Biometrika 34, 28, 1947).

The quantiles are for all comparisons with the best together (Bonferroni). In simulations 2 to 9 equally good
networks, whose seeds scatter alike or ten times as much as those of others, are told apart by mistake in at
most about 5 % of the cases (see the tests). Networks that are not apart from the best are tied with it. Among
those the one with the shortest step is chosen; steps that differ by less than a tenth count as equal, and
then the error decides. Structures count as independent, which frames of one trajectory are not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from molequi.errors import DataError

Kind = Literal["strict", "approximate", "unconstrained"]
OTHER = "other"  # name of the part of the data with other conditions
PROBABILITY = 0.95
ASSUMED = 0.1  # relative standard deviation over the seeds, where there is one seed alone
_EQUAL_COST = 1.1


@dataclass(frozen=True)
class Scores:
    """The errors of one network on the same structures after each training.

    Parameters
    ----------
    name : str
        The network.
    sums : array, shape (S, G, 2)
        For each seed and structure the sum of the absolute errors, and how many there are.
    cost : float
        Seconds of a step.
    """

    name: str
    sums: np.ndarray
    cost: float

    @property
    def errors(self) -> np.ndarray:
        """Mean absolute error for each seed, shape (S,)."""
        found: np.ndarray = self.sums[:, :, 0].sum(1) / self.sums[:, :, 1].sum(1)
        return found

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(self.errors.mean())

    @property
    def level(self) -> float:
        """The mean; if it is zero, that of half a wrong answer, so that it has a logarithm."""
        return self.mean or 0.5 / float(self.sums[0, :, 1].sum())

    @property
    def residuals(self) -> np.ndarray:
        """Relative residual u of each structure, shape (G,): its errors minus E n, over E."""
        found: np.ndarray = self.sums.mean(0) @ np.array([1.0, -self.mean]) / self.level
        return found

    @property
    def spread(self) -> float:
        """Their relative standard deviation; 0 for one seed, and for errors of zero."""
        return float(self.errors.std(ddof=1)) / self.mean if len(self.sums) > 1 and self.mean else 0.0


@dataclass(frozen=True)
class Ranking:
    """Networks by their errors.

    Parameters
    ----------
    order : sequence of str
        All networks, that with the smallest error first.
    tied : sequence of str
        Those that cannot be told from the first, which is one of them.
    chosen : str
        The cheapest of those.
    errors : mapping of str to float
        Mean error of each network.
    spread : float
        The largest relative standard deviation over the seeds.
    seeds : int
        Smallest number of seeds of a network.
    apart : set of (str, str)
        The pairs that are apart, that with the smaller error first.
    """

    order: Sequence[str]
    tied: Sequence[str]
    chosen: str
    errors: dict[str, float]
    spread: float
    seeds: int
    apart: frozenset[tuple[str, str]] = frozenset()

    @property
    def worse(self) -> list[str]:
        """The networks that are worse than the first."""
        return [name for name in self.order if name not in self.tied]


def rank(scores: Sequence[Scores]) -> Ranking:
    """Order networks, and say which are tied with the best and which of these is chosen.

    Parameters
    ----------
    scores : sequence of Scores
        Their errors on the same structures.

    Raises
    ------
    DataError
        If an error is not finite.

    Examples
    --------
    >>> errors = np.ones((2, 50, 2))
    >>> half, one = Scores("a", errors * [0.5, 1.0], cost=1.0), Scores("b", errors, cost=1.0)
    >>> rank([one, half]).chosen, rank([one, half]).tied
    ('a', ['a'])
    """
    for one in scores:
        if not np.isfinite(one.sums).all() or not math.isfinite(one.mean):
            raise DataError(f"errors of {one.name} are not finite, and cannot be ranked; leave it out")
    ordered = sorted(scores, key=lambda one: one.mean)
    best = ordered[0]
    largest, degrees = largest_spread(ordered)
    pairs = combinations(ordered, 2)
    apart = frozenset((a.name, b.name) for a, b in pairs if _apart(a, b, largest, degrees, len(ordered) - 1))
    tied = [one for one in ordered if (best.name, one.name) not in apart]
    cheap = [one for one in tied if one.cost <= _EQUAL_COST * min(other.cost for other in tied)]
    return Ranking(
        [one.name for one in ordered],
        [one.name for one in tied],
        min(cheap, key=lambda one: one.mean).name,
        {one.name: one.mean for one in ordered},
        largest,
        min(len(one.sums) for one in ordered),
        apart,
    )


def largest_spread(scores: Sequence[Scores]) -> tuple[float, float]:
    """The largest relative standard deviation over the seeds, and its degrees of freedom.

    Parameters
    ----------
    scores : sequence of Scores
        The errors.

    Returns
    -------
    float
        The standard deviation; `ASSUMED` if no network has two seeds.
    float
        Degrees of freedom; infinite if it is assumed.
    """
    several = [one for one in scores if len(one.sums) > 1]
    if not several:
        return ASSUMED, math.inf
    degrees = sum(len(one.sums) - 1 for one in several)
    return max(one.spread for one in several), degrees * min(1.0, max(2 / len(several), 0.5))


def _apart(first: Scores, second: Scores, largest: float, degrees: float, comparisons: int) -> bool:
    """Whether the error of the second is certainly above that of the first."""
    difference = math.log(second.level / first.level)
    structures = structure_variance(first, second)
    counts = [len(one.sums) for one in (first, second)]
    seeds = largest**2 * sum(1 / count for count in counts)
    wrong = 1 - PROBABILITY
    if math.isinf(degrees):  # an assumed spread allows one test alone
        return difference > _quantile(degrees, wrong, comparisons) * math.sqrt(seeds + structures)
    if difference > _quantile(degrees, wrong / 2, comparisons) * math.sqrt(seeds + structures):
        return True
    if min(counts) < 2:
        return False
    own = [one.spread**2 / count for one, count in zip((first, second), counts)]
    total = sum(own) + structures
    below = sum(part**2 / (count - 1) for part, count in zip(own, counts))
    welch = total**2 / below if min(own) > 0 else min(counts) - 1  # seeds with equal errors say nothing
    return difference > _quantile(welch, wrong / 2, comparisons) * math.sqrt(total)


def structure_variance(first: Scores, second: Scores) -> float:
    """Variance of the difference of the logarithms of two errors that comes from the choice of structures.

    Parameters
    ----------
    first, second : Scores
        The networks.
    """
    difference = second.residuals - first.residuals  # (G,)
    structures, total = len(difference), float(first.sums[0, :, 1].sum())
    if structures < 2:
        return 0.0
    return structures / (structures - 1) * float(np.square(difference).sum()) / total**2


def _quantile(degrees: float, wrong: float, comparisons: int) -> float:
    """The quantile of Student's, or with infinite degrees of freedom of the normal distribution."""
    from scipy.special import ndtri, stdtrit

    upper = 1 - wrong / (2 * max(comparisons, 1))
    return float(ndtri(upper) if math.isinf(degrees) else stdtrit(degrees, upper))
