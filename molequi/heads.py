"""Heads turn features into quantities. They read blocks by irrep and never ask which backbone made them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import combinations
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.nn.mlp import linear, mlp
from molequi.ops import safe
from molequi.ops.indices import index_permutations, symmetrize
from molequi.ops.irreps import symmetric_basis
from molequi.ops.segment import segment_mean, segment_softmax, segment_sum
from molequi.quantities import KNOWN, SYMBOLS, Quantity, quantity
from molequi.util.extensions import find, with_own
from molequi.util.signature import check_call

Pool = Literal["sum", "mean", "attention"]
KINDS = {
    "value": "a number, vector or tensor",
    "classes": "one of several classes (classes=[…])",
    "point": "a position in space (point=True)",
}


class Head(nn.Module, ABC):
    """One quantity from the features. Parameters are made by `build`, once the backbone's channels are known.

    pool: how the values of nodes become that of their graph: "sum" for extensive quantities and "mean" for
    others unless said; "attention" is a mean with learned weights, a softmax over the nodes of each graph. A
    sum for a quantity that is not extensive is allowed (the magnitude of a dipole is one of a sum); extensive
    quantities are sums and nothing else. Raises ModelError for a quantity that the head cannot predict and a
    pool that does not fit it.
    """

    needs: tuple[str, ...] = ("0e",)
    # What it predicts; None: anything.
    rank: int | None = None
    kind: Literal["value", "classes", "point"] | None = None

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None):
        super().__init__()
        self.quantity = quantity(item)
        what = f"{type(self).__name__}({self.quantity.name})"
        if self.rank is not None and self.quantity.rank != self.rank:
            raise ModelError(f"{what}: rank {self.quantity.rank}; wanted a quantity of rank {self.rank}")
        kind = "classes" if self.quantity.classes else "point" if self.quantity.point else "value"
        if self.kind not in (None, kind):
            raise ModelError(
                f"{what}: the quantity is declared as {KINDS[kind]}; {type(self).__name__} predicts "
                f"{KINDS[self.kind]}"
            )
        if pool not in (None, "sum", "mean", "attention"):
            raise ModelError(f"{what}: pool={pool!r}; wanted 'sum', 'mean' or 'attention'")
        if pool is not None and self.quantity.per == "node":
            raise ModelError(
                f"{what}: pool={pool!r} of a quantity per node, which is not pooled; leave it out"
            )
        if pool not in (None, "sum") and self.quantity.extensive:
            raise ModelError(
                f"{what}: pool={pool!r} of an extensive quantity, which is the sum over its nodes; leave it "
                "out, or declare "
                "the quantity with extensive=False"
            )
        self.pooling: Pool = pool or ("sum" if self.quantity.extensive else "mean")
        self.options = {} if pool is None else {"pool": pool}
        self.register_buffer("scale", torch.tensor(1.0))

    @property
    def hparams(self) -> dict[str, Any]:
        """Class, quantity and options, JSON-able: `head_from(hparams)` is the same head."""
        return {"head": type(self).__name__, "quantity": asdict(self.quantity), "options": dict(self.options)}

    def check(self, channels: Mapping[str, int]) -> None:
        """Raises ModelError if the backbone lacks an irrep that this head reads."""
        for irrep in self.needs:
            if irrep not in channels:
                raise ModelError(
                    f"{type(self).__name__}({self.quantity.name}) reads {irrep!r} features and the backbone "
                    f"gives {sorted(channels)}; "
                    "choose a backbone or options that return them (for NequIP: l_max, l_out; parity=True "
                    "for 0o, 1e, 2o)"
                )

    def build(self, channels: Mapping[str, int]) -> None:
        """Make the parameters for these channels of each irrep."""
        self.check(channels)
        self.attend = mlp([channels["0e"], channels["0e"], 1]) if self.pooling == "attention" else None
        self.make(channels)

    @abstractmethod
    def make(self, channels: Mapping[str, int]) -> None:
        """The parameters of this kind of head."""

    @abstractmethod
    def forward(self, graph: Graph, features: Features) -> Tensor:
        """The quantity: one row a graph or a node."""

    def standardize(
        self,
        *,
        scale: float,
        shift: "float | Mapping[int, float]" = 0.0,
        reference_energies: Mapping[int, float] | None = None,
    ) -> None:
        """Set the scale of the values, so that the network's own output is of order one."""
        self.scale.fill_(scale)

    def pool(
        self, values: Float[Tensor, "N ..."], graph: Graph, features: Features
    ) -> Float[Tensor, "G ..."]:
        """Nodes to graphs as `pooling` says; per node, nothing."""
        if self.quantity.per == "node":
            return values
        if self.attend is not None:
            weights = segment_softmax(
                self.attend(features.scalars).squeeze(-1), graph.batch, graph.num_graphs
            ).to(values.dtype)
            return segment_sum(
                values * weights.reshape(-1, *[1] * (values.ndim - 1)), graph.batch, graph.num_graphs
            )
        pooled = segment_sum if self.pooling == "sum" else segment_mean
        return pooled(values, graph.batch, graph.num_graphs)


