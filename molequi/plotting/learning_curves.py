"""Pictures of learning curves: errors over the epochs or steps of a training."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from molequi.errors import ConfigError, DataError
from molequi.plotting.figure import (
    Figure,
    legend_above,
    make_panels,
    part_colours,
    plain_log_scale,
    unit_text,
    whole_numbers,
)
from molequi.quantities import KNOWN, Quantity
from molequi.training.history import read_history

_KINDS = {"loss": "loss", "rmse": "RMSE", "accuracy": "accuracy"}


def learning_curve(
    history: Sequence[Mapping[str, Any]] | str | os.PathLike[str],
    *,
    against: Literal["epoch", "step"] = "epoch",
    quantities: Mapping[str, Quantity] | None = None,
) -> Figure:
    """Loss, root mean square errors and accuracies over the epochs or steps of a training.

    Losses and errors have a logarithmic axis, accuracies a linear one from 0 to 1.

    Parameters
    ----------
    history : sequence of mapping, str or Path
        ``Result.history`` of `molequi.fit`, or its ``metrics.csv``.
    against : {"epoch", "step"}
        What the horizontal axis counts: epochs, or updates of the weights.
    quantities : mapping of str to Quantity, optional
        What was learned, such as ``model.quantities``; it gives the units of quantities that are not in
        `molequi.quantities.KNOWN`.

    Raises
    ------
    DataError
        If there are no epochs, or if the file is no table of metrics.
    ConfigError
        If the history cannot be drawn against what was asked for.

    Examples
    --------
    >>> rows = [{"epoch": 1, "step": 90, "train_loss": 2.0}, {"epoch": 2, "step": 180, "train_loss": 1.0}]
    >>> learning_curve(rows, against="step").axes[0].get_xlabel()
    'step'
    """
    rows = read_history(Path(history)) if isinstance(history, (str, os.PathLike)) else list(history)
    if not rows:
        raise DataError("nothing to draw: the history has no epochs")
    if against not in ("epoch", "step") or any(against not in row for row in rows):
        wanted = " and ".join(repr(name) for name in ("epoch", "step") if all(name in row for row in rows))
        raise ConfigError(f"learning_curve: against={against!r}; wanted {wanted}, which this history counts")
    shift = int(against == "epoch" and rows[0]["epoch"] == 0)  # files of molequi 0.1.0 count epochs from 0
    every = dict.fromkeys(
        name.split("_", 1)[1]
        for row in rows
        for name in row
        if name.startswith(("train_", "valid_")) and name.endswith(("_rmse", "_loss", "_accuracy"))
    )
    names = [name for name in every if f"{name.removesuffix('_rmse')}_per_atom_rmse" not in every]
    known = {**KNOWN, **(quantities or {})}
    figure, axes = make_panels(len(names))
    for axis, name in zip(axes, names):
        values: list[float] = []
        for part, colour in part_colours(["train", "valid"]).items():
            points = [
                (row[against] + shift, row[f"{part}_{name}"])
                for row in rows
                if row.get(f"{part}_{name}") is not None
            ]
            values += [value for _, value in points]
            if points:
                marker = "." if len(points) < 30 else None
                axis.plot(*zip(*points), color=colour, label=part, marker=marker, linewidth=1.4)
        axis.set(xlabel=against, ylabel=_label(name, known))
        whole_numbers(axis)
        if name.endswith("_accuracy"):
            axis.set_ylim(min(0.0, *values), 1.02)
        elif values and min(values) > 0:
            plain_log_scale(axis, min(values), max(values))
        legend_above(axis, columns=2)
    return figure


def _label(name: str, known: Mapping[str, Quantity]) -> str:
    """``energy_per_atom_rmse`` as `energy per atom, RMSE (eV/atom)`."""
    what, _, kind = name.rpartition("_")
    if not what:
        return name
    base = what.removesuffix("_per_atom")
    unit = known[base].unit if base in known else known[what].unit if what in known else ""
    unit += "/atom" if unit and base != what else ""
    text = f"{what.replace('_', ' ')}, {_KINDS[kind]}"
    return f"{text} ({unit_text(unit)})" if unit and kind == "rmse" else text
