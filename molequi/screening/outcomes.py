"""What the model predicts for the records of a block: a result or a reason for each of them, none is lost."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from ase.symbols import Symbols

from molequi.data.dataset import Dataset
from molequi.data.reading import check_reading
from molequi.data.request import INVARIANTS, Request
from molequi.domain import DomainCheck, reading_of, seen_in, totals_taken
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError, did_you_mean
from molequi.inference.metrics import Metrics
from molequi.inference.molecule_predictions import (
    GeometryOptions,
    MoleculePrediction,
    embedding,
    predicted_parts,
)
from molequi.inference.predictions import predictions
from molequi.model import Model
from molequi.quantities import KNOWN, SYMBOLS
from molequi.readers.embedder import Embedder
from molequi.readers.inputs import Inputs
from molequi.readers.molecule_files import Row

Item = TypeVar("Item")
Made = TypeVar("Made")
# Numbers of inputs, structures of them, and a result for each structure.
Geometries = tuple[Sequence[int], Dataset, Sequence[Mapping[str, np.ndarray]]]


@dataclass
class Outcome:
    """What became of one input.

    Parameters
    ----------
    record : int
        Its number in the file.
    given : list
        What it is: the cells of its own columns.
    result : mapping of str to array
        The predictions; empty if there are none.
    reason : str
        Why there are none.
    conformers : int or None
        Number of geometries of a molecule.
    """

    record: int
    given: list[Any]
    result: Mapping[str, np.ndarray] = field(default_factory=dict)
    reason: str = ""
    conformers: int | None = None


def divided(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Made]
) -> Iterator[tuple[Sequence[Item], Made | str]]:
    """Do work for all items together; if that fails, for its halves, so that one item does not spoil others.

    Parameters
    ----------
    items : sequence
        The items.
    work : callable
        Takes some of the items.

    Yields
    ------
    sequence, and what `work` made of it, or the reason why it fails for this single item

    Examples
    --------
    >>> def roots(items):
    ...     return [n ** 0.5 if n >= 0 else 1 / 0 for n in items]
    >>> list(divided([4, -1], roots))
    [([4], [2.0]), ([-1], 'ZeroDivisionError: division by zero')]
    """
    if not items:
        return
    try:
        made = work(items)
    except (OSError, KeyboardInterrupt):  # a full disk is no fault of an input
        raise
    except Exception as error:
        if len(items) == 1:
            yield items, str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            return
    else:
        yield items, made
        return
    middle = len(items) // 2
    yield from divided(items[:middle], work)
    yield from divided(items[middle:], work)


def unknown_elements(numbers: Iterable[int], model: Model | Ensemble) -> str:
    """Which elements the model does not know, as a reason; empty if it knows all.

    Parameters
    ----------
    numbers : iterable of int
        Atomic numbers.
    model : Model or Ensemble
        The model.
    """
    unknown = sorted({*map(int, numbers)} - set(model.elements)) if model.elements else []
    known = " ".join(SYMBOLS[z] for z in model.elements)
    named = ", ".join(SYMBOLS[z] for z in unknown)
    return f"{named}: not an element that the model knows ({known})" if unknown else ""


def not_finite(result: Mapping[str, np.ndarray], model: Model | Ensemble) -> str:
    """Which predictions are no finite numbers, as a reason; empty if all are.

    Parameters
    ----------
    result : mapping of str to array
        The predictions.
    model : Model or Ensemble
        The model.
    """
    wrong = [name for name in model.quantities if name in result and not np.isfinite(result[name]).all()]
    return f"the prediction is not finite: {', '.join(wrong)}" if wrong else ""


class StructureWork:
    """Predicts for structures.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    units : mapping of str to str
        Units in the files, as in `molequi.read_extxyz`.
    batch_edges : int or None
        Largest number of edges in a batch.
    errors : bool
        Whether labels are read, and errors measured.
    keys : mapping, optional
        Names of labels in the files, as in `molequi.read_extxyz`.
    """

    def __init__(
        self,
        model: Model | Ensemble,
        units: Mapping[str, str],
        batch_edges: int | None = None,
        *,
        errors: bool = False,
        keys: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.batch_edges, self.errors = model, batch_edges, errors
        self.units, self.keys = dict(units), dict(keys or {})
        labels = tuple(model.quantities) if errors else ()
        read = ("positions", *totals_taken(model), *labels)
        for option, given in (("units", self.units), ("keys", self.keys)):
            unknown = [name for name in given if name not in read]
            if unknown:
                why = "" if errors else " (labels are read with errors=True)"
                raise ConfigError(
                    f"screen.{option}: {unknown[0]!r} is not read{why}{did_you_mean(unknown[0], read)}"
                )
        unread = dict.fromkeys(name for name in (*KNOWN, *INVARIANTS) if name not in read)
        # How structures are read, by the options of a reader.
        self.options: dict[str, Any] = {
            "keys": unread | self.keys,
            "units": self.units,
            "partial": list(labels),
            "quantities": [model.quantities[name] for name in labels],
        }
        Request(**self.options)  # raises what else is wrong with them
        self.sums: list[dict[str, Any]] = []  # of the errors in the last block
        self.domain = DomainCheck(model)

    def close(self) -> None:
        """Nothing is open."""

    def describe(self, records: Inputs) -> list[Outcome]:
        """Outcomes without result, for structures that are not even read.

        Parameters
        ----------
        records : Inputs
            The structures.
        """
        return [Outcome(records.first + k, ["", None]) for k in range(records.count)]

    def __call__(self, records: Inputs, offset: int) -> tuple[list[Outcome], list[Geometries]]:
        """An outcome for each structure, and the structures.

        Parameters
        ----------
        records : Inputs
            The structures.
        offset : int
            Number of the first one over all inputs.
        """
        outcomes = self.describe(records)
        self.sums = []
        records.open()
        usable: list[int] = []
        for k, outcome in enumerate(outcomes):
            try:
                numbers = records.numbers(k)
                outcome.given = _named(numbers)
            except DataError as error:
                outcome.reason = str(error)
                continue
            outcome.reason = "" if numbers is None else unknown_elements(numbers, self.model)
            if not outcome.reason:
                usable.append(k)
        geometries: list[Geometries] = []
        for items, made in divided(usable, partial(self._predict, records, offset)):
            if isinstance(made, str):
                outcomes[items[0]].reason = made
                continue
            for k, result in zip(items, made[1]):
                outcomes[k].result = result
            geometries.append(([offset + k for k in items], *made))
        if self.errors and geometries:
            self._measure(geometries)
        return outcomes, geometries

    def _measure(self, geometries: Sequence[Geometries]) -> None:
        """Sum up the errors of the predictions that are finite."""
        for _, data, results in geometries:
            good = [k for k, result in enumerate(results) if not not_finite(result, self.model)]
            if not good:
                continue
            metrics = Metrics(self.model.quantities, data[good])
            for k in good:
                values = {name: torch.as_tensor(results[k][name]) for name in metrics.quantities}
                per_node = {name for name, q in metrics.quantities.items() if q.per == "node"}
                metrics.update({n: v if n in per_node else v[None] for n, v in values.items()}, data[k])
            self.sums.append(metrics.state())

    def _predict(
        self, records: Inputs, offset: int, items: Sequence[int]
    ) -> tuple[Dataset, list[dict[str, np.ndarray]]]:
        data = records.dataset(items)
        data.info["input"] = tuple(offset + k for k in items)
        check_reading(reading_of(self.model), data.reading, "these data")
        self.domain.warn(seen_in(data))
        return data, predictions(self.model, data, self.batch_edges, progress=False)


def _named(numbers: np.ndarray | None) -> list[Any]:
    """Formula and number of atoms. Raises DataError for numbers of no element."""
    if numbers is None:
        return ["", None]
    wrong = [n for n in numbers.tolist() if not 0 < n < len(SYMBOLS)]
    if wrong:
        raise DataError(f"{wrong[0]} is not the atomic number of an element")
    return [Symbols(numbers).get_chemical_formula(), len(numbers)]


class _Listed:
    """Molecules of a block."""

    name, several = "block", False

    def __init__(self, kind: Literal["smiles", "sdf"], listed: Sequence[Row]) -> None:
        self.kind, self.listed, self.total = kind, listed, len(listed)

    def rows(self) -> Iterator[Row]:
        return iter(self.listed)


class MoleculeWork:
    """Predicts for molecules; its RDKit processes stay open from block to block.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    geometry : GeometryOptions
        How geometries are made.
    names : sequence of str
        Columns of the input that the tables keep.
    workers : int
        Number of RDKit processes.
    batch_edges : int or None
        Largest number of edges in a batch.
    """

    def __init__(
        self,
        model: Model | Ensemble,
        geometry: GeometryOptions,
        names: Sequence[str],
        workers: int,
        batch_edges: int | None = None,
    ) -> None:
        self.model, self.geometry, self.names = model, geometry, names
        self.workers, self.batch_edges = workers, batch_edges
        self.sums: list[dict[str, Any]] = []  # molecules have no labels here
        self._open: dict[str, Embedder] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        """End the RDKit processes."""
        self._open = {}
        self._stack.close()

    def describe(self, records: Sequence[Row]) -> list[Outcome]:
        """Outcomes without result.

        Parameters
        ----------
        records : sequence of Row
            The molecules.
        """
        return [
            Outcome(row.number, self._given(row, row.text if row.kind == "smiles" else "")) for row in records
        ]

    def _given(self, row: Row, smiles: str) -> list[str]:
        return [*(row.columns.get(name, "") for name in self.names), smiles]

    def __call__(self, records: Sequence[Row], offset: int) -> tuple[list[Outcome], list[Geometries]]:
        """An outcome for each molecule, and the structures of all conformers.

        Parameters
        ----------
        records : sequence of Row
            The molecules.
        offset : int
            Number of the first one over all inputs.
        """
        outcomes = self.describe(records)
        numbered = [replace(row, number=offset + k) for k, row in enumerate(records)]
        geometries: list[Geometries] = []
        for rows, made in divided(numbered, self._predict):
            if isinstance(made, str):
                outcomes[rows[0].number - offset].reason = made
                continue
            for found, data, results in made:
                for one in found:
                    self._fill(outcomes[one.row.number - offset], one)
                if data is not None:
                    geometries.append((list(map(int, data.info["molecule"])), data, results))
        return outcomes, geometries

    def _fill(self, outcome: Outcome, one: MoleculePrediction) -> None:
        outcome.given = self._given(one.row, one.smiles)
        outcome.result = one.result
        outcome.reason = one.rejected.reason if one.rejected else ""
        outcome.conformers = None if one.rejected else one.conformers

    def _predict(self, rows: Sequence[Row]) -> list[tuple[list[MoleculePrediction], Dataset | None, list]]:
        kind: Literal["smiles", "sdf"] = "sdf" if rows[0].kind == "sdf" else "smiles"
        if kind not in self._open:
            _, options = embedding(self.model, kind, self.geometry)
            self._open[kind] = self._stack.enter_context(Embedder(options, self.workers))
        parts = predicted_parts(
            self.model,
            _Listed(kind, rows),
            self.geometry,
            skip=True,
            batch_edges=self.batch_edges,
            progress=False,
            processes=self._open[kind],
        )
        return list(parts)
