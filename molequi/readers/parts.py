"""Files in parts that are read one by one, in this process or in another one, for `molequi.prepare`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from molequi.data.dataset import Dataset
from molequi.errors import DataError
from molequi.readers.arrays import read_npz
from molequi.readers.atoms import database_size, is_extxyz
from molequi.readers.blocks import Block, Kind, Source, cut, records_of, source_of
from molequi.readers.hdf5_file import HDF5
from molequi.readers.inputs import structures_of
from molequi.readers.load import load_dataset, reader_of
from molequi.readers.molecule_files import suffix

_NAMES = {"xyz": "frames", "database": "rows"}


class Part(Protocol):
    """A part of a file. It can be handed to another process."""

    @property
    def where(self) -> str:
        """The place for messages."""

    @property
    def bytes(self) -> int:
        """The size of this part, about."""

    def read(self) -> Dataset:
        """The structures of this part, checked."""


@dataclass(frozen=True)
class _Structures:
    """A block of a file of structures."""

    source: Source
    block: Block
    content: Any
    options: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return self.block.end - self.block.start

    @property
    def where(self) -> str:
        last = self.block.first + self.block.count - 1
        return (
            f"{self.source.path}, {_NAMES.get(self.source.kind, 'structures')} {self.block.first} to {last}"
        )

    def read(self) -> Dataset:
        content = self.content
        if self.source.kind == "xyz":
            content = records_of(self.source, self.block, content)
        return structures_of(self.source, self.block, content, self.options).dataset()


@dataclass(frozen=True)
class _Whole:
    """All that is read at once: a file of another kind, or data that are in memory."""

    what: Any
    options: Mapping[str, Any]
    where: str
    bytes: int

    def read(self) -> Dataset:
        return load_dataset(self.what, **self.options)


def parts_of(path: Path, size: int, options: Mapping[str, Any]) -> Iterator[Part]:
    """The parts of a file, one after the other.

    Extended XYZ (plain and .gz), ASE databases, and .npz and HDF5 files of structures are read in blocks, so
    that little of them is in memory; other files are one part.

    Parameters
    ----------
    path : Path
        A file that exists.
    size : int
        Number of structures in a part.
    options : mapping
        Options of its reader.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    kind = _kind(path, options)
    if kind is None:
        yield _Whole(path, options, str(path), path.stat().st_size)
        return
    source, empty = source_of(path, kind), True
    for block, content in cut(source, size, keep=True, keys=options.get("keys")):
        yield _Structures(source, block, content, options)
        empty = False
    if empty:
        raise DataError(f"{path}: no frames in this file (it is empty)")


def _kind(path: Path, options: Mapping[str, Any]) -> Kind | None:
    """What a file that can be read in blocks holds; None of another one."""
    if {"index", "part"} & options.keys():
        return None
    format, ending = options.get("format"), suffix(path)
    if is_extxyz(path, format):
        return "xyz"
    if ending in HDF5:
        return "hdf5"
    if ending == ".npz":
        return "npz" if reader_of(path)[0] is read_npz else None
    return None if database_size(path, format) is None else "database"


def whole(what: Any, options: Mapping[str, Any]) -> Iterator[Part]:
    """Data that are in memory as one part.

    Parameters
    ----------
    what : object
        What `molequi.load_dataset` takes.
    options : mapping
        Options of its reader.
    """
    yield _Whole(what, options, type(what).__name__, 0)
