"""The tables of a data set as plain arrays, and such tables of a folder that are mapped into memory."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molequi.data.chain import Chain, Column
from molequi.data.dataset import Dataset
from molequi.data.digests import fingerprint_number
from molequi.data.edges import Edges
from molequi.data.structures import Columns
from molequi.graph import FIELDS

Tables = Mapping[str, np.ndarray]
STARTS, TEXT = ".starts", ".text"


def tables_of(data: Dataset) -> dict[str, np.ndarray]:
    """All tables of a data set by name.

    A table is an array with one row per node, structure, pair or edge, or the bytes of texts. Tables named
    ``*.starts`` have a row per structure: where it *ends* in the tables of that kind.

    Parameters
    ----------
    data : Dataset
        Structures; neighbor lists are included if all have them.
    """
    graphs = list(data)
    columns, edges = data.graphs.columns, data.graphs.edges
    per_node = {name for name in data.quantities if name in columns.per_node}
    if data.graphs.rows is not None or isinstance(columns.fields["z"], Chain):  # parts of other tables
        data = Dataset(graphs, quantities=data.quantities, info=data.info, origins=data.origins)
        columns, edges = data.graphs.columns, data.graphs.edges
    out = {f"{kind}{STARTS}": starts[1:].numpy() for kind, starts in columns.starts.items()}
    for name, table in columns.fields.items():
        out[f"field.{name}"] = table[:].numpy()
        if FIELDS[name].default is not None:
            out[f"present.{name}"] = data.graphs.has(name)
    if columns.pair_index is not None:
        out["pair_index"] = columns.pair_index[:].int().numpy()
    for name, table in columns.targets.items():
        out[f"{'node' if name in per_node else 'graph'}_target.{name}"] = table[:].numpy()
    if edges is not None:
        out |= _edge_tables(edges, len(data))
    out["fingerprint"] = np.array([fingerprint_number(graph) for graph in graphs], dtype=np.int64)
    for name, column in {"origin": data.origins, **{f"info.{k}": v for k, v in data.info.items()}}.items():
        out |= _texts(name, column)
    return out


def _edge_tables(edges: Edges, count: int) -> dict[str, np.ndarray]:
    out = {f"edge{STARTS}": edges.starts[1:].numpy(), "edge_index": edges.edge_index[:].int().numpy()}
    if edges.shift is not None:
        out["shift"] = edges.shift[:].short().numpy()
        out["shifted"] = np.ones(count, bool) if edges.shifted is None else edges.shifted.numpy()
    if edges.edge_attr is not None:
        out["edge_attr"] = edges.edge_attr[:].numpy()
    return out


def _texts(name: str, column: Sequence[Any]) -> dict[str, np.ndarray]:
    """A column as JSON texts one after the other; an empty text stands for None."""
    texts = [b"" if value is None else json.dumps(value).encode() for value in column]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return {f"{name}{STARTS}": ends, f"{name}{TEXT}": np.frombuffer(b"".join(texts), np.uint8)}


class TextColumn(Column):
    """A column of values that are read from a file when they are asked for.

    Parameters
    ----------
    ends : array, shape (structures,)
        Where the text of each value ends.
    text : array of uint8
        All texts in JSON, one after the other; an empty one stands for None.

    Examples
    --------
    >>> column = TextColumn(np.array([1, 1, 4]), np.frombuffer(b'7"a"', np.uint8))
    >>> list(column), column.select([2, 0])[0]
    ([7, None, 'a'], 'a')
    """

    def __init__(self, ends: np.ndarray, text: np.ndarray) -> None:
        super().__init__(len(ends))
        self._ends, self._text = ends, text

    def value(self, row: int) -> Any:
        """Read a value.

        Parameters
        ----------
        row : int
            Its number among all of the file.
        """
        text = self._text[int(self._ends[row - 1]) if row else 0 : int(self._ends[row])].tobytes()
        return json.loads(text) if text else None


def columns_of(
    tables: Tables, targets: Sequence[str] | None = None, reopen: Callable[..., Columns] | None = None
) -> Columns:
    """The tables of structures and labels.

    Parameters
    ----------
    tables : mapping of str to array
        As `tables_of` makes them.
    targets : sequence of str, optional
        The labels that are wanted; by default all.
    reopen : callable, optional
        Opens these tables again in another process.
    """
    found, per_node = {}, set()
    for kind in ("node", "graph"):
        start = f"{kind}_target."
        for name in (table.removeprefix(start) for table in tables if table.startswith(start)):
            found[name] = _tensor(tables[f"{start}{name}"])
            per_node |= {name} if kind == "node" else set()
    fields = {name.removeprefix("field."): _tensor(t) for name, t in tables.items() if name[:6] == "field."}
    present = {
        name.removeprefix("present."): _tensor(table)
        for name, table in tables.items()
        if name.startswith("present.") and not table.all()
    }
    names = list(found) if targets is None else list(targets)
    return Columns(
        {
            kind: _starts(tables[f"{kind}{STARTS}"])
            for kind in ("node", "pair")
            if f"{kind}{STARTS}" in tables
        },
        fields,
        present,
        _tensor(tables["pair_index"]) if "pair_index" in tables else None,
        {name: found[name] for name in names},
        frozenset(per_node),
        fingerprints=_tensor(tables["fingerprint"]),
        reopen=reopen,
    )


def edges_of_tables(
    tables: Tables, cutoff: float, k: int | None, reopen: Callable[..., Edges] | None = None
) -> Edges:
    """The tables of neighbor lists.

    Parameters
    ----------
    tables : mapping of str to array
        As `tables_of` makes them.
    cutoff : float
        Distance up to which neighbors were searched (Å).
    k : int or None
        Only the k nearest nodes.
    reopen : callable, optional
        Opens these tables again in another process.
    """
    optional = {
        name: _tensor(tables[name]) if name in tables else None for name in ("shift", "shifted", "edge_attr")
    }
    return Edges(
        _starts(tables[f"edge{STARTS}"]),
        _tensor(tables["edge_index"]),
        optional["shift"],
        optional["shifted"],
        cutoff,
        k,
        optional["edge_attr"],
        reopen=reopen,
    )


def text_columns(tables: Tables) -> dict[str, TextColumn]:
    """The columns of texts by name: ``origin``, and ``info.NAME``.

    Parameters
    ----------
    tables : mapping of str to array
        As `tables_of` makes them.
    """
    names = [name.removesuffix(TEXT) for name in tables if name.endswith(TEXT)]
    return {name: TextColumn(tables[f"{name}{STARTS}"], tables[f"{name}{TEXT}"]) for name in names}


def mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...], first: int = 0) -> np.ndarray:
    """A file as an array; pages are read when they are used.

    Parameters
    ----------
    path : Path
        The file, which may be longer than the array.
    dtype : numpy.dtype
        Type of its numbers.
    shape : tuple of int
        Shape of the array.
    first : int
        Number of the first row.
    """
    if 0 in shape:
        return np.zeros(shape, dtype)
    begin = first * dtype.itemsize * math.prod(shape[1:])
    # "c": a change by mistake stays in memory and never reaches the file.
    return np.memmap(path, dtype=dtype, mode="c", shape=shape, offset=begin)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def _starts(ends: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], ends]).astype(np.int64))
