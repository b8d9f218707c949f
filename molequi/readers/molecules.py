"""Molecules by RDKit: SMILES from lists, tables and .smi files, records of SDF and MOL files."""

import csv
import io
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

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
from molequi.readers.molecule_files import Row, find_column, sdf_rows, smiles_rows
from molequi.util.files import write_file
from molequi.util.progress import ProgressBar
from molequi.util.signature import check_keywords

_MISSING = ("", "nan", "na", "n/a", "none", "null")


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


# Options of an earlier version, and what to write now.
RENAMED = {"rejected": "skip=True, or skip=<path of a .csv file>, which lists the molecules left out too"}


@check_keywords(RENAMED)
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
    skip: bool | str | Path = False,
    workers: Annotated[int, Ge(1)] | None = None,
) -> Dataset:
    """Read molecules from SMILES, with hydrogens and geometries by ETKDGv3. Each conformer is a structure.

    `Graph.charge` is the sum of the formal charges. `Graph.spin` is the multiplicity: one more than the
    number of unpaired electrons of the formula, all parallel (the carbene ``[CH2]`` is a triplet, ``O=O`` a
    singlet). Radicals and ions are read like other molecules, and isotopes like their element. Dummies
    (``*``), metals and elements that ETKDG does not support are refused. If the SMILES does not define a
    stereocenter, the seed decides.

    `info` has the columns ``smiles`` (as written), ``canonical``, ``molecule`` (number of the row),
    ``conformer``, ``scaffold`` (Bemis-Murcko, empty without rings), for `Dataset.split`, and the other
    columns of the table.

    Parameters
    ----------
    path : str, Path or list of str
        A list of SMILES; a table (.csv, .tsv, also .gz; separated by comma, semicolon or tab) with the SMILES
        in `column`; or a file with a SMILES and perhaps a name in each line (.smi).
    column : str
        The column with the SMILES.
    id : str, optional
        The column that identifies molecules; no value may occur twice. By default "id", if it exists.
    index : str, int or slice
        Rows in ASE's manner (":1000", "::10"), from 0.
    keys, partial, quantities
        As in `read_ase`, for columns of labels. Classes are given by name or number.
    units : mapping of str to str
        Unit by quantity, ``{"gap": "Hartree"}``; needed for each label with a unit, because tables do not say
        it.
    conformers : int
        Number of geometries of each molecule, which share its labels; RDKit may find fewer. A geometry
        depends on the molecule, `seed` and the version of RDKit, not on other rows or the number of
        processes.
    seed : int
        Seed of the geometries.
    optimize : {"mmff", "uff"} or None
        Relax with MMFF94 or UFF, or take the geometry as ETKDG makes it.
    fragments : {"refuse", "largest"}
        What to do with salts and mixtures.
    features : bool
        Give `Graph.x` of atoms, and `pair_index` with `pair_attr` of bonds, named in
        `molequi.readers.conformers`: aromaticity, formal charge, hybridization and chirality (+1 for R, -1
        for S in this geometry); single, double, triple, aromatic, conjugated, in a ring. Chirality is a
        pseudoscalar, which is given as an invariant here: it does not change its sign in a mirror image of
        the data.
    skip : bool, str or Path
        Leave out molecules that cannot be used, with a DataWarning; by default they raise DataError. If it is
        the path of a .csv file, they are also listed in this file.
    workers : int, optional
        Number of processes; by default the number of processors, and one for few molecules.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        With row, SMILES and the reason of RDKit.

    Examples
    --------
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
    options = geometry_options(
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
        workers,
        () if listed else [source_of(Path(name), total)],
    )


@check_keywords(RENAMED)
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
    skip: bool | str | Path = False,
    workers: Annotated[int, Ge(1)] | None = None,
) -> Dataset:
    """Read molecules with coordinates and properties from SDF and MOL files, V2000 and V3000.

    Properties are labels and columns of `info`, like the columns of a table in `read_smiles`. The components
    of a vector, or the values of all atoms in the order of the file (hydrogens included), are separated by
    spaces. Charges, radicals, isotopes and dummies are treated as in `read_smiles`.

    Parameters
    ----------
    path : str, Path or sequence of them
        A file, a list of files, or a pattern such as ``"mols/*.mol"``.
    index : str, int or slice
        Records of each file in ASE's manner, from 0.
    keys, units, partial, quantities
        As in `read_smiles`.
    embed : bool
        Make a geometry for records without coordinates in space (drawings, zeros), by ETKDGv3 as in
        `read_smiles`; by default they are refused. Coordinates in space are taken as they are, also of
        fragments and metals; hydrogens that are not listed are placed beside them, with a DataWarning.
    conformers, seed, optimize, fragments
        As in `read_smiles`, for `embed`.
    features, skip, workers
        As in `read_smiles`.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        With the number of the record, from 0, and its line.
    """
    request = _request(quantities, keys, units, partial, geometry=True)
    files = expand_paths(path)
    rows: list[Row] = []
    sources = []
    for file in files:
        records = list(sdf_rows(file))
        if not records:
            raise DataError(f"{file}: no records in this file (it is empty)")
        sources.append(source_of(file, len(records)))
        rows += [records[k] for k in select(index, len(records), file)]
    if len(files) > 1:
        rows = [replace(row, number=k) for k, row in enumerate(rows)]
    options = geometry_options(
        "sdf",
        request,
        embed=embed,
        conformers=conformers,
        seed=seed,
        optimize=optimize,
        fragments=fragments,
        features=features,
    )
    return _read(rows, options, request, str(path), skip, workers, sources)


def _check_ids(name: str, rows: Sequence[Row], id: str | None) -> None:
    """Raise DataError if the column that identifies molecules has a gap or a value twice."""
    columns = list(rows[0].columns)
    if id is not None and id not in columns:
        raise DataError(f"{name}: no column {id!r}{did_you_mean(id, columns)}")
    column = id or find_column("id", columns)
    if column is None:
        return
    first: dict[str, Row] = {}
    for row in rows:
        value = row.columns[column]
        if not value:
            raise DataError(f"{row.where}: nothing in the column {column!r}, which identifies the molecules")
        if value in first:
            raise DataError(
                f"{row.where}: {column} {value!r} is also in {first[value].where}; wanted each value "
                f"once, or another column named with id=... (columns: {', '.join(columns)})"
            )
        first[value] = row


def _request(
    quantities: str | Quantity | Sequence[str | Quantity],
    keys: Mapping | None,
    units: Mapping[str, str] | None,
    partial: str | Sequence[str],
    *,
    geometry: bool,
) -> Request:
    """The labels to read; without `geometry`, no labels of atoms and no vectors."""
    request = Request(quantities=quantities, keys=keys, units=units, partial=partial)
    if "positions" in request.units:
        raise ConfigError("units: positions are made here or, in SDF, in Å; leave 'positions' out")
    if geometry:
        return request
    turning = [name for name, q in request.candidates.items() if q.rank or q.per == "node"]
    for name in turning:
        if name in request.named:
            raise ConfigError(
                f"{name} belongs to the atoms or axes of a geometry, which a SMILES does not have; read it "
                "from an SDF "
                "or extended XYZ file"
            )
    return Request(
        quantities=quantities, keys={**(keys or {}), **dict.fromkeys(turning)}, units=units, partial=partial
    )


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


def _read(
    rows: Sequence[Row],
    options: Mapping[str, object],
    request: Request,
    name: str,
    skip: bool | str | Path,
    workers: int | None,
    sources: Sequence[Source],
) -> Dataset:
    """A Dataset of these rows."""
    _labels(rows, request)  # all labels are checked before the first geometry is made
    kept: list[tuple[Row, dict]] = []
    rejected: list[Rejected] = []
    with (
        embedder(options, len(rows), workers) as made,
        ProgressBar("molecules", len(rows), unit="molecule", delay=3) as bar,
    ):
        for row, result in zip(rows, made.map(row.text for row in rows)):
            bar.advance()
            reason = row.fault or result.get("reason")
            if reason:
                rejected.append(rejection(row, reason, options))
            else:
                kept.append((row, result))
    if not isinstance(skip, bool):
        _write_rejected(rejected, Path(skip))
    if rejected:
        report_rejected(rejected, name, len(rows), skip)
    if not kept:
        raise DataError(f"{name}: none of its {len(rows)} molecules can be used")
    _warn_of_geometries(kept, name, options)
    return conformer_dataset(kept, request, sources)


def rejection(row: Row, reason: str, options: Mapping[str, object]) -> Rejected:
    """The record of a molecule that cannot be used."""
    text = row.text if options["kind"] == "smiles" else row.columns.get("name", "")
    return Rejected(row.where, row.number, text, reason)


def report_rejected(rejected: Sequence[Rejected], name: str, total: int, skip: bool | str | Path) -> None:
    """Raise DataError, or with `skip` warn, that molecules cannot be used: how many, and the first ones."""
    listed = "\n".join(f"  {r}" for r in rejected[:5])
    listed += f"\n  … and {len(rejected) - 5} more" if len(rejected) > 5 else ""
    what = f"{name}: {len(rejected)} of {total} molecules cannot be used"
    if skip is False:
        raise DataError(f"{what}:\n{listed}\nskip=True (--skip) leaves them out")
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


def conformer_dataset(
    kept: Sequence[tuple[Row, dict]], request: Request, sources: Sequence[Source] = ()
) -> Dataset:
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
            "smiles": row.text if "\n" not in row.text else result["canonical"],
            "canonical": result["canonical"],
            "molecule": row.number,
            "conformer": conformer,
            "scaffold": result["scaffold"],
        },
        keys=tuple(used),
    )
