"""PaiNN: messages of scalars and vectors, without tensor products (Schütt et al. 2021, arXiv 2102.03150)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Backbone, Inputs, Layouts
from molequi.nn.mlp import linear, mlp
from molequi.nn.radial import BesselBasis, Edges, LogDistance, edges_of


class PaiNN(Backbone):
    """Scalars s and vectors v on each node; messages scale them by filters of the distance, updates mix them on the node. Any dimension.

    Against the paper: sums are divided by √(mean neighbours); the cutoff is a polynomial with two continuous derivatives; scalars pass
    a layer norm before each perceptron, and a vector w = V v enters as log(1 + |w|²) and w / √(1 + |w|²). So products do not grow
    from layer to layer as they do in the paper, and nothing has the cusp of |V v| at zero, where symmetric molecules sit.

    elements: symbols or atomic numbers. cutoff: Å, None joins all pairs. channels, layers: width and depth. radial: size of the
    Bessel basis. charge, spin: take the total charge and spin of each graph. node_features, edge_features, node_vectors: sizes of
    Graph.x, Graph.edge_attr, Graph.vec; given vectors are the first v. k: each node sees only its k nearest (point clouds).
    axis: a direction that every node sees, as of a field that is the same everywhere: its components, or "learned" (three dimensions).
    `Backbone.axis` says what symmetry remains.

    Returns "0e": (N, channels, 1) and "1o": (N, channels, D); the axis is one more "1o".
    """

    group = "O(n)"
    smooth_cutoff = True

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        axis: Axis = None,
        channels: Annotated[int, Gt(0)] = 128,
        layers: Annotated[int, Gt(0)] = 3,
        radial: Annotated[int, Gt(0)] = 20,
    ):
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        self.out = self.channels_with_axis({"0e": channels, "1o": channels})
        self.embedding = self.node_embedding(channels)
        self.basis = LogDistance() if cutoff is None else BesselBasis(radial, cutoff)
        known = self.basis.size + self.num_edge_inputs
        hidden = (
            [] if cutoff is not None and known == radial else [channels]
        )  # a line in log(1 + d²) is no filter
        self.messages = nn.ModuleList(
            Message(channels, [known, *hidden], first=n == 0 and not inputs.node_vectors)
            for n in range(layers)
        )
        self.updates = nn.ModuleList(Update(channels) for _ in range(layers))
        self.start = linear(inputs.node_vectors, channels) if inputs.node_vectors else None

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of each layer."""
        width = self.embedding.element.embedding_dim
        layers: dict[str, Layouts] = {
            f"{part}.{k}": (f"{width}x0e", ["1o"])
            for k in range(len(self.messages))
            for part in ("messages", "updates")
        }
        return {"embedding": f"{width}x0e", **layers}

    def forward(self, graph: Graph) -> Features:
        s = self.embedding(graph, self.element_index(graph))
        edges = edges_of(graph, self.cutoff, s.dtype)
        known, more = self.basis(edges.length), self.edge_inputs(graph, edges)
        if more is not None:
            known = torch.cat([known, more], dim=1)
        if self.start is None:
            v = s.new_zeros(s.shape[0], graph.dim, s.shape[1])  # (N, D, C)
        else:
            v = self.start(graph.vec.to(s.dtype).transpose(1, 2))
        scale = self.mean_neighbors.to(s.dtype).rsqrt()
        for message, update in zip(self.messages, self.updates):
            s, v = update(*message(s, v, edges, known, scale))
        blocks = {"0e": s[:, :, None], "1o": v.transpose(1, 2)}
        return Features(blocks=self.with_axis(blocks), coordination=edges.coordination)


class Message(nn.Module):
    """s_i += C Σ_j φ_s(s_j) ∘ W_s(r_ij),  v_i += C Σ_j [v_j ∘ φ_vv(s_j) ∘ W_vv(r_ij) + r̂_ij φ_vs(s_j) ∘ W_vs(r_ij)]   (eqs. 7, 8).

    first: all v_j are zero, so that their filters are left out.
    """

    def __init__(self, channels: int, known: Sequence[int], *, first: bool):
        super().__init__()
        parts = 2 if first else 3
        self.phi = nn.Sequential(nn.LayerNorm(channels), *mlp([channels, channels, parts * channels]))
        # What is given may be of any size: normalised, it does not make vectors grow from layer to layer.
        self.hidden = (
            nn.Sequential(*mlp(known, activate_last=True), nn.LayerNorm(known[-1]))
            if len(known) > 1
            else nn.Identity()
        )
        # One map a part rather than a split of one: the largest tensors here are read and written as few times as can be.
        self.filters = nn.ModuleList(linear(known[-1] + 1, channels) for _ in range(parts))

    def forward(
        self,
        s: Float[Tensor, "N C"],
        v: Float[Tensor, "N D C"],
        edges: Edges,
        known: Float[Tensor, "E A"],
        scale: Tensor,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D C"]]:
        known = self.hidden(known)
        known = (
            torch.cat([known, torch.ones_like(known[:, :1])], dim=1) * (edges.envelope * scale)[:, None]
        )  # bias last
        to_s, along, *kept = (
            edges.gather(phi) * filter(known)
            for phi, filter in zip(self.phi(s).split(s.shape[1], dim=1), self.filters)
        )
        to_v = edges.unit[:, :, None] * along[:, None, :]  # (E, D, C)
        if kept:
            to_v = torch.addcmul(to_v, edges.gather(v), kept[0][:, None, :])
        return s + edges.sum(to_s), v + edges.sum(to_v)


class Update(nn.Module):
    """s += a_ss + a_sv ∘ ⟨U v, ŵ⟩,  v += a_vv ∘ U v,  with w = V v, ŵ = w / √(1 + |w|²) and a(s, log(1 + |w|²)) of each node   (eqs. 9, 10)."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = linear(channels, 2 * channels)
        self.norm = nn.LayerNorm(channels)
        self.a = mlp([2 * channels, channels, 3 * channels], last_gain=0.5)

    def forward(
        self, s: Float[Tensor, "N C"], v: Float[Tensor, "N D C"]
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D C"]]:
        u, w = self.mix(v).chunk(2, dim=2)  # U v, V v  (N, D, C)
        square = w.square().sum(1)
        a_ss, a_sv, a_vv = self.a(torch.cat([self.norm(s), torch.log1p(square)], dim=1)).chunk(3, dim=1)
        along = (u * w).sum(1) * torch.rsqrt(1.0 + square)
        return s + a_ss + a_sv * along, v + a_vv[:, None, :] * u
