"""Pictures for notebooks and reports, each a matplotlib Figure of its own: `figure.savefig("parity.png")`."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure

from molequi.approximate.report import SYMMETRIC, WEAK, LayerwiseEquivariance
from molequi.audit.lie import LieReport
from molequi.audit.report import Report
from molequi.data.dataset import Dataset
from molequi.data_symmetry.report import SymmetryTestReport
from molequi.discovery.curves import SymmetryCurves
from molequi.discovery.generators import SymmetryGenerators
from molequi.discovery.spectrum import OrbitSpectrum
from molequi.ensemble import Ensemble
from molequi.errors import DataError
from molequi.graph import Graph
from molequi.inference.calibration import NORMAL
from molequi.inference.calibration import calibration as measured
from molequi.inference.predict import predict
from molequi.model import Model
from molequi.quantities import per_atom
from molequi.readers import to_atoms
from molequi.util.tables import FAILS, HOLDS, UNKNOWN

COLOURS = {"train": "#9aa5b1", "valid": "#2f6db3", "test": "#c4472b"}


class Figure(MatplotlibFigure):
    """A matplotlib Figure that a notebook shows as a picture, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def parity(
    model: Model | str | os.PathLike, parts: Mapping[str, Dataset] | Dataset, *, limit: int = 1000
) -> Figure:
    """Predicted against given values, a panel for each quantity with labels; extensive scalars per atom, classes as a table of counts.

    parts: a Dataset, or several by name. limit: structures of each part that are drawn, spread evenly.
    """
    parts = {"data": parts} if isinstance(parts, Dataset) else parts
    drawn = {
        name: data[np.unique(np.linspace(0, len(data) - 1, min(limit, len(data))).astype(int))]
        for name, data in parts.items()
    }
    results = {name: predict(model, data, progress=False) for name, data in drawn.items()}
    predicted = next(iter(results.values()))[0]
    quantities = {
        name: q
        for data in drawn.values()
        for name, q in data.quantities.items()
        if name in predicted and data.labelled(name)
    }
    if not quantities:
        raise DataError(
            f"nothing to draw: the model predicts {', '.join(predicted)}, and there are no labels of these"
        )
    figure, axes = _panels(len(quantities))
    for axis, (name, quantity) in zip(axes, quantities.items()):
        if quantity.classes:
            part = next(part for part in reversed(drawn) if drawn[part].labelled(name))
            _confusion(axis, quantity, part, drawn[part], results[part])
            continue
        low, high = np.inf, -np.inf
        unit = f"{quantity.unit}/atom" if per_atom(quantity) else quantity.unit
        for part, data in drawn.items():
            if name not in data.quantities:
                continue
            counts = data.counts if per_atom(quantity) else np.ones(len(data))
            given = np.concatenate(
                [(graph.targets[name].numpy() / n).reshape(-1) for graph, n in zip(data, counts)]
            )
            found = np.concatenate(
                [(np.asarray(result[name]) / n).reshape(-1) for result, n in zip(results[part], counts)]
            )
            known = ~np.isnan(given) & ~np.isnan(found)
            given, found = given[known], found[known]
            if not len(given):
                continue
            error = np.sqrt(np.mean((found - given) ** 2))
            axis.plot(
                given,
                found,
                ".",
                markersize=3,
                alpha=0.6,
                color=COLOURS.get(part),
                rasterized=True,
                label=f"{part}: RMSE {_readable(error, unit)}",
            )
            low, high = min(low, given.min(), found.min()), max(high, given.max(), found.max())
        unit = f" ({unit})" if unit else ""
        axis.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=0)
        axis.set(xlabel=f"{name}, given{unit}", ylabel=f"{name}, predicted{unit}")
        axis.ticklabel_format(useOffset=False)
        axis.locator_params(nbins=4)
        axis.legend(fontsize=8, frameon=False)
    return figure


