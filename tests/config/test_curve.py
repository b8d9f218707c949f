"""Trainings on parts of the data: nested, of equal length, and not run again."""

import csv
import itertools
import json
import re

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io import write as ase_write

import molequi as mq
from molequi.cli import main
from molequi.config import curve as module
from molequi.config.train import read_train
from molequi.config.trainings import lengthened
from molequi.errors import ConfigError, DataError
from molequi.inference.learning_curves import LearningCurve


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = []
    for k in range(24):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.info["energy"] = -10 + np.linalg.norm(atoms.positions[1])
        frames.append(atoms)
    ase_write("water.xyz", frames, format="extxyz")
    (tmp_path / "small.yaml").write_text(
        "data: {extxyz: {path: water.xyz, split: {train: 16, valid: 6, test: 2}}}\n"
        "backbone: {EGNN: {channels: 4, layers: 1, cutoff: 4.0}}\npredict: [energy]\n"
        "train: {epochs: 2, batch_size: 2, validation: {every: 2}, schedule: {warmup: 1}, logging: {progress: false}}\n"
    )
    return tmp_path / "small.yaml"


@pytest.fixture
def trainings(monkeypatch):
    """What was trained: numbers of structures, options and digests."""
    seen = []
    train_model = module.train_model

    def watched(model, parts, options, *rest):
        result = train_model(model, parts, options, *rest)
        seen.append((parts, options, result))
        return result

    monkeypatch.setattr(module, "train_model", watched)
    return seen


def test_nested_parts_of_equal_length(config, trainings, capsys):
    found = mq.learning_curve(config)
    parts = [one[0] for one in trainings]
    assert [len(p["train"]) for p in parts] == [2, 4, 8, 16]
    for small, large in itertools.pairwise(parts):
        assert set(small["train"].origins) < set(large["train"].origins)
        assert small["valid"].digest == large["valid"].digest
    steps = [result.history[-1]["step"] for _, _, result in trainings]
    assert steps == [16, 16, 16, 16]
    assert [options.epochs for _, options, _ in trainings] == [16, 8, 4, 2]
    assert [options.validation.every for _, options, _ in trainings] == [16, 8, 4, 2]
    assert [options.schedule.warmup for _, options, _ in trainings] == [8, 4, 2, 1]
    assert [p.errors["energy_per_atom"] for p in found.points] == pytest.approx(
        [result.errors["valid"]["energy_per_atom_mae"] for _, _, result in trainings]
    )
    assert [p.training["energy_per_atom"] for p in found.points] == pytest.approx(
        [result.errors["train"]["energy_per_atom_mae"] for _, _, result in trainings]
    )
    folder = config.parent / "runs" / "small-curve"
    assert {"curve.json", "curve.csv", "curve.png", "run.log", "n000002", "n000016"} <= {
        p.name for p in folder.iterdir()
    }
    assert LearningCurve.from_json((folder / "curve.json").read_text()).points == found.points
    with open(folder / "curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["energy_per_atom_valid"]) == found.points[-1].errors["energy_per_atom"]
    said = capsys.readouterr().out
    assert re.search(r"training 2 of 4: 4 structures, 8 epochs; about \d+:\d\d left", said)
    assert "training 2 of 4" in (folder / "run.log").read_text()


def test_finished_trainings_are_not_run_again(config, trainings, capsys):
    first = mq.learning_curve(config)
    assert len(trainings) == 4
    again = mq.learning_curve(config)
    assert len(trainings) == 4 and again.points == first.points
    assert "done before" in capsys.readouterr().out
    more = mq.learning_curve(config, fractions=[0.125, 0.25, 0.5, 0.75, 1.0])
    assert len(trainings) == 5 and len(more.points) == 5
    other = mq.learning_curve(config, measure="rmse", part="test")  # the same trainings, other numbers
    assert len(trainings) == 5 and other.points != first.points
    with pytest.raises(ConfigError, match="n000002 holds a training with other settings") as error:
        mq.learning_curve(config, ["train.lr=0.1"])
    assert f"molequi curve {config} train.lr=0.1 --out runs/small-curve-2" in str(error.value)
    assert f"molequi curve {config} train.lr=0.1 train.resume=restart" in str(error.value)
    for count in (9, 13):  # a restart trains all again, though they are finished
        mq.learning_curve(config, ["train.lr=0.1", "train.resume=restart"])
        assert len(trainings) == count


def test_an_interrupted_curve_continues(config, trainings, monkeypatch):
    whole = mq.learning_curve(config, out="whole")
    trainings.clear()
    train_model, calls = module.train_model, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_model(*arguments)

    monkeypatch.setattr(module, "train_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mq.learning_curve(config, out="part")
    assert len(json.loads((config.parent / "part" / "curve.json").read_text())["points"]) == 2
    again = mq.learning_curve(config, out="part")
    assert len(trainings) == 4 and again.points == whole.points


def test_repeats_and_equal_epochs(config, trainings):
    found = mq.learning_curve(config, fractions=[0.25, 1], repeats=2, same="epochs")
    assert [(p.structures, p.repeat) for p in found.points] == [(4, 0), (4, 1), (16, 0), (16, 1)]
    assert all(options.epochs == 2 for _, options, _ in trainings)
    (a, first, _), (b, second, _) = trainings[:2]
    assert a["train"].digest != b["train"].digest and (first.seed, second.seed) == (0, 1)
    assert {p.name for p in (config.parent / "runs" / "small-curve").iterdir()} >= {"n000004", "n000004-r1"}


def test_a_limit_of_time_is_the_same_for_all():
    from molequi.config.names import Names

    options = read_train({"max_minutes": 1, "batch_size": {"atoms": 30}}, Names())
    found = lengthened(options, 10, 40)
    assert found.epochs is None and found.max_minutes == 1 and found.validation.every == 4


def test_the_command_and_the_report_page(config, capsys):
    assert (
        main(["curve", "small.yaml", "--target", "energy_per_atom=0.001", "--repeats=1", "train.lr=1e-2"])
        == 0
    )
    out = capsys.readouterr().out
    assert "energy per atom: validation MAE" in out and ("1 meV/atom" in out)
    mq.run(config)
    page = (config.parent / "runs" / "small" / "report.html").read_text()
    assert "errors against the number of training structures" in page and "This was not measured" not in page


def test_a_curve_of_data_without_a_file(config, trainings, capsys):
    quick = [
        "train.epochs=2",
        "backbone.PaiNN.channels=4",
        "backbone.PaiNN.layers=1",
        "train.logging.progress=false",
    ]
    words = [
        "water.xyz",
        "--target",
        "energy",
        "energy_per_atom=0.5",
        "--fractions",
        "0.25",
        "0.5",
        "1",
        *quick,
    ]
    assert main(["curve", *words]) == 0
    out = capsys.readouterr().out
    assert "energy per atom: validation MAE" in out and "500 meV/atom" in out and "energy" in out
    assert [len(seen[0]["train"]) for seen in trainings] == [5, 10, 19]
    assert (config.parent / "runs" / "water-curve" / "curve.json").exists()
    trained = trainings[-1][2].model.state_dict()
    # Other settings in the same folder: the answer can be typed.
    capsys.readouterr()
    assert main(["curve", *words, "train.lr=0.1"]) == 2
    answer = capsys.readouterr().err
    assert (
        "molequi curve water.xyz --target energy" in answer
        and "train.lr=0.1 --out runs/water-curve-2" in answer
    )
    # The largest training is that of `molequi train`, whose report page shows the curve.
    assert main(["train", "water.xyz", "--target", "energy", *quick]) == 0
    model = mq.load("runs/water/model.safetensors")
    for name, weight in trained.items():
        assert torch.equal(weight, model.state_dict()[name])
    page = (config.parent / "runs" / "water" / "report.html").read_text()
    assert "errors against the number of training structures" in page


def test_mistakes_with_a_curve_of_data(config, capsys):
    (config.parent / "mine.csv").write_text("smiles,y\n" + "".join(f"{'C' * k},{k}\n" for k in range(1, 25)))
    assert main(["curve", "mine.csv"]) == 2
    assert "molequi curve mine.csv --target y" in capsys.readouterr().err
    assert main(["curve", "mine.csv", "--target", "y", "y=small"]) == 2
    assert "--target y=small: wanted an error above zero" in capsys.readouterr().err
    assert main(["curve", "small.yaml", "--column", "y"]) == 2
    assert "--column: small.yaml is a YAML file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words,message",
    [
        ("--fractions 0.5", "fractions=.0.5.: wanted two or more different numbers|wanted two or more"),
        ("--fractions 0.5 2", "--fractions: found .0.5, 2. .list.; wanted less than or equal to 1"),
        ("--repeats 0", "--repeats: found 0 .int.; wanted greater than or equal to 1"),
        ("--target forces", "--target forces: wanted name=value"),
        ("--target forces=small", "--target forces=small: wanted an error above zero"),
    ],
)
def test_mistakes(config, capsys, words, message):
    assert main(["curve", "small.yaml", *words.split()]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (config.parent / "runs").exists()


def test_wrong_options_from_python(config):
    for options, message in (
        ({"fractions": [0.5, 2]}, "fractions=.0.5, 2.; wanted two or more different numbers above 0"),
        ({"repeats": 0}, "repeats=0; wanted a whole number from 1"),
        ({"same": "minutes"}, "same='minutes'; wanted 'steps' or 'epochs'"),
        ({"measure": "r2"}, "measure='r2'; wanted 'mae' or 'rmse'"),
        ({"part": "train"}, "part='train'; wanted 'valid' or 'test'"),
    ):
        with pytest.raises(ConfigError, match=message):
            mq.learning_curve(config, **options)
    with pytest.raises(ConfigError, match="part='test', and the data have the parts train, valid"):
        mq.learning_curve(config, ["data.extxyz.split={train: 16, valid: 6}"], part="test")
    with pytest.raises(DataError, match="there are 1 training structures"):
        mq.learning_curve(config, ["data.extxyz.split={train: 1, valid: 6}"])
