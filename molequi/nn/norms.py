"""Normalization of features on irreps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ConfigError
from molequi.ops.constants import Float64Constants


def check_layer_norm(where: str, channels: int) -> None:
    """Check that a layer norm has two channels: of one number it is zero, whatever the number.

    Parameters
    ----------
    where : str
        Name of the layer.
    channels : int
        Number of channels.

    Raises
    ------
    ConfigError
        If there are fewer.
    """
    if channels < 2:
        raise ConfigError(
            f"{where}: found channels={channels}; wanted 2 or more, as a layer norm of one number is zero"
        )


class LayerNorm(nn.LayerNorm):
    """Layer norm by elementary operations: y = w ∘ (x - ⟨x⟩) / √(⟨(x - ⟨x⟩)²⟩ + ε) + b.

    The third derivatives of torch's own layer norm are wrong (torch 2.13), and losses of polarizabilities, of
    Born charges from an energy, and of Hessians need them. The parameters are the same, and so is the speed
    of a training step.

    Parameters
    ----------
    channels : int
        Size C of the last axis, over which is normalized.
    eps : float
        ε.

    Examples
    --------
    >>> x = torch.randn(5, 4)
    >>> torch.allclose(LayerNorm(4)(x), nn.functional.layer_norm(x, (4,)), atol=1e-6)
    True
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)

    def forward(self, input: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        # As torch, in float32 at least, also under autocast; the result has the precision of the input.
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        x = x - x.mean(-1, keepdim=True)
        x = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias
        return x.to(input.dtype)


class IrrepsNorm(Float64Constants):
    """Equivariant layer normalization (Equiformer, arXiv 2206.11990; EquiformerV2, arXiv 2306.12059).

    Invariants pass a layer norm. All other components are divided by one number,

        √(ε + mean over l > 0 of the mean over m and channels of x²),

    and multiplied by a weight for each degree and channel. ε is large enough that the function is smooth
    where all of them vanish: in environments with an inversion center, and where the last neighbor leaves.

    Parameters
    ----------
    l_max : int
        Highest degree; the features have natural parity.
    channels : int
        Number of channels of each irrep, at least 2.
    eps : float
        ε.

    Raises
    ------
    ConfigError
        If there are fewer channels.

    Examples
    --------
    >>> norm = IrrepsNorm(1, channels=4)
    >>> norm(torch.randn(5, 4, 4)).shape
    torch.Size([5, 4, 4])
    """

    balance: Tensor

    def __init__(self, l_max: int, channels: int, eps: float = 0.01) -> None:
        super().__init__()
        check_layer_norm("IrrepsNorm", channels)
        self.eps, self.l_max = eps, l_max
        self.invariants = LayerNorm(channels)
        if l_max:
            self.weight = nn.Parameter(torch.ones(l_max, channels))
            degrees = torch.repeat_interleave(
                torch.arange(l_max), torch.tensor([2 * l + 1 for l in range(1, l_max + 1)])
            )
            self.register_buffer("degree", degrees, persistent=False)
            self.register_constant("balance", 1.0 / (l_max * (2.0 * degrees.double() + 3.0)))

    def forward(self, x: Float[Tensor, "N M C"]) -> Float[Tensor, "N M C"]:
        scalars = self.invariants(x[:, :1])
        if not self.l_max:
            return scalars
        rest = x[:, 1:]
        square = self.balance.to(x.dtype) @ rest.square().mean(2).T  # (N,)
        factor = torch.rsqrt(self.eps + square)[:, None, None]
        return torch.cat([scalars, rest * factor * self.weight[self.get_buffer("degree")]], dim=1)
