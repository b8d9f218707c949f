"""The cells of a table as text, from files of spreadsheets and of chemical databases."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from molequi.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
_HEADER_LINES = 50  # at most, of names with line breaks


class TextLines(Protocol):
    """An open text file, or what reads like one."""

    def readline(self) -> str:
        """The next line; empty at the end."""
        ...

    def __iter__(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class CsvTable:
    """An open table.

    Parameters
    ----------
    delimiter : str
        What separates the columns.
    names : tuple of str
        Names of the columns. Columns at the end without a name and without cells are left out.
    rows : iterator of (int, list of str)
        The number of the line and the cells of each row that is not empty, without blanks around them.
    """

    delimiter: str
    names: tuple[str, ...]
    rows: Iterator[tuple[int, list[str]]]


def csv_table(path: Path, file: TextLines, choose: Callable[[Mapping[str, Sequence[str]]], str]) -> CsvTable:
    """The header and the rows of a table with a header; a line ``sep=;`` before it, as of Excel, is obeyed.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : text file
        The open file.
    choose : callable
        From the names of columns by delimiter to the delimiter.

    Returns
    -------
    CsvTable

    Raises
    ------
    DataError
        If two columns have one name, or when a row is read that has another number of cells.
    """
    header, lines = file.readline(), 1
    said = re.fullmatch(r'"?sep=(.)"?\s*', header.rstrip("\r\n"), re.IGNORECASE)
    if said:
        header, lines = file.readline(), 2
    while header.count('"') % 2 and lines < _HEADER_LINES:  # a line break within a name
        more = file.readline()
        if not more:
            break
        header, lines = header + more, lines + 1
    marks = (said[1],) if said else DELIMITERS
    named = {mark: _names(header, mark) for mark in marks}
    delimiter = marks[0] if said else choose(named)
    names = named[delimiter]
    while len(names) > 1 and not names[-1]:
        names = names[:-1]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(
            f"{path}: two columns are called {twice[0]!r}; wanted different names, found {', '.join(names)}"
        )
    return CsvTable(delimiter, tuple(names), _rows(path, file, delimiter, names, lines))


def _names(header: str, mark: str) -> list[str]:
    """The names in a header; line breaks within them become blanks."""
    words = next(csv.reader(io.StringIO(header, newline=""), delimiter=mark), [])
    return [" ".join(name.split()) if "\n" in name else name.strip() for name in words]


def _rows(
    path: Path, file: TextLines, delimiter: str, names: Sequence[str], lines: int
) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header."""
    table = csv.reader(file, delimiter=delimiter, strict=True)
    number = 0
    try:
        for cells in table:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            where = f"{path}, row {number} (line {table.line_num + lines})"
            cells, more = cells[: len(names)], cells[len(names) :]
            if any(more):
                cells += more
            if len(cells) != len(names):
                raise DataError(
                    f"{where}: {len(cells)} cells, {len(names)} columns ({', '.join(names)}); is the file "
                    "cut off, a column without a name, or a separator part of a text that is not in quotes?"
                )
            yield table.line_num + lines, cells
            number += 1
    except csv.Error as error:
        raise DataError(
            f"{path}, row {number} (line {table.line_num + lines}): not a readable table ({error})"
        ) from error
