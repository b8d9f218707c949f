"""The program gpu.py without a GPU: its time, the rows it keeps, and what it says of codes that are absent or fail."""

import argparse
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

FAKE = """
import time, torch
from worker import Peer
def versions():
    return {"fake": "1"}
class Fake(Peer):
    def __init__(self, case):
        time.sleep(case["size"].get("sleep", 0))
        self.model, self.wrong = torch.nn.Linear(1, 1, bias=False), case["size"].get("wrong", 1.0)
        torch.nn.init.constant_(self.model.weight, case["size"].get("strength", 1.0))
    def graph(self, structures, k, moved=0.0):
        return torch.tensor(structures.pos[k] + moved)
    def collate(self, graphs):
        return torch.stack(graphs)
    def outputs(self, batch, training):  # springs to the origin
        k = self.model.weight[0, 0]
        return k * batch.square().sum((1, 2)) / 2, (-self.wrong * k * batch).reshape(-1, 3)
build = Fake
"""


@pytest.fixture(scope="module")
def gpu():
    """The program, which is not on the path."""
    folder = str(Path(__file__).resolve().parent)
    sys.path.insert(0, folder)
    yield importlib.import_module("gpu")
    sys.path.remove(folder)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeWorker:
    """Answers from a table of atoms; every measurement takes ten seconds."""

    def __init__(self, clock, log, answers):
        self.clock, self.log, self.answers, self.alive, self.asked = clock, log, answers, True, []
        log.write_text("first line\nlast words\n")

    def ask(self, do, limit, **request):
        if do == "versions":
            return {"fake": "1"}
        self.clock.now += 10
        atoms = int(Path(request["structures"]).stem)
        self.asked.append((atoms, limit, request))
        answer = self.answers.get(atoms, {"ms": 2.0, "atoms": atoms, "memory": 0.5, "start": 1.0})
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def close(self):
        self.alive = False


@pytest.fixture
def bench(gpu, tmp_path):
    """A function that makes a Bench; those of a test share a file of rows and a clock."""
    clock = Clock()

    def make(minutes, answers=None, device="CPU", where=None):
        begun = []
        options = argparse.Namespace(
            device="cpu", quick=False, limit=60.0, path={}, scratch=tmp_path / "structures"
        )

        def begin(name):
            begun.append(FakeWorker(clock, tmp_path / "worker.log", answers or {}))
            return begun[-1]

        rows = gpu.Rows(tmp_path / "gpu.jsonl", {"device": device, "quick": False})
        made = gpu.Bench(options, rows, gpu.Budget(minutes, clock), begin)
        made.begun, made.structures = begun, lambda what: f"{what}.npz"
        return made

    return make


def test_a_budget_gives_what_is_left(gpu):
    clock = Clock()
    budget = gpu.Budget(2, clock)
    assert budget.limit(60, needed=15) == 60
    clock.now += 100
    assert budget.limit(60, needed=15) == 20
    assert budget.limit(60, needed=21) is None
    clock.now += 30
    assert budget.limit(60, needed=0) is None


def test_what_was_measured_is_not_measured_again(gpu, bench):
    jobs = [gpu.Job("GauntACE", "infer", n) for n in (100, 500, 2000)]
    first = bench(0.4)  # 24 s: the third has less than the five seconds it needs
    first.run(jobs)
    assert [atoms for atoms, *_ in first.begun[0].asked] == [100, 500]
    assert first.rows.rows[jobs[2]]["skipped"] == "not measured: no time left"
    second = bench(10)
    second.run(jobs)
    assert [atoms for atoms, *_ in second.begun[0].asked] == [2000]
    assert all(second.rows.known(job, 120) for job in jobs)
    third = bench(10)
    third.run(jobs)
    assert third.begun == []
    other = bench(10, device="another GPU")
    other.run(jobs)
    assert len(other.begun[0].asked) == 3


def test_one_process_serves_a_code_and_the_time_left_limits_it(gpu, bench):
    made = bench(1.25)
    made.run(
        [gpu.Job("GauntACE", "infer", 100), gpu.Job("GauntACE", "infer", 500), gpu.Job("MACE", "infer", 100)]
    )
    assert [len(worker.asked) for worker in made.begun] == [2, 1]
    assert not any(worker.alive for worker in made.begun)
    assert [limit for worker in made.begun for _, limit, _ in worker.asked] == [60, 60, 55]


