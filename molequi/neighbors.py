"""The only neighbour search: complete, never truncated, sorted by receiver."""

import math

import numpy as np
import torch

from molequi.errors import DataError
from molequi.graph import Graph, separate

REACH = 1000      # cutoffs: vesin bins space in cells of a cutoff, and runs out of integers on structures that are much longer


def connect(graph: Graph, cutoff: float | None) -> Graph:
    """Edges between all pairs closer than `cutoff` (Å), periodic images included; None joins all pairs.

    Periodic structures are searched by vesin, others by scipy's k-d tree. Any mixture of periodic directions, and cells
    smaller than the cutoff, where an atom may meet several images of another and of itself. Raises DataError for a
    cutoff that is not positive, for all pairs of a periodic structure, and for one that is absurdly thick where it is not periodic.
    """
    if cutoff is not None and not (math.isfinite(cutoff) and cutoff > 0):
        raise DataError(f"cutoff {cutoff}: wanted a positive distance, or None for all pairs")
    indices, shifts, start = [], [], 0
    for part in separate(graph.replace(edge_index=None, shift=None, edge_attr=None, targets={})):
        senders, receivers, shift = _search(part, cutoff)
        indices.append(np.stack([senders, receivers]) + start)
        shifts.append(shift)
        start += part.num_nodes
    device = graph.pos.device
    periodic = graph.pbc is not None
    return graph.replace(
        edge_index=torch.from_numpy(np.concatenate(indices, axis=1)).to(device),
        shift=torch.from_numpy(np.concatenate(shifts)).to(device=device, dtype=graph.pos.dtype) if periodic else None,
        cutoff=math.inf if cutoff is None else float(cutoff),
    )


def _search(part: Graph, cutoff: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Senders, receivers and lattice steps of one structure, sorted by receiver, then sender, then step."""
    pos = part.pos.detach().cpu().numpy()
    n, dim = pos.shape
    if not np.isfinite(pos).all():
        raise DataError(f"position of atom {int(np.argwhere(~np.isfinite(pos))[0, 0])} is not finite; neighbours are undefined")
    periodic = part.pbc is not None and bool(part.pbc.any())
    if periodic and cutoff is None:
        raise DataError("all pairs of a periodic structure are infinitely many; give a cutoff")
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
        along = np.ptp(pos @ cell[~flags].T, axis=0)            # unit vectors in the directions without images
        if (along > REACH * cutoff).any():
            raise DataError(f"a periodic structure {along.max():.3g} Å thick, at a cutoff of {cutoff:g} Å: have its atoms flown apart?")
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
    rows[~periodic] = complement[periodic.sum():]
    return rows
