"""One training loop for all codes: each with its own loss weights, batches, schedule and averaging (`Peer.plan`).

The clock counts the processor seconds of building the model, neighbour lists, compilation and steps. Validation is left
out, since it is the measurement. The state is saved after each validation, so that a training that was stopped goes on
where it was; a compiled one compiles again, and that is counted again.
"""

import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from worker import Peer, Structures, labels, processor_seconds

CHUNK = 10  # frames of validation at once


class Clock:
    """Processor and wall seconds while it runs."""

    def __init__(self):
        self.processor = self.wall = 0.0

    def __enter__(self) -> "Clock":
        self.began = processor_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self.processor += processor_seconds() - self.began[0]
        self.wall += time.perf_counter() - self.began[1]


class Training:
    """seconds: processor seconds that it shall take in all, by which a cosine schedule goes."""

    def __init__(self, peer: Peer, train: Structures, valid: Structures, seconds: float, clock: Clock):
        self.peer, self.plan, self.structures, self.seconds, self.clock = (
            peer,
            peer.plan,
            train,
            seconds,
            clock,
        )
        self.parameters = [p for p in peer.model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = peer.optimizer(self.plan["lr"])
        plateau = self.plan["schedule"].get("plateau")
        self.plateau = (
            None if plateau is None else torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, **plateau)
        )
        self.epoch = self.step = 0
        self.graphs = [peer.graph(train, k) for k in range(len(train))]
        self.valid = [
            (peer.collate([peer.graph(valid, k) for k in g]), labels(valid, g))
            for g in groups(range(len(valid)), CHUNK)
        ]

    def train_epoch(self) -> None:
        order = random.Random(self.epoch).sample(range(len(self.graphs)), len(self.graphs))
        batches = [g for g in groups(order, self.plan["batch_size"]) if len(g) == self.plan["batch_size"]]
        for k, frames in enumerate(batches):
            with self.clock:
                self.set_rate(self.epoch + k / len(batches))
                self.optimizer.zero_grad(set_to_none=True)
                self.peer.loss(
                    self.peer.collate([self.graphs[f] for f in frames]),
                    labels(self.structures, frames),
                    self.plan["weights"],
                ).backward()
                if self.plan["clip"] is not None:
                    torch.nn.utils.clip_grad_norm_(self.parameters, self.plan["clip"])
                self.optimizer.step()
                self.step += 1
                decay = self.plan["ema"]
                if self.plan["ema_warmup"]:
                    decay = min(decay, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
            if self.clock.processor >= self.seconds:
                break
        self.epoch += 1

    def set_rate(self, epochs: float) -> None:
        cosine = self.plan["schedule"].get("cosine")
        if cosine is not None:
            rise = min(1.0, epochs / cosine["warmup"]) if cosine["warmup"] else 1.0
            fall = (1 + math.cos(math.pi * min(1.0, self.clock.processor / self.seconds))) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan["lr"] * rise * max(fall, cosine["floor"])

    def swap(self) -> None:
        """Exchanges the weights and their average."""
        with torch.no_grad():
            for weight, average in zip(self.parameters, self.average):
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)

    def validate(self) -> dict[str, float]:
        """Root mean squares in meV/Å and meV/atom of the averaged weights; tells the schedule."""
        self.swap()
        squares, counts, energies = 0.0, 0, []
        for batch, (energy, forces, atoms) in self.valid:
            predicted, found = self.peer.outputs(batch, training=False)
            squares += float((found.detach().double() - forces).square().sum())
            counts += forces.numel()
            energies.append((predicted.detach().double() - energy) / atoms)
        self.swap()
        errors = {
            "forces": math.sqrt(squares / counts),
            "energy": math.sqrt(float(torch.cat(energies).square().mean())),
        }
        if self.plateau is not None:
            self.plateau.step(sum(self.plan["weights"][name] * value**2 for name, value in errors.items()))
        return {"forces_rmse": 1e3 * errors["forces"], "energy_rmse": 1e3 * errors["energy"]}

    def save(self, path: Path) -> None:
        state = {
            "model": self.peer.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau and self.plateau.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "processor": self.clock.processor,
            "wall": self.clock.wall,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["seconds"] != self.seconds:
            raise ValueError(
                f"{path.name} is of a training of {state['seconds']:g} seconds; "
                f"go on with --seconds {state['seconds']:g}, "
                "or remove it and the CSV beside it"
            )
        self.peer.model.load_state_dict(state["model"])
        for mine, theirs in zip(self.average, state["average"]):
            mine.copy_(theirs)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.clock.processor += state["processor"]  # what this process took until here counts too
        self.clock.wall += state["wall"]


def groups(items, size: int) -> list[list]:
    items = list(items)
    return [items[k : k + size] for k in range(0, len(items), size)]


def train(
    build: Callable[[dict], Peer],
    row: Callable[[dict], None],
    case: dict,
    valid: str,
    seconds: float,
    state: str,
) -> dict:
    """Trains for so many processor seconds; `row` gets the errors after each epoch. state: file to go on from."""
    clock, path = Clock(), Path(state)
    with clock:
        peer = build(case)
        training = Training(peer, Structures(case["structures"]), Structures(valid), seconds, clock)
    if path.exists():
        training.restore(path)
    while clock.processor < seconds:
        training.train_epoch()
        row(
            {
                "processor": clock.processor,
                "wall": clock.wall,
                "epoch": training.epoch,
                "step": training.step,
                **training.validate(),
            }
        )
        training.save(path)
    return {"processor": clock.processor}
