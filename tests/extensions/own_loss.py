"""A term of the loss of your own: the direction of the forces, whatever their size."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from molequi import Graph


def direction(predictions: Mapping[str, Tensor], graph: Graph) -> Tensor:
    """(G,) mean over the atoms of each structure of 1 - cos of the angle between predicted and known force."""
    error = 1 - cosine_similarity(predictions["forces"].double(), graph.targets["forces"], dim=1)  # (N,)
    return torch.zeros_like(graph.counts, dtype=error.dtype).index_add(0, graph.batch, error) / graph.counts
