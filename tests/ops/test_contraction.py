"""Symmetric couplings: symmetric, equivariant, complete, against characters and dense tensors; the contraction against its definition."""

import itertools
import math

import pytest
import torch

from molequi.ops import irreps as ir
from molequi.ops.blocks import blocks_of
from molequi.ops.contraction import SymmetricContraction, monomials, symmetric_couplings
from molequi.symmetry import random_orthogonal

IRREPS = ["0e", "1o", "2e", "3o", "0o", "1e", "2o", "3e"]
CASES = [(1, 2), (1, 5), (2, 2), (2, 4), (3, 1), (3, 2), (3, 3)]


def wigner(l_max, R):
    return torch.block_diag(*[ir.wigner(ir.natural(l), R) for l in range(l_max + 1)])


def values(l_max, degree, irrep, a):
    """The polynomials at a: (…, components of A) → (…, paths, components)."""
    table = torch.tensor(list(monomials((l_max + 1) ** 2, degree)))
    return torch.einsum("pkm,...m->...pk", symmetric_couplings(l_max, degree, irrep), a[..., table].prod(-1))


def dense(l_max, degree, irrep):
    """U (paths, components, i, j, …): each coefficient shared equally between the orders of its factors."""
    couplings, width = symmetric_couplings(l_max, degree, irrep), (l_max + 1) ** 2
    out = couplings.new_zeros(*couplings.shape[:2], *[width] * degree)
    for monomial, place in monomials(width, degree).items():
        orders = set(itertools.permutations(monomial))
        for order in orders:
            out[(..., *order)] = couplings[:, :, place] / len(orders)
    return out


def multiplicity(l_max, degree, irrep, nodes=200):
    """How often an irrep is in the symmetric power of 0e + 1o + … by the integral of characters over O(3); nothing of the couplings."""
    l, parity = ir.parse(irrep)

    def character(l, angle):
        return 1 + sum(2 * math.cos(m * angle) for m in range(1, l + 1))

    total = 0.0
    for inversion, k in itertools.product((1, -1), range(nodes)):
        angle = math.pi * (k + 0.5) / nodes
        power = [
            sum(inversion ** (n * q) * character(n, q * angle) for n in range(l_max + 1))
            for q in range(1, degree + 1)
        ]
        symmetric = [1.0]
        for d in range(1, degree + 1):  # Newton's identities
            symmetric.append(sum(power[q - 1] * symmetric[d - q] for q in range(1, d + 1)) / d)
        total += (
            symmetric[degree]
            * character(l, angle)
            * (parity if inversion < 0 else 1)
            * (1 - math.cos(angle))
            / nodes
            / 2
        )
    return total


@pytest.mark.parametrize(("l_max", "degree"), CASES)
def test_complete(l_max, degree):
    for irrep in IRREPS:
        expected = multiplicity(l_max, degree, irrep)
        assert abs(expected - round(expected)) < 1e-9
        assert len(symmetric_couplings(l_max, degree, irrep)) == round(expected), irrep


@pytest.mark.parametrize("proper", [True, False])
@pytest.mark.parametrize(("l_max", "degree"), CASES)
def test_equivariant(l_max, degree, proper):
    generator = torch.Generator().manual_seed(degree)
    R = random_orthogonal(3, proper=proper, generator=generator)
    a = torch.randn(5, (l_max + 1) ** 2, dtype=torch.float64, generator=generator)
    seen = 0
    for irrep in IRREPS:
        before = values(l_max, degree, irrep, a)
        after = values(l_max, degree, irrep, a @ wigner(l_max, R).T)
        scale = max(1.0, float(before.abs().max())) if before.numel() else 1.0
        assert torch.allclose(after, before @ ir.wigner(irrep, R).T, atol=1e-12 * scale, rtol=0), irrep
        seen += before.numel()
    assert seen > 0


@pytest.mark.parametrize(("l_max", "degree"), [(2, 2), (3, 2), (2, 3), (3, 3), (1, 4)])
def test_orthonormal_tensors_that_span_nested_couplings(l_max, degree):
    """Every nested Clebsch-Gordan coupling, made dense and symmetrised, is in their span: the paper's construction, from e3nn's tensors."""
    for irrep in ["0e", "1o", "2e"]:
        tensors = dense(l_max, degree, irrep)
        for k in range(degree - 1):  # an exchange of neighbours
            assert torch.equal(tensors, tensors.transpose(2 + k, 3 + k))
        flat = tensors[:, 0].flatten(1)
        assert torch.allclose(flat @ flat.T, torch.eye(len(flat), dtype=torch.float64), atol=1e-12)
        nested = nested_couplings(l_max, degree).get(ir.parse(irrep), [])
        assert nested
        for coupling in nested:
            orders = list(itertools.permutations(range(1, degree + 1)))
            symmetric = (sum(coupling.permute(0, *order) for order in orders) / len(orders))[0].flatten()
            assert torch.allclose(flat.T @ (flat @ symmetric), symmetric, atol=1e-12)


