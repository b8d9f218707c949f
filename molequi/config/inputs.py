"""What a backbone reads of the structures, filled in from the data."""

import inspect
from collections.abc import Mapping
from typing import Any

from molequi.config.names import Names
from molequi.data.dataset import Dataset
from molequi.data.request import INVARIANTS
from molequi.readers import read_ase, read_extxyz

# Number of features or vectors in a run file, by the field of Graph that holds them.
_SIZES = {"node_features": ("x",), "edge_features": ("edge_attr", "pair_attr"), "node_vectors": ("vec",)}


def with_inputs(backbone: Any, parts: Mapping[str, Dataset], names: Names, *, totals: bool = False) -> Any:
    """The section ``backbone`` with the inputs that the data have and the section does not name.

    Parameters
    ----------
    backbone : str or mapping
        The section.
    parts : mapping of str to Dataset
        The data by part.
    names : Names
        What the names of the file stand for.
    totals : bool
        Also read the total charge and the spin multiplicity, where they differ between structures.

    Returns
    -------
    str or mapping
        The same section if there is nothing to fill in.
    """
    (name, options) = (backbone, {}) if isinstance(backbone, str) else next(iter(backbone.items()))
    kind = names.backbones[name]
    if "inputs" not in inspect.signature(kind).parameters:
        return backbone
    given = dict((options or {}).get("inputs") or {})
    more = {
        key: value
        for key, value in _found(parts["train"], totals).items()
        if key in kind.accepts and key not in given
    }
    return {name: {**(options or {}), "inputs": given | more}} if more else backbone


def unused_totals(reader: Any, backbone: Any, names: Names) -> list[str]:
    """Of total charge and spin those that the backbone does not take, so that they need not be read.

    Parameters
    ----------
    reader : callable
        The reader. Others than those of ASE read all that they find.
    backbone : str, mapping or None
        The section; None if it is not complete before the data are read.
    names : Names
        What the names of the file stand for.
    """
    if backbone is None or reader not in (read_ase, read_extxyz):
        return []
    (name, options) = (backbone, {}) if isinstance(backbone, str) else next(iter(backbone.items()))
    if "inputs" not in inspect.signature(names.backbones[name]).parameters:
        return []
    given = (options or {}).get("inputs") or {}
    return [total for total in INVARIANTS if not given.get(total)]


def _found(data: Dataset, totals: bool) -> dict[str, Any]:
    """The inputs that the data have."""
    first = data.graphs[0]
    found: dict[str, Any] = {}
    for key, fields in _SIZES.items():
        sizes = [value.shape[1] for field in fields if (value := getattr(first, field)) is not None]
        if sizes and sizes[0]:
            found[key] = sizes[0]
    pushed = False
    if data.graphs.has("electric_field").any():
        inside = [g for g in data if g.electric_field is not None and bool(g.electric_field.any())]
        if inside:
            found["electric_field"] = True
        pushed = any(g.charge is not None and float(g.charge) for g in inside)
    for name in ("charge", "spin") if totals else ():
        values = [getattr(graph, name) for graph in data]
        if all(v is not None for v in values) and len({float(v) for v in values}) > 1:
            found[name] = True
    if pushed and all(g.charge is not None for g in data):
        found["charge"] = True
    return found
