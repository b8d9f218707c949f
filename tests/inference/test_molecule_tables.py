"""Predictions for molecules: one a molecule, the same in tables, lists and files, gone on with after an interruption."""

import csv
import json

import numpy as np
import pytest
import torch
from ase.io import read

from molequi import EGNN, Inputs, Model, connect, predict
from molequi.data import DataWarning
from molequi.errors import ConfigError, DataError
from molequi.inference import predict_table
from molequi.quantities import Quantity
from molequi.readers import read_smiles

SMILES = ["CCO", "CCN", "CC(C)O", "C", "CCCC"]
TASTE = Quantity(name="taste", classes=("sour", "sweet", "bitter"))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return (
            Model(
                EGNN(elements=["H", "C", "N", "O"], channels=8, layers=1, cutoff=4.0),
                ["energy", "forces", "gap", TASTE],
            )
            .double()
            .eval()
        )


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_mean_and_std_over_conformers(model):
    results = predict(model, SMILES, conformers=3)
    data = read_smiles(SMILES, conformers=3)
    assert len(results) == len(SMILES)
    for k, result in enumerate(results):
        own = [model(connect(g, 4.0)) for g, m in zip(data, data.info["molecule"]) if m == k]
        gaps = np.array([float(out["gap"]) for out in own])
        assert float(result["gap"]) == pytest.approx(gaps.mean(), abs=1e-10)
        assert float(result["gap_conformer_std"]) == pytest.approx(
            np.sqrt(((gaps - gaps.mean()) ** 2).sum() / 2), abs=1e-10
        )
        assert (
            result["forces"].shape == (3, data[3 * k].num_nodes, 3) and str(result["taste"]) in TASTE.classes
        )
        assert result["taste_probability"].shape == (3,)
    assert float(results[0]["gap_conformer_std"]) > 0
    assert results.units == {"energy": "eV", "forces": "eV/Å", "gap": "eV", "taste": ""} | dict.fromkeys(
        ("energy_conformer_std", "gap_conformer_std"), "eV"
    )
    one = predict(model, SMILES[:1])[0]
    assert set(one) == {"energy", "forces", "gap", "taste", "taste_probability"} and one["forces"].shape == (
        9,
        3,
    )


