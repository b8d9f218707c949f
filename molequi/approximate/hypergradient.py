"""Strengths of the penalties on free paths by the gradient of the validation loss.

A gradient step of length η on L + Σ_g λ_g ``|w_g|²`` changes w_g by -2 η λ_g w_g, besides the gradient of L.
So the validation loss after the step has the gradient -2 η λ_g ⟨∂L_valid/∂w_g, w_g⟩ in ln λ_g. This is the
hypergradient of one step (Luketina et al. 2016, arXiv 1511.06727). We use it normalised, as the cosine of the
angle between ∂L_valid/∂w_g and w_g: where it is positive, smaller free weights lower the validation loss, and
λ_g grows.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.graph import Graph, collate
from molequi.losses import Objective
from molequi.model import Model

_RATE = 1.0  # largest change of ln λ in one update
_BEGIN = 1e-3  # of the validation loss: the penalty λ_g |w_g|² at the first update
_CLOSED = 1e-8  # a path with a smaller share of the outputs is pruned
_TINY = 1e-12
_BATCH = 16


def updated_strengths(
    strengths: Mapping[str, float],
    groups: Mapping[str, Sequence[nn.Parameter]],
    slopes: Mapping[str, Tensor],
    loss: float,
    shares: Mapping[str, float],
) -> dict[str, float]:
    """λ_g after one step along the hypergradient.

    Parameters
    ----------
    strengths : mapping of str to float
        λ_g before; empty before the first update, infinite for pruned groups.
    groups : mapping of str to sequence of nn.Parameter
        Free weights w_g by layer and irrep.
    slopes : mapping of str to Tensor, shape (P,), float64
        ∂L_valid/∂w_g.
    loss : float
        L_valid.
    shares : mapping of str to float
        Share of each path in the outputs, as of `molequi.approximate.shares.output_shares`.

    Returns
    -------
    dict of str to float
        λ_g; infinite for a group that was pruned, or that has next to no share in the outputs.
    """
    updated = dict(strengths)
    for name, group in groups.items():
        pruned = math.isinf(strengths.get(name, 0.0))
        if pruned or (name in strengths and shares[name] <= _CLOSED):
            updated[name] = math.inf
            continue
        weights = _flat(group)
        if name in strengths:
            before = math.log(strengths[name])
        else:
            before = math.log(_BEGIN * max(loss, _TINY) / max(float(weights.square().sum()), _TINY))
        cosine = float(torch.nn.functional.cosine_similarity(weights, slopes[name], dim=0))
        updated[name] = math.exp(before + _RATE * cosine)
    return updated


def validation_slopes(
    model: Model,
    groups: Mapping[str, Sequence[nn.Parameter]],
    objective: Objective,
    graphs: Sequence[Graph],
) -> tuple[float, dict[str, Tensor]]:
    """The validation loss and its derivatives by the free weights.

    Parameters
    ----------
    model : Model
        The model in evaluation mode.
    groups : mapping of str to sequence of nn.Parameter
        Free weights w_g by layer and irrep.
    objective : Objective
        The loss.
    graphs : sequence of Graph
        Validation structures with edges and labels, on the device of the model.

    Returns
    -------
    loss : float
        L_valid.
    slopes : dict of str to Tensor, shape (P,), float64
        ∂L_valid/∂w_g of each group.
    """
    known = torch.stack([objective.known(graph) for graph in graphs]).sum(0)
    free = [p for group in groups.values() for p in group]
    totals = [torch.zeros_like(p) for p in free]
    loss = 0.0
    model = model.plain()  # a compiled program can be differentiated only once
    for first in range(0, len(graphs), _BATCH):
        batch = collate(graphs[first : first + _BATCH])
        value = objective.total(objective.sums(model(batch, create_graph=True), batch), known)
        loss += float(value.detach())
        for total, slope in zip(totals, torch.autograd.grad(value, free, materialize_grads=True)):
            total += slope
    by_parameter = {id(p): total for p, total in zip(free, totals)}
    return loss, {name: _flat([by_parameter[id(p)] for p in group]) for name, group in groups.items()}


def _flat(tensors: Sequence[Tensor]) -> Float[Tensor, "P"]:
    return torch.cat([t.detach().double().reshape(t.numel()) for t in tensors])
