"""Sums over an index: edges into nodes, nodes into graphs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def segment_sum(values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int) -> Float[Tensor, "size ..."]:
    """Row s of the result is the sum of the rows of `values` whose `index` is s; zero where there is none.

    Native `index_add` on sorted indices equals torch-scatter's `scatter` on CPU and beats its `segment_csr`.
    """
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


def segment_mean(values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int) -> Float[Tensor, "size ..."]:
    """Mean over the rows of each segment; zero for an empty one."""
    counts = values.new_zeros(size).index_add(0, index, values.new_ones(len(index))).clamp(min=1)
    return segment_sum(values, index, size) / counts.reshape(-1, *[1] * (values.ndim - 1))


def segment_max(values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int) -> Float[Tensor, "size ..."]:
    """Largest value of each segment; -inf for an empty one."""
    start = values.new_full((size, *values.shape[1:]), float("-inf"))
    return start.scatter_reduce(0, index.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values), values, "amax")


def segment_softmax(values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int) -> Float[Tensor, "E ..."]:
    """exp(v) over its sum within each segment: positive weights that add up to one."""
    largest = segment_max(values.detach(), index, size)      # shifts cancel, gradients too
    weights = torch.exp(values - largest.index_select(0, index))
    return weights / segment_sum(weights, index, size).index_select(0, index)      # its derivative is faster than that of [index]
