"""The structures of a block of a file: all of them at once, or some, so that a faulty one spoils no other."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import Request
from molequi.errors import DataError
from molequi.quantities import Quantity
from molequi.readers.arrays import npz_records
from molequi.readers.ase import record_of_frame, request_of
from molequi.readers.atoms import database_rows
from molequi.readers.blocks import Block, RawFrame, Source
from molequi.readers.extxyz import Frame, parse_frame
from molequi.readers.hdf5 import hdf5_records
from molequi.readers.hdf5_file import Span
from molequi.store.reading import open_store

# A function for each structure that makes its record, and what is to be read.
Made = tuple[Sequence[Callable[[], Record]], Request]


class Inputs(Protocol):
    """Structures of a block, which are read when they are wanted."""

    first: int  # number of the first one in the file
    count: int

    def open(self) -> None:
        """Read what has to be read as a whole. Raises DataError if that cannot be."""

    def numbers(self, k: int) -> np.ndarray | None:
        """Atomic numbers of a structure; None of points. Raises DataError if it is faulty."""

    def dataset(self, chosen: Sequence[int] | None = None) -> Dataset:
        """All structures, or some by their numbers in the block."""


class _Records:
    """Structures that a reader makes records of."""

    def __init__(self, block: Block, load: Callable[[], Made]) -> None:
        self.first, self.count, self._load = block.first, block.count, load
        self._read: dict[int, Record] = {}

    @cached_property
    def _made(self) -> Made:
        return self._load()

    def open(self) -> None:
        _ = self._made

    def _record(self, k: int) -> Record:
        if k not in self._read:
            self._read[k] = self._made[0][k]()
        return self._read[k]

    def numbers(self, k: int) -> np.ndarray | None:
        z = self._record(k).z
        return None if z is None else np.asarray(z)

    def dataset(self, chosen: Sequence[int] | None = None) -> Dataset:
        numbers = range(self.count) if chosen is None else chosen
        return assemble((self._record(k) for k in numbers), self._made[1])


class _Prepared:
    """Structures of a store."""

    def __init__(self, block: Block, folder: Path, quantities: Sequence[Quantity]) -> None:
        self.first, self.count, self.folder = block.first, block.count, folder
        self.quantities = {q.name: q for q in quantities}

    @cached_property
    def _data(self) -> Dataset:
        data = open_store(self.folder, verify=False)
        for name, q in self.quantities.items():
            if name in data.quantities and data.quantities[name].unit != q.unit:
                raise DataError(
                    f"{self.folder}: {name} in {data.quantities[name].unit or 'no unit'}; wanted "
                    f"{q.unit or 'no unit'}"
                )
        data = data.with_quantities([name for name in self.quantities if name in data.quantities])
        return data[self.first : self.first + self.count]

    def open(self) -> None:
        _ = self._data

    def numbers(self, k: int) -> np.ndarray | None:
        z = self._data[k].z
        return None if z is None else z.numpy()

    def dataset(self, chosen: Sequence[int] | None = None) -> Dataset:
        return self._data if chosen is None else self._data[list(chosen)]


def structures_of(
    source: Source, block: Block, content: Any, options: Mapping[str, Any], folder: Path = Path()
) -> Inputs:
    """The structures of a block.

    Parameters
    ----------
    source : Source
        The file.
    block : Block
        The block.
    content : list of RawFrame, ArraysPart or None
        What `molequi.readers.blocks.read_block` returns.
    options : mapping
        Options of the reader. Of a store only ``quantities`` are looked at.
    folder : Path
        The folder to which the path of the file is relative.

    Returns
    -------
    Inputs
    """
    options, path = {**options, "of_block": True}, folder / source.path
    if source.kind == "store":
        return _Prepared(block, path, options.get("quantities") or ())
    made: dict[str, Callable[[], Made]] = {
        "xyz": partial(_frames, content, options),
        "database": partial(_rows, source.path, path, block, options),
        "npz": partial(_arrays, Path(source.path), content, options),
        "hdf5": partial(_groups, path, block, options),
    }
    return _Records(block, made[source.kind])


def _frames(frames: Sequence[RawFrame], options: Mapping[str, Any]) -> Made:
    request = Request(**{k: v for k, v in options.items() if k != "format"})

    def parsed(raw: RawFrame) -> Record:
        return record_of_frame(parse_frame(raw.lines, raw.file, raw.number, raw.line), request)

    return [partial(parsed, raw) for raw in frames], request


def _rows(name: str, path: Path, block: Block, options: Mapping[str, Any]) -> Made:
    request = request_of([path], **options)
    rows = database_rows(path, options.get("format"), slice(block.first, block.first + block.count))
    frames = (Frame(atoms, name, block.first + k) for k, atoms in enumerate(rows))
    return [partial(record_of_frame, frame, request) for frame in frames], request


def _arrays(path: Path, arrays: Any, options: Mapping[str, Any]) -> Made:
    records, request, _ = npz_records(path, arrays, options)
    return _as_they_are(records), request


def _groups(path: Path, block: Block, options: Mapping[str, Any]) -> Made:
    records, request = hdf5_records(path, (Span(*span) for span in block.spans), options)
    return _as_they_are(records), request


def _as_they_are(records: Sequence[Record]) -> list[Callable[[], Record]]:
    def made(record: Record) -> Record:
        return record

    return [partial(made, record) for record in records]
