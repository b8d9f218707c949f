"""How data were read belongs to the model: prediction from files reads them in the same way, or says what differs."""

import warnings

import numpy as np
import pytest
import torch

from molequi import (
    EGNN,
    Dataset,
    Inputs,
    Model,
    Quantity,
    audit,
    evaluate,
    fit,
    load,
    predict,
    read_points,
    read_smiles,
    write_npz,
)
from molequi.data.reading import check_reading
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.inference import predict_table

QUIET = dict(epochs=1, logging={"progress": False})
OFF = "OFF\n4 4 0\n0 0 0\n{s} 0 0\n0 {s} 0\n0 0 {s}\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"


@pytest.fixture
def shapes(tmp_path):
    """A folder with two classes of tetrahedra of many sizes."""
    random = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for kind in ("a", "b"):
            folder = tmp_path / part / kind
            folder.mkdir(parents=True)
            for k in range(count):
                (folder / f"{k}.off").write_text(OFF.format(s=10 ** random.uniform(-1, 2)))
    return tmp_path


def points_model(data):
    torch.manual_seed(0)
    backbone = EGNN(elements=[0], cutoff=None, k=4, channels=8, layers=1)
    return Model(backbone, [data.quantities["shape"]])


def trained_on_points(folder, **options):
    train, valid = (read_points(folder / part, **options) for part in ("train", "val"))
    return fit(points_model(train), train, valid, **QUIET, out=folder / "run").model


def test_files_of_clouds_are_read_as_in_the_training(shapes):
    trained_on_points(shapes, samples=16, normalize="rms")
    file = shapes / "run" / "model.safetensors"
    kept = load(file).metadata["reading"]
    assert kept["normalize"] == "rms" and kept["samples"] == 16
    right = read_points(shapes / "val", samples=16, normalize="rms")
    by_path = evaluate(file, shapes / "val")
    assert by_path["shape_cross_entropy"] == evaluate(file, right)["shape_cross_entropy"]
    found = predict(file, shapes / "val", progress=False)
    for one, other in zip(found, predict(file, right, progress=False)):
        assert np.array_equal(one["shape_probability"], other["shape_probability"])


def test_a_cloud_of_another_size_is_refused_everywhere(shapes):
    model = trained_on_points(shapes, samples=16, normalize="rms")
    raw = read_points(shapes / "val", samples=16)
    said = "were read with normalize=None, and those of the training with normalize='rms'"
    for way in (lambda: evaluate(model, raw), lambda: predict(model, raw, progress=False)):
        with pytest.raises(ConfigError, match=said):
            way()
    train = read_points(shapes / "train", samples=16, normalize="rms")
    with pytest.raises(ConfigError, match="the valid data were read with normalize=None, and the training"):
        fit(points_model(train), train, raw, **QUIET)


def test_vertices_of_a_training_are_vertices_at_prediction(shapes):
    model = trained_on_points(shapes, samples=None)
    right = evaluate(model, read_points(shapes / "val", samples=None))
    assert evaluate(model, shapes / "val")["shape_cross_entropy"] == right["shape_cross_entropy"]
    with pytest.warns(DataWarning, match="read with samples=16, and those of the training with samples=None"):
        evaluate(model, shapes / "val", samples=16)


def test_reading_survives_parts_and_sums():
    data = read_smiles(["C", "CC", "CCC"], optimize=None)
    assert data.reading == data[:2].reading == (data[:1] + data[1:]).reading
    assert data.reading == {"conformers": 1, "optimize": None}
    other = read_smiles(["CO"], optimize="mmff")
    assert "optimize" not in (data + other).reading


def test_check_reading_needs_both_sides():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_reading({}, {"normalize": "rms"}, "these data")
        check_reading({"normalize": "rms"}, {}, "these data")
        check_reading({"features": []}, {"features": ()}, "these data")


@pytest.fixture
def molecules():
    """A model of molecules with three conformers each, without relaxation."""
    q = Quantity("p")
    texts = ["C", "CC", "CCC", "CO", "CCO", "O"]
    data = read_smiles(texts, conformers=3, optimize=None)
    labels = [float(k) for k in data.info["molecule"]]
    data = Dataset(
        [g.replace(targets={"p": torch.tensor([v]).double()}) for g, v in zip(data, labels)],
        quantities={"p": q},
        info=data.info,
        reading=data.reading,
    )
    torch.manual_seed(0)
    model = Model(EGNN(elements=["H", "C", "O"], channels=8, layers=1, cutoff=3.0), [q])
    parts = data.split([0.7, 0.3])
    return fit(model, *parts, **QUIET).model


