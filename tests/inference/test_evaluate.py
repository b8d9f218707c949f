"""Errors and predictions over files, data sets and structures; the same whatever the batches."""

import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from ase.io import write as ase_write

from molequi import connect, evaluate, predict, save
from molequi.errors import CheckpointError, ConfigError, DataError, ModelError
from molequi.inference import predict_table
from molequi.readers import read_ase, to_atoms


@pytest.fixture
def trained(make):
    model = make.tiny()
    model.standardize(make.morse(8).statistics(4.0))
    return model.double().eval()


def test_errors_by_hand(trained, data):
    errors = evaluate(trained, data)
    found = [trained(connect(graph, 4.0)) for graph in data]
    off = torch.cat([out["forces"] - graph.targets["forces"] for out, graph in zip(found, data)])
    assert errors["forces_mae"] == pytest.approx(off.abs().mean().item(), rel=1e-10)
    per_atom = torch.cat(
        [(out["energy"] - graph.targets["energy"]) / graph.num_nodes for out, graph in zip(found, data)]
    )
    assert errors["energy_per_atom_rmse"] == pytest.approx(per_atom.square().mean().sqrt().item(), rel=1e-10)


def test_batches_do_not_matter(trained, data):
    one, many = evaluate(trained, data, batch_edges=1), evaluate(trained, data, batch_edges=10_000)
    assert one.numbers() == pytest.approx(many.numbers(), rel=1e-9)
    for a, b in zip(predict(trained, data, batch_edges=1), predict(trained, data)):
        assert np.allclose(a["forces"], b["forces"], atol=1e-12) and np.allclose(
            a["energy"], b["energy"], atol=1e-10
        )


def test_training_mode_is_given_back(trained, data):
    trained.train()
    evaluate(trained, data)
    assert trained.training


def test_predictions_have_the_shapes_of_their_quantities(trained, data):
    results = predict(trained, data)
    assert len(results) == len(data)
    for result, graph in zip(results, data):
        assert list(result) == ["energy", "forces"]
        assert result["energy"].shape == () and result["forces"].shape == (graph.num_nodes, 3)
        out = trained(connect(graph, 4.0))
        assert np.allclose(result["forces"], out["forces"].numpy(), atol=1e-12)


def test_from_file_to_file(trained, data, tmp_path):
    save(trained, tmp_path / "model.safetensors")
    frames = [to_atoms(graph) for graph in data]
    ase_write(tmp_path / "in.xyz", frames)
    results = predict(tmp_path / "model.safetensors", tmp_path / "in.xyz", out=tmp_path / "out.xyz")
    written = read(tmp_path / "out.xyz", ":")
    assert len(written) == len(frames)
    for atoms, result in zip(written, results):
        assert np.allclose(atoms.get_forces(), result["forces"], atol=1e-7)
        assert atoms.get_potential_energy() == pytest.approx(float(result["energy"]), abs=1e-7)
    assert evaluate(trained, tmp_path / "in.xyz")["forces_mae"] == pytest.approx(
        evaluate(trained, data)["forces_mae"], abs=1e-6
    )
    # Labels of the input are not among the predictions, not even where they are not numbers.
    for atoms in frames:
        atoms.calc = None
        atoms.info["energy"] = "none"
    ase_write(tmp_path / "odd.xyz", frames)
    again = predict(trained, tmp_path / "odd.xyz")
    assert np.allclose(again[3]["forces"], results[3]["forces"], atol=1e-6)


def test_from_atoms(trained, data):
    whole = predict(trained, data)
    assert np.allclose(predict(trained, to_atoms(data[2]))[0]["forces"], whole[2]["forces"], atol=1e-10)
    assert np.allclose(
        predict(trained, [to_atoms(data[2]), to_atoms(data[1])])[1]["forces"], whole[1]["forces"], atol=1e-10
    )


def test_labels_under_other_names_and_units(trained, data, tmp_path):
    frames = []
    for graph in data:
        atoms = Atoms(graph.z.numpy(), graph.pos.numpy())
        atoms.set_array("REF_forces", graph.targets["forces"].numpy() * 1000)
        frames.append(atoms)
    ase_write(tmp_path / "in.xyz", frames)
    with pytest.raises(ConfigError, match="no|nothing to compare"):
        evaluate(trained, tmp_path / "in.xyz")
    errors = evaluate(trained, tmp_path / "in.xyz", keys={"forces": "REF_forces"}, units={"forces": "meV/Å"})
    assert errors["forces_rmse"] == pytest.approx(evaluate(trained, data)["forces_rmse"], abs=1e-6)
    with pytest.raises(ConfigError, match="have been read already"):
        evaluate(trained, data, keys={"forces": "REF_forces"})


def test_what_cannot_be_predicted(trained, tmp_path):
    with pytest.raises(ModelError, match="atom 0 is C; this model"):
        predict(trained, Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]))
    with pytest.raises(DataError, match="no structures"):
        predict(trained, [])
    with pytest.raises(DataError, match="no such file"):
        predict(trained, tmp_path / "none.xyz")
    with pytest.raises(CheckpointError, match="no such file"):
        predict(tmp_path / "none.safetensors", Atoms("H"))


