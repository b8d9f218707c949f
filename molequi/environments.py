"""How far the environments of atoms are from those of the training data, in the features that heads read.

The features x of an atom are the invariants of the backbone and the norms of its other features. With
their mean μ and covariance Σ over the training atoms of an element, the distance is

    d² = (x - μ)ᵀ (Σ + ρ tr(Σ)/F 1)⁻¹ (x - μ) / s²,

where F is the number of features, ρ = 10⁻³, and s makes the root mean square over the validation atoms of the
element 1. Such distances measure how uncertain a network is (Zhu, Batzner, Musaelian and Kozinsky, J. Chem.
Phys. 158, 164111, 2023, arXiv 2211.09866, with several Gaussian functions). They need no derivative, and
unlike the variance of the last layer they also grow along features that the last layer does not use. What the
features do not distinguish has no distance.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from molequi.features import Features

_RIDGE = 1e-3


class Environments(nn.Module):
    """Mean and inverse root of the covariance of features, for each element; `fit_environments` makes it.

    Parameters
    ----------
    elements : sequence of int
        Atomic numbers E of the training data.
    features : int
        Number of features F.

    Examples
    --------
    >>> found = Environments([1, 8], 3)
    >>> found(torch.zeros(2, 3), torch.tensor([8, 6])).tolist()
    [0.0, inf]
    """

    elements: Tensor
    mean: Tensor
    root: Tensor

    def __init__(self, elements: Iterable[int], features: int) -> None:
        super().__init__()
        numbers = torch.tensor(list(elements), dtype=torch.long)
        self.register_buffer("elements", numbers, persistent=False)
        self.register_buffer("mean", torch.zeros(len(numbers), features))
        self.register_buffer("root", torch.zeros(len(numbers), features, features))

    @property
    def hparams(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {"elements": self.elements.tolist(), "features": self.mean.shape[1]}

    def forward(self, features: Tensor, z: Tensor) -> Tensor:
        """Distance of each atom, infinite for an element without training data: (N,).

        Parameters
        ----------
        features : Tensor, shape (N, F)
            What `invariants_of` returns.
        z : Tensor, shape (N,)
            Atomic numbers.
        """
        distance = torch.full_like(features[:, 0], torch.inf)
        for k, number in enumerate(self.elements.tolist()):
            own = z == number
            distance[own] = ((features[own] - self.mean[k]) @ self.root[k]).norm(dim=1)
        return distance


def invariants_of(features: Features) -> Tensor:
    """Invariants, and norms of all other features (pseudoscalars change their sign in a mirror): (N, F).

    Parameters
    ----------
    features : Features
        What a backbone returns.
    """
    others = [block.norm(dim=-1) for irrep, block in features.blocks.items() if irrep != "0e"]
    return torch.cat([features.scalars, *others], 1)


def fit_environments(
    train: Iterable[tuple[Tensor, Tensor]], valid: Iterable[tuple[Tensor, Tensor]]
) -> Environments:
    """Environments of training atoms, in units of the distances of validation atoms.

    Parameters
    ----------
    train, valid : iterables of (Tensor, Tensor), shapes (N, F) and (N,)
        Features and atomic numbers, batch by batch.
    """
    moments: dict[int, Any] = {}
    for features, z in train:
        for number, own in _by_element(features, z).items():
            first = moments[number][0] if number in moments else own[0]
            away = own - first
            new = (len(own), away.sum(0), away.T @ away)
            old = moments[number][1] if number in moments else (0, 0.0, 0.0)
            moments[number] = first, [a + b for a, b in zip(old, new)]
    first, _ = next(iter(moments.values()))
    found = Environments(sorted(moments), len(first)).to(first)
    spectra = []
    for k, number in enumerate(sorted(moments)):
        first, (count, total, outer) = moments[number]
        away = total / count
        found.mean[k] = first + away
        spectra.append(torch.linalg.eigh(outer / count - torch.outer(away, away)))
    widest = max(float(values.mean()) for values, _ in spectra)
    floor = max(1e-6 * widest, 1e-12 * float(found.mean.square().max()), 1e-30)  # features may be constant
    for k, (values, vectors) in enumerate(spectra):
        ridge = _RIDGE * values.mean().clamp(min=floor)
        found.root[k] = vectors / (values.clamp(min=0.0) + ridge).sqrt()
    _normalize(found, valid)
    return found


def _normalize(found: Environments, valid: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Divide the distances of each element by their root mean square over validation atoms."""
    squares: dict[int, list[Tensor]] = {}
    for features, z in valid:
        for number, own in _by_element(features, z).items():
            if number in found.elements:
                squares.setdefault(number, []).append(found(own, torch.full((len(own),), number)).square())
    mean = {number: torch.cat(parts).mean() for number, parts in squares.items()}
    usual = torch.cat([torch.cat(parts) for parts in squares.values()]).mean() if squares else None
    for k, number in enumerate(found.elements.tolist()):
        square = mean.get(number, usual)
        if square is not None and square > 0:
            found.root[k] /= square.sqrt()


def _by_element(features: Tensor, z: Tensor) -> Mapping[int, Tensor]:
    return {int(number): features[z == number].double().cpu() for number in z.unique()}
