"""Compiled models: `mq.accelerate(model)`.

Energy, forces and stress are traced into one graph of plain operations, in which the differentiation is already unfolded; inductor, the compiler
of torch, turns it into machine code, once for evaluation and once for training, where it differentiates that graph a second time. Structures come
in as regular graphs (`neighbors.regular`), filled up by a node of its own, so that one compiled program serves structures and batches of all sizes.

The trace goes to the compiler as it is, and not by way of `torch.compile`, which would trace it again, twice, and test some 200 assumptions before
each call. What it assumed is known here: `Program` has one function for each layout of the input, and `Sizes` are asked before each call.
"""

import copy
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)

from molequi.ensemble import Ensemble
from molequi.errors import AccelerateError
from molequi.graph import FIELDS, Graph, collate, fields_per
from molequi.heads import Scalar
from molequi.model import Model
from molequi.neighbors import Layout, connect, regular
from molequi.ops.memory import keep_freed_memory

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
}  # largest difference to the plain model, of the largest value
LIMIT = 32  # programs of one model that are kept: evaluation and training, by number of neighbours, with and without cells, charges …
FLOOR = 0.1  # where values are zero by symmetry, differences are taken of this part of the largest ones of other structures
SMALL = 8192  # edges for which it does not matter that most of them only fill up


