"""The E(n) layer on plain coordinates (Satorras et al. 2021, arXiv 2102.09844)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.nn.mlp import linear, mlp
from molequi.nn.radial import Edges, RadialBasis
from molequi.ops import safe


class EGNNLayer(nn.Module):
    """One E(n)-equivariant graph convolution:

        m_ij = φ_e(h_i, h_j, ‖x_i - x_j‖, a_ij) · u(r_ij) · e_ij               (eqs. 3, 8)
        Δx_i = C Σ_j (x_i - x_j) / (‖x_i - x_j‖ + 1) φ_x(m_ij) + φ_v(h_i) v_i  (eqs. 4, 7)
        h_i ← h_i + φ_h(h_i, C Σ_j m_ij)                                       (eqs. 5, 6)

    The weight e_ij of attention and the term of the velocity v_i are optional. The smooth envelope u of the
    initial distance prevents a jump where a neighbor enters the list. The division by ‖x_i - x_j‖ + 1 bounds
    the step where points coincide. C is the argument `scale`.

    Parameters
    ----------
    channels : int
        Number of invariant features h of a node.
    basis : RadialBasis
        Functions of the distance ‖x_i - x_j‖.
    edge_inputs : int
        Number of invariants a_ij of an edge.
    attention : bool
        Whether messages have weights e_ij.
    velocity : bool
        Whether the step contains the velocity.
    """

    def __init__(
        self, *, channels: int, basis: RadialBasis, edge_inputs: int, attention: bool, velocity: bool
    ) -> None:
        super().__init__()
        self.basis = basis
        # The first layer of φ_e acts on [h_i, h_j, edge]. Its part for nodes comes before the gather, which
        # is E/N times cheaper.
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
        velocity: Float[Tensor, "N D"] | None,
        edges: Edges,
        edge_inputs: Float[Tensor, "E A"] | None,
        scale: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D"]]:
        """New invariants, and the step.

        Parameters
        ----------
        h : Tensor, shape (N, C)
            Invariants of the nodes.
        moved : Tensor, shape (N, D)
            Displacements of the nodes from their initial positions, in Å.
        velocity : Tensor, shape (N, D), optional
            Initial velocities v.
        edges : Edges
            Edges between the initial positions.
        edge_inputs : Tensor, shape (E, A), optional
            Invariants a_ij of the edges.
        scale : Tensor, shape ()
            C, usually 1/√(mean number of neighbors).

        Returns
        -------
        h : Tensor, shape (N, C)
            New invariants.
        step : Tensor, shape (N, D)
            Δx.
        """
        away, message = self.messages(h, moved, edges, edge_inputs)
        delta = self.displacement(h, away, message, velocity, edges, scale)
        total = edges.sum(message) * scale
        h = h + self.update(torch.cat([h, total], dim=1))
        return h, delta

    def messages(
        self,
        h: Float[Tensor, "N C"],
        moved: Float[Tensor, "N D"],
        edges: Edges,
        edge_inputs: Float[Tensor, "E A"] | None,
    ) -> tuple[Float[Tensor, "E D"], Float[Tensor, "E C"]]:
        """Vectors (x_i - x_j) / (‖x_i - x_j‖ + 1), and messages m_ij.

        Parameters
        ----------
        h, moved, edges, edge_inputs
            As in `forward`.

        Returns
        -------
        away : Tensor, shape (E, D)
            The vectors.
        message : Tensor, shape (E, C)
            The messages.
        """
        away = edges.own(moved) - edges.gather(moved) - edges.vector  # x_i - x_j  (E, D)
        length = safe.norm(away)
        known = self.basis(length)
        if edge_inputs is not None:
            known = torch.cat([known, edge_inputs], dim=1)
        first = edges.own(self.from_receiver(h)) + edges.gather(self.from_sender(h)) + self.from_edge(known)
        message = self.message(torch.nn.functional.silu(first)) * edges.envelope[:, None]  # m_ij  (E, C)
        if self.attention is not None:
            message = message * torch.sigmoid(self.attention(message))
        return away / (length[:, None] + 1.0), message

    def displacement(
        self,
        h: Float[Tensor, "N C"],
        away: Float[Tensor, "E D"],
        message: Float[Tensor, "E C"],
        velocity: Float[Tensor, "N D"] | None,
        edges: Edges,
        scale: Float[Tensor, ""],
    ) -> Float[Tensor, "N D"]:
        """The step Δx, with its term of the velocity.

        Parameters
        ----------
        h, velocity, edges, scale
            As in `forward`.
        away, message
            What `messages` returns.

        Returns
        -------
        Tensor, shape (N, D)
            The step.
        """
        delta = edges.sum(away * (self.step(message) * edges.envelope[:, None])) * scale
        return delta if self.velocity is None else delta + self.velocity(h) * velocity
