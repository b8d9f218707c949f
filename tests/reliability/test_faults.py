"""Every row of the list of faults has a test; here are the table of rows, its check, and the tests of rows that had none."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import molequi as mq
from molequi.errors import DataError

from ..morse_kit import morse, tiny

TESTS = Path(__file__).resolve().parents[1]
SIZES = {"A": 44, "B": 24, "C": 24, "D": 14}


def table() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads((Path(__file__).parent / "faults.toml").read_text("utf-8"))


def functions(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


def test_every_row_has_tests_that_exist():
    found = table()
    assert {part: list(rows) for part, rows in found.items()} == {
        part: [f"{part}{k}" for k in range(1, size + 1)] for part, size in SIZES.items()
    }
    known: dict[str, set[str]] = {}
    for rows in found.values():
        for row, tests in rows.items():
            assert tests, f"{row} has no test"
            for test in tests:
                path, _, name = test.partition("::")
                names = known.setdefault(path, functions(TESTS / path))
                assert name in names, f"{row}: {path} has no {name}"


def test_every_numbered_test_is_in_the_table():
    """A test whose name has a row is listed for it, so that the table stays whole."""
    found = table()
    for path in TESTS.rglob("test_*.py"):
        for name in functions(path):
            for part, number in (
                re.findall(r"(?<=_)([a-dA-D])0?(\d+)(?=_)", name) if name.startswith("test_") else ()
            ):
                row, place = f"{part.upper()}{number}", f"{path.relative_to(TESTS)}::{name}"
                assert place in found[part.upper()].get(row, []), f"{place} is not listed for {row}"


def test_a31_a_selection_of_a_long_file_takes_little_memory(tmp_path):
    """A file is read line by line: the last frame of 4 MB needs a fraction of them. All frames have to fit into memory."""
    head = 'Properties=species:S:1:pos:R:3 energy=1.0 pbc="F F F"'
    frame = f"20\n{head}\n" + "".join(f"H {k}.123456 {k}.654321 0.5\n" for k in range(20))
    path = tmp_path / "long.xyz"
    path.write_text(frame * (4_000_000 // len(frame)))
    mq.read_extxyz(path, index=0)  # what is imported once
    tracemalloc.start()
    try:
        assert len(mq.read_extxyz(path, index=-1)) == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 2


KILLED = """
import multiprocessing, os, signal, sys
import molequi as mq
from molequi.training.trainer import Training

def main():
    original = Training.step
    def killing(self, *arguments):
        original(self, *arguments)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
    Training.step = killing
    graphs = [
        mq.Graph.single([[0, 0, 0], [0, 0, 0.7 + 0.01 * k]], [1, 1], targets={"energy": [0.1 * k]}) for k in range(60)
    ]
    model = mq.Model(mq.EGNN(elements=["H"], cutoff=4.0, channels=4, layers=1), ["energy"])
    try:
        mq.fit(
            model, mq.Dataset(graphs[:50]), mq.Dataset(graphs[50:]), epochs=20, batch_size=1, compute={"workers": 1},
            logging={"progress": False}, out="run",
        )
    except mq.errors.TrainingError as error:
        print(error, flush=True)
        os._exit(3)

if __name__ == "__main__":
    main()
"""


def test_b20_a_worker_that_is_killed_ends_the_training_with_a_message(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    root = str(Path(mq.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "killed.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3, done.stderr
    assert re.match(
        r"step \d+: a process that makes batches has ended .*workers=0.*the state in run is whole",
        done.stdout,
    )


def test_c15_many_atoms_in_batches_and_what_memory_cannot_hold():
    """Batches are limited by edges and give the same numbers; a structure whose edges no memory holds is refused before."""
    data = morse(12)
    together, single = mq.predict(tiny(), data), mq.predict(tiny(), data, batch_edges=1)
    for a, b in zip(together, single):
        np.testing.assert_allclose(a["forces"], b["forces"], rtol=0, atol=1e-5)
    z, pos = np.full(50, 29), np.random.default_rng(0).uniform(0, 1.0, (50, 3))
    with pytest.raises(DataError, match="too many for memory"):
        mq.connect(mq.Graph.single(pos, z, cell=np.eye(3), pbc=[True] * 3), 1000.0)
