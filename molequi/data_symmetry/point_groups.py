"""What leaves a structure as it is, and vectors that do not: input for models that must answer a symmetric structure with less symmetry.

An equivariant model gives a structure x nothing that is less symmetric than x (Curie's principle): if s x = x then f(x) = f(s x) = s f(x).
With one more input b that s moves, f(g x, g b) = g f(x, b) says nothing of f(x, b) alone any more, and is as exact as before
(Xie and Smidt 2024, arXiv 2402.02681).
"""

from numbers import Integral, Real

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molequi.errors import ConfigError, DataError
from molequi.graph import Graph

# In the frame of two atoms: on no axis and in no plane of a symmetry. From water to the icosahedron each symmetry moves it by 0.24 or more,
# of C60, the frames of which lie otherwise, by 0.07 or more.
GENERIC = (0.913, 0.388, 0.129)
ANGLES = (1.0, 2.5)  # of turns about an axis about which every turn is a symmetry
Symmetry = tuple[Float[Tensor, "3 3"], Int[Tensor, "N"]]


def stabilizer(graph: Graph, tolerance: float = 0.01) -> Float[Tensor, "S 3 3"]:
    """The point group of a structure: all turns and mirrors about its centre that take each atom to one like it; the identity first, float64.

    Like it: of the same element, with the same features `x` and pairs `pair_attr`, and with velocities and given vectors that turn along.
    tolerance: Å, by how much an atom may miss; of what is given, this part of the largest. What misses by less and makes no group with the
    others, as in a structure that is nearly symmetric, is left out. Raises DataError for structures that are periodic, not in three
    dimensions, or on a line (the group of which is infinite), ConfigError for a tolerance that is not above zero.
    """
    pos = _checked(graph, tolerance)
    _check_spread(pos, tolerance)
    return torch.stack([turn for turn, _ in _group(graph, pos, tolerance)])


def elements(graph: Graph, tolerance: float = 0.01) -> list[Symmetry]:
    """(R, π) for each element of `stabilizer`, the identity first: R x_i = x_π(i) from the centre.

    Of a structure on a line or a point, which has infinitely many: some turns, and what it has of mirrors and of the inversion.
    Raises as `stabilizer` does, but for lines.
    """
    pos = _checked(graph, tolerance)
    return _some(graph, pos, tolerance) if _on_a_line(pos, tolerance) else _group(graph, pos, tolerance)


def symmetry_breaking_set(graph: Graph, tolerance: float = 0.01) -> Float[Tensor, "B 3"]:
    """Vectors b of length 1 that turn with the structure, B(g x) = g B(x) for turns and mirrors g, each moved by all of `stabilizer` but the
    identity: a symmetry-breaking set.

    Of a structure that is symmetric only nearly, so nearly. As many as the stabilizer has elements, or a multiple: the other ones belong to the mirror image, where the structure has one, and to
    atoms that are as far from the centre without being alike. Raises as `stabilizer` does.
    """
    pos = _checked(graph, tolerance)
    _check_spread(pos, tolerance)
    # A pair of atoms and a hand: what a symmetry makes of the vector of one is the vector of another, so that sets of them are whole.
    whole = {
        (int(order[i]), int(order[j]), hand * _sign(turn))
        for turn, order in _group(graph, pos, tolerance)
        for i, j in _reference_pairs(graph, pos, tolerance).nonzero().tolist()
        for hand in (1, -1)
    }
    i, j, hand = torch.tensor(sorted(whole)).T
    generic = torch.tensor(GENERIC, dtype=torch.float64).expand(len(hand), 3) * torch.stack(
        [torch.ones_like(hand), torch.ones_like(hand), hand], 1
    )
    vectors = (_frames(pos, i, j) @ generic[:, :, None])[:, :, 0]
    return vectors / vectors.norm(dim=1, keepdim=True)


def broken(graph: Graph, which: int = 0, tolerance: float = 0.01) -> Graph:
    """The structure with one vector of its `symmetry_breaking_set` given to every atom, as the last of `Graph.vec`, for a model with one more of
    `node_vectors`.

    which: number of the vector. For a label that is less symmetric than its structure any will do, in training always the same; then the
    others give what symmetry makes of that answer, f(x, s b) = s f(x, b).
    Raises as `stabilizer` does, and DataError for a number that is too large.
    """
    if not isinstance(which, Integral):
        raise ConfigError(f"which={which!r}: wanted the number of a vector of the breaking set")
    vectors = symmetry_breaking_set(graph, tolerance)
    if not 0 <= which < len(vectors):
        raise DataError(
            f"which={which}: the breaking set of this structure has {len(vectors)} vectors; wanted 0 to {len(vectors) - 1}"
        )
    vec = vectors[which].expand(graph.num_nodes, 1, 3)
    return graph.replace(
        vec=vec if graph.vec is None else torch.cat([graph.vec, vec.to(graph.vec.dtype)], dim=1)
    )


