"""Prepare structures once: read, check, search neighbors, and store them for trainings of any size."""

import inspect
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt

from molequi.data.batches import check_main_guard
from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, DataError, DataWarning, did_you_mean
from molequi.readers.files import expand_paths, source_of
from molequi.readers.hdf5_file import HDF5
from molequi.readers.load import reader_of
from molequi.readers.parts import Part, parts_of, whole
from molequi.store.manifest import MANIFEST, Manifest, is_store, read_manifest
from molequi.store.reading import check_digests, open_store
from molequi.store.tables import tables_of
from molequi.store.writer import Writer, about
from molequi.util.files import check_target_folder
from molequi.util.locks import lock_folder
from molequi.util.progress import ProgressBar
from molequi.util.run_log import log
from molequi.util.signature import check_call

_SHOWN = 5  # different warnings
_BLOCK = 1000  # structures that are read at once
_LOCK = "run.lock"


def prepare(
    what: Any,
    out: str | Path,
    *,
    cutoff: Annotated[float, Gt(0)] | Literal["all"] | None = None,
    k: Annotated[int, Ge(1)] | None = None,
    processes: Annotated[int, Ge(1)] = 1,
    block: Annotated[int, Ge(1)] | None = None,
    append: bool = False,
    restart: bool = False,
    progress: bool = True,
    **options: Any,
) -> Dataset:
    """Read structures once, check them, and store them in a folder that `read_store` opens at once.

    A store is for data that are larger than memory, or slow to read: structures are on disk as plain arrays,
    and a training reads those of a batch when it needs them. Extended XYZ, ASE databases, .npz and HDF5 files
    are read in blocks, with little memory, by several processes. A run that was interrupted continues where
    it was if it is started again.

    Parameters
    ----------
    what : path, list of paths, or what `load_dataset` takes
        Files, or a pattern such as ``"data/*.xyz"``. Data that are in memory are stored, too.
    out : path
        Folder of the store.
    cutoff : float, "all" or None
        Radius in Å of neighbor lists that are stored, too: that of the model. "all" joins all pairs. None
        stores none, so that each training searches them.
    k : int, optional
        Only the k nearest within the cutoff.
    processes : int
        Number of processes that read. A script that starts several needs ``if __name__ == "__main__":``.
    block : int, optional
        Number of structures that are read at once, 1,000 by default. A store that is continued or added to
        keeps its number, and its neighbor lists.
    append : bool
        Whether the structures are added to a store that is there.
    restart : bool
        Whether a store that is there is replaced.
    progress : bool
        Whether a progress bar is shown.
    **options
        Options of the reader, such as ``keys``, ``units``, ``quantities`` or ``partial``.

    Returns
    -------
    Dataset
        All structures of the store.

    Raises
    ------
    DataError
        If files cannot be read, structures do not fit together, or the disk is full.
    ConfigError
        If the folder has something else, or a store with other settings.

    Examples
    --------
    >>> import tempfile
    >>> import molequi as mq
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = mq.prepare(mq.shipped("ethanol_300K.xyz"), folder + "/ethanol", cutoff=5.0)
    ...     print(len(data), data[0].cutoff)
    400 5.0
    """
    if processes > 1:
        check_main_guard(processes, "processes")
    folder = Path(out)
    files = _files(what)
    options = {name: value for name, value in options.items() if value is not None}
    for source in (what,) if files is None else files:
        _check_options(source, options)
    check_target_folder(folder, name="out")
    if is_store(folder) and not restart:  # what is not given is as it was
        before = read_manifest(folder).settings
        cutoff = before.get("cutoff") if cutoff is None else cutoff
        k = before.get("k") if k is None else k
        block = before.get("block") if block is None else block
    size = block or _BLOCK
    settings = {"cutoff": cutoff, "k": k, "block": size, "options": _plain(options)}
    inputs = _inputs(files or ())
    manifest = _manifest(folder, settings, inputs, append, restart)
    if files is not None and manifest.complete and not append:
        return open_store(folder)
    if append:
        check_digests(folder, manifest)
    with lock_folder(folder):
        if restart:
            _clear(folder)
        work = partial(_made, cutoff=cutoff, k=k)
        partial_names = options.get("partial", ())
        names = (partial_names,) if isinstance(partial_names, str) else tuple(partial_names)
        run = _Run(Writer(folder, manifest, names), work, processes, progress)
        if files is None:
            manifest.inputs.append({"file": type(what).__name__, "size": 0, "blocks": 0, "done": False})
            run.read(manifest.inputs[-1], whole(what, options), 0)
        else:
            run.read_files(files, size, options)
    stored = open_store(folder, verify=False)
    absent = [name for name in names if not stored.labelled(name)]
    if absent:
        raise DataError(
            f"{folder}: no structure has a label {absent[0]!r}, which partial names; name its key with keys="
            f"{{{absent[0]!r}: ...}}, or leave it out, and prepare the store again with restart=True "
            "(--restart)"
        )
    return stored


