"""Tables of predictions for molecules, few or millions: written part by part, and continued after an
interrupt.
"""

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.inference.molecule_predictions import (
    GeometryOptions,
    MoleculePrediction,
    MoleculeSource,
    predicted_parts,
)
from molequi.inference.predictions import Trained, append_structures, loaded
from molequi.model import Model
from molequi.quantities import Quantity
from molequi.readers.molecules import report_rejected
from molequi.util.files import sha256, write_atomically
from molequi.util.signature import check_call


@dataclass(frozen=True)
class PredictedTable:
    """What `predict_table` has written; printed, a sentence.

    Parameters
    ----------
    molecules : int
        Number of molecules.
    rejected : int
        Number of molecules without a prediction.
    out : Path
        The table.
    left_out : tuple of str
        Quantities of the model that are not in the table, because they are no single numbers.
    """

    molecules: int
    rejected: int
    out: Path
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        without = f", {self.rejected} of them without a prediction" if self.rejected else ""
        text = f"{self.molecules} molecules{without}: {self.out}"
        return text + (f"\nnot in a table: {', '.join(self.left_out)}" if self.left_out else "")

    __repr__ = __str__


def predict_table(
    model: Trained,
    molecules: str | os.PathLike | Sequence[str],
    out: str | os.PathLike,
    *,
    column: str = "smiles",
    conformers: Annotated[int, Ge(1)] = 1,
    seed: Annotated[int, Ge(0)] = 0,
    optimize: Literal["mmff", "uff"] | None = "mmff",
    fragments: Literal["refuse", "largest"] = "refuse",
    embed: bool = False,
    skip: bool = False,
    workers: Annotated[int, Ge(1)] | None = None,
    device: str | None = None,
    batch_edges: Annotated[int, Gt(0)] | None = None,
    progress: bool = True,
) -> PredictedTable:
    """Write a table of predictions for a file of molecules of any length.

    Memory does not grow with the length. The table grows as ``<out>.partial`` and gets its name when it is
    whole. An interrupted call is continued when it is repeated with the same model, molecules and options.

    The table has one row for each molecule, in their order: the columns of the input (``_given`` is appended
    to the name of one that has the name of a prediction), the SMILES, and the quantities of the model that
    are single numbers of a molecule, in eV, Å and e. Of classes it has the most probable one and the
    probability of each. With several conformers it has the mean, the standard deviation ``<name>_std``,
    and the number of ``conformers``. An ensemble adds the standard deviation over its members as
    ``<name>_std``, or as ``<name>_members_std`` with several conformers.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    molecules : path, list of paths or list of SMILES
        As `molequi.read_smiles` and `molequi.read_sdf` take them.
    out : str or Path
        The table, a .csv file.
    column : str
        The column with the SMILES.
    conformers, seed, optimize, fragments, embed, workers
        As in `molequi.read_smiles` and `molequi.read_sdf`. Features of atoms and bonds are made for a model
        that uses them.
    skip : bool
        Molecules that cannot be used get a row without numbers and with the reason. By default the first part
        that has such a molecule is a DataError.
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
        If `out` is no .csv file or is the input, or if the model predicts no single number.
    DataError
        If the molecules cannot be read or used.
    """
    model = loaded(model, device)
    geometry = GeometryOptions(conformers, seed, optimize, fragments, embed)
    source = MoleculeSource(molecules, column)
    table = _Table(Path(out), model, source, geometry, resume=True)
    parts = predicted_parts(
        model,
        source,
        geometry,
        start=table.rows,
        skip=skip,
        workers=workers,
        batch_edges=batch_edges,
        progress=progress,
    )
    for part, _, _ in parts:
        table.add(part)
    return table.finish()


def predict_molecules(
    model: Model | Ensemble,
    molecules: Any,
    *,
    out: str | os.PathLike | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    **options: Any,
) -> list[dict[str, np.ndarray]]:
    """Results of `predict` for molecules, one for each.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    molecules : path, list of paths or list of SMILES
        The molecules.
    out : str or Path, optional
        A table (.csv) or structures (.xyz, .extxyz).
    batch_edges, progress
        As in `predict_table`.
    **options
        Options of `predict_table`: column, conformers, seed, optimize, fragments, embed, skip, workers.
    """
    later = ("model", "molecules", "out", "device", "batch_edges", "progress")
    check_call(predict_table, options, where="predict", leave_out=later)
    geometry = GeometryOptions(
        **{f.name: options[f.name] for f in fields(GeometryOptions) if f.name in options}
    )
    skip = options.get("skip", False)
    source = MoleculeSource(molecules, options.get("column", "smiles"))
    table = None
    if out is not None and Path(out).suffix == ".csv":
        table = _Table(Path(out), model, source, geometry, resume=False)
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
        )
        rejected = []
        for part, data, each in parts:
            if table is not None:
                table.add(part)
            results.extend(one.result for one in part)
            rejected += [one.rejected for one in part if one.rejected is not None]
            if keep is not None and data is not None:
                keep(data, each)
        if rejected and table is None:
            report_rejected(rejected, source.name, source.total, skip=True)

    if table is None and out is not None:
        write_atomically(
            Path(out), lambda path: collect(lambda data, each: append_structures(path, data, each, model))
        )
        return results
    collect()
    if table is not None:
        table.finish()
    return results


