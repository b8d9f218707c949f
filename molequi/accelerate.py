"""Compiled models: `mq.accelerate(model)`.

Energy, forces and stress are traced into one graph of plain operations, in which the differentiation is already unfolded; torch.compile turns it
into machine code, once for evaluation and once for training, where it differentiates that graph a second time. Structures come in as regular
graphs (`neighbors.regular`), filled up by a node of its own, so that one compiled program serves structures and batches of all sizes.
"""

import sys
import threading
import time
import warnings
from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from molequi.ensemble import Ensemble
from molequi.errors import AccelerateError
from molequi.graph import Graph
from molequi.heads import Scalar
from molequi.model import Model
from molequi.neighbors import regular

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}      # largest difference to the plain model, of the largest value
PER_NODE, PER_GRAPH, PER_EDGE = ("pos", "z", "batch", "vel", "vec", "x"), ("cell", "pbc", "charge", "spin"), ("shift", "edge_attr")
BACKEND = "inductor"      # of torch.compile
LIMIT = 32      # programs of one model: evaluation and training, by number of neighbours, with and without cells, charges … in two precisions
SMALL = 8192    # edges for which it does not matter that most of them only fill up


def accelerate(model: "Model | Ensemble", *, on: bool = True) -> "Model | Ensemble":
    """The same model, compiled: it is called, trained, saved and audited as before, and `on=False` makes it plain again.

    What is to be computed is compiled when it is first asked for: evaluation, and training with its second derivatives, each half a minute or
    more, of which a line on stderr tells; then structures and batches of any size are served. Before first use each program is compared with
    the plain model on the structures at hand: all outputs, and for training the gradients of all parameters. Weights are inputs of the
    programs, so that further training, loading of weights and copies of the model need no new ones. Positions that require gradients
    themselves, as for second derivatives, go through the plain model.

    Raises, at first use, AccelerateError if there is no C++ compiler (CPU), if the backbone does what cannot be compiled, or if values differ by
    more than 1e-10 (float64) or 1e-4 (float32) of the largest.
    """
    if isinstance(model, Ensemble):
        program = Program() if on else None      # members differ in their weights alone
        for member in model.members:
            member.program = program
        return model
    if not isinstance(model, Model):
        raise AccelerateError(f"accelerate takes a Model or an Ensemble, found {type(model).__name__}")
    model.program = Program() if on else None
    return model


class Program:
    """Compiled functions of a model and its copies, by what they compute."""

    def __init__(self):
        self.functions: dict[Any, dict[int, Any]] = {}
        self.lock = threading.RLock()

    def __deepcopy__(self, memo):
        return self      # weights are inputs

    def __call__(self, model: Model, graph: Graph, create_graph: bool) -> dict[str, Tensor]:
        if graph.pos.requires_grad:
            return model.predict(graph, create_graph)      # someone differentiates further than a program does
        model.backbone.element_index(graph)      # raises for unknown elements
        names = ("pos", "z", "batch", "vel", "vec", "x", "cell", "pbc", "charge", "spin", "shift", "edge_attr")
        padded = regular(graph, nodes=1)
        key = (tuple(model.quantities), tuple(n for n in names if getattr(graph, n) is not None), padded.reverse is None,
               model.dtype, model.device, create_graph)
        with self.lock:
            functions = self.functions.setdefault(key, {})
            degree = _fitting(padded, functions)
            if degree is None:
                degree = _rounded(padded.real.shape[1])
                if sum(map(len, self.functions.values())) >= LIMIT:
                    raise AccelerateError(f"{LIMIT} programs have been compiled for this model, and {key} with {degree} neighbours wants another; "
                                          "call mq.accelerate(model) anew")
                functions[degree] = _compile(model, graph, degree, create_graph)
        if degree != padded.real.shape[1]:
            padded = regular(graph, nodes=1, degree=degree)
        return _run(functions[degree], model, graph, padded, create_graph)


def _fitting(padded: Graph, functions: Mapping[int, Any]) -> int | None:
    """The smallest number of neighbours that there is a program for and that is no waste: another half at most, or any where little is to do."""
    nodes, needed = padded.real.shape
    return min((d for d in functions if d >= needed and (d <= 1.5 * needed or nodes * d <= SMALL)), default=None)


