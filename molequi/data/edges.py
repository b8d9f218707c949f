"""Neighbor lists of many structures as joined tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from molequi.data.chain import Chain
from molequi.errors import DataError
from molequi.graph import Graph


@dataclass(frozen=True)
class Edges:
    """Neighbor lists of S structures.

    Parameters
    ----------
    starts : Tensor, shape (S + 1,)
        Where the edges of each structure begin.
    edge_index : Tensor or Chain, shape (edges, 2)
        Sender and receiver, counted from the first node of the structure, in a small integer type.
    shift : Tensor or Chain, shape (edges, D), optional
        Lattice steps in a small integer type.
    shifted : Tensor, shape (S,), optional
        Which structures have lattice steps; None: all, if there is `shift`.
    cutoff : float
        Distance up to which neighbors were searched (Å).
    k : int, optional
        Only the k nearest nodes.
    edge_attr : Tensor or Chain, shape (edges, A), optional
        Features of edges.
    reopen : callable, optional
        Of tables of files: opens them in another process.
    missed : set of (cutoff, k)
        Of tables of files: other neighbor lists that were needed, of which users were told.
    """

    starts: Tensor
    edge_index: Tensor | Chain
    shift: Tensor | Chain | None
    shifted: Tensor | None
    cutoff: float
    k: int | None
    edge_attr: Tensor | Chain | None
    reopen: "Callable[[], Edges] | None" = None
    missed: set[tuple[float | None, int | None]] = field(default_factory=set, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself; pickled, the tables would be copied.
        if self.reopen is not None:
            return self.reopen, ()
        return Edges, tuple(getattr(self, attribute.name) for attribute in fields(self))


def starts_of(lengths: Sequence[int]) -> Tensor:
    """Where each of several pieces begins in their concatenation, and where the last one ends.

    Parameters
    ----------
    lengths : sequence of int
        Length of each piece.
    """
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def spans_of(starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of all rows of some structures, one structure after the other; and how many each has.

    Parameters
    ----------
    starts : Tensor, shape (S + 1,)
        Where each structure begins.
    rows : Tensor, shape (n,)
        Numbers of the structures.
    """
    begin = starts[rows]
    lengths = starts[rows + 1] - begin
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    shift = (begin - ends + lengths).repeat_interleave(lengths, output_size=total)
    return torch.arange(total) + shift, lengths


def edges_of(graphs: Sequence[Graph]) -> Edges:
    """The neighbor lists of graphs, joined.

    Parameters
    ----------
    graphs : sequence of Graph
        Single structures with neighbor lists of one cutoff and one k.

    Raises
    ------
    DataError
        If one of them has no neighbor list, or another kind of it.
    """
    found = edges_if_alike(graphs)
    if found is None:
        raise DataError("structures without neighbor lists, or with lists of several cutoffs")
    return found


def chained_edges(blocks: Sequence[Edges], reopen: "Callable[[], Edges] | None" = None) -> Edges:
    """The neighbor lists of several blocks of structures, one block after the other, without copies.

    Parameters
    ----------
    blocks : sequence of Edges
        At least one, all of the same cutoff and k.
    reopen : callable, optional
        Makes the same in another process.
    """
    first = blocks[0]
    starts = starts_of(torch.cat([b.starts.diff() for b in blocks]).tolist())
    width = next((b.shift.shape[1] for b in blocks if b.shift is not None), None)
    shift, shifted = None, None
    if width is not None:
        none = torch.zeros((), dtype=torch.int8)
        shift = Chain([none.expand(len(b.edge_index), width) if b.shift is None else b.shift for b in blocks])
        shifted = torch.cat([_shifted(b) for b in blocks])
    features = [b.edge_attr for b in blocks if b.edge_attr is not None]
    return Edges(
        starts,
        Chain([b.edge_index for b in blocks]),
        shift,
        shifted,
        first.cutoff,
        first.k,
        Chain(features) if features else None,
        reopen,
    )


def joined_edges(blocks: Sequence[Edges]) -> Edges:
    """The neighbor lists of several blocks of structures, one block after the other, as tensors of their own.

    Parameters
    ----------
    blocks : sequence of Edges
        At least one, all of the same cutoff and k.
    """
    if len(blocks) == 1:
        return blocks[0]
    found = chained_edges(blocks)
    tables = {name: getattr(found, name) for name in ("edge_index", "shift", "edge_attr")}
    return replace(found, **{name: table[:] for name, table in tables.items() if table is not None})


def _shifted(edges: Edges) -> Tensor:
    """Which structures have lattice steps."""
    if edges.shifted is not None:
        return edges.shifted
    return torch.full((len(edges.starts) - 1,), edges.shift is not None)


def edges_if_alike(graphs: Sequence[Graph]) -> Edges | None:
    """The neighbor lists of graphs; None if they do not have them all in the same way.

    Parameters
    ----------
    graphs : sequence of Graph
        Single structures.
    """
    first = graphs[0]
    cutoff, k = first.cutoff, first.k
    if cutoff is None or any(
        g.edge_index is None or g.cutoff != cutoff or g.k != k or g.real is not None for g in graphs
    ):
        return None
    if len({g.edge_attr is None for g in graphs}) > 1:
        return None
    indices = [g.edge_index for g in graphs if g.edge_index is not None]
    kind = torch.int16 if max(g.num_nodes for g in graphs) < 2**15 else torch.int32
    index = torch.cat([i.to(kind) for i in indices], 1).t().contiguous()
    shift, shifted = None, None
    if any(g.shift is not None for g in graphs):
        steps = [
            i.new_zeros(i.shape[1], g.dim) if g.shift is None else g.shift for i, g in zip(indices, graphs)
        ]
        largest = max((int(s.abs().max()) for s in steps if s.numel()), default=0)
        small = torch.int8 if largest < 2**7 else torch.int32
        shift = torch.cat([s.to(small) for s in steps])
        shifted = torch.tensor([g.shift is not None for g in graphs])
    attr = None
    if first.edge_attr is not None:
        attr = torch.cat([g.edge_attr for g in graphs if g.edge_attr is not None])
    return Edges(starts_of([i.shape[1] for i in indices]), index, shift, shifted, cutoff, k, attr)
