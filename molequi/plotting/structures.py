"""Pictures of molecules and trajectories."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from molequi.errors import DataError
from molequi.graph import Graph
from molequi.plotting.figure import COLOURS, Figure
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
    figure = Figure(figsize=(7, 0.6 + 1.9 * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, curves.items()):
        what, _, unit = name.rpartition("_")
        axis.plot(time, values, linewidth=0.9, color=COLOURS["valid"])
        axis.set_ylabel(f"{what.replace('_', ' ')} ({unit})" if what else name)
        axis.ticklabel_format(useOffset=False)
    axes[-1].set_xlabel("time (ps)")
    axes[0].set_title(title)
    return figure


def molecule(
    structure: "Atoms | Graph", *, elevation: float = 20.0, azimuth: float = -60.0, size: float = 4.0
) -> Figure:
    """A structure in space: atoms as balls, bonds, and the cell if there is one.

    Atoms are bonded if their distance is below 1.2 times the sum of their covalent radii.

    Parameters
    ----------
    structure : ase.Atoms or Graph
        One structure in three dimensions.
    elevation, azimuth : float
        Direction of view in degrees.
    size : float
        Width and height of the figure in inches.
    """
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors

    atoms = to_atoms(structure) if isinstance(structure, Graph) else structure
    positions, numbers = atoms.positions, atoms.numbers
    figure = Figure(figsize=(size, size), layout="constrained")
    axis = figure.add_subplot(projection="3d")
    radii = covalent_radii[numbers]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    for i, j in zip(*np.nonzero(np.triu(distance < 1.2 * (radii[:, None] + radii[None]), 1))):
        middle = (positions[i] + positions[j]) / 2
        for end in (i, j):
            # A shade darker than the ball, so that bonds of hydrogen are seen on white.
            axis.plot(
                *np.stack([positions[end], middle]).T,
                color=0.8 * jmol_colors[numbers[end]],
                linewidth=3,
                zorder=1,
            )
    low, high = positions.min(0), positions.max(0)
    if atoms.cell.rank == 3 and atoms.pbc.any():
        corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
        for a in corners:
            for b in corners:
                if (b - a).sum() == 1 and np.abs(b - a).sum() == 1:
                    axis.plot(*np.stack([a @ atoms.cell, b @ atoms.cell]).T, color="#777777", linewidth=0.8)
        low, high = (
            np.minimum(low, (corners @ atoms.cell).min(0)),
            np.maximum(high, (corners @ atoms.cell).max(0)),
        )
    span = max((high - low).max(), 1.0)
    scale = (60 * size / span) ** 2 / 4
    axis.scatter(
        *positions.T,
        s=scale * radii**2,
        c=jmol_colors[numbers],
        edgecolors="black",
        linewidths=0.5,
        depthshade=False,
        zorder=2,
    )
    middle = (low + high) / 2
    axis.set(
        xlim=(middle[0] - span / 2, middle[0] + span / 2),
        ylim=(middle[1] - span / 2, middle[1] + span / 2),
        zlim=(middle[2] - span / 2, middle[2] + span / 2),
    )
    axis.set_box_aspect((1, 1, 1), zoom=1.3)
    axis.set_axis_off()
    axis.view_init(elevation, azimuth)
    return figure
