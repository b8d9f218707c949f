"""Molecular dynamics and relaxation with any ASE calculator, in files that survive a kill.

A run with `out` leaves these files in that folder:

- ``trajectory.xyz``: frames in extended XYZ, with energies (eV) and forces (eV/Å).
- ``log.csv``: energies, temperature and the like.
- ``last.xyz``: the last frame, or the last good one.
- ``to_label.xyz``: frames that a guard chose before it stopped the simulation.
- ``state.npz``: what the same call needs to continue as if it had never stopped.
"""

from molequi.simulation.bands import Band, neb
from molequi.simulation.dynamics import md
from molequi.simulation.guard import Guard
from molequi.simulation.many import Replicas, md_many, relax_many
from molequi.simulation.options import Barostat, Limits, Thermostat
from molequi.simulation.relaxation import Relaxation, Relaxations, relax
from molequi.simulation.results import Drift, Dynamics, drift
from molequi.simulation.sampling import sample_frames
from molequi.simulation.statistics import Average, block_average, equilibration

__all__ = [
    "Average",
    "Band",
    "Barostat",
    "Drift",
    "Dynamics",
    "Guard",
    "Limits",
    "Relaxation",
    "Relaxations",
    "Replicas",
    "Thermostat",
    "block_average",
    "drift",
    "equilibration",
    "md",
    "md_many",
    "neb",
    "relax",
    "relax_many",
    "sample_frames",
]