def _confusion(axis: Axes, quantity, part: str, data: Dataset, results: Sequence[Mapping]) -> None:
    """How often each class was taken for each, of the last part that has labels."""
    given = np.concatenate([graph.targets[quantity.name].numpy() for graph in data])
    found = np.concatenate([np.atleast_1d(result[quantity.name]) for result in results])
    found = np.array([quantity.classes.index(str(name)) for name in found])
    known = ~np.isnan(given)
    given, found = given[known].astype(int), found[known]
    size = len(quantity.classes)
    counts = np.bincount(given * size + found, minlength=size * size).reshape(size, size)
    axis.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    if size <= 12:
        for i, j in np.argwhere(counts):
            axis.text(
                j,
                i,
                str(counts[i, j]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if 2 * counts[i, j] > counts[i].sum() else "black",
            )
        axis.set_xticks(range(size), quantity.classes, rotation=90, fontsize=7)
        axis.set_yticks(range(size), quantity.classes, fontsize=7)
    axis.set(
        xlabel=f"{quantity.name}, predicted",
        ylabel=f"{quantity.name}, given",
        title=f"{part}: accuracy {np.mean(given == found):.3f}",
    )


def calibration(
    model: Ensemble | str | os.PathLike, data: Any, *, bins: int = 12, limit: int = 3000, **options
) -> Figure:
    """How large the errors of an ensemble are where its members disagree so much, a panel for each quantity.

    Points: rms error over rms spread of `bins` groups of values, equally many in each, from the smallest spreads to the largest; they
    lie on the diagonal if the spread is the size of the error. Dots behind: single components, at most `limit` of them, spread evenly.
    Title: the factor by which spreads are to be multiplied, the parts of errors within one and two spreads beside those of a normal law
    (before and after that), and the miscalibration; see `molequi.inference.calibration`, also for data, options and what is raised.
    """
    found = measured(model, data, **options)
    same = [name for name, one in found.items() if not np.isfinite(one.scale)]
    if same:
        raise DataError(
            f"{', '.join(same)}: all members of the ensemble say the same of these structures, so that there is no standard deviation to "
            "compare errors with; wanted members that were trained from other weights, and structures in which they see something"
        )
    if not found:
        raise DataError(
            "nothing to draw: the data have no labels of numbers, vectors or tensors that the ensemble predicts"
        )
    figure, axes = _panels(len(found))
    for axis, (name, one) in zip(axes, found.items()):
        rescaled = one.scaled(one.scale)
        shown = np.unique(np.linspace(0, len(one.error) - 1, min(limit, len(one.error))).astype(int))
        axis.plot(
            one.std[shown],
            np.abs(one.error)[shown],
            ".",
            markersize=2,
            alpha=0.4,
            color=COLOURS["train"],
            rasterized=True,
        )
        std, error = one.bins(bins)
        axis.plot(std, error, "o", markersize=5, color=COLOURS["valid"], label="rms of groups")
        ends = np.array([min(std.min(), error.min()), max(std.max(), error.max())])
        axis.plot(ends, ends, color="black", linewidth=0.8, label="error = std")
        axis.plot(
            ends,
            one.scale * ends,
            "--",
            color=COLOURS["test"],
            linewidth=0.8,
            label=f"error = {one.scale:.3g} × std",
        )
        unit = f" ({one.unit})" if one.unit else ""
        low = ends[ends > 0].min(initial=ends[1]) / 5
        axis.set(
            xscale="log",
            yscale="log",
            xlim=(low, 5 * ends[1]),
            ylim=(low / 5, 5 * ends[1]),
            xlabel=f"{name}, standard deviation{unit}",
            ylabel=f"{name}, error{unit}",
        )
        within = [
            f"{a:.0%} → {b:.0%} ({normal:.0%})" for a, b, normal in zip(one.within, rescaled.within, NORMAL)
        ]
        axis.set_title(
            f"scale {one.scale:.3g}; within 1, 2 std:\n{', '.join(within)}\n"
            f"miscalibration {one.miscalibration:.3f} → {rescaled.miscalibration:.3f}",
            fontsize=9,
        )
        axis.legend(fontsize=8, frameon=False)
    return figure


def learning_curve(history: Sequence[Mapping[str, Any]] | str | os.PathLike) -> Figure:
    """Loss and root mean square errors against epochs: `Result.history`, or a `metrics.csv`."""
    rows = _rows(history) if isinstance(history, (str, os.PathLike)) else list(history)
    if not rows:
        raise DataError("nothing to draw: the history has no epochs")
    names = dict.fromkeys(
        name.split("_", 1)[1]
        for row in rows
        for name in row
        if name.startswith(("train_", "valid_")) and name.endswith(("_rmse", "_loss", "_accuracy"))
    )
    names = [name for name in names if f"{name.removesuffix('_rmse')}_per_atom_rmse" not in names]
    figure, axes = _panels(len(names))
    for axis, name in zip(axes, names):
        for part in ("train", "valid"):
            points = [
                (row["epoch"] + 1, row[f"{part}_{name}"])
                for row in rows
                if row.get(f"{part}_{name}") is not None
            ]
            if points:
                axis.plot(
                    *zip(*points), color=COLOURS[part], label=part, marker="." if len(points) < 30 else None
                )
        axis.set(
            xlabel="epoch", ylabel=name.replace("_", " ") + (" (eV, Å)" if name.endswith("_rmse") else "")
        )
        positive = all(row.get(f"{part}_{name}", 1) > 0 for row in rows for part in ("train", "valid"))
        axis.set_yscale("log" if positive else "linear")
        axis.legend(fontsize=8, frameon=False)
    return figure


def trajectory(time: Sequence[float], *, title: str = "", **curves: Sequence[float]) -> Figure:
    """Curves over the time of a simulation in ps, one below the other: `trajectory(t, energy_eV=e, temperature_K=T)`.

    The part of a name after its last underscore is the unit.
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


def molecule(structure: Any, *, elevation: float = 20.0, azimuth: float = -60.0, size: float = 4.0) -> Figure:
    """A structure in space, atoms as coloured balls, bonds where covalent radii touch, and the cell if there is one.

    structure: ase.Atoms, or a Graph of one structure in three dimensions.
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


def orbit_spectrum(found: OrbitSpectrum) -> Figure:
    """Shares of a function by degree, from `discovery.orbit_spectrum`, with standard deviations."""
    figure, (axis,) = _panels(1)
    labels, values = [*found.shares, "higher"], [*found.shares.values(), found.remainder]
    axis.bar(labels, values, color=COLOURS["valid"])
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
        ylabel=f"share of {found.name}",
        ylim=(min(0.0, *values), 1.05),
        title=f"{found.n_structures} structures",
    )
    return figure