def _inductor(traced: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    from torch._inductor import compile  # a second to import, for those who compile

    if inputs[0].device.type != "cpu":
        return compile(traced, inputs)
    # The kernels and what calls them in one file of C++, in place of a file for each kernel: GauntACE for training, 92 processor seconds for 161.
    for node, value in zip((node for node in traced.graph.nodes if node.op == "placeholder"), inputs):
        node.meta["val"] = (
            value  # what is taken for the inputs there, and of which the tracer has not kept that they require gradients
        )
    return compile(traced, inputs, options={"cpp_wrapper": True})


BACKEND = _inductor  # another one in tests, where g++ takes long


def accelerate(model: "Model | Ensemble", *, on: bool = True) -> "Model | Ensemble":
    """The same model, compiled: it is called, trained, saved and audited as before, and `on=False` makes it plain again.

    What is to be computed is compiled when it is first asked for: evaluation, and training with its second derivatives, each half a minute or
    more, of which a line on stderr tells; then structures and batches of any size are served. There are further programs for other numbers of
    neighbours (rounded up, and larger ones serve for less), precisions, kinds of input (cells, charges …), and modes of modules. Before first
    use each is compared with the plain model, on the structures at hand and a cluster of the same elements, with the weights as they are and
    with others: all outputs, and for training the gradients of all parameters. Weights are inputs of the programs, so that further training,
    loading of weights and copies of the model need no new ones; whatever else of a backbone is changed needs `on=False` and `mq.accelerate`
    anew. Outputs of training can be differentiated once, by the weights; torch refuses retain_graph=True for compiled ones.

    The plain model is called under autocast, with hooks on modules inside, where a structure has tensors that require gradients or is a
    regular graph already, and for training if no weight requires gradients.
    Nodes are filled up with edges far beyond the cutoff, so a backbone of your own must give exactly zero for those, as the envelope does.
    Round-off depends on the number of neighbours that a program was made for, so on what was computed before. The process keeps up to
    2 GiB of freed memory for the next step.

    Raises, at first use, AccelerateError if there is no C++ compiler (CPU), if the backbone does what cannot be compiled, or if values differ by
    more than 1e-10 (float64) or 1e-4 (float32) of the largest.
    """
    keep_freed_memory()
    if not isinstance(model, (Model, Ensemble)):
        raise AccelerateError(
            f"accelerate takes a Model or an Ensemble, found {type(model).__name__}; an ASE calculator is compiled by "
            "mq.Calculator(model, accelerate=True)"
        )
    model.use_program((model.program or Program()) if on else None)
    return model


class Program:
    """Compiled functions of a model and its copies, by what they compute and by the number of neighbours."""

    def __init__(self):
        self.functions: dict[Any, dict[tuple[int, bool], _Function]] = {}
        self.layout: Layout | None = None  # of the last structure, which often is the next one, moved
        self.lock = threading.RLock()

    def __deepcopy__(self, memo):
        return self  # weights are inputs

    def __reduce__(self):
        return Program, ()  # machine code stays here: another process compiles its own

    def __call__(self, model: Model, graph: Graph, create_graph: bool) -> dict[str, Tensor]:
        given = graph.values("node", "graph", "edge")
        state, modes, hooked = _state(model)
        differentiable = create_graph and any(value.requires_grad for value in state)
        if (
            hooked
            or differentiable != create_graph
            or graph.real is not None
            or torch.is_autocast_enabled(graph.pos.device.type)
            or any(value.requires_grad for value in given.values())
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
            tuple((name, value.dtype, value.shape[1:]) for name, value in given.items()),
            tuple((value.shape, value.stride(), create_graph and value.requires_grad) for value in state),
        )
        with self.lock:
            functions = self.functions.setdefault(key, {})
            same = self.layout is not None and self.layout.serves(graph)
            needed = self.layout.needed if same else _degree(graph)
            degree = _fitting(graph.num_nodes, needed, {d for d, _ in functions}) or _rounded(needed)
            if not same or self.layout.degree != degree:
                self.layout = Layout(graph, nodes=1, degree=degree)
            padded = self.layout.fill(graph)
            which = degree, padded.reverse is None
            if which not in functions:
                self._make_room()
                functions[which] = _compile(model, graph, degree, create_graph)
            function = functions[which]
            if not function.sizes.known(padded):
                _verify(function, model, graph, degree, create_graph)
        return _run(function, model, state, graph, padded, create_graph)

    def _make_room(self) -> None:
        """Forgets the first of the programs where there are too many."""
        if sum(map(len, self.functions.values())) >= LIMIT:
            first = next(functions for functions in self.functions.values() if functions)
            del first[next(iter(first))]


def _degree(graph: Graph) -> int:
    """The largest number of neighbours."""
    receiver = graph.edge_index[1]
    return int(torch.bincount(receiver, minlength=1).max())


def _fitting(nodes: int, needed: int, degrees: set[int]) -> int | None:
    """The smallest number of neighbours that there is a program for and that is no waste: another half at most, or any where little is to do."""
    return min(
        (d for d in degrees if d >= needed and (d <= 1.5 * needed or nodes * d <= SMALL)), default=None
    )


def _rounded(degree: int) -> int:
    """Up to the next multiple of a quarter of the power of two below, so that fluctuating numbers of neighbours share a program."""
    step = max(2, 2 ** (degree.bit_length() - 3)) if degree else 2
    return max(-(-degree // step) * step, 2)


@dataclass
class Sizes:
    """What a compiler has assumed about the numbers of nodes and graphs, as inequalities, and which answers to them were tried.

    Most are no more than a choice between two ways of the same, and hold for all sizes or are wrong without harm. So where an answer is new,
    the program is compared with the plain model again.
    """

    nodes: Any
    graphs: Any
    assumed: Sequence[Any] = ()
    answers: dict[tuple[int, int], tuple[bool, ...]] = field(default_factory=dict)
    tried: set[tuple[bool, ...]] = field(default_factory=set)

    def of(self, nodes: int, graphs: int) -> tuple[bool, ...]:
        if (nodes, graphs) not in self.answers:
            self.answers[nodes, graphs] = tuple(
                bool(e.subs({self.nodes: nodes, self.graphs: graphs})) for e in self.assumed
            )
        return self.answers[nodes, graphs]

    def known(self, graph: Graph) -> bool:
        return self.of(graph.num_nodes, graph.num_graphs) in self.tried


@dataclass
class _Function:
    """Machine code with weights and fields as arguments."""

    call: Callable[..., Sequence[Tensor]]
    sizes: Sizes
    largest: Mapping[str, float] = field(default_factory=dict)  # of each output, when it was compiled


def _run(
    function: _Function,
    model: Model,
    state: Sequence[Tensor],
    graph: Graph,
    padded: Graph,
    create_graph: bool,
) -> dict[str, Tensor]:
    with torch.set_grad_enabled(create_graph):
        values = function.call(*state, *_fields(padded).values())
    out = {}
    for name, value in zip(model.names, values):
        out[name] = value[: graph.num_nodes if _per_node(model, name) else graph.num_graphs]
    return out


def _modules(model: Model) -> list[torch.nn.Module]:
    """All modules, each once. Walking there beats `named_parameters`, which is slow and asked for in each step."""
    found, modules = {}, [model]
    while modules:
        module = modules.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            modules += module._modules.values()
    return list(found.values())


def _places(modules: Sequence[torch.nn.Module]) -> list[tuple[dict[str, Tensor | None], str]]:
    """Where the parameters and buffers are kept."""
    return [
        (table, name)
        for module in modules
        for table in (module._parameters, module._buffers)
        for name, value in table.items()
        if value is not None
    ]


def _state(model: Model) -> tuple[list[Tensor], tuple[bool, ...], bool]:
    """The parameters and buffers, which modules are in training, and whether any inside has hooks."""
    modules = _modules(model)
    hooked = any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in modules[1:]
    )
    return [table[name] for table, name in _places(modules)], tuple(m.training for m in modules), hooked


def _fields(graph: Graph) -> dict[str, Tensor]:
    """The tensors of a regular graph, those of edges as (N, degree, …)."""
    edges = graph.real.shape
    out = graph.values("node", "graph") | {"batch": graph.batch, "real": graph.real}
    if graph.reverse is not None:
        out["reverse"] = graph.reverse
    out["sender"] = graph.edge_index[0].reshape(edges)
    out |= {n: value.reshape(*edges, *value.shape[1:]) for n, value in graph.values("edge").items()}
    return out | {"graphs": graph.pos.new_empty(graph.num_graphs)}


def _graph(fields: dict[str, Tensor], k: int | None) -> Graph:
    """The regular graph of these tensors."""
    graphs, sender = fields.pop("graphs"), fields.pop("sender")
    receiver = torch.arange(sender.shape[0], device=sender.device)[:, None].expand(sender.shape)
    flat = {name: fields.pop(name).flatten(0, 1) for name in fields_per("edge") if name in fields}
    edge_index = torch.stack([sender.flatten(), receiver.flatten()])
    return Graph(
        pos=fields.pop("pos"),
        z=fields.pop("z"),
        batch=fields.pop("batch"),
        num_graphs=graphs.shape[0],
        edge_index=edge_index,
        cutoff=float("inf"),
        k=k,
    ).replace(**fields, **flat)


def _compile(model: Model, graph: Graph, degree: int, create_graph: bool) -> _Function:
    twin = copy.deepcopy(model)  # so that trials leave nothing in buffers
    both = _with_cluster(
        twin, graph, max(2, min(degree, 8))
    )  # whose nodes have fewer neighbours than there is room for
    plain = twin.predict(
        both, create_graph
    )  # what this raises is of the model; it also fills tables that must not be made while tracing
    what = f"{type(model.backbone).__name__} for {'training' if create_graph else 'evaluation'} ({str(model.dtype).removeprefix('torch.')})"
    print(f"molequi: compiling {what}, about a minute …", end="", file=sys.stderr, flush=True)
    started, end = time.monotonic(), "\n"
    try:
        odd = _odd(twin, both, degree)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own ways while compiling
            function = _trace(twin, odd, create_graph)
            got = _run(function, twin, _state(twin)[0], both, odd, create_graph)
            error = compare(twin, both, plain, got, gradients=create_graph, at_hand=graph)
        _shake(twin)
        got = _run(function, twin, _state(twin)[0], both, odd, create_graph)
        compare(twin, both, twin.predict(both, create_graph), got, gradients=False)
        end = f" {time.monotonic() - started:.0f} s; differs from the plain model by {error:.1e}\n"
    except AccelerateError:
        raise
    except Exception as failure:  # whatever the compiler raises, of which there is no common type
        raise _explained(failure, what) from failure
    finally:
        print(end, end="", file=sys.stderr, flush=True)
    function.largest = {
        name: float(_sizes(model, both, name, value).max()) for name, value in plain.items() if value.numel()
    }
    function.sizes.tried.add(function.sizes.of(odd.num_nodes, odd.num_graphs))
    return function


@torch.no_grad()
def _shake(model: Model) -> None:
    """Other weights, none of them zero: what zeros hide at first, training brings to light."""
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
            value += 0.1 * (value.square().mean().sqrt() + 0.1) * noise


def _explained(failure: Exception, what: str) -> AccelerateError:
    text = " ".join(str(failure).split())
    if "InvalidCxxCompiler" in type(failure).__name__ or "No working C++ compiler" in text:
        return AccelerateError(
            "compiling needs a C++ compiler and none was found: install one (Debian: apt-get install g++), or leave accelerate "
            "away; the plain model needs none"
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
        f"{what} could not be compiled: {type(failure).__name__}: {text[:300]}; leave accelerate away, the plain model "
        "computes the same"
    )


def _verify(function: _Function, model: Model, graph: Graph, degree: int, create_graph: bool) -> None:
    """Compares once more at sizes of which the compiler assumed otherwise."""
    twin = copy.deepcopy(model)
    plain, padded = twin.predict(graph, create_graph), regular(graph, nodes=1, degree=degree)
    fast = _run(function, twin, _state(twin)[0], graph, padded, create_graph)
    compare(twin, graph, plain, fast, gradients=create_graph, largest=function.largest)
    function.sizes.tried.add(function.sizes.of(padded.num_nodes, padded.num_graphs))


def _with_cluster(model: Model, graph: Graph, nodes: int) -> Graph:
    """The structures, and a cluster of some of their nodes beside them: with neighbours where they may have none, and without the symmetry by which
    values of theirs may be zero, which would hide errors, or show those of round-off.
    """
    generator = torch.Generator().manual_seed(0)
    length = graph.edge_vectors().detach().norm(dim=1).cpu()
    length = length[length > 1e-3]
    spacing = min(
        1.3 * float(length.min()) if len(length) else 1.5,
        0.7 * model.cutoff if model.cutoff else float("inf"),
    )
    pos = [torch.zeros(graph.dim, dtype=torch.float64)]
    while len(pos) < nodes:
        step = torch.randn(graph.dim, generator=generator, dtype=torch.float64)
        step *= spacing * (1 + 0.3 * torch.rand((), generator=generator)) / step.norm()
        new = pos[int(torch.randint(len(pos), (), generator=generator))] + step
        if min(float((new - p).norm()) for p in pos) > 0.9 * spacing:
            pos.append(new)
    rows = torch.randint(graph.num_nodes, (nodes,), generator=generator)
    given = {
        name: value.cpu()[rows if FIELDS[name].per == "node" else slice(1)]
        for name, value in graph.values("node", "graph").items()
        if FIELDS[name].default is None
    }
    cluster = Graph(
        pos=torch.stack(pos).to(graph.pos.dtype),
        z=given.pop("z"),
        batch=torch.zeros(nodes, dtype=torch.int64),
        num_graphs=1,
    ).replace(**{name: value for name, value in given.items() if name != "pos"})
    cluster = connect(cluster, model.cutoff, model.k).replace(k=graph.k, cutoff=graph.cutoff)
    if graph.edge_attr is not None:
        known, edges = graph.edge_attr.detach().cpu(), cluster.edge_index.shape[1]
        known = known if len(known) else known.new_zeros(1, known.shape[1])
        cluster = cluster.replace(edge_attr=known[torch.randint(len(known), (edges,), generator=generator)])
    if graph.cell is not None:
        cell = 3 * spacing * torch.eye(graph.dim, dtype=graph.cell.dtype)
        cluster = cluster.replace(cell=cell[None], pbc=torch.zeros(1, graph.dim, dtype=torch.bool))
    return collate([graph.without("pair").replace(targets={}), cluster.to(graph.pos.device)])


def _odd(model: Model, graph: Graph, degree: int) -> Graph:
    """The graph filled up to sizes that are all different, also from those of the weights: a compiler takes equal sizes for one and the same."""
    taken = {size for value in _state(model)[0] for size in value.shape} | {*range(10), degree}
    nodes = next(n for n in count(1) if graph.num_nodes + n not in taken)
    graphs = next(
        n for n in count(1) if graph.num_graphs + nodes + n not in taken | {graph.num_nodes + nodes}
    )
    return regular(graph, nodes=nodes, graphs=graphs, degree=degree)


def _trace(model: Model, graph: Graph, create_graph: bool) -> _Function:
    state, fields, twin = _state(model)[0], _fields(graph), copy.deepcopy(model)  # whose weights are replaced
    shapes = ShapeEnv()
    mode = torch._subclasses.FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)

    def fixed(value: Tensor) -> Tensor:
        return mode.from_tensor(value.detach(), static_shapes=True).requires_grad_(
            value.requires_grad and create_graph
        )

    def sized(value: Tensor) -> Tensor:
        # DUCK: equal sizes are one symbol. `_odd` has seen to it that there are two, of nodes and of graphs.
        context = StatelessSymbolicContext(
            dynamic_sizes=[DimDynamic.STATIC if k else DimDynamic.DUCK for k in range(value.ndim)]
        )
        return mode.from_tensor(value, symbolic_context=context)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        for (table, name), value in zip(_places(_modules(twin)), values):
            table[name] = value
        with torch.set_grad_enabled(True):
            out = twin.predict(_graph(dict(zip(fields, values[len(state) :])), graph.k), create_graph)
        return tuple(out[name] for name in twin.names)

    weights, inputs = (
        [fixed(value) for value in state],
        {name: sized(value) for name, value in fields.items()},
    )
    sizes = Sizes(*(inputs[name].shape[0].node.expr for name in ("pos", "graphs")))
    traced = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        *weights, *inputs.values()
    )
    asked = [guard.expr for guard in shapes.guards]
    for expr in asked:
        for nodes, graphs in ((2, 2), (3, 2), (24, 23), (1009, 31), (10**6 + 3, 10**5 + 3)):
            if expr.subs({sizes.nodes: nodes, sizes.graphs: graphs}) != True:  # noqa: E712, a symbolic truth
                text = str(expr).replace(str(sizes.nodes), "nodes").replace(str(sizes.graphs), "graphs")
                raise AccelerateError(
                    f"{type(model.backbone).__name__} does not do the same for all sizes: it asks whether {text} (nodes and graphs "
                    "of a batch, with those that fill up), as len() of a tensor does too; take .shape[0], or leave accelerate away"
                )
    for node in list(traced.graph.nodes):
        # Gradients of the weights pass through what autograd detached to save it; there is nothing else to be detached from.
        if node.op == "call_function" and node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    traced.graph.eliminate_dead_code()
    traced.recompile()
    with torch.set_grad_enabled(create_graph):
        call = BACKEND(traced, [*weights, *inputs.values()])
    sizes.assumed = [guard.expr for guard in shapes.guards[len(asked) :]]
    return _Function(call, sizes)


