"""Which of several networks is best, and which cannot be told from it.

The error of a network is its mean over the seeds, E = mean_s Σ_i e_si / Σ_i n_i, where e_si is the sum of the
absolute errors of structure i after the training with seed s, and n_i how many there are. Errors scatter by
factors, so the difference is that of logarithms, ln E_b - ln E_a. Its variance has two parts::

    seeds        r_a² / S_a + r_b² / S_b                     r: relative standard deviation over the S seeds
    structures   G / (G - 1) Σ_i (u_bi - u_ai)² / (Σ_i n_i)²   u_i = (e_i - E n_i) / E, for the G structures,
                                                           with e_i the mean of e_si over the seeds

r of a network is its own, or that of all networks if this is larger: two seeds may be alike by chance. That
of all is the median over the networks of r² / m, where m is the median of χ²/k for k = S - 1, so that one
network that scatters widely does not hide the differences of the others.

Two networks are tied if their difference is below t standard deviations, where t is the quantile of Student's
distribution for 95 % in all comparisons with the best together (Bonferroni). Its degrees of freedom are two
thirds of Σ (S - 1), because a median uses less of the data than a mean; so 2 to 9 equally good networks are
told apart by mistake in about 5 % of the cases (simulated in the tests). Among those that are tied with the
best, the one with the shortest step is chosen; steps that differ by less than a tenth count as equal, and
then the error decides. Structures count as independent, which frames of one trajectory are not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

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
        Relative standard deviation over the seeds that networks have in common.
    seeds : int
        Smallest number of seeds of a network.
    """

    order: Sequence[str]
    tied: Sequence[str]
    chosen: str
    errors: dict[str, float]
    spread: float
    seeds: int

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

    Examples
    --------
    >>> errors = np.ones((2, 50, 2))
    >>> half, one = Scores("a", errors * [0.5, 1.0], cost=1.0), Scores("b", errors, cost=1.0)
    >>> rank([one, half]).chosen, rank([one, half]).tied
    ('a', ['a'])
    """
    ordered = sorted(scores, key=lambda one: one.mean)
    best = ordered[0]
    common, degrees = common_spread(ordered)
    limit = _quantile(degrees, len(ordered) - 1)
    tied = [best]
    for one in ordered[1:]:
        if math.log(one.level / best.level) <= limit * math.sqrt(variance(best, one, common)):
            tied.append(one)
    cheap = [one for one in tied if one.cost <= _EQUAL_COST * min(other.cost for other in tied)]
    return Ranking(
        [one.name for one in ordered],
        [one.name for one in tied],
        min(cheap, key=lambda one: one.mean).name,
        {one.name: one.mean for one in ordered},
        common,
        min(len(one.sums) for one in ordered),
    )


def common_spread(scores: Sequence[Scores]) -> tuple[float, int]:
    """Relative standard deviation over the seeds that networks have in common, and its degrees of freedom.

    Parameters
    ----------
    scores : sequence of Scores
        The errors.

    Returns
    -------
    float
        The standard deviation; `ASSUMED` if no network has two seeds.
    int
        Degrees of freedom; 0 if it is assumed.
    """
    several = [one for one in scores if len(one.sums) > 1]
    if not several:
        return ASSUMED, 0
    squares = [one.spread**2 / _median_of_chi(len(one.sums) - 1) for one in several]
    degrees = sum(len(one.sums) - 1 for one in several)
    return math.sqrt(float(np.median(squares))), math.ceil(2 * degrees / 3)


def variance(first: Scores, second: Scores, common: float) -> float:
    """Variance of the difference of the logarithms of the errors of two networks.

    Parameters
    ----------
    first, second : Scores
        The networks.
    common : float
        Relative standard deviation over the seeds that networks have in common.
    """
    seeds = sum(max(common, one.spread) ** 2 / len(one.sums) for one in (first, second))
    difference = second.residuals - first.residuals  # (G,)
    structures, total = len(difference), float(first.sums[0, :, 1].sum())
    if structures < 2:
        return seeds
    return seeds + structures / (structures - 1) * float(np.square(difference).sum()) / total**2


def _median_of_chi(degrees: int) -> float:
    """The median of χ²/k with k degrees of freedom."""
    from scipy.special import gammaincinv

    return float(gammaincinv(degrees / 2, 0.5)) * 2 / degrees


def _quantile(degrees: int, comparisons: int) -> float:
    """The quantile of Student's or, with an assumed spread, of the normal distribution."""
    from scipy.special import ndtri, stdtrit

    upper = 1 - (1 - PROBABILITY) / (2 * max(comparisons, 1))
    return float(stdtrit(degrees, upper) if degrees else ndtri(upper))
