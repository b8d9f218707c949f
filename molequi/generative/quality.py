"""The quality of generated molecules: valid, stable, unique, new, and how far from a minimum."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from molequi.errors import DataError
from molequi.generative.bonds import VALENCES, bond_orders, molecule_of, stable_atoms
from molequi.generative.strain import Strain, strain_of
from molequi.graph import Graph
from molequi.quantities import SYMBOLS
from molequi.readers.load import load_dataset
from molequi.util.html import html_facts, html_heading
from molequi.util.optional import require
from molequi.util.tables import text_table


@dataclass(frozen=True, repr=False)
class Quality:
    """The quality of generated molecules; printed, a table.

    Bonds are those of `molequi.generative.bonds`, as of all published figures for QM9 since EDM (Hoogeboom et
    al. 2022, arXiv 2203.17003).

    Parameters
    ----------
    count : int
        Number of molecules.
    atom_stability : float
        Fraction of atoms with an allowed valence.
    molecule_stability : float
        Fraction of molecules all of whose atoms have one.
    validity : float
        Fraction of molecules that RDKit can sanitize.
    connected : float
        Fraction of molecules that are valid and in one piece.
    uniqueness : float
        Number of different SMILES divided by that of valid molecules; of a molecule in pieces the largest
        counts.
    novelty : float
        Fraction of the different SMILES that the training data do not have; NaN if these were not given.
    smiles : tuple of str
        SMILES of each molecule; empty for those that are not valid.
    checks : mapping of str to float
        Fraction of the molecules that are valid and in one piece that pass each check of PoseBusters
        (Buttenschoen et al. 2024), which one does not where a check cannot be made; empty if none were made.
    strain : Strain, optional
        Changes of energy on relaxation.
    notes : mapping of str to str
        What limits these figures: elements without typical bond lengths, SMILES that could not be read.
    """

    count: int
    atom_stability: float
    molecule_stability: float
    validity: float
    connected: float
    uniqueness: float
    novelty: float
    smiles: tuple[str, ...] = ()
    checks: Mapping[str, float] = field(default_factory=dict)
    strain: Strain | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """All fractions by name."""
        names = ("atom_stability", "molecule_stability", "validity", "connected", "uniqueness", "novelty")
        return {name: getattr(self, name) for name in names}

    def _facts(self) -> dict[str, str]:
        found = {
            name.replace("_", " "): "not measured" if math.isnan(value) else f"{100 * value:.1f} %"
            for name, value in self.numbers().items()
        }
        found |= {f"PoseBusters: {name}": f"{100 * value:.1f} %" for name, value in self.checks.items()}
        if self.strain is not None:
            found["strain"] = str(self.strain)
        return found | dict(self.notes)

    def __str__(self) -> str:
        rows = [[name, value] for name, value in self._facts().items()]
        return "\n".join(text_table([f"{self.count} molecules", ""], rows))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_heading(f"{self.count} molecules") + html_facts(self._facts())


def quality_of(
    structures: object,
    known: Sequence[str] = (),
    *,
    posebusters: bool = False,
    energies: Any = None,
) -> Quality:
    """Measure the quality of molecules.

    Parameters
    ----------
    structures : object
        A Dataset, a file, ASE Atoms, or what else `molequi.load_dataset` takes. Labels are not read.
    known : sequence of str
        SMILES of the training molecules in any form; those of RDKit are compared. What RDKit cannot read is
        counted in `Quality.notes`.
    posebusters : bool
        Make the checks of the package posebusters for a molecule alone
        (``pip install 'molequi[generative]'``).
    energies : optional
        ``"gfn2-xtb"``, ``"gfn1-xtb"``, a model or an ASE calculator: relax the valid molecules in one piece
        and measure their strain.

    Returns
    -------
    Quality

    Raises
    ------
    DataError
        If there are no structures, for periodic ones and point clouds, and if RDKit can read none of the
        known SMILES.
    MissingPackageError
        If posebusters or tblite is wanted and missing.

    Examples
    --------
    >>> water = Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> found = quality_of([water, water], ["O"])
    >>> found.molecule_stability, found.validity, found.uniqueness, found.novelty
    (1.0, 1.0, 0.5, 0.0)
    """
    from rdkit import Chem, rdBase

    if isinstance(structures, (list, tuple)) and not structures:
        raise DataError("no structures to judge; wanted at least one")
    if isinstance(structures, (list, tuple)) and all(isinstance(g, Graph) for g in structures):
        structures = [g.replace(targets={}) for g in structures]
    graphs = list(load_dataset(structures, only=()))
    if any(g.z is None or not g.z.all() for g in graphs):
        raise DataError("point clouds have no such quality; wanted structures with elements")
    if isinstance(known, str):
        raise DataError(f"known={known[:60]!r}: wanted several SMILES: known=[{known[:60]!r}]")
    if any(g.pbc is not None and bool(g.pbc.any()) for g in graphs):
        raise DataError(
            "periodic structures have no such quality: bonds are read from distances in open space; wanted "
            "molecules, or graphs without cell and pbc"
        )
    stable = [stable_atoms(g.z, bond_orders(g.z, g.pos)) for g in graphs]
    smiles, whole, good = [], 0, []
    with rdBase.BlockLogs():
        for graph in graphs:
            mol = molecule_of(graph.z, graph.pos)
            if Chem.SanitizeMol(mol, catchErrors=True):
                smiles.append("")
                continue
            pieces = Chem.GetMolFrags(mol, asMols=True)
            largest = max(pieces, key=lambda m: m.GetNumAtoms())
            smiles.append(Chem.MolToSmiles(Chem.RemoveHs(largest), isomericSmiles=False))
            if len(pieces) == 1:
                whole += 1
                good.append((graph, mol))
        canonical = {_canonical(text) for text in known}
        unread = sum(not _canonical(text) for text in known) if "" in canonical else 0
    if known and canonical == {""}:
        raise DataError(f"known: RDKit can read none of these SMILES; the first is {known[0]!r}")
    notes = {"known SMILES that RDKit cannot read": str(unread)} if unread else {}
    foreign = [{SYMBOLS[z] for z in g.z.tolist()} - VALENCES.keys() for g in graphs]
    if any(foreign):
        names, number = ", ".join(sorted(set().union(*foreign))), sum(map(bool, foreign))
        notes["elements without bond lengths"] = f"{names} in {number} molecules: no bonds, not stable"
    if posebusters and not good:
        notes["PoseBusters"] = "not made: no molecule is valid and in one piece"
    valid = [text for text in smiles if text]
    different = set(valid)
    return Quality(
        count=len(graphs),
        atom_stability=float(torch.cat(stable).double().mean()),
        molecule_stability=sum(bool(s.all()) for s in stable) / len(graphs),
        validity=len(valid) / len(graphs),
        connected=whole / len(graphs),
        uniqueness=len(different) / len(valid) if valid else math.nan,
        novelty=len(different - canonical) / len(different) if known and different else math.nan,
        smiles=tuple(smiles),
        checks=_posebusters([mol for _, mol in good]) if posebusters else {},
        strain=None if energies is None else strain_of([g for g, _ in good], energies),
        notes=notes,
    )


def _canonical(smiles: str) -> str:
    from rdkit import Chem

    mol = Chem.MolFromSmiles(smiles)
    return "" if mol is None else Chem.MolToSmiles(mol, isomericSmiles=False)


def _posebusters(mols: Sequence[Any]) -> dict[str, float]:
    """Fraction of molecules that pass each check of the configuration "mol"; empty without molecules."""
    require("posebusters", "generative", "posebusters=True")
    from posebusters import PoseBusters

    if not mols:
        return {}
    table = PoseBusters(config="mol").bust(list(mols), None, None)
    found = {str(name): column.tolist() for name, column in table.items()}  # NaN: could not be made
    return {
        name: sum(value is True for value in column) / len(mols)
        for name, column in found.items()
        if all(isinstance(value, bool) or value != value for value in column)
    }
