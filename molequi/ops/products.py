"""The product of node features with spherical harmonics, weighted path by path."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.ops import irreps as ir
from molequi.ops.constants import Float64Constants


class TensorProduct(Float64Constants):
    """m_k = Σ_paths w_path Σ_ij C_ijk x_i Y_j with one weight for each edge, path and channel.

    inputs, outputs: irreps of x and of the result; l_max: highest degree of Y. Reflections allowed or not: O(3) or SO(3).

    C · Y is the same for all channels. So it is contracted first, with one matrix product for all paths, into a small matrix for
    each edge; the rest is one batched matrix product over the channels for each input irrep. Written so, only x · w is larger than
    what goes in and comes out: memory traffic, not arithmetic, is what this costs on a CPU.
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str], l_max: int, *, reflections: bool):
        super().__init__()
        self.inputs, self.outputs, self.l_max = tuple(inputs), tuple(outputs), l_max
        paths = ir.couplings(inputs, l_max, outputs, reflections=reflections)
        for k, irrep in enumerate(self.outputs):
            if not any(path[2] == k for path in paths):
                raise ValueError(f"no path from {self.inputs} with l <= {l_max} to {irrep}")
        paths.sort(key=lambda path: path[0])  # weights come sorted by input irrep
        self.paths, self.num_paths = paths, len(paths)
        into = [sum(path[2] == k for path in paths) for k in range(len(self.outputs))]
        widths = [2 * ir.parse(i)[0] + 1 for i in self.outputs]
        self.components = sum(widths)
        self.sizes = [2 * ir.parse(i)[0] + 1 for i in self.inputs]
        self.counts = [sum(path[0] == i for path in paths) for i in range(len(self.inputs))]
        columns = []
        for i, l2, k in paths:
            l1, l3 = ir.parse(self.inputs[i])[0], ir.parse(self.outputs[k])[0]
            column = torch.zeros((l_max + 1) ** 2, self.components, 2 * l1 + 1, dtype=torch.float64)
            start = sum(widths[:k])
            coupling = ir.clebsch_gordan(l1, l2, l3) * math.sqrt((2 * l3 + 1) / into[k])
            column[l2 * l2 : (l2 + 1) ** 2, start : start + widths[k]] = coupling.permute(1, 2, 0)
            columns.append(column)
        coupling = torch.cat(columns, dim=2)  # (S, O, rows)
        self.register_constant("coupling", coupling.flatten(1))

    def forward(
        self,
        x: Float[Tensor, "E I C"],
        harmonics: Float[Tensor, "E S"],
        weights: Float[Tensor, "E P C"],
        coupling: Float[Tensor, "S OR"] | None = None,
    ) -> Float[Tensor, "E O C"]:
        """coupling: another one in place of the symmetric one, for relaxed layers."""
        rows = [a * b for a, b in zip(self.counts, self.sizes)]
        coupling = self.coupling.to(x.dtype) if coupling is None else coupling
        matrices = (harmonics @ coupling).reshape(x.shape[0], self.components, sum(rows))
        out = None
        for part, weight, matrix in zip(
            x.split(self.sizes, 1), weights.split(self.counts, 1), matrices.split(rows, 2)
        ):
            weighted = (weight[:, :, None] * part[:, None]).flatten(1, 2)  # (E, paths · i, C)
            out = torch.bmm(matrix, weighted) if out is None else torch.baddbmm(out, matrix, weighted)
        return out
