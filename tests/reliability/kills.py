"""Kills a training again and again, and damages its files; counts what was lost.

A training is a process that is started in a folder until it is over. Half of the kills (SIGKILL) come at a random moment, half while a file
is written: before or after it is flushed or gets its name, with the first half of its bytes alone on the disk.
"""

import json
import os
import random
import shutil
import signal
import stat
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import molequi as mq
from molequi.errors import CheckpointError, TrainingWarning
from molequi.util.state_files import StateFiles

from ..morse_kit import morse, tiny

OPTIONS = {
    "epochs": 4,
    "batch_size": 2,
    "lr": 0.05,
    "seed": 4,
    "schedule": {"name": "plateau", "patience": 0, "warmup": 0.5},
    "logging": {"progress": False, "save_minutes": 0},
}


@dataclass
class Losses:
    """What kills and damage did.

    Parameters
    ----------
    kills, in_writes : int
        Number of kills, and of those while a file was written.
    trainings : int
        Trainings that were killed and came to their end.
    unreadable : int
        State or model files that could not be read after a kill.
    back : int
        Kills after which the newest state was older than one that was saved before.
    differing : int
        Trainings whose weights or history differ from the uninterrupted one in any bit.
    left : int
        Temporary files that are left at the end.
    """

    kills: int = 0
    in_writes: int = 0
    trainings: int = 0
    unreadable: int = 0
    back: int = 0
    differing: int = 0
    left: int = 0

    def clean(self) -> bool:
        """Whether nothing was lost."""
        return not (self.unreadable or self.back or self.differing or self.left)


def train(folder: Path) -> None:
    """The training."""
    data = morse(24)
    mq.fit(tiny(), data[:16], data[16:], out=folder, **OPTIONS)


def kills(count: int, seed: int, folder: Path) -> Losses:
    """Kill trainings `count` times, each one after another until it is over."""
    rng, lost = random.Random(seed), Losses()
    begun = time.monotonic()
    if run_child(folder / "whole", None)[1]:
        raise AssertionError("the training that is left alone fails")
    usual = time.monotonic() - begun
    wanted = _result(folder / "whole")
    while lost.kills < count:
        place = folder / f"training-{lost.trainings}"
        steps, over = -1, False
        while not over:
            in_write = lost.kills % 2 == 1
            # The first kills of a training come early, so that it goes on from several states.
            when = rng.randrange(1, 24) if in_write else rng.uniform(0.02, usual)
            last = lost.kills >= count  # then the training is left alone
            killed, status = run_child(place, None if last else when, in_write)
            over = not killed
            if over and status:
                raise AssertionError(place.with_name(f"{place.name}.txt").read_text("utf-8"))
            lost.kills += killed
            lost.in_writes += killed and in_write
            steps = look(place, steps, lost)
        lost.trainings += 1
        lost.differing += not _same(wanted, _result(place))
        lost.left += len(list(place.glob(".*.tmp")))
        shutil.rmtree(place)
    return lost


def run_child(folder: Path, when: float | int | None, in_write: bool = False) -> tuple[bool, int]:
    """Run the training in a process; returns whether it was killed, and its status."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(ours)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
            warnings.simplefilter("error", TrainingWarning)  # a state that cannot be read
            if in_write:
                _stop_in_write(int(when or 1), theirs)
            train(folder)
            code = 0
        except BaseException:
            report = folder.with_name(f"{folder.name}.txt")
            report.write_text(traceback.format_exc(), "utf-8")
        finally:
            os._exit(code)
    os.close(theirs)
    if in_write:
        reached = os.read(ours, 1) == b"."  # or the child ended
    else:
        reached = when is not None and not _ends_within(child, when)
    os.close(ours)
    if reached:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status)


def _ends_within(child: int, seconds: float) -> bool:
    """Whether a process ends within some seconds; its status stays to be read."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.002)
    return False


