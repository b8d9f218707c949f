"""PointHierarchy: messages of scalars and vectors on a cloud and on coarse versions of it, and back."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Backbone, Inputs, Layouts
from molequi.models.painn import Message, Update
from molequi.nn.hierarchy import EPS, ClusterPool, Coarse, FarthestPool, FeatureNorm, Unpool, relative_lengths
from molequi.nn.mlp import linear
from molequi.nn.radial import Edges, edges_of


class PointHierarchy(Backbone):
    """Equivariant U-net of a point cloud (PointNet++, Qi et al. 2017, arXiv 1706.02413, with the equivariant
    layers of PaiNN, arXiv 2102.03150), in any dimension.

    Scalars and vectors pass layers on the cloud, are pooled to a coarse cloud, pass layers there, and so on;
    on the way back they are interpolated, joined with those before the pooling, and pass a layer. So a point
    sees its whole cloud after few layers. The coarse clouds are chosen by farthest point sampling
    (`nn.FarthestPool`) or are learned clusters (`nn.ClusterPool`).

    For point clouds alone. It sees whole clouds, so that the energy of two distant molecules would not be the
    sum of both, and the choice of farthest points jumps when points move.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows; 0 or "X" is a plain point.
    inputs : Inputs, optional
        What it reads of a cloud besides positions: node features and node vectors.
    k : int
        A point sees its k nearest neighbors, in the cloud and in coarse clouds of chosen points.
    axis : sequence of float, optional
        A direction that every node sees, or "learned"; `Backbone.axis` describes the symmetry that remains.
    channels : int
        Number of scalars and of vectors of a node, at least 2.
    layers : int
        Number of layers in each cloud before it is pooled, above 0.
    levels : int
        Number of coarse clouds, from 1 on.
    pooling : {"farthest", "clusters"}
        How coarse clouds are made.
    ratio : float
        The share of points that is left by one pooling, above 0, below 1: for "farthest" of the points, for
        "clusters" from one level to the next.
    clusters : int
        Number of clusters of the first coarse cloud, for pooling="clusters" alone.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `elements` is no list, or `axis` is no direction; at a call, if a structure is periodic.

    Notes
    -----
    Features have ``"0e"`` of shape (N, channels, 1) and ``"1o"`` of shape (N, channels, D). The axis, if
    there is one, is one more "1o". Time and memory are linear in the number of points, except for the search
    for farthest points. It runs on the CPU, once for each cloud whose positions stay the same, and cannot be
    compiled; a network of clusters can.

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = PointHierarchy(elements=["X"], channels=8, levels=1)
    >>> cloud = mq.connect(mq.Graph.single(torch.rand(50, 3)), None, backbone.k)
    >>> {irrep: tuple(block.shape) for irrep, block in backbone(cloud).blocks.items()}
    {'0e': (50, 8, 1), '1o': (50, 8, 3)}
    """

    group = "O(n)"
    family = "U-net of scalars and vectors on coarse clouds"
    good_for = "parts and classes of point clouds; up to 100,000 points"
    accepts = ("node_features", "node_vectors")
    clouds_alone: ClassVar[bool] = True

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] = 8,
        axis: Axis = None,
        channels: Annotated[int, Ge(2)] = 32,
        layers: Annotated[int, Gt(0), Le(1000)] = 1,
        levels: Annotated[int, Ge(1), Le(10)] = 2,
        pooling: Literal["farthest", "clusters"] = "farthest",
        ratio: Annotated[float, Gt(0), Le(0.9)] = 0.25,
        clusters: Annotated[int, Gt(0)] = 16,
    ) -> None:
        super().__init__(elements=elements, cutoff=None, inputs=inputs, k=k, axis=axis)
        self.out = self.channels_with_axis({"0e": channels, "1o": channels})
        self.pooling = pooling
        if pooling == "farthest":
            self.not_compiled = (
                "pooling='farthest' chooses points on the CPU by their positions, and how many edges their "
                "cloud has depends on the data, so that it cannot be compiled; leave accelerate away, or "
                "take pooling='clusters', which is compiled"
            )
        self.embedding = self.node_embedding(channels)
        self.start = linear(inputs.node_vectors, channels) if inputs.node_vectors else None
        fine = 2 + self.num_edge_inputs
        # The clouds of chosen points have node vectors, too; clusters have none.
        coarse = fine if pooling == "farthest" else 2 + (self.direction is not None)
        known = [fine, *[coarse] * levels]
        self.down = nn.ModuleList(
            Stage(channels, known[n], layers, first=n == 0 and self.start is None) for n in range(levels + 1)
        )
        self.up = nn.ModuleList(Stage(channels, known[n], 1) for n in range(levels))
        self.pools = nn.ModuleList(
            FarthestPool(channels, 2, ratio=ratio, k=k)
            if pooling == "farthest"
            else ClusterPool(channels, 2, clusters=max(round(clusters * ratio**n), 1))
            for n in range(levels)
        )
        self.norms = nn.ModuleList(FeatureNorm(channels) for _ in range(2 * levels))
        self.unpools = nn.ModuleList(Unpool(channels, 2) for _ in range(levels))

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of the layers of the first cloud."""
        width = self.embedding.element.embedding_dim
        return {"embedding": f"{width}x0e", "down.0": (f"{width}x0e", ["1o"])}

    def forward(self, graph: Graph) -> Features:
        if graph.pbc is not None:
            raise ModelError(
                "PointHierarchy is for point clouds; these structures are periodic (pbc); take a backbone "
                "for atoms, such as PaiNN"
            )
        s = self.embedding(graph, self.element_index(graph))  # (N, C)
        v = s.new_zeros(s.shape[0], graph.dim, s.shape[1])  # (N, D, C)
        if self.start is not None and graph.vec is not None:
            v = self.start(graph.vec.to(s.dtype).transpose(1, 2))
        edges = edges_of(graph, None, s.dtype)
        cloud, stack, core = graph, [], None
        for n, stage in enumerate(self.down):
            known = self._known(cloud, edges, core)
            s, v = stage(s, v, edges, known, self._scale(n, s))
            if n == len(self.pools):
                break
            s, v = self.norms[n]([s, v])
            pooled, coarse = self.pools[n]([s, v], cloud.pos, cloud.batch, graph.num_graphs)
            stack.append((s, v, edges, known, coarse))
            (s, v), edges, core, cloud = pooled, coarse.edges, coarse.core, _coarse_graph(cloud, coarse)
        fine = edges if not stack else stack[0][2]
        for n in reversed(range(len(stack))):
            old_s, old_v, edges, known, coarse = stack[n]
            s, v = self.unpools[n](self.norms[-1 - n]([s, v]), [old_s, old_v], coarse)
            s, v = self.up[n](s, v, edges, known, self._scale(n, s))
        blocks = {"0e": s[:, :, None], "1o": v.transpose(1, 2)}  # (N, C, 1), (N, C, D)
        return Features(blocks=self.with_axis(blocks), coordination=fine.coordination)

    def _known(self, cloud: Graph, edges: Edges, core: Tensor | None) -> Float[Tensor, "E A"]:
        """Invariants of each edge; those between clusters have a core."""
        known = relative_lengths(edges, core)
        if core is not None:
            axis = None if self.direction is None else self.axis
            more = None if axis is None else (edges.unit @ axis.to(edges.unit))[:, None]
        else:
            more = self.edge_inputs(cloud, edges)
        return known if more is None else torch.cat([known, more], dim=1)

    def _scale(self, level: int, s: Tensor) -> Float[Tensor, ""]:
        """1/√(mean number of neighbors)."""
        if level == 0:
            return self.mean_neighbors.to(s.dtype).rsqrt()
        pool = self.pools[level - 1]
        assert isinstance(pool, (FarthestPool, ClusterPool))
        neighbors = pool.k if isinstance(pool, FarthestPool) else max(pool.clusters - 1, 1)
        return s.new_tensor(neighbors**-0.5)


