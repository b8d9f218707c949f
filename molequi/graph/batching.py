"""Batches of graphs: `collate` joins them, `separate` takes them apart."""

from collections.abc import Sequence

import torch
from torch import Tensor

from molequi.errors import DataError
from molequi.graph.fields import FIELDS, Field, Per, fields_per
from molequi.graph.graph import Graph


def collate(graphs: Sequence[Graph]) -> Graph:
    """One batch of several graphs.

    Targets are concatenated; every graph must have the same names (NaN where a value is unknown). Cells and
    shifts of structures that are not periodic become zero where others of the batch are periodic. Of any
    other field, all graphs have it or none.

    Parameters
    ----------
    graphs : sequence of Graph
        At least one; single structures or batches.

    Returns
    -------
    Graph
        The graphs one after another. A single graph is returned as it is.

    Raises
    ------
    DataError
        If the graphs do not fit together.

    Examples
    --------
    >>> a, b = Graph.single([[0, 0, 0]], ["H"]), Graph.single([[0, 0, 0], [0.7, 0, 0]], ["H", "H"])
    >>> collate([a, b]).batch.tolist()
    [0, 1, 1]
    """
    if isinstance(graphs, Graph) or not isinstance(graphs, Sequence):
        raise DataError(f"found {type(graphs).__name__}; wanted a list of Graphs")
    if not graphs:
        raise DataError("nothing to batch: the list of graphs is empty")
    first = graphs[0]
    for k, g in enumerate(graphs):
        _check_fits(g, first, k)
    if len(graphs) == 1:
        return first
    nodes = torch.tensor([g.num_nodes for g in graphs])
    offsets = (nodes.cumsum(0) - nodes).tolist()
    steps = torch.tensor([g.num_graphs for g in graphs])
    graph_offsets = (steps.cumsum(0) - steps).tolist()
    joined = {}
    for name, spec in FIELDS.items():
        if any(getattr(g, name) is not None for g in graphs):
            like = next(value for g in graphs if (value := getattr(g, name)) is not None)
            joined[name] = torch.cat([_filled(g, name, spec, like) for g in graphs])
    for name in ("edge_index", "pair_index"):
        if getattr(first, name) is not None:
            joined[name] = torch.cat([getattr(g, name) + o for g, o in zip(graphs, offsets)], dim=1)
    cutoffs = [g.cutoff for g in graphs]
    return Graph(
        pos=joined.pop("pos"),
        z=joined.pop("z"),
        batch=torch.cat([g.batch + o for g, o in zip(graphs, graph_offsets)]),
        num_graphs=sum(steps.tolist()),
        cutoff=None if None in cutoffs else min(c for c in cutoffs if c is not None),
        k=first.k,
        targets={name: torch.cat([g.targets[name] for g in graphs]) for name in first.targets},
    ).replace(**joined)


def _check_fits(graph: Graph, first: Graph, k: int) -> None:
    """Raises DataError if graph number k cannot be in one batch with the first."""
    if graph.dim != first.dim:
        raise DataError(f"graph {k} has {graph.dim} dimensions, graph 0 has {first.dim}")
    if (graph.edge_index is None) != (first.edge_index is None):
        raise DataError(f"graph {k} and graph 0: one is connected and the other is not")
    if graph.k != first.k:
        raise DataError(
            f"graph {k} is connected with k={graph.k} and graph 0 with k={first.k}; connect both in the "
            "same way"
        )
    if set(graph.targets) != set(first.targets):
        raise DataError(
            f"graph {k} has the targets {sorted(graph.targets)}, graph 0 has {sorted(first.targets)}"
        )
    name = mismatch(graph, first)
    if name is not None:
        raise DataError(f"graph {k} and graph 0: one has {name!r} and the other has not")


def mismatch(graph: Graph, other: Graph, *per: Per) -> str | None:
    """Name of a field that one of two graphs has and the other lacks, of those that all graphs of a batch
    must share.
    """
    for name, spec in (fields_per(*per) if per else FIELDS).items():
        if spec.default is None and (getattr(graph, name) is None) != (getattr(other, name) is None):
            return name
    return None


def _filled(graph: Graph, name: str, spec: Field, like: Tensor) -> Tensor:
    """The field of a graph, or the default value of one that lacks it, with the columns of another graph."""
    value: Tensor | None = getattr(graph, name)
    if value is not None:
        return value
    rows = {"graph": graph.num_graphs, "node": graph.num_nodes}
    if graph.edge_index is not None:
        rows["edge"] = graph.edge_index.shape[1]
    default = 0.0 if spec.default is None else spec.default  # never None, see mismatch
    return torch.full((rows[spec.per], *like.shape[1:]), default, dtype=like.dtype, device=graph.pos.device)


def separate(graph: Graph) -> list[Graph]:
    """The structures of a batch, each a batch of one.

    It undoes `collate`, except that what `collate` filled in stays: a structure without periodicity that
    was among periodic ones has a cell of zeros.

    Parameters
    ----------
    graph : Graph
        Any batch that is not regular. A target with as many rows as there are nodes has one row per node.

    Returns
    -------
    list of Graph
        One for each graph of the batch.

    Raises
    ------
    DataError
        For a target with neither a row per node nor a row per graph.
    """
    for name, value in graph.targets.items():
        if len(value) not in (graph.num_nodes, graph.num_graphs):
            raise DataError(
                f"the target {name!r} has {len(value)} rows; wanted {graph.num_nodes}, one per node, or "
                f"{graph.num_graphs}, one per graph"
            )
    per_node = {name for name, value in graph.targets.items() if len(value) == graph.num_nodes}
    out = []
    ends = graph.counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    owners = {
        kind: None if index is None else graph.batch[index[1]]
        for kind, index in (("edge", graph.edge_index), ("pair", graph.pair_index))
    }
    given = graph.values()
    for k, (a, b) in enumerate(zip(starts, ends)):
        rows: dict[str, slice | Tensor] = {"node": slice(a, b), "graph": slice(k, k + 1)}
        rows |= {kind: owner == k for kind, owner in owners.items() if owner is not None}
        part = {name: value[rows[FIELDS[name].per]] for name, value in given.items()}
        if graph.edge_index is not None:
            part["edge_index"] = graph.edge_index[:, rows["edge"]] - a
        if graph.pair_index is not None:
            part["pair_index"] = graph.pair_index[:, rows["pair"]] - a
        single = Graph(
            pos=part.pop("pos"),
            z=part.pop("z"),
            batch=torch.zeros(b - a, dtype=torch.int64, device=graph.z.device),
            num_graphs=1,
            cutoff=graph.cutoff,
            k=graph.k,
            targets={n: t[a:b] if n in per_node else t[k : k + 1] for n, t in graph.targets.items()},
        )
        out.append(single.replace(**part))
    return out
