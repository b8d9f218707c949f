"""Continuous symmetries from derivatives: counted and named for functions of known symmetry, for nets with and without."""

import json

import pytest
import torch
from torch import nn

from molequi import Graph, Model, Quantity
from molequi.learned.generators import generators
from molequi.errors import ConfigError, DataError, ModelError
from molequi.models import EGNN, NequIP, Transformer

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
    return torch.linalg.det(graph.pos[1:4] - graph.pos[:1]).reshape(1) * torch.linalg.det(graph.pos[2:5] - graph.pos[:1])


def directions(graph: Graph):
    """Of pairs about the origin: all rotations, and scaling."""
    unit = nn.functional.normalize(graph.pos, dim=1)
    return (unit @ unit.T).pow(3).sum().reshape(1)


@pytest.mark.parametrize(("function", "wanted", "words"), [
    (distances, 6, ["all translations", "all rotations"]),
    (heights, 3, ["translation along (1, 0, 0)", "translation along (0, 1, 0)", "rotation about (0, 0, 1)"]),
    (relative_heights, 4, ["all translations", "rotation about (0, 0, 1)"]),
    (well, 3, ["all rotations through (1, 2, 3)"]),
    (areas, 11, None),
    (directions, 4, None),
    (lambda graph: graph.pos.pow(3).sum().reshape(1).sin(), 0, []),
])
def test_known_symmetries(function, wanted, words):
    found = generators(function, clouds())
    assert found.dimension == wanted and (wanted == 0 or found.gap > 1e8), str(found)
    assert len(found.singular) == 12 and found.singular[0] == 1 and sorted(found.singular, reverse=True) == list(found.singular)
    if words is None:
        assert any("no rigid motion" in b for b in found.basis) and "all of E(3)" not in found.summary
    else:
        assert list(found.basis) == words and ("all of E(3)" in found.summary) == (wanted == 6)
    if wanted == 0:
        assert "no continuous symmetry of space" in found.summary


def test_controls_are_broken_where_the_symmetry_is_real():
    found = generators(distances, clouds())
    control = {k: v for k, v in found.controls.items() if "control" in k}
    assert len(control) == 4 and min(control.values()) > 0.05
    assert max(v for k, v in found.controls.items() if k not in control) < 1e-12
    field = generators(heights, clouds()).controls
    assert field["rotation about z"] < 1e-12 < 1e-3 < min(field["rotation about x"], field["rotation about y"], field["translation along z"])
    assert max(field["translation along x"], field["translation along y"]) < 1e-12
    for shear in ("shear xy", "shear xz", "shear yz"):
        assert generators(areas, clouds()).controls[f"{shear} (control)"] < 1e-12 < 1e-2 < generators(areas, clouds()).controls["scaling (control)"]


def test_a_tilted_axis_and_its_point_are_found():
    axis, point = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64) / 3, torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)

    def function(graph):
        away = graph.pos - point
        along = away @ axis
        return (distances(graph) + along.sin().sum() + (away.square().sum(1) - along.square()).sqrt().sum()).reshape(1)

    found = generators(function, clouds())
    assert found.dimension == 1
    (X, t), = found.motions
    wanted = torch.tensor([[0.0, -2, 2], [2, 0, -1], [-2, 1, 0]], dtype=torch.float64) / 3
    assert torch.allclose(X * (X[0, 2] * wanted[0, 2]).sign(), wanted, atol=1e-8)
    assert float((X @ (point - torch.tensor(found.centre, dtype=torch.float64)) + t).norm()) < 1e-8
    assert found.basis[0].startswith("rotation about (0.333, 0.667, 0.667) through")


def test_a_screw_is_named():
    """Left alone by a turn about z with a rise of 0.5 Å a radian, and by neither alone."""
    def function(graph):
        x, y, z = graph.pos.unbind(1)
        angle = torch.atan2(y, x) - 2 * z
        return (angle.cos() + (x * x + y * y).sqrt()).sum().reshape(1)

    found = generators(function, clouds())
    assert found.dimension == 1 and "rotation about (0, 0, 1)" in found.basis[0] and "with a translation of 0.5 Å a radian" in found.basis[0]


@pytest.mark.parametrize(("dim", "wanted"), [(2, 3), (4, 10)])
def test_other_dimensions(dim, wanted):
    found = generators(distances, clouds(60, dim))
    assert found.dimension == wanted and len(found.singular) == dim * dim + dim and f"all of E({dim})" in found.summary
    assert generators(relative_heights, clouds(60, dim)).dimension == wanted - (dim - 1)


