"""A training of several levels of theory: their data, their statistics, and what is reported of each."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data.levels import LEVEL, levels_in
from molequi.data.statistics import Statistics
from molequi.domain import keep_domain
from molequi.errors import ConfigError, DataWarning
from molequi.graph import Graph
from molequi.hooks import Batch, Hook, Run
from molequi.inference.known_energies import keep_lowest_energy, set_reference_energies
from molequi.levels import by_level, check_level_of, keep_record, with_numbers
from molequi.losses import Objective
from molequi.model import Model
from molequi.quantities import SYMBOLS, Quantity
from molequi.readers.ase import read_ase
from molequi.util.html import html_details, html_text


def numbered_parts(model: Model, parts: Mapping[str, Dataset], wanted: str | None) -> dict[str, Dataset]:
    """The data as a model of several levels takes them; those of another model stay as they are.

    Parameters
    ----------
    model : Model
        The model.
    parts : mapping of str to Dataset
        The data by part.
    wanted : str, optional
        The only level of the data, which a fine-tuning names. By default each level has to have structures
        in ``"train"``.

    Raises
    ------
    ConfigError
        If a level has no training data, or a model of a single level gets data of another one.
    DataError
        For a structure without a level or of another one.

    Warns
    -----
    DataWarning
        If a level has no validation data, or a model of a single level gets data of several.
    """
    found = {part: levels_in(data.info.get(LEVEL)) for part, data in parts.items()}
    if not model.levels:
        for part, data in parts.items():
            check_level_of(model, data, f"the {part} data")
        if len(found["train"]) > 1:
            names = ", ".join(map(repr, found["train"]))
            warnings.warn(
                f"the training data are of several levels ({names}) and the model has one for all of them; "
                f"give each its own heads: mq.Model(…, levels=[{names}])",
                DataWarning,
                stacklevel=4,
            )
        return dict(parts)
    numbered = {part: with_numbers(model, data) for part, data in parts.items()}
    for level in model.levels if wanted is None else ():
        if level not in found["train"]:
            raise ConfigError(
                f"level {level!r}: the training data have no structure of it, so that its heads would not be "
                f"trained; they have {', '.join(map(repr, found['train']))}"
            )
        if level not in found["valid"]:
            warnings.warn(
                f"level {level!r}: the validation data have no structure of it, so that its errors do not "
                "decide which epoch is the best",
                DataWarning,
                stacklevel=4,
            )
    return numbered


def each_level(
    model: Model, parts: Mapping[str, Dataset], act: Callable[[Mapping[str, Dataset]], None]
) -> None:
    """Call a function with the data of each level, for what compares structures with each other.

    Parameters
    ----------
    model : Model
        The model.
    parts : mapping of str to Dataset
        The data by part.
    act : callable
        It gets the parts that have structures of the level.
    """
    found: dict[str, dict[str, Dataset]] = {}
    for part, data in parts.items():
        for level, _, own in by_level(model, data):
            found.setdefault(level, {})[part] = own
    for own_parts in found.values():
        act(own_parts)


@dataclass(frozen=True)
class Standards:
    """The statistics of the training data by level, by which a model is standardized.

    Parameters
    ----------
    by_level : mapping of str to Statistics
        Those of each level; of a model of a single level under an empty name.
    mean_neighbors : float
        Mean number of edges per atom, over all levels.
    elements : tuple of int
        Atomic numbers in the data of all levels.
    """

    by_level: Mapping[str, Statistics]
    mean_neighbors: float
    elements: tuple[int, ...]

    @classmethod
    def of(cls, model: Model, train: Dataset, given: Any) -> "Standards":
        """The statistics of training data.

        Parameters
        ----------
        model : Model
            The model.
        train : Dataset
            The training data with neighbor lists.
        given : mapping, Dataset or path, optional
            `Normalization.reference_energies`; of a model of several levels by level.

        Raises
        ------
        ConfigError
            For reference energies that are not by level.
        DataError
            As `Dataset.statistics`.
        """
        energies = _energies_by_level(model, given)
        found = {}
        for level, _, own in by_level(model, train):
            with warnings.catch_warnings(record=bool(level)) as said:
                found[level] = own.statistics(model.cutoff, reference_energies=energies.get(level), k=model.k)
            for one in said or ():
                warnings.warn(f"level {level!r}: {one.message}", one.category, stacklevel=4)
        edges, atoms = int(train.graphs.edge_counts.sum()), int(train.counts.sum())
        return cls(found, edges / atoms, train.elements)

    @property
    def scale(self) -> dict[str, float]:
        """Scale of each quantity; of several levels their mean."""
        every = [one.scale for one in self.by_level.values()]
        names = dict.fromkeys(name for scale in every for name in scale)
        there = {name: [scale[name] for scale in every if name in scale] for name in names}
        return {name: sum(values) / len(values) for name, values in there.items()}

    @property
    def given(self) -> dict[str, dict[int, float]]:
        """Reference energies that the caller gave, by level."""
        return {
            level: one.reference_energies
            for level, one in self.by_level.items()
            if one.reference_energies_given
        }

    def set_scales(self, model: Model) -> None:
        """Set scales, shifts and reference energies of each level.

        Parameters
        ----------
        model : Model
            The model.

        Warns
        -----
        DataWarning
            If the data of a level lack an element that others have.
        """
        for level, statistics in self.by_level.items():
            _at(model, level).standardize(statistics)
            missing = [SYMBOLS[z] for z in self.elements if z not in statistics.reference_energies]
            if level and missing and "energy" in model.quantities:
                warnings.warn(
                    f"level {level!r}: no training structure with a label of the energy has "
                    f"{', '.join(missing)}, so that model.at({level!r}) has no reference energy of it and "
                    "its energies of such structures mean nothing; add structures, or give "
                    f"normalization.reference_energies of {level!r}",
                    DataWarning,
                    stacklevel=4,
                )
        model.backbone.mean_neighbors.fill_(max(self.mean_neighbors, 1.0))

    def set_given(self, model: Model) -> None:
        """Set the reference energies that the caller gave.

        Parameters
        ----------
        model : Model
            The model.
        """
        for level, energies in self.given.items():
            set_reference_energies(_at(model, level), energies)


def _at(model: Model, level: str) -> Model:
    return model.at(level) if level else model


def _energies_by_level(model: Model, given: Any) -> dict[str, Any]:
    """The reference energies that the caller gave, by level."""
    if not model.levels:
        return {"": _read(given)}
    if given is None:
        return {}
    wrong = [name for name in given if name not in model.levels] if isinstance(given, Mapping) else [given]
    if wrong:
        raise ConfigError(
            f"fit.normalization.reference_energies: {str(wrong[0])[:60]!r} is no level of the model, which "
            f"has {', '.join(map(repr, model.levels))}; wanted {{{model.levels[0]!r}: {{'H': …}}, …}}"
        )
    return {level: _read(energies) for level, energies in given.items()}


def _read(given: Any) -> Any:
    """Reference energies; of a file the structures."""
    return read_ase(given, quantities=["energy"]) if isinstance(given, (str, Path)) else given


class LevelReports(dict[str, object]):
    """What was found of each level of a model; printed, one after the other.

    Parameters
    ----------
    reports : mapping of str to object
        The reports by level.
    records : mapping
        What the file of the model keeps of each level.
    """

    def __init__(self, reports: Mapping[str, object], records: Mapping[str, Any]) -> None:
        super().__init__(reports)
        self.records = dict(records)

    def __str__(self) -> str:
        return "\n".join(f"level {level!r}: {report}" for level, report in self.items())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(
            html_details(f"level {level}", report._repr_html_())
            if hasattr(report, "_repr_html_")
            else html_text(f"level {level}: {report}")
            for level, report in self.items()
        )


def of_levels(model: Model, data: Dataset, measure: Callable[[Model, Dataset], Any]) -> Any:
    """What a function finds of each level of a model.

    Parameters
    ----------
    model : Model
        The model, whose metadata keep what the function keeps in those of the level.
    data : Dataset
        The data.
    measure : callable
        It gets the model and the data of a level, and returns a report or None.

    Returns
    -------
    object
        Of a model of a single level what the function returns; of others `LevelReports`, or None if there are
        no reports.
    """
    if not model.levels:
        return measure(model, data)
    reports = {}
    for level, view, own in by_level(model, data):
        reports[level] = measure(view, own)
        keep_record(model, level, view.metadata)
    there = {level: report for level, report in reports.items() if report is not None}
    return LevelReports(there, model.metadata.get("levels", {})) if there else None


def keep_facts(model: Model, train: Dataset) -> dict[str, Any]:
    """Keep in the metadata of a model the lowest energy of its training data and what they are.

    Parameters
    ----------
    model : Model
        The model.
    train : Dataset
        The training data.

    Returns
    -------
    dict
        What `keep_lowest_energy` and `keep_domain` return, and the name of the level; of several levels under
        ``"levels"`` for each.
    """
    if not model.levels:
        own = (getattr(model, "metadata", None) or {}).get(LEVEL)
        named = {} if own is None else {LEVEL: own}
        return keep_lowest_energy(model, train) | keep_domain(model, train) | named
    for level, view, own in by_level(model, train):
        keep_lowest_energy(view, own)
        keep_domain(view, own)
        keep_record(model, level, view.metadata)
    return {"levels": model.metadata["levels"]}


class LevelLosses(Hook):
    """Logs the validation loss of each level: the columns ``valid_level_loss_<name>``.

    Parameters
    ----------
    levels : sequence of str
        Names of the levels of the model.
    """

    name = "level"

    def __init__(self, levels: tuple[str, ...]) -> None:
        self._levels = levels
        self._terms: Objective

    def start(self, run: Run) -> "Hook":
        """The hook itself, which belongs to one training.

        Parameters
        ----------
        run : Run
            The training.
        """
        self._terms = run.objective.supervised
        return self

    def validation_sums(self, run: Run, model: Model, batch: Batch) -> Tensor | None:
        """Sums and counts of the loss, for each level.

        Parameters
        ----------
        run : Run
            The training.
        model : Model
            The model that is validated.
        batch : Batch
            The batch with its predictions.
        """
        graph, out, terms = batch.graph, batch.predictions, self._terms
        if not terms.terms:
            return None
        if graph is None or out is None:  # all devices add up the same shape
            shape = (len(self._levels), 2, len(terms.terms))
            return torch.zeros(shape, dtype=torch.float64, device=run.model.device)
        found = []
        for k in range(len(self._levels)):
            own = _with_labels_of(k, graph, terms.quantities)
            found.append(torch.stack([terms.sums(out, own), terms.known(own).double()]))
        return torch.stack(found)

    def validation_values(self, sums: Tensor) -> Mapping[str, float]:
        """The loss of each level that has labels.

        Parameters
        ----------
        sums : Tensor, shape (levels, 2, terms)
            The sums over all batches.
        """
        return {
            f"loss_{level}": float(self._terms.total(one, known))
            for level, (one, known) in zip(self._levels, sums)
            if bool(known.any())
        }


def _with_labels_of(level: int, graph: Graph, quantities: Mapping[str, Quantity]) -> Graph:
    """The batch with the labels of one level alone; others are NaN, as those that are not known."""
    assert graph.level is not None
    graphs = graph.level == level
    targets = {}
    for name, value in graph.targets.items():
        rows = graphs if quantities[name].per == "graph" else graphs[graph.batch]
        targets[name] = value.masked_fill(~rows.reshape(-1, *[1] * (value.ndim - 1)), float("nan"))
    return graph.replace(targets=targets)
