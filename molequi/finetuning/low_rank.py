"""Small changes of large tensors, which are what is trained: W + B A, and rows of new elements.

The model always holds the sum, so that it is an ordinary model at every time: it is compiled, averaged,
audited and saved as any other. Gradients of the sum are turned into those of its parts by the chain rule.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Change(ABC):
    """A trained change of one tensor of a model.

    Parameters
    ----------
    weight : Parameter
        The tensor W of the model.
    parts : mapping of str to Parameter
        What is trained.
    """

    def __init__(self, weight: nn.Parameter, parts: Mapping[str, nn.Parameter]) -> None:
        self.weight, self.parts = weight, dict(parts)
        self.start = weight.detach().clone()
        self._handle = weight.register_post_accumulate_grad_hook(self._spread)

    @abstractmethod
    def add(self, start: Tensor) -> Tensor:
        """The tensor W, from its value at the start."""

    @abstractmethod
    def gradients(self, gradient: Tensor) -> Mapping[str, Tensor]:
        """Gradients of the parts, from that of W."""

    @torch.no_grad()
    def merge(self) -> None:
        """Write W into the model."""
        self.weight.copy_(self.add(self.start))

    @torch.no_grad()
    def _spread(self, weight: nn.Parameter) -> None:
        """Turn the gradient of W into those of the parts."""
        if weight.grad is None:
            return
        for name, value in self.gradients(weight.grad).items():
            part = self.parts[name]
            part.grad = value if part.grad is None else part.grad + value
        weight.grad = None

    def close(self) -> None:
        """Let the tensor be trained as any other again."""
        self._handle.remove()

    def state(self) -> dict[str, Any]:
        """The parts and the start, for a saved state."""
        return {name: part.detach().clone() for name, part in self.parts.items()} | {"start": self.start}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Parameters
        ----------
        state : mapping
            What `state` returned.
        """
        self.start.copy_(state["start"])
        for name, part in self.parts.items():
            part.copy_(state[name])


class LowRank(Change):
    """W + B A with few rows of A (Hu et al. 2021, arXiv 2106.09685). B is zero at the start.

    A tensor with more than two axes is a stack of matrices, each with a B and an A of its own.

    Parameters
    ----------
    weight : Parameter, shape (…, m, n)
        W.
    rank : int
        Number of rows of A.
    generator : torch.Generator
        Random numbers for A, on the CPU.
    """

    def __init__(self, weight: nn.Parameter, rank: int, generator: torch.Generator) -> None:
        *stack, m, n = weight.shape
        a = torch.randn(*stack, rank, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
        parts = {"a": nn.Parameter(a.to(weight)), "b": nn.Parameter(weight.new_zeros(*stack, m, rank))}
        super().__init__(weight, parts)

    def add(self, start: Tensor) -> Tensor:
        """W + B A."""
        return start + self.parts["b"] @ self.parts["a"]

    def gradients(self, gradient: Tensor) -> Mapping[str, Tensor]:
        """Of A it is Bᵀ G, of B it is G Aᵀ."""
        a, b = self.parts["a"], self.parts["b"]
        return {"a": b.transpose(-1, -2) @ gradient, "b": gradient @ a.transpose(-1, -2)}


class Rows(Change):
    """Some rows of a tensor, as those of new elements.

    Parameters
    ----------
    weight : Parameter, shape (Z, …)
        W.
    rows : sequence of int
        The rows that are trained.
    """

    def __init__(self, weight: nn.Parameter, rows: Sequence[int]) -> None:
        self.rows = list(rows)
        super().__init__(weight, {"rows": nn.Parameter(torch.zeros_like(weight[self.rows]))})

    def add(self, start: Tensor) -> Tensor:
        """W with the changed rows."""
        out = start.clone()
        out[self.rows] += self.parts["rows"]
        return out

    def gradients(self, gradient: Tensor) -> Mapping[str, Tensor]:
        """The rows of the gradient."""
        return {"rows": gradient[self.rows].clone()}


def worthwhile(weight: Tensor, rank: int) -> bool:
    """Whether B and A have fewer parameters than a matrix.

    Parameters
    ----------
    weight : Tensor, shape (…, m, n)
        The matrix, or a stack of them.
    rank : int
        Number of rows of A.

    Examples
    --------
    >>> worthwhile(torch.zeros(64, 64), 4), worthwhile(torch.zeros(1, 64), 4)
    (True, False)
    """
    m, n = weight.shape[-2:]
    return rank * (m + n) < m * n
