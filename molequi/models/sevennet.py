"""SevenNet: NequIP with features of different widths (Park et al. 2024, arXiv 2402.03789)."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.base import Backbone, Inputs, Layouts
from molequi.models.sizes import Layers
from molequi.nn.mlp import SILU_GAIN, linear, mlp
from molequi.nn.radial import Edges, edges_of, xplor
from molequi.ops import irreps as ir
from molequi.ops.constants import Float64Constants

Blocks = tuple[Float[Tensor, "N _ _"], ...]
Path = tuple[str, int, str]  # irrep of the features, degree of the harmonic, irrep of the product
SelfConnection = Literal["linear", "elements", "none"]

TANH_GAIN = 1.0 / math.sqrt(0.39429449)  # E[tanh(x)^2] for x ~ N(0, 1), by quadrature


class SevenNet(Backbone):
    """NequIP (arXiv 2101.03164) in the form of SevenNet (Park et al. 2024, arXiv 2402.03789), whose published
    weights it takes.

    Each layer computes

        h' = gate(S h + W [concat over paths of (1/n) Σ_j R_path(r_ij) ((V h_j) ⊗ Y(r̂_ij))_path]),

    with matrices S, V and W for each irrep, radial functions R, the mean number of neighbors n, and one gate
    for each channel that is no invariant, which W and S give beside the features.

    In contrast to `NequIP`, irreps may have different numbers of channels, and all paths into an irrep keep
    channels of their own until W mixes them. It has no biases.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that it knows.
    cutoff : float
        Distance in Å up to which a node sees others, above 0.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions, such as ``Inputs(charge=True)``. It accepts
        charge, spin, node features, edge features, node vectors and an electric field.
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    channels : int, or sequence of mapping of str to int
        Number of invariant channels; a degree has half as many as the one below it, and natural parity (0e,
        1o, 2e, …). Or the channels of each irrep after the embedding and after each layer.
    layers : int, optional
        Number of layers, 3 by default, or as `channels` lists them.
    l_max : int
        Highest degree of the spherical harmonics, and of the features if `channels` is a number; 0 to 6.
    l_out : int, optional
        Highest degree that is returned if `channels` is a number. None: `l_max`.
    group : {"O(3)", "SO(3)"}
        "SO(3)" disregards reflections and allows all couplings; it has one irrep of each degree.
    radial : int
        Number of Bessel functions, whose frequencies are trained.
    radial_hidden : sequence of int
        Channels of the hidden layers of the radial perceptrons.
    switch : float, optional
        Distance in Å from which the XPLOR function goes to zero at the cutoff. None: the polynomial of
        exponent 6 (`nn.envelope`).
    self_connection : sequence of {"linear", "elements", "none"}, or one of them
        For each layer, whether S is one matrix, one for each element, or zero.
    unit_harmonics : bool
        Whether the harmonics are those of unit vectors. False: they have the factor r^l, as in the first
        published weights.
    biases : bool
        Whether the invariants after V, W and the embedding have biases. A file for several levels of theory
        has one set of them for each level.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range.
    ModelError
        For channels that no path leads to, for numbers that contradict each other, and for a switch beyond
        the cutoff.

    Examples
    --------
    >>> import molequi as mq
    >>> backbone = SevenNet(elements=["H", "O"], cutoff=3.0, channels=8, layers=2, l_max=1, switch=2.5)
    >>> water = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"])
    >>> backbone(mq.connect(water, 3.0)).layout
    '8x0e+4x1o'
    """

    smooth_cutoff = True
    full_edges = 0.7
    family = "tensor products of irreps"
    accepts = (*Backbone.accepts, "electric_field")
    good_for = "published SevenNet models"

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: Annotated[float, Gt(0)] = 5.0,
        inputs: Inputs = Inputs(),
        k: Annotated[int, Gt(0)] | None = None,
        channels: Annotated[int, Gt(0)] | Sequence[Mapping[str, Annotated[int, Gt(0)]]] = 64,
        layers: Layers | None = None,
        l_max: Annotated[int, Ge(0), Le(6)] = 2,
        l_out: Annotated[int, Ge(0), Le(6)] | None = None,
        group: Literal["O(3)", "SO(3)"] = "O(3)",
        radial: Annotated[int, Gt(0)] = 8,
        radial_hidden: Sequence[Annotated[int, Gt(0)]] = (64, 64),
        switch: Annotated[float, Ge(0)] | None = None,
        self_connection: SelfConnection | Sequence[SelfConnection] = "linear",
        unit_harmonics: bool = True,
        biases: bool = False,
    ) -> None:
        super().__init__(elements=elements, cutoff=cutoff, inputs=inputs, k=k)
        assert self.cutoff is not None
        if switch is not None and switch >= self.cutoff:
            raise ModelError(
                f"SevenNet.switch: found {switch} with cutoff={self.cutoff}; it is below the cutoff"
            )
        self.group, self.l_max, self.unit_harmonics = group, l_max, unit_harmonics
        where = type(self).__name__
        layouts = _layouts(where, channels, layers, l_max, l_out)
        count = len(layouts) - 1
        kinds = [self_connection] * count if isinstance(self_connection, str) else list(self_connection)
        if len(kinds) != count:
            raise ModelError(
                f"{where}.self_connection: found {len(kinds)}; wanted one for each of {count} layers"
            )
        self.layouts, self.out = layouts, dict(layouts[-1])
        self.embedding = self.node_embedding(layouts[0]["0e"])
        self.basis = TrainedBessel(radial, self.cutoff, switch)
        self.interactions = nn.ModuleList(
            Interaction(
                inputs=a,
                outputs=b,
                l_max=l_max,
                radial=(radial + self.num_edge_inputs, *radial_hidden),
                reflections=group == "O(3)",
                own=len(self.elements) if kind == "elements" else kind,
                biases=biases,
                where=where,
            )
            for a, b, kind in zip(layouts, layouts[1:], kinds)
        )

    def states(self) -> Mapping[str, Layouts]:
        """Layouts of the embedding and of each layer."""
        layers: dict[str, Layouts] = {
            f"interactions.{k}": tuple([irrep] for irrep in layout)
            for k, layout in enumerate(self.layouts[1:])
        }
        return {"embedding": f"{self.layouts[0]['0e']}x0e", **layers}

    def forward(self, graph: Graph) -> Features:
        if graph.dim != 3:
            raise ModelError(
                f"{type(self).__name__} works in 3 dimensions, these structures have {graph.dim}; EGNN and "
                "PaiNN take any number"
            )
        element = self.element_index(graph)
        h: Blocks = (self.embedding(graph, element)[:, None, :],)  # (N, 1, C)
        edges = edges_of(graph, self.cutoff, h[0].dtype)
        radial = self.radial_functions(edges, element)  # (E, R)
        more = self.edge_inputs(graph, edges)
        if more is not None:
            radial = torch.cat([radial, more * edges.envelope[:, None]], dim=1)
        parts = ir.spherical_harmonics(self.l_max, edges.unit)
        if not self.unit_harmonics:
            parts = [part * edges.length[:, None] ** l for l, part in enumerate(parts)]
        harmonics = torch.cat(parts, dim=1)  # Y(r̂_ij)  (E, (l_max + 1)²)
        scale = self.message_scale(element, radial.dtype)
        for interaction in self.interactions:
            h = interaction(h, element, radial, harmonics, edges, scale)
        blocks = {irrep: part.transpose(1, 2) for irrep, part in zip(self.layouts[-1], h)}
        return Features(blocks=blocks, coordination=edges.coordination)

    def radial_functions(self, edges: Edges, element: Int[Tensor, "N"]) -> Float[Tensor, "E R"]:
        """Functions of the length of each edge, zero from the cutoff on.

        Parameters
        ----------
        edges : Edges
            The edges.
        element : Tensor, shape (N,)
            Index of each node's element.
        """
        return self.basis(edges.length, edges.envelope)

    def message_scale(self, element: Int[Tensor, "N"], dtype: torch.dtype) -> Float[Tensor, "..."]:
        """The factor of messages, here 1/n: one number, or one for each node that sends, shape (N, 1, 1).

        Parameters
        ----------
        element : Tensor, shape (N,)
            Index of each node's element.
        dtype : torch.dtype
            Precision of the result.
        """
        return self.mean_neighbors.to(dtype).reciprocal()


class TrainedBessel(nn.Module):
    """Bessel functions with frequencies ω that are trained, times a function s that ends at the cutoff:

        (2 / r_c) sin(ω r) / r · s(r).

    Parameters
    ----------
    size : int
        Number of functions.
    cutoff : float
        r_c in Å.
    switch : float or None
        Distance in Å from which the XPLOR function falls. None: the polynomial of the edges.
    """

    def __init__(self, size: int, cutoff: float, switch: float | None) -> None:
        super().__init__()
        self.cutoff, self.switch = cutoff, switch
        self.frequencies = nn.Parameter(torch.arange(1, size + 1) * (math.pi / cutoff))

    def forward(self, length: Float[Tensor, "E"], envelope: Float[Tensor, "E"]) -> Float[Tensor, "E size"]:
        r = length.clamp(min=1e-6)
        smooth = envelope if self.switch is None else xplor(r, self.switch, self.cutoff) * (envelope > 0)
        return (torch.sin(r[:, None] * self.frequencies) / r[:, None]) * (smooth * (2.0 / self.cutoff))[
            :, None
        ]


class Interaction(Float64Constants):
    """One layer of `SevenNet`.

    Parameters
    ----------
    inputs, outputs : mapping of str to int
        Channels of h and h' by irrep.
    l_max : int
        Highest degree of the spherical harmonics.
    radial : sequence of int
        Number of radial inputs, and sizes of the hidden layers of the radial perceptron.
    reflections : bool
        True for O(3), False for SO(3).
    own : int or {"linear", "none"}
        Number of elements if each has a matrix S of its own; otherwise whether there is one for all, or none.
    biases : bool
        Whether invariants have biases.
    where : str
        Name of the model, for messages.

    Attributes
    ----------
    paths : list of tuple
        Irrep of h, degree of Y, irrep of the product, in the order of the radial weights.
    gated : dict of str to int
        Channels before the gate: those of h', and in "0e" one more for each channel that is gated.
    """

    coupling: Tensor

    def __init__(
        self,
        *,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        l_max: int,
        radial: Sequence[int],
        reflections: bool,
        own: int | Literal["linear", "none"],
        biases: bool,
        where: str,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self.gated = gated(outputs)
        found = ir.couplings(list(inputs), l_max, list(self.gated), reflections=reflections)
        names, targets = list(inputs), list(self.gated)
        self.paths: list[Path] = sorted(
            ((names[i], l, targets[k]) for i, l, k in found),
            key=lambda p: (targets.index(p[2]), names.index(p[0]), p[1]),
        )
        mid = {t: sum(inputs[i] for i, _, k in self.paths if k == t) for t in targets}
        for irrep, count in mid.items():
            if not count:
                raise ModelError(
                    f"{where}.channels: no path from {', '.join(inputs)} with l <= {l_max} to {irrep}"
                )
        columns = []
        for source, l2, target in self.paths:
            l1, l3 = ir.parse(source)[0], ir.parse(target)[0]
            part = torch.zeros((l_max + 1) ** 2, 2 * l1 + 1, 2 * l3 + 1, dtype=torch.float64)
            part[l2 * l2 : (l2 + 1) ** 2] = ir.clebsch_gordan(l1, l2, l3).transpose(0, 1) * math.sqrt(
                2 * l3 + 1
            )
            columns.append(part.flatten(1))
        self.register_constant("coupling", torch.cat(columns, dim=1))
        self.shapes = [(2 * ir.parse(i)[0] + 1, 2 * ir.parse(k)[0] + 1) for i, _, k in self.paths]
        kept = {} if own == "none" else self.gated
        self.own = Mix(inputs, kept, num_elements=own if isinstance(own, int) else None, biases=False)
        self.before = Mix(inputs, inputs, biases=biases)
        self.radial = mlp([*radial, sum(inputs[i] for i, _, _ in self.paths)], bias=False)
        self.after = Mix(mid, self.gated, biases=biases)

    def forward(
        self,
        h: Blocks,
        element: Int[Tensor, "N"],
        radial: Float[Tensor, "E R"],
        harmonics: Float[Tensor, "E S"],
        edges: Edges,
        scale: Float[Tensor, "..."],
    ) -> Blocks:
        """New features, one block for each irrep.

        Parameters
        ----------
        h : tuple of Tensor, shapes (N, 2 l + 1, C)
            Features of the nodes.
        element : Tensor, shape (N,)
            Index of each node's element.
        radial, harmonics, edges, scale
            As in `nn.Convolution`; the scale may have a number for each node that sends, shape (N, 1, 1).
        """
        before = self.before(h) if scale.ndim == 0 else [part * scale for part in self.before(h)]
        sent = dict(zip(self.inputs, (edges.gather(part) for part in before)))
        weights = self.radial(radial).split([self.inputs[i] for i, _, _ in self.paths], dim=1)
        matrices = (harmonics @ self.coupling.to(radial.dtype)).split([a * b for a, b in self.shapes], dim=1)
        sums: dict[str, list[Tensor]] = {target: [] for target in self.gated}
        for (source, _, target), weight, matrix, shape in zip(self.paths, weights, matrices, self.shapes):
            sums[target].append(edges.contract(matrix.unflatten(1, shape), sent[source] * weight[:, None]))
        joined = [torch.cat(parts, dim=2) for parts in sums.values()]
        mixed = self.after([part * scale for part in joined] if scale.ndim == 0 else joined)
        own = dict(zip(self.own.outputs, self.own(h, element)))
        return self._gate({i: m + own[i] if i in own else m for i, m in zip(self.gated, mixed)})

    def _gate(self, x: Mapping[str, Float[Tensor, "N _ _"]]) -> Blocks:
        """SiLU (0e) and tanh (0o) of the invariants; other channels times SiLU of a gate each."""
        scalars, *gates = x["0e"].split(
            [self.outputs.get("0e", 0), *(c for i, c in self.outputs.items() if ir.parse(i)[0])], dim=2
        )
        out = []
        for irrep in self.outputs:
            if irrep == "0e":
                out.append(torch.nn.functional.silu(scalars) * SILU_GAIN)
            elif irrep == "0o":
                out.append(torch.tanh(x[irrep]) * TANH_GAIN)
            else:
                out.append(x[irrep] * (torch.nn.functional.silu(gates.pop(0)) * SILU_GAIN))
        return tuple(out)


class Mix(nn.Module):
    """One matrix for each irrep, from and to any number of channels; irreps of only one side are left out.

    Parameters
    ----------
    inputs, outputs : mapping of str to int
        Channels by irrep.
    num_elements : int, optional
        Number of elements if each has matrices of its own.
    biases : bool
        Whether "0e" has a bias.

    Attributes
    ----------
    outputs : dict of str to int
        Channels of the irreps that it returns.
    linear : bool
        Whether all elements have the same matrices.
    """

    def __init__(
        self,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        *,
        num_elements: int | None = None,
        biases: bool,
    ) -> None:
        super().__init__()
        self.inputs, self.linear = list(inputs), num_elements is None
        self.outputs = {irrep: count for irrep, count in outputs.items() if irrep in inputs}
        self.mix = nn.ModuleDict()
        for irrep, count in self.outputs.items():
            if num_elements is None:
                self.mix[irrep] = linear(inputs[irrep], count, bias=biases and irrep == "0e")
            else:
                self.mix[irrep] = ElementMatrices(num_elements, inputs[irrep], count)

    def forward(self, x: Sequence[Float[Tensor, "N _ _"]], element: Int[Tensor, "N"] | None = None) -> Blocks:
        """New blocks, one for each irrep of `outputs`.

        Parameters
        ----------
        x : sequence of Tensor, shapes (N, 2 l + 1, C)
            One block for each irrep of the inputs.
        element : Tensor, shape (N,), optional
            Index of each node's element.
        """
        out = []
        for irrep, layer in self.mix.items():
            part = x[self.inputs.index(irrep)]
            out.append(layer(part, element) if isinstance(layer, ElementMatrices) else layer(part))
        return tuple(out)


class ElementMatrices(nn.Module):
    """One matrix for each element.

    Parameters
    ----------
    num_elements : int
        Number of elements.
    fan_in, fan_out : int
        Number of channels before and after.
    """

    def __init__(self, num_elements: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_elements, fan_in, fan_out) / math.sqrt(fan_in))

    def forward(self, x: Float[Tensor, "N m C"], element: Int[Tensor, "N"]) -> Float[Tensor, "N m K"]:
        return x @ self.weight[element]


def _layouts(
    where: str,
    channels: int | Sequence[Mapping[str, int]],
    layers: int | None,
    l_max: int,
    l_out: int | None,
) -> list[dict[str, int]]:
    """Channels of each irrep after the embedding and after each layer."""
    if isinstance(channels, int):
        count, last = 3 if layers is None else layers, l_max if l_out is None else l_out
        if last > l_max:
            raise ModelError(
                f"{where}.l_out: found {last} with l_max={l_max}; features above l_max do not exist"
            )
        degrees = [0, *[l_max] * (count - 1), last]
        return [{ir.natural(l): max(1, channels >> l) for l in range(d + 1)} for d in degrees]
    layouts = [_sorted(c) for c in channels]
    if len(layouts) < 2 or set(layouts[0]) != {"0e"}:
        raise ModelError(
            f"{where}.channels: found {list(channels)}; wanted those of the embedding, all 0e, and "
            "those of one layer or more"
        )
    if layers not in (None, len(layouts) - 1) or l_out is not None:
        given = "l_out" if l_out is not None else "layers"
        raise ModelError(
            f"{where}.{given}: channels lists {len(layouts) - 1} layers with their irreps; leave it out"
        )
    return layouts


def gated(outputs: Mapping[str, int]) -> dict[str, int]:
    """Channels before a gate: in "0e" one more for each channel that is gated.

    Parameters
    ----------
    outputs : mapping of str to int
        Channels after the gate, in the order of irreps.

    Examples
    --------
    >>> gated({"0e": 8, "1o": 4})
    {'0e': 12, '1o': 4}
    """
    gates = sum(count for irrep, count in outputs.items() if ir.parse(irrep)[0])
    return _sorted({**outputs, "0e": outputs.get("0e", 0) + gates})


def _sorted(channels: Mapping[str, int]) -> dict[str, int]:
    """Irreps by degree, odd ones first: the order of e3nn."""
    return dict(sorted(channels.items(), key=lambda item: ir.parse(item[0])))
