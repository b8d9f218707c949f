"""Nodes sorted by kind into blocks of one size, so that weights of each kind are matrix products over blocks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of `size` nodes of one kind. Places that are left over repeat a node and are read by no one.

    There are as many blocks as the worst distribution of kinds needs, so that no shape depends on values and the whole can be compiled.
    """

    node: Int[Tensor, "P"]  # in each place of each block
    place: Int[Tensor, "N"]  # of each node
    kind: Int[Tensor, "blocks"]
    size: int

    def split(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "blocks size ..."]:
        """Rows of nodes to blocks."""
        return x.index_select(0, self.node).reshape(self.kind.shape[0], self.size, *x.shape[1:])

    def join(self, x: Float[Tensor, "blocks size ..."]) -> Float[Tensor, "N ..."]:
        """Back again."""
        return x.flatten(0, 1).index_select(0, self.place)


def blocks_of(kind: Int[Tensor, "N"], kinds: int, size: int = SIZE) -> Blocks:
    """Blocks for nodes of kinds 0 … kinds - 1."""
    count = kind.shape[0]
    order = torch.argsort(kind, stable=True)
    sizes = (kind[:, None] == torch.arange(kinds, device=kind.device)).sum(0)
    ends = ((sizes + size - 1) // size).cumsum(0)  # in blocks
    skipped = (ends * size).roll(1).index_fill(0, ends.new_zeros(1), 0) - (sizes.cumsum(0) - sizes)
    places = torch.arange(count, device=kind.device) + skipped[kind[order]]
    number = (count + max(kinds, 2) * (size - 1)) // size  # two at least, so that a compiler need not ask
    return Blocks(
        node=order.new_zeros(number * size).scatter(0, places, order),
        place=torch.empty_like(order).scatter(0, order, places),
        kind=torch.searchsorted(ends, torch.arange(number, device=kind.device), right=True).clamp(
            max=kinds - 1
        ),
        size=size,
    )
