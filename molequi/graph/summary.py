"""A Graph in one line, and as a table for notebooks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from molequi.graph.fields import FIELDS
from molequi.quantities import KNOWN, SYMBOLS
from molequi.util.html import html_heading, html_table, some

if TYPE_CHECKING:
    from molequi.graph.graph import Graph

_LONGEST_FORMULA = 40


def one_line(graph: "Graph") -> str:
    """Formula, size, periodicity, edges and targets of a graph.

    Parameters
    ----------
    graph : Graph
        One structure or a batch.
    """
    count = graph.num_graphs
    parts = [f"{count} graphs" if count != 1 else _formula(graph.z), f"{graph.num_nodes} nodes"]
    parts += [f"{graph.dim} dimensions"] if graph.dim != 3 else []
    if graph.pbc is not None:
        parts.append("periodic")
    if graph.edge_index is not None:
        near = "" if graph.cutoff in (None, float("inf")) else f" up to {graph.cutoff:g} Å"
        near += "" if graph.k is None else f", {graph.k} nearest"
        parts.append(f"{graph.edge_index.shape[1]} edges{near}")
    text = ", ".join(filter(None, parts))
    return f"{text}; targets {some([*graph.targets], 8)}" if graph.targets else text


def html(graph: "Graph") -> str:
    """The line of `one_line`, and a row for each field, edge index and target.

    Parameters
    ----------
    graph : Graph
        One structure or a batch.
    """
    return html_heading(f"Graph: {one_line(graph)}") + html_table(
        ("name", "of", "shape", "range", "unit"), list(_rows(graph)), left=(0, 1, 2, 4)
    )


def _rows(graph: "Graph") -> Iterator[tuple[str, ...]]:
    for name, value in graph.values().items():
        unit = FIELDS[name].unit if name != "pos" or _formula(graph.z) else ""  # clouds have any unit
        yield name, FIELDS[name].per, _shape(value), _span(value), unit
    for name in ("edge_index", "pair_index"):
        value = getattr(graph, name)
        if value is not None:
            yield name, name.removesuffix("_index"), _shape(value), "", ""
    for name, value in graph.targets.items():
        known = KNOWN.get(name)
        yield name, "target", _shape(value), _span(value), "" if known is None else known.unit


def _shape(value: Tensor) -> str:
    return " × ".join(map(str, value.shape))


def _span(value: Tensor) -> str:
    """The smallest and the largest known number."""
    if is_fake(value) or value.dtype == torch.bool:
        return ""
    known = value[~torch.isnan(value)] if value.is_floating_point() else value
    if known.numel() == 0:
        return ""
    low, high = float(known.min()), float(known.max())
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def _formula(z: Tensor) -> str:
    """The formula in Hill order; empty for plain points."""
    if is_fake(z):  # no values while a function is traced
        return ""
    counts = {SYMBOLS[e]: int((z == e).sum()) for e in z.unique().tolist() if e > 0}
    first = [s for s in ("C", "H") if s in counts] if "C" in counts else []
    text = "".join(
        f"{s}{counts[s] if counts[s] > 1 else ''}" for s in [*first, *sorted(set(counts) - set(first))]
    )
    return text if len(text) <= _LONGEST_FORMULA else f"{len(counts)} elements"
