"""The base class of backbones: elements, cutoff and inputs, the declared symmetry, and how to build a
backbone again.
"""

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from molequi.errors import ConfigError, ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.models.inputs import Inputs, see_field
from molequi.nn.embedding import NodeEmbedding
from molequi.nn.radial import Edges, RadialBasis, edge_inputs, num_edge_inputs
from molequi.quantities import SYMBOLS, atomic_number
from molequi.util.signature import check_call, with_dataclasses

Axis = Literal["learned"] | Sequence[float] | None
Layout = str | list[str] | None
Layouts = Layout | tuple[Layout, ...]

# What to do about elements that a model does not know.
OTHER_ELEMENTS = "train on data with these elements, or take a model that knows them"


class Backbone(nn.Module, ABC):
    """Turns a connected `Graph` into `Features`.

    A subclass declares `group` and `out`, calls ``super().__init__`` first, and implements `forward`. The
    annotations of its constructor are the schema of its options: arguments from Python, YAML and model files
    are checked against types and ranges. `hparams` records the arguments, so that a model file can build the
    backbone again. They are numbers, strings, lists and mappings.

    Parameters
    ----------
    elements : sequence of str or int
        Symbols or atomic numbers that the backbone knows; 0 or "X" is a plain point.
    cutoff : float or None
        Distance in Å up to which a node sees others. None: it sees all other nodes of its graph.
    inputs : Inputs, optional
        What it reads of a graph besides elements and positions. None, the default of a subclass without this
        option: this is not declared.
    k : int, optional
        A node sees only its k nearest neighbors (point clouds). None: all within the cutoff.
    axis : "learned" or sequence of float, optional
        A direction that every node sees, such as that of a field, see `Backbone.axis`. None: no direction.

    Attributes
    ----------
    group : str
        The symmetry that it declares, a name of `symmetry.Group` ("O(n)", "SO(3)", …), besides permutations.
    translations : bool
        Whether it has translations.
    smooth_cutoff : bool
        Whether an edge beyond the cutoff adds exactly zero to all features; calculators then leave it in.
    full_edges : float
        Share of real edges from which padding (`regular_graphs`) is faster on a CPU. 1: never.
    clouds_alone : bool
        Whether it is for point clouds alone: it sees whole clouds.
    not_compiled : str
        Why `mq.accelerate` refuses it, and what to do; empty: it does not.
    family, good_for : str
        What kind of network it is and what for, in a few words, for ``molequi backbones``.
    accepts : tuple of str
        Names of the inputs that it can read; an own one that uses `Graph.vec` adds "electric_field". Any
        other is an error.
    out : dict of str to int
        Number of channels of each irrep that it returns.
    hparams : dict
        The keyword arguments that build it again, as JSON can hold them.

    Raises
    ------
    ConfigError
        For an option that is unknown, of the wrong type or out of range, and for an input it does not accept.
    ModelError
        If `elements` is no list, or `axis` is no direction.

    Examples
    --------
    The number of neighbors within the cutoff as the only feature:

    >>> import molequi as mq
    >>> from molequi.nn import edges_of
    >>> class Counting(mq.Backbone):
    ...     group = "O(n)"
    ...
    ...     def __init__(self, *, elements, cutoff: float = 3.0):
    ...         super().__init__(elements=elements, cutoff=cutoff)
    ...         self.out = {"0e": 1}
    ...
    ...     def forward(self, graph):
    ...         edges = edges_of(graph, self.cutoff, self.mean_neighbors.dtype)
    ...         count = edges.coordination[:, None, None]
    ...         return mq.Features(blocks={"0e": count}, coordination=edges.coordination)
    >>> Counting(elements=["H", "O"]).hparams
    {'elements': [1, 8], 'cutoff': 3.0}
    """

    group: str
    translations: bool = True
    smooth_cutoff: bool = False
    full_edges: ClassVar[float] = 1.0
    clouds_alone: ClassVar[bool] = False
    not_compiled: str = ""
    family: ClassVar[str] = ""
    good_for: ClassVar[str] = ""
    accepts: ClassVar[tuple[str, ...]] = ("charge", "spin", "node_features", "edge_features", "node_vectors")
    out: dict[str, int]
    hparams: dict[str, Any]
    direction: Tensor | None
    lookup: Tensor
    mean_neighbors: Tensor

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _recorded(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self,
        *,
        elements: Sequence[str | int],
        cutoff: float | None,
        inputs: Inputs | None = None,
        k: int | None = None,
        axis: Axis = None,
    ) -> None:
        options = self.hparams
        super().__init__()
        self.elements = tuple(_atomic_numbers(elements))
        self.cutoff = _checked_cutoff(type(self).__name__, cutoff)
        self.inputs, self.k = inputs, k
        normal = {"elements": list(self.elements), "cutoff": self.cutoff}
        self.hparams = {name: normal.get(name, value) for name, value in options.items()}
        lookup = torch.full((len(SYMBOLS),), -1)
        lookup[list(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("lookup", lookup, persistent=False)
        self.register_buffer("mean_neighbors", torch.tensor(16.0))
        self._set_axis(axis)

    def _set_axis(self, axis: Axis) -> None:
        if axis is None:
            self.direction = None
            return
        if axis == "learned":
            # Only its direction matters. The steps of Adam have a fixed size, so a short vector turns faster.
            self.direction = nn.Parameter(0.3 * torch.nn.functional.normalize(torch.randn(3), dim=0))
        else:
            if isinstance(axis, str) or not 0 < math.hypot(*axis) < math.inf:
                raise ModelError(
                    f"{type(self).__name__}.axis: found {list(axis)}; wanted 'learned' or the components of "
                    "a direction, not all zero"
                )
            self.register_buffer("direction", torch.tensor([float(x) for x in axis]))
        self.group = "O(n-1)"

    @classmethod
    def check_options(cls, options: Mapping[str, Any], *, where: str | None = None) -> None:
        """Check keyword arguments of the constructor without building the backbone.

        Parameters
        ----------
        options : mapping
            Keyword arguments by name, as in YAML; ``inputs`` may be a mapping.
        where : str, optional
            Text before the name of an option in messages; by default the name of the class.

        Raises
        ------
        ConfigError
            For an option that is unknown, of the wrong type or out of range, and for an input that the class
            does not accept.
        """
        where = where or cls.__name__
        known = inspect.signature(cls).parameters
        moved = [f.name for f in fields(Inputs) if f.name in options and f.name not in known]
        if moved and "inputs" in known:
            python = ", ".join(f"{name}={options[name]!r}" for name in moved)
            yaml = ", ".join(f"{name}: {str(options[name]).lower()}" for name in moved)
            raise ConfigError(
                f"{where}.{moved[0]}: what a backbone reads of a graph stands in 'inputs'; write "
                f"{cls.__name__}(inputs=Inputs({python})), in YAML {cls.__name__}: {{inputs: {{{yaml}}}}}"
            )
        needed = "elements" in known and known["elements"].default is inspect.Parameter.empty
        if needed and "elements" not in options:
            raise ConfigError(
                f"{where}.elements: missing; write {cls.__name__}(elements=data.elements, …) or "
                f"{cls.__name__}(elements=['C', 'H', 'O'], …)"
            )
        check_call(cls, options, where=where)
        inputs = options.get("inputs")
        used = inputs.used if isinstance(inputs, Inputs) else [k for k, v in (inputs or {}).items() if v]
        for name in used:
            if name not in cls.accepts:
                value = getattr(inputs, name) if isinstance(inputs, Inputs) else (inputs or {})[name]
                raise ConfigError(
                    f"{where}.inputs.{name}: found {value!r}; {cls.__name__} cannot read it, only "
                    f"{', '.join(cls.accepts)}"
                )

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters, or of the buffers of a backbone without parameters."""
        return next((p.dtype for p in self.parameters()), self.mean_neighbors.dtype)

    @property
    def axis(self) -> Float[Tensor, "D"] | None:
        """The present direction that every node sees (option `axis`), of length 1 and in float64; None if
        there is none.

        Of O(n) there remain the rotations about the axis n and the mirror planes that contain it: f(gx) = g
        f(x) holds for all g with g n = n, and for no others. Translations and permutations remain.
        """
        return None if self.direction is None else self.direction.double() / self.direction.double().norm()

    def reads(self, name: str) -> bool:
        """Whether the backbone reads an input; True if inputs are not declared.

        Parameters
        ----------
        name : str
            Name of the input in `Inputs`.
        """
        return self.inputs is None or bool(getattr(self.inputs, name))

    def states(self) -> Mapping[str, Layouts]:
        """Layers whose outputs transform in a known way, for the layer-wise audit.

        Returns
        -------
        mapping of str to layout
            Layout of the output of submodules, by their name in ``named_modules()``. If a submodule returns a
            tuple, a tuple of layouts. A layout is one of

            - ``"64x0e+16x1o"``: irreps on the last axis in e3nn's flat order, channel by channel. In D ≠ 3
              dimensions "1o" has D components.
            - ``["0e", "1o"]``: shape (N, M, C), the components of these irreps one after another on the
              second axis, channels last.
            - ``"point"``: shape (N, D), positions, which move with the structure under translations.
            - ``None``: not described; its error is attributed to the layers after it.

            Empty, the default: the backbone is measured as one block.
        """
        return {}

    def element_index(self, graph: Graph) -> Int[Tensor, "N"]:
        """Index of each node's element among those of the backbone.

        Parameters
        ----------
        graph : Graph
            A batch of structures.

        Returns
        -------
        Tensor, shape (N,)
            Numbers from 0 to ``len(self.elements) - 1``.

        Raises
        ------
        ModelError
            If the structures have other elements.
        """
        index = self.lookup[graph.z.clamp(0, len(SYMBOLS) - 1)]
        # While a function is compiled there are no values; the compiled program checks the elements itself.
        if not is_fake(index) and bool((index < 0).any()):
            node = int((index < 0).nonzero()[0])
            number = int(graph.z[node])
            symbol = SYMBOLS[number] if 0 <= number < len(SYMBOLS) else "?"
            known = ", ".join(SYMBOLS[z] for z in self.elements)
            raise ModelError(
                f"atom {node} is {symbol} (atomic number {number}); this model knows only {known}; "
                f"{OTHER_ELEMENTS}"
            )
        return index

    def node_embedding(self, channels: int) -> NodeEmbedding:
        """A new layer that computes initial node features from elements and `inputs`.

        Parameters
        ----------
        channels : int
            Number of invariants of a node.
        """
        inputs = self.inputs or Inputs()
        return NodeEmbedding(
            num_elements=len(self.elements),
            channels=channels,
            node_features=inputs.node_features,
            charge=inputs.charge,
            spin=inputs.spin,
        )

    @property
    def num_edge_inputs(self) -> int:
        """Number of columns of `edge_inputs`."""
        inputs = self.inputs or Inputs()
        return num_edge_inputs(inputs.edge_features, inputs.vectors) + (self.direction is not None)

    def edge_inputs(self, graph: Graph, edges: Edges) -> Float[Tensor, "E A"] | None:
        """Invariants of each edge that `inputs` and `axis` add to its length.

        These are edge features; products of node vectors with the direction of the edge and with each other,
        see `nn.edge_inputs`; and the component of the axis along the edge.

        Parameters
        ----------
        graph : Graph
            A connected graph.
        edges : Edges
            Its edges.

        Returns
        -------
        Tensor or None
            Shape (E, num_edge_inputs); None if there are none.

        Raises
        ------
        ModelError
            If the structures have other numbers of edge features or node vectors than `inputs`, or other
            dimensions than the axis.
        """
        inputs = self.inputs or Inputs()
        found = edge_inputs(graph, edges, inputs.edge_features, inputs.vectors, where=type(self).__name__)
        axis = None if self.direction is None else self.axis
        if axis is None:
            return found
        if graph.dim != axis.shape[0]:
            raise ModelError(
                f"the axis of this {type(self).__name__} has {axis.shape[0]} components; the structures have "
                f"{graph.dim} dimensions"
            )
        along = (edges.unit @ axis.to(edges.unit.dtype))[:, None]
        return along if found is None else torch.cat([found, along], dim=1)

    def _edge_invariants(self, basis: RadialBasis, graph: Graph, edges: Edges) -> Float[Tensor, "E R"]:
        """Functions of the length of each edge, followed by its `edge_inputs`."""
        known, more = basis(edges.length), self.edge_inputs(graph, edges)
        return known if more is None else torch.cat([known, more], dim=1)

    def _velocities(self, graph: Graph) -> Float[Tensor, "N D"]:
        """The velocities of a graph. Raises ModelError if it has none."""
        if graph.vel is None:
            raise ModelError(
                f"this {type(self).__name__} reads velocities (inputs=Inputs(velocity=True)) and the "
                "structures have none; give Graph.vel"
            )
        return graph.vel

    def channels_with_axis(self, out: dict[str, int]) -> dict[str, int]:
        """Channels of each irrep, with one more "1o" if there is an axis: the channels of `with_axis`.

        Parameters
        ----------
        out : dict of str to int
            Channels without the axis.
        """
        return out if self.direction is None or "1o" not in out else out | {"1o": out["1o"] + 1}

    def with_axis(self, blocks: dict[str, Float[Tensor, "N C m"]]) -> dict[str, Float[Tensor, "N K m"]]:
        """Blocks of features, with the axis as the last channel of "1o" if both exist.

        Parameters
        ----------
        blocks : dict of str to Tensor, shape (N, C, m)
            Features by irrep.
        """
        axis = None if self.direction is None else self.axis
        if axis is None or "1o" not in blocks:
            return blocks
        vectors = blocks["1o"]
        rows = axis.to(vectors.dtype).expand(vectors.shape[0], 1, vectors.shape[2])
        return blocks | {"1o": torch.cat([vectors, rows], dim=1)}

    def __call__(self, graph: Graph) -> Features:
        return cast(Features, super().__call__(see_field(self, graph)))

    @abstractmethod
    def forward(self, graph: Graph) -> Features:
        """Compute the features of each node.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures.

        Returns
        -------
        Features
            Blocks with the channels of `out`.
        """


def _recorded(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that first checks its options and records them as `hparams`."""
    parameters = list(inspect.signature(init).parameters.values())[1:]
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    open_ended = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)

    @functools.wraps(init)
    def checked(self: Backbone, *args: Any, **options: Any) -> None:
        # Only the constructor of the class itself records, not those of its parents.
        if "hparams" in vars(self) or len(args) > len(positional):
            return init(self, *args, **options)
        options = dict(zip(positional, args)) | options
        if open_ended:  # which options there are is known to its parent alone
            named = {p.name: p.default for p in parameters if p.default is not p.empty}
            vars(self)["hparams"] = {name: _plain(value) for name, value in (named | options).items()}
            return init(self, **options)
        if "elements" in options:
            options["elements"] = _atomic_numbers(options["elements"])
        type(self).check_options(options)
        options = with_dataclasses(type(self), options)
        vars(self)["hparams"] = {p.name: _plain(options.get(p.name, p.default)) for p in parameters}
        return init(self, **options)

    return checked


def _checked_cutoff(name: str, cutoff: Any) -> float | None:
    """The cutoff in Å. Raises ModelError if no edge could be shorter."""
    if cutoff is None:
        return None
    try:
        value = float(cutoff)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise ModelError(
            f"{name}.cutoff: found {cutoff!r}; wanted a distance in Å above zero, such as cutoff=5.0, or "
            "None for edges between all nodes"
        )
    return value


def _atomic_numbers(elements: Sequence[str | int]) -> list[int]:
    if isinstance(elements, str) or len(elements) == 0:
        raise ModelError(
            f"elements={elements!r}: wanted a list of symbols or atomic numbers, such as ['C', 'H', 'O']"
        )
    return sorted({atomic_number(e) for e in elements})


def _plain(value: Any) -> Any:
    """An option as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return list(value) if isinstance(value, tuple) else value
