"""What free paths do to the outputs of a relaxed network: its linear model for the evidence, and the share of each path."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from molequi.graph import Graph, collate
from molequi.model import Model
from molequi.nn.relaxed import free_groups, relaxed_layers
from molequi.training.evidence import Evidence, maximum_evidence
from molequi.training.loss import Loss, per_atom

LABELS = 512          # at most so many are looked at
MEMORY = 2**26        # numbers in their derivatives, at most
STRICT = "everything else"


def linearised(
    model: Model, groups: Mapping[str, Sequence[nn.Parameter]], graphs: Sequence[Graph], loss: Loss, random: torch.Generator,
    labels: int = LABELS,
) -> tuple[Evidence, dict[str, float]]:
    """The evidence of the network linearised at its weights, and the variance of the noise of each quantity.

    Labels are drawn at random from structures drawn at random, so many from each as makes `labels` in all (fewer
    for large models).
    """
    free = [p for group in groups.values() for p in group]
    mine = {id(p) for p in free} | gates(model)
    rest = [p for p in model.parameters() if id(p) not in mine]
    sizes = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    labels = max(32, min(labels, MEMORY // sum(p.numel() for p in (*free, *rest))))
    chosen = torch.randperm(len(graphs), generator=random)[:labels].tolist()
    left, taken, kinds, residual, rows, strict = labels, [], [], [], [], []
    with _differentiable([*free, *rest]):
        for place, k in enumerate(chosen):
            errors, kind = _errors(model, graphs[k], loss)
            known = (~torch.isnan(errors.detach())).nonzero()[:, 0].cpu()
            known = known[torch.randperm(len(known), generator=random)[:-(-left // (len(chosen) - place))]]
            left -= len(known)
            taken.append(known.tolist())
            rows += _slopes(errors, taken[-1], free)
            kinds.append(kind[known])
            residual.append(-errors.detach()[known.to(errors.device)].double().cpu())
        with _zeroed(free):      # small changes of the strict network are equivariant; those of a broken one could explain anything
            for k, known in zip(chosen, taken):
                strict += _slopes(_errors(model, graphs[k], loss)[0], known, rest)
    target = torch.cat(residual)
    grams = {STRICT: _gram(torch.stack(strict))} if rest else {}
    for (name, group), jacobian in zip(groups.items(), torch.stack(rows).split(list(sizes.values()), dim=1)):
        grams[name] = _gram(jacobian)
        target = target + (jacobian.double() @ torch.cat([p.detach().reshape(p.numel()) for p in group]).double()).cpu()
    found = maximum_evidence(target, grams, kinds=torch.cat(kinds), keep=[STRICT])
    return found, dict(zip(loss.weights, found.noise))


def shares(model: Model, graphs: Sequence[Graph], loss: Loss, limit: int = 256) -> tuple[dict[str, float], float]:
    """Share of each free path in the outputs, the largest over the quantities of the loss, and that of all paths together."""
    groups = free_groups(model)
    chosen = sorted({round(i) for i in torch.linspace(0, len(graphs) - 1, min(limit, len(graphs))).tolist()})
    graphs = [graphs[k] for k in chosen]
    whole = _outputs(model, graphs, loss)
    size = {name: (v - v.mean(0) if not model.quantities[name].rank else v).square().mean() for name, v in whole.items()}

    def share(closed: Sequence[str]) -> float:
        with _zeroed([p for name in closed for p in groups[name]]):
            without = _outputs(model, graphs, loss)
        return max(float((without[name] - v).square().mean() / size[name]) if size[name] > 0 else 0.0
                   for name, v in whole.items())
    return {name: share([name]) for name in groups}, share(list(groups))


def gates(model: nn.Module) -> set[int]:
    return {id(gate) for _, layer in relaxed_layers(model) for gate in (layer.a, layer.b, layer.c)}


def _errors(model: Model, graph: Graph, loss: Loss) -> tuple[Tensor, Tensor]:
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
    return [torch.cat([s.detach().reshape(s.numel()) for s in
                       torch.autograd.grad(values[i], parameters, retain_graph=True, materialize_grads=True)]) for i in chosen]


def _outputs(model: Model, graphs: Sequence[Graph], loss: Loss) -> dict[str, Tensor]:
    """Outputs of all structures end to end, per atom where the loss is; without those that have no value."""
    found: dict[str, list[Tensor]] = {name: [] for name in loss.weights}
    for first in range(0, len(graphs), 32):
        graph = collate(graphs[first:first + 32]).to(model.device)
        out = model(graph, create_graph=False)
        for name in found:
            value = out[name].double()
            found[name].append(value / graph.counts if per_atom(loss.quantities[name]) else value)
    values = {name: torch.cat(parts) for name, parts in found.items()}
    return {name: v[torch.isfinite(v.reshape(len(v), v[0].numel())).all(1)] for name, v in values.items()}


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
