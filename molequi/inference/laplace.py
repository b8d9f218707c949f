"""Fit a Laplace approximation of the last layers: posterior from training data, calibration on others."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.data.overlap import warn_of_overlap
from molequi.environments import fit_environments
from molequi.errors import ConfigError
from molequi.graph import Graph
from molequi.inference.conformal import scores_of
from molequi.inference.evaluate import with_labels
from molequi.inference.predictions import evaluation_batches, predicted_blocks
from molequi.last_layer import (
    LaplaceEnsemble,
    Step,
    check_linear,
    check_model,
    environment_features,
    last_layer,
)
from molequi.model import Model
from molequi.quantities import Quantity, per_atom
from molequi.terms import as_labelled
from molequi.util.progress import ProgressBar
from molequi.util.signature import check_call, check_keywords

_GRID = 10.0 ** np.arange(-10, 1)  # regularizers that are tried, in units of the largest eigenvalue
_CHUNK = 16  # directions at once
_EDGES = 4000  # in a batch; Jacobians have a row for each weight
USUAL = 0.99  # of the validation structures have no atom farther from the training data
_FEWEST = 10  # validation structures


@check_keywords()
def laplace(
    model: Model | str | os.PathLike[str],
    train: Any,
    valid: Any,
    *,
    directions: Annotated[int, Ge(2)] = 8,
    structures: Annotated[int, Ge(10)] = 300,
    seed: Annotated[int, Ge(0)] = 0,
    progress: bool = True,
) -> LaplaceEnsemble:
    """Add standard deviations to one trained model: energies, forces, stress and other quantities.

    The last layer of each head gets the posterior of Bayesian linear regression, see `molequi.last_layer`;
    nothing is trained. Every label of the quantity and of its derivatives counts, divided by the mean squared
    error of its kind on the validation data. The regularizer λ is the one of eleven, over ten orders of
    magnitude, with the largest likelihood of the validation errors; for each λ the factor of the standard
    deviations has a closed form, √(Σ e² / Σ s²).

    The result is used like an `Ensemble`: `predict`, `evaluate`, `Calculator`, `md` and `screen` give
    ``energy_std``, ``forces_std`` and so on. The predictions are those of the model, bit for bit. A
    prediction without derivatives needs no backward pass; forces take one more pass through the backbone and
    `directions` backward passes.

    Parameters
    ----------
    model : Model, str or Path
        The trained model, or its file.
    train : object
        The data that it was trained on: a Dataset, or what `molequi.load_dataset` takes.
    valid : object
        Labelled data that it was not trained on, 10 structures or more.
    directions : int, >= 2
        Backward passes for the standard deviation of a derivative. Its random error decreases as their root;
        as many as the last layer has weights make it exact.
    structures : int, >= 10
        Largest number of structures taken from each part, by chance. Each takes a backward pass for every
        weight of the last layer, if the model has derivatives. For the distances of
        `molequi.environments`, some structures with elements that these lack are taken from `train` too.
    seed : int
        Seed of this choice and of the random directions.
    progress : bool
        Show a progress bar.

    Returns
    -------
    LaplaceEnsemble
        The model with standard deviations; `molequi.save` writes it.

    Raises
    ------
    ModelError
        If the last layer has no such posterior: an output that is not linear in it, classes, derivatives of
        derivatives, an ensemble, a model of several levels.
    ConfigError
        If the data have no labels, or too few validation structures.
    molequi.errors.DataWarning
        If training and validation data have structures in common: calibrated on these, standard deviations
        are too small.

    Examples
    --------
    >>> import molequi as mq
    >>> data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))
    >>> model = mq.Model(mq.PaiNN(elements=["C", "H", "O"], cutoff=3.0, channels=8, layers=1))
    >>> trusted = laplace(model, data[:20], data[20:40], progress=False)
    >>> trusted(mq.connect(data[0], 3.0))["forces_std"].shape
    torch.Size([9])
    """
    options = {"directions": directions, "structures": structures, "seed": seed, "progress": progress}
    check_call(laplace, options, where="laplace", leave_out=("model", "train", "valid"))
    used, train = with_labels(model, train, where="laplace")
    check_model(used)
    assert isinstance(used, Model)
    _, valid = with_labels(used, valid, where="laplace")
    if len(valid) < _FEWEST:
        raise ConfigError(f"laplace: {len(valid)} validation structures; wanted {_FEWEST} or more")
    warn_of_overlap({"train": train, "valid": valid})
    trained, used = used.plain().eval(), as_labelled(used.plain().eval())
    _, first = next(evaluation_batches(used, train[:1], (), None))
    check_linear(used, first)
    rng = np.random.default_rng(seed)
    everything = train
    train, valid = (_chosen(part, structures, rng) for part in (train, valid))
    rare = _rare(everything, train)
    noise = _squared_errors(used, valid)
    roots: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    with ProgressBar("laplace", len(used.heads), unit="head", show=progress, delay=2) as bar:
        for name in used.heads:
            posterior = _Posterior.of(used, name, train, valid, noise)
            roots[name] = posterior.root(rng)
            scales |= posterior.scales(roots[name], directions)
            bar.advance()
    known = None
    if "forces" in used.quantities:
        atoms = chain.from_iterable(_environments(used, part) for part in (train, *rare))
        known = fit_environments(atoms, _environments(used, valid))
    found = LaplaceEnsemble(trained, roots, scales, directions, known)
    record: dict[str, Any] = {"train": len(train), "valid": len(valid), "seed": seed}
    level = None if known is None else _usual_distance(found, valid)
    if level is not None:
        record["distance"] = level
    record["scores"] = {n: one.kept(rng) for n, one in scores_of(found, valid, scaled=True).items()}
    found.metadata = dict(getattr(used, "metadata", None) or {}) | {"laplace": record}
    return found


def _chosen(data: Dataset, most: int, rng: np.random.Generator) -> Dataset:
    if len(data) <= most:
        return data
    return data[np.sort(rng.choice(len(data), most, replace=False)).tolist()]


def _rare(data: Dataset, chosen: Dataset) -> list[Dataset]:
    """Structures with elements that the chosen ones lack, at most `_FEWEST` for each element."""
    known, rows = set(chosen.graphs.z.unique().tolist()), dict[int, list[int]]()
    for block in data.graphs.blocks() if len(chosen) < len(data) else ():
        part = data.graphs.select(block)
        z, owners = part.z.numpy(), np.repeat(np.asarray(block), part.counts)
        for number in set(np.unique(z).tolist()) - known:
            own = rows.setdefault(number, [])
            own += np.unique(owners[z == number])[: _FEWEST - len(own)].tolist()
    found = sorted({row for own in rows.values() for row in own})
    return [data[found]] if found else []


def _environments(model: Model, data: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    for _, graph in evaluation_batches(model, data, (), None):
        yield environment_features(model, graph), graph.z


def _usual_distance(model: LaplaceEnsemble, data: Dataset) -> float | None:
    """The quantile USUAL of the largest distance in each structure, of those with elements that are known.

    None if there are none.
    """
    largest = [
        max(part.tolist())
        for _, graph in evaluation_batches(model, data, (), None)
        for part in model.distances(graph).split(graph.counts.tolist())
    ]
    finite = [value for value in largest if np.isfinite(value)]
    return float(np.quantile(finite, USUAL)) if finite else None


def _squared_errors(model: Model, data: Dataset) -> dict[str, float]:
    """Mean squared error of each quantity with labels; of extensive ones per atom."""
    sums: dict[str, list[np.ndarray]] = {}
    for block, found in predicted_blocks(model, data, progress=False):
        for name, q in model.quantities.items():
            if block.labelled(name):
                error = found.values[name].astype(np.float64) - block.values(name).numpy()
                sums.setdefault(name, []).append((error / (block.counts if per_atom(q) else 1.0)).ravel())
    errors = {name: np.concatenate(parts) for name, parts in sums.items()}
    nothing = [name for name, own in errors.items() if np.isnan(own).all()]
    if nothing:
        raise ConfigError(
            f"laplace: the predictions of {', '.join(nothing)} for the validation data are not finite; "
            "wanted a trained model, as mq.fit returns it"
        )
    means = {name: float(np.nanmean(own**2)) for name, own in errors.items()}
    missing = [name for name in model.heads if name not in means]
    if missing:
        raise ConfigError(
            f"laplace: the validation data have no labels of {', '.join(missing)}; wanted some of everything "
            "that the model predicts without differentiation, or model.predicting([…]) of fewer quantities"
        )
    least = float(np.finfo(np.float32).tiny)
    return {name: max(mean, least) for name, mean in means.items()}


@dataclass
class _Rows:
    """Jacobians of one quantity on validation data: of each row, mean over its components.

    Parameters
    ----------
    squares : list of arrays, shape (rows, n)
        Squares of the Jacobian along each eigenvector.
    errors : list of arrays, shape (rows,)
        Mean squared errors.
    outer : array, shape (n, n)
        Σ Jᵀ J, mean over the components, along the eigenvectors.
    """

    squares: list[np.ndarray] = field(default_factory=list)
    errors: list[np.ndarray] = field(default_factory=list)
    outer: Any = 0.0


@dataclass
class _Posterior:
    """The posterior of the last layer of one head.

    Parameters
    ----------
    values, vectors : array, shape (n,), (n, n)
        Eigenvalues and eigenvectors of the sum over the training labels.
    rows : mapping of str to _Rows
        Validation data of the quantity and of its derivatives.
    regularizer : float
        The λ of the largest likelihood.
    """

    values: np.ndarray
    vectors: np.ndarray
    rows: Mapping[str, _Rows]
    regularizer: float = 0.0

    @classmethod
    def of(
        cls, model: Model, name: str, train: Dataset, valid: Dataset, noise: Mapping[str, float]
    ) -> "_Posterior":
        """Measure it."""
        total: Any = 0.0
        for what, jacobian, _ in _jacobians(model, name, train, noise):
            flat = jacobian.reshape(-1, jacobian.shape[-1])
            total = total + flat.T @ flat / noise[what]
        if np.ndim(total) == 0:
            raise ConfigError(f"laplace: the training data have no labels of {name}")
        values, vectors = np.linalg.eigh(total)
        if not values[-1] > 0:
            raise ConfigError(
                f"laplace: {name} of the training data does not depend on the last layer, as if all were "
                "single atoms; wanted structures of several atoms within the cutoff"
            )
        rows: dict[str, _Rows] = {}
        for what, jacobian, error in _jacobians(model, name, valid, noise):
            along = jacobian @ vectors
            one = rows.setdefault(what, _Rows())
            one.squares.append(np.square(along).mean(1))
            one.errors.append(np.square(error).mean(1))
            flat = along.reshape(-1, along.shape[-1])
            one.outer = one.outer + flat.T @ flat / along.shape[1]
        found = cls(np.clip(values, 0.0, None), vectors, rows)
        grid = _GRID * found.values[-1]
        found.regularizer = min(grid, key=found._badness)
        return found

    def _badness(self, regularizer: float) -> float:
        """Negative log-likelihood of the validation errors, each quantity with the best factor."""
        total = 0.0
        for one in self.rows.values():
            s2 = np.concatenate(one.squares) @ (1 / (self.values + regularizer))
            e2 = np.concatenate(one.errors)
            if not (s2 > 0).any():
                continue
            s2 = np.maximum(s2 * e2.mean() / s2.mean(), 1e-12 * max(e2.mean(), 1e-300))
            total += float(np.mean(np.log(s2) + e2 / s2))
        return total

    def root(self, rng: np.random.Generator) -> Tensor:
        """R (n, n) with R Rᵀ = (G + λ)⁻¹, its columns in random directions."""
        n = len(self.values)
        basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
        return torch.from_numpy((self.vectors / np.sqrt(self.values + self.regularizer)) @ basis)

    def scales(self, root: Tensor, directions: int) -> dict[str, float]:
        """Factors √(Σ e² / Σ s²), with s² as the model computes it."""
        along, n = self.vectors.T @ root.numpy(), len(root)
        few = min(directions, n)
        found = {}
        for k, (name, one) in enumerate(self.rows.items()):
            used = along if k == 0 else along[:, :few] * np.sqrt(n / few)
            variance = float(np.einsum("ik,ij,jk->", used, one.outer, used))
            error = sum(float(e.sum()) for e in one.errors)
            found[name] = float(np.sqrt(error / variance)) if variance > 0 and error > 0 else 1.0
        return found


def _jacobians(
    model: Model, name: str, data: Dataset, noise: Mapping[str, float]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, Jacobian (rows, D, n) and errors (rows, D) of a quantity and its derivatives, batch by batch.

    Rows without a label are left out. Those of extensive quantities are per atom.
    """
    children = [q.name for q in model.gradients if q.gradient_of == name and q.name in noise]
    view = model.predicting([name, *children])
    labelled = [n for n in (name, *children) if data.labelled(n)]
    n = sum(p.numel() for p in last_layer(view.heads[name]).values())
    eye = torch.eye(n, device=model.device, dtype=model.dtype)
    for _, graph in evaluation_batches(view, data, labelled, _EDGES):
        out = view(graph)
        with torch.set_grad_enabled(bool(children)):
            step = Step(view, graph)
        found: dict[str, list[Tensor]] = {what: [] for what in labelled}
        for part in eye.split(_CHUNK, 1):
            if name in found:
                with torch.no_grad():
                    found[name].append(step.outputs(name, part))
            for slopes in step.slopes(name, part) if children else ():
                for what in found.keys() & slopes.keys():
                    found[what].append(slopes[what][None])
        for what, pieces in found.items():
            yield (what, *_known(model.quantities[what], torch.cat(pieces), out[what], graph))


def _known(q: Quantity, jacobian: Tensor, value: Tensor, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """The Jacobian as (rows, D, n) and the errors (rows, D), of the rows whose labels are known."""
    n, rows = jacobian.shape[:2]
    error = (value.double() - graph.targets[q.name].double()).reshape(rows, -1)
    jacobian = jacobian.double().reshape(n, rows, -1).permute(1, 2, 0)
    if per_atom(q):
        error, jacobian = error / graph.counts[:, None], jacobian / graph.counts[:, None, None]
    known = ~(error.isnan().any(1) | jacobian.flatten(1).isnan().any(1))
    return jacobian[known].cpu().numpy(), error[known].cpu().numpy()
