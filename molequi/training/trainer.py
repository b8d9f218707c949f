"""The loop of a training.

Lightning Fabric gives devices, processes and sums over them; the loop is ours, because it can be entered at any step of
any epoch: every step is a function of the saved state alone, so that a training that was killed ends with the same
weights, bit for bit on a CPU.
"""

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from molequi.approximate.annealing import Relaxation
from molequi.approximate.regularizers import Prior
from molequi.approximate.selection import Degree, LearnedDegree
from molequi.audit.symmetry_reports import symmetry_report as measured_symmetry
from molequi.checkpoint import save
from molequi.data.batches import Batches, Loader
from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import CheckpointError, ConfigError, DataWarning, MolequiError, TrainingError
from molequi.inference.evaluate import evaluate
from molequi.inference.metrics import Errors, Metrics, table
from molequi.losses import Loss
from molequi.model import Model
from molequi.symmetry_report import SymmetryReport
from molequi.training.history import History, epoch_summary, write_config, write_degree, write_errors
from molequi.training.schedule import Average, Schedule
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process
from molequi.util.state_files import StateFiles, differences

REPORTED = 24  # validation structures from which those of the symmetry report are chosen


@dataclass(frozen=True)
class Result:
    """What a training leaves: the best model (averaged weights, evaluation mode), a row an epoch, errors by part.

    main: False in all but one of the processes of a training on several devices. degree: what was learned with the option of this name.
    report: the symmetry of the model as it was measured at the end.
    """

    model: Model
    history: list[dict[str, float]]
    errors: dict[str, Errors]
    best_epoch: int
    best_loss: float
    stopped: str
    out: Path | None
    main: bool = True
    degree: Degree | None = None
    symmetry_report: SymmetryReport | None = None

    def __str__(self) -> str:
        return (
            f"best epoch {self.best_epoch} of {len(self.history)} ({self.stopped})\n{table(self.errors)}"
            + "".join(f"\n{part}" for part in (self.degree, self.symmetry_report) if part)
        )


