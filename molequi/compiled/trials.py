"""Structures and weights on which a new function is tried."""

from itertools import count

import torch
from torch import Tensor

from molequi.compiled.inputs import state_of
from molequi.graph import FIELDS, Graph, collate
from molequi.model import Model
from molequi.neighbors import connect
from molequi.regular_graphs import regular


@torch.no_grad()
def change_weights(model: Model) -> None:
    """Change all weights so that none of them is zero.

    Zeros at initialization hide errors that appear in training.

    Parameters
    ----------
    model : Model
        It is changed in place.
    """
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
            value.add_(0.1 * (value.square().mean().sqrt() + 0.1) * noise)


def with_cluster(model: Model, graph: Graph, nodes: int) -> Graph:
    """The structures, and beside them a cluster of some of their nodes.

    The structures may have no neighbors, or a symmetry by which values are zero. Zeros hide errors, or show
    those of round-off. The cluster has neighbors and no symmetry.

    Parameters
    ----------
    model : Model
        The model that is compiled.
    graph : Graph
        Connected structures.
    nodes : int
        Number of nodes of the cluster.

    Returns
    -------
    Graph
        A connected batch; the cluster is its last graph.
    """
    generator = torch.Generator().manual_seed(0)
    length = graph.edge_vectors().detach().norm(dim=1).cpu()
    length = length[length > 1e-3]
    spacing = min(
        1.3 * float(length.min()) if len(length) else 1.5,
        0.7 * model.cutoff if model.cutoff else float("inf"),
    )
    pos = _random_positions(nodes, graph.dim, spacing, generator)
    rows = torch.randint(graph.num_nodes, (nodes,), generator=generator)
    given = {
        name: value.cpu()[rows if FIELDS[name].per == "node" else slice(1)]
        for name, value in graph.values("node", "graph").items()
        if FIELDS[name].default is None
    }
    cluster = Graph(
        pos=pos.to(graph.pos.dtype),
        z=given.pop("z"),
        batch=torch.zeros(nodes, dtype=torch.int64),
        num_graphs=1,
    ).replace(**{name: value for name, value in given.items() if name != "pos"})
    cluster = connect(cluster, model.cutoff, model.k).replace(k=graph.k, cutoff=graph.cutoff)
    if graph.edge_attr is not None and cluster.edge_index is not None:
        known, edges = graph.edge_attr.detach().cpu(), cluster.edge_index.shape[1]
        known = known if len(known) else known.new_zeros(1, known.shape[1])
        cluster = cluster.replace(edge_attr=known[torch.randint(len(known), (edges,), generator=generator)])
    if graph.cell is not None:
        cell = 3 * spacing * torch.eye(graph.dim, dtype=graph.cell.dtype)
        cluster = cluster.replace(cell=cell[None], pbc=torch.zeros(1, graph.dim, dtype=torch.bool))
    return collate([graph.without("pair").replace(targets={}), cluster.to(graph.pos.device)])


def _random_positions(nodes: int, dim: int, spacing: float, generator: torch.Generator) -> Tensor:
    """Positions (nodes, dim), each about `spacing` from an earlier one and not much closer to any."""
    pos = [torch.zeros(dim, dtype=torch.float64)]
    while len(pos) < nodes:
        step = torch.randn(dim, generator=generator, dtype=torch.float64)
        step *= spacing * (1 + 0.3 * torch.rand((), generator=generator)) / step.norm()
        new = pos[int(torch.randint(len(pos), (), generator=generator))] + step
        if min(float((new - p).norm()) for p in pos) > 0.9 * spacing:
            pos.append(new)
    return torch.stack(pos)


def with_distinct_sizes(model: Model, graph: Graph, degree: int) -> Graph:
    """The graph as a regular one, padded to sizes that all differ, also from the sizes of the weights.

    A tracer takes equal sizes for the same size.

    Parameters
    ----------
    model : Model
        The model that is compiled.
    graph : Graph
        Connected structures.
    degree : int
        Number of edges of each node.

    Returns
    -------
    Graph
        The regular graph.
    """
    taken = {size for value in state_of(model).tensors for size in value.shape} | {*range(10), degree}
    nodes = next(n for n in count(1) if graph.num_nodes + n not in taken)
    graphs = next(
        n for n in count(1) if graph.num_graphs + nodes + n not in taken | {graph.num_nodes + nodes}
    )
    return regular(graph, nodes=nodes, graphs=graphs, degree=degree)
