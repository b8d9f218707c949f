"""Predictions for very many structures or molecules, in parts, which go on after any interrupt."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from molequi.checkpoint import check_order, save
from molequi.data.request import Key
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError
from molequi.inference.columns import Layout, scales_of
from molequi.inference.metrics import Errors, merged_errors
from molequi.inference.molecule_predictions import column_of_training, geometry_of
from molequi.inference.molecule_tables import predict_table
from molequi.inference.predictions import Trained, loaded
from molequi.inference.table_parts import FORMATS, Cell, available_format, read_part, write_part
from molequi.model import Model
from molequi.readers.ase import from_atoms
from molequi.readers.blocks import STRUCTURES, Block, kind_of
from molequi.screening.conditions import Best, best, conditions
from molequi.screening.folder import ScreenFolder, sources_as_json
from molequi.screening.on_ray import RayWorkers, check_installed
from molequi.screening.outcomes import StructureWork
from molequi.screening.plan import input_paths, plan
from molequi.screening.processes import WorkerProcesses
from molequi.screening.work import BlockWork, checked, classes_of, columns_of, given_columns
from molequi.util.digests import weights_digest
from molequi.util.files import check_target_folder, sha256
from molequi.util.html import html_heading, html_text
from molequi.util.locks import lock_folder
from molequi.util.optional import require
from molequi.util.progress import ProgressBar, tell
from molequi.util.signature import check_call

_MOST = 3  # reasons in a sentence
_WARNINGS = 10  # that are shown
# Options of `predict_table` that are no options of molecules here.
_OTHERS = ("model", "molecules", "out", "skip", "interval", "device", "batch_edges", "progress")


@dataclass(frozen=True)
class Screening:
    """What `screen` has done; printed, a few sentences.

    Parameters
    ----------
    inputs : int
        Number of structures or molecules in the files.
    predicted : int
        How many have a prediction.
    failed : int
        How many have none; the column ``reason`` says why.
    kept : int
        How many of those with a prediction are in the tables: all, or those that satisfy `keep`.
    out : Path
        The folder.
    parts : tuple of Path
        The tables, in the order of the inputs.
    structures : tuple of Path
        The files of structures; empty if the model predicts nothing of atoms.
    best : Path or None
        The table of the best ones.
    reasons : mapping of str to int
        How often each reason is why there is no prediction.
    errors : Errors or None
        The errors on the labels, if they were asked for.
    """

    inputs: int
    predicted: int
    failed: int
    kept: int
    out: Path
    parts: tuple[Path, ...]
    structures: tuple[Path, ...] = ()
    best: Path | None = None
    reasons: Mapping[str, int] = field(default_factory=dict)
    errors: Errors | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.inputs} inputs = {self.predicted} predicted + {self.failed} failed, each once; "
            f"{self.kept} results in {len(self.parts)} part{'s' * (len(self.parts) != 1)}: "
            f"{self.parts[0].parent}"
        ]
        if self.failed:
            common = sorted(self.reasons.items(), key=lambda item: -item[1])[:_MOST]
            lines += [f"  {count} failed: {reason}" for reason, count in common]
        if self.best is not None:
            lines.append(f"the best: {self.best}")
        if self.errors is not None:
            lines.append(str(self.errors) if self.errors.rows else "no labels of what the model predicts")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        first, *rest = str(self).splitlines() if self.errors is None else [str(self).splitlines()[0]]
        errors = "" if self.errors is None else self.errors._repr_html_()
        return html_heading("Screening", first) + (html_text("\n".join(rest)) if rest else "") + errors


def screen(
    model: Trained,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str],
    keep: Sequence[str] = (),
    best: str | None = None,
    processes: Annotated[int, Ge(1)] | None = None,
    ray: str | None = None,
    block: Annotated[int, Gt(0)] = 1000,
    format: Literal["auto", "parquet", "csv"] = "auto",
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    batch_edges: Annotated[int, Gt(0)] | None = None,
    resume: Literal["auto", "restart"] = "auto",
    progress: bool = True,
    **options: Any,
) -> Screening:
    r"""Predict for any number of structures or molecules, in parts; the same call goes on after an interrupt.

    The files are cut into blocks. The results of a block are one file in ``<out>/parts``, which is written as
    a whole or not at all, and ``<out>/done.jsonl`` says which blocks are done. A call with the same model,
    inputs and options does the others only. Only the blocks in work are in memory.

    Each input is accounted for exactly once, which is checked at the end: it has a row with predictions, or
    one with the ``reason`` why there are none. A block that ends its process (a crash, or no memory) is done
    again, up to three times; then its inputs get this as the reason.

    The tables have the columns ``input`` (the number over all files, from 0), ``file``, ``record`` (the
    number in the file), columns of the input, the predictions with their units in the names as in
    `molequi.inference.predict_table`, and ``reason``. A model that predicts quantities of atoms, such as
    forces, also writes the structures with all predictions to ``<out>/structures``, as extended XYZ.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    inputs : path or list of paths
        Files or patterns such as ``"library/*.smi.gz"``: tables (.csv, .tsv, .txt) or lists (.smi) of SMILES,
        or SDF files; or structures as extended XYZ (.xyz, .extxyz), ASE databases (.db, .aselmdb), arrays
        (.npz), HDF5 files (.h5, .hdf5), and stores that `molequi.prepare` made.
    out : str or Path
        The folder of the results.
    keep : sequence of str, optional
        Conditions on columns that a result must satisfy to be written, such as ``"gap < 3"``; all of them.
        Inputs without a prediction are always written.
    best : str, optional
        Write ``best.csv`` with the best results of those that are kept: ``"100 smallest gap"``.
    processes : int, optional
        Number of worker processes; by default all work is done in this process, and with `ray` by one actor
        for each GPU, or for each processor if there is none.
    ray : str, optional
        Do the work with Ray Data (the extra ``ray``): ``"local"`` starts Ray on this machine, ``"auto"`` uses
        the cluster that this machine belongs to, and ``"host:port"`` that at an address. All machines need
        this folder and the files of the inputs under the same paths.
    block : int
        Number of inputs in a block.
    format : {"auto", "parquet", "csv"}
        Format of the tables; "auto" is Parquet if pyarrow is installed (the extra ``parquet``), otherwise
        CSV.
    device : str, optional
        Where the model runs; by default on CUDA if there is one. Worker processes share the devices out.
    dtype : {"float32", "float64"}, optional
        Precision of the computation; by default the one of the model.
    batch_edges : int, optional
        Largest number of edges in a batch.
    resume : {"auto", "restart"}
        "auto" goes on with a screening of the same model, inputs and options; "restart" begins anew.
    progress : bool
        Show a progress bar.
    **options
        Of molecules those of `molequi.inference.predict_table`: column, conformers, seed, optimize,
        fragments, embed, workers (of each process). Of structures ``units`` and ``keys``, as the reader takes
        them (not of stores), and ``errors=True``, which reads the labels of the files and measures the
        errors on them as `molequi.evaluate` does; other labels may be missing. Without it labels are not
        read.

    Returns
    -------
    Screening

    Raises
    ------
    OtherSettingsError
        If the folder holds a screening with another model, other inputs or options; it says which.
    ConfigError
        If files are of different kinds, and for conditions on columns that do not exist.
    DataError
        If a file cannot be cut into records, or changes while it is read.
    MissingPackageError
        If Ray or pyarrow is wanted and not installed.

    Examples
    --------
    >>> import tempfile
    >>> import molequi as mq
    >>> model = mq.Model(mq.EGNN(elements=["H", "C", "O"], channels=4, layers=1), ["gap"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "library.smi"
    ...     _ = file.write_text("CCO ethanol\nC1CC cut\nCN methylamine\n")
    ...     done = mq.screen(model, file, out=f"{folder}/screen")
    >>> done.inputs, done.predicted, done.failed
    (3, 1, 2)
    """
    check_order("screen", model, inputs)
    if ray is not None:
        check_installed()
        if device not in (None, "auto", "cpu", "cuda"):
            raise ConfigError(
                f"ray={ray!r} with device={device!r}: Ray gives each actor one device; wanted 'auto', "
                "'cpu' or 'cuda'"
            )
    if format == "parquet":
        require("pyarrow", "parquet", "screen(format='parquet')")
    check_target_folder(out)
    given: dict[str, Any] = {
        "keep": keep,
        "best": best,
        "processes": processes,
        "ray": ray,
        "block": block,
        "format": format,
        "device": device,
        "dtype": dtype,
        "batch_edges": batch_edges,
        "resume": resume,
    }
    check_call(screen, given, where="screen", leave_out=("model", "inputs", "out", "progress"))
    trained = loaded(model, device, dtype)
    run = _Run(trained, input_paths(inputs), Path(out), given, options, progress)
    run.folder.check(run.settings, resume)
    with lock_folder(run.folder.path):
        try:
            return run()
        except KeyboardInterrupt:
            tell(
                f"{run.folder.path}: what is done is kept; the same command does the blocks that are missing"
            )
            raise


def _labels(options: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether errors are measured, and the names of labels. Raises ConfigError for what is neither."""
    errors, keys = options.get("errors", False), options.get("keys")
    if not isinstance(errors, bool):
        raise ConfigError(f"screen.errors: found {errors!r}; wanted True or False")
    if keys and not errors:
        raise ConfigError("keys are names of labels, which are not read; add errors=True")
    return errors, {name: vars(key) if isinstance(key, Key) else key for name, key in (keys or {}).items()}


class _Run:
    """One call of `screen`, with all its options checked."""

    def __init__(
        self,
        model: Model | Ensemble,
        paths: Sequence[Path],
        out: Path,
        given: Mapping[str, Any],
        options: Mapping[str, Any],
        progress: bool,
    ) -> None:
        self.model, self.given, self.progress = model, given, progress
        self.folder = ScreenFolder(out)
        self.workers = options.get("workers")
        structures = kind_of(paths[0]) in STRUCTURES
        self.geometry: dict[str, Any] | None = None
        self.errors = False
        self.keys: dict[str, Any] = {}
        if structures:
            self.errors, self.keys = _labels(options)
            of_reader = {name: value for name, value in options.items() if name != "errors"}
            stores = [path for path in paths if kind_of(path) == "store"]
            if stores and (options.get("units") or options.get("keys")):
                raise ConfigError(
                    f"{stores[0]} is a store of prepared structures, and how files are read was said when it "
                    "was made; leave out units and keys, or screen it into a folder of its own"
                )
            check_call(
                from_atoms, of_reader, where="screen", leave_out=("structures", "partial", "quantities")
            )
            # Units and keys are checked before anything is lost.
            StructureWork(model, options.get("units") or {}, errors=self.errors, keys=self.keys)
        else:
            if "errors" in options:
                raise ConfigError(
                    "errors is for structures with labels; those of a table of molecules are measured by "
                    "molequi evaluate MODEL TABLE.csv"
                )
            check_call(predict_table, options, where="screen", leave_out=_OTHERS)
            self.geometry = asdict(geometry_of(model, options))
        self.several = self.geometry is not None and self.geometry["conformers"] > 1
        self.layout = Layout(model, self.several)
        classes = classes_of(model)
        conditions(given["keep"], self.layout.columns, classes)
        self.best: Best | None = None
        if given["best"] is not None:
            self.best = best(given["best"], self.layout.columns, classes)
        self.format = available_format() if given["format"] == "auto" else given["format"]
        assert self.format in FORMATS
        self.sources, self.blocks = plan(
            paths,
            given["block"],
            column=options.get("column"),
            hint=column_of_training(model),
            progress=progress,
        )
        self.names = list(dict.fromkeys(name for source in self.sources for name in source.columns))
        self.units = dict(options.get("units") or {})
        self.settings = self._settings()

    def _settings(self) -> dict[str, Any]:
        """What must be the same when the screening goes on."""
        inputs = {
            str(k): {"records": source.records, "sha256": source.sha256[:16], "column": source.column}
            for k, source in enumerate(self.sources)
        }
        description = json.dumps([self.model.hparams, scales_of(self.model)], sort_keys=True, default=str)
        return {
            "model": sha256([weights_digest(self.model.state_dict()), description])[:16],
            "inputs": inputs,
            "block": self.given["block"],
            "format": self.format,
            "keep": list(self.given["keep"]),
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "molecules": self.geometry,
            "units": self.units,
            "errors": self.errors,
            "keys": self.keys,
        }

    def _work(self) -> dict[str, Any]:
        """What workers read from the folder."""
        return {
            "where": os.getcwd(),
            "sources": sources_as_json(self.sources),
            "names": self.names,
            "geometry": self.geometry,
            "units": self.units,
            "errors": self.errors,
            "keys": self.keys,
            "keep": list(self.given["keep"]),
            "format": self.format,
            "dtype": self.settings["dtype"],
            "batch_edges": self.given["batch_edges"],
            "workers": self.workers,
        }

    def __call__(self) -> Screening:
        folder = self.folder
        going_on = folder.check(self.settings, self.given["resume"])
        if going_on:
            folder.write_note(self.settings, self._work())
        else:
            folder.begin(self.settings, self._work())
        save(self.model, folder.model)
        folder.clean()
        done = folder.done() if going_on else {}
        todo = [block for block in self.blocks if block.number not in done]
        total = sum(block.count for block in self.blocks)
        before = total - sum(block.count for block in todo)
        if going_on and before:
            rest = "; the others follow" if todo else ""
            tell(f"{folder.path}: {before} of {total} inputs are done{rest}")
        failed = sum(note["failed"] for note in done.values())
        shown = _Warnings()
        with (
            ProgressBar("screen", total, unit="input", show=self.progress, start=before, delay=2) as bar,
            ExitStack() as stack,
        ):
            for note in self._notes(todo, stack) if todo else ():
                shown.add(note.pop("warnings"))
                folder.add([note])
                done[note["block"]] = note
                failed += note["failed"]
                bar.advance(note["count"], f"{failed} failed" if failed else None)
        shown.finish()
        return self._finish([done[block.number] for block in self.blocks])

    def _notes(self, todo: Sequence[Block], stack: ExitStack) -> Iterator[dict[str, Any]]:
        """The notes of blocks, in the order in which they are done."""
        path, device = self.folder.path, self.given["device"]
        processes, ray = self.given["processes"], self.given["ray"]
        if ray is not None:
            answers = stack.enter_context(RayWorkers(path, ray, processes, device)).run(todo)
        elif processes is not None:
            answers = stack.enter_context(WorkerProcesses(path, processes, device)).run(todo)
        else:
            work = BlockWork(path, workers=_cores(), model=self.model)
            stack.callback(work.close)
            answers = (work(block) for block in todo)
        for answer in answers:
            yield checked(answer)

    def _finish(self, notes: Sequence[Mapping[str, Any]]) -> Screening:
        """Check that each input is there exactly once, and write the best ones."""
        parts = [self.folder.parts / f"{block.number:06d}.{self.format}" for block in self.blocks]
        columns = columns_of(self.model, given_columns(self.geometry, self.names), self.several)
        check_each_once(self.blocks, notes, parts)
        reasons: Counter[str] = Counter()
        for note in notes:
            reasons.update(note["reasons"])
        if self.best is not None:
            rows = (row for part in parts for row in read_part(part, columns))
            write_part(
                self.folder.best,
                columns,
                [[row[c.header] for c in columns] for row in self.best.of(rows)],
            )
        sums = {name: sum(note[name] for note in notes) for name in ("count", "predicted", "failed", "kept")}
        return Screening(
            sums["count"],
            sums["predicted"],
            sums["failed"],
            sums["kept"],
            self.folder.path,
            tuple(parts),
            tuple(self.folder.structures / f"{p.stem}.xyz" for p in parts if self.layout.per_node),
            None if self.best is None else self.folder.best,
            dict(reasons),
            self._errors_of(notes) if self.errors else None,
        )

    def _errors_of(self, notes: Sequence[Mapping[str, Any]]) -> Errors:
        return merged_errors(self.model.quantities, (state for note in notes for state in note["errors"]))


def check_each_once(
    blocks: Sequence[Block], notes: Sequence[Mapping[str, Any]], parts: Sequence[Path]
) -> None:
    """Check that the tables account for each input exactly once.

    Parameters
    ----------
    blocks : sequence of Block
        All blocks.
    notes : sequence of mapping
        The note of each block.
    parts : sequence of Path
        The table of each block.

    Raises
    ------
    DataError
        If an input is missing, is there twice, or belongs to another block.
    """
    place = [Cell("input", "count"), Cell("reason", "text")]
    for block, note, path in zip(blocks, notes, parts, strict=True):
        rows = list(read_part(path, place))
        numbers = [row["input"] for row in rows]
        failed = sum(bool(row["reason"]) for row in rows)
        own = range(block.offset, block.offset + block.count)
        whole = note["predicted"] + note["failed"] == note["count"] == block.count
        alike = failed == note["failed"] and len(rows) - failed == note["kept"]
        if not (whole and alike and len({*numbers}) == len(numbers) and {*numbers} <= {*own}):
            raise DataError(
                f"{path}: {len(rows)} rows, {failed} of them without a prediction; wanted {note['failed']} "
                f"without and {note['kept']} with one, of the inputs {own.start} to {own.stop - 1}; the file "
                "was changed: remove it and start the same command again"
            )


class _Warnings:
    """Shows each warning of the workers once; the place in front of it does not make another one of it."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def add(self, messages: Sequence[str]) -> None:
        for message in messages:
            key = message.partition(": ")[2] or message
            if key not in self.seen and len(self.seen) < _WARNINGS:
                tell(f"warning: {message}")
            self.seen.add(key)

    def finish(self) -> None:
        if len(self.seen) > _WARNINGS:
            tell(f"warning: {len(self.seen) - _WARNINGS} more warnings were not shown")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
