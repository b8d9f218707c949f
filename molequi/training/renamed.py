"""Arguments of `fit` in earlier versions, and what to write now."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NewWay:
    """What replaces an old argument of `fit`.

    Parameters
    ----------
    yaml : str
        The key of a YAML file, below the section ``train``.
    python : str
        The argument of `fit`; ``…`` stands for the value.
    """

    yaml: str
    python: str


def _field(group: str, name: str) -> NewWay:
    """A field of a group of options."""
    return NewWay(f"{group}.{name}", f'{group}={{"{name}": …}}')


def _term(name: str, yaml: str, python: str) -> NewWay:
    """A term of the training."""
    return NewWay(f"terms: [{{{name}: {{{yaml}}}}}]", f"terms=[mq.{name}({python})]")


def _regularizer(option: str) -> NewWay:
    """An option of the equivariance regularizer, beside its weights."""
    return _term(
        "EquivarianceRegularizer",
        f"weights: {{rotation: 0.1}}, {option}: …",
        f'{{"rotation": 0.1}}, {option}=…',
    )


RENAMED: dict[str, NewWay] = {
    "batch_atoms": _field("batch_size", "atoms"),
    "batch_edges": _field("batch_size", "edges"),
    "loss_kind": NewWay(
        "loss.<quantity>.kind, or train.loss=<kind> for all quantities with default weights",
        'loss=… for all quantities with default weights, or loss={"forces": {"weight": 100, "kind": …}}',
    ),
    "huber_delta": NewWay(
        "loss.<quantity>.delta", 'loss={"forces": {"weight": 100, "kind": "huber", "delta": …}}'
    ),
    "amsgrad": _field("optimizer", "amsgrad"),
    "weight_decay": _field("optimizer", "weight_decay"),
    "clip": _field("optimizer", "clip"),
    "ema": _field("optimizer", "ema"),
    "warmup": _field("schedule", "warmup"),
    "plateau_factor": _field("schedule", "factor"),
    "plateau_patience": _field("schedule", "patience"),
    "lr_floor": _field("schedule", "floor"),
    "patience": _field("validation", "patience"),
    "validate_every": _field("validation", "every"),
    "prior": _term("EquivarianceRegularizer", "weights: {rotation: 0.1}", '{"rotation": 0.1}'),
    "prior_kind": _regularizer("form"),
    "prior_structures": _regularizer("structures"),
    "prior_group": _regularizer("group"),
    "prior_shift": _regularizer("shift"),
    "relax": _term("ConstraintAnnealing", "weight: …", "…"),
    "degree": _term("EquivarianceSelection", "method: evidence", "…"),
    "degree_every": _term("EquivarianceSelection", "method: evidence, every: …", '"evidence", every=…'),
    "isolated": _field("normalization", "reference_energies"),
    "reference_energies": _field("normalization", "reference_energies"),
    "standardize": _field("normalization", "standardize"),
    "precision": _field("compute", "precision"),
    "accelerate": _field("compute", "accelerate"),
    "devices": _field("compute", "devices"),
    "workers": _field("compute", "workers"),
    "cache": _field("compute", "cache"),
    "save_minutes": _field("logging", "save_minutes"),
    "progress": _field("logging", "progress"),
    "tensorboard": NewWay("logging.loggers: [tensorboard]", 'logging={"loggers": ["tensorboard"]}'),
}
