"""Symmetry discovery: which symmetry a model has that was not built in.

Orbit spectra, hidden actions on features, symmetry generators, the distance of weights from equivariant ones,
pruning, and curves of symmetry measures over training.
"""

from molequi.discovery.actions import HiddenAction, hidden_action
from molequi.discovery.commutant import CommutantDistance, commutant_distance, equivariant_projection
from molequi.discovery.curves import (
    SymmetryCurves,
    audit_errors,
    local_equivariance_errors,
    spectrum_shares,
    symmetry_curves,
)
from molequi.discovery.functions import StructureFunction, structure_function
from molequi.discovery.generators import SymmetryGenerators, symmetry_generators
from molequi.discovery.pruning import PrunedModel, prune
from molequi.discovery.spectrum import OrbitSpectrum, orbit_spectrum

__all__ = [
    "CommutantDistance",
    "HiddenAction",
    "OrbitSpectrum",
    "PrunedModel",
    "StructureFunction",
    "SymmetryCurves",
    "SymmetryGenerators",
    "audit_errors",
    "commutant_distance",
    "equivariant_projection",
    "hidden_action",
    "local_equivariance_errors",
    "orbit_spectrum",
    "prune",
    "spectrum_shares",
    "structure_function",
    "symmetry_curves",
    "symmetry_generators",
]
