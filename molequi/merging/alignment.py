"""Align the channels of two models, so that equal channels have equal places.

The maps T of all spaces minimize |A - T B|² over the weights A of one model and B of the other one ("weight
matching", Ainsworth et al. 2023, arXiv 2209.04836). One space at a time, given the maps of the others, this
is a linear problem: with M = Σ A_(axis) (T B)_(axis)ᵀ over all axes of the space, the best permutation is
that of a linear assignment (the Hungarian method), with signs that of |M|, and the best orthogonal map is
U Vᵀ of the singular value decomposition M = U S Vᵀ (Procrustes).

The first maps come from the axes whose channels have a fixed meaning (elements, radial functions, outputs)
and go from there from space to space, each once all that M needs is known. So a model whose channels were
permuted or rotated on purpose is restored exactly. Steps over all spaces follow until none improves the sum.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.merging.channels import Cell, Channels, Space, mapped

Maps = dict[str, Float[Tensor, "C C"]]
_SWEEPS = 100  # of steps over all spaces, which stop by themselves after about ten
_RANK = 1e-9  # singular values below this share of the largest one say nothing


def align(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], channels: Channels) -> Maps:
    """The map of each space that brings the weights of one model closest to those of another one.

    Parameters
    ----------
    reference, other : mapping of str to Tensor
        Parameters of two models of one architecture.
    channels : Channels
        Its spaces.

    Returns
    -------
    dict of str to Tensor, shape (C, C)
        A permutation or orthogonal matrix by the name of each space, for `molequi.merging.transformed`.

    Examples
    --------
    >>> import torch
    >>> import molequi as mq
    >>> from molequi.merging import channels_of, transformed
    >>> model = mq.Model(mq.EGNN(elements=["H", "O"], channels=4, layers=1), ["energy"]).double()
    >>> weights, channels = dict(model.named_parameters()), channels_of(model)
    >>> turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    >>> turned = transformed(weights, channels, {"backbone.h": turn})
    >>> bool(torch.allclose(align(weights, turned, channels)["backbone.h"], turn.T))
    True
    """
    matching = _Matching(reference, other, channels)
    spread = matching.improved(matching.spread())
    same = {n: torch.eye(s.size, dtype=torch.float64) for n, s in channels.spaces.items()}
    stayed = matching.improved(same)
    return max(spread, stayed, key=matching.overlap)


def closeness(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """How close the weights of two models are: the mean cosine of the angle between equal tensors.

    Each tensor counts by its number of weights. Models of the same weights have 1, and independent starts
    have nearly 0, since their random weights are orthogonal to each other.

    Parameters
    ----------
    reference, other : mapping of str to Tensor
        Parameters of two models of one architecture.

    Examples
    --------
    >>> closeness({"w": torch.ones(4)}, {"w": torch.ones(4)})
    1.0
    """
    total, count = 0.0, 0
    for name, a in reference.items():
        a, b = a.detach().double().flatten(), other[name].detach().double().flatten()
        size = float(a.norm() * b.norm())
        if size > 0:  # a bias that is zero in one of them says nothing
            total += float(a @ b) / size * a.numel()
            count += a.numel()
    return total / count if count else 1.0


class _Matching:
    """The overlap Σ A · T B of two models, and its best map for one space at a time."""

    def __init__(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor], channels: Channels) -> None:
        self.spaces = channels.spaces
        self.cells = channels.cells
        self.a = [cell.of(a).detach().cpu().double() for cell in self.cells]
        self.b = [cell.of(b).detach().cpu().double() for cell in self.cells]
        self.of_space: dict[str, list[tuple[int, int]]] = {name: [] for name in self.spaces}
        for number, cell in enumerate(self.cells):
            for dim, name in enumerate(cell.spaces):
                if name is not None:
                    self.of_space[name].append((number, dim))

    def overlap(self, maps: Maps) -> float:
        """Σ A · T B over all blocks."""
        return self._overlap(maps, range(len(self.cells)))

    def _overlap(self, maps: Maps, numbers: "range | set[int]") -> float:
        return sum(float((self.a[n] * mapped(self.b[n], self.cells[n].spaces, maps)).sum()) for n in numbers)

    def moment(
        self, name: str, maps: Maps, known: Mapping[str, object] | None = None
    ) -> tuple[Tensor, float]:
        """M of a space, and the share of its weights in it: those whose other axes are all `known`."""
        size = self.spaces[name].size
        total = torch.zeros(size, size, dtype=torch.float64)
        used = every = 0
        for number, dim in self.of_space[name]:
            others = self._others(self.cells[number], dim)
            every += self.a[number].numel()
            if known is not None and any(one is not None and one not in known for one in others):
                continue
            used += self.a[number].numel()
            part = mapped(self.b[number], others, maps)
            left = self.a[number].movedim(dim, 0).reshape(size, -1)
            total += left @ part.movedim(dim, 0).reshape(size, -1).T
        return total, used / every if every else 0.0

    @staticmethod
    def _others(cell: Cell, dim: int) -> list[str | None]:
        return [None if d == dim else one for d, one in enumerate(cell.spaces)]

    def spread(self) -> Maps:
        """Maps that begin at fixed axes and go on from space to space."""
        maps: Maps = {}
        waiting = dict(self.spaces)
        while waiting:
            ranked = []
            for name, space in waiting.items():
                moment, share = self.moment(name, maps, maps)
                ranked.append((_determined(moment, space), share, name, moment))
            _, _, name, moment = max(ranked, key=lambda one: one[:2])
            maps[name] = _best(moment, waiting.pop(name))
        return maps

    def improved(self, maps: Maps) -> Maps:
        """Maps after steps over all spaces, until none makes the overlap larger."""
        maps = dict(maps)
        for _ in range(_SWEEPS):
            better = False
            for name, space in self.spaces.items():
                moment, _ = self.moment(name, maps)
                new = maps | {name: _best(moment, space)}
                touched = {number for number, _ in self.of_space[name]}
                gain = self._overlap(new, touched) - self._overlap(maps, touched)
                if gain > 1e-12 * sum(float(self.a[n].norm() * self.b[n].norm()) for n in touched):
                    maps, better = new, True
            if not better:
                break
        return maps


def _determined(moment: Tensor, space: Space) -> float:
    """How far M determines the map: 1 for a permutation, the share of the rank for an orthogonal map."""
    if not bool(moment.any()):
        return 0.0
    if space.group != "orthogonal":
        return 1.0
    values = torch.linalg.svdvals(moment)
    return float((values > _RANK * values[0]).double().mean())


def _best(moment: Tensor, space: Space) -> Tensor:
    """The map T with the largest Σ T_ij M_ij."""
    if space.group == "orthogonal":
        left, _, right = torch.linalg.svd(moment)
        return left @ right
    from scipy.optimize import linear_sum_assignment

    signed = space.group == "signed"
    found = linear_sum_assignment((moment.abs() if signed else moment).numpy(), maximize=True)
    rows, columns = map(torch.as_tensor, found)
    best = torch.zeros_like(moment)
    best[rows, columns] = torch.ones(len(rows)).to(moment).copysign(moment[rows, columns]) if signed else 1.0
    return best
