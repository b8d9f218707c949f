"""Transformer: attention over the edges of a graph that sees plain components of vectors, without any symmetry of space in it."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Backbone, Inputs
from molequi.nn.mlp import linear, mlp
from molequi.nn.radial import BesselBasis, Edges, LogDistance, edges_of

LARGEST = 10.0  # of a logit: exp(±10) needs no maximum subtracted, in any precision


class Transformer(Backbone):
    """An unconstrained graph transformer: what symmetry it has it learned, or was trained to have by turned copies of the data.

    It is the baseline that the audit of learned symmetry is made for (Vaswani et al. 2017, arXiv 1706.03762; on graphs Dwivedi and Bresson
    2020, arXiv 2012.09699), and no force field to trust in poses that it was not trained on. Each edge carries a perceptron of the
    components of its vector, x, y and z apart, and of its length; it enters keys and values. Its "1o" is called so because heads read
    vectors there: they are free numbers and turn as nothing does. Permutations hold, and translations, for only differences of positions
    enter; with `absolute` the positions themselves enter and translations do not hold either.

    A weight of attention is envelope · exp(logit) over one plus their sum, so that nothing jumps where a neighbour comes or goes, and a
    node that sees nobody keeps what it is. Logits are bounded, 10 tanh(logit / 10).

    elements: symbols or atomic numbers. cutoff: Å, None joins all pairs. channels, layers: width and depth. heads: parts of the channels
    with weights of their own, of which channels is a multiple. vectors: channels of "1o". radial: size of the Bessel basis. dim: dimensions
    of space. absolute: see positions. velocity: see Graph.vel. charge, spin: take the total charge and spin of each graph. node_features,
    edge_features, node_vectors: sizes of Graph.x, Graph.edge_attr, Graph.vec. k: each node sees only its k nearest (point clouds).

    Returns "0e": (N, channels, 1) and "1o": (N, vectors, D).
    """

    group = "C1"
    accepts = (*Backbone.accepts, "velocity")
    smooth_cutoff = True

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        channels: Annotated[int, Gt(0)] = 64,
        layers: Annotated[int, Gt(0)] = 3,
        heads: Annotated[int, Gt(0)] = 4,
        vectors: Annotated[int, Gt(0)] = 16,
        radial: Annotated[int, Gt(0)] = 16,
        dim: Annotated[int, Gt(0)] = 3,
        absolute: bool = False,
    ):
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k)
        if channels % heads:
            raise ModelError(
                f"Transformer.heads: found {heads} with channels={channels}; each head has the same number of channels, so "
                "channels must be a multiple of heads"
            )
        self.translations = not absolute
        self.dim, self.absolute, self.velocity = dim, absolute, inputs.velocity
        self.out = {"0e": channels, "1o": vectors}
        self.embedding = self.node_embedding(channels)
        seen = dim * (absolute + inputs.velocity + inputs.node_vectors)
        self.place = mlp([seen, channels, channels]) if seen else None
        self.basis = LogDistance() if cutoff is None else BesselBasis(radial, cutoff)
        self.edge = mlp(
            [dim + self.basis.size + self.num_edge_inputs, channels, channels],
            activate_last=True,
        )
        self.layers = nn.ModuleList(TransformerLayer(channels, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        self.vectors = linear(channels, vectors * dim)

    def forward(self, graph: Graph) -> Features:
        if graph.dim != self.dim:
            raise ModelError(
                f"this Transformer sees vectors of {self.dim} components, these structures have {graph.dim}; build it with dim={graph.dim}"
            )
        h = self.embedding(graph, self.element_index(graph))
        edges = edges_of(graph, self.cutoff, h.dtype)
        known, more = [torch.asinh(edges.vector), self.basis(edges.length)], self.edge_inputs(graph, edges)
        edge = self.edge(torch.cat(known if more is None else [*known, more], dim=1))  # (E, C)
        if self.place is not None:
            h = h + self.place(torch.cat(self._seen(graph, h.dtype), dim=1))
        for layer in self.layers:
            h = layer(h, edge, edges)
        h = self.norm(h)
        vectors = self.vectors(h).reshape(h.shape[0], self.out["1o"], self.dim)
        return Features(blocks={"0e": h[:, :, None], "1o": vectors}, coordination=edges.coordination)

    def _seen(self, graph: Graph, dtype: torch.dtype) -> list[Float[Tensor, "N _"]]:
        """Components of all vectors of a node, by asinh of any size."""
        if self.velocity and graph.vel is None:
            raise ModelError(
                "this Transformer reads velocities (inputs=Inputs(velocity=True)) and the structures have none; give Graph.vel"
            )
        parts = [graph.pos] if self.absolute else []
        parts += [graph.vel] if self.velocity and graph.vel is not None else []
        parts += [graph.vec.flatten(1)] if graph.vec is not None else []
        return [torch.asinh(part.to(dtype)) for part in parts]


class TransformerLayer(nn.Module):
    """h_i += O Σ_j a_ij (g(e_ij) ∘ V h_j + U e_ij), then h_i += φ(h_i), with a_ij ∝ env_ij exp(Q h_i · (K h_j + L e_ij) / √d) of each head."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query, self.key, self.value = (linear(channels, channels) for _ in range(3))
        self.edge = linear(channels, 3 * channels)
        self.mix = linear(channels, channels)
        self.own = mlp([channels, 2 * channels, channels], last_gain=0.5)

    def forward(
        self, h: Float[Tensor, "N C"], edge: Float[Tensor, "E C"], edges: Edges
    ) -> Float[Tensor, "N C"]:
        normal = self.before(h)
        to_key, gate, to_value = self.edge(edge).chunk(3, dim=1)
        key = edges.gather(self.key(normal)) + to_key
        parts = (self.heads, h.shape[1] // self.heads)
        logit = (edges.own(self.query(normal)) * key).unflatten(1, parts).sum(2) / math.sqrt(
            2 * parts[1]
        )  # (E, heads)
        weight = torch.exp(LARGEST * torch.tanh(logit / LARGEST)) * edges.envelope[:, None]
        value = (edges.gather(self.value(normal)) * gate + to_value).unflatten(1, parts)
        total = edges.sum((weight[:, :, None] * value).flatten(1)).unflatten(1, parts)
        mean = (total / (1.0 + edges.sum(weight))[:, :, None]).flatten(1)
        h = h + self.mix(mean)
        return h + self.own(self.between(h))
