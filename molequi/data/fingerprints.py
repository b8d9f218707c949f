"""Fingerprints of many structures, and those that occur more than once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from molequi.data.digests import fingerprint, fingerprint_number
from molequi.data.structures import Structures

if TYPE_CHECKING:
    from molequi.data.dataset import Dataset


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


def duplicates(parts: Sequence["Dataset"]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Identical structures in different parts: leakage from training to test.

    Parameters
    ----------
    parts : sequence of Dataset
        For instance training, validation and test data.

    Returns
    -------
    list of pairs of (part, index)
        Each pair is a structure and an identical one in another part.
    """
    numbers = np.concatenate([fingerprint_numbers(part.graphs) for part in parts])
    part_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    begin = np.cumsum([0, *(len(part) for part in parts)])
    seen: dict[str, tuple[int, int]] = {}
    out = []
    for row in repeated(numbers):
        p, k = int(part_of[row]), int(row - begin[part_of[row]])
        first = seen.setdefault(fingerprint(parts[p][k]), (p, k))
        if first[0] != p:
            out.append((first, (p, k)))
    return out
