"""Some structures of an .npz file at once, with little memory, however large the file is."""

import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from molequi.errors import DataError
from molequi.readers.arrays import LABELS, PAIRS, POS, RESERVED, Z, check_counts
from molequi.readers.npz import CELLS, Arrays, ArraysPart, opened, read_header, required, translated

_CHUNK = 2**22  # bytes
# Arrays that are the same for all structures, whatever their shape is.
_COMMON = ("prop_names", "r_unit", "e_unit", "quantities", "fields")


class NpzRows:
    """An open .npz file of structures, of which parts are read one after the other.

    What is not compressed is read at its place in the file. What is compressed is unpacked once, as long as
    the parts follow each other.

    Parameters
    ----------
    path : Path
        The file.
    arrays : Arrays
        Its arrays.
    keys : mapping, optional
        As `molequi.read_npz` takes them.

    Attributes
    ----------
    total : int
        Number of structures.
    """

    def __init__(self, path: Path, arrays: Arrays, keys: Mapping[str, Any] | None) -> None:
        self.path, self.arrays = path, arrays
        self._members: dict[str, _Member] = {}
        self._stack = ExitStack()
        keys = keys or {}
        self.ends: np.ndarray | None = None
        if "n_atoms" in arrays:
            check_counts(path, arrays["n_atoms"])
            self.ends = np.cumsum(arrays["n_atoms"], dtype=np.int64)
            self.total = len(self.ends)
            self.common: tuple[str, ...] = _COMMON
            return
        pos = self._named(keys.get("positions"), POS)
        self.total = self._shape(pos)[0]
        self.common = (self._named(keys.get("z"), Z), *_COMMON)
        if len(self._shape(self.common[0])) == 2:  # atomic numbers of each frame
            self.common = _COMMON
        cells = [n for n in (*CELLS, "pbc", keys.get("cell")) if isinstance(n, str) and n in arrays]
        self.common += tuple(n for n in cells if self._shape(n) in ((3, 3), (3,)))
        given = [keys[name] for name in LABELS if isinstance(keys.get(name), str)]
        for name in (*given, *(n for names in LABELS.values() for n in names)):
            if name in arrays and self._shape(name)[:1] != (self.total,):
                raise DataError(
                    f"{path}: {name!r} has the shape {self._shape(name)} for {self.total} frames; wanted one "
                    "entry a frame"
                )

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.arrays.header(name)[0]

    def _named(self, given: object, names: tuple[str, ...]) -> str:
        wanted = (given,) if isinstance(given, str) else names
        found = next((name for name in wanted if name in self.arrays), None)
        return required(self.path, self.arrays, wanted) if found is None else found  # type: ignore[return-value]

    def close(self) -> None:
        """Close what is open beside the file."""
        self._stack.close()

    def check(self) -> None:
        """Compare what is not compressed with its checksums. Raises DataError if the file is damaged."""
        archive = self.arrays.file.zip
        assert archive is not None, "the file is open"
        with translated(self.path):
            for info in archive.infolist():
                if info.compress_type == zipfile.ZIP_STORED:
                    with archive.open(info) as member:
                        while member.read(_CHUNK):
                            pass

    def read(self, start: int, stop: int) -> ArraysPart:
        """The arrays of some structures, by which `molequi.readers.arrays.npz_records` reads them.

        Parameters
        ----------
        start, stop : int
            Numbers of the first structure and of that after the last one.
        """
        out: dict[str, np.ndarray] = {}
        with translated(self.path):
            for name in self.arrays:
                rows = self._rows(name, start, stop)
                if rows is not None:
                    out[name] = self._member(name).rows(*rows)
                elif name in self.common or name in RESERVED or not self._shape(name):
                    out[name] = self.arrays[name]
                else:  # what is neither of structures nor of atoms is not read, and its name is listed
                    out[name] = np.empty(0)
        if all(name in self.arrays for name in PAIRS):
            ends = np.concatenate([[0], np.cumsum(self.arrays["n_pairs"], dtype=np.int64)])
            if ends[-1] == self._shape("pair_index")[-1] == self._shape("pair_attr")[0]:
                out["pair_index"] = self.arrays["pair_index"][:, ends[start] : ends[stop]]
                out["pair_attr"] = self.arrays["pair_attr"][ends[start] : ends[stop]]
        return ArraysPart(out, start)

    def _rows(self, name: str, start: int, stop: int) -> tuple[int, int] | None:
        """The rows of an array that belong to some structures; None if it has no such rows."""
        shape = self._shape(name)
        if name in self.common or name in PAIRS[1:] or not shape:
            return None
        if shape[0] == self.total:
            return start, stop
        if self.ends is not None and shape[0] == self.ends[-1]:
            return (int(self.ends[start - 1]) if start else 0), int(self.ends[stop - 1])
        return None

    def _member(self, name: str) -> "_Member":
        if name not in self._members:
            archive = self.arrays.file.zip
            assert archive is not None, "the file is open"
            self._members[name] = _Member(archive, f"{name}.npy", self._stack)
        return self._members[name]


class _Member:
    """An array of an .npz file whose rows are read one after the other."""

    def __init__(self, archive: zipfile.ZipFile, name: str, stack: ExitStack) -> None:
        self.archive, self.name, self.stack = archive, name, stack
        self.info = archive.getinfo(name)
        with archive.open(name) as member:
            shape, fortran, self.dtype = read_header(member)
            self.begin = member.tell()
        self.shape = shape[1:]
        self.size = self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        self.whole = np.load(archive.open(name), allow_pickle=False) if fortran and len(shape) > 1 else None
        self.stream: IO[bytes] | None = None
        self.at = 0

    def rows(self, start: int, stop: int) -> np.ndarray:
        if self.whole is not None:
            return self.whole[start:stop].copy()
        if self.info.compress_type == zipfile.ZIP_STORED:
            raw = self._at_its_place(self.begin + start * self.size, (stop - start) * self.size)
        else:
            raw = self._unpacked(self.begin + start * self.size, (stop - start) * self.size)
        if len(raw) != (stop - start) * self.size:
            raise EOFError(f"{self.name} ends too early")
        return np.frombuffer(raw, self.dtype).reshape(stop - start, *self.shape).copy()

    def _at_its_place(self, begin: int, length: int) -> bytes:
        file = self.archive.fp
        assert file is not None, "the file is open"
        file.seek(self.info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))  # lengths of what follows the local header
        file.seek(self.info.header_offset + 30 + name + extra + begin)
        return file.read(length)

    def _unpacked(self, begin: int, length: int) -> bytes:
        if self.stream is None or begin < self.at:
            self.stream = self.stack.enter_context(self.archive.open(self.name))
            self.at = 0
        while self.at < begin:
            found = self.stream.read(min(_CHUNK, begin - self.at))
            if not found:
                raise EOFError(f"{self.name} ends too early")
            self.at += len(found)
        raw = self.stream.read(length)
        self.at += len(raw)
        return raw


@contextmanager
def opened_rows(path: Path, keys: Mapping[str, Any] | None = None) -> Iterator[NpzRows]:
    """Structures of an .npz file while it is open.

    Parameters
    ----------
    path : Path
        The file.
    keys : mapping, optional
        As `molequi.read_npz` takes them.

    Raises
    ------
    DataError
        If the file is damaged, or has no structures.
    """
    with opened(path) as arrays:
        rows = NpzRows(path, arrays, keys)
        if not rows.total:
            raise DataError(f"{path}: no frames in this file")
        try:
            yield rows
        finally:
            rows.close()
