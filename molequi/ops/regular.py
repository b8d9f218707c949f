"""Values of senders in a regular graph, where every node receives the same number of edges.

The derivative of a gather is a sum into the senders, which adds rows in random places. If each edge has a
reverse, the same sum is a gather of the reverse edges, followed by a sum over the edges that a node receives.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def gather(
    values: Float[Tensor, "N ..."], sender: Int[Tensor, "E"], reverse: Int[Tensor, "N degree"] | None
) -> Float[Tensor, "E ..."]:
    """Rows of values by sender: row e of the result is ``values[sender[e]]``.

    Parameters
    ----------
    values : Tensor, shape (N, ...)
        One row for each node.
    sender : Tensor, shape (E,)
        Sender of each edge.
    reverse : Tensor, shape (N, degree), optional
        Index of the edge in the other direction, for the edges that each node receives. An edge from a node
        to itself is its own reverse. None if this is not known.

    Returns
    -------
    Tensor, shape (E, ...)
        One row for each edge.
    """
    if reverse is None:
        return values.index_select(0, sender)
    gathered: Tensor = _Gather.apply(values, sender, reverse)
    return gathered


class _Gather(torch.autograd.Function):
    """The gather. `ctx` is the context of autograd, which has no public type."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sender: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(sender, reverse)
        return values.index_select(0, sender)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return _Return.apply(slope, *ctx.saved_tensors), None, None


class _Return(torch.autograd.Function):
    """Sum over the edges that each node sends, the derivative of `_Gather`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sender: Tensor, reverse: Tensor) -> Tensor:
        ctx.save_for_backward(sender, reverse)
        return values.index_select(0, reverse.flatten()).reshape(*reverse.shape, *values.shape[1:]).sum(1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(slope, *ctx.saved_tensors), None, None
