"""Spectra by degree: functions on the sphere, features filtered by degree, and invariants of structures."""

from molequi.ops.sphere import SphereGrid
from molequi.spectral.descriptors import bispectrum, power_spectrum
from molequi.spectral.filters import feature_spectrum, low_pass, power, resample

__all__ = [
    "SphereGrid",
    "bispectrum",
    "feature_spectrum",
    "low_pass",
    "power",
    "power_spectrum",
    "resample",
]
