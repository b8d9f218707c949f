"""Files of structures and molecules, cut into blocks that can be read one by one.

`cut` reads a file once, in bounded memory, and `read_block` reads one of its blocks. What is in a block
becomes a Dataset by `molequi.readers.inputs`.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from molequi.errors import ConfigError, DataError, DataWarning
from molequi.readers.atoms import database_size
from molequi.readers.csv_cells import csv_table
from molequi.readers.extxyz import raw_frames
from molequi.readers.files import readable
from molequi.readers.hdf5_file import HDF5, spans_of
from molequi.readers.lines import Lines, open_bytes
from molequi.readers.molecule_files import (
    CSV,
    SDF,
    SMI,
    find_column,
    list_rows,
    sdf_records,
    suffix,
    table_rows,
)
from molequi.readers.npz_parts import opened_rows
from molequi.readers.tables import find_smiles_column
from molequi.store.manifest import is_store, read_manifest
from molequi.util.files import file_sha256, sha256

Kind = Literal["xyz", "database", "npz", "hdf5", "store", "table", "list", "sdf"]
XYZ = (".xyz", ".extxyz")
STRUCTURES = ("xyz", "database", "npz", "hdf5", "store")
_TEXTS = ("xyz", "table", "list", "sdf")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(XYZ, "xyz"),
    **dict.fromkeys((".db", ".aselmdb", ".json"), "database"),
    ".npz": "npz",
    **dict.fromkeys(HDF5, "hdf5"),
    **dict.fromkeys(CSV, "table"),
    **dict.fromkeys(SMI, "list"),
    **dict.fromkeys(SDF, "sdf"),
}


@dataclass(frozen=True)
class Source:
    """A file of inputs.

    Parameters
    ----------
    path : str
        Its path.
    kind : {"xyz", "database", "npz", "hdf5", "store", "table", "list", "sdf"}
        What it holds: frames of extended XYZ, rows of an ASE database, arrays, groups of structures, prepared
        structures, a table with a column of SMILES, a list of SMILES, or records.
    records : int
        Number of structures, molecules or records.
    sha256 : str
        Digest of its content.
    stamp : str
        Of a file that is no text: its size and when it was changed; of a store its digest.
    header : str
        The first lines of a table, with the names of its columns.
    column : str
        The column of a table with the SMILES.
    columns : tuple of str
        The other columns of a table; ``("name",)`` for lists and records.
    """

    path: str
    kind: Kind
    records: int = 0
    sha256: str = ""
    header: str = ""
    column: str = ""
    columns: tuple[str, ...] = ()
    stamp: str = ""


@dataclass(frozen=True)
class Block:
    """Some records of a file that follow each other.

    Parameters
    ----------
    number : int
        Number of the block, from 0, over all files.
    source : int
        Number of the file.
    first : int
        Number of its first record in the file.
    line : int
        Number of lines before it in the file.
    start, end : int
        Where it is in a text, in bytes (which a .gz file has compressed); in other files about.
    count : int
        Number of its records.
    offset : int
        Number of its first input, over all files.
    sha256 : str
        Digest of its bytes; of a file that is no text that of its stamp.
    spans : sequence of (str, int, int, int)
        The groups of an HDF5 file, as `molequi.readers.hdf5_file.Span`.
    """

    number: int
    source: int
    first: int
    line: int
    start: int
    end: int
    count: int
    offset: int
    sha256: str
    spans: Sequence[tuple[str, int, int, int]] = ()


@dataclass(frozen=True)
class RawFrame:
    """A frame of extended XYZ that is not parsed yet.

    Parameters
    ----------
    lines : list of str
        Its lines.
    file : str
        The file.
    number : int
        Number of the frame in the file.
    line : int
        Number of its first line.
    """

    lines: list[str]
    file: str
    number: int
    line: int


def kind_of(path: Path) -> Kind:
    """What a file holds, by its suffix; a store is known by its content.

    Parameters
    ----------
    path : Path
        The file, or the folder of a store.

    Raises
    ------
    ConfigError
        If it is no file whose records can be read one by one.

    Examples
    --------
    >>> kind_of(Path("library.smi.gz"))
    'list'
    """
    found = "store" if is_store(path) else _KINDS.get(suffix(path))
    if found is None:
        raise ConfigError(
            f"{path}: inputs are read from {', '.join(_KINDS)} (texts also .gz) and from stores of prepared "
            "structures; other files of structures become a store, or extended XYZ, with\n"
            f"  molequi prepare {path} --out {path.with_suffix('')}\n"
            f"  ase convert {path} {path.with_suffix('.xyz')}"
        )
    return cast(Kind, found)


def source_of(path: Path, kind: Kind, *, column: str | None = None, hint: str | None = None) -> Source:
    """A file of inputs that is not read yet.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        What it holds.
    column : str, optional
        The column of a table with the SMILES; None: it is found.
    hint : str, optional
        The column that the training data had.
    """
    if kind in STRUCTURES:
        return Source(str(path), kind, stamp="" if kind in _TEXTS else _stamp(path, kind))
    if kind != "table":
        return Source(str(path), kind, columns=("name",))
    column = find_smiles_column(path, hint) if column is None else column
    with open_bytes(path) as file:
        lines = Lines(file, path, table=True)
        table = csv_table(path, lines, lambda named: max(named, key=lambda d: _rank(column, named[d])))
        file.seek(0)
        header = file.read(lines.offset).decode("utf-8-sig")
    name = find_column(column, table.names) or column  # what lacks is said when rows are read
    return Source(
        str(path), kind, header=header, column=name, columns=tuple(n for n in table.names if n != name)
    )


def _rank(column: str, names: Sequence[str]) -> tuple[bool, int]:
    return find_column(column, names) is not None, len(names)


def digest_of(source: Source, content: Any) -> str:
    """SHA-256 of the content of a file.

    Parameters
    ----------
    source : Source
        The file.
    content : digest
        Of a text: what `cut` made of it.
    """
    if source.kind in _TEXTS:
        return str(content.hexdigest())
    return source.stamp if source.kind == "store" else file_sha256(Path(source.path))


def _stamp(path: Path, kind: str) -> str:
    if kind == "store":
        return read_manifest(path).digest
    with readable(path):
        found = path.stat()
    return f"{found.st_size} bytes, {found.st_mtime_ns}"


@dataclass(frozen=True)
class Before:
    """What comes before a file: numbers of files, blocks and inputs.

    Parameters
    ----------
    sources, blocks, inputs : int
        The numbers.
    """

    sources: int = 0
    blocks: int = 0
    inputs: int = 0


def cut(
    source: Source,
    size: int,
    before: Before = Before(),
    *,
    content: Any = None,
    keep: bool = False,
    keys: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Block, Any]]:
    """The blocks of a file, one after the other.

    Parameters
    ----------
    source : Source
        The file.
    size : int
        Number of records in a block; the last one may be smaller.
    before : Before
        What comes before this file.
    content : digest, optional
        All bytes of a text go into it.
    keep : bool
        Whether what is in a text or an .npz file is handed on, so that it need not be read again.
    keys : mapping, optional
        Names in files of arrays, as `molequi.read_npz` and `molequi.read_hdf5` take them.

    Yields
    ------
    Block
        The block.
    bytes, ArraysPart or None
        With `keep`, what is in it, for `molequi.readers.inputs.structures_of`.

    Raises
    ------
    DataError
        If the file cannot be cut into records; the message names the line.
    """
    if source.kind in _TEXTS:
        yield from _cut_text(source, size, before, content, keep)
        return
    number, path = before.blocks, Path(source.path)
    length = path.stat().st_size

    def block(first: int, count: int, total: int = 0, spans: Sequence[Any] = ()) -> Block:
        digest = sha256([source.stamp, f"{first} {count}"])
        start, end = ((length * k // total if total else 0) for k in (first, first + count))
        offset = before.inputs + first
        return Block(number, before.sources, first, 0, start, end, count, offset, digest, spans)

    if source.kind == "hdf5":
        for spans in _grouped(path, size, keys):
            count = sum(stop - start for _, start, stop, _ in spans)
            yield block(spans[0][1] + spans[0][3], count, spans=spans), None
            number += 1
    elif source.kind == "npz":
        with opened_rows(path, keys) as rows:
            rows.check()
            for first in range(0, rows.total, size):
                count = min(size, rows.total - first)
                yield block(first, count, rows.total), rows.read(first, first + count) if keep else None
                number += 1
    else:
        total = read_manifest(path).structures if source.kind == "store" else database_size(path)
        if total is None:
            raise DataError(
                f"{path}: is not an ASE database; other files of structures become a store with\n"
                f"  molequi prepare {path} --out {path.with_suffix('')}"
            )
        for first in range(0, total, size):
            yield block(first, min(size, total - first), total), None
            number += 1


def _grouped(
    path: Path, size: int, keys: Mapping[str, Any] | None
) -> Iterator[list[tuple[str, int, int, int]]]:
    """The groups of an HDF5 file, or parts of them, in blocks of so many structures."""
    spans: list[tuple[str, int, int, int]] = []
    left = size
    for span in spans_of(path, keys):
        start = span.start
        while start < span.stop:
            stop = min(span.stop, start + left)
            spans.append((span.group, start, stop, span.offset))
            left, start = left - (stop - start), stop
            if not left:
                yield spans
                spans, left = [], size
    if spans:
        yield spans


def _cut_text(
    source: Source, size: int, before: Before, content: Any, keep: bool
) -> Iterator[tuple[Block, bytes | None]]:
    path = Path(source.path)
    with readable(path), open_bytes(path) as file:
        lines = Lines(file, path, table=source.kind == "table", content=content, keep=keep)
        start = line = first = count = 0
        index = before.blocks

        def block() -> tuple[Block, bytes | None]:
            digest = lines.digest.hexdigest()
            lines.digest = hashlib.sha256()
            kept = None if lines.kept is None else b"".join(lines.kept)
            lines.kept = None if lines.kept is None else []
            offset = before.inputs + first
            return Block(index, before.sources, first, line, start, lines.offset, count, offset, digest), kept

        for _ in _records(source, lines):
            count += 1
            if count == size:
                yield block()
                start, line, first, count, index = lines.offset, lines.number, first + count, 0, index + 1
        if count:
            yield block()
        if source.kind == "xyz" and not lines.ends:
            warnings.warn(
                f"{path}: the last line does not end; if the file was cut off there, its last number is "
                "wrong",
                DataWarning,
                stacklevel=5,
            )


def _records(source: Source, lines: Lines, before: tuple[int, int] = (0, 0)) -> Iterator[Any]:
    """The records of a file or of a part of it; each is read up to its last line and no further."""
    path = Path(source.path)
    if source.kind == "xyz":
        frames = raw_frames(path, lines, *before)
        for number, (line, block) in enumerate(frames, before[0]):
            yield RawFrame(block, source.path, number, line)
    elif source.kind == "table":
        yield from table_rows(path, lines, source.column, before)
    elif source.kind == "list":
        yield from list_rows(path, lines, before)
    else:
        yield from sdf_records(path, lines, before)


def read_block(source: Source, block: Block, folder: Path) -> Any:
    """What is in a block.

    Parameters
    ----------
    source : Source
        The file.
    block : Block
        The block.
    folder : Path
        The folder to which the path of the file is relative.

    Returns
    -------
    list of Row, list of RawFrame, ArraysPart or None
        Molecules, frames, or arrays; None of a file in which structures are read where they are used.

    Raises
    ------
    DataError
        If the file has changed since it was cut into blocks, or cannot be read.
    """
    path = Path(source.path)
    if source.kind not in _TEXTS:
        if _stamp(folder / path, source.kind) != source.stamp:
            raise _changed(path, block)
        if source.kind != "npz":
            return None
        with opened_rows(folder / path) as rows:
            return rows.read(block.first, block.first + block.count)
    with readable(path), open_bytes(folder / path) as file:
        file.seek(block.start)
        raw = file.read(block.end - block.start)
    if hashlib.sha256(raw).hexdigest() != block.sha256:
        raise _changed(path, block)
    return records_of(source, block, raw)


def _changed(path: Path, block: Block) -> DataError:
    return DataError(
        f"{path}: changed since the screening began (records from {block.first} on are others); "
        "screen the new file into another folder, or begin anew with resume='restart'"
    )


def records_of(source: Source, block: Block, raw: bytes) -> list[Any]:
    """The records of a block of a text.

    Parameters
    ----------
    source : Source
        The file.
    block : Block
        The block.
    raw : bytes
        Its bytes.

    Returns
    -------
    list of Row or of RawFrame
    """
    path, lines_before = Path(source.path), block.line
    if source.kind == "table" and block.start:
        raw = source.header.encode() + raw
        lines_before -= source.header.count("\n")
    first = block.start == 0
    lines = Lines(io.BytesIO(raw), path, table=source.kind == "table", first=first)
    found = list(_records(source, lines, (block.first, lines_before)))
    assert len(found) == block.count, f"{path}: {len(found)} records in a block of {block.count}"
    return found
