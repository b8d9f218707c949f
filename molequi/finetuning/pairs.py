"""Energies of two atoms alone: where they are lowest, and whether the atoms repel each other when close."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from molequi.data.dataset import Dataset
from molequi.graph import Graph
from molequi.inference.known_energies import bound_energy, single_atom_energies
from molequi.inference.predictions import predicted_batches
from molequi.model import Model
from molequi.quantities import SYMBOLS

MOST = 12  # pairs of elements
_FARTHEST, _SHORTEST = 6.0, 0.6  # Å


@dataclass(frozen=True)
class PairCurve:
    """The energy of two atoms at several distances.

    Parameters
    ----------
    atoms : str
        The elements, such as "H-O".
    distance : float
        Where the energy is lowest at 0.4 Å or more, in Å.
    lowest : float
        This energy less that of the single atoms, in eV.
    short : float
        The same at half of `distance`, or at 0.4 Å if that is more, in eV.
    repulsive : bool
        Whether the energy is higher there, and does not fall from there to the shortest distance.
    """

    atoms: str
    distance: float
    lowest: float
    short: float
    repulsive: bool


def pair_curves(model: Model, elements: Sequence[int]) -> list[PairCurve]:
    """Energies of two atoms of each pair of elements.

    Parameters
    ----------
    model : Model
        The model.
    elements : sequence of int
        Atomic numbers.

    Returns
    -------
    list of PairCurve
        One for each pair, at most 12; none for a model without cutoff or without an energy that is a sum over
        atoms, and for one that reads more than elements and positions.
    """
    reads = model.backbone.inputs is None or bool(model.backbone.inputs.used)
    if single_atom_energies(model) is None or model.cutoff is None or reads or model.k is not None:
        return []
    known = [z for z in elements if z]
    pairs = list(itertools.combinations_with_replacement(known, 2))[:MOST]
    if not pairs:
        return []
    distances = np.arange(0.4, min(model.cutoff, _FARTHEST), 0.05)
    graphs = [
        Graph.single(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, r]], dtype=torch.float64), list(pair))
        for pair in pairs
        for r in distances
    ]
    data = Dataset(graphs).connected(model.cutoff, progress=False)
    energies = np.zeros(len(graphs))
    plain = model.plain().predicting(["energy"])
    for batch, _, out in predicted_batches(plain, data, [], None):
        energies[batch] = out["energy"].double().cpu().numpy().reshape(-1)
    curves = energies.reshape(len(pairs), len(distances))
    return [curve_of(model, pair, distances, curve) for pair, curve in zip(pairs, curves)]


def curve_of(model: Model, pair: tuple[int, int], distances: np.ndarray, energies: np.ndarray) -> PairCurve:
    """What is known of a pair from its energies.

    Parameters
    ----------
    model : Model
        The model, whose single atoms are taken.
    pair : tuple of int
        Atomic numbers.
    distances : array, shape (D,)
        Distances in Å, ascending.
    energies : array, shape (D,)
        Energies in eV.
    """
    own = 2 * bound_energy(model, pair, energies)
    place = int(own.argmin())
    half = int(np.abs(distances - distances[place] / 2).argmin())
    short = own[: half + 1]
    # No bond is shorter than that of H2, 0.74 Å: a lower energy at a shorter distance is a hole.
    repulsive = bool(
        distances[place] >= _SHORTEST and half < place and own[half] > own[place] and short.min() >= own[half]
    )
    return PairCurve(
        "-".join(SYMBOLS[z] for z in pair),
        float(distances[place]),
        float(own[place]),
        float(own[half]),
        repulsive,
    )
