"""Heads for invariants: scalars, the spatial extent, and classes."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

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

    so that the energy of an atom goes smoothly to its reference energy E0 when its neighbors leave. Sums are
    float64 in any precision of the model, since float32 cannot resolve 1 meV in a total energy of 10⁴ eV.

    Other scalars are scale · ε(h_i) + shift(z_i), pooled over the nodes if they belong to a graph. A
    pseudoscalar is Σ_c φ_c(h_i) p_ic over the channels of "0o", without a shift, and changes its sign under
    reflections.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 0.
    pool : {"sum", "mean", "attention"}, optional
        See `Head`.

    Attributes
    ----------
    reference_energies, shift : Tensor, shape (119,)
        E0 and shift by atomic number, float64.
    isolated : bool
        Whether an atom without neighbors has exactly the energy E0.
    """

    rank, kind = 0, "value"
    isolated: ClassVar[bool] = True

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None) -> None:
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
        """Contribution of each node; an extensive quantity is their sum.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures.
        features : Features
            Output of the backbone.

        Returns
        -------
        Tensor, shape (N,)
            Contributions, float64.
        """
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
                for z, value in given.items():  # other elements keep theirs, which new data may not have
                    table[z] = value
            else:
                table.fill_(given)


class SpatialExtent(Head):
    """Electronic spatial extent in Å²::

        ⟨R²⟩ = Σ_i (z_i + q_i) |r_i - r̄|² + a_i,

    about the center r̄ of the nuclear charges, since electrons are close to nuclei. q_i and a_i come from the
    features. For plain points (z = 0) r̄ is the mean of the positions.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 0 in Å².
    """

    rank, kind = 0, "value"

    def __init__(self, item: str | Quantity = "r2") -> None:
        super().__init__(item, pool="sum")

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
    """Scores (logits) of K classes, shape (N, K) or (G, K). Their softmax gives probabilities.

    For graphs, the output of a perceptron on each node is pooled, and a linear map of the result gives the
    scores.

    Parameters
    ----------
    item : str or Quantity
        A quantity with classes.
    pool : {"sum", "mean", "attention"}, optional
        See `Head`.
    """

    rank, kind = 0, "classes"

    def make(self, channels: Mapping[str, int]) -> None:
        width = channels["0e"]
        self.net = mlp([width, width, width], activate_last=True)
        self.score = linear(width, len(self.quantity.classes), bias=True)

    def forward(self, graph: Graph, features: Features) -> Tensor:
        return self.score(self.pool(self.net(features.scalars), graph, features))


class LinearScalar(Scalar):
    """Invariant scalars by linear maps, as the readout of published force fields:

        E = Σ_i [E0(z_i) + s(z_i) W_n … W_1 h_i + shift(z_i)].

    In contrast to `Scalar`, there is no bias, no nonlinearity unless there is an `activation`, and an atom
    without neighbors has the energy that the network gives it.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 0.
    hidden : sequence of int
        Number of channels between the linear maps.
    activation : {"silu"}, optional
        What follows each linear map but the last. None: nothing.
    pool : {"sum", "mean", "attention"}, optional
        See `Head`.

    Attributes
    ----------
    element_scale : Tensor, shape (119,)
        s by atomic number, float64.
    """

    isolated = False

    def __init__(
        self,
        item: str | Quantity,
        *,
        hidden: Sequence[Annotated[int, Gt(0)]] = (),
        activation: Literal["silu"] | None = None,
        pool: Pool | None = None,
    ) -> None:
        super().__init__(item, pool=pool)
        self.hidden, self.activation = tuple(hidden), activation
        self.element_scale: Tensor
        self.register_constant(
            "element_scale", torch.ones(len(SYMBOLS), dtype=torch.float64), persistent=True
        )

    def make(self, channels: Mapping[str, int]) -> None:
        sizes = [channels["0e"], *self.hidden, 1]
        if self.activation is None:
            self.net = nn.Sequential(*(linear(a, b) for a, b in itertools.pairwise(sizes)))
        else:
            self.net = mlp(sizes, bias=False)

    def contributions(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        own = (self.net(features.scalars).squeeze(-1) * self.scale).double() * self.element_scale[graph.z]
        return self.reference_energies[graph.z] + own + self.shift[graph.z]
