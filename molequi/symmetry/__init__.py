"""Symmetry groups, random elements of them, and their action on graphs, features and quantities."""

from molequi.symmetry.groups import (
    CONTAINED,
    CONTINUOUS,
    FINITE,
    Group,
    group,
    random_orthogonal,
)
from molequi.symmetry.transform import Geometric, Transform, infinitesimal

__all__ = [
    "CONTAINED",
    "CONTINUOUS",
    "FINITE",
    "Geometric",
    "Group",
    "Transform",
    "group",
    "infinitesimal",
    "random_orthogonal",
]
