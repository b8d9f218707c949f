"""Figures, colours and panels that all pictures share."""

import io
from collections.abc import Iterable, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

BLUE, RED, GREY = "#2f6db3", "#c4472b", "#9aa5b1"
# Parts of the data. The colours are those of Okabe and Ito, which people with any colour vision can tell
# apart.
PARTS = {"train": "#0072b2", "valid": "#e69f00", "test": "#009e73"}
FURTHER = ("#cc79a7", "#56b4e9", "#d55e00", "#000000", "#f0e442")


class Figure(MatplotlibFigure):
    """A matplotlib Figure that a notebook shows as a picture, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def make_panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels of equal size, at most three in a row, or two in a row if there are four.

    Parameters
    ----------
    count : int
        Number of panels.
    """
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.9 * rows), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[call-arg, union-attr]
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def part_colours(parts: Iterable[str]) -> dict[str, str]:
    """A colour for each part of the data, always the same one for train, valid and test.

    Parameters
    ----------
    parts : iterable of str
        Names of the parts.

    Examples
    --------
    >>> len(set(part_colours(["train", "test", "600 K", "900 K"]).values()))
    4
    """
    others = [part for part in parts if part not in PARTS]
    further = {part: FURTHER[k % len(FURTHER)] for k, part in enumerate(others)}
    return {part: {**PARTS, **further}[part] for part in parts}


def legend_above(axis: Axes, columns: int = 1) -> None:
    """Put the legend above the panel, where it covers nothing.

    Parameters
    ----------
    axis : Axes
        The panel; its lines and points have labels.
    columns : int
        Number of columns of the legend.
    """
    axis.legend(
        fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2
    )


def legend_below(figure: Figure, handles: Sequence[Artist], panels: int) -> None:
    """Put one legend for all panels below the figure.

    Parameters
    ----------
    figure : Figure
        The figure.
    handles : sequence of Artist
        Lines, points and areas with labels.
    panels : int
        Number of panels; below a single one the legend has two columns.
    """
    columns = 2 if panels == 1 else 4
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def unit_text(unit: str) -> str:
    """A unit with raised exponents.

    Parameters
    ----------
    unit : str
        Unit of a Quantity.

    Examples
    --------
    >>> unit_text("eV/Å^3")
    'eV/Å³'
    """
    return unit.replace("^2", "²").replace("^3", "³")


def with_unit(text: str, unit: str) -> str:
    """The label of an axis: a name, and in parentheses the unit if there is one.

    Parameters
    ----------
    text : str
        What is drawn.
    unit : str
        Its unit.

    Examples
    --------
    >>> with_unit("stress", "eV/Å^3"), with_unit("logS", "")
    ('stress (eV/Å³)', 'logS')
    """
    return f"{text} ({unit_text(unit)})" if unit else text


def plain_log_scale(axis: Axes, low: float, high: float) -> None:
    """A logarithmic vertical axis, whose ticks are plain numbers (0.2, 0.5, 1) if it spans few decades.

    Parameters
    ----------
    axis : Axes
        The panel.
    low, high : float
        Smallest and largest value that is drawn.
    """
    axis.set_yscale("log")
    decades = high / low
    steps = (1.0,) if decades > 300 else (1.0, 2.0, 5.0) if decades > 10 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    if decades > 3:
        axis.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:  # less than half a decade: as on a linear axis
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axis.yaxis.set_minor_locator(LogLocator(subs=()))
    plain = low >= 1e-4 and high < 1e5
    axis.yaxis.set_major_formatter(_PlainNumbers() if plain else LogFormatterSciNotation())


def whole_numbers(axis: Axes) -> None:
    """Whole numbers as ticks of the horizontal axis, for epochs and steps.

    Parameters
    ----------
    axis : Axes
        The panel.
    """
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def error_text(value: float, unit: str, largest: float | None = None) -> str:
    """An error with its unit, in thousandths of it for energies below 1 eV.

    Parameters
    ----------
    value : float
        The error.
    unit : str
        Its unit.
    largest : float, optional
        The largest of several errors that are shown together: all have the unit of this one.

    Examples
    --------
    >>> error_text(0.0421, "eV/Å"), error_text(1.5, "eV"), error_text(0.5, "eV", largest=1.5)
    ('42.1 meV/Å', '1.5 eV', '0.5 eV')
    """
    if unit.startswith("eV") and (value if largest is None else largest) < 1:
        return f"{value * 1000:.3g} m{unit_text(unit)}"
    return f"{value:.3g} {unit_text(unit)}".strip()


class _PlainNumbers(ScalarFormatter):
    """Ticks as 0.005, 20, 3000."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.4g}"
