"""Errors and predictions of a trained model, in batches."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molequi.checkpoint import as_device, load
from molequi.data.batches import Batches, Loader
from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.graph import Graph
from molequi.inference.metrics import Errors, Metrics
from molequi.model import Model
from molequi.quantities import KNOWN
from molequi.readers import load_dataset, to_atoms
from molequi.readers.load import reader_of
from molequi.readers.molecules import read_sdf, read_smiles
from molequi.util.files import write_atomically

Trained = Model | Ensemble | str | os.PathLike
EDGES = 20_000  # of a batch without gradients of the weights


def evaluate(
    model: Trained,
    data: Any,
    *,
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    device: str | torch.device | None = None,
    batch_edges: int | None = None,
    fabric=None,
    **options,
) -> Errors:
    """Errors of all quantities that the model predicts and the data have labels of.

    model: a Model or its file. data: a Dataset, or a file or list that `molequi.load_dataset` reads with `keys`, `units`,
    `partial` and other options of its reader; labels of what the model does not predict are not read, and charge and spin only for
    a model that takes them. Of molecules every conformer counts. device: where, by default where the model is. fabric: shares the
    work among its devices. Raises ConfigError if there is nothing to compare.
    """
    model, data = with_labels(model, data, keys=keys, units=units, partial=partial, device=device, **options)
    data = data.connected(model.cutoff, k=model.k)
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
        metrics.sums = {
            name: fabric.all_reduce(sums.clone(), reduce_op="sum") for name, sums in metrics.sums.items()
        }
    return metrics.errors()


def with_labels(
    model: Trained,
    data: Any,
    *,
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    device: str | torch.device | None = None,
    **options,
) -> tuple[Model | Ensemble, Dataset]:
    """The model, and the data with labels of what it predicts; as of `evaluate`."""
    model = _model(model, device)
    if reader_of(data)[0] is not None:
        options["quantities"] = _asked(keys, model)
    return model, load_dataset(
        data, only=(*model.quantities, *taken(model)), keys=keys, units=units, partial=partial, **options
    )


def predict(
    model: Trained,
    structures: Any,
    *,
    out: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    **options,
) -> list[dict[str, np.ndarray]]:
    """Predictions for each structure, by name of the quantity, in eV and Å; stress as (3, 3), positive under tension.

    Of classes the name of the likeliest, and in `<name>_probability` the probability of each, in the order of `Quantity.classes`.

    model: a Model or its file. structures: whatever `molequi.load_dataset` takes: a Dataset, ase.Atoms or Graphs or lists of
    them, files, a list of SMILES. Labels are not read; options are those of the reader.
    SMILES, SDF and MOL files give one result a molecule; options are those of `molequi.inference.molecule_tables`: with `conformers=5`
    numbers are means over conformers, beside them `<name>_spread` is their standard deviation (NaN for a single conformer), and
    vectors and tensors, which turn with the geometry, have a row for each conformer. With skip=True the result of a molecule that
    cannot be used is empty.
    out: an extended XYZ file (.xyz, .extxyz) for structures with predictions and their columns of `info`; it appears whole or not
    at all. For molecules a table (.csv), see `molequi.inference.molecule_tables`.
    Raises ModelError for elements that the model does not know, DataError for structures that cannot be.
    """
    reader, _ = reader_of(structures)
    if out is not None:
        _check_target(Path(out), structures, reader in (read_smiles, read_sdf))
    model = _model(model, device)
    if reader in (read_smiles, read_sdf):
        from molequi.inference.molecule_tables import predict_molecules

        results = predict_molecules(
            model, structures, out=out, batch_edges=batch_edges, progress=progress, **options
        )
        return [with_classes(result, model) for result in results]
    data = load_dataset(structures, only=taken(model), **options)
    results = [with_classes(result, model) for result in predictions(model, data, batch_edges, progress)]
    if out is not None:
        write_atomically(Path(out), lambda path: append_structures(path, data, results, model))
    return results


def predictions(
    model: Model, data: Dataset, batch_edges: int | None = None, progress: bool = True
) -> list[dict[str, np.ndarray]]:
    """The quantities of the model for every structure, of an ensemble their spreads too."""
    from tqdm import tqdm

    data = data.connected(model.cutoff, k=model.k)
    results: list[dict[str, np.ndarray]] = [{} for _ in range(len(data))]
    with tqdm(
        total=len(data),
        desc="predict",
        unit="structure",
        delay=2,
        leave=False,
        disable=None if progress else True,
    ) as bar:
        for batch, graph, values in _batches(model, data, (), batch_edges):
            ends = np.cumsum(graph.counts.cpu().numpy())
            for name, quantity in model.outputs.items():
                array = values[name].cpu().numpy()
                pieces = np.split(array, ends[:-1]) if quantity.per == "node" else array
                for k, piece in zip(batch, pieces):
                    results[k][name] = np.array(piece)
            bar.update(len(batch))
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


def _batches(
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


def _model(model: Trained, device: str | torch.device | None) -> Model:
    if isinstance(model, (Model, Ensemble)):
        return model if device is None else model.to(as_device(device))
    return load(model, device=device or "cpu")


def taken(model: Model) -> tuple[str, ...]:
    """Which of charge and spin the backbone takes; one from elsewhere may take both."""
    return tuple(name for name in ("charge", "spin") if model.backbone.hparams.get(name, True))


def _asked(keys: Mapping | None, model: Model) -> list:
    """Quantities that are no known ones must be asked for, and then all: those that `keys` names, or all of a model that has only such."""
    keys = keys or {}
    named = [q for name, q in model.quantities.items() if keys.get(name) is not None]
    if not any(q.name in KNOWN for q in model.quantities.values()):
        return named or list(model.quantities.values())
    return named if any(q.name not in KNOWN for q in named) else []


def _check_target(path: Path, structures: Any, molecules: bool) -> None:
    """Before any work: predictions are extended XYZ, and never take the place of the structures they are for."""
    if path.suffix not in (".xyz", ".extxyz") and not (molecules and path.suffix == ".csv"):
        table = ", or, for molecules, in .csv" if not molecules else " or .csv"
        raise ConfigError(
            f"out={path}: predictions are written as extended XYZ; wanted a name that ends in .xyz or .extxyz{table}"
        )
    if (
        isinstance(structures, (str, os.PathLike))
        and path.exists()
        and Path(structures).exists()
        and path.samefile(structures)
    ):
        raise ConfigError(
            f"out={path}: this is the file of the structures, whose labels would be lost; choose another name"
        )


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
