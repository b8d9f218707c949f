"""Structures: many graphs as joined tensors, in memory or in a file that is mapped into memory."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from molequi.data.chain import Chain
from molequi.data.edges import Edges, edges_if_alike, spans_of, starts_of
from molequi.graph import FIELDS, Field, Graph, fields_per

BLOCK_STRUCTURES, BLOCK_NODES = 5_000, 100_000  # of structures that are in memory at once


def _kept() -> dict[str, Field]:
    """The fields of tables; those per edge belong to neighbor lists."""
    return fields_per("node", "graph", "pair")


@dataclass(frozen=True)
class Columns:
    """The tables of S structures. Row r of a table "per node" belongs to the structure s with
    starts["node"][s] <= r < starts["node"][s + 1].

    Parameters
    ----------
    starts : mapping of str to Tensor, shape (S + 1,)
        For "node", and for "pair" and "edge" if there are any: where each structure begins.
    fields : mapping of str to Tensor or Chain
        Values of the fields of `Graph` per node, graph and pair, one row each.
    present : mapping of str to Tensor, shape (S,)
        Of fields that only some structures have: which. The rows of others are the default of the field.
    pair_index : Tensor or Chain, shape (pairs, 2), optional
        Nodes of each pair, counted from the first node of the structure.
    targets : mapping of str to Tensor or Chain
        Labels, one row per node or per structure.
    per_node : frozenset of str
        Names of the labels with one row per node.
    fingerprints : Tensor, shape (S,), optional
        A number for each structure by its content, see `molequi.data.digests.fingerprint_number`.
    reopen : callable, optional
        Of tables of files: opens them in another process, with the labels whose names it gets.
    """

    starts: Mapping[str, Tensor]
    fields: Mapping[str, Tensor | Chain]
    present: Mapping[str, Tensor]
    pair_index: Tensor | Chain | None
    targets: Mapping[str, Tensor | Chain]
    per_node: frozenset[str]
    fingerprints: Tensor | None = None
    reopen: "Callable[[Sequence[str]], Columns] | None" = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself; pickled, the tables would be copied.
        if self.reopen is not None:
            return self.reopen, (tuple(self.targets),)
        return Columns, tuple(getattr(self, attribute.name) for attribute in fields(self))


class Structures(Sequence[Graph]):
    """A sequence of single structures that are kept as a few joined tensors.

    ``structures[3]`` is a Graph, whose tensors are views where they can be; ``structures[:5]`` and
    ``structures.select(numbers)`` share all tables. Such a sequence takes a quarter of the memory of a list
    of Graphs (1.4 against 5.5 kB for ethanol with edges up to 5 Å), and another process gets it as a few
    tensors.

    Parameters
    ----------
    columns : Columns
        The tables.
    rows : Tensor, shape (n,), optional
        Numbers of the structures in these tables; None: all.
    edges : Edges, optional
        Neighbor lists.
    edge_rows : Tensor, shape (n,), optional
        Numbers of the structures in the tables of neighbor lists; None: all.

    Examples
    --------
    >>> h2 = Graph.single([[0, 0, 0], [0, 0, 0.74]], ["H", "H"])
    >>> both = Structures.of([h2, Graph.single([[0, 0, 0]], ["O"])])
    >>> both.counts.tolist(), both[1].z.tolist(), both.batch([1, 0]).batch.tolist()
    ([2, 1], [8], [0, 1, 1])
    """

    def __init__(
        self,
        columns: Columns,
        rows: Tensor | None = None,
        edges: Edges | None = None,
        edge_rows: Tensor | None = None,
    ) -> None:
        self.columns, self.rows, self.edges, self.edge_rows = columns, rows, edges, edge_rows

    @classmethod
    def of(cls, graphs: Iterable[Graph], per_node: Iterable[str] = ()) -> "Structures":
        """Join single structures.

        Neighbor lists are kept if all structures have them with one cutoff and one k; otherwise they are left
        out, and are searched again where they are needed.

        Parameters
        ----------
        graphs : iterable of Graph
            Single structures with the same fields and targets, at least one.
        per_node : iterable of str
            Names of the targets with one row per node.
        """
        graphs = list(graphs)
        starts = {"node": starts_of([g.num_nodes for g in graphs])}
        found: dict[str, Tensor] = {}
        present: dict[str, Tensor] = {}
        for name, spec in _kept().items():
            values = [getattr(g, name) for g in graphs]
            like = next((v for v in values if v is not None), None)
            if like is None:
                continue
            if any(v is None for v in values):
                present[name] = torch.tensor([v is not None for v in values])
                rows = [g.num_nodes if spec.per == "node" else 1 for g in graphs]
                default = 0.0 if spec.default is None else spec.default
                values = [
                    torch.full((n, *like.shape[1:]), default, dtype=like.dtype) if v is None else v
                    for n, v in zip(rows, values)
                ]
            found[name] = torch.cat([v.detach() for v in values])
        pair_index = None
        if graphs[0].pair_index is not None:
            pairs = [g.pair_index for g in graphs if g.pair_index is not None]
            starts["pair"] = starts_of([p.shape[1] for p in pairs])
            pair_index = torch.cat(pairs, 1).t().contiguous()
        targets = {n: torch.cat([g.targets[n].detach() for g in graphs]) for n in graphs[0].targets}
        columns = Columns(starts, found, present, pair_index, targets, frozenset(per_node) & {*targets})
        return cls(columns, edges=edges_if_alike(graphs))

    # A sequence.

    def __len__(self) -> int:
        return len(self.columns.starts["node"]) - 1 if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Graph: ...

    @overload
    def __getitem__(self, index: slice) -> "Structures": ...

    def __getitem__(self, index: int | slice) -> "Graph | Structures":
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        k = index + len(self) if index < 0 else index
        if not 0 <= k < len(self):
            raise IndexError(f"index {index} is outside of the {len(self)} structures")
        return self._one(k)

    def __iter__(self) -> Iterator[Graph]:
        return map(self._one, range(len(self)))

    def select(self, numbers: Sequence[int] | np.ndarray | Tensor) -> "Structures":
        """Some of the structures, in the given order; all tables are shared.

        Parameters
        ----------
        numbers : sequence of int
            Numbers of the structures, from 0.
        """
        chosen = torch.as_tensor(np.asarray(numbers, dtype=np.int64))
        chosen = torch.where(chosen < 0, chosen + len(self), chosen)
        edge_rows = None
        if self.edges is not None:
            edge_rows = chosen if self.edge_rows is None else self.edge_rows[chosen]
        return Structures(
            self.columns, chosen if self.rows is None else self.rows[chosen], self.edges, edge_rows
        )

    def blocks(self) -> Iterator[range]:
        """Numbers of all structures in blocks, each of which is small enough to be in memory."""
        ends, start = np.cumsum(self.counts), 0
        while start < len(self):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + BLOCK_NODES, side="right"))
            stop = max(min(stop, start + BLOCK_STRUCTURES), start + 1)
            yield range(start, stop)
            start = stop

    def _one(self, k: int) -> Graph:
        """Structure number k."""
        row = k if self.rows is None else int(self.rows[k])
        columns = self.columns
        span = {"graph": slice(row, row + 1)}
        for kind, starts in columns.starts.items():
            span[kind] = slice(*starts[row : row + 2].tolist())
        values: dict[str, Tensor | None] = {
            name: table[span[FIELDS[name].per]]
            for name, table in columns.fields.items()
            if name not in columns.present or bool(columns.present[name][row])
        }
        if columns.pair_index is not None:
            values["pair_index"] = columns.pair_index[span["pair"]].t()
        count = span["node"].stop - span["node"].start
        edges = {} if self.edges is None else self._edges_of_one(k)
        return _graph(
            values | edges,
            batch=torch.zeros(count, dtype=torch.int64),
            num_graphs=1,
            cutoff=None if self.edges is None else self.edges.cutoff,
            k=None if self.edges is None else self.edges.k,
            targets={
                name: table[span["node" if name in columns.per_node else "graph"]]
                for name, table in columns.targets.items()
            },
        )

    def _edges_of_one(self, k: int) -> dict[str, Tensor | None]:
        edges = self.edges
        assert edges is not None
        row = k if self.edge_rows is None else int(self.edge_rows[k])
        span = slice(*edges.starts[row : row + 2].tolist())
        found: dict[str, Tensor | None] = {"edge_index": edges.edge_index[span].long().t().contiguous()}
        if edges.shift is not None and (edges.shifted is None or bool(edges.shifted[row])):
            found["shift"] = edges.shift[span].double()
        if edges.edge_attr is not None:
            found["edge_attr"] = edges.edge_attr[span]
        return found

    # What all structures have.

    @property
    def on_disk(self) -> bool:
        """Whether tables are, at least in part, files that are mapped into memory."""
        return self.columns.reopen is not None

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of nodes of each structure, shape (structures,)."""
        return self._lengths(self.columns.starts["node"], self.rows)

    @cached_property
    def edge_counts(self) -> np.ndarray:
        """Number of edges of each structure, shape (structures,); zeros without neighbor lists."""
        if self.edges is None:
            return np.zeros(len(self), dtype=np.int64)
        return self._lengths(self.edges.starts, self.edge_rows)

    @staticmethod
    def _lengths(starts: Tensor, rows: Tensor | None) -> np.ndarray:
        lengths = starts.diff()
        return (lengths if rows is None else lengths[rows]).numpy()

    @property
    def z(self) -> Tensor:
        """Atomic numbers of all nodes, shape (nodes of all structures,)."""
        return self._joined(self.columns.fields["z"], True)

    @property
    def pos(self) -> Tensor:
        """Positions of all nodes, shape (nodes of all structures, D)."""
        return self._joined(self.columns.fields["pos"], True)

    @property
    def dim(self) -> int:
        """Number of spatial dimensions D."""
        return self.columns.fields["pos"].shape[1]

    def field(self, name: str) -> Tensor | None:
        """The values of a field per node or per graph, joined; None if no structure has it.

        Parameters
        ----------
        name : str
            Name of the field. Structures that lack it have its default.
        """
        table = self.columns.fields.get(name)
        return None if table is None else self._joined(table, FIELDS[name].per == "node")

    def has(self, name: str) -> np.ndarray:
        """Which structures have a field, shape (structures,).

        Parameters
        ----------
        name : str
            Name of a field per node, graph or pair.
        """
        if name not in self.columns.fields:
            return np.zeros(len(self), dtype=bool)
        if name not in self.columns.present:
            return np.ones(len(self), dtype=bool)
        there = self.columns.present[name]
        return (there if self.rows is None else there[self.rows]).numpy()

    def target(self, name: str) -> Tensor:
        """The labels of one quantity, joined along the first axis.

        Parameters
        ----------
        name : str
            Name of the quantity.
        """
        return self._joined(self.columns.targets[name], name in self.columns.per_node)

    def complete(self, name: str) -> np.ndarray:
        """Which structures have a complete label of a quantity, shape (structures,).

        Parameters
        ----------
        name : str
            Name of the quantity.
        """
        return ~self._any(torch.isnan(self.target(name)), name)

    def labelled(self, name: str) -> np.ndarray:
        """Which structures have a label of a quantity, even of a single node or component alone.

        Parameters
        ----------
        name : str
            Name of the quantity.

        Returns
        -------
        array of bool, shape (structures,)
        """
        return self._any(~torch.isnan(self.target(name)), name)

    def _any(self, rows: Tensor, name: str) -> np.ndarray:
        """Which structures have a true entry in the rows of a label."""
        found: np.ndarray = rows.reshape(len(rows), -1).any(1).numpy()
        if name in self.columns.per_node:  # no structure is without nodes
            found = np.logical_or.reduceat(found, np.cumsum(self.counts) - self.counts)
        return found

    def owners(self) -> np.ndarray:
        """Number of the structure of each node, shape (nodes of all structures,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def _joined(self, table: Tensor | Chain, per_node: bool) -> Tensor:
        if self.rows is None:
            return table[:]
        return table[spans_of(self.columns.starts["node"], self.rows)[0] if per_node else self.rows]

    # Batches.

    def batch(self, numbers: Sequence[int]) -> Graph:
        """One batch of some structures, as `molequi.graph.collate` makes it of their graphs.

        Parameters
        ----------
        numbers : sequence of int
            Numbers of the structures, at least one.
        """
        if len(numbers) == 1:
            return self._one(int(numbers[0]))
        chosen = torch.tensor(numbers)
        columns, rows = self.columns, chosen if self.rows is None else self.rows[chosen]
        index, lengths = {"graph": rows}, {}
        for kind, starts in columns.starts.items():
            index[kind], lengths[kind] = spans_of(starts, rows)
        values: dict[str, Tensor | None] = {}
        for name, table in columns.fields.items():
            if name not in columns.present or bool(columns.present[name][rows].any()):
                values[name] = table[index[FIELDS[name].per]]
        first = lengths["node"].cumsum(0) - lengths["node"]  # of the nodes of each structure in the batch
        if columns.pair_index is not None:
            pairs = columns.pair_index[index["pair"]]
            values["pair_index"] = (pairs + first.repeat_interleave(lengths["pair"])[:, None]).t()
        if self.edges is not None:
            values |= self._edges_of_many(chosen, first)
        return _graph(
            values,
            batch=torch.arange(len(rows)).repeat_interleave(lengths["node"]),
            num_graphs=len(rows),
            cutoff=None if self.edges is None else self.edges.cutoff,
            k=None if self.edges is None else self.edges.k,
            targets={
                name: table[index["node" if name in columns.per_node else "graph"]]
                for name, table in columns.targets.items()
            },
        )

    def _edges_of_many(self, chosen: Tensor, first: Tensor) -> dict[str, Tensor | None]:
        edges = self.edges
        assert edges is not None
        rows = chosen if self.edge_rows is None else self.edge_rows[chosen]
        at, lengths = spans_of(edges.starts, rows)
        index = edges.edge_index[at].long() + first.repeat_interleave(lengths)[:, None]
        found: dict[str, Tensor | None] = {"edge_index": index.t().contiguous()}
        if edges.shift is not None and (edges.shifted is None or bool(edges.shifted[rows].any())):
            found["shift"] = edges.shift[at].double()
        if edges.edge_attr is not None:
            found["edge_attr"] = edges.edge_attr[at]
        return found

    # The same structures with other edges or labels.

    def with_edges(self, edges: Edges | None) -> "Structures":
        """The same structures with other neighbor lists, in the order of these structures.

        Parameters
        ----------
        edges : Edges or None
            Neighbor lists of all structures.
        """
        return Structures(self.columns, self.rows, edges)

    def with_targets(self, names: Iterable[str]) -> "Structures":
        """The same structures with some of their labels.

        Parameters
        ----------
        names : iterable of str
            Names of the labels that stay.
        """
        targets = {name: self.columns.targets[name] for name in names}
        return Structures(replace(self.columns, targets=targets), self.rows, self.edges, self.edge_rows)

    def with_field(self, name: str, values: Tensor) -> "Structures":
        """The same structures with a field per graph, in the order of these structures.

        Parameters
        ----------
        name : str
            Name of the field.
        values : Tensor, shape (structures, …)
            Its values.
        """
        table = values
        if self.rows is not None:
            table = values.new_zeros(len(self.columns.starts["node"]) - 1, *values.shape[1:])
            table[self.rows] = values
        columns = _with_field(self.columns, name, table)
        return Structures(columns, self.rows, self.edges, self.edge_rows)

    def is_connected(self, cutoff: float | None, k: int | None) -> bool:
        """Whether the neighbor lists of this cutoff are there.

        Parameters
        ----------
        cutoff : float or None
            Radius in Å; None: all pairs.
        k : int or None
            Only the k nearest within the cutoff.
        """
        edges = self.edges
        return edges is not None and edges.cutoff == (math.inf if cutoff is None else cutoff) and edges.k == k


def _with_field(columns: Columns, name: str, table: Tensor) -> Columns:
    """The tables with one more; another process that opens files gets it, too."""
    reopen = columns.reopen
    if reopen is not None:
        reopen = partial(_reopened, reopen, name, table)
    present = {field: there for field, there in columns.present.items() if field != name}
    # What a structure is has changed, so that fingerprints are computed anew.
    return replace(
        columns,
        fields={**columns.fields, name: table},
        present=present,
        fingerprints=None,
        reopen=reopen,
    )


def _reopened(
    reopen: Callable[[Sequence[str]], Columns], name: str, table: Tensor, targets: Sequence[str]
) -> Columns:
    """Tables of files in another process, with a field that is not in the files."""
    return _with_field(reopen(targets), name, table)


def _graph(
    values: Mapping[str, Tensor | None],
    *,
    batch: Tensor,
    num_graphs: int,
    cutoff: float | None,
    k: int | None,
    targets: dict[str, Tensor],
) -> Graph:
    """A Graph of values by name, those of declared fields among them."""
    own: dict[str, Any] = {name: value for name, value in values.items() if name in _ATTRIBUTES}
    more = {name: value for name, value in values.items() if name not in _ATTRIBUTES and value is not None}
    return Graph(batch=batch, num_graphs=num_graphs, cutoff=cutoff, k=k, targets=targets, more=more, **own)


_ATTRIBUTES = {attribute.name for attribute in fields(Graph)}
