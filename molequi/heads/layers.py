"""Energies that are sums of readouts of the layers, as in published MACE models."""

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.heads.physical import check_reach
from molequi.heads.scalars import LinearScalar
from molequi.nn.covalent import BondRepulsion
from molequi.nn.mlp import linear, mlp
from molequi.nn.radial import edges_of
from molequi.quantities import Quantity


class LayerReadouts(LinearScalar):
    """Energy as a sum of readouts of the layers (MACE, arXiv 2206.07697), with the repulsion of nuclei:

        E = Σ_i [E0(z_i) + s(z_i) (Σ_t w_t · h_i^t + φ(h_i^T)) + shift(z_i) + repulsion_i],

    where t counts all layers but the last one, T, and φ is a perceptron without biases. "0e" of the backbone
    has the invariants of the layers side by side, as that of `models.MACE`. See `nn.BondRepulsion`.

    Parameters
    ----------
    item : str or Quantity
        The energy.
    layers : int
        Number of layers of the backbone.
    hidden : int, optional
        Channels of the hidden layer of φ. None: φ is a linear map.
    repulsion : float, optional
        Distance in Å up to which there is a repulsion of nuclei, at most the cutoff of the backbone. None: no
        repulsion.
    repulsion_exponent : int
        Exponent of the polynomial with which it ends, above 1.

    Raises
    ------
    ModelError
        If the quantity is no extensive scalar, or the invariants are no multiple of `layers`.

    Examples
    --------
    >>> import molequi as mq
    >>> from molequi.heads import LayerReadouts
    >>> backbone = mq.MACE(elements=["H", "O"], cutoff=4.0, channels=8, layers=2, l_max=1)
    >>> model = mq.Model(backbone, [LayerReadouts(layers=2, hidden=4), "forces"]).eval()
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> model(mq.connect(water, 4.0))["forces"].shape
    torch.Size([3, 3])
    """

    def __init__(
        self,
        item: str | Quantity = "energy",
        *,
        layers: Annotated[int, Gt(0)],
        hidden: Annotated[int, Gt(0)] | None = 16,
        repulsion: Annotated[float, Gt(0)] | None = None,
        repulsion_exponent: Annotated[int, Gt(1)] = 6,
    ) -> None:
        super().__init__(item)
        if not self.quantity.extensive or self.quantity.pseudo:
            raise ModelError(
                f"LayerReadouts({self.quantity.name}): wanted an extensive scalar, such as 'energy'"
            )
        self.layers, self.width_of_net, self.reach = layers, hidden, repulsion
        self.repulsion = None if repulsion is None else BondRepulsion(repulsion, repulsion_exponent)

    def make(self, channels: Mapping[str, int]) -> None:
        width, rest = divmod(channels["0e"], self.layers)
        if rest or not width:
            raise ModelError(
                f"LayerReadouts({self.quantity.name}).layers: found {self.layers} with {channels['0e']} "
                "invariants; wanted the number of layers of the backbone, whose invariants are side by side"
            )
        self.net = Readouts(width, self.layers, self.width_of_net)  # type: ignore[assignment]

    def contributions(self, graph: Graph, features: Features) -> Float[Tensor, "N"]:
        own = super().contributions(graph, features)
        if self.repulsion is None or self.reach is None:
            return own
        check_reach(self, self.reach, graph)
        edges = edges_of(graph, self.reach, features.scalars.dtype)
        return own + self.repulsion(graph.z, edges).double()


class Readouts(nn.Module):
    """Σ_t w_t · h^t + φ(h^T).

    Parameters
    ----------
    width, layers : int
        Number of invariants of a layer, and of layers.
    hidden : int or None
        Channels of the hidden layer of φ; None for a linear map.
    """

    def __init__(self, width: int, layers: int, hidden: int | None) -> None:
        super().__init__()
        self.width = width
        self.linear = linear(width * (layers - 1), 1) if layers > 1 else None
        self.last = mlp([width, *([] if hidden is None else [hidden]), 1], bias=False)

    def forward(self, h: Float[Tensor, "N C"]) -> Float[Tensor, "N 1"]:
        out = self.last(h[:, -self.width :])
        return out if self.linear is None else out + self.linear(h[:, : -self.width])
