"""Ends that were raw once: each is one message now."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import molequi as mq
from molequi import checkpoint
from molequi.cli import main
from molequi.errors import CheckpointError, ConfigError, DataError, ModelError, TrainingError
from molequi.util.devices import as_device
from molequi.util.memory import is_out_of_memory
from molequi.util.state_files import StateFiles

from ..morse_kit import morse, tiny
from .good_files import header_of

FRAMES = 'Properties=species:S:1:pos:R:3 energy=1.0 pbc="F F F"'


def written(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("device", ["meta", "xla", "vulkan", "hpu"])
def test_devices_that_cannot_compute(device):
    with pytest.raises(ModelError, match=f"device='{device}': cannot be used here .*; wanted 'auto', 'cpu'"):
        as_device(device)


def test_layers_that_fill_the_memory():
    with pytest.raises(ConfigError, match=r"EGNN\.layers: found 1000000 .*less than or equal to 1000"):
        mq.EGNN(elements=["H"], layers=1_000_000)
    assert len(mq.EGNN(elements=["H"], channels=2, layers=3).layers) == 3


CONFIG = {
    "data": {"extxyz": {"path": "none.xyz", "split": {"train": 1, "valid": 1}}},
    "backbone": {"EGNN": {"channels": 10**7}},
    "predict": ["energy"],
    "train": {"epochs": 1},
}


def test_channels_that_no_memory_holds():
    with pytest.raises(
        ConfigError, match=r"backbone\.EGNN: a model of this size does not fit into the memory"
    ):
        mq.run(CONFIG)


@pytest.mark.parametrize("options", [3, [1], "many"])
def test_options_of_a_backbone_that_are_none(options):
    with pytest.raises(ConfigError, match=r"backbone\.EGNN: found .*; wanted its options, such as EGNN: \{"):
        mq.run(CONFIG | {"backbone": {"EGNN": options}})


def test_which_errors_are_those_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15, dtype=torch.float64)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("other"))


def test_memory_of_the_cpu_ends_a_training_with_the_batch(monkeypatch):
    model, data = tiny(), morse(6)
    monkeypatch.setattr(model.backbone, "forward", lambda *_: torch.empty(10**15, dtype=torch.float64))
    with pytest.raises(TrainingError, match="step 1: out of memory with a batch of 2 structures"):
        mq.fit(model, data[:4], data[4:], epochs=1, batch_size=2, logging={"progress": False})


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_of_a_command(monkeypatch, capsys, error):
    monkeypatch.setattr("molequi.cli.program._run", lambda words: (_ for _ in ()).throw(error))
    assert main(["info", "x"]) == 2
    assert capsys.readouterr().err.startswith("molequi: out of memory; use fewer or smaller structures")


def test_other_errors_of_a_command_are_not_hidden(monkeypatch):
    def fault(words):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr("molequi.cli.program._run", fault)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        main(["info", "x"])


def test_numbers_of_vertices_that_no_array_holds(tmp_path):
    path = written(tmp_path, "a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 99999999999999999999\n")
    with pytest.raises(
        DataError, match="line 4: face '1 2 99999999999999999999'; wanted three or more numbers"
    ):
        mq.read_points(path)


@pytest.mark.parametrize("number", ["1e155", "-1e300", "1e400"])
def test_coordinates_out_of_every_range(tmp_path, number):
    path = written(tmp_path, "a.xyz", f"2\n{FRAMES}\nO {number} 0 0\nH 0 0 1\n")
    with pytest.raises(DataError, match="frame 0 .*position of atom 0 is .*; wanted (finite )?numbers"):
        mq.read_extxyz(path)


def test_a_hundred_million_columns(tmp_path):
    path = written(
        tmp_path, "a.xyz", f"1\n{FRAMES.replace('pos:R:3', 'pos:R:3:forces:R:100000000')}\nO 0 0 0 1 2 3\n"
    )
    with pytest.raises(DataError, match="atom 0 has 7 columns, wanted 100000004"):
        mq.read_extxyz(path)


def rewritten(path, change):
    header, tensors = header_of(path)
    change(header)
    import json

    from safetensors.torch import save_file

    text = json.dumps(header)
    save_file(tensors, path, metadata={"molequi": text, "sha256": checkpoint.digest(text, tensors)})
    return path


@pytest.mark.parametrize("predict", [[1.5], ["energy"], [None], 3, {"x": 1}])
@pytest.mark.parametrize("number", [1, 3])
def test_descriptions_of_past_formats_that_are_none(tmp_path, number, predict):
    good = Path(__file__).parents[1] / "formats" / f"format{number}.safetensors"
    path = written(tmp_path, "m.safetensors", good.read_bytes())
    rewritten(path, lambda header: header["model"].update(predict=predict))
    with pytest.raises(CheckpointError, match="description of the model cannot be built"):
        mq.load(path)


@pytest.mark.parametrize("shared", [3, ["a"], {"a": ["b"]}, {"a": None}])
def test_shared_names_that_are_none(tmp_path, shared):
    path = mq.save(tiny(), tmp_path / "m.safetensors")
    rewritten(path, lambda header: header.update(shared=shared))
    with pytest.raises(CheckpointError, match="its header has shared .*; wanted names of tensors by name"):
        mq.load(path)


def stopped(folder, monkeypatch):
    """A training of four steps that ends after three of them."""
    from .targets import SAVED, Stopped, stopping

    data = morse(6)
    options = {"epochs": 2, "batch_size": 2, "seed": 0, "out": folder} | SAVED
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stopping(patched.setattr, 3)
        mq.fit(tiny(), data[:4], data[4:], **options)
    return lambda: mq.fit(tiny(), data[:4], data[4:], **options)


def forge(folder, change):
    """Change the newest state and give it a digest that fits."""
    states = StateFiles(folder)
    state = states.load()
    change(state)
    states.save(state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("record"), "its state has no record, from which nothing can go on"),
        (lambda s: s["place"].update(epoch="x"), r"has values that no training writes \(place.epoch: found 'x'"),
        (lambda s: s["place"].update(step={"a": 1}), r"no training writes \(place.step: found"),
        (lambda s: s["place"].update(best_loss="low"), r"no training writes \(place.best_loss: found 'low'"),
        (lambda s: s["place"].update(waited=-1), r"no training writes \(place.waited: found -1"),
        (lambda s: s.update(sums=[1]), r"no training writes .sums: found .1.; wanted sums by name"),
        (lambda s: s.update(frozen=True), r"no training writes \(frozen: found True; wanted a list of names"),
        (lambda s: s["optimizer"]["state"][0].pop("exp_avg"), "does not fit this model .moments "),
        (lambda s: s["optimizer"]["state"][2].update(exp_avg=torch.zeros(77)), "does not fit this model .a moment exp_avg"),
        (lambda s: next(iter(s["sums"].values()))[:, 2].fill_(-1.0), "no training writes .sums.energy: found a sum of errors below zero"),
        (lambda s: s["model"].popitem(), "does not fit this model"),
        (lambda s: s["schedule"].update(lowest={"a": 1}), r"does not fit this model .schedule.lowest is .*; wanted a number"),
        (lambda s: s["schedule"].update(level=True), "does not fit this model .schedule.level is 'True'; wanted a number"),
        (lambda s: s.update(running=[0.0]), r"does not fit this model .running is .*; wanted a tensor"),
        (lambda s: s.update(best="none"), "does not fit this model .best is 'none'; wanted values by name"),
    ],
)  # fmt: skip
def test_forged_states(tmp_path, monkeypatch, change, words):
    resume = stopped(tmp_path, monkeypatch)
    forge(tmp_path, change)
    with pytest.raises(CheckpointError, match=words):
        resume()


def test_a_state_that_is_left_alone_goes_on(tmp_path, monkeypatch):
    resume = stopped(tmp_path, monkeypatch)
    forge(tmp_path, lambda state: None)
    assert len(resume().history) == 2


def test_a_state_that_is_a_list(tmp_path):
    states = StateFiles(tmp_path)
    states.save({"a": 1})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.load", lambda *_, **__: [1])
        with pytest.raises(CheckpointError, match="no state of a training: found list"):
            StateFiles(tmp_path).load()


def test_closed_streams(tmp_path):
    """Nothing that is printed gets into a file, although standard output and error are closed."""
    mq.save(tiny(), tmp_path / "m.safetensors")
    written(tmp_path, "a.xyz", f"2\n{FRAMES}\nO 0 0 0\nH 0 0 1\n")
    command = f"exec {sys.executable} -m molequi.cli predict m.safetensors a.xyz out.xyz <&- >&- 2>&-"
    root = str(Path(mq.__file__).parents[1])
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, timeout=120, env=os.environ | {"PYTHONPATH": root}
    )
    assert done.returncode == 0
    assert (tmp_path / "out.xyz").read_text().startswith("2\nProperties=species")


def test_streams_that_are_none(monkeypatch):
    from molequi.util.files import open_streams

    monkeypatch.setattr(sys, "stderr", None)
    open_streams()
    print("nobody reads this", file=sys.stderr)
    assert sys.stderr.name == os.devnull
    sys.stderr.close()


def test_a_full_disk_behind_standard_output(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("molequi.cli.program._run", full)
    assert main(["recipes"]) == 2 and "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "fails"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)]
)
def test_file_systems_that_flush_no_folders(tmp_path, monkeypatch, number, fails):
    """Some mounted ones refuse this; the file is written all the same. Any other error is one."""
    from molequi.util.files import write_file

    true = os.fsync

    def fsync(file):
        if Path(f"/proc/self/fd/{file}").resolve().is_dir():
            raise OSError(number, os.strerror(number))
        true(file)

    monkeypatch.setattr(os, "fsync", fsync)
    if fails:
        with pytest.raises(CheckpointError, match="Input/output error"):
            write_file(tmp_path / "a", "text")
    else:
        write_file(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
