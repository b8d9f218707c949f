"""Coupling tensors, harmonics and Wigner matrices against e3nn and sympy-free closed forms."""

import math

import pytest
import torch
from e3nn import o3

from molequi.ops import irreps as ir
from molequi.symmetry import random_orthogonal

UNIT = torch.nn.functional.normalize(
    torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
)


def test_harmonics_equal_e3nn():
    for l, ours in enumerate(ir.spherical_harmonics(8, UNIT)):
        theirs = o3.spherical_harmonics(l, UNIT, normalize=False, normalization="component")
        assert torch.allclose(ours, theirs, atol=1e-13, rtol=0), l


def test_harmonics_of_degree_two_in_closed_form():
    x, y, z = UNIT.T
    closed = math.sqrt(15) * torch.stack(
        [x * z, x * y, (2 * y * y - x * x - z * z) / math.sqrt(12), y * z, (z * z - x * x) / 2], 1
    )
    assert torch.allclose(ir.spherical_harmonics(2, UNIT)[2], closed, atol=1e-13, rtol=0)


def test_harmonics_of_a_zero_vector_are_finite_with_their_derivatives():
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    total = torch.cat(ir.spherical_harmonics(4, zero), dim=1).sum()
    (slope,) = torch.autograd.grad(total, zero, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), zero)
    assert torch.isfinite(slope).all() and torch.isfinite(second).all() and float(total.detach()) == 1.0


@pytest.mark.parametrize("proper", [True, False])
@pytest.mark.parametrize("l", range(9))
def test_wigner_turns_harmonics(l, proper):
    R = random_orthogonal(3, proper=proper, generator=torch.Generator().manual_seed(l))
    D = ir.wigner(ir.name(l, (-1) ** l), R)
    turned = ir.spherical_harmonics(l, UNIT @ R.T)[l]
    assert torch.allclose(ir.spherical_harmonics(l, UNIT)[l] @ D.T, turned, atol=1e-12, rtol=0)
    assert torch.allclose(D @ D.T, torch.eye(2 * l + 1, dtype=torch.float64), atol=1e-12)


def test_wigner_is_a_homomorphism_and_knows_parity():
    generator = torch.Generator().manual_seed(1)
    a, b = (random_orthogonal(3, generator=generator) for _ in range(2))
    for irrep in ("0o", "1e", "1o", "2e", "3o", "4e"):
        assert torch.allclose(ir.wigner(irrep, a) @ ir.wigner(irrep, b), ir.wigner(irrep, a @ b), atol=1e-12)
    inversion = -torch.eye(3, dtype=torch.float64)
    assert ir.wigner("1e", inversion)[0, 0] == 1 and ir.wigner("0o", inversion)[0, 0] == -1


def test_clebsch_gordan_known_couplings():
    """1 x 1 -> 0 is the dot product and 1 x 1 -> 1 the cross product, up to sign."""
    a, b = UNIT[:20], UNIT[20:]
    dot = torch.einsum("ijk,ni,nj->nk", ir.clebsch_gordan(1, 1, 0), a, b)[:, 0] * math.sqrt(3)
    cross = torch.einsum("ijk,ni,nj->nk", ir.clebsch_gordan(1, 1, 1), a, b) * math.sqrt(6)
    assert torch.allclose(dot.abs(), (a * b).sum(1).abs())
    expected = torch.linalg.cross(a, b)
    assert torch.allclose(cross * torch.sign((cross * expected).sum()), expected)


def test_symmetric_basis_is_orthonormal_and_turns():
    basis = ir.symmetric_basis()
    assert torch.allclose(
        torch.einsum("aij,bij->ab", basis, basis), torch.eye(6, dtype=torch.float64), atol=1e-14
    )
    R = random_orthogonal(3, generator=torch.Generator().manual_seed(3))
    D = ir.wigner("2e", R)
    turned = torch.einsum("ik,akl,jl->aij", R, basis[1:], R)
    assert torch.allclose(turned, torch.einsum("ba,bij->aij", D, basis[1:]), atol=1e-12)


def test_couplings_follow_the_triangle_and_parity():
    natural = ["0e", "1o", "2e"]
    strict = ir.couplings(natural, 2, natural, reflections=True)
    assert len(strict) == 11 and all((i + l + k) % 2 == 0 for i, l, k in strict)
    assert len(ir.couplings(natural, 2, natural, reflections=False)) == 15


def test_bad_irreps_are_refused():
    with pytest.raises(ValueError, match="wanted a degree and a parity"):
        ir.parse("x1")
