"""PaiNN: messages of scalars and vectors, without tensor products (Schütt et al. 2021, arXiv 2102.03150)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor, nn

from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Backbone, Inputs, Layouts
from molequi.models.sizes import Layers
from molequi.nn.mlp import linear, mlp
from molequi.nn.norms import LayerNorm
from molequi.nn.radial import BesselBasis, Edges, LogDistance, RadialBasis, edges_of


class PaiNN(Backbone):
    """Polarizable atom interaction network (Schütt et al. 2021, arXiv 2102.03150), in any dimension.

    Each node has scalars s and vectors v. `Message` scales them by filters of the distance and sums them over
    neighbors (eqs. 7, 8); `Update` mixes them on the node (eqs. 9, 10).

    Differences from the paper: sums are divided by √(mean number of neighbors); the cutoff is a polynomial
    with two continuous derivatives; scalars pass a layer norm before each perceptron; and a vector w = V v
    enters as log(1 + ‖w‖²) and w / √(1 + ‖w‖²). So products do not grow from layer to layer, and there is no
    cusp of ‖V v‖ at zero, where symmetric molecules are.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows; 0 or "X" is a plain point.
    cutoff : float or None
        Distance in Å up to which a node sees others, above 0. None: it sees all other nodes.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions, such as ``Inputs(charge=True)``. It accepts
        charge, spin, node features, edge features, and as initial v node vectors and an electric field.
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    axis : "learned" or sequence of float, optional
        A direction that every node sees, such as that of a uniform field: its components, or "learned" (in
        three dimensions). `Backbone.axis` describes the symmetry that remains.
    channels : int
        Number of scalars and of vectors of a node, at least 2.
    layers : int
        Number of layers, above 0.
    radial : int
        Number of Bessel functions, above 0; without a cutoff it has no meaning.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `elements` is no list, or `axis` is no direction.

    Notes
    -----
    Features have ``"0e"`` of shape (N, channels, 1) and ``"1o"`` of shape (N, channels, D). The axis, if
    there is one, is one more "1o".

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = PaiNN(elements=["H", "O"], cutoff=3.0, channels=16, layers=2)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 16, 1), '1o': (3, 16, 3)}
    """

    group = "O(n)"
    family = "messages of scalars and vectors"
    accepts = (*Backbone.accepts, "electric_field")
    good_for = "properties of molecules; point clouds; fast"
    smooth_cutoff = True

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] | None = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        axis: Axis = None,
        channels: Annotated[int, Ge(2)] = 128,
        layers: Layers = 3,
        radial: Annotated[int, Gt(0)] = 20,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        self.out = self.channels_with_axis({"0e": channels, "1o": channels})
        self.embedding = self.node_embedding(channels)
        self.basis: RadialBasis = LogDistance() if cutoff is None else BesselBasis(radial, cutoff)
        known = self.basis.size + self.num_edge_inputs
        # Bessel functions need no hidden layer. A linear function of log(1 + d²) would be no filter.
        hidden = [] if cutoff is not None and known == radial else [channels]
        self.messages = nn.ModuleList(
            Message(channels, [known, *hidden], first=n == 0 and not inputs.vectors) for n in range(layers)
        )
        self.updates = nn.ModuleList(Update(channels) for _ in range(layers))
        self.start = linear(inputs.vectors, channels) if inputs.vectors else None

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of each layer."""
        width = self.embedding.element.embedding_dim
        layers: dict[str, Layouts] = {
            f"{part}.{k}": (f"{width}x0e", ["1o"])
            for k in range(len(self.messages))
            for part in ("messages", "updates")
        }
        return {"embedding": f"{width}x0e", **layers}

    def forward(self, graph: Graph) -> Features:
        s = self.embedding(graph, self.element_index(graph))  # (N, C)
        edges = edges_of(graph, self.cutoff, s.dtype)
        known = self._edge_invariants(self.basis, graph, edges)  # (E, A)
        if self.start is None or graph.vec is None:
            v = s.new_zeros(s.shape[0], graph.dim, s.shape[1])  # (N, D, C)
        else:
            v = self.start(graph.vec.to(s.dtype).transpose(1, 2))  # (N, D, C)
        scale = self.mean_neighbors.to(s.dtype).rsqrt()
        for message, update in zip(self.messages, self.updates):
            s, v = update(*message(s, v, edges, known, scale))  # eqs. 7-10
        blocks = {"0e": s[:, :, None], "1o": v.transpose(1, 2)}  # (N, C, 1), (N, C, D)
        return Features(blocks=self.with_axis(blocks), coordination=edges.coordination)


