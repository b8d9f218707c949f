"""The group of hidden neurons: permutations of each hidden layer, with signs or positive scales."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molequi.errors import ConfigError, ModelError, did_you_mean
from molequi.util.html import html_text
from molequi.weights.architecture import Architecture
from molequi.weights.networks import Networks

Kind = Literal["none", "permutations", "signs", "scales"]
KINDS = ("none", "permutations", "signs", "scales")


def kind_of(architecture: Architecture, symmetry: str) -> Kind:
    """The symmetry that was asked for, if the networks have it.

    Parameters
    ----------
    architecture : Architecture
        The architecture of the networks.
    symmetry : str
        One of `KINDS`, or "auto" for `Architecture.symmetry`.

    Raises
    ------
    ModelError
        For an unknown symmetry, and for one that the activation does not have.
    """
    if symmetry not in ("auto", *KINDS):
        raise ModelError(f"symmetry {symmetry!r} is not known{did_you_mean(symmetry, ('auto', *KINDS))}")
    if symmetry in ("signs", "scales") and symmetry != architecture.symmetry:
        raise ModelError(
            f"symmetry {symmetry!r}: networks with {architecture.activation} have {architecture.symmetry}; "
            "take 'auto'"
        )
    return architecture.symmetry if symmetry == "auto" else symmetry  # type: ignore[return-value]


@dataclass(frozen=True)
class NeuronMap:
    """An element of a `NeuronGroup`, or one for each network of a batch.

    How it acts is written in `NeuronGroup`.

    Parameters
    ----------
    order : dict of int to Tensor, shape (B, d)
        The permutation of each layer that is not fixed.
    factor : dict of int to Tensor, shape (B, d)
        The factor of each neuron.
    """

    order: dict[int, Int[Tensor, "B _"]]
    factor: dict[int, Float[Tensor, "B _"]]


@dataclass(frozen=True)
class NeuronGroup:
    """The symmetry of the weights of a network: what changes its weights and not its outputs.

    An element g has a permutation π and factors s of the neurons of each hidden layer m, and acts by

        W_m[i, j] → s_m[i] W_m[π_m(i), π_{m-1}(j)] / s_{m-1}[j],    b_m[i] → s_m[i] b_m[π_m(i)].

    Inputs and outputs stay where they are (π = 1, s = 1). Factors are 1 ("permutations", S_d for each hidden
    layer), ±1 ("signs", for odd activations such as the sine and tanh) or any positive numbers ("scales", for
    ReLU).

    Parameters
    ----------
    sizes : tuple of int
        Sizes of the layers, as in `Architecture`.
    kind : {"permutations", "signs", "scales", "none"}
        Which factors; "none" is the identity alone.
    ends : bool
        Whether inputs and outputs are permuted, too ("NP" of arXiv 2302.14040). This is no symmetry of the
        function.

    Raises
    ------
    ConfigError
        For an unknown kind, and for factors of inputs and outputs.

    Examples
    --------
    >>> str(NeuronGroup((2, 32, 16, 1), "signs"))
    '±S_32 × ±S_16'
    """

    sizes: tuple[int, ...]
    kind: Kind = "permutations"
    ends: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"symmetry {self.kind!r} is not known{did_you_mean(self.kind, KINDS)}")
        if self.ends and self.kind != "permutations":
            raise ConfigError(
                f"ends=True with {self.kind!r}: inputs and outputs have permutations alone; leave ends out"
            )

    @classmethod
    def of(cls, architecture: Architecture) -> "NeuronGroup":
        """The largest of these groups that leaves the outputs of all networks of an architecture unchanged.

        There are symmetries beyond them, see `Architecture.symmetry`.

        Parameters
        ----------
        architecture : Architecture
            The architecture.
        """
        kind: Kind = architecture.symmetry  # type: ignore[assignment]
        return cls(architecture.sizes, kind)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose neurons are permuted; 0 is that of the inputs."""
        last = len(self.sizes) - 1
        inner = range(0 if self.ends else 1, last + 1 if self.ends else last)
        return tuple(inner) if self.kind != "none" else ()

    @property
    def order(self) -> float:
        """Number of elements; infinite with scales."""
        signs = self.kind == "signs"
        if self.kind == "scales" and self.layers:
            return math.inf
        return math.prod(
            math.factorial(self.sizes[m]) * (2 ** self.sizes[m] if signs else 1) for m in self.layers
        )

    def holds(self, other: "NeuronGroup") -> bool:
        """Whether this group contains another one.

        Parameters
        ----------
        other : NeuronGroup
            The group that may be a subgroup.
        """
        if self.sizes != other.sizes or not set(other.layers) <= set(self.layers):
            return not other.layers and self.sizes == other.sizes
        return other.kind in (self.kind, "permutations", "none")

    def sample(self, batch: int = 1, *, generator: torch.Generator | None = None) -> NeuronMap:
        """Random elements: uniform permutations and signs; scales are exp(N(0, 1)).

        Parameters
        ----------
        batch : int
            How many: one for all networks, or one for each.
        generator : torch.Generator, optional
            Source of random numbers.
        """
        order, factor = {}, {}
        for m in self.layers:
            shape = (batch, self.sizes[m])
            order[m] = torch.rand(shape, generator=generator).argsort(dim=1)
            draw = torch.randn(shape, dtype=torch.float64, generator=generator)
            one = torch.ones(shape, dtype=torch.float64)
            factor[m] = {"signs": one.copysign(draw), "scales": draw.exp()}.get(self.kind, one)
        return NeuronMap(order, factor)

    def act(self, element: NeuronMap, networks: Networks) -> Networks:
        """Networks with their neurons permuted, and signs or scales changed.

        Parameters
        ----------
        element : NeuronMap
            One element, or one for each network.
        networks : Networks
            The networks. Features with several channels are transformed as weights are.
        """
        if networks.architecture.sizes != self.sizes:
            raise ConfigError(f"networks {networks.architecture}; the group is one of sizes {self.sizes}")
        weights, biases = list(networks.weights), list(networks.biases)
        for m in self.layers:
            order = element.order[m].expand(len(networks), -1).to(weights[0].device)
            factor = element.factor[m].expand(len(networks), -1).to(weights[0])[..., None]
            if m > 0:
                weights[m - 1] = _taken(weights[m - 1], order, 1) * factor[..., None]
                biases[m - 1] = _taken(biases[m - 1], order, 1) * factor
            if m < len(weights):
                weights[m] = _taken(weights[m], order, 2) / factor[:, None]
        return Networks(networks.architecture, tuple(weights), tuple(biases))

    def __str__(self) -> str:
        before = {"signs": "±", "scales": "R₊·"}.get(self.kind, "")
        return " × ".join(f"{before}S_{self.sizes[m]}" for m in self.layers) or "identity"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_text(str(self))


