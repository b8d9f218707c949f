"""Laplace approximation of a relaxed network: its linearisation at the weights, and the evidence of that.

At the present weights w, the network f is replaced by its linearisation in all weights::

    y = f(w) + J_strict δ + Σ_g J_g (w'_g - w_g) + noise,    J_g = ∂f/∂w_g,

with the weights w_g of the free paths (one group g for each layer and irrep) and a change δ of all other
weights. This is the generalised Gauss-Newton form of Laplace's approximation (Immer et al. 2021, arXiv
2104.04975). It is a linear model of the target y - f(w) + Σ_g J_g w_g, with priors w'_g ~ N(0, 1/α_g), and
its evidence is maximised exactly (`molequi.approximate.evidence`). One precision for each layer and irrep:
van der Ouderaa et al. 2023 (arXiv 2310.06131).

J_strict is taken with all free paths closed, so that J_strict δ is equivariant: what a change of the
equivariant weights could explain is not attributed to the free paths. The derivatives of a network that
breaks the symmetry could explain anything.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molequi.approximate.evidence import Evidence, maximum_evidence
from molequi.approximate.free_paths import gates, zeroed
from molequi.ensemble import Ensemble
from molequi.errors import TrainingWarning
from molequi.graph import Graph
from molequi.losses import Objective
from molequi.model import Model
from molequi.quantities import per_atom

MAX_LABELS = 512
# Labels of each quantity at least, if it has as many: their standard deviation is then known
# to 1/8.
MIN_LABELS = 32
# A quantity with fewer labels is left out, because its noise cannot be estimated.
TOO_FEW = 8
_MAX_DERIVATIVES = 2**26  # numbers in all Jacobians together
STRICT = "strict"  # the group of all weights that are not of a free path


def linearised_evidence(
    model: Model | Ensemble,
    groups: Mapping[str, Sequence[nn.Parameter]],
    graphs: Sequence[Graph],
    loss: Objective,
    generator: torch.Generator,
    labels: int = MAX_LABELS,
) -> tuple[Evidence, dict[str, float]]:
    """Evidence of the network linearised at its weights, on randomly drawn labels.

    Each quantity gets labels in proportion to its number of labels, but at least `MIN_LABELS`. Quantities
    with fewer than `TOO_FEW` labels are left out, unless all have so few.

    Parameters
    ----------
    model : Model or Ensemble
        The model in evaluation mode. Its weights stay as they are.
    groups : mapping of str to sequence of nn.Parameter
        Free weights by layer and irrep.
    graphs : sequence of Graph
        Training structures with edges and labels.
    loss : Objective
        The loss, whose quantities count.
    generator : torch.Generator
        Source of random numbers.
    labels : int
        Largest number of labels. Large models take fewer.

    Returns
    -------
    evidence : Evidence
        Precisions and gains by layer and irrep, and those of the group `STRICT`.
    noise : dict of str to float
        Variance of the noise of each quantity that was used.
    """
    free = [p for group in groups.values() for p in group]
    excluded = {id(p) for p in free} | gates(model)
    strict = [p for p in model.parameters() if id(p) not in excluded]
    labels = max(MIN_LABELS, min(labels, _MAX_DERIVATIVES // sum(p.numel() for p in (*free, *strict))))
    model = model.plain()  # a compiled program can be differentiated only once
    chosen, kinds, residuals = [], [], []
    free_rows: list[Tensor] = []
    strict_rows: list[Tensor] = []
    with _differentiable([*free, *strict]):
        for k, numbers in _numbers_of_labels(graphs, loss, generator, labels).items():
            errors, kind = _errors(model, graphs[k], loss)
            known = _drawn(errors, kind, numbers, generator)
            chosen.append((graphs[k], known.tolist()))
            free_rows += _derivatives(errors, known.tolist(), free)
            kinds.append(kind[known])
            residuals.append(-errors.detach()[known.to(errors.device)].double().cpu())
        with zeroed(free):
            for graph, components in chosen:
                strict_rows += _derivatives(_errors(model, graph, loss)[0], components, strict)
    target = torch.cat(residuals)  # y - f(w)
    grams = {STRICT: _gram(torch.stack(strict_rows))} if strict else {}
    sizes = [sum(p.numel() for p in group) for group in groups.values()]
    for (name, group), jacobian in zip(groups.items(), torch.stack(free_rows).split(sizes, dim=1)):
        grams[name] = _gram(jacobian)
        weights = torch.cat([p.detach().reshape(p.numel()) for p in group])
        target = target + (jacobian.double() @ weights.double()).cpu()  # + J_g w_g
    used, kind = torch.cat(kinds).unique(return_inverse=True)
    found = maximum_evidence(target, grams, kinds=kind, keep=[STRICT] if strict else [])
    names = list(loss.weights)
    return found, dict(zip((names[q] for q in used.tolist()), found.noise))


def warn_of_left_out(loss: Objective, noise: Mapping[str, float], stacklevel: int) -> None:
    """Warn (TrainingWarning) of quantities that have too few labels for the evidence."""
    missing = [name for name in loss.weights if name not in noise]
    if missing:
        warnings.warn(
            f"evidence: fewer than {TOO_FEW} labels of {', '.join(missing)}, too few to estimate the noise; "
            f"the evidence is that of {', '.join(noise)} alone",
            TrainingWarning,
            stacklevel=stacklevel,
        )


def _numbers_of_labels(
    graphs: Sequence[Graph], loss: Objective, generator: torch.Generator, labels: int
) -> dict[int, dict[int, int]]:
    """The structures that are used, in random order, and how many labels of each quantity.

    As {structure: {quantity: number}}.
    """
    counts = torch.stack([loss.known(graph) for graph in graphs]).T.tolist()  # by quantity
    order = torch.randperm(len(graphs), generator=generator).tolist()
    numbers: dict[int, dict[int, int]] = {}
    for q, left in enumerate(_quotas([sum(row) for row in counts], labels)):
        with_labels = [k for k in order if counts[q][k]][:left]
        for place, k in enumerate(with_labels):
            number = min(counts[q][k], -(-left // (len(with_labels) - place)))
            numbers.setdefault(k, {})[q] = number
            left -= number
    return {k: numbers[k] for k in order if k in numbers}


def _quotas(known: Sequence[int], labels: int) -> list[int]:
    """Number of labels that are drawn of each quantity, from the number of known ones."""
    fewest = min(TOO_FEW, max(known))
    known = [n if n >= max(fewest, 1) else 0 for n in known]
    first = [min(n, MIN_LABELS, labels // sum(m > 0 for m in known)) for n in known]
    remaining, more = labels - sum(first), max(sum(known) - sum(first), 1)
    return [min(n, f + remaining * (n - f) // more) for n, f in zip(known, first)]


def _drawn(
    errors: Float[Tensor, "C"], kind: Int[Tensor, "C"], numbers: Mapping[int, int], generator: torch.Generator
) -> Int[Tensor, "c"]:
    """Indices of randomly drawn known components, so many of each quantity."""
    known = []
    for q, number in numbers.items():
        own = ((kind == q) & ~torch.isnan(errors.detach()).cpu()).nonzero()[:, 0]
        known.append(own[torch.randperm(len(own), generator=generator)[:number]])
    return torch.cat(known)


def _errors(
    model: Model | Ensemble, graph: Graph, loss: Objective
) -> tuple[Float[Tensor, "C"], Int[Tensor, "C"]]:
    """Errors of all components as in the loss, NaN without label, and the number of the quantity of each."""
    graph = graph.to(model.device)
    out = model(graph, create_graph=True)
    errors = []
    for name in loss.weights:
        error = out[name] - graph.targets[name].to(out[name])
        error = error / graph.counts if per_atom(loss.quantities[name]) else error
        errors.append(error.reshape(error.numel()))
    return torch.cat(errors), torch.cat([torch.full(e.shape, q) for q, e in enumerate(errors)])


def _derivatives(
    values: Float[Tensor, "C"], components: Sequence[int], parameters: Sequence[nn.Parameter]
) -> list[Float[Tensor, "P"]]:
    """Derivatives of some components by all parameters: rows of the Jacobian."""
    rows = []
    for i in components:
        slopes = torch.autograd.grad(values[i], parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([s.detach().reshape(s.numel()) for s in slopes]))
    return rows


def _gram(jacobian: Float[Tensor, "n P"]) -> Float[Tensor, "n n"]:
    """J Jᵀ in float64, a block of columns at a time."""
    n = len(jacobian)
    total = torch.zeros(n, n, dtype=torch.float64, device=jacobian.device)
    for block in jacobian.split(65_536, dim=1):
        total += block.double() @ block.double().T
    return total.cpu()


@contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Switch on gradients of all parameters; those of a model with averaged weights have none."""
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for p, required in zip(parameters, before):
            p.requires_grad_(required)
