"""Constraint annealing: a model that may break its symmetry during training and has it exactly at the end.

Relaxed layers (`molequi.nn.relaxed`) are trained with θ_t of their free paths rising from 0 to 1 up to the middle of the training and falling
back to 0 at its end, and with a penalty on these paths (Pertigkiozoglou et al. 2024, arXiv 2408.13242).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from molequi.errors import ConfigError
from molequi.hooks import Batch, Hook, Penalty, Plan, Run
from molequi.model import Model
from molequi.nn.relaxed import relaxed_layers, set_theta
from molequi.ops import safe
from molequi.util.options import Options


@dataclass(frozen=True)
class ConstraintAnnealing(Hook, Options):
    """A term of a training that loosens the constraints of a relaxed backbone up to the middle and tightens them up to the end.

    The penalty is λ Σ_layers (‖W dρ - dρ W‖ + ‖W x‖) with W the free path, gate included and θ_t not. The free path of
    our layers is orthogonal to the equivariant maps, where the root mean square of the first norm over random rotations is
    √2 ‖W‖; the second is ‖W‖ for inputs x of order one, as those of layers are. So both together are (1 + √2) ‖W‖. The result is
    exactly equivariant, and so is all that is validated. The history has θ_t in ``constraint_annealing_theta``.

    Parameters
    ----------
    weight : float, >= 0
        λ.
    """

    weight: Annotated[float, Ge(0)]

    shorthand: ClassVar[str] = "weight"

    @staticmethod
    def theta(done: float) -> float:
        """θ after this part of the training: 0 → 1 → 0, along straight lines."""
        return max(0.0, 1.0 - abs(2.0 * done - 1.0))

    def check(self, model: Model, plan: Plan, where: str) -> None:
        """Raise ConfigError where there are no relaxed layers, or the training might end before θ is back at zero."""
        if not any(any(layer.free_groups().values()) for _, layer in relaxed_layers(model)):
            raise ConfigError(
                f"{where}: {type(model.backbone).__name__} has no relaxed layers, whose constraints could be annealed; take a "
                "backbone that has, such as RelaxedEGNN, or leave ConstraintAnnealing out"
            )
        if plan.patience is not None:
            raise ConfigError(
                f"{where}: ConstraintAnnealing and validation.patience={plan.patience}: constraints are tight again only at the "
                "planned end of a training, which patience may cut off; leave patience out"
            )

    def record(self) -> dict[str, Any]:
        """The weight."""
        return {"weight": self.weight}

    def before_step(self, run: Run) -> None:
        """Set θ."""
        set_theta(run.model, self.theta(run.done()))

    def penalty(self, run: Run, batch: Batch) -> Penalty:
        """The part of the penalty of this device."""
        total = self.norms(run.model) / run.share[1]
        return Penalty(total, {"penalty": total})

    def before_validation(self, run: Run) -> None:
        """Tighten the constraints, so that what is best is best without their help."""
        set_theta(run.model, 0.0)

    def epoch_values(self, run: Run) -> dict[str, float]:
        """θ at the end of the epoch."""
        return {"theta": self.theta(run.done())}

    def norms(self, model: nn.Module) -> Tensor:
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
