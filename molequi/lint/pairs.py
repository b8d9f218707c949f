"""Pairs of similar structures, and the work of the forces and of the stress between them.

The energy difference of two structures a and b is the work along any path between them. With the mean of both
ends (the trapezoidal rule),

    E_b - E_a ≈ -½ (F_a + F_b) · Δr + ½ (V_a σ_a + V_b σ_b) : ε,

where Δr are the internal displacements and ε is the strain. The error is of third order in Δr and ε, and zero
for a harmonic potential. So displacements may be as large as in a trajectory that was thinned.
"""

from dataclasses import dataclass

import numpy as np

from molequi.lint.frames import Frames, volume

_DIMENSIONS = 16  # of the space in which similar structures are searched
_NEIGHBORS = 4
_STRAIN = 0.15  # larger strains are not compared
_FEATURES, _NUMBERS = 3000, 5_000_000  # distances of a structure, and of all, by which similar ones are found


@dataclass(frozen=True)
class Pairs:
    """Pairs of similar structures, P of them.

    Parameters
    ----------
    first, second : array of int, shape (P,)
        Numbers of the structures.
    moved : array, shape (P,)
        Largest displacement of an atom in Å.
    strain : array, shape (P, 3, 3)
        Symmetric strain of the cell from the first to the second structure.
    difference : array, shape (P,)
        Difference of the energies in eV.
    works : array, shape (P, 2)
        Work of the forces of the first and of the second structure in eV, with the opposite sign: -½ F_a · Δr
        and -½ F_b · Δr.
    pulls : array, shape (P, 2, 3, 3)
        ½ V_a σ_a and ½ V_b σ_b in eV; NaN without labels of the stress.
    volume : array, shape (P,)
        Mean volume in Å³.
    """

    first: np.ndarray
    second: np.ndarray
    moved: np.ndarray
    strain: np.ndarray
    difference: np.ndarray
    works: np.ndarray
    pulls: np.ndarray
    volume: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def where(self, chosen: np.ndarray) -> "Pairs":
        """Some of the pairs.

        Parameters
        ----------
        chosen : array of bool or int
            Which.
        """
        return Pairs(**{name: value[chosen] for name, value in vars(self).items()})

    @property
    def work(self) -> np.ndarray:
        """Work of the forces of both structures in eV, with the opposite sign, shape (P,)."""
        total: np.ndarray = self.works.sum(1)
        return total

    @property
    def pull(self) -> np.ndarray:
        """½ (V_a σ_a + V_b σ_b) in eV, shape (P, 3, 3); NaN without labels of the stress."""
        total: np.ndarray = self.pulls.sum(1)
        return total

    @property
    def by_stress(self) -> np.ndarray:
        """Work of each component of the stress in eV, shape (P, 3, 3)."""
        return self.pull * self.strain

    @property
    def strained(self) -> np.ndarray:
        """Which pairs have different cells."""
        return np.abs(self.strain).max((1, 2), initial=0.0) > 1e-6


def similar_pairs(frames: Frames, shift: int = 0) -> Pairs:
    """Pairs of similar structures with the same atoms, energies and forces.

    Each structure is compared to the next one of the same kind, and to the four that are most similar to it.
    Molecules are superimposed first.

    Parameters
    ----------
    frames : Frames
        The structures.
    shift : int
        Take the forces of the structure that is so many places later. Pairs without one are left out.

    Returns
    -------
    Pairs
    """
    found = []
    there = np.isfinite(frames.energy) & (frames.energy != 0.0) & frames.known("forces")
    for members in frames.same:
        known = members[there[members]]
        if len(known) > 1 and frames.counts[known[0]] > 1:
            found.append(_pairs_of(frames, known, shift))
    if not found:
        empty = np.zeros(0)
        tensor = np.zeros((0, 3, 3))
        number = np.zeros(0, dtype=int)
        return Pairs(number, number, empty, tensor, empty, np.zeros((0, 2)), np.zeros((0, 2, 3, 3)), empty)
    return Pairs(**{name: np.concatenate([getattr(p, name) for p in found]) for name in vars(found[0])})


def _pairs_of(frames: Frames, members: np.ndarray, shift: int) -> Pairs:
    """Pairs among structures of one kind."""
    graphs = [frames.graph(k) for k in members]
    pos = np.stack([g.pos.numpy() for g in graphs])
    donors = np.clip(np.arange(len(members)) + shift, 0, len(members) - 1)
    forces = np.stack([f for k in members if (f := frames.label("forces", k)) is not None])[donors]
    periodic = graphs[0].pbc is not None
    cells = [g.cell[0].numpy() for g in graphs if g.cell is not None]
    cell = np.stack(cells) if periodic and len(cells) == len(graphs) else None
    if periodic and (cell is None or (np.abs(np.linalg.det(cell)) < 1e-6).any()):
        cell = None
    a, b = candidates(pos, cell).T
    if shift:
        inside = (np.maximum(a, b) + max(shift, 0) < len(members)) & (np.minimum(a, b) + min(shift, 0) >= 0)
        a, b = a[inside], b[inside]
    if cell is None:
        moved, works = _work_of_molecules(pos, forces, a, b)
        strain, pulls = np.zeros((len(a), 3, 3)), np.full((len(a), 2, 3, 3), np.nan)
        volumes = np.zeros(len(a))
    else:
        assert graphs[0].pbc is not None
        pbc = graphs[0].pbc[0].numpy()
        moved, works, strain = _work_of_crystals(pos, cell, pbc, forces, a, b)
        size = np.array([volume(g) for g in graphs])
        volumes = (size[a] + size[b]) / 2
        labels = [frames.label("stress", k) for k in members]
        half = np.stack(
            [np.full((3, 3), np.nan) if s is None else v * s[0] / 2 for s, v in zip(labels, size)]
        )
        pulls = np.stack([half[a], half[b]], axis=1)
    difference = frames.energy[members[b]] - frames.energy[members[a]]
    found = Pairs(members[a], members[b], moved, strain, difference, works, pulls, volumes)
    return found.where(np.abs(strain).max((1, 2), initial=0.0) < _STRAIN)


