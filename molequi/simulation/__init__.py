"""Molecular dynamics and relaxation with any ASE calculator, in files that survive a kill.

A run leaves in the folder `out`, where one is given: trajectory.xyz (extended XYZ: energy in eV, forces in eV/Å), log.csv, last.xyz (where it
stands, or the last good frame) and state.npz, from which the same call goes on as if it had never stopped.
"""

from molequi.simulation.dynamics import Drift, Dynamics, drift, md
from molequi.simulation.relaxation import Relaxation, relax

__all__ = ["Drift", "Dynamics", "Relaxation", "drift", "md", "relax"]
