"""The training of a model of weights as a module of Lightning. It is imported when a training begins."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from molequi.errors import TrainingError
from molequi.weights.model import WeightModel
from molequi.weights.networks import Networks
from molequi.weights.symmetry import NeuronGroup

_WARM = 0.05  # share of the training in which the learning rate rises
Part = tuple[Networks, Tensor]


class Batches:
    """Batches of networks and targets, in a new order in each epoch.

    Parameters
    ----------
    networks : Networks
        The networks.
    targets : Tensor, shape (B, …)
        Their targets.
    size : int
        Networks in a batch.
    seed : int
        Seed of the order and of the transforms.
    augment : NeuronGroup or None
        Networks are transformed by its elements.
    """

    def __init__(
        self, networks: Networks, targets: Tensor, size: int, seed: int, augment: NeuronGroup | None
    ) -> None:
        self.networks, self.targets, self.size, self.augment = networks, targets, size, augment
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.networks) / self.size)

    def __iter__(self) -> Iterator[Part]:
        for chosen in torch.randperm(len(self.networks), generator=self.generator).split(self.size):
            some = self.networks[chosen]
            if self.augment is not None:
                some = self.augment.act(self.augment.sample(len(some), generator=self.generator), some)
            yield some, self.targets[chosen.to(self.targets.device)]


class Training(LightningModule):
    """A model with its loss and optimizer.

    Parameters
    ----------
    model : WeightModel
        The model.
    loss : callable
        Of its outputs and the targets.
    lr, weight_decay : float
        Of AdamW.
    limits : tuple of int and (float or None)
        Steps, and processor seconds.
    valid : tuple of Networks and Tensor, or None
        Data for validation.
    each_epoch : callable, optional
        Called with each row of the history.
    """

    def __init__(
        self,
        model: WeightModel,
        loss: Callable[[Any, Tensor], Tensor],
        lr: float,
        weight_decay: float,
        limits: tuple[int, float | None],
        valid: Part | None,
        each_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.lr, self.weight_decay = model, loss, lr, weight_decay
        self.limits, self.valid, self.each_epoch = limits, valid, each_epoch
        self.history: list[dict[str, float]] = []
        self.losses: list[Tensor] = []
        self.begun = time.process_time()

    def _done(self) -> float:
        """The share of the training that is over."""
        steps, seconds = self.limits
        by_time = (time.process_time() - self.begun) / seconds if seconds else 0.0
        return min(1.0, max(self.global_step / steps, by_time))

    def transfer_batch_to_device(self, batch: Part, device: torch.device, dataloader_idx: int) -> Part:
        """Move networks and targets."""
        return batch[0].to(device), batch[1].to(device)

    def training_step(self, batch: Part, number: int) -> Tensor:
        """The loss of a batch. Raises TrainingError if it is not finite."""
        networks, targets = batch
        loss = self.loss(self.model(networks), targets)
        if not bool(loss.isfinite()):
            raise TrainingError(
                f"the loss is {float(loss.detach())} in step {self.global_step}; take a smaller learning "
                f"rate than {self.lr:g}"
            )
        self.losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, number: int) -> None:
        """Set the learning rate of the next step, and stop after the last one."""
        done = self._done()
        factor = min(done / _WARM, 0.5 * (1 + math.cos(math.pi * done)))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.lr * max(factor, 1e-3)
        if done >= 1.0:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Add a row to the history."""
        row = {"epoch": float(len(self.history) + 1), "seconds": time.process_time() - self.begun}
        row["train"] = float(torch.stack(self.losses).mean())
        self.losses.clear()
        if self.valid is not None:
            row |= self._validated(*self.valid)
        self.history.append(row)
        if self.each_epoch is not None:
            self.each_epoch(row)

    def _validated(self, networks: Networks, targets: Tensor) -> dict[str, float]:
        found = self.model.predict(networks)
        targets = targets.to(self.device)
        row = {"valid": float(self.loss(found, targets))}
        if isinstance(found, Tensor) and not targets.is_floating_point() and targets.ndim == 1:
            row["accuracy"] = float((found.argmax(1) == targets).double().mean())
        return row

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; matrices decay."""
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr * 1e-3)