def symmetry_generators(found: SymmetryGenerators) -> Figure:
    """Singular values of `discovery.symmetry_generators`; those below the line are symmetries."""
    figure, (axis,) = _panels(1)
    values = np.maximum(found.singular_values, 1e-18)
    held = np.arange(1, len(values) + 1) > len(values) - found.dimension
    for mask, colour, label in (
        (~held, COLOURS["test"], "no symmetry"),
        (held, COLOURS["valid"], "symmetry"),
    ):
        axis.plot(np.arange(1, len(values) + 1)[mask], values[mask], "o", color=colour, label=label)
    axis.axhline(found.tolerance, color="black", linewidth=0.8)
    axis.set(
        xlabel="motion",
        ylabel="relative change",
        yscale="log",
        title=f"{found.name}: {found.dimension} continuous symmetries",
    )
    axis.legend(fontsize=8, frameon=False)
    return figure


def symmetry_curves(found: SymmetryCurves) -> Figure:
    """Measures of several models, from `discovery.symmetry_curves`: shares on a linear, errors on a log scale."""
    groups: dict[str, dict[str, tuple[float, ...]]] = {}
    for name, values in found.values.items():
        measure, _, part = name.partition(": ")
        groups.setdefault(measure, {})[part or measure] = values
    figure, axes = _panels(len(groups))
    for axis, (measure, columns) in zip(axes, groups.items()):
        for part, values in columns.items():
            axis.plot(
                range(len(values)) if isinstance(found.x[0], str) else found.x,
                values,
                marker="o",
                markersize=3,
                label=part,
            )
        axis.set(xlabel=found.x_label, ylabel=measure)
        finite = [v for values in columns.values() for v in values if np.isfinite(v)]
        axis.set_yscale("log" if finite and min(finite) > 0 and "higher" not in columns else "linear")
        if isinstance(found.x[0], str):
            axis.set_xticks(range(len(found.x)), found.x)
        axis.legend(fontsize=8, frameon=False)
    return figure


