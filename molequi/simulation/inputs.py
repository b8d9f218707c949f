"""Arguments of a simulation, checked before it begins."""

import hashlib
import math
import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.io.jsonio import encode

from molequi.data.checks import check_finite
from molequi.data.request import INVARIANTS
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.graph import own_fields
from molequi.interfaces.ase import Calculator
from molequi.model import Model
from molequi.readers.atoms import read_frames, split_frames
from molequi.util.optional import require

# Tight-binding methods of tblite (Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652, 2019).
XTB = {"gfn1-xtb": "GFN1-xTB", "gfn2-xtb": "GFN2-xTB"}
Structure = Atoms | str | os.PathLike[str]
WHOLE = ("every", "seed")
MAY_BE_ZERO = ("temperature", "seed")
# Keyword arguments of `md` and `relax` in an earlier version.
RENAMED = {
    "index": 'a part of the path, as in ASE: "frames.xyz@…"',
    **{name: f"calculator=mq.Calculator(model, {name}=…)" for name in ("device", "dtype", "accelerate")},
}


def read_structure(given: Structure) -> Atoms:
    """A copy of a structure, or one frame of a file.

    Parameters
    ----------
    given : ase.Atoms, str or Path
        A structure, or a file that ASE reads: its first frame, or with ``frames.xyz@3`` that frame.

    Raises
    ------
    DataError
        If the file or the frame cannot be read, or if this is not one structure with atoms.
    """
    if isinstance(given, (str, os.PathLike)) and os.fspath(given).endswith(".safetensors"):
        raise DataError(
            f"the structure is {os.fspath(given)}, which is a model by its name; the structure comes first: "
            f"mq.md('frames.xyz', {os.fspath(given)!r}, …)"
        )
    if isinstance(given, (str, os.PathLike)):
        return read_frame(*_path_and_index(os.fspath(given)))
    return _checked_structure(given, "the structure")


def read_frame(path: str | Path, index: int = 0) -> Atoms:
    """One frame of a file that ASE reads.

    Parameters
    ----------
    path : str or Path
        The file.
    index : int
        Number of the frame; negative ones count from the end.

    Raises
    ------
    DataError
        If the file or the frame cannot be read.
    """
    return _checked_structure(read_frames(path, index=index)[0], f"{path}, frame {index}")


def _path_and_index(name: str) -> tuple[Path, int]:
    """``frames.xyz@3`` as the path of the file and 3; the index is 0 without one."""
    path, frames = split_frames(name)
    try:
        return path, int(frames or 0)
    except ValueError as error:
        raise DataError(f"{name}: found @{frames}; wanted one frame, such as {path}@3") from error


def _checked_structure(given: object, where: str) -> Atoms:
    """A copy of one structure with atoms. Raises DataError for anything else."""
    if not isinstance(given, Atoms):
        raise DataError(f"{where} is {type(given).__name__}; wanted one ase.Atoms or the path of a file")
    if len(given) == 0:
        raise DataError(f"{where} has no atoms")
    check_finite({"pos": given.positions}, where)
    check_finite({"cell": given.cell[:]}, where, "lattice vector")
    return given.copy()


def as_calculator(given: BaseCalculator | Model | Ensemble | str | os.PathLike[str]) -> BaseCalculator:
    """The calculator itself, one of a tight-binding method by its name, or one of a model or model file.

    Models run in float64, and on CUDA if there is one.

    Parameters
    ----------
    given : ASE calculator, Model, Ensemble, str or Path
        What computes energies and forces: also ``"gfn2-xtb"`` or ``"gfn1-xtb"``.

    Raises
    ------
    ConfigError
        If this is nothing of the kind.
    MissingPackageError
        If tblite is needed and missing.
    """
    if isinstance(given, str) and given.lower() in XTB:
        require("tblite", "xtb", given)
        from tblite.ase import TBLite

        return TBLite(method=XTB[given.lower()], verbosity=0)
    if isinstance(given, str) and not os.path.exists(given):
        _check_method(given)
    if isinstance(given, (str, os.PathLike, Model, Ensemble)):
        return Calculator(given, dtype="float64")
    if isinstance(given, type):
        raise ConfigError(
            f"calculator is the class {given.__name__}; wanted one made with {given.__name__}(...), a Model "
            "or the path of a model file"
        )
    if not hasattr(given, "get_property"):
        raise ConfigError(
            f"calculator is {type(given).__name__}; wanted an ASE calculator, a Model or the path of a "
            "model file"
        )
    return given


def _check_method(given: str) -> None:
    """Raise ConfigError for a text that is no file and rather the name of a method than a path."""
    near = did_you_mean(given.lower(), XTB)
    plain = not Path(given).suffix and os.sep not in given
    if plain and ("?" in near or any(word in given.lower() for word in ("xtb", "gfn"))):
        raise ConfigError(
            f"calculator {given!r}: no such method and no such file{near if '?' in near else ''}; wanted "
            f"{' or '.join(map(repr, XTB))} (tight binding), a model file, or an ASE calculator"
        )


