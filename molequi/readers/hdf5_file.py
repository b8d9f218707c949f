"""An open HDF5 file: its groups of structures and their arrays, and errors that name the file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from molequi.errors import DataError, MolequiError
from molequi.quantities import SYMBOLS
from molequi.util.optional import require

if TYPE_CHECKING:
    import h5py

HDF5 = (".h5", ".hdf5")
_POS = ("coordinates", "conformations", "positions", "pos", "coords", "coord", "R")
_Z = ("atomic_numbers", "numbers", "species", "nuclear_charges", "z")
PROPERTIES, WEIGHTS = "properties", "property_weights"  # groups within a structure of MACE


@dataclass(frozen=True)
class Span:
    """Some structures of a group.

    Parameters
    ----------
    group : str
        Path of the group in the file.
    start, stop : int
        Their numbers in the group.
    offset : int
        Number in the file of the structure 0 of the group.
    """

    group: str
    start: int
    stop: int
    offset: int


def spans_of(path: Path, keys: Mapping | None = None) -> Iterator[Span]:
    """All groups of a file that have structures, with little memory.

    Parameters
    ----------
    path : Path
        The file.
    keys : mapping, optional
        Names of positions and atomic numbers, as `read_hdf5` takes them.

    Raises
    ------
    DataError
        If there is none, one without elements, or if they state different units of positions.
    """
    pos_names, z_names = names_of(keys)
    offset, stated = 0, None
    with opened(path) as file:
        for group in _groups(file, pos_names):
            where = place(path, group)
            pos = one_of(group, pos_names, where, "positions")
            one_of(group, z_names, where, "atomic numbers")
            if pos.ndim not in (2, 3) or pos.shape[-1] != 3 or pos.dtype.kind not in "iuf":
                raise DataError(
                    f"{where}: {base_name(pos)!r} has the shape {pos.shape} ({pos.dtype}); wanted positions "
                    "(S, N, 3) of S structures, or (N, 3) of one"
                )
            stated = (where, unit_of(pos)) if stated is None else stated
            if unit_of(pos) != stated[1]:
                raise DataError(
                    f"{where}: {base_name(pos)!r} states the unit {unit_of(pos)!r}, and {stated[0]} "
                    f"{stated[1]!r}; write the file with one unit of positions, stated by all groups or none"
                )
            count = len(pos) if pos.ndim == 3 else 1
            if count:
                yield Span(group.name.strip("/"), 0, count, offset)
                offset += count
        if not offset:
            raise DataError(
                f"{path}: no group with positions of structures ({' or '.join(map(repr, pos_names))}); found "
                f"{_found(file)}; name them with keys={{'positions': ..., 'z': ...}}"
            )


def names_of(keys: Mapping | None) -> tuple[Sequence[str], Sequence[str]]:
    """Names of positions and atomic numbers."""
    given = keys or {}
    return tuple((given[n],) if n in given else names for n, names in (("positions", _POS), ("z", _Z)))  # type: ignore[return-value]


@contextmanager
def opened(path: Path) -> "Iterator[h5py.File]":
    """An HDF5 file while it is open.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    DataError
        If it is damaged or no HDF5 file.
    MissingPackageError
        If h5py is not installed.
    """
    require("h5py", "hdf5", f"reading {path}")
    import h5py

    # A lock is not needed for reading, and file systems of clusters often have none.
    with _translated(path), h5py.File(path, "r", locking="best-effort") as file:
        yield file


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Convert errors of h5py about a damaged file to a DataError with its path."""
    try:
        yield
    except MolequiError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise DataError(
            f"{path}: not a readable HDF5 file ({type(error).__name__}: {error}); is it damaged or "
            "truncated? Copy or download it again"
        ) from error


def _groups(file: "h5py.File", pos_names: Sequence[str]) -> "Iterator[h5py.Group]":
    """All groups with positions, each once; links that lead elsewhere are not followed."""
    import h5py

    seen = set()
    left = [file["/"]]
    while left:
        group = left.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        has_structures = any(name in group for name in pos_names)
        if has_structures:
            yield group
        inside = (PROPERTIES, WEIGHTS) if has_structures else ()
        names = [n for n in group if group.get(n, getclass=True, getlink=True) is h5py.HardLink]
        groups = [n for n in names if n not in inside and group.get(n, getclass=True) is h5py.Group]
        left += [group[n] for n in sorted(groups, key=_by_number, reverse=True)]


