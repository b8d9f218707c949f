"""Levels of theory in the path of a model, and in its metadata, under ``"levels"``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molequi.errors import ModelError

_NOT_IN_NAMES = "@/\\"
# What a training finds out of each level on its own data.
OF_LEVEL = ("trained_on", "reading", "lowest_energy", "residuals", "symmetry_report")


def fault_of_name(name: object) -> str | None:
    """What is wrong with the name of a level of theory; None if it is a good one.

    Parameters
    ----------
    name : object
        What the user gave.

    Examples
    --------
    >>> fault_of_name("pbe@d3")
    'a name without @, slashes and backslashes, which have a meaning in paths'
    """
    if not isinstance(name, str) or not name.strip():
        return "the name of a level of theory, such as 'pbe'"
    if set(name) & set(_NOT_IN_NAMES):
        return "a name without @, slashes and backslashes, which have a meaning in paths"
    return None


def own_level(metadata: Mapping[str, Any]) -> str | None:
    """The level of theory of a model of a single one, by its metadata; None if it is not known.

    Parameters
    ----------
    metadata : mapping
        Those of the model. The level of its origin counts unless the model was fine-tuned since, or the name
        is none that a model of several levels takes.

    Examples
    --------
    >>> own_level({"origin": {"level": "PBE"}}), own_level({"origin": {"level": "PBE"}, "finetuning": {}})
    ('PBE', None)
    """
    level = metadata.get("level")
    if level is None and "finetuning" not in metadata:
        origin = metadata.get("origin")
        level = origin.get("level") if isinstance(origin, Mapping) else None
        return None if fault_of_name(level) else level
    return level


def metadata_at(metadata: Mapping[str, Any], level: str) -> dict[str, Any]:
    """The metadata of the model of one level, which say its name under ``"level"``.

    Parameters
    ----------
    metadata : mapping
        Those of a model of several levels.
    level : str
        Name of the level.

    Examples
    --------
    >>> metadata_at({"run": {}, "levels": {"pbe": {"lowest_energy": -3.0}}}, "pbe")
    {'run': {}, 'lowest_energy': -3.0, 'level': 'pbe'}
    """
    common = {name: value for name, value in metadata.items() if name not in ("levels", *OF_LEVEL)}
    return {**common, **metadata.get("levels", {}).get(level, {}), "level": level}


def split_level(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """The path of a model, and the level of theory that it names after an ``@``.

    Parameters
    ----------
    path : str or path-like
        A file or folder, or one with a level, such as ``runs/both@r2scan``. What exists under the whole name,
        such as ``runs/water@300K``, is that file or folder.

    Returns
    -------
    path : Path
        The file or folder.
    level : str or None
        What stands after the ``@``; None if nothing does.
    """
    name, _, level = os.fspath(path).rpartition("@")
    if not name or not level or Path(path).exists() or not Path(name).exists():
        return Path(path), None
    return Path(name), level


def chosen_level(path: str | os.PathLike[str], level: object) -> str | None:
    """The level of theory to take of a model file: an argument, or what its path names.

    Parameters
    ----------
    path : str or path-like
        What `split_level` takes.
    level : object
        The argument; None if it was left out.

    Raises
    ------
    ModelError
        If it is no name, or another one than the path has.
    """
    named = split_level(path)[1]
    if level is None:
        return named
    if not isinstance(level, str):
        raise ModelError(f"level={level!r}: wanted the name of a level of theory, such as 'pbe'")
    if named not in (None, level):
        raise ModelError(
            f"{os.fspath(path)}: the path names the level {named!r} and level={level!r}; give one"
        )
    return level
