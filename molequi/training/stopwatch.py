"""What a training costs: seconds of a step, and memory."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from molequi.hooks import Hook, Run
from molequi.ops.memory import PeakMemory
from molequi.training.clock import Kind, processor_seconds
from molequi.util.html import html_text


@dataclass(frozen=True)
class Cost:
    """What the steps of a training cost.

    Parameters
    ----------
    step : float or None
        Median of the seconds of a step, without making its batch; None if there was none.
    memory : float or None
        Largest memory in bytes beyond that of the idle program; None where the system does not tell.
    """

    step: float | None
    memory: float | None

    def __str__(self) -> str:
        step = "" if self.step is None else f"{1000 * self.step:.3g} ms a step"
        memory = "" if self.memory is None else f"{1e-6 * self.memory:.0f} MB"
        return f"cost: {', '.join(filter(None, [step, memory])) or 'not measured'}"

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


class Stopwatch(Hook):
    """A term of a training that changes nothing and measures what a step costs.

    Parameters
    ----------
    clock : {"wall", "processor"}
        Which seconds.
    """

    name = "cost"

    def __init__(self, clock: Kind) -> None:
        self.clock = clock
        self.times: list[float] = []
        self.peak: float | None = None
        self._memory: PeakMemory | None = None
        self._began = 0.0

    def start(self, run: Run) -> "Stopwatch":
        """A stopwatch of this training.

        Parameters
        ----------
        run : Run
            The training.
        """
        own = Stopwatch(self.clock)
        own._memory = PeakMemory(run.model.device)
        return own

    def record(self) -> dict[str, Any]:
        """Nothing, since nothing of the training depends on it."""
        return {}

    def before_step(self, run: Run) -> None:
        """Begin a step.

        Parameters
        ----------
        run : Run
            The training.
        """
        self._began = self._now()

    def after_step(self, run: Run) -> None:
        """End a step. On a GPU the norm of the gradients was read, so that the work is done.

        Parameters
        ----------
        run : Run
            The training.
        """
        self.times.append(self._now() - self._began)

    def before_validation(self, run: Run) -> None:
        """Read the memory.

        Parameters
        ----------
        run : Run
            The training.
        """
        found = None if self._memory is None else self._memory.bytes()
        if found is not None:
            self.peak = max(found, self.peak or 0.0)

    def report(self, run: Run) -> Cost:
        """What the steps cost.

        Parameters
        ----------
        run : Run
            The training.
        """
        return Cost(float(np.median(self.times)) if self.times else None, self.peak)

    def state(self) -> dict[str, Any]:
        """All measurements, which a continued training goes on with."""
        return {"times": list(self.times), "peak": self.peak}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the measurements of the training before.

        Parameters
        ----------
        state : Mapping
            What `state` returned.
        """
        self.times, self.peak = list(state["times"]), state["peak"]

    def _now(self) -> float:
        return processor_seconds() if self.clock == "processor" else time.monotonic()
