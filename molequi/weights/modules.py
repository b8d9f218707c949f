"""Read multilayer perceptrons from modules of PyTorch."""

import torch
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.weights.architecture import ACTIVATIONS, Architecture, Sine

_IGNORED = (nn.Dropout, nn.Identity)  # of a trained network, in evaluation


def _steps(module: nn.Module) -> list[nn.Module]:
    """The layers of a perceptron, without those that do nothing in evaluation."""
    while not isinstance(module, (nn.Sequential, nn.Linear)):
        children = list(module.children())
        if len(children) != 1:
            raise ModelError(
                f"{type(module).__name__} with {len(children)} parts: wanted nn.Sequential of linear maps "
                "and activations. Networks inside a model: molequi.weights.mlps_of(model)"
            )
        module = children[0]
    steps: list[nn.Module] = []
    for step in module if isinstance(module, nn.Sequential) else [module]:
        if isinstance(step, nn.Sequential):
            steps += _steps(step)
        elif not isinstance(step, _IGNORED):
            steps.append(step)
    return steps


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
        An ``nn.Sequential`` of linear maps and activations, or a module with one such child.

    Raises
    ------
    ModelError
        For other layers.
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
    return repr(step).replace("inplace=True", "")
