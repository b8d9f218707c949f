"""Layers for weights that are equivariant under permutations of hidden neurons, and under their signs.

The weights of a perceptron are tensors over sets of neurons: an inner weight matrix W_m is one over layers m
and m - 1, a bias b_m one over layer m, the first and the last matrix are one over the only hidden layer that
they touch (their fixed inputs and outputs are channels), and the last bias is one over nothing. A tensor is
named here by its layers: ``(2, 1)``, ``(1,)``, ``()``.

Each layer of neurons appears at most once in a tensor. So an equivariant linear map from a tensor over A to
one over B is a sum over K ⊆ A ∩ B: take the mean over A - K, multiply by a matrix of channels, and repeat
over B - K. These are all equivariant linear maps (DWSNets, arXiv 2301.12780; HNP of arXiv 2302.14040),
2^|A ∩ B| for each pair of channels; some coincide in layers of one neuron. `EquivariantLinear` has one matrix
for each K, which reads all A ⊇ K and writes all B ⊇ K.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError
from molequi.nn.mlp import linear
from molequi.nn.norms import LayerNorm
from molequi.weights.architecture import Architecture
from molequi.weights.networks import Networks

Axes = tuple[int, ...]
Spaces = Mapping[Axes, int]
Tensors = dict[Axes, Tensor]


@dataclass(frozen=True)
class _Block:
    """One weight matrix or bias in a tensor over `axes`."""

    axes: Axes
    size: int  # channels for each channel of the weights
    flipped: bool = False  # over the inputs of the matrix, whose outputs are channels


def _blocks(architecture: Architecture, ends: bool) -> list[_Block]:
    """Weights and biases in turn, map by map."""
    last, sizes, found = len(architecture.sizes) - 1, architecture.sizes, []
    free = {m for m in range(last + 1) if ends or 0 < m < last}
    for m in range(1, last + 1):
        axes = tuple(a for a in (m, m - 1) if a in free)
        size = math.prod([sizes[a] for a in (m, m - 1) if a not in free])
        found.append(_Block(axes, size, flipped=axes == (m - 1,)))
        found.append(_Block((m,), 1) if m in free else _Block((), sizes[m]))
    return found


def spaces_of(architecture: Architecture, *, ends: bool = False) -> dict[Axes, int]:
    """The tensors of `pack`: which layers of neurons each is over, and how many channels it has.

    Parameters
    ----------
    architecture : Architecture
        The architecture.
    ends : bool
        Whether inputs and outputs are permuted, too.

    Examples
    --------
    >>> spaces_of(Architecture((2, 32, 32, 1)))
    {(1,): 3, (2, 1): 1, (2,): 2, (): 1}
    """
    found: dict[Axes, int] = {}
    for block in _blocks(architecture, ends):
        found[block.axes] = found.get(block.axes, 0) + block.size
    return found


def pack(networks: Networks, *, ends: bool = False) -> Tensors:
    """The weights of networks as tensors over their hidden layers.

    Parameters
    ----------
    networks : Networks
        The networks.
    ends : bool
        Whether inputs and outputs are permuted, too.

    Returns
    -------
    dict of tuple to Tensor, shape (B, …, C)
        As `spaces_of` says.
    """
    parts: dict[Axes, list[Tensor]] = {}
    values = [v for pair in zip(networks.weights, networks.biases) for v in pair]
    for block, value in zip(_blocks(networks.architecture, ends), values):
        value = value.transpose(1, 2) if block.flipped else value
        parts.setdefault(block.axes, []).append(value.flatten(1 + len(block.axes)))
    return {axes: torch.cat(part, dim=-1) for axes, part in parts.items()}


def unpack(tensors: Tensors, architecture: Architecture, *, ends: bool = False) -> Networks:
    """Undo `pack`.

    Parameters
    ----------
    tensors : dict of tuple to Tensor, shape (B, …, C)
        As `pack` returns them.
    architecture : Architecture
        The architecture.
    ends : bool
        As that of `pack`.
    """
    axes, size = next(iter(spaces_of(architecture, ends=ends).items()))
    channels = tensors[axes].shape[-1] // size
    at = dict.fromkeys(tensors, 0)
    values = []
    for k, block in enumerate(_blocks(architecture, ends)):
        start, count = at[block.axes], block.size * channels
        value = tensors[block.axes][..., start : start + count]
        at[block.axes] += count
        out, into = architecture.layers[k // 2]
        shape = (out,) if k % 2 else (into, out) if block.flipped else (out, into)
        value = value.reshape(len(value), *shape, channels)
        values.append(value.transpose(1, 2) if block.flipped else value)
    return Networks(architecture, tuple(values[::2]), tuple(values[1::2]))


def _subsets(axes: Axes) -> list[Axes]:
    return [k for n in range(len(axes) + 1) for k in itertools.combinations(axes, n)]


def pooled(x: Float[Tensor, "B *A C"], axes: Axes, kept: Axes = ()) -> Float[Tensor, "B *K C"]:
    """The mean over the layers that are not kept.

    Parameters
    ----------
    x : Tensor, shape (B, …, C)
        A tensor over `axes`.
    axes, kept : tuple of int
        Its layers, and those of the result.
    """
    gone = [1 + k for k, a in enumerate(axes) if a not in kept]
    return x.mean(gone) if gone else x


def repeated(x: Float[Tensor, "B *K C"], kept: Axes, axes: Axes) -> Float[Tensor, "B *A C"]:
    """A tensor over some layers as one over more, with size 1 along the others.

    Parameters
    ----------
    x : Tensor, shape (B, …, C)
        A tensor over `kept`.
    kept, axes : tuple of int
        Its layers, and those of the result.
    """
    for k, a in enumerate(axes):
        x = x if a in kept else x.unsqueeze(1 + k)
    return x


class EquivariantLinear(nn.Module):
    """All linear maps that commute with permutations of each layer of neurons, see the page of this module.

    The bias is invariant: a constant for each channel.

    Parameters
    ----------
    into, out : mapping of tuple to int
        Channels of each tensor that is read and written, by its layers.
    bias : bool
        Whether there is a bias.

    Raises
    ------
    ModelError
        If neurons are written that no tensor has.

    Examples
    --------
    >>> spaces = spaces_of(Architecture((2, 8, 8, 1)))
    >>> layer = EquivariantLinear(spaces, {(1,): 4, (2, 1): 4})
    >>> {axes: tuple(x.shape) for axes, x in layer(pack(Networks.random(
    ...     Architecture((2, 8, 8, 1)), 5))).items()}
    {(1,): (5, 8, 4), (2, 1): (5, 8, 8, 4)}
    """

    def __init__(self, into: Spaces, out: Spaces, *, bias: bool = True) -> None:
        super().__init__()
        self.into, self.out = dict(into), dict(out)
        missing = {a for axes in out for a in axes} - {a for axes in into for a in axes}
        if missing:
            raise ModelError(
                f"tensors over {', '.join(map(str, into))} say nothing of the neurons of layers "
                f"{sorted(missing)}, which are to be written"
            )
        reads, writes = ({k for axes in spaces for k in _subsets(axes)} for spaces in (into, out))
        self.kept = sorted(reads & writes, key=lambda k: (-len(k), k))
        terms = {axes: sum(k in _subsets(axes) for k in self.kept) for axes in self.out}
        self.maps = nn.ModuleDict()
        for kept in self.kept:
            size_in = sum(n for axes, n in self.into.items() if kept in _subsets(axes))
            targets = [axes for axes in self.out if kept in _subsets(axes)]
            layer = linear(size_in, sum(self.out[axes] for axes in targets), bias=bias and kept == ())
            with torch.no_grad():  # the terms of an output add up to variance 1
                for rows, axes in zip(layer.weight.split([self.out[a] for a in targets]), targets):
                    rows /= math.sqrt(terms[axes])
            self.maps[axes_name(kept)] = layer

    def forward(self, x: Tensors) -> Tensors:
        out: Tensors = {}
        for kept in self.kept:
            sources = [pooled(x[axes], axes, kept) for axes in self.into if kept in _subsets(axes)]
            targets = [axes for axes in self.out if kept in _subsets(axes)]
            y = self.maps[axes_name(kept)](torch.cat(sources, dim=-1))
            for part, axes in zip(y.split([self.out[axes] for axes in targets], dim=-1), targets):
                part = repeated(part, kept, axes)
                out[axes] = out[axes] + part if axes in out else part
        return {axes: out[axes] for axes in self.out}

    def extra_repr(self) -> str:
        return f"{self.into} → {self.out}"


class PointwiseLinear(nn.Module):
    """A matrix of channels for each tensor, without bias: the linear maps that commute with signs, too.

    Parameters
    ----------
    into, out : mapping of tuple to int
        Channels of each tensor that is read and written, by its layers. Those of `out` are in `into`.
    """

    def __init__(self, into: Spaces, out: Spaces) -> None:
        super().__init__()
        self.into, self.out = dict(into), dict(out)
        self.maps = nn.ModuleDict({axes_name(axes): linear(into[axes], n) for axes, n in out.items()})

    def forward(self, x: Tensors) -> Tensors:
        return {axes: self.maps[axes_name(axes)](x[axes]) for axes in self.out}

    def extra_repr(self) -> str:
        return f"{self.into} → {self.out}"


class PermutationLayer(nn.Module):
    """`EquivariantLinear`, layer norm over the channels and GELU; the input is added if sizes agree.

    Parameters
    ----------
    into, out : mapping of tuple to int
        Channels of each tensor that is read and written, by its layers.
    """

    def __init__(self, into: Spaces, out: Spaces) -> None:
        super().__init__()
        self.linear = EquivariantLinear(into, out)
        self.norms = nn.ModuleDict({axes_name(axes): LayerNorm(n) for axes, n in out.items()})
        self.residual = dict(into) == dict(out)

    def forward(self, x: Tensors) -> Tensors:
        y = self.linear(x)
        y = {axes: nn.functional.gelu(self.norms[axes_name(axes)](value)) for axes, value in y.items()}
        return {axes: x[axes] + value for axes, value in y.items()} if self.residual else y


class SignLayer(nn.Module):
    """A layer with two kinds of features: even ones, which signs leave, and odd ones, which they change.

    Odd features over (m,) change with the sign of each neuron, those over (m, m - 1) with the product of both
    signs, as biases and weights of networks with odd activations do. Of the linear maps only matrices of
    channels commute with signs, so information is passed by products, as scalars and vectors exchange it in
    equivariant networks of molecules:

        o_i  ← A o_i + B Σ_j W_ij ∘ o_j,    W_ij ← A W_ij + B o_i ∘ o_j        (odd, normalized)
        e    ← GELU(EquivariantLinear(e, (C o) ∘ (D o)))                       (even)
        o    ← o ∘ (1 + F e)                                                   (gate)

    Here o_i are features of neurons, W_ij those of weights; sums are over the layer below and the one above.

    Parameters
    ----------
    even, odd : mapping of tuple to int
        Channels of the even and odd tensors that are read, by their layers.
    channels : int
        Channels of all tensors that are written.
    """

    def __init__(self, even: Spaces, odd: Spaces, channels: int) -> None:
        super().__init__()
        self.odd_in = dict(odd)
        self.even_out = dict.fromkeys([*odd, ()], channels)
        self.odd_out = dict.fromkeys(odd, channels)
        self.project = PointwiseLinear(odd, self.odd_out)
        extended = {axes: channels * (1 + self._terms(axes)) for axes in odd}
        self.mix = PointwiseLinear(extended, self.odd_out)
        self.left = PointwiseLinear(self.odd_out, self.odd_out)
        self.right = PointwiseLinear(self.odd_out, self.odd_out)
        read = {axes: even.get(axes, 0) + self.odd_out.get(axes, 0) for axes in self.even_out}
        self.even = PermutationLayer({axes: n for axes, n in read.items() if n}, self.even_out)
        self.gate = nn.ModuleDict({axes_name(axes): linear(channels, channels) for axes in odd})
        self.residual = dict(odd) == self.odd_out
        self.residual_even = dict(even) == self.even_out

    def _terms(self, axes: Axes) -> int:
        """How many products are features over these layers."""
        if len(axes) == 2:
            return int((axes[0],) in self.odd_in and (axes[1],) in self.odd_in)
        (m,) = axes
        return sum(pair in self.odd_in and other in self.odd_in for pair, other in self._pairs(m))

    @staticmethod
    def _pairs(m: int) -> tuple[tuple[Axes, Axes], tuple[Axes, Axes]]:
        return ((m, m - 1), (m - 1,)), ((m + 1, m), (m + 1,))

    def _products(self, odd: Tensors) -> Tensors:
        """Each odd tensor, and the products that are over the same layers."""
        out = {}
        for axes, value in odd.items():
            parts = [value]
            if len(axes) == 2 and self._terms(axes):
                above, below = odd[axes[:1]], odd[axes[1:]]
                parts.append(above[:, :, None] * below[:, None])
            elif len(axes) == 1:
                for pair, other in self._pairs(axes[0]):
                    if pair in odd and other in odd:
                        formula = "bijc,bjc->bic" if pair[0] == axes[0] else "bjic,bjc->bic"
                        size = odd[other].shape[1]
                        parts.append(torch.einsum(formula, odd[pair], odd[other]) / math.sqrt(size))
            out[axes] = torch.cat(parts, dim=-1)
        return out

    def forward(self, even: Tensors, odd: Tensors) -> tuple[Tensors, Tensors]:
        """The new even and odd features.

        Parameters
        ----------
        even, odd : dict of tuple to Tensor, shape (B, …, C)
            Features by their layers.
        """
        new = self.mix(self._products(self.project(odd)))
        new = {axes: _normalized(value) for axes, value in new.items()}
        left, right = self.left(new), self.right(new)
        read = {axes: left[axes] * right[axes] for axes in new}
        for axes, value in even.items():
            read[axes] = torch.cat([value, read[axes]], dim=-1) if axes in read else value
        scalars = self.even(read)
        if self.residual_even:
            scalars = {axes: even[axes] + value for axes, value in scalars.items()}
        new = {axes: value * (1 + self.gate[axes_name(axes)](scalars[axes])) for axes, value in new.items()}
        if self.residual:
            new = {axes: odd[axes] + value for axes, value in new.items()}
        return scalars, new


def _normalized(x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
    """Channels of mean square 1, and smaller ones stay small; the same for -x up to its sign."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 0.1)


def axes_name(axes: Axes) -> str:
    """``(2, 1)`` as a name of a submodule.

    Parameters
    ----------
    axes : tuple of int
        Layers.
    """
    return "_".join(map(str, axes)) or "all"
