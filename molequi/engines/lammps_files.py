"""The files of a LAMMPS simulation with a model."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.data import atomic_masses
from ase.io import write

from molequi.checkpoint import load, save
from molequi.domain import check_elements
from molequi.engines.evaluator import Evaluator
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError
from molequi.model import Model
from molequi.quantities import SYMBOLS, atomic_number
from molequi.readers.atoms import read_frames
from molequi.util.signature import check_keywords

_ROOM = 50.0  # Å on each side
_SYSTEM = """\
# Types of atoms: {types}
units metal
atom_style atomic
boundary {boundary}
box tilt large
read_data system.data
{masses}
pair_style none
comm_modify cutoff 2.0
"""
_RUN = """\
# The model is the fix 'molequi': energy, forces and virial of all atoms.
velocity all create 300 1 mom yes rot yes
fix move all nve
timestep 0.0005
thermo_style custom step temp pe ke etotal press
thermo 10
run 100
write_restart last.restart
"""
_SCRIPT = '''\
"""Run in.system, add the model, run in.run: python run.py"""

from pathlib import Path

from molequi import engines

lmp = engines.start_lammps(["-log", "log.lammps"])
lmp.file("in.system")
model = engines.lammps(lmp, "model.safetensors", {elements!r}{options})
for line in Path("in.run").read_text().replace("&\\n", " ").splitlines():
    model.command(line)  # one by one: what the model refuses ends the script here
'''


@check_keywords()
def export_lammps(
    model: Model | Ensemble | str | os.PathLike[str],
    out: str | os.PathLike[str],
    like: Atoms | str | os.PathLike[str],
    *,
    elements: Sequence[str] | None = None,
    overwrite: bool = False,
    level: str | None = None,
    charge: float | None = None,
    spin: float | None = None,
) -> Path:
    """Write a folder from which LAMMPS runs with a model: ``python run.py``.

    It has the model, ``system.data`` with the structure, the inputs ``in.system`` and ``in.run``, which are
    to be edited, and ``run.py``, which puts them together. Nothing in it is pickled.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model or its file.
    out : str or Path
        The folder.
    like : ase.Atoms, str or Path
        The structure.
    elements : sequence of str, optional
        Elements of the atom types 1, 2, …; by default those of the structure, by atomic number.
    overwrite : bool
        Write into a folder that has files.
    level : str, optional
        Level of theory, of a model of several.
    charge, spin : float, optional
        Total charge (e) and spin multiplicity, for a model that reads them.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        If the folder has files or is a file, if `elements` lacks one of the structure, and if atoms of one
        element have different masses.
    DataError
        If the structure has no atoms.
    ModelError
        As `Evaluator` does, and for unknown elements.
    """
    folder = Path(out)
    if file := next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None):
        raise ConfigError(f"out={out}: {file} is a file; wanted the name of a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ConfigError(
            f"out={out}: this folder has files; choose another name, or write into it with overwrite=True "
            "(--overwrite)"
        )
    atoms = like.copy() if isinstance(like, Atoms) else read_frames(os.fspath(like))[0]
    if not len(atoms):
        raise DataError("like=: this structure has no atoms; wanted the one to simulate")
    evaluator = Evaluator(model, level=level, charge=charge, spin=spin, device="cpu")
    evaluator(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc)  # refuses what it must
    found = [SYMBOLS[z] for z in sorted({*atoms.numbers.tolist()})]
    types = found if elements is None else [SYMBOLS[atomic_number(one)] for one in elements]
    if missing := [one for one in found if one not in types]:
        raise ConfigError(f"elements={types}: the structure has {', '.join(missing)}, too; add it")
    check_elements(evaluator.model, np.array([atomic_number(one) for one in types]))
    masses = _masses(atoms, types)
    folder.mkdir(parents=True, exist_ok=True)
    save(_at_level(model, level), folder / "model.safetensors")
    edges = ["p" if periodic else "f" for periodic in atoms.pbc]
    _make_room(atoms)
    write(folder / "system.data", atoms, format="lammps-data", specorder=types, units="metal")
    names = ", ".join(f"{k + 1} {one}" for k, one in enumerate(types))
    (folder / "in.system").write_text(_SYSTEM.format(types=names, boundary=" ".join(edges), masses=masses))
    (folder / "in.run").write_text(_RUN)
    options = "".join(f", {name}={value!r}" for name, value in evaluator.totals.items())
    (folder / "run.py").write_text(_SCRIPT.format(elements=types, options=options))
    return folder


def _masses(atoms: Atoms, types: Sequence[str]) -> str:
    """Commands with the mass of each type, which isotopes have of their own."""
    lines = []
    for k, one in enumerate(types):
        own = sorted({*atoms.get_masses()[atoms.symbols == one].tolist()})
        own = own or [float(atomic_masses[atomic_number(one)])]
        if len(own) > 1:
            raise ConfigError(
                f"{one} has the masses {', '.join(f'{m:g}' for m in own)} u; a type of these files has one: "
                f"give all {one} the same mass, or use engines.lammps with types of your own"
            )
        lines.append(f"mass {k + 1} {float(own[0])!r}")
    return "\n".join(lines)


def _make_room(atoms: Atoms) -> None:
    """Vacuum in the directions that are not periodic, normal to those that are: boxes lose what leaves."""
    free = [k for k in range(3) if not atoms.pbc[k]]
    if not free:
        return
    rows = atoms.cell.array.copy()
    rows[free] = 0.0
    atoms.set_cell(Cell(rows).complete())
    atoms.center(vacuum=_ROOM, axis=free)


def _at_level(model: Model | Ensemble | str | os.PathLike[str], level: str | None) -> Model | Ensemble:
    found = model if isinstance(model, (Model, Ensemble)) else load(model)
    return found.at(level) if level is not None and isinstance(found, Model) else found
