"""Heads turn features into quantities. They read blocks by irrep and never ask which backbone made them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError, did_you_mean
from molequi.features import Features
from molequi.graph import Graph
from molequi.nn.mlp import mlp
from molequi.ops.irreps import symmetric_basis
from molequi.ops.segment import segment_mean, segment_sum
from molequi.quantities import SYMBOLS, Quantity, quantity


class Head(nn.Module, ABC):
    """One quantity from the features. Parameters are made by `build`, once the backbone's channels are known."""

    needs: tuple[str, ...] = ("0e",)

    def __init__(self, item: str | Quantity):
        super().__init__()
        self.quantity = quantity(item)
        self.register_buffer("scale", torch.tensor(1.0))

    @property
    def hparams(self) -> dict[str, Any]:
        """Class and quantity, JSON-able: `HEADS[h["head"]](Quantity(**h["quantity"]))` is the same head."""
        return {"head": type(self).__name__, "quantity": asdict(self.quantity)}

    def check(self, channels: Mapping[str, int]) -> None:
        """Raises ModelError if the backbone lacks an irrep that this head reads."""
        for irrep in self.needs:
            if irrep not in channels:
                raise ModelError(
                    f"{type(self).__name__}({self.quantity.name}) reads {irrep!r} features and the backbone gives {sorted(channels)}; "
                    "choose a backbone or options that return them (for NequIP: l_max, l_out; parity=True for 0o, 1e, 2o)")

    @abstractmethod
    def build(self, channels: Mapping[str, int]) -> None:
        """Make the parameters for these channels of each irrep."""

    @abstractmethod
    def forward(self, graph: Graph, features: Features) -> Tensor:
        """The quantity: one row a graph or a node."""

    def standardize(self, *, scale: float, shift: "float | Mapping[int, float]" = 0.0,
                    isolated: Mapping[int, float] | None = None) -> None:
        """Set the scale of the values, so that the network's own output is of order one."""
        self.scale.fill_(scale)

    def pool(self, values: Float[Tensor, "N ..."], graph: Graph) -> Float[Tensor, "G ..."]:
        """Nodes to graphs: the sum for extensive quantities, the mean otherwise; per node, nothing."""
        if self.quantity.per == "node":
            return values
        pooled = segment_sum if self.quantity.extensive else segment_mean
        return pooled(values, graph.batch, graph.num_graphs)


