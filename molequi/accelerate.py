"""Compiled models: `mq.accelerate(model)`.

A `Program` belongs to a model and its copies. It compiles functions when they are first needed and keeps
them; `molequi.compiled` has the parts. Structures enter as regular graphs (`regular_graphs.regular`) with
padding, so that one function serves structures and batches of all sizes.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from molequi.compiled.comparison import TOLERANCE
from molequi.compiled.compiling import compile_function, verify
from molequi.compiled.costs import Cost, cost_of
from molequi.compiled.functions import CompiledFunction
from molequi.compiled.inputs import state_of
from molequi.compiled.machine_code import inductor
from molequi.ensemble import Ensemble
from molequi.errors import AccelerateError
from molequi.graph import Graph
from molequi.model import Model
from molequi.ops.memory import LargeStructures, keep_freed_memory
from molequi.regular_graphs import Layout
from molequi.util.signature import check_keywords

# Functions of one model that are kept: for evaluation and training, by number of neighbors, with and without
# cells, …
LIMIT = 32
SMALL = 8192  # number of edges up to which it does not matter that most of them are padding
BACKEND = inductor  # tests replace it, since g++ takes long

AnyModel = TypeVar("AnyModel", bound=Model | Ensemble)


@check_keywords()
def accelerate(model: AnyModel, *, on: bool = True) -> AnyModel:
    """Compile a model, which is then used as before: called, trained, saved and audited.

    Functions are compiled when they are first needed: one for evaluation, and one for training with its
    second derivatives. Each takes half a minute or more, which a line on stderr reports. It then serves
    structures and batches of any size. Other functions are needed for other numbers of neighbors (these are
    rounded up, and a larger number serves for a smaller one), precisions, kinds of input (cells, charges, …)
    and modes of modules.

    On a CPU, functions are kept on disk: another process with the same model loads them in a few seconds.
    They are in the folder ``programs`` of the setting ``MOLEQUI_CACHE``, by default ``~/.cache/molequi`` (on
    macOS ``~/Library/Caches/molequi``), which takes up to 1 GiB and may be deleted at any time. The files
    hold machine code, so they are read only if no other user can write to them. Functions for GPUs are not
    kept there, but in the cache of torch.

    Before its first use each function is compared with the plain model: on the present structures and on a
    cluster of the same elements, with the present weights and with others. All outputs are compared, and for
    training the gradients of all parameters.

    Weights are arguments of the functions, so that further training, loading of weights and copies of the
    model need no new ones. If anything else in a backbone changes, call ``accelerate(model, on=False)`` and
    ``accelerate(model)``. The outputs of training can be differentiated once, with respect to the weights;
    torch refuses ``retain_graph=True`` for compiled functions.

    The plain model is used in these cases: under autocast, if modules inside have hooks, if tensors of a
    structure require gradients, for graphs that are regular already, and for training if no weight requires
    gradients.

    Padding consists of edges far beyond the cutoff. So a backbone of your own must return exactly zero for
    these, as it does with the envelope. Round-off depends on the number of neighbors for which a function was
    compiled, hence on earlier calls. The process keeps up to 2 GiB of freed memory for the next step, and all
    of it between structures with 100,000 edges or more.

    Parameters
    ----------
    model : Model or Ensemble
        It is changed in place.
    on : bool
        False removes the compiled functions.

    Returns
    -------
    Model or Ensemble
        The same object.

    Raises
    ------
    AccelerateError
        If it is no model. At first use: if there is no C++ compiler (on a CPU), if the backbone does what
        cannot be compiled, or if outputs differ by more than 1e-10 (float64) or 1e-4 (float32) of the largest
        value.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["H", "O"]))
    >>> mq.accelerate(model) is model, model.program is not None
    (True, True)
    >>> mq.accelerate(model, on=False).program is None
    True
    """
    keep_freed_memory()
    if not isinstance(model, (Model, Ensemble)):
        raise AccelerateError(
            f"accelerate takes a Model or an Ensemble, found {type(model).__name__}; an ASE calculator is "
            "compiled by mq.Calculator(model, accelerate=True)"
        )
    members = cast(list[Model], list(model.members)) if isinstance(model, Ensemble) else [model]
    for member in members if on else ():
        if member.backbone.not_compiled:
            raise AccelerateError(f"{type(member.backbone).__name__}: {member.backbone.not_compiled}")
        if "long_range" in member.energy_terms:
            raise AccelerateError(
                "this model has a long range (long_range), whose sums have a number of terms that depends on "
                "each structure, so that they cannot be compiled; leave accelerate away (--accelerate, and "
                "train.compute.accelerate in a run file)"
            )
    model.use_program((model.program or Program()) if on else None)
    return model


class Program:
    """Compiled functions of a model and its copies, by what they compute and by the number of neighbors.

    Attributes
    ----------
    functions : dict
        Functions by kind of computation, and for each kind by the number of edges of a node and whether the
        reverse of each edge is unknown.
    layout : Layout or None
        Layout of the last structure. The next one often has the same edges.
    lock : threading.RLock
        Held while functions are looked up or compiled.
    seconds : float
        Time that this process has spent on compiling, loading and comparing functions.
    memory : LargeStructures
        Keeps the memory of large structures for the next one.
    """

    def __init__(self) -> None:
        self.functions: dict[Any, dict[tuple[int, bool], CompiledFunction]] = {}
        self.layout: Layout | None = None
        self.lock = threading.RLock()
        self.seconds = 0.0
        self.memory = LargeStructures()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        return self  # weights are arguments

    def __reduce__(self) -> tuple[type["Program"], tuple[()]]:
        return Program, ()  # another process compiles its own machine code

    def __call__(self, model: Model, graph: Graph, create_graph: bool) -> dict[str, Tensor]:
        """As `Model.predict`.

        Parameters
        ----------
        model : Model
            The model or one of its copies.
        graph : Graph
            Connected structures.
        create_graph : bool
            Keep what is needed to differentiate the outputs.
        """
        fields = graph.values("node", "graph", "edge")
        state, modes, hooked = state_of(model)
        differentiable = create_graph and any(value.requires_grad for value in state)
        if (
            hooked
            or differentiable != create_graph
            or graph.real is not None
            or torch.is_autocast_enabled(graph.pos.device.type)
            or any(value.requires_grad for value in fields.values())
        ):
            return model.predict(graph, create_graph)
        model.backbone.element_index(graph)  # raises for unknown elements
        if model.dtype not in TOLERANCE:
            raise AccelerateError(
                f"this model is {model.dtype}; accelerate takes float32 and float64: model.to(torch.float32)"
            )
        key = (
            tuple(model.quantities.values()),
            model.dtype,
            model.device,
            model.cutoff,
            model.k,
            create_graph,
            modes,
            tuple((name, value.dtype, value.shape[1:]) for name, value in fields.items()),
            tuple((value.shape, value.stride(), create_graph and value.requires_grad) for value in state),
        )
        with self.lock:
            functions = self.functions.setdefault(key, {})
            layout = self._layout_for(graph, functions)
            self.memory.next(layout.edge_index.shape[1])
            padded, degree = layout.fill(graph), layout.degree
            which = degree, padded.reverse is None
            if which not in functions:
                self._make_room()
                with self._timed():
                    functions[which] = compile_function(model, graph, degree, create_graph, BACKEND)
            function = functions[which]
            if not function.sizes.known(padded):
                with self._timed():
                    verify(function, model, graph, degree, create_graph)
        return function(model, state, graph, padded, create_graph)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the time inside, also if it ends with an error."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - started

    def _layout_for(self, graph: Graph, functions: dict[tuple[int, bool], CompiledFunction]) -> Layout:
        """The layout of a structure, with a number of edges for which there is a function already, if one
        fits.
        """
        last = self.layout if self.layout is not None and self.layout.serves(graph) else None
        needed = _largest_degree(graph) if last is None else last.needed
        degree = _fitting(graph.num_nodes, needed, {d for d, _ in functions}) or _rounded(needed)
        if last is None or last.degree != degree:
            last = self.layout = Layout(graph, nodes=1, degree=degree)
        return last

    def cost(self, model: Model, graph: Graph) -> Cost:
        """What it costs to compile the model for training and evaluation, and what that gains.

        Parameters
        ----------
        model : Model
            A model that may be changed to another mode.
        graph : Graph
            A connected batch.
        """
        known = {degree for functions in self.functions.values() for degree, _ in functions}
        if known:  # compiled in this process, for another member of an ensemble
            return Cost(0.0, cost_of(model, graph, max(known)).gain)
        return cost_of(model, graph, _rounded(_largest_degree(graph)))

    def _make_room(self) -> None:
        """Remove the oldest function if there are too many."""
        if sum(map(len, self.functions.values())) >= LIMIT:
            first = next(functions for functions in self.functions.values() if functions)
            del first[next(iter(first))]


def _largest_degree(graph: Graph) -> int:
    """The largest number of edges that a node receives."""
    assert graph.edge_index is not None
    return int(torch.bincount(graph.edge_index[1], minlength=1).max())


def _fitting(nodes: int, needed: int, degrees: set[int]) -> int | None:
    """The smallest number of edges of a node for which there is a function and that is no waste.

    It exceeds the needed number by half at most, or by anything if there are few edges.
    """
    return min(
        (d for d in degrees if d >= needed and (d <= 1.5 * needed or nodes * d <= SMALL)), default=None
    )


def _rounded(degree: int) -> int:
    """Up to the next multiple of a quarter of the power of two below, so that varying numbers share a
    function.
    """
    step = max(2, 2 ** (degree.bit_length() - 3)) if degree else 2
    return max(-(-degree // step) * step, 2)
