"""Errors and predictions block by block: the same numbers as from all values at once, with few structures in memory."""

import json
import weakref

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

import molequi as mq
from molequi import Dataset, Ensemble, Graph, evaluate, fit, predict, save
from molequi.cli import main
from molequi.data.structures import Structures
from molequi.errors import DataWarning
from molequi.inference import calibration, predictions
from molequi.inference import evaluate as evaluate_function
from molequi.inference.intervals import absolute_errors, residuals_to_keep
from molequi.inference.metrics import Errors, as_csv, table
from molequi.inference.predict import predict_file
from molequi.quantities import Quantity, per_atom


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of at most 5 structures and 20 atoms."""
    monkeypatch.setattr("molequi.data.structures.BLOCK_STRUCTURES", 5)
    monkeypatch.setattr("molequi.data.structures.BLOCK_NODES", 20)


@pytest.fixture
def many(make):
    """An ensemble that predicts energy and forces; its data have missing labels of both kinds."""
    members = [make.tiny(seed=seed) for seed in range(2)]
    for member in members:
        member.standardize(make.morse(8).statistics(4.0))
    return Ensemble([member.double().eval() for member in members])


@pytest.fixture
def model(many):
    return many.members[0]


@pytest.fixture
def data(make):
    graphs = list(make.morse(24, missing=(3, 11)))
    unknown = torch.full((1,), float("nan"), dtype=torch.float64)
    graphs[7] = graphs[7].replace(targets=graphs[7].targets | {"energy": unknown})
    return Dataset(graphs, info={"name": [f"n{k}" for k in range(24)]})


def test_blocks_have_all_structures_and_keep_both_limits(data, blocks):
    ranges = list(data.graphs.blocks())
    assert [k for block in ranges for k in block] == list(range(24))
    sizes = [(len(block), int(data.counts[block.start : block.stop].sum())) for block in ranges]
    assert all(structures <= 5 and nodes <= 20 for structures, nodes in sizes) and len(sizes) > 4
    assert any(nodes + data.counts[block.stop] > 20 for (_, nodes), block in zip(sizes, ranges[:-1]))
    single = Structures.of([Graph.single([[0.0, 0, 0]], [1])] * 12)
    assert list(single.blocks()) == [range(5), range(5, 10), range(10, 12)]
    large = Structures.of([Graph.single(np.eye(3), [1, 1, 1]), Graph.single(np.zeros((30, 3)), [1] * 30)])
    assert list(large.blocks()) == [range(1), range(1, 2)]  # one alone may be larger


def by_hand(model, data, name):
    """Labels, predictions, elements of the nodes, of all known components."""
    given, found, z = [], [], []
    for graph, result in zip(data, predict(model, data, progress=False)):
        atoms = graph.num_nodes if per_atom(data.quantities[name]) else 1
        given.append(graph.targets[name].numpy().reshape(-1) / atoms)
        found.append(np.asarray(result[name]).reshape(-1) / atoms)
        z.append(np.repeat(graph.z.numpy(), 3)[: len(given[-1])])
    given, found, z = map(np.concatenate, (given, found, z))
    known = ~np.isnan(given)
    return given[known], found[known], z[known]


def test_errors_are_those_of_all_values(model, data, blocks):
    errors = evaluate(model, data)
    rows = {(row.quantity, row.element): row for row in errors.rows}
    for name, key in (("energy", "energy_per_atom"), ("forces", "forces")):
        given, found, z = by_hand(model, data, name)
        row, off = rows[key, ""], found - given
        assert row.count == len(off)
        assert row.mae == pytest.approx(np.abs(off).mean(), rel=1e-12)
        assert row.rmse == pytest.approx(np.sqrt((off**2).mean()), rel=1e-12)
        variation = ((given - given.mean()) ** 2).sum()
        assert row.r2 == pytest.approx(1 - (off**2).sum() / variation, rel=1e-10)
        if name == "forces":
            for symbol, number in (("H", 1), ("O", 8)):
                assert rows[key, symbol].mae == pytest.approx(np.abs(off[z == number]).mean(), rel=1e-12)


def test_labels_that_begin_late(model, make, blocks):
    """The first blocks have no energy; the next ones have one far from the others."""
    graphs = list(make.morse(24))
    values = [float("nan")] * 9 + [1e6 + k for k in range(5)] + [0.1 * k for k in range(10)]
    data = Dataset([g.replace(targets={"energy": torch.tensor([v])}) for g, v in zip(graphs, values)])
    given, found, _ = by_hand(model, data, "energy")
    row = next(row for row in evaluate(model, data).rows if row.quantity == "energy_per_atom")
    assert row.count == 15
    variation = ((given - given.mean()) ** 2).sum()
    assert row.r2 == pytest.approx(1 - ((found - given) ** 2).sum() / variation, rel=1e-9)


@pytest.fixture
def shapes():
    """Points with a class each and one of the whole, and a model of random weights."""
    random = np.random.default_rng(0)
    shape = Quantity("shape", classes=("flat", "round", "thin"))
    side = Quantity("side", per="node", classes=("in", "out"))
    graphs = [
        Graph.single(
            random.normal(size=(4, 3)),
            targets={
                "shape": torch.tensor([random.integers(0, 3)]).double(),
                "side": torch.tensor(random.integers(0, 2, 4)).double(),
            },
        )
        for _ in range(23)
    ]
    torch.manual_seed(0)
    model = mq.Model(mq.EGNN(elements=[0], channels=8, layers=1, cutoff=None), [shape, side]).double()
    return model.eval(), Dataset(graphs, quantities={"shape": shape, "side": side})


def test_classes_are_those_of_all_values(shapes, blocks):
    model, data = shapes
    errors, results = evaluate(model, data), predict(model, data, progress=False)
    label = data.values("shape").numpy().astype(int)
    chance = np.stack([r["shape_probability"] for r in results])
    assert errors["shape_accuracy"] == pytest.approx((chance.argmax(1) == label).mean())
    areas = []
    for k in range(3):
        one, rank = label == k, rankdata(chance[:, k])
        n = one.sum()
        areas.append((rank[one].sum() - n * (n + 1) / 2) / (n * (len(one) - n)))
    assert errors["shape_roc_auc"] == pytest.approx(np.mean(areas), rel=1e-12)
    assert [str(r["shape"]) for r in results] == [("flat", "round", "thin")[k] for k in chance.argmax(1)]
    assert isinstance(results[0]["shape"], str)
    assert all(r["side"].shape == (4,) and r["side_probability"].shape == (4, 2) for r in results)


def test_predictions_are_those_of_each_structure(many, data, blocks):
    found = predict(many, data, interval=0.5, calibration=data, progress=False)
    assert len(found) == 24 and set(found[0]) == {
        *("energy", "energy_std", "energy_low", "energy_high"),
        *("forces", "forces_std", "forces_low", "forces_high"),
    }
    for k in (0, 4, 5, 13, -1):
        (one,) = predict(many, data[[k]], interval=0.5, calibration=data, progress=False)
        for name, value in one.items():
            assert found[k][name].shape == value.shape
            assert np.allclose(found[k][name], value, rtol=1e-10)
    assert [len(r["forces"]) for r in found[3:6]] == data.counts[3:6].tolist()
    with pytest.raises(IndexError):
        found[24]


def test_a_file_and_a_frame_in_blocks(many, data, tmp_path, monkeypatch):
    whole = predict(many, data, out=tmp_path / "whole.xyz", progress=False)
    frame = predict(many, data, as_frame=True, progress=False)
    monkeypatch.setattr("molequi.data.structures.BLOCK_STRUCTURES", 5)
    assert predict_file(many, data, tmp_path / "blocks.xyz", progress=False) == 24
    for one, again in zip(
        mq.read_extxyz(tmp_path / "whole.xyz", allow=["energy-scale"]),
        mq.read_extxyz(tmp_path / "blocks.xyz", allow=["energy-scale"]),
    ):
        assert torch.allclose(one.targets["forces"], again.targets["forces"], atol=1e-10)
        assert torch.equal(one.pos, again.pos)
    again = predict(many, data, as_frame=True, progress=False)
    assert list(again.columns) == list(frame.columns) and list(again.index) == list(range(24))
    assert list(again["name"]) == list(data.info["name"]) and again.attrs == frame.attrs
    assert np.allclose(again["energy"], [float(r["energy"]) for r in whole])


def test_batches_name_the_structures_of_the_whole(model, data, blocks):
    for batch, graph, _ in predictions.predicted_batches(model, data, ["energy"], 30):
        assert graph.counts.tolist() == [data[k].num_nodes for k in batch]
        energies = torch.cat([data[k].targets["energy"] for k in batch])
        assert torch.equal(graph.targets["energy"].nan_to_num(), energies.nan_to_num())
    assert batch[-1] == len(data) - 1


def test_few_structures_are_in_memory(model, data, blocks, tmp_path, monkeypatch):
    """Of the blocks that were made, at most two are alive at once, and no batch when the next one is made."""
    made, most = [], []
    original = predictions.connected_blocks

    def counted(*args, **options):
        for block in original(*args, **options):
            made.append(weakref.ref(block))
            most.append(sum(ref() is not None for ref in made))
            yield block
            del block

    monkeypatch.setattr(predictions, "connected_blocks", counted)
    evaluate(model, data)
    number = len(made)
    predict_file(model, data, tmp_path / "p.xyz", progress=False)
    predict(model, data, progress=False)
    assert number == len(list(data.graphs.blocks())) and len(made) == 3 * number
    assert max(most) <= 2


def test_what_predict_returns_has_the_size_of_its_numbers(model, data, blocks):
    found = predict(model, data, progress=False)
    arrays = {name: found[0][name].base for name in found[0]}
    assert arrays["forces"].nbytes == 8 * 3 * data.counts.sum() and arrays["energy"].nbytes == 8 * 24
    assert all(found[k][name].base is arrays[name] for k in range(24) for name in arrays)


def test_errors_for_intervals_and_calibration(many, data, blocks):
    given, found, _ = by_hand(many, data, "energy")
    errors = absolute_errors(many, data)
    assert list(errors) == ["energy"]
    assert np.allclose(errors["energy"], np.sort(np.abs(found - given)), rtol=1e-10)
    assert residuals_to_keep(many, data) == {"energy": errors["energy"].tolist()}
    measured = calibration(many, data)
    assert np.allclose(measured["energy"].error, found - given)
    given, found, _ = by_hand(many, data, "forces")
    assert np.allclose(measured["forces"].error, found - given)
    assert len(measured["forces"].std) == len(given) and (measured["forces"].std > 0).all()


def test_conformers_are_one_sample(model, make):
    data = make.morse(6)
    columns = {"conformer": [0, 1, 0, 0, 1, 2], "canonical": list("aabccc")}
    given, found, _ = by_hand(model, data, "energy")
    off = found - given
    wanted = np.sort(np.abs([off[:2].mean(), off[2], off[3:].mean()]))
    errors = absolute_errors(model, Dataset(list(data), info=columns))
    assert np.allclose(errors["energy"], wanted, rtol=1e-10)


def test_stored_neighbor_lists_of_another_cutoff_are_named_once(model, data, blocks, tmp_path):
    stored = mq.prepare(data.with_quantities(["energy"]), tmp_path / "s", cutoff=2.0, progress=False)
    with pytest.warns(DataWarning, match="stored for cutoff=2, k=None") as told:
        errors = evaluate(model, stored)
    assert len(told) == 1
    assert errors.numbers() == pytest.approx(
        evaluate(model, data.with_quantities(["energy"])).numbers(), rel=1e-12
    )


def test_training_errors_are_measured_on_a_sample_that_is_named(
    model, make, quick, tmp_path, monkeypatch, capsys
):
    """Nothing else is: validation and test data are always whole."""
    monkeypatch.setitem(evaluate_function.__globals__, "TRAINING", 4)
    for module in ("symmetry", "ensembles"):  # the longest part
        monkeypatch.setattr(f"molequi.training.{module}.measure_symmetry", lambda *_: None)
    quick |= {"epochs": 1, "compute": {"accelerate": False}}
    train, valid, test = (make.morse(count, seed) for seed, count in enumerate((10, 6, 5)))
    result = fit(make.tiny(), train, valid, test=test, **quick, out=tmp_path / "run")
    errors = result.errors
    assert errors["train"].sample == (4, 10) and errors["valid"].sample is errors["test"].sample is None
    assert errors["train"].numbers() == pytest.approx(
        evaluate(result.model, train[[0, 3, 6, 9]]).numbers(), rel=1e-6
    )
    assert errors["test"].rows[0].count == 5
    assert "train (4 of 10)" in str(result) and "valid (" not in str(result)
    records = json.loads((tmp_path / "run" / "errors.json").read_text())
    again = {part: Errors.from_records(rows) for part, rows in records.items()}
    assert again == errors and table(again) == table(errors)
    rows = (tmp_path / "run" / "errors.csv").read_text().splitlines()
    assert rows[0].endswith(",structures,of") and rows[1].endswith(",4,10")
    assert rows[-1].startswith("test") and rows[-1].endswith(",,")
    assert "structures,of" not in as_csv({"valid": errors["valid"]})
    assert main(["info", str(tmp_path / "run")]) == 0
    assert "\ntrain (4 of 10): energy_mae" in capsys.readouterr().out
    two = fit(make.tiny(), train, valid, **(quick | {"seed": [0, 1]}))
    assert two.errors["train"].sample == (4, 10) and two.errors["valid"].sample is None


def test_the_command_writes_and_keeps_nothing(model, data, tmp_path, capsys):
    save(model, tmp_path / "model.safetensors")
    mq.prepare(data, tmp_path / "s", cutoff=4.0, progress=False)
    words = ["predict", str(tmp_path / "model.safetensors"), str(tmp_path / "s"), str(tmp_path / "p.xyz")]
    assert main(words) == 0
    assert capsys.readouterr().out == f"24 structures: {tmp_path / 'p.xyz'}\n"
