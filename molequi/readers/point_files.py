"""Files of points and surfaces as plain arrays: columns of text, .npy, .npz, and what trimesh reads."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from molequi.data.checks import LARGEST
from molequi.errors import DataError, MolequiError
from molequi.readers.files import check_file, is_number, readable
from molequi.readers.npz import Arrays, DamagedHeader, opened
from molequi.readers.obj import read_obj
from molequi.util.optional import require
from molequi.util.run_log import without_log

TEXT, MESHES = (".csv", ".tsv", ".txt", ".xyz"), (".ply", ".off", ".obj", ".stl")
SUFFIXES = (".npy", ".npz", *TEXT, *MESHES)
_GEOMETRY = ("x", "normals", "vel", "vec")
_AXES = {"pos": ("xyz", "x"), "normals": ("nx ny nz", "n"), "vel": ("vx vy vz", "v")}


@dataclass(frozen=True)
class Cloud:
    """One cloud as a file has it.

    Parameters
    ----------
    where : str
        Its place, for messages.
    points : dict of str to array (N, …)
        Values of the points by name: pos, x, normals, vel and vec of Graph, and labels.
    whole : dict of str to object
        Values of the cloud as a whole by name.
    classes : dict of str to tuple of str
        Names of the classes of each label that the file gives by number.
    unused : tuple of str
        Columns or arrays that are not read.
    """

    where: str
    points: dict[str, np.ndarray]
    whole: dict[str, object] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class PointOptions:
    """What is read of files of points, and how; see `molequi.readers.points.read_points`.

    Parameters
    ----------
    columns : tuple of str or None
        Names of columns without names.
    features, labels : tuple of str
        Columns or arrays that are features and labels.
    samples : int or None
        Points drawn on a surface; None takes the vertices.
    normals, centroid : bool
        Whether normals, and vectors from the centroid, are wanted.
    """

    columns: tuple[str, ...] | None
    features: tuple[str, ...]
    labels: tuple[str, ...]
    samples: int | None
    normals: bool
    centroid: bool


def columns_to_cloud(
    where: str, names: Sequence[str], column: Callable[[str], np.ndarray], reading: PointOptions
) -> Cloud:
    """Positions, normals, velocities, features and labels by the names of columns."""
    points, used = {}, set()
    for what, (three, letter) in _AXES.items():
        axes = [n for n in (three.split() if " " in three else three) if n in names]
        numbered = sorted((n for n in names if re.fullmatch(rf"{letter}\d+", n)), key=lambda n: int(n[1:]))
        axes = numbered if numbered and not axes else axes
        if axes:
            points[what] = np.stack([_numbers(column(n), f"{where}: column {n!r}") for n in axes], axis=1)
            used |= set(axes)
    if "pos" not in points:
        raise DataError(
            f"{where}: no columns 'x', 'y', 'z' (or 'x0', 'x1', …) among {', '.join(map(repr, names))}; "
            "name them with columns=['x', 'y', 'z', …]"
        )
    for what in set(points) - {"pos"}:
        if points[what].shape != points["pos"].shape:
            raise DataError(
                f"{where}: {points['pos'].shape[1]} columns of positions and {points[what].shape[1]} of "
                f"{what}; wanted as many"
            )
    absent = [n for n in reading.features if n not in names]
    if absent:
        raise DataError(f"{where}: no column {absent[0]!r} for features; found {', '.join(map(repr, names))}")
    if reading.features:
        points["x"] = np.stack(
            [_numbers(column(n), f"{where}: column {n!r}") for n in reading.features], axis=1
        )
    labels = [n for n in reading.labels if n in names]
    points |= {n: column(n) for n in labels}
    return Cloud(
        where, points, unused=tuple(n for n in names if n not in used | {*labels, *reading.features})
    )


def _numbers(values: np.ndarray, what: str) -> np.ndarray:
    if values.dtype.kind not in "iufb":
        bad = next((k for k, v in enumerate(values) if not is_number(str(v))), 0)
        raise DataError(f"{what}: point {bad} has {values.flat[bad]!r}; wanted a number")
    return values.astype(np.float64)


def default_names(where: str, width: int, reading: PointOptions) -> list[str]:
    """Names of the columns of a table without names: x, y, z, unless the caller gives others."""
    if reading.columns is not None:
        if len(reading.columns) != width:
            raise DataError(
                f"{where}: {width} columns, and columns={list(reading.columns)} names {len(reading.columns)}"
            )
        return list(reading.columns)
    if not 1 <= width <= 3:
        raise DataError(
            f"{where}: {width} columns without names; say what they are, for instance columns=['x', 'y', "
            "'z', 'nx', 'ny', 'nz'], or ['x0', 'x1', …] for more than three dimensions"
        )
    return list("xyz"[:width])


def read_text(path: Path, reading: PointOptions) -> Cloud:
    """Columns of numbers, with commas, semicolons, tabs or blanks between; names in the first line or in a
    comment before it.
    """
    try:
        with readable(path):
            lines = path.read_text(encoding="utf-8-sig").splitlines()
    except DataError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise DataError(
                f"{path}: not a text file ({error.__cause__.reason} at byte {error.__cause__.start})"
            ) from error
        raise
    numbered = [(k, line.strip()) for k, line in enumerate(lines, 1) if line.strip()]
    comments = [line.lstrip("#/ ") for _, line in numbered if line.startswith(("#", "//"))]
    rows = [(k, line) for k, line in numbered if not line.startswith(("#", "//"))]
    if not rows:
        raise DataError(f"{path}: no points in this file; wanted at least one")
    if rows[0][1].isdigit() and len(rows) > 1 and rows[1][0] == 2 and len(rows) - 2 <= int(rows[0][1]):
        raise DataError(
            f"{path}: begins with a count, as structures of atoms do; read those with mq.read_extxyz. "
            "Points are plain columns"
        )
    mark = next((m for m in ",;\t" if m in rows[0][1]), None)

    def split(line: str) -> list[str]:
        return [word.strip().strip('"') for word in line.split(mark)]

    _check_first_line(path, rows, split)

    first, names = split(rows[0][1]), None
    if not any(map(is_number, first)):
        names, rows = first, rows[1:]
    elif comments and len(split(comments[-1])) == len(first) and "x" in split(comments[-1]):
        names = split(comments[-1])
    if not rows:
        raise DataError(f"{path}: no points below the names of the columns; wanted at least one")
    width = len(names or first)
    names = (
        names if names is not None and reading.columns is None else default_names(str(path), width, reading)
    )
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns of the same name in {', '.join(map(repr, names))}")
    table = [split(line) for _, line in rows]
    for (number, _), words in zip(rows, table):
        if len(words) != width:
            raise DataError(
                f"{path}, line {number}: {len(words)} columns; wanted {width}, as in the lines before"
            )

    def column(name: str) -> np.ndarray:
        words = [row[names.index(name)] for row in table]
        try:
            return np.array(words, dtype=np.float64)
        except ValueError:
            if name in reading.labels:
                return np.array(words)
        bad = next(k for k, word in enumerate(words) if not is_number(word))
        raise DataError(f"{path}, line {rows[bad][0]}: column {name!r} is {words[bad]!r}; wanted a number")

    return columns_to_cloud(str(path), names, column, reading)


def _check_first_line(path: Path, rows: Sequence[tuple[int, str]], split: Callable[[str], list[str]]) -> None:
    """Raise DataError if the first line is rather a header of whole numbers than a point.

    pandas writes 0,1,2 above columns without names, and other programs write the number of points there. All
    other lines then have decimals.
    """
    first = split(rows[0][1])
    if len(rows) < 2 or len(first) < 2 or not all(word.isdigit() for word in first):
        return
    numbers = [int(word) for word in first]
    if numbers != list(range(len(first))) and numbers[0] != len(rows) - 1:
        return
    if all(any(is_number(w) and not w.lstrip("+-").isdigit() for w in split(line)) for _, line in rows[1:]):
        raise DataError(
            f"{path}, line {rows[0][0]}: {rows[0][1]!r} looks like a header (numbers of columns, or the "
            "number of points), because only this line has no decimals; remove it, or write the point as "
            f"{' '.join(word + '.0' for word in first)!r}"
        )


def read_npy(path: Path, reading: PointOptions) -> list[Cloud]:
    """One cloud (N, columns), or several of one size (G, N, columns)."""
    check_file(path)
    with readable(path), open(path, "rb") as handle:
        try:
            array = np.load(handle, allow_pickle=False)
        except (ValueError, EOFError, *DamagedHeader) as error:
            raise DataError(
                f"{path}: not a readable .npy file ({error}); pickled objects are never loaded, a truncated "
                "file must be copied again"
            ) from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or array.dtype.kind not in "iuf":
        found = (
            f"an array of shape {array.shape} ({array.dtype})"
            if isinstance(array, np.ndarray)
            else "several arrays"
        )
        raise DataError(f"{path}: {found}; wanted numbers (N, columns) or (G, N, columns)")
    many = array.ndim == 3
    array = array if many else array[None]
    names = default_names(str(path), array.shape[2], reading)
    clouds = []
    for k, table in enumerate(array):
        where = f"{path}, cloud {k}" if many else str(path)
        columns = dict(zip(names, table.T))
        clouds.append(columns_to_cloud(where, names, columns.__getitem__, reading))
    return clouds


def read_arrays(
    path: Path, reading: PointOptions, choose: Callable[[Arrays, int], Iterable[int]]
) -> list[Cloud]:
    """The clouds of an .npz file that `choose` selects, of any sizes or of one."""
    with opened(path) as arrays:
        pos, counts = _positions(path, arrays)
        declared = _declared(path, arrays)
        chosen = choose(arrays, len(counts))
        ends = np.cumsum(counts, dtype=np.int64)
        per_point, whole, unused = _sorted_arrays(path, arrays, counts, pos.ndim == 3, reading, set(declared))
        per_point["pos"] = pos.reshape(ends[-1], -1)
        if reading.features:
            absent = [n for n in reading.features if n not in per_point]
            if absent:
                raise DataError(
                    f"{path}: no array {absent[0]!r} for features; found {', '.join(map(repr, arrays))}"
                )
            columns = [per_point[n].reshape(ends[-1], -1) for n in reading.features]
            per_point["x"] = np.concatenate(columns, axis=1)
        return [
            Cloud(
                f"{path}, cloud {k}",
                {n: a[ends[k] - counts[k] : ends[k]] for n, a in per_point.items()},
                {n: a[k] for n, a in whole.items()},
                declared,
                tuple(unused),
            )
            for k in map(int, chosen)
        ]


def _positions(path: Path, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Positions as the file has them, and the number of points of each cloud."""
    if "pos" not in arrays:
        raise DataError(f"{path}: no array 'pos'; found {', '.join(map(repr, arrays)) or 'none'}")
    pos = arrays["pos"]
    if pos.dtype.kind not in "iuf" or pos.ndim not in (2, 3) or (pos.ndim == 3 and "n_points" in arrays):
        raise DataError(
            f"{path}: pos of shape {pos.shape} ({pos.dtype}); wanted numbers, (N, D) with n_points (G,), or "
            "(G, N, D) "
            "without"
        )
    if pos.ndim == 3:
        counts = np.full(len(pos), pos.shape[1])
    else:
        counts = arrays["n_points"] if "n_points" in arrays else np.array([len(pos)])
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts):
        raise DataError(
            f"{path}: n_points of shape {counts.shape} ({counts.dtype}); wanted integers (G,), G > 0"
        )
    if (counts < 1).any():
        raise DataError(
            f"{path}, cloud {int(np.argmax(counts < 1))}: {counts.min()} points; wanted at least one"
        )
    nodes = int(counts.sum(dtype=np.int64))
    if pos.ndim == 2 and len(pos) != nodes:
        raise DataError(f"{path}: n_points adds up to {nodes} points, and pos has {len(pos)}")
    return pos, counts


