"""Classes whose names are numbers: 1, "1" and "1.0" are the class called "1", whatever its place in the list."""

import numpy as np
import pytest

import molequi as mq
from molequi.data.labels import class_numbers
from molequi.errors import DataError
from molequi.quantities import Quantity

LAS = ("1", "2", "5")  # unassigned, ground, high vegetation
SMILES = ("CCO", "CCC", "CCN", "CC")


def names(data, q):
    return [q.classes[int(v)] for v in data.values(q.name)]


@pytest.mark.parametrize("cells", [("1", "2", "5", "1"), ("1.0", "2.0", "5.0", "1.0")])
def test_molecules_of_tables_records_and_objects(tmp_path, cells):
    from rdkit import Chem

    q, want = Quantity(name="kind", classes=LAS), ["1", "2", "5", "1"]
    lines = "".join(f"{s},{c}\n" for s, c in zip(SMILES, cells))
    (tmp_path / "t.csv").write_text("smiles,kind\n" + lines)
    assert names(mq.read_smiles(tmp_path / "t.csv", quantities=[q], optimize=None), q) == want
    mols = [Chem.MolFromSmiles(s) for s in SMILES]
    for mol, cell in zip(mols, cells):
        mol.SetProp("kind", cell)
    assert names(mq.read_mols(mols, quantities=[q], optimize=None), q) == want


@pytest.mark.parametrize("kind", ["csv", "npy", "npz", "ply", "names"])
def test_points_of_every_file(tmp_path, kind):
    q = Quantity(name="part", per="node", classes=LAS)
    table = np.array([[0.0, 0, 0, 1], [1, 0, 0, 5], [0, 1, 0, 2]])
    options = {"columns": ["x", "y", "z", "part"]} if kind in ("npy",) else {}
    path = tmp_path / f"p.{'npz' if kind == 'names' else kind}"
    if kind == "csv":
        path.write_text("x,y,z,part\n" + "".join(",".join(map(str, r)) + "\n" for r in table))
    elif kind == "npy":
        np.save(path, table)
    elif kind == "npz":
        np.savez(path, pos=table[:, :3], part=table[:, 3])
    elif kind == "names":  # the file says what its numbers mean, so they are places
        np.savez(path, pos=table[:, :3], part=[0, 1, 2], part_classes=["1", "5", "2"])
    else:
        header = "".join(f"property float {n}\n" for n in ("x", "y", "z", "part"))
        rows = "".join(" ".join(map(str, r)) + "\n" for r in table)
        path.write_text(f"ply\nformat ascii 1.0\nelement vertex 3\n{header}end_header\n{rows}")
        options = {"samples": None}
    assert names(mq.read_points(path, quantities=[q], **options), q) == ["1", "5", "2"]


def test_pyg_and_npz_and_atoms(tmp_path):
    torch, data = pytest.importorskip("torch"), pytest.importorskip("torch_geometric.data")
    q = Quantity(name="kind", classes=LAS)
    z = torch.tensor([8, 1, 1])
    items = [data.Data(pos=3 * torch.eye(3), z=z, y=torch.tensor([k])) for k in (5, 1, 2)]
    read = mq.from_pyg(items, targets={"kind": "y"}, quantities=[q])
    assert names(read, q) == ["5", "1", "2"]
    atoms = pytest.importorskip("ase.build").molecule("H2O")
    atoms.info["kind"] = 5
    assert names(mq.from_atoms([atoms], quantities=[q]), q) == ["5"]
    # write_npz writes places and says of which list, so another order of the reader is no obstacle.
    mq.write_npz(read, tmp_path / "a.npz")
    assert names(mq.read_npz(tmp_path / "a.npz"), q) == ["5", "1", "2"]
    other = Quantity(name="kind", classes=("5", "2", "1"))
    assert names(mq.read_npz(tmp_path / "a.npz", quantities=[other]), other) == ["5", "1", "2"]


def test_other_numbers_are_no_class_and_missing_ones_stay_missing():
    q = Quantity(name="kind", classes=LAS)
    for raw in (np.array([0]), np.array(["0"]), np.array([3.0])):
        with pytest.raises(DataError, match=r"here: kind is (0|3.0).*a number is a name here"):
            class_numbers(raw, q, "here: kind")
    for raw in (np.array([1.0, np.nan, -1]), np.array(["1", "", "nan"])):
        assert class_numbers(raw, q, "here", partial=True).tolist()[0] == 0
        assert np.isnan(class_numbers(raw, q, "here", partial=True)[1:]).all()
        with pytest.raises(DataError, match="where labels are meant to be missing say partial"):
            class_numbers(raw, q, "here")
    sign = Quantity(name="sign", classes=("1", "-1"))  # -1 is a name, not an unknown class
    assert class_numbers(np.array([-1, 1]), sign, "here").tolist() == [1, 0]
    words = Quantity(name="taste", classes=("sour", "sweet"))  # no name is a number: numbers are places
    assert class_numbers(np.array(["1", "sour", "0"]), words, "here").tolist() == [1, 0, 0]


def test_classes_of_all_atoms_in_a_property(tmp_path):
    """The values of all atoms in one cell; the first one alone would be another molecule's label."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles("O"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    mol.SetProp("site", "5 1 2")
    q = Quantity(name="site", per="node", classes=LAS)
    assert names(mq.read_mols([mol], quantities=[q]), q) == ["5", "1", "2"]


def test_a_class_may_be_called_none(tmp_path):
    (tmp_path / "t.csv").write_text("smiles,risk\nCCO,None\nCC,high\n")
    q = Quantity(name="risk", classes=("None", "high"))
    assert names(mq.read_smiles(tmp_path / "t.csv", quantities=[q], optimize=None), q) == ["None", "high"]
