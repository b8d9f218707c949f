"""Continuous symmetries from derivatives: counted and named for functions of known symmetry, for nets with and without."""

import json

import pytest
import torch
from torch import nn

from molequi import Ensemble, Graph, Model, Quantity, connect
from molequi.discovery.functions import reference_copy, structure_function, structures_of_function
from molequi.discovery.generators import symmetry_generators
from molequi.errors import ConfigError, DataError, ModelError
from molequi.models import EGNN, NequIP, Transformer
from molequi.symmetry import random_orthogonal

from ..audit.kit import ELEMENTS, crystal, molecule


def clouds(count: int = 30, dim: int = 3, nodes: int = 6, **given) -> list[Graph]:
    found = []
    for k in range(count):
        generator = torch.Generator().manual_seed(k)
        extra = {name: torch.randn(nodes, dim, generator=generator, dtype=torch.float64) for name in given}
        found.append(Graph.single(torch.randn(nodes, dim, generator=generator, dtype=torch.float64), **extra))
    return found


def distances(graph: Graph):
    """Of pairs: an invariant of E(n)."""
    gap = graph.pos[:, None] - graph.pos[None]
    return torch.log1p(gap.square().sum(2)).sum().reshape(1)


def heights(graph: Graph):
    """A field along the last axis that acts on the height of each node: turns about the axis, and translations in the plane."""
    return distances(graph) + torch.sin(graph.pos[:, -1]).sum().reshape(1)


def relative_heights(graph: Graph):
    """A field along the last axis that acts on differences of height: all translations, and turns about the axis."""
    return distances(graph) + (graph.pos[:, None, -1] - graph.pos[None, :, -1]).pow(4).sum().reshape(1)


def well(graph: Graph):
    """About the point (1, 2, 3): all rotations through it."""
    return distances(graph) + (graph.pos - torch.tensor([1.0, 2.0, 3.0])).square().sum().reshape(1).sqrt()


def areas(graph: Graph):
    """Volumes of tetrahedra are left alone by shears too: all of SL(3) and translations, 11."""
    return torch.linalg.det(graph.pos[1:4] - graph.pos[:1]).reshape(1) * torch.linalg.det(
        graph.pos[2:5] - graph.pos[:1]
    )


def directions(graph: Graph):
    """Of pairs about the origin: all rotations, and scaling."""
    unit = nn.functional.normalize(graph.pos, dim=1)
    return (unit @ unit.T).pow(3).sum().reshape(1)


@pytest.mark.parametrize(
    ("function", "wanted", "words"),
    [
        (distances, 6, ["all translations", "all rotations"]),
        (
            heights,
            3,
            ["translation along (1, 0, 0)", "translation along (0, 1, 0)", "rotation about (0, 0, 1)"],
        ),
        (relative_heights, 4, ["all translations", "rotation about (0, 0, 1)"]),
        (well, 3, ["all rotations through (1, 2, 3)"]),
        (areas, 11, None),
        (directions, 4, None),
        (lambda graph: graph.pos.pow(3).sum().reshape(1).sin(), 0, []),
    ],
)
def test_known_symmetries(function, wanted, words):
    found = symmetry_generators(function, clouds())
    assert found.dimension == wanted and (wanted == 0 or found.gap > 1e8), str(found)
    assert (
        len(found.singular_values) == 12
        and found.singular_values[0] == 1
        and sorted(found.singular_values, reverse=True) == list(found.singular_values)
    )
    if words is None:
        assert any("no rigid motion" in b for b in found.descriptions) and "all of E(3)" not in found.summary
    else:
        assert list(found.descriptions) == words and ("all of E(3)" in found.summary) == (wanted == 6)
    if wanted == 0:
        assert "no continuous symmetry of space" in found.summary


def test_controls_are_broken_where_the_symmetry_is_real():
    found = symmetry_generators(distances, clouds())
    control = {k: v for k, v in found.controls.items() if "control" in k}
    assert len(control) == 4 and min(control.values()) > 0.05
    assert max(v for k, v in found.controls.items() if k not in control) < 1e-12
    field = symmetry_generators(heights, clouds()).controls
    assert (
        field["rotation about z"]
        < 1e-12
        < 1e-3
        < min(field["rotation about x"], field["rotation about y"], field["translation along z"])
    )
    assert max(field["translation along x"], field["translation along y"]) < 1e-12
    for shear in ("shear xy", "shear xz", "shear yz"):
        assert (
            symmetry_generators(areas, clouds()).controls[f"{shear} (control)"]
            < 1e-12
            < 1e-2
            < symmetry_generators(areas, clouds()).controls["scaling (control)"]
        )


