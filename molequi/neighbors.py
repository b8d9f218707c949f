"""The only neighbour search: complete, never truncated, sorted by receiver."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.errors import DataError
from molequi.graph import Graph, separate

TIE = 1e-9  # of a distance: two that differ by less are equally far
REACH = 1000  # cutoffs: vesin bins space in cells of a cutoff, and runs out of integers on structures that are much longer


def connect(graph: Graph, cutoff: float | None, k: int | None = None) -> Graph:
    """Edges between all pairs closer than `cutoff` (Å), periodic images included; None joins all pairs.

    k: only edges from the k nearest nodes to each, and from all others that are exactly as far as the k-th (to 1e-9 of the distance),
    so that the result does not depend on the order of the nodes; from all where there are fewer. Not for periodic structures.
    What is given of pairs of nodes (`Graph.pair_attr`) comes along as `edge_attr`, with zeros on the edges between other pairs.

    Periodic structures are searched by vesin, others by scipy's k-d tree. Any mixture of periodic directions, and cells
    smaller than the cutoff, where an atom may meet several images of another and of itself. Raises DataError for a
    cutoff that is not positive, for all pairs of a periodic structure, for one that is absurdly thick where it is not periodic, and for
    given pairs that are no edges.
    """
    if cutoff is not None and not (math.isfinite(cutoff) and cutoff > 0):
        raise DataError(f"cutoff {cutoff}: wanted a positive distance, or None for all pairs")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise DataError(f"k {k!r}: wanted a positive number of neighbours, or None for all within the cutoff")
    indices, shifts, start = [], [], 0
    for part in separate(
        graph.replace(
            edge_index=None, shift=None, edge_attr=None, pair_index=None, pair_attr=None, targets={}
        )
    ):
        senders, receivers, shift = _search(part, cutoff, k)
        indices.append(np.stack([senders, receivers]) + start)
        shifts.append(shift)
        start += part.num_nodes
    device = graph.pos.device
    periodic = graph.pbc is not None
    edge_index = torch.from_numpy(np.concatenate(indices, axis=1)).to(device)
    return graph.replace(
        edge_index=edge_index,
        shift=torch.from_numpy(np.concatenate(shifts)).to(device=device, dtype=graph.pos.dtype)
        if periodic
        else None,
        edge_attr=None if graph.pair_index is None else on_edges(graph, edge_index),
        cutoff=math.inf if cutoff is None else float(cutoff),
        k=k,
    )


def on_edges(graph: Graph, edge_index: Int[Tensor, "2 E"]) -> Float[Tensor, "E A"]:
    """What is given of pairs of nodes, on the edges; raises DataError for a pair that is no edge, whose values would be lost."""
    if graph.pbc is not None:
        raise DataError(
            "pair_attr of a periodic structure: a pair of atoms has many images, and which is meant is not said; "
            "leave the pairs out, or say pbc=False"
        )
    n = graph.num_nodes
    edges = edge_index[1] * n + edge_index[0]  # ascending, since sorted by receiver, then sender
    pairs = graph.pair_index[1] * n + graph.pair_index[0]
    at = torch.searchsorted(edges, pairs)
    there = (
        edges[at.clamp(max=max(len(edges) - 1, 0))] == pairs
        if len(edges)
        else torch.zeros_like(pairs, dtype=torch.bool)
    )
    if not bool(there.all()):
        j, i = graph.pair_index[:, ~there][:, 0].tolist()
        length = float((graph.pos[j] - graph.pos[i]).norm())
        raise DataError(
            f"nodes {j} and {i} are a pair with given values (pair_attr) and {length:.3g} apart, which is no edge; "
            "take a longer cutoff or a larger k (None: all pairs)"
        )
    out = graph.pair_attr.new_zeros(len(edges), graph.pair_attr.shape[1])
    out[at] = graph.pair_attr
    return out


def _nearest(pos: np.ndarray, cutoff: float | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Receivers and senders of the k nearest, ties included."""
    from scipy.spatial import cKDTree

    tree = cKDTree(pos)
    far = tree.query(pos, k=[min(k + 1, len(pos))])[0][:, 0] * (
        1 + TIE
    )  # the nearest of all is the node itself, or one on top of it
    if cutoff is not None:
        far = np.minimum(far, cutoff)
    near = tree.query_ball_point(pos, far, return_sorted=True)
    i = np.repeat(np.arange(len(pos)), [len(row) for row in near])
    j = np.concatenate([np.asarray(row, dtype=np.int64) for row in near])
    return i[i != j], j[i != j]


