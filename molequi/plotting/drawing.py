"""Structures in a panel: atoms as balls, bonds, cell, arrows; in parallel projection."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from molequi.plotting.figure import Figure

_MOST_BONDS = 2000  # atoms; the distances of more atoms are not computed


@dataclass(frozen=True)
class Arrows:
    """Arrows in a structure.

    Parameters
    ----------
    starts, vectors : array, shape (n, 3)
        Where they begin, and where they point, in Å.
    colour : str
        Their colour.
    """

    starts: np.ndarray
    vectors: np.ndarray
    colour: str


def direction(elevation: float, azimuth: float) -> np.ndarray:
    """The axes of a view: rows to the right, up, and towards the viewer.

    Parameters
    ----------
    elevation, azimuth : float
        Direction of the viewer in degrees.

    Returns
    -------
    array, shape (3, 3)
    """
    e, a = np.radians([elevation, azimuth])
    towards = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    return np.stack([right, np.cross(towards, right), towards])


def draw_structure(
    axis: Axes,
    atoms: Atoms,
    view: np.ndarray,
    size: float,
    colours: np.ndarray | None = None,
    arrows: Sequence[Arrows] = (),
) -> None:
    """Draw a structure, and fit the panel to it.

    Parameters
    ----------
    axis : Axes
        An empty panel.
    atoms : ase.Atoms
        The structure.
    view : array, shape (3, 3)
        As `direction` gives it.
    size : float
        Width of the panel in inches, for the width of bonds.
    colours : array, shape (N, 3), optional
        Colours of the atoms as red, green and blue from 0 to 1. By default those of the elements.
    arrows : sequence of Arrows
        Drawn above the atoms.
    """
    shades = jmol_colors[atoms.numbers] if colours is None else colours
    places, depths = atoms.positions @ view[:2].T, atoms.positions @ view[2]
    radii = np.maximum(0.6 * covalent_radii[atoms.numbers], 0.15)
    edges = _cell_edges(atoms)
    ends = edges.reshape(-1, 3) @ view.T
    tips = [(a.starts + a.vectors) @ view[:2].T for a in arrows]
    low = np.min([(places - radii[:, None]).min(0), *ends[:, :2], *(t.min(0) for t in tips)], axis=0)
    high = np.max([(places + radii[:, None]).max(0), *ends[:, :2], *(t.max(0) for t in tips)], axis=0)
    span, middle = max(1.04 * (high - low).max(), 2.0), (low + high) / 2
    for one in edges:
        flat = one @ view.T
        axis.plot(*flat[:, :2].T, color="#777777", linewidth=0.8, zorder=float(flat[:, 2].min()))
    _draw_bonds(axis, atoms, places, depths, shades, 72 * size / span * 0.22)  # 0.22 Å wide
    for place, depth, radius, shade in zip(places, depths, radii, shades):
        axis.add_patch(
            Circle(
                place, radius, facecolor=shade, edgecolor="black", linewidth=0.6, zorder=float(depth) + 0.5
            )
        )
    for one, tip in zip(arrows, tips):
        start = one.starts @ view[:2].T
        axis.quiver(
            *start.T,
            *(tip - start).T,
            angles="xy",
            scale_units="xy",
            scale=1,
            color=one.colour,
            width=0.008,
            zorder=float(depths.max()) + 1,
        )
    axis.set(
        xlim=(middle[0] - span / 2, middle[0] + span / 2),
        ylim=(middle[1] - span / 2, middle[1] + span / 2),
        aspect="equal",
    )
    axis.set_axis_off()


def _draw_bonds(
    axis: Axes, atoms: Atoms, places: np.ndarray, depths: np.ndarray, shades: np.ndarray, width: float
) -> None:
    for i, j in _bonds(atoms):
        half = (places[i] + places[j]) / 2
        for end in (i, j):
            # A shade darker than the ball, so that bonds of hydrogen are seen on white. The half of the
            # deeper atom is drawn before its ball, and the other half after it.
            axis.plot(
                *np.stack([places[end], half]).T,
                color=0.8 * shades[end],
                linewidth=width,
                solid_capstyle="butt",
                zorder=float(min(depths[i], depths[j]) + 0.49 * (depths[end] > depths[[i, j]].min())),
            )


def _cell_edges(atoms: Atoms) -> np.ndarray:
    """Both ends of the twelve edges of a periodic cell, shape (12, 2, 3); none without a cell."""
    if atoms.cell.rank < 3 or not atoms.pbc.any():
        return np.zeros((0, 2, 3))
    corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    pairs = [(a, b) for a in corners for b in corners if (b - a).sum() == 1 and np.abs(b - a).sum() == 1]
    return np.array(pairs) @ atoms.cell.array


def _bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Pairs of bonded atoms."""
    if len(atoms) > _MOST_BONDS or not atoms.numbers.any():
        return []
    radii = covalent_radii[atoms.numbers]
    distance = np.linalg.norm(atoms.positions[:, None] - atoms.positions[None], axis=-1)
    bonded = np.triu(distance < 1.2 * (radii[:, None] + radii[None]), 1)
    bonded &= (atoms.numbers[:, None] > 0) & (atoms.numbers[None] > 0)
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(bonded))]


def name_elements(figure: Figure, numbers: np.ndarray) -> None:
    """A legend of elements below a picture; none for clouds of points.

    Parameters
    ----------
    figure : Figure
        The picture.
    numbers : array of int
        Atomic numbers.
    """
    elements = sorted({int(z) for z in numbers if z > 0}, reverse=True)
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
        for z in elements
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
