"""Write files atomically, and compute SHA-256 digests."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from molequi.errors import CheckpointError, MolequiError


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


def sha256(parts: Iterable[bytes | str]) -> str:
    """SHA-256 of several parts joined together.

    Parameters
    ----------
    parts : iterable of bytes or str
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
