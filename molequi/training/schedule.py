"""How the learning rate changes, and the running average of the weights."""

import copy
import math
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Name = Literal["cosine", "plateau", "constant"]


@dataclass
class Schedule:
    """Factor on the learning rate: it rises linearly over `warmup` epochs, and then

    cosine: falls as (1 + cos πx) / 2 with x the part of the training that is done, by epochs or by time, whichever is
    further;
    plateau: is multiplied by `factor` when the validation loss has not fallen for `patience` epochs in which it was
    measured;
    constant: stays. It never falls below `floor`.
    """

    name: Name
    warmup: float = 0.0
    factor: float = 0.5
    patience: int = 10
    floor: float = 0.01
    level: float = 1.0
    lowest: float = math.inf
    waited: int = 0

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
        """Tell of a validation loss."""
        if loss < self.lowest:
            self.lowest, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.level, self.waited = self.level * self.factor, 0

    def state(self) -> dict[str, float]:
        return {"level": self.level, "lowest": self.lowest, "waited": self.waited}

    def restore(self, state: dict[str, float]) -> None:
        self.level, self.lowest, self.waited = state["level"], state["lowest"], state["waited"]


class Average:
    """Exponential average of the weights, w̄ ← d w̄ + (1 - d) w, which generalises better than the last weights.

    The decay d grows from 0.1 with the steps, (1 + n) / (10 + n), up to `decay`, so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self._pairs = [*zip(self.model.parameters(), model.parameters())]
        self._buffers = [*zip(self.model.buffers(), model.buffers())]

    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = zip(*self._pairs)
        get_ema_multi_avg_fn(decay)(list(averaged), list(current), step)

    def ready(self) -> nn.Module:
        """The averaged model, with the present buffers."""
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
        return self.model
