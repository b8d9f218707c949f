"""The files of a LAMMPS simulation with a model."""

import os
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms
from ase.io import write

from molequi.checkpoint import load, save
from molequi.engines.evaluator import Evaluator
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.model import Model
from molequi.quantities import SYMBOLS, atomic_number
from molequi.readers.atoms import read_frames
from molequi.util.signature import check_keywords

_SYSTEM = """\
# Types of atoms: {types}
units metal
atom_style atomic
boundary {boundary}
box tilt large
read_data system.data
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

from molequi import engines

lmp = engines.start_lammps(["-log", "log.lammps"])
lmp.file("in.system")
model = engines.lammps(lmp, "model.safetensors", {elements!r}{options})
model.command("include in.run")
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
        If the folder has files, or `elements` lacks one of the structure.
    ModelError
        As `Evaluator` does, and for unknown elements.
    """
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ConfigError(
            f"out={out}: this folder has files; choose another name, or write into it with --overwrite"
        )
    atoms = like.copy() if isinstance(like, Atoms) else read_frames(os.fspath(like))[0]
    evaluator = Evaluator(model, level=level, charge=charge, spin=spin, device="cpu")
    evaluator(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc)  # refuses what it must
    found = [SYMBOLS[z] for z in sorted({*atoms.numbers.tolist()})]
    types = found if elements is None else [SYMBOLS[atomic_number(one)] for one in elements]
    if missing := [one for one in found if one not in types]:
        raise ConfigError(f"elements={types}: the structure has {', '.join(missing)}, too; add it")
    folder.mkdir(parents=True, exist_ok=True)
    save(_at_level(model, level), folder / "model.safetensors")
    edges = ["p" if periodic else "f" for periodic in atoms.pbc]
    if not atoms.pbc.any():
        atoms.center(vacuum=50.0)  # LAMMPS loses atoms that leave a box
    write(folder / "system.data", atoms, format="lammps-data", specorder=types, masses=True, units="metal")
    names = ", ".join(f"{k + 1} {one}" for k, one in enumerate(types))
    (folder / "in.system").write_text(_SYSTEM.format(types=names, boundary=" ".join(edges)))
    (folder / "in.run").write_text(_RUN)
    options = "".join(f", {name}={value!r}" for name, value in evaluator.totals.items())
    (folder / "run.py").write_text(_SCRIPT.format(elements=types, options=options))
    return folder


def _at_level(model: Model | Ensemble | str | os.PathLike[str], level: str | None) -> Model | Ensemble:
    found = model if isinstance(model, (Model, Ensemble)) else load(model)
    return found.at(level) if level is not None and isinstance(found, Model) else found
