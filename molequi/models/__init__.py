"""Backbones: one file each, one line each in the table that names them."""

from molequi.models.base import Backbone
from molequi.models.egnn import EGNN
from molequi.models.nequip import NequIP
from molequi.models.painn import PaiNN

BACKBONES: dict[str, type[Backbone]] = {
    "EGNN": EGNN,
    "NequIP": NequIP,
    "PaiNN": PaiNN,
}
