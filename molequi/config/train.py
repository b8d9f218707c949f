"""The section ``train`` of a run: the options of `fit` as plain values, with its terms by name."""

from collections.abc import Mapping
from typing import Any

from molequi.config.names import Names
from molequi.errors import ConfigError, did_you_mean
from molequi.hooks import Hook
from molequi.losses import read_losses
from molequi.training.checks import read_options
from molequi.training.fit import fit
from molequi.training.options import TrainingOptions
from molequi.training.renamed import RENAMED
from molequi.util.options import Options, as_options
from molequi.util.signature import check_call


def read_train(section: Any, names: Names) -> TrainingOptions:
    """Read the section ``train``.

    Parameters
    ----------
    section : Mapping
        The section.
    names : Names
        What the names of losses and terms stand for.

    Returns
    -------
    TrainingOptions
        The options, checked.

    Raises
    ------
    ConfigError
        With the path of each key that is unknown, of an earlier version, of the wrong type or out of range.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"train: found {section!r} ({type(section).__name__}); wanted options, such as epochs: 100"
        )
    old = [f"train.{name}: now train.{RENAMED[name].yaml}" for name in section if name in RENAMED]
    if old:
        raise ConfigError("\n".join(old))
    arguments = dict(section)
    if "loss" in arguments:
        arguments["loss"] = read_losses(arguments["loss"], "train.loss", names.losses)
    if "terms" in arguments:
        given = arguments["terms"]
        if not isinstance(given, (list, tuple)):
            raise ConfigError(
                f"train.terms: found {given!r} ({type(given).__name__}); wanted a list of terms, as in "
                f"terms: {_as_list(given)}"
            )
        arguments["terms"] = [_term(item, f"train.terms.{k}", names) for k, item in enumerate(given)]
    return read_options(fit, arguments, "train")


def _term(item: Any, where: str, names: Names) -> Hook:
    """The term that an item of the list describes by its name and options."""
    options: Mapping[str, Any]
    if isinstance(item, str):
        name, options = item, {}
    elif isinstance(item, Mapping) and len(item) == 1:
        ((name, options),) = item.items()
        options = {} if options is None else options
    else:
        raise ConfigError(
            f"{where}: found {item!r} ({type(item).__name__}); wanted the name of one term with its options, "
            f"as in terms: {_as_list(item, names)}"
        )
    if name not in names.hooks:
        hint = did_you_mean(str(name), names.hooks)
        raise ConfigError(
            f"{where}.{name}: no such term{hint}; hand your own over with run(…, hooks={{{name!r}: …}})"
        )
    kind = names.hooks[name]
    if isinstance(kind, Hook):
        if options:
            raise ConfigError(
                f"{where}.{name}: an object was handed over, which takes no options; found {options!r}"
            )
        return kind
    if issubclass(kind, Options):
        term: Hook = as_options(kind, options, f"{where}.{name}")
        return term
    check_call(kind, options, where=f"{where}.{name}")
    return kind(**options)


def _as_list(given: Any, names: Names | None = None) -> str:
    """How terms are written in YAML, if possible those that were meant."""
    if isinstance(given, str):
        return f"[{given}]"
    if not isinstance(given, Mapping) or not given:
        return "[{ConstraintAnnealing: {weight: 0.01}}]"
    known = [name for name in given if names is not None and name in names.hooks]
    if len(known) == 1 and given[known[0]] is None:  # options stand beside the name, not below it
        given = {known[0]: {name: value for name, value in given.items() if name != known[0]}}
    return _flow([{name: {} if options is None else options} for name, options in given.items()])


def _flow(value: Any) -> str:
    """Plain values as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
