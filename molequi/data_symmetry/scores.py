"""What an equivariant fit leaves over, and its products with what a field could act on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.descriptors import L_MAX, Described, Irrep, coupled
from molequi.data_symmetry.nulls import Block, block
from molequi.ops import irreps as ir
from molequi.quantities import Quantity

PENALTIES = tuple(10.0**-k for k in range(0, 11, 2))
FOLDS = 5


@dataclass(frozen=True)
class Residual:
    """Of one irrep of a quantity: label, and label less the cross-fitted equivariant fit, of U units (nodes or structures).

    owner: structure of each unit.
    """

    quantity: Quantity
    irrep: Irrep
    label: Float[Tensor, "U m"]
    rest: Float[Tensor, "U m"]
    owner: Int[Tensor, "U"]
    units: Int[Tensor, "U"]

    @property
    def name(self) -> str:
        return (
            f"{self.quantity.name} {ir.name(*self.irrep)}" if self.quantity.rank == 2 else self.quantity.name
        )

    def amounts(self, described: Described) -> dict[str, Float[Tensor, "G t m"]]:
        """What of it a structure has in all: its sum, and its sum with the invariants of nodes; for vectors, its work along theirs too."""
        node = self.quantity.per == "node"
        probes = {
            p: v[self.units] if node else described.sum(v)[self.units] for p, v in described.probes.items()
        }
        out = {self.name: _added(probes[0, 1] * self.rest[:, None], self.owner, described.structures)}
        if self.irrep == (1, -1):
            work = (probes[1, -1] * self.rest[:, None]).sum(2, keepdim=True)
            out[f"{self.name} · 1o"] = _added(work, self.owner, described.structures)
        return out


def labels_of(data: Dataset, q: Quantity) -> list[tuple[Irrep, Float[Tensor, "U m"]]]:
    """Labels by irreps; a position as a step from where the node is, a class as how often it is one."""
    value = data.values(q.name).to(torch.float64)
    if q.point:
        value = value - (
            torch.cat([g.pos for g in data])
            if q.per == "node"
            else torch.stack([g.pos.mean(0) for g in data])
        )
    sign = -1 if q.pseudo else 1
    if q.classes:
        known = ~torch.isnan(value)
        marks = torch.nn.functional.one_hot(value.nan_to_num().long(), len(q.classes)).to(torch.float64)
        return [
            ((0, 1), torch.where(known, marks[:, k], torch.nan)[:, None]) for k in range(len(q.classes) - 1)
        ]
    if q.rank == 0:
        return [((0, sign), value[:, None])]
    if q.rank == 1:
        return [((1, -sign), value)]
    parts = torch.einsum("kij,uij->uk", ir.symmetric_basis(), (value + value.mT) / 2)
    return [((0, sign), parts[:, :1]), ((2, sign), parts[:, 1:])]


def residuals(data: Dataset, described: Described, q: Quantity, generator: torch.Generator) -> list[Residual]:
    """What the equivariant fit leaves of each irrep of q; of known labels alone."""
    out = []
    owner = described.batch if q.per == "node" else torch.arange(described.structures)
    fold = torch.randperm(described.structures, generator=generator) % FOLDS
    for irrep, label in labels_of(data, q):
        units = (~torch.isnan(label).any(1)).nonzero().flatten()
        known = label[units]
        features = described.strict(irrep)
        if q.per == "graph":
            features = described.sum(features)
            if not q.extensive:
                features = (
                    features
                    / described.sum(torch.ones_like(described.batch, dtype=torch.float64))[:, None, None]
                )
            if irrep[0] == 0 and described.whole.shape[1]:
                features = torch.cat([features, described.whole[:, :, None]], 1)
        elif irrep[0] == 0 and described.whole.shape[1]:
            features = torch.cat([features, described.whole[owner][:, :, None]], 1)
        offset = known.mean(0) if irrep == (0, 1) else torch.zeros(known.shape[1], dtype=torch.float64)
        rest = cross_fitted(features[units], known - offset, fold[owner[units]])
        out.append(Residual(q, irrep, known - offset, rest, owner[units], units))
    return out


def cross_fitted(
    features: Float[Tensor, "U K m"], label: Float[Tensor, "U m"], fold: Int[Tensor, "U"]
) -> Float[Tensor, "U m"]:
    """Label less a ridge regression on the other folds: one coefficient a channel, the penalty with the least error of all folds.

    Nothing in it depends on the pose: turned structures leave turned residuals.
    """
    size = features.square().mean((0, 2)).sqrt()
    features = features[:, size > 1e-12 * float(size.max() if len(size) else 0.0)]
    if not features.shape[1] or not float(label.abs().max()):
        return label
    features = features / features.square().mean((0, 2)).sqrt()[:, None]
    K = features.shape[1]
    grams, moments = [], []
    for f in range(FOLDS):
        rows = features[fold == f].transpose(1, 2).reshape(-1, K)
        grams.append(rows.T @ rows)
        moments.append(rows.T @ label[fold == f].reshape(-1))
    gram, moment = sum(grams), sum(moments)
    rest = label.new_zeros(len(PENALTIES), *label.shape)
    for f in range(FOLDS):
        values, vectors = torch.linalg.eigh(gram - grams[f])
        inner = vectors.T @ (moment - moments[f])
        weights = torch.stack([vectors @ (inner / (values.clamp(min=0) + p * len(label))) for p in PENALTIES])
        rest[:, fold == f] = label[fold == f] - torch.einsum("ukm,pk->pum", features[fold == f], weights)
    return rest[int(rest.square().sum((1, 2)).argmin())]


def score_blocks(residual: Residual, described: Described) -> list[Block]:
    """All scores of one residual that are not invariant: its products with probes of each irrep, and its own directions."""
    q, (l, parity), owner = residual.quantity, residual.irrep, residual.owner
    rest = residual.rest / residual.rest.square().mean().sqrt().clamp(min=1e-300)
    blocks = []
    for (pl, pp), probe in described.probes.items():
        probe = probe[residual.units] if q.per == "node" else described.sum(probe)[residual.units]
        for out in range(abs(l - pl), min(l + pl, L_MAX) + 1):
            irrep = (out, parity * pp)
            natural = pp == (-1) ** pl and (
                irrep[1] * (-1) ** out == parity * (-1) ** l or (pl, out) == (1, 1)
            )
            if irrep == (0, 1) or not (natural or irrep == (0, -1)):
                continue  # invariant; or of a kind that no common field has
            scores = coupled(probe, rest[:, None], out)
            blocks.append(
                block(
                    f"{residual.name} × {ir.name(pl, pp)} → {ir.name(*irrep)}",
                    irrep,
                    _added(scores, owner, described.structures),
                )
            )
    if l == 1 and parity == -1:
        length = rest.norm(dim=1, keepdim=True)
        # a few large residuals tell of collisions, many small ones of a field
        weights = {1: length / (length + length.median()), 2: length.square(), 4: length.square()}
        for degree, y in enumerate(ir.spherical_harmonics(L_MAX, rest / length.clamp(min=1e-300))):
            if degree in weights:
                blocks.append(
                    block(
                        f"directions of {residual.name} → {ir.name(degree, (-1) ** degree)}",
                        (degree, (-1) ** degree),
                        _added((weights[degree] * y)[:, None], owner, described.structures),
                    )
                )
    return [b for b in blocks if b is not None]


def pose_blocks(described: Described) -> list[Block]:
    """Where structures point to, each with the same weight: their probes, cut off at a common size."""
    blocks = []
    for (l, parity), probe in described.probes.items():
        if (l, parity) == (0, 1) or (l > 0 and parity != (-1) ** l):
            continue
        whole = described.sum(probe)
        size = whole.norm(dim=2, keepdim=True)
        middle = size.median(0).values
        blocks.append(
            block(f"poses {ir.name(l, parity)}", (l, parity), whole / (size + middle).clamp(min=1e-300))
        )
    return [b for b in blocks if b is not None]


def _added(
    scores: Float[Tensor, "U k m"], owner: Int[Tensor, "U"], structures: int
) -> Float[Tensor, "G k m"]:
    return scores.new_zeros(structures, *scores.shape[1:]).index_add(0, owner, scores)


def gain(
    residual: Residual,
    described: Described,
    found: Sequence[str],
    unit: Int[Tensor, "G"],
    generator: torch.Generator,
) -> float:
    """Root of how much less held-out error a fit has that knows the lab, in units of the rms of the label: the size of the break.

    It regresses the residual on the probes of those blocks `found`, times constant fields; cross-fitted, structures of one `unit` in one
    fold. 0 where nothing is gained.
    """
    q, (l, parity) = residual.quantity, residual.irrep
    columns = []
    for (pl, pp), probe in described.probes.items():
        probe = probe[residual.units] if q.per == "node" else described.sum(probe)[residual.units]
        for out in range(abs(l - pl), min(l + pl, L_MAX) + 1):
            if f"{residual.name} × {ir.name(pl, pp)} → {ir.name(out, parity * pp)}" in found:
                columns.append(
                    torch.einsum("uci,iom->ucom", probe, ir.clebsch_gordan(pl, out, l)).flatten(1, 2)
                )
    return _gained(residual, torch.cat(columns, 1), unit, generator) if columns else 0.0


def gain_of_place(
    residual: Residual,
    described: Described,
    place: Float[Tensor, "G 3"],
    unit: Int[Tensor, "G"],
    generator: torch.Generator,
) -> float:
    """The same of a fit that knows where the structure is: its place times constants and invariants; squared too for scalars."""
    invariants = described.probes[0, 1][..., 0]
    invariants = (invariants if residual.quantity.per == "node" else described.sum(invariants))[
        residual.units
    ]
    where = place[residual.owner]
    m = residual.irrep[0] * 2 + 1
    if m == 1:
        i, j = torch.triu_indices(3, 3)
        where = torch.cat([where, where[:, i] * where[:, j]], 1)
    columns = torch.einsum("uc,up,mn->ucpmn", invariants, where, torch.eye(m, dtype=torch.float64)).flatten(
        1, 3
    )
    return _gained(residual, columns, unit, generator)


def _gained(
    residual: Residual, columns: Float[Tensor, "U K m"], unit: Int[Tensor, "G"], generator: torch.Generator
) -> float:
    l = residual.irrep[0]
    fold = torch.randperm(int(unit.max()) + 1, generator=generator)[unit[residual.owner]] % FOLDS
    left = cross_fitted(columns, residual.rest, fold)
    less = float(residual.rest.square().mean() - left.square().mean())
    spread = residual.label - residual.label.mean(0) if l == 0 else residual.label
    return max(less, 0.0) ** 0.5 / float(spread.square().mean().sqrt().clamp(min=1e-300))
