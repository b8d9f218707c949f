"""Tables of results as text, and values for JSON."""

import math
from collections.abc import Container, Iterable, Sequence
from typing import Any


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Container[int] = (0,)) -> list[str]:
    """Lines of a table with aligned columns, the head first.

    Parameters
    ----------
    head : sequence of str
        Names of the columns.
    rows : iterable of sequences of str
        Cells of each row, as many as columns.
    left : container of int
        Columns that are left-aligned; the others are right-aligned.

    Examples
    --------
    >>> text_table(["name", "n"], [["a", "10"]])
    ['name   n', 'a     10']
    """
    table = [list(head), *map(list, rows)]
    widths = [max(len(line[k]) for line in table) for k in range(len(head))]
    return [
        "  ".join(
            c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in table
    ]


def json_ready(value: Any) -> Any:
    """A copy of nested dictionaries and lists for JSON: numbers that are not finite become None.

    Parameters
    ----------
    value : object
        Dictionaries, lists, tuples and plain values.

    Examples
    --------
    >>> json_ready({"rmse": [0.5, float("nan")]})
    {'rmse': [0.5, None]}
    """
    if isinstance(value, dict):
        return {k: json_ready(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def milli(unit: str, largest: float) -> tuple[float, str]:
    """Factor and unit in which numbers of a quantity are shown: energies below 1 eV in meV.

    Parameters
    ----------
    unit : str
        Unit of the numbers.
    largest : float
        The largest of them.

    Examples
    --------
    >>> milli("eV/Å", 0.03), milli("eV", 2.0), milli("e Å", 0.1)
    ((1000, 'meV/Å'), (1, 'eV'), (1, 'e Å'))
    """
    return (1000, f"m{unit}") if unit.startswith("eV") and largest < 1 else (1, unit)


def per_unit(value: float, unit: str) -> str:
    """A number of three digits with its unit.

    Parameters
    ----------
    value : float
        The number.
    unit : str
        Its unit; empty for a pure number.

    Examples
    --------
    >>> per_unit(0.0312, "eV/atom"), per_unit(1.5, "")
    ('31.2 meV/atom', '1.5')
    """
    factor, shown = milli(unit, abs(value))
    return f"{value * factor:.3g} {shown}".strip()
