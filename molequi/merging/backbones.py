"""The channels of each backbone: which spaces there are, and which maps each allows.

- EGNN, RelaxedEGNN: the invariants h of the nodes allow orthogonal maps, since they pass through linear maps
  and sums alone. Messages and hidden channels allow permutations (SiLU). The channels of "1o" are the layers,
  and stay.
- PaiNN: permutations alone. s and v are one space, since eq. 9 adds a_sv ∘ ⟨U v, V v⟩, a product channel by
  channel, to s, and gates of each channel multiply v.
- NequIP, RelaxedNequIP: permutations alone, because of SiLU of the invariants and a gate for each channel of
  the other irreps. The irreps that the next layer keeps are one space, since its factors of the elements
  multiply all of them channel by channel. What a convolution multiplies is another space.
- SevenNet, NequIPGNN: permutations of each irrep, for the same reason; the embedding allows orthogonal maps.
  A path of a convolution has the channels of the irrep that it reads.
- MACE: each irrep of the features between layers and at the end allows orthogonal maps, since they pass
  through linear maps alone. A (products of channels), and what radial weights multiply, allow permutations;
  A before it is multiplied with a matrix of each element allows orthogonal maps, too.
- GauntACE: as MACE. In the first layer A of each degree and the embedding of the neighbors' elements allow
  orthogonal maps, too; messages of later layers allow permutations. All fields f_k of a layer, which are
  multiplied with each other, are one space with permutations.

Hidden channels of perceptrons allow permutations. An embedding that reads total charge or spin multiplies
channel by channel, so that its invariants can only be permuted. If channels are multiplied with each other,
one factor can also be scaled and the other one divided by the same number, signs included; this is not
described here.
"""

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn

from molequi.merging.channels import Channels, Outer, Pieces, Space
from molequi.models import (
    EGNN,
    MACE,
    Backbone,
    GauntACE,
    NequIP,
    NequIPGNN,
    PaiNN,
    RelaxedEGNN,
    RelaxedNequIP,
    SevenNet,
)
from molequi.models import gauntace as gaunt
from molequi.models import mace as many_body
from molequi.models import sevennet as seven
from molequi.models.nequip import Interaction
from molequi.models.painn import Message, Update
from molequi.nn.cartesian import EGNNLayer
from molequi.nn.embedding import NodeEmbedding
from molequi.nn.irreps import Convolution, IrrepsLinear, PathLinear
from molequi.nn.relaxed import RelaxedConvolution, RelaxedEGNNLayer
from molequi.ops import irreps as ir

Features = dict[str, Pieces]
Irreps = dict[str, Space]
WITHOUT_TABLE = {
    "Equiformer": "the channels of its attention heads belong together and heads can change places, for "
    "which there is no table",
    "Transformer": "the channels of its attention heads belong together and heads can change places, for "
    "which there is no table",
}


def _stream(t: Channels, name: str, layer: NodeEmbedding) -> Space:
    """Invariants that are read linearly alone; charge and spin multiply them channel by channel."""
    size = layer.element.embedding_dim
    return t.permuted(name, size) if len(layer.totals) else t.rotated(name, size)


def _embedding(t: Channels, at: str, layer: NodeEmbedding, h: Space) -> None:
    t.put(f"{at}.element.weight", None, h)
    t.linear(f"{at}.features", layer.features, h, None)
    for name, net in layer.totals.items():
        t.mlp(f"{at}.totals.{name}", net, None, h)


def _axis(t: Channels, at: str, backbone: Backbone) -> int:
    """A learned direction stays. Returns how many channels of "1o" it adds."""
    if isinstance(backbone.direction, nn.Parameter):
        t.fixed(f"{at}.direction")
    return int(backbone.direction is not None)


def _output(t: Channels, at: str, backbone: Backbone, blocks: Features) -> Features:
    """The features that heads read, with the axis."""
    more = _axis(t, at, backbone)
    return blocks | {"1o": [*blocks["1o"], more]} if more and "1o" in blocks else blocks


def _mix(
    t: Channels,
    at: str,
    layer: IrrepsLinear | PathLinear,
    out: Sequence[Space],
    into: Sequence[Space | Pieces],
) -> None:
    """A linear map of each irrep."""
    for k, (mix, a, b) in enumerate(zip(layer.mix, out, into, strict=True)):
        t.linear(f"{at}.mix.{k}", mix, a, b)


