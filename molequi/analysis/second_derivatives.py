"""Second derivatives of the energy of a model by backward passes through its gradient."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.graph import Graph
from molequi.model import Model

BLOCK = 64  # rows of one batched backward pass
Method = Literal["vmap", "loop"]


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix of second derivatives.

    Parameters
    ----------
    values : Tensor, shape (R, P) or (members, R, P)
        The rows, for each member of an ensemble.
    method : {"vmap", "loop"}
        How they were computed.
    note : str
        Why they were not computed by "vmap"; empty if that was not tried.
    """

    values: Tensor
    method: Method
    note: str = ""


def strain_of(voigt: Tensor) -> Tensor:
    """The symmetric strain of six engineering components.

    Parameters
    ----------
    voigt : Tensor, shape (6,)
        xx, yy, zz, 2 yz, 2 xz, 2 xy.

    Returns
    -------
    Tensor, shape (3, 3)

    Examples
    --------
    >>> strain_of(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 2.0])).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    xx, yy, zz, yz, xz, xy = voigt.unbind()
    rows = [xx, xy / 2, xz / 2, xy / 2, yy, yz / 2, xz / 2, yz / 2, zz]
    return torch.stack(rows).reshape(3, 3)


def second_derivatives(
    model: Model | Ensemble,
    graph: Graph,
    vectors: Tensor | None = None,
    *,
    strain: bool = False,
    method: Method | None = None,
    block: int | None = None,
) -> Rows:
    """Products of vectors with the matrix of second derivatives of the energy.

    The variables are the 3N displacements, and with `strain` the six engineering strains x → x (1 + ε), which
    the displacements precede: E(u, ε) of the atoms at (x + u)(1 + ε).

    Parameters
    ----------
    model : Model or Ensemble
        A model with an energy, in the precision of the result.
    graph : Graph
        One structure, connected.
    vectors : Tensor, shape (R, P), optional
        What is multiplied; by default the unit vectors, which give the matrix.
    strain : bool
        Whether the strains are variables.
    method : {"vmap", "loop"}, optional
        Backward passes for a block of vectors at once, or for one after the other. By default "vmap", and
        "loop" where an operation of the model cannot be batched.
    block : int, optional
        Number of vectors of a batched pass; 64 by default. Memory grows with it.

    Returns
    -------
    Rows
        For an ensemble those of each member.

    Raises
    ------
    ConfigError
        If "vmap" is wanted and an operation of the model cannot be batched.
    """
    if isinstance(model, Ensemble):
        found = [
            second_derivatives(member, graph, vectors, strain=strain, method=method, block=block)
            for member in cast(list[Model], list(model.members))
        ]
        return Rows(torch.stack([one.values for one in found]), found[0].method, found[0].note)
    with torch.inference_mode(False), torch.enable_grad():
        gradient, variables = _gradient(model, graph, strain)
        size = len(gradient)
        if vectors is None:
            vectors = torch.eye(size, dtype=gradient.dtype, device=gradient.device)
        if not gradient.requires_grad:  # the energy of a single atom
            return Rows(torch.zeros_like(vectors), method or "vmap")
        if method != "loop":
            try:
                return Rows(_batched(gradient, variables, vectors, block or BLOCK), "vmap")
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
                    raise
                reason = str(error).strip().partition("\n")[0]
                if method == "vmap":
                    name = type(model.backbone).__name__ if model.dispersion is None else "dispersion"
                    raise ConfigError(
                        f"method='vmap': this {name} has an operation that torch "
                        f"cannot batch ({reason}); take method='loop'"
                    ) from error
                return Rows(_one_by_one(gradient, variables, vectors), "loop", reason)
        return Rows(_one_by_one(gradient, variables, vectors), "loop")


def _gradient(model: Model, graph: Graph, strain: bool) -> tuple[Tensor, list[Tensor]]:
    """The gradient of the energy, which can be differentiated, and its variables."""
    pos = graph.pos.detach().clone().requires_grad_()
    variables, moved = [pos], graph.replace(pos=pos)
    if strain:
        voigt = torch.zeros(6, dtype=pos.dtype, device=pos.device, requires_grad=True)
        variables, moved = [pos, voigt], moved.strained(strain_of(voigt)[None])
    energy = model.plain().predicting(["energy"])(moved, create_graph=True)["energy"].sum()
    if not energy.requires_grad:
        return torch.cat([torch.zeros_like(v).flatten() for v in variables]), variables
    slopes = torch.autograd.grad(energy, variables, create_graph=True, materialize_grads=True)
    return torch.cat([slope.flatten() for slope in slopes]), variables


def _batched(gradient: Tensor, variables: list[Tensor], vectors: Tensor, block: int) -> Tensor:
    return torch.cat([torch.cat(found, 1) for found in _passes(gradient, variables, vectors.split(block))])


def _passes(gradient: Tensor, variables: list[Tensor], blocks: tuple[Tensor, ...]) -> Iterator[list[Tensor]]:
    for rows in blocks:
        found = torch.autograd.grad(
            gradient,
            variables,
            grad_outputs=rows,
            is_grads_batched=True,
            retain_graph=True,
            materialize_grads=True,
        )
        yield [value.reshape(len(rows), -1) for value in found]


def _one_by_one(gradient: Tensor, variables: list[Tensor], vectors: Tensor) -> Tensor:
    rows = []
    for vector in vectors:
        found = torch.autograd.grad(gradient, variables, vector, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([value.flatten() for value in found]))
    return torch.stack(rows)
