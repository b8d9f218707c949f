"""Vectors, tensors and quantities of atoms as columns of tables and DataFrames, with their units."""

import csv
import itertools

import numpy as np
import pytest
import torch
from ase.build import molecule
from rdkit import Chem
from rdkit.Chem import rdDistGeom

import molequi as mq
from molequi import EGNN, Ensemble, Model, NequIP, Quantity, predict
from molequi.data import DataWarning
from molequi.errors import ConfigError, MissingPackageError
from molequi.inference import predict_table
from molequi.inference.columns import Layout, components
from molequi.inference.table_files import given_names
from molequi.readers import read_smiles

TASTE = Quantity("taste", classes=["sweet", "sour"])
CHARGE = Quantity("charges", per="node", unit="e")
PREDICT = ["gap", "dipole", "polarizability", "forces", "energy", CHARGE, TASTE]


def built(seed, predict=PREDICT):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = NequIP(elements=["H", "C", "O"], channels=4, layers=1, cutoff=4.0, l_max=2)
        return Model(backbone, predict).double().eval()


@pytest.fixture(scope="module")
def model():
    return built(0)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_names_of_components():
    """All components of a tensor follow from those in the table, and none is there twice."""
    rng = np.random.default_rng(0)
    for q in (
        Quantity("v", rank=1),
        Quantity("s", rank=2, symmetry="ij=ji"),
        Quantity("a", rank=2, symmetry="ij=-ji"),
        Quantity("t", rank=2),
        Quantity("h", rank=3, symmetry="ijk=jik=ikj"),
    ):
        found = components(q, 3)
        value = rng.normal(size=(3,) * q.rank)
        if q.symmetry:
            sign = -1 if "-" in q.symmetry else 1
            orders = list(itertools.permutations(range(q.rank)))
            value = sum(value.transpose(o) * (sign if o != tuple(sorted(o)) else 1) for o in orders)
        distinct = {round(abs(float(v)), 12) for v in value.ravel()} - {0.0}
        assert len(found) == len(distinct) == {"v": 3, "s": 6, "a": 3, "t": 9, "h": 10}[q.name]
        assert {round(abs(float(value[k])), 12) for k in found} == distinct


def test_a_table_with_vectors_and_tensors(model, tmp_path):
    done = predict_table(model, ["CCO", "C=O"], tmp_path / "t.csv", progress=False)
    rows, results = rows_of(tmp_path / "t.csv"), predict(model, ["CCO", "C=O"], progress=False)
    xyz = [f"polarizability_{k} (e^2 Å^2/eV)" for k in ("xx", "xy", "xz", "yy", "yz", "zz")]
    unit = model.quantities["polarizability"].unit
    xyz = [name.replace("e^2 Å^2/eV", unit) for name in xyz]
    assert list(rows[0]) == [
        "smiles",
        "gap (eV)",
        *(f"dipole_{k} (e Å)" for k in ("x", "y", "z", "norm")),
        *xyz,
        *(f"polarizability_{k} ({unit})" for k in ("iso", "norm")),
        "energy (eV)",
        "taste",
        "taste_sweet",
        "taste_sour",
        "reason",
    ]
    for row, result in zip(rows, results):
        dipole, alpha = result["dipole"], result["polarizability"]
        assert [float(row[f"dipole_{k} (e Å)"]) for k in "xyz"] == pytest.approx(dipole.tolist(), rel=1e-8)
        assert float(row["dipole_norm (e Å)"]) == pytest.approx(float(np.sqrt(dipole @ dipole)), rel=1e-8)
        assert (
            float(row[f"polarizability_yz ({unit})"]) == pytest.approx(alpha[1, 2], rel=1e-8) and alpha[1, 2]
        )
        trace = (alpha[0, 0] + alpha[1, 1] + alpha[2, 2]) / 3
        assert float(row[f"polarizability_iso ({unit})"]) == pytest.approx(trace, rel=1e-8)
        assert float(row[f"polarizability_norm ({unit})"]) == pytest.approx(
            np.sqrt((alpha**2).sum()), rel=1e-8
        )
    # Of atoms, a table of their own.
    atoms, data = rows_of(done.atoms), read_smiles(["CCO", "C=O"])
    assert done.atoms == tmp_path / "t.atoms.csv" and len(atoms) == 9 + 4
    assert list(atoms[0]) == [
        *("row", "smiles", "atom", "element"),
        *(f"{k} (Å)" for k in "xyz"),
        *(f"forces_{k} (eV/Å)" for k in ("x", "y", "z")),
        "charges (e)",
    ]
    for row in atoms:
        r, n = int(row["row"]), int(row["atom"])
        assert row["smiles"] == ["CCO", "C=O"][r] and row["element"] == ["CCOHHHHHH", "COHH"][r][n]
        assert [float(row[f"{k} (Å)"]) for k in "xyz"] == pytest.approx(data[r].pos[n].tolist(), abs=1e-8)
        found = [float(row[f"forces_{k} (eV/Å)"]) for k in "xyz"]
        assert found == pytest.approx(results[r]["forces"][n].tolist(), rel=1e-8, abs=1e-12)
        assert float(row["charges (e)"]) == pytest.approx(float(results[r]["charges"][n]), rel=1e-8)


