"""What the data audit sees of structures: invariants and irreps of each node, fixed and not learned.

A_lm = Σ_j R_n(r_ij) w_ij Y_lm(r_ij), with distances in a few Gaussians of log r and weights w from elements and what is given of nodes and
pairs; products of two of them; and vectors that a node has of its own (its place from the centre, velocity, given vectors). All of it
turns exactly as its irrep says, so that a fit to it is exactly equivariant whatever its coefficients are.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.graph import collate
from molequi.ops import irreps as ir

L_MAX = 4  # a cube is told from a sphere by l = 4
RADIAL = 8  # Gaussians; fewer remain in products, the more kinds of neighbours there are
SPECIES, GIVEN = 5, 3  # most elements, and most given columns, that are told apart
MOST = 800  # features of one irrep, up to which each kind of node has coefficients of its own for all of them
NEIGHBOURS = 24  # about so many neighbours, where a cutoff must be chosen
EDGES_AT_ONCE = 20_000
Irrep = tuple[int, int]  # degree, parity


@dataclass(frozen=True)
class Described:
    """N nodes of G structures. density: A_l of degree l, (N, c, 2l+1); coarse: the same with fewer radial functions."""

    batch: Int[Tensor, "N"]
    structures: int
    own: Float[Tensor, "N k 3"]
    centre: Float[Tensor, "N M"]  # element as one of several, then given numbers
    density: list[Tensor]
    coarse: list[Tensor]
    moving: Float[Tensor, "N c 3"]  # of velocities relative to the neighbours'; c = 0 without
    whole: Float[Tensor, "G W"]  # given numbers of the structure
    radial: int  # functions that `coarse` has for each kind of neighbour

    def sum(self, nodes: Float[Tensor, "N ..."]) -> Float[Tensor, "G ..."]:
        """Over the nodes of each structure."""
        return nodes.new_zeros(self.structures, *nodes.shape[1:]).index_add(0, self.batch, nodes)

    def strict(self, irrep: Irrep) -> Float[Tensor, "N K m"]:
        """Features of nodes that turn as this irrep, for the equivariant fit; () for irreps that have none."""
        l, parity = irrep
        A, B, U = self.density, self.coarse, self.own
        if parity != (-1) ** l:
            if l > 1:
                raise ValueError(f"no features of degree {l} and parity {parity}")
            found = [self.chiral] if l == 0 else [self.axial]
        elif l == 0:
            ones = torch.ones_like(A[0][:, :1])
            found = [
                ones,
                A[0],
                *(coupled(B[k], B[k], 0, distinct=True) for k in range(3)),
                coupled(U, U, 0, distinct=True),
                coupled(U, B[1], 0),
            ]
        elif l == 1:
            found = [
                U,
                A[1],
                coupled(B[0], B[1], 1),
                coupled(B[2], B[1], 1),
                coupled(B[0], U, 1),
                coupled(B[2], U, 1),
                self.moving,
            ]
        else:
            found = [
                A[2],
                coupled(B[0], B[2], 2),
                coupled(B[1], B[1], 2, distinct=True),
                coupled(B[2], B[2], 2, distinct=True),
                coupled(U, U, 2, distinct=True),
                coupled(U, B[1], 2),
            ]
        kinds = self.centre.shape[1]
        # where there are too many, products of two have one coefficient for all kinds
        alone = 0 if kinds * sum(f.shape[1] for f in found) <= MOST else len(found) - 2
        first, rest = torch.cat(found[: len(found) - alone], 1), found[len(found) - alone :]
        return torch.cat([(self.centre[:, :, None, None] * first[:, None]).flatten(1, 2), *rest], 1)

    @cached_property
    def axial(self) -> Float[Tensor, "N c 3"]:
        """Pseudovectors: cross products."""
        pool = torch.cat([self.own, self.coarse[1]], 1)
        a, b = torch.triu_indices(pool.shape[1], pool.shape[1], 1)
        return torch.linalg.cross(pool[:, a], pool[:, b])

    @cached_property
    def chiral(self) -> Float[Tensor, "N c 1"]:
        """Pseudoscalars: triple products."""
        pool = torch.cat([self.own, self.coarse[1]], 1)[:, :8]
        triples = torch.combinations(torch.arange(pool.shape[1]), 3)
        if not len(triples):
            return pool.new_zeros(len(pool), 0, 1)
        a, b, c = triples.T
        return (torch.linalg.cross(pool[:, a], pool[:, b]) * pool[:, c]).sum(-1, keepdim=True)

    @cached_property
    def probes(self) -> dict[Irrep, Float[Tensor, "N k m"]]:
        """A few features of each irrep, which residuals are multiplied with: what a field could act on."""
        B, U = self.coarse, self.own
        near, far = slice(0, None, self.radial), slice(self.radial - 1, None, self.radial)
        few = {
            l: torch.cat([B[l][:, near], B[l][:, far]] if self.radial > 1 else [B[l]], 1)[:, :6]
            for l in range(L_MAX + 1)
        }
        spread = (self.centre[:, :, None, None] * U[:, None]).flatten(1, 2)[:, :8]
        ones = torch.ones_like(B[0][:, :1])
        marks = self.centre[:, :, None] if self.centre.shape[1] > 1 else ones[:, :0]
        found = {
            (0, 1): torch.cat([ones, marks, few[0]], 1),
            (1, -1): torch.cat([spread, few[1]], 1),
            (2, 1): torch.cat([coupled(U, U, 2, distinct=True), few[2]], 1),
        }
        for l in range(3, L_MAX + 1):
            power = U
            for k in range(2, l + 1):
                power = _matched(power, U, k)
            found[l, (-1) ** l] = torch.cat([power, few[l]], 1)
        return found | {(1, 1): self.axial[:, :8], (0, -1): self.chiral[:, :12]}


def coupled(
    a: Float[Tensor, "N a i"], b: Float[Tensor, "N b j"], l: int, *, distinct: bool = False
) -> Float[Tensor, "N ab k"]:
    """All products of a channel of a with one of b, coupled to degree l; distinct: a is b, and each pair is wanted once."""
    coupling = ir.clebsch_gordan((a.shape[2] - 1) // 2, (b.shape[2] - 1) // 2, l)
    left = torch.einsum("nai,ijk->najk", a, coupling)
    product = torch.einsum("najk,nbj->nabk", left, b)
    if not distinct:
        return product.flatten(1, 2)
    i, j = torch.triu_indices(a.shape[1], b.shape[1])
    return product[:, i, j]


def _matched(a: Float[Tensor, "N c i"], b: Float[Tensor, "N c j"], l: int) -> Float[Tensor, "N c k"]:
    """Products of channels of the same number."""
    coupling = ir.clebsch_gordan((a.shape[2] - 1) // 2, (b.shape[2] - 1) // 2, l)
    return torch.einsum("ncjk,ncj->nck", torch.einsum("nci,ijk->ncjk", a, coupling), b)


def choose_cutoff(data: Dataset) -> float | None:
    """None (all pairs) for small structures; else a distance within which a node has about NEIGHBOURS others."""
    if any(g.pbc is not None for g in data):
        return 5.0
    if data.counts.max() <= NEIGHBOURS + 1 or data.graphs[0].pair_attr is not None:
        return None
    reach = []
    for graph in data.graphs[:: max(1, len(data) // 30)]:
        if graph.num_nodes > NEIGHBOURS:
            some = graph.pos[:: max(1, graph.num_nodes // 50)]
            reach.append(torch.cdist(some, graph.pos).kthvalue(NEIGHBOURS + 1, dim=1).values)
    return float(torch.cat(reach).median())


def describe(data: Dataset, cutoff: float | None) -> Described:
    """Descriptors of all nodes; `cutoff` in Å, None for all pairs."""
    batch = collate([g.replace(targets={}) for g in data.connected(cutoff)])
    counts = batch.counts
    own = [] if batch.pbc is not None else [centred(batch.pos, batch.batch, counts)[:, None]]
    own += [] if batch.vel is None else [batch.vel[:, None]]
    own += [] if batch.vec is None else [batch.vec]
    own = torch.cat(own, 1) if own else batch.pos.new_zeros(len(batch.pos), 0, 3)
    elements, rank = batch.z.unique(return_inverse=True)
    common = torch.bincount(rank).argsort(descending=True, stable=True)[:SPECIES]
    kind = torch.full(
        (len(elements),), min(len(elements), SPECIES) - 1
    )  # rare ones are one kind with the last
    kind[common] = torch.arange(len(common))
    marks = torch.nn.functional.one_hot(kind[rank]).to(batch.pos)
    given = marks[:, :0] if batch.x is None else unit_rms(batch.x[:, :GIVEN])
    j, i = batch.edge_index
    edge = batch.edge_vectors()
    weights = [marks[j], given[j]]
    weights += [] if batch.edge_attr is None else [unit_rms(batch.edge_attr[:, :GIVEN])]
    weights = torch.cat(weights, 1)
    length = edge.norm(dim=1).clamp(min=1e-9)
    radial = _radial(length, cutoff)
    kinds = weights.shape[1]
    fewer = 4 if kinds <= 2 else 2 if kinds <= 4 else 1
    coarse = radial.unflatten(1, (fewer, RADIAL // fewer)).sum(2)
    density = [edge.new_zeros(len(batch.pos), RADIAL * kinds, 2 * l + 1) for l in range(3)]
    rough = [edge.new_zeros(len(batch.pos), fewer * kinds, 2 * l + 1) for l in range(L_MAX + 1)]
    moving = edge.new_zeros(len(batch.pos), 0 if batch.vel is None else 2 * fewer * kinds, 3)
    for start in range(0, len(edge), EDGES_AT_ONCE):
        part = slice(start, start + EDGES_AT_ONCE)
        unit = edge[part] / length[part, None]
        fine, few = ((weights[part, :, None] * f[part, None]).flatten(1) for f in (radial, coarse))
        for l, y in enumerate(ir.spherical_harmonics(L_MAX, unit)):
            rough[l].index_add_(0, i[part], few[:, :, None] * y[:, None])
            if l < 3:
                density[l].index_add_(0, i[part], fine[:, :, None] * y[:, None])
        if batch.vel is not None:
            relative = batch.vel[j[part]] - batch.vel[i[part]]
            along = (relative * unit).sum(1, keepdim=True) * unit
            moving.index_add_(
                0, i[part], torch.cat([few[:, :, None] * v[:, None] for v in (relative, along)], 1)
            )
    whole = [unit_rms(v[:, None]) for v in (batch.charge, batch.spin) if v is not None]
    return Described(
        batch=batch.batch,
        structures=batch.num_graphs,
        own=own,
        centre=torch.cat([marks, given], 1),
        density=density,
        coarse=rough,
        moving=moving,
        radial=fewer,
        whole=torch.cat(whole, 1) if whole else batch.pos.new_zeros(batch.num_graphs, 0),
    )


def centred(
    pos: Float[Tensor, "N 3"], batch: Int[Tensor, "N"], counts: Int[Tensor, "G"]
) -> Float[Tensor, "N 3"]:
    """Positions from the mean of their structure."""
    mean = pos.new_zeros(len(counts), 3).index_add(0, batch, pos) / counts[:, None]
    return pos - mean[batch]


def unit_rms(columns: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    """Columns of mean square one; a column of zeros stays."""
    size = columns.square().mean(0).sqrt()
    return columns / torch.where(size > 0, size, 1.0)


def _radial(length: Float[Tensor, "E"], cutoff: float | None) -> Float[Tensor, "E n"]:
    """Gaussians of log r between the distances that occur."""
    if not len(length):
        return length.new_zeros(0, RADIAL)
    log = length.log()
    some = log[:: max(1, len(log) // 100_000)]
    low, high = (float(some.quantile(q)) for q in (0.0005, 0.995))
    step = max((high - low) / (RADIAL - 1), 1e-3)
    centres = low + step * torch.arange(RADIAL, dtype=length.dtype)
    out = torch.exp(-0.5 * ((log[:, None] - centres) / step) ** 2)
    return (
        out
        if cutoff is None
        else out * (0.5 * (1 + torch.cos(math.pi * (length / cutoff).clamp(max=1))))[:, None]
    )
