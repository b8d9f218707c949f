"""Vertices and faces of a Wavefront .obj file as they are written.

trimesh splits vertices that have several normals or belong to several materials, and leaves out those without
a face. Points of a cloud are the vertices of the file, so they are read here.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from molequi.errors import DataError

_MOST = 2**62  # vertices: larger numbers do not fit an array


def read_obj(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of a .obj file. A polygon becomes triangles that share its first vertex.

    Parameters
    ----------
    path : Path
        The file, for messages.
    data : bytes
        Its content.

    Returns
    -------
    vertices : array, shape (N, 3)
        In the order of the file.
    faces : array of int, shape (F, 3)
        Vertices of each triangle, counted from 0.

    Raises
    ------
    DataError
        With the line, if a vertex is not three numbers, or if a face has too few vertices or names one that
        is not there.
    """
    vertices: list[tuple[float, ...]] = []
    faces: list[tuple[int, int, int]] = []
    lines: list[int] = []  # of each triangle
    begun = ""
    for number, raw in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
        line = begun + raw
        if line.endswith("\\"):  # the statement continues in the next line
            begun = line[:-1] + " "
            continue
        begun = ""
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0] == "v":
            vertices.append(_vertex(words[1:], f"{path}, line {number}"))
        elif words[0] == "f":
            corners = _corners(words[1:], len(vertices), f"{path}, line {number}")
            faces += [(corners[0], a, b) for a, b in pairwise(corners[1:])]
            lines += [number] * (len(corners) - 2)
    found = np.array(faces, np.int64).reshape(-1, 3)
    outside = np.flatnonzero((found < 0).any(1) | (found >= len(vertices)).any(1))
    if len(outside):
        k = outside[0]
        raise DataError(
            f"{path}, line {lines[k]}: a face names a vertex that is not there; there are {len(vertices)}, "
            "counted from 1"
        )
    return np.array(vertices, np.float64).reshape(-1, 3), found


def _vertex(words: Sequence[str], where: str) -> tuple[float, ...]:
    """x, y and z of a line. A weight of 1 may follow, or a color."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) < 3 or not np.isfinite(numbers[:3]).all():
        raise DataError(f"{where}: vertex {' '.join(words)!r}; wanted three finite numbers")
    if len(numbers) == 4 and numbers[3] != 1:
        raise DataError(
            f"{where}: vertex {' '.join(words)!r} has the weight {numbers[3]:g}; wanted 1 or none"
        )
    return tuple(numbers[:3])


def _corners(words: Sequence[str], total: int, where: str) -> list[int]:
    """Vertices of a face, from 0. A negative number counts back from the last vertex before this line."""
    try:
        named = [int(word.split("/", 1)[0]) for word in words]
    except ValueError:
        named = []
    if len(named) < 3 or 0 in named or max(map(abs, named)) > _MOST:
        raise DataError(
            f"{where}: face {' '.join(words)!r}; wanted three or more numbers of vertices, counted from 1"
        )
    return [k - 1 if k > 0 else total + k for k in named]