def test_a_failed_prediction_leaves_no_file(trained, tmp_path):
    (tmp_path / "out.xyz").write_text("before")
    with pytest.raises(ModelError):
        predict(trained, [Atoms("H"), Atoms("C")], out=tmp_path / "out.xyz")
    assert (tmp_path / "out.xyz").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_one_atom_alone(trained):
    (result,) = predict(trained, Atoms("H"))
    assert np.array_equal(result["forces"], np.zeros((1, 3)))
    assert float(result["energy"]) == pytest.approx(float(trained.heads["energy"].reference_energies[1]))


def test_predictions_never_replace_the_structures(trained, data, tmp_path):
    path = tmp_path / "in.xyz"
    ase_write(path, [to_atoms(graph) for graph in data])
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="the file of the structures"):
        predict(trained, path, out=path)
    with pytest.raises(ConfigError, match="ends in .xyz or .extxyz"):
        predict(trained, path, out=tmp_path / "p.csv")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_labels_of_no_interest_may_be_partial(trained, data, tmp_path):
    frames = [to_atoms(graph) for graph in data]
    frames[0].info.update(dipole=[0.0, 0.0, 1.0], charge=1)
    ase_write(tmp_path / "in.xyz", frames)
    assert evaluate(trained, tmp_path / "in.xyz")["forces_mae"] == pytest.approx(
        evaluate(trained, data)["forces_mae"], abs=1e-6
    )
    assert len(predict(trained, tmp_path / "in.xyz")) == len(frames)
    frames[1].calc = None
    ase_write(tmp_path / "in.xyz", frames)
    with pytest.raises(DataError, match="partial="):
        evaluate(trained, tmp_path / "in.xyz")
    assert evaluate(trained, tmp_path / "in.xyz", partial=["energy", "forces"])["forces_mae"] > 0


def test_columns_of_info_stay(trained, data, tmp_path):
    frames = [to_atoms(graph) for graph in data]
    for k, atoms in enumerate(frames):
        atoms.info.update(temperature=300.0 + k, config_type="a b", smiles="F/C=C\\\\F", gap=1.0)
    ase_write(tmp_path / "in.xyz", frames)
    results = predict(trained, tmp_path / "in.xyz", out=tmp_path / "out.xyz")
    written = read(tmp_path / "out.xyz", ":")
    assert written[5].info["temperature"] == 305 and written[5].info["config_type"] == "a b"
    assert written[5].info["smiles"] == "F/C=C\\F" and "gap" not in written[5].info
    assert written[5].get_potential_energy() == pytest.approx(float(results[5]["energy"]), abs=1e-7)


def test_the_file_of_predictions_is_checked_before_any_prediction(trained, data, tmp_path, monkeypatch):
    """With the control that a prediction would be made: the model is broken, and is not asked."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.xyz").mkdir()

    def asked(*args, **kwargs):
        raise AssertionError("a prediction was made")

    monkeypatch.setattr(type(trained), "forward", asked)
    for name, message in [
        ("none/p.xyz", "there is no folder .*none; make it with\n  mkdir -p .*none"),
        ("folder.xyz", "is a folder; wanted a file in it"),
        ("file/p.xyz", "cannot be written"),
        ("none/p.csv", "there is no folder"),
    ]:
        structures = ["O"] if name.endswith(".csv") else data
        with pytest.raises(ConfigError, match=message):
            predict(trained, structures, out=tmp_path / name)
    with pytest.raises(ConfigError, match="there is no folder"):
        predict_table(trained, ["O"], tmp_path / "none" / "p.csv")
    with pytest.raises(AssertionError, match="a prediction was made"):
        predict(trained, data, out=tmp_path / "p.xyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.xyz"]


def test_predictions_that_cannot_be_written_are_kept_elsewhere(trained, data, tmp_path, monkeypatch):
    """A full disk, or a folder that is gone when the predictions are made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    target = tmp_path / "gone" / "p.xyz"
    target.parent.mkdir()
    forward = type(trained).forward

    def last(self, *args, **kwargs):
        if target.parent.exists():
            shutil.rmtree(target.parent)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(trained), "forward", last)
    with pytest.raises(
        DataError, match=r"p.xyz: cannot be written \(No such file.*the results are in "
    ) as caught:
        predict(trained, data, out=target)
    kept = str(caught.value).rpartition("the results are in ")[2]
    assert len(read_ase(kept)) == len(data)


def test_an_unknown_element_is_named_with_its_file_and_frame(trained, tmp_path):
    water = Atoms("OH2", [[0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    ase_write(tmp_path / "a.xyz", [water] * 5)
    ase_write(
        tmp_path / "b.xyz",
        [water, Atoms("OC", [[0, 0, 0], [0, 0, 1.1]]), Atoms("ClC", [[0, 0, 0], [0, 0, 2]])],
    )
    message = (
        r"b.xyz, frame 1: atom 1 is C, and 2 of 8 structures have such elements \(also Cl\); "
        "this model knows only H, O; train on data"
    )
    with pytest.raises(ModelError, match=message):
        predict(trained, [tmp_path / "a.xyz", tmp_path / "b.xyz"])
    with pytest.raises(ModelError, match="structure 0: atom 0 is C; this model knows only H, O"):
        predict(trained, Atoms("C"))