def compare(
    model: Model,
    graph: Graph,
    plain: Mapping[str, Tensor],
    fast: Mapping[str, Tensor],
    *,
    gradients: bool,
    at_hand: Graph | None = None,
    largest: Mapping[str, float] | None = None,
) -> float:
    """The largest difference between the plain and the compiled values, in parts of the largest plain one; raises AccelerateError above TOLERANCE.

    Energies count without those of isolated atoms. gradients: also those of all parameters, for random slopes of all outputs. at_hand: the
    first structures; theirs are compared with their own largest value, or FLOOR of that of the others. largest: of each output elsewhere.
    """
    worst = {}
    for name, value in plain.items():
        rows = (
            None if at_hand is None else at_hand.num_nodes if _per_node(model, name) else at_hand.num_graphs
        )
        worst[name] = _difference(
            value.detach(),
            fast[name].detach(),
            _sizes(model, graph, name, value),
            rows,
            (largest or {}).get(name, 0.0),
        )
    if gradients:
        generator = torch.Generator().manual_seed(0)
        slopes = {
            name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
            for name, value in plain.items()
        }
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

        def slope_of(values: Mapping[str, Tensor]):
            total = sum(
                (torch.where(torch.isfinite(v), v, 0.0) * slopes[n]).sum().double()
                for n, v in values.items()
                if v.requires_grad
            )
            return torch.autograd.grad(
                total, list(parameters.values()), allow_unused=True, materialize_grads=True
            )

        wanted, found = slope_of(plain), slope_of(fast)
        largest = max((float(g.abs().max()) for g in wanted), default=0.0)
        for name, a, b in zip(parameters, wanted, found):
            worst[f"gradient of {name}"] = float((a - b).abs().max()) / max(
                float(a.abs().max()), 1e-2 * largest, 1e-30
            )
    name = max(worst, key=lambda n: worst[n] if worst[n] == worst[n] else float("inf"))
    tolerance = TOLERANCE[model.dtype]
    if not worst[name] <= tolerance:
        raise AccelerateError(
            f"the compiled {type(model.backbone).__name__} differs from the plain one in {name}, by {worst[name]:.1e} of its "
            f"largest value (allowed: {tolerance:g}); it is not used. Leave accelerate away; where the backbone is your own, does it give exactly nothing "
            "for edges beyond the cutoff?"
        )
    return worst[name]