def _by_number(name: str) -> list[Any]:
    """A sort key that takes ``config_2`` before ``config_10``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def arrays_of(group: "h5py.Group", inside: str | None = None) -> "Iterator[tuple[str, h5py.Dataset]]":
    """The arrays of a group itself by name; links that lead elsewhere are left out.

    Parameters
    ----------
    group : h5py.Group
        The group.
    inside : str, optional
        A group within it, whose arrays are wanted; none if there is no such group.
    """
    if inside is not None:
        import h5py

        if inside not in group or group.get(inside, getclass=True) is not h5py.Group:
            return
        group = group[inside]
    for name in group:
        array = _array(group, name)
        if array is not None:
            yield name, array


def _array(group: "h5py.Group", name: str) -> "h5py.Dataset | None":
    """An array of a group itself; None if it has none of this name."""
    import h5py

    if group.get(name, getclass=True, getlink=True) is not h5py.HardLink:
        return None
    item = group[name]
    return item if isinstance(item, h5py.Dataset) and item.shape is not None else None


def one_of(group: "h5py.Group", names: Sequence[str], where: str, what: str) -> "h5py.Dataset":
    """The array with one of these names. Raises DataError if there is none, or if there are several."""
    # The others are not opened: a file may have millions of groups.
    given = {name: _array(group, name) for name in names if name in group}
    found = [name for name, array in given.items() if array is not None]
    if len(found) == 1:
        return given[found[0]]
    listed = ", ".join(repr(name) for name, _ in arrays_of(group)) or "no arrays"
    key = "positions" if what == "positions" else "z"
    said = f"{' and '.join(map(repr, found))} both look like" if found else "has no"
    raise DataError(
        f"{where}: {said} {what} (found {listed}); wanted one of {', '.join(names)}, or another one named "
        f"with keys={{{key!r}: ...}}"
    )


def _found(file: "h5py.File") -> str:
    names = list(file)
    more = f", … ({len(names)} in all)" if len(names) > 3 else ""
    return (", ".join(map(repr, names[:3])) or "nothing") + more


def place(path: Path, group: "h5py.Group") -> str:
    """The place for messages: ``ani.h5, group C2H6``.

    Parameters
    ----------
    path : Path
        The file.
    group : h5py.Group
        The group.
    """
    return f"{path}, group {group.name.strip('/') or '/'}"


def base_name(array: "h5py.Dataset") -> str:
    """The name of an array in its group.

    Parameters
    ----------
    array : h5py.Dataset
        The array.
    """
    return str(array.name).rsplit("/", 1)[-1]


def elements_of(array: np.ndarray, where: str) -> np.ndarray:
    """Atomic numbers, of numbers or symbols."""
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    symbols = [as_text(v) for v in np.ravel(array)]
    wrong = next((s for s in symbols if s not in SYMBOLS), None)
    if wrong is not None:
        raise DataError(f"{where}: {wrong!r} is not the symbol of an element, nor an atomic number")
    return np.array([SYMBOLS.index(s) for s in symbols], np.int64).reshape(array.shape)


def unit_of(array: "h5py.Dataset") -> str | None:
    """The unit that an array states in its attribute ``units``; None if it has no such attribute.

    Parameters
    ----------
    array : h5py.Dataset
        The array.
    """
    given = array.attrs.get("units", array.attrs.get("unit"))
    return None if given is None else str(as_text(np.ravel(given)[0] if np.size(given) else ""))


def as_text(value: Any) -> Any:
    """Text that HDF5 has as bytes; anything else as it is.

    Parameters
    ----------
    value : object
        A value of an array.

    Examples
    --------
    >>> as_text(b"eV"), as_text(2)
    ('eV', 2)
    """
    return value.decode() if isinstance(value, bytes) else value


def value_of(value: Any) -> Any:
    """A single value: text as str, anything else as it is."""
    item = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    return as_text(item)


def values_of(rows: np.ndarray) -> Sequence[Any] | np.ndarray:
    """The rows of an array, with text as str.

    Parameters
    ----------
    rows : array
        The rows.
    """
    return [as_text(v) for v in rows] if rows.dtype.kind in "OS" else rows
