"""Processes of RDKit that make geometries; `molequi.readers.conformers` is their program."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from molequi.readers.conformers import PROGRAM


class Embedder:
    """RDKit processes that make geometries; a context manager that ends them.

    A result depends only on its molecule and the options.

    Parameters
    ----------
    options : mapping
        As of `geometry`.
    workers : int
        Number of processes.
    """

    def __init__(self, options: Mapping[str, object], workers: int) -> None:
        self.options, self.workers = dict(options), workers
        self._idle: SimpleQueue = SimpleQueue()
        self._all: list[_Process] = []
        self._closed = False
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Embedder":
        for _ in range(self.workers):
            self._idle.put(None)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        for process in self._all:
            process.process.kill()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._all:
            process.stop()

    def map(self, texts: Iterable[str], *, check: bool = False) -> Iterator[dict]:
        """The results in the order of the texts: as of `geometry`, or ``{"reason": …}``.

        With `check` no geometry is made, see `geometry`.
        """
        waiting: deque = deque()  # a few are computed ahead
        self._threads = self._threads or ThreadPoolExecutor(self.workers)
        for text in texts:
            waiting.append(self._threads.submit(self._ask, {"check": text} if check else text))
            if len(waiting) > 32 * self.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _ask(self, text: object) -> dict:
        process = self._idle.get()
        try:
            if self._closed:
                return {"reason": "stopped"}
            if process is None:
                process = _Process(self.options)
                self._all.append(process)
            answer = process.ask(text)
            if answer is None:
                code, process = process.stop(), None
                how = f"signal {-code}" if code < 0 else f"status {code}"
                answer = {"reason": f"RDKit itself ended at this molecule ({how})"}
            return answer
        finally:
            self._idle.put(process)


class _Process:
    """One RDKit process."""

    def __init__(self, options: Mapping[str, object]) -> None:
        # It sees the packages of this process. With -P, the folder of this file does not hide standard
        # modules.
        path = os.pathsep.join(p for p in sys.path if p)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self.process = subprocess.Popen(
            [sys.executable, "-P", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which ends it
        )
        if self.ask(options) is None:
            from molequi.errors import DataError

            self.process.wait(5)
            self.errors.seek(0)
            words = self.errors.read().decode(errors="replace").strip().splitlines()
            self.stop()
            raise DataError(
                f"RDKit cannot be started: {words[-1] if words else 'no message'}; is it installed (pip "
                "install rdkit)?"
            )

    def ask(self, question: object) -> dict | None:
        """The answer, or None if the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None, "pipes were asked for"
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except (BrokenPipeError, ValueError):
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def stop(self) -> int:
        """End the process, if it still runs, and return its status."""
        try:
            self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            self.process.kill()
        status = self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):  # what it never read cannot be written any more
                if file is not None:
                    file.close()
        return status
