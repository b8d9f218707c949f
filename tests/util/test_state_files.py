"""States survive whatever happens to them; a folder belongs to one training."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from molequi.errors import CheckpointError, TrainingError, TrainingWarning
from molequi.util.locks import lock_folder
from molequi.util.state_files import StateFiles, differences


def save_some(folder, count=3):
    states = StateFiles(folder)
    for k in range(count):
        states.save({"k": k, "weights": torch.full((50,), float(k))})
    return states


def test_the_newest_is_loaded(tmp_path):
    save_some(tmp_path)
    assert StateFiles(tmp_path).load()["k"] == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_saved(tmp_path):
    assert StateFiles(tmp_path).load() is None


def newest(folder):
    return max(folder.iterdir(), key=lambda p: int(p.read_bytes().split(b" ", 3)[2]))


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "junk"])
def test_b15_a_damaged_state_is_named_and_the_one_before_is_used(tmp_path, harm):
    save_some(tmp_path)
    path = newest(tmp_path)
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-200] ^= 1
    path.write_bytes(
        {"cut": content[: len(content) // 2], "flip": content, "empty": b"", "junk": os.urandom(500)}[harm]
    )
    with pytest.warns(TrainingWarning, match=path.name):
        states = StateFiles(tmp_path)
        assert states.load()["k"] == 1
    states.save({"k": 9})  # takes the place of the damaged one
    assert StateFiles(tmp_path).load()["k"] == 9


def test_b15_no_flip_of_any_byte_is_taken_for_a_good_state(tmp_path):
    save_some(tmp_path, 1)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    random = torch.Generator().manual_seed(0)
    for place in torch.randint(0, len(good), (60,), generator=random).tolist() + list(range(20)):
        broken = bytearray(good)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        try:
            state = StateFiles(tmp_path).load()
        except CheckpointError as error:
            assert path.name in str(error)
        else:
            # only the number of the save, which says nothing of the content, may change
            assert state["k"] == 0 and torch.equal(state["weights"], torch.zeros(50))


def test_b15_both_damaged(tmp_path):
    save_some(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match="state-0.pt.*state-1.pt.*restart|state-1.pt.*state-0.pt.*restart"
    ):
        StateFiles(tmp_path).load()


def test_b16_a_newer_format_is_refused(tmp_path):
    save_some(tmp_path, 1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"molequi-state 3 ", b"molequi-state 7 ", 1))
    with pytest.raises(CheckpointError, match="format 7; this version reads 3; update molequi"):
        StateFiles(tmp_path).load()
    path.write_bytes(path.read_bytes().replace(b"molequi-state 7 ", b"molequi-state 0 ", 1))
    with pytest.raises(CheckpointError, match="format 0; this version reads 3; start again"):
        StateFiles(tmp_path).load()


class Probe:
    def __reduce__(self):
        return (os.mkdir, ("probe_was_run",))


def test_pickled_objects_are_never_run(tmp_path, monkeypatch):
    """FAULTS A37."""
    monkeypatch.chdir(tmp_path)
    StateFiles(tmp_path).save({"probe": Probe()})
    with pytest.raises(
        CheckpointError, match=r"state-1\.pt: no state of a training: wanted tensors and plain"
    ):
        StateFiles(tmp_path).load()
    assert not Path("probe_was_run").exists()


def test_b13_full_disk_keeps_the_old_state(tmp_path, monkeypatch):
    states = save_some(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="state-.*No space left on device.*Make room") as info:
        states.save({"k": 99})
    assert info.value.__cause__.errno == errno.ENOSPC
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    states.save({"k": 100})
    assert StateFiles(tmp_path).load()["k"] == 100


def test_b13_a_real_limit_on_the_size_of_files(tmp_path):
    """The system refuses in the middle of a write, as a full disk does."""
    script = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from molequi.errors import CheckpointError\n"
        "from molequi.util.state_files import StateFiles\n"
        "states = StateFiles(Path(sys.argv[1]))\n"
        "states.save({'k': 1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    states.save({'k': 2, 'w': torch.zeros(100_000)})\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "cannot be written (File too large)" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["state-1.pt"]
    assert StateFiles(tmp_path).load()["k"] == 1


KILLER = """
import builtins, os, random, signal, sys, warnings
from pathlib import Path
import torch
from molequi.util.state_files import StateFiles
from molequi.errors import TrainingWarning
warnings.simplefilter("error", TrainingWarning)
folder, last = Path(sys.argv[1]), -1
random.seed(0)
torch.set_num_threads(1)


