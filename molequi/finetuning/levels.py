"""Levels of theory in a fine-tuning: a new one beside those of the model, and that of old data."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from molequi.data.dataset import Dataset
from molequi.data.levels import LEVEL, check_filled, levels_in
from molequi.errors import ConfigError
from molequi.finetuning.options import Finetuning
from molequi.heads import ByLevel, Head, tie_charges
from molequi.levels import keep_record
from molequi.model import Model
from molequi.util.level_records import fault_of_name, own_level

# What stays true of a level when the backbone is trained on another one.
_STAYS = ("trained_on", "reading", "lowest_energy")
_NOTHING: Mapping[str, list[object]] = {"elements": [], "charge": [], "spin": []}


def check_names(model: Model, options: Finetuning) -> None:
    """Check the names of levels before data are read.

    Parameters
    ----------
    model : Model
        The starting model.
    options : Finetuning
        The options.

    Raises
    ------
    ConfigError
        For a level that is missing, unknown or without effect.
    """
    level, start, known = options.level, options.from_level, model.levels
    own = None if known else _own(model)
    replay = None if options.replay is None else options.replay.level
    there = ", ".join(map(repr, known))
    if level is None:
        given = next((n for n, v in (("from_level", start), ("replay.level", replay)) if v is not None), None)
        if known:
            raise ConfigError(
                f"finetune: the model has the levels of theory {there}; say of which one the new data are, "
                f"finetune={{'level': {known[0]!r}}}; the name of a new level adds it"
            )
        if given:
            raise ConfigError(f"finetune.{given} has no effect without finetune.level; leave it out")
        return
    for name, value in (("level", level), ("from_level", start)):
        fault = None if value is None else fault_of_name(value)
        if fault is not None:
            raise ConfigError(f"finetune.{name}: found {value!r}; wanted {fault}")
    if own is not None and level == own:
        raise ConfigError(
            f"finetune.level: the model is of the level {own!r} itself, so that there is none to add; leave "
            "level and from_level out, or name another level"
        )
    if own is not None and start not in (None, own):
        raise ConfigError(
            f"finetune.from_level: the model is of the level {own!r}, and from_level says {start!r}; leave "
            "from_level out"
        )
    if level in known:
        if start is not None:
            raise ConfigError(
                f"finetune.from_level: the model has the level {level!r} already, so that its heads begin as "
                "they are; leave from_level out"
            )
    elif start is None and own is None:
        old = f"it has {there}" if known else "its own level has no name yet"
        raise ConfigError(
            f"finetune.level: the model has no level {level!r}; to add it, name the level as which "
            f"its heads begin: from_level={known[0] if known else 'pbe'!r} ({old})"
        )
    elif start == level:
        raise ConfigError(f"finetune.from_level and finetune.level are both {level!r}; wanted two names")
    elif known and start not in known:
        raise ConfigError(f"finetune.from_level: {start!r} is no level of the model, which has {there}")
    levels = (*(known or [cast(str, own or start)]), level)
    if replay is not None and replay not in levels:
        raise ConfigError(
            f"finetune.replay.level: {replay!r} is no level of the model, which has "
            f"{', '.join(map(repr, levels))}"
        )


def with_start(model: Model, options: Finetuning) -> Finetuning:
    """The options with `Finetuning.from_level`, which may be left out if the level of the model is known.

    Parameters
    ----------
    model : Model
        The starting model.
    options : Finetuning
        Options that `check_names` has checked.
    """
    own = None if model.levels or options.level is None else _own(model)
    return options if own is None else replace(options, from_level=own)


def _own(model: Model) -> str | None:
    return own_level(getattr(model, "metadata", None) or {})


def add_level(model: Model, options: Finetuning) -> None:
    """Give a model the new level, whose heads begin as those of an old one.

    Parameters
    ----------
    model : Model
        The model, which is changed.
    options : Finetuning
        Options that `check_names` has checked.
    """
    level, start = options.level, options.from_level
    if level is None:
        return
    metadata = dict(getattr(model, "metadata", None) or {})
    before = metadata.get("levels", {}) if model.levels else {start: metadata}
    if start is not None:
        for name, head in list(model.heads.items()):
            if not isinstance(head, ByLevel):
                head = ByLevel(cast(Head, head), [start])
                model.heads[name] = head
            head.add(level, like=start)
        tie_charges(model.heads)
        model.use_program(None)
    model.metadata = {name: value for name, value in metadata.items() if name not in ("levels", LEVEL)}
    for name in model.levels:
        # What was measured with the old weights goes; a new level has seen nothing.
        old = before.get(name, {"trained_on": _NOTHING})
        keep_record(model, name, {key: old[key] for key in _STAYS if key in old})


def of_new_level(data: Dataset, level: str, part: str) -> Dataset:
    """The new data, which are all of one level.

    Parameters
    ----------
    data : Dataset
        The data.
    level : str
        Name of the level.
    part : str
        Name of the part, for messages.

    Raises
    ------
    ConfigError
        If they say that they are of another level.
    DataError
        If only some of them say theirs.
    """
    return data.with_level(_agreed(data, level, f"the {part} data", "finetune.level"))


def level_of_old(model: Model, data: Dataset, options: Finetuning, where: str) -> str:
    """The level of old data: what they say, `Replay.level`, or the one as which the new level begins.

    Parameters
    ----------
    model : Model
        The model with all of its levels.
    data : Dataset
        The old data.
    options : Finetuning
        The options.
    where : str
        The option that gave the data, for messages.

    Raises
    ------
    ConfigError
        If it is not known, or is no level of the model.
    DataError
        If only some of the structures say theirs.
    """
    replay = options.replay.level if options.replay is not None and where.endswith("replay.data") else None
    named = replay or (None if levels_in(data.info.get(LEVEL)) else options.from_level)
    level = _agreed(data, named, where, "finetune.replay.level" if replay else "finetune.from_level")
    if level not in model.levels:
        raise ConfigError(
            f"{where}: they are of the level {level!r}, and the model has "
            f"{', '.join(map(repr, model.levels))}"
        )
    return level


def _agreed(data: Dataset, named: str | None, where: str, option: str) -> str:
    """The one level of data by their column and by an option."""
    check_filled(data.info.get(LEVEL), where)
    found = levels_in(data.info.get(LEVEL)) or ([] if named is None else [named])
    if not found:
        raise ConfigError(
            f"{where}: it is not known of which level of theory they are; say it with data.with_level(…), or "
            "of replay with finetune.replay.level"
        )
    if len(found) > 1 or (named is not None and found != [named]):
        said = f"{option} says {named!r}" if named is not None else "wanted one level"
        raise ConfigError(f"{where}: they are of the level {', '.join(map(repr, found))}, and {said}")
    return found[0]
