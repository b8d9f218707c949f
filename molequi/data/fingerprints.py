"""Fingerprints of many structures, and those that occur more than once."""

import numpy as np

from molequi.data.digests import fingerprint_number
from molequi.data.structures import Structures


def fingerprint_numbers(structures: Structures) -> np.ndarray:
    """The number of each structure by its content, shape (structures,); those of a store are read.

    Parameters
    ----------
    structures : Structures
        The structures.
    """
    stored = structures.columns.fingerprints
    if stored is not None:
        return (stored if structures.rows is None else stored[structures.rows]).numpy()
    return np.fromiter(map(fingerprint_number, structures), dtype=np.int64, count=len(structures))


def repeated(numbers: np.ndarray) -> np.ndarray:
    """Places of all values that occur more than once, ascending.

    Parameters
    ----------
    numbers : array of int, shape (n,)
        The values.

    Examples
    --------
    >>> repeated(np.array([5, 7, 5, 8])).tolist()
    [0, 2]
    """
    order = np.argsort(numbers, kind="stable")
    same = numbers[order][1:] == numbers[order][:-1]
    twice = np.zeros(len(numbers), dtype=bool)
    twice[1:] |= same
    twice[:-1] |= same
    return np.sort(order[twice])
