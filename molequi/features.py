"""Features: the output of a backbone for each node, by irrep."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Features:
    """Node features by irrep: `{"0e": (N, C, 1), "1o": (N, C, D), "2e": (N, C, 5)}`.

    `"1o"` is x, y, z as in e3nn; in D ≠ 3 dimensions only `"0e"` (invariants) and `"1o"` (vectors) exist.
    coordination: smooth number of neighbours, (N,); exactly zero for a node that sees nobody.
    """

    blocks: Mapping[str, Float[Tensor, "N C m"]]
    coordination: Float[Tensor, "N"]

    @property
    def scalars(self) -> Float[Tensor, "N C"]:
        return self.blocks["0e"].squeeze(-1)

    @property
    def layout(self) -> str:
        """The irreps of `flat`, as e3nn writes them: `64x0e+64x1o`."""
        return "+".join(f"{block.shape[1]}x{irrep}" for irrep, block in self.blocks.items())

    def flat(self) -> Float[Tensor, "N F"]:
        """All blocks side by side in e3nn's layout, channel by channel."""
        return torch.cat([block.flatten(1) for block in self.blocks.values()], dim=1)