class _Run:
    """Blocks to tables, in this process or in several, and tables to the store, in order."""

    def __init__(self, writer: Writer, work: Callable, processes: int, progress: bool) -> None:
        self.writer, self.manifest, self.work = writer, writer.manifest, work
        self.processes, self.progress = processes, progress
        self.told: set[str] = set()

    def read_files(self, files: list[Path], size: int, options: Mapping[str, Any]) -> None:
        """Read files that are not done."""
        by_name = {e["file"]: e for e in self.manifest.inputs}
        entries = [by_name[str(file.resolve())] for file in files]
        left = [(f, e) for f, e in zip(files, entries) if not e["done"]]
        # The size of what a compressed file holds is not known, nor that of a group.
        unknown = any(f.suffix in (".gz", *HDF5) for f, _ in left)
        total = None if unknown else sum(e["size"] for _, e in left)
        with ProgressBar("prepare", total, unit="B", show=self.progress, delay=1) as bar:
            for file, entry in left:
                self.read(entry, parts_of(file, size, options), entry["blocks"], bar)
                entry |= {"sha256": source_of(file, 0).sha256, "done": True}
                self.manifest.write(self.writer.folder)

    def read(
        self, entry: dict[str, Any], blocks: Iterator[Part], skip: int, bar: ProgressBar | None = None
    ) -> None:
        """Store all blocks of an input but the first ones, which are there."""
        for block, (tables, facts, told) in self._results(blocks, skip, bar):
            self._warn(told)
            self.writer.append(tables, facts, block.where)
            entry["blocks"] += 1
            entry["frames"] = entry.get("frames", 0) + len(tables["fingerprint"])
            if bar is None:
                entry["done"] = True
            self.manifest.write(self.writer.folder)
            if bar is not None:
                bar.advance(block.bytes, f"{self.manifest.structures} structures")

    def _results(
        self, blocks: Iterator[Part], skip: int, bar: ProgressBar | None
    ) -> Iterator[tuple[Part, tuple[dict[str, np.ndarray], dict[str, Any], list[str]]]]:
        for number, block in enumerate(blocks):
            if number >= skip:
                break
            if bar is not None:
                bar.advance(block.bytes)
        else:
            return
        rest = (b for part in ((block,), blocks) for b in part)
        if self.processes == 1:
            yield from ((b, self.work(b)) for b in rest)
            return
        waiting: deque[tuple[Part, Future]] = deque()
        first = block
        with ProcessPoolExecutor(
            self.processes, mp_context=get_context("spawn"), initializer=_begin_process
        ) as pool:
            try:
                for block in rest:
                    waiting.append((block, pool.submit(self.work, block)))
                    if len(waiting) > 2 * self.processes:  # so that little waits in memory
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            except BrokenProcessPool as error:
                raise DataError(
                    f"{first.where}: a process that read it was killed, perhaps because memory ran out; "
                    "what was stored before is kept. Start the same command again, with smaller blocks "
                    "(block=100) or fewer processes"
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _warn(self, told: list[str]) -> None:
        for sentence in told:
            if sentence not in self.told and len(self.told) < _SHOWN:
                warnings.warn(sentence, DataWarning, stacklevel=5)
            self.told.add(sentence)


def _begin_process() -> None:
    """One thread for this process, which ends with the one that started it, also if that was killed."""
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _made(
    block: Part, cutoff: float | Literal["all"] | None, k: int | None
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """The tables of a block, what is known of it, and warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        data = block.read()
        if cutoff is not None:
            data = data.connected(None if cutoff == "all" else cutoff, k=k)
    told = [str(w.message) for w in caught if issubclass(w.category, DataWarning)]
    return tables_of(data), about(data), told


def _check_options(source: object, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options that the reader does not have."""
    reader, _ = reader_of(source)
    own = [name for name in inspect.signature(prepare).parameters if name != "options"]
    if reader is None:
        if options:
            raise ConfigError(
                f"prepare.{next(iter(options))}: an option for reading files"
                f"{did_you_mean(next(iter(options)), own)}; these data have been read already"
            )
        return
    first = next(iter(inspect.signature(reader).parameters))
    check_call(reader, options, where="prepare", leave_out=(first,), more=tuple(own))


def _files(what: object) -> list[Path] | None:
    """The files of paths; None for anything else."""
    if isinstance(what, (str, os.PathLike)) and not Path(what).is_dir():
        return expand_paths(Path(what) if isinstance(what, os.PathLike) else what)
    if isinstance(what, (list, tuple)) and what and all(isinstance(w, (str, os.PathLike)) for w in what):
        return expand_paths([str(w) for w in what])
    return None


def _inputs(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The entries of files that are not read yet. Raises ConfigError for a file that is given twice."""
    out: dict[str, dict[str, Any]] = {}
    for file in files:
        found, name = file.stat(), str(file.resolve())
        if name in out:
            raise ConfigError(f"{file}: given twice; its structures would be stored twice")
        out[name] = {
            "file": name,
            "size": found.st_size,
            "changed": found.st_mtime_ns,
            "blocks": 0,
            "done": False,
        }
    return list(out.values())


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON has them, so that they can be compared with those of an earlier run."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(options), default=repr))
    return plain


def _manifest(
    folder: Path, settings: dict[str, Any], inputs: list[dict[str, Any]], append: bool, restart: bool
) -> Manifest:
    """The manifest to go on with; that of a new store, if there is none. Raises ConfigError."""
    if not is_store(folder):
        others = sorted(p.name for p in folder.iterdir() if p.name != _LOCK) if folder.is_dir() else []
        if append:
            raise ConfigError(f"append: {folder} has no store yet; leave append out")
        if others:
            raise ConfigError(
                f"out={folder}: the folder has other files ({', '.join(others[:3])}); choose a new folder"
            )
        return Manifest(settings=settings, inputs=inputs)
    if restart:
        return Manifest(settings=settings, inputs=inputs)
    manifest = read_manifest(folder)
    known = {e["file"]: e for e in manifest.inputs}
    differing = {n for n in settings if n != "block" and settings[n] != manifest.settings.get(n)}
    if append or not manifest.complete:
        differing |= {"block"} if settings["block"] != manifest.settings.get("block") else set()
    if differing:
        raise ConfigError(
            f"out={folder}: has a store that was made with "
            + ", ".join(f"{n}={manifest.settings.get(n)!r}" for n in sorted(differing))
            + " in place of "
            + ", ".join(f"{n}={settings[n]!r}" for n in sorted(differing))
            + "; choose another folder, or replace it with restart=True (--restart)"
        )
    for entry in inputs:
        before = known.get(entry["file"])
        if before and (before["size"], before["changed"]) != (entry["size"], entry["changed"]):
            if not before["done"]:  # it was repaired, perhaps
                manifest.rewind(before["blocks"])
                before |= entry | {"frames": 0}
                continue
            raise ConfigError(
                f"{entry['file']}: the file has changed since it was stored in {folder}; replace the store "
                "with restart=True (--restart)"
            )
        if append and before and before["done"]:
            raise ConfigError(f"append: {entry['file']} is in {folder} already; leave it out")
    if append:
        if not manifest.complete:
            raise ConfigError(
                f"append: {folder} is not complete; finish it first, with all files that it has and without "
                f"append: {', '.join(known) or 'the same data'}"
            )
        manifest.inputs += inputs
    elif [e["file"] for e in manifest.inputs] != [e["file"] for e in inputs]:
        raise ConfigError(
            f"out={folder}: has a store of {', '.join(list(known)[:3]) or 'other data'}; add structures to "
            "it with append=True (--append), or replace it with restart=True (--restart)"
        )
    if not append and manifest.complete:
        log(f"{folder}: complete already, {manifest.structures} structures; nothing to do")
    return manifest


def _clear(folder: Path) -> None:
    """Remove the files of a store."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for file in folder.glob("[0-9][0-9][0-9]-*.bin"):
        file.unlink()
