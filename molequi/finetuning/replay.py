"""Replay: the loss on old data, which is added to that on new ones, and is checked to act."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from molequi.data.batches import Batches, evaluation_edges
from molequi.data.checks import check_same_quantities
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, TrainingError, did_you_mean
from molequi.finetuning.energies import with_labels, with_shifted_energies
from molequi.finetuning.options import Replay
from molequi.hooks import Hook, Run
from molequi.inference.predictions import predicted_batches
from molequi.losses import Loss, Objective
from molequi.model import Model
from molequi.quantities import SYMBOLS, Quantity

_FAR = 1.0  # eV per atom by which the median energy may differ from the starting model
_LARGEST = 20  # structures on which it is checked that replay acts


@dataclass(frozen=True)
class OldData:
    """Old structures with labels, in two parts, with neighbor lists.

    Parameters
    ----------
    train, held : Dataset
        Those that are replayed, and those that measure what is forgotten.
    objective : Objective
        The terms of the loss that are trained on them.
    by_model : bool
        Whether the labels are predictions of the starting model.
    """

    train: Dataset
    held: Dataset
    objective: Objective
    by_model: bool

    def shifted(self, shifts: np.ndarray) -> "OldData":
        """The same with other reference energies.

        Parameters
        ----------
        shifts : array, shape (119,)
            Change of the reference energy by atomic number, in eV.
        """
        train, held = (with_shifted_energies(part, shifts) for part in (self.train, self.held))
        return replace(self, train=train, held=held)


def read_old(data: Dataset, options: Replay, model: Model, losses: Sequence[Loss], seed: int) -> OldData:
    """Old data with their labels, in parts.

    Parameters
    ----------
    data : Dataset
        The structures.
    options : Replay
        The options of replay.
    model : Model
        The starting model, before its reference energies are changed.
    losses : sequence of Loss
        The terms of the loss.
    seed : int
        Seed of the parts.

    Returns
    -------
    OldData

    Raises
    ------
    ConfigError
        If nothing is trained on them, with what they have and what is wanted.
    """
    terms = _terms(options, losses, model.quantities)
    unknown = [SYMBOLS[z] for z in data.elements if z not in model.elements]
    if unknown:
        raise ConfigError(
            f"finetune.replay.data: they have {', '.join(unknown)}, which the starting model does not know; "
            "they belong to the new data"
        )
    if len(data) < 2:
        raise ConfigError(
            f"finetune.replay.data: {len(data)} structure; wanted at least 2, one to train and one to "
            "measure what is forgotten"
        )
    data = data.connected(model.cutoff, k=model.k)
    names = [term.label for term in terms]
    if options.labels == "model":
        data = labelled_by(model, data, names)
    else:
        _check_labels(data, names, model.quantities)
        if "energy" in names:
            _check_zero(data, model)
    count = min(max(1, round(options.valid * len(data))), len(data) - 1)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    held, train = sorted(order[:count]), sorted(order[count:])
    objective = Objective(terms, model.quantities)
    return OldData(data[train], data[held], objective, options.labels == "model")


def _check_zero(data: Dataset, model: Model) -> None:
    """Raise ConfigError if old energies have another zero than the starting model, so that both fight."""
    some = data[:: 1 + (len(data) - 1) // 100]
    away = some.values("energy").reshape(-1).double().clone()
    for batch, _, out in predicted_batches(model.predicting(["energy"]), some, ["energy"], None):
        away[batch] -= out["energy"].cpu().double().reshape(-1)
    away = (away / torch.as_tensor(some.counts)).abs()
    known = away[away.isfinite()]
    gap = float(known.median()) if len(known) else 0.0
    if gap > _FAR:
        raise ConfigError(
            f"finetune.replay.data: the starting model is {gap:.3g} eV/atom away from their energies, so "
            "these are of another method than it learned, such as that of the new data; give data that it "
            "was trained on, or replay.labels='model' for its own predictions"
        )


def _terms(options: Replay, losses: Sequence[Loss], quantities: Mapping[str, Quantity]) -> list[Loss]:
    """The terms of the loss that are replayed. Raises ConfigError for those that the loss does not have."""
    learnt = {term.label: term for term in losses if term.function is None and term.weight > 0}
    wanted = list(learnt) if options.quantities is None else list(options.quantities)
    for name in wanted:
        if name not in quantities:
            raise ConfigError(
                f"finetune.replay.quantities: {name!r} is not predicted by the starting model, so that its "
                f"replay would have no effect{did_you_mean(name, learnt)}"
            )
        if name not in learnt:
            raise ConfigError(
                f"finetune.replay.quantities: {name!r} is no term of the loss, so that its replay would have "
                f"no effect; the loss has {', '.join(learnt) or 'none with labels'}: give it a weight, "
                f"loss={{{name!r}: 1, …}}"
            )
    if not wanted:
        raise ConfigError(
            "finetune.replay: the loss has functions alone and compares no labels, so that nothing would be "
            "replayed; leave replay out, or add a term such as Loss('forces')"
        )
    return [learnt[name] for name in wanted]


def _check_labels(data: Dataset, names: Sequence[str], quantities: Mapping[str, Quantity]) -> None:
    """Raise ConfigError if old data lack labels of a quantity."""
    for name in names:
        if data.labelled(name):
            continue
        others = [n for n in names if data.labelled(n)]
        less = f"replay only what they have, quantities={others}, or " if others else ""
        unread = f"; not read: {', '.join(data.unused)}" if data.unused else ""
        raise ConfigError(
            f"finetune.replay.data: no labels of {name!r} (they have {', '.join(data.quantities) or 'none'}"
            f"{unread}), so that its replay would have no effect; {less}take the labels of the starting "
            "model, labels='model'"
        )
    check_same_quantities({name: quantities[name] for name in names}, data, "the replay data")


def labelled_by(model: Model, data: Dataset, names: Sequence[str]) -> Dataset:
    """Structures with the predictions of a model as labels.

    Parameters
    ----------
    model : Model
        The model.
    data : Dataset
        The structures, with neighbor lists.
    names : sequence of str
        Quantities to label.

    Returns
    -------
    Dataset
    """
    per_node = [name for name in names if model.quantities[name].per == "node"]
    labels: list[dict[str, Tensor]] = [{} for _ in range(len(data))]
    limit = evaluation_edges(data)
    for batch, graph, out in predicted_batches(model.predicting(names), data, [], limit):
        sizes = graph.counts.tolist()
        for name in names:
            value = out[name].double().cpu()
            if model.quantities[name].classes:
                value = value.argmax(-1).double()
            parts = value.split(sizes) if name in per_node else value.split(1)
            for k, part in zip(batch, parts):
                labels[k][name] = part.clone()
    return with_labels(data, labels, {name: model.quantities[name] for name in names})


def check_acts(model: Model, old: OldData, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
    """Check that replay changes the trained weights, term by term.

    A model that has labelled the structures itself has no error on them at the start. So the labels are
    changed by random numbers for this check.

    Parameters
    ----------
    model : Model
        The model on its device.
    old : OldData
        The old data.
    parameters : sequence of Parameter
        Parameters of the model that are trained.
    device : torch.device
        Where the model is.

    Raises
    ------
    ConfigError
        If the gradient of a term is exactly zero.
    """
    terms = old.objective.terms
    graphs = old.train.graphs.with_targets([term.label for term in terms])
    noise = torch.Generator().manual_seed(0)
    plain, silent = model.plain(), list(range(len(terms)))
    # One structure at a time: a batch of them with second derivatives may not fit into memory.
    for number in range(min(len(old.train), _LARGEST)):
        graph = graphs.batch([number]).to(device)
        targets = {
            name: value
            if old.objective.quantities[name].classes
            else value + torch.randn(value.shape, generator=noise, dtype=torch.float64).to(value)
            for name, value in graph.targets.items()
        }
        graph = graph.replace(targets=targets)
        sums = old.objective.sums(plain(graph, create_graph=True), graph)
        silent = [k for k in silent if not _changes(sums[k], parameters)]
        if not silent:
            return
    label = terms[silent[0]].label
    raise ConfigError(
        f"finetune.replay: the loss of {label!r} on the replay data has no gradient with respect to what is "
        f"trained, so that its replay would have no effect; take another method, leave {label!r} out of "
        "replay.quantities, or leave replay out"
    )


def _changes(value: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether a term of the loss has a gradient that is not zero."""
    if not value.requires_grad:
        return False
    slopes = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return any(slope is not None and bool((slope != 0).any()) for slope in slopes)


class ReplayLoss(Hook):
    """Adds the gradient of the loss on old data in each step, and logs what it is.

    Columns of the log: ``replay_loss``, the mean over the steps of the loss on old data times its weight;
    ``replay_gradient_share``, the mean of |g_old| / (|g_old| + |g_new|) with the gradients of both; and
    ``valid_replay_loss``, the loss on the old structures that are not trained, times the weight.

    Parameters
    ----------
    old : OldData
        The old data.
    options : Replay
        Weight and size of a batch.
    """

    name = "replay"

    def __init__(self, old: OldData, options: Replay) -> None:
        self._old, self._options = old, options
        self._names = [term.label for term in old.objective.terms]
        self._graphs = old.train.graphs.with_targets(self._names)
        self._held = old.held.graphs.with_targets(self._names)
        self._step = 0
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._own: list[Tensor | None] = []
        self._loss = self._share = 0.0
        self._count = 0

    def start(self, run: Run) -> "Hook":
        """The hook itself, which belongs to one training.

        Parameters
        ----------
        run : Run
            The training.
        """
        size = self._options.batch_size
        limits: dict[str, Any] = dict(run.batch_limits if size is None else {"batch_size": size})
        self._batches = Batches(self._old.train, **limits, seed=run.seed)
        self._length = len(self._batches.epoch(0))
        return self

    def record(self) -> Mapping[str, Any]:
        """Digests of the old data."""
        return {"data": self._old.train.digest, "held": self._old.held.digest}

    def _batch(self) -> list[int]:
        """The structures of this step. Each pass over the old data has its own order."""
        number, order = self._order
        # All passes count as long as the first one, so that a step does not depend on those before it.
        wanted, place = divmod(self._step, self._length)
        if wanted != number:
            order = self._batches.epoch(wanted)
            self._order = (wanted, order)
        return order[min(place, len(order) - 1)]

    def before_step(self, run: Run) -> None:
        """Compute the gradient of the loss on a batch of old structures.

        Parameters
        ----------
        run : Run
            The training.
        """
        rank, devices = run.share
        batch = self._batch()
        loss = self._loss_of(run, run.model, self._graphs, batch[rank::devices])
        total = float(run.add_up(loss.detach()[None]))
        if not math.isfinite(total):
            first = ", ".join(self._old.train.origins[k] for k in batch[:4])
            raise TrainingError(
                f"finetune.replay: the loss on old structures is {total} in step {self._step} ({first}, …); "
                "take a lower learning rate, or look at their labels"
            )
        if loss.requires_grad:
            loss.backward()
        self._own = [None if p.grad is None else p.grad.clone() for p in _trained(run)]
        self._loss += total

    def _loss_of(self, run: Run, model: Model, graphs: Any, mine: Sequence[int]) -> Tensor:
        """The part of this device in the loss on a batch, times the weight."""
        objective = self._old.objective
        device = next(run.model.parameters()).device
        graph = graphs.batch(list(mine)).to(device) if mine else None
        known = torch.zeros(len(objective.terms), dtype=torch.float64, device=device)
        if graph is not None:
            known = objective.known(graph).double()
        known = run.add_up(known)
        if graph is None:
            return known.new_zeros(())
        return self._options.weight * objective.total(objective.sums(model(graph), graph), known)

    def after_gradients(self, run: Run) -> None:
        """Measure the share of the gradient.

        Parameters
        ----------
        run : Run
            The training.
        """
        parameters = _trained(run)
        own = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, self._own)]
        old = run.add_up(torch.cat([g.reshape(-1) for g in own]))
        both = torch.cat([_gradient(p).reshape(-1) for p in parameters])
        ours, others = float(old.norm()), float((both - old).norm())
        self._share += ours / (ours + others) if ours else 0.0
        self._own = []
        self._count += 1
        self._step += 1

    def epoch_values(self, run: Run) -> Mapping[str, float]:
        """Loss on old data and its share of the gradient, means over the steps of the epoch.

        Parameters
        ----------
        run : Run
            The training.
        """
        count = max(self._count, 1)
        values = {"loss": self._loss / count, "gradient_share": self._share / count}
        # The first step of a model that labelled the structures itself has no error.
        if self._count > 1 and not self._share:
            raise TrainingError(
                f"finetune.replay: the gradient of the loss on old data is exactly zero in all {self._count} "
                "steps of this epoch, so that replay has no effect; look at their labels, or leave replay out"
            )
        self._loss = self._share = 0.0
        self._count = 0
        return values

    def validation_loss(self, run: Run, model: Model) -> float | None:
        """The loss on the old structures that are not trained, times the weight.

        Parameters
        ----------
        run : Run
            The training.
        model : Model
            The model that is validated.
        """
        if self._options.judge == "new":
            return None
        rank, devices = run.share
        objective, count = self._old.objective, len(self._old.objective.terms)
        device = next(model.parameters()).device
        total = torch.zeros(2 * count, dtype=torch.float64, device=device)
        limit = evaluation_edges(self._old.held)
        with torch.no_grad():
            for batch in Batches(self._old.held, batch_edges=limit, shuffle=False).epoch(0):
                if mine := batch[rank::devices]:
                    graph = self._held.batch(mine).to(device)
                    total += torch.cat([objective.sums(model(graph), graph), objective.known(graph)])
        sums, known = run.add_up(total).split(count)
        return self._options.weight * float(objective.total(sums, known))

    def state(self) -> dict[str, Any]:
        """The number of the step and the sums of this epoch."""
        return {"step": self._step, "loss": self._loss, "share": self._share, "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Parameters
        ----------
        state : mapping
            What `state` returned.
        """
        self._step, self._count = state["step"], state["count"]
        self._loss, self._share = state["loss"], state["share"]


def _trained(run: Run) -> list[nn.Parameter]:
    """The parameters that the optimizer changes."""
    return [p for group in run.optimizer.param_groups for p in group["params"]]


def _gradient(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad
