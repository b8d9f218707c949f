"""Equivariant optimal transport between noise and structures."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.ops.segment import segment_mean

ROUNDS = 2


def centered(pos: Float[Tensor, "N D"], batch: Int[Tensor, "N"], count: int) -> Float[Tensor, "N D"]:
    """Positions relative to the mean of their structure.

    Parameters
    ----------
    pos : Tensor, shape (N, D)
        Positions.
    batch : Tensor, shape (N,)
        Structure of each.
    count : int
        Number of structures.
    """
    return pos - segment_mean(pos, batch, count)[batch]


def rotations(
    start: Float[Tensor, "N D"], end: Float[Tensor, "N D"], batch: Int[Tensor, "N"], count: int
) -> Float[Tensor, "G D D"]:
    """The proper rotation R of each structure for which Σ ‖R start - end‖² is smallest (Kabsch 1976).

    Parameters
    ----------
    start, end : Tensor, shape (N, D)
        Centered positions.
    batch : Tensor, shape (N,)
        Structure of each, ascending.
    count : int
        Number of structures.
    """
    dim = start.shape[1]
    moments = start.new_zeros(count, dim, dim).index_add(0, batch, end[:, :, None] * start[:, None, :])
    u, _, vt = torch.linalg.svd(moments)
    signs = torch.ones_like(moments[:, 0])
    signs[:, -1] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    return (u * signs[:, None]) @ vt


def couple(
    noise: Float[Tensor, "N D"],
    end: Float[Tensor, "N D"],
    batch: Int[Tensor, "N"],
    count: int,
    alike: Int[Tensor, "N"] | None = None,
) -> Float[Tensor, "N D"]:
    """Noise that is rotated, and permuted among like atoms, so that the way to the structures is short.

    Equivariant optimal transport (Klein et al. 2023, arXiv 2306.15030; Song et al. 2023, arXiv 2312.07168):
    the best permutation (linear assignment) and the best rotation (Kabsch) in turn, twice. Each step makes
    Σ ‖noise - end‖² smaller or leaves it. The noise is drawn from a density that no rotation or permutation
    changes, and so is the density of the structures; then the coupled pairs have the same two densities.

    Parameters
    ----------
    noise, end : Tensor, shape (N, D)
        Centered positions, float64.
    batch : Tensor, shape (N,)
        Structure of each atom, ascending.
    count : int
        Number of structures.
    alike : Tensor, shape (N,), optional
        Atoms of one structure with the same number may change places. None: no atom may.

    Returns
    -------
    Tensor, shape (N, D)
        The same noise, in other places.

    Examples
    --------
    >>> end = torch.tensor([[1.0, 0, 0], [-1, 0, 0]], dtype=torch.float64)
    >>> noise = torch.tensor([[0.0, 2, 0], [0, -2, 0]], dtype=torch.float64)
    >>> couple(noise, end, torch.tensor([0, 0]), 1).round(decimals=6).abs().tolist()
    [[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]
    """
    for _ in range(ROUNDS):
        if alike is not None:
            noise = noise[_assignment(noise, end, batch, count, alike)]
        noise = torch.einsum("nij,nj->ni", rotations(noise, end, batch, count)[batch], noise)
    return noise


def _assignment(noise: Tensor, end: Tensor, batch: Tensor, count: int, alike: Tensor) -> Int[Tensor, "N"]:
    """Which atom of the noise each atom of the structures gets."""
    from scipy.optimize import linear_sum_assignment

    ends = torch.bincount(batch, minlength=count).cumsum(0).tolist()
    order = np.arange(len(noise))
    a, b, kinds = noise.cpu().numpy(), end.cpu().numpy(), alike.cpu().numpy()
    for first, last in zip([0, *ends[:-1]], ends):
        cost = -b[first:last] @ a[first:last].T
        kind = kinds[first:last]
        if (kind != kind[0]).any():
            cost = cost + 1e6 * (kind[:, None] != kind[None, :])
        order[first:last] = first + linear_sum_assignment(cost)[1]
    return torch.as_tensor(order, device=noise.device)