def _taken(values: Tensor, order: Tensor, dim: int) -> Tensor:
    shape = [len(values)] + [1] * (values.ndim - 1)
    shape[dim] = -1
    return torch.take_along_dim(values, order.reshape(shape), dim=dim)


def balanced(networks: Networks) -> tuple[Networks, dict[int, Tensor]]:
    """The network of the same orbit of scales whose hidden neurons have incoming weights of norm 1.

    Layer by layer, (W_m[i, :], b_m[i]) is divided by its norm q, and W_{m+1}[:, i] multiplied by it. For
    ReLU this changes no output, and all networks that differ by scales become equal.

    Parameters
    ----------
    networks : Networks
        The networks.

    Returns
    -------
    networks : Networks
        The balanced ones.
    factor : dict of int to Tensor, shape (B, d)
        q of each hidden neuron. A neuron whose incoming weights are all zero has 1.
    """
    weights, biases, factor = list(networks.weights), list(networks.biases), {}
    for m in range(1, len(weights)):
        w, b = weights[m - 1], biases[m - 1]
        norm = torch.cat([w, b[:, :, None]], dim=2).flatten(2).norm(dim=2)
        q = torch.where(norm > 0, norm, torch.ones_like(norm))
        weights[m - 1], biases[m - 1] = w / q[..., None, None], b / q[..., None]
        weights[m] = weights[m] * q[:, None, :, None]
        factor[m] = q
    return Networks(networks.architecture, tuple(weights), tuple(biases)), factor


def rescaled(networks: Networks, factor: dict[int, Tensor]) -> Networks:
    """Undo `balanced`.

    Parameters
    ----------
    networks : Networks
        Networks, or features of their weights.
    factor : dict of int to Tensor, shape (B, d)
        Factors of the hidden neurons.
    """
    kept = {m: torch.arange(q.shape[1], device=q.device).expand_as(q) for m, q in factor.items()}
    return NeuronGroup(networks.architecture.sizes, "scales").act(NeuronMap(kept, factor), networks)
