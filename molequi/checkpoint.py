"""One safe file for a model: tensors, and in its header JSON that builds the model again. No pickle, ever."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from molequi.ensemble import Ensemble
from molequi.errors import CheckpointError, ModelError, MolequiError
from molequi.heads import Head
from molequi.model import Model
from molequi.models import Backbone
from molequi.upgrades import FORMAT, upgrade
from molequi.util.files import write_atomically


def save(model: Model | Ensemble, path: str | os.PathLike, *, metadata: dict[str, Any] | None = None) -> Path:
    """Write the model, or all members of an ensemble, as one `.safetensors` file.

    The file appears whole or not at all.

    Parameters
    ----------
    model : Model or Ensemble
        Backbone and heads may be classes of your own; the file has their names and options, and `load` takes the classes.
    path : str or path-like
        Ends in ``.safetensors``.
    metadata : dict, optional
        Anything JSON-able to keep with it (the resolved run, the symmetry report); by default what the model was loaded with.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    CheckpointError
        If the file cannot be written.
    ModelError
        If an own class has a name of the package's, or an option that JSON cannot hold.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: a model file ends in .safetensors; found {path.suffix or 'no ending'}"
        )
    from molequi import __version__

    header = {
        "format": FORMAT,
        "molequi": __version__,
        "model": model.hparams,
        "metadata": getattr(model, "metadata", {}) if metadata is None else metadata,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    text = json.dumps(header, sort_keys=True)
    try:
        write_atomically(
            path,
            lambda temporary: save_file(
                tensors, temporary, metadata={"molequi": text, "sha256": digest(text, tensors)}
            ),
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error}); what was there before is untouched"
        ) from error
    return path


def load(
    path: str | os.PathLike,
    *,
    backbones: Mapping[str, type[Backbone]] | None = None,
    heads: Mapping[str, type[Head]] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Model | Ensemble:
    """Load a model or ensemble from its file, in evaluation mode.

    A file names the classes that build the model and cannot import any: those that are not the package's are handed over.

    Parameters
    ----------
    path : str or path-like
        A ``.safetensors`` file that `save` or `fit` wrote.
    backbones, heads : mapping of str to type, optional
        Classes of your own by the names that the file has for them: ``load(path, backbones={"SchNet": SchNet})``.
    device : str or torch.device
        Where the model runs.
    dtype : torch.dtype or str, optional
        Its precision, "float32" or "float64"; by default the one that it was saved in.

    Returns
    -------
    Model or Ensemble
        ``model.metadata`` is what was saved with it.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not written by molequi, of a newer format, or names a class that is not handed over.
    ModelError
        For a device that this machine does not have, and another dtype.
    """
    path = Path(path)
    header, tensors = read(path)
    try:
        ensemble = "members" in header["model"]
        kind: type[Model] | type[Ensemble] = Ensemble if ensemble else Model
        model = kind.from_hparams(header["model"], backbones=backbones, heads=heads)
        model = model.to(tensors[next(name for name, _ in model.named_parameters())].dtype)
        missing, extra = _differences(model, tensors)
    except (MolequiError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: its description of the model cannot be built: {error}") from error
    if ensemble:
        _check_members(path, header["model"]["members"], tensors)
    if missing or extra:
        raise CheckpointError(
            f"{path}: tensors do not fit the model it describes; missing {missing}, not wanted {extra}"
        )
    model.load_state_dict(tensors)
    model.metadata = header.get("metadata", {})
    if dtype is not None:
        model = model.to(as_dtype(dtype))
    return model.to(as_device(device)).eval()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a model file, checked against its digest and brought to the present format."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; wanted a model written by molequi")
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable model file ({error}); it may be cut short or damaged"
        ) from error
    if "molequi" not in meta or "sha256" not in meta:
        raise CheckpointError(
            f"{path}: a safetensors file, but not one that molequi wrote (no 'molequi' header)"
        )
    if digest(meta["molequi"], tensors) != meta["sha256"]:
        raise CheckpointError(
            f"{path}: its content does not match its SHA-256 digest; the file is damaged or was edited. "
            "Use an earlier copy"
        )
    header = json.loads(meta["molequi"])
    found = header.get("format", 0)
    if found > FORMAT:
        raise CheckpointError(
            f"{path}: written in format {found} by molequi {header.get('molequi')}; this version reads up to "
            f"{FORMAT}. Update molequi"
        )
    return upgrade(header, tensors)


def digest(header: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the header and over names, types, shapes and bytes of all tensors."""
    out = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        value = tensors[name]
        out.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        out.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """torch.float32 or torch.float64 from the type or its name. Raises ModelError for others."""
    known = {"float32": torch.float32, "float64": torch.float64}
    if dtype in known.values():
        return dtype
    if dtype not in known:
        raise ModelError(f"dtype {dtype!r}: wanted 'float32' or 'float64'")
    return known[dtype]


def as_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it. Raises ModelError rather than falling back to another."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device {device!r}: {error}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} was asked for and this machine has no CUDA; say device='cpu'")
    return found


def _check_members(path: Path, count: int, tensors: dict[str, Tensor]) -> None:
    there = {
        int(name.split(".")[1])
        for name in tensors
        if name.startswith("members.") and name.split(".")[1].isdecimal()
    }
    lost = sorted(set(range(count)) - there)
    if lost:
        raise CheckpointError(
            f"{path}: an ensemble of {count}, and member {', '.join(map(str, lost))} (counted from 0) is missing from the "
            "file; make the file again from models that are whole"
        )


def _differences(model: Model | Ensemble, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    return (
        sorted(n for n in wanted if found.get(n) != wanted[n]),
        sorted(n for n in found if wanted.get(n) != found[n]),
    )
