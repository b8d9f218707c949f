"""Point clouds: from files, or from a folder with one subfolder for each class."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt

from molequi.data.assemble import assemble
from molequi.data.checks import check_finite
from molequi.data.dataset import Dataset
from molequi.data.record import Record
from molequi.data.request import Request, WhereFound
from molequi.data.sources import Source
from molequi.errors import DataError, did_you_mean
from molequi.quantities import Quantity, quantity
from molequi.readers.files import Index, Paths, expand_paths, select, source_of
from molequi.readers.folders import is_list, members_of_list
from molequi.readers.npz import Arrays, select_structures
from molequi.readers.point_files import (
    MESHES,
    SUFFIXES,
    TEXT,
    Cloud,
    PointOptions,
    read_arrays,
    read_mesh,
    read_npy,
    read_text,
)
from molequi.util.files import file_sha256
from molequi.util.signature import check_keywords

FLAT = 1e-12  # relative to the distance from the origin; a smaller cloud has lost all digits


@check_keywords()
def read_points(
    path: Paths,
    *,
    index: str | int | slice | Sequence[int] = ":",
    part: str | None = None,
    columns: Sequence[str] | None = None,
    features: Sequence[str] = (),
    samples: Annotated[int, Gt(0)] | None = 1024,
    seed: Annotated[int, Ge(0)] = 0,
    normals: bool = False,
    centroid: bool = False,
    normalize: Literal["rms"] | None = None,
    quantities: Sequence[str | Quantity] = (),
    partial: Sequence[str] = (),
) -> Dataset:
    """Read point clouds in any number of dimensions, with labels of points and of whole clouds.

    Text (.csv, .tsv, .txt, .xyz)
        One point per line, one cloud per file, names of the columns in the first line. Positions are x, y, z
        (fewer in the plane, x0, x1, … in n dimensions), normals nx, ny, nz, and velocities vx, vy, vz.
        Columns with the name of a quantity in `quantities` are labels: numbers, or names of classes.
        `Dataset.unused` lists the others.
    Arrays (.npy)
        (N, columns) or (G, N, columns), with columns as in a text without names.
    Arrays (.npz)
        ``pos`` (N, D), one cloud after another, with ``n_points`` (G,); or ``pos`` (G, N, D); or one cloud
        (N, D). ``x`` (N, F), ``vel`` (N, D), ``vec`` (N, V, D) as in Graph and ``normals`` (N, D) have the
        leading shape of ``pos``. Labels of clouds (G, …) and of points (N, …) have the name of their
        quantity. An array ``shape_classes`` (K,) says that ``shape`` holds numbers of classes, and the names
        of these; such labels are read without being named. Text, whole numbers and booleans (G,) become
        columns of `info`.
    Surfaces (.ply, .off, .obj, .stl)
        `samples` points drawn uniformly on the surface by trimesh, with random numbers that depend on `seed`
        and the content of the file. Without faces, or with samples=None, the vertices; the properties of a
        .ply are then columns as in a text.

    Points are not atoms: z is 0, distances have no unit, and points may coincide. Labels are read in the unit
    of their quantity.

    Parameters
    ----------
    path : str, Path or sequence of them
        A file, a list of files, a pattern, or a folder. In a folder every subfolder is a class, and its files
        are clouds of this class: the label ``shape``, or the one quantity with classes in `quantities`.
        Without subfolders its files are clouds without a label. Lists of names, tables and texts beside the
        subfolders, as ModelNet40 is shipped with, are no clouds.
    index : str, int, slice or sequence of int
        Clouds of an .npz file, or files of a list or folder.
    part : str, optional
        An array of an .npz file with the positions of the clouds of a part, such as ``train``; or the
        subfolder of each class (``chair/train/a.off``); or a list of names beside the folders
        (``modelnet40_train`` for ``modelnet40_train.txt``).
    columns : sequence of str, optional
        Names of the columns of a text or .npy without names; by default x, y, z.
    features : sequence of str
        Columns that become `Graph.x`.
    samples : int or None
        Points drawn on each surface; None takes the vertices.
    seed : int
        Seed of these points.
    normals : bool
        Read normals into `Graph.vec` (N, 1, D): columns or arrays of the file, else those of the surface.
    centroid : bool
        Add the vector from the centroid of the cloud to `Graph.vec`, and its length to `Graph.x`, each as the
        last. Both transform correctly. A model then needs ``node_vectors=1, node_features=1``. It knows where
        a point is in the cloud; without this, it learns so from neighbors only after many layers.
    normalize : {"rms"} or None
        "rms" moves the centroid of each cloud to the origin and divides by the root mean square distance from
        it, one number for all axes, so that rotated clouds stay rotated clouds. Velocities are divided too,
        labels that are positions (``point=True``) are moved and divided, and other labels stay. `info` has
        the columns ``centre`` and ``scale``: x = scale · x' + centre. A cloud whose points coincide is only
        moved, scale 1.
    quantities : sequence of str or Quantity
        Labels to read.
    partial : sequence of str
        Labels that may be missing: NaN, or -1 for classes.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If something is damaged, missing, not finite or out of range; the message has file, cloud and line or
        point.
    """
    asked = [quantities] if isinstance(quantities, (str, Quantity)) else list(quantities)
    partial = [partial] if isinstance(partial, str) else list(partial)
    labels = tuple(dict.fromkeys([*(q.name if isinstance(q, Quantity) else q for q in asked), *partial]))
    names = None if columns is None else tuple(columns)
    reading = PointOptions(names, tuple(features), labels, samples, normals, centroid)
    clouds, sources, by_folder = _read_all(path, reading, index, part, seed)
    wanted = _wanted(asked, partial, clouds)
    if by_folder and "shape" not in wanted:
        clouds = _with_class_of_folder(clouds, wanted)
    kind = WhereFound if isinstance(quantities, WhereFound) else list
    request = Request(quantities=kind(wanted.values()), partial=partial, rename=None)
    kept: dict[str, object] = {
        "normalize": normalize,
        "centroid": centroid,
        "normals": normals,
        "features": list(features),
    }
    surfaces = any(Path(source.file).suffix.lower() in MESHES for source in sources)
    kept |= {"samples": samples} if surfaces else {}
    records = (_record(c, wanted, reading, normalize) for c in clouds)
    return assemble(records, request, sources=sources, reading=kept)


def _read_all(
    path: Paths, reading: PointOptions, index: Index | Sequence[int], part: str | None, seed: int
) -> tuple[list[Cloud], list[Source], bool]:
    """All clouds, the files they come from, and whether folders say their classes."""
    files: list[tuple[Path, str | None]]
    names: tuple[str, ...] = ()
    folder = isinstance(path, (str, Path)) and Path(path).is_dir()
    if isinstance(path, (str, Path)) and folder:
        files, names = _in_folder(Path(path), part)
    else:
        files = [(file, None) for file in expand_paths(path)]
    several = len(files) > 1 or folder
    if several:
        files = [files[k] for k in _places(index, len(files), str(path))]
    clouds: list[Cloud] = []
    sources = []
    for file, name in files:
        found = _clouds(file, reading, seed, ":" if several else index, None if folder else part)
        sources.append(source_of(file, len(found)))
        if name is not None:
            found = [_with_class(cloud, name, names) for cloud in found]
        clouds += found
    return clouds, sources, bool(names)


def _with_class(cloud: Cloud, name: str, names: tuple[str, ...]) -> Cloud:
    """The cloud with the class that its folder says."""
    return replace(cloud, whole=cloud.whole | {"shape": name}, classes={"shape": names} | cloud.classes)


def _in_folder(folder: Path, part: str | None) -> tuple[list[tuple[Path, str | None]], tuple[str, ...]]:
    """Files with the names of their classes, and all names of classes."""
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))
    own = [p for p in entries if p.is_file() and p.suffix.lower() in SUFFIXES]
    kinds = [p for p in entries if p.is_dir()]
    clouds = [p for p in own if not kinds or not is_list(p)]
    if clouds and kinds:
        raise DataError(
            f"{folder}: files such as {clouds[0].name} beside folders such as {kinds[0].name}; wanted a "
            f"folder for each class and no clouds beside them, or files alone"
        )
    lists = {p.stem: p for p in own if p not in clouds}
    own = clouds
    if own:
        if part is not None:
            raise DataError(f"{folder}: part={part!r}, and the files of this folder are in no subfolders")
        return [(file, None) for file in own], ()
    if len(kinds) < 2:
        raise DataError(
            f"{folder}: {len(kinds)} subfolders and no files of points ({', '.join(SUFFIXES)}); wanted a "
            f"subfolder for each of two or more classes"
        )
    listed = None
    if part is not None and part in lists and not any((kind / part).is_dir() for kind in kinds):
        listed, part = members_of_list(lists[part], folder), None
    files: list[tuple[Path, str | None]] = []
    for kind in kinds:
        inner = kind if part is None else kind / part
        inside = sorted(inner.iterdir()) if inner.is_dir() else []
        found = [
            p for p in inside if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        ]
        if not found:
            parts = [p.name for p in sorted(kind.iterdir()) if p.is_dir()]
            parts += list(lists) if part is not None else []
            hint = f"; say part={parts[0]!r}, or another of {', '.join(parts)}" if parts else ""
            raise DataError(f"{inner}: no files of points ({', '.join(SUFFIXES)}){hint}")
        files += [(file, kind.name) for file in found if listed is None or file in listed]
    return files, tuple(kind.name for kind in kinds)


def _places(index: Index | Sequence[int], total: int, where: str) -> Sequence[int]:
    """Numbers of the files or clouds that an index selects."""
    if isinstance(index, (str, int, slice)):
        return select(index, total, where)
    outside = [k for k in index if not -total <= k < total]
    if outside or not len(index):
        raise DataError(f"{where}: index {list(index)!r}; wanted places among {total} files")
    return list(index)


def _clouds(
    file: Path, reading: PointOptions, seed: int, index: Index | Sequence[int], part: str | None
) -> list[Cloud]:
    """The clouds of one file that are selected."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{file}: files of points end in {', '.join(SUFFIXES)}")
    if suffix != ".npz" and part is not None:
        raise DataError(
            f"{file}: part={part!r} is an array of an .npz or a subfolder, which {suffix} does not have"
        )
    if reading.columns is not None and suffix in (".npz", *MESHES):
        raise DataError(f"{file}: columns={list(reading.columns)}; what is in {suffix} has names of its own")
    if suffix == ".npz":

        def choose(arrays: Arrays, total: int) -> np.ndarray:
            return select_structures(file, arrays, index, part, total)

        return read_arrays(file, reading, choose)
    if suffix == ".npy":
        found = read_npy(file, reading)
    elif suffix in TEXT:
        found = [read_text(file, reading)]
    else:
        content = int(file_sha256(file)[:16], 16) if file.is_file() else 0
        found = [read_mesh(file, reading, (seed, content))]
    return [found[k] for k in _places(index, len(found), str(file))]


