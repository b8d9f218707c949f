"""pandas DataFrames, RDKit molecules and columns with units: the same data as from a file, nothing lost."""

import subprocess
import sys

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

import molequi as mq
from molequi import Quantity, load_dataset, predict, read_mols, read_sdf, read_smiles
from molequi.data import DataWarning
from molequi.errors import ConfigError, DataError
from molequi.readers.headers import split_header

SMILES = ["CCO", "c1ccccc1", "C[C@H](F)O", "C[NH3+]"]


def embedded(smiles, conformers=1, hydrogens=True):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert len(rdDistGeom.EmbedMultipleConfs(mol, conformers, randomSeed=7)) == conformers
    return mol if hydrogens else Chem.RemoveHs(mol)


def same(first, second):
    assert len(first) == len(second) and first.quantities == second.quantities
    for a, b in zip(first, second):
        assert np.array_equal(a.z, b.z) and np.array_equal(a.pos, b.pos)
        assert all(np.array_equal(a.targets[n], b.targets[n], equal_nan=True) for n in first.quantities)


# Columns with units.


def test_headers():
    found = {
        "gap (eV)": ("gap", "eV"),
        "gap [eV]": ("gap", "eV"),
        "gap(kcal/mol)": ("gap", "kcal/mol"),
        "dipole_x (e Å)": ("dipole_x", "e Å"),
        "gap": ("gap", ""),
        "(eV)": ("(eV)", ""),
        "gap (eV": ("gap (eV", ""),
        "a (b) (eV)": ("a (b)", "eV"),
    }
    assert {column: split_header(column) for column in found} == found


@pytest.mark.parametrize(
    "head,factor", [("gap (eV)", 1), ("gap [Hartree]", 27.211386245988), ("gap (meV)", 1e-3)]
)
def test_a_column_says_its_unit(tmp_path, head, factor):
    (tmp_path / "m.csv").write_text(f"smiles,{head},note (eV)\nC,1.5,a\nCC,2,b\n")
    for options in ({}, {"quantities": ["gap"]}):
        data = read_smiles(tmp_path / "m.csv", **options)
        assert data.values("gap").tolist() == pytest.approx([1.5 * factor, 2 * factor], rel=1e-12)
        assert head not in data.info and data.info["note (eV)"] == ("a", "b")
        assert f"from '{head}', in" in data.summary()
    bare = read_smiles(tmp_path / "m.csv", keys={"gap": None})
    assert "gap" not in bare.quantities and bare.info[head] == ("1.5", "2")


def test_columns_whose_units_are_wrong(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("smiles,gap (eV)\nC,1.5\n")
    assert read_smiles(path, units={"gap": "eV"}).values("gap").tolist() == [1.5]
    with pytest.raises(
        DataError, match=r"m.csv: the column 'gap \(eV\)' and units=\{'gap': 'Hartree'\} say different"
    ):
        read_smiles(path, units={"gap": "Hartree"})
    path.write_text("smiles,gap (Å)\nC,1.5\n")
    assert "gap" not in read_smiles(path).quantities  # something else that is called so
    with pytest.raises(
        DataError, match=r"'gap \(Å\)' has the unit 'Å', and gap is measured in eV; name the right"
    ):
        read_smiles(path, quantities=["gap"])
    path.write_text("smiles,gap (eV),gap (meV)\nC,1.5,1500\n")
    with pytest.raises(
        DataError, match=r"'gap \(eV\)' and 'gap \(meV\)' are both columns of gap; say which, keys="
    ):
        read_smiles(path)
    assert read_smiles(path, keys={"gap": "gap (meV)"}, units={"gap": "meV"}).values("gap").tolist() == [1.5]
    path.write_text("smiles,gap,gap (meV)\nC,1.5,7\n")
    assert read_smiles(path, units={"gap": "eV"}).values("gap").tolist() == [
        1.5
    ]  # the exact name comes first


def test_own_units_are_text(tmp_path):
    """A unit that molequi cannot convert is fine as long as the data have the same one."""
    shift = Quantity("shift", unit="ppm")
    (tmp_path / "m.csv").write_text("smiles,shift (ppm)\nC,1.5\n")
    assert read_smiles(tmp_path / "m.csv", quantities=[shift]).values("shift").tolist() == [1.5]


def test_predictions_are_read_again(tmp_path):
    """What predict writes is data for the next model."""
    model = mq.Model(mq.EGNN(elements=["H", "C", "O"], channels=8, layers=1, cutoff=4.0), ["gap", "energy"])
    results = predict(model, ["CCO", "C"], out=tmp_path / "p.csv", progress=False)
    data = read_smiles(tmp_path / "p.csv")
    for name in ("gap", "energy"):
        assert data.values(name).tolist() == pytest.approx([float(r[name]) for r in results], rel=1e-9)
    assert mq.evaluate(model, tmp_path / "p.csv")["gap_mae"] < 1e-6


# DataFrames.


def test_a_frame_is_read_like_its_file(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "Smiles": SMILES,
            "gap (eV)": [1.5, np.nan, 2.0, 3.25],
            "logS": [1, 2, 3, 4],
            "ok": [True, False, None, True],
        },
        index=[10, 11, 12, 13],
    )
    frame.to_csv(tmp_path / "m.csv", index=False)
    options = {"quantities": ["gap", Quantity("logS")], "partial": ["gap"]}
    data, file = read_smiles(frame, **options), read_smiles(tmp_path / "m.csv", **options)
    same(data, file)
    assert data.info == file.info and data.info["id"] == ("a", "b", "c", "d")
    same(load_dataset(frame, **options), file)
    same(read_smiles(frame.rename(columns={"Smiles": "mol"}), column="mol", **options), file)


