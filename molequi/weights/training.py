"""Train models of weights with Lightning."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from molequi.errors import ConfigError, DataError, ModelError, did_you_mean
from molequi.util.devices import as_device
from molequi.util.html import html_table
from molequi.util.seeding import own_random_numbers
from molequi.util.signature import check_call
from molequi.util.tables import text_table
from molequi.weights.model import WeightModel
from molequi.weights.networks import Networks, check_finite
from molequi.weights.symmetry import Kind, NeuronGroup, kind_of

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


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in `fit`.

    Parameters
    ----------
    fitted : Fitted
        What was trained until then.

    Attributes
    ----------
    fitted
        As given.
    """

    def __init__(self, fitted: Fitted) -> None:
        super().__init__(
            f"stopped after {len(fitted.history)} epochs; the model keeps what it has learned, and the table "
            "of the epochs is error.fitted"
        )
        self.fitted = fitted


def fit(
    model: WeightModel,
    networks: Networks,
    targets: Tensor,
    *,
    valid: tuple[Networks, Tensor] | None = None,
    loss: str | Loss | None = None,
    epochs: Annotated[int, Gt(0)] = 100,
    max_seconds: Annotated[float, Gt(0)] | None = None,
    batch_size: Annotated[int, Gt(0)] = 64,
    lr: Annotated[float, Gt(0)] = 3e-3,
    weight_decay: Annotated[float, Ge(0)] = 1e-2,
    augment: NeuronGroup | Kind | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: bool = False,
    each_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Fitted:
    """Train a model of weights (AdamW, one cycle of the learning rate, Lightning's ``Trainer``).

    Parameters
    ----------
    model : WeightModel
        The model. It is trained in place; its means and scales are taken from the networks.
    networks : Networks
        Networks for training.
    targets : Tensor, shape (B, …)
        Class numbers (integers), real values of shape (B, outputs), whose means and deviations the outputs
        get, or whatever a loss of your own compares with.
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
    augment : NeuronGroup or its kind, optional
        Networks are transformed by random elements of this group in each step. A model with this symmetry
        gains nothing from it.
    device : str
        Where it runs: "cpu", "cuda", "auto".
    seed : int
        Seed of the order of the networks and of the augmentation.
    progress : bool
        Whether to show Lightning's progress bar.
    each_epoch : callable, optional
        Called with the row of each epoch when it is over.

    Returns
    -------
    Fitted
        The model and a row for each epoch.

    Raises
    ------
    ConfigError
        For an unknown loss, one that does not fit the model or the targets, of training or validation, and
        for numbers out of range.
    DataError
        If there are not as many targets as networks, none, or some that are not finite.
    ModelError
        For networks of another architecture, and a group for `augment` that changes what they compute.
    TrainingError
        If the loss is not finite.
    Interrupted
        For Ctrl-C, a KeyboardInterrupt; the model keeps what it has learned, with a row for each epoch in
        ``error.fitted``.

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
    numbers = {"epochs": epochs, "max_seconds": max_seconds, "batch_size": batch_size, "lr": lr}
    numbers["weight_decay"] = weight_decay
    check_call(fit, numbers, where="fit", leave_out=("model", "networks", "targets"))
    if augment is not None:
        kind = kind_of(networks.architecture, augment if isinstance(augment, str) else augment.kind)
        augment = NeuronGroup(networks.architecture.sizes, kind) if isinstance(augment, str) else augment
    function = _loss(model, targets, loss)
    _check_part("training", model, networks, targets, function, targets)
    if valid is not None:
        _check_part("validation", model, *valid, function, targets)
    from lightning.pytorch import Trainer

    from molequi.weights.lightning_module import Batches, Training

    real = targets.is_floating_point() and tuple(targets.shape) == (len(networks), model.outputs)
    model.standardize(networks, targets if real else None)
    chosen = as_device(device)
    batches = Batches(networks, targets, batch_size, seed, augment)
    training = Training(
        model.to(chosen), function, lr, weight_decay, (epochs * len(batches), max_seconds), valid, each_epoch
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
        try:
            trainer.fit(training, train_dataloaders=batches)
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            raise Interrupted(Fitted(model.eval(), training.history)) from None
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
    return LOSSES[name]


def _check_part(
    part: str, model: WeightModel, networks: Networks, targets: Tensor, loss: Loss, like: Tensor
) -> None:
    """Refuse networks and targets that do not fit the model, its loss, and those of the training."""
    if networks.architecture != model.architecture:
        raise ModelError(f"{part}: networks {networks.architecture}; the model reads {model.architecture}")
    if not len(networks) or len(networks) != len(targets):
        raise DataError(
            f"{part}: {len(networks) or 'no'} networks and {len(targets)} targets; wanted one for each "
            "network"
        )
    check_finite(f"{part}: target", targets)
    found = f"targets are {targets.dtype} of shape {tuple(targets.shape)}"
    real, classes = targets.is_floating_point(), loss is cross_entropy
    if loss in LOSSES.values():
        shape = (len(targets),) if classes else (len(targets), model.outputs)
        if tuple(targets.shape) != shape or real == classes:
            raise ConfigError(
                f"{part}, loss {loss.__name__!r}: {found}; wanted "
                f"{'class numbers' if classes else 'real values'} of shape {shape}"
            )
        if classes and not 0 <= int(targets.min()) <= int(targets.max()) < int(model.outputs):
            raise ConfigError(
                f"{part}: class numbers from {int(targets.min())} to {int(targets.max())}; the model has "
                f"{model.outputs} outputs"
            )
    elif targets.shape[1:] != like.shape[1:] or real != like.is_floating_point():
        raise ConfigError(
            f"{part}: {found}; wanted those of the training, {like.dtype} of shape (B, "
            f"{', '.join(map(str, like.shape[1:]))})"
        )


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
