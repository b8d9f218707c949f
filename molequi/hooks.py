"""Hooks: terms of a training beside the loss, such as a regularizer, that act at fixed points of the training loop.

| the loop | calls |
|---|---|
| before data are read | `Hook.check` |
| once, before the optimizer is made | `Hook.start`, `Hook.frozen` |
| each step | `Hook.before_step`, `Hook.penalty`, `Hook.after_gradients` |
| each validation | `Hook.before_validation`, then `Hook.validation_sums` for each batch and `Hook.validation_values` |
| each epoch | `Hook.epoch_values` |
| at the end | `Hook.report` |
| a state is saved or read | `Hook.state`, `Hook.restore` |
"""

import copy
import re
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.graph import Graph
from molequi.losses import Loss, Objective
from molequi.model import Model


@dataclass(frozen=True)
class Batch:
    """A batch of a training or a validation, as one device sees it.

    Parameters
    ----------
    number : int
        Number of the step in training, of the batch in a validation; from 0.
    counts : Sequence of int
        Number of nodes of each structure of the whole batch.
    graph : Graph, optional
        This device's share of the batch with its labels; None if it got no structure.
    predictions : Mapping, optional
        Predictions of the model for `graph`; None with `graph`.
    """

    number: int
    counts: Sequence[int]
    graph: Graph | None
    predictions: Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Penalty:
    """What a hook adds to the loss of a step.

    Parameters
    ----------
    total : Tensor, shape ()
        This device's part of the penalty; parts are added over the devices, and so are their gradients.
    values : Mapping of str to Tensor, optional
        Numbers for the log, shape () each: the column ``train_<hook>_<name>`` is their mean over the steps of an epoch. They are
        added over the devices too. Every device gives the same names in every step.
    """

    total: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)


class Plan(Protocol):
    """The options of a training, as far as a hook may ask for them before data are read."""

    @property
    def epochs(self) -> int | None: ...
    @property
    def patience(self) -> int | None: ...
    @property
    def losses(self) -> Sequence[Loss]:
        """The terms of the loss that were given; empty for default weights."""

    @property
    def terms(self) -> Sequence["Hook"]: ...


class Run(Protocol):
    """A training under way, as hooks see it."""

    @property
    def model(self) -> Model:
        """The model that is trained."""

    @property
    def averaged(self) -> Model | None:
        """The model with averaged weights and the present buffers, which is validated; None without averaging."""

    @property
    def objective(self) -> Objective:
        """The loss without the penalties of hooks."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer; not there yet in `Hook.start`."""

    @property
    def parts(self) -> Mapping[str, Dataset]:
        """The data with their edges: ``"train"``, ``"valid"`` and perhaps ``"test"``."""

    @property
    def batch_limits(self) -> Mapping[str, int]:
        """The size of a batch, as the argument of `molequi.data.batches.Batches`."""

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """A row for each epoch that is over."""

    @property
    def epoch(self) -> int:
        """Number of epochs that are over."""

    @property
    def seed(self) -> int: ...
    @property
    def share(self) -> tuple[int, int]:
        """Rank of this device and number of devices."""

    def done(self) -> float:
        """The part of the training that is done, from 0 to 1, by epochs or by time, whichever is further."""

    def graphs(self, part: str) -> Sequence[Graph]:
        """The structures of a part with their labels, on the CPU."""

    def connected(self, data: Dataset) -> Dataset:
        """The same data with the edges that the model needs."""

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over all devices; every device has to call it."""

    def broadcast(self, value: Any) -> Any:
        """The value of the first device; every device has to call it."""

    def forget_best(self) -> None:
        """Begin the choice of the best epoch anew, because earlier epochs are no longer comparable."""


@runtime_checkable
class Report(Protocol):
    """What a hook reports at the end: its text is part of `str(result)`, its JSON goes to ``<hook>.json``."""

    def to_json(self) -> str: ...


class Hook(ABC):
    """Base of terms of a training: ``fit(..., terms=[MyHook()])``.

    Every method has a default that does nothing; override those that are needed. Random numbers of a hook should be a
    function of `Run.seed` and the number of the step alone, so that an interrupted training continues exactly.

    Attributes
    ----------
    name : str
        What the log calls the hook; by default the name of its class in lower case with underscores. Two terms of one
        training have different names.

    Examples
    --------
    >>> class WeightNorm(Hook):
    ...     def penalty(self, run, batch):
    ...         norm = sum(p.square().sum() for p in run.model.parameters())
    ...         return Penalty(1e-4 * norm / run.share[1], {"norm": norm.detach() / run.share[1]})
    >>> WeightNorm.name
    'weight_norm'
    """

    name: str = ""

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the subclass its name."""
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower().lstrip("_")

    def check(self, model: Model, plan: Plan, where: str) -> None:
        """Raise ConfigError for what can be known to be wrong before data are read; `where` begins the message."""

    def start(self, run: Run) -> "Hook":
        """The hook of one training; by default a copy, so that an object can serve several trainings."""
        return copy.deepcopy(self)

    def record(self) -> Mapping[str, Any]:
        """Plain values that a continued training must share; a difference is an error that names them."""
        return {}

    def frozen(self) -> set[int]:
        """The ``id`` of each parameter that the optimizer must not change."""
        return set()

    def before_step(self, run: Run) -> None:
        """Act before the model is evaluated for a step."""

    def penalty(self, run: Run, batch: Batch) -> Penalty | None:
        """What is added to the loss of a step."""
        return None

    def after_gradients(self, run: Run) -> None:
        """Change gradients, which are summed over the devices and not clipped yet."""

    def before_validation(self, run: Run) -> None:
        """Act before the model is validated."""

    def validation_sums(self, run: Run, model: Model, batch: Batch) -> Tensor | None:
        """Float64 numbers of a batch that are added over all batches of a validation and over the devices.

        Parameters
        ----------
        run : Run
            The training.
        model : Model
            The model that is validated: the averaged one where there is one.
        batch : Batch
            A batch whose graph and predictions are there.
        """
        return None

    def validation_values(self, sums: Tensor) -> Mapping[str, float]:
        """Numbers for the log from the sums: the column is ``valid_<hook>_<name>``."""
        return {}

    def epoch_values(self, run: Run) -> Mapping[str, float]:
        """Numbers for the log at the end of an epoch: the column is ``<hook>_<name>``."""
        return {}

    def report(self, run: Run) -> object | None:
        """What is known at the end, for ``result.reports[name]``; the model has its best weights."""
        return None

    def metadata(self, report: object) -> Mapping[str, Any]:
        """JSON-able values of a report that are kept in the model file."""
        return {}

    def state(self) -> dict[str, Any]:
        """Tensors and plain values that change during a training."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
