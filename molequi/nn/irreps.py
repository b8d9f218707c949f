"""Layers on irreps: features are (N, M, C), the components of all irreps one below another, channels last.

Every irrep has the same number of channels, so each operation is a few large matrix products.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.nn.mlp import SILU_GAIN, linear, mlp
from molequi.ops import irreps as ir
from molequi.ops.products import TensorProduct
from molequi.ops.segment import segment_sum


def sizes(layout: Sequence[str]) -> list[int]:
    """Number of components of each irrep."""
    return [2 * ir.parse(irrep)[0] + 1 for irrep in layout]


class IrrepsLinear(nn.Module):
    """One channel-mixing matrix for each irrep (Schur's lemma allows no other linear map)."""

    def __init__(self, layout: Sequence[str], channels: int):
        super().__init__()
        self.sizes = sizes(layout)
        self.mix = nn.ModuleList(linear(channels, channels) for _ in layout)

    def forward(self, x: Float[Tensor, "N M C"]) -> Float[Tensor, "N M C"]:
        return torch.cat([mix(part) for mix, part in zip(self.mix, x.split(self.sizes, dim=1))], dim=1)


class Gate(nn.Module):
    """SiLU on the invariants; every other irrep times the sigmoid of invariants, channel by channel (arXiv 1807.02547)."""

    def __init__(self, layout: Sequence[str], channels: int):
        super().__init__()
        self.sizes, self.channels = sizes(layout), channels
        self.gates = linear(channels, channels * (len(layout) - 1), bias=True) if len(layout) > 1 else None
        self.register_buffer("owner", torch.tensor([k for k, size in enumerate(self.sizes[1:]) for _ in range(size)],
                                                   dtype=torch.int64), persistent=False)

    def forward(self, x: Float[Tensor, "N M C"]) -> Float[Tensor, "N M C"]:
        scalars = x[:, :1]
        out = torch.nn.functional.silu(scalars) * SILU_GAIN
        if self.gates is None:
            return out
        # E[sigmoid(x)^2] is 0.2933 for x ~ N(0, 1)
        gates = torch.sigmoid(self.gates(scalars[:, 0])).reshape(len(x), -1, self.channels) / math.sqrt(0.2933)
        return torch.cat([out, x[:, 1:] * gates[:, self.owner]], dim=1)


class Convolution(nn.Module):
    """Tensor-field convolution (Thomas et al. 2018, arXiv 1802.08219; as in NequIP, arXiv 2101.03164, eq. 5-7).

    A_i = C Σ_j Σ_paths R_path(r_ij) (h_j ⊗ Y(r̂_ij))_path, R_path a radial function of its own for each path and channel.
    """

    def __init__(self, *, inputs: Sequence[str], outputs: Sequence[str], l_max: int, channels: int, radial: Sequence[int],
                 reflections: bool):
        super().__init__()
        self.product = TensorProduct(inputs, outputs, l_max, reflections=reflections)
        self.channels = channels
        self.before = IrrepsLinear(inputs, channels)
        self.radial = mlp([*radial, self.product.num_paths * channels])
        self.after = IrrepsLinear(outputs, channels)

    def forward(self, h: Float[Tensor, "N I C"], radial: Float[Tensor, "E R"], harmonics: Float[Tensor, "E S"], edges,
                scale: Tensor) -> Float[Tensor, "N O C"]:
        weights = self.radial(radial) * edges.envelope[:, None]
        weights = weights.reshape(len(radial), self.product.num_paths, self.channels)
        messages = self.product(self.before(h)[edges.sender], harmonics, weights)
        return self.after(segment_sum(messages, edges.receiver, len(h)) * scale)
