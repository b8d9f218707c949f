"""Spectra, low-pass filters and other numbers of degrees, of functions on the sphere and of features."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.errors import ConfigError
from molequi.features import Features
from molequi.ops.irreps import name, parse


def power(components: Float[Tensor, "... M"]) -> Float[Tensor, "... L"]:
    """Power of a function on the sphere by degree, Σ_m c_lm².

    Rotations do not change it, and its sum is the mean square of the function (Parseval).

    Parameters
    ----------
    components : Tensor, shape (…, (l_max + 1)²)
        Components, one degree after another, as those of `SphereGrid`.

    Returns
    -------
    Tensor, shape (…, l_max + 1)
        The power of each degree.

    Raises
    ------
    ConfigError
        If the last axis has no such length.

    Examples
    --------
    >>> power(torch.tensor([2.0, 0.0, 3.0, 4.0])).tolist()
    [4.0, 25.0]
    """
    return torch.stack([part.square().sum(-1) for part in _by_degree(components)], dim=-1)


def feature_spectrum(features: Features) -> Float[Tensor, "N L"]:
    """Power of the features of each node by degree: the sum over channels, parities and components of l.

    Parameters
    ----------
    features : Features
        Features of a backbone.

    Returns
    -------
    Tensor, shape (N, l_max + 1)
        The power of each degree.

    Examples
    --------
    >>> blocks = {"0e": torch.ones(2, 4, 1), "1o": torch.ones(2, 4, 3)}
    >>> feature_spectrum(Features(blocks=blocks, coordination=torch.ones(2))).tolist()
    [[4.0, 12.0], [4.0, 12.0]]
    """
    degrees = [parse(irrep)[0] for irrep in features.blocks]
    totals = [block.square().sum((1, 2)) for block in features.blocks.values()]
    found = totals[0].new_zeros(len(totals[0]), max(degrees) + 1)
    return found.index_add(1, torch.tensor(degrees, device=found.device), torch.stack(totals, dim=1))


def low_pass(
    x: Float[Tensor, "... M"] | Features, *, l_max: int | None = None, angle: float = 0.0
) -> Tensor | Features:
    """Components without high degrees. It commutes with rotations.

    Parameters
    ----------
    x : Tensor, shape (…, (L + 1)²), or Features
        Components of functions on the sphere, or features of nodes.
    l_max : int, optional
        Degrees above it become zero.
    angle : float
        Width in radians of a Gaussian (heat kernel) with which functions are convolved: degree l is
        multiplied by exp(-l (l + 1) angle² / 2).

    Returns
    -------
    Tensor or Features
        As `x`, with the same shapes.

    Raises
    ------
    ConfigError
        If a number is negative, or the last axis has no such length.

    Examples
    --------
    >>> low_pass(torch.tensor([2.0, 0.0, 3.0, 4.0]), l_max=0).tolist()
    [2.0, 0.0, 0.0, 0.0]
    """
    if (l_max is not None and l_max < 0) or not 0 <= angle < math.inf:
        raise ConfigError(f"low_pass: found l_max={l_max!r}, angle={angle!r}; wanted numbers from 0 on")

    def factor(l: int) -> float:
        return 0.0 if l_max is not None and l > l_max else math.exp(-l * (l + 1) * angle**2 / 2)

    if isinstance(x, Features):
        blocks = {irrep: block * factor(parse(irrep)[0]) for irrep, block in x.blocks.items()}
        return Features(blocks=blocks, coordination=x.coordination)
    return torch.cat([part * factor(l) for l, part in enumerate(_by_degree(x))], dim=-1)


def resample(x: Float[Tensor, "... M"] | Features, l_max: int) -> Tensor | Features:
    """Components up to another degree: higher ones are dropped, missing ones are zero.

    Parameters
    ----------
    x : Tensor, shape (…, (L + 1)²), or Features
        Components of functions on the sphere, or features of nodes. Missing blocks of features get the parity
        of the harmonics and the channels of the block with the highest degree.
    l_max : int
        The highest degree of the result, from 0 on.

    Returns
    -------
    Tensor, shape (…, (l_max + 1)²), or Features
        The same functions up to degree `l_max`.

    Raises
    ------
    ConfigError
        If the degree is negative, or the last axis has no such length.

    Examples
    --------
    >>> resample(torch.tensor([2.0]), 1).tolist()
    [2.0, 0.0, 0.0, 0.0]
    """
    if isinstance(l_max, bool) or not isinstance(l_max, int) or l_max < 0:
        raise ConfigError(f"resample: found l_max={l_max!r}; wanted a degree from 0 on")
    if isinstance(x, Features):
        return Features(blocks=_resampled(x.blocks, l_max), coordination=x.coordination)
    _by_degree(x)
    size = (l_max + 1) ** 2
    return torch.nn.functional.pad(x[..., :size], (0, max(size - x.shape[-1], 0)))


def _resampled(blocks: Mapping[str, Tensor], l_max: int) -> dict[str, Tensor]:
    kept = {irrep: block for irrep, block in blocks.items() if parse(irrep)[0] <= l_max}
    highest, block = max(blocks.items(), key=lambda item: parse(item[0])[0])
    for l in range(parse(highest)[0] + 1, l_max + 1):
        kept[name(l, (-1) ** l)] = block.new_zeros(*block.shape[:2], 2 * l + 1)
    return kept


def _by_degree(components: Tensor) -> tuple[Tensor, ...]:
    """The components of each degree. Raises ConfigError if the last axis does not end with a degree."""
    size = components.shape[-1] if components.ndim else 0
    number = math.isqrt(size)
    if number**2 != size or not size:
        raise ConfigError(f"components: the last axis has length {size}; wanted (l_max + 1)²: 1, 4, 9, 16, …")
    return components.split([2 * l + 1 for l in range(number)], dim=-1)
