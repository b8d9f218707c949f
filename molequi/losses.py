"""The loss: a weighted sum over quantities, blind to labels that are not known."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from molequi.graph import Graph
from molequi.quantities import Quantity, per_atom

Kind = Literal["mse", "huber", "mae", "l2"]


class Loss:
    """L = Σ_q w_q · mean(ρ(error of q)), the mean over all components of the batch whose label is known (not NaN).

    The error of an extensive scalar such as the energy is taken per atom, so that large structures do not drown small
    ones; all others are taken as they are, component by component, in the units of molequi (forces: eV/Å; stress:
    eV/Å^3).
    ρ: "mse" e², "mae" |e|, "huber" e²/2 up to delta and delta (|e| - delta/2) beyond it; "l2" is the length of the error of a vector or
    tensor over the number of its known components, and |e| of a number: unlike "mae" it does not ask how the axes lie. For classes always
    the cross-entropy.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        quantities: Mapping[str, Quantity],
        kind: Kind = "mse",
        delta: float = 0.01,
    ):
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.quantities, self.kind, self.delta = quantities, kind, delta

    def known(self, graph: Graph) -> Tensor:
        """(Q,) number of known components of each quantity that has a weight."""
        return torch.stack([(~torch.isnan(graph.targets[name])).sum() for name in self.weights])

    def sums(self, out: Mapping[str, Tensor], graph: Graph) -> Tensor:
        """(Q,) sum of ρ over the known components of each quantity that has a weight, float64."""
        return torch.stack([self._sum(name, out[name], graph) for name in self.weights])

    def total(self, sums: Tensor, known: Tensor) -> Tensor:
        """The loss from `sums` and `known`, which may have been added up over batches or devices."""
        weights = sums.new_tensor(list(self.weights.values()))
        return (weights * sums / known.clamp(min=1)).sum()

    def _sum(self, name: str, value: Tensor, graph: Graph) -> Tensor:
        target = graph.targets[name]
        if self.quantities[name].classes:
            known = ~torch.isnan(target)
            return torch.nn.functional.cross_entropy(
                value.double()[known], target[known].long(), reduction="sum"
            )
        error = torch.where(torch.isnan(target), 0.0, value.double() - target)
        if per_atom(self.quantities[name]):
            error = error / graph.counts
        if self.kind == "mse":
            return error.square().sum()
        if self.kind == "l2" and self.quantities[name].rank:
            return torch.linalg.vector_norm(
                error, dim=tuple(range(error.ndim - self.quantities[name].rank, error.ndim))
            ).sum()
        if self.kind in ("mae", "l2"):
            return error.abs().sum()
        return torch.nn.functional.huber_loss(
            error, torch.zeros_like(error), delta=self.delta, reduction="sum"
        )
