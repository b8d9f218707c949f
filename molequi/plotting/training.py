"""Pictures of trained models: parity, learning curves and calibration."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import DataError
from molequi.inference.calibration import NORMAL, Calibration
from molequi.inference.calibration import calibration as measure_calibration
from molequi.inference.predict import predict
from molequi.model import Model
from molequi.plotting.figure import COLOURS, Figure, make_panels
from molequi.quantities import Quantity, per_atom

Results = Sequence[Mapping[str, np.ndarray]]


def parity(
    model: Model | Ensemble | str | os.PathLike[str],
    parts: Mapping[str, Dataset] | Dataset,
    *,
    limit: int = 1000,
) -> Figure:
    """Predicted against given values, with a panel for each quantity that has labels.

    Extensive scalars are shown per atom, and classes as a table of counts.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    parts : Dataset or mapping of str to Dataset
        The labelled data, or several by name, such as "train" and "test".
    limit : int
        At most so many structures of each part are drawn, evenly spaced.

    Raises
    ------
    DataError
        If there are no labels of what the model predicts.
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
    figure, axes = make_panels(len(quantities))
    for axis, (name, quantity) in zip(axes, quantities.items()):
        if quantity.classes:
            part = next(part for part in reversed(drawn) if drawn[part].labelled(name))
            _confusion(axis, quantity, part, drawn[part], results[part])
        else:
            _parity_panel(axis, quantity, drawn, results)
    return figure


def _parity_panel(
    axis: Axes, quantity: Quantity, drawn: Mapping[str, Dataset], results: Mapping[str, Results]
) -> None:
    """Predicted against given values of one quantity, a colour for each part."""
    name, low, high = quantity.name, np.inf, -np.inf
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


def _confusion(axis: Axes, quantity: Quantity, part: str, data: Dataset, results: Results) -> None:
    """Confusion matrix: how often each class was predicted as each."""
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


def _readable(value: float, unit: str) -> str:
    return (
        f"{value * 1000:.3g} m{unit}"
        if unit.startswith("eV") and value < 1
        else f"{value:.3g} {unit}".strip()
    )


def learning_curve(history: Sequence[Mapping[str, Any]] | str | os.PathLike[str]) -> Figure:
    """Loss, root mean square errors and accuracies over the epochs of a training.

    Parameters
    ----------
    history : sequence of mapping, str or Path
        ``Result.history`` of `molequi.fit`, or its ``metrics.csv``.

    Raises
    ------
    DataError
        If there are no epochs, or if the file is no table of metrics.
    """
    rows = _rows(history) if isinstance(history, (str, os.PathLike)) else list(history)
    if not rows:
        raise DataError("nothing to draw: the history has no epochs")
    shift = int(rows[0]["epoch"] == 0)  # files of molequi 0.1.0 count epochs from 0
    every = dict.fromkeys(
        name.split("_", 1)[1]
        for row in rows
        for name in row
        if name.startswith(("train_", "valid_")) and name.endswith(("_rmse", "_loss", "_accuracy"))
    )
    names = [name for name in every if f"{name.removesuffix('_rmse')}_per_atom_rmse" not in every]
    figure, axes = make_panels(len(names))
    for axis, name in zip(axes, names):
        for part in ("train", "valid"):
            points = [
                (row["epoch"] + shift, row[f"{part}_{name}"])
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


def _rows(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    try:
        with open(Path(path), newline="", encoding="utf-8") as file:
            return [
                {k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)
            ]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a table of metrics ({error})") from error


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
    return figure


def _calibration_panel(axis: Axes, name: str, one: Calibration, bins: int, limit: int) -> None:
    """Errors against standard deviations of one quantity."""
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
