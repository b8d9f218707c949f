"""Descriptors in files: .npz for all irreps, tables (.csv, .parquet) for invariants.

Blocks grow as plain numbers in the folder ``<name>.partial``, with a note of how far they are. They become
the file at the end. So memory does not grow with the number of structures, and an interrupted call goes on.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from molequi.errors import ConfigError, DataError
from molequi.inference.descriptors import Descriptors, DescriptorWork, Pool, invariant_names
from molequi.inference.predictions import Trained
from molequi.inference.table_parts import Cell, write_parts
from molequi.util.digests import weights_digest
from molequi.util.files import check_target, sha256, write_atomically, write_results
from molequi.util.html import html_text
from molequi.util.optional import require

FORMAT = 1  # of a file, and of the folder while it is written
SUFFIXES = (".npz", ".csv", ".parquet")
_ROWS = 20_000  # of a table in memory at a time


@dataclass(frozen=True)
class WrittenDescriptors:
    """What `write_descriptors` has written; printed, a sentence.

    Parameters
    ----------
    structures, atoms : int
        Their numbers.
    layout : str
        Irreps with their channels.
    layer : str
        The layer.
    pool : {"mean", "sum"} or None
        How atoms were pooled.
    out : Path
        The file.
    """

    structures: int
    atoms: int
    layout: str
    layer: str
    pool: Pool | None
    out: Path

    def __str__(self) -> str:
        rows = f"{self.pool} over the atoms of {self.structures}" if self.pool else f"{self.structures}"
        return f"{rows} structures ({self.atoms} atoms), layer {self.layer}, {self.layout}: {self.out}"

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


def write_descriptors(
    model: Trained,
    structures: Any,
    out: str | os.PathLike,
    *,
    layer: str | None = None,
    irreps: Sequence[str] | None = None,
    pool: Pool | None = None,
    member: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    **options: Any,
) -> WrittenDescriptors:
    """Write descriptors of any number of structures to a file.

    Only a part of the descriptors is in memory at a time; structures of a store (`molequi.prepare`) stay on
    the disk, too. Finished parts are in the folder ``<out>.partial``. An interrupted call continues from
    them when it is repeated with the same model, structures and options. The file itself is written at the
    end, as a whole.

    - ``.npz``: an array of shape (rows, C, m) for each irrep under its name, and ``elements``, ``offsets``,
      ``origins``, ``layer``, ``pool`` (empty: none) and ``group`` as in `Descriptors`.
      `read_descriptors` reads it, and so does ``numpy.load``.
    - ``.csv``, ``.parquet``: the invariants as a table, with the columns of `Descriptors.frame`.

    Parameters
    ----------
    model, structures, layer, irreps, pool, member, device, dtype, batch_edges, progress, **options
        As in `molequi.descriptors`.
    out : str or Path
        The file. One that exists is replaced.

    Returns
    -------
    WrittenDescriptors

    Raises
    ------
    ConfigError
        As `molequi.descriptors`; if `out` has another suffix or cannot be written, and for a table of
        descriptors without invariants.
    DataError
        For structures that are impossible, and if the disk is full.
    MissingPackageError
        For a .parquet file, if pyarrow is not installed.
    """
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"out={path}: wanted a name that ends in .npz (all irreps), or .csv or .parquet (invariants), "
            f"such as {path.with_suffix('.npz')}"
        )
    if path.suffix == ".parquet":
        require("pyarrow", "parquet", f"writing {path.name}")
    check_target(path)
    work = DescriptorWork(
        model,
        structures,
        layer,
        irreps,
        pool,
        member,
        device,
        dtype,
        batch_edges,
        options,
        "write_descriptors",
    )
    if path.suffix != ".npz":
        if irreps is not None and [*irreps] != ["0e"]:
            raise ConfigError(
                f"irreps: {', '.join(irreps)} in a table {path.name}, which has invariants ('0e') alone; "
                f"leave out irreps, or write {path.with_suffix('.npz').name}"
            )
        work.check_table(f"out={path}")
    found = work.described({})
    partial = PartialBlocks(path.with_name(path.name + ".partial"), _key(work, path.suffix))
    for done, blocks in work.parts(partial.done, progress):
        partial.add(done, blocks)
    shapes = {irrep: (found.rows, *partial.shapes[irrep]) for irrep in work.irreps}
    layout = "+".join(f"{shape[1]}x{irrep}" for irrep, shape in shapes.items())
    if path.suffix == ".npz":
        write_results(path, lambda file: _write_npz(file, found, partial, shapes))
    else:
        _write_table(path, found, partial, shapes["0e"])
    partial.remove()
    return WrittenDescriptors(len(found), len(found.elements), layout, found.layer, pool, path)


def read_descriptors(path: str | os.PathLike) -> Descriptors:
    """The descriptors of an .npz file that `write_descriptors` wrote. Columns of `info` are not in it.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    Descriptors

    Raises
    ------
    DataError
        If it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        number, pool = int(arrays.pop("format")), str(arrays.pop("pool"))
        if number > FORMAT:
            raise DataError(
                f"{os.fspath(path)}: descriptors in format {number}; this version reads up to {FORMAT}; "
                "update molequi"
            )
        return Descriptors(
            elements=arrays.pop("elements"),
            offsets=arrays.pop("offsets"),
            origins=arrays.pop("origins").tolist(),
            layer=str(arrays.pop("layer")),
            pool=pool or None,  # type: ignore[arg-type]
            group=str(arrays.pop("group")),
            blocks=arrays,
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{os.fspath(path)}: no file of descriptors ({type(error).__name__}: {error}); wanted an .npz "
            "file that molequi features or write_descriptors wrote"
        ) from error


