"""Pooling and unpooling of point clouds: coarse clouds of chosen points or of learned clusters.

Features are a sequence of tensors of shape (N, …, C), one for each irrep, channels last: scalars (N, C) and
vectors (N, D, C), or the parts of features (N, M, C) on irreps. The first has the invariants. Each has
matrices of its own, which mix channels, so that everything here is equivariant.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.nn.mlp import linear, mlp
from molequi.nn.norms import LayerNorm, check_layer_norm
from molequi.nn.radial import Edges
from molequi.ops import safe
from molequi.ops.sampling import farthest_points, nearest_points
from molequi.ops.segment import segment_mean, segment_softmax, segment_sum

EPS = 0.01  # of layer norms: one level multiplies gradients at most by 10 where all channels are equal
INTERPOLATED = 3  # nearest chosen points of which each point is a mean
KEPT_POINTS = 4_000_000  # of clouds whose coarse clouds are remembered


@dataclass(frozen=True, kw_only=True)
class Coarse:
    """A coarse cloud of n nodes and its links to the N points of the fine one.

    Parameters
    ----------
    pos : Tensor, shape (n, D)
        Positions.
    batch : Tensor, shape (n,)
        Cloud of each node.
    edges : Edges
        Edges between its nodes.
    node, point : Tensor, shape (L,)
        Node and point of each link.
    weight : Tensor, shape (L,)
        Weight of each link. The weights of the links of a point add up to one.
    index : Tensor, shape (n,), optional
        The point that each node is; None for clusters.
    core : Tensor, shape (E,), optional
        For clusters, whose centers may meet: the square of a length for each edge, below which its length and
        direction fade.
    """

    pos: Float[Tensor, "n D"]
    batch: Int[Tensor, "n"]
    edges: Edges
    node: Int[Tensor, "L"]
    point: Int[Tensor, "L"]
    weight: Float[Tensor, "L"]
    index: Int[Tensor, "n"] | None = None
    core: Float[Tensor, "E"] | None = None

    def interpolate(self, h: Float[Tensor, "n ..."], points: int) -> Float[Tensor, "N ..."]:
        """Features of the points, as means over the nodes that they are linked to.

        Parameters
        ----------
        h : Tensor, shape (n, …)
            Features of the nodes.
        points : int
            Number of points N.
        """
        return segment_sum(_times(h.index_select(0, self.node), self.weight), self.point, points)


def geometry(
    vector: Float[Tensor, "E D"],
    sender: Int[Tensor, "E"],
    receiver: Int[Tensor, "E"],
    size: int,
    dtype: torch.dtype,
) -> Edges:
    """Edges without a cutoff: all envelopes are 1.

    Parameters
    ----------
    vector : Tensor, shape (E, D)
        From receivers to senders.
    sender, receiver : Tensor, shape (E,)
        Nodes of each edge.
    size : int
        Number of receivers.
    dtype : torch.dtype
        Precision of the result.
    """
    vector = vector.to(dtype)
    unit, length = safe.unit(vector)
    ones = torch.ones_like(length)
    return Edges(
        sender=sender,
        receiver=receiver,
        vector=vector,
        unit=unit,
        length=length,
        envelope=ones,
        coordination=segment_sum(ones, receiver, size),
    )


def relative_lengths(edges: Edges, core: Float[Tensor, "E"] | None = None) -> Float[Tensor, "E 2"]:
    """Two invariants of the length d of each edge: log(1 + d²), and d over the rms length of the edges that
    its receiver has, which does not depend on the unit.

    Parameters
    ----------
    edges : Edges
        The edges.
    core : Tensor, shape (E,), optional
        Added to the mean square: without it, the ratio jumps where all lengths vanish.
    """
    square = edges.length.square()
    count = edges.coordination  # envelopes are 1, and 0 for the edges of padding
    mean = segment_sum(square * edges.envelope, edges.receiver, count.shape[0]) / count.clamp(min=1)
    mean = mean.index_select(0, edges.receiver)
    mean = mean if core is None else mean + core
    there = mean > 0
    ratio = torch.where(there, square / torch.where(there, mean, 1.0), 0.0)
    positive = ratio > 0
    root = torch.where(positive, torch.where(positive, ratio, 1.0).sqrt(), 0.0)
    return torch.stack([torch.log1p(square), root], dim=1)


class FarthestPool(nn.Module):
    """Pooling to a share of the points, chosen by farthest point sampling (Qi et al. 2017, PointNet++, arXiv
    1706.02413):

        h_i = (W Σ_j w(r_ij) h_j / √k + V h_i) / √2

    over the k points nearest to the chosen point i, with learned functions w of the distance. V keeps the
    features of i itself: at initialization w vanishes at distance 0. The choice is that of
    `ops.sampling.farthest_points`. It depends neither on the order nor on the orientation of the points, but
    it jumps where two points change their rank, and so do outputs.

    What is found for a cloud is remembered and serves as long as its positions are the same, such as in the
    next epoch of a training, or in other networks.

    Parameters
    ----------
    channels : int
        Number of channels of each tensor.
    parts : int
        Number of tensors.
    ratio : float
        The share of points that is chosen, above 0, at most 1.
    k : int
        Number of points that a chosen point sees, before and after.

    Examples
    --------
    >>> pool = FarthestPool(8, parts=1, ratio=0.25, k=4)
    >>> pos, batch = torch.rand(20, 3, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    >>> features, coarse = pool([torch.rand(20, 8)], pos, batch, 1)
    >>> features[0].shape, coarse.interpolate(features[0], 20).shape
    (torch.Size([5, 8]), torch.Size([20, 8]))
    """

    def __init__(self, channels: int, parts: int, *, ratio: float, k: int) -> None:
        super().__init__()
        self.ratio, self.k = ratio, k
        self.radial = mlp([2, channels, parts * channels])
        self.mix = nn.ModuleList(linear(channels, channels, gain=0.5**0.5) for _ in range(parts))
        self.own = nn.ModuleList(linear(channels, channels, gain=0.5**0.5) for _ in range(parts))

    def forward(
        self,
        features: Sequence[Float[Tensor, "N ..."]],
        pos: Float[Tensor, "N D"],
        batch: Int[Tensor, "N"],
        num_graphs: int,
    ) -> tuple[list[Tensor], Coarse]:
        """Features of the chosen points, and their cloud.

        Parameters
        ----------
        features : sequence of Tensor, shapes (N, …, C)
            Features of the points.
        pos : Tensor, shape (N, D)
            Their positions.
        batch : Tensor, shape (N,)
            Cloud of each point, ascending.
        num_graphs : int
            Number of clouds.
        """
        dtype = features[0].dtype
        found = _collated(pos, batch, num_graphs, self.ratio, self.k)
        index, (j, i), (s, r), (node, point) = (torch.from_numpy(x).to(pos.device) for x in found)
        coarse = pos.index_select(0, index)
        gathered = geometry(pos[j] - coarse[i], j, i, len(index), dtype)
        weights = self.radial(relative_lengths(gathered)) * self.k**-0.5
        pooled = [
            mix(gathered.sum(_times(gathered.gather(h), w))) + own(h.index_select(0, index))
            for mix, own, h, w in zip(self.mix, self.own, features, weights.chunk(len(self.mix), dim=1))
        ]
        square = (coarse[node] - pos[point]).to(dtype).square().sum(1)  # (L,)
        # Inverse squares of distances; a point on top of a node is that node alone, up to 1e-6.
        sums = segment_sum(square, point, len(pos)).index_select(0, point)
        inverse = 1 / (square + 1e-6 * sums + torch.finfo(dtype).tiny ** 0.5)
        weight = inverse / segment_sum(inverse, point, len(pos)).index_select(0, point)
        edges = geometry(coarse[s] - coarse[r], s, r, len(index), dtype)
        return pooled, Coarse(
            pos=coarse,
            batch=batch.index_select(0, index),
            edges=edges,
            node=node,
            point=point,
            weight=weight,
            index=index,
        )


class ClusterPool(nn.Module):
    """Pooling to K learned clusters of each cloud (as DiffPool, Ying et al. 2018, arXiv 1806.08804):

        A_ik = softmax_k(φ(s_i)),   x_k = Σ_i A_ik x_i / M_k,   h_k = W Σ_i A_ik h_i / M_k,   M_k = Σ_i A_ik.

    Points are assigned by their invariants s, so that the centers x are equivariant, whatever the order of
    the points, and nothing jumps when points move. All clusters of a cloud see each other; the direction from
    one center to another is divided by √(d² + ρ²) in place of the distance d, with a tenth of the rms radius
    of the cloud as ρ, since centers may meet.

    Parameters
    ----------
    channels : int
        Number of channels of each tensor.
    parts : int
        Number of tensors.
    clusters : int
        Number of clusters K of each cloud.

    Examples
    --------
    >>> pool = ClusterPool(8, parts=1, clusters=4)
    >>> pos, batch = torch.rand(20, 3, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    >>> features, coarse = pool([torch.rand(20, 8)], pos, batch, 1)
    >>> features[0].shape, coarse.pos.shape
    (torch.Size([4, 8]), torch.Size([4, 3]))
    """

    def __init__(self, channels: int, parts: int, *, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        self.assign = nn.Sequential(LayerNorm(channels, eps=EPS), *mlp([channels, channels, clusters]))
        self.mix = nn.ModuleList(linear(channels, channels) for _ in range(parts))

    def forward(
        self,
        features: Sequence[Float[Tensor, "N ..."]],
        pos: Float[Tensor, "N D"],
        batch: Int[Tensor, "N"],
        num_graphs: int,
    ) -> tuple[list[Tensor], Coarse]:
        """Features of the clusters, and their cloud.

        Parameters
        ----------
        features, pos, batch, num_graphs
            As in `FarthestPool`.
        """
        size, dtype = self.clusters, features[0].dtype
        log_assigned = torch.log_softmax(self.assign(features[0]), dim=1)  # log A  (N, K)
        assigned = log_assigned.exp().flatten()  # (N · K,)
        point = torch.arange(pos.shape[0], device=pos.device)[:, None].expand(-1, size).flatten()
        node = (batch[:, None] * size + torch.arange(size, device=pos.device)).flatten()
        # A / M, which adds up to one for each cluster, also where all A of a cluster underflow
        share = segment_softmax(log_assigned, batch, num_graphs).flatten()

        def mean(h: Tensor, weight: Tensor) -> Tensor:
            return segment_sum(_times(h.index_select(0, point), weight), node, num_graphs * size)

        origin = segment_mean(pos, batch, num_graphs)
        local = pos - origin.index_select(0, batch)  # so that no digits are lost far from the origin
        owner = torch.arange(num_graphs, device=pos.device)[:, None].expand(-1, size).flatten()
        center = mean(local, share.to(pos.dtype))
        extent = segment_mean(local.square().sum(1), batch, num_graphs).to(dtype)  # squared
        pooled = [mix(mean(h, share)) for mix, h in zip(self.mix, features)]
        first = torch.arange(size, device=pos.device)[:, None].expand(-1, size - 1).flatten()
        second = torch.arange(size * (size - 1), device=pos.device) % max(size - 1, 1)
        second = second + (second >= first)  # all others
        start = torch.arange(num_graphs, device=pos.device)[:, None] * size
        r, s = (start + first).flatten(), (start + second).flatten()
        edges = geometry(center[s] - center[r], s, r, center.shape[0], dtype)
        # Centers may meet, where a direction jumps: there it goes to zero.
        core = 0.01 * extent.index_select(0, owner[r]).clamp(min=1e-22)
        soft = (edges.length.square() + core).sqrt()
        return pooled, Coarse(
            pos=center + origin.index_select(0, owner),
            batch=owner,
            edges=replace(edges, unit=edges.vector / soft[:, None]),
            node=node,
            point=point,
            weight=assigned,
            core=core,
        )


class FeatureNorm(nn.Module):
    """Bounds the size of features: a layer norm for invariants, with ε = 0.01 so that gradients stay bounded
    where all of them are equal, and v / √(1 + mean of ‖v_c‖² over channels) for each other tensor.

    Parameters
    ----------
    channels : int
        Number of channels of each tensor, at least 2.

    Raises
    ------
    ConfigError
        If there are fewer channels.

    Examples
    --------
    >>> s, v = FeatureNorm(2)([torch.zeros(1, 2), torch.full((1, 3, 2), 1e6)])
    >>> round(float(v.square().sum()), 3)  # over two channels
    2.0
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_layer_norm("FeatureNorm", channels)
        self.norm = LayerNorm(channels, eps=EPS)

    def forward(self, features: Sequence[Float[Tensor, "N ..."]]) -> list[Tensor]:
        """Features of the same shapes.

        Parameters
        ----------
        features : sequence of Tensor, shapes (N, …, C)
            Features, the invariants first.
        """
        first, *others = features
        sizes = [h.square().sum(1, keepdim=True).mean(2, keepdim=True) for h in others]
        return [self.norm(first), *(h * torch.rsqrt(1 + size) for h, size in zip(others, sizes))]


class Unpool(nn.Module):
    """Features of points from those of a coarse cloud and from their own before pooling (skip connection):

        h_i = (U Σ_k A_ik h_k + V h_i^before) / √2.

    A are the weights of `Coarse`: inverse squared distances to the three nearest chosen points, or the
    assignment to clusters.

    Parameters
    ----------
    channels : int
        Number of channels of each tensor.
    parts : int
        Number of tensors.
    """

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(linear(channels, channels, gain=0.5**0.5) for _ in range(parts))
        self.skip = nn.ModuleList(linear(channels, channels, gain=0.5**0.5) for _ in range(parts))

    def forward(
        self, features: Sequence[Tensor], before: Sequence[Float[Tensor, "N ..."]], coarse: Coarse
    ) -> list[Tensor]:
        """Features of the points.

        Parameters
        ----------
        features : sequence of Tensor, shapes (n, …, C)
            Features of the nodes of the coarse cloud.
        before : sequence of Tensor, shapes (N, …, C)
            Features of the points before pooling.
        coarse : Coarse
            The coarse cloud.
        """
        return [
            coarse.interpolate(up(h), old.shape[0]) + skip(old)
            for up, skip, h, old in zip(self.up, self.skip, features, before)
        ]


def _times(h: Float[Tensor, "E ..."], weight: Tensor) -> Float[Tensor, "E ..."]:
    """Rows times weights of shape (E,), or (E, C) for the last axis."""
    return h * weight.reshape(h.shape[0], *[1] * (h.ndim - weight.ndim), *weight.shape[1:])


Choice = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class _Remembered:
    """The last results for clouds, by their positions."""

    def __init__(self) -> None:
        self.known: OrderedDict[bytes, tuple[Choice, int]] = OrderedDict()
        self.points, self.lock = 0, Lock()

    def choice(self, pos: np.ndarray, ratio: float, k: int) -> Choice:
        key = blake2b(pos.tobytes() + f"{pos.shape} {ratio} {k}".encode(), digest_size=16).digest()
        with self.lock:
            found = self.known.get(key)
            if found is not None:
                self.known.move_to_end(key)
                return found[0]
        made = _choice(pos, ratio, k)
        with self.lock:
            if key not in self.known:
                self.known[key] = made, len(pos)
                self.points += len(pos)
            while self.points > KEPT_POINTS and len(self.known) > 1:
                self.points -= self.known.popitem(last=False)[1][1]
        return made


_remembered = _Remembered()


def _choice(pos: np.ndarray, ratio: float, k: int) -> Choice:
    """Of one cloud: chosen points; (point, node) of pooling; (sender, receiver) of edges; (node, point) of
    links.
    """
    index = farthest_points(pos, ratio)
    chosen = pos[index]
    sender, receiver = nearest_points(chosen, chosen, k + 1)
    apart = sender != receiver
    return (
        index,
        np.stack(nearest_points(pos, chosen, k)),
        np.stack([sender[apart], receiver[apart]]),
        np.stack(nearest_points(chosen, pos, INTERPOLATED)),
    )


def _collated(pos: Tensor, batch: Tensor, num_graphs: int, ratio: float, k: int) -> Choice:
    """The choices of all clouds of a batch."""
    points = pos.detach().double().cpu().numpy()
    ends = torch.bincount(batch, minlength=num_graphs).cumsum(0).tolist()
    starts, nodes, parts = [0, *ends[:-1]], 0, []
    for start, end in zip(starts, ends):
        if end > start:
            index, down, within, up = _remembered.choice(points[start:end], ratio, k)
            shift = np.array([[start], [nodes]])
            parts.append((index + start, down + shift, within + nodes, up + shift[::-1]))
            nodes += len(index)
    index, down, within, up = (np.concatenate(part, axis=-1) for part in zip(*parts))
    return index, down, within, up
