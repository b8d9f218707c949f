"""Frames of extended XYZ. ASE parses them; frames and lines are counted here for messages of errors."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from molequi.errors import DataError
from molequi.quantities import SYMBOLS
from molequi.readers.files import open_text, readable
from molequi.readers.stated import OTHER_CELLS

if TYPE_CHECKING:
    from ase import Atoms

_SPECIAL = re.compile(r"(?<![^\s])(stress|virial)(?=\s*=)")  # keys that ASE wants to have nine numbers


class Readable(Protocol):
    """An open text file, or what reads like one."""

    def readline(self) -> str:
        """The next line; empty at the end."""
        ...


@dataclass(frozen=True)
class Frame:
    """One frame and its place.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure.
    file : str
        Path; empty for structures that are not from a file.
    index : int
        Number of the frame, from 0.
    line : int, optional
        Line where it begins, from 1.
    """

    atoms: "Atoms"
    file: str
    index: int
    line: int | None = None

    @property
    def where(self) -> str:
        """The place for messages: ``train.xyz, frame 17 (line 301)``."""
        place = f"frame {self.index}" + (f" (line {self.line})" if self.line else "")
        return f"{self.file}, {place}" if self.file else place


def scan(path: Path) -> tuple[list[tuple[int, int]], bool]:
    """Check that all frames are whole, and find where they begin.

    Returns
    -------
    list of (int, int)
        Line and number of atoms of each frame.
    bool
        Whether the last line is complete.

    Raises
    ------
    DataError
        With the line, if it does not begin a frame, or if the file ends within a frame.
    """
    frames: list[tuple[int, int]] = []
    whole = True
    with readable(path), open_text(path) as file:
        for number, lines in raw_frames(path, file):
            frames.append((number, len(lines) - 2))
            whole = lines[-1].endswith("\n")
    if not frames:
        raise DataError(f"{path}: no frames in this file (it is empty)")
    return frames, whole


def raw_frames(
    path: Path, file: Readable, frames: int = 0, lines: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """The lines of each frame of an open file, unparsed, with the number of the first one.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : file with readline
        The open file, or a part of it that begins with a frame.
    frames, lines : int
        Numbers of frames and lines before this part.

    Raises
    ------
    DataError
        With the line, if it does not begin a frame, or if the file ends within a frame.
    """
    number, last = lines, 0
    while head := file.readline():
        number += 1
        if not head.strip():
            continue
        where = f"{path}, frame {frames} (line {number})"
        try:
            count = int(head)
        except ValueError:
            hint = "not an extxyz file"
            if last:
                before = f"frame {frames - 1} says {last} atoms"
                hint = f"{before} but seems to have another number of lines"
            raise DataError(
                f"{where}: wanted a number of atoms, found {head.strip()[:60]!r}: {hint}"
            ) from None
        if count < 1:
            raise DataError(f"{where}: {count} atoms; wanted at least one")
        first, block = number, [head]
        for k in range(count + 1):
            line = file.readline()
            if not line:
                what = "the comment line" if k == 0 else f"{count} atoms, found {k - 1}"
                raise DataError(f"{where}: wanted {what}; the file ends at line {number}: it looks truncated")
            block.append(line)
            number += 1
        yield first, block
        frames, last = frames + 1, count


def _parse_comment(line: str) -> dict:
    from ase.io.extxyz import key_val_str_to_dict

    # ASE takes only nine numbers for stress and virial and drops the antisymmetric part. Six are common, and
    # both are checked later.
    _check_keys(line)
    info = key_val_str_to_dict(_SPECIAL.sub(r"given_\1", line))
    for name in ("stress", "virial"):
        if f"given_{name}" in info:
            info[name] = info.pop(f"given_{name}")
            if not isinstance(info[name], np.ndarray):
                raise DataError(f'{name}={info[name]!r}; wanted six or nine numbers, {name}="xx xy xz …"')
    _check_cell(line, info)
    if "pbc" in info:
        info["pbc"] = _directions(info["pbc"])
    # Some programs write a lattice of zeros, without pbc, for "no cell".
    if "Lattice" in info and "pbc" not in info and not info["Lattice"].any():
        del info["Lattice"]
    if _CP2K.match(line):
        info["E_unit"] = "Hartree"  # as its manual says; the comment does not
    return info


def _check_keys(line: str) -> None:
    """Raise DataError for a key with two values, of which ASE takes the last, and for a partial lattice."""
    values: dict[str, str] = {}
    for key, value in _ENTRY.findall(line):
        if values.setdefault(key, value) != value:
            raise DataError(f"{key}={values[key]} and {key}={value}; wanted each key once")
    lattice = _LATTICE.search(line)
    if lattice and len(lattice[1].replace(",", " ").split()) != 9:
        raise DataError(f'Lattice="{lattice[1]}"; wanted nine numbers, "ax ay az bx by bz cx cy cz"')


_FLAGS = {
    **dict.fromkeys(("t", "true", ".true.", "1"), True),
    **dict.fromkeys(("f", "false", ".false.", "0"), False),
}
_ENTRY = re.compile(r"""(?<!\S)([^\s="'{}]+)\s*=\s*("[^"]*"|'[^']*'|\{[^}]*\}|\S+)""")
_LATTICE = re.compile(r"""(?<!\S)Lattice\s*=\s*["']([^"'{}\[\]]*)["']""")
_CP2K = re.compile(r"\s*i\s*=\s*\d+,\s*time\s*=\s*\S+,\s*E\s*=")


def _directions(given: object) -> list[bool]:
    """Three flags. ASE takes every other word for True."""
    words = [str(word) for word in np.ravel(np.asarray(given))]
    words = words[0].split() if len(words) == 1 else words
    words = list(words[0]) if len(words) == 1 and len(words[0]) == 3 else words
    flags = [_FLAGS.get(word.lower()) for word in words]
    if len(flags) not in (1, 3) or None in flags:
        raise DataError(
            f'pbc="{" ".join(words)}"; wanted T or F for each lattice vector, such as pbc="T T F"'
        )
    return [bool(flag) for flag in flags] * (3 // len(flags))


def _check_cell(line: str, info: dict) -> None:
    """Raise DataError for a cell that ASE's parser does not take for one, so that it would be lost."""
    if _IPI.search(line):
        raise DataError(
            f"{line[:80]!r} is a comment of i-PI, whose cell and units are not read; convert the file to "
            'extended XYZ in Å, with Lattice="…" for its cell'
        )
    for name in info:
        if name in ("Lattice", "pbc"):
            continue
        if name.lower() == "pbc" and "pbc" not in info:
            raise DataError(f"{name}=…: wanted the name pbc")
        if (
            name.lower() in ("cell", *OTHER_CELLS)
            and "Lattice" not in info
            and np.size(np.asarray(info[name])) >= 3
        ):
            raise DataError(
                f'{name}="…" would not be read, and the structure would have no cell; wanted '
                'Lattice="ax ay az bx by bz cx cy cz"'
            )


_IPI = re.compile(r"\bCELL[({\[]|\b(?:positions|cell)\{\w+\}")


def iterate(path: Path, frames: list[tuple[int, int]], wanted: range) -> Iterator[Frame]:
    """The wanted frames, parsed one after the other. Raises DataError with file, frame, line, column and
    value.
    """
    keep, parsed = set(wanted), {}
    backwards = wanted.step < 0
    last = max(wanted, default=-1)
    with readable(path), open_text(path) as file:
        number = 0
        for index, (first, count) in enumerate(frames):
            if index > last:
                break
            while number < first:
                head, number = file.readline(), number + 1
            block = [head] + [file.readline() for _ in range(count + 1)]
            number += count + 1
            if index not in keep:
                continue
            frame = parse_frame(block, str(path), index, first)
            if backwards:
                parsed[index] = frame
            else:
                yield frame
    yield from (parsed[i] for i in wanted if backwards)


def parse_frame(block: list[str], file: str, index: int, line: int) -> Frame:
    """A frame from its lines.

    Parameters
    ----------
    block : list of str
        The lines: the number of atoms, the comment, and one for each atom.
    file : str
        The file, for messages.
    index : int
        Number of the frame, from 0.
    line : int
        Number of its first line, from 1.

    Raises
    ------
    DataError
        With file, frame, line, column and value.
    """
    from ase.io.extxyz import read_xyz

    _check_columns(block, file, index, line)
    try:
        atoms = next(read_xyz(io.StringIO("".join(block)), 0, properties_parser=_parse_comment))
    except DataError as error:
        raise DataError(f"{file}, frame {index} (line {line + 1}): {error}") from None
    except Exception as error:  # ASE raises anything; the message says where
        _locate(block, file, index, line)
        raise DataError(f"{file}, frame {index} (line {line}): {type(error).__name__}: {error}") from error
    return Frame(atoms, file, index, line)


_PROPERTIES = re.compile(r"""Properties\s*=\s*(?:"([^"]*)"|'([^']*)'|\{([^}]*)\}|(\S+))""")


def _declared(comment: str) -> list[tuple[str, str, int]] | None:
    """(name, type, columns) of each declared property; None if the comment declares none."""
    match = _PROPERTIES.search(comment)
    if not match:
        return None
    fields = next(g for g in match.groups() if g is not None).split(":")
    if len(fields) % 3 or not all(c.isdigit() for c in fields[2::3]):
        return None
    return [(n, kind, int(cols)) for n, kind, cols in zip(fields[::3], fields[1::3], fields[2::3])]


def _check_columns(block: list[str], file: str, index: int, first: int) -> None:
    declared = _declared(block[1])
    wanted = 4 if declared is None else sum(columns for *_, columns in declared)
    first_columns: dict[str, int] = {}  # a list of all columns may not fit into memory
    for (name, _, columns), end in zip(declared or (), accumulate(d[2] for d in declared or ())):
        if columns:
            first_columns.setdefault(name, end - columns)
    if declared is not None and not {"pos", "positions"} & first_columns.keys():
        raise DataError(
            f"{file}, frame {index} (line {first + 1}): no column 'pos' among "
            f"{', '.join(first_columns)}; wanted Properties=species:S:1:pos:R:3, positions in Å"
        )
    for k, row in enumerate(block[2:]):
        found = len(row.split())
        if found < wanted or (declared is not None and found > wanted):
            cut = "; the file looks truncated" if not row.endswith("\n") else ""
            raise DataError(
                f"{file}, frame {index} (line {first + 2 + k}): atom {k} has {found} columns, wanted {wanted}"
                f"{cut or '; is the number of atoms right?'}"
            )
        if {"species", "Z"} <= first_columns.keys():
            words = row.split()
            symbol, number = words[first_columns["species"]], words[first_columns["Z"]]
            if symbol in SYMBOLS and number.isdigit() and SYMBOLS.index(symbol) != int(number):
                raise DataError(
                    f"{file}, frame {index} (line {first + 2 + k}): atom {k} is {symbol} in the column "
                    f"species and has Z={number}; wanted the same element"
                )


def _locate(block: list[str], file: str, index: int, first: int) -> None:
    """Raise DataError for the value that could not be read; return if all rows are right."""
    declared = _declared(block[1]) or [("species", "S", 1), ("pos", "R", 3)]
    columns = [(name, kind) for name, kind, count in declared for _ in range(count)]
    for k, row in enumerate(block[2:]):
        where = f"{file}, frame {index} (line {first + 2 + k}"
        for c, (word, (name, kind)) in enumerate(zip(row.split(), columns)):
            if name in ("species", "symbols") and word.capitalize() not in SYMBOLS:
                raise DataError(f"{where}): {word!r} is not the symbol of an element")
            if kind in "RI":
                try:
                    float(word) if kind == "R" else int(word)
                except ValueError:
                    hint = (
                        ": a number overflowed its Fortran format"
                        if "*" in word
                        else (
                            "; write exponents with E" if re.fullmatch(r"[-+.\d]+[dD][-+]?\d+", word) else ""
                        )
                    )
                    raise DataError(
                        f"{where}, column {c + 1}): {name} of atom {k} is {word!r}; wanted a number{hint}"
                    ) from None
