"""Sums, means, maxima and softmax of segments against plain loops."""

import pytest
import torch

from molequi.ops.segment import segment_max, segment_mean, segment_softmax, segment_sum

INDEX = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3, 6])  # 1, 4, 5 and 7 are empty
SIZE = 8
FILLED = torch.tensor([0, 2, 3, 6])
SHAPES = [(), (1,), (5,), (3, 4)]
OPERATIONS = {"sum": segment_sum, "mean": segment_mean, "max": segment_max, "softmax": segment_softmax}


def values_of(shape=(), dtype=torch.float64):
    return torch.randn(len(INDEX), *shape, dtype=dtype, generator=torch.Generator().manual_seed(3))


def loop(name, values, index, size):
    """Segment by segment, as each function is described."""
    out = torch.empty_like(values) if name == "softmax" else values.new_empty(size, *values.shape[1:])
    for s in range(size):
        rows = values[index == s]
        if name == "softmax":
            out[index == s] = rows.softmax(0)
        elif name == "max":
            out[s] = rows.amax(0) if len(rows) else float("-inf")
        else:
            out[s] = rows.sum(0) / (max(len(rows), 1) if name == "mean" else 1)
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_a_loop_whatever_the_order_of_rows(name, shape):
    shuffled = INDEX[torch.randperm(len(INDEX), generator=torch.Generator().manual_seed(1))]
    for index in (INDEX, shuffled):
        values = values_of(shape)
        torch.testing.assert_close(
            OPERATIONS[name](values, index, SIZE), loop(name, values, index, SIZE), atol=1e-14, rtol=1e-14
        )


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_first_and_second_derivatives(name, shape):
    def squared(values):  # linear functions have no second derivative to test
        out = OPERATIONS[name](values, INDEX, SIZE)
        return (out[FILLED] if name == "max" else out).square()  # -inf has no finite differences

    values = values_of(shape).requires_grad_()
    assert torch.autograd.gradcheck(squared, (values,))
    assert torch.autograd.gradgradcheck(squared, (values,))


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_rows_and_no_segments(name):
    none, rows = values_of((2,))[:0], 0 if name == "softmax" else 3
    assert OPERATIONS[name](none, INDEX[:0], 3).shape == (rows, 2)
    assert OPERATIONS[name](none, INDEX[:0], 0).shape == (0, 2)


def test_largest_values_share_the_gradient_and_empty_segments_take_none():
    values = torch.tensor([1.0, 1.0, 0.0], requires_grad=True)
    largest = segment_max(values, torch.tensor([0, 0, 2]), 4)
    assert largest.tolist() == [1, float("-inf"), 0, float("-inf")]
    (slope,) = torch.autograd.grad(largest.sum(), values)
    assert slope.tolist() == [0.5, 0.5, 1]


@pytest.mark.parametrize("scale", [1e4, 1e300])
def test_softmax_of_huge_values_is_finite_with_its_derivatives(scale):
    values = torch.tensor([scale, -scale, -scale, scale], dtype=torch.float64, requires_grad=True)
    weights = segment_softmax(values, torch.tensor([0, 0, 1, 1]), 2)
    assert weights.tolist() == [1, 0, 0, 1]
    (slope,) = torch.autograd.grad(weights.square().sum(), values, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), values)
    assert torch.isfinite(slope).all() and torch.isfinite(second).all()


def test_softmax_does_not_mind_a_shift_and_adds_up_to_one():
    values, shift = values_of((2,)), torch.tensor([5.0, 0, -700, 300, 0, 0, 1e3, 0], dtype=torch.float64)
    weights = segment_softmax(values + shift[INDEX, None], INDEX, SIZE)
    torch.testing.assert_close(weights, segment_softmax(values, INDEX, SIZE), atol=1e-12, rtol=0)
    total = segment_sum(weights, INDEX, SIZE)
    torch.testing.assert_close(total[FILLED], torch.ones(len(FILLED), 2, dtype=torch.float64))
    assert total.sum() == pytest.approx(2 * len(FILLED))  # nothing in the empty ones


@pytest.fixture
def torch_scatter():
    return pytest.importorskip(
        "torch_scatter",
        reason="torch-scatter is an extra that is compiled: `make test-scatter` builds it and runs this",
    )


def derivatives(function, values):
    """The value, its derivative, and the derivative of that one's square, as in training on forces."""
    values = values.clone().requires_grad_()
    out = function(values)
    weights = torch.rand(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5))
    (first,) = torch.autograd.grad((weights * out.square()).sum(), values, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), values)
    return out.detach(), first.detach(), second


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_torch_scatter_with_both_derivatives(torch_scatter, name, shape, dtype, tolerance):
    """Of ties and of empty segments' maxima it thinks otherwise (all to one, and 0), so that there are none here."""
    theirs = {
        "sum": lambda v: torch_scatter.scatter(v, INDEX, 0, dim_size=SIZE, reduce="sum"),
        "mean": lambda v: torch_scatter.scatter(v, INDEX, 0, dim_size=SIZE, reduce="mean"),
        "max": lambda v: torch_scatter.scatter_max(v, INDEX, 0, dim_size=SIZE)[0][FILLED],
        "softmax": lambda v: torch_scatter.scatter_softmax(v, INDEX, 0, dim_size=SIZE),
    }[name]
    values = values_of(shape, dtype)
    ours = derivatives(
        lambda v: OPERATIONS[name](v, INDEX, SIZE)[FILLED if name == "max" else slice(None)], values
    )
    for mine, other in zip(ours, derivatives(theirs, values), strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance * float(other.abs().max()), rtol=0)
