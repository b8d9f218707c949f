"""Predictions of a trained model in batches: what `evaluate`, `predict` and tables of molecules share."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from molequi.checkpoint import load
from molequi.data.batches import Batches, Loader, connected_blocks
from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ModelError
from molequi.graph import Graph
from molequi.levels import check_single
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


@dataclass(frozen=True, eq=False)
class Results(Sequence[dict[str, np.ndarray]]):
    """Predictions of several structures as joined arrays; ``results[3]`` is a dictionary of views of them.

    Parameters
    ----------
    values : mapping of str to array
        One row per structure or, of the names `per_node`, one row per node.
    counts : array of int, shape (structures,)
        Number of nodes of each structure.
    per_node : frozenset of str
        Names of quantities of nodes.

    Examples
    --------
    >>> two = Results({"q": np.array([0.1, -0.1, 0.0])}, np.array([2, 1]), frozenset(["q"]))
    >>> len(two), two[0]["q"].tolist()
    (2, [0.1, -0.1])
    """

    values: Mapping[str, np.ndarray]
    counts: np.ndarray
    per_node: frozenset[str]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, np.ndarray]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        k = range(len(self))[index]
        stop = int(self._ends[k])
        nodes = slice(stop - int(self.counts[k]), stop)
        # A name of a class is a text, and a number an array without axes.
        row = {name: k if array.dtype.kind == "U" else (k, ...) for name, array in self.values.items()}
        return {n: a[nodes] if n in self.per_node else a[row[n]] for n, a in self.values.items()}


class CollectedResults:
    """The results of all structures, to which blocks are added; memory is that of the numbers.

    Parameters
    ----------
    data : Dataset
        All structures.
    """

    def __init__(self, data: Dataset) -> None:
        self.counts = data.counts
        self.nodes = self.structures = 0
        self.values: dict[str, np.ndarray] = {}
        self.per_node: frozenset[str] = frozenset()

    def add(self, block: Results) -> None:
        """Copy the results of the next structures.

        Parameters
        ----------
        block : Results
            Their results.
        """
        self.per_node = block.per_node
        for name, array in block.values.items():
            node = name in block.per_node
            if name not in self.values:
                rows = int(self.counts.sum()) if node else len(self.counts)
                self.values[name] = np.empty((rows, *array.shape[1:]), array.dtype)
            start = self.nodes if node else self.structures
            self.values[name][start : start + len(array)] = array
        self.nodes += int(block.counts.sum())
        self.structures += len(block)

    def results(self) -> Results:
        """What was collected."""
        return Results(self.values, self.counts, self.per_node)


class Predictions(Sequence[dict[str, np.ndarray]]):
    """A sequence with a dictionary for each structure.

    Parameters
    ----------
    results : sequence of dict of str to array
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

    def __init__(self, results: Sequence[dict[str, np.ndarray]], model: Model | Ensemble) -> None:
        self._results = results
        self.units = {name: q.unit for name, q in model.outputs.items()}
        for name in model.quantities:
            for made in (f"{name}_{what}" for what in ("conformer_std", "low", "high")):
                if any(made in result for result in self[:1]):
                    self.units[made] = self.units[name]
        self.calibration = dict(model.scales) if isinstance(model, Ensemble) else {}

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, np.ndarray]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, np.ndarray] | Sequence[dict[str, np.ndarray]]:
        return self._results[index]

    def __repr__(self) -> str:
        names = dict.fromkeys(name for result in self[:_SHOWN] for name in result)
        return f"Predictions({len(self)} structures: {', '.join(names)})"

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
        For anything else, for a device that this machine does not have, and for a model of several levels of
        theory.
    """
    if isinstance(model, (str, os.PathLike)):
        model = load(model, device="auto" if device is None else device, dtype=dtype)
        check_single(model)
        return model
    if not isinstance(model, (Model, Ensemble)):
        raise ModelError(f"wanted a Model, an Ensemble or the path of its file, found {type(model).__name__}")
    check_single(model)
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
    return [result for _, found in predicted_blocks(model, data, batch_edges, progress) for result in found]


def predicted_blocks(
    model: Model | Ensemble, data: Dataset, batch_edges: int | None = None, progress: bool = True
) -> Iterator[tuple[Dataset, Results]]:
    """The same for one block of structures after the other, so that memory does not grow with their number.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    data : Dataset
        The structures.
    batch_edges : int, optional
        Largest number of edges in a batch.
    progress : bool
        Show a progress bar.

    Yields
    ------
    Dataset
        The structures of the block.
    Results
        All outputs of the model for them, classes as scores.
    """
    per_node = frozenset(name for name, q in model.outputs.items() if q.per == "node")
    with (
        _evaluated(model, data),
        ProgressBar("predict", len(data), unit="structure", show=progress, delay=2) as bar,
    ):
        for block in connected_blocks(data, model.cutoff, model.k, progress=progress):
            pieces: dict[str, list[np.ndarray]] = {name: [] for name in model.outputs}
            for batch, graph in _batches(model, block, (), batch_edges, (0, 1)):
                values = model(graph)
                for name, found in pieces.items():
                    found.append(values[name].cpu().numpy())
                bar.advance(len(batch))
            joined = {name: np.concatenate(found) for name, found in pieces.items()}
            yield block, Results(joined, block.counts, per_node)


def with_classes(result: dict[str, np.ndarray], model: Model | Ensemble) -> dict[str, np.ndarray]:
    """A result of `predictions` with names and probabilities of classes in place of scores."""
    out = dict(result)
    for name, quantity in model.quantities.items():
        if quantity.classes and name in result:
            score = torch.as_tensor(result[name], dtype=torch.float64)
            out[name] = np.array(quantity.classes)[score.argmax(-1).numpy()]
            out[f"{name}_probability"] = torch.softmax(score, -1).numpy()
    return out


def with_classes_of_all(results: Results, model: Model | Ensemble) -> Results:
    """The same for several structures.

    Parameters
    ----------
    results : Results
        Results with scores.
    model : Model or Ensemble
        The model.
    """
    of_nodes = {f"{name}_probability" for name in results.per_node}
    return Results(with_classes(dict(results.values), model), results.counts, results.per_node | of_nodes)


def predicted_batches(
    model: Model | Ensemble,
    data: Dataset,
    names: Sequence[str],
    limit: int | None,
    share: tuple[int, int] = (0, 1),
    *,
    progress: bool = False,
) -> Iterator[tuple[list[int], Graph, dict[str, Tensor]]]:
    """Numbers of the structures of each batch, the batch, and the outputs, without gradients of the weights.

    Parameters
    ----------
    model, data, names, limit, share, progress
        As in `evaluation_batches`.

    Raises
    ------
    ModelError
        For the first structure with elements that the model does not know, before any prediction.
    """
    for batch, graph in evaluation_batches(model, data, names, limit, share, progress=progress):
        yield batch, graph, model(graph)


def evaluation_batches(
    model: Model | Ensemble,
    data: Dataset,
    names: Sequence[str],
    limit: int | None,
    share: tuple[int, int] = (0, 1),
    *,
    progress: bool = False,
) -> Iterator[tuple[list[int], Graph]]:
    """Numbers of the structures of each batch, in their order, and the batch on the device of the model.

    While a batch is used, the model is in evaluation mode and gradients of the weights are off.

    Parameters
    ----------
    model : Model or Ensemble
        The model; its mode (training or evaluation) is restored afterwards.
    data : Dataset
        The structures. Neighbor lists that they lack are searched, block by block.
    names : sequence of str
        Targets that the batches keep.
    limit : int or None
        Largest number of edges in a batch.
    share : (int, int)
        Rank of this device and number of devices; this one gets its part of each batch.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ModelError
        For the first structure with elements that the model does not know, before any batch.
    """
    begin = 0
    with (
        _evaluated(model, data),
        ProgressBar("evaluate", len(data), unit="structure", show=progress, delay=2) as bar,
    ):
        for block in connected_blocks(data, model.cutoff, model.k, progress=progress):
            for batch, graph in _batches(model, block, names, limit, share):
                yield [begin + k for k in batch], graph
                bar.advance(len(batch))
            begin += len(block)


@contextmanager
def _evaluated(model: Model | Ensemble, data: Dataset) -> Iterator[None]:
    """The model in evaluation mode, if it knows all elements."""
    check_elements(model, data)
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _batches(
    model: Model | Ensemble, data: Dataset, names: Sequence[str], limit: int | None, share: tuple[int, int]
) -> Iterator[tuple[list[int], Graph]]:
    """The batches of one block, in its order."""
    largest = int(data.graphs.edge_counts.max())
    batches = Batches(data, batch_edges=max(limit or EDGES, largest, 1), shuffle=False).epoch(0)
    for batch, graph in Loader(data, names, share=share)(batches):
        if graph is not None:
            with torch.no_grad():
                yield batch, graph.to(model.device)


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
