import math

import pytest
import torch

from molequi.ops import irreps as ir
from molequi.ops import safe
from molequi.ops.products import TensorProduct
from molequi.ops.segment import segment_mean, segment_sum


def test_segment_sum_and_mean_know_empty_segments():
    values = torch.arange(6.0).reshape(3, 2)
    index = torch.tensor([0, 0, 3])
    assert segment_sum(values, index, 5).tolist() == [[2, 4], [0, 0], [0, 0], [4, 5], [0, 0]]
    assert segment_mean(values, index, 5).tolist() == [[1, 2], [0, 0], [0, 0], [4, 5], [0, 0]]
    assert segment_sum(values[:0], index[:0], 2).tolist() == [[0, 0], [0, 0]]


def test_norms_have_finite_derivatives_at_zero():
    x = torch.tensor([[0.0, 0, 0], [3.0, 4.0, 0]], dtype=torch.float64, requires_grad=True)
    unit, length = safe.unit(x)
    assert length.tolist() == [0, 5] and torch.allclose(unit, x.detach() / 5)
    (slope,) = torch.autograd.grad(length.sum() + unit.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), x)
    assert torch.isfinite(slope).all() and torch.isfinite(second).all()
    assert torch.autograd.gradcheck(lambda v: safe.norm(v), x[1:].detach().requires_grad_())
    assert not torch.isfinite(torch.autograd.grad(x[0].square().sum().sqrt(), x)[0]).all(), (
        "the control: sqrt alone is not finite"
    )


@pytest.mark.parametrize(
    "reflections, outputs", [(True, ["0e", "1o", "2e", "1e"]), (False, ["0e", "1o", "2e"])]
)
def test_tensor_product_equals_its_definition(reflections, outputs):
    """Against an explicit sum over paths with Clebsch-Gordan tensors."""
    torch.manual_seed(0)
    inputs, l_max, E, C = ["0e", "1o", "2e"], 2, 6, 3
    product = TensorProduct(inputs, outputs, l_max, reflections=reflections)
    x = torch.randn(E, 9, C, dtype=torch.float64)
    unit = torch.nn.functional.normalize(torch.randn(E, 3, dtype=torch.float64))
    harmonics = ir.spherical_harmonics(l_max, unit)
    weights = torch.randn(E, product.num_paths, C, dtype=torch.float64)
    starts = {"0e": 0, "1o": 1, "2e": 4}
    expected = dict.fromkeys(outputs, 0.0)
    for n, (i, l2, k) in enumerate(product.paths):
        l1, l3 = ir.parse(inputs[i])[0], ir.parse(outputs[k])[0]
        part = x[:, starts[inputs[i]] : starts[inputs[i]] + 2 * l1 + 1]
        count = sum(path[2] == k for path in product.paths)
        coupled = torch.einsum("ijk,eic,ej->ekc", ir.clebsch_gordan(l1, l2, l3), part, harmonics[l2])
        expected[outputs[k]] = (
            expected[outputs[k]] + math.sqrt((2 * l3 + 1) / count) * weights[:, n, None] * coupled
        )
    found = product(x, torch.cat(harmonics, 1), weights)
    assert torch.allclose(found, torch.cat([expected[o] for o in outputs], dim=1), atol=1e-12)


def test_tensor_product_keeps_variance():
    torch.manual_seed(0)
    product = TensorProduct(["0e", "1o", "2e"], ["0e", "1o", "2e"], 2, reflections=True)
    unit = torch.nn.functional.normalize(torch.randn(4000, 3, dtype=torch.float64))
    harmonics = torch.cat(ir.spherical_harmonics(2, unit), 1)
    out = product(
        torch.randn(4000, 9, 2, dtype=torch.float64), harmonics, torch.randn(4000, 11, 2, dtype=torch.float64)
    )
    for block in out.split([1, 3, 5], dim=1):
        assert 0.8 < float(block.square().mean()) < 1.25


def test_tensor_product_without_a_path_is_refused():
    with pytest.raises(ValueError, match="no path"):
        TensorProduct(["0e"], ["1e"], 2, reflections=True)


def test_what_is_not_a_number_is_not_hidden():
    vectors = torch.tensor([[float("nan"), 0.0, 0.0], [3.0, 4.0, 0.0]])
    assert bool(safe.norm(vectors).isnan()[0]) and float(safe.norm(vectors)[1]) == 5.0
    assert bool(safe.unit(vectors)[0][0].isnan().any())
