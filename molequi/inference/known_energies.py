"""Energies that a model knows: those of single atoms, and the lowest one of the training data.

Below the latter a simulation is where the model has learnt nothing.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ModelError
from molequi.heads import Scalar
from molequi.model import Model

# In eV/atom. A relaxed crystal lies 3/2 kT below its frames at the temperature T: 0.13 eV/atom at 1000 K.
MARGIN = 0.2


def single_atom_energies(model: Model | Ensemble) -> np.ndarray | None:
    """The part of the energy that depends on the elements alone.

    Parameters
    ----------
    model : Model or Ensemble
        The model.

    Returns
    -------
    array of shape (119,) or None
        In eV by atomic number; None if the model has no energy of its own.
    """
    head = dict(model.heads).get("energy")
    if not isinstance(head, Scalar):
        return None
    return (head.reference_energies + head.shift).detach().cpu().numpy()


def reference_energies_of(model: Model) -> np.ndarray | None:
    """Reference energies E0 of a model by atomic number.

    Parameters
    ----------
    model : Model
        The model.

    Returns
    -------
    array of shape (119,) or None
        In eV; None if it has no energy that is a sum over atoms.
    """
    head = dict(model.heads).get("energy")
    return head.reference_energies.cpu().numpy().copy() if isinstance(head, Scalar) else None


def set_reference_energies(model: Model, energies: Mapping[int, float]) -> None:
    """Set the reference energies of elements; scales, shifts and other elements stay as they are.

    Parameters
    ----------
    model : Model
        The model, which is changed.
    energies : mapping of int to float
        Atomic reference energies E0 by atomic number, in eV.

    Raises
    ------
    ModelError
        If the model has no energy that is a sum over atoms.
    """
    head = dict(model.heads).get("energy")
    if not isinstance(head, Scalar):
        raise ModelError(
            f"this model predicts {', '.join(model.quantities)} and no energy that is a sum over atoms; it "
            "has no reference energies"
        )
    head.standardize(scale=float(head.scale), shift={}, reference_energies=energies)


def bound_energy(model: Model | Ensemble, numbers: ArrayLike, energy: ArrayLike) -> Any:
    """Energy per atom without the part of single atoms.

    Parameters
    ----------
    model : Model or Ensemble
        The model, whose single atoms are taken.
    numbers : array of shape (N,)
        Atomic numbers.
    energy : float or array
        Energies of this structure in eV.

    Returns
    -------
    float or array
        In eV/atom; NaN if the model has no energy of its own.
    """
    return _bound(single_atom_energies(model), numbers, energy)


def _bound(own: np.ndarray | None, numbers: ArrayLike, energy: ArrayLike) -> Any:
    """As `bound_energy`, with the energies of single atoms at hand."""
    if own is None:
        return np.nan
    z = np.asarray(numbers)
    return (np.asarray(energy, dtype=float) - own[z].sum()) / max(len(z), 1)


def keep_lowest_energy(model: Model | Ensemble, data: Dataset) -> dict[str, Any]:
    """Find the lowest energy per atom of the training data and keep it in the metadata of the model.

    Parameters
    ----------
    model : Model or Ensemble
        The model, whose single atoms are taken.
    data : Dataset
        The training data.

    Returns
    -------
    dict of str to float
        ``{"lowest_energy": eV/atom without the part of single atoms}``; empty without energies.
    """
    own = single_atom_energies(model)
    kept = {}
    if own is not None and "energy" in data.quantities:
        atoms = np.bincount(data.graphs.owners(), weights=own[data.graphs.z.numpy()], minlength=len(data))
        bound = (data.values("energy").numpy() + _added(model, data) - atoms) / data.counts
        known = bound[np.isfinite(bound)]
        kept = {"lowest_energy": float(known.min())} if len(known) else {}
    before = {k: v for k, v in getattr(model, "metadata", {}).items() if k != "lowest_energy"}
    model.metadata = {**before, **kept}
    return kept


def _added(model: Model | Ensemble, data: Dataset) -> np.ndarray:
    """What a dispersion correction adds to the energies of labels that are without it."""
    of_member = model.members[0] if isinstance(model, Ensemble) else model
    dispersion = cast(Model, of_member).dispersion
    if dispersion is None or not cast(Model, of_member).labels_lack_dispersion:
        return np.zeros(len(data))
    charges = model.backbone.reads("charge")
    return np.array([float(dispersion.energies(graph, charges)) for graph in data])


def too_low(model: object, numbers: ArrayLike, energies: ArrayLike) -> np.ndarray:
    """By how much energies are below those of the training data.

    Parameters
    ----------
    model : Model, Ensemble or other object
        A model that was trained and, if it was loaded, saved by this version or a later one.
    numbers : array of shape (N,)
        Atomic numbers.
    energies : array of shape (T,)
        Energies in eV.

    Returns
    -------
    array of shape (T,)
        In eV/atom; 0 for energies above the lowest one less `MARGIN`, and if it is unknown.
    """
    values = np.atleast_1d(np.asarray(energies, dtype=float))
    lowest = (getattr(model, "metadata", None) or {}).get("lowest_energy")
    if not isinstance(model, (Model, Ensemble)) or not isinstance(lowest, (int, float)):
        return np.zeros_like(values)
    below = lowest - bound_energy(model, numbers, values)
    return np.where(below > MARGIN, below, 0.0)
