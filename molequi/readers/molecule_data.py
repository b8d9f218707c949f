"""From rows of molecules to a Dataset: labels, conformers, and molecules that are left out."""

import csv
import io
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.labels import check_complete, class_numbers
from molequi.data.record import Labels, Record
from molequi.data.request import Request
from molequi.data.sources import Source
from molequi.errors import DataError, DataWarning
from molequi.quantities import Quantity
from molequi.readers.decimal_commas import number_hint, without_decimal_commas
from molequi.readers.embedder import Embedder
from molequi.readers.molecule_files import MISSING, Row
from molequi.util.files import write_file
from molequi.util.progress import ProgressBar

INFO = ("smiles", "canonical", "molecule", "conformer", "scaffold")  # columns that every reader here makes
SKIP = "skip=True (--skip) leaves them out"


@dataclass(frozen=True)
class Rejected:
    """A molecule that cannot be used.

    Parameters
    ----------
    where : str
        Place in the file.
    number : int
        Row or record, from 0.
    text : str
        SMILES, or the name in an SDF file.
    reason : str
        Why it cannot be used.
    """

    where: str
    number: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}{f' {self.text!r}' if self.text else ''}: {self.reason}"


def geometry_options(kind: str, request: Request, **options: object) -> dict[str, object]:
    """The options of `molequi.readers.conformers.geometry`, with the multiplicity if it is wanted."""
    spin = "spin" in request.invariants and "spin" not in request.named_invariants
    return {"kind": kind, "embed": False, "spin": spin, **options}


def embedder(options: Mapping, count: int | None, workers: int | None) -> Embedder:
    """Processes that make geometries of `count` molecules; None stands for many."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = workers if count is None else max(1, min(workers, count // 50))
    return Embedder(options, workers)


def molecule_dataset(
    rows: Sequence[Row],
    options: Mapping[str, object],
    request: Request,
    name: str,
    skip: bool | str | Path,
    workers: int | None,
    sources: Sequence[Source],
) -> Dataset:
    """A Dataset of these rows."""
    rows, commas = without_decimal_commas(rows, request, name)
    _labels(rows, request)  # all labels are checked before the first geometry is made
    kept: list[tuple[Row, dict]] = []
    rejected: list[Rejected] = []
    with (
        embedder(options, len(rows), workers) as made,
        ProgressBar("molecules", len(rows), unit="molecule", delay=3) as bar,
    ):
        if skip is False:
            _check_all(rows, made, name)
        for row, result in zip(rows, made.map(row.text for row in rows)):
            bar.advance()
            reason = row.fault or result.get("reason")
            if reason:
                rejected.append(rejection(row, reason))
            else:
                kept.append((row, result))
    if not isinstance(skip, bool):
        _write_rejected(rejected, Path(skip))
    if rejected:
        report_rejected(rejected, name, len(rows), skip)
    if not kept:
        raise DataError(f"{name}: none of its {len(rows)} molecules can be used")
    _warn_of_geometries(kept, name, options)
    drawn = options["kind"] == "smiles" or bool(options["embed"])
    reading = {name: options[name] for name in ("conformers", "optimize") if drawn}
    return conformer_dataset(kept, request, sources, commas, reading)


def _check_all(rows: Sequence[Row], made: Embedder, name: str) -> None:
    """Raise DataError for molecules that cannot be used, before the geometries of others take minutes."""
    answers = made.map((row.text for row in rows), check=True)
    reasons = [row.fault or answer.get("reason") for row, answer in zip(rows, answers)]
    wrong = [rejection(row, reason) for row, reason in zip(rows, reasons) if reason]
    if wrong:
        report_rejected(wrong, name, len(rows), skip=False)


def rejection(row: Row, reason: str) -> Rejected:
    """The record of a molecule that cannot be used."""
    text = row.text if row.kind == "smiles" else row.columns.get("name", "")
    return Rejected(row.where, row.number, text, reason)


def report_rejected(rejected: Sequence[Rejected], name: str, total: int, skip: bool | str | Path) -> None:
    """Raise DataError, or with `skip` warn, that molecules cannot be used: how many, and the first ones."""
    listed = "\n".join(f"  {r}" for r in rejected[:5])
    listed += f"\n  … and {len(rejected) - 5} more" if len(rejected) > 5 else ""
    what = f"{name}: {len(rejected)} of {total} molecules cannot be used"
    if skip is False:
        raise DataError(f"{what}:\n{listed}\n{SKIP}")
    where = "" if isinstance(skip, bool) else f"; all of them are listed in {skip}"
    warnings.warn(f"{what} and are left out{where}:\n{listed}", DataWarning, stacklevel=4)


def _write_rejected(rejected: Sequence[Rejected], path: Path) -> None:
    """A table of molecules that cannot be used: row, place, SMILES or name, reason."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "place", "molecule", "reason"])
    table.writerows([r.number, r.where, r.text, r.reason] for r in rejected)
    write_file(path, text.getvalue(), error=DataError)


def _warn_of_geometries(kept: Sequence[tuple[Row, dict]], name: str, options: Mapping[str, object]) -> None:
    """Warns of molecules with hydrogens that were added, and of those whose relaxation did not converge."""
    field = str(options["optimize"]).upper()
    for key, wrong, text in (
        ("added", True, "lack hydrogens, which were placed beside the given atoms"),
        ("relaxed", False, f"did not come to their minimum by {field}"),
        (
            "stereo",
            True,
            "are mixtures of stereoisomers (|&1:…|, |o1:…|), of which the written one is read",
        ),
    ):
        rows = [row for row, result in kept if bool(result[key]) == wrong]
        if rows:
            warnings.warn(
                f"{name}: {len(rows)} of {len(kept)} molecules {text}; the first is {rows[0].where}",
                DataWarning,
                stacklevel=4,
            )


