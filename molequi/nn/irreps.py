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
from molequi.ops.blocks import Blocks
from molequi.ops.constants import Float64Constants
from molequi.ops.contraction import SymmetricContraction
from molequi.ops.products import TensorProduct


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
        self.register_buffer(
            "owner",
            torch.tensor(
                [k for k, size in enumerate(self.sizes[1:]) for _ in range(size)], dtype=torch.int64
            ),
            persistent=False,
        )

    def forward(self, x: Float[Tensor, "N M C"]) -> Float[Tensor, "N M C"]:
        scalars = x[:, :1]
        out = torch.nn.functional.silu(scalars) * SILU_GAIN
        if self.gates is None:
            return out
        # E[sigmoid(x)^2] is 0.2933 for x ~ N(0, 1)
        gates = torch.sigmoid(self.gates(scalars[:, 0])).unflatten(1, (-1, self.channels)) / math.sqrt(0.2933)
        return torch.cat([out, x[:, 1:] * gates[:, self.owner]], dim=1)


class Convolution(nn.Module):
    """Tensor-field convolution (Thomas et al. 2018, arXiv 1802.08219; as in NequIP, arXiv 2101.03164, eq. 5-7).

    A_i = C Σ_j Σ_paths R_path(r_ij) (h_j ⊗ Y(r̂_ij))_path, R_path a radial function of its own for each path and channel.
    """

    def __init__(
        self,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        l_max: int,
        channels: int,
        radial: Sequence[int],
        reflections: bool,
    ):
        super().__init__()
        self.product = TensorProduct(inputs, outputs, l_max, reflections=reflections)
        self.channels = channels
        self.before = IrrepsLinear(inputs, channels)
        self.radial = mlp([*radial, self.product.num_paths * channels])
        self.after = IrrepsLinear(outputs, channels)

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        radial: Float[Tensor, "E R"],
        harmonics: Float[Tensor, "E S"],
        edges,
        scale: Tensor,
    ) -> Float[Tensor, "N O C"]:
        weights = self.radial(radial) * edges.envelope[:, None]
        weights = weights.unflatten(1, (self.product.num_paths, self.channels))
        messages = self.product(edges.gather(self.before(h)), harmonics, weights)
        return self.after(edges.sum(messages) * scale)


class AtomicBasis(Float64Constants):
    """A_i = W ( 1/avg Σ_j Σ_paths R_path(r_ij) (W h_j ⊗ Y(r̂_ij))_path )   (MACE, arXiv 2206.07697, eqs. 8, 9).

    The sum over the edges is linear in the harmonics, so that it goes inside: for each degree l of A there is a small matrix C · Y for
    each edge, and its product with R · h_j is summed over the edges at once; where all nodes have as many edges, messages never exist.
    """

    def __init__(
        self,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        l_max: int,
        channels: int,
        radial: Sequence[int],
    ):
        super().__init__()
        paths = sorted(
            ir.couplings(inputs, l_max, outputs, reflections=True), key=lambda path: (path[2], path[0])
        )
        self.channels, self.num_paths, self.sizes = channels, len(paths), sizes(inputs)
        columns, self.counts, self.shapes = (
            [],
            [],
            [],
        )  # paths of each output from each input; (components, rows) of each output
        for k, target in enumerate(outputs):
            into = [path for path in paths if path[2] == k]
            self.counts.append([sum(path[0] == i for path in into) for i in range(len(inputs))])
            parts = []
            for i, l2, _ in into:
                l1, l3 = ir.parse(inputs[i])[0], ir.parse(target)[0]
                part = torch.zeros((l_max + 1) ** 2, 2 * l1 + 1, 2 * l3 + 1, dtype=torch.float64)
                part[l2 * l2 : (l2 + 1) ** 2] = ir.clebsch_gordan(l1, l2, l3).transpose(0, 1) * math.sqrt(
                    (2 * l3 + 1) / len(into)
                )
                parts.append(part)
            column = torch.cat(parts, dim=1)  # (S, rows, components)
            self.shapes.append(tuple(column.shape[1:]))
            columns.append(column.flatten(1))
        self.register_constant("coupling", torch.cat(columns, dim=1))
        self.before = IrrepsLinear(inputs, channels)
        self.radial = mlp([*radial, len(paths) * channels], bias=False)
        self.after = IrrepsLinear(outputs, channels)

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        radial: Float[Tensor, "E R"],
        harmonics: Float[Tensor, "E S"],
        edges,
        scale: Tensor,
    ) -> Float[Tensor, "N O C"]:
        matrices = (harmonics @ self.coupling.to(h.dtype)).split([r * m for r, m in self.shapes], dim=1)
        weights = (
            self.radial(radial)
            .unflatten(1, (self.num_paths, self.channels))
            .split([sum(c) for c in self.counts], dim=1)
        )
        sent = edges.gather(self.before(h)).split(self.sizes, dim=1)
        out = []
        for shape, counts, weight, matrix in zip(self.shapes, self.counts, weights, matrices):
            rows = [
                (w[:, :, None] * part[:, None]).flatten(1, 2)
                for w, part, c in zip(weight.split(counts, 1), sent, counts)
                if c
            ]
            out.append(
                edges.contract(
                    matrix.reshape(-1, *shape), torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]
                )
            )
        return self.after(torch.cat(out, dim=1) * scale)


class ProductBasis(nn.Module):
    """B_i = W Σ_ν Σ_η W_{z_i η} U_η A_i … A_i, every coupling of up to `correlation` features A, weighted for each element and channel
    (MACE, arXiv 2206.07697, eqs. 10, 11).
    """

    def __init__(
        self, *, l_max: int, outputs: Sequence[str], correlation: int, channels: int, num_elements: int
    ):
        super().__init__()
        self.contraction = SymmetricContraction(l_max, outputs, correlation)
        counts = [count for irrep in outputs for count in self.contraction.paths[irrep]]
        std = torch.tensor([count**-0.5 for count in counts for _ in range(count)])
        self.weight = nn.Parameter(torch.randn(num_elements, len(std), channels) * std[:, None])
        self.after = IrrepsLinear(outputs, channels)

    def forward(self, a: Float[Tensor, "N M C"], blocks: Blocks) -> Float[Tensor, "N O C"]:
        return self.after(self.contraction(a, self.weight, blocks))


class ElementLinear(nn.Module):
    """W_z h: one channel-mixing matrix for each irrep and element."""

    def __init__(self, layout: Sequence[str], channels: int, num_elements: int):
        super().__init__()
        self.sizes = sizes(layout)
        self.weight = nn.Parameter(
            torch.randn(num_elements, len(layout), channels, channels) / math.sqrt(channels)
        )

    def forward(self, x: Float[Tensor, "N M C"], blocks: Blocks) -> Float[Tensor, "N M C"]:
        weight = self.weight.index_select(0, blocks.kind)
        parts = [
            part.flatten(1, 2) @ weight[:, k]
            for k, part in enumerate(blocks.split(x).split(self.sizes, dim=2))
        ]
        return blocks.join(
            torch.cat([p.unflatten(1, (blocks.size, size)) for p, size in zip(parts, self.sizes)], dim=2)
        )
