"""Model files of earlier formats, brought to the present one step by step."""

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from molequi.util.digests import weights_digest

Header = dict[str, Any]
Tensors = dict[str, Tensor]

FORMAT = 7


def _to_2(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """Format 2 added options of heads and backbones; their defaults are what format 1 meant."""
    return header, tensors


def _to_3(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """Format 3 added ensembles and left single models as they were."""
    return header, tensors


def _to_4(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """Format 4 renamed some tensors, and the symmetry card to symmetry report.

    It added ``inputs`` of backbones, and index symmetry and the factor of gradients of quantities.
    """
    renamed = {_tensor_name_4(name): value for name, value in tensors.items()}
    metadata = dict(header.get("metadata") or {})
    if "card" in metadata:
        metadata["symmetry_report"] = metadata.pop("card")
    metadata = _report_of(renamed, metadata, tensors)
    model = dict(header.get("model") or {})
    if "options" in model:  # without them it is no description, which is said where it is built
        model["options"] = _options_4(model["options"])
    if "predict" in model:
        model["predict"] = [
            entry | {"quantity": upgrade_quantity(entry["quantity"])}
            if "head" in entry
            else upgrade_quantity(entry)
            for entry in model["predict"]
        ]
    return header | {"metadata": metadata, "model": model}, renamed


def _to_5(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """Format 5 added couplings to the messages of GauntACE; older models have radial functions of zero."""
    model = header.get("model") or {}
    options = model.get("options") or {}
    sizes = [options.get(name) for name in ("l_hidden", "l_max", "channels")]
    known = [size for size in sizes if isinstance(size, int)]
    if model.get("backbone") != "GauntACE" or len(known) < len(sizes):
        return header, tensors  # what lacks options is no description, which is said where it is built
    l_hidden, l_max, channels = known
    if not (0 <= l_hidden <= _DEGREES and 0 <= l_max <= _DEGREES and 0 < channels <= _most(tensors)):
        raise ValueError(f"l_hidden, l_max and channels are {known}, for which the file has too few weights")
    # min(l', L) couplings for each pair of degrees above 0; l' = L had one of them before.
    added = sum(min(l1, l2) for l1 in range(1, l_hidden + 1) for l2 in range(1, l_max + 1)) - l_hidden
    new = {
        name: nn.functional.pad(value, (0, 0, 0, added * channels)) if _RADIAL_5.search(name) else value
        for name, value in tensors.items()
    }
    return header | {"metadata": _report_of(new, header.get("metadata"), tensors)}, new


_DEGREES = 20  # more than any model has


def _most(tensors: Tensors) -> int:
    return sum(value.numel() for value in tensors.values())


_RADIAL_5 = re.compile(r"\bbackbone\.layers\.[1-9]\d*\.gather\.radial\.weight$")


def _report_of(new: Tensors, metadata: Header | None, old: Tensors) -> Header:
    """The metadata, whose symmetry report belongs to the new weights if it belonged to the old ones."""
    metadata = dict(metadata or {})
    report = metadata.get("symmetry_report")
    if isinstance(report, dict) and report.get("weights") == weights_digest(old):
        metadata["symmetry_report"] = report | {"weights": weights_digest(new)}
    return metadata


_INPUTS_4 = ("charge", "spin", "velocity", "node_features", "edge_features", "node_vectors")


def _options_4(options: dict[str, Any]) -> dict[str, Any]:
    moved = {name: options[name] for name in _INPUTS_4 if name in options}
    return {name: value for name, value in options.items() if name not in moved} | {"inputs": moved}


def upgrade_quantity(entry: dict[str, Any]) -> dict[str, Any]:
    """Upgrade the description of a quantity in model files of formats 1 to 3 and in older npz files.

    There a tensor of rank 2 was always symmetric. A gradient with respect to positions had a minus sign, and
    a gradient with respect to strain was divided by the volume.

    Parameters
    ----------
    entry : dict
        Arguments of `Quantity`; earlier ones lack ``"symmetry"``.

    Returns
    -------
    dict
        Arguments of the present `Quantity`.
    """
    if "symmetry" in entry:
        return entry
    new = entry | {"symmetry": "ij=ji" if entry.get("rank", 0) == 2 else ""}
    if entry.get("gradient_of") is None:
        return {name: value for name, value in new.items() if name != "wrt"}
    return new | ({"per_volume": True} if entry.get("wrt") == "strain" else {"factor": -1.0})


def _tensor_name_4(name: str) -> str:
    # Tables of heads: "heads.energy.isolated", in an ensemble "members.0.heads.energy.isolated".
    return f"{name.removesuffix('isolated')}reference_energies" if name.endswith(".isolated") else name


def _to_6(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """Format 6 added Laplace approximations of last layers; what there was before is as it was."""
    return header, tensors


def _to_7(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """Format 7 added a bound of velocities of flows; older ones have none."""
    model = header.get("model") or {}
    if not isinstance(model.get("predict"), list):  # which is said where the model is built
        return header, tensors
    predict = [
        entry | {"options": {"farthest": None} | (entry.get("options") or {})}
        if isinstance(entry, dict) and entry.get("head") == "Velocity"
        else entry
        for entry in model["predict"]
    ]
    return header | {"model": model | {"predict": predict}}, tensors


_Step = Callable[[Header, Tensors], tuple[Header, Tensors]]
_STEPS: dict[int, _Step] = {1: _to_2, 2: _to_3, 3: _to_4, 4: _to_5, 5: _to_6, 6: _to_7}


def upgrade(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """Upgrade a model file of any earlier format to the present one.

    Parameters
    ----------
    header : dict
        Header of a model file, with its number under ``"format"``.
    tensors : dict of str to Tensor
        Tensors of the file.

    Returns
    -------
    tuple of dict and dict
        Both in format `FORMAT`.
    """
    while header["format"] < FORMAT:
        number = header["format"]
        header, tensors = _STEPS[number](header, tensors)
        header = header | {"format": number + 1}
    return header, tensors
