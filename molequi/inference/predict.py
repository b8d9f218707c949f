"""Predictions of a trained model for structures and molecules."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from annotated_types import Gt, Lt

from molequi.checkpoint import check_order
from molequi.data.dataset import Dataset
from molequi.domain import DomainCheck, read_as_trained, seen_in, totals_taken
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.inference.columns import Layout
from molequi.inference.conformal import interval_widths
from molequi.inference.evaluate import with_labels
from molequi.inference.frames import FrameOfStructures
from molequi.inference.intervals import with_intervals
from molequi.inference.molecule_tables import predict_molecules
from molequi.inference.predictions import (
    CollectedResults,
    Predictions,
    Trained,
    append_structures,
    loaded,
    predicted_blocks,
    with_classes_of_all,
)
from molequi.model import Model
from molequi.readers import read_mols, read_sdf, read_smiles
from molequi.readers.load import reader_of
from molequi.util.files import check_target, write_results

_ARGUMENTS = (
    "out",
    "device",
    "dtype",
    "batch_edges",
    "progress",
    "interval",
    "calibration",
    "scaled",
    "as_frame",
)
Found = TypeVar("Found")


def predict(
    model: Trained,
    structures: Any,
    *,
    out: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    interval: Annotated[float, Gt(0), Lt(1)] | None = None,
    calibration: Any = None,
    scaled: bool = False,
    as_frame: bool = False,
    **options: Any,
) -> Any:
    """Predict quantities for structures or molecules, in eV, Å and e.

    The stress has the shape (3, 3) and is positive under tension. Of classes the result has the name of the
    most probable one, and ``<name>_probability`` the probabilities in the order of `Quantity.classes`.

    SMILES, SDF and MOL files and RDKit molecules give one result for each molecule. With ``conformers=5``
    numbers are means over the conformers, ``<name>_conformer_std`` is their standard deviation (NaN for a
    single conformer), and vectors and tensors, which depend on the orientation of each geometry, have a row
    for each conformer. With ``skip=True`` the result of a molecule that cannot be used is empty.

    An ensemble adds ``<name>_std``, the standard deviation over its members. A training with several seeds
    calibrates it: it measures on the validation data by which factor the errors are larger, and the file of
    the ensemble keeps this factor (`Ensemble.scales`).

    ``interval=0.9`` adds ``<name>_low`` and ``<name>_high`` for each single number of a structure, by
    split-conformal prediction (`molequi.inference.intervals`): the label of a further structure is between
    them with a probability of at least 0.9, if that structure and those of the calibration are exchangeable.
    With `calibration` or `scaled` each component of quantities of atoms, such as forces, has them too; what
    is exchangeable there are the structures, see `molequi.inference.conformal`.
    So they are if they were drawn at random from the same distribution, with the same number of conformers;
    structures of other elements, sizes or temperatures are not, and the interval may miss them at any rate.
    The width is the same for all structures (of extensive quantities: per atom). By default the errors are
    those on the validation data at the end of the training. These data also chose the best epoch, so that
    their errors are slightly too small; `calibration` data that had no part in the training give the exact
    probability.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    structures : object
        What `molequi.load_dataset` takes: a Dataset, ase.Atoms or Graphs or lists of them, files, a list of
        SMILES or of RDKit molecules, a pandas.DataFrame with a column of either. Labels are not read.
    out : str or Path, optional
        An extended XYZ file (.xyz, .extxyz) for structures with predictions and columns of `info`; it grows
        block by block beside its place, and is there as a whole or not at all. For molecules also a table
        (.csv), see `molequi.inference.predict_table`.
    device : {"auto", "cpu", "cuda", "cuda:1"}, optional
        Where the model runs; by default where it is, and a model of a file as "auto": on CUDA if this machine
        has it, otherwise on the CPU.
    dtype : {"float32", "float64"}, optional
        Precision of the computation; by default the one of the model.
    batch_edges : int, optional
        Largest number of edges in a batch.
    progress : bool
        Show a progress bar.
    interval : float, optional
        Probability of the intervals, between 0 and 1.
    calibration : object, optional
        Data with labels that the model was not trained on, for the intervals: a Dataset, or what
        `molequi.load_dataset` takes and whose labels need no options to be read. By default the errors that
        the training kept in the model file.
    scaled : bool
        Intervals as wide as a multiple of the standard deviation of each prediction, instead of equally wide
        ones: for an `Ensemble` with `calibration` data, or a model of `molequi.laplace`, which keeps the
        errors on its validation data. They cover as often, and are narrow where the model is sure.
    as_frame : bool
        Return a pandas.DataFrame with a row for each structure or molecule: the columns of the input, and the
        predictions with one column a number, as in `molequi.inference.predict_table` but without units in the
        names. They are in ``frame.attrs["units"]``, the factors of calibrated standard deviations in
        ``frame.attrs["calibration"]``. Quantities of atoms are arrays. With ``skip=True`` a molecule that
        cannot be used has no numbers and a text in the column ``reason``.
    **options
        Options of the reader; for molecules those of `molequi.inference.predict_table`. What changes the
        structures (such as ``normalize``, ``samples``, ``conformers``) is as in the training by default.

    Returns
    -------
    Predictions, or pandas.DataFrame
        A sequence with a dict of str to array for each structure; `Predictions.units` are the units. The
        arrays of structures are views of joined ones, so that memory is that of the numbers.

    Raises
    ------
    ModelError
        For elements that the model does not know.
    DataError
        For structures that are impossible.
    ConfigError
        If `out` has another suffix, cannot be written or is the file of the structures, which is checked
        before any prediction; if an interval has no or too few errors; or if the structures are normalised
        and those of the training were not, or the other way round.
    MissingPackageError
        If `as_frame` is wanted and pandas is not installed.
    """
    return _predicted(
        model,
        structures,
        "frame" if as_frame else "results",
        out=out,
        device=device,
        dtype=dtype,
        batch_edges=batch_edges,
        progress=progress,
        interval=interval,
        calibration=calibration,
        scaled=scaled,
        **options,
    )


def predict_file(model: Trained, structures: Any, out: str | os.PathLike, **options: Any) -> int:
    """Write predictions to a file as `predict` does, and keep none of them in memory.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    structures : object
        As in `predict`.
    out : str or Path
        The file.
    **options
        Options of `predict`.

    Returns
    -------
    int
        Number of structures or molecules.
    """
    number: int = _predicted(model, structures, "number", out=out, **options)
    return number


def _predicted(
    model: Trained,
    structures: Any,
    wanted: Literal["results", "frame", "number"],
    *,
    out: str | os.PathLike | None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    interval: float | None = None,
    calibration: Any = None,
    scaled: bool = False,
    **options: Any,
) -> Any:
    """What `predict` does; `wanted` is what is returned."""
    check_order("predict", model, structures)
    reader, _ = reader_of(structures)
    molecules = reader in (read_smiles, read_sdf, read_mols)
    if out is not None:
        _check_target(Path(out), structures, molecules)
    model = loaded(model, device, dtype)
    if calibration is not None and interval is None:
        raise ConfigError("calibration is for intervals and would have no effect; add interval=0.9")
    if scaled and (interval is None or molecules):
        what = "molecules without geometry, whose intervals are equally wide" if molecules else "no interval"
        raise ConfigError(f"scaled=True would have no effect with {what}; leave it out, or add interval=0.9")
    widths: dict[str, float] = {}
    if interval is not None:
        held = _calibration_data(model, calibration, options)
        widths = interval_widths(model, interval, held, scaled=scaled, nodes=not molecules)
    if molecules:
        return predict_molecules(
            model,
            structures,
            wanted,
            out=out,
            batch_edges=batch_edges,
            progress=progress,
            level=interval,
            widths=widths,
            **options,
        )
    data = read_as_trained(
        model, structures, options, only=totals_taken(model), where="predict", more=_ARGUMENTS
    )
    DomainCheck(model).warn(seen_in(data))
    layout = Layout(model, intervals=tuple(widths), dim=data[0].dim)

    def carry_out(path: Path | None) -> CollectedResults | FrameOfStructures:
        """Predict block by block; each is written, and what is wanted of it is kept."""
        kept = FrameOfStructures(data, layout) if wanted == "frame" else CollectedResults(data)
        for block, scores in predicted_blocks(model, data, batch_edges, progress):
            values = with_intervals(scores.values, widths, model, block.counts)
            of_atoms = {f"{n}_{end}" for n in scores.per_node & widths.keys() for end in ("low", "high")}
            found = replace(scores, values=values, per_node=scores.per_node | of_atoms)
            named = found if wanted == "frame" and path is None else with_classes_of_all(found, model)
            if path is not None:
                append_structures(path, block, named, model)
            if wanted != "number":
                kept.add(found if wanted == "frame" else named)
        return kept

    found = _written(out, carry_out)
    if isinstance(found, FrameOfStructures):
        return found.frame(interval)
    return len(data) if wanted == "number" else Predictions(found.results(), model)


def _written(out: str | os.PathLike | None, carry_out: Callable[[Path | None], Found]) -> Found:
    """What a function returns that writes to a file; it is called again if it could not write there."""
    if out is None:
        return carry_out(None)
    found: list[Found] = []
    write_results(Path(out), lambda path: found.append(carry_out(path)))
    return found[-1]


def _calibration_data(model: Model | Ensemble, given: Any, options: Mapping[str, Any]) -> Dataset | None:
    """The calibration data; molecules without geometry get as many conformers as those that are predicted."""
    if given is None:
        return None
    kept = {
        name: options[name]
        for name in ("conformers", "seed", "optimize", "fragments", "embed", "workers")
        if name in options and reader_of(given)[0] in (read_smiles, read_sdf)
    }
    return with_labels(model, given, **kept)[1]


def _check_target(path: Path, structures: Any, molecules: bool) -> None:
    """Raise ConfigError for a file that cannot hold the predictions, or is the file of the structures."""
    if path.suffix not in (".xyz", ".extxyz") and not (molecules and path.suffix == ".csv"):
        table = ", or, for molecules, in .csv" if not molecules else " or .csv"
        raise ConfigError(
            f"out={path}: predictions are written as extended XYZ; wanted a name that ends in .xyz or "
            f".extxyz{table}, such as {path.with_suffix('.csv' if molecules else '.xyz')}"
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
    check_target(path)
