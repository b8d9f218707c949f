"""Constants that keep their precision when a module is cast."""

from collections.abc import Callable

from torch import Tensor, nn


class Float64Constants(nn.Module):
    """A module with float64 buffers that ``.float()`` and ``.half()`` do not change; only their device
    changes.

    If ``.float()`` rounded coupling coefficients, it would break the symmetry of a later float64 model by
    1e-8. A table of total energies would lose digits. A layer casts such constants where it uses them.

    Examples
    --------
    >>> import torch
    >>> layer = Float64Constants()
    >>> layer.register_constant("third", torch.tensor([1 / 3], dtype=torch.float64))
    >>> layer.float().third.dtype
    torch.float64
    """

    _constants: tuple[str, ...] = ()

    def register_constant(self, name: str, value: Tensor, *, persistent: bool = False) -> None:
        """Register a buffer that keeps its precision.

        Parameters
        ----------
        name : str
            Name of the attribute.
        value : Tensor
            The constant, float64.
        persistent : bool
            Whether it is part of the state dictionary.
        """
        self.register_buffer(name, value, persistent=persistent)
        self._constants = (*self._constants, name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float64Constants":
        before = {name: self.get_buffer(name) for name in self._constants}
        super()._apply(fn, recurse)
        for name, value in before.items():
            setattr(self, name, value.to(self.get_buffer(name).device))
        return self
