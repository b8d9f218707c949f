"""Training over several seeds: members are what single trainings give, and the whole goes on where it stopped."""

import csv
import importlib
import json

import pytest
import torch

from molequi import Ensemble, Model, evaluate, fit, load, predict
from molequi.errors import ConfigError, ModelError
from molequi.inference import calibration
from molequi.util.seeding import own_random_numbers

# The small data of these tests are not split as real ones are.
pytestmark = [pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning")]

module = importlib.import_module("molequi.training.fit")  # the package has a function of that name


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fresh(model, seed):
    with own_random_numbers(torch.device("cpu"), seed):
        return Model.from_hparams(model.hparams)


def test_members_are_trainings_with_weights_of_their_own(parts, model, quick, tmp_path):
    before, random = weights(model), torch.get_rng_state()
    result = fit(model, **parts, test=parts["valid"][:3], **quick, seed=[3, 5], out=tmp_path / "run")
    assert equal(weights(model), before) and torch.equal(torch.get_rng_state(), random)
    assert type(result.model) is Ensemble and list(result.members) == [3, 5]
    for member, (seed, one) in zip(result.model.members, result.members.items()):
        alone = fit(fresh(model, seed), **parts, test=parts["valid"][:3], **quick, seed=seed)
        assert equal(weights(alone.model), weights(member)) and equal(weights(one.model), weights(member))
    assert not equal(weights(result.model.members[0]), weights(result.model.members[1]))
    assert result.errors["valid"].numbers() == evaluate(result.model, parts["valid"]).numbers()
    assert set(result.errors) == {"train", "valid", "test"}
    first, second = (m.history[1]["valid_loss"] for m in result.members.values())
    assert [row["epoch"] for row in result.history] == [1, 2] and result.history[1][
        "valid_loss"
    ] == pytest.approx((first + second) / 2)
    assert "seed 3: best epoch" in str(result) and "within one" in str(result) and "valid" in str(result)


def test_files_and_scales(parts, model, quick, tmp_path):
    result = fit(model, **parts, **quick, seed=[0, 1, 2], out=tmp_path / "run")
    assert {p.name for p in result.out.iterdir()} == {
        "seed0",
        "seed1",
        "seed2",
        "model.safetensors",
        "errors.json",
        "errors.csv",
        "run.lock",
        "run.log",
    }
    again = load(result.out / "model.safetensors")
    assert type(again) is Ensemble and again.scales == result.model.scales == {
        n: c.scale for n, c in result.calibration.items()
    }
    assert "calibrated on the validation data, where they were before:\nenergy: errors are" in str(result)
    assert [c.scale for c in calibration(again, parts["valid"]).values()] == pytest.approx(
        [1.0, 1.0], abs=1e-6
    )
    a, b = (predict(m, parts["valid"], progress=False)[0] for m in (again, result.model))
    assert all((a[name] == b[name]).all() for name in ("energy", "forces", "forces_std"))
    assert again.metadata["training"]["seeds"] == [0, 1, 2]
    assert again.metadata["training"]["errors"]["valid"] == result.errors["valid"].numbers()
    assert json.loads((result.out / "errors.json").read_text()).keys() == {"train", "valid"}
    assert load(result.out / "seed1" / "model.safetensors").metadata["run"]["train"]["seed"] == 1


def test_finished_members_are_not_trained_again_and_others_go_on(parts, model, quick, tmp_path, monkeypatch):
    whole = fit(model, **parts, **quick, seed=[0, 1, 2], out=tmp_path / "whole")
    trained, stop = [], []

    class Watched(module.Training):
        def step(self, *args):
            trained.append(self.options.seed)
            super().step(*args)
            if stop and len(trained) == stop[0]:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "Training", Watched)
    stop.append(12)  # eight steps of the first member, and into the second
    with pytest.raises(KeyboardInterrupt):
        fit(model, **parts, **quick, seed=[0, 1, 2], out=tmp_path / "parts")
    assert trained == [0] * 8 + [1] * 4 and not (tmp_path / "parts" / "model.safetensors").exists()
    stop.clear(), trained.clear()
    again = fit(model, **parts, **quick, seed=[0, 1, 2], out=tmp_path / "parts")
    assert 0 not in trained and {1, 2} == set(trained)
    assert equal(weights(again.model), weights(whole.model)) and again.model.scales == whole.model.scales
    trained.clear()
    fit(model, **parts, **quick, seed=[0, 1, 2], out=tmp_path / "parts")
    assert trained == []
    more = fit(
        model, **parts, **quick, seed=[0, 1, 2, 3], out=tmp_path / "parts"
    )  # one more is trained alone
    assert set(trained) == {3} and len(more.model.members) == 4
    import shutil

    shutil.rmtree(tmp_path / "parts" / "seed1")
    trained.clear()
    assert equal(
        weights(fit(model, **parts, **quick, seed=[0, 1, 2], out=tmp_path / "parts").model),
        weights(whole.model),
    ) and set(trained) == {1}


def test_without_a_folder_nothing_is_written(parts, model, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(model, **parts, **quick, seed=(0, 1)).out is None and not list(tmp_path.iterdir())


def test_what_is_refused(parts, make, model, quick, tmp_path):
    for seeds in ([], [4], [1, 1]):
        with pytest.raises(ConfigError, match="two or more different seeds"):
            fit(model, **parts, **quick, seed=seeds)
    for seeds in ([0, -1], [0, "1"], [0, 1.5]):
        with pytest.raises(ConfigError, match="fit.seed"):
            fit(model, **parts, **quick, seed=seeds)
    with pytest.raises(ConfigError, match="members are trained on one device each"):
        fit(model, **parts, **quick, seed=[0, 1], compute={"devices": 2})

    class Own(type(model.backbone)):
        def __init__(self, *, how=len):
            super().__init__(elements=[1, 8], channels=8, layers=1)

    with pytest.raises(ModelError, match=r"each member is built anew .* Own\.how: found builtin_function"):
        fit(Model(Own()), **parts, **quick, seed=[0, 1])


def test_a_run_of_several_seeds(data, quick, tmp_path):
    """The whole way from settings, with pictures."""
    from molequi.config import run
    from molequi.readers import to_atoms

    for graph in data:
        to_atoms(graph).write(tmp_path / "morse.xyz", format="extxyz", append=True)
    result = run(
        {
            "data": {"extxyz": {"path": str(tmp_path / "morse.xyz"), "split": {"train": 16, "valid": 8}}},
            "backbone": {"EGNN": {"channels": 8, "layers": 1, "cutoff": 4.0}},
            "predict": ["energy", "forces"],
            "train": quick | {"seed": [0, 1], "out": str(tmp_path / "run")},
        }
    )
    assert type(load(tmp_path / "run" / "model.safetensors")) is Ensemble
    assert {"parity.png", "learning_curve.png", "config.yaml", "seed0", "seed1"} <= {
        p.name for p in result.out.iterdir()
    }
    rows = list(csv.DictReader((tmp_path / "run" / "errors.csv").read_text().splitlines()))
    assert {row["part"] for row in rows} == {"train", "valid"}
