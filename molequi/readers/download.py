"""Download files, with resumption and digests, and unpack archives without trusting their names or sizes."""

import http.client
import os
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from molequi.errors import DataError
from molequi.util.files import file_sha256
from molequi.util.progress import ProgressBar

_CHUNK = 1 << 20
_PAUSES = (1.0, 4.0, 15.0)  # seconds before each further try
_TRANSIENT = (408, 429, 500, 502, 503, 504)


def fetch(
    url: str, path: str | os.PathLike, *, sha256: str, limit: int = 64 * 2**30, timeout: float = 60.0
) -> Path:
    """Download a file, unless it is there already.

    An interrupted download is continued where it stopped, in this call or a later one. Until then its bytes
    are in the file ``.<name>.part`` beside `path`. `path` itself appears only when the file is complete and
    has the right SHA-256.

    Parameters
    ----------
    url : str
        Address, http or https.
    path : str or Path
        Where the file goes.
    sha256 : str
        SHA-256 of the file, 64 hexadecimal digits.
    limit : int
        Largest number of bytes.
    timeout : float
        Seconds without a byte after which a connection counts as broken.

    Returns
    -------
    Path

    Raises
    ------
    DataError
        If the digest is wrong, another file exists at `path`, the address does not answer, or there are too
        many bytes.
    """
    path, sha256 = Path(path), str(sha256).lower()
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url}: wanted an address with http:// or https://")
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise DataError(f"sha256={sha256!r}: wanted 64 hexadecimal digits")
    part = path.with_name(f".{path.name}.part")
    try:
        if path.exists():
            if file_sha256(path) != sha256:
                raise DataError(
                    f"{path}: there is a file with another SHA-256 than that of {url}; move it away, or "
                    "correct the digest"
                )
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        continued = part.exists() and part.stat().st_size > 0
        _complete(url, part, limit, timeout)
        found = file_sha256(part)
        if found != sha256 and continued:
            part.unlink()  # it may have begun with another version of the file
            _complete(url, part, limit, timeout)
            found = file_sha256(part)
        if found != sha256:
            part.unlink()
            raise DataError(f"{url}: the file has the SHA-256 {found}; wanted {sha256}. It was not kept")
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return path


def _complete(url: str, part: Path, limit: int, timeout: float) -> None:
    """Write all bytes of `url` to `part`, in several connections if needed. Each progress resets the number
    of tries.
    """
    pauses = list(_PAUSES)
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _transfer(url, part, limit, timeout):
                return
            problem: Exception | str = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _TRANSIENT:
                raise DataError(f"{url}: the server answers {error.code} {error.reason}") from error
            problem = error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            problem = error
        if part.exists() and part.stat().st_size > before:
            pauses = list(_PAUSES)
        if not pauses:
            raise DataError(
                f"{url}: {getattr(problem, 'reason', problem)}; what has come is kept, call again to continue"
            )
        time.sleep(pauses.pop(0))


def _transfer(url: str, part: Path, limit: int, timeout: float) -> bool:
    """Read from one connection; True if the last byte was read."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if (
            error.code != 416
        ):  # nothing is left from `start` on: complete, or of another file; the digest knows
            raise
        error.close()
        return True
    with answer:
        continues = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(
            f"bytes {start}-"
        )
        if answer.status == 206 and not continues:
            raise http.client.HTTPException(
                f"the server sends {answer.headers.get('Content-Range')}, not from {start} on"
            )
        start = start if continues else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        name = PurePosixPath(urllib.parse.urlsplit(url).path).name
        with (
            open(part, "ab" if continues else "wb") as file,
            ProgressBar(name, total, unit="B", start=start, delay=1) as bar,
        ):
            while chunk := answer.read(_CHUNK):
                start += len(chunk)
                if start > limit:
                    raise DataError(f"{url}: more than {limit} bytes; say limit= if that is meant")
                file.write(chunk)
                bar.advance(len(chunk))
    return total is None or start == total


def unpack(
    archive: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    max_bytes: int = 16 * 2**30,
    max_files: int = 200_000,
) -> list[Path]:
    """Unpack a .zip or .tar (also .gz, .bz2, .xz) into a new folder, as a whole or not at all.

    Only plain files and folders are accepted; absolute paths, "..", links, devices and repeated names are
    refused.

    Parameters
    ----------
    archive : str or Path
        The archive.
    folder : str or Path
        The new folder.
    max_bytes, max_files : int
        Largest size and number of files, counted while they are written.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    DataError
        If the archive is damaged or has an entry that is refused, or if `folder` exists.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder}: exists; wanted a new folder for what is in {archive}")
    if not archive.is_file():
        raise DataError(f"{archive}: no such file")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        names = _write_members(archive, temporary, max_bytes, max_files)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
        temporary = None
        return [folder / name for name in names]
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        LZMAError,
        EOFError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise DataError(
            f"{archive}: damaged or truncated archive, or one with a password ({error}); download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked into {folder}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_members(archive: Path, folder: Path, max_bytes: int, max_files: int) -> list[Path]:
    written, left = [], max_bytes
    for count, (name, content) in enumerate(_members(archive)):
        if count >= max_files:
            raise DataError(f"{archive}: more than {max_files} files; say max_files= if that is meant")
        target = folder / _safe(archive, name)
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(target, "xb")  # noqa: SIM115 (never over an existing file; closed below)
        except (FileExistsError, IsADirectoryError) as error:
            raise DataError(f"{archive}: {name!r} is in it twice") from error
        with file, content:
            while chunk := content.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise DataError(
                        f"{archive}: more than {max_bytes} bytes when unpacked; say max_bytes= if that is "
                        "meant"
                    )
                file.write(chunk)
        written.append(target.relative_to(folder))
    return written


def _safe(archive: Path, name: str) -> Path:
    """A path inside of the folder, or DataError."""
    parts = PurePosixPath(name).parts
    if (
        not parts
        or name.startswith("/")
        or ".." in parts
        or any(c in name for c in "\\\0")
        or (len(name) > 1 and name[1] == ":")
    ):
        raise DataError(f"{archive}: holds {name!r}, a path that leads out of the folder; do not trust it")
    return Path(*parts)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of each file, None for a folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as source:
            for member in source.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(
                        f"{archive}: {member.filename!r} is a link or a device; wanted plain files. Do not "
                        "trust it"
                    )
                yield member.filename, None if member.is_dir() else source.open(member)
        return
    with tarfile.open(archive) as tar:
        for entry in tar:
            if not (entry.isreg() or entry.isdir()):
                raise DataError(
                    f"{archive}: {entry.name!r} is a link or a device; wanted plain files. Do not trust it"
                )
            yield entry.name, None if entry.isdir() else tar.extractfile(entry)
