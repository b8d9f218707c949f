"""All structures of all parts, by columns and in blocks, for the checks of a lint.

Nothing here keeps a structure: a block has about a million distances between atoms at most, or is a single
structure, and what is kept is a few numbers for each structure or atom.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from ase.data import covalent_radii

from molequi.data.chain import ChainedColumn
from molequi.data.dataset import Dataset
from molequi.data.indexing import evenly_spaced
from molequi.data.statistics import compositions
from molequi.data.structures import Structures
from molequi.graph import Graph
from molequi.lint.kinds import kind_numbers
from molequi.neighbors import connect

NOBLE = (2, 10, 18, 36, 54, 86)
_BOND, _REACH = 3.2, 8.0  # Å: what is searched first, and at most
_SMALL = 200  # atoms of a molecule whose distances are all computed
_DISTANCES = 1_000_000  # in a block
_MORE = 1000  # that are searched later
SEARCHED = 20_000  # structures whose neighbors are searched one by one, at most


@dataclass(frozen=True)
class Block:
    """Structures of one part with the same number of atoms, M of them.

    Parameters
    ----------
    numbers : array of int, shape (M,)
        Numbers of the structures.
    z : array of int, shape (M, N)
        Atomic numbers.
    pos : array, shape (M, N, D)
        Positions in Å.
    forces : array, shape (M, N, D), or None
        Forces in eV/Å, NaN where unknown; None if the part has none.
    periodic : array of bool, shape (M,)
        Which have a periodic direction or say that they have none.
    """

    numbers: np.ndarray
    z: np.ndarray
    pos: np.ndarray
    forces: np.ndarray | None
    periodic: np.ndarray


class Frames:
    """All structures of all parts, one after another.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The data by part.

    Attributes
    ----------
    rows : array of int, shape (structures,)
        Their numbers in the data of which they are a `subset`.
    """

    def __init__(self, parts: Mapping[str, Dataset]) -> None:
        self.parts = dict(parts)
        self.part = np.repeat(np.arange(len(parts)), [len(data) for data in parts.values()])
        self.number = np.concatenate([np.arange(len(data)) for data in parts.values()])
        self.counts = np.concatenate([data.counts for data in parts.values()])
        self.starts = np.cumsum(self.counts) - self.counts
        self._data = list(self.parts.values())
        self.rows = np.arange(len(self.counts))
        self._factors: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.counts)

    def graph(self, k: int) -> Graph:
        """One structure.

        Parameters
        ----------
        k : int
            Its number.
        """
        return self._data[self.part[k]][int(self.number[k])]

    @property
    def origins(self) -> Sequence[str]:
        """Where each structure came from; read when asked for."""
        return ChainedColumn([data.origins for data in self._data])

    @cached_property
    def z(self) -> np.ndarray:
        """Atomic numbers of all atoms."""
        tables = [data.graphs.z.numpy() for data in self._data]
        return tables[0] if len(tables) == 1 else np.concatenate(tables)

    @cached_property
    def molecules(self) -> bool:
        """Whether the structures are made of atoms in space, and not of plain points."""
        return self._data[0].graphs.dim == 3 and bool(self.z.all())

    @cached_property
    def periodic(self) -> np.ndarray:
        """Which structures have a periodic direction or say that they have none, shape (structures,)."""
        return np.concatenate([data.graphs.has("pbc") for data in self._data])

    def known(self, name: str) -> np.ndarray:
        """Which structures have a complete label of a quantity, shape (structures,).

        Parameters
        ----------
        name : str
            Name of the quantity.
        """
        return np.concatenate(
            [
                data.known(name) if name in data.quantities else np.zeros(len(data), bool)
                for data in self._data
            ]
        )

    def labelled(self, name: str) -> np.ndarray:
        """Which structures have a label of a quantity, even in part; shape (structures,).

        Parameters
        ----------
        name : str
            Name of the quantity.
        """
        return np.concatenate(
            [
                data.graphs.labelled(name) if name in data.quantities else np.zeros(len(data), bool)
                for data in self._data
            ]
        )

    def has(self, name: str) -> bool:
        """Whether any structure has a label of a quantity.

        Parameters
        ----------
        name : str
            Name of the quantity.
        """
        return any(data.labelled(name) for data in self._data)

    def label(self, name: str, k: int) -> np.ndarray | None:
        """The complete label of a structure; None where it is not known.

        Parameters
        ----------
        name : str
            Name of the quantity.
        k : int
            Number of the structure.
        """
        value = self.graph(k).targets.get(name)
        if value is None or bool(torch.isnan(value).any()):
            return None
        return value.numpy() * (self._factors[name][k] if name in self._factors else 1.0)

    @cached_property
    def energy(self) -> np.ndarray:
        """Energy of each structure in eV, NaN where unknown; shape (structures,)."""
        values = [
            d.values("energy").numpy().reshape(len(d))
            if "energy" in d.quantities
            else np.full(len(d), np.nan)
            for d in self._data
        ]
        return np.concatenate(values) * self._factors.get("energy", 1.0)

    @cached_property
    def strongest(self) -> np.ndarray:
        """Largest component of the forces of each structure in eV/Å, NaN where unknown."""
        found = np.full(len(self), np.nan)
        for block in self.blocks():
            if block.forces is not None:
                found[block.numbers] = np.abs(block.forces).max((1, 2), initial=0.0)
        return found

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(sorted({z for data in self._data for z in data.elements}))

    def kinds(self, ordered: bool = True) -> np.ndarray:
        """A number for each structure that is equal for those that differ by positions and cell alone.

        Parameters
        ----------
        ordered : bool
            Whether the order of the atoms matters.
        """
        return np.concatenate([kind_numbers(data.graphs, ordered) for data in self._data])

    @cached_property
    def same(self) -> list[np.ndarray]:
        """Numbers of the structures that differ by positions and cell alone; two or more of each kind."""
        return groups_of(self.kinds())

    def blocks(self, chosen: np.ndarray | None = None) -> Iterator[Block]:
        """All structures in blocks of equal numbers of atoms.

        Parameters
        ----------
        chosen : array of bool, shape (structures,), optional
            Which are wanted.
        """
        wanted = np.ones(len(self), bool) if chosen is None else chosen
        for p, data in enumerate(self._data):
            forces = "forces" in data.quantities
            for n in np.unique(self.counts[(self.part == p) & wanted]).tolist():
                rows = np.flatnonzero((self.part == p) & wanted & (self.counts == n))
                for numbers in np.array_split(rows, len(rows) * n * min(n, _SMALL) // _DISTANCES + 1):
                    yield self._block(data.graphs, numbers, n, forces)

    def _block(self, structures: Structures, numbers: np.ndarray, n: int, forces: bool) -> Block:
        part = structures.select(self.number[numbers])
        shape = (len(numbers), n)
        found = part.target("forces").numpy().reshape(*shape, -1) if forces else None
        if found is not None and "forces" in self._factors:
            found = found * self._factors["forces"][numbers, None, None]
        return Block(
            numbers,
            part.z.numpy().reshape(shape),
            part.pos.numpy().reshape(*shape, -1),
            found,
            part.has("pbc"),
        )

    @cached_property
    def searched(self) -> np.ndarray:
        """Which structures have their nearest atoms looked for, shape (structures,).

        All molecules have. Neighbors in crystals are searched one by one, so of more than 20,000 only some.
        """
        found = ~self.periodic & (self.counts <= _SMALL)
        slow = np.flatnonzero(~found)
        if len(slow):
            found[slow[evenly_spaced(len(slow), SEARCHED)]] = True
        return found

    @cached_property
    def _near(self) -> tuple[np.ndarray, np.ndarray]:
        length, ratio = (np.full(int(self.counts.sum()), np.nan, dtype=np.float32) for _ in range(2))
        for block in self.blocks(self.searched):
            n = block.z.shape[1]
            rows = self.starts[block.numbers][:, None] + np.arange(n)
            slow = block.periodic | (n > _SMALL)
            if not slow.all():
                length[rows[~slow]], ratio[rows[~slow]] = _nearest_in_molecules(
                    block.pos[~slow], block.z[~slow]
                )
            for k in np.flatnonzero(slow):
                length[rows[k]], ratio[rows[k]] = nearest_atoms(self.graph(block.numbers[k]))
        return length, ratio

    @property
    def near_length(self) -> np.ndarray:
        """Distance of each atom to the nearest one in Å, inf where there is none within 8 Å; shape (atoms,).

        NaN in structures that are not `searched`.
        """
        return self._near[0]

    @property
    def near_ratio(self) -> np.ndarray:
        """The same over the sum of the covalent radii."""
        return self._near[1]

    @cached_property
    def tightest(self) -> np.ndarray:
        """Smallest `near_ratio` of each structure, shape (structures,)."""
        return np.minimum.reduceat(self.near_ratio, self.starts)

    def tightest_of(self, numbers: Sequence[int]) -> np.ndarray:
        """`tightest` of some structures, for which it is looked for where it was not before.

        Parameters
        ----------
        numbers : sequence of int
            Numbers of the structures. Of those that are not `searched`, the first 1,000 are looked at; the
            others have NaN.
        """
        found = self.tightest[list(numbers)].astype(float)
        for row in np.flatnonzero(np.isnan(found))[:_MORE].tolist():
            found[row] = nearest_atoms(self.graph(numbers[row]))[1].min()
        return found

    def compositions(self, numbers: np.ndarray | slice) -> np.ndarray:
        """Number of atoms of each element in some structures, shape (structures, elements).

        Parameters
        ----------
        numbers : array of int, or slice
            Numbers of the structures.
        """
        return self._table[numbers]

    @cached_property
    def _table(self) -> np.ndarray:
        return compositions(self.z, self.counts, self.elements)

    def corrected(self, name: str, numbers: np.ndarray, factor: float | np.ndarray) -> "Frames":
        """The same structures with some labels multiplied by a factor, as a finding has said.

        Parameters
        ----------
        name : str
            Name of the quantity.
        numbers : array of int
            Numbers of the structures.
        factor : float or array, shape (numbers,)
            The factor.
        """
        new = copy(self)
        factors = self._factors.get(name, np.ones(len(self))).copy()
        factors[numbers] *= factor
        new._factors = self._factors | {name: factors}
        for cached in ("energy", "strongest"):
            vars(new).pop(cached, None)
        return new

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
        runs = max(10, most // 500)
        length = max(most // runs, 2)
        starts = np.linspace(0, len(self) - length, runs).astype(int)
        return self.subset(np.unique((starts[:, None] + np.arange(length)).ravel()))

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
        new = Frames(parts)
        new.rows = np.asarray(chosen)
        new._factors = {name: values[chosen] for name, values in self._factors.items()}
        return new


def groups_of(kinds: np.ndarray) -> list[np.ndarray]:
    """Places of equal numbers, of those that occur twice or more; ascending, in order of appearance.

    Parameters
    ----------
    kinds : array of int, shape (n,)
        The numbers.

    Examples
    --------
    >>> [group.tolist() for group in groups_of(np.array([7, 3, 7, 9, 3]))]
    [[0, 2], [1, 4]]
    """
    order = np.argsort(kinds, kind="stable")
    ends = np.flatnonzero(np.diff(kinds[order])) + 1
    found = [group for group in np.split(order, ends) if len(group) > 1]
    return sorted(found, key=lambda group: int(group[0]))


def volume(graph: Graph) -> float:
    """Volume of the cell in Å³; 0 without a cell.

    Parameters
    ----------
    graph : Graph
        A single structure.
    """
    return 0.0 if graph.cell is None else float(torch.linalg.det(graph.cell[0]).abs())


def _nearest_in_molecules(pos: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest_atoms`, for molecules of the same number of atoms, shape (M, N) each."""
    n = z.shape[1]
    lengths = np.linalg.norm(pos[:, :, None] - pos[:, None], axis=3)
    lengths[:, np.arange(n), np.arange(n)] = np.inf
    lengths[lengths > _REACH] = np.inf
    first = lengths.argmin(2)
    found = np.take_along_axis(lengths, first[:, :, None], 2)[:, :, 0]
    return found, found / (covalent_radii[z] + covalent_radii[np.take_along_axis(z, first, 1)])


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
    found, ratio = np.full(len(z), np.inf), np.full(len(z), np.inf)
    # Most atoms have a neighbor so near that the long search is not needed, in whatever unit of length.
    bond = min(_BOND, 1.3 * (volume(graph) / len(z)) ** (1 / 3) or _BOND)
    for reach in (bond, _REACH):
        listed = graph.cutoff is not None and graph.k is None and graph.cutoff >= reach  # by a store
        linked = graph if listed else connect(graph.without("edge", "pair"), reach)
        if linked.edge_index is not None and linked.edge_index.shape[1]:
            j, i = linked.edge_index.numpy()
            lengths = linked.edge_vectors().norm(dim=1).numpy()
            order = np.lexsort((lengths, i))
            first = order[np.unique(i[order], return_index=True)[1]]
            found[i[first]] = lengths[first]
            ratio[i[first]] = lengths[first] / (covalent_radii[z[i[first]]] + covalent_radii[z[j[first]]])
        if np.isfinite(found).all():
            break
    found[found > _REACH], ratio[found > _REACH] = np.inf, np.inf
    return found, ratio
