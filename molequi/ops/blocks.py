"""Nodes sorted by kind into blocks of one size.

Weights of each kind (each element) are then multiplied as matrix products over blocks.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of nodes of one kind.

    Places that are left over contain a node that is there already; `join` does not read them. While a
    function is compiled, where no shape may depend on values, the number of blocks is the one that the worst
    distribution of kinds needs.

    Parameters
    ----------
    node : Tensor, shape (blocks * size,)
        Node in each place of each block.
    place : Tensor, shape (N,)
        Place of each node.
    kind : Tensor, shape (blocks,)
        Kind of the nodes of each block.
    size : int
        Number of places in a block.

    Examples
    --------
    >>> blocks = blocks_of(torch.tensor([1, 0, 1]), kinds=2, size=2)
    >>> blocks.kind.tolist()
    [0, 1]
    >>> x = torch.tensor([5.0, 6.0, 7.0])
    >>> blocks.split(x).tolist(), blocks.join(blocks.split(x)).tolist()
    ([[6.0, 5.0], [5.0, 7.0]], [5.0, 6.0, 7.0])
    """

    node: Int[Tensor, "P"]
    place: Int[Tensor, "N"]
    kind: Int[Tensor, "blocks"]
    size: int

    def split(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, "blocks size ..."]:
        """From rows of nodes to blocks.

        Parameters
        ----------
        x : Tensor, shape (N, ...)
            One row for each node.

        Returns
        -------
        Tensor, shape (blocks, size, ...)
            The rows in their places.
        """
        return x.index_select(0, self.node).reshape(self.kind.shape[0], self.size, *x.shape[1:])

    def join(self, x: Float[Tensor, "blocks size ..."]) -> Float[Tensor, "N ..."]:
        """From blocks to rows of nodes, the inverse of `split`.

        Parameters
        ----------
        x : Tensor, shape (blocks, size, ...)
            One row for each place.

        Returns
        -------
        Tensor, shape (N, ...)
            One row for each node.
        """
        return x.flatten(0, 1).index_select(0, self.place)


def is_traced(x: Tensor) -> bool:
    """Whether a function is being compiled, so that no shape may depend on values.

    Parameters
    ----------
    x : Tensor
        One of the function's tensors.
    """
    proxies = torch._C._TorchDispatchModeKey.PROXY
    return is_fake(x) or torch._C._get_dispatch_mode(proxies) is not None


def blocks_of(kind: Int[Tensor, "N"], kinds: int, size: int = SIZE) -> Blocks:
    """Sort nodes into blocks.

    Parameters
    ----------
    kind : Tensor, shape (N,)
        Kind of each node, from 0 to `kinds` - 1.
    kinds : int
        Number of kinds.
    size : int
        Number of places in a block.

    Returns
    -------
    Blocks
        The blocks.
    """
    count = kind.shape[0]
    order = torch.argsort(kind, stable=True)
    sizes = (kind[:, None] == torch.arange(kinds, device=kind.device)).sum(0)
    ends = ((sizes + size - 1) // size).cumsum(0)  # in blocks
    skipped = (ends * size).roll(1).index_fill(0, ends.new_zeros(1), 0) - (sizes.cumsum(0) - sizes)
    places = torch.arange(count, device=kind.device) + skipped[kind[order]]
    if is_traced(kind):  # two at least, so that a compiler need not ask
        number = (count + max(kinds, 2) * (size - 1)) // size
    else:
        number = max(int(ends[-1]), 1)
    return Blocks(
        node=order.new_zeros(number * size).scatter(0, places, order),
        place=torch.empty_like(order).scatter(0, order, places),
        kind=torch.searchsorted(ends, torch.arange(number, device=kind.device), right=True).clamp(
            max=kinds - 1
        ),
        size=size,
    )
