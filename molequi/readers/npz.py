"""An open .npz file: arrays are read on first use, nothing is unpickled, and errors name the file."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from molequi.data.units import is_same
from molequi.errors import DataError, did_you_mean
from molequi.readers.files import Index, check_file, readable, select
from molequi.readers.stated import other_cell

# What numpy raises for a damaged header of an array, beside ValueError and EOFError.
DamagedHeader = (SyntaxError, tokenize.TokenError, TypeError, OverflowError, MemoryError, RecursionError)


class Arrays(Mapping[str, np.ndarray]):
    """Arrays of an open .npz file, each read when it is first used; pickled objects are refused."""

    first = 0  # number of the first structure in the file

    def __init__(self, path: Path, file: np.lib.npyio.NpzFile) -> None:
        self.path, self.file = path, file
        self._read: dict[str, np.ndarray] = {}
        self._headers: dict[str, tuple[tuple[int, ...], str]] = {}
        for name in file.files:
            if self.header(name)[1] == "O":
                raise DataError(
                    f"{path}: {name!r} holds pickled Python objects, which are never loaded; save plain "
                    "arrays"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.files)

    def __len__(self) -> int:
        return len(self.file.files)

    def __contains__(self, name: object) -> bool:
        return name in self.file.files

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._read:
            with translated(self.path):
                self._read[name] = self.file[name]
        return self._read[name]

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and kind of an array, without reading its values."""
        if name not in self._headers:
            archive = self.file.zip
            assert archive is not None, "the file is open"
            with translated(self.path), archive.open(f"{name}.npy") as member:
                shape, _, dtype = read_header(member)
                self._headers[name] = shape, "O" if dtype.hasobject else dtype.kind
        return self._headers[name]


class ArraysPart(Arrays):
    """The arrays of some structures of a file, in memory; another process can get them.

    Parameters
    ----------
    arrays : dict of str to array
        The arrays.
    first : int
        Number of the first structure in the file.
    """

    def __init__(self, arrays: dict[str, np.ndarray], first: int) -> None:
        self._read, self.first = arrays, first

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, name: object) -> bool:
        return name in self._read

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read[name]

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and kind of an array."""
        return self._read[name].shape, self._read[name].dtype.kind


def read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape of an array of an .npz file, whether it is in Fortran order, and its type.

    Parameters
    ----------
    member : binary file
        The array, at its beginning; afterwards at its values.
    """
    first = np.lib.format.read_magic(member) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype] = read(member)
    return found


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Convert errors of numpy and zipfile about a damaged file to a DataError with its path."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, *DamagedHeader) as error:
        raise DataError(
            f"{path}: damaged or truncated .npz file ({error}); copy or download it again"
        ) from error
    except ValueError as error:
        hint = (
            "it holds pickled Python objects, which are never loaded; save plain arrays"
            if "pickle" in str(error)
            else "is it truncated?"
        )
        raise DataError(f"{path}: not a readable .npz file ({error}): {hint}") from error


