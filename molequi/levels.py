"""Models of several levels of theory with their data: one level after the other, or none without a choice."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from molequi.data.dataset import Dataset
from molequi.data.levels import LEVEL, check_filled, levels_in, numbers_of_levels
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, ModelError
from molequi.heads.levels import several
from molequi.model import Model
from molequi.util.level_records import OF_LEVEL

Predictor = TypeVar("Predictor", bound=Model | Ensemble)


def check_single(model: object) -> None:
    """Check that a model has a single level, or that one was chosen.

    Parameters
    ----------
    model : Model, Ensemble or other object
        The model.

    Raises
    ------
    ModelError
        If it has several levels; it names them.
    """
    if isinstance(model, Model) and model.levels:
        raise ModelError(several(model.levels))


def with_numbers(model: Model, data: Dataset) -> Dataset:
    """The same structures with `Graph.level`, as a model of several levels takes them.

    Parameters
    ----------
    model : Model
        The model.
    data : Dataset
        Structures that name their level, see `Dataset.with_level`.

    Raises
    ------
    DataError
        For a structure without a level or of another one.
    """
    numbers = numbers_of_levels(data.info.get(LEVEL), model.levels, data.origins)
    numbered = Dataset.of_structures(
        data.graphs.with_field(LEVEL, numbers),
        quantities=data.quantities,
        origins=data.origins,
        info=data.info,
        sources=data.sources,
        found=data.found,
        unused=data.unused,
        reading=data.reading,
        allow=data.allow,
    )
    numbered.parts_of = data.parts_of
    return numbered


def check_level_of(model: Model | Ensemble, data: Dataset, where: str = "these data") -> None:
    """Check that labels are of the level of theory of a model, if both say theirs.

    Parameters
    ----------
    model : Model or Ensemble
        A model of one level.
    data : Dataset
        Labelled structures.
    where : str
        What they are, for messages.

    Raises
    ------
    ConfigError
        If structures are of another level.
    DataError
        If only some of them say theirs.
    """
    own = (getattr(model, "metadata", None) or {}).get(LEVEL)
    if own is None:
        return
    check_filled(data.info.get(LEVEL), where)
    others = [level for level in levels_in(data.info.get(LEVEL)) if level != own]
    if others:
        raise ConfigError(
            f"{where} have labels of the level {', '.join(map(repr, others))} and the model is of the "
            f"level {own!r}; take labels of its own level, data.at_level({own!r}), or add the other level in "
            f"a fine-tuning: finetune={{'level': {others[0]!r}}}"
        )


def by_level(model: Predictor, data: Dataset) -> Iterator[tuple[str, Predictor | Model, Dataset]]:
    """Each level of a model of which there are data: its name, its model and these data.

    Parameters
    ----------
    model : Model or Ensemble
        The model. If it has a single level, this is the only one, and its name is empty.
    data : Dataset
        The data.
    """
    if not isinstance(model, Model) or not model.levels:
        yield "", model, data
        return
    there = levels_in(data.info.get(LEVEL))
    for level in model.levels:
        if level in there:
            yield level, model.at(level), data.at_level(level)


def keep_record(model: Model, level: str, record: Mapping[str, Any]) -> None:
    """Keep in the metadata of a model of several levels what was found out of one of them.

    Parameters
    ----------
    model : Model
        The model, whose metadata are replaced.
    level : str
        Name of the level.
    record : mapping
        The metadata of the model of this level.
    """
    metadata = dict(getattr(model, "metadata", None) or {})
    own = {name: record[name] for name in OF_LEVEL if name in record}
    model.metadata = {**metadata, "levels": {**metadata.get("levels", {}), level: own}}
