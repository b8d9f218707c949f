"""Structures from and to torch_geometric: its Data objects, and its QM9, MD17 and ModelNet with units."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import INVARIANTS, Request
from molequi.errors import ConfigError, DataError, DataWarning, did_you_mean
from molequi.graph import FIELDS, Graph
from molequi.quantities import Quantity
from molequi.readers.stated import other_cell
from molequi.util.optional import require
from molequi.util.signature import check_keywords

if TYPE_CHECKING:
    from torch_geometric.data import Data

_CLASSES = "_classes"  # after the name of a label: the names that its numbers mean
_PLACES = ("batch", "ptr", "num_nodes", "shift")
_NUMBERS = (
    "z",
    "atomic_numbers",
    "atomic_number",
    "nuclear_charges",
)  # names of atomic numbers, here and in other packages
# What only atoms have. Positions beside these are not plain points, so their elements must not be missing.
_OF_ATOMS = (
    *("cell", "pbc", "natoms", "n_atoms", "atom_types", "atom_type", "species", "symbols", "elements"),
    *("element", "numbers", "node_attrs", "atomic_charges", "charges"),
)
COARSE = 1e-4  # eV; a tenth of what is called an accurate energy


@check_keywords()
def from_pyg(
    data: Any,
    *,
    targets: Mapping[str, str | Sequence] | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
    features: bool = True,
    pbc: bool | Sequence[bool] | None = None,
) -> Dataset:
    """Structures from torch_geometric.

    ``pos`` (N, D) is needed. ``z`` (N,), or ``atomic_numbers``, are atomic numbers. Without them the nodes
    are plain points, and their distances are not checked. ``charge``, ``spin``, ``vel``, ``vec``, ``cell``
    and ``pbc`` are the fields of Graph. Text and whole numbers, such as ``smiles``, become columns of `info`.
    A list of neighbors without ``edge_attr`` is not read; `molequi.connect` makes one.

    Parameters
    ----------
    data : Data, Batch, dataset or iterable of Data
        One Data, several, a Batch, a DataLoader or a data set of torch_geometric. Batches are separated.
    targets : mapping, optional
        The place of each label: an attribute, or an attribute and one of its columns, ``{"gap": ("y", 4)}``.
        Labels that are not named are not read. Classes are names, or numbers; what these mean, an
        attribute ``<name>_classes`` may say.
    units : mapping of str to str
        Unit of each label that has one, and of "positions" (Å otherwise); torch_geometric does not say units.
    partial : sequence of str
        Labels that may be missing, or NaN, in some structures.
    quantities : sequence of Quantity
        Declarations of targets whose names molequi does not know.
    features : bool
        Read ``x`` (N, F), and ``edge_index`` with ``edge_attr`` (B, A) as `pair_index` and `pair_attr`.
    pbc : bool or sequence of three bool, optional
        Periodic directions of structures that have a ``cell`` and no ``pbc``, which are refused otherwise.
        The data sets of Open Catalyst are periodic in all directions: ``pbc=True``.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        With the number of the structure, for what is missing, of a wrong shape, not finite or impossible.

    Warns
    -----
    DataWarning
        If energies are in single precision with steps larger than 0.1 meV.
    """
    columns = {name: _place(name, place) for name, place in (targets or {}).items()}
    own = {
        q.name: q
        for q in ([quantities] if isinstance(quantities, (str, Quantity)) else quantities)
        if isinstance(q, Quantity)
    }
    request = Request(
        quantities=[own.get(name, name) for name in columns],
        keys={n: key for n, (key, _) in columns.items()},
        units=units,
        partial=partial,
        rename="targets",
    )
    request.check_units(list(columns), "torch_geometric")
    records: list[Record] = []
    coarse: dict[str, float] = {}
    for k, item in enumerate(_items(data)):
        arrays, stored = _arrays(item, k, pbc)
        values = _values(arrays, stored, f"structure {k}", columns)
        for name, step in _steps(values, request).items():
            coarse[name] = max(step, coarse.get(name, 0.0))
        records.append(_record(arrays, stored, f"structure {k}", values, columns, request, features))
    if coarse:
        warnings.warn(
            f"{', '.join(coarse)}: in single precision, in which numbers of this size are "
            f"{1e3 * max(coarse.values()):.2g} meV apart; no model of them can be more accurate. Read the "
            "original files where that matters",
            DataWarning,
            stacklevel=2,
        )
    return assemble(records, request)


def _place(name: str, place: object) -> tuple[str, int | None]:
    """Attribute and column of a target as the caller names them."""
    given = (place, None) if isinstance(place, str) else place
    if isinstance(given, Sequence) and list(map(type, given)) in ([str, int], [str, type(None)]):
        return given[0], given[1]
    raise ConfigError(
        f"targets[{name!r}] is {place!r}; wanted an attribute such as 'y', or ('y', 4) for a column of it"
    )


@check_keywords()
def to_pyg(data: Graph | Dataset, *, y: str | None = None) -> "Data | list[Data]":
    """Structures as Data of torch_geometric.

    Fields of Graph, labels and columns of `info` become attributes of the same names. ``edge_index`` (row 0
    is the sender) and ``edge_attr`` are the neighbor list, with ``shift`` if there is a cell; of a structure
    without neighbor list they are the pairs. Classes of a Dataset are numbers, and ``<name>_classes`` are the
    names that these mean, which `from_pyg` reads.

    Parameters
    ----------
    data : Graph or Dataset
        One structure or several.
    y : str, optional
        The label that is called ``y``.

    Returns
    -------
    Data or list of Data
        A list for a Dataset.

    Raises
    ------
    DataError
        For a batch, and if two things have the same name.
    """
    if isinstance(data, Graph):
        return _data(data, {}, y)
    named = {
        ("y" if name == y else name) + _CLASSES: list(q.classes)
        for name, q in data.quantities.items()
        if q.classes
    }
    return [
        _data(graph, {n: c[k] for n, c in data.info.items() if c[k] is not None} | named, y)
        for k, graph in enumerate(data)
    ]


def _items(data: Any) -> Iterator:
    """The Data of whatever torch_geometric calls data; batches are separated, also those of a DataLoader."""
    with quiet_import():
        from torch_geometric.data import Batch, Data
    if isinstance(data, Batch):
        try:
            yield from data.to_data_list()
        except RuntimeError as error:
            raise DataError(
                "a Batch that was not made by Batch.from_data_list, so it cannot be separated; hand over the "
                "list of its Data"
            ) from error
    elif isinstance(data, Data) or hasattr(data, "to_dict") or not isinstance(data, Iterable):
        yield data
    else:
        for item in data:
            if isinstance(item, (Batch, list, tuple)):
                yield from _items(item)
            else:
                yield item


def _arrays(
    item: Any, k: int, pbc: bool | Sequence[bool] | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of one Data, positions, elements and cell checked, and all that it holds."""
    stored = item.to_dict() if hasattr(item, "to_dict") else {}
    arrays = {name: v.detach().cpu().numpy() for name, v in stored.items() if isinstance(v, Tensor)}
    if "pos" not in arrays or arrays["pos"].ndim != 2:
        raise DataError(
            f"structure {k} ({type(item).__name__}): no positions 'pos' (N, D); found "
            f"{', '.join(map(repr, stored)) or 'nothing'}"
        )
    _check_single(arrays, k)
    arrays["z"] = _atomic_numbers(arrays, stored, k)
    _set_cell(arrays, f"structure {k}", pbc)
    return arrays, stored


