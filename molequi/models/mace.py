"""MACE: messages of higher body order (Batatia et al. 2022, arXiv 2206.07697; 2205.06643)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Backbone, Inputs, Layouts
from molequi.nn.irreps import AtomicBasis, ElementLinear, ProductBasis, sizes
from molequi.nn.radial import BesselBasis, edges_of
from molequi.ops import irreps as ir
from molequi.ops.blocks import blocks_of


class MACE(Backbone):
    """h' = W B(A) + W_z h, layer by layer: A sums over the neighbours, B has all products of up to `correlation` features A of a node.

    So one layer sees correlation + 1 bodies, and two are enough. As published: the radial perceptron has no bias and takes Bessel
    functions times the envelope, sums are divided by the mean number of neighbours, and products are weighted for each element and
    channel. Against the paper: the paths into one irrep of A are summed before its channels are mixed (eq. 8, where the authors'
    program mixes paths as well); products that are zero or appear twice by symmetry have no weights; and the energy is not a sum of
    readouts of the layers: "0e" has the scalars of all layers side by side, and the head's perceptron reads all of them.

    elements: symbols or atomic numbers. cutoff: Å. channels, layers: width and depth. l_max: highest degree of the harmonics and of A.
    l_hidden: highest degree of features between layers; 0 is scalars only, and cheaper. correlation: number of A in a product.
    l_out: highest degree that is returned (0 is enough for energies and forces and is cheaper), l_hidden unless said.
    radial: size of the Bessel basis; radial_hidden: hidden layers of the radial functions, () for linear ones.
    charge, spin: take the total charge and spin of each graph. node_features, edge_features, node_vectors: sizes of Graph.x,
    Graph.edge_attr, Graph.vec. k: each node sees only its k nearest (point clouds). axis: a direction that every node sees, as of a field
    that is the same everywhere: its components, or "learned". `Backbone.axis` says what symmetry remains. Three dimensions only.

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
        correlation: Annotated[int, Ge(1), Le(6)] = 3,
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        radial: Annotated[int, Gt(0)] = 8,
        radial_hidden: Sequence[Annotated[int, Gt(0)]] = (64, 64, 64),
    ):
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        for option, value in (("l_hidden", l_hidden), ("l_out", l_out)):
            if value is not None and value > l_max:
                raise ModelError(
                    f"MACE.{option}: found {value} with l_max={l_max}; A has no features above l_max, so {option} is at most l_max"
                )
        self.l_max = l_max
        last = l_hidden if l_out is None else l_out
        self.layouts = [
            ["0e"],
            *([ir.natural(l) for l in range(l_hidden + 1)] for _ in range(layers - 1)),
            [ir.natural(l) for l in range(last + 1)],
        ]
        self.out = self.channels_with_axis(
            dict.fromkeys(self.layouts[-1], channels) | {"0e": channels * layers}
        )
        self.embedding = self.node_embedding(channels)
        self.basis = BesselBasis(radial, cutoff)
        self.layers = nn.ModuleList(
            Layer(
                inputs=a,
                outputs=b,
                l_max=l_max,
                correlation=correlation,
                channels=channels,
                radial=(radial + self.num_edge_inputs, *radial_hidden),
                num_elements=len(self.elements),
            )
            for a, b in zip(self.layouts, self.layouts[1:])
        )

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of each layer."""
        width = self.embedding.element.embedding_dim
        layers = {f"layers.{k}": list(layout) for k, layout in enumerate(self.layouts[1:])}
        return {"embedding": f"{width}x0e", **layers}

    def forward(self, graph: Graph) -> Features:
        if graph.dim != 3:
            raise ModelError(
                f"MACE works in 3 dimensions, these structures have {graph.dim}; EGNN and PaiNN take any number"
            )
        element = self.element_index(graph)
        blocks = blocks_of(element, len(self.elements))
        h = self.embedding(graph, element)[:, None, :]  # (N, 1, C)
        edges = edges_of(graph, self.cutoff, h.dtype)
        radial, more = self.basis(edges.length), self.edge_inputs(graph, edges)
        if more is not None:
            radial = torch.cat([radial, more], dim=1)
        radial = radial * edges.envelope[:, None]
        harmonics = torch.cat(ir.spherical_harmonics(self.l_max, edges.unit), dim=1)
        scale = self.mean_neighbors.to(h.dtype).reciprocal()
        scalars = []
        for layer in self.layers:
            h = layer(h, blocks, radial, harmonics, edges, scale)
            scalars.append(h[:, 0])
        parts = h.split(sizes(self.layouts[-1]), dim=1)
        blocks_out = {i: part.transpose(1, 2) for i, part in zip(self.layouts[-1], parts)}
        return Features(
            blocks=self.with_axis(blocks_out) | {"0e": torch.cat(scalars, dim=1)[:, :, None]},
            coordination=edges.coordination,
        )


class Layer(nn.Module):
    """h' = W B(A) + W_z h   (eqs. 8-12)."""

    def __init__(
        self,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        l_max: int,
        correlation: int,
        channels: int,
        radial: Sequence[int],
        num_elements: int,
    ):
        super().__init__()
        self.atomic = AtomicBasis(
            inputs=inputs,
            outputs=[ir.natural(l) for l in range(l_max + 1)],
            l_max=l_max,
            channels=channels,
            radial=radial,
        )
        self.product = ProductBasis(
            l_max=l_max,
            outputs=outputs,
            correlation=correlation,
            channels=channels,
            num_elements=num_elements,
        )
        kept = min(inputs, outputs, key=len)
        self.kept = sum(sizes(kept))
        self.keep = ElementLinear(kept, channels, num_elements)

    def forward(self, h, blocks, radial, harmonics, edges, scale):
        b = self.product(self.atomic(h, radial, harmonics, edges, scale), blocks)
        own = self.keep(h[:, : self.kept], blocks)
        if self.kept == b.shape[1]:
            return b + own
        return torch.cat([b[:, : self.kept] + own, b[:, self.kept :]], dim=1)
