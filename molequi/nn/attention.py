"""Attention over irreps features, with messages in the frames of edges, and the perceptron of a node."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.nn.edge_frames import SO2Linear, into_frames, sum_from_frames
from molequi.nn.irreps import Gate, IrrepsLinear
from molequi.nn.mlp import SILU_GAIN, linear
from molequi.nn.norms import IrrepsNorm
from molequi.nn.radial import Edges
from molequi.nn.sphere import SphereActivation, SphereProduct
from molequi.ops import irreps as ir

LARGEST = 10.0  # bound of a logit: exp(±10) is finite in all precisions, without a maximum that is subtracted
SIGMOID_GAIN = 1 / math.sqrt(0.2933)  # E[sigmoid(x)²] is 0.2933 for x ~ N(0, 1)
Activation = Literal["gate", "product", "sphere"]


def natural(l_max: int) -> list[str]:
    """The irreps 0e, 1o, 2e, … up to a degree."""
    return [ir.natural(l) for l in range(l_max + 1)]


def bounded_weights(logit: Float[Tensor, "E H"], envelope: Float[Tensor, "E"]) -> Float[Tensor, "E H"]:
    """Attention weights before their normalization, u exp(10 tanh(w / 10)), with the envelope u.

    Parameters
    ----------
    logit : Tensor, shape (E, H)
        Logits w of each head.
    envelope : Tensor, shape (E,)
        u.
    """
    return torch.exp(LARGEST * torch.tanh(logit / LARGEST)) * envelope[:, None]


class EdgeAttention(nn.Module):
    """Attention with SO(2) convolutions (Equiformer, arXiv 2206.11990; EquiformerV2, arXiv 2306.12059):

        x_ij = D_ij (P h_j + Q h_i),   y_ij, s_ij = SO2(R(r_ij) ∘ x_ij),
        Δh_i = O Σ_j a_ij D_ij⁻¹ σ(y_ij),
        a_ij = u(r_ij) exp(w_ij) / (1 + Σ_k u(r_ik) exp(w_ik)),   w_ij = v · silu(s_ij).

    D_ij turns into the frame of the edge, where `SO2Linear` mixes degrees and channels. Each degree, ``|m|``
    and channel has its own radial function R. In the frame all components m = 0 are invariants: σ is SiLU for
    these, and gates for the others. Each head has its own weights a_ij and its part of the channels. u is the
    envelope, so that nothing jumps where a neighbor enters or leaves, and Δh = 0 without neighbors. Logits
    w_ij are bounded, 10 tanh(w / 10).

    Parameters
    ----------
    l_in, l_out, m_max : int
        Highest degree of h and Δh, and highest ``|m|`` in frames.
    channels : int
        Number of channels of each irrep of h and Δh.
    hidden : int
        Number of channels on edges, a multiple of `heads`.
    heads : int
        Number of attention heads.
    radial : int
        Number of invariants of an edge.
    reflections : bool
        True for O(3), False for SO(3).
    """

    def __init__(
        self,
        *,
        l_in: int,
        l_out: int,
        m_max: int,
        channels: int,
        hidden: int,
        heads: int,
        radial: int,
        reflections: bool,
    ) -> None:
        super().__init__()
        self.l_in, self.hidden, self.heads = l_in, hidden, heads
        self.m_max = min(l_in, l_out, m_max)
        self.sent, self.own = (IrrepsLinear(natural(l_in), channels, hidden) for _ in range(2))
        self.counts = [l_in + 1 - m for m in range(self.m_max + 1)]
        self.radial = linear(radial, sum(self.counts) * hidden, gain=math.sqrt(0.5))
        self.gates = l_out if self.m_max else 0
        self.so2 = SO2Linear(
            l_in=l_in,
            l_out=l_out,
            m_max=self.m_max,
            channels=hidden,
            invariants=(1 + self.gates) * hidden,
            reflections=reflections,
        )
        self.logit = nn.Parameter(torch.randn(heads, hidden // heads) * math.sqrt(heads / hidden))
        self.after = IrrepsLinear(natural(l_out), hidden, channels)

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        frames: Sequence[Tensor],
        radial: Float[Tensor, "E R"],
        edges: Edges,
    ) -> Float[Tensor, "N O C"]:
        """The change Δh.

        Parameters
        ----------
        h : Tensor, shape (N, (l_in + 1)², C)
            Features of the nodes.
        frames : sequence of Tensor
            Matrices of `EdgeFrames`.
        radial : Tensor, shape (E, R)
            Invariants of the edges, in which radial functions are linear.
        edges : Edges
            The edges.
        """
        x = edges.gather(self.sent(h)) + edges.own(self.own(h))  # (E, I, H)
        factors = self.radial(radial).unflatten(1, (-1, self.hidden)).split(self.counts, dim=1)
        blocks = [
            block * factor[:, None]
            for block, factor in zip(into_frames(x, frames, self.l_in, self.m_max), factors)
        ]
        blocks, invariants = self.so2(blocks)
        parts = invariants.unflatten(1, (-1, self.hidden))  # (E, 1 + gates, H)
        weight = self._weights(parts[:, 0], edges)  # (E, H)
        out = [nn.functional.silu(blocks[0]) * SILU_GAIN * weight[:, None, None]]
        if self.gates:
            gates = torch.sigmoid(parts[:, 1:]) * (SIGMOID_GAIN * weight)[:, None]  # (E, l_out, H)
            out += [block * gates[:, None, m:] for m, block in enumerate(blocks[1:])]
        return self.after(sum_from_frames(out, frames, edges))

    def _weights(self, s: Float[Tensor, "E H"], edges: Edges) -> Float[Tensor, "E H"]:
        """a_ij, the same for all channels of a head."""
        product = nn.functional.silu(s).unflatten(1, (self.heads, -1)) * self.logit
        logit = SILU_GAIN * product.sum(2)  # (E, heads)
        weight = bounded_weights(logit, edges.envelope)
        share = weight * edges.own(1.0 / (1.0 + edges.sum(weight)))
        return share.repeat_interleave(self.hidden // self.heads, dim=1)


class NodePerceptron(nn.Module):
    """The part of a layer that acts on each node alone, Δh = O σ(I h).

    σ is a gate (`Gate`), the product of two fields on the sphere beside a gate's invariants
    (`SphereProduct`), or SiLU of a field on the sphere (`SphereActivation`), which is equivariant only up to
    the error of its quadrature.

    Parameters
    ----------
    l_max, l_out : int
        Highest degree of h and Δh.
    channels : int
        Number of channels of each irrep.
    activation : {"gate", "product", "sphere"}
        σ.
    degree : int
        Degree of the quadrature of "sphere".
    """

    def __init__(self, *, l_max: int, l_out: int, channels: int, activation: Activation, degree: int) -> None:
        super().__init__()
        layout = natural(l_max)
        factors = 2 if activation == "product" else 1
        self.before = IrrepsLinear(layout, channels, factors * channels)
        self.act: nn.Module
        if activation == "product":
            self.act = SphereProduct(l_max)
        elif activation == "sphere":
            self.act = SphereActivation(l_max, degree)
        else:
            self.act = Gate(layout, channels)
        self.scalars = linear(channels, channels, bias=True)
        self.after = IrrepsLinear(natural(l_out), channels)
        self.factors = factors

    def forward(self, h: Float[Tensor, "N M C"]) -> Float[Tensor, "N M C"]:
        x = self.act(*self.before(h).chunk(self.factors, dim=2))
        own = nn.functional.silu(self.scalars(h[:, :1])) * SILU_GAIN
        x = torch.cat([x[:, :1] + own, x[:, 1:]], dim=1)
        return self.after(x[:, : sum(self.after.sizes)])


class AttentionLayer(nn.Module):
    """One layer: attention over the neighbors, then the perceptron of each node,

        h += attention(norm(h)),   h += perceptron(norm(h)).

    Parameters
    ----------
    attention : EdgeAttention
        From the degrees of h to all up to l_max.
    perceptron : NodePerceptron
        From these to degrees up to l_out; those of h above are dropped afterwards.
    norms : sequence of IrrepsNorm
        Before the attention and before the perceptron.
    """

    def __init__(
        self, attention: EdgeAttention, perceptron: NodePerceptron, norms: Sequence[IrrepsNorm]
    ) -> None:
        super().__init__()
        self.before, self.between = norms
        self.attention, self.perceptron = attention, perceptron

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        frames: Sequence[Tensor],
        radial: Float[Tensor, "E R"],
        edges: Edges,
    ) -> Float[Tensor, "N O C"]:
        """New features.

        Parameters
        ----------
        h, frames, radial, edges
            As in `EdgeAttention`.
        """
        moved = self.attention(self.before(h), frames, radial, edges)
        rows = h.shape[1]
        h = torch.cat([h + moved[:, :rows], moved[:, rows:]], dim=1)
        change = self.perceptron(self.between(h))
        return h[:, : change.shape[1]] + change
