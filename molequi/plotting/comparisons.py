"""Pictures of networks that were trained on the same data."""

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from molequi.inference.comparisons import Comparison
from molequi.plotting.figure import Figure, legend_below, make_panels, plain_log_scale, with_unit

# Of each kind of network, one style after the other: black and white, two of a kind still differ.
_STYLES: dict[str, tuple[Any, ...]] = {
    "strict": ("-", (0, (8, 1)), (0, (12, 1, 3, 1))),
    "approximate": ("--", (0, (5, 1, 1, 1)), (0, (5, 1, 1, 1, 1, 1))),
    "unconstrained": (":", (0, (1, 3)), (0, (1, 1, 1, 4))),
}
_MARKERS = "os^Dv<>Pp*X"


def comparison(found: Comparison) -> Figure:
    """Validation error against the seconds of the training, and error against the number of structures.

    Strict networks have solid lines, approximately equivariant ones dashed, unconstrained ones dotted lines.
    Networks of the same kind differ in the lengths of the dashes, and all in their markers.
    There is a line for each seed against the seconds, and the mean over the seeds against the structures. The
    second panel is drawn if there are several numbers of structures.

    Parameters
    ----------
    found : Comparison
        Result of `molequi.compare`.
    """
    figure, axes = make_panels(2 if len(found.sizes) > 1 else 1)
    _seconds(axes[0], found)
    if len(found.sizes) > 1:
        _structures(axes[1], found)
    handles = {h.get_label(): h for axis in axes for h in axis.get_legend_handles_labels()[0]}
    legend_below(figure, list(handles.values()), len(axes))
    return figure


def _looks(found: Comparison) -> dict[str, dict[str, Any]]:
    """Colour, style and marker of the line of each network."""
    looks, before = {}, Counter[str]()
    for k, network in enumerate(found.networks):
        styles = _STYLES[network.kind]
        looks[network.name] = {
            "color": f"C{k % 10}",
            "linestyle": styles[before[network.kind] % len(styles)],
            "marker": _MARKERS[k % len(_MARKERS)],
            "markersize": 4,
        }
        before[network.kind] += 1
    return looks


def _label(found: Comparison, part: str) -> str:
    name = f"{found.quantity.replace('_', ' ')}, {part} {found.kind(found.quantity)}"
    return with_unit(name, found.shown(found.quantity)[1])


def _seconds(axis: Axes, found: Comparison) -> None:
    """Validation error against time."""
    factor, _ = found.shown(found.quantity)
    values: list[float] = []
    looks = _looks(found)
    for network in found.networks:
        for number, trial in enumerate(t for t in found.of(network.name) if t.curve):
            seconds, errors = np.array(trial.curve).T
            values += (factor * errors[errors > 0]).tolist()
            label = "" if number else network.name
            axis.plot(
                seconds, factor * errors, **looks[network.name], linewidth=1.3, markevery=0.15, label=label
            )
    axis.set(xlabel=f"{found.clock} seconds of the training", ylabel=_label(found, "validation"))
    if values:
        low, high = min(values), float(np.quantile(values, 0.98))
        plain_log_scale(axis, low / 1.1, 1.1 * high)
        axis.set_ylim(low / 1.1, 1.1 * high)


def _structures(axis: Axes, found: Comparison) -> None:
    """Error against the number of structures."""
    factor, _ = found.shown(found.quantity)
    looks = _looks(found)
    for network in found.networks:
        means = [found.mean(network.name, found.part, found.quantity, size)[0] for size in found.sizes]
        axis.plot(found.sizes, factor * np.array(means), **looks[network.name], label=network.name)
    axis.set(xscale="log", xlabel="training structures", ylabel=_label(found, found.part))
    axis.set_xticks(found.sizes, [f"{size:,}" for size in found.sizes])
    axis.set_xticks([], minor=True)
