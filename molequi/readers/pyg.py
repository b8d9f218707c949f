"""Structures from and to torch_geometric: its Data objects, and its QM9, MD17 and ModelNet with units."""

import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from molequi.data.assemble import assemble
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import INVARIANTS, Request
from molequi.errors import ConfigError, DataError, DataWarning, did_you_mean
from molequi.graph import FIELDS, Graph
from molequi.quantities import KNOWN, Quantity
from molequi.readers.arrays import read_npz
from molequi.readers.download import unpack
from molequi.readers.files import Index, select, source_of
from molequi.util.optional import require

if TYPE_CHECKING:
    from torch_geometric.data import Data

# Columns of `y` in torch_geometric.datasets.QM9 (its documentation and `conversion` in its source), in their
# units.
QM9 = {
    "mu": (0, "D"),
    "alpha": (1, "Bohr^3"),
    "homo": (2, "eV"),
    "lumo": (3, "eV"),
    "gap": (4, "eV"),
    "r2": (5, "Bohr^2"),
    "zpve": (6, "eV"),
    "u0": (7, "eV"),
    "u298": (8, "eV"),
    "h298": (9, "eV"),
    "g298": (10, "eV"),
    "cv": (11, "cal/mol/K"),
    "u0_atom": (12, "eV"),
    "u298_atom": (13, "eV"),
    "h298_atom": (14, "eV"),
    "g298_atom": (15, "eV"),
    "rotation_a": (16, "GHz"),
    "rotation_b": (17, "GHz"),
    "rotation_c": (18, "GHz"),
}
_PLACES = ("batch", "ptr", "num_nodes", "shift")
COARSE = 1e-4  # eV; a tenth of what is called an accurate energy


def from_pyg(
    data: Any,
    *,
    targets: Mapping[str, str | Sequence] | None = None,
    units: Mapping[str, str] | None = None,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
    features: bool = True,
) -> Dataset:
    """Structures from torch_geometric.

    ``pos`` (N, D) is needed. ``z`` (N,) are atomic numbers; without it the nodes are plain points, of which
    no distances are checked. ``charge``, ``spin``, ``vel``, ``vec``, ``cell`` and ``pbc`` are the fields of
    Graph. Text and whole numbers, such as ``smiles``, become columns of `info`. A list of neighbors without
    ``edge_attr`` is not read; `molequi.connect` makes one.

    Parameters
    ----------
    data : Data, Batch, dataset or iterable of Data
        One Data, several, a Batch, or a data set of torch_geometric.
    targets : mapping, optional
        Where each label is: an attribute, or an attribute and a column of it, ``{"gap": ("y", 4)}``. Labels
        that are not named are not read.
    units : mapping of str to str
        Unit of each label that has one, and of "positions" (Å otherwise); torch_geometric does not say units.
    partial : sequence of str
        Labels that may be missing, or NaN, in some structures.
    quantities : sequence of Quantity
        What targets of new names are.
    features : bool
        Read ``x`` (N, F), and ``edge_index`` with ``edge_attr`` (B, A) as `pair_index` and `pair_attr`.

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
        If energies are in single precision and so coarser than 0.1 meV.
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
        arrays, stored = _arrays(item, k)
        values = _values(arrays, f"structure {k}", columns)
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


def to_pyg(data: Graph | Dataset, *, y: str | None = None) -> "Data | list[Data]":
    """Structures as Data of torch_geometric.

    Fields of Graph, labels and columns of `info` become attributes of the same names. ``edge_index`` (row 0
    is the sender) and ``edge_attr`` are the neighbor list, with ``shift`` if there is a cell; of a structure
    without neighbor list they are the pairs.

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
    return [
        _data(graph, {n: c[k] for n, c in data.info.items() if c[k] is not None}, y)
        for k, graph in enumerate(data)
    ]


