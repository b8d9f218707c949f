"""Classes from files to a trained model, its errors, predictions and pictures; several targets at once; heads with options in YAML."""

import ase.io
import numpy as np
import pytest
import torch

from molequi import EGNN, Dataset, Graph, Model, PaiNN, Quantity, evaluate, fit, load, plotting, predict, run
from molequi.config.schema import build_model, check_config
from molequi.errors import ConfigError
from molequi.losses import Loss
from molequi.training.loss_terms import balanced

SHAPE = Quantity(name="shape", classes=["rod", "ring"])
SIDE = Quantity(name="side", per="node", classes=["one", "other"])


def clouds(count: int, seed: int) -> Dataset:
    """Rods and rings of 12 points, turned at random; the label of a point is unknown where it lies near the middle of a rod."""
    random = np.random.RandomState(seed)
    graphs = []
    for k in range(count):
        t = np.linspace(-1, 1, 12)
        ring = k % 2 == 1
        pos = (
            np.stack([np.cos(np.pi * t), np.sin(np.pi * t), 0 * t], 1)
            if ring
            else np.stack([t, 0 * t, 0 * t], 1)
        )
        turn = np.linalg.qr(random.randn(3, 3))[0]
        side = np.where(np.abs(t) < 0.2, np.nan, (np.abs(t) > 0.6).astype(float))
        graphs.append(
            Graph.single(
                (pos + 0.05 * random.randn(12, 3)) @ turn.T,
                targets={
                    "shape": torch.tensor([float(ring)], dtype=torch.float64),
                    "side": torch.tensor(side),
                },
            )
        )
    return Dataset(graphs, quantities={"shape": SHAPE, "side": SIDE})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    torch.manual_seed(0)
    model = Model(PaiNN(elements=[0], cutoff=None, k=4, channels=8, layers=2), [SHAPE, SIDE])
    return fit(
        model,
        clouds(40, 0),
        clouds(20, 1),
        epochs=15,
        lr=1e-2,
        batch_size=8,
        out=folder,
        logging={"progress": False},
    ), folder


def test_classes_are_learnt_measured_and_named(trained):
    result, folder = trained
    assert result.errors["valid"]["shape_accuracy"] == 1.0
    assert (
        0.6 < result.errors["valid"]["side_accuracy"] <= 1.0
        and result.errors["valid"]["side_cross_entropy"] > 0
    )
    model, data = load(folder / "model.safetensors"), clouds(20, 1)
    assert evaluate(model, data)["shape_accuracy"] == 1.0
    first, second = predict(model, data[:2])
    assert (str(first["shape"]), str(second["shape"])) == ("rod", "ring")
    assert first["shape_probability"].shape == (2,) and first["shape_probability"].sum() == pytest.approx(
        1.0, abs=1e-12
    )
    assert (
        first["side"].shape == (12,)
        and set(first["side"]) <= {"one", "other"}
        and first["side_probability"].shape == (12, 2)
    )
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "valid_shape_accuracy" in header and "valid_shape_mae" not in header


def test_predicted_classes_are_written_by_name(trained, tmp_path):
    predict(trained[0].model, clouds(2, 3), out=tmp_path / "out.xyz")
    rod, ring = ase.io.read(tmp_path / "out.xyz", ":")
    assert (
        rod.info["shape"] == "rod"
        and ring.info["shape"] == "ring"
        and len(rod.info["shape_probability"]) == 2
    )
    assert set(ring.arrays["side"]) <= {"one", "other"}


def test_pictures_of_classes_count_who_was_taken_for_whom(trained):
    result, _ = trained
    figure = plotting.parity(result.model, {"valid": clouds(20, 1)})
    shape = next(axis for axis in figure.axes if axis.get_ylabel().startswith("shape"))
    assert {text.get_text() for text in shape.texts} == {
        "10"
    } and shape.get_title() == "valid: accuracy 1.000"
    assert any("accuracy" in axis.get_ylabel() for axis in plotting.learning_curve(result.history).axes)


