"""Radial distribution functions, bond lengths and bond angles."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii

from molequi.analysis.frames import Frames, elements_of, read_frames
from molequi.errors import ConfigError, DataError
from molequi.graph import Graph
from molequi.neighbors import connect
from molequi.simulation import Average, block_average
from molequi.util.html import html_text
from molequi.util.signature import check_keywords


@dataclass(frozen=True)
class RadialDistribution:
    """Result of `rdf`; printed, the first peak and its coordination number for each pair of elements.

    Parameters
    ----------
    r : array, shape (B,)
        Centres of the bins in Å.
    g : dict of str to array, shape (B,)
        g(r) of each pair of elements, such as "B-N", and of all atoms under "all".
    neighbors : dict of str to array, shape (B,)
        Mean number of atoms of the second element within the outer edge of each bin around one of the first.
    frames : int
        Number of frames.
    """

    r: np.ndarray
    g: dict[str, np.ndarray]
    neighbors: dict[str, np.ndarray]
    frames: int

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The table "rdf" with the columns ``r_A``, ``g_B-N``, …, ``n_B-N``, …."""
        g = {f"g_{name}": value for name, value in self.g.items()}
        return {"rdf": {"r_A": self.r} | g | {f"n_{name}": value for name, value in self.neighbors.items()}}

    def __str__(self) -> str:
        parts = []
        for name, g in self.g.items():
            if name == "all" and len(self.g) > 1:
                continue
            top = int(g.argmax())
            parts.append(f"{name} highest at {self.r[top]:.2f} Å (g = {g[top]:.2f})")
        return f"rdf of {self.frames} frames: " + "; ".join(parts)

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


@check_keywords()
def rdf(frames: Frames, *, cutoff: float = 6.0, bins: int = 200) -> RadialDistribution:
    """Radial distribution function of each pair of elements.

    g(r) is the density of atoms of the second element at the distance r from one of the first, divided by
    their mean density. All periodic images count, so the cutoff may be longer than the cell. For uncorrelated
    atoms it is 1 - 1/N below the shortest lattice vector, because an atom is not its own neighbor.

    Parameters
    ----------
    frames : str, Path or sequence of ase.Atoms
        A trajectory that is periodic in three directions.
    cutoff : float, > 0
        Largest distance in Å.
    bins : int, >= 1
        Number of bins.

    Returns
    -------
    RadialDistribution
        g(r) and running coordination numbers.

    Raises
    ------
    DataError
        If the trajectory cannot be read, or is not periodic in three directions.
    ConfigError
        If cutoff or bins are out of range.

    Examples
    --------
    >>> from ase.build import bulk
    >>> copper = rdf([bulk("Cu", a=3.61)], cutoff=3.0, bins=30)
    >>> float(copper.neighbors["Cu-Cu"][-1])
    12.0
    """
    frames = read_frames(frames)
    _check_bins(cutoff, bins)
    for k, frame in enumerate(frames):
        if not (frame.pbc.all() and frame.cell.volume > 0):
            raise DataError(
                f"frame {k} has pbc={frame.pbc.tolist()}: g(r) needs a density, and so a structure that is "
                "periodic in three directions; for a molecule take bonds()"
            )
    edges = np.linspace(0, cutoff, bins + 1)
    names = elements_of(frames)
    pairs = list(combinations_with_replacement(names, 2))
    counts = {pair: np.zeros(bins) for pair in pairs}
    ideal = dict.fromkeys(pairs, 0.0)  # expected count per volume of shell
    number = {name: int((frames[0].symbols == name).sum()) for name in names}
    symbols = np.array(frames[0].get_chemical_symbols())
    for frame in frames:
        i, j, vectors = neighbor_vectors(frame, cutoff)
        distances = np.linalg.norm(vectors, axis=1)
        for a, b in pairs:
            chosen = (symbols[i] == a) & (symbols[j] == b)
            counts[a, b] += np.histogram(distances[chosen], edges)[0]
            ideal[a, b] += number[a] * number[b] / frame.cell.volume
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    labels = {pair: "-".join(pair) for pair in pairs}
    both = {pair: 1 if pair[0] == pair[1] else 2 for pair in pairs}
    g = {labels[pair]: counts[pair] / (ideal[pair] * shells) for pair in pairs}
    every = sum(counts[pair] * both[pair] for pair in pairs)
    density = sum(ideal[pair] * both[pair] for pair in pairs)
    g["all"] = every / (density * shells)
    near = {labels[a, b]: counts[a, b].cumsum() / (number[a] * len(frames)) for a, b in pairs}
    return RadialDistribution((edges[1:] + edges[:-1]) / 2, g, near, len(frames))


