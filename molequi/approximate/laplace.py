"""What free paths do to the outputs of a relaxed network: its linear model for the evidence, and the share of each path."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from molequi.approximate.evidence import Evidence, maximum_evidence
from molequi.approximate.transforms import spread, squares
from molequi.data.dataset import Dataset
from molequi.graph import Graph, collate
from molequi.losses import Objective
from molequi.model import Model
from molequi.nn.relaxed import free_groups, relaxed_layers
from molequi.quantities import Quantity, per_atom

LABELS = 512  # at most so many are looked at
FEWEST = 32  # and no fewer, where there are as many; of each quantity too, so that the noise of each is known to a quarter
LEAST = 8  # with fewer labels a quantity is left out: what noise it has is anybody's guess
MEMORY = 2**26  # numbers in their derivatives, at most
STRICT = "everything else"


def linearised(
    model: Model,
    groups: Mapping[str, Sequence[nn.Parameter]],
    graphs: Sequence[Graph],
    loss: Objective,
    random: torch.Generator,
    labels: int = LABELS,
) -> tuple[Evidence, dict[str, float]]:
    """The evidence of the network linearised at its weights, and the variance of the noise of each quantity that is in it.

    Labels are drawn at random, of each quantity as many as it has in parts of all and `FEWEST` at least, from structures drawn at random,
    so many from each as makes `labels` in all (fewer for large models). Quantities with fewer than `LEAST` are left out, unless none has more.
    """
    free = [p for group in groups.values() for p in group]
    mine = {id(p) for p in free} | gates(model)
    rest = [p for p in model.parameters() if id(p) not in mine]
    sizes = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    labels = max(FEWEST, min(labels, MEMORY // sum(p.numel() for p in (*free, *rest))))
    chosen, taken, kinds, residual, rows, strict = _chosen(graphs, loss, random, labels), [], [], [], [], []
    model = model.plain()  # compiled models give derivatives once
    with _differentiable([*free, *rest]):
        for k, numbers in chosen.items():
            errors, kind = _errors(model, graphs[k], loss)
            known = []
            for q, number in numbers.items():
                own = ((kind == q) & ~torch.isnan(errors.detach()).cpu()).nonzero()[:, 0]
                known.append(own[torch.randperm(len(own), generator=random)[:number]])
            known = torch.cat(known)
            taken.append(known.tolist())
            rows += _slopes(errors, taken[-1], free)
            kinds.append(kind[known])
            residual.append(-errors.detach()[known.to(errors.device)].double().cpu())
        with _zeroed(
            free
        ):  # small changes of the strict network are equivariant; those of a broken one could explain anything
            for k, known in zip(chosen, taken):
                strict += _slopes(_errors(model, graphs[k], loss)[0], known, rest)
    target = torch.cat(residual)
    grams = {STRICT: _gram(torch.stack(strict))} if rest else {}
    for (name, group), jacobian in zip(groups.items(), torch.stack(rows).split(list(sizes.values()), dim=1)):
        grams[name] = _gram(jacobian)
        target = (
            target
            + (jacobian.double() @ torch.cat([p.detach().reshape(p.numel()) for p in group]).double()).cpu()
        )
    drawn, kind = torch.cat(kinds).unique(return_inverse=True)
    found = maximum_evidence(target, grams, kinds=kind, keep=[STRICT] if rest else [])
    names = list(loss.weights)
    return found, dict(zip((names[q] for q in drawn.tolist()), found.noise))


def _chosen(
    graphs: Sequence[Graph], loss: Objective, random: torch.Generator, labels: int
) -> dict[int, dict[int, int]]:
    """From which structures how many labels of each quantity are taken: {structure: {quantity: number}}."""
    counts = torch.stack([loss.known(graph) for graph in graphs]).T.tolist()  # by quantity
    order = torch.randperm(len(graphs), generator=random).tolist()
    numbers: dict[int, dict[int, int]] = {}
    for q, left in enumerate(_quotas([sum(row) for row in counts], labels)):
        mine = [k for k in order if counts[q][k]][:left]
        for place, k in enumerate(mine):
            number = min(counts[q][k], -(-left // (len(mine) - place)))
            numbers.setdefault(k, {})[q] = number
            left -= number
    return {k: numbers[k] for k in order if k in numbers}


def _quotas(known: Sequence[int], labels: int) -> list[int]:
    """How many labels are drawn of each quantity, of which so many are known."""
    least = min(LEAST, max(known))
    known = [n if n >= max(least, 1) else 0 for n in known]
    first = [min(n, FEWEST, labels // sum(m > 0 for m in known)) for n in known]
    rest, more = labels - sum(first), max(sum(known) - sum(first), 1)
    return [min(n, f + rest * (n - f) // more) for n, f in zip(known, first)]


def shares(
    model: Model, graphs: Sequence[Graph], loss: Objective, train: Dataset, limit: int = 256
) -> tuple[dict[str, float], float]:
    """Share of each free path in the outputs, the largest over the quantities of the loss, and that of all paths together.

    In parts of the squared size of the outputs, which is that on the training data: as of `poses.spread`, so that neither the composition
    nor the origin has a say, and one structure in `graphs` is enough. NaN where no output varies, but zero where closing the path changes
    nothing. At most `limit` structures of both are looked at.
    """
    groups = free_groups(model)
    quantities = {name: loss.quantities[name] for name in loss.weights}
    batches = _batches(model, [graphs[k] for k in _spaced(len(graphs), limit)])
    seen = train[_spaced(len(train), limit)]

    def share(closed: Sequence[str]) -> float:
        with _zeroed([p for name in closed for p in groups[name]]):
            without = [model(graph, create_graph=False) for graph in batches]
        parts = [
            squares(quantities, a, b, dict.fromkeys(quantities, 1.0), graph)
            for a, b, graph in zip(without, whole, batches)
        ]
        changed, counts = (sum(part).tolist() for part in zip(*parts))
        found = [c / n / size[name] if c else 0.0 for name, c, n in zip(quantities, changed, counts) if n]
        return max((s for s in found if math.isfinite(s)), default=math.nan)

    model = model.plain()  # evaluation in between would cost another compiled program
    whole = [model(graph, create_graph=False) for graph in batches]
    size = _sizes(model, seen, quantities)
    return {name: share([name]) for name in groups}, share(list(groups))


def _sizes(model: Model, data: Dataset, quantities: Mapping[str, Quantity]) -> dict[str, float]:
    """Squared size of the outputs on these data, of classes of log p; NaN where they do not vary, so that nothing is known of it."""
    found: dict[str, list[Tensor]] = {name: [] for name in quantities}
    for graph in _batches(model, [graph.replace(targets={}) for graph in data]):
        out = model(graph, create_graph=False)
        for name in found:
            found[name].append(out[name].double().cpu())
    sizes = {}
    for name, q in quantities.items():
        values = torch.cat(found[name])
        if q.classes:
            scores = values.log_softmax(-1)
            sizes[name] = float((scores - scores.mean(0)).square().mean()) or math.nan
        else:
            sizes[name] = spread(q, values, data) ** 2 or math.nan
    return sizes


def _batches(model: Model, graphs: Sequence[Graph]) -> list[Graph]:
    return [collate(graphs[first : first + 32]).to(model.device) for first in range(0, len(graphs), 32)]


def _spaced(number: int, limit: int) -> list[int]:
    """At most so many of so many, evenly spaced."""
    return sorted({round(i) for i in torch.linspace(0, number - 1, min(limit, number)).tolist()})


def gates(model: nn.Module) -> set[int]:
    return {id(gate) for _, layer in relaxed_layers(model) for gate in (layer.a, layer.b, layer.c)}


def _errors(model: Model, graph: Graph, loss: Objective) -> tuple[Tensor, Tensor]:
    """Errors of all components as the loss takes them (extensive scalars per atom), NaN without label; and the quantity of each."""
    graph = graph.to(model.device)
    out = model(graph, create_graph=True)
    errors = []
    for name in loss.weights:
        error = out[name] - graph.targets[name].to(out[name])
        error = error / graph.counts if per_atom(loss.quantities[name]) else error
        errors.append(error.reshape(error.numel()))
    return torch.cat(errors), torch.cat([torch.full(e.shape, q) for q, e in enumerate(errors)])


def _slopes(values: Tensor, chosen: Sequence[int], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """(P,) of each chosen value."""
    return [
        torch.cat(
            [
                s.detach().reshape(s.numel())
                for s in torch.autograd.grad(values[i], parameters, retain_graph=True, materialize_grads=True)
            ]
        )
        for i in chosen
    ]


def _gram(rows: Tensor) -> Tensor:
    """J Jᵀ in float64, a block of columns at a time."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split(65_536, dim=1):
        total += block.double() @ block.double().T
    return total.cpu()


@contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The running average of a model has parameters without gradients; here they have some."""
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for p, was in zip(parameters, before):
            p.requires_grad_(was)


@contextmanager
def _zeroed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Without these weights, for a while."""
    kept = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p in parameters:
                p.zero_()
        yield
    finally:
        with torch.no_grad():
            for p, was in zip(parameters, kept):
                p.copy_(was)
