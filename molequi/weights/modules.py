"""Read multilayer perceptrons from modules of PyTorch."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.weights.architecture import ACTIVATIONS, Architecture, Sine

_IGNORED = (nn.Dropout, nn.Identity)  # of a trained network, in evaluation


def _steps(module: nn.Module) -> list[nn.Module]:
    """The layers of a perceptron, without those that do nothing in evaluation."""
    if not isinstance(module, (nn.Sequential, nn.Linear)):
        raise ModelError(
            f"{type(module).__name__}: wanted nn.Sequential of linear maps and activations. If m.net is one "
            "and m(x) is m.net(x): [m.net for m in modules]. Networks inside a model: "
            "molequi.weights.mlps_of(model)"
        )
    _check_plain(module)
    steps: list[nn.Module] = []
    for step in module if isinstance(module, nn.Sequential) else [module]:
        if isinstance(step, nn.Sequential):
            steps += _steps(step)
        elif type(step) not in _IGNORED:
            _check_plain(step)
            steps.append(step)
    return steps


def _check_plain(module: nn.Module) -> None:
    """What is computed is what the type says."""
    name = type(module).__name__
    for kind in (nn.Sequential, nn.Linear):
        if isinstance(module, kind) and type(module).forward is not kind.forward:
            raise ModelError(f"{name} has its own forward; wanted that of nn.{kind.__name__}")
    if module._forward_hooks or module._forward_pre_hooks:
        raise ModelError(f"{name} has hooks, which may change what it computes; remove them")


def linear_maps(module: nn.Module) -> list[tuple[nn.Linear, float]]:
    """Each linear map of a perceptron, and ω of the sine that follows it.

    Parameters
    ----------
    module : nn.Module
        The perceptron.
    """
    steps = _steps(module)
    out = []
    for k, step in enumerate(steps):
        after = steps[k + 1] if k + 1 < len(steps) else None
        if isinstance(step, nn.Linear):
            out.append((step, after.omega if isinstance(after, Sine) else 1.0))
    return out


def read_module(module: nn.Module) -> tuple[Architecture, list[Tensor], list[Tensor]]:
    """Architecture, weights and biases of a perceptron.

    Parameters
    ----------
    module : nn.Module
        An ``nn.Sequential`` of linear maps and activations.

    Raises
    ------
    ModelError
        For other layers, and for those that compute something else than their kind: a ``forward`` of their
        own, or hooks.
    """
    steps, maps = _steps(module), linear_maps(module)
    names = []
    for k, step in enumerate(steps):
        if isinstance(step, nn.Linear) != (k % 2 == 0):
            raise ModelError(
                f"layer {k} of the network is {type(step).__name__}; wanted linear maps and activations in "
                "turn"
            )
        if k % 2:
            name = next(
                (
                    n
                    for n, kind in ACTIVATIONS.items()
                    if type(step) is type(kind()) and (n == "sine" or _settings(step) == _settings(kind()))
                ),
                None,
            )
            if name is None:
                raise ModelError(
                    f"layer {k} of the network, {step}: wanted one of {', '.join(ACTIVATIONS)} with default "
                    "settings"
                )
            names.append(name)
    if len(set(names)) != 1:
        raise ModelError(f"activations {', '.join(dict.fromkeys(names)) or 'none'}: wanted one kind")
    sizes = (maps[0][0].in_features, *(layer.out_features for layer, _ in maps))
    weights = [layer.weight.detach() * omega for layer, omega in maps]
    biases = [
        torch.zeros_like(layer.weight[:, 0]).detach() if layer.bias is None else layer.bias.detach() * omega
        for layer, omega in maps
    ]
    return Architecture(sizes, names[0], len(steps) % 2 == 0), weights, biases


def _settings(step: nn.Module) -> str:
    return repr(step).replace(", inplace=True", "").replace("inplace=True", "")


def read_state(
    state: Mapping[str, Tensor], activation: str, activate_last: bool, where: str
) -> tuple[Architecture, list[Tensor], list[Tensor]]:
    """Architecture, weights and biases of a state dict.

    Parameters
    ----------
    state : mapping of str to Tensor
        Weights and biases of linear maps.
    activation : str
        The function between them.
    activate_last : bool
        Whether it follows the last one.
    where : str
        The state dict, for messages.

    Raises
    ------
    ModelError
        For other names and shapes, and if the order of the maps is lost.
    """
    maps = [n.removesuffix("weight") for n in state if n == "weight" or n.endswith(".weight")]
    known = {name + part for name in maps for part in ("weight", "bias")}
    other = [n for n in state if n not in known]
    other += [n + "weight" for n in maps if state[n + "weight"].ndim != 2]
    if other or not maps:
        raise ModelError(
            f"{where}: {', '.join(other) or 'empty'}; wanted weights (out, in) and biases of linear maps "
            "alone, named …weight and …bias"
        )
    maps = _in_order(maps, list(state), where)
    weights = [state[n + "weight"].detach() for n in maps]
    biases = [
        state[n + "bias"].detach() if n + "bias" in state else torch.zeros_like(w[:, 0])
        for n, w in zip(maps, weights)
    ]
    for k, (name, w, b) in enumerate(zip(maps, weights, biases)):
        if k and w.shape[1] != len(weights[k - 1]):
            raise ModelError(
                f"{where}: {name}weight has the shape {tuple(w.shape)}; the map before it, "
                f"{maps[k - 1]}weight, has {len(weights[k - 1])} outputs"
            )
        if tuple(b.shape) != (len(w),):
            raise ModelError(f"{where}: {name}bias has the shape {tuple(b.shape)}; wanted ({len(w)},)")
    sizes = (weights[0].shape[1], *(len(w) for w in weights))
    return Architecture(sizes, activation, activate_last), weights, biases


def _in_order(maps: list[str], names: list[str], where: str) -> list[str]:
    """Names that differ only in numbers by these, in the places that they have."""
    kinds: dict[str, list[str]] = {}
    for name in maps:
        kinds.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    # A module lists weights before biases; a file lists names by the alphabet.
    if len(kinds) > 1 and names == sorted(names) and any(n.endswith("bias") for n in names):
        raise ModelError(
            f"{where}: the maps {', '.join(n.rstrip('.') for n in maps)} are sorted by name, as files of "
            "safetensors give them, and their order in the network is not known; pass a dict in the order of "
            "the network"
        )
    ordered = {
        kind: iter(sorted(some, key=lambda n: [int(k) for k in re.findall(r"\d+", n)]))
        for kind, some in kinds.items()
    }
    return [next(ordered[re.sub(r"\d+", "#", name)]) for name in maps]
