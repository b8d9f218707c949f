"""Edges as layers need them: directions, lengths, a radial basis and a smooth envelope."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.ops import safe
from molequi.ops.regular import gather
from molequi.ops.segment import segment_sum


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Geometry of E edges in the precision of the model."""

    sender: Int[Tensor, "E"]
    receiver: Int[Tensor, "E"]
    vector: Float[Tensor, "E D"]  # from receiver to sender, Å
    unit: Float[Tensor, "E D"]
    length: Float[Tensor, "E"]
    envelope: Float[Tensor, "E"]  # 1 nearby, 0 at the cutoff with two continuous derivatives
    coordination: Float[Tensor, "N"]  # sum of the envelope over the edges of a node
    shape: tuple[int, int] | None = None  # of a regular graph: nodes, and edges that each of them receives
    reverse: Int[Tensor, "N degree"] | None = None

    def gather(self, h: Float[Tensor, "N ..."]) -> Float[Tensor, "E ..."]:
        """What the sender of each edge has."""
        return h.index_select(0, self.sender) if self.shape is None else gather(h, self.sender, self.reverse)

    def own(self, h: Float[Tensor, "N ..."]) -> Float[Tensor, "E ..."]:
        """What the receiver of each edge has."""
        if self.shape is None:
            return h.index_select(0, self.receiver)
        return h[:, None].expand(*self.shape, *h.shape[1:]).flatten(0, 1)

    def sum(self, messages: Float[Tensor, "E ..."]) -> Float[Tensor, "N ..."]:
        """Sum over the edges that each node receives."""
        if self.shape is None:
            return segment_sum(messages, self.receiver, self.coordination.shape[0])
        return messages.reshape(*self.shape, *messages.shape[1:]).sum(1)

    def contract(self, left: Float[Tensor, "E R M"], right: Float[Tensor, "E R C"]) -> Float[Tensor, "N M C"]:
        """Σ_j left_ijᵀ right_ij, matrix by matrix, over the edges that each node receives."""
        if self.shape is None:
            return self.sum(left.transpose(1, 2) @ right)
        n, degree = self.shape
        left = left.reshape(n, degree * left.shape[1], left.shape[2])
        return left.transpose(1, 2) @ right.reshape(n, degree * right.shape[1], right.shape[2])


def envelope(length: Float[Tensor, "E"], cutoff: float | None, p: int = 6) -> Float[Tensor, "E"]:
    """Polynomial cutoff of Gasteiger et al. 2020 (arXiv 2003.03123, eq. 8); exactly 0 beyond the cutoff, 1 for no cutoff."""
    if cutoff is None:
        return torch.ones_like(length)
    x = (length / cutoff).clamp(max=1.0)
    smooth = 1.0 + x**p * (-(p + 1) * (p + 2) / 2 + x * (p * (p + 2) - x * (p * (p + 1) / 2)))
    return torch.where(length < cutoff, smooth, 0.0)


def edges_of(graph: Graph, cutoff: float | None, dtype: torch.dtype) -> Edges:
    """Differences are taken in the graph's float64 and only then cast, so that a far origin costs no digits."""
    sender, receiver = graph.edge_index
    vector = graph.edge_vectors().to(dtype)
    unit, length = safe.unit(vector)
    smooth = envelope(length, cutoff)
    common = dict(sender=sender, receiver=receiver, vector=vector, unit=unit, length=length)
    if graph.real is None:
        return Edges(**common, envelope=smooth, coordination=segment_sum(smooth, receiver, graph.num_nodes))
    smooth = torch.where(graph.real, smooth.reshape(graph.real.shape), 0.0)
    return Edges(
        **common,
        envelope=smooth.flatten(),
        coordination=smooth.sum(1),
        shape=tuple(graph.real.shape),
        reverse=graph.reverse,
    )


def num_edge_inputs(edge_features: int, node_vectors: int) -> int:
    """Number of columns of `edge_inputs`."""
    return edge_features + node_vectors * (node_vectors + 2)


def edge_inputs(
    graph: Graph, edges: Edges, edge_features: int, node_vectors: int, *, where: str
) -> Float[Tensor, "E A"] | None:
    """Invariants of each edge that the structures bring along; see `Backbone.edge_inputs`. `where` names the model in messages."""
    found = 0 if graph.edge_attr is None else graph.edge_attr.shape[1]
    if found != edge_features:
        raise ModelError(
            f"this {where} takes {edge_features} features of each edge (Graph.edge_attr, from Graph.pair_attr); found {found}; "
            f"build it with inputs=Inputs(edge_features={found})"
        )
    vectors = 0 if graph.vec is None else graph.vec.shape[1]
    if vectors != node_vectors:
        raise ModelError(
            f"this {where} takes {node_vectors} vectors of each node (Graph.vec); found {vectors}; "
            f"build it with inputs=Inputs(node_vectors={vectors})"
        )
    parts = [] if graph.edge_attr is None else [graph.edge_attr.to(edges.unit.dtype)]
    if graph.vec is not None:
        vec = graph.vec.to(edges.unit.dtype)
        i, j = vec.index_select(0, edges.receiver), vec.index_select(0, edges.sender)
        products = [
            (i * edges.unit[:, None]).sum(-1),
            -(j * edges.unit[:, None]).sum(-1),
            (i @ j.transpose(1, 2)).flatten(1),
        ]
        # asinh: smooth at zero, and no more than logarithms for long vectors
        parts += [torch.asinh(p) for p in products]
    return torch.cat(parts, dim=1) if parts else None


class BesselBasis(nn.Module):
    """√(2/r_c) sin(n π r / r_c) / r for n = 1 … size (Gasteiger et al. 2020, eq. 7); finite with all derivatives at r = 0."""

    def __init__(self, size: int, cutoff: float):
        super().__init__()
        self.size, self.cutoff = size, cutoff
        self.register_buffer("frequencies", torch.arange(1, size + 1) * math.pi / cutoff, persistent=False)

    def forward(self, length: Float[Tensor, "E"]) -> Float[Tensor, "E size"]:
        r = length.clamp(min=1e-6)[:, None]
        return math.sqrt(2.0 / self.cutoff) * torch.sin(r * self.frequencies) / r


class StretchedBasis(nn.Module):
    """sin(n π u) / (x √(1 + x)) with x = 5 r / r_c and u = log(1 + x) / log(6), for n = 1 … size; finite with all derivatives at r = 0.

    These are the Bessel functions of a stretched distance, orthogonal within the sphere as they are: nodes lie closer together nearby,
    where bonds are, and values fall off faster, so that near neighbours count for more until data say otherwise. Their number sets the
    finest detail that is learned: more are not better (50 frames of ethanol, the same without the root, 12 in place of 8: 47.7 meV/Å on
    the test for 37.9).
    """

    def __init__(self, size: int, cutoff: float):
        super().__init__()
        self.size, self.cutoff = size, cutoff
        self.register_buffer(
            "frequencies", torch.arange(1, size + 1) * (math.pi / math.log(6)), persistent=False
        )

    def forward(self, length: Float[Tensor, "E"]) -> Float[Tensor, "E size"]:
        x = length.clamp(min=1e-6 * self.cutoff)[:, None] * (5 / self.cutoff)
        return torch.sin(torch.log1p(x) * self.frequencies) / (x * (1 + x).sqrt())


class LogDistance(nn.Module):
    """Basis for graphs without a cutoff: log(1 + d²), the squared distance of the EGNN paper tamed at long range."""

    size = 1

    def forward(self, length: Float[Tensor, "E"]) -> Float[Tensor, "E 1"]:
        return torch.log1p(length.square())[:, None]
