"""Nonlinear functions of features as fields on the sphere."""

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.nn.mlp import SILU_GAIN
from molequi.ops import sphere
from molequi.ops.constants import Float64Constants


class SphereProduct(Float64Constants):
    """Product of two features as fields on the sphere, f(q) g(q), channel by channel: their Gaunt product
    (Luo, Chen and Krishnapriyan 2024, arXiv 2401.10216).

    The quadrature is exact for the product, and so is equivariance.

    Parameters
    ----------
    l_max : int
        Highest degree of the features, which have natural parity, and of the result.

    Examples
    --------
    >>> SphereProduct(1)(torch.ones(5, 4, 8), torch.ones(5, 4, 8)).shape
    torch.Size([5, 4, 8])
    """

    there: Tensor
    back: Tensor

    def __init__(self, l_max: int) -> None:
        super().__init__()
        there, back = sphere.transforms(l_max, l_max, 2)
        # If components have mean square 1, fields have it, too; and so back.
        self.register_constant("there", there / (l_max + 1))
        self.register_constant("back", back * (l_max + 1))

    def forward(self, f: Float[Tensor, "N M C"], g: Float[Tensor, "N M C"]) -> Float[Tensor, "N M C"]:
        there = self.there.to(f.dtype)
        return self.back.to(f.dtype) @ ((there @ f) * (there @ g))


class SphereActivation(Float64Constants):
    """SiLU of features as fields on the sphere (S2 activation; Cohen et al. 2018, arXiv 1801.10130;
    EquiformerV2, arXiv 2306.12059): values at the points of a Lebedev quadrature, SiLU of each, and back.

    SiLU of a polynomial is no polynomial, so that no quadrature is exact. The points have the symmetry of an
    octahedron, which is exact; other rotations have an error that falls with `degree`.

    Parameters
    ----------
    l_max : int
        Highest degree of the features, which have natural parity, and of the result.
    degree : int
        Degree up to which the quadrature is exact, at most 131.

    Examples
    --------
    >>> SphereActivation(1, degree=5)(torch.ones(5, 4, 8)).shape
    torch.Size([5, 4, 8])
    """

    there: Tensor
    back: Tensor

    def __init__(self, l_max: int, degree: int) -> None:
        super().__init__()
        there, back = sphere.fields(l_max, l_max, degree)
        self.register_constant("there", there / (l_max + 1))
        self.register_constant("back", back * (SILU_GAIN * (l_max + 1)))

    def forward(self, x: Float[Tensor, "N M C"]) -> Float[Tensor, "N M C"]:
        return self.back.to(x.dtype) @ torch.nn.functional.silu(self.there.to(x.dtype) @ x)
