"""The structures that a report page evaluates, their predictions, and errors by group."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from molequi.data.dataset import Dataset
from molequi.data.indexing import evenly_spaced
from molequi.data.splits import scaffolds
from molequi.ensemble import Ensemble
from molequi.errors import DataError
from molequi.inference.predict import predict
from molequi.model import Model
from molequi.quantities import Quantity, per_atom
from molequi.terms import as_labelled

STRUCTURES, ATOMS = 1000, 50_000  # of each part, at most; but always one structure
_VALUES = 12  # rows of a table of groups
_BINS = 5


@dataclass(frozen=True)
class Sample:
    """Structures of one part of the data, with predictions.

    Parameters
    ----------
    data : Dataset
        The structures.
    results : sequence of mapping
        What `molequi.predict` returns for each.
    total : int
        Number of structures of the whole part.
    """

    data: Dataset
    results: Sequence[Mapping[str, np.ndarray]]
    total: int

    def quantities(self) -> dict[str, Quantity]:
        """The quantities that are predicted and have labels."""
        predicted = self.results[0]
        return {
            name: q
            for name, q in self.data.quantities.items()
            if name in predicted and self.data.labelled(name)
        }


@dataclass(frozen=True)
class Sums:
    """Errors of one quantity, structure by structure; errors of extensive scalars are per atom.

    Parameters
    ----------
    count : array of int, shape (structures,)
        Number of known components.
    absolute, square : array of float, shape (structures,)
        Sums of the absolute values and of the squares of their errors. For classes both are the number of
        wrong predictions.
    """

    count: np.ndarray
    absolute: np.ndarray
    square: np.ndarray


def sample(model: Model | Ensemble, data: Dataset) -> Sample:
    """Choose structures, evenly spaced, and predict them.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    data : Dataset
        A part of the data.
    """
    most = min(STRUCTURES, len(data), max(1, int(ATOMS / data.counts.mean())))
    chosen = data[evenly_spaced(len(data), most)]
    return Sample(chosen, predict(as_labelled(model), chosen, progress=False), len(data))


def errors_of(quantity: Quantity, found: Sample) -> Sums:
    """Errors of one quantity, structure by structure.

    Parameters
    ----------
    quantity : Quantity
        The quantity.
    found : Sample
        Labels and predictions.
    """
    rows = []
    for graph, result in zip(found.data, found.results):
        label, value = graph.targets[quantity.name].double().numpy(), result[quantity.name]
        if quantity.classes:
            number = np.vectorize(quantity.classes.index, otypes=[float])(np.atleast_1d(value))
            error = np.where(np.isnan(label), np.nan, number != label)
        else:
            count = graph.num_nodes if per_atom(quantity) else 1
            error = (np.asarray(value, dtype=np.float64).reshape(label.shape) - label) / count
        error = error[~np.isnan(error)]
        rows.append((len(error), np.abs(error).sum(), (error**2).sum()))
    sums = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return Sums(sums[:, 0].astype(int), sums[:, 1], sums[:, 2])


@dataclass(frozen=True)
class Column:
    """A column of the data by which structures are grouped.

    Parameters
    ----------
    name : str
        Its name.
    labels : sequence of str
        Names of the groups.
    groups : array of int, shape (structures,)
        The group of each structure of the sample.
    trained : array of int, shape (groups,)
        Number of training structures in each group.
    """

    name: str
    labels: Sequence[str]
    groups: np.ndarray
    trained: np.ndarray


def columns(found: Sample, train: Dataset) -> tuple[list[Column], list[str]]:
    """Columns of `Dataset.info` that group structures, the scaffold of molecules, and the number of atoms.

    Numbers with many values are grouped in ranges with about equally many structures. Of texts the most
    frequent ones are groups, and all others are one.

    Parameters
    ----------
    found : Sample
        The structures whose errors are grouped.
    train : Dataset
        The training data.

    Returns
    -------
    (list of Column, list of str)
        The columns, and the names of those that do not group the structures: identifiers, lists, and columns
        with a single value.
    """
    given = _columns(found.data)
    there = _columns(train)
    made, left = [], []
    for name, values in given.items():
        if name in ("molecule", "conformer") and "smiles" in given:  # numbers of rows
            left.append(name)
            continue
        column = _grouped(name, values, there.get(name, []))
        if column is None:
            left.append(name)
        else:
            made.append(column)
    return made, left


def _columns(data: Dataset) -> dict[str, Sequence[Any]]:
    found: dict[str, Sequence[Any]] = dict(data.info)
    if "smiles" in found and "scaffold" not in found:
        try:
            texts = scaffolds([str(text) for text in found["smiles"]], data.origins)
            found["scaffold"] = [text or "no ring" for text in texts]
        except DataError:  # a column of this name that has no SMILES
            pass
    what = "number of points" if data.elements == (0,) else "number of atoms"
    return found | {what: data.counts.tolist()}


def _grouped(name: str, values: Sequence[Any], train: Sequence[Any]) -> Column | None:
    """The column in groups; None if it makes no groups."""
    plain = [v.item() if isinstance(v, np.generic) else v for v in values]
    others = [v.item() if isinstance(v, np.generic) else v for v in train]
    if any(not isinstance(v, (str, bool, int, float, type(None))) for v in plain):
        return None
    different = set(plain)
    if len(different) < 2:
        return None
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in plain)
    if numbers and len(different) > _VALUES:
        return _ranges(name, np.array(plain, dtype=float), others)
    frequent = Counter(plain).most_common(_VALUES)
    if frequent[0][1] == 1 or len(different) > len(plain) / 2 > _VALUES:
        return None
    named = [value for value, _ in frequent]
    if len(different) <= _VALUES:
        named = sorted(named, key=lambda v: (v is None, isinstance(v, str), v if v is not None else 0))
    labels = ["not given" if v is None else str(v) for v in named]
    rest = len(different) - len(named)
    index = {value: k for k, value in enumerate(named)}
    counts = Counter(index.get(v, len(named)) for v in others)
    if rest:
        labels.append(f"{rest} others")
    groups = np.array([index.get(v, len(named)) for v in plain])
    return Column(name, labels, groups, np.array([counts[k] for k in range(len(labels))]))


def _ranges(name: str, values: np.ndarray, train: Sequence[Any]) -> Column:
    """A column of numbers in ranges with about equally many structures."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1), method="higher"))
    groups = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    there = np.array([v for v in train if isinstance(v, (int, float))], dtype=float)
    inside = there[(there >= edges[0]) & (there <= edges[-1])]
    numbers = np.clip(np.searchsorted(edges, inside, side="right") - 1, 0, len(edges) - 2)
    whole = bool((values == values.round()).all() and (edges == edges.round()).all())
    last = edges[-1]
    labels = [
        f"{a:.0f} to {b - (b < last):.0f}" if whole else f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges)
    ]
    return Column(name, labels, groups, np.bincount(numbers, minlength=len(labels)))
