"""Constraint relaxation as a training aid: a model that may break its symmetry on the way and has it exactly at the end.

Relaxed layers (`molequi.nn.relaxed`) are trained with θ_t of their free paths rising from 0 to 1 up to the middle of the training and falling
back to 0 at its end, and with a penalty on these paths (Pertigkiozoglou et al. 2024, arXiv 2408.13242).
"""

import math

import torch
from torch import Tensor, nn

from molequi.errors import ConfigError
from molequi.model import Model
from molequi.nn.relaxed import relaxed_layers, set_theta
from molequi.ops import safe


class Relaxation:
    """θ_t and λ Σ_layers (‖W dρ - dρ W‖ + ‖W x‖) with W the free path, gate included and θ_t not.

    The free path of our layers is orthogonal to the equivariant maps, where the root mean square of the first norm over random rotations is
    √2 ‖W‖; the second is ‖W‖ for inputs x of order one, as those of layers are. So both together are (1 + √2) ‖W‖.
    """

    def __init__(self, weight: float):
        self.weight = weight

    @staticmethod
    def theta(done: float) -> float:
        """θ after this part of the training: 0 → 1 → 0, along straight lines."""
        return max(0.0, 1.0 - abs(2.0 * done - 1.0))

    def set(self, model: nn.Module, done: float) -> None:
        set_theta(model, self.theta(done))

    def penalty(self, model: nn.Module) -> Tensor:
        """λ (1 + √2) Σ_layers ‖W‖, float64, with zero gradient where W is zero."""
        norms = [
            safe.norm(
                torch.cat(
                    [
                        (layer.c * p).double().flatten()
                        for group in layer.free_groups().values()
                        for p in group
                    ]
                )
            )
            for _, layer in relaxed_layers(model)
            if any(layer.free_groups().values())
        ]
        return self.weight * (1 + math.sqrt(2)) * torch.stack(norms).sum()


def check_relaxation(weight: float | None, model: Model, patience: int | None, where: str = "relax") -> None:
    """Raises ConfigError where there is nothing to relax, or the training might end before θ is back at zero."""
    if weight is None:
        return
    if not any(any(layer.free_groups().values()) for _, layer in relaxed_layers(model)):
        raise ConfigError(
            f"{where}={weight}: {type(model.backbone).__name__} has no relaxed layers whose constraints could be; take a backbone that "
            "has, such as RelaxedEGNN, or leave relax away"
        )
    if patience is not None:
        raise ConfigError(
            f"{where}={weight} and patience={patience}: relaxed constraints are tight again only at the planned end of a "
            "training, which patience may cut off; leave patience away"
        )