def layerwise_equivariance(report: LayerwiseEquivariance) -> Figure:
    """The share of the outputs that each free path makes, and all of them together, with its precision; lines where the verdict changes."""
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
        axis.barh(place, max(share, least), color="#2f6db3" if share > SYMMETRIC else "#9aa5b1")
        axis.annotate(
            text,
            (max(share, least), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    for where in (SYMMETRIC, WEAK):
        axis.axvline(where, color="#c4472b", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(
        xscale="log",
        xlim=(least, 30 * max(0.1, report.share)),
        xlabel=f"share of the outputs (least drawn: {least:g}), by {report.method}",
    )
    return figure


def audit(report: Report) -> Figure:
    """The largest error of each check in float64 (filled, by verdict) and float32 (hollow), and what is allowed (line); logarithmic.

    Errors of exactly zero stand at the left edge.
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
    axis.set_yticks(range(len(rows)), names, fontsize=7)
    axis.set(
        xscale="log",
        xlim=(least / 2, 3e3),
        xlabel="largest relative error; filled float64, hollow float32, line: allowed",
    )
    axis.set_title(
        f"{report.model}, declared {report.group}: {'passed' if report.passed else 'FAILED'}", fontsize=9
    )
    axis.invert_yaxis()
    axis.grid(axis="x", color="#eeeeee")
    return figure


def lie_errors(report: LieReport) -> Figure:
    """What each layer adds to the LEE of each output (left) and what it does by itself (right), a bar for each irrep, logarithmic.

    Grey is where round-off is; bars of zero are not drawn. Terms of several layers may cancel: `print(report)` has signed shares.
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
        axis.axvspan(1e-40, max(row.noise for row in known) ** 2, color="#eeeeee", zorder=0)
        axis.set(
            xscale="log",
            xlim=(1e-34, 10 * max(largest, 1e-20)),
            yticks=range(len(layers)),
            yticklabels=layers,
            xlabel=title,
        )
        axis.invert_yaxis()
        axis.legend(fontsize=7, frameon=False)
    return figure


def symmetry_test(report: SymmetryTestReport) -> Figure:
    """Null distribution and observed value of each hypothesis test of the data's symmetry.

    report: of `symmetry_test`. There is a panel for each test that has a null distribution.
    """
    # O(3) has the smaller p-value of rotations and reflections, which have panels of their own
    drawn = [t for t in report.tests if t.null_distribution and t.name != "O(3)"]
    if not drawn:
        raise DataError("nothing to draw: no test of the report has a null distribution")
    figure, axes = _panels(len(drawn))
    for axis, test in zip(axes, drawn):
        axis.hist(test.null_distribution, bins=40, color=COLOURS["train"])
        axis.axvline(
            test.z_score,
            color=COLOURS["test" if test.broken else "valid"],
            linewidth=2,
            label=f"observed, p = {test.p_value:.3g}",
        )
        axis.set_title(
            f"{test.name}{f' of {test.quantity}' if test.quantity else ''}:\n{'broken' if test.broken else 'holds'}",
            fontsize=9,
        )
        axis.set(xlabel="largest z-score", ylabel=f"of {len(test.null_distribution)} random data sets")
        axis.legend(fontsize=8, frameon=False)
    figure.suptitle(", ".join(report.verdicts), fontsize=10)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.8 * rows), dpi=120, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _readable(value: float, unit: str) -> str:
    return (
        f"{value * 1000:.3g} m{unit}"
        if unit.startswith("eV") and value < 1
        else f"{value:.3g} {unit}".strip()
    )


def _rows(path: str | os.PathLike) -> list[dict[str, float]]:
    try:
        with open(Path(path), newline="", encoding="utf-8") as file:
            return [
                {k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)
            ]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a table of metrics ({error})") from error