def egnn(t: Channels, at: str, backbone: Backbone) -> Features:
    """The table of `EGNN` and `RelaxedEGNN`.

    Parameters
    ----------
    t : Channels
        What is described is added to it.
    at : str
        Name of the backbone in the model.
    backbone : EGNN
        The backbone.

    Returns
    -------
    dict of str to list of Space or int
        The channels of each irrep that heads read.
    """
    assert isinstance(backbone, EGNN)
    h = _stream(t, f"{at}.h", backbone.embedding)
    _embedding(t, f"{at}.embedding", backbone.embedding, h)
    t.linear(f"{at}.speed", backbone.speed, h, None)
    for k, layer in enumerate(cast(list[EGNNLayer], list(backbone.layers))):
        name = f"{at}.layers.{k}"
        first = t.permuted(f"{name}.first", h.size)  # before SiLU
        message = t.permuted(f"{name}.m", h.size)  # m_ij, after SiLU
        t.linear(f"{name}.from_receiver", layer.from_receiver, first, h)
        t.linear(f"{name}.from_sender", layer.from_sender, first, h)
        t.linear(f"{name}.from_edge", layer.from_edge, first, None)
        t.mlp(f"{name}.message", layer.message, first, message)
        t.linear(f"{name}.attention", layer.attention, None, message)
        t.mlp(f"{name}.step", layer.step, message, None)
        t.mlp(f"{name}.velocity", layer.velocity, h, None)
        t.mlp(f"{name}.update", layer.update, [h, message], h)
        if isinstance(layer, RelaxedEGNNLayer):
            vectors: Pieces = [message, *([1] if layer.velocity is not None else [])]
            t.linear(f"{name}.mix", layer.mix, None, h)
            components = Outer(vectors, [layer.directions.shape[1]])
            t.linear(f"{name}.to_scalars", layer.to_scalars, h, components)
            t.linear(f"{name}.constant", layer.constant, None, message)
            t.put(f"{name}.directions", vectors, None, None)
            _gates(t, name)
    return _output(t, at, backbone, {"0e": [h], "1o": [len(backbone.layers)]})


def _gates(t: Channels, at: str) -> None:
    for gate in "abc":
        t.fixed(f"{at}.{gate}")


def painn(t: Channels, at: str, backbone: Backbone) -> Features:
    """The table of `PaiNN`; parameters and result are those of `egnn`.

    Parameters
    ----------
    t, at, backbone
        As in `egnn`.
    """
    assert isinstance(backbone, PaiNN)
    size = backbone.embedding.element.embedding_dim
    h = t.permuted(f"{at}.h", size)  # s and v
    _embedding(t, f"{at}.embedding", backbone.embedding, h)
    t.linear(f"{at}.start", backbone.start, h, None)
    for k, message in enumerate(cast(list[Message], list(backbone.messages))):
        name = f"{at}.messages.{k}"
        t.mlp(f"{name}.phi", message.phi, h, [h] * len(message.filters))
        known: Pieces | None = None
        if isinstance(message.hidden, nn.Sequential):
            hidden = t.permuted(f"{name}.known", size)
            t.mlp(f"{name}.hidden", message.hidden, None, hidden)
            known = [hidden, 1]
        for number, part in enumerate(message.filters):
            t.linear(f"{name}.filters.{number}", part, h, known)
    for k, update in enumerate(cast(list[Update], list(backbone.updates))):
        name = f"{at}.updates.{k}"
        t.linear(f"{name}.mix", update.mix, [h, h], h)
        t.put(f"{name}.norm.weight", h)
        t.put(f"{name}.norm.bias", h)
        t.mlp(f"{name}.a", update.a, [h, h], [h, h, h])
    return _output(t, at, backbone, {"0e": [h], "1o": [h]})


def nequip(t: Channels, at: str, backbone: Backbone) -> Features:
    """The table of `NequIP` and `RelaxedNequIP`; parameters and result are those of `egnn`.

    Parameters
    ----------
    t, at, backbone
        As in `egnn`.
    """
    assert isinstance(backbone, NequIP)
    size = backbone.embedding.element.embedding_dim
    h: Irreps = {"0e": t.permuted(f"{at}.h", size)}
    _embedding(t, f"{at}.embedding", backbone.embedding, h["0e"])
    layouts = [*backbone.layouts, []]
    for k, layer in enumerate(cast(list[Interaction], list(backbone.interactions))):
        name, (inputs, outputs, later) = f"{at}.interactions.{k}", layouts[k : k + 3]
        new: Irreps = {}
        if later:  # its factors multiply all of these, channel by channel
            together = t.permuted(f"{name}.h", size)
            new = {irrep: together for irrep in outputs if irrep in later}
        new |= {i: t.permuted(f"{name}.h.{i}", size) for i in outputs if i not in new}
        _convolution(t, f"{name}.convolution", layer.convolution, h, new)
        kept = [irrep for irrep in outputs if irrep in inputs]
        _mix(t, f"{name}.keep", layer.keep, [new[i] for i in kept], [h[i] for i in kept])
        t.put(f"{name}.factor.weight", None, h[kept[0]])
        t.linear(f"{name}.gate.gates", layer.gate.gates, [new[i] for i in outputs[1:]], new["0e"])
        h = new
    return _output(t, at, backbone, {irrep: [space] for irrep, space in h.items()})


