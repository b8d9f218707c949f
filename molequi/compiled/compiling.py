"""Compile a function of a model, and compare it with the plain model before it is used."""

import copy
import sys
import time
import warnings

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from molequi.compiled.comparison import compare, magnitudes
from molequi.compiled.functions import CompiledFunction
from molequi.compiled.inputs import state_of
from molequi.compiled.tracing import Backend, trace
from molequi.compiled.trials import change_weights, with_cluster, with_distinct_sizes
from molequi.errors import AccelerateError
from molequi.graph import Graph
from molequi.model import Model
from molequi.neighbors import regular
from molequi.util.run_log import log


def compile_function(
    model: Model, graph: Graph, degree: int, create_graph: bool, backend: Backend
) -> CompiledFunction:
    """A compiled function of the model for graphs with the fields of this one.

    Parameters
    ----------
    model : Model
        The model.
    graph : Graph
        Connected structures.
    degree : int
        Number of edges of each node, padding included.
    create_graph : bool
        Whether the outputs can be differentiated.
    backend : callable
        Compiles what was traced.

    Raises
    ------
    AccelerateError
        If there is no C++ compiler, if the model cannot be compiled, or if the outputs differ from those of
        the plain model.
    """
    twin = copy.deepcopy(model)  # so that trials leave nothing in buffers
    # The nodes of the cluster have fewer neighbors than there is room for.
    both = with_cluster(twin, graph, max(2, min(degree, 8)))
    # What this raises is a fault of the model. It also fills tables that must not be made while tracing.
    plain = twin.predict(both, create_graph)
    kind, precision = "training" if create_graph else "evaluation", str(model.dtype).removeprefix("torch.")
    what = f"{type(model.backbone).__name__} for {kind} ({precision})"
    print(f"molequi: compiling {what}, about a minute …", end="", file=sys.stderr, flush=True)
    log(f"compiling {what}")
    started, end = time.monotonic(), "\n"
    try:
        odd = with_distinct_sizes(twin, both, degree)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own functions while compiling
            function = trace(twin, odd, create_graph, backend)
            got = function(twin, state_of(twin).tensors, both, odd, create_graph)
            error = compare(twin, both, plain, got, gradients=create_graph, at_hand=graph)
        change_weights(twin)
        got = function(twin, state_of(twin).tensors, both, odd, create_graph)
        compare(twin, both, twin.predict(both, create_graph), got, gradients=False)
        end = f" {time.monotonic() - started:.0f} s; differs from the plain model by {error:.1e}\n"
    except AccelerateError:
        raise
    except Exception as failure:  # a compiler raises errors that have no common type
        raise _explained(failure, what) from failure
    finally:
        print(end, end="", file=sys.stderr, flush=True)
        log(f"compiling {what}:{end.rstrip() or ' failed'}")
    function.largest = {
        name: float(magnitudes(model, both, name, value).max())
        for name, value in plain.items()
        if value.numel()
    }
    function.sizes.add(odd)
    return function


def verify(function: CompiledFunction, model: Model, graph: Graph, degree: int, create_graph: bool) -> None:
    """Compare a function with the plain model once more, at sizes for which the compiler's assumptions
    differ.

    Parameters
    ----------
    function : CompiledFunction
        The function; it records the sizes as known.
    model : Model
        Its model.
    graph : Graph
        Connected structures of these sizes.
    degree : int
        Number of edges of each node, padding included.
    create_graph : bool
        Compare gradients, too.

    Raises
    ------
    AccelerateError
        If the outputs differ.
    """
    twin = copy.deepcopy(model)
    plain, padded = twin.predict(graph, create_graph), regular(graph, nodes=1, degree=degree)
    fast = function(twin, state_of(twin).tensors, graph, padded, create_graph)
    compare(twin, graph, plain, fast, gradients=create_graph, largest=function.largest)
    function.sizes.add(padded)


def _explained(failure: Exception, what: str) -> AccelerateError:
    text = " ".join(str(failure).split())
    if "InvalidCxxCompiler" in type(failure).__name__ or "No working C++ compiler" in text:
        return AccelerateError(
            "compiling needs a C++ compiler and none was found: install one (Debian: apt-get install g++), "
            "or leave accelerate away; the plain model needs none"
        )
    if isinstance(
        failure,
        (
            GuardOnDataDependentSymNode,
            torch._subclasses.fake_tensor.DataDependentOutputException,
            torch._subclasses.fake_tensor.DynamicOutputShapeException,
        ),
    ):
        return AccelerateError(
            f"{what} could not be compiled: the values of a tensor decide what is done (a branch, .item(), "
            f"a shape): {text[:200]}; write it with torch.where, or leave accelerate away"
        )
    return AccelerateError(
        f"{what} could not be compiled: {type(failure).__name__}: {text[:300]}; leave accelerate away, the "
        "plain model computes the same"
    )
