"""Structures that a rotation or reflection leaves as they are, and whether it leaves their labels as they are."""

import itertools
from collections.abc import Sequence

import numpy as np

from molequi.breaking.report import Check
from molequi.data.dataset import Dataset
from molequi.graph import Graph
from molequi.quantities import Quantity

SAME = 1e-3              # of the size of a structure: places nearer than this are one
DIFFERENT = 0.05         # of the rms of a label: values farther apart than this are two
NODES = 64               # larger structures are not searched
LOOKED_AT = 300
ELEMENTS = 48            # of one structure that are tried


def asymmetric(data: Dataset, quantities: Sequence[Quantity]) -> list[Check]:
    """For each quantity, whether structures with a symmetry have labels without it; at most LOOKED_AT structures are searched.

    An equivariant function gives y = f(x) = f(hx) = h y for every h with hx = x. Such an h that moves y is a break that no equivariant
    model can follow, whichever pose the structure is in (Xie and Smidt 2024, arXiv 2402.02681).
    """
    chosen = [(k * len(data)) // min(len(data), LOOKED_AT) for k in range(min(len(data), LOOKED_AT))]
    found = {k: symmetries(data.graphs[k]) for k in chosen}
    symmetric = {k: elements for k, elements in found.items() if elements}
    out = []
    for q in quantities:
        if all(g.pbc is not None or g.num_nodes > NODES for g in data):
            out.append(Check(name="stabilizers", quantity=q.name,
                             reason=f"not searched in periodic structures, nor in any of more than {NODES} nodes"))
            continue
        if not symmetric:
            out.append(Check(name="stabilizers", quantity=q.name, reason=f"none of {len(chosen)} structures has a symmetry of its own"))
            continue
        size = float(np.sqrt(np.nanmean(np.concatenate([_label(data.graphs[k], q).ravel() ** 2 for k in range(len(data))]))))
        moved = {k: max(_moved(data.graphs[k], q, R, order) for R, order in elements) / max(size, 1e-300)
                 for k, elements in symmetric.items()}
        moved = {k: m for k, m in moved.items() if np.isfinite(m)}
        broken = [k for k, m in moved.items() if m > DIFFERENT]
        text = f"{len(broken)} of {len(moved)} symmetric structures"
        if broken:
            worst = max(broken, key=moved.get)
            text += f"; by {100 * moved[worst]:.2g} % of the rms at {data.origins[worst]}"
        # a symmetric structure is no random draw: that its label is not, is so or is not so
        out.append(Check(name="stabilizers", quantity=q.name, p=0.0 if broken else 1.0, broken=bool(broken), reason=text))
    return out


def symmetries(graph: Graph) -> list[tuple[np.ndarray, np.ndarray]]:
    """(R, π) with R x_i = x_π(i), all that is given of nodes included: up to ELEMENTS of them without the identity; none if periodic."""
    if graph.pbc is not None or graph.num_nodes > NODES:
        return []
    x = (graph.pos - graph.pos.mean(0)).numpy()
    size = max(float(np.sqrt((x**2).sum(1).mean())), 1e-12)
    tolerance = SAME * size
    kind = _kinds(graph, x, tolerance)
    rank = int((np.linalg.svd(x, compute_uv=False) > tolerance).sum())
    if rank == 3 and len(np.unique(kind)) == len(kind):
        return []
    found = []
    for R in _candidates(x, kind, rank, tolerance):
        image = x @ R.T
        far = np.linalg.norm(image[:, None] - x[None], axis=2)
        order = far.argmin(1)
        if far[np.arange(len(x)), order].max() > tolerance or len(np.unique(order)) < len(x) or (kind[order] != kind).any():
            continue
        if not _given_alike(graph, R, order, tolerance) or np.abs(R - np.eye(3)).max() < 1e-6:
            continue
        found.append((R, order))
        if len(found) == ELEMENTS:
            break
    return found


def _kinds(graph: Graph, x: np.ndarray, tolerance: float) -> np.ndarray:
    """Nodes that a symmetry may exchange have one number: alike by element, what is given, and distances to all others."""
    far = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)
    columns = [graph.z.numpy()[:, None] * 1e6 * tolerance, far, np.linalg.norm(x, axis=1)[:, None]]
    for given in (graph.vel, graph.x):
        if given is not None:
            values = given.numpy()
            columns.append((np.linalg.norm(values, axis=1)[:, None] if given is graph.vel else values) * tolerance * 1e3)
    looks = np.concatenate(columns, 1)
    kind = np.full(len(x), -1)
    for i in range(len(x)):
        if kind[i] < 0:
            alike = np.abs(looks - looks[i]).max(1) < 3 * tolerance
            kind[alike & (kind < 0)] = i
    return kind


