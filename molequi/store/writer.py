"""Append structures to a store: rows first, then the manifest that counts them."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from molequi.data.dataset import Dataset
from molequi.errors import DataError
from molequi.graph import FIELDS, own_fields
from molequi.store.manifest import Manifest, row_shape
from molequi.store.tables import STARTS, TEXT, Tables
from molequi.util.files import sha256


class Writer:
    """Appends segments to a store.

    Parameters
    ----------
    folder : Path
        The folder of the store.
    manifest : Manifest
        What it has; it is changed by each append.
    partial : collection of str
        Quantities that a segment may lack.
    """

    def __init__(self, folder: Path, manifest: Manifest, partial: tuple[str, ...] = ()) -> None:
        self.folder, self.manifest, self.partial = folder, manifest, frozenset(partial)

    def append(self, tables: Tables, about: Mapping[str, Any], where: str) -> None:
        """Append the structures of some tables, and count them in the manifest.

        A process that is killed in between leaves rows that are not counted; the next append overwrites them.

        Parameters
        ----------
        tables : mapping of str to array
            As `molequi.store.tables.tables_of` makes them.
        about : mapping
            As `about` makes it.
        where : str
            Where they came from, for messages.

        Raises
        ------
        DataError
            If they do not fit to those that are there, or if the files cannot be written.
        """
        manifest = self.manifest
        if not manifest.segments:
            manifest.quantities, manifest.reading = about["quantities"], about["reading"]
            manifest.fields, manifest.neighbors = about["fields"], about["neighbors"]
        rows = self._rows(self._fitting(dict(tables), about, where))
        self._declare(rows, manifest.structures)
        try:
            for name, array in rows.items():
                self._write(name, array)
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror or error}); what was stored before is "
                "unchanged. Make room, then start the same command again"
            ) from error
        lengths = {name: len(array) for name, array in rows.items()}
        structures = len(tables[f"node{STARTS}"])
        manifest.segments.append(
            {
                "structures": structures,
                "rows": lengths,
                "unused": about["unused"],
                "sha256": digest_of(rows),
            }
        )
        manifest.allow = sorted({*manifest.allow, *about["allow"]})
        for name, note in about["found"].items():
            manifest.found.setdefault(name, note)

    def _fitting(self, tables: dict[str, np.ndarray], about: Mapping[str, Any], where: str) -> Tables:
        """Tables with labels of NaN where they may be missing. Raises DataError for what does not fit."""
        manifest = self.manifest
        if about["neighbors"] != manifest.neighbors:
            raise DataError(
                f"{where}: neighbor lists of {about['neighbors']}, and the store has {manifest.neighbors}; "
                "wanted the same"
            )
        if about["reading"] != manifest.reading or about["fields"] != manifest.fields:
            raise DataError(f"{where}: read with {about['reading']}, and the store with {manifest.reading}")
        known = {entry["name"]: entry for entry in manifest.quantities}
        here = {entry["name"]: entry for entry in about["quantities"]}
        for name, entry in here.items():
            if known.get(name) != entry:
                found = "the structures before do not have it" if name not in known else f"{known[name]}"
                raise DataError(
                    f"{where}: the label {name!r}, and {found}; say which labels are read with quantities=, "
                    "and which may be missing with partial="
                )
        counts = {"graph": len(tables[f"node{STARTS}"]), "node": int(tables[f"node{STARTS}"][-1])}
        for name in known.keys() - here.keys():
            if name not in self.partial:
                raise DataError(
                    f"{where}: no label {name!r}, which the structures before have; if it may be missing, "
                    f"say partial=[{name!r}]"
                )
            kind = next(k for k in ("node", "graph") if f"{k}_target.{name}" in manifest.tables)
            shape = row_shape(manifest.tables[f"{kind}_target.{name}"])
            tables[f"{kind}_target.{name}"] = np.full((counts[kind], *shape), np.nan)
        for name, array in tables.items():
            table = manifest.tables.get(name)
            if table is not None and (
                row_shape(table) != array.shape[1:] or table["dtype"] != str(array.dtype)
            ):
                raise DataError(
                    f"{where}: {name} has rows of shape {array.shape[1:]}, and those before "
                    f"{row_shape(table)}; wanted the same"
                )
            if table is None and manifest.segments and not _may_come_later(name):
                raise DataError(
                    f"{where}: these structures have {name.split('.')[-1]!r}, and those before have not; "
                    "wanted all or none"
                )
        for name in manifest.tables.keys() - tables.keys():
            if not _may_come_later(name):
                raise DataError(
                    f"{where}: these structures have no {name.split('.')[-1]!r}, and those before have it; "
                    "wanted all or none"
                )
        return tables

    def _rows(self, tables: Tables) -> dict[str, np.ndarray]:
        """The rows of all tables: ends are counted from the first structure of the store, and structures
        without a field have zeros.
        """
        there, count = self.manifest.tables, len(tables[f"node{STARTS}"])
        out = {}
        for name, array in tables.items():
            out[name] = array
            if name.endswith(STARTS):
                out[name] = array + there.get(_counted(name), {"rows": 0})["rows"]
        for name in there.keys() - tables.keys():
            shape, dtype = row_shape(there[name]), np.dtype(there[name]["dtype"])
            length = {"text": 0, "edge": len(tables.get("edge_index", ()))}.get(_kind(name), count)
            fill = there[_counted(name)]["rows"] if name.endswith(STARTS) else 0
            out[name] = np.full((length, *shape), fill, dtype)
        return out

    def _declare(self, rows: Tables, before: int) -> None:
        """Make an entry of each new table. The structures before have zeros in it: the field is absent, the
        text is empty.
        """
        tables = self.manifest.tables
        edges = tables.get("edge_index", {"rows": 0})["rows"]
        for name, array in rows.items():
            if name not in tables:
                first = {"text": 0, "edge": edges}.get(_kind(name), before)
                tables[name] = {
                    "file": f"{len(tables):03d}-{re.sub(r'[^A-Za-z0-9.]', '_', name)[:60]}.bin",
                    "dtype": str(array.dtype),
                    "shape": list(array.shape[1:]),
                    "first": first if before else 0,
                    "rows": first if before else 0,
                }

    def _write(self, name: str, array: np.ndarray) -> None:
        """Append rows to the file of a table."""
        table = self.manifest.tables[name]
        size = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        path = self.folder / table["file"]
        with open(path, "r+b" if path.exists() else "w+b") as file:
            file.truncate(table["rows"] * size)
            file.seek(table["rows"] * size)
            file.write(_bytes(array))
            file.flush()
            os.fsync(file.fileno())
        table["rows"] += len(array)


def _counted(name: str) -> str:
    """The table whose rows the ends of structures count."""
    kind = name.removesuffix(STARTS)
    return {"node": "field.z", "pair": "pair_index", "edge": "edge_index"}.get(kind, f"{kind}{TEXT}")


def _kind(name: str) -> str:
    """What a table that may come later has its rows for: bytes of texts, edges or structures."""
    if name.endswith(TEXT):
        return "text"
    return "edge" if name == "shift" else "structure"


def _may_come_later(name: str) -> bool:
    """Whether only some segments may have a table."""
    field = name.partition(".")[2]
    optional = field in FIELDS and FIELDS[field].default is not None
    return name.startswith("info.") or name in ("shift", "shifted") or optional


def digest_of(rows: Tables) -> str:
    """SHA-256 of the rows of a segment.

    Parameters
    ----------
    rows : mapping of str to array
        The rows of each table.
    """
    return sha256(
        part
        for name in sorted(rows)
        for part in (f"{name} {rows[name].dtype} {rows[name].shape}", _bytes(rows[name]))
    )


def _bytes(array: np.ndarray) -> memoryview:
    """The content of an array, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def about(data: Dataset) -> dict[str, Any]:
    """What a store keeps of a data set beside its tables.

    Parameters
    ----------
    data : Dataset
        The structures.
    """
    entries = [asdict(q) for q in data.quantities.values()]
    edges = data.graphs.edges
    cutoff = None if edges is None or math.isinf(edges.cutoff) else edges.cutoff
    used = {name for name in own_fields() if data.graphs.has(name).any()}
    return {
        "quantities": json.loads(json.dumps(entries, default=bool)),
        "reading": json.loads(json.dumps(data.reading, default=str)),
        "found": data.found,
        "allow": sorted(data.allow),
        "unused": data.unused,
        "neighbors": None if edges is None else {"cutoff": cutoff, "k": edges.k},
        "fields": {name: own_fields()[name].declaration() for name in sorted(used)},
    }
