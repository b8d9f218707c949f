"""Groups of rotations and reflections, and their elements."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.errors import ConfigError, did_you_mean


def random_orthogonal(
    dim: int, *, proper: bool | None = None, generator: torch.Generator | None = None
) -> Float[Tensor, "D D"]:
    """A random orthogonal matrix from the uniform (Haar) measure on O(D), float64.

    QR decomposition of a Gaussian matrix with fixed signs (Mezzadri 2007, arXiv math-ph/0609050).

    Parameters
    ----------
    dim : int
        Number of dimensions D.
    proper : bool, optional
        True for rotations, False for matrices with a reflection, None for either with equal probability.
    generator : torch.Generator, optional
        Source of random numbers.

    Returns
    -------
    Tensor, shape (D, D)
        The matrix.
    """
    q, r = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
    q = q * torch.diagonal(r).sign()
    if proper is not None and (torch.linalg.det(q) > 0) != proper:
        q[:, 0] = -q[:, 0]
    return q


# Proper subgroups of each group, without the trivial one; groups about an axis share the axis.
CONTAINED = {
    "O(n)": ("SO(n)", "O(n-1)", "SO(n-1)", "T", "Td", "Th", "O", "Oh", "I", "Ih"),
    "SO(n)": ("SO(n-1)", "T", "O", "I"),
    "O(n-1)": ("SO(n-1)",),
    "Td": ("T",),
    "Th": ("T",),
    "O": ("T",),
    "Oh": ("O", "Td", "Th", "T"),
    "I": ("T",),
    "Ih": ("I", "Th", "T"),
}
CONTINUOUS = ("O(n)", "SO(n)", "O(n-1)", "SO(n-1)", "C1")
FINITE = ("T", "Td", "Th", "O", "Oh", "I", "Ih")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A subgroup of O(D), with or without translations. Permutations of equal nodes always belong to it.

    Parameters
    ----------
    name : str
        "O(n)" or "SO(n)"; "O(n-1)" or "SO(n-1)" for the subgroup that leaves an axis fixed, as an external
        field does (in space: rotations about the axis, with or without the mirror planes that contain it);
        "C1" for the identity alone; in space also the finite groups "T", "Td", "Th", "O", "Oh", "I" and "Ih"
        (Schoenflies), with two-fold axes along x, y and z.
    dim : int
        Number of dimensions D.
    translations : bool
        Whether translations belong to the group.
    axis : tuple of float, shape (D,), optional
        The fixed axis of "O(n-1)" and "SO(n-1)", of any length; None for the last axis of space.

    Raises
    ------
    ConfigError
        If the name is unknown or does not fit the dimension or the axis.

    Examples
    --------
    >>> str(Group(name="O(n-1)"))
    'O(2) about (0, 0, 1)'
    """

    name: str
    dim: int = 3
    translations: bool = True
    axis: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.name not in CONTINUOUS + FINITE:
            raise ConfigError(
                f"group {self.name!r} is not known{did_you_mean(self.name, CONTINUOUS + FINITE)}"
            )
        if self.name in FINITE and self.dim != 3:
            raise ConfigError(f"group {self.name} is one of three dimensions; the structures have {self.dim}")
        if self.axis is not None and self.name not in ("O(n-1)", "SO(n-1)"):
            raise ConfigError(
                f"group {self.name} has no axis of its own; leave axis out, or take 'O(n-1)' or 'SO(n-1)'"
            )
        if self.axis is not None:
            object.__setattr__(self, "axis", tuple(float(x) for x in self.axis))
        if self.axis is not None and (
            len(self.axis) != self.dim or not 1e-100 < math.hypot(*self.axis) < 1e100
        ):
            raise ConfigError(f"axis={self.axis}: wanted {self.dim} finite numbers, not all zero")

    @property
    def improper(self) -> bool:
        """Whether the group has elements with a reflection."""
        return self.name in ("O(n)", "Td", "Th", "Oh", "Ih") or (self.name == "O(n-1)" and self.dim > 1)

    @property
    def proper(self) -> bool:
        """Whether the group has rotations other than the identity."""
        return self.name != "C1" and (self.dim > 2 or self.name not in ("O(n-1)", "SO(n-1)"))

    @property
    def elements(self) -> Float[Tensor, "n D D"]:
        """All elements of a finite group, the identity first, float64. Raises ConfigError for a continuous
        group.
        """
        if self.name in FINITE:
            return torch.stack(_finite(self.name))
        if self.name != "C1":
            raise ConfigError(
                f"the group {self} has infinitely many elements; those with a list of them are "
                f"{', '.join(FINITE)} and C1"
            )
        return torch.eye(self.dim, dtype=torch.float64)[None]

    def holds(self, other: "Group") -> bool:
        """Whether this group contains another one, whatever the directions of their axes.

        Parameters
        ----------
        other : Group
            The group that may be a subgroup.

        Returns
        -------
        bool
            True for a subgroup and for the group itself.
        """
        mine, its = (
            "C1" if g.name.startswith("SO") and g.dim - g.name.endswith("(n-1)") < 2 else g.name
            for g in (self, other)
        )
        return (
            its in (mine, "C1", *CONTAINED.get(mine, ()))
            and self.dim == other.dim
            and (self.translations or not other.translations)
        )

    def sample(self, *, proper: bool, generator: torch.Generator | None = None) -> Float[Tensor, "D D"]:
        """A random element from the uniform (Haar) measure, float64.

        Parameters
        ----------
        proper : bool
            True for a rotation, False for an element with a reflection.
        generator : torch.Generator, optional
            Source of random numbers.

        Returns
        -------
        Tensor, shape (D, D)
            An orthogonal matrix.

        Raises
        ------
        ConfigError
            If the group has no such elements.
        """
        if not proper and not self.improper:
            raise ConfigError(f"the group {self} has no reflections")
        if self.name in ("O(n)", "SO(n)"):
            return random_orthogonal(self.dim, proper=proper, generator=generator)
        if self.name == "C1":
            return torch.eye(self.dim, dtype=torch.float64)
        if self.name in FINITE:
            chosen = [g for g in _finite(self.name) if (torch.linalg.det(g) > 0) == proper]
            return chosen[int(torch.randint(len(chosen), (), generator=generator))].clone()
        inner = torch.eye(self.dim, dtype=torch.float64)
        inner[:-1, :-1] = random_orthogonal(self.dim - 1, proper=proper, generator=generator)
        frame = _frame(self.axis or (*[0.0] * (self.dim - 1), 1.0))
        return frame @ inner @ frame.T

    def __str__(self) -> str:
        name = self.name.replace("n-1", str(self.dim - 1)).replace("n", str(self.dim))
        if self.name in ("O(n-1)", "SO(n-1)"):
            axis = torch.tensor(self.axis or (*[0.0] * (self.dim - 1), 1.0), dtype=torch.float64)
            name += f" about ({', '.join(f'{x:.3g}' for x in (axis / axis.norm()).tolist())})"
        return name if self.translations else f"{name} without translations"


