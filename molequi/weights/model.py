"""Models of weights: a property of each network, or a new network."""

import itertools
import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import DataError, ModelError
from molequi.nn.mlp import mlp
from molequi.util.signature import check_call
from molequi.weights.architecture import Architecture
from molequi.weights.layers import (
    Axes,
    EquivariantLinear,
    PermutationLayer,
    PointwiseLinear,
    SignLayer,
    Spaces,
    Tensors,
    axes_name,
    pack,
    pooled,
    spaces_of,
    unpack,
)
from molequi.weights.networks import Networks, check_finite
from molequi.weights.symmetry import Kind, NeuronGroup, balanced, kind_of, rescaled


class WeightModel(nn.Module):
    """A network that reads networks, with the symmetry of their hidden neurons built in.

    With ``outputs=10`` it is invariant: ten numbers for each network, the same for all networks of an orbit.
    With ``outputs="weights"`` it is equivariant: a new network for each one, its weights plus a change that
    begins at zero.

    With ``probes``, each network is run on some inputs, which are learned, and what its neurons put out there
    are features of these neurons (arXiv 2403.12143). The symmetry stays exact.

    "permutations" has the complete equivariant linear maps (DWSNets, arXiv 2301.12780). "signs" is for odd
    activations, such as SIRENs: even and odd features as in `SignLayer`. "scales" is for ReLU: the
    network is brought to norm 1 of each hidden neuron first, which is the same for a whole orbit
    (`molequi.weights.balanced`), and its changes are scaled back. "none" is a perceptron on the flattened
    weights, the control that has no symmetry.

    Parameters
    ----------
    architecture : Architecture
        That of the networks to be read.
    outputs : int or "weights"
        Number of outputs, or "weights" for new networks.
    symmetry : {"auto", "permutations", "signs", "scales", "none"}
        What is built in; "auto" is `Architecture.symmetry`.
    channels : int
        Channels of each feature.
    layers : int
        Number of equivariant layers.
    probes : int or Tensor, shape (K, in)
        Number of learned inputs, which begin uniformly between -1 and 1, or their values at the start.
    dropout : float
        Share of the pooled features that are left out in training.

    Raises
    ------
    ModelError
        For an unknown symmetry, and for one that the activation does not have.
    ConfigError
        For numbers out of range.

    Examples
    --------
    >>> nets = Networks.random(Architecture((2, 16, 16, 1), "sine"), 4)
    >>> WeightModel(nets.architecture, outputs=10)(nets).shape
    torch.Size([4, 10])
    >>> WeightModel(nets.architecture, outputs="weights")(nets)
    4 networks 2-16-16-1, sine
    """

    audited_by = "molequi.weights.audit(model, networks)"  # not by `molequi.audit`

    def __init__(
        self,
        architecture: Architecture,
        outputs: "int | Literal['weights']",
        *,
        symmetry: "Kind | Literal['auto']" = "auto",
        channels: Annotated[int, Gt(0)] = 32,
        layers: Annotated[int, Gt(0)] = 3,
        probes: Annotated[int, Ge(0)] | Tensor = 0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        super().__init__()
        _check(architecture, outputs)
        numbers = {"channels": channels, "layers": layers, "dropout": dropout}
        numbers |= {"probes": probes} if isinstance(probes, int) else {}
        check_call(WeightModel, numbers, where="WeightModel", leave_out=("architecture", "outputs"))
        self.architecture, self.outputs = architecture, outputs
        self.symmetry = kind_of(architecture, symmetry)
        self.channels, self.dropout, self.number = channels, dropout, layers
        self.group = NeuronGroup(architecture.sizes, self.symmetry)
        if isinstance(probes, int):
            probes = torch.rand(probes, architecture.sizes[0]) * 2 - 1
        if probes.ndim != 2 or probes.shape[1] != architecture.sizes[0]:
            raise ModelError(
                f"probes of shape {tuple(probes.shape)}; wanted (K, {architecture.sizes[0]}), inputs of the "
                "networks"
            )
        self.probes = nn.Parameter(probes.detach().clone())
        spaces = self._spaces()
        written = spaces_of(architecture) if outputs == "weights" else None
        kinds: dict[str, type[_Permutations | _Signs | _Flat]] = {"signs": _Signs, "none": _Flat}
        self.body = kinds.get(self.symmetry, _Permutations)(architecture, spaces, channels, layers, written)
        if outputs != "weights":
            self.head = nn.Sequential(
                nn.Dropout(dropout), mlp([self.body.invariants, 2 * channels, int(outputs)])
            )
        for axes, size in spaces.items():
            self.register_buffer(f"mean_{axes_name(axes)}", torch.zeros(size))
            self.register_buffer(f"scale_{axes_name(axes)}", torch.ones(size))
        size = 1 if outputs == "weights" else int(outputs)
        self.register_buffer("output_mean", torch.zeros(size))
        self.register_buffer("output_scale", torch.ones(size))

    def standardize(self, networks: Networks, targets: Tensor | None = None) -> "WeightModel":
        """Take means and standard deviations from data, once for each kind of weight, and return the model.

        What does not vary is not divided by its deviation.

        Parameters
        ----------
        networks : Networks
            Networks for training.
        targets : Tensor, shape (B, K), optional
            Real-valued targets, whose means and standard deviations the outputs get.

        Raises
        ------
        DataError
            Without networks, for targets of another shape, and for numbers that are not finite.
        """
        if not len(networks):
            raise DataError("no networks were given; wanted at least one, for means and standard deviations")
        check_finite("the weights of network", networks.flat())
        source = balanced(networks)[0] if self.symmetry == "scales" else networks
        for axes, value in self._read(source).items():
            rows = value.detach().flatten(0, -2).double()
            mean = torch.zeros_like(rows[0]) if self.symmetry == "signs" and axes else rows.mean(0)
            scale = (rows - mean).square().mean(0).sqrt()
            self.get_buffer(f"mean_{axes_name(axes)}").copy_(mean)
            self.get_buffer(f"scale_{axes_name(axes)}").copy_(_divisor(scale, value))
        if targets is not None:
            if tuple(targets.shape) != (len(networks), self.outputs):
                raise DataError(
                    f"targets of shape {tuple(targets.shape)}; wanted {(len(networks), self.outputs)}"
                )
            check_finite("target", targets)
            scale = targets.double().std(0, correction=min(1, len(targets) - 1))
            self.get_buffer("output_mean").copy_(targets.double().mean(0))
            self.get_buffer("output_scale").copy_(_divisor(scale, targets))
        return self

    def forward(self, networks: Networks) -> "Float[Tensor, 'B K'] | Networks":
        """Outputs for each network, or new networks.

        Parameters
        ----------
        networks : Networks
            Networks of the architecture of the model.

        Raises
        ------
        ModelError
            For networks of another architecture.
        """
        if networks.architecture != self.architecture:
            raise ModelError(f"networks {networks.architecture}; the model reads {self.architecture}")
        source, factor = balanced(networks) if self.symmetry == "scales" else (networks, {})
        read = self._read(source)
        found = self.body({axes: (x - self._mean(axes)) / self._scale(axes) for axes, x in read.items()})
        if isinstance(found, Tensor):
            return self.head(found) * self.output_scale + self.output_mean
        changed = {
            axes: x + found[axes] * self._scale(axes)[: x.shape[-1]] for axes, x in pack(source).items()
        }
        new = unpack(changed, self.architecture)
        return rescaled(new, factor) if factor else new

    def _spaces(self) -> dict[Axes, int]:
        """Channels of what is read, by layers: the weights, and what neurons put out for the probes."""
        found, last = spaces_of(self.architecture), len(self.architecture.sizes) - 1
        for m in range(1, last + 1):
            axes, size = ((m,), 1) if m < last else ((), self.architecture.sizes[m])
            found[axes] += size * len(self.probes)
        return found

    def _read(self, networks: Networks) -> Tensors:
        found = pack(networks)
        if len(self.probes):
            for m, h in enumerate(networks.activations(self.probes), start=1):
                hidden = m < len(self.architecture.sizes) - 1
                axes = (m,) if hidden else ()
                found[axes] = torch.cat([found[axes], h.mT if hidden else h.flatten(1)], dim=-1)
        return found

    def _mean(self, axes: Axes) -> Tensor:
        return self.get_buffer(f"mean_{axes_name(axes)}")

    def _scale(self, axes: Axes) -> Tensor:
        return self.get_buffer(f"scale_{axes_name(axes)}")

    @torch.no_grad()
    def predict(self, networks: Networks, *, batch_size: int = 256) -> "Float[Tensor, 'B K'] | Networks":
        """Outputs in evaluation mode, in batches and without gradients.

        Parameters
        ----------
        networks : Networks
            Networks of the architecture of the model, on any device.
        batch_size : int
            How many at once.

        Raises
        ------
        DataError
            If weights are not finite.
        """
        check_finite("the weights of network", networks.flat())
        mode, like = self.training, self.get_buffer("output_mean")
        self.eval()
        try:
            found = [
                self(networks[k : k + batch_size].to(like.device))
                for k in range(0, max(1, len(networks)), batch_size)
            ]
        finally:
            self.train(mode)
        return torch.cat(found) if isinstance(found[0], Tensor) else Networks.cat(found)

    def config(self) -> dict[str, object]:
        """What a model file needs to build the model again."""
        return {
            "sizes": list(self.architecture.sizes),
            "activation": self.architecture.activation,
            "activate_last": self.architecture.activate_last,
            "outputs": self.outputs,
            "symmetry": self.symmetry,
            "channels": self.channels,
            "layers": self.number,
            "probes": len(self.probes),
            "dropout": self.dropout,
        }


class _Permutations(nn.Module):
    """Layers with the symmetry of permutations, also after scales are taken out."""

    def __init__(
        self, architecture: Architecture, into: Spaces, channels: int, layers: int, written: Spaces | None
    ) -> None:
        super().__init__()
        hidden = dict.fromkeys([*into, ()], channels)
        sizes = [into] + [hidden] * layers
        self.layers = nn.ModuleList([PermutationLayer(a, b) for a, b in itertools.pairwise(sizes)])
        self.invariants = 2 * channels * len(hidden)
        self.last = None if written is None else _silent(EquivariantLinear(hidden, written))

    def forward(self, x: Tensors) -> Tensor | Tensors:
        for layer in self.layers:
            x = layer(x)
        return _invariants(x) if self.last is None else self.last(x)


class _Signs(nn.Module):
    """Layers with the symmetry of signs and permutations."""

    def __init__(
        self, architecture: Architecture, into: Spaces, channels: int, layers: int, written: Spaces | None
    ) -> None:
        super().__init__()
        odd: Spaces = {axes: n for axes, n in into.items() if axes}
        even: Spaces = {axes: n for axes, n in into.items() if not axes}
        self.layers = nn.ModuleList()
        for _ in range(layers):
            layer = SignLayer(even, odd, channels)
            self.layers.append(layer)
            even, odd = layer.even_out, layer.odd_out
        self.invariants = 2 * channels * len(even)
        self.last = self.last_even = None
        if written is not None:
            self.last = _silent(PointwiseLinear(odd, {axes: n for axes, n in written.items() if axes}))
            self.last_even = _silent(EquivariantLinear(even, {(): written[()]}))

    def forward(self, x: Tensors) -> Tensor | Tensors:
        even, odd = {axes: v for axes, v in x.items() if not axes}, {axes: v for axes, v in x.items() if axes}
        for layer in self.layers:
            even, odd = layer(even, odd)
        if self.last is None or self.last_even is None:
            return _invariants(even)
        return {**self.last(odd), **self.last_even(even)}


class _Flat(nn.Module):
    """A perceptron on all that is read in a row."""

    def __init__(
        self, architecture: Architecture, into: Spaces, channels: int, layers: int, written: Spaces | None
    ) -> None:
        super().__init__()
        self.shapes = (
            {}
            if written is None
            else {axes: (*(architecture.sizes[a] for a in axes), size) for axes, size in written.items()}
        )
        rows = sum(size * math.prod(architecture.sizes[a] for a in axes) for axes, size in into.items())
        self.invariants = channels
        self.net = mlp([rows] + [channels] * layers, activate_last=True)
        self.last = None if written is None else _silent(nn.Linear(channels, architecture.parameters))

    def forward(self, x: Tensors) -> Tensor | Tensors:
        h = self.net(torch.cat([value.flatten(1) for value in x.values()], dim=1))
        if self.last is None:
            return h
        pieces = self.last(h).split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        return {axes: piece.unflatten(1, shape) for piece, (axes, shape) in zip(pieces, self.shapes.items())}


def _invariants(x: Tensors) -> Float[Tensor, "B I"]:
    """Means and root mean squares over all neurons, of each feature."""
    parts = [pooled(value, axes) for axes, value in x.items()]
    parts += [(pooled(value.square(), axes) + 1e-6).sqrt() for axes, value in x.items()]
    return torch.cat(parts, dim=-1)


def _silent(layer: nn.Module) -> nn.Module:
    """A layer whose output is zero at first, so that an edit begins at the network itself."""
    for value in layer.parameters():
        nn.init.zeros_(value)
    return layer


def _divisor(scale: Tensor, values: Tensor) -> Tensor:
    """Standard deviations, and 1 where they are no more than the round-off of the values."""
    least = 4 * torch.finfo(values.dtype).eps * values.detach().abs().flatten(0, -2).amax(0)
    return torch.where(scale > least, scale, 1.0)


def _check(architecture: Architecture, outputs: object) -> None:
    if outputs != "weights" and (not isinstance(outputs, int) or outputs < 1):
        raise ModelError(f"outputs={outputs!r}: wanted a number of outputs, or 'weights' for new networks")
    if len(architecture.sizes) < 3:
        raise ModelError(f"networks {architecture} have no hidden neurons; wanted at least one hidden layer")
