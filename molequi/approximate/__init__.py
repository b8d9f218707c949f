"""Approximate equivariance: regularizers, constraint annealing, layer-wise selection of equivariance."""

from molequi.approximate.annealing import ConstraintAnnealing
from molequi.approximate.augmentation import Augmentation
from molequi.approximate.equivariance_errors import (
    EquivarianceError,
    EquivarianceErrors,
    equivariance_errors,
)
from molequi.approximate.layerwise import layerwise_equivariance
from molequi.approximate.regularizers import EquivarianceRegularizer
from molequi.approximate.report import FreePath, LayerwiseEquivariance
from molequi.approximate.selection import EquivarianceSelection
from molequi.hooks import Hook

# The terms of a training that a YAML file may name.
TERMS: dict[str, type[Hook]] = {
    kind.__name__: kind
    for kind in (Augmentation, EquivarianceRegularizer, ConstraintAnnealing, EquivarianceSelection)
}

__all__ = [
    "TERMS",
    "Augmentation",
    "ConstraintAnnealing",
    "EquivarianceError",
    "EquivarianceErrors",
    "EquivarianceRegularizer",
    "EquivarianceSelection",
    "FreePath",
    "LayerwiseEquivariance",
    "equivariance_errors",
    "layerwise_equivariance",
]