def _per_node(model: Model, name: str) -> bool:
    return name == "energies" or model.quantities[name].per == "node"


def _sizes(model: Model, graph: Graph, name: str, value: Tensor) -> Tensor:
    """Magnitudes of an output, zero where it is not known; those of energies without isolated atoms."""
    value, head = value.detach(), model.heads["energy"] if name in ("energy", "energies") else None
    if isinstance(head, Scalar):
        base = (head.reference_energies + head.shift)[graph.z]
        value = value - (
            base if name == "energies" else torch.zeros_like(value).index_add(0, graph.batch, base)
        )
    return torch.where(torch.isfinite(value), value, 0.0).abs().reshape(len(value), -1)


def _difference(plain: Tensor, fast: Tensor, size: Tensor, rows: int | None, elsewhere: float) -> float:
    known = torch.isfinite(plain)
    if (
        plain.shape != fast.shape
        or not torch.equal(torch.isnan(plain), torch.isnan(fast))
        or not torch.equal(known, torch.isfinite(fast))
    ):
        return float("inf")
    error = torch.where(known, plain - fast, 0.0).abs().reshape(len(plain), -1)
    worst, largest = 0.0, max(float(size.max()), elsewhere)
    for part in [slice(None)] if rows is None else [slice(0, rows), slice(rows, None)]:
        scale, most = max(float(size[part].max()), FLOOR * largest), float(error[part].max())
        worst = max(worst, most / scale if scale > 0 else most)
    return worst
