"""Which results of a screening are kept, and which are the best, from texts such as ``"gap < 3"``."""

import heapq
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from molequi.errors import ConfigError, did_you_mean
from molequi.inference.columns import Column

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*")
_BEST = re.compile(r"\s*(\d+)\s+(smallest|largest)\s+(.+?)\s*")


@dataclass(frozen=True)
class Condition:
    """A condition on one column of the results.

    Parameters
    ----------
    column : int
        Number of the column.
    sign : str
        ``<``, ``<=``, ``>``, ``>=``, ``==`` or ``!=``.
    value : float or str
        What it is compared with: a number, or the name of a class.
    """

    column: int
    sign: str
    value: float | str

    def holds(self, cells: Sequence[Any]) -> bool:
        """Whether it holds for the cells of one result.

        Parameters
        ----------
        cells : sequence
            A cell for each column.
        """
        return _OPERATORS[self.sign](cells[self.column], self.value)


def conditions(
    texts: Sequence[str], columns: Sequence[Column], classes: Mapping[str, Sequence[str]]
) -> list[Condition]:
    """Conditions from texts.

    Parameters
    ----------
    texts : sequence of str
        Such as ``"gap < 3"`` and ``"taste == sweet"``; the unit is that of the column.
    columns : sequence of Column
        The columns of the results.
    classes : mapping of str to sequence of str
        The classes of the columns that have names in place of numbers.

    Raises
    ------
    ConfigError
        For another text, and for a column or class that does not exist.

    Examples
    --------
    >>> [found] = conditions(["gap (eV) <= 3"], [Column("gap", "eV")], {})
    >>> found.holds([2.5]), found.holds([3.5])
    (True, False)
    """
    if isinstance(texts, str):
        raise ConfigError(f"keep={texts!r}: wanted a list of conditions, keep=[{texts!r}]")
    found = []
    for text in texts:
        match = _CONDITION.fullmatch(str(text))
        if not match:
            raise ConfigError(
                f"keep={text!r}: wanted a column, one of {' '.join(_OPERATORS)} and a value, such as "
                f"keep=['{columns[0].name if columns else 'gap'} < 3']"
            )
        name, sign, value = match.groups()
        number = column_number("keep", name, columns)
        found.append(Condition(number, sign, _value(text, columns[number], sign, value, classes)))
    return found


def _value(
    text: str, column: Column, sign: str, value: str, classes: Mapping[str, Sequence[str]]
) -> float | str:
    if column.name in classes:
        value = value.strip("'\"")
        if sign not in ("==", "!=") or value not in classes[column.name]:
            names = ", ".join(classes[column.name])
            raise ConfigError(
                f"keep={text!r}: {column.name} is one of {names}; wanted == or != and one of them"
            )
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ConfigError(f"keep={text!r}: {value!r} is no number; wanted one in {column.unit or 'no unit'}")
    return number


def column_number(option: str, name: str, columns: Sequence[Column]) -> int:
    """Number of the column of a name, which may have its unit.

    Parameters
    ----------
    option : str
        The option that names it, for the message.
    name : str
        The name.
    columns : sequence of Column
        The columns.

    Raises
    ------
    ConfigError
        If there is none.
    """
    for k, column in enumerate(columns):
        if name in (column.name, column.header):
            return k
    known = [column.name for column in columns]
    raise ConfigError(f"{option}: no column {name!r} in the results{did_you_mean(name, known)}")


@dataclass(frozen=True)
class Best:
    """The results with the smallest or largest values of one column.

    Parameters
    ----------
    count : int
        How many.
    largest : bool
        Whether those with the largest values.
    column : str
        The column, by its name in the files.
    """

    count: int
    largest: bool
    column: str

    def of(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The best rows, the first one first; of equal ones that with the smaller number of the input.

        Parameters
        ----------
        rows : iterable of mapping
            Rows with a cell for each column; those without a number are left out.

        Examples
        --------
        >>> rows = [{"input": k, "gap (eV)": gap} for k, gap in enumerate([3.0, None, 1.0, 2.0])]
        >>> [row["input"] for row in Best(2, False, "gap (eV)").of(rows)]
        [2, 3]
        """
        sign = -1.0 if self.largest else 1.0
        usable = (row for row in rows if row[self.column] is not None)
        return heapq.nsmallest(self.count, usable, key=lambda row: (sign * row[self.column], row["input"]))


def best(text: str, columns: Sequence[Column], classes: Mapping[str, Sequence[str]]) -> Best:
    """What ``"100 smallest gap"`` asks for.

    Parameters
    ----------
    text : str
        A number, "smallest" or "largest", and a column.
    columns : sequence of Column
        The columns of the results.
    classes : mapping of str to sequence of str
        The classes of the columns that have names in place of numbers.

    Raises
    ------
    ConfigError
        For another text, and for a column that does not exist or has no numbers.

    Examples
    --------
    >>> best("100 smallest gap", [Column("gap", "eV")], {})
    Best(count=100, largest=False, column='gap (eV)')
    """
    match = _BEST.fullmatch(str(text))
    if not match or not int(match[1]):
        name = columns[0].name if columns else "gap"
        raise ConfigError(
            f"best={text!r}: wanted a number, smallest or largest, and a column: best='100 smallest {name}'"
        )
    column = columns[column_number("best", match[3], columns)]
    if column.name in classes:
        one = f"{column.name}_{classes[column.name][0]}"
        raise ConfigError(
            f"best={text!r}: {column.name} is the name of a class; wanted a column of numbers such as {one}"
        )
    return Best(int(match[1]), match[2] == "largest", column.header)
