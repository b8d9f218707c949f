"""Pictures for notebooks and reports: ``plotting.parity(model, data).savefig("parity.png")``.

Each function returns a `matplotlib.figure.Figure` of its own, which a notebook shows as a picture.
"""

from typing import Any

from molequi.plotting.analysis import analysis
from molequi.plotting.calibrations import calibration
from molequi.plotting.learning_curves import learning_curve
from molequi.plotting.learning_sizes import size_curve
from molequi.plotting.parities import parity
from molequi.plotting.structures import molecule, trajectory
from molequi.plotting.symmetry import (
    audit,
    layerwise_equivariance,
    lie_errors,
    orbit_spectrum,
    symmetry_curves,
    symmetry_generators,
    symmetry_test,
)
from molequi.util.attributes import OF_PLOTTING, no_attribute

__all__ = [
    "analysis",
    "audit",
    "calibration",
    "layerwise_equivariance",
    "learning_curve",
    "lie_errors",
    "molecule",
    "orbit_spectrum",
    "parity",
    "size_curve",
    "symmetry_curves",
    "symmetry_generators",
    "symmetry_test",
    "trajectory",
]


def __getattr__(name: str) -> Any:
    raise no_attribute("module 'molequi.plotting'", name, __all__, OF_PLOTTING)
