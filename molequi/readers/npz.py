"""An .npz file that is open: arrays read when they are used, nothing unpickled, every failure told with the name of the file."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from molequi.errors import DataError
from molequi.readers import extxyz


class Arrays(Mapping):
    """Arrays of an open .npz file, each read when it is first used; pickled objects are refused."""

    def __init__(self, path: Path, file: np.lib.npyio.NpzFile):
        self.path, self.file, self._read, self._headers = path, file, {}, {}
        for name in file.files:
            if self.header(name)[1] == "O":
                raise DataError(
                    f"{path}: {name!r} holds pickled Python objects, which are never loaded; save plain arrays"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.files)

    def __len__(self) -> int:
        return len(self.file.files)

    def __contains__(self, name) -> bool:
        return name in self.file.files

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._read:
            with _translated(self.path):
                self._read[name] = self.file[name]
        return self._read[name]

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and kind of an array, without reading its values."""
        if name not in self._headers:
            with _translated(self.path), self.file.zip.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(member)
                self._headers[name] = shape, "O" if dtype.hasobject else dtype.kind
        return self._headers[name]


@contextmanager
def _translated(path: Path):
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
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
    """The arrays of a file while it is open. Raises DataError for what is no such file, or a damaged one."""
    extxyz.check_file(path)
    # numpy leaves a file that it cannot parse open; a handle of our own is closed.
    with extxyz.readable(path), open(path, "rb") as handle:
        with _translated(path):
            file = np.load(handle, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: a single array; wanted an .npz file with several")
        yield Arrays(path, file)
