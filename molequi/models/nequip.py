"""NequIP: tensor-field convolutions with gates (Batzner et al. 2022, arXiv 2101.03164)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Backbone, Inputs, Layouts
from molequi.nn.irreps import Convolution, Gate, IrrepsLinear, sizes
from molequi.nn.radial import BesselBasis, edges_of
from molequi.ops import irreps as ir


class NequIP(Backbone):
    """h' = gate( W_z h + conv(h) ), layer by layer, on features of several irreps.

    Against the paper: all irreps have the same number of channels; the paths into one irrep are summed with radial weights of their
    own before the channels are mixed; and the element enters the self-connection as a factor on each channel, not as a matrix for
    each element, so that the cost does not grow with the number of elements.

    elements: symbols or atomic numbers. cutoff: Å. channels, layers, l_max: width, depth, highest degree.
    parity: also features that a reflection turns the unusual way (0o, 1e, 2o …); group "SO(3)" forgets reflections and allows every
    coupling, with one block a degree. l_out: highest degree that is returned (0 is enough for energies and forces and is cheaper).
    radial: size of the Bessel basis; radial_hidden: hidden layers of the radial functions, () for linear ones.
    charge, spin: take the total charge and spin of each graph. node_features, edge_features, node_vectors: sizes of Graph.x,
    Graph.edge_attr, Graph.vec. k: each node sees only its k nearest (point clouds). axis: a direction that every node sees, as of a field
    that is the same everywhere: its components, or "learned". `Backbone.axis` says what symmetry remains. Three dimensions only.

    Returns "0e": (N, channels, 1), "1o": (N, channels, 3) … up to l_out; the axis is one more "1o".
    """

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
        layers: Annotated[int, Gt(0)] = 3,
        l_max: Annotated[int, Ge(0), Le(6)] = 2,
        parity: bool = False,
        group: Literal["O(3)", "SO(3)"] = "O(3)",
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        radial: Annotated[int, Gt(0)] = 8,
        radial_hidden: Sequence[Annotated[int, Gt(0)]] = (64, 64),
    ):
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        if l_out is not None and l_out > l_max:
            raise ModelError(
                f"NequIP.l_out: found {l_out} with l_max={l_max}; features above l_max do not exist, so l_out is at most l_max"
            )
        if parity and group == "SO(3)":
            raise ModelError(
                "NequIP.parity: found True with group='SO(3)', where reflections, and so parities, mean nothing; leave it out"
            )
        self.group, self.l_max = group if axis is None else group.replace("3", "n-1"), l_max
        l_out = l_max if l_out is None else l_out
        reflections = group == "O(3)"
        natural = [ir.natural(l) for l in range(l_max + 1)]
        wanted = (
            natural + [ir.name(l, -((-1) ** l)) for l in range(l_max + 1)]
            if parity and reflections
            else natural
        )
        self.layouts = [["0e"]]
        for k in range(layers):
            targets = [i for i in wanted if k < layers - 1 or ir.parse(i)[0] <= l_out]
            self.layouts.append(
                [t for t in targets if ir.couplings(self.layouts[-1], l_max, [t], reflections=reflections)]
            )
        self.out = self.channels_with_axis(dict.fromkeys(self.layouts[-1], channels))
        self.embedding = self.node_embedding(channels)
        self.basis = BesselBasis(radial, cutoff)
        self.interactions = nn.ModuleList(
            Interaction(
                inputs=a,
                outputs=b,
                l_max=l_max,
                channels=channels,
                radial=(radial + self.num_edge_inputs, *radial_hidden),
                reflections=reflections,
                num_elements=len(self.elements),
            )
            for a, b in zip(self.layouts, self.layouts[1:])
        )

    def states(self) -> dict[str, Layouts]:
        """Layouts of the embedding and of each layer."""
        width = self.embedding.element.embedding_dim
        layers = {f"interactions.{k}": list(layout) for k, layout in enumerate(self.layouts[1:])}
        return {"embedding": f"{width}x0e", **layers}

    def forward(self, graph: Graph) -> Features:
        if graph.dim != 3:
            raise ModelError(
                f"NequIP works in 3 dimensions, these structures have {graph.dim}; EGNN and PaiNN take any number"
            )
        element = self.element_index(graph)
        h = self.embedding(graph, element)[:, None, :]  # (N, 1, C)
        edges = edges_of(graph, self.cutoff, h.dtype)
        radial, more = self.basis(edges.length), self.edge_inputs(graph, edges)
        if more is not None:
            radial = torch.cat([radial, more], dim=1)
        harmonics = torch.cat(ir.spherical_harmonics(self.l_max, edges.unit), dim=1)
        scale = self.mean_neighbors.to(h.dtype).rsqrt()
        for interaction in self.interactions:
            h = interaction(h, element, radial, harmonics, edges, scale)
        parts = h.split(sizes(self.layouts[-1]), dim=1)
        blocks = {i: part.transpose(1, 2) for i, part in zip(self.layouts[-1], parts)}
        return Features(blocks=self.with_axis(blocks), coordination=edges.coordination)


class Interaction(nn.Module):
    """h' = gate( W_z h + conv(h) )."""

    def __init__(
        self,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        l_max: int,
        channels: int,
        radial: Sequence[int],
        reflections: bool,
        num_elements: int,
    ):
        super().__init__()
        self.convolution = Convolution(
            inputs=inputs,
            outputs=outputs,
            l_max=l_max,
            channels=channels,
            radial=radial,
            reflections=reflections,
        )
        kept = [i for i in outputs if i in inputs]
        self.kept_from = [n for irrep in kept for n in _rows(inputs, irrep)]
        self.register_buffer(
            "kept_to", torch.tensor([n for irrep in kept for n in _rows(outputs, irrep)]), persistent=False
        )
        self.keep = IrrepsLinear(kept, channels)
        self.factor = nn.Embedding(num_elements, channels)
        nn.init.normal_(self.factor.weight, mean=1.0, std=0.3)
        self.gate = Gate(outputs, channels)

    def forward(self, h, element, radial, harmonics, edges, scale):
        moved = self.convolution(h, radial, harmonics, edges, scale)
        own = self.keep(h[:, self.kept_from] * self.factor(element)[:, None, :])
        return self.gate(moved.index_add(1, self.kept_to, own))


def _rows(layout: Sequence[str], irrep: str) -> range:
    widths = sizes(layout)
    k = list(layout).index(irrep)
    return range(sum(widths[:k]), sum(widths[: k + 1]))
