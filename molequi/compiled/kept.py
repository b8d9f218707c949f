"""Compiled programs on disk, from which other processes start at once.

A program is one file in the folder ``programs`` of `util.cache_folder`. It holds what the compiler of torch
made and a description, as a safetensors file with a SHA-256 digest. Machine code is code of somebody, and
torch describes programs with pickle. Therefore files are read only if nobody else can write to them.
"""

import functools
import json
import os
import stat
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molequi.compiled.keys import program_key
from molequi.errors import AccelerateError
from molequi.graph import Graph
from molequi.model import Model
from molequi.util.cache_folder import cache_folder, not_private
from molequi.util.files import sha256, write_file
from molequi.util.progress import tell

FORMAT = 2
LARGEST = 1 << 30  # bytes of all programs together; those that were used last are kept
_SUFFIX = ".program"


@dataclass(frozen=True)
class KeptProgram:
    """A compiled program as it is on disk.

    Parameters
    ----------
    files : mapping of str to bytes
        Shared libraries by their path in the folder of the compiler.
    call : bytes
        What calls them, as torch serializes it.
    assumed : list
        What was assumed about sizes, see `expressions`.
    constants : sequence of Tensor
        As in `functions.CompiledFunction`.
    what : str
        What it computes, such as ``"PaiNN for training (float32)"``.
    seconds : float
        How long it took to compile.
    """

    files: Mapping[str, bytes]
    call: bytes
    assumed: list[Any]
    constants: Sequence[Tensor]
    what: str
    seconds: float


@dataclass(frozen=True)
class Shelf:
    """Where the program of one key is kept.

    Parameters
    ----------
    folder : Path
        The folder of the programs.
    key : str
        What `keys.program_key` returned.
    """

    folder: Path
    key: str

    @property
    def path(self) -> Path:
        """The file, which need not exist."""
        return self.folder / f"{self.key}{_SUFFIX}"

    def read(self) -> KeptProgram | None:
        """The program; None if there is none.

        A damaged file is removed, which a line on stderr reports.
        """
        if not self.path.exists():
            return None
        try:
            program = _decoded(_content(self.path), self.key)
            os.utime(self.path)  # used last
        except (OSError, ValueError, KeyError, TypeError) as error:
            tell(f"{self.path}: not used ({error}); it is removed and made again")
            self.remove()
            return None
        return program

    def write(self, make: Callable[[], KeptProgram]) -> None:
        """Keep a program, and remove those that were not used for longest if there are too many.

        If that fails, a line on stderr reports it: the program itself can be used.

        Parameters
        ----------
        make : callable
            Returns the program.
        """
        try:
            write_file(self.path, _encoded(make(), self.key), error=AccelerateError)
            self.path.chmod(0o600)
            _make_room(self.folder, self.path)
        except Exception as error:  # torch serializes what it made, and raises whatever it likes
            tell(f"the compiled program is used but not kept on disk ({type(error).__name__}: {error})")

    def remove(self) -> None:
        """Remove the program."""
        self.path.unlink(missing_ok=True)


def shelf_of(model: Model, padded: Graph, create_graph: bool) -> Shelf | None:
    """Where a function of a model is kept.

    Parameters
    ----------
    model : Model
        The model.
    padded : Graph
        A regular graph with the fields of the structures.
    create_graph : bool
        Whether the outputs can be differentiated.

    Returns
    -------
    Shelf or None
        None if it cannot be kept: on GPUs, if the model has settings without a description, or if there is no
        folder for programs.
    """
    key = program_key(model, padded, create_graph) if model.device.type == "cpu" else None
    folder = None if key is None else programs_folder()
    return None if key is None or folder is None else Shelf(folder, key)


def kind_of(model: Model, create_graph: bool) -> str:
    """What a function computes, for messages and for times.

    Parameters
    ----------
    model : Model
        The model.
    create_graph : bool
        Whether the outputs can be differentiated.
    """
    kind = "training" if create_graph else "evaluation"
    return f"{type(model.backbone).__name__} for {kind} ({str(model.dtype).removeprefix('torch.')})"


def programs_folder() -> Path | None:
    """The folder of the programs, which is made if it is missing.

    Returns
    -------
    Path or None
        None if it cannot be written, or if others could write to it; a line on stderr says why.
    """
    folder = cache_folder() / "programs"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = not_private(folder)
    except OSError as error:
        reason = f"{folder}: {error.strerror or error}; set MOLEQUI_CACHE to another folder"
    if reason:
        _tell_once(f"compiled programs are not kept on disk: {reason}")
        return None
    return folder


@functools.cache
def _tell_once(text: str) -> None:
    tell(text)


def known_seconds(what: str) -> float | None:
    """How long an earlier compilation on this machine took.

    Parameters
    ----------
    what : str
        As `KeptProgram.what`.

    Returns
    -------
    float or None
        The median of the programs that are kept; None if there is none of this kind.
    """
    folder = cache_folder() / "programs"
    found = [_description(path) for path in folder.glob(f"*{_SUFFIX}")] if folder.is_dir() else []
    times = [float(one["seconds"]) for one in found if one.get("what") == what]
    return statistics.median(times) if times else None


def _description(path: Path) -> Mapping[str, Any]:
    """The description alone; empty if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["program"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("seconds"), (int, float)) else {}


def _content(path: Path) -> bytes:
    """The bytes of a file, if nobody else can have written them."""
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others can write to it")
        return file.read()


def _encoded(program: KeptProgram, key: str) -> bytes:
    from safetensors.torch import save

    parts = {"call": program.call} | {f"file {name}": content for name, content in program.files.items()}
    tensors = {
        name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in parts.items()
    }
    tensors |= {
        f"constant {k}": value.detach().cpu().contiguous() for k, value in enumerate(program.constants)
    }
    description = json.dumps(
        {
            "assumed": program.assumed,
            "constants": len(program.constants),
            "what": program.what,
            "seconds": round(program.seconds, 1),
        }
    )
    metadata = {"format": str(FORMAT), "key": key, "program": description}
    return save(tensors, metadata | {"digest": _digest(tensors, description)})


def _decoded(content: bytes, key: str) -> KeptProgram:
    from safetensors import SafetensorError
    from safetensors.torch import load

    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("its header is none of a program")
    if metadata.get("format") != str(FORMAT) or metadata.get("key") != key:
        raise ValueError("of another format or key")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if metadata.get("digest") != _digest(tensors, metadata["program"]):
        raise ValueError("its content does not match its SHA-256 digest")
    found = json.loads(metadata["program"])  # as it was written, by the digest
    constants = [tensors.pop(f"constant {k}").clone() for k in range(found["constants"])]
    parts = {name: value.numpy().tobytes() for name, value in tensors.items()}
    call = parts.pop("call")
    files = {name.removeprefix("file "): value for name, value in parts.items()}
    return KeptProgram(files, call, found["assumed"], constants, found["what"], found["seconds"])


def _digest(tensors: Mapping[str, Tensor], description: str) -> str:
    return sha256(
        piece
        for name, value in sorted(tensors.items())
        for piece in (f"{name} {value.dtype} {tuple(value.shape)} ", value.numpy().tobytes())
    ) + sha256([description])


def _make_room(folder: Path, newest: Path) -> None:
    """Remove the programs that were not used for longest."""
    found = sorted(
        ((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob(f"*{_SUFFIX}")),
        reverse=True,
    )
    total = 0
    for _, size, path in found:
        total += size
        if total > LARGEST and path != newest:
            path.unlink(missing_ok=True)
