"""Figures, colours and panels that all pictures share."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure

COLOURS = {"train": "#9aa5b1", "valid": "#2f6db3", "test": "#c4472b"}


class Figure(MatplotlibFigure):
    """A matplotlib Figure that a notebook shows as a picture, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def make_panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels of equal size, at most three in a row.

    Parameters
    ----------
    count : int
        Number of panels.
    """
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.8 * rows), dpi=120, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]
