"""Predictions of a trained model for structures and molecules."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from molequi.readers import load_dataset, read_sdf, read_smiles
from molequi.readers.load import reader_of
from molequi.util.files import write_atomically


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
    model = loaded(model, device)
    if reader in (read_smiles, read_sdf):
        results = predict_molecules(
            model, structures, out=out, batch_edges=batch_edges, progress=progress, **options
        )
        return [with_classes(result, model) for result in results]
    data = load_dataset(structures, only=totals_taken(model), **options)
    results = [with_classes(result, model) for result in predictions(model, data, batch_edges, progress)]
    if out is not None:
        write_atomically(Path(out), lambda path: append_structures(path, data, results, model))
    return results


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
