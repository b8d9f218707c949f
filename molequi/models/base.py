"""What every backbone shares: the elements it knows, its cutoff, its declared group, and how to rebuild it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from molequi.errors import ModelError, did_you_mean
from molequi.features import Features
from molequi.graph import Graph
from molequi.nn.radial import Edges, given_on_edges
from molequi.quantities import SYMBOLS, atomic_number
from molequi.util.signature import check_call

Axis = Literal["learned"] | Sequence[float] | None


def channels_with(axis: Axis, out: dict[str, int]) -> dict[str, int]:
    """Channels of each block that a backbone returns, with one more "1o" for the axis: see `Backbone.with_axis`."""
    return out if axis is None or "1o" not in out else out | {"1o": out["1o"] + 1}


class Backbone(nn.Module, ABC):
    """Turns a connected Graph into Features.

    elements: symbols or atomic numbers that it knows; 0 or "X" is a plain point.
    cutoff: how far a node sees, Å; None: every other node of its graph.
    k: it sees only so many of the nearest, for point clouds; None: all within the cutoff.
    group: the symmetry that it declares, a name of `symmetry.Group` ("O(n)", "SO(3)", "O(n-1)", "C1"); permutations always belong.
    translations: whether they belong too.
    out: channels of each block that it returns.
    hparams: the keyword arguments that build it again, JSON-able.

    A subclass calls `super().__init__` first, with its own arguments as `hparams`: they are checked against the types and ranges of
    its signature there, and a ConfigError names the one that is wrong.
    """

    group: str
    translations: bool = True
    out: dict[str, int]

    def __init__(self, *, elements: Sequence[str | int], cutoff: float | None, hparams: dict[str, Any]):
        super().__init__()
        if isinstance(elements, str) or len(elements) == 0:
            raise ModelError(
                f"elements={elements!r}: wanted a list of symbols or atomic numbers, such as ['C', 'H', 'O']"
            )
        self.elements = tuple(sorted({atomic_number(e) for e in elements}))
        check_call(
            _schema(type(self)),
            {"elements": list(self.elements), "cutoff": cutoff, **hparams},
            where=type(self).__name__,
        )
        self.cutoff = None if cutoff is None else float(cutoff)
        self.k: int | None = hparams.get("k")
        self.hparams = {"elements": list(self.elements), "cutoff": self.cutoff, **hparams}
        lookup = torch.full((len(SYMBOLS),), -1)
        lookup[list(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("lookup", lookup, persistent=False)
        self.register_buffer("mean_neighbors", torch.tensor(16.0))
        axis = hparams.get("axis")
        if axis == "learned":
            # Only its direction counts, and a step of Adam has one size: short, it turns faster.
            self.direction = nn.Parameter(0.3 * torch.nn.functional.normalize(torch.randn(3), dim=0))
        elif axis is not None:
            if not 0 < math.hypot(*axis) < math.inf:
                raise ModelError(
                    f"{type(self).__name__}.axis: found {list(axis)}; wanted 'learned' or the components of a direction, not all zero"
                )
            self.register_buffer("direction", torch.tensor([float(x) for x in axis]))
        else:
            self.direction = None
        if axis is not None:
            self.group = "O(n-1)"

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def axis(self) -> Float[Tensor, "D"] | None:
        """The direction that every node sees (option `axis`), as it is now, of length 1 and float64; None: there is none.

        What remains of O(n) are the rotations about it by any angle and the mirrors that contain it, and translations and permutations as
        before; not the inversion, nor mirrors across it, nor turns of it: f(gx) = g f(x) for all g with g n = n, and for no others.
        """
        return None if self.direction is None else self.direction.double() / self.direction.double().norm()

    def element_index(self, graph: Graph) -> Tensor:
        """Row of each node's element in this model's tables. Raises ModelError naming elements it does not know."""
        index = self.lookup[graph.z.clamp(0, len(SYMBOLS) - 1)]
        if not is_fake(index) and bool(
            (index < 0).any()
        ):  # a program that is being compiled has no values yet; it checks by itself
            node = int((index < 0).nonzero()[0])
            number = int(graph.z[node])
            symbol = SYMBOLS[number] if 0 <= number < len(SYMBOLS) else "?"
            known = ", ".join(SYMBOLS[z] for z in self.elements)
            raise ModelError(
                f"atom {node} is {symbol} (atomic number {number}); this model knows only {known}"
            )
        return index

    def given(self, graph: Graph, edges: Edges) -> Float[Tensor, "E A"] | None:
        """What is given of each edge, as invariants: `Graph.edge_attr`, and for V given vectors of each node (`Graph.vec`, as many as
        the option `node_vectors`) their products with the direction of the edge and with each other; with an `axis` the component of the
        direction along it; None if nothing is.

        Raises ModelError if the structures have others than the options `edge_features` and `node_vectors` say, or other dimensions than
        the axis.
        """
        given = given_on_edges(
            graph,
            edges,
            self.hparams.get("edge_features", 0),
            self.hparams.get("node_vectors", 0),
            type(self).__name__,
        )
        if self.direction is None:
            return given
        if graph.dim != self.direction.shape[0]:
            raise ModelError(
                f"the axis of this {type(self).__name__} has {self.direction.shape[0]} components; the structures have "
                f"{graph.dim} dimensions"
            )
        along = (edges.unit @ self.axis.to(edges.unit.dtype))[:, None]
        return along if given is None else torch.cat([given, along], dim=1)

    def with_axis(self, blocks: dict[str, Float[Tensor, "N C m"]]) -> dict[str, Float[Tensor, "N K m"]]:
        """Blocks of features, and the axis as the last "1o" if there are both; `out` counts it by `channels_with`."""
        if self.direction is None or "1o" not in blocks:
            return blocks
        vectors = blocks["1o"]
        axis = self.axis.to(vectors.dtype).expand(vectors.shape[0], 1, vectors.shape[2])
        return blocks | {"1o": torch.cat([vectors, axis], dim=1)}

    @abstractmethod
    def forward(self, graph: Graph) -> Features:
        """Features of every node of a connected graph."""


def _schema(kind: type[Backbone]) -> type[Backbone]:
    """The class that called `Backbone.__init__`, whose signature says the options; subclasses of it may have others."""
    return next(k for k in reversed(kind.__mro__[: kind.__mro__.index(Backbone)]) if "__init__" in vars(k))


def build(name: str, options: dict[str, Any], table: dict[str, type[Backbone]]) -> Backbone:
    """A backbone of the closed table from its name and options. Raises ModelError for unknown names and options."""
    if name not in table:
        raise ModelError(f"backbone {name!r} is not known{did_you_mean(name, table)}")
    return table[name](**options)
