"""Where structures point to: a frame of each that turns with it, which structures are alike, and whether poses follow from shapes."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.descriptors import Described
from molequi.data_symmetry.scores import FOLDS, cross_fitted

CLUSTER = 24  # structures whose poses are exchanged; fewer where there are few, for many different exchanges
ROUNDS = 3  # of aligning to the mean shape
FOLLOWS, ALONG = 0.2, 0.5
FIRST = 6  # nodes that a convention on poses may begin with


def frames(
    data: Dataset, described: Described, *, proper: bool
) -> Iterator[tuple[str, Float[Tensor, "G 3 3"], list[Int[Tensor, "c"]]]]:
    """(what the frame is, g_i with x_i = g_i x̃_i, groups whose frames can be compared) for each kind of frame that these structures have.

    proper: without reflections, for what only rotations are asked of.
    """
    everything = torch.arange(len(data))
    if any(g.pbc is not None for g in data):
        cells = torch.stack(
            [torch.eye(3, dtype=torch.float64) if g.cell is None else g.cell[0] for g in data]
        )
        yield "the cell", _handed(_schmidt(cells.mT), proper), [everything]
        return
    own = described.own
    weight = 1.0 + torch.cat([g.z for g in data])
    third = described.sum(own[:, 0].square().sum(1, keepdim=True) * own[:, 0] * weight[:, None])
    principal = _principal(
        described.sum(weight[:, None, None] * own[:, 0, :, None] * own[:, 0, None, :]), third
    )
    yield "principal axes", _handed(principal, proper), [everything]
    if own.shape[1] > 1:
        v = own[:, 1]  # weighted, since momenta often add up to zero
        moments = [
            described.sum(v * own[:, 0].square().sum(1, keepdim=True)),
            described.sum(v * v.square().sum(1, keepdim=True)),
            third,
        ]
        yield "its vectors", _handed(_schmidt(torch.stack(moments, 2)), proper), [everything]
    kinds: dict[tuple, list[int]] = {}
    for k, graph in enumerate(data):
        kinds.setdefault(tuple(graph.z.tolist()), []).append(k)
    alike = [torch.tensor(members) for members in kinds.values() if len(members) >= CLUSTER]
    if sum(map(len, alike)) > len(data) / 2:
        aligned = principal.clone()
        for members in alike:
            shapes = torch.stack([data.graphs[k].pos - data.graphs[k].pos.mean(0) for k in members.tolist()])
            aligned[members] = _aligned(shapes, principal[members], proper)
        yield "alignment to the mean shape", _handed(aligned, proper), alike


def looks(described: Described) -> Float[Tensor, "G k"]:
    """Invariants of whole structures, by which they are alike."""
    return described.sum(described.probes[0, 1][..., 0])


def told_by_shape(data: Dataset, described: Described, turns: Float[Tensor, "G 3 3"]) -> bool:
    """Whether poses g_i plainly follow from the shapes x̃_i that are seen from these frames, so that exchanging poses is no null.

    They do if a linear fit to what is seen of x̃_i tells more than FOLLOWS of how g_i varies, held out, as with axes through certain atoms;
    or if more than ALONG of the frames' axes, as lines, lie along directions of the lab: then it is the sign that depends on the shape.
    """
    first = turns.new_zeros(len(data), FIRST, 3)
    for k, graph in enumerate(data):
        first[k, : graph.num_nodes] = (graph.pos - graph.pos.mean(0))[:FIRST]
    seen = torch.einsum(
        "gnm,gkn->gkm", turns, torch.cat([described.sum(described.probes[1, -1]), first], 1)
    ).flatten(1)[:, :, None]
    pose = (turns - turns.mean(0)).flatten(1)
    fold = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)) % FOLDS
    left = torch.cat([cross_fitted(seen, pose[:, k : k + 1], fold) for k in range(pose.shape[1])], 1)
    lines = torch.einsum("gai,gbi->giab", turns, turns) - torch.eye(3, dtype=torch.float64) / 3
    return bool(
        left.square().sum() < (1 - FOLLOWS) * pose.square().sum()
        or lines.mean(0).square().sum() > ALONG * lines.square().sum((1, 2, 3)).mean()
    )


def clusters(looks: Float[Tensor, "G k"], groups: list[Int[Tensor, "c"]]) -> list[Int[Tensor, "c"]]:
    """Groups halved along the direction in which their invariants vary most, until they are small enough."""
    looks = torch.asinh(looks / looks.square().mean(0).sqrt().clamp(min=1e-300))
    looks = looks / looks.std(0).clamp(min=1e-9)
    size = min(CLUSTER, max(6, len(looks) // 12))
    left, found = list(groups), []
    while left:
        members = left.pop()
        if len(members) <= size:
            found.append(members)
            continue
        here = looks[members] - looks[members].mean(0)
        direction = torch.linalg.eigh(here.T @ here).eigenvectors[:, -1]
        direction = direction * direction[direction.abs().argmax()].sign()
        order = members[(here @ direction).argsort(stable=True)]
        left += [order[: len(order) // 2], order[len(order) // 2 :]]
    return found


def _schmidt(columns: Float[Tensor, "G 3 3"]) -> Float[Tensor, "G 3 3"]:
    """Columns made orthonormal one after the other."""
    q, r = torch.linalg.qr(columns)
    sign = torch.diagonal(r, dim1=1, dim2=2).sign()
    return q * torch.where(sign == 0, 1.0, sign)[:, None]


def _principal(covariance: Float[Tensor, "G 3 3"], third: Float[Tensor, "G 3"]) -> Float[Tensor, "G 3 3"]:
    """Principal axes, each to the side where the third moment is."""
    axes = torch.linalg.eigh(covariance).eigenvectors
    sign = torch.einsum("gda,gd->ga", axes, third).sign()
    return axes * torch.where(sign == 0, 1.0, sign)[:, None]


def _aligned(
    shapes: Float[Tensor, "c N 3"], start: Float[Tensor, "c 3 3"], proper: bool
) -> Float[Tensor, "c 3 3"]:
    """The turns from the mean shape to each structure with the least squared distance (Kabsch 1976), and the mean shape after these."""
    mean = shapes[0] @ start[0]
    for _ in range(ROUNDS):
        u, _, vh = torch.linalg.svd(torch.einsum("cni,nj->cij", shapes, mean))
        if proper:
            u[:, :, -1] = u[:, :, -1] * torch.linalg.det(u @ vh).sign()[:, None]
        turns = u @ vh
        mean = torch.einsum("cni,cij->nj", shapes, turns) / len(shapes)
    return turns


def _handed(turns: Float[Tensor, "G 3 3"], proper: bool) -> Float[Tensor, "G 3 3"]:
    if not proper:
        return turns
    turns = turns.clone()
    turns[:, :, 2] = turns[:, :, 2] * torch.linalg.det(turns).sign()[:, None]
    return turns