def test_units_do_not_decide_what_is_learnt():
    """A target in large numbers and one in small ones: with the default weights both are learnt as well as alone."""
    random = np.random.RandomState(0)
    big, small = Quantity(name="big"), Quantity(name="small")

    def data(count):
        graphs = []
        for _ in range(count):
            size = 0.5 + random.rand()
            graphs.append(
                Graph.single(
                    size * np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]),
                    targets={
                        "big": torch.tensor([1000 * size], dtype=torch.float64),
                        "small": torch.tensor([0.001 * size], dtype=torch.float64),
                    },
                )
            )
        return Dataset(graphs, quantities={"big": big, "small": small})

    torch.manual_seed(0)
    model = Model(EGNN(elements=[0], cutoff=None, channels=8, layers=2), [big, small])
    errors = fit(
        model, data(40), data(20), epochs=15, lr=1e-2, batch_size=8, logging={"progress": False}
    ).errors["valid"]
    assert errors["big_r2"] > 0.9 and errors["small_r2"] > 0.9
    terms = [Loss("a"), Loss("b", weight=2.0), Loss("c")]
    assert [term.weight for term in balanced(terms, {"a": 10.0, "b": 0.5})] == [0.01, 8.0, 1.0]
    assert [term.weight for term in balanced([Loss("a", kind="mae")], {"a": 10.0})] == [0.1]


def config(*predict):
    return {
        "data": {"npz": {"path": "none.npz", "split": {"train": 1, "valid": 1}}},
        "backbone": {"EGNN": {}},
        "predict": list(predict),
        "train": {"epochs": 1},
    }


def test_heads_have_options_in_yaml():
    settings = config(
        {"Scalar": {"quantity": "gap", "pool": "attention"}},
        {"Classes": {"quantity": {"name": "kind", "classes": ["a", "b"]}}},
        "homo",
    )
    check_config(settings)
    model = build_model(settings, ["H"])
    assert (
        model.heads["gap"].pooling == "attention"
        and model.quantities["kind"].classes == ("a", "b")
        and model.heads["homo"].pooling == "mean"
    )
    for wrong, words in (
        (
            {"Scalar": {"quantity": "gap", "pol": "sum"}},
            "predict.0.Scalar.pol: no such option .*did you mean 'pool'",
        ),
        ({"Scalar": {"quantity": "gap", "pool": "max"}}, "predict.0.Scalar.pool: found 'max'"),
        ({"Scalar": {"quantity": "energy", "pool": "mean"}}, "extensive"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_config(config(wrong))


def test_only_a_model_is_trained(trained):
    with pytest.raises(
        ConfigError,
        match=r"fit trains a Model, found str; an ensemble is trained from one Model with seed=\[0, 1, 2\]",
    ):
        fit("model.safetensors", clouds(4, 0), clouds(2, 1), epochs=1)


def test_a_run_of_classes_from_a_file(trained, tmp_path):
    pos = np.concatenate([g.pos.numpy() for g in clouds(24, 5)])
    labels = np.array([float(g.targets["shape"]) for g in clouds(24, 5)]).astype(int)
    np.savez(
        tmp_path / "clouds.npz",
        n_points=np.full(24, 12),
        pos=pos,
        shape=labels,
        shape_classes=np.array(["rod", "ring"]),
    )
    result = run(
        {
            "data": {"points": {"path": str(tmp_path / "clouds.npz"), "split": {"train": 16, "valid": 8}}},
            "backbone": {"EGNN": {"cutoff": None, "k": 4, "channels": 8, "layers": 2}},
            "predict": [{"name": "shape", "classes": ["rod", "ring"]}],
            "train": {
                "epochs": 3,
                "batch_size": 8,
                "lr": 1e-2,
                "out": str(tmp_path / "run"),
                "logging": {"progress": False},
            },
        }
    )
    assert (
        0 <= result.errors["valid"]["shape_accuracy"] <= 1
        and (tmp_path / "run" / "parity.png").stat().st_size > 5000
    )
    again = load(tmp_path / "run" / "model.safetensors")
    assert again.quantities["shape"] == SHAPE and again.k == 4