def _stop_in_write(places: int, pipe: int) -> None:
    """Tell the parent at one of the next places of writing, and wait there to be killed."""
    left = places

    def place(number: int | None = None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            if number is not None and stat.S_ISREG(
                os.fstat(number).st_mode
            ):  # half of it has reached the disk
                os.ftruncate(number, os.fstat(number).st_size // 2)
            os.write(pipe, b".")
            signal.pause()

    true_fsync, true_replace = os.fsync, os.replace

    def fsync(number: int) -> None:
        place(number)
        true_fsync(number)
        place()

    def replace(old: str, new: str) -> None:
        place()
        true_replace(old, new)
        place()

    os.fsync, os.replace = fsync, replace  # type: ignore[assignment]


def look(folder: Path, steps: int, lost: Losses) -> int:
    """Read every file after a kill; returns the steps of the newest state."""
    states = StateFiles(folder)
    found = -1
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingWarning)
        try:
            state = states.load() if folder.exists() else None
            found = -1 if state is None else state["place"]["step"]
            if (folder / "model.safetensors").exists():
                mq.load(folder / "model.safetensors")
        except (CheckpointError, TrainingWarning):
            lost.unreadable += 1
    lost.back += found < steps
    return max(found, steps)


def _result(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights, and the lines of the history without the clock."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    clock = rows[0].index("seconds")
    return mq.load(folder / "model.safetensors").state_dict(), [
        ",".join(r[:clock] + r[clock + 1 :]) for r in rows
    ]


def _same(a: tuple[dict[str, torch.Tensor], list[str]], b: tuple[dict[str, torch.Tensor], list[str]]) -> bool:
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][n], b[0][n]) for n in a[0])


@dataclass
class Damage:
    """What damaged files did.

    Parameters
    ----------
    files, refused : int
        Damaged files, and how many were refused or left out.
    changed : int
        Files that were loaded with changed content.
    raw : int
        Files whose reading ended in an error that is none of molequi.
    """

    files: int = 0
    refused: int = 0
    changed: int = 0
    raw: int = 0


def damage(path: Path, count: int, seed: int, load: Callable[[Path], object]) -> Damage:
    """Cut a file, and flip one of its bits, at `count` random places.

    Parameters
    ----------
    path : Path
        A good file; afterwards it is as before.
    count, seed : int
        Number of damaged files, and the seed of the places.
    load : callable
        Returns the content of a file for comparison, or raises an error of molequi or a warning that it is damaged.
    """
    rng, good, out = random.Random(seed), path.read_bytes(), Damage()
    wanted = load(path)
    for k in range(count):
        at = rng.randrange(len(good))
        broken = bytearray(good[:at] if k % 2 else good)
        if not k % 2:
            broken[at] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        out.files += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                out.changed += load(path) != wanted
        except (mq.errors.MolequiError, mq.errors.DataWarning, TrainingWarning):
            out.refused += 1
        except Exception:
            out.raw += 1
    path.write_bytes(good)
    return out


def weights_of(path: Path) -> str:
    """Everything that a model file holds, as text to compare."""
    model = mq.load(path)
    return _text(model.state_dict()) + json.dumps(model.metadata, sort_keys=True)


def state_of(path: Path) -> str:
    """Everything that the states beside a file hold; a warning says that one of them is damaged."""
    state = StateFiles(path.parent).load()
    return _text(state or {})


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{k!r}:{_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}{value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()}"
    return repr(value)


def neighbors_of(path: Path) -> str:
    """The neighbor lists that a kept file gives to the structures that it was made of; a warning if they are made again."""
    return _text([(g.edge_index, g.shift) for g in morse(4).connected(3.0, path.parent)])


def files(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """A model file, a state file and kept neighbor lists, each with the function that reads it."""
    data = morse(6)
    mq.fit(
        tiny(),
        data[:4],
        data[4:],
        epochs=1,
        batch_size=2,
        seed=0,
        out=folder / "run",
        logging={"progress": False},
    )
    morse(4).connected(3.0, folder / "cache")
    (state,) = [p for p in StateFiles(folder / "run").paths if p.exists()]
    (cache,) = (folder / "cache").glob("*.safetensors")
    return {
        "model": (folder / "run" / "model.safetensors", weights_of),
        "state": (state, state_of),
        "neighbors": (cache, neighbors_of),
    }
