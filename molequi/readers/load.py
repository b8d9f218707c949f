"""Load anything that holds structures as a Dataset; the kind of input is recognized here."""

import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from molequi.data.dataset import Dataset
from molequi.data.request import INVARIANTS
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.graph import Graph
from molequi.quantities import KNOWN, Quantity
from molequi.readers.arrays import read_npz
from molequi.readers.ase import from_atoms, read_ase
from molequi.readers.frames import as_frame
from molequi.readers.hdf5 import read_hdf5
from molequi.readers.hdf5_file import HDF5
from molequi.readers.molecule_files import CSV, SDF, SMI, suffix
from molequi.readers.molecules import read_sdf, read_smiles
from molequi.readers.mols import is_mol, read_mols
from molequi.readers.npz import opened
from molequi.readers.point_files import MESHES
from molequi.readers.points import read_points
from molequi.readers.store import read_store
from molequi.readers.tables import find_smiles_column
from molequi.store.manifest import check_no_stores_inside, is_store
from molequi.util.signature import check_call


def load_dataset(what: object, *, only: Collection[str] | None = None, **options: Any) -> Dataset:
    """Load anything that holds structures as a Dataset.

    Files are read by their suffix: .csv, .tsv, .txt, .smi, .smiles as SMILES; .sdf, .sd, .mol as SDF; .npz as
    molecules, or as points if it has no elements; .h5, .hdf5 as groups of structures; .npy, .ply, .off, .obj,
    .stl and folders as point clouds; every other one by ASE.

    Parameters
    ----------
    what : object
        A Dataset (returned as it is), a Graph, ase.Atoms, an RDKit molecule, a pandas.DataFrame with a column
        of SMILES, a path, or a list of Graphs, of Atoms, of RDKit molecules, of paths or of SMILES. A single
        text is a path. A list of texts has paths if the first text has a known suffix or is an existing path;
        otherwise it has SMILES.
    only : collection of str, optional
        Names of the known quantities to read, with "charge" and "spin" among them if wanted. Others are not
        read and not checked. By default all are read.
    **options
        Options of the reader, such as `keys`, `units`, `quantities` or `conformers`.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If `what` is something else.
    ConfigError
        If the reader does not have an option, or if nothing is read.
    """
    return read_dataset(what, options, only=only)


def load_labelled(what: object, quantities: Mapping[str, Quantity], totals: Collection[str]) -> Dataset:
    """Load structures with labels of these quantities, for a training.

    A reader finds known quantities by itself. If one is not known, all are asked for, and all must be there.

    Parameters
    ----------
    what : object
        As for `load_dataset`.
    quantities : mapping of str to Quantity
        What a model predicts, by name.
    totals : collection of str
        Which of ``"charge"`` and ``"spin"`` are read, too.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError, ConfigError
        As `load_dataset`.
    """
    reader, _ = reader_of(what)
    options: dict[str, Any] = {}
    if reader is not None and any(name not in KNOWN for name in quantities):
        options["quantities"] = list(quantities.values())
    if reader is read_smiles and (as_frame(what) is not None or isinstance(what, (str, os.PathLike))):
        table = as_frame(what) is not None or suffix(Path(str(what))) in CSV
        options |= {"column": find_smiles_column(what)} if table else {}  # type: ignore[arg-type]
    return load_dataset(what, only=(*quantities, *totals), **options)


def read_dataset(
    what: object,
    options: Mapping[str, Any],
    *,
    only: Collection[str] | None = None,
    where: str | None = None,
    more: Collection[str] = (),
) -> Dataset:
    """Load structures for another function, whose name error messages say.

    Parameters
    ----------
    what : object
        As for `load_dataset`.
    options : mapping
        Options of the reader.
    only : collection of str, optional
        As for `load_dataset`.
    where : str, optional
        The function that the user called, such as "predict"; by default the name of the reader.
    more : collection of str
        Arguments of that function, for suggestions.

    Raises
    ------
    DataError, ConfigError
        As `load_dataset`.
    """
    reader, found = reader_of(what)
    # None and empty lists are what most options are by default; samples=None and optimize=None say something.
    options = {
        n: v
        for n, v in options.items()
        if (v is not None and (v or v is False or v == 0)) or (v is None and reader and _says_none(reader, n))
    }
    if reader is None:
        if options:
            unknown = [name for name in options if not _is_reader_option(name)]
            if where is not None and unknown:
                raise ConfigError(f"{where}.{unknown[0]}: no such argument{did_you_mean(unknown[0], more)}")
            raise ConfigError(
                f"{' and '.join(options)} {'is' if len(options) == 1 else 'are'} for reading files, SMILES "
                "or Atoms; these data have been read already"
            )
        return found
    first, *parameters = inspect.signature(reader).parameters
    fixed = [name for name in options if name not in parameters and _is_reader_option(name)]
    if reader is read_store and fixed:
        raise ConfigError(
            f"{where or 'read_store'}.{fixed[0]}: {found} is a store of prepared structures, and how files "
            "are read was said when it was made; leave it out, or make the store again with it:\n"
            f"  molequi prepare … --out {found} --restart --{fixed[0]} …"
        )
    if only is not None and "keys" in parameters:
        options["keys"] = {
            **dict.fromkeys(n for n in (*KNOWN, *INVARIANTS) if n not in only),
            **options.get("keys", {}),
        }
    check_call(reader, options, where=where or reader.__name__, leave_out=(first,), more=tuple(more))
    return reader(found, **options)


