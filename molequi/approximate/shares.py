"""How much each free path of a relaxed network contributes to its outputs."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from molequi.approximate.free_paths import zeroed
from molequi.approximate.scales import squared_errors, variation
from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.graph import Graph, collate
from molequi.losses import Objective
from molequi.model import Model
from molequi.nn.relaxed import free_groups
from molequi.output_scales import output_scale
from molequi.quantities import Quantity

_BATCH = 32


def output_shares(
    model: Model | Ensemble, graphs: Sequence[Graph], loss: Objective, train: Dataset, limit: int = 256
) -> tuple[dict[str, float], float]:
    """Share of each free path in the outputs, and of all free paths together.

    The share of a path is the mean square by which an output changes without the path, divided by the squared
    `variation` of the output on the training data. It is the largest over the quantities of the loss. Because
    of this scale a share depends neither on the atomic reference energies nor on the origin, and a single
    structure in `graphs` is enough.

    Parameters
    ----------
    model : Model or Ensemble
        A relaxed model in evaluation mode.
    graphs : sequence of Graph
        Structures with edges, on which the outputs are compared.
    loss : Objective
        The loss, whose quantities count.
    train : Dataset
        Training data with edges, for the scales.
    limit : int
        Largest number of structures of `graphs`, and of `train`, that are used.

    Returns
    -------
    shares : dict of str to float
        By layer and irrep. NaN if no output varies on the training data, but zero if the outputs do not
        change without the path.
    total : float
        The share of all paths together.
    """
    groups = free_groups(model)
    quantities = {name: loss.quantities[name] for name in loss.weights}
    unscaled = dict.fromkeys(quantities, 1.0)
    model = model.plain()  # a compiled program would be compiled again for each path
    batches = _batches(model, [graphs[k] for k in _spaced(len(graphs), limit)])
    whole = [model(graph, create_graph=False) for graph in batches]
    squared_scales = _squared_scales(model, train[_spaced(len(train), limit)], quantities)

    def share(paths: Sequence[str]) -> float:
        with zeroed([p for name in paths for p in groups[name]]):
            without = [model(graph, create_graph=False) for graph in batches]
        sums = torch.zeros(2, len(quantities), dtype=torch.float64, device=model.device)
        for a, b, graph in zip(without, whole, batches):
            sums += torch.stack(squared_errors(quantities, a, b, unscaled, graph))
        found = [
            change / count / squared_scales[name] if change else 0.0
            for name, change, count in zip(quantities, *sums.tolist())
            if count
        ]
        return max((s for s in found if math.isfinite(s)), default=math.nan)

    return {name: share([name]) for name in groups}, share(list(groups))


def _squared_scales(
    model: Model | Ensemble, data: Dataset, quantities: Mapping[str, Quantity]
) -> dict[str, float]:
    """Squared variation of the outputs, for classes of log p; NaN for outputs that do not vary."""
    found: dict[str, list[Tensor]] = {name: [] for name in quantities}
    for graph in _batches(model, [graph.replace(targets={}) for graph in data]):
        out = model(graph, create_graph=False)
        for name in found:
            found[name].append(out[name].double().cpu())
    scales = {}
    for name, q in quantities.items():
        values = torch.cat(found[name])
        if q.classes:
            log_p = values.log_softmax(-1)
            scales[name] = float((log_p - log_p.mean(0)).square().mean()) or math.nan
        else:
            scales[name] = variation(q, values, data, output_scale(model, name)) ** 2 or math.nan
    return scales


def _batches(model: Model | Ensemble, graphs: Sequence[Graph]) -> list[Graph]:
    starts = range(0, len(graphs), _BATCH)
    return [collate(graphs[first : first + _BATCH]).to(model.device) for first in starts]


def _spaced(number: int, limit: int) -> list[int]:
    """At most `limit` of the indices up to `number`, evenly spaced."""
    return sorted({round(i) for i in torch.linspace(0, number - 1, min(limit, number)).tolist()})
