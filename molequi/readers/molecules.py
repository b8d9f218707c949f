"""Molecules without or with geometry, by RDKit: SMILES from lists, CSV and .smi files, records of SDF and MOL
files.
"""

import csv
import io
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.labels import check_complete, class_numbers
from molequi.data.record import Labels, Record
from molequi.data.request import Request
from molequi.data.sources import Source
from molequi.errors import ConfigError, DataError, DataWarning, did_you_mean
from molequi.quantities import Quantity
from molequi.readers.conformers import Embedder
from molequi.readers.files import Paths, expand_paths, select, source_of
from molequi.readers.molecule_files import Row, found, sdf_rows, smiles_rows
from molequi.util.files import write_file
from molequi.util.progress import ProgressBar

_MISSING = ("", "nan", "na", "n/a", "none", "null")


@dataclass(frozen=True)
class Rejected:
    """A molecule that cannot be used."""

    where: str
    number: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}{f' {self.text!r}' if self.text else ''}: {self.reason}"


def read_smiles(
    path: str | Path | Sequence[str],
    *,
    column: str = "smiles",
    id: str | None = None,
    index: str | int | slice = ":",
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
    conformers: Annotated[int, Ge(1)] = 1,
    seed: Annotated[int, Ge(0)] = 0,
    optimize: Literal["mmff", "uff"] | None = "mmff",
    fragments: Literal["refuse", "largest"] = "refuse",
    features: bool = False,
    skip: bool = False,
    rejected: str | Path | None = None,
    workers: Annotated[int, Ge(1)] | None = None,
) -> Dataset:
    """Molecules from SMILES, with hydrogens and geometries by ETKDGv3: every conformer is a structure.

    path: a list of SMILES; a table (.csv, .tsv; separated by comma, semicolon or tab, as its first line has
    it; also .gz) with the
        SMILES in `column`; or a file with a SMILES and perhaps a name a line (.smi).
    id: the column that identifies molecules, in which nothing may stand twice; by default "id", where there
    is one. index: which rows (":1000", "::10"), counted from 0. keys, units, partial, quantities: as in
    `read_ase`, for columns of labels. These files do not say units, so that every label that
        has one needs it: `units={"gap": "Hartree"}`. Classes stand there by name or number.
    conformers: how many geometries of each molecule, with its labels repeated; fewer where RDKit finds fewer.
    A geometry is a
        function of the molecule, `seed` and the version of RDKit, not of other rows or the number of
        processes.
    optimize: relax with MMFF94 or UFF, or take the geometry as ETKDG makes it.
    features: give `Graph.x` of atoms and `pair_index`, `pair_attr` of bonds, named in
    `molequi.readers.conformers`: aromaticity, formal
        charge, hybridization and chirality (+1 for R, -1 for S in the geometry at hand); single, double,
        triple, aromatic, conjugated, in a ring. Chirality would have to change its sign in a mirror: it is a
        pseudoscalar given as an invariant.
    skip: leave molecules out that cannot be used, with a DataWarning; else they are a DataError. rejected: a
    .csv file that lists them. workers: processes; by default as many as there are processors, for few
    molecules one.

    Policy. Charge and multiplicity are recorded in `Graph.charge` and `Graph.spin`: formal charges summed,
    and one more than the number of unpaired electrons of the formula, all parallel (a carbene `[CH2]` is a
    triplet, `O=O` a singlet). Radicals and ions are molecules like others; isotopes count as their element.
    Refused are dummies (`*`), metals and elements that ETKDG was not made for, and several fragments (salts,
    mixtures) unless fragments="largest". Stereocentres that the SMILES leaves open get what the seed gives
    them. info has the columns `smiles` (as written), `canonical`, `molecule` (number of the row),
    `conformer`, `scaffold` (Bemis-Murcko; "" without rings) for `split(by=...)`, and those of the table that
    are no labels. Raises DataError with row, SMILES and RDKit's reason.

    >>> read_smiles(["CCO", "c1ccccc1"]).info["scaffold"]
    ('', 'c1ccccc1')
    """
    request = _request(quantities, keys, units, partial, geometry=False)
    listed = not isinstance(path, (str, Path))
    rows = list(smiles_rows(path, column=column))
    name = "list" if listed else str(path)
    if not rows:
        raise DataError(f"{name}: no molecules; wanted at least one")
    _check_ids(name, rows, id)
    total = len(rows)
    rows = [rows[k] for k in select(index, total, name)]
    options = job(
        "smiles",
        request,
        conformers=conformers,
        seed=seed,
        optimize=optimize,
        fragments=fragments,
        features=features,
    )
    return _read(
        rows,
        options,
        request,
        name,
        skip,
        rejected,
        workers,
        () if listed else [source_of(Path(name), total)],
    )


