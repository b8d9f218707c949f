"""Split-conformal intervals: the quantile against MAPIE, the coverage against binomial bounds, and too few errors."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

import molequi as mq
from molequi import EGNN, Dataset, Ensemble, Graph, Model, Quantity, fit, load, predict, save
from molequi.errors import ConfigError
from molequi.inference import predict_table
from molequi.inference.intervals import absolute_errors, half_width, half_widths, needed, residuals_to_keep

SIZE = Quantity("size", unit="Å")
LEVELS = (0.5, 0.8, 0.9, 0.95)


def clouds(count, seed, noise=0.1):
    """Two points at a distance r; the label is r with noise whose size is not the same everywhere (no normal law)."""
    rng = np.random.default_rng(seed)
    graphs = []
    for r in rng.uniform(1.0, 2.0, count):
        label = r + noise * r * rng.laplace()
        graphs.append(
            Graph.single([[0, 0, 0], [r, 0, 0]], targets={"size": torch.tensor([label], dtype=torch.float64)})
        )
    return Dataset(graphs, quantities={"size": SIZE})


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(EGNN(elements=[0], cutoff=None, channels=8, layers=1), [SIZE])
    data = clouds(60, 0)
    model.standardize(data.statistics(None))
    return model.double().eval()


def test_the_number_of_errors_that_a_level_needs():
    """The smallest n whose largest error is enough, by hand; the largest error of n covers with n / (n + 1)."""
    assert [needed(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    for level in LEVELS:
        assert 1 - 1 / (needed(level) + 1) >= level - 1e-12 > 1 - 1 / needed(level) - 1e-9
    assert half_width(range(1, 10), 0.9) == 9 and half_width(range(1, 10), 0.5) == 5


@pytest.mark.parametrize("count", [20, 21, 57])
def test_the_same_intervals_as_mapie(count):
    mapie = pytest.importorskip("mapie.regression")
    from sklearn.dummy import DummyRegressor

    rng = np.random.default_rng(count)
    x, y = np.zeros((count, 1)), rng.laplace(size=count)
    other = mapie.SplitConformalRegressor(
        DummyRegressor(strategy="constant", constant=0.0).fit(x, y), confidence_level=LEVELS, prefit=True
    )
    _, ends = other.conformalize(x, y).predict_interval(np.zeros((1, 1)))
    ours = [half_width(np.abs(y), level) for level in LEVELS]
    assert np.allclose(ends[0, 1], ours, rtol=1e-12) and np.allclose(ends[0, 0], -np.array(ours), rtol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_coverage_on_data_that_were_not_seen(model, level):
    """The coverage of one calibration with n errors is drawn from a beta law, so that hits are beta-binomial."""
    n, tests = 199, 400
    calibration, held_out = clouds(n, 1), clouds(tests, 2)
    results = predict(model, held_out, interval=level, calibration=calibration, progress=False)
    labels = held_out.values("size").tolist()
    hits = sum(r["size_low"] <= y <= r["size_high"] for r, y in zip(results, labels))
    k = math.ceil((n + 1) * level - 1e-9)
    low, high = beta.ppf([5e-4, 1 - 5e-4], k, n + 1 - k)
    assert binom.ppf(5e-4, tests, low) <= hits <= binom.ppf(1 - 5e-4, tests, high)


def test_coverage_is_at_least_the_level_on_the_mean_of_many_calibrations(model):
    """The promise itself, for few errors, where a quantile without (n + 1) fails it: 0.8 of 9 errors."""
    pool = absolute_errors(model, clouds(3000, 3))["size"]
    rng, hits, wrong, trials = np.random.default_rng(0), 0, 0, 3000
    for _ in range(trials):
        *errors, new = rng.choice(pool, 10, replace=False)
        hits += new <= half_width(errors, 0.8)
        wrong += new <= np.quantile(errors, 0.8)
    assert hits >= binom.ppf(1e-3, trials, 0.8) and wrong < binom.ppf(1e-3, trials, 0.8)
    assert hits <= binom.ppf(1 - 1e-3, trials, 0.8)  # k / (n + 1) = 8/10: no wider than needed


def test_extensive_quantities_have_a_width_for_each_atom(make, tmp_path):
    model = make.tiny().double().eval()
    data = make.morse(24)
    model.standardize(data.statistics(4.0))
    plain = predict(model, data, progress=False)
    results = predict(model, data, interval=0.8, calibration=data, progress=False, out=tmp_path / "o.xyz")
    errors = [abs(float(p["energy"]) - float(g.targets["energy"])) / g.num_nodes for p, g in zip(plain, data)]
    width = sorted(errors)[math.ceil(25 * 0.8) - 1]
    for result, graph in zip(results, data):
        assert float(result["energy_high"] - result["energy"]) == pytest.approx(
            width * graph.num_nodes, rel=1e-9
        )
        assert float(result["energy"] - result["energy_low"]) == pytest.approx(
            width * graph.num_nodes, rel=1e-9
        )
    assert results.units["energy_low"] == "eV" and results.units["forces_low"] == "eV/Å"
    assert results[0]["forces_low"].shape == results[0]["forces"].shape
    import ase.io

    atoms = ase.io.read(tmp_path / "o.xyz", index=3)
    assert atoms.info["energy_low"] == pytest.approx(float(results[3]["energy_low"]), abs=1e-6)


def test_conformers_of_a_molecule_are_one_sample(model):
    data = clouds(6, 4)
    info = {"canonical": ("a", "a", "b", "c", "c", "c"), "conformer": (0, 1, 0, 0, 1, 2)}
    label = data[0].targets
    grouped = Dataset([g.replace(targets=label) for g in data], quantities=data.quantities, info=info)
    values = [float(r["size"]) for r in predict(model, grouped, progress=False)]
    means = [np.mean(values[:2]), values[2], np.mean(values[3:])]
    assert absolute_errors(model, grouped)["size"] == pytest.approx(
        sorted(abs(np.array(means) - float(label["size"]))), rel=1e-9
    )


def test_the_file_of_a_model_keeps_the_errors_on_the_validation_data(tmp_path):
    torch.manual_seed(0)
    model = Model(EGNN(elements=[0], cutoff=None, channels=8, layers=1), [SIZE])
    train, valid = clouds(60, 5), clouds(30, 6)
    quick = {"epochs": 2, "logging": {"progress": False}}
    result = fit(model, train, valid, **quick, out=tmp_path / "one")
    again = load(tmp_path / "one" / "model.safetensors")
    by_hand = sorted(
        abs(float(r["size"]) - float(g.targets["size"]))
        for r, g in zip(predict(again, valid, progress=False), valid)
    )
    assert again.metadata["residuals"]["size"] == pytest.approx(by_hand, rel=1e-5)
    width = by_hand[math.ceil(31 * 0.9) - 1]
    assert f"90% intervals from the validation data: size ± {width:.3g} Å" in str(result)
    for one in (again, result.model):
        (found,) = predict(one, clouds(1, 7), interval=0.9, progress=False)
        assert float(found["size_high"] - found["size"]) == pytest.approx(width, rel=1e-5)
    many = fit(model, train, valid, **quick, seed=[0, 1], out=tmp_path / "many").model
    both = load(tmp_path / "many" / "model.safetensors")
    assert both.metadata["residuals"] == many.metadata["residuals"] != again.metadata["residuals"]
    (found,) = predict(both, clouds(1, 7), interval=0.9, progress=False)
    assert found["size_low"] < found["size"] < found["size_high"] and found["size_std"] > 0


def test_large_validation_data_are_kept_in_part(model, monkeypatch):
    import importlib

    module = importlib.import_module("molequi.inference.intervals")
    data = clouds(50, 8)
    whole = absolute_errors(model, data)["size"]
    monkeypatch.setattr(module, "KEPT", 20)
    kept = residuals_to_keep(model, data)["size"]
    assert len(kept) == 20 and kept == sorted(kept) and set(kept) < set(whole)


def test_what_has_no_interval(model, tmp_path, make):
    with pytest.raises(
        ConfigError,
        match=r"interval=0.95 needs 19 errors of size or more, and there are 12 in the calibration data; give more of "
        "them, with labels of size, or a level of at most 0.923",
    ):
        predict(model, clouds(1, 0), interval=0.95, calibration=clouds(12, 1))
    assert half_widths(model, 0.923, clouds(12, 1))  # the level of the message will do
    with pytest.raises(
        ConfigError,
        match=r"there are 0 kept in the model; give held-out data with labels, calibration=<data>$",
    ):
        predict(model, clouds(1, 0), interval=0.9)
    with pytest.raises(
        ConfigError, match="calibration is for intervals and would have no effect; add interval=0.9"
    ):
        predict(model, clouds(1, 0), calibration=clouds(12, 1))
    for wrong in (0, 1.0, 90, True, "0.9"):
        with pytest.raises(ConfigError, match="wanted a probability between 0 and 1, such as interval=0.9"):
            predict(model, clouds(1, 0), interval=wrong, calibration=clouds(12, 1))
    kind = Quantity("kind", classes=["a", "b"])
    classes = Model(EGNN(elements=[0], cutoff=None, channels=4, layers=1), [kind])
    with pytest.raises(
        ConfigError, match="would have no effect: the model predicts kind, and intervals are of single"
    ):
        predict(classes, clouds(1, 0), interval=0.9)
    two = Model(EGNN(elements=[0], cutoff=None, channels=4, layers=1), [SIZE, Quantity("size_low")])
    with pytest.raises(
        ConfigError, match="would have two columns 'size_low': the model predicts a quantity of this"
    ):
        predict(two, clouds(1, 0), interval=0.9, calibration=both_labels(20))


def both_labels(count):
    data = clouds(count, 0)
    graphs = [g.replace(targets={"size": g.targets["size"], "size_low": g.targets["size"]}) for g in data]
    return Dataset(graphs, quantities={"size": SIZE, "size_low": Quantity("size_low")})


def test_tables_of_molecules_have_them(tmp_path):
    import csv

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(EGNN(elements=["H", "C", "O"], channels=8, layers=1, cutoff=4.0), ["gap"]).double()
    rows = ["C", "CC", "CCC", "CO", "CCO", "CCCO", "O", "COC", "CC(C)O", "C=O"]
    text = "smiles,gap (eV)\n" + "".join(f"{s},{k}\n" for k, s in enumerate(rows))
    (tmp_path / "known.csv").write_text(text)
    known = mq.read_smiles(tmp_path / "known.csv", quantities=["gap"])
    results = predict(
        model,
        ["CCO", "C"],
        interval=0.8,
        calibration=tmp_path / "known.csv",
        out=tmp_path / "o.csv",
        progress=False,
    )
    written = list(csv.DictReader((tmp_path / "o.csv").read_text().splitlines()))
    width = half_widths(model, 0.8, known)["gap"]
    for row, result in zip(written, results):
        assert float(row["gap_low (eV)"]) == pytest.approx(float(result["gap"]) - width, rel=1e-8)
        assert float(row["gap_high (eV)"]) == pytest.approx(float(result["gap"]) + width, rel=1e-8)
    model.metadata = {"residuals": residuals_to_keep(model, known)}
    path = save(model, tmp_path / "m.safetensors")
    predict_table(path, ["CCO", "C"], tmp_path / "t.csv", interval=0.8, progress=False)
    assert (tmp_path / "t.csv").read_text() == (tmp_path / "o.csv").read_text()
    with pytest.raises(
        ConfigError, match="interval=0.95 needs 19 errors of gap or more, and there are 10 kept in"
    ):
        predict_table(path, ["CCO"], tmp_path / "t.csv", interval=0.95)


def test_an_ensemble_has_the_interval_of_its_mean(model):
    many = Ensemble([model, model])
    data = clouds(20, 9)
    assert half_widths(many, 0.9, data)["size"] == pytest.approx(
        half_widths(model, 0.9, data)["size"], rel=1e-12
    )
