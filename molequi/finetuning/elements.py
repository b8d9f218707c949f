"""New elements for a trained model: their parameters are copied from those of similar elements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from molequi.errors import ConfigError
from molequi.heads import LinearScalar, Scalar
from molequi.model import Model
from molequi.models.gauntace import Density
from molequi.quantities import SYMBOLS

_NOBLE = (2, 10, 18, 36, 54, 86, 118)


@dataclass(frozen=True)
class NewElements:
    """The elements that a model got.

    Parameters
    ----------
    donors : mapping of int to int or None
        For each new atomic number, that of the element whose parameters are copied; None for the mean of
        all.
    rows : mapping of str to tuple of int
        For each parameter with rows of elements, the numbers of the new rows, by the name of the parameter.
        The rows stand along the first axis.
    """

    donors: Mapping[int, int | None]
    rows: Mapping[str, tuple[int, ...]]

    def text(self) -> str:
        """What was added, in words; empty if nothing was."""
        return ", ".join(
            f"{SYMBOLS[z]} like {'the mean of all' if donor is None else SYMBOLS[donor]}"
            for z, donor in self.donors.items()
        )


def group_of(z: int) -> int:
    """The group of the periodic table, 1 to 18; 3 + 100 n for the n-th lanthanide or actinide.

    La and Ac are the first ones, and Lu and Lr belong to group 3.

    Parameters
    ----------
    z : int
        Atomic number from 1 to 118.

    Examples
    --------
    >>> [group_of(z) for z in (1, 2, 5, 11, 14, 29, 57, 71, 79)]
    [1, 18, 13, 1, 14, 11, 103, 3, 11]
    """
    before = max((n for n in (0, *_NOBLE) if n < z), default=0)
    place, length = z - before, _NOBLE[[0, *_NOBLE].index(before)] - before
    from_end = length - place  # 0 for noble gases
    if place <= 2 and z != 2:
        return place
    if length == 32 and place <= 16:
        return 3 + 100 * (place - 2)
    return 18 - from_end


def nearest(z: int, known: Sequence[int]) -> int | None:
    """The known element of the same group that is nearest in the periodic table; None if there is none.

    Parameters
    ----------
    z : int
        Atomic number of the new element.
    known : sequence of int
        Atomic numbers.

    Examples
    --------
    >>> nearest(14, [1, 6, 8, 32]), nearest(17, [1, 6])
    (6, None)
    """
    same = [one for one in known if 0 not in (one, z) and group_of(one) == group_of(z)]
    return min(same, key=lambda one: (abs(one - z), one), default=None)


def add_elements(model: Model, elements: Sequence[int]) -> NewElements:
    """Give a trained model elements that it does not know; its predictions for others stay the same.

    What belongs to a new element begins as that of the nearest known one in its group of the periodic table,
    or as the mean over all elements if there is none. Reference energies are those of the donor, too, until
    they are fitted.

    Parameters
    ----------
    model : Model
        The model, which is changed.
    elements : sequence of int
        Atomic numbers that it has to know.

    Returns
    -------
    NewElements
        What was added; nothing if it knows all of them.

    Raises
    ------
    ConfigError
        If a tensor or the submodules of the backbone depend on the number of elements in a way that is not
        known.
    """
    old = model.elements
    new = [z for z in sorted(elements) if z not in old]
    if not new:
        return NewElements({}, {})
    donors = {z: nearest(z, old) for z in new}
    hparams = model.hparams
    options = {**hparams["options"], "elements": [*old, *new]}
    grown = Model.from_hparams({**hparams, "options": options}, **model.own_classes)
    grown = grown.to(model.device, model.dtype)
    matrix = _donor_matrix(old, grown.elements, donors).to(model.device)
    _take(grown.backbone, model.backbone, "backbone", matrix)
    rows = {
        name: tuple(k for k, z in enumerate(grown.elements) if z in donors)
        for (name, after), before in zip(grown.backbone.named_parameters(), model.backbone.parameters())
        if after.ndim and after.shape[0] == len(grown.elements) != before.shape[0]
    }
    model.backbone = grown.backbone.train(model.training)
    model.use_program(None)
    for head in model.heads.modules():  # of all levels of theory
        if isinstance(head, Scalar):
            scales = (head.element_scale,) if isinstance(head, LinearScalar) else ()
            for table in (head.reference_energies, head.shift, *scales):
                known = table[list(old)].mean()
                for z, donor in donors.items():
                    table[z] = known if donor is None else table[donor]
    return NewElements(donors, {f"backbone.{name}": numbers for name, numbers in rows.items()})


def _donor_matrix(old: Sequence[int], new: Sequence[int], donors: Mapping[int, int | None]) -> Tensor:
    """Weights of the old elements in each new row, shape (new, old)."""
    matrix = torch.zeros(len(new), len(old), dtype=torch.float64)
    for k, z in enumerate(new):
        donor = donors.get(z, z)
        if donor is None:
            matrix[k] = 1.0 / len(old)
        else:
            matrix[k, old.index(donor)] = 1.0
    return matrix


@torch.no_grad()
def _take(new: nn.Module, old: nn.Module, name: str, matrix: Tensor) -> None:
    """Copy the state of a module into the same one for more elements."""
    if isinstance(new, Density) and isinstance(old, Density):
        _take_density(new, old, matrix)
        return
    own = [*old.named_parameters(recurse=False), *old.named_buffers(recurse=False)]
    persistent = old.state_dict().keys()
    for key, value in own:
        if key in persistent:
            getattr(new, key).copy_(_extended(value, getattr(new, key), f"{name}.{key}", matrix))
    inside, before = dict(new.named_children()), dict(old.named_children())
    if inside.keys() != before.keys():
        raise _unknown(name, f"the submodules {', '.join(before)}", ", ".join(inside), matrix)
    for key, inner in inside.items():
        _take(inner, before[key], f"{name}.{key}", matrix)


def _unknown(name: str, found: str, grown: str, matrix: Tensor) -> ConfigError:
    """The error of a backbone that depends on the number of elements in a way that is not known."""
    after, before = matrix.shape
    return ConfigError(
        f"finetune: new elements cannot be added to this backbone: {name} has {found} for {before} elements "
        f"and {grown} for {after}; train anew with all elements, or leave the structures with new elements "
        "out"
    )


def _extended(old: Tensor, new: Tensor, name: str, matrix: Tensor) -> Tensor:
    """A tensor with the rows of the new elements along each axis that grew."""
    after, before = matrix.shape
    for axis, (a, b) in enumerate(zip(old.shape, new.shape)):
        if a == b:
            continue
        if (a, b) != (before, after):
            raise _unknown(name, f"the shape {tuple(old.shape)}", f"{tuple(new.shape)}", matrix)
        moved = old.movedim(axis, 0)
        rows = (matrix.to(old) @ moved.flatten(1)).reshape(after, *moved.shape[1:])
        old = rows.movedim(0, axis)
    return old


def _take_density(new: Density, old: Density, matrix: Tensor) -> None:
    """As `_take`, for a layer whose number of features of neighbors grows with the elements.

    The additional features are zero, so that the function of the known elements stays the same.
    """
    before, after = old.species.embedding_dim, new.species.embedding_dim
    new.species.weight.zero_()
    new.species.weight[:, :before] = matrix.to(old.species.weight) @ old.species.weight
    for mine, theirs in zip(new.mix, old.mix):
        assert isinstance(mine, nn.Linear) and isinstance(theirs, nn.Linear)
        mine.weight.unflatten(1, (-1, after))[:, :, :before] = theirs.weight.unflatten(1, (-1, before))
