"""The channels of each head: what it reads of the spaces of the backbone, and its own hidden channels.

A head reads invariants by the first linear map of a perceptron, and sums channels of vectors and tensors
with weights that a last linear map writes, Σ_c φ_c v_c: both allow every map that the backbone allows. The
products of `TensorN` are channel by channel, so that its terms can only be permuted.
"""

from collections.abc import Callable, Mapping
from typing import cast

from torch import nn

from molequi.heads import (
    Classes,
    Dipole,
    DipoleMagnitude,
    Head,
    LayerReadouts,
    LinearScalar,
    Position,
    Scalar,
    SpatialExtent,
    Tensor2,
    TensorN,
    Vector,
    ZBLEnergy,
)
from molequi.heads.layers import Readouts
from molequi.merging.channels import Channels, Outer, Pieces

Spaces = Mapping[str, Pieces]


def _attend(t: Channels, at: str, head: nn.Module, spaces: Spaces) -> None:
    assert isinstance(head, Head)
    t.mlp(f"{at}.attend", head.attend, spaces["0e"], None)


def scalar(t: Channels, at: str, head: nn.Module, spaces: Spaces) -> None:
    """The table of `Scalar` and `SpatialExtent`.

    Parameters
    ----------
    t : Channels
        What is described is added to it.
    at : str
        Name of the head in the model.
    head : Head
        The head.
    spaces : mapping of str to list of Space or int
        The channels of each irrep that it reads.
    """
    assert isinstance(head, (Scalar, SpatialExtent))
    _attend(t, at, head, spaces)
    t.mlp(f"{at}.net", head.net, spaces["0e"], spaces["0o"] if head.quantity.pseudo else None)


def linear_scalar(t: Channels, at: str, head: nn.Module, spaces: Spaces) -> None:
    """The table of `LinearScalar`, whose hidden channels allow orthogonal maps if there is no activation;
    parameters are those of `scalar`.

    Parameters
    ----------
    t, at, head, spaces
        As in `scalar`.
    """
    assert isinstance(head, LinearScalar)
    _attend(t, at, head, spaces)
    if head.activation is not None:
        t.mlp(f"{at}.net", head.net, spaces["0e"], None)
        return
    now: Pieces = spaces["0e"]
    for k, size in enumerate(head.hidden):
        new = [t.rotated(f"{at}.hidden.{k}", size)]
        t.linear(f"{at}.net.{k}", head.net[k], new, now)
        now = new
    t.linear(f"{at}.net.{len(head.hidden)}", head.net[-1], None, now)


def layer_readouts(t: Channels, at: str, head: nn.Module, spaces: Spaces) -> None:
    """The table of `LayerReadouts`; parameters are those of `scalar`.

    Parameters
    ----------
    t, at, head, spaces
        As in `scalar`.
    """
    assert isinstance(head, LayerReadouts)
    net, scalars = cast(Readouts, head.net), spaces["0e"]
    t.linear(f"{at}.net.linear", net.linear, None, scalars[:-1])
    t.mlp(f"{at}.net.last", net.last, scalars[-1:], None)


def classes(t: Channels, at: str, head: nn.Module, spaces: Spaces) -> None:
    """The table of `Classes`; parameters are those of `scalar`.

    Parameters
    ----------
    t, at, head, spaces
        As in `scalar`.
    """
    assert isinstance(head, Classes)
    _attend(t, at, head, spaces)
    width = t.permuted(f"{at}.width", head.score.in_features)
    t.mlp(f"{at}.net", head.net, spaces["0e"], width)
    t.linear(f"{at}.score", head.score, None, width)


def vector(t: Channels, at: str, head: nn.Module, spaces: Spaces) -> None:
    """The table of `Vector`, `Dipole` and `DipoleMagnitude`; parameters are those of `scalar`.

    Parameters
    ----------
    t, at, head, spaces
        As in `scalar`.
    """
    assert isinstance(head, Vector)
    _attend(t, at, head, spaces)
    t.mlp(f"{at}.net", head.net, spaces["0e"], spaces[head.needs[1]])
    if isinstance(head, Dipole):
        t.mlp(f"{at}.charge_net", head.charge_net, spaces["0e"], None)


def position(t: Channels, at: str, head: nn.Module, spaces: Spaces) -> None:
    """The table of `Position`, whose first weight is that of the velocity; parameters are those of `scalar`.

    Parameters
    ----------
    t, at, head, spaces
        As in `scalar`.
    """
    assert isinstance(head, Position)
    _attend(t, at, head, spaces)
    t.mlp(f"{at}.net", head.net, spaces["0e"], [1, *spaces["1o"]])


def tensor2(t: Channels, at: str, head: nn.Module, spaces: Spaces) -> None:
    """The table of `Tensor2`; parameters are those of `scalar`.

    Parameters
    ----------
    t, at, head, spaces
        As in `scalar`.
    """
    assert isinstance(head, Tensor2)
    _attend(t, at, head, spaces)
    if head.symmetric:
        t.mlp(f"{at}.isotropic", head.isotropic, spaces["0e"], spaces["0o"] if head.quantity.pseudo else None)
        source = spaces[head.source]
        t.mlp(f"{at}.net", head.net, spaces["0e"], Outer(source, source) if head.source == "1o" else source)
    if head.antisymmetric:
        axial = spaces[head.axial]
        out = Outer(axial, axial) if head.products else axial
        t.mlp(f"{at}.antisymmetric_net", head.antisymmetric_net, spaces["0e"], out)


def tensor_n(t: Channels, at: str, head: nn.Module, spaces: Spaces) -> None:
    """The table of `TensorN`; parameters are those of `scalar`.

    Parameters
    ----------
    t, at, head, spaces
        As in `scalar`.
    """
    assert isinstance(head, TensorN)
    _attend(t, at, head, spaces)
    terms = [t.permuted(f"{at}.terms.{k}", head.terms) for k in range(len(head.pairings))]
    t.mlp(f"{at}.net", head.net, spaces["0e"], terms)
    for k, mixes in enumerate(head.mix):
        for m, mix in enumerate(mixes.children()):
            t.linear(f"{at}.mix.{k}.{m}", mix, terms[k], spaces["1o"])


HEAD_TABLES: dict[type[nn.Module], Callable[[Channels, str, nn.Module, Spaces], None]] = {
    Scalar: scalar,
    LinearScalar: linear_scalar,
    LayerReadouts: layer_readouts,
    ZBLEnergy: linear_scalar,
    SpatialExtent: scalar,
    Classes: classes,
    Vector: vector,
    Dipole: vector,
    DipoleMagnitude: vector,
    Position: position,
    Tensor2: tensor2,
    TensorN: tensor_n,
}
