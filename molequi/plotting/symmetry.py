"""Pictures of symmetry: audits, discovery, selection, and the hypothesis test of the data."""

import numpy as np

from molequi.approximate.report import SYMMETRIC, WEAK, LayerwiseEquivariance
from molequi.audit.lie import LieReport
from molequi.audit.report import Report
from molequi.data_symmetry.report import SymmetryTestReport
from molequi.discovery.curves import SymmetryCurves
from molequi.discovery.generators import SymmetryGenerators
from molequi.discovery.spectrum import OrbitSpectrum
from molequi.errors import DataError
from molequi.plotting.figure import BLUE, GREY, RED, Figure, legend_above, make_panels, whole_numbers
from molequi.util.html import FAILS, HOLDS, UNKNOWN


def orbit_spectrum(found: OrbitSpectrum) -> Figure:
    """Shares of a function by degree, with standard deviations.

    Parameters
    ----------
    found : OrbitSpectrum
        Result of `molequi.discovery.orbit_spectrum`.
    """
    figure, (axis,) = make_panels(1)
    labels, values = [*found.shares, "higher"], [*found.shares.values(), found.remainder]
    axis.bar(labels, values, color=BLUE)
    axis.errorbar(
        list(found.shares),
        list(found.shares.values()),
        list(found.standard_deviation.values()),
        fmt="none",
        ecolor="black",
        linewidth=0.8,
    )
    axis.set(
        xlabel="degree",
        ylabel=f"share of {_function_name(found.name)}",
        ylim=(min(0.0, *values), 1.05),
        title=f"{found.n_structures} structures",
    )
    return figure


def symmetry_generators(found: SymmetryGenerators) -> Figure:
    """Singular values of the search for continuous symmetries; those below the line are symmetries.

    Parameters
    ----------
    found : SymmetryGenerators
        Result of `molequi.discovery.symmetry_generators`.
    """
    figure, (axis,) = make_panels(1)
    values = np.maximum(found.singular_values, 1e-18)
    held = np.arange(1, len(values) + 1) > len(values) - found.dimension
    for mask, colour, label in (
        (~held, RED, "no symmetry"),
        (held, BLUE, "symmetry"),
    ):
        axis.plot(np.arange(1, len(values) + 1)[mask], values[mask], "o", color=colour, label=label)
    axis.axhline(found.tolerance, color="black", linewidth=0.8, label="tolerance")
    axis.set(
        xlabel="motion",
        ylabel="relative change",
        yscale="log",
    )
    axis.set_title(f"{_function_name(found.name)}: {found.dimension} continuous symmetries", pad=22)
    whole_numbers(axis)
    legend_above(axis, columns=3)
    return figure


def symmetry_curves(found: SymmetryCurves) -> Figure:
    """Symmetry measures of several models, such as the epochs of a training.

    Shares have a linear scale, errors a logarithmic one.

    Parameters
    ----------
    found : SymmetryCurves
        Result of `molequi.discovery.symmetry_curves`.
    """
    groups: dict[str, dict[str, tuple[float, ...]]] = {}
    for name, values in found.values.items():
        measure, _, part = name.partition(": ")
        groups.setdefault(measure, {})[part or measure] = values
    figure, axes = make_panels(len(groups))
    named = isinstance(found.x[0], str)
    for axis, (measure, columns) in zip(axes, groups.items()):
        for part, values in columns.items():
            axis.plot(
                range(len(values)) if named else found.x,
                values,
                linestyle="" if named else "-",  # a line between models that have no order means nothing
                marker="o",
                markersize=5 if named else 3,
                label=part,
            )
        axis.set(xlabel=found.x_label, ylabel=measure)
        finite = [v for values in columns.values() for v in values if np.isfinite(v)]
        axis.set_yscale("log" if finite and min(finite) > 0 and "higher" not in columns else "linear")
        if named:
            axis.set_xticks(range(len(found.x)), map(str, found.x))
            axis.margins(x=0.15)
        elif all(float(x).is_integer() for x in found.x):
            whole_numbers(axis)
        if len(columns) > 1:
            legend_above(axis, columns=3)
    return figure


