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
from molequi.finetuning.dispersion import learnt_labels
from molequi.finetuning.elements import NewElements, add_elements
from molequi.finetuning.energies import (
    ReferenceEnergies,
    refit,
    set_energies,
    with_shifted_energies,
)
from molequi.finetuning.levels import add_level, check_names, level_of_old, of_new_level
from molequi.finetuning.methods import Method
from molequi.finetuning.options import Finetuning
from molequi.finetuning.pairs import PairCurve, pair_curves
from molequi.finetuning.replay import OldData, ReplayLoss, check_acts, read_old
from molequi.finetuning.report import FineTuningReport, changes_of
from molequi.hooks import Hook, Run
from molequi.inference.evaluate import OF_TRAINING, evaluate
from molequi.inference.known_energies import reference_energies_of
from molequi.inference.metrics import Errors
from molequi.levels import with_numbers
from molequi.losses import Loss
from molequi.model import Model
from molequi.readers.load import load_labelled
from molequi.util.digests import weights_digest
from molequi.util.run_log import say
from molequi.util.seeding import own_random_numbers

# Everything else in the metadata of the starting model says where it came from.
_ANEW = (*OF_TRAINING, "finetuning", "levels", "level")


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
    replay_level, old_level : str or None
        Of a model of several levels of theory: that of the old data that are trained, and of those on which
        it is measured what is forgotten.
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
    replay_level: str | None = None
    old_level: str | None = None
    pairs: Sequence[PairCurve] = field(default_factory=list)
    conserved: Conservation | None = None


def start_from(
    model: Model, parts: Mapping[str, Dataset], options: Finetuning, seed: int
) -> tuple[Start, dict[str, Dataset]]:
    """Give a model the elements and the level of new data that it does not know, and say what it was.

    Parameters
    ----------
    model : Model
        The model, which is changed.
    parts : mapping of str to Dataset
        The new data by part.
    options : Finetuning
        The options.
    seed : int
        Seed of the random weights of new features, which do not influence predictions at first.

    Returns
    -------
    Start
        What it was.
    dict of str to Dataset
        The new data with their level, if they have one.
    """
    digest, metadata = weights_digest(model.state_dict()), getattr(model, "metadata", None) or {}
    level = options.level
    found = {p: data if level is None else of_new_level(data, level, p) for p, data in parts.items()}
    with own_random_numbers(torch.device("cpu"), seed):
        new = add_elements(model, sorted({z for data in parts.values() for z in data.elements}))
    add_level(model, options)
    return Start(digest, new, {n: value for n, value in metadata.items() if n not in _ANEW}), found


def begin(
    model: Model,
    start: Start,
    parts: Mapping[str, Dataset],
    losses: Sequence[Loss],
    options: Finetuning,
    given: Mapping[str, Mapping[int, float]],
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
    given : mapping of str to mapping
        Reference energies that the user gives, in place of fitted ones, by level; of a model of a single
        level under an empty name.
    seed : int
        The seed of the training.

    Returns
    -------
    Beginning
    """
    if start.new.donors:
        say(f"new elements: {start.new.text()}")
    model_of_new = _at(model, options.level)
    replay, replay_level = None, None
    if options.replay is not None:
        data = _loaded(options.replay.data, model, "finetune.replay.data")
        data, replay_level = _leveled(model, data, options, "finetune.replay.data")
        replay = read_old(data, options.replay, _at(model, replay_level), losses, seed)
    (old, old_is), old_level = _old(options, model, replay), replay_level
    if options.old is not None and old is not None:
        old, old_level = _leveled(model, old, options, "finetune.old")
    part = "test" if "test" in parts else "valid"
    errors = {"new": _errors(model_of_new, parts[part])}
    if old is not None:
        errors["old"] = _errors(_at(model, old_level), old)
    pairs = pair_curves(model_of_new, parts["train"].elements)
    conserved = conservation(model_of_new, parts[part], options.nve)
    before = reference_energies_of(model_of_new)
    energies = set_energies(
        model_of_new,
        parts["train"],
        options.reference_energies,
        given.get(options.level or ""),
        start.new.donors,
    )
    if before is not None and energies is not None:
        say(energies.text())
        shifts = np.asarray(reference_energies_of(model_of_new)) - before
        # The heads of another level stay as they are.
        if replay is not None and replay_level == options.level:
            replay = replay.shifted(shifts)
        if old is not None and old_level == options.level:
            old = with_shifted_energies(old, shifts)
        if shifts.any():
            errors["refitted"] = _errors(model_of_new, parts[part])
    return Beginning(
        options,
        start,
        energies,
        part,
        errors,
        replay,
        old,
        old_is,
        replay_level,
        old_level,
        pairs,
        conserved,
    )


def _at(model: Model, level: str | None) -> Model:
    """The model of a level; a model of a single level itself."""
    return model if level is None else model.at(level)


def _leveled(model: Model, data: Dataset, options: Finetuning, where: str) -> tuple[Dataset, str | None]:
    """Old data as a model of several levels takes them, and their level."""
    if not model.levels:
        return data, None
    level = level_of_old(model, data, options, where)
    return with_numbers(model, data.with_level(level)), level


def _loaded(data: Any, model: Model, where: str) -> Dataset:
    """Old data. Raises ConfigError for data without structures."""
    found = load_labelled(data, model.quantities, totals_taken(model))
    if not len(found):
        raise ConfigError(
            f"{where} is empty, so that nothing is replayed; give old structures, or leave it out"
        )
    return learnt_labels(model, found)


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
        For ensembles, several seeds, new scales, and wrong levels of theory.
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
    if isinstance(model, Model):
        check_names(model, options)


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
    wanted = beginning.options
    levels = [wanted.level] if wanted.level is not None else []
    if beginning.replay_level is not None:
        levels.append(beginning.replay_level)
    method = Method(model, wanted, beginning.start.new, seed, levels)
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
        self._energies = beginning.energies

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

    def before_report(self, run: Run) -> None:
        """Fit the reference energies once more: those of the best weights may all be wrong by a constant.

        Not with a replay that has the same reference energies, which holds them.

        Parameters
        ----------
        run : Run
            The training, whose model has its best weights.
        """
        b = self._beginning
        model = _at(run.model, b.options.level)
        held = b.replay is not None and b.replay_level == b.options.level
        before = reference_energies_of(model)
        if b.energies is None or not b.energies.fitted or held or before is None:
            return
        refit(model, run.parts["train"], {})
        after = reference_energies_of(model)
        assert after is not None
        self._energies = b.energies.after_training(after - before, model)
        say(f"reference energies: {self._energies.why}")

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
        model, level = _at(run.model, b.options.level), b.options.level
        changes = changes_of(
            f"new ({b.part})" if level is None else f"new, {level} ({b.part})",
            errors["new"],
            errors.get("refitted", errors["new"]),
            _errors(model, run.parts[b.part]),
        )
        if b.old is not None:
            name = "old" if b.old_level is None else f"old, {b.old_level}"
            changes += changes_of(
                name, errors["old"], errors["old"], _errors(_at(run.model, b.old_level), b.old)
            )
        after = pair_curves(model, run.parts["train"].elements)
        pairs = tuple(zip(b.pairs, after))
        now = None
        if b.conserved is not None:
            now = conservation(model, run.parts[b.part], b.options.nve)
        found = FineTuningReport(
            method=self._method.text(),
            start=b.start.digest,
            errors=tuple(changes),
            old=b.old_is,
            elements=b.start.new.text(),
            energies=self._energies,
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
