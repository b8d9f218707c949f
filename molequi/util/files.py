"""Write files atomically, and compute SHA-256 digests."""

import errno
import hashlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from molequi.errors import CheckpointError, ConfigError, DataError, MolequiError


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a file so that it is either complete or unchanged.

    The function creates a temporary file beside `path`, flushes it to disk and renames it. After an
    interrupt, a kill or a full disk the old file is as before.

    Parameters
    ----------
    path : path-like
        The file to write.
    write : callable
        Called with the path of the temporary file; it writes the content there.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that flush no folders
            raise
    finally:
        os.close(folder)


def write_file(
    path: str | os.PathLike[str],
    content: str | bytes | Callable[[Path], object],
    *,
    error: type[MolequiError] = CheckpointError,
) -> None:
    """Write a file atomically, and raise an error that a user understands if this fails.

    Parameters
    ----------
    path : path-like
        The file to write.
    content : str, bytes or callable
        The content (text is written as UTF-8), or a function that writes it to the path it gets.
    error : class
        The error to raise; its message names the file and the reason.

    Raises
    ------
    CheckpointError
        Or the class `error`, if the disk is full or the file cannot be written.
    """

    def write(temporary: Path) -> None:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)

    try:
        write_atomically(path, write)
    except OSError as reason:
        raise error(
            f"{os.fspath(path)}: cannot be written ({reason.strerror or reason}); what was saved before is "
            "unchanged. Make room, then start the same command again"
        ) from reason


def check_target(path: str | os.PathLike[str], *, name: str = "out") -> None:
    """Check that a file can be written, before the work whose results it shall hold.

    Parameters
    ----------
    path : path-like
        The file. Nothing is left behind if it does not exist.
    name : str
        The option that the user gave, for the message.

    Raises
    ------
    ConfigError
        If there is no such folder, if it cannot be written, or if the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(
            f"{name}={path}: is a folder; wanted a file in it, such as {path / 'predicted.xyz'}"
        )
    if not path.parent.exists():
        raise ConfigError(
            f"{name}={path}: there is no folder {path.parent}; make it with\n  "
            f"{shlex.join(['mkdir', '-p', str(path.parent)])}"
        )
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name}={path}: cannot be written ({error.strerror or error}); choose another file"
        ) from error


def check_new_target(path: str | os.PathLike[str], *, overwrite: bool, name: str = "--out ") -> None:
    """Check that a command can write a file, and that no other one is lost by it.

    Parameters
    ----------
    path : path-like
        The file.
    overwrite : bool
        Whether an existing file may be replaced.
    name : str
        What the user typed before the file, for the message.

    Raises
    ------
    ConfigError
        As `check_target`; and if the file exists and may not be replaced.
    """
    if Path(path).is_file() and not overwrite:
        raise ConfigError(
            f"{name}{os.fspath(path)}: this file exists; choose another name, or replace it with --overwrite"
        )
    check_target(path, name=name.rstrip(" ="))


def check_target_folder(path: str | os.PathLike[str], *, name: str = "out") -> None:
    """Check that a folder can be made and written, before the work whose results it shall hold.

    Parameters
    ----------
    path : path-like
        The folder; it need not exist, nor the folders above it.
    name : str
        The option that the user gave, for the message.

    Raises
    ------
    ConfigError
        If a file has its name or that of a folder above it, or if it cannot be written.
    """
    path = Path(path)
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not there.is_dir():
        raise ConfigError(f"{name}={path}: {there} is a file; wanted a folder, choose another name")
    check_target(there / "file", name=name)


def write_results(
    path: str | os.PathLike[str], write: Callable[[Path], object], *, error: type[MolequiError] = DataError
) -> None:
    """Write results atomically; if this fails, write them elsewhere, so that no work is lost.

    Parameters
    ----------
    path : path-like
        The file to write.
    write : callable
        Called with the path of a temporary file; it writes the content there.
    error : class
        The error to raise.

    Raises
    ------
    DataError
        Or the class `error`, if the file cannot be written; the message says where the results are.
    """
    try:
        write_atomically(path, write)
    except OSError as reason:
        said = f"{os.fspath(path)}: cannot be written ({reason.strerror or reason})"
        try:
            kept = Path(tempfile.mkdtemp(prefix="molequi-")) / Path(path).name
            write_atomically(kept, write)
        except OSError:
            raise error(f"{said}, nor can a temporary file; make room, then start again") from reason
        raise error(f"{said}; the results are in {kept}") from reason


def open_streams() -> None:
    """Open what is closed of standard input, output and error onto the null device.

    A program is started with closed ones as in ``molequi train … 2>&-``. The next file that it opens would
    take their number, and what a library writes to standard error would end up in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115  # stays open


def sha256(parts: Iterable[bytes | memoryview | str]) -> str:
    """SHA-256 of several parts joined together.

    Parameters
    ----------
    parts : iterable of bytes, memoryview or str
        The parts; text is encoded as UTF-8.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the content of a file.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
