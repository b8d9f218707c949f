"""Structures that depend on each other count as one sampling unit."""

from dataclasses import replace

import pytest
import torch

from molequi import Dataset, Graph
from molequi.data_symmetry import symmetry_test
from molequi.data_symmetry.dependence import block_length, sampling_units
from molequi.data_symmetry.descriptors import compute_descriptors
from molequi.data_symmetry.randomization import ScoreBlock
from molequi.data_symmetry.residuals import effect_size, equivariant_residuals, label_scores
from molequi.symmetry import random_orthogonal

from .test_symmetry_test import FEW, Z, clouds, forced


def walk(count: int, steps: float, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal numbers, each correlated with itself `steps` ago by 1/e."""
    kept, value, out = (
        torch.tensor(-1 / steps).exp().double(),
        torch.randn(shape, generator=generator, dtype=torch.float64),
        [],
    )
    for _ in range(count):
        value = kept * value + (1 - kept**2).sqrt() * torch.randn(
            shape, generator=generator, dtype=torch.float64
        )
        out.append(value)
    return torch.stack(out)


def tumbling(count: int, seed: int) -> list[Graph]:
    """One molecule of springs that descriptors cannot tell apart, which vibrates and turns slowly: no direction of the lab is in it."""
    x, i, j = clouds(1, 3)[0][0], *torch.triu_indices(6, 6, 1)
    stiff = 10 * torch.rand(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    shaken = (x + 0.15 * walk(count, 6, (6, 3), generator)).requires_grad_(True)
    stretch = (shaken[:, i] - shaken[:, j]).norm(dim=2) - (x[i] - x[j]).norm(dim=1)
    (forces,) = torch.autograd.grad(-(stiff * (stretch**2 + stretch**3)).sum(), shaken)
    R, graphs = random_orthogonal(3, generator=generator), []
    for pos, force in zip(shaken.detach(), forces):
        a, b, c = (0.3 * torch.randn(3, generator=generator, dtype=torch.float64)).tolist()
        R = (
            torch.linalg.matrix_exp(torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=torch.float64))
            @ R
        )
        graphs.append(Graph.single(pos @ R.T, Z, targets={"forces": force @ R.T}))
    return graphs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_tumbling_molecule_breaks_no_law(seed):
    report = symmetry_test(tumbling(200, seed), groups=("SO(3)",), **FEW)
    (law,) = (c for c in report.tests if c.name == "SO(3)")
    assert report.verdicts == ("inconclusive",) and law.p_value is None and law.n_independent < 30
    assert law.verdict.startswith(
        f"inconclusive: the structures depend on each other (about {law.n_independent} independent ones of 200"
    )


def copies(count: int, each: int, seed: int) -> list[Graph]:
    x = clouds(count, seed)[0].repeat_interleave(each, 0)
    generator = torch.Generator().manual_seed(seed)
    x = x + 0.02 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    order = torch.randperm(len(x), generator=generator)
    forces = clouds(count, seed)[2].repeat_interleave(each, 0)
    return [Graph.single(x[k], Z, targets={"forces": forces[k]}) for k in order.tolist()]


def test_near_duplicates_are_one_wherever_they_stand():
    for seed in (150, 151, 152):
        report = symmetry_test(copies(40, 3, seed), groups=("SO(3)",), **FEW)
        (law,) = (c for c in report.tests if c.name == "SO(3)")
        assert (
            law.n_independent == 40
            and law.n_structures == 120
            and law.p_value > 0.01
            and "120, 40 independent" in str(report)
        )
    few = symmetry_test(copies(20, 4, 150), groups=("SO(3)",), **FEW)
    assert few.verdicts == ("inconclusive",) and "about 20 independent ones of 80; wanted 30" in str(few)


def test_the_size_of_a_break_is_not_learned_from_duplicates():
    """Residuals that are noise, the same for near-duplicates: held out with their duplicates, no fit knows anything of them."""
    data = Dataset(copies(40, 3, 150))
    unit, described = sampling_units(data), compute_descriptors(data, None)
    (part,) = equivariant_residuals(
        data, described, data.quantities["forces"], torch.Generator().manual_seed(0)
    )
    noise = torch.randn(40, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[
        unit
    ].reshape(-1, 3)
    part = replace(part, label=noise, residual=noise)
    views = [b.name for b in label_scores(part, described)]
    held, learned = (
        effect_size(part, described, views, u, torch.Generator().manual_seed(2))
        for u in (unit, torch.arange(120))
    )
    assert held < 0.1 and learned > 0.3


def test_copies_in_other_poses_are_independent():
    generator = torch.Generator().manual_seed(0)
    data = Dataset(
        [Graph.single(clouds(1, 3)[0][0] @ random_orthogonal(3, generator=generator).T, Z) for _ in range(60)]
    )
    assert int(sampling_units(data).max()) == 59


def test_copies_in_other_places_tell_of_translations():
    """Five structures, each at twenty places, in a trap at the origin."""
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for k in range(100):
        pos = clouds(5, 1)[0][k % 5] + 3 * torch.randn(3, generator=generator, dtype=torch.float64)
        graphs.append(Graph.single(pos, Z, targets={"forces": -0.1 * pos}))
    (row,) = (c for c in symmetry_test(graphs, groups=("T(3)",), **FEW).tests if c.name == "T(3)")
    assert row.broken and row.n_independent == 100
    assert int(sampling_units(Dataset(graphs)).max()) == 4


def test_relaxations_are_a_few_structures():
    """Steps of one run hardly differ; the hand of its molecule is not found ten times."""
    graphs = []
    for seed in range(15):
        pos = clouds(1, 100 + seed)[0][0]
        for step in range(10):
            graphs.append(
                Graph.single(pos + 0.004 * step * pos.roll(1, 0), Z, targets={"forces": pos.roll(1, 0)})
            )
    report = symmetry_test(graphs, **FEW)
    assert report.verdicts == ("inconclusive",) and all(c.p_value is None for c in report.tests)


def test_trajectories_are_told_by_their_names():
    """Frames of many that take turns: next to each other in the data they have nothing in common."""
    runs = [tumbling(12, seed) for seed in range(25)]
    mixed = [g for frames in zip(*runs) for g in frames]
    data = Dataset(mixed, info={"trajectory": list(range(25)) * 12})
    assert sampling_units(data).tolist() == [12 * (k % 25) + k // 25 for k in range(300)]
    (law,) = (c for c in symmetry_test(data, groups=("SO(3)",), **FEW).tests if c.name == "SO(3)")
    assert law.n_independent < 30 and law.p_value is None


def test_blocks_are_a_few_correlation_times():
    generator = torch.Generator().manual_seed(0)
    one = torch.arange(2000)
    for steps in (3, 10):
        series = ScoreBlock("a", (1, -1), walk(2000, steps, (4, 3), generator))
        assert 2 * steps <= block_length([series], one) <= 40 * steps
    assert all(
        block_length(
            [ScoreBlock("a", (1, -1), torch.randn(2000, 4, 3, generator=generator, dtype=torch.float64) + 1)],
            one,
        )
        == 1
        for _ in range(20)
    )


def test_independent_structures_are_all_counted():
    for turn in (None, lambda pos, _: torch.eye(3, dtype=torch.float64)):
        checks = symmetry_test(forced(100, turn=turn, field=0.3), groups=("SO(3)",), **FEW).tests
        assert all(c.n_independent == c.n_structures == 100 for c in checks if c.p_value is not None)
