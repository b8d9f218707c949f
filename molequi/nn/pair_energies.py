"""Energies of pairs of atoms by laws of physics: repulsion of nuclei, electrostatics, dispersion."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.nn.radial import Edges, envelope, pair_stretch
from molequi.ops.constants import Float64Constants
from molequi.quantities import SYMBOLS

COULOMB = 14.399645351950548  # e²/(4 π ε0) in eV Å
HARTREE = 27.211386245988  # eV
BOHR = 0.5291772105638411  # Å
FINE_STRUCTURE = 0.0072973525693

# Free atoms from hydrogen to nobelium, in atomic units: polarizability, and C6 of two equal atoms. They are
# those of SO3LR, after Tkatchenko and Scheffler (2009, 10.1103/PhysRevLett.102.073005) and Gould and Bučko
# (2016, 10.1021/acs.jctc.6b00361).
_POLARIZABILITIES = (
    "4.5 1.38 164.2 38 21 12 7.4 5.4 3.8 2.67 162.7 71 60 37 25 19.6 15 11.1 292.9 160 120 98 84 78 63 56 "
    "50 48 42 40 60 41 29 25 20 16.8 319.2 199 126.74 119.97 101.6 88.42 80.08 65.89 56.1 23.68 50.6 39.7 "
    "70.22 55.95 43.67 37.65 35 27.3 399.9 275 213.7 204.7 215.8 208.4 200.2 192.1 184.2 158.3 169.5 "
    "164.64 156.3 150.2 144.3 138.9 137.2 99.52 82.53 71.04 63.04 55.06 42.51 39.68 36.5 33.9 69.92 61.8 "
    "49.02 45.01 38.93 33.54 317.8 246.2 203.3 217 154.4 127.8 150.5 132.2 131.2 143.6 125.3 121.5 117.5 "
    "113.4 109.4 105.4 "
)
_C6 = (
    "6.5 1.46 1387 214 99.5 46.6 24.2 15.6 9.52 6.38 1556 627 528 305 185 134 94.6 64.3 3897 2221 1383 "
    "1044 832 602 552 482 408 373 253 284 498 354 246 210 162 129.6 4691 3170 1968.58 1677.91 1263.61 "
    "1028.73 1390.87 609.75 469 157.5 339 452 707.05 587.42 459.32 396 385 285.9 6846 5727 3884.5 3708.33 "
    "3911.84 3908.75 3847.68 3708.69 3511.71 2781.53 3124.41 2984.29 2839.95 2724.12 2576.78 2387.53 "
    "2371.8 1274.8 1019.92 847.93 710.2 596.67 359.1 347.1 298 392 717.44 697 571 530.92 457.53 390.63 "
    "4224.44 4851.32 3604.41 4047.54 2876.77 2375.89 3102.12 2820.47 2794 3150.95 2756 2702.57 2626.59 "
    "2548.62 2468.69 2386.8 "
)
_RADIUS_TO_WIDTH = (-0.00433008, 0.24428889, 0.04125273, -0.00078893)  # cubic fit, atomic units
DISPERSION_ELEMENTS = len(_C6.split())


class Repulsion(nn.Module):
    """Screened repulsion of nuclei (Ziegler, Biersack and Littmark 1985) at short distances:

        E_i = ½ Σ_j s(r) u(r) k Z_i Z_j / r Σ_k c_k exp(-a_k d r (Z_i^p + Z_j^p)),   Σ_k c_k = 1.

    The constants a, c, d and p are positive and trained; they start at their published values. u is the
    cutoff function, and s goes smoothly from 1 at r = 0 to 0 at 1.5 Å.

    Parameters
    ----------
    cutoff : float
        Distance in Å at which u is zero.
    """

    END = 1.5  # Å

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.exponents = _positive(3.2, 0.9423, 0.4028, 0.2016)
        self.coefficients = _positive(0.1818, 0.5099, 0.2802, 0.02817)
        self.power = _positive(0.23)
        self.inverse_length = _positive(1 / (0.8854 * BOHR))

    def forward(self, z: Int[Tensor, "N"], edges: Edges) -> Float[Tensor, "N"]:
        """Energy of each atom in eV.

        Parameters
        ----------
        z : Tensor, shape (N,)
            Atomic numbers.
        edges : Edges
            The edges.
        """
        raw = (self.exponents, self.coefficients, self.power, self.inverse_length)
        a, c, p, d = (torch.nn.functional.softplus(value) for value in raw)
        charge = z.to(a.dtype)
        reduced = edges.length * _both(edges, charge**p) * d  # d r (Z_i^p + Z_j^p)  (E,)
        screening = (torch.exp(-reduced[:, None] * a) * (c / c.sum())).sum(1)
        bare = COULOMB * edges.own(charge) * edges.gather(charge) / edges.length.clamp(min=1e-6)
        smooth = envelope(edges.length, self.cutoff, 3) * switch(edges.length, 0.0, self.END)
        return edges.sum(0.5 * smooth * bare * screening)


class ZBL(Float64Constants):
    """Screened repulsion of nuclei (Ziegler, Biersack and Littmark 1985) with its published constants, up to
    the cutoff:

        E_i = ½ Σ_j u(r) k Z_i Z_j / r Σ_k c_k exp(-a_k x),   x = r (Z_i^0.23 + Z_j^0.23) / 0.4685 Å.

    u is the polynomial `envelope`. The constants are those of LAMMPS (pair_style zbl).

    Parameters
    ----------
    cutoff : float
        Distance in Å at which u is zero.
    exponent : int
        Exponent of u.
    pair_cutoffs : mapping of str to mapping of str to float, optional
        Shorter cutoffs in Å by the symbols of both atoms; u is that of r times the quotient of both cutoffs.
    """

    COULOMB = 14.399645  # eV Å
    POWER, LENGTH = 0.23, 0.46850  # Å
    TERMS = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))  # c, a
    stretch: Tensor

    def __init__(
        self, cutoff: float, exponent: int, pair_cutoffs: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        super().__init__()
        self.cutoff, self.exponent, self.by_pair = cutoff, exponent, bool(pair_cutoffs)
        numbers = range(len(SYMBOLS)) if pair_cutoffs else ()
        self.register_constant("stretch", pair_stretch(numbers, cutoff, pair_cutoffs or {}, "ZBL"))

    def forward(self, z: Int[Tensor, "N"], edges: Edges) -> Float[Tensor, "N"]:
        """Energy of each atom in eV.

        Parameters
        ----------
        z : Tensor, shape (N,)
            Atomic numbers.
        edges : Edges
            The edges, up to the cutoff.
        """
        charge = z.to(edges.length.dtype)
        x = edges.length * _both(edges, charge**self.POWER) / self.LENGTH  # (E,)
        screening = sum(c * torch.exp(-a * x) for c, a in self.TERMS)
        bare = self.COULOMB * edges.own(charge) * edges.gather(charge) / edges.length.clamp(min=1e-6)
        length = edges.length
        if self.by_pair:
            length = length * self.stretch.to(length.dtype)[z[edges.receiver], z[edges.sender]]
        smooth = envelope(length, self.cutoff, self.exponent) * (edges.envelope > 0)
        return edges.sum(0.5 * smooth * bare * screening)


class Electrostatics(nn.Module):
    """Electrostatic energy of partial charges that are spread over a width σ, up to a cutoff R:

        E_i = ½ Σ_j k q_i q_j [V(r) - V(R) - (1 - s(r)) V'(R) (r - R)],   V(r) = erf(r / σ) / r.

    s goes smoothly from 1 at 0.45 R to 0 at R, so that energy and force are zero at the cutoff.

    Parameters
    ----------
    width : float
        σ in Å.
    cutoff : float
        R in Å.
    """

    def __init__(self, width: float, cutoff: float) -> None:
        super().__init__()
        self.width, self.cutoff = width, cutoff
        self.value = math.erf(cutoff / width) / cutoff  # V(R)
        gauss = 2 * math.exp(-((cutoff / width) ** 2)) / (math.sqrt(math.pi) * width)
        self.slope = (gauss - self.value) / cutoff  # V'(R)

    def forward(self, charges: Float[Tensor, "N"], edges: Edges) -> Float[Tensor, "N"]:
        """Energy of each atom in eV.

        Parameters
        ----------
        charges : Tensor, shape (N,)
            Partial charges in e.
        edges : Edges
            The edges, up to the cutoff.
        """
        r = edges.length.clamp(min=1e-6)
        start = 0.45 * self.cutoff
        bend = (1 - switch(r, start, self.cutoff)) * self.slope * (r - self.cutoff)
        potential = torch.erf(r / self.width) / r - self.value - bend
        potential = torch.where(edges.length < self.cutoff, potential, 0.0)
        return edges.sum(0.5 * COULOMB * edges.own(charges) * edges.gather(charges) * potential)


class Dispersion(Float64Constants):
    """Damped dispersion of quantum Drude oscillators (Khabibrakhmanov et al. 2023, 10.1021/acs.jctc.3c00797):

        E_i = -½ Σ_j s(r) Σ_n C_n / (r^n + p^n),   n = 6, 8, 10,
        C_8 = 5 C_6 / γ,   C_10 = 245 C_6 / (8 γ²),   p = 5.08 β α^(1/7).

    α and C_6 of a pair follow from those of free atoms, times the ratio v (C_6: v²) of the volumes of the
    atom in the structure and of the free atom (Hirshfeld). γ is a function of α. s goes smoothly from 1 to 0
    in front of the cutoff.

    Parameters
    ----------
    damping : float
        β.
    cutoff : float
        Distance in Å at which s is zero.
    switch : float
        Width in Å of the interval in which s falls.
    """

    polarizabilities: Tensor
    c6: Tensor

    def __init__(self, damping: float, cutoff: float, switch: float) -> None:
        super().__init__()
        self.damping, self.cutoff, self.start = damping, cutoff, cutoff - switch
        for name, text in (("polarizabilities", _POLARIZABILITIES), ("c6", _C6)):
            # In the precision of the published models, whose energies depend on the seventh digit.
            table = torch.tensor([math.nan, *map(float, text.split())], dtype=torch.float32)
            self.register_constant(name, table.double())

    def forward(self, ratios: Float[Tensor, "N"], z: Int[Tensor, "N"], edges: Edges) -> Float[Tensor, "N"]:
        """Energy of each atom in eV.

        Parameters
        ----------
        ratios : Tensor, shape (N,)
            Volume of each atom over that of the free atom, above zero.
        z : Tensor, shape (N,)
            Atomic numbers, 1 to 102.
        edges : Edges
            The edges, up to the cutoff.
        """
        own = self.polarizabilities.to(ratios.dtype)[z] * ratios
        c6 = self.c6.to(ratios.dtype)[z] * ratios.square()
        ai, aj, ci, cj = edges.own(own), edges.gather(own), edges.own(c6), edges.gather(c6)
        alpha = (ai + aj) / 2
        c6_pair = 2 * ci * cj * ai * aj / (ai.square() * cj + aj.square() * ci)
        root = alpha ** (1 / 7)
        radius = FINE_STRUCTURE ** (-4 / 21) * root
        b0, b1, b2, b3 = _RADIUS_TO_WIDTH
        inverse = 2 * (b0 + radius * (b1 + radius * (b2 + radius * b3))).square()  # 1/γ
        r2 = (edges.length / BOHR).square()
        p2 = (self.damping * 2 * 2.54 * root).square()
        total = (
            1 / (r2**3 + p2**3) + 5 * inverse / (r2**4 + p2**4) + 245 / 8 * inverse.square() / (r2**5 + p2**5)
        )
        smooth = switch(edges.length, self.start, self.cutoff)
        return edges.sum(-0.5 * HARTREE * smooth * c6_pair * total)


def switch(r: Float[Tensor, "E"], start: float, end: float) -> Float[Tensor, "E"]:
    """A function with derivatives of all orders that is 1 up to `start` and 0 from `end` on:

        f(1 - x) / (f(1 - x) + f(x)),   f(x) = exp(-1 / x),   x = (r - start) / (end - start).

    Parameters
    ----------
    r : Tensor, shape (E,)
        Distances in Å.
    start, end : float
        The interval in Å.

    Examples
    --------
    >>> switch(torch.tensor([1.0, 3.0, 5.0]), 2.0, 4.0).tolist()
    [1.0, 0.5, 0.0]
    """
    x = (r - start) / (end - start)
    rising, falling = (torch.where(t > 0, torch.exp(-1.0 / t.clamp(min=0.01)), 0.0) for t in (x, 1 - x))
    return falling / (falling + rising)


def _positive(*values: float) -> nn.Parameter:
    """Parameters that softplus turns into these values."""
    return nn.Parameter(torch.tensor([math.log(math.expm1(value)) for value in values]))


def _both(edges: Edges, values: Float[Tensor, "N"]) -> Float[Tensor, "E"]:
    """Sum of the values of both nodes of an edge."""
    return edges.own(values) + edges.gather(values)
