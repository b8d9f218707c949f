"""Heads for vectors: free vectors, dipoles, and positions."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.heads.base import Head, Pool
from molequi.nn.mlp import mlp
from molequi.ops import safe
from molequi.ops.segment import segment_mean
from molequi.quantities import Quantity


class Vector(Head):
    """Vectors per node or graph: Σ_c φ_c(h_i) v_ic over the channels of "1o" ("1e" for a pseudovector).

    ``Vector("forces")`` predicts forces directly. They are not the gradient of an energy, and the audit
    reports this.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 1.
    pool : {"sum", "mean", "attention"}, optional
        See `Head`.
    """

    rank, kind = 1, "value"

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None) -> None:
        super().__init__(item, pool=pool)
        self.needs = ("0e", "1e" if self.quantity.pseudo else "1o")

    def make(self, channels: Mapping[str, int]) -> None:
        self.net = mlp([channels["0e"], channels["0e"], channels[self.needs[1]]])

    def vectors(self, features: Features) -> Float[Tensor, "N D"]:
        """Vector of each node.

        Parameters
        ----------
        features : Features
            Output of the backbone.

        Returns
        -------
        Tensor, shape (N, D)
            The vectors.
        """
        return (
            torch.einsum("nc,ncd->nd", self.net(features.scalars), features.blocks[self.needs[1]])
            * self.scale
        )

    def forward(self, graph: Graph, features: Features) -> Tensor:
        return self.pool(self.vectors(features), graph, features)


class Dipole(Vector):
    """Dipole moments in e Å, from atomic charges and atomic dipoles:

        μ = Σ_i q_i (r_i - r̄) + μ_i.

    r̄ is the mean of the positions, so that the dipole of a charged molecule does not depend on the origin. A
    constant in all q_i then adds nothing, so that the total charge need not be known. The dipole of a
    periodic structure depends on the choice of the cell and is NaN.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 1 in e Å.
    pool : {"sum", "mean", "attention"}, optional
        See `Head`.
    """

    def make(self, channels: Mapping[str, int]) -> None:
        super().make(channels)
        self.charge_net = mlp([channels["0e"], channels["0e"], 1])

    def forward(self, graph: Graph, features: Features) -> Tensor:
        charge = (self.charge_net(features.scalars).squeeze(-1) * self.scale).to(graph.pos.dtype)
        # The mean charge adds only round-off, which far from the origin exceeds the dipole of nearly equal
        # atoms.
        charge = charge - segment_mean(charge, graph.batch, graph.num_graphs)[graph.batch]
        center = segment_mean(graph.pos, graph.batch, graph.num_graphs)
        moments = charge[:, None] * (graph.pos - center[graph.batch]) + self.vectors(features)
        dipole = self.pool(moments, graph, features)
        return dipole if graph.pbc is None else dipole.masked_fill(graph.pbc.any(1)[:, None], float("nan"))


class DipoleMagnitude(Dipole):
    """Magnitude of the dipole in e Å, for data without directions: the norm of `Dipole`.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 0 in e Å.
    """

    rank = 0

    def __init__(self, item: str | Quantity = "mu") -> None:
        super().__init__(item, pool="sum")

    def forward(self, graph: Graph, features: Features) -> Tensor:
        return safe.norm(super().forward(graph, features))


class Position(Head):
    """Positions in Å, such as those at a later time: x_i + Σ_c φ_c(h_i) v_ic + φ_0(h_i) u_i.

    v_ic are the channels of "1o", and u_i is the velocity if there is one. For a graph it is the mean of
    these points, or a mean by attention. The points move with the structure under translations.

    Parameters
    ----------
    item : str or Quantity
        A quantity with ``point=True``.
    pool : {"sum", "mean", "attention"}, optional
        See `Head`.

    Raises
    ------
    ModelError
        For ``pool="sum"`` of a graph, since a sum of points is no point.
    """

    rank, kind = 1, "point"
    needs = ("0e", "1o")

    def make(self, channels: Mapping[str, int]) -> None:
        # Before training, points stay close to where they are.
        self.net = mlp([channels["0e"], channels["0e"], channels["1o"] + 1], last_gain=0.1)
        if self.pooling == "sum" and self.quantity.per == "graph":
            raise ModelError(
                f"Position({self.quantity.name}): a sum of points is no point; choose pool='mean' or "
                "'attention'"
            )

    def forward(self, graph: Graph, features: Features) -> Tensor:
        weights = self.net(features.scalars)
        step = torch.einsum("nc,ncd->nd", weights[:, 1:], features.blocks["1o"]) * self.scale
        if graph.vel is not None:
            step = step + weights[:, :1] * graph.vel.to(step.dtype)
        return self.pool(graph.pos + step, graph, features)
