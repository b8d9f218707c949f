"""Heads for invariants: scalars, the spatial extent, and classes."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.features import Features
from molequi.graph import Graph
from molequi.heads.base import Head, Pool
from molequi.nn.mlp import linear, mlp
from molequi.ops.segment import segment_sum
from molequi.quantities import SYMBOLS, Quantity


class Scalar(Head):
    """Invariant scalars per node or graph.

    An extensive quantity such as the energy is

        E = Σ_i [E0(z_i) + t_i (scale · ε(h_i) + shift(z_i))],   t_i = tanh(coordination_i),

    so that an atom without neighbors has exactly its reference energy E0, and reaches it smoothly. Sums and
    totals are float64 in any precision of the model: float32 cannot resolve 1 meV in a total energy of 10⁴
    eV.

    Other scalars are scale · ε(h_i) + shift(z_i), averaged over the nodes if they belong to a graph. A
    pseudoscalar is Σ_c φ_c(h_i) p_ic over the channels of "0o", without a shift, and changes its sign under
    reflections.
    """

    rank, kind = 0, "value"

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None):
        super().__init__(item, pool=pool)
        if self.quantity.pseudo:
            self.needs = ("0e", "0o")
        # Always float64: float32 would round tables of total energies.
        self.reference_energies: Tensor
        self.shift: Tensor
        self.register_constant(
            "reference_energies", torch.zeros(len(SYMBOLS), dtype=torch.float64), persistent=True
        )
        self.register_constant("shift", torch.zeros(len(SYMBOLS), dtype=torch.float64), persistent=True)

    def make(self, channels: Mapping[str, int]) -> None:
        self.net = mlp([channels["0e"], channels["0e"], channels["0o"] if self.quantity.pseudo else 1])

    def contributions(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        """Contribution of each node, float64; an extensive quantity is their sum."""
        own = self.net(features.scalars)
        own = (own * features.blocks["0o"].squeeze(-1)).sum(1) if self.quantity.pseudo else own.squeeze(-1)
        own = (own * self.scale).double() + self.shift[graph.z]
        if self.quantity.extensive:
            return self.reference_energies[graph.z] + torch.tanh(features.coordination.double()) * own
        return own

    def forward(self, graph: Graph, features: Features) -> Tensor:
        return self.pool(self.contributions(graph, features), graph, features)

    def standardize(
        self,
        *,
        scale: float,
        shift: float | Mapping[int, float] = 0.0,
        reference_energies: Mapping[int, float] | None = None,
    ) -> None:
        super().standardize(scale=scale)
        if self.quantity.pseudo:
            return
        for table, given in ((self.shift, shift), (self.reference_energies, reference_energies or {})):
            if isinstance(given, Mapping):
                table.zero_()
                for z, value in given.items():
                    table[z] = value
            else:
                table.fill_(given)


class SpatialExtent(Head):
    """Electronic spatial extent in Å²:

        ⟨R²⟩ = Σ_i (z_i + q_i) |r_i - r̄|² + a_i,

    about the center r̄ of the nuclear charges, since electrons are close to nuclei. q_i and a_i come from the
    features. For plain points (z = 0) r̄ is the mean of the positions.
    """

    rank, kind = 0, "value"

    def __init__(self, item: str | Quantity = "r2"):
        super().__init__(item, pool="sum")
        self.options = {}

    def make(self, channels: Mapping[str, int]) -> None:
        self.net = mlp([channels["0e"], channels["0e"], 2])

    def forward(self, graph: Graph, features: Features) -> Tensor:
        weight = graph.z.to(graph.pos.dtype)
        plain = segment_sum(weight, graph.batch, graph.num_graphs) == 0
        weight = torch.where(plain[graph.batch], 1.0, weight)
        centre = segment_sum(weight[:, None] * graph.pos, graph.batch, graph.num_graphs)
        centre = centre / segment_sum(weight, graph.batch, graph.num_graphs)[:, None]
        extra, own = self.net(features.scalars).unbind(1)
        square = (graph.pos - centre[graph.batch]).square().sum(1)
        return segment_sum((graph.z + extra) * square + own, graph.batch, graph.num_graphs)


class Classes(Head):
    """Scores (logits) of classes, (N, K) or (G, K). Their softmax gives probabilities.

    For graphs, the output of a perceptron on each node is pooled, and a linear map of the pool gives the
    scores.
    """

    rank, kind = 0, "classes"

    def make(self, channels: Mapping[str, int]) -> None:
        width = channels["0e"]
        self.net = mlp([width, width, width], activate_last=True)
        self.score = linear(width, len(self.quantity.classes), bias=True)

    def forward(self, graph: Graph, features: Features) -> Tensor:
        return self.score(self.pool(self.net(features.scalars), graph, features))
