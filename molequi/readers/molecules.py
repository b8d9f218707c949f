"""Molecules by RDKit: SMILES from lists, tables and .smi files, records of SDF and MOL files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from molequi.data.dataset import Dataset
from molequi.data.request import Request
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.quantities import Quantity
from molequi.readers.files import Paths, expand_paths, select, source_of
from molequi.readers.frames import DataFrame, list_name
from molequi.readers.headers import columns_with_units
from molequi.readers.molecule_data import geometry_options, molecule_dataset
from molequi.readers.molecule_files import Row, find_column, sdf_rows, smiles_rows
from molequi.util.signature import check_keywords

# Options of an earlier version, and what to write now.
RENAMED = {"rejected": "skip=True, or skip=<path of a .csv file>, which lists the molecules left out too"}


@check_keywords(RENAMED)
def read_smiles(
    path: str | Path | Sequence[str] | DataFrame,
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
    path : str, Path, list of str or pandas.DataFrame
        A list of SMILES; a table (.csv, .tsv, also .gz; separated by comma, semicolon or tab) or a DataFrame
        with the SMILES in `column`; or a file with a SMILES and perhaps a name in each line (.smi).
    column : str
        The column with the SMILES.
    id : str, optional
        The column that identifies molecules; no value may occur twice. By default "id", if it exists.
    index : str, int or slice
        Rows in ASE's manner (":1000", "::10"), from 0.
    keys, partial, quantities
        As in `read_ase`, for columns of labels. Classes are given by name or number. A column of numbers with
        decimal commas (``1,23``) is read, and the summary says so.
    units : mapping of str to str
        Unit by quantity, ``{"gap": "Hartree"}``; needed for each label with a unit whose column does not say
        it. The columns ``gap (eV)`` and ``gap [eV]`` are labels of ``gap`` in eV.
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
    labels = LabelOptions(quantities, keys, units, partial)
    request = labels.request(geometry=False)
    listed = not isinstance(path, (str, Path))
    rows = list(smiles_rows(path, column=column))
    name = list_name(path) if listed else str(path)
    if not rows:
        raise DataError(f"{name}: no molecules; wanted at least one")
    request = labels.with_headers(request, rows, name)
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
    sources = () if listed else [source_of(Path(name), total)]
    return molecule_dataset(rows, options, request, name, skip, workers, sources)


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
        `read_smiles`; by default they are refused. A flat drawing is recognized by its coordinates, whatever
        its header says: hydrogens that are not listed, neighbors in the plane of an atom, or bonds of
        unusual lengths and angles. A drawing of a linear molecule, such as CO2, whose bonds happen to have
        usual lengths cannot be told from a geometry. Coordinates in space are taken as they are, also of
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
    labels = LabelOptions(quantities, keys, units, partial)
    request = labels.request(geometry=True)
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
    request = labels.with_headers(request, rows, str(path))
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
    return molecule_dataset(rows, options, request, str(path), skip, workers, sources)


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


@dataclass(frozen=True)
class LabelOptions:
    """The options of a reader that say which labels are read; see `molequi.read_smiles`."""

    quantities: Sequence[str | Quantity]
    keys: Mapping[str, Any] | None
    units: Mapping[str, str] | None
    partial: Sequence[str]

    def request(self, *, geometry: bool) -> Request:
        """The labels to read; without `geometry`, no labels of atoms and no vectors."""
        request = self._with({}, {})
        if "positions" in request.units:
            raise ConfigError("units: positions are made here or, in SDF, in Å; leave 'positions' out")
        if geometry:
            return request
        turning = [name for name, q in request.candidates.items() if q.rank or q.per == "node"]
        for name in turning:
            if name in request.named:
                raise ConfigError(
                    f"{name} belongs to the atoms or axes of a geometry, which a SMILES does not have; "
                    "read it "
                    "from an SDF "
                    "or extended XYZ file"
                )
        return self._with(dict.fromkeys(turning), {})

    def with_headers(self, request: Request, rows: Sequence[Row], where: str) -> Request:
        """The same, with the labels whose column has its unit in its name, such as ``gap (eV)``."""
        columns = dict.fromkeys(column for row in rows for column in row.columns)
        keys, units = columns_with_units(request, columns, where)
        if not keys:
            return request
        left_out = [name for name in request.skipped if name not in keys]
        return self._with(dict.fromkeys(left_out) | keys, units)

    def _with(self, keys: Mapping[str, Any], units: Mapping[str, str]) -> Request:
        return Request(
            quantities=self.quantities,
            keys={**(self.keys or {}), **keys},
            units={**(self.units or {}), **units},
            partial=self.partial,
        )
