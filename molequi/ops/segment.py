"""Sums over an index: from edges to nodes, from nodes to graphs. These are plain torch, whatever is
installed.

torch-scatter is not called, since it is not faster at anything that molequi does. The table has its time
divided by that of the functions here, on one CPU thread with torch 2.13 and torch-scatter 2.1.2. It is the
median over 500 and 5,000 sorted rows of 1, 64, 192 and 576 numbers (softmax: 1 and 8) in float32 and float64.

                              value   with gradient   with the gradient of the gradient
    sum, scatter               1.24            1.25   1.15     which is torch's own `scatter_add_`
    sum, segment_csr           2.05            1.39   has none; 1.65 with derivatives written around it
    softmax, scatter_softmax   1.78            1.85   1.58
    max, segment_csr           3.54            0.78   0.58     molequi takes no derivative of a maximum

A shape is left out if two timings of the same function differed by more than a tenth, since the machine was
busy. What remains for sums are 13, 13 and 8 of 16 shapes, for softmax 8, 6 and 2 of 8, for maxima 10, 6 and
10 of 16. The time to make the row pointers of `segment_csr` is not counted. Without it the mean of single
numbers is faster there (0.6), with it slower. Two threads, larger inputs and GPUs are not in the table.

The extra ``scatter`` installs torch-scatter for comparison: tests/ops/test_segment.py compares values and
both derivatives, and tests/benchmarks/bench_segment.py measures the table.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def segment_sum(
    values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int
) -> Float[Tensor, "size ..."]:
    """Sum over each segment: row s of the result is the sum of the rows of `values` whose `index` is s.

    Parameters
    ----------
    values : Tensor, shape (E, ...)
        Rows.
    index : Tensor, shape (E,)
        Segment of each row.
    size : int
        Number of segments.

    Returns
    -------
    Tensor, shape (size, ...)
        Sums; zero for an empty segment.

    Examples
    --------
    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [3.0, 0.0, 4.0]
    """
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


def segment_mean(
    values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int
) -> Float[Tensor, "size ..."]:
    """Mean over each segment.

    Parameters
    ----------
    values : Tensor, shape (E, ...)
        Rows.
    index : Tensor, shape (E,)
        Segment of each row.
    size : int
        Number of segments.

    Returns
    -------
    Tensor, shape (size, ...)
        Means; zero for an empty segment.

    Examples
    --------
    >>> segment_mean(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [1.5, 0.0, 4.0]
    """
    counts = values.new_zeros(size).index_add(0, index, values.new_ones(index.shape[0])).clamp(min=1)
    return segment_sum(values, index, size) / counts.reshape(-1, *[1] * (values.ndim - 1))


def segment_max(
    values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int
) -> Float[Tensor, "size ..."]:
    """Largest value of each segment. If several values are the largest one, they share its derivative.

    Parameters
    ----------
    values : Tensor, shape (E, ...)
        Rows.
    index : Tensor, shape (E,)
        Segment of each row.
    size : int
        Number of segments.

    Returns
    -------
    Tensor, shape (size, ...)
        Maxima; -inf for an empty segment.

    Examples
    --------
    >>> segment_max(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [2.0, -inf, 4.0]
    """
    start = values.new_full((size, *values.shape[1:]), float("-inf"))
    return start.scatter_reduce(
        0, index.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values), values, "amax"
    )


def segment_softmax(
    values: Float[Tensor, "E ..."], index: Int[Tensor, "E"], size: int
) -> Float[Tensor, "E ..."]:
    """Softmax within each segment: exp(v) divided by its sum. The result is finite for all finite values.

    Parameters
    ----------
    values : Tensor, shape (E, ...)
        Rows.
    index : Tensor, shape (E,)
        Segment of each row.
    size : int
        Number of segments.

    Returns
    -------
    Tensor, shape (E, ...)
        Positive weights that add up to one in each segment.

    Examples
    --------
    >>> segment_softmax(torch.tensor([1.0, 1.0, 4.0]), torch.tensor([0, 0, 2]), 3).tolist()
    [0.5, 0.5, 1.0]
    """
    largest = segment_max(values.detach(), index, size)  # a shift changes neither values nor gradients
    weights = torch.exp(values - largest.index_select(0, index))
    total = segment_sum(weights, index, size)
    return weights / total.index_select(
        0, index
    )  # the derivative of index_select is faster than that of [index]
