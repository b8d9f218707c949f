"""Normalization and nonlinear functions on the sphere: equivariance, known products, and what is only approximate."""

import pytest
import torch

from molequi.nn import IrrepsNorm, SphereActivation, SphereProduct
from molequi.nn.norms import LayerNorm
from molequi.ops import irreps as ir
from molequi.symmetry import random_orthogonal
from molequi.symmetry.groups import Group


def components(l_max: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, (l_max + 1) ** 2, 4, dtype=torch.float64, generator=generator)


def wigner(l_max: int, g: torch.Tensor) -> torch.Tensor:
    return torch.block_diag(*[ir.wigner(ir.natural(l), g) for l in range(l_max + 1)])


def error(function, l_max: int, g: torch.Tensor) -> float:
    """Relative error of equivariance, root mean square."""
    x, d = components(l_max), wigner(l_max, g)
    with torch.no_grad():
        wanted = d @ function(x)
        return float((function(d @ x) - wanted).norm() / wanted.norm())


def turns(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [random_orthogonal(3, proper=k % 2 == 0, generator=generator) for k in range(count)]


@pytest.mark.parametrize("l_max", [0, 1, 4])
def test_norm_is_equivariant_and_normalizes(l_max):
    norm = IrrepsNorm(l_max, 4).double()
    if l_max:
        torch.nn.init.normal_(norm.weight)
        assert max(error(norm, l_max, g) for g in turns()) < 1e-14
        torch.nn.init.ones_(norm.weight)
    big = norm(1e3 * components(l_max)).detach()
    assert torch.allclose(big[:, 0].square().mean(1), torch.ones(6).double(), atol=1e-6)
    parts = big.split([2 * l + 1 for l in range(l_max + 1)], dim=1)[1:]
    if l_max:
        mean = sum(part.square().mean((1, 2)) for part in parts) / l_max
        assert torch.allclose(mean, torch.ones(6).double(), atol=1e-6)


def test_norm_is_smooth_at_zero():
    norm = IrrepsNorm(2, 4).double()
    x = components(2)
    x[:, 1:] = 0
    x.requires_grad_()
    (first,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert first.isfinite().all() and second.isfinite().all()
    assert torch.autograd.gradgradcheck(lambda x: norm(x).square().sum(), x, fast_mode=True)


@pytest.mark.parametrize("l_max", [1, 3])
def test_product_is_that_of_gaunt(l_max):
    """Against couplings by Clebsch-Gordan tensors, each times its value at the pole."""
    product = SphereProduct(l_max)
    f, g = components(l_max), components(l_max, 1)
    found = product(f, g) * (l_max + 1)  # as the mean of f g Y over the sphere
    pole = ir.spherical_harmonics(l_max, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64))
    wanted = torch.zeros_like(found)
    for a in range(l_max + 1):
        for b in range(l_max + 1):
            for c in range(abs(a - b), min(a + b, l_max) + 1):
                coupling = ir.clebsch_gordan(a, b, c)
                # Y_a ⊗ Y_b · C = k Y_c, and Y_a ⊗ Y_b = Σ_c (2 c + 1) C (Y_a ⊗ Y_b · C)
                made = torch.einsum("ijk,i,j->k", coupling, pole[a][0], pole[b][0])
                k = float(made @ pole[c][0] / (pole[c][0] @ pole[c][0]))
                rows = [slice(l * l, (l + 1) ** 2) for l in (a, b, c)]
                wanted[:, rows[2]] += (
                    (2 * c + 1) * k * torch.einsum("ijk,nic,njc->nkc", coupling, f[:, rows[0]], g[:, rows[1]])
                )
    assert torch.allclose(found, wanted, atol=1e-12)
    assert max(error(lambda x: product(x, x), l_max, g) for g in turns()) < 1e-14


def test_activation_on_the_sphere_is_exact_for_the_octahedron_alone():
    """The error for other rotations falls with the degree of the quadrature as docs say."""
    coarse, fine, exact = (SphereActivation(2, degree) for degree in (8, 16, 40))
    octahedral = Group(name="Oh").elements
    assert max(error(coarse, 2, g) for g in octahedral[::7]) < 1e-13
    errors = [max(error(f, 2, g) for g in turns()) for f in (coarse, fine, exact)]
    assert 1e-3 < errors[0] < 3e-2 and 1e-5 < errors[1] < 3e-4 and errors[2] < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_norm_keeps_half_precision(dtype):
    """Computed in float32 and then rounded, as torch does."""
    x = torch.randn(5, 4).to(dtype)
    found = LayerNorm(4).to(dtype)(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.nn.LayerNorm(4).to(dtype)(x))
    for option in ("bias", "elementwise_affine"):  # of torch's own, which this one does not have
        with pytest.raises(TypeError, match=option):
            LayerNorm(4, **{option: False})