class Halves:  # a file that writes everything in two pieces, with a place after each

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        half = len(content) // 2
        for piece in (content[:half], content[half:]):
            self.file.write(piece)
            self.file.flush()
            place()


def between(function):
    def call(*args):
        place()
        done = function(*args)
        place()
        return done

    return call


for turn in range(50):
    # Each of the ten places of a save, in the first, second or third save of the child.
    left = 1 + turn % 10 + 10 * random.randrange(3)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        def place():
            global left
            left -= 1
            if not left:
                os.write(theirs, b".")
                signal.pause()
        states = StateFiles(folder)
        states.load()
        true_open = builtins.open
        builtins.open = lambda path, mode="r", **options: (
            Halves(true_open(path, mode)) if mode == "wb" else true_open(path, mode, **options)
        )
        os.replace, os.fsync = between(os.replace), between(os.fsync)
        while True:
            states.save({"count": states.count, "weights": torch.full((300_000,), float(states.count))})
    os.close(theirs)
    assert os.read(ours, 1) == b".", "the child ended by itself"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ours)
    state = StateFiles(folder).load()
    if state is not None:
        assert state["count"] >= last and bool((state["weights"] == state["count"]).all())
        last = state["count"]
print("last", last, "left", len(list(folder.glob(".*.tmp"))))
"""


def test_b11_fifty_kills_while_states_are_written(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    _, last, _, left = done.stdout.split()
    assert int(last) >= 50  # a process saves one state on average before it is killed, and each goes on
    assert (
        int(left) == 35
    )  # killed between the first piece of a file and its new name: seven of the ten places
    with lock_folder(tmp_path):
        assert not list(tmp_path.glob(".*.tmp"))  # B24: the next training cleans up


def test_b22_a_second_training_is_refused_and_b24_a_dead_one_leaves_no_lock(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom molequi.util.locks import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(TrainingError, match=f"another run.*process {other.pid} on .*out="),
            lock_folder(tmp_path),
        ):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert f"process {other.pid}" in (tmp_path / "run.lock").read_text()  # a stale lock file
    with lock_folder(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / "run.lock").read_text()
    with lock_folder(tmp_path):
        pass


def test_b14_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TrainingError, match="cannot be written.*out="),
        lock_folder(tmp_path / "file" / "run"),
    ):
        pass
    if os.geteuid():
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(TrainingError, match="Permission denied"), lock_folder(closed):
            pass


def test_differences_name_each_leaf():
    before = {"train": {"lr": 1e-3, "loss": {"energy": 1}}, "data": "a"}
    now = {"train": {"lr": 1e-2, "loss": {"energy": 1}, "ema": 0.9}, "data": "a"}
    assert differences(before, now) == ["train.lr: 0.001 → 0.01", "train.ema: None → 0.9"]
    assert differences(before, before) == []
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []


def test_numbers_are_compared_by_value():
    same = {
        "lr": 1,
        "loss": {"energy": {"weight": 1}},
        "betas": [0, 1],
        "nested": [{"x": 1}],
        "nan": float("nan"),
    }
    other = {"lr": 1.0, "loss": {"energy": {"weight": 1.0}}, "betas": [0.0, 1.0], "nested": [{"x": 1.0}]}
    assert differences(same, other | {"nan": float("nan")}) == []
    assert differences({"amsgrad": True}, {"amsgrad": 1}) == ["amsgrad: True → 1"]
    assert differences({"seed": 2**53}, {"seed": 2**53 + 1}) != []


def test_a_state_of_an_earlier_format_is_upgraded_step_by_step(tmp_path):
    save_some(tmp_path, 1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"molequi-state 3 ", b"molequi-state 1 ", 1))
    upgrades = {
        1: lambda state: state | {"k": state["k"] + 10},
        2: lambda state: state | {"k": 2 * state["k"]},
    }
    assert StateFiles(tmp_path, upgrades).load()["k"] == 20
    with pytest.raises(CheckpointError, match=r"format 1; this version reads 2, 3; start again"):
        StateFiles(tmp_path, {2: upgrades[2]}).load()
