"""Training of a model with a dispersion correction: the network learns the rest of the labels."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from molequi.data.dataset import Dataset
from molequi.finetuning.dispersion import learnt_labels
from molequi.model import Model
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
    parts = {name: learnt_labels(model, part) for name, part in data.items()}
    log(f"dispersion: {dispersion.words}")
    model.add_dispersion(False)
    try:
        yield parts
    finally:
        model.add_dispersion(True)
