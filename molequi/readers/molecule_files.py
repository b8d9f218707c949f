"""Rows of tables of molecules and records of SDF files, one after the other, each with its place."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from molequi.errors import DataError, did_you_mean
from molequi.readers.csv_cells import TextLines, csv_table
from molequi.readers.files import check_file, open_text, readable
from molequi.readers.frames import DataFrame, as_frame, cell_text, frame_columns, frame_rows

CSV, SMI, SDF = (".csv", ".tsv", ".txt"), (".smi", ".smiles"), (".sdf", ".sd", ".mol")
# Cells without a value, in lower case, as spreadsheets and pandas write them.
MISSING = (
    *("", "nan", "-nan", "na", "n/a", "none", "null", "<na>", "#na", "#n/a", "#n/a n/a"),
    *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
)


@dataclass(frozen=True)
class Row:
    """One molecule of a list or a file.

    Parameters
    ----------
    where : str
        Its place, for messages.
    number : int
        Row or record, from 0.
    text : str
        The SMILES, the record of an SDF file, or the binary form of an RDKit molecule in base64.
    columns : dict of str to str
        The other columns of the table, or the properties of the record.
    fault : str
        Why it cannot be read; empty if it can.
    kind : {"smiles", "sdf", "mol"}
        What `text` is: a SMILES, a record of an SDF file, or an RDKit molecule in its binary form.
    given : int
        Number of geometries of an RDKit molecule.
    delimiter : str
        What separates the columns of the table; empty for everything else.
    """

    where: str
    number: int
    text: str
    columns: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    kind: Literal["smiles", "sdf", "mol"] = "smiles"
    given: int = 0
    delimiter: str = ""


def smiles_rows(source: str | Path | Sequence[str] | DataFrame, *, column: str = "smiles") -> Iterator[Row]:
    """The rows of a list, a DataFrame or a file, one after the other. A file is not loaded as a whole."""
    frame = as_frame(source)
    if frame is not None:
        name = _smiles_column("DataFrame", column, frame_columns(frame))
        for k, (label, cells) in enumerate(frame_rows(frame)):
            where, text = f"DataFrame, row {k} (index {label})", cells.pop(name)
            if not isinstance(text, str) and cell_text(text):
                found = f"{cell_text(text)} ({type(text).__name__})"
                raise DataError(f"{where}: {name} is {found}; wanted a SMILES{_advice(text)}")
            others = {other: cell_text(value) for other, value in cells.items()}
            yield Row(where, k, cell_text(text), others)
        return
    if not isinstance(source, (str, Path)):
        for k, text in enumerate(cast(Sequence[str], source)):
            if not isinstance(text, str):
                raise DataError(
                    f"list, row {k}: {text!r} ({type(text).__name__}); wanted a SMILES{_advice(text)}"
                )
            yield Row(f"row {k}", k, text)
        return
    path = Path(source)
    check_file(path)
    kind = suffix(path)
    if kind not in CSV + SMI:
        raise DataError(
            f"{path}: wanted a table ({', '.join(CSV)}), a list of SMILES ({', '.join(SMI)}) or several in a "
            "Python list"
        )
    with readable(path), open_text(path, "" if kind in CSV else None) as file:
        yield from table_rows(path, file, column) if kind in CSV else list_rows(path, file)


def suffix(path: Path) -> str:
    """The suffix that decides the kind of file, in lower case and without .gz."""
    return ([s.lower() for s in path.suffixes if s != ".gz"] or [""])[-1]


def sdf_rows(path: Path) -> Iterator[Row]:
    """The records of an SDF or MOL file, one after the other."""
    check_file(path)
    with readable(path), open_text(path) as file:
        yield from sdf_records(path, file)


def sdf_records(path: Path, file: Iterable[str], before: tuple[int, int] = (0, 0)) -> Iterator[Row]:
    """The records of an open SDF or MOL file, or of a part of it.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : iterable of str
        Its lines.
    before : (int, int)
        Numbers of records and of lines before this part.
    """
    lines: list[str] = []
    count, number = before
    start = number + 1
    for line in file:
        number += 1
        if line.startswith("$$$$"):
            yield _sdf_row(path, count, start, lines)
            lines, start, count = [], number + 1, count + 1
        else:
            lines.append(line)
    if any(line.strip() for line in lines):
        row = _sdf_row(path, count, start, lines)
        alone_and_whole = not count and any(line.startswith("M  END") for line in lines)  # a MOL file
        cut = f"the file ends at line {number} within this record: it looks truncated"
        yield row if alone_and_whole else replace(row, fault=cut)


def _sdf_row(path: Path, count: int, start: int, lines: list[str]) -> Row:
    end = next((k for k, line in enumerate(lines) if line.startswith("M  END")), len(lines))
    columns, name = {}, None
    for line in lines[end + 1 :]:
        if line.startswith(">") and "<" in line:
            name = line[line.index("<") + 1 :].rsplit(">", 1)[0]
            columns[name] = ""
        elif not line.strip():
            name = None
        elif name is not None:
            columns[name] = f"{columns[name]}\n{line.rstrip()}".strip()
    if lines and lines[0].strip():
        columns.setdefault("name", lines[0].strip())
    where = f"{path}, record {count} (line {start})"
    return Row(where, count, "".join(lines[: end + 1]), columns, kind="sdf")


def list_rows(path: Path, file: Iterable[str], before: tuple[int, int] = (0, 0)) -> Iterator[Row]:
    """The molecules of an open list of SMILES with names, or of a part of it.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : iterable of str
        Its lines.
    before : (int, int)
        Numbers of molecules and of lines before this part.
    """
    number, lines = before
    for k, line in enumerate(file, lines + 1):
        words = line.split(None, 1)
        if not words or (k == 1 and words[0].lower() == "smiles"):
            continue
        text, name = words[0], words[1].strip() if len(words) > 1 else ""
        if name.startswith("|") and "|" in name[1:]:  # the extension of a CXSMILES
            end = name.index("|", 1) + 1
            text, name = f"{text} {name[:end]}", name[end:].strip()
        yield Row(f"{path}, row {number} (line {k})", number, text, {"name": name} if name else {})
        number += 1


def table_rows(path: Path, file: TextLines, column: str, before: tuple[int, int] = (0, 0)) -> Iterator[Row]:
    """The molecules of an open table with a header, or of the header and a part of the rows.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : text file
        The open file.
    column : str
        The column with the SMILES.
    before : (int, int)
        Numbers of rows and of lines between the header and this part.
    """

    def choose(named: Mapping[str, Sequence[str]]) -> str:
        return max(named, key=lambda d: (find_column(column, named[d]) is not None, len(named[d])))

    table = csv_table(path, file, choose)
    name = _smiles_column(str(path), column, table.names)
    rows, lines = before
    for number, (line, cells) in enumerate(table.rows, rows):
        row = dict(zip(table.names, cells))
        where = f"{path}, row {number} (line {line + lines})"
        yield Row(where, number, row.pop(name), row, delimiter=table.delimiter)


def _smiles_column(where: str, column: str, columns: Sequence[str]) -> str:
    """The column with the SMILES. Raises DataError if there is none."""
    name = find_column(column, columns)
    if name is None:
        raise no_column(where, column, columns, "SMILES")
    return name


def no_column(where: str, column: str, columns: Sequence[str], what: str) -> DataError:
    """The error that a table has no column of this name."""
    return DataError(
        f"{where}: no column {column!r}{did_you_mean(column, columns)} (columns: {', '.join(columns)}); "
        f"name the one with the {what} with column=..."
    )


def _advice(value: object) -> str:
    return "; RDKit molecules are read by mq.read_mols" if type(value).__name__ == "Mol" else ""


def find_column(column: str, names: Sequence[str]) -> str | None:
    """The column of that name; if there is none, the only one that differs in case."""
    if column in names:
        return column
    same = [n for n in names if n.lower() == column.lower()]
    return same[0] if len(same) == 1 else None
