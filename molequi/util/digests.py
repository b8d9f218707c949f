"""SHA-256 digests of what must not change unnoticed."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values; the same in float32 and in the float64 that it is widened to.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        The state of a model, as ``model.state_dict()`` gives it.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    out = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        out.update(f"{name} {tuple(value.shape)}".encode())
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value.long()
        out.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()
