"""Fixed equivariant descriptors of nodes, to which the strictly equivariant regression is fitted.

The density of neighbors of node i is expanded in radial functions and spherical harmonics,

    A_i^{n l m} = Σ_j R_n(r_ij) w_ij Y_lm(r_ij),

where R_n are a few Gaussians of log r and the weights w_ij come from elements and from given features of
nodes and pairs. Tensor products of two densities, and vectors of the node itself (its position relative to
the center, its velocity, given vectors), complete the set. Each descriptor transforms by its irrep. A linear
fit to descriptors of one irrep is therefore exactly equivariant, whatever its coefficients.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.graph import Graph, collate
from molequi.ops import irreps as ir

L_MAX = 4  # the lowest degree at which a cube differs from a sphere
N_RADIAL = 8  # Gaussians of log r; tensor products use fewer if there are many types of neighbors
# The largest numbers of elements, and of columns of given features, that get a channel of their own.
MAX_ELEMENTS, MAX_FEATURES = 5, 3
# With more features of an irrep, tensor products share one coefficient among all node types.
MAX_PER_IRREP = 800
N_NEIGHBORS = 24  # number of neighbors that an automatic cutoff includes on average
EDGE_CHUNK = 20_000
Irrep = tuple[int, int]  # degree l and parity


@dataclass(frozen=True)
class Descriptors:
    """Descriptors of N nodes in G structures.

    Attributes
    ----------
    batch : int Tensor, shape (N,)
        Index of the structure of each node.
    n_structures : int
        G.
    node_vectors : Tensor, shape (N, k, 3)
        Vectors of the node itself: position relative to the center, velocity, given vectors.
    node_scalars : Tensor, shape (N, M)
        The element, one-hot, followed by given features.
    density : list of Tensor
        Neighbor density A_l for l = 0, 1, 2, each of shape (N, c, 2l+1).
    coarse_density : list of Tensor
        The same with fewer radial functions, for l = 0 … L_MAX.
    relative_velocity : Tensor, shape (N, c, 3)
        Velocities relative to those of the neighbors; c = 0 if there are no velocities.
    global_scalars : Tensor, shape (G, W)
        Charge and spin of the structure, if given.
    n_coarse : int
        Number of radial functions of ``coarse_density`` for each type of neighbor.
    """

    batch: Int[Tensor, "N"]
    n_structures: int
    node_vectors: Float[Tensor, "N k 3"]
    node_scalars: Float[Tensor, "N M"]
    density: list[Tensor]
    coarse_density: list[Tensor]
    relative_velocity: Float[Tensor, "N c 3"]
    global_scalars: Float[Tensor, "G W"]
    n_coarse: int

    def sum_over_nodes(self, values: Float[Tensor, "N ..."]) -> Float[Tensor, "G ..."]:
        """Sum of node values over each structure."""
        return values.new_zeros(self.n_structures, *values.shape[1:]).index_add(0, self.batch, values)

    def equivariant_features(self, irrep: Irrep) -> Float[Tensor, "N K m"]:
        """All features of nodes that transform by this irrep."""
        found = self._candidates(irrep)
        types = self.node_scalars.shape[1]
        # The last two entries are tensor products. They share coefficients if there would be too many
        # features.
        shared = 0 if types * sum(f.shape[1] for f in found) <= MAX_PER_IRREP else len(found) - 2
        typed, untyped = torch.cat(found[: len(found) - shared], 1), found[len(found) - shared :]
        return torch.cat([(self.node_scalars[:, :, None, None] * typed[:, None]).flatten(1, 2), *untyped], 1)

    def _candidates(self, irrep: Irrep) -> list[Tensor]:
        """Features of this irrep before they are split by node type."""
        l, parity = irrep
        A, B, U = self.density, self.coarse_density, self.node_vectors
        if parity != (-1) ** l:
            if l > 1:
                raise ValueError(f"no features of degree {l} and parity {parity}")
            return [self.pseudoscalars] if l == 0 else [self.pseudovectors]
        if l == 0:
            return [
                torch.ones_like(A[0][:, :1]),
                A[0],
                *(tensor_product(B[k], B[k], 0, symmetric=True) for k in range(3)),
                tensor_product(U, U, 0, symmetric=True),
                tensor_product(U, B[1], 0),
            ]
        if l == 1:
            return [
                U,
                A[1],
                tensor_product(B[0], B[1], 1),
                tensor_product(B[2], B[1], 1),
                tensor_product(B[0], U, 1),
                tensor_product(B[2], U, 1),
                self.relative_velocity,
            ]
        return [
            A[2],
            tensor_product(B[0], B[2], 2),
            tensor_product(B[1], B[1], 2, symmetric=True),
            tensor_product(B[2], B[2], 2, symmetric=True),
            tensor_product(U, U, 2, symmetric=True),
            tensor_product(U, B[1], 2),
        ]

    @cached_property
    def pseudovectors(self) -> Float[Tensor, "N c 3"]:
        """Cross products of pairs of vectors (irrep 1e)."""
        vectors = torch.cat([self.node_vectors, self.coarse_density[1]], 1)
        a, b = torch.triu_indices(vectors.shape[1], vectors.shape[1], 1)
        return torch.linalg.cross(vectors[:, a], vectors[:, b])

    @cached_property
    def pseudoscalars(self) -> Float[Tensor, "N c 1"]:
        """Triple products of vectors (irrep 0o)."""
        vectors = torch.cat([self.node_vectors, self.coarse_density[1]], 1)[:, :8]
        triples = torch.combinations(torch.arange(vectors.shape[1]), 3)
        if not len(triples):
            return vectors.new_zeros(len(vectors), 0, 1)
        a, b, c = triples.T
        return (torch.linalg.cross(vectors[:, a], vectors[:, b]) * vectors[:, c]).sum(-1, keepdim=True)

    @cached_property
    def score_features(self) -> dict[Irrep, Float[Tensor, "N k m"]]:
        """A few features of each irrep. Their products with residuals are the scores of the test.

        An external field would couple to such features.
        """
        B, U = self.coarse_density, self.node_vectors
        near, far = slice(0, None, self.n_coarse), slice(self.n_coarse - 1, None, self.n_coarse)
        few = {
            l: torch.cat([B[l][:, near], B[l][:, far]] if self.n_coarse > 1 else [B[l]], 1)[:, :6]
            for l in range(L_MAX + 1)
        }
        typed_vectors = (self.node_scalars[:, :, None, None] * U[:, None]).flatten(1, 2)[:, :8]
        ones = torch.ones_like(B[0][:, :1])
        types = self.node_scalars[:, :, None] if self.node_scalars.shape[1] > 1 else ones[:, :0]
        found = {
            (0, 1): torch.cat([ones, types, few[0]], 1),
            (1, -1): torch.cat([typed_vectors, few[1]], 1),
            (2, 1): torch.cat([tensor_product(U, U, 2, symmetric=True), few[2]], 1),
        }
        for l in range(3, L_MAX + 1):
            power = U
            for k in range(2, l + 1):
                power = _channelwise_product(power, U, k)
            found[l, (-1) ** l] = torch.cat([power, few[l]], 1)
        return found | {(1, 1): self.pseudovectors[:, :8], (0, -1): self.pseudoscalars[:, :12]}


def tensor_product(
    a: Float[Tensor, "N a i"], b: Float[Tensor, "N b j"], l: int, *, symmetric: bool = False
) -> Float[Tensor, "N ab k"]:
    """Clebsch-Gordan products of degree l of all channels of a with all of b.

    symmetric: a is b, and each pair of channels is used once.
    """
    coupling = ir.clebsch_gordan((a.shape[2] - 1) // 2, (b.shape[2] - 1) // 2, l)
    left = torch.einsum("nai,ijk->najk", a, coupling)
    product = torch.einsum("najk,nbj->nabk", left, b)
    if not symmetric:
        return product.flatten(1, 2)
    i, j = torch.triu_indices(a.shape[1], b.shape[1])
    return product[:, i, j]


def _channelwise_product(
    a: Float[Tensor, "N c i"], b: Float[Tensor, "N c j"], l: int
) -> Float[Tensor, "N c k"]:
    """Clebsch-Gordan product of degree l of channel c of a with channel c of b."""
    coupling = ir.clebsch_gordan((a.shape[2] - 1) // 2, (b.shape[2] - 1) // 2, l)
    return torch.einsum("ncjk,ncj->nck", torch.einsum("nci,ijk->ncjk", a, coupling), b)


def choose_cutoff(data: Dataset) -> float | None:
    """Cutoff in Å that includes about N_NEIGHBORS neighbors; None, for all pairs, if structures are small."""
    if any(g.pbc is not None for g in data):
        return 5.0
    if data.counts.max() <= N_NEIGHBORS + 1 or data.graphs[0].pair_attr is not None:
        return None
    distances = []
    for graph in data.graphs[:: max(1, len(data) // 30)]:
        if graph.num_nodes > N_NEIGHBORS:
            some = graph.pos[:: max(1, graph.num_nodes // 50)]
            distances.append(torch.cdist(some, graph.pos).kthvalue(N_NEIGHBORS + 1, dim=1).values)
    return float(torch.cat(distances).median())


def compute_descriptors(data: Dataset, cutoff: float | None) -> Descriptors:
    """Descriptors of all nodes; `cutoff` in Å, None for all pairs of nodes."""
    batch = collate([g.replace(targets={}) for g in data.connected(cutoff)])
    one_hot = _one_hot_elements(batch)
    given = one_hot[:, :0] if batch.x is None else unit_rms(batch.x[:, :MAX_FEATURES])
    assert batch.edge_index is not None
    j = batch.edge_index[0]
    per_edge = [one_hot[j], given[j]]
    per_edge += [] if batch.edge_attr is None else [unit_rms(batch.edge_attr[:, :MAX_FEATURES])]
    weights = torch.cat(per_edge, 1)
    types = weights.shape[1]
    n_coarse = 4 if types <= 2 else 2 if types <= 4 else 1
    density, coarse, velocity = _neighbor_density(batch, weights, n_coarse, cutoff)
    scalars = [unit_rms(v[:, None]) for v in (batch.charge, batch.spin) if v is not None]
    return Descriptors(
        batch=batch.batch,
        n_structures=batch.num_graphs,
        node_vectors=_node_vectors(batch),
        node_scalars=torch.cat([one_hot, given], 1),
        density=density,
        coarse_density=coarse,
        relative_velocity=velocity,
        n_coarse=n_coarse,
        global_scalars=torch.cat(scalars, 1) if scalars else batch.pos.new_zeros(batch.num_graphs, 0),
    )


def _node_vectors(batch: Graph) -> Float[Tensor, "N k 3"]:
    parts = []
    if batch.pbc is None:
        counts = batch.counts
        mean = batch.pos.new_zeros(len(counts), 3).index_add(0, batch.batch, batch.pos) / counts[:, None]
        parts.append((batch.pos - mean[batch.batch])[:, None])
    parts += [] if batch.vel is None else [batch.vel[:, None]]
    parts += [] if batch.vec is None else [batch.vec]
    return torch.cat(parts, 1) if parts else batch.pos.new_zeros(len(batch.pos), 0, 3)


def _one_hot_elements(batch: Graph) -> Float[Tensor, "N e"]:
    """The most common elements get a column each; all others share the last one."""
    elements, index = batch.z.unique(return_inverse=True)
    common = torch.bincount(index).argsort(descending=True, stable=True)[:MAX_ELEMENTS]
    column = torch.full((len(elements),), min(len(elements), MAX_ELEMENTS) - 1)
    column[common] = torch.arange(len(common))
    return torch.nn.functional.one_hot(column[index]).to(batch.pos)


def _neighbor_density(
    batch: Graph, weights: Float[Tensor, "E w"], n_coarse: int, cutoff: float | None
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Density, coarse density, and velocities relative to the neighbors."""
    assert batch.edge_index is not None
    j, i = batch.edge_index
    edge = batch.edge_vectors()
    length = edge.norm(dim=1).clamp(min=1e-9)
    radial = _radial_functions(length, cutoff)
    coarse_radial = radial.unflatten(1, (n_coarse, N_RADIAL // n_coarse)).sum(2)
    nodes, types = len(batch.pos), weights.shape[1]
    density = [edge.new_zeros(nodes, N_RADIAL * types, 2 * l + 1) for l in range(3)]
    coarse = [edge.new_zeros(nodes, n_coarse * types, 2 * l + 1) for l in range(L_MAX + 1)]
    velocity = edge.new_zeros(nodes, 0 if batch.vel is None else 2 * n_coarse * types, 3)
    for start in range(0, len(edge), EDGE_CHUNK):
        part = slice(start, start + EDGE_CHUNK)
        unit = edge[part] / length[part, None]
        fine, few = ((weights[part, :, None] * f[part, None]).flatten(1) for f in (radial, coarse_radial))
        for l, y in enumerate(ir.spherical_harmonics(L_MAX, unit)):
            coarse[l].index_add_(0, i[part], few[:, :, None] * y[:, None])
            if l < 3:
                density[l].index_add_(0, i[part], fine[:, :, None] * y[:, None])
        if batch.vel is not None:
            relative = batch.vel[j[part]] - batch.vel[i[part]]
            along = (relative * unit).sum(1, keepdim=True) * unit
            both = torch.cat([few[:, :, None] * v[:, None] for v in (relative, along)], 1)
            velocity.index_add_(0, i[part], both)
    return density, coarse, velocity


def unit_rms(columns: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    """Columns scaled to a root mean square of one; columns of zeros stay zero."""
    size = columns.square().mean(0).sqrt()
    return columns / torch.where(size > 0, size, 1.0)


def _radial_functions(length: Float[Tensor, "E"], cutoff: float | None) -> Float[Tensor, "E n"]:
    """Gaussians of log r that cover the distances in the data, with a cosine cutoff if there is one."""
    if not len(length):
        return length.new_zeros(0, N_RADIAL)
    log = length.log()
    some = log[:: max(1, len(log) // 100_000)]
    low, high = (float(some.quantile(q)) for q in (0.0005, 0.995))
    step = max((high - low) / (N_RADIAL - 1), 1e-3)
    centers = low + step * torch.arange(N_RADIAL, dtype=length.dtype)
    out = torch.exp(-0.5 * ((log[:, None] - centers) / step) ** 2)
    if cutoff is None:
        return out
    return out * (0.5 * (1 + torch.cos(math.pi * (length / cutoff).clamp(max=1))))[:, None]
