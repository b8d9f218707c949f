"""Predictions as a pandas.DataFrame."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.inference.columns import Layout, scales_of
from molequi.inference.molecule_predictions import MoleculePrediction, MoleculeSource
from molequi.inference.predictions import with_classes
from molequi.inference.table_files import given_names
from molequi.model import Model
from molequi.util.optional import require


class PartsOfFrame:
    """A DataFrame of predicted molecules, collected part by part.

    Parameters
    ----------
    source : MoleculeSource
        The molecules.
    layout : Layout
        The columns of the predictions.
    """

    def __init__(self, source: MoleculeSource, layout: Layout) -> None:
        require("pandas", "pandas", "predict(as_frame=True)")
        self.source, self.layout = source, layout
        self.rows: list[list[Any]] = []
        self.given: list[list[str]] = []

    def add(self, part: Sequence[MoleculePrediction]) -> None:
        """Append rows.

        Parameters
        ----------
        part : sequence of MoleculePrediction
            The molecules of a part.
        """
        for one in part:
            cells = _cells(self.layout, one.result)
            cells += [one.conformers] if self.layout.several else []
            self.rows.append([one.smiles, *cells, one.rejected.reason if one.rejected else ""])
            self.given.append([one.row.columns.get(c, "") for c in self.source.columns])

    def frame(self, level: float | None) -> Any:
        """The DataFrame: columns of the input, SMILES, predictions, and reasons why there is none.

        Parameters
        ----------
        level : float or None
            Probability of the intervals.
        """
        import pandas as pd

        several = ["conformers"] if self.layout.several else []
        names = [*_names(self.layout), *several, "reason"]
        if self.source.frame is None:
            given = given_names(self.source.columns, names)
            data = [[*a, *b] for a, b in zip(self.given, self.rows)]
            made = pd.DataFrame(data, columns=[*given, "smiles", *names])
        else:  # a copy of the input with its index and types, and further columns
            whole = self.source.frame
            columns = list(map(str, whole.columns))
            new = ["smiles", *names] if self.source.kind == "mol" else names
            cells = self.rows if self.source.kind == "mol" else [row[1:] for row in self.rows]
            old = pd.DataFrame(whole).copy()
            old.columns = pd.Index(_renamed(columns, new))
            made = pd.concat([old, pd.DataFrame(cells, columns=new, index=old.index)], axis=1)
        return _described(made, self.layout, level)


class FrameOfStructures:
    """A DataFrame with a row for each structure: columns of `info` and predictions, collected block by block.

    Parameters
    ----------
    data : Dataset
        All structures.
    layout : Layout
        The columns of the predictions.

    Raises
    ------
    MissingPackageError
        If pandas is not installed.
    """

    def __init__(self, data: Dataset, layout: Layout) -> None:
        require("pandas", "pandas", "predict(as_frame=True)")
        self.data, self.layout = data, layout
        self.blocks: list[Any] = []

    def add(self, results: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Append rows.

        Parameters
        ----------
        results : sequence of mapping
            Results with classes as scores.
        """
        import pandas as pd

        cells = [_cells(self.layout, result) for result in results]
        self.blocks.append(pd.DataFrame(cells, columns=_names(self.layout)))

    def frame(self, level: float | None) -> Any:
        """The DataFrame.

        Parameters
        ----------
        level : float or None
            Probability of the intervals.
        """
        import pandas as pd

        info = pd.DataFrame(
            {name: list(column) for name, column in self.data.info.items()}, index=range(len(self.data))
        )
        info.columns = pd.Index(_renamed(list(info.columns), _names(self.layout)))
        cells = pd.concat(self.blocks, ignore_index=True)
        return _described(pd.concat([info, cells], axis=1), self.layout, level)


def _renamed(columns: list[str], names: Sequence[str]) -> list[str]:
    """Names of given columns; those of a prediction get ``_given``. The SMILES keep theirs."""
    others = [c for c in columns if c != "smiles" or "smiles" in names]
    new = dict(zip(others, given_names(others, names)))
    return [new.get(c, c) for c in columns]


def _names(layout: Layout) -> list[str]:
    return [c.name for c in layout.columns] + [q.name for q in layout.per_node]


def _cells(layout: Layout, result: Mapping[str, np.ndarray]) -> list[Any]:
    """Numbers and names, and an array for each quantity of atoms."""
    if not result:
        empty = [None if c.name in _class_names(layout) else np.nan for c in layout.columns]
        return [*empty, *(None for _ in layout.per_node)]
    named = with_classes(dict(result), layout.model)
    return [*layout.cells(result), *(named[q.name] for q in layout.per_node)]


def _class_names(layout: Layout) -> set[str]:
    return {q.name for q in layout.quantities if q.classes}


def _described(frame: Any, layout: Layout, level: float | None) -> Any:
    """The frame with its units, and how its standard deviations and intervals were made, in ``attrs``."""
    model: Model | Ensemble = layout.model
    frame.attrs["units"] = {c.name: c.unit for c in layout.columns} | {
        q.name: q.unit for q in layout.per_node
    }
    if model.stds:
        frame.attrs["calibration"] = scales_of(model)
    if level is not None:
        frame.attrs["interval"] = level
    return frame
