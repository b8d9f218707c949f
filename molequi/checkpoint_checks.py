"""Checks of what a model file holds, before a model is built from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molequi.errors import CheckpointError


def check_sizes(path: Path, description: Any, tensors: Mapping[str, Tensor]) -> None:
    """Check the numbers in a description, before anything is built from it.

    Layers, channels and members all have weights. Without this check a few bytes could fill the memory.

    Parameters
    ----------
    path : Path
        The file, for messages.
    description : object
        The description of the model.
    tensors : mapping of str to Tensor
        All tensors of the file.

    Raises
    ------
    CheckpointError
        For a number that no model of these tensors can have.
    """
    most = max(sum(value.numel() for value in tensors.values()), 1000)
    waiting: list[tuple[str, Any]] = [("model", description)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}", one) for key, one in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{name}.{k}", one) for k, one in enumerate(value)]
        elif isinstance(value, int) and abs(value) > most:
            raise CheckpointError(
                f"{path}: {name} is {value}, and the file has {most} weights in all; no such model was "
                "saved; make the file again with mq.save"
            )


def check_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check the precision and the values of the weights.

    Parameters
    ----------
    path : Path
        The file, for messages.
    tensors : mapping of str to Tensor
        All tensors of the file.

    Raises
    ------
    CheckpointError
        For weights in another precision than float32 and float64, or that are not finite.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
            raise CheckpointError(
                f"{path}: {name} is {str(value.dtype).removeprefix('torch.')}; wanted float32 or float64: "
                "save the model in one of them, model.float()"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: {name} has {int((~torch.isfinite(value)).sum())} of {value.numel()} numbers that "
                "are not finite, so that every prediction would be NaN; use an earlier file, or train "
                "again with a smaller learning rate"
            )


def check_members(path: Path, count: int, tensors: dict[str, Tensor]) -> None:
    """Check that each member of an ensemble has weights.

    Parameters
    ----------
    path : Path
        The file, for messages.
    count : int
        Number of members.
    tensors : mapping of str to Tensor
        All tensors of the file.

    Raises
    ------
    CheckpointError
        If some have none; the message has their numbers.
    """
    there = {
        int(name.split(".")[1])
        for name in tensors
        if name.startswith("members.") and name.split(".")[1].isdecimal()
    }
    lost = sorted(set(range(count)) - there)
    if lost:
        raise CheckpointError(
            f"{path}: an ensemble of {count}, and member {', '.join(map(str, lost))} (counted from 0) is "
            "missing from the file; make the file again from models that are whole"
        )
