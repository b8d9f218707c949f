"""The options of `fit`, in groups; the same names are those of the section `train` of a YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from molequi.finetuning.options import Finetuning
from molequi.hooks import Hook
from molequi.losses import Kind, Loss
from molequi.training.soap import FREQUENCY, SOAP
from molequi.util.options import Options
from molequi.util.signature import check_keywords


@check_keywords()
@dataclass(frozen=True)
class Optimizer(Options):
    """The optimizer, clipping and averaging.

    Parameters
    ----------
    name : {"adam", "adamw", "soap"}
        Adam; Adam with decoupled weight decay; or `SOAP`, which is Adam in the eigenbasis of the gradients'
        second moments, with decoupled weight decay. ``optimizer="soap"`` is short for ``Optimizer("soap")``.
    amsgrad : bool, optional
        Divide by the largest second moment so far (Reddi et al. 2018); True by default. Not for "soap".
    frequency : int, > 0, optional
        For "soap", steps between two updates of its eigenvectors; 5 by default.
    weight_decay : float, >= 0
        Decay of the weights.
    clip : float, > 0, or None
        Largest norm of the gradient; longer gradients are scaled down to it. None leaves them.
    ema : float, 0 <= ema < 1
        Decay of the exponential moving average of the weights. The averaged weights are validated and kept.
        With 0 the weights are not averaged.
    """

    name: Literal["adam", "adamw", "soap"] = "adam"
    amsgrad: bool | None = None
    weight_decay: Annotated[float, Ge(0)] = 0.0
    clip: Annotated[float, Gt(0)] | None = 10.0
    ema: Annotated[float, Ge(0), Lt(1)] = 0.99
    frequency: Annotated[int, Gt(0)] | None = None

    shorthand: ClassVar[str] = "name"

    def problem(self) -> str:
        """Options of another optimizer."""
        for name, wanted in (("amsgrad", ("adam", "adamw")), ("frequency", ("soap",))):
            if getattr(self, name) is not None and self.name not in wanted:
                return (
                    f"{name}={getattr(self, name)} has no effect on the optimizer {self.name!r}; leave "
                    f"{name} out or take optimizer {wanted[0]!r}"
                )
        return ""

    def make(
        self, parameters: Sequence[nn.Parameter], lr: float, rates: Sequence[float] | None = None
    ) -> torch.optim.Optimizer:
        """The optimizer of these parameters.

        Parameters
        ----------
        parameters : sequence of Parameter
            The parameters.
        lr : float
            Learning rate.
        rates : sequence of float, optional
            Factor of the learning rate of each parameter; by default 1. Parameters of one factor are one
            group, which has it as ``"rate"``; the largest factor is first.
        """
        pairs = list(zip(rates or [1.0] * len(parameters), parameters, strict=True))
        groups = [
            {"params": [p for one, p in pairs if one == rate], "lr": lr * rate, "rate": rate}
            for rate in sorted({rate for rate, _ in pairs}, reverse=True)
        ]
        if self.name == "soap":
            return SOAP(groups, lr=lr, weight_decay=self.weight_decay, frequency=self.frequency or FREQUENCY)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.name]
        return kind(
            groups,
            lr=lr,
            amsgrad=self.amsgrad is not False,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def record(self) -> dict[str, Any]:
        """Plain values that decide what is learnt, with the defaults of this optimizer."""
        own = (
            {"frequency": self.frequency or FREQUENCY}
            if self.name == "soap"
            else {"amsgrad": self.amsgrad is not False}
        )
        return {
            name: value for name, value in vars(self).items() if name not in ("amsgrad", "frequency")
        } | own


@check_keywords()
@dataclass(frozen=True)
class Schedule(Options):
    """How the learning rate changes.

    Parameters
    ----------
    name : {"cosine", "plateau", "constant"}
        "cosine" falls as (1 + cos πx) / 2, where x is the part of the training that is done, by epochs or by
        time. "plateau" multiplies the rate by `factor` when the validation loss has not fallen for `patience`
        validations. "constant" stays. ``schedule="constant"`` is short for ``Schedule("constant")``.
    warmup : float, >= 0
        Epochs over which the rate rises linearly from zero at the start.
    floor : float, 0 <= floor < 1, optional
        Smallest rate as a fraction of `lr`; 0.01 by default. Not for "constant".
    factor : float, 0 < factor < 1, optional
        For "plateau"; 0.5 by default.
    patience : int, >= 0, optional
        For "plateau", in validations; 10 by default.
    """

    name: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup: Annotated[float, Ge(0)] = 0.0
    floor: Annotated[float, Ge(0), Lt(1)] | None = None
    factor: Annotated[float, Gt(0), Lt(1)] | None = None
    patience: Annotated[int, Ge(0)] | None = None

    shorthand: ClassVar[str] = "name"

    def problem(self) -> str:
        """Options of another schedule."""
        unused = {
            "cosine": ("factor", "patience"),
            "constant": ("floor", "factor", "patience"),
            "plateau": (),
        }
        for name in unused[self.name]:
            if getattr(self, name) is not None:
                return (
                    f"{name}={getattr(self, name)} has no effect on the schedule {self.name!r}; leave {name} "
                    "out" + ("" if name == "floor" else " or take schedule 'plateau'")
                )
        return ""


@check_keywords()
@dataclass(frozen=True)
class BatchSize(Options):
    """The size of a batch, over all devices together. Give one of the three.

    Parameters
    ----------
    structures : int, > 0, optional
        Number of structures; ``batch_size=5`` is short for ``BatchSize(structures=5)``.
    atoms : int, > 0, optional
        Largest number of atoms.
    edges : int, > 0, optional
        Largest number of edges.
    """

    structures: Annotated[int, Gt(0)] | None = None
    atoms: Annotated[int, Gt(0)] | None = None
    edges: Annotated[int, Gt(0)] | None = None

    shorthand: ClassVar[str] = "structures"

    def problem(self) -> str:
        """Not exactly one limit."""
        given = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        return (
            ""
            if len(given) == 1
            else f"found {' and '.join(given) or 'nothing'}; give one of structures, atoms, edges"
        )

    @property
    def limits(self) -> dict[str, int]:
        """The argument of `molequi.data.batches.Batches`."""
        names = {"structures": "batch_size", "atoms": "batch_atoms", "edges": "batch_edges"}
        return {names[name]: value for name, value in vars(self).items() if value is not None}


@check_keywords()
@dataclass(frozen=True)
class Validation(Options):
    """How often the model is validated, and when that ends the training.

    Parameters
    ----------
    every : int, > 0
        Epochs from one validation to the next. The last epoch is always validated.
    patience : int, > 0, optional
        Number of validations without a lower loss after which the training ends. None: never.
    keep : {"best", "last"}
        The weights of which epoch are kept: that with the lowest validation loss, or the last one. "last" is
        better where the validation set is so small that its lowest loss is chance.
    """

    every: Annotated[int, Gt(0)] = 1
    patience: Annotated[int, Gt(0)] | None = None
    keep: Literal["best", "last"] = "best"

    def problem(self) -> str:
        """A patience that would end the training at weights that are not wanted."""
        if self.keep == "last" and self.patience is not None:
            return f"patience={self.patience} is for keep='best'; leave one of them out"
        return ""

    def record(self) -> dict[str, Any]:
        """Plain values that decide what is learnt, as they were before there was `keep`."""
        kept = {} if self.keep == "best" else {"keep": self.keep}
        return {"every": self.every, "patience": self.patience} | kept


@check_keywords()
@dataclass(frozen=True)
class Normalization(Options):
    """Scales and shifts of the outputs, which are set from the training data before the first step.

    Parameters
    ----------
    reference_energies : file, Dataset or Mapping, optional
        Energies of isolated atoms in eV: a mapping such as ``{"H": -13.6}``, or structures of one atom each.
        None: they are fitted to the training data, see `Dataset.statistics`. Given ones are always taken,
        also by a model that keeps its scales, and for elements that the training data lack.
    standardize : bool, optional
        False leaves scales and shifts of the model as they are. None, the default, leaves them if the model
        was trained before and loaded.
    """

    reference_energies: Any = None
    standardize: bool | None = None


@check_keywords()
@dataclass(frozen=True)
class Logging(Options):
    """What is shown and written during a training.

    Parameters
    ----------
    loggers : Sequence
        Loggers beside ``metrics.csv``: "csv", "tensorboard", "wandb" or "mlflow", a mapping of one such name
        to the options of its class in Lightning (``{"wandb": {"project": "water"}}``), or a Lightning logger
        object.
    progress : bool
        Show a progress bar on a terminal, and a line now and then elsewhere.
    save_minutes : float, >= 0, optional
        Minutes between two saved states within an epoch; 1 by default. A state is always saved after an
        epoch. Only with `out`.
    """

    loggers: Sequence[Any] = ()
    progress: bool = True
    save_minutes: Annotated[float, Ge(0)] | None = None


@check_keywords()
@dataclass(frozen=True)
class Compute(Options):
    """How the computation runs.

    Parameters
    ----------
    precision : {"float32", "float64"}
        Type of the weights and of the computation.
    accelerate : bool
        Compile the model first, see `molequi.accelerate`; it stays compiled. With `max_minutes` it is not
        compiled if that would take longer than it saves, which a line on stderr and the result report.
    devices : int, > 0, optional
        Number of devices of this machine, which share every batch; each has a process of its own, which
        molequi starts. By default all processes that torchrun or srun started, otherwise one.
    num_nodes : int, > 0, optional
        Number of machines, on which torchrun or srun started the processes; by default that number. Another
        number is an error, so that a job does not train on fewer machines than it should.
    strategy : {"auto", "ddp", "fsdp"}
        "ddp" shares each batch between processes, each of which has all weights; one process is an error.
        "auto" is the same, but allows one process. "fsdp", with weights split between devices, is refused:
        forces need second derivatives, and weights of single layers are freed before them.
    workers : int, >= 0
        Processes that make batches; 0 is best for small structures.
    cache : str or path, optional
        Folder that keeps neighbor lists for the next training.
    clock : {"wall", "processor"}
        The time that `max_minutes` limits. "processor" is the processor time of all threads of this process,
        validation and compilation included; it does not depend on what else the machine does. On the CPU.
    """

    precision: Literal["float32", "float64"] = "float32"
    accelerate: bool = False
    devices: Annotated[int, Gt(0)] | None = None
    workers: Annotated[int, Ge(0)] = 0
    cache: str | Path | None = None
    num_nodes: Annotated[int, Gt(0)] | None = None
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    clock: Literal["wall", "processor"] = "wall"

    def problem(self) -> str:
        """A strategy that cannot compute forces."""
        if self.strategy == "fsdp":
            return (
                "strategy='fsdp': PyTorch frees the weights of a layer after the derivative that gives the "
                "forces, and the derivative of the loss needs them again. Memory goes to the edges of a "
                "batch, not to weights: take strategy='ddp' and smaller batches, batch_size={'edges': …}"
            )
        if self.clock == "processor" and self.workers:
            return (
                f"clock='processor' does not see the time of worker processes, and workers={self.workers}; "
                "leave one of them out"
            )
        return ""


GROUPS: dict[str, type[Options]] = {
    "batch_size": BatchSize,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "validation": Validation,
    "normalization": Normalization,
    "logging": Logging,
    "compute": Compute,
    "finetune": Finetuning,
}
NOT_GIVEN = ("batch_size", "finetune")  # groups that may be None


@dataclass(frozen=True)
class TrainingOptions:
    """All options of a training, checked. The fields are those of `fit`.

    Parameters
    ----------
    epochs, max_minutes : int, float, optional
        When the training ends. Minutes are without compilation.
    batch_size : BatchSize
        The size of a batch.
    lr : float
        Learning rate.
    loss : tuple of Loss, str or None
        The terms of the loss; a kind for all quantities; or None for default weights.
    optimizer : Optimizer
        The optimizer.
    schedule : Schedule
        How the learning rate changes.
    validation : Validation
        How often to validate.
    normalization : Normalization
        Scales and shifts of the outputs.
    terms : tuple of Hook
        Terms beside the loss.
    logging : Logging
        What is shown and written.
    compute : Compute
        How the computation runs.
    finetune : Finetuning, optional
        How a trained model is trained further; None: from its weights as they are.
    device : str
        Device, such as ``"auto"`` or ``"cuda"``.
    out : Path, optional
        Folder of the run.
    resume : {"auto", "force", "restart"}
        Whether a training in the folder is continued.
    seed : int or tuple of int
        Seed; several train an ensemble.
    """

    epochs: int | None = None
    max_minutes: float | None = None
    batch_size: BatchSize = field(default_factory=lambda: BatchSize(5))
    lr: float = 5e-3
    loss: tuple[Loss, ...] | Kind | None = None
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    validation: Validation = Validation()
    normalization: Normalization = Normalization()
    terms: tuple[Hook, ...] = ()
    logging: Logging = Logging()
    compute: Compute = Compute()
    finetune: Finetuning | None = None
    device: str = "auto"
    out: Path | None = None
    resume: Literal["auto", "force", "restart"] = "auto"
    seed: int | tuple[int, ...] = 0

    @property
    def patience(self) -> int | None:
        """Validations without a lower loss that end the training."""
        return self.validation.patience

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The terms of the loss that were given; empty for default weights."""
        return self.loss if isinstance(self.loss, tuple) else ()

    @property
    def member_seed(self) -> int:
        """The seed of a single model."""
        assert isinstance(self.seed, int)
        return self.seed

    def record(self) -> dict[str, Any]:
        """Plain values that decide what is learnt. The training adds those of the loss and of the terms."""
        return {
            "epochs": self.epochs,
            "max_minutes": self.max_minutes,
            "batch_size": self.batch_size.changed(),
            "lr": self.lr,
            "optimizer": self.optimizer.record(),
            "schedule": vars(self.schedule),
            "validation": self.validation.record(),
            "normalization": vars(self.normalization)
            | {"reference_energies": str(self.normalization.reference_energies)},
            "precision": self.compute.precision,
            "seed": self.seed,
        } | ({"clock": "processor"} if self.compute.clock == "processor" else {})

    def plain(self, losses: Sequence[Loss]) -> dict[str, Any]:
        """The section ``train`` of a YAML file. Objects that a file cannot hold are described by a text.

        Parameters
        ----------
        losses : Sequence of Loss
            The terms of the loss.
        """
        found: dict[str, Any] = {
            name: getattr(self, name) for name in ("epochs", "max_minutes", "lr", "device", "resume", "seed")
        }
        found |= {"out": None if self.out is None else str(self.out)}
        found |= {"loss": {term.label: term.record() for term in losses}}
        groups = {name: group for name in GROUPS if (group := getattr(self, name)) is not None}
        found |= {name: changed for name, group in groups.items() if (changed := _plain(group.changed()))}
        if self.finetune is not None and "finetune" not in found:
            found["finetune"] = self.finetune.method
        if self.terms:
            found["terms"] = [_term(term) for term in self.terms]
        return found


def _term(term: Hook) -> dict[str, Any]:
    return {type(term).__name__: _plain(term.changed()) if isinstance(term, Options) else {}}


def _plain(value: Any) -> Any:
    """Values that YAML has; of other objects their type and size."""
    if isinstance(value, Options):
        return _plain(value.changed())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value] if len(value) < 100 else f"{type(value).__name__} of {len(value)}"
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Path):
        return str(value)
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__
