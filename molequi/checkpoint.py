"""One safe file for a model: tensors, and in its header JSON that builds the model again. No pickle, ever.

A tensor that a model has under several names (two layers that share a weight) is in the file once, under its
first name. The header lists the other names: ``"shared": {name: first name}``.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from molequi.checkpoint_checks import check_members, check_sizes, check_weights
from molequi.ensemble import Ensemble
from molequi.errors import CheckpointError, ConfigError, ModelError, MolequiError
from molequi.heads import Head
from molequi.last_layer import LaplaceEnsemble
from molequi.model import Model
from molequi.models import Backbone
from molequi.upgrades import FORMAT, upgrade
from molequi.util.devices import as_device, as_dtype
from molequi.util.files import write_atomically
from molequi.util.level_records import chosen_level, split_level
from molequi.util.signature import check_keywords

MODEL = "model.safetensors"  # in the folder of a run
_PUBLISHED = (
    "; a published model is mq.foundation(NAME) in Python, and its name in a command: molequi info 7net-0"
)
_STATE = re.compile(r"state-\d+\.pt")


@check_keywords()
def save(
    model: Model | Ensemble, path: str | os.PathLike[str], *, metadata: dict[str, Any] | None = None
) -> Path:
    """Write a model, or all members of an ensemble, as one ``.safetensors`` file.

    The file is either complete or not there at all. A tensor that the model has under several names is
    written once.

    Parameters
    ----------
    model : Model or Ensemble
        Its backbone and heads may be your own classes. The file has their names and options; `load` takes the
        classes.
    path : str or path-like
        Ends in ``.safetensors``.
    metadata : dict, optional
        Values that JSON can hold, to be kept with the model, such as the resolved run. By default the
        metadata that the model was loaded with.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    CheckpointError
        If the file cannot be written.
    ModelError
        For something else than a Model or an Ensemble, if one of your classes has the name of a class of the
        package, and for an option or metadata that JSON cannot hold.

    Examples
    --------
    >>> import tempfile
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H"], channels=8, layers=1), ["energy"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(model, f"{folder}/model.safetensors", metadata={"note": "untrained"})
    ...     load(path).metadata
    {'note': 'untrained'}
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: a model file ends in .safetensors; found {path.suffix or 'no ending'}"
        )
    from molequi import __version__

    if not isinstance(model, (Model, Ensemble)):
        raise ModelError(
            f"{path}: found {type(model).__name__}; wanted a Model or an Ensemble, such as "
            "mq.Model(backbone, predict=[…])"
        )
    _check_metadata(path, metadata)
    tensors, shared = _separate(model.state_dict())
    header = {
        "format": FORMAT,
        "molequi": __version__,
        "model": model.hparams,
        "metadata": getattr(model, "metadata", {}) if metadata is None else metadata,
    }
    if shared:  # left out where there are none, so that files of other models stay as they were
        header["shared"] = shared
    text = json.dumps(header)  # in the order that was given: a split depends on the order of its parts
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


def _check_metadata(path: Path, metadata: dict[str, Any] | None) -> None:
    for name, value in (metadata or {}).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{path}: metadata[{name!r}] is {type(value).__name__} {str(value)[:40]!r}, which JSON "
                f"cannot hold ({error}); wanted numbers, text, lists and mappings"
            ) from error