def _checked(graph: Graph, tolerance: float) -> Float[Tensor, "N 3"]:
    """Positions from their centre."""
    if not isinstance(graph, Graph):
        raise ConfigError(f"found {type(graph).__name__}; wanted a Graph with one structure")
    if not isinstance(tolerance, Real) or not 0 < tolerance < float("inf"):
        raise ConfigError(f"tolerance={tolerance!r}: wanted Å by which an atom may miss, above zero")
    if graph.num_graphs != 1 or graph.dim != 3 or graph.pbc is not None:
        raise DataError(
            f"symmetries are sought of one structure in three dimensions that is not periodic; found {graph.num_graphs} in "
            f"{graph.dim} dimensions{'' if graph.pbc is None else ', periodic'}"
        )
    return graph.pos.double() - graph.pos.double().mean(0)


def _check_spread(pos: Tensor, tolerance: float) -> None:
    if _on_a_line(pos, tolerance):
        raise DataError(
            f"all {len(pos)} atoms lie on a line or a point, within {tolerance} Å: every turn about it leaves them as they are"
        )


def _areas(pos: Float[Tensor, "N 3"]) -> Float[Tensor, "N N"]:
    return torch.linalg.cross(pos[:, None].expand(-1, len(pos), -1), pos[None].expand(len(pos), -1, -1)).norm(
        dim=2
    )


def _on_a_line(pos: Tensor, tolerance: float) -> bool:
    return float(_areas(pos).max()) <= 2 * tolerance * float(pos.norm(dim=1).max())


def _reference_pairs(graph: Graph, pos: Tensor, tolerance: float) -> Bool[Tensor, "N N"]:
    """Pairs of atoms that are chosen by distances, angles and elements alone, so that they are the same ones in every pose."""
    area, length = _areas(pos), pos.norm(dim=1)
    size = float(length.max())
    # One criterion after another, each with its ties: the largest area, then what tells unlike atoms apart.
    kept = area >= area.max() - 2 * tolerance * size
    first, second = graph.z.double()[:, None].expand(area.shape), graph.z.double().expand(area.shape)
    for key, width in (
        (first, 0.5),
        (second, 0.5),
        (length[:, None].expand(area.shape), tolerance),
        (length.expand(area.shape), tolerance),
        (pos @ pos.T, 2 * tolerance * size),
    ):
        kept = kept & (key <= key[kept].min() + width)
    return kept


def _frames(pos: Float[Tensor, "N 3"], i: Int[Tensor, "P"], j: Int[Tensor, "P"]) -> Float[Tensor, "P 3 3"]:
    e1 = torch.nn.functional.normalize(pos[i], dim=1)
    e3 = torch.nn.functional.normalize(torch.linalg.cross(pos[i], pos[j]), dim=1)
    return torch.stack([e1, torch.linalg.cross(e3, e1), e3], dim=2)


def _group(graph: Graph, pos: Float[Tensor, "N 3"], tolerance: float) -> list[Symmetry]:
    """All symmetries: each takes one pair of atoms to another of the same lengths and angle, which says what it is."""
    a, b = _reference_pairs(graph, pos, tolerance).nonzero()[0].tolist()
    length, slack = pos.norm(dim=1), 2 * tolerance
    alike = [(graph.z == graph.z[k]) & ((length - length[k]).abs() <= slack) for k in (a, b)]
    product = pos @ pos.T
    i, j = (
        (alike[0][:, None] & alike[1] & ((product - product[a, b]).abs() <= 2 * slack * float(length.max())))
        .nonzero()
        .T
    )
    keep = _areas(pos)[i, j] > 0
    start = _frames(pos, torch.tensor([a]), torch.tensor([b]))[0]
    found: dict[tuple, tuple[float, Tensor, Tensor]] = {}
    for frame in _frames(pos, i[keep], j[keep]):
        for hand in (1.0, -1.0):
            near = frame @ torch.diag(torch.tensor([1.0, 1.0, hand], dtype=torch.float64)) @ start.T
            order = _order(graph, pos, near, 6 * tolerance)  # a frame may be off by more than its atoms
            if order is None:
                continue
            turn = _best(pos, pos[order], near)
            miss = float((pos @ turn.T - pos[order]).norm(dim=1).max())
            if miss <= tolerance and _given_alike(graph, turn, order, tolerance):
                found[_key(turn, order)] = miss, turn, order
    return [
        found[key][1:]
        for key in sorted(
            _closed({key: miss for key, (miss, *_) in found.items()}, len(pos)),
            key=lambda k: (k[1] < 0, k[0]),
        )
    ]


