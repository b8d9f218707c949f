"""Structures and small models that the tests of the audit share."""

import torch

from molequi.graph import Graph

ELEMENTS = ["H", "C", "O"]


def molecule(seed: int = 0, nodes: int = 7, **given) -> Graph:
    """Atoms at random, none nearer than 0.8 Å to another."""
    generator = torch.Generator().manual_seed(seed)
    pos = [torch.zeros(3, dtype=torch.float64)]
    while len(pos) < nodes:
        new = 1.6 * torch.randn(3, generator=generator, dtype=torch.float64)
        if min(float((new - p).norm()) for p in pos) > 0.8:
            pos.append(new)
    z = torch.tensor([1, 6, 8])[torch.arange(nodes) % 3]
    return Graph.single(torch.stack(pos), z, **given)


def crystal(pbc=True) -> Graph:
    """A skewed cell of five atoms, smaller than the cutoffs used here."""
    pos = torch.tensor(
        [[0.1, 0.2, 0.0], [1.5, 0.4, 1.1], [0.3, 1.9, 2.0], [2.2, 2.3, 0.3], [1.9, 1.1, 2.9]],
        dtype=torch.float64,
    )
    cell = torch.tensor([[3.4, 0.0, 0.0], [0.7, 3.6, 0.0], [0.3, -0.4, 3.8]], dtype=torch.float64)
    return Graph.single(pos, [1, 6, 8, 1, 6], cell=cell, pbc=pbc)
