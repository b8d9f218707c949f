"""Plain values of a run that was given as objects."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import torch

from molequi.errors import ConfigError
from molequi.heads import Head
from molequi.hooks import Hook
from molequi.losses import Loss
from molequi.quantities import Quantity
from molequi.util.options import Options


def as_plain(value: Any) -> Any:
    """Mappings, lists and values that YAML has.

    Parameters
    ----------
    value : object
        A part of a run: plain values, and objects of the package that stand for their options.

    Examples
    --------
    >>> as_plain({"loss": ("energy", 2)})
    {'loss': ['energy', 2]}
    """
    if isinstance(value, Mapping):
        return {str(k) if not isinstance(k, (str, int)) else k: as_plain(v) for k, v in value.items()}
    if isinstance(value, Hook) and isinstance(value, Options):
        return {type(value).__name__: as_plain(value.changed())}
    if isinstance(value, Loss):
        return as_plain({value.label: {k: v for k, v in value.changed().items() if k != "quantity"}})
    if isinstance(value, Options):
        return as_plain(value.changed())
    if isinstance(value, (list, tuple)):
        return [as_plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Quantity):
        return asdict(value)
    if isinstance(value, Head):
        plain = as_plain(value.quantity)
        return {type(value).__name__: {"quantity": plain, **value.options} if value.options else plain}
    if hasattr(value, "item") and not isinstance(value, torch.nn.Module):
        return value.item()
    return value


def yaml_value(text: str) -> Any:
    """Return the value of a word in YAML.

    Parameters
    ----------
    text : str
        The word.

    Raises
    ------
    ConfigError
        If it is no YAML.

    Examples
    --------
    >>> yaml_value("1e-3"), yaml_value("[a, b]"), yaml_value("null")
    (0.001, ['a', 'b'], None)
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"]), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{text}: cannot be read: {' '.join(str(error).split())}") from error
    return cast(dict[str, Any], tree)["x"]
