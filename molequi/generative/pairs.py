"""Edges between all atoms of small structures, without a search."""

import math

import torch

from molequi.graph import Graph
from molequi.model import Model
from molequi.neighbors import connect, on_edges

LARGE = 64  # atoms from which a search within the cutoff is worthwhile


def connected(graph: Graph, model: Model) -> Graph:
    """A batch with the edges that a model needs.

    Small structures get edges between all of their atoms; those beyond the cutoff add exactly zero.

    Parameters
    ----------
    graph : Graph
        Structures with or without edges.
    model : Model
        The model.
    """
    few = graph.pair_index is not None or int(graph.counts.max()) <= LARGE
    small = model.cutoff is None or (model.backbone.smooth_cutoff and few)
    if model.k is not None or graph.pbc is not None or not small:
        return connect(graph, model.cutoff, model.k)
    counts = graph.counts
    first = counts.cumsum(0) - counts
    degree = (counts - 1)[graph.batch]
    node = torch.arange(graph.num_nodes, device=counts.device)
    receiver = node.repeat_interleave(degree)
    start = degree.cumsum(0) - degree
    place = torch.arange(len(receiver), device=counts.device) - start[receiver]
    sender = first[graph.batch][receiver] + place
    sender = sender + (sender >= receiver)  # its own place is left out
    index = torch.stack([sender, receiver])
    graph = graph.without("edge")
    return graph.replace(edge_index=index, edge_attr=on_edges(graph, index), cutoff=math.inf)
