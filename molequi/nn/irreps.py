"""Layers on irreps.

Features have the shape (N, M, C): the components of all irreps one after another, channels last. Every irrep
has the same number of channels, so that each operation consists of a few large matrix products. A layout is a
list of irreps.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.nn.mlp import SILU_GAIN, linear, mlp
from molequi.nn.radial import Edges
from molequi.ops import irreps as ir
from molequi.ops.blocks import Blocks
from molequi.ops.constants import Float64Constants
from molequi.ops.contraction import SymmetricContraction
from molequi.ops.irreps import sizes
from molequi.ops.products import TensorProduct


class IrrepsLinear(nn.Module):
    """One matrix for each irrep, which mixes channels. Schur's lemma allows no other equivariant linear map.

    Parameters
    ----------
    layout : sequence of str
        Irreps.
    channels : int
        Number of channels of each irrep.
    outputs : int, optional
        Number of channels of each irrep of the result. None: `channels`.

    Examples
    --------
    >>> IrrepsLinear(["0e", "1o"], channels=8)(torch.zeros(5, 4, 8)).shape
    torch.Size([5, 4, 8])
    """

    def __init__(self, layout: Sequence[str], channels: int, outputs: int | None = None) -> None:
        super().__init__()
        self.sizes = sizes(layout)
        self.mix = nn.ModuleList(linear(channels, outputs or channels) for _ in layout)

    def forward(self, x: Float[Tensor, "N M C"]) -> Float[Tensor, "N M K"]:
        return torch.cat([mix(part) for mix, part in zip(self.mix, x.split(self.sizes, dim=1))], dim=1)


class PathLinear(nn.Module):
    """One matrix for each irrep, which mixes the channels of all paths into it.

    Parameters
    ----------
    paths : sequence of int
        Number of paths into each irrep.
    channels : int
        Number of channels of each path, and of the result.
    """

    def __init__(self, paths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.mix = nn.ModuleList(linear(count * channels, channels) for count in paths)

    def forward(self, x: Sequence[Float[Tensor, "N _ _"]]) -> Float[Tensor, "N M C"]:
        """The components of all irreps one after another.

        Parameters
        ----------
        x : sequence of Tensor, shapes (N, 2 l + 1, paths · C)
            One block for each irrep.
        """
        return torch.cat([mix(part) for mix, part in zip(self.mix, x)], dim=1)


class Gate(nn.Module):
    """Gated nonlinearity (Weiler et al. 2018, arXiv 1807.02547): SiLU of the invariants; every other irrep is
    multiplied by the sigmoid of invariants, channel by channel.

    Parameters
    ----------
    layout : sequence of str
        Irreps; the first is "0e".
    channels : int
        Number of channels of each irrep.
    """

    owner: Tensor

    def __init__(self, layout: Sequence[str], channels: int) -> None:
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
    """Tensor-field convolution (Thomas et al. 2018, arXiv 1802.08219; NequIP, arXiv 2101.03164, eqs. 5-7):

        A_i = C Σ_j Σ_paths R_path(r_ij) (h_j ⊗ Y(r̂_ij))_path.

    Each path and channel has its own radial function R. Channels are mixed before and after. C is the
    argument `scale`.

    Parameters
    ----------
    inputs, outputs : sequence of str
        Irreps of h and A.
    l_max : int
        Highest degree of the spherical harmonics Y.
    channels : int
        Number of channels of each irrep.
    radial : sequence of int
        Sizes of the perceptron R: number of radial inputs, then of its hidden layers.
    reflections : bool
        True for O(3), False for SO(3).
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
    ) -> None:
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
        edges: Edges,
        scale: Float[Tensor, ""],
    ) -> Float[Tensor, "N O C"]:
        """The features A.

        Parameters
        ----------
        h : Tensor, shape (N, I, C)
            Features of the nodes.
        radial : Tensor, shape (E, R)
            Inputs of the radial functions.
        harmonics : Tensor, shape (E, (l_max + 1)²)
            Spherical harmonics of the directions.
        edges : Edges
            The edges.
        scale : Tensor, shape ()
            C, usually 1/√(mean number of neighbors).

        Returns
        -------
        Tensor, shape (N, O, C)
            A.
        """
        weights = self.radial(radial) * edges.envelope[:, None]
        weights = weights.unflatten(1, (self.product.num_paths, self.channels))  # (E, paths, C)
        sent = edges.gather(self.before(h))  # (E, I, C)
        messages = self.product(sent, harmonics, weights, self.coupling(h.dtype))  # (E, O, C)
        return self.after(edges.sum(messages) * scale)

    def coupling(self, dtype: torch.dtype) -> Float[Tensor, "S OR"]:
        """Tensors that couple features and harmonics, in the layout of `ops.TensorProduct`.

        Parameters
        ----------
        dtype : torch.dtype
            Precision of the result.
        """
        return self.product.coupling.to(dtype)


