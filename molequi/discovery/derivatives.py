"""Derivatives of quantities with respect to motions of space, and their check by finite differences."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.audit.foreign import as_auditable
from molequi.discovery.functions import reference_copy, structures_of_function
from molequi.errors import ConfigError, ModelError, did_you_mean
from molequi.graph import Graph
from molequi.quantities import KNOWN, Quantity

Function = Callable[[Graph], Tensor]
MAX_PARTNERS = 256  # nodes to which the control function takes distances


def quantity_function(
    model: Any, structures: Any, output: str | Quantity | None, limit: int
) -> tuple[str, Function, Quantity, list[Graph]]:
    """Name, differentiable function, quantity and connected structures.

    Raises ConfigError if the model predicts no such quantity.
    """
    if not isinstance(model, nn.Module):
        if output is not None and not isinstance(output, Quantity):
            raise ConfigError(
                f"output={output!r} of a {type(model).__name__}: only models have named outputs; for a "
                "function "
                "give a Quantity, or nothing"
            )
        name = getattr(model, "__name__", "function")
        return name, model, output or Quantity(name="invariant"), structures_of_function(structures, limit)
    as_auditable(model)
    copied, graphs = reference_copy(model, structures, limit)
    quantities: dict[str, Quantity] = dict(getattr(copied, "quantities", {}))
    if "energy" in quantities:
        quantities.setdefault("energies", KNOWN["energies"])
    chosen: Any = next(iter(quantities)) if output is None else output
    if chosen not in quantities:
        raise ConfigError(
            f"output={chosen!r}: the model predicts no such quantity{did_you_mean(str(chosen), quantities)}"
        )
    try:
        copied(graphs[0], create_graph=True)
    except TypeError:
        return chosen, lambda graph: copied(graph)[chosen], quantities[chosen], graphs
    return chosen, lambda graph: copied(graph, create_graph=True)[chosen], quantities[chosen], graphs


def _moved(graph: Graph, X: Tensor, t: Tensor, center: Tensor) -> Graph:
    """The structure at x + X (x − center) + t; X acts on cells, velocities and given vectors too."""

    def image(value: Tensor | None) -> Tensor | None:
        return None if value is None else value + value @ X.T.to(value.dtype)

    pos = graph.pos.double()
    return graph.replace(
        pos=pos + (pos - center) @ X.T + t, vel=image(graph.vel), vec=image(graph.vec), cell=image(graph.cell)
    )


def _projected_derivatives(
    call: Function,
    quantity: Quantity,
    graph: Graph,
    center: Tensor,
    n_projections: int,
    generator: torch.Generator,
) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """The value f, and for random combinations w of its components: w, ∂(w · f)/∂X and ∂(w · f)/∂t."""
    dim = graph.dim
    linear, offset = (
        torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((dim, dim), (dim,))
    )
    value = call(_moved(graph, linear, offset, center))
    if not isinstance(value, Tensor) or not bool(torch.isfinite(value).all()):
        what = "numbers that are not finite" if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(f"{quantity.name}: found {what}; wanted a tensor of finite numbers")
    found = []
    for _ in range(1 if value.numel() == 1 else n_projections):
        w = (
            torch.ones(value.shape).double()
            if value.numel() == 1
            else torch.randn(value.shape, generator=generator, dtype=torch.float64)
        )
        X, t = torch.zeros_like(linear), torch.zeros_like(offset)
        if value.requires_grad:
            X, t = torch.autograd.grad(
                (w * value.double()).sum(), [linear, offset], retain_graph=True, materialize_grads=True
            )
        if not bool(torch.isfinite(X).all() and torch.isfinite(t).all()):
            raise ModelError(
                f"{quantity.name}: its derivatives are not finite although its values are, as for the "
                "square root "
                "of a zero distance; leave out pairs of a node with itself, or use norms with finite "
                "gradients"
            )
        found.append((w, X.detach(), t.detach()))
    return value.detach().double(), found


def motion_derivatives(
    call: Function,
    quantity: Quantity,
    graph: Graph,
    center: Tensor,
    n_projections: int,
    generator: torch.Generator,
) -> Float[Tensor, "R D D+1"]:
    """Rows w · (X f − Df [X x + t]) as linear functions of (X | t) about the center, for random w."""
    value, several = _projected_derivatives(call, quantity, graph, center, n_projections, generator)
    rows = []
    for w, X, t in several:
        own_X, own_t = _own_transformation(quantity, w, value, center)
        rows.append(torch.cat([own_X - X, (own_t - t)[:, None]], dim=1))
    return torch.stack(rows)


def difference_error(
    call: Function,
    quantity: Quantity,
    graph: Graph,
    center: Tensor,
    spaces: Sequence[Float[Tensor, "n D D+1"]],
    step: float,
    generator: torch.Generator,
) -> Float[Tensor, "spaces 2"]:
    """Finite difference minus derivative along a random motion of each space, and its uncertainty.

    The uncertainty is estimated from the second difference, which round-off, kinks and jumps enlarge.
    """
    value, [(w, X, t)] = _projected_derivatives(call, quantity, graph, center, 1, generator)
    here, found = float((w * value).sum()), []
    # Values may have been computed in single precision, whatever type they have now.
    digits = torch.float32 if bool((value.float() == value).all()) else torch.float64
    noise = 8 * torch.finfo(digits).eps * float((w * value).abs().sum())
    for space in spaces:
        share = torch.randn(len(space), generator=generator, dtype=torch.float64)
        motion = torch.einsum("n,nab->ab", share / share.norm().clamp(min=1e-300), space)
        with torch.no_grad():
            ends = [
                call(_moved(graph, h * motion[:, :-1], h * motion[:, -1], center)).detach()
                for h in (step, -step)
            ]
        ahead, behind = (float((w * end.double()).sum()) for end in ends)
        slope = float((X * motion[:, :-1]).sum() + (t * motion[:, -1]).sum())
        uncertainty = (abs(ahead + behind - 2 * here) + noise) / step
        found.append([(ahead - behind) / (2 * step) - slope, uncertainty])
    return torch.tensor(found, dtype=torch.float64)


def distance_function(graph: Graph, quantity: Quantity, shape: Sequence[int], radius: float) -> Tensor:
    """A function of distances that transforms as a quantity and has no symmetry besides E(n)."""
    dim, several = graph.dim, graph.pos[:: 1 + graph.num_nodes // MAX_PARTNERS]
    cell = None if graph.cell is None else graph.cell.expand(graph.num_nodes, dim, dim)
    vel = None if graph.vel is None else graph.vel[:, None]
    arrows = torch.cat(
        [a for a in (graph.pos[:, None] - several, vel, graph.vec, cell) if a is not None], dim=1
    )
    near = 1 / (1 + arrows.square().sum(2) / radius**2)
    rank = 0 if quantity.classes else quantity.rank
    powers = {
        0: near,
        1: near[..., None] * arrows,
        2: near[..., None, None] * arrows[..., None] * arrows[..., None, :],
    }
    count = math.prod(shape) // dim**rank  # numbers, vectors or tensors
    per_node = count % graph.num_nodes == 0
    channels = count // graph.num_nodes if per_node else count
    angle = torch.linspace(1, 3, channels, dtype=torch.float64) * (1 + near.mean(1, keepdim=True))
    value = torch.einsum(
        "nk,n...->nk...", angle.cos(), torch.ones_like(near[:, 0]) if rank == 0 else powers[rank].mean(1)
    )
    value = value + graph.pos[:, None] if quantity.point else value
    return value.reshape(shape) if per_node else value.mean(0).reshape(shape)


def _own_transformation(quantity: Quantity, w: Tensor, f: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Change of w · f by X and t if f transforms as it declares, as linear functions; zero for invariants."""
    dim = len(center)
    zero = torch.zeros(dim, dtype=torch.float64)
    if quantity.rank == 0 or quantity.classes:
        return torch.zeros(dim, dim, dtype=torch.float64), zero
    if quantity.rank == 1:
        w, f = w.reshape(-1, dim), f.reshape(-1, dim)
        if quantity.point:
            return w.T @ (f - center), w.sum(0)
        return w.T @ f, zero
    w, f = w.reshape(-1, dim, dim), f.reshape(-1, dim, dim)
    return torch.einsum("nab,ncb->ac", w, f) + torch.einsum("nba,nbc->ac", w, f), zero
