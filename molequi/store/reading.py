"""Open a store as a Dataset. Nothing is read before it is used."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from molequi.data.dataset import Dataset
from molequi.data.edges import Edges
from molequi.data.sources import Source
from molequi.data.structures import Columns, Structures
from molequi.errors import DataError
from molequi.store.manifest import Manifest, read_manifest, row_shape
from molequi.store.tables import columns_of, edges_of_tables, mapped, text_columns
from molequi.store.writer import digest_of
from molequi.util.progress import ProgressBar


def open_store(path: str | Path, *, verify: bool = True) -> Dataset:
    """Open a complete store.

    Parameters
    ----------
    path : str or Path
        The folder of the store.
    verify : bool
        Whether all files are compared with their digests.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If it is no store, if it is damaged or not complete.
    """
    folder = Path(path).absolute()
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise DataError(
            f"{path}: prepared in part, {manifest.structures} structures so far; start the same command of "
            "`molequi prepare` again to complete it"
        )
    if verify:
        check_digests(folder, manifest)
    return opened(folder, manifest, str(path))


def opened(folder: Path, manifest: Manifest, name: str) -> Dataset:
    """The structures that a manifest counts.

    Parameters
    ----------
    folder : Path
        Absolute path of the store.
    manifest : Manifest
        Its manifest.
    name : str
        The path as the user wrote it.
    """
    columns = _columns(folder, manifest.structures, None)
    edges = _edges(folder, manifest.structures) if manifest.neighbors is not None else None
    texts = text_columns(_tables(folder, manifest))
    return Dataset.of_structures(
        Structures(columns, edges=edges),
        quantities=manifest.declared(),
        origins=texts["origin"],
        info={key.removeprefix("info."): text for key, text in texts.items() if key.startswith("info.")},
        sources=[Source(name, manifest.structures, manifest.digest)],
        found=manifest.found,
        unused=manifest.unused,
        reading=manifest.reading,
        digest=manifest.digest,
        allow=manifest.allow,
    )


def _columns(folder: Path, structures: int, targets: Sequence[str] | None) -> Columns:
    """The tables of the first structures of a store, also in another process."""
    return columns_of(
        _tables(folder, read_manifest(folder), structures), targets, partial(_columns, folder, structures)
    )


def _edges(folder: Path, structures: int) -> Edges:
    manifest = read_manifest(folder)
    return edges_of_tables(
        _tables(folder, manifest, structures),
        manifest.cutoff(),
        (manifest.neighbors or {}).get("k"),
        partial(_edges, folder, structures),
    )


def _tables(folder: Path, manifest: Manifest, structures: int | None = None) -> dict[str, np.ndarray]:
    """All tables; of a store that has grown, as they were with the first structures alone."""
    rows = {name: table["rows"] for name, table in manifest.tables.items()}
    if structures is not None and structures != manifest.structures:
        rows = {name: table["first"] for name, table in manifest.tables.items()}
        count = 0
        for segment in manifest.segments:
            if count == structures:
                break
            count += segment["structures"]
            for name, number in segment["rows"].items():
                rows[name] += number
    return {name: _table(folder, table, rows[name]) for name, table in manifest.tables.items()}


def _table(folder: Path, table: Mapping[str, Any], rows: int, first: int = 0) -> np.ndarray:
    """Some rows of a table."""
    shape = (rows, *row_shape(table))
    return mapped(folder / table["file"], np.dtype(table["dtype"]), shape, first)


def check_digests(folder: Path, manifest: Manifest) -> None:
    """Compare all rows of a store with the digests of its segments.

    Parameters
    ----------
    folder : Path
        The folder of the store.
    manifest : Manifest
        Its manifest.

    Raises
    ------
    DataError
        For the first segment that differs.
    """
    begin = {name: table["first"] for name, table in manifest.tables.items()}
    done = 0
    with ProgressBar("check", len(manifest.segments), unit="segment", delay=3) as bar:
        for segment in manifest.segments:
            # Mapped for this segment alone, so that the pages of a large store are not all in memory.
            rows = {
                name: _table(folder, manifest.tables[name], number, begin[name])
                for name, number in segment["rows"].items()
            }
            if digest_of(rows) != segment["sha256"]:
                raise DataError(
                    f"{folder}: the structures {done} to {done + segment['structures'] - 1} are not as they "
                    "were stored: a file is damaged or was changed; prepare the store again with --restart "
                    "(restart=True)"
                )
            for name, number in segment["rows"].items():
                begin[name] += number
            done += segment["structures"]
            bar.advance()
