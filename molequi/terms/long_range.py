"""Long range: electrostatics of charges that are predicted from the features of any backbone."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.nn.coulomb import coulomb_matrix, coulomb_potential, work_of_field
from molequi.nn.mlp import mlp
from molequi.quantities import SYMBOLS
from molequi.util.options import Options
from molequi.util.signature import check_keywords

HARDNESS = 10.0  # eV/e², of all elements before the training
RIDGE = 1.0  # eV/e²: least hardness


@check_keywords()
@dataclass(frozen=True)
class LongRange(Options):
    """Electrostatics without a cutoff; in YAML ``long_range: latent``, or with options in a mapping.

    Parameters
    ----------
    charges : {"latent", "equilibrated"}
        "latent": a perceptron of the features gives the charges, which need not be physical and do not add up
        to a total, see `LatentCharges`. "equilibrated": it gives electronegativities and hardnesses, and the
        charges minimize the energy at the total charge of each structure, see `EquilibratedCharges`.
    channels : int
        Number of latent charges of each atom. Each channel interacts with itself.
    width : float
        Width σ of the charges, which are Gaussians, in Å.

    Raises
    ------
    ConfigError
        For wrong types, values out of range, and several channels of equilibrated charges.
    """

    charges: Literal["latent", "equilibrated"] = "latent"
    channels: Annotated[int, Ge(1)] = 1
    width: Annotated[float, Gt(0)] = 1.0

    shorthand: ClassVar[str] = "charges"

    def problem(self) -> str:
        if self.charges == "equilibrated" and self.channels > 1:
            return f"channels={self.channels}: equilibrated charges are one for each atom; leave channels out"
        return ""

    def make(self, channels: int) -> "LatentCharges | EquilibratedCharges":
        """The module that computes the energies.

        Parameters
        ----------
        channels : int
            Number of invariant features.
        """
        if self.charges == "equilibrated":
            return EquilibratedCharges(channels, self.width)
        return LatentCharges(channels, self.channels, self.width)

    @property
    def words(self) -> str:
        """What it is, for the summary of a model."""
        several = f" in {self.channels} channels" if self.channels > 1 else ""
        return f"{self.charges} charges{several} of width {self.width:g} Å, all pairs and Ewald sums"


class LatentCharges(nn.Module):
    """Energy of charges that the features of an atom determine (Cheng 2025, 10.1038/s41524-025-01577-7):

        E_i = ½ Σ_c q_ic Σ_j q_jc k erf(r_ij / 2σ) / r_ij,   q_i = φ(h_i) + b(z_i),

    over all other atoms and all periodic images, see `nn.coulomb_potential`. An atom alone has the energy 0.

    An electric field acts on the features alone; there is no term -q F·r. The energy does not change if all
    charges of a channel change sign, and they do not add up to the total charge, so that they have no dipole.

    Parameters
    ----------
    channels, charges : int
        Number of invariant features, and of charges of each atom.
    width : float
        σ in Å.
    """

    isolated = True  # an atom alone has no energy

    def __init__(self, channels: int, charges: int, width: float) -> None:
        super().__init__()
        self.width = width
        self.net = mlp([channels, channels, charges], last_gain=0.1)
        self.shift = nn.Parameter(torch.zeros(len(SYMBOLS), charges))

    def forward(self, graph: Graph, features: Features) -> Float[Tensor, "N C"]:
        """The latent charges in e.

        Parameters
        ----------
        graph : Graph
            A batch of structures.
        features : Features
            Output of the backbone.
        """
        return self.net(features.scalars) + self.shift[graph.z]

    def energies(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        """Energy of each atom in eV, float64.

        Parameters
        ----------
        graph : Graph
            A batch of structures.
        features : Features
            Output of the backbone.
        """
        charges = self(graph, features).double()
        return 0.5 * (charges * coulomb_potential(charges, graph, self.width)).sum(1)


class EquilibratedCharges(nn.Module):
    """Charges that minimize an energy at the total charge Q of each structure (charge equilibration: Rappé
    and Goddard 1991, 10.1021/j100161a070; with predicted electronegativities Ghasemi et al. 2015,
    10.1103/PhysRevB.92.045131, and Ko et al. 2021, 10.1038/s41467-020-20427-2):

        E = min_q Σ_i (χ_i q_i + ½ η_i q_i²) + ½ qᵀ A q   with   Σ_i q_i = Q.

    A is the electrostatic interaction of Gaussians of width σ, see `nn.coulomb_matrix`; the electronegativity
    χ and the hardness η > 0 are functions of the features of the atom. The minimum is the solution of a
    linear system, through which derivatives pass.

    In an electric field F the electronegativity of a molecule is χ_i - F·(r_i - r̄), with the mean r̄ of the
    positions. Together with the energy of the net charge, see `models.inputs.net_charge_in_field`, this is
    the energy -Σ q F·r, so that the dipole -∂E/∂F contains Σ q r. In a periodic structure r is not defined;
    there the field acts through χ and η alone.

    All atoms of a structure share one chemical potential. So charge flows between fragments at any distance
    if their electronegativities differ, as in all methods of this kind.

    Parameters
    ----------
    channels : int
        Number of invariant features.
    width : float
        σ in Å.
    """

    isolated = False  # an ion alone has an energy

    def __init__(self, channels: int, width: float) -> None:
        super().__init__()
        self.width = width
        self.net = mlp([channels, channels, 2], last_gain=0.1)
        self.shift = nn.Parameter(torch.zeros(len(SYMBOLS), 2))

    def forward(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        """The charges in e, float64.

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
        return self._solved(graph, features)[0]

    def energies(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        """Energy of each atom in eV, float64.

        Parameters
        ----------
        graph : Graph
            A batch of structures.
        features : Features
            Output of the backbone.
        """
        charges, potential, electronegativity = self._solved(graph, features)
        return charges * (electronegativity + 0.5 * potential)

    def _solved(self, graph: Graph, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Charges q, potentials A q + η q and electronegativities χ in the field, shapes (N,)."""
        if graph.charge is None:
            raise ModelError(
                "charge equilibration needs the total charge of each structure, and these have none; "
                "give 'charge' (0 for neutral ones)"
            )
        own = (self.net(features.scalars) + self.shift[graph.z]).double()
        hardness = RIDGE + nn.functional.softplus(own[:, 1] + HARDNESS - RIDGE)
        electronegativity = own[:, 0] if graph.electric_field is None else own[:, 0] - work_of_field(graph)
        matrix, rows, members = coulomb_matrix(graph, self.width)
        matrix = matrix + torch.diag_embed(torch.where(members, hardness[rows], 1.0))  # A + η  (G, n, n)
        bordered = nn.functional.pad(matrix, (0, 1, 0, 1))
        bordered[:, -1, :-1] = bordered[:, :-1, -1] = members.double()
        side = torch.where(members, -electronegativity[rows], 0.0)
        side = torch.cat([side, graph.charge.double()[:, None]], dim=1)
        charges = torch.linalg.solve(bordered, side)[:, :-1]  # the last one is the chemical potential
        potential = (matrix @ charges[:, :, None]).squeeze(2)
        return charges[members], potential[members], electronegativity


def check_long_range(options: LongRange, backbone: Any, energy: Any) -> None:
    """Check that a backbone and a head of the energy fit to a long range.

    Parameters
    ----------
    options : LongRange
        The long range.
    backbone : Backbone
        The backbone.
    energy : Head
        The head of the energy.

    Raises
    ------
    ModelError
        If charges are equilibrated and the backbone does not take the total charge; if the head has
        electrostatics of its own.
    """
    if getattr(energy, "electrostatics", None) is not None:
        raise ModelError(
            f"long_range: {type(energy).__name__} has electrostatics already; build it with width=None"
        )
    if options.charges == "equilibrated" and not backbone.reads("charge"):
        name = type(backbone).__name__
        raise ModelError(
            "long_range: equilibrated charges add up to the total charge of each structure, which this "
            f"{name} does not take; build it with {name}(inputs=mq.Inputs(charge=True)), in YAML "
            f"{name}: {{inputs: {{charge: true}}}}"
        )
