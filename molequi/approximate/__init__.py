"""Approximate equivariance: regularizers, constraint annealing, layer-wise selection of equivariance."""

from molequi.approximate.annealing import ConstraintAnnealing
from molequi.approximate.regularizers import EquivarianceRegularizer
from molequi.approximate.selection import Degree, EquivarianceSelection, FreePath, degree
from molequi.approximate.transforms import PoseErrors, pose_errors

# The terms of a training that a YAML file may name.
TERMS = {
    kind.__name__: kind for kind in (EquivarianceRegularizer, ConstraintAnnealing, EquivarianceSelection)
}

__all__ = [
    "TERMS",
    "ConstraintAnnealing",
    "Degree",
    "EquivarianceRegularizer",
    "EquivarianceSelection",
    "FreePath",
    "PoseErrors",
    "degree",
    "pose_errors",
]
