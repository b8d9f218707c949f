"""The E(n) layer on plain coordinates (Satorras et al. 2021, arXiv 2102.09844)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.nn.mlp import linear, mlp
from molequi.ops import safe


class EGNNLayer(nn.Module):
    """One E(n)-equivariant graph convolution.

    | paper | here |                                                   | equation |
    |-------|------|---------------------------------------------------|----------|
    | m_ij  | message = φ_e(h_i, h_j, ‖x_i - x_j‖, a_ij) · u(r_ij) · e_ij | 3, 8 (e_ij: attention) |
    | x_i   | Δx_i = C Σ_j (x_i - x_j) / (‖x_i - x_j‖ + 1) φ_x(m_ij)  | 4        |
    | v_i   | φ_v(h_i) v_i^init + Δx_i, which is then the step          | 7        |
    | h_i   | h_i + φ_h(h_i, C Σ_j m_ij)                              | 5, 6     |

    u is the smooth envelope of the *starting* distance, so that nothing jumps when a neighbour enters the list. Dividing by
    ‖x_i - x_j‖ + 1 bounds the step where points coincide. C = 1/√(mean neighbours).
    """

    def __init__(self, *, channels: int, basis: nn.Module, edge_inputs: int, attention: bool, velocity: bool):
        super().__init__()
        self.basis = basis
        # The first layer of φ_e acts on [h_i, h_j, edge]; on nodes it is applied before the gather, E/N times cheaper.
        self.from_receiver = linear(channels, channels, bias=True, gain=0.5)
        self.from_sender = linear(channels, channels, gain=0.5)
        self.from_edge = linear(basis.size + edge_inputs, channels)
        self.message = mlp([channels, channels], activate_last=True)
        self.attention = linear(channels, 1, bias=True) if attention else None
        self.step = mlp([channels, channels, 1], last_gain=0.01)
        self.velocity = mlp([channels, channels, 1], last_gain=0.01) if velocity else None
        self.update = mlp([2 * channels, channels, channels])

    def forward(
        self,
        h: Float[Tensor, "N C"],
        moved: Float[Tensor, "N D"],
        velocity: Tensor | None,
        edges,
        edge_inputs: Tensor | None,
        scale: Tensor,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D"]]:
        away, message = self.messages(h, moved, edges, edge_inputs)
        delta = self.displacement(h, away, message, velocity, edges, scale)
        total = edges.sum(message) * scale
        h = h + self.update(torch.cat([h, total], dim=1))
        return h, delta

    def messages(
        self, h: Float[Tensor, "N C"], moved: Float[Tensor, "N D"], edges, edge_inputs: Tensor | None
    ) -> tuple[Float[Tensor, "E D"], Float[Tensor, "E C"]]:
        """(x_i - x_j) / (‖x_i - x_j‖ + 1), and m_ij."""
        away = edges.own(moved) - edges.gather(moved) - edges.vector  # x_i - x_j    (E, D)
        length = safe.norm(away)
        known = self.basis(length)
        if edge_inputs is not None:
            known = torch.cat([known, edge_inputs], dim=1)
        first = edges.own(self.from_receiver(h)) + edges.gather(self.from_sender(h)) + self.from_edge(known)
        message = (
            self.message(torch.nn.functional.silu(first)) * edges.envelope[:, None]
        )  # m_ij          (E, C)
        if self.attention is not None:
            message = message * torch.sigmoid(self.attention(message))
        return away / (length[:, None] + 1.0), message

    def displacement(
        self,
        h: Float[Tensor, "N C"],
        away: Float[Tensor, "E D"],
        message: Float[Tensor, "E C"],
        velocity: Tensor | None,
        edges,
        scale: Tensor,
    ) -> Float[Tensor, "N D"]:
        """Δx_i, with velocities the whole step."""
        delta = edges.sum(away * (self.step(message) * edges.envelope[:, None])) * scale
        return delta if self.velocity is None else delta + self.velocity(h) * velocity
