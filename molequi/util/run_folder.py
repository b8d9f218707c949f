"""The folder of a run: one training at a time, and its state on disk, whole or not at all."""

import fcntl
import hashlib
import io
import json
import math
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from molequi.errors import CheckpointError, TrainingError, TrainingWarning
from molequi.util.files import write_atomically

FORMAT = 1
_MAGIC = "molequi-state"


@contextmanager
def locked(folder: Path):
    """Makes the folder and holds it for this process.

    The lock is the system's, so that it ends with the process however that ends; the file `run.lock` says who holds it.
    Raises TrainingError if another process holds it, or if nothing can be written.
    """
    path = folder / "run.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise TrainingError(
            f"{folder}: the folder of the run cannot be written ({error.strerror or error}); choose another with out="
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise TrainingError(
                f"{folder}: another run is going on there ({file.read().strip() or 'unknown process'}); wait for"
                " it, or choose another folder with out="
            ) from None
        for left in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        except OSError as error:
            raise TrainingError(
                f"{folder}: the folder of the run cannot be written ({error.strerror or error})"
            ) from error
        try:
            yield
        finally:
            file.truncate(0)  # removing it would let two others hold two different files of this name


class States:
    """Two files written in turn, so that there is always a whole one.

    Each is one line of text (format, number of the save, SHA-256 of the rest) and a torch file of tensors and plain
    values, which is read with weights_only=True.
    """

    def __init__(self, folder: Path):
        self.paths = (folder / "state-0.pt", folder / "state-1.pt")
        self.count = 0

    def save(self, state: Mapping[str, Any]) -> None:
        """Writes over the older file. Raises CheckpointError if the disk is full; the other file stays."""
        memory = io.BytesIO()
        torch.save(dict(state), memory)
        payload = memory.getbuffer()
        head = f"{_MAGIC} {FORMAT} {self.count + 1} {hashlib.sha256(payload).hexdigest()}\n".encode()

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                file.write(head)
                file.write(payload)

        path = self.paths[(self.count + 1) % 2]
        write_or_tell(path, write)
        self.count += 1

    def load(self) -> dict[str, Any] | None:
        """The newest whole state, or None. Warns (TrainingWarning) of a damaged one before it takes the other.

        Raises CheckpointError if files are there and none can be used, or if they are of a newer version.
        """
        found = [(self._count(path), path) for path in self.paths if path.exists()]
        broken = []
        # One without a readable number may have been the newest: it comes first, so that it is told of.
        for count, path in sorted(
            found, key=lambda pair: math.inf if pair[0] is None else pair[0], reverse=True
        ):
            try:
                state = self._read(path)
            except CheckpointError as error:
                broken.append(str(error))
                continue
            if broken:
                warnings.warn(
                    f"{'; '.join(broken)}. Going on from the state before it, {path}",
                    TrainingWarning,
                    stacklevel=3,
                )
            self.count = count
            return state
        if broken:
            raise CheckpointError(
                f"{'; '.join(broken)}. No whole state is left; resume='restart' begins anew"
            )
        return None

    def remove(self) -> None:
        """Forget what is there."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    @staticmethod
    def _head(path: Path) -> list[str]:
        with open(path, "rb") as file:
            return file.readline(200).decode("ascii", "replace").split()

    def _count(self, path: Path) -> int | None:
        head = self._head(path)
        return int(head[2]) if len(head) == 4 and head[2].isdecimal() else None

    def _read(self, path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        head = self._head(path)
        if len(head) != 4 or head[0] != _MAGIC or not head[1].isdecimal():
            raise CheckpointError(f"{path}: not a state of a training, or damaged at its start")
        if int(head[1]) != FORMAT:
            newer = int(head[1]) > FORMAT
            raise CheckpointError(
                f"{path}: a state of format {head[1]}, this version"
                f" {'reads' if newer else 'no longer reads others than'} {FORMAT};"
                f" {'update molequi' if newer else 'begin anew'}"
            )
        payload = content[content.index(b"\n") + 1 :]
        if hashlib.sha256(payload).hexdigest() != head[3]:
            raise CheckpointError(f"{path}: damaged, its content does not match its SHA-256 digest")
        return torch.load(io.BytesIO(payload), weights_only=True)


def write_or_tell(path: Path, write: Callable[[Path], None]) -> None:
    """`write_atomically`, with a CheckpointError that names the file where the disk is full or refuses."""
    try:
        write_atomically(path, write)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is untouched. Make room,"
            " then start the same command again"
        ) from error


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Lines `key: before → now` for all leaves that differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
        ]
    if json.dumps(before, default=str) == json.dumps(now, default=str):
        return []
    return [f"{where}: {before!r} → {now!r}"]
