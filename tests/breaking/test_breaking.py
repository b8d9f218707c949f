"""What data break is found, named, and told from what they do not break."""

import functools
import json

import pytest
import torch

from molequi import Dataset, Graph
from molequi.breaking.study import best_axis, breaking
from molequi.breaking.descriptors import describe
from molequi.breaking.frames import frames
from molequi.breaking.nulls import Block, block, by_turning, cubic, elements, outcome, wigners
from molequi.breaking.stabilizers import symmetries
from molequi.data.nbody import nbody, simulate
from molequi.errors import ConfigError, DataError
from molequi.ops import irreps as ir
from molequi.quantities import Quantity
from molequi.symmetry import Element, group, random_orthogonal

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
    forces, = torch.autograd.grad(-e.sum(), x)
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
    return breaking(data, **{**FEW, **options}).verdicts


def test_symmetric_data_break_nothing():
    report = breaking(forced(), **FEW)
    assert report.verdicts == ("no broken symmetry found",) and report.passed and report.raise_if_failed() is report
    assert {c.name for c in report.checks} == {"poses", "handedness", "O(3)", "SO(3)", "reflections", "T(3)", "stabilizers"}
    assert report.size == {"forces": None} and report.axis == {}


def test_a_field_of_three_percent_is_found_with_its_axis_and_size():
    report = breaking(forced(field=0.03), groups=("O(3)", "SO(3)", "Oh", "O(2)"), **FEW)
    assert report.verdicts == ("broken law",) and not report.passed
    axis, = report.axis.values()
    assert abs(torch.tensor(axis, dtype=torch.float64) @ AXIS) > 0.97
    assert 0.015 < report.size["forces"] < 0.045
    (left,) = report.remaining
    assert left.startswith("O(2) about") and "what is left: O(2)" in report.summary
    with pytest.raises(DataError, match="(?s)relaxed model.*broken: forces"):
        report.raise_if_failed()


def test_one_percent_at_a_thousand_structures():
    report = breaking(forced(1000, field=0.01), progress=False, groups=("SO(3)",))
    law, = (c for c in report.checks if c.name == "SO(3)")
    assert law.p < 0.01 and report.verdicts == ("broken law",)


def test_anisotropic_poses_alone_are_no_broken_law():
    assert verdicts(forced(turn=upright)) == ("anisotropic poses",)


def test_a_field_in_anisotropic_poses_is_both():
    def leaning(pos, generator):          # less than upright: three of four
        return upright(pos, None) if float(torch.rand((), generator=generator)) < 0.75 else random_orthogonal(3, generator=generator)

    assert verdicts(forced(turn=leaning, field=0.05)) == ("broken law", "anisotropic poses")


def test_one_pose_alone_says_nothing_of_the_law():
    """A molecule that is never turned, of springs that descriptors cannot tell apart: no other pose shows whether it is the lab."""
    x, _, _ = clouds(1, 3)
    generator = torch.Generator().manual_seed(0)
    i, j = torch.triu_indices(6, 6, 1)
    length = (x[0, i] - x[0, j]).norm(dim=1)
    stiff = 10 * torch.rand(15, generator=generator, dtype=torch.float64)
    shaken = (x[0] + 0.05 * torch.randn(200, 6, 3, generator=generator, dtype=torch.float64)).requires_grad_(True)
    springs = (stiff * ((shaken[:, i] - shaken[:, j]).norm(dim=2) - length).square()).sum()
    forces, = torch.autograd.grad(-springs, shaken)
    graphs = [Graph.single(pos, Z, targets={"forces": f}) for pos, f in zip(shaken.detach(), forces)]
    report = breaking(Dataset(graphs), **FEW)
    law, = (c for c in report.checks if c.name == "SO(3)")
    assert law.p_uniform < 0.01 < law.p and "broken law" not in report.verdicts and "anisotropic poses" in report.verdicts


