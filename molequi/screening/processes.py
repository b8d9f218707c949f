"""Blocks are done in worker processes of this machine; one that is killed is started again."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from molequi.errors import ConfigError
from molequi.readers.blocks import Block
from molequi.screening.work import as_line


class WorkerProcesses:
    """Worker processes; a context manager that ends them.

    Parameters
    ----------
    folder : Path
        The folder of the screening.
    count : int
        Number of processes.
    device : str or None
        Where the models run. By default on CUDA if this machine has it, and each process on the next device.
    """

    def __init__(self, folder: Path, count: int, device: str | None) -> None:
        self.folder, self.count, self.device = folder, count, device
        self._processes: list[_Process | None] = [None] * count
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._answers: SimpleQueue[dict[str, Any] | Exception] = SimpleQueue()

    def __enter__(self) -> "WorkerProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for process in self._processes:
            if process is not None:
                process.process.kill()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            if process is not None:
                process.stop()

    def run(self, blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
        """The answers of `BlockWork.answer` for all blocks, in the order in which they are done.

        Parameters
        ----------
        blocks : sequence of Block
            The blocks.

        Raises
        ------
        MolequiError
            If a worker process cannot be started.
        """
        todo = deque(blocks)
        count = min(self.count, len(blocks))
        self._threads = [
            threading.Thread(target=self._serve, args=(k, todo), daemon=True) for k in range(count)
        ]
        for thread in self._threads:
            thread.start()
        for _ in blocks:
            answer = self._answers.get()
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def _serve(self, number: int, todo: deque[Block]) -> None:
        """Do blocks in one process after the other, until none is left."""
        try:
            while not self._stopped:
                try:
                    block = todo.popleft()
                except IndexError:
                    return
                answer = None
                while answer is None and not self._stopped:
                    process = self._processes[number] or self._start(number)
                    answer = process.ask(as_line(block))
                    if answer is None:  # it was killed; the next one counts how often that happened
                        process.stop()
                        self._processes[number] = None
                if answer is not None:
                    self._answers.put(answer)
        except Exception as error:
            self._answers.put(error)

    def _start(self, number: int) -> "_Process":
        threads = max(1, _cores() // self.count)
        process = _Process(self.folder, self._device(number), threads)
        self._processes[number] = process
        process.check()
        return process

    def _device(self, number: int) -> str:
        if self.device not in (None, "auto"):
            return str(self.device)
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"cuda:{number % count}" if count else "cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Process:
    """One worker process."""

    def __init__(self, folder: Path, device: str, threads: int) -> None:
        path = os.pathsep.join(p for p in sys.path if p)  # it sees the packages of this process
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "molequi.screening.worker", str(folder), device, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C is for the parent, which ends it
        )

    def check(self) -> None:
        """Wait until it is ready. Raises the error if it is not."""
        from molequi.screening.work import checked

        answer = self.read()
        if answer is None:
            self.process.wait(5)
            self.errors.seek(0)
            words = self.errors.read().decode(errors="replace").strip().splitlines()
            raise ConfigError(
                f"a worker process cannot start: {words[-1] if words else 'it ended without a message'}; "
                "without processes= all is done in this process"
            )
        checked(answer)

    def ask(self, line: str) -> dict[str, Any] | None:
        """The answer to a line, or None if the process has ended."""
        assert self.process.stdin is not None, "a pipe was asked for"
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return None
        return self.read()

    def read(self) -> dict[str, Any] | None:
        """The next answer, or None if the process has ended."""
        assert self.process.stdout is not None, "a pipe was asked for"
        try:
            line = self.process.stdout.readline()
        except ValueError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def stop(self) -> None:
        """End the process, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):  # what it never read cannot be written any more
                if file is not None:
                    file.close()
