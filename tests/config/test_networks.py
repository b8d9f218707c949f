"""Runs on networks: the sections of a file, their mistakes, and what is in the folder."""

import functools

import pytest
import torch

import molequi as mq
from molequi import weights
from molequi.cli import main
from molequi.config.names import Names
from molequi.config.networks import check_networks, read_parts, run_networks
from molequi.config.schema import read_config
from molequi.errors import CheckpointError, ConfigError, DataError, MissingPackageError, OtherSettingsError
from molequi.weights import Architecture, LabelledNetworks, Networks

KINDS = {"name": "kind", "classes": ["weak", "strong"]}


def labelled(count=120):
    """Networks whose weights are small or large, which a permutation does not hide."""
    g = torch.Generator().manual_seed(0)
    nets = Networks.random(Architecture((1, 6, 1), "tanh"), count, generator=g)
    kind = torch.randint(2, (count,), generator=g)
    nets = nets.map(lambda v: v * (1 + 2 * kind.view(-1, *[1] * (v.ndim - 1))))
    size = nets.flat().square().mean(1).sqrt()
    pair = torch.arange(count) // 2  # two networks of each
    return LabelledNetworks(nets, {"kind": kind, "size": size, "gain": 2 * size, "pair": pair})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return str(weights.save(labelled(), tmp_path_factory.mktemp("nets") / "nets.safetensors"))


def described(file, predict=KINDS, **train):
    split = {"train": 0.6, "valid": 0.2, "test": 0.2}
    return {
        "data": {"networks": {"path": file, "split": split, "by": "pair"}},
        "backbone": {"WeightModel": {"channels": 8, "layers": 1}},
        "predict": predict if isinstance(predict, list) else [predict],
        "train": {"epochs": 30, "batch_size": 12, "lr": 1e-2, **train},
    }


def test_classes_are_learned_kept_and_found_again(file, tmp_path):
    settings = described(file, out=str(tmp_path / "run"))
    result = mq.run(settings)
    assert result.errors["test"]["kind_accuracy"] > 0.9 and len(result.history) == 30
    names = {path.name for path in result.out.iterdir()}
    assert {"model.safetensors", "config.yaml", "metrics.csv", "errors.csv", "learning_curve.png"} <= names
    again = weights.load(result.out / "model.safetensors")
    nets = labelled().networks
    assert torch.equal(again.predict(nets), result.model.predict(nets))
    kept = mq.run(settings)  # finished
    assert kept.history == result.history and repr(kept.errors["test"]) == repr(result.errors["test"])
    from_file = mq.run(str(result.out / "config.yaml"), [f"train.out={tmp_path / 'again'}"])
    assert torch.equal(from_file.model.predict(nets), result.model.predict(nets))
    with pytest.raises(OtherSettingsError, match="another section backbone"):
        mq.run(settings, ["backbone.WeightModel.channels=4"])
    other = mq.run(settings, ["backbone.WeightModel.channels=4", "train.resume=restart", "train.epochs=1"])
    assert other.model.channels == 4 and len(other.history) == 1
    assert "accuracy" in str(other) and "<table" in other._repr_html_()


def test_a_label_that_says_nothing_is_not_learned(tmp_path):
    """Control: with labels of other networks the accuracy is that of guessing."""
    data = labelled(200)
    g = torch.Generator().manual_seed(1)
    labels = {**data.labels, "kind": data.labels["kind"][torch.randperm(200, generator=g)]}
    file = weights.save(LabelledNetworks(data.networks, labels), tmp_path / "mixed.safetensors")
    result = mq.run(described(str(file), out=str(tmp_path / "run"), epochs=10))
    assert result.errors["test"]["kind_accuracy"] < 0.75


