"""Compilation and the time of a training: what `max_minutes` counts, and when compilation is left out."""

import importlib
import time

import pytest
import torch

import molequi as mq
from molequi.accelerate import Program
from molequi.compiled.costs import Cost
from molequi.training import Result, fit
from molequi.training import trainer as module
from molequi.training.clock import Clock
from molequi.training.state import Place
from molequi.util.progress import ProgressBar
from molequi.util.state_files import StateFiles

program = importlib.import_module("molequi.accelerate")
SETTINGS = dict(batch_size=2, epochs=3, max_minutes=5.0, logging={"progress": False}, seed=1)


@pytest.fixture(autouse=True)
def backend(monkeypatch, tmp_path):
    """What was traced runs as it is: no C++."""
    monkeypatch.setattr(program, "BACKEND", lambda traced, inputs: traced)
    monkeypatch.setenv("MOLEQUI_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def structures():
    generator = torch.Generator().manual_seed(0)
    return [
        mq.Graph.single(
            torch.tensor([[0.0, 0, 0], [0.97, 0, 0], [-0.24, 0.94, 0]])
            + 0.05 * torch.randn(3, 3, generator=generator),
            ["O", "H", "H"],
            targets={"energy": torch.randn(1, generator=generator).double(), "forces": torch.randn(3, 3)},
        )
        for _ in range(8)
    ]


def trained(structures, accelerate=True, **options) -> Result:
    torch.manual_seed(0)
    model = mq.Model(mq.EGNN(elements=["H", "O"], cutoff=3.0, channels=4, layers=1), ["energy", "forces"])
    given = SETTINGS | {"compute": {"accelerate": accelerate, "precision": "float64"}} | options
    if "out" in options:
        given |= {"logging": {"progress": False, "save_minutes": 0}}
    return fit(model, structures[:6], structures[6:], **given)


def equal(a: Result, b: Result):
    one, other = a.model.state_dict(), b.model.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def costs(monkeypatch, seconds):
    monkeypatch.setattr(Program, "cost", lambda *_: Cost(seconds, 2.0))


def test_a_clock_leaves_compilation_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    model = mq.accelerate(mq.Model(mq.EGNN(elements=["H"])))
    model.program.seconds = 7.0  # before the training
    clock = Clock(model)
    assert clock.seconds() == 0.0
    now[0] += 10.0
    model.program.seconds += 4.0
    assert clock.seconds() == 6.0
    with clock.stopped():
        now[0] += 5.0
        model.program.seconds += 2.0
    assert clock.seconds() == 6.0
    clock.set(50.0)
    now[0] += 3.0
    model.program.seconds += 1.0
    assert clock.seconds() == 52.0
    plain = Clock(mq.Model(mq.EGNN(elements=["H"])))
    now[0] += 3.0
    assert plain.seconds() == 3.0


def test_max_minutes_does_not_count_compilation(structures, monkeypatch):
    """A compiler that takes longer than the whole training: all of its time is still trained."""

    def slow(traced, inputs):
        time.sleep(1.2)
        return traced

    monkeypatch.setattr(program, "BACKEND", slow)
    costs(monkeypatch, 0.0)
    started = time.monotonic()
    result = trained(structures, epochs=None, max_minutes=1.0 / 60)
    wall = time.monotonic() - started
    assert result.stopped == "time is up" and result.model.program.seconds > 2.0
    assert 1.0 <= result.history[-1]["seconds"] < wall - 2.4 + 1e-3
    rates = [row["lr"] for row in result.history]
    assert rates[0] > 0.5 * 5e-3 and rates[-1] < 0.2 * 5e-3  # the schedule is over the trained time


def test_compilation_is_left_out_if_it_takes_longer_than_it_saves(structures, capfd):
    result = trained(structures)
    told = capfd.readouterr().err
    assert (
        "EGNN is not compiled: compilation would take about 80 s, and save about 0 s of 0 s of training"
        in told
    )
    assert "ms a step). It is compiled from about max_minutes=3.3 on" in told and "compiling" not in told
    assert result.model.program is None and result.compilation in told and result.compilation in str(result)
    plain = trained(structures, accelerate=False)
    assert equal(result, plain) and plain.compilation == "" and "compiled" not in str(plain)


def test_compilation_that_pays_is_done(structures, monkeypatch, capfd):
    costs(monkeypatch, 1e-9)
    result = trained(structures)
    told = capfd.readouterr().err
    wanted = "EGNN is compiled in about 0 s, which max_minutes does not count"
    assert result.compilation == wanted
    assert result.compilation in told and "compiling EGNN for training" in told
    assert result.model.program.functions


def test_without_max_minutes_the_user_decides(structures, monkeypatch, capfd):
    costs(monkeypatch, 1e9)
    result = trained(structures, max_minutes=None)
    assert result.model.program.functions and result.compilation == ""
    assert "not compiled" not in capfd.readouterr().err


def test_the_choice_needs_what_is_left_of_the_training(structures, monkeypatch):
    costs(monkeypatch, 60.0)  # saves half of the time
    assert trained(structures, epochs=1).model.program is None  # a second
    monkeypatch.setattr("molequi.training.clock._seconds_of_step", lambda *_: 70.0)
    assert trained(structures, epochs=1, max_minutes=1.9).model.program is None
    assert trained(structures, epochs=1, max_minutes=2.1).model.program is not None
    assert "70000 ms a step" in trained(structures, epochs=1, max_minutes=1.9).compilation


class Stop(Exception):
    pass


@pytest.mark.parametrize("pays", [False, True])
def test_a_training_that_continues_keeps_its_choice(structures, monkeypatch, tmp_path, pays, capfd):
    """Killed after a step, and continued when compilation costs something else: with the same weights."""
    costs(monkeypatch, 1e-9 if pays else 1e9)
    whole = trained(structures, out=tmp_path / "whole")
    original = module.Training.step

    def stopping(self, *arguments):
        if self.place.step == 5:
            raise Stop
        original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(module.Training, "step", stopping)
        trained(structures, out=tmp_path / "killed")
    costs(monkeypatch, 1e9 if pays else 1e-9)
    capfd.readouterr()
    continued = trained(structures, out=tmp_path / "killed")
    sentence = "compiled, as before" if pays else "not compiled, as before"
    assert continued.compilation == sentence and f"molequi: {sentence}\n" in capfd.readouterr().err
    assert equal(whole, continued) and (continued.model.program is not None) == pays
    again = trained(structures, out=tmp_path / "killed")  # it is finished
    assert equal(again, whole) and (again.model.program is not None) == pays and again.compilation == ""


def test_states_of_the_version_before_continue(structures, monkeypatch, tmp_path):
    """They say nothing of compilation, and their time contains it."""
    whole = trained(structures, out=tmp_path / "whole")
    original = module.Training.step

    def stopping(self, *arguments):
        if self.place.step == 5:
            raise Stop
        original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(module.Training, "step", stopping)
        trained(structures, out=tmp_path / "old")
    files = StateFiles(tmp_path / "old")
    for _ in files.paths:
        state = files.load()
        state["place"].pop("compiled", None)
        files.save(state)
    assert Place(**files.load()["place"]).compiled is None
    continued = trained(structures, out=tmp_path / "old")
    assert equal(whole, continued) and "is not compiled" in continued.compilation


def test_other_settings_choose_again(structures, monkeypatch, tmp_path):
    costs(monkeypatch, 1e9)
    assert trained(structures, epochs=1, out=tmp_path).model.program is None
    costs(monkeypatch, 1e-9)
    longer = trained(structures, epochs=2, out=tmp_path, resume="force")
    assert longer.model.program is not None and "is compiled" in longer.compilation


def test_measuring_a_step_changes_nothing(structures, monkeypatch):
    """Random numbers, weights and gradients are those of a training that measures nothing."""
    costs(monkeypatch, 1e9)

    def noisy(**options):
        torch.manual_seed(0)
        model = mq.Model(mq.EGNN(elements=["H", "O"], cutoff=3.0, channels=4, layers=1), ["energy", "forces"])
        model.backbone.layers[0].register_forward_hook(
            lambda layer, given, out: (torch.nn.functional.dropout(out[0], 0.2, layer.training), *out[1:])
        )
        return fit(model, structures[:6], structures[6:], **SETTINGS, **options)

    assert equal(noisy(compute={"accelerate": True}), noisy())


def test_the_time_left_is_estimated_without_compilation(capfd, monkeypatch):
    """Ten seconds of which eight were compilation, and a tenth is done: eighteen are left, not ninety."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + now[0])
    model = mq.accelerate(mq.Model(mq.EGNN(elements=["H"])))
    clock = Clock(model)
    with ProgressBar("training", 1.0, unit="", clock=clock.seconds) as bar:
        now[0], model.program.seconds = 10.0, 8.0
        bar.update(0.1)
    assert "training: 10 %, 0:18 left" in capfd.readouterr().err
