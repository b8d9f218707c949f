"""Penalties R_s of the equivariance regularizer on a batch, see `molequi.approximate.regularizers`."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.approximate.scales import squared_errors
from molequi.approximate.transforms import Key, RandomTransforms
from molequi.data.dataset import Dataset
from molequi.graph import Graph, collate
from molequi.losses import Objective
from molequi.model import Model
from molequi.nn.relaxed import relaxed_layers
from molequi.quantities import Quantity

Form = Literal["functional", "anchored", "lie", "weights"]
# h of the central difference, in radians and in units of `shift`. The relative error of the derivative is
# then about 1e-5 by round-off in float32, and 2e-5 by the third derivative.
STEP = 0.01
# Relative to the RMS of the outputs, in float64. A model with smaller errors has the symmetry exactly.
EXACT = 1e-10
_NOISE = 0.1  # relative noise on the weights of the model when exact symmetries are measured


@dataclass(frozen=True)
class EquivariancePenalty:
    """R_s of a batch, as sums and numbers of components, which can be added over batches and devices.

    Parameters
    ----------
    form : {"functional", "anchored", "lie", "weights"}
        The form of R_s. "weights" is evaluated in the functional form here, for validation.
    transforms : RandomTransforms
        Random elements of the group.
    objective : Objective
        The loss of the task without the user's own functions. Its quantities count.
    scales : mapping of str to float
        Scale of each quantity.
    share : (int, int)
        Rank of this device and number of devices.
    """

    form: Form
    transforms: RandomTransforms
    objective: Objective
    scales: Mapping[str, float]
    share: tuple[int, int] = (0, 1)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """The quantities of the loss by name."""
        return {name: self.objective.quantities[name] for name in self.objective.weights}

    def sums(
        self,
        symmetry: str,
        model: Model,
        graph: Graph,
        out: Mapping[str, Tensor],
        counts: Sequence[int],
        key: Key,
    ) -> Float[Tensor, "2 Q"]:
        """Sums over the components of each quantity, and their numbers, float64.

        Parameters
        ----------
        symmetry : str
            The symmetry s.
        model : Model
            The model f.
        graph : Graph
            This device's part of the batch.
        out : mapping of str to Tensor
            f(x).
        counts : sequence of int
            Number of nodes of each structure of the whole batch.
        key : tuple of str and int
            Which random elements are drawn.
        """
        if self.form == "lie":
            return self._lie(symmetry, model, graph, counts, key)
        g = self.transforms(symmetry, counts, key, self.share).to(model.device)
        image = g.graph(graph, self.quantities)  # gx, with labels ρ(g) y
        found = model(image)  # f(gx)
        if self.form == "anchored":
            return torch.stack([self.objective.sums(found, image), self.objective.known(image).double()])
        wanted = {name: g.value(q, out[name], graph) for name, q in self.quantities.items()}  # ρ(g) f(x)
        return torch.stack(squared_errors(self.quantities, found, wanted, self.scales, graph))

    def _lie(
        self, symmetry: str, model: Model, graph: Graph, counts: Sequence[int], key: Key
    ) -> Float[Tensor, "2 Q"]:
        """``|L f|²`` along a random generator ξ, times the number of generators, by a central difference.

        ρ(e^-hξ) f(e^hξ x) - ρ(e^hξ) f(e^-hξ x) = 2h L f + O(h³), and exactly zero for an equivariant f.
        """
        forward, backward, dimension = self.transforms.generators(symmetry, counts, key, STEP, self.share)
        forward, backward = forward.to(model.device), backward.to(model.device)
        ahead, behind = model(forward.graph(graph, {})), model(backward.graph(graph, {}))
        found = {name: backward.value(q, ahead[name], graph) for name, q in self.quantities.items()}
        wanted = {name: forward.value(q, behind[name], graph) for name, q in self.quantities.items()}
        sums, known = squared_errors(self.quantities, found, wanted, self.scales, graph)
        return torch.stack([sums * (dimension / (2 * STEP) ** 2), known])

    def mean(self, sums: Float[Tensor, "S 2 Q"]) -> Float[Tensor, "S"]:
        """R_s of each symmetry from its sums and numbers of components."""
        if self.form == "anchored":
            return torch.stack([self.objective.total(*one) for one in sums])
        return (sums[:, 0] / sums[:, 1].clamp(min=1)).mean(1)


def squared_free_weights(model: Model) -> Float[Tensor, ""]:
    """``Σ |(1 - P) W|²``: the squared weights of the free paths of all relaxed layers, gates included.

    The part of the free weights that a layer projects away counts too. It has no effect on the outputs and
    only decays to zero.
    """
    squared = [
        (layer.free * p).double().square().sum()
        for _, layer in relaxed_layers(model)
        for group in layer.free_groups().values()
        for p in group
    ]
    return torch.stack(squared).sum()


def exact_symmetries(
    symmetries: Iterable[str], model: Model, data: Dataset, transforms: RandomTransforms, objective: Objective
) -> list[str]:
    """The symmetries that a model has exactly, whatever its weights are.

    They are measured on the four largest structures, in float64, for a copy of the model with noise on its
    weights.

    Parameters
    ----------
    symmetries : iterable of str
        The symmetries that are measured.
    model : Model
        The model, which is not changed.
    data : Dataset
        Structures with edges.
    transforms : RandomTransforms
        Random elements of the group.
    objective : Objective
        The loss, whose quantities count.
    """
    twin = copy.deepcopy(model).to(torch.float64).eval()
    twin.use_program(None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in twin.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            p.add_(_NOISE * (p.square().mean().sqrt() + _NOISE) * noise)
    unscaled = dict.fromkeys(objective.weights, 1.0)
    penalty = EquivariancePenalty("functional", transforms, objective, unscaled)
    graphs = sorted(data, key=lambda g: -g.num_nodes)[:4]
    graph = collate(graphs).replace(targets={}).to(model.device)
    out = twin(graph)
    counts = [g.num_nodes for g in graphs]
    squares = [out[name].double().nan_to_num(0.0).square().mean() for name in objective.weights]
    limit = EXACT**2 * float(torch.stack(squares).mean())
    names = list(symmetries)
    sums = torch.stack([penalty.sums(s, twin, graph, out, counts, ("valid", 0)) for s in names])
    return [s for s, value in zip(names, penalty.mean(sums).tolist()) if value <= limit]
