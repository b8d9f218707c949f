"""What is checked before the first training of a comparison, so that none is in vain."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from molequi.config.levels import names_of
from molequi.config.start import SECTION
from molequi.data.dataset import Dataset
from molequi.data.indexing import evenly_spaced
from molequi.errors import ConfigError, DataError
from molequi.inference.evaluate import evaluate
from molequi.inference.ranking import OTHER
from molequi.model import Model
from molequi.training.checks import check_terms, learnt_terms
from molequi.training.clock import Kind
from molequi.training.options import TrainingOptions

# Options that the comparison sets itself, and what to give in their place.
_SET = {
    "epochs": "minutes",
    "max_minutes": "minutes",
    "seed": "seeds",
    "validation.patience": "minutes",
    "compute.clock": "",
    "compute.accelerate": "",
}
_WITH_PROCESSOR_TIME = {"compute.workers": ""}


def check_sections(settings: Mapping[str, Any]) -> None:
    """Refuse sections that a comparison does not carry out.

    Parameters
    ----------
    settings : mapping
        The sections of the run.

    Raises
    ------
    ConfigError
        For each of them.
    """
    for section in ("pretrain", SECTION):
        if settings.get(section) is not None:
            raise ConfigError(
                f"compare: the section {section} is for one network and several are compared; leave it out: "
                f"{section}=null"
            )
    if names_of(settings["data"]) is not None:
        raise ConfigError(
            "compare: the data are of several levels of theory; take those of one level, and leave "
            "data.levels out"
        )


def check_given(overrides: Sequence[str], own: Mapping[str, Mapping[str, Any]], clock: Kind) -> None:
    """Refuse options that would have no effect, since the comparison sets them for all networks.

    Parameters
    ----------
    overrides : sequence of str
        Settings that the caller gave beside the run.
    own : mapping of str to mapping
        Networks of the caller.
    clock : {"processor", "wall"}
        Which minutes.

    Raises
    ------
    ConfigError
        For such an option.
    """
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    typed = tree.get("train") if isinstance(tree, Mapping) else None
    found = [("", name) for name in _paths(typed or {})]
    for network, sections in own.items():
        train = sections.get("train") if isinstance(sections, Mapping) else None
        found += [(f"own[{network!r}]: ", name) for name in _paths(train or {})]
        if isinstance(train, Mapping) and (wrong := [name for name in ("out", "resume") if name in train]):
            raise ConfigError(
                f"compare: own[{network!r}]: train.{wrong[0]} is that of the comparison; leave it out"
            )
    refused = _SET | (_WITH_PROCESSOR_TIME if clock == "processor" else {})
    for where, name in found:
        if name in refused:
            instead = f"; give {refused[name]} to the comparison in its place" if refused[name] else ""
            raise ConfigError(
                f"compare: {where}train.{name} is the same for all networks, and the comparison sets it; "
                f"leave it out{instead}"
            )


def replaced(settings: Mapping[str, Any], clock: Kind) -> list[str]:
    """The options of a run, as in a file, that the comparison sets itself.

    Parameters
    ----------
    settings : mapping
        The sections of the run.
    clock : {"processor", "wall"}
        Which minutes.
    """
    refused = _SET | (_WITH_PROCESSOR_TIME if clock == "processor" else {})
    return [f"train.{name}" for name in _paths(settings["train"]) if name in refused]


def _paths(section: Any, above: str = "") -> Iterator[str]:
    """The options of a section by their dotted names, groups and what is in them."""
    if isinstance(section, Mapping):
        for name, value in section.items():
            yield f"{above}{name}"
            yield from _paths(value, f"{above}{name}.")


def check_labels(parts: Mapping[str, Dataset], quantity: str, other: str | None) -> None:
    """Refuse parts of the data without a label of the deciding quantity.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The data.
    quantity : str
        Name of the deciding quantity.
    other : str or None
        Path of the data of other conditions.

    Raises
    ------
    DataError
        For such a part.
    """
    for part, data in parts.items():
        if not data.labelled(quantity):
            file = f"{other}: the other data" if part == OTHER else f"{data.origins[0]} …: the {part} data"
            raise DataError(
                f"{file} have no labels of {quantity!r}, whose errors decide (they have "
                f"{', '.join(data.quantities) or 'none'}); give data with these labels, or say how the file "
                f"calls them with keys={{{quantity!r}: ...}}"
            )


def try_once(model: Model, parts: Mapping[str, Dataset], options: TrainingOptions) -> None:
    """Check that a model fits terms and labels, and predict two structures.

    Some networks see only there that they cannot take the data.

    Parameters
    ----------
    model : Model
        The model; it is not changed.
    parts : mapping of str to Dataset
        The data.
    options : TrainingOptions
        The options of its training.

    Raises
    ------
    MolequiError
        If the model cannot be trained on the data.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training warns
        check_terms(options, model, "train.terms")
        learnt_terms(options, model, {name: data for name, data in parts.items() if name != OTHER})
        train = parts["train"]
        evaluate(copy.deepcopy(model), train[evenly_spaced(len(train), min(2, len(train)))], progress=False)
