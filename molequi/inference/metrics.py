"""Errors of predictions: summed up batch by batch, and shown as tables."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.graph import Graph
from molequi.quantities import SYMBOLS, Quantity, per_atom
from molequi.util.html import html_table
from molequi.util.tables import text_table


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


@dataclass(frozen=True)
class Errors:
    """Errors of all quantities of a data set; printed, a table.

    ``errors["forces_mae"]`` is one number: ``<quantity>_<mae|rmse|r2>`` over all components, in eV, Å and e;
    ``energy_per_atom_mae`` for extensive scalars; ``<quantity>_<accuracy|cross_entropy>`` for classes.

    Parameters
    ----------
    rows : tuple of Error
        One for each quantity, and for each element or class.
    """

    rows: tuple[Error, ...]

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
            for kind in (("mae", "rmse", "r2") if math.isnan(row.accuracy) else ("accuracy", "cross_entropy"))
        }

    def records(self) -> list[dict]:
        """The rows as dictionaries for JSON, with None for NaN."""
        return [
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(row).items()}
            for row in self.rows
        ]

    def __str__(self) -> str:
        return table({"": self})

    def _repr_html_(self) -> str:
        return table_html({"": self})

    def __repr__(self) -> str:
        return f"Errors({', '.join(f'{name}={value:.4g}' for name, value in self.numbers().items())})"


_LEFT = (0, 1, 2, 5)  # columns of words


def table(parts: Mapping[str, Errors]) -> str:
    """A table for reading, with a block for each part.

    Each quantity has one unit: energies are in meV if all errors of the quantity are below 1 eV.
    """
    blocks, first = _blocks(parts)
    head, *rows = [line[first:] for block in blocks for line in block]
    return "\n".join(text_table(head, rows, left=[c - first for c in _LEFT]))


def table_html(parts: Mapping[str, Errors]) -> str:
    """The tables of `table` for a notebook, one for numbers and one for classes."""
    blocks, first = _blocks(parts)
    left = [c - first for c in _LEFT]
    return "".join(
        html_table(block[0][first:], [line[first:] for line in block[1:]], left=left) for block in blocks
    )


def _blocks(parts: Mapping[str, Errors]) -> tuple[list[list[tuple[str, ...]]], int]:
    """The lines of each table, the head first, and how many columns on the left are empty."""
    units = shown_units(parts)
    lines = [("", "quantity", "", "MAE", "RMSE", "unit", "R²", "values")]
    scored = [("", "classes", "", "accuracy", "cross-entropy", "", "", "values")]
    for part, errors in parts.items():
        for row in errors.rows:
            if not math.isnan(row.accuracy):
                name = row.quantity.replace("_", " ") if not row.element else ""
                new = part != next((line[0] for line in reversed(scored) if line[0]), "")
                scored.append(
                    (
                        part if new else "",
                        name,
                        row.element,
                        f"{row.accuracy:.4f}",
                        f"{row.cross_entropy:.4g}",
                        "",
                        "",
                        str(row.count),
                    )
                )
        for k, row in enumerate(r for r in errors.rows if math.isnan(r.accuracy)):
            factor, unit = units[row.quantity]
            lines.append(
                (
                    part if k == 0 else "",
                    row.quantity.replace("_", " ") if not row.element else "",
                    row.element,
                    f"{row.mae * factor:.4g}",
                    f"{row.rmse * factor:.4g}",
                    unit,
                    f"{row.r2:.5f}",
                    str(row.count),
                )
            )
    blocks: list[list[tuple[str, ...]]] = [[*lines]] if len(lines) > 1 or len(scored) == 1 else []
    blocks += [[*scored]] if len(scored) > 1 else []
    # One part without a name needs no column.
    return blocks, 0 if any(line[0] for block in blocks for line in block) else 1


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
    rows = [row for errors in parts.values() for row in errors.rows]
    large = {row.quantity for row in rows if row.rmse >= 1}
    return {
        row.quantity: (1000, f"m{row.unit}")
        if row.unit.startswith("eV") and row.quantity not in large
        else (1, row.unit)
        for row in rows
    }


def as_csv(parts: Mapping[str, Errors]) -> str:
    """All rows of all parts as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["part", *Error.__dataclass_fields__], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {"part": part, **record} for part, errors in parts.items() for record in errors.records()
    )
    return text.getvalue()


class Metrics:
    """Sums of errors over batches.

    Targets are counted from their mean in `data`, so that the variance of large energies loses no digits.

    Parameters
    ----------
    quantities : mapping of str to Quantity
        What the model predicts; those of which `data` has any label are measured.
    data : Dataset
        The labelled data.
    device : torch.device or str
        Where the sums are kept.
    """

    def __init__(
        self, quantities: Mapping[str, Quantity], data: Dataset, device: torch.device | str = "cpu"
    ) -> None:
        self.quantities: dict[str, Quantity] = {}
        self.centre: dict[str, float] = {}
        self.sums: dict[str, Tensor] = {}
        atoms = torch.as_tensor(data.counts)
        for name, quantity in quantities.items():
            if not data.labelled(name):
                continue
            targets = data.values(name)
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
        right = (value.argmax(1) == label).double()
        loss = torch.nn.functional.cross_entropy(value, label, reduction="none")
        self.sums[name].index_add_(0, label, torch.stack([torch.ones_like(right), right, loss], 1))

    def reset(self) -> None:
        """Set all sums to zero."""
        for sums in self.sums.values():
            sums.zero_()

    def errors(self) -> Errors:
        """The table so far."""
        rows = []
        for name, sums in self.sums.items():
            if name in self.quantities and self.quantities[name].classes:
                rows.append(_scores(name, "", sums.sum(0).tolist()))
                rows += [
                    _scores(name, c, s) for c, s in zip(self.quantities[name].classes, sums.tolist()) if s[0]
                ]
                continue
            base = name.removesuffix("_per_atom") if name not in self.quantities else name
            unit = self.quantities[base].unit + ("/atom" if base != name else "")
            rows.append(_error(name, "", unit, sums.sum(0).tolist()))
            present = [z for z in range(len(sums)) if len(sums) > 1 and sums[z, 0] > 0]
            if len(present) > 1:
                rows += [_error(name, SYMBOLS[z], unit, sums[z].tolist()) for z in present]
        return Errors(tuple(rows))


def _scores(name: str, label: str, sums: Sequence[float]) -> Error:
    count = max(sums[0], 1)
    return Error(
        name, label, "", int(sums[0]), math.nan, math.nan, math.nan, sums[1] / count, sums[2] / count
    )


def _error(name: str, element: str, unit: str, sums: Sequence[float]) -> Error:
    count, absolute, square, first, second = sums
    if count == 0:
        return Error(name, element, unit, 0, math.nan, math.nan, math.nan)
    variation = second - first * first / count
    # Labels that are all the same leave round-off, and a ratio to round-off means nothing.
    r2 = 1 - square / variation if variation > 1e-12 * max(second, 1e-300) and count > 1 else math.nan
    return Error(name, element, unit, int(count), absolute / count, math.sqrt(square / count), r2)
