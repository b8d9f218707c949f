"""What a simulation is given, checked before it begins."""

import hashlib
import math
import os
from numbers import Integral, Real
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import iread, read
from ase.io.jsonio import encode

from molequi.data.request import INVARIANTS
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError
from molequi.graph import own_fields
from molequi.interfaces.ase import Calculator
from molequi.model import Model

WHOLE = ("every", "seed")
MAY_BE_ZERO = ("temperature", "seed", "pressure")


def structure_of(given: Any, index: int) -> Atoms:
    """A copy of the structure, or frame `index` of the file. Raises DataError."""
    where = "the structure"
    if isinstance(given, (str, os.PathLike)):
        where = f"{os.fspath(given)}, frame {index}"
        try:
            if isinstance(index, Integral) and index < 0 and -index > _count(given) > 0:
                raise IndexError(index)  # ASE would take the first frame
            given = read(given, index=index)
        except Exception as error:  # ASE's readers raise anything
            frames = _count(given)
            if frames and not (isinstance(index, Integral) and -frames <= index < frames):
                raise DataError(
                    f"{os.fspath(given)}: no frame {index}; the file has {frames}, numbered from 0"
                ) from error
            raise DataError(
                f"{where}: cannot be read ({type(error).__name__}: {error}); wanted a file that ASE reads"
            ) from error
    if not isinstance(given, Atoms):
        raise DataError(f"{where} is {type(given).__name__}; wanted one ase.Atoms or the path of a file")
    if len(given) == 0:
        raise DataError(f"{where} has no atoms")
    return given.copy()


def _count(path: Any) -> int:
    """Frames of a file, 0 if it cannot be read."""
    try:
        return sum(1 for _ in iread(path, index=":"))
    except Exception:  # ASE's readers raise anything
        return 0


def calculator_of(given: Any, device: str, dtype: str, accelerate: bool = False):
    """The calculator, or one of the model or model file. Raises ConfigError for anything else."""
    if isinstance(given, (str, os.PathLike, Model, Ensemble)):
        return Calculator(given, device=device, dtype=dtype, accelerate=accelerate)
    if accelerate:
        raise ConfigError(
            f"accelerate=True with a calculator ({type(given).__name__}): it compiles a Model or its file; say it where the calculator is made, "
            "mq.Calculator(..., accelerate=True)"
        )
    if isinstance(given, type):
        raise ConfigError(
            f"calculator is the class {given.__name__}; wanted one made with {given.__name__}(...), a Model or the path"
            " of a model file"
        )
    if not hasattr(given, "get_property"):
        raise ConfigError(
            f"calculator is {type(given).__name__}; wanted an ASE calculator, a Model or the path of a model file"
        )
    return given


def properties(calculator) -> list[str]:
    """What an ASE calculator can be asked for."""
    return list(getattr(calculator, "implemented_properties", []))


def digest(atoms: Atoms, *, with_momenta: bool) -> str:
    """Says whether two calls began with the same structure."""
    arrays = [atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_masses()]
    totals = [next((atoms.info[n] for n in names if n in atoms.info), None) for names in INVARIANTS.values()]
    out = hashlib.sha256(repr(totals).encode())
    for name in own_fields():
        value = atoms.info.get(name, atoms.arrays.get(name))
        if value is not None:
            out.update(f"{name} {np.asarray(value).tolist()}".encode())
    for constraint in atoms.constraints:
        out.update(encode(constraint.todict()).encode())
    for array in [*arrays, atoms.get_momenta()] if with_momenta else arrays:
        out.update(np.ascontiguousarray(array).tobytes())
    return out.hexdigest()[:16]


def checked(**settings: Any) -> dict[str, Any]:
    """The settings as plain ints and floats, also of NumPy's. Raises ConfigError for the first that is out of range."""
    for name, value in settings.items():
        if value is None and name == "temperature":
            continue
        kind = Integral if name in WHOLE else Real
        if not (
            isinstance(value, kind)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (value > 0 or name == "pressure" or (value == 0 and name in MAY_BE_ZERO))
        ):
            wanted = "a whole number" if name in WHOLE else "a number"
            limit = "" if name == "pressure" else ", zero or more" if name in MAY_BE_ZERO else " above zero"
            raise ConfigError(f"{name}={value!r}: wanted {wanted}{limit}")
    return {k: v if v is None else int(v) if k in WHOLE else float(v) for k, v in settings.items()}


def length(time: float | None, steps: int | None, timestep: float) -> int:
    """Steps, from one of the two. Raises ConfigError."""
    if (time is None) == (steps is None):
        raise ConfigError(f"time={time} (ps) and steps={steps}: wanted one of the two")
    if steps is None:
        if not isinstance(time, Real) or isinstance(time, bool) or not 0 <= time < math.inf:
            raise ConfigError(f"time={time!r}: wanted ps, zero or more")
        return round(time * 1e3 / timestep)
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 0:
        raise ConfigError(f"steps={steps!r}: wanted a whole number, zero or more")
    return int(steps)
