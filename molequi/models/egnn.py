"""EGNN: E(n)-equivariant graph networks on plain coordinates, in any dimension (Satorras et al. 2021, arXiv 2102.09844)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from torch import nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Backbone, Inputs, Layouts
from molequi.nn.cartesian import EGNNLayer
from molequi.nn.mlp import linear
from molequi.nn.radial import BesselBasis, LogDistance, edges_of


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
    accepts = (*Backbone.accepts, "velocity")
    smooth_cutoff = True
    layer = EGNNLayer

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        axis: Axis = None,
        channels: Annotated[int, Gt(0)] = 128,
        layers: Annotated[int, Gt(0)] = 4,
        radial: Annotated[int, Gt(0)] = 16,
        attention: bool = False,
    ):
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        self.out = self.channels_with_axis({"0e": channels, "1o": layers})
        self.embedding = self.node_embedding(channels)
        basis = LogDistance() if cutoff is None else BesselBasis(radial, cutoff)
        self.speed = linear(1, channels) if inputs.velocity else None
        self.layers = nn.ModuleList(
            self.layer(
                channels=channels,
                basis=basis,
                edge_inputs=self.num_edge_inputs,
                attention=attention,
                velocity=inputs.velocity,
            )
            for _ in range(layers)
        )

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of each layer."""
        width = self.embedding.element.embedding_dim
        layers: dict[str, Layouts] = {f"layers.{k}": (f"{width}x0e", "1x1o") for k in range(len(self.layers))}
        return {"embedding": f"{width}x0e", **layers}

    def forward(self, graph: Graph) -> Features:
        h = self.embedding(graph, self.element_index(graph))
        edges = edges_of(graph, self.cutoff, h.dtype)
        scale = self.mean_neighbors.to(h.dtype).rsqrt()
        known = self.edge_inputs(graph, edges)
        velocity = None
        if self.speed is not None:
            if graph.vel is None:
                raise ModelError(
                    f"this {type(self).__name__} reads velocities (inputs=Inputs(velocity=True)) and the structures have none; "
                    "give Graph.vel"
                )
            velocity = graph.vel.to(h.dtype)
            h = h + self.speed(velocity.square().sum(1, keepdim=True).log1p())
        moved = torch.zeros_like(graph.pos, dtype=h.dtype)
        steps = []
        for layer in self.layers:
            h, delta = layer(h, moved, velocity, edges, known, scale)
            moved = moved + delta
            steps.append(delta)
        blocks = {"0e": h[:, :, None], "1o": torch.stack(steps, dim=1)}
        return Features(blocks=self.with_axis(blocks), coordination=edges.coordination)
