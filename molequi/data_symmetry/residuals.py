"""Residuals of an equivariant regression, and their products with descriptors: the scores of the test."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.descriptors import L_MAX, Descriptors, Irrep, tensor_product
from molequi.data_symmetry.randomization import ScoreBlock, whitened_block
from molequi.ops import irreps as ir
from molequi.quantities import Quantity

RIDGE_PENALTIES = tuple(10.0**-k for k in range(0, 11, 2))
FOLDS = 5


@dataclass(frozen=True)
class Residual:
    """Labels of one irrep of a quantity, and what the cross-fitted equivariant regression does not explain.

    Attributes
    ----------
    quantity : Quantity
        The quantity.
    irrep : tuple of int
        Degree and parity.
    label : Tensor, shape (U, m)
        Known labels of U nodes or structures.
    residual : Tensor, shape (U, m)
        Label minus prediction.
    structure : int Tensor, shape (U,)
        Index of the structure of each row.
    rows : int Tensor, shape (U,)
        Index of the node, or of the structure, of each row.
    """

    quantity: Quantity
    irrep: Irrep
    label: Float[Tensor, "U m"]
    residual: Float[Tensor, "U m"]
    structure: Int[Tensor, "U"]
    rows: Int[Tensor, "U"]

    @property
    def name(self) -> str:
        """Name of the quantity, with the irrep for tensors of rank 2."""
        name = self.quantity.name
        return f"{name} {ir.name(*self.irrep)}" if self.quantity.rank == 2 else name

    def select(self, values: Float[Tensor, "N ..."], descriptors: Descriptors) -> Float[Tensor, "U ..."]:
        """Node values at the rows of this residual, summed over structures for quantities of structures."""
        return (values if self.quantity.per == "node" else descriptors.sum_over_nodes(values))[self.rows]

    def totals(self, descriptors: Descriptors) -> dict[str, Float[Tensor, "G t m"]]:
        """Sums of the residual over each structure, weighted with invariants.

        For vectors also their virial.
        """
        features = {p: self.select(v, descriptors) for p, v in descriptors.score_features.items()}
        weighted = features[0, 1] * self.residual[:, None]
        out = {self.name: _sum_over_structures(weighted, self.structure, descriptors.n_structures)}
        if self.irrep == (1, -1):
            virial = (features[1, -1] * self.residual[:, None]).sum(2, keepdim=True)
            summed = _sum_over_structures(virial, self.structure, descriptors.n_structures)
            out[f"{self.name} · 1o"] = summed
        return out


def labels_by_irrep(data: Dataset, q: Quantity) -> list[tuple[Irrep, Float[Tensor, "U m"]]]:
    """Labels of a quantity split into irreps.

    Points become displacements from the node or the center; a class becomes one indicator for each class but
    the last.
    """
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
        one_hot = torch.nn.functional.one_hot(value.nan_to_num().long(), len(q.classes)).to(torch.float64)
        columns = (torch.where(known, one_hot[:, k], torch.nan) for k in range(len(q.classes) - 1))
        return [((0, 1), column[:, None]) for column in columns]
    if q.rank == 0:
        return [((0, sign), value[:, None])]
    if q.rank == 1:
        return [((1, -sign), value)]
    parts = torch.einsum("kij,uij->uk", ir.symmetric_basis(), (value + value.mT) / 2)
    return [((0, sign), parts[:, :1]), ((2, sign), parts[:, 1:])]


def equivariant_residuals(
    data: Dataset, descriptors: Descriptors, q: Quantity, generator: torch.Generator
) -> list[Residual]:
    """Residuals of the cross-fitted equivariant regression for each irrep of q, for known labels only."""
    out = []
    every = torch.arange(descriptors.n_structures)
    structure = descriptors.batch if q.per == "node" else every
    fold = torch.randperm(descriptors.n_structures, generator=generator) % FOLDS
    for irrep, label in labels_by_irrep(data, q):
        rows = (~torch.isnan(label).any(1)).nonzero().flatten()
        known = label[rows]
        features = descriptors.equivariant_features(irrep)
        if q.per == "graph":
            features = descriptors.sum_over_nodes(features)
            if not q.extensive:
                ones = torch.ones_like(descriptors.batch, dtype=torch.float64)
                features = features / descriptors.sum_over_nodes(ones)[:, None, None]
        if irrep[0] == 0 and descriptors.global_scalars.shape[1]:
            scalars = (
                descriptors.global_scalars if q.per == "graph" else descriptors.global_scalars[structure]
            )
            features = torch.cat([features, scalars[:, :, None]], 1)
        offset = known.mean(0) if irrep == (0, 1) else torch.zeros(known.shape[1], dtype=torch.float64)
        residual = cross_fit_residual(features[rows], known - offset, fold[structure[rows]])
        out.append(Residual(q, irrep, known - offset, residual, structure[rows], rows))
    return out


def cross_fit_residual(
    features: Float[Tensor, "U K m"], label: Float[Tensor, "U m"], fold: Int[Tensor, "U"]
) -> Float[Tensor, "U m"]:
    """Label minus the prediction of a ridge regression that is fitted to the other folds.

    There is one coefficient for each channel. Of RIDGE_PENALTIES the one with the smallest error over all
    folds is used. Nothing depends on the orientation: rotated structures have rotated residuals.
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
    residual = label.new_zeros(len(RIDGE_PENALTIES), *label.shape)
    for f in range(FOLDS):
        values, vectors = torch.linalg.eigh(gram - grams[f])
        inner = vectors.T @ (moment - moments[f])
        weights = torch.stack(
            [vectors @ (inner / (values.clamp(min=0) + p * len(label))) for p in RIDGE_PENALTIES]
        )
        residual[:, fold == f] = label[fold == f] - torch.einsum("ukm,pk->pum", features[fold == f], weights)
    return residual[int(residual.square().sum((1, 2)).argmin())]


