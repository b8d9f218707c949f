"""Radial bases: what they promise of themselves."""

import math

import pytest
import torch

from molequi.nn.radial import BernsteinBasis, BesselBasis, StretchedBasis

SIZE, CUTOFF = 8, 4.0


def basis(kind):
    made = kind(SIZE, CUTOFF).double()
    exact = {BesselBasis: CUTOFF, StretchedBasis: math.log(6)}[kind]  # the buffer is rounded to float32
    assert torch.allclose(
        made.frequencies, torch.arange(1, SIZE + 1, dtype=torch.float64) * math.pi / exact, rtol=1e-6
    )
    made.frequencies = torch.arange(1, SIZE + 1, dtype=torch.float64) * math.pi / exact
    return made


@pytest.mark.parametrize("kind", [BesselBasis, StretchedBasis])
def test_functions_are_orthogonal_within_the_sphere(kind):
    r = torch.linspace(0, CUTOFF, 20_001, dtype=torch.float64)
    f = basis(kind)(r)
    products = torch.trapezoid(f[:, :, None] * f[:, None] * r[:, None, None] ** 2, r, dim=0)
    assert torch.allclose(products, products[0, 0] * torch.eye(SIZE, dtype=torch.float64), atol=1e-9)
    assert products[0, 0] > 0.1


@pytest.mark.parametrize("kind", [BesselBasis, StretchedBasis])
def test_values_and_two_derivatives_are_finite_at_zero_and_beyond_the_cutoff(kind):
    r = torch.tensor([0.0, 1e-12, 1e-3, 1.0, CUTOFF, 3 * CUTOFF], dtype=torch.float64, requires_grad=True)
    value = basis(kind)(r)
    (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), r)
    assert all(bool(torch.isfinite(x).all()) for x in (value, slope, bend))


def test_stretched_functions_do_not_ask_for_the_unit():
    r = torch.rand(20, dtype=torch.float64) * 4
    small, large = StretchedBasis(SIZE, 4.0).double(), StretchedBasis(SIZE, 40.0).double()
    assert torch.allclose(small(r), large(10 * r), rtol=1e-12)


def test_stretched_functions_change_faster_nearby_than_bessel_functions():
    """The first node of the highest function."""
    r = torch.linspace(1e-3, CUTOFF, 100_000, dtype=torch.float64)
    first = {
        kind: float(r[int((basis(kind)(r)[:, -1] < 0).nonzero()[0])])
        for kind in (BesselBasis, StretchedBasis)
    }
    assert first[BesselBasis] == pytest.approx(CUTOFF / SIZE, abs=1e-4)
    assert first[StretchedBasis] == pytest.approx(CUTOFF / 5 * (6 ** (1 / SIZE) - 1), abs=1e-4)


def test_bernstein_polynomials_of_an_exponential():
    """The distribution of the number of successes among n, whose sum, mean and variance are known."""
    r = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64, requires_grad=True)
    f, n, k = BernsteinBasis(SIZE, decay=0.9).double()(r), SIZE - 1, torch.arange(SIZE)
    x = torch.exp(-0.9 * r)
    mean = (f * k).sum(1)
    assert torch.allclose(f.sum(1), torch.ones(3, dtype=torch.float64)) and bool((f > 0).all())
    assert torch.allclose(mean, n * x)
    assert torch.allclose((f * k**2).sum(1) - mean**2, n * x * (1 - x))
    # float32 rounds nothing that a later float64 model needs
    assert torch.equal(BernsteinBasis(SIZE, decay=0.9).float().double()(r), f)


def test_bernstein_polynomials_are_finite_everywhere():
    r = torch.tensor([0.0, 1e-12, 30.0, 1e4], dtype=torch.float64, requires_grad=True)
    value = BernsteinBasis(SIZE, decay=0.9).double()(r)
    (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), r)
    assert all(bool(torch.isfinite(x).all()) for x in (value, slope, bend))
    assert float(value[0, -1].detach()) > 0.99 and float(value[3, 0].detach()) > 0.99
