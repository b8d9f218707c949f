"""All structures of all parts as arrays, for the checks of a lint."""

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from ase.data import covalent_radii

from molequi.data.checks import short_pairs
from molequi.data.dataset import Dataset
from molequi.data.statistics import compositions
from molequi.graph import Graph, fields_per
from molequi.neighbors import connect
from molequi.quantities import SYMBOLS

NOBLE = (2, 10, 18, 36, 54, 86)
_BOND, _REACH = 3.2, 8.0  # Å: what is searched first, and at most


class Frames:
    """All structures of all parts, one after another.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The data by part.
    """

    def __init__(self, parts: Mapping[str, Dataset]) -> None:
        self.parts = dict(parts)
        self.part = np.repeat(np.arange(len(parts)), [len(data) for data in parts.values()])
        self.number = np.concatenate([np.arange(len(data)) for data in parts.values()])
        self.counts = np.concatenate([data.counts for data in parts.values()])
        self._near: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def graphs(self) -> tuple[Graph, ...]:
        """All structures. They are made when they are asked for, since a sample of many may be enough."""
        return tuple(graph for data in self.parts.values() for graph in data)

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """Where each structure came from."""
        return tuple(origin for data in self.parts.values() for origin in data.origins)

    @property
    def molecules(self) -> bool:
        """Whether the structures are made of atoms in space, and not of plain points."""
        return self.graphs[0].dim == 3 and all(bool(g.z.all()) for g in self.graphs)

    def has(self, name: str) -> bool:
        """Whether any structure has a label of a quantity.

        Parameters
        ----------
        name : str
            Name of the quantity.
        """
        return any(data.labelled(name) for data in self.parts.values())

    def label(self, name: str, k: int) -> np.ndarray | None:
        """The complete label of a structure; None where it is not known.

        Parameters
        ----------
        name : str
            Name of the quantity.
        k : int
            Number of the structure.
        """
        value = self.graphs[k].targets.get(name)
        return None if value is None or bool(torch.isnan(value).any()) else value.numpy()

    @cached_property
    def energy(self) -> np.ndarray:
        """Energy of each structure in eV, NaN where unknown; shape (structures,)."""
        values = [self.label("energy", k) for k in range(len(self))]
        return np.array([np.nan if v is None else float(v[0]) for v in values])

    @cached_property
    def forces(self) -> list[np.ndarray | None]:
        """Forces of each structure in eV/Å; None where unknown."""
        return [self.label("forces", k) for k in range(len(self))]

    @cached_property
    def stress(self) -> list[np.ndarray | None]:
        """Stress of each structure in eV/Å³, shape (3, 3); None where unknown."""
        values = [self.label("stress", k) for k in range(len(self))]
        return [None if v is None else v[0] for v in values]

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(sorted({z for data in self.parts.values() for z in data.elements}))

    @cached_property
    def same(self) -> list[np.ndarray]:
        """Numbers of the structures that differ by positions and cell alone; two or more of each kind."""
        groups: dict[Hashable, list[int]] = {}
        for k in range(len(self)):
            groups.setdefault(self._kind(k), []).append(k)
        return [np.array(members) for members in groups.values() if len(members) > 1]

    def _kind(self, k: int) -> Hashable:
        graph = self.graphs[k]
        pbc = () if graph.pbc is None else tuple(graph.pbc[0].tolist())
        return graph.z.numpy().tobytes(), pbc, state_of(graph)

    def near(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Nearest atoms in a structure, see `nearest_atoms`; computed once.

        Parameters
        ----------
        k : int
            Number of the structure.
        """
        if k not in self._near:
            self._near[k] = nearest_atoms(self.graphs[k])
        return self._near[k]

    @cached_property
    def short(self) -> dict[int, tuple[float, int, int]]:
        """Structures with atoms closer than in every bond, see `molequi.data.checks.short_pairs`."""
        return short_pairs(self.graphs)

    def formula(self, k: int) -> str:
        """Composition of a structure, such as ``C2H6O``.

        Parameters
        ----------
        k : int
            Number of the structure.
        """
        z, n = np.unique(self.graphs[k].z.numpy(), return_counts=True)
        return "".join(f"{SYMBOLS[a]}{'' if b == 1 else b}" for a, b in zip(z.tolist(), n.tolist()))

    def compositions(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Number of atoms of each element in some structures, shape (structures, elements).

        Parameters
        ----------
        numbers : sequence of int
            Numbers of the structures, at least one.
        """
        z = np.concatenate([self.graphs[k].z.numpy() for k in numbers])
        return compositions(z, self.counts[list(numbers)], self.elements)

    def sample(self, most: int) -> "Frames":
        """The same data with at most so many structures, whose order is kept.

        Runs of neighboring structures are taken, since neighbors in a trajectory are compared.

        Parameters
        ----------
        most : int
            Largest number of structures.
        """
        if len(self) <= most:
            return self
        runs, length = 10, max(most // 10, 2)
        starts = np.linspace(0, len(self) - length, runs).astype(int)
        chosen = np.unique((starts[:, None] + np.arange(length)).ravel())
        return self.subset(chosen)

    def subset(self, chosen: np.ndarray) -> "Frames":
        """Some of the structures, by part.

        Parameters
        ----------
        chosen : array of int
            Numbers of the structures, ascending.
        """
        parts = {}
        for p, (name, data) in enumerate(self.parts.items()):
            own = self.number[chosen[self.part[chosen] == p]]
            if len(own):
                parts[name] = data[own]
        return Frames(parts)


def state_of(graph: Graph) -> Hashable:
    """What a label depends on beside positions, elements and cell: charge, spin and other fields.

    Parameters
    ----------
    graph : Graph
        A single structure.
    """
    return tuple(
        (name, value.numpy().tobytes())
        for name, value in graph.values("node", "graph").items()
        if name in fields_per("node", "graph") and name not in ("pos", "z", "cell", "pbc", "vel", "batch")
    )


def volume(graph: Graph) -> float:
    """Volume of the cell in Å³; 0 without a cell.

    Parameters
    ----------
    graph : Graph
        A single structure.
    """
    return 0.0 if graph.cell is None else float(torch.linalg.det(graph.cell[0]).abs())


def nearest_atoms(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each atom to the nearest one, and over the sum of their covalent radii.

    Parameters
    ----------
    graph : Graph
        A single structure.

    Returns
    -------
    (array, array), each of shape (N,)
        In Å, and without a unit; inf where there is none within 8 Å.
    """
    z = graph.z.numpy()
    if graph.pbc is None and len(z) <= 200:
        pos = graph.pos.numpy()
        lengths = np.linalg.norm(pos[:, None] - pos[None], axis=2)
        np.fill_diagonal(lengths, np.inf)
        lengths[lengths > _REACH] = np.inf
        first = lengths.argmin(1)
        found = lengths[np.arange(len(z)), first]
        return found, found / (covalent_radii[z] + covalent_radii[z[first]])
    found, ratio = np.full(len(z), np.inf), np.full(len(z), np.inf)
    # Most atoms have a neighbor so near that the long search is not needed, in whatever unit of length.
    bond = min(_BOND, 1.3 * (volume(graph) / len(z)) ** (1 / 3) or _BOND)
    for reach in (bond, _REACH):
        linked = connect(graph.without("edge", "pair"), reach)
        if linked.edge_index is not None and linked.edge_index.shape[1]:
            j, i = linked.edge_index.numpy()
            lengths = linked.edge_vectors().norm(dim=1).numpy()
            order = np.lexsort((lengths, i))
            first = order[np.unique(i[order], return_index=True)[1]]
            found[i[first]] = lengths[first]
            ratio[i[first]] = lengths[first] / (covalent_radii[z[i[first]]] + covalent_radii[z[j[first]]])
        if np.isfinite(found).all():
            break
    return found, ratio
