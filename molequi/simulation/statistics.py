"""Averages of correlated series with their statistical errors, and where a series is in equilibrium."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from molequi.errors import DataError

_FEWEST_BLOCKS = 16  # fewer blocks give no reliable variance


@dataclass(frozen=True)
class Average:
    """Mean of a series, with its standard error.

    Parameters
    ----------
    mean : float
        The mean.
    error : float
        Its standard error, which counts the correlation of the values; NaN if the series is too short.
    std : float
        Standard deviation of the values.
    count : int
        Number of values.
    """

    mean: float
    error: float
    std: float
    count: int

    def __str__(self) -> str:
        if not math.isfinite(self.error):
            return f"{self.mean:.6g}"
        digits = 6 if self.error <= 0 else max(0, 1 - math.floor(math.log10(self.error)))
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"


def block_average(values: Sequence[float] | np.ndarray) -> Average:
    """Mean of a correlated series and its standard error, by blocking.

    The series is averaged over blocks of 1, 2, 4, … values. The error that the blocks give rises until they
    are longer than the correlation and stays from there on (Flyvbjerg and Petersen, J. Chem. Phys. 91, 461,
    1989). The plateau is the first level that no later one exceeds by more than its own uncertainty, which
    is the error divided by √(2(n - 1)) for n blocks. At least 16 blocks are used, so the error is too small
    for a series that is shorter than about 30 times its correlation.

    Parameters
    ----------
    values : array, shape (T,), T >= 1
        The series, in equal steps of time.

    Returns
    -------
    Average
        Mean, error, standard deviation and count. With fewer than 16 values the error is NaN.

    Raises
    ------
    DataError
        If this is no series, or a value is not finite.

    Examples
    --------
    >>> found = block_average(np.random.default_rng(0).normal(3.0, 1.0, 10_000))
    >>> round(found.mean, 1), round(found.error, 2)
    (3.0, 0.01)
    """
    x = _series(values)
    mean, count = float(x.mean()), len(x)
    std = float(x.std(ddof=1)) if count > 1 else math.nan
    errors, slack = [], []
    blocks = x - mean
    while len(blocks) >= _FEWEST_BLOCKS:
        n = len(blocks)
        error = float(np.sqrt(blocks.var() / (n - 1)))
        errors.append(error)
        slack.append(error / math.sqrt(2 * (n - 1)))
        half = n // 2
        blocks = (blocks[: 2 * half : 2] + blocks[1 : 2 * half : 2]) / 2
    for k, error in enumerate(errors):
        if all(later - own <= error for later, own in zip(errors[k + 1 :], slack[k + 1 :])):
            return Average(mean, error, std, count)
    return Average(mean, math.nan, std, count)


def equilibration(values: Sequence[float] | np.ndarray) -> int:
    """How many values at the beginning of a series are not in equilibrium.

    The marginal standard error rule (White, Simulation 69, 323, 1997): the first d of n values are left out
    so that the variance of the others divided by n - d is smallest, with d at most n / 2.

    Parameters
    ----------
    values : array, shape (T,)
        The series.

    Returns
    -------
    int
        Number of values to leave out.

    Raises
    ------
    DataError
        If this is no series, or a value is not finite.

    Examples
    --------
    >>> equilibration([9.0, 5.0, 1.0, 1.1, 0.9, 1.0, 1.1, 0.9])
    2
    """
    x = _series(values)
    n = len(x)
    if n < 4:
        return 0
    x = x - x[n // 2 :].mean()  # sums of squares lose digits if the mean is large
    left = np.arange(n, n - n // 2 - 1, -1)
    sums, squares = np.cumsum(x[::-1])[::-1][: len(left)], np.cumsum(x[::-1] ** 2)[::-1][: len(left)]
    marginal = np.maximum(squares / left - (sums / left) ** 2, 0) / left
    return int(marginal.argmin())


def _series(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0:
        raise DataError(f"values of shape {x.shape}: wanted a series of one value or more")
    if not np.isfinite(x).all():
        k = int((~np.isfinite(x)).argmax())
        raise DataError(f"value {k} of the series is {x[k]}; wanted finite numbers")
    return x
