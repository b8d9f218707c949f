"""GauntACE: an atomic cluster expansion between messages, its products taken on the sphere."""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Backbone, Inputs, Layouts
from molequi.nn.irreps import ElementLinear, IrrepsLinear, sizes
from molequi.nn.mlp import linear, mlp
from molequi.nn.radial import Edges, StretchedBasis, edges_of
from molequi.ops import irreps as ir
from molequi.ops import sphere
from molequi.ops.blocks import Blocks, blocks_of
from molequi.ops.constants import Float64Constants

SPECIES = 8  # neighbours' elements are told apart by so many numbers at most
FIELD = 0.35  # root mean square of a field on the sphere before training, and each further factor weighs half as much: high products
DECAY = 0.5  # begin small, which generalises better (acetylacetone after 300 s: 14.3 meV/Å, without the halving 16.2)
RADIAL = (
    4.0  # radial functions are this much larger and their weights smaller, so that a step of Adam moves them
)
# as far as others (14.3 to 13.4 meV/Å in the same time); both figures with Bessel functions


class GauntACE(Backbone):
    """Messages of many bodies, with products on the sphere in place of Clebsch-Gordan couplings.

    A layer sums its neighbours into A_i, up to l_max; makes of it `correlation` fields on the sphere, f_k(q) = Σ_lm (W_kl A_l)_m Y_lm(q),
    and takes at each point

        F = f_1 (w_1z + f_2 (w_2z + f_3 w_3z)),

    whose components up to l_hidden are the new features: of an atomic cluster expansion (Drautz 2019, Phys. Rev. B 99, 014104), one
    coupling for each (l_1, l_2, l_3, l), as matrix products and products of numbers. What an atom sends is
    what of its features does not change in a turn about the edge, each with a linear radial function of its own,

        A_i = Σ_j Y(r̂_ij) Σ_l' R_l'(r_ij) ∘ (h_j,l' · Y_l'(r̂_ij)) + Σ_j R(r_ij) ∘ h_j,

    in the first layer its element alone. Scalars pass a perceptron. MACE (arXiv 2206.07697) has all couplings, where products of three have
    several for the same degrees, at a few times the cost.

    elements: symbols or atomic numbers. cutoff: Å. channels, layers: width and depth. l_max: highest degree of A. l_hidden: highest degree
    of features between layers. l_out: highest degree that is returned, l_hidden unless said (0 is enough for energies and forces and is
    cheaper). correlation: factors of a product. radial: size of the Bessel basis. charge, spin: take the total charge and spin of each graph.
    node_features, edge_features, node_vectors: sizes of Graph.x, Graph.edge_attr, Graph.vec. k: each node sees only its k nearest (point
    clouds). axis: a direction that every node sees, as of a field that is the same everywhere: its components, or "learned".
    `Backbone.axis` says what symmetry remains. Three dimensions only.

    Returns "0e": (N, layers · channels, 1), and of the last layer "1o": (N, channels, 3), "2e" … up to l_out; the axis is one more "1o".
    """

    group = "O(3)"
    smooth_cutoff = True

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        axis: Axis = None,
        channels: Annotated[int, Gt(0)] = 64,
        layers: Annotated[int, Gt(0)] = 2,
        l_max: Annotated[int, Ge(0), Le(6)] = 3,
        l_hidden: Annotated[int, Ge(0), Le(6)] = 1,
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        correlation: Annotated[int, Ge(1), Le(6)] = 3,
        radial: Annotated[int, Gt(0)] = 8,
    ):
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        for option, value in (("l_hidden", l_hidden), ("l_out", l_out)):
            if value is not None and value > l_max:
                raise ModelError(
                    f"GauntACE.{option}: found {value} with l_max={l_max}; A has no features above l_max, so {option} is at most l_max"
                )
        self.l_max = l_max
        last = l_hidden if l_out is None else l_out
        self.layout = [ir.natural(l) for l in range(last + 1)]
        self.out = self.channels_with_axis(dict.fromkeys(self.layout, channels) | {"0e": channels * layers})
        self.embedding = self.node_embedding(channels)
        self.basis = StretchedBasis(radial, cutoff)
        common = dict(
            channels=channels,
            l_max=l_max,
            correlation=correlation,
            num_elements=len(self.elements),
            radial=radial + self.num_edge_inputs,
        )
        degrees = [0, *[l_hidden] * (layers - 1), last]
        self.layers = nn.ModuleList(
            Layer(**common, l_in=a, l_out=b, first=n == 0)
            for n, (a, b) in enumerate(itertools.pairwise(degrees))
        )

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of each layer."""
        width = self.embedding.element.embedding_dim
        layers = {
            f"layers.{k}": [ir.natural(l) for l in range(len(layer.after.sizes))]
            for k, layer in enumerate(self.layers)
        }
        return {"embedding": f"{width}x0e", **layers}

    def forward(self, graph: Graph) -> Features:
        if graph.dim != 3:
            raise ModelError(
                f"GauntACE works in 3 dimensions, these structures have {graph.dim}; EGNN and PaiNN take any number"
            )
        element = self.element_index(graph)
        blocks = blocks_of(element, len(self.elements))
        h = self.embedding(graph, element)[:, None, :]  # (N, 1, C)
        edges = edges_of(graph, self.cutoff, h.dtype)
        radial, more = self.basis(edges.length), self.edge_inputs(graph, edges)
        if more is not None:
            radial = torch.cat([radial, more], dim=1)
        radial = radial * (edges.envelope * (RADIAL * self.mean_neighbors.to(h.dtype).rsqrt()))[:, None]
        harmonics = ir.spherical_harmonics(self.l_max, edges.unit)
        scalars = []
        for layer in self.layers:
            h = layer(h, element, blocks, radial, harmonics, edges)
            scalars.append(h[:, 0])
        parts = h.split(sizes(self.layout), dim=1)
        out = {i: part.transpose(1, 2) for i, part in zip(self.layout, parts)}
        return Features(
            blocks=self.with_axis(out) | {"0e": torch.cat(scalars, dim=1)[:, :, None]},
            coordination=edges.coordination,
        )


class Layer(Float64Constants):
    """h' = W B(A) + W_z h, scalars through a perceptron besides."""

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
    ):
        super().__init__()
        self.gather = (
            Density(channels, l_max, radial, num_elements)
            if first
            else Messages(channels, l_max, radial, l_in)
        )
        degrees = [ir.natural(l) for l in range(l_max + 1)]
        self.mix = nn.ModuleList(IrrepsLinear(degrees, channels) for _ in range(correlation))
        self.weights = nn.ModuleList(nn.Embedding(num_elements, channels) for _ in range(correlation))
        for power, weight in enumerate(self.weights):
            nn.init.normal_(weight.weight, std=DECAY**power)
        there, back = sphere.transforms(l_max, l_out, correlation)
        self.register_constant("there", there)
        self.register_constant("back", back)
        # Components of a field of unit size have mean square 1, so that a field has Σ (2l + 1) times that.
        self.size = FIELD / (l_max + 1)
        self.after = IrrepsLinear(degrees[: l_out + 1], channels)
        self.keep = None if first else ElementLinear(degrees[: min(l_in, l_out) + 1], channels, num_elements)
        self.update = mlp([2 * channels, channels, channels])

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        element: Tensor,
        blocks: Blocks,
        radial: Float[Tensor, "E R"],
        harmonics: Sequence[Tensor],
        edges: Edges,
    ) -> Float[Tensor, "N O C"]:
        a = self.gather(h, element, radial, harmonics, edges) * self.size
        there, back = self.there.to(h.dtype), self.back.to(h.dtype)
        field = None
        for mix, weight in zip(reversed(self.mix), reversed(self.weights)):  # Horner, from the last factor
            weight = weight(element)[:, None]
            field = (there @ mix(a)) * (weight if field is None else weight + field)  # (N, Q, C)
        b = self.after(back @ field)  # (N, O, C)
        scalars = b[:, 0] + self.update(torch.cat([h[:, 0], b[:, 0]], dim=1))
        if self.keep is None:
            return torch.cat([scalars[:, None], b[:, 1:]], dim=1)
        rows = sum(self.keep.sizes)
        own = self.keep(h[:, :rows], blocks)
        return torch.cat([scalars[:, None] + own[:, :1], b[:, 1:rows] + own[:, 1:], b[:, rows:]], dim=1)


