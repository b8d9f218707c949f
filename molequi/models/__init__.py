"""Backbones. Each has its own file and one line here, by which it is known to Python, YAML, model files and
the tests.
"""

from collections.abc import Mapping
from typing import Any

from molequi.models.base import Backbone, Inputs
from molequi.models.egnn import EGNN
from molequi.models.equiformer import Equiformer
from molequi.models.gauntace import GauntACE
from molequi.models.group_net import GroupConvNet
from molequi.models.mace import MACE
from molequi.models.nequip import NequIP
from molequi.models.nequip_gnn import NequIPGNN
from molequi.models.painn import PaiNN
from molequi.models.point_hierarchy import PointHierarchy
from molequi.models.relaxed import RelaxedEGNN, RelaxedNequIP
from molequi.models.sevennet import SevenNet
from molequi.models.so3krates import So3krates
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
    """Build a backbone from the name of its class and its options, as YAML and model files contain them.

    Parameters
    ----------
    name : str
        One of `BACKBONES`, or of `backbones`.
    options : mapping
        Keyword arguments of its constructor; ``inputs`` may be a mapping.
    backbones : mapping of str to type, optional
        Classes that are not the package's, by name.

    Returns
    -------
    Backbone
        A new backbone.

    Raises
    ------
    ModelError
        If the name is unknown, or `backbones` replaces a class of the package.
    ConfigError
        For options that are unknown, of the wrong type or out of range.

    Examples
    --------
    >>> build("PaiNN", {"elements": ["H", "O"], "channels": 8}).out
    {'0e': 8, '1o': 8}
    """
    # An abstract base is meant here: with_own checks that classes derive from it, and makes no object of it.
    table = with_own(
        BACKBONES,
        backbones,
        base=Backbone,  # type: ignore[type-abstract]
        argument="backbones",
    )
    return find(name, table, what="backbone", argument="backbones")(**options)