def test_chirality():
    x, e, _ = clouds(300, 1)
    middle = [x[:, k::3].mean(1) for k in range(3)]
    third = (x * x.square().sum(2, keepdim=True)).mean(1)
    hand = (torch.linalg.cross(middle[1] - middle[0], middle[2] - middle[0]) * third).sum(1)
    for part, found in ((0.5, "chirality"), (0.0, "no broken symmetry found")):
        data = [Graph.single(p, Z, targets={"energy": v[None]}) for p, v in zip(x, e + part * e.std() * hand / hand.std())]
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
            factor = torch.cat([torch.tensor(stretch, dtype=torch.float64)[long], torch.ones(1, dtype=torch.float64)])
            yield Graph.single(corners @ R.T, targets={"moved": (corners * factor) @ R.T})

    report = breaking(Dataset(list(graphs([1.3, 0.8])), quantities={"moved": moved}), **FEW)
    assert report.verdicts == ("spontaneous breaking",) and "symmetry-breaking sets" in report.summary
    assert "60 of 60 symmetric structures" in str(report)
    assert verdicts(Dataset(list(graphs([1.2, 1.2])), quantities={"moved": moved})) == ("no broken symmetry found",)


def test_a_trap_at_the_origin_breaks_translations():
    assert verdicts(forced(trap=0.1, shift=1.0)) == ("broken translations",)
    report = breaking(forced(trap=0.0, shift=1.0), **FEW)
    assert report.passed and next(c for c in report.checks if c.name == "T(3)").p > 0.01
    assert "at one place" in next(c for c in breaking(forced(), **FEW).checks if c.name == "T(3)").reason


@pytest.mark.parametrize("rank", [1, 2])
def test_labels_of_whole_structures(rank):
    """Dipoles, or polarizabilities, with one constant direction too many."""
    x, _, _ = clouds(300, 2)
    value = torch.einsum("n,gni->gi", CHARGE, x) if rank == 1 else torch.einsum("n,gni,gnj->gij", CHARGE, x, x)
    extra = AXIS if rank == 1 else torch.outer(AXIS, AXIS)
    name = "dipole" if rank == 1 else "polarizability"
    for part, found in ((0.0, "no broken symmetry found"), (0.1, "broken law")):
        labels = value + part * value.square().mean().sqrt() * extra
        data = [Graph.single(p, Z, targets={name: v[None]}) for p, v in zip(x, labels)]
        assert verdicts(data)[0] == found


def test_pseudovectors():
    x, _, _ = clouds(300, 2)
    value = torch.linalg.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
    for part, found in ((0.0, "no broken symmetry found"), (1.5, "broken law")):
        graphs = [Graph.single(p, Z, targets={"moment": (v + part * AXIS)[None]}) for p, v in zip(x, value)]
        assert verdicts(Dataset(graphs, quantities={"moment": Quantity(name="moment", rank=1, pseudo=True)})) == (found,)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_the_smallest_structures(nodes):
    """Single atoms, pairs, flat or not: every test that can be made is made, with numbers."""
    generator = torch.Generator().manual_seed(0)
    graphs = [Graph.single(torch.randn(nodes, 3, generator=generator), [1, 8, 6, 1][:nodes], charge=float(k % 2), spin=1.0,
                           targets={"energy": torch.randn(1, generator=generator).double()}) for k in range(40)]
    report = breaking(graphs, **FEW)
    assert report.passed and all(0 < c.p <= 1 for c in report.checks if c.p is not None) and json.loads(report.to_json())


def test_many_elements_and_given_numbers():
    generator = torch.Generator().manual_seed(0)
    graphs = [Graph.single(2 * torch.randn(9, 3, generator=generator), torch.randint(1, 12, (9,), generator=generator),
                           x=torch.randn(9, 4, generator=generator), vec=torch.randn(9, 2, 3, generator=generator),
                           targets={"forces": torch.randn(9, 3, generator=generator).double()}) for _ in range(40)]
    assert breaking(graphs, **FEW).passed
    assert describe(Dataset(graphs), None).strict((1, -1)).shape[1] < 900


