"""Predictions of a trained model in batches: what `evaluate`, `predict` and tables of molecules share."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from molequi.checkpoint import as_device, load
from molequi.data.batches import Batches, Loader
from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.graph import Graph
from molequi.model import Model
from molequi.quantities import KNOWN
from molequi.readers import to_atoms
from molequi.util.progress import ProgressBar

Trained = Model | Ensemble | str | os.PathLike
EDGES = 20_000  # in a batch, without gradients of the weights


def loaded(model: Trained, device: str | torch.device | None) -> Model:
    if isinstance(model, (Model, Ensemble)):
        return model if device is None else model.to(as_device(device))
    return load(model, device=device or "cpu")


def totals_taken(model: Model) -> tuple[str, ...]:
    """Which of charge and spin the backbone takes; one from elsewhere may take both."""
    return tuple(name for name in ("charge", "spin") if model.backbone.reads(name))


def predictions(
    model: Model, data: Dataset, batch_edges: int | None = None, progress: bool = True
) -> list[dict[str, np.ndarray]]:
    """The quantities of the model for every structure, of an ensemble their spreads too."""
    data = data.connected(model.cutoff, k=model.k)
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


def with_classes(result: dict[str, np.ndarray], model: Model) -> dict[str, np.ndarray]:
    """A result of `predictions` with names and probabilities in place of scores."""
    out = dict(result)
    for name, quantity in model.quantities.items():
        if quantity.classes and name in result:
            score = torch.as_tensor(result[name], dtype=torch.float64)
            out[name] = np.array(quantity.classes)[score.argmax(-1).numpy()]
            out[f"{name}_probability"] = torch.softmax(score, -1).numpy()
    return out


def predicted_batches(
    model: Model, data: Dataset, names: Sequence[str], limit: int | None, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[list[int], Graph, dict[str, Tensor]]]:
    largest = max(graph.edge_index.shape[1] for graph in data)
    batches = Batches(data, batch_edges=max(limit or EDGES, largest, 1), shuffle=False).epoch(0)
    training = model.training
    model.eval()
    try:
        for batch, graph in Loader(data, names, share=share)(batches):
            if graph is not None:
                graph = graph.to(model.device)
                with torch.no_grad():
                    yield batch, graph, model(graph)
    finally:
        model.train(training)


def append_structures(
    path: Path, data: Dataset, results: Sequence[Mapping[str, np.ndarray]], model: Model
) -> None:
    """Structures with predictions and columns of `info`, as extended XYZ behind what the file has."""
    for k, (graph, result) in enumerate(zip(data, results)):
        atoms = to_atoms(graph, result, model.outputs)
        for (
            name,
            column,
        ) in data.info.items():  # what is a label by its name is not copied: it would pass for a prediction
            value = column[k]
            if isinstance(value, str):
                value = value.replace(
                    "\\", "\\\\"
                )  # ASE writes a backslash as it is and reads it as an escape
            if value not in (None, "") and name not in (
                *KNOWN,
                *model.outputs,
            ):  # and loses its way at an empty text
                atoms.info.setdefault(name, value)
        atoms.write(path, format="extxyz", append=True)
