"""One model from several of the same architecture: the mean of their weights."""

import copy
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molequi.checkpoint import load
from molequi.ensemble import Ensemble, check_alike
from molequi.errors import ConfigError, DataWarning, ModelError, did_you_mean
from molequi.inference.evaluate import OF_TRAINING, evaluate
from molequi.inference.known_energies import reference_energies_of
from molequi.inference.metrics import Errors, shown_units
from molequi.last_layer import LaplaceEnsemble
from molequi.levels import check_single
from molequi.merging.alignment import align as aligned_maps
from molequi.merging.alignment import closeness
from molequi.merging.channels import transformed
from molequi.merging.tables import channels_of
from molequi.model import Model
from molequi.quantities import SYMBOLS
from molequi.util import trained_on
from molequi.util.digests import weights_digest
from molequi.util.html import html_table, html_text
from molequi.util.tables import text_table

SAME_START = 0.5  # closeness; independent starts have less than 0.1, fine-tunes of one start more than 0.9
_DIFFERENT_LEVELS = 0.1  # eV between reference energies, above which there is a warning
# Of the metadata of the parents: what is made anew, and what belongs to their weights alone.
_OWN = (*OF_TRAINING, "merged")


@dataclass(frozen=True)
class Parent:
    """One of the models that were merged.

    Parameters
    ----------
    name : str
        Its file, or its number.
    weight : float
        Its share of the mean; the sum over all parents is 1.
    closeness : float
        How close its weights are to those of the first parent, see `molequi.merging.closeness`.
    aligned : float or None
        The same after its channels were aligned; None if it has the same start.
    reference_energies : dict of str to float
        Its atomic reference energies in eV by element.
    errors : Errors or None
        Its errors on the data.
    """

    name: str
    weight: float
    closeness: float
    aligned: float | None
    reference_energies: Mapping[str, float]
    errors: Errors | None = None


