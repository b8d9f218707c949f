"""Parts of the hypothesis test of the data's symmetry."""

import pytest
import torch

from molequi import Dataset
from molequi.data_symmetry import symmetry_test
from molequi.data_symmetry.descriptors import compute_descriptors
from molequi.data_symmetry.groups import GROUPS, select_groups
from molequi.data_symmetry.hypothesis_test import verdicts
from molequi.data_symmetry.quantity_tests import SymmetryTester
from molequi.data_symmetry.randomization import (
    RandomizationResult,
    ScoreBlock,
    best_axis,
    cubic_harmonic,
    exchange_sums,
    finite_subgroup,
    largest_z_score,
    rotation_sums,
    whitened_block,
    wigner_matrices,
)
from molequi.data_symmetry.reference_frames import reference_frames
from molequi.data_symmetry.report import HypothesisTest, SymmetryTestReport
from molequi.ops import irreps as ir
from molequi.symmetry import Transform, group, random_orthogonal

from .test_symmetry_test import AXIS, forced


@pytest.mark.parametrize("irrep", [(0, -1), (1, -1), (1, 1), (2, 1), (3, -1), (4, 1)])
def test_many_wigner_matrices(irrep):
    turns = torch.stack([random_orthogonal(3, generator=torch.Generator().manual_seed(k)) for k in range(6)])
    known = torch.stack([ir.wigner(ir.name(*irrep), R) for R in turns])
    assert (wigner_matrices(irrep, turns) - known).abs().max() < 1e-12


@pytest.mark.parametrize(
    "name, left",
    [
        ("SO(3)", (0, 0, 0, 0)),
        ("O(3)", (0, 0, 0, 0)),
        ("Oh", (0, 0, 0, 1)),
        ("O(2)", (1, 1, 1, 1)),
        ("T", (0, 0, 1, 1)),
    ],
)
def test_finite_subgroups_leave_what_the_whole_group_leaves(name, left):
    chosen = group(name, axis=tuple(AXIS.tolist()) if name == "O(2)" else None)
    found = finite_subgroup(chosen, torch.Generator().manual_seed(0))
    assert torch.allclose(found @ found.mT, torch.eye(3, dtype=torch.float64).expand_as(found), atol=1e-12)
    products = (found[:, None] @ found[None]).flatten(0, 1)
    assert torch.cdist(products.flatten(1), found.flatten(1)).amin(1).max() < 1e-6, "not closed"
    ranks = tuple(
        round(float(torch.trace(wigner_matrices((l, (-1) ** l), found).mean(0)))) for l in range(1, 5)
    )
    assert ranks == left


def test_the_cubic_harmonic():
    unit = torch.nn.functional.normalize(
        torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1
    )
    value = (ir.spherical_harmonics(4, unit)[4] @ cubic_harmonic())[:, 0]
    known = unit.pow(4).sum(1) - 0.6
    assert torch.allclose(value / value[0], known / known[0], atol=1e-9)


def test_descriptors_turn_as_they_say():
    data = forced(5, shift=1.0)
    data = Dataset([g.replace(vel=g.pos.roll(1, 0) ** 2, targets={}) for g in data])
    for proper in (True, False):
        e = Transform.single(
            rotation=random_orthogonal(3, proper=proper, generator=torch.Generator().manual_seed(1)),
            translation=10 * AXIS,
        )
        here, there = (
            compute_descriptors(data, None),
            compute_descriptors(Dataset([e.graph(g) for g in data]), None),
        )
        for irrep in ((0, 1), (1, -1), (2, 1), (1, 1), (0, -1)):
            turned = here.equivariant_features(irrep) @ ir.wigner(ir.name(*irrep), e.rotations[0]).T
            assert (
                turned.shape[1]
                and (there.equivariant_features(irrep) - turned).abs().max() < 1e-9 * turned.abs().max()
            )
        for irrep, probe in here.score_features.items():
            assert (
                there.score_features[irrep] - probe @ ir.wigner(ir.name(*irrep), e.rotations[0]).T
            ).abs().max() < 1e-9 * probe.abs().max()


@pytest.mark.parametrize("proper", [True, False])
def test_frames_turn_with_their_structures(proper):
    data = forced(30)
    data = Dataset([g.replace(vel=g.pos.roll(1, 0), targets={}) for g in data])
    turns = [
        random_orthogonal(3, proper=True if proper else None, generator=torch.Generator().manual_seed(k))
        for k in range(30)
    ]
    turned = Dataset([Transform.single(rotation=R).graph(g) for R, g in zip(turns, data)])
    here, there = (
        list(reference_frames(d, compute_descriptors(d, None), proper=proper)) for d in (data, turned)
    )
    assert [f[0] for f in here] == ["principal axes", "its vectors", "alignment to the mean shape"]
    for (_, g, alike), (_, h, same) in zip(here, there):
        assert (h - torch.stack(turns) @ g).abs().max() < 1e-6
        assert all(torch.equal(a, b) for a, b in zip(alike, same)) and sorted(
            torch.cat(alike).tolist()
        ) == list(range(30))


def test_p_values_are_uniform_where_nothing_is_broken():
    generator = torch.Generator().manual_seed(0)
    turns = finite_subgroup(group("SO(3)"), generator)
    p = []
    for _ in range(300):
        blocks = [
            ScoreBlock("a", (1, -1), torch.randn(40, 2, 3, generator=generator, dtype=torch.float64)),
            ScoreBlock("b", (2, 1), torch.randn(40, 1, 5, generator=generator, dtype=torch.float64) ** 3),
        ]
        p.append(largest_z_score(rotation_sums(blocks, turns, 99, generator), 99).p_value)
    p = torch.tensor(p)
    for level in (0.05, 0.2, 0.5):
        assert abs(float((p <= level).double().mean()) - level) < 3.5 * (level * (1 - level) / 300) ** 0.5