def test_conformers_have_no_common_axes(model, tmp_path):
    """What depends on the axes of a geometry is left out; lengths and traces are means over the conformers."""
    done = predict_table(model, ["CCO", "C"], tmp_path / "t.csv", conformers=3, progress=False)
    row = rows_of(tmp_path / "t.csv")[0]
    assert not any(name.startswith(("dipole_x", "polarizability_xx")) for name in row)
    one = predict(model, ["CCO"], conformers=3, progress=False)[0]
    lengths = np.linalg.norm(one["dipole"], axis=1)
    assert float(row["dipole_norm (e Å)"]) == pytest.approx(lengths.mean(), rel=1e-8)
    std = np.sqrt(((lengths - lengths.mean()) ** 2).sum() / 2)
    assert float(row["dipole_norm_conformer_std (e Å)"]) == pytest.approx(std, rel=1e-7)
    atoms = rows_of(done.atoms)
    assert [r["conformer"] for r in atoms[:27]] == [c for c in "012" for _ in range(9)]
    assert float(atoms[9]["forces_x (eV/Å)"]) == pytest.approx(one["forces"][1][0, 0], rel=1e-8, abs=1e-12)


def test_a_single_conformer_of_several_has_no_standard_deviation(model, tmp_path):
    many = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMultipleConfs(many, 2, randomSeed=1)
    lone = Chem.AddHs(Chem.MolFromSmiles("O"))
    rdDistGeom.EmbedMultipleConfs(lone, 1, randomSeed=1)
    results = predict(model, [many, lone], out=tmp_path / "t.csv", progress=False)
    data = mq.read_mols([many])
    each = [float(model(mq.connect(g, 4.0))["gap"]) for g in data]
    assert float(results[0]["gap"]) == pytest.approx(np.mean(each), rel=1e-9)  # all conformers count
    assert float(results[0]["gap_conformer_std"]) == pytest.approx(np.std(each, ddof=1), rel=1e-6)
    rows = rows_of(tmp_path / "t.csv")
    assert [r["conformers"] for r in rows] == ["2", "1"] and rows[1]["gap_conformer_std (eV)"] == ""
    assert [r["smiles"] for r in rows] == ["CCO", "O"]


def test_columns_of_the_input_keep_their_values(tmp_path):
    assert given_names(["id", "gap (eV)", "gap", "smiles"], ["gap (eV)", "reason"]) == [
        "id",
        "gap_given (eV)",
        "gap_given",
        "smiles_given",
    ]
    assert given_names(["gap", "gap_given"], ["gap (eV)"]) == ["gap_given_given", "gap_given"]
    model = built(0, ["gap"])
    (tmp_path / "in.csv").write_text("smiles,gap (eV),reason\nC,1.5,x\n")
    predict_table(model, tmp_path / "in.csv", tmp_path / "out.csv", progress=False)
    (row,) = rows_of(tmp_path / "out.csv")
    assert (row["gap_given (eV)"], row["reason_given"], row["reason"]) == ("1.5", "x", "")


def test_two_columns_of_one_name(model):
    odd = Model(EGNN(elements=["H"], channels=4, layers=1), ["dipole", Quantity("dipole_x")])
    with pytest.raises(
        ConfigError, match="two columns 'dipole_x': the model predicts a quantity of this name"
    ):
        Layout(odd)
    assert Layout(odd, several=True).columns


# DataFrames.


