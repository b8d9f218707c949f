"""A training that was stopped anywhere ends with the weights of one that was not, bit for bit."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from molequi import Dataset, Loss, fit, load
from molequi.errors import CheckpointError, ConfigError
from molequi.training import trainer as module

SETTINGS = dict(
    epochs=3,
    batch_size=4,
    schedule={"name": "plateau", "patience": 0, "warmup": 0.5},
    logging={"progress": False},
    seed=4,
)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def noisy(model):
    """Dropout in training, so that random numbers matter."""
    model.backbone.layers[0].register_forward_hook(
        lambda layer, given, out: (torch.nn.functional.dropout(out[0], 0.2, layer.training), *out[1:])
    )
    return model


class Stop(Exception):
    pass


def stop_before(monkeypatch, step):
    original = module.Training.step

    def stopping(self, *arguments):
        if self.place.step == step:
            raise Stop
        original(self, *arguments)

    monkeypatch.setattr(module.Training, "step", stopping)


def rows(folder):
    """metrics.csv without the clock."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "steps,precision,optimizer",
    [
        ((1,), "float32", "adam"),
        ((4,), "float32", "adam"),
        ((6,), "float64", "adam"),
        ((2, 3, 9, 11), "float32", "adam"),
        ((1, 5, 6), "float32", {"name": "soap", "frequency": 2}),
    ],
)
def test_b10_stopped_at_any_step(parts, make, tmp_path, monkeypatch, steps, precision, optimizer):
    settings = SETTINGS | {"compute": {"precision": precision}, "lr": 0.2, "optimizer": optimizer}
    whole = fit(noisy(make.tiny()), **parts, **settings, out=tmp_path / "whole")
    model = noisy(make.tiny())
    for step in steps:
        with monkeypatch.context() as patched, pytest.raises(Stop):
            stop_before(patched, step)
            fit(
                model,
                **parts,
                **settings | {"logging": {"progress": False, "save_minutes": 0}},
                out=tmp_path / "parts",
            )
        model = noisy(make.tiny(seed=9))  # the state decides, not what is handed over
    resumed = fit(model, **parts, **settings, out=tmp_path / "parts")
    assert equal(weights(resumed.model), weights(whole.model))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert resumed.errors["valid"].numbers() == whole.errors["valid"].numbers()
    assert resumed.best_epoch == whole.best_epoch
    assert (
        module.StateFiles(tmp_path / "parts").load()["schedule"]["level"] < 1
    )  # a state of the schedule that matters
    other = fit(noisy(make.tiny()), **parts, **settings | {"seed": 5})
    assert not equal(weights(other.model), weights(whole.model))  # the control: random numbers do matter


@pytest.mark.parametrize(
    "before,after",
    [
        ("adam", "soap"),
        ("soap", "adamw"),
        ({"amsgrad": False}, "adam"),
        ({"name": "soap", "frequency": 2, "weight_decay": 0.1}, {"name": "soap", "frequency": 7}),
    ],
)
def test_forced_to_another_optimizer(parts, make, tmp_path, monkeypatch, caplog, before, after):
    """Its options are those of the new settings; moments that mean nothing for it are not taken."""
    settings = SETTINGS | {"out": tmp_path}
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_before(patched, 5)
        fit(make.tiny(), **parts, **settings | {"logging": {"save_minutes": 0}}, optimizer=before)
    seen = []
    original = module.Training.step

    def watched(self, *arguments):
        seen.append((self.place.step, dict(self.optimizer.param_groups[0])))
        original(self, *arguments)

    monkeypatch.setattr(module.Training, "step", watched)
    with pytest.raises(ConfigError, match="resume='force'"):
        fit(make.tiny(), **parts, **settings, optimizer=after)
    result = fit(make.tiny(), **parts, **settings, optimizer=after, resume="force")
    assert seen[0][0] == 5 and result.best_epoch > 0
    other = "soap" in (before, after)
    assert ("the optimizer is another one than before" in caplog.text) == other
    if isinstance(after, dict):
        assert seen[0][1]["frequency"] == 7 and seen[0][1]["weight_decay"] == 0.0


def test_a_finished_training_is_not_repeated(parts, make, tmp_path, monkeypatch):
    whole = fit(make.tiny(), **parts, **SETTINGS, out=tmp_path)
    monkeypatch.setattr(module.Training, "step", lambda *_: pytest.fail("a step was made"))
    again = fit(make.tiny(seed=3), **parts, **SETTINGS, out=tmp_path)
    assert equal(weights(whole.model), weights(again.model)) and again.history == whole.history


