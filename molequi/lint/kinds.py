"""Numbers by which structures of the same atoms are grouped, without making each structure."""

import numpy as np

from molequi.data.structures import Structures
from molequi.graph import fields_per

_ATOMS = 500_000  # in a block
# What structures of one kind may differ by.
_FREE = ("pos", "z", "cell", "pbc", "vel", "batch")


def kind_numbers(structures: Structures, ordered: bool = True) -> np.ndarray:
    """A number for each structure: equal for the same elements, periodic directions, charge, spin and fields.

    The numbers are sums of random 64-bit integers, so that two kinds share one about once in 10^19 pairs.

    Parameters
    ----------
    structures : Structures
        The structures.
    ordered : bool
        Whether the order of the atoms matters.

    Returns
    -------
    array of uint64, shape (structures,)

    Examples
    --------
    >>> from molequi import Graph
    >>> one, two = (Graph.single([[0, 0, 0], [0, 0, d]], ["H", "F"]) for d in (0.8, 0.9))
    >>> other = Graph.single([[0, 0, 0], [0, 0, 0.8]], ["F", "H"])
    >>> a, b, c = kind_numbers(Structures.of([one, two, other]))
    >>> bool(a == b), bool(a == c), len(set(kind_numbers(Structures.of([one, other]), ordered=False)))
    (True, False, 1)
    """
    if not len(structures):
        return np.zeros(0, dtype=np.uint64)
    place = _weights("place", int(structures.counts.max()))
    pieces = int(structures.counts.sum()) // _ATOMS + 1
    found = [
        _of_piece(structures.select(rows), place, ordered)
        for rows in np.array_split(np.arange(len(structures)), min(pieces, len(structures)))
    ]
    return np.concatenate(found)


def _of_piece(part: Structures, place: np.ndarray, ordered: bool) -> np.ndarray:
    starts = np.cumsum(part.counts) - part.counts
    inside = place[np.arange(int(part.counts.sum())) - np.repeat(starts, part.counts)]
    atoms = _weights("z", 200)[part.z.numpy()]
    found: np.ndarray = np.add.reduceat(atoms * inside if ordered else atoms, starts)
    pbc = part.field("pbc")
    if pbc is not None:
        bits = pbc.numpy().reshape(len(part), -1) @ np.array([1, 2, 4][: pbc.shape[-1]])
        found += np.where(part.has("pbc"), _weights("pbc", 8)[bits], np.uint64(0))
    for name, spec in fields_per("node", "graph").items():
        table = part.field(name)
        if name in _FREE or table is None:
            continue
        rows = np.ascontiguousarray(table.numpy().reshape(len(table), -1), dtype=np.float64).view(np.uint64)
        value = (rows * _weights(name, rows.shape[1])).sum(1, dtype=np.uint64)
        if spec.per == "node":
            value = np.add.reduceat(value * inside, starts)
        found += np.where(part.has(name), value + _weights(f"has {name}", 1), np.uint64(0))
    return found


def _weights(name: str, size: int) -> np.ndarray:
    """Odd random numbers that a name determines."""
    random = np.random.default_rng(list(name.encode()))
    return random.integers(1 << 63, size=size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
