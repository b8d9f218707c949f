"""The product of node features with spherical harmonics, weighted path by path."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.ops import irreps as ir
from molequi.ops.constants import Float64Constants


class TensorProduct(Float64Constants):
    """Weighted products of features x with spherical harmonics Y,

        m_k = Σ_paths w_path Σ_ij C_ijk x_i Y_j,

    with one weight w for each edge, path and channel, and the Clebsch-Gordan tensors C.

    C · Y is the same for all channels. Therefore it is contracted first, with one matrix product for all
    paths, into a small matrix for each edge. What remains is one batched matrix product over the channels for
    each input irrep. On a CPU the cost is memory traffic, not arithmetic; in this form only x · w is larger
    than input and output.

    Parameters
    ----------
    inputs, outputs : sequence of str
        Irreps of x and of the result, such as ``["0e", "1o"]``.
    l_max : int
        Highest degree of Y.
    reflections : bool
        True for O(3), where parities must match; False for SO(3).

    Raises
    ------
    ValueError
        If no path leads to one of the outputs.

    Examples
    --------
    >>> product = TensorProduct(["0e", "1o"], ["0e"], l_max=1, reflections=True)
    >>> product.num_paths, product.components
    (2, 1)
    """

    coupling: Tensor

    def __init__(
        self, inputs: Sequence[str], outputs: Sequence[str], l_max: int, *, reflections: bool
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.l_max = tuple(inputs), tuple(outputs), l_max
        paths = ir.couplings(inputs, l_max, outputs, reflections=reflections)
        for k, irrep in enumerate(self.outputs):
            if not any(path[2] == k for path in paths):
                raise ValueError(f"no path from {self.inputs} with l <= {l_max} to {irrep}")
        paths.sort(key=lambda path: path[0])  # weights come sorted by input irrep
        self.paths, self.num_paths = paths, len(paths)
        into = [sum(path[2] == k for path in paths) for k in range(len(self.outputs))]
        widths = ir.sizes(self.outputs)
        self.components = sum(widths)
        self.sizes = ir.sizes(self.inputs)
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
        """The products.

        Parameters
        ----------
        x : Tensor, shape (E, I, C)
            Components of all input irreps, one after another, in C channels.
        harmonics : Tensor, shape (E, (l_max + 1)²)
            Spherical harmonics Y.
        weights : Tensor, shape (E, num_paths, C)
            Weights w, sorted by input irrep.
        coupling : Tensor, optional
            Tensors that take the place of C, for relaxed layers.

        Returns
        -------
        Tensor, shape (E, O, C)
            Components of all output irreps.
        """
        rows = [a * b for a, b in zip(self.counts, self.sizes)]
        matrix_of = self.coupling.to(x.dtype) if coupling is None else coupling
        matrices = (harmonics @ matrix_of).reshape(x.shape[0], self.components, sum(rows))  # (E, O, rows)
        out: Tensor | None = None
        for part, weight, matrix in zip(
            x.split(self.sizes, 1), weights.split(self.counts, 1), matrices.split(rows, 2)
        ):
            weighted = (weight[:, :, None] * part[:, None]).flatten(1, 2)  # (E, paths · i, C)
            out = torch.bmm(matrix, weighted) if out is None else torch.baddbmm(out, matrix, weighted)
        assert out is not None
        return out