def test_failures_are_rows_and_larger_structures_are_not_tried(gpu, bench):
    jobs = [gpu.Job("GauntACE", "infer", n) for n in (100, 500, 2000)] + [gpu.Job("GauntACE", "train", 2000)]
    made = bench(10, {500: gpu.client.PeerError("OutOfMemoryError: CUDA out of memory")})
    made.run(jobs)
    assert made.rows.rows[jobs[1]]["error"] == "OutOfMemoryError: CUDA out of memory"
    assert made.rows.rows[jobs[2]]["skipped"] == "not measured: it failed for 500 atoms"
    assert made.rows.rows[jobs[3]]["ms"] == 2.0
    assert "last words" in made.rows.path.with_suffix(".log").read_text()
    again = bench(10)
    again.run(jobs)
    assert again.begun == [] and again.rows.rows[jobs[2]]["skipped"].endswith("500 atoms")


def test_no_answer_before_the_end_of_the_time_is_no_failure(gpu, bench):
    job, error = gpu.Job("GauntACE", "infer", 100), gpu.client.PeerError("no answer within 30 s")
    made = bench(0.5, {100: error})
    made.run([job])
    assert made.rows.rows[job]["skipped"] == "not measured: no time left (ended after 30 s)"
    made = bench(10, {100: error})
    made.run([job])
    assert made.rows.rows[job]["error"] == "no answer within 30 s"
    again = bench(10)
    again.run([job])
    assert again.begun == []
    again.options.limit = 90.0
    again.run([job])
    assert again.rows.rows[job]["ms"] == 2.0


def test_a_compiled_code_is_given_what_its_plain_self_computed(gpu, bench):
    check = {"energies": [1.0, 2.0], "forces": [0.5]}
    made = bench(10, {100: {"ms": 1.0, "check": check}})
    made.run([gpu.Job("GauntACE", "infer", 100), gpu.Job("GauntACE compiled", "infer", 100)])
    assert made.begun[0].asked[0][2]["expected"] is None
    assert made.begun[1].asked[0][2]["expected"] == check
    assert "check" not in made.rows.rows[gpu.Job("GauntACE compiled", "infer", 100)]


def test_absent_packages_are_named(gpu, tmp_path, bench, monkeypatch):
    # Names that no package has, so that it does not matter what is installed.
    names = ("no_such_mace", "no_such_kernels", "no_such_operations")
    code = replace(gpu.CODES["mace-torch cuEquivariance"], needs=names)
    folder = tmp_path / "site"
    for name in names[:2]:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    found = gpu.absent(code, "cuda", {"mace-torch": str(folder)})
    assert found == "not installed: no_such_operations"
    (folder / "no_such_operations.py").touch()
    assert gpu.absent(code, "cuda", {"mace-torch": str(folder)}) is None
    assert gpu.absent(code, "cpu", {"mace-torch": str(folder)}) == "cuEquivariance needs a GPU"
    assert gpu.absent(gpu.CODES["GauntACE compiled"], "cuda", {}) is None
    monkeypatch.setitem(gpu.CODES, "nequip", replace(gpu.CODES["nequip"], needs=("no_such_nequip",)))
    job, made = gpu.Job("nequip", "infer", 100), bench(10)
    made.run([job])
    assert made.rows.rows[job]["skipped"] == "not installed: no_such_nequip" and made.begun == []