def _rounded(degree: int) -> int:
    """Up to the next multiple of a quarter of the power of two below, so that fluctuating numbers of neighbours share a program."""
    step = max(2, 2 ** (degree.bit_length() - 3))
    return -(-degree // step) * step


def _run(function, model: Model, graph: Graph, padded: Graph, create_graph: bool) -> dict[str, Tensor]:
    with torch.set_grad_enabled(create_graph):
        values = function(*_inputs(model, padded))
    out = {}
    for name, value in zip(_names(model), values):
        per_node = name == "energies" or model.quantities[name].per == "node"
        out[name] = value[:graph.num_nodes if per_node else graph.num_graphs]
    return out


def _names(model: Model) -> list[str]:
    energies = "energy" in model.heads and isinstance(model.heads["energy"], Scalar)
    return [*model.quantities, *(["energies"] if energies else [])]


def _state(model: Model) -> dict[str, Tensor]:
    """All weights and tables by name, those of a module that has several names once."""
    return {f"{path}.{name}" if path else name: value for path, module in model.named_modules()
            for table in (module._parameters, module._buffers) for name, value in table.items() if value is not None}


def _fields(graph: Graph) -> dict[str, Tensor]:
    """The tensors of a regular graph, those of edges as (N, degree, …)."""
    edges = graph.real.shape
    out = {n: getattr(graph, n) for n in (*PER_NODE, *PER_GRAPH, "real", "reverse")} | {"sender": graph.edge_index[0].reshape(edges)}
    out |= {n: None if getattr(graph, n) is None else getattr(graph, n).reshape(*edges, *getattr(graph, n).shape[1:]) for n in PER_EDGE}
    out["graphs"] = graph.pos.new_empty(graph.num_graphs)
    return {name: value for name, value in out.items() if value is not None}


def _inputs(model: Model, padded: Graph) -> tuple[list[Tensor], list[Tensor]]:
    return list(_state(model).values()), list(_fields(padded).values())


class _Plain(nn.Module):
    """A model as a function of its fields; `functional_call` gives it weights."""

    def __init__(self, model: Model, fields: list[str], k: int | None, create_graph: bool):
        super().__init__()
        self.model, self.fields, self.k, self.create_graph = model, fields, k, create_graph

    def forward(self, values: list[Tensor]) -> list[Tensor]:
        given = dict(zip(self.fields, values))
        graphs, sender = given.pop("graphs"), given.pop("sender")
        n, degree = sender.shape
        receiver = torch.arange(n, device=sender.device)[:, None].expand(n, degree)
        for name in PER_EDGE:
            if name in given:
                given[name] = given[name].flatten(0, 1)
        graph = Graph(**given, num_graphs=graphs.shape[0], edge_index=torch.stack([sender.flatten(), receiver.flatten()]),
                      cutoff=float("inf"), k=self.k)
        out = self.model.predict(graph, self.create_graph)
        return [out[name] for name in _names(self.model)]


def _compile(model: Model, graph: Graph, degree: int, create_graph: bool):
    what = f"{type(model.backbone).__name__} for {'training' if create_graph else 'evaluation'} ({str(model.dtype).removeprefix('torch.')})"
    print(f"molequi: compiling {what}, about a minute …", end="", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        plain = model.predict(graph, create_graph)      # also fills tables that must not be made while tracing
        odd = _odd(model, graph, degree)
        function = _trace(model, odd, create_graph)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")      # about torch's own ways while compiling
            got = _run(function, model, graph, odd, create_graph)
            error = compare(model, graph, plain, got, gradients=create_graph)
    except AccelerateError:
        raise
    except Exception as failure:      # whatever the compiler raises, of which there is no common type
        text = " ".join(str(failure).split())
        if "InvalidCxxCompiler" in type(failure).__name__ or "No working C++ compiler" in text:
            raise AccelerateError("compiling needs a C++ compiler and none was found: install one (Debian: apt-get install g++), or leave accelerate "
                                  "away; the plain model needs none") from failure
        raise AccelerateError(f"{what} could not be compiled: {type(failure).__name__}: {text[:300]}; leave accelerate away, the plain model "
                              "computes the same") from failure
    print(f" {time.monotonic() - started:.0f} s; differs from the plain model by {error:.1e}", file=sys.stderr, flush=True)
    return function


def _odd(model: Model, graph: Graph, degree: int) -> Graph:
    """The graph filled up to sizes that are all different, also from those of the weights: a compiler takes equal sizes for one and the same."""
    taken = {size for value in _state(model).values() for size in value.shape} | {*range(10), degree}
    nodes = next(n for n in count(1) if graph.num_nodes + n not in taken)
    graphs = next(n for n in count(1) if graph.num_graphs + nodes + n not in taken | {graph.num_nodes + nodes})
    return regular(graph, nodes=nodes, graphs=graphs, degree=degree)


def _trace(model: Model, graph: Graph, create_graph: bool):
    """A compiled function of (weights, fields)."""
    state, fields = _state(model), _fields(graph)
    plain = _Plain(model, list(fields), graph.k, create_graph)
    mode = torch._subclasses.FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fixed(value: Tensor) -> Tensor:
        return mode.from_tensor(value.detach(), static_shapes=True).requires_grad_(value.requires_grad and create_graph)

    def sized(value: Tensor) -> Tensor:
        context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.STATIC if k else DimDynamic.DYNAMIC for k in range(value.ndim)])
        return mode.from_tensor(value, symbolic_context=context)

    def function(weights: list[Tensor], values: list[Tensor]) -> list[Tensor]:
        with torch.set_grad_enabled(True):
            return functional_call(plain, {f"model.{name}": w for name, w in zip(state, weights)}, (values,), tie_weights=False)

    traced = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        [fixed(value) for value in state.values()], [sized(value) for value in fields.values()])
    for node in list(traced.graph.nodes):
        # Gradients of the weights pass through what autograd detached to save it; there is nothing else to be detached from.
        if node.op == "call_function" and node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    traced.graph.eliminate_dead_code()
    traced.recompile()
    compiled = torch.compile(traced, fullgraph=True, backend=BACKEND)

    def run(weights: list[Tensor], values: list[Tensor]) -> list[Tensor]:
        for value in values:
            torch._dynamo.mark_dynamic(value, 0)
        return compiled(weights, values)

    return run