def test_b18_changed_settings_or_data_are_refused_with_the_difference(parts, make, tmp_path):
    fit(make.tiny(), **parts, **SETTINGS, out=tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)settings\.lr: 0\.005 → 0\.01\n.*resume='force'"):
        fit(make.tiny(), **parts, **SETTINGS, lr=0.01, out=tmp_path)
    moved = Dataset([g.replace(pos=g.pos + 0.1 * (k == 3)) for k, g in enumerate(parts["train"])])
    with pytest.raises(ConfigError, match=r"data\.train: '\w+' → '\w+'"):
        fit(make.tiny(), moved, parts["valid"], **SETTINGS, out=tmp_path)
    assert (
        len(fit(make.tiny(), **parts, **SETTINGS | {"epochs": 5}, out=tmp_path, resume="force").history) == 5
    )
    assert (
        len(fit(make.tiny(), **parts, **SETTINGS | {"epochs": 2}, out=tmp_path, resume="restart").history)
        == 2
    )


def test_b17_state_of_another_model(parts, make, tmp_path):
    from molequi import EGNN, Model

    fit(make.tiny(), **parts, **SETTINGS, out=tmp_path)
    wider = Model(EGNN(elements=[1, 8, 6], channels=16, layers=2, radial=6, cutoff=4.0))
    with pytest.raises(
        ConfigError,
        match=r"model\.options\.elements: \[1, 8\] → \[1, 6, 8\]\n.*model\.options\.channels: 8 → 16",
    ):
        fit(wider, **parts, **SETTINGS, out=tmp_path)
    with pytest.raises(CheckpointError, match="(?s)does not fit this model.*restart"):
        fit(wider, **parts, **SETTINGS, out=tmp_path, resume="force")


def test_a_finished_training_that_is_forced_on_ends_where_the_epochs_do(parts, make, tmp_path):
    fit(make.tiny(), **parts, **SETTINGS, out=tmp_path)
    again = fit(make.tiny(), **parts, **SETTINGS, optimizer={"clip": 5.0}, out=tmp_path, resume="force")
    assert len(again.history) == 3 and again.stopped == "all epochs"
    assert (
        len(
            fit(
                make.tiny(),
                **parts,
                **SETTINGS | {"epochs": 4},
                optimizer={"clip": 5.0},
                out=tmp_path,
                resume="force",
            ).history
        )
        == 4
    )


def test_free_settings_may_change(parts, make, tmp_path, monkeypatch):
    whole = fit(make.tiny(), **parts, **SETTINGS)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_before(patched, 6)
        fit(
            make.tiny(),
            **parts,
            **SETTINGS | {"logging": {"progress": False, "save_minutes": 0}},
            out=tmp_path,
        )
    resumed = fit(
        make.tiny(),
        **parts,
        **SETTINGS | {"logging": {"progress": False, "save_minutes": 60}},
        compute={"workers": 1},
        out=tmp_path,
    )
    assert equal(weights(resumed.model), weights(whole.model))


def test_whole_numbers_and_floats_are_the_same_settings(parts, make, tmp_path):
    """A weight of 1 at first and of 1.0 afterwards is no change."""
    settings = {name: value for name, value in SETTINGS.items() if name != "schedule"} | {"epochs": 1}
    fit(make.tiny(), **parts, **settings, lr=1, max_minutes=9, loss={"energy": 1, "forces": 2}, out=tmp_path)
    again = [Loss("energy"), Loss("forces", weight=2.0)]
    fit(make.tiny(), **parts, **settings, lr=1.0, max_minutes=9.0, loss=again, out=tmp_path)
    with pytest.raises(ConfigError, match=r"settings\.loss\.forces\.weight: 2\.0 → 3\.0"):
        fit(
            make.tiny(),
            **parts,
            **settings,
            lr=1,
            max_minutes=9,
            loss={"energy": 1, "forces": 3},
            out=tmp_path,
        )