def read_pyg(
    name: Literal["QM9", "MD17", "ModelNet"],
    root: str | Path,
    *,
    member: str | None = None,
    part: Literal["train", "test"] | None = None,
    index: str | int | slice = ":",
    points: Annotated[int, Gt(0)] = 1024,
    seed: int = 0,
    features: bool = False,
    partial: Sequence[str] = (),
    quantities: Sequence[str | Quantity] = (),
) -> Dataset:
    """Read QM9, MD17 or ModelNet as torch_geometric downloads them, with names and units of molequi.

    torch_geometric checks neither certificate nor digest of what it downloads, and unpickles its processed
    files. Unpickling of objects is forbidden here while it reads (``weights_only``), so that no file can run
    anything; a file that tries is refused.

    Parameters
    ----------
    name : {"QM9", "MD17", "ModelNet"}
        QM9 has mu, alpha, homo, lumo, gap, r2, zpve, u0, u298, h298, g298 and cv; also the energies of
        atomization u0_atom, u298_atom, h298_atom and g298_atom, and rotation_a, rotation_b, rotation_c (GHz),
        if they are named as ``Quantity(name="u0_atom", unit="eV")``. MD17 has energy and forces; the
        downloaded arrays are read, because torch_geometric keeps them in single precision, 0.3 meV for an
        energy of ethanol. ModelNet has the label ``shape`` by the names of the folders; its lengths have no
        unit.
    root : str or Path
        Folder of the download.
    member : str, optional
        Molecule of MD17, for instance "ethanol" or "revised ethanol"; "10" or "40" of ModelNet.
    part : {"train", "test"}, optional
        Part of ModelNet and of the coupled-cluster data of MD17.
    index : str, int or slice
        Structures in ASE's manner.
    points : int
        Points drawn uniformly on each surface of ModelNet, with the normals of the mesh as `Graph.vec`.
    seed : int
        Seed of these points.
    features : bool
        Read x (N, 11) and kinds of bonds (B, 4) of QM9.
    partial : sequence of str
        Labels that may be missing.
    quantities : sequence of str or Quantity
        Labels to read; by default all of these but those of atomization and rotation.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        For files that are damaged or hold Python objects, and if nothing can be downloaded.
    ConfigError
        For names that do not exist.
    """
    root = Path(root)
    wanted = [quantities] if isinstance(quantities, (str, Quantity)) else list(quantities)
    if name == "QM9":
        return _qm9(root, index, wanted, partial, features)
    if name == "MD17":
        return _md17(root, member, part, index, wanted, partial)
    if name == "ModelNet":
        return _modelnet(root, member or "10", part or "train", index, wanted, points, seed)
    raise ConfigError(f"no data set {name!r}{did_you_mean(str(name), ['QM9', 'MD17', 'ModelNet'])}")


def _qm9(
    root: Path, index: Index, wanted: Sequence[str | Quantity], partial: Sequence[str], features: bool
) -> Dataset:
    names = [q.name if isinstance(q, Quantity) else q for q in wanted] or [n for n in QM9 if n in KNOWN]
    for n in names:
        if n not in QM9:
            raise ConfigError(f"QM9 has no {n!r}{did_you_mean(n, QM9)}")
    with _quiet():
        from torch_geometric.datasets import QM9 as Library
    with _no_pickles(root), _rdkit_log_kept():
        found = Library(str(root))
    chosen = found[list(select(index, len(found), root))]
    data = from_pyg(
        chosen,
        targets={n: ("y", QM9[n][0]) for n in names},
        units={n: QM9[n][1] for n in names},
        partial=partial,
        quantities=wanted,
        features=features,
    )
    return _sourced(data, found, found.processed_paths[0])


