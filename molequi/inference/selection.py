"""Choose the structures of a pool that are worth a label: uncertain ones, unlike each other."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt

from molequi.data.dataset import Dataset
from molequi.domain import read_as_trained, totals_taken
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.inference.descriptors import descriptors
from molequi.inference.predictions import Trained, loaded, predicted_blocks
from molequi.model import Model
from molequi.quantities import Quantity, per_atom
from molequi.readers import to_atoms
from molequi.util.files import check_target, write_results
from molequi.util.html import html_table, html_text
from molequi.util.signature import check_call
from molequi.util.tables import text_table

By = Literal["both", "uncertainty", "diversity", "random"]
_SAMPLE = 300  # structures whose distances give the length scale
_KNOWN = 500  # labelled structures that are looked at
_ROWS = 12  # of the table
_ROUNDING = 1e-5  # of invariants in float32, relative to the largest
_ARGUMENTS = ("n", "by", "known", "max_std", "seed", "out", "device", "batch_edges", "progress")


@dataclass(frozen=True, eq=False)
class Selection(Sequence[int]):
    """The structures that `select` chose, in the order of their choice; printed, a table.

    Parameters
    ----------
    indices : array of int, shape (n,)
        Their numbers in the pool.
    pool : Dataset
        All structures.
    uncertainty : array, shape (pool,), or None
        Standard deviation of each structure of the pool; None if it was not asked for.
    novelty : array, shape (n,), or None
        Share of the variance that is left by those chosen before: 1 for a structure unlike all of them, 0 for
        a copy.
    what : str
        Which standard deviation this is, with its unit.
    left_out : int
        Structures with a standard deviation above the largest one.
    """

    indices: np.ndarray
    pool: Dataset
    uncertainty: np.ndarray | None
    novelty: np.ndarray | None
    what: str
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.indices[index]

    @property
    def structures(self) -> Dataset:
        """The structures that were chosen."""
        return self.pool[self.indices.tolist()]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        head = ["", "structure", *([self.what] if self.uncertainty is not None else [])]
        head += ["novelty"] if self.novelty is not None else []
        rows = []
        for k, index in enumerate(self.indices[:_ROWS].tolist()):
            row = [str(k + 1), self.pool.origins[index]]
            row += [f"{self.uncertainty[index]:.3g}"] if self.uncertainty is not None else []
            row += [f"{self.novelty[k]:.2f}"] if self.novelty is not None else []
            rows.append(row)
        return head, rows

    def _summary(self) -> str:
        text = f"{len(self)} of {len(self.pool)} structures"
        if self.uncertainty is not None:
            chosen, all_ = self.uncertainty[self.indices], self.uncertainty[np.isfinite(self.uncertainty)]
            text += f"; {self.what}: median {np.median(chosen):.3g}, of the pool {np.median(all_):.3g}"
        if self.left_out:
            text += f"; {self.left_out} above max_std left out"
        return text

    def __str__(self) -> str:
        head, rows = self._table()
        more = [f"and {len(self) - _ROWS} more"] if len(self) > _ROWS else []
        return "\n".join([self._summary(), *text_table(head, rows, left=(1,)), *more])

    def _repr_html_(self) -> str:
        head, rows = self._table()
        return html_text(self._summary()) + html_table(head, rows, left=(1,))

    __repr__ = __str__


def select(
    model: Trained,
    pool: Any,
    n: Annotated[int, Gt(0)] = 50,
    *,
    by: By = "both",
    known: Any = None,
    max_std: Annotated[float, Gt(0)] | None = None,
    seed: Annotated[int, Ge(0)] = 0,
    out: str | os.PathLike[str] | None = None,
    device: str | None = None,
    batch_edges: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Selection:
    """Choose structures of a pool to be labelled: uncertain ones that differ from each other.

    The structures are chosen one after another. Each has the largest variance under the condition of those
    before it, in a Gaussian process with the covariance

        k_ij = s_i s_j exp(-d_ij² / (2 ℓ²)),

    where s_i is the standard deviation of structure i, d_ij the distance of the mean invariants of its atoms
    (`molequi.descriptors`, each channel divided by its standard deviation over the pool), and ℓ the median
    distance in the pool. So a structure like one that is chosen already has little left to offer. This
    greedy choice maximizes the determinant of the covariance step by step.

    s_i is the largest ``forces_std`` of an atom; for a model without forces the first other standard
    deviation, of extensive quantities per atom.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        An `Ensemble` or what `molequi.laplace` returned, or its file. A single Model suffices for "diversity"
        and "random".
    pool : object
        What `molequi.load_dataset` takes, such as the trajectory of `molequi.md`. Labels are not read.
    n : int, > 0
        Number of structures.
    by : "both", "uncertainty", "diversity" or "random"
        "uncertainty" takes the largest s_i, "diversity" sets all s_i to 1, "random" needs no model.
    known : object, optional
        Structures that are labelled already. Those chosen shall also differ from them; not for "uncertainty"
        and "random".
    max_std : float, > 0, optional
        Structures with a larger s_i are left out: far from the training data they may be so distorted that a
        label is worth nothing.
    seed : int
        Seed of "random", and of the structures that give ℓ.
    out : str or Path, optional
        An extended XYZ file for the structures, with their s_i as ``uncertainty``.
    device, batch_edges, progress
        As in `molequi.predict`.
    **options
        Options of the reader.

    Returns
    -------
    Selection
        Numbers of the structures, in the order of their choice, and a table.

    Raises
    ------
    ConfigError
        If the pool has fewer than n structures, if the model gives no standard deviation, or if an argument
        would have no effect.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.PaiNN(elements=["C", "H", "O"], cutoff=3.0, channels=8, layers=1))
    >>> chosen = mq.select(model, mq.shipped("ethanol_300K.xyz"), 3, by="diversity", progress=False)
    >>> len(chosen), len(set(chosen))
    (3, 3)
    """
    given: dict[str, Any] = {"n": n, "by": by, "max_std": max_std, "seed": seed}
    check_call(select, given, where="select", leave_out=("model", "pool"))
    for name, value in (("known", known), ("max_std", max_std)):
        useless = ("uncertainty", "random") if name == "known" else ("diversity", "random")
        if value is not None and by in useless:
            raise ConfigError(f"select: {name} would have no effect with by={by!r}; leave it out")
    if out is not None:
        if Path(out).suffix not in (".xyz", ".extxyz"):
            raise ConfigError(f"select: out={out}; wanted an extended XYZ file, such as picks.xyz")
        check_target(out)
    used = loaded(model, device)
    if by in ("both", "uncertainty"):
        std_of(used)
    data = _read(used, pool, options)
    if len(data) < n:
        raise ConfigError(f"select: n={n} of a pool of {len(data)} structures; wanted at most {len(data)}")
    more: dict[str, Any] = {"batch_edges": batch_edges, "progress": progress}
    found = _chosen(used, data, n, by, None if known is None else _read(used, known, {}), max_std, seed, more)
    if out is not None:
        write_results(Path(out), lambda path: _write(path, found))
    return found


def _read(model: Model | Ensemble, what: Any, options: Mapping[str, Any]) -> Dataset:
    return read_as_trained(model, what, options, only=totals_taken(model), where="select", more=_ARGUMENTS)


def _chosen(
    model: Model | Ensemble,
    data: Dataset,
    n: int,
    by: By,
    known: Dataset | None,
    max_std: float | None,
    seed: int,
    more: Mapping[str, Any],
) -> Selection:
    rng = np.random.default_rng(seed)
    if by == "random":
        return Selection(rng.choice(len(data), n, replace=False), data, None, None, "")
    std, what = (None, "") if by == "diversity" else uncertainties(model, data, **more)
    weight = np.ones(len(data)) if std is None else np.where(np.isfinite(std), std, 0.0)
    left_out = 0
    if max_std is not None:
        left_out = int((weight > max_std).sum())
        weight = np.where(weight > max_std, 0.0, weight)
    if (weight > 0).sum() < n:
        raise ConfigError(
            f"select: {int((weight > 0).sum())} of {len(data)} structures have a standard deviation above 0"
            + (f" and at most max_std={max_std:g}" if max_std is not None else "")
            + f"; wanted n={n} of them: take a smaller n or a larger max_std"
        )
    if by == "uncertainty":
        return Selection(np.argsort(-weight, kind="stable")[:n], data, std, None, what, left_out)
    parts = [data] if known is None else [data, known[_some(len(known), _KNOWN, rng)]]
    features = [_features(model, part, more) for part in parts]
    scale = features[0].std(0)
    varies = scale > _ROUNDING * np.abs(features[0]).max()  # the remainder would be noise made large
    features = [f[:, varies] / scale[varies] for f in features]
    indices, novelty = greedy(features[0], weight, n, features[1] if known is not None else None, rng)
    return Selection(indices, data, std, novelty, what, left_out)


def _some(count: int, most: int, rng: np.random.Generator) -> list[int]:
    found: list[int] = np.sort(rng.choice(count, min(count, most), replace=False)).tolist()
    return found


def _features(model: Model | Ensemble, data: Dataset, more: Mapping[str, Any]) -> np.ndarray:
    member = 0 if isinstance(model, Ensemble) else None
    found = descriptors(model, data, irreps=["0e"], pool="mean", member=member, **more)
    return np.asarray(found.invariants, dtype=np.float64)


def greedy(
    features: np.ndarray,
    weights: np.ndarray,
    n: int,
    known: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the largest conditional variance, one after another: a Cholesky decomposition with pivots.

    Parameters
    ----------
    features : array, shape (N, C)
        A row for each structure.
    weights : array, shape (N,)
        Their standard deviations.
    n : int
        How many rows are chosen.
    known : array, shape (K, C), optional
        Rows that are known from the beginning.
    rng : numpy.random.Generator
        Chooses the rows that give the length scale.

    Returns
    -------
    (array of int, array), shape (n,)
        The rows, and the share of the variance that each had left.
    """
    some = features[_some(len(features), _SAMPLE, rng)]
    distances = np.sqrt(_squared(some, some))[np.triu_indices(len(some), 1)]
    length = float(np.median(distances)) if len(distances) else 0.0
    length = length or 1.0
    left, columns = np.ones(len(features)), np.zeros((len(features), 0))
    if known is not None:
        inverse = np.linalg.pinv(_kernel(known, known, length), hermitian=True, rcond=1e-10)
        values, vectors = np.linalg.eigh(inverse)
        columns = _kernel(features, known, length) @ (vectors * np.sqrt(np.clip(values, 0, None)))
        left = np.clip(1 - np.square(columns).sum(1), 0, 1)
    chosen, novelty = [], []
    free = np.ones(len(features), bool)
    for _ in range(n):
        score = np.where(free, weights**2 * np.maximum(left, 1e-9), -1.0)
        k = int(score.argmax())
        chosen.append(k)
        novelty.append(float(left[k]))
        free[k] = False
        row = _kernel(features, features[k : k + 1], length)[:, 0] - columns @ columns[k]
        column = row / np.sqrt(max(left[k], 1e-9))
        columns = np.concatenate([columns, column[:, None]], 1)
        left = np.clip(left - column**2, 0, 1)
    return np.array(chosen), np.array(novelty)


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.asarray(np.clip(found, 0, None))


