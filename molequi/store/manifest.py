"""The manifest of a store: what its tables are, how many rows count, and where they came from."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from molequi.errors import DataError
from molequi.graph import FIELDS
from molequi.quantities import Quantity
from molequi.upgrades import upgrade_quantity
from molequi.util.files import sha256, write_file

MANIFEST = "store.json"
FORMAT = 1
_TYPES = {"float64", "float32", "int64", "int32", "int16", "int8", "uint8", "bool"}


@dataclass
class Manifest:
    """What a store has. Rows of its files beyond those counted here are of an append that did not finish.

    Parameters
    ----------
    tables : dict
        Of each table: its ``file``, ``dtype``, ``shape`` of a row, and number of ``rows``. The ``first`` of
        them were written by no segment; they are those of structures without such a table.
    segments : list of dict
        What was appended at once: ``structures``, ``rows`` by table, ``sha256`` of these rows, and the number
        of structures with each ``unused`` key.
    quantities : list of dict
        Declarations of the labels.
    neighbors : dict or None
        ``cutoff`` (None: all pairs) and ``k`` of the neighbor lists; None without lists.
    settings : dict
        How the structures were read, for a later append.
    inputs : list of dict
        Files that were read: ``file``, ``size``, ``blocks`` that are done, ``done``; when it is done
        ``frames`` and ``sha256``.
    reading, found : dict
        As `molequi.Dataset` has them.
    allow : list of str
        Heuristics that are overruled.
    fields : dict
        Declarations of fields that the user added to `molequi.Graph`.
    """

    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    segments: list[dict[str, Any]] = field(default_factory=list)
    quantities: list[dict[str, Any]] = field(default_factory=list)
    neighbors: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    reading: dict[str, Any] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    allow: list[str] = field(default_factory=list)

    @property
    def structures(self) -> int:
        """Number of structures."""
        return sum(segment["structures"] for segment in self.segments)

    @property
    def complete(self) -> bool:
        """Whether all inputs were read to their ends."""
        return bool(self.segments) and all(item["done"] for item in self.inputs)

    @property
    def unused(self) -> dict[str, int | None]:
        """Keys that were not read, with the number of structures that have them; None: it is not known."""
        out: dict[str, int | None] = {}
        for segment in self.segments:
            for key, number in segment["unused"].items():
                now = out.get(key, 0)
                out[key] = None if now is None or number is None else now + number
        return out

    @property
    def digest(self) -> str:
        """SHA-256 of all structures and labels, of the digests of the segments."""
        parts = [segment["sha256"] for segment in self.segments]
        return sha256([json.dumps(self.quantities, sort_keys=True), *parts])

    def rewind(self, segments: int) -> None:
        """Forget the last segments; the next append overwrites their rows.

        Parameters
        ----------
        segments : int
            Number of segments.
        """
        for _ in range(segments):
            for name, rows in self.segments.pop()["rows"].items():
                self.tables[name]["rows"] -= rows
        if not self.segments:
            self.tables = {}

    def declared(self) -> dict[str, Quantity]:
        """The declarations of the labels by name."""
        return {entry["name"]: Quantity(**upgrade_quantity(dict(entry))) for entry in self.quantities}

    def cutoff(self) -> float:
        """The cutoff of the neighbor lists in Å; inf for all pairs."""
        cutoff = (self.neighbors or {}).get("cutoff")
        return math.inf if cutoff is None else float(cutoff)

    def write(self, folder: Path) -> None:
        """Write the manifest, at once or not at all.

        Parameters
        ----------
        folder : Path
            The folder of the store.
        """
        content = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, default=bool)
        write_file(folder / MANIFEST, content, error=DataError)


def check_no_stores_inside(path: Path) -> None:
    """Raise DataError for a folder that has stores inside, and is none itself.

    Parameters
    ----------
    path : Path
        Any path.
    """
    if not path.is_dir() or is_store(path):
        return
    inside = sorted(found.parent for found in path.glob(f"*/{MANIFEST}"))
    if inside:
        listed = ", ".join(map(str, inside[:5])) + (f" and {len(inside) - 5} more" if len(inside) > 5 else "")
        raise DataError(
            f"{path}: a folder above {len(inside)} store{'s' * (len(inside) > 1)} of prepared structures, "
            f"and no store itself; give one of them: {listed}"
        )


def is_store(path: Path) -> bool:
    """Whether a path is the folder of a store.

    Parameters
    ----------
    path : Path
        Any path.

    Examples
    --------
    >>> is_store(Path("a folder that does not exist"))
    False
    """
    return (path / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a store, and check it against the files.

    Parameters
    ----------
    folder : Path
        The folder.

    Raises
    ------
    DataError
        If it is no manifest, one of a later version, or if files are missing or too short.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no store of prepared structures (it has no {MANIFEST}); make one with\n  "
            f"molequi prepare FILE --out {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); prepare the store again") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("format"), int):
        raise DataError(f"{path}: is not the manifest of a store; choose another folder")
    if content["format"] > FORMAT:
        raise DataError(
            f"{path}: format {content['format']}, written by a later version of molequi; this version reads "
            f"up to {FORMAT}: pip install --upgrade molequi"
        )
    try:
        manifest = Manifest(**{k: v for k, v in content.items() if k != "format"})
        _check(manifest, folder)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: is not a manifest as molequi writes it ({type(error).__name__}: {error}); prepare the "
            "store again"
        ) from error
    return manifest


def _check(manifest: Manifest, folder: Path) -> None:
    """Raise for tables that do not fit together, or to the files."""
    for name, table in manifest.tables.items():
        if table["dtype"] not in _TYPES or Path(table["file"]).name != table["file"]:
            raise ValueError(f"table {name!r} of type {table['dtype']!r}")
        shape = row_shape(table)
        if any(not isinstance(n, int) or n < 0 for n in (table["rows"], *shape)):
            raise ValueError(f"table {name!r} of shape {shape}")
        total = table["first"] + sum(segment["rows"].get(name, 0) for segment in manifest.segments)
        if total != table["rows"]:
            raise ValueError(f"table {name!r} has {table['rows']} rows and its segments {total}")
        wanted = table["rows"] * int(np.prod(shape, dtype=np.int64)) * np.dtype(table["dtype"]).itemsize
        path = folder / table["file"]
        size = path.stat().st_size if path.is_file() else -1
        if size < wanted:
            found = "is missing" if size < 0 else f"has {size} bytes"
            raise DataError(
                f"{path}: {found}, and the manifest says {wanted}: the store is damaged or was copied in "
                "part; copy it again, or prepare it again"
            )
    for name, declaration in manifest.fields.items():
        if name not in FIELDS or FIELDS[name].declaration() != declaration:
            call = ", ".join(f"{k}={v!r}" for k, v in declaration.items())
            raise DataError(
                f"{folder}: its structures have the field {name!r}, which is declared in another way here or "
                f"not at all; declare it first: mq.add_field({name!r}, {call})"
            )


def row_shape(table: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of one row of a table.

    Parameters
    ----------
    table : mapping
        Its entry in the manifest.
    """
    return tuple(table["shape"])