@dataclass(frozen=True)
class Distributions:
    """Result of `bonds` and `angles`; printed, mean and standard deviation of each kind.

    Parameters
    ----------
    what : str
        "bonds" or "angles".
    unit : str
        "Å" or "°".
    x : array, shape (B,)
        Centres of the bins.
    density : dict of str to array, shape (B,)
        Probability density of each kind, such as "C-H" or "H-C-H"; its integral is 1.
    averages : dict of str to Average
        Mean of each kind with its statistical error over the frames; ``std`` is that of single values and
        ``count`` their number.
    """

    what: str
    unit: str
    x: np.ndarray
    density: dict[str, np.ndarray]
    averages: dict[str, Average]

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """One table with the columns ``r_A`` or ``angle_deg`` and ``p_C-H``, …."""
        columns = {{"Å": "r_A", "°": "angle_deg"}[self.unit]: self.x}
        return {self.what: columns | {f"p_{name}": value for name, value in self.density.items()}}

    def __str__(self) -> str:
        if not self.averages:
            return f"{self.what}: none found"
        parts = [f"{name} {found} (σ {found.std:.3g}) {self.unit}" for name, found in self.averages.items()]
        return f"{self.what}: " + "; ".join(parts)

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


@check_keywords()
def bonds(frames: Frames, *, tolerance: float = 1.2, bins: int = 60) -> Distributions:
    """Distribution of bond lengths of each pair of elements.

    Atoms of a frame are bonded if their distance is below the sum of their covalent radii times `tolerance`.

    Parameters
    ----------
    frames : str, Path or sequence of ase.Atoms
        A trajectory.
    tolerance : float, > 0
        Factor of the covalent radii.
    bins : int, >= 1
        Number of bins.

    Returns
    -------
    Distributions
        Densities, means and standard deviations.

    Raises
    ------
    DataError
        If the trajectory cannot be read.
    ConfigError
        If tolerance or bins are out of range.

    Examples
    --------
    >>> from ase.build import molecule
    >>> print(bonds([molecule("H2O")]))
    bonds: H-O 0.968565 (σ 0) Å
    """
    frames = read_frames(frames)
    _check_bins(tolerance, bins, "tolerance")
    found: list[dict[str, np.ndarray]] = []
    for frame in frames:
        i, j, vectors = _bonds_of(frame, tolerance)
        kinds = [_label(frame.numbers[[a, b]]) for a, b in zip(i, j)]
        found.append(_by_kind(kinds, np.linalg.norm(vectors, axis=1)))
    return _distributions("bonds", "Å", found, bins, copies=2)  # each bond has two directions


@check_keywords()
def angles(frames: Frames, *, tolerance: float = 1.2, bins: int = 90) -> Distributions:
    """Distribution of the angles between two bonds of an atom, for each kind of the three elements.

    Parameters
    ----------
    frames : str, Path or sequence of ase.Atoms
        A trajectory.
    tolerance : float, > 0
        Factor of the covalent radii, as in `bonds`.
    bins : int, >= 1
        Number of bins.

    Returns
    -------
    Distributions
        Densities, means and standard deviations. The atom in the middle of a name is the vertex.

    Raises
    ------
    DataError
        If the trajectory cannot be read.
    ConfigError
        If tolerance or bins are out of range.

    Examples
    --------
    >>> from ase.build import molecule
    >>> print(angles([molecule("H2O")]))
    angles: H-O-H 104 (σ nan) °
    """
    frames = read_frames(frames)
    _check_bins(tolerance, bins, "tolerance")
    found: list[dict[str, np.ndarray]] = []
    for frame in frames:
        i, j, vectors = _bonds_of(frame, tolerance)
        units = vectors / np.linalg.norm(vectors, axis=1)[:, None]
        kinds, values = [], []
        for centre in np.unique(i):
            own = np.flatnonzero(i == centre)
            a, b = np.triu_indices(len(own), 1)
            cosines = np.clip((units[own[a]] * units[own[b]]).sum(1), -1, 1)
            values.append(np.degrees(np.arccos(cosines)))
            ends = frame.numbers[j[own]]
            kinds += [
                _label([low, frame.numbers[centre], high])
                for low, high in np.sort(np.stack([ends[a], ends[b]], 1), 1)
            ]
        found.append(_by_kind(kinds, np.concatenate([*values, np.zeros(0)])))
    return _distributions("angles", "°", found, bins)


