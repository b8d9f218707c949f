"""What trajectories and minima say: distributions, diffusion, vibrations, spectra, elasticity, phonons.

- Of a trajectory: `rdf`, `msd`, `vdos`, `bonds`, `angles`, or all of them with `analyze`.
- Of a structure and a model: `eos`, `elastic`, `vibrations`, `phonons`. They relax the structure first.
- Of either: `infrared` and `raman` spectra.

Each result prints a summary. Its method ``tables`` has the numbers as columns, `write_tables` writes them as
CSV files, and `molequi.plotting.analysis` draws it.
"""

from molequi.analysis.elasticity import ElasticConstants, elastic
from molequi.analysis.equation_of_state import EnergyVolume, eos
from molequi.analysis.files import write_structures, write_tables
from molequi.analysis.frames import read_frames
from molequi.analysis.hessian_labels import add_hessian_products
from molequi.analysis.hessians import Hessian, hessian, hessian_vector_product
from molequi.analysis.motion import Displacement, VibrationalDensity, msd, vdos
from molequi.analysis.normal_modes import NormalModes, vibrations
from molequi.analysis.pairs import Distributions, RadialDistribution, angles, bonds, rdf
from molequi.analysis.phonon_bands import Phonons, phonons
from molequi.analysis.spectra import Spectrum, infrared, raman
from molequi.analysis.thermochemistry import Thermochemistry
from molequi.analysis.trajectories import Analysis, analyze

__all__ = [
    "Analysis",
    "Displacement",
    "Distributions",
    "ElasticConstants",
    "EnergyVolume",
    "Hessian",
    "NormalModes",
    "Phonons",
    "RadialDistribution",
    "Spectrum",
    "Thermochemistry",
    "VibrationalDensity",
    "add_hessian_products",
    "analyze",
    "angles",
    "bonds",
    "elastic",
    "eos",
    "hessian",
    "hessian_vector_product",
    "infrared",
    "msd",
    "phonons",
    "raman",
    "rdf",
    "read_frames",
    "vdos",
    "vibrations",
    "write_structures",
    "write_tables",
]
