"""Files that are written as a whole or not at all, and SHA-256 digests."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to disk, and move it into place in one step.

    An interrupt, a kill or a full disk leaves the old file as it was; the temporary one is removed where that is possible.
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


def sha256(parts: Iterable[bytes | str]) -> str:
    """SHA-256 of the parts joined together, as 64 hexadecimal digits; text is encoded in UTF-8."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of the content of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
