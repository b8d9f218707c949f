"""Reference energies for labels of another level of theory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data.statistics import compositions, undetermined
from molequi.inference.known_energies import reference_energies_of, set_reference_energies
from molequi.inference.predictions import predicted_batches
from molequi.model import Model
from molequi.quantities import SYMBOLS, Quantity
from molequi.util.tables import text_table

MOST = 5000  # structures of the fit, evenly spaced
# How freely shifts explain the differences: those of single elements, one for all atoms, those of elements
# that are new to the model. What compositions do not decide is put on the freest of them.
_SINGLE, _SHARED, _NEW = 1.0, 1e2, 1e5
_ABSENT = "not in the new data: kept"
_FEW = 5  # elements that the data do not have which stand in the table


@dataclass(frozen=True)
class ElementEnergy:
    """The reference energy of one element before and after the fit.

    Parameters
    ----------
    element : str
        Its symbol.
    before, after : float
        Atomic reference energy E0 in eV.
    note : str
        What the new data do not say about it; empty if they determine it.
    """

    element: str
    before: float
    after: float
    note: str = ""


@dataclass(frozen=True)
class ReferenceEnergies:
    """Reference energies of all elements of a model before and after a fine-tuning.

    Parameters
    ----------
    rows : tuple of ElementEnergy
        One for each element.
    why : str
        How those after were found.
    fitted : bool
        Whether they were fitted to the new data.
    """

    rows: tuple[ElementEnergy, ...]
    why: str
    fitted: bool = False

    def after_training(self, shifts: np.ndarray, model: Model) -> "ReferenceEnergies":
        """The same with the energies that a model has after it was trained.

        Parameters
        ----------
        shifts : array, shape (119,)
            What the last fit added by atomic number, in eV.
        model : Model
            The model.
        """
        now = reference_energies_of(model)
        assert now is not None
        rows = tuple(replace(row, after=float(now[SYMBOLS.index(row.element)])) for row in self.rows)
        largest = float(shifts[np.abs(shifts).argmax()])
        why = f"{self.why}; fitted once more after the training, which added up to {1000 * largest:+.3g} meV"
        return ReferenceEnergies(rows, why, fitted=True)

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and rows of the table; many elements that the data do not have are one row."""
        head = ("element", "E0 before", "after", "change", "unit", "")
        absent = [r for r in self.rows if r.note == _ABSENT]
        few = len(absent) <= _FEW
        rows: list[tuple[str, ...]] = [
            (r.element, f"{r.before:.4f}", f"{r.after:.4f}", f"{r.after - r.before:+.4f}", "eV", r.note)
            for r in self.rows
            if few or r.note != _ABSENT
        ]
        if not few:
            rows.append((f"{len(absent)} others", "", "", "", "", _ABSENT))
        return head, rows

    def text(self) -> str:
        """The table for reading, with what was done."""
        head, rows = self.table()
        return f"reference energies: {self.why}\n" + "\n".join(text_table(head, rows, left=(0, 4, 5)))


def energy_shifts(residuals: np.ndarray, table: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, float]:
    """Changes of reference energies that explain energy differences best.

    Minimized is Σ_s [(r_s - Σ_z n_sz δ_z) / n_s]², where s runs over structures. If the compositions n do not
    determine the changes δ, new elements take as much as possible, and the others change by the same amount
    as far as possible.

    Parameters
    ----------
    residuals : array, shape (S,)
        Label minus prediction, r, in eV.
    table : array, shape (S, Z)
        Number of atoms of each element, n.
    new : array of bool, shape (Z,)
        Elements that were not in the model.

    Returns
    -------
    array, shape (Z,)
        δ in eV.
    float
        Root mean square of what is left, in eV/atom.

    Examples
    --------
    >>> table = np.array([[2.0, 1.0], [1.0, 1.0]])
    >>> shifts, left = energy_shifts(np.array([5.0, 4.0]), table, np.zeros(2, bool))
    >>> shifts.round(6).tolist(), round(left, 6)
    ([1.0, 3.0], 0.0)
    """
    count = table.sum(1, keepdims=True)
    fractions = table / count
    free = np.where(new, _NEW, _SINGLE)
    shared = np.full((len(table), 1), _SHARED) * (fractions @ ~new)[:, None]
    solution = np.linalg.lstsq(np.hstack([fractions * free, shared]), residuals / count[:, 0], rcond=1e-10)[0]
    shifts = solution[:-1] * free + np.where(new, 0.0, _SHARED * solution[-1])
    left = residuals / count[:, 0] - fractions @ shifts
    return shifts, float(np.sqrt(np.mean(left**2)))


