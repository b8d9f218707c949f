"""Labels without the dispersion that a model adds, as its network learns them."""

import torch

from molequi.data.dataset import Dataset
from molequi.finetuning.energies import with_labels
from molequi.graph import Graph
from molequi.model import Model
from molequi.terms import add_dispersion, derivatives_of_energy


def learnt_labels(model: Model, data: Dataset) -> Dataset:
    """The same structures with the labels that the network of a model learns.

    Parameters
    ----------
    model : Model
        The model.
    data : Dataset
        Structures with labels.

    Returns
    -------
    Dataset
        Without the dispersion in the energy and in all its derivatives, if the model adds one and the labels
        have it; otherwise `data` itself.
    """
    dispersion = model.dispersion
    if dispersion is None or not dispersion.in_labels:
        return data
    declared = {q.name: q for q in derivatives_of_energy(model.quantities | data.quantities)}
    names = {"energy", *declared} & {*data.quantities}
    if not names:
        return data
    charges = model.backbone.reads("charge")

    def rest(graph: Graph) -> dict[str, torch.Tensor]:
        values = {"energy": graph.pos.new_zeros(1)} | {n: graph.targets[n] * 0 for n in names}
        found = add_dispersion(values, graph, dispersion, declared, charges=charges, create_graph=False)
        return {n: v - found[n].detach().to(v) if n in names else v for n, v in graph.targets.items()}

    found = with_labels(data, [rest(graph) for graph in data], data.quantities)
    found.parts_of = data.parts_of
    return found