def test_a_frame_goes_in_and_comes_out(model):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"smiles": ["CCO", "CC(", "C"], "gap": [1.0, 2.0, 3.0], "n": [1, 2, 3]}, index=["a", "b", "c"]
    )
    before = frame.copy()
    out = predict(model, frame, as_frame=True, skip=True, progress=False)
    pd.testing.assert_frame_equal(frame, before)
    results = predict(model, ["CCO", "C"], progress=False)
    assert list(out.index) == ["a", "b", "c"] and list(out.columns[:4]) == ["smiles", "gap_given", "n", "gap"]
    assert out["n"].dtype == frame["n"].dtype and out["gap_given"].tolist() == [1, 2, 3]
    good = out[out["reason"] == ""]
    assert list(good.index) == ["a", "c"] and "syntax error" in out.loc["b", "reason"]
    assert out.loc["b", ["gap", "dipole_x"]].isna().all() and out["gap"].dtype == float
    assert good["gap"].tolist() == pytest.approx([float(r["gap"]) for r in results], rel=1e-12)
    assert good["dipole_y"].tolist() == pytest.approx([r["dipole"][1] for r in results], rel=1e-12)
    assert np.array_equal(good["forces"].iloc[1], results[1]["forces"])
    assert good["taste"].tolist() == [str(r["taste"]) for r in results]
    units = out.attrs["units"]
    assert (units["gap"], units["dipole_x"], units["forces"], units["taste"]) == ("eV", "e Å", "eV/Å", "")
    assert "calibration" not in out.attrs and "interval" not in out.attrs
    with pytest.raises(
        mq.errors.DataError, match=r"DataFrame, rows 0 to 2: 1 of 3 .*\n.*row 1 \(index b\) 'CC\('"
    ):
        predict(model, frame, as_frame=True, progress=False)


def test_the_frame_of_a_list_is_the_table_of_it(model, tmp_path):
    pd = pytest.importorskip("pandas")
    many = Ensemble([built(1), built(2)]).calibrated({"gap": 3.0})
    options = {"conformers": 2, "progress": False}
    frame = predict(many, ["CCO", "C"], as_frame=True, out=tmp_path / "t.csv", **options)
    table = pd.read_csv(tmp_path / "t.csv")
    names = [name.split(" (")[0] for name in table.columns]
    assert names == [name for name in frame.columns if name not in ("forces", "charges")]
    numbers = [name for name in names if frame[name].dtype == float]
    assert len(numbers) > 10
    for name, head in zip(names, table.columns):
        if name in numbers:
            assert np.allclose(frame[name], table[head], rtol=1e-8, equal_nan=True), name
    assert frame.attrs["calibration"] == {"gap": 3.0}
    assert "gap_std (eV)" in table and "energy_std (eV, not calibrated)" in table and "taste_std" in table


def test_frames_of_molecules_and_of_structures(model):
    pd = pytest.importorskip("pandas")
    mols = pd.DataFrame({"ROMol": [Chem.MolFromSmiles("CO"), Chem.MolFromSmiles("C")], "id": [5, 6]})
    out = predict(model, mols, column="ROMol", as_frame=True, progress=False)
    assert (
        out["smiles"].tolist() == ["CO", "C"]
        and out["id"].tolist() == [5, 6]
        and out["ROMol"][0] is mols["ROMol"][0]
    )
    atoms = [molecule("H2O"), molecule("CH4")]
    atoms[0].info["temperature"] = 300.0
    frame = predict(model, atoms, as_frame=True, progress=False)
    results = predict(model, atoms, progress=False)
    assert frame["temperature"][0] == 300 and len(frame) == 2
    assert frame["polarizability_zz"][1] == pytest.approx(results[1]["polarizability"][2, 2], rel=1e-12)
    assert np.array_equal(frame["charges"][0], results[0]["charges"])
    assert results.units["charges"] == "e" and frame.attrs["units"]["energy"] == "eV"


def test_without_pandas(model, monkeypatch):
    import molequi.util.optional as optional

    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    for what in (["C"], molecule("H2O")):
        with pytest.raises(
            MissingPackageError,
            match=r"predict\(as_frame=True\) needs pandas.*pip install 'molequi\[pandas\]'",
        ):
            predict(model, what, as_frame=True, progress=False)


def test_rejected_molecules_are_warned_of_where_nothing_marks_them(model):
    with pytest.warns(DataWarning, match="1 of 2 molecules cannot be used"):
        assert predict(model, [Chem.MolFromSmiles("C"), None], skip=True, progress=False)[1] == {}
