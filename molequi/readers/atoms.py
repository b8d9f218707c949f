"""Frames of any file of structures as ase.Atoms. All readers, simulations and analyses read files here."""

import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from molequi.errors import DataError, DataWarning, MolequiError
from molequi.readers import extxyz
from molequi.readers.ase_formats import check_counts_of_dump, check_format
from molequi.readers.extxyz import Frame
from molequi.readers.files import Index, check_file, select, source_of
from molequi.util.optional import require

if TYPE_CHECKING:
    from ase import Atoms
    from ase.db.core import Database
    from ase.db.row import AtomsRow

    from molequi.data.sources import Source

_LMDB = "aselmdb"
_DATABASES = ("db", "json", _LMDB)
_FRAMES = re.compile(r"-?\d+|(?:-?\d*:){1,2}(?:-?\d*)")


def read_frames(path: str | Path, *, format: str | None = None, index: Index = ":") -> list["Atoms"]:
    """Frames of a file, as `molequi.read_ase` reads them, without checks of their labels.

    Parameters
    ----------
    path : str or Path
        The file; its frames may be named in the path, see `split_frames`.
    format : str, optional
        Format by ASE's name; by default ASE guesses it.
    index : str, int or slice
        Frames in ASE's manner: ":", "::10", 0, -1, if the path names none.

    Returns
    -------
    list of ase.Atoms

    Raises
    ------
    DataError
        With file and frame, if there is no such file or frame, or if it cannot be read.
    """
    file, frames = split_frames(path)
    check_file(file)
    index = index if frames is None else frames
    return [frame.atoms for frame in iterate_frames(file, format=format, index=index)]


def iterate_frames(
    file: Path, *, format: str | None = None, index: Index = ":", sources: "list[Source] | None" = None
) -> Iterator[Frame]:
    """Frames of a file with their places for messages.

    Parameters
    ----------
    file : Path
        A file that exists.
    format : str, optional
        Format by ASE's name; by default ASE guesses it.
    index : str, int or slice
        Frames in ASE's manner.
    sources : list of Source, optional
        The file is appended to it.

    Raises
    ------
    DataError
        As `read_frames`.
    """
    yield from (_extxyz_frames if is_extxyz(file, format) else _ase_frames)(file, format, index, sources)


def split_frames(path: str | Path) -> tuple[Path, str | None]:
    """A path and the frames that it names after an ``@``, as in ASE.

    Parameters
    ----------
    path : str or Path
        A file, or one with frames such as ``frames.xyz@3`` or ``frames.xyz@:10``. A file that exists under
        the whole name, such as ``run@300K.xyz``, is that file.

    Returns
    -------
    path : Path
        The file.
    frames : str or None
        What stands after the ``@``; None if nothing does.

    Examples
    --------
    >>> split_frames("frames.xyz@::10"), split_frames("frames.xyz")
    ((PosixPath('frames.xyz'), '::10'), (PosixPath('frames.xyz'), None))
    """
    name, _, frames = str(path).rpartition("@")
    if not name or Path(path).exists() or not (_FRAMES.fullmatch(frames) or Path(name).is_file()):
        return Path(path), None
    return Path(name), frames


def is_extxyz(file: Path, format: str | None = None) -> bool:
    """Whether a file is read as extended XYZ.

    Parameters
    ----------
    file : Path
        The file.
    format : str, optional
        Format by ASE's name, which decides if it is given.

    Examples
    --------
    >>> is_extxyz(Path("a.xyz.gz")), is_extxyz(Path("a.xyz"), "aims")
    (True, False)
    """
    suffixes = [s for s in file.suffixes if s != ".gz"]
    return format in ("extxyz", "xyz") or (
        format is None and bool(suffixes) and suffixes[-1] in (".xyz", ".extxyz")
    )


def stated_units(file: Path, format: str | None = None) -> dict[str, str]:
    """Units that an ASE database states in its metadata, as SchNetPack writes them.

    Parameters
    ----------
    file : Path
        The file; others than databases state none.
    format : str, optional
        Format by ASE's name.

    Returns
    -------
    dict of str to str
        Unit by name in the file; "positions" is that of the positions.
    """
    kind = _format_of(file, format)
    if kind not in _DATABASES:
        return {}
    with _translated(file), _connected(file, kind) as database:
        metadata = database.metadata
    units = metadata.get("_property_unit_dict")
    found = {str(name): str(unit) for name, unit in units.items()} if isinstance(units, Mapping) else {}
    distance = metadata.get("_distance_unit")
    return found | ({"positions": str(distance)} if distance else {})


def _extxyz_frames(
    file: Path, format: str | None, index: Index, sources: "list[Source] | None"
) -> Iterator[Frame]:
    frames, whole = extxyz.scan(file)
    if sources is not None:
        sources.append(source_of(file, len(frames)))
    yield from extxyz.iterate(file, frames, select(index, len(frames), file))
    if not whole:
        warnings.warn(
            f"{file}: the last line does not end; if the file was cut off there, its last number is wrong",
            DataWarning,
            stacklevel=6,
        )


