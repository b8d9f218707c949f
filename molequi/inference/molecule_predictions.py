"""Predictions for molecules without geometry, part by part and averaged over conformers."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from molequi.data.dataset import Dataset
from molequi.data.reading import check_reading
from molequi.data.request import Request
from molequi.domain import DomainCheck, Seen, reading_of, totals_taken
from molequi.ensemble import Ensemble
from molequi.errors import DataError
from molequi.inference.intervals import with_intervals
from molequi.inference.predictions import predictions
from molequi.model import Model
from molequi.quantities import KNOWN, SYMBOLS
from molequi.readers.decimal_commas import decimal_mark
from molequi.readers.embedder import Embedder
from molequi.readers.files import expand_paths
from molequi.readers.frames import as_frame, frame_columns, frame_rows
from molequi.readers.molecule_data import (
    Rejected,
    conformer_dataset,
    embedder,
    geometry_options,
    rejection,
    report_rejected,
)
from molequi.readers.molecule_files import CSV, SDF, SMI, Row, find_column, sdf_rows, smiles_rows, suffix
from molequi.readers.mols import is_mol, mol_rows
from molequi.readers.tables import find_smiles_column
from molequi.util.files import file_sha256, sha256
from molequi.util.progress import ProgressBar

CHUNK = 256  # molecules that are in memory together


def column_of_training(model: Model | Ensemble) -> str | None:
    """The column with the SMILES in the data of a training; None if it had none.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    """
    run = getattr(model, "metadata", {}).get("run") or {}
    data = run.get("data") if isinstance(run, Mapping) else None
    if not isinstance(data, Mapping):
        return None
    sections = [data, *(part for part in data.values() if isinstance(part, Mapping))]
    for section in sections:
        reader = section.get("smiles")
        if isinstance(reader, Mapping) and isinstance(reader.get("column"), str):
            return str(reader["column"])
    return None


def column_of_table(molecules: Any, hint: str | None = None) -> str:
    """The column with the SMILES in a table or a DataFrame; "smiles" for everything else.

    Parameters
    ----------
    molecules : object
        A file, a DataFrame, or anything else.
    hint : str, optional
        The column that the training data had.

    Raises
    ------
    DataError
        If there is none, or if several could be meant.
    """
    if as_frame(molecules) is not None:
        return find_smiles_column(molecules, hint)
    if isinstance(molecules, (str, os.PathLike)) and suffix(Path(molecules)) in CSV:
        return find_smiles_column(os.fspath(molecules), hint)
    return "smiles"


@dataclass(frozen=True)
class GeometryOptions:
    """How the geometries of molecules are made; see `molequi.read_smiles` and `molequi.read_sdf`."""

    conformers: int = 1
    seed: int = 0
    optimize: Literal["mmff", "uff"] | None = "mmff"
    fragments: Literal["refuse", "largest"] = "refuse"
    embed: bool = False


def geometry_of(model: Model | Ensemble, given: Mapping[str, Any]) -> GeometryOptions:
    """How geometries are made: as the caller says, and else as in the training.

    Parameters
    ----------
    model : Model or Ensemble
        The model, which keeps how its data were read.
    given : mapping
        Fields of `GeometryOptions`. ``conformers=None`` and ``optimize="training"`` are those of the
        training.

    Returns
    -------
    GeometryOptions

    Warns
    -----
    DataWarning
        If geometries are relaxed in another way than in the training.
    """
    open_ones = {"conformers": None, "optimize": "training"}
    said = {
        f.name: given[f.name]
        for f in fields(GeometryOptions)
        if f.name in given and (f.name not in open_ones or given[f.name] != open_ones[f.name])
    }
    training = reading_of(model)
    check_reading(training, said, "geometries of these molecules")
    kept = {name: training[name] for name in open_ones if name in training and name not in said}
    return GeometryOptions(**{**said, **kept})


@dataclass(frozen=True)
class MoleculePrediction:
    """One molecule and what the model predicts.

    Parameters
    ----------
    row : Row
        The molecule as the file has it.
    result : dict of str to array
        Predictions, averaged over conformers; empty if the molecule cannot be used.
    rejected : Rejected or None
        Why it cannot be used.
    conformers : int
        Number of geometries.
    smiles : str
        The SMILES as it was given; of other molecules the canonical one.
    """

    row: Row
    result: dict[str, np.ndarray]
    rejected: Rejected | None
    conformers: int
    smiles: str


class Molecules(Protocol):
    """What `predicted_parts` takes: molecules, one after the other."""

    name: str
    total: int
    several: bool

    @property
    def kind(self) -> Literal["smiles", "sdf", "mol"]:
        """What the molecules are."""
        ...

    def rows(self) -> Iterator[Row]:
        """The molecules."""
        ...


class MoleculeSource:
    """Molecules in a list, a DataFrame or in files, which can be read again and again.

    Parameters
    ----------
    molecules : path, list of paths, of SMILES or of RDKit molecules, or DataFrame
        As `molequi.read_smiles`, `molequi.read_sdf` and `molequi.read_mols` take them.
    column : str, optional
        The column with the SMILES, or of a DataFrame with the RDKit molecules; by default it is found.
    hint : str, optional
        The column that the training data had, see `column_of_training`.

    Attributes
    ----------
    column : str
        The column with the SMILES; "smiles" if there is no table.
    several : bool
        Whether a molecule brings several geometries.
    delimiter : str
        What separates the columns of the table; empty for everything else.
    decimal : {".", ","}
        The mark of decimals: a comma if the table is separated by semicolons and a column has such numbers.
    """

    def __init__(self, molecules: Any, column: str | None = None, hint: str | None = None) -> None:
        self.files: list[Path] = []
        self.items: list[Any] = []
        self.frame = as_frame(molecules)
        single = isinstance(molecules, (str, os.PathLike))
        if self.frame is None and not single:
            self.items = [molecules] if is_mol(molecules) else list(molecules)
        kinds = [suffix(Path(item)) for item in self.items if isinstance(item, (str, os.PathLike))]
        if single or (kinds and all(kind in SDF for kind in kinds)):
            self.files = expand_paths(molecules)
        table = self.frame if self.frame is not None else molecules if single else None
        self.column = column if column is not None else column_of_table(table, hint)
        self.kind: Literal["smiles", "sdf", "mol"] = self._kind()
        self.name = ", ".join(map(str, self.files)) or ("list" if self.frame is None else "DataFrame")
        self.total = 0
        self.several = False
        self.columns: list[str] = []
        self.delimiter = ""
        marks: dict[str, set[str]] = {}
        for row in self.rows():  # the whole file is checked before anything is embedded
            if not self.total:
                named = self.frame is None and (self.kind != "smiles" or suffix(Path(self.name)) in SMI)
                self.columns = ["name"] if named else list(row.columns)
                self.delimiter = row.delimiter
            self.total += 1
            self.several = self.several or row.given > 1
            if row.delimiter == ";":
                for name, cell in row.columns.items():
                    marks.setdefault(name, set()).add(decimal_mark(cell))
        # A column counts if all its numbers agree, and nothing else is in it.
        alike = [column - {""} for column in marks.values()]
        self.decimal: Literal[".", ","] = "," if {","} in alike and {"."} not in alike else "."
        if not self.total:
            raise DataError(f"{self.name}: no molecules; wanted at least one")

    def _kind(self) -> Literal["smiles", "sdf", "mol"]:
        """What the molecules are."""
        if self.files:
            return "sdf" if suffix(self.files[0]) in SDF else "smiles"
        cells = self.items
        if self.frame is not None:
            name = find_column(self.column, frame_columns(self.frame))
            cells = [] if name is None else [cells[name] for _, cells in frame_rows(self.frame)]
        return "mol" if any(map(is_mol, cells)) else "smiles"

    def rows(self) -> Iterator[Row]:
        """The molecules, one after the other."""
        listed = self.items if self.frame is None else self.frame
        if self.kind == "mol":
            yield from mol_rows(listed, column=self.column)
            return
        if self.kind == "smiles":
            yield from smiles_rows(self.files[0] if self.files else listed, column=self.column)
            return
        for number, row in enumerate(itertools.chain.from_iterable(map(sdf_rows, self.files))):
            yield replace(row, number=number)

    @property
    def digest(self) -> str:
        """SHA-256 of the files, or of the molecules and their columns."""
        listed = sha256(json.dumps([row.text, row.columns]) for row in self.rows())
        return " ".join(map(file_sha256, self.files)) if self.files else listed


def embedding(
    model: Model | Ensemble, kind: str, geometry: GeometryOptions
) -> tuple[Request, dict[str, object]]:
    """What is read of molecules, and the options with which `Embedder` makes their geometries.

    Parameters
    ----------
    model : Model or Ensemble
        The model. Features of atoms and bonds are made if it uses them.
    kind : {"smiles", "sdf", "mol"}
        What the molecules are.
    geometry : GeometryOptions
        How geometries are made.
    """
    request = Request(keys=dict.fromkeys((*KNOWN, *({"charge", "spin"} - {*totals_taken(model)}))))
    inputs = model.backbone.inputs
    features = inputs is not None and bool(inputs.node_features or inputs.edge_features)
    return request, geometry_options(kind, request, features=features, **vars(geometry))


def predicted_parts(
    model: Model | Ensemble,
    source: Molecules,
    geometry: GeometryOptions,
    *,
    start: int = 0,
    skip: bool = False,
    workers: int | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    widths: Mapping[str, float] | None = None,
    processes: Embedder | None = None,
) -> Iterator[tuple[list[MoleculePrediction], Dataset | None, list[dict[str, np.ndarray]]]]:
    """Predictions for one part of the molecules after the other.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    source : MoleculeSource, or other Molecules
        The molecules.
    geometry : GeometryOptions
        How geometries are made.
    start : int
        Number of the first molecule.
    skip : bool
        Whether molecules that cannot be used are left out; else the first part that has one is a DataError.
    workers : int, optional
        Number of RDKit processes.
    batch_edges : int, optional
        Limit of edges per batch.
    progress : bool
        Whether to show a progress bar.
    widths : mapping of str to float, optional
        Half of the width of the interval of each quantity, see `molequi.inference.intervals`.
    processes : Embedder, optional
        RDKit processes with the options of `embedding`, which stay open; by default new ones.

    Yields
    ------
    list of MoleculePrediction
        One for each molecule.
    Dataset or None
        All conformers; None if no molecule can be used.
    list of dict
        Predictions for each conformer.
    """
    request, options = embedding(model, source.kind, geometry)
    domain = DomainCheck(model)
    ahead, rows = itertools.tee(itertools.islice(source.rows(), start, None))
    made = embedder(options, source.total - start, workers) if processes is None else nullcontext(processes)
    with (
        made as running,
        ProgressBar("molecules", source.total, unit="molecule", show=progress, start=start, delay=2) as bar,
    ):
        answers = zip(rows, running.map(row.text for row in ahead))
        while part := list(itertools.islice(answers, CHUNK)):
            reasons = [row.fault or answer.get("reason") or _unknown(model, answer) for row, answer in part]
            rejected = [rejection(row, reason) if reason else None for (row, _), reason in zip(part, reasons)]
            wrong = [r for r in rejected if r is not None]
            if wrong and not skip:
                first, last = part[0][0].number, part[-1][0].number
                place = f"{source.name}, row{f's {first} to {last}' if last > first else f' {first}'}"
                report_rejected(wrong, place, len(part), skip=False)
            kept = [pair for pair, reason in zip(part, reasons) if not reason]
            data = conformer_dataset(kept, request) if kept else None
            domain.warn(
                Seen(
                    f"{row.where}, {answer['canonical']}",
                    answer["z"],
                    {n: float(answer[n]) for n in ("charge", "spin")},
                )
                for row, answer in kept
            )
            each = predictions(model, data, batch_edges, progress=False) if data is not None else []
            by_molecule: dict[int, list] = {}
            for number, result in zip(() if data is None else data.info["molecule"], each):
                by_molecule.setdefault(number, []).append(result)
            several = geometry.conformers > 1 or source.several
            found = []
            for (row, answer), no in zip(part, rejected):
                result = {} if no else averaged(by_molecule[row.number], model, several=several)
                result = with_intervals(result, widths or {}, model, len(answer.get("z", ())))
                smiles = row.text if row.kind == "smiles" else answer.get("canonical", "")
                found.append(MoleculePrediction(row, result, no, len(answer.get("pos", ())), smiles))
            yield found, data, each
            bar.advance(len(part))


def _unknown(model: Model | Ensemble, answer: Mapping) -> str:
    """Why the model cannot take a molecule: elements that it does not know."""
    unknown = sorted(set(answer.get("z", ())) - set(model.elements))
    if not unknown:
        return ""
    known = " ".join(SYMBOLS[z] for z in model.elements)
    return f"{', '.join(SYMBOLS[z] for z in unknown)}: not an element that the model knows ({known})"


def averaged(
    results: Sequence[Mapping[str, np.ndarray]], model: Model | Ensemble, *, several: bool
) -> dict[str, np.ndarray]:
    """One result from those of all conformers of a molecule.

    Numbers are averaged, with their standard deviation over the conformers as ``<name>_conformer_std``.
    Vectors and tensors depend on the orientation of each geometry and are joined. The standard deviation over
    the members of an ensemble, ``<name>_std``, is the root mean square over the conformers.

    Parameters
    ----------
    results : sequence of mapping
        Predictions for each conformer.
    model : Model or Ensemble
        The model.
    several : bool
        Whether molecules have several conformers; if not, the result stays as it is.

    Returns
    -------
    dict of str to array
    """
    if not several:
        return dict(results[0])
    out: dict[str, np.ndarray] = {}
    for name, q in model.quantities.items():
        values = np.array([result[name] for result in results])
        out[name] = values if q.rank else values.mean(0)
        if not q.rank and not q.classes:
            single = np.full_like(out[name], np.nan)
            out[f"{name}_conformer_std"] = values.std(0, ddof=1) if len(values) > 1 else single
    for name, std in model.stds.items():
        values = np.array([result[std.name] for result in results])
        out[std.name] = values if model.quantities[name].rank else np.sqrt((values**2).mean(0))
    return out
