"""Training of an ensemble: one member for each seed, each as `fit` trains a single model."""

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from molequi.checkpoint import save
from molequi.data.dataset import Dataset
from molequi.domain import totals_taken
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, ModelError
from molequi.inference.calibration import Calibration, calibration
from molequi.inference.evaluate import final_errors, training_record
from molequi.inference.known_energies import keep_lowest_energy
from molequi.inference.metrics import Errors, table, table_html
from molequi.model import Model
from molequi.readers.load import load_labelled
from molequi.terms import as_labelled
from molequi.training.devices import number_of_processes
from molequi.training.history import mean_history, write_config, write_errors
from molequi.training.intervals import keep_errors
from molequi.training.options import TrainingOptions
from molequi.training.result import Result
from molequi.training.symmetry import measure_symmetry
from molequi.util.html import as_html, html_details, html_facts, html_heading, html_table
from molequi.util.locks import lock_folder
from molequi.util.run_log import say
from molequi.util.seeding import own_random_numbers


@dataclass(frozen=True)
class EnsembleResult:
    """The result of a training with several seeds: the ensemble of the best models.

    Parameters
    ----------
    model : Ensemble
        The ensemble, calibrated on the validation data; ``model.scales`` are the factors.
    members : dict of Result
        The result of each seed.
    errors : dict of Errors
        Errors of the mean of the members, by part of the data.
    calibration : dict of Calibration
        Calibration of each quantity on the validation data, before the standard deviations were scaled.
    out : Path or None
        The folder of the run.

    Attributes
    ----------
    main : bool
        Always True: members are trained on one device each.
    """

    model: Ensemble
    members: dict[int, Result]
    errors: dict[str, Errors]
    calibration: dict[str, Calibration]
    out: Path | None
    main = True

    @property
    def history(self) -> list[dict[str, float]]:
        """A row for each epoch, from 1: means over the members that reached it."""
        return mean_history([member.history for member in self.members.values()])

    def __str__(self) -> str:
        lines = [
            f"seed {seed}: best epoch {m.best_epoch} of {len(m.history)} ({m.stopped}), loss "
            f"{m.best_loss:.4g}"
            for seed, m in self.members.items()
        ]
        if self.calibration:
            lines.append("standard deviations are calibrated on the validation data, where they were before:")
        return "\n".join([*lines, *map(str, self.calibration.values()), table(self.errors)])

    def _repr_html_(self) -> str:
        head = ("seed", "best epoch", "epochs", "loss", "end")
        rows = [
            (str(seed), str(m.best_epoch), str(len(m.history)), f"{m.best_loss:.4g}", m.stopped)
            for seed, m in self.members.items()
        ]
        found = html_details("calibration", "".join(map(as_html, self.calibration.values())))
        return (
            html_heading(f"ensemble of {len(self.members)}: errors of the mean")
            + table_html(self.errors)
            + html_table(head, rows, left=(4,))
            + html_facts({"folder": "" if self.out is None else str(self.out)})
            + (found if self.calibration else "")
        )

    __repr__ = __str__