def test_molecules_get_the_geometries_of_the_training(molecules, tmp_path):
    pytest.importorskip("rdkit")
    (as_trained,) = predict(molecules, ["CCCO"], progress=False)
    (said,) = predict(molecules, ["CCCO"], conformers=3, optimize=None, progress=False)
    assert as_trained["p"] == said["p"] and "p_conformer_std" in as_trained
    with pytest.warns(
        DataWarning, match="read with optimize='mmff', and those of the training with optimize=None"
    ):
        (relaxed,) = predict(molecules, ["CCCO"], optimize="mmff", progress=False)
    assert relaxed["p"] != said["p"]  # the control: the option matters
    (one,) = predict(molecules, ["CCCO"], conformers=1, progress=False)
    assert "p_conformer_std" not in one
    (tmp_path / "m.csv").write_text("smiles,p\nCCCO,1\n")
    predict_table(molecules, tmp_path / "m.csv", tmp_path / "out.csv", progress=False)
    assert "conformers" in (tmp_path / "out.csv").read_text().splitlines()[0]
    by_path = evaluate(molecules, str(tmp_path / "m.csv"))
    data = read_smiles(tmp_path / "m.csv", quantities=[Quantity("p")], conformers=3, optimize=None)
    assert by_path["p_mae"] == evaluate(molecules, data)["p_mae"]


def test_an_audit_reads_files_as_in_the_training(shapes):
    from molequi.audit import audit_files, compare_models, lie_errors, symmetries

    model = trained_on_points(shapes, samples=16, normalize="rms")
    file, used = (
        shapes / "run" / "model.safetensors",
        read_points(shapes / "val", samples=16, normalize="rms"),
    )
    few = {"draws": 2, "checks": ["rotation", "permutation"]}
    want = audit(model, used, **few)
    assert audit_files(file, shapes / "val", **few).rows == want.rows
    assert audit(file, shapes / "val", **few).rows == want.rows
    assert lie_errors(model, shapes / "val", draws=1).rows == lie_errors(model, used, draws=1).rows
    assert symmetries(model, shapes / "val", draws=2).group == symmetries(model, used, draws=2).group
    assert compare_models(file, file, shapes / "val", draws=2).passed
    with pytest.raises(ConfigError, match="normalize"):
        audit(model, read_points(shapes / "val", samples=16), **few)


def test_charges_that_a_model_does_not_take_are_not_looked_at(tmp_path):
    from ase import Atoms
    from ase.io import write

    torch.manual_seed(0)
    frames = [
        Atoms(
            "H2", [[0, 0, 0], [0, 0, 0.74 + 0.1 * k]], info={"spin": 0, "charge": k * 0.5, "energy": -1.0 - k}
        )
        for k in range(4)
    ]
    del frames[1].info["charge"]
    path = tmp_path / "a.xyz"
    write(path, frames)
    model = Model(EGNN(elements=["H"], cutoff=3.0, channels=4, layers=1), ["energy"])
    assert audit(model, path, draws=2, checks=["rotation"]).passed
    assert len(predict(model, path, progress=False)) == len(frames)
    assert evaluate(model, path)["energy_mae"] > 0
    taking = EGNN(elements=["H"], cutoff=3.0, channels=4, layers=1, inputs=Inputs(charge=True))
    with pytest.raises(DataError, match="no 'charge'"):  # the control
        audit(Model(taking, ["energy"]), path, draws=2, checks=["rotation"])


def test_own_quantities_beside_known_ones_are_found_by_path(tmp_path):
    torch.manual_seed(0)
    own = Quantity("logS")
    model = Model(EGNN(elements=["H", "C", "O"], cutoff=3.0, channels=4, layers=1), ["gap", own])

    def measured(text, **options):
        path = tmp_path / "a.csv"
        path.write_text(text)
        return list(dict.fromkeys(row["quantity"] for row in evaluate(model, path, **options).records()))

    assert measured("smiles,gap (eV),logS\nCO,1,2\nCCO,2,1\n") == ["gap", "logS"]
    assert measured("smiles,logS\nCO,2\nCCO,1\n") == ["logS"]
    assert measured("smiles,gap (eV)\nCO,2\nCCO,1\n") == ["gap"]
    assert measured("smiles,mine,gap (eV)\nCO,2,1\nCCO,1,2\n", keys={"logS": "mine"}) == ["gap", "logS"]
    with pytest.raises(DataError, match="no 'mine'"):
        measured("smiles,gap (eV)\nCO,2\nCCO,1\n", keys={"logS": "mine"})
    with pytest.raises(ConfigError, match="there is nothing to compare"):
        measured("smiles,other\nCO,2\nCCO,1\n")
    data = read_smiles(["CO", "CCO"])
    graphs = [
        g.replace(targets={n: torch.tensor([1.0 + k], dtype=torch.float64) for n in ("gap", "logS")})
        for k, g in enumerate(data)
    ]
    write_npz(Dataset(graphs, quantities=model.quantities), tmp_path / "a.npz")
    found = evaluate(model, tmp_path / "a.npz")
    assert {row["quantity"] for row in found.records()} == {"gap", "logS"}
