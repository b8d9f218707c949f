"""Other simulation engines: torch-sim, OpenMM, i-PI and LAMMPS, and models compiled ahead of time.

Each function needs the package of its engine, and takes the options of `Evaluator`: ``level``, ``charge``,
``spin``, ``device``, ``dtype``, ``skin`` and ``accelerate``. `molequi.check_engines` runs the same checks
through all that are installed. openmmml finds molequi as ``MLPotential("molequi", modelPath=…)``.
"""

from molequi.engines.adapters import lammps, openmm_force, openmm_system, start_lammps, torch_sim
from molequi.engines.aot import export_aot
from molequi.engines.checking import check_engines
from molequi.engines.evaluator import Evaluation, Evaluator
from molequi.engines.ipi_driver import PATH as ipi_path
from molequi.engines.ipi_driver import IPIDriver, drive
from molequi.engines.lammps_files import export_lammps
from molequi.engines.neighbor_lists import BatchNeighborList
from molequi.engines.report import EngineReport

__all__ = [
    "BatchNeighborList",
    "EngineReport",
    "Evaluation",
    "Evaluator",
    "IPIDriver",
    "check_engines",
    "drive",
    "export_aot",
    "export_lammps",
    "ipi_path",
    "lammps",
    "openmm_force",
    "openmm_system",
    "start_lammps",
    "torch_sim",
]
