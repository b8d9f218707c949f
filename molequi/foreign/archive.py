"""Archives of torch (.pth, .pt, .model) as plain values, without running what they name.

Such a file is a zip of one pickle and the bytes of its tensors. A pickle is a program: it may name any
function and have it called. The reader here answers every name with an inert record, so that nothing is
imported and nothing is called; tensors are cut from the bytes after their sizes were checked.
"""

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from molequi.errors import CheckpointError

_PICKLE_LIMIT = 256 << 20  # bytes of the pickle; a program of this length takes seconds and a few GB
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Record:
    """An object of a class that is not there: its name, and what the file says about it.

    Attributes
    ----------
    kind : str
        Module and name of the class, such as ``"mace.modules.models.ScaleShiftMACE"``.
    arguments : tuple
        What it was made with.
    state : object
        What it was given afterwards, usually a mapping of its attributes.
    """

    kind: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **named: Any) -> "Record":
        made = super().__new__(cls)
        made.arguments, made.state = arguments, named or None
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """An item of a list of a class of its own: part of the state."""
        self.extend([item])

    def extend(self, items: Any) -> None:
        """Items of a list of a class of its own: part of the state."""
        self.state = [*(self.state or ()), *items]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state = {**(self.state or {}), key: value}

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.kind}>"


@dataclass(frozen=True)
class _Storage:
    """The bytes of a tensor, which are read when it is made."""

    dtype: torch.dtype
    key: str
    size: int


