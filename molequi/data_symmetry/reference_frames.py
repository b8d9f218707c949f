"""Orientations of structures: frames that rotate with each structure, and strata of similar structures."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data_symmetry.descriptors import Descriptors
from molequi.data_symmetry.residuals import FOLDS, cross_fit_residual

STRATUM_SIZE = 24  # structures whose orientations are exchanged; fewer if there are few structures
ALIGNMENT_ROUNDS = 3
EXPLAINED = 0.2  # share of the variance of the orientations that the shape may explain
ALIGNED_AXES = 0.5  # share of the axes, as undirected lines, that may follow directions of the lab
FIRST_NODES = 6  # number of nodes on which a convention for orientations may be based


def reference_frames(
    data: Dataset, descriptors: Descriptors, *, proper: bool
) -> Iterator[tuple[str, Float[Tensor, "G 3 3"], list[Int[Tensor, "c"]]]]:
    """Frames g_i of structures, x_i = g_i x̃_i, where x̃_i does not depend on the orientation.

    Parameters
    ----------
    data : Dataset
        Structures.
    descriptors : Descriptors
        Descriptors of `data`.
    proper : bool
        Whether all frames are rotations, without reflections. Tests of rotations need such frames.

    Yields
    ------
    name : str
        How the frame is defined.
    frames : Tensor, shape (G, 3, 3)
        The orthogonal matrices g_i.
    comparable : list of int Tensor
        Sets of structures whose frames are defined in the same way.
    """
    everything = torch.arange(len(data))
    if any(g.pbc is not None for g in data):
        cells = torch.stack(
            [torch.eye(3, dtype=torch.float64) if g.cell is None else g.cell[0] for g in data]
        )
        yield "the cell", _with_handedness(_gram_schmidt(cells.mT), proper), [everything]
        return
    vectors = descriptors.node_vectors
    position = vectors[:, 0]
    weight = 1.0 + torch.cat([g.z for g in data])
    radial = position.square().sum(1, keepdim=True)
    third = descriptors.sum_over_nodes(radial * position * weight[:, None])
    covariance = weight[:, None, None] * vectors[:, 0, :, None] * vectors[:, 0, None, :]
    principal = _principal_axes(descriptors.sum_over_nodes(covariance), third)
    yield "principal axes", _with_handedness(principal, proper), [everything]
    if vectors.shape[1] > 1:
        v = vectors[:, 1]  # weighted sums, because momenta often add up to zero
        moments = [
            descriptors.sum_over_nodes(v * radial),
            descriptors.sum_over_nodes(v * v.square().sum(1, keepdim=True)),
            third,
        ]
        yield "its vectors", _with_handedness(_gram_schmidt(torch.stack(moments, 2)), proper), [everything]
    same_atoms: dict[tuple, list[int]] = {}
    for k, graph in enumerate(data):
        same_atoms.setdefault(tuple(graph.z.tolist()), []).append(k)
    comparable = [torch.tensor(members) for members in same_atoms.values() if len(members) >= STRATUM_SIZE]
    if sum(map(len, comparable)) > len(data) / 2:
        aligned = principal.clone()
        for members in comparable:
            shapes = torch.stack([data.graphs[k].pos - data.graphs[k].pos.mean(0) for k in members.tolist()])
            aligned[members] = _align_to_mean(shapes, principal[members], proper)
        yield "alignment to the mean shape", _with_handedness(aligned, proper), comparable


def structure_invariants(descriptors: Descriptors) -> Float[Tensor, "G k"]:
    """Invariant descriptors of whole structures, which define how similar structures are."""
    return descriptors.sum_over_nodes(descriptors.score_features[0, 1][..., 0])


def orientation_follows_shape(
    data: Dataset, descriptors: Descriptors, frames: Float[Tensor, "G 3 3"]
) -> bool:
    """Whether orientations g_i depend on shapes x̃_i; then exchanging them is no valid null hypothesis.

    They do if a cross-fitted linear regression on x̃_i explains more than EXPLAINED of the variance of g_i,
    as for axes defined by certain atoms. They also do if more than ALIGNED_AXES of the axes of the frames, as
    undirected lines, follow directions of the lab: then the signs of the axes depend on the shape.
    """
    first = frames.new_zeros(len(data), FIRST_NODES, 3)
    for k, graph in enumerate(data):
        first[k, : graph.num_nodes] = (graph.pos - graph.pos.mean(0))[:FIRST_NODES]
    vectors = torch.cat([descriptors.sum_over_nodes(descriptors.score_features[1, -1]), first], 1)
    shape = torch.einsum("gnm,gkn->gkm", frames, vectors).flatten(1)[:, :, None]
    orientation = (frames - frames.mean(0)).flatten(1)
    fold = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)) % FOLDS
    residual = torch.cat(
        [cross_fit_residual(shape, orientation[:, k : k + 1], fold) for k in range(orientation.shape[1])], 1
    )
    lines = torch.einsum("gai,gbi->giab", frames, frames) - torch.eye(3, dtype=torch.float64) / 3
    return bool(
        residual.square().sum() < (1 - EXPLAINED) * orientation.square().sum()
        or lines.mean(0).square().sum() > ALIGNED_AXES * lines.square().sum((1, 2, 3)).mean()
    )


def strata(invariants: Float[Tensor, "G k"], sets: list[Int[Tensor, "c"]]) -> list[Int[Tensor, "c"]]:
    """Sets of similar structures.

    Each set is halved along the direction of largest variance of the invariants.
    """
    scaled = torch.asinh(invariants / invariants.square().mean(0).sqrt().clamp(min=1e-300))
    scaled = scaled / scaled.std(0).clamp(min=1e-9)
    size = min(STRATUM_SIZE, max(6, len(scaled) // 12))
    todo, found = list(sets), []
    while todo:
        members = todo.pop()
        if len(members) <= size:
            found.append(members)
            continue
        deviation = scaled[members] - scaled[members].mean(0)
        direction = torch.linalg.eigh(deviation.T @ deviation).eigenvectors[:, -1]
        direction = direction * direction[direction.abs().argmax()].sign()
        order = members[(deviation @ direction).argsort(stable=True)]
        todo += [order[: len(order) // 2], order[len(order) // 2 :]]
    return found


def _gram_schmidt(columns: Float[Tensor, "G 3 3"]) -> Float[Tensor, "G 3 3"]:
    """Orthonormal columns, from left to right."""
    q, r = torch.linalg.qr(columns)
    sign = torch.diagonal(r, dim1=1, dim2=2).sign()
    return q * torch.where(sign == 0, 1.0, sign)[:, None]


def _principal_axes(
    covariance: Float[Tensor, "G 3 3"], third: Float[Tensor, "G 3"]
) -> Float[Tensor, "G 3 3"]:
    """Principal axes; the third moment fixes their signs."""
    axes = torch.linalg.eigh(covariance).eigenvectors
    sign = torch.einsum("gda,gd->ga", axes, third).sign()
    return axes * torch.where(sign == 0, 1.0, sign)[:, None]


def _align_to_mean(
    shapes: Float[Tensor, "c N 3"], start: Float[Tensor, "c 3 3"], proper: bool
) -> Float[Tensor, "c 3 3"]:
    """Orthogonal matrices that align the mean shape to each structure (Kabsch 1976)."""
    mean = shapes[0] @ start[0]
    for _ in range(ALIGNMENT_ROUNDS):
        u, _, vh = torch.linalg.svd(torch.einsum("cni,nj->cij", shapes, mean))
        if proper:
            u[:, :, -1] = u[:, :, -1] * torch.linalg.det(u @ vh).sign()[:, None]
        turns = u @ vh
        mean = torch.einsum("cni,cij->nj", shapes, turns) / len(shapes)
    return turns


def _with_handedness(frames: Float[Tensor, "G 3 3"], proper: bool) -> Float[Tensor, "G 3 3"]:
    """The frames, with the third axis inverted where that makes them right-handed, if `proper`."""
    if not proper:
        return frames
    frames = frames.clone()
    frames[:, :, 2] = frames[:, :, 2] * torch.linalg.det(frames).sign()[:, None]
    return frames
