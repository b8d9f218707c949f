"""Errors and predictions of a trained model, in batches."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molequi.checkpoint import as_device, load
from molequi.data import from_atoms, read_ase, to_atoms
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataError
from molequi.files import write_atomically
from molequi.graph import Graph
from molequi.model import Model
from molequi.training.batches import Batches, Loader
from molequi.training.metrics import Errors, Metrics

Trained = Model | str | os.PathLike
EDGES = 20_000      # of a batch without gradients of the weights


def evaluate(
    model: Trained,
    data: Dataset | str | os.PathLike,
    *,
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    device: str | torch.device | None = None,
    batch_edges: int | None = None,
    fabric=None,
) -> Errors:
    """Errors of all quantities that the model predicts and the data have labels of.

    model: a Model or its file; data: a Dataset, or a file that `read_ase` reads with `keys` and `units`. device: where,
    by default where the model is. fabric: shares the work among its devices. Raises ConfigError if there is nothing to
    compare.
    """
    model = _model(model, device)
    if not isinstance(data, Dataset):
        data = read_ase(data, keys=keys, units=units, quantities=_asked(keys, model))
    elif keys or units:
        raise ConfigError("keys and units are for reading a file; these data have been read already")
    data = data.connected(model.cutoff)
    metrics = Metrics(model.quantities, data, model.device)
    if not metrics.quantities:
        raise ConfigError(
            f"the model predicts {', '.join(model.quantities)} and the data have labels of"
            f" {', '.join(data.quantities) or 'nothing'}; there is nothing to compare. Name labels with"
            " keys={'forces': 'REF_forces'}"
        )
    share = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    for _, graph, out in _batches(model, data, list(metrics.quantities), batch_edges, share):
        metrics.update(out, graph)
    if share[1] > 1:
        metrics.sums = {name: fabric.all_reduce(sums.clone(), reduce_op="sum") for name, sums in metrics.sums.items()}
    return metrics.errors()


def predict(
    model: Trained,
    structures: Any,
    *,
    out: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
) -> list[dict[str, np.ndarray]]:
    """Predictions for each structure, by name of the quantity, in eV and Å; stress as (3, 3), positive under tension.

    model: a Model or its file. structures: a Dataset, ase.Atoms or a list of them, or a file that ase.io reads (its
    labels are not read).
    out: an extended XYZ file (.xyz, .extxyz) for structures with predictions; it appears whole or not at all.
    Raises ModelError for elements that the model does not know, DataError for structures that cannot be.
    """
    if out is not None:
        _check_target(Path(out), structures)
    model = _model(model, device)
    data = _structures(structures).connected(model.cutoff)
    results: list[dict[str, np.ndarray]] = [{} for _ in range(len(data))]
    from tqdm import tqdm

    with tqdm(
        total=len(data), desc="predict", unit="structure", delay=2, leave=False, disable=None if progress else True
    ) as bar:
        for batch, graph, values in _batches(model, data, (), batch_edges):
            ends = np.cumsum(graph.counts.cpu().numpy())
            for name, quantity in model.quantities.items():
                array = values[name].cpu().numpy()
                pieces = np.split(array, ends[:-1]) if quantity.per == "node" else array
                for k, piece in zip(batch, pieces):
                    results[k][name] = np.array(piece)
            bar.update(len(batch))
    if out is not None:
        _write(Path(out), data, results, model)
    return results


def _batches(model: Model, data: Dataset, names: Sequence[str], limit: int | None,
             share: tuple[int, int] = (0, 1)) -> Iterator[tuple[list[int], Graph, dict[str, Tensor]]]:
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


def _model(model: Trained, device: str | torch.device | None) -> Model:
    if isinstance(model, Model):
        return model if device is None else model.to(as_device(device))
    return load(model, device=device or "cpu")


def _asked(keys: Mapping | None, model: Model) -> list:
    """Quantities of the model that ASE files are searched for: the named ones must be there, the known ones may."""
    own = [q for name, q in model.quantities.items() if name in (keys or {})]
    return own if any(q.name not in _known() for q in own) else []


def _known() -> Mapping:
    from molequi.quantities import KNOWN

    return KNOWN


def _structures(structures: Any) -> Dataset:
    if isinstance(structures, Dataset):
        return structures
    if isinstance(structures, (str, os.PathLike)):
        return read_ase(structures, keys=dict.fromkeys(_known()))
    if hasattr(structures, "get_positions"):
        structures = [structures]
    structures = list(structures)
    if not structures:
        raise DataError("no structures to predict for")
    return from_atoms(structures, keys=dict.fromkeys(_known()))


def _check_target(path: Path, structures: Any) -> None:
    """Before any work: predictions are extended XYZ, and never take the place of the structures they are for."""
    if path.suffix not in (".xyz", ".extxyz"):
        raise ConfigError(f"out={path}: predictions are written as extended XYZ; wanted a name that ends in .xyz or .extxyz")
    if isinstance(structures, (str, os.PathLike)) and path.exists() and path.samefile(structures):
        raise ConfigError(f"out={path}: this is the file of the structures, whose labels would be lost; choose another name")


def _write(path: Path, data: Dataset, results: Sequence[Mapping[str, np.ndarray]], model: Model) -> None:
    def write(temporary: Path) -> None:
        for graph, result in zip(data, results):
            to_atoms(graph, result, model.quantities).write(temporary, format="extxyz", append=True)

    write_atomically(path, write)