def candidates(pos: np.ndarray, cell: np.ndarray | None) -> np.ndarray:
    """Pairs of similar structures of the same atoms.

    They are neighbors in the file, and in a space of few dimensions onto which interatomic distances or
    fractional coordinates are projected.

    Parameters
    ----------
    pos : array, shape (structures, N, 3)
        Positions in Å.
    cell : array, shape (structures, 3, 3), or None
        Lattice vectors as rows.

    Returns
    -------
    array of int, shape (pairs, 2)
        Numbers of the structures.
    """
    from scipy.spatial import cKDTree

    n = len(pos)
    if cell is None:
        i, j = np.triu_indices(pos.shape[1], 1)
        most = min(_FEATURES, max(_NUMBERS // n, 300))
        if len(i) > most:
            chosen = np.random.default_rng(0).choice(len(i), most, replace=False)
            i, j = i[chosen], j[chosen]
        features = np.linalg.norm(pos[:, i] - pos[:, j], axis=2)
    else:
        # Coordinates of a trajectory may have been wrapped, which their cosines and sines do not see.
        angle = 2 * np.pi * np.einsum("pni,pij->pnj", pos, np.linalg.inv(cell)).reshape(n, -1)
        length = np.linalg.norm(cell, axis=2).mean()
        wrapped = np.hstack([np.cos(angle), np.sin(angle)]) * length / (2 * np.pi)
        features = np.hstack([wrapped, cell.reshape(n, -1) * np.sqrt(pos.shape[1])])
    features = features - features.mean(0)
    if features.shape[1] > _DIMENSIONS:
        features = features @ principal_directions(features, _DIMENSIONS)
    # Equal structures say nothing; enough neighbors are asked for that others are among them.
    _, near = cKDTree(features).query(features, min(_NEIGHBORS + 1, n))
    near = near.reshape(n, -1)
    own = np.repeat(np.arange(n), near.shape[1])
    pairs = np.stack([own, near.ravel()], axis=1)
    following = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    pairs = np.sort(np.concatenate([pairs, following]), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def principal_directions(features: np.ndarray, dimensions: int) -> np.ndarray:
    """Orthonormal directions in which rows differ most, by subspace iteration over at most 2,000 rows.

    Parameters
    ----------
    features : array, shape (rows, columns)
        The rows, about their mean.
    dimensions : int
        Number of directions.

    Returns
    -------
    array, shape (columns, dimensions)
        Similar structures are searched in this space, which needs no exact directions.
    """
    rows = features[:: max(1, len(features) // 2000)]
    found = np.linalg.qr(np.random.default_rng(0).normal(size=(features.shape[1], dimensions)))[0]
    for _ in range(3):
        found = np.linalg.qr(rows.T @ (rows @ found))[0]
    return found


def superimposed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rotations that superimpose centred structures (Kabsch 1976, doi:10.1107/S0567739476001873).

    Parameters
    ----------
    first, second : array, shape (P, N, 3)
        Pairs of structures, each about its centroid.

    Returns
    -------
    array, shape (P, 3, 3)
        ``second @ rotation`` is closest to ``first``.
    """
    u, _, vt = np.linalg.svd(np.einsum("pni,pnj->pij", second, first))
    proper = np.ones((len(u), 3))
    proper[:, 2] = np.sign(np.linalg.det(u @ vt))
    return np.einsum("pij,pj,pjk->pik", u, proper, vt)


def _work_of_molecules(
    pos: np.ndarray, forces: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Largest displacement and works of both ends between superimposed molecules."""
    pos = pos - pos.mean(1, keepdims=True)
    turn = superimposed(pos[a], pos[b])
    step = pos[b] @ turn - pos[a]
    works = -0.5 * np.stack([(forces[a] * step).sum((1, 2)), (forces[b] @ turn * step).sum((1, 2))], axis=1)
    return np.linalg.norm(step, axis=2).max(1, initial=0.0), works


def _work_of_crystals(
    pos: np.ndarray, cell: np.ndarray, pbc: np.ndarray, forces: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest displacement, works of both ends and strain between periodic structures."""
    inside = np.einsum("pni,pij->pnj", pos, np.linalg.inv(cell))
    step = inside[b] - inside[a]
    step = step - np.where(pbc, np.round(step), 0.0)
    step = step - step.mean(1, keepdims=True)  # a translation costs nothing
    step = step - np.where(pbc, np.round(step), 0.0)
    middle = (cell[a] + cell[b]) / 2
    step = np.einsum("pni,pij->pnj", step, middle)
    works = -0.5 * np.stack([(forces[a] * step).sum((1, 2)), (forces[b] * step).sum((1, 2))], axis=1)
    gradient = np.einsum("pij,pjk->pik", np.linalg.inv(middle), cell[b] - cell[a])
    strain = (gradient + gradient.transpose(0, 2, 1)) / 2
    return np.linalg.norm(step, axis=2).max(1, initial=0.0), works, strain