def test_crystals():
    """The frame is the cell's; there is no place in space; a stress with one constant direction is found."""
    generator = torch.Generator().manual_seed(0)

    def crystals(extra):
        for k in range(200):
            R = random_orthogonal(3, generator=generator)
            cell = torch.diag(torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64) + 0.2 * torch.randn(3, generator=generator)) @ R.T
            strain = cell.T @ cell / 16 - torch.eye(3, dtype=torch.float64)
            yield Graph.single(0.1 * torch.randn(2, 3, generator=generator), [1, 6], cell=cell, pbc=True,
                               targets={"stress": (strain + extra * torch.outer(AXIS, AXIS))[None]})

    for extra, found in ((0.0, "no broken symmetry found"), (0.5, "broken law")):
        report = breaking(list(crystals(extra)), **FEW, cutoff=4.0)
        assert report.verdicts == (found,)
        assert {c.reason for c in report.checks if c.p is None} >= {"a periodic structure has no place"}


def test_an_energy_in_a_field():
    x, e, _ = clouds(300, 2)
    extra = torch.einsum("n,gni,i->g", CHARGE, x, AXIS)
    energy = e + 0.3 * e.std() * extra / extra.std()
    assert verdicts([Graph.single(p, Z, targets={"energy": v[None]}) for p, v in zip(x, energy)]) == ("broken law",)


def test_unknown_labels_are_left_out():
    data = forced(60)
    graphs = [g.replace(targets={"forces": torch.full((6, 3), torch.nan, dtype=torch.float64)}) if k < 20 else g for k, g in enumerate(data)]
    assert breaking(graphs, **FEW).structures == 40
    with pytest.raises(DataError, match="20 structures with labels; wanted at least 30"):
        breaking(graphs[:40], **FEW)


def test_boxes_are_no_spheres():
    """A clip of each component, and that of the norm."""
    x, _, f = clouds(300, 4)
    size = f.norm(dim=2).median() / 2
    box = [Graph.single(p, Z, targets={"forces": v}) for p, v in zip(x, f.clamp(-size, size))]
    ball = [Graph.single(p, Z, targets={"forces": v}) for p, v in zip(x, f * (size / f.norm(dim=2, keepdim=True)).clamp(max=1))]
    report = breaking(box, groups=("SO(3)", "Oh"), **FEW)
    assert report.verdicts == ("broken law",) and report.remaining == ("Oh",)
    assert verdicts(ball, groups=("SO(3)", "Oh")) == ("no broken symmetry found",)


def test_the_oracle_measures_the_law():
    """The published N-body law, clipped by component and by norm: simulate, then turn."""
    def oracle_of(clip):
        def oracle(graphs):
            pos, vel = (torch.stack([getattr(g, name) for g in graphs]).numpy() for name in ("pos", "vel"))
            charges = torch.ones(len(graphs), 5, dtype=torch.float64)
            for k, g in enumerate(graphs):
                first = g.pair_index[0] == 0
                charges[k, g.pair_index[1][first]] = g.pair_attr[first, 0]
            run = simulate(charges.numpy(), pos, vel, frames=(0,), clip=clip, clip_at=1.0)
            return [{"moved": torch.from_numpy(p)} for p in run.pos[:, 0]]
        return oracle

    for clip in ("component", "norm"):
        data = nbody(40, start=0, end=1, clip=clip, clip_at=1.0)
        report = breaking(data, oracle=oracle_of(clip), groups=("SO(3)",), **FEW)
        errors = {f.name: f for f in report.oracle}
        assert set(errors) == {"rotations", "reflections", "translations"} and errors["translations"].error < 1e-9
        if clip == "norm":
            assert errors["rotations"].error < 1e-9 and errors["rotations"].variance < 1e-18
        else:
            assert errors["rotations"].error > 1e-3 and errors["rotations"].variance > 1e-7 and "no equivariant model" in str(report)


def test_a_wrong_oracle_is_named():
    data = forced(40)
    for oracle, text in ((lambda g: [], "gave 0 answers for 40"), (lambda g: [{"energy": 0.0} for _ in g], "nothing of forces of structure 0"),
                         (lambda g: [{"forces": torch.zeros(3)} for _ in g], r"shape \(3,\) for structure 0; wanted \(6, 3\)")):
        with pytest.raises(ConfigError, match=text):
            breaking(data, oracle=oracle, groups=("SO(3)",), **FEW)


