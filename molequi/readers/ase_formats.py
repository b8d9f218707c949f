"""Corrections of ASE's readers: labels that they invent are removed, elements that they guess refused.

ASE's reader of LAMMPS dumps attaches an energy of zero to forces and takes the number of a type for an atomic
number. Others guess elements from the names of atoms, or read a cell without its periodicity.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from molequi.errors import DataError, DataWarning
from molequi.readers.files import open_text, readable
from molequi.readers.lines import open_bytes

if TYPE_CHECKING:
    from ase import Atoms

_WHOLE = 0.995  # occupancies above it are whole
_LISTED = 8  # names of atoms in a message
_DUMP = "dump 1 all custom 100 frames.lammpstrj id element x y z fx fy fz"


def check_format(frames: Sequence["Atoms"], file: Path, format: str) -> None:
    """Remove what ASE's reader of a format invents, in place.

    Parameters
    ----------
    frames : sequence of ase.Atoms
        What ASE read.
    file : Path
        The file.
    format : str
        ASE's name of its format.

    Raises
    ------
    DataError
        If the file does not say the elements, or says units that ASE does not read.

    Warns
    -----
    DataWarning
        If ASE guessed elements from the names of the atoms.
    """
    correct = _FORMATS.get(format)
    if correct is not None:
        correct(frames, file)


def check_occupancy(atoms: "Atoms", where: str) -> None:
    """Raise DataError for sites that are occupied in part, of which ASE's reader of CIF takes one element.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure.
    where : str
        Its place, for the message.
    """
    sites = atoms.info.get("occupancy")
    if not isinstance(sites, Mapping):
        return
    for site, parts in sites.items():
        if not isinstance(parts, Mapping):
            continue
        unread = next((v for v in parts.values() if not isinstance(v, (int, float))), None)
        if unread is not None:
            raise DataError(
                f"{where}: the occupancy of site {site} is {unread!r}; wanted a number from 0 to 1"
            )
        if all(value > _WHOLE for value in parts.values()):
            continue
        listed = ", ".join(f"{value:g} {symbol}" for symbol, value in parts.items())
        raise DataError(
            f"{where}: site {site} is occupied by {listed} on average, and a structure here has whole atoms; "
            "make an ordered structure of it, such as a supercell with one element on each site"
        )


def _crystal_information(frames: Sequence["Atoms"], file: Path) -> None:
    for k, atoms in enumerate(frames):
        check_occupancy(atoms, f"{file}, frame {k}")


def _dl_poly(frames: Sequence["Atoms"], file: Path) -> None:
    first = frames[:1]
    names = [f"{s}{end}" for a in first for s, end in zip(a.symbols, a.arrays.get("dlp4_labels", ()))]
    _warn_of_names(first, file, names, "this format has no elements")


def _gromos(frames: Sequence["Atoms"], file: Path) -> None:
    lines = [line for _, line in _lines(file)]
    begin = next((k + 1 for k, line in enumerate(lines) if line.startswith("POSITION")), len(lines))
    names = [line.split()[2] for line in takewhile(lambda line: line != "END", lines[begin:])]
    _warn_of_names(frames, file, names, "this format has no elements")


def _vasp_positions(frames: Sequence["Atoms"], file: Path) -> None:
    lines = [line for _, line in islice(_lines(file), 6)]
    # VASP 4 has the numbers of atoms where later versions have the elements.
    if len(lines) > 5 and lines[5].split("!")[0].split() and lines[5].split()[0].isdigit():
        found = ", ".join(dict.fromkeys(symbol for atoms in frames for symbol in atoms.symbols))
        warnings.warn(
            f"{file}: a POSCAR without elements (VASP 4); ASE takes {found} from its first line "
            f"({lines[0][:40]!r}) or from a file beside it: check them, or write the elements in line 6",
            DataWarning,
            stacklevel=6,
        )


def _cube(frames: Sequence["Atoms"], file: Path) -> None:
    head = " ".join(line for _, line in islice(_lines(file), 2))
    if "CASTEP" not in head.upper():
        warnings.warn(
            f"{file}: a cube file has a grid, and does not say whether the structure is periodic; ASE takes "
            "the grid for a periodic cell. For a molecule write extended XYZ without a cell",
            DataWarning,
            stacklevel=6,
        )


def check_counts_of_dump(file: Path) -> None:
    """Raise DataError for a dump of LAMMPS with fewer lines than atoms, for which ASE would fill the memory.

    Parameters
    ----------
    file : Path
        The file.
    """
    stated, lines, next_is_count = 0, 0, False
    with open_bytes(file) as opened:
        for line in opened:
            lines += 1
            if next_is_count and (word := line.strip()).isdigit():
                stated = max(stated, int(word)) if len(word) < 19 else 10**18
            next_is_count = line.startswith(b"ITEM: NUMBER OF ATOMS")
    if stated > lines:
        raise DataError(f"{file}: states {stated} atoms, and has {lines} lines; is it truncated?")


def _lammps_dump(frames: Sequence["Atoms"], file: Path) -> None:
    for number, line in _lines(file):
        if line.startswith("ITEM: ATOMS") and not {"element", "mass"} & set(line.split()[2:]):
            raise DataError(
                f"{file} (line {number}): {line!r} has no column 'element', and a number of a type is no "
                f"element; write the dump anew with\n  {_DUMP}\n  dump_modify 1 element Cu Al"
            )
        if line.startswith("ITEM: UNITS"):
            _check_units(file, number + 1)
    for atoms in frames:
        if atoms.calc is not None:
            atoms.calc.results.pop("energy", None)  # always zero: a dump has no energy of the whole


def _check_units(file: Path, number: int) -> None:
    found = next((line for k, line in _lines(file) if k == number), "")
    if found != "metal":
        raise DataError(
            f"{file} (line {number}): units {found!r}, and ASE reads a dump as one in 'metal' units (Å, eV); "
            "write the dump with 'units metal', or convert it to extended XYZ in Å, eV and eV/Å"
        )


def _lammps_binary(frames: Sequence["Atoms"], file: Path) -> None:
    raise DataError(
        f"{file}: a binary LAMMPS dump does not say its elements; write a text dump with\n  {_DUMP}\n"
        "  dump_modify 1 element Cu Al"
    )


def _lammps_data(frames: Sequence["Atoms"], file: Path) -> None:
    heads = {line.split("#")[0].strip() for _, line in _lines(file)}
    if not {"Masses", "Atom Type Labels"} & heads:
        raise DataError(
            f"{file}: a LAMMPS data file without the section 'Masses', and a number of a type is no element; "
            "add the section, or write extended XYZ"
        )


def _protein_data_bank(frames: Sequence["Atoms"], file: Path) -> None:
    for atoms in frames:
        # "CRYST1 1.000 1.000 1.000 90 90 90 P 1" means by definition that there is no crystal.
        if np.array_equal(atoms.cell.array, np.eye(3)):
            atoms.set_cell(None)
            atoms.set_pbc(False)
    places = set()
    for number, line in _lines(file):
        if not line.startswith(("ATOM", "HETATM")):
            continue
        places.add(line[16])
        if len(places - {" "}) > 1:
            raise DataError(
                f"{file} (line {number}): alternative places {' and '.join(sorted(places - {' '}))} of atoms "
                "(column 17), all of which would be read; keep one, such as the first"
            )
        if not line[76:78].strip():
            raise DataError(
                f"{file} (line {number}): no element in columns 77 and 78 of {line[:30]!r}; the name of an "
                "atom does not say it (CA is carbon or calcium); write a PDB file with elements"
            )


def _gromacs(frames: Sequence["Atoms"], file: Path) -> None:
    lines = [line for _, line in _lines(file, strip=False)]
    names = [line[10:15] for line in lines[2:-1]]
    _warn_of_names(frames, file, names, "this format has no elements")


def _warn_of_names(frames: Sequence["Atoms"], file: Path, names: Sequence[str], why: str) -> None:
    """Warn that elements come from names; pairs are listed if there is a name for each atom."""
    if not names:
        return
    symbols = [symbol for atoms in frames for symbol in atoms.symbols]
    pairs = (
        sorted({f"{n.strip()} → {s}" for n, s in zip(names, symbols)}) if len(names) == len(symbols) else []
    )
    more = f", and {len(pairs) - _LISTED} more" if len(pairs) > _LISTED else ""
    shown = f" ({', '.join(pairs[:_LISTED])}{more})" if pairs else ""
    warnings.warn(
        f"{file}: {why}; ASE guesses them from the names of the atoms{shown}: check them, or write a file "
        "with elements",
        DataWarning,
        stacklevel=6,
    )


def _periodic(frames: Sequence["Atoms"], file: Path) -> None:
    for atoms in frames:
        atoms.set_pbc(atoms.cell.any(1))  # the format is one of periodic structures; ASE reads the cell only


def _lines(file: Path, *, strip: bool = True) -> Iterator[tuple[int, str]]:
    """Lines of a text, numbered from 1."""
    with readable(file), open_text(file) as text:
        for number, line in enumerate(text, 1):
            yield number, line.strip() if strip else line.rstrip("\n")


_FORMATS: dict[str, Callable[[Sequence["Atoms"], Path], None]] = {
    "lammps-dump-text": _lammps_dump,
    "lammps-dump-binary": _lammps_binary,
    "lammps-data": _lammps_data,
    "proteindatabank": _protein_data_bank,
    "cif": _crystal_information,
    "cube": _cube,
    "dlp4": _dl_poly,
    "dlp-history": _dl_poly,
    "gromacs": _gromacs,
    "gromos": _gromos,
    "vasp": _vasp_positions,
    "eon": _periodic,
    "sys": _periodic,
}
