"""Trainings with several processes, some of which are killed, stopped or given other data.

`python ranks_kit.py FOLDER` carries out all cases and writes what happened to ``FOLDER/found.json``. Processes
are forked from this one, because importing PyTorch takes longer than a training here. Each is told by
environment variables which rank it has, as torchrun does it.
"""

import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

SILENCE, GRACE = 4.0, 3.0  # seconds; short ones, so that the tests are short
RUN = """
data: {{extxyz: {{path: {data}, split: {{train: 16, valid: 8}}}}}}
backbone: {{EGNN: {{channels: 8, layers: 2, radial: 6, cutoff: 4.0}}}}
predict: [energy, forces]
train:
  epochs: {epochs}
  batch_size: 4
  out: {out}
  seed: 4
  schedule: {{name: plateau, patience: 0, warmup: 0.5}}
  compute: {{precision: float64}}
  logging: {{progress: false}}
"""


def at_step(actions):
    """Let a training do something in the process of a rank before a step: ``{(rank, step): function}``."""
    from molequi.training.trainer import Training

    original = Training.step

    def step(self, *arguments):
        key = (self.processes.global_rank, self.place.step)
        if key in actions:
            actions[key]()
        return original(self, *arguments)

    Training.step = step


def send(number):
    return lambda: os.kill(os.getpid(), number)


def draw_other_weights():
    """The model of this process begins with other weights, as that of a script without a seed does."""
    import torch

    module = importlib.import_module("molequi.config.run")
    original = module.new_model

    def other(*arguments):
        model = original(*arguments)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)
        return model

    module.new_model = other


def be_impatient():
    from molequi.training import watch

    watch.STUCK = SILENCE


def fail():
    raise ValueError("the hook is wrong")


def rank_of(folder, name, rank, size, port, train, actions):
    """What a forked process does."""
    for stream, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}.{rank}.{file}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    at_step(actions)
    if (rank, "start") in actions:
        actions[rank, "start"]()
    from molequi.cli import main

    words = train(rank)
    return words() if callable(words) else main(words)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def carry_out(folder, name, size, train, actions=None, waits=None):
    """Fork `size` processes, and wait for those of `waits`; returns exit status and what they wrote.

    The status is None for a process that was not waited for, or that hangs.
    """
    port, end, pids = free_port(), time.monotonic() + 60, []
    waits = range(size) if waits is None else waits
    sys.stdout.flush()
    for rank in range(size):
        pid = os.fork()
        if not pid:
            sys.exit(rank_of(folder, name, rank, size, port, train, actions or {}))
        pids.append(pid)
    status = [None] * size
    while any(status[rank] is None for rank in waits) and time.monotonic() < end:
        for rank in waits:
            if status[rank] is None:
                done, code = os.waitpid(pids[rank], os.WNOHANG)
                status[rank] = os.waitstatus_to_exitcode(code) if done else None
        time.sleep(0.02)
    for rank, pid in enumerate(pids):
        if status[rank] is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    errors = [(folder / f"{name}.{rank}.err").read_text() for rank in range(size)]
    return {"status": status, "err": errors, "pids": pids}


def cases(folder):
    """All cases by name; each is a function without arguments that returns what happened."""

    def words(out, data="data.xyz", epochs=3, *more):
        path = folder / f"{out}-{data}.yaml"
        path.write_text(RUN.format(data=folder / data, out=folder / out, epochs=epochs))
        return ["train", str(path), *more]

    def run(name, size, actions=None, out=None, train=None, **options):
        train = train or (lambda rank: words(out or name))
        return lambda: carry_out(folder, name, size, train, actions, **options)

    def sleep():
        time.sleep(2 * SILENCE)

    def script():
        from molequi import run

        run(words("script")[1])

    def of_rank_1(other, usual):
        return lambda rank: other if rank == 1 else usual

    return {
        # The loss curve of one process, and states that another number of processes continues. Signals end
        # each part: to all processes it makes no difference which one gets them.
        "whole": run("whole", 1),
        "part1": run("part1", 1, {(0, 2): send(signal.SIGTERM)}, out="parts"),
        "part2": run("part2", 2, {(1, 5): send(signal.SIGTERM)}, out="parts"),
        "part3": run("part3", 4, {(0, 7): send(signal.SIGINT)}, out="parts"),
        "part4": run("part4", 1, out="parts"),
        "two": run("two", 2, {(1, "start"): draw_other_weights, (1, 3): sleep}),
        "four": run("four", 4),
        # A script of Python, in which nobody catches the interrupt
        "script": run("script", 2, {(1, 2): send(signal.SIGINT)}, train=lambda rank: script),
        # Processes that end, stop or let the others wait
        "killed": run("killed", 2, {(1, 5): send(signal.SIGKILL)}),
        "first_killed": run("first_killed", 2, {(0, 5): send(signal.SIGKILL)}),
        "stopped": run("stopped", 3, {(1, 5): send(signal.SIGSTOP)}, waits=(0, 2)),
        "first_stopped": run("first_stopped", 2, {(0, 5): send(signal.SIGSTOP)}, waits=(1,)),
        "stuck": run("stuck", 2, {(0, 0): be_impatient, (1, 5): lambda: time.sleep(600)}),
        "error": run("error", 2, {(1, 5): fail}),
        # Processes that were given something else
        "missing": run("missing", 2, train=of_rank_1(words("missing", "none.xyz"), words("missing"))),
        "other_data": run(
            "other_data", 2, train=of_rank_1(words("other_data", "other.xyz"), words("other_data"))
        ),
        "other_options": run(
            "other_options",
            2,
            train=of_rank_1([*words("other_options"), "train.lr=0.1"], words("other_options")),
        ),
    }


def main(folder, names):
    importlib.import_module("molequi.cli")
    importlib.import_module("molequi.training.fabric")  # before the fork
    from molequi.training import meeting, watch

    importlib.import_module("molequi.config.run")._draw = lambda *arguments: None  # the longest part
    watch.SILENCE, watch.GRACE, meeting.ARRIVAL = SILENCE, GRACE, 60.0
    found = {}
    for name, case in cases(folder).items():
        if not names or name in names:
            found[name] = case()
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
