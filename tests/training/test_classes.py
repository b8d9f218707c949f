"""Classes from files to a trained model, its errors, predictions and pictures; several targets at once; heads with options in YAML."""

import ase.build
import ase.io
import numpy as np
import pytest
import torch

from molequi import EGNN, Dataset, Graph, Model, PaiNN, Quantity, evaluate, fit, load, plotting, predict, run
from molequi.config.schema import build_model, check_config
from molequi.errors import ConfigError, DataError, TrainingWarning
from molequi.heads import Vector
from molequi.losses import Loss, read_losses
from molequi.training.loss_terms import balanced, check_losses

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
        match=r"fit trains a Model, found the text 'model.safetensors'; write mq.load\('model.safetensors'\)",
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


def rare(count: int, seed: int) -> Dataset:
    """Points at a distance r; r > 1 is "far", for one in ten; the two classes overlap."""
    random = np.random.RandomState(seed)
    graphs = []
    for k in range(count):
        far = k % 10 == 0
        r = (1.3 if far else 0.7) + 0.3 * random.randn()
        graphs.append(
            Graph.single(
                [[0.0, 0, 0], [abs(r) + 0.05, 0, 0]],
                targets={"place": torch.tensor([float(far)], dtype=torch.float64)},
            )
        )
    return Dataset(graphs, quantities={"place": PLACE})


PLACE = Quantity("place", classes=["near", "far"])


def test_rare_classes_count_as_much_as_frequent_ones(tmp_path):
    """With balanced weights the rare class is found more often; the config says them, and a run from YAML takes them."""
    errors = {}
    for weights in (None, "balanced"):
        torch.manual_seed(0)
        model = Model(EGNN(elements=[0], cutoff=None, channels=8, layers=1), [PLACE])
        loss = [Loss("place", class_weights=weights)]
        result = fit(
            model, rare(200, 0), rare(200, 1), epochs=6, lr=1e-2, batch_size=20, loss=loss, out=tmp_path / str(weights),
            logging={"progress": False},
        )  # fmt: skip
        errors[weights] = result.errors["valid"]
    recall = {w: {r.element: r.accuracy for r in e.rows} for w, e in errors.items()}
    assert recall["balanced"]["far"] > recall[None]["far"] + 0.2
    assert errors["balanced"]["place_balanced_accuracy"] > errors[None]["place_balanced_accuracy"] + 0.1
    assert errors["balanced"]["place_roc_auc"] > 0.85
    text = (tmp_path / "balanced" / "errors.csv").read_text()
    assert "balanced_accuracy,roc_auc" in text.splitlines()[0] and "ROC-AUC" in str(result)
    assert "valid_place_balanced_accuracy" in (tmp_path / "balanced" / "metrics.csv").read_text()
    saved = read_config_of(tmp_path / "balanced")
    assert saved["train"]["loss"] == {"place": {"weight": 1.0, "class_weights": "balanced"}}
    check_losses(read_losses(saved["train"]["loss"]), {"place": PLACE})  # and it can be read again
    assert "class_weights" not in read_config_of(tmp_path / "None")["train"]["loss"]["place"]


def read_config_of(folder):
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))


def test_class_weights_in_yaml():
    settings = config({"name": "kind", "classes": ["a", "b"]})
    settings["train"]["loss"] = {"kind": {"class_weights": {"a": 1, "b": 3.5}}}
    check_config(settings)
    for wrong, words in (
        ("balance", "train.loss.kind.class_weights: found 'balance' .*wanted .*'balanced'"),
        ({"a": 1, "c": 2}, "train.loss.kind.class_weights: 'c' is not a class of kind"),
        ({"a": 1, "b": -2}, r"train.loss.kind.class_weights: found .*'b': -2.*greater than 0"),
    ):
        settings["train"]["loss"] = {"kind": {"class_weights": wrong}}
        with pytest.raises(ConfigError, match=words):
            check_config(settings)
    settings = config("gap")
    settings["train"]["loss"] = {"gap": {"class_weights": "balanced"}}
    with pytest.raises(
        ConfigError, match="train.loss.gap.class_weights would have no effect: 'gap' has no classes"
    ):
        check_config(settings)


def test_what_is_predicted_and_has_no_loss():
    """A head without a loss stays random; a quantity whose derivative is learnt, or with weight zero, is no mistake."""

    def trained(predict, loss):
        data = Dataset(
            [
                Graph.single(
                    [[0.0, 0, 0], [1.0 + 0.1 * k, 0, 0]],
                    ["H", "H"],
                    targets={
                        "energy": torch.zeros(1).double(),
                        "forces": torch.ones(2, 3).double(),
                        "dipole": torch.zeros(1, 3).double(),
                    },
                )
                for k in range(4)
            ]
        )
        model = Model(PaiNN(elements=["H"], channels=4, layers=1, cutoff=3.0), predict)
        fit(model, data[:2], data[2:], epochs=1, loss=loss, logging={"progress": False})

    with pytest.warns(
        TrainingWarning, match=r"dipole is predicted but not trained: it has no loss. Give it one, loss="
    ):
        trained(["energy", "dipole"], {"energy": 1})
    trained(["energy", "forces"], {"forces": 1})
    trained([Vector("forces")], {"forces": 1})  # without an energy of which they are a derivative
    trained(["energy", "dipole"], {"energy": 1, "dipole": 0})
    trained(["energy", "dipole"], [Loss("energy"), lambda out, graph: out["dipole"].square().mean()])


def test_a_quantity_that_the_reader_declares(tmp_path):
    """``predict`` may call it by its bare name, and its unit may be any text."""
    frames = []
    for k in range(12):
        atoms = ase.build.molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.set_array("sigma", np.array([300.0 + k, 30.0, 30.0]))
        frames.append(atoms)
    ase.io.write(tmp_path / "w.xyz", frames)
    shielding = {"name": "shielding", "per": "node", "unit": "ppm"}
    reader = {
        "path": str(tmp_path / "w.xyz"),
        "quantities": [shielding],
        "keys": {"shielding": "sigma"},
        "units": {"shielding": "ppm"},
        "split": {"train": 8, "valid": 4},
    }
    settings = {
        "data": {"extxyz": reader},
        "backbone": {"EGNN": {"channels": 4, "layers": 1, "cutoff": 3.0}},
        "predict": ["shielding"],
        "train": {"epochs": 1, "out": str(tmp_path / "run"), "logging": {"progress": False}},
    }
    result = run(settings)
    assert result.model.quantities["shielding"] == Quantity("shielding", per="node", unit="ppm")
    assert result.errors["valid"].rows[0].unit == "ppm"
    reader["units"] = {"shielding": "ppb"}
    with pytest.raises(
        DataError, match=r"units\['shielding'\] is 'ppb', and shielding is declared in 'ppm', which is"
    ):
        run(settings)