def refit(model: Model, data: Dataset, new: Mapping[int, Any]) -> ReferenceEnergies | None:
    """Fit the reference energies of a model to the labels of new data.

    Parameters
    ----------
    model : Model
        The model, whose reference energies are changed.
    data : Dataset
        The new training data, with neighbor lists.
    new : mapping of int
        Elements that the model did not know before.

    Returns
    -------
    ReferenceEnergies or None
        None if the model has no energy that is a sum over atoms, or the data no labels of it.
    """
    before = reference_energies_of(model)
    if before is None or not data.labelled("energy"):
        return None
    known = np.flatnonzero(data.known("energy"))
    chosen = data[known[:: 1 + (len(known) - 1) // MOST].tolist()]
    elements = list(chosen.elements)
    table = compositions(chosen.graphs.z.numpy(), chosen.counts, elements)
    residuals = chosen.values("energy").numpy().reshape(-1).copy()
    for batch, _, out in predicted_batches(model.predicting(["energy"]), chosen, ["energy"], None):
        residuals[batch] -= out["energy"].cpu().numpy().reshape(-1)
    shifts, left = energy_shifts(residuals, table, np.array([z in new for z in elements]))
    after = before.copy()
    after[elements] += shifts
    set_reference_energies(model, {z: float(after[z]) for z in elements})
    blind = undetermined(table, elements)[0]
    rows = tuple(
        ElementEnergy(SYMBOLS[z], float(before[z]), float(after[z]), _note(z, elements, blind, new))
        for z in sorted(model.elements)
    )
    text = f"fitted to {len(chosen):,} new structures by least squares; left is {1000 * left:.3g} meV/atom"
    return ReferenceEnergies(rows, text, fitted=True)


def _note(z: int, elements: list[int], blind: list[str], new: Mapping[int, Any]) -> str:
    """What the new data do not say about an element."""
    if z not in elements:
        return _ABSENT
    if SYMBOLS[z] not in blind:
        return "new" if z in new else ""
    if z in new:
        return "new; only its sum with others is determined"
    return "only its sum with others is determined"


def kept(model: Model, why: str, before: np.ndarray | None = None) -> ReferenceEnergies | None:
    """Reference energies that were not fitted, in the same form.

    Parameters
    ----------
    model : Model
        The model as it is trained.
    why : str
        Why they were not fitted.
    before : array of shape (119,), optional
        Those of the starting model; by default the present ones.

    Returns
    -------
    ReferenceEnergies or None
        None if the model has no energy that is a sum over atoms.
    """
    after = reference_energies_of(model)
    if after is None:
        return None
    before = after if before is None else before
    rows = tuple(ElementEnergy(SYMBOLS[z], float(before[z]), float(after[z])) for z in sorted(model.elements))
    return ReferenceEnergies(rows, why)


def set_energies(
    model: Model,
    train: Dataset,
    how: str,
    given: Mapping[int, float] | None,
    new: Mapping[int, Any],
) -> ReferenceEnergies | None:
    """Set the reference energies of a model for new data, and say how.

    Parameters
    ----------
    model : Model
        The model, which is changed.
    train : Dataset
        The new training data, with neighbor lists.
    how : {"refit", "keep"}
        Whether they are fitted.
    given : mapping of int to float, optional
        Those that the user gives.
    new : mapping of int
        Elements that the model did not know before.

    Returns
    -------
    ReferenceEnergies or None
        None if the model has no energy that is a sum over atoms.
    """
    before = reference_energies_of(model)
    if given is not None:
        set_reference_energies(model, given)
        return kept(model, "given", before)
    if how == "keep":
        return kept(model, "kept, as reference_energies='keep' says")
    found = refit(model, train, new)
    return kept(model, "kept: the new data have no energies") if found is None else found


def with_shifted_energies(data: Dataset, shifts: np.ndarray) -> Dataset:
    """Labels of energies with other reference energies.

    Parameters
    ----------
    data : Dataset
        Structures, perhaps with labels of the energy.
    shifts : array, shape (119,)
        Change of the reference energy by atomic number, in eV.

    Returns
    -------
    Dataset
        The same structures; what has no energy stays as it is.
    """
    if "energy" not in data.quantities or not shifts.any():
        return data
    shifted = [
        {**graph.targets, "energy": graph.targets["energy"] + float(shifts[graph.z.numpy()].sum())}
        for graph in data
    ]
    return with_labels(data, shifted, data.quantities)


def with_labels(
    data: Dataset, labels: Sequence[Mapping[str, Tensor]], quantities: Mapping[str, Quantity]
) -> Dataset:
    """The same structures with other labels.

    Parameters
    ----------
    data : Dataset
        The structures.
    labels : sequence of mapping of str to Tensor
        The labels of each structure.
    quantities : mapping of str to Quantity
        What they are.

    Returns
    -------
    Dataset
        It has neighbor lists if `data` has them.
    """
    found = Dataset(
        [graph.replace(targets=dict(own)) for graph, own in zip(data, labels)],
        quantities=quantities,
        info=data.info,
        origins=data.origins,
        reading=data.reading,
        allow=data.allow,
    )
    graph = data[0]
    return found if graph.edge_index is None else found.connected(graph.cutoff, k=graph.k)
