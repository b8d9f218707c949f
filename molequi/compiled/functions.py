"""A compiled function of a model, and the sizes for which it is known to be right."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor

from molequi.compiled.comparison import per_node
from molequi.compiled.expressions import from_list, to_list
from molequi.compiled.inputs import tensors_of
from molequi.graph import Graph
from molequi.model import Model

Call = Callable[..., Sequence[Tensor]]


@dataclass
class Sizes:
    """What a compiler has assumed about the numbers of nodes and graphs, and which answers were tried.

    The assumptions are inequalities. Most of them only choose between two ways to compute the same: they hold
    for all sizes, or are wrong without harm. Therefore a function is compared with the plain model again only
    where they have answers that are new.

    Parameters
    ----------
    nodes, graphs : sympy.Expr
        Symbols of the numbers of nodes and graphs, padding included.
    assumed : sequence of sympy.Basic
        The inequalities.
    answers : dict
        Answers to all inequalities for the pairs of numbers that were asked for.
    tried : set
        Answers for which the function was compared with the plain model.
    """

    nodes: sympy.Expr
    graphs: sympy.Expr
    assumed: Sequence[sympy.Basic] = ()
    answers: dict[tuple[int, int], tuple[bool, ...]] = field(default_factory=dict)
    tried: set[tuple[bool, ...]] = field(default_factory=set)

    @classmethod
    def from_lists(cls, assumed: Sequence[Any]) -> "Sizes":
        """Sizes with the inequalities of which `to_lists` made these.

        Parameters
        ----------
        assumed : sequence
            The inequalities.

        Raises
        ------
        ValueError
            If they are something else.
        """
        nodes, graphs = sympy.symbols("nodes graphs", integer=True, positive=True)
        symbols = {"nodes": nodes, "graphs": graphs}
        return cls(nodes, graphs, [from_list(one, symbols) for one in assumed])

    def to_lists(self) -> list[Any]:
        """The inequalities as plain lists, for files."""
        names = {self.nodes: "nodes", self.graphs: "graphs"}
        return [to_list(one, names) for one in self.assumed]

    def of(self, nodes: int, graphs: int) -> tuple[bool, ...]:
        """Answers to all inequalities for these numbers of nodes and graphs."""
        if (nodes, graphs) not in self.answers:
            self.answers[nodes, graphs] = tuple(
                bool(e.subs({self.nodes: nodes, self.graphs: graphs})) for e in self.assumed
            )
        return self.answers[nodes, graphs]

    def known(self, graph: Graph) -> bool:
        """Whether the function was compared with the plain model for the answers of this graph."""
        return self.of(graph.num_nodes, graph.num_graphs) in self.tried

    def add(self, graph: Graph) -> None:
        """Record that the function was compared with the plain model on this graph."""
        self.tried.add(self.of(graph.num_nodes, graph.num_graphs))


@dataclass
class CompiledFunction:
    """Machine code with the weights of a model and the tensors of a graph as arguments.

    Parameters
    ----------
    call : callable
        Takes all tensors of `inputs.state_of`, those of `inputs.tensors_of`, then the constants; returns the
        outputs of the model.
    sizes : Sizes
        The sizes for which it is known to be right.
    constants : sequence of Tensor
        Tables that the model takes from elsewhere, such as coefficients of spherical harmonics.
    largest : mapping of str to float
        Largest value of each output on the structures for which it was compiled.
    """

    call: Call
    sizes: Sizes
    constants: Sequence[Tensor] = ()
    largest: Mapping[str, float] = field(default_factory=dict)

    def __call__(
        self, model: Model, state: Sequence[Tensor], graph: Graph, padded: Graph, create_graph: bool
    ) -> dict[str, Tensor]:
        """Outputs by name, without those of the padding.

        Parameters
        ----------
        model : Model
            The model of which this is the function.
        state : sequence of Tensor
            Its parameters and buffers.
        graph : Graph
            The structures.
        padded : Graph
            The same structures as a regular graph, with padding.
        create_graph : bool
            Keep what is needed to differentiate the outputs.
        """
        with torch.set_grad_enabled(create_graph):
            values = self.call(*state, *tensors_of(padded).values(), *self.constants)
        return {
            name: value[: graph.num_nodes if per_node(model, name) else graph.num_graphs]
            for name, value in zip(model.names, values)
        }