class _Table:
    """A table that grows in a file of its own, with a note of how far it is, and gets its name at the end."""

    def __init__(
        self,
        path: Path,
        model: Model | Ensemble,
        source: MoleculeSource,
        geometry: GeometryOptions,
        *,
        resume: bool,
    ) -> None:
        if path.suffix != ".csv":
            raise ConfigError(f"out={path}: wanted a name that ends in .csv")
        if any(path.exists() and path.samefile(file) for file in source.files):
            raise ConfigError(f"out={path}: this is the file of the molecules; choose another name")
        self.quantities = [q for q in model.quantities.values() if q.per == "graph" and q.rank == 0]
        several = geometry.conformers > 1
        self.stds = {n: f"{n}_members_std" if several else q.name for n, q in model.stds.items()}
        self.left_out = tuple(n for n, q in model.quantities.items() if q not in self.quantities)
        if not self.quantities:
            raise ConfigError(
                f"the model predicts {', '.join(model.quantities)}, none of which is one number of a "
                "molecule; a table holds nothing else, structures hold all: predict(..., out='NAME.xyz')"
            )
        self.path, self.source, self.several = path, source, several
        self.partial = path.with_name(path.name + ".partial")
        self.note = path.with_name(path.name + ".partial.json")
        self.key = self._key(model, geometry)
        self.rows = self.rejected = 0
        names = self._names()
        given = [f"{c}_given" if c in (*names, "smiles") else c for c in source.columns]
        if not (resume and self._found()):
            self.partial.write_text(_line([*given, "smiles", *names]), encoding="utf-8")
            self._write_note()

    def _names(self) -> list[str]:
        names = []
        for q in self.quantities:
            names += [q.name, *(f"{q.name}_{c}" for c in q.classes)]
            names += [f"{q.name}_std"] if self.several and not q.classes else []
            names += [self.stds[q.name]] if self.stds else []
        return names + (["conformers"] if self.several else []) + ["reason"]

    def _key(self, model: Model | Ensemble, geometry: GeometryOptions) -> str:
        """Digest of molecules, options and weights: only the same call is continued."""
        made = {"column": self.source.column, **vars(geometry)}
        settings = [self.source.digest, made, sorted(model.outputs), getattr(model, "scales", {})]
        weights = (
            name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes()
            for name, tensor in sorted(model.state_dict().items())
        )
        return sha256(itertools.chain([json.dumps(settings, sort_keys=True)], weights))

    def _found(self) -> bool:
        """Whether there is a partial table of the same call; it is then continued."""
        try:
            note = json.loads(self.note.read_text())
            if note["key"] != self.key or self.partial.stat().st_size < note["bytes"]:
                return False
            os.truncate(self.partial, note["bytes"])
            self.rows, self.rejected = note["rows"], note["rejected"]
        except (OSError, ValueError, KeyError, TypeError):  # there is nothing that can be continued
            return False
        return True

    def _write_note(self) -> None:
        size = self.partial.stat().st_size
        note = {"key": self.key, "rows": self.rows, "rejected": self.rejected, "bytes": size}
        write_atomically(self.note, lambda path: path.write_text(json.dumps(note)))

    def add(self, part: Sequence[MoleculePrediction]) -> None:
        """Append rows; they are on the disk when this returns."""
        text = "".join(_line(self._cells(one)) for one in part)
        with open(self.partial, "a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.rows += len(part)
        self.rejected += sum(one.rejected is not None for one in part)
        self._write_note()

    def _cells(self, one: MoleculePrediction) -> list[str]:
        row, result = one.row, one.result
        smiles = row.text if self.source.kind == "smiles" else one.canonical
        cells = [row.columns.get(c, "") for c in self.source.columns] + [smiles]
        for q in self.quantities:
            cells += _numbers(q, result, self.several)
            cells += [_text(result[self.stds[q.name]]) if result else ""] if self.stds else []
        if self.several:
            cells.append("" if one.rejected else str(one.conformers))
        return [*cells, one.rejected.reason if one.rejected else ""]

    def finish(self) -> PredictedTable:
        """Give the table its name."""
        os.replace(self.partial, self.path)
        self.note.unlink(missing_ok=True)
        return PredictedTable(self.rows, self.rejected, self.path, self.left_out)


def _numbers(q: Quantity, result: Mapping[str, np.ndarray], several: bool) -> list[str]:
    """The cells of one quantity; empty without a result."""
    if not result:
        return [""] * (1 + len(q.classes) + (several and not q.classes))
    value = result[q.name]
    if q.classes:
        odds = np.exp(value - value.max())
        return [q.classes[int(value.argmax())], *(f"{p:.6g}" for p in odds / odds.sum())]
    return [_text(v) for v in ([value, result[f"{q.name}_std"]] if several else [value])]


def _text(value: np.ndarray) -> str:
    return "" if np.isnan(value) else f"{float(value):.10g}"


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