@check_keywords()
def load(
    path: str | os.PathLike[str],
    *,
    backbones: Mapping[str, type[Backbone]] | None = None,
    heads: Mapping[str, type[Head]] | None = None,
    level: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Model | Ensemble:
    """Load a model or ensemble from its file, in evaluation mode.

    A file names the classes that build the model, and cannot import any. Pass your own classes as arguments.

    Parameters
    ----------
    path : str or path-like
        A ``.safetensors`` file that `save` or `fit` wrote, or the folder of a run, see `model_file`. The name
        of a level may follow after an ``@``: ``"runs/both@r2scan"``.
    backbones, heads : mapping of str to type, optional
        Your own classes by the names that the file has for them: ``load(path, backbones={"SchNet":
        SchNet})``.
    level : str, optional
        Of a model of several levels of theory: the one to take, see `Model.at`. By default the model has all
        of them, and only a training takes it.
    device : {"auto", "cpu", "cuda", "cuda:1"}
        Device of the model, see `molequi.util.devices.as_device`; "auto" is CUDA if there is one.
    dtype : torch.dtype or str, optional
        Its precision, "float32" or "float64". By default the precision in which it was saved.

    Returns
    -------
    Model or Ensemble
        ``model.metadata`` is the metadata that was saved with it.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not written by molequi or of a newer format; if it names a class that
        was not passed; if its tensors do not fit the model, or are not finite numbers in float32 or float64.
    ModelError
        For a device that this machine does not have, for another dtype, and for a level that the model does
        not have or that is another one than that of the path.
    """
    place = as_device(device)
    level = chosen_level(path, level)
    path = model_file(path)
    header, tensors = read(path)
    tensors = _with_shared(path, header, tensors)
    check_sizes(path, header["model"], tensors)
    check_weights(path, tensors)
    try:
        ensemble = "members" in header["model"]
        several = LaplaceEnsemble if "directions" in header["model"] else Ensemble
        kind: type[Model] | type[Ensemble] = several if ensemble else Model
        model = kind.from_hparams(header["model"], backbones=backbones, heads=heads)
        model = model.to(tensors[next(name for name, _ in model.named_parameters())].dtype)
        missing, extra = _differences(model, tensors)
    except (MolequiError, TypeError, KeyError, ValueError, AttributeError, StopIteration) as error:
        raise CheckpointError(f"{path}: its description of the model cannot be built: {error}") from error
    if ensemble:
        check_members(path, header["model"]["members"], tensors)
    if missing or extra:
        raise CheckpointError(
            f"{path}: tensors do not fit the model it describes; missing {missing}, not wanted {extra}"
        )
    _check_tied(path, model, tensors)
    model.load_state_dict(tensors)
    model.metadata = header.get("metadata", {})
    if level is not None:
        model = _at(model, level, path)
    if dtype is not None:
        model = model.to(as_dtype(dtype))
    return model.to(place).eval()


def _at(model: Model | Ensemble, level: str, path: Path) -> Model:
    """The model of one level of a file."""
    if isinstance(model, Ensemble):
        raise ModelError(f"{path}: an ensemble, whose members have a single level; leave {level!r} out")
    try:
        return model.at(level)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a model file, checked against its digest and brought to the present format.

    Parameters
    ----------
    path : Path
        The file, or the folder of a run.

    Returns
    -------
    header : dict
        Description of the model, metadata, and the names of shared tensors.
    tensors : dict of str to Tensor
        Each tensor once, under its first name.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not written by molequi or of a newer format.
    """
    path = model_file(path)
    if _STATE.fullmatch(path.name):
        raise CheckpointError(
            f"{path}: the state from which a training goes on, no model; the model is beside it: "
            f"{path.parent / MODEL}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        other = zipfile.is_zipfile(path)  # as torch.save writes it
        raise CheckpointError(
            f"{path}: a file of torch, no model of molequi; for SevenNet, MACE, NequIP or SO3LR:\n"
            f"  molequi convert {path} {path.stem}.safetensors"
            if other
            else f"{path}: not a readable model file ({error}); it may be cut short or damaged"
        ) from error
    if "molequi.weights" in meta:
        raise CheckpointError(
            f"{path}: networks, or a model of them; read it with molequi.weights.load(path)"
        )
    if "molequi" not in meta or "sha256" not in meta:
        raise CheckpointError(
            f"{path}: a safetensors file, but not one that molequi wrote (no 'molequi' header)"
        )
    if digest(meta["molequi"], tensors) != meta["sha256"]:
        raise CheckpointError(
            f"{path}: its content does not match its SHA-256 digest; the file is damaged or was edited. "
            "Use an earlier copy"
        )
    header = _header(path, meta["molequi"])
    found = header["format"]
    if found > FORMAT:
        raise CheckpointError(
            f"{path}: written in format {found} by molequi {header.get('molequi')}; this version reads up to "
            f"{FORMAT}. Update molequi"
        )
    try:
        return upgrade(header, tensors)
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: its description of the model cannot be built: it is no description of format {found} "
            f"({error}); use an earlier copy"
        ) from error


def _header(path: Path, text: str) -> dict[str, Any]:
    """The header of a model file. Raises CheckpointError for one that is no description of a model."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its header is no JSON that describes a model ({str(error)[:80]}); "
            "make the file again with mq.save"
        ) from None
    number = header.get("format") if isinstance(header, dict) else None
    whole = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    described = isinstance(header, dict) and isinstance(header.get("model"), dict)
    if not whole or not described or not isinstance(header.get("metadata", {}), dict):
        found = (
            f"format {number!r}, model {type(header.get('model')).__name__}" if number else str(header)[:60]
        )
        raise CheckpointError(
            f"{path}: its description of the model cannot be built: its header has {found}; wanted a format "
            f"from 1 to {FORMAT}, 'model' and 'metadata' as mappings; make the file again with mq.save"
        )
    return cast(dict[str, Any], header)


