"""What files say by the names of their entries: a cell that is not read, and units of labels."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from molequi.data.request import Request, component_order
from molequi.data.units import factor, is_same, is_unit
from molequi.errors import DataError

# Names, in lower case, under which programs keep a cell that no reader here takes for one.
OTHER_CELLS = (
    *("cells", "lattice", "lattices", "box", "boxes", "unitcell", "unit_cell", "cell_lengths", "cell_angles"),
    *("latticevectors", "lattice_vectors", "latvec", "cell_vectors", "lattice_parameters"),
)
# Names of the same quantity as a stress, times the volume.
VIRIALS = ("virial", "virials", "REF_virial", "REF_virials")
_SAME = 0.01  # of the largest component; printed digits differ by less
_ENDINGS = ("unit", "units")
# Beside the key of a label and the name of its quantity.
_ALSO = {
    "energy": ("e",),
    "forces": ("force", "f"),
    "positions": ("position", "pos", "length", "distance", "r", "coordinates"),
}
# What "units" alone says if it is no unit: systems of units in which energies are no eV.
_SYSTEMS = ("au", "a.u.", "atomic", "real", "si", "cgs", "lj")


def other_cell(names: Iterable[str]) -> str:
    """The first name under which a cell is kept that would not be read; empty if there is none.

    Parameters
    ----------
    names : iterable of str
        Names of entries of a file.

    Examples
    --------
    >>> other_cell(["pos", "Lattice"]), other_cell(["pos", "cell"])
    ('Lattice', '')
    """
    return next((name for name in names if name.lower() in OTHER_CELLS), "")


def check_stated_units(
    info: Mapping[str, Any], values: Mapping[str, object], request: Request, where: str
) -> None:
    """Check that labels are read in the units that a structure states, such as ``energy_unit="Hartree"``.

    Parameters
    ----------
    info : mapping of str to object
        What the file says of a structure.
    values : mapping of str to object
        The labels that are read, by quantity.
    request : Request
        What is to be read, with the units that the caller gave.
    where : str
        The structure, for messages.

    Raises
    ------
    DataError
        If labels or positions would be read in another unit.
    """
    texts = {
        str(name).lower(): (name, unit)
        for name, unit in info.items()
        if isinstance(unit, str) and str(name).lower().endswith(_ENDINGS)
    }
    if not texts:
        return
    for name in (*(name for name in values if name in request.keys), "positions"):
        key = request.keys[name].key if name in request.keys else name
        words = dict.fromkeys(word.lower() for word in (key, name, *_ALSO.get(name, ())))
        wanted = [f"{word}{mark}{end}" for word in words for mark in ("_", "-", "") for end in _ENDINGS]
        stated = [texts[word] for word in wanted if word in texts]
        if name == "energy" and not stated:
            stated = [texts[end] for end in _ENDINGS if end in texts and _is_other(texts[end][1])]
        for entry, unit in stated:
            _check_unit(name, str(entry), unit, request, where)


def check_virial(
    stored: Mapping[str, Any], values: Mapping[str, object], request: Request, cell: np.ndarray, where: str
) -> None:
    """Check that a stress agrees with a virial beside it, which is -V times the stress.

    Nothing is checked if the user says by ``keys`` where the stress is.

    Parameters
    ----------
    stored : mapping of str to object
        What the file says of a structure.
    values : mapping of str to object
        The labels that are read, by quantity.
    request : Request
        What is to be read.
    cell : array, shape (3, 3)
        Lattice vectors in rows, in the unit of the request.
    where : str
        The structure, for messages.

    Raises
    ------
    DataError
        If they differ by more than 1 % of the largest component.
    """
    name = next((key for key in VIRIALS if stored.get(key) is not None), None)
    if name is None or "stress" not in values or "stress" in request.by_key:
        return
    stress, virial = _matrix(values["stress"]), _matrix(stored[name])
    volume = abs(float(np.linalg.det(cell))) * request.length**3
    if stress is None or virial is None or volume == 0.0:
        return
    wanted = -volume * request.factors["stress"] * stress
    size = max(np.abs(wanted).max(), np.abs(virial).max())
    if np.abs(wanted - virial).max() <= _SAME * size:
        return
    ratio = float((virial * wanted).sum() / max((wanted**2).sum(), 1e-300))
    same = np.abs(ratio * wanted - virial).max() <= _SAME * np.abs(virial).max()
    units = {unit: factor(unit, "eV/Å^3") for unit in ("GPa", "kbar", "bar")}
    unit = next((u for u, value in units.items() if same and abs(abs(ratio) / value - 1) < _SAME), "")
    said = f"{ratio:.4g} times -V times the stress" if same else "not -V times the stress in any unit"
    sign = "; one of them has the opposite sign" if same and ratio < 0 else ""
    unit = f"; that fits a stress in {unit}, which units={{'stress': {unit!r}}} says" if unit else ""
    own = request.keys["stress"].key
    raise DataError(
        f"{where}: {name!r} is {said}, and wanted is 1 time{sign}{unit}. Say which is right: "
        f"keys={{'stress': {own!r}}}, or keys={{'stress': {{'key': {name!r}, 'virial': True}}}}"
    )


def _matrix(value: Any) -> np.ndarray | None:
    """A symmetric matrix from six components in ASE's order, or from nine; None if it is neither."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.size not in (6, 9) or not np.isfinite(array).all():
        return None
    flat = array.ravel().astype(np.float64)
    return (flat if flat.size == 9 else flat[component_order("ase")]).reshape(3, 3)


def _is_other(text: str) -> bool:
    """Whether ``units="…"`` says something about an energy."""
    if text.strip().lower() in _SYSTEMS:
        return True
    try:
        return bool(factor(text, "eV"))
    except DataError:
        return False


def _check_unit(name: str, entry: str, unit: str, request: Request, where: str) -> None:
    q = request.candidates.get(name)
    own = "Å" if q is None else "eV" if request.keys[name].virial else q.unit
    read = request.units.get(name, own)
    if unit == read or not unit.strip():
        return
    try:
        if is_same(unit, read):
            return
    except DataError:
        if not is_unit(read):
            return  # a declared unit that cannot be compared
    how = f"units= says {read!r}" if name in request.units else f"it would be read in {read or 'no unit'}"
    advice = f"say units={{{name!r}: {unit!r}}}" if is_unit(unit) else f"say units={{{name!r}: …}}"
    raise DataError(f"{where}: {entry}={unit!r} states the unit of {name}, and {how}; {advice}")
