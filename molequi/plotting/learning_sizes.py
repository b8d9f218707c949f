"""Pictures of errors against the number of training structures."""

import numpy as np
from matplotlib.axes import Axes

from molequi.errors import DataError
from molequi.inference.learning_curves import LearningCurve
from molequi.plotting.figure import (
    Figure,
    legend_below,
    make_panels,
    part_colours,
    plain_log_scale,
    with_unit,
)


def size_curve(found: LearningCurve) -> Figure:
    """Errors against the number of training structures, with power laws n^-b and their 95 % intervals.

    Both axes are logarithmic, so that a power law is a straight line. It is extended to four times the
    largest number of structures.

    Parameters
    ----------
    found : LearningCurve
        Result of `molequi.learning_curve`.
    """
    figure, axes = make_panels(len(found.units))
    for axis, quantity in zip(axes, found.units):
        _panel(axis, found, quantity)
    handles = {h.get_label(): h for axis in axes for h in axis.get_legend_handles_labels()[0]}
    legend_below(figure, list(handles.values()), len(axes))
    return figure


def _panel(axis: Axes, found: LearningCurve, quantity: str) -> None:
    """Errors of one quantity."""
    colours = part_colours(["train", found.part])
    sizes = np.array([point.structures for point in found.points])
    factor, unit = found.shown(quantity)
    trained = factor * np.array([point.training[quantity] for point in found.points])
    errors = factor * np.array([point.errors[quantity] for point in found.points])
    axis.plot(sizes, trained, "o", markersize=4, color=colours["train"], label="train")
    axis.plot(sizes, errors, "o", markersize=5, color=colours[found.part], label=found.part)
    numbers = np.geomspace(sizes.min(), 4 * sizes.max(), 100)
    try:
        law = found.law(quantity)
    except DataError:  # too few sizes, or an error of zero
        law = None
    if law is not None:
        middle, low, high = (factor * values for values in law.band(numbers))
        axis.plot(numbers, middle, color=colours[found.part], linewidth=1.2, label="power law")
        axis.fill_between(
            numbers, low, high, color=colours[found.part], alpha=0.15, linewidth=0, label="95 % interval"
        )
        shown = np.concatenate([errors, trained[trained > 0], middle])
        bottom = min(shown.min(), max(low.min(), shown.min() / 3))
        limits = bottom / 1.1, 1.1 * max(shown.max(), min(high.max(), 3 * shown.max()))
        plain_log_scale(axis, *limits)
        axis.set_ylim(limits)
        reliable = ", not reliable" if found.doubts(quantity) else ""
        axis.set_title(f"error ∝ structures^{-law.exponent:.2f}{reliable}", fontsize=10)
    axis.set(xscale="log", xlabel="training structures")
    ticks = np.unique([*sizes, 4 * sizes.max()])
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_ylabel(with_unit(f"{quantity.replace('_', ' ')}, {found.kind(quantity)}", unit))