def _labels(rows: Sequence[Row], request: Request) -> list[Labels]:
    """Labels of each row as numbers. Raises DataError where one is missing, is text or is not finite."""
    out = [_labels_of(row, request) for row in rows]
    usable = [labels for labels, row in zip(out, rows) if not row.fault]  # others are refused already
    advice = ", or name what is to be read with quantities=[...]"
    for name in request.candidates:
        have = [labels for labels in usable if name in labels.values]
        if usable and (name in request.named or have):
            check_complete(name, usable, request)
        if have:
            more = "" if name in request.named else advice
            request.check_units([name], f"{have[0].where}: this kind of file", more)
    return out


def _labels_of(row: Row, request: Request) -> Labels:
    """Labels of one row; none if it cannot be read."""
    columns: dict[str, Quantity | None] = {request.keys[n].key: q for n, q in request.candidates.items()}
    columns |= {request.invariants[name][0]: None for name in request.named_invariants}
    stored = {}
    if not row.fault:
        found = ((column, _cell(row, column, q)) for column, q in columns.items())
        stored = {column: value for column, value in found if value is not None}
    return Labels(where=row.where, values=request.pick(stored), keys=tuple(row.columns))


def _cell(row: Row, column: str, q: Quantity | None) -> float | np.ndarray | None:
    """A cell of a table as a number, numbers, or names of classes; None where it is empty."""
    text = row.columns.get(column)
    named = q is not None and text in q.classes  # a class may be called "None"
    if text is None or (text.lower() in MISSING and not named):
        return None
    where = f"{row.where}: {column}"
    if q is not None and q.classes:
        names = np.array(text.split() if q.per == "node" else [text])
        class_numbers(names, q, where)  # only to raise its errors before geometries are made
        return names
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if not numbers:
        raise DataError(
            f"{where} is {text!r}; wanted a number{number_hint(text)} (columns: "
            f"{', '.join(row.columns)}). Write the number, leave the cell empty (no label), or remove the row"
        )
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{where} is {text!r}; wanted finite numbers")
    return numbers[0] if len(numbers) == 1 else np.array(numbers)


def conformer_dataset(
    kept: Sequence[tuple[Row, dict]],
    request: Request,
    sources: Sequence[Source] = (),
    found: Mapping[str, str] | None = None,
    reading: Mapping[str, object] | None = None,
) -> Dataset:
    """A Dataset of all conformers of rows and what `Embedder` made of them."""
    labels = _labels([row for row, _ in kept], request)
    names = {name for found in labels for name in found.values if name in request.keys}
    used = {request.keys[name].key for name in names}
    records: list[Record] = []
    for (row, result), given in zip(kept, labels):
        values = given.values | _totals(row, result, given.values, request)
        columns = {_own_name(k, row.columns): v for k, v in row.columns.items() if k not in used}
        records += [_record(row, result, c, values, columns, used) for c in range(len(result["pos"]))]
    taken = [column for column in kept[0][0].columns if column in INFO and column not in used]
    if taken:
        names_now = ", ".join(_own_name(column, kept[0][0].columns) for column in taken)
        warnings.warn(
            f"{kept[0][0].where}: {', '.join(taken)} are columns of the table and of the reader; in info "
            f"those of the table are called {names_now}",
            DataWarning,
            stacklevel=4,
        )
    notes = {"charge": "formal charges", "spin": "1 + unpaired electrons of the formula"}
    notes = {name: note for name, note in notes.items() if name not in request.named_invariants}
    return assemble(records, request, sources=sources, found=notes | dict(found or {}), reading=reading)


def _own_name(column: str, columns: Collection[str]) -> str:
    """The name in info of a column of the table; another one if the reader makes a column of this name."""
    if column in INFO:
        column = f"{column} of the table"
        while column in columns:
            column += "'"
    return column


def _totals(row: Row, result: Mapping, values: Mapping, request: Request) -> dict[str, object]:
    """Total charge and multiplicity, from the formula if not from the table.

    Raises DataError if the table has another charge than the formula.
    """
    out: dict[str, Any] = {
        n: values.get(n, float(result[n])) for n in ("charge", "spin") if n in request.invariants
    }
    if "charge" in out and out["charge"] != result["charge"]:
        raise DataError(
            f"{row.where}: {request.invariants['charge'][0]} is {out['charge']:g}, and the formal charges of "
            f"{result['canonical']} add up to {result['charge']}"
        )
    return out


def _record(
    row: Row,
    result: Mapping,
    conformer: int,
    values: dict[str, object],
    columns: Mapping,
    used: Collection[str],
) -> Record:
    """One conformer of a molecule."""
    fields = {}
    if "x" in result:
        fields = {
            "x": np.array(result["x"][conformer]),
            "pair_index": np.array(result["pair_index"], dtype=np.int64).reshape(-1, 2).T,
            "pair_attr": np.array(result["pair_attr"]).reshape(len(result["pair_index"]), -1),
        }
    return Record(
        where=row.where,
        origin=row.where + (f", conformer {conformer}" if len(result["pos"]) > 1 else ""),
        pos=np.array(result["pos"][conformer]),
        z=np.array(result["z"]),
        fields=fields,
        values=values,
        info={
            **columns,
            "smiles": row.text if row.kind == "smiles" else result["canonical"],
            "canonical": result["canonical"],
            "molecule": row.number,
            "conformer": conformer,
            "scaffold": result["scaffold"],
        },
        keys=tuple(used),
    )