class PartialBlocks:
    """Blocks on the disk that grow part by part.

    Parameters
    ----------
    folder : Path
        Where they are. Those of another call are removed.
    key : str
        Digest of the call.

    Attributes
    ----------
    done : int
        Number of structures whose blocks are there.
    shapes : dict of str to list of int
        Channels and components of each irrep.
    types : dict of str to str
        Type of the numbers of each irrep, as NumPy writes it.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key, self.note = folder, key, folder / "note.json"
        self.done = 0
        self.shapes: dict[str, list[int]] = {}
        self.types: dict[str, str] = {}
        if not self._found():
            self.remove()
            folder.mkdir()

    def file(self, irrep: str) -> Path:
        """The file of the numbers of an irrep.

        Parameters
        ----------
        irrep : str
            The irrep.
        """
        return self.folder / f"{irrep}.bin"

    def _found(self) -> bool:
        """Whether there are blocks of the same call; they are then continued."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            sizes: dict[str, int] = note["bytes"]
            if note["key"] != self.key or any(
                self.file(irrep).stat().st_size < size for irrep, size in sizes.items()
            ):
                return False
            for irrep, size in sizes.items():  # what was written after the last note
                os.truncate(self.file(irrep), size)
            self.done, self.shapes, self.types = note["structures"], note["shapes"], note["types"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # nothing that can be continued
            return False
        return True

    def add(self, done: int, blocks: Mapping[str, np.ndarray]) -> None:
        """Append blocks; they are on the disk when this returns.

        Parameters
        ----------
        done : int
            Number of structures with these.
        blocks : mapping of str to array, shape (rows, C, m)
            The blocks.

        Raises
        ------
        DataError
            If the disk is full.
        """
        try:
            for irrep, block in blocks.items():
                with open(self.file(irrep), "ab") as file:
                    file.write(np.ascontiguousarray(block).tobytes())
                    file.flush()
                    os.fsync(file.fileno())
            self.shapes = {irrep: list(block.shape[1:]) for irrep, block in blocks.items()}
            self.types = {irrep: block.dtype.str for irrep, block in blocks.items()}
            self.done = done
            note = {
                "key": self.key,
                "structures": done,
                "shapes": self.shapes,
                "types": self.types,
                "bytes": {irrep: self.file(irrep).stat().st_size for irrep in blocks},
            }
            write_atomically(self.note, lambda path: path.write_text(json.dumps(note), encoding="utf-8"))
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror or error}); make room, then start the "
                "same command again: it goes on where it was"
            ) from error

    def rows(self, irrep: str, count: int) -> Iterator[np.ndarray]:
        """The blocks of an irrep again, in parts of shape (rows, C, m).

        Parameters
        ----------
        irrep : str
            The irrep.
        count : int
            Largest number of rows in a part.
        """
        kind, shape = np.dtype(self.types[irrep]), self.shapes[irrep]
        size = int(np.prod(shape))
        with open(self.file(irrep), "rb") as file:
            while (read := np.fromfile(file, dtype=kind, count=count * size)).size:
                yield read.reshape(-1, *shape)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _key(work: DescriptorWork, suffix: str) -> str:
    """Digest of structures, model and options: only the same call is continued."""
    backbone = work.model.backbone
    settings = [FORMAT, work.features.layer, work.irreps, work.pool, str(work.model.dtype), suffix]
    settings += [type(backbone).__name__, backbone.hparams]
    made = json.dumps(settings, sort_keys=True, default=str)
    return sha256([made, work.data.digest, weights_digest(work.model.state_dict())])


def _write_npz(
    path: Path, found: Descriptors, partial: PartialBlocks, shapes: Mapping[str, Sequence[int]]
) -> None:
    """An archive of arrays as `numpy.savez` writes it, whose blocks are copied from the disk."""
    small = {
        "format": np.array(FORMAT),
        "elements": found.elements,
        "offsets": found.offsets,
        "origins": np.array(found.origins, dtype=str),
        "layer": np.array(found.layer),
        "pool": np.array(found.pool or ""),
        "group": np.array(found.group),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        for irrep, shape in shapes.items():
            with archive.open(f"{irrep}.npy", "w", force_zip64=True) as entry:
                _write_block(entry, partial, irrep, shape)


def _write_block(entry: IO[bytes], partial: PartialBlocks, irrep: str, shape: Sequence[int]) -> None:
    head = {"descr": partial.types[irrep], "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(entry, head)
    with open(partial.file(irrep), "rb") as file:
        shutil.copyfileobj(file, entry, 1 << 22)


def _write_table(path: Path, found: Descriptors, partial: PartialBlocks, shape: Sequence[int]) -> None:
    """The invariants, with what each row belongs to."""
    names = invariant_names(shape[1])
    columns = [cell for cell, _ in found.row_labels(names, slice(0, 0))]
    table = [*columns, *(Cell(name, "number") for name in names)]

    def parts() -> Iterator[list[list[Any]]]:
        start = 0
        for block in partial.rows("0e", _ROWS):
            stop = start + len(block)
            labels = [
                [_plain(value, cell.kind) for value in values]
                for cell, values in found.row_labels(names, slice(start, stop))
            ]
            yield [[*label, *row] for label, row in zip(zip(*labels), block[:, :, 0].tolist())]
            start = stop

    write_parts(path, table, parts())


def _plain(value: Any, kind: str) -> Any:
    """A cell as a value of Python."""
    if value is None:
        return None
    if kind == "number":
        return float(value)
    return int(value) if kind == "count" else str(value)
