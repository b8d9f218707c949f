"""Symmetric contraction: many-body products of features with themselves (MACE, arXiv 2206.07697, eqs. 10,
11).

A has the irreps 0e, 1o, 2e, … of natural parity up to l_max, which are (l_max + 1)² components in each
channel. An equivariant polynomial of A of degree ν is a generalized Clebsch-Gordan coupling of ν copies of A
that is symmetric under exchange of the copies. It is stored as coefficients of monomials, where this symmetry
holds by itself: 816 cubic monomials of 16 components replace the 4,096 entries of the tensor.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.ops import irreps as ir
from molequi.ops.blocks import Blocks, is_traced
from molequi.ops.constants import Float64Constants


@lru_cache
def monomials(variables: int, degree: int) -> dict[tuple[int, ...], int]:
    """Monomials x_i x_j … with i ≤ j ≤ …, each with its number in the order of this table.

    Parameters
    ----------
    variables : int
        Number of variables.
    degree : int
        Degree of the monomials.

    Examples
    --------
    >>> monomials(2, 2)
    {(0, 0): 0, (0, 1): 1, (1, 1): 2}
    """
    return {m: k for k, m in enumerate(itertools.combinations_with_replacement(range(variables), degree))}


@lru_cache
def _raise(variables: int, degree: int) -> Int[Tensor, "m v"]:
    """Number of each monomial times each variable, among the monomials of the next degree."""
    place = monomials(variables, degree + 1)
    return torch.tensor(
        [[place[tuple(sorted((*m, v)))] for v in range(variables)] for m in monomials(variables, degree)]
    )


def _multiplicities(variables: int, degree: int) -> Float[Tensor, "m"]:
    """Number of entries of the symmetric tensor that belong to each monomial."""
    return torch.tensor(
        [
            math.factorial(degree) / math.prod(math.factorial(m.count(v)) for v in set(m))
            for m in monomials(variables, degree)
        ],
        dtype=torch.float64,
    )


@lru_cache
def symmetric_couplings(l_max: int, degree: int, irrep: str) -> Float[Tensor, "paths k m"]:
    """Basis of the equivariant polynomials of one degree whose values transform as an irrep.

    As symmetric tensors the polynomials are orthonormal, component by component. All couplings of one A after
    another are tried in a fixed order, and a coupling is kept if it is independent of those before. So
    trained weights have the same meaning on every machine.

    Parameters
    ----------
    l_max : int
        Highest degree of the irreps of A.
    degree : int
        Degree of the polynomials.
    irrep : str
        Irrep of their values, of degree l.

    Returns
    -------
    Tensor, shape (paths, 2 l + 1, monomials)
        Coefficients of `monomials`, float64.
    """
    l, parity = ir.parse(irrep)
    width = (l_max + 1) ** 2
    if degree == 1:
        if l > l_max or parity != (-1) ** l:
            return torch.zeros(0, 2 * l + 1, width, dtype=torch.float64)
        return torch.eye(width, dtype=torch.float64)[None, l * l : (l + 1) ** 2]
    up, count = _raise(width, degree - 1), len(monomials(width, degree))
    weight = 1.0 / _multiplicities(width, degree)
    basis: list[Tensor] = []
    # The last factor is A itself, so that the others are needed up to degree l + l_max only.
    for lower, last in itertools.product(range(l + l_max + 1), range(l_max + 1)):
        if not abs(lower - last) <= l <= lower + last or lower > (degree - 1) * l_max:
            continue
        coupling = ir.clebsch_gordan(lower, last, l) * math.sqrt(2 * l + 1)
        columns = up[:, last * last : (last + 1) ** 2]  # (monomials, j)
        for lesser in symmetric_couplings(l_max, degree - 1, ir.name(lower, parity * (-1) ** last)):
            terms = torch.einsum("im,ijk->kmj", lesser, coupling)
            new = terms.new_zeros(2 * l + 1, count).index_add(1, columns.flatten(), terms.flatten(1))
            for _ in range(2):  # Gram-Schmidt twice is orthogonal to round-off
                for old in basis:
                    new = new - old * ((new * old) @ weight).sum() / (2 * l + 1)
            rest = (new.square() @ weight).sum().sqrt()
            if rest > 1e-6:  # couplings have norm one or less
                basis.append(new * math.sqrt(2 * l + 1) / rest)
    return torch.stack(basis) if basis else torch.zeros(0, 2 * l + 1, count, dtype=torch.float64)


def expand(
    l_max: int, irrep: str, tensors: Float[Tensor, "k ..."]
) -> tuple[Float[Tensor, "paths n"], Float[Tensor, ""]]:
    """Other couplings of one degree as sums of those of `symmetric_couplings`.

    Only the symmetric part of a tensor counts, since all its factors are the same A.

    Parameters
    ----------
    l_max : int
        Highest degree of the irreps of A.
    irrep : str
        Irrep of the products, of degree l.
    tensors : Tensor, shape (2 l + 1, (l_max + 1)², …, (l_max + 1)², n)
        n couplings; there are as many axes of A as factors.

    Returns
    -------
    coefficients : Tensor, shape (paths, n)
        Each coupling is the sum of the basis with the coefficients of its column.
    error : Tensor, shape ()
        The largest coefficient of a monomial that remains: zero if they are couplings.
    """
    width, degree = (l_max + 1) ** 2, tensors.ndim - 2
    table = monomials(width, degree)
    entries = itertools.product(range(width), repeat=degree)
    place = torch.tensor([table[tuple(sorted(entry))] for entry in entries])
    flat = tensors.flatten(1, -2)
    given = flat.new_zeros(flat.shape[0], len(table), flat.shape[2]).index_add(1, place, flat)
    basis = symmetric_couplings(l_max, degree, irrep)
    weight = 1.0 / _multiplicities(width, degree)
    found = torch.einsum("pkm,m,kmn->pn", basis, weight, given) / flat.shape[0]
    rest = given - torch.einsum("pkm,pn->kmn", basis, found)
    return found, rest.abs().max()


def _second_moment(
    coefficients: Float[Tensor, "m"], table: Sequence[tuple[int, ...]], variables: int
) -> float:
    """Mean square of a polynomial of independent unit normal variables, by Wick's theorem."""
    used = coefficients.nonzero().flatten()
    powers = torch.tensor([[table[k].count(v) for v in range(variables)] for k in used.tolist()]).reshape(
        len(used), variables
    )
    total = powers[:, None] + powers[None]  # (m, m, variables)
    moments = torch.tensor(
        [0.0 if n % 2 else float(math.prod(range(n - 1, 0, -2))) for n in range(int(total.max()) + 1)],
        dtype=torch.float64,
    )[total].prod(2)
    return float(coefficients[used] @ moments @ coefficients[used])


