"""What an index of a Dataset selects."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from molequi.errors import DataError
from molequi.quantities import KNOWN


def numbers_of(
    index: slice | Sequence[int] | Sequence[bool] | np.ndarray,
    count: int,
    quantities: Collection[str],
    info: Collection[str],
) -> Sequence[int]:
    """Numbers of the structures that an index selects.

    Parameters
    ----------
    index : slice, or sequence of int or bool
        The index.
    count : int
        Number of structures.
    quantities, info : collection of str
        Names of labels and of columns, for messages.

    Raises
    ------
    DataError
        If it is something else, or outside of the structures.
    """
    if isinstance(index, slice):
        return range(*index.indices(count))
    if isinstance(index, str):
        way = f"; write data.info[{index!r}]" if index in info else ""
        way = f'; write data.values("{index}")' if index in {*quantities, *KNOWN} else way
        raise DataError(
            f"data[{index!r}]: wanted an integer, a slice or a list{way} (quantities: "
            f"{', '.join(quantities) or 'none'}; columns: {', '.join(info) or 'none'})"
        )
    chosen = np.asarray(index)
    if chosen.dtype == bool:
        if chosen.shape != (count,):
            raise DataError(f"a mask of shape {chosen.shape} for {count} structures")
        chosen = np.flatnonzero(chosen)
    if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "iu"):
        raise DataError(f"index {index!r}: wanted an integer, a slice, or a list of integers or booleans")
    numbers: list[int] = chosen.astype(int).tolist()
    bad = [k for k in numbers if not -count <= k < count]
    if bad:
        raise DataError(f"index {bad[0]} is outside of the {count} structures")
    return numbers


def chosen_values(column: Sequence[Any], chosen: Sequence[int]) -> Sequence[Any]:
    """The chosen values of a column; a column of a file stays one.

    Parameters
    ----------
    column : sequence
        The values.
    chosen : sequence of int
        Their numbers.
    """
    if isinstance(chosen, range) and chosen == range(len(column)):
        return column
    select = getattr(column, "select", None)
    return select(chosen) if select else tuple(column[i] for i in chosen)


def evenly_spaced(total: int, most: int) -> np.ndarray:
    """Numbers of at most so many structures, evenly spaced, the first and the last among them.

    Parameters
    ----------
    total : int
        Number of all structures.
    most : int
        Largest number of chosen ones, at least 1.

    Examples
    --------
    >>> evenly_spaced(9, 3).tolist(), evenly_spaced(2, 3).tolist()
    ([0, 4, 8], [0, 1])
    """
    return np.unique(np.linspace(0, total - 1, min(most, total)).astype(int))


def way_to_column(by: str) -> str:
    """What to do without the columns that readers of molecules make, for a message.

    Parameters
    ----------
    by : str
        The column that is wanted.
    """
    if by not in ("smiles", "scaffold", "canonical", "molecule", "conformer"):
        return ""
    return (
        f"; {by!r} is a column of molecules that mq.read_smiles or mq.read_sdf reads. Split at random, "
        "without by=, or by a column of the file"
    )
