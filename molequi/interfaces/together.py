"""Several simulations that calculate with one model at the same time, their structures in one batch."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from molequi.graph import Graph, collate
from molequi.interfaces.ase import Calculator

Result = TypeVar("Result")


class Stopped(Exception):
    """Raised in a task that asks for a calculation after the others were told to stop."""


@dataclass
class _Exchange:
    """Structures that tasks want to have calculated, and the results; `ready` guards all of it."""

    ready: threading.Condition = field(default_factory=threading.Condition)
    running: set[int] = field(default_factory=set)
    wanted: dict[int, tuple[Graph, bool]] = field(default_factory=dict)
    found: dict[int, dict[str, Any] | Exception] = field(default_factory=dict)
    stopped: bool = False

    def ask(self, task: int, graph: Graph, stress: bool) -> dict[str, Any]:
        """Wait for the results of a structure."""
        with self.ready:
            if self.stopped:
                raise Stopped
            self.wanted[task] = graph, stress
            self.ready.notify_all()
            while task not in self.found:
                self.ready.wait()
            answer = self.found.pop(task)
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Member(Calculator):
    """A calculator of one task, with the model of another calculator and a neighbor list of its own."""

    def __init__(self, calculator: Calculator, task: int, exchange: _Exchange) -> None:
        self.__dict__.update(calculator.sharing().__dict__)
        self._task, self._exchange = task, exchange

    def _evaluate(self, graph: Graph, stress: bool) -> dict[str, Any]:
        return self._exchange.ask(self._task, graph, stress)


class Together(Generic[Result]):
    """Runs tasks at the same time, each with a calculator, and calculates their structures in batches.

    Every task is a thread. When all of them wait for a calculation, their structures become one batch. So
    each task computes what it would compute alone, up to round-off.

    Parameters
    ----------
    calculator : Calculator
        The calculator whose model all tasks use.
    tasks : sequence of callable
        Each takes a calculator and returns its result.
    after_batch : callable
        Called in the thread of the caller after each batch. If it returns True, all tasks stop: they get
        `Stopped` when they ask for the next calculation.
    """

    def __init__(
        self,
        calculator: Calculator,
        tasks: Sequence[Callable[[Calculator], Result]],
        after_batch: Callable[[], bool] = lambda: False,
    ) -> None:
        self.calculator, self.tasks, self.after_batch = calculator, tasks, after_batch
        self.batches = 0
        self._exchange = _Exchange()
        self._results: dict[int, Result | BaseException] = {}

    def run(self) -> list[Result | BaseException]:
        """The result of each task, or the exception that ended it."""
        exchange = self._exchange
        exchange.running = set(range(len(self.tasks)))
        threads = [
            threading.Thread(target=self._work, args=(k,), daemon=True) for k in range(len(self.tasks))
        ]
        for thread in threads:
            thread.start()
        try:
            while self._calculate_batch():
                self.batches += 1
                if self.after_batch():
                    self._stop()
        finally:
            self._stop()
        for thread in threads:
            thread.join()
        return [self._results[k] for k in range(len(self.tasks))]

    def _work(self, k: int) -> None:
        try:
            self._results[k] = self.tasks[k](_Member(self.calculator, k, self._exchange))
        except BaseException as error:  # handed to the caller
            self._results[k] = error
        finally:
            with self._exchange.ready:
                self._exchange.running.discard(k)
                self._exchange.ready.notify_all()

    def _stop(self) -> None:
        with self._exchange.ready:
            self._exchange.stopped = True
            for task in self._exchange.wanted:
                self._exchange.found[task] = Stopped()
            self._exchange.wanted.clear()
            self._exchange.ready.notify_all()

    def _calculate_batch(self) -> bool:
        """Wait until all running tasks want a calculation, and calculate; False if none is left."""
        exchange = self._exchange
        with exchange.ready:
            while exchange.running and len(exchange.wanted) < len(exchange.running):
                exchange.ready.wait()
            wanted = dict(exchange.wanted)
        if not wanted:
            return False
        found: dict[int, dict[str, Any] | Exception] = {}
        for tasks in _groups(wanted):
            stress = wanted[tasks[0]][1]
            try:
                batch = collate([wanted[task][0] for task in tasks])
                found |= zip(tasks, self.calculator.results_of(batch, stress=stress))
            except Exception as error:  # each task decides what it means
                found |= dict.fromkeys(tasks, error)
        with exchange.ready:
            exchange.wanted.clear()
            exchange.found |= found
            exchange.ready.notify_all()
        return True


def _groups(wanted: dict[int, tuple[Graph, bool]]) -> list[list[int]]:
    """Tasks whose structures can be in one batch: with the same fields, and all with stress or none."""
    groups: dict[tuple[bool, frozenset[str]], list[int]] = {}
    for task, (graph, stress) in sorted(wanted.items()):
        groups.setdefault((stress, frozenset(graph.values())), []).append(task)
    return list(groups.values())