def _sorted_arrays(
    path: Path, arrays: Arrays, counts: np.ndarray, same_size: bool, reading: PointOptions, declared: set[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Arrays of points, arrays of clouds, and names of those that are not read."""
    total, nodes = len(counts), int(counts.sum(dtype=np.int64))
    flat = (total, counts[0]) if same_size else (nodes,)
    per_point: dict[str, np.ndarray] = {}
    whole: dict[str, np.ndarray] = {}
    unused = []
    for name in arrays:
        if name in ("pos", "n_points") or name.endswith("_classes"):
            continue
        shape, kind = arrays.header(name)
        labelled = name in reading.labels or name in declared
        fits = shape[: len(flat)] == flat
        own = name in _GEOMETRY or name in reading.features
        if own or (labelled and fits and (same_size or shape[:1] != (total,))):
            if not fits:
                raise DataError(
                    f"{path}: {name} has the shape {shape}; wanted {flat} first, one entry a point"
                )
            per_point[name] = arrays[name].reshape(nodes, *shape[len(flat) :])
        elif shape[:1] == (total,) and (labelled or (len(shape) == 1 and kind in "iubU")):
            whole[name] = arrays[name]
        elif labelled:
            raise DataError(
                f"{path}: {name} has the shape {shape}; wanted one entry a cloud ({total}) or a point {flat}"
            )
        elif len(shape) != 1 or kind not in "iu":  # rows of whole numbers are the members of a part
            unused.append(name)
    return per_point, whole, unused


def _declared(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """Names of classes: the array `shape_classes` belongs to the labels `shape`."""
    out = {}
    for name in arrays:
        label = name.removesuffix("_classes")
        if label != name:
            values = arrays[name]
            if (
                values.ndim != 1
                or values.dtype.kind != "U"
                or label not in arrays
                or len(set(values.tolist())) < 2
            ):
                raise DataError(
                    f"{path}: {name} of shape {values.shape} ({values.dtype}); wanted two or more different "
                    f"names of classes, and the labels as {label!r}"
                )
            out[label] = tuple(values.tolist())
    return out


def read_mesh(path: Path, reading: PointOptions, seed: Sequence[int]) -> Cloud:
    """Points drawn uniformly on a surface, or the vertices if there are no faces or `samples` is None."""
    mesh, raw = _load_mesh(path, reading)
    vertices, faces = _vertices_and_faces(mesh)
    if len(faces) and reading.samples is not None:
        return _draw(path, mesh, reading, reading.samples, seed)
    values = {
        n: np.asarray(raw["data"][n]).reshape(len(vertices), -1)[:, 0] for n in raw.get("properties", {})
    }
    values |= {axis: vertices[:, k] for k, axis in enumerate("xyz")}
    cloud = columns_to_cloud(str(path), list(values), values.__getitem__, reading)
    if reading.normals and len(faces) and "normals" not in cloud.points:
        cloud = replace(cloud, points=cloud.points | {"normals": np.asarray(mesh.vertex_normals)})
    return cloud


def _vertices_and_faces(mesh: Any) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) and faces (F, 3) of a mesh of trimesh."""
    faces = np.asarray(getattr(mesh, "faces", []), np.int64).reshape(-1, 3)
    return np.asarray(mesh.vertices, np.float64), faces


def _load_mesh(path: Path, reading: PointOptions) -> tuple[Any, Mapping]:
    """The mesh of trimesh, checked, and the vertices of a .ply as trimesh read them."""
    require("trimesh", "points", f"reading {path.suffix.lower()} files")
    import trimesh

    check_file(path)
    with readable(path):
        data = path.read_bytes()
    kind = path.suffix.lower()[1:]
    empty = f"{path}: no points in this .{kind} file; is it truncated, empty or of another kind?"
    own = read_obj(path, data) if kind == "obj" else None
    if own is not None and len(own[0]) and (reading.samples is None or not len(own[1])):
        return trimesh.Trimesh(*own, process=False), {}
    try:
        # Vertices of a .ply with coordinates of a texture would be split otherwise.
        more: dict[str, Any] = {"fix_texture": False, "skip_materials": True} if kind == "ply" else {}
        with without_log("trimesh"):  # which prints tracebacks of what it goes on without
            mesh: Any = trimesh.load(io.BytesIO(data), file_type=kind, process=False, **more)
        if isinstance(mesh, trimesh.Scene):
            if not mesh.geometry:
                raise DataError(empty)
            mesh = mesh.to_mesh()
        vertices, faces = _vertices_and_faces(mesh)
        if faces.size and not (faces.min() >= 0 and faces.max() < len(vertices)):
            raise DataError(
                f"{path}: a face names vertex {faces.max()}; there are {len(vertices)}, counted from 0"
            )
        if not len(vertices):
            raise DataError(empty)
        raw = (mesh.metadata.get("_ply_raw") or {}).get("vertex", {}) if kind == "ply" else {}
        if raw:
            _ply_is_whole(path, data, mesh.metadata["_ply_raw"], len(vertices))
        if kind == "off":
            _off_is_whole(path, data)
    except MolequiError:
        raise
    except Exception as error:  # a parser of damaged files raises anything
        raise DataError(
            f"{path}: not a readable .{kind} file: {error}. Is it truncated, or of another kind?"
        ) from error
    if not (np.abs(vertices) < LARGEST).all():  # not a number, too
        bad = int(np.argwhere(~(np.abs(vertices) < LARGEST).all(1))[0, 0])
        raise DataError(
            f"{path}: vertex {bad} is {vertices[bad].tolist()}; wanted finite numbers below {LARGEST:g}"
        )
    return mesh, raw


def _draw(path: Path, mesh: Any, reading: PointOptions, samples: int, seed: Sequence[int]) -> Cloud:
    """Points drawn uniformly on the surface of a mesh, with normals where they are wanted."""
    import trimesh

    if reading.features:
        raise DataError(
            f"{path}: features belong to vertices, and points are drawn on the surface; say samples=None"
        )
    vertices, faces = _vertices_and_faces(mesh)
    area = trimesh.triangles.area(vertices[faces])
    if not area.sum() > 0:
        raise DataError(
            f"{path}: a surface without area; nothing can be drawn on it. Say samples=None for its vertices"
        )
    random = np.random.default_rng(list(seed))
    pos, face = trimesh.sample.sample_surface(mesh, samples, face_weight=area, seed=random)
    points = {"pos": np.asarray(pos)}
    if reading.normals:
        a, b, c = vertices[faces[face]].swapaxes(0, 1)
        normal = np.cross(b - a, c - a)
        points["normals"] = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return Cloud(str(path), points)


def _ply_is_whole(path: Path, data: bytes, elements: Mapping, found: int) -> None:
    """Raise DataError if a .ply has another number of vertices or lines than its header says."""
    wanted = elements["vertex"]["length"]
    if b"format ascii" in data[:200]:
        body = re.split(rb"end_header[^\n]*\n", data, maxsplit=1)[-1]
        lines, said = (
            sum(1 for line in body.splitlines() if line.strip()),
            sum(e["length"] for e in elements.values()),
        )
        if lines != said:
            raise DataError(
                f"{path}: the header says {said} lines of elements, and there are {lines}; is the file "
                "truncated?"
            )
    if found != wanted:
        raise DataError(
            f"{path}: the header says {wanted} vertices, and there are {found}; is the file truncated?"
        )


def _off_is_whole(path: Path, data: bytes) -> None:
    """Raise DataError if a text .off has another number of lines than its header says."""
    lines = [line for raw in data.splitlines() if (line := raw.split(b"#", 1)[0].strip())]
    head, rest = lines[0], lines[1:]
    words = re.sub(rb"^[A-Za-z0-9]*OFF", b"", head).split()  # ModelNet has counts in the line of the name
    if b"BINARY" in head.upper():
        return
    if not words:
        words, rest = rest[0].split(), rest[1:]
    vertices, faces = (int(word) for word in words[:2])
    if len(rest) != vertices + faces:
        raise DataError(
            f"{path}: the header says {vertices} vertices and {faces} faces, and {len(rest)} lines follow; "
            "is the file truncated?"
        )
