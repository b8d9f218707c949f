"""The product of node features with spherical harmonics, weighted path by path."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.ops import irreps as ir


class TensorProduct(nn.Module):
    """m_k = Σ_paths w_path Σ_ij C_ijk x_i Y_j with one weight for each edge, path and channel.

    inputs, outputs: irreps of x and of the result; l_max: highest degree of Y. Reflections allowed or not: O(3) or SO(3).

    C · Y is the same for all channels. So it is contracted first, with one matrix product for all paths, into a small matrix for
    each edge; applying that to x is a batched matrix product over the channels.
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str], l_max: int, *, reflections: bool):
        super().__init__()
        self.inputs, self.outputs, self.l_max = tuple(inputs), tuple(outputs), l_max
        self.paths = ir.couplings(inputs, l_max, outputs, reflections=reflections)
        reached = {k for _, _, k in self.paths}
        for k, irrep in enumerate(self.outputs):
            if k not in reached:
                raise ValueError(f"no path from {self.inputs} with l <= {l_max} to {irrep}")
        self.num_paths = len(self.paths)
        degrees = [ir.parse(i)[0] for i in self.inputs]
        starts = [sum(2 * d + 1 for d in degrees[:n]) for n in range(len(degrees))]
        self.slots: list[tuple[int, int]] = []           # for each output: (components k, rows (path, i))
        rows, owner, blocks = [], [], []
        for k, irrep in enumerate(self.outputs):
            l3 = ir.parse(irrep)[0]
            into = [n for n, path in enumerate(self.paths) if path[2] == k]
            columns = []
            for n in into:
                i, l2, _ = self.paths[n]
                tensor = torch.zeros((l_max + 1) ** 2, 2 * l3 + 1, 2 * degrees[i] + 1, dtype=torch.float64)
                coupling = ir.clebsch_gordan(degrees[i], l2, l3) * math.sqrt((2 * l3 + 1) / len(into))
                tensor[l2 * l2:(l2 + 1) ** 2] = coupling.permute(1, 2, 0)
                columns.append(tensor)
                rows += range(starts[i], starts[i] + 2 * degrees[i] + 1)
                owner += [n] * (2 * degrees[i] + 1)
            block = torch.cat(columns, dim=2)                                    # (S, k, rows)
            self.slots.append((block.shape[1], block.shape[2]))
            blocks.append(block.flatten(1))
        self.register_buffer("coupling", torch.cat(blocks, dim=1), persistent=False)
        self.register_buffer("row", torch.tensor(rows), persistent=False)        # component of x of each (path, i)
        self.register_buffer("owner", torch.tensor(owner), persistent=False)     # path of each (path, i)

    def forward(self, x: Float[Tensor, "E I C"], harmonics: Float[Tensor, "E S"], weights: Float[Tensor, "E P C"]
                ) -> Float[Tensor, "E O C"]:
        weighted = x[:, self.row] * weights[:, self.owner]                                   # (E, rows, C)
        matrices = (harmonics @ self.coupling.to(x.dtype)).split([a * b for a, b in self.slots], dim=1)
        parts = weighted.split([b for _, b in self.slots], dim=1)
        out = [torch.bmm(m.reshape(-1, *slot), part) for m, part, slot in zip(matrices, parts, self.slots)]
        return torch.cat(out, dim=1)
