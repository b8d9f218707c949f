"""Save the state of a training on disk, and compare the settings of two runs."""

import hashlib
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from molequi.errors import CheckpointError, TrainingWarning
from molequi.util.files import write_file

FORMAT = 3
State = dict[str, Any]
_MAGIC = "molequi-state"


class StateFiles:
    """Two state files that are written in turn, so that one complete file always exists.

    Each file has one line of text (format, number of the save, SHA-256 of the remainder) and a torch file of
    tensors and plain values, which is read with ``weights_only=True``.

    Parameters
    ----------
    folder : Path
        The folder of the two files.
    upgrades : mapping of int to callable, optional
        For each earlier format that is read: the function that makes a state of the next format from one of
        it.
    """

    def __init__(self, folder: Path, upgrades: Mapping[int, Callable[[State], State]] | None = None) -> None:
        self.upgrades = dict(upgrades or {})
        self.paths = (folder / "state-0.pt", folder / "state-1.pt")
        self.count = 0

    def save(self, state: Mapping[str, Any]) -> None:
        """Overwrite the older of the two files.

        Parameters
        ----------
        state : mapping
            Tensors and plain values, nested in dictionaries and lists.

        Raises
        ------
        CheckpointError
            If the disk is full. The other file stays.
        """
        memory = io.BytesIO()
        torch.save(dict(state), memory)
        payload = memory.getbuffer()
        head = f"{_MAGIC} {FORMAT} {self.count + 1} {hashlib.sha256(payload).hexdigest()}\n".encode()

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                file.write(head)
                file.write(payload)

        write_file(self.paths[(self.count + 1) % 2], write)
        self.count += 1

    def load(self) -> State | None:
        """Return the newest complete state in the present format, or None if there are no files.

        It warns (TrainingWarning) if it skips a damaged file.

        Raises
        ------
        CheckpointError
            If there are files and none can be used, or if a newer version wrote them.
        """
        found = [(self._count(path), path) for path in self.paths if path.exists()]
        broken = []
        # A file without a readable number may have been the newest. It comes first, so that the warning names
        # it.
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
                    f"{'; '.join(broken)}. The run continues from the state before it, {path}",
                    TrainingWarning,
                    stacklevel=3,
                )
            self.count = count or 0
            return state
        if broken:
            raise CheckpointError(
                f"{'; '.join(broken)}. No complete state is left; resume='restart' starts again from the "
                "beginning"
            )
        return None

    def remove(self) -> None:
        """Delete both files."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    @staticmethod
    def _head(path: Path) -> list[str]:
        with open(path, "rb") as file:
            return file.readline(200).decode("ascii", "replace").split()

    def _count(self, path: Path) -> int | None:
        head = self._head(path)
        return int(head[2]) if len(head) == 4 and head[2].isdecimal() else None

    def _read(self, path: Path) -> State:
        content = path.read_bytes()
        head = self._head(path)
        if len(head) != 4 or head[0] != _MAGIC or not head[1].isdecimal():
            raise CheckpointError(f"{path}: not a state of a training, or damaged at its start")
        number = int(head[1])
        readable = sorted({FORMAT, *self.upgrades})
        if number not in readable:
            advice = "update molequi" if number > FORMAT else "start again with resume='restart'"
            raise CheckpointError(
                f"{path}: a state of format {number}; this version reads {', '.join(map(str, readable))}; "
                f"{advice}"
            )
        payload = content.partition(b"\n")[2]
        if hashlib.sha256(payload).hexdigest() != head[3]:
            raise CheckpointError(f"{path}: damaged; its content does not match its SHA-256 digest")
        try:
            state: State = torch.load(io.BytesIO(payload), weights_only=True)
            for step in range(number, FORMAT):
                state = self.upgrades[step](state)
        except Exception as error:  # what reads a foreign file raises anything
            raise CheckpointError(
                f"{path}: no state of a training: wanted tensors and plain values alone ({_first(error)}); "
                "nothing of it was run"
            ) from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: no state of a training: found {type(state).__name__}")
        return state


def _first(error: Exception) -> str:
    """The beginning of a message, which may be a page."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Compare two nested dictionaries.

    Parameters
    ----------
    before, now : object
        Dictionaries of plain values. Numbers are compared by value: 1 and 1.0 are equal.
    where : str
        What the lines put before a key.

    Returns
    -------
    list of str
        A line ``key: before → now`` for each leaf that differs.

    Examples
    --------
    >>> differences({"train": {"lr": 0.1, "epochs": 3}}, {"train": {"lr": 0.2, "epochs": 3.0}})
    ['train.lr: 0.1 → 0.2']
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if _equal(before, now) else [f"{where}: {before!r} → {now!r}"]


def _equal(before: Any, now: Any) -> bool:
    """Whether two leaves are the same for JSON; numbers are compared by value."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return before.keys() == now.keys() and all(_equal(before[key], now[key]) for key in now)
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)):
        return len(before) == len(now) and all(map(_equal, before, now))
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (before, now))
    if numbers and before == now:
        return True
    return json.dumps(before, default=str) == json.dumps(now, default=str)
