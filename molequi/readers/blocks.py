"""Files in blocks of structures: each is read by itself, in this process or in another one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from molequi.data.dataset import Dataset
from molequi.data.request import Request
from molequi.errors import DataError
from molequi.readers import extxyz
from molequi.readers.ase import of_frames, request_of
from molequi.readers.atoms import database_rows, database_size, is_extxyz
from molequi.readers.extxyz import Frame
from molequi.readers.load import load_dataset


class Block(Protocol):
    """A part of a file. It can be handed to another process."""

    @property
    def where(self) -> str:
        """The place for messages."""

    @property
    def bytes(self) -> int:
        """The size of this part."""

    def read(self) -> Dataset:
        """The structures of this part, checked."""


@dataclass(frozen=True)
class _Frames:
    """The lines of frames of an extended XYZ file."""

    path: str
    first: int  # number of the first frame
    frames: list[tuple[int, list[str]]]  # number of the first line, and the lines
    options: Mapping[str, Any]
    bytes: int

    @property
    def where(self) -> str:
        return f"{self.path}, frames {self.first} to {self.first + len(self.frames) - 1}"

    def read(self) -> Dataset:
        parsed = (
            extxyz.parse_frame(lines, self.path, self.first + k, line)
            for k, (line, lines) in enumerate(self.frames)
        )
        return of_frames(parsed, Request(**self.options, of_block=True))


@dataclass(frozen=True)
class _Rows:
    """Rows of an ASE database."""

    path: str
    start: int
    stop: int
    options: Mapping[str, Any]
    bytes: int

    @property
    def where(self) -> str:
        return f"{self.path}, rows {self.start} to {self.stop - 1}"

    def read(self) -> Dataset:
        rows = database_rows(Path(self.path), self.options.get("format"), slice(self.start, self.stop))
        frames = (Frame(atoms, self.path, self.start + k) for k, atoms in enumerate(rows))
        return of_frames(frames, request_of([Path(self.path)], **self.options, of_block=True))


@dataclass(frozen=True)
class _Whole:
    """All that is read at once: a file of another kind, or data that are in memory."""

    what: Any
    options: Mapping[str, Any]
    where: str
    bytes: int

    def read(self) -> Dataset:
        return load_dataset(self.what, **self.options)


def blocks_of(path: Path, size: int, options: Mapping[str, Any]) -> Iterator[Block]:
    """The blocks of a file, one after the other.

    Extended XYZ (plain and .gz) and ASE databases are read in blocks, so that little of them is in memory;
    other files are one block.

    Parameters
    ----------
    path : Path
        A file that exists.
    size : int
        Number of structures in a block.
    options : mapping
        Options of its reader.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    format = options.get("format")
    if is_extxyz(path, format) and "index" not in options:
        options = {k: v for k, v in options.items() if k != "format"}
        frames, first = extxyz.texts(path), 0
        while block := list(islice(frames, size)):
            length = sum(len(line) for _, lines in block for line in lines)
            yield _Frames(str(path), first, block, options, length)
            first += len(block)
        return
    total = None if "index" in options else database_size(path, format)
    if total is None:
        yield _Whole(path, options, str(path), path.stat().st_size)
        return
    if not total:
        raise DataError(f"{path}: no frames in this file")
    for start in range(0, total, size):
        stop = min(start + size, total)
        length = path.stat().st_size * (stop - start) // total
        yield _Rows(str(path), start, stop, options, length)


def whole(what: Any, options: Mapping[str, Any]) -> Iterator[Block]:
    """Data that are in memory as one block.

    Parameters
    ----------
    what : object
        What `molequi.load_dataset` takes.
    options : mapping
        Options of its reader.
    """
    yield _Whole(what, options, type(what).__name__, 0)