def test_real_values_have_errors_in_their_unit(file, tmp_path):
    both = [{"name": "size", "unit": "m"}, {"name": "gain", "unit": "m"}]
    result = mq.run(described(file, both, out=str(tmp_path / "run")))
    data = read_parts(described(file, both), Names())["test"]
    error = (result.model.predict(data.networks)[:, 1] - data.labels["gain"]).abs().mean()
    assert result.errors["test"]["gain_mae"] == pytest.approx(float(error), rel=1e-6)
    assert result.errors["test"]["size_r2"] > 0.5
    assert {row.unit for row in result.errors["test"].rows} == {"m"}


def test_networks_of_one_pair_are_in_one_part(file):
    parts = read_parts(described(file), Names())
    pairs = [set(part.labels["pair"].tolist()) for part in parts.values()]
    assert [len(part) for part in parts.values()] == [72, 24, 24]
    assert not pairs[0] & pairs[1] and not pairs[0] & pairs[2] and not pairs[1] & pairs[2]
    settings = described(file)
    settings["data"]["networks"] = {"path": file, "split": {"train": 0.5, "valid": 0.5}, "stratify": "kind"}
    shares = [part.labels["kind"].double().mean() for part in read_parts(settings, Names()).values()]
    assert abs(float(shares[0] - shares[1])) < 0.04
    settings["data"] = {
        "networks": {"path": file, "split": {"train": 1.0}},
        "valid": {"networks": {"path": file}},
    }
    assert [len(part) for part in read_parts(settings, Names()).values()] == [120, 120]


def test_a_reader_of_your_own(tmp_path):
    settings = described("", out=str(tmp_path / "run"), epochs=1)
    settings["data"] = {"mine": {"split": {"train": 0.5, "valid": 0.5}}}
    assert len(mq.run(settings, readers={"mine": labelled}).history) == 1
    with pytest.raises(ConfigError, match="the reader returned Networks; wanted molequi.weights.Labelled"):
        mq.run({**settings, "train": {"epochs": 1, "out": str(tmp_path / "b")}}, readers={"mine": bare})


def bare():
    return labelled().networks


WRONG = [
    (
        "backbone",
        {"WeightModel": {"chanels": 8}},
        r"^backbone\.WeightModel\.chanels: .*did you mean 'channels'",
    ),
    ("backbone", {"WeightModel": 8}, r"^backbone\.WeightModel: found 8; wanted options"),
    ("backbone", {"PaiNN": {}}, "networks are read by WeightModel alone"),
    ("train", {"epohs": 8}, r"^train\.epohs: .*did you mean 'epochs'"),
    ("train", [1], r"^train: found \[1\]; wanted options"),
    ("train", {"epochs": 1, "resume": "force"}, r"^train\.resume: found 'force'; wanted auto or restart"),
    ("train", {"epochs": 1, "max_minutes": 3}, r"^train\.max_minutes: no such option of fit"),
    ("predict", [], r"^predict: this section is missing"),
    ("predict", [KINDS, "size"], r"^predict\.1:"),
    ("predict", [KINDS, {"name": "size"}], "kind, size: a label with classes is predicted alone"),
    ("backbone", {"WeightModel": {"probes": -1}}, r"^backbone\.WeightModel\.probes: found -1"),
    ("backbone", {"WeightModel": {"dropout": 2}}, r"^backbone\.WeightModel\.dropout: found 2"),
    ("train", {"epochs": 0}, r"^train\.epochs: found 0 \(int\); wanted greater than 0"),
    ("train", {"lr": -1.0}, r"^train\.lr: found -1"),
    ("predict", [{"name": "size"}, {"name": "size"}], "^predict: size: found twice"),
    ("predict", [{"name": "size", "rank": 1}], r"^predict\.0: size is no number or class of a whole network"),
    ("predict", [{"Scalar": {"quantity": {"name": "size"}}}], r"^predict\.0: WeightModel has no heads"),
    ("pretrain", "gfn2-xtb", "^pretrain: a run on networks has data, backbone, predict, train alone"),
    ("data", {"networks": {"path": "a", "split": {"train": 1.0}}}, "^data: no validation set"),
    ("data", {"extxyz": {"path": "a"}}, r"^data\.extxyz: no such reader"),
    (
        "data",
        {"networks": {"path": "a", "labelled": True, "split": {"train": 1, "valid": 1}}},
        "labelled: has no",
    ),
]


