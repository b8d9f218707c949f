"""What data break is found, named, and told from what they do not break."""

import functools
import json

import pytest
import torch

from molequi import Dataset, Graph
from molequi.data_symmetry import symmetry_test
from molequi.data_symmetry.descriptors import compute_descriptors
from molequi.errors import ConfigError, DataError
from molequi.quantities import Quantity
from molequi.symmetry import random_orthogonal

Z = [1, 6, 8, 1, 6, 8]
CHARGE = torch.tensor([0.3, 0.1, -0.2, 0.3, 0.1, -0.2], dtype=torch.float64)
AXIS = torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64)
FEW = dict(progress=False, draws=399)


@functools.cache
def clouds(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions (n, 6, 3) of atoms not nearer than 0.7 Å, and energies and forces of a Morse potential with charges."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    while len(kept) < count:
        x = 1.3 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
        if torch.pdist(x).min() > 0.7:
            kept.append(x - x.mean(0))
    x = torch.stack(kept).requires_grad_(True)
    i, j = torch.triu_indices(6, 6, 1)
    r = (x[:, i] - x[:, j]).norm(dim=2)
    e = (torch.exp(-2 * (r - 1.5)) - 2 * torch.exp(1.5 - r) + 2 * CHARGE[i] * CHARGE[j] / r).sum(1)
    (forces,) = torch.autograd.grad(-e.sum(), x)
    return x.detach(), e.detach(), forces


def forced(count=300, seed=0, field=0.0, trap=0.0, shift=0.0, turn=None) -> Dataset:
    """Forces; a field along AXIS of so much of their rms; the cloud turned by `turn(x, generator)`; shifted, in a trap at the origin."""
    x, _, f = clouds(count, seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    push = CHARGE[:, None] * AXIS
    push = push * field * f.square().mean().sqrt() / push.square().mean().sqrt()
    graphs = []
    for pos, force in zip(x, f):
        R = torch.eye(3, dtype=torch.float64) if turn is None else turn(pos, generator)
        pos, force = pos @ R.T + shift * torch.randn(3, generator=generator, dtype=torch.float64), force @ R.T
        graphs.append(Graph.single(pos, Z, targets={"forces": force + push - trap * pos}))
    return Dataset(graphs)


def upright(pos, _):
    """The turn that puts the longest axis along z, with the sign of the third moment."""
    axes = torch.linalg.eigh(pos.T @ pos).eigenvectors
    sign = ((pos @ axes) ** 3).sum(0).sign()
    return (axes * sign).T


def verdicts(data, **options):
    return symmetry_test(data, **{**FEW, **options}).verdicts


def test_symmetric_data_break_nothing():
    report = symmetry_test(forced(), **FEW)
    assert (
        report.verdicts == ("no symmetry breaking found",)
        and report.passed
        and report.raise_if_failed() is report
    )
    assert {c.name for c in report.tests} == {
        "orientations",
        "handedness",
        "O(3)",
        "SO(3)",
        "reflections",
        "T(3)",
        "stabilizers",
    }
    assert report.effect_size == {"forces": None} and report.axis == {}


def test_a_field_of_three_percent_is_found_with_its_axis_and_size():
    report = symmetry_test(forced(field=0.03), groups=("O(3)", "SO(3)", "Oh", "O(2)"), **FEW)
    assert report.verdicts == ("rotational symmetry broken",) and not report.passed
    (axis,) = report.axis.values()
    assert abs(torch.tensor(axis, dtype=torch.float64) @ AXIS) > 0.97
    assert 0.015 < report.effect_size["forces"] < 0.045
    (left,) = report.remaining_symmetry
    assert left.startswith("O(2) about") and "remaining symmetry: O(2)" in report.summary
    with pytest.raises(DataError, match="(?s)relaxed model.*broken: forces"):
        report.raise_if_failed()


def test_one_percent_at_a_thousand_structures():
    report = symmetry_test(forced(1000, field=0.01), progress=False, groups=("SO(3)",))
    (law,) = (c for c in report.tests if c.name == "SO(3)")
    assert law.p_value < 0.01 and report.verdicts == ("rotational symmetry broken",)


def test_anisotropic_poses_alone_are_no_broken_law():
    assert verdicts(forced(turn=upright)) == ("anisotropic orientations",)


def test_a_field_in_anisotropic_poses_is_both():
    def leaning(pos, generator):  # less than upright: three of four
        return (
            upright(pos, None)
            if float(torch.rand((), generator=generator)) < 0.75
            else random_orthogonal(3, generator=generator)
        )

    assert verdicts(forced(turn=leaning, field=0.05)) == (
        "rotational symmetry broken",
        "anisotropic orientations",
    )


def test_one_pose_alone_says_nothing_of_the_law():
    """A molecule that is never turned, of springs that descriptors cannot tell apart: no other pose shows whether it is the lab."""
    x, _, _ = clouds(1, 3)
    generator = torch.Generator().manual_seed(0)
    i, j = torch.triu_indices(6, 6, 1)
    length = (x[0, i] - x[0, j]).norm(dim=1)
    stiff = 10 * torch.rand(15, generator=generator, dtype=torch.float64)
    shaken = (x[0] + 0.05 * torch.randn(200, 6, 3, generator=generator, dtype=torch.float64)).requires_grad_(
        True
    )
    springs = (stiff * ((shaken[:, i] - shaken[:, j]).norm(dim=2) - length).square()).sum()
    (forces,) = torch.autograd.grad(-springs, shaken)
    graphs = [Graph.single(pos, Z, targets={"forces": f}) for pos, f in zip(shaken.detach(), forces)]
    report = symmetry_test(Dataset(graphs), **FEW)
    (law,) = (c for c in report.tests if c.name == "SO(3)")
    assert (
        law.p_value_uniform < 0.01 < law.p_value
        and "rotational symmetry broken" not in report.verdicts
        and "anisotropic orientations" in report.verdicts
    )


def test_chirality():
    x, e, _ = clouds(300, 1)
    middle = [x[:, k::3].mean(1) for k in range(3)]
    third = (x * x.square().sum(2, keepdim=True)).mean(1)
    hand = (torch.linalg.cross(middle[1] - middle[0], middle[2] - middle[0]) * third).sum(1)
    for part, found in ((0.5, "reflection symmetry broken"), (0.0, "no symmetry breaking found")):
        data = [
            Graph.single(p, Z, targets={"energy": v[None]})
            for p, v in zip(x, e + part * e.std() * hand / hand.std())
        ]
        assert verdicts(data) == (found,)


def test_spontaneous_breaking():
    """A square that becomes a rectangle, long in one direction of its own or the other: no direction of the lab has to do with it."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[1, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]], dtype=torch.float64)
    moved = Quantity(name="moved", per="node", rank=1, point=True)

    def graphs(stretch):
        for _ in range(60):
            R = random_orthogonal(3, generator=generator)
            long = torch.rand(2, generator=generator).argsort()
            factor = torch.cat(
                [torch.tensor(stretch, dtype=torch.float64)[long], torch.ones(1, dtype=torch.float64)]
            )
            yield Graph.single(corners @ R.T, targets={"moved": (corners * factor) @ R.T})

    report = symmetry_test(Dataset(list(graphs([1.3, 0.8])), quantities={"moved": moved}), **FEW)
    assert (
        report.verdicts == ("spontaneous symmetry breaking",) and "symmetry-breaking sets" in report.summary
    )
    assert "labels of lower symmetry; 60 of 60 symmetric structures" in str(report)
    assert next(c for c in report.tests if c.name == "stabilizers").p_value is None, (
        "what is so or not so has no p"
    )
    assert verdicts(Dataset(list(graphs([1.2, 1.2])), quantities={"moved": moved})) == (
        "no symmetry breaking found",
    )


def test_a_trap_at_the_origin_breaks_translations():
    assert verdicts(forced(trap=0.1, shift=1.0)) == ("translational symmetry broken",)
    report = symmetry_test(forced(trap=0.0, shift=1.0), **FEW)
    assert report.passed and next(c for c in report.tests if c.name == "T(3)").p_value > 0.01
    assert (
        "the same position"
        in next(c for c in symmetry_test(forced(), **FEW).tests if c.name == "T(3)").reason
    )


@pytest.mark.parametrize("rank", [1, 2])
def test_labels_of_whole_structures(rank):
    """Dipoles, or polarizabilities, with one constant direction too many."""
    x, _, _ = clouds(300, 2)
    value = (
        torch.einsum("n,gni->gi", CHARGE, x) if rank == 1 else torch.einsum("n,gni,gnj->gij", CHARGE, x, x)
    )
    extra = AXIS if rank == 1 else torch.outer(AXIS, AXIS)
    name = "dipole" if rank == 1 else "polarizability"
    for part, found in ((0.0, "no symmetry breaking found"), (0.1, "rotational symmetry broken")):
        labels = value + part * value.square().mean().sqrt() * extra
        data = [Graph.single(p, Z, targets={name: v[None]}) for p, v in zip(x, labels)]
        assert verdicts(data)[0] == found


def test_pseudovectors():
    x, _, _ = clouds(300, 2)
    value = torch.linalg.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
    for part, found in ((0.0, "no symmetry breaking found"), (1.5, "rotational symmetry broken")):
        graphs = [Graph.single(p, Z, targets={"moment": (v + part * AXIS)[None]}) for p, v in zip(x, value)]
        assert verdicts(
            Dataset(graphs, quantities={"moment": Quantity(name="moment", rank=1, pseudo=True)})
        ) == (found,)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_the_smallest_structures(nodes):
    """Single atoms, pairs, flat or not: every test that can be made is made, with numbers."""
    generator = torch.Generator().manual_seed(0)
    graphs = [
        Graph.single(
            torch.randn(nodes, 3, generator=generator),
            [1, 8, 6, 1][:nodes],
            charge=float(k % 2),
            spin=1.0,
            targets={"energy": torch.randn(1, generator=generator).double()},
        )
        for k in range(40)
    ]
    report = symmetry_test(graphs, **FEW)
    assert report.verdicts == (("inconclusive",) if nodes == 1 else ("no symmetry breaking found",))
    assert all(0 < c.p_value <= 1 for c in report.tests if c.p_value is not None) and json.loads(
        report.to_json()
    )


def test_many_elements_and_given_numbers():
    generator = torch.Generator().manual_seed(0)
    graphs = [
        Graph.single(
            2 * torch.randn(9, 3, generator=generator),
            torch.randint(1, 12, (9,), generator=generator),
            x=torch.randn(9, 4, generator=generator),
            vec=torch.randn(9, 2, 3, generator=generator),
            targets={"forces": torch.randn(9, 3, generator=generator).double()},
        )
        for _ in range(40)
    ]
    assert symmetry_test(graphs, **FEW).passed
    assert compute_descriptors(Dataset(graphs), None).equivariant_features((1, -1)).shape[1] < 900


def test_crystals():
    """The frame is the cell's; there is no place in space; a stress with one constant direction is found."""
    generator = torch.Generator().manual_seed(0)

    def crystals(extra):
        for _k in range(200):
            R = random_orthogonal(3, generator=generator)
            cell = (
                torch.diag(
                    torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64)
                    + 0.2 * torch.randn(3, generator=generator)
                )
                @ R.T
            )
            strain = cell.T @ cell / 16 - torch.eye(3, dtype=torch.float64)
            yield Graph.single(
                0.1 * torch.randn(2, 3, generator=generator),
                [1, 6],
                cell=cell,
                pbc=True,
                targets={"stress": (strain + extra * torch.outer(AXIS, AXIS))[None]},
            )

    for extra, found in ((0.0, "no symmetry breaking found"), (0.5, "rotational symmetry broken")):
        report = symmetry_test(list(crystals(extra)), **FEW, cutoff=4.0)
        assert report.verdicts == (found,)
        assert {c.reason for c in report.tests if c.p_value is None} >= {
            "periodic structures have no position"
        }


def test_an_energy_in_a_field():
    x, e, _ = clouds(300, 2)
    extra = torch.einsum("n,gni,i->g", CHARGE, x, AXIS)
    energy = e + 0.3 * e.std() * extra / extra.std()
    assert verdicts([Graph.single(p, Z, targets={"energy": v[None]}) for p, v in zip(x, energy)]) == (
        "rotational symmetry broken",
    )


def test_unknown_labels_are_left_out():
    data = forced(60)
    graphs = [
        g.replace(targets={"forces": torch.full((6, 3), torch.nan, dtype=torch.float64)}) if k < 20 else g
        for k, g in enumerate(data)
    ]
    assert symmetry_test(graphs, **FEW).n_structures == 40
    with pytest.raises(DataError, match="20 structures with labels; wanted at least 30"):
        symmetry_test(graphs[:40], **FEW)


def test_boxes_are_no_spheres():
    """A clip of each component, and that of the norm."""
    x, _, f = clouds(300, 4)
    size = f.norm(dim=2).median() / 2
    box = [Graph.single(p, Z, targets={"forces": v}) for p, v in zip(x, f.clamp(-size, size))]
    ball = [
        Graph.single(p, Z, targets={"forces": v})
        for p, v in zip(x, f * (size / f.norm(dim=2, keepdim=True)).clamp(max=1))
    ]
    report = symmetry_test(box, groups=("SO(3)", "Oh"), **FEW)
    assert report.verdicts == ("rotational symmetry broken",) and report.remaining_symmetry == ("Oh",)
    assert verdicts(ball, groups=("SO(3)", "Oh")) == ("no symmetry breaking found",)


@pytest.mark.parametrize(
    "options, error, text",
    [
        (dict(groups=("SO(4)",)), ConfigError, r"'SO\(4\)' is not known; did you mean 'SO\(3\)'"),
        (dict(groups=()), ConfigError, "wanted a list of names"),
        (dict(groups="SO(3)"), ConfigError, "wanted a list of names"),
        (dict(axis=(0, 0, 0)), ConfigError, "not all zero"),
        (dict(draws=50), ConfigError, "wanted at least 100 draws, or None"),
        (dict(draws=199.5), ConfigError, "wanted a whole number"),
        (dict(alpha=0.0, draws=999), ConfigError, "between 0 and 1"),
        (dict(limit=3), ConfigError, "at least 30"),
        (dict(quantities=["energy"]), DataError, "'energy' has no labels"),
        (dict(quantities="forces"), ConfigError, "wanted a list of names from forces"),
    ],
)
def test_wrong_settings(options, error, text):
    with pytest.raises(error, match=text):
        symmetry_test(forced(40), **{**FEW, **options})


def test_draws_are_as_many_as_the_quantities_need():
    """p is multiplied by their number: with the draws that would do for one, no break of several could be found."""
    x, _, f = clouds(40, 0)
    push = {f"push{k}": f + 10 * AXIS for k in range(4)}
    data = Dataset(
        [Graph.single(p, Z, targets={n: v[k] for n, v in push.items()}) for k, p in enumerate(x)],
        quantities={n: Quantity(name=n, per="node", rank=1) for n in push},
    )
    with pytest.raises(
        ConfigError, match="times 4 for the quantities, can be below alpha=0.01; wanted at least 400"
    ):
        symmetry_test(data, draws=399, progress=False)
    report = symmetry_test(data, groups=("SO(3)",), draws=400, progress=False)
    assert report.verdicts == ("rotational symmetry broken",) and sum(c.broken for c in report.tests) == 4
    report = symmetry_test(data, groups=("O(3)",), progress=False)
    assert report.draws == 1600 and all(c.broken for c in report.tests if c.name == "O(3)")


def axes_of_atoms(x):
    """Frames (n, 3, 3) as in a z-matrix: z along the bond of the first two atoms, the third in the plane of x and z."""
    z = torch.nn.functional.normalize(x[:, 1] - x[:, 0], dim=1)
    away = x[:, 2] - x[:, 0]
    across = torch.nn.functional.normalize(away - (away * z).sum(1, keepdim=True) * z, dim=1)
    return torch.stack([across, torch.linalg.cross(z, across), z], 2)


@pytest.mark.parametrize("convention", ["atoms", "axes"])
def test_poses_that_follow_from_shapes_say_nothing_of_the_law(convention):
    """A vector of the structure's own always points the same way; in random poses the same vectors break nothing."""
    x = clouds(100, 5)[0]
    turn = axes_of_atoms(x) if convention == "atoms" else torch.stack([upright(p, None).T for p in x])
    label = torch.tensor([0, 0, 1.0], dtype=torch.float64)
    there = [Graph.single(p, Z, targets={"dipole": label[None]}) for p in x @ turn]
    report = symmetry_test(there, groups=("SO(3)",), **FEW)
    (law,) = (c for c in report.tests if c.name == "SO(3)")
    assert report.verdicts == ("inconclusive", "anisotropic orientations") and not report.passed
    assert (
        law.p_value is None
        and law.p_value_uniform < 0.01
        and law.verdict == "inconclusive: the orientations may depend on the shapes"
    )
    generator = torch.Generator().manual_seed(0)
    turned = [
        Graph.single(g.pos @ R.T, Z, targets={"dipole": g.targets["dipole"] @ R.T})
        for g, R in ((g, random_orthogonal(3, generator=generator)) for g in there)
    ]
    assert verdicts(turned, groups=("SO(3)",)) == ("no symmetry breaking found",)


def test_what_is_assumed_of_poses_is_said_where_they_are_not_uniform():
    law = next(
        c
        for c in symmetry_test(forced(100, turn=upright), groups=("SO(3)",), **FEW).tests
        if c.name == "SO(3)"
    )
    assert law.assumed and "assumed: orientations (from" in law.verdict
    law = next(c for c in symmetry_test(forced(100), groups=("SO(3)",), **FEW).tests if c.name == "SO(3)")
    assert not law.assumed and "assumed" not in law.verdict


def test_infinite_labels_are_named():
    graphs = [g.replace(targets={"forces": g.targets["forces"] + 10 * AXIS}) for g in forced(40)]
    graphs[3].targets["forces"][2, 1] = torch.inf
    with pytest.raises(DataError, match="structure 3: the label 'forces' is infinite"):
        symmetry_test(graphs, **FEW)


def test_each_quantity_needs_labels_that_vary():
    x, e, f = clouds(40, 0)
    few = torch.where(torch.arange(40)[:, None, None] < 3, f + 10 * AXIS, torch.nan)
    report = symmetry_test(
        [Graph.single(p, Z, targets={"energy": v[None], "forces": w}) for p, v, w in zip(x, e, few)], **FEW
    )
    law = next(c for c in report.tests if c.name == "SO(3)" and c.quantity == "forces")
    assert law.p_value is None and law.verdict == "3 structures labelled; wanted 30" and law.n_structures == 3
    assert "not tested: SO(3) of forces" in report.summary and "of 40 structures" in report.title
    for value, why in ((-7.3, "equal"), (0.0, "zero")):
        report = symmetry_test(
            [Graph.single(p, Z, targets={"energy": torch.tensor([value], dtype=torch.float64)}) for p in x],
            **FEW,
        )
        assert (
            report.verdicts == ("inconclusive",)
            and not report.passed
            and f"all labels are {why}" in str(report)
        )
        with pytest.raises(DataError, match="(?s)not everything could be tested.*all labels"):
            report.raise_if_failed()


def test_nothing_is_found_where_nothing_was_tested():
    report = symmetry_test(forced(40), groups=("T(3)",), **FEW)
    assert report.verdicts == ("inconclusive",) and "all structures have the same position" in str(report)


def test_noise_along_an_axis_of_the_lab():
    x, _, f = clouds(150, 0)
    noise = torch.randn(150, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forces = f + 0.3 * f.square().mean().sqrt() * noise * torch.tensor([0.1, 0.1, 1.0], dtype=torch.float64)
    report = symmetry_test(
        [Graph.single(p, Z, targets={"forces": v}) for p, v in zip(x, forces)], groups=("SO(3)",), **FEW
    )
    assert report.verdicts == ("rotational symmetry broken",) and report.effect_size == {"forces": None}
    assert (
        "noise, rounding or clipping of the labels has directions along axes of the lab" in report.summary
        and "Use a relaxed model" not in report.summary
    )
    assert "no gain from a relaxed model" in report.summary and "no subgroup was tested" in report.summary
    assert (
        "Use a relaxed model, or give the model the field"
        in symmetry_test(forced(60, field=1.0), groups=("SO(3)",), **FEW).summary
    )


def test_the_row_of_both_is_corrected_for_two():
    report = symmetry_test(forced(60, seed=3), **FEW)
    both, rows = report.tests[2], report.tests[3:5]
    assert [c.name for c in (both, *rows)] == ["O(3)", "SO(3)", "reflections"]
    for part in ("p_value", "p_value_uniform"):
        assert getattr(both, part) == min(1.0, 2 * min(getattr(c, part) for c in rows))


def test_what_is_seen_of_places_is_said():
    """An energy that is a fast wave in the place: not seen, and the words say what was."""
    x, e, _ = clouds(60, 1)
    place = 2 * torch.randn(60, 1, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    energy = e + 0.3 * e.std() * torch.sin(9 * place[:, 0, 0])
    report = symmetry_test(
        [Graph.single(p, Z, targets={"energy": v[None]}) for p, v in zip(x + place, energy)],
        groups=("T(3)",),
        **FEW,
    )
    assert report.tests[0].verdict == "holds; tested for a linear or quadratic dependence on the position"


def test_data_that_cannot_be_tested():
    with pytest.raises(DataError, match="no labels in these data"):
        symmetry_test([g.replace(targets={}) for g in forced(40)], **FEW)
    with pytest.raises(DataError, match="29 structures with labels; wanted at least 30"):
        symmetry_test(forced(29), **FEW)
    flat = [
        Graph.single(torch.randn(4, 2), targets={"energy": torch.zeros(1, dtype=torch.float64)})
        for _ in range(40)
    ]
    with pytest.raises(DataError, match="2 dimensions"):
        symmetry_test(flat, **FEW)


def test_the_report_in_its_forms():
    report = symmetry_test(forced(60, field=1.0), **FEW)
    lines = str(report).splitlines()
    assert lines[1].startswith("symmetry") and "broken: " in lines[4] and lines[-1] == report.summary
    whole = json.loads(report.to_json())
    assert (
        whole["verdicts"] == ["rotational symmetry broken"]
        and whole["passed"] is False
        and len(whole["tests"]) == len(report.tests)
    )
    assert "rotational symmetry broken" in report._repr_html_() and "&lt;" not in report.title
    assert symmetry_test(forced(60, field=1.0), **FEW).tests == report.tests, "the seed decides"
    assert symmetry_test(forced(60, field=1.0), **FEW, seed=1).tests != report.tests