def layerwise_equivariance(report: LayerwiseEquivariance) -> Figure:
    """Share of the outputs that each free path contributes, and all paths together.

    The precision of each path stands beside its bar. Dotted lines mark where the verdict changes.

    Parameters
    ----------
    report : LayerwiseEquivariance
        Report of `molequi.EquivarianceSelection`.
    """
    figure = Figure(figsize=(6.5, 1.4 + 0.32 * len(report.paths)), dpi=120, layout="constrained")
    axis = figure.subplots()
    rows = [
        (
            f"{p.layer}  {p.irrep}",
            p.share,
            "pruned"
            if np.isinf(p.precision)
            else "not learned"
            if np.isnan(p.precision)
            else f"precision {p.precision:.3g}",
        )
        for p in report.paths
    ]
    rows.append(("all together", report.share, report.verdict))
    least = SYMMETRIC / 100
    for place, (_, share, text) in enumerate(rows):
        share = 0.0 if np.isnan(share) else share  # not known: no bar, but its text
        axis.barh(place, max(share, least), color=BLUE if share > SYMMETRIC else GREY)
        axis.annotate(
            text,
            (max(share, least), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    for where in (SYMMETRIC, WEAK):
        axis.axvline(where, color=RED, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(
        xscale="log",
        xlim=(least, 30 * max(0.1, report.share)),
        xlabel=f"share of the outputs (least drawn: {least:g}), by {report.method}",
    )
    return figure


def audit(report: Report) -> Figure:
    """Largest error of each check of an audit, on a logarithmic scale.

    Filled circles are errors in float64, coloured by verdict, hollow ones errors in float32. A line marks the
    tolerance. Errors of exactly zero are at the left edge.

    Parameters
    ----------
    report : Report
        Result of `molequi.audit`.

    Raises
    ------
    DataError
        If no check measured anything.
    """
    rows = [row for row in report.rows if row.maximum is not None]
    if not rows:
        raise DataError("nothing to draw: no check of the report measured anything")
    least = 1e-17
    colours = {"pass": HOLDS, "fail": FAILS, "not applicable": UNKNOWN}
    figure = Figure(figsize=(8.0, max(2.5, 1.2 + 0.22 * len(rows))), dpi=120, layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(rows):
        shown = [
            least if not v else min(v, 1e3)
            for v in (row.maximum, row.float32 if row.float32 is not None else None)
            if v is not None
        ]
        axis.plot(shown[0], place, "o", color=colours[row.verdict], markersize=5)
        if len(shown) > 1:
            axis.plot(shown[1], place, "o", color=colours[row.verdict], markersize=5, fillstyle="none")
        if row.tolerance:
            axis.plot([row.tolerance] * 2, [place - 0.4, place + 0.4], color="#444444", linewidth=1)
    names = [
        " ".join(filter(None, (row.check, row.quantity, f"({row.element})" if row.element else "")))
        for row in rows
    ]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.set_ylim(-1, len(rows))
    for label, row in zip(axis.get_yticklabels(), rows):
        label.set_color(FAILS if row.verdict == "fail" else "black")
    for place in range(1, len(rows)):
        if rows[place].check != rows[place - 1].check:
            axis.axhline(place - 0.5, color="#dddddd", linewidth=0.6, zorder=0)
    axis.set(
        xscale="log",
        xlim=(least / 2, 3e3),
        xlabel="largest relative error; filled: float64, hollow: float32, line: allowed in float64",
    )
    axis.set_title(
        f"{report.model}, declared {report.group}: {'passed' if report.passed else 'FAILED'}", fontsize=9
    )
    axis.invert_yaxis()
    axis.grid(axis="x", color="#eeeeee")
    return figure


def lie_errors(report: LieReport) -> Figure:
    """Local equivariance error (LEE) of each layer, on a logarithmic scale.

    On the left is what each layer adds to the error of each output, on the right the error of the layer by
    itself, with a bar for each irrep. Errors in the grey range are round-off, and zeros have no bar. The
    contributions of several layers may cancel: ``print(report)`` shows them with their signs.

    Parameters
    ----------
    report : LieReport
        Result of `molequi.lie_errors`.

    Raises
    ------
    DataError
        If every output is zero or constant.
    """
    known = [row for row in report.rows if row.measured]
    if not known:
        raise DataError("nothing to draw: every output of the report is zero or constant")
    charged = {f"{r.quantity} {r.irrep}": {s.layer: s.size for s in r.layers} for r in known}
    alone: dict[str, dict[str, float]] = {}
    for state in report.states:
        alone.setdefault(state.irrep, {})[state.layer] = state.lee
    panels = [("added to the LEE of the outputs", charged)] + (
        [("LEE of the layer by itself", alone)] if alone else []
    )
    rows = [sum(len(bars) for bars in groups.values()) for _, groups in panels]
    figure = Figure(
        figsize=(6.5 * len(panels), max(2.5, 0.8 + 0.16 * max(rows))), dpi=120, layout="constrained"
    )
    for axis, (title, groups) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        named = dict.fromkeys(
            s.layer for row in known for s in row.layers if any(s.layer in bars for bars in groups.values())
        )
        layers = sorted(named, key=lambda name: name == known[0].layers[-1].layer)  # the rest comes last
        height = 0.8 / len(groups)
        for k, (label, bars) in enumerate(groups.items()):
            places = [layers.index(name) + (k - (len(groups) - 1) / 2) * height for name in bars]
            axis.barh(places, np.maximum(list(bars.values()), 1e-40), height, label=label, color=f"C{k % 10}")
        largest = max((v for bars in groups.values() for v in bars.values()), default=0.0)
        axis.axvspan(
            1e-40, max(row.noise for row in known) ** 2, color="#eeeeee", zorder=0, label="round-off"
        )
        axis.set(
            xscale="log",
            xlim=(1e-34, 10 * max(largest, 1e-20)),
            yticks=range(len(layers)),
            yticklabels=layers,
            xlabel=title,
        )
        axis.invert_yaxis()
        legend_above(axis, columns=4)
    return figure


def symmetry_test(report: SymmetryTestReport) -> Figure:
    """Null distribution and observed value of each hypothesis test of the data's symmetry.

    Parameters
    ----------
    report : SymmetryTestReport
        Result of `molequi.symmetry_test`.

    Raises
    ------
    DataError
        If no test has a null distribution.
    """
    # O(3) has the smaller p-value of rotations and reflections, which have panels of their own
    drawn = [
        (t, t.z_score)
        for t in report.tests
        if t.null_distribution and t.z_score is not None and t.name != "O(3)"
    ]
    if not drawn:
        raise DataError("nothing to draw: no test of the report has a null distribution")
    figure, axes = make_panels(len(drawn))
    for axis, (test, z_score) in zip(axes, drawn):
        axis.hist(test.null_distribution, bins=40, color=GREY)
        axis.axvline(
            z_score,
            color=RED if test.broken else BLUE,
            linewidth=2,
            label=f"observed, p = {test.p_value:.3g}",
        )
        name = f"{test.name} of {test.quantity}" if test.quantity else test.name
        axis.set_title(f"{name}: {'broken' if test.broken else 'holds'}", fontsize=9, pad=20)
        axis.set(xlabel="largest z-score", ylabel=f"of {len(test.null_distribution)} random data sets")
        legend_above(axis)
    figure.suptitle(", ".join(report.verdicts), fontsize=10)
    return figure


def _function_name(name: str) -> str:
    """The name of a function for a title; a lambda has none."""
    return "the function" if name == "<lambda>" else name
