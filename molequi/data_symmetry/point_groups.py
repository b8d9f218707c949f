"""Point groups of structures, and symmetry-breaking sets for labels of lower symmetry.

An equivariant model cannot predict a label that is less symmetric than its structure x (Curie's principle):
if s x = x then f(x) = f(s x) = s f(x). With one more input b that s changes, f(g x, g b) = g f(x, b) does not
restrict f(x, b) any more, and the model stays exactly equivariant (Xie and Smidt 2024, arXiv:2402.02681).
"""

from numbers import Integral, Real

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molequi.errors import ConfigError, DataError
from molequi.graph import Graph

# A vector in the frame of two atoms that lies on no symmetry axis and in no mirror plane. Each operation of
# the groups from water to the icosahedron moves it by 0.24 or more, of C60, whose frames are oriented
# differently, by 0.07 or more.
GENERIC = (0.913, 0.388, 0.129)
ANGLES = (1.0, 2.5)  # rad, rotations about the axis of a linear structure
SymmetryOperation = tuple[Float[Tensor, "3 3"], Int[Tensor, "N"]]


def point_group(graph: Graph, tolerance: float = 0.01) -> Float[Tensor, "S 3 3"]:
    """Point group of a structure: all rotations and reflections about its center that map it onto itself.

    Each atom must be mapped onto one of the same element, with the same features ``x`` and ``pair_attr``, and
    with velocities and given vectors that are transformed accordingly. Operations of an approximately
    symmetric structure that do not close to a group are left out.

    Parameters
    ----------
    graph : Graph
        One structure in three dimensions, not periodic.
    tolerance : float
        Largest deviation of an atom in Å; for given fields, relative to the largest value.

    Returns
    -------
    Tensor, shape (S, 3, 3), float64
        Orthogonal matrices, the identity first.

    Raises
    ------
    DataError
        For periodic structures, other dimensions, and linear structures, whose point group is infinite.
    ConfigError
        For a tolerance that is not positive.

    Examples
    --------
    >>> from ase.build import molecule
    >>> atoms = molecule("NH3")
    >>> len(point_group(Graph.single(atoms.positions, atoms.numbers)))  # C3v
    6
    """
    pos = _checked(graph, tolerance)
    _check_not_linear(pos, tolerance)
    return torch.stack([turn for turn, _ in _operations(graph, pos, tolerance)])


def symmetry_operations(graph: Graph, tolerance: float = 0.01) -> list[SymmetryOperation]:
    """(R, π) of each element of `point_group`, the identity first: R x_i = x_π(i) relative to the center.

    Linear structures and single atoms have infinitely many operations. For these some rotations are returned,
    and those reflections and inversions that they have. Raises the errors of `point_group`, except for linear
    structures.
    """
    pos = _checked(graph, tolerance)
    return (
        _linear_operations(graph, pos, tolerance)
        if _is_linear(pos, tolerance)
        else _operations(graph, pos, tolerance)
    )


def symmetry_breaking_set(graph: Graph, tolerance: float = 0.01) -> Float[Tensor, "B 3"]:
    """Symmetry-breaking set: unit vectors b that rotate with the structure, B(g x) = g B(x).

    Every element of `point_group` except the identity changes each vector. If the structure is only
    approximately symmetric, the vectors have these properties to the same accuracy. There are as many vectors
    as elements, or a multiple of it: further ones belong to the mirror image and to atoms at equal distances
    that are not equivalent. See Xie and Smidt 2024, arXiv:2402.02681.

    Parameters
    ----------
    graph : Graph
        One structure in three dimensions, not periodic and not linear.
    tolerance : float
        As in `point_group`.

    Returns
    -------
    Tensor, shape (B, 3), float64
        The vectors, in an order that depends on the order of the atoms.

    Raises
    ------
    DataError, ConfigError
        As `point_group`.
    """
    pos = _checked(graph, tolerance)
    _check_not_linear(pos, tolerance)
    # A vector belongs to a pair of atoms and a handedness. An operation maps it onto the vector of another
    # pair, so that the set is closed.
    whole = {
        (int(order[i]), int(order[j]), hand * _determinant_sign(turn))
        for turn, order in _operations(graph, pos, tolerance)
        for i, j in _reference_pairs(graph, pos, tolerance).nonzero().tolist()
        for hand in (1, -1)
    }
    i, j, hand = torch.tensor(sorted(whole)).T
    generic = torch.tensor(GENERIC, dtype=torch.float64).expand(len(hand), 3) * torch.stack(
        [torch.ones_like(hand), torch.ones_like(hand), hand], 1
    )
    vectors = (_frames(pos, i, j) @ generic[:, :, None])[:, :, 0]
    return vectors / vectors.norm(dim=1, keepdim=True)