def _kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    return np.asarray(np.exp(-_squared(a, b) / (2 * length**2)))


def std_of(model: Model | Ensemble) -> Quantity:
    """The quantity whose standard deviation says how uncertain a structure is: forces, if there are any.

    Parameters
    ----------
    model : Model or Ensemble
        The model.

    Raises
    ------
    ConfigError
        If the model gives no standard deviation.
    """
    if not model.stds:
        raise ConfigError(
            "the model gives no standard deviation; add it with mq.laplace(model, train, valid), give an "
            "Ensemble, or choose by='diversity' or 'random'"
        )
    return model.quantities.get("forces") or next(iter(model.quantities.values()))


def uncertainties(
    model: Model | Ensemble, data: Dataset, *, batch_edges: int | None = None, progress: bool = False
) -> tuple[np.ndarray, str]:
    """The standard deviation of each structure and what it is: of atoms the largest one.

    Parameters
    ----------
    model : Model or Ensemble
        The model.
    data : Dataset
        The structures.
    batch_edges, progress
        As in `molequi.predict`.
    """
    q = std_of(model)
    found = []
    for block, results in predicted_blocks(model, data, batch_edges, progress):
        value = results.values[f"{q.name}_std"].astype(np.float64)
        if q.per == "node":
            value = np.maximum.reduceat(value, np.concatenate([[0], np.cumsum(block.counts)[:-1]]))
        found.append(value / block.counts if per_atom(q) else value)
    unit = f"{q.unit}/atom" if per_atom(q) else q.unit
    return np.concatenate(found), f"{'largest ' * (q.per == 'node')}{q.name}_std ({unit})"


def _write(path: Path, found: Selection) -> None:
    for k, index in enumerate(found.indices.tolist()):
        atoms = to_atoms(found.pool[index].replace(targets={}))
        atoms.info["origin"] = found.pool.origins[index]
        if found.uncertainty is not None:
            atoms.info["uncertainty"] = float(found.uncertainty[index])
        atoms.write(path, format="extxyz", append=k > 0)