@contextmanager
def opened(path: Path) -> Iterator[Arrays]:
    """The arrays of a file while it is open. Raises DataError if it is damaged or no .npz file."""
    check_file(path)
    # numpy leaves a file that it cannot parse open; a handle of our own is closed.
    with readable(path), open(path, "rb") as handle:
        with translated(path):
            file = np.load(handle, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: a single array; wanted an .npz file with several")
        yield Arrays(path, file)


def required(path: Path, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """The first of these arrays that the file has. Raises DataError if it has none."""
    for name in names:
        if name in arrays:
            return arrays[name]
    raise DataError(
        f"{path}: no array {' or '.join(map(repr, names))}; found {', '.join(map(repr, arrays)) or 'none'}"
        f"{did_you_mean(names[0], arrays)}"
    )


_ROWS = ("cell", "cells")  # lattice vectors in rows, as in ASE
_COLUMNS = "lattice"  # lattice vectors in columns, as sGDML writes them
CELLS = (*_ROWS, _COLUMNS)


def cells_of_frames(
    path: Path, arrays: Mapping[str, np.ndarray], total: int, name: str | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Cells and periodic directions of frames, from the arrays in which files keep them.

    An array ``lattice`` has the lattice vectors in columns (sGDML, Chmiela et al., Comput. Phys. Commun. 240,
    38, 2019). Arrays ``cell`` and ``cells`` have them in rows. ``pbc`` says which are periodic; without it
    all are.

    Parameters
    ----------
    path : Path
        The file, for messages.
    arrays : mapping of str to array
        Its arrays.
    total : int
        Number F of frames.
    name : str, optional
        The array that the user named; its lattice vectors are in rows.

    Returns
    -------
    cells : array, shape (F, 3, 3), or None
        Lattice vectors in rows.
    pbc : array of bool, shape (F, 3), or None

    Raises
    ------
    DataError
        If there are several such arrays, one of another shape, or one under a name that is not known.
    """
    found = [name] if name else [n for n in CELLS if n in arrays]
    if not found:
        check_no_other_cell(path, arrays)
        return None, None
    if len(found) > 1:
        raise DataError(
            f"{path}: {' and '.join(map(repr, found))} both look like cells; name one, keys={{'cell': ...}}"
        )
    cells = required(path, arrays, found)
    if cells.shape not in ((3, 3), (total, 3, 3)) or cells.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: {found[0]!r} has the shape {cells.shape} ({cells.dtype}); wanted the lattice vectors, "
            f"(3, 3) or ({total}, 3, 3)"
        )
    if name is None and found[0] == _COLUMNS:
        cells = cells.swapaxes(-1, -2)
    pbc = np.asarray(arrays["pbc"] if "pbc" in arrays else [True] * 3)  # noqa: SIM401  # may be damaged
    if pbc.shape not in ((3,), (total, 3)) or not np.isin(pbc, (0, 1)).all():
        raise DataError(f"{path}: 'pbc' has the shape {pbc.shape}; wanted three flags, 0 or 1")
    return np.broadcast_to(cells, (total, 3, 3)).astype(np.float64), np.broadcast_to(pbc, (total, 3)) != 0


def check_no_other_cell(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise DataError for an array that is a cell by its name and is not read.

    Parameters
    ----------
    path : Path
        The file, for the message.
    arrays : mapping of str to array
        Its arrays.
    """
    name = other_cell(arrays) or next((name for name in arrays if name.lower() == "cell"), "")
    if name:
        raise DataError(
            f"{path}: {name!r} would not be read, and the structures would have no cell; wanted 'cell', "
            "with lattice vectors in rows: rename it"
        )


def stated_units(
    path: Path, arrays: Mapping[str, np.ndarray], given: Mapping[str, str] | None
) -> dict[str, str]:
    """The units that the user gave, completed by ``r_unit`` and ``e_unit``, two texts that sGDML writes.

    Parameters
    ----------
    path : Path
        The file, for messages.
    arrays : mapping of str to array
        Its arrays.
    given : mapping of str to str, optional
        Units that the user gave.

    Raises
    ------
    DataError
        If the user gave another unit than the file states, and for units that are not known.
    """
    units = dict(given or {})
    length, energy = (str(arrays[n].item()) if n in arrays else "" for n in ("r_unit", "e_unit"))
    stated = {"positions": length, "energy": energy, "forces": f"{energy}/{length}" if length else ""}
    for name, unit in stated.items():
        if not unit or (name == "forces" and not energy):
            continue
        own = units.setdefault(name, unit)
        try:
            same = is_same(own, unit)
        except DataError as error:
            raise DataError(
                f"{path}: it states the unit {unit!r} of {name}, from its r_unit and e_unit: {error}"
            ) from error
        if not same:
            raise DataError(
                f"{path}: it states the unit {unit!r} of {name}, from its r_unit and e_unit, and units= says "
                f"{own!r}; leave {name!r} out of units, or correct the file"
            )
    return units


def select_structures(
    path: Path, arrays: Arrays, index: Index | Sequence[int], part: str | None, total: int
) -> np.ndarray:
    """Numbers of the structures that `index` and `part` select.

    Parameters
    ----------
    path : Path
        The file, for messages.
    arrays : Arrays
        Its arrays.
    index : str, int, slice or sequence of int
        In ASE's manner, or a list of positions.
    part : str, optional
        An array with the members of a part, by their number in the array `index` or by position; `index` then
        counts within the part.
    total : int
        Number of structures in the file.
    """
    members = np.arange(total)
    if part is not None:
        values = required(path, arrays, [part])
        own = arrays["index"] if "index" in arrays else members  # noqa: SIM401 (a damaged one is no default)
        if (
            values.ndim != 1
            or values.dtype.kind not in "iu"
            or own.shape != (total,)
            or own.dtype.kind not in "iu"
        ):
            raise DataError(
                f"{path}: part={part!r} and 'index' have the shapes {values.shape} and {own.shape}; wanted "
                "integers in a row"
            )
        order = np.argsort(own, kind="stable")
        if (np.diff(own[order]) == 0).any():
            raise DataError(f"{path}: 'index' has a number twice, so part={part!r} cannot be found by it")
        members = order[np.searchsorted(own, values, sorter=order).clip(max=total - 1)]
        lost = np.flatnonzero(own[members] != values)
        if len(lost):
            raise DataError(
                f"{path}: part={part!r} names {values[lost[0]]}, which is not in 'index' ({len(lost)} such)"
            )
    if isinstance(index, (str, int, np.integer, slice)):
        return members[select(index, len(members), path)]
    places = np.asarray(index)
    if places.ndim != 1 or not len(places) or places.dtype.kind not in "iu":
        raise DataError(f"index {index!r}; wanted a number, start:stop:step, or a list of positions")
    outside = places[(places < -len(members)) | (places >= len(members))]
    if len(outside):
        raise DataError(f"{path}: no structure {outside[0]}; there are {len(members)}")
    return members[places]
