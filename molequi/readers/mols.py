"""Molecules that are RDKit objects already, with or without geometries."""

import base64
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataError
from molequi.quantities import Quantity
from molequi.readers.conformers import no_geometry
from molequi.readers.files import select
from molequi.readers.frames import DataFrame, as_frame, cell_text, frame_columns, frame_rows, list_name
from molequi.readers.molecule_data import geometry_options, molecule_dataset
from molequi.readers.molecule_files import Row, find_column, no_column
from molequi.readers.molecules import LabelOptions
from molequi.util.signature import check_keywords


def is_mol(what: object) -> bool:
    """Whether something is an RDKit molecule. RDKit is not imported for it.

    Parameters
    ----------
    what : object
        Anything.

    Examples
    --------
    >>> is_mol("CCO")
    False
    """
    chem = sys.modules.get("rdkit.Chem.rdchem")
    return chem is not None and isinstance(what, chem.Mol)


@check_keywords()
def read_mols(
    mols: Sequence[Any] | DataFrame,
    *,
    column: str = "ROMol",
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
    """Read RDKit molecules. Each conformer is a structure.

    A molecule with conformers in space keeps all of them, in Å and in their order. A molecule without
    conformers, or with a drawing (see `read_sdf`), gets geometries by ETKDGv3 as in `read_smiles`; its
    stereochemistry is kept. Hydrogens that are not atoms of the molecule are added, beside given coordinates
    with a DataWarning.

    Properties of a molecule (``mol.SetProp``) are labels and columns of `info`, as in `read_sdf`. Charges,
    radicals, isotopes and dummies are treated as in `read_smiles`.

    Parameters
    ----------
    mols : sequence of rdkit.Chem.Mol, or pandas.DataFrame
        The molecules; or a DataFrame with the molecules in `column`, whose other columns are labels and
        columns of `info`. None, which RDKit returns for what it cannot read, cannot be used, see `skip`.
    column : str
        The column of a DataFrame with the molecules; PandasTools of RDKit calls it "ROMol".
    index : str, int or slice
        Molecules in ASE's manner (":1000", "::10"), from 0.
    keys, units, partial, quantities
        As in `read_sdf`.
    conformers, seed, optimize, fragments
        As in `read_smiles`, for molecules without conformers in space.
    features, skip, workers
        As in `read_smiles`.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        With the number of the molecule and the reason of RDKit.
    ConfigError
        If several conformers are wanted and every molecule has its own.

    Examples
    --------
    >>> from rdkit import Chem
    >>> data = read_mols([Chem.MolFromSmiles("C[C@H](F)O")])
    >>> data[0].num_nodes, data.info["canonical"]
    (9, ('C[C@@H](O)F',))
    """
    labels = LabelOptions(quantities, keys, units, partial)
    request = labels.request(geometry=True)
    rows = list(mol_rows(mols, column=column))
    name = list_name(mols)
    if not rows:
        raise DataError(f"{name}: no molecules; wanted at least one")
    request = labels.with_headers(request, rows, name)
    rows = [rows[k] for k in select(index, len(rows), name)]
    if conformers > 1 and all(row.given for row in rows):
        raise ConfigError(
            f"conformers={conformers} would have no effect: every molecule has conformers in space, and "
            "all of "
            "them are read; leave conformers out, or remove them (mol.RemoveAllConformers())"
        )
    options = geometry_options(
        "mol",
        request,
        conformers=conformers,
        seed=seed,
        optimize=optimize,
        fragments=fragments,
        features=features,
    )
    return molecule_dataset(rows, options, request, name, skip, workers, ())


def mol_rows(mols: Sequence[Any] | DataFrame, *, column: str = "ROMol") -> Iterator[Row]:
    """The rows of a list or DataFrame of RDKit molecules.

    Parameters
    ----------
    mols : sequence of rdkit.Chem.Mol, or pandas.DataFrame
        The molecules.
    column : str
        The column of a DataFrame with the molecules.

    Raises
    ------
    DataError
        For an item that is neither a molecule nor None.
    """
    frame = as_frame(mols)
    if frame is None:
        for k, mol in enumerate(mols):  # type: ignore[arg-type]
            yield _row(mol, f"molecule {k}", k, {})
        return
    columns = frame_columns(frame)
    name = find_column(column, columns)
    if name is None:
        raise no_column("DataFrame", column, columns, "molecules")
    for k, (label, cells) in enumerate(frame_rows(frame)):
        mol = cells.pop(name)
        mol = mol if is_mol(mol) or cell_text(mol) else None
        others = {other: cell_text(value) for other, value in cells.items()}
        yield _row(mol, f"DataFrame, row {k} (index {label})", k, others)


def _row(mol: Any, where: str, number: int, columns: Mapping[str, str]) -> Row:
    """One molecule; its binary form keeps stereochemistry, hydrogens and all conformers."""
    if mol is None:
        fault = "None, which RDKit returns for a molecule that it cannot read"
        return Row(where, number, "", dict(columns), fault=fault, kind="mol")
    if not is_mol(mol):
        raise DataError(f"{where}: {mol!r} ({type(mol).__name__}); wanted an RDKit molecule (rdkit.Chem.Mol)")
    from rdkit.Chem import PropertyPickleOptions

    text = base64.b64encode(mol.ToBinary(int(PropertyPickleOptions.CoordsAsDouble))).decode()
    own = {name: cell_text(value) for name, value in mol.GetPropsAsDict().items()}
    if mol.HasProp("_Name") and mol.GetProp("_Name").strip():
        own.setdefault("name", mol.GetProp("_Name").strip())
    return Row(
        where,
        number,
        text,
        {**own, **columns},
        kind="mol",
        given=sum(not no_geometry(mol, c) for c in mol.GetConformers()),
    )
