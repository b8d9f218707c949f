"""The section ``train`` of a run: the options of `fit` as plain values, with the terms by name."""

from collections.abc import Mapping
from typing import Any

from molequi.config.names import Names
from molequi.errors import ConfigError, did_you_mean
from molequi.hooks import Hook
from molequi.losses import read_losses
from molequi.training.checks import read_options
from molequi.training.fit import fit
from molequi.training.options import TrainingOptions
from molequi.util.options import Options, as_options
from molequi.util.signature import check_call

_REGULARIZER = "train.terms: [{EquivarianceRegularizer: {weights: {rotation: 0.1}"
_SELECTION = "train.terms: [{EquivarianceSelection: {method: evidence"
# Keys of the section before the options were grouped, and what they are now.
RENAMED = {
    "batch_atoms": "train.batch_size.atoms",
    "batch_edges": "train.batch_size.edges",
    "loss_kind": "train.loss.<quantity>.kind, or train.loss=<kind> for all quantities with default weights",
    "huber_delta": "train.loss.<quantity>.delta",
    "amsgrad": "train.optimizer.amsgrad",
    "weight_decay": "train.optimizer.weight_decay",
    "clip": "train.optimizer.clip",
    "ema": "train.optimizer.ema",
    "warmup": "train.schedule.warmup",
    "plateau_factor": "train.schedule.factor",
    "plateau_patience": "train.schedule.patience",
    "lr_floor": "train.schedule.floor",
    "patience": "train.validation.patience",
    "validate_every": "train.validation.every",
    "prior": _REGULARIZER + "}}]",
    "prior_kind": _REGULARIZER + ", form: …}}]",
    "prior_structures": _REGULARIZER + ", structures: …}}]",
    "prior_group": _REGULARIZER + ", group: …}}]",
    "prior_shift": _REGULARIZER + ", shift: …}}]",
    "relax": "train.terms: [{ConstraintAnnealing: {weight: …}}]",
    "degree": _SELECTION + "}}]",
    "degree_every": _SELECTION + ", every: …}}]",
    "reference_energies": "train.normalization.reference_energies",
    "standardize": "train.normalization.standardize",
    "precision": "train.compute.precision",
    "accelerate": "train.compute.accelerate",
    "devices": "train.compute.devices",
    "workers": "train.compute.workers",
    "cache": "train.compute.cache",
    "save_minutes": "train.logging.save_minutes",
    "progress": "train.logging.progress",
    "tensorboard": "train.logging.loggers: [tensorboard]",
}


def read_train(section: Any, names: Names) -> TrainingOptions:
    """The options that a section ``train`` stands for.

    Raises
    ------
    ConfigError
        With the path of each key that is unknown, of an earlier version, of the wrong type or out of range.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"train: found {section!r} ({type(section).__name__}); wanted options, such as epochs: 100"
        )
    old = [f"train.{name}: now {RENAMED[name]}" for name in section if name in RENAMED]
    if old:
        raise ConfigError("\n".join(old))
    arguments = dict(section)
    if "loss" in arguments:
        arguments["loss"] = read_losses(arguments["loss"], "train.loss", names.losses)
    if "terms" in arguments:
        given = arguments["terms"]
        if not isinstance(given, (list, tuple)):
            raise ConfigError(
                f"train.terms: found {given!r} ({type(given).__name__}); wanted a list of terms"
            )
        arguments["terms"] = [_term(item, f"train.terms.{k}", names) for k, item in enumerate(given)]
    return read_options(fit, arguments, "train")


def _term(item: Any, where: str, names: Names) -> Hook:
    """A term by name, with its options."""
    if isinstance(item, str):
        name, options = item, {}
    elif isinstance(item, Mapping) and len(item) == 1:
        ((name, options),) = item.items()
        options = {} if options is None else options
    else:
        raise ConfigError(
            f"{where}: found {item!r} ({type(item).__name__}); wanted {{ConstraintAnnealing: {{weight: 0.01}}}}"
        )
    if name not in names.hooks:
        hint = did_you_mean(str(name), names.hooks)
        raise ConfigError(
            f"{where}.{name}: no such term{hint}; hand your own over with run(…, hooks={{{name!r}: …}})"
        )
    kind = names.hooks[name]
    if isinstance(kind, Hook):
        if options:
            raise ConfigError(
                f"{where}.{name}: an object was handed over, which takes no options; found {options!r}"
            )
        return kind
    if issubclass(kind, Options):
        return as_options(kind, options, f"{where}.{name}")
    check_call(kind, options, where=f"{where}.{name}")
    return kind(**options)
