"""Pictures of molecules and trajectories."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from molequi.errors import DataError
from molequi.graph import Graph
from molequi.plotting.drawing import direction, draw_structure, name_elements
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
    draw_structure(axis, atoms, direction(elevation, azimuth), size)
    name_elements(figure, atoms.numbers)
    return figure