def compare(model: Model, graph: Graph, plain: Mapping[str, Tensor], fast: Mapping[str, Tensor], *, gradients: bool) -> float:
    """The largest difference between the plain and the compiled values, in parts of the largest plain one; raises AccelerateError above TOLERANCE.

    Energies count without those of isolated atoms. gradients: also those of all parameters, for random slopes of all outputs.
    """
    worst = {}
    for name, value in plain.items():
        base = 0.0
        if name in ("energy", "energies"):
            head = model.heads["energy"]
            base = (head.isolated + head.shift)[graph.z]
            base = base if name == "energies" else torch.zeros_like(value).index_add(0, graph.batch, base)
        worst[name] = _difference(value.detach(), fast[name].detach(), base)
    if gradients:
        generator = torch.Generator().manual_seed(0)
        slopes = {name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) for name, value in plain.items()}
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

        def slope_of(values: Mapping[str, Tensor]):
            total = sum((torch.where(torch.isfinite(v), v, 0.0) * slopes[n]).sum().double() for n, v in values.items() if v.requires_grad)
            return torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)

        wanted, found = slope_of(plain), slope_of(fast)
        largest = max((float(g.abs().max()) for g in wanted), default=0.0)
        for name, a, b in zip(parameters, wanted, found):
            worst[f"gradient of {name}"] = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-2 * largest, 1e-30)
    name = max(worst, key=lambda n: worst[n] if worst[n] == worst[n] else float("inf"))
    tolerance = TOLERANCE[model.dtype]
    if not worst[name] <= tolerance:
        raise AccelerateError(f"the compiled {type(model.backbone).__name__} differs from the plain one in {name}, by {worst[name]:.1e} of its largest value "
                              f"(allowed: {tolerance:g}); it is not used. Leave accelerate away")
    return worst[name]


def _difference(plain: Tensor, fast: Tensor, base: "Tensor | float") -> float:
    if plain.shape != fast.shape or not torch.equal(torch.isnan(plain), torch.isnan(fast)):
        return float("inf")
    known = ~torch.isnan(plain)
    if not bool(known.any()):
        return 0.0
    size = float((plain - base)[known].abs().max())
    error = float((plain - fast)[known].abs().max())
    return error / size if size > 0 else error