@pytest.mark.parametrize("options, error, text", [
    (dict(groups=("SO(4)",)), ConfigError, r"'SO\(4\)' is not known; did you mean 'SO\(3\)'"),
    (dict(groups=()), ConfigError, "wanted a list of names"),
    (dict(groups="SO(3)"), ConfigError, "wanted a list of names"),
    (dict(axis=(0, 0, 0)), ConfigError, "not all zero"),
    (dict(draws=50), ConfigError, "at least 1/alpha"),
    (dict(alpha=0.0, draws=999), ConfigError, "between 0 and 1"),
    (dict(limit=3), ConfigError, "at least 30"),
    (dict(quantities=["energy"]), DataError, "'energy' has no labels"),
    (dict(quantities="forces"), ConfigError, "wanted a list of names from forces"),
])
def test_wrong_settings(options, error, text):
    with pytest.raises(error, match=text):
        breaking(forced(40), **{**FEW, **options})


def test_data_that_cannot_be_tested():
    with pytest.raises(DataError, match="no labels in these data"):
        breaking([g.replace(targets={}) for g in forced(40)], **FEW)
    with pytest.raises(DataError, match="29 structures with labels; wanted at least 30"):
        breaking(forced(29), **FEW)
    flat = [Graph.single(torch.randn(4, 2), targets={"energy": torch.zeros(1, dtype=torch.float64)}) for _ in range(40)]
    with pytest.raises(DataError, match="2 dimensions"):
        breaking(flat, **FEW)


def test_the_report_in_its_forms():
    report = breaking(forced(60, field=1.0), **FEW)
    lines = str(report).splitlines()
    assert lines[1].startswith("symmetry") and "broken: " in lines[4] and lines[-1] == report.summary
    whole = json.loads(report.to_json())
    assert whole["verdicts"] == ["broken law"] and whole["passed"] is False and len(whole["checks"]) == len(report.checks)
    assert "broken law" in report._repr_html_() and "&lt;" not in report.title
    assert breaking(forced(60, field=1.0), **FEW).checks == report.checks, "the seed decides"
    assert breaking(forced(60, field=1.0), **FEW, seed=1).checks != report.checks


# The parts, against laws of their own.

@pytest.mark.parametrize("irrep", [(0, -1), (1, -1), (1, 1), (2, 1), (3, -1), (4, 1)])
def test_many_wigner_matrices(irrep):
    turns = torch.stack([random_orthogonal(3, generator=torch.Generator().manual_seed(k)) for k in range(6)])
    known = torch.stack([ir.wigner(ir.name(*irrep), R) for R in turns])
    assert (wigners(irrep, turns) - known).abs().max() < 1e-12


@pytest.mark.parametrize("name, left", [("SO(3)", (0, 0, 0, 0)), ("O(3)", (0, 0, 0, 0)), ("Oh", (0, 0, 0, 1)), ("O(2)", (1, 1, 1, 1)), ("T", (0, 0, 1, 1))])
def test_finite_subgroups_leave_what_the_whole_group_leaves(name, left):
    chosen = group(name, axis=tuple(AXIS.tolist()) if name == "O(2)" else None)
    found = elements(chosen, torch.Generator().manual_seed(0))
    assert torch.allclose(found @ found.mT, torch.eye(3, dtype=torch.float64).expand_as(found), atol=1e-12)
    products = (found[:, None] @ found[None]).flatten(0, 1)
    assert torch.cdist(products.flatten(1), found.flatten(1)).amin(1).max() < 1e-6, "not closed"
    ranks = tuple(round(float(torch.trace(wigners((l, (-1) ** l), found).mean(0)))) for l in range(1, 5))
    assert ranks == left


