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
_LEAST = 1e-8  # Å^3; a cell with less has no volume


class NeighborList:
    """A neighbor list that is kept while atoms move, and made again when one has moved half the skin.

    Edges are searched up to ``cutoff + skin`` (Verlet, Phys. Rev. 159, 98, 1967). While no atom has moved
    farther than half the skin, no pair can have come closer than the cutoff without being in the list.

    A cell that strains (barostats, relaxations of cells) deforms the positions of the search with it: if F
    maps the old cell to the new one, a pair outside the list stays farther apart than
    ``(cutoff + skin) s - 2 d``, where s is the smallest singular value of F and d the largest displacement
    beyond F. The list holds as long as this is at least the cutoff. A change of the elements or the periodic
    directions starts a new search, and so does that of a cell which is not periodic in all directions; a
    change of other fields does not.

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
        self._cell: tuple[object, ...] | None = None
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
        key = (self.cutoff, self._skin, pos.device, *map(_content, (numbers, pbc)))
        given = tuple((name, _content(value)) for name, value in fields.items())
        last, box = self._valid_graph(key, pos, cell)
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
            if new:  # with a cell of its own: ASE changes cells in place
                last = last if last.cell is None else last.replace(cell=last.cell.clone())
                self._cell = _content(cell)
            self._key, self._fields, self._graph = key, given, last
            self.searches += new
        graph = last.replace(pos=pos) if box is None else last.replace(pos=pos, cell=box)
        return remove_far_edges(graph, self.cutoff) if trim and self.cutoff is not None else graph

    def _search(self, graph: Graph) -> Graph:
        return connect(graph, None if self.cutoff is None else self.cutoff + self._skin)

    def _valid_graph(
        self, key: tuple[object, ...], pos: Tensor, cell: ArrayLike | None
    ) -> tuple[Graph | None, Tensor | None]:
        """The graph of the last search, or None if its edges do not hold for these positions; and the cell,
        if it is another one.
        """
        last = self._graph
        if last is None or key != self._key or pos.shape != last.pos.shape:
            return None, None
        if _content(cell) == self._cell:
            # Not for a position that is not finite, either.
            farthest = float((pos.detach() - last.pos).square().sum(1).max())
            return (last if farthest <= (self._skin / 2) ** 2 else None), None
        if cell is None or last.cell is None or self.cutoff is None:
            return None, None
        box = _float64(cell).detach().to(pos.device)
        if box.shape != last.cell.shape[1:] or not bool(torch.isfinite(box).all()):
            return None, None
        strain, follows = strain_since(last.replace(cell=box[None]), last)
        far = (pos.detach() - last.pos @ strain[0]).square().sum(1).max().sqrt()
        holds = follows & list_holds(strain, far, self.cutoff, self._skin)
        return (last, box[None]) if bool(holds) else (None, None)


def strain_since(graph: Graph, last: Graph) -> tuple[Tensor, Tensor]:
    """How each cell was deformed since its search, and whether a list can follow it.

    Parameters
    ----------
    graph, last : Graph
        The structures now, and those of the search.

    Returns
    -------
    strain : Tensor, shape (G, D, D)
        F of each structure: ``old_cell @ F`` is the new cell.
    follows : Tensor, shape (G,)
        False where another cell is not periodic in all directions, or the old one has no volume.
    """
    eye = torch.eye(graph.dim, dtype=graph.pos.dtype, device=graph.pos.device).expand(
        graph.num_graphs, -1, -1
    )
    always = torch.ones(graph.num_graphs, dtype=torch.bool, device=graph.pos.device)
    if graph.cell is None or last.cell is None or graph.pbc is None:
        return eye, always
    if torch.equal(graph.cell, last.cell):
        return eye, always
    solid = graph.pbc.all(1) & (torch.linalg.det(last.cell).abs() > _LEAST)
    old = torch.where(solid[:, None, None], last.cell, eye)
    new = torch.where(solid[:, None, None], graph.cell, eye)
    return torch.linalg.solve(old, new), solid | (graph.cell == last.cell).flatten(1).all(1)


def list_holds(strain: Tensor, farthest: Tensor, cutoff: float, skin: float) -> Tensor:
    """Whether all pairs within the cutoff are in the list of a search, see `NeighborList`.

    Parameters
    ----------
    strain : Tensor, shape (G, D, D)
        As `strain_since` gives it.
    farthest : Tensor, shape (G,)
        Largest displacement beyond the strain, in Å.
    cutoff, skin : float
        In Å. Without a skin nothing may have moved: no edge is longer than the cutoff.
    """
    if not skin:
        unit = torch.eye(strain.shape[-1], dtype=strain.dtype, device=strain.device)
        return (strain == unit).flatten(1).all(1) & (farthest == 0)
    return (cutoff + skin) * torch.linalg.svdvals(strain)[:, -1] - 2 * farthest >= cutoff


def _reuse(graph: Graph, last: Graph) -> Graph:
    """A graph with positions, cell and edges of the last search."""
    graph = graph.replace(
        pos=last.pos, cell=last.cell, edge_index=last.edge_index, shift=last.shift, cutoff=last.cutoff
    )
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
