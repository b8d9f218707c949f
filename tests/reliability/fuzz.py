"""Puts damaged inputs into readers, commands, run files, model files and states: `python -m tests.reliability.fuzz --minutes 30`.

Inputs are changes of good files, drawn from a seed. Each one runs in a process of its own with a bound on its memory and its time. What
ends in another exception than one of molequi, in a signal, beyond a bound, or with a wrong result is a failure; failures with the same end
are kept once, with the seed and the number of the input, in `build/fuzz/failures`.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from .targets import EXPECTED, SHARES, TARGETS, Inputs, Wrong

ROOT = Path(__file__).resolve().parents[2]
SECONDS, MEMORY = 20, 2 << 30  # of one input: processor time, and bytes beside those of the good files
_OK, _REFUSED, _FAILED = 0, 10, 11


@dataclass
class Tally:
    """How many inputs ended how.

    Parameters
    ----------
    ends : Counter
        Numbers of inputs by target and end.
    failures : dict of str to dict
        The first input of each kind of failure.
    """

    ends: Counter = field(default_factory=Counter)
    failures: dict[str, dict] = field(default_factory=dict)


def one(inputs: Inputs, target: str, seed: int, number: int, keep: Path | None = None) -> tuple[str, str]:
    """Run one input in a process of its own.

    Returns
    -------
    end : str
        "read", "refused" or "failed".
    report : str
        The traceback of a failure.
    """
    folder = Path(tempfile.mkdtemp(prefix="input-", dir=inputs.folder))
    report = folder / "report.txt"
    child = os.fork()
    if child == 0:
        _in_child(inputs, target, seed, number, folder, report)
    status = _wait(child, 6 * SECONDS)
    text = report.read_text("utf-8", "replace") if report.exists() else ""
    if os.WIFSIGNALED(status):
        text += f"\nended by {signal.Signals(os.WTERMSIG(status)).name}"
    end = {_OK: "read", _REFUSED: "refused"}.get(os.waitstatus_to_exitcode(status), "failed")
    if end == "failed" and keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("input/*"):
            if path.is_file() and path.name != "model.safetensors":
                shutil.copy(path, keep / path.name)
    shutil.rmtree(folder, ignore_errors=True)
    return end, text


def _in_child(inputs: Inputs, target: str, seed: int, number: int, folder: Path, report: Path) -> None:
    """Draw the input and run it; never returns."""
    code = _FAILED
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()  # pytest's, which would print the stack of a crash that the parent reports
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        rng = random.Random(f"{seed} {target} {number}")
        place = folder / "input"
        place.mkdir()
        path = inputs.draw(target, place, rng)
        # Targets find the good files one folder above that of the input.
        for name in ("models", "run", "model.safetensors"):
            (folder / name).symlink_to(inputs.folder / name)
        os.chdir(place)
        code = run(target, path, rng, report)
    except BaseException:
        with contextlib.suppress(BaseException):
            report.write_text(traceback.format_exc(), "utf-8")
    os._exit(code)


def run(target: str, path: Path, rng: random.Random, report: Path | None = None) -> int:
    """Run one input in this process; the status says how it ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            TARGETS[target](path, rng)
        except EXPECTED as error:
            if isinstance(error, Wrong) or not str(error).strip():
                raise
            return _REFUSED
        except BaseException:
            if report is None:
                raise
            report.write_text(traceback.format_exc(), "utf-8")
            return _FAILED
    return _OK


def _wait(child: int, seconds: float) -> int:
    """The status of a child, which is killed when its time is over."""
    end = time.monotonic() + seconds
    pause = 0.001
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)


def kind_of(target: str, text: str) -> str:
    """A short name of a failure: where its traceback ends."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = [line.split(", in ")[0] for line in lines if line.startswith("File ")]
    ours = [place for place in places if "/molequi/" in place]
    last = lines[-1].split(":")[0] if lines else "no report"
    return f"{target}-{hashlib.sha256(repr((last, ours[-1:], places[-1:])).encode()).hexdigest()[:10]}"


def fuzz(
    minutes: float, seed: int, out: Path, only: list[str] | None = None, count: int | None = None
) -> Tally:
    """Run inputs for some minutes, or a number of them.

    Returns
    -------
    Tally
        What happened; failures are in `out`.
    """
    tally = Tally()
    names = only or list(SHARES)
    choose = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="molequi-fuzz-") as folder:
        inputs = Inputs(Path(folder))
        begun = time.monotonic()
        number = 0
        while (time.monotonic() - begun < 60 * minutes) if count is None else number < count:
            (target,) = choose.choices(names, [SHARES[n] for n in names])
            end, text = one(inputs, target, seed, number)
            tally.ends[target, end] += 1
            if end == "failed":
                kind = kind_of(target, text)
                if kind not in tally.failures:
                    one(inputs, target, seed, number, keep=out / kind)
                    tally.failures[kind] = {
                        "target": target,
                        "seed": seed,
                        "number": number,
                        "end": text[-3000:],
                    }
                    (out / kind).mkdir(parents=True, exist_ok=True)
                    (out / kind / "report.json").write_text(
                        json.dumps(tally.failures[kind], indent=1), "utf-8"
                    )
                    print(
                        f"{kind}: input {number}: {text.strip().splitlines()[-1][:160] if text.strip() else 'no report'}",
                        flush=True,
                    )
            number += 1
            if number % 500 == 0:
                print(
                    f"{number} inputs, {len(tally.failures)} kinds of failure, {time.monotonic() - begun:.0f} s",
                    flush=True,
                )
    return tally


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--count", type=int, help="number of inputs, in place of minutes")
    parser.add_argument("--number", type=int, help="show the end of one input")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz" / "failures")
    given = parser.parse_args(arguments)
    if given.number is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(
                *one(Inputs(Path(folder)), given.target[0], given.seed, given.number, keep=given.out / "one"),
                sep="\n",
            )
        return 0
    tally = fuzz(given.minutes, given.seed, given.out, given.target, given.count)
    for (target, end), number in sorted(tally.ends.items()):
        print(f"{target:10} {end:8} {number}")
    print(f"{sum(tally.ends.values())} inputs, {len(tally.failures)} kinds of failure")
    return bool(tally.failures)


if __name__ == "__main__":
    sys.exit(main())