def test_a_tilted_axis_and_its_point_are_found():
    axis, point = (
        torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3,
        torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64),
    )

    def function(graph):
        away = graph.pos - point
        along = away @ axis
        return (
            distances(graph) + along.sin().sum() + (away.square().sum(1) - along.square()).sqrt().sum()
        ).reshape(1)

    found = symmetry_generators(function, clouds())
    assert found.dimension == 1
    ((X, t),) = found.generators
    wanted = torch.tensor([[0.0, -2, 2], [2, 0, -1], [-2, 1, 0]], dtype=torch.float64) / 3
    assert torch.allclose(X * (X[0, 2] * wanted[0, 2]).sign(), wanted, atol=1e-8)
    assert float((X @ (point - torch.tensor(found.center, dtype=torch.float64)) + t).norm()) < 1e-8
    assert found.descriptions[0].startswith("rotation about (0.333, 0.667, 0.667) through")


def test_a_screw_is_named():
    """Left alone by a turn about z with a rise of 0.5 Å per radian, and by neither alone."""

    def function(graph):
        x, y, z = graph.pos.unbind(1)
        angle = torch.atan2(y, x) - 2 * z
        return (angle.cos() + (x * x + y * y).sqrt()).sum().reshape(1)

    found = symmetry_generators(function, clouds())
    assert (
        found.dimension == 1
        and "rotation about (0, 0, 1)" in found.descriptions[0]
        and "with a translation of 0.5 Å per radian" in found.descriptions[0]
    )


@pytest.mark.parametrize(("dim", "wanted"), [(2, 3), (4, 10)])
def test_other_dimensions(dim, wanted):
    found = symmetry_generators(distances, clouds(60, dim))
    assert (
        found.dimension == wanted
        and len(found.singular_values) == dim * dim + dim
        and f"all of E({dim})" in found.summary
    )
    assert symmetry_generators(relative_heights, clouds(60, dim)).dimension == wanted - (dim - 1)


def test_units_and_origin_of_the_coordinates_do_not_matter():
    """The same structures in nm, and 300 Å away: what a motion costs is against how far it moves the atoms."""
    here = symmetry_generators(heights, clouds())
    small = symmetry_generators(
        lambda g: heights(g.replace(pos=10 * g.pos)), [g.replace(pos=g.pos / 10) for g in clouds()]
    )
    away = torch.tensor([300.0, -100.0, 200.0], dtype=torch.float64)
    far = symmetry_generators(
        lambda g: heights(g.replace(pos=g.pos - away)), [g.replace(pos=g.pos + away) for g in clouds()]
    )
    for other in (small, far):
        assert (
            other.singular_values[:9] == pytest.approx(here.singular_values[:9], rel=1e-6)
            and other.dimension == 3
        )


def test_a_symmetry_that_holds_nearly_is_named_at_a_looser_tolerance():
    def bent(graph):
        return distances(graph) + 0.01 * torch.sin(graph.pos).sum().reshape(1)

    strict, loose = symmetry_generators(bent, clouds()), symmetry_generators(bent, clouds(), tolerance=0.05)
    assert strict.dimension == 0 and loose.dimension == 6
    assert (
        loose.descriptions == ("all translations", "all rotations")
        and "all of E(3), some of them approximate" in loose.summary
    )
    assert "approximate" not in symmetry_generators(distances, clouds(), tolerance=0.05).summary


def test_velocities_turn_along():
    """Σ x_i · v_i is left alone by rotations only if velocities turn too; |v|² by all translations."""
    assert symmetry_generators(
        lambda g: (g.vel.square().sum() + (g.pos * g.vel).sum()).reshape(1).sin(), clouds(vel=1)
    ).descriptions == ("all rotations through (0, 0, 0)",)


QUANTITIES = [
    "energy",
    "forces",
    "dipole",
    "polarizability",
    Quantity(name="arrow", per="node", rank=1),
    Quantity(name="goal", rank=1, point=True),
]


@pytest.fixture(scope="module")
def models():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        common = dict(elements=ELEMENTS, cutoff=4.0, channels=4, layers=1)
        return {
            "strict": Model(NequIP(**common, l_max=2), QUANTITIES),
            "free": Model(Transformer(**common), QUANTITIES),
            "absolute": Model(Transformer(**common, absolute=True), QUANTITIES),
        }


