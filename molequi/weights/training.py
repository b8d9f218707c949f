"""Train models of weights with Lightning."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.util.devices import as_device
from molequi.util.html import html_table
from molequi.util.seeding import own_random_numbers
from molequi.util.tables import text_table
from molequi.weights.model import WeightModel
from molequi.weights.networks import Networks
from molequi.weights.symmetry import NeuronGroup

Loss = Callable[[Any, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy of class numbers.

    Parameters
    ----------
    outputs : Tensor, shape (B, classes)
        Logits.
    targets : Tensor, shape (B,)
        Class numbers.
    """
    return nn.functional.cross_entropy(outputs, targets)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error.

    Parameters
    ----------
    outputs, targets : Tensor, shape (B, outputs)
        Predictions and targets.
    """
    return (outputs - targets).square().mean()


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}


@dataclass(frozen=True)
class Fitted:
    """The result of `fit`.

    Parameters
    ----------
    model : WeightModel
        The trained model, in evaluation mode.
    history : list of dict
        For each epoch "epoch", "seconds" (of the processor), "train" (mean loss), and with validation data
        "valid" (loss) and for classes "accuracy".
    """

    model: WeightModel
    history: list[dict[str, float]]

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        some = [
            h
            for k, h in enumerate(self.history)
            if k % max(1, len(self.history) // 10) == 0 or h is self.history[-1]
        ]
        return list(some[-1]), [[f"{value:.4g}" for value in row.values()] for row in some]

    def __str__(self) -> str:
        return "\n".join(text_table(*self._rows()))

    def _repr_html_(self) -> str:
        return html_table(*self._rows())

    __repr__ = __str__


def fit(
    model: WeightModel,
    networks: Networks,
    targets: Tensor,
    *,
    valid: tuple[Networks, Tensor] | None = None,
    loss: str | Loss | None = None,
    epochs: int = 100,
    max_seconds: float | None = None,
    batch_size: int = 64,
    lr: float = 3e-3,
    weight_decay: float = 1e-2,
    augment: NeuronGroup | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Fitted:
    """Train a model of weights (AdamW, one cycle of the learning rate, Lightning's ``Trainer``).

    Parameters
    ----------
    model : WeightModel
        The model. It is trained in place; its means and scales are taken from the networks.
    networks : Networks
        Networks for training.
    targets : Tensor, shape (B, …)
        Class numbers (integers), real values of shape (B, outputs), or for ``outputs="weights"`` what the
        loss compares with.
    valid : tuple of Networks and Tensor, optional
        Networks and targets for validation.
    loss : {"cross_entropy", "mse"} or callable, optional
        By default cross entropy for integers and the mean squared error for real values. A function takes
        the outputs of the model (for ``outputs="weights"`` the new networks) and the targets.
    epochs : int
        Passes through the networks.
    max_seconds : float, optional
        Processor seconds after which the training ends. The learning rate falls to zero at the end of
        either.
    batch_size : int
        Networks in a step.
    lr : float
        The largest learning rate.
    weight_decay : float
        Of AdamW.
    augment : NeuronGroup, optional
        Networks are transformed by random elements of this group in each step. A model with this symmetry
        gains nothing from it.
    device : str
        Where it runs: "cpu", "cuda", "auto".
    seed : int
        Seed of the order of the networks and of the augmentation.
    progress : bool
        Whether to show Lightning's progress bar.

    Returns
    -------
    Fitted
        The model and a row for each epoch.

    Raises
    ------
    ConfigError
        For an unknown loss, and one that does not fit the model.
    DataError
        If there are not as many targets as networks.
    TrainingError
        If the loss is not finite.

    Examples
    --------
    >>> import torch
    >>> from molequi.weights import Architecture
    >>> nets = Networks.random(Architecture((2, 8, 1), "tanh"), 32)
    >>> size = nets.flat().square().mean(1, keepdim=True)
    >>> result = fit(WeightModel(nets.architecture, 1, channels=8), nets, size, epochs=2)
    >>> len(result.history)
    2
    """
    if epochs < 1 or batch_size < 1:
        raise ConfigError(f"epochs={epochs}, batch_size={batch_size}: wanted at least one of each")
    for some, their in [(networks, targets), *([valid] if valid else [])]:
        if len(some) != len(their):
            raise DataError(f"{len(some)} networks and {len(their)} targets; wanted one for each network")
    function = _loss(model, targets, loss)
    from lightning.pytorch import Trainer

    from molequi.weights.lightning_module import Batches, Training

    real = model.outputs != "weights" and targets.is_floating_point()
    model.standardize(networks, targets if real else None)
    chosen = as_device(device)
    batches = Batches(networks, targets, batch_size, seed, augment)
    training = Training(
        model.to(chosen), function, lr, weight_decay, (epochs * len(batches), max_seconds), valid
    )
    with _quiet(), own_random_numbers(chosen, seed):
        trainer = Trainer(
            accelerator="gpu" if chosen.type == "cuda" else chosen.type,
            devices=1 if chosen.index is None or chosen.type == "cpu" else [chosen.index],
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            gradient_clip_val=1.0,
        )
        trainer.fit(training, train_dataloaders=batches)
    return Fitted(model.eval(), training.history)


def _loss(model: WeightModel, targets: Tensor, loss: str | Loss | None) -> Loss:
    if callable(loss):
        return loss
    name = loss or ("mse" if targets.is_floating_point() else "cross_entropy")
    if name not in LOSSES:
        raise ConfigError(f"loss {name!r} is not known{did_you_mean(name, LOSSES)}")
    if model.outputs == "weights":
        raise ConfigError(
            'the model returns networks (outputs="weights"); wanted loss=f, a function of the new networks '
            "and the targets, such as lambda nets, y: (nets(x) - y).square().mean()"
        )
    shape = (len(targets),) if name == "cross_entropy" else (len(targets), model.outputs)
    if tuple(targets.shape) != shape or (name == "cross_entropy") == targets.is_floating_point():
        raise ConfigError(
            f"loss {name!r}: targets are {targets.dtype} of shape {tuple(targets.shape)}; wanted "
            f"{'class numbers' if name == 'cross_entropy' else 'real values'} of shape {shape}"
        )
    if name == "cross_entropy" and not 0 <= int(targets.min()) <= int(targets.max()) < int(model.outputs):
        raise ConfigError(
            f"class numbers from {int(targets.min())} to {int(targets.max())}; the model has "
            f"{model.outputs} outputs"
        )
    return LOSSES[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice on loggers and workers does not concern a user of `fit`."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
