"""Worker processes and actors of Ray that are killed: each input is still there exactly once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from ase.io import write

import molequi as mq
from molequi.errors import CheckpointError, ConfigError
from molequi.screening.processes import WorkerProcesses
from molequi.util.signals import keep_handlers

from .conftest import water
from .test_screen import contents, rows_of

INPUTS = 2000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A file of 2,000 structures, one of which has an unknown element."""
    path = tmp_path_factory.mktemp("many") / "many.xyz"
    atoms = [water(k) for k in range(100)] * (INPUTS // 100)
    write(path, atoms)
    lines = path.read_text().splitlines()
    lines[5 * 777 + 2] = "S" + lines[5 * 777 + 2][1:]
    path.write_text("\n".join(lines) + "\n")
    return path


class Killer:
    """Kills the worker that begins a block, as often as asked for; a context manager."""

    def __init__(self, folder, block, times):
        self.folder, self.block, self.times, self.killed = folder / "attempts", block, times, []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        seen = set()
        while not self.stop.wait(0.001) and len(self.killed) < self.times:
            for path in self.folder.glob(f"{self.block:06d}-*"):
                words = path.read_text().split() if path not in seen else []
                if words:
                    seen.add(path)
                    os.kill(int(words[0]), signal.SIGKILL)
                    self.killed.append(int(words[0]))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def numbers(done):
    return sorted(int(row["input"]) for row in rows_of(done))


def test_a_killed_worker_loses_and_repeats_nothing(many, model_file, tmp_path):
    out = tmp_path / "out"
    with Killer(out, 3, 1) as killer:
        done = mq.screen(model_file, many, out=out, processes=2, block=250, format="csv", progress=False)
    assert len(killer.killed) == 1 and killer.killed[0] != os.getpid()
    assert (done.inputs, done.predicted, done.failed) == (INPUTS, INPUTS - 1, 1)
    assert numbers(done) == list(range(INPUTS))
    assert not list((out / "attempts").iterdir())
    # The same as one process alone writes.
    mq.screen(model_file, many, out=tmp_path / "alone", block=250, format="csv", progress=False)
    assert contents(out) == contents(tmp_path / "alone")


def test_a_block_that_ends_three_workers_is_recorded_and_the_others_are_done(many, model_file, tmp_path):
    out = tmp_path / "out"
    with Killer(out, 1, 3) as killer:
        done = mq.screen(model_file, many, out=out, processes=1, block=500, format="csv", progress=False)
    assert len(set(killer.killed)) == 3
    assert (done.inputs, done.predicted, done.failed) == (INPUTS, INPUTS - 500, 500)
    rows = rows_of(done)
    assert numbers(done) == list(range(INPUTS))
    assert {row["reason"] for row in rows if 500 <= int(row["input"]) < 1000} == {
        "the process ended 3 times at the 500 inputs of this block (killed, or out of memory); smaller blocks find "
        "the input"
    }


def test_a_killed_command_goes_on(many, model_file, tmp_path):
    """The whole program gets SIGKILL, not a worker."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "molequi.cli", "screen", str(model_file), str(many), "--out", str(out)]
    words += ["--processes", "2", "--block", "100", "--format", "csv", "--no-progress"]
    path = os.pathsep.join(filter(None, sys.path))
    program = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path})
    try:
        while not (out / "done.jsonl").exists() or (out / "done.jsonl").read_text().count("\n") < 5:
            assert program.poll() is None
            time.sleep(0.01)
    finally:
        program.kill()
        program.wait()
    before = len((out / "done.jsonl").read_text().splitlines())
    assert 5 <= before < 20
    done = mq.screen(model_file, many, out=out, block=100, format="csv", progress=False)
    assert numbers(done) == list(range(INPUTS)) and (done.predicted, done.failed) == (INPUTS - 1, 1)
    assert len((out / "done.jsonl").read_text().splitlines()) == 20


def test_workers_that_cannot_start_say_why(tmp_path, frames, model_file, monkeypatch):
    mq.screen(model_file, frames, out=tmp_path / "out", block=10, progress=False)
    (tmp_path / "out" / "screened.safetensors").write_bytes(b"no model")
    with (
        WorkerProcesses(tmp_path / "out", 1, None) as workers,
        pytest.raises(CheckpointError, match="screened"),
    ):
        list(workers.run([None]))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        WorkerProcesses(tmp_path / "out", 1, "cpu") as workers,
        pytest.raises(ConfigError, match="a worker process cannot start: it ended without a message"),
    ):
        list(workers.run([None]))


def test_an_error_of_a_worker_stops_the_screening(many, model_file, tmp_path, monkeypatch):
    """A file that changes in between is no fault of single inputs."""
    own = tmp_path / "own.xyz"
    own.write_bytes(many.read_bytes())
    start = WorkerProcesses.__enter__

    def changing(self):
        own.write_bytes(many.read_bytes().replace(b"O", b"N"))
        return start(self)

    monkeypatch.setattr(WorkerProcesses, "__enter__", changing)
    with pytest.raises(mq.errors.DataError, match="changed since the screening began"):
        mq.screen(model_file, own, out=tmp_path / "out", processes=2, progress=False)


@pytest.mark.filterwarnings("default")  # Ray warns of its own code, and leaves files open
def test_killed_actors_of_ray_lose_and_repeat_nothing(many, model_file, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default: beside other tests it would take minutes
    ray = pytest.importorskip("ray", reason="Ray (the extra ray) is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow (the extra ray) is not installed")
    out = tmp_path / "out"
    options = {"block": 250, "format": "csv", "progress": False}
    handler = signal.getsignal(signal.SIGTERM)
    with Killer(out, 3, 1) as killer, Killer(out, 5, 3) as poison:
        done = mq.screen(model_file, many, out=out, ray="local", processes=2, **options)
    assert not ray.is_initialized() and signal.getsignal(signal.SIGTERM) == handler
    assert len(killer.killed) == 1 and len(set(poison.killed)) == 3
    assert numbers(done) == list(range(INPUTS))
    assert (done.inputs, done.predicted, done.failed) == (INPUTS, INPUTS - 251, 251)
    mq.screen(model_file, many, out=tmp_path / "alone", **options)
    found, wanted = contents(out), contents(tmp_path / "alone")
    different = sorted(name for name in wanted if found[name] != wanted[name])
    assert found.keys() == wanted.keys() and different == ["000005.csv", "000005.xyz"]


@pytest.mark.filterwarnings("default")
def test_the_cluster_of_the_program_is_used_and_stays(frames, model_file, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray = pytest.importorskip("ray", reason="Ray (the extra ray) is not installed")
    with keep_handlers():
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        try:
            done = mq.screen(model_file, frames, out=tmp_path / "out", ray="auto", block=8, progress=False)
            assert (done.inputs, done.predicted, len(done.parts)) == (23, 23, 3) and ray.is_initialized()
        finally:
            ray.shutdown()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("said", ["Could not find any running Ray instance.\nPlease …", ""])
def test_an_address_without_a_cluster_is_refused(frames, model_file, tmp_path, monkeypatch, said):
    ray = pytest.importorskip("ray", reason="Ray (the extra ray) is not installed")

    handler = signal.getsignal(signal.SIGTERM)

    def init(address, **options):
        assert address == "auto"
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # as Ray does
        raise ConnectionError(said)

    monkeypatch.setattr(ray, "init", init)
    first = said.partition("\n")[0] or "ConnectionError"
    wanted = rf"(?s)no cluster answers there \({first}\).*ray start --head.*ray='local'"
    with pytest.raises(mq.errors.ConfigError, match=wanted):
        mq.screen(model_file, frames, out=tmp_path / "out", ray="auto", progress=False)
    assert signal.getsignal(signal.SIGTERM) == handler