@pytest.mark.parametrize("of", ["energies", *[q if isinstance(q, str) else q.name for q in QUANTITIES]])
def test_quantities_of_models_by_their_own_declarations(models, of):
    several = of in ("energies", "forces", "arrow")
    structures = [molecule(k, 4) for k in range(7 if several else 13 if of != "energy" else 24)]
    options = dict(n_projections=4 if several else 2)
    assert symmetry_generators(models["strict"], structures, of, **options).dimension == 6
    free = symmetry_generators(models["free"], structures, of, **options)
    assert free.dimension == 3 and free.descriptions == ("all translations",)
    assert symmetry_generators(models["absolute"], structures, of, **options).dimension == 0


def test_of_a_crystal_the_cell_goes_along(models):
    structures = [
        crystal().replace(
            pos=crystal().pos + 0.1 * torch.randn(5, 3, generator=torch.Generator().manual_seed(k))
        )
        for k in range(8)
    ]
    assert symmetry_generators(models["strict"], structures, "forces").dimension == 6
    assert symmetry_generators(models["free"], structures, "forces").dimension == 3


def test_the_axis_that_a_model_sees_is_found():
    """Of a net that sees an axis what is left are all translations, and turns about the axis; of another direction, none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Model(
            EGNN(elements=ELEMENTS, cutoff=4.0, channels=4, layers=1, axis=(1.0, 2.0, 2.0)), ["energy"]
        )
    found = symmetry_generators(net, [molecule(k, 5) for k in range(26)], "energy")
    assert (
        found.dimension == 4
        and found.descriptions == ("all translations", "rotation about (0.333, 0.667, 0.667)")
        and found.gap > 1e8
    )


# Structures that stand alike.

OCTAHEDRON = torch.tensor(
    [[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float64
)


def turned(graphs: list[Graph]) -> list[Graph]:
    generator = torch.Generator().manual_seed(0)
    return [g.replace(pos=g.pos @ random_orthogonal(g.dim, generator=generator).T) for g in graphs]


def frames(count: int = 64, size: float = 0.03) -> list[Graph]:
    """One pose that trembles, as molecular dynamics of an aligned molecule."""
    still, generator = clouds(1, nodes=9)[0], torch.Generator().manual_seed(1)
    return [
        still.replace(pos=still.pos + size * torch.randn(9, 3, generator=generator, dtype=torch.float64))
        for _ in range(count)
    ]


def nothing_at_all(graph: Graph):
    """Without any symmetry."""
    into, out = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for shape in ((27, 40), (40,))
    )
    return (torch.tanh(graph.pos.flatten() @ into / 5) @ out).reshape(1)


@pytest.mark.parametrize(
    ("function", "structures", "tolerance"),
    [
        (distances, clouds(1) * 30, 1e-6),
        (distances, [Graph.single((1 + 0.1 * k) * OCTAHEDRON) for k in range(30)], 1e-6),
        (distances, turned([Graph.single((1 + 0.1 * k) * OCTAHEDRON) for k in range(30)]), 1e-6),
        (nothing_at_all, frames(), 0.05),
        (distances, frames(), 0.05),
        (
            lambda g: (g.vel.square().sum() + distances(g)).reshape(1),
            [g.replace(pos=g.pos + k) for k, g in enumerate(clouds(1, vel=1) * 30)],
            1e-6,
        ),
    ],
    ids=[
        "copies",
        "octahedra",
        "turned octahedra",
        "no symmetry",
        "frames",
        "shifted copies with velocities",
    ],
)
def test_structures_that_show_false_symmetries_are_refused(function, structures, tolerance):
    with pytest.raises(
        DataError,
        match=r"too similar: for a function that has 6 continuous symmetries they show (7|8|9|10|11)",
    ):
        symmetry_generators(function, structures, tolerance=tolerance)


def test_structures_in_random_poses_do():
    """The controls: the same structure in other poses, the same frames where round-off decides, and no symmetry where there is none."""
    assert symmetry_generators(distances, turned(clouds(1) * 30)).dimension == 6
    assert (
        symmetry_generators(distances, frames()).dimension == 6
        and symmetry_generators(nothing_at_all, frames()).dimension == 0
    )
    assert symmetry_generators(nothing_at_all, clouds(64, nodes=9), tolerance=0.05).dimension == 0
    assert symmetry_generators(distances, clouds(64, nodes=9), tolerance=0.05).dimension == 6
    single = [
        Graph.single(torch.randn(1, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64))
        for k in range(40)
    ]
    assert (
        symmetry_generators(lambda g: g.pos[:, 2].square(), single).dimension == 8
    )  # of no distances nothing can be asked


@pytest.mark.parametrize(
    "quantity",
    [
        Quantity(name="q", rank=0, per="node"),
        Quantity(name="q", rank=1),
        Quantity(name="q", rank=2),
        Quantity(name="q", rank=2, per="node"),
        Quantity(name="q", rank=1, point=True),
        Quantity(name="q", rank=1, point=True, per="node"),
        Quantity(name="q", classes=["a", "b", "c"]),
    ],
    ids=lambda q: f"{q.per}-{q.rank}{'-point' * q.point}{'-classes' * bool(q.classes)}",
)
@pytest.mark.parametrize("dim", [2, 3])
def test_what_structures_are_tried_with_has_the_symmetry_of_the_quantity_and_no_other(quantity, dim):
    from molequi.discovery.derivatives import distance_function

    numbers = (len(quantity.classes),) if quantity.classes else quantity.shape(dim)
    structures = [
        g.replace(vec=g.vel.flip(0)[:, None], cell=g.pos[None, :dim] + 1) for g in clouds(20, dim, vel=1)
    ]
    found = symmetry_generators(
        lambda g: distance_function(
            g, quantity, (g.num_nodes if quantity.per == "node" else 1, *numbers), 1.5
        ),
        structures,
        quantity,
    )
    assert found.dimension == dim * (dim + 1) // 2 and f"all of E({dim})" in found.summary and found.gap > 1e8


# Derivatives.


@pytest.mark.parametrize(
    "part",
    [
        lambda g: 3 * g.pos[:, 0].detach().sum(),
        lambda g: 1e-3 * g.pos[:, 0].detach().sum(),
        lambda g: g.pos.detach().norm(dim=1).sum(),
        lambda g: torch.tensor(g.pos.detach().numpy().sum()),
        lambda g: distances(g.replace(pos=g.pos.detach() * torch.tensor([1.0, 1.0, 2.0]))),
        lambda g: torch.sin(1e4 * g.pos[:, 2]).sum() / 1e4 + 0.1 * g.pos[:, 0].detach().sum(),
    ],
    ids=["straight", "small", "norms", "numpy", "distances", "only along what is found"],
)
def test_a_part_that_is_cut_off_from_the_derivatives_is_seen(part):
    with pytest.raises(
        ModelError, match="finite differences and derivatives differ by .* whose gradient is complete"
    ):
        symmetry_generators(lambda g: distances(g) + part(g), clouds())


@pytest.mark.parametrize(
    "function",
    [
        lambda g: distances(g).float(),
        lambda g: (distances(g).float() - 2e6).double(),
        lambda g: distances(g) - 1e6,
        lambda g: distances(g.replace(pos=g.pos.float())),
        lambda g: torch.relu(distances(g) - 20) + distances(g),
        lambda g: distances(g) + (torch.cdist(g.pos, g.pos).detach() < 1.5).sum(),
    ],
    ids=["single", "single and large", "large", "single inside", "kink", "jumps"],
)
def test_round_off_kinks_and_jumps_are_no_contradiction(function):
    assert symmetry_generators(function, clouds()).dimension == 6


def test_a_constant_vector_is_one_however_it_is_written():
    """Left alone by all motions but those that turn or stretch it: X v = 0."""
    up, arrow = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64), Quantity(name="arrow", rank=1)
    found = [symmetry_generators(f, clouds(), arrow) for f in (lambda g: up, lambda g: up + 0 * g.pos.sum())]
    assert [f.dimension for f in found] == [9, 9] and found[0].descriptions[:2] == (
        "all translations",
        "rotation about (0, 0, 1)",
    )
    assert found[0].singular_values == found[1].singular_values


# Which structures are taken.


def neighbours(graph: Graph):
    """Of the edges that a structure has."""
    return torch.zeros(graph.num_nodes, dtype=torch.float64).index_add(
        0, graph.edge_index[1], graph.edge_vectors().square().sum(1).log1p()
    )


def test_functions_get_graphs_with_their_edges_one_or_several():
    lone = connect(clouds(1, nodes=8)[0], 9.0)
    for structures in (lone, [lone]):
        assert symmetry_generators(neighbours, structures, n_projections=30).dimension == 6
        assert structure_function(neighbours, structures).graphs[0].edge_index is not None
    assert structures_of_function(connect(molecule(), 4.0), 1)[0].edge_index is not None
    assert (
        structures_of_function([molecule().replace(targets={"energy": torch.zeros(1)})], 1)[0].targets == {}
    )


def test_functions_and_models_get_the_same_ones_spread_evenly():
    several = [molecule(k, 3) for k in range(10)]
    model = Model(EGNN(elements=ELEMENTS, channels=4, layers=1), ["energy"])
    for limit, wanted in ((3, [0, 3, 6]), (10, list(range(10))), (20, list(range(10)))):
        for graphs in (structures_of_function(several, limit), reference_copy(model, several, limit)[1]):
            assert [
                next(k for k, g in enumerate(several) if torch.equal(g.pos, h.pos)) for h in graphs
            ] == wanted
    with pytest.raises(ConfigError, match="limit=0: wanted at least one structure"):
        structures_of_function(several, 0)


def test_members_of_an_ensemble_are_not_compiled_either():
    members = [Model(EGNN(elements=ELEMENTS, channels=4, layers=1), ["energy"]) for _ in range(2)]
    ensemble = Ensemble(members)
    for member in ensemble.members:
        member.use_program(print)
    found = reference_copy(ensemble, [molecule()], 1)[0]
    assert [m.program for m in found.members] == [None, None] and all(
        m.program is print for m in ensemble.members
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: symmetry_generators(lambda g: torch.ones(1), clouds()),
            DataError,
            "every motion is a symmetry; wanted a function",
        ),
        (
            lambda: symmetry_generators(lambda g: 0.0 * distances(g) + 7, clouds()),
            DataError,
            "every motion is a symmetry; wanted a function",
        ),
        (lambda: symmetry_generators(lambda g: "energy", clouds()), ModelError, "found str"),
        (lambda: symmetry_generators(lambda g: distances(g) / 0.0, clouds()), ModelError, "not finite"),
        (
            lambda: symmetry_generators(distances, clouds(5)),
            DataError,
            "5 derivatives for 12 motions; wanted at least 24",
        ),
        (
            lambda: symmetry_generators(
                distances, [g.replace(pos=g.pos * torch.tensor([1.0, 1.0, 0.0])) for g in clouds()]
            ),
            DataError,
            "a plane or a line",
        ),
        (
            lambda: symmetry_generators(distances, clouds(), "energy"),
            ConfigError,
            "only models have named outputs",
        ),
        (
            lambda: symmetry_generators(distances, clouds(), n_projections=0),
            ConfigError,
            "at least one projection",
        ),
        (
            lambda: symmetry_generators(distances, clouds(), seed=1.5),
            ConfigError,
            "seed=1.5: wanted a whole number",
        ),
        (
            lambda: symmetry_generators(distances, clouds(), seed=2**64),
            ConfigError,
            "seed=18446744073709551616: wanted a whole number",
        ),
        (
            lambda: symmetry_generators(
                lambda g: (g.pos[:, None] - g.pos[None]).square().sum(2).sqrt().sum().reshape(1), clouds()
            ),
            ModelError,
            "its derivatives are not finite",
        ),
        (
            lambda: symmetry_generators(Model(EGNN(elements=["H"])), [molecule()], "enrgy"),
            ConfigError,
            "did you mean 'energy'",
        ),
        (
            lambda: symmetry_generators(nn.Linear(3, 3), clouds()),
            ConfigError,
            "Linear does not say its quantities, cutoff, group",
        ),
    ],
)
def test_what_says_nothing_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_reports():
    found = symmetry_generators(heights, clouds())
    data = json.loads(found.to_json())
    assert data["dimension"] == 3 and len(data["generators"]) == 3 and data["summary"] == found.summary
    assert (
        "rotation about z" in str(found)
        and "scaling (control)" in str(found)
        and "<table>" in found._repr_html_()
    )


def test_atoms_that_nearly_touch_hide_no_other_structure():
    """Slopes of 1/r^12 differ by many decades; the few largest alone would leave shears."""
    random = torch.Generator().manual_seed(0)
    near = [
        Graph.single(1.5 * torch.randn(6, 3, generator=random, dtype=torch.float64), ["C"] * 6)
        for _ in range(40)
    ]

    def repulsion(g):
        square = (g.pos[:, None] - g.pos).square().sum(2)[~torch.eye(6, dtype=torch.bool)]
        return (square**-6 - square**-3).sum().reshape(1)

    assert symmetry_generators(repulsion, near).dimension == 6
