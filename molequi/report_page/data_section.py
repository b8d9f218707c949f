"""The section of a report page about the data."""

from collections.abc import Mapping

import torch

from molequi.data.dataset import Dataset
from molequi.data.fingerprints import duplicates
from molequi.plotting.figure import unit_text
from molequi.quantities import SYMBOLS, Quantity, per_atom
from molequi.report_page import blocks, words
from molequi.report_page.blocks import Section
from molequi.report_page.finished import FinishedRun


def data_section(run: FinishedRun) -> Section:
    """The section about the data.

    Parameters
    ----------
    run : FinishedRun
        The run.
    """
    points = all(data.elements == (0,) for data in run.parts.values())
    rows: list[list[str]] = []
    ranges: list[list[str]] = []
    classes: list[list[str]] = []
    for part, data in run.parts.items():
        low, high = int(data.counts.min()), int(data.counts.max())
        size = str(low) if low == high else f"{low} to {high}"
        elements = "" if points else " ".join(SYMBOLS[z] for z in data.elements)
        rows.append([part, elements, f"{len(data):,}", size, f"{int(data.counts.sum()):,}"])
        for name, q in data.quantities.items():
            if data.labelled(name):
                (classes if q.classes else ranges).append(_range(part, name, q, data))
    what = "points" if points else "atoms"
    found = words.shared_text(run.parts) + words.missing_elements(run.parts, SYMBOLS) + _twins(run.parts)
    body = [
        blocks.table(
            ["part", "" if points else "elements", "structures", f"{what} each", f"{what} in all"],
            rows,
            left=2,
        ),
        blocks.text(words.split_text(run.config)),
        blocks.marks(found),
    ]
    if ranges:
        head = ["quantity", "part", "labels", "smallest", "largest", "standard deviation", "unit"]
        body.append(blocks.table(head, ranges, left=2))
    if classes:
        body.append(blocks.table(["quantity", "part", "labels of each class", "labels"], classes, left=3))
    return Section(
        "data",
        "Data",
        "Validation and test data should be like the structures that the model will be used for, and no "
        "structure or molecule of them should be in the training data.",
        body,
    )


def _range(part: str, name: str, quantity: Quantity, data: Dataset) -> list[str]:
    """Number and range of the labels of one quantity, or number of the labels of each class."""
    values = data.values(name)
    if quantity.classes:
        labels = values[~torch.isnan(values)].long()
        numbers = labels.bincount(minlength=len(quantity.classes)).tolist()
        shown = ", ".join(f"{c} {n}" for c, n in zip(quantity.classes, numbers))
        return [name, part, shown, f"{len(labels):,}"]
    unit = quantity.unit
    if per_atom(quantity):
        values, unit, name = values / torch.as_tensor(data.counts), f"{unit}/atom", f"{name} per atom"
    values = values[~torch.isnan(values)]
    numbers = [f"{float(v):.5g}" for v in (values.min(), values.max(), values.std(correction=0))]
    return [name, part, f"{len(values):,}", *numbers, unit_text(unit)]


def _twins(parts: Mapping[str, Dataset]) -> list[words.Finding]:
    """Structures that are in two parts."""
    names = list(parts)
    if len(names) < 2:
        return []
    found = duplicates(list(parts.values()))
    if not found:
        return [words.Finding("good", "No structure is in two parts.")]
    (a, i), (b, j) = found[0]
    return [
        words.Finding(
            "bad",
            f"{len(found)} structures are in two parts, so that errors of one say nothing about the other: "
            f"{parts[names[a]].origins[i]} in {names[a]} is {parts[names[b]].origins[j]} in {names[b]}.",
        )
    ]
