"""The head for the velocity of a flow between noise and structures."""

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.heads.vectors import Vector
from molequi.nn.mlp import mlp
from molequi.ops.segment import segment_mean
from molequi.quantities import Quantity

FLOW_VELOCITY = Quantity("flow_velocity", per="node", rank=1, unit="Å")


class Velocity(Vector):
    """Velocity of a probability path from noise at time 0 to structures at time 1 (Lipman et al. 2022, arXiv
    2210.02747), a vector for each node:

        w_i = Σ_c φ_c(h_i) v_ic,    u_i = P w_i / (√(1 + ‖w_i‖²/R²) (1 - t + ε)).

    The network predicts how far the nodes still have to go, and the quotient turns that into a velocity:
    close to the end a small displacement means a large one. R bounds the length of w_i, since the features
    of a network can grow without bound: one structure unlike all others would end a training. P subtracts
    the mean over each graph, so that the center stays where it is. The time t is the first column of
    ``Graph.x``, as `molequi.generative.paths` writes it.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 1 per node.
    floor : float, > 0
        ε, which bounds the factor at the end.
    farthest : float, > 0, or None
        R in Å, several times the size of a structure of the data; None: no bound.

    Raises
    ------
    ModelError
        If the quantity is not one per node, or if structures have no features ``Graph.x``.

    Examples
    --------
    >>> import molequi as mq
    >>> from molequi.heads import Velocity
    >>> backbone = mq.EGNN(elements=["C", "H"], inputs=mq.Inputs(node_features=1), channels=8, layers=1)
    >>> list(mq.Model(backbone, [Velocity()]).quantities)
    ['flow_velocity']
    """

    def __init__(
        self,
        item: str | Quantity = FLOW_VELOCITY,
        *,
        floor: Annotated[float, Gt(0)] = 0.1,
        farthest: Annotated[float, Gt(0)] | None = 20.0,
    ) -> None:
        super().__init__(FLOW_VELOCITY if item == FLOW_VELOCITY.name else item)
        if self.quantity.per != "node":
            raise ModelError(f"Velocity({self.quantity.name}): a quantity per graph; wanted per='node'")
        self.floor, self.farthest = floor, farthest

    def make(self, channels: Mapping[str, int]) -> None:
        # Before training, nothing moves far.
        self.net = mlp([channels["0e"], channels["0e"], channels[self.needs[1]]], last_gain=0.1)

    def forward(self, graph: Graph, features: Features) -> Tensor:
        if graph.x is None:
            raise ModelError(
                "the velocity of a flow depends on the time, the first column of Graph.x, and the structures "
                "have no x; make them with mq.generative.paths(data, task=…)"
            )
        time = graph.x[:, :1].to(features.scalars.dtype)
        way = self.vectors(features)
        if self.farthest is not None:
            way = way * torch.rsqrt(1 + (way / self.farthest).square().sum(1, keepdim=True))
        way = way / (1 - time + self.floor)
        return way - segment_mean(way, graph.batch, graph.num_graphs)[graph.batch]
