"""The summary of a Dataset, as text and as HTML."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from molequi.data.levels import LEVEL
from molequi.graph import fields_per
from molequi.quantities import SYMBOLS
from molequi.util.html import html_facts, html_heading, html_table, shorten, some
from molequi.util.tables import text_table

if TYPE_CHECKING:
    from molequi.data.dataset import Dataset

_HEAD = ("quantity", "known", "range", "unit", "found in")
_WORDS = range(5)
_LONGEST_CELL = 200  # characters, in HTML


def text(data: "Dataset") -> str:
    """One fact per line: structures, labels with their ranges, and what was not read.

    Parameters
    ----------
    data : Dataset
        The data.
    """
    rows = list(_rows(data))
    lines = [_first_line(data)]
    lines += ["  " + line for line in text_table(rows[0], rows[1:], left=_WORDS)] if rows else []
    if not data.quantities:
        lines.append("  no labels")
    if unused := _unused(data):
        lines.append("  not read: " + ", ".join(unused))
    return "\n".join(lines)


def html(data: "Dataset") -> str:
    """The same for a notebook, with the columns of `Dataset.info` and the files.

    Parameters
    ----------
    data : Dataset
        The data.
    """
    rows = [tuple(shorten(cell, _LONGEST_CELL) for cell in row) for row in _rows(data)]
    columns = [f"{name} ({len({str(v) for v in values})} values)" for name, values in data.info.items()]
    facts = {
        "columns": some(columns),
        "not read": some(_unused(data)),
        "files": some([source.file for source in data.sources], 4),
    }
    table = html_table(_HEAD, rows, left=_WORDS) if rows else ""
    labels = "" if data.quantities else "no labels"
    return html_heading(f"Dataset: {_first_line(data)}", labels) + table + html_facts(facts)


def _unused(data: "Dataset") -> list[str]:
    unused = {key: n for key, n in data.unused.items() if key != LEVEL or key not in data.info}
    return [key if n is None else f"{key} ({n})" for key, n in sorted(unused.items())]


def _first_line(data: "Dataset") -> str:
    low, high = int(data.counts.min()), int(data.counts.max())
    size = f"{low}" if low == high else f"{low} to {high}"
    if data.elements == (0,):
        return f"{len(data)} clouds of {size} points in {data.graphs[0].dim} dimensions"
    numbers = data.graphs.z.bincount().tolist()
    atoms = ", ".join(f"{SYMBOLS[e]} {numbers[e]}" for e in data.elements)
    periodic = int(data.graphs.has("pbc").sum())
    cells = {0: "none periodic", len(data): "all periodic"}.get(periodic, f"{periodic} of them periodic")
    return f"{len(data)} structures of {size} atoms ({atoms}), {cells}"


def _rows(data: "Dataset") -> Iterator[tuple[str, ...]]:
    for name in data.quantities:
        yield _label_row(data, name)
    yield from _field_rows(data)
    names = [str(value) for value in data.info.get(LEVEL, ()) if value is not None]
    if names:
        span = ", ".join(f"{name} {names.count(name)}" for name in dict.fromkeys(names))
        yield LEVEL, f"{len(names)}/{len(data)}", span, "", f"info {LEVEL!r}"


def _label_row(data: "Dataset", name: str) -> tuple[str, ...]:
    q, values = data.quantities[name], data.values(name)
    # Labels that are known in part count too.
    known = int(data.graphs.labelled(name).sum())
    values = values[~torch.isnan(values)]
    span = f"{values.min().item():.6g} to {values.max().item():.6g}" if len(values) else ""
    if q.classes:
        numbers = values.long().bincount(minlength=len(q.classes)).tolist()
        span = ", ".join(f"{c} {n}" for c, n in zip(q.classes, numbers))
    return name, f"{known}/{len(data)}", span, q.unit, data.found.get(name, "")


def _field_rows(data: "Dataset") -> Iterator[tuple[str, ...]]:
    for name, spec in fields_per("node", "graph", "pair").items():
        values = data.graphs.field(name)
        if spec.default is not None or name in ("pos", "z", LEVEL) or values is None:
            continue
        if values.numel():
            span = f"{values.min().item():.6g} to {values.max().item():.6g}"
            yield name, f"{len(data)}/{len(data)}", span, spec.unit, data.found.get(name, "")
