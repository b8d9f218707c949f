"""Intervals of quantities of atoms, and intervals whose width follows the standard deviation of the model.

The score of a component is |y - ŷ|, or with the standard deviation s of its prediction |y - ŷ| / s
(Papadopoulos et al., J. Artif. Intell. Res. 40, 815, 2011). The components of one structure depend on each
other, so that the structures are what is exchangeable. Every structure has the same weight, whatever its
size: with n structures of m_k components the half width q is the smallest number with

    Σ_k 1/(n + 1) · (1/m_k) #{scores of structure k ≤ q} ≥ level.

A component chosen at random of a further structure then is within ŷ ± q (or ŷ ± q s) with a probability of
at least the level (Lee, Barber and Willett, arXiv 2306.06342, hierarchical conformal prediction). With one
component in each structure this is the split-conformal interval of `molequi.inference.intervals`. It is an
average over structures: in a structure that is harder than others fewer components are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.inference.evaluate import with_labels
from molequi.inference.intervals import (
    Scaled,
    check_level,
    half_widths,
    interval_quantities,
    needed,
    too_few,
    with_intervals,
)
from molequi.inference.predictions import Trained, predicted_blocks
from molequi.model import Model
from molequi.quantities import Quantity, per_atom
from molequi.terms import as_labelled
from molequi.util.html import html_text
from molequi.util.tables import per_unit

_KEPT = 4000  # scores of each quantity in a model file


@dataclass(frozen=True)
class Scores:
    """Scores of the components of one quantity.

    Parameters
    ----------
    values : array, shape (m,)
        The scores.
    structures : array of int, shape (m,)
        Number of the structure of each.
    """

    values: np.ndarray
    structures: np.ndarray

    @property
    def count(self) -> int:
        """Number of structures."""
        return len(np.unique(self.structures))

    def half_width(self, level: float) -> float:
        """The smallest q of the module's equation.

        Parameters
        ----------
        level : float
            Between 0 and 1.

        Examples
        --------
        >>> Scores(np.array([1.0, 2.0, 3.0, 9.0]), np.array([0, 0, 1, 2])).half_width(0.5)
        3.0
        """
        _, where, sizes = np.unique(self.structures, return_inverse=True, return_counts=True)
        order = np.argsort(self.values, kind="stable")
        share = np.cumsum(1.0 / sizes[where[order]]) / (len(sizes) + 1)
        return float(self.values[order][np.searchsorted(share, level - 1e-9)])

    def kept(self, rng: np.random.Generator) -> dict[str, list[Any]]:
        """At most 4000 scores for a model file: of each structure as many, chosen at random."""
        most = max(1, _KEPT // max(self.count, 1))
        rows = []
        for k in np.unique(self.structures)[:_KEPT]:
            own = np.flatnonzero(self.structures == k)
            rows.append(own if len(own) <= most else rng.choice(own, most, replace=False))
        chosen = np.concatenate(rows)
        return {
            "values": [float(f"{v:.5g}") for v in self.values[chosen]],
            "structures": self.structures[chosen].tolist(),
        }


def scores_of(
    model: Model | Ensemble, data: Dataset, *, scaled: bool, nodes: bool = True
) -> dict[str, Scores]:
    """Scores of each quantity that has intervals and labels.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    data : Dataset
        Data that it was not trained on.
    scaled : bool
        Divide the errors by the standard deviations.
    nodes : bool
        Also of quantities of atoms; otherwise of single numbers of a structure.
    """
    model = as_labelled(model)
    wanted = {n: q for n, q in _quantities(model, nodes).items() if data.labelled(n)}
    values: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    structures: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    start = 0
    for block, found in (
        predicted_blocks(model.predicting(list(wanted)), data, progress=False) if wanted else ()
    ):
        for name, q in wanted.items():
            error = _rows(np.abs(found.values[name] - block.values(name).numpy()))
            if scaled:
                std = found.values[f"{name}_std"].astype(np.float64)[:, None]
                with np.errstate(divide="ignore", invalid="ignore"):
                    error = np.where((error == 0) & (std == 0), 0.0, error / std)
            elif per_atom(q):
                error = error / block.counts[:, None]
            own = np.arange(start, start + len(block))
            own = np.repeat(own, block.counts) if q.per == "node" else own
            own = np.repeat(own[:, None], error.shape[1], axis=1)
            known = ~np.isnan(error)
            values[name].append(error[known])
            structures[name].append(own[known])
        start += len(block)
    return {n: Scores(np.concatenate(values[n]), np.concatenate(structures[n])) for n in wanted}


def interval_widths(
    model: Model | Ensemble, level: float, data: Dataset | None, *, scaled: bool, nodes: bool
) -> dict[str, float]:
    """Half widths by name for `with_intervals`.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    level : float
        Probability of the intervals.
    data : Dataset, optional
        Calibration data; by default what the file of the model keeps.
    scaled : bool
        Multiply the widths with the standard deviations.
    nodes : bool
        Whether quantities of atoms have intervals, too.

    Raises
    ------
    ConfigError
        As `half_widths`; also for scaled widths of a model without standard deviations.
    """
    check_level(level)
    if scaled and not model.stds:
        raise ConfigError(
            "scaled=True needs standard deviations; give an Ensemble, or mq.laplace(model, train, valid)"
        )
    if not scaled:
        single = (
            half_widths(model, level, data) if interval_quantities(model) or not nodes or not data else {}
        )
        more = scores_of(model, data, scaled=False) if data is not None and nodes else {}
        return single | _widths({n: s for n, s in more.items() if n not in single}, level, float, False)
    found = _kept(model) if data is None else scores_of(model, data, scaled=True, nodes=nodes)
    names = _quantities(model, nodes)
    found = {name: one for name, one in found.items() if name in names}
    if not found:
        where = "kept in the model" if data is None else "in the calibration data"
        raise ConfigError(too_few(", ".join(names) or "anything", 0, level, where, data is None))
    return _widths(found, level, Scaled, data is None)


def _widths(
    found: Mapping[str, Scores], level: float, kind: type[float], from_model: bool
) -> dict[str, float]:
    out = {}
    for name, one in found.items():
        if one.count < needed(level):
            where = "kept in the model" if from_model else "in the calibration data"
            raise ConfigError(too_few(name, one.count, level, where, from_model))
        out[name] = kind(one.half_width(level))
    return out


def _kept(model: Model | Ensemble) -> dict[str, Scores]:
    record = (getattr(model, "metadata", None) or {}).get("laplace") or {}
    return {
        name: Scores(np.array(one["values"], dtype=float), np.array(one["structures"], dtype=int))
        for name, one in (record.get("scores") or {}).items()
    }


def _quantities(model: Model | Ensemble, nodes: bool) -> dict[str, Quantity]:
    single = interval_quantities(model)
    more = {n: q for n, q in model.quantities.items() if q.per == "node" and not q.classes}
    return single | (more if nodes else {})


def _rows(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64).reshape(len(values), -1)


@dataclass(frozen=True)
class Coverage:
    """How often labels are within the intervals of a model.

    Parameters
    ----------
    name, unit : str
        The quantity, and the unit of the width.
    level : float
        Probability that was asked for.
    share : float
        Share of the components within, mean over the structures.
    lowest : float
        The same of the structure with the fewest.
    half_width : float
        Mean of half the widths.
    structures : int
        Number of structures.
    """

    name: str
    unit: str
    level: float
    share: float
    lowest: float
    half_width: float
    structures: int

    def __str__(self) -> str:
        lowest = f" (lowest structure {self.lowest:.0%})" if self.lowest > 0 else ""
        return (
            f"{self.name}: {self.share:.1%} within the {self.level:.0%} interval{lowest}, "
            f"± {per_unit(self.half_width, self.unit)} on average; {self.structures} structures"
        )

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


def coverage(
    model: Trained,
    data: Any,
    *,
    interval: float = 0.9,
    calibration: Any = None,
    scaled: bool = False,
    **options: Any,
) -> dict[str, Coverage]:
    """How often the labels of held-out data are within the intervals of `molequi.predict`.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    data : object
        Labelled data that had no part in training and calibration.
    interval, calibration, scaled
        As in `molequi.predict`.
    **options
        As in `molequi.evaluate`.

    Returns
    -------
    dict of str to Coverage
        By the name of the quantity.

    Raises
    ------
    ConfigError
        As `molequi.predict`.
    """
    used, data = with_labels(model, data, where="coverage", **options)
    used = as_labelled(used)
    held = None if calibration is None else with_labels(used, calibration, where="coverage")[1]
    widths = interval_widths(used, interval, held, scaled=scaled, nodes=True)
    shares: dict[str, list[np.ndarray]] = {name: [] for name in widths if data.labelled(name)}
    if not shares:
        raise ConfigError(f"coverage: the data have no labels of {', '.join(widths)}; wanted some")
    sizes: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    for block, found in predicted_blocks(used, data, progress=False):
        values = with_intervals(found.values, widths, used, block.counts)
        for name in shares:
            q, label = used.quantities[name], _rows(block.values(name).numpy())
            low, high = (_rows(values[f"{name}_{end}"]) for end in ("low", "high"))
            inside = np.where(np.isnan(label), np.nan, (low <= label) & (label <= high)).mean(1)
            half = ((high - low) / 2).mean(1) / (block.counts if per_atom(q) else 1)
            shares[name].append(_by_structure(inside, q, block.counts))
            sizes[name].append(_by_structure(half, q, block.counts))
    return {name: _coverage(used.quantities[name], interval, shares[name], sizes[name]) for name in shares}


def _by_structure(values: np.ndarray, q: Quantity, counts: np.ndarray) -> np.ndarray:
    if q.per == "graph":
        return values
    return np.asarray(np.add.reduceat(values, np.concatenate([[0], np.cumsum(counts)[:-1]])) / counts)


def _coverage(
    q: Quantity, level: float, shares: Sequence[np.ndarray], sizes: Sequence[np.ndarray]
) -> Coverage:
    share, size = np.concatenate(shares), np.concatenate(sizes)
    known = ~np.isnan(share)
    unit = f"{q.unit}/atom" if per_atom(q) else q.unit
    return Coverage(
        q.name,
        unit,
        level,
        float(share[known].mean()),
        float(share[known].min()),
        float(size[known].mean()),
        int(known.sum()),
    )
