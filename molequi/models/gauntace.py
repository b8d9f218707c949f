"""GauntACE: an atomic cluster expansion between messages, with products on the sphere."""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, cast

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Inputs
from molequi.models.irreps import IrrepsBackbone, natural_layouts
from molequi.models.sizes import Layers
from molequi.nn.irreps import ElementLinear, IrrepsLinear
from molequi.nn.mlp import linear, mlp
from molequi.nn.radial import Edges, StretchedBasis
from molequi.ops import irreps as ir
from molequi.ops import sphere
from molequi.ops.blocks import Blocks, blocks_of
from molequi.ops.constants import Float64Constants

SPECIES = 8  # highest number of features that distinguish the elements of neighbors
# Root mean square of a field on the sphere before training. Each further factor weighs half as much: small
# high products generalize better (acetylacetone after 300 s: 14.3 meV/Å, without DECAY 16.2 meV/Å, both with
# Bessel functions).
FIELD = 0.35
DECAY = 0.5
# Radial functions are larger by this factor and their weights smaller, so that a step of Adam changes them as
# much as others (14.3 becomes 13.4 meV/Å in the same time).
RADIAL = 4.0


class GauntACE(IrrepsBackbone):
    """Messages of many bodies with products on the sphere, in three dimensions.

    It is an atomic cluster expansion (Drautz 2019, Phys. Rev. B 99, 014104) between messages, with Gaunt
    products (Luo, Chen and Krishnapriyan 2024, arXiv 2401.10216). A layer sums neighbors into A_i with
    degrees up to l_max,

        A_i = Σ_j Y(r̂_ij) Σ_l' R_l'(r_ij) ∘ (h_j,l' · Y_l'(r̂_ij))
            + Σ_j Σ_l'l R_l'l(r_ij) ∘ (Y_l(r̂_ij) ⊗ h_j,l').

    The first term has the m = 0 component of h_j about the edge; the second one has all other components, by
    the couplings of l' and l to each degree L with l < L + l'. The functions R are linear in the radial
    inputs, one for each term, L and channel. In the first layer only the element of j enters. From A_i follow
    `correlation` fields on the sphere, f_k(q) = Σ_lm (W_kl A_l)_m Y_lm(q), and their product at each point,

        F = f_1 (w_1z + f_2 (w_2z + f_3 w_3z)),

    with weights w_kz for each element z. The components of F up to l_hidden are the new features; scalars
    pass a perceptron. So there is one coupling for each (l_1, l_2, l_3, l), computed by matrix products and
    elementwise products. `MACE` has all couplings, which are several for the same degrees in products of
    three, at about twice the cost.

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
    axis : "learned" or sequence of float, optional
        A direction that every node sees, such as that of a uniform field: its components, or "learned".
        `Backbone.axis` describes the symmetry that remains.
    channels : int
        Number of channels of each irrep, above 0.
    layers : int
        Number of layers, above 0.
    l_max : int
        Highest degree of spherical harmonics and of A, 0 to 6.
    l_hidden : int
        Highest degree of features between layers, 0 to `l_max`.
    l_out : int, optional
        Highest degree that is returned, 0 to `l_max`. None: `l_hidden`. 0 is cheaper, and enough for energies
        and forces.
    correlation : int
        Number of factors of a product, 1 to 6.
    radial : int
        Number of radial functions, above 0.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `l_hidden` or `l_out` exceeds `l_max`.

    Notes
    -----
    Features have ``"0e"`` of shape (N, layers · channels, 1); of the last layer ``"1o"`` of shape (N,
    channels, 3), ``"2e"`` and so on up to `l_out`. The axis, if there is one, is one more "1o".

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = GauntACE(elements=["H", "O"], cutoff=3.0, channels=8, l_max=2)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 16, 1), '1o': (3, 8, 3)}
    """

    group = "O(3)"
    full_edges = 0.9
    family = "products of many neighbors on the sphere"
    good_for = "force fields: the place to start; fastest when compiled"

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        axis: Axis = None,
        channels: Annotated[int, Gt(0)] = 64,
        layers: Layers = 2,
        l_max: Annotated[int, Ge(0), Le(6)] = 3,
        l_hidden: Annotated[int, Ge(0), Le(6)] = 1,
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        correlation: Annotated[int, Ge(1), Le(6)] = 3,
        radial: Annotated[int, Gt(0)] = 8,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        self.l_max = l_max
        self.layouts = natural_layouts(
            type(self).__name__, layers=layers, l_max=l_max, l_hidden=l_hidden, l_out=l_out
        )
        self.out = self.channels_with_axis(
            dict.fromkeys(self.layouts[-1], channels) | {"0e": channels * layers}
        )
        self.embedding = self.node_embedding(channels)
        self.basis = StretchedBasis(radial, cutoff)
        degrees = [len(layout) - 1 for layout in self.layouts]
        self.l_filter = l_max + max(0, max(degrees[:-1]) - 2)  # of spherical harmonics that messages need
        self.layers = nn.ModuleList(
            Layer(
                channels=channels,
                l_max=l_max,
                correlation=correlation,
                num_elements=len(self.elements),
                radial=radial + self.num_edge_inputs,
                l_in=l_in,
                l_out=l_out,
                first=n == 0,
            )
            for n, (l_in, l_out) in enumerate(itertools.pairwise(degrees))
        )

    def forward(self, graph: Graph) -> Features:
        element, h, edges, radial = self.begin(graph)  # (N,), (N, 1, C), E edges, (E, R)
        blocks = blocks_of(element, len(self.elements))
        radial = radial * (edges.envelope * (RADIAL * self.mean_neighbors.to(h.dtype).rsqrt()))[:, None]
        harmonics = ir.spherical_harmonics(self.l_filter, edges.unit)  # Y_l(r̂_ij)  (E, 2 l + 1)
        scalars = []
        for layer in self.layers:
            h = layer(h, element, blocks, radial, harmonics, edges)  # (N, M, C)
            scalars.append(h[:, 0])
        return self.features(h, edges, scalars)


