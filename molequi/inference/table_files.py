"""Tables of predicted molecules on the disk, which grow part by part and are continued after an interrupt."""

import csv
import io
import itertools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataWarning
from molequi.inference.columns import Layout, scales_of
from molequi.inference.molecule_predictions import GeometryOptions, MoleculePrediction, MoleculeSource
from molequi.model import Model
from molequi.quantities import SYMBOLS
from molequi.readers.headers import header, split_header
from molequi.util.files import check_target, sha256, write_atomically

FORMAT = 2  # of a table that is not finished; 1 had no units and other names of standard deviations


class MoleculeTable:
    """A table with a row for each molecule and, for quantities of atoms, one with a row for each atom.

    Both grow in files of their own, ``<name>.partial``, with a note of how far they are, and get their names
    at the end.

    Parameters
    ----------
    path : Path
        The table of molecules, a .csv file. That of atoms is ``<name>.atoms.csv``.
    model : Model or Ensemble
        The model.
    source : MoleculeSource
        The molecules.
    geometry : GeometryOptions
        How geometries are made.
    layout : Layout
        The columns of the predictions.
    level : float or None
        Probability of the intervals.
    resume : bool
        Whether a table that is not finished is continued.

    Raises
    ------
    ConfigError
        If the file is no .csv file, or that of the molecules, or if it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        model: Model | Ensemble,
        source: MoleculeSource,
        geometry: GeometryOptions,
        layout: Layout,
        level: float | None,
        *,
        resume: bool,
    ) -> None:
        if path.suffix != ".csv":
            raise ConfigError(f"out={path}: wanted a name that ends in .csv")
        if any(path.exists() and path.samefile(file) for file in source.files):
            raise ConfigError(f"out={path}: this is the file of the molecules; choose another name")
        check_target(path)
        self.path, self.source, self.layout = path, source, layout
        self.atoms = path.with_name(f"{path.stem}.atoms.csv") if layout.per_node else None
        self.partial = path.with_name(path.name + ".partial")
        self.atoms_partial = (
            None if self.atoms is None else self.atoms.with_name(self.atoms.name + ".partial")
        )
        self.note = path.with_name(path.name + ".partial.json")
        # Names and marks of the input are kept. Tabs are not: the table is a .csv file.
        self.delimiter = source.delimiter if source.delimiter in (";", "|") else ","
        self.smiles = source.column if source.delimiter else "smiles"
        self.key = self._key(model, geometry, level)
        self.rows = self.rejected = 0
        if not (resume and self._found()):
            self._begin()

    def _begin(self) -> None:
        """Write the names of the columns."""
        names = [column.header for column in self.layout.columns]
        names += (["conformers"] if self.layout.several else []) + ["reason"]
        given = given_names(self.source.columns, names, self.smiles)
        self.partial.write_text(self._line([*given, self.smiles, *names]), encoding="utf-8")
        if self.atoms_partial is not None:
            where = ["row", self.smiles, *(["conformer"] if self.layout.several else []), "atom", "element"]
            where += [header(axis, "Å") for axis in "xyz"]
            nodes = [column.header for column in self.layout.node_columns()]
            self.atoms_partial.write_text(self._line([*where, *nodes]), encoding="utf-8")
        self._write_note()

    def _key(self, model: Model | Ensemble, geometry: GeometryOptions, level: float | None) -> str:
        """Digest of molecules, options and weights: only the same call is continued."""
        made = {"column": self.source.column, "interval": level, **vars(geometry)}
        written = {"delimiter": self.delimiter, "smiles": self.smiles}
        made |= {} if self.source.decimal == "." else {"decimal": self.source.decimal}
        made |= {} if written == {"delimiter": ",", "smiles": "smiles"} else written
        residuals = getattr(model, "metadata", {}).get("residuals") if level is not None else None
        settings = [self.source.digest, made, sorted(model.outputs), scales_of(model), residuals]
        weights = (
            name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes()
            for name, tensor in sorted(model.state_dict().items())
        )
        return sha256(itertools.chain([json.dumps(settings, sort_keys=True)], weights))

    def _found(self) -> bool:
        """Whether there is a partial table of the same call; it is then continued."""
        try:
            note = json.loads(self.note.read_text())
            if note.get("format", 1) != FORMAT and "key" in note:
                warnings.warn(
                    f"{self.partial} was begun by another version of molequi, whose columns have other names "
                    "(<name>_members_std is now <name>_std, that of conformers <name>_conformer_std, and "
                    "units "
                    "are in the names); the table is begun anew",
                    DataWarning,
                    stacklevel=4,
                )
                return False
            if note["key"] != self.key or any(
                file.stat().st_size < size for file, size in self._sizes(note).items()
            ):
                return False
            for file, size in self._sizes(note).items():
                os.truncate(file, size)
            self.rows, self.rejected = note["rows"], note["rejected"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # nothing that can be continued
            return False
        return True

    def _sizes(self, note: Mapping[str, Any]) -> dict[Path, int]:
        sizes = {self.partial: note["bytes"]}
        return sizes if self.atoms_partial is None else sizes | {self.atoms_partial: note["atom_bytes"]}

    def _write_note(self) -> None:
        note: dict[str, Any] = {
            "format": FORMAT,
            "key": self.key,
            "rows": self.rows,
            "rejected": self.rejected,
        }
        note["bytes"] = self.partial.stat().st_size
        if self.atoms_partial is not None:
            note["atom_bytes"] = self.atoms_partial.stat().st_size
        write_atomically(self.note, lambda path: path.write_text(json.dumps(note)))

    def add(
        self,
        part: Sequence[MoleculePrediction],
        data: Dataset | None,
        each: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        """Append rows; they are on the disk when this returns.

        Parameters
        ----------
        part, data, each
            As `molequi.inference.molecule_predictions.predicted_parts` gives them.
        """
        if self.atoms_partial is not None and data is not None:
            _append(self.atoms_partial, "".join(self._line(row) for row in self._atom_rows(data, each)))
        _append(self.partial, "".join(self._line(self._cells(one)) for one in part))
        self.rows += len(part)
        self.rejected += sum(one.rejected is not None for one in part)
        self._write_note()

    def _line(self, cells: Sequence[str]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n", delimiter=self.delimiter).writerow(cells)
        return text.getvalue()

    def _cells(self, one: MoleculePrediction) -> list[str]:
        cells = [one.row.columns.get(c, "") for c in self.source.columns] + [one.smiles]
        cells += [self._text(cell) for cell in self.layout.cells(one.result)]
        if self.layout.several:
            cells.append("" if one.rejected else str(one.conformers))
        return [*cells, one.rejected.reason if one.rejected else ""]

    def _atom_rows(
        self, data: Dataset, each: Sequence[Mapping[str, np.ndarray]]
    ) -> "itertools.chain[list[str]]":
        def of(k: int) -> list[list[str]]:
            graph, info = data[k], {name: column[k] for name, column in data.info.items()}
            where = [str(info["molecule"]), str(info["smiles"])]
            where += [str(info["conformer"])] if self.layout.several else []
            return [
                [
                    *where,
                    str(n),
                    SYMBOLS[int(z)],
                    *map(self._text, pos),
                    *map(self._text, self.layout.node_cells(each[k], n)),
                ]
                for n, (z, pos) in enumerate(zip(graph.z.tolist(), graph.pos.tolist()))
            ]

        return itertools.chain.from_iterable(of(k) for k in range(len(data)))

    def _text(self, value: Any) -> str:
        """A cell, with the mark of decimals of the input; empty for what is not known."""
        if value is None or isinstance(value, str):
            return value or ""
        return "" if np.isnan(value) else f"{float(value):.10g}".replace(".", self.source.decimal)

    def finish(self) -> None:
        """Give the tables their names."""
        if self.atoms is not None and self.atoms_partial is not None:
            os.replace(self.atoms_partial, self.atoms)
        os.replace(self.partial, self.path)
        self.note.unlink(missing_ok=True)


def given_names(columns: Sequence[str], names: Sequence[str], smiles: str = "smiles") -> list[str]:
    """Names of the columns of the input; one that has the name of a prediction gets ``_given``.

    Parameters
    ----------
    columns : sequence of str
        Columns of the input.
    names : sequence of str
        Columns of the predictions.
    smiles : str
        The column of the SMILES.

    Examples
    --------
    >>> given_names(["id", "gap"], ["gap (eV)"])
    ['id', 'gap_given']
    """
    taken = {smiles, *(split_header(name)[0] for name in names)}
    out: list[str] = []
    for column in columns:
        name, unit = split_header(column)
        new = column
        while split_header(new)[0] in taken or (new != column and new in {*columns, *out}):
            name = f"{name}_given"
            new = header(name, unit)
        out.append(new)
    return out


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
