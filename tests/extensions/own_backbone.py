"""A backbone of your own: SchNet (Schütt et al. 2017, arXiv 1706.08566) with vectors added, so that it predicts dipoles too."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from molequi import Backbone, Features, Graph, Inputs
from molequi.nn import BesselBasis, Edges, edges_of, linear, mlp


class SchNet(Backbone):
    """Continuous-filter convolutions, h_i += f(Σ_j W(r_ij) ∘ h_j), and vectors v_i = Σ_j U h_j r̂_ij.

    Returns "0e": (N, channels, 1) and "1o": (N, channels, D).
    """

    group = "O(n)"  # rotations and reflections; the audit measures whether that is true
    smooth_cutoff = True  # the envelope makes everything exactly zero beyond the cutoff

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        channels: Annotated[int, Gt(0)] = 64,
        layers: Annotated[int, Gt(0)] = 3,
        radial: Annotated[int, Gt(0)] = 16,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs)
        self.out = {"0e": channels, "1o": channels}
        self.embedding = self.node_embedding(channels)
        self.basis = BesselBasis(radial, cutoff)
        known = radial + self.num_edge_inputs
        self.layers = nn.ModuleList(Convolution(channels, known) for _ in range(layers))
        self.vectors = linear(channels, channels)

    def states(self) -> dict[str, str]:
        """Layouts of the layers: all of them return invariants."""
        width = self.out["0e"]
        return dict.fromkeys(("embedding", *(f"layers.{k}" for k in range(len(self.layers)))), f"{width}x0e")

    def forward(self, graph: Graph) -> Features:
        edges = edges_of(graph, self.cutoff, self.dtype)
        known = self.basis(edges.length)  # (E, radial)
        more = self.edge_inputs(graph, edges)
        known = known if more is None else torch.cat([known, more], dim=1)
        scale = self.mean_neighbors.to(self.dtype).rsqrt()
        h = self.embedding(graph, self.element_index(graph))  # (N, C)
        for layer in self.layers:
            h = h + layer(h, known, edges) * scale
        along = edges.gather(self.vectors(h)) * edges.envelope[:, None]  # (E, C)
        v = edges.sum(along[:, :, None] * edges.unit[:, None]) * scale  # (N, C, D)
        return Features(blocks={"0e": h[:, :, None], "1o": v}, coordination=edges.coordination)


class Convolution(nn.Module):
    """f(Σ_j W(r_ij) ∘ h_j), with the filter W a perceptron of the distance (eq. 2)."""

    def __init__(self, channels: int, known: int) -> None:
        super().__init__()
        self.filter = mlp([known, channels, channels])
        self.update = mlp([channels, channels, channels])

    def forward(
        self, h: Float[Tensor, "N C"], known: Float[Tensor, "E A"], edges: Edges
    ) -> Float[Tensor, "N C"]:
        weight = self.filter(known) * edges.envelope[:, None]  # (E, C)
        return self.update(edges.sum(edges.gather(h) * weight))