def _wanted(
    asked: Sequence[str | Quantity], partial: Sequence[str], clouds: Sequence[Cloud]
) -> dict[str, Quantity]:
    """The quantities to read: those that the caller names, else all whose classes the files name."""
    declared: dict[str, Quantity] = {}
    # A Quantity of the caller settles the order of classes; labels are then read by the names of their
    # classes.
    settled = {q.name for q in asked if isinstance(q, Quantity)}
    for cloud in clouds:
        for name, classes in cloud.classes.items():
            if name in settled or (asked and name not in asked and name != "shape"):
                continue
            per: Literal["node", "graph"] = "node" if name in cloud.points else "graph"
            one = declared.setdefault(name, Quantity(name=name, per=per, classes=classes))
            if (one.per, one.classes) != (per, classes):
                raise DataError(
                    f"{cloud.where}: {name} has the classes {', '.join(classes)} of each {per}; in files "
                    f"before {', '.join(one.classes)} of each {one.per}"
                )
    chosen = [declared.get(q) or quantity(q) if isinstance(q, str) else q for q in asked]
    if not asked:
        chosen = list(declared.values())
    out = {q.name: q for q in chosen}
    for name in partial:
        if name not in out:
            raise DataError(f"partial: {name!r} is not read{did_you_mean(name, out)}")
    return out


