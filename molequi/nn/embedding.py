"""First node features: element, given features, total charge and spin."""

from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.nn.mlp import linear, mlp


class NodeEmbedding(nn.Module):
    """Invariants h of shape (N, channels) from what is given about each node and its graph.

    Total charge and spin are properties of a whole graph; each enters through a small perceptron and gates the element's
    embedding, so that it can act differently on different elements.
    """

    def __init__(
        self,
        *,
        num_elements: int,
        channels: int,
        node_features: int = 0,
        charge: bool = False,
        spin: bool = False,
    ):
        super().__init__()
        self.element = nn.Embedding(num_elements, channels)
        self.features = linear(node_features, channels, bias=True) if node_features else None
        self.totals = nn.ModuleDict()
        for name, used in (("charge", charge), ("spin", spin)):
            if used:
                self.totals[name] = mlp([1, channels, channels])

    def forward(self, graph: Graph, element: Tensor) -> Float[Tensor, "N C"]:
        h = self.element(element)
        start = h
        for name, net in self.totals.items():
            value = getattr(graph, name)
            if value is None:
                raise ModelError(
                    f"this model takes the total {name} of each structure, and the structures have none; give '{name}'"
                )
            h = h + start * net(value.to(h.dtype)[:, None])[graph.batch]
        if self.features is not None:
            if graph.x is None or graph.x.shape[1] != self.features.in_features:
                found = "none" if graph.x is None else graph.x.shape[1]
                raise ModelError(
                    f"this model takes {self.features.in_features} features of each node (Graph.x); found {found}"
                )
            h = h + self.features(graph.x.to(h.dtype))
        elif graph.x is not None and graph.x.shape[1]:
            raise ModelError(
                f"the structures have {graph.x.shape[1]} features a node and the model takes none; "
                f"build it with inputs=Inputs(node_features={graph.x.shape[1]})"
            )
        return h
