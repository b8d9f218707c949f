"""So3krates: Euclidean attention on invariants and on one channel of each degree."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Backbone, Inputs, Layouts
from molequi.models.sizes import Layers
from molequi.neighbors import remove_far_edges
from molequi.nn.embedding import NodeEmbedding, total_of
from molequi.nn.mlp import ScaledSiLU, linear, mlp
from molequi.nn.norms import LayerNorm
from molequi.nn.radial import BernsteinBasis, Edges, edges_of, envelope
from molequi.ops import irreps as ir
from molequi.ops.constants import Float64Constants
from molequi.ops.segment import segment_sum

DECAY = 0.944863062918464  # 1/Å, half the inverse of a bohr
ENVELOPE = 3  # exponent of the cutoff function, that of PhysNet: 1 - 10 x³ + 15 x⁴ - 6 x⁵
SMALLEST = 1e-6  # added to the sum of weights that a total charge is shared by, as in published models


class So3krates(Backbone):
    """Euclidean attention (Frank et al. 2022, arXiv 2205.14276; 2024, arXiv 2309.15126).

    A node has invariants h and Euclidean variables x, one vector of 2l + 1 components for each degree
    l = 1, …, l_max. Attention weights are invariants, and only spherical harmonics carry directions, so that
    there are no tensor products. See `EuclideanAttention` and `Exchange` for the two steps of a layer.

    As in SO3LR (Kabylda et al. 2025, J. Am. Chem. Soc. 147, 33723), invariants are normalized and each layer
    has a residual perceptron; total charge and spin enter as in SpookyNet (`TotalEmbedding`).

    In contrast to the papers, invariants of x are means of squares, harmonics have the squared norm 2l + 1,
    and the weights of the attention are divided by √(n d) with the mean number of neighbors n and d channels.
    This changes the scale of weights at initialization, and no function that can be learned.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows; 0 or "X" is a plain point.
    cutoff : float
        Distance in Å up to which a node sees others, above 0.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions, such as ``Inputs(charge=True)``. It accepts
        charge, spin, node features, edge features, node vectors and an electric field.
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    message_cutoff : float, optional
        Distance in Å up to which messages go, at most `cutoff`. None: `cutoff`. Edges between the two are for
        heads with interactions of long range, such as `heads.PhysicalEnergy`.
    channels : int
        Number of invariants of a node; a multiple of 4, of `heads` and of `l_max`.
    layers : int
        Number of layers, above 0.
    heads : int
        Number of attention heads of the invariants, above 0.
    l_max : int
        Highest degree, 1 to 6. Each degree is one attention head of the Euclidean variables.
    radial : int
        Number of radial functions, 2 or more.
    decay : float
        Exponent of the radial functions in 1/Å, see `nn.BernsteinBasis`.
    normalize : bool
        Whether invariants are normalized (LayerNorm) after both steps of a layer.
    residual : bool
        Whether a perceptron acts on the invariants between both steps of a layer.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `channels` is no multiple of what it is divided into, or `message_cutoff` exceeds `cutoff`.

    Notes
    -----
    Features have ``"0e"`` of shape (N, channels, 1), ``"1o"`` of shape (N, 1, 3), ``"2e"`` of shape
    (N, 1, 5), and so on up to `l_max`. The cutoff function has two continuous derivatives.

    A compiled model (`molequi.accelerate`) computes messages along all edges up to `cutoff`, and gives those
    beyond `message_cutoff` the weight zero. In a crystal with a long cutoff the plain model is faster.

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = So3krates(elements=["H", "O"], cutoff=3.0, channels=16, layers=2, l_max=2)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 16, 1), '1o': (3, 1, 3), '2e': (3, 1, 5)}
    """

    group = "O(3)"
    smooth_cutoff = True
    family = "attention on irreps"
    accepts = (*Backbone.accepts, "electric_field")
    good_for = "molecules; published SO3LR"

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        message_cutoff: Annotated[float, Gt(0)] | None = None,
        channels: Annotated[int, Gt(0)] = 64,
        layers: Layers = 3,
        heads: Annotated[int, Gt(0)] = 4,
        l_max: Annotated[int, Ge(1), Le(6)] = 4,
        radial: Annotated[int, Ge(2)] = 32,
        decay: Annotated[float, Gt(0)] = DECAY,
        normalize: bool = True,
        residual: bool = True,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k)
        for name, parts in (("heads", heads), ("l_max", l_max), ("the number 4", 4)):
            if channels % parts:
                raise ModelError(
                    f"So3krates.channels: found {channels} with heads={heads}, l_max={l_max}; wanted a "
                    f"multiple of {name}, such as {math.lcm(4, heads, l_max)}"
                )
        if message_cutoff is not None and message_cutoff > cutoff:
            raise ModelError(
                f"So3krates.message_cutoff: found {message_cutoff} with cutoff={cutoff}; wanted at most the "
                "cutoff, up to which there are edges"
            )
        self.reach = message_cutoff or cutoff
        self.degrees = range(1, l_max + 1)
        self.out = {"0e": channels} | {ir.natural(l): 1 for l in self.degrees}
        self.embedding = NodeEmbedding(
            num_elements=len(self.elements), channels=channels, node_features=inputs.node_features
        )
        totals = [name for name in ("charge", "spin") if getattr(inputs, name)]
        self.totals = nn.ModuleDict(
            {name: TotalEmbedding(name, len(self.elements), channels) for name in totals}
        )
        self.basis = BernsteinBasis(radial, decay)
        self.layers = nn.ModuleList(
            Layer(
                channels=channels,
                heads=heads,
                degrees=self.degrees,
                radial=radial + self.num_edge_inputs,
                normalize=normalize,
                residual=residual,
            )
            for _ in range(layers)
        )

    def states(self) -> Mapping[str, Layouts]:
        """Layouts of the embedding and of each layer: invariants, and one channel of each degree."""
        invariants = f"{self.out['0e']}x0e"
        euclidean = "+".join(f"1x{ir.natural(l)}" for l in self.degrees)
        layers: dict[str, Layouts] = {f"layers.{n}": (invariants, euclidean) for n in range(len(self.layers))}
        return {"embedding": invariants, **layers}

    def forward(self, graph: Graph) -> Features:
        if graph.dim != 3:
            raise ModelError(
                f"So3krates works in 3 dimensions, these structures have {graph.dim}; EGNN and PaiNN take "
                "any number"
            )
        if graph.real is None and self.cutoff != self.reach:  # the envelope is zero there; this saves time
            graph = remove_far_edges(graph, self.reach)
        element = self.element_index(graph)
        h = self.embedding(graph, element)  # eq. 10 of arXiv 2309.15126  (N, F)
        for total in self.totals.values():
            h = h + total(graph, element)
        h = h / math.sqrt(1 + len(self.totals))
        edges = edges_of(graph, self.reach, h.dtype)
        radial = self._edge_invariants(self.basis, graph, edges)  # (E, R)
        weight = envelope(edges.length, self.reach, ENVELOPE)[:, None]  # u  (E, 1)
        weight = weight * self.mean_neighbors.to(h.dtype).rsqrt()  # u / √n
        harmonics = torch.cat(
            ir.spherical_harmonics(len(self.degrees), edges.unit)[1:], dim=1
        )  # Y(r̂_ij)  (E, M)
        x = h.new_zeros(h.shape[0], harmonics.shape[1])  # (N, M)
        for layer in self.layers:
            h, x = layer(h, x, radial, harmonics, weight, edges)
        parts = x.split([2 * l + 1 for l in self.degrees], dim=1)
        blocks = {"0e": h[:, :, None]} | {
            ir.natural(l): part[:, None] for l, part in zip(self.degrees, parts)
        }
        return Features(blocks=blocks, coordination=edges.coordination)


class TotalEmbedding(nn.Module):
    """Total charge, or number of unpaired electrons, of a structure as invariants of its atoms (Unke et al.
    2021, SpookyNet, arXiv 2105.00304, eqs. 9-11):

        e_i = v_i + φ(v_i),   v_i = Ψ a_i / Σ_j a_j · V_s,   a_i = log(1 + exp(q_zi · K_s / √F)).

    Ψ is the charge, or the spin multiplicity minus 1. Keys K and values V depend on the sign s of Ψ, so that
    e = 0 for Ψ = 0. The sum is over the atoms of the structure.

    Parameters
    ----------
    total : {"charge", "spin"}
        The field of the graph.
    num_elements : int
        Number of elements.
    channels : int
        Number of invariants F.
    """

    def __init__(self, total: str, num_elements: int, channels: int) -> None:
        super().__init__()
        self.total = total
        self.query = nn.Embedding(num_elements, channels)
        self.key = nn.Parameter(torch.randn(2, channels))
        self.value = nn.Parameter(torch.randn(2, channels))
        self.net = nn.Sequential(ScaledSiLU(), *mlp([channels, channels, channels], bias=False))

    def forward(self, graph: Graph, element: Int[Tensor, "N"]) -> Float[Tensor, "N F"]:
        """The invariants e.

        Parameters
        ----------
        graph : Graph
            A batch of structures.
        element : Tensor, shape (N,)
            Index of each node's element.

        Raises
        ------
        ModelError
            If the structures have no charge or spin.
        """
        given = total_of(graph, self.total)
        number = given.to(self.key.dtype) - (1.0 if self.total == "spin" else 0.0)  # Ψ  (G,)
        sign = (number < 0).long()[graph.batch]  # s  (N,)
        logit = (self.query(element) * self.key[sign]).sum(1) / math.sqrt(self.key.shape[1])
        share = torch.nn.functional.softplus(logit)  # a  (N,)
        total = segment_sum(share, graph.batch, graph.num_graphs) + SMALLEST
        own = (number / total)[graph.batch] * share
        v = own[:, None] * self.value[sign]  # (N, F)
        return v + self.net(v)


class Layer(nn.Module):
    """One layer: attention over the neighbors, a residual perceptron φ, and the exchange on each node,

        (h, x) += attention(h, x),   h ← LN(h),   h += φ(h),
        (h, x) += exchange(h, x),    h ← LN(h).

    Parameters
    ----------
    channels : int
        Number of invariants.
    heads : int
        Number of attention heads of the invariants.
    degrees : sequence of int
        Degrees of the Euclidean variables.
    radial : int
        Number of radial functions and other invariants of an edge.
    normalize, residual : bool
        Whether there are LN and φ.
    """

    def __init__(
        self,
        *,
        channels: int,
        heads: int,
        degrees: Sequence[int],
        radial: int,
        normalize: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.attention = EuclideanAttention(channels, heads, degrees, radial)
        self.exchange = Exchange(channels, degrees)

        def norm() -> nn.Module:
            return LayerNorm(channels, eps=1e-6) if normalize else nn.Identity()

        self.between, self.after = norm(), norm()
        own = mlp([channels, channels, channels], last_gain=0.5)
        self.own = nn.Sequential(ScaledSiLU(), *own) if residual else None

    def forward(
        self,
        h: Float[Tensor, "N F"],
        x: Float[Tensor, "N M"],
        radial: Float[Tensor, "E R"],
        harmonics: Float[Tensor, "E M"],
        weight: Float[Tensor, "E 1"],
        edges: Edges,
    ) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N M"]]:
        """New invariants and Euclidean variables.

        Parameters
        ----------
        h, x : Tensor, shapes (N, F) and (N, M)
            Invariants and Euclidean variables of the nodes.
        radial : Tensor, shape (E, R)
            Invariants of the edges.
        harmonics : Tensor, shape (E, M)
            Spherical harmonics of the edges.
        weight : Tensor, shape (E, 1)
            Cutoff function of the edges over √n, with the mean number of neighbors n.
        edges : Edges
            The edges.
        """
        dh, dx = self.attention(h, x, radial, harmonics, weight, edges)
        h, x = self.between(h + dh), x + dx
        if self.own is not None:
            h = h + self.own(h)
        dh, dx = self.exchange(h, x)
        return self.after(h + dh), x + dx


class EuclideanAttention(Float64Constants):
    """Attention over the neighbors (arXiv 2309.15126, eqs. 12-16 and 20-23):

        Δh_i = Σ_j u(r_ij) α_ij V h_j,   Δx_i^l = Σ_j u(r_ij) β_ij^l Y^l(r̂_ij),
        α_ij = Q h_i · (w_ij ∘ K h_j) / √(n d),
        w_ij = φ(radial(r_ij)) + ψ(I(x_j - x_i)),   I^l(x) = Σ_m (x^l_m)² / (2l + 1).

    α has several heads of d channels, β one for each degree, with Q, K and w of its own. u is the cutoff
    function and n the mean number of neighbors. Each head has matrices of its own, on its own channels of h.

    Parameters
    ----------
    channels : int
        Number of invariants F.
    heads : int
        Number of heads of α.
    degrees : sequence of int
        Degrees l.
    radial : int
        Number of invariants of an edge besides those of x.
    """

    spread: Tensor
    mean: Tensor

    def __init__(self, channels: int, heads: int, degrees: Sequence[int], radial: int) -> None:
        super().__init__()
        spread, mean = _sums(degrees)
        self.register_constant("spread", spread)
        self.register_constant("mean", mean)
        count = len(degrees)
        self.query, self.key, self.value = (HeadLinear(heads, channels) for _ in range(3))
        self.euclidean_query, self.euclidean_key = (HeadLinear(count, channels) for _ in range(2))
        self.filters = nn.ModuleList(Filter(radial, count, channels) for _ in range(2))

    def forward(
        self,
        h: Float[Tensor, "N F"],
        x: Float[Tensor, "N M"],
        radial: Float[Tensor, "E R"],
        harmonics: Float[Tensor, "E M"],
        weight: Float[Tensor, "E 1"],
        edges: Edges,
    ) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N M"]]:
        """The changes Δh and Δx.

        Parameters
        ----------
        h, x, radial, harmonics, weight, edges
            As in `Layer`.
        """
        between = (edges.gather(x) - edges.own(x)).square() @ self.mean.to(x.dtype)  # I(x_j - x_i)  (E, L)
        invariant, euclidean = (net(radial, between) for net in self.filters)  # w_ij  (E, F)
        alpha = self._weights(edges, self.query(h), self.key(h), invariant) * weight  # (E, H)
        beta = self._weights(edges, self.euclidean_query(h), self.euclidean_key(h), euclidean) * weight
        value = edges.gather(self.value(h).flatten(1)).unflatten(1, (alpha.shape[1], -1))  # (E, H, d)
        dh = edges.sum((alpha[:, :, None] * value).flatten(1))
        dx = edges.sum((beta @ self.spread.to(x.dtype)) * harmonics)
        return dh, dx

    @staticmethod
    def _weights(
        edges: Edges, query: Float[Tensor, "N H d"], key: Float[Tensor, "N H d"], by: Float[Tensor, "E F"]
    ) -> Float[Tensor, "E H"]:
        """Products Q h_i · (w_ij ∘ K h_j) / √d of each head."""
        heads, size = query.shape[1:]
        product = edges.own(query.flatten(1)) * edges.gather(key.flatten(1)) * by
        return product.unflatten(1, (heads, size)).sum(2) / math.sqrt(size)


class Exchange(Float64Constants):
    """Exchange between invariants and Euclidean variables of a node (arXiv 2309.15126, eqs. 24 and 25):

        (Δh, b) = W (h, I(x)) + c,   Δx^l = b_l x^l,   I^l(x) = Σ_m (x^l_m)² / (2l + 1).

    Parameters
    ----------
    channels : int
        Number of invariants.
    degrees : sequence of int
        Degrees l.
    """

    spread: Tensor
    mean: Tensor

    def __init__(self, channels: int, degrees: Sequence[int]) -> None:
        super().__init__()
        spread, mean = _sums(degrees)
        self.register_constant("spread", spread)
        self.register_constant("mean", mean)
        self.channels = channels
        self.mix = linear(channels + len(degrees), channels + len(degrees), bias=True, gain=0.5)

    def forward(
        self, h: Float[Tensor, "N F"], x: Float[Tensor, "N M"]
    ) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N M"]]:
        """The changes Δh and Δx.

        Parameters
        ----------
        h, x : Tensor, shapes (N, F) and (N, M)
            Invariants and Euclidean variables of the nodes.
        """
        mixed = self.mix(torch.cat([h, x.square() @ self.mean.to(x.dtype)], dim=1))
        dh, b = mixed[:, : self.channels], mixed[:, self.channels :]
        return dh, (b @ self.spread.to(x.dtype)) * x


class HeadLinear(nn.Module):
    """One matrix for each attention head, on its own channels.

    Parameters
    ----------
    heads : int
        Number of heads.
    channels : int
        Number of channels of all heads together.
    """

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        size = channels // heads
        self.weight = nn.Parameter(torch.randn(heads, size, size) / math.sqrt(size))

    def forward(self, h: Float[Tensor, "N F"]) -> Float[Tensor, "N H d"]:
        heads, size = self.weight.shape[:2]
        return torch.einsum("nhd,hde->nhe", h.unflatten(1, (heads, size)), self.weight)


class Filter(nn.Module):
    """The factors w_ij of the attention, from radial functions and from invariants of x_j - x_i.

    Parameters
    ----------
    radial, invariants : int
        Number of both.
    channels : int
        Number of factors.
    """

    def __init__(self, radial: int, invariants: int, channels: int) -> None:
        super().__init__()
        self.radial = mlp([radial, channels, channels])
        self.geometry = mlp([invariants, channels // 4, channels])

    def forward(self, radial: Float[Tensor, "E R"], invariants: Float[Tensor, "E L"]) -> Float[Tensor, "E F"]:
        return self.radial(radial) + self.geometry(invariants)


def _sums(degrees: Sequence[int]) -> tuple[Float[Tensor, "L M"], Float[Tensor, "M L"]]:
    """Matrices that repeat a number for all components of a degree, and take the mean over them."""
    rows = [
        torch.cat([torch.full((2 * l + 1,), float(l == own), dtype=torch.float64) for l in degrees])
        for own in degrees
    ]
    spread = torch.stack(rows)
    return spread, (spread / spread.sum(1, keepdim=True)).T.contiguous()
