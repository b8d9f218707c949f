"""Transformer: attention over the edges of a graph on components of vectors, without any symmetry of
space.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Backbone, Inputs
from molequi.models.sizes import Layers
from molequi.nn.attention import bounded_weights
from molequi.nn.mlp import linear, mlp
from molequi.nn.norms import LayerNorm
from molequi.nn.radial import BesselBasis, Edges, LogDistance, RadialBasis, edges_of


class Transformer(Backbone):
    """Graph transformer without symmetry of space (Vaswani et al. 2017, arXiv 1706.03762).

    Attention runs over the edges of a graph (Dwivedi and Bresson 2020, arXiv 2012.09699). The network has no
    symmetry of space by construction: it learns symmetry from the data, or from rotated copies of them. So it
    is the baseline for audits of learned symmetry, and no force field for orientations that are not in its
    training data.

    Each edge has a perceptron of the components of its vector and of its length; the result enters keys and
    values. "1o" has this name because heads read vectors there. These are free numbers that do not rotate
    with the structure. Permutations are a symmetry. Translations are one, too, unless `absolute` is set,
    since only differences of positions enter.

    Attention weights are envelope · exp(logit), divided by one plus their sum (`TransformerLayer`). So
    nothing jumps where a neighbor enters or leaves, and a node without neighbors keeps its features. Logits
    are bounded, 10 tanh(logit / 10).

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows; 0 or "X" is a plain point.
    cutoff : float or None
        Distance in Å up to which a node sees others, above 0. None: it sees all other nodes.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions, such as ``Inputs(charge=True)``. It accepts
        all of them.
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    channels : int
        Number of features of a node, at least 2.
    layers : int
        Number of layers, above 0.
    heads : int
        Number of attention heads, above 0; `channels` is a multiple of it.
    vectors : int
        Number of channels of "1o", above 0.
    radial : int
        Number of Bessel functions, above 0; without a cutoff it has no meaning.
    dim : int
        Dimensions of space, above 0.
    absolute : bool
        Whether it reads positions themselves, so that translations are no symmetry.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `elements` is no list, or `channels` is no multiple of `heads`.

    Notes
    -----
    Features have ``"0e"`` of shape (N, channels, 1) and ``"1o"`` of shape (N, vectors, D).

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = Transformer(elements=["H", "O"], cutoff=3.0, channels=16, layers=2)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 16, 1), '1o': (3, 16, 3)}
    """

    group = "C1"
    family = "attention without symmetry"
    good_for = "a baseline for measurements of symmetry"
    accepts = (*Backbone.accepts, "electric_field", "velocity")
    smooth_cutoff = True

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        channels: Annotated[int, Ge(2)] = 64,
        layers: Layers = 3,
        heads: Annotated[int, Gt(0)] = 4,
        vectors: Annotated[int, Gt(0)] = 16,
        radial: Annotated[int, Gt(0)] = 16,
        dim: Annotated[int, Gt(0)] = 3,
        absolute: bool = False,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k)
        if channels % heads:
            raise ModelError(
                f"Transformer.heads: found {heads} with channels={channels}; each head has the same number "
                "of channels, so channels must be a multiple of heads"
            )
        self.translations = not absolute
        self.dim, self.absolute, self.velocity = dim, absolute, inputs.velocity
        self.out = {"0e": channels, "1o": vectors}
        self.embedding = self.node_embedding(channels)
        seen = dim * (absolute + inputs.velocity + inputs.vectors)
        self.place = mlp([seen, channels, channels]) if seen else None
        self.basis: RadialBasis = LogDistance() if cutoff is None else BesselBasis(radial, cutoff)
        self.edge = mlp(
            [dim + self.basis.size + self.num_edge_inputs, channels, channels],
            activate_last=True,
        )
        self.layers = nn.ModuleList(TransformerLayer(channels, heads) for _ in range(layers))
        self.norm = LayerNorm(channels)
        self.vectors = linear(channels, vectors * dim)

    def forward(self, graph: Graph) -> Features:
        if graph.dim != self.dim:
            raise ModelError(
                f"this Transformer sees vectors of {self.dim} components, these structures have {graph.dim}; "
                f"build it with dim={graph.dim}"
            )
        h = self.embedding(graph, self.element_index(graph))  # (N, C)
        edges = edges_of(graph, self.cutoff, h.dtype)
        known = self._edge_invariants(self.basis, graph, edges)  # (E, A)
        edge = self.edge(torch.cat([torch.asinh(edges.vector), known], dim=1))  # e_ij  (E, C)
        if self.place is not None:
            h = h + self.place(torch.cat(self._components(graph, h.dtype), dim=1))
        for layer in self.layers:
            h = layer(h, edge, edges)  # (N, C)
        h = self.norm(h)
        vectors = self.vectors(h).reshape(h.shape[0], self.out["1o"], self.dim)  # (N, vectors, D)
        return Features(blocks={"0e": h[:, :, None], "1o": vectors}, coordination=edges.coordination)

    def _components(self, graph: Graph, dtype: torch.dtype) -> list[Float[Tensor, "N _"]]:
        """Components of all vectors of a node that are read. asinh makes large ones harmless."""
        parts: list[Tensor] = [graph.pos] if self.absolute else []
        parts += [self._velocities(graph)] if self.velocity else []
        parts += [graph.vec.flatten(1)] if graph.vec is not None else []
        return [torch.asinh(part.to(dtype)) for part in parts]


class TransformerLayer(nn.Module):
    """One layer: attention over the neighbors, then a perceptron φ on each node,

        h_i += O Σ_j a_ij (g(e_ij) ∘ V h_j + U e_ij)
        h_i += φ(h_i)
        a_ij ∝ u(r_ij) exp(Q h_i · (K h_j + L e_ij) / √(2 d)).

    Each head has its own weights a_ij, with d channels for each head and the envelope u.

    Parameters
    ----------
    channels : int
        Number of features.
    heads : int
        Number of attention heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = LayerNorm(channels), LayerNorm(channels)
        self.query, self.key, self.value = (linear(channels, channels) for _ in range(3))
        self.edge = linear(channels, 3 * channels)
        self.mix = linear(channels, channels)
        self.own = mlp([channels, 2 * channels, channels], last_gain=0.5)

    def forward(
        self, h: Float[Tensor, "N C"], edge: Float[Tensor, "E C"], edges: Edges
    ) -> Float[Tensor, "N C"]:
        """New features.

        Parameters
        ----------
        h : Tensor, shape (N, C)
            Features of the nodes.
        edge : Tensor, shape (E, C)
            Features e_ij of the edges.
        edges : Edges
            The edges.
        """
        normal = self.before(h)
        to_key, gate, to_value = self.edge(edge).chunk(3, dim=1)  # L e_ij, g(e_ij), U e_ij  (E, C)
        key = edges.gather(self.key(normal)) + to_key  # K h_j + L e_ij  (E, C)
        parts = (self.heads, h.shape[1] // self.heads)
        logit = (edges.own(self.query(normal)) * key).unflatten(1, parts).sum(2) / math.sqrt(2 * parts[1])
        weight = bounded_weights(logit, edges.envelope)  # (E, heads)
        value = (edges.gather(self.value(normal)) * gate + to_value).unflatten(1, parts)  # (E, heads, d)
        total = edges.sum((weight[:, :, None] * value).flatten(1)).unflatten(1, parts)  # (N, heads, d)
        mean = (total / (1.0 + edges.sum(weight))[:, :, None]).flatten(1)  # (N, C)
        h = h + self.mix(mean)
        return h + self.own(self.between(h))
