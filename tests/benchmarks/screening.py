"""Screening of many structures while a worker is killed: is each there exactly once, and how fast is it beside one process?

    python tests/benchmarks/screening.py FOLDER [--inputs 100000 --block 1000 --processes 2 --without ray]

FOLDER gets perturbed copies of the shipped frames of ethanol, and the results of: this process alone; worker processes; actors of Ray on a
cluster of this machine; this process alone again. When half of the blocks are done, one worker gets SIGKILL. Each table of results has to have
each number exactly once, and all have to be the same. A speed is that of the whole call, with the start of processes; the ratio is to the first row.
"""

import argparse
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import torch
from ase.io import read

import molequi as mq
from molequi.inference.table_parts import Cell, read_part


def structures(path: Path, count: int) -> None:
    """Frames of ethanol with random displacements of 0.03 Å."""
    random = np.random.default_rng(0)
    frames = read(mq.shipped("ethanol_300K.xyz"), ":100")
    symbols = frames[0].get_chemical_symbols()
    with open(path, "w") as file:
        for k in range(count):
            moved = frames[k % 100].positions + random.normal(0, 0.03, (len(symbols), 3))
            rows = (f"{symbol} {x:.6f} {y:.6f} {z:.6f}\n" for symbol, (x, y, z) in zip(symbols, moved))
            file.write(f"{len(symbols)}\nProperties=species:S:1:pos:R:3\n" + "".join(rows))


class Killer(threading.Thread):
    """Kills one worker when half of the blocks are done."""

    def __init__(self, folder: Path, blocks: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.blocks, self.killed = folder, blocks, 0

    def run(self) -> None:
        done = self.folder / "done.jsonl"
        while not done.exists() or done.read_text().count("\n") < self.blocks // 2:
            time.sleep(0.05)
        while not self.killed:
            for path in sorted((self.folder / "attempts").glob("*")):
                try:
                    pid = int(path.read_text().split()[0])
                    os.kill(pid, signal.SIGKILL)
                except (OSError, IndexError):  # it was done in between
                    continue
                self.killed = pid
                break


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--inputs", type=int, default=100_000)
    arguments.add_argument("--block", type=int, default=1000)
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--without", nargs="*", default=[])
    given = arguments.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / "inputs.xyz"
    structures(path, given.inputs)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = mq.Model(mq.EGNN(elements=["H", "C", "O"], channels=16, layers=2, cutoff=5.0), ["energy"])
    file = mq.save(model, given.folder / "model.safetensors")
    ways = {"alone": {}, "processes": {"processes": given.processes}}
    ways["ray"] = {"processes": given.processes, "ray": "local"}
    ways["again"] = {}  # this process alone, to see what else the machine did
    column = [Cell("input", "count"), Cell("energy (eV)", "number")]
    seconds, tables = {}, {}
    for name, options in ways.items():
        if name in given.without:
            continue
        killer = Killer(given.folder / name, given.inputs // given.block)
        if options:
            killer.start()
        start = time.perf_counter()
        done = mq.screen(
            file, path, out=given.folder / name, block=given.block, resume="restart", device="cpu", **options
        )
        seconds[name] = time.perf_counter() - start
        rows = [row for part in done.parts for row in read_part(part, column)]
        tables[name] = np.array([(row["input"], row["energy (eV)"]) for row in rows])
        once = np.array_equal(tables[name][:, 0], np.arange(given.inputs))
        assert once and done.predicted == given.inputs, f"{name}: {done}"
        difference = np.abs(tables[name] - tables["alone"]).max() if "alone" in tables else np.nan
        ratio = seconds.get("alone", np.nan) / seconds[name]
        killed = f"process {killer.killed} killed, " if options else ""
        print(
            f"{name:10s} {done.inputs} inputs, each once; {killed}{seconds[name]:.1f} s, "
            f"{given.inputs / seconds[name]:.0f} a second, ratio {ratio:.2f}, difference {difference:.1e} eV",
            flush=True,
        )


if __name__ == "__main__":
    main()
