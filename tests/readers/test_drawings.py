"""Flat drawings are recognized by their coordinates, whatever the header says; flat molecules are read."""

import re

import numpy as np
import pytest

import molequi as mq
from molequi.errors import DataError, DataWarning
from molequi.readers.conformers import no_geometry

Chem = pytest.importorskip("rdkit.Chem")
AllChem = pytest.importorskip("rdkit.Chem.AllChem")
Point3D = pytest.importorskip("rdkit.Geometry").Point3D


def drawing(smiles, hydrogens=True, length=1.5):
    """A molecule as RDKit draws it, with bonds of one length, marked as three-dimensional."""
    mol = Chem.MolFromSmiles(smiles)
    mol = Chem.AddHs(mol) if hydrogens else mol
    AllChem.Compute2DCoords(mol)
    conformer = mol.GetConformer()
    for k, place in enumerate(conformer.GetPositions()):
        conformer.SetAtomPosition(k, Point3D(*(place * length / 1.5)))
    conformer.Set3D(True)
    return mol


def moved(mol, turn, shift):
    conformer = mol.GetConformer()
    for k, place in enumerate(conformer.GetPositions() @ np.array(turn).T + shift):
        conformer.SetAtomPosition(k, Point3D(*place))
    return mol


def geometry(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=7)
    return mol


@pytest.mark.parametrize(
    ("smiles", "why"),
    [
        ("CCO", "atom 0 .C. lies in the plane of its four neighbors"),
        ("c1ccccc1", r"are bonded at 1.5 Å, where 1.0\d Å is usual"),
        ("O", r"\(O\) and 1 \(H\) are bonded at 1.5 Å"),
        ("O=C=O", "its bonds are 1.2. times as long as usual"),
        ("Fc1c(F)c(F)c(F)c(F)c1F", "bonds between different elements have one length, 1.5 Å"),
    ],
)
def test_a_drawing_marked_as_3d(tmp_path, smiles, why):
    block = Chem.MolToMolBlock(drawing(smiles))
    assert "3D" in block.splitlines()[1]
    (tmp_path / "flat.sdf").write_text(block + "$$$$\n")
    with pytest.raises(DataError, match=f"record 0.*a flat drawing, although.*{why}.*embed=True"):
        mq.read_sdf(tmp_path / "flat.sdf")
    made = mq.read_sdf(tmp_path / "flat.sdf", embed=True)[0].pos
    own = mq.read_mols([drawing(smiles)])[0].pos  # gets a geometry, as one without conformers does
    for pos in (made, own):
        assert not any(abs(np.linalg.norm(a - b) - 1.5) < 1e-3 for a in pos for b in pos)


@pytest.mark.parametrize("hydrogens", [True, False])
@pytest.mark.parametrize("length", [0.7, 0.825, 1.0, 1.5])
@pytest.mark.parametrize("smiles", ["CCO", "c1ccccc1", "CO", "NC=O", "c1ccsc1"])
def test_drawings_of_other_programs(smiles, length, hydrogens):
    mol = drawing(smiles, hydrogens, length)
    assert no_geometry(mol, mol.GetConformer())