@pytest.mark.parametrize("section, value, words", WRONG, ids=lambda v: str(v)[:40])
def test_mistakes_are_found_before_data_are_read(section, value, words):
    settings = described("nowhere")
    settings[section] = value
    with pytest.raises(ConfigError, match=words):
        check_networks(settings, Names())


def test_mistakes_of_labels_and_files(file, tmp_path):
    def run(predict, **train):
        return mq.run(described(file, predict, out=str(tmp_path / "run"), **train))

    with pytest.raises(DataError, match="no label 'knd'; did you mean 'kind'"):
        run({"name": "knd", "classes": ["a", "b"]})
    with pytest.raises(DataError, match="train: pair goes from .* to .*; wanted the numbers 0 to 1 of its 2"):
        run({"name": "pair", "classes": ["a", "b"]})
    with pytest.raises(DataError, match="float32.*wanted the numbers 0 to 1"):
        run({"name": "size", "classes": ["a", "b"]})
    with pytest.raises(
        CheckpointError, match=r"networks, or a model of them; read it with molequi\.weights\.load"
    ):
        mq.load(file)
    bare_file = weights.save(labelled().networks, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="found Networks without labels; write both with"):
        weights.read_networks(bare_file)
    with pytest.raises(
        DataError, match="labels 'a': found .3,.; wanted a tensor with one number for each of"
    ):
        LabelledNetworks(labelled().networks, {"a": torch.zeros(3)})
    complex_values = {"a": torch.zeros(120, dtype=torch.complex64)}
    with pytest.raises(DataError, match=r"labels 'a': found torch\.complex64; wanted real numbers"):
        LabelledNetworks(labelled().networks, complex_values)
    with pytest.raises(DataError, match="labels 'a': found list"):
        LabelledNetworks(labelled().networks, {"a": [1] * 120})
    with pytest.raises(
        ConfigError, match="reads networks and no structures; only molequi train and molequi.run"
    ):
        read_config(described(file))
    with pytest.raises(ConfigError, match="reads networks and no structures"):
        mq.compare(described(file))


@pytest.mark.parametrize("kind", [torch.bool, torch.int32])
def test_class_numbers_of_any_integer_type(kind, tmp_path):
    data = labelled(30)
    data = LabelledNetworks(data.networks, {**data.labels, "kind": data.labels["kind"].to(kind)})
    file = weights.save(data, tmp_path / "nets.safetensors")
    assert len(mq.run(described(str(file), out=str(tmp_path / "run"), epochs=1)).history) == 1


def test_a_group_of_augmentation_from_python(file, tmp_path):
    group = weights.NeuronGroup((1, 6, 1), "permutations")
    by_name, by_group = (
        mq.run(described(file, out=str(tmp_path / str(k)), epochs=1, augment=augment)).model
        for k, augment in enumerate(("permutations", group))
    )
    nets = labelled().networks
    assert torch.equal(by_name.predict(nets), by_group.predict(nets))


def test_parts_fit_together(file, tmp_path):
    other = Networks.random(Architecture((1, 5, 1), "tanh"), 4)
    kinds = {"kind": torch.tensor([0, 1, 0, 1])}
    settings = described(file, out=str(tmp_path / "run"), epochs=1)
    for data, words in (
        (LabelledNetworks(other, kinds), "test: networks 1-5-1, tanh; those of train are 1-6-1, tanh"),
        (labelled()[[]], "test: no networks"),
    ):
        own = weights.save(data, tmp_path / "other.safetensors")
        split = {"path": file, "split": {"train": 0.5, "valid": 0.5}}
        settings["data"] = {"networks": split, "test": {"networks": {"path": str(own)}}}
        with pytest.raises(DataError, match=words):
            mq.run(settings)
    assert not (tmp_path / "run" / "metrics.csv").exists()  # found before the training