def _with_class_of_folder(clouds: Sequence[Cloud], wanted: Mapping[str, Quantity]) -> list[Cloud]:
    """The clouds with the class that the folders say under the name of the one quantity with classes."""
    whole = [q.name for q in wanted.values() if q.classes and q.per == "graph"]
    if len(whole) != 1:
        return list(clouds)
    name = whole[0]
    renamed = [{name if n == "shape" else n: v for n, v in cloud.whole.items()} for cloud in clouds]
    return [
        cloud if name in cloud.whole else replace(cloud, whole=new) for cloud, new in zip(clouds, renamed)
    ]


def _record(
    cloud: Cloud, wanted: Mapping[str, Quantity], reading: PointOptions, normalize: str | None
) -> Record:
    """One cloud with normals, vectors from the centroid, centre and scale, as the options say."""
    geometry: dict[str, np.ndarray] = {
        n: cloud.points[n] for n in ("pos", "normals", "vel", "vec", "x") if n in cloud.points
    }
    if not len(geometry["pos"]):
        raise DataError(f"{cloud.where}: no points; wanted at least one")
    check_finite(geometry, cloud.where, "point")  # before anything is computed from them
    given: dict[str, np.ndarray] = {name: array.astype(np.float64) for name, array in geometry.items()}
    pos = given["pos"]
    centre, scale = centre_and_scale(pos) if normalize == "rms" else (None, 1.0)
    fields = _fields(given, cloud, reading, pos if centre is None else (pos - centre) / scale)
    whole = {n: np.asarray(v) for n, v in cloud.whole.items() if n not in wanted}
    info = {n: v.item() for n, v in whole.items() if v.ndim == 0}
    if centre is not None:
        info |= {"centre": tuple(centre.tolist()), "scale": scale}
    return Record(
        where=cloud.where,
        pos=pos,
        vel=given.get("vel"),
        fields=fields,
        values=_values(cloud, wanted),
        info=info,
        keys=cloud.unused,
        classes=cloud.classes,
        centre=centre,
        scale=scale,
    )


