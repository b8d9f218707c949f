"""Functions of the distance of two atoms that depend on their covalent radii, as in published MACE models."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.nn.pair_energies import COULOMB
from molequi.nn.radial import Edges, envelope
from molequi.ops.constants import Float64Constants
from molequi.quantities import SYMBOLS

# In Å, of X and from hydrogen to curium (Cordero et al. 2008, 10.1039/b801115j), as ASE has them, which gives
# heavier elements 2 Å.
_RADII = (
    "0.2 0.31 0.28 1.28 0.96 0.84 0.76 0.71 0.66 0.57 0.58 1.66 1.41 1.21 1.11 1.07 1.05 1.02 1.06 2.03 1.76 "
    "1.7 1.6 1.53 1.39 1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.2 1.19 1.2 1.2 1.16 2.2 1.95 1.9 1.75 1.64 1.54 "
    "1.47 1.46 1.42 1.39 1.45 1.44 1.42 1.39 1.39 1.38 1.39 1.4 2.44 2.15 2.07 2.04 2.03 2.01 1.99 1.98 1.98 "
    "1.96 1.94 1.92 1.92 1.89 1.9 1.87 1.87 1.75 1.7 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 1.46 1.48 1.4 "
    "1.5 1.5 2.6 2.21 2.15 2.06 2 1.96 1.9 1.87 1.8 1.69 "
)


class CovalentRadii(Float64Constants):
    """A module that reads the sum of the covalent radii R_i + R_j of each edge.

    Attributes
    ----------
    radii : Tensor, shape (119,)
        R by atomic number, in Å.
    """

    radii: Tensor

    def __init__(self) -> None:
        super().__init__()
        known = [float(text) for text in _RADII.split()]
        radii = torch.tensor(known + [2.0] * (len(SYMBOLS) - len(known)), dtype=torch.float64)
        self.register_constant("radii", radii)

    def sums(self, z: Int[Tensor, "N"], edges: Edges) -> Float[Tensor, "E"]:
        """R_i + R_j in Å.

        Parameters
        ----------
        z : Tensor, shape (N,)
            Atomic numbers.
        edges : Edges
            The edges.
        """
        radius = self.radii.to(edges.length.dtype)[z]
        return edges.own(radius) + edges.gather(radius)


class AgnesiDistance(CovalentRadii):
    """A transformed distance between 0 and 1 (Witt et al. 2023, 10.1063/5.0158783):

        y = 1 / (1 + a x^q / (1 + x^(q - p))),   x = 2 r / (R_i + R_j).

    It is 1 for r = 0 and falls fastest about the length of a bond.

    Attributes
    ----------
    constants : Tensor, shape (3,)
        a, q and p.
    """

    constants: Tensor

    def __init__(self) -> None:
        super().__init__()
        values = torch.tensor([1.0805, 0.9183, 4.5791], dtype=torch.float64)
        self.register_constant("constants", values, persistent=True)

    def forward(self, z: Int[Tensor, "N"], edges: Edges) -> Float[Tensor, "E"]:
        """The transformed distance y of each edge.

        Parameters
        ----------
        z : Tensor, shape (N,)
            Atomic numbers.
        edges : Edges
            The edges.
        """
        a, q, p = self.constants.to(edges.length.dtype).unbind()
        x = (2 * edges.length / self.sums(z, edges)).clamp(min=1e-6)
        return 1 / (1 + a * x**q / (1 + x ** (q - p)))


class SoftDistance(CovalentRadii):
    """A distance that does not fall below a part of the length of a bond:

        y = s + (r - s) (1 + tanh(α (r - m) / (e - s))) / 2,
        s = 3/4 (R_i + R_j),   e = 4/3 (R_i + R_j),   m = (s + e) / 2.

    Attributes
    ----------
    constants : Tensor, shape (1,)
        α.
    """

    constants: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_constant("constants", torch.tensor([4.0], dtype=torch.float64), persistent=True)

    def forward(self, z: Int[Tensor, "N"], edges: Edges) -> Float[Tensor, "E"]:
        """The transformed distance y of each edge in Å.

        Parameters
        ----------
        z : Tensor, shape (N,)
            Atomic numbers.
        edges : Edges
            The edges.
        """
        bond, r = self.sums(z, edges), edges.length
        start, end = 0.75 * bond, 4 / 3 * bond
        slope = self.constants.to(r.dtype) / (end - start)
        return start + (r - start) * 0.5 * (1 + torch.tanh(slope * (r - 0.5 * (start + end))))


class BondRepulsion(CovalentRadii):
    """Screened repulsion of nuclei (Ziegler, Biersack and Littmark 1985) that ends at the length of a bond:

        E_i = ½ Σ_j u(r / (R_i + R_j)) k Z_i Z_j / r Σ_k c_k exp(-a_k r (Z_i^p + Z_j^p) / d),

    with the polynomial u of `nn.envelope`. In contrast to `nn.Repulsion`, nothing of it is trained.

    Parameters
    ----------
    cutoff : float
        Distance in Å from which pairs are left out.
    exponent : int
        Exponent of u.

    Attributes
    ----------
    constants : Tensor, shape (6,)
        The four c, p, and d in Å.
    """

    EXPONENTS = (3.2, 0.9423, 0.4028, 0.2016)
    constants: Tensor

    def __init__(self, cutoff: float, exponent: int = 6) -> None:
        super().__init__()
        self.cutoff, self.exponent = cutoff, exponent
        values = [0.1818, 0.5099, 0.2802, 0.02817, 0.3, 0.4543 * 0.529]
        self.register_constant("constants", torch.tensor(values, dtype=torch.float64), persistent=True)

    def forward(self, z: Int[Tensor, "N"], edges: Edges) -> Float[Tensor, "N"]:
        """Energy of each atom in eV.

        Parameters
        ----------
        z : Tensor, shape (N,)
            Atomic numbers.
        edges : Edges
            The edges, with their envelope up to the cutoff.
        """
        *coefficients, power, length = self.constants.to(edges.length.dtype).unbind()
        charge, r = z.to(edges.length.dtype), edges.length.clamp(min=1e-6)
        screen = charge**power
        reduced = r * (edges.own(screen) + edges.gather(screen)) / length
        screening = sum(c * torch.exp(-a * reduced) for a, c in zip(self.EXPONENTS, coefficients))
        smooth = envelope(edges.length / self.sums(z, edges), 1.0, self.exponent)
        energy = 0.5 * COULOMB * edges.own(charge) * edges.gather(charge) / r * screening * smooth
        return edges.sum(torch.where(edges.envelope > 0, energy, 0.0))
