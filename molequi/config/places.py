"""Where run files find data: ``${shipped:NAME}`` ships with molequi, ``${published:NAME}`` does not.

::

    data: {extxyz: {path: "${shipped:bn.xyz}", split: {train: 0.9, valid: 0.1}}}

A published file is looked for in the folder that the variable MOLEQUI_DATA names, then in the working
directory. Recipes that need one say in their first lines which file it is and where it comes from.
"""

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from molequi.datasets import shipped
from molequi.errors import ConfigError

_PUBLISHED = re.compile(r"\$\{published:([^}]+)\}")


def register_places() -> None:
    """Make ``${shipped:…}`` and ``${published:…}`` known to OmegaConf."""
    from omegaconf import OmegaConf

    # The function has another name in older versions, where this one is something else.
    register: Any = getattr(OmegaConf, "register_resolver", None)
    if register is None or "replace" not in inspect.signature(register).parameters:
        register = OmegaConf.register_new_resolver
    register("shipped", lambda name: str(shipped(name)), replace=True)
    register("published", lambda name: str(published(name)), replace=True)


def published(name: str) -> Path:
    """The path of a file that is published elsewhere, whether it is there or not.

    Parameters
    ----------
    name : str
        Name of the file, with the folder of its data set: "acac/train_300K.xyz".

    Returns
    -------
    Path
        In the folder that the variable MOLEQUI_DATA names, or in the working directory if it is there.
    """
    folder = os.environ.get("MOLEQUI_DATA", ".")
    here, there = Path(name), Path(folder, name)
    return here if here.exists() and not there.exists() else there


def check_published(recipe: Path, settings: Mapping[str, Any]) -> None:
    """Check that the published files of a recipe are there, before anything is read.

    Parameters
    ----------
    recipe : Path
        The YAML file. Its first lines are a comment, which says where the data come from.
    settings : mapping
        Its sections, with overrides.

    Raises
    ------
    ConfigError
        With the missing file, the comment of the recipe, and what to type.
    """
    text = recipe.read_text(encoding="utf-8")
    used = set(_texts(settings))
    names = dict.fromkeys(name for name in _PUBLISHED.findall(text) if str(published(name)) in used)
    missing = [name for name in names if not published(name).exists()]
    if not missing:
        return
    comment = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines() if line.startswith("#")]
    folder = os.environ.get("MOLEQUI_DATA")
    where = "the variable MOLEQUI_DATA is not set" if folder is None else f"MOLEQUI_DATA is {folder}"
    raise ConfigError(
        f"{recipe.stem}: needs the published {'file' if len(missing) == 1 else 'files'} "
        f"{' and '.join(missing)}, and {'it is' if len(missing) == 1 else 'they are'} not here ({where}).\n  "
        + "\n  ".join(comment)
        + f"\nThen: MOLEQUI_DATA=FOLDER molequi train {recipe.stem}, where FOLDER holds {missing[0]}. With "
        "data of your own: molequi train FILE; for a first try: molequi train demo"
    )


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
