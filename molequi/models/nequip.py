"""NequIP: tensor-field convolutions with gates (Batzner et al. 2022, arXiv 2101.03164)."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Axis, Inputs
from molequi.models.irreps import IrrepsBackbone
from molequi.models.sizes import Layers
from molequi.nn.irreps import Convolution, Gate, IrrepsLinear, sizes
from molequi.nn.radial import BesselBasis, Edges
from molequi.ops import irreps as ir


class NequIP(IrrepsBackbone):
    """Neural equivariant interatomic potential (Batzner et al. 2022, arXiv 2101.03164), in three dimensions.

    Each layer computes h' = gate(W_z h + conv(h)) on features of several irreps, with the tensor-field
    convolution `nn.Convolution` (eqs. 5-7) and the gated nonlinearity `nn.Gate`.

    Differences from the paper: all irreps have the same number of channels; the paths into one irrep are
    summed with radial weights of their own before channels are mixed; and in the self-connection W_z the
    element enters as a factor of each channel, not as a matrix for each element, so that the cost does not
    grow with the number of elements.

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
        Highest degree of features and spherical harmonics, 0 to 6.
    parity : bool
        Whether there are also irreps 0o, 1e, 2o, …, whose sign under reflections is the opposite of the
        natural one.
    group : {"O(3)", "SO(3)"}
        "SO(3)" disregards reflections and allows all couplings; it has one irrep of each degree.
    l_out : int, optional
        Highest degree that is returned, 0 to `l_max`. None: `l_max`. 0 is cheaper, and enough for energies
        and forces.
    radial : int
        Number of radial functions, above 0.
    radial_hidden : sequence of int
        Channels of the hidden layers of the radial perceptrons; ``()`` for linear ones.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        If `l_out` exceeds `l_max`, or `parity` is combined with "SO(3)".

    Notes
    -----
    Features have ``"0e"`` of shape (N, channels, 1), ``"1o"`` of shape (N, channels, 3), and so on up to
    `l_out`. The axis, if there is one, is one more "1o".

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = NequIP(elements=["H", "O"], cutoff=3.0, channels=8, layers=2, l_max=1)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> features = backbone(mq.connect(water, backbone.cutoff))
    >>> {irrep: tuple(block.shape) for irrep, block in features.blocks.items()}
    {'0e': (3, 8, 1), '1o': (3, 8, 3)}
    """

    stack = "interactions"
    family = "tensor products of irreps"
    good_for = "force fields from few frames; dipoles, tensors"

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        axis: Axis = None,
        channels: Annotated[int, Gt(0)] = 64,
        layers: Layers = 3,
        l_max: Annotated[int, Ge(0), Le(6)] = 2,
        parity: bool = False,
        group: Literal["O(3)", "SO(3)"] = "O(3)",
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        radial: Annotated[int, Gt(0)] = 8,
        radial_hidden: Sequence[Annotated[int, Gt(0)]] = (64, 64),
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k, axis=axis)
        if l_out is not None and l_out > l_max:
            raise ModelError(
                f"NequIP.l_out: found {l_out} with l_max={l_max}; features above l_max do not exist, so "
                "l_out is at most l_max"
            )
        if parity and group == "SO(3)":
            raise ModelError(
                "NequIP.parity: found True with group='SO(3)', where reflections, and so parities, mean "
                "nothing; leave it out"
            )
        self.group, self.l_max = group if axis is None else group.replace("3", "n-1"), l_max
        reflections = group == "O(3)"
        wanted = [ir.natural(l) for l in range(l_max + 1)]
        if parity:
            wanted += [ir.name(l, -((-1) ** l)) for l in range(l_max + 1)]
        self.layouts = [["0e"]]
        for n in range(layers):
            highest = l_max if n < layers - 1 or l_out is None else l_out
            targets = [i for i in wanted if ir.parse(i)[0] <= highest]
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

    def forward(self, graph: Graph) -> Features:
        element, h, edges, radial = self.begin(graph)  # (N,), (N, 1, C), E edges, (E, R)
        harmonics = torch.cat(
            ir.spherical_harmonics(self.l_max, edges.unit), dim=1
        )  # Y(r̂_ij)  (E, (l_max + 1)²)
        scale = self.mean_neighbors.to(h.dtype).rsqrt()
        for interaction in self.interactions:
            h = interaction(h, element, radial, harmonics, edges, scale)  # (N, M, C)
        return self.features(h, edges)


class Interaction(nn.Module):
    """One layer, h' = gate(W_z h + conv(h)).

    Parameters
    ----------
    inputs, outputs : sequence of str
        Irreps of h and h'.
    l_max : int
        Highest degree of the spherical harmonics.
    channels : int
        Number of channels of each irrep.
    radial : sequence of int
        Number of radial inputs, and sizes of the hidden layers of the radial perceptron.
    reflections : bool
        True for O(3), False for SO(3).
    num_elements : int
        Number of elements.
    """

    kept_to: Tensor

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
    ) -> None:
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

    def forward(
        self,
        h: Float[Tensor, "N I C"],
        element: Int[Tensor, "N"],
        radial: Float[Tensor, "E R"],
        harmonics: Float[Tensor, "E S"],
        edges: Edges,
        scale: Float[Tensor, ""],
    ) -> Float[Tensor, "N O C"]:
        """New features.

        Parameters
        ----------
        h : Tensor, shape (N, I, C)
            Features of the nodes.
        element : Tensor, shape (N,)
            Index of each node's element.
        radial, harmonics, edges, scale
            As in `nn.Convolution`.
        """
        moved = self.convolution(h, radial, harmonics, edges, scale)  # conv(h)  (N, O, C)
        own = self.keep(h[:, self.kept_from] * self.factor(element)[:, None, :])  # W_z h
        return self.gate(moved.index_add(1, self.kept_to, own))


def _rows(layout: Sequence[str], irrep: str) -> range:
    """Rows of one irrep in a layout."""
    widths = sizes(layout)
    k = list(layout).index(irrep)
    return range(sum(widths[:k]), sum(widths[: k + 1]))
