"""The time of a training, of the wall or of the processor; and whether to compile."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

from molequi.accelerate import Program
from molequi.compiled.costs import Cost
from molequi.graph import Graph
from molequi.model import Model
from molequi.util.progress import tell

if TYPE_CHECKING:
    from molequi.training.trainer import Training

_STEPS = 3  # plain steps that are measured; the first also warms up


Kind = Literal["wall", "processor"]


def processor_seconds() -> float:
    """Processor time in s of this process, with all its threads, and of those that it started and that ended.

    It does not depend on what else the machine does.
    """
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system


class Clock:
    """Seconds since a training began: of the wall without compilation, or of the processor with all there is.

    Parameters
    ----------
    model : Model
        The model that is trained.
    kind : {"wall", "processor"}
        Which time.
    """

    def __init__(self, model: Model, kind: Kind = "wall") -> None:
        self.program = model.program if isinstance(model.program, Program) else None
        self.kind = kind
        self.set(0.0)

    def set(self, seconds: float) -> None:
        """Go on from a time.

        Parameters
        ----------
        seconds : float
            The time in s.
        """
        self._zero = self._now() - seconds

    def _now(self) -> float:
        if self.kind == "processor":
            return processor_seconds()
        return time.monotonic() - self.compiling

    @property
    def compiling(self) -> float:
        """Seconds that this process has spent on compilation of the model."""
        return 0.0 if self.program is None else self.program.seconds

    def seconds(self) -> float:
        """The time of the training in s."""
        return self._now() - self._zero

    @property
    def shown(self) -> Callable[[], float] | None:
        """The time from which the time left is estimated; None: that of the machine."""
        return self.seconds if self.kind == "wall" else None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done inside takes no time of the training, unless processor time is counted."""
        before = self.seconds()
        try:
            yield
        finally:
            if self.kind == "wall":
                self.set(before)


def choose_compilation(training: "Training") -> str:
    """Use the compiled program of a training, or the plain model if there is too little time for it.

    Compilation takes no time of ``max_minutes``, unless that is processor time. But if the training is so
    short that compilation would take longer than it saves, the plain model is trained. A training that
    continues keeps its choice.

    Parameters
    ----------
    training : Training
        The training, before its first step. Its models lose their program if the plain model is used.

    Returns
    -------
    str
        A sentence about the choice; empty if the model should not be compiled or if it is compiled for a
        number of epochs.
    """
    options, place, sentence = training.options, training.place, ""
    if not options.compute.accelerate or options.max_minutes is None:
        return ""
    if not place.stopped:
        with training.clock.stopped():
            if place.compiled is None:
                place.compiled, sentence = training.broadcast(_choice(training))
            else:
                sentence = "compiled, as before" if place.compiled else "not compiled, as before"
    if place.compiled is False:
        training.model.use_program(None)
        if training.average:
            training.average.model.use_program(None)
    if sentence and training.processes.is_global_zero:
        tell(sentence)
    return sentence


def _choice(training: "Training") -> tuple[bool, str]:
    """Whether to compile, and why."""
    options, program = training.options, training.clock.program
    assert options.max_minutes is not None and program is not None
    batches = _first_batches(training)
    twin = copy.deepcopy(training.model)
    step = _seconds_of_step(training, twin, batches)
    left = 60 * options.max_minutes - training.seconds
    if options.epochs:
        steps = options.epochs * len(training.batches["train"].epoch(0)) - training.place.step
        left = min(left, steps * step)
    cost = program.cost(twin, batches[0])
    name = type(training.model.backbone).__name__
    if cost.saved(left) >= cost.seconds:
        counted = "counts" if options.compute.clock == "processor" else "does not count"
        return True, f"{name} is compiled in about {cost.seconds:.0f} s, which max_minutes {counted}"
    return False, _reason(name, cost, left, step)


def _reason(name: str, cost: Cost, left: float, step: float) -> str:
    return (
        f"{name} is not compiled: compilation would take about {cost.seconds:.0f} s, and save about "
        f"{cost.saved(left):.0f} s of {left:.0f} s of training ({1000 * step:.0f} ms a step). It is compiled "
        f"from about max_minutes={math.ceil(cost.worthwhile / 6) / 10:g} on"
    )


def _first_batches(training: "Training") -> list[Graph]:
    graphs, order = training.graphs("train"), training.batches["train"].epoch(0)
    batches = [order[k % len(order)] for k in range(_STEPS)]
    return [graphs.batch(batch).to(training.processes.device) for batch in batches]


def _seconds_of_step(training: "Training", model: Model, batches: list[Graph]) -> float:
    """Time of a plain step on these batches; nothing of the training changes."""
    plain, times = model.plain().train(), []
    cuda = [training.processes.device] if training.processes.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        for graph in batches:
            started = time.monotonic()
            sums = training.objective.sums(plain(graph), graph)
            total = training.objective.total(sums, training.objective.known(graph).double())
            if total.requires_grad:
                total.backward()
            total.detach().item()  # waits for a GPU
            times.append(time.monotonic() - started)
    return min(times)
