"""Networks as data: the weights of many multilayer perceptrons of one architecture in dense tensors."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from molequi.errors import DataError, ModelError
from molequi.util.html import html_facts
from molequi.weights.architecture import ACTIVATIONS, ODD, Architecture
from molequi.weights.modules import linear_maps, read_module, read_state


@dataclass(frozen=True)
class Networks:
    """A batch of multilayer perceptrons of one architecture, as data.

    Parameters
    ----------
    architecture : Architecture
        The architecture of all of them.
    weights : tuple of Tensor, shape (B, out, in, C)
        The weights of each linear map. Networks have C = 1; more channels hold features of each weight.
    biases : tuple of Tensor, shape (B, out, C)
        The biases. A map without biases has zeros.

    Raises
    ------
    DataError
        If a tensor does not have the shape that the architecture says.

    Examples
    --------
    >>> nets = Networks.from_modules([torch.nn.Sequential(
    ...     torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)) for _ in range(3)])
    >>> nets
    3 networks 2-8-1, tanh
    >>> nets(torch.zeros(5, 2)).shape
    torch.Size([3, 5, 1])
    """

    architecture: Architecture
    weights: tuple[Float[Tensor, "B _ _ C"], ...]
    biases: tuple[Float[Tensor, "B _ C"], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))
        object.__setattr__(self, "biases", tuple(self.biases))
        maps = self.architecture.layers
        if len(self.weights) != len(maps) or len(self.biases) != len(maps):
            raise DataError(
                f"{len(self.weights)} weights and {len(self.biases)} biases; the architecture "
                f"{self.architecture} has {len(maps)} of each"
            )
        batch, channels = self.weights[0].shape[0], self.weights[0].shape[-1]
        for k, (w, b, (out, into)) in enumerate(zip(self.weights, self.biases, maps)):
            for what, value, shape in (
                ("weights", w, (batch, out, into, channels)),
                ("biases", b, (batch, out, channels)),
            ):
                if tuple(value.shape) != shape:
                    raise DataError(
                        f"{what} of map {k} have the shape {tuple(value.shape)}; wanted {shape} for "
                        f"{self.architecture}"
                    )

    @classmethod
    def from_modules(cls, modules: Sequence[nn.Module] | nn.Module) -> "Networks":
        """Networks from modules of PyTorch.

        Parameters
        ----------
        modules : sequence of nn.Module
            Each an ``nn.Sequential`` of linear maps with one kind of activation between them. Dropout is
            left out. ω of a `Sine` is multiplied into the weights, which changes no output.

        Returns
        -------
        Networks

        Raises
        ------
        ModelError
            For other layers, for modules with a ``forward`` of their own or with hooks, and for modules of
            different architectures.
        """
        every = [modules] if isinstance(modules, nn.Module) else list(modules)
        return cls._stacked([read_module(module) for module in every], "network")

    @classmethod
    def from_state_dicts(
        cls, states: Sequence[Mapping[str, Tensor]], activation: str, *, activate_last: bool = False
    ) -> "Networks":
        """Networks from state dicts, whose 2-dimensional tensors are the linear maps in their order.

        Names that differ only in numbers are sorted by these ("hidden.2" before "hidden.10"); otherwise the
        order is that of the mapping.

        Parameters
        ----------
        states : sequence of mapping of str to Tensor
            The state dict of each network: ``weight`` or ``….weight`` of shape (out, in), and ``….bias``.
        activation : str
            The function between the maps, a key of `ACTIVATIONS`; a state dict does not say it.
        activate_last : bool
            Whether it follows the last map.

        Returns
        -------
        Networks

        Raises
        ------
        ModelError
            For tensors of other names or shapes, and for names that differ in words and are sorted by name,
            as files of safetensors give them: the order of the maps is lost there.
        """
        what = "state dict"
        read = [read_state(s, activation, activate_last, f"{what} {k}") for k, s in enumerate(states)]
        return cls._stacked(read, what)

    @classmethod
    def _stacked(
        cls, read: Sequence[tuple[Architecture, list[Tensor], list[Tensor]]], what: str
    ) -> "Networks":
        if not read:
            raise ModelError(f"no {what} was given; wanted at least one")
        architecture = read[0][0]
        for number, (other, _, _) in enumerate(read):
            if other != architecture:
                raise ModelError(
                    f"{what} {number} is {other}; {what} 0 is {architecture}. A batch has one architecture"
                )
        columns = [list(zip(*(one[part] for one in read))) for part in (1, 2)]
        weights, biases = ([torch.stack(one)[..., None] for one in column] for column in columns)
        return cls(architecture, tuple(weights), tuple(biases))

    @classmethod
    def random(
        cls, architecture: Architecture, count: int, *, generator: torch.Generator | None = None, **like: Any
    ) -> "Networks":
        """Networks with random weights.

        Weights are uniform with the variance 2 / in (ReLU and its like) or 1 / in; biases are uniform in
        ±1/√in, as PyTorch's are. In networks with sines, hidden weights are uniform in ±√(6/in), and those of
        the first map in ±1 with biases in ±π, for inputs between -1 and 1 and few periods.

        Parameters
        ----------
        architecture : Architecture
            The architecture.
        count : int
            How many.
        generator : torch.Generator, optional
            Source of random numbers.
        **like
            ``dtype`` and ``device``.
        """

        def uniform(bound: float, *shape: int) -> Tensor:
            values = torch.rand(count, *shape, 1, generator=generator, dtype=torch.float64)
            return ((2 * values - 1) * bound).to(**like) if like else ((2 * values - 1) * bound).float()

        sine, weights, biases = architecture.activation == "sine", [], []
        for k, (out, into) in enumerate(architecture.layers):
            gain = 6.0 if sine or architecture.activation not in ODD else 3.0
            bound = (gain / into) ** 0.5
            weights.append(uniform(torch.pi if sine and k == 0 else bound, out, into))
            biases.append(uniform(torch.pi if sine and k == 0 else into**-0.5, out))
        return cls(architecture, tuple(weights), tuple(biases))

    @classmethod
    def cat(cls, parts: Sequence["Networks"]) -> "Networks":
        """One batch from several.

        Parameters
        ----------
        parts : sequence of Networks
            Batches of one architecture.
        """
        kinds = list(dict.fromkeys(part.architecture for part in parts))
        if len(kinds) != 1:
            raise DataError(f"architectures {'; '.join(map(str, kinds))}: a batch has exactly one")
        return cls(
            kinds[0],
            tuple(torch.cat(column) for column in zip(*(part.weights for part in parts))),
            tuple(torch.cat(column) for column in zip(*(part.biases for part in parts))),
        )

    @classmethod
    def from_flat(cls, architecture: Architecture, flat: Float[Tensor, "B P"]) -> "Networks":
        """Networks from one row of weights each, in the order of `flat`.

        Parameters
        ----------
        architecture : Architecture
            The architecture.
        flat : Tensor, shape (B, P)
            The weights and biases.
        """
        if flat.shape[-1] != architecture.parameters:
            raise DataError(f"rows of {flat.shape[-1]} weights; {architecture} has {architecture.parameters}")
        pieces = flat.split([n for out, into in architecture.layers for n in (out * into, out)], dim=1)
        weights = [p.unflatten(1, shape)[..., None] for p, shape in zip(pieces[::2], architecture.layers)]
        return cls(architecture, tuple(weights), tuple(p[..., None] for p in pieces[1::2]))

    def flat(self) -> Float[Tensor, "B P"]:
        """All weights of each network in one row: weights and biases, map by map."""
        rows = [value.flatten(1) for pair in zip(self.weights, self.biases) for value in pair]
        return torch.cat(rows, dim=1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Networks":
        """Apply a function to each tensor.

        Parameters
        ----------
        function : callable
            From a tensor to another one with as many networks for each.
        """
        return replace(
            self,
            weights=tuple(function(w) for w in self.weights),
            biases=tuple(function(b) for b in self.biases),
        )

    def to(self, *args: Any, **options: Any) -> "Networks":
        """Networks of another dtype or on another device, as ``Tensor.to``.

        Parameters
        ----------
        *args, **options
            As those of ``Tensor.to``.
        """
        return self.map(lambda value: value.to(*args, **options))

    def __len__(self) -> int:
        return self.weights[0].shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Networks":
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.weights[0].device)
            index = index if index.numel() else index.long()
            if index.ndim == 0 and not index.is_floating_point():
                if not -len(self) <= int(index) < len(self):
                    raise IndexError(f"network {int(index)} of {len(self)}")
                index = index.long()[None]
        return self.map(lambda value: value[index])

    def __iter__(self) -> Iterator["Networks"]:
        return (self[k] for k in range(len(self)))

    def __call__(self, x: Float[Tensor, "*B n into"]) -> Float[Tensor, "B n out"]:
        """Outputs of all networks.

        Parameters
        ----------
        x : Tensor, shape (n, in) or (B, n, in)
            The same inputs for all of them, or inputs of each.
        """
        return self.activations(x)[-1]

    def activations(self, x: Float[Tensor, "*B n into"]) -> list[Float[Tensor, "B n d"]]:
        """What each layer of neurons puts out, the outputs last.

        Parameters
        ----------
        x : Tensor, shape (n, in) or (B, n, in)
            The same inputs for all networks, or inputs of each.

        Raises
        ------
        DataError
            For inputs of another shape or dtype, and for features of several channels, which are no networks.
        """
        into, like = self.architecture.sizes[0], self.weights[0]
        if x.ndim not in (2, 3) or x.shape[-1] != into or (x.ndim == 3 and x.shape[0] not in (1, len(self))):
            raise DataError(
                f"inputs of shape {tuple(x.shape)}; wanted (n, {into}) or ({len(self)}, n, {into}) for {self}"
            )
        if x.dtype != like.dtype:
            raise DataError(f"inputs are {x.dtype}; the networks are {like.dtype}, wanted x.to({like.dtype})")
        if like.shape[-1] != 1:
            raise DataError(f"{self}: wanted networks, with one number for each weight")
        h, found = x.expand(len(self), *x.shape[-2:]), []
        function, last = ACTIVATIONS[self.architecture.activation](), len(self.weights) - 1
        for k, (w, b) in enumerate(zip(self.weights, self.biases)):
            h = torch.baddbmm(b.mT, h, w[..., 0].mT)
            if k < last or self.architecture.activate_last:
                h = function(h)
            found.append(h)
        return found

    def module(self, index: int = 0) -> nn.Sequential:
        """One network as a module of PyTorch.

        Parameters
        ----------
        index : int
            Which one.
        """
        module = self.architecture.module().to(self.weights[0])
        self.write_to(module, index)
        return module

    def write_to(self, module: nn.Module, index: int = 0) -> None:
        """Write the weights of one network into a module, such as the one that it was read from.

        Parameters
        ----------
        module : nn.Module
            A module of the same architecture. It is changed.
        index : int
            Which network.

        Raises
        ------
        ModelError
            For another architecture, if the module has no place for a bias that is not zero, and if its
            weights are parametrized, such as by ``weight_norm``. Nothing is written then.
        """
        found, _, _ = read_module(module)
        if found != self.architecture:
            raise ModelError(f"the module is {found}; the networks are {self.architecture}")
        maps = linear_maps(module)
        for k, (layer, _) in enumerate(maps):
            if layer.bias is None and bool(self.biases[k][index].any()):
                raise ModelError(f"map {k} of the module has no biases; those of the network are not zero")
            if is_parametrized(layer):
                raise ModelError(
                    f"map {k} of the module is parametrized; wanted weights that can be written, see "
                    "torch.nn.utils.parametrize.remove_parametrizations"
                )
        for k, (layer, factor) in enumerate(maps):
            with torch.no_grad():
                layer.weight.copy_(self.weights[k][index, :, :, 0] / factor)
                if layer.bias is not None:
                    layer.bias.copy_(self.biases[k][index, :, 0] / factor)

    def graph(self, index: int = 0) -> "NeuralGraph":
        """One network as a graph: neurons are nodes and weights are edges (arXiv 2403.12143).

        Parameters
        ----------
        index : int
            Which network.
        """
        sizes, device = self.architecture.sizes, self.weights[0].device
        layer = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
        starts = list(itertools.accumulate(sizes, initial=0))
        senders, receivers = [], []
        for k, (out, into) in enumerate(self.architecture.layers):
            senders.append((starts[k] + torch.arange(into)).repeat(out))
            receivers.append((starts[k + 1] + torch.arange(out)).repeat_interleave(into))
        edges = torch.stack([torch.cat(senders), torch.cat(receivers)]).to(device)
        one = self[index]
        nodes = torch.cat(
            [torch.zeros_like(one.biases[0][0, :1]).expand(sizes[0], -1)] + [b[0] for b in one.biases]
        )
        return NeuralGraph(layer, nodes, edges, torch.cat([w[0].flatten(0, 1) for w in one.weights]))

    def __repr__(self) -> str:
        channels = self.weights[0].shape[-1]
        return f"{len(self)} networks {self.architecture}" + (
            f", {channels} channels" if channels > 1 else ""
        )

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return html_facts({"networks": str(len(self))} | self.architecture.facts())


@dataclass(frozen=True)
class NeuralGraph:
    """A network as a graph of neurons.

    Parameters
    ----------
    layer : Tensor, shape (N,)
        The layer of each neuron: 0 for inputs.
    nodes : Tensor, shape (N, C)
        The bias of each neuron; zero for inputs.
    edge_index : Tensor, shape (2, E)
        Sender and receiver of each weight.
    edges : Tensor, shape (E, C)
        The weights.
    """

    layer: Int[Tensor, "N"]
    nodes: Float[Tensor, "N C"]
    edge_index: Int[Tensor, "2 E"]
    edges: Float[Tensor, "E C"]

    def __repr__(self) -> str:
        return f"neural graph of {len(self.layer)} neurons and {self.edges.shape[0]} weights"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return html_facts({"neurons": str(len(self.layer)), "weights": str(self.edges.shape[0])})


def check_finite(what: str, values: Tensor) -> None:
    """Refuse numbers that are not finite.

    Parameters
    ----------
    what : str
        What a row is, for the message, such as "target".
    values : Tensor, shape (B, …)
        One row for each network.

    Raises
    ------
    DataError
        With the number of the first row that is not finite.
    """
    bad = (~values.isfinite()[:, None].flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"{what} {bad[0]} is not finite, and {len(bad)} of {len(values)} are not; leave them out"
        )


def mlps_of(model: nn.Module) -> dict[str, Networks]:
    """All multilayer perceptrons inside a model, such as one that `molequi.load` reads.

    Parameters
    ----------
    model : nn.Module
        A model of molequi, or any module.

    Returns
    -------
    dict of str to Networks
        One network each, by the name of its ``nn.Sequential`` in the model. Those with layers other than
        linear maps and one activation are left out. ``networks.write_to(model.get_submodule(name))`` writes
        one back.

    Examples
    --------
    >>> import molequi as mq
    >>> model = mq.Model(mq.EGNN(elements=["H"], channels=8, layers=1), ["energy"])
    >>> mlps_of(model)["backbone.layers.0.update"]
    1 networks 16-8-8, scaled_silu
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and sum(isinstance(m, nn.Linear) for m in module) > 1:
            try:
                found[name] = Networks.from_modules([module])
            except ModelError:
                continue
    return found
