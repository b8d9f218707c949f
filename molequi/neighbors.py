"""The neighbor search: complete, never truncated, sorted by receiver."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molequi.errors import DataError
from molequi.graph import Graph, separate
from molequi.ops.sampling import TIE
from molequi.util.signature import check_keywords

ROUNDOFF = 1e-9  # relative, of images at the border of what is searched
# Largest thickness in cutoffs: vesin bins space in cells of a cutoff, and its integers overflow beyond.
REACH = 1000
BINS = 20_000  # more bins than that vesin makes larger, and divides by zero where one direction has too few
MOST_IMAGES = 1e7  # of a cell, which are looked at one by one
MOST_NEIGHBORS = 1e5  # of an atom; matter has 50 within 5 Å
LOST = 1e-7  # largest distance of neighboring float64 numbers at the positions, in cutoffs


@check_keywords()
def connect(graph: Graph, cutoff: float | None, k: int | None = None) -> Graph:
    """Edges between all pairs of nodes that are closer than a cutoff, periodic images included.

    Vesin searches periodic structures, a k-d tree of SciPy all others. Any mixture of periodic directions is
    allowed, and cells smaller than the cutoff, where an atom meets several images of another and of itself.
    The features of pairs (`Graph.pair_attr`) become features of edges (``edge_attr``), with zeros on the
    edges between other pairs.

    Parameters
    ----------
    graph : Graph
        Structures with or without edges; old edges are replaced.
    cutoff : float or None
        Distance in Å. None joins all pairs.
    k : int
        Only edges from the k nearest nodes to each node, and from all others that are as far as the k-th
        (to 1e-5 of the distance, more than the round-off of positions in float32), so that the result depends
        neither on the order of the nodes nor, in symmetric clouds, on the orientation. Not for periodic
        structures.

    Returns
    -------
    Graph
        The same structures with edges, sorted by receiver.

    Raises
    ------
    DataError
        If the cutoff is not positive, if all pairs of a periodic structure are asked for, if a periodic
        structure is extremely thick in a direction without periodicity, if positions are so far from the
        origin that they have lost their digits, if the edges would not fit into memory, or if a pair with
        features is no edge.

    Examples
    --------
    >>> water = Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> connect(water, 1.2).edge_index.tolist()
    [[1, 2, 0, 0], [0, 0, 1, 2]]
    """
    if cutoff is not None and not (math.isfinite(cutoff) and cutoff > 0):
        raise DataError(f"cutoff {cutoff}: wanted a positive distance, or None for all pairs")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise DataError(f"k {k!r}: wanted a positive number of neighbors, or None for all within the cutoff")
    graph = graph.without("edge")
    indices, shifts, start = [], [], 0
    for part in separate(graph.without("pair").replace(targets={})):
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
        edge_attr=on_edges(graph, edge_index),
        cutoff=math.inf if cutoff is None else float(cutoff),
        k=k,
    )


def on_edges(graph: Graph, edge_index: Int[Tensor, "2 E"]) -> Float[Tensor, "E A"] | None:
    """The features of pairs of nodes, on the edges; None without such features.

    Raises DataError for a pair that is no edge, because its features would be lost.
    """
    if graph.pair_index is None or graph.pair_attr is None:
        return None
    if graph.pbc is not None:
        raise DataError(
            "pair_attr of a periodic structure: a pair of atoms has many images, and which is meant is not "
            "said; "
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
            f"nodes {j} and {i} are a pair with features (pair_attr) and {length:.3g} apart, which is no "
            "edge; "
            "take a longer cutoff or a larger k (None: all pairs)"
        )
    out = graph.pair_attr.new_zeros(len(edges), graph.pair_attr.shape[1])
    out[at] = graph.pair_attr
    return out


def remove_far_edges(graph: Graph, cutoff: float) -> Graph:
    """A graph without the edges that are as long as the cutoff or longer.

    Parameters
    ----------
    graph : Graph
        A graph with edges.
    cutoff : float
        Distance in Å.
    """
    near = graph.edge_vectors().detach().square().sum(1) < cutoff**2
    assert graph.edge_index is not None  # edge_vectors refuses a graph without edges
    edge_index = graph.edge_index[:, near]
    return graph.replace(
        edge_index=edge_index,
        shift=None if graph.shift is None else graph.shift[near],
        edge_attr=None if graph.pair_index is None else on_edges(graph, edge_index),
        cutoff=cutoff,
    )


def _nearest(pos: np.ndarray, cutoff: float | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Receivers and senders of the k nearest nodes, ties included."""
    from scipy.spatial import cKDTree

    tree = cKDTree(pos)
    # k + 1, because the nearest of all is the node itself, or one on top of it
    far = tree.query(pos, k=[min(k + 1, len(pos))])[0][:, 0] * (1 + TIE)
    if cutoff is not None:
        far = np.minimum(far, cutoff)
    near = tree.query_ball_point(pos, far, return_sorted=True)
    i = np.repeat(np.arange(len(pos)), [len(row) for row in near])
    j = np.concatenate([np.asarray(row, dtype=np.int64) for row in near])
    kept = i != j
    if cutoff is not None:
        kept &= np.linalg.norm(pos[i] - pos[j], axis=1) < cutoff
    return i[kept], j[kept]


