"""Features: the output of a backbone for each node, by irrep."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.util.signature import check_keywords


@check_keywords()
@dataclass(frozen=True, kw_only=True)
class Features:
    """Node features by irrep: `{"0e": (N, C, 1), "1o": (N, C, D), "2e": (N, C, 5)}`.

    Components are ordered as in e3nn; those of ``"1o"`` are x, y, z. In D ≠ 3 dimensions only ``"0e"``
    (invariants) and ``"1o"`` (vectors) exist.

    Parameters
    ----------
    blocks : mapping of str to Tensor, shape (N, C, m)
        Features of C channels by irrep; m is the number of components.
    coordination : Tensor, shape (N,)
        Smooth number of neighbors; exactly zero for a node without neighbors.
    """

    blocks: Mapping[str, Float[Tensor, "N C m"]]
    coordination: Float[Tensor, "N"]

    @property
    def scalars(self) -> Float[Tensor, "N C"]:
        """The invariant features."""
        return self.blocks["0e"].squeeze(-1)

    @property
    def layout(self) -> str:
        """Irreps of `flat` in the notation of e3nn: `64x0e+64x1o`."""
        return "+".join(f"{block.shape[1]}x{irrep}" for irrep, block in self.blocks.items())

    def flat(self) -> Float[Tensor, "N F"]:
        """All blocks next to each other in the layout of e3nn, channel by channel.

        Returns
        -------
        Tensor, shape (N, F)
            Features whose irreps are those of `layout`.
        """
        return torch.cat([block.flatten(1) for block in self.blocks.values()], dim=1)