def test_units_and_origin_of_the_coordinates_do_not_matter():
    """The same structures in nm, and 300 Å away: what a motion costs is against how far it moves the atoms."""
    here = generators(heights, clouds())
    small = generators(lambda g: heights(g.replace(pos=10 * g.pos)), [g.replace(pos=g.pos / 10) for g in clouds()])
    away = torch.tensor([300.0, -100.0, 200.0], dtype=torch.float64)
    far = generators(lambda g: heights(g.replace(pos=g.pos - away)), [g.replace(pos=g.pos + away) for g in clouds()])
    for other in (small, far):
        assert other.singular[:9] == pytest.approx(here.singular[:9], rel=1e-6) and other.dimension == 3


def test_a_symmetry_that_holds_nearly_is_named_at_a_looser_tolerance():
    def bent(graph):
        return distances(graph) + 0.01 * torch.sin(graph.pos).sum().reshape(1)

    strict, loose = generators(bent, clouds()), generators(bent, clouds(), tolerance=0.05)
    assert strict.dimension == 0 and loose.dimension == 6
    assert loose.basis == ("all translations", "all rotations") and "all of E(3), some of them nearly" in loose.summary
    assert "nearly" not in generators(distances, clouds(), tolerance=0.05).summary


def test_velocities_turn_along():
    """Σ x_i · v_i is left alone by rotations only if velocities turn too; |v|² by all translations."""
    assert generators(lambda g: (g.vel.square().sum() + (g.pos * g.vel).sum()).reshape(1).sin(), clouds(vel=1)).basis == ("all rotations through (0, 0, 0)",)


QUANTITIES = ["energy", "forces", "dipole", "polarizability", Quantity(name="arrow", per="node", rank=1), Quantity(name="goal", rank=1, point=True)]


@pytest.fixture(scope="module")
def models():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        common = dict(elements=ELEMENTS, cutoff=4.0, channels=4, layers=1)
        return {"strict": Model(NequIP(**common, l_max=2), QUANTITIES), "free": Model(Transformer(**common), QUANTITIES),
                "absolute": Model(Transformer(**common, absolute=True), QUANTITIES)}


@pytest.mark.parametrize("of", ["energies", *[q if isinstance(q, str) else q.name for q in QUANTITIES]])
def test_quantities_of_models_by_their_own_declarations(models, of):
    several = of in ("energies", "forces", "arrow")
    structures = [molecule(k, 4) for k in range(7 if several else 13 if of != "energy" else 24)]
    options = dict(probes=4 if several else 2)
    assert generators(models["strict"], structures, of, **options).dimension == 6
    free = generators(models["free"], structures, of, **options)
    assert free.dimension == 3 and free.basis == ("all translations",)
    assert generators(models["absolute"], structures, of, **options).dimension == 0


def test_of_a_crystal_the_cell_goes_along(models):
    structures = [crystal().replace(pos=crystal().pos + 0.1 * torch.randn(5, 3, generator=torch.Generator().manual_seed(k))) for k in range(8)]
    assert generators(models["strict"], structures, "forces").dimension == 6
    assert generators(models["free"], structures, "forces").dimension == 3


def test_the_axis_that_a_model_sees_is_found():
    """Of a net that sees an axis what is left are all translations, and turns about the axis; of another direction, none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Model(EGNN(elements=ELEMENTS, cutoff=4.0, channels=4, layers=1, axis=(1.0, 2.0, 2.0)), ["energy"])
    found = generators(net, [molecule(k, 5) for k in range(26)], "energy")
    assert found.dimension == 4 and found.basis == ("all translations", "rotation about (0.333, 0.667, 0.667)") and found.gap > 1e8


@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda: generators(lambda g: torch.ones(1), clouds()), DataError, "every motion is a symmetry and none says anything"),
    (lambda: generators(lambda g: 0.0 * distances(g) + 7, clouds()), DataError, "every motion is a symmetry and none says anything"),
    (lambda: generators(lambda g: "energy", clouds()), ModelError, "found str"),
    (lambda: generators(lambda g: distances(g) / 0.0, clouds()), ModelError, "not finite"),
    (lambda: generators(distances, clouds(5)), DataError, "5 derivatives for 12 motions; wanted at least 24"),
    (lambda: generators(distances, [g.replace(pos=g.pos * torch.tensor([1.0, 1.0, 0.0])) for g in clouds()]), DataError, "a plane or a line"),
    (lambda: generators(distances, clouds(), "energy"), ConfigError, "names belong to models"),
    (lambda: generators(distances, clouds(), probes=0), ConfigError, "at least one probe"),
    (lambda: generators(Model(EGNN(elements=["H"])), [molecule()], "enrgy"), ConfigError, "did you mean 'energy'"),
    (lambda: generators(nn.Linear(3, 3), clouds()), ConfigError, "Linear does not say its quantities, cutoff, group"),
])
def test_what_says_nothing_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_reports():
    found = generators(heights, clouds())
    data = json.loads(found.to_json())
    assert data["dimension"] == 3 and len(data["motions"]) == 3 and data["summary"] == found.summary
    assert "rotation about z" in str(found) and "scaling (control)" in str(found) and "<table>" in found._repr_html_()