class Scalar(Head):
    """Invariant scalars per node or graph. For an extensive one such as the energy,

        E = Σ_i isolated(z_i) + t_i (scale · ε(h_i) + shift(z_i)),   t_i = tanh(coordination_i),

    so that an atom without neighbours has exactly the energy of the isolated atom, and every atom goes there
    smoothly. Sums and totals are float64 whatever the precision of the model: float32 cannot resolve 1 meV in
    a total energy of 10⁴ eV. Other scalars are scale · ε(h_i) + shift, averaged over the nodes when they
    belong to a graph. A pseudoscalar is Σ_c φ_c(h_i) p_ic over the channels of "0o", without a shift: it
    changes sign in a mirror.
    """

    rank, kind = 0, "value"

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None):
        super().__init__(item, pool=pool)
        if self.quantity.pseudo:
            self.needs = ("0e", "0o")
        self.register_buffer("reference_energies", torch.zeros(len(SYMBOLS), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(len(SYMBOLS), dtype=torch.float64))

    def _apply(self, fn, recurse=True):
        reference_energies, shift = self.reference_energies, self.shift
        super()._apply(fn, recurse)
        # .float() and .half() must not round tables of total energies; only the device may change
        self.reference_energies, self.shift = (
            reference_energies.to(self.reference_energies.device),
            shift.to(self.shift.device),
        )
        return self

    def make(self, channels):
        self.net = mlp([channels["0e"], channels["0e"], channels["0o"] if self.quantity.pseudo else 1])

    def contributions(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        """What each node adds; their sum is the value of an extensive quantity, float64."""
        own = self.net(features.scalars)
        own = (own * features.blocks["0o"].squeeze(-1)).sum(1) if self.quantity.pseudo else own.squeeze(-1)
        own = (own * self.scale).double() + self.shift[graph.z]
        if self.quantity.extensive:
            return self.reference_energies[graph.z] + torch.tanh(features.coordination.double()) * own
        return own

    def forward(self, graph, features):
        return self.pool(self.contributions(graph, features), graph, features)

    def standardize(self, *, scale, shift=0.0, reference_energies=None):
        super().standardize(scale=scale)
        if self.quantity.pseudo:
            return
        for table, given in ((self.shift, shift), (self.reference_energies, reference_energies or {})):
            if isinstance(given, Mapping):
                table.zero_()
                for z, value in given.items():
                    table[z] = value
            else:
                table.fill_(given)


class Vector(Head):
    """Vectors per node or graph: Σ_c φ_c(h_i) v_ic over the channels of "1o" ("1e" for a pseudovector).

    `Vector("forces")` predicts forces directly; they are not the gradient of an energy, as the audit will
    say.
    """

    rank, kind = 1, "value"

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None):
        super().__init__(item, pool=pool)
        self.needs = ("0e", "1e" if self.quantity.pseudo else "1o")

    def make(self, channels):
        self.net = mlp([channels["0e"], channels["0e"], channels[self.needs[1]]])

    def vectors(self, features: Features) -> Float[Tensor, "N D"]:
        return (
            torch.einsum("nc,ncd->nd", self.net(features.scalars), features.blocks[self.needs[1]])
            * self.scale
        )

    def forward(self, graph, features):
        return self.pool(self.vectors(features), graph, features)


class Dipole(Vector):
    """μ = Σ_i q_i (r_i - r̄) + μ_i with atomic charges and atomic dipoles (e Å).

    r̄ is the centre of the positions, so that a charged molecule has a dipole that does not depend on the
    origin; about it a constant in all q_i adds nothing, so that their sum, the total charge, need not be
    known. NaN for periodic structures, where the dipole depends on the choice of the cell.
    """

    def make(self, channels):
        super().make(channels)
        self.charge_net = mlp([channels["0e"], channels["0e"], 1])

    def forward(self, graph, features):
        charge = (self.charge_net(features.scalars).squeeze(-1) * self.scale).to(graph.pos.dtype)
        # their mean adds nothing but round-off, which far from the origin is larger than the dipole of nearly
        # equal atoms
        charge = charge - segment_mean(charge, graph.batch, graph.num_graphs)[graph.batch]
        centre = segment_mean(graph.pos, graph.batch, graph.num_graphs)
        moments = charge[:, None] * (graph.pos - centre[graph.batch]) + self.vectors(features)
        dipole = self.pool(moments, graph, features)
        return dipole if graph.pbc is None else dipole.masked_fill(graph.pbc.any(1)[:, None], float("nan"))


class DipoleMagnitude(Dipole):
    """|μ| of that dipole (e Å), for data that have no directions: a vector inside, an invariant outside."""

    rank = 0

    def __init__(self, item: str | Quantity = "mu"):
        super().__init__(item, pool="sum")
        self.options = {}

    def forward(self, graph, features):
        return safe.norm(super().forward(graph, features))


class Tensor2(Head):
    """Tensors of rank 2 per node or graph, as the sum of the parts that the declared `symmetry` allows.

    - isotropic: φ(h_i) δ, with an invariant φ;
    - symmetric and traceless: Σ_c φ_c(h_i) T_ic over the channels of "2e", or Σ_cd φ_cd(h_i) (v_ic v_idᵀ +
    v_id v_icᵀ) over
      those of "1o" for a backbone without "2e" (such as EGNN, in any dimension);
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

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None):
        super().__init__(item, pool=pool)
        sign = index_permutations(self.quantity.symmetry, 2).get((1, 0), 0)
        self.symmetric, self.antisymmetric = sign >= 0, sign <= 0
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
                "and the backbone gives one "
                "channel of '1o'; take more channels"
            )

    def make(self, channels: Mapping[str, int]) -> None:
        width = channels["0e"]
        if self.symmetric:
            parity = "o" if self.quantity.pseudo else "e"
            self.source = f"2{parity}" if f"2{parity}" in self.needs else "1o"
            count = channels[self.source]
            self.isotropic = mlp([width, width, channels["0o"] if self.quantity.pseudo else 1])
            self.net = mlp([width, width, count if self.source != "1o" else count * count])
            self.register_buffer("basis", symmetric_basis()[1:], persistent=False)
        if self.antisymmetric:
            self.axial = "1e" if "1e" in self.needs else "1o"
            count = channels[self.axial]
            self.antisymmetric_net = mlp([width, width, count * count if self.products else count])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Tensor2":
        basis = getattr(self, "basis", None)
        super()._apply(fn, recurse)
        if basis is not None:
            # Always float64: rounded once by .float(), it would break the symmetry by 1e-8 in a later float64
            # copy.
            self.basis = basis.to(self.basis.device)
        return self

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
                "three dimensions only; "
                f"the structures have {len(eye)}"
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

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None):
        super().__init__(item, pool=pool)
        what = self.quantity
        if what.rank not in (3, 4) or what.pseudo:
            raise ModelError(
                f"TensorN({what.name}): a {'pseudotensor' if what.pseudo else 'tensor'} of rank {what.rank} "
                "is not predicted "
                "directly; declare it as a gradient (gradient_of=…, wrt=…) of a quantity of lower rank"
            )
        self.pairings = _pairings(what.rank, what.symmetry)

    def make(self, channels: Mapping[str, int]) -> None:
        width, self.terms = channels["0e"], channels["1o"]
        self.net = mlp([width, width, len(self.pairings) * self.terms])
        self.mix = nn.ModuleList(
            nn.ModuleList(
                linear(self.terms, self.terms, bias=False) for _ in range(self.quantity.rank - 2 * len(pairs))
            )
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
            operands = [weights[:, k], *(mix(vectors) for mix in mixes), *[eye] * len(pairs)]
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


class SpatialExtent(Head):
    """⟨R²⟩ = Σ_i (z_i + q_i) |r_i - r̄|² + a_i about the centre of the nuclear charges r̄ (Å²): electrons sit
    where nuclei are, nearly.

    q_i and a_i come from the features; for plain points (z = 0) r̄ is the mean of the positions.
    """

    rank, kind = 0, "value"

    def __init__(self, item: str | Quantity = "r2"):
        super().__init__(item, pool="sum")
        self.options = {}

    def make(self, channels):
        self.net = mlp([channels["0e"], channels["0e"], 2])

    def forward(self, graph, features):
        weight = graph.z.to(graph.pos.dtype)
        plain = segment_sum(weight, graph.batch, graph.num_graphs) == 0
        weight = torch.where(plain[graph.batch], 1.0, weight)
        centre = segment_sum(weight[:, None] * graph.pos, graph.batch, graph.num_graphs)
        centre = centre / segment_sum(weight, graph.batch, graph.num_graphs)[:, None]
        extra, own = self.net(features.scalars).unbind(1)
        square = (graph.pos - centre[graph.batch]).square().sum(1)
        return segment_sum((graph.z + extra) * square + own, graph.batch, graph.num_graphs)


class Classes(Head):
    """Scores (logits) of classes per node or graph: (N, K) or (G, K). A softmax of them gives probabilities.

    For graphs a perceptron of each node is pooled, and a linear map of the pool gives the scores.
    """

    rank, kind = 0, "classes"

    def make(self, channels):
        width = channels["0e"]
        self.net = mlp([width, width, width], activate_last=True)
        self.score = linear(width, len(self.quantity.classes), bias=True)

    def forward(self, graph, features):
        return self.score(self.pool(self.net(features.scalars), graph, features))


class Position(Head):
    """Displaced positions x_i + Σ_c φ_c(h_i) v_ic + φ_0(h_i) u_i, as in dynamics: where each node will be
    (Å); u_i is its velocity, if given.

    Per graph, one point: the mean of such points (or another pool). It moves along when the structure is
    shifted.
    """

    rank, kind = 1, "point"
    needs = ("0e", "1o")

    def make(self, channels):
        # Before training, things stay about where they are.
        self.net = mlp([channels["0e"], channels["0e"], channels["1o"] + 1], last_gain=0.1)
        if self.pooling == "sum" and self.quantity.per == "graph":
            raise ModelError(
                f"Position({self.quantity.name}): a sum of points is no point; choose pool='mean' or "
                "'attention'"
            )

    def forward(self, graph, features):
        weights = self.net(features.scalars)
        step = torch.einsum("nc,ncd->nd", weights[:, 1:], features.blocks["1o"]) * self.scale
        if graph.vel is not None:
            step = step + weights[:, :1] * graph.vel.to(step.dtype)
        return self.pool(graph.pos + step, graph, features)


HEADS: dict[str, type[Head]] = {
    kind.__name__: kind
    for kind in (Scalar, Vector, Dipole, DipoleMagnitude, SpatialExtent, Tensor2, TensorN, Classes, Position)
}


def default_head(item: Quantity) -> Head:
    """The head that fits the declaration of a quantity.

    Parameters
    ----------
    item : Quantity
        Classes get `Classes`, points `Position`, extensive vectors of a graph in e Å `Dipole`; the known "mu"
        and "r2" get the heads of their equations; others by rank `Scalar`, `Vector`, `Tensor2` or `TensorN`.

    Returns
    -------
    Head
        A new head.

    Raises
    ------
    ModelError
        If no head predicts tensors of this rank.
    """
    if item.classes:
        return Classes(item)
    if item.point:
        return Position(item)
    if item.rank == 1 and item.per == "graph" and item.extensive and item.unit == "e Å" and not item.pseudo:
        return Dipole(item)
    if item == KNOWN["mu"]:
        return DipoleMagnitude(item)
    if item == KNOWN["r2"]:
        return SpatialExtent(item)
    kinds = (Scalar, Vector, Tensor2)
    return kinds[item.rank](item) if item.rank < 3 else TensorN(item)


def head_from(hparams: Mapping[str, Any], heads: Mapping[str, type[Head]] | None = None) -> Head:
    """A head from its `hparams`.

    Parameters
    ----------
    hparams : mapping
        As `Head.hparams` gives it.
    heads : mapping of str to type, optional
        Classes that are not the package's, by name.

    Raises
    ------
    ModelError
        If the class is neither in `HEADS` nor in `heads`, or `heads` replaces a class of the package.
    ConfigError
        For options that the class does not have.
    """
    table = with_own(HEADS, heads, base=Head, argument="heads")
    kind = find(hparams.get("head", "none"), table, what="head", argument="heads")
    options = hparams.get("options", {})
    check_call(kind, options, where=kind.__name__, leave_out=("item",))
    return kind(Quantity(**hparams["quantity"]), **options)
