"""Fits and medians that a minority of foreign values does not change."""

import numpy as np


def absolute_fit(columns: np.ndarray, values: np.ndarray, steps: int = 25) -> np.ndarray:
    """Fit with the smallest sum of absolute deviations, by reweighted least squares.

    Parameters
    ----------
    columns : array, shape (n, columns)
        What the values are fitted by.
    values : array, shape (n,)
        The values.
    steps : int
        Number of fits by least squares.

    Returns
    -------
    array, shape (columns,)

    Examples
    --------
    >>> x = np.linspace(-1, 1, 20)[:, None]
    >>> y = 2 * x[:, 0]
    >>> y[:4] += 100
    >>> absolute_fit(x, y).round(3).tolist()
    [2.0]
    """
    size = np.abs(columns).mean(0)
    columns = columns / np.where(size > 0, size, 1.0)
    small = 1e-6 * np.median(np.abs(values)) + 1e-12
    weight = np.ones(len(values))
    slopes = np.zeros(columns.shape[1])
    for _ in range(steps):
        root = np.sqrt(weight)[:, None]
        slopes = np.linalg.lstsq(columns * root, values * root[:, 0], rcond=None)[0]
        weight = 1 / np.maximum(np.abs(values - columns @ slopes), small)
    found: np.ndarray = slopes / np.where(size > 0, size, 1.0)
    return found


def medians_of(values: np.ndarray, owner: np.ndarray, size: int) -> np.ndarray:
    """The lower median of the values of each owner.

    Parameters
    ----------
    values : array, shape (n,)
        The values.
    owner : array of int, shape (n,)
        To whom each belongs.
    size : int
        Number of owners.

    Returns
    -------
    array, shape (size,)
        NaN for owners without a value.

    Examples
    --------
    >>> medians_of(np.array([3.0, 1.0, 9.0, 4.0]), np.array([0, 0, 0, 2]), 3).tolist()
    [3.0, nan, 4.0]
    """
    order = np.lexsort((values, owner))
    count = np.bincount(owner, minlength=size)
    place = np.cumsum(count) - count + (count - 1) // 2
    found = np.full(size, np.nan)
    found[count > 0] = values[order[place[count > 0]]]
    return found
