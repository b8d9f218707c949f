"""The loop of a training.

`molequi.training.processes` has the sums over devices and processes. The loop is our own, because a training
can continue at any step of any epoch. Every step is a function of the saved state alone. So a training that
was killed and continued ends with the same weights as one that was not, bit for bit on a CPU.
"""

import math
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from molequi.checkpoint import save
from molequi.data.batches import Batches, Loader, evaluation_edges
from molequi.data.dataset import Dataset
from molequi.data.structures import Structures
from molequi.graph import Graph
from molequi.hooks import Batch, Hook, Report
from molequi.inference.evaluate import final_errors, training_record
from molequi.inference.metrics import Errors, Metrics
from molequi.losses import Objective
from molequi.model import Model
from molequi.training.clock import Clock, choose_compilation
from molequi.training.failures import left_by_interrupt, not_finite, out_of_memory, validation_not_finite
from molequi.training.history import History, write_config, write_errors, write_report
from molequi.training.hook_calls import (
    counts_of,
    metadata_of,
    numbers_of,
    penalties_of,
    summed_gradients,
    sums_of,
    trained_parameters,
    transformed,
    validation_losses,
)
from molequi.training.levels import keep_facts
from molequi.training.loggers import log_config, make_loggers
from molequi.training.options import TrainingOptions
from molequi.training.processes import Processes
from molequi.training.products import without_products
from molequi.training.result import Result
from molequi.training.schedule import Average, LearningRate
from molequi.training.soap import forget_moments
from molequi.training.state import UPGRADES, Place, resume, state_of
from molequi.util.memory import is_out_of_memory
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process
from molequi.util.state_files import StateFiles


