"""A short run of the fuzzer, and that it sees what it looks for."""

import json
import os
import random
import time
from pathlib import Path

import pytest

from molequi.errors import DataError

from . import fuzz, targets

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return targets.Inputs(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("target", targets.TARGETS)
def test_no_input_ends_raw(target, inputs):
    count = {"read": 25, "config": 10, "model": 10, "weights": 6, "command": 5}.get(target, 3)
    for number in range(count):
        end, report = fuzz.one(inputs, target, 100, number)
        assert end != "failed", f"{target} {number}: {report}"


@pytest.mark.filterwarnings("ignore")
def test_good_files_are_read(inputs, tmp_path):
    """The control: without a change nothing is refused."""
    for path in inputs.structures:
        targets.read(path, random.Random(0))


def raises(error):
    def target(path, rng):
        raise error

    return target


def sleeps(path, rng):
    time.sleep(60)


def fills(path, rng):
    kept = [bytes(1 << 28) for _ in range(64)]
    print(len(kept))


def crashes(path, rng):
    os.kill(os.getpid(), 11)


@pytest.mark.parametrize(
    ("target", "end", "words"),
    [
        (raises(DataError("no frames")), "refused", ""),
        (raises(DataError("")), "failed", "DataError"),
        (raises(KeyError("x")), "failed", "KeyError: 'x'"),
        (raises(targets.Wrong("other weights")), "failed", "other weights"),
        (fills, "failed", "MemoryError"),
        (crashes, "failed", "SIGSEGV"),
        (sleeps, "failed", "SIGKILL"),
        (lambda path, rng: None, "read", ""),
    ],
)
def test_every_kind_of_end_is_seen(target, end, words, inputs, monkeypatch):
    monkeypatch.setitem(targets.TARGETS, "read", target)
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)  # of processor time; six times as much of the clock
    monkeypatch.setattr(fuzz.resource, "setrlimit", limits(fuzz.resource.setrlimit))
    found, report = fuzz.one(inputs, "read", 0, 0)
    assert found == end and words in report


def limits(true):
    """Whole seconds of processor time, as the system wants them."""
    return lambda kind, pair: true(kind, tuple(max(2, int(v)) if 0 < v < 2 else int(v) for v in pair))


@pytest.mark.parametrize("case", sorted(CORPUS.glob("*")), ids=lambda p: p.name)
def test_inputs_that_failed_once(case, inputs, tmp_path):
    """Each folder has an input that ended raw, and in report.json its target."""
    report = json.loads((case / "report.json").read_text())
    (name,) = [p.name for p in case.iterdir() if p.name != "report.json"]
    folder = inputs.folder / f"corpus-{case.name}" / "input"
    folder.mkdir(parents=True)
    for good in ("models", "run", "model.safetensors"):
        (folder.parent / good).symlink_to(inputs.folder / good)
    path = folder / name
    path.write_bytes((case / name).read_bytes())
    assert fuzz.run(report["target"], path, random.Random(0)) in (0, 10)
