"""The work for one block, the same in this process, in worker processes and on a Ray cluster."""

import json
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from molequi import errors
from molequi.ensemble import Ensemble
from molequi.errors import DataError, MolequiError
from molequi.inference.columns import Layout
from molequi.inference.molecule_predictions import GeometryOptions
from molequi.inference.predictions import append_structures, loaded, with_classes
from molequi.inference.table_files import given_names
from molequi.inference.table_parts import Cell, write_part
from molequi.model import Model
from molequi.readers.blocks import Block, read_block
from molequi.readers.inputs import structures_of
from molequi.screening.conditions import Condition, conditions
from molequi.screening.folder import ScreenFolder
from molequi.screening.outcomes import (
    Geometries,
    MoleculeWork,
    Outcome,
    StructureWork,
    not_finite,
)
from molequi.util.files import write_file

ATTEMPTS = 3  # after as many workers that a block ended, its inputs are recorded as failed
_REASONS = 20  # of a block, in its note
_PLACE = ("input", "file", "record")


def columns_of(model: Model | Ensemble, given: Sequence[Cell], several: bool) -> list[Cell]:
    """The columns of the tables of results.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    given : sequence of Cell
        What is known of an input.
    several : bool
        Whether molecules have several conformers.
    """
    layout = Layout(model, several)
    texts = set(classes_of(model))
    made = [Cell(c.header, "text" if c.name in texts else "number") for c in layout.columns]
    made += [Cell("conformers", "count")] if several else []
    made += [Cell("reason", "text")]
    own = given[-1].header if given and given[-1].header == "smiles" else ""
    names = [cell.header for cell in given if cell.header != own]
    new = dict(zip(names, given_names(names, [*_PLACE, *(cell.header for cell in made)], own)))
    renamed = [Cell(new.get(cell.header, cell.header), cell.kind) for cell in given]
    place = [Cell("input", "count"), Cell("file", "text"), Cell("record", "count")]
    return [*place, *renamed, *made]


def given_columns(geometry: Mapping[str, Any] | None, names: Sequence[str]) -> list[Cell]:
    """The columns of the tables that say what an input is.

    Parameters
    ----------
    geometry : mapping or None
        How geometries of molecules are made; None for structures.
    names : sequence of str
        Columns of the files of molecules.
    """
    if geometry is None:
        return [Cell("formula", "text"), Cell("atoms", "count")]
    return [*(Cell(name, "text") for name in names), Cell("smiles", "text")]


def classes_of(model: Model | Ensemble) -> dict[str, Sequence[str]]:
    """The classes of each quantity of whole structures that has classes.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    """
    return {q.name: q.classes for q in model.quantities.values() if q.classes and q.per == "graph"}


