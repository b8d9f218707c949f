"""Constraints that are relaxed on the way: the dial turns as it should, is closed where models are judged, and the result is exact."""

import importlib

import pytest
import torch

from molequi import Model, Quantity, RelaxedEGNN, RelaxedNequIP, audit, fit, load
from molequi.approximate import pose_errors
from molequi.approximate.annealing import ConstraintAnnealing
from molequi.approximate.regularizers import EquivarianceRegularizer
from molequi.config.schema import check_config
from molequi.errors import ConfigError
from molequi.heads import Vector
from molequi.nn.relaxed import free_groups, is_strict, relaxed_layers, set_theta
from molequi.training import symmetry
from molequi.training import trainer as module

from ..training.test_resume import Stop, stop_before

QUICK = dict(epochs=4, batch_size=8, logging={"progress": False}, lr=1e-2)
PUSH = Quantity(name="push", per="node", rank=1)


def egnn(seed=0, predict=("energy", "forces")):
    torch.manual_seed(seed)
    return Model(
        RelaxedEGNN(elements=[1, 8], channels=8, layers=2, radial=6, cutoff=4.0, gates=[1.0, 1.0, 0.5]),
        list(predict),
    )


def nequip(seed=0):
    torch.manual_seed(seed)
    return Model(
        RelaxedNequIP(
            elements=[1, 8], channels=4, layers=2, l_max=1, radial=4, cutoff=4.0, gates=[1.0, 1.0, 0.5]
        )
    )


@pytest.fixture(autouse=True)
def without_cards(monkeypatch):
    """The audit after each training, which has tests of its own, takes longer than these trainings."""
    monkeypatch.setattr(symmetry, "measure_symmetry", lambda *_: None)


def test_theta_rises_to_the_middle_and_falls_to_zero():
    assert [ConstraintAnnealing.theta(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0, 1.2)] == [
        0.0,
        0.5,
        1.0,
        0.5,
        0.0,
        0.0,
    ]


def test_the_penalty_is_the_norm_of_what_is_free():
    model = egnn().double()
    set_theta(model, 0.3)  # it has no part in it
    wanted = 0.0
    for _, layer in relaxed_layers(model):
        wanted += (
            sum(
                float((layer.c * p).detach().square().sum())
                for group in layer.free_groups().values()
                for p in group
            )
            ** 0.5
        )
    penalty = ConstraintAnnealing(0.01).norms(model)
    assert penalty.tolist() == pytest.approx(0.01 * (1 + 2**0.5) * wanted)
    with torch.no_grad():
        for group in free_groups(model).values():
            for p in group:
                p.zero_()
    penalty = ConstraintAnnealing(0.01).norms(model)
    penalty.backward()
    assert penalty.tolist() == 0.0 and all(
        bool((p.grad == 0).all()) for group in free_groups(model).values() for p in group
    )


@pytest.mark.parametrize("make_model", [egnn, nequip])
def test_the_result_is_exactly_equivariant(parts, make_model, tmp_path):
    """And it was not on the way: with θ as it was in the middle, the same weights are far from it."""
    seen = []
    before_step, before_validation = ConstraintAnnealing.before_step, ConstraintAnnealing.before_validation

    def watched(original):
        def call(self, run):
            original(self, run)
            seen.append(float(next(relaxed_layers(run.model))[1].theta))

        return call

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ConstraintAnnealing, "before_step", watched(before_step))
        patched.setattr(ConstraintAnnealing, "before_validation", watched(before_validation))
        result = fit(make_model(), **parts, **QUICK, terms=[ConstraintAnnealing(1e-4)], out=tmp_path)
    assert (
        max(seen) == 1.0 and seen[0] == 0.0 and seen[-1] == 0.0 and seen.count(0.0) == 5
    )  # the first step, and every validation
    assert [row["constraint_annealing_theta"] for row in result.history] == [0.5, 1.0, 0.5, 0.0]
    for model in (result.model, load(tmp_path / "model.safetensors")):
        assert is_strict(model) and model.group in ("O(n)", "O(3)")
        report = audit(
            model,
            parts["valid"],
            draws=2,
            limit=3,
            checks=["rotation", "reflection", "translation", "permutation"],
        )
        assert report.passed, str(report)
        assert max(row.maximum for row in report.rows if row.maximum is not None) <= 1e-10
    set_theta(model, 1.0)
    assert pose_errors(model, parts["valid"], symmetries=["rotation"])["rotation", "forces"].defect > 1e-6


