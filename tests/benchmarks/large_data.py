"""A store of very many structures: time to prepare it, memory, and training steps beside structures in memory.

    python tests/benchmarks/large_data.py [--structures 2000000] [--minutes 1] [--folder build/large] [--only lint]
    python tests/benchmarks/large_data.py --inference [--folder build/large]

Structures are copies of ethanol with random displacements, in extended XYZ; energy and forces are those of springs. It is written once, prepared with one process
(a twentieth of it) and with two (all), and trained on for some minutes: from the store, and from 20,000 structures in memory, in turn. Each part is a process
of its own; memory is the largest resident set, of which pages of mapped files can be given back, and the part that is not of files.

With --inference, `molequi evaluate`, `molequi predict` and `mq.predict` are measured on stores of 20,000 and 100,000 structures, with and without stored
neighbor lists.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np

MEMORY = 20_000


def write(path: Path, count: int) -> None:
    """Extended XYZ, in pieces."""
    from ase.io import read

    import molequi as mq

    first = read(mq.shipped("ethanol_300K.xyz"), 0)
    random = np.random.default_rng(0)
    head = '9\nProperties=species:S:1:pos:R:3:forces:R:3 energy=%.6f pbc="F F F"\n'
    row = "".join(f"{symbol} %.6f %.6f %.6f %.6f %.6f %.6f\n" for symbol in first.get_chemical_symbols())
    with open(path, "w", encoding="ascii") as file:
        for begin in range(0, count, 1000):
            moved = random.normal(size=(min(1000, count - begin), 9, 3)) * 0.05
            values = np.concatenate([first.positions + moved, -20 * moved], 2).reshape(len(moved), -1)
            energies = -300 + 10 * (moved**2).sum((1, 2))
            file.write("".join(head % e + row % tuple(v) for e, v in zip(energies, values)))


def prepare(source: str, out: str, processes: str) -> dict[str, float]:
    import molequi as mq

    begin = time.perf_counter()
    data = mq.prepare(source, out, cutoff=5.0, processes=int(processes), progress=False)
    seconds = time.perf_counter() - begin
    return {"structures": len(data), "seconds": seconds, "per_second": len(data) / seconds}


def train(source: str, minutes: str) -> dict[str, float]:
    import torch

    import molequi as mq

    torch.set_num_threads(1)
    begin = time.perf_counter()
    data = mq.load_dataset(source)
    opened = time.perf_counter() - begin
    data = data[:MEMORY] if source.endswith(".xyz") else data
    parts = data.split({"train": len(data) - 1000, "valid": 1000})
    model = mq.Model(
        mq.PaiNN(elements=["H", "C", "O"], channels=32, layers=2, cutoff=5.0), ["energy", "forces"]
    )
    steps: list[float] = []

    class Watch(mq.Hook):
        def before_step(self, run: object) -> None:
            steps.append(time.perf_counter())
            if steps[-1] - steps[0] > 60 * float(minutes):
                raise EnoughSteps

    begin = time.perf_counter()
    # An epoch and the errors of two million structures are not waited for.
    with contextlib.suppress(EnoughSteps):
        mq.fit(
            model,
            **parts,
            batch_size=32,
            epochs=1000,
            terms=[Watch()],
            compute={"accelerate": False},
            logging={"progress": False},
            normalization={"reference_energies": {"H": -13.0, "C": -38.0, "O": -75.0}},
        )
    used = np.diff(steps)
    return {
        "open": opened,
        "to_first_step": steps[0] - begin,
        "step_ms": 1000 * float(np.median(used)),
        "steps": len(steps),
    }


def lint(source: str) -> dict[str, float]:
    import molequi as mq

    begin = time.perf_counter()
    report = mq.lint(source, costs=False)
    if not report.passed:
        raise SystemExit(str(report))
    return {"structures": report.structures, "lint_seconds": time.perf_counter() - begin}


def infer(command: str, source: str, out: str) -> dict[str, float]:
    """`molequi evaluate`, `molequi predict`, or the function `predict`, with a model of random weights."""
    import torch

    import molequi as mq
    from molequi.cli import main

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = mq.Model(
        mq.PaiNN(elements=["H", "C", "O"], channels=16, layers=1, cutoff=5.0), ["energy", "forces"]
    )
    file = f"{out}.safetensors"
    mq.save(model, file)
    begin = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        if command == "function":
            found = mq.predict(file, source, progress=False)
            assert len(found[0]["forces"]) == 9
        else:
            words = [source, f"{out}.xyz", "--overwrite"] if command == "predict" else [source]
            assert main([command, file, *words]) == 0
    return {"seconds": time.perf_counter() - begin}


class OwnMemory(Thread):
    """The largest resident memory that is not of files, in GB; the system counts its present size alone."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, resident("RssAnon"))
            time.sleep(0.02)


def resident(kind: str) -> float:
    """Resident memory of this process in GB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(kind)) / 1e6


class EnoughSteps(Exception):
    """The minutes are over."""


def measured(*words: object) -> dict[str, float]:
    """What a part prints, with its largest memory in GB."""
    done = subprocess.run(
        [sys.executable, __file__, "--part", *map(str, words)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def inference(folder: Path) -> None:
    """Memory of predictions and errors, for stores of two sizes."""
    import molequi as mq

    folder.mkdir(parents=True, exist_ok=True)
    for count in (20_000, 100_000):
        source = folder / f"{count}.xyz"
        if not source.exists():
            write(source, count)
        for lists, cutoff in (("lists", 5.0), ("no lists", None)):
            store = folder / f"{count} {lists}"
            mq.prepare(source, store, cutoff=cutoff, processes=2, progress=False)
            for command in ("evaluate", "predict", "function"):
                found = measured("infer", command, store, folder / "predicted")
                print(
                    f"{count:7} {lists:9} {command:9}", {k: round(v, 3) for k, v in found.items()}, flush=True
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--structures", type=int, default=2_000_000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path("build/large"))
    parser.add_argument("--inference", action="store_true")
    parser.add_argument("--only", help="one kind of part: prepare, lint or train")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        name, *words = given.part
        memory = OwnMemory()
        memory.start()
        found = {"prepare": prepare, "train": train, "infer": infer, "lint": lint}[name](*words)
        print(json.dumps(found | {"resident_GB": resident("VmHWM"), "own_GB": memory.peak}))
        return
    if given.inference:
        inference(given.folder)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    few, all_ = given.folder / "few.xyz", given.folder / "all.xyz"
    for path, count in ((few, max(given.structures // 20, MEMORY)), (all_, given.structures)):
        if not path.exists():
            write(path, count)
    parts = (
        ("one process", "prepare", few, given.folder / "one", 1),
        ("two processes", "prepare", few, given.folder / "two", 2),
        ("two processes, all", "prepare", all_, given.folder / "all", 2),
        ("lint", "lint", given.folder / "one"),
        ("lint, all", "lint", given.folder / "all"),
        ("memory", "train", few, given.minutes),
        ("store", "train", given.folder / "all", given.minutes),
        ("memory again", "train", few, given.minutes),
    )
    for name, *words in (part for part in parts if given.only in (None, part[1])):
        print(f"{name:20}", {key: round(value, 3) for key, value in measured(*words).items()}, flush=True)


if __name__ == "__main__":
    main()