def _sign(turn: Tensor) -> int:
    return 1 if float(torch.linalg.det(turn)) > 0 else -1


def _key(turn: Tensor, order: Tensor) -> tuple[tuple[int, ...], int]:
    """Where atoms go and whether hands change say which symmetry it is, in a plane too."""
    return tuple(order.tolist()), _sign(turn)


def _closed(misses: dict[tuple, float], n: int) -> set[tuple]:
    """Those that make a group: one after the other, the best first, is taken with all its products, if these were found too."""

    def times(p: tuple, q: tuple) -> tuple:
        return tuple(p[0][k] for k in q[0]), p[1] * q[1]

    kept = {(tuple(range(n)), 1)}
    for key in sorted(misses, key=misses.get):
        if key in kept:
            continue
        whole, new = set(kept), {key}
        while new and new <= misses.keys():
            whole |= new
            new = {
                times(p, q) for pair in ((p, q) for p in new for q in whole) for p, q in (pair, pair[::-1])
            } - whole
        if not new:
            kept = whole
    return kept


def _some(graph: Graph, pos: Float[Tensor, "N 3"], tolerance: float) -> list[Symmetry]:
    """Of a line or a point."""
    far = pos[pos.norm(dim=1).argmax()]
    point = float(far.norm()) <= tolerance
    axis = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64) if point else far
    axis = axis / axis.norm()
    across = torch.linalg.cross(axis, torch.eye(3, dtype=torch.float64)[axis.abs().argmin()])
    across = across / across.norm()
    eye = torch.eye(3, dtype=torch.float64)
    tried = [
        eye,
        *(_about(axis, angle) for angle in ANGLES),
        *(_about(across, angle) for angle in (*ANGLES, torch.pi)),
        eye - 2 * torch.outer(across, across),
        eye - 2 * torch.outer(axis, axis),
        -eye,
    ]
    orders = [_order(graph, pos, turn, tolerance) for turn in tried]
    return [
        (turn, order)
        for turn, order in zip(tried, orders)
        if order is not None and _given_alike(graph, turn, order, tolerance)
    ]


def _about(axis: Float[Tensor, "3"], angle: float) -> Float[Tensor, "3 3"]:
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, dtype=torch.float64)).T
    return torch.linalg.matrix_exp(angle * cross)


def _order(graph: Graph, pos: Tensor, turn: Tensor, tolerance: float) -> Int[Tensor, "N"] | None:
    """Which atom of its element each is taken to; None if there is none."""
    gaps = torch.cdist(pos @ turn.T, pos)
    gaps = gaps.masked_fill(graph.z[:, None] != graph.z, torch.inf)
    order = gaps.argmin(1)
    return (
        order
        if float(gaps.gather(1, order[:, None]).max()) <= tolerance and len(order.unique()) == len(pos)
        else None
    )


def _given_alike(graph: Graph, turn: Tensor, order: Int[Tensor, "N"], tolerance: float) -> bool:
    if graph.pair_attr is not None:
        table = torch.zeros(graph.num_nodes, graph.num_nodes, graph.pair_attr.shape[1], dtype=torch.float64)
        table[graph.pair_index[0], graph.pair_index[1]] = graph.pair_attr.double()
        if not bool(((table[order][:, order] - table).abs() <= tolerance * table.abs().max()).all()):
            return False
    for given, turns in ((graph.x, False), (graph.vel, True), (graph.vec, True)):
        if given is not None and given.numel():
            moved = given.double() @ turn.T if turns else given.double()
            if float((moved - given.double()[order]).abs().max()) > tolerance * float(given.abs().max()):
                return False
    return True


def _best(
    here: Float[Tensor, "N 3"], there: Float[Tensor, "N 3"], near: Float[Tensor, "3 3"]
) -> Float[Tensor, "3 3"]:
    """The orthogonal matrix, as proper as the one `near` it, that takes the one nearest to the other (Kabsch)."""
    u, _, v = torch.linalg.svd(there.T @ here)
    handed = (
        torch.linalg.det(u @ v).sign() * torch.linalg.det(near).sign()
    )  # of atoms in a plane, positions do not say
    return u @ torch.diag(torch.stack([torch.ones_like(handed), torch.ones_like(handed), handed])) @ v
