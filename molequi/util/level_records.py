"""Levels of theory in the path of a model, and in its metadata, under ``"levels"``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a training finds out of each level on its own data.
OF_LEVEL = ("trained_on", "reading", "lowest_energy", "residuals", "symmetry_report")


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
