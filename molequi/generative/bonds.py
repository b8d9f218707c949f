"""Bonds from distances: the tables by which generated molecules of QM9 are judged."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.quantities import SYMBOLS, atomic_number

# Typical lengths in pm and margins of Hoogeboom et al. 2022 (EDM, arXiv 2203.17003, appendix C and the file
# bond_analyze.py of their code); the lengths are from wiredchemist.com/chemistry/data/bond_energies_lengths.
SINGLE: Mapping[str, Mapping[str, int]] = {
    "H": {"H": 74, "C": 109, "N": 101, "O": 96, "F": 92, "S": 134, "Cl": 127, "Br": 141, "I": 161, "P": 144},
    "C": {"C": 154, "N": 147, "O": 143, "F": 135, "P": 184, "S": 182, "Cl": 177, "Br": 194, "I": 214},
    "N": {"N": 145, "O": 140, "F": 136, "P": 177, "S": 168, "Cl": 175, "Br": 214, "I": 222},
    "O": {"O": 148, "F": 142, "P": 163, "S": 151, "Cl": 164, "Br": 172, "I": 194},
    "F": {"F": 142, "P": 156, "S": 158, "Cl": 166, "Br": 178, "I": 187},
    "P": {"P": 221, "S": 210, "Cl": 203, "Br": 222},
    "S": {"S": 204, "Cl": 207, "Br": 225, "I": 234},
    "Cl": {"Cl": 199, "Br": 214},
    "Br": {"Br": 228},
    "I": {"I": 266},
}
DOUBLE: Mapping[str, Mapping[str, int]] = {
    "C": {"C": 134, "N": 129, "O": 120, "S": 160},
    "N": {"N": 125, "O": 121},
    "O": {"O": 121, "P": 150},
    "P": {"S": 186},
}
TRIPLE: Mapping[str, Mapping[str, int]] = {"C": {"C": 120, "N": 116, "O": 113}, "N": {"N": 110}}
MARGINS = (10, 5, 3)
VALENCES: Mapping[str, tuple[int, ...]] = {
    "H": (1,),
    "C": (4,),
    "N": (3,),
    "O": (2,),
    "F": (1,),
    "P": (3, 5),
    "S": (4,),
    "Cl": (1,),
    "Br": (1,),
    "I": (1,),
}


@cache
def _limits() -> Float[Tensor, "3 Z Z"]:
    """Distance in Å below which a pair of elements has a bond of order 1, 2 and 3."""
    limits = torch.zeros(3, len(SYMBOLS), len(SYMBOLS), dtype=torch.float64)
    for order, (table, margin) in enumerate(zip((SINGLE, DOUBLE, TRIPLE), MARGINS)):
        for a, others in table.items():
            for b, length in others.items():
                i, j = atomic_number(a), atomic_number(b)
                limits[order, i, j] = limits[order, j, i] = (length + margin) / 100
    return limits


def bond_orders(z: Int[Tensor, "N"], pos: Float[Tensor, "N 3"]) -> Int[Tensor, "N N"]:
    """The order of the bond between each two atoms by their distance, 0 for none.

    Parameters
    ----------
    z : Tensor, shape (N,)
        Atomic numbers.
    pos : Tensor, shape (N, 3)
        Positions in Å.

    Returns
    -------
    Tensor, shape (N, N)
        Symmetric, zeros on the diagonal. Pairs of elements that are not in the tables have no bond.

    Examples
    --------
    >>> bond_orders(torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [0, 0, 1.2]])).tolist()
    [[0, 2], [2, 0]]
    """
    distance = torch.cdist(pos.double(), pos.double(), compute_mode="donot_use_mm_for_euclid_dist")
    near = distance < _limits()[:, z[:, None], z[None, :]]
    near[:, range(len(z)), range(len(z))] = False
    # A shorter limit counts only if the longer ones hold, as in the published function.
    return near.cumprod(0).sum(0)


def stable_atoms(z: Int[Tensor, "N"], orders: Int[Tensor, "N N"]) -> Tensor:
    """Which atoms have an allowed sum of bond orders.

    Parameters
    ----------
    z : Tensor, shape (N,)
        Atomic numbers.
    orders : Tensor, shape (N, N)
        What `bond_orders` returns.
    """
    sums = orders.sum(1).tolist()
    return torch.tensor([total in VALENCES.get(SYMBOLS[k], ()) for k, total in zip(z.tolist(), sums)])


def molecule_of(z: Int[Tensor, "N"], pos: Float[Tensor, "N 3"]) -> Any:
    """An RDKit molecule with these atoms, positions and bonds; it is not sanitized.

    Parameters
    ----------
    z : Tensor, shape (N,)
        Atomic numbers.
    pos : Tensor, shape (N, 3)
        Positions in Å.

    Returns
    -------
    rdkit.Chem.Mol
    """
    from rdkit import Chem
    from rdkit.Geometry import Point3D

    orders = bond_orders(z, pos)
    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    mol = Chem.RWMol()
    for number in z.tolist():
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)  # what is missing is no hydrogen
        mol.AddAtom(atom)
    for i, j in orders.triu().nonzero().tolist():
        mol.AddBond(i, j, kinds[int(orders[i, j])])
    conformer = Chem.Conformer(len(z))
    for k, place in enumerate(pos.tolist()):
        conformer.SetAtomPosition(k, Point3D(*place))
    mol.AddConformer(conformer, assignId=True)
    return mol.GetMol()