def _check_single(arrays: Mapping[str, np.ndarray], k: int) -> None:
    """Raise DataError if a Data holds several structures, as it does if a batch was not made a Batch."""
    several = [n for n in ("batch",) if n in arrays and arrays[n].size and np.ptp(arrays[n])]
    several += [n for n in ("natoms", "n_atoms") if n in arrays and arrays[n].size > 1]
    several += [n for n in ("ptr",) if n in arrays and arrays[n].size > 2]
    if several:
        raise DataError(
            f"structure {k}: {several[0]!r} says that this Data holds several structures; separate them "
            "(Batch.to_data_list)"
        )


def _atomic_numbers(arrays: Mapping[str, np.ndarray], stored: Mapping[str, Any], k: int) -> np.ndarray:
    """Atomic numbers (N,); zeros for plain points."""
    n, found = len(arrays["pos"]), [name for name in _NUMBERS if name in arrays]
    if not found:
        atoms = [name for name in _OF_ATOMS if stored.get(name) is not None]
        if atoms:
            raise DataError(
                f"structure {k}: {atoms[0]!r}, which atoms have, and no atomic numbers; wanted integers "
                f"({n},) as 'z' or 'atomic_numbers'. Found {', '.join(map(repr, stored))}"
            )
        return np.zeros(n, np.int64)
    z = arrays[found[0]]
    z = z.reshape(-1) if z.shape == (n, 1) else z
    whole = z.dtype.kind in "iu"
    if z.dtype.kind == "f" and found[0] != "z":  # Open Catalyst has whole numbers as floats
        whole = bool((z == np.floor(z)).all())
    if z.shape != (n,) or not whole:
        raise DataError(
            f"structure {k}: {found[0]!r} has atomic numbers of shape {z.shape} ({z.dtype}) for {n} "
            f"positions; wanted integers ({n},)"
        )
    for name in found[1:]:
        if not np.array_equal(arrays[name].reshape(-1), z):
            raise DataError(f"structure {k}: {found[0]!r} and {name!r} are different; wanted one of them")
    return z.astype(np.int64)


