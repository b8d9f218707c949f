"""Senders of a regular graph: every node receives the same number of edges, and the way back along each of them is known.

The derivative of a gather is a sum into the senders, row by row wherever they lie. When each edge has one in the other direction, the same sum
is a gather of these and a sum over the edges that a node receives: nothing is added into random places.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def gather(
    values: Float[Tensor, "N ..."], sender: Int[Tensor, "E"], reverse: Int[Tensor, "N degree"] | None
) -> Float[Tensor, "E ..."]:
    """Row e of the result is the row `sender[e]` of `values`.

    reverse: of each edge, those of one node in a row, the index of that in the other direction; of an edge from a node to itself its own. None:
    not known.
    """
    return values.index_select(0, sender) if reverse is None else _Gather.apply(values, sender, reverse)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, sender, reverse):
        ctx.save_for_backward(sender, reverse)
        return values.index_select(0, sender)

    @staticmethod
    def backward(ctx, slope):
        return _Return.apply(slope, *ctx.saved_tensors), None, None


class _Return(torch.autograd.Function):
    """What each node sent along its edges, summed."""

    @staticmethod
    def forward(ctx, values, sender, reverse):
        ctx.save_for_backward(sender, reverse)
        return values.index_select(0, reverse.flatten()).reshape(*reverse.shape, *values.shape[1:]).sum(1)

    @staticmethod
    def backward(ctx, slope):
        return _Gather.apply(slope, *ctx.saved_tensors), None, None
