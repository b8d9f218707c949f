"""Backbones: one file each and one line here, from which follow `mq.<name>`, YAML, model files, the audit and the test matrix."""

from molequi.models.base import Backbone, Inputs
from molequi.models.egnn import EGNN
from molequi.models.gauntace import GauntACE
from molequi.models.mace import MACE
from molequi.models.nequip import NequIP
from molequi.models.painn import PaiNN
from molequi.models.relaxed import RelaxedEGNN, RelaxedNequIP
from molequi.models.transformer import Transformer

BACKBONES: dict[str, type[Backbone]] = {
    name: kind
    for name, kind in sorted(globals().items())
    if isinstance(kind, type) and issubclass(kind, Backbone) and kind is not Backbone
}
__all__ = ["BACKBONES", "Backbone", "Inputs", *BACKBONES]