def _ase_frames(
    file: Path, format: str | None, index: Index, sources: "list[Source] | None"
) -> Iterator[Frame]:
    kind = _format_of(file, format)
    if isinstance(index, (int, np.integer)) and sources is None:
        # The others are not parsed: a trajectory may be long.
        found = _parsed(file, kind, slice(int(index), int(index) + 1 or None))
        if len(found) == 1:
            yield Frame(found[0], str(file), int(index))
            return
    found = _parsed(file, kind, slice(None))
    if not found:
        raise DataError(f"{file}: no frames in this file")
    if sources is not None:
        sources.append(source_of(file, len(found)))
    yield from (Frame(found[k], str(file), k) for k in select(index, len(found), file))


def database_size(file: Path, format: str | None = None) -> int | None:
    """Number of rows of an ASE database; None if the file is something else.

    Parameters
    ----------
    file : Path
        A file that exists.
    format : str, optional
        Format by ASE's name; by default ASE guesses it.
    """
    kind = _format_of(file, format) if file.suffix in (".db", ".json", f".{_LMDB}") else ""
    if kind not in _DATABASES:
        return None
    with _translated(file), _connected(file, kind) as database:
        return int(database.count())


def database_rows(file: Path, format: str | None, index: slice) -> list["Atoms"]:
    """Some rows of an ASE database, as `read_frames` reads them.

    Parameters
    ----------
    file : Path
        The database.
    format : str, optional
        Format by ASE's name; by default ASE guesses it.
    index : slice
        Consecutive rows, from 0.
    """
    return _parsed(file, _format_of(file, format), index)


def _format_of(file: Path, format: str | None) -> str:
    """ASE's name of the format."""
    from ase.io.formats import filetype

    if file.stat().st_size == 0:
        raise DataError(f"{file}: no frames in this file (it is empty)")
    if format is not None:
        return format
    if file.suffix == f".{_LMDB}":
        return _LMDB
    if file.suffix == ".lmdb":
        raise DataError(
            f"{file}: rows of .lmdb files are pickled Python objects, which are never loaded; wanted an ASE "
            "database of fairchem (.aselmdb), or another format of ASE"
        )
    with _translated(file):
        return filetype(str(file))


def _parsed(file: Path, format: str, index: slice) -> list["Atoms"]:
    """What ASE reads, corrected."""
    from ase.io import read

    with _translated(file):
        if format in _DATABASES:
            found: Any = _rows(file, format, index)
        else:
            if format == "lammps-dump-text":
                check_counts_of_dump(file)
            found = read(file, index=index, format=format, do_not_split_by_at_sign=True)
    frames = found if isinstance(found, list) else [found]
    check_format(frames, file, format)
    return frames


def _rows(file: Path, format: str, index: slice) -> list["Atoms"]:
    """Structures of an ASE database; key-value pairs and `data`, which ASE drops, are in their info."""
    out = []
    with _connected(file, format) as database:
        for row in _selected(database, file, format, index):
            atoms = row.toatoms()
            pairs, data = dict(row.key_value_pairs), dict(row.data)
            for name in pairs.keys() & data.keys():
                if not np.array_equal(np.ravel(pairs[name]), np.ravel(data[name])):
                    raise DataError(
                        f"{file}, row {row.id}: {name!r} is {pairs[name]!r} among the key-value pairs and "
                        f"{data[name]!r} in data; wanted one of them"
                    )
            atoms.info.update(data | pairs)
            out.append(atoms)
    return out


@contextmanager
def _connected(file: Path, format: str) -> "Iterator[Database]":
    """An open ASE database, which is not changed."""
    from ase.db import connect

    if format == _LMDB:
        require("ase_db_backends", "lmdb", f"reading {file}")
        with connect(str(file), type=format, serial=True, readonly=True) as database:
            yield database
        return
    with connect(str(file), type=format, serial=True) as database:
        yield database


def _selected(database: "Database", file: Path, format: str, index: slice) -> "Iterator[AtomsRow]":
    """Consecutive rows of an open database."""
    start, stop, _ = index.indices(database.count())
    if format != _LMDB:
        yield from database.select(offset=start, limit=stop - start) if stop > start else ()
        return
    numbers = database.ids[start:stop]  # type: ignore[attr-defined]  # that of LMDB has it
    for number in numbers:  # by number: an offset would decode all rows before
        try:
            yield database.get(id=number)
        except (zlib.error, ValueError) as error:
            raise DataError(
                f"{file}, row {number}: not JSON, compressed by zlib, as ASE writes it ({error}); the file "
                "is damaged, or its rows are pickled Python objects, which are never loaded"
            ) from error


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    """Errors of ase.io, which may be of any kind, as DataError with the path."""
    from ase.io.formats import UnknownFileTypeError

    try:
        yield
    except MolequiError:
        raise
    except UnknownFileTypeError as error:
        raise DataError(
            f"{file}: ase.io does not know this type of file ({error}); name one with format="
        ) from error
    except Exception as error:
        raise DataError(
            f"{file}: ase.io cannot read it, {type(error).__name__}: {error}; is it truncated?"
        ) from error
