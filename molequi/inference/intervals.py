"""Prediction intervals by split-conformal prediction: what errors on held-out data say about new ones.

Let R_1 ≤ … ≤ R_n be the absolute errors |y - ŷ| on n structures that the model was not trained on. The
interval

    ŷ ± R_k,   k = ⌈(n + 1) · level⌉

contains the label of a further structure with a probability of at least the level (Papadopoulos et al., ECML
2002; Lei et al., J. Am. Stat. Assoc. 113, 1094 (2018), theorem 2), whatever the model and the law of the
errors are, if the further structure and the n are *exchangeable*: every order of them is equally probable, as
it is for structures drawn at random from one distribution. Structures of other elements, sizes or
temperatures than those of the calibration are not, and nothing is promised for them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from molequi.data.dataset import Dataset
from molequi.data.splits import conformer_groups
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.inference.predictions import predicted_blocks
from molequi.model import Model
from molequi.quantities import Quantity, per_atom
from molequi.terms import as_labelled
from molequi.util.html import html_text
from molequi.util.tables import per_unit
from molequi.util.typed_values import share_meant_by

KEPT = 2000  # errors of each quantity in a model file; a random choice of exchangeable errors is exchangeable
LEVEL = 0.9  # of the intervals that a training reports


class Scaled(float):
    """Half of the width of an interval, in standard deviations of the prediction."""


def needed(level: float) -> int:
    """Number of errors that an interval needs: the smallest n with ⌈(n + 1) · level⌉ ≤ n.

    Parameters
    ----------
    level : float
        Between 0 and 1.

    Examples
    --------
    >>> needed(0.9), needed(0.95), needed(0.5)
    (9, 19, 1)
    """
    n = max(1, math.floor(level / (1 - level)) - 1)
    while _rank(n, level) > n:
        n += 1
    return n


def half_width(residuals: Sequence[float] | np.ndarray, level: float) -> float:
    """R_k, half of the width of the interval.

    Parameters
    ----------
    residuals : sequence of float
        Absolute errors; at least `needed(level)` of them.
    level : float
        Between 0 and 1.

    Examples
    --------
    >>> half_width([0.1, 0.4, 0.2, 0.3], 0.6)
    0.3
    """
    return float(np.sort(np.asarray(residuals, dtype=float))[_rank(len(residuals), level) - 1])


def _rank(n: int, level: float) -> int:
    # Without the small number, 10 · 0.7 = 7.000000000000001 would count as 8.
    return math.ceil((n + 1) * level - 1e-9)


def interval_quantities(model: Model | Ensemble) -> dict[str, Quantity]:
    """The quantities that have intervals: one number of a structure, no class.

    Atoms of one structure, and components of one vector, depend on each other, so that they are no
    exchangeable sample.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    """
    return {n: q for n, q in model.quantities.items() if q.per == "graph" and not q.rank and not q.classes}


def absolute_errors(model: Model | Ensemble, data: Dataset) -> dict[str, np.ndarray]:
    """Absolute errors of each quantity with intervals and labels, ascending; of extensive ones per atom.

    The conformers of a molecule are one sample: the error is that of the mean of their predictions.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    data : Dataset
        Data that the model was not trained on.
    """
    wanted = {name: q for name, q in interval_quantities(model).items() if data.labelled(name)}
    if not wanted:
        return {}
    model = as_labelled(model)
    differences: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for block, found in predicted_blocks(model.predicting(list(wanted)), data, progress=False):
        for name, q in wanted.items():
            atoms = block.counts if per_atom(q) else 1
            differences[name].append((found.values[name] - block.values(name).numpy()) / atoms)
    groups = conformer_groups(data.info)
    out = {}
    for name, parts in differences.items():
        error = np.concatenate(parts).astype(np.float64)
        if groups is not None:
            number = {group: k for k, group in enumerate(dict.fromkeys(groups))}
            rows = np.array([number[group] for group in groups])
            error = np.bincount(rows, weights=error) / np.bincount(rows)
        size = np.sort(np.abs(error[~np.isnan(error)]))
        if len(size):
            out[name] = size
    return out


def residuals_to_keep(model: Model | Ensemble, data: Dataset) -> dict[str, list[float]]:
    """What a model file keeps of `absolute_errors`: all of them, or a random choice of 2000.

    Parameters
    ----------
    model : Model or Ensemble
        The model at the end of its training.
    data : Dataset
        The validation data.
    """
    random = np.random.default_rng(0)
    return {
        name: (
            errors if len(errors) <= KEPT else np.sort(random.choice(errors, KEPT, replace=False))
        ).tolist()
        for name, errors in absolute_errors(model, data).items()
    }


def half_widths(model: Model | Ensemble, level: float, data: Dataset | None = None) -> dict[str, float]:
    """Half of the width of the interval of each quantity; of extensive ones per atom.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    level : float
        Probability of the intervals, between 0 and 1.
    data : Dataset, optional
        Calibration data; by default the errors on the validation data that the training kept.

    Raises
    ------
    ConfigError
        If the level is not between 0 and 1, if the model predicts nothing that has intervals, or if there are
        no errors or too few.
    """
    check_level(level)
    quantities = interval_quantities(model)
    if not quantities:
        raise ConfigError(
            f"interval={level:g} would have no effect: the model predicts {', '.join(model.quantities)}, and "
            "intervals are of single numbers of a structure"
        )
    kept: Mapping[str, Sequence[float] | np.ndarray]
    kept = _kept(model) if data is None else absolute_errors(model, data)
    where = "kept in the model" if data is None else "in the calibration data"
    widths = {}
    for name in quantities:
        errors = kept.get(name, [])
        if len(errors) < needed(level):
            raise ConfigError(too_few(name, len(errors), level, where, data is None))
        widths[name] = half_width(errors, level)
    return widths


def check_level(level: float) -> None:
    """Raise ConfigError for a level that is no probability."""
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise ConfigError(
            f"interval={level!r}: wanted a probability between 0 and 1, such as interval=0.9"
            f"{share_meant_by(level, 1)}"
        )


def _kept(model: Model | Ensemble) -> dict[str, list[float]]:
    """The errors on the validation data that the training kept."""
    kept = getattr(model, "metadata", {}).get("residuals", {})
    return kept if isinstance(kept, dict) else {}


def too_few(name: str, count: int, level: float, where: str, from_model: bool) -> str:
    """What to say if there are too few errors for a level."""
    largest = count / (count + 1)
    lower = f", or a level of at most {math.floor(largest * 1000) / 1000:g}" if count else ""
    more = (
        "give held-out data with labels, calibration=<data>"
        if from_model
        else f"give more of them, with labels of {name}"
    )
    return (
        f"interval={level:g} needs {needed(level)} errors of {name} or more, and there are {count} {where}; "
        f"{more}{lower}"
    )


def with_intervals(
    result: Mapping[str, np.ndarray],
    widths: Mapping[str, float],
    model: Model | Ensemble,
    atoms: int | np.ndarray,
) -> dict[str, np.ndarray]:
    """A result with ``<name>_low`` and ``<name>_high``.

    Parameters
    ----------
    result : mapping of str to array
        One result, or joined ones of several structures; an empty one stays empty.
    widths : mapping of str to float
        What `half_widths` returned; a `Scaled` one is multiplied by the standard deviation.
    model : Model or Ensemble
        The model.
    atoms : int, or array of int
        Number of atoms of the structure, or of each structure.
    """
    out = dict(result)
    for name, width in widths.items() if result else ():
        away: np.ndarray | float
        if isinstance(width, Scaled):
            std = np.asarray(result[f"{name}_std"])
            away = width * std.reshape(*std.shape, *[1] * (np.ndim(result[name]) - std.ndim))
        else:
            away = width * (atoms if per_atom(model.quantities[name]) else 1)
        out[f"{name}_low"], out[f"{name}_high"] = (
            np.asarray(result[name] - away),
            np.asarray(result[name] + away),
        )
    return out


class IntervalReport(dict[str, list[float]]):
    """Absolute errors on the validation data, which the model file keeps; printed, the intervals.

    Parameters
    ----------
    errors : mapping of str to list of float
        What `residuals_to_keep` returned.
    quantities : mapping of str to Quantity
        What the model predicts.
    """

    def __init__(self, errors: Mapping[str, list[float]], quantities: Mapping[str, Quantity]) -> None:
        super().__init__(errors)
        self.quantities = dict(quantities)

    def __str__(self) -> str:
        parts = []
        for name, errors in self.items():
            q = self.quantities[name]
            unit = f"{q.unit}/atom" if per_atom(q) else q.unit
            if len(errors) >= needed(LEVEL):
                parts.append(f"{name} ± {per_unit(half_width(errors, LEVEL), unit)}")
        if not parts:
            return f"too few validation structures for {LEVEL:.0%} intervals, which need {needed(LEVEL)}"
        return f"{LEVEL:.0%} intervals from the validation data: {', '.join(parts)}"

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__
