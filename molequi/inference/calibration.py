"""How well the spreads of an ensemble say how large its errors are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.inference.evaluate import with_labels
from molequi.inference.predictions import predictions
from molequi.quantities import Quantity, per_atom

NORMAL = (0.6826894921370859, 0.9544997361036416)  # of a normal law, within one and two standard deviations


@dataclass(frozen=True)
class Calibration:
    """Errors of one quantity of an ensemble beside its spreads, component by component; of extensive scalars per atom.

    error, spread: (n,), in `unit`.
    """

    quantity: Quantity
    unit: str
    error: np.ndarray
    spread: np.ndarray

    @property
    def scale(self) -> float:
        """√(Σ e² / Σ s²), by which spreads are to be multiplied to be as large as the errors; infinite where no spread is above zero.

        The mean of e²/s² has no such meaning: of two or three members it does not exist for scalars, as a spread may be near zero by chance.
        """
        return (
            float(np.sqrt(np.mean(self.error**2) / np.mean(self.spread**2))) if self.spread.any() else np.inf
        )

    @property
    def within(self) -> tuple[float, float]:
        """Parts of the errors that are not larger than one and two spreads; see NORMAL."""
        size = np.abs(self.error)
        return float(np.mean(size <= self.spread)), float(np.mean(size <= 2 * self.spread))

    @property
    def miscalibration(self) -> float:
        """∫ |F(p) - p| dp from 0 to 1, where F(p) is the part of the errors inside the central interval to which a normal law with this
        spread gives the probability p (Kuleshov, Fenner and Ermon, ICML 2018): 0 is perfect, 1/2 the worst.
        """
        size = np.abs(self.error)
        ratio = np.divide(size, self.spread, out=np.where(size > 0, np.inf, 0.0), where=self.spread > 0)
        level = np.sort(torch.erf(torch.from_numpy(ratio / np.sqrt(2))).numpy())
        p = np.linspace(0, 1, 2001)
        return float(np.trapezoid(np.abs(np.searchsorted(level, p, side="right") / len(level) - p), p))

    def scaled(self, factor: float) -> "Calibration":
        """The same with all spreads multiplied."""
        return Calibration(self.quantity, self.unit, self.error, factor * self.spread)

    def bins(self, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
        """Rms spread and rms error of groups of equal size, from the smallest spreads to the largest."""
        groups = np.array_split(np.argsort(self.spread, kind="stable"), min(count, len(self.spread)))
        return tuple(
            np.array([np.sqrt(np.mean(values[g] ** 2)) for g in groups])
            for values in (self.spread, self.error)
        )

    def __str__(self) -> str:
        one, two = self.within
        return (
            f"{self.quantity.name}: errors are {self.scale:.3g} × the spreads; {one:.0%} within one ({NORMAL[0]:.0%} of a normal law), "
            f"{two:.0%} within two ({NORMAL[1]:.0%}); miscalibration {self.miscalibration:.3f}; {len(self.error)} values"
        )


def calibration(model: Ensemble | str | os.PathLike, data: Any, **options) -> dict[str, Calibration]:
    """Errors beside spreads, of each quantity with labels that is no class.

    Measured on data that were not trained on, it calibrates the ensemble: `model.calibrated({n: c.scale for n, c in found.items()})`.
    model: an Ensemble or its file. data, options: as of `evaluate`.
    Raises ConfigError for a single model.
    """
    model, data = with_labels(model, data, **options)
    if not isinstance(model, Ensemble):
        raise ConfigError(
            f"calibration is of an Ensemble, and this is one {type(model).__name__}, which gives no spread; make several with "
            "fit(..., seed=[0, 1, 2])"
        )
    wanted = {name: q for name, q in model.quantities.items() if not q.classes and data.labelled(name)}
    if not wanted:
        return {}
    results = predictions(model, data, progress=False)
    found = {name: _calibration(q, data, results) for name, q in wanted.items()}
    return {name: one for name, one in found.items() if len(one.error)}


def _calibration(q: Quantity, data: Dataset, results: list[Mapping[str, np.ndarray]]) -> Calibration:
    errors, spreads = [], []
    for graph, result in zip(data, results):
        count = graph.num_nodes if per_atom(q) else 1
        target = graph.targets[q.name].double().numpy()
        value = np.asarray(result[q.name], dtype=np.float64).reshape(target.shape)
        spread = np.asarray(result[f"{q.name}_spread"], dtype=np.float64).reshape(
            -1, *[1] * (target.ndim - 1)
        )
        errors.append(((value - target) / count).ravel())
        spreads.append((np.broadcast_to(spread, target.shape) / count).ravel())
    error, spread = np.concatenate(errors), np.concatenate(spreads)
    known = ~np.isnan(error) & ~np.isnan(spread)
    return Calibration(q, f"{q.unit}/atom" if per_atom(q) else q.unit, error[known], spread[known])
