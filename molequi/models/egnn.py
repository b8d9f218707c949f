"""EGNN: E(n)-equivariant graph networks on plain coordinates, in any dimension (Satorras et al. 2021, arXiv 2102.09844)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Backbone, channels_with
from molequi.nn.cartesian import EGNNLayer
from molequi.nn.embedding import NodeEmbedding
from molequi.nn.mlp import linear
from molequi.nn.radial import BesselBasis, LogDistance, edges_of, num_given


class EGNN(Backbone):
    """Invariant messages and a displacement along edges.

    Against the paper: distances enter through a Bessel basis with a smooth cutoff (log(1 + d²) without one), sums are divided by
    √(mean neighbours), and coordinates live as displacements from the start, so that a far origin costs no digits.

    elements: symbols or atomic numbers. cutoff: Å, None joins all pairs. channels, layers: width and depth. radial: size of the
    Bessel basis. attention: a learned weight in (0, 1) on each message. velocity: start from Graph.vel (paper, eq. 7).
    charge, spin: take the total charge and spin of each graph. node_features, edge_features, node_vectors: sizes of Graph.x,
    Graph.edge_attr, Graph.vec. k: each node sees only its k nearest (point clouds). axis: a direction that every node sees, as of a field
    that is the same everywhere: its components, or "learned" (three dimensions). `Backbone.axis` says what symmetry remains.

    Returns "0e": (N, channels, 1) and "1o": (N, layers, D), the displacement of each layer, whose sum is the whole one; then the axis.
    """

    group = "O(n)"
    layer = EGNNLayer

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        channels: Annotated[int, Gt(0)] = 128,
        layers: Annotated[int, Gt(0)] = 4,
        radial: Annotated[int, Gt(0)] = 16,
        attention: bool = False,
        velocity: bool = False,
        charge: bool = False,
        spin: bool = False,
        node_features: Annotated[int, Ge(0)] = 0,
        edge_features: Annotated[int, Ge(0)] = 0,
        node_vectors: Annotated[int, Ge(0)] = 0,
        k: Annotated[int, Gt(0)] | None = None,
        axis: Axis = None,
    ):
        super().__init__(
            elements=elements,
            cutoff=cutoff,
            hparams=dict(
                channels=channels,
                layers=layers,
                radial=radial,
                attention=attention,
                velocity=velocity,
                charge=charge,
                spin=spin,
                node_features=node_features,
                edge_features=edge_features,
                node_vectors=node_vectors,
                k=k,
                axis=axis,
            ),
        )
        self.out = channels_with(axis, {"0e": channels, "1o": layers})
        self.embedding = NodeEmbedding(
            num_elements=len(self.elements),
            channels=channels,
            node_features=node_features,
            charge=charge,
            spin=spin,
        )
        basis = LogDistance() if cutoff is None else BesselBasis(radial, cutoff)
        self.speed = linear(1, channels) if velocity else None
        self.layers = nn.ModuleList(
            self.layer(
                channels=channels,
                basis=basis,
                given=num_given(edge_features, node_vectors, axis),
                attention=attention,
                velocity=velocity,
            )
            for _ in range(layers)
        )
        self.uses_velocity = velocity

    def forward(self, graph: Graph) -> Features:
        h = self.embedding(graph, self.element_index(graph))
        edges = edges_of(graph, self.cutoff, h.dtype)
        scale = self.mean_neighbors.to(h.dtype).rsqrt()
        if self.uses_velocity and graph.vel is None:
            raise ModelError(
                "this EGNN starts from velocities (velocity=True) and the structures have none; give Graph.vel"
            )
        given = self.given(graph, edges)
        velocity = None
        if self.uses_velocity:
            velocity = graph.vel.to(h.dtype)
            h = h + self.speed(velocity.square().sum(1, keepdim=True).log1p())
        moved = torch.zeros_like(graph.pos, dtype=h.dtype)
        steps = []
        for layer in self.layers:
            h, delta = layer(h, moved, velocity, edges, given, scale)
            moved = moved + delta
            steps.append(delta)
        blocks = {"0e": h[:, :, None], "1o": torch.stack(steps, dim=1)}
        return Features(blocks=self.with_axis(blocks), coordination=edges.coordination)