def neighbor_vectors(frame: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of atoms closer than a cutoff, periodic images included.

    Parameters
    ----------
    frame : ase.Atoms
        The structure.
    cutoff : float
        Distance in Å.

    Returns
    -------
    tuple of arrays
        First atoms (E,), second atoms (E,) and vectors from the first to the second (E, 3) in Å; each pair in
        both directions.
    """
    periodic = frame.pbc.any() and frame.cell.rank == 3
    graph = Graph.single(
        torch.from_numpy(np.array(frame.positions)),
        frame.numbers,
        cell=torch.from_numpy(np.array(frame.cell.array)) if periodic else None,
        pbc=frame.pbc if periodic else None,
    )
    graph = connect(graph, cutoff)
    assert graph.edge_index is not None  # connected
    second, first = graph.edge_index.numpy()  # sender, receiver
    return first, second, graph.edge_vectors().numpy()


def _bonds_of(frame: Atoms, tolerance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    radii = covalent_radii[frame.numbers]
    i, j, vectors = neighbor_vectors(frame, float(2 * radii.max() * tolerance))
    near = np.linalg.norm(vectors, axis=1) < tolerance * (radii[i] + radii[j])
    return i[near], j[near], vectors[near]


def _label(numbers: Sequence[int] | np.ndarray) -> str:
    """Symbols with hyphens: the order of three atoms is kept, of two the lighter element is first."""
    order = sorted(numbers) if len(numbers) == 2 else numbers
    return "-".join(Atoms(numbers=list(order)).get_chemical_symbols())


def _by_kind(kinds: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    names = np.array(kinds, dtype=str)
    return {str(name): values[names == name] for name in np.unique(names)}


def _distributions(
    what: str, unit: str, found: Sequence[dict[str, np.ndarray]], bins: int, copies: int = 1
) -> Distributions:
    """Histograms over all frames, and averages with errors over the means of the frames.

    Each value is there `copies` times.
    """
    kinds = sorted({name for frame in found for name in frame})
    values = {name: np.concatenate([frame[name] for frame in found if name in frame]) for name in kinds}
    every = np.concatenate([*values.values(), np.zeros(0)])
    low, high = (
        (0.0, 180.0) if unit == "°" else (every.min() - 0.05, every.max() + 0.05) if len(every) else (0, 1)
    )
    edges = np.linspace(low, high, bins + 1)
    density = {name: np.histogram(value, edges, density=True)[0] for name, value in values.items()}
    averages = {}
    for name, value in values.items():
        mean = block_average([frame[name].mean() for frame in found if name in frame])
        count = len(value) // copies
        std = float(value.std() * np.sqrt(count / (count - 1))) if count > 1 else float("nan")
        averages[name] = Average(float(value.mean()), mean.error, std, count)
    return Distributions(what, unit, (edges[1:] + edges[:-1]) / 2, density, averages)


def _check_bins(length: float, bins: int, name: str = "cutoff") -> None:
    if not (np.isfinite(length) and length > 0):
        raise ConfigError(f"{name}={length!r}: wanted a number above zero")
    if not isinstance(bins, (int, np.integer)) or isinstance(bins, bool) or bins < 1:
        raise ConfigError(f"bins={bins!r}: wanted a whole number above zero")
