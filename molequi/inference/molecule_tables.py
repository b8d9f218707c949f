"""Tables of predictions for molecules, few or many: written part by part, and continued after an
interrupt.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.inference.columns import Layout, scales_of
from molequi.inference.frames import PartsOfFrame
from molequi.inference.intervals import half_widths
from molequi.inference.molecule_predictions import (
    MoleculeSource,
    column_of_training,
    geometry_of,
    predicted_parts,
)
from molequi.inference.predictions import Predictions, Trained, append_structures, loaded, with_classes
from molequi.inference.table_files import MoleculeTable
from molequi.model import Model
from molequi.readers.frames import DataFrame
from molequi.readers.molecule_data import report_rejected
from molequi.util.files import write_results
from molequi.util.signature import check_call


@dataclass(frozen=True)
class PredictedTable:
    """What `predict_table` has written; printed, a few sentences.

    Parameters
    ----------
    molecules : int
        Number of molecules.
    rejected : int
        Number of molecules without a prediction.
    out : Path
        The table.
    atoms : Path or None
        The table with a row for each atom.
    calibration : mapping of str to float
        The factors by which the standard deviations of an ensemble were multiplied, as the training found
        them.
    uncertain : bool
        Whether the table has standard deviations of an ensemble.
    column : str
        The column with the SMILES, if it has an unusual name and was found; else empty.
    """

    molecules: int
    rejected: int
    out: Path
    atoms: Path | None = None
    calibration: Mapping[str, float] = field(default_factory=dict)
    uncertain: bool = False
    column: str = ""

    def __str__(self) -> str:
        without = f", {self.rejected} of them without a prediction" if self.rejected else ""
        lines = [f"{self.molecules} molecules{without}: {self.out}"]
        if self.column:
            lines.append(f"SMILES were read from the column {self.column!r}")
        if self.atoms is not None:
            lines.append(f"their atoms: {self.atoms}")
        if self.uncertain:
            lines.append(calibration_sentence(self.calibration))
        return "\n".join(lines)

    __repr__ = __str__


def calibration_sentence(scales: Mapping[str, float]) -> str:
    """A sentence on the standard deviations of an ensemble.

    Parameters
    ----------
    scales : mapping of str to float
        The factor of each quantity.

    Examples
    --------
    >>> calibration_sentence({"gap": 1.5})
    'standard deviations are calibrated: gap × 1.5'
    """
    if not scales:
        return "standard deviations are not calibrated (see molequi.inference.calibration)"
    factors = ", ".join(f"{name} × {factor:.3g}" for name, factor in scales.items())
    return f"standard deviations are calibrated: {factors}"


def predict_table(
    model: Trained,
    molecules: str | os.PathLike | Sequence[Any] | DataFrame,
    out: str | os.PathLike,
    *,
    column: str | None = None,
    conformers: Annotated[int, Ge(1)] | None = None,
    seed: Annotated[int, Ge(0)] = 0,
    optimize: Literal["training", "mmff", "uff"] | None = "training",
    fragments: Literal["refuse", "largest"] = "refuse",
    embed: bool = False,
    skip: bool = False,
    interval: Annotated[float, Gt(0), Lt(1)] | None = None,
    workers: Annotated[int, Ge(1)] | None = None,
    device: str | None = None,
    batch_edges: Annotated[int, Gt(0)] | None = None,
    progress: bool = True,
) -> PredictedTable:
    """Write a table of predictions for a file of molecules of any length.

    Memory does not grow with the length. The table grows as ``<out>.partial`` and gets its name when it is
    whole. An interrupted call is continued when it is repeated with the same model, molecules and options.

    The table has one row for each molecule, in their order: with the separator (comma, semicolon or ``|``)
    and the name of the SMILES column of the input (and with decimal commas, where numbers of a table with
    semicolons have them), the columns of the input (``_given`` is appended
    to the name of one that has the name of a prediction), the SMILES, and the quantities of the model with
    their units in the names, ``gap (eV)``. Readers understand these names.

    - Of classes it has the most probable one and the probability of each.
    - Vectors and tensors have a column for each component, ``dipole_x (e Å)``, along the axes of the
      geometry, and their length ``dipole_norm``; a tensor of rank 2 also a third of its trace,
      ``polarizability_iso``.
    - An ensemble adds the standard deviation over its members, ``<name>_std``. It is multiplied by the factor
      that the training found on the validation data; where there is none, the name says "not calibrated".
    - With several conformers, numbers are means, with their standard deviation over the conformers
      ``<name>_conformer_std``, and there is a column with the number of ``conformers``. Conformers have
      different axes, so that vectors and tensors have no components then.
    - ``interval=0.9`` adds the limits ``<name>_low`` and ``<name>_high``.

    Quantities of atoms are in a second table with a row for each atom of each geometry, ``<out>.atoms.csv``.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    molecules : path, list of paths, of SMILES or of RDKit molecules, or DataFrame
        As `molequi.read_smiles`, `molequi.read_sdf` and `molequi.read_mols` take them.
    out : str or Path
        The table, a .csv file.
    column : str, optional
        The column with the SMILES, or of a DataFrame with the RDKit molecules. By default the one that is
        called as in the training data; else it is found by its name or its cells, as in `molequi.train_file`.
    conformers : int, optional
        Number of geometries of each molecule; by default as in the training, and 1 if that is not known.
    optimize : {"training", "mmff", "uff"}, optional
        How geometries are relaxed. "training" is as in the training, and "mmff" if that is not known. Another
        way than in the training gives a DataWarning.
    seed, fragments, embed, workers
        As in `molequi.read_smiles` and `molequi.read_sdf`. Features of atoms and bonds are made for a model
        that uses them. RDKit molecules keep the conformers that they have.
    skip : bool
        Molecules that cannot be used get a row without numbers and with the reason. By default the first part
        that has such a molecule is a DataError.
    interval : float, optional
        Probability of the intervals, such as 0.9; they use the errors on the validation data that the model
        file keeps, see `molequi.predict`, which also takes other calibration data.
    device : str, optional
        Where the model runs; by default where it is.
    batch_edges : int, optional
        Largest number of edges in a batch.
    progress : bool
        Show a progress bar.

    Returns
    -------
    PredictedTable

    Raises
    ------
    ConfigError
        If `out` is no .csv file or is the input, or if there are too few errors for an interval.
    DataError
        If the molecules cannot be read or used.

    Warns
    -----
    DataWarning
        If a table that another version began is begun anew.
    """
    model = loaded(model, device)
    given = {"conformers": conformers, "optimize": optimize}
    geometry = geometry_of(model, {**given, "seed": seed, "fragments": fragments, "embed": embed})
    source = MoleculeSource(molecules, column, column_of_training(model))
    widths = {} if interval is None else half_widths(model, interval)
    layout = Layout(model, geometry.conformers > 1 or source.several, tuple(widths))
    table = MoleculeTable(Path(out), model, source, geometry, layout, interval, resume=True)
    parts = predicted_parts(
        model,
        source,
        geometry,
        start=table.rows,
        skip=skip,
        workers=workers,
        batch_edges=batch_edges,
        progress=progress,
        widths=widths,
    )
    for part in parts:
        table.add(*part)
    table.finish()
    scales, uncertain = scales_of(model), bool(model.stds)
    found = "" if column is not None or source.column.lower() == "smiles" else source.column
    return PredictedTable(table.rows, table.rejected, table.path, table.atoms, scales, uncertain, found)


def predict_molecules(
    model: Model | Ensemble,
    molecules: Any,
    wanted: Literal["results", "frame", "number"] = "results",
    *,
    out: str | os.PathLike | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    level: float | None = None,
    widths: Mapping[str, float] | None = None,
    **options: Any,
) -> Any:
    """Results of `predict` for molecules, one for each.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    molecules : path, list or DataFrame
        The molecules.
    wanted : {"results", "frame", "number"}
        What is returned; with the number of molecules alone, memory does not grow with it.
    out : str or Path, optional
        A table (.csv) or structures (.xyz, .extxyz).
    batch_edges, progress
        As in `predict_table`.
    level, widths
        Probability of the intervals, and half of their widths.
    **options
        Options of `predict_table`: column, conformers, seed, optimize, fragments, embed, skip, workers.

    Returns
    -------
    Predictions, DataFrame or int
    """
    later = ("model", "molecules", "out", "interval", "device", "batch_edges", "progress")
    check_call(predict_table, options, where="predict", leave_out=later)
    geometry = geometry_of(model, options)
    skip = options.get("skip", False)
    source = MoleculeSource(molecules, options.get("column"), column_of_training(model))
    layout = Layout(model, geometry.conformers > 1 or source.several, tuple(widths or {}))
    table = None
    if out is not None and Path(out).suffix == ".csv":
        table = MoleculeTable(Path(out), model, source, geometry, layout, level, resume=False)
    rows = PartsOfFrame(source, layout) if wanted == "frame" else None
    results: list[dict[str, np.ndarray]] = []

    def collect(keep: Callable[[Dataset, list], None] | None = None) -> None:
        parts = predicted_parts(
            model,
            source,
            geometry,
            skip=skip,
            workers=options.get("workers"),
            batch_edges=batch_edges,
            progress=progress,
            widths=widths,
        )
        rejected = []
        for part, data, each in parts:
            if table is not None:
                table.add(part, data, each)
            if rows is not None:
                rows.add(part)
            if wanted == "results":
                results.extend(with_classes(one.result, model) for one in part)
            rejected += [one.rejected for one in part if one.rejected is not None]
            if keep is not None and data is not None:
                keep(data, each)
        if rejected and table is None and rows is None:
            report_rejected(rejected, source.name, source.total, skip=True)

    if table is None and out is not None:
        write_results(
            Path(out), lambda path: collect(lambda data, each: append_structures(path, data, each, model))
        )
    else:
        collect()
    if table is not None:
        table.finish()
    if wanted == "number":
        return source.total
    return Predictions(results, model) if rows is None else rows.frame(level)
