"""What leaves a structure as it is, and vectors that do not: input for models that must answer a symmetric structure with less symmetry.

An equivariant model gives a structure x nothing that is less symmetric than x (Curie's principle): if s x = x then f(x) = f(s x) = s f(x).
With one more input b that s moves, f(g x, g b) = g f(x, b) says nothing of f(x, b) alone any more, and is as exact as before
(Xie and Smidt 2024, arXiv 2402.02681).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.errors import DataError
from molequi.graph import Graph

# In the frame of two atoms: on no axis and in no plane of a symmetry. From water to the icosahedron each symmetry moves it by 0.24 or more.
GENERIC = (0.913, 0.388, 0.129)


def stabilizer(graph: Graph, tolerance: float = 0.01) -> Float[Tensor, "S 3 3"]:
    """The point group of a structure: all turns and mirrors about its centre that take each atom to one like it; the identity first, float64.

    Like it: of the same element, with the same features `x`, and with velocities and given vectors that turn along. tolerance: Å, by how
    much an atom may miss; of the largest of each kind for what is given. Raises DataError for structures that are periodic, not in three
    dimensions, or on a line (the group of which is infinite).
    """
    pos, frames = _frames(graph, tolerance)
    found = []
    for frame in frames:
        for handed in (1.0, -1.0):
            turn = frame @ torch.diag(torch.tensor([1.0, 1.0, handed], dtype=torch.float64)) @ frames[0].T
            order = _order(graph, pos, turn, tolerance)
            if order is None:
                continue
            turn = _best(pos, pos[order], turn)
            if not any(bool((turn - f).abs().max() < 1e-3) for f in found):
                found.append(turn)
    return torch.stack(found)


def breaking_set(graph: Graph, tolerance: float = 0.01) -> Float[Tensor, "B 3"]:
    """Vectors b of length 1 that turn with the structure, B(g x) = g B(x) for turns and mirrors g, each moved by all of `stabilizer` but the
    identity: a symmetry-breaking set.

    As many as the stabilizer has elements, or a multiple: the other ones belong to the mirror image, where the structure has one, and to
    atoms that are as far from the centre without being alike. Raises DataError as `stabilizer` does.
    """
    _, frames = _frames(graph, tolerance)
    vectors = torch.stack([frame @ torch.tensor([GENERIC[0], GENERIC[1], handed * GENERIC[2]], dtype=torch.float64)
                           for frame in frames for handed in (1.0, -1.0)])
    return vectors / vectors.norm(dim=1, keepdim=True)


def broken(graph: Graph, which: int = 0, tolerance: float = 0.01) -> Graph:
    """The structure with one vector of its `breaking_set` given to every atom, as the last of `Graph.vec`, for a model with one more of
    `node_vectors`.

    which: number of the vector. For a label that is less symmetric than its structure any will do, in training always the same; then the
    others give what symmetry makes of that answer, f(x, s b) = s f(x, b).
    Raises DataError as `stabilizer` does, and for a number that is too large.
    """
    vectors = breaking_set(graph, tolerance)
    if not 0 <= which < len(vectors):
        raise DataError(f"which={which}: the breaking set of this structure has {len(vectors)} vectors; wanted 0 to {len(vectors) - 1}")
    vec = vectors[which].expand(graph.num_nodes, 1, 3)
    return graph.replace(vec=vec if graph.vec is None else torch.cat([graph.vec, vec.to(graph.vec.dtype)], dim=1))


def _frames(graph: Graph, tolerance: float) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "P 3 3"]]:
    """Positions from their centre, and frames of pairs of atoms, chosen by distances, angles and elements alone: with a frame all are
    among them that symmetries make of it."""
    if graph.num_graphs != 1 or graph.dim != 3 or graph.pbc is not None:
        raise DataError(f"symmetries are sought of one structure in three dimensions that is not periodic; found {graph.num_graphs} in "
                        f"{graph.dim} dimensions{'' if graph.pbc is None else ', periodic'}")
    pos = graph.pos.double() - graph.pos.double().mean(0)
    normal = torch.linalg.cross(pos[:, None].expand(-1, len(pos), -1), pos[None].expand(len(pos), -1, -1))
    area, length = normal.norm(dim=2), pos.norm(dim=1)
    size = float(length.max())
    if float(area.max()) <= 2 * tolerance * size:
        raise DataError(f"all {len(pos)} atoms lie on a line or a point, within {tolerance} Å: every turn about it leaves them as they are")
    # One criterion after another, each with its ties: the largest area, then what tells unlike atoms apart.
    kept = area >= area.max() - 2 * tolerance * size
    first, second = (graph.z.double()[:, None].expand(area.shape), graph.z.double().expand(area.shape))
    for key, width in ((first, 0.5), (second, 0.5), (length[:, None].expand(area.shape), tolerance), (length.expand(area.shape), tolerance),
                       (pos @ pos.T, 2 * tolerance * size)):
        kept = kept & (key <= key[kept].min() + width)
    i, j = kept.nonzero().T
    e1 = pos[i] / length[i][:, None]
    e3 = normal[i, j] / area[i, j][:, None]
    return pos, torch.stack([e1, torch.linalg.cross(e3, e1), e3], dim=2)


def _order(graph: Graph, pos: Tensor, turn: Tensor, tolerance: float) -> Int[Tensor, "N"] | None:
    """Which atom each is taken to; None if it is not one like it."""
    gaps = torch.cdist(pos @ turn.T, pos)
    gaps = gaps.masked_fill(graph.z[:, None] != graph.z, torch.inf)
    order = gaps.argmin(1)
    same = float(gaps.gather(1, order[:, None]).max()) <= 2 * tolerance and len(order.unique()) == len(pos)
    for given, turns in ((graph.x, False), (graph.vel, True), (graph.vec, True)):
        if same and given is not None and given.numel():
            moved = given.double() @ turn.T if turns else given.double()
            same = float((moved - given.double()[order]).abs().max()) <= 2 * tolerance * float(given.abs().max())
    return order if same else None


def _best(here: Float[Tensor, "N 3"], there: Float[Tensor, "N 3"], near: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """The orthogonal matrix, as proper as the one `near` it, that takes the one nearest to the other (Kabsch)."""
    u, _, v = torch.linalg.svd(there.T @ here)
    handed = torch.linalg.det(u @ v).sign() * torch.linalg.det(near).sign()      # of atoms in a plane, positions do not say
    return u @ torch.diag(torch.stack([torch.ones_like(handed), torch.ones_like(handed), handed])) @ v
