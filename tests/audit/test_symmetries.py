"""The ladder: the group of a function that is known by hand is found, and none larger."""

import json
import math

import pytest
import torch
from torch import nn

from molequi import EGNN, Model, NequIP
from molequi.audit import Declared, symmetries
from molequi.errors import ConfigError

from .kit import ELEMENTS, molecule

STRUCTURES = [molecule(0), molecule(1, 5)]


class Of(nn.Module):
    """Σ_i z_i g(x_i - x̄) of a function g of a vector."""

    def __init__(self, g, centred=True, ordered=False):
        super().__init__()
        self.g, self.centred, self.ordered = g, centred, ordered

    def forward(self, pos, z):
        x = pos - pos.mean(0) if self.centred else pos
        weight = z * torch.arange(1, len(z) + 1) if self.ordered else z
        return (weight * self.g(x)).sum()


def found(g, **options):
    return symmetries(
        Declared(Of(g, **options), takes=["pos", "z"], gives="energy", edges=False, batched=False),
        STRUCTURES,
        draws=6,
    )


N = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
GOLDEN = (1 + math.sqrt(5)) / 2


def icosahedral(x):
    """The invariant of degree 6: the product over the six axes of five turns."""
    axes = torch.tensor(
        [(0, 1, GOLDEN), (0, -1, GOLDEN), (1, GOLDEN, 0), (-1, GOLDEN, 0), (GOLDEN, 0, 1), (GOLDEN, 0, -1)],
        dtype=torch.float64,
    )
    return torch.prod(x @ axes.T, dim=1)


def planes(x):
    """Changes sign under a mirror and keeps it under turns of a cube: Π x_k Π (x_k² - x_l²)."""
    a, b, c = x.unbind(1)
    return a * b * c * (a**2 - b**2) * (b**2 - c**2) * (c**2 - a**2)


CASES = {
    "O(n)": lambda x: x.square().sum(1),
    "O(n-1)": lambda x: (x @ N) * (1 + x.square().sum(1)),
    "Oh": lambda x: x.pow(4).sum(1),
    "Ih": icosahedral,
    "Td": lambda x: x.prod(1),
    "O": lambda x: x.pow(4).sum(1) + 0.1 * planes(x),
    "Th": lambda x: x[:, 0] ** 4 * x[:, 1] ** 2 + x[:, 1] ** 4 * x[:, 2] ** 2 + x[:, 2] ** 4 * x[:, 0] ** 2,
    "C1": lambda x: (
        x
        @ torch.tensor([[1.0, 0.2], [0.0, 0.5], [0.3, 0.0]], dtype=torch.float64)
        @ torch.tensor([1.0, 1.0], dtype=torch.float64)
        + x[:, 0] * x[:, 1] ** 2
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups_known_by_hand(name):
    result = found(CASES[name])
    assert result.group.name == name and result.group.translations and result.permutations
    if name == "O(n-1)":
        axis = torch.tensor(result.axis, dtype=torch.float64)
        assert abs(abs(float(axis @ N)) - 1) < 1e-9 and "O(2) about (" in result.summary
        assert result.holds("about an axis") and not result.holds("rotations")


def test_turns_about_an_axis_without_mirrors():
    """(o × h) · n of the centres of oxygens and hydrogens turns with n and changes sign in a mirror that contains it."""

    class Helix(nn.Module):
        def forward(self, pos, z):
            x = pos - pos.mean(0)
            heavy, light = x[z == 8].mean(0), x[z == 1].mean(0)
            return torch.linalg.cross(heavy, light) @ N + x.square().sum()

    result = symmetries(
        Declared(Helix(), takes=["pos", "z"], gives="energy", edges=False, batched=False), STRUCTURES, draws=6
    )
    assert result.group.name == "SO(n-1)" and not result.holds("mirrors with the axis")


def test_translations_and_permutations_apart():
    fixed = found(CASES["O(n)"], centred=False)
    assert fixed.group.name == "O(n)" and not fixed.group.translations and "not translations" in fixed.summary
    counted = found(CASES["O(n)"], ordered=True)
    assert not counted.permutations and counted.group.translations and "not permutations" in counted.summary


@pytest.mark.parametrize("axis", [[1, 2, 3], [0.549, -0.098, -0.83], [-2, 0.3, 0.1], "learned"])
@pytest.mark.parametrize("kind", [NequIP, EGNN])
def test_the_axis_of_a_network(kind, axis):
    torch.manual_seed(0)
    model = Model(kind(elements=ELEMENTS, channels=4, layers=1, cutoff=4.0, axis=axis), ["energy", "forces"])
    result = symmetries(model, STRUCTURES, draws=2)
    assert result.group.name == "O(n-1)"
    assert abs(float(torch.tensor(result.axis, dtype=torch.float64) @ model.axis.detach())) == pytest.approx(
        1, abs=1e-12
    )


def test_a_report_in_all_forms():
    result = found(CASES["O(n-1)"])
    assert "largest group" in str(result) and str(result).splitlines()[1].startswith("subgroup")
    assert json.loads(result.to_json())["group"]["name"] == "O(n-1)"
    with pytest.raises(ConfigError, match="subgroup 'Ih' was not measured; there are translations"):
        result.holds("Ih")


def test_a_constant_is_refused():
    with pytest.raises(ConfigError, match="every symmetry"):
        found(lambda x: torch.ones(len(x), dtype=x.dtype))
