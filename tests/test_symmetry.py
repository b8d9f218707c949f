"""Groups: orders from crystallography, closure, Haar averages, and what they leave in place."""

import pytest
import torch

from molequi.errors import ConfigError
from molequi.symmetry import FINITE, Group, group

ORDERS = {"T": 12, "Td": 24, "Th": 24, "O": 24, "Oh": 48, "I": 60, "Ih": 120}
EYE = torch.eye(3, dtype=torch.float64)


def near(a, b):
    return torch.allclose(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", FINITE)
def test_finite_groups(name):
    elements = list(Group(name=name).elements)
    assert len(elements) == ORDERS[name]
    assert all(near(g @ g.T, EYE) for g in elements)
    assert all(any(near(a @ b, c) for c in elements) for a in elements[:8] for b in elements)
    stack = torch.stack(elements)
    assert float(stack.diagonal(dim1=1, dim2=2).sum(1).square().mean()) == pytest.approx(
        1.0
    )  # the vector is irreducible
    improper = int((torch.linalg.det(stack) < 0).sum())
    assert improper == (0 if name in ("T", "O", "I") else len(elements) // 2)
    assert any(near(g, -EYE) for g in elements) == name.endswith("h")


@pytest.mark.parametrize(
    "dim, axis",
    [
        (3, (1.0, -2.0, 0.5)),
        (3, None),
        (3, (0.0, 0.0, -3.0)),
        (3, (1.0, 0.0, 0.0)),
        (2, (1.0, 1.0)),
        (4, None),
    ],
)
def test_an_axis_stays_in_its_place(dim, axis):
    generator = torch.Generator().manual_seed(0)
    what = Group(name="O(n-1)", dim=dim, axis=axis)
    n = torch.tensor(axis or [0.0] * (dim - 1) + [1.0], dtype=torch.float64)
    for proper in (True, False):
        R = what.sample(proper=proper, generator=generator)
        assert near(R @ n, n) and near(R @ R.T, torch.eye(dim, dtype=torch.float64))
        assert (float(torch.linalg.det(R)) > 0) == proper
        assert (dim == 2 and proper) or not near(R, torch.eye(dim, dtype=torch.float64))
    assert what.proper == (dim > 2)


@pytest.mark.parametrize("name", ["O(n)", "SO(n)", "O(n-1)", "T", "Oh", "Ih"])
def test_samples_average_as_the_group_does(name):
    """The mean of R is the projection on what is left in place: nothing, or the axis."""
    generator = torch.Generator().manual_seed(1)
    what = Group(name=name)
    draws = torch.stack(
        [what.sample(proper=k % 2 == 0 or not what.improper, generator=generator) for k in range(4000)]
    )
    left = torch.diag(torch.tensor([0.0, 0.0, 1.0 if name == "O(n-1)" else 0.0], dtype=torch.float64))
    assert (
        float((draws.mean(0) - left).abs().max()) < 0.05
    )  # five standard errors of 4,000 draws of variance at most 1/2


def test_names():
    assert group("E(3)") == group("O(3)") == group("O(n)") == Group(name="O(n)")
    assert group("SE(2)", 2) == Group(name="SO(n)", dim=2)
    assert group("O(2)") == Group(name="O(n-1)") and group("O(2)", 2) == Group(name="O(n)", dim=2)
    assert group("T(3)") == Group(name="C1") and not group("S_N").translations and group("T").name == "T"
    assert str(group("O(2)", axis=[0, 2, 0])) == "O(2) about (0, 1, 0)"
    assert str(group("SO(3)", translations=False)) == "SO(3) without translations"
    assert not group("SO(3)").improper and group("O(2)").improper and not group("C1").proper


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(name="Dh"), "not known"),
        (dict(name="Oh", dim=2), "three dimensions"),
        (dict(name="O(n)", axis=(0.0, 0.0, 1.0)), "no axis"),
        (dict(name="O(n-1)", axis=(0.0, 0.0)), "3 finite numbers"),
        (dict(name="O(n-1)", axis=(0.0, 0.0, 0.0)), "not all zero"),
    ],
)
def test_errors(given, words):
    with pytest.raises(ConfigError, match=words):
        Group(**given)


def test_names_as_they_are_written_are_read():
    for what in (
        Group(name="O(n-1)", axis=[0.0, 0.6, 0.8]),
        Group(name="C1", translations=False),
        Group(name="Oh"),
        Group(name="SO(n)", dim=2),
    ):
        again = group(str(what), what.dim)
        assert str(again) == str(what) and hash(again) is not None and again.translations == what.translations


@pytest.mark.parametrize(
    "given",
    [
        dict(name=None),
        dict(name="O(2)", axis="z"),
        dict(name="O(2)", axis=(1e-200, 0.0, 0.0)),
        dict(name="C2"),
    ],
)
def test_what_is_no_group(given):
    with pytest.raises(ConfigError, match="group|axis"):
        group(**given)


def test_errors_of_names_and_samples():
    with pytest.raises(ConfigError, match="2 dimensions"):
        group("E(5)", 2)
    with pytest.raises(ConfigError, match="no reflections"):
        Group(name="T").sample(proper=False)


@pytest.mark.parametrize(
    "smaller, larger, held",
    [
        ("O(3)", "O(3)", True),
        ("SO(3)", "O(3)", True),
        ("C1", "SO(3)", True),
        ("Td", "Oh", True),
        ("T", "SO(3)", True),
        ("SO(2)", "O(2)", True),
        ("O(2) about (0, 0, 1)", "O(2) about (0, 0.1, 0.995)", True),
        ("O(2) about (0, 0, 1)", "O(3)", True),
        ("C1 without translations", "C1", True),
        ("O(3)", "SO(3)", False),
        ("O(3)", "C1", False),
        ("O(3)", "O(2) about (0, 0, 1)", False),
        ("Oh", "Ih", False),
        ("C1", "C1 without translations", False),
    ],
)
def test_which_groups_contain_which(smaller, larger, held):
    assert group(larger).holds(group(smaller)) == held


@pytest.mark.parametrize("name", FINITE)
def test_contained_groups_by_their_elements(name):
    """The table against the matrices: every element of one is one of the other, in the standard frame."""
    for other in FINITE:
        inside = all(
            any(near(a, b) for b in list(Group(name=name).elements)) for a in Group(name=other).elements
        )
        assert Group(name=name).holds(Group(name=other)) == inside, other


def test_rotations_about_an_axis_of_the_plane_are_none():
    identity, about, mirrored = (group(name, 2) for name in ("C1", "SO(n-1)", "O(n-1)"))
    assert (
        identity.holds(about)
        and about.holds(identity)
        and mirrored.holds(about)
        and not about.holds(mirrored)
    )
    assert not group("C1", 3).holds(group("SO(n-1)", 3))
