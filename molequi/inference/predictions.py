"""Predictions of a trained model in batches: what `evaluate`, `predict` and tables of molecules share."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from molequi.checkpoint import load
from molequi.data.batches import Batches, Loader
from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.model import Model
from molequi.models.base import OTHER_ELEMENTS
from molequi.quantities import KNOWN, SYMBOLS
from molequi.readers import to_atoms
from molequi.util.devices import as_device, as_dtype
from molequi.util.html import html_table, html_text
from molequi.util.progress import ProgressBar

Trained = Model | Ensemble | str | os.PathLike
_SHOWN = 10  # structures, in a notebook
EDGES = 20_000  # in a batch, without gradients of the weights


class Predictions(list[dict[str, np.ndarray]]):
    """A list with a dictionary for each structure.

    Parameters
    ----------
    results : iterable of dict of str to array
        The predictions by name.
    model : Model or Ensemble
        The model that made them.

    Attributes
    ----------
    units : dict of str to str
        Unit of each quantity.
    calibration : dict of str to float
        The factors by which the standard deviations of an ensemble were multiplied; empty if there are none.
    """

    def __init__(self, results: Iterable[dict[str, np.ndarray]], model: Model | Ensemble) -> None:
        super().__init__(results)
        self.units = {name: q.unit for name, q in model.outputs.items()}
        for name in model.quantities:
            for made in (f"{name}_{what}" for what in ("conformer_std", "low", "high")):
                if any(made in result for result in self[:1]):
                    self.units[made] = self.units[name]
        self.calibration = dict(model.scales) if isinstance(model, Ensemble) else {}

    def _repr_html_(self) -> str:
        names = [*dict.fromkeys(name for result in self[:_SHOWN] for name in result)]
        head = ["", *(f"{name} ({self.units[name]})" if self.units.get(name) else name for name in names)]
        rows = [
            (str(k), *(_cell(result.get(name)) for name in names)) for k, result in enumerate(self[:_SHOWN])
        ]
        more = html_text(f"and {len(self) - _SHOWN} more structures") if len(self) > _SHOWN else ""
        return html_table(head, rows) + more


def _cell(value: np.ndarray | None) -> str:
    """A number or a text; of an array its shape."""
    if value is None:
        return ""
    found = np.asarray(value)
    if found.ndim:
        return f"array, {' × '.join(map(str, found.shape))}"
    return str(found) if found.dtype.kind == "U" else f"{float(found):.6g}"


def loaded(
    model: Trained, device: str | torch.device | None, dtype: torch.dtype | str | None = None
) -> Model | Ensemble:
    """The model, or that of a file, on a device and in a precision.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    device : str or torch.device, optional
        Where it runs; by default where it is, and a file on CUDA if there is one.
    dtype : torch.dtype or str, optional
        Its precision; by default the one that it has. A model of another precision is copied.

    Raises
    ------
    ModelError
        For anything else, and for a device that this machine does not have.
    """
    if isinstance(model, (str, os.PathLike)):
        return load(model, device="auto" if device is None else device, dtype=dtype)
    if not isinstance(model, (Model, Ensemble)):
        raise ModelError(f"wanted a Model, an Ensemble or the path of its file, found {type(model).__name__}")
    place = None if device is None else as_device(device)
    kind = None if dtype is None else as_dtype(dtype)
    if kind is not None and kind != next(model.parameters()).dtype:
        model = deepcopy(model).to(kind)
    return model if place is None else model.to(place)


def predictions(
    model: Model | Ensemble, data: Dataset, batch_edges: int | None = None, progress: bool = True
) -> list[dict[str, np.ndarray]]:
    """All outputs of the model for every structure, classes as scores; of an ensemble also standard
    deviations.
    """
    data = data.connected(model.cutoff, k=model.k, progress=progress)
    results: list[dict[str, np.ndarray]] = [{} for _ in range(len(data))]
    with ProgressBar("predict", len(data), unit="structure", show=progress, delay=2) as bar:
        for batch, graph, values in predicted_batches(model, data, (), batch_edges):
            ends = np.cumsum(graph.counts.cpu().numpy())
            for name, quantity in model.outputs.items():
                array = values[name].cpu().numpy()
                pieces = np.split(array, ends[:-1]) if quantity.per == "node" else array
                for k, piece in zip(batch, pieces):
                    results[k][name] = np.array(piece)
            bar.advance(len(batch))
    return results


def with_classes(result: dict[str, np.ndarray], model: Model | Ensemble) -> dict[str, np.ndarray]:
    """A result of `predictions` with names and probabilities of classes in place of scores."""
    out = dict(result)
    for name, quantity in model.quantities.items():
        if quantity.classes and name in result:
            score = torch.as_tensor(result[name], dtype=torch.float64)
            out[name] = np.array(quantity.classes)[score.argmax(-1).numpy()]
            out[f"{name}_probability"] = torch.softmax(score, -1).numpy()
    return out


def predicted_batches(
    model: Model | Ensemble,
    data: Dataset,
    names: Sequence[str],
    limit: int | None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[list[int], Graph, dict[str, Tensor]]]:
    """Numbers of the structures of each batch, the batch, and the outputs, without gradients of the weights.

    Parameters
    ----------
    model, data, names, limit, share
        As in `evaluation_batches`.

    Raises
    ------
    ModelError
        For the first structure with elements that the model does not know, before any prediction.
    """
    for batch, graph in evaluation_batches(model, data, names, limit, share):
        yield batch, graph, model(graph)


def evaluation_batches(
    model: Model | Ensemble,
    data: Dataset,
    names: Sequence[str],
    limit: int | None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[list[int], Graph]]:
    """Numbers of the structures of each batch, in their order, and the batch on the device of the model.

    While a batch is used, the model is in evaluation mode and gradients of the weights are off.

    Parameters
    ----------
    model : Model or Ensemble
        The model; its mode (training or evaluation) is restored afterwards.
    data : Dataset
        Structures with neighbor lists.
    names : sequence of str
        Targets that the batches keep.
    limit : int or None
        Largest number of edges in a batch.
    share : (int, int)
        Rank of this device and number of devices; this one gets its part of each batch.

    Raises
    ------
    ModelError
        For the first structure with elements that the model does not know, before any batch.
    """
    check_elements(model, data)
    largest = int(data.graphs.edge_counts.max())
    batches = Batches(data, batch_edges=max(limit or EDGES, largest, 1), shuffle=False).epoch(0)
    training = model.training
    model.eval()
    try:
        for batch, graph in Loader(data, names, share=share)(batches):
            if graph is not None:
                graph = graph.to(model.device)
                with torch.no_grad():
                    yield batch, graph
    finally:
        model.train(training)


def check_elements(model: Model | Ensemble, data: Dataset) -> None:
    """Check that the model knows all elements; the model itself knows only batches.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    data : Dataset
        The structures.

    Raises
    ------
    ModelError
        For the first structure with other elements.
    """
    unknown = set(data.elements) - set(model.elements)
    if not unknown or not model.elements:
        return
    where = [k for k, graph in enumerate(data) if unknown & set(graph.z.tolist())]
    z = data[where[0]].z.tolist()
    atom = next(i for i, number in enumerate(z) if number in unknown)
    others = ", ".join(SYMBOLS[n] for n in sorted(unknown - {z[atom]}))
    more = f", and {len(where)} of {len(data)} structures have such elements" if len(where) > 1 else ""
    raise ModelError(
        f"{data.origins[where[0]]}: atom {atom} is {SYMBOLS[z[atom]]}{more}"
        f"{f' (also {others})' if others else ''}; this model knows only "
        f"{', '.join(SYMBOLS[n] for n in model.elements)}; {OTHER_ELEMENTS}"
    )


def append_structures(
    path: Path, data: Dataset, results: Sequence[Mapping[str, np.ndarray]], model: Model | Ensemble
) -> None:
    """Append structures with predictions and columns of `info` to an extended XYZ file."""
    ends = {
        f"{name}_{end}": replace(q, name=f"{name}_{end}")
        for name, q in model.quantities.items()
        for end in ("low", "high")
        if any(f"{name}_{end}" in result for result in results)
    }
    labels = {*KNOWN, *model.outputs, *ends}
    for k, (graph, result) in enumerate(zip(data, results)):
        atoms = to_atoms(graph, result, model.outputs | ends)
        for name, column in data.info.items():
            value = column[k]
            # A column with the name of a label would pass for a prediction, and ASE cannot read an empty
            # text.
            if value in (None, "") or name in labels:
                continue
            if isinstance(value, str):
                # ASE writes a backslash as it is, and reads it as an escape.
                value = value.replace("\\", "\\\\")
            atoms.info.setdefault(name, value)
        atoms.write(path, format="extxyz", append=True)