def test_structures_that_are_like_no_other_stay_as_they_are():
    scores = torch.ones(10, 1, 3, dtype=torch.float64)
    turns = torch.eye(3, dtype=torch.float64).expand(10, 3, 3)
    (sums,) = exchange_sums(
        [ScoreBlock("a", (1, -1), scores)], turns, [torch.arange(6)], 5, torch.Generator().manual_seed(0)
    ).values()
    assert torch.equal(sums, sums[0].expand(6)) and float(sums[0]) == 300


def test_an_axis_is_found_from_degree_two():
    generator = torch.Generator().manual_seed(0)
    along = ir.spherical_harmonics(2, AXIS[None])[2]
    scores = torch.randn(200, 1, 5, generator=generator, dtype=torch.float64) + along[:, None]
    axis = torch.tensor(best_axis([whitened_block("a", (2, 1), scores)]), dtype=torch.float64)
    assert abs(axis @ AXIS) > 0.99


def make_tester(data):
    return SymmetryTester(
        data,
        compute_descriptors(data, 5.0),
        select_groups(GROUPS, None),
        draws=99,
        alpha=0.05,
        generator=torch.Generator().manual_seed(0),
        n_quantities=1,
    )


def test_a_null_distribution_without_variance_rejects_nothing():
    data = forced(40)
    symmetry_tester = make_tester(data)
    same, random = (
        RandomizationResult(1.0, 0.0, torch.zeros(99), {"a": 0.0}),
        torch.randn(99, generator=torch.Generator().manual_seed(0)),
    )

    def asked(p, *, with_others=True):
        nulls = (
            {"uniform orientations": RandomizationResult(p, 1.0, random, {"a": 1.0})} if with_others else {}
        )
        return symmetry_tester.decide(
            "reflections",
            "forces",
            lambda: nulls | {"other orientations": same},
            torch.arange(40),
            torch.arange(40),
            False,
        )

    assert asked(0.4).p_value == 0.4 and asked(0.4).verdict == "holds"
    assert asked(0.01).p_value is None and asked(0.01).verdict.startswith(
        "inconclusive: no two similar structures have different other orientations"
    )
    assert asked(0.01, with_others=False).verdict == "these structures and labels do not change under it"


def test_reflections_are_asked_after_rotations_and_count_twice():
    data = forced(40)
    checks = {c.name: c for c in symmetry_test(data, progress=False, draws=199).tests if c.quantity}
    assert checks["O(3)"].p_value == min(1.0, 2 * checks["SO(3)"].p_value, checks["reflections"].p_value)
    symmetry_tester = make_tester(data)
    nulls = {"uniform orientations": RandomizationResult(0.04, 1.0, torch.arange(99.0), {"a": 1.0})}
    once, twice = (
        symmetry_tester.decide(
            "reflections", "forces", lambda: nulls, torch.arange(40), torch.arange(40), False, n_tests=n
        )
        for n in (1, 2)
    )
    assert (once.p_value, once.broken, twice.p_value, twice.p_value_uniform, twice.broken) == (
        0.04,
        True,
        0.08,
        0.08,
        False,
    )


@pytest.mark.parametrize(
    ("inconclusive", "verdict"), [(True, "inconclusive"), (False, "no symmetry breaking found")]
)
def test_an_inconclusive_test_is_no_symmetry(inconclusive, verdict):
    checks = [
        HypothesisTest(name="SO(3)", quantity="energy", p_value=0.4),
        HypothesisTest(name="SO(3)", quantity="forces", reason="3 structures", inconclusive=inconclusive),
    ]
    assert checks[1].verdict == ("inconclusive: 3 structures" if inconclusive else "3 structures")
    assert verdicts(checks, select_groups(GROUPS, None)) == [verdict]
    assert verdicts(
        [*checks, HypothesisTest(name="SO(3)", quantity="dipole", p_value=0.001, broken=True)],
        select_groups(GROUPS, None),
    ) == ["rotational symmetry broken"]


def test_the_summary_counts_what_is_inconclusive():
    def summary(*inconclusive):
        tests = (
            HypothesisTest(name="SO(3)", quantity="energy", p_value=0.4),
            HypothesisTest(name="T(3)", quantity="energy", reason="all structures have the same position"),
            *(HypothesisTest(name=n, quantity=q, reason=r, inconclusive=True) for n, q, r in inconclusive),
        )
        return SymmetryTestReport(
            tests=tests,
            verdicts=("no symmetry breaking found",),
            effect_size={},
            axis={},
            oracle=(),
            n_structures=40,
            n_given=40,
            draws=199,
            seed=0,
            alpha=0.01,
            version="",
            date="",
        ).summary

    alone = summary()
    assert alone.startswith("no symmetry breaking found: ") and "inconclusive" not in alone
    dependent = "the structures depend on each other (about {} independent ones of 40; wanted 30)"
    rows = [("orientations", "", dependent.format(7)), ("handedness", "", dependent.format(9))]
    assert summary(*rows) == (
        f"{alone}; 2 of 4 tests are inconclusive: orientations, handedness (the structures depend on each other)"
    )
    assert summary(("O(2)", "forces", "too few")) == (
        f"{alone}; 1 of 3 tests is inconclusive: O(2) of forces (too few)"
    )
