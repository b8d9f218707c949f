"""Hooks: terms of a training beside the loss, such as a regularizer.

A hook acts at fixed points of the training loop.

The training loop calls them in this order:

- before data are read: `Hook.check`
- once, before the optimizer is made: `Hook.start`, then `Hook.frozen`, then `Hook.trained`
- in each step: `Hook.before_step`, `Hook.transform`, `Hook.penalty`, `Hook.after_gradients`,
`Hook.after_step`
- in each validation: `Hook.before_validation`, then `Hook.validation_sums` for each batch, then
`Hook.validation_values`, `Hook.validation_loss`
- after each epoch: `Hook.epoch_values`
- at the end: `Hook.report`, `Hook.metadata`
- when a state is saved or read: `Hook.state`, `Hook.restore`
"""

import copy
import difflib
import inspect
import re
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from molequi.data.dataset import Dataset
from molequi.errors import ConfigError
from molequi.graph import Graph
from molequi.losses import Loss, Objective
from molequi.model import Model
from molequi.util.identity import plain_values
from molequi.util.signature import check_keywords

_MISSPELT = 2  # letters in which a misspelt name differs


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


@check_keywords()
@dataclass(frozen=True)
class Penalty:
    """What a hook adds to the loss of a step.

    Raises ConfigError for anything that is no tensor of shape (). A training raises it for a total without
    gradient that is not zero, and TrainingError for one that is not finite.

    Parameters
    ----------
    total : Tensor, shape ()
        This device's part of the penalty; parts are added over the devices, and so are their gradients.
    values : Mapping of str to Tensor, optional
        Numbers for the log, shape () each. The column ``train_<hook>_<name>`` is their mean over the steps of
        an epoch. They are added over the devices too. Every device must give the same names in every step.
    """

    total: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in {"total": self.total, **self.values}.items():
            if not isinstance(value, Tensor) or value.ndim:
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ConfigError(f"Penalty: {name} is {found}; wanted a tensor of shape ()")


class Plan(Protocol):
    """The options of a training that a hook may check before data are read."""

    @property
    def epochs(self) -> int | None:
        """The number of epochs, if it is limited."""

    @property
    def patience(self) -> int | None:
        """Number of validations without a lower loss after which the training ends."""

    @property
    def losses(self) -> Sequence[Loss]:
        """The terms of the loss; empty for default weights."""

    @property
    def terms(self) -> Sequence["Hook"]:
        """All hooks of the training."""


class Run(Protocol):
    """A running training, as hooks see it."""

    @property
    def model(self) -> Model:
        """The model that is trained."""

    @property
    def averaged(self) -> Model | None:
        """The model with averaged weights, which is validated; None without averaging."""

    @property
    def objective(self) -> Objective:
        """The loss without the penalties of hooks."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer. It does not exist yet in `Hook.start`."""

    @property
    def parts(self) -> Mapping[str, Dataset]:
        """The data with their edges: ``"train"``, ``"valid"`` and perhaps ``"test"``."""

    @property
    def batch_limits(self) -> Mapping[str, int]:
        """The limit of a batch, as the argument of `molequi.data.batches.Batches`."""

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """A row for each epoch that is over."""

    @property
    def epoch(self) -> int:
        """Number of epochs that are over."""

    @property
    def seed(self) -> int:
        """The seed of all random numbers."""

    @property
    def share(self) -> tuple[int, int]:
        """Rank of this device and number of devices."""

    def done(self) -> float:
        """The part of the training that is done, from 0 to 1; by epochs or by time, whichever is further."""

    def graphs(self, part: str) -> Sequence[Graph]:
        """The structures of a part of the data with their labels, on the CPU.

        Parameters
        ----------
        part : str
            ``"train"`` or ``"valid"``.
        """

    def connected(self, data: Dataset) -> Dataset:
        """The same data with the edges that the model needs.

        Parameters
        ----------
        data : Dataset
            Data without edges.
        """

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over all devices. Every device has to call this method.

        Parameters
        ----------
        values : Tensor
            Numbers of this device.
        """

    def broadcast(self, value: Any) -> Any:
        """The value of the first device. Every device has to call this method.

        Parameters
        ----------
        value : object
            The value of this device: tensors, numbers and text, in lists, tuples and mappings.
        """

    def forget_best(self) -> None:
        """Begin the choice of the best epoch anew, because earlier epochs are no longer comparable."""

    def forget_moments(self, parameters: Sequence[nn.Parameter]) -> None:
        """Set the moments of parameters in the optimizer to zero, so that they stay as they are without
        gradients.

        Parameters
        ----------
        parameters : sequence of Parameter
            The parameters.
        """


@runtime_checkable
class Report(Protocol):
    """What a hook reports at the end of a training.

    Its text is part of ``str(result)``, and its JSON is written to ``<hook>.json``.
    """

    def to_json(self) -> str:
        """The report as JSON."""


def _misspelt(name: str, value: object, methods: Sequence[str]) -> str:
    """The method of `Hook` that a member of a subclass is perhaps meant to be; empty for one of its own.

    Members of its own are those with an underscore, those that are no functions, and those whose parameters
    are others than the parameters of the method.
    """
    if name in methods or name.startswith("_") or not inspect.isfunction(value):
        return ""
    for meant in difflib.get_close_matches(name, methods, n=1, cutoff=0.85):
        if _distance(name, meant) <= _MISSPELT and _takes_as_many(value, getattr(Hook, meant)):
            return meant
    return ""


def _distance(a: str, b: str) -> int:
    """Number of letters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def _takes_as_many(own: Callable[..., Any], method: Callable[..., Any]) -> bool:
    """Whether a function can be called with as many arguments as a method."""
    try:
        inspect.signature(own).bind(*inspect.signature(method).parameters)
    except TypeError:
        return False
    return True