def _says_none(reader: Callable, name: str) -> bool:
    """Whether None is a choice of an option, and not its default."""
    option = inspect.signature(reader).parameters.get(name)
    if option is None or option.default in (None, inspect.Parameter.empty):
        return False
    return type(None) in get_args(option.annotation)


def _is_reader_option(name: str) -> bool:
    """Whether one of the readers has this option."""
    readers = (read_ase, read_hdf5, read_npz, read_points, read_sdf, read_smiles)
    return any(name in inspect.signature(reader).parameters for reader in readers)


def reader_of(what: object) -> tuple[Callable | None, Any]:
    """The reader of what was given, and what it reads; None and a Dataset if nothing is to be read."""
    if isinstance(what, Dataset):
        return None, what
    if isinstance(what, (str, os.PathLike)):
        if not os.fspath(what):
            raise DataError(f"found an empty path; wanted {_WANTED}")
        return _of_file(what), what
    if isinstance(what, Graph):
        return None, Dataset([what])
    if hasattr(what, "get_positions"):
        return from_atoms, [what]
    if as_frame(what) is not None:
        return read_smiles, what
    if is_mol(what):
        return read_mols, [what]
    if isinstance(what, (bytes, Mapping)) or not isinstance(what, Iterable):
        raise DataError(f"found {type(what).__name__} {str(what)[:60]!r}; wanted {_WANTED}")
    items = list(what)
    # None among RDKit molecules is one that RDKit could not read.
    kind = _kind_of_all([i for i in items if i is not None] if any(map(is_mol, items)) else items, what)
    if kind == "Graph":
        return None, Dataset(items)
    if kind == "Atoms":
        return from_atoms, items
    if kind == "Mol":
        return read_mols, items
    if isinstance(items[0], str) and not _is_file(items[0]):
        return read_smiles, items
    readers = {_of_file(item) for item in items}
    if len(readers) > 1 or (len(items) > 1 and readers & {read_smiles, read_npz}):
        raise DataError(
            f"{', '.join(map(str, items[:4]))}: these files are of different kinds, or of a kind of which "
            "only one is "
            "read at a time; read each one and add the data sets: first + second"
        )
    (reader,) = readers
    return reader, items[0] if reader in (read_smiles, read_npz) else items


def _kind_of_all(items: Sequence, container: object) -> str:
    """The one kind of all items: Graph, Atoms, Mol or text."""
    if not items:
        raise DataError(f"no structures in an empty {type(container).__name__}; wanted {_WANTED}")
    for kind, test in _KINDS.items():
        same = [test(item) for item in items]
        if all(same):
            return kind
        if any(same):
            raise DataError(
                f"item {same.index(True)} is {kind} and item {same.index(False)} is "
                f"{_short(items[same.index(False)])}; wanted all of one kind"
            )
    raise DataError(f"item 0 is {_short(items[0])}; wanted {_WANTED}")


_WANTED = (
    "a Dataset, a Graph, ase.Atoms, an RDKit molecule, a DataFrame, a path, or a list of Graphs, of Atoms, "
    "of "
    "molecules, of paths, or of SMILES"
)
_KINDS = {
    "Graph": lambda item: isinstance(item, Graph),
    "Atoms": lambda item: hasattr(item, "get_positions"),
    "Mol": is_mol,
    "text": lambda item: isinstance(item, (str, os.PathLike)),
}
_STRUCTURES = (
    *CSV,
    *SMI,
    *SDF,
    *MESHES,
    *HDF5,
    ".npz",
    ".npy",
    ".xyz",
    ".extxyz",
    ".traj",
    ".cif",
    ".db",
    ".aselmdb",
    ".json",
    ".pdb",
    ".vasp",
    ".out",
    ".gen",
)


def _short(item: object) -> str:
    return f"{type(item).__name__} {str(item)[:40]!r}"


def _is_file(text: str) -> bool:
    return suffix(Path(text)) in _STRUCTURES or Path(text).exists()


def _of_file(path: str | os.PathLike) -> Callable:
    path = Path(path)
    kind = suffix(path)
    if kind in CSV + SMI:
        return read_smiles
    if kind in SDF:
        return read_sdf
    if kind in HDF5:
        return read_hdf5
    if not kind and not path.exists():
        raise DataError(f"{path}: no such file; give SMILES as a list: [{str(path)!r}]")
    if is_store(path):
        return read_store
    check_no_stores_inside(path)
    if kind == ".npy" or kind in MESHES or path.is_dir():
        return read_points
    if kind == ".npz":
        with opened(path) as arrays:
            return read_npz if {"z", "nuclear_charges"} & set(arrays) else read_points
    return read_ase
