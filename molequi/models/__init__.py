"""Backbones: one file each and one line here, from which follow `mq.<name>`, YAML, model files, the audit and the test matrix."""

from collections.abc import Mapping
from typing import Any

from molequi.models.base import Backbone, Inputs
from molequi.models.egnn import EGNN
from molequi.models.gauntace import GauntACE
from molequi.models.mace import MACE
from molequi.models.nequip import NequIP
from molequi.models.painn import PaiNN
from molequi.models.relaxed import RelaxedEGNN, RelaxedNequIP
from molequi.models.transformer import Transformer
from molequi.util.extensions import find, with_own

BACKBONES: dict[str, type[Backbone]] = {
    name: kind
    for name, kind in sorted(globals().items())
    if isinstance(kind, type) and issubclass(kind, Backbone) and kind is not Backbone
}
__all__ = ["BACKBONES", "Backbone", "Inputs", "build", *BACKBONES]


def build(
    name: str, options: Mapping[str, Any], backbones: Mapping[str, type[Backbone]] | None = None
) -> Backbone:
    """A backbone from the name of its class and its options, as YAML and model files have them.

    Parameters
    ----------
    name : str
        One of `BACKBONES`, or of `backbones`.
    options : mapping
        Keyword arguments of its constructor; ``inputs`` may be a mapping.
    backbones : mapping of str to type, optional
        Classes that are not the package's, by name.

    Raises
    ------
    ModelError
        If the name is unknown, or `backbones` replaces a class of the package.
    ConfigError
        For options that are unknown, of the wrong type or out of range.
    """
    table = with_own(BACKBONES, backbones, base=Backbone, argument="backbones")
    return find(name, table, what="backbone", argument="backbones")(**options)