def test_a_mistake_leaves_the_earlier_run(file, tmp_path):
    settings = described(file, out=str(tmp_path / "run"), epochs=1)
    mq.run(settings)
    wrong = described(file, {"name": "knd", "classes": ["a", "b"]}, out=str(tmp_path / "run"))
    with pytest.raises(DataError, match="no label 'knd'"):
        mq.run(wrong, ["train.resume=restart"])
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"model.safetensors", "errors.json"}


@pytest.mark.parametrize("name, content", [("config.yaml", "{"), ("config.yaml", "5"), ("errors.json", "{")])
def test_damaged_files_of_a_finished_run(file, tmp_path, name, content):
    settings = described(file, out=str(tmp_path / "run"), epochs=1)
    mq.run(settings)
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot be read.*train\.resume=restart begins anew"):
        mq.run(settings)
    (tmp_path / "run" / name).unlink()
    if name == "config.yaml":
        with pytest.raises(CheckpointError, match="No such file"):
            mq.run(settings)
    assert len(mq.run(settings, ["train.resume=restart"]).history) == 1


def test_an_interrupted_run_begins_anew(file, tmp_path, monkeypatch):
    from molequi.config import networks

    def stopped(*args, each_epoch, **options):
        each_epoch({"epoch": 1.0, "seconds": 0.1, "train": 0.5})
        raise weights.Interrupted(weights.Fitted(args[0], [{}]))

    settings = described(file, out=str(tmp_path / "run"), epochs=2)
    with monkeypatch.context() as patched:
        patched.setattr(networks, "fit", functools.wraps(weights.fit)(stopped))
        with pytest.raises(KeyboardInterrupt, match="after 1 epochs; the same command begins anew"):
            mq.run(settings)
    assert [row["epoch"] for row in mq.run(settings).history] == [1.0, 2.0]


def test_the_digits_of_scikit_learn(monkeypatch):
    sklearn = pytest.importorskip("sklearn.datasets")
    data = weights.fitted_digits(pictures=6, views=2, hidden=[16], steps=150, seed=1)
    assert data.networks.architecture.sizes == (2, 16, 1) and len(data) == 12
    assert data.labels["digit"].tolist() == 2 * sklearn.load_digits().target[:6].tolist()
    assert data.labels["picture"].tolist() == 2 * list(range(6))
    pictures = torch.tensor(sklearn.load_digits().images[:6] / 8 - 1, dtype=torch.float32).flatten(1)
    found = data.networks(weights.grid(8))[..., 0]
    off = [(found - pictures.roll(shift, 0).repeat(2, 1)).square().mean() for shift in (0, 1)]
    assert off[0] < 0.8 * off[1]  # each is the network of its own picture
    assert not torch.equal(data.networks.flat()[:6], data.networks.flat()[6:])
    monkeypatch.setattr("molequi.util.optional.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="fitted_digits needs sklearn, which is not installed: pip"):
        weights.fitted_digits()


def test_the_recipe_from_the_command_line(tmp_path, capsys):
    pytest.importorskip("sklearn")
    small = ["data.digits.pictures=40", "data.digits.views=1", "data.digits.steps=5", "train.epochs=1"]
    assert main(["train", "digits", *small, "--out", str(tmp_path / "run")]) in (None, 0)
    printed = capsys.readouterr().out
    assert "digit" in printed and "model.safetensors" in printed


def test_symmetry_of_augmentation_by_name():
    data = labelled(12)
    model = weights.WeightModel(data.networks.architecture, 2, symmetry="none", channels=4)
    with pytest.raises(mq.errors.ModelError, match="scales"):
        weights.fit(model, data.networks, data.labels["kind"], epochs=1, augment="scales")
    seen = []
    weights.fit(model, data.networks, data.labels["kind"], epochs=2, augment="signs", each_epoch=seen.append)
    assert [row["epoch"] for row in seen] == [1.0, 2.0]


def test_run_networks_returns_what_run_does(file, tmp_path):
    settings = described(file, out=str(tmp_path / "run"), epochs=1)
    assert run_networks(settings, Names()).out == tmp_path / "run"
