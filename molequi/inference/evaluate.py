"""Errors of a trained model on labelled data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch

from molequi.checkpoint import check_order
from molequi.data.checks import check_same_quantities
from molequi.data.dataset import Dataset
from molequi.data.indexing import evenly_spaced
from molequi.data.request import WhereFound
from molequi.domain import DomainCheck, read_as_trained, seen_in, totals_taken
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.inference.metrics import Errors, Metrics
from molequi.inference.molecule_predictions import column_of_table, column_of_training
from molequi.inference.predictions import Trained, loaded, predicted_batches
from molequi.levels import by_level, check_level_of
from molequi.model import Model
from molequi.quantities import KNOWN, Quantity
from molequi.readers import read_smiles
from molequi.readers.load import reader_of
from molequi.terms import as_labelled

# What each training writes into the metadata of a model.
OF_TRAINING = ("run", "training", "trained_on", "reading", "lowest_energy", "residuals", "symmetry_report")
TRAINING = 10_000  # structures of the training data that are measured at the end of a training
_ARGUMENTS = ("keys", "units", "partial", "device", "dtype", "batch_edges", "progress")


class Devices(Protocol):
    """What is needed of `lightning.fabric.Fabric` to share the work among devices."""

    @property
    def global_rank(self) -> int:
        """Number of this device."""

    @property
    def world_size(self) -> int:
        """Number of devices."""

    def all_reduce(self, data: torch.Tensor, *, reduce_op: Literal["sum"]) -> Any:
        """The sum of a tensor over all devices."""


def evaluate(
    model: Trained,
    data: Any,
    *,
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    fabric: Devices | None = None,
    **options: Any,
) -> Errors:
    """Errors of all quantities that the model predicts and the data have labels of.

    Labels of other quantities are not read, and charge and spin only for a model that uses them. A model that
    says that labels have no dispersion (``in_labels=False``, see `terms.Dispersion`) is compared without it.
    Of molecules every conformer counts. Errors are summed up batch by batch: memory does not grow with the
    number of structures of a store, but for two numbers of each class and structure.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    data : object
        A Dataset, or what `molequi.load_dataset` takes.
    keys, units, partial
        As in `molequi.read_ase`.
    device : {"auto", "cpu", "cuda", "cuda:1"}, optional
        Where the model runs; by default where it is, and a model of a file as "auto": on CUDA if this machine
        has it, otherwise on the CPU.
    dtype : {"float32", "float64"}, optional
        Precision of the computation; by default the one of the model.
    batch_edges : int, optional
        Largest number of edges in a batch.
    progress : bool
        Show a progress bar, if it takes more than two seconds.
    fabric : lightning.fabric.Fabric, optional
        Shares the work among its devices.
    **options
        Other options of the reader. What changes the structures (such as ``normalize``, ``samples``,
        ``conformers``) is as in the training by default.

    Returns
    -------
    Errors
        ``errors["forces_mae"]`` is one number; printed, a table.

    Raises
    ------
    ConfigError
        If there is nothing to compare, or if labels have other classes, another unit or another kind than the
        model predicts.
    """
    check_order("evaluate", model, data)
    model, data = with_labels(
        model,
        data,
        keys=keys,
        units=units,
        partial=partial,
        device=device,
        dtype=dtype,
        where="evaluate",
        **options,
    )
    model = as_labelled(model)
    if fabric is None:  # a training names them before its first step
        DomainCheck(model).warn(seen_in(data))
    metrics = Metrics(model.quantities, data, model.device, areas=True)
    if not metrics.quantities:
        raise ConfigError(
            f"the model predicts {', '.join(model.quantities)} and the data have labels of"
            f" {', '.join(data.quantities) or 'nothing'}; there is nothing to compare. Name labels with"
            f" keys={{{next(iter(model.quantities))!r}: 'NAME'}}"
        )
    share = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    batches = predicted_batches(
        model, data, list(metrics.quantities), batch_edges, share, progress=progress and share[0] == 0
    )
    for _, graph, out in batches:
        metrics.update(out, graph)
    if fabric is not None and fabric.world_size > 1:
        for name, sums in metrics.sums.items():
            metrics.sums[name] = fabric.all_reduce(sums.clone(), reduce_op="sum")
        for name, q in metrics.quantities.items():
            if q.classes:
                empty = torch.zeros(0, len(q.classes) + 1, dtype=torch.float64, device=model.device)
                own = torch.cat([empty, *metrics.scores.get(name, ())])
                metrics.scores[name] = [_gathered(own, fabric)]
    return metrics.errors()


def final_errors(
    model: Model | Ensemble,
    parts: Mapping[str, Dataset],
    *,
    progress: bool = True,
    fabric: Devices | None = None,
) -> dict[str, Errors]:
    """Errors by part of the data at the end of a training.

    Those of the training data are measured on at most 10,000 structures, evenly spaced, which `Errors.sample`
    says; all other parts are measured as a whole. Those of a model of several levels of theory are measured
    for each, as ``"valid pbe"``.

    Parameters
    ----------
    model : Model or Ensemble
        The trained model.
    parts : mapping of str to Dataset
        The data by part.
    progress : bool
        Show a progress bar.
    fabric : lightning.fabric.Fabric, optional
        As in `evaluate`.
    """
    out = {}
    for part, data in parts.items():
        whole = part != "train" or len(data) <= TRAINING
        chosen = data if whole else data[evenly_spaced(len(data), TRAINING)]
        for level, own, rows in by_level(model, chosen):
            errors = evaluate(own, rows, progress=progress, fabric=fabric)
            every = len(data.at_level(level) if level else data)
            name = f"{part} {level}" if level else part
            out[name] = errors if whole else replace(errors, sample=(len(rows), every))
    return out


def training_record(errors: Mapping[str, Errors]) -> dict[str, Any]:
    """What a model file keeps of the errors at the end of its training.

    Parameters
    ----------
    errors : mapping of str to Errors
        The errors by part.
    """
    samples = {part: list(e.sample) for part, e in errors.items() if e.sample is not None}
    numbers = {part: e.numbers() for part, e in errors.items()}
    return {"errors": numbers} | ({"samples": samples} if samples else {})


def _gathered(rows: torch.Tensor, fabric: Devices) -> torch.Tensor:
    """The rows of all devices, which may have different numbers of them."""
    sizes = torch.zeros(fabric.world_size, dtype=torch.long, device=rows.device)
    sizes[fabric.global_rank] = len(rows)
    counts = fabric.all_reduce(sizes, reduce_op="sum").tolist()
    start = sum(counts[: fabric.global_rank])
    whole = rows.new_zeros(sum(counts), rows.shape[1])
    whole[start : start + len(rows)] = rows
    return fabric.all_reduce(whole, reduce_op="sum")


def with_labels(
    model: Trained,
    data: Any,
    *,
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    where: str | None = None,
    **options: Any,
) -> tuple[Model | Ensemble, Dataset]:
    """The model, and the data with labels of what it predicts.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    data : object
        What `molequi.load_dataset` takes.
    keys, units, partial
        As in `molequi.read_ase`.
    device : {"auto", "cpu", "cuda", "cuda:1"}, optional
        Where the model runs; by default where it is, and a model of a file as "auto": on CUDA if this machine
        has it, otherwise on the CPU.
    dtype : {"float32", "float64"}, optional
        Precision of the computation; by default the one of the model.
    where : str, optional
        The function that the user called, for error messages.
    **options
        Other options of the reader.

    Raises
    ------
    ConfigError
        If labels have other classes, another unit or another kind than the model predicts; if data are
        normalised and those of the training were not, or the other way round; if labels are of another level
        of theory than the model.
    """
    model = loaded(model, device, dtype)
    reader, _ = reader_of(data)
    if reader is not None:
        options["quantities"] = _asked(keys, model)
    if reader is read_smiles and options.get("column") is None:
        options["column"] = column_of_table(data, column_of_training(model))
    options |= {"keys": keys, "units": units, "partial": partial}
    asked = (*model.quantities, *totals_taken(model))
    found = read_as_trained(model, data, options, only=asked, where=where, more=_ARGUMENTS)
    check_same_quantities(model.quantities, found)
    check_level_of(model, found)
    return model, found


def _asked(keys: Mapping | None, model: Model | Ensemble) -> Sequence[str | Quantity]:
    """Quantities to ask the reader for; none if it finds all that is wanted by itself.

    It finds known quantities by itself. Others must be named, and then all are: those that `keys` names, all
    of a model that has only such, and what is there of a model that has both.
    """
    keys = keys or {}
    named = [q for name, q in model.quantities.items() if keys.get(name) is not None]
    known = [q.name in KNOWN for q in model.quantities.values()]
    if all(known):
        return []
    if any(known):
        return WhereFound(model.quantities.values())
    return named or list(model.quantities.values())
