"""Which axes of the weights of a model are channels, and of which space.

A network does not know the order of its channels. If all weights that write and read the channels of a space
are permuted together, every output stays the same. If a space is only ever mapped linearly, or contracted
channel by channel with another one of the same space, the same holds for every orthogonal map Q: writing
weights become Q W, reading weights W Qᵀ. An elementwise function, a product of two channels, or a layer norm
allows permutations only.

So the symmetry of a model is described by its spaces, each with its group, and by the space of each axis of
each parameter. `molequi.merging.backbones` and `molequi.merging.heads` describe the classes of the package,
each in a small table.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molequi.errors import ModelError

Group = Literal["permutations", "signed", "orthogonal"]


@dataclass(frozen=True)
class Space:
    """Channels that are transformed together.

    Parameters
    ----------
    name : str
        Its name, unique in a model.
    size : int
        Number of channels.
    group : {"permutations", "signed", "orthogonal"}
        The maps that leave all outputs unchanged. "signed": permutations with signs, for odd activations.
    """

    name: str
    size: int
    group: Group


@dataclass(frozen=True)
class Outer:
    """An axis with an entry for each pair of channels, the second one counted first.

    Parameters
    ----------
    first, second : sequence of Space or int
        The two axes.
    """

    first: "Pieces"
    second: "Pieces"


# An axis: a space; several pieces one after another (an int: a number of entries that stay); None: all stay.
Pieces = Sequence[Space | int]
Axis = Space | Pieces | None


@dataclass(frozen=True)
class Cell:
    """A block of a parameter whose axes each belong to one space, or to none.

    Parameters
    ----------
    parameter : str
        Name of the parameter.
    view : tuple of int
        Shape in which the parameter is seen.
    where : tuple of slice
        The block in this view.
    spaces : tuple of (str or None)
        The space of each axis.
    """

    parameter: str
    view: tuple[int, ...]
    where: tuple[slice, ...]
    spaces: tuple[str | None, ...]

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The block.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Parameters by name.
        """
        return tensors[self.parameter].reshape(self.view)[self.where]


