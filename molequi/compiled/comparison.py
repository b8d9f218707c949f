"""The largest difference between a plain and a compiled model, relative to the largest values."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from molequi.errors import AccelerateError
from molequi.graph import Graph
from molequi.heads import Scalar
from molequi.model import Model

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # largest relative difference that is accepted
# Values that are zero by symmetry have no size of their own. Differences of them are measured against this
# part of the largest values of other structures.
FLOOR = 0.1


def compare(
    model: Model,
    graph: Graph,
    plain: Mapping[str, Tensor],
    fast: Mapping[str, Tensor],
    *,
    gradients: bool,
    at_hand: Graph | None = None,
    largest: Mapping[str, float] | None = None,
) -> float:
    """The largest difference between plain and compiled outputs, relative to the largest plain value.

    Atomic reference energies and shifts are subtracted from the size of energies, since they hide errors.

    Parameters
    ----------
    model : Model
        The model that was compiled.
    graph : Graph
        The structures.
    plain, fast : mapping of str to Tensor
        Outputs of the plain and of the compiled model.
    gradients : bool
        Compare also the gradients of all parameters, for random slopes of all outputs.
    at_hand : Graph, optional
        The first structures of `graph`. Differences of these are divided by their own largest value, or by
        `FLOOR` times that of the others.
    largest : mapping of str to float, optional
        Largest value of each output on other structures.

    Returns
    -------
    float
        The difference.

    Raises
    ------
    AccelerateError
        If it exceeds `TOLERANCE`.
    """
    worst = {}
    for name, value in plain.items():
        rows = None if at_hand is None else at_hand.num_nodes if per_node(model, name) else at_hand.num_graphs
        worst[name] = _difference(
            value.detach(),
            fast[name].detach(),
            magnitudes(model, graph, name, value),
            rows,
            (largest or {}).get(name, 0.0),
        )
    if gradients:
        worst |= _gradient_differences(model, plain, fast)
    name = max(worst, key=lambda n: worst[n] if worst[n] == worst[n] else float("inf"))
    tolerance = TOLERANCE[model.dtype]
    if not worst[name] <= tolerance:
        raise AccelerateError(
            f"the compiled {type(model.backbone).__name__} differs from the plain one in {name}, by "
            f"{worst[name]:.1e} of its largest value (allowed: {tolerance:g}); it is not used. Leave "
            "accelerate away; where the backbone is your own, does it give exactly nothing for edges beyond "
            "the cutoff?"
        )
    return worst[name]


def _gradient_differences(
    model: Model, plain: Mapping[str, Tensor], fast: Mapping[str, Tensor]
) -> dict[str, float]:
    """Relative difference of the gradient of each parameter, for random slopes of all outputs."""
    generator = torch.Generator().manual_seed(0)
    slopes = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        for name, value in plain.items()
    }
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def slope_of(values: Mapping[str, Tensor]) -> Sequence[Tensor]:
        terms = [
            (torch.where(torch.isfinite(v), v, 0.0) * slopes[n]).sum().double()
            for n, v in values.items()
            if v.requires_grad
        ]
        return torch.autograd.grad(
            sum(terms[1:], terms[0]),
            list(parameters.values()),
            allow_unused=True,
            materialize_grads=True,
        )

    wanted, found = slope_of(plain), slope_of(fast)
    largest = max((float(g.abs().max()) for g in wanted), default=0.0)
    return {
        f"gradient of {name}": float((a - b).abs().max()) / max(float(a.abs().max()), 1e-2 * largest, 1e-30)
        for name, a, b in zip(parameters, wanted, found)
    }


def per_node(model: Model, name: str) -> bool:
    """Whether an output has one row for each node.

    Parameters
    ----------
    model : Model
        The model.
    name : str
        One of `Model.names`.
    """
    return name == "energies" or model.quantities[name].per == "node"


def magnitudes(model: Model, graph: Graph, name: str, value: Tensor) -> Tensor:
    """Absolute values of an output, zero where it is not finite.

    Parameters
    ----------
    model : Model
        The model.
    graph : Graph
        The structures.
    name : str
        Name of the output.
    value : Tensor, shape (rows, …)
        The output.

    Returns
    -------
    Tensor, shape (rows, components)
        Energies are without atomic reference energies and shifts.
    """
    value, head = value.detach(), model.heads["energy"] if name in ("energy", "energies") else None
    if isinstance(head, Scalar):
        base = (head.reference_energies + head.shift)[graph.z]
        value = value - (
            base if name == "energies" else torch.zeros_like(value).index_add(0, graph.batch, base)
        )
    return torch.where(torch.isfinite(value), value, 0.0).abs().reshape(len(value), -1)


def _difference(plain: Tensor, fast: Tensor, size: Tensor, rows: int | None, elsewhere: float) -> float:
    known = torch.isfinite(plain)
    if (
        plain.shape != fast.shape
        or not torch.equal(torch.isnan(plain), torch.isnan(fast))
        or not torch.equal(known, torch.isfinite(fast))
    ):
        return float("inf")
    error = torch.where(known, plain - fast, 0.0).abs().reshape(len(plain), -1)
    worst, largest = 0.0, max(float(size.max()), elsewhere)
    for part in [slice(None)] if rows is None else [slice(0, rows), slice(rows, None)]:
        scale, most = max(float(size[part].max()), FLOOR * largest), float(error[part].max())
        worst = max(worst, most / scale if scale > 0 else most)
    return worst
