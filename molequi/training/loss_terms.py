"""The terms of a loss, checked against a model, and their weights from the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from molequi.errors import ConfigError, did_you_mean
from molequi.losses import Loss
from molequi.quantities import KNOWN, Quantity


def check_losses(terms: Sequence[Loss], quantities: Mapping[str, Quantity], where: str = "loss") -> None:
    """Check terms against what a model predicts.

    Parameters
    ----------
    terms : Sequence of Loss
        The terms.
    quantities : Mapping
        All quantities of the model by name.
    where : str
        What error messages put before the name of a term.

    Raises
    ------
    ConfigError
        For a term of a quantity that is not predicted, for a function with the name of a quantity, for a kind
        of classes, and if all weights are zero.
    """
    for term in terms:
        name = term.label
        if term.function is not None:
            if name in quantities:
                raise ConfigError(
                    f"{where}.{name}: a function and a quantity have this name; rename the function"
                )
            continue
        if name not in quantities:
            raise ConfigError(
                f"{where}.{name} is {term.weight:g} and predict is [{', '.join(quantities)}]: the model does "
                f"not predict {name!r}{_how_to_add(name, quantities, where)}"
            )
        _check_class_weights(term, quantities[name].classes, f"{where}.{name}")
        if term.kind is not None and quantities[name].classes:
            raise ConfigError(
                f"{where}.{name}.kind is {term.kind!r} and {name!r} has classes, which are always learnt by "
                "cross-entropy; leave kind out"
            )
    if not any(term.weight for term in terms):
        raise ConfigError(f"{where} is { {t.label: t.weight for t in terms} }: all weights are zero")


def _check_class_weights(term: Loss, classes: Sequence[str], where: str) -> None:
    """Raise ConfigError for weights of a quantity without classes, of unknown classes, or not of all."""
    weights = term.class_weights
    if weights is None:
        return
    if not classes:
        raise ConfigError(
            f"{where}.class_weights would have no effect: {term.label!r} has no classes; leave it out"
        )
    if isinstance(weights, str):
        return
    for name in weights:
        if name not in classes:
            raise ConfigError(
                f"{where}.class_weights: {name!r} is not a class of {term.label}{did_you_mean(name, classes)}"
            )
    missing = [c for c in classes if c not in weights]
    if missing:
        raise ConfigError(
            f"{where}.class_weights has no weight of {', '.join(map(repr, missing))}; wanted one of each "
            "class, "
            f"such as {{{', '.join(f'{c!r}: 1.0' for c in classes)}}}"
        )


def with_class_weights(
    terms: Sequence[Loss], labels: Mapping[str, Tensor], classes: Mapping[str, Sequence[str]]
) -> tuple[Loss, ...]:
    """Return terms in which "balanced" class weights are numbers.

    Parameters
    ----------
    terms : Sequence of Loss
        The terms.
    labels : Mapping of str to Tensor
        The training labels of classes, by name; NaN where unknown.
    classes : Mapping of str to Sequence
        Names of the classes.

    Raises
    ------
    ConfigError
        If a class has no training label, so that its weight would be infinite.

    Examples
    --------
    >>> labels = {"taste": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    >>> terms = [Loss("taste", class_weights="balanced")]
    >>> terms = with_class_weights(terms, labels, {"taste": ["sweet", "sour"]})
    >>> {name: round(weight, 3) for name, weight in terms[0].class_weights.items()}
    {'sweet': 0.667, 'sour': 2.0}
    """
    return tuple(
        replace(term, class_weights=_equal_weights(term.label, labels[term.label], classes[term.label]))
        if term.class_weights == "balanced" and term.weight > 0
        else term
        for term in terms
    )


def _equal_weights(name: str, labels: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """The weight n / (K n_c) of each class."""
    known = labels[~torch.isnan(labels)].long()
    counts = known.bincount(minlength=len(classes)).tolist()
    absent = [c for c, count in zip(classes, counts) if not count]
    if absent:
        raise ConfigError(
            f"loss.{name}.class_weights is 'balanced', and no training label of {name} is "
            f"{' or '.join(map(repr, absent))}; give the weights as numbers, or leave this class out of "
            "the classes"
        )
    return {c: len(known) / (len(classes) * count) for c, count in zip(classes, counts)}


def _how_to_add(name: str, quantities: Mapping[str, Quantity], where: str) -> str:
    """What to write for a term of the loss that the model does not predict."""
    near = did_you_mean(name, quantities)
    if near.startswith("; did"):
        return near
    if name in KNOWN:
        return f"; predict it too: [{', '.join([*quantities, name])}]"
    own = (
        f"mq.run('run.yaml', losses={{{name!r}: f}})" if where.startswith("train") else "loss=[…, mq.Loss(f)]"
    )
    return f"; a function f(predictions, graph) of your own is handed over with {own}"


def balanced(terms: Sequence[Loss], scale: Mapping[str, float]) -> tuple[Loss, ...]:
    """Return terms whose weights are divided by the standard deviation of their labels (squared for "mse").

    Parameters
    ----------
    terms : Sequence of Loss
        The terms.
    scale : Mapping of str to float
        The standard deviations by name. Weights of other terms, such as classes, are not changed.
    """
    return tuple(
        replace(
            term,
            weight=term.weight / scale.get(term.label, 1.0) ** (2 if (term.kind or "mse") == "mse" else 1),
        )
        for term in terms
    )