class Message(nn.Module):
    """Messages from neighbors (eqs. 7, 8):

        s_i += C Σ_j φ_s(s_j) ∘ W_s(r_ij)
        v_i += C Σ_j [v_j ∘ φ_vv(s_j) ∘ W_vv(r_ij) + r̂_ij φ_vs(s_j) ∘ W_vs(r_ij)]

    Parameters
    ----------
    channels : int
        Number of scalars and of vectors.
    known : sequence of int
        Number of invariants of an edge, and sizes of the hidden layers before the filters W.
    first : bool
        All v_j are zero, so that the filter W_vv is left out.
    eps : float
        ε of the layer norm of the hidden layers. Where all invariants of an edge may vanish at once, a small
        one makes gradients explode.
    """

    def __init__(self, channels: int, known: Sequence[int], *, first: bool, eps: float = 1e-5) -> None:
        super().__init__()
        parts = 2 if first else 3
        self.phi = nn.Sequential(LayerNorm(channels), *mlp([channels, channels, parts * channels]))
        # Inputs of edges may have any size. Normalized, they do not make vectors grow from layer to layer.
        self.hidden = (
            nn.Sequential(*mlp(known, activate_last=True), LayerNorm(known[-1], eps=eps))
            if len(known) > 1
            else nn.Identity()
        )
        # One map for each filter instead of one map that is split: the largest tensors are read and written
        # less often.
        self.filters = nn.ModuleList(linear(known[-1] + 1, channels) for _ in range(parts))

    def forward(
        self,
        s: Float[Tensor, "N C"],
        v: Float[Tensor, "N D C"],
        edges: Edges,
        known: Float[Tensor, "E A"],
        scale: Float[Tensor, ""],
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D C"]]:
        """New scalars and vectors.

        Parameters
        ----------
        s : Tensor, shape (N, C)
            Scalars.
        v : Tensor, shape (N, D, C)
            Vectors.
        edges : Edges
            The edges.
        known : Tensor, shape (E, A)
            Invariants of each edge.
        scale : Tensor, shape ()
            C.
        """
        known = self.hidden(known)
        # The last column belongs to the bias.
        known = torch.cat([known, torch.ones_like(known[:, :1])], dim=1)
        known = known * (edges.envelope * scale)[:, None]
        to_s, along, *kept = (
            edges.gather(phi) * filter(known)  # φ(s_j) ∘ W(r_ij)  (E, C)
            for phi, filter in zip(self.phi(s).split(s.shape[1], dim=1), self.filters)
        )
        to_v = edges.unit[:, :, None] * along[:, None, :]  # (E, D, C)
        if kept:
            to_v = torch.addcmul(to_v, edges.gather(v), kept[0][:, None, :])
        return s + edges.sum(to_s), v + edges.sum(to_v)


class Update(nn.Module):
    """Scalars and vectors mixed on each node (eqs. 9, 10):

        s += a_ss + a_sv ∘ ⟨U v, ŵ⟩
        v += a_vv ∘ U v
        w = V v,   ŵ = w / √(1 + ‖w‖²),   a = a(s, log(1 + ‖w‖²))

    Parameters
    ----------
    channels : int
        Number of scalars and of vectors.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = linear(channels, 2 * channels)
        self.norm = LayerNorm(channels)
        self.a = mlp([2 * channels, channels, 3 * channels], last_gain=0.5)

    def forward(
        self, s: Float[Tensor, "N C"], v: Float[Tensor, "N D C"]
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D C"]]:
        """New scalars and vectors.

        Parameters
        ----------
        s : Tensor, shape (N, C)
            Scalars.
        v : Tensor, shape (N, D, C)
            Vectors.
        """
        u, w = self.mix(v).chunk(2, dim=2)  # U v, V v  (N, D, C)
        square = w.square().sum(1)  # ‖w‖²  (N, C)
        a_ss, a_sv, a_vv = self.a(torch.cat([self.norm(s), torch.log1p(square)], dim=1)).chunk(3, dim=1)
        along = (u * w).sum(1) * torch.rsqrt(1.0 + square)  # ⟨U v, ŵ⟩  (N, C)
        return s + a_ss + a_sv * along, v + a_vv[:, None, :] * u  # eqs. 9, 10
