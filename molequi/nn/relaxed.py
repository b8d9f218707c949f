"""Layers that are equivariant as far as they are told to be: gates on an invariant, an equivariant and a free path.

    W = a W_inv + b W_eq + θ c W_free

The free path lies orthogonal to the equivariant maps (it is what a projection on these would take away), so that its share says how far
the layer is from the symmetry. Learning the dial: van der Ouderaa et al. 2022 (arXiv 2204.07178); θ: Pertigkiozoglou et al. 2024
(arXiv 2408.13242).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from molequi.errors import ModelError

GATES = (1.0, 1.0, 0.1)      # a, b, c of a new layer. With c = 0 its free weights would have no gradient in the first step


class Relaxed(ABC, nn.Module):
    """A layer with gates a, b, c (one number each, learned) and θ, a buffer that is 1 unless `set_theta` changes it.

    c = 0 or θ = 0: exactly equivariant; (1, 0, 0): invariant. A subclass calls `open` when it is built.
    """

    a: nn.Parameter
    b: nn.Parameter
    c: nn.Parameter
    theta: Tensor

    def open(self, gates: Sequence[float]) -> None:
        """Make the gates."""
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(float(g))) for g in gates)
        self.register_buffer("theta", torch.tensor(1.0))

    @property
    def free(self) -> Tensor:
        """θ c, what the free path is multiplied by."""
        return self.theta * self.c

    @abstractmethod
    def free_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters in which the free path is linear, by the irrep that they add to: all zero in an equivariant layer."""


def relaxed_layers(model: nn.Module) -> Iterator[tuple[str, Relaxed]]:
    """Names and layers that have gates, in the order of `model.named_modules()`."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Relaxed))


def free_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The free parameters of all layers by layer and irrep: {"backbone.layers.0/1o": [...], ...}; empty for a strict model."""
    return {f"{name}/{irrep}" if name else irrep: parameters
            for name, layer in relaxed_layers(model) for irrep, parameters in layer.free_groups().items()}


def set_theta(model: nn.Module, value: float) -> None:
    """θ of all relaxed layers; 0 makes the model exactly equivariant, whatever its gates are. Raises ModelError if it has no such layer."""
    layers = [layer for _, layer in relaxed_layers(model)]
    if not layers:
        raise ModelError(f"{type(model).__name__} has no relaxed layers, whose theta could be set; take RelaxedEGNN or RelaxedNequIP")
    for layer in layers:
        layer.theta.fill_(value)


def is_strict(model: nn.Module) -> bool:
    """Whether θ is zero in all relaxed layers, so that nothing of the free paths is left."""
    return all(float(layer.theta) == 0.0 for _, layer in relaxed_layers(model))
