"""The base class of heads: which quantity, what it reads of the features, and how nodes become a graph."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.nn.mlp import mlp
from molequi.ops.constants import Float64Constants
from molequi.ops.segment import segment_mean, segment_softmax, segment_sum
from molequi.quantities import Quantity, quantity
from molequi.util.signature import check_call, check_keywords

Pool = Literal["sum", "mean", "attention"]
KINDS = {
    "value": "a number, vector or tensor",
    "classes": "one of several classes (classes=[…])",
    "point": "a position in space (point=True)",
}


class Head(Float64Constants, ABC):
    """Predicts one quantity from features.

    A subclass declares what it reads (`needs`) and predicts (`rank`, `kind`), and implements `make` and
    `forward`. Parameters are made by `build`, when the channels of the backbone are known. The arguments of
    its constructor are recorded, so that a model file can build the head again.

    Parameters
    ----------
    item : str or Quantity
        What it predicts.
    pool : {"sum", "mean", "attention"}, optional
        How the values of nodes become the value of their graph. An extensive quantity is always a sum; for
        others the default is the mean. "attention" is a mean with learned weights, a softmax over the nodes
        of each graph. A sum is allowed for a quantity that is not extensive, since the magnitude of a dipole
        is that of a sum.

    Attributes
    ----------
    needs : tuple of str
        Irreps that the head reads.
    rank : int or None
        Rank of the quantities that it predicts; None: any.
    kind : {"value", "classes", "point"} or None
        Kind of the quantities that it predicts; None: any.
    options : dict
        The arguments of the constructor, without the quantity, that differ from their defaults.

    Raises
    ------
    ModelError
        If the head cannot predict the quantity, or the pool does not fit it.

    Examples
    --------
    >>> import molequi as mq
    >>> from molequi.heads import Scalar
    >>> gap = mq.Quantity("gap", unit="eV")
    >>> list(mq.Model(mq.PaiNN(elements=["H", "O"]), [Scalar(gap, pool="attention")]).heads)
    ['gap']
    """

    needs: tuple[str, ...] = ("0e",)
    rank: int | None = None
    kind: Literal["value", "classes", "point"] | None = None
    options: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.kind not in (None, *KINDS):
            wanted = ", ".join(map(repr, KINDS))
            raise ModelError(f"{cls.__name__}.kind is {cls.kind!r}; wanted {wanted} or None")
        if "__init__" in vars(cls):
            cls.__init__ = check_keywords()(_recorded(cls.__init__))  # type: ignore[method-assign]

    def __init__(self, item: str | Quantity, *, pool: Pool | None = None) -> None:
        super().__init__()
        self.quantity = quantity(item)
        what = f"{type(self).__name__}({self.quantity.name})"
        if self.rank is not None and self.quantity.rank != self.rank:
            raise ModelError(f"{what}: rank {self.quantity.rank}; wanted a quantity of rank {self.rank}")
        kind = "classes" if self.quantity.classes else "point" if self.quantity.point else "value"
        if self.kind not in (None, kind):
            raise ModelError(
                f"{what}: the quantity is declared as {KINDS[kind]}; {type(self).__name__} predicts "
                f"{KINDS[self.kind]}"
            )
        if pool not in (None, "sum", "mean", "attention"):
            raise ModelError(f"{what}: pool={pool!r}; wanted 'sum', 'mean' or 'attention'")
        if pool is not None and self.quantity.per == "node":
            raise ModelError(
                f"{what}: pool={pool!r} of a quantity per node, which is not pooled; leave it out"
            )
        if pool not in (None, "sum") and self.quantity.extensive:
            raise ModelError(
                f"{what}: pool={pool!r} of an extensive quantity, which is the sum over its nodes; leave it "
                "out, or declare the quantity with extensive=False"
            )
        self.pooling: Pool = pool or ("sum" if self.quantity.extensive else "mean")
        if "options" not in vars(self):  # a class without a constructor of its own
            self.options = {} if pool is None else {"pool": pool}
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(1.0))

    @property
    def hparams(self) -> dict[str, Any]:
        """Class, quantity and options, as JSON can hold them: ``head_from(hparams)`` is the same head."""
        return {"head": type(self).__name__, "quantity": asdict(self.quantity), "options": dict(self.options)}

    def check(self, channels: Mapping[str, int]) -> None:
        """Check that the backbone returns all irreps that this head reads.

        Parameters
        ----------
        channels : mapping of str to int
            Number of channels of each irrep of the backbone, `Backbone.out`.

        Raises
        ------
        ModelError
            If an irrep is missing.
        """
        for irrep in self.needs:
            if irrep not in channels:
                raise ModelError(
                    f"{type(self).__name__}({self.quantity.name}) reads {irrep!r} features and the backbone "
                    f"gives {sorted(channels)}; choose a backbone or options that return them (for NequIP: "
                    "l_max, l_out; parity=True for 0o, 1e, 2o)"
                )

    def build(self, channels: Mapping[str, int]) -> None:
        """Check the channels, and make the parameters.

        Parameters
        ----------
        channels : mapping of str to int
            Number of channels of each irrep of the backbone, `Backbone.out`.
        """
        self.check(channels)
        self.attend: nn.Module | None = None
        if self.pooling == "attention":
            self.attend = mlp([channels["0e"], channels["0e"], 1])
        self.make(channels)

    @abstractmethod
    def make(self, channels: Mapping[str, int]) -> None:
        """Make the parameters of this kind of head.

        Parameters
        ----------
        channels : mapping of str to int
            Number of channels of each irrep of the backbone, `Backbone.out`.
        """

    @abstractmethod
    def forward(self, graph: Graph, features: Features) -> Tensor:
        """Compute the quantity.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures.
        features : Features
            Output of the backbone.

        Returns
        -------
        Tensor, shape (G, …) or (N, …)
            One row for each graph or node.
        """

    def standardize(
        self,
        *,
        scale: float,
        shift: float | Mapping[int, float] = 0.0,
        reference_energies: Mapping[int, float] | None = None,
    ) -> None:
        """Set the scale, so that the network itself has outputs of order one, and shifts if the head has
        them.

        Parameters
        ----------
        scale : float
            Factor of the network's output.
        shift : float or mapping of int to float
            Added to the output, for all elements or by atomic number. Elements that are not listed keep
            theirs.
        reference_energies : mapping of int to float, optional
            Atomic reference energies E0 by atomic number, in eV. Elements that are not listed keep theirs.
        """
        self.scale.fill_(scale)

    def pool(
        self, values: Float[Tensor, "N ..."], graph: Graph, features: Features
    ) -> Float[Tensor, "G ..."]:
        """Values of graphs from values of nodes, by sum, mean or attention.

        Parameters
        ----------
        values : Tensor, shape (N, …)
            One row for each node.
        graph : Graph
            The batch.
        features : Features
            Output of the backbone, which attention reads.

        Returns
        -------
        Tensor, shape (G, …)
            One row for each graph. For a quantity per node these are `values`.
        """
        if self.quantity.per == "node":
            return values
        if self.attend is not None:
            weights = segment_softmax(
                self.attend(features.scalars).squeeze(-1), graph.batch, graph.num_graphs
            ).to(values.dtype)
            return segment_sum(
                values * weights.reshape(-1, *[1] * (values.ndim - 1)), graph.batch, graph.num_graphs
            )
        pooled = segment_sum if self.pooling == "sum" else segment_mean
        return pooled(values, graph.batch, graph.num_graphs)


def _recorded(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that checks its arguments, and records them without the quantity as `options`."""
    parameters = inspect.signature(init)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    # Options in a ``**options`` are those of a parent, whose constructor checks them.
    named = {n for n, p in parameters.parameters.items() if p.kind not in variable} - {"item", "pool"}

    @functools.wraps(init)
    def recording(self: Head, *args: Any, **kwargs: Any) -> None:
        bound = parameters.bind(self, *args, **kwargs)
        given = dict(list(bound.arguments.items())[1:])
        for parameter in parameters.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
            elif parameter.name in given and given[parameter.name] == parameter.default:
                del given[parameter.name]
        if checked := {name: value for name, value in given.items() if name in named}:
            check_call(init, checked, where=type(self).__name__, leave_out=("item", "pool"))
        if "options" not in vars(self):  # the constructor of the class itself, not that of a parent
            vars(self)["options"] = {name: value for name, value in given.items() if name != "item"}
        init(self, *args, **kwargs)

    return recording


def check_output(head: Head, value: object, graph: Graph) -> None:
    """Check that a head of the user's own returned one row for each graph or node.

    Parameters
    ----------
    head : Head
        The head.
    value : object
        What its `Head.forward` returned.
    graph : Graph
        Its input.

    Raises
    ------
    ModelError
        If it is no tensor of this shape and of floating-point numbers.
    """
    quantity = head.quantity
    rows = graph.num_nodes if quantity.per == "node" else graph.num_graphs
    wanted = (rows, *([len(quantity.classes)] if quantity.classes else quantity.shape(graph.dim)))
    if not isinstance(value, Tensor) or tuple(value.shape) != wanted or not value.is_floating_point():
        found = type(value).__name__
        if isinstance(value, Tensor):
            found = f"shape {tuple(value.shape)}, {value.dtype}"
        raise ModelError(
            f"{type(head).__name__}.forward: found {found}; wanted a tensor of shape {wanted}, one row for "
            f"each {quantity.per} of {quantity.name!r}"
        )
