"""Structures that the audit makes from others: rattled, wrapped, with another choice of lattice vectors,
repeated, in parts.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement, pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from molequi.errors import DataError
from molequi.graph import Graph
from molequi.neighbors import connect

USUAL_FIELD = 0.1  # V/Å


def lattice(graph: Graph) -> tuple[Float[Tensor, "G D D"], Bool[Tensor, "G D"]]:
    """Cell and periodic directions of a periodic structure. Raises DataError if it has none."""
    if graph.cell is None or graph.pbc is None:
        raise DataError("a structure without a cell; wanted a periodic one")
    return graph.cell, graph.pbc


def rattled(graph: Graph, generator: torch.Generator) -> Graph:
    """The structure with each atom moved by about 5 % of a bond length, and the cell strained by 1 %. Nothing
    is then zero because of a perfect symmetry.
    """
    distance = torch.cdist(graph.pos, graph.pos).fill_diagonal_(torch.inf).amin(1)
    near = distance[torch.isfinite(distance) & (distance > 0)]
    size = 0.05 * float(near.median()) if len(near) else 0.05
    if graph.cell is not None:
        strain = torch.randn(1, graph.dim, graph.dim, generator=generator, dtype=torch.float64)
        strain = 0.01 * strain.to(graph.pos)
        graph = graph.strained((strain + strain.transpose(1, 2)) / 2)
    if graph.cell is not None:
        lengths = graph.cell[0].norm(dim=1)
        size = min(size, 0.05 * float(lengths[lengths > 0].min()))
    noise = torch.randn(graph.pos.shape, generator=generator, dtype=torch.float64)
    return graph.replace(pos=graph.pos + size * noise.to(graph.pos))


def with_field(graph: Graph, generator: torch.Generator | None = None) -> Graph:
    """The structure in its electric field, or in none; with a generator, in a random one in addition."""
    field = graph.pos.new_zeros(1, graph.dim) if graph.electric_field is None else graph.electric_field
    if generator is not None:
        field = field + USUAL_FIELD * torch.randn(field.shape, generator=generator, dtype=torch.float64)
    return graph.replace(electric_field=field)


def near_cutoff(graph: Graph, cutoff: float | None) -> bool:
    """Whether distances are so near the cutoff that round-off matters.

    It does if a pair is within 1e-6 Å of the cutoff, because round-off in a rotation then decides whether it
    is an edge. It also does if all pairs are within 2 % of the cutoff, because their influence on the outputs
    is then as small as round-off.
    """
    if cutoff is None:
        return False
    length = connect(graph, cutoff + 1e-6).edge_vectors().norm(dim=1)
    return bool((length > cutoff - 1e-6).any()) or (
        length.numel() > 0 and bool((length > 0.98 * cutoff).all())
    )


def wrapped(graph: Graph, steps: Float[Tensor, "N D"]) -> Graph:
    """A periodic structure with each node moved by whole lattice vectors: the same crystal."""
    cell, pbc = lattice(graph)
    steps = steps.to(graph.pos) * pbc[graph.batch]
    return graph.replace(pos=graph.pos + torch.einsum("nd,ndk->nk", steps, cell[graph.batch]))


def rebased(graph: Graph, generator: torch.Generator) -> Graph:
    """A periodic structure described by an integer matrix of determinant 1 times its lattice vectors: the
    same crystal.
    """
    cell, pbc = lattice(graph)
    matrix = torch.eye(graph.dim, dtype=torch.float64)
    periodic = pbc[0].nonzero().flatten().tolist()
    for a, b in pairwise(periodic):
        if bool(torch.randint(2, (), generator=generator)):
            a, b = b, a
        matrix[a] += matrix[b] * (1.0 if bool(torch.randint(2, (), generator=generator)) else -1.0)
    return graph.replace(cell=matrix.to(cell) @ cell)


def supercell(graph: Graph) -> tuple[Graph, int]:
    """A structure twice as long in each periodic direction, and the number of copies. The nodes of one copy
    follow one another in the original order.
    """
    cell, pbc = lattice(graph)
    flags = pbc[0].tolist()
    axes = torch.meshgrid(*[torch.arange(2 if p else 1) for p in flags], indexing="ij")
    corners = torch.stack([a.flatten() for a in axes], dim=1).to(graph.pos)
    copies = len(corners)
    doubled = cell * torch.tensor([2.0 if p else 1.0 for p in flags]).to(cell)[:, None]
    pos = (graph.pos[None] + (corners @ cell[0])[:, None]).reshape(-1, graph.dim)
    repeated = {
        n: torch.cat([v] * copies) for n, v in (graph.values("node") | {"batch": graph.batch}).items()
    }
    return graph.replace(**{**repeated, "pos": pos, "cell": doubled}), copies


def with_edges_in_order(graph: Graph, generator: torch.Generator) -> Graph:
    """A connected graph with its edges in a random order."""
    if graph.edge_index is None:
        raise DataError("a structure without edges; connect it first")
    order = torch.randperm(graph.edge_index.shape[1], generator=generator)
    moved = {n: value[order] for n, value in graph.values("edge").items()}
    return graph.replace(edge_index=graph.edge_index[:, order], **moved)


def cluster(graph: Graph) -> Graph:
    """The structure without its periodicity."""
    return graph.replace(cell=None, pbc=None)


def unpaired(graph: Graph) -> Graph:
    """The structure without given pairs of nodes and their features."""
    if graph.pair_index is None:
        return graph
    none = {n: value[:0] for n, value in graph.values("pair").items()}
    return graph.replace(pair_index=graph.pair_index[:, :0], **none)


def nodes_of(graph: Graph, chosen: list[int], pos: Float[Tensor, "n D"] | None = None) -> Graph:
    """Some nodes of one structure, without periodicity; at new positions if `pos` is given."""
    parts = {n: value[chosen] for n, value in (graph.values("node") | {"batch": graph.batch}).items()}
    if pos is not None:
        parts["pos"] = pos.to(graph.pos)
    if graph.pair_index is not None:
        place = torch.full((graph.num_nodes,), -1)
        place[chosen] = torch.arange(len(chosen))
        pairs = place[graph.pair_index]
        kept = (pairs >= 0).all(0)
        parts |= {n: value[kept] for n, value in graph.values("pair").items()} | {
            "pair_index": pairs[:, kept]
        }
    return cluster(graph).replace(**parts)


def joined(a: Graph, b: Graph, gap: float) -> Graph:
    """Two structures as one, the second beyond the first along x with `gap` (Å) between them; neither is
    periodic.
    """
    a, b = cluster(a), cluster(b)
    offset = torch.zeros_like(a.pos[0])
    offset[0] = a.pos[:, 0].max() - b.pos[:, 0].min() + gap
    b = b.replace(pos=b.pos + offset)
    second = b.values("node", "pair")
    both = {n: torch.cat([value, second[n]]) for n, value in a.values("node", "pair").items()}
    both["batch"] = torch.cat([a.batch, b.batch])
    if a.pair_index is not None and b.pair_index is not None:
        both["pair_index"] = torch.cat([a.pair_index, b.pair_index + a.num_nodes], dim=1)
    return a.replace(**both)


def without_edges(graph: Graph) -> Graph:
    """The structure without edges, whatever the distances."""
    empty = torch.zeros(2, 0, dtype=torch.int64, device=graph.pos.device)
    return graph.without("edge").replace(
        edge_index=empty,
        edge_attr=None if graph.pair_attr is None else graph.pair_attr[:0],
        cutoff=torch.inf,
        shift=None if graph.cell is None else graph.pos.new_zeros(0, graph.dim),
    )


def dimers(structures: Sequence[Graph], most: int = 6) -> list[tuple[Graph, list[int]]]:
    """For each pair of elements, a structure that contains it, and the two nodes; at most `most` pairs."""
    found: dict[tuple[int, int], tuple[Graph, list[int]]] = {}
    for graph in structures:
        first: dict[int, list[int]] = {}
        for k, z in enumerate(graph.z.tolist()):
            first.setdefault(z, []).append(k)
        for a, b in combinations_with_replacement(sorted(first), 2):
            if a != b or len(first[a]) > 1:
                found.setdefault((a, b), (graph, [first[a][0], first[b][1 if a == b else 0]]))
    return list(found.values())[:most]


def dimer(graph: Graph, nodes: list[int], distance: float) -> Graph:
    """Two nodes of a structure, alone, at a distance along x, without features of the pair."""
    graph = unpaired(graph)
    pos = torch.zeros(2, graph.dim, dtype=torch.float64)
    pos[1, 0] = distance
    return nodes_of(graph, nodes, pos)
