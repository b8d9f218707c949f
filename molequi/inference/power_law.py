"""Power laws of errors against the number of training structures."""

import math
from dataclasses import dataclass

import numpy as np

from molequi.errors import DataError

LEVEL = 0.95  # of all intervals


@dataclass(frozen=True)
class Estimate:
    """How many structures an error needs.

    Parameters
    ----------
    structures : float
        The number by the power law; infinite if it does not fall.
    low, high : float
        The 95 % interval; `high` is infinite if it has no upper end.
    """

    structures: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.structures):
            return "no number of structures"
        low, middle = two_digits(self.low), two_digits(self.structures)
        high = two_digits(self.high) if math.isfinite(self.high) else "no upper limit"
        return f"about {middle} structures (95 % interval: {low} to {high})"


@dataclass(frozen=True)
class PowerLaw:
    """A fit ``error = a n^-b`` to the errors of trainings with n structures, by least squares of logarithms.

    Intervals are those of a new training, from the covariance of the fit and Student's t distribution. They
    assume that the same law holds beyond the largest n.

    Parameters
    ----------
    sizes : array, shape (N,), N >= 3
        Numbers of structures.
    errors : array, shape (N,)
        The errors, all positive.

    Raises
    ------
    DataError
        For fewer than three points or two sizes, and for errors that are not positive.

    Examples
    --------
    >>> law = PowerLaw(np.array([100, 200, 400, 800]), np.array([0.8, 0.57, 0.40, 0.283]))
    >>> round(law.exponent, 2), round(law(1600)[0], 2)
    (0.5, 0.2)
    """

    sizes: np.ndarray
    errors: np.ndarray

    def __post_init__(self) -> None:
        if len(self.sizes) < 3 or len(set(self.sizes.tolist())) < 2:
            raise DataError(
                f"a power law of {len(self.sizes)} trainings with {len(set(self.sizes.tolist()))} sizes; "
                "wanted "
                "at least three trainings and two sizes"
            )
        if not (np.isfinite(self.errors) & (self.errors > 0)).all():
            raise DataError(
                f"a power law of the errors {self.errors.tolist()}; wanted numbers above zero, since their "
                "logarithms are fitted"
            )

    @property
    def _x(self) -> np.ndarray:
        return np.log(self.sizes.astype(float))

    @property
    def _line(self) -> tuple[float, float, float]:
        """Slope, intercept and standard deviation of the residuals of the logarithms."""
        from scipy.stats import linregress

        found = linregress(self._x, np.log(self.errors))
        residuals = np.log(self.errors) - found.intercept - found.slope * self._x
        return (
            float(found.slope),
            float(found.intercept),
            float(np.sqrt((residuals**2).sum() / (len(residuals) - 2))),
        )

    @property
    def exponent(self) -> float:
        """The exponent b: the error falls by the factor 2^-b when the number of structures is doubled."""
        return -self._line[0]

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """The 95 % interval of b."""
        x, scatter = self._x, self._line[2]
        half = self._t() * scatter / float(np.sqrt(((x - x.mean()) ** 2).sum()))
        return self.exponent - half, self.exponent + half

    @property
    def scatter(self) -> float:
        """Relative standard deviation of the errors about the law."""
        return self._line[2]

    def __call__(self, structures: float) -> tuple[float, float, float]:
        """The error with so many structures, and its 95 % interval.

        Parameters
        ----------
        structures : float
            The number n.
        """
        middle, low, high = self.band(np.array([structures], dtype=float))
        return float(middle[0]), float(low[0]), float(high[0])

    def band(self, structures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The errors with these numbers of structures, and their 95 % intervals.

        Parameters
        ----------
        structures : array, shape (M,)
            The numbers n.

        Returns
        -------
        (array, array, array), shape (M,)
            The law and both ends of the interval.
        """
        slope, intercept, scatter = self._line
        x, at = self._x, np.log(structures)
        leverage = 1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
        half = self._t() * scatter * np.sqrt(1 + leverage)
        middle = intercept + slope * at
        return np.exp(middle), np.exp(middle - half), np.exp(middle + half)

    def structures_for(self, error: float) -> Estimate:
        """How many structures give an error.

        Parameters
        ----------
        error : float, > 0
            The error, in the unit of the others.
        """
        slope, intercept, _ = self._line
        if slope >= 0:
            return Estimate(math.inf, self._reached(error, 1), math.inf)
        needed = math.exp(min((math.log(error) - intercept) / slope, 700.0))
        return Estimate(needed, self._reached(error, 1), self._reached(error, 2))

    def _reached(self, error: float, end: int) -> float:
        """The smallest number of structures for which an end of the interval is below the error."""
        start = math.log(self.sizes.min()) - 20
        numbers = np.exp(np.linspace(max(start, 0.0), start + 60, 60_001))
        below = self.band(numbers)[end] <= error
        return float(numbers[below.argmax()]) if below.any() else math.inf

    def _t(self) -> float:
        from scipy.stats import t

        return float(t.ppf((1 + LEVEL) / 2, len(self.sizes) - 2))


def levels_off(law: PowerLaw) -> bool:
    """Whether the errors fall less than half as fast at the largest sizes as at the smallest, and as the law.

    Parameters
    ----------
    law : PowerLaw
        The law, of four or more sizes.
    """
    sizes = np.unique(law.sizes)
    means = np.array([np.log(law.errors[law.sizes == size]).mean() for size in sizes])
    slopes = np.diff(means) / np.diff(np.log(sizes))
    return bool(slopes[0] < 0 and slopes[-1] > 0.5 * slopes[0] and slopes[-1] > -0.5 * law.exponent)


def two_digits(number: float) -> str:
    """A large number with two significant digits.

    Parameters
    ----------
    number : float
        The number.

    Examples
    --------
    >>> two_digits(1234.0), two_digits(42.4)
    ('1,200', '42')
    """
    if number < 100:
        return f"{number:.0f}"
    if number >= 1e8:
        return "more than 100,000,000"
    return f"{round(number, 1 - math.floor(math.log10(number))):,.0f}"
