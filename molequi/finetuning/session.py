"""A fine-tuning: from the trained model that it starts from to the report of what it changed."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from molequi.data.batches import evaluation_edges
from molequi.data.dataset import Dataset
from molequi.domain import totals_taken
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataWarning
from molequi.finetuning.conservation import Conservation, conservation
from molequi.finetuning.elements import NewElements, add_elements
from molequi.finetuning.energies import (
    ReferenceEnergies,
    kept,
    refit,
    with_shifted_energies,
)
from molequi.finetuning.methods import Method
from molequi.finetuning.options import Finetuning
from molequi.finetuning.pairs import PairCurve, pair_curves
from molequi.finetuning.replay import OldData, ReplayLoss, check_acts, read_old
from molequi.finetuning.report import FineTuningReport, changes_of
from molequi.hooks import Hook, Run
from molequi.inference.evaluate import OF_TRAINING, evaluate
from molequi.inference.known_energies import reference_energies_of, set_reference_energies
from molequi.inference.metrics import Errors
from molequi.losses import Loss
from molequi.model import Model
from molequi.readers.load import load_labelled
from molequi.util.digests import weights_digest
from molequi.util.run_log import say
from molequi.util.seeding import own_random_numbers

# Everything else in the metadata of the starting model says where it came from.
_ANEW = (*OF_TRAINING, "finetuning")


@dataclass(frozen=True)
class Start:
    """The model that a fine-tuning starts from.

    Parameters
    ----------
    digest : str
        SHA-256 of its weights.
    new : NewElements
        Elements that it got.
    metadata : mapping
        What its file says of it beside what a training writes, such as its origin and its licence.
    """

    digest: str
    new: NewElements
    metadata: Mapping[str, Any]


@dataclass
class Beginning:
    """A model that is ready for a fine-tuning, and what is known of its start.

    Parameters
    ----------
    options : Finetuning
        The options.
    start : Start
        The starting model.
    energies : ReferenceEnergies or None
        Reference energies before and after the fit.
    part : str
        The part of the new data on which errors are measured.
    errors : mapping of str to Errors
        Errors of the starting model, by "new", "refitted" and "old".
    replay : OldData or None
        Old data that are trained.
    old : Dataset or None
        Old data on which it is measured what is forgotten.
    old_is : str
        What they are, in words.
    pairs : sequence of PairCurve
        Energies of two atoms by the starting model.
    conserved : Conservation or None
        How well the starting model conserves energy.
    """

    options: Finetuning
    start: Start
    energies: ReferenceEnergies | None
    part: str
    errors: Mapping[str, Errors]
    replay: OldData | None = None
    old: Dataset | None = None
    old_is: str = ""
    pairs: Sequence[PairCurve] = field(default_factory=list)
    conserved: Conservation | None = None


def start_from(model: Model, parts: Mapping[str, Dataset], seed: int) -> Start:
    """Give a model the elements of new data that it does not know, and say what it was.

    Parameters
    ----------
    model : Model
        The model, which is changed.
    parts : mapping of str to Dataset
        The new data by part.
    seed : int
        Seed of the random weights of new features, which do not influence predictions at first.

    Returns
    -------
    Start
    """
    digest, metadata = weights_digest(model.state_dict()), getattr(model, "metadata", None) or {}
    with own_random_numbers(torch.device("cpu"), seed):
        new = add_elements(model, sorted({z for data in parts.values() for z in data.elements}))
    return Start(digest, new, {name: value for name, value in metadata.items() if name not in _ANEW})


def begin(
    model: Model,
    start: Start,
    parts: Mapping[str, Dataset],
    losses: Sequence[Loss],
    options: Finetuning,
    given: Mapping[int, float] | None,
    seed: int,
) -> Beginning:
    """Measure the starting model, and fit its reference energies.

    Parameters
    ----------
    model : Model
        The model on its device, which is changed.
    start : Start
        What it was.
    parts : mapping of str to Dataset
        The new data with neighbor lists, by part.
    losses : sequence of Loss
        The terms of the loss.
    options : Finetuning
        The options.
    given : mapping of int to float, optional
        Reference energies that the user gives, in place of fitted ones.
    seed : int
        The seed of the training.

    Returns
    -------
    Beginning
    """
    if start.new.donors:
        say(f"new elements: {start.new.text()}")
    replay = None
    if options.replay is not None:
        data = _loaded(options.replay.data, model, "finetune.replay.data")
        replay = read_old(data, options.replay, model, losses, seed)
    old, old_is = _old(options, model, replay)
    part = "test" if "test" in parts else "valid"
    errors = {"new": _errors(model, parts[part])}
    if old is not None:
        errors["old"] = _errors(model, old)
    pairs = pair_curves(model, parts["train"].elements)
    conserved = conservation(model, parts[part], options.nve)
    before = reference_energies_of(model)
    energies = _energies(model, parts["train"], options, given, start.new)
    if before is not None and energies is not None:
        say(energies.text())
        shifts = np.asarray(reference_energies_of(model)) - before
        replay = None if replay is None else replay.shifted(shifts)
        old = None if old is None else with_shifted_energies(old, shifts)
        if shifts.any():
            errors["refitted"] = _errors(model, parts[part])
    return Beginning(options, start, energies, part, errors, replay, old, old_is, pairs, conserved)


def _loaded(data: Any, model: Model, where: str) -> Dataset:
    """Old data. Raises ConfigError for data without structures."""
    found = load_labelled(data, model.quantities, totals_taken(model))
    if not len(found):
        raise ConfigError(
            f"{where} is empty, so that nothing is replayed; give old structures, or leave it out"
        )
    return found


def _old(options: Finetuning, model: Model, replay: OldData | None) -> tuple[Dataset | None, str]:
    """The data on which it is measured what is forgotten, and what they are."""
    if options.old is not None:
        old = _loaded(options.old, model, "finetune.old")
        if not any(old.labelled(name) for name in model.quantities):
            raise ConfigError(
                f"finetune.old: no labels of {', '.join(model.quantities)} (they have "
                f"{', '.join(old.quantities) or 'none'}), so that nothing can be measured; leave it out"
            )
        return old.connected(model.cutoff, k=model.k), f"{len(old):,} structures"
    if replay is None:
        return None, ""
    whose = "with labels of the starting model" if replay.by_model else "with their own labels"
    plural = "" if len(replay.held) == 1 else "s"
    return replay.held, f"{len(replay.held):,} structure{plural} beside the replay, {whose}"


def _errors(model: Model, data: Dataset) -> Errors:
    """Errors of a model; that its start knew other elements and charges is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return evaluate(model.plain(), data, batch_edges=evaluation_edges(data))


