"""Streaming errors against numpy on the whole; per element; large energies; tables."""

import copy
import csv
import io
import json
import math

import numpy as np
import pytest
import torch

from molequi import EGNN, Dataset, Graph, Model, collate, evaluate
from molequi.inference.metrics import Error, Errors, Metrics, as_csv, table
from molequi.quantities import KNOWN, Quantity

NAN = float("nan")


@pytest.fixture
def pair():
    """A data set with large energies and some unknown labels, and predictions for each structure."""
    random = np.random.RandomState(1)
    graphs, out = [], []
    for k in range(9):
        n = 2 + k % 3
        z = random.choice([1, 8], n)
        energy, forces = -9391.0 * n + 0.1 * random.randn(1), random.randn(n, 3)
        out.append(
            {
                "energy": torch.tensor(energy + 0.01 * random.randn(1)),
                "forces": torch.tensor(forces + 0.1 * random.randn(n, 3)),
            }
        )
        if k == 4:
            forces = np.full((n, 3), NAN)
        if k == 5:
            energy = np.array([NAN])
        graphs.append(
            Graph.single(
                random.randn(n, 3),
                z,
                targets={"energy": torch.tensor(energy), "forces": torch.tensor(forces)},
            )
        )
    return Dataset(graphs), out


def streamed(data, out, size):
    metrics = Metrics(KNOWN, data)
    for k in range(0, len(data), size):
        graphs = data.graphs[k : k + size]
        metrics.update(
            {name: torch.cat([o[name] for o in out[k : k + size]]) for name in ("energy", "forces")},
            collate(graphs),
        )
    return metrics.errors()


