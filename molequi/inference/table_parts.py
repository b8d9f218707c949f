"""Tables as .csv or .parquet files, written part by part."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molequi.errors import DataError
from molequi.util.files import write_file
from molequi.util.optional import require

FORMATS = ("parquet", "csv")


@dataclass(frozen=True)
class Cell:
    """A column of the tables.

    Parameters
    ----------
    header : str
        Its name, with the unit.
    kind : {"text", "number", "count"}
        What is in it: a text, a float64, or an int64.
    """

    header: str
    kind: str


def write_part(path: Path, columns: Sequence[Cell], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table as a whole or not at all.

    Parameters
    ----------
    path : Path
        A .parquet or .csv file.
    columns : sequence of Cell
        The columns.
    rows : sequence of sequence
        The cells; None where there is no value.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    write_parts(path, columns, [rows])


def write_parts(path: Path, columns: Sequence[Cell], parts: Iterable[Sequence[Sequence[Any]]]) -> None:
    """Write a table of any length as a whole or not at all; one part of it is in memory at a time.

    Parameters
    ----------
    path : Path
        A .parquet or .csv file.
    columns : sequence of Cell
        The columns.
    parts : iterable of sequence of sequence
        The rows, part by part; None where there is no value.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    write = _write_parquet if path.suffix == ".parquet" else _write_csv
    write_file(path, lambda temporary: write(temporary, columns, parts), error=DataError)


def _write_csv(path: Path, columns: Sequence[Cell], parts: Iterable[Sequence[Sequence[Any]]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([column.header for column in columns])
        for rows in parts:
            table.writerows([as_text(cell) for cell in row] for row in rows)


def as_text(cell: Any) -> str:
    """A cell of a table as text; empty for what is not known.

    Parameters
    ----------
    cell : float, int, str or None
        The cell.

    Examples
    --------
    >>> as_text(0.1), as_text(7), as_text(None)
    ('0.1', '7', '')
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return f"{cell:.10g}" if isinstance(cell, float) else str(cell)


def _write_parquet(path: Path, columns: Sequence[Cell], parts: Iterable[Sequence[Sequence[Any]]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"text": pa.string(), "number": pa.float64(), "count": pa.int64()}
    schema = pa.schema([(column.header, types[column.kind]) for column in columns])
    with pq.ParquetWriter(path, schema) as file:
        for rows in parts:
            arrays = [
                pa.array([row[k] for row in rows], type=types[column.kind])
                for k, column in enumerate(columns)
            ]
            file.write_table(pa.Table.from_arrays(arrays, schema=schema))


def read_part(path: Path, columns: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """The rows of a table that `write_part` wrote.

    Parameters
    ----------
    path : Path
        The file.
    columns : sequence of Cell
        Its columns, or some of them.
    """
    if path.suffix == ".parquet":
        require("pyarrow", "parquet", f"reading {path.name}")
        import pyarrow.parquet as pq

        yield from pq.read_table(path, columns=[column.header for column in columns]).to_pylist()
        return
    read = {"text": str, "number": float, "count": int}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {
                c.header: read[c.kind](row[c.header]) if row[c.header] or c.kind == "text" else None
                for c in columns
            }


def write_table(path: Path, columns: Sequence[Cell], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a .csv file.

    Parameters
    ----------
    path : Path
        The file.
    columns : sequence of Cell
        The columns.
    rows : sequence of mapping
        Rows with a cell for each column.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    write_part(path, columns, [[row[column.header] for column in columns] for row in rows])


def available_format() -> str:
    """Parquet if pyarrow is installed, otherwise CSV."""
    from importlib.util import find_spec

    return "parquet" if find_spec("pyarrow") else "csv"
