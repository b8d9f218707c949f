"""Repulsion of nuclei at short distances, by name and for any backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from molequi.features import Features
from molequi.graph import Graph
from molequi.nn.covalent import CovalentRadii
from molequi.nn.pair_energies import ZBL
from molequi.nn.radial import edges_of
from molequi.util.options import Options
from molequi.util.signature import check_keywords


@check_keywords()
@dataclass(frozen=True)
class Repulsion(Options):
    """Repulsion of nuclei (Ziegler, Biersack and Littmark 1985), see `nn.ZBL`; in YAML ``repulsion: zbl``.

    It ends at the sum of the covalent radii of two atoms, so that it is small or zero for bonds, and the
    network learns the rest. It has no parameters and keeps atoms apart where there are no data.

    Parameters
    ----------
    name : {"zbl"}
        The law.
    exponent : int
        Exponent of its cutoff function.

    Raises
    ------
    ConfigError
        For another name and an exponent below 2.
    """

    name: Literal["zbl"] = "zbl"
    exponent: Annotated[int, Ge(2)] = 6

    shorthand: ClassVar[str] = "name"

    def make(self, elements: Sequence[int], cutoff: float | None) -> "NuclearRepulsion":
        """The module that computes the energies.

        Parameters
        ----------
        elements : sequence of int
            Atomic numbers.
        cutoff : float or None
            Up to where the backbone has edges, in Å.
        """
        return NuclearRepulsion(elements, cutoff, self.exponent)

    @property
    def words(self) -> str:
        """What it is, for the summary of a model."""
        return "ZBL up to the sums of covalent radii"


class NuclearRepulsion(ZBL):
    """`nn.ZBL` up to the sum of the covalent radii of two atoms, or up to the last edges.

    Parameters
    ----------
    elements : sequence of int
        Atomic numbers.
    cutoff : float or None
        Up to where there are edges, in Å.
    exponent : int
        Exponent of the cutoff function.
    """

    isolated = True

    def __init__(self, elements: Sequence[int], cutoff: float | None, exponent: int) -> None:
        radii = CovalentRadii().radii
        farthest = 2 * float(radii[list(elements)].max())
        super().__init__(farthest if cutoff is None else min(farthest, cutoff), exponent)
        self.by_pair = True
        self.stretch = self.cutoff / (radii[:, None] + radii[None, :]).clamp(max=self.cutoff)

    def energies(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        """Energy of each atom in eV.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures.
        features : Features
            Output of the backbone.
        """
        edges = edges_of(graph, self.cutoff, features.scalars.dtype)
        return self(graph.z, edges).double()