def _products(r: Residual, descriptors: Descriptors) -> Iterator[tuple[str, Irrep, Irrep, Tensor]]:
    """(name, irrep of the feature, irrep of the product, features) of all products."""
    l, parity = r.irrep
    for (feature_l, feature_parity), values in descriptors.score_features.items():
        selected = r.select(values, descriptors)
        for out in range(abs(l - feature_l), min(l + feature_l, L_MAX) + 1):
            irrep = (out, parity * feature_parity)
            name = f"{r.name} × {ir.name(feature_l, feature_parity)} → {ir.name(*irrep)}"
            yield name, (feature_l, feature_parity), irrep, selected


def label_scores(r: Residual, descriptors: Descriptors) -> list[ScoreBlock]:
    """All scores of one residual that are not invariant: products with features, and its directions."""
    l, parity = r.irrep
    residual = r.residual / r.residual.square().mean().sqrt().clamp(min=1e-300)
    count = descriptors.n_structures
    blocks = []
    for name, (fl, fp), irrep, features in _products(r, descriptors):
        true_tensor = fp == (-1) ** fl and (
            irrep[1] * (-1) ** irrep[0] == parity * (-1) ** l or (fl, irrep[0]) == (1, 1)
        )
        if irrep == (0, 1) or not (true_tensor or irrep == (0, -1)):
            continue  # an invariant, or a coupling that no common field has
        scores = tensor_product(features, residual[:, None], irrep[0])
        blocks.append(whitened_block(name, irrep, _sum_over_structures(scores, r.structure, count)))
    if l == 1 and parity == -1:
        length = residual.norm(dim=1, keepdim=True)
        # Large residuals come from collisions and get a bounded weight in degree 1; a field causes many small
        # ones.
        weights = {1: length / (length + length.median()), 2: length.square(), 4: length.square()}
        for degree, y in enumerate(ir.spherical_harmonics(L_MAX, residual / length.clamp(min=1e-300))):
            if degree in weights:
                irrep = (degree, (-1) ** degree)
                scores = _sum_over_structures((weights[degree] * y)[:, None], r.structure, count)
                blocks.append(whitened_block(f"directions of {r.name} → {ir.name(*irrep)}", irrep, scores))
    return [b for b in blocks if b is not None]


def orientation_scores(descriptors: Descriptors) -> list[ScoreBlock]:
    """Directions of structures without their labels: summed features, with bounded norms."""
    blocks = []
    for (l, parity), values in descriptors.score_features.items():
        if (l, parity) == (0, 1) or (l > 0 and parity != (-1) ** l):
            continue
        total = descriptors.sum_over_nodes(values)
        size = total.norm(dim=2, keepdim=True)
        median = size.median(0).values
        bounded = total / (size + median).clamp(min=1e-300)
        blocks.append(whitened_block(f"orientation {ir.name(l, parity)}", (l, parity), bounded))
    return [b for b in blocks if b is not None]


def _sum_over_structures(
    scores: Float[Tensor, "U k m"], structure: Int[Tensor, "U"], count: int
) -> Float[Tensor, "G k m"]:
    return scores.new_zeros(count, *scores.shape[1:]).index_add(0, structure, scores)


def effect_size(
    r: Residual,
    descriptors: Descriptors,
    names: Collection[str],
    unit: Int[Tensor, "G"],
    generator: torch.Generator,
) -> float:
    """Error that a regression with knowledge of the lab frame removes, relative to the RMS of the label.

    The residual is regressed on the features of those score blocks that are in `names`, times constant
    fields. The regression is cross-fitted, with all structures of a sampling unit in the same fold.

    Returns
    -------
    float
        √(mean squared error removed) / RMS of the label; 0 if nothing is removed.
    """
    l = r.irrep[0]
    columns = [
        torch.einsum("uci,iom->ucom", features, ir.clebsch_gordan(fl, out, l)).flatten(1, 2)
        for name, (fl, _), (out, _), features in _products(r, descriptors)
        if name in names
    ]
    return _error_removed(r, torch.cat(columns, 1), unit, generator) if columns else 0.0


def translation_effect_size(
    r: Residual,
    descriptors: Descriptors,
    position: Float[Tensor, "G 3"],
    unit: Int[Tensor, "G"],
    generator: torch.Generator,
) -> float:
    """The same for a regression that knows the position of the structure.

    Its features are the position times constants and invariants, for scalars also the squares of the
    position.
    """
    invariants = r.select(descriptors.score_features[0, 1][..., 0], descriptors)
    where = position[r.structure]
    m = r.irrep[0] * 2 + 1
    if m == 1:
        i, j = torch.triu_indices(3, 3)
        where = torch.cat([where, where[:, i] * where[:, j]], 1)
    identity = torch.eye(m, dtype=torch.float64)
    columns = torch.einsum("uc,up,mn->ucpmn", invariants, where, identity).flatten(1, 3)
    return _error_removed(r, columns, unit, generator)


def _error_removed(
    r: Residual, columns: Float[Tensor, "U K m"], unit: Int[Tensor, "G"], generator: torch.Generator
) -> float:
    l = r.irrep[0]
    fold = torch.randperm(int(unit.max()) + 1, generator=generator)[unit[r.structure]] % FOLDS
    left = cross_fit_residual(columns, r.residual, fold)
    removed = float(r.residual.square().mean() - left.square().mean())
    label = r.label - r.label.mean(0) if l == 0 else r.label
    return max(removed, 0.0) ** 0.5 / float(label.square().mean().sqrt().clamp(min=1e-300))