class Archive:
    """A file of torch.

    Parameters
    ----------
    path : path-like
        The file.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is no archive of torch.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{self.path}: no such file")
        try:
            self.zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise CheckpointError(
                f"{self.path}: no archive of torch ({error}); wanted a file that torch.save wrote with "
                "torch 1.6 or later"
            ) from None
        pickles = [n for n in self.zip.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].count("/") > 1:
            raise CheckpointError(
                f"{self.path}: a zip without the data of torch.save; found "
                + ", ".join(self.zip.namelist()[:4])
            )
        self.folder = pickles[0][: -len("data.pkl")]
        self._made: dict[str, Tensor] = {}

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def value(self) -> Any:
        """What was saved: plain values, tensors, numpy arrays, and a `Record` for everything else.

        Raises
        ------
        CheckpointError
            If the file is damaged, or its sizes contradict each other.
        """
        try:
            return _Reader(io.BytesIO(self._member("data.pkl", _PICKLE_LIMIT)), self).load()
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle can end in any of them
            raise CheckpointError(
                f"{self.path}: its pickle cannot be read ({type(error).__name__}: {str(error)[:80]}); it is "
                "damaged, or no file of torch.save"
            ) from error

    def _member(self, name: str, limit: int) -> bytes:
        try:
            info = self.zip.getinfo(self.folder + name)
        except KeyError:
            raise CheckpointError(f"{self.path}: {name} is missing in the archive") from None
        # torch does not compress, so nothing can be larger than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > min(
            limit, os.path.getsize(self.path)
        ):
            raise CheckpointError(
                f"{self.path}: {name} is said to have {info.file_size} bytes, compressed; torch.save "
                "does not write such files"
            )
        return self.zip.read(info)

    def storage(self, storage: _Storage) -> Tensor:
        """The numbers of a storage.

        Parameters
        ----------
        storage : _Storage
            Its type and name.
        """
        if storage.key not in self._made:
            if not storage.key.isdigit():
                raise CheckpointError(f"{self.path}: a tensor in {storage.key[:40]!r}; wanted a number")
            raw = self._member(f"data/{storage.key}", sys.maxsize)
            wanted = storage.size * storage.dtype.itemsize
            if len(raw) != wanted:
                raise CheckpointError(
                    f"{self.path}: tensor {storage.key} has {len(raw)} bytes where {wanted} are declared"
                )
            empty = torch.empty(0, dtype=storage.dtype)
            self._made[storage.key] = torch.frombuffer(bytearray(raw), dtype=storage.dtype) if raw else empty
        return self._made[storage.key]

    def tensor(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> Tensor:
        """A tensor as a part of a storage.

        Parameters
        ----------
        storage : _Storage
            The numbers.
        offset : int
            Number of the first one.
        shape, stride : tuple of int
            Sizes, and steps between neighbors of each axis.
        """
        numbers = (offset, *shape, *stride)
        if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(stride):
            raise CheckpointError(f"{self.path}: a tensor with shape {shape!r} and stride {stride!r}")
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride)) if all(shape) else offset - 1
        values = self.storage(storage)
        # Steps of zero repeat a number, so that a small file would fill the memory.
        if last >= len(values) or torch.Size(shape).numel() > max(len(values), 1):
            raise CheckpointError(
                f"{self.path}: a tensor of shape {shape} needs more numbers than the {len(values)} of "
                "its storage"
            )
        return values.as_strided(shape, stride, offset).clone()


class _Reader(pickle.Unpickler):
    """The program of a pickle with inert answers to every name."""

    def __init__(self, file: io.BytesIO, archive: Archive) -> None:
        super().__init__(file)
        self.archive = archive
        self.kinds: dict[str, type[Record]] = {}
        self.known: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch.Size": tuple,
            "torch.device": lambda *a: ":".join(map(str, a)),
            "_codecs.encode": _encode,
            "builtins.set": set,
            "__builtin__.set": set,
            "builtins.slice": slice,
            "pathlib.PosixPath": lambda *a: "/".join(map(str, a)),
        }
        for module in ("numpy.core", "numpy._core"):
            self.known[f"{module}.multiarray._reconstruct"] = lambda *_: _Array()
            self.known[f"{module}.multiarray.scalar"] = _scalar
        self.known["numpy.dtype"] = _Dtype
        self.known["numpy.ndarray"] = Record

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.known:
            return self.known[full]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if full not in self.kinds:
            self.kinds[full] = type(name.rpartition(".")[2] or "Record", (Record,), {"kind": full})
        return self.kinds[full]

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, _, int() as size) if size >= 0:
                return _Storage(dtype, key, size)
        raise CheckpointError(f"{self.archive.path}: a tensor that is described as {str(pid)[:80]}")

    def _tensor(self, storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, _Storage):
            raise CheckpointError(f"{self.archive.path}: a tensor without numbers")
        return self.archive.tensor(storage, offset, tuple(shape), tuple(stride))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes that pickles of Python 2's protocol hold as text."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


class _Dtype(Record):
    """A type of numpy by its name; only numbers are known."""

    def numpy(self) -> np.dtype:
        """The type."""
        found = np.dtype(str(self.arguments[0]))
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        if found.kind not in "biufc":
            raise ValueError(f"numbers of type {found}")
        return found.newbyteorder(">") if order == ">" else found


class _Array(Record):
    """An array of numpy, whose content arrives as its state."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        values = np.frombuffer(raw if isinstance(raw, bytes) else _encode(raw), dtype.numpy())
        self.state = values.reshape(shape, order="F" if fortran else "C").copy()


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    """A number of numpy as one of Python."""
    return np.frombuffer(raw if isinstance(raw, bytes) else _encode(raw), dtype.numpy())[0].item()


def plain(value: Any) -> Any:
    """A value with numpy arrays in the place of their records, in lists and mappings, too.

    Parameters
    ----------
    value : object
        A value of `Archive.value`.
    """
    if isinstance(value, _Array):
        return value.state
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    return value


def records(value: Any) -> Iterator[Record]:
    """All records within a value, each once.

    Parameters
    ----------
    value : object
        A value of `Archive.value`.
    """
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Record):
            yield one
            waiting += [one.arguments, one.state]
        elif isinstance(one, Mapping):
            waiting += list(one.values())
        elif isinstance(one, (list, tuple, set)):
            waiting += list(one)
