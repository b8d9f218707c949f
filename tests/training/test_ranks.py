"""Several processes train what one trains; and if one of them ends or stops, all end with a message that names it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ase.io import write
from torch.distributed import HashStore

import molequi as mq
from molequi import fit
from molequi.errors import ConfigError, TrainingError
from molequi.training import devices, meeting, watch
from molequi.training.options import Compute
from molequi.training.processes import Group, Processes
from molequi.util import launchers

from ..morse_kit import morse
from .ranks_kit import RUN, free_port

HERE = Path(__file__).resolve().parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent.parent)}


def write_data(folder):
    for seed, name in enumerate(("data", "other")):
        write(folder / f"{name}.xyz", [mq.to_atoms(graph) for graph in morse(24, seed=seed)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What happened in all cases of `ranks_kit`."""
    done = subprocess.run(
        [sys.executable, HERE / "ranks_kit.py", folder], capture_output=True, text=True, env=ENV, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in csv.DictReader(file)]


def says(case, rank, *texts):
    """Whether the messages of a process have these texts and no traceback."""
    err = case["err"][rank]
    return all(text in err for text in texts) and "Traceback" not in err


# The same training


@pytest.mark.parametrize("name", ["two", "four"])
def test_several_processes_have_the_loss_curve_of_one(found, folder, name):
    """One of two began with other weights and was slow for twice the silence after which one is given up."""
    assert set(found[name]["status"]) == {0}
    one, several = rows(folder / "whole"), rows(folder / name)
    assert len(one) == len(several) == 3
    for a, b in zip(one, several):
        assert b == pytest.approx(a, rel=1e-12)


def test_another_number_of_processes_continues(found, folder):
    """1, then 2, 4 and 1 again; signals to one process end all, with the exit status of the signal."""
    assert found["part1"]["status"] == [143]
    assert found["part2"]["status"] == [143, 143]
    assert found["part3"]["status"] == [130] * 4
    assert found["part4"]["status"] == [0]
    log = (folder / "parts" / "run.log").read_text()
    for step in (3, 6, 8):  # of the four steps of an epoch
        assert f"continued after step {step}," in log
    for a, b in zip(rows(folder / "whole"), rows(folder / "parts"), strict=True):
        assert b == pytest.approx(a, rel=1e-12)


@pytest.mark.parametrize(("name", "out", "step"), [("part3", "parts", 8), ("script", "script", 3)])
def test_an_interrupt_is_one_sentence_of_rank_0(found, folder, name, out, step):
    """What is kept, and how to go on; of the command and of a script, in which Python prints a traceback otherwise."""
    first, *others = found[name]["err"]
    kept = f"the state after step {step} is saved in {folder / out}; the same command goes on from there"
    *before, last = first.splitlines()
    assert last == f"molequi: interrupted; {kept}" and 0 not in found[name]["status"]
    assert all("nterrupt" not in text and "Traceback" not in text for text in (*before, *others))


# A process that ends or stops


@pytest.mark.parametrize(
    ("name", "bad", "why"),
    [
        ("killed", 1, "the process has ended"),
        ("first_killed", 0, "the process has ended"),
        ("stopped", 1, "the process is stopped (kill -CONT would continue it)"),
        ("first_stopped", 0, "the process is stopped (kill -CONT would continue it)"),
    ],
)
def test_a_lost_process_is_named_by_all_others(found, folder, name, bad, why):
    case = found[name]
    text = f"molequi: rank {bad} (process {case['pids'][bad]} on {os.uname().nodename}) is lost: {why}. "
    what = f"start the same command again: it continues from the last state in {folder / name}"
    others = [rank for rank in range(len(case["pids"])) if rank != bad]
    for rank in others:
        assert case["status"][rank] == 2
        assert says(case, rank, text, what)
    log = (folder / name / "run.log").read_text()
    assert log.count(text.removeprefix("molequi: ")) == 1 and what in log


def test_a_process_that_runs_but_does_not_come_is_named(found):
    case = found["stuck"]
    assert case["status"] == [2, 2]
    for rank in range(2):
        assert says(case, rank, f"rank 1 (process {case['pids'][1]} on ", "still runs, and the others have")