def check_energy(calculator: BaseCalculator) -> None:
    """Raise ConfigError for a calculator without an energy or without forces.

    Parameters
    ----------
    calculator : ASE calculator
        One that lists what it implements; others are not checked.
    """
    known = properties_of(calculator)
    missing = [name for name in ("energy", "forces") if name not in known]
    if not missing or (not known and not isinstance(calculator, Calculator)):
        return
    own = isinstance(calculator, Calculator)
    found = list(calculator.model.quantities) if isinstance(calculator, Calculator) else known
    raise ConfigError(
        f"this {'model' if own else 'calculator'} predicts {', '.join(found)}; dynamics and relaxation need "
        "an energy and its forces"
        + (": train one with predict=['energy', 'forces'], or take another model file" if own else "")
    )


def properties_of(calculator: object) -> list[str]:
    """What an ASE calculator can compute, by ASE's names."""
    return list(getattr(calculator, "implemented_properties", []))


def structure_digest(atoms: Atoms, *, with_momenta: bool) -> str:
    """A digest that is equal for two calls that begin with the same structure.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure. Masses, constraints, total charge and spin and declared fields count.
    with_momenta : bool
        Whether the momenta count, too.
    """
    arrays = [atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_masses()]
    totals = [next((atoms.info[n] for n in names if n in atoms.info), None) for names in INVARIANTS.values()]
    out = hashlib.sha256(repr(totals).encode())
    for name in own_fields():
        value = atoms.info.get(name, atoms.arrays.get(name))
        if value is not None:
            out.update(f"{name} {np.asarray(value).tolist()}".encode())
    for constraint in atoms.constraints:
        out.update(_constraint_text(constraint).encode())
    for array in [*arrays, atoms.get_momenta()] if with_momenta else arrays:
        out.update(np.ascontiguousarray(array).tobytes())
    return out.hexdigest()[:16]


def _constraint_text(constraint: Any) -> str:
    """What a constraint is. ASE asks it for two methods only; without `todict` its attributes say it."""
    try:
        return str(encode(constraint.todict()))
    except (AttributeError, NotImplementedError, TypeError):
        parts = [type(constraint).__qualname__]
    for name, value in sorted(getattr(constraint, "__dict__", {}).items()):
        try:
            parts.append(f"{name} {encode(value)}")
        except (AttributeError, NotImplementedError, TypeError):
            parts.append(f"{name} {type(value).__qualname__}")
    return "\n".join(parts)


def degrees_of_freedom(atoms: Atoms) -> int:
    """Degrees of freedom of the atoms that the constraints leave.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure.

    Raises
    ------
    ConfigError
        If a constraint does not say how many it removes.
    """
    for constraint in atoms.constraints:
        try:
            constraint.get_removed_dof(atoms)
        except (AttributeError, NotImplementedError) as error:
            kind = type(constraint).__name__
            raise ConfigError(
                f"constraint {kind}: a temperature needs the number of degrees of freedom that it removes; "
                f"give {kind} a method get_removed_dof(self, atoms), or relax without dynamics"
            ) from error
    return int(atoms.get_number_of_degrees_of_freedom())


def checked_numbers(**settings: Any) -> dict[str, Any]:
    """Settings as plain ints and floats, also those of NumPy.

    Parameters
    ----------
    **settings
        Numbers by name. Those in `WHOLE` are integers, the others real. Those in `MAY_BE_ZERO` may be zero,
        the others must be above zero. The temperature may be None.

    Raises
    ------
    ConfigError
        For the first setting that is out of range.
    """
    for name, value in settings.items():
        if value is None and name == "temperature":
            continue
        kind = Integral if name in WHOLE else Real
        if not (
            isinstance(value, kind)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (float(value) > 0 or (value == 0 and name in MAY_BE_ZERO))
        ):
            wanted = "a whole number" if name in WHOLE else "a number"
            limit = ", zero or more" if name in MAY_BE_ZERO else " above zero"
            raise ConfigError(f"{name}={value!r}: wanted {wanted}{limit}")
    return {k: v if v is None else int(v) if k in WHOLE else float(v) for k, v in settings.items()}


def number_of_steps(time: float | None, steps: int | None, timestep: float) -> int:
    """Steps of a simulation, from its length.

    Parameters
    ----------
    time : float or None
        Length in ps.
    steps : int or None
        Length in steps. One of the two must be None.
    timestep : float
        Time step in fs.

    Raises
    ------
    ConfigError
        If not exactly one of the two is a length.
    """
    if (time is None) == (steps is None):
        raise ConfigError(f"time={time} (ps) and steps={steps}: wanted one of the two")
    if steps is None:
        if not isinstance(time, Real) or isinstance(time, bool) or not 0 <= float(time) < math.inf:
            raise ConfigError(f"time={time!r}: wanted ps, zero or more")
        return round(float(time) * 1e3 / timestep)
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 0:
        raise ConfigError(f"steps={steps!r}: wanted a whole number, zero or more")
    return int(steps)