class AtomicBasis(Float64Constants):
    """Features A of one neighbor sum (MACE, arXiv 2206.07697, eqs. 8, 9):

        A_i = W ( scale Σ_j Σ_paths R_path(r_ij) (W h_j ⊗ Y(r̂_ij))_path ).

    With `mix_paths` the last W acts on all paths side by side, instead of on their sum.

    The sum over the edges is linear in the harmonics. So for each degree of A and each edge there is a small
    matrix C · Y, with the Clebsch-Gordan tensors C, and the products with R · h_j are summed over the edges
    in one operation. If all nodes have the same number of edges, messages are never stored.

    Parameters
    ----------
    inputs, outputs : sequence of str
        Irreps of h and A.
    l_max : int
        Highest degree of the spherical harmonics Y.
    channels : int
        Number of channels of each irrep.
    radial : sequence of int
        Sizes of the perceptron R, which has no biases: number of radial inputs, then of its hidden layers.
    mix_paths : bool
        Whether each path has channels of its own until the last W, as in the authors' program. False: paths
        into an irrep are summed before.
    """

    coupling: Tensor

    def __init__(
        self,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        l_max: int,
        channels: int,
        radial: Sequence[int],
        mix_paths: bool = False,
    ) -> None:
        super().__init__()
        paths = sorted(
            ir.couplings(inputs, l_max, outputs, reflections=True), key=lambda path: (path[2], path[0])
        )
        self.channels, self.num_paths, self.sizes = channels, len(paths), sizes(inputs)
        self.paths = [(inputs[i], l2, outputs[k]) for i, l2, k in paths]  # in the order of the radial weights
        columns = []
        self.counts: list[list[int]] = []  # number of paths of each output from each input
        self.shapes: list[tuple[int, int]] = []  # (rows, components) of each output
        for k, target in enumerate(outputs):
            into = [path for path in paths if path[2] == k]
            self.counts.append([sum(path[0] == i for path in into) for i in range(len(inputs))])
            parts = []
            for i, l2, _ in into:
                l1, l3 = ir.parse(inputs[i])[0], ir.parse(target)[0]
                part = torch.zeros((l_max + 1) ** 2, 2 * l1 + 1, 2 * l3 + 1, dtype=torch.float64)
                part[l2 * l2 : (l2 + 1) ** 2] = ir.clebsch_gordan(l1, l2, l3).transpose(0, 1) * math.sqrt(
                    (2 * l3 + 1) / (1 if mix_paths else len(into))
                )
                parts.append(part)
            column = torch.cat(parts, dim=1)  # (S, rows, components)
            self.shapes.append((column.shape[1], column.shape[2]))
            columns.append(column.flatten(1))
        self.register_constant("coupling", torch.cat(columns, dim=1))
        self.before = IrrepsLinear(inputs, channels)
        self.radial = mlp([*radial, len(paths) * channels], bias=False)
        self.after = (
            PathLinear([sum(c) for c in self.counts], channels)
            if mix_paths
            else IrrepsLinear(outputs, channels)
        )

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        radial: Float[Tensor, "E R"],
        harmonics: Float[Tensor, "E S"],
        edges: Edges,
        scale: Float[Tensor, ""] | Float[Tensor, "N 1 1"],
    ) -> Float[Tensor, "N O C"]:
        """The features A.

        Parameters
        ----------
        h : Tensor, shape (N, I, C)
            Features of the nodes.
        radial : Tensor, shape (E, R)
            Inputs of the radial functions, which contain the envelope as a factor.
        harmonics : Tensor, shape (E, (l_max + 1)²)
            Spherical harmonics of the directions.
        edges : Edges
            The edges.
        scale : Tensor, shape () or (N, 1, 1)
            Factor of the sum, usually 1/(mean number of neighbors).

        Returns
        -------
        Tensor, shape (N, O, C)
            A.
        """
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
            left, right = matrix.reshape(-1, *shape), torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]
            if isinstance(self.after, IrrepsLinear):
                out.append(edges.contract(left, right))
                continue
            steps = [size for size, c in zip(self.sizes, counts) for _ in range(c)]
            parts = [edges.contract(a, b) for a, b in zip(left.split(steps, 1), right.split(steps, 1))]
            out.append(torch.cat(parts, dim=2))  # (N, m, paths · C)
        if isinstance(self.after, IrrepsLinear):
            return self.after(torch.cat(out, dim=1) * scale)
        return self.after(out) * scale


class ProductBasis(nn.Module):
    """Products of features A (MACE, arXiv 2206.07697, eqs. 10, 11):

        B_i = W Σ_ν Σ_η W_{z_i η} U_η A_i … A_i.

    These are all couplings of up to `correlation` features, with one weight for each element and channel.

    Parameters
    ----------
    l_max : int
        Highest degree of the irreps of A.
    outputs : sequence of str
        Irreps of B.
    correlation : int, >= 1
        Highest number of factors ν.
    channels : int
        Number of channels of each irrep.
    num_elements : int
        Number of elements.
    """

    def __init__(
        self, *, l_max: int, outputs: Sequence[str], correlation: int, channels: int, num_elements: int
    ) -> None:
        super().__init__()
        self.contraction = SymmetricContraction(l_max, outputs, correlation)
        counts = [count for irrep in outputs for count in self.contraction.paths[irrep]]
        std = torch.tensor([count**-0.5 for count in counts for _ in range(count)])
        self.weight = nn.Parameter(torch.randn(num_elements, len(std), channels) * std[:, None])
        self.after = IrrepsLinear(outputs, channels)

    def forward(self, a: Float[Tensor, "N M C"], blocks: Blocks) -> Float[Tensor, "N O C"]:
        return self.after(self.contraction(a, self.weight, blocks))


class ElementLinear(nn.Module):
    """Linear map W_z h with one matrix for each irrep and element z, which mixes channels.

    Parameters
    ----------
    layout : sequence of str
        Irreps.
    channels : int
        Number of channels of each irrep.
    num_elements : int
        Number of elements.
    """

    def __init__(self, layout: Sequence[str], channels: int, num_elements: int) -> None:
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