def add_symmetry_breaking_vector(graph: Graph, index: int = 0, tolerance: float = 0.01) -> Graph:
    """Give one vector of the symmetry-breaking set to every atom, as the last of ``Graph.vec``.

    The model needs one more of ``node_vectors``. If a label is less symmetric than its structure, any vector
    will do, as long as training always uses the same index. The other vectors then give the
    symmetry-equivalent labels, f(x, s b) = s f(x, b).

    Parameters
    ----------
    graph : Graph
        One structure in three dimensions, not periodic and not linear.
    index : int
        Index of the vector in the set.
    tolerance : float
        As in `point_group`.

    Returns
    -------
    Graph
        A copy with one more vector for each atom.

    Raises
    ------
    DataError
        As `point_group`, and for an index that is too large.
    ConfigError
        As `point_group`, and for an index that is no whole number.
    """
    if not isinstance(index, Integral):
        raise ConfigError(f"index={index!r}: wanted the index of a vector of the symmetry-breaking set")
    vectors = symmetry_breaking_set(graph, tolerance)
    if not 0 <= index < len(vectors):
        raise DataError(
            f"index={index}: the symmetry-breaking set of this structure has {len(vectors)} vectors; "
            f"wanted 0 to {len(vectors) - 1}"
        )
    vec = vectors[index].expand(graph.num_nodes, 1, 3)
    return graph.replace(
        vec=vec if graph.vec is None else torch.cat([graph.vec, vec.to(graph.vec.dtype)], dim=1)
    )


def _checked(graph: Graph, tolerance: float) -> Float[Tensor, "N 3"]:
    """Positions relative to their center, in float64."""
    if not isinstance(graph, Graph):
        raise ConfigError(f"found {type(graph).__name__}; wanted a Graph with one structure")
    if not isinstance(tolerance, Real) or not 0 < tolerance < float("inf"):
        raise ConfigError(
            f"tolerance={tolerance!r}: wanted the largest deviation of an atom in Å, above zero"
        )
    if graph.num_graphs != 1 or graph.dim != 3 or graph.pbc is not None:
        raise DataError(
            "point groups are defined for one structure in three dimensions that is not periodic; "
            f"found {graph.num_graphs} in {graph.dim} dimensions{'' if graph.pbc is None else ', periodic'}"
        )
    return graph.pos.double() - graph.pos.double().mean(0)


def _check_not_linear(pos: Tensor, tolerance: float) -> None:
    if _is_linear(pos, tolerance):
        raise DataError(
            f"all {len(pos)} atoms lie on a line or a point, within {tolerance} Å: the point group is "
            "infinite"
        )


def _areas(pos: Float[Tensor, "N 3"]) -> Float[Tensor, "N N"]:
    return torch.linalg.cross(pos[:, None].expand(-1, len(pos), -1), pos[None].expand(len(pos), -1, -1)).norm(
        dim=2
    )


def _is_linear(pos: Tensor, tolerance: float) -> bool:
    return float(_areas(pos).max()) <= 2 * tolerance * float(pos.norm(dim=1).max())


def _reference_pairs(graph: Graph, pos: Tensor, tolerance: float) -> Bool[Tensor, "N N"]:
    """Pairs of atoms selected by distances, angles and elements, independent of orientation."""
    area, length = _areas(pos), pos.norm(dim=1)
    size = float(length.max())
    # One criterion after another, with ties: the largest area, then elements, distances and angle.
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