def _set_cell(arrays: dict[str, np.ndarray], where: str, pbc: bool | Sequence[bool] | None) -> None:
    """Shapes of cell and pbc. Raises DataError for a cell of which it is not known whether it is periodic."""
    dim = arrays["pos"].shape[1]
    cell, periodic = arrays.get("cell"), arrays.get("pbc")
    unread = "" if cell is not None else other_cell(arrays)
    if unread:
        raise DataError(
            f"{where}: {unread!r} would not be read, and the structure would have no cell; wanted the "
            f"lattice vectors as rows, ({dim}, {dim}), as 'cell', and 'pbc'"
        )
    if cell is not None:
        if cell.shape not in ((dim, dim), (1, dim, dim)) or cell.dtype.kind not in "iuf":
            raise DataError(
                f"{where}: cell of shape {cell.shape} ({cell.dtype}); wanted its vectors as rows, "
                f"({dim}, {dim}) or (1, {dim}, {dim})"
            )
        arrays["cell"] = cell = cell.reshape(dim, dim).astype(np.float64)
    if periodic is None and cell is not None and cell.any():
        if pbc is None:
            raise DataError(
                f"{where}: a cell and no 'pbc', so it is not known whether it is periodic; say pbc=True, "
                "pbc=False, or the directions, pbc=(True, True, False)"
            )
        periodic = np.asarray(pbc)
    if periodic is not None:
        if periodic.size not in (1, dim) or periodic.dtype.kind not in "biu":
            raise DataError(
                f"{where}: pbc of shape {periodic.shape} ({periodic.dtype}); wanted {dim} booleans"
            )
        arrays["pbc"] = np.broadcast_to(periodic.reshape(-1).astype(bool), (dim,)).copy()


def _values(
    arrays: Mapping[str, np.ndarray], stored: Mapping[str, Any], where: str, columns: Mapping
) -> dict[str, np.ndarray]:
    """Labels of one Data by quantity, as they are stored; names of classes may be texts."""
    out = {}
    for name, (key, column) in columns.items():
        texts = _texts(stored.get(key))
        if key not in arrays and texts is None:
            continue
        value = arrays[key] if texts is None else np.array(texts)
        if column is not None:
            if not value.ndim or not -value.shape[-1] <= column < value.shape[-1]:
                raise DataError(
                    f"{where}: {key} has the shape {value.shape}, so there is no column {column} for {name}"
                )
            value = value[..., column]
        out[name] = value
    return out


def _texts(value: object) -> list[str] | None:
    """A text or several; None for everything else."""
    found = [value] if isinstance(value, str) else value
    texts = isinstance(found, (list, tuple)) and found and all(isinstance(one, str) for one in found)
    return list(found) if texts else None  # type: ignore[call-overload]


