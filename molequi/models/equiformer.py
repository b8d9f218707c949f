"""Equiformer: attention over irreps features, with messages in the frames of edges."""

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Inputs
from molequi.models.irreps import IrrepsBackbone, natural_layouts
from molequi.models.sizes import Layers
from molequi.nn.attention import Activation, AttentionLayer, EdgeAttention, NodePerceptron
from molequi.nn.edge_frames import EdgeFrames
from molequi.nn.mlp import mlp
from molequi.nn.norms import IrrepsNorm
from molequi.nn.radial import BesselBasis


class Equiformer(IrrepsBackbone):
    """X"""

    group = "O(3)"
    full_edges = 0.9
    family = "attention in the frames of edges"
    good_for = "high degrees: l_max up to 6"

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        axis: Axis = None,
        channels: Annotated[int, Gt(0)] = 64,
        hidden: Annotated[int, Gt(0)] = 32,
        layers: Layers = 3,
        heads: Annotated[int, Gt(0)] = 4,
        l_max: Annotated[int, Ge(0), Le(6)] = 3,
        m_max: Annotated[int, Ge(0), Le(6)] | None = None,
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        group: Literal["O(3)", "SO(3)"] = "O(3)",
        activation: Activation = "product",
        radial: Annotated[int, Gt(0)] = 8,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        if hidden % heads:
            raise ModelError(
                f"Equiformer.heads: found {heads} with hidden={hidden}; each head has the same number of "
                "channels, so hidden must be a multiple of heads"
            )
        # The points of the S2 activation have the symmetry of an octahedron, and results no more than that.
        kept = {"O(3)": "Oh", "SO(3)": "O"} if activation == "sphere" else {}
        self.group = kept.get(group, group) if axis is None else group.replace("3", "n-1")
        self.layouts = natural_layouts("Equiformer", layers=layers, l_max=l_max, l_hidden=l_max, l_out=l_out)
        m_max = l_max if m_max is None else m_max
        self.out = self.channels_with_axis(dict.fromkeys(self.layouts[-1], channels))
        self.embedding = self.node_embedding(channels)
        self.basis = BesselBasis(radial, cutoff)
        self.frames = EdgeFrames(l_max, m_max)
        self.radial = mlp([radial + self.num_edge_inputs, channels, channels], activate_last=True)
        degrees = [len(layout) - 1 for layout in self.layouts]
        self.layers = nn.ModuleList(
            AttentionLayer(
                EdgeAttention(
                    l_in=a,
                    l_out=b,
                    m_max=m_max,
                    channels=channels,
                    hidden=hidden,
                    heads=heads,
                    radial=channels,
                    reflections=group == "O(3)",
                ),
                NodePerceptron(l_max=b, channels=channels, hidden=channels, activation=activation, degree=20),
                (IrrepsNorm(a, channels), IrrepsNorm(b, channels)),
            )
            for a, b in itertools.pairwise(degrees)
        )
        self.norm = IrrepsNorm(degrees[-1], channels)

    def forward(self, graph: Graph) -> Features:
        _, h, edges, known = self.begin(graph)  # (N, 1, C), E edges, (E, R)
        radial = self.radial(known)  # (E, C)
        frames = self.frames(edges.unit)  # D_ij^l
        for layer in self.layers:
            h = layer(h, frames, radial, edges)  # (N, M, C)
        return self.features(self.norm(h), edges)
