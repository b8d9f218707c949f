"""Files of structures and molecules, cut into blocks that can be read one by one.

Everything that knows how inputs are stored is here: `plan` reads the files once, in bounded memory, and
`read_block` reads one block.
"""

import codecs
import gzip
import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

from molequi.errors import ConfigError, DataError, DataWarning
from molequi.readers.csv_cells import csv_table
from molequi.readers.extxyz import raw_frames
from molequi.readers.files import readable
from molequi.readers.molecule_files import (
    CSV,
    SDF,
    SMI,
    Row,
    find_column,
    list_rows,
    sdf_records,
    suffix,
    table_rows,
)
from molequi.readers.tables import find_smiles_column
from molequi.util.progress import ProgressBar

Kind = Literal["xyz", "table", "list", "sdf"]
XYZ = (".xyz", ".extxyz")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(XYZ, "xyz"),
    **dict.fromkeys(CSV, "table"),
    **dict.fromkeys(SMI, "list"),
    **dict.fromkeys(SDF, "sdf"),
}
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


@dataclass(frozen=True)
class Source:
    """A file of inputs.

    Parameters
    ----------
    path : str
        Its path.
    kind : {"xyz", "table", "list", "sdf"}
        What it holds: frames of extended XYZ, a table with a column of SMILES, a list of SMILES, or records.
    records : int
        Number of frames, molecules or records.
    sha256 : str
        Digest of its content.
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
        Where it is in the file, in bytes of the text (which a .gz file has compressed).
    count : int
        Number of its records.
    offset : int
        Number of its first input, over all files.
    sha256 : str
        Digest of its bytes.
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


class _Lines:
    """The lines of a binary file as text, with the place and the digest of what was read.

    Line ends of Windows become those of Unix, except in tables, where a cell may hold them.
    """

    def __init__(
        self, file: IO[bytes], path: Path, *, table: bool, first: bool = True, content: Any = None
    ) -> None:
        self.file, self.path, self.table, self.first = file, path, table, first
        self.offset = self.number = 0
        self.ends = True  # whether the last line does
        self.digest = hashlib.sha256()
        self.content = content  # a digest of all lines, whatever is done with the other one

    def __iter__(self) -> Iterator[str]:
        while line := self.readline():
            yield line

    def readline(self) -> str:
        raw = self.file.readline()
        if self.first and self.offset == 0:
            if raw.startswith(_WIDE):
                raise DataError(
                    f"{self.path}: its text is in UTF-16 or UTF-32; wanted UTF-8:\n"
                    f"  iconv -f UTF-16 -t UTF-8 '{self.path}' > new{self.path.suffix}"
                )
            text = raw.decode("utf-8-sig")
        else:
            text = raw.decode()
        self.offset += len(raw)
        self.number += bool(raw)
        self.ends = raw.endswith(b"\n") if raw else self.ends
        self.digest.update(raw)
        if self.content is not None:
            self.content.update(raw)
        return text if self.table or not text.endswith("\r\n") else text[:-2] + "\n"


def open_bytes(path: Path) -> IO[bytes]:
    """A file, or the content of a .gz file.

    Parameters
    ----------
    path : Path
        The file.
    """
    return cast(IO[bytes], gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb"))


def kind_of(path: Path) -> Kind:
    """What a file holds, by its suffix.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    ConfigError
        If it is no file whose records can be read one by one.

    Examples
    --------
    >>> kind_of(Path("library.smi.gz"))
    'list'
    """
    found = _KINDS.get(suffix(path))
    if found is None:
        raise ConfigError(
            f"{path}: inputs are read from {', '.join(_KINDS)} (also .gz); other files of structures become "
            f"extended XYZ with\n  ase convert {path} {path.with_suffix('.xyz')}"
        )
    return found


def plan(
    paths: Sequence[Path], size: int, *, column: str | None, hint: str | None, progress: bool
) -> tuple[list[Source], list[Block]]:
    """Read all files once, and cut them into blocks.

    Parameters
    ----------
    paths : sequence of Path
        The files.
    size : int
        Number of records in a block; the last one of a file may be smaller.
    column : str or None
        The column of the tables with the SMILES; None: it is found.
    hint : str or None
        The column that the training data had.
    progress : bool
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If the files are of different kinds.
    DataError
        If a file cannot be cut into records; the message names the line.
    """
    kinds = {"xyz" if kind_of(path) == "xyz" else "molecules" for path in paths}
    if len(kinds) > 1:
        raise ConfigError(
            f"{', '.join(map(str, paths[:4]))}: structures (.xyz) and molecules (SMILES, SDF) get different "
            "columns; screen each kind into a folder of its own"
        )
    sources: list[Source] = []
    blocks: list[Block] = []
    total = sum(path.stat().st_size for path in paths)
    compressed = any(path.suffix == ".gz" for path in paths)
    with ProgressBar("read", None if compressed else total, unit="B", show=progress, delay=2) as bar:
        for path in paths:
            with readable(path):
                source = _source(path, column, hint)
                content = hashlib.sha256()
                found = list(_blocks(source, size, len(sources), blocks, content, bar.advance))
            if not found:
                raise DataError(f"{path}: nothing to predict in this file; wanted at least one input")
            records = sum(block.count for block in found)
            sources.append(replace(source, records=records, sha256=content.hexdigest()))
            blocks += found
    return sources, blocks


def _source(path: Path, column: str | None, hint: str | None) -> Source:
    kind = kind_of(path)
    if kind != "table":
        return Source(str(path), kind, columns=() if kind == "xyz" else ("name",))
    column = find_smiles_column(path, hint) if column is None else column
    with open_bytes(path) as file:
        lines = _Lines(file, path, table=True)
        table = csv_table(path, lines, lambda named: max(named, key=lambda d: _rank(column, named[d])))
        file.seek(0)
        header = file.read(lines.offset).decode("utf-8-sig")
    name = find_column(column, table.names) or column  # what lacks is said when rows are read
    return Source(
        str(path), kind, header=header, column=name, columns=tuple(n for n in table.names if n != name)
    )


def _rank(column: str, names: Sequence[str]) -> tuple[bool, int]:
    return find_column(column, names) is not None, len(names)


def _blocks(
    source: Source,
    size: int,
    number: int,
    before: Sequence[Block],
    content: Any,
    advance: Callable[[float], object],
) -> Iterator[Block]:
    """The blocks of one file; all of its bytes go into the digest `content`."""
    path = Path(source.path)
    offset = before[-1].offset + before[-1].count if before else 0
    with open_bytes(path) as file:
        lines = _Lines(file, path, table=source.kind == "table", content=content)
        start = line = first = count = 0
        index = len(before)

        def block() -> Block:
            digest = lines.digest.hexdigest()
            lines.digest = hashlib.sha256()
            advance(lines.offset - start)
            return Block(index, number, first, line, start, lines.offset, count, offset + first, digest)

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


def _records(source: Source, lines: _Lines, before: tuple[int, int] = (0, 0)) -> Iterator[Any]:
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


def read_block(source: Source, block: Block, folder: Path) -> list[Row] | list[RawFrame]:
    """The records of a block.

    Parameters
    ----------
    source : Source
        The file.
    block : Block
        The block.
    folder : Path
        The folder to which the path of the file is relative.

    Raises
    ------
    DataError
        If the file has changed since it was cut into blocks, or cannot be read.
    """
    path = Path(source.path)
    with readable(path), open_bytes(folder / path) as file:
        file.seek(block.start)
        raw = file.read(block.end - block.start)
    if hashlib.sha256(raw).hexdigest() != block.sha256:
        raise DataError(
            f"{path}: changed since the screening began (records from {block.first} on are others); "
            "screen the new file into another folder, or begin anew with resume='restart'"
        )
    lines_before = block.line
    if source.kind == "table" and block.start:
        raw = source.header.encode() + raw
        lines_before -= source.header.count("\n")
    first = block.start == 0
    lines = _Lines(io.BytesIO(raw), path, table=source.kind == "table", first=first)
    found = list(_records(source, lines, (block.first, lines_before)))
    assert len(found) == block.count, f"{path}: {len(found)} records in a block of {block.count}"
    return found