def test_frames_that_cannot_be_read():
    pd = pytest.importorskip("pandas")
    with pytest.raises(
        DataError, match=r"DataFrame: no column 'smiles'; did you mean 'smile'\? \(columns: smile, gap"
    ):
        read_smiles(pd.DataFrame({"smile": ["C"], "gap": [1.0]}))
    with pytest.raises(DataError, match="DataFrame: no molecules"):
        read_smiles(pd.DataFrame({"smiles": []}))
    with pytest.raises(
        DataError, match=r"DataFrame, row 1 \(index y\): 'gap \(eV\)' is empty, or has no value"
    ):
        read_smiles(pd.DataFrame({"smiles": ["C", "CC"], "gap (eV)": [1.0, None]}, index=["x", "y"]))
    with pytest.raises(
        DataError, match=r"DataFrame, row 0 \(index 0\): smiles is 7 \(int64\); wanted a SMILES"
    ):
        read_smiles(pd.DataFrame({"smiles": [7]}))
    with pytest.raises(DataError, match="RDKit molecules are read by mq.read_mols"):
        read_smiles(pd.DataFrame({"smiles": [Chem.MolFromSmiles("C")]}))
    with pytest.raises(DataError, match="two columns are called 'a'"):
        read_smiles(pd.DataFrame([["C", 1, 2]], columns=["smiles", "a", "a"]))
    with pytest.raises(DataError, match=r"1 of 2 molecules cannot be used:\n.*row 1 \(index 1\): empty"):
        read_smiles(pd.DataFrame({"smiles": ["C", None]}))


