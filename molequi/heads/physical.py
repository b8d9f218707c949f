"""Energies with terms of long range, and the partial charges and dipoles that belong to them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.heads.base import Head
from molequi.heads.scalars import LinearScalar
from molequi.heads.vectors import Dipole
from molequi.nn.coulomb import work_of_field
from molequi.nn.mlp import mlp
from molequi.nn.pair_energies import DISPERSION_ELEMENTS, ZBL, Dispersion, Electrostatics, Repulsion
from molequi.nn.radial import edges_of
from molequi.ops.segment import segment_mean, segment_sum
from molequi.quantities import SYMBOLS, Quantity

SMALLEST_RATIO = 1e-4  # of volumes: smaller ones would divide zero by zero


class PhysicalEnergy(LinearScalar):
    """Energy by a network, and by laws of physics with parameters from networks, as in SO3LR (Kabylda et al.
    2025, J. Am. Chem. Soc. 147, 33723):

        E = Σ_i [E0(z_i) + s(z_i) φ(h_i) + shift(z_i) + repulsion_i + electrostatics_i + dispersion_i].

    See `nn.Repulsion`, `nn.Electrostatics` and `nn.Dispersion`. Partial charges and ratios of volumes are
    predicted from the features (`PartialCharges`, `VolumeRatios`). With electrostatics the backbone has to
    take the total charge. Its cutoff is at least that of the head; with `models.So3krates` its messages may
    be shorter (``message_cutoff``).

    The terms of long range end at the cutoff, also in crystals: there is no Ewald sum. In an electric field F
    the partial charges of a molecule have the energy -Σ q F·r, so that the dipole -∂E/∂F contains Σ q r; in a
    periodic structure the field acts through the features alone.

    Parameters
    ----------
    item : str or Quantity
        The energy.
    hidden : int, optional
        Channels of the hidden layer of each network. None: as many as the features have.
    cutoff : float
        Distance in Å up to which electrostatics and dispersion go.
    repulsion : float, optional
        Distance in Å at which the cutoff function of the repulsion is zero. None: no repulsion.
    width : float, optional
        Width of the partial charges in Å. None: no electrostatics.
    damping : float, optional
        Factor of the damping lengths of the dispersion. None: no dispersion.
    switch : float
        The dispersion is switched off in an interval of this width in Å in front of the cutoff.

    Raises
    ------
    ModelError
        If the quantity is no extensive scalar, or `switch` is longer than the cutoff.

    Examples
    --------
    >>> import molequi as mq
    >>> from molequi.heads import PhysicalEnergy
    >>> backbone = mq.So3krates(
    ...     elements=["H", "O"], cutoff=8.0, message_cutoff=4.0, channels=16, inputs=mq.Inputs(charge=True)
    ... )
    >>> model = mq.Model(backbone, [PhysicalEnergy(cutoff=8.0, repulsion=4.0), "forces"]).eval()
    >>> water = mq.Graph.single(
    ...     [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"], charge=0
    ... )
    >>> model(mq.connect(water, 8.0))["forces"].shape
    torch.Size([3, 3])
    """

    def __init__(
        self,
        item: str | Quantity = "energy",
        *,
        hidden: Annotated[int, Gt(0)] | None = None,
        cutoff: Annotated[float, Gt(0)] = 12.0,
        repulsion: Annotated[float, Gt(0)] | None = 4.5,
        width: Annotated[float, Gt(0)] | None = 4.0,
        damping: Annotated[float, Gt(0)] | None = 1.2,
        switch: Annotated[float, Gt(0)] = 2.0,
    ) -> None:
        super().__init__(item)
        what = f"PhysicalEnergy({self.quantity.name})"
        if not self.quantity.extensive or self.quantity.pseudo:
            raise ModelError(f"{what}: wanted an extensive scalar, such as 'energy'")
        if switch > cutoff:
            raise ModelError(f"{what}.switch: found {switch} with cutoff={cutoff}; wanted at most the cutoff")
        self.width_of_net, self.cutoff = hidden, cutoff
        self.repulsion = None if repulsion is None else Repulsion(repulsion)
        self.electrostatics = None if width is None else Electrostatics(width, cutoff)
        self.dispersion = None if damping is None else Dispersion(damping, cutoff, switch)
        long = width is not None or damping is not None
        self.reach = max(cutoff if long else 0.0, repulsion or 0.0)

    def make(self, channels: Mapping[str, int]) -> None:
        width, hidden = channels["0e"], self.width_of_net or channels["0e"]
        self.net = mlp([width, hidden, 1])
        self.charges = None if self.electrostatics is None else PartialCharges(width, hidden)
        self.ratios = None if self.dispersion is None else VolumeRatios(width, hidden)

    def contributions(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        own = super().contributions(graph, features)
        check_reach(self, self.reach, graph)
        self._check_elements(graph)
        edges = edges_of(graph, self.reach, features.scalars.dtype)
        if self.repulsion is not None:
            own = own + self.repulsion(graph.z, edges).double()
        if self.electrostatics is not None and self.charges is not None:
            charges = self.charges(graph, features)
            own = own + self.electrostatics(charges, edges).double()
            if graph.electric_field is not None:
                own = own - charges.double() * work_of_field(graph)
        if self.dispersion is not None and self.ratios is not None:
            own = own + self.dispersion(self.ratios(graph, features), graph.z, edges).double()
        return own

    def _check_elements(self, graph: Graph) -> None:
        """Raise ModelError for elements without dispersion."""
        if self.dispersion is None or is_fake(graph.z):
            return
        outside = (graph.z < 1) | (graph.z > DISPERSION_ELEMENTS)
        if bool(outside.any()):
            number = int(graph.z[outside][0])
            raise ModelError(
                f"PhysicalEnergy({self.quantity.name}): no dispersion of {SYMBOLS[number]} (atomic number "
                f"{number}); wanted elements from H (1) to {SYMBOLS[DISPERSION_ELEMENTS]} "
                f"({DISPERSION_ELEMENTS}), or damping=None"
            )


class ZBLEnergy(LinearScalar):
    """Energy by linear maps and the repulsion of nuclei, as in models of the package nequip:

        E = Σ_i [E0(z_i) + s(z_i) W_n … W_1 h_i + shift(z_i) + repulsion_i].

    See `LinearScalar` and `nn.ZBL`. The repulsion has no parameters; it keeps atoms apart where there are no
    data.

    Parameters
    ----------
    item : str or Quantity
        The energy.
    hidden : sequence of int
        Number of channels between the linear maps.
    activation : {"silu"}, optional
        What follows each linear map but the last. None: nothing.
    cutoff : float
        Distance in Å at which the repulsion is zero, at most the cutoff of the backbone.
    exponent : int
        Exponent of its cutoff function.
    pair_cutoffs : mapping of str to mapping of str to float, optional
        Shorter cutoffs in Å by the symbols of both atoms.

    Raises
    ------
    ModelError
        If the quantity is no extensive scalar.

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = mq.NequIPGNN(elements=["H", "O"], cutoff=4.0, channels=8, layers=2, l_max=1)
    >>> model = mq.Model(backbone, [ZBLEnergy(cutoff=4.0), "forces"]).eval()
    >>> close = mq.Graph.single([[0, 0, 0], [0.1, 0, 0]], ["O", "H"])
    >>> bool(model(mq.connect(close, 4.0))["energy"] > 100)  # eV
    True
    """

    def __init__(
        self,
        item: str | Quantity = "energy",
        *,
        hidden: Sequence[Annotated[int, Gt(0)]] = (),
        activation: Literal["silu"] | None = None,
        cutoff: Annotated[float, Gt(0)] = 5.0,
        exponent: Annotated[int, Ge(2)] = 6,
        pair_cutoffs: Mapping[str, Mapping[str, Annotated[float, Gt(0)]]] | None = None,
    ) -> None:
        super().__init__(item, hidden=hidden, activation=activation)
        if not self.quantity.extensive or self.quantity.pseudo:
            raise ModelError(f"ZBLEnergy({self.quantity.name}): wanted an extensive scalar, such as 'energy'")
        self.repulsion = ZBL(cutoff, exponent, pair_cutoffs)

    def contributions(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        reach = self.repulsion.cutoff
        if graph.cutoff is not None and graph.cutoff < reach - 1e-9:
            raise ModelError(
                f"ZBLEnergy({self.quantity.name}) looks up to {reach:g} Å and the graph was connected up to "
                f"{graph.cutoff:g} Å, as far as the backbone looks; build one of them with the other cutoff"
            )
        edges = edges_of(graph, reach, features.scalars.dtype)
        return super().contributions(graph, features) + self.repulsion(graph.z, edges).double()


class AtomicCharges(Head):
    """Partial charges of the atoms, which add up to the total charge, see `PartialCharges`.

    In a model with `PhysicalEnergy` they are those of its electrostatics.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 0 of each node in e.
    """

    rank, kind = 0, "value"

    def __init__(self, item: str | Quantity = "charges") -> None:
        super().__init__(item)
        if self.quantity.per != "node":
            raise ModelError(f"AtomicCharges({self.quantity.name}): wanted a quantity with per='node'")

    def make(self, channels: Mapping[str, int]) -> None:
        self.charges = PartialCharges(channels["0e"], channels["0e"])

    def forward(self, graph: Graph, features: Features) -> Tensor:
        return self.charges(graph, features)


class ChargeDipole(Dipole):
    """Dipole moment of the partial charges in e Å: μ = Σ_i q_i (r_i - r̄), see `PartialCharges`.

    r̄ is the mean of the positions, so that the dipole of a charged molecule does not depend on the origin.
    That of a periodic structure depends on the choice of the cell and is NaN. In a model with
    `PhysicalEnergy` the charges are those of its electrostatics.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 1 of the graph in e Å.
    """

    def __init__(self, item: str | Quantity = "dipole") -> None:
        super().__init__(item)
        self.needs = ("0e",)
        if self.quantity.per != "graph" or self.quantity.pseudo:
            raise ModelError(
                f"ChargeDipole({self.quantity.name}): wanted a vector with per='graph', such as 'dipole'"
            )

    def make(self, channels: Mapping[str, int]) -> None:
        self.charges = PartialCharges(channels["0e"], channels["0e"])

    def forward(self, graph: Graph, features: Features) -> Tensor:
        center = segment_mean(graph.pos, graph.batch, graph.num_graphs)
        charge = self.charges(graph, features).to(graph.pos.dtype)
        moment = charge[:, None] * (graph.pos - center[graph.batch])
        dipole = segment_sum(moment, graph.batch, graph.num_graphs)
        return dipole if graph.pbc is None else dipole.masked_fill(graph.pbc.any(1)[:, None], float("nan"))


class PartialCharges(nn.Module):
    """Partial charges that add up to the total charge Q of the N atoms of a structure:

        q_i = p_i + (Q - Σ_j p_j) / N,   p_i = φ(h_i) + b(z_i).

    Parameters
    ----------
    channels, hidden : int
        Number of invariants, and of channels of the hidden layer of φ.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.net = mlp([channels, hidden, 1], last_gain=0.1)
        self.shift = nn.Parameter(torch.zeros(len(SYMBOLS)))

    def forward(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        """The charges in e.

        Parameters
        ----------
        graph : Graph
            A batch of structures.
        features : Features
            Output of the backbone.

        Raises
        ------
        ModelError
            If the structures have no total charge.
        """
        if graph.charge is None:
            raise ModelError(
                "partial charges need the total charge of each structure, and the structures have none; "
                "give 'charge', and build the backbone with inputs=Inputs(charge=True)"
            )
        own = self.net(features.scalars).squeeze(-1) + self.shift[graph.z]
        counts = segment_sum(torch.ones_like(own), graph.batch, graph.num_graphs).clamp(min=1)
        total = segment_sum(own, graph.batch, graph.num_graphs)
        return own + ((graph.charge.to(own.dtype) - total) / counts)[graph.batch]


class VolumeRatios(nn.Module):
    """Volume of each atom over that of the free atom (Hirshfeld):

        v_i = |b(z_i) + w(z_i) · φ(h_i) / √d|.

    Parameters
    ----------
    channels, hidden : int
        Number of invariants, and twice that of channels of the hidden layer of φ. φ has d = channels / 2
        outputs.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        size = max(channels // 2, 1)
        self.net = mlp([channels, max(hidden // 2, 1), size], last_gain=0.1)
        self.weight = nn.Parameter(torch.randn(len(SYMBOLS), size))
        self.shift = nn.Parameter(torch.ones(len(SYMBOLS)))

    def forward(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        """The ratios.

        Parameters
        ----------
        graph : Graph
            A batch of structures.
        features : Features
            Output of the backbone.
        """
        weight = self.weight[graph.z]
        own = (weight * self.net(features.scalars)).sum(1) / math.sqrt(weight.shape[1])
        return (own + self.shift[graph.z]).abs().clamp(min=SMALLEST_RATIO)


def share_charges(heads: Iterable[nn.Module], first: nn.Module | None = None) -> None:
    """Give all heads of a model that have partial charges the same ones, those of the first.

    Parameters
    ----------
    heads : iterable of Head
        Heads whose parameters were made. They are changed in place.
    first : Module, optional
        Charges that all of them get, such as those of `terms.EquilibratedCharges`.
    """
    for head in heads:
        own = getattr(head, "charges", None)
        if not isinstance(own, PartialCharges):
            continue
        first = first or own
        head.charges = first


def check_reach(head: Head, reach: float, graph: Graph) -> None:
    """Check that the edges of a graph are as long as a head looks.

    Parameters
    ----------
    head : Head
        The head.
    reach : float
        How far it looks, in Å.
    graph : Graph
        A connected graph.

    Raises
    ------
    ModelError
        If they are shorter.
    """
    if graph.cutoff is not None and graph.cutoff < reach - 1e-9:
        raise ModelError(
            f"{type(head).__name__}({head.quantity.name}) looks up to {reach:g} Å and the graph was "
            f"connected up to {graph.cutoff:g} Å, as far as the backbone looks; build it with "
            f"cutoff={reach:g}; So3krates(message_cutoff=…) keeps its messages short"
        )
