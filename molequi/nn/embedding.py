"""Initial node features from elements, features of the nodes, total charge and spin."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.nn.mlp import linear, mlp


class NodeEmbedding(nn.Module):
    """Invariants of each node from its element, its features, and the total charge and spin of its graph:

        h_i = (1 + φ_q(q) + φ_s(s)) ∘ E(z_i) + W x_i.

    Total charge q and spin s belong to a whole graph. As factors of the element's embedding E, they can act
    differently on different elements.

    Parameters
    ----------
    num_elements : int
        Number of elements.
    channels : int
        Number of invariants of a node.
    node_features : int
        Number of features x of a node (``Graph.x``).
    charge, spin : bool
        Read ``Graph.charge`` and ``Graph.spin``.

    Examples
    --------
    >>> import torch
    >>> from molequi import Graph
    >>> graph = Graph.single([[0, 0, 0], [0.96, 0, 0]], ["O", "H"], charge=-1)
    >>> embedding = NodeEmbedding(num_elements=2, channels=8, charge=True)
    >>> embedding(graph, torch.tensor([1, 0])).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        *,
        num_elements: int,
        channels: int,
        node_features: int = 0,
        charge: bool = False,
        spin: bool = False,
    ) -> None:
        super().__init__()
        self.element = nn.Embedding(num_elements, channels)
        self.features = linear(node_features, channels, bias=True) if node_features else None
        self.totals = nn.ModuleDict()
        for name, used in (("charge", charge), ("spin", spin)):
            if used:
                self.totals[name] = mlp([1, channels, channels])

    def forward(self, graph: Graph, element: Int[Tensor, "N"]) -> Float[Tensor, "N C"]:
        """The invariants.

        Parameters
        ----------
        graph : Graph
            A batch of structures.
        element : Tensor, shape (N,)
            Number of each node's element, from 0 to num_elements - 1.

        Returns
        -------
        Tensor, shape (N, channels)
            h.

        Raises
        ------
        ModelError
            If the structures have no charge or spin that is read, or another number of node features.
        """
        h = self.element(element)
        start = h
        for name, net in self.totals.items():
            value = total_of(graph, name)
            h = h + start * net(value.to(h.dtype)[:, None])[graph.batch]
        if self.features is not None:
            if graph.x is None or graph.x.shape[1] != self.features.in_features:
                found = "none" if graph.x is None else graph.x.shape[1]
                raise ModelError(
                    f"this model takes {self.features.in_features} features of each node (Graph.x); found "
                    f"{found}"
                )
            h = h + self.features(graph.x.to(h.dtype))
        elif graph.x is not None and graph.x.shape[1]:
            raise ModelError(
                f"the structures have {graph.x.shape[1]} features a node and the model takes none; "
                f"build it with inputs=Inputs(node_features={graph.x.shape[1]})"
            )
        return h


def total_of(graph: Graph, name: str) -> Float[Tensor, "G"]:
    """The total charge or the spin multiplicity of each structure.

    Parameters
    ----------
    graph : Graph
        A batch of structures.
    name : {"charge", "spin"}
        Which of them.

    Raises
    ------
    ModelError
        If the structures do not state it.
    """
    value: Tensor | None = getattr(graph, name)
    if value is None:
        neutral = {"charge": "0 if all are neutral", "spin": "the multiplicity, 1 for singlets"}[name]
        raise ModelError(
            f"this model takes the total {name} of each structure, and the structures have none; write it "
            f"({neutral}) as atoms.info['{name}'] of ASE, {name}=… in the header of an XYZ file, or "
            f"Graph.single(…, {name}=…); readers take one for all structures of a file: keys={{'{name}': …}}"
        )
    return value