def group(
    name: str, dim: int = 3, *, translations: bool = True, axis: Sequence[float] | None = None
) -> Group:
    """The group with a name in the usual notation.

    Besides the names of `Group`: "E(3)", "SE(3)", "O(3)", "SO(2)", "O(2)" in space, "T(3)", "S_N", "O(2)
    about (0, 0, 1)", "C1 without translations". E(n) and SE(n) include translations, T(n) is translations
    alone, and S_N is permutations alone.

    Parameters
    ----------
    name : str
        Name of the group.
    dim : int
        Number of dimensions.
    translations : bool
        Whether translations belong to the group, if its name leaves it open.
    axis : sequence of float, shape (D,), optional
        The fixed axis of "O(n-1)" and "SO(n-1)".

    Returns
    -------
    Group
        The group.

    Raises
    ------
    ConfigError
        If the name is unknown or does not fit the dimension.

    Examples
    --------
    >>> group("SE(3)") == Group(name="SO(n)")
    True
    """
    if not isinstance(name, str) or isinstance(axis, str):
        raise ConfigError(
            f"group {name!r}{'' if axis is None else f', axis {axis!r}'}: wanted a name such as 'SE(3)', "
            "and an axis as numbers"
        )
    plain = name.replace(" ", "")
    if plain.endswith("withouttranslations"):
        plain, translations = plain.removesuffix("withouttranslations"), False
    about = re.fullmatch(r"(.+)about\(([-+.e\d,]+)\)", plain)
    if about:
        plain, axis = about[1], [float(x) for x in about[2].split(",")]
    if plain == "S_N":
        return Group(name="C1", dim=dim, translations=False)
    if re.fullmatch(r"T\((n|\d+)\)", plain):
        return Group(name="C1", dim=dim)
    found = re.fullmatch(r"(E|SE|O|SO)\((n|n-1|\d+)\)", plain)
    if found:
        kind, size = found.groups()
        below = size in ("n-1", str(dim - 1))
        if not below and size not in ("n", str(dim)):
            raise ConfigError(f"group {name!r}: the structures have {dim} dimensions")
        translations = translations or kind in ("E", "SE")
        plain = ("SO" if kind.startswith("S") else "O") + ("(n-1)" if below else "(n)")
    if plain not in CONTINUOUS + FINITE:
        raise ConfigError(f"group {name!r} is not known{did_you_mean(plain, CONTINUOUS + FINITE)}")
    return Group(
        name=plain,
        dim=dim,
        translations=translations,
        axis=None if axis is None else tuple(float(x) for x in axis),
    )


def _frame(axis: Sequence[float]) -> Tensor:
    """A rotation that takes the last axis of space to `axis`."""
    last = torch.tensor(axis, dtype=torch.float64)
    full = torch.cat([(last / last.norm())[:, None], torch.eye(len(last), dtype=torch.float64)], dim=1)
    frame = torch.linalg.qr(full).Q[:, : len(last)]
    frame = torch.cat([frame[:, 1:], (last / last.norm())[:, None]], dim=1)
    frame[:, 0] *= torch.linalg.det(frame).sign()
    return frame


@lru_cache
def _finite(name: str) -> tuple[Tensor, ...]:
    """All elements of a finite group, from rotations that generate it."""
    third = torch.tensor(
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64
    )  # about (1, 1, 1)
    half, quarter = (
        torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)),
        torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64),
    )
    golden = (1 + math.sqrt(5)) / 2
    generators = [third, half]
    if name.startswith("O"):
        generators.append(quarter)
    elif name == "Td":
        generators.append(-quarter)
    elif name.startswith("I"):
        generators.append(torch.linalg.matrix_exp(2 * math.pi / 5 * _cross((0.0, 1.0, golden))))
    if name.endswith("h"):
        generators.append(-torch.eye(3, dtype=torch.float64))
    found = [torch.eye(3, dtype=torch.float64)]
    for g in found:  # grows while it is walked through
        for turn in generators:
            if not any(torch.allclose(turn @ g, f, atol=1e-9) for f in found):
                found.append(turn @ g)
    u = [torch.linalg.svd(g) for g in found]  # products of up to fifteen: round-off removed
    return tuple(left @ right for left, _, right in u)


def _cross(axis: Sequence[float]) -> Tensor:
    """K with K v = n × v for the unit vector n along `axis`: exp(φ K) turns by φ about it."""
    x, y, z = (torch.tensor(axis, dtype=torch.float64) / math.hypot(*axis)).tolist()
    return torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
