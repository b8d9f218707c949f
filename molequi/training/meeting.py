"""The start of a training with several processes: they find each other and say who they are."""

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from molequi.errors import TrainingError
from molequi.training.processes import wait_for
from molequi.util.launchers import Launched

ARRIVAL = 1800.0  # seconds in which all processes have to begin
_WAIT = timedelta(minutes=10)  # for an answer of the store


@dataclass(frozen=True)
class Met:
    """All processes have come.

    Parameters
    ----------
    clients : list of Store
        Three connections to the store, because each serves one thread.
    stores : list of Store
        Those that this process keeps for the others.
    names : list of str
        How messages call the processes, by rank.
    numbers : list of int
        Their numbers in the operating system.
    here : list of bool
        Whether they run on the machine of this process.
    """

    clients: list[Store]
    stores: list[Store]
    names: list[str]
    numbers: list[int]
    here: list[bool]


def open_store() -> tuple[TCPStore, int]:
    """A store on this machine, and its port."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False, timeout=_WAIT)
    return store, int(store.port)


def meet(launched: Launched, ended: Callable[[int], str]) -> Met:
    """Wait for all processes of a training.

    Parameters
    ----------
    launched : Launched
        What this process is.
    ended : callable
        How a process of a rank ended that this process started; empty if it did not.

    Raises
    ------
    TrainingError
        If some do not come within `ARRIVAL`, or end before; it names them.
    """
    server = _server(launched)
    _wait_for_server(launched)
    clients: list[Store] = [
        PrefixStore("molequi", TCPStore(launched.address, launched.port, None, False, timeout=_WAIT))
        for _ in range(3)
    ]
    store = clients[0]
    host = socket.gethostname()
    store.set(f"here/{launched.rank}", json.dumps({"host": host, "pid": os.getpid()}))
    _wait_for_all(launched, store, ended)
    found: list[dict[str, Any]] = [json.loads(store.get(f"here/{rank}")) for rank in range(launched.size)]
    names = [f"rank {rank} (process {one['pid']} on {one['host']})" for rank, one in enumerate(found)]
    here = [one["host"] == host for one in found]
    return Met(clients, server, names, [one["pid"] for one in found], here)


def _server(launched: Launched) -> list[Store]:
    """The store of a group whose launcher keeps none: rank 0 keeps it."""
    kept = launched.by == "molequi" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if kept or launched.rank:
        return []
    try:
        return [TCPStore(launched.address, launched.port, None, True, wait_for_workers=False, timeout=_WAIT)]
    except RuntimeError as error:
        raise TrainingError(
            f"rank 0 cannot use port {launched.port} of {launched.address} for {launched.by}: "
            f"{str(error).splitlines()[0]}. Choose another one with the environment variable MASTER_PORT"
        ) from None


def _wait_for_server(launched: Launched) -> None:
    """Wait until rank 0 answers."""
    parent, end = os.getppid(), time.monotonic() + ARRIVAL

    def missing() -> list[str]:
        try:
            socket.create_connection((launched.address, launched.port), timeout=5).close()
        except OSError:
            return [f"rank 0 at {launched.address}:{launched.port}"]
        return []

    def check() -> None:
        if launched.by == "molequi" and os.getppid() != parent:
            raise TrainingError("rank 0, which started this process, has ended before the training began")
        if time.monotonic() > end:
            raise TrainingError(
                f"rank {launched.rank} of {launched.size}: rank 0 does not answer at "
                f"{launched.address}:{launched.port} for {ARRIVAL / 60:g} min. {_advice(launched)}"
            )

    wait_for(missing, check)


def _wait_for_all(launched: Launched, store: Store, ended: Callable[[int], str]) -> None:
    end = time.monotonic() + ARRIVAL

    def away() -> list[int]:
        return [rank for rank in range(launched.size) if not store.check([f"here/{rank}"])]

    def check() -> None:
        for rank in away():
            if how := ended(rank):
                raise TrainingError(
                    f"rank {rank} {how} before the training began; look at its own message above"
                )
        if time.monotonic() > end:
            ranks = ", ".join(map(str, away()))
            raise TrainingError(
                f"rank {ranks} of {launched.size} did not come within {ARRIVAL / 60:g} min. "
                f"{_advice(launched)}"
            )

    wait_for(lambda: [f"rank {rank} of {launched.size}" for rank in away()], check)


def _advice(launched: Launched) -> str:
    if launched.by == "srun":
        return "Start all tasks with one srun, and let the nodes reach each other at this address"
    return f"Look at its own messages, and whether {launched.by} started all processes"
