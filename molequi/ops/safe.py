"""Norms and directions whose value and derivatives stay finite at zero.

`sqrt` has an infinite slope at 0, and 0 · inf is NaN. So one pair of nodes in the same place would make every
gradient of a batch NaN. These functions are exact away from zero. At zero the derivative is 0, the mean over
all directions.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def norm(vectors: Float[Tensor, "*B D"], keepdim: bool = False) -> Tensor:
    """Euclidean length over the last axis; zero, with a zero gradient, for a zero vector.

    Parameters
    ----------
    vectors : Tensor, shape (..., D)
        Vectors.
    keepdim : bool
        Keep the last axis, with length one.

    Returns
    -------
    Tensor, shape (...)
        Lengths.
    """
    square = vectors.square().sum(-1, keepdim=keepdim)
    nonzero = square != 0  # this is true for NaN, which stays NaN
    return torch.where(nonzero, torch.where(nonzero, square, 1.0).sqrt(), 0.0)


def unit(vectors: Float[Tensor, "*B D"]) -> tuple[Float[Tensor, "*B D"], Float[Tensor, "*B"]]:
    """Directions and lengths; a zero vector has the direction zero, with a zero gradient.

    Parameters
    ----------
    vectors : Tensor, shape (..., D)
        Vectors.

    Returns
    -------
    directions : Tensor, shape (..., D)
        Vectors of length one.
    lengths : Tensor, shape (...)
        Lengths.
    """
    length = norm(vectors)
    nonzero = length != 0
    scale = torch.where(nonzero, 1.0 / torch.where(nonzero, length, 1.0), 0.0)
    return vectors * scale[..., None], length