@dataclass(frozen=True)
class Merged:
    """A merged model and where it comes from; printed, a table.

    Parameters
    ----------
    model : Model
        The model. `molequi.save` writes it.
    parents : tuple of Parent
        The models that were merged.
    errors : Errors or None
        Its errors on the data.
    notes : tuple of str
        What else a user should know.
    """

    model: Model
    parents: tuple[Parent, ...]
    errors: Errors | None = None
    notes: tuple[str, ...] = field(default=())

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the table: each parent, and the merged model."""
        rows = []
        found = {str(k): one.errors for k, one in enumerate(self.parents) if one.errors is not None}
        parts = found | ({} if self.errors is None else {"merged": self.errors})
        columns = _columns(parts)
        for one in self.parents:
            near = f"{one.closeness:.3f}" + ("" if one.aligned is None else f" → {one.aligned:.3f}")
            rows.append([one.name, f"{one.weight:.3g}", near, *_cells(columns, one.errors)])
        rows.append(["merged", "", "", *_cells(columns, self.errors)])
        return ["model", "weight", "closeness", *(title for title, _, _ in columns)], rows

    def __str__(self) -> str:
        return "\n".join([*text_table(*self.table()), *self._references(), *self.notes])

    def _repr_html_(self) -> str:
        rest = [*self._references(), *self.notes]
        return html_table(*self.table()) + (html_text("\n".join(rest)) if rest else "")

    __repr__ = __str__

    def _references(self) -> list[str]:
        """A table of reference energies, if they differ."""
        different = _different_references(self.parents)
        if not different:
            return []
        own = _references(self.model)
        rows = [[one.name, *(f"{one.reference_energies[e]:.4f}" for e in different)] for one in self.parents]
        rows.append(["merged", *(f"{own[e]:.4f}" for e in different)])
        return ["reference energies differ (eV):", *text_table(["", *different], rows)]


def merge(
    models: Sequence[Model | str | os.PathLike],
    *,
    weights: Sequence[float] | None = None,
    data: Any = None,
    align: bool = True,
    **options: Any,
) -> Merged:
    """Merge models of the same architecture into one: the weighted mean of all their weights.

    Fine-tunes of one start can be averaged as they are ("model soups", arXiv 2203.05482): the mean costs no
    more than one of them, and often is better on the union of their data. Whether models have one start is
    not believed but measured: the mean cosine between their tensors (`molequi.merging.closeness`) is near 1
    then, and near 0 for independent starts. The channels of models with different starts are in different
    orders, so that the mean of their weights would mean nothing; they are aligned with the first model
    before, by permutations and, where the architecture allows them, by orthogonal maps
    (`molequi.merging.align`, `molequi.merging.backbones`). That changes no output of theirs. The mean of
    aligned models is still no sum of their abilities: look at the errors, or take an ensemble.

    Reference energies, shifts and scales are averaged, too, and shown where they differ. The model file
    names all parents. Their calibrations, symmetry reports and errors are not those of the merged model, and
    are left out.

    Parameters
    ----------
    models : sequence of Model, str or Path
        Two or more models, or their files.
    weights : sequence of float, optional
        The weight of each, above 0; by default all are equal. Only their ratios matter.
    data : object, optional
        Labelled data on which all parents and the merged model are compared: a Dataset, or what
        `molequi.load_dataset` takes.
    align : bool
        Align models of different starts. False: refuse them.
    **options
        Options of `molequi.evaluate` for `data`, such as ``keys``, ``units`` and ``index``.

    Returns
    -------
    Merged
        ``merged.model``; ``merged.errors`` and those of ``merged.parents``; printed, a table.

    Raises
    ------
    ModelError
        If a model is no single model or is not like the first one, and if models have different starts and
        their channels cannot be aligned (the message says why) or `align` is False.
    ConfigError
        For weights that are no positive numbers, one for each model, and for options without `data`.

    Warns
    -----
    DataWarning
        If reference energies differ by more than 0.1 eV, as those of different levels of theory do.

    Examples
    --------
    >>> import copy
    >>> import torch
    >>> import molequi as mq
    >>> a = mq.Model(mq.PaiNN(elements=["H", "O"], channels=8, layers=1), ["energy"])
    >>> b = copy.deepcopy(a)
    >>> with torch.no_grad():
    ...     for value in b.parameters():
    ...         value += 0.01
    >>> merged = mq.merge([a, b])
    >>> change = next(merged.model.parameters()) - next(a.parameters())
    >>> round(float(change.detach().mean()), 4)
    0.005
    """
    found, names = _loaded(models)
    shares = _shares(weights, len(found))
    if data is None and options:
        name = next(iter(options))
        raise ConfigError(
            f"merge.{name}: no such argument{did_you_mean(name, ('weights', 'data', 'align'))}; options of "
            "molequi.evaluate need data=…"
        )
    first = _weights(found[0])
    near = [closeness(first, _weights(model)) for model in found]
    moved, now = _all_aligned(found, names, near, align)
    child = _mean(found, moved, shares)
    parents = [
        Parent(name, share, one, after, _references(model), _errors(model, data, options))
        for name, share, one, after, model in zip(names, shares, near, now, found)
    ]
    child.metadata, notes = _metadata(found, parents)
    different = _different_references(parents)
    if different and max(different.values()) > _DIFFERENT_LEVELS:
        symbol = max(different, key=lambda one: different[one])
        warnings.warn(
            f"the reference energies of the models differ, that of {symbol} by {different[symbol]:.3g} eV, "
            "as those of different levels of theory do; the merged model has their mean, and its energies "
            "belong to neither; bring all models to one level first",
            DataWarning,
            stacklevel=2,
        )
    return Merged(child, tuple(parents), _errors(child, data, options), tuple(notes))


def _loaded(models: Sequence[Model | str | os.PathLike]) -> tuple[list[Model], list[str]]:
    """Copies of the models without compiled programs, on the CPU, and their names."""
    if isinstance(models, (Model, Ensemble, str, os.PathLike)) or len(models) < 2:
        example = "mq.merge(list(ensemble.members))" if isinstance(models, Ensemble) else "mq.merge([a, b])"
        count = "an Ensemble" if isinstance(models, Ensemble) else "one model"
        raise ModelError(f"merge: found {count}; wanted two models or more, {example}")
    found, names = [], []
    for k, one in enumerate(models):
        path = isinstance(one, (str, os.PathLike))
        name = os.fspath(one) if isinstance(one, (str, os.PathLike)) else f"model {k}"
        model = load(one) if isinstance(one, (str, os.PathLike)) else one
        check_single(model)
        if not isinstance(model, Model):
            kind = "an Ensemble" if isinstance(model, Ensemble) else type(model).__name__
            hint = "merge its members: mq.merge(list(mq.load(…).members))" if path else "mq.load gives it"
            if isinstance(model, LaplaceEnsemble):
                kind, hint = "a model with a Laplace approximation", "its mean_model is that"
            raise ModelError(f"merge: {name} is {kind}; wanted a single Model; {hint}")
        found.append(copy.deepcopy(model.plain()).cpu().eval())
        names.append(_short(name))
    check_alike(found, names)
    return found, names


def _short(name: str) -> str:
    """The folder of a run in place of its model file."""
    path = Path(name)
    return os.fspath(path.parent) if path.name == "model.safetensors" and len(path.parts) > 1 else name


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / count] * count
    good = not isinstance(weights, (str, int, float)) and len(weights) == count
    if not good or not all(
        isinstance(w, (int, float)) and not isinstance(w, bool) and 0 < w < math.inf for w in weights
    ):
        raise ConfigError(
            f"weights={weights!r}: wanted a number above 0 for each of the {count} models, such as "
            f"{[round(1 / count, 2)] * count}"
        )
    return [float(w) / sum(weights) for w in weights]


def _weights(model: Model) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in model.named_parameters()}


def _all_aligned(
    found: Sequence[Model], names: Sequence[str], near: Sequence[float], align: bool
) -> tuple[list[dict[str, Tensor]], list[float | None]]:
    """The weights of all models in the channels of the first one, and how close they are then."""
    first = _weights(found[0])
    moved: list[dict[str, Tensor]] = [first]
    after: list[float | None] = [None]
    for model, name, one in zip(found[1:], names[1:], near[1:]):
        weights = _weights(model)
        if one >= SAME_START:
            moved.append(weights)
            after.append(None)
            continue
        if not align:
            raise ModelError(
                f"merge: {name} and {names[0]} have different starts (closeness {one:.3f}, wanted "
                f"{SAME_START} or more), so that the mean of their weights means nothing; leave out "
                "align=False, or make an ensemble of them: mq.Ensemble([a, b])"
            )
        channels = channels_of(found[0])
        weights = transformed(weights, channels, aligned_maps(first, weights, channels))
        moved.append(weights)
        after.append(closeness(first, weights))
    return moved, after


def _mean(found: Sequence[Model], moved: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> Model:
    """The model with the mean of all weights, and of the scales and shifts that are no weights."""
    child = copy.deepcopy(found[0])
    states = [model.state_dict() for model in found]
    with torch.no_grad():
        for name, value in child.state_dict().items():
            parts = [weights.get(name, state[name]) for weights, state in zip(moved, states)]
            if value.is_floating_point():
                value.copy_(sum(share * part.double() for share, part in zip(shares, parts)))
            elif not all(torch.equal(part, parts[0]) for part in parts):
                raise ModelError(
                    f"merge: {name} is not the same in all models, and whole numbers have no mean; wanted "
                    "models that differ only in their weights"
                )
    return child


def _metadata(found: Sequence[Model], parents: Sequence[Parent]) -> tuple[dict[str, Any], list[str]]:
    """The metadata of the merged model, and notes for the user."""
    records = [dict(getattr(model, "metadata", None) or {}) for model in found]
    common = {
        name: value
        for name, value in records[0].items()
        if name not in _OWN and all(name in one and one[name] == value for one in records)
    }
    listed = []
    for model, parent, record in zip(found, parents, records):
        own = {name: value for name, value in record.items() if name not in (*_OWN, *common)}
        one = {"name": parent.name, "weights": weights_digest(model.state_dict()), "share": parent.weight}
        one |= {"closeness": parent.closeness, "aligned": parent.aligned}
        one |= {"reference_energies": dict(parent.reference_energies)} if parent.reference_energies else {}
        one |= {key: record[key] for key in ("trained_on", "reading", "training", "merged") if key in record}
        listed.append(one | ({"metadata": own} if own else {}))
    out: dict[str, Any] = {**common, "merged": {"parents": listed}}
    if all(one.get("reading") == records[0].get("reading") for one in records) and "reading" in records[0]:
        out["reading"] = records[0]["reading"]
    lows = [one["lowest_energy"] for one in records if isinstance(one.get("lowest_energy"), (int, float))]
    out |= {"lowest_energy": min(lows)} if len(lows) == len(records) else {}
    trained, notes = _trained_on(records, parents)
    return out | trained, notes


def _trained_on(
    records: Sequence[Mapping[str, Any]], parents: Sequence[Parent]
) -> tuple[dict[str, Any], list[str]]:
    """What any parent was trained on, if all of them say it; and what only some of them were trained on."""
    found = [record.get("trained_on") for record in records]
    if not all(isinstance(one, Mapping) for one in found):
        return {}, []
    every: list[Mapping[str, list]] = [one for one in found if isinstance(one, Mapping)]
    united = trained_on.union(every)
    notes = []
    for kind in (kind for kind in united if kind != trained_on.FIELD):
        for value in united[kind]:
            names = [parent.name for parent, one in zip(parents, every) if value in one[kind]]
            if len(names) < len(parents):
                what = str(value) if kind == "elements" else f"{kind} {value:g}"
                notes.append(f"{what}: only {', '.join(names)} was trained on it")
    return {"trained_on": united}, notes


def _references(model: Model) -> dict[str, float]:
    """Atomic reference energies in eV by element; empty without an energy."""
    found = reference_energies_of(model)
    return {} if found is None else {SYMBOLS[z]: float(found[z]) for z in model.elements}


def _different_references(parents: Sequence[Parent]) -> dict[str, float]:
    """By how much reference energies differ, in eV, of the elements for which they do."""
    found = {}
    for symbol in parents[0].reference_energies:
        values = [one.reference_energies[symbol] for one in parents]
        if max(values) - min(values) > 1e-6:
            found[symbol] = max(values) - min(values)
    return found


def _errors(model: Model, data: Any, options: Mapping[str, Any]) -> Errors | None:
    return None if data is None else evaluate(model, data, **options)


def _columns(parts: Mapping[str, Errors]) -> list[tuple[str, str, float]]:
    """Title, number and factor of each column of errors: RMSE, and of classes the accuracy."""
    out = []
    units = shown_units(parts)
    for row in next(iter(parts.values())).rows if parts else ():
        if row.element:
            continue
        if math.isnan(row.accuracy):
            factor, unit = units[row.quantity]
            title = f"{row.quantity} RMSE" + (f" ({unit})" if unit else "")
            out.append((title, f"{row.quantity}_rmse", factor))
        else:
            out.append((f"{row.quantity} accuracy", f"{row.quantity}_accuracy", 1.0))
    return out


def _cells(columns: Sequence[tuple[str, str, float]], errors: Errors | None) -> list[str]:
    return [] if errors is None else [f"{errors[name] * factor:.4g}" for _, name, factor in columns]