def test_the_cubic_harmonic():
    unit = torch.nn.functional.normalize(torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    value = (ir.spherical_harmonics(4, unit)[4] @ cubic())[:, 0]
    known = unit.pow(4).sum(1) - 0.6
    assert torch.allclose(value / value[0], known / known[0], atol=1e-9)


def test_descriptors_turn_as_they_say():
    data = forced(5, shift=1.0)
    data = Dataset([g.replace(vel=g.pos.roll(1, 0) ** 2, targets={}) for g in data])
    for proper in (True, False):
        e = Element(rotation=random_orthogonal(3, proper=proper, generator=torch.Generator().manual_seed(1)), translation=10 * AXIS)
        here, there = describe(data, None), describe(Dataset([e.graph(g) for g in data]), None)
        for irrep in ((0, 1), (1, -1), (2, 1), (1, 1), (0, -1)):
            turned = here.strict(irrep) @ ir.wigner(ir.name(*irrep), e.rotation).T
            assert turned.shape[1] and (there.strict(irrep) - turned).abs().max() < 1e-9 * turned.abs().max()
        for irrep, probe in here.probes.items():
            assert (there.probes[irrep] - probe @ ir.wigner(ir.name(*irrep), e.rotation).T).abs().max() < 1e-9 * probe.abs().max()


@pytest.mark.parametrize("proper", [True, False])
def test_frames_turn_with_their_structures(proper):
    data = forced(30)
    data = Dataset([g.replace(vel=g.pos.roll(1, 0), targets={}) for g in data])
    turns = [random_orthogonal(3, proper=True if proper else None, generator=torch.Generator().manual_seed(k)) for k in range(30)]
    turned = Dataset([Element(rotation=R).graph(g) for R, g in zip(turns, data)])
    here, there = (list(frames(d, describe(d, None), proper=proper)) for d in (data, turned))
    assert [f[0] for f in here] == ["principal axes", "its vectors", "alignment to the mean shape"]
    for (_, g, alike), (_, h, same) in zip(here, there):
        assert (h - torch.stack(turns) @ g).abs().max() < 1e-6
        assert all(torch.equal(a, b) for a, b in zip(alike, same)) and sorted(torch.cat(alike).tolist()) == list(range(30))


def test_p_values_are_uniform_where_nothing_is_broken():
    generator = torch.Generator().manual_seed(0)
    turns = elements(group("SO(3)"), generator)
    p = []
    for _ in range(300):
        blocks = [Block("a", (1, -1), torch.randn(40, 2, 3, generator=generator, dtype=torch.float64)),
                  Block("b", (2, 1), torch.randn(40, 1, 5, generator=generator, dtype=torch.float64) ** 3)]
        p.append(outcome(by_turning(blocks, turns, 99, generator), 99).p)
    p = torch.tensor(p)
    for level in (0.05, 0.2, 0.5):
        assert abs(float((p <= level).double().mean()) - level) < 3.5 * (level * (1 - level) / 300) ** 0.5


def test_an_axis_is_found_from_degree_two():
    generator = torch.Generator().manual_seed(0)
    along = ir.spherical_harmonics(2, AXIS[None])[2]
    scores = torch.randn(200, 1, 5, generator=generator, dtype=torch.float64) + along[:, None]
    axis = torch.tensor(best_axis([block("a", (2, 1), scores)]), dtype=torch.float64)
    assert abs(axis @ AXIS) > 0.99


@pytest.mark.parametrize("pos, z, count", [
    ([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], [8, 1, 1], 3),                               # water: C2v
    ([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], [15] * 4, 23),                           # P4: Td
    ([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], [6, 1, 9, 17, 35], 0),        # CHFClBr
    ([[0.3, 0.1, 0], [1.1, 0.4, 0], [0.2, -0.9, 0]], [6, 7, 8], 1),                               # flat
])
def test_symmetries_of_known_molecules(pos, z, count):
    R = random_orthogonal(3, generator=torch.Generator().manual_seed(5))
    x = torch.tensor(pos, dtype=torch.float64) @ R.T + 3
    found = symmetries(Graph.single(x, z))
    assert len(found) == count
    for turn, order in found:
        centred = (x - x.mean(0)).numpy()
        assert abs(centred @ turn.T - centred[order]).max() < 1e-9
