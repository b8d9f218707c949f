"""How well the standard deviations of an ensemble say how large its errors are."""

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
from molequi.inference.predictions import predicted_blocks
from molequi.quantities import Quantity, per_atom
from molequi.terms import as_labelled
from molequi.util.html import html_text

NORMAL = (0.6826894921370859, 0.9544997361036416)  # of a normal law, within one and two standard deviations


@dataclass(frozen=True)
class Calibration:
    """Errors of one quantity of an ensemble and its standard deviations, component by component.

    Those of extensive scalars are per atom.

    Parameters
    ----------
    quantity : Quantity
        The quantity.
    unit : str
        Unit of both arrays.
    error : array, shape (n,)
        Prediction minus label.
    std : array, shape (n,)
        Standard deviation over the members.
    """

    quantity: Quantity
    unit: str
    error: np.ndarray
    std: np.ndarray

    @property
    def scale(self) -> float:
        """Factor √(Σ e² / Σ s²) that makes the standard deviations as large as the errors.

        It is infinite if no standard deviation is above zero. The mean of e²/s² is no such factor: for two or
        three members its expectation does not exist for scalars, because s may be near zero by chance.
        """
        return float(np.sqrt(np.mean(self.error**2) / np.mean(self.std**2))) if self.std.any() else np.inf

    @property
    def within(self) -> tuple[float, float]:
        """Fractions of the errors within one and two standard deviations; compare NORMAL."""
        size = np.abs(self.error)
        return float(np.mean(size <= self.std)), float(np.mean(size <= 2 * self.std))

    @property
    def miscalibration(self) -> float:
        """Miscalibration area ``∫ |F(p) - p| dp`` (Kuleshov, Fenner and Ermon, ICML 2018): 0 is perfect, 1/2
        the worst.

        F(p) is the fraction of errors inside the central interval to which a normal distribution with this
        standard deviation gives the probability p.
        """
        size = np.abs(self.error)
        ratio = np.divide(size, self.std, out=np.where(size > 0, np.inf, 0.0), where=self.std > 0)
        level = np.sort(torch.erf(torch.from_numpy(ratio / np.sqrt(2))).numpy())
        p = np.linspace(0, 1, 2001)
        return float(np.trapezoid(np.abs(np.searchsorted(level, p, side="right") / len(level) - p), p))

    def scaled(self, factor: float) -> "Calibration":
        """The same with all standard deviations multiplied.

        Parameters
        ----------
        factor : float
            For instance `scale`.
        """
        return Calibration(self.quantity, self.unit, self.error, factor * self.std)

    def bins(self, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
        """Root mean square standard deviations and errors of groups of equal size.

        Parameters
        ----------
        count : int
            Number of groups, ordered by standard deviation.

        Returns
        -------
        (array, array), shape (count,)
        """
        groups = np.array_split(np.argsort(self.std, kind="stable"), min(count, len(self.std)))
        std, error = (
            np.array([np.sqrt(np.mean(values[g] ** 2)) for g in groups]) for values in (self.std, self.error)
        )
        return std, error

    def __str__(self) -> str:
        one, two = self.within
        return (
            f"{self.quantity.name}: errors are {self.scale:.3g} × the standard deviations; "
            f"{one:.0%} within one ({NORMAL[0]:.0%} of a normal law), "
            f"{two:.0%} within two ({NORMAL[1]:.0%}); "
            f"miscalibration {self.miscalibration:.3f}; {len(self.error)} values"
        )

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


def calibration(model: Ensemble | str | os.PathLike, data: Any, **options: Any) -> dict[str, Calibration]:
    """Errors and standard deviations of an ensemble, for each quantity with labels that is no class.

    On data that were not trained on, they calibrate the ensemble:
    ``model.calibrated({name: c.scale for name, c in calibration(model, data).items()})``.

    Parameters
    ----------
    model : Ensemble, str or Path
        The ensemble, or its file.
    data : object
        A Dataset, or what `molequi.load_dataset` takes.
    **options
        As in `molequi.evaluate`.

    Returns
    -------
    dict of str to Calibration

    Raises
    ------
    ConfigError
        For a single model.
    """
    ensemble, data = with_labels(model, data, **options)
    if not isinstance(ensemble, Ensemble):
        raise ConfigError(
            f"calibration is of an Ensemble, and this is one {type(ensemble).__name__}, which gives no "
            "standard deviation; make several with fit(..., seed=[0, 1, 2]), or add it to this one with "
            "mq.laplace(model, train, valid)"
        )
    ensemble = as_labelled(ensemble)
    wanted = {name: q for name, q in ensemble.quantities.items() if not q.classes and data.labelled(name)}
    if not wanted:
        return {}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    stds: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for block, results in predicted_blocks(ensemble, data, progress=False):
        for name, q in wanted.items():
            error, std = _known_errors(q, block, results.values)
            errors[name].append(error)
            stds[name].append(std)
    found = {
        name: Calibration(
            q,
            f"{q.unit}/atom" if per_atom(q) else q.unit,
            np.concatenate(errors[name]),
            np.concatenate(stds[name]),
        )
        for name, q in wanted.items()
    }
    return {name: one for name, one in found.items() if len(one.error)}


def _known_errors(
    q: Quantity, data: Dataset, values: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Errors and standard deviations of the components of one quantity, where both are known."""
    target = data.values(q.name).numpy()
    value = values[q.name].astype(np.float64).reshape(target.shape)
    std = values[f"{q.name}_std"].astype(np.float64)
    std = np.broadcast_to(std.reshape(-1, *[1] * (target.ndim - 1)), target.shape)
    counts = data.counts if per_atom(q) else np.ones(1)
    error, std = (value - target) / counts, std / counts
    known = ~np.isnan(error) & ~np.isnan(std)
    return error[known], std[known]