class Training:
    """A running training. `molequi.training.state` saves and restores its state.

    Parameters
    ----------
    model : Model
        The model, on its device, with its scales set.
    parts : Mapping of Dataset
        The data with their edges: train, valid and perhaps test.
    objective : Objective
        The loss.
    terms : Sequence of Hook
        The terms beside the loss; they are started here.
    options : TrainingOptions
        The options of a training with one seed.
    processes : Processes
        This process and its device among all processes.
    record : Mapping
        What a continued training has to share, see `resume`. The values of the terms are added here.
    config : Mapping
        The description of the run that is written to the folder.
    """

    def __init__(
        self,
        model: Model,
        parts: Mapping[str, Dataset],
        objective: Objective,
        terms: Sequence[Hook],
        options: TrainingOptions,
        processes: Processes,
        record: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> None:
        self.model, self.parts, self.objective, self.options = model, parts, objective, options
        self.processes, self.folder, self.config = processes, options.out, config
        self.metrics = {
            name: Metrics(model.quantities, data, processes.device)
            for name, data in parts.items()
            if name != "test"
        }
        size = options.batch_size
        self.batches = {
            "train": Batches(
                parts["train"],
                batch_size=size.structures,
                batch_atoms=size.atoms,
                batch_edges=size.edges,
                seed=self.seed,
            ),
            "valid": Batches(parts["valid"], batch_edges=evaluation_edges(parts["valid"]), shuffle=False),
        }
        self.loaders = {
            name: Loader(
                parts[name],
                list(metrics.quantities),
                share=self.share,
                workers=options.compute.workers * (name == "train"),
            )
            for name, metrics in self.metrics.items()
        }
        self.place = Place()
        self.seconds = self.saved_at = 0.0  # of this training, agreed between the devices
        self.hooks = [term.start(self) for term in terms]
        self.record = {**record, "terms": {hook.name: dict(hook.record()) for hook in self.hooks}}
        rates = trained_parameters(self.hooks, self)
        self.parameters = [p for p, _ in rates]
        self.optimizer = options.optimizer.make(self.parameters, options.lr, [r for _, r in rates])
        self.learning_rate = LearningRate(options.schedule)
        self.average = Average(model, options.optimizer.ema) if options.optimizer.ema else None
        self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.running = self._zeros(2 * len(objective.terms) + 2)
        self.totals = self._zeros(len(self.hooks))  # the penalty of each hook in this step
        self.penalties: dict[str, Tensor] = {}  # sums over the steps of this epoch
        self.states = None if self.folder is None else StateFiles(self.folder, UPGRADES)
        self.order: list[list[int]] = []
        self.compilation = ""  # a sentence about it
        self.clock = Clock(model, options.compute.clock)
        self.kept = keep_facts(model, parts["train"])  # for simulations and predictions

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self.processes.device)

    # What hooks see, beside `model`, `parts`, `objective` and `optimizer`.

    @property
    def averaged(self) -> Model | None:
        """The model with averaged weights and the present buffers; None without averaging."""
        return self.average.ready() if self.average else None

    @property
    def batch_limits(self) -> Mapping[str, int]:
        """The limit of a batch, as the argument of `Batches`."""
        return self.options.batch_size.limits

    @property
    def history(self) -> list[dict[str, float]]:
        """A row for each epoch that is over."""
        return self.place.history

    @property
    def epoch(self) -> int:
        """Number of epochs that are over."""
        return self.place.epoch

    @property
    def seed(self) -> int:
        """The seed of all random numbers."""
        return self.options.member_seed

    @property
    def share(self) -> tuple[int, int]:
        """Rank of this device and number of devices."""
        return self.processes.global_rank, self.processes.world_size

    def graphs(self, part: str) -> Structures:
        """The structures of a part, ``"train"`` or ``"valid"``, with their labels."""
        return self.loaders[part].graphs

    def connected(self, data: Dataset) -> Dataset:
        """The same data with the edges that the model needs."""
        return data.connected(self.model.cutoff, self.options.compute.cache, k=self.model.k)

    def done(self) -> float:
        """The part of the training that is done, by epochs or by time."""
        epochs, minutes = self.options.epochs, self.options.max_minutes
        by_epochs = self.epochs() / epochs if epochs else 0.0
        by_time = self.seconds / (60 * minutes) if minutes else 0.0
        return max(by_epochs, by_time)

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over all devices; all of them have to call this method."""
        return values if self.processes.world_size == 1 else self.processes.all_reduce(values.clone())

    def broadcast(self, value: Any) -> Any:
        """The value of the first device; all devices have to call this method."""
        return self.processes.broadcast(value)

    def forget_best(self) -> None:
        """Begin the choice of the best epoch anew."""
        self.place.best_loss = self.learning_rate.lowest = math.inf
        self.place.waited = 0

    def forget_moments(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Set the moments of parameters to zero."""
        forget_moments(self.optimizer, parameters)

    def freezing(self) -> list[str]:
        """Names of the hooks that keep parameters from the optimizer."""
        return sorted(hook.name for hook in self.hooks if hook.frozen())

    def save(self) -> None:
        """Write the state to the folder of the run, if there is one."""
        self.saved_at = self.seconds
        if self.states:
            state = state_of(self)
            if self.processes.is_global_zero:
                self.states.save(state)

    # How far it is.

    def tick(self, received: list[int]) -> list[int]:
        """Read the clock, and return the signals that any process received.

        All devices get the same answers, so that they stay together and end with the same exit status.
        """
        kinds = (signal.SIGTERM, signal.SIGINT)
        now = [self.clock.seconds(), *map(received.count, kinds)]
        whole = self.add_up(torch.tensor(now, dtype=torch.float64, device=self.processes.device))
        seconds, *counts = whole.tolist()
        self.seconds = seconds / self.processes.world_size
        if self.processes.world_size == 1:
            return received
        return [int(number) for number, count in zip(kinds, counts) if count]

    def epochs(self) -> float:
        """Number of epochs that are done, with fractions."""
        return self.place.epoch + self.place.batch / max(len(self.order), 1)

    def ended(self) -> str:
        """Why the training ended: all epochs are done, or the time is up."""
        by_epochs = self.options.epochs and self.place.epoch >= self.options.epochs
        return "all epochs" if by_epochs else "time is up"

    # The loop.

    def run(self) -> Result:
        """Train to the end, measure errors, write all files."""
        if self.states:
            resume(self)
        self.processes.barrier()
        main = self.processes.is_global_zero
        if self.folder and main:
            write_config(self.folder, self.config)
        loggers = make_loggers(self.options.logging.loggers, self.folder, self.history) if main else []
        for logger in loggers:
            log_config(logger, self.config)
        shown = [f"valid_{hook.name}_" for hook in self.hooks]
        self.order = self.batches["train"].epoch(self.place.epoch)
        self.compilation = choose_compilation(self)
        with (
            History(self.folder if main else None, self.history, loggers, shown) as history,
            ProgressBar(
                "training",
                1.0,
                unit="",
                show=self.options.logging.progress and main,
                start=self.done(),
                keep=True,
                clock=self.clock.shown,
            ) as bar,
            catch_signals() as received,
        ):
            while not self.place.stopped:
                self.train_epoch(bar, received)
                row = self.end_of_epoch()
                bar.update(min(self.done(), 1.0), history.add(row))
                self.save()
                if self.place.best_epoch == self.place.epoch:
                    self.write_model()
            bar.finish()
        return self.finish()

    def finish(self) -> Result:
        """Measure errors and reports of the best model, and write their files."""
        main = self.processes.is_global_zero
        self.model.load_state_dict(self.best)
        self.model.eval()
        for hook in self.hooks:
            hook.before_report(self)
        progress = self.options.logging.progress
        errors = final_errors(self.model, self.parts, progress=progress, fabric=self.processes)
        made = [(hook, hook.report(self)) for hook in self.hooks]
        reports = {hook.name: report for hook, report in made if report is not None}
        place = self.place
        if self.folder and main:
            metadata: dict[str, Any] = {}
            for hook, report in made:
                metadata |= {} if report is None else metadata_of(hook, report)
            self.write_model(errors, metadata)
            write_errors(self.folder, errors)
            for name, report in reports.items():
                if isinstance(report, Report):
                    write_report(self.folder, name, report)
        return Result(
            self.model,
            place.history,
            errors,
            place.best_epoch,
            place.best_loss,
            place.stopped,
            self.folder,
            main,
            reports,
            self.compilation,
        )

    def train_epoch(self, bar: ProgressBar, received: list[int]) -> None:
        """Do the steps of an epoch, or those that are left of it."""
        minutes = self.options.logging.save_minutes
        place, every = self.place, 60 * (1.0 if minutes is None else minutes)
        self.order = self.batches["train"].epoch(place.epoch)
        self.model.train()
        for batch, graph in self.loaders["train"](self.order[place.batch :]):
            rate = self.options.lr * self.learning_rate(self.epochs(), self.done())
            self.step(batch, graph, rate)
            place.batch += 1
            place.step += 1
            bar.update(min(self.done(), 1.0))
            if signals := self.tick(received):
                self.save()
                stop_process(signals, left_by_interrupt(self))
            if self.seconds - self.saved_at >= every:
                self.save()
            if self.done() >= 1:
                break

    def step(self, batch: list[int], graph: Graph | None, rate: float) -> None:
        """Do one step on a batch, of which `graph` is this device's share, with a learning rate."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            for hook in self.hooks:
                hook.before_step(self)
            sums, known, penalties = self._backward(batch, graph)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(self, batch, graph) from error
        sums = self.add_up(sums.detach())
        if penalties:
            added = self.add_up(torch.stack([v.detach().double() for v in penalties.values()]))
            penalties = dict(zip(penalties, added))
        gradients = summed_gradients(self.parameters, self)
        for hook in self.hooks:
            hook.after_gradients(self)
        norm, self.totals = torch.nn.utils.get_total_norm(gradients), self.add_up(self.totals)
        if not math.isfinite(float(norm) + float(sums.sum() + self.totals.sum())):
            raise not_finite(self, batch, sums, known, norm, penalties)
        clip = self.options.optimizer.clip
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_step(self)
        if self.average:
            self.average.update(self.place.step + 1)
        clipped = torch.zeros_like(norm) if clip is None else (norm > clip)
        self.running += torch.cat([sums, known, torch.stack([norm.double(), clipped.double()])])
        for name, value in penalties.items():
            self.penalties[name] = self.penalties.get(name, 0.0) + value

    def _backward(self, batch: list[int], graph: Graph | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the gradients of the loss and of the penalties.

        Returns this device's sums, the counts of all devices, and numbers of the hooks.
        """
        known = self._zeros(len(self.objective.terms))
        sums, out = torch.zeros_like(known), None
        if graph is not None:
            graph = graph.to(self.processes.device)
            graph = transformed(self.hooks, self, batch, graph, self.place.step)
            known = self.objective.known(graph).double()
        known = self.add_up(known)
        total = known.new_zeros(())
        if graph is not None:
            out = self.model(graph)
            sums = self.objective.sums(out, graph)
            total = self.objective.total(sums, known)
        step = Batch(self.place.step, counts_of(self.hooks, self, batch), graph, out)
        added, values, self.totals = penalties_of(self.hooks, self, step, known)
        total = total + added
        if total.requires_grad:
            total.backward()
        if graph is not None and out is not None:
            self.metrics["train"].update(out, graph)
        return sums, known, values

    def end_of_epoch(self) -> dict[str, float]:
        """Validate the model, and return the row of this epoch."""
        place, count = self.place, len(self.objective.terms)
        steps = max(place.batch, 1)
        sums, known = self.running[:count], self.running[count : 2 * count]
        norm, clipped = (self.running[2 * count :] / steps).tolist()
        over = self.done() >= 1
        row = {
            "epoch": place.epoch + 1,
            "step": place.step,
            "seconds": round(self.seconds, 3),
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": float(self.objective.total(sums, known)),
            "gradient_norm": norm,
            "clipped": clipped,
        }
        row |= {f"train_loss_{k}": v for k, v in self.objective.own(sums, known).items()}
        row |= {name: float(value / steps) for name, value in self.penalties.items()}
        for hook in self.hooks:
            values = numbers_of(hook, "epoch_values", hook.epoch_values(self))
            row |= {f"{hook.name}_{name}": value for name, value in values.items()}
        row |= self._numbers("train")
        place.epoch, place.batch = place.epoch + 1, 0
        self.running.zero_()
        self.penalties = {}
        if over:
            place.stopped = self.ended()
        if place.epoch % self.options.validation.every == 0 or over:
            for hook in self.hooks:
                hook.before_validation(self)
            loss, more = self.validate()
            row |= {"valid_loss": loss} | self._numbers("valid") | more
            added = validation_losses(self.hooks, self)
            row |= added
            self._judge(loss + sum(added.values()))
        place.history.append(row)
        return row

    def _judge(self, loss: float) -> None:
        """Draw the consequences of a validation loss for the schedule, the best weights and the end."""
        place, patience = self.place, self.options.patience
        self.learning_rate.measured(loss)
        place.waited = 0 if loss < place.best_loss else place.waited + 1
        if loss < place.best_loss or self.options.validation.keep == "last":
            place.best_loss, place.best_epoch = loss, place.epoch
            best = self.average.model if self.average else self.model
            self.best = {name: value.detach().clone() for name, value in best.state_dict().items()}
        if patience and place.waited >= patience:
            place.stopped = f"no better for {place.waited} validations"

    def _numbers(self, part: str) -> dict[str, float]:
        metrics = self.metrics[part]
        for name in metrics.sums:
            metrics.sums[name] = self.add_up(metrics.sums[name])
        numbers = {f"{part}_{k}": v for k, v in metrics.errors().numbers().items() if not k.endswith("_r2")}
        metrics.reset()
        return numbers

    def validate(self) -> tuple[float, dict[str, float]]:
        """The loss on the validation data, and the numbers of the hooks on them."""
        model = (self.averaged or self.model).eval()
        count = len(self.objective.terms)
        total = self._zeros(2 * count)
        of_hooks: dict[int, Tensor] = {}
        with torch.no_grad():
            for number, (batch, graph) in enumerate(self.loaders["valid"](self.batches["valid"].epoch(0))):
                out = None
                if graph is not None:
                    graph = graph.to(self.processes.device)
                    out = model(graph)
                    sums = self.objective.sums(out, graph)
                    if not bool(torch.isfinite(sums).all()):
                        raise validation_not_finite(self, batch, sums)
                    total += torch.cat([sums, self.objective.known(graph)])
                    self.metrics["valid"].update(out, graph)
                counts = [self.parts["valid"][k].num_nodes for k in batch] if self.hooks else []
                for k, hook in enumerate(self.hooks):
                    more = sums_of(hook, self, model, Batch(number, counts, graph, out))
                    if more is not None:
                        of_hooks[k] = of_hooks[k] + more if k in of_hooks else more
        total = self.add_up(total)
        loss, own = self.objective.total(*total.split(count)), self.objective.own(*total.split(count))
        values = {f"valid_loss_{name}": value for name, value in own.items()}
        for k, sums in of_hooks.items():
            hook = self.hooks[k]
            found = numbers_of(hook, "validation_values", hook.validation_values(self.add_up(sums)))
            values |= {f"valid_{hook.name}_{name}": value for name, value in found.items()}
        return float(loss), values

    def write_model(
        self, errors: Mapping[str, Errors] | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write the best model so far to the folder of the run, if there is one."""
        if not (self.folder and self.processes.is_global_zero):
            return
        trained = {
            "best_epoch": self.place.best_epoch,
            **training_record(errors or {}),
        }
        now = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.best)
        try:
            file = self.folder / "model.safetensors"
            kept = {"run": self.config, "training": trained, **self.kept}
            save(without_products(self.model), file, metadata={**kept, **(metadata or {})})
        finally:
            self.model.load_state_dict(now)