class Density(nn.Module):
    """A_i = Σ_j Y(r̂_ij) R_z(r_ij), with radial functions for each element z of neighbours: summed first, mixed into channels afterwards."""

    def __init__(self, channels: int, l_max: int, radial: int, num_elements: int):
        super().__init__()
        self.species = nn.Embedding(num_elements, min(num_elements, SPECIES))
        nn.init.orthogonal_(self.species.weight, gain=math.sqrt(self.species.embedding_dim))
        self.mix = nn.ModuleList(
            linear(radial * self.species.embedding_dim, channels) for _ in range(l_max + 1)
        )
        self.gain = math.sqrt(radial) / RADIAL

    def forward(self, h, element, radial, harmonics, edges: Edges):
        sent = edges.gather(self.species(element) * self.gain)  # (E, S)
        rows = (radial[:, :, None] * sent[:, None]).flatten(1)[:, None]  # (E, 1, R S)
        density = edges.contract(torch.cat(harmonics, dim=1)[:, None], rows)  # (N, M, R S)
        parts = density.split([y.shape[1] for y in harmonics], dim=1)
        return torch.cat([mix(part) for mix, part in zip(self.mix, parts)], dim=1)


class Messages(nn.Module):
    """A_i = Σ_j Y(r̂_ij) Σ_l' R_l'(r_ij) ∘ (h_j,l' · Y_l'(r̂_ij)) + Σ_j R(r_ij) ∘ h_j."""

    def __init__(self, channels: int, l_max: int, radial: int, l_in: int):
        super().__init__()
        self.channels, self.l_max, self.l_in = channels, l_max, l_in
        self.count = (l_in + 1) * (l_max + 1) + l_in
        self.before = IrrepsLinear([ir.natural(l) for l in range(l_in + 1)], channels)
        self.radial = linear(radial, self.count * channels, gain=math.sqrt(radial / (l_in + 1)) / RADIAL)

    def forward(self, h, element, radial, harmonics, edges: Edges):
        sent = edges.gather(self.before(h)).split([2 * l + 1 for l in range(self.l_in + 1)], dim=1)
        weights = self.radial(radial).reshape(radial.shape[0], self.count, self.channels)
        degrees, rows = self.l_max + 1, 0
        for l, part in enumerate(sent):
            along = (
                part
                if l == 0
                else (part * (harmonics[l] / math.sqrt(2 * l + 1))[:, :, None]).sum(1, keepdim=True)
            )
            rows = rows + weights[:, l * degrees : (l + 1) * degrees] * along  # (E, degrees, C)
        out = [edges.contract(y[:, None], rows[:, l : l + 1]) for l, y in enumerate(harmonics)]
        for l in range(1, self.l_in + 1):
            out[l] = out[l] + edges.sum(sent[l] * weights[:, degrees * (self.l_in + 1) + l - 1, None])
        return torch.cat(out, dim=1)