@dataclass
class _Place:
    """Where a training is."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = -1
    waited: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """A training under way. All that changes is in `state`, and `restore` puts it back."""

    def __init__(
        self, model, parts, weights, settings, record, fabric, folder, config, prior: Prior | None = None
    ):
        self.model, self.parts, self.settings, self.record, self.config = (
            model,
            parts,
            settings,
            record,
            config,
        )
        self.fabric, self.folder, self.prior = fabric, folder, prior
        self.relaxation = None if settings["relax"] is None else Relaxation(settings["relax"])
        share = (fabric.global_rank, fabric.world_size)
        limits = {k: settings[k] for k in ("batch_size", "batch_atoms", "batch_edges")}
        self.loss = Loss(weights, model.quantities, settings["loss_kind"], settings["huber_delta"])
        self.metrics = {
            name: Metrics(model.quantities, data, fabric.device)
            for name, data in parts.items()
            if name != "test"
        }
        self.batches = {
            "train": Batches(parts["train"], **limits, seed=settings["seed"]),
            "valid": Batches(parts["valid"], batch_edges=max(20_000, *_edges(parts["valid"])), shuffle=False),
        }
        self.loaders = {
            name: Loader(
                parts[name],
                list(metrics.quantities),
                share=share,
                workers=settings["workers"] * (name == "train"),
            )
            for name, metrics in self.metrics.items()
        }
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings["optimizer"]]
        self.degree = (
            LearnedDegree(model, self.loss, settings, parts["train"]) if settings["degree"] else None
        )
        held = self.degree.held() if self.degree else ()
        self.parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in held]
        self.optimizer = kind(
            self.parameters,
            lr=settings["lr"],
            amsgrad=settings["amsgrad"],
            weight_decay=settings["weight_decay"],
            fused=True,
        )
        self.schedule = Schedule(
            settings["schedule"],
            settings["warmup"],
            settings["plateau_factor"],
            settings["plateau_patience"],
            settings["lr_floor"],
        )
        self.average = Average(model, settings["ema"]) if settings["ema"] else None
        self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.place = _Place()
        self.priors = prior.names if prior else []
        self.running = torch.zeros(
            2 * len(self.loss.weights) + 2 + len(self.priors), dtype=torch.float64, device=fabric.device
        )
        self.states = None if folder is None else StateFiles(folder)
        self.started = time.monotonic()
        self.seconds = self.saved_at = 0.0  # of this training, agreed between the devices

    # What is kept.

    def state(self) -> dict[str, Any]:
        rng = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        return {
            "record": self.record,
            "place": asdict(self.place) | {"seconds": self.seconds},
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state(),
            "degree": self.degree.state() if self.degree else None,
            "running": self.running,
            "sums": {name: self.add_up(sums) for name, sums in self.metrics["train"].sums.items()},
            "rng": rng,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.place = _Place(**state["place"])
        self.order = self.batches["train"].epoch(self.place.epoch)
        self.seconds = self.saved_at = self.place.seconds
        self.started = time.monotonic() - self.seconds
        self.model.load_state_dict(state["model"])
        if self.average and state["average"]:
            self.average.model.load_state_dict(state["average"])
        self.best = {name: value.to(self.fabric.device) for name, value in state["best"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.restore(state["schedule"])
        if self.degree and state.get("degree"):
            self.degree.restore(state["degree"])
        if state["running"].shape == self.running.shape:
            self.running.copy_(state["running"])
        for name, sums in self.metrics["train"].sums.items():
            if name in state["sums"] and self.fabric.is_global_zero:  # they are sums over all devices
                sums.copy_(state["sums"][name])
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if "cuda" in state["rng"] and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), self.fabric.device)

    def save(self) -> None:
        self.saved_at = self.seconds
        if self.states:
            state = self.state()
            if self.fabric.is_global_zero:
                self.states.save(state)

    def resume(self) -> None:
        """Takes up what is in the folder, if wanted. Raises ConfigError with the differences where it does not fit."""
        if self.settings["resume"] == "restart":
            if self.fabric.is_global_zero:
                self.states.remove()
            return
        state = self.states.load()
        if state is None:
            return
        changed = differences(state["record"], self.record)
        if changed and self.settings["resume"] != "force":
            raise ConfigError(
                f"{self.folder} holds a training with other settings or data:\n  "
                + "\n  ".join(changed)
                + "\nGo on all the same with resume='force', begin anew with resume='restart', or choose another folder"
                " with out="
            )
        if (state.get("degree") is None) != (self.degree is None):
            raise CheckpointError(
                f"{self.folder}: one of its training and this one has degree= and the other has not; it holds the gates of relaxed layers "
                "back, so that the one cannot go on from the other. Begin anew with resume='restart', or choose another folder with out="
            )
        try:
            self.restore(state)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder}: its state does not fit this model ({error}); begin anew with resume='restart'"
            ) from error
        if changed:
            over = self.done() >= 1 and not self.place.batch and self.place.best_epoch >= 0
            self.place.stopped = self.ended() if over else ""  # the new settings decide how long it goes on
        if self.place.stopped and self.fabric.is_global_zero:
            print(
                f"{self.folder}: this training was finished already ({self.place.stopped}), and its model is taken; "
                "resume='restart' begins anew",
                flush=True,
            )

    # Where it is.

    def tick(self, received: list[int]) -> bool:
        """Looks at the clock; whether a signal was received. All devices get the same answers, lest they part ways."""
        now = torch.tensor(
            [time.monotonic() - self.started, len(received)], dtype=torch.float64, device=self.fabric.device
        )
        seconds, signals = self.add_up(now).tolist()
        self.seconds = seconds / self.fabric.world_size
        return signals > 0

    def epochs(self) -> float:
        """Epochs that are done, with fractions."""
        return self.place.epoch + self.place.batch / max(len(self.order), 1)

    def done(self) -> float:
        """Part of the training that is done, by epochs or by time."""
        by_epochs = self.epochs() / self.settings["epochs"] if self.settings["epochs"] else 0.0
        by_time = self.seconds / (60 * self.settings["max_minutes"]) if self.settings["max_minutes"] else 0.0
        return max(by_epochs, by_time)

    def ended(self) -> str:
        """Why a training that is done is over."""
        return (
            "all epochs"
            if self.settings["epochs"] and self.place.epoch >= self.settings["epochs"]
            else "time is up"
        )

    # The loop.

    def run(self) -> Result:
        if self.states:
            self.resume()
        self.fabric.barrier()
        main = self.fabric.is_global_zero
        if self.folder and main:
            write_config(self.folder, self.config)
        self.order = self.batches["train"].epoch(self.place.epoch)
        with (
            History(
                self.folder if main else None, self.place.history, self.settings["tensorboard"]
            ) as history,
            ProgressBar(
                "training",
                1.0,
                unit="",
                show=self.settings["progress"] and main,
                start=self.done(),
                keep=True,
            ) as bar,
            catch_signals() as received,
        ):
            while not self.place.stopped:
                self.epoch(bar, received)
                row = self.end_of_epoch()
                history.add(row)
                bar.update(min(self.done(), 1.0), epoch_summary(row))
                self.save()
                if self.place.best_epoch == self.place.epoch - 1:
                    self.write_model()
        self.model.load_state_dict(self.best)
        self.model.eval()
        errors = {
            name: evaluate(self.model, data, batch_edges=max(20_000, *_edges(data)), fabric=self.fabric)
            for name, data in self.parts.items()
        }
        report = symmetry_report_of(self.model, self.parts["valid"]) if main else None
        result = Result(
            self.model,
            self.place.history,
            errors,
            self.place.best_epoch,
            self.place.best_loss,
            self.place.stopped,
            self.folder,
            main,
            self.degree.report(self.loaders["valid"].graphs, self.place.history) if self.degree else None,
            report,
        )
        if self.folder and main:
            self.write_model(errors, report)
            write_errors(self.folder, errors)
            if result.degree:
                write_degree(self.folder, result.degree)
        return result

    def epoch(self, bar: ProgressBar, received: list[int]) -> None:
        place, every = self.place, self.settings["save_minutes"] * 60
        self.order = self.batches["train"].epoch(place.epoch)
        self.model.train()
        for batch, graph in self.loaders["train"](self.order[place.batch :]):
            rate = self.settings["lr"] * self.schedule(self.epochs(), self.done())
            self.step(batch, graph, rate)
            place.batch += 1
            place.step += 1
            bar.update(min(self.done(), 1.0))
            if self.tick(received):
                self.save()
                stop_process(received)
            if self.seconds - self.saved_at >= every:
                self.save()
            if self.done() >= 1:
                break

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all devices."""
        return (
            values if self.fabric.world_size == 1 else self.fabric.all_reduce(values.clone(), reduce_op="sum")
        )

    def step(self, batch: list[int], graph, rate: float) -> None:
        """One step on a batch, of which `graph` is this device's share."""
        self.optimizer.zero_grad(set_to_none=True)
        count = len(self.loss.weights)
        known = torch.zeros(count, dtype=torch.float64, device=self.fabric.device)
        sums, penalties, out = torch.zeros_like(known), known.new_zeros(len(self.priors)), None
        if self.relaxation:
            self.relaxation.set(self.model, self.done())
        try:
            if graph is not None:
                graph = graph.to(self.fabric.device)
                known = self.loss.known(graph).double()
            known = self.add_up(known)
            total = known.new_zeros(())
            if graph is not None:
                out = self.model(graph)
                sums = self.loss.sums(out, graph)
                total = self.loss.total(sums, known)
            if self.prior:
                penalties = self.prior(
                    self.model,
                    graph,
                    out,
                    [self.parts["train"][k].num_nodes for k in batch],
                    self.place.step,
                    self.add_up,
                )
                total = total + self.prior.total(penalties)
            if self.relaxation:
                total = total + self.relaxation.penalty(self.model) / self.fabric.world_size
            if total.requires_grad:
                total.backward()
            if graph is not None:
                self.metrics["train"].update(out, graph)
        except torch.OutOfMemoryError as error:
            atoms = "no" if graph is None else graph.num_nodes
            edges = "no" if graph is None or graph.edge_index is None else graph.edge_index.shape[1]
            raise TrainingError(
                f"step {self.place.step + 1}: out of memory with a batch of {len(batch)} structures, {atoms} atoms and"
                f" {edges} edges on {self.fabric.device}; make batches smaller (batch_size, batch_atoms, batch_edges)"
            ) from error
        sums, penalties = self.add_up(sums.detach()), self.add_up(penalties.detach())
        gradients = self.gradients()
        if self.degree:
            self.degree.gradients()
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm) + float(sums.sum())):
            self.fail(batch, sums, known, norm, penalties)
        clip = self.settings["clip"]
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.average:
            self.average.update(self.place.step + 1)
        clipped = torch.zeros_like(norm) if clip is None else (norm > clip)
        self.running += torch.cat([sums, known, torch.stack([norm.double(), clipped.double()]), penalties])

    def gradients(self) -> list[torch.Tensor]:
        """Gradients of all parameters, summed over the devices."""
        if self.fabric.world_size > 1:
            for p in self.parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            flat = self.add_up(torch.cat([p.grad.reshape(-1) for p in self.parameters]))
            for p, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters])):
                p.grad.copy_(part.view_as(p))
        return [p.grad for p in self.parameters if p.grad is not None]

    def fail(self, batch, sums, known, norm, penalties) -> None:
        origins = self.parts["train"].origins
        values = [
            *zip(self.loss.weights, (sums / known.clamp(min=1)).tolist()),
            *zip((f"prior of {s}" for s in self.priors), penalties.tolist()),
        ]
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values)
        kept = (
            f" The best model so far is in {self.folder}."
            if self.folder and self.place.best_epoch >= 0
            else ""
        )
        raise TrainingError(
            f"step {self.place.step + 1} (epoch {self.place.epoch}): the loss is not finite ({terms}; norm of the"
            f" gradient {float(norm):.4g}) for the batch of {', '.join(origins[k] for k in batch)}. Look at these"
            f" structures, or lower lr or clip.{kept}"
        )

    def end_of_epoch(self) -> dict[str, float]:
        """Validation; the row of this epoch."""
        place, quantities = self.place, list(self.loss.weights)
        steps = max(place.batch, 1)
        count = len(quantities)
        sums, known, (norm, clipped, *penalties) = (
            self.running[:count],
            self.running[count : 2 * count],
            (self.running[2 * count :] / steps).tolist(),
        )
        over = self.done() >= 1
        row = {
            "epoch": place.epoch,
            "step": place.step,
            "seconds": round(self.seconds, 3),
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": float(self.loss.total(sums, known)),
            "gradient_norm": norm,
            "clipped": clipped,
        }
        row |= {f"train_prior_{name}": value for name, value in zip(self.priors, penalties)}
        if self.relaxation:
            row["theta"] = self.relaxation.theta(self.done())
        row |= self._numbers("train")
        place.epoch, place.batch = place.epoch + 1, 0
        self.running.zero_()
        if over:
            place.stopped = self.ended()
        if place.epoch % self.settings["validate_every"] == 0 or over:
            if self.degree:
                self.degree.update(self)
            loss, penalties = self.validate()
            row |= (
                {"valid_loss": loss}
                | self._numbers("valid")
                | {f"valid_prior_{s}": r for s, r in zip(self.priors, penalties)}
            )
            self.schedule.measured(loss)
            place.waited = 0 if loss < place.best_loss else place.waited + 1
            if loss < place.best_loss:
                place.best_loss, place.best_epoch = loss, place.epoch - 1
                best = self.average.model if self.average else self.model
                self.best = {name: value.detach().clone() for name, value in best.state_dict().items()}
            if self.settings["patience"] and place.waited >= self.settings["patience"]:
                place.stopped = f"no better for {place.waited} validations"
        place.history.append(row)
        return row

    def _numbers(self, part: str) -> dict[str, float]:
        metrics = self.metrics[part]
        for name in metrics.sums:
            metrics.sums[name] = self.add_up(metrics.sums[name])
        numbers = {f"{part}_{k}": v for k, v in metrics.errors().numbers().items() if not k.endswith("_r2")}
        metrics.reset()
        return numbers

    def validate(self) -> tuple[float, list[float]]:
        """The loss on the validation data, and the penalties of the prior there, in poses of which training knows nothing.

        Constraints that are relaxed are tight here, so that what is best is best without their help.
        """
        if self.relaxation:
            self.relaxation.set(self.model, 0.0)
        model = (self.average.ready() if self.average else self.model).eval()
        count = len(self.loss.weights)
        total = torch.zeros(2 * count, dtype=torch.float64, device=self.fabric.device)
        penalties = total.new_zeros(len(self.priors), 2, count)
        with torch.no_grad():
            for number, (batch, graph) in enumerate(self.loaders["valid"](self.batches["valid"].epoch(0))):
                if graph is None:
                    continue
                graph = graph.to(self.fabric.device)
                out = model(graph)
                sums = self.loss.sums(out, graph)
                if not bool(torch.isfinite(sums).all()):
                    bad = [
                        name
                        for name, value in zip(self.loss.weights, sums.tolist())
                        if not math.isfinite(value)
                    ]
                    raise TrainingError(
                        f"epoch {self.place.epoch}: the validation loss of {', '.join(bad)} is not finite, among "
                        f"{', '.join(self.parts['valid'].origins[k] for k in batch)}. The model cannot predict it there (stress needs a cell, a "
                        "dipole none), or the training has diverged: look at these structures, or lower lr"
                    )
                total += torch.cat([sums, self.loss.known(graph)])
                self.metrics["valid"].update(out, graph)
                if self.prior:
                    penalties += self.prior.sums(
                        model, graph, out, [self.parts["valid"][k].num_nodes for k in batch], number
                    )
        total, penalties = self.add_up(total), self.add_up(penalties)
        return float(self.loss.total(total[:count], total[count:])), self.prior.mean(
            penalties
        ).tolist() if self.prior else []

    # What is written.

    def write_model(
        self, errors: Mapping[str, Errors] | None = None, symmetry_report: SymmetryReport | None = None
    ) -> None:
        if not (self.folder and self.fabric.is_global_zero):
            return
        trained = {
            "best_epoch": self.place.best_epoch,
            "errors": {part: e.numbers() for part, e in (errors or {}).items()},
        }
        now = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.best)
        try:
            save(
                self.model,
                self.folder / "model.safetensors",
                metadata={
                    "run": self.config,
                    "training": trained,
                    "symmetry_report": symmetry_report and symmetry_report.to_dict(),
                },
            )
        finally:
            self.model.load_state_dict(now)


def symmetry_report_of(model: Model | Ensemble, data: Dataset) -> SymmetryReport | None:
    """The symmetry report, measured on structures that were not learnt from; None, with a warning, where the audit cannot do it."""
    chosen = sorted({k * len(data) // REPORTED for k in range(REPORTED)})
    try:
        report = measured_symmetry(model, [data[k] for k in chosen])
    except (
        Exception
    ) as error:  # of a backbone of the user's own, anything; a training that is done must not be lost to it
        kind = "" if isinstance(error, MolequiError) else f"{type(error).__name__}: "
        warnings.warn(
            f"the model has no symmetry report, since the audit of it ended with {kind}{error}",
            DataWarning,
            stacklevel=2,
        )
        return None
    model.metadata = {**getattr(model, "metadata", {}), "symmetry_report": report.to_dict()}
    return report


def _edges(data: Dataset) -> list[int]:
    return [graph.edge_index.shape[1] for graph in data]
