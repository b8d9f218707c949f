"""Scales, shifts and reference energies of heads from the statistics of training data."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from molequi.heads.base import Head
from molequi.heads.scalars import Scalar


@runtime_checkable
class TrainingStatistics(Protocol):
    """What a model takes from the statistics of its training data, see `data.Statistics`."""

    @property
    def mean_neighbors(self) -> float:
        """Mean number of neighbors of a node."""

    @property
    def scale(self) -> Mapping[str, float]:
        """Scale of each quantity."""

    @property
    def shift(self) -> Mapping[str, float | dict[int, float]]:
        """Shift of each quantity, for all elements or by atomic number."""

    @property
    def reference_energies(self) -> Mapping[int, float]:
        """Atomic reference energies by atomic number, in eV."""


def standardize(heads: Mapping[str, Head], statistics: TrainingStatistics) -> None:
    """Set the scales, shifts and reference energies of heads.

    Parameters
    ----------
    heads : mapping of str to Head
        The heads by quantity.
    statistics : Statistics
        As `Dataset.statistics` gives them.
    """
    for name, head in heads.items():
        if name in statistics.scale:  # without labels a head keeps what it has
            head.standardize(
                scale=statistics.scale[name],
                shift=statistics.shift.get(name, 0.0),
                reference_energies=statistics.reference_energies if name == "energy" else None,
            )
        elif name == "energy" and isinstance(head, Scalar):
            head.standardize(
                scale=float(head.scale), shift={}, reference_energies=statistics.reference_energies
            )
