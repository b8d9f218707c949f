"""Scales of quantities, which make errors of different quantities comparable.

The scale of a quantity says by how much its values vary with the geometry: the standard deviation of scalars,
the root mean square of vectors and tensors. An error divided by it has no unit.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data.statistics import ROUND_OFF, compositions
from molequi.graph import Graph
from molequi.quantities import Quantity, per_atom

# Vectors and tensors that vanish by symmetry are this small, relative to usual ones, when they are computed.
_ROUND_OFF = 1e-12
# Residuals of the composition fit that are all smaller, relative to the largest value per atom, are zero.
_ZERO_RESIDUAL = 1e-11


def quantity_scales(quantities: Mapping[str, Quantity], data: Dataset) -> dict[str, float]:
    """The scale of each quantity from its labels; 1 for a quantity without labels.

    Parameters
    ----------
    quantities : mapping of str to Quantity
        Quantities by name.
    data : Dataset
        Structures with labels.

    Returns
    -------
    dict of str to float
        `quantity_scale` of the labels, in the unit of each quantity.
    """
    return {
        name: quantity_scale(q, data.values(name), data) if data.labelled(name) else 1.0
        for name, q in quantities.items()
    }


def quantity_scale(quantity: Quantity, values: Tensor, data: Dataset, usual: float = 0.0) -> float:
    """The scale of a quantity: its `variation`, or 1 if the values do not vary.

    If the composition alone explains all values of an extensive scalar (for instance if there are as many
    compositions as structures), the scale is the standard deviation of the values per atom.

    Parameters
    ----------
    quantity : Quantity
        The quantity. For classes the scale is 1.
    values : Tensor, shape (N, …) or (G, …)
        Its values for all structures of `data`; NaN where they are unknown.
    data : Dataset
        The structures.
    usual : float
        As in `variation`.

    Returns
    -------
    float
        Scale in the unit of the quantity, for extensive scalars per atom. Above zero.
    """
    if quantity.classes:
        return 1.0
    found = variation(quantity, values, data, usual)
    if found == 0 and per_atom(quantity):
        values = values / torch.tensor([g.num_nodes for g in data], dtype=values.dtype)
        values = values[torch.isfinite(values)]
        found = _deviation(values, float(values.abs().max())) if len(values) else 0.0
    return found if found > 0 else 1.0


def variation(quantity: Quantity, values: Tensor, data: Dataset, usual: float = 0.0) -> float:
    """By how much the values of a quantity vary with the geometry.

    This is the standard deviation of scalars and the root mean square of vectors and tensors. For extensive
    scalars the values per atom count, after a linear fit to the composition was subtracted. For points, such
    as positions, the distances count by which they move: from the position of the node, or from the centroid
    of the structure if there is one point for each structure.

    Parameters
    ----------
    quantity : Quantity
        The quantity; not one with classes.
    values : Tensor, shape (N, …) or (G, …)
        Its values for all structures of `data`; NaN where they are unknown.
    data : Dataset
        The structures.
    usual : float
        The size that such values usually have, for vectors and tensors that a model computed: what is
        1e-12 of it is round-off. 0 for labels, which have any size.

    Returns
    -------
    float
        In the unit of the quantity, for extensive scalars per atom. Zero if the values do not vary, or if
        none is known.
    """
    known = torch.isfinite(values)
    largest = float(values[known].abs().max()) if bool(known.any()) else 0.0
    if quantity.point:
        nodes = quantity.per == "node"
        origins = [g.pos for g in data] if nodes else [g.pos.mean(0)[None] for g in data]
        values = values - torch.cat(origins)
    elif per_atom(quantity):
        counts = torch.from_numpy(compositions(data.graphs.z.numpy(), data.counts, data.elements))[known]
        fitted = counts @ torch.linalg.lstsq(counts, values[known][:, None], driver="gelsd").solution
        largest = float((values[known] / counts.sum(1)).abs().max()) if len(counts) else 0.0
        values = (values[known] - fitted[:, 0]) / counts.sum(1)
        noise = bool((values.abs() <= _ZERO_RESIDUAL * largest).all())
        values = torch.zeros_like(values) if noise else values
    values = values[torch.isfinite(values)]
    if not len(values):
        return 0.0
    if not quantity.rank:
        return _deviation(values, largest)
    found = float(values.square().mean().sqrt())
    return found if found > _ROUND_OFF * usual else 0.0


def _deviation(values: Tensor, largest: float) -> float:
    """Standard deviation; zero if it is round-off of the largest value."""
    found = float(values.std(correction=0))
    return found if found > ROUND_OFF * largest else 0.0


def squared_errors(
    quantities: Mapping[str, Quantity],
    predictions: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    scales: Mapping[str, float],
    graph: Graph,
) -> tuple[Float[Tensor, "Q"], Float[Tensor, "Q"]]:
    """Sum of ((prediction - target) / scale)² over the known components of each quantity, and their number.

    Extensive scalars are compared per atom, classes by the logarithms of their probabilities.

    Parameters
    ----------
    quantities : mapping of str to Quantity
        The quantities that are compared.
    predictions, targets : mapping of str to Tensor
        Values by name, shape (N, …) or (G, …). A component that is NaN in one of them does not count.
    scales : mapping of str to float
        Scale of each quantity.
    graph : Graph
        The batch.

    Returns
    -------
    sums, counts : Tensor, shape (Q,), float64
        For each quantity, in the order of `quantities`.
    """
    sums, counts = [], []
    for name, q in quantities.items():
        a, b = predictions[name].double(), targets[name].double()
        if q.classes:
            a, b = a.log_softmax(-1), b.log_softmax(-1)
        unknown = torch.isnan(a) | torch.isnan(b)
        error = torch.where(unknown, 0.0, a - b) / scales[name]
        if per_atom(q):
            error = error / graph.counts
        sums.append(error.square().sum())
        counts.append((~unknown).sum().double())
    return torch.stack(sums), torch.stack(counts)
