"""Compile a function of a model, and compare it with the plain model before it is used."""

import copy
import re
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from molequi.compiled.comparison import compare, magnitudes
from molequi.compiled.functions import CompiledFunction, Sizes
from molequi.compiled.inputs import state_of
from molequi.compiled.kept import KeptProgram, Shelf, kind_of, shelf_of
from molequi.compiled.keys import NO_COMPILER
from molequi.compiled.machine_code import (
    compiler_folder,
    from_bytes,
    inductor,
    libraries,
    rare_collections,
    to_bytes,
)
from molequi.compiled.tracing import Backend, trace
from molequi.compiled.trials import change_weights, with_cluster, with_distinct_sizes
from molequi.errors import AccelerateError
from molequi.graph import Graph
from molequi.model import Model
from molequi.regular_graphs import regular
from molequi.util.run_log import log


@dataclass(frozen=True)
class _Trial:
    """The structures on which a new function is compared with the plain model.

    Parameters
    ----------
    model : Model
        A copy of the model, so that trials leave nothing in its buffers.
    graph : Graph
        The structures at hand, and a cluster beside them.
    padded : Graph
        The same as a regular graph.
    at_hand : Graph
        The structures at hand.
    create_graph : bool
        Whether the outputs can be differentiated.
    """

    model: Model
    graph: Graph
    padded: Graph
    at_hand: Graph
    create_graph: bool

    def compare(self, function: CompiledFunction) -> float:
        """The largest difference, with the present weights and with others. Raises AccelerateError."""
        found = self._outputs(function, self.model)
        # Anew each time: what was differentiated once cannot be differentiated again.
        plain = self.model.predict(self.graph, self.create_graph)
        error = compare(
            self.model, self.graph, plain, found, gradients=self.create_graph, at_hand=self.at_hand
        )
        other = copy.deepcopy(self.model)
        change_weights(other)
        found = self._outputs(function, other)
        compare(other, self.graph, other.predict(self.graph, self.create_graph), found, gradients=False)
        return error

    def _outputs(self, function: CompiledFunction, model: Model) -> dict[str, Tensor]:
        return function(model, state_of(model).tensors, self.graph, self.padded, self.create_graph)


def compile_function(
    model: Model, graph: Graph, degree: int, create_graph: bool, backend: Backend
) -> CompiledFunction:
    """A compiled function of the model for graphs with the fields of this one.

    If another process has kept it on disk, it is taken from there.

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
    twin = copy.deepcopy(model)
    # The nodes of the cluster have fewer neighbors than there is room for.
    both = with_cluster(twin, graph, max(2, min(degree, 8)))
    # What this raises is a fault of the model. It also fills tables that must not be made while tracing.
    plain = twin.predict(both, create_graph)
    what = kind_of(model, create_graph)
    try:
        trial = _Trial(twin, both, with_distinct_sizes(twin, both, degree), graph, create_graph)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own functions while compiling
            place = shelf_of(twin, trial.padded, create_graph) if backend is inductor else None
            function = None if place is None else _restored(trial, place, what)
            function = function or _compiled(trial, place, what, backend)
    except AccelerateError:
        raise
    except Exception as failure:  # a compiler raises errors that have no common type
        raise _explained(failure, what) from failure
    function.largest = {
        name: float(magnitudes(model, both, name, value).max())
        for name, value in plain.items()
        if value.numel()
    }
    function.sizes.add(trial.padded)
    return function


def _restored(trial: _Trial, shelf: Shelf, what: str) -> CompiledFunction | None:
    """The function that another process has kept; None if there is none that is right."""
    kept = shelf.read()
    if kept is None:
        return None
    started = time.monotonic()
    print(f"molequi: loading the compiled {what} …", end="", file=sys.stderr, flush=True)
    end = " it cannot be used here and is compiled again\n"
    try:
        with compiler_folder(kept.files):
            function = CompiledFunction(from_bytes(kept.call), Sizes.from_lists(kept.assumed), kept.constants)
        error = trial.compare(function)
        end = f" {time.monotonic() - started:.0f} s; differs from the plain model by {error:.1e}\n"
    except Exception:  # whatever is wrong with it, a new one is made and compared in its place
        shelf.remove()
        return None
    finally:
        print(end, end="", file=sys.stderr, flush=True)
        log(f"the compiled {what}:{end.rstrip()}")
    return function


def _compiled(trial: _Trial, shelf: Shelf | None, what: str, backend: Backend) -> CompiledFunction:
    """A new function, which is kept for other processes."""
    started, end = time.monotonic(), "\n"
    print(f"molequi: compiling {what}, about a minute …", end="", file=sys.stderr, flush=True)
    try:
        with rare_collections():
            function = trace(trial.model, trial.padded, trial.create_graph, backend)
        error = trial.compare(function)
        seconds = time.monotonic() - started
        end = f" {seconds:.0f} s; differs from the plain model by {error:.1e}\n"
    finally:
        print(end, end="", file=sys.stderr, flush=True)
        log(f"compiling {what}:{end.rstrip() or ' failed'}")
    parts = libraries(function.call)
    if shelf is not None and parts is not None:
        shelf.write(
            lambda: KeptProgram(
                parts,
                to_bytes(function.call),
                function.sizes.to_lists(),
                function.constants,
                what,
                seconds,
            )
        )
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
        return AccelerateError(NO_COMPILER)
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
    for name in re.findall(r"/[^\s:'\"]+\.so\b", text):
        library = Path(name)
        if library.is_file() and library.stat().st_size == 0:
            library.unlink()
            return AccelerateError(
                f"{what} could not be compiled: {library} was empty, as a process leaves it that is killed "
                "while it compiles; it is removed now, so start the same command again"
            )
    return AccelerateError(
        f"{what} could not be compiled: {type(failure).__name__}: {text[:300]}; leave accelerate away, the "
        "plain model computes the same"
    )
