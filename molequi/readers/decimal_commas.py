"""Numbers with decimal commas, ``1,23``, as spreadsheets of many countries write them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from molequi.data.request import Request
from molequi.errors import DataError
from molequi.readers.molecule_files import Row

_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
_POINT = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?")
MINUS = ("\u2212", "\u2013", "\u2014")  # characters that stand for a minus in texts
_LISTED = 10  # rows in a message


def has_decimal_comma(cell: str) -> bool:
    """Whether a cell is a number with a decimal comma.

    Parameters
    ----------
    cell : str
        The cell.

    Examples
    --------
    >>> has_decimal_comma("-1,5"), has_decimal_comma("1.5"), has_decimal_comma("1, 2")
    (True, False, False)
    """
    return _COMMA.fullmatch(cell) is not None


def decimal_mark(cell: str) -> str:
    """The mark of decimals of a cell: "," or "."; "" without decimals; "text" for what is no number.

    Parameters
    ----------
    cell : str
        The cell.

    Examples
    --------
    >>> [decimal_mark(cell) for cell in ("1,5", "-1.5", "2", "", "a,b")]
    [',', '.', '', '', 'text']
    """
    if has_decimal_comma(cell):
        return ","
    if _POINT.fullmatch(cell):
        return "."
    return "" if not cell.strip("+-") or cell.strip("+-").isdigit() else "text"


def number_hint(cell: str) -> str:
    """The end of a message about a cell that is no number: what it may be; empty if nothing is known.

    Parameters
    ----------
    cell : str
        The cell.

    Examples
    --------
    >>> number_hint("<0,5"), number_hint("1,5"), number_hint("low")
    ('; it is a limit, no value', '; has it a decimal comma?', '')
    >>> number_hint("\u22122,067")
    "; its minus is the character '\u2212' (U+2212), write -2,067"
    """
    if cell[:1] in ("<", ">", "\u2264", "\u2265", "~"):
        return "; it is a limit, no value"
    if cell[:1] in MINUS and cell[1:2].isdigit():
        return f"; its minus is the character {cell[0]!r} (U+{ord(cell[0]):04X}), write -{cell[1:]}"
    return "; has it a decimal comma?" if "," in cell else ""


def check_decimal_commas(where: str, cells: Mapping[int, str], delimiter: str) -> None:
    """Raise DataError if the commas of a column may mean something else than decimals.

    Parameters
    ----------
    where : str
        The file and the column, for messages.
    cells : mapping of int to str
        Cell by number of the row. At least one has a decimal comma.
    delimiter : str
        What separates the columns; empty if nothing does.

    Raises
    ------
    DataError
        If other numbers of the column have points. Also if there are three digits after each comma and the
        columns are not separated by semicolons, so that the commas may separate thousands.

    Examples
    --------
    >>> check_decimal_commas("mine.csv, 'logS'", {0: "1,25", 1: "2"}, ";")
    """
    comma = [row for row, cell in cells.items() if has_decimal_comma(cell)]
    point = [row for row, cell in cells.items() if _POINT.fullmatch(cell)]
    first = comma[0]
    if point:
        rare = min(comma, point, key=len)
        raise DataError(
            f"{where}: numbers with commas and with points: row {first} is {cells[first]!r}, row "
            f"{point[0]} is {cells[point[0]]!r} (rows count from 0 below the header); wanted one of the two "
            "in the whole column. "
            f"Correct the {len(rare)} of {len(cells)} rows with the rarer one: {_listed(rare)}"
        )
    if delimiter != ";" and all(_THOUSANDS.fullmatch(cells[row]) for row in comma):
        raise DataError(
            f"{where}: three digits after each comma, such as {cells[first]!r} in row {first}: these may be "
            "thousands or decimals. Write thousands without a comma, and decimals with a point, or separate "
            "the columns by semicolons"
        )


def _listed(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    return ", ".join(map(str, rows[:_LISTED])) + more


def without_decimal_commas(
    rows: Sequence[Row], request: Request, name: str
) -> tuple[list[Row], dict[str, str]]:
    """The rows of a table with points in the numbers that are labels.

    Parameters
    ----------
    rows : sequence of Row
        The rows as the table has them.
    request : Request
        The labels to read. Vectors, whose components are separated in one cell, and classes stay as they are.
    name : str
        The file, for messages.

    Returns
    -------
    list of Row
        The same rows if no label has a decimal comma.
    dict of str to str
        For the summary: where each quantity with decimal commas was found.

    Raises
    ------
    DataError
        As `check_decimal_commas`.
    """
    notes: dict[str, str] = {}
    columns: list[str] = []
    for quantity, q in request.candidates.items():
        column = request.keys[quantity].key
        if q.rank or q.per != "graph" or q.classes:
            continue
        cells = {row.number: row.columns[column] for row in rows if column in row.columns and not row.fault}
        if any(map(has_decimal_comma, cells.values())):
            check_decimal_commas(f"{name}: {column}", cells, rows[0].delimiter)
            notes[quantity] = f"{column!r}, decimal commas"
            columns.append(column)
    if not columns:
        return list(rows), {}
    return [replace(row, columns=_with_points(row.columns, columns)) for row in rows], notes


def _with_points(cells: Mapping[str, str], columns: Sequence[str]) -> dict[str, str]:
    """The cells of a row, with points in the numbers of these columns."""
    return {
        name: cell.replace(",", ".") if name in columns and has_decimal_comma(cell) else cell
        for name, cell in cells.items()
    }