class Layer(Float64Constants):
    """One layer, h' = W F(A) + W_z h, with a perceptron for scalars.

    Parameters
    ----------
    channels : int
        Number of channels of each irrep.
    l_max : int
        Highest degree of A.
    correlation : int
        Number of factors.
    num_elements : int
        Number of elements.
    radial : int
        Number of radial inputs.
    l_in, l_out : int
        Highest degree of h and h'.
    first : bool
        Whether h depends on the element alone, as in the first layer.
    """

    there: Tensor
    back: Tensor

    def __init__(
        self,
        *,
        channels: int,
        l_max: int,
        correlation: int,
        num_elements: int,
        radial: int,
        l_in: int,
        l_out: int,
        first: bool,
    ) -> None:
        super().__init__()
        self.gather = (
            Density(channels, l_max, radial, num_elements)
            if first
            else Messages(channels, l_max, radial, l_in)
        )
        degrees = [ir.natural(l) for l in range(l_max + 1)]
        self.mix = nn.ModuleList(IrrepsLinear(degrees, channels) for _ in range(correlation))
        weights = [nn.Embedding(num_elements, channels) for _ in range(correlation)]
        for power, weight in enumerate(weights):
            nn.init.normal_(weight.weight, std=DECAY**power)
        self.weights = nn.ModuleList(weights)
        there, back = sphere.transforms(l_max, l_out, correlation)
        self.register_constant("there", there)
        self.register_constant("back", back)
        # If components have mean square 1, a field has mean square Σ (2l + 1) = (l_max + 1)².
        self.size = FIELD / (l_max + 1)
        self.after = IrrepsLinear(degrees[: l_out + 1], channels)
        self.keep = None if first else ElementLinear(degrees[: min(l_in, l_out) + 1], channels, num_elements)
        self.update = mlp([2 * channels, channels, channels])

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        element: Int[Tensor, "N"],
        blocks: Blocks,
        radial: Float[Tensor, "E R"],
        harmonics: Sequence[Tensor],
        edges: Edges,
    ) -> Float[Tensor, "N O C"]:
        """New features.

        Parameters
        ----------
        h : Tensor, shape (N, I, C)
            Features of the nodes.
        element : Tensor, shape (N,)
            Index of each node's element.
        blocks : Blocks
            The nodes sorted by element.
        radial : Tensor, shape (E, R)
            Radial inputs, with the envelope as a factor.
        harmonics : sequence of Tensor, shapes (E, 2 l + 1)
            Spherical harmonics by degree.
        edges : Edges
            The edges.
        """
        a = self.gather(h, element, radial, harmonics, edges) * self.size  # ((l_max + 1)², N, C)
        there, back = self.there.to(h.dtype), self.back.to(h.dtype)
        # One product for all f_k and one for all points, in place of small ones for each factor and atom.
        mixed = mix_degrees(a, [cast(IrrepsLinear, mix) for mix in self.mix])  # (M, N, K C)
        fields = (there @ mixed.flatten(1)).reshape(-1, *mixed.shape[1:]).chunk(len(self.mix), 2)  # (Q, N, C)
        field: Tensor | None = None
        for f, weight in zip(reversed(fields), reversed(self.weights)):  # Horner, from the last factor
            factor = weight(element)  # w_kz  (N, C)
            field = f * (factor if field is None else factor + field)  # F  (Q, N, C)
        assert field is not None
        product = (back @ field.flatten(1)).reshape(-1, *h[:, 0].shape)  # (O, N, C)
        b = mix_degrees(product, [self.after]).transpose(0, 1)  # (N, O, C)
        scalars = b[:, 0] + self.update(torch.cat([h[:, 0], b[:, 0]], dim=1))
        if self.keep is None:
            return torch.cat([scalars[:, None], b[:, 1:]], dim=1)
        rows = sum(self.keep.sizes)
        own = self.keep(h[:, :rows], blocks)
        return torch.cat([scalars[:, None] + own[:, :1], b[:, 1:rows] + own[:, 1:], b[:, rows:]], dim=1)