def _convolution(t: Channels, at: str, layer: Convolution, h: Irreps, new: Irreps) -> None:
    """Channels before and after the products, which are connected by the paths from one to the other."""
    product = layer.product
    group = {**{("in", i): i for i in range(len(h))}, **{("out", k): -1 - k for k in range(len(new))}}
    for i, _, k in product.paths:
        old, joined = group["out", k], group["in", i]
        group = {place: joined if number == old else number for place, number in group.items()}
    numbers = list(dict.fromkeys(group.values()))
    size = layer.channels
    spaces = {n: t.permuted(f"{at}.products.{place}", size) for place, n in enumerate(numbers)}
    sent = [spaces[group["in", i]] for i in range(len(h))]
    summed = [spaces[group["out", k]] for k in range(len(new))]
    _mix(t, f"{at}.before", layer.before, sent, [h[irrep] for irrep in product.inputs])
    t.mlp(f"{at}.radial", layer.radial, None, [sent[i] for i, _, _ in product.paths])
    _mix(t, f"{at}.after", layer.after, [new[irrep] for irrep in product.outputs], summed)
    if isinstance(layer, RelaxedConvolution):
        for name in layer.kernels:
            t.fixed(f"{at}.kernels.{name}")
        _gates(t, at)


def sevennet(t: Channels, at: str, backbone: Backbone) -> Features:
    """The table of `SevenNet` and `NequIPGNN`; parameters and result are those of `egnn`.

    Parameters
    ----------
    t, at, backbone
        As in `egnn`.
    """
    assert isinstance(backbone, SevenNet)
    h: Irreps = {"0e": _stream(t, f"{at}.h", backbone.embedding)}
    _embedding(t, f"{at}.embedding", backbone.embedding, h["0e"])
    t.fixed(f"{at}.basis.frequencies")
    for k, layer in enumerate(cast(list[seven.Interaction], list(backbone.interactions))):
        name = f"{at}.interactions.{k}"
        sent = {irrep: t.permuted(f"{name}.sent.{irrep}", size) for irrep, size in layer.inputs.items()}
        new = {irrep: t.permuted(f"{name}.h.{irrep}", size) for irrep, size in layer.outputs.items()}
        gates: Pieces = [space for irrep, space in new.items() if not irrep.startswith("0")]
        ends: Features = {irrep: [space] for irrep, space in new.items()}
        ends["0e"] = [*ends.get("0e", []), *gates]
        paths: Features = {
            target: [sent[source] for source, _, end in layer.paths if end == target]
            for target in layer.gated
        }
        _blocks(t, f"{name}.own", layer.own, ends, {irrep: [space] for irrep, space in h.items()})
        _blocks(
            t,
            f"{name}.before",
            layer.before,
            {irrep: [space] for irrep, space in sent.items()},
            {irrep: [space] for irrep, space in h.items()},
        )
        t.mlp(f"{name}.radial", layer.radial, None, [sent[source] for source, _, _ in layer.paths])
        _blocks(t, f"{name}.after", layer.after, ends, paths)
        h = new
    return {irrep: [space] for irrep, space in h.items()}


def _blocks(t: Channels, at: str, layer: seven.Mix, out: Features, into: Features) -> None:
    """A matrix for each irrep, or for each irrep and element."""
    for irrep, mix in layer.mix.items():
        if isinstance(mix, seven.ElementMatrices):
            t.put(f"{at}.mix.{irrep}.weight", None, into[irrep], out[irrep])
        else:
            t.linear(f"{at}.mix.{irrep}", mix, out[irrep], into[irrep])