def _fields(
    given: Mapping[str, np.ndarray], cloud: Cloud, reading: PointOptions, pos: np.ndarray
) -> dict[str, np.ndarray]:
    """Features and vectors of the points; `pos` are the positions after centring and scaling."""
    fields = {}
    if "x" in given:
        fields["x"] = given["x"].reshape(len(pos), -1)
    if "vec" in given:
        fields["vec"] = given["vec"]
    if reading.normals:
        if "normals" not in given or "vec" in given:
            why = (
                "'vec' is there already"
                if "vec" in given
                else "no normals in it, and no surface to take them from"
            )
            raise DataError(
                f"{cloud.where}: normals=True, and {why}; leave it out, or name them (nx, ny, nz; array "
                "'normals')"
            )
        fields["vec"] = given["normals"][:, None, :]
    if reading.centroid:
        away = pos - centre_and_scale(pos)[0]
        length = np.linalg.norm(away, axis=1, keepdims=True)
        for name, more in (("vec", away[:, None, :]), ("x", length)):
            fields[name] = np.concatenate([fields[name], more], axis=1) if name in fields else more
    return fields


def _values(cloud: Cloud, wanted: Mapping[str, Quantity]) -> dict[str, object]:
    """Labels of the points and of the cloud. Raises DataError if one is of the other kind than wanted."""
    out: dict[str, object] = {}
    for name, q in wanted.items():
        stores = (cloud.points, cloud.whole) if q.per == "node" else (cloud.whole, cloud.points)
        here, other = (store.get(name) for store in stores)
        if here is None and other is not None:
            one, of, per = ("point", "cloud", "graph") if q.per == "node" else ("cloud", "point", "node")
            raise DataError(
                f"{cloud.where}: no {name!r} for each {one}; it has one for each {of}, say per={per!r}"
            )
        if here is not None:
            out[name] = here
    return out


def centre_and_scale(pos: np.ndarray) -> tuple[np.ndarray, float]:
    """Centroid (D,) of points (N, D), and their root mean square distance from it; 1 if they coincide."""
    near = pos - pos[0]  # a far origin would cost digits of the mean
    centre = pos[0] + near.mean(0)
    rms = float(np.sqrt(np.square(near - near.mean(0)).sum(1).mean()))
    return centre, rms if rms > FLAT * np.abs(pos).max() else 1.0