def _steps(values: Mapping[str, np.ndarray], request: Request) -> dict[str, float]:
    """Distance in eV of neighboring numbers of single precision, for energies for which it is too large."""
    out = {}
    for name, value in values.items():
        if value.dtype == np.float32 and request.candidates[name].unit == "eV" and value.size:
            step = float(np.spacing(np.abs(value).max())) * abs(request.factors[name])
            if step > COARSE:
                out[name] = step
    return out


def _record(
    arrays: Mapping[str, np.ndarray],
    stored: Mapping[str, Any],
    where: str,
    labels: Mapping[str, np.ndarray],
    columns: Mapping,
    request: Request,
    features: bool,
) -> Record:
    """One structure of torch_geometric."""
    values: dict[str, object] = {name: arrays[name] for name in INVARIANTS if name in arrays}
    values |= {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in labels.items()}
    values |= {name: arrays[key] for name, key in request.field_keys.items() if key in arrays}
    fields = {name: arrays[name] for name in ("vec", *(["x"] if features else [])) if name in arrays}
    index, attr = ("pair_index", "pair_attr") if "pair_index" in arrays else ("edge_index", "edge_attr")
    if features and index in arrays and attr in arrays:
        fields |= {"pair_index": arrays[index], "pair_attr": arrays[attr]}
    read = {
        *fields,
        *INVARIANTS,
        *_NUMBERS,
        "pos",
        "vel",
        "cell",
        "pbc",
        *_PLACES,
        *request.field_keys.values(),
    }
    read |= {"edge_index", "edge_attr"} if "pair_index" in fields else set()
    info: dict[str, object] = {name: v for name, v in stored.items() if isinstance(v, (str, int))}
    info |= {
        name: a.item()
        for name, a in arrays.items()
        if name not in read and a.shape in ((), (1,)) and a.dtype.kind in "iub"
    }
    named = {
        name: names for name, (key, _) in columns.items() if (names := _texts(stored.get(key + _CLASSES)))
    }
    taken = {*_PLACES, *(key for key, _ in columns.values())}
    read |= {columns[name][0] + _CLASSES for name in named}
    info = {name: v for name, v in info.items() if name not in taken}
    return Record(
        where=where,
        pos=arrays["pos"].astype(np.float64),
        z=arrays["z"].astype(np.int64) if arrays["z"].any() else None,
        cell=arrays.get("cell"),
        pbc=arrays.get("pbc"),
        vel=arrays.get("vel"),
        fields=fields,
        values=values,
        info=info,
        keys=tuple(name for name in stored if name not in read and name not in info),
        classes={name: tuple(names) for name, names in named.items()},
    )


def _data(graph: Graph, info: Mapping, y: str | None) -> "Data":
    """One structure as Data."""
    with quiet_import():
        from torch_geometric.data import Data
    if graph.num_graphs != 1:
        raise DataError(
            f"{graph.num_graphs} structures in one; wanted a single one (molequi.graph.separate) or a Dataset"
        )
    if y is not None and y not in graph.targets:
        raise DataError(f"y={y!r}: no such label{did_you_mean(y, graph.targets)}")
    fields = graph.values("node", "graph") | {"shift": graph.shift}
    if graph.edge_index is None:
        fields |= {"edge_index": graph.pair_index, "edge_attr": graph.pair_attr}
    else:
        fields |= {n: getattr(graph, n) for n in ("edge_index", "edge_attr", "pair_index", "pair_attr")}
    labels = {"y" if name == y else name: value for name, value in graph.targets.items()}
    for name in (*labels, *info):
        if name in (*FIELDS, *_PLACES, "edge_index", "pair_index") or (name in labels and name in info):
            raise DataError(
                f"{name!r} is a label or a column of info, and something else in torch_geometric; rename it"
            )
    return Data(
        **{name: value for name, value in (fields | labels | dict(info)).items() if value is not None}
    )


@contextmanager
def quiet_import() -> Iterator[None]:
    """Import of torch_geometric without its warning: it uses a deprecated part of torch."""
    require("torch_geometric", "pyg", "data of PyTorch Geometric")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning
        )
        yield
