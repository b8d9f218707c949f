"""Heads for tensors of rank 2 and above."""

from collections.abc import Iterator, Mapping
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.heads.base import Head, Pool
from molequi.nn.mlp import linear, mlp
from molequi.ops.indices import index_permutations, symmetrize
from molequi.ops.irreps import symmetric_basis
from molequi.quantities import Quantity

_FEWEST = 64  # products of vectors in a TensorN, where there are as many


class Tensor2(Head):
    """Tensors of rank 2 per node or graph, as the sum of the parts that the declared `symmetry` allows.

    - isotropic: φ(h_i) δ, with an invariant φ;
    - symmetric and traceless: Σ_c φ_c(h_i) T_ic over the channels of "2e". With a backbone without "2e" (such
      as EGNN, in any dimension) it is Σ_cd φ_cd(h_i) (v_ic v_idᵀ + v_id v_icᵀ) over the channels of "1o";
    - antisymmetric: ε · Σ_c φ_c(h_i) a_ic over the channels of "1e", or Σ_cd φ_cd(h_i) (v_ic v_idᵀ - v_id
      v_icᵀ) over those of "1o".

    ``symmetry="ij=ji"`` has the first two, ``symmetry="ij=-ji"`` the third, and a general tensor all. A
    pseudotensor reads "0o", "2o" and "1o" in place of "0e", "2e" and "1e".

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 2.
    pool : {"sum", "mean", "attention"}, optional
        See `Head`.

    Raises
    ------
    ModelError
        If the backbone lacks the features, or products of two different vectors are needed and it has one
        channel of them.
    """

    rank, kind = 2, "value"

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None) -> None:
        super().__init__(item, pool=pool)
        sign = index_permutations(self.quantity.symmetry, 2).get((1, 0), 0)
        self.symmetric, self.antisymmetric = sign >= 0, sign <= 0
        self.shift: Tensor
        self.register_buffer("shift", torch.tensor(0.0))

    def check(self, channels: Mapping[str, int]) -> None:
        parity = "o" if self.quantity.pseudo else "e"
        needs = ["0e"]
        if self.symmetric:
            needs += ["0o", "2o"] if self.quantity.pseudo else ["2e" if "2e" in channels else "1o"]
        if self.antisymmetric:
            needs.append("1e" if parity == "e" and "1e" in channels else "1o")
        self.needs = tuple(dict.fromkeys(needs))
        super().check(channels)
        self.products = self.antisymmetric and parity == "e" and "1e" not in channels
        if self.products and channels["1o"] < 2:
            raise ModelError(
                f"Tensor2({self.quantity.name}): the antisymmetric part comes from two different vectors, "
                "and the backbone gives one channel of '1o'; take more channels"
            )

    def make(self, channels: Mapping[str, int]) -> None:
        width = channels["0e"]
        if self.symmetric:
            parity = "o" if self.quantity.pseudo else "e"
            self.source = f"2{parity}" if f"2{parity}" in self.needs else "1o"
            count = channels[self.source]
            self.isotropic = mlp([width, width, channels["0o"] if self.quantity.pseudo else 1])
            self.net = mlp([width, width, count if self.source != "1o" else count * count])
            self.basis: Tensor
            self.register_constant("basis", symmetric_basis()[1:])
        if self.antisymmetric:
            self.axial = "1e" if "1e" in self.needs else "1o"
            count = channels[self.axial]
            self.antisymmetric_net = mlp([width, width, count * count if self.products else count])

    def forward(self, graph: Graph, features: Features) -> Tensor:
        block = features.blocks[self.needs[-1]]
        eye = torch.eye(graph.dim, dtype=block.dtype, device=block.device)
        parts = []
        if self.symmetric:
            isotropic = self.isotropic(features.scalars)
            if self.quantity.pseudo:
                isotropic = (isotropic * features.blocks["0o"].squeeze(-1)).sum(1, keepdim=True)
            parts += [self._traceless(features), isotropic[:, :, None] * eye]
        if self.antisymmetric:
            parts.append(self._antisymmetric(features, eye))
        values = sum(parts[1:], parts[0]) * self.scale
        if self.symmetric and not self.quantity.pseudo:
            values = values + self.shift * eye
        return self.pool(values, graph, features)

    def _traceless(self, features: Features) -> Float[Tensor, "N D D"]:
        weights, block = self.net(features.scalars), features.blocks[self.source]
        if self.source != "1o":
            components = torch.einsum("nc,ncm->nm", weights, block)
            return torch.einsum("nm,mij->nij", components, self.basis.to(block.dtype))
        outer = _products(weights, block)
        return outer + outer.transpose(1, 2)

    def _antisymmetric(self, features: Features, eye: Float[Tensor, "D D"]) -> Float[Tensor, "N D D"]:
        weights, block = self.antisymmetric_net(features.scalars), features.blocks[self.axial]
        if self.products:
            outer = _products(weights, block)
            return outer - outer.transpose(1, 2)
        if len(eye) != 3:
            raise ModelError(
                f"Tensor2({self.quantity.name}): an antisymmetric pseudotensor is made from a vector in "
                f"three dimensions only; the structures have {len(eye)}"
            )
        vector = torch.einsum("nc,ncd->nd", weights, block)
        shape = (vector.shape[0], 3, 3)
        return torch.linalg.cross(vector[:, None].expand(shape), eye.expand(shape))  # ε_ijk a_k

    def standardize(
        self,
        *,
        scale: float,
        shift: float | Mapping[int, float] = 0.0,
        reference_energies: Mapping[int, float] | None = None,
    ) -> None:
        super().standardize(scale=scale)
        if not isinstance(shift, Mapping):
            self.shift.fill_(shift)