def test_lifted_and_upright_drawings():
    for mol in (
        moved(drawing("CCO", hydrogens=False), np.eye(3), [0, 0, 2.0]),
        moved(drawing("CCO", hydrogens=False), [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [0, 0, 0]),
        moved(drawing("CCO"), [[0.6, 0.8, 0], [0, 0, 1], [0.8, -0.6, 0]], [1, 2, 3]),
    ):
        assert "a flat drawing" in no_geometry(mol, mol.GetConformer())


@pytest.mark.parametrize(
    "name",
    ["H2O", "C6H6", "C2H4", "CO2", "C2F4", "CS2", "O3", "SO2", "F2", "N2", "HCN", "H2CO", "HCOOH"],
)
def test_flat_molecules_are_no_drawings(name):
    """Geometries of G2, which were computed by quantum chemistry."""
    atoms = pytest.importorskip("ase.build").molecule(name)
    rows = "".join(f"{s} {x:.5f} {y:.5f} {z:.5f}\n" for s, (x, y, z) in zip(atoms.symbols, atoms.positions))
    mol = Chem.MolFromXYZBlock(f"{len(atoms)}\n\n{rows}")
    pytest.importorskip("rdkit.Chem.rdDetermineBonds").DetermineBonds(mol, charge=0)
    assert no_geometry(mol, mol.GetConformer()) == ""


def test_geometries_in_space_stay(tmp_path):
    """Also without hydrogens, and stretched: what is not flat is no drawing."""
    mol = geometry("CCO")
    want = mol.GetConformer().GetPositions()
    (tmp_path / "a.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    np.testing.assert_allclose(mq.read_sdf(tmp_path / "a.sdf")[0].pos.numpy(), want, atol=1e-4)
    assert no_geometry(moved(mol, 1.5 * np.eye(3), 0), mol.GetConformer()) == ""
    heavy = Chem.RemoveHs(geometry("CC(C)CO"))
    with pytest.warns(DataWarning, match="lack hydrogens"):
        assert mq.read_mols([heavy])[0].num_nodes == 15


def test_a_hopeless_molecule_is_given_up_whatever_the_number_of_conformers(monkeypatch):
    """Attempts are counted, not seconds: three of each kind at most."""
    from rdkit.Chem import rdDistGeom

    from molequi.readers import conformers

    options = {"kind": "smiles", "seed": 0, "optimize": None, "fragments": "refuse", "embed": False}
    options |= {"features": False, "spin": False}
    embed, calls = rdDistGeom.EmbedMultipleConfs, []

    def counted(mol, number, params):
        calls.append(bool(params.useRandomCoords))
        return embed(mol, number, params)

    monkeypatch.setattr(rdDistGeom, "EmbedMultipleConfs", counted)
    for number in (1, 40):
        calls.clear()
        with pytest.raises(conformers.Refused, match="no geometry, neither by ETKDGv3 nor from random"):
            conformers.geometry("C1CC2=CC1C2", options | {"conformers": number})
        each = min(number, 3)
        assert calls == [False] * each + [True] * each
    found = conformers.geometry("CCCO", options | {"conformers": 5})["pos"]
    monkeypatch.undo()
    # The same geometries as RDKit makes all at once.
    mol, params = Chem.AddHs(Chem.MolFromSmiles("CCCO")), rdDistGeom.ETKDGv3()
    digest = __import__("hashlib").sha256(b"0").digest()
    params.randomSeed, params.enableSequentialRandomSeeds = int.from_bytes(digest[:3], "big"), True
    rdDistGeom.EmbedMultipleConfs(mol, 5, params)
    np.testing.assert_allclose(found, [c.GetPositions() for c in mol.GetConformers()])


@pytest.mark.parametrize(
    ("smiles", "length", "why"),
    [
        ("O=C=O", 1.05, "its bonds are all of one kind and 1.05 Å long"),
        ("S=C=S", 1.5, "its bonds are all of one kind and 1.5 Å long"),  # a usual length, and one of drawings
        ("Cl", 1.5, "its bonds are all of one kind and 1.5 Å long"),
        ("FB(F)F", 1.2, "its bonds are all of one kind and 1.2 Å long"),
        ("O", 0.97, r"the bonds of atom 0 \(O\) make an angle of 120.0°"),
        ("S", 1.34, r"the bonds of atom 0 \(S\) make an angle of 120.0°"),
        ("N", 1.01, r"atom 0 \(N\) lies in the plane of its three neighbors"),
        ("FP(F)F", 1.6, r"atom 1 \(P\) lies in the plane of its three neighbors"),
    ],
)
def test_drawings_with_bonds_of_one_kind(smiles, length, why):
    mol = drawing(smiles, length=length)

    assert re.search(why, no_geometry(mol, mol.GetConformer()))


# Experimental lengths in Å and angles in degrees (NIST, Computational Chemistry Comparison and Benchmark Database).
KNOWN = {
    "O=C=O": [(0, 0), (1.162, 0), (2.324, 0)],
    "S=C=S": [(0, 0), (1.553, 0), (3.106, 0)],
    "N#N": [(0, 0), (1.098, 0)],
    "O=O": [(0, 0), (1.208, 0)],
    "[H][H]": [(0, 0), (0.741, 0)],
    "FF": [(0, 0), (1.412, 0)],
    "[H]Cl": [(0, 0), (1.275, 0)],
    "[H]F": [(0, 0), (0.917, 0)],
    "[H]O[H]": [(0.758, 0.587), (0, 0), (-0.758, 0.587)],
    "O=S=O": [(1.235, 0.722), (0, 0), (-1.235, 0.722)],
    "FB(F)F": [(1.307, 0), (0, 0), (-0.6535, 1.1319), (-0.6535, -1.1319)],
}


@pytest.mark.parametrize("smiles", KNOWN)
def test_geometries_with_bonds_of_one_kind(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles, sanitize=True))
    mol = Chem.MolFromSmiles(smiles, params()) if "[H]" in smiles else mol
    conformer = Chem.Conformer(mol.GetNumAtoms())
    for k, (x, y) in enumerate(KNOWN[smiles]):
        conformer.SetAtomPosition(k, Point3D(x, y, 0.0))
    conformer.Set3D(True)
    mol.AddConformer(conformer)
    assert not no_geometry(mol, mol.GetConformer())


def params():
    keep = Chem.SmilesParserParams()
    keep.removeHs = False
    return keep