def fit_seeds(
    train: Callable[[Model, Mapping[str, Any], TrainingOptions, Mapping[str, Any] | None], Result],
    model: Model,
    parts: Mapping[str, Any],
    options: TrainingOptions,
    config: Mapping[str, Any] | None,
) -> EnsembleResult:
    """Train a member for each seed, with new weights, and join the best models to an ensemble.

    In the folder of the run each member has a folder ``seed<n>``, beside ``model.safetensors`` and the errors
    of the ensemble. If the training is started again, finished members are not trained again, and an
    interrupted one continues. The standard deviations of the ensemble are multiplied by one factor for each
    quantity, which is measured on the validation data. Those of classes are not changed.

    Parameters
    ----------
    train : callable
        The function that trains one member.
    model : Model
        Its hyperparameters are those of the members; its weights are neither used nor changed.
    parts : Mapping
        The data by part.
    options : TrainingOptions
        Options with several seeds.
    config : Mapping, optional
        The description of the run in a YAML file.

    Returns
    -------
    EnsembleResult
        The ensemble and the result of each member.

    Raises
    ------
    ConfigError
        For fewer than two seeds, equal seeds, and several devices.
    ModelError
        If the hyperparameters of the model do not describe it.
    """
    seeds = _checked_seeds(options)
    try:
        hparams = model.hparams
    except ModelError as error:
        raise ModelError(
            f"seed={seeds}: each member is built anew from the hyperparameters of the model, and there are "
            f"none: {error}"
        ) from error
    totals = totals_taken(model)
    data = {name: load_labelled(given, model.quantities, totals) for name, given in parts.items()}
    folder = options.out
    members: dict[int, Result] = {}
    with lock_folder(folder) if folder else nullcontext():
        for k, seed in enumerate(seeds):
            with own_random_numbers(torch.device("cpu"), seed):
                member = Model.from_hparams(hparams, **model.own_classes)
            if members:
                member.use_program(next(iter(members.values())).model.program)  # compiled once for all
            if options.logging.progress:
                say(f"seed {seed}, member {k + 1} of {len(seeds)}")
            own = replace(options, seed=seed, out=None if folder is None else folder / f"seed{seed}")
            members[seed] = train(
                member, data, own, None if config is None else _of_seed(config, seed, own.out)
            )
        return _joined(members, data, folder, config, options.logging.progress)


def _checked_seeds(options: TrainingOptions) -> list[int]:
    """The seeds. Raises ConfigError for fewer than two, equal ones, and several devices."""
    seeds = [options.seed] if isinstance(options.seed, int) else list(options.seed)
    count = number_of_processes(options.compute)
    if count > 1:
        raise ConfigError(
            f"seed={seeds} and {count} processes (compute.devices, torchrun or srun): members are trained on "
            "one device each; train them one by one, fit(..., seed=0), and join them with mq.Ensemble([...])"
        )
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seed={seeds}: an ensemble needs two or more different seeds")
    return seeds


def _joined(
    members: Mapping[int, Result],
    data: Mapping[str, Dataset],
    folder: Path | None,
    config: Mapping[str, Any] | None,
    progress: bool,
) -> EnsembleResult:
    """The calibrated ensemble of the best models, its errors and its files."""
    ensemble = Ensemble([m.model for m in members.values()])
    found = calibration(as_labelled(ensemble), data["valid"])
    ensemble = ensemble.calibrated({name: c.scale for name, c in found.items() if 0 < c.scale < math.inf})
    errors = final_errors(as_labelled(ensemble), data, progress=progress)
    result = EnsembleResult(ensemble, dict(members), errors, found, folder)
    trained: dict[str, Any] = {
        "seeds": list(members),
        "best_epoch": [m.best_epoch for m in members.values()],
        **training_record(errors),
    }
    ensemble.metadata = {"run": {} if config is None else dict(config), "training": trained}
    measure_symmetry(ensemble, data["valid"])
    labelled = as_labelled(ensemble)
    keep_errors(labelled, data["valid"])
    ensemble.metadata = labelled.metadata
    keep_lowest_energy(ensemble, data["train"])
    first = next(iter(members.values())).model.metadata  # all were trained on the same data
    kept: dict[str, Any] = {name: first[name] for name in ("trained_on", "reading", "level") if name in first}
    ensemble.metadata = {**ensemble.metadata, **kept}
    if folder:
        if config is not None:
            write_config(folder, config)
        save(ensemble, folder / "model.safetensors")
        write_errors(folder, errors)
    return result


def _of_seed(config: Mapping[str, Any], seed: int, out: Path | None) -> dict[str, Any]:
    """The run of one member, so that its folder says how to do it again."""
    own = copy.deepcopy(dict(config))
    own["train"] = dict(own.get("train") or {}) | {"seed": seed, "out": str(out)}
    return own
