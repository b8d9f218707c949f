"""What each backbone can tell apart, as theory has it (Joshi et al. 2023, arXiv 2301.09308), with random weights.

Four pairs of structures for each backbone:

- star: nodes on a circle with an L-fold axis, and the same turned by π/L. Features of the node in the middle are
  symmetric under the L-fold axis, and so, up to degree L - 1, under all turns about it. So they differ only if
  the highest degree is L or more, with any number of layers.
- bodies: environments with the same distances (two bodies), or with the same distances and angles (three
  bodies: sets of points on a circle that have the same differences, {0, 1, 3, 4} and {0, 1, 2, 5} of eight),
  for invariants after one layer.
- hands: a structure and its mirror image.
- chain: four nodes in a line, with one node at right angles to it at each end, on the same or on opposite
  sides. Nodes see neighbors in the chain alone. In a network that multiplies features with each other both
  sides meet after 4/2 + 1 layers. In one that multiplies features with directions of edges alone, one side has
  to travel to the other end: 4 + 1 layers. In one that does not transport directions they never meet.
"""

import math
from typing import NamedTuple

import pytest
import torch

import molequi as mq
from molequi.models import BACKBONES

SAME, OTHER = 1e-13, 1e-12  # largest difference of equal features, least one of different features
ALL, NEVER = 99, None


class Expected(NamedTuple):
    """What theory says."""

    options: dict
    degree: int  # highest degree of features, so the highest fold of stars that are told apart
    bodies: int  # of invariants after one layer
    hands: bool  # whether mirror images differ
    chain: int | None  # layers after which both ends of a chain meet


IRREPS = dict(channels=4, radial=4)
EXPECTED = {
    "EGNN": Expected(dict(channels=8, radial=4), 1, 2, False, 3),
    "PaiNN": Expected(dict(channels=8, radial=4), 1, 3, False, 3),
    "NequIP": Expected(IRREPS | dict(l_max=3), 3, 2, False, 5),
    "NequIP, chiral": Expected(IRREPS | dict(l_max=2, group="SO(3)"), 2, 2, True, 5),
    "NequIPGNN": Expected(IRREPS | dict(l_max=2), 2, 2, False, 5),
    "SevenNet": Expected(IRREPS | dict(l_max=2), 2, 2, False, 5),
    "MACE": Expected(IRREPS | dict(l_max=3, l_hidden=2, correlation=3), 2, 4, False, 3),
    "MACE, pairs": Expected(IRREPS | dict(l_max=2, l_hidden=2, correlation=1), 2, 2, False, 5),
    "GauntACE": Expected(IRREPS | dict(l_max=3, l_hidden=2), 2, 4, False, 3),
    "GauntACE, l_hidden=0": Expected(IRREPS | dict(l_max=3, l_hidden=0, l_out=3), 3, 4, False, NEVER),
    "So3krates": Expected(dict(channels=12, radial=4, l_max=3), 3, 3, False, NEVER),
    "Equiformer": Expected(IRREPS | dict(hidden=4, l_max=6), 6, 3, False, 3),
    "Equiformer, invariants": Expected(IRREPS | dict(hidden=4, l_max=2, l_out=0), 0, 3, False, 3),
    "Equiformer, gate": Expected(IRREPS | dict(hidden=4, l_max=2, activation="gate"), 2, 2, False, 4),
    "Equiformer, chiral": Expected(IRREPS | dict(hidden=4, l_max=2, group="SO(3)"), 2, 3, True, 3),
    "RelaxedEGNN": Expected(dict(channels=8, radial=4, gates=(1, 1, 0)), 1, 2, False, 3),
    "RelaxedNequIP": Expected(IRREPS | dict(l_max=2, gates=(1, 1, 0)), 2, 2, False, 5),
    "Transformer": Expected(dict(channels=8, radial=4), ALL, ALL, True, 1),
}


def network(case: str, layers: int) -> mq.Backbone:
    torch.manual_seed(0)
    name, options = case.split(",")[0], EXPECTED[case].options
    backbone = BACKBONES[name](elements=["C"], cutoff=1.4, layers=layers, **options).double().eval()
    with torch.no_grad():  # nothing passes by being zero
        for name, value in backbone.named_parameters():
            if not name.endswith((".a", ".b", ".c")):
                value.add_(0.3 * torch.randn_like(value))
        backbone.mean_neighbors.fill_(2.0)
    return backbone


@torch.no_grad()
def features(backbone: mq.Backbone, points) -> mq.Features:
    graph = mq.Graph.single(torch.as_tensor(points, dtype=torch.float64), ["C"] * len(points))
    return backbone(mq.connect(graph, backbone.cutoff))


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors differ. What is neither equal nor clearly different is an error."""
    error = float((a - b).abs().max() / a.abs().max())
    assert error < SAME or error > OTHER, f"{error:.1e} is undecided"
    return error > OTHER


def on_circle(angles) -> list[list[float]]:
    """A node in the middle, and others around it."""
    return [[0.0, 0, 0], *([math.cos(a), math.sin(a), 0.0] for a in angles)]


def star(fold: int, turn: float) -> list[list[float]]:
    return on_circle([turn + 2 * math.pi * k / fold for k in range(fold)])


def chain(side: float) -> list[list[float]]:
    return [[0.0, 1, 0], *([float(k), 0, 0] for k in range(4)), [3, side, 0]]


CASES = pytest.mark.parametrize("case", EXPECTED)


# One sees whole clouds without a cutoff, the other is equivariant under a finite group: the theory is about neither.
OTHERS = {"PointHierarchy", "GroupConvNet"}


def test_every_backbone_has_its_row():
    assert {case.split(",")[0] for case in EXPECTED} == set(BACKBONES) - OTHERS


@CASES
def test_stars(case):
    degree = EXPECTED[case].degree
    backbone = network(case, 2)
    for fold in {2, 3, min(degree, 6), min(degree, 6) + 1} - {0, 1}:
        plain, turned = (
            features(backbone, star(fold, turn)).flat()[0] for turn in (0.4, 0.4 + math.pi / fold)
        )
        assert differ(plain, turned) == (degree >= fold), fold


@CASES
def test_bodies(case):
    backbone = network(case, 1)
    pairs = {
        2: ([0.0, 1.6], [0.0, 2.2]),
        3: tuple([k * math.pi / 4 for k in steps] for steps in ((0, 1, 3, 4), (0, 1, 2, 5))),
    }
    for bodies, (first, second) in pairs.items():
        a, b = (features(backbone, on_circle(angles)).scalars[0] for angles in (first, second))
        assert differ(a, b) == (EXPECTED[case].bodies > bodies), bodies


@CASES
def test_hands(case):
    backbone = network(case, 3)
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.2, 0.9, 0], [-0.3, 0.1, 0.8], [0.9, 0.1, 1.0]])
    a, b = (features(backbone, points * torch.tensor([1.0, 1, s])).scalars for s in (1, -1))
    assert differ(a, b) == EXPECTED[case].hands


@CASES
def test_chains(case):
    wanted = EXPECTED[case].chain
    for layers in (1, 3, 7) if wanted is NEVER else {max(1, wanted - 1), wanted}:
        backbone = network(case, layers)
        a, b = (features(backbone, chain(side)).scalars for side in (1, -1))
        assert differ(a, b) == (wanted is not NEVER and layers >= wanted), layers