def test_models_are_judged_without_the_help_of_free_paths(parts):
    """The loss that chooses the best weights is that of the closed model, in the middle of the training as well."""
    losses, original = [], module.Training.validate

    def watched(self):
        loss = original(self)
        assert is_strict(self.average.model) and is_strict(self.model)
        losses.append(self.place.epoch)
        return loss

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module.Training, "validate", watched)
        result = fit(egnn(), **parts, **QUICK, terms=[ConstraintAnnealing(0.0)])
    assert losses == [1, 2, 3, 4]
    assert result.best_loss == pytest.approx(min(row["valid_loss"] for row in result.history))
    again = result.errors["valid"]["forces_rmse"]
    assert again == pytest.approx(result.history[result.best_epoch - 1]["valid_forces_rmse"], rel=1e-5)
    plain = fit(egnn(), **parts, **QUICK, terms=[ConstraintAnnealing(0.0)], optimizer={"ema": 0.0})
    assert is_strict(plain.model) and plain.errors["valid"]["forces_rmse"] == pytest.approx(
        plain.history[plain.best_epoch - 1]["valid_forces_rmse"], rel=1e-5
    )


def test_free_weights_take_part(parts):
    """With relax they are trained and kept small by λ; the strict training of the same model leaves them as they are."""

    def norm(model):
        return sum(float(p.detach().square().sum()) for group in free_groups(model).values() for p in group)

    start = egnn()
    loose, tight = (
        fit(egnn(), **parts, **QUICK | {"optimizer": {"ema": 0.0}}, terms=[ConstraintAnnealing(weight)])
        for weight in (0.0, 100.0)
    )
    assert norm(loose.model) != norm(start) and norm(tight.model) < norm(loose.model)
    closed = egnn()
    set_theta(closed, 0.0)
    fit(closed, **parts, **QUICK)
    assert norm(closed) == norm(start)


@pytest.mark.parametrize("step", [1, 3, 6])
def test_resumed_bit_for_bit(parts, step, tmp_path, monkeypatch):
    whole = fit(egnn(), **parts, **QUICK, terms=[ConstraintAnnealing(0.01)], out=tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_before(patched, step)
        fit(
            egnn(),
            **parts,
            **QUICK | {"logging": {"progress": False, "save_minutes": 0}},
            terms=[ConstraintAnnealing(0.01)],
            out=tmp_path / "parts",
        )
    resumed = fit(egnn(seed=4), **parts, **QUICK, terms=[ConstraintAnnealing(0.01)], out=tmp_path / "parts")
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_with_a_prior_and_other_heads(parts):
    """Both at once; and of quantities that are no gradients too."""
    from molequi import Dataset

    data = {
        name: Dataset(
            [g.replace(targets={"push": g.targets["forces"]}) for g in part], quantities={"push": PUSH}
        )
        for name, part in parts.items()
    }
    row = fit(
        egnn(predict=[Vector(PUSH)]),
        **data,
        **QUICK,
        terms=[EquivarianceRegularizer({"rotation": 1.0}), ConstraintAnnealing(0.01)],
    ).history
    assert row[1]["train_equivariance_rotation"] > 1e-9 and row[1]["valid_equivariance_rotation"] < 1e-9


def test_compiled_programs_train_the_same(parts, monkeypatch):
    """θ is an input of the programs, not a number in them."""
    compiler = importlib.import_module("molequi.accelerate")
    monkeypatch.setattr(compiler, "BACKEND", lambda traced, inputs: traced)
    plain, fast = (
        fit(
            egnn(predict=["energy"]),
            **parts,
            **QUICK,
            terms=[ConstraintAnnealing(0.01)],
            compute={"precision": "float64", "accelerate": fast},
        ).model
        for fast in (False, True)
    )
    assert fast.program.functions
    for a, b in zip(plain.parameters(), fast.parameters()):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


class TestMessages:
    def test_a_model_without_relaxed_layers(self, make, parts):
        with pytest.raises(
            ConfigError,
            match="EGNN has no relaxed layers, whose constraints could be annealed; take a backbone that",
        ):
            fit(make.tiny(), **parts, **QUICK, terms=[ConstraintAnnealing(0.01)])

    def test_patience(self, parts):
        with pytest.raises(
            ConfigError,
            match=r"ConstraintAnnealing and validation\.patience=3: constraints are tight again only at the planned end",
        ):
            fit(egnn(), **parts, **QUICK, terms=[ConstraintAnnealing(0.01)], validation={"patience": 3})

    def test_a_negative_weight(self, parts):
        with pytest.raises(ConfigError, match=r"weight: found -1 \(int\); wanted greater than or equal to 0"):
            fit(egnn(), **parts, **QUICK, terms=[ConstraintAnnealing(-1)])

    def test_in_a_file(self):
        config = {
            "data": {"extxyz": {"path": "a.xyz", "split": {"train": 2, "valid": 1}}},
            "backbone": {"EGNN": {}},
            "predict": ["energy"],
            "train": {"epochs": 1, "terms": [{"ConstraintAnnealing": {"weight": 0.01}}]},
        }
        with pytest.raises(ConfigError, match=r"train\.terms.*EGNN has no relaxed layers"):
            check_config(config)
        check_config(config | {"backbone": {"RelaxedEGNN": {}}})
