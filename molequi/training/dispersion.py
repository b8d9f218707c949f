"""Training of a model with a dispersion correction: the network learns the rest of the labels."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from molequi.data.dataset import Dataset
from molequi.finetuning.energies import with_labels
from molequi.graph import Graph
from molequi.model import Model
from molequi.terms import Dispersion, add_dispersion, derivatives_of_energy
from molequi.util.run_log import log


@contextmanager
def without_dispersion(model: Model, data: Mapping[str, Dataset]) -> Iterator[dict[str, Dataset]]:
    """Inside, the model predicts without its dispersion, and labels that have it are without it, too.

    It is subtracted once from each structure, from the energy and from all derivatives of it that are labels.
    Files that are written inside say that the model adds it.

    Parameters
    ----------
    model : Model
        The model.
    data : mapping of str to Dataset
        The labelled parts.

    Yields
    ------
    dict of str to Dataset
        The parts with the labels that the network learns.
    """
    dispersion = model.dispersion
    if dispersion is None:
        yield dict(data)
        return
    parts = dict(data)
    if dispersion.in_labels:
        charges = model.backbone.reads("charge")
        parts = {name: _subtracted(part, dispersion, charges) for name, part in data.items()}
    log(f"dispersion: {dispersion.words}")
    model.add_dispersion(False)
    try:
        yield parts
    finally:
        model.add_dispersion(True)


def _subtracted(data: Dataset, dispersion: Dispersion, charges: bool) -> Dataset:
    """The same structures with labels without the dispersion."""
    names = {"energy", *(q.name for q in derivatives_of_energy(data.quantities))} & {*data.quantities}
    if not names:
        return data
    known = {name: data.quantities[name] for name in names}

    def rest(graph: Graph) -> dict[str, torch.Tensor]:
        values = {"energy": graph.pos.new_zeros(1)} | {n: graph.targets[n] * 0 for n in names}
        found = add_dispersion(values, graph, dispersion, known, charges=charges, create_graph=False)
        return {n: v - found[n].detach().to(v) if n in names else v for n, v in graph.targets.items()}

    found = with_labels(data, [rest(graph) for graph in data], data.quantities)
    found.parts_of = data.parts_of
    return found
