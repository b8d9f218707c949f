"""Pictures of predicted against reference values."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from molequi.data.checks import check_same_quantities
from molequi.data.dataset import Dataset
from molequi.data.indexing import evenly_spaced
from molequi.ensemble import Ensemble
from molequi.errors import DataError
from molequi.inference.metrics import named_part
from molequi.inference.predict import predict
from molequi.inference.predictions import loaded
from molequi.model import Model
from molequi.plotting.figure import (
    Figure,
    error_text,
    make_panels,
    part_colours,
    with_unit,
)
from molequi.quantities import Quantity, per_atom
from molequi.terms import as_labelled
from molequi.training.ensembles import EnsembleResult
from molequi.training.result import Result

Results = Sequence[Mapping[str, np.ndarray]]
_POINTS = 20_000  # of each part in a panel; more only make the picture slow to draw


def parity(
    model: Model | Ensemble | str | os.PathLike[str] | Result | EnsembleResult,
    parts: Mapping[str, Dataset] | Dataset | None = None,
    *,
    limit: int = 1000,
) -> Figure:
    """Predicted against reference values, with a panel for each quantity that has labels.

    Extensive scalars are shown per atom, and classes as a table of counts. The points of all parts are drawn
    in a random order, so that no part hides another.

    Parameters
    ----------
    model : Model, Ensemble, Result, str or Path
        The model, its file, or what `molequi.fit` returned.
    parts : Dataset or mapping of str to Dataset
        The labelled data, or several by name, such as "train" and "test". They are needed: neither a model
        nor the result of a training keeps its data.
    limit : int
        At most so many structures of each part are drawn, evenly spaced. The legend says how many of how
        many; the errors in it are those of these structures.

    Raises
    ------
    DataError
        If there are no data, or no labels of what the model predicts.
    """
    name = type(model).__name__
    if isinstance(model, (Result, EnsembleResult)):
        model = model.model
    if parts is None:
        raise DataError(
            f"plotting.parity({name}): data are missing, which a {name} does not keep; write "
            "plotting.parity(model, {'train': train, 'valid': valid}), or mq.report(result) for the page of "
            "a run that mq.run or mq.train_file made"
        )
    parts = {"data": parts} if isinstance(parts, Dataset) else parts
    drawn = {name: data[evenly_spaced(len(data), limit)] for name, data in parts.items()}
    model = loaded(model, None)
    for name, data in drawn.items():
        check_same_quantities(model.quantities, data, f"the {name} data")
    model = as_labelled(model)
    found = {name: (data, predict(model, data, progress=False)) for name, data in drawn.items()}
    return parity_of(found, {name: len(data) for name, data in parts.items()})


def parity_of(
    parts: Mapping[str, tuple[Dataset, Results]], totals: Mapping[str, int] | None = None
) -> Figure:
    """The picture of `parity` for predictions that are there already.

    Parameters
    ----------
    parts : mapping of str to (Dataset, sequence of mapping)
        For each part the labelled data, and for each structure what `molequi.predict` returns.
    totals : mapping of str to int, optional
        Number of structures of the whole part, for the legend, if these are a sample.

    Raises
    ------
    DataError
        If there are no labels of what was predicted.
    """
    drawn = {name: data for name, (data, _) in parts.items()}
    results = {name: found for name, (_, found) in parts.items()}
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
    shown = {
        part: named_part(
            part, (len(data), total) if (total := (totals or {}).get(part, 0)) > len(data) else None
        )
        for part, data in drawn.items()
    }
    figure, axes = make_panels(len(quantities))
    for axis, (name, quantity) in zip(axes, quantities.items()):
        if quantity.classes:
            part = next(part for part in reversed(drawn) if drawn[part].labelled(name))
            _confusion(axis, quantity, drawn[part], results[part], shown[part])
        else:
            _parity_panel(axis, quantity, drawn, results, shown)
    return figure


def pairs(quantity: Quantity, data: Dataset, results: Results) -> tuple[np.ndarray, np.ndarray]:
    """Reference and predicted values of all known components, per atom for extensive scalars.

    Parameters
    ----------
    quantity : Quantity
        The quantity; it is no class.
    data : Dataset
        The labelled data.
    results : sequence of mapping
        The predictions for each structure.

    Returns
    -------
    (array, array), shape (values,)
    """
    name = quantity.name
    counts = data.counts if per_atom(quantity) else np.ones(len(data))
    given = np.concatenate(
        [(graph.targets[name].double().numpy() / n).reshape(-1) for graph, n in zip(data, counts)]
    )
    found = np.concatenate([(np.asarray(result[name]) / n).reshape(-1) for result, n in zip(results, counts)])
    known = ~np.isnan(given) & ~np.isnan(found)
    return given[known], found[known]


def _parity_panel(
    axis: Axes,
    quantity: Quantity,
    drawn: Mapping[str, Dataset],
    results: Mapping[str, Results],
    shown: Mapping[str, str],
) -> None:
    """Predicted against reference values of one quantity, a colour for each part."""
    unit = f"{quantity.unit}/atom" if per_atom(quantity) else quantity.unit
    colours = part_colours(drawn)
    points: list[np.ndarray] = []
    shades: list[str] = []
    errors: dict[str, float] = {}
    for part, data in drawn.items():
        if not data.labelled(quantity.name):
            continue
        given, found = pairs(quantity, data, results[part])
        if not len(given):
            continue
        errors[part] = float(np.sqrt(np.mean((found - given) ** 2)))
        chosen = evenly_spaced(len(given), _POINTS)
        points.append(np.stack([given[chosen], found[chosen]], 1))
        shades += [colours[part]] * len(chosen)
    cloud = np.concatenate(points) if points else np.zeros((0, 2))
    order = np.random.RandomState(0).permutation(len(cloud))
    size = 4 if len(cloud) > 3000 else 8
    axis.scatter(
        cloud[order, 0],
        cloud[order, 1],
        s=size,
        c=np.array(shades)[order],
        alpha=0.5,
        linewidths=0,
        rasterized=True,
    )
    if len(cloud):
        low, high = cloud.min(), cloud.max()
        margin = 0.04 * (high - low) or 0.5
        axis.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=0)
        axis.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    axis.set(xlabel=with_unit(f"{quantity.name}, reference", unit))
    axis.set(ylabel=with_unit(f"{quantity.name}, predicted", unit))
    axis.ticklabel_format(useOffset=False)
    axis.locator_params(nbins=4)
    texts = {part: error_text(error, unit, max(errors.values())) for part, error in errors.items()}
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=4,
            color=colours[part],
            label=f"{shown[part]}: RMSE {text}",
        )
        for part, text in texts.items()
    ]
    axis.legend(
        handles=handles, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2
    )


def _confusion(axis: Axes, quantity: Quantity, data: Dataset, results: Results, shown: str) -> None:
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
        ylabel=f"{quantity.name}, reference",
        title=f"{shown}: accuracy {np.mean(given == found):.3f}",
    )
