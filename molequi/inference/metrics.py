"""Errors of predictions: summed up batch by batch, and shown as tables."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from molequi.data.checks import check_same_quantities
from molequi.data.dataset import Dataset
from molequi.graph import Graph
from molequi.quantities import SYMBOLS, Quantity, per_atom
from molequi.util.html import html_table
from molequi.util.tables import milli, text_table

_SAMPLE = ("structures", "of")


@dataclass(frozen=True)
class Error:
    """Errors of one quantity: over all components, or over the nodes of one element or the labels of one
    class.

    Parameters
    ----------
    quantity : str
        Its name; ``<name>_per_atom`` for an extensive scalar per atom.
    element : str
        The element, or the class; empty for all.
    unit : str
        Unit of `mae` and `rmse`.
    count : int
        Number of known components.
    mae, rmse : float
        Mean absolute and root mean square error.
    r2 : float
        1 - Σ e² / Σ (t - t̄)², with one mean t̄ over all components; NaN if all labels are the same.
    accuracy, cross_entropy : float
        For classes; NaN for other quantities.
    balanced_accuracy : float
        Mean over the classes with labels of the fraction of its labels that is predicted right. For all
        classes together.
    roc_auc : float
        Area under the receiver operating characteristic: the probability that a structure of this class has a
        higher predicted probability of it than one of another class. For all together the mean over the
        classes; NaN if there are labels of one class alone, and during a training.
    """

    quantity: str
    element: str
    unit: str
    count: int
    mae: float
    rmse: float
    r2: float
    accuracy: float = math.nan
    cross_entropy: float = math.nan
    balanced_accuracy: float = math.nan
    roc_auc: float = math.nan


@dataclass(frozen=True)
class Errors:
    """Errors of all quantities of a data set; printed, a table.

    ``errors["forces_mae"]`` is one number: ``<quantity>_<mae|rmse|r2>`` over all components, in eV, Å and e;
    ``energy_per_atom_mae`` for extensive scalars;
    ``<quantity>_<accuracy|balanced_accuracy|roc_auc|cross_entropy>`` for classes.

    Parameters
    ----------
    rows : tuple of Error
        One for each quantity, and for each element or class.
    sample : (int, int), optional
        If they are errors of a sample: its number of structures, and that of all.
    """

    rows: tuple[Error, ...]
    sample: tuple[int, int] | None = None

    def __getitem__(self, name: str) -> float:
        numbers = self.numbers()
        if name not in numbers:
            raise KeyError(f"{name!r}; there are {', '.join(numbers)}")
        return numbers[name]

    def numbers(self) -> dict[str, float]:
        """The numbers over all elements or classes, by name."""
        return {
            f"{row.quantity}_{kind}": getattr(row, kind)
            for row in self.rows
            if not row.element
            for kind in _kinds(row)
        }

    def records(self) -> list[dict]:
        """The rows as dictionaries for JSON, with None for NaN.

        Those of a sample have its number of ``structures``, and that ``of`` all.
        """
        more = {} if self.sample is None else dict(zip(_SAMPLE, self.sample))
        return [
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(row).items()} | more
            for row in self.rows
        ]

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]]) -> "Errors":
        """The table from what `records` returned.

        Parameters
        ----------
        records : sequence of mapping
            The rows.
        """
        rows: list[dict[str, Any]] = [
            {k: math.nan if v is None else v for k, v in record.items() if k not in _SAMPLE}
            for record in records
        ]
        first = records[0] if records else {}
        sample = (int(first["structures"]), int(first["of"])) if set(_SAMPLE) <= set(first) else None
        return cls(tuple(Error(**row) for row in rows), sample)

    def __str__(self) -> str:
        return table({"": self})

    def _repr_html_(self) -> str:
        return table_html({"": self})

    def __repr__(self) -> str:
        return f"Errors({', '.join(f'{name}={value:.4g}' for name, value in self.numbers().items())})"


def _kinds(row: Error) -> tuple[str, ...]:
    """The numbers of a quantity over all elements or classes."""
    if math.isnan(row.accuracy):
        return "mae", "rmse", "r2"
    area = () if math.isnan(row.roc_auc) else ("roc_auc",)
    return "accuracy", "balanced_accuracy", *area, "cross_entropy"


def named_part(part: str, sample: Sequence[int] | None) -> str:
    """The name of a part of the data, with the size of the sample that was measured.

    Parameters
    ----------
    part : str
        Its name.
    sample : (int, int) or None
        `Errors.sample`.

    Examples
    --------
    >>> named_part("train", (10_000, 2_000_000)), named_part("test", None)
    ('train (10,000 of 2,000,000)', 'test')
    """
    return part if sample is None else f"{part} ({sample[0]:,} of {sample[1]:,})".strip()


def table(parts: Mapping[str, Errors]) -> str:
    """A table for reading, with a block for each part, and one for classes.

    Each quantity has one unit in the whole table: meV instead of eV if all of its errors are below 1 eV.
    """
    return "\n".join(
        line for (head, *rows), left in _tables(parts) for line in text_table(head, rows, left=left)
    )


def table_html(parts: Mapping[str, Errors]) -> str:
    """The tables of `table` for a notebook, one for numbers and one for classes."""
    return "".join(html_table(head, rows, left=left) for (head, *rows), left in _tables(parts))


def _tables(parts: Mapping[str, Errors]) -> list[tuple[list[tuple[str, ...]], list[int]]]:
    """The lines of each table, the head first, and the columns of words."""
    lines: list[tuple[str, ...]] = [("", "quantity", "", "MAE", "RMSE", "unit", "R²", "values")]
    scores = ("accuracy", "balanced", "ROC-AUC", "cross-entropy")
    scored: list[tuple[str, ...]] = [("", "classes", "", *scores, "values")]
    units = shown_units(parts)
    for name, errors in parts.items():
        part = named_part(name, errors.sample)
        for k, row in enumerate(r for r in errors.rows if not math.isnan(r.accuracy)):
            scored.append((part if k == 0 else "", *_named(row), *_scores_shown(row), str(row.count)))
        for k, row in enumerate(r for r in errors.rows if math.isnan(r.accuracy)):
            factor, unit = units[row.quantity]
            lines.append(
                (
                    part if k == 0 else "",
                    *_named(row),
                    f"{row.mae * factor:.4g}",
                    f"{row.rmse * factor:.4g}",
                    unit,
                    f"{row.r2:.5f}",
                    str(row.count),
                )
            )
    tables = [(lines, (0, 1, 2, 5)), (scored, (0, 1, 2))]
    shown = [one for one in tables if len(one[0]) > 1] or tables[:1]
    # One part without a name needs no column.
    first = 0 if any(line[0] for rows, _ in shown for line in rows) else 1
    return [([line[first:] for line in rows], [c - first for c in left]) for rows, left in shown]


def shown_units(parts: Mapping[str, Errors]) -> dict[str, tuple[float, str]]:
    """Factor and unit in which the errors of each quantity are shown.

    Parameters
    ----------
    parts : mapping of str to Errors
        Errors by part of the data.

    Examples
    --------
    >>> error = Error("gap", "", "eV", 10, 0.2, 0.3, 0.9)
    >>> shown_units({"train": Errors((error,))})
    {'gap': (1000, 'meV')}
    """
    largest: dict[str, float] = {}
    units = {}
    for row in (row for errors in parts.values() for row in errors.rows):
        units[row.quantity] = row.unit
        if row.rmse >= largest.get(row.quantity, 0.0):
            largest[row.quantity] = row.rmse
    return {name: milli(unit, largest.get(name, math.inf)) for name, unit in units.items()}


def _named(row: Error) -> tuple[str, str]:
    """Name of the quantity, or of its element or class below it."""
    return row.quantity.replace("_", " ") if not row.element else "", row.element


def _scores_shown(row: Error) -> tuple[str, ...]:
    """Accuracies and cross-entropy of one row; empty where a number does not exist."""
    values = (row.accuracy, row.balanced_accuracy, row.roc_auc)
    return (*("" if math.isnan(v) else f"{v:.4f}" for v in values), f"{row.cross_entropy:.4g}")


def as_csv(parts: Mapping[str, Errors]) -> str:
    """All rows of all parts as CSV; if one is a sample, with its size and that of the whole part."""
    text = io.StringIO()
    more = _SAMPLE if any(errors.sample for errors in parts.values()) else ()
    writer = csv.DictWriter(text, ["part", *Error.__dataclass_fields__, *more], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {"part": part, **record} for part, errors in parts.items() for record in errors.records()
    )
    return text.getvalue()


class Metrics:
    """Sums of errors over batches.

    Targets are counted from a value near their mean, so that the variance of large energies loses no digits.
    Memory does not grow with the number of structures, but for log-odds of classes.

    Parameters
    ----------
    quantities : mapping of str to Quantity
        What the model predicts; those of which `data` has any label are measured.
    data : Dataset
        The labelled data.
    device : torch.device or str
        Where the sums are kept.
    areas : bool
        Keep the predicted log-odds of classes for the area under the receiver operating characteristic.

    Raises
    ------
    ConfigError
        If labels have other classes, another unit or another kind than these quantities.
    """

    def __init__(
        self,
        quantities: Mapping[str, Quantity],
        data: Dataset,
        device: torch.device | str = "cpu",
        *,
        areas: bool = False,
    ) -> None:
        check_same_quantities(quantities, data)
        self.areas = areas
        self.scores: dict[str, list[Tensor]] = {}
        self.quantities: dict[str, Quantity] = {}
        self.centre: dict[str, float] = {}
        self.sums: dict[str, Tensor] = {}
        for name, quantity in quantities.items():
            found = _first_labels(data, name)
            if found is None:
                continue
            targets, atoms = found
            self.quantities[name] = quantity
            if quantity.classes:
                self.sums[name] = torch.zeros(len(quantity.classes), 3, dtype=torch.float64, device=device)
                continue
            self.centre[name] = float(targets.nanmean())
            self.sums[name] = torch.zeros(
                len(SYMBOLS) if quantity.per == "node" else 1, 5, dtype=torch.float64, device=device
            )
            if per_atom(quantity):
                self.centre[f"{name}_per_atom"] = float((targets / atoms).nanmean())
                self.sums[f"{name}_per_atom"] = torch.zeros(1, 5, dtype=torch.float64, device=device)

    def update(self, out: Mapping[str, Tensor], graph: Graph) -> None:
        """Add one batch."""
        for name, quantity in self.quantities.items():
            target, value = graph.targets[name], out[name].detach().double()
            if quantity.classes:
                self._score(name, value, target)
                continue
            self._add(name, value, target, graph.z if quantity.per == "node" else None)
            if per_atom(quantity):
                self._add(f"{name}_per_atom", value / graph.counts, target / graph.counts, None)

    def _add(self, name: str, value: Tensor, target: Tensor, z: Tensor | None) -> None:
        known = ~torch.isnan(target)
        error = torch.where(known, value - target, 0.0)
        shifted = torch.where(known, target - self.centre[name], 0.0)
        table = torch.stack([known.double(), error.abs(), error * error, shifted, shifted * shifted], -1)
        table = table.reshape(len(target), -1, 5).sum(1)
        if z is None:
            self.sums[name] += table.sum(0)
        else:
            self.sums[name].index_add_(0, z, table)

    def _score(self, name: str, value: Tensor, target: Tensor) -> None:
        known = ~torch.isnan(target)
        value, label = value[known], target[known].long()
        if self.areas:
            self.scores.setdefault(name, []).append(torch.cat([_log_odds(value), label[:, None]], 1))
        right = (value.argmax(1) == label).double()
        loss = torch.nn.functional.cross_entropy(value, label, reduction="none")
        self.sums[name].index_add_(0, label, torch.stack([torch.ones_like(right), right, loss], 1))

    def state(self) -> dict[str, Any]:
        """The sums as values of JSON, for `merged_errors`."""
        return {
            name: {"centre": self.centre.get(name, 0.0), "sums": sums.tolist()}
            for name, sums in self.sums.items()
        }

    def reset(self) -> None:
        """Set all sums to zero."""
        self.scores = {}
        for sums in self.sums.values():
            sums.zero_()

    def errors(self) -> Errors:
        """The table so far."""
        return _errors(self.quantities, self.sums, self.scores)


def _first_labels(data: Dataset, name: str) -> tuple[Tensor, Tensor] | None:
    """Labels of the first block of structures that has any, and numbers of their atoms."""
    if name not in data.quantities:
        return None
    for block in data.graphs.blocks():
        part = data.graphs.select(block)
        labels = part.target(name)
        if not bool(labels.isnan().all()):
            return labels, torch.as_tensor(part.counts)
    return None


def _errors(
    quantities: Mapping[str, Quantity], found: Mapping[str, Tensor], scores: Mapping[str, Sequence[Tensor]]
) -> Errors:
    """The table of the sums of `Metrics`."""
    rows = []
    for name, sums in found.items():
        if name in quantities and quantities[name].classes:
            rows += _rows_of_classes(name, quantities[name].classes, sums.tolist(), scores.get(name, ()))
            continue
        base = name.removesuffix("_per_atom") if name not in quantities else name
        unit = quantities[base].unit + ("/atom" if base != name else "")
        rows.append(_error(name, "", unit, sums.sum(0).tolist()))
        present = [z for z in range(len(sums)) if len(sums) > 1 and sums[z, 0] > 0]
        if len(present) > 1:
            rows += [_error(name, SYMBOLS[z], unit, sums[z].tolist()) for z in present]
    return Errors(tuple(rows))


def merged_errors(quantities: Mapping[str, Quantity], states: Iterable[Mapping[str, Any]]) -> Errors:
    """The errors of several parts of data together, without the areas of classes.

    Parameters
    ----------
    quantities : mapping of str to Quantity
        What the model predicts.
    states : iterable of mapping
        `Metrics.state` of each part.

    Returns
    -------
    Errors
        The same as of the whole data, up to round-off.
    """
    centre: dict[str, float] = {}
    total: dict[str, Tensor] = {}
    for state in states:
        for name, part in state.items():
            sums = torch.tensor(part["sums"], dtype=torch.float64)
            if name not in total:
                centre[name], total[name] = part["centre"], torch.zeros_like(sums)
            if sums.shape[1] == 5:
                # Labels are counted from another mean in each part: Σ(t - c₀) and Σ(t - c₀)² follow from
                # those with c, and the distance c - c₀.
                shift, count, first = part["centre"] - centre[name], sums[:, 0].clone(), sums[:, 3].clone()
                sums[:, 3] += count * shift
                sums[:, 4] += 2 * shift * first + count * shift**2
            total[name] += sums
    return _errors(quantities, total, {})


def _rows_of_classes(
    name: str, classes: Sequence[str], sums: Sequence[Sequence[float]], scores: Sequence[Tensor]
) -> list[Error]:
    """A row for all classes, and one for each that has labels."""
    areas = _areas(torch.cat(list(scores))) if scores else [math.nan] * len(classes)
    known = [area for area in areas if not math.isnan(area)]
    each = [_scores(name, c, s, area) for c, s, area in zip(classes, sums, areas) if s[0]]
    total = _scores(
        name,
        "",
        [sum(column) for column in zip(*sums)],
        sum(known) / len(known) if known else math.nan,
        sum(row.accuracy for row in each) / len(each) if each else math.nan,
    )
    return [total, *each]


def _areas(scores: Tensor) -> list[float]:
    """Area under the receiver operating characteristic of each class against all others, (n, K + 1) → K.

    The last column has the labels. NaN for a class that all labels have, or none.
    """
    from scipy.stats import rankdata

    out = []
    for column, label in zip(scores[:, :-1].T.cpu().numpy(), _one_hot(scores).T.cpu().numpy()):
        n, m = int(label.sum()), int((~label).sum())
        # The statistic U of Mann and Whitney counts pairs (one of the class, another) in the right order;
        # equal ones count one half.
        u = rankdata(column)[label].sum() - n * (n + 1) / 2
        out.append(float(u / (n * m)) if n and m else math.nan)
    return out


def _one_hot(scores: Tensor) -> Tensor:
    return scores[:, -1:] == torch.arange(scores.shape[1] - 1, device=scores.device)


def _log_odds(value: Tensor) -> Tensor:
    """log(p / (1 - p)) of each class, which keeps its digits where p is near 0 or 1; (n, K) → (n, K)."""
    others = [value[:, [j for j in range(value.shape[1]) if j != k]] for k in range(value.shape[1])]
    return value - torch.stack([other.logsumexp(1) for other in others], 1)


def _scores(name: str, label: str, sums: Sequence[float], area: float, balanced: float = math.nan) -> Error:
    count, nan = max(sums[0], 1), math.nan
    accuracy, entropy = sums[1] / count, sums[2] / count
    return Error(name, label, "", int(sums[0]), nan, nan, nan, accuracy, entropy, balanced, area)


def _error(name: str, element: str, unit: str, sums: Sequence[float]) -> Error:
    count, absolute, square, first, second = sums
    if count == 0:
        return Error(name, element, unit, 0, math.nan, math.nan, math.nan)
    variation = second - first * first / count
    # Labels that are all the same leave round-off, and a ratio to round-off means nothing.
    r2 = 1 - square / variation if variation > 1e-12 * max(second, 1e-300) and count > 1 else math.nan
    return Error(name, element, unit, int(count), absolute / count, math.sqrt(square / count), r2)
