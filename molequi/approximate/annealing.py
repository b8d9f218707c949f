"""Constraint annealing: a model whose equivariance is relaxed during the training and exact at its end.

Relaxed layers (`molequi.nn.relaxed`) multiply their free paths by θ. It rises from 0 to 1 in the first half
of the training and falls back to 0 in the second, and a penalty keeps the free paths small (Pertigkiozoglou
et al. 2024, arXiv 2408.13242).
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
from molequi.util.signature import check_keywords


@check_keywords()
@dataclass(frozen=True)
class ConstraintAnnealing(Hook, Options):
    """A term of a training that relaxes equivariance during the training and restores it at the end.

    The penalty is ``λ Σ_layers (‖W dρ - dρ W‖ + ‖W x‖)``, with W the free path including its gate c, but not
    θ. The free path of our layers is orthogonal to the equivariant maps. There the root mean square of the
    first norm over random rotations is ``√2 ‖W‖``. The second norm is ``‖W‖`` for inputs x of order one, as
    layers have. So the penalty is ``λ (1 + √2) Σ_layers ‖W‖``.

    The result is exactly equivariant, and so is the model in each validation. The history has θ in the column
    ``constraint_annealing_theta``.

    Parameters
    ----------
    weight : float, >= 0
        λ.

    Examples
    --------
    >>> ConstraintAnnealing(0.01).theta(0.25)
    0.5
    """

    weight: Annotated[float, Ge(0)]

    shorthand: ClassVar[str] = "weight"

    @staticmethod
    def theta(done: float) -> float:
        """θ at some point of the training: 0 → 1 → 0, linear in both halves.

        Parameters
        ----------
        done : float
            The part of the training that is done, from 0 to 1.
        """
        return max(0.0, 1.0 - abs(2.0 * done - 1.0))

    def check(self, model: Model, plan: Plan, where: str) -> None:
        """Check that there are constraints to relax, and that the training does not stop early.

        Parameters
        ----------
        model : Model
            The model.
        plan : Plan
            Options of the training.
        where : str
            Beginning of error messages.

        Raises
        ------
        ConfigError
            If the model has no relaxed layers. Also with ``validation.patience``, because θ is zero again
            only at the planned end.
        """
        if not any(any(layer.free_groups().values()) for _, layer in relaxed_layers(model)):
            raise ConfigError(
                f"{where}: {type(model.backbone).__name__} has no relaxed layers, whose constraints could be "
                "annealed; take a backbone that has, such as RelaxedEGNN, or leave ConstraintAnnealing out"
            )
        if plan.patience is not None:
            raise ConfigError(
                f"{where}: ConstraintAnnealing and validation.patience={plan.patience}: the constraints hold "
                "again only at the planned end of a training, and patience may stop it earlier; leave "
                "patience out"
            )

    def record(self) -> dict[str, Any]:
        """The weight."""
        return {"weight": self.weight}

    def before_step(self, run: Run) -> None:
        """Set θ for the step.

        Parameters
        ----------
        run : Run
            The training.
        """
        set_theta(run.model, self.theta(run.done()))

    def penalty(self, run: Run, batch: Batch) -> Penalty:
        """The part of the penalty of this device.

        Parameters
        ----------
        run : Run
            The training.
        batch : Batch
            Not used: the penalty depends on the weights alone.
        """
        total = self.norms(run.model) / run.share[1]
        return Penalty(total, {"penalty": total})

    def before_validation(self, run: Run) -> None:
        """Set θ to zero, so that the best model is chosen among exactly equivariant ones.

        Parameters
        ----------
        run : Run
            The training.
        """
        set_theta(run.model, 0.0)

    def epoch_values(self, run: Run) -> dict[str, float]:
        """θ at the end of the epoch.

        Parameters
        ----------
        run : Run
            The training.
        """
        return {"theta": self.theta(run.done())}

    def norms(self, model: nn.Module) -> Tensor:
        """The penalty ``λ (1 + √2) Σ_layers ‖W‖``; its gradient is zero where W is zero.

        Parameters
        ----------
        model : nn.Module
            The relaxed model.

        Returns
        -------
        Tensor, shape (), float64
        """
        norms = []
        for _, layer in relaxed_layers(model):
            free = [p for group in layer.free_groups().values() for p in group]
            if free:
                norms.append(safe.norm(torch.cat([(layer.c * p).double().flatten() for p in free])))
        return self.weight * (1 + math.sqrt(2)) * torch.stack(norms).sum()
