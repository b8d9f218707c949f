"""Elements of E(n) and of permutations, and how each acts on graphs, features and quantities."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.features import Features
from molequi.graph import Graph
from molequi.ops.irreps import wigner
from molequi.quantities import Quantity


def random_orthogonal(dim: int, *, proper: bool | None = None, generator: torch.Generator | None = None) -> Float[Tensor, "D D"]:
    """A Haar-distributed element of O(D), float64: QR of a Gaussian matrix with the signs fixed (Mezzadri 2007, math-ph/0609050).

    proper: True for rotations, False for those with a reflection, None for either with equal chance.
    """
    q, r = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
    q = q * torch.diagonal(r).sign()
    if proper is not None and (torch.linalg.det(q) > 0) != proper:
        q[:, 0] = -q[:, 0]
    return q


@dataclass(frozen=True, kw_only=True)
class Element:
    """g = (R, t, π): x_i → R x_i + t, then node k of the result is node π[k] of the original.

    rotation: orthogonal (D, D), proper or not. translation: (D,), Å. permutation: (N,), within each graph; None is the identity.
    """

    rotation: Float[Tensor, "D D"]
    translation: Float[Tensor, "D"] | None = None
    permutation: Int[Tensor, "N"] | None = None

    @property
    def proper(self) -> bool:
        return bool(torch.linalg.det(self.rotation) > 0)

    def graph(self, graph: Graph) -> Graph:
        """g · graph with its cells, velocities and given vectors; edges and targets are dropped, neighbours must be searched anew."""
        R = self.rotation.to(graph.pos.dtype)
        pos = graph.pos @ R.T
        if self.translation is not None:
            pos = pos + self.translation.to(pos.dtype)
        order = torch.arange(graph.num_nodes) if self.permutation is None else self.permutation
        return graph.replace(
            pos=pos[order], z=graph.z[order], batch=graph.batch[order],
            vel=None if graph.vel is None else (graph.vel @ R.T)[order], vec=None if graph.vec is None else (graph.vec @ R.T)[order],
            x=None if graph.x is None else graph.x[order],
            pair_index=None if graph.pair_index is None else order.argsort()[graph.pair_index],
            cell=None if graph.cell is None else graph.cell @ R.T, edge_index=None, shift=None, edge_attr=None, cutoff=None, k=None,
            targets={},
        )

    def features(self, features: Features) -> Features:
        """D(g) on every block; in D ≠ 3 only 0e and 1o turn."""
        order = slice(None) if self.permutation is None else self.permutation
        blocks = {}
        for irrep, block in features.blocks.items():
            if irrep == "0e":
                matrix = torch.eye(1, dtype=torch.float64)
            elif irrep == "1o":
                matrix = self.rotation
            else:
                matrix = wigner(irrep, self.rotation)
            blocks[irrep] = (block @ matrix.to(block.dtype).T)[order]
        return Features(blocks=blocks, coordination=features.coordination[order])

    def value(self, what: Quantity, value: Tensor) -> Tensor:
        """The quantity of g · graph, from that of the graph: turned by its rank and parity, permuted if it is per node."""
        R = self.rotation.to(value.dtype)
        if what.rank == 1:
            value = value @ R.T
        elif what.rank == 2:
            value = R @ value @ R.T
        if what.point and self.translation is not None:
            value = value + self.translation.to(value.dtype)
        if what.pseudo and not self.proper:
            value = -value
        return value if what.per == "graph" or self.permutation is None else value[self.permutation]