def model_file(path: str | os.PathLike[str]) -> Path:
    """The model file that a path stands for.

    Parameters
    ----------
    path : str or path-like
        A model file; or a folder, such as that of a run, which stands for its ``model.safetensors``, or else
        for the only ``.safetensors`` file in it. A level of theory after an ``@`` is left out.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    CheckpointError
        If there is no such file or folder, and if the folder has no model or several.

    Examples
    --------
    >>> import tempfile
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H"], channels=8, layers=1), ["energy"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(model, f"{folder}/model.safetensors")
    ...     model_file(folder) == path
    True
    """
    path = split_level(path)[0]
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such file{_near(path)}; wanted a model, as molequi train writes it"
            + ("" if path.suffix or path.parent != Path() else _PUBLISHED)
        )
    models = [path / MODEL] if (path / MODEL).is_file() else sorted(path.glob("*.safetensors"))
    if len(models) == 1:
        return models[0]
    below = models or sorted(path.glob(f"*/{MODEL}"))
    if below:
        names = ", ".join(map(str, below[:8])) + (", …" if len(below) > 8 else "")
        raise CheckpointError(
            f"{path}: a folder {'with several models' if models else f'without {MODEL}'}; name one: {names}"
        )
    names = ", ".join(sorted(one.name for one in path.iterdir())[:8])
    raise CheckpointError(
        f"{path}: a folder without a model; found {names or 'nothing in it'}; wanted {MODEL}, which a "
        "training writes into the folder of its run: molequi train FILE"
    )


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a model by its name, or of a folder with a ``model.safetensors``.

    Parameters
    ----------
    path : str or path-like
        A path.
    """
    path = split_level(path)[0]
    return path.suffix == ".safetensors" or (path / MODEL).is_file()


def _near(path: Path) -> str:
    """Models near a path at which there is none."""
    folder = path.parent
    near = [*folder.glob("*.safetensors"), *folder.glob(f"*/{MODEL}")] if folder.is_dir() else []
    near = near or [*Path("runs").glob(f"*/{MODEL}")]
    return f", and there is {', '.join(map(str, sorted(near)[:4]))}" if near else ""


def check_order(function: str, model: object, structures: object) -> None:
    """Check that the model comes first and the structures second, if both are files.

    Parameters
    ----------
    function : str
        What the user called.
    model, structures : object
        Its first two arguments; anything that is no path passes.

    Raises
    ------
    ConfigError
        If only the second one is a model, see `is_model`.

    Examples
    --------
    >>> check_order("predict", "model.safetensors", "new.xyz")
    """
    paths = [Path(a) if isinstance(a, (str, os.PathLike)) else None for a in (model, structures)]
    first, second = paths
    if first and second and is_model(second) and not is_model(first):
        raise ConfigError(
            f"{function}: {first} comes first and {second} comes second, which is a model by its name; "
            f"wanted first the model, then the structures: {second} {first}"
        )


def digest(header: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the header and over names, types, shapes and bytes of all tensors.

    Parameters
    ----------
    header : str
        The header as JSON.
    tensors : dict of str to Tensor
        All tensors of the file, on the CPU.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    out = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        value = tensors[name]
        out.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        out.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


def _differences(model: Model | Ensemble, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    return (
        sorted(n for n in wanted if found.get(n) != wanted[n]),
        sorted(n for n in found if wanted.get(n) != found[n]),
    )


def _shared_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Further names of a tensor, each with the first one: the same memory, read in the same way."""
    first: dict[tuple[object, ...], str] = {}
    shared = {}
    for name, value in state.items():
        if not value.numel():  # empty tensors have no memory
            continue
        key = value.device, value.data_ptr(), value.dtype, value.shape, value.stride()
        if first.setdefault(key, name) != name:
            shared[name] = first[key]
    return shared


def _separate(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors for a file, each with its own memory, and the further names of those that have several."""
    shared = _shared_names(state)
    tensors: dict[str, Tensor] = {}
    taken = set()
    for name, value in state.items():
        if name in shared:
            continue
        value = value.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        # A view of another tensor, such as a slice, becomes a copy: safetensors refuses memory that overlaps.
        tensors[name] = value.clone() if memory in taken else value
        taken.add(memory)
    return tensors, shared


def _with_shared(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under all their names."""
    out = dict(tensors)
    shared = header.get("shared", {})
    if not isinstance(shared, dict) or not all(isinstance(first, str) for first in shared.values()):
        raise CheckpointError(
            f"{path}: its header has shared {str(shared)[:60]}; wanted names of tensors by name; make the "
            "file again with mq.save"
        )
    for name, first in shared.items():
        if first not in tensors or name in tensors:
            raise CheckpointError(
                f"{path}: {name!r} is said to share the tensor {first!r}, and the file has "
                f"{'both' if first in tensors else 'no such tensor'}; make the file again with mq.save"
            )
        out[name] = tensors[first]
    return out


def _check_tied(path: Path, model: Model | Ensemble, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError if the model has one tensor under two names for which the file has different
    values.
    """
    for name, first in _shared_names(model.state_dict()).items():
        a, b = (tensors[n].contiguous().reshape(-1).view(torch.uint8) for n in (name, first))
        if not torch.equal(a, b):
            raise CheckpointError(
                f"{path}: the model has one tensor as {first!r} and {name!r}, and the file has two different "
                "ones; load it with the class that it was saved with, in which the two are separate"
            )
