"""A neighbor list with a skin, for any simulation engine."""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.neighbors import connect, on_edges

ArrayLike = Any  # a tensor, an array, a list or None


class NeighborList:
    """Edges of a structure that moves; they are searched again only when an atom has moved half the skin.

    Edges are searched up to ``cutoff + skin`` (Verlet, Phys. Rev. 159, 98, 1967). While no atom has moved farther than half the
    skin, no pair can have come closer than the cutoff without being in the list. A change of the elements, the cell or the periodic
    directions starts a new search; a change of other fields does not.

    Parameters
    ----------
    cutoff : float or None
        Distance in Å up to which a model needs edges; None joins all pairs.
    skin : float
        Additional distance in Å, zero or more. Zero searches after every movement.

    Attributes
    ----------
    searches : int
        Number of searches so far.

    Raises
    ------
    ModelError
        If the cutoff or the skin is not a distance.

    Examples
    --------
    >>> neighbors = NeighborList(cutoff=4.0, skin=0.5)
    >>> positions = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    >>> neighbors(positions, [1, 8]).edge_index.tolist()
    [[1, 0], [0, 1]]
    >>> _ = neighbors(positions + 0.1, [1, 8])
    >>> neighbors.searches
    1
    """

    def __init__(self, cutoff: float | None, skin: float = 0.5):
        if cutoff is not None and not (_is_number(cutoff) and cutoff > 0):
            raise ModelError(f"cutoff={cutoff!r}: wanted a distance in Å above zero, or None for all pairs")
        self.cutoff = None if cutoff is None else float(cutoff)
        self.skin = skin
        self.searches = 0
        self._key: tuple = ()
        self._fields: tuple = ()
        self._graph: Graph | None = None

    @property
    def skin(self) -> float:
        """Additional distance in Å; a new value starts a new search."""
        return self._skin

    @skin.setter
    def skin(self, value: float) -> None:
        if not (_is_number(value) and value >= 0):
            raise ModelError(f"skin={value!r}: wanted a distance in Å, zero or more")
        self._skin = float(value)

    def __call__(
        self,
        positions: ArrayLike,
        numbers: ArrayLike = None,
        *,
        cell: ArrayLike = None,
        pbc: ArrayLike = None,
        trim: bool = True,
        **fields: ArrayLike,
    ) -> Graph:
        """The structure as a graph with edges.

        Parameters
        ----------
        positions : tensor or array, shape (N, D)
            Positions in Å. The graph is on the device of the tensor.
        numbers : tensor or array, shape (N,), optional
            Atomic numbers or symbols; None for points without element.
        cell : tensor or array, shape (D, D), optional
            Lattice vectors in Å, one in each row.
        pbc : bool or array, shape (D,), optional
            Periodic directions.
        trim : bool
            Remove edges beyond the cutoff. With False the edges of the skin stay; a model whose envelope ends at the cutoff gives the
            same results.
        **fields : tensor or array
            Other fields of `Graph.single`, such as ``charge`` and ``spin``.

        Returns
        -------
        Graph
            One connected structure.

        Raises
        ------
        DataError
            If `Graph.single` or `connect` refuses the structure.
        """
        pos = _float64(positions)
        key = (self.cutoff, self._skin, pos.device, *map(_content, (numbers, cell, pbc)))
        given = tuple((name, _content(value)) for name, value in fields.items())
        search = self._graph is None or key != self._key or self._moved(pos)
        if search or given != self._fields:
            graph = Graph.single(
                pos.detach().cpu().clone(),
                _on_cpu(numbers),
                cell=_on_cpu(cell),
                pbc=_on_cpu(pbc),
                **{name: _on_cpu(value) for name, value in fields.items()},
            )
            graph = self._search(graph).to(pos.device) if search else self._reuse(graph.to(pos.device))
            self._key, self._fields, self._graph = key, given, graph
            self.searches += search
        graph = self._graph.replace(pos=pos)
        return remove_far_edges(graph, self.cutoff) if trim and self.cutoff is not None else graph

    def _search(self, graph: Graph) -> Graph:
        return connect(graph, None if self.cutoff is None else self.cutoff + self._skin)

    def _reuse(self, graph: Graph) -> Graph:
        """The graph with the edges of the last search, and still the positions of that search."""
        last = self._graph
        graph = graph.replace(pos=last.pos, edge_index=last.edge_index, shift=last.shift, cutoff=last.cutoff)
        return (
            graph if graph.pair_index is None else graph.replace(edge_attr=on_edges(graph, graph.edge_index))
        )

    def _moved(self, pos: Tensor) -> bool:
        """Whether the list may miss a neighbor: an atom has moved half the skin, or a position is not finite."""
        if pos.shape != self._graph.pos.shape:
            return True
        farthest = float((pos.detach() - self._graph.pos).square().sum(1).max())
        return not farthest <= (self._skin / 2) ** 2


def remove_far_edges(graph: Graph, cutoff: float) -> Graph:
    """A graph without the edges that are as long as the cutoff (Å) or longer."""
    near = graph.edge_vectors().detach().square().sum(1) < cutoff**2
    edge_index = graph.edge_index[:, near]
    return graph.replace(
        edge_index=edge_index,
        shift=None if graph.shift is None else graph.shift[near],
        edge_attr=None if graph.pair_index is None else on_edges(graph, edge_index),
        cutoff=cutoff,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _float64(positions: ArrayLike) -> Tensor:
    if isinstance(positions, Tensor):
        return positions.to(torch.float64)
    return torch.from_numpy(np.array(positions, dtype=np.float64))


def _on_cpu(value: ArrayLike) -> ArrayLike:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _content(value: ArrayLike) -> tuple | None:
    """Shape, type and bytes of an array, to compare it later even if the caller changes it in place."""
    if value is None:
        return None
    array = np.asarray(_on_cpu(value))
    return array.shape, array.dtype.str, array.tobytes()
