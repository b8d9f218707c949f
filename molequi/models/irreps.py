"""What backbones on irreps in three dimensions share: MACE, NequIP, GauntACE and Equiformer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Backbone, Layouts
from molequi.nn.embedding import NodeEmbedding
from molequi.nn.radial import Edges, RadialBasis, edges_of
from molequi.ops import irreps as ir


class IrrepsBackbone(Backbone):
    """A backbone on irreps in three dimensions.

    Its layers act on features of shape (N, M, C): the components of several irreps, channels last. A subclass
    sets the attributes and calls `begin` and `features` in its `forward`.

    Attributes
    ----------
    layouts : list of list of str
        Irreps of the embedding and of each layer.
    embedding : NodeEmbedding
        Initial invariants.
    basis : RadialBasis
        Functions of the distance.
    stack : str
        Name of the attribute with the layers.
    """

    smooth_cutoff = True
    accepts = (*Backbone.accepts, "electric_field")
    stack: str = "layers"
    layouts: list[list[str]]
    embedding: NodeEmbedding
    basis: RadialBasis

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of each layer."""
        width = self.embedding.element.embedding_dim
        layers: dict[str, Layouts] = {f"{self.stack}.{k}": list(i) for k, i in enumerate(self.layouts[1:])}
        return {"embedding": f"{width}x0e", **layers}

    def begin(
        self, graph: Graph
    ) -> tuple[Int[Tensor, "N"], Float[Tensor, "N 1 C"], Edges, Float[Tensor, "E R"]]:
        """What the first layer reads.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures.

        Returns
        -------
        element : Tensor, shape (N,)
            Index of each node's element.
        h : Tensor, shape (N, 1, C)
            Initial features, which are invariants.
        edges : Edges
            The edges.
        radial : Tensor, shape (E, R)
            Radial functions and `edge_inputs` of each edge.

        Raises
        ------
        ModelError
            If the structures are not three-dimensional, or do not have the declared inputs.
        """
        if graph.dim != 3:
            raise ModelError(
                f"{type(self).__name__} works in 3 dimensions, these structures have {graph.dim}; EGNN and "
                "PaiNN take any number"
            )
        element = self.element_index(graph)
        h = self.embedding(graph, element)[:, None, :]
        edges = edges_of(graph, self.cutoff, h.dtype)
        return element, h, edges, self._edge_invariants(self.basis, graph, edges)

    def features(
        self, h: Float[Tensor, "N M C"], edges: Edges, scalars: Sequence[Float[Tensor, "N _"]] = ()
    ) -> Features:
        """Features by irrep.

        Parameters
        ----------
        h : Tensor, shape (N, M, C)
            Output of the last layer.
        edges : Edges
            The edges.
        scalars : sequence of Tensor, shape (N, C), optional
            Invariants side by side that take the place of the "0e" in `h`.

        Returns
        -------
        Features
            Blocks of shape (N, C, m), with the axis if there is one.
        """
        parts = h.split(ir.sizes(self.layouts[-1]), dim=1)
        blocks = self.with_axis({i: part.transpose(1, 2) for i, part in zip(self.layouts[-1], parts)})
        if scalars:
            blocks = blocks | {"0e": torch.cat(list(scalars), dim=1)[:, :, None]}
        return Features(blocks=blocks, coordination=edges.coordination)


def natural_layouts(
    where: str, *, layers: int, l_max: int, l_hidden: int, l_out: int | None
) -> list[list[str]]:
    """Irreps of natural parity of the embedding and of each layer: 0e, 1o, 2e, … up to a degree.

    Parameters
    ----------
    where : str
        Name of the backbone, for messages.
    layers : int
        Number of layers.
    l_max : int
        Highest degree of the features A, which are summed over neighbors.
    l_hidden, l_out : int
        Highest degree between layers, and of the last layer; None for the latter: as between layers.

    Raises
    ------
    ModelError
        If a degree exceeds `l_max`.

    Examples
    --------
    >>> natural_layouts("MACE", layers=2, l_max=3, l_hidden=1, l_out=0)
    [['0e'], ['0e', '1o'], ['0e']]
    """
    for option, value in (("l_hidden", l_hidden), ("l_out", l_out)):
        if value is not None and value > l_max:
            raise ModelError(
                f"{where}.{option}: found {value} with l_max={l_max}; A has no features above l_max, so "
                f"{option} is at most l_max"
            )
    degrees = [0, *[l_hidden] * (layers - 1), l_hidden if l_out is None else l_out]
    return [[ir.natural(l) for l in range(degree + 1)] for degree in degrees]
