"""Equivariance errors of a trained model under random elements of symmetry groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from molequi.approximate.scales import quantity_scale, squared_errors
from molequi.approximate.transforms import SYMMETRIES, RandomTransforms, check_symmetries, random_transforms
from molequi.data.dataset import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.inference.evaluate import with_labels
from molequi.inference.metrics import Errors, Metrics
from molequi.inference.predictions import Trained, predicted_batches
from molequi.model import Model
from molequi.output_scales import output_scale
from molequi.quantities import Quantity, per_atom
from molequi.util.html import html_table
from molequi.util.signature import check_call
from molequi.util.tables import text_table


@dataclass(frozen=True)
class EquivarianceError:
    """Error of one quantity under random elements g of one symmetry.

    Parameters
    ----------
    symmetry : str
        "rotation", "reflection", "translation" or "permutation".
    quantity : str
        Name of the quantity.
    unit : str
        Unit of the root mean square errors.
    relative_error : float
        Equivariance error: the root mean square of f(gx) - ρ(g) f(x), divided by the scale of the quantity.
    rmse_transformed : float
        Root mean square error of f(gx) against the transformed label ρ(g) y, for extensive scalars per atom;
        NaN without labels.
    rmse_original : float
        Root mean square error of f(x) against the label y; NaN without labels.
    """

    symmetry: str
    quantity: str
    unit: str
    relative_error: float
    rmse_transformed: float
    rmse_original: float


@dataclass(frozen=True)
class EquivarianceErrors:
    """Equivariance errors of a model by symmetry and quantity.

    ``errors["rotation", "forces"]`` is one row; ``print(errors)`` shows all as a table.

    Parameters
    ----------
    rows : tuple of EquivarianceError
        One row for each symmetry and quantity.
    """

    rows: tuple[EquivarianceError, ...]

    def __getitem__(self, key: tuple[str, str]) -> EquivarianceError:
        found = {(row.symmetry, row.quantity): row for row in self.rows}
        if key not in found:
            raise KeyError(f"{key}; there are {', '.join(map(str, found))}")
        return found[key]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                r.symmetry,
                r.quantity,
                f"{r.relative_error:.2e}",
                f"{r.rmse_transformed:.4g}",
                f"{r.rmse_original:.4g}",
                r.unit,
            )
            for r in self.rows
        ]

    def __str__(self) -> str:
        return "\n".join(text_table(_HEAD, self._rows(), left=_WORDS))

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows(), left=_WORDS)

    __repr__ = __str__


_HEAD = ("symmetry", "quantity", "relative error", "RMSE transformed", "RMSE original", "unit")
_WORDS = (0, 1, 5)


def equivariance_errors(
    model: Trained,
    data: Any,
    *,
    symmetries: Sequence[str] = SYMMETRIES,
    draws: Annotated[int, Gt(0)] = 4,
    seed: Annotated[int, Ge(0)] = 0,
    group: str = "O(n)",
    shift: Annotated[float, Gt(0)] | None = None,
) -> EquivarianceErrors:
    """How far a model is from each symmetry, on randomly transformed structures.

    Use it on validation data to choose the weights of an `EquivarianceRegularizer`: errors on transformed
    training structures say little about new ones. The transformed label is correct only if the physical law
    behind the data has the symmetry. The relative error needs no labels.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model, or its file.
    data : object
        What `molequi.evaluate` takes, with or without labels.
    symmetries : sequence of str
        Some of "rotation", "reflection", "translation", "permutation".
    draws : int, > 0
        Number of random elements for each structure and symmetry.
    seed : int, >= 0
        Seed of the random elements.
    group : str
        Group of the rotations and reflections, as in `molequi.symmetry.group`: "O(n)" for all, "O(n-1)" for
        those that keep the last axis, "Oh" for those of a cube.
    shift : float, > 0, optional
        Standard deviation of each component of a translation, in Å. By default the root mean square distance
        of the nodes from the centroid of their structure.

    Returns
    -------
    EquivarianceErrors
        Errors by symmetry and quantity. The scale of a quantity is that of its labels, or of its predictions
        if it has no labels: the root mean square of vectors, the standard deviation of scalars.

    Raises
    ------
    ConfigError
        If a symmetry is unknown or the group lacks it, and for what `molequi.evaluate` refuses.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.EGNN(elements=["H"], channels=8, layers=1), ["energy"]).double()
    >>> data = mq.Dataset([mq.Graph.single([[0.0, 0, 0], [0, 0, 0.8], [0, 0.9, 0]], ["H", "H", "H"])])
    >>> errors = equivariance_errors(model, data, symmetries=["rotation"])
    >>> errors["rotation", "energy"].relative_error < 1e-10
    True
    """
    options = {"draws": draws, "seed": seed, "group": group, "shift": shift}
    where = "equivariance_errors"
    check_call(equivariance_errors, options, where=where, leave_out=("model", "data", "symmetries"))
    if isinstance(symmetries, str) or not symmetries:
        raise ConfigError(f"symmetries={symmetries!r}: wanted a list of names from {', '.join(SYMMETRIES)}")
    check_symmetries(symmetries, "symmetries")
    model, data = with_labels(model, data)
    data = data.connected(model.cutoff, k=model.k)
    transforms = random_transforms(group, data, seed, shift, symmetries, where)
    return _measured(model, data, symmetries, draws, transforms)


def _measured(
    model: Model | Ensemble,
    data: Dataset,
    symmetries: Sequence[str],
    draws: int,
    transforms: RandomTransforms,
) -> EquivarianceErrors:
    """Errors of original and transformed structures, batch by batch."""
    quantities, device = model.quantities, model.device
    original = Metrics(quantities, data, device)
    transformed = {s: Metrics(quantities, data, device) for s in symmetries}
    labelled = list(original.quantities)
    unscaled = dict.fromkeys(quantities, 1.0)
    sums = {s: torch.zeros(2, len(quantities), dtype=torch.float64, device=device) for s in symmetries}
    unlabelled: list[dict[str, Tensor]] = []  # predictions without labels, for the scales
    for number, (batch, graph, out) in enumerate(predicted_batches(model, data, labelled, None)):
        unlabelled.append({n: v.double().cpu() for n, v in out.items() if n not in labelled})
        original.update(out, graph)
        counts = [data[k].num_nodes for k in batch]
        for s in symmetries:
            for draw in range(draws):
                g = transforms(s, counts, (draw, number)).to(device)
                image = g.graph(graph, quantities)
                found = model(image)  # f(gx)
                transformed[s].update(found, image)
                wanted = {n: g.value(q, out[n], graph) for n, q in quantities.items()}  # ρ(g) f(x)
                sums[s] += torch.stack(squared_errors(quantities, found, wanted, unscaled, graph))
                for k, name in enumerate(quantities):
                    if not torch.equal(found[name].isfinite(), wanted[name].isfinite()):
                        sums[s][0, k] = torch.nan  # a value without an image
    scales = {
        n: quantity_scale(q, data.values(n), data)
        if n in labelled
        else quantity_scale(q, torch.cat([o[n] for o in unlabelled]), data, output_scale(model, n))
        for n, q in quantities.items()
    }
    errors = {s: metrics.errors() for s, metrics in transformed.items()}
    errors_original = original.errors()
    rows = [
        EquivarianceError(
            s,
            n,
            q.unit + "/atom" * per_atom(q),
            float((total / count).sqrt()) / scales[n],
            _rmse(errors[s], q),
            _rmse(errors_original, q),
        )
        for s in symmetries
        for (n, q), total, count in zip(quantities.items(), *sums[s])
    ]
    return EquivarianceErrors(tuple(rows))


def _rmse(errors: Errors, q: Quantity) -> float:
    name = f"{q.name}_per_atom_rmse" if per_atom(q) else f"{q.name}_rmse"
    return errors.numbers().get(name, float("nan"))
