"""Names of columns with a unit, ``gap (eV)``, as `predict_table` writes them and readers read them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from molequi.data.request import Request
from molequi.data.units import factor
from molequi.errors import DataError

_HEADER = re.compile(r"(.*\S)\s*[(\[]\s*([^()\[\]]*?)\s*[)\]]\s*")


def header(name: str, unit: str) -> str:
    """The name of a column with its unit.

    Parameters
    ----------
    name : str
        Name of the quantity.
    unit : str
        Its unit; empty for a pure number.

    Examples
    --------
    >>> header("gap", "eV"), header("logS", "")
    ('gap (eV)', 'logS')
    """
    return f"{name} ({unit})" if unit else name


def split_header(column: str) -> tuple[str, str]:
    """Name and unit of a column; the unit is empty if the name of the column has none.

    Parameters
    ----------
    column : str
        Name of the column, with the unit in round or square brackets at its end.

    Examples
    --------
    >>> split_header("gap (eV)"), split_header("gap [eV]"), split_header("gap")
    (('gap', 'eV'), ('gap', 'eV'), ('gap', ''))
    """
    found = _HEADER.fullmatch(column)
    return (found[1], found[2]) if found else (column, "")


def columns_with_units(
    request: Request, columns: Iterable[str], where: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Keys and units of the quantities whose column has its unit in its name.

    Parameters
    ----------
    request : Request
        What is to be read.
    columns : iterable of str
        Names of the columns.
    where : str
        The file, for messages.

    Returns
    -------
    keys : dict of str to mapping
        The column of each quantity that has one with a unit and none without, in the form of `Request`.
    units : dict of str to str
        The unit in the name of the column.

    Raises
    ------
    DataError
        If the unit of a quantity that the user named measures something else, if `units` says another one, or
        if two columns differ only in their units.
    """
    columns = list(columns)
    named: dict[str, list[tuple[str, str]]] = {}
    for column in columns:
        name, unit = split_header(column)
        if unit:
            named.setdefault(name, []).append((column, unit))
    keys: dict[str, Any] = {}
    units: dict[str, str] = {}
    for name, q in request.candidates.items():
        key = request.keys[name]
        found = named.get(key.key, [])
        if key.key in columns or not found:
            continue
        if not _fits(found, q.unit):
            if name not in request.named:
                continue  # a column of this name that means something else
            raise DataError(
                f"{where}: the column {found[0][0]!r} has the unit {found[0][1]!r}, and {name} is measured "
                "in "
                f"{q.unit or 'no unit'}; name the right column with keys={{{name!r}: ...}}"
            )
        if len(found) > 1:
            raise DataError(
                f"{where}: {' and '.join(repr(c) for c, _ in found)} are both columns of {name}; say which, "
                f"keys={{{name!r}: {found[0][0]!r}}}"
            )
        column, unit = found[0]
        _check_contradiction(name, column, unit, request.units, where)
        keys[name] = {"key": column, "sign": key.sign, "order": key.order, "virial": key.virial}
        units[name] = request.units.get(name, unit)
    return keys, units


def _fits(found: Iterable[tuple[str, str]], wanted: str) -> bool:
    """Whether all units can be converted to the wanted one."""
    try:
        return all(unit == wanted or factor(unit, wanted) for _, unit in found)
    except DataError:
        return False


def _check_contradiction(name: str, column: str, unit: str, units: Mapping[str, str], where: str) -> None:
    """Raise DataError if the user says another unit than the name of the column."""
    given = units.get(name)
    if given is None or given == unit:
        return
    if factor(given, unit) != 1.0:
        raise DataError(
            f"{where}: the column {column!r} and units={{{name!r}: {given!r}}} say different units; leave "
            f"{name!r} out of units, or name the column anew"
        )
