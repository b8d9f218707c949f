"""What the structures of a Dataset must have in common, and what their labels must look like."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molequi.errors import DataError, did_you_mean
from molequi.graph import FIELDS, Graph, fields_per, mismatch
from molequi.quantities import KNOWN, Quantity


def single_graphs(graphs: Any) -> tuple[Graph, ...]:
    """Structures as a tuple.

    Parameters
    ----------
    graphs : iterable of Graph
        What the caller gave.

    Raises
    ------
    DataError
        If there are none, or something else than structures.
    """
    if isinstance(graphs, Graph) or not isinstance(graphs, Iterable):
        raise DataError(f"found {type(graphs).__name__}; wanted a list of Graphs, such as Dataset([graph])")
    found = tuple(graphs)
    for k, graph in enumerate(found):
        if not isinstance(graph, Graph):
            raise DataError(f"structure {k} is {type(graph).__name__}; wanted a Graph, see mq.Graph.single")
    if not found:
        raise DataError("a Dataset without structures; wanted at least one")
    return found


def target_quantities(first: Graph, given: Mapping[str, Quantity] | None) -> dict[str, Quantity]:
    """The declaration of each target of the first structure.

    Parameters
    ----------
    first : Graph
        The first structure.
    given : mapping of str to Quantity, optional
        Declarations beside the known ones.

    Raises
    ------
    DataError
        For a target without a declaration, and for a declaration under another name.
    """
    if given is not None and not isinstance(given, Mapping):
        raise DataError(f"quantities: found {type(given).__name__}; wanted {{name: Quantity(name)}}")
    for name, q in (given or {}).items():
        if not isinstance(q, Quantity) or q.name != name:
            raise DataError(f"quantities[{name!r}]: found {q!r}; wanted Quantity({name!r}, …)")
    known = dict(KNOWN) | dict(given or {})
    for name in first.targets:
        if name not in known:
            raise DataError(
                f"targets named {name!r}: not a known quantity{did_you_mean(name, known)} "
                "Give quantities={name: Quantity(name=...)}"
            )
    return {name: known[name] for name in first.targets}


def check_alike(graphs: Sequence[Graph], origins: Sequence[str]) -> None:
    """Check that all are single structures with the same dimensions, targets, fields and columns.

    Parameters
    ----------
    graphs : sequence of Graph
        The structures.
    origins : sequence of str
        Where each came from.

    Raises
    ------
    DataError
        For the first structure that differs.
    """
    first, start = graphs[0], origins[0]
    names = tuple(first.targets)
    fields = fields_per("node", "graph", "pair").items()
    several = [name for name, spec in fields if spec.channels and spec.default is None]
    for graph, origin in zip(graphs, origins):
        if graph.num_graphs != 1:
            found = f"{origin}: a batch of {graph.num_graphs} structures"
            raise DataError(f"{found}; a Dataset takes single ones (molequi.graph.separate)")
        if tuple(graph.targets) != names:
            raise DataError(f"{origin} has the targets {sorted(graph.targets)}, {start} has {sorted(names)}")
        lacking = mismatch(graph, first, "node", "graph", "pair")
        if lacking is not None:
            raise DataError(
                f"{origin} and {start}: one has {lacking!r} and the other has not; wanted all or none"
            )
        _check_values(graph, origin)
        if graph.dim != first.dim:
            raise DataError(f"{origin}: {graph.dim} dimensions, and {start} has {first.dim}; wanted the same")
        for name in several:
            one, other = getattr(graph, name), getattr(first, name)
            if one is not None and other is not None and one.shape[1] != other.shape[1]:
                raise DataError(
                    f"{origin}: {one.shape[1]} columns of {name}, and {start} has {other.shape[1]}"
                )


def _check_values(graph: Graph, origin: str) -> None:
    """Raise DataError for a field that is no tensor of its type and shape."""
    pos = graph.pos
    if not isinstance(pos, Tensor) or pos.ndim != 2:
        raise DataError(f"{origin}: pos is {_described(pos)}; wanted a tensor of shape (N, D)")
    rows = {"node": len(pos), "graph": 1}
    for name, value in graph.values("node", "graph").items():
        spec = FIELDS[name]
        wanted = (rows[spec.per], *spec.shape(graph.dim))
        if (
            not isinstance(value, Tensor)
            or value.is_floating_point() != spec.dtype.is_floating_point
            or value.ndim != len(wanted)
            or any(w not in (None, size) for w, size in zip(wanted, value.shape))
        ):
            text = ", ".join("any" if w is None else str(w) for w in wanted)
            raise DataError(
                f"{origin}: {name} is {_described(value)}; wanted a tensor of shape ({text}) and "
                f"{spec.dtype}; mq.Graph.single takes plain values"
            )


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return f"{str(value)[:40]} ({type(value).__name__})"


def checked_labels(graph: Graph, quantities: Mapping[str, Quantity], origin: str) -> Graph:
    """A structure whose labels are float64 tensors of the shapes of their quantities.

    A plain number, an array and another type of number are converted. The axis of structures may be missing.

    Parameters
    ----------
    graph : Graph
        A single structure with labels.
    quantities : mapping of str to Quantity
        What the labels are.
    origin : str
        Where the structure came from.

    Raises
    ------
    DataError
        For a label of another shape, one that is not finite (NaN stands for an unknown label), and a number
        that is no class.
    """
    changed = {}
    for name, q in quantities.items():
        given = graph.targets[name]
        shape = () if q.classes else q.shape(graph.dim)
        wanted = (graph.num_nodes if q.per == "node" else 1, *shape)
        label = given
        if not isinstance(label, Tensor) or label.dtype != torch.float64:
            label = _as_numbers(given, f"{origin}: the label {name!r}")
        if tuple(label.shape) != wanted:
            if q.per == "node" or tuple(label.shape) != shape:
                raise DataError(
                    f"{origin}: the label {name!r} has the shape {tuple(label.shape)}; wanted {wanted}"
                )
            label = label[None]
        if bool(torch.isinf(label).any()):
            raise DataError(f"{origin}: the label {name!r} is infinite; wanted numbers, NaN where unknown")
        if q.classes:
            _check_classes(label, q, origin)
        if label is not given:
            changed[name] = label
    return graph.replace(targets={**graph.targets, **changed}) if changed else graph


def _as_numbers(value: object, where: str) -> Tensor:
    try:
        array = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        if array.is_complex():
            raise TypeError("complex numbers")
        return array.to(torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} is {_described(value)}; wanted numbers") from error


def _check_classes(label: Tensor, q: Quantity, origin: str) -> None:
    """Labels of classes are their numbers."""
    label = label[~torch.isnan(label)]
    bad = label[(label < 0) | (label >= len(q.classes)) | (label != label.round())]
    if len(bad):
        raise DataError(
            f"{origin}: the class of {q.name} is {float(bad[0]):g}; wanted a whole number from 0 "
            f"({q.classes[0]}) to {len(q.classes) - 1} ({q.classes[-1]}), or NaN where it is not known"
        )
