"""Structures that a rotation or reflection leaves as they are, and whether it leaves their labels as they are."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.nulls import wigners
from molequi.data_symmetry.point_groups import Symmetry, elements
from molequi.data_symmetry.report import Check
from molequi.data_symmetry.scores import Residual
from molequi.graph import Graph

EXACT = 1e-5  # of the size of a structure, by which a node may miss: what is nearly symmetric, as in finite differences, is not
DIFFERENT = 0.05  # of the rms of a label that are of less symmetry than the structure
NOISE = 5.0  # times what the equivariant fit leaves of components that the symmetry allows
ROUND_OFF = 1e-7  # of a term of one (e, eV, Å) for each electron
SHARE = 0.05  # of the symmetric structures, and two at least
NODES = 64  # larger structures are not searched
LOOKED_AT = 300


def symmetric(data: Dataset) -> tuple[dict[int, list[Symmetry]], int]:
    """Symmetries of those structures that have any besides the identity, by number; and how many were searched, at most LOOKED_AT."""
    most = min(len(data), LOOKED_AT)
    searched = [
        k
        for k in ((i * len(data)) // most for i in range(most))
        if data.graphs[k].pbc is None and data.graphs[k].num_nodes <= NODES
    ]
    found = {k: elements(data.graphs[k], max(EXACT * _size(data.graphs[k]), 1e-12)) for k in searched}
    return {k: group for k, group in found.items() if len(group) > 1}, len(searched)


def asymmetric(
    data: Dataset, parts: Sequence[Residual], found: dict[int, list[Symmetry]], searched: int
) -> Check:
    """Whether structures with a symmetry have labels without it. parts: of one quantity; found, searched: see `symmetric`.

    An equivariant function gives y = f(x) = f(hx) = h y for every h with hx = x. What of y is not in the mean of h y over the group is a
    break that no equivariant model can follow, whichever pose the structure is in (Xie and Smidt 2024, arXiv 2402.02681). It counts if it
    is more than round-off, than DIFFERENT, and than the noise: NOISE times what the equivariant fit leaves of components that the group
    allows, of which there are as many as the trace of the mean of h. That is no random draw, and has no p.
    """
    q = parts[0].quantity
    if not found:
        reason = (
            f"none of {searched} structures has a symmetry of its own"
            if searched
            else f"not searched in periodic structures, nor in any of more than {NODES} nodes"
        )
        return Check(name="stabilizers", quantity=q.name, reason=reason)
    worst: dict[int, float] = {}
    many: set[int] = set()
    for part in parts:
        size = float(part.label.square().mean().sqrt())
        node = q.per == "node"
        left, allowed, moved = float(part.rest.square().sum()), float(part.rest.numel()), []
        for k, group in found.items():
            rows = (part.owner == k).nonzero().flatten()
            if len(rows) != (data.graphs[k].num_nodes if node else 1):
                continue  # not all of its labels are known
            kept, trace = _mean(part.label[rows], part, group, node)
            rest, _ = _mean(part.rest[rows], part, group, node)
            left, allowed = (
                left - float((part.rest[rows] - rest).square().sum()),
                allowed - (rest.numel() - trace),
            )
            moved.append((k, part.label[rows] - kept, trace))
        noise = (max(left, 0.0) / allowed) ** 0.5 if allowed > 0.5 else 0.0
        for k, change, trace in moved:
            many.add(k)
            rms = float(change.square().mean().sqrt())
            each = (float(change.square().sum()) / max(change.numel() - trace, 1e-9)) ** 0.5
            if rms > DIFFERENT * size and rms > ROUND_OFF * _terms(data.graphs[k]) and each > NOISE * noise:
                worst[k] = max(worst.get(k, 0.0), rms / size)
    text = f"{len(worst)} of {len(many)} symmetric structures"
    if worst:
        most = max(worst, key=worst.get)
        text += f"; by {100 * worst[most]:.2g} % of the rms at {data.origins[most]}"
    return Check(
        name="stabilizers", quantity=q.name, broken=len(worst) >= max(2, SHARE * len(many)), reason=text
    )


def _mean(
    value: Float[Tensor, "U m"], part: Residual, group: Sequence[Symmetry], node: bool
) -> tuple[Tensor, float]:
    """Mean of h y over the group: D(R)ᵀ y_π(i); and the trace of that map."""
    turns = wigners(part.irrep, torch.stack([turn for turn, _ in group]))
    orders = (
        torch.stack([order for _, order in group]) if node else torch.zeros(len(group), 1, dtype=torch.long)
    )
    fixed = (orders == torch.arange(orders.shape[1])).sum(1)
    trace = float((fixed * torch.diagonal(turns, dim1=1, dim2=2).sum(1)).mean())
    return torch.einsum("hmn,hum->un", turns, value[orders]) / len(group), trace


def _size(graph: Graph) -> float:
    return float((graph.pos - graph.pos.mean(0)).square().sum(1).mean().sqrt())


def _terms(graph: Graph) -> float:
    return float((1 + graph.z).sum()) * max(_size(graph), 1.0)