def _candidates(x: np.ndarray, kind: np.ndarray, rank: int, tolerance: float):
    """Orthogonal matrices that take some nodes to nodes of the same kind; of free turns, a few of many."""
    if rank == 0:
        yield from (-np.eye(3), _about(np.array([0.3, 0.5, 0.8]), 1.0), _about(np.array([0.8, -0.5, 0.1]), 2.0))
        return
    start = int(np.linalg.norm(x, axis=1).argmax())
    if rank == 1:
        axis = x[start] / np.linalg.norm(x[start])
        yield from (_about(axis, 1.0), _about(axis, 2.0), -np.eye(3))
        return
    # a basis of nodes of the rarest kinds, with the normal of the plane for a flat structure
    order = np.argsort([(kind == k).sum() for k in kind], kind="stable")
    order = order[np.linalg.norm(x[order], axis=1) > 10 * tolerance]
    basis = [order[0]]
    for i in order[1:]:
        if np.linalg.svd(x[basis + [i]], compute_uv=False)[-1] > 10 * tolerance:
            basis.append(i)
        if len(basis) == rank:
            break
    if len(basis) < rank:
        return
    a = x[basis]
    gram = a @ a.T
    length = np.linalg.norm(x, axis=1)
    images = [[j for j in np.flatnonzero(kind == kind[b]) if abs(length[j] - length[b]) < 5 * tolerance] for b in basis]
    slack = 20 * tolerance * np.sqrt(np.trace(gram))
    for nodes in itertools.product(*images):
        b = x[list(nodes)]
        if np.abs(b @ b.T - gram).max() > slack:
            continue
        if rank == 3:
            sides = [(a, b)]
        else:
            n, m = np.cross(*a), np.cross(*b)
            n, m = n / np.linalg.norm(n), m / np.linalg.norm(m)
            sides = [(np.vstack([a, n]), np.vstack([b, s * m])) for s in (1, -1)]
        for left, right in sides:
            u, _, vh = np.linalg.svd(right.T @ np.linalg.pinv(left).T)           # the nearest orthogonal matrix
            yield u @ vh


def _about(axis: np.ndarray, angle: float) -> np.ndarray:
    n = axis / np.linalg.norm(axis)
    K = np.array([[0, -n[2], n[1]], [n[2], 0, -n[0]], [-n[1], n[0], 0]])
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def _given_alike(graph: Graph, R: np.ndarray, order: np.ndarray, tolerance: float) -> bool:
    for given in (graph.vel, graph.vec):
        if given is not None:
            values = given.numpy()
            if np.abs(values[order] - values @ R.T).max() > SAME * max(float(np.abs(values).max()), 1e-12):
                return False
    if graph.pair_attr is not None:
        table = np.zeros((graph.num_nodes, graph.num_nodes, graph.pair_attr.shape[1]))
        table[graph.pair_index[0], graph.pair_index[1]] = graph.pair_attr
        if np.abs(table[np.ix_(order, order)] - table).max() > SAME * max(float(np.abs(table).max()), 1e-12):
            return False
    return True


def _label(graph: Graph, q: Quantity) -> np.ndarray:
    """(N or 1, …): a position as a step from where the node, or the middle, is."""
    value = graph.targets[q.name].numpy().astype(float)
    if q.point:
        value = value - (graph.pos.numpy() if q.per == "node" else graph.pos.mean(0).numpy())
    return value


def _moved(graph: Graph, q: Quantity, R: np.ndarray, order: np.ndarray) -> float:
    """rms by which the label is another one after the symmetry of the structure."""
    value = _label(graph, q)
    turned = value @ R.T if q.rank == 1 else R @ value @ R.T if q.rank == 2 else value
    if q.pseudo and np.linalg.det(R) < 0:
        turned = -turned
    there = value[order] if q.per == "node" else value
    return float(np.sqrt(np.mean((there - turned) ** 2)))
