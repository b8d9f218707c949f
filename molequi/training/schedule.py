"""How the learning rate changes, and the running average of the weights."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch.optim.swa_utils import get_ema_multi_avg_fn

from molequi.model import Model
from molequi.training.options import Schedule


class LearningRate:
    """The factor by which a `Schedule` multiplies the learning rate.

    Parameters
    ----------
    schedule : Schedule
        The options.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.name, self.warmup = schedule.name, schedule.warmup
        self.floor = 0.01 if schedule.floor is None else schedule.floor
        self.factor = 0.5 if schedule.factor is None else schedule.factor
        self.patience = 10 if schedule.patience is None else schedule.patience
        self.level, self.lowest, self.waited = 1.0, math.inf, 0

    def __call__(self, epochs: float, done: float) -> float:
        """The factor after `epochs` epochs (with fractions) and a part `done` of the training."""
        rise = min(1.0, epochs / self.warmup) if self.warmup else 1.0
        fall = {
            "cosine": (1 + math.cos(math.pi * min(done, 1.0))) / 2,
            "plateau": self.level,
            "constant": 1.0,
        }[self.name]
        return rise * max(fall, self.floor)

    def measured(self, loss: float) -> None:
        """Take a validation loss into account.

        Parameters
        ----------
        loss : float
            The loss.
        """
        if loss < self.lowest:
            self.lowest, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.level, self.waited = self.level * self.factor, 0

    def state(self) -> dict[str, float]:
        """Return what changes during a training."""
        return {"level": self.level, "lowest": self.lowest, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Parameters
        ----------
        state : Mapping
            What `state` returned.
        """
        self.level, self.lowest, self.waited = state["level"], state["lowest"], state["waited"]


class Average:
    """Exponential average of the weights, w̄ ← d w̄ + (1 - d) w.

    It generalises better than the last weights. The decay d grows with the number n of steps, (1 + n) / (10 +
    n), up to `decay`, so that the average soon forgets the first weights.

    Parameters
    ----------
    model : Model
        The model that is trained.
    decay : float
        The largest decay.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self._pairs = [*zip(self.model.parameters(), model.parameters())]
        self._buffers = [*zip(self.model.buffers(), model.buffers())]

    def update(self, step: int) -> None:
        """Take the present weights into the average.

        Parameters
        ----------
        step : int
            Number of the step that is done, from 1.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = zip(*self._pairs)
        get_ema_multi_avg_fn(decay)(list(averaged), list(current), step)

    def ready(self) -> Model:
        """The averaged model, with the present buffers."""
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
        return self.model
