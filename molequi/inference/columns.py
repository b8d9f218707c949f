"""Columns of tables of predictions, one number in each; the same in files and in a DataFrame."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.model import Model
from molequi.ops.indices import index_permutations
from molequi.quantities import Quantity
from molequi.readers.headers import header


@dataclass(frozen=True)
class Column:
    """A column of a table of predictions.

    Parameters
    ----------
    name : str
        Its name, such as ``dipole_x``.
    unit : str
        Its unit; empty for a pure number or a text.
    note : str
        What its name in a file adds to the unit.
    """

    name: str
    unit: str = ""
    note: str = ""

    @property
    def header(self) -> str:
        """Its name in a file: ``dipole_x (e Å)``."""
        return header(self.name, ", ".join(filter(None, [self.unit, self.note])))


@dataclass(frozen=True)
class Layout:
    """The columns of the predictions of a model, and the cells of one structure or molecule.

    - A number: ``gap``; with intervals ``gap_low`` and ``gap_high``; of an ensemble ``gap_std``; with several
      conformers, over which it is the mean, ``gap_conformer_std``.
    - A class: its name, the probability of each, and of an ensemble the standard deviation.
    - A vector: ``dipole_x``, ``dipole_y``, ``dipole_z`` and its length ``dipole_norm``. A tensor:
      ``polarizability_xx``, …, with each component once that symmetry makes equal, a third of its trace
      ``polarizability_iso`` and its Frobenius norm ``polarizability_norm``.
      Components refer to the axes of the geometry. Conformers have different axes, so that with several there
      are ``_norm`` and ``_iso`` alone, as means with their standard deviations.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    several : bool
        Whether a result is that of several conformers.
    intervals : sequence of str
        Quantities with an interval.
    dim : int
        Number of dimensions.
    """

    model: Model | Ensemble
    several: bool = False
    intervals: Sequence[str] = ()
    dim: int = 3

    def __post_init__(self) -> None:
        """Raise ConfigError if two columns would have the same name."""
        names = [column.name for column in (*self.columns, *self.node_columns())]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(
                f"a table of these predictions would have two columns {twice[0]!r}: the model predicts a "
                "quantity "
                f"of this name, and {twice[0]!r} belongs to another one too; predict with a model whose "
                "quantity "
                "has another name, or without the option that makes this column"
            )

    @property
    def quantities(self) -> list[Quantity]:
        """The quantities in the table: those of a whole structure."""
        return [q for q in self.model.quantities.values() if q.per == "graph"]

    @property
    def per_node(self) -> list[Quantity]:
        """The other ones: those of each atom or point."""
        return [q for q in self.model.quantities.values() if q.per == "node"]

    @property
    def columns(self) -> list[Column]:
        """All columns in their order."""
        return [column for q in self.quantities for column in self._columns(q)]

    def cells(self, result: Mapping[str, np.ndarray]) -> list[Any]:
        """A cell for each column: a number or the name of a class; None without a result.

        Parameters
        ----------
        result : mapping of str to array
            One result of `molequi.inference.predictions.predictions` (classes as scores) or of
            `molequi.inference.molecule_predictions.averaged`.
        """
        if not result:
            return [None] * len(self.columns)
        return [cell for q in self.quantities for cell in self._cells(q, result)]

    def node_columns(self) -> list[Column]:
        """Columns of a table with a row for each atom."""
        return [column for q in self.per_node for column in self._node_columns(q)]

    def node_cells(self, result: Mapping[str, np.ndarray], node: int) -> list[Any]:
        """A cell for each of `node_columns`.

        Parameters
        ----------
        result : mapping of str to array
            The result of one geometry.
        node : int
            Number of the atom.
        """
        return [cell for q in self.per_node for cell in self._node_cells(q, result, node)]

    def _columns(self, q: Quantity) -> Iterator[Column]:
        std = self._std(q)
        if q.classes:
            yield Column(q.name)
            yield from (Column(f"{q.name}_{c}") for c in q.classes)
            yield from std
            return
        if not q.rank:
            yield Column(q.name, q.unit)
            if q.name in self.intervals:
                yield from (Column(f"{q.name}_{end}", q.unit) for end in ("low", "high"))
            yield from std
            if self.several:
                yield Column(f"{q.name}_conformer_std", q.unit)
            return
        if not self.several:
            yield from (Column(f"{q.name}_{axes(k)}", q.unit) for k in components(q, self.dim))
        yield from std
        for what in invariants(q):
            yield Column(f"{q.name}_{what}", q.unit)
            if self.several:
                yield Column(f"{q.name}_{what}_conformer_std", q.unit)

    def _cells(self, q: Quantity, result: Mapping[str, np.ndarray]) -> Iterator[Any]:
        value = np.asarray(result[q.name])
        std = [_rms(result[f"{q.name}_std"])] if self._std(q) else []
        if q.classes:
            odds = np.exp(value - value.max())
            yield q.classes[int(value.argmax())]
            yield from (odds / odds.sum()).tolist()
            yield from std
            return
        if not q.rank:
            yield float(value)
            if q.name in self.intervals:
                yield from (float(result[f"{q.name}_{end}"]) for end in ("low", "high"))
            yield from std
            if self.several:
                yield float(result[f"{q.name}_conformer_std"])
            return
        if not self.several:
            yield from (float(value[k]) for k in components(q, self.dim))
        yield from std
        values = value if self.several else value[None]
        for what in invariants(q):
            each = np.array([_invariant(what, one) for one in values])
            yield float(each.mean())
            if self.several:
                yield float(each.std(ddof=1)) if len(each) > 1 else np.nan

    def _std(self, q: Quantity) -> list[Column]:
        """The column of the standard deviation over the members of an ensemble."""
        if not self.model.stds:
            return []
        # Those of classes are never scaled.
        note = "" if q.classes or q.name in scales_of(self.model) else "not calibrated"
        return [Column(f"{q.name}_std", q.unit, note)]

    def _node_columns(self, q: Quantity) -> Iterator[Column]:
        if q.classes:
            yield Column(q.name)
            yield from (Column(f"{q.name}_{c}") for c in q.classes)
        elif q.rank:
            yield from (Column(f"{q.name}_{axes(k)}", q.unit) for k in components(q, self.dim))
        else:
            yield Column(q.name, q.unit)
        yield from self._std(q)

    def _node_cells(self, q: Quantity, result: Mapping[str, np.ndarray], node: int) -> Iterator[Any]:
        value = np.asarray(result[q.name])[node]
        if q.classes:
            odds = np.exp(value - value.max())
            yield q.classes[int(value.argmax())]
            yield from (odds / odds.sum()).tolist()
        elif q.rank:
            yield from (float(value[k]) for k in components(q, self.dim))
        else:
            yield float(value)
        if self._std(q):
            yield float(np.asarray(result[f"{q.name}_std"])[node])


def scales_of(model: Model | Ensemble) -> dict[str, float]:
    """The factors by which the standard deviations of an ensemble were multiplied; empty for a single model.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    """
    return dict(model.scales) if isinstance(model, Ensemble) else {}


def components(q: Quantity, dim: int) -> list[tuple[int, ...]]:
    """Indices of the components of a quantity, without those that its symmetry makes equal or zero.

    Parameters
    ----------
    q : Quantity
        The quantity.
    dim : int
        Number of dimensions.

    Examples
    --------
    >>> from molequi import Quantity
    >>> [axes(k) for k in components(Quantity("alpha", rank=2, symmetry="ij=ji"), 3)]
    ['xx', 'xy', 'xz', 'yy', 'yz', 'zz']
    >>> [axes(k) for k in components(Quantity("spin", rank=2, symmetry="ij=-ji"), 3)]
    ['xy', 'xz', 'yz']
    """
    permutations = index_permutations(q.symmetry, q.rank)
    out = []
    for index in product(range(dim), repeat=q.rank):
        images = [(tuple(index[p] for p in order), sign) for order, sign in permutations.items()]
        zero = any(image == index and sign < 0 for image, sign in images)
        if not zero and index == min(image for image, _ in images):
            out.append(index)
    return out


def axes(index: Sequence[int]) -> str:
    """Letters of the axes of a component: ``xy`` for (0, 1); numbers beyond three dimensions.

    Parameters
    ----------
    index : sequence of int
        Index of the component.
    """
    return "".join("xyz"[k] for k in index) if max(index) < 3 else "_".join(map(str, index))


def invariants(q: Quantity) -> list[str]:
    """What does not depend on the axes of a vector ("norm") or tensor ("iso" for rank 2, "norm").

    Parameters
    ----------
    q : Quantity
        The quantity.
    """
    trace = q.rank == 2 and index_permutations(q.symmetry, 2).get((1, 0)) != -1
    return ["iso", "norm"] if trace else ["norm"]


def _invariant(what: str, value: np.ndarray) -> float:
    return float(np.trace(value) / len(value) if what == "iso" else np.linalg.norm(value))


def _rms(std: np.ndarray) -> float:
    """A standard deviation over members; of several geometries their root mean square."""
    return float(np.sqrt(np.mean(np.square(std))))
