"""Rows of a pandas.DataFrame, without importing pandas: who hands over a DataFrame has imported it."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from molequi.errors import DataError


@runtime_checkable  # options are checked by isinstance
class DataFrame(Protocol):
    """What is used of a pandas.DataFrame."""

    @property
    def columns(self) -> Any:
        """Names of the columns."""

    @property
    def index(self) -> Any:
        """Labels of the rows."""

    @property
    def iloc(self) -> Any:
        """Cells by number of row and column."""


def as_frame(what: object) -> DataFrame | None:
    """The same object if it is a pandas.DataFrame, and None otherwise.

    Parameters
    ----------
    what : object
        Anything.

    Examples
    --------
    >>> as_frame(["CCO"]) is None
    True
    """
    pandas = sys.modules.get("pandas")
    return what if pandas is not None and isinstance(what, pandas.DataFrame) else None


def list_name(what: object) -> str:
    """What messages call a list or a DataFrame.

    Parameters
    ----------
    what : object
        The list or the DataFrame.
    """
    return "list" if as_frame(what) is None else "DataFrame"


def frame_rows(frame: DataFrame) -> Iterator[tuple[object, dict[str, Any]]]:
    """Label of the index and cells by name of the column, row by row.

    Parameters
    ----------
    frame : pandas.DataFrame
        The columns have different names.

    Raises
    ------
    DataError
        If two columns have the same name.
    """
    columns = frame_columns(frame)
    values = [frame.iloc[:, k].array for k in range(len(columns))]
    for k, label in enumerate(frame.index):
        yield label, {name: column[k] for name, column in zip(columns, values)}


def frame_columns(frame: DataFrame) -> list[str]:
    """Names of the columns as texts.

    Parameters
    ----------
    frame : pandas.DataFrame
        The table.

    Raises
    ------
    DataError
        If two columns have the same name.
    """
    columns = list(map(str, frame.columns))
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise DataError(
            f"DataFrame: two columns are called {twice[0]!r}; wanted different names, found "
            f"{', '.join(columns)}"
        )
    return columns


def cell_text(value: Any) -> str:
    """A cell as a table of texts has it: numbers by their shortest digits, components separated by spaces.

    Parameters
    ----------
    value : object
        A text, a number, an array, or a missing value (None, NaN, pandas.NA, NaT), which is an empty text.

    Examples
    --------
    >>> cell_text(0.1), cell_text(float("nan")), cell_text([1.0, 2.0])
    ('0.1', '', '1.0 2.0')
    """
    if value is None or isinstance(value, str):
        return value.strip() if value else ""
    if isinstance(value, (np.ndarray, Sequence)):
        return " ".join(cell_text(v) or "nan" for v in np.asarray(value).ravel().tolist())
    if type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return "" if np.isnan(value) else repr(value)
    return str(value)