def _products(weights: Float[Tensor, "N CC"], vectors: Float[Tensor, "N C D"]) -> Float[Tensor, "N D D"]:
    """Σ_cd φ_cd v_c v_dᵀ."""
    weights = weights.reshape(vectors.shape[0], vectors.shape[1], vectors.shape[1])
    return vectors.transpose(1, 2) @ weights @ vectors


class TensorN(Head):
    """Tensors of rank 3 or 4 per node or graph, from products of vectors and Kronecker deltas.

        T_i = Σ_π Σ_k φ_πk(h_i) [u_πk1 ⊗ u_πk2 ⊗ … ⊗ δ ⊗ …],   u_πkm = Σ_c A_πmkc v_ic,

    where π runs over the ways to place pairs of indices on a δ and the others on vectors, followed by the
    mean over the index permutations of the declared `symmetry`. By the first fundamental theorem of invariant
    theory (Weyl, The Classical Groups, 1939) every tensor that is a polynomial function of vectors and
    equivariant under O(n) is a sum of such products with invariant coefficients. Works in any dimension.

    Parameters
    ----------
    item : str or Quantity
        A quantity of rank 3 or 4 that is not a pseudotensor.
    pool : {"sum", "mean", "attention"}, optional
        See `Head`.

    Raises
    ------
    ModelError
        For another rank and for pseudotensors.
    """

    kind = "value"
    needs = ("0e", "1o")

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None) -> None:
        super().__init__(item, pool=pool)
        what = self.quantity
        if what.rank not in (3, 4) or what.pseudo:
            raise ModelError(
                f"TensorN({what.name}): a {'pseudotensor' if what.pseudo else 'tensor'} of rank {what.rank} "
                "is not predicted directly; declare it as a gradient (gradient_of=…, wrt=…) of a quantity of "
                "lower rank"
            )
        self.pairings = _pairings(what.rank, what.symmetry)

    def make(self, channels: Mapping[str, int]) -> None:
        width, count, rank = channels["0e"], channels["1o"], self.quantity.rank
        # All products of few vectors; of many vectors as many products as channels, and at least _FEWEST.
        self.terms = min(count**rank, max(count, _FEWEST))
        self.net = mlp([width, width, len(self.pairings) * self.terms])
        self.mix = nn.ModuleList(
            nn.ModuleList(linear(count, self.terms, bias=False) for _ in range(rank - 2 * len(pairs)))
            for pairs in self.pairings
        )

    def forward(self, graph: Graph, features: Features) -> Tensor:
        rank = self.quantity.rank
        vectors = features.blocks["1o"].transpose(1, 2)
        weights = self.net(features.scalars).reshape(-1, len(self.pairings), self.terms) / self.terms**0.5
        eye = torch.eye(graph.dim, dtype=vectors.dtype, device=vectors.device)
        letters, values = "abcd"[:rank], []
        for k, (pairs, mixes) in enumerate(zip(self.pairings, self.mix)):
            free = [letters[m] for m in range(rank) if all(m not in pair for pair in pairs)]
            deltas = ["".join(letters[m] for m in pair) for pair in pairs]
            terms = ["nk", *(f"n{letter}k" for letter in free), *deltas]
            operands = [weights[:, k], *(mix(vectors) for mix in mixes.children()), *[eye] * len(pairs)]
            values.append(torch.einsum(f"{','.join(terms)}->n{letters}", operands))
        total = symmetrize(sum(values[1:], values[0]), self.quantity.symmetry, rank)
        return self.pool(total * self.scale, graph, features)


def _pairings(rank: int, symmetry: str) -> list[tuple[tuple[int, int], ...]]:
    """Sets of disjoint pairs of indices, one of each class that the index permutations connect."""

    def extend(pairs: tuple[tuple[int, int], ...]) -> Iterator[tuple[tuple[int, int], ...]]:
        yield pairs
        used = {index for pair in pairs for index in pair}
        for pair in combinations(range(rank), 2):
            if not used & set(pair) and (not pairs or pair > pairs[-1]):
                yield from extend((*pairs, pair))

    found: dict[frozenset[frozenset[int]], tuple[tuple[int, int], ...]] = {}
    for pairs in extend(()):
        images = [
            frozenset(frozenset(p[index] for index in pair) for pair in pairs)
            for p in index_permutations(symmetry, rank)
        ]
        if not any(image in found for image in images):
            found[images[0]] = pairs
    return list(found.values())
