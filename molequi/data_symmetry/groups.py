"""Names of groups that the hypothesis test accepts."""

from collections.abc import Sequence
from dataclasses import dataclass

from molequi.errors import ConfigError, did_you_mean
from molequi.symmetry import group

GROUPS = ("O(3)", "SO(3)", "Oh", "O(2)", "T(3)")
KNOWN_GROUPS = ("O(3)", "SO(3)", "E(3)", "SE(3)", "T(3)")
KNOWN_SUBGROUPS = ("O(2)", "SO(2)", "T", "Td", "Th", "O", "Oh", "I", "Ih")


@dataclass(frozen=True)
class GroupSelection:
    """The symmetries to test.

    Attributes
    ----------
    rotations, reflections, translations : bool
        Whether to test each of these.
    subgroups : tuple of str
        Subgroups that are tested if rotations are broken or not tested.
    axis : tuple of float or None
        Axis of "O(2)" and "SO(2)"; None searches for it.
    """

    rotations: bool
    reflections: bool
    translations: bool
    subgroups: tuple[str, ...]
    axis: tuple[float, ...] | None


def select_groups(groups: Sequence[str], axis: Sequence[float] | None) -> GroupSelection:
    """Check names of groups and the axis, and sort them by what is tested; raises ConfigError."""
    if isinstance(groups, str) or not len(groups):
        raise ConfigError(f"groups={groups!r}: wanted a list of names such as {list(GROUPS)}")
    known = KNOWN_GROUPS + KNOWN_SUBGROUPS
    for name in groups:
        if name not in known:
            raise ConfigError(f"group {name!r} is not known{did_you_mean(str(name), known)}")
    group("O(2)", axis=axis)  # raises for an invalid axis
    return GroupSelection(
        rotations=bool({"O(3)", "SO(3)", "E(3)", "SE(3)"} & set(groups)),
        reflections=bool({"O(3)", "E(3)"} & set(groups)),
        translations=bool({"E(3)", "SE(3)", "T(3)"} & set(groups)),
        subgroups=tuple(n for n in groups if n in KNOWN_SUBGROUPS),
        axis=None if axis is None else tuple(float(a) for a in axis),
    )
