"""Training of an ensemble: one member a seed, each as `fit` trains a single model."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from molequi.checkpoint import save
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, ModelError
from molequi.inference.calibration import Calibration, calibration
from molequi.inference.evaluate import evaluate
from molequi.inference.metrics import Errors, table
from molequi.model import Model
from molequi.readers.load import load_dataset
from molequi.training.history import write_config, write_errors
from molequi.training.trainer import Result, symmetry_report_of
from molequi.util.locks import lock_folder
from molequi.util.seeding import own_random_numbers


@dataclass(frozen=True)
class EnsembleResult:
    """What a training with several seeds leaves: the ensemble of the best models, calibrated on the validation data.

    members: the result of each seed. errors: of the mean of the members, by part. calibration: of each quantity on the validation
    data, before the spreads were scaled to them; `model.scales` are the factors. main: as of `Result`, always True.
    """

    model: Ensemble
    members: dict[int, Result]
    errors: dict[str, Errors]
    calibration: dict[str, Calibration]
    out: Path | None
    main = True

    @property
    def history(self) -> list[dict[str, float]]:
        """A row an epoch: means over the members that came so far."""
        rows = []
        for epoch in range(max(len(m.history) for m in self.members.values())):
            there = [m.history[epoch] for m in self.members.values() if epoch < len(m.history)]
            names = dict.fromkeys(name for row in there for name in row)
            values = {name: [row[name] for row in there if name in row] for name in names}
            rows.append({name: sum(v) / len(v) for name, v in values.items()} | {"epoch": epoch})
        return rows

    def __str__(self) -> str:
        lines = [
            f"seed {seed}: best epoch {m.best_epoch} of {len(m.history)} ({m.stopped}), loss {m.best_loss:.4g}"
            for seed, m in self.members.items()
        ]
        return "\n".join([*lines, table(self.errors), *map(str, self.calibration.values())])


def fit_seeds(
    fit: Callable[..., Result],
    model: Model,
    parts: Mapping[str, Any],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    config: Mapping[str, Any] | None,
) -> EnsembleResult:
    """`fit` once for each seed, with weights drawn anew by it, and the ensemble of the best models.

    fit: trains one member. model: says what the members are; its weights are neither used nor changed. settings: all others of `fit`.
    With `out` each member has a folder seed<n> in it, beside `model.safetensors` of the ensemble and its errors; called again, members
    that are finished are taken as they are, one that was interrupted goes on.
    The spreads of the ensemble are multiplied by one factor for each quantity, measured on the validation data; classes stay as they are.
    Raises ConfigError for fewer than two seeds, equal ones, and several devices, ModelError for a model that its hyperparameters do not describe.
    """
    seeds, out = list(seeds), settings["out"]
    if settings["devices"] > 1:
        raise ConfigError(
            f"seed={seeds} and devices={settings['devices']}: members are trained on one device each; train them one by one, "
            "fit(..., seed=0), and join them with mq.Ensemble([...])"
        )
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seed={seeds}: an ensemble needs two or more different seeds")
    try:
        hparams = model.hparams
    except ModelError as error:
        raise ModelError(
            f"seed={seeds}: each member is built anew from the hyperparameters of the model, and there are none: {error}"
        ) from error
    parts = {
        name: load_dataset(data, only=(*model.quantities, "charge", "spin"))
        for name, data in parts.items()
        if data is not None
    }
    folder = None if out is None else Path(out)
    members: dict[int, Result] = {}
    with lock_folder(folder) if folder else nullcontext():
        for k, seed in enumerate(seeds):
            with own_random_numbers(torch.device("cpu"), seed):
                member = Model.from_hparams(hparams)
            if members:
                member.use_program(next(iter(members.values())).model.program)  # compiled once for all
            if settings["progress"]:
                print(f"seed {seed}, member {k + 1} of {len(seeds)}", flush=True)
            own = dict(settings) | {"seed": seed, "out": None if folder is None else folder / f"seed{seed}"}
            members[seed] = fit(
                member, **parts, **own, config=None if config is None else _of_seed(config, seed, own["out"])
            )
        ensemble = Ensemble([m.model for m in members.values()])
        found = calibration(ensemble, parts["valid"])
        ensemble = ensemble.calibrated({name: c.scale for name, c in found.items() if 0 < c.scale < math.inf})
        result = EnsembleResult(
            ensemble, members, {name: evaluate(ensemble, data) for name, data in parts.items()}, found, folder
        )
        ensemble.metadata = {
            "run": {} if config is None else dict(config),
            "training": {
                "seeds": seeds,
                "best_epoch": [m.best_epoch for m in members.values()],
                "errors": {part: e.numbers() for part, e in result.errors.items()},
            },
        }
        symmetry_report_of(ensemble, parts["valid"])
        if folder:
            if config is not None:
                write_config(folder, config)
            save(ensemble, folder / "model.safetensors")
            write_errors(folder, result.errors)
    return result


def _of_seed(config: Mapping[str, Any], seed: int, out: Path | None) -> dict[str, Any]:
    """The run of one member, so that its folder says how to do it again."""
    own = copy.deepcopy(dict(config))
    own["train"] = dict(own.get("train") or {}) | {"seed": seed, "out": str(out)}
    return own
