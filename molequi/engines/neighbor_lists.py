"""Edges of a batch of structures that are kept while atoms move, cells strain and engines wrap atoms."""

import math

import torch
from torch import Tensor

from molequi.errors import ModelError
from molequi.graph import Graph, separate
from molequi.interfaces.neighbor_list import list_holds, strain_since
from molequi.neighbors import connect


class BatchNeighborList:
    """A neighbor list with a skin for batches. Only structures whose list is no longer valid are searched.

    `molequi.interfaces.NeighborList` does this for one structure, also in a cell that strains. Here a list
    survives one more thing that engines do: atoms that were moved by lattice vectors are moved back.

    Parameters
    ----------
    cutoff : float or None
        Distance in Å up to which a model needs edges; None joins all pairs.
    skin : float, >= 0
        Additional distance in Å.

    Attributes
    ----------
    searches : int
        Number of searched structures so far.

    Raises
    ------
    ModelError
        If the skin is not a distance.

    Examples
    --------
    >>> neighbors = BatchNeighborList(cutoff=4.0, skin=0.5)
    >>> cell = [[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]
    >>> _ = neighbors(Graph.single([[0, 0, 0], [1.0, 0, 0]], ["H", "O"], cell=cell, pbc=True))
    >>> wrapped = Graph.single([[9.0, 0.1, 0], [1.0, 0, 0]], ["H", "O"], cell=cell, pbc=True)
    >>> neighbors(wrapped).pos[0].tolist(), neighbors.searches
    ([0.0, 0.1, 0.0], 1)
    """

    def __init__(self, cutoff: float | None, skin: float = 0.5) -> None:
        if isinstance(skin, bool) or not (
            isinstance(skin, (int, float)) and math.isfinite(skin) and skin >= 0
        ):
            raise ModelError(f"skin={skin!r}: wanted a distance in Å, zero or more")
        self.cutoff, self.skin = cutoff, float(skin)
        self.searches = 0
        self._last: Graph | None = None
        self._edges: list[tuple[Tensor, Tensor | None]] = []
        self._joined: tuple[Tensor, Tensor | None] = (torch.empty(2, 0), None)

    def __call__(self, graph: Graph) -> Graph:
        """The same structures with edges, and with atoms moved back by lattice vectors to where they were.

        Parameters
        ----------
        graph : Graph
            Structures without edges.

        Returns
        -------
        Graph
            With the edges of the skin.

        Raises
        ------
        DataError
            As `molequi.connect` does.
        """
        graph, valid = self._compared(graph)
        if not all(valid) or not valid:
            reach = None if self.cutoff is None else self.cutoff + self.skin
            parts = separate(graph.replace(targets={}))
            found = []
            for k, part in enumerate(parts):
                if valid and valid[k]:
                    found.append(self._edges[k])
                    continue
                connected = connect(part, reach)
                assert connected.edge_index is not None
                found.append((connected.edge_index, connected.shift))
                self.searches += 1
            self._edges, self._joined = found, _joined(found, graph)
            self._last = self._reference(graph, valid)
        index, shift = self._joined
        return graph.replace(
            edge_index=index, shift=shift, cutoff=math.inf if self.cutoff is None else self.cutoff + self.skin
        )

    def _reference(self, graph: Graph, valid: list[bool]) -> Graph:
        """Positions and cells of the last search of each structure."""
        if self._last is None or not any(valid):
            return graph
        kept = torch.tensor(valid, device=graph.pos.device)
        pos = torch.where(kept[graph.batch][:, None], self._last.pos, graph.pos)
        if graph.cell is None or self._last.cell is None:
            return graph.replace(pos=pos)
        return graph.replace(pos=pos, cell=torch.where(kept[:, None, None], self._last.cell, graph.cell))

    def _compared(self, graph: Graph) -> tuple[Graph, list[bool]]:
        """The structures with atoms moved back, and whose lists hold; an empty list if these are others."""
        last = self._last
        if last is None or not _same(graph, last):
            return graph, []
        strain, holds = strain_since(graph, last)
        moved = graph.pos - torch.einsum("nd,ndk->nk", last.pos, strain[graph.batch])
        if graph.cell is not None and graph.pbc is not None:
            rows = _cells(graph)
            steps = torch.einsum("nd,ndk->nk", moved, torch.linalg.inv(rows)[graph.batch]).round()
            steps = torch.where(graph.pbc[graph.batch], steps, 0.0)
            back = torch.einsum("nd,ndk->nk", steps, rows[graph.batch])
            graph, moved = graph.replace(pos=graph.pos - back), moved - back
        if self.cutoff is None:
            return graph, [True] * graph.num_graphs
        far = moved.new_zeros(graph.num_graphs).scatter_reduce(
            0, graph.batch, moved.square().sum(1), "amax", include_self=True
        )
        return graph, (holds & list_holds(strain, far.sqrt(), self.cutoff, self.skin)).tolist()


def _same(graph: Graph, last: Graph) -> bool:
    """Whether these are the structures of the last search, moved."""
    if graph.num_graphs != last.num_graphs or graph.num_nodes != last.num_nodes:
        return False
    if graph.pos.device != last.pos.device or (graph.pbc is None) != (last.pbc is None):
        return False
    return (
        torch.equal(graph.z, last.z)
        and torch.equal(graph.batch, last.batch)
        and (graph.pbc is None or last.pbc is None or torch.equal(graph.pbc, last.pbc))
    )


def _cells(graph: Graph) -> Tensor:
    """Lattice vectors; unit vectors in directions that are not periodic, so that there is an inverse."""
    assert graph.cell is not None and graph.pbc is not None
    rows = torch.where(graph.pbc[:, :, None], graph.cell, 0.0)
    if bool(graph.pbc.all()):
        return rows
    # The complement of the periodic rows: normals from the full set of right singular vectors.
    filled = rows.clone()
    for k in (~graph.pbc.all(1)).nonzero().flatten().tolist():
        periodic = graph.pbc[k]
        normals = (
            torch.linalg.svd(rows[k][periodic])[2]
            if bool(periodic.any())
            else torch.eye(graph.dim, dtype=rows.dtype, device=rows.device)
        )
        filled[k, ~periodic] = normals[int(periodic.sum()) :]
    return filled


def _joined(found: list[tuple[Tensor, Tensor | None]], graph: Graph) -> tuple[Tensor, Tensor | None]:
    """Edges of all structures as those of one batch."""
    starts = (graph.counts.cumsum(0) - graph.counts).tolist()
    index = torch.cat([edges + start for (edges, _), start in zip(found, starts)], dim=1)
    shifts = [shift for _, shift in found if shift is not None]
    return index, torch.cat(shifts) if shifts else None