@lru_cache
def _mirrors(l_max: int) -> list[int]:
    """Three bits for each component of A: whether x → -x, y → -y, z → -z changes its sign. A constant is
    last, with 0.
    """
    signs = []
    for axis in range(3):
        mirror = torch.ones(3, dtype=torch.float64)
        mirror[axis] = -1.0
        signs.append(
            torch.cat([ir.wigner(ir.natural(l), torch.diag(mirror)).diagonal() for l in range(l_max + 1)]) < 0
        )
    return [*(sum(int(s[k]) << axis for axis, s in enumerate(signs)) for k in range((l_max + 1) ** 2)), 0]


class SymmetricContraction(Float64Constants):
    """All equivariant polynomials of A up to a degree, with weights (MACE, arXiv 2206.07697, eqs. 10, 11):

        B_LM = Σ_ν Σ_paths W_path Σ U_path A … A.

    There is one weight for each path, channel and kind of node. If the components of A are independent
    standard normal numbers, a polynomial has mean square one, averaged over its components. Paths are in the
    order of outputs, then of degrees.

    The sum is computed as B = Σ_k A_k (Σ_n T_kn m_n). One factor of each monomial is taken out, and m are the
    monomials of one degree less. (A has a constant 1 as last component, so that lower degrees are monomials
    of the same degree.) T follows from the weights once for all nodes of a kind. After that, each channel of
    a block of nodes of one kind is a matrix product. Real harmonics are even or odd in x, in y and in z, and
    so is each term. Therefore T has eight blocks, and the factors are chosen so that about half of them are
    needed: 816 numbers instead of 4 · 16³ for l_max = 3, a scalar and a vector, and degree 3.

    Parameters
    ----------
    l_max : int
        Highest degree of the irreps of A.
    outputs : sequence of str
        Irreps of B.
    correlation : int, >= 1
        Highest degree ν of the polynomials.

    Attributes
    ----------
    paths : dict of str to list of int
        Number of paths of each output irrep, for the degrees 1 to `correlation`.
    num_paths : int
        Number of all paths.

    Raises
    ------
    ValueError
        If `correlation` is below 1, or no polynomial has the irrep of an output.

    Examples
    --------
    >>> SymmetricContraction(1, ["0e"], correlation=2).paths
    {'0e': [1, 2]}
    """

    coupling: Tensor
    collect: Tensor
    factors: Tensor
    rest: Tensor

    def __init__(self, l_max: int, outputs: Sequence[str], correlation: int) -> None:
        super().__init__()
        if correlation < 1:
            raise ValueError(f"correlation {correlation}: wanted 1 or more")
        self.width, self.outputs = (l_max + 1) ** 2, tuple(outputs)
        self.paths = {
            i: [len(symmetric_couplings(l_max, d, i)) for d in range(1, correlation + 1)]
            for i in self.outputs
        }
        for irrep, counts in self.paths.items():
            if not any(counts):
                raise ValueError(f"no product of up to {correlation} features of l <= {l_max} is {irrep}")
        self.num_paths = sum(map(sum, self.paths.values()))
        self.components = sum(ir.sizes(self.outputs))
        mirrors, one = _mirrors(l_max), self.width
        # By mirrors of m: ((component of B, factor), m, path) → coefficient.
        entries: dict[int, dict[tuple[tuple[int, int], tuple[int, ...], int], float]] = {}
        path, component, scales = 0, 0, []
        for irrep in self.outputs:
            for degree in range(1, correlation + 1):
                table = list(monomials(self.width, degree))
                for coupling in symmetric_couplings(l_max, degree, irrep):
                    scales.append(
                        (sum(_second_moment(row, table, self.width) for row in coupling) / len(coupling))
                        ** -0.5
                    )
                    for k, row in enumerate(coupling * scales[-1]):
                        for n in (row.abs() > 1e-12).nonzero().flatten().tolist():
                            factor, rest = _take_out(
                                (*table[n], *[one] * (correlation - degree)), mirrors, one
                            )
                            kind = 0
                            for v in rest:
                                kind ^= mirrors[v]
                            entries.setdefault(kind, {})[(component + k, factor), rest, path] = float(row[n])
                    path += 1
            component += 2 * ir.parse(irrep)[0] + 1
        self.scales = torch.tensor(scales, dtype=torch.float64)
        rows: list[tuple[int, int]] = []
        columns: list[tuple[int, ...]] = []
        blocks = []
        self.shapes: list[tuple[int, int]] = []
        for _, block in sorted(entries.items()):
            left = sorted({key[0] for key in block})
            right = sorted({key[1] for key in block})
            dense = torch.zeros(self.num_paths, len(left), len(right), dtype=torch.float64)
            for (row, column, path), value in block.items():
                dense[path, left.index(row), right.index(column)] = value
            self.shapes.append((len(left), len(right)))
            rows, columns = rows + left, columns + right
            blocks.append(dense.flatten(1))
        self.register_constant("coupling", torch.cat(blocks, dim=1))
        collect = torch.zeros(self.components, len(rows), dtype=torch.float64)
        collect[[row[0] for row in rows], range(len(rows))] = 1.0
        self.register_buffer("collect", collect, persistent=False)
        self.register_buffer("factors", torch.tensor([row[1] for row in rows]), persistent=False)
        self.register_buffer(
            "rest", torch.tensor(columns, dtype=torch.int64).T.contiguous(), persistent=False
        )  # (ν - 1, monomials)

    def forward(
        self, a: Float[Tensor, "N M C"], weights: Float[Tensor, "Z P C"], blocks: Blocks
    ) -> Float[Tensor, "N O C"]:
        """The polynomials B.

        Parameters
        ----------
        a : Tensor, shape (N, (l_max + 1)², C)
            Features A of each node.
        weights : Tensor, shape (kinds, num_paths, C)
            Weights W.
        blocks : Blocks
            The nodes sorted by kind.

        Returns
        -------
        Tensor, shape (N, O, C)
            Components of all output irreps.
        """
        count, size = blocks.kind.shape[0], blocks.size
        kind = blocks.kind
        if not is_traced(kind) and count < len(weights):  # a model of many elements, few of which are there
            weights, kind = weights.index_select(0, kind), torch.arange(count, device=kind.device)
        table = weights.transpose(1, 2) @ self.coupling.to(weights.dtype)  # (Z, C, T)
        table = table.index_select(0, kind).flatten(0, 1)  # (blocks · C, T)
        x = blocks.split(a).permute(0, 3, 2, 1).flatten(0, 1)  # (blocks · C, M, nodes)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        m: Tensor | None = None
        for index in self.rest:
            m = x.index_select(1, index) if m is None else m * x.index_select(1, index)
        if m is None:
            m = x.new_ones(x.shape[0], 1, size)
        sums = [
            t.reshape(t.shape[0], r, c) @ part
            for (r, c), t, part in zip(
                self.shapes,
                table.split([r * c for r, c in self.shapes], 1),
                m.split([c for _, c in self.shapes], 1),
            )
        ]
        terms = torch.cat(sums, dim=1) * x.index_select(1, self.factors)
        b = self.collect.to(x.dtype) @ terms  # (blocks · C, O, nodes)
        return blocks.join(b.reshape(count, a.shape[2], self.components, size).permute(0, 3, 2, 1))


def _take_out(monomial: tuple[int, ...], mirrors: Sequence[int], one: int) -> tuple[int, tuple[int, ...]]:
    """One factor, and the remainder. A remainder that is even under inversion is preferred; then fewer are
    computed.
    """
    choices = []
    for factor in sorted(set(monomial)):
        rest = list(monomial)
        rest.remove(factor)
        odd = sum(mirrors[v].bit_count() for v in rest) % 2
        choices.append((odd, factor == one, -factor, factor, tuple(rest)))
    return min(choices)[3:]
