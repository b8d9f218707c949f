"""Lock a folder, so that only one process writes to it."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from molequi.errors import TrainingError


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create a folder and lock it for this process; remove temporary files that a killed process left there.

    The operating system holds the lock, so it ends with the process, even if the process is killed. The file
    `run.lock` says which process holds it.

    Parameters
    ----------
    folder : Path
        The folder; it is created if it does not exist.

    Raises
    ------
    TrainingError
        If another process holds the lock, or if the folder cannot be written.
    """
    path = folder / "run.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, held until the block ends
    except OSError as error:
        raise TrainingError(
            f"{folder}: the folder of the run cannot be written ({error.strerror or error}); choose another "
            "with out="
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise TrainingError(
                f"{folder}: another run uses this folder ({file.read().strip() or 'unknown process'}); wait "
                "for it, or choose another folder with out="
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
            # The file stays: without it, two processes could lock two different files of this name.
            file.truncate(0)
