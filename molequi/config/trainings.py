"""What a series of trainings shares: parts of the data, records of what is finished, and the time left."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molequi.config.start import SECTION
from molequi.data.dataset import Dataset
from molequi.data.splits import conformer_groups
from molequi.training.options import TrainingOptions
from molequi.util.files import write_file
from molequi.util.run_log import say

_NOT_DECISIVE = ("out", "resume", "logging", "device")


def random_order(train: Dataset, repeat: int) -> list[int]:
    """A random order of the structures, in which conformers of a molecule follow each other.

    First come structures that together have all elements, labels and classes, so that every part can be
    trained on.

    Parameters
    ----------
    train : Dataset
        The structures.
    repeat : int
        Seed of the order.
    """
    random = np.random.RandomState(repeat)
    groups = conformer_groups(train.info)
    if groups is None:
        order = random.permutation(len(train)).tolist()
    else:
        members: dict[Any, list[int]] = {}
        for k, group in enumerate(groups):
            members.setdefault(group, []).append(k)
        chosen = list(members.values())
        order = [k for g in random.permutation(len(chosen)) for k in chosen[g]]
    seen: set[tuple[str, Any]] = set()
    first = []
    for k in order:
        graph = train[k]
        has: set[tuple[str, Any]] = {("element", z) for z in graph.z.unique().tolist()}
        for name, target in graph.targets.items():
            known = target[~torch.isnan(target)]
            if train.quantities[name].classes:
                has |= {(name, label) for label in known.unique().tolist()}
            elif len(known):
                has.add((name, True))
        if not has <= seen:
            first.append(k)
            seen |= has
    chosen_first = set(first)
    return first + [k for k in order if k not in chosen_first]


def lengthened(options: TrainingOptions, size: int, whole: int) -> TrainingOptions:
    """The options for fewer structures: as many steps and validations, and as long a warm-up in steps.

    Parameters
    ----------
    options : TrainingOptions
        The options for all structures.
    size, whole : int
        Number of structures of the part, and of all.
    """
    batch = options.batch_size.structures
    ratio = -(-whole // batch) / -(-size // batch) if batch else whole / size
    schedule, validation = options.schedule, options.validation
    return replace(
        options,
        epochs=None if options.epochs is None else max(1, round(options.epochs * ratio)),
        schedule=replace(schedule, warmup=schedule.warmup * ratio),
        validation=replace(validation, every=max(1, round(validation.every * ratio))),
    )


def fingerprint(options: TrainingOptions, parts: Mapping[str, Dataset], settings: Mapping[str, Any]) -> str:
    """What decides the result of a training, as a digest.

    Parameters
    ----------
    options : TrainingOptions
        Its options.
    parts : mapping of str to Dataset
        Its data.
    settings : mapping
        The sections of the run.
    """
    train = {k: v for k, v in settings["train"].items() if k not in _NOT_DECISIVE}
    record = {
        "settings": {name: settings[name] for name in ("backbone", "predict", SECTION) if name in settings}
        | {"train": train},
        "options": options.record(),
        "data": {name: data.digest for name, data in parts.items()},
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()


def keep(record: Path, key: str, found: Any) -> None:
    """Write what a finished training found.

    Parameters
    ----------
    record : Path
        The file.
    key : str
        The `fingerprint` of the training.
    found : object
        Plain values.
    """
    write_file(record, json.dumps({"key": key, "errors": found}, indent=1) + "\n")


def finished(record: Path, key: str, options: TrainingOptions) -> Any:
    """What `keep` wrote for a training; None if it was another one, is not finished, or is to begin anew.

    Parameters
    ----------
    record : Path
        The file.
    key : str
        The `fingerprint` of the training.
    options : TrainingOptions
        Its options.
    """
    if options.resume == "restart":
        return None
    try:
        found: dict[str, Any] = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found["errors"] if found.get("key") == key else None


def as_clock(seconds: float) -> str:
    """A time as 1:05:09 or 5:09.

    Parameters
    ----------
    seconds : float
        The time in s.

    Examples
    --------
    >>> as_clock(309), as_clock(3909)
    ('5:09', '1:05:09')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """How many trainings are done, and the time that is left.

    Parameters
    ----------
    budget : float
        Minutes of all trainings together.
    """

    def __init__(self, budget: float) -> None:
        self.budget, self.done, self.measured, self.taken = budget, 0.0, 0.0, 0.0

    def say(self, what: str) -> None:
        """Say what comes next, and the time left.

        Parameters
        ----------
        what : str
            The training.
        """
        ratio = self.taken / self.measured if self.measured else 60.0
        say(f"{what}; about {as_clock(ratio * (self.budget - self.done))} left")

    def add(self, minutes: float, seconds: float | None) -> None:
        """A training is over.

        Parameters
        ----------
        minutes : float
            Its minutes in the budget.
        seconds : float or None
            What it took on the wall; None if it was done before.
        """
        self.done += minutes
        if seconds is not None:
            self.measured, self.taken = self.measured + minutes, self.taken + seconds