def read_sdf(
    path: Paths,
    *,
    index: str | int | slice = ":",
    keys: Mapping | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
    embed: bool = False,
    conformers: Annotated[int, Ge(1)] = 1,
    seed: Annotated[int, Ge(0)] = 0,
    optimize: Literal["mmff", "uff"] | None = "mmff",
    fragments: Literal["refuse", "largest"] = "refuse",
    features: bool = False,
    skip: bool = False,
    rejected: str | Path | None = None,
    workers: Annotated[int, Ge(1)] | None = None,
) -> Dataset:
    """Molecules with their coordinates and properties from SDF and MOL files, V2000 and V3000.

    path: a file, a list of files, or a pattern ("mols/*.mol").
    embed: give records without coordinates in space (drawings, zeros) a geometry, in the way and with the
    options of `read_smiles`;
        else they are refused. Coordinates in space are taken as they are, of fragments and metals too;
        hydrogens that are not listed are placed beside them, with a DataWarning.
    Properties are labels and columns of `info` as those of a table are in `read_smiles`; numbers of a vector
    or of all atoms, as the file lists these (hydrogens included), are separated by spaces. All other
    arguments, the policy for charges, radicals, isotopes and dummies, and the errors are those of
    `read_smiles`; errors name the record, counted from 0, and its line.
    """
    request = _request(quantities, keys, units, partial, geometry=True)
    files, rows, sources = expand_paths(path), [], []
    for file in files:
        records = list(sdf_rows(file))
        if not records:
            raise DataError(f"{file}: no records in this file (it is empty)")
        sources.append(source_of(file, len(records)))
        start = len(rows)
        rows += [records[k] for k in select(index, len(records), file)]
        for k, row in enumerate(rows[start:], start):
            row.number = k if len(files) > 1 else row.number
    options = job(
        "sdf",
        request,
        embed=embed,
        conformers=conformers,
        seed=seed,
        optimize=optimize,
        fragments=fragments,
        features=features,
    )
    return _read(rows, options, request, str(path), skip, rejected, workers, sources)


def _check_ids(name: str, rows: Sequence[Row], id: str | None) -> None:
    columns = list(rows[0].columns)
    if id is not None and id not in columns:
        raise DataError(f"{name}: no column {id!r}{did_you_mean(id, columns)}")
    column = id or found("id", columns)
    if column is None:
        return
    first: dict[str, Row] = {}
    for row in rows:
        value = row.columns[column]
        if not value:
            raise DataError(f"{row.where}: nothing in the column {column!r}, which identifies the molecules")
        if value in first:
            raise DataError(
                f"{row.where}: {column} {value!r} stands in {first[value].where} too; wanted every one "
                f"once, or another column named with id=... (columns: {', '.join(columns)})"
            )
        first[value] = row


def _request(quantities, keys, units, partial, *, geometry: bool) -> Request:
    request = Request(quantities=quantities, keys=keys, units=units, partial=partial)
    if not geometry:
        for name, q in list(request.candidates.items()):
            if q.rank or q.per == "node":
                if name in request.named:
                    raise ConfigError(
                        f"{name} belongs to the atoms or axes of a geometry, which a SMILES does not have; "
                        "read it from an SDF or extended XYZ file"
                    )
                del request.candidates[name], request.keys[name]
    if "positions" in request.units:
        raise ConfigError("units: positions are made here or, in SDF, in Å; leave 'positions' out")
    return request


def job(kind: str, request: Request, **options) -> dict:
    """The options of `conformers.geometry`."""
    spin = "spin" in request.invariants and "spin" not in request.named_invariants
    return {"kind": kind, "embed": False, "spin": spin, **options}


