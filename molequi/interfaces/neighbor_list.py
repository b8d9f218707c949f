"""A neighbor list with a skin, for any simulation engine."""

import math
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.neighbors import connect, on_edges, remove_far_edges

ArrayLike = Tensor | npt.ArrayLike


class NeighborList:
    """A neighbor list that is kept while atoms move, and made again when one has moved half the skin.

    Edges are searched up to ``cutoff + skin`` (Verlet, Phys. Rev. 159, 98, 1967). While no atom has moved
    farther than half the skin, no pair can have come closer than the cutoff without being in the list. A
    change of the elements, the cell or the periodic directions starts a new search; a change of other fields
    does not.

    Parameters
    ----------
    cutoff : float or None
        Distance in Å up to which a model needs edges; None joins all pairs.
    skin : float, >= 0
        Additional distance in Å. Zero searches after every movement.

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

    def __init__(self, cutoff: float | None, skin: float = 0.5) -> None:
        if cutoff is not None and not (_is_number(cutoff) and cutoff > 0):
            raise ModelError(f"cutoff={cutoff!r}: wanted a distance in Å above zero, or None for all pairs")
        self.cutoff = None if cutoff is None else float(cutoff)
        self.skin = skin
        self.searches = 0
        self._key: tuple[object, ...] = ()
        self._fields: tuple[object, ...] = ()
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
        numbers: ArrayLike | None = None,
        *,
        cell: ArrayLike | None = None,
        pbc: ArrayLike | None = None,
        trim: bool = True,
        **fields: ArrayLike | None,
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
            Remove edges beyond the cutoff. With False the edges of the skin stay. A model whose envelope is
            zero at the cutoff gives the same results with them.
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
        last = self._valid_graph(key, pos)
        if last is None or given != self._fields:
            values: dict[str, Any] = {name: _on_cpu(value) for name, value in fields.items()}
            graph = Graph.single(
                pos.detach().cpu().clone(),
                _on_cpu(numbers),
                cell=_on_cpu(cell),
                pbc=_on_cpu(pbc),
                **values,
            )
            new = last is None
            last = self._search(graph).to(pos.device) if last is None else _reuse(graph.to(pos.device), last)
            self._key, self._fields, self._graph = key, given, last
            self.searches += new
        graph = last.replace(pos=pos)
        return remove_far_edges(graph, self.cutoff) if trim and self.cutoff is not None else graph

    def _search(self, graph: Graph) -> Graph:
        return connect(graph, None if self.cutoff is None else self.cutoff + self._skin)

    def _valid_graph(self, key: tuple[object, ...], pos: Tensor) -> Graph | None:
        """The graph of the last search; None if its edges do not hold for these positions."""
        last = self._graph
        if last is None or key != self._key or self._moved(pos, last.pos):
            return None
        return last

    def _moved(self, pos: Tensor, before: Tensor) -> bool:
        """Whether an atom has moved half the skin, or a position is not finite."""
        if pos.shape != before.shape:
            return True
        farthest = float((pos.detach() - before).square().sum(1).max())
        return not farthest <= (self._skin / 2) ** 2


def _reuse(graph: Graph, last: Graph) -> Graph:
    """A graph with positions and edges of the last search."""
    graph = graph.replace(pos=last.pos, edge_index=last.edge_index, shift=last.shift, cutoff=last.cutoff)
    if graph.pair_index is None or graph.edge_index is None:
        return graph
    return graph.replace(edge_attr=on_edges(graph, graph.edge_index))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _float64(positions: ArrayLike) -> Tensor:
    if isinstance(positions, Tensor):
        return positions.to(torch.float64)
    return torch.from_numpy(np.array(positions, dtype=np.float64))


def _on_cpu(value: ArrayLike | None) -> ArrayLike | None:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _content(value: ArrayLike | None) -> tuple[object, ...] | None:
    """Shape, type and bytes of an array, to compare it later even if the caller changes it in place."""
    if value is None:
        return None
    array = np.asarray(_on_cpu(value))
    return array.shape, array.dtype.str, array.tobytes()
