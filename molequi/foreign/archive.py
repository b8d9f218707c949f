"""Archives of torch (.pth, .pt, .model) as plain values, without running what they name.

Such a file is a zip of one pickle (`molequi.foreign.pickles`) and the bytes of its tensors, which are cut
from the file after their sizes were checked.
"""

import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molequi.errors import CheckpointError
from molequi.foreign.pickles import Reader, Storage, plain

_PACKAGED = "model/eager_model.pkl"  # of torch.package
_PICKLE_LIMIT = 256 << 20  # bytes of the pickle; a program of this length takes seconds and a few GB
_NO_ARCHIVE = (
    zipfile.BadZipFile,
    OSError,  # it cannot be read, or says that its directory begins before its first byte
    NotImplementedError,  # it wants a later version of the zip format
    UnicodeDecodeError,  # a name in it is said to be UTF-8, and is not
)


class Archive:
    """A file of torch.

    Parameters
    ----------
    path : path-like
        The file.
    data : bytes, optional
        An archive within the file, which is read instead.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is no archive of torch, or a compiled program.
    """

    def __init__(self, path: str | os.PathLike[str], data: bytes | None = None) -> None:
        self.path = Path(path)
        if data is None and not self.path.is_file():
            raise CheckpointError(f"{self.path}: no such file")
        self.size = os.path.getsize(self.path) if data is None else len(data)
        try:
            self.zip = zipfile.ZipFile(self.path if data is None else io.BytesIO(data))
        except _NO_ARCHIVE as error:
            raise CheckpointError(
                f"{self.path}: no archive of torch ({error}); wanted a file that torch.save wrote with "
                "torch 1.6 or later"
                + ("; a model of molequi is one already" if self.path.suffix == ".safetensors" else "")
            ) from None
        names = self.zip.namelist()
        found = [
            (n, end) for end in ("data.pkl", _PACKAGED) for n in names if n == end or n.endswith(f"/{end}")
        ]
        compiled = ("/constants.pkl", "/archive_format")  # of torch.jit and torch.export
        program = any(n.endswith(compiled) and "/.data/" not in n for n in names)
        if program and data is None:  # in a model it is the code of a module, whose constants are read
            raise CheckpointError(
                f"{self.path}: a compiled program (TorchScript or AOTInductor), which would have to be run; "
                "wanted the checkpoint, model or package that it was compiled from, such as NAME.model "
                "beside NAME_compiled.model"
            )
        if len(found) != 1 or found[0][0].removesuffix(found[0][1]).count("/") > 1:
            raise CheckpointError(
                f"{self.path}: a zip without the data of torch.save; found " + ", ".join(names[:4])
            )
        self.folder, self.packaged = found[0][0].removesuffix(found[0][1]), found[0][1] == _PACKAGED
        self._made: dict[str, Tensor] = {}

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def value(self) -> Any:
        """What was saved: plain values, tensors, numpy arrays, and a `Record` for everything else.

        Of a package of torch.package, as nequip writes it, a mapping with its model ("eager_model.pkl") and
        the texts beside it. Its Python files are not read.

        Raises
        ------
        CheckpointError
            If the file is damaged, or its sizes contradict each other.
        """
        try:
            data = self._member(_PACKAGED if self.packaged else "data.pkl", _PICKLE_LIMIT)
            value = plain(Reader(data, self.size, self.tensor).load())
            if not self.packaged:
                return value
            start = f"{self.folder}model/"
            texts = [
                n.removeprefix(start)
                for n in self.zip.namelist()
                if n.startswith(start) and n.endswith(".txt")
            ]
            return {n: self._member(f"model/{n}", _PICKLE_LIMIT).decode() for n in texts} | {
                "eager_model.pkl": value
            }
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
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > min(limit, self.size):
            raise CheckpointError(
                f"{self.path}: {name} is said to have {info.file_size} bytes, compressed; torch.save "
                "does not write such files"
            )
        return self.zip.read(info)

    def storage(self, storage: Storage) -> Tensor:
        """The numbers of a storage.

        Parameters
        ----------
        storage : Storage
            Its type and name.
        """
        if storage.key not in self._made:
            if not storage.key.isdigit():
                raise CheckpointError(f"{self.path}: a tensor in {storage.key[:40]!r}; wanted a number")
            name = f".data/{storage.key}.storage" if self.packaged else f"data/{storage.key}"
            raw = self._member(name, sys.maxsize)
            wanted = storage.size * storage.dtype.itemsize
            if len(raw) != wanted:
                raise CheckpointError(
                    f"{self.path}: tensor {storage.key} has {len(raw)} bytes where {wanted} are declared"
                )
            empty = torch.empty(0, dtype=storage.dtype)
            self._made[storage.key] = torch.frombuffer(bytearray(raw), dtype=storage.dtype) if raw else empty
        return self._made[storage.key]

    def tensor(
        self, storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> Tensor:
        """A tensor as a part of a storage.

        Parameters
        ----------
        storage : Storage
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