class Density(nn.Module):
    """A_i = Σ_j Y(r̂_ij) R_z(r_ij), with radial functions for each element z of neighbors.

    Radial functions are summed over neighbors first, and mixed into channels afterwards.

    Parameters
    ----------
    channels : int
        Number of channels.
    l_max : int
        Highest degree of A.
    radial : int
        Number of radial inputs.
    num_elements : int
        Number of elements.
    """

    def __init__(self, channels: int, l_max: int, radial: int, num_elements: int) -> None:
        super().__init__()
        self.l_max = l_max
        self.species = nn.Embedding(num_elements, min(num_elements, SPECIES))
        nn.init.orthogonal_(self.species.weight, gain=math.sqrt(self.species.embedding_dim))
        self.mix = nn.ModuleList(
            linear(radial * self.species.embedding_dim, channels) for _ in range(l_max + 1)
        )
        self.gain = math.sqrt(radial) / RADIAL

    def forward(
        self,
        h: Float[Tensor, "N 1 C"],
        element: Int[Tensor, "N"],
        radial: Float[Tensor, "E R"],
        harmonics: Sequence[Tensor],
        edges: Edges,
    ) -> Float[Tensor, "M N C"]:
        """The features A; parameters are those of `Layer.forward`, and h is not read."""
        sent = edges.gather(self.species(element) * self.gain)  # (E, S)
        rows = (radial[:, :, None] * sent[:, None]).flatten(1)[:, None]  # (E, 1, R S)
        angular = torch.cat(list(harmonics[: self.l_max + 1]), dim=1)[:, None]  # (E, 1, M)
        density = edges.contract(angular, rows).transpose(0, 1)  # (M, N, R S)
        parts = density.split([2 * l + 1 for l in range(self.l_max + 1)])
        return torch.cat([mix(part) for mix, part in zip(self.mix, parts)])


