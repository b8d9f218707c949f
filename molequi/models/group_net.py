"""GroupConvNet: features on a finite group of rotations, convolved over points and the group."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Backbone, Inputs, Layouts
from molequi.models.sizes import Layers
from molequi.nn.group_convolution import GroupPointConvolution, GroupPool, Kernel
from molequi.nn.hierarchy import relative_lengths
from molequi.nn.mlp import linear
from molequi.nn.radial import BernsteinBasis, BesselBasis, RadialBasis, edges_of
from molequi.nn.relaxed import lift
from molequi.symmetry import Group


class GroupConvNet(Backbone):
    """Regular group convolutions on points (Cohen and Welling 2016, arXiv 1602.07576; separated into space
    and group as by Bekkers et al. 2024, arXiv 2310.02970), for the symmetry groups of the regular polyhedra.

    Each node has features on the group: one number for each rotation of a tetrahedron (T, 12), octahedron (O,
    24) or icosahedron (I, 60), and with a reflection (Td, Th, Oh, Ih). They allow any nonlinearity and
    kernels of any form. It is exactly equivariant under the finite group, whose two-fold axes are along x, y
    and z, and under translations and permutations; for other rotations there is an error, which
    `molequi.symmetries` measures.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows; 0 or "X" is a plain point.
    cutoff : float or None
        Distance in Å up to which a node sees others, above 0. None: it sees all other nodes.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions. It accepts charge, spin, node features, edge
        features, node vectors and an electric field.
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    group : {"T", "Td", "Th", "O", "Oh", "I", "Ih"}
        The group.
    channels : int
        Number of channels of each element of the group, at least 2.
    layers : int
        Number of layers, above 0.
    kernel : {"harmonics", "gaussians", "mlp"}
        Functions of the vector from node to node, see `nn.GroupKernel`.
    l_max : int
        Highest degree of the harmonics, 0 to 6.
    degree : int, optional
        Highest degree of the filters over the group, 0 to 6, which makes the error for other rotations
        smaller, see `nn.GroupLinear`. None: any filter.
    radial : int
        Number of radial functions, above 0.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `elements` is no list; at a call, if the structures are not three-dimensional.

    Notes
    -----
    Features have ``"0e"`` of shape (N, channels, 1) and ``"1o"`` of shape (N, channels, 3), which transform
    as their names say under the elements of the group. Time and memory grow with the number of elements of
    the group.

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = GroupConvNet(elements=["H", "O"], cutoff=3.0, group="T", channels=4, layers=2)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 4, 1), '1o': (3, 4, 3)}
    """

    group = "O"
    family = "features on a finite group of rotations"
    accepts = (*Backbone.accepts, "electric_field")
    good_for = "point clouds and crystals with axes along x, y and z"
    smooth_cutoff = True

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        group: Literal["T", "Td", "Th", "O", "Oh", "I", "Ih"] = "O",
        channels: Annotated[int, Ge(2)] = 16,
        layers: Layers = 3,
        kernel: Kernel = "harmonics",
        l_max: Annotated[int, Ge(0), Le(6)] = 2,
        degree: Annotated[int, Ge(0), Le(6)] | None = None,
        radial: Annotated[int, Gt(0)] = 8,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k)
        self.group, self.out = group, {"0e": channels, "1o": channels}
        rotations = Group(name=group).elements
        self.embedding = self.node_embedding(channels)
        self.basis: RadialBasis = (
            BernsteinBasis(radial, decay=1.0) if cutoff is None else BesselBasis(radial, cutoff)
        )
        known = radial + self.num_edge_inputs
        self.layers = nn.ModuleList(
            GroupPointConvolution(rotations, channels, known, kernel=kernel, l_max=l_max, degree=degree)
            for _ in range(layers)
        )
        self.start = linear(3 * inputs.vectors, channels) if inputs.vectors else None
        self.pool = GroupPool(rotations, channels)

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of the pooling over the group."""
        width = self.embedding.element.embedding_dim
        return {"embedding": f"{width}x0e", "pool": (f"{width}x0e", None)}

    def forward(self, graph: Graph) -> Features:
        if graph.dim != 3:
            raise ModelError(
                f"GroupConvNet works in 3 dimensions, these structures have {graph.dim}; EGNN and PaiNN take "
                "any number"
            )
        s = self.embedding(graph, self.element_index(graph))  # (N, C)
        edges = edges_of(graph, self.cutoff, s.dtype)
        if self.cutoff is None:
            reduced = relative_lengths(edges)[:, 1]  # so that the unit of the points does not matter
            x, radial = edges.unit * reduced[:, None], self.basis(reduced)
        else:
            x, radial = edges.vector / self.cutoff, self.basis(edges.length)
        more = self.edge_inputs(graph, edges)
        radial = radial if more is None else torch.cat([radial, more], dim=1)
        rotations = self.pool.elements
        f = s[:, None].expand(-1, len(rotations), -1)  # (N, G, C)
        if self.start is not None and graph.vec is not None:
            f = f + self.start(lift(graph.vec.to(s.dtype), rotations))
        scale = self.mean_neighbors.to(s.dtype).rsqrt()
        for layer in self.layers:
            f = f + layer(f, x, edges, radial, scale)
        scalars, vectors = self.pool(f)
        blocks = {"0e": scalars[:, :, None], "1o": vectors}
        return Features(blocks=blocks, coordination=edges.coordination)
