"""Pictures of errors against the number of training structures."""

import numpy as np

from molequi.errors import DataError
from molequi.inference.learning_curves import LearningCurve
from molequi.plotting.figure import Figure, legend_above, make_panels, part_colours, with_unit


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
    colours = part_colours(["train", found.part])
    sizes = np.array([point.structures for point in found.points])
    for axis, quantity in zip(axes, found.units):
        factor, unit = found.shown(quantity)
        for label, values in (
            ("train", [point.training[quantity] for point in found.points]),
            (found.part, [point.errors[quantity] for point in found.points]),
        ):
            axis.plot(sizes, factor * np.array(values), "o", markersize=4, color=colours[label], label=label)
        numbers = np.geomspace(sizes.min(), 4 * sizes.max(), 100)
        try:
            middle, low, high = (factor * values for values in found.law(quantity).band(numbers))
        except DataError:  # too few sizes, or an error of zero
            pass
        else:
            label = f"b = {found.law(quantity).exponent:.2f}" + (
                ", not reliable" if found.doubts(quantity) else ""
            )
            axis.plot(numbers, middle, color=colours[found.part], linewidth=1, label=label)
            axis.fill_between(
                numbers, low, high, color=colours[found.part], alpha=0.15, linewidth=0, label="95 %"
            )
            axis.set_yscale("log")
            largest = factor * max(point.errors[quantity] for point in found.points)
            axis.set_ylim(max(axis.get_ylim()[0], middle.min() / 10), min(axis.get_ylim()[1], 10 * largest))
        name = quantity.replace("_", " ")
        axis.set(xscale="log", xlabel="training structures")
        axis.set_ylabel(with_unit(f"{name}, {found.kind(quantity)}", unit))
        legend_above(axis, columns=4)
    return figure