def test_a_wrong_path_is_an_error(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.arguments(["--path", "mace=/nowhere"])
    assert "--path mace=/nowhere: wanted mace-torch=FOLDER" in capsys.readouterr().err


def test_every_code_is_planned_once(gpu):
    jobs = gpu.plan(quick=False)
    assert len(set(jobs)) == len(jobs) and {job.code for job in jobs} == set(gpu.CODES)
    assert jobs[0] == gpu.Job("GauntACE", "infer", 100)
    quick = gpu.plan(quick=True)
    assert {job.code for job in quick if gpu.CODES[job.code].accelerated} == {"GauntACE compiled"}
    assert {job.measure for job in quick} == {job.measure for job in jobs}
    for code in gpu.CODES.values():
        assert code.plain is None or gpu.CODES[code.plain].plain is None


def test_tables(gpu, tmp_path, capsys):
    tables = importlib.import_module("peers.device_rows").tables
    rows = gpu.Rows(tmp_path / "gpu.jsonl", {"device": "NVIDIA X", "quick": False})
    for atoms, ms in ((100, 1.0), (500, 1.0), (2000, 8.0)):
        row = {"ms": ms, "atoms": atoms, "memory": 1.25, "start": 2.0, "versions": {"torch": "9"}}
        rows.add(gpu.Job("GauntACE", "infer", atoms), row)
    error = {"energy_error": 0.5, "forces_error": 3.0, "forces_relative": 1e-3}
    rotation = {"rotation": {"energy": 1e-5, "forces": 2e-4}}
    rows.add(gpu.Job("GauntACE", "precision", 500, "tf32"), row | error | rotation)
    rows.add(gpu.Job("GauntACE", "md", 500), {"atoms": 500, "ns_per_day": 4.5, "steps": 50, "memory": 1.0})
    for atoms in (100, 500):
        rows.add(gpu.Job("nequip", "infer", atoms), {"skipped": "not installed: nequip"})
    text = tables(rows.rows)
    line = next(line for line in text.splitlines() if line.startswith("| GauntACE"))
    assert "1 / 10 / 1.2" in line and "1 / 2 / 1.2" in line and "8 / 4 / 1.2" in line
    assert line.split("|")[5].strip() == "2.00"  # 100 atoms do not count
    assert "2.0e-04" in text and "4.5" in text and text.startswith("# NVIDIA X")
    assert "- nequip: not installed: nequip (infer 100/500)" in text
    other = gpu.Rows(rows.path, {"device": "CPU", "quick": True})
    other.add(gpu.Job("MACE", "md", 30), {"error": "too hot"})
    gpu.show(rows.path, gpu.kinds(rows.path))
    shown = capsys.readouterr().out.rstrip("\n")
    assert shown.startswith(text) and "# CPU" in shown and "- MACE: too hot (md 30)" in shown
    assert rows.path.with_suffix(".md").read_text().rstrip("\n") == shown
    assert tables({}) == "Nothing was measured.\n"


def test_a_worker_measures_on_a_device(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.client, "OUT", tmp_path)
    (tmp_path / "fake.py").write_text(FAKE)
    pos = np.random.default_rng(0).normal(size=(2, 3, 3))
    labels = {"energy": np.zeros(2), "forces": np.zeros_like(pos), "isolated": np.array([[1.0], [0.0]])}
    path = str(tmp_path / "s.npz")
    np.savez(path, pos=pos, numbers=np.array([1, 1, 1]), cell=np.zeros((3, 3)), pbc=False, **labels)
    worker = gpu.client.Worker(gpu.client.Peer(str(tmp_path / "fake.py"), None, ()), threads=1)

    def ask(measure, limit=60.0, expected=None, **size):
        case = {"measure": measure, "structures": path, "size": size, "device": "cpu", "precision": "float32"}
        return worker.ask("device", limit=limit, case=case, structures=path, seconds=0.01, expected=expected)

    plain = ask("infer")
    assert plain["atoms"] == 3 and plain["ms_low"] <= plain["ms"] <= plain["ms_high"] and plain["calls"] >= 5
    assert plain["check"]["forces"] == pytest.approx((-pos).reshape(-1).tolist())
    assert ask("infer", expected=plain["check"])["against_plain"] == 0
    assert ask("train")["atoms"] == 6
    assert ask("train", expected=plain["check"])["against_plain"] == 0  # steps leave the weights as they are
    for what, wanted in (
        ({"wrong": 1.2}, "not the derivative"),
        ({"strength": 1.01}, "differ by .* from those of the plain code"),
    ):
        with pytest.raises(gpu.client.PeerError, match=wanted):
            ask("infer", expected=plain["check"], **what)
    with pytest.raises(gpu.client.PeerError, match="no answer within 1 s"):
        ask("infer", limit=0.6, sleep=20)
    assert not worker.alive
    worker.close()


def test_rows_are_lines_of_json(gpu, tmp_path):
    rows = gpu.Rows(tmp_path / "folder" / "gpu.jsonl", {"device": "X", "quick": True})
    rows.add(gpu.Job("MACE", "md", 500), {"ns_per_day": 1.0})
    assert json.loads(rows.path.read_text()) == {
        "code": "MACE",
        "measure": "md",
        "atoms": 500,
        "precision": "float32",
        "device": "X",
        "quick": True,
        "ns_per_day": 1.0,
    }