def mace(t: Channels, at: str, backbone: Backbone) -> Features:
    """The table of `MACE`; parameters and result are those of `egnn`.

    Parameters
    ----------
    t, at, backbone
        As in `egnn`.
    """
    assert isinstance(backbone, MACE)
    h: Irreps = {"0e": _stream(t, f"{at}.h", backbone.embedding)}
    _embedding(t, f"{at}.embedding", backbone.embedding, h["0e"])
    if isinstance(backbone.basis.frequencies, nn.Parameter):
        t.fixed(f"{at}.basis.frequencies")
    scalars: list[Space | int] = []
    for k, layer in enumerate(cast(list[many_body.Layer], list(backbone.layers))):
        name, size = f"{at}.layers.{k}", layer.atomic.channels
        inputs, outputs = backbone.layouts[k : k + 2]
        sent, a = t.permuted(f"{name}.sent", size), t.permuted(f"{name}.a", size)
        degrees = [ir.natural(l) for l in range(backbone.l_max + 1)]
        _mix(t, f"{name}.atomic.before", layer.atomic.before, [sent] * len(inputs), [h[i] for i in inputs])
        t.mlp(f"{name}.atomic.radial", layer.atomic.radial, None, [sent] * layer.atomic.num_paths)
        if layer.density is not None:
            t.fixed(f"{name}.density.weight")
        summed = dict.fromkeys(degrees, a)
        if layer.turn is not None:
            summed = {irrep: t.rotated(f"{name}.summed.{irrep}", size) for irrep in degrees}
            _keep(t, f"{name}.turn", degrees, summed, dict.fromkeys(degrees, a))
        paths = [sum(c) if isinstance(layer.atomic.after, PathLinear) else 1 for c in layer.atomic.counts]
        _mix(
            t, f"{name}.atomic.after", layer.atomic.after, list(summed.values()), [[sent] * n for n in paths]
        )
        new = {irrep: t.rotated(f"{name}.h.{irrep}", size) for irrep in outputs}
        t.put(f"{name}.product.weight", None, None, a)
        _mix(t, f"{name}.product.after", layer.product.after, list(new.values()), [a] * len(outputs))
        if layer.keep is not None:
            _keep(t, f"{name}.keep", min(inputs, outputs, key=len), h, new)
        scalars.append(new["0e"])
        h = new
    blocks: Features = {irrep: [space] for irrep, space in h.items()}
    return _output(t, at, backbone, blocks | {"0e": scalars})


def _keep(t: Channels, at: str, irreps: list[str], h: Irreps, new: Irreps) -> None:
    """`nn.ElementLinear`: a matrix for each element and irrep, from the left side to the right one."""
    for k, irrep in enumerate(irreps):
        t.put(f"{at}.weight", None, None, h[irrep], new[irrep], at={1: k})


def gauntace(t: Channels, at: str, backbone: Backbone) -> Features:
    """The table of `GauntACE`; parameters and result are those of `egnn`.

    Parameters
    ----------
    t, at, backbone
        As in `egnn`.
    """
    assert isinstance(backbone, GauntACE)
    h: Irreps = {"0e": _stream(t, f"{at}.h", backbone.embedding)}
    _embedding(t, f"{at}.embedding", backbone.embedding, h["0e"])
    size = h["0e"].size
    scalars: list[Space | int] = []
    for k, layer in enumerate(cast(list[gaunt.Layer], list(backbone.layers))):
        name, (inputs, outputs) = f"{at}.layers.{k}", backbone.layouts[k : k + 2]
        degrees = backbone.l_max + 1
        a = _gathered(t, f"{name}.gather", layer.gather, h, inputs, size, degrees)
        fields = t.permuted(f"{name}.f", size)  # all f_k, which are multiplied
        for number, mix in enumerate(cast(list[IrrepsLinear], list(layer.mix))):
            _mix(t, f"{name}.mix.{number}", mix, [fields] * degrees, a)
            t.put(f"{name}.weights.{number}.weight", None, fields)
        new = {irrep: t.rotated(f"{name}.h.{irrep}", size) for irrep in outputs}
        _mix(t, f"{name}.after", layer.after, list(new.values()), [fields] * len(outputs))
        if layer.keep is not None:
            _keep(t, f"{name}.keep", min(inputs, outputs, key=len), h, new)
        t.mlp(f"{name}.update", layer.update, [h["0e"], new["0e"]], new["0e"])
        scalars.append(new["0e"])
        h = new
    blocks: Features = {irrep: [space] for irrep, space in h.items()}
    return _output(t, at, backbone, blocks | {"0e": scalars})


def _gathered(
    t: Channels, at: str, layer: nn.Module, h: Irreps, inputs: list[str], size: int, degrees: int
) -> list[Space]:
    """The spaces of A by degree."""
    if isinstance(layer, gaunt.Density):
        species = t.rotated(f"{at}.species", layer.species.embedding_dim)
        t.put(f"{at}.species.weight", None, species)
        a = [t.rotated(f"{at}.a.{l}", size) for l in range(degrees)]
        for l, mix in enumerate(layer.mix):
            assert isinstance(mix, nn.Linear)
            t.linear(f"{at}.mix.{l}", mix, a[l], Outer([mix.in_features // species.size], [species]))
        return a
    assert isinstance(layer, gaunt.Messages)
    sent = t.permuted(f"{at}.sent", size)
    _mix(t, f"{at}.before", layer.before, [sent] * len(inputs), [h[irrep] for irrep in inputs])
    t.linear(f"{at}.radial", layer.radial, [sent] * layer.count, None)
    return [sent] * degrees


BACKBONE_TABLES: dict[type[Backbone], Callable[[Channels, str, Backbone], Features]] = {
    EGNN: egnn,
    RelaxedEGNN: egnn,
    PaiNN: painn,
    NequIP: nequip,
    RelaxedNequIP: nequip,
    SevenNet: sevennet,
    NequIPGNN: sevennet,
    MACE: mace,
    GauntACE: gauntace,
}
