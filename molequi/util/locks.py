"""Lock a folder, so that only one process writes to it."""

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from molequi.errors import ConfigError, TrainingError

_NAME = "run.lock"
# Files of a training. Where somebody else has one of them nothing else may leave a lock either: by the lock
# it would count as a file of molequi, and the next training would overwrite it.
_OF_RUNS = ("model.safetensors", "config.yaml", "metrics.csv", "errors.json", "errors.csv", "report.html")


def is_ours(folder: Path) -> bool:
    """Whether a folder has the file `run.lock` or a log of molequi.

    Parameters
    ----------
    folder : Path
        The folder, which need not exist.

    Examples
    --------
    >>> is_ours(Path("a folder that does not exist"))
    False
    """
    return (folder / _NAME).exists() or _has_log(folder)


def check_unused(folder: Path, writes: Sequence[str], *, restart: bool | None = None) -> None:
    """Raise ConfigError if files of something else in a folder would be overwritten.

    A folder with the file `run.lock` or with a log of molequi is one of molequi, whose files may be replaced.
    In any other folder the files that are there are somebody else's. Files with the names of those of a
    training are refused too, because a later training here would overwrite them.

    Parameters
    ----------
    folder : Path
        The folder, which need not exist.
    writes : sequence of str
        Names of the files that will be written.
    restart : bool, optional
        Whether the user wants to begin anew, so that files may be replaced; None: there is no such option.

    Raises
    ------
    ConfigError
        With the names of the files.

    Examples
    --------
    >>> check_unused(Path("a folder that does not exist"), ["model.safetensors"])
    """
    if restart or is_ours(folder):
        return
    names = dict.fromkeys([*writes, *_OF_RUNS])
    found = [name for name in names if (folder / name).is_file() and (folder / name).stat().st_size]
    if found:
        later = "" if {*found} & {*writes} else " by a later training"
        ways = "another folder with out= (--out)"
        ways += (
            "" if restart is None or later else ", or overwrite with resume='restart' (train.resume=restart)"
        )
        raise ConfigError(
            f"{folder}: there is {', '.join(found)}, and molequi did not make this folder (it has no "
            f"{_NAME}), so that files of something else would be overwritten{later}; choose {ways}"
        )


def _has_log(folder: Path) -> bool:
    try:
        with open(folder / "run.log", encoding="utf-8", errors="replace") as file:
            return "molequi" in file.readline()
    except OSError:
        return False


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
    path = folder / _NAME
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