class BlockWork:
    """Predicts for blocks, and writes their results.

    Parameters
    ----------
    folder : Path
        The folder of the screening, with its settings and its model.
    device : str, optional
        Where the model runs; by default CUDA if there is one.
    workers : int
        Number of RDKit processes, unless the settings say another one.
    model : Model or Ensemble, optional
        The model; by default that of the folder.
    """

    def __init__(
        self,
        folder: Path,
        device: str | None = None,
        workers: int = 1,
        model: Model | Ensemble | None = None,
    ) -> None:
        self.folder = ScreenFolder(folder)
        work = self.folder.note()["work"]
        self.sources, self.where = self.folder.sources, Path(work["where"])
        self.model = loaded(self.folder.model, device, work["dtype"]) if model is None else model
        several = bool(work["geometry"]) and work["geometry"]["conformers"] > 1
        self.work: StructureWork | MoleculeWork
        if work["geometry"] is None:
            asked = {name: work[name] for name in ("errors", "keys")}
            self.work = StructureWork(self.model, work["units"], work["batch_edges"], **asked)
        else:
            geometry, names = GeometryOptions(**work["geometry"]), work["names"]
            count = work["workers"] or workers
            self.work = MoleculeWork(self.model, geometry, names, count, work["batch_edges"])
        self.layout, self.several = Layout(self.model, several), several
        self.columns = columns_of(self.model, given_columns(work["geometry"], work["names"]), several)
        self.keep: list[Condition] = conditions(work["keep"], self.layout.columns, classes_of(self.model))
        self.suffix = work["format"]

    def close(self) -> None:
        """End the RDKit processes."""
        self.work.close()

    def answer(self, block: Block) -> dict[str, Any]:
        """The note of a block, or the error that stops the screening.

        Parameters
        ----------
        block : Block
            The block.

        Returns
        -------
        dict
            As `__call__`; or ``{"error": [class, message]}``.
        """
        try:
            return self(block)
        except MolequiError as error:
            return {"error": [type(error).__name__, str(error)]}
        except OSError as error:
            return {"error": ["OSError", str(error)]}
        except Exception:
            return {"error": ["RuntimeError", f"block {block.number}:\n{traceback.format_exc()}"]}

    def __call__(self, block: Block) -> dict[str, Any]:
        """Do a block, and return a note about it; its files are on the disk then.

        Parameters
        ----------
        block : Block
            The block.

        Returns
        -------
        dict
            ``block``, ``sha256``, ``count``, ``predicted``, ``failed``, ``kept``, ``files`` (bytes by name),
            ``reasons`` (counts by reason), ``errors`` (sums) and ``warnings``.
        """
        source = self.sources[block.source]
        records = read_block(source, block, self.where)
        if isinstance(self.work, StructureWork):
            records = structures_of(source, block, records, self.work.options, self.where)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcomes, geometries = self._outcomes(records, block)
        for outcome in outcomes:
            outcome.reason = outcome.reason or not_finite(outcome.result, self.model)
            outcome.reason = outcome.reason or ("" if outcome.result else "no prediction")
        rows, written = [], set()
        for k, outcome in enumerate(outcomes):
            cells = self.layout.cells({} if outcome.reason else outcome.result)
            if outcome.reason or all(condition.holds(cells) for condition in self.keep):
                place = [block.offset + k, source.path, outcome.record, *outcome.given]
                more = [outcome.conformers] if self.several else []
                rows.append([*place, *map(_plain, cells), *more, outcome.reason])
                written |= set() if outcome.reason else {block.offset + k}
        files = self._write(block, rows, geometries, written)
        self.folder.forget_attempts(block)
        failed = [outcome.reason for outcome in outcomes if outcome.reason]
        return {
            "block": block.number,
            "sha256": block.sha256,
            "count": len(outcomes),
            "predicted": len(outcomes) - len(failed),
            "failed": len(failed),
            "kept": len(written),
            "files": {str(path.relative_to(self.folder.path)): path.stat().st_size for path in files},
            "reasons": dict(Counter(failed).most_common(_REASONS)),
            "errors": self.work.sums,
            "warnings": list(dict.fromkeys(str(one.message) for one in caught)),
        }

    def _outcomes(self, records: Any, block: Block) -> tuple[list[Outcome], list[Geometries]]:
        """An outcome for each record; without prediction if the block has ended several workers."""
        before = self.folder.attempt(block)
        if before < ATTEMPTS:
            return self.work(records, block.offset)
        self.work.sums = []
        outcomes = self.work.describe(records)
        for outcome in outcomes:
            outcome.reason = (
                f"the process ended {ATTEMPTS} times at the {block.count} inputs of this block (killed, or "
                "out of memory); smaller blocks find the input"
            )
        return outcomes, []

    def _write(
        self, block: Block, rows: list[list[Any]], geometries: list[Geometries], written: set[int]
    ) -> list[Path]:
        """Write the results; the table last."""
        files = []
        name = f"{block.number:06d}"
        if self.layout.per_node:
            path = self.folder.structures / f"{name}.xyz"
            write = partial(self._write_structures, geometries=geometries, written=written)
            write_file(path, write, error=DataError)
            files.append(path)
        table = self.folder.parts / f"{name}.{self.suffix}"
        write_part(table, self.columns, rows)
        return [*files, table]

    def _write_structures(self, path: Path, geometries: list[Geometries], written: set[int]) -> None:
        for numbers, data, results in geometries:
            kept = [k for k, number in enumerate(numbers) if number in written]
            if kept:
                named = [with_classes(dict(results[k]), self.model) for k in kept]
                append_structures(path, data[kept], named, self.model)


def _plain(cell: Any) -> Any:
    """A cell as a value of Python."""
    return cell.item() if isinstance(cell, np.generic) else cell


def as_line(block: Block) -> str:
    """A block as a line of JSON.

    Parameters
    ----------
    block : Block
        The block.
    """
    return json.dumps(asdict(block))


def from_line(line: str | bytes) -> Block:
    """The block of a line that `as_line` made.

    Parameters
    ----------
    line : str or bytes
        The line.
    """
    return Block(**json.loads(line))


def checked(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The note of a block; raises the error if there is one instead.

    Parameters
    ----------
    answer : mapping
        What `BlockWork.answer` returned.

    Raises
    ------
    MolequiError, RuntimeError
        The error of the worker.
    """
    if "error" in answer:
        name, message = answer["error"]
        kind: type[Exception] = getattr(errors, name, OSError if name == "OSError" else RuntimeError)
        raise kind(message)
    return dict(answer)