def test_an_error_in_one_process_is_told_by_all(found):
    case = found["error"]
    assert case["status"] == [2, 1]
    assert says(case, 0, "rank 1 (process ", "ended the training: ValueError: the hook is wrong\n", "again")
    assert "Traceback" in case["err"][1]  # of the user's code, where it happened


# Processes that were given something else


def test_a_file_that_one_process_does_not_find(found, folder):
    case = found["missing"]
    assert case["status"] == [2, 2]
    assert says(case, 0, "rank 1 (process ", f"ended the training: {folder / 'none.xyz'}: no such file")
    assert says(case, 1, f"molequi: {folder / 'none.xyz'}: no such file")


@pytest.mark.parametrize(
    ("name", "what"), [("other_data", "data.train: '"), ("other_options", "settings.lr: 0.005 → 0.1")]
)
def test_other_data_and_options_in_one_process(found, name, what):
    case = found[name]
    assert case["status"] == [2, 2]
    for rank in range(2):
        assert says(case, rank, "the processes of this training differ from rank 0", "rank 1 (process", what)


# Launchers


@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_needs_no_options(tmp_path, nodes):
    """Two processes of one agent; and of two agents, as on two machines. They train one model."""
    write_data(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(data=tmp_path / "data.xyz", out=tmp_path / "out", epochs=1))
    script = tmp_path / "start.py"  # the report page takes longer than the training
    script.write_text(
        "import importlib, sys\nfrom molequi.cli import main\n"
        "importlib.import_module('molequi.config.run')._draw = lambda *arguments: None\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    place = ["--standalone"] if nodes == 1 else []
    if nodes == 2:
        place = [
            "--nnodes=2",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{free_port()}",
            "--rdzv-id=a",
        ]
    line = [sys.executable, "-m", "torch.distributed.run", *place, f"--nproc-per-node={2 // nodes}"]
    agents = [
        subprocess.Popen(
            [*line, script, "train", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENV,
        )
        for _ in range(nodes)
    ]
    texts = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * nodes, texts
    assert "".join(texts).count("best epoch 1 of 1") == 1
    assert len(rows(tmp_path / "out")) == 1
    assert (tmp_path / "out" / "run.log").read_text().count("start of process") == 1


STOPS = """
import os, signal, sys
sys.path[:0] = [{here!r}, {above!r}]
from morse_kit import morse, tiny
from molequi import fit
from molequi.training import watch
from molequi.training.trainer import Training

watch.SILENCE = 3.0
original = Training.step
def step(self, *arguments):
    if self.processes.global_rank == 1 and self.place.step == 2:
        print("child", os.getpid(), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    original(self, *arguments)
Training.step = step
data = morse(12)
fit(tiny(), data[:8], data[8:], epochs=2, logging={{"progress": False}}, compute={{"devices": 2}})
"""


def test_a_process_that_molequi_started_and_that_stops_is_removed(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(STOPS.format(here=str(HERE), above=str(HERE.parent)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=ENV, timeout=300)
    assert done.returncode == 1
    pid = int(done.stdout.split()[1])
    assert f"TrainingError: rank 1 (process {pid} on " in done.stderr
    assert "start it again; with out=… the state is saved" in done.stderr
    assert watch.state_of_process(pid) == "the process has ended"


@pytest.mark.parametrize(
    ("line", "given", "what"),
    [
        (["-"], "PROGRAM", "it was read from the standard input"),
        (["-i", "-c", "PROGRAM"], "", "it was typed into Python"),
        (
            ["-m", "IPython", "--quick", "--colors=NoColor", "-c", "PROGRAM"],
            "",
            "a notebook or IPython cannot",
        ),
    ],
)
def test_programs_that_cannot_be_started_again(line, given, what):
    """A notebook, a prompt, the standard input: the message says what to type."""
    program = "from molequi.training.devices import connect, Compute; connect(Compute(devices=2), 'cpu')"
    line = [word.replace("PROGRAM", program) for word in line]
    done = subprocess.run(
        [sys.executable, *line],
        input=given.replace("PROGRAM", program),
        capture_output=True,
        text=True,
        env=ENV,
        timeout=200,
    )
    text = done.stdout + done.stderr
    assert f"ConfigError: compute.devices=2 starts this program again for each process, and {what}" in text
    assert "python train.py, or torchrun --nproc-per-node 2 train.py" in text


@pytest.fixture
def torchrun(monkeypatch):
    """This process as one of four that torchrun started on two machines."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 4}, "compute.devices=4 and torchrun started 2 processes on each machine"),
        ({"devices": 1}, "compute.devices=1 and torchrun started 2 processes on each machine"),
        ({"num_nodes": 4}, "compute.num_nodes=4 and torchrun started 2 machines"),
    ],
)
def test_options_against_the_launcher(torchrun, model, parts, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(model, **parts, epochs=1, compute=options)
    with pytest.raises(ConfigError, match=r"seed=\[0, 1\] and 4 processes"):
        devices.check_processes(Compute(devices=2, num_nodes=2, strategy="ddp"), torch.device("cpu"))
        fit_seeds = mq.training.ensembles.fit_seeds
        fit_seeds(None, model, parts, mq.training.TrainingOptions(epochs=1, seed=(0, 1)), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fsdp"}, "strategy='fsdp': PyTorch frees the weights of a layer"),
        ({"strategy": "ddp"}, "strategy='ddp' and one process; give compute.devices=2"),
        ({"num_nodes": 2, "devices": 4}, "torchrun --nnodes 2 --nproc-per-node 4"),
        ({"strategy": "zero"}, "strategy"),
    ],
)
def test_options_without_a_launcher(model, parts, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(model, **parts, epochs=1, compute=options)


def test_devices_of_a_machine(torchrun, monkeypatch):
    with pytest.raises(ConfigError, match="device='cuda:1' is one device, and there are 2 processes"):
        devices.check_processes(Compute(), torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes on this machine and 1 visible CUDA devices; start"):
        devices.check_processes(Compute(), torch.device("cuda"))


def test_processes_that_do_not_come_are_named(monkeypatch):
    monkeypatch.setattr(meeting, "ARRIVAL", 0.3)
    _store, port = meeting.open_store()
    own = launchers.Launched("torchrun", 0, 3, 0, 3, 1, "127.0.0.1", port)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(TrainingError, match="rank 1, 2 of 3 did not come within .* torchrun started all"):
        meeting.meet(own, lambda rank: "")
    with pytest.raises(TrainingError, match="rank 2 ended with exit status 1 before the training began"):
        meeting.meet(own, lambda rank: "ended with exit status 1" if rank == 2 else "")
    other = launchers.Launched("srun", 1, 2, 0, 1, 2, "127.0.0.1", free_port())
    with pytest.raises(TrainingError, match="rank 1 of 2: rank 0 does not answer at .* one srun"):
        meeting.meet(other, lambda rank: "")


def test_a_process_alone_returns_what_it_is_given():
    alone = Processes(torch.device("cpu"))
    value = torch.ones(2)
    assert alone.all_reduce(value) is value and alone.broadcast(value) is value
    assert alone.is_global_zero and alone.barrier() is None and alone.check_equal({"a": 1}) is None


class NothingHappens:
    def check(self):
        pass


def test_what_differs_between_processes_is_named_with_the_rank():
    """Also another version of a package. The store has what the other two processes say."""
    store, same = HashStore(), {"versions": {"torch": "2.13"}, "data": {"train": "a"}}
    store.set("say/1/1", json.dumps(same))
    store.set("say/1/2", json.dumps(same | {"versions": {"torch": "2.12"}}))
    own = launchers.Launched("srun", 0, 3, 0, 1, 3, "127.0.0.1", 1)
    group = Group(own, store, store, ["rank 0", "rank 1", "rank 2 (process 7 on b)"], NothingHappens())
    with pytest.raises(
        TrainingError, match=r"rank 2 \(process 7 on b\):\n  versions.torch: '2.13' → '2.12'"
    ) as e:
        group.check_equal(same)
    assert "rank 1" not in str(e.value)


def test_what_rank_0_sends_must_be_plain():
    own = launchers.Launched("srun", 0, 2, 0, 1, 2, "127.0.0.1", 1)
    group = Group(own, HashStore(), HashStore(), ["rank 0", "rank 1"], NothingHappens())
    with pytest.raises(ConfigError, match="broadcast: the value has something else than tensors, numbers"):
        group.broadcast({"a": Path("x")})
