"""Pictures of the calibration of ensembles."""

import os
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from molequi.data.indexing import evenly_spaced
from molequi.ensemble import Ensemble
from molequi.errors import DataError
from molequi.inference.calibration import NORMAL, Calibration
from molequi.inference.calibration import calibration as measure_calibration
from molequi.inference.metrics import named_part
from molequi.plotting.figure import BLUE, GREY, RED, Figure, legend_below, make_panels, with_unit


def calibration(
    model: Ensemble | str | os.PathLike[str],
    data: Any,
    *,
    bins: int = 12,
    limit: int = 3000,
    **options: Any,
) -> Figure:
    """Errors of an ensemble against its standard deviations, with a panel for each quantity.

    Large points are the root mean square error over the root mean square standard deviation of groups of
    values, ordered by standard deviation. They lie on the diagonal if the standard deviations are as large as
    the errors. Small points are single components. The title has the factor that calibrates the ensemble, the
    fractions of errors within one and two standard deviations (before → after calibration, and of a normal
    distribution), and the miscalibration; see `molequi.inference.Calibration`.

    Parameters
    ----------
    model : Ensemble, str or Path
        The ensemble, or its file.
    data : object
        A Dataset, or what `molequi.load_dataset` takes.
    bins : int
        Number of groups, of equal size.
    limit : int
        At most so many single components are drawn, evenly spaced.
    **options
        As in `molequi.evaluate`.

    Raises
    ------
    ConfigError
        For a single model.
    DataError
        If there are no labels of numbers, or if all members predict the same.
    """
    found = measure_calibration(model, data, **options)
    same = [name for name, one in found.items() if not np.isfinite(one.scale)]
    if same:
        raise DataError(
            f"{', '.join(same)}: all members of the ensemble predict the same for these structures, so there "
            "is no standard deviation to compare errors with; wanted members that were trained from "
            "different initial weights, and structures for which they differ"
        )
    if not found:
        raise DataError(
            "nothing to draw: the data have no labels of numbers, vectors or tensors that the ensemble "
            "predicts"
        )
    figure, axes = make_panels(len(found))
    for axis, (name, one) in zip(axes, found.items()):
        _calibration_panel(axis, name, one, bins, limit)
    legend_below(figure, axes[0].get_legend_handles_labels()[0], len(axes))
    return figure


def _calibration_panel(axis: Axes, name: str, one: Calibration, bins: int, limit: int) -> None:
    """Errors against standard deviations of one quantity."""
    rescaled = one.scaled(one.scale)
    shown = evenly_spaced(len(one.error), limit)
    axis.plot(
        one.std[shown],
        np.abs(one.error)[shown],
        ".",
        markersize=2,
        alpha=0.4,
        color=GREY,
        rasterized=True,
        label=named_part(
            "single components", (len(shown), len(one.error)) if len(shown) < len(one.error) else None
        ),
    )
    std, error = one.bins(bins)
    axis.plot(std, error, "o", markersize=5, color=BLUE, label="root mean squares of groups")
    ends = np.array([min(std.min(), error.min()), max(std.max(), error.max())])
    axis.plot(ends, ends, color="black", linewidth=0.8, label="error = std")
    axis.plot(
        ends,
        one.scale * ends,
        "--",
        color=RED,
        linewidth=0.8,
        label="error = scale × std",
    )
    low = ends[ends > 0].min(initial=ends[1]) / 5
    axis.set(
        xscale="log",
        yscale="log",
        xlim=(low, 5 * ends[1]),
        ylim=(low / 5, 5 * ends[1]),
        xlabel=with_unit(f"{name}, standard deviation", one.unit),
        ylabel=with_unit(f"{name}, error", one.unit),
    )
    within = [
        f"{a:.0%} → {b:.0%} ({normal:.0%})" for a, b, normal in zip(one.within, rescaled.within, NORMAL)
    ]
    axis.set_title(
        f"scale {one.scale:.3g}; within 1, 2 std:\n{', '.join(within)}\n"
        f"miscalibration {one.miscalibration:.3f} → {rescaled.miscalibration:.3f}",
        fontsize=9,
    )
