"""The harness of force_fields.py: its arithmetic, its protocol with a made-up code, its structures; no other package."""

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

FAKE = """
import numpy as np, torch
from worker import Peer
def versions():
    print("chatter that is no reply")
    return {"fake": "1"}
class Fake(Peer):
    def __init__(self, case):
        if case["size"].get("fail"):
            raise ValueError("too large for me")
        self.model, self.wrong = torch.nn.Linear(1, 1, bias=False), case["size"].get("wrong", 1.0)
        torch.nn.init.ones_(self.model.weight)
        self.plan = {"lr": 0.1, "batch_size": 2, "weights": {"energy": 1.0, "forces": 1.0}, "ema": 0.5,
                     "ema_warmup": True, "clip": None,
                     "schedule": {"cosine": {"warmup": 0.0, "floor": 0.01}}}
    def graph(self, structures, k, moved=0.0):
        return torch.tensor(structures.pos[k] + moved)
    def collate(self, graphs):
        return torch.stack(graphs)
    def outputs(self, batch, training):      # springs to the origin, of the strength that is learnt
        k = self.model.weight[0, 0]
        return k * batch.square().sum((1, 2)) / 2, (-self.wrong * k * batch).reshape(-1, 3)
    def optimizer(self, lr):
        return torch.optim.Adam(self.model.parameters(), lr=lr)
    def calculator(self):
        from ase.calculators.calculator import Calculator
        class Springs(Calculator):
            implemented_properties = ["energy", "forces"]
            def calculate(self, atoms, properties, changes):
                self.results = {"energy": (atoms.positions**2).sum() / 2, "forces": -atoms.positions}
        return Springs()
build = Fake
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """The modules of the benchmark, which is a script and not on the path."""
    folder = str(Path(__file__).resolve().parent)
    sys.path.insert(0, folder)
    with pytest.MonkeyPatch.context() as patch:
        modules = {
            name.rpartition(".")[2]: importlib.import_module(name)
            for name in ("force_fields", "peers.client", "peers.report", "peers.structures")
        }
        patch.setattr(modules["client"], "OUT", tmp_path_factory.mktemp("out"))
        yield modules
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def springs(harness, tmp_path_factory):
    """A worker of the made-up code, and structures whose labels it can learn: springs of strength 2."""
    folder = tmp_path_factory.mktemp("springs")
    (folder / "fake.py").write_text(FAKE)
    pos = np.random.default_rng(0).normal(size=(4, 3, 3))
    np.savez(
        folder / "s.npz",
        pos=pos,
        numbers=np.array([8, 1, 1]),
        energy=(pos**2).sum((1, 2)),
        forces=-2 * pos,
        cell=np.zeros((3, 3)),
        pbc=False,
        isolated=np.array([[1.0, 8.0], [0.0, 0.0]]),
    )
    worker = harness["client"].Worker(
        harness["client"].Peer(str(folder / "fake.py"), None, ("mace",)), threads=1, keep_compiled=True
    )
    yield worker, folder
    worker.close()
    assert not worker.alive


def test_ratios_are_taken_turn_by_turn(harness):
    report = harness["report"]
    assert report.ratios([1.0, 2.0, 10.0], [3.0, 6.0, 30.0]) == pytest.approx(
        (3, 3, 3)
    )  # a busy machine slows both
    middle, low, high = report.ratios([1.0, 1.0, 1.0], [1.0, 2.0, 9.0])
    assert middle == 2 and low < 2 < high
    with pytest.raises(ValueError):
        report.ratios([1.0], [1.0, 2.0])


def test_share_of_the_limit(harness):
    assert harness["report"].of_limit(5.0, {"gflops": 100.0}, 0.5) == pytest.approx(0.1)
    assert harness["report"].of_limit(None, {"gflops": 100.0}, 0.5) is None


def test_time_to_an_error(harness):
    passed = harness["report"].passed
    assert passed([(10.0, 40.0), (1000.0, 10.0)], 20.0) == pytest.approx(100)  # straight on logarithmic axes
    assert passed([(10.0, 15.0)], 20.0) == 10
    assert passed([(10.0, 40.0), (20.0, 30.0)], 20.0) is None
    assert passed([(1.0, 40.0), (2.0, 20.0), (3.0, 50.0)], 20.0) == pytest.approx(2)  # the first time counts


def row(peer: str, seconds: float, **more) -> dict:
    return {
        "peer": peer,
        "size": "s",
        "measure": "infer",
        "threads": 1,
        "data": "d",
        "versions": {"torch": "9"},
        "wall": [seconds] * 7,
        "processor": [seconds] * 7,
        "start_processor": 1.0,
        "peak": 100.0,
        "parameters": 1000,
        "limits": {"gflops": 100.0, "gbytes": 10.0},
        **more,
    }


def test_tables_and_pictures(harness, tmp_path, capsys):
    rows = [
        row("a", 0.01, gflop=0.5, gbytes=0.1, atoms=15),
        row("a-compiled", 0.005, atoms=15),
        {
            "peer": "b",
            "size": "s",
            "measure": "infer",
            "threads": 1,
            "error": "no such thing",
            "versions": {},
            "data": "d",
            "atoms": 15,
        },
    ]
    for name in ("speed", "scaling"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "a_small.csv").write_text(
        "processor,wall,epoch,step,forces_rmse,energy_rmse,versions,data\n"
        "10,11,1,9,40,2,torch 9,d\n1000,1100,2,18,10,1,torch 9,d\n"
    )
    harness["report"].write(tmp_path, ["speed", "scaling", "accuracy"], "wall")
    out = capsys.readouterr().out
    assert "| 0.50 (0.50–0.50) |" in out and "- b: no such thing (s " in out
    assert out.count("50.0") == 1 and out.count("| 100.0 |") == 0  # a's share of the limit
    compiled = next(line for line in out.splitlines() if line.startswith("| a-compiled |"))
    assert " 100.0 |" in compiled.replace("   ", " ")  # arithmetic of its plain self in half the time
    assert "a small |" in out and " 100 | " in out.replace("   ", " ")
    for name in ("speed", "scaling", "accuracy"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000 and (tmp_path / f"{name}.md").exists()


def test_a_compiled_code_must_agree_with_its_plain_self(harness):
    checks = [
        {"energies": [1.0], "forces": [1.0, -2.0]},
        {"energies": [1.001], "forces": [1.0, -2.0]},
        {"energies": [1.0], "forces": [1.0, -1.9]},
    ]
    for check, wrong in zip(checks, (None, None, "forces")):
        rows = {
            "nequip": row("nequip", 1.0, check=checks[0]),
            "nequip-compiled": row("nequip-compiled", 1.0, check=check),
        }
        harness["force_fields"].compare_pairs(rows)
        assert ("error" in rows["nequip-compiled"]) == bool(wrong) and "error" not in rows["nequip"]


def test_a_worker_measures(springs):
    worker, folder = springs
    assert worker.ask("versions") == {"fake": "1"}
    case = {
        "structures": str(folder / "s.npz"),
        "size": {"kind": "mace"},
        "batch": 2,
        "accelerated": False,
        "own": False,
        "count": True,
    }
    for what in ("infer", "md", "train"):
        report = worker.ask("prepare", case=case | {"measure": what})
        assert report["parameters"] == 1 and report["start_processor"] >= 0
        if what == "infer":
            assert report["gbytes"] > 0 and len(report["check"]["forces"]) == 2 * 9
        taken = worker.ask("run", n=25)
        assert taken["wall"] > 0 and taken["processor"] > 0
    assert 10 < worker.ask("memory")["peak"] < 10_000


def test_what_a_code_cannot_do_is_said_and_the_next_request_served(harness, springs):
    worker, folder = springs
    case = {
        "structures": str(folder / "s.npz"),
        "batch": 2,
        "measure": "infer",
        "accelerated": False,
        "own": False,
    }
    for size, why in (
        ({"fail": True}, "ValueError: too large for me"),
        ({"wrong": 1.2}, "not the derivative"),
        ({"wrong": math.nan}, "not finite"),
    ):
        with pytest.raises(harness["client"].PeerError, match=why):
            worker.ask("prepare", case=case | {"size": size})
    assert worker.ask("prepare", case=case | {"size": {}})["parameters"] == 1


def test_a_worker_that_dies_is_told(harness, tmp_path):
    (tmp_path / "dies.py").write_text(
        "import os, sys\ndef versions():\n    print('out of luck', file=sys.stderr, flush=True)\n    os._exit(3)\n"
    )
    worker = harness["client"].Worker(
        harness["client"].Peer(str(tmp_path / "dies.py"), None, ()), threads=1, keep_compiled=True
    )
    with pytest.raises(harness["client"].PeerError, match="ended with 3: out of luck"):
        worker.ask("versions")
    worker.close()


def test_training_goes_on_where_it_was(harness, springs):
    worker, folder = springs
    case = {
        "structures": str(folder / "s.npz"),
        "size": {},
        "measure": "train",
        "accelerated": False,
        "own": False,
        "isolated": True,
    }
    request = dict(case=case, valid=str(folder / "s.npz"), state=str(folder / "state.pt"), seconds=0.3)
    first = list(worker.stream("train", **request))
    assert (
        first[-1]["forces_rmse"] < 0.1 * first[0]["forces_rmse"] and first[-1]["processor"] >= 0.3
    )  # it has learnt the strength
    assert list(worker.stream("train", **request)) == []  # it was finished
    with pytest.raises(harness["client"].PeerError, match="--seconds 0.3"):
        list(worker.stream("train", **request | {"seconds": 9.0}))


def test_missing_environment_says_what_to_do(harness, monkeypatch, tmp_path):
    client = harness["client"]
    monkeypatch.setattr(client, "ENVIRONMENTS", tmp_path)
    with pytest.raises(client.PeerError, match="force_fields.py setup"):
        client.Worker(dataclasses.replace(client.PEERS["nequip"]), threads=1)


def test_structures_are_shared_as_arrays(harness, shipped, tmp_path, monkeypatch):
    structures = harness["structures"]
    monkeypatch.setenv("MOLEQUI_DATA", str(tmp_path))  # not there: the shipped ones
    train, valid, origin = structures.molecules(split=True)
    assert origin.startswith("ethanol") and len(valid) == 50 and len(train) == 350
    with np.load(structures.write(train, tmp_path / "t.npz"), allow_pickle=False) as file:
        assert file["pos"].shape == file["forces"].shape == (350, 9, 3) and dict(
            file["isolated"].T
        ).keys() == {1, 6, 8}
    for wanted in (90, 300):
        atoms = structures.crystal(train, wanted)
        assert atoms.pbc.all() and abs(len(atoms) - wanted) < 0.25 * wanted
        molecule = np.arange(len(atoms)) // 9
        i, j = np.triu_indices(len(atoms), 1)
        apart = molecule[i] != molecule[j]
        distances = atoms.get_all_distances(mic=True)[i[apart], j[apart]]
        assert (
            distances.min() > 1.4 and 0.04 < len(atoms) / atoms.get_volume() < 0.15
        )  # neighbours as in matter, none on top of another
