"""Statistics of training data by which a model is standardized.

They are reference energies, shifts and scales of the quantities, and the mean number of neighbors.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from molequi.data.structures import Structures
from molequi.errors import DataError, DataWarning
from molequi.graph import Graph
from molequi.quantities import SYMBOLS, Quantity, atomic_number

ROUND_OFF = 1e-12  # relative to the largest label: a smaller variation is noise


@dataclass(frozen=True)
class Statistics:
    """Numbers by which a model is standardized once, before training.

    Parameters
    ----------
    elements : tuple of int
        Atomic numbers in the data, ascending.
    mean_neighbors : float
        Mean number of edges per atom.
    reference_energies : dict of int to float
        Atomic reference energy (E0) of each element in eV, given or fitted. Of given ones all are here, those
        of elements that the data lack included.
    reference_energies_given : bool
        Whether the caller gave the reference energies.
    shift : dict
        Mean of each scalar quantity. For an extensive one it is given by element, and of an energy after the
        reference energies are subtracted.
    scale : dict of str to float
        Standard deviation, or root mean square, of each quantity. If forces are known, the scale of the
        energy is their root mean square component (eV/Å).
    """

    elements: tuple[int, ...]
    mean_neighbors: float
    reference_energies: dict[int, float]
    reference_energies_given: bool
    shift: dict[str, float | dict[int, float]]
    scale: dict[str, float]


def compositions(z: np.ndarray, counts: np.ndarray, elements: Sequence[int]) -> np.ndarray:
    """Number of atoms of each element in each structure.

    Parameters
    ----------
    z : array, shape (atoms of all structures,)
        Atomic numbers, one structure after the other.
    counts : array, shape (structures,)
        Number of atoms of each structure.
    elements : sequence of int
        Atomic numbers; all that occur must be among them.

    Returns
    -------
    array, shape (structures, elements)

    Examples
    --------
    >>> compositions(np.array([8, 1, 1, 1]), np.array([3, 1]), [1, 8]).tolist()
    [[2.0, 1.0], [1.0, 0.0]]
    """
    column = np.full(len(SYMBOLS), -1)
    column[list(elements)] = np.arange(len(elements))
    place = np.repeat(np.arange(len(counts)), counts) * len(elements) + column[z]
    table = np.bincount(place, minlength=len(counts) * len(elements))
    return table.reshape(len(counts), len(elements)).astype(float)


def statistics_of(
    graphs: Structures | Sequence[Graph],
    quantities: Mapping[str, Quantity],
    origins: Sequence[str],
    edges: Sequence[int],
    reference_energies: Mapping[str | int, float] | None = None,
) -> Statistics:
    """Statistics of a training set.

    Without `reference_energies`, the energies of isolated atoms in the data are used: structures of one atom
    without a neighbor within the cutoff, periodic images included. Those of the other elements are fitted by
    least squares on the composition. If the compositions do not determine them, the solution of smallest norm
    is taken; with a single composition only their sum has a meaning. The shift of the energy is the mean of
    the remainder per atom. With `reference_energies` it is the mean binding energy per atom, refined by
    element as far as the compositions determine it.

    Parameters
    ----------
    graphs : Structures or sequence of Graph
        Single structures with the same targets.
    quantities : mapping of str to Quantity
        What these targets are.
    origins : sequence of str
        Where each structure came from, for messages.
    edges : sequence of int
        Number of edges of each structure.
    reference_energies : mapping, optional
        Energy of a single atom in eV, by symbol or atomic number.

    Returns
    -------
    Statistics

    Raises
    ------
    DataError
        If `reference_energies` lacks an element of the data, or if single atoms in the data have other
        energies.

    Warns
    -----
    DataWarning
        If the fit says nothing about an element.
    """
    if not isinstance(graphs, Structures):
        graphs = Structures.of(graphs, [name for name, q in quantities.items() if q.per == "node"])
    elements = tuple(graphs.z.unique().tolist())
    counts = graphs.counts
    given = None if reference_energies is None else _for_elements(reference_energies, elements)
    table = compositions(graphs.z.numpy(), counts, elements)
    known = graphs.complete("energy") if "energy" in quantities else np.zeros(len(graphs), dtype=bool)
    # Plane-wave codes compute an isolated atom in a large periodic box, so that pbc decides nothing.
    lone = known & (counts == 1) & (np.asarray(edges) == 0)
    single = _single_atoms(graphs, origins, np.flatnonzero(lone), given)
    energies = given
    if energies is None:
        energies = dict(single)  # of elements without a label of the energy nothing is known
        if (known & ~lone).any():
            energies = dict.fromkeys(elements, 0.0) | single
            energies |= _fitted(graphs, table, known & ~lone, elements, single)
    shift: dict[str, float | dict[int, float]] = {}
    scale: dict[str, float] = {}
    for name, q in quantities.items():
        values, there = graphs.target(name).numpy(), graphs.complete(name)
        if name == "energy" and not lone.all():
            # Single atoms have their reference energy and say nothing about binding.
            there = there & ~lone
            values = np.where(lone, np.nan, values)
        finite = values if there.all() else values[~np.isnan(values).reshape(len(values), -1).any(1)]
        if not len(finite) or q.classes:
            continue
        if q.point:
            places = _places(graphs, q)
            scale[name] = _positive(np.sqrt(np.nanmean((values - places) ** 2)), _largest(places))
        elif q.rank or q.gradient_of:
            size = _largest(finite)
            scale[name] = _positive(size * _root_mean_square(finite, size or 1.0), size)
        elif q.per == "graph" and q.extensive:
            base = table[there] @ np.array([energies[e] for e in elements]) if name == "energy" else 0.0
            largest = _largest(finite / counts[there])
            shift[name], scale[name] = _per_atom(finite - base, table[there], elements, largest)
        else:
            shift[name] = float(np.mean(finite))
            scale[name] = _positive(_deviation(finite), _largest(finite))
    if "energy" in scale and "forces" in scale:
        scale["energy"] = scale["forces"]
    return Statistics(elements, sum(edges) / int(counts.sum()), energies, given is not None, shift, scale)


def single_atom_energies(
    graphs: Sequence[Graph], origins: Sequence[str], edges: Sequence[int]
) -> dict[str | int, float]:
    """Reference energies in eV by atomic number, from structures of one atom.

    Parameters
    ----------
    graphs : sequence of Graph
        Structures of one atom with an energy.
    origins : sequence of str
        Where each came from, for messages.
    edges : sequence of int
        Number of edges of each structure.

    Raises
    ------
    DataError
        For structures of several atoms or without an energy, for an atom with periodic images within the
        cutoff, and for two energies of one element.
    """
    energies: dict[str | int, float] = {}
    for graph, origin, neighbors in zip(graphs, origins, edges):
        energy = graph.targets.get("energy")
        if graph.num_nodes != 1 or energy is None or bool(torch.isnan(energy).any()):
            raise DataError(
                f"{origin}: {graph.num_nodes} atoms; isolated atoms are frames of one atom with an energy"
            )
        if neighbors:
            raise DataError(
                f"{origin}: the cell is so small that this atom has {neighbors} of its own periodic images "
                "within the cutoff; an isolated atom has none: wanted a larger cell, or pbc='F F F'"
            )
        z, value = int(graph.z[0]), float(energy)
        if energies.setdefault(z, value) != value:
            raise DataError(
                f"{origin}: {SYMBOLS[z]} has the energy {value} here and {energies[z]} before; wanted one"
            )
    return energies


def _root_mean_square(values: np.ndarray, size: float) -> float:
    """Root mean square of values over their size, in blocks, since labels may be larger than memory."""
    blocks = np.array_split(values, 1 + len(values) // 1_000_000)
    return float(np.sqrt(sum(np.square(block / size).sum() for block in blocks) / values.size))


def _places(graphs: Structures, q: Quantity) -> np.ndarray:
    """The origins of a quantity that is a position: the nodes, or the centroids of the structures."""
    pos = graphs.pos.numpy()
    if q.per == "node":
        return pos
    ends = np.cumsum(graphs.counts)
    return np.add.reduceat(pos, ends - graphs.counts) / graphs.counts[:, None]


def _deviation(values: np.ndarray) -> float:
    """Standard deviation, also of values whose squares are too small or too large for a number."""
    size = _largest(values - values.mean()) or 1.0
    return size * float(np.std((values - values.mean()) / size))


def _per_atom(
    rest: np.ndarray, table: np.ndarray, elements: Sequence[int], largest: float
) -> tuple[dict[int, float], float]:
    """Shift by element and scale per atom of an extensive scalar; `largest` is the largest label per atom."""
    counts = table.sum(1)
    mean = float(np.mean(rest / counts))
    # Around the mean per atom, which every element shares as far as nothing is known of it.
    finer = np.linalg.lstsq(table, rest - mean * counts, rcond=None)[0]
    shift = {e: mean + float(x) for e, x in zip(elements, finer)}
    rest = rest - table @ (mean + finer)
    return shift, _positive(_deviation(rest / counts), largest)


def _single_atoms(
    graphs: Structures, origins: Sequence[str], lone: np.ndarray, given: Mapping[int, float] | None
) -> dict[int, float]:
    """Energies of single atoms in the data, by element. They must agree with each other and with `given`."""
    found: dict[int, float] = dict(given or {})
    seen: dict[int, float] = {}
    for k in lone.tolist():
        z, energy = int(graphs[k].z[0]), float(graphs[k].targets["energy"])
        if abs(found.setdefault(z, energy) - energy) > 1e-3:
            raise DataError(
                f"{origins[k]}: a single {SYMBOLS[z]} with the energy {energy} eV, and {found[z]} eV "
                f"{'given with reference_energies=' if given else 'in a frame before'}; an isolated atom "
                "has one energy"
            )
        seen[z] = found[z]
    return seen


def _positive(value: float, largest: float) -> float:
    """A scale by which one can divide.

    If all labels are equal, to round-off of the largest one, it is 1, or the size of smaller labels: labels
    have units, so that no number is small by itself.
    """
    if value > ROUND_OFF * largest:
        return float(value)
    return min(1.0, largest) if largest > 0 else 1.0


def _largest(values: np.ndarray) -> float:
    """The largest absolute value."""
    return float(np.abs(values).max())


def _fitted(
    graphs: Structures,
    table: np.ndarray,
    rows: np.ndarray,
    elements: Sequence[int],
    single: Mapping[int, float],
) -> dict[int, float]:
    """Reference energies of elements without a single atom, by least squares on the structures `rows`."""
    wanted = [e for e in elements if e not in single]
    if not wanted:
        return {}
    energy = graphs.target("energy").numpy()
    rest = energy - sum(table[:, elements.index(e)] * value for e, value in single.items())
    table, rest = table[rows][:, [elements.index(e) for e in wanted]], rest[rows]
    solution = np.linalg.lstsq(table, rest, rcond=None)[0]
    if len(np.unique(table, axis=0)) > 1:
        _warn_of_undetermined(table, wanted)
    return {e: float(x) for e, x in zip(wanted, solution)}


def undetermined(table: np.ndarray, elements: Sequence[int]) -> tuple[list[str], list[str]]:
    """Elements whose reference energy the compositions do not determine, or determine badly.

    Parameters
    ----------
    table : array, shape (structures, elements)
        Number of atoms of each element in each structure.
    elements : sequence of int
        Atomic numbers.

    Returns
    -------
    (list of str, list of str)
        Symbols of the elements that cannot be told apart, and of others that occur in one structure only.

    Examples
    --------
    >>> undetermined(np.array([[2.0, 1.0], [4.0, 2.0]]), [1, 8])
    (['H', 'O'], [])
    """
    resolution = np.linalg.pinv(table) @ table  # the identity where every element can be told apart
    blind = [SYMBOLS[e] for k, e in enumerate(elements) if abs(resolution[k, k] - 1) > 1e-6]
    once = [
        SYMBOLS[e] for k, e in enumerate(elements) if (table[:, k] > 0).sum() == 1 and SYMBOLS[e] not in blind
    ]
    return blind, once


def _warn_of_undetermined(table: np.ndarray, elements: Sequence[int]) -> None:
    """Warn about elements whose reference energy the compositions do not determine."""
    blind, once = undetermined(table, elements)
    why = [f"{', '.join(blind)} cannot be told apart by the compositions in these data"] if blind else []
    why += [f"{', '.join(once)} occur in one structure only"] if once else []
    if why:
        warnings.warn(
            f"energies of isolated atoms: {' and '.join(why)}, so that their fit means nothing for other "
            "compositions; give them with reference_energies=",
            DataWarning,
            stacklevel=5,
        )


def _for_elements(reference_energies: Mapping[str | int, float], elements: Sequence[int]) -> dict[int, float]:
    """The given energies, checked; all elements of the data must be there."""
    if not isinstance(reference_energies, Mapping):
        raise DataError(
            f"reference_energies is {reference_energies!r}; wanted energies by element, or a file of single "
            "atoms"
        )
    energies: dict[int, float] = {}
    for element, energy in reference_energies.items():
        number = isinstance(energy, (int, float, np.number)) and not isinstance(energy, bool)
        if not number or not np.isfinite(energy):
            raise DataError(
                f"reference_energies: {element!r} has the energy {energy!r}; wanted a finite number in eV"
            )
        z = atomic_number(element)
        if z in energies:
            raise DataError(f"reference_energies: {SYMBOLS[z]} is given twice; wanted one energy each")
        energies[z] = float(energy)
    missing = [SYMBOLS[e] for e in elements if e not in energies]
    if missing:
        raise DataError(
            f"reference_energies: no energy of {', '.join(missing)}; found "
            f"{', '.join(SYMBOLS[e] for e in energies) or 'none'}"
        )
    return energies  # elements that these data lack keep what was given, too