def _energies(
    model: Model,
    train: Dataset,
    options: Finetuning,
    given: Mapping[int, float] | None,
    new: NewElements,
) -> ReferenceEnergies | None:
    """Set the reference energies of the model, and say how."""
    before = reference_energies_of(model)
    if given is not None:
        set_reference_energies(model, given)
        return kept(model, "given", before)
    if options.reference_energies == "keep":
        return kept(model, "kept, as reference_energies='keep' says")
    found = refit(model, train, new.donors)
    return kept(model, "kept: the new data have no energies") if found is None else found


def check_start(model: object, options: Finetuning | None, seed: object, standardize: bool | None) -> None:
    """Check before data are read whether a training can be a fine-tuning.

    Parameters
    ----------
    model : object
        The model.
    options : Finetuning or None
        None for a training that is none.
    seed : int or sequence of int
        The seed of the training.
    standardize : bool, optional
        Whether scales are set anew.

    Raises
    ------
    ConfigError
        For ensembles, several seeds and new scales.
    """
    if options is None:
        return
    if isinstance(model, Ensemble):
        raise ConfigError(
            "finetune: found an ensemble; fine-tune each member, "
            "mq.load('runs/NAME/seed0/model.safetensors'), and join them: mq.Ensemble([…])"
        )
    if not isinstance(seed, int):
        raise ConfigError(
            f"finetune and seed={list(seed) if isinstance(seed, Sequence) else seed}: one model is "
            "fine-tuned; train one run for each seed, and join them: mq.Ensemble([mq.load(…), …])"
        )
    if standardize:
        raise ConfigError(
            "finetune and normalization.standardize=True: scales that are set anew would change what the "
            "model has learnt; leave standardize out"
        )


