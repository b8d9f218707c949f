"""Sums over an index: edges into nodes, nodes into graphs. Plain torch, whatever is installed.

torch-scatter is not called, because it was faster at nothing that molequi does. Its time over that of the functions here, the median over 500 and
5,000 sorted rows of 1, 64, 192 and 576 numbers (softmax: 1 and 8) in float32 and float64, on one CPU thread, torch 2.13, torch-scatter 2.1.2:

                              value   with gradient   with the gradient of the gradient
    sum, scatter               1.24            1.25   1.15     which is torch's own `scatter_add_`
    sum, segment_csr           2.05            1.39   has none; 1.65 with derivatives written around it
    softmax, scatter_softmax   1.78            1.85   1.58
    max, segment_csr           3.54            0.78   0.58     molequi takes no derivative of a maximum

Shapes at which the same function, timed twice, differed by more than a tenth are left out: the machine was busy, and there remained for sums 13, 13
and 8 of 16, for softmax 8, 6 and 2 of 8, for maxima 10, 6 and 10 of 16. `segment_csr` is handed its row pointers for nothing; the one
value it then gave sooner than here, the mean of single numbers (0.6), is lost again by making them. Two threads, larger inputs and GPUs are not
in the table. The extra `scatter` installs torch-scatter to be compared with: tests/ops/test_segment.py ties values and both derivatives to it,
and tests/benchmarks/bench_segment.py measures the table.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def segment_sum(
    values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int
) -> Float[Tensor, "size ..."]:
    """Row s of the result is the sum of the rows of `values` whose `index` is s; zero where there is none."""
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


def segment_mean(
    values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int
) -> Float[Tensor, "size ..."]:
    """Mean over the rows of each segment; zero for an empty one."""
    counts = values.new_zeros(size).index_add(0, index, values.new_ones(index.shape[0])).clamp(min=1)
    return segment_sum(values, index, size) / counts.reshape(-1, *[1] * (values.ndim - 1))


def segment_max(
    values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int
) -> Float[Tensor, "size ..."]:
    """Largest value of each segment; -inf for an empty one. Equal largest values share its derivative."""
    start = values.new_full((size, *values.shape[1:]), float("-inf"))
    return start.scatter_reduce(
        0, index.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values), values, "amax"
    )


def segment_softmax(
    values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int
) -> Float[Tensor, "E ..."]:
    """exp(v) over its sum within each segment: positive weights that add up to one. Finite for any finite values."""
    largest = segment_max(values.detach(), index, size)  # shifts cancel, gradients too
    weights = torch.exp(values - largest.index_select(0, index))
    return weights / segment_sum(weights, index, size).index_select(
        0, index
    )  # its derivative is faster than that of [index]
