"""Products of fields on the sphere against coupling by Clebsch-Gordan tensors and against integrals that are known."""

import math

import pytest
import torch

from molequi.ops import irreps as ir
from molequi.ops import sphere


@pytest.mark.parametrize("degree", [2, 5, 10, 12, 20, 33, 36])
def test_quadrature_is_exact_for_monomials(degree):
    """⟨x^a y^b z^c⟩ over the sphere is Π (k - 1)!! / (a + b + c + 1)!! for even powers (Folland 2001, Am. Math. Mon. 108, 446), else 0."""
    points, weights = sphere.quadrature(degree)

    def odd(n):
        return math.prod(range(n, 0, -2))

    for a in range(degree + 1):
        for b in range(degree + 1 - a):
            c = degree - a - b
            wanted = (
                odd(a - 1) * odd(b - 1) * odd(c - 1) / odd(degree + 1)
                if not (a % 2 or b % 2 or c % 2)
                else 0.0
            )
            found = float((weights * points[:, 0] ** a * points[:, 1] ** b * points[:, 2] ** c).sum())
            assert abs(found - wanted) < 1e-14, (a, b, c)
    with pytest.raises(ValueError, match="degree 200"):
        sphere.quadrature(200)


@pytest.mark.parametrize("l_in, l_out, factors", [(3, 0, 3), (3, 1, 3), (2, 2, 2), (4, 3, 2), (1, 1, 4)])
def test_products_turn_and_mirror(l_in, l_out, factors):
    generator = torch.Generator().manual_seed(l_in)
    there, back = sphere.transforms(l_in, l_out, factors)
    values = torch.randn(factors, (l_in + 1) ** 2, generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))

    def turned(x, l_max):
        return torch.cat(
            [
                ir.wigner(ir.name(l, (-1) ** l), q) @ part
                for l, part in enumerate(x.split([2 * l + 1 for l in range(l_max + 1)]))
            ]
        )

    product = back @ torch.stack([there @ v for v in values]).prod(0)
    other = back @ torch.stack([there @ turned(v, l_in) for v in values]).prod(0)
    assert product.abs().max() > 0.1
    torch.testing.assert_close(
        other, turned(product, l_out), rtol=0, atol=1e-12 * float(product.abs().max()) * 10
    )


def test_too_coarse_a_quadrature_breaks_it():
    """The control: the same law fails where the degree of the product is not reached."""
    points, weights = sphere.quadrature(5)
    y = torch.cat(ir.spherical_harmonics(3, points), dim=1)
    x = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angle = 0.7
    q = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]],
        dtype=torch.float64,
    )
    turned = torch.cat(
        [ir.wigner(ir.name(l, (-1) ** l), q) @ part for l, part in enumerate(x.split([1, 3, 5, 7]))]
    )
    assert abs(float((weights * (y @ x) ** 3).sum() - (weights * (y @ turned) ** 3).sum())) > 1e-3


@pytest.mark.parametrize("l1, l2, l3", [(1, 1, 2), (2, 2, 2), (1, 2, 3), (3, 2, 1), (1, 1, 1), (2, 1, 2)])
def test_product_is_the_clebsch_gordan_coupling(l1, l2, l3):
    """Where l1 + l2 + l3 is even it is proportional to the coupling, with one constant for all components; where it is odd it is zero."""
    generator = torch.Generator().manual_seed(1)
    l_max = max(l1, l2)
    there, back = sphere.transforms(l_max, l3, 2)
    rows = [slice(l * l, (l + 1) ** 2) for l in (l1, l2, l3)]
    a, b = (
        torch.randn(2 * l1 + 1, generator=generator, dtype=torch.float64),
        torch.randn(2 * l2 + 1, generator=generator, dtype=torch.float64),
    )
    product = (back @ ((there[:, rows[0]] @ a) * (there[:, rows[1]] @ b)))[rows[2]]
    coupled = torch.einsum("ijk,i,j->k", ir.clebsch_gordan(l1, l2, l3), a, b)
    if (l1 + l2 + l3) % 2:
        assert product.abs().max() < 1e-13 and coupled.abs().max() > 1e-2
    else:
        ratio = product / coupled
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-10, atol=0)
