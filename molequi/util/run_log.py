"""The log file of a run: what it prints, its warnings and its errors, each with the time."""

import logging
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from molequi.errors import MolequiError
from molequi.util.launchers import is_first_process

NAME = "run.log"
LOGGER = logging.getLogger("molequi")


class _File(logging.FileHandler):
    """The handler of one folder; it takes records of the thread that made it.

    The training makes the folder, after its options are checked and the data are read. Until then records
    wait, so that a run that cannot start leaves no folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8", delay=True)
        self.waiting: list[logging.LogRecord] = []
        self.thread = threading.get_ident()
        self.setFormatter(_Format("%(asctime)s %(levelname)s %(message)s"))

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread == self.thread

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting.append(record)
        if Path(self.baseFilename).parent.is_dir():
            records, self.waiting = self.waiting, []
            for one in records:
                super().emit(one)


class _Format(logging.Formatter):
    """Further lines of a message are indented, so that each time stamp begins a line."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\n    ")


@contextmanager
def run_log(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Append what happens to ``run.log`` in the folder of a run.

    Written are the messages of `log` and `say`, warnings, and at the end the error or the interrupt that
    ended the block. All are records of the logger ``"molequi"`` of Python's `logging`, so that further
    handlers can take them. Within the block of the same folder this does nothing.

    Parameters
    ----------
    folder : path or None
        Folder of the run; None writes nothing.
    """
    path = None if folder is None else Path(os.path.abspath(folder)) / NAME
    if path is None or not is_first_process() or any(_is_of(handler, path) for handler in LOGGER.handlers):
        yield
        return
    handler, level = _File(path), LOGGER.level
    LOGGER.addHandler(handler)
    if LOGGER.getEffectiveLevel() > logging.INFO:
        LOGGER.setLevel(logging.INFO)
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if threading.get_ident() == handler.thread:
            _write(handler, logging.WARNING, f"{category.__name__}: {message}")
        before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    _write(handler, logging.INFO, _start())
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        _write(handler, logging.WARNING, "interrupted; the same command goes on from here")
        raise
    except (MolequiError, OSError) as error:
        _write(handler, logging.ERROR, f"{type(error).__name__}: {error}")
        raise
    except BaseException as error:
        _write(handler, logging.ERROR, f"{type(error).__name__}: {error}", sys.exc_info())
        raise
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = before
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        handler.close()


def note(folder: str | os.PathLike[str], message: str) -> None:
    """Append an error to the log of a run whose own process cannot write it any more.

    Parameters
    ----------
    folder : path
        Folder of the run.
    message : str
        Plain text.
    """
    handler = _File(Path(os.path.abspath(folder)) / NAME)
    _write(handler, logging.ERROR, message)
    handler.close()


def log(message: str) -> None:
    """Write a message to the log files that are open.

    Parameters
    ----------
    message : str
        Plain text.
    """
    if LOGGER.isEnabledFor(logging.INFO):
        LOGGER.info("%s", message)


def say(message: str) -> None:
    """Print a message, and write it to the log files that are open.

    Parameters
    ----------
    message : str
        Plain text.
    """
    print(message, flush=True)
    log(message)


def versions() -> dict[str, str]:
    """Versions of molequi, Python and the packages that decide the numbers.

    Examples
    --------
    >>> list(versions())
    ['molequi', 'Python', 'torch', 'numpy', 'ase', 'rdkit']
    """
    from molequi import __version__

    found = {"molequi": __version__, "Python": platform.python_version()}
    for name in ("torch", "numpy", "ase", "rdkit"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # installed without metadata, as some packages of conda are
            found[name] = "unknown"
    return found


def _start() -> str:
    """The first record of each start: the command, the process and versions."""
    shown = ", ".join(f"{name} {number}" for name, number in versions().items())
    words = " ".join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])
    return f"start of process {os.getpid()} on {platform.node()}: {words}\n{shown}"


def _is_of(handler: logging.Handler, path: Path) -> bool:
    return (
        isinstance(handler, _File)
        and handler.baseFilename == str(path)
        and handler.thread == threading.get_ident()
    )


def _write(handler: logging.Handler, level: int, message: str, exc_info: Any = None) -> None:
    """A record for one file alone: blocks of several folders would write it several times."""
    handler.handle(LOGGER.makeRecord(LOGGER.name, level, "", 0, "%s", (message,), exc_info))


@contextmanager
def without_log(name: str) -> Iterator[None]:
    """Nothing is shown that a logger of another package and those below it say.

    Parameters
    ----------
    name : str
        Its name.
    """
    logger, nothing = logging.getLogger(name), logging.NullHandler()
    before, logger.propagate = logger.propagate, False
    logger.addHandler(nothing)
    try:
        yield
    finally:
        logger.removeHandler(nothing)
        logger.propagate = before