class Stage(nn.Module):
    """Layers of PaiNN on one cloud (arXiv 2102.03150, eqs. 7-10).

    Parameters
    ----------
    channels : int
        Number of scalars and of vectors.
    known : int
        Number of invariants of an edge.
    layers : int
        Number of layers.
    first : bool
        All vectors are zero before.
    """

    def __init__(self, channels: int, known: int, layers: int, *, first: bool = False) -> None:
        super().__init__()
        self.messages = nn.ModuleList(
            Message(channels, [known, channels], first=first and n == 0, eps=EPS) for n in range(layers)
        )
        self.updates = nn.ModuleList(Update(channels) for _ in range(layers))

    def forward(
        self,
        s: Float[Tensor, "N C"],
        v: Float[Tensor, "N D C"],
        edges: Edges,
        known: Float[Tensor, "E A"],
        scale: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D C"]]:
        for message, update in zip(self.messages, self.updates):
            s, v = update(*message(s, v, edges, known, scale))
        return s, v


def _coarse_graph(cloud: Graph, coarse: Coarse) -> Graph:
    """The nodes of a coarse cloud with the vectors of their points."""
    vec = None if cloud.vec is None or coarse.index is None else cloud.vec.index_select(0, coarse.index)
    return Graph(
        pos=coarse.pos,
        z=coarse.batch.new_zeros(coarse.pos.shape[0]),
        batch=coarse.batch,
        num_graphs=cloud.num_graphs,
        vec=vec,
    )