class Hook(ABC):
    """Base class of the terms of a training: ``fit(..., terms=[MyHook()])``.

    The default of every method does nothing; override those that you need. If a hook draws random numbers,
    they should depend on `Run.seed` and the number of the step alone, so that an interrupted training
    continues exactly.

    Attributes
    ----------
    name : str
        What the log calls the hook; by default the name of its class in lower case with underscores. Two
        terms of one training must have different names.

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
        """Give the subclass its name, see ``name``; raise ConfigError for a misspelt method."""
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower().lstrip("_")
        methods = [name for name in vars(Hook) if not name.startswith("_") and name != "name"]
        for name, value in vars(cls).items():
            meant = _misspelt(name, value, methods)
            if meant and getattr(cls, meant) is getattr(Hook, meant):
                raise ConfigError(
                    f"{cls.__name__}.{name} would never be called: the method of a Hook is {meant!r}. "
                    f"Write {meant!r}; or, if this is a method of your own, call it '_{name}'"
                )

    def check(self, model: Model, plan: Plan, where: str) -> None:
        """Check the options before data are read.

        Parameters
        ----------
        model : Model
            The model to train.
        plan : Plan
            The options of the training.
        where : str
            What the message of an error puts first.

        Raises
        ------
        ConfigError
            If the hook cannot act in this training.
        """

    def start(self, run: Run) -> "Hook":
        """Return the hook of one training; by default a copy, so that one object can serve several trainings.

        Parameters
        ----------
        run : Run
            The training, which has no optimizer yet.
        """
        return copy.deepcopy(self)

    def record(self) -> Mapping[str, Any]:
        """Plain values that decide what is learnt. A continued training must have the same ones.

        By default these are the attributes that are plain values, as they are at the start.
        """
        return plain_values(vars(self))

    def frozen(self) -> set[int]:
        """Return the ``id`` of each parameter that the optimizer must not change."""
        return set()

    def trained(
        self, run: Run, parameters: Sequence[tuple[nn.Parameter, float]]
    ) -> Sequence[tuple[nn.Parameter, float]]:
        """Return the parameters that the optimizer changes, each with a factor of the learning rate.

        Parameters
        ----------
        run : Run
            The training, which has no optimizer yet.
        parameters : sequence of (Parameter, float)
            Those of the model that are not frozen, or what the hook before this one returned.
        """
        return parameters

    def before_step(self, run: Run) -> None:
        """Act before the model is evaluated in a step; gradients are empty.

        Parameters
        ----------
        run : Run
            The training.
        """

    def transform(self, run: Run, batch: Batch) -> Graph | None:
        """Return the graph that the model sees in a step, with its labels; None leaves it as it is.

        Parameters
        ----------
        run : Run
            The training.
        batch : Batch
            The batch of the step with its graph, without predictions.
        """
        return None

    def penalty(self, run: Run, batch: Batch) -> Penalty | None:
        """Return what is added to the loss of a step; None adds nothing.

        Parameters
        ----------
        run : Run
            The training.
        batch : Batch
            The batch of the step with its predictions.
        """
        return None

    def after_gradients(self, run: Run) -> None:
        """Change gradients, which are summed over the devices and not clipped yet.

        Parameters
        ----------
        run : Run
            The training.
        """

    def after_step(self, run: Run) -> None:
        """Act after the optimizer has changed the parameters, before weights are averaged.

        Parameters
        ----------
        run : Run
            The training.
        """

    def before_validation(self, run: Run) -> None:
        """Act before the model is validated.

        Parameters
        ----------
        run : Run
            The training.
        """

    def validation_sums(self, run: Run, model: Model, batch: Batch) -> Tensor | None:
        """Return numbers of a batch of the validation; they are added over all batches and devices.

        Parameters
        ----------
        run : Run
            The training.
        model : Model
            The model that is validated: the averaged one, if weights are averaged.
        batch : Batch
            The batch with its predictions.

        Returns
        -------
        Tensor, float64, or None
            None adds nothing.
        """
        return None

    def validation_values(self, sums: Tensor) -> Mapping[str, float]:
        """Return numbers for the log: the column is ``valid_<hook>_<name>``.

        Parameters
        ----------
        sums : Tensor
            The sum of what `validation_sums` returned.
        """
        return {}

    def validation_loss(self, run: Run, model: Model) -> float | None:
        """Return what is added to the validation loss that chooses the best epoch; None adds nothing.

        The column ``valid_<hook>_loss`` has it, and ``valid_loss`` stays without it.

        Parameters
        ----------
        run : Run
            The training.
        model : Model
            The model that is validated: the averaged one, if weights are averaged.

        Returns
        -------
        float or None
            The same number on all devices.
        """
        return None

    def epoch_values(self, run: Run) -> Mapping[str, float]:
        """Return numbers for the log at the end of an epoch: the column is ``<hook>_<name>``.

        Parameters
        ----------
        run : Run
            The training.
        """
        return {}

    def before_report(self, run: Run) -> None:
        """Change the model with its best weights before its errors are measured.

        Parameters
        ----------
        run : Run
            The training.
        """

    def report(self, run: Run) -> object | None:
        """Return what ``result.reports[name]`` holds at the end; None reports nothing.

        Parameters
        ----------
        run : Run
            The training, whose model has its best weights.
        """
        return None

    def metadata(self, report: object) -> Mapping[str, Any]:
        """Return values of a report that the model file keeps; JSON must be able to hold them.

        Parameters
        ----------
        report : object
            What `report` returned.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values that change during a training, so that they are saved."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Parameters
        ----------
        state : Mapping
            What `state` returned.
        """
