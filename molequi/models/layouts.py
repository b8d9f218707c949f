"""Layouts of the outputs of layers, as `Backbone.states` describes them: split into irreps, and joined."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from molequi.errors import ConfigError, ModelError
from molequi.models.base import Layout
from molequi.ops import irreps as ir

_WANTED = "irreps such as '64x0e+16x1o', ['0e', '1o'] or 'point'"


class LayerLayout:
    """Splits a tensor of one layout into parts (…, channels, components) for each irrep, and joins them.

    Parameters
    ----------
    layout : str or list of str
        A layout as in `Backbone.states`.
    dim : int
        Number of dimensions of space.
    where : str
        What messages begin with.

    Raises
    ------
    ConfigError
        If it is no layout.

    Examples
    --------
    >>> import torch
    >>> layout = LayerLayout("2x0e+1x1o", 3, "layer")
    >>> [(irrep, tuple(part.shape)) for irrep, part in layout.split(torch.zeros(4, 5))]
    [('0e', (4, 2, 1)), ('1o', (4, 1, 3))]
    """

    def __init__(self, layout: Layout, dim: int, where: str) -> None:
        self.layout, self.where = layout, where
        if layout == "point":
            self.blocks = [(1, "point", dim)]
        elif isinstance(layout, list) and layout and all(isinstance(i, str) for i in layout):
            self.blocks = [(1, i, self._size(i, dim)) for i in layout]
        elif isinstance(layout, str):
            terms = layout.split("+")
            known = [m for t in terms if (m := re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?(\d+[eo])\s*", t))]
            if len(known) < len(terms):
                raise ConfigError(f"{where}: {layout!r} is no layout; wanted {_WANTED}")
            self.blocks = [(int(m[1] or 1), m[2], self._size(m[2], dim)) for m in known]
        else:
            raise ConfigError(f"{where}: {layout!r} is no layout; wanted {_WANTED}")
        self.widths = [channels * size for channels, _, size in self.blocks]

    def _size(self, irrep: str, dim: int) -> int:
        if not re.fullmatch(r"\d+[eo]", irrep):
            raise ConfigError(
                f"{self.where}: {irrep!r} is no irrep; wanted a degree and a parity, such as '0e' or '1o'"
            )
        if dim == 3:
            return 2 * ir.parse(irrep)[0] + 1
        if irrep not in ("0e", "1o"):
            raise ConfigError(f"{self.where}: {irrep} in {dim} dimensions, where only '0e' and '1o' exist")
        return 1 if irrep == "0e" else dim

    def check(self, value: object) -> None:
        """Check that a layer returned what its layout says.

        Parameters
        ----------
        value : object
            What the layer returned.

        Raises
        ------
        ModelError
            If it is no tensor, or has another shape.
        """
        rows, wanted = isinstance(self.layout, list), sum(self.widths)
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{self.where}: the layer returns {type(value).__name__}; wanted a tensor, or a tuple of them"
            )
        axis = 1 if rows else value.ndim - 1
        if (value.ndim != 3 if rows else value.ndim < 2) or value.shape[axis] != wanted:
            raise ModelError(
                f"{self.where}: the layout {self.layout!r} has {wanted} components on the "
                f"{'second' if rows else 'last'} axis, and "
                f"the layer returns a tensor of shape {tuple(value.shape)}; give the layout of what it "
                "returns"
            )

    def split(self, value: Tensor) -> list[tuple[str, Tensor]]:
        """Irreps and their parts, shape (…, channels, components).

        Parameters
        ----------
        value : Tensor
            What the layer returned.
        """
        rows = isinstance(self.layout, list)
        parts = value.split(self.widths, dim=1 if rows else -1)
        return [
            (irrep, part.transpose(1, 2) if rows else part.unflatten(-1, (channels, size)))
            for part, (channels, irrep, size) in zip(parts, self.blocks)
        ]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The tensor whose parts these are, the inverse of `split`.

        Parameters
        ----------
        parts : sequence of Tensor
            Parts in the order of `split`.
        """
        if isinstance(self.layout, list):
            return torch.cat([part.transpose(1, 2) for part in parts], dim=1)
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)