def hooks_of(
    model: Model, beginning: Beginning, seed: int, device: torch.device
) -> tuple[Method, list[Hook]]:
    """Choose what is trained, and make the terms of the training.

    Parameters
    ----------
    model : Model
        The model on its device.
    beginning : Beginning
        What is known of the start.
    seed : int
        The seed of the training.
    device : torch.device
        The device.

    Returns
    -------
    Method
        What is trained; `Method.close` ends it.
    list of Hook
        `FineTuning`, and `ReplayLoss` if there are old data.
    """
    method = Method(model, beginning.options, beginning.start.new, seed)
    try:
        say(method.text())
        hooks: list[Hook] = [FineTuning(beginning, method)]
        if beginning.replay is not None:
            trained = [p for p in model.parameters() if p.requires_grad]
            check_acts(model, beginning.replay, trained, device)
            hooks.append(ReplayLoss(beginning.replay, beginning.options.replay))
    except BaseException:
        method.close()
        raise
    return method, hooks


class FineTuning(Hook):
    """Trains what the method says, and reports what changed.

    Parameters
    ----------
    beginning : Beginning
        What is known of the start.
    method : Method
        What is trained.
    """

    name = "finetuning"

    def __init__(self, beginning: Beginning, method: Method) -> None:
        self._beginning, self._method = beginning, method

    def start(self, run: Run) -> "Hook":
        """The hook itself, which belongs to one training.

        Parameters
        ----------
        run : Run
            The training.
        """
        return self

    def record(self) -> Mapping[str, Any]:
        """The method, and the digest of the start."""
        return {"start": self._beginning.start.digest, **self._beginning.options.record()}

    def trained(
        self, run: Run, parameters: Sequence[tuple[nn.Parameter, float]]
    ) -> Sequence[tuple[nn.Parameter, float]]:
        """The parameters of the method.

        Parameters
        ----------
        run : Run
            The training.
        parameters : sequence of (Parameter, float)
            Those of the model that may be trained.
        """
        allowed = {id(p) for p, _ in parameters}
        of_model = {id(p) for p in run.model.parameters()}
        return [(p, rate) for p, rate in self._method.rates if id(p) in allowed or id(p) not in of_model]

    def after_step(self, run: Run) -> None:
        """Write the changes into the model.

        Parameters
        ----------
        run : Run
            The training.
        """
        self._method.merge()

    def state(self) -> dict[str, Any]:
        """The changes of tensors."""
        return self._method.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Parameters
        ----------
        state : mapping
            What `state` returned.
        """
        self._method.restore(state)

    def report(self, run: Run) -> FineTuningReport | None:
        """What changed, on the first device; the model keeps it in its metadata.

        Parameters
        ----------
        run : Run
            The training, whose model has its best weights.
        """
        if run.share[0]:
            return None
        b, errors = self._beginning, self._beginning.errors
        changes = changes_of(
            f"new ({b.part})",
            errors["new"],
            errors.get("refitted", errors["new"]),
            _errors(run.model, run.parts[b.part]),
        )
        if b.old is not None:
            changes += changes_of("old", errors["old"], errors["old"], _errors(run.model, b.old))
        after = pair_curves(run.model, run.parts["train"].elements)
        pairs = tuple(zip(b.pairs, after))
        now = None
        if b.conserved is not None:
            now = conservation(run.model, run.parts[b.part], b.options.nve)
        found = FineTuningReport(
            method=self._method.text(),
            start=b.start.digest,
            errors=tuple(changes),
            old=b.old_is,
            elements=b.start.new.text(),
            energies=b.energies,
            pairs=pairs,
            conserved=tuple(one for one in (b.conserved, now) if one is not None),
        )
        run.model.metadata = {**getattr(run.model, "metadata", {}), "finetuning": found.to_dict()}
        return found

    def metadata(self, report: object) -> Mapping[str, Any]:
        """The report as JSON, and what the file of the starting model says of its origin.

        Parameters
        ----------
        report : object
            What `report` returned.
        """
        if not isinstance(report, FineTuningReport):
            return {}
        return {**self._beginning.start.metadata, "finetuning": report.to_dict()}
