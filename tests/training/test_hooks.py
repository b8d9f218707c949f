"""Terms of a training of the user's own."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import molequi as mq
from molequi import Hook, fit
from molequi.errors import ConfigError, TrainingError, TrainingWarning
from molequi.hooks import Penalty

from ..morse_kit import tiny
from .test_resume import Stop, equal, stop_before, weights


class WeightNorm(Hook):
    """A penalty on the size of the weights, and a count of its steps."""

    def __init__(self, weight=1e-2):
        self.weight, self.steps = weight, 0

    def record(self):
        return {"weight": self.weight}

    def before_step(self, run):
        self.steps += 1

    def penalty(self, run, batch):
        norm = sum(p.square().sum() for p in run.model.parameters())
        return Penalty(self.weight * norm / run.share[1], {"norm": norm.detach() / run.share[1]})

    def epoch_values(self, run):
        return {"steps": float(self.steps)}

    def report(self, run):
        return self.steps

    def state(self):
        return {"steps": self.steps}

    def restore(self, state):
        self.steps = state["steps"]


def test_its_penalty_acts_and_is_logged(parts, make, quick):
    term, plain, punished = WeightNorm(), make.tiny(), make.tiny()
    fit(plain, **parts, **quick)
    result = fit(punished, **parts, **quick, terms=[term])

    def norm(model):
        return float(sum(p.detach().square().sum() for p in model.parameters()))

    assert norm(punished) < norm(plain)
    assert [row["weight_norm_steps"] for row in result.history] == [4.0, 8.0]
    assert all(math.isfinite(row["train_weight_norm_norm"]) for row in result.history)
    assert result.reports["weight_norm"] == 8 and term.steps == 0  # each training has a copy


def test_it_continues_exactly(parts, quick, tmp_path, monkeypatch):
    whole, model = tiny(), tiny()
    fit(whole, **parts, **quick, terms=[WeightNorm()])
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_before(patched, 6)
        fit(model, **parts, **quick, terms=[WeightNorm()], out=tmp_path)
    with pytest.raises(ConfigError, match="weight"):
        fit(tiny(), **parts, **quick, terms=[WeightNorm(0.5)], out=tmp_path)
    result = fit(model, **parts, **quick, terms=[WeightNorm()], out=tmp_path)
    assert equal(weights(model), weights(whole)) and result.reports["weight_norm"] == 8


def test_mistakes(parts, model, quick):
    with pytest.raises(
        ConfigError, match="two terms are called 'weight_norm'; give one of them another name"
    ):
        fit(model, **parts, **quick, terms=[WeightNorm(), WeightNorm()])
    with pytest.raises(ConfigError, match=r"terms\.0: found .*wanted an object of a subclass"):
        fit(model, **parts, **quick, terms=[WeightNorm])


def test_two_of_one_class_by_name(parts, model, quick):
    class Other(WeightNorm):
        name = "other"

    result = fit(model, **parts, **quick, terms=[WeightNorm(), Other()])
    assert set(result.reports) >= {"weight_norm", "other"}


def test_from_yaml(data, quick, tmp_path):
    path = tmp_path / "data.npz"
    mq.readers.write_npz(data, path)
    config = {
        "data": {"npz": {"path": str(path), "split": {"train": 16, "valid": 8}}},
        "backbone": {"EGNN": {"channels": 8, "layers": 1, "cutoff": 4.0}},
        "predict": ["energy", "forces"],
        "train": quick | {"terms": [{"WeightNorm": {"weight": 0.1}}], "out": str(tmp_path / "run")},
    }
    result = mq.run(config, hooks={"WeightNorm": WeightNorm})
    assert result.reports["weight_norm"] == 8
    with pytest.raises(ConfigError, match=r"train\.terms\.0\.WeightNorm: no such term.*hooks="):
        mq.run(config)


def test_what_a_hook_returns_is_checked(parts, model, quick):
    def fails(message, **methods):
        with pytest.raises(ConfigError, match=message):
            fit(model, **parts, **quick, terms=[type("Own", (Hook,), methods)()])

    fails(r"Own\.penalty: found Tensor; wanted Penalty\(total\) or None", penalty=lambda *_: torch.ones(()))
    fails(r"Penalty: total is 1\.0; wanted a tensor of shape \(\)", penalty=lambda *_: Penalty(1.0))
    fails(r"Penalty: total is shape \(2,\)", penalty=lambda *_: Penalty(torch.ones(2)))
    fails(
        r"Penalty: norm is 0\.5; wanted a tensor",
        penalty=lambda *_: Penalty(torch.ones(()), {"norm": 0.5}),
    )
    fails(r"Own\.epoch_values: found 3 \(int\); wanted numbers by name", epoch_values=lambda *_: 3)
    fails(r"Own\.epoch_values: a is 'x' \(str\); wanted one number", epoch_values=lambda *_: {"a": "x"})
    fails(r"Own\.validation_sums: found float; wanted a tensor", validation_sums=lambda *_: 1.0)
    fails(
        r"Own\.validation_values: a is .*wanted one number",
        validation_sums=lambda *_: torch.ones(2, dtype=torch.float64),
        validation_values=lambda self, sums: {"a": sums},
    )


def test_a_misspelt_method_is_told_when_the_class_is_made():
    with pytest.raises(ConfigError, match=r"Own\.after_gradient would never be called.*'after_gradients'"):
        type("Own", (Hook,), {"after_gradient": lambda *_: None})
    with pytest.raises(ConfigError, match=r"or, if this is a method of your own, call it '_states'"):
        type("Own", (Hook,), {"states": lambda self: {}})
    with pytest.raises(ConfigError, match=r"Own\.before_steps would never be called"):
        type("Own", (Hook,), {"before_steps": lambda self, run: None})


def test_what_is_no_misspelt_method():
    type("Own", (Hook,), {"norm_of_weights": lambda *_: None})  # a method of one's own
    type("Own", (Hook,), {"_state": lambda self: {}, "_after_gradient": lambda *_: None})
    type("Own", (Hook,), {"states": (), "reports": property(lambda self: [])})  # no functions
    both = {"state": lambda self: {}, "states": lambda self: []}
    own = type("Own", (Hook,), both)  # the method is there, so the other one is another
    type("Child", (own,), {"states": lambda self: []})
    type("Own", (Hook,), {"states": lambda self, first, second: None})  # other arguments
    type("Own", (Hook,), {"validation_value_sums": lambda self, sums: None})  # too far away


class Plain(Hook):
    """A hook that says nothing of what it records."""

    def __init__(self, weight, **more):
        self.weight = weight
        for name, value in more.items():
            setattr(self, name, value)

    def penalty(self, run, batch):
        return Penalty(self.weight * sum(p.square().sum() for p in run.model.parameters()) / run.share[1])


def test_the_attributes_of_a_hook_are_part_of_the_settings(parts, model, quick, tmp_path):
    fit(model, **parts, **quick, terms=[Plain(0.0)], out=tmp_path)
    with pytest.raises(ConfigError, match=r"other settings or data:\n.*weight: 0.0 → 1.0"):
        fit(tiny(), **parts, **quick, terms=[Plain(1.0)], out=tmp_path)


@pytest.mark.parametrize("value", [np.float64(1), np.ones(2), Path("a"), {"deep": [np.int64(1)]}])
def test_a_state_that_could_not_be_read_back(parts, model, quick, tmp_path, value):
    term = Plain(0.0)
    term.state = lambda: {"a": value}
    with pytest.raises(ConfigError, match=r"Plain\.state: a.* is .*which a saved state cannot hold"):
        fit(model, **parts, **quick, terms=[term], out=tmp_path)


def test_metadata_that_a_file_cannot_hold_costs_nothing_else(parts, model, quick, tmp_path):
    class Reports(Hook):
        def report(self, run):
            return 1

        def metadata(self, report):
            return {"good": 1, "bad": np.float32(1)}

    with pytest.warns(TrainingWarning, match=r"Reports\.metadata: bad is float32, which JSON cannot hold"):
        fit(model, **parts, **quick, terms=[Reports()], out=tmp_path)
    kept = mq.load(tmp_path / "model.safetensors").metadata
    assert kept["good"] == 1 and "bad" not in kept and (tmp_path / "errors.json").exists()


def test_names_of_other_columns(parts, model, quick):
    term = Plain(0.0)
    term.name = "train"
    with pytest.raises(
        ConfigError, match=r"terms\.0: the term is called 'train', the beginning of other columns"
    ):
        fit(model, **parts, **quick, terms=[term])


class Given(Hook):
    """A penalty that a function computes."""

    def __init__(self, function):
        self._function = function

    def penalty(self, run, batch):
        return Penalty(self._function(sum(p.square().sum() for p in run.model.parameters())))


def test_a_penalty_that_changes_nothing_or_everything_is_noticed(parts, model, quick):
    words = r"Given\.penalty: the total 0\.5 has no gradient.*without detach\(\)"
    with pytest.raises(ConfigError, match=words):
        fit(tiny(), **parts, **quick, terms=[Given(lambda norm: torch.tensor(0.5))])
    with pytest.raises(ConfigError, match=r"the total nan has no gradient"):
        fit(tiny(), **parts, **quick, terms=[Given(lambda norm: torch.tensor(float("nan")))])
    # Not finite, with gradients that are not finite and with gradients that are.
    for function in (lambda norm: norm * float("nan"), lambda norm: norm * 0 + float("inf")):
        with pytest.raises(
            TrainingError, match=r"loss is not finite.*Given\.penalty is (nan|inf): look at this"
        ):
            fit(tiny(), **parts, **quick, terms=[Given(function)])
    # Zero without a gradient is a penalty that is switched off.
    before = fit(tiny(), **parts, **quick).model.state_dict()
    after = fit(tiny(), **parts, **quick, terms=[Given(lambda norm: torch.zeros(()))]).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
