"""QM9, MD17 and ModelNet as torch_geometric downloads them, with names and units of molequi."""

import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Gt

from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.quantities import KNOWN, Quantity
from molequi.readers.arrays import read_npz
from molequi.readers.download import unpack
from molequi.readers.files import Index, select, source_of
from molequi.readers.pyg import from_pyg, quiet_import
from molequi.util.signature import check_keywords

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


@check_keywords()
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

    torch_geometric checks neither certificates nor digests of its downloads, and unpickles its processed
    files. Here unpickling of objects is forbidden while it reads (``weights_only``), so that no file can run
    code; a file that tries is refused.

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
    with quiet_import():
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
    with quiet_import():
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
        """Only the download of MD17: torch_geometric unpacks without checks, to single precision."""

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
    with quiet_import():
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


@contextmanager
def _no_pickles(root: Path) -> Iterator[None]:
    """A block in which torch_geometric cannot unpickle objects; errors have the path of the folder."""
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
    """A block after which the log of RDKit is as before; torch_geometric turns it off permanently."""
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
