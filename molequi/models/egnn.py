"""EGNN: E(n)-equivariant graph networks on plain coordinates (Satorras et al. 2021, arXiv 2102.09844)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Backbone, Inputs, Layouts
from molequi.models.sizes import Layers
from molequi.nn.cartesian import EGNNLayer
from molequi.nn.mlp import linear
from molequi.nn.radial import BesselBasis, LogDistance, RadialBasis, edges_of


class EGNN(Backbone):
    """E(n)-equivariant graph network (Satorras et al. 2021, arXiv 2102.09844), in any dimension.

    Messages are invariant, and each layer moves the nodes along their edges; `nn.EGNNLayer` has the equations
    (eqs. 3-8).

    Differences from the paper: distances enter through a Bessel basis with a smooth cutoff, or as log(1 + d²)
    without a cutoff; sums are divided by √(mean number of neighbors); and coordinates are stored as
    displacements from the initial positions, so that no digits are lost far from the origin.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows; 0 or "X" is a plain point.
    cutoff : float or None
        Distance in Å up to which a node sees others, above 0. None: it sees all other nodes.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions, such as ``Inputs(charge=True)``. It accepts
        charge, spin, node features, edge features, node vectors, an electric field and velocity (eq. 7).
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    axis : "learned" or sequence of float, optional
        A direction that every node sees, such as that of a uniform field: its components, or "learned" (in
        three dimensions). `Backbone.axis` describes the symmetry that remains.
    channels : int
        Number of invariants of a node, above 0.
    layers : int
        Number of layers, above 0.
    radial : int
        Number of Bessel functions, above 0; without a cutoff it has no meaning.
    attention : bool
        Whether each message has a learned weight between 0 and 1 (paper, eq. 8).
    normalize : bool
        Whether the invariants h of a node are divided by √(1 + ⟨h²⟩) before each layer and at the end.
        Without it they can grow from layer to layer, for rare structures without bound; long trainings of
        flows need it.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `elements` is no list, or `axis` is no direction.

    Notes
    -----
    Features have ``"0e"`` of shape (N, channels, 1) and ``"1o"`` of shape (N, layers, D): the displacement in
    each layer, in Å, whose sum is the total displacement. The axis, if there is one, is one more "1o".

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = EGNN(elements=["H", "O"], cutoff=3.0, channels=16, layers=2)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 16, 1), '1o': (3, 2, 3)}
    """

    group = "O(n)"
    family = "invariant messages that move points"
    good_for = "point clouds, particles, velocities; fast"
    accepts = (*Backbone.accepts, "electric_field", "velocity")
    smooth_cutoff = True
    layer: type[EGNNLayer] = EGNNLayer

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        axis: Axis = None,
        channels: Annotated[int, Gt(0)] = 128,
        layers: Layers = 4,
        radial: Annotated[int, Gt(0)] = 16,
        attention: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        self.out = self.channels_with_axis({"0e": channels, "1o": layers})
        self.normalize = normalize
        self.embedding = self.node_embedding(channels)
        basis: RadialBasis = LogDistance() if cutoff is None else BesselBasis(radial, cutoff)
        self.speed = linear(1, channels) if inputs.velocity else None
        self.layers = nn.ModuleList(
            self.layer(
                channels=channels,
                basis=basis,
                edge_inputs=self.num_edge_inputs,
                attention=attention,
                velocity=inputs.velocity,
            )
            for _ in range(layers)
        )

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of each layer."""
        width = self.embedding.element.embedding_dim
        layers: dict[str, Layouts] = {f"layers.{k}": (f"{width}x0e", "1x1o") for k in range(len(self.layers))}
        return {"embedding": f"{width}x0e", **layers}

    def forward(self, graph: Graph) -> Features:
        h = self.embedding(graph, self.element_index(graph))  # (N, C)
        edges = edges_of(graph, self.cutoff, h.dtype)
        scale = self.mean_neighbors.to(h.dtype).rsqrt()  # C
        known = self.edge_inputs(graph, edges)  # a_ij  (E, A)
        velocity = None
        if self.speed is not None:
            velocity = self._velocities(graph).to(h.dtype)  # v_i  (N, D)
            h = h + self.speed(velocity.square().sum(1, keepdim=True).log1p())
        moved = torch.zeros_like(graph.pos, dtype=h.dtype)  # x_i - x_i^init  (N, D)
        steps = []
        for layer in self.layers:
            h, step = layer(self.normalized(h), moved, velocity, edges, known, scale)  # eqs. 3-8
            moved = moved + step
            steps.append(step)
        blocks = {
            "0e": self.normalized(h)[:, :, None],
            "1o": torch.stack(steps, dim=1),
        }  # (N, C, 1), (N, layers, D)
        return Features(blocks=self.with_axis(blocks), coordination=edges.coordination)

    def normalized(self, h: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Invariants of at most length √C, or as they are.

        Parameters
        ----------
        h : Tensor, shape (N, C)
            Invariants of the nodes.
        """
        return h * (1 + h.square().mean(1, keepdim=True)).rsqrt() if self.normalize else h
