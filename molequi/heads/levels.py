"""Heads of several levels of theory over the same features: which one is taken, each structure says."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.heads.base import Head
from molequi.heads.physical import share_charges
from molequi.heads.scalars import Scalar
from molequi.quantities import Quantity
from molequi.util.level_records import fault_of_name
from molequi.util.signature import check_keywords


@check_keywords()
class ByLevel(nn.Module):
    """One head for each level of theory.

    All heads are evaluated for all structures. Of each structure the value of its level is taken, so that the
    other heads get a gradient of exactly zero from it.

    Parameters
    ----------
    head : Head
        The kind of head, without parameters yet; each level gets a copy.
    levels : sequence of str
        Names of the levels.

    Attributes
    ----------
    levels : tuple of str
        Names of the levels, in the order of the numbers in `Graph.level`.
    heads : ModuleList
        The head of each level.
    """

    def __init__(self, head: Head, levels: Sequence[str]) -> None:
        super().__init__()
        self.levels = checked_names(levels)
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in self.levels)

    @property
    def first(self) -> Head:
        """The head of the first level, which says what all of them are."""
        return cast(Head, self.heads[0])

    @property
    def quantity(self) -> Quantity:
        """What the heads predict."""
        return self.first.quantity

    @property
    def options(self) -> dict[str, Any]:
        """Options of the kind of head, see `Head`."""
        return self.first.options

    @property
    def hparams(self) -> dict[str, Any]:
        """Those of the kind of head, with the names of the levels."""
        return {**self.first.hparams, "levels": list(self.levels)}

    def build(self, channels: Mapping[str, int]) -> None:
        """Make the parameters of all heads.

        Parameters
        ----------
        channels : mapping of str to int
            Number of channels of each irrep of the backbone, `Backbone.out`.
        """
        for head in self.heads:
            cast(Head, head).build(channels)

    def add(self, level: str, like: str) -> None:
        """Add a level whose head begins as that of another one.

        Parameters
        ----------
        level : str
            Name of the new level.
        like : str
            Name of the level whose head is copied.
        """
        self.heads.append(copy.deepcopy(self.heads[self.levels.index(like)]))
        self.levels = (*self.levels, level)

    def forward(self, graph: Graph, features: Features) -> Tensor:
        """The value of the level of each structure.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures with their levels.
        features : Features
            Output of the backbone.

        Returns
        -------
        Tensor, shape (G, …) or (N, …)
            One row for each graph or node.
        """
        return self._chosen(graph, self.quantity.per, lambda head: head(graph, features))

    def contributions(self, graph: Graph, features: Features) -> Tensor:
        """Contribution of each node, see `Scalar.contributions`.

        Parameters
        ----------
        graph : Graph
            A batch of connected structures with their levels.
        features : Features
            Output of the backbone.

        Returns
        -------
        Tensor, shape (N,)
            Contributions, float64.
        """
        return self._chosen(graph, "node", lambda head: cast(Scalar, head).contributions(graph, features))

    def pool(self, values: Tensor, graph: Graph, features: Features) -> Tensor:
        """Values of graphs from values of nodes, see `Head.pool`.

        Parameters
        ----------
        values : Tensor, shape (N, …)
            One row for each node.
        graph : Graph
            The batch.
        features : Features
            Output of the backbone.

        Returns
        -------
        Tensor, shape (G, …)
            One row for each graph.
        """
        return self._chosen(graph, self.quantity.per, lambda head: head.pool(values, graph, features))

    def _chosen(self, graph: Graph, per: str, value: Callable[[Head], Tensor]) -> Tensor:
        """The rows of the head that each graph or node belongs to."""
        assert graph.level is not None  # see check_levels
        level = graph.level[graph.batch] if per == "node" else graph.level
        out = value(self.first)
        for k in range(1, len(self.levels)):
            other = value(cast(Head, self.heads[k]))
            out = torch.where((level == k).reshape(-1, *[1] * (other.ndim - 1)), other, out)
        return out


def first_of(head: nn.Module) -> nn.Module:
    """The head itself, or that of the first of several levels.

    Parameters
    ----------
    head : Head or ByLevel
        The head.
    """
    return head.first if isinstance(head, ByLevel) else head


def levels_of(heads: nn.ModuleDict) -> tuple[str, ...]:
    """Names of the levels of the heads of a model; empty for a model of a single level.

    Parameters
    ----------
    heads : ModuleDict
        The heads by quantity.

    Raises
    ------
    ModelError
        If the heads do not have the same levels.
    """
    found = {head.levels for head in heads.values() if isinstance(head, ByLevel)}
    if len(found) > 1:
        listed = " and ".join(map(str, sorted(found)))
        raise ModelError(f"the heads have different levels of theory, {listed}; wanted the same of all")
    return found.pop() if found else ()


def heads_at(heads: nn.ModuleDict, level: str) -> nn.ModuleDict:
    """The heads of one level, which are those of a model of a single level.

    Parameters
    ----------
    heads : ModuleDict
        The heads by quantity.
    level : str
        Name of the level.

    Raises
    ------
    ModelError
        If there is no such level, with those that there are.
    """
    known = levels_of(heads)
    if not known:
        raise ModelError(
            f"level {level!r}: this model has a single level of theory, so that there is nothing to choose; "
            "leave the level out"
        )
    if level not in known:
        raise ModelError(
            f"level {level!r}: this model has no such level of theory; it has {', '.join(map(repr, known))}"
        )
    k = known.index(level)
    return nn.ModuleDict({n: h.heads[k] if isinstance(h, ByLevel) else h for n, h in heads.items()})


def prefixes(heads: nn.ModuleDict, leave_out: Collection[str | None]) -> list[str]:
    """Beginnings of the names of parameters that belong to one level of a model each.

    Parameters
    ----------
    heads : ModuleDict
        The heads by quantity.
    leave_out : collection of str
        Levels that are not listed.
    """
    return [
        f"{name}.heads.{k}."
        for name, head in heads.items()
        if isinstance(head, ByLevel)
        for k, level in enumerate(head.levels)
        if level not in leave_out
    ]


def tie_charges(heads: nn.ModuleDict, first: nn.Module | None = None) -> None:
    """Give the heads of each level that have partial charges the same ones.

    Parameters
    ----------
    heads : ModuleDict
        The heads of a model by quantity.
    first : Module, optional
        The charges, if the model has some beside its heads.
    """
    for level in levels_of(heads) or (None,):
        share_charges((heads if level is None else heads_at(heads, level)).values(), first)


def checked_names(levels: object) -> tuple[str, ...]:
    """Names of levels as a model takes them.

    Parameters
    ----------
    levels : object
        What the user gave; None stands for none.

    Raises
    ------
    ModelError
        For anything but a sequence of different names.
    """
    if levels is None:
        return ()
    if not isinstance(levels, Sequence) or isinstance(levels, str) or not levels:
        raise ModelError(
            f"levels={levels!r}: wanted the names of the levels of theory, such as ['pbe', 'r2scan']"
        )
    for name in levels:
        fault = fault_of_name(name)
        if fault is not None:
            raise ModelError(f"levels={levels!r}: found {name!r}; wanted {fault}")
    names = tuple(cast(Sequence[str], levels))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ModelError(f"levels={list(names)}: {twice!r} is there twice; wanted different names")
    return names


def check_levels(graph: Graph, levels: Sequence[str]) -> None:
    """Check that each structure of a batch says which level of a model it has.

    Parameters
    ----------
    graph : Graph
        The batch.
    levels : sequence of str
        Names of the levels of the model.

    Raises
    ------
    ModelError
        If they say none, or a number that no level has, or not an integer for each structure.
    """
    level: object = graph.level
    if level is None:
        raise ModelError(several(levels))
    whole = isinstance(level, Tensor) and not level.is_floating_point() and level.dtype != torch.bool
    if not whole or cast(Tensor, level).shape != (graph.num_graphs,):
        found = (
            f"{str(level.dtype).removeprefix('torch.')} of shape {tuple(level.shape)}"
            if isinstance(level, Tensor)
            else f"{level!r} ({type(level).__name__})"
        )
        raise ModelError(
            f"graph.level: found {found}; wanted the number of the level of each structure, a tensor of "
            f"integers of shape ({graph.num_graphs},), of {_numbered(levels)}"
        )
    if not graph.num_graphs:
        return
    assert graph.level is not None
    least, most = (int(value) for value in graph.level.aminmax())
    if least < 0 or most >= len(levels):
        raise ModelError(
            f"graph.level has the number {least if least < 0 else most}; this model has {_numbered(levels)}"
        )


def _numbered(levels: Sequence[str]) -> str:
    """The names of levels with their numbers."""
    return ", ".join(f"{name!r} ({k})" for k, name in enumerate(levels))


def several(levels: Sequence[str]) -> str:
    """The sentence about a model of several levels where one is wanted.

    Parameters
    ----------
    levels : sequence of str
        Names of the levels.
    """
    return (
        f"this model has several levels of theory, {', '.join(map(repr, levels))}, and none was chosen; take "
        f"model.at({levels[0]!r}), or name it after the file: FILE@{levels[0]}"
    )
