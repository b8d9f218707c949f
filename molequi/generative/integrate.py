"""From noise to structures: the steps of a sample."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from molequi.errors import ModelError
from molequi.generative.coupling import centered
from molequi.generative.flow import ELEMENT, HIDDEN, VELOCITY, Flow, estimate_of, inputs_of
from molequi.generative.pairs import connected
from molequi.graph import Graph
from molequi.model import Model

Integrator = Literal["euler", "heun"]
Push = Callable[[Graph, Tensor, Tensor], Tensor]  # of a guidance: (expected end, time, velocity) -> velocity
Draws = Callable[[], Tensor]


def own_draws(counts: Sequence[int], generators: Sequence[torch.Generator]) -> Draws:
    """Random numbers of each structure from a generator of its own.

    Parameters
    ----------
    counts : sequence of int
        Number of atoms of each structure.
    generators : sequence of torch.Generator
        One for each.
    """
    return lambda: torch.cat([torch.rand(n, 3, generator=g) for n, g in zip(counts, generators)])


def times(flow: Flow, steps: int) -> list[float]:
    """The times of a sample: equal steps to the last trained time, and one from there to 1.

    Parameters
    ----------
    flow : Flow
        The declaration.
    steps : int
        Number of steps.
    """
    if steps == 1:
        return [0.0, 1.0]
    return [flow.end * k / (steps - 1) for k in range(steps)] + [1.0]


class Sampler:
    """A batch of samples on its way. Each step is a function of the state and of its own random numbers.

    Parameters
    ----------
    model : Model
        The trained model, in eval mode.
    flow : Flow
        Its declaration.
    graph : Graph
        Noise at time 0; for "molecules" all elements are hidden.
    steps : int
        Number of steps.
    integrator : {"euler", "heun"}
        Euler evaluates the network once a step; Heun twice, except in the last step, which is one of Euler.
        The error of Heun falls with the square of the step up to the last trained time, if the velocity does
        not depend on an estimate of an earlier step (self-conditioning).
    draws : callable
        Returns three uniform random numbers for each atom, shape (N, 3), in each step of "molecules".
    remasking : float
        Rate η at which elements that are decided are hidden again, see `sample`.
    start : Tensor, optional
        Positions of the unrelaxed structures.
    push : callable, optional
        A guidance.
    """

    def __init__(
        self,
        model: Model,
        flow: Flow,
        graph: Graph,
        *,
        steps: int,
        integrator: Integrator,
        draws: Draws,
        remasking: float = 0.0,
        start: Tensor | None = None,
        push: Push | None = None,
    ) -> None:
        self.model, self.flow, self.graph = model, flow, graph
        self.grid, self.integrator = times(flow, steps), integrator
        self.draws, self.start, self.push, self.remasking = draws, start, push, remasking
        self.done = 0
        self.estimate: dict[str, Tensor] | None = None

    @property
    def left(self) -> int:
        """Number of steps that are left."""
        return len(self.grid) - 1 - self.done

    def step(self) -> None:
        """Do the next step. Raises ModelError for positions that are not finite."""
        now, then = self.grid[self.done], self.grid[self.done + 1]
        width, last = then - now, self.left == 1
        velocity, scores = self._evaluate(self.graph, now)
        moved = self.graph.replace(pos=self.graph.pos + width * velocity)
        if self.integrator == "heun" and not last:
            kept = self.estimate
            after, _ = self._evaluate(moved, then)
            self.estimate = kept
            moved = self.graph.replace(pos=self.graph.pos + width * (velocity + after) / 2)
        if scores is not None:
            moved = moved.replace(z=self._revealed(scores, now, then))
        finite = moved.pos.isfinite().all(1)
        if not bool(finite.all()):
            raise ModelError(
                f"sample: positions of structure {int(moved.batch[~finite][0])} of a batch are not finite "
                f"after step {self.done + 1} of {len(self.grid) - 1}; the training has diverged, or a "
                "guidance is too strong: train with a lower lr, or lower Guidance.strength"
            )
        self.graph = moved
        self.done += 1

    def _evaluate(self, graph: Graph, time: float) -> tuple[Tensor, Tensor | None]:
        """Velocity and scores of the elements; the estimate for the next evaluation is kept."""
        t = graph.pos.new_full((graph.num_graphs,), time)
        seen = inputs_of(self.flow, graph, t, start=self.start, estimate=self.estimate)
        seen = connected(seen, self.model)
        with torch.no_grad():
            out = self.model(seen)
        self.estimate = estimate_of(self.flow, seen, out)
        velocity = out[VELOCITY].to(graph.pos.dtype)
        velocity = centered(velocity, graph.batch, graph.num_graphs)
        scores = out.get(ELEMENT)
        if self.push is not None:
            expected = graph.pos + self.estimate["way"]
            z = graph.z
            if scores is not None:
                z = torch.where(z == HIDDEN, self._elements()[scores.argmax(1)], z)
            velocity = self.push(graph.replace(pos=expected, z=z), t, velocity)
        return velocity, scores

    def _elements(self) -> Tensor:
        return torch.tensor(self.flow.elements, device=self.graph.z.device)

    def _revealed(self, scores: Tensor, now: float, then: float) -> Tensor:
        """Elements after a step. A decided one is hidden again with the probability r = η dt, at most
        (1 - t') / t, and a hidden one decided with (dt + t r) / (1 - t). So for any η the fraction 1 - t' is
        hidden afterwards (Wang et al. 2025, arXiv 2503.00307, eqs. 4 to 6 with α = t).
        """
        drawn = self.draws().to(scores.device).double()
        cumulated = torch.softmax(scores.double(), 1).cumsum(1)
        choice = (drawn[:, 1:2] >= cumulated[:, :-1]).sum(1)
        again = min(self.remasking * (then - now), (1 - then) / now) if now > 0 else 0.0
        hidden = self.graph.z == HIDDEN
        decided = hidden & (drawn[:, 0] < (then - now + now * again) / (1 - now))
        z = torch.where(decided, self._elements()[choice], self.graph.z)
        return torch.where(~hidden & (drawn[:, 2] < again), HIDDEN, z)
