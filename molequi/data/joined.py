"""Structures of two data sets as one, whose tables are shared and not copied."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from molequi.data.chain import Chain, ChainedColumn
from molequi.data.edges import Edges, chained_edges
from molequi.data.fingerprints import fingerprint_numbers
from molequi.data.structures import Columns, Structures
from molequi.graph import FIELDS

if TYPE_CHECKING:
    from molequi.data.dataset import Dataset


def joined(first: Structures, second: Structures) -> Structures:
    """All structures of both, one after the other.

    Tables of files stay on disk. Neighbor lists are kept if both have them with one cutoff and one k.

    Parameters
    ----------
    first, second : Structures
        Structures with the same targets, whose fields fit together.
    """
    columns = _columns(_with_fingerprints(first), _with_fingerprints(second), tuple(first.columns.targets))
    rows = _rows(first, second, first.rows, second.rows, len(first.columns.starts["node"]) - 1)
    a, b = first.edges, second.edges
    if a is None or b is None or not alike(first, second):
        return Structures(columns, rows)
    edge_rows = _rows(first, second, first.edge_rows, second.edge_rows, len(a.starts) - 1)
    return Structures(columns, rows, _edges(a, b), edge_rows)


def alike(first: Structures, second: Structures) -> bool:
    """Whether both have no neighbor lists, or have them in the same way.

    Parameters
    ----------
    first, second : Structures
        The structures.
    """
    a, b = first.edges, second.edges
    if a is None or b is None:
        return a is b
    return (a.cutoff, a.k, a.edge_attr is None) == (b.cutoff, b.k, b.edge_attr is None)


def about_both(first: "Dataset", second: "Dataset") -> dict[str, Any]:
    """What a Dataset is made with beside its structures, for the structures of two.

    Parameters
    ----------
    first, second : Dataset
        Data with the same quantities.
    """
    both = (first, second)
    unused = {k: [d.unused.get(k, 0) for d in both] for k in {**first.unused, **second.unused}}
    return {
        "quantities": first.quantities,
        "info": {
            k: ChainedColumn([d.info.get(k, (None,) * len(d)) for d in both])
            for k in {**first.info, **second.info}
        },
        "origins": ChainedColumn([first.origins, second.origins]),
        "sources": list(dict.fromkeys([*first.sources, *second.sources])),
        "found": first.found,
        "unused": {k: None if a is None or b is None else a + b for k, (a, b) in unused.items()},
        "reading": {k: v for k, v in first.reading.items() if second.reading.get(k, v) == v},
        "allow": [*first.allow, *second.allow],
    }


def _rows(
    first: Structures, second: Structures, one: Tensor | None, other: Tensor | None, total: int
) -> Tensor | None:
    """Numbers in the tables of both, of which the first ones have `total` structures."""
    if one is None and other is None:
        return None
    numbers = [torch.arange(len(s)) if n is None else n for s, n in ((first, one), (second, other))]
    return torch.cat([numbers[0], numbers[1] + total])


def _with_fingerprints(structures: Structures) -> Columns:
    """The tables, with a fingerprint of each structure that belongs to these."""
    columns = structures.columns
    if columns.fingerprints is not None:
        return columns
    numbers = torch.zeros(len(columns.starts["node"]) - 1, dtype=torch.int64)
    numbers[slice(None) if structures.rows is None else structures.rows] = torch.from_numpy(
        fingerprint_numbers(structures)
    )
    return replace(columns, fingerprints=numbers)


def _columns(a: Columns, b: Columns, targets: Sequence[str]) -> Columns:
    """The tables of both, also in another process."""
    counts = [len(columns.starts["node"]) - 1 for columns in (a, b)]
    present = {}
    for name in {*a.fields, *b.fields}:
        if any(name not in c.fields or name in c.present for c in (a, b)):
            there = [
                c.present.get(name, torch.full((count,), name in c.fields))
                for c, count in zip((a, b), counts)
            ]
            present[name] = torch.cat(there)
    assert a.fingerprints is not None and b.fingerprints is not None
    return Columns(
        {kind: torch.cat([a.starts[kind], b.starts[kind][1:] + a.starts[kind][-1]]) for kind in a.starts},
        {name: _field(name, a, b) for name in (*a.fields, *(n for n in b.fields if n not in a.fields))},
        present,
        None if a.pair_index is None or b.pair_index is None else Chain([a.pair_index, b.pair_index]),
        {name: Chain([a.targets[name], b.targets[name]]) for name in targets},
        a.per_node,
        torch.cat([a.fingerprints, b.fingerprints]),
        partial(_columns, a, b),
    )


def _field(name: str, a: Columns, b: Columns) -> Chain:
    """The values of a field; its default for structures that lack it."""
    like = a.fields[name] if name in a.fields else b.fields[name]
    default = torch.tensor(FIELDS[name].default or 0.0, dtype=like.dtype)

    def table(columns: Columns) -> Tensor | Chain:
        if name in columns.fields:
            return columns.fields[name]
        kind = FIELDS[name].per
        rows = len(columns.starts["node"]) - 1 if kind == "graph" else int(columns.starts[kind][-1])
        return default.expand(rows, *like.shape[1:])

    return Chain([table(a), table(b)])


def _edges(a: Edges, b: Edges) -> Edges:
    """The neighbor lists of both, also in another process."""
    return chained_edges([a, b], partial(_edges, a, b))