def embedder(options: Mapping, count: int | None, workers: int | None) -> Embedder:
    """Processes for `count` molecules (None: many)."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = workers if count is None else max(1, min(workers, count // 50))
    return Embedder(options, workers)


def _read(
    rows: list[Row],
    options,
    request: Request,
    name: str,
    skip: bool,
    rejected,
    workers,
    sources: Sequence[Source],
) -> Dataset:
    _labels(rows, request)  # all labels are checked before the first geometry is made
    kept: list[tuple[Row, dict]] = []
    refused: list[Rejected] = []
    with (
        embedder(options, len(rows), workers) as made,
        ProgressBar("molecules", len(rows), unit="molecule", delay=3) as bar,
    ):
        for row, result in zip(rows, made.map(row.text for row in rows)):
            bar.advance()
            reason = row.fault or result.get("reason")
            if reason:
                refused.append(refusal(row, reason, options))
            else:
                kept.append((row, result))
    if rejected is not None:
        write_rejected(refused, Path(rejected))
    if refused:
        tell_rejected(refused, name, len(rows), skip, rejected)
    if not kept:
        raise DataError(f"{name}: none of its {len(rows)} molecules can be used")
    _tell(kept, name, options)
    return dataset(kept, request, sources)


def refusal(row: Row, reason: str, options: Mapping) -> Rejected:
    return Rejected(
        row.where,
        row.number,
        row.text if options["kind"] == "smiles" else row.columns.get("name", ""),
        reason,
    )


def tell_rejected(refused: Sequence[Rejected], name: str, total: int, skip: bool, file=None) -> None:
    """DataError, or DataWarning with `skip`, on molecules that cannot be used: how many, and the first ones."""
    listed = "\n".join(f"  {r}" for r in refused[:5]) + (
        f"\n  … and {len(refused) - 5} more" if len(refused) > 5 else ""
    )
    where = f"; all of them are listed in {file}" if file else ""
    what = f"{name}: {len(refused)} of {total} molecules cannot be used"
    if not skip:
        raise DataError(f"{what}:\n{listed}\nskip=True (--skip) leaves them out{where}")
    warnings.warn(f"{what} and are left out{where}:\n{listed}", DataWarning, stacklevel=4)


def write_rejected(refused: Sequence[Rejected], path: Path) -> None:
    """A table of molecules that cannot be used: row, place, SMILES or name, reason."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "place", "molecule", "reason"])
    table.writerows([r.number, r.where, r.text, r.reason] for r in refused)
    write_file(path, text.getvalue(), error=DataError)


def _tell(kept: Sequence[tuple[Row, dict]], name: str, options: Mapping) -> None:
    for key, wrong, text in (
        ("added", True, "lack hydrogens, which were placed beside the given atoms"),
        ("relaxed", False, f"did not come to their minimum by {str(options['optimize']).upper()}"),
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
            request.check_units([name], f"{have[0].where}: this kind of file", advice)
    return out


def _labels_of(row: Row, request: Request) -> Labels:
    columns: dict[str, Quantity | None] = {request.keys[n].key: q for n, q in request.candidates.items()}
    columns |= {request.invariants[name][0]: None for name in request.named_invariants}
    stored = {}
    if not row.fault:
        found = ((column, _cell(row, column, q)) for column, q in columns.items())
        stored = {column: value for column, value in found if value is not None}
    return Labels(where=row.where, values=request.pick(stored), keys=tuple(row.columns))


def _cell(row: Row, column: str, q: Quantity | None) -> float | np.ndarray | None:
    """A cell of a table as a number, numbers, or the number of a class; None where it is empty."""
    text = row.columns.get(column)
    if text is None or text.lower() in _MISSING:
        return None
    where = f"{row.where}: {column}"
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if q is not None and q.classes:
        raw = np.array(numbers[:1]) if numbers and text not in q.classes else np.array([text])
        return float(class_numbers(raw, q, where)[0])
    if not numbers:
        hint = "; has it a decimal comma?" if "," in text else ""
        raise DataError(f"{where} is {text!r}; wanted a number{hint} (columns: {', '.join(row.columns)})")
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{where} is {text!r}; wanted finite numbers")
    return numbers[0] if len(numbers) == 1 else np.array(numbers)


def dataset(kept: Sequence[tuple[Row, dict]], request: Request, sources: Sequence[Source] = ()) -> Dataset:
    """A Dataset of all conformers of rows and what `Embedder` made of them."""
    labels = _labels([row for row, _ in kept], request)
    names = {name for found in labels for name in found.values if name in request.keys}
    used = {request.keys[name].key for name in names}
    records: list[Record] = []
    for (row, result), given in zip(kept, labels):
        values = given.values | _totals(row, result, given.values, request)
        columns = {k: v for k, v in row.columns.items() if k not in used}
        records += [_record(row, result, c, values, columns, used) for c in range(len(result["pos"]))]
    notes = {"charge": "formal charges", "spin": "1 + unpaired electrons of the formula"}
    notes = {name: note for name, note in notes.items() if name not in request.named_invariants}
    return assemble(records, request, sources=sources, found=notes)


def _totals(row: Row, result: Mapping, values: Mapping, request: Request) -> dict[str, object]:
    """Total charge and multiplicity, from the formula if not from the table.

    Raises DataError if the table has another charge than the formula.
    """
    out = {n: values.get(n, float(result[n])) for n in ("charge", "spin") if n in request.invariants}
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
            "smiles": row.text if "\n" not in row.text else result["canonical"],
            "canonical": result["canonical"],
            "molecule": row.number,
            "conformer": conformer,
            "scaffold": result["scaffold"],
        },
        keys=tuple(used),
    )