def _check_digits(pos: np.ndarray, cutoff: float) -> None:
    """Raise DataError for positions so large that differences between them are wrong."""
    if not pos.size:
        return
    atom, largest = int(np.abs(pos).max(1).argmax()), float(np.abs(pos).max())
    if np.spacing(largest) > LOST * cutoff:
        raise DataError(
            f"atom {atom} is {largest:.3g} Å from the origin, where two neighboring numbers are "
            f"{np.spacing(largest):.1g} Å apart, so that distances are wrong; move the structure to the "
            "origin (atoms.positions -= atoms.positions.mean(0), or atoms.wrap() in a periodic cell)"
        )


def _search(part: Graph, cutoff: float | None, k: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Senders, receivers and lattice steps of one structure, sorted by receiver, then sender, then step."""
    pos = part.pos.detach().cpu().numpy()
    n, dim = pos.shape
    if not np.isfinite(pos).all():
        raise DataError(
            f"position of atom {int(np.argwhere(~np.isfinite(pos))[0, 0])} is not finite; neighbors are "
            "undefined"
        )
    if cutoff is not None:
        _check_digits(pos, cutoff)
    if part.pbc is not None and part.cell is not None and bool(part.pbc.any()):
        if k is not None:
            raise DataError(
                f"k={k} nearest of a periodic structure: they are for point clouds; give a cutoff instead"
            )
        if cutoff is None:
            raise DataError("all pairs of a periodic structure are infinitely many; give a cutoff")
        if dim != 3:
            raise DataError(f"periodic structures are supported in 3 dimensions, not in {dim}")
        cell, flags = part.cell[0].detach().cpu().numpy(), part.pbc[0].cpu().numpy()
        i, j, shift = _periodic(pos, cell, flags, cutoff)
    elif k is not None:
        i, j = _nearest(pos, cutoff, k)
        return j, i, np.zeros((len(i), dim))
    elif cutoff is None:
        i, j = np.nonzero(~np.eye(n, dtype=bool))
        return j, i, np.zeros((len(i), dim))
    else:
        from scipy.spatial import cKDTree

        pairs = cKDTree(pos).query_pairs(cutoff, output_type="ndarray")
        # A pair at exactly the cutoff is no edge, as in periodic structures.
        pairs = pairs[np.linalg.norm(pos[pairs[:, 0]] - pos[pairs[:, 1]], axis=1) < cutoff]
        i, j = np.concatenate([pairs, pairs[:, ::-1]]).T.astype(np.int64)
        shift = np.zeros((len(i), dim))
    order = np.lexsort((*shift.T[::-1], j, i))
    return j[order], i[order], shift[order]


def _periodic(
    pos: np.ndarray, cell: np.ndarray, flags: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Receivers, senders and lattice steps of one periodic structure."""
    from vesin import NeighborList

    cell = _filled(cell, flags)
    along = np.ptp(pos @ cell[~flags].T, axis=0)  # unit vectors in the directions without images
    if (along > REACH * cutoff).any():
        raise DataError(
            f"a periodic structure {along.max():.3g} Å thick, at a cutoff of {cutoff:g} Å: have its atoms "
            "flown apart?"
        )
    heights = np.where(flags, 1 / np.linalg.norm(np.linalg.inv(cell), axis=0), 0.0)
    heights[~flags] = along
    _check_count(pos, cell, flags, heights, cutoff)
    images = np.prod(2 * np.ceil(cutoff / heights[flags]) + 1)
    if images > MOST_IMAGES:
        raise DataError(
            f"a cell {heights[flags].min():.2g} Å high, with lattice vectors of {_lengths(cell, flags)} Å: "
            f"{images:.1g} images of it lie around the cutoff of {cutoff:g} Å; is a lattice vector wrong? "
            "Otherwise take shorter ones: ase.build.niggli_reduce(atoms)"
        )
    bins = np.maximum(heights // cutoff, 1)
    if bins.prod() > BINS and bins.min() * np.cbrt(BINS / bins.prod()) < 2:
        return _by_images(pos, cell, flags, heights, cutoff)
    search = NeighborList(cutoff=float(cutoff), full_list=True, n_threads=1)
    i, j, shift = search.compute(pos, cell, flags, quantities="ijS")
    return i.astype(np.int64), j.astype(np.int64), shift.astype(np.float64)


def _check_count(
    pos: np.ndarray, cell: np.ndarray, flags: np.ndarray, heights: np.ndarray, cutoff: float
) -> None:
    """Raise DataError if there are more images of atoms within the cutoff than memory has room for."""
    volume = abs(float(np.linalg.det(cell))) * float(np.maximum(heights[~flags], cutoff).prod())
    each = len(pos) * 4 / 3 * np.pi * cutoff**3 / max(volume, 1e-300)  # neighbors of an atom
    if each > MOST_NEIGHBORS:
        raise DataError(
            f"lattice vectors of {_lengths(cell, flags)} Å with {len(pos)} atoms: within "
            f"the cutoff of {cutoff:g} Å an atom has about {each:.1g} images, too many for memory; "
            "is the unit of the cell another one (nm, bohr), or are these fractions?"
        )


def _lengths(cell: np.ndarray, flags: np.ndarray) -> str:
    """Lengths of the lattice vectors, for messages."""
    return ", ".join(f"{x:.3g}" for x in np.linalg.norm(cell[flags], axis=1))


def _by_images(
    pos: np.ndarray, cell: np.ndarray, flags: np.ndarray, heights: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_periodic`, by a k-d tree of the atoms and their images near the cell.

    It serves cells of any shape, such as those that are thin in one direction and very long in others.
    """
    from scipy.spatial import cKDTree

    fractions = pos @ np.linalg.inv(cell)
    home = np.where(flags, np.floor(fractions), 0.0)
    inside = pos - home @ cell
    place = np.where(flags, fractions - home, 0.0)
    reach = np.where(flags, cutoff / np.where(flags, heights, 1.0), 0.0)  # in lattice vectors
    near, steps = [], []
    for number in np.ndindex(*(2 * np.ceil(reach).astype(int) + 1)):
        shift = np.array(number) - np.ceil(reach)
        moved = place + shift
        there = np.flatnonzero(
            ((moved >= -reach - ROUNDOFF) & (moved <= 1 + reach + ROUNDOFF))[:, flags].all(1)
        )
        near.append(there)
        steps.append(np.broadcast_to(shift, (len(there), 3)))
    atom, step = np.concatenate(near), np.concatenate(steps)
    images = inside[atom] + step @ cell
    found = cKDTree(images).query_ball_point(inside, cutoff * (1 + ROUNDOFF))
    i = np.repeat(np.arange(len(pos)), [len(row) for row in found])
    image = np.concatenate([np.asarray(row, dtype=np.int64) for row in found])
    j = atom[image]
    shift = step[image] + home[i] - home[j]
    # Lengths as `Graph.edge_vectors` has them: an atom and its image are then exactly a lattice vector apart.
    length = np.linalg.norm(pos[j] - pos[i] + shift @ cell, axis=1)
    kept = (length < cutoff) & ~((i == j) & (shift == 0).all(1))
    return i[kept], j[kept], shift[kept]


def nearest_images(
    ways: Float[Tensor, "N 3"], cell: Float[Tensor, "3 3"], pbc: Bool[Tensor, "3"]
) -> Float[Tensor, "N 3"]:
    """Ways shortened by whole lattice vectors, each to the shortest one; in cells of any shape.

    Parameters
    ----------
    ways : Tensor, shape (N, 3)
        Displacements.
    cell : Tensor, shape (3, 3)
        Lattice vectors in rows; those of directions that are not periodic may be zero.
    pbc : Tensor of bool, shape (3,)
        Periodic directions.

    Returns
    -------
    Tensor, shape (N, 3)

    Examples
    --------
    >>> slab = torch.tensor([[4.0, 0, 0], [3.6, 1.5, 0], [0, 0, 0]])
    >>> nearest_images(torch.tensor([[0.3, 1.5, 9.0]]), slab, torch.tensor([True, True, False]))
    tensor([[0.7000, 0.0000, 9.0000]])
    """
    flags = pbc.cpu().numpy()
    if not flags.any():
        return ways
    rows = _filled(cell.double().cpu().numpy(), flags)
    inverse = np.linalg.inv(rows)
    found = ways.double().cpu().numpy()
    found = found - (np.round(found @ inverse) * flags) @ rows
    # The step s to a shorter way w + s·cell has |s·cell| <= 2 |w|, and |s_k| is at most that over a height.
    longest = np.linalg.norm(found, axis=1).max()
    reach = np.where(flags, np.floor(2 * longest * np.linalg.norm(inverse, axis=0) + TIE), 0).astype(int)
    steps = np.array(list(np.ndindex(*(2 * reach + 1)))) - reach
    images = found[:, None] + steps @ rows
    nearest = images[range(len(found)), np.linalg.norm(images, axis=2).argmin(1)]
    return torch.as_tensor(nearest, dtype=ways.dtype, device=ways.device)


def _filled(cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """The cell with directions that are not periodic replaced by unit normals to the others (they carry no
    images).
    """
    if periodic.all() or not periodic.any():
        return cell
    rows = cell.copy()
    rows[~periodic] = 0.0
    _, _, complement = np.linalg.svd(rows[periodic])
    rows[~periodic] = complement[periodic.sum() :]
    return rows
