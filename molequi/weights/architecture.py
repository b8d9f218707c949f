"""The architecture of a multilayer perceptron, and the symmetry that its activation gives hidden neurons."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from molequi.errors import ModelError, did_you_mean
from molequi.nn.mlp import ScaledSiLU
from molequi.util.html import html_facts


class Sine(nn.Module):
    """sin(ω x), the activation of SIRENs (arXiv 2006.09661).

    Parameters
    ----------
    omega : float
        ω.
    """

    def __init__(self, omega: float = 1.0) -> None:
        super().__init__()
        self.omega = float(omega)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)

    def extra_repr(self) -> str:
        return f"omega={self.omega:g}"


# Each elementwise function with its default settings.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sine": Sine,
    "tanh": nn.Tanh,
    "softsign": nn.Softsign,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "scaled_silu": ScaledSiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
}
ODD = ("sine", "tanh", "softsign")  # σ(-x) = -σ(x): signs
HOMOGENEOUS = ("relu", "leaky_relu")  # σ(q x) = q σ(x) for q > 0: scales


@dataclass(frozen=True)
class Architecture:
    """A multilayer perceptron without its weights.

    Parameters
    ----------
    sizes : tuple of int, length M + 1
        Number of inputs, of neurons of each hidden layer, and of outputs: M linear maps.
    activation : str
        The function between them, a key of `ACTIVATIONS`.
    activate_last : bool
        Whether the function follows the last map, too.

    Raises
    ------
    ModelError
        For unknown functions and for sizes below one.

    Examples
    --------
    >>> Architecture((2, 32, 32, 1), "sine").parameters
    1185
    """

    sizes: tuple[int, ...]
    activation: str = "sine"
    activate_last: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ModelError(f"sizes={self.sizes}: wanted inputs, hidden layers and outputs, each at least 1")
        if self.activation not in ACTIVATIONS:
            raise ModelError(
                f"activation {self.activation!r} is not known{did_you_mean(self.activation, ACTIVATIONS)}"
            )

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(out, in) of each linear map."""
        return [(out, into) for into, out in itertools.pairwise(self.sizes)]

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(out * into + out for out, into in self.layers)

    @property
    def symmetry(self) -> str:
        """The largest of the groups of `NeuronGroup` that the activation allows.

        "signs" for odd functions, "scales" for ReLU, "permutations" otherwise; each includes permutations.
        Left out are symmetries that add to biases: multiples of π for sines, sin(x + π) = -sin(x), and
        functions that are odd about another value, σ(-x) = 1 - σ(x) of the sigmoid, where the sign of a
        neuron changes and the biases of the next map take up the rest.
        """
        if self.activation in ODD:
            return "signs"
        return "scales" if self.activation in HOMOGENEOUS else "permutations"

    def module(self) -> nn.Sequential:
        """A network of this architecture, with PyTorch's random weights."""
        steps: list[nn.Module] = []
        for out, into in self.layers:
            steps += [nn.Linear(into, out), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*(steps if self.activate_last else steps[:-1]))

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))}, {self.activation}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_facts(self.facts())

    def facts(self) -> dict[str, str]:
        """What a notebook shows."""
        return {
            "neurons": "-".join(map(str, self.sizes)),
            "activation": self.activation,
            "weights of each": f"{self.parameters:,}",
            "symmetry of hidden neurons": self.symmetry,
        }
