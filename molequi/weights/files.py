"""Files of networks and of models of them: safetensors with JSON, nothing that could run."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from molequi.checkpoint import digest
from molequi.errors import CheckpointError, ModelError, MolequiError
from molequi.util.files import write_atomically
from molequi.util.signature import check_keywords
from molequi.weights.architecture import Architecture
from molequi.weights.labelled import LabelledNetworks, fitted_digits
from molequi.weights.model import WeightModel
from molequi.weights.networks import Networks

FORMAT = 2
_OF = {"LabelledNetworks": 2}  # the format that is needed to read a kind; 1 for others
_HEADER = "molequi.weights"
_LABEL = "label."


def save(what: WeightModel | Networks | LabelledNetworks, path: str | os.PathLike[str]) -> Path:
    """Write a model of weights, or a batch of networks, perhaps with labels, as one ``.safetensors`` file.

    Parameters
    ----------
    what : WeightModel, Networks or LabelledNetworks
        What is written.
    path : path
        Ends in ``.safetensors``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    CheckpointError
        If the file cannot be written.
    ModelError
        For something else.

    Examples
    --------
    >>> import tempfile
    >>> nets = Networks.random(Architecture((2, 8, 1)), 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load(save(nets, f"{folder}/nets.safetensors"))
    3 networks 2-8-1, sine
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: wanted a name that ends in .safetensors")
    if isinstance(what, WeightModel):
        config, tensors = what.config(), dict(what.state_dict())
    elif isinstance(what, (Networks, LabelledNetworks)):
        labels = what.labels if isinstance(what, LabelledNetworks) else {}
        networks = what.networks if isinstance(what, LabelledNetworks) else what
        config = _described(networks.architecture)
        tensors = {f"weights.{k}": w for k, w in enumerate(networks.weights)}
        tensors |= {f"biases.{k}": b for k, b in enumerate(networks.biases)}
        tensors |= {f"{_LABEL}{name}": values for name, values in labels.items()}
    else:
        raise ModelError(
            f"{path}: found {type(what).__name__}; wanted a WeightModel, Networks or LabelledNetworks. For "
            "models of molecules: mq.save"
        )
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    kind = type(what).__name__
    text = json.dumps({"format": _OF.get(kind, 1), "kind": kind, "config": config})
    header = {_HEADER: text, "sha256": digest(text, tensors)}
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error
    return path


def load(path: str | os.PathLike[str]) -> Any:
    """Read what `save` wrote.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    WeightModel, Networks or LabelledNetworks
        A model is in evaluation mode, on the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of a newer format, or of something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable file ({error}); it may be cut short or damaged"
            if os.path.exists(path)
            else f"{path}: no such file; wanted networks or a model of them (molequi.weights.save)"
        ) from error
    text = meta.get(_HEADER)
    if text is None:
        raise CheckpointError(
            f"{path}: no file of molequi.weights. Models of molecules: mq.load(path), and the perceptrons in "
            "them: molequi.weights.mlps_of(model)"
        )
    if digest(text, tensors) != meta.get("sha256"):
        raise CheckpointError(f"{path}: its content does not match its SHA-256 digest; use an earlier copy")
    header = json.loads(text)
    if header["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: written in format {header['format']}; this version reads up to {FORMAT}"
        )
    try:
        return _built(header["kind"], header["config"], tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, MolequiError) as error:
        raise CheckpointError(
            f"{path}: its description cannot be built ({error}); use an earlier copy"
        ) from error


@check_keywords()
def read_networks(path: str | os.PathLike[str]) -> LabelledNetworks:
    """Read networks with labels from a file that `molequi.weights.save` wrote; in run files ``networks``.

    Parameters
    ----------
    path : path
        The file.

    Raises
    ------
    CheckpointError
        If it cannot be read, or is a file of something else.
    """
    found = load(path)
    if not isinstance(found, LabelledNetworks):
        raise CheckpointError(
            f"{path}: found {type(found).__name__} without labels; write both with "
            'weights.save(LabelledNetworks(networks, {"kind": labels}), path)'
        )
    return found


READERS = {"networks": read_networks, "digits": fitted_digits}


def _described(architecture: Architecture) -> dict[str, object]:
    return {
        "sizes": list(architecture.sizes),
        "activation": architecture.activation,
        "activate_last": architecture.activate_last,
    }


def _built(
    kind: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> WeightModel | Networks | LabelledNetworks:
    architecture = Architecture(
        **{name: config.pop(name) for name in ("sizes", "activation", "activate_last")}
    )
    if kind in ("Networks", "LabelledNetworks"):
        maps = range(len(architecture.layers))
        networks = Networks(
            architecture,
            tuple(tensors[f"weights.{k}"] for k in maps),
            tuple(tensors[f"biases.{k}"] for k in maps),
        )
        names = [name for name in tensors if name.startswith(_LABEL)]
        labels = {name.removeprefix(_LABEL): tensors[name] for name in sorted(names)}
        return networks if kind == "Networks" else LabelledNetworks(networks, labels)
    model = WeightModel(architecture, **config)
    first = next(value for value in tensors.values() if value.is_floating_point())
    model.to(first.dtype).load_state_dict(tensors)
    return model.eval()
