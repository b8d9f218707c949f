"""Norms and directions whose value and derivatives stay finite at zero.

`sqrt` has an infinite slope at 0, and 0 · inf is NaN: one coincident pair would poison every gradient of a batch.
Away from zero these are exact. At zero the derivative is set to 0, the mean over all directions.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def norm(vectors: Float[Tensor, "*B D"], keepdim: bool = False) -> Tensor:
    """Euclidean length over the last axis; zero with zero gradient for a zero vector."""
    square = vectors.square().sum(-1, keepdim=keepdim)
    nonzero = square != 0  # and so NaN stays NaN
    return torch.where(nonzero, torch.where(nonzero, square, 1.0).sqrt(), 0.0)


def unit(vectors: Float[Tensor, "*B D"]) -> tuple[Float[Tensor, "*B D"], Float[Tensor, "*B"]]:
    """Directions and lengths; a zero vector has direction zero, with zero gradient."""
    length = norm(vectors)
    nonzero = length != 0
    scale = torch.where(nonzero, 1.0 / torch.where(nonzero, length, 1.0), 0.0)
    return vectors * scale[..., None], length
