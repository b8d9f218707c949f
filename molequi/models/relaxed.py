"""EGNN and NequIP that are equivariant as far as the gates of their layers say: invariant, equivariant, free and all between, learned."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le, Len

from molequi.errors import ModelError
from molequi.models.base import Inputs
from molequi.models.egnn import EGNN
from molequi.models.nequip import NequIP
from molequi.nn.relaxed import GATES, RelaxedConvolution, RelaxedEGNNLayer, is_strict

Gates = Annotated[Sequence[float], Len(3, 3)]


class _Declared:
    """The group of the strict backbone where θ of all layers is 0, and "C1" otherwise, whatever the gates are, for these are learned."""

    strict = "O(n)"

    @property
    def group(self) -> str:
        return self.strict if is_strict(self) else "C1"

    @group.setter
    def group(self, of_the_strict_one: str) -> None:
        self.strict = of_the_strict_one


class RelaxedEGNN(_Declared, EGNN):
    """EGNN whose updates are α · E(n) + (1 - α) · free, with α learned for each node; with α = 1 it is `EGNN` to the last bit.

    `nn.relaxed.RelaxedEGNNLayer` has the equations. c = 0 is α = 1; the weights that EGNN has too bear the same names; gates (1, 0, 0) are
    invariant and move nothing. `nn.relaxed.set_theta(model, 0)` closes the free part for good, and the model declares O(n) again; else "C1".
    The free part sees directions of the laboratory and no positions, so that translations hold.
    A loss on training data never grows where symmetry is given up: gates that follow it alone end free, on symmetric data too.

    Options are those of `EGNN`, and gates: a, b, c of all layers at the start. dim: dimensions of space.
    """

    layer = RelaxedEGNNLayer

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        channels: Annotated[int, Gt(0)] = 128,
        layers: Annotated[int, Gt(0)] = 4,
        radial: Annotated[int, Gt(0)] = 16,
        attention: bool = False,
        gates: Gates = GATES,
        dim: Annotated[int, Gt(0)] = 3,
    ):
        EGNN.__init__(
            self,
            elements=elements,
            cutoff=cutoff,
            inputs=inputs,
            k=k,
            channels=channels,
            layers=layers,
            radial=radial,
            attention=attention,
        )
        self.dim = dim
        for layer in self.layers:
            layer.open(gates, dim=dim)

    def forward(self, graph):
        if graph.dim != self.dim:
            raise ModelError(
                f"this RelaxedEGNN has free weights for {self.dim} dimensions and these structures have {graph.dim}; "
                f"build it with dim={graph.dim}"
            )
        return super().forward(graph)


class RelaxedNequIP(_Declared, NequIP):
    """NequIP with kernels a W_inv(r) + b Σ_l R_l(r) Y_l(r̂) ⊗ + c Ψ(x_ij): strictly invariant for (1, 0, 0), equivariant for c = 0, else free.

    `nn.relaxed.RelaxedConvolution` has the equations. With a = b = 1 and c = 0 it is `NequIP` to the last bit, and the weights that NequIP
    has too bear the same names. `nn.relaxed.set_theta(model, 0)` closes the free part for good, and the model declares O(3) again; else "C1".
    The free part sees directions of the laboratory and no positions, so that translations hold.
    A loss on training data never grows where symmetry is given up: gates that follow it alone end free, on symmetric data too.

    Options are those of `NequIP`, and gates: a, b, c of all layers at the start.
    """

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        channels: Annotated[int, Gt(0)] = 64,
        layers: Annotated[int, Gt(0)] = 3,
        l_max: Annotated[int, Ge(0), Le(6)] = 2,
        parity: bool = False,
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        radial: Annotated[int, Gt(0)] = 8,
        radial_hidden: Sequence[Annotated[int, Gt(0)]] = (64, 64),
        gates: Gates = GATES,
    ):
        NequIP.__init__(
            self,
            elements=elements,
            cutoff=cutoff,
            inputs=inputs,
            k=k,
            channels=channels,
            layers=layers,
            l_max=l_max,
            parity=parity,
            l_out=l_out,
            radial=radial,
            radial_hidden=radial_hidden,
        )
        for interaction in self.interactions:
            interaction.convolution = RelaxedConvolution(interaction.convolution, gates)