@pytest.mark.parametrize("size", [1, 4, 9])
def test_streamed_errors_are_those_of_the_whole(pair, size):
    data, out = pair
    errors = streamed(data, out, size)
    counts = data.counts
    cases = {
        "forces": (data.values("forces").numpy(), np.concatenate([o["forces"] for o in out])),
        "energy": (data.values("energy").numpy(), np.array([o["energy"].item() for o in out])),
    }
    cases["energy_per_atom"] = tuple(x / counts for x in cases["energy"])
    for name, (given, found) in cases.items():
        known = ~np.isnan(given)
        given, error = (
            given[known],
            ((found - given)[known] if found.shape != known.shape else found[known] - given[known]),
        )
        assert errors[f"{name}_mae"] == pytest.approx(np.abs(error).mean(), rel=1e-9)
        assert errors[f"{name}_rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-9)
        assert errors[f"{name}_r2"] == pytest.approx(
            1 - (error**2).sum() / ((given - given.mean()) ** 2).sum(), abs=1e-9
        )


def test_errors_by_element(pair):
    data, out = pair
    errors = streamed(data, out, 2)
    z = torch.cat([g.z for g in data]).numpy()
    given, found = data.values("forces").numpy(), np.concatenate([o["forces"] for o in out])
    rows = {row.element: row for row in errors.rows if row.quantity == "forces"}
    assert set(rows) == {"", "H", "O"}
    for symbol, number in (("H", 1), ("O", 8)):
        mine = (z == number) & ~np.isnan(given).any(1)
        assert rows[symbol].count == 3 * mine.sum()
        assert rows[symbol].mae == pytest.approx(np.abs(found - given)[mine].mean(), rel=1e-9)
    assert rows[""].count == rows["H"].count + rows["O"].count


def test_variance_of_large_energies_keeps_its_digits():
    energies = -1e6 + 1e-3 * np.arange(10)
    data = Dataset(
        [Graph.single(np.zeros((1, 3)), [1], targets={"energy": torch.tensor([e])}) for e in energies]
    )
    metrics = Metrics({"energy": KNOWN["energy"]}, data)
    off = 1e-4
    for graph, e in zip(data, energies):
        metrics.update({"energy": torch.tensor([e + off])}, graph)
    assert metrics.errors()["energy_r2"] == pytest.approx(1 - off**2 / np.var(energies), abs=1e-6)


def test_r2_of_equal_labels_does_not_exist_and_json_has_null():
    data = Dataset(
        [Graph.single(np.zeros((1, 3)), [1], targets={"gap": torch.tensor([2.0])}) for _ in range(3)]
    )
    metrics = Metrics({"gap": KNOWN["gap"]}, data)
    for graph in data:
        metrics.update({"gap": torch.tensor([2.5])}, graph)
    errors = metrics.errors()
    assert math.isnan(errors["gap_r2"]) and errors["gap_mae"] == 0.5
    assert json.loads(json.dumps(errors.records(), allow_nan=False))[0]["r2"] is None


def test_only_labelled_predictions_are_measured(pair):
    data, _ = pair
    metrics = Metrics({"forces": KNOWN["forces"], "dipole": KNOWN["dipole"]}, data)
    assert list(metrics.quantities) == ["forces"]


def test_unknown_name_lists_the_known(pair):
    with pytest.raises(KeyError, match="forces_mae"):
        streamed(*pair, 3)["force_mae"]


def test_table_shows_mev_and_parts(pair):
    errors = streamed(*pair, 3)
    text = table({"train": errors, "valid": errors})
    assert "meV/Å" in text and "energy per atom" in text and "valid" in text
    assert str(errors).splitlines()[0].split() == ["quantity", "MAE", "RMSE", "unit", "R²", "values"]
    rows = list(csv.DictReader(io.StringIO(as_csv({"train": errors}))))
    assert (
        float(next(r for r in rows if r["quantity"] == "forces" and not r["element"])["mae"])
        == errors["forces_mae"]
    )


def test_rank_two_and_units_that_are_not_energies():
    quantity = Quantity(name="alpha", rank=2, unit="a.u.")
    data = Dataset(
        [
            Graph.single(
                np.zeros((1, 3)), [1], targets={"alpha": torch.eye(3, dtype=torch.float64)[None] * k}
            )
            for k in range(3)
        ],
        quantities={"alpha": quantity},
    )
    metrics = Metrics({"alpha": quantity}, data)
    for graph in data:
        metrics.update({"alpha": graph.targets["alpha"] + 0.5}, graph)
    errors = metrics.errors()
    assert errors["alpha_mae"] == pytest.approx(0.5) and errors.rows[0].count == 27
    assert "a.u." in str(errors) and "ma.u." not in str(errors)


def test_classes_have_an_accuracy_for_all_and_for_each():
    shape, size = Quantity(name="shape", classes=["rod", "sheet", "ball"]), Quantity(name="size")
    labels, guesses = [0, 0, 1, NAN, 0], [0, 1, 1, 2, 0]
    data = Dataset(
        [
            Graph.single(
                torch.zeros(1, 3),
                targets={
                    "shape": torch.tensor([float(t)], dtype=torch.float64),
                    "size": torch.tensor([float(k)], dtype=torch.float64),
                },
            )
            for k, t in enumerate(labels)
        ],
        quantities={"shape": shape, "size": size},
    )
    scores = torch.nn.functional.one_hot(torch.tensor(guesses), 3).double() * 4.0
    metrics = Metrics({"shape": shape, "size": size}, data)
    for part in (slice(0, 2), slice(2, 5)):
        metrics.update(
            {"shape": scores[part], "size": torch.zeros(len(scores[part]))}, collate(data.graphs[part])
        )
    errors = metrics.errors()
    assert errors["shape_accuracy"] == 3 / 4 and {
        r.element: r.accuracy for r in errors.rows if r.quantity == "shape" and r.element
    } == {"rod": 2 / 3, "sheet": 1.0}
    wrong, right = math.log(math.exp(4) + 2), math.log(math.exp(4) + 2) - 4
    assert errors["shape_cross_entropy"] == pytest.approx((3 * right + wrong) / 4, rel=1e-12)
    assert "shape_mae" not in errors.numbers() and "size_mae" in errors.numbers()
    text = table({"valid": errors})
    assert "accuracy" in text and "0.7500" in text and "MAE" in text and "nan" not in text
    assert [r["accuracy"] for r in errors.records() if r["quantity"] == "size"] == [None]


class Halves:
    """Two devices whose sums are added, as Fabric does it; each has its share of every batch."""

    world_size = 2

    def __init__(self, rank, shared):
        self.global_rank, self.shared, self.call = rank, shared, 0

    def all_reduce(self, data, *, reduce_op):
        assert reduce_op == "sum"
        self.call += 1
        key, barrier = (self.call, self.global_rank), self.shared["barrier"]
        self.shared[key] = data
        barrier.wait(30)
        return self.shared[(self.call, 0)] + self.shared[(self.call, 1)]


def scored(classes, seed=0, count=60):
    """Labels and scores of a classifier that is better than chance, with one label unknown."""
    random = np.random.RandomState(seed)
    labels = random.choice(
        len(classes), count, p=[0.6, 0.3, 0.1][: len(classes)] if len(classes) == 3 else [0.8, 0.2]
    )
    scores = random.randn(count, len(classes))
    scores[np.arange(count), labels] += 1
    labels = labels.astype(float)
    labels[5] = NAN
    kind = Quantity("kind", classes=classes)
    graphs = [
        Graph.single(torch.zeros(1, 3), targets={"kind": torch.tensor([t], dtype=torch.float64)})
        for t in labels
    ]
    return Dataset(graphs, quantities={"kind": kind}), labels, torch.tensor(scores)


def measured(data, scores, areas=True, size=7):
    metrics = Metrics(data.quantities, data, areas=areas)
    for k in range(0, len(data), size):
        metrics.update({"kind": scores[k : k + size]}, collate(data.graphs[k : k + size]))
    return metrics.errors()


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_scores_of_classes_are_those_of_scikit_learn(classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    data, labels, scores = scored(classes)
    errors, known = measured(data, scores), ~np.isnan(labels)
    truth, p = labels[known].astype(int), torch.softmax(scores, 1).numpy()[known]
    several = {"multi_class": "ovr", "average": "macro"} if len(classes) > 2 else {}
    area = sklearn.roc_auc_score(truth, p if several else p[:, 1], **several)
    assert errors["kind_roc_auc"] == pytest.approx(area, rel=1e-12) and 0.6 < area < 0.99
    assert errors["kind_balanced_accuracy"] == pytest.approx(
        sklearn.balanced_accuracy_score(truth, p.argmax(1)), rel=1e-12
    )
    assert errors["kind_balanced_accuracy"] != pytest.approx(errors["kind_accuracy"], abs=1e-3)
    for k, name in enumerate(classes):
        (row,) = (r for r in errors.rows if r.element == name)
        assert row.roc_auc == pytest.approx(sklearn.roc_auc_score(truth == k, p[:, k]), rel=1e-12)


def test_the_area_by_hand():
    """Of 2 x 2 pairs one is in the wrong order and one is tied: (2 + 1/2) / 4. Scores far from 0 keep their order."""
    kind = Quantity("kind", classes=["a", "b"])
    labels, margins = [0.0, 0.0, 1.0, 1.0], [1.0, 3.0, 1.0, 4.0]
    for scale in (1.0, 1000.0):
        graphs = [
            Graph.single(torch.zeros(1, 3), targets={"kind": torch.tensor([t]).double()}) for t in labels
        ]
        scores = torch.tensor([[0.0, scale * m] for m in margins], dtype=torch.float64)
        errors = measured(Dataset(graphs, quantities={"kind": kind}), scores)
        assert errors["kind_roc_auc"] == 2.5 / 4


def test_where_there_is_no_area():
    kind = Quantity("kind", classes=["a", "b"])
    graphs = [Graph.single(torch.zeros(1, 3), targets={"kind": torch.zeros(1).double()}) for _ in range(3)]
    errors = measured(Dataset(graphs, quantities={"kind": kind}), torch.randn(3, 2).double())
    assert (
        "kind_roc_auc" not in errors.numbers() and errors["kind_balanced_accuracy"] == errors["kind_accuracy"]
    )
    data, _, scores = scored(("a", "b"))
    assert "kind_roc_auc" not in measured(data, scores, areas=False).numbers()  # in each epoch of a training
    text = str(measured(data, scores))
    assert text.splitlines()[0].split() == [
        "classes",
        "accuracy",
        "balanced",
        "ROC-AUC",
        "cross-entropy",
        "values",
    ]
    assert "nan" not in text and "nan" not in str(errors)
    row = next(csv.DictReader(io.StringIO(as_csv({"valid": measured(data, scores)}))))
    assert float(row["roc_auc"]) == measured(data, scores)["kind_roc_auc"] and row["mae"] == ""


def test_two_devices_have_the_scores_of_one():
    import threading

    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = Quantity("kind", classes=["a", "b", "c"])
        model = Model(EGNN(elements=[0], cutoff=None, channels=4, layers=1), [kind]).double()
    random = np.random.RandomState(0)
    graphs = [
        Graph.single(random.randn(3, 3), targets={"kind": torch.tensor([float(k % 3)]).double()})
        for k in range(11)
    ]
    data = Dataset(graphs, quantities={"kind": kind})
    alone = evaluate(model, data, batch_edges=20)
    found, shared = {}, {"barrier": threading.Barrier(2)}

    def work(rank):
        found[rank] = evaluate(copy.deepcopy(model), data, batch_edges=20, fabric=Halves(rank, shared))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for rank in (0, 1):
        assert found[rank].numbers() == pytest.approx(alone.numbers(), rel=1e-12)


def test_each_quantity_has_one_unit_in_a_table():
    """Errors below and above 1 eV, in different parts and of different elements, are in the same unit."""

    def error(name, element, unit, rmse):
        return Error(name, element, unit, 10, rmse / 2, rmse, 0.5)

    small = Errors((error("gap", "", "eV", 0.2), error("forces", "", "eV/Å", 0.4)))
    large = Errors(
        (error("gap", "", "eV", 1.5), error("forces", "", "eV/Å", 0.5), error("forces", "H", "eV/Å", 0.9))
    )
    none = Errors((Error("gap", "", "eV", 0, math.nan, math.nan, math.nan),))
    text = table({"train": small, "valid": large, "test": none})
    units = [next((w for w in line.split() if "eV" in w), "") for line in text.splitlines()[1:]]
    assert units == ["eV", "meV/Å", "eV", "meV/Å", "meV/Å", "eV"]
    assert "0.2" in text and "900" in text
    assert "meV" in table({"train": small, "test": none}).splitlines()[1]
