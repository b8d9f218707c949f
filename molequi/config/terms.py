"""The sections ``long_range``, ``repulsion`` and ``dispersion`` of a run: terms of the energy."""

from collections.abc import Mapping
from typing import Any

from molequi.config.plain import as_plain
from molequi.errors import ConfigError, ModelError
from molequi.model import Model
from molequi.terms import NAMES as TERMS
from molequi.terms import Terms, as_terms, plain_terms

__all__ = ["TERMS", "check_terms_of_start", "terms_of"]


def terms_of(config: Mapping[str, Any]) -> Terms:
    """The terms of the energy that the sections of a run describe.

    Parameters
    ----------
    config : mapping
        The sections as plain values.

    Raises
    ------
    ConfigError
        With the path of each wrong option.
    """
    try:
        return as_terms(**{name: config.get(name) for name in TERMS})
    except ModelError as error:
        raise ConfigError(str(error)) from error


def check_terms_of_start(config: Mapping[str, Any], model: Model, section: str) -> dict[str, Any]:
    """The sections of the terms of a run that starts from a trained model.

    Its long range and repulsion are those of the model; another dispersion may be added.

    Parameters
    ----------
    config : mapping
        The sections as plain values.
    model : Model
        The trained model.
    section : str
        Name of the section that names the model.

    Raises
    ------
    ConfigError
        If the sections ask for another long range or repulsion.
    """
    asked, there = plain_terms(terms_of(config)), plain_terms(model.energy_terms)
    for name in ("long_range", "repulsion"):
        if name in asked and asked[name] != there.get(name):
            raise ConfigError(
                f"{name}: found {asked[name]}, and the model of {section} has {there.get(name, 'none')}; its "
                f"weights belong to what it has; leave {name} out"
            )
    return {name: as_plain(value) for name, value in {**there, **asked}.items()}