def _search(part: Graph, cutoff: float | None, k: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Senders, receivers and lattice steps of one structure, sorted by receiver, then sender, then step."""
    pos = part.pos.detach().cpu().numpy()
    n, dim = pos.shape
    if not np.isfinite(pos).all():
        raise DataError(
            f"position of atom {int(np.argwhere(~np.isfinite(pos))[0, 0])} is not finite; neighbours are undefined"
        )
    periodic = part.pbc is not None and bool(part.pbc.any())
    if periodic and k is not None:
        raise DataError(
            f"k={k} nearest of a periodic structure: they are for point clouds; give a cutoff instead"
        )
    if periodic and cutoff is None:
        raise DataError("all pairs of a periodic structure are infinitely many; give a cutoff")
    if k is not None:
        i, j = _nearest(pos, cutoff, k)
        return j, i, np.zeros((len(i), dim))
    if cutoff is None:
        i, j = np.nonzero(~np.eye(n, dtype=bool))
        return j, i, np.zeros((len(i), dim))
    if not periodic:
        from scipy.spatial import cKDTree

        pairs = cKDTree(pos).query_pairs(cutoff, output_type="ndarray")
        i, j = np.concatenate([pairs, pairs[:, ::-1]]).T.astype(np.int64)
        shift = np.zeros((len(i), dim))
    elif dim != 3:
        raise DataError(f"periodic structures are supported in 3 dimensions, not in {dim}")
    else:
        from vesin import NeighborList

        flags = part.pbc[0].cpu().numpy()
        cell = _filled(part.cell[0].detach().cpu().numpy(), flags)
        along = np.ptp(pos @ cell[~flags].T, axis=0)  # unit vectors in the directions without images
        if (along > REACH * cutoff).any():
            raise DataError(
                f"a periodic structure {along.max():.3g} Å thick, at a cutoff of {cutoff:g} Å: have its atoms flown apart?"
            )
        search = NeighborList(cutoff=float(cutoff), full_list=True, n_threads=1)
        i, j, shift = search.compute(pos, cell, flags, quantities="ijS")
        i, j, shift = i.astype(np.int64), j.astype(np.int64), shift.astype(np.float64)
    order = np.lexsort((*shift.T[::-1], j, i))
    return j[order], i[order], shift[order]


def _filled(cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """The cell with directions that are not periodic replaced by unit normals to the others (they carry no images)."""
    if periodic.all() or not periodic.any():
        return cell
    rows = cell.copy()
    rows[~periodic] = 0.0
    _, _, complement = np.linalg.svd(rows[periodic])
    rows[~periodic] = complement[periodic.sum() :]
    return rows


def regular(graph: Graph, *, nodes: int = 0, graphs: int = 0, degree: int = 1) -> Graph:
    """The same structures with equally many edges into every node, filled up with edges that carry nothing, and with the way back along each.

    nodes: so many nodes without neighbours are added at the end, each a graph of its own. graphs: so many empty ones besides. degree: at least
    so many edges a node. Shapes then hardly change from one structure to the next, sums over edges are sums over an axis, and derivatives of
    gathers are gathers: what a compiler wants. The edges of a node stay in their order. Targets and given pairs of nodes are left out. Raises DataError for a graph without edges yet.
    """
    return Layout(graph, nodes=nodes, degree=degree).fill(graph, graphs=graphs)


class Layout:
    """Where the edges of a graph stand in a regular one; it serves for as long as they join the same nodes."""

    def __init__(self, graph: Graph, *, nodes: int = 0, degree: int = 1):
        if graph.edge_index is None:
            raise DataError("this graph has no edges yet; call connect(graph, cutoff) first")
        self.edges, self.shift, self.k = _copy(graph.edge_index), _copy(graph.shift), graph.k
        self.order = _order(graph)
        j, i = graph.edge_index if self.order is None else graph.edge_index[:, self.order]
        self.rows, n, device = graph.num_nodes, graph.num_nodes, graph.pos.device
        counts = torch.bincount(i, minlength=n)
        self.needed = int(counts.max())
        degree = max(degree, self.needed)
        self.nodes, self.degree = nodes, degree
        total = n + nodes
        slot = torch.arange(len(i), device=device) + (
            torch.arange(n, device=device) * degree - counts.cumsum(0) + counts
        ).index_select(0, i)
        sender = torch.arange(total, device=device).repeat_interleave(degree)
        receiver = sender.clone()
        sender[slot] = j
        self.slot, self.edge_index = slot, torch.stack([sender, receiver])
        real = torch.zeros(total * degree, dtype=torch.bool, device=device)
        real[slot] = True
        self.real = real.reshape(total, degree)
        back = (
            _reverse(j, i, None if graph.shift is None else self._sorted(graph.shift), n)
            if graph.k is None
            else None
        )
        self.reverse = None
        if back is not None:
            reverse = torch.arange(total * degree, device=device)
            reverse[slot] = slot[back]
            self.reverse = reverse.reshape(total, degree)

    def serves(self, graph: Graph) -> bool:
        """Whether these are the edges that it was made for."""
        return (
            graph.num_nodes == self.rows
            and graph.k == self.k
            and _same(self.edges, graph.edge_index)
            and _same(self.shift, graph.shift)
        )

    def fill(self, graph: Graph, *, graphs: int = 0) -> Graph:
        """The regular graph of one with these edges."""
        n, total, nodes = self.rows, self.rows + self.nodes, self.nodes
        graphs += graph.num_graphs + nodes

        def filled(value: Tensor | None, rows: int, at: Tensor | None = None) -> Tensor | None:
            if value is None:
                return None
            out = value.new_zeros(rows, *value.shape[1:])
            out[slice(len(value)) if at is None else at] = value
            return out

        given = {name: filled(getattr(graph, name), total) for name in ("pos", "vel", "vec", "x")}
        given |= {name: filled(getattr(graph, name), graphs) for name in ("cell", "pbc", "charge", "spin")}
        for name in ("shift", "edge_attr"):
            value = getattr(graph, name)
            given[name] = (
                None if value is None else filled(self._sorted(value), total * self.degree, self.slot)
            )
        z = filled(graph.z, total)
        z[n:] = graph.z[0]
        batch = filled(graph.batch, total)
        batch[n:] = torch.arange(graph.num_graphs, graph.num_graphs + nodes, device=batch.device)
        return Graph(
            z=z,
            batch=batch,
            num_graphs=graphs,
            edge_index=self.edge_index,
            real=self.real,
            reverse=self.reverse,
            cutoff=graph.cutoff,
            k=graph.k,
            **given,
        )

    def _sorted(self, value: Tensor) -> Tensor:
        return value if self.order is None else value[self.order]


def _copy(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().clone()


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Of the same values, none compared with none."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


def _order(graph: Graph) -> Int[Tensor, "E"] | None:
    """By receiver; None if they stand so, as `connect` gives them. Edges of another origin may not."""
    receiver = graph.edge_index[1]
    return None if bool((receiver[1:] >= receiver[:-1]).all()) else torch.argsort(receiver, stable=True)


def _reverse(
    j: Int[Tensor, "E"], i: Int[Tensor, "E"], shift: Float[Tensor, "E D"] | None, n: int
) -> Int[Tensor, "E"] | None:
    """Index of the edge in the other direction; None if one has none."""
    here, back = i * n + j, j * n + i
    if shift is not None and len(i):
        steps = shift.to(torch.int64)
        reach = int(steps.abs().max())
        base = 2 * reach + 1
        code = torch.tensor([base**2, base, 1], device=steps.device)
        size = base**3
        here = here * size + ((steps + reach) * code).sum(1)
        back = back * size + ((reach - steps) * code).sum(1)
    order = torch.argsort(back)
    if bool((here[1:] <= here[:-1]).any()) or not torch.equal(back[order], here):
        return None
    reverse = torch.empty_like(order)
    reverse[order] = torch.arange(len(order), device=order.device)
    return reverse