class Messages(Float64Constants):
    """The sum A_i of `GauntACE` over messages that depend on features of the neighbors.

    Its terms are all equivariant linear maps of h_j that depend on the edge and keep the natural parities.
    About the edge they multiply the components m of h_j by numbers that depend on |m|, of which there are
    min(l', L) + 1. The first term is that of m = 0 and needs no couplings; together with the couplings of all
    l < l' + L it spans them all.

    Parameters
    ----------
    channels : int
        Number of channels.
    l_max : int
        Highest degree of A.
    radial : int
        Number of radial inputs.
    l_in : int
        Highest degree of h.
    """

    def __init__(self, channels: int, l_max: int, radial: int, l_in: int) -> None:
        super().__init__()
        self.channels, self.l_max, self.l_in = channels, l_max, l_in
        self.paths = paths(l_in, l_max)
        self.count = (l_in + 1) * (l_max + 1) + len(self.paths)
        for number, (l1, l, l2) in enumerate(self.paths):
            if l == 0:
                continue
            coupling = ir.clebsch_gordan(l1, l, l2) * math.sqrt(2 * l2 + 1)
            self.register_constant(f"coupling_{number}", coupling.transpose(0, 1).flatten(1))
        self.before = IrrepsLinear([ir.natural(l) for l in range(l_in + 1)], channels)
        self.radial = linear(radial, self.count * channels, gain=math.sqrt(radial / (l_in + 1)) / RADIAL)

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        element: Int[Tensor, "N"],
        radial: Float[Tensor, "E R"],
        harmonics: Sequence[Tensor],
        edges: Edges,
    ) -> Float[Tensor, "M N C"]:
        """The features A; parameters are those of `Layer.forward`, and element is not read."""
        sent = edges.gather(self.before(h)).split([2 * l + 1 for l in range(self.l_in + 1)], dim=1)
        weights = self.radial(radial).reshape(radial.shape[0], self.count, self.channels)
        degrees = self.l_max + 1
        rows: Tensor | None = None  # Σ_l' R_l' ∘ (h_j,l' · Y_l')  (E, degrees, C)
        for l, part in enumerate(sent):
            along = (
                part
                if l == 0
                else (part * (harmonics[l] / math.sqrt(2 * l + 1))[:, :, None]).sum(1, keepdim=True)
            )
            term = weights[:, l * degrees : (l + 1) * degrees] * along
            rows = term if rows is None else rows + term
        assert rows is not None
        left = [[y[:, None]] for y in harmonics[:degrees]]  # of each L: matrices (E, rows, 2 L + 1)
        right = [[row] for row in rows.split(1, dim=1)]  # and what they are multiplied with  (E, rows, C)
        alone: dict[int, Tensor] = {}  # Σ_j R_l0 ∘ h_j,l
        for number, (l1, l, l2) in enumerate(self.paths):
            weighted = sent[l1] * weights[:, degrees * (self.l_in + 1) + number, None]  # (E, 2 l' + 1, C)
            if l == 0:
                alone[l2] = edges.sum(weighted)
            else:
                coupling = getattr(self, f"coupling_{number}").to(radial.dtype)
                left[l2].append((harmonics[l] @ coupling).reshape(-1, 2 * l1 + 1, 2 * l2 + 1))
                right[l2].append(weighted)
        out = [edges.contract(torch.cat(y, dim=1), torch.cat(x, dim=1)) for y, x in zip(left, right)]
        return torch.cat(
            [part + alone[l] if l in alone else part for l, part in enumerate(out)], dim=1
        ).transpose(0, 1)


def mix_degrees(x: Float[Tensor, "M N C"], maps: Sequence[IrrepsLinear]) -> Float[Tensor, "M N KC"]:
    """Several linear maps of the same features at once.

    Parameters
    ----------
    x : Tensor, shape (M, N, C)
        Features of natural parity and degrees 0, 1, …, with the components first, so that those of a degree
        are one matrix.
    maps : sequence of IrrepsLinear
        K maps for these degrees.

    Returns
    -------
    Tensor, shape (M, N, K · C)
        The results, one beside the other.
    """
    parts = []
    for k, part in enumerate(x.split(maps[0].sizes)):
        weight = torch.cat([cast(nn.Linear, one.mix[k]).weight for one in maps])  # (K C, C)
        parts.append(nn.functional.linear(part, weight))
    return torch.cat(parts)


def paths(l_in: int, l_max: int) -> list[tuple[int, int, int]]:
    """Degrees (l', l, L) of the couplings with natural parities, l' > 0 and l < l' + L.

    Parameters
    ----------
    l_in : int
        Highest degree l' of the features.
    l_max : int
        Highest degree L of the result.

    Returns
    -------
    list of tuple
        Those with l = 0 first.

    Examples
    --------
    >>> paths(1, 3)
    [(1, 0, 1), (1, 1, 2), (1, 2, 3)]
    """
    found = [
        (l1, l, l2)
        for l1 in range(1, l_in + 1)
        for l2 in range(l_max + 1)
        for l in range(abs(l1 - l2), l1 + l2 - 1, 2)
    ]
    return sorted(found, key=lambda path: path[1] > 0)