def test_pandas_is_not_imported_for_others():
    code = (
        "import sys, molequi as mq; mq.read_smiles(['C']); mq.load_dataset(['CC']);"
        "assert 'pandas' not in sys.modules and 'rdkit' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# RDKit molecules.


def test_molecules_without_geometry_are_those_of_their_smiles():
    mols = [Chem.MolFromSmiles(s) for s in SMILES]
    data = read_mols(mols, conformers=2)
    file = read_smiles(SMILES, conformers=2)
    assert [g.z.tolist() for g in data] == [g.z.tolist() for g in file]
    assert data.info["canonical"] == file.info["canonical"] == data.info["smiles"]
    assert [float(g.charge) for g in data] == [float(g.charge) for g in file]
    same(load_dataset(mols[0]), load_dataset(mols[:1]))


@pytest.mark.parametrize("smiles", ["C[C@H](F)O", "C[C@@H](F)O", "F/C=C/F", "F/C=C\\F"])
def test_stereochemistry_is_kept(smiles):
    """The geometry that is made has the stereochemistry of the molecule, seen by RDKit from the positions alone."""
    data = read_mols([Chem.MolFromSmiles(smiles)])
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    wanted = Chem.MolToSmiles(Chem.RemoveHs(mol))
    mol.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    for k, place in enumerate(data[0].pos.tolist()):
        conformer.SetAtomPosition(k, place)
    mol.AddConformer(conformer)
    Chem.RemoveStereochemistry(mol)
    Chem.AssignStereochemistryFrom3D(mol)
    assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == wanted == data.info["canonical"][0]


def test_conformers_are_kept_to_the_last_digit():
    mol = embedded("CC(C)O", 3)
    mol.SetProp("_Name", "propanol")
    mol.SetDoubleProp("gap", 1.25)
    mol.SetProp("note", "x")
    before = mol.ToBinary()
    data = read_mols([mol, embedded("C")], units={"gap": "eV"}, partial=["gap"])
    assert len(data) == 4 and data.info["conformer"] == (0, 1, 2, 0) and data.info["molecule"] == (0, 0, 0, 1)
    for k in range(3):
        assert np.array_equal(data[k].pos.numpy(), mol.GetConformer(k).GetPositions())
        assert data[k].z.tolist() == [a.GetAtomicNum() for a in mol.GetAtoms()]
    assert data.values("gap").tolist()[:3] == [1.25] * 3 and bool(data.values("gap")[3].isnan())
    assert data.info["name"] == ("propanol",) * 3 + (None,) and data.info["note"][0] == "x"
    assert mol.ToBinary() == before  # the molecule of the user is not changed


def test_the_same_as_from_a_file(tmp_path):
    mol = embedded("CCO")
    with Chem.SDWriter(str(tmp_path / "m.sdf")) as file:
        file.write(mol)
    written, own = read_sdf(tmp_path / "m.sdf")[0], read_mols([mol])[0]
    assert np.allclose(written.pos, own.pos, atol=1e-4) and np.array_equal(written.z, own.z)


def test_hydrogens_that_are_not_atoms_are_added_and_told():
    bare = embedded("CCO", 2, hydrogens=False)
    with pytest.warns(
        DataWarning, match="list: 1 of 1 molecules lack hydrogens, which were placed beside the given"
    ):
        data = read_mols([bare])
    assert len(data) == 2 and data[0].num_nodes == 9
    assert np.array_equal(data[1].pos[:3].numpy(), bare.GetConformer(1).GetPositions())


def test_drawings_and_empty_conformers_are_no_geometry():
    from rdkit.Chem import rdDepictor

    drawn, zeros = Chem.MolFromSmiles("CCO"), Chem.MolFromSmiles("CCO")
    rdDepictor.Compute2DCoords(drawn)
    zeros.AddConformer(Chem.Conformer(3))
    data = read_mols([drawn, zeros, Chem.MolFromSmiles("CCO")])
    assert len(data) == 3 and all(np.array_equal(g.pos, data[2].pos) for g in data)
    assert np.linalg.matrix_rank(data[0].pos - data[0].pos.mean(0), tol=0.1) == 3


def test_frames_of_molecules():
    pd = pytest.importorskip("pandas")
    mols = [Chem.MolFromSmiles("C"), None, embedded("CO")]
    frame = pd.DataFrame({"ROMol": mols, "gap [eV]": [1.0, 2.0, 3.0], "pull": [[1.0, 2.0]] * 3})
    with pytest.warns(DataWarning, match=r"1 of 3 .*\n.*row 1 \(index 1\): None, which RDKit returns"):
        data = read_mols(frame, skip=True)
    assert data.values("gap").tolist() == [1, 3] and data.info["pull"] == ("1.0 2.0", "1.0 2.0")
    with pytest.raises(
        DataError, match="DataFrame: no column 'mol'.*name the one with the molecules with column="
    ):
        read_mols(frame, column="mol")


def test_molecules_that_cannot_be_read():
    with pytest.raises(DataError, match=r"molecule 1: 'CCO' \(str\); wanted an RDKit molecule"):
        read_mols([Chem.MolFromSmiles("C"), "CCO"])
    with pytest.raises(DataError, match="item 0 is Mol and item 1 is str 'CCO'"):
        load_dataset([Chem.MolFromSmiles("C"), "CCO"])
    with pytest.raises(DataError, match="list: no molecules"):
        read_mols([])
    with pytest.raises(DataError, match="molecule 0: .*valence"):
        read_mols([Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False)])
    with pytest.raises(DataError, match="molecule 0: no atoms"):
        read_mols([Chem.Mol()])
    with pytest.raises(
        DataError, match="molecule 1: None, which RDKit returns for a molecule that it cannot read"
    ):
        load_dataset([Chem.MolFromSmiles("C"), None])
    with pytest.raises(
        ConfigError, match="conformers=3 would have no effect: every molecule has conformers in space"
    ):
        read_mols([embedded("C")], conformers=3)
    with pytest.raises(ConfigError, match=r"read_mols\(embed=True\): read_mols has no such argument"):
        read_mols([embedded("C")], embed=True)
