"""Pictures of molecules and trajectories."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from molequi.errors import DataError
from molequi.graph import Graph
from molequi.plotting.figure import BLUE, Figure
from molequi.readers import to_atoms

if TYPE_CHECKING:
    from ase import Atoms

Curve = Sequence[float] | np.ndarray


def trajectory(time: Curve, *, title: str = "", **curves: Curve) -> Figure:
    """Curves over the time of a simulation, one below the other.

    Parameters
    ----------
    time : array, shape (T,)
        Times in ps.
    title : str
        Title above the first curve.
    **curves : array, shape (T,)
        Curves by name. The part of a name after its last underscore is the unit.

    Raises
    ------
    DataError
        If there are no curves, or if one has another length than the times.

    Examples
    --------
    >>> figure = trajectory([0.0, 0.1], energy_eV=[1.0, 1.1], temperature_K=[300, 310])
    >>> [axis.get_ylabel() for axis in figure.axes]
    ['energy (eV)', 'temperature (K)']
    """
    if not curves:
        raise DataError("nothing to draw: give curves by name, such as energy_eV=[...]")
    for name, values in curves.items():
        if len(values) != len(time):
            raise DataError(f"{name} has {len(values)} values for {len(time)} times")
    figure = Figure(figsize=(7, 0.6 + 1.9 * len(curves)), dpi=120, layout="constrained")
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, curves.items()):
        what, _, unit = name.rpartition("_")
        axis.plot(time, values, linewidth=0.9, color=BLUE)
        axis.set_ylabel(f"{what.replace('_', ' ')} ({unit})" if what else name)
        axis.ticklabel_format(useOffset=False)
        axis.margins(x=0.01)
    axes[-1].set_xlabel("time (ps)")
    figure.align_ylabels(axes)
    axes[0].set_title(title)
    return figure


def molecule(
    structure: "Atoms | Graph", *, elevation: float = 20.0, azimuth: float = -60.0, size: float = 4.0
) -> Figure:
    """A structure in space: atoms as balls, bonds, and the whole cell if there is one.

    It is a parallel projection. Atoms are bonded if their distance is below 1.2 times the sum of their
    covalent radii; bonds across the boundaries of a cell and bonds between points of a cloud are not drawn.

    Parameters
    ----------
    structure : ase.Atoms or Graph
        One structure in three dimensions.
    elevation, azimuth : float
        Direction of view in degrees.
    size : float
        Width and height of the figure in inches.

    Examples
    --------
    >>> from ase.build import molecule as build
    >>> figure = molecule(build("H2O"))
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['O', 'H']
    """
    atoms = to_atoms(structure) if isinstance(structure, Graph) else structure
    figure = Figure(figsize=(size, size), dpi=120, layout="constrained")
    axis = figure.add_subplot()
    view = _view(elevation, azimuth)
    places, depths = atoms.positions @ view[:2].T, atoms.positions @ view[2]
    radii = np.maximum(0.6 * covalent_radii[atoms.numbers], 0.15)
    edges = _cell_edges(atoms)
    ends = edges.reshape(-1, 3) @ view.T
    low = np.min([(places - radii[:, None]).min(0), *ends[:, :2]], axis=0)
    high = np.max([(places + radii[:, None]).max(0), *ends[:, :2]], axis=0)
    span, middle = max(1.04 * (high - low).max(), 2.0), (low + high) / 2
    for one in edges:
        flat = one @ view.T
        axis.plot(*flat[:, :2].T, color="#777777", linewidth=0.8, zorder=float(flat[:, 2].min()))
    width = 72 * size / span * 0.22  # points, for a bond of 0.22 Å
    for i, j in _bonds(atoms):
        half = (places[i] + places[j]) / 2
        for end in (i, j):
            # A shade darker than the ball, so that bonds of hydrogen are seen on white. The half of the
            # deeper atom is drawn before its ball, and the other half after it.
            axis.plot(
                *np.stack([places[end], half]).T,
                color=0.8 * jmol_colors[atoms.numbers[end]],
                linewidth=width,
                solid_capstyle="butt",
                zorder=float(min(depths[i], depths[j]) + 0.49 * (depths[end] > depths[[i, j]].min())),
            )
    for place, depth, radius, number in zip(places, depths, radii, atoms.numbers):
        axis.add_patch(
            Circle(
                place,
                radius,
                facecolor=jmol_colors[number],
                edgecolor="black",
                linewidth=0.6,
                zorder=float(depth) + 0.5,
            )
        )
    axis.set(
        xlim=(middle[0] - span / 2, middle[0] + span / 2),
        ylim=(middle[1] - span / 2, middle[1] + span / 2),
        aspect="equal",
    )
    axis.set_axis_off()
    _name_elements(figure, atoms)
    return figure


def _view(elevation: float, azimuth: float) -> np.ndarray:
    """Rows: to the right, up, and towards the viewer."""
    e, a = np.radians([elevation, azimuth])
    towards = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    return np.stack([right, np.cross(towards, right), towards])


def _cell_edges(atoms: "Atoms") -> np.ndarray:
    """Both ends of the twelve edges of a periodic cell, shape (12, 2, 3); none without a cell."""
    if atoms.cell.rank < 3 or not atoms.pbc.any():
        return np.zeros((0, 2, 3))
    corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    pairs = [(a, b) for a in corners for b in corners if (b - a).sum() == 1 and np.abs(b - a).sum() == 1]
    return np.array(pairs) @ atoms.cell.array


def _bonds(atoms: "Atoms") -> list[tuple[int, int]]:
    """Pairs of bonded atoms."""
    radii = covalent_radii[atoms.numbers]
    distance = np.linalg.norm(atoms.positions[:, None] - atoms.positions[None], axis=-1)
    bonded = np.triu(distance < 1.2 * (radii[:, None] + radii[None]), 1)
    bonded &= (atoms.numbers[:, None] > 0) & (atoms.numbers[None] > 0)
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(bonded))]


def _name_elements(figure: Figure, atoms: "Atoms") -> None:
    """A legend of the elements below the picture; none for clouds of points."""
    numbers = sorted({int(z) for z in atoms.numbers if z > 0}, reverse=True)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=7,
            markerfacecolor=jmol_colors[z],
            markeredgecolor="black",
            markeredgewidth=0.6,
            label=chemical_symbols[z],
        )
        for z in numbers
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