def test_table_has_what_predict_gives(model, tmp_path):
    (tmp_path / "in.csv").write_text(
        "id,smiles,gap\n" + "".join(f"x{k},{s},{k}\n" for k, s in enumerate(SMILES))
    )
    done = predict_table(model, tmp_path / "in.csv", tmp_path / "out.csv", conformers=2)
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == [
        "id",
        "gap_given",
        "smiles",
        "energy (eV)",
        "energy_conformer_std (eV)",
        "gap (eV)",
        "gap_conformer_std (eV)",
        "taste",
        "taste_sour",
        "taste_sweet",
        "taste_bitter",
        "conformers",
        "reason",
    ]
    assert (done.molecules, done.rejected, done.atoms) == (5, 0, tmp_path / "out.atoms.csv")
    assert str(done) == f"5 molecules: {done.out}\ntheir atoms: {done.atoms}"
    results = predict(model, tmp_path / "in.csv", conformers=2, out=tmp_path / "again.csv")
    for k, (row, result) in enumerate(zip(rows, results)):
        assert row["id"] == f"x{k}" and row["gap_given"] == str(k) and row["smiles"] == SMILES[k]
        assert float(row["gap (eV)"]) == pytest.approx(float(result["gap"]), rel=1e-8)
        odds = [float(row[f"taste_{c}"]) for c in TASTE.classes]
        assert sum(odds) == pytest.approx(1, abs=1e-5) and row["taste"] == TASTE.classes[int(np.argmax(odds))]
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "out.csv").read_text()
    assert (tmp_path / "again.atoms.csv").read_text() == (tmp_path / "out.atoms.csv").read_text()
    names = ["again.atoms.csv", "again.csv", "in.csv", "out.atoms.csv", "out.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_structures_of_all_conformers(model, tmp_path):
    predict(model, ["C/C=C/C", "C/C=C\\C"], conformers=2, out=tmp_path / "out.xyz")
    frames = read(tmp_path / "out.xyz", ":")
    assert [a.info["molecule"] for a in frames] == [0, 0, 1, 1] and frames[3].info["smiles"] == "C/C=C\\C"
    assert frames[2].get_forces().shape == (12, 3)


def test_molecules_that_cannot_be_used_keep_their_row(model, tmp_path):
    molecules = ["CCO", "CC(", "CCBr", "C"]
    with pytest.raises(
        DataError,
        match="rows 0 to 3: 2 of 4 .*\n.*row 1 'CC\\(': syntax error.*\n.*row 2 'CCBr': Br: not an element that",
    ):
        predict(model, molecules)
    with pytest.warns(DataWarning, match="2 of 4"):
        results = predict(model, molecules, skip=True)
    assert [bool(r) for r in results] == [True, False, False, True]
    done = predict_table(model, molecules, tmp_path / "out.csv", skip=True)
    rows = table(tmp_path / "out.csv")
    assert done.rejected == 2 and [r["gap (eV)"] == "" for r in rows] == [False, True, True, False]
    assert "syntax error" in rows[1]["reason"] and rows[0]["reason"] == ""


def test_goes_on_where_it_was_interrupted(model, tmp_path, monkeypatch):
    import importlib

    module = importlib.import_module("molequi.inference.molecule_predictions")
    monkeypatch.setattr(module, "CHUNK", 2)
    predict_table(model, SMILES, tmp_path / "whole.csv")
    seen, real = [], module.conformer_dataset

    def counted(kept, request):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append([row.number for row, _ in kept])
        return real(kept, request)

    monkeypatch.setattr(module, "conformer_dataset", counted)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        predict_table(model, SMILES, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists() and len(table(tmp_path / "out.csv.partial")) == 4
    with open(tmp_path / "out.csv.partial", "a") as file:
        file.write("half a li")  # a kill in the midst of writing
    stop, seen[:] = 9, []
    predict_table(model, SMILES, tmp_path / "out.csv")
    assert seen == [[4]] and (tmp_path / "out.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert not list(tmp_path.glob("*.partial*"))
    # Others molecules, another model or other options start anew, and so does a damaged note.
    stop, seen[:] = 1, []
    with pytest.raises(KeyboardInterrupt):
        predict_table(model, SMILES, tmp_path / "out.csv")
    stop, seen[:] = 9, []
    predict_table(model, SMILES, tmp_path / "out.csv", seed=1)
    assert seen[0] == [0, 1] and (tmp_path / "out.csv").read_text() != (tmp_path / "whole.csv").read_text()
    (tmp_path / "out.csv.partial.json").write_text(json.dumps([1]))
    predict_table(model, SMILES, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert (tmp_path / "out.atoms.csv").read_text() == (tmp_path / "whole.atoms.csv").read_text()
    # A table of an earlier version had other columns.
    stop, seen[:] = 1, []
    with pytest.raises(KeyboardInterrupt):
        predict_table(model, SMILES, tmp_path / "out.csv")
    note = json.loads((tmp_path / "out.csv.partial.json").read_text())
    del note["format"]
    (tmp_path / "out.csv.partial.json").write_text(json.dumps(note))
    stop, seen[:] = 9, []
    with pytest.warns(
        DataWarning, match="out.csv.partial was begun by another version .*_members_std is now"
    ):
        predict_table(model, SMILES, tmp_path / "out.csv")
    assert seen[0] == [0, 1] and (tmp_path / "out.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_what_cannot_be_a_table(model, tmp_path):
    (tmp_path / "in.csv").write_text("smiles\nC\n")
    with pytest.raises(ConfigError, match="ends in .csv"):
        predict_table(model, ["C"], tmp_path / "out.txt")
    for function in (predict_table, lambda m, s, out: predict(m, s, out=out)):
        with pytest.raises(ConfigError, match="this is the file of the"):
            function(model, tmp_path / "in.csv", tmp_path / "in.csv")
    with pytest.raises(
        ConfigError, match="predict.conformrs: no such option of predict_table; did you mean 'conformers'"
    ):
        predict(model, ["C"], conformrs=2)
    with pytest.raises(DataError, match="no column 'SMI'"):
        predict_table(model, tmp_path / "in.csv", tmp_path / "out.csv", column="SMI")
    with pytest.raises(DataError, match="no molecules"):
        (tmp_path / "none.csv").write_text("smiles\n")
        predict_table(model, tmp_path / "none.csv", tmp_path / "out.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv", "none.csv"]


def test_a_model_that_takes_features_and_charge_gets_them():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(
            EGNN(
                elements=["H", "C", "N"],
                channels=8,
                layers=1,
                cutoff=4.0,
                inputs=Inputs(node_features=6, edge_features=6, charge=True),
            ),
            ["gap"],
        )
    neutral, ion = predict(model, ["CN", "C[NH3+]"])
    assert np.isfinite(neutral["gap"]) and np.isfinite(ion["gap"])


def test_decimals_of_the_predictions_are_those_of_the_table(model, tmp_path):
    plain = tmp_path / "plain.csv"
    predict_table(model, SMILES, plain)
    expected = [float(row["gap (eV)"]) for row in table(plain)]
    for text, mark in (("1,5", ","), ("1.5", "."), ("a,b", ".")):
        source, out = tmp_path / "in.csv", tmp_path / f"out{ord(text[1])}{text[0]}.csv"
        source.write_text("y;smiles\n" + "".join(f"{text};{one}\n" for one in SMILES))
        predict_table(model, source, out)
        for partial in (out, out.with_suffix(".atoms.csv")):
            with open(partial, newline="") as file:
                rows = list(csv.DictReader(file, delimiter=";"))
            name = "gap (eV)" if partial == out else "x (Å)"
            other = {",": ".", ".": ","}[mark]
            assert any(mark in row[name] for row in rows) and not any(other in row[name] for row in rows)
            if partial == out:
                found = [float(row[name].replace(mark, ".")) for row in rows]
                np.testing.assert_allclose(found, expected, rtol=1e-9)
                assert {row["y"] for row in rows} == {text}
    # Between commas a table keeps points, because a comma is no mark of decimals there.
    (tmp_path / "quoted.csv").write_text('y,smiles\n"1,5",CCO\n')
    predict_table(model, tmp_path / "quoted.csv", tmp_path / "quoted-out.csv")
    assert "." in table(tmp_path / "quoted-out.csv")[0]["gap (eV)"]
