"""Notice that another process of a training has ended, stopped or failed.

A process that waits for a sum over all processes cannot know whether the others still work. So a thread of
each process writes a growing number to a store that all processes share (`torch.distributed.TCPStore`) every
`INTERVAL` seconds, and reads the numbers of the others. A process whose number has not grown for `SILENCE`
seconds does not run any more: it was killed or stopped. A slow one (compilation, a long validation) goes on
counting, because its thread does. Clocks of different machines are not compared.

An error is written to the store too. So all processes end with the message of the first one.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import Store

from molequi.errors import TrainingError

INTERVAL = 1.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one, after which a process is given up
GRACE = 15.0  # seconds that a process has to leave what it does, once the training has failed
STUCK = 1800.0  # seconds that a process that runs may let the others wait in a step
_FAILED = "failed"
_SIGNALS = {"KeyboardInterrupt": signal.SIGINT, "SystemExit": signal.SIGTERM}


@dataclass(frozen=True)
class Failure:
    """Why the processes cannot go on together.

    Parameters
    ----------
    rank : int
        The process where it happened.
    text : str
        The message.
    signal : int
        The signal that ended that process, if it was one.
    lost : bool
        That process does not answer; otherwise it gave the message itself.
    """

    rank: int
    text: str
    signal: int = 0
    lost: bool = False

    def error(self) -> BaseException:
        """The exception for the other processes."""
        if self.signal == signal.SIGTERM:
            return SystemExit(143)
        return KeyboardInterrupt() if self.signal else TrainingError(self.text)


class Watch:
    """The signs of life of all processes, as one of them sees them.

    Parameters
    ----------
    store : Store
        The store that all processes share. No other thread uses this object.
    rank : int
        Rank of this process.
    names : list of str
        How messages call the processes.
    lost : callable
        What is known of a process that is silent, from its rank, such as that it was killed.
    """

    def __init__(self, store: Store, rank: int, names: list[str], lost: Callable[[int], str]) -> None:
        size = len(names)
        self.store, self.rank, self.names, self.lost = store, rank, names, lost
        self.failure: Failure | None = None
        self.active = False  # within a training
        self.suspicious = False  # the connection to another process broke
        self.before_exit: Callable[[], None] = lambda: None
        self.raised = False  # this process knows of the failure, and ends by itself
        self.steps = 0  # sums over all processes that this process has begun
        self.advice = "start the same command again"
        self.folder: Path | None = None  # of the run
        self._number, self._left = 0, False
        self._report: str | None = None
        self._states: list[dict[str, Any]] = [{} for _ in range(size)]
        now = time.monotonic()
        self._heard = [now] * size
        self._contact = now
        self._wake, self._over = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._signal, name="molequi-signs-of-life", daemon=True),
            threading.Thread(target=self._judge, name="molequi-watch", daemon=True),
        ]

    def start(self) -> None:
        """Begin; all processes have to call this method at about the same time."""
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Say that this process ends, and stop."""
        self._left = True
        self._wake.set()
        self._over.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2 * INTERVAL)

    # What the main thread asks.

    def check(self) -> None:
        """Raise the error of the training, if it has failed."""
        if self.failure is not None:
            self.raised = True
            raise self.failure.error()

    def behind(self) -> list[int]:
        """The processes that have begun fewer sums than this one."""
        return [
            rank
            for rank, state in enumerate(self._states)
            if rank != self.rank and state.get("steps", 0) < self.steps
        ]

    def verdict(self, error: Exception) -> BaseException:
        """The error of a training whose connection to another process broke.

        Parameters
        ----------
        error : Exception
            What the connection says, which names no process.
        """
        self.suspicious = True  # a third of the silence is enough now
        end = time.monotonic() + SILENCE / 3 + 2 * INTERVAL + 2
        while self.failure is None and time.monotonic() < end:
            time.sleep(0.05)
        self.raised = True
        if self.failure is None:
            self.fail(
                f"the connection between the processes broke, and all of them still run: {error}. Look at "
                f"the network, and {self.advice}"
            )
        assert self.failure is not None
        return self.failure.error()

    def fail(self, text: str, number: int = 0) -> None:
        """Tell the other processes that this one ends, and wait until they know it.

        Parameters
        ----------
        text : str
            The message for them.
        number : int
            The signal that ended this process.
        """
        self.raised = True
        if self.failure is None:
            self.failure = Failure(self.rank, text, number)
            self._report = json.dumps(vars(self.failure))
        self.wait_until_known()

    def wait_until_known(self) -> None:
        """Wait until the other processes know that the training has failed, but not for long."""
        self.raised = True
        self._wake.set()
        end = time.monotonic() + max(GRACE / 2, 2 * INTERVAL)
        while time.monotonic() < end and not self._all_know() and not self._over.is_set():
            time.sleep(0.05)

    def _all_know(self) -> bool:
        assert self.failure is not None
        return all(
            state.get("knows") or state.get("left")
            for rank, state in enumerate(self._states)
            if rank != self.failure.rank or self.rank == rank
        )

    # The thread that talks to the store. It may be blocked there, if the process that keeps it is stopped.

    def _signal(self) -> None:
        while True:
            last = self._over.is_set()
            try:
                self._exchange()
            except Exception as error:  # whatever the store raises, it is lost
                if not last and self.failure is None:
                    self._accuse(0, f"its connection broke ({str(error).splitlines()[0][:100]})")
                return
            self._contact = time.monotonic()
            if last:
                return
            self._wake.wait(INTERVAL)
            self._wake.clear()

    def _exchange(self) -> None:
        if self._report is not None:
            report, self._report = self._report, None
            self.store.compare_set(_FAILED, "", report)
        self._number += 1
        own = {"number": self._number, "steps": self.steps, "left": self._left}
        own["knows"] = self.failure is not None
        self.store.set(f"life/{self.rank}", json.dumps(own))
        keys = [f"life/{rank}" for rank in range(len(self.names))]
        if not self.store.check(keys):  # at the start
            return
        for rank, text in enumerate(self.store.multi_get(keys)):
            state = json.loads(text)
            if state != self._states[rank]:
                self._states[rank], self._heard[rank] = state, time.monotonic()
        if self.failure is None and self.store.check([_FAILED]):
            self.failure = Failure(**json.loads(self.store.get(_FAILED)))
            self._wake.set()  # say at once that this process knows it

    # The thread that draws the consequences.

    def _judge(self) -> None:
        before = time.monotonic()
        failed_at = 0.0
        while not self._over.wait(INTERVAL / 4):
            now = time.monotonic()
            if now - before > 5 * INTERVAL:  # this process was stopped itself, perhaps with all others
                self._heard = [now] * len(self._heard)
                self._contact = now
            before = now
            if self.failure is None:
                self._look(now)
                failed_at = now
            elif self.active and not self.raised and now - failed_at > GRACE:
                self._end()

    def _look(self, now: float) -> None:
        limit = self._limit()
        if now - self._contact > limit:
            self._accuse(0, f"it has not answered for {limit:g} s")
            return
        for rank, heard in enumerate(self._heard):
            silent = now - heard
            if rank != self.rank and self._states[rank].get("left") and self.active and silent > 5 * INTERVAL:
                self._accuse(rank, "it ended before the training did")
            elif rank != self.rank and not self._states[rank].get("left") and silent > self._limit(rank):
                self._accuse(rank, f"it has not answered for {limit:g} s")

    def _limit(self, rank: int | None = None) -> float:
        """Seconds of silence after which a process is given up."""
        if not self.suspicious:
            return SILENCE
        ended = rank is not None and "ended" in self.lost(rank)
        return 2 * INTERVAL if ended else max(SILENCE / 3, 2 * INTERVAL)

    def _accuse(self, rank: int, why: str) -> None:
        """The verdict of this process about another one."""
        known = self.lost(rank)
        text = f"{self.names[rank]} is lost: {known or why}. The others end too; {self.advice}"
        failure = Failure(rank, text, lost=True)
        self._report = json.dumps(vars(failure))
        self.failure = failure
        self._wake.set()

    def _end(self) -> None:
        """End this process from outside, because what it does cannot be interrupted."""
        assert self.failure is not None
        print(f"molequi: {self.failure.text}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        self.before_exit()
        os._exit(128 + self.failure.signal if self.failure.signal else 2)


def signal_of(error: BaseException) -> int:
    """The signal that an exception stands for; 0 for an error.

    Parameters
    ----------
    error : BaseException
        What ends a process.

    Examples
    --------
    >>> signal_of(KeyboardInterrupt()), signal_of(SystemExit(143)), signal_of(ValueError("no"))
    (2, 15, 0)
    """
    if isinstance(error, SystemExit) and error.code != 143:
        return 0
    return int(_SIGNALS.get(type(error).__name__, 0))


def state_of_process(pid: int) -> str:
    """What this machine knows of a process that does not answer; empty if that is nothing.

    Parameters
    ----------
    pid : int
        Its number.

    Examples
    --------
    >>> import os
    >>> state_of_process(os.getpid())
    ''
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return "the process has ended" if Path("/proc/self/stat").exists() else ""
    except OSError:
        return ""
    letter = text.rpartition(")")[2].split()[0]
    if letter in "ZX":
        return "the process has ended"
    return "the process is stopped (kill -CONT would continue it)" if letter in "Tt" else ""
