"""From a model to one graph of plain operations, and to a compiled function.

Energy, forces and stress are traced into one graph of plain operations, in which the differentiation is
already unfolded. Inductor, the compiler of torch, turns this graph into machine code. For training it
differentiates the graph a second time.

The trace goes to inductor directly, and not through `torch.compile`, which would trace it twice more and test
about 200 assumptions before each call. What the trace assumes is known here: there is one function for each
layout of the input, and `functions.Sizes` holds the other assumptions.
"""

import copy
from collections.abc import Callable, Sequence
from typing import cast

import sympy
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from molequi.compiled.functions import Call, CompiledFunction, Sizes
from molequi.compiled.inputs import all_modules, graph_of, places, state_of, tensors_of
from molequi.errors import AccelerateError
from molequi.graph import Graph
from molequi.model import Model

Backend = Callable[[torch.fx.GraphModule, list[Tensor]], Call]  # as `machine_code.inductor`
# Numbers of nodes and graphs for which a trace must not ask different questions.
_EXAMPLES = ((2, 2), (3, 2), (24, 23), (1009, 31), (10**6 + 3, 10**5 + 3))


def trace(model: Model, graph: Graph, create_graph: bool, backend: Backend) -> CompiledFunction:
    """The compiled function of a model for graphs with the layout of this one.

    Parameters
    ----------
    model : Model
        The model. Its weights are arguments of the function.
    graph : Graph
        A regular graph with padding, see `trials.with_distinct_sizes`.
    create_graph : bool
        Whether the outputs can be differentiated.
    backend : callable
        Compiles what was traced, as `machine_code.inductor` does.

    Raises
    ------
    AccelerateError
        If the model does different things for different numbers of nodes or graphs.
    """
    state, fields = state_of(model).tensors, tensors_of(graph)
    twin = copy.deepcopy(model)  # its weights are replaced
    shapes = ShapeEnv()
    mode = torch._subclasses.FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)

    def fixed(value: Tensor) -> Tensor:
        return mode.from_tensor(value.detach(), static_shapes=True).requires_grad_(
            value.requires_grad and create_graph
        )

    def sized(value: Tensor) -> Tensor:
        # DUCK: equal sizes are one symbol. `with_distinct_sizes` leaves two of them, of nodes and of graphs.
        sizes = [DimDynamic.STATIC if k else DimDynamic.DUCK for k in range(value.ndim)]
        context: StatelessSymbolicContext = StatelessSymbolicContext(dynamic_sizes=sizes)
        return mode.from_tensor(value, symbolic_context=context)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        for (table, name), value in zip(places(all_modules(twin)), values):
            table[name] = value
        with torch.set_grad_enabled(True):
            out = twin.predict(graph_of(dict(zip(fields, values[len(state) :])), graph.k), create_graph)
        return tuple(out[name] for name in twin.names)

    weights = [fixed(value) for value in state]
    inputs = {name: sized(value) for name, value in fields.items()}
    nodes, graphs = (cast(torch.SymInt, inputs[name].shape[0]).node.expr for name in ("pos", "graphs"))
    traced = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        *weights, *inputs.values()
    )
    sizes = Sizes(nodes, graphs)
    asked = [guard.expr for guard in shapes.guards]
    _check_guards(model, sizes, asked)
    _without_detach(traced)
    constants = _constants_as_arguments(traced)
    with torch.set_grad_enabled(create_graph):
        call = backend(traced, [*weights, *inputs.values(), *(fixed(value) for value in constants)])
    sizes.assumed = [guard.expr for guard in shapes.guards[len(asked) :]]
    return CompiledFunction(call, sizes, constants)


def _check_guards(model: Model, sizes: Sizes, asked: Sequence[sympy.Basic]) -> None:
    """Raise AccelerateError if what the model asked about sizes is not true for all of them."""
    for expr in asked:
        for nodes, graphs in _EXAMPLES:
            if expr.subs({sizes.nodes: nodes, sizes.graphs: graphs}) != True:  # noqa: E712, a symbolic truth
                text = str(expr).replace(str(sizes.nodes), "nodes").replace(str(sizes.graphs), "graphs")
                raise AccelerateError(
                    f"{type(model.backbone).__name__} does not do the same for all sizes: it asks whether "
                    f"{text} (nodes and graphs of a batch, padding included), as len() of a tensor does too; "
                    "take .shape[0], or leave accelerate away"
                )


def _without_detach(traced: torch.fx.GraphModule) -> None:
    """Remove what autograd detached in order to save it, since gradients of the weights pass through it."""
    for node in list(traced.graph.nodes):
        # There is nothing else in a model to be detached from.
        if node.op == "call_function" and node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _constants_as_arguments(traced: torch.fx.GraphModule) -> list[Tensor]:
    """Make arguments of the tables that a trace has found, such as coefficients of spherical harmonics.

    What torch serializes of a function with constant tensors crashes the process that loads it (2.13).

    Returns
    -------
    list of Tensor
        Their values, the last arguments of the function.
    """
    values: dict[str, Tensor] = {}
    arguments: dict[str, torch.fx.Node] = {}
    last = [node for node in traced.graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in traced.graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        if name not in values:
            values[name] = cast(Tensor, getattr(traced, name)).detach()
            with traced.graph.inserting_after(last):
                last = arguments[name] = traced.graph.placeholder(name)
            last.meta.update(node.meta)
        node.replace_all_uses_with(arguments[name])
        traced.graph.erase_node(node)
    for name in values:
        delattr(traced, name)
    traced.recompile()
    return list(values.values())
