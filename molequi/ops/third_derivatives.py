"""Operations of torch whose third derivatives are wrong, replaced while such derivatives are needed.

The derivative of `torch.nn.functional.layer_norm` keeps mean and standard deviation as numbers. Its own
derivative takes them as constants in turn, so that third derivatives of a network with layer norms are wrong,
without an error. The formula in plain operations has all derivatives.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _PlainNorms(TorchFunctionMode):
    """Layer norms are computed by `layer_norm` inside. `func` is what torch calls."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        function = layer_norm if func is torch.nn.functional.layer_norm else func
        return function(*args, **(kwargs or {}))


def third_derivatives(needed: bool) -> AbstractContextManager[Any]:
    """A context in which layer norms, those of your own modules too, can be differentiated any number of
    times.

    Parameters
    ----------
    needed : bool
        Whether third derivatives are needed; if not, nothing changes.

    Returns
    -------
    context manager
    """
    return _PlainNorms() if needed else nullcontext()


def layer_norm(
    values: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The same as `torch.nn.functional.layer_norm`, in plain operations.

    Parameters
    ----------
    values : Tensor, shape (..., *normalized_shape)
        What is normalized over its last axes.
    normalized_shape : sequence of int
        Sizes of these axes.
    weight, bias : Tensor, optional
        Factor and summand, of this shape.
    eps : float
        Added to the variance.

    Returns
    -------
    Tensor, shape of `values`

    Examples
    --------
    >>> layer_norm(torch.tensor([[1.0, 3.0]]), [2], eps=0.0).tolist()
    [[-1.0, 1.0]]
    """
    axes = tuple(range(-len(normalized_shape), 0))
    away = values - values.mean(axes, keepdim=True)
    out = away * torch.rsqrt(away.square().mean(axes, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias
