"""A head of your own: a number that is never negative, such as a band gap."""

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Gt
from torch import Tensor
from torch.nn.functional import softplus

from molequi import Features, Graph, Head, Quantity
from molequi.nn import mlp


class Positive(Head):
    """softplus(x) with x the mean over the nodes of φ(h_i), in units of the scale of the labels.

    Parameters
    ----------
    item : str or Quantity
        A scalar of a graph or a node.
    sharpness : float
        Softplus is max(0, x) for an infinite one.
    """

    rank, kind = 0, "value"

    def __init__(self, item: str | Quantity, *, sharpness: Annotated[float, Gt(0)] = 1.0) -> None:
        super().__init__(item)
        self.sharpness = sharpness

    def make(self, channels: Mapping[str, int]) -> None:
        self.net = mlp([channels["0e"], channels["0e"], 1])

    def forward(self, graph: Graph, features: Features) -> Tensor:
        x = self.pool(self.net(features.scalars)[:, 0], graph, features)
        return self.scale * softplus(x, beta=self.sharpness)
