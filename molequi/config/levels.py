"""Data of several levels of theory in a run: ``data: {levels: {pbe: {extxyz: …}, r2scan: {extxyz: …}}}``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

from molequi.data.dataset import Dataset
from molequi.data.levels import LEVEL, check_filled, levels_in
from molequi.errors import ConfigError
from molequi.model import Model
from molequi.report_page import FinishedRun
from molequi.util.level_records import fault_of_name

KEY = "levels"


def sections_of(data: Any) -> dict[str, tuple[str, Any]]:
    """The sections that each read data: one, or one for each level of theory.

    Parameters
    ----------
    data : object
        The section ``data``.

    Returns
    -------
    dict of str to (str, object)
        For each level the path of its section and the section; under an empty name if there are no levels.

    Raises
    ------
    ConfigError
        If something stands beside the levels, if there are none, or for a name that no level can have.

    Examples
    --------
    >>> sections_of({"levels": {"pbe": {"extxyz": {}}}})
    {'pbe': ('data.levels.pbe', {'extxyz': {}})}
    """
    if not isinstance(data, Mapping) or KEY not in data:
        return {"": ("data", data)}
    levels = data[KEY]
    others = [str(name) for name in data if name != KEY]
    if others:
        raise ConfigError(
            f"data.{others[0]} and data.{KEY}: each level has a reader of its own; write "
            f"data.{KEY}.NAME.{others[0]}"
        )
    if not isinstance(levels, Mapping) or not levels:
        raise ConfigError(
            f"data.{KEY}: found {levels!r}; wanted a section for each level of theory, such as "
            "{pbe: {extxyz: {path: …}}, r2scan: {extxyz: {path: …}}}"
        )
    for level in levels:
        fault = fault_of_name(level)
        if fault is not None:
            quotes = "" if isinstance(level, str) else "; a number needs quotes"
            raise ConfigError(f"data.{KEY}: found {level!r}; wanted {fault}{quotes}")
    return {level: (f"data.{KEY}.{level}", section) for level, section in levels.items()}


def check_alone(config: Mapping[str, Any]) -> None:
    """Check the sections of a run with several levels of theory against each other.

    Parameters
    ----------
    config : mapping
        All sections.

    Raises
    ------
    ConfigError
        For a section that goes with a single level alone.
    """
    if "" in sections_of(config.get("data")):
        return
    wrong = {
        "pretrain": "labels of another method are one more level: give them as one of data.levels",
        "start_from": "a trained model gets one level after the other: give the data of the new one as data, "
        "and its name as train.finetune.level",
    }
    for name, instead in wrong.items():
        if config.get(name) is not None:
            raise ConfigError(f"{name} and data.{KEY}: {instead}")


def names_of(data: Any) -> list[str] | None:
    """Names of the levels of a run; None if it has a single one.

    Parameters
    ----------
    data : object
        The section ``data``.
    """
    return [level for level in sections_of(data) if level] or None


def joined(parts: Mapping[str, Mapping[str, Dataset]]) -> dict[str, Dataset]:
    """The data of all levels by part, with the names of their levels.

    Parameters
    ----------
    parts : mapping of str to mapping
        The parts of each level; under an empty name those of a run with a single one.

    Raises
    ------
    ConfigError
        For structures that say themselves that they are of another level.
    DataError
        If only some of those of one section say theirs.
    """
    found: dict[str, list[Dataset]] = {"train": [], "valid": [], "test": []}
    for level, own in parts.items():
        for part, data in own.items():
            if level:
                _check_own(data, level, part)
            found[part].append(data.with_level(level) if level else data)
    return {part: reduce(add, several) for part, several in found.items() if several}


def _check_own(data: Dataset, level: str, part: str) -> None:
    """Raise for structures of a section that name another level."""
    files = ", ".join(dict.fromkeys(source.file for source in data.sources))
    where = f"data.{KEY}.{level}, the {part} data" + (f" of {files}" if files else "")
    check_filled(data.info.get(LEVEL), where)
    others = [name for name in levels_in(data.info.get(LEVEL)) if name != level]
    if others:
        raise ConfigError(
            f"{where}: the structures say that they are of the level {', '.join(map(repr, others))}, and the "
            f"section is of {level!r}; name the section as they do, or give it a file of its level alone"
        )


def file_names(levels: Sequence[str]) -> dict[str, str]:
    """What is added to the names of files of each level, different also where capitals do not count.

    Parameters
    ----------
    levels : sequence of str
        Names of the levels of a model.

    Examples
    --------
    >>> file_names(["pbe d3", "pbe_d3"])
    {'pbe d3': '-pbe_d3', 'pbe_d3': '-pbe_d3-2'}
    """
    found: dict[str, str] = {}
    for level in levels:
        stem = name = f"-{re.sub(r'[^A-Za-z0-9_.+-]+', '_', level)}"
        count = 1
        while name.casefold() in map(str.casefold, found.values()):
            count += 1
            name = f"{stem}-{count}"
        found[level] = name
    return found


def run_of_each(run: FinishedRun, level: str | None = None) -> dict[str, FinishedRun]:
    """A run of several levels of theory as one of each, for a report page of each.

    Parameters
    ----------
    run : FinishedRun
        The run.
    level : str, optional
        Only this one.

    Returns
    -------
    dict of str to FinishedRun
        By what is added to the names of files: ``"-pbe"``; a run of a single level as it is, under an empty
        name.

    Raises
    ------
    ModelError
        If the model has no such level.
    ConfigError
        If the data have no structure of it.
    """
    if level is not None and isinstance(run.model, Model):
        run.model.at(level)
    if not isinstance(run.model, Model) or not run.model.levels:
        return {"": run}
    finetune = (run.config.get("train") or {}).get("finetune")
    new = finetune.get("level") if isinstance(finetune, Mapping) else None
    found, files = {}, file_names(run.model.levels)
    for name in run.model.levels if level is None else (level,):
        own = {}
        for part, data in run.parts.items():
            known = [new] if LEVEL not in data.info else levels_in(data.info[LEVEL])
            if name in known:
                own[part] = data.at_level(name) if LEVEL in data.info else data
        errors = {part: run.errors[key] for part in own if (key := f"{part} {name}") in run.errors}
        if own and errors:
            found[files[name]] = replace(
                run, name=f"{run.name}, level {name}", model=run.model.at(name), parts=own, errors=errors
            )
    if not found:
        what = "any level of the model" if level is None else f"the level {level!r}"
        raise ConfigError(f"{run.name}: the data have no structures of {what}; there is nothing to report")
    return found
