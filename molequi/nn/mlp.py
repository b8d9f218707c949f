"""Linear maps and multilayer perceptrons that keep the variance of their input at initialisation."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SILU_GAIN = 1.0 / math.sqrt(0.35569)  # E[silu(x)^2] for x ~ N(0, 1) is 0.35569, by quadrature


def linear(fan_in: int, fan_out: int, *, bias: bool = False, gain: float = 1.0) -> nn.Linear:
    """A linear map with weights N(0, gain²/fan_in) and zero bias: unit variance in, variance gain² out."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class ScaledSiLU(nn.Module):
    """SiLU scaled so that a unit normal input has an output of second moment one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(x) * SILU_GAIN


def mlp(
    sizes: Sequence[int], *, bias: bool = True, last_gain: float = 1.0, activate_last: bool = False
) -> nn.Sequential:
    """`sizes[0]` inputs, hidden layers with SiLU between, `sizes[-1]` outputs of variance `last_gain²`."""
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        last = k == len(sizes) - 2
        layers.append(linear(a, b, bias=bias, gain=last_gain if last else 1.0))
        if not last or activate_last:
            layers.append(ScaledSiLU())
    return nn.Sequential(*layers)