def as_format_2(folder):
    """Write the newest state as molequi 0.1.0 did: epochs counted from 0, and -1 where none was validated."""
    states = module.StateFiles(folder)
    state = states.load()
    place = state["place"]
    rows = [row | {"epoch": row["epoch"] - 1} for row in place["history"]]
    state["place"] = place | {"best_epoch": place["best_epoch"] - 1, "history": rows}
    state["record"]["settings"]["loss"]["energy"]["weight"] = 1
    states.remove()
    states.save(state)
    (path,) = [path for path in states.paths if path.exists()]
    path.write_bytes(path.read_bytes().replace(b"molequi-state 3 ", b"molequi-state 2 ", 1))


@pytest.mark.parametrize("step", [2, 6, None])
def test_a_training_of_an_earlier_version_continues_with_epochs_from_1(
    parts, make, tmp_path, monkeypatch, step
):
    """Interrupted in the first epoch, in the second, or finished."""
    whole = fit(make.tiny(), **parts, **SETTINGS, out=tmp_path / "whole")
    if step is None:
        fit(make.tiny(), **parts, **SETTINGS, out=tmp_path / "old")
    else:
        with monkeypatch.context() as patched, pytest.raises(Stop):
            stop_before(patched, step)
            save = SETTINGS | {"logging": {"progress": False, "save_minutes": 0}}
            fit(make.tiny(), **parts, **save, out=tmp_path / "old")
    as_format_2(tmp_path / "old")
    again = fit(make.tiny(seed=3), **parts, **SETTINGS, out=tmp_path / "old")
    assert equal(weights(again.model), weights(whole.model)) and again.best_epoch == whole.best_epoch
    assert rows(tmp_path / "old") == rows(tmp_path / "whole")
    assert [row["epoch"] for row in again.history] == [1, 2, 3]


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from morse_kit import morse, tiny
from test_resume import SETTINGS, noisy
from molequi import fit
from molequi.training import trainer as module
folder, where, at = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if where == "step":
    step = module.Training.step
    def dying(self, *arguments):
        if self.place.step == at:
            die()
        step(self, *arguments)
    module.Training.step = dying
if where == "write":
    saves, sync = [0], os.fsync
    save = module.StateFiles.save
    def counting(self, state):
        saves[0] += 1
        save(self, state)
    module.StateFiles.save = counting
    def dying(number):
        if saves[0] == at:
            os.ftruncate(number, 1000)      # half of it has reached the disk
            die()
        sync(number)
    os.fsync = dying
data = morse(24)
fit(noisy(tiny()), data[:16], data[16:], **SETTINGS | {"logging": {"progress": False, "save_minutes": 0}}, out=folder)
"""


def test_b10_b11_killed_in_an_epoch_and_again_while_the_state_is_written(tmp_path):
    """Real processes and kill -9; then the final weights are those of the training that was left alone."""

    def start(folder, where, at, expected):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(folder), where, str(at)],
            text=True,
            capture_output=True,
            timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == expected, done.stderr

    start(tmp_path / "whole", "nowhere", 0, 0)
    start(tmp_path / "killed", "step", 6, -9)
    assert module.StateFiles(tmp_path / "killed").load()["place"]["batch"] == 2  # within the second epoch
    start(tmp_path / "killed", "write", 3, -9)
    assert list((tmp_path / "killed").glob(".state*.tmp"))
    start(tmp_path / "killed", "nowhere", 0, 0)
    whole, killed = (load(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert equal(weights(whole), weights(killed))
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.tmp"))


DEVICES = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from morse_kit import morse, tiny
from test_resume import SETTINGS
from molequi import fit
data = morse(25)
rest = {"max_minutes": 10, "validation": {"patience": 5}}
fit(tiny(), data[:17], data[17:], **SETTINGS | rest, compute={"precision": "float64", "devices": int(sys.argv[3])}, out=sys.argv[2])
"""


def test_b19_two_devices_do_what_one_does(tmp_path):
    """A batch is shared out, not multiplied: weights agree up to the order of sums; one goes on where two stopped."""

    def start(folder, devices):
        done = subprocess.run(
            [
                sys.executable,
                str(tmp_path / "train.py"),
                str(Path(__file__).parent),
                str(folder),
                str(devices),
            ],
            text=True,
            capture_output=True,
            timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr

    (tmp_path / "train.py").write_text(DEVICES)
    start(tmp_path / "one", 1)
    start(tmp_path / "two", 2)
    one, two = (load(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(two)[name], rtol=1e-6, atol=1e-8), name
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two")):
        assert {k: float(v) for k, v in a.items()} == pytest.approx(
            {k: float(v) for k, v in b.items()}, rel=1e-5
        )
    start(tmp_path / "two", 1)