class Channels:
    """The spaces of a model, and the space of each axis of its parameters.

    Parameters
    ----------
    model : nn.Module
        The model.

    Attributes
    ----------
    spaces : dict of str to Space
        All spaces by name.
    cells : list of Cell
        The blocks of all parameters that have channels.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        self.spaces: dict[str, Space] = {}
        self.cells: list[Cell] = []
        self._described = dict.fromkeys(self.shapes, 0)

    def permuted(self, name: str, size: int) -> Space:
        """A new space whose channels can only be permuted.

        Parameters
        ----------
        name : str
            Its name.
        size : int
            Number of channels.
        """
        return self._new(Space(name, size, "permutations"))

    def rotated(self, name: str, size: int) -> Space:
        """A new space that allows all orthogonal maps.

        Parameters
        ----------
        name : str
            Its name.
        size : int
            Number of channels.
        """
        return self._new(Space(name, size, "orthogonal"))

    def _new(self, space: Space) -> Space:
        assert space.name not in self.spaces, space.name
        self.spaces[space.name] = space
        return space

    def put(self, name: str, *axes: "Axis | Outer", at: Mapping[int, int] | None = None) -> None:
        """Describe the axes of a parameter.

        Parameters
        ----------
        name : str
            The parameter.
        *axes : Axis or Outer
            What each axis is.
        at : mapping of int to int, optional
            The description holds for one index of these axes.
        """
        if name not in self.shapes:
            raise ModelError(f"the table of channels names {name!r}, which the model does not have")
        shape, view, pieces = self.shapes[name], [], []
        for axis, size in zip(axes, shape, strict=True):
            for one in (axis.first, axis.second) if isinstance(axis, Outer) else (axis,):
                parts = [size] if one is None else [one] if isinstance(one, Space) else list(one)
                pieces.append(parts)
                view.append(sum(_size(part) for part in parts))
        if math.prod(view) != math.prod(shape):
            raise ModelError(f"the table of channels gives {name!r} the shape {tuple(view)}; it has {shape}")
        starts = [list(itertools.accumulate((_size(p) for p in parts), initial=0)) for parts in pieces]
        for chosen in itertools.product(*(range(len(parts)) for parts in pieces)):
            where = [slice(starts[d][k], starts[d][k + 1]) for d, k in enumerate(chosen)]
            for dim, index in (at or {}).items():
                where[dim] = slice(index, index + 1)
            parts = [pieces[d][k] for d, k in enumerate(chosen)]
            spaces = tuple(part.name if isinstance(part, Space) else None for part in parts)
            self._described[name] += math.prod(one.stop - one.start for one in where)
            if any(spaces):
                self.cells.append(Cell(name, tuple(view), tuple(where), spaces))

    def fixed(self, name: str) -> None:
        """Describe a parameter without channels.

        Parameters
        ----------
        name : str
            The parameter.
        """
        self.put(name, *(None for _ in self.shapes.get(name, ())))

    def linear(self, name: str, layer: nn.Module | None, out: "Axis | Outer", into: "Axis | Outer") -> None:
        """Describe a linear map.

        Parameters
        ----------
        name : str
            Its name.
        layer : nn.Linear or None
            The map; None: the model has none.
        out, into : Axis or Outer
            What it writes and reads.
        """
        if layer is None:
            return
        self.put(f"{name}.weight", out, into)
        if getattr(layer, "bias", None) is not None:
            self.put(f"{name}.bias", out)

    def mlp(
        self,
        name: str,
        net: nn.Module | None,
        into: Axis,
        out: "Axis | Outer",
        *,
        hidden: Literal["permutations", "signed"] = "permutations",
    ) -> None:
        """Describe a perceptron. An activation comes after each linear map but perhaps the last one, so that
        hidden channels can be permuted.

        Parameters
        ----------
        name : str
            Its name.
        net : nn.Sequential or None
            Linear maps, activations and layer norms; None: the model has none.
        into, out : Axis
            What it reads and writes. With an activation at the end, `out` has permutations alone.
        hidden : {"permutations", "signed"}
            The maps that hidden channels allow; "signed" if the activation is odd.
        """
        if net is None:
            return
        layers = dict(net.named_children())
        last = [key for key, layer in layers.items() if isinstance(layer, nn.Linear)][-1]
        now: Axis | Outer = into
        for key, layer in layers.items():
            if isinstance(layer, nn.Linear):
                assert not isinstance(now, Outer)
                new = out if key == last else self._new(Space(f"{name}.{key}", layer.out_features, hidden))
                self.linear(f"{name}.{key}", layer, new, now)
                now = new
            elif isinstance(layer, nn.LayerNorm):
                self.put(f"{name}.{key}.weight", now)
                self.put(f"{name}.{key}.bias", now)

    def check(self) -> None:
        """Check that the whole of each parameter is described, and once.

        Raises
        ------
        ModelError
            For one that is not.
        """
        for name, shape in self.shapes.items():
            if self._described[name] != math.prod(shape):
                raise ModelError(
                    f"the table of channels describes {self._described[name]} of the {math.prod(shape)} "
                    f"weights {name!r}; its channels are not known, so that models of different starts "
                    "cannot be aligned; merge models of one start"
                )


def _size(part: Space | int) -> int:
    return part.size if isinstance(part, Space) else part


def transformed(
    tensors: Mapping[str, Tensor], channels: Channels, maps: Mapping[str, Float[Tensor, "C C"]]
) -> dict[str, Tensor]:
    """Parameters whose channels are mapped: a model with them has the same outputs.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Parameters by name. They are not changed.
    channels : Channels
        The spaces of the model.
    maps : mapping of str to Tensor, shape (C, C)
        A permutation or orthogonal matrix by the name of the space; spaces that are left out stay.

    Returns
    -------
    dict of str to Tensor

    Examples
    --------
    >>> import torch
    >>> import molequi as mq
    >>> from molequi.merging import channels_of
    >>> model = mq.Model(mq.EGNN(elements=["H"], channels=2, layers=1), ["energy"])
    >>> swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> weights = dict(model.named_parameters())
    >>> new = transformed(weights, channels_of(model), {"backbone.h": swap})
    >>> name = "backbone.embedding.element.weight"
    >>> bool((new[name] == weights[name].flip(1)).all())
    True
    """
    out = {name: value.detach().clone() for name, value in tensors.items()}
    for cell in channels.cells:
        part = mapped(cell.of(out), cell.spaces, maps)
        out[cell.parameter].view(cell.view)[cell.where] = part
    return out


def mapped(part: Tensor, spaces: Sequence[str | None], maps: Mapping[str, Tensor]) -> Tensor:
    """A block with the maps of its axes applied.

    Parameters
    ----------
    part : Tensor
        The block.
    spaces : sequence of (str or None)
        The space of each axis.
    maps : mapping of str to Tensor
        Matrices by the name of the space.
    """
    for dim, space in enumerate(spaces):
        if space is not None and space in maps:
            matrix = maps[space].to(part)
            part = torch.tensordot(matrix, part, dims=([1], [dim])).movedim(0, dim)
    return part
