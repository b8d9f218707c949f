"""Random elements of symmetry groups, one for each structure of a batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molequi.data.dataset import Dataset
from molequi.errors import ConfigError, did_you_mean
from molequi.symmetry import Group, Transform, group

SYMMETRIES = ("rotation", "reflection", "translation", "permutation")
# Finite groups with the inversion x → -x. O(n) has it in odd dimensions.
_WITH_INVERSION = ("O(n)", "Th", "Oh", "Ih")

Key = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class RandomTransforms:
    """Random rotations, reflections, translations and permutations: ``transforms(symmetry, counts, key)``.

    The elements are a function of the seed, the symmetry and the key alone. So a training that is continued
    draws the same elements without a saved state.

    Parameters
    ----------
    group : Group
        Rotations and reflections are uniformly distributed elements of this group.
    shift : float
        Standard deviation of each component of a translation, in Å.
    seed : int
        Seed of the random numbers.
    """

    group: Group
    shift: float
    seed: int

    def __call__(
        self, symmetry: str, counts: Sequence[int], key: Key, share: tuple[int, int] = (0, 1)
    ) -> Transform:
        """A random element for each structure of a batch.

        A reflection is the inversion x → -x if the group has it. The inversion contains no rotation, so a
        model that is not equivariant to rotations alone has no error under it. In other groups a reflection
        is a random element with determinant -1.

        Parameters
        ----------
        symmetry : str
            One of `SYMMETRIES`.
        counts : sequence of int
            Number of nodes of each structure of the whole batch.
        key : tuple of str and int
            Which elements are drawn, such as ("train", number of the step).
        share : (int, int)
            Rank of this device and number of devices. Each device gets the elements of its part of the batch.

        Returns
        -------
        Transform
            The elements for the structures of this device.
        """
        generator = self._generator(symmetry, *key)
        mine = slice(share[0], None, share[1])
        if symmetry == "rotation":
            rotations = [self.group.sample(proper=True, generator=generator) for _ in counts]
            return Transform(rotations=torch.stack(rotations[mine]))
        if symmetry == "reflection":
            reflections = [self._reflection(generator) for _ in counts]
            return Transform(rotations=torch.stack(reflections[mine]))
        if symmetry == "translation":
            normal = torch.randn(len(counts), self.group.dim, generator=generator, dtype=torch.float64)
            return Transform(translations=self.shift * normal[mine])
        orders = [torch.randperm(n, generator=generator) for n in counts][mine]
        starts = np.cumsum([0, *counts[mine]]).tolist()
        return Transform(permutation=torch.cat([order + start for order, start in zip(orders, starts)]))

    def generators(
        self, symmetry: str, counts: Sequence[int], key: Key, step: float, share: tuple[int, int] = (0, 1)
    ) -> tuple[Transform, Transform, int]:
        """exp(hξ) and exp(-hξ) with a random generator ξ of unit length for each structure.

        Parameters
        ----------
        symmetry : {"rotation", "translation"}
            The symmetry.
        counts, key, share
            As above.
        step : float
            h: in radians for rotations, in units of `shift` for translations.

        Returns
        -------
        forward, backward : Transform
            exp(hξ) and exp(-hξ).
        dimension : int
            Number of linearly independent generators.
        """
        generator, dim = self._generator(symmetry, *key), self.group.dim
        mine = slice(share[0], None, share[1])
        if symmetry == "translation":
            directions = torch.randn(len(counts), dim, generator=generator, dtype=torch.float64)
            shifts = step * self.shift * torch.nn.functional.normalize(directions, dim=1)[mine]
            return Transform(translations=shifts), Transform(translations=-shifts), dim
        size = dim - 1 if self.group.name.endswith("(n-1)") else dim  # (n-1): rotations about the last axis
        xi = torch.zeros(len(counts), dim, dim, dtype=torch.float64)
        xi[:, :size, :size] = torch.randn(len(counts), size, size, generator=generator, dtype=torch.float64)
        xi = (xi - xi.transpose(1, 2))[mine]
        xi = xi / (xi.square().sum((1, 2), keepdim=True) / 2).sqrt()
        forward = Transform(rotations=torch.matrix_exp(step * xi))
        backward = Transform(rotations=torch.matrix_exp(-step * xi))
        return forward, backward, size * (size - 1) // 2

    def _generator(self, *key: str | int) -> torch.Generator:
        digest = hashlib.sha256(repr((self.seed, *key)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))

    def _reflection(self, generator: torch.Generator) -> Tensor:
        if self.group.dim % 2 and self.group.name in _WITH_INVERSION:
            return -torch.eye(self.group.dim, dtype=torch.float64)
        return self.group.sample(proper=False, generator=generator)


def random_transforms(
    name: str, data: Dataset, seed: int, shift: float | None, symmetries: Sequence[str], where: str
) -> RandomTransforms:
    """Random transforms for the structures of a data set.

    Parameters
    ----------
    name : str
        Name of the group of rotations and reflections, as in `molequi.symmetry.group`.
    data : Dataset
        The structures.
    seed : int
        Seed of the random numbers.
    shift : float, optional
        Standard deviation of each component of a translation, in Å. By default the root mean square distance
        of the nodes from the centroid of their structure, or 1 if that is zero.
    symmetries : sequence of str
        The symmetries that will be drawn.
    where : str
        Beginning of error messages.

    Raises
    ------
    ConfigError
        If the group is unknown, or lacks one of the symmetries.
    """
    chosen = group_with(name, data[0].dim, symmetries, where)
    if shift is None:
        square = torch.cat([(g.pos - g.pos.mean(0)).square().sum(1) for g in data]).mean()
        shift = float(square.sqrt()) or 1.0
    return RandomTransforms(group=chosen, shift=shift, seed=seed)


def group_with(name: str, dim: int, symmetries: Sequence[str], where: str) -> Group:
    """The group of a name, if it has these symmetries.

    Parameters
    ----------
    name : str
        Name of the group, as in `molequi.symmetry.group`.
    dim : int
        Dimension of space.
    symmetries : sequence of str
        Of "rotation" and "reflection", those that the group must have; others do not count.
    where : str
        Beginning of error messages.

    Raises
    ------
    ConfigError
        If the group is unknown, or lacks one of the symmetries.
    """
    try:
        chosen = group(name, dim)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for symmetry, has in (("rotation", chosen.proper and chosen.dim > 1), ("reflection", chosen.improper)):
        if symmetry in symmetries and not has:
            raise ConfigError(
                f"{where}: {symmetry} is asked for, and the group {chosen} has none but the identity; leave "
                f"{symmetry} out, or take another group, such as 'O(n)'"
            )
    return chosen


def check_symmetries(names: Sequence[str], where: str) -> None:
    """Check names of symmetries.

    Parameters
    ----------
    names : sequence of str
        The names.
    where : str
        Beginning of error messages.

    Raises
    ------
    ConfigError
        If a name is not one of `SYMMETRIES`.
    """
    for name in names:
        if name not in SYMMETRIES:
            raise ConfigError(f"{where}.{name}: no such symmetry{did_you_mean(str(name), SYMMETRIES)}")
