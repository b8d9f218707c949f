"""Tables and columns that are one after the other without being copied."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from functools import reduce
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor


class Chain:
    """Several tables as one: rows that are asked for are gathered from them, and those of files stay on disk.

    Parameters
    ----------
    tables : sequence of Tensor or Chain
        At least one, with rows of the same shape.

    Examples
    --------
    >>> both = Chain([torch.arange(3), torch.arange(10, 12)])
    >>> both[torch.tensor([4, 0])].tolist(), both[2:4].tolist(), both.shape
    ([11, 0], [2, 10], (5,))
    """

    def __init__(self, tables: "Sequence[Tensor | Chain]") -> None:
        self.tables: list[Tensor] = [
            part for t in tables for part in (t.tables if isinstance(t, Chain) else [t])
        ]
        self.ends = np.cumsum([len(t) for t in self.tables]).tolist()
        self.dtype = reduce(torch.promote_types, (t.dtype for t in self.tables))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, and the shape of a row."""
        return (self.ends[-1], *self.tables[0].shape[1:])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            found = [
                table[max(start - begin, 0) : stop - begin]
                for table, begin, end in self._pieces()
                if start < end and stop > begin
            ]
            return (
                torch.cat([piece.to(self.dtype) for piece in found])
                if found
                else self.tables[0][:0].to(self.dtype)
            )
        out = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        for table, begin, end in self._pieces():
            here = (rows >= begin) & (rows < end)
            out[here] = table[rows[here] - begin].to(self.dtype)
        return out

    def _pieces(self) -> Iterator[tuple[Tensor, int, int]]:
        """Each table with the numbers of its first row and of the one after its last."""
        return zip(self.tables, [0, *self.ends], self.ends)


class Column(Sequence[Any]):
    """A column of values that are looked up when they are asked for.

    Parameters
    ----------
    total : int
        Number of values that can be looked up.
    rows : array, shape (n,), optional
        Numbers of the values that belong to this column; None: all.
    """

    def __init__(self, total: int, rows: np.ndarray | None = None) -> None:
        self.total, self.rows = total, rows

    @abstractmethod
    def value(self, row: int) -> Any:
        """Look up a value.

        Parameters
        ----------
        row : int
            Its number among all that can be looked up.
        """

    def __len__(self) -> int:
        return self.total if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> "Column": ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        k = index + len(self) if index < 0 else index
        if not 0 <= k < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} values")
        return self.value(k if self.rows is None else int(self.rows[k]))

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(len(self)))

    def select(self, numbers: Sequence[int] | np.ndarray) -> "Column":
        """Some of the values, in the given order.

        Parameters
        ----------
        numbers : sequence of int
            Numbers of the values, from 0.
        """
        chosen = np.asarray(numbers, dtype=np.int64)
        new = copy(self)
        new.rows = chosen if self.rows is None else self.rows[chosen]
        return new


class ChainedColumn(Column):
    """Several columns of values as one, without copies.

    Parameters
    ----------
    columns : sequence of sequences
        The columns.

    Examples
    --------
    >>> column = ChainedColumn([("a", "b"), [None] * 2])
    >>> list(column), list(column.select([2, 1]))
    (['a', 'b', None, None], [None, 'b'])
    """

    def __init__(self, columns: Sequence[Sequence[Any]]) -> None:
        self.columns = list(columns)
        self.ends = np.cumsum([len(column) for column in columns])
        super().__init__(int(self.ends[-1]))

    def value(self, row: int) -> Any:
        """Look up a value.

        Parameters
        ----------
        row : int
            Its number among those of all columns.
        """
        number = int(np.searchsorted(self.ends, row, side="right"))
        return self.columns[number][row - int(self.ends[number - 1]) if number else row]
