"""The processes of a training: sums over all of them, and what all of them must have in common.

Every process has a rank, from 0. Rank 0 alone prints and writes files. None of the methods waits for ever: if
another process is lost, they raise the same TrainingError in all processes, see `molequi.training.watch`.
"""

import io
import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store

from molequi.errors import ConfigError, TrainingError
from molequi.training import watch as limits
from molequi.training.watch import Watch
from molequi.util.launchers import Launched
from molequi.util.progress import tell
from molequi.util.state_files import differences

_SLICE = timedelta(seconds=0.25)  # a wait is interrupted so often, to look at the other processes
_ANNOUNCED = 60.0  # seconds of waiting, after which a line says for whom


class Processes:
    """A process that trains alone. All its methods return their arguments.

    Parameters
    ----------
    device : torch.device
        The device of this process.
    """

    global_rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_global_zero(self) -> bool:
        """Whether this process prints and writes files."""
        return self.global_rank == 0

    def all_reduce(self, data: Tensor, *, reduce_op: Literal["sum"] = "sum") -> Tensor:
        """The sum of a tensor over all processes.

        Parameters
        ----------
        data : Tensor
            The tensor of this process. It may be changed.
        reduce_op : {"sum"}
            As `lightning.fabric.Fabric` has it.
        """
        return data

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0.

        Parameters
        ----------
        value : object
            Tensors, numbers and text, in lists, tuples and mappings.
        """
        return value

    def barrier(self) -> None:
        """Wait for all processes."""

    def check_equal(self, values: Mapping[str, Any]) -> None:
        """Check that all processes were given the same.

        Parameters
        ----------
        values : Mapping
            Plain values, which are compared.

        Raises
        ------
        TrainingError
            With the ranks that differ from rank 0, and the values that differ.
        """


class Group(Processes):
    """One of several processes that train together.

    Parameters
    ----------
    launched : Launched
        What this process is.
    store, of_torch : Store
        Two connections to a store that all processes share, for this class and for PyTorch.
    names : list of str
        How messages call the processes.
    watch : Watch
        Notices that another process is lost.
    """

    def __init__(
        self, launched: Launched, store: Store, of_torch: Store, names: list[str], watch: Watch
    ) -> None:
        super().__init__(torch.device("cpu"))  # until the processes are connected
        self.global_rank, self.world_size = launched.rank, launched.size
        self.launched, self.names, self.watch = launched, names, watch
        self.store, self.of_torch = store, of_torch
        self._talks = 0

    def all_reduce(self, data: Tensor, *, reduce_op: Literal["sum"] = "sum") -> Tensor:
        """The sum of a tensor over all processes.

        Parameters
        ----------
        data : Tensor
            The tensor of this process. It is changed.
        reduce_op : {"sum"}
            As `lightning.fabric.Fabric` has it.

        Raises
        ------
        TrainingError
            If another process is lost or has failed.
        """
        data = data.contiguous()
        self._finish(lambda: dist.all_reduce(data, async_op=True))
        return data

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0.

        Parameters
        ----------
        value : object
            Tensors, numbers and text, in lists, tuples and mappings.

        Raises
        ------
        ConfigError
            If the value has something else.
        TrainingError
            If another process is lost or has failed.
        """
        content = torch.zeros(0, dtype=torch.uint8)
        if self.is_global_zero:
            memory = io.BytesIO()
            torch.save(value, memory)
            content = torch.frombuffer(memory.getbuffer(), dtype=torch.uint8).clone()
            self._read(content)  # before it is sent
        size = self.all_reduce(torch.tensor([len(content)], device=self.device))
        if not self.is_global_zero:
            content = torch.zeros(int(size), dtype=torch.uint8)
        content = content.to(self.device)
        self._finish(lambda: dist.broadcast(content, 0, async_op=True))
        return self._read(content.cpu())

    def _read(self, content: Tensor) -> Any:
        try:
            memory = io.BytesIO(content.numpy().tobytes())
            # What is on the GPU of rank 0 comes to that of this process; the remainder stays on the CPU.
            return torch.load(memory, weights_only=True, map_location={"cuda:0": str(self.device)})
        except Exception as error:
            raise ConfigError(
                "broadcast: the value has something else than tensors, numbers and text in lists, tuples and "
                f"mappings: {str(error).splitlines()[0]}"
            ) from error

    def barrier(self) -> None:
        """Wait for all processes.

        Raises
        ------
        TrainingError
            If another process is lost or has failed.
        """
        self.all_reduce(torch.zeros((), device=self.device)).item()

    def check_equal(self, values: Mapping[str, Any]) -> None:
        """Check that all processes were given the same.

        Parameters
        ----------
        values : Mapping
            Plain values, which are compared.

        Raises
        ------
        TrainingError
            With the ranks that differ from rank 0, and the values that differ; in all processes.
        """
        texts = self._all_say(json.dumps(values, default=str, sort_keys=True))
        first, lines = json.loads(texts[0]), []
        for rank, text in enumerate(texts):
            changed = differences(first, json.loads(text))
            if changed:
                shown = changed[:10] + ["…"] * (len(changed) > 10)
                lines.append(f"{self.names[rank]}:\n  " + "\n  ".join(shown))
        if lines:
            raise TrainingError(
                f"the processes of this training differ from {self.names[0]} (rank 0 → other):\n"
                + "\n".join(lines)
                + "\nGive all of them the same options, files and versions"
            )

    def _all_say(self, text: str) -> list[str]:
        """The texts of all processes. They may come at different times: nobody is given up who still runs."""
        self._talks += 1
        keys = [f"say/{self._talks}/{rank}" for rank in range(self.world_size)]
        self.store.set(keys[self.global_rank], text)
        wait_for(
            lambda: [self.names[r] for r, key in enumerate(keys) if not self.store.check([key])],
            self.watch.check,
        )
        return [self.store.get(key).decode() for key in keys]

    def _finish(self, begin: Callable[[], Any]) -> None:
        """Begin an operation of all processes, and wait until it is done or another process is lost."""
        self.watch.check()
        self.watch.steps += 1
        started = time.monotonic()
        try:
            work = begin()
        except RuntimeError as error:
            raise self.watch.verdict(error) from None
        if self.device.type != "cpu":
            work.wait()  # on the GPU; this process goes on, and `Watch` ends it if need be
            return
        while True:
            try:
                work.wait(_SLICE)
                return
            except RuntimeError as error:
                if work.is_completed():
                    raise self.watch.verdict(error) from None
            self.watch.check()
            if time.monotonic() - started > limits.STUCK:
                self._give_up()

    def _give_up(self) -> None:
        names = ", ".join(self.names[rank] for rank in self.watch.behind()) or "another process"
        self.watch.fail(
            f"{names} still runs, and the others have waited for it for {limits.STUCK / 60:g} min in a step. "
            f"Look at what it does (py-spy dump --pid …), and {self.watch.advice}"
        )
        self.watch.check()


def wait_for(missing: Callable[[], list[str]], check: Callable[[], None]) -> None:
    """Wait until nothing is missing. A line says what is waited for, from time to time.

    Parameters
    ----------
    missing : callable
        Names of what is missing.
    check : callable
        Called again and again; it raises an error if the wait is in vain.
    """
    announced, pause = time.monotonic(), 0.002
    while names := missing():
        check()
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
        if time.monotonic() - announced > _ANNOUNCED:
            announced = time.monotonic()
            tell(f"waiting for {', '.join(names)}")
