"""MACE: messages of higher body order (Batatia et al. 2022, arXiv 2206.07697; 2205.06643)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Inputs
from molequi.models.irreps import IrrepsBackbone, natural_layouts
from molequi.models.sizes import Layers
from molequi.nn.covalent import AgnesiDistance, SoftDistance
from molequi.nn.irreps import AtomicBasis, ElementLinear, ProductBasis, sizes
from molequi.nn.mlp import linear
from molequi.nn.radial import BesselBasis, Edges, RadialBasis, envelope
from molequi.ops import irreps as ir
from molequi.ops.blocks import Blocks, blocks_of
from molequi.util.signature import check_call, check_keywords


@check_keywords()
@dataclass(frozen=True, kw_only=True)
class Variant:
    """Details in which published MACE models differ from `MACE` by default.

    Parameters
    ----------
    mix_paths : bool
        Whether each path into an irrep of A has channels of its own until they are mixed.
    self_connection : bool, or sequence of bool
        For all layers or for each, whether it has the term W_z h. A layer without it mixes the channels of A
        by a matrix for each element instead.
    normalize : {"mean", "density"}
        Sums over neighbors are divided by their mean number, or by 1 + Σ_j tanh(d(r_ij)²) with a linear map d
        of the radial functions, so that they stay finite in dense structures.
    distance : {"agnesi", "soft"}, optional
        Transform of the distance that the radial functions read, see `nn.AgnesiDistance` and
        `nn.SoftDistance`. None: the distance itself.
    exponent : int
        Exponent of the cutoff function, see `nn.envelope`; above 1.
    train_frequencies : bool
        Whether the frequencies of the radial functions are trained.

    Raises
    ------
    ConfigError
        If a value has the wrong type or is out of range.

    Examples
    --------
    >>> MACE(elements=["H"], variant=Variant(mix_paths=True, exponent=5)).exponent
    5
    """

    mix_paths: bool = False
    self_connection: bool | Sequence[bool] = True
    normalize: Literal["mean", "density"] = "mean"
    distance: Literal["agnesi", "soft"] | None = None
    exponent: Annotated[int, Gt(1)] = 6
    train_frequencies: bool = False

    def __post_init__(self) -> None:
        check_call(Variant, asdict(self), where="Variant")


class MACE(IrrepsBackbone):
    """Messages of higher body order (Batatia et al. 2022, arXiv 2206.07697), in three dimensions.

    Each layer computes h' = W B(A) + W_z h (eq. 12). A is a sum over neighbors (`nn.AtomicBasis`, eqs. 8, 9),
    and B has all products of up to `correlation` features A of a node (`nn.ProductBasis`, eqs. 10, 11). So
    one layer couples correlation + 1 bodies, and two layers are enough. As published, the radial perceptron
    has no biases and reads Bessel functions times the envelope, sums are divided by the mean number of
    neighbors, and products have weights for each element and channel.

    Differences from the paper: paths into one irrep of A are summed before its channels are mixed (in eq. 8
    the authors' program also mixes paths, see `Variant`); products that are zero or appear twice by
    symmetry have no weights; and the energy is not a sum of readouts of the layers. Instead, "0e" has the
    scalars of all layers side by side, and the head reads them all. `heads.LayerReadouts` is such a sum.

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
        Highest degree of features between layers, 0 to `l_max`. 0, only scalars, is cheaper.
    correlation : int, or sequence of int
        Highest number of factors A in a product, 1 to 6; for all layers, or for each.
    l_out : int, optional
        Highest degree that is returned, 0 to `l_max`. None: `l_hidden`. 0 is cheaper, and enough for energies
        and forces.
    radial : int
        Number of radial functions, above 0.
    radial_hidden : sequence of int
        Channels of the hidden layers of the radial perceptrons; ``()`` for linear ones.
    variant : Variant, optional
        Details of published models; or a mapping, ``{"mix_paths": True}``.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `l_hidden` or `l_out` exceeds `l_max`, or an option for each layer has another number of values.

    Notes
    -----
    Features have ``"0e"`` of shape (N, layers · channels, 1); of the last layer ``"1o"`` of shape (N,
    channels, 3), ``"2e"`` and so on up to `l_out`. The axis, if there is one, is one more "1o".

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = MACE(elements=["H", "O"], cutoff=3.0, channels=8, l_max=2)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 16, 1), '1o': (3, 8, 3)}
    """

    group = "O(3)"
    full_edges = 0.9
    family = "messages of higher body order"
    good_for = "force fields, as published"

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
        correlation: Annotated[int, Ge(1), Le(6)] | Sequence[Annotated[int, Ge(1), Le(6)]] = 3,
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        radial: Annotated[int, Gt(0)] = 8,
        radial_hidden: Sequence[Annotated[int, Gt(0)]] = (64, 64, 64),
        variant: Variant = Variant(),
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
        self.basis = BesselBasis(radial, cutoff, trained=variant.train_frequencies)
        kinds = {None: None, "agnesi": AgnesiDistance, "soft": SoftDistance}
        kind = kinds[variant.distance]
        self.distance = None if kind is None else kind()
        self.exponent = variant.exponent
        self.layers = nn.ModuleList(
            Layer(
                inputs=a,
                outputs=b,
                l_max=l_max,
                correlation=factors,
                channels=channels,
                radial=(radial + self.num_edge_inputs, *radial_hidden),
                num_elements=len(self.elements),
                mix_paths=variant.mix_paths,
                self_connection=bool(connected),
                density=variant.normalize == "density",
            )
            for a, b, factors, connected in zip(
                self.layouts,
                self.layouts[1:],
                _each("correlation", correlation, layers),
                _each("variant.self_connection", variant.self_connection, layers),
            )
        )

    def _edge_invariants(self, basis: RadialBasis, graph: Graph, edges: Edges) -> Float[Tensor, "E R"]:
        length = edges.length if self.distance is None else self.distance(graph.z, edges)
        known, more = basis(length), self.edge_inputs(graph, edges)
        return known if more is None else torch.cat([known, more], dim=1)

    def forward(self, graph: Graph) -> Features:
        element, h, edges, radial = self.begin(graph)  # (N,), (N, 1, C), E edges, (E, R)
        blocks = blocks_of(element, len(self.elements))
        smooth = edges.envelope  # also the mark of edges that are there
        if self.exponent != 6:
            smooth = torch.where(smooth > 0, envelope(edges.length, self.cutoff, self.exponent), 0.0)
        radial = radial * smooth[:, None]
        harmonics = torch.cat(
            ir.spherical_harmonics(self.l_max, edges.unit), dim=1
        )  # Y(r̂_ij)  (E, (l_max + 1)²)
        scale = self.mean_neighbors.to(h.dtype).reciprocal()
        scalars = []
        for layer in self.layers:
            h = layer(h, blocks, radial, harmonics, edges, scale)  # (N, M, C)
            scalars.append(h[:, 0])
        return self.features(h, edges, scalars)


class Layer(nn.Module):
    """One layer, h' = W B(A) + W_z h (eqs. 8-12), or h' = W B(W_z A).

    Parameters
    ----------
    inputs, outputs : sequence of str
        Irreps of h and h'.
    l_max : int
        Highest degree of A.
    correlation : int
        Highest number of factors A.
    channels : int
        Number of channels of each irrep.
    radial : sequence of int
        Number of radial inputs, and sizes of the hidden layers of the radial perceptron.
    num_elements : int
        Number of elements.
    mix_paths, self_connection : bool
        As in `Variant`.
    density : bool
        Whether sums are divided by a density in place of the mean number of neighbors.
    """

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
        mix_paths: bool = False,
        self_connection: bool = True,
        density: bool = False,
    ) -> None:
        super().__init__()
        degrees = [ir.natural(l) for l in range(l_max + 1)]
        self.atomic = AtomicBasis(
            inputs=inputs,
            outputs=degrees,
            l_max=l_max,
            channels=channels,
            radial=radial,
            mix_paths=mix_paths,
        )
        self.density = linear(radial[0], 1) if density else None
        self.product = ProductBasis(
            l_max=l_max,
            outputs=outputs,
            correlation=correlation,
            channels=channels,
            num_elements=num_elements,
        )
        kept = min(inputs, outputs, key=len)
        self.kept = sum(sizes(kept))
        self.keep = ElementLinear(kept, channels, num_elements) if self_connection else None
        self.turn = None if self_connection else ElementLinear(degrees, channels, num_elements)

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        blocks: Blocks,
        radial: Float[Tensor, "E R"],
        harmonics: Float[Tensor, "E S"],
        edges: Edges,
        scale: Float[Tensor, ""] | Float[Tensor, "N 1 1"],
    ) -> Float[Tensor, "N O C"]:
        """New features.

        Parameters
        ----------
        h : Tensor, shape (N, I, C)
            Features of the nodes.
        blocks : Blocks
            The nodes sorted by element.
        radial, harmonics, edges, scale
            As in `nn.AtomicBasis`.
        """
        if self.density is not None:
            density = edges.sum(torch.tanh(self.density(radial).square()))  # (N, 1)
            scale = 1 / (1 + density[:, :, None])
        a = self.atomic(h, radial, harmonics, edges, scale)  # eqs. 8, 9  (N, (l_max + 1)², C)
        if self.turn is not None:
            a = self.turn(a, blocks)
        b = self.product(a, blocks)  # eqs. 10, 11  (N, O, C)
        if self.keep is None:
            return b
        own = self.keep(h[:, : self.kept], blocks)  # W_z h
        if self.kept == b.shape[1]:
            return b + own  # eq. 12
        return torch.cat([b[:, : self.kept] + own, b[:, self.kept :]], dim=1)


def _each(option: str, value: int | Sequence[int], layers: int) -> list[int]:
    """The value of an option for each layer."""
    values = [value] * layers if isinstance(value, int) else list(value)
    if len(values) != layers:
        raise ModelError(f"MACE.{option}: found {len(values)} values; wanted one for each of {layers} layers")
    return values