class Scalar(Head):
    """Invariant scalars per node or graph. For an extensive one such as the energy,

        E = Σ_i isolated(z_i) + t_i (scale · ε(h_i) + shift(z_i)),   t_i = tanh(coordination_i),

    so that an atom without neighbours has exactly the energy of the isolated atom, and every atom goes there smoothly. Sums and
    totals are float64 whatever the precision of the model: float32 cannot resolve 1 meV in a total energy of 10⁴ eV.
    Other scalars are scale · ε(h_i) + shift, averaged over the nodes when they belong to a graph. A pseudoscalar is
    Σ_c φ_c(h_i) p_ic over the channels of "0o", without a shift: it changes sign in a mirror.
    """

    def __init__(self, item: str | Quantity):
        super().__init__(item)
        if self.quantity.rank:
            raise ModelError(f"Scalar({self.quantity.name}): rank {self.quantity.rank}; wanted a quantity of rank 0")
        if self.quantity.pseudo:
            self.needs = ("0e", "0o")
        self.register_buffer("isolated", torch.zeros(len(SYMBOLS), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(len(SYMBOLS), dtype=torch.float64))

    def _apply(self, fn, recurse=True):
        isolated, shift = self.isolated, self.shift
        super()._apply(fn, recurse)
        # .float() and .half() must not round tables of total energies; only the device may change
        self.isolated, self.shift = isolated.to(self.isolated.device), shift.to(self.shift.device)
        return self

    def build(self, channels):
        self.check(channels)
        self.net = mlp([channels["0e"], channels["0e"], channels["0o"] if self.quantity.pseudo else 1])

    def contributions(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        """What each node adds; their sum is the value of an extensive quantity, float64."""
        own = self.net(features.scalars)
        own = (own * features.blocks["0o"].squeeze(-1)).sum(1) if self.quantity.pseudo else own.squeeze(-1)
        own = (own * self.scale).double() + self.shift[graph.z]
        if self.quantity.extensive:
            return self.isolated[graph.z] + torch.tanh(features.coordination.double()) * own
        return own

    def forward(self, graph, features):
        return self.pool(self.contributions(graph, features), graph)

    def standardize(self, *, scale, shift=0.0, isolated=None):
        super().standardize(scale=scale)
        if self.quantity.pseudo:
            return
        for table, given in ((self.shift, shift), (self.isolated, isolated or {})):
            if isinstance(given, Mapping):
                table.zero_()
                for z, value in given.items():
                    table[z] = value
            else:
                table.fill_(given)


class Vector(Head):
    """Vectors per node or graph: Σ_c φ_c(h_i) v_ic over the channels of "1o" ("1e" for a pseudovector).

    `Vector("forces")` predicts forces directly; they are not the gradient of an energy, as the audit will say.
    """

    def __init__(self, item: str | Quantity):
        super().__init__(item)
        if self.quantity.rank != 1:
            raise ModelError(f"Vector({self.quantity.name}): rank {self.quantity.rank}; wanted a quantity of rank 1")
        self.needs = ("0e", "1e" if self.quantity.pseudo else "1o")

    def build(self, channels):
        self.check(channels)
        self.net = mlp([channels["0e"], channels["0e"], channels[self.needs[1]]])

    def vectors(self, features: Features) -> Float[Tensor, "N D"]:
        return torch.einsum("nc,ncd->nd", self.net(features.scalars), features.blocks[self.needs[1]]) * self.scale

    def forward(self, graph, features):
        return self.pool(self.vectors(features), graph)


class Dipole(Vector):
    """μ = Σ_i q_i (r_i - r̄) + μ_i with atomic charges that add up to the total charge, and atomic dipoles (e Å).

    r̄ is the centre of the positions, so that a charged molecule has a dipole that does not depend on the origin. NaN for periodic
    structures, where it depends on the choice of the cell.
    """

    def build(self, channels):
        super().build(channels)
        self.charge_net = mlp([channels["0e"], channels["0e"], 1])

    def forward(self, graph, features):
        count = graph.counts.to(graph.pos.dtype)
        total = torch.zeros_like(count) if graph.charge is None else graph.charge
        charge = (self.charge_net(features.scalars).squeeze(-1) * self.scale).to(graph.pos.dtype)
        excess = (segment_sum(charge, graph.batch, graph.num_graphs) - total) / count
        charge = charge - excess[graph.batch]
        centre = segment_sum(graph.pos, graph.batch, graph.num_graphs) / count[:, None]
        moments = charge[:, None] * (graph.pos - centre[graph.batch]) + self.vectors(features)
        dipole = self.pool(moments, graph)
        return dipole if graph.pbc is None else dipole.masked_fill(graph.pbc.any(1)[:, None], float("nan"))


class Tensor2(Head):
    """Symmetric tensors of rank 2 per node or graph: an isotropic part from invariants, a traceless one from "2e".

    A backbone without "2e" (such as EGNN, in any dimension) gives Σ_cd φ_cd(h_i) (v_c v_dᵀ + v_d v_cᵀ) over its "1o" channels instead.
    """

    def __init__(self, item: str | Quantity):
        super().__init__(item)
        if self.quantity.rank != 2:
            raise ModelError(f"Tensor2({self.quantity.name}): rank {self.quantity.rank}; wanted a quantity of rank 2")
        if self.quantity.pseudo:
            raise ModelError(f"Tensor2({self.quantity.name}): pseudotensors of rank 2 are not supported")
        self.register_buffer("shift", torch.tensor(0.0))

    def build(self, channels):
        self.needs = ("0e", "2e" if "2e" in channels else "1o")
        self.check(channels)
        width = channels[self.needs[1]]
        self.isotropic = mlp([channels["0e"], channels["0e"], 1])
        self.net = mlp([channels["0e"], channels["0e"], width if self.needs[1] == "2e" else width * width])
        self.register_buffer("basis", symmetric_basis()[1:], persistent=False)

    def _apply(self, fn, recurse=True):
        basis = getattr(self, "basis", None)
        super()._apply(fn, recurse)
        if basis is not None:
            # float64 for good: rounded on the way through .float(), it would break the symmetry by 1e-8 for ever
            self.basis = basis.to(self.basis.device)
        return self

    def forward(self, graph, features):
        weights, block = self.net(features.scalars), features.blocks[self.needs[1]]
        if self.needs[1] == "2e":
            traceless = torch.einsum("nc,ncm,mij->nij", weights, block, self.basis.to(block.dtype))
        else:
            weights = weights.reshape(-1, block.shape[1], block.shape[1])
            outer = torch.einsum("ncd,nci,ndj->nij", weights, block, block)
            traceless = outer + outer.transpose(1, 2)
        eye = torch.eye(graph.dim, dtype=block.dtype, device=block.device)
        isotropic = self.isotropic(features.scalars)[:, :, None] * eye
        return self.pool((traceless + isotropic) * self.scale + self.shift * eye, graph)

    def standardize(self, *, scale, shift=0.0, isolated=None):
        super().standardize(scale=scale)
        if not isinstance(shift, Mapping):
            self.shift.fill_(shift)


HEADS: dict[str, type[Head]] = {"Scalar": Scalar, "Vector": Vector, "Dipole": Dipole, "Tensor2": Tensor2}


def default_head(item: Quantity) -> Head:
    """The head that fits how the quantity turns."""
    if item.name == "dipole" and item.rank == 1 and item.per == "graph" and not item.pseudo:
        return Dipole(item)
    return (Scalar, Vector, Tensor2)[item.rank](item)


def head_from(hparams: Mapping[str, Any]) -> Head:
    """A head from its `hparams`; the class is looked up in the closed table HEADS."""
    if hparams.get("head") not in HEADS:
        raise ModelError(f"head {hparams.get('head')!r} is not known{did_you_mean(str(hparams.get('head')), HEADS)}")
    return HEADS[hparams["head"]](Quantity(**hparams["quantity"]))