def _md17(
    root: Path,
    member: str | None,
    part: str | None,
    index: Index,
    wanted: Sequence[str | Quantity],
    partial: Sequence[str],
) -> Dataset:
    with _quiet():
        from torch_geometric.data import download_url
        from torch_geometric.datasets import MD17
    if member is None or member not in MD17.file_names:
        raise ConfigError(f"MD17 has no member {member!r}{did_you_mean(str(member), MD17.file_names)}")
    split = "CCSD" in member
    if split != (part is not None):
        raise ConfigError(
            f"MD17 {member}: part={part!r}; wanted "
            + ("'train' or 'test'" if split else "none, it is not divided")
        )

    class Downloaded(MD17):
        """Only the download: its processed form has single precision, and it unpacks without checks."""

        def download(self) -> None:
            if not self.revised:
                super().download()
                return
            raw = Path(self.raw_dir)
            archive, unpacked = Path(download_url(self.revised_url, self.raw_dir)), raw / "unpacked"
            unpack(archive, unpacked)
            os.replace(unpacked / "rmd17", raw / "rmd17")
            unpacked.rmdir()
            archive.unlink()

        def _process(self) -> None:
            """Nothing is processed."""

        def load(self, path: str) -> None:
            """Nothing is loaded."""

    with _no_pickles(root):
        files = Downloaded(str(root), member, train=None if part is None else part == "train").raw_paths
    return read_npz(
        files[1 if part == "test" else 0],
        index=index,
        units={"energy": "kcal/mol", "forces": "kcal/mol/Å"},
        quantities=wanted or ["energy", "forces"],
        partial=partial,
    )


def _modelnet(
    root: Path, member: str, part: str, index: Index, wanted: Sequence, points: int, seed: int
) -> Dataset:
    if member not in ("10", "40"):
        raise ConfigError(f"ModelNet: member {member!r}; wanted '10' or '40'")
    with _quiet():
        from torch_geometric.datasets import ModelNet
        from torch_geometric.transforms import SamplePoints
    with _no_pickles(root):
        found = ModelNet(str(root), name=member, train=part == "train")
    classes = tuple(sorted(folder.name for folder in Path(found.raw_dir).iterdir() if folder.is_dir()))
    shape = Quantity(name="shape", classes=classes)
    if any((q.name if isinstance(q, Quantity) else q) != "shape" for q in wanted):
        raise ConfigError(f"ModelNet has the label 'shape' only; asked for {wanted}")
    sample = SamplePoints(points, include_normals=True)
    clouds = []
    with torch.random.fork_rng(devices=[]):
        for k in select(index, len(found), root):
            # The points of a mesh do not depend on which others are read.
            torch.manual_seed(seed * 1_000_003 + k)
            cloud = sample(found[k])
            cloud.vec, cloud.normal, cloud.mesh = cloud.normal[:, None], None, k
            clouds.append(cloud)
    data = from_pyg(clouds, targets={"shape": "y"}, quantities=[shape])
    return _sourced(data, found, found.processed_paths[0 if part == "train" else 1])


def _sourced(data: Dataset, found: Sized, file: str) -> Dataset:
    """The same data with the processed file that they came from."""
    return Dataset(
        data.graphs,
        quantities=data.quantities,
        info=data.info,
        origins=data.origins,
        found=data.found,
        unused=data.unused,
        sources=[source_of(Path(file), len(found))],
    )


def _items(data: Any) -> Iterable:
    """The Data of whatever torch_geometric calls data."""
    with _quiet():
        from torch_geometric.data import Batch, Data
    if isinstance(data, Batch):
        return data.to_data_list()
    return [data] if isinstance(data, Data) else data