def nested_couplings(l_max, degree):
    """(l, parity) → tensors (components, i, j, …) of ((A A) A) …"""
    width, one = (l_max + 1) ** 2, torch.eye((l_max + 1) ** 2, dtype=torch.float64)
    found = {(l, (-1) ** l): [one[l * l : (l + 1) ** 2]] for l in range(l_max + 1)}
    for _ in range(degree - 1):
        raised = {}
        for (l1, parity), tensors in found.items():
            for l2 in range(l_max + 1):
                for l3 in range(abs(l1 - l2), l1 + l2 + 1):
                    coupling = ir.clebsch_gordan(l1, l2, l3)
                    for t in tensors:
                        new = torch.zeros(2 * l3 + 1, *t.shape[1:], width, dtype=torch.float64)
                        new[..., l2 * l2 : (l2 + 1) ** 2] = torch.einsum("a...,abk->k...b", t, coupling)
                        raised.setdefault((l3, parity * (-1) ** l2), []).append(new)
        found = raised
    return found


@pytest.mark.parametrize(
    ("l_max", "outputs", "correlation"),
    [
        (3, ["0e", "1o"], 3),
        (3, ["0e"], 3),
        (2, ["0e", "1o", "2e"], 2),
        (1, ["0e", "1o"], 1),
        (2, ["0e", "1o"], 4),
        (2, ["1e", "2o"], 3),
    ],
)
def test_contraction_equals_its_definition(l_max, outputs, correlation):
    """Σ over paths of weight times polynomial, node by node, for kinds of nodes one of which is empty."""
    generator = torch.Generator().manual_seed(0)
    contraction = SymmetricContraction(l_max, outputs, correlation)
    kind = torch.tensor([0, 3, 1, 1, 0, 3, 3] * 5)
    a = torch.randn(35, (l_max + 1) ** 2, 3, dtype=torch.float64, generator=generator)
    weights = torch.randn(4, contraction.num_paths, 3, dtype=torch.float64, generator=generator)
    expected, start = [], 0
    for irrep in outputs:
        total = torch.zeros(35, 3, 2 * ir.parse(irrep)[0] + 1, dtype=torch.float64)
        for degree in range(1, correlation + 1):
            terms = values(l_max, degree, irrep, a.transpose(1, 2))  # (N, C, paths, components)
            own = contraction.scales[start : start + terms.shape[2]][:, None] * terms
            total = total + torch.einsum(
                "ncpk,npc->nck", own, weights[kind][:, start : start + terms.shape[2]]
            )
            start += terms.shape[2]
        expected.append(total.transpose(1, 2))
    assert start == contraction.num_paths
    assert torch.allclose(contraction(a, weights, blocks_of(kind, 4)), torch.cat(expected, dim=1), atol=1e-11)


def test_terms_have_mean_square_one():
    """For independent unit normal A; the measured mean over 20,000 draws of heavy-tailed cubics is good to about a tenth."""
    contraction = SymmetricContraction(3, ["0e", "1o"], 3)
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(20000, 16, 1, dtype=torch.float64, generator=generator)
    blocks = blocks_of(torch.zeros(20000, dtype=torch.int64), 1)
    for path in range(contraction.num_paths):
        weights = torch.zeros(1, contraction.num_paths, 1, dtype=torch.float64)
        weights[0, path] = 1.0
        out = contraction(a, weights, blocks)
        mean = out.square().mean((0, 2))
        assert abs(float(mean[0] if path < 13 else mean[1:].mean()) - 1.0) < 0.15, path


def test_degree_is_the_correlation():
    """B(t A) along t is a polynomial of that degree and no higher: divided differences vanish, one order lower they do not."""
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(1, 16, 2, dtype=torch.float64, generator=generator)
    for correlation in (1, 2, 3):
        contraction = SymmetricContraction(3, ["0e", "1o"], correlation)
        weights = torch.randn(1, contraction.num_paths, 2, dtype=torch.float64, generator=generator)
        line = torch.stack(
            [
                contraction(t * a, weights, blocks_of(torch.zeros(1, dtype=torch.int64), 1))
                for t in range(correlation + 2)
            ]
        )
        highest = line.diff(n=correlation, dim=0)
        assert float(highest.abs().max()) > 0.1 and float(highest.diff(dim=0).abs().max()) < 1e-10


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # torch's own, on first forward derivatives
def test_derivatives_twice_and_forward():
    contraction = SymmetricContraction(2, ["0e", "1o"], 3)
    generator = torch.Generator().manual_seed(3)
    blocks = blocks_of(torch.tensor([0, 1, 0]), 2)
    a = torch.randn(3, 9, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(
        2, contraction.num_paths, 2, dtype=torch.float64, generator=generator, requires_grad=True
    )
    assert torch.autograd.gradcheck(
        lambda x, w: contraction(x, w, blocks), (a, weights), check_forward_ad=True
    )
    assert torch.autograd.gradgradcheck(lambda x, w: contraction(x, w, blocks).sum(0), (a, weights))


def test_mirrors_make_the_table_sparse():
    """The size that the docstring says; terms sorted into wrong blocks give the same values from a larger table."""
    contraction = SymmetricContraction(3, ["0e", "1o"], 3)
    assert sum(rows * columns for rows, columns in contraction.shapes) == contraction.coupling.shape[1] == 816


def test_products_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="no product of up to 2 features of l <= 1 is 1e"):
        SymmetricContraction(1, ["1e"], 2)
    with pytest.raises(ValueError, match="wanted 1 or more"):
        SymmetricContraction(1, ["0e"], 0)
