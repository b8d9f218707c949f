"""Structures with a point group other than C1, and whether their labels have the same symmetry."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.point_groups import SymmetryOperation, symmetry_operations
from molequi.data_symmetry.randomization import wigner_matrices
from molequi.data_symmetry.report import HypothesisTest
from molequi.data_symmetry.residuals import Residual
from molequi.graph import Graph

# Largest deviation of a node, relative to the size of the structure. Approximately symmetric structures, as
# in finite differences, do not count as symmetric.
TOLERANCE = 1e-5
MIN_DEVIATION = 0.05  # deviation of a label from its symmetric part, relative to the RMS of the labels
NOISE_FACTOR = 5.0  # times the residuals of the components that the symmetry allows
ROUND_OFF = 1e-7  # of a label, in its unit (e, eV, Å) and for each electron of the structure
MIN_SHARE = 0.05  # of the symmetric structures, and at least two of them
MAX_NODES = 64  # larger structures are not searched
MAX_SEARCHED = 300


def find_symmetric_structures(data: Dataset) -> tuple[dict[int, list[SymmetryOperation]], int]:
    """Symmetry operations of structures that have any besides the identity, and the number searched."""
    most = min(len(data), MAX_SEARCHED)
    searched = [
        k
        for k in ((i * len(data)) // most for i in range(most))
        if data.graphs[k].pbc is None and data.graphs[k].num_nodes <= MAX_NODES
    ]
    found = {
        k: symmetry_operations(data.graphs[k], max(TOLERANCE * _size(data.graphs[k]), 1e-12))
        for k in searched
    }
    return {k: group for k, group in found.items() if len(group) > 1}, len(searched)


def spontaneous_breaking(
    data: Dataset,
    parts: Sequence[Residual],
    found: dict[int, list[SymmetryOperation]],
    searched: int,
) -> HypothesisTest:
    """Whether symmetric structures have labels of lower symmetry.

    For every h with h x = x, an equivariant function gives y = f(x) = f(h x) = h y. The part of y outside of
    the mean of h y over the point group cannot be predicted by an equivariant model, whatever the orientation
    of the structure (Xie and Smidt 2024, arXiv:2402.02681). It counts if it is larger than round-off, than
    MIN_DEVIATION, and than NOISE_FACTOR times the noise. The noise is estimated from the residuals of the
    components that the group allows; their number is the trace of the mean of h. This is no randomization
    test and has no p-value.

    Parameters
    ----------
    data : Dataset
        Labelled structures.
    parts : sequence of Residual
        Residuals of all irreps of one quantity.
    found, searched
        Result of `find_symmetric_structures`.

    Returns
    -------
    HypothesisTest
        The row "stabilizers" of the report.
    """
    quantity = parts[0].quantity.name
    if not found:
        reason = (
            f"no symmetric structure found ({searched} of {len(data)} were searched)"
            if searched
            else f"not tested for periodic structures, nor for structures of more than {MAX_NODES} nodes"
        )
        return HypothesisTest(name="stabilizers", quantity=quantity, reason=reason)
    deviations: dict[int, float] = {}
    tested: set[int] = set()
    for part in parts:
        size = float(part.label.square().mean().sqrt())
        noise, asymmetric = _asymmetric_parts(data, part, found)
        for k, change, trace in asymmetric:
            tested.add(k)
            rms = float(change.square().mean().sqrt())
            per_component = (float(change.square().sum()) / max(change.numel() - trace, 1e-9)) ** 0.5
            if (
                rms > MIN_DEVIATION * size
                and rms > ROUND_OFF * _electron_units(data.graphs[k])
                and per_component > NOISE_FACTOR * noise
            ):
                deviations[k] = max(deviations.get(k, 0.0), rms / size)
    text = f"{len(deviations)} of {len(tested)} symmetric structures"
    if deviations:
        largest = max(deviations, key=lambda k: deviations[k])
        text += f"; by {100 * deviations[largest]:.2g} % of the RMS at {data.origins[largest]}"
    broken = len(deviations) >= max(2, MIN_SHARE * len(tested))
    return HypothesisTest(name="stabilizers", quantity=quantity, broken=broken, reason=text)


def _asymmetric_parts(
    data: Dataset, part: Residual, found: dict[int, list[SymmetryOperation]]
) -> tuple[float, list[tuple[int, Tensor, float]]]:
    """Noise of a component, and (structure, asymmetric part of the label, number of allowed components)."""
    per_node = part.quantity.per == "node"
    left, allowed = float(part.residual.square().sum()), float(part.residual.numel())
    asymmetric = []
    for k, group in found.items():
        rows = (part.structure == k).nonzero().flatten()
        if len(rows) != (data.graphs[k].num_nodes if per_node else 1):
            continue  # some of its labels are missing
        symmetric, trace = _group_mean(part.label[rows], part, group)
        residual, _ = _group_mean(part.residual[rows], part, group)
        left = left - float((part.residual[rows] - residual).square().sum())
        allowed = allowed - (residual.numel() - trace)
        asymmetric.append((k, part.label[rows] - symmetric, trace))
    noise = (max(left, 0.0) / allowed) ** 0.5 if allowed > 0.5 else 0.0
    return noise, asymmetric


def _group_mean(
    value: Float[Tensor, "U m"], part: Residual, group: Sequence[SymmetryOperation]
) -> tuple[Tensor, float]:
    """Mean of h y over the group, where h y = D(R)ᵀ y_π(i); and the trace of that map."""
    turns = wigner_matrices(part.irrep, torch.stack([turn for turn, _ in group]))
    orders = (
        torch.stack([order for _, order in group])
        if part.quantity.per == "node"
        else torch.zeros(len(group), 1, dtype=torch.long)
    )
    fixed = (orders == torch.arange(orders.shape[1])).sum(1)
    trace = float((fixed * torch.diagonal(turns, dim1=1, dim2=2).sum(1)).mean())
    return torch.einsum("hmn,hum->un", turns, value[orders]) / len(group), trace


def _size(graph: Graph) -> float:
    return float((graph.pos - graph.pos.mean(0)).square().sum(1).mean().sqrt())


def _electron_units(graph: Graph) -> float:
    return float((1 + graph.z).sum()) * max(_size(graph), 1.0)