def _arrays(item: Any, k: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of one Data, positions and elements checked, and all that it holds."""
    stored = item.to_dict() if hasattr(item, "to_dict") else {}
    arrays = {name: v.detach().cpu().numpy() for name, v in stored.items() if isinstance(v, Tensor)}
    if "pos" not in arrays or arrays["pos"].ndim != 2:
        raise DataError(
            f"structure {k} ({type(item).__name__}): no positions 'pos' (N, D); found "
            f"{', '.join(map(repr, stored)) or 'nothing'}"
        )
    n = len(arrays["pos"])
    z = arrays.setdefault("z", np.zeros(n, np.int64))
    if z.shape != (n,) or z.dtype.kind not in "iu":
        raise DataError(
            f"structure {k}: atomic numbers of shape {z.shape} ({z.dtype}) for {n} positions; wanted "
            f"integers ({n},)"
        )
    return arrays, stored


def _values(arrays: Mapping[str, np.ndarray], where: str, columns: Mapping) -> dict[str, np.ndarray]:
    """Labels of one Data by quantity, as they are stored."""
    out = {}
    for name, (key, column) in columns.items():
        if key not in arrays:
            continue
        value = arrays[key]
        if column is not None:
            if not value.ndim or not -value.shape[-1] <= column < value.shape[-1]:
                raise DataError(
                    f"{where}: {key} has the shape {value.shape}, so there is no column {column} for {name}"
                )
            value = value[..., column]
        out[name] = value
    return out


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
    read = {*fields, *INVARIANTS, "pos", "z", "vel", "cell", "pbc", *_PLACES, *request.field_keys.values()}
    read |= {"edge_index", "edge_attr"} if "pair_index" in fields else set()
    info: dict[str, object] = {name: v for name, v in stored.items() if isinstance(v, (str, int))}
    info |= {
        name: a.item()
        for name, a in arrays.items()
        if name not in read and a.shape in ((), (1,)) and a.dtype.kind in "iub"
    }
    taken = {*_PLACES, *(key for key, _ in columns.values())}
    info = {name: v for name, v in info.items() if name not in taken}
    return Record(
        where=where,
        pos=arrays["pos"].astype(np.float64),
        z=arrays["z"].astype(np.int64) if arrays["z"].any() else None,
        cell=arrays["cell"].reshape(arrays["cell"].shape[-2:]) if "cell" in arrays else None,
        pbc=arrays["pbc"].reshape(-1) if "pbc" in arrays else None,
        vel=arrays.get("vel"),
        fields=fields,
        values=values,
        info=info,
        keys=tuple(name for name in stored if name not in read and name not in info),
    )


def _data(graph: Graph, info: Mapping, y: str | None) -> "Data":
    """One structure as Data."""
    with _quiet():
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
def _quiet() -> Iterator[None]:
    """torch_geometric uses a deprecated part of torch when it is imported; nobody here can change that."""
    require("torch_geometric", "pyg", "data of PyTorch Geometric")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning
        )
        yield


@contextmanager
def _no_pickles(root: Path) -> Iterator[None]:
    """Objects are not unpickled, whatever torch_geometric asks torch for; what it raises names the folder."""
    switches = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": None}
    before = {name: os.environ.get(name) for name in switches}
    try:
        _set(switches)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Weights only load failed")  # and then it tries without
            yield
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{root}: a file there holds Python objects other than tensors, which are never loaded "
            f"({str(error).splitlines()[0]}); if it is not yours do not trust it, else remove the folder "
            "'processed' and it is made again"
        ) from error
    except OSError as error:
        raise DataError(f"{root}: torch_geometric cannot download or read its files ({error})") from error
    except (
        RuntimeError,
        EOFError,
        KeyError,
        IndexError,
        ValueError,
        AssertionError,
        zipfile.BadZipFile,
        tarfile.TarError,
    ) as error:
        raise DataError(
            f"{root}: torch_geometric cannot read its files, {type(error).__name__}: {error}; are they "
            "damaged or truncated? Remove them, and they are downloaded again"
        ) from error
    finally:
        _set(before)


def _rdkit_log_kept() -> AbstractContextManager:
    """A block after which the log of RDKit is as it was; torch_geometric turns it off for good."""
    try:
        from rdkit.rdBase import BlockLogs
    except ImportError:
        return nullcontext()
    return BlockLogs()


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
