"""Errors of single structures."""

import torch

from molequi.data.dataset import Dataset
from molequi.inference.predictions import predicted_batches
from molequi.model import Model
from molequi.quantities import per_atom


def structure_errors(model: Model, data: Dataset, quantity: str) -> list[list[float]]:
    """For each structure the sum of the absolute errors of a quantity, and how many there are.

    The sum of the first column over that of the second is the mean absolute error of `molequi.evaluate`: of
    extensive scalars per atom, of classes the share of wrong answers.

    Parameters
    ----------
    model : Model
        The model.
    data : Dataset
        The structures with labels.
    quantity : str
        Name of the quantity.

    Returns
    -------
    list of (float, float)
        One for each structure; NaN where a prediction is not finite.
    """
    q = model.quantities[quantity]
    rows: dict[int, list[float]] = {}
    for batch, graph, out in predicted_batches(model, data, [quantity], None):
        target, value = graph.targets[quantity], out[quantity].detach().double()
        known = ~torch.isnan(target)
        if q.classes:
            error = (value.argmax(-1) != target.nan_to_num(0).long()).double()
            error = torch.where(value.isfinite().all(-1), error, torch.nan)  # no answer is no wrong one
        else:
            error = (value - target).abs()
            if per_atom(q):
                error = error / graph.counts
        table = torch.stack([torch.where(known, error, 0.0), known.double()], -1)
        table = table.reshape(len(target), -1, 2).sum(1)
        if q.per == "node":
            table = table.new_zeros(graph.num_graphs, 2).index_add_(0, graph.batch, table)
        rows |= dict(zip(batch, table.tolist()))
    return [rows[k] for k in sorted(rows)]