def _operations(graph: Graph, pos: Float[Tensor, "N 3"], tolerance: float) -> list[SymmetryOperation]:
    """All symmetry operations: each maps a reference pair of atoms onto an equivalent pair."""
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
            order = _permutation(graph, pos, near, 6 * tolerance)  # a frame may be off by more than its atoms
            if order is None:
                continue
            turn = _nearest_orthogonal(pos, pos[order], near)
            miss = float((pos @ turn.T - pos[order]).norm(dim=1).max())
            if miss <= tolerance and _same_fields(graph, turn, order, tolerance):
                found[_key(turn, order)] = miss, turn, order
    return [
        found[key][1:]
        for key in sorted(
            _largest_group({key: miss for key, (miss, *_) in found.items()}, len(pos)),
            key=lambda k: (k[1] < 0, k[0]),
        )
    ]


def _determinant_sign(turn: Tensor) -> int:
    return 1 if float(torch.linalg.det(turn)) > 0 else -1


def _key(turn: Tensor, order: Tensor) -> tuple[tuple[int, ...], int]:
    """Permutation of the atoms and determinant, which define the operation even for planar structures."""
    return tuple(order.tolist()), _determinant_sign(turn)


def _largest_group(misses: dict[tuple, float], n: int) -> set[tuple]:
    """Operations that form a group, added in order of accuracy if all of their products were found."""

    def times(p: tuple, q: tuple) -> tuple:
        return tuple(p[0][k] for k in q[0]), p[1] * q[1]

    kept = {(tuple(range(n)), 1)}
    for key in sorted(misses, key=lambda k: misses[k]):
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


def _linear_operations(graph: Graph, pos: Float[Tensor, "N 3"], tolerance: float) -> list[SymmetryOperation]:
    """Some operations of a linear structure or a point."""
    far = pos[pos.norm(dim=1).argmax()]
    point = float(far.norm()) <= tolerance
    axis = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64) if point else far
    axis = axis / axis.norm()
    across = torch.linalg.cross(axis, torch.eye(3, dtype=torch.float64)[axis.abs().argmin()])
    across = across / across.norm()
    eye = torch.eye(3, dtype=torch.float64)
    tried = [
        eye,
        *(_rotation_matrix(axis, angle) for angle in ANGLES),
        *(_rotation_matrix(across, angle) for angle in (*ANGLES, torch.pi)),
        eye - 2 * torch.outer(across, across),
        eye - 2 * torch.outer(axis, axis),
        -eye,
    ]
    orders = [_permutation(graph, pos, turn, tolerance) for turn in tried]
    return [
        (turn, order)
        for turn, order in zip(tried, orders)
        if order is not None and _same_fields(graph, turn, order, tolerance)
    ]


def _rotation_matrix(axis: Float[Tensor, "3"], angle: float) -> Float[Tensor, "3 3"]:
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, dtype=torch.float64)).T
    return torch.linalg.matrix_exp(angle * cross)


def _permutation(graph: Graph, pos: Tensor, turn: Tensor, tolerance: float) -> Int[Tensor, "N"] | None:
    """Index of the atom of the same element that each atom maps onto; None if there is none."""
    gaps = torch.cdist(pos @ turn.T, pos)
    gaps = gaps.masked_fill(graph.z[:, None] != graph.z, torch.inf)
    order = gaps.argmin(1)
    return (
        order
        if float(gaps.gather(1, order[:, None]).max()) <= tolerance and len(order.unique()) == len(pos)
        else None
    )


def _same_fields(graph: Graph, turn: Tensor, order: Int[Tensor, "N"], tolerance: float) -> bool:
    if graph.pair_attr is not None and graph.pair_index is not None:
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


def _nearest_orthogonal(
    here: Float[Tensor, "N 3"], there: Float[Tensor, "N 3"], near: Float[Tensor, "3 3"]
) -> Float[Tensor, "3 3"]:
    """Orthogonal matrix, with the determinant of `near`, that maps one set onto the other (Kabsch 1976)."""
    u, _, v = torch.linalg.svd(there.T @ here)
    handed = (
        torch.linalg.det(u @ v).sign() * torch.linalg.det(near).sign()
    )  # positions do not determine the handedness of planar structures
    return u @ torch.diag(torch.stack([torch.ones_like(handed), torch.ones_like(handed), handed])) @ v
