"""Linear maps and multilayer perceptrons that preserve the variance of their input at initialization."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# E[silu(x)^2] for x ~ N(0, 1) is 0.35578; the number stays as it is, since model files depend on it.
SILU_GAIN = 1.0 / math.sqrt(0.35569)


def linear(fan_in: int, fan_out: int, *, bias: bool = False, gain: float = 1.0) -> nn.Linear:
    """A linear map that turns inputs of variance 1 into outputs of variance gain² at initialization.

    Parameters
    ----------
    fan_in, fan_out : int
        Number of inputs and outputs.
    bias : bool
        Whether it has a bias, which is zero at first.
    gain : float
        Weights have the standard deviation gain/√fan_in.
    """
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class ScaledSiLU(nn.Module):
    """SiLU times a constant, so that the output for standard normal input has mean square 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(x) * SILU_GAIN


def mlp(
    sizes: Sequence[int], *, bias: bool = True, last_gain: float = 1.0, activate_last: bool = False
) -> nn.Sequential:
    """A multilayer perceptron with SiLU between its layers.

    Parameters
    ----------
    sizes : sequence of int
        Number of inputs, of channels of each hidden layer, and of outputs.
    bias : bool
        Whether the layers have biases.
    last_gain : float
        The variance of the output at initialization is last_gain².
    activate_last : bool
        Whether SiLU follows the last layer, too.

    Examples
    --------
    >>> mlp([3, 16, 2])(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        last = k == len(sizes) - 2
        layers.append(linear(a, b, bias=bias, gain=last_gain if last else 1.0))
        if not last or activate_last:
            layers.append(ScaledSiLU())
    return nn.Sequential(*layers)
