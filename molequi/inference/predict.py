"""Predictions of a trained model for structures and molecules."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molequi.checkpoint import check_order
from molequi.errors import ConfigError
from molequi.inference.molecule_tables import predict_molecules
from molequi.inference.predictions import (
    Trained,
    append_structures,
    loaded,
    predictions,
    totals_taken,
    with_classes,
)
from molequi.readers import read_sdf, read_smiles
from molequi.readers.load import read_dataset, reader_of
from molequi.util.files import write_atomically

_ARGUMENTS = ("out", "device", "dtype", "batch_edges", "progress")


def predict(
    model: Trained,
    structures: Any,
    *,
    out: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    **options: Any,
) -> list[dict[str, np.ndarray]]:
    """Predict quantities for structures or molecules, in eV, Å and e.

    The stress has the shape (3, 3) and is positive under tension. Of classes the result has the name of the
    most probable one, and ``<name>_probability`` the probabilities in the order of `Quantity.classes`.

    SMILES, SDF and MOL files give one result for each molecule. With ``conformers=5`` numbers are means over
    the conformers, ``<name>_std`` is their standard deviation (NaN for a single conformer), and vectors
    and tensors, which depend on the orientation of each geometry, have a row for each conformer. With
    ``skip=True`` the result of a molecule that cannot be used is empty.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    structures : object
        What `molequi.load_dataset` takes: a Dataset, ase.Atoms or Graphs or lists of them, files, a list of
        SMILES. Labels are not read.
    out : str or Path, optional
        An extended XYZ file (.xyz, .extxyz) for structures with predictions and columns of `info`, written as
        a whole or not at all; for molecules also a table (.csv), see `molequi.inference.predict_table`.
    device : {"auto", "cpu", "cuda", "cuda:1"}, optional
        Where the model runs; by default where it is, and a model of a file as "auto": on CUDA if this machine
        has it, otherwise on the CPU.
    dtype : {"float32", "float64"}, optional
        Precision of the computation; by default the one of the model.
    batch_edges : int, optional
        Largest number of edges in a batch.
    progress : bool
        Show a progress bar.
    **options
        Options of the reader; for molecules those of `molequi.inference.predict_table`.

    Returns
    -------
    list of dict of str to array

    Raises
    ------
    ModelError
        For elements that the model does not know.
    DataError
        For structures that are impossible.
    ConfigError
        If `out` has another suffix or is the file of the structures.
    """
    check_order("predict", model, structures)
    reader, _ = reader_of(structures)
    if out is not None:
        _check_target(Path(out), structures, reader in (read_smiles, read_sdf))
    model = loaded(model, device, dtype)
    if reader in (read_smiles, read_sdf):
        results = predict_molecules(
            model, structures, out=out, batch_edges=batch_edges, progress=progress, **options
        )
        return [with_classes(result, model) for result in results]
    data = read_dataset(structures, options, only=totals_taken(model), where="predict", more=_ARGUMENTS)
    results = [with_classes(result, model) for result in predictions(model, data, batch_edges, progress)]
    if out is not None:
        write_atomically(Path(out), lambda path: append_structures(path, data, results, model))
    return results


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
