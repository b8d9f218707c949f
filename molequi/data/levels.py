"""Levels of theory of structures: names in a column of `Dataset.info`, and numbers for a model."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from molequi.errors import DataError
from molequi.util.level_records import fault_of_name

LEVEL = "level"  # the column of info, the key of a file, and the field of a Graph


def named_level(level: object) -> str:
    """The name of a level.

    Parameters
    ----------
    level : object
        What the user gave.

    Raises
    ------
    DataError
        If it is no text, or an empty one, or has a sign that paths need.
    """
    fault = fault_of_name(level)
    if fault is not None:
        raise DataError(f"level {level!r}: wanted {fault}")
    return cast(str, level)


def levels_in(column: Sequence[Any] | None) -> list[str]:
    """Names of the levels of a column, in the order in which they occur; structures without one are left out.

    Parameters
    ----------
    column : sequence, optional
        The column ``level`` of `Dataset.info`.

    Examples
    --------
    >>> levels_in(["pbe", None, "r2scan", "pbe"])
    ['pbe', 'r2scan']
    """
    return [*dict.fromkeys(str(value) for value in column or () if value is not None)]


def check_filled(column: Sequence[Any] | None, where: str) -> None:
    """Check that all structures of data name their level, if any does: the others would inherit one.

    Parameters
    ----------
    column : sequence, optional
        The column ``level`` of `Dataset.info`.
    where : str
        What the data are, for messages.

    Raises
    ------
    DataError
        If only some do.
    """
    missing, known = sum(value is None for value in column or ()), levels_in(column)
    if missing and known:
        raise DataError(
            f"{where}: {missing} of {len(column or ())} structures have no level, and the others have "
            f"{', '.join(map(repr, known))}; say the level of all, each part with data.with_level(…), or as "
            "the key level in the file"
        )


def rows_at(column: Sequence[Any] | None, level: str) -> list[int]:
    """Numbers of the structures of one level.

    Parameters
    ----------
    column : sequence, optional
        The column ``level`` of `Dataset.info`.
    level : str
        Name of the level.

    Raises
    ------
    DataError
        If there are none.
    """
    rows = [k for k, value in enumerate(column or ()) if value is not None and str(value) == level]
    if not rows:
        known = levels_in(column)
        there = f"they have {', '.join(map(repr, known))}" if known else "they state no levels"
        raise DataError(f"level {level!r}: no structure of it in these data; {there}")
    return rows


def numbers_of_levels(column: Sequence[Any] | None, levels: Sequence[str], origins: Sequence[str]) -> Tensor:
    """The number of the level of each structure.

    Parameters
    ----------
    column : sequence, optional
        The column ``level`` of `Dataset.info`.
    levels : sequence of str
        Names of the levels of a model.
    origins : sequence of str
        Where each structure came from, for messages.

    Returns
    -------
    Tensor, shape (structures,)

    Raises
    ------
    DataError
        For a structure without a level or of another one.

    Examples
    --------
    >>> numbers_of_levels(["r2scan", "pbe"], ["pbe", "r2scan"], ["a", "b"]).tolist()
    [1, 0]
    """
    places = {name: k for k, name in enumerate(levels)}
    known = ", ".join(map(repr, levels))
    numbers = []
    for value, origin in zip((None,) * len(origins) if column is None else column, origins):
        if value is None:
            raise DataError(
                f"{origin} has no level, and the model has {known}; say it with "
                f"data.with_level({levels[0]!r}), or as the key level of each structure in the file"
            )
        if str(value) not in places:
            raise DataError(
                f"{origin} has the level {str(value)!r}, which is none of the model; it has {known}"
            )
        numbers.append(places[str(value)])
    return torch.tensor(numbers)
