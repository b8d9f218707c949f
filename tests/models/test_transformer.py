"""The unconstrained transformer: it has the symmetries that it declares, lacks the others by far, and is as smooth as the rest."""

import pytest
import torch

from molequi import Graph, Model, Quantity
from molequi.audit import audit
from molequi.errors import ModelError
from molequi.graph import collate
from molequi.models import Inputs, Transformer
from molequi.neighbors import connect
from molequi.symmetry import Transform, random_orthogonal

ARROW = Quantity(name="arrow", per="node", rank=1)


def model(predict=("energy", "forces", ARROW), **options) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            Model(
                Transformer(
                    **{"elements": ["H", "C", "O"], "cutoff": 4.0, "channels": 16, "layers": 2, **options}
                ),
                predict,
            )
            .double()
            .eval()
        )


def cloud(seed: int = 0, n: int = 6, dim: int = 3, **given) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    return Graph.single(
        3 * torch.rand(n, dim, generator=generator, dtype=torch.float64),
        [[1, 6, 8][k % 3] for k in range(n)],
        **given,
    )


def gap(net: Model, graph: Graph, element: Transform, name: str = "energy") -> float:
    """Largest difference between the turned output and the output of the turned structure."""
    out, turned = (net(connect(g, net.cutoff, net.k))[name] for g in (graph, element.graph(graph)))
    return float((element.value(net.quantities[name], out) - turned).abs().max())


@pytest.mark.parametrize("name", ["energy", "forces", "arrow"])
@pytest.mark.parametrize("absolute", [False, True])
def test_permutations_hold_translations_unless_absolute_and_rotations_do_not(absolute, name):
    net, graph = model(absolute=absolute), cloud()
    still = torch.eye(3, dtype=torch.float64)
    assert (
        gap(net, graph, Transform.single(rotation=still, permutation=torch.tensor([3, 1, 5, 0, 2, 4])))
        < 1e-12
    )
    moved = gap(
        net,
        graph,
        Transform.single(rotation=still, translation=torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)),
        name,
    )
    assert moved > 1e-3 if absolute else moved < 1e-12
    assert net.backbone.translations is not absolute and net.backbone.group == "C1"
    for proper in (True, False):
        assert (
            gap(
                net,
                graph,
                Transform.single(
                    rotation=random_orthogonal(3, proper=proper, generator=torch.Generator().manual_seed(1))
                ),
                name,
            )
            > 1e-3
        )


def test_the_audit_asks_for_what_is_declared():
    checks = [
        "not zero",
        "translation",
        "permutation",
        "edge order",
        "batch",
        "finite differences",
        "cutoff",
        "smoothness",
        "one atom",
        "no edges",
    ]
    audit(model(), [cloud(0), cloud(1)], draws=4, checks=checks).raise_if_failed()


def test_the_force_is_continuous_where_a_neighbour_comes():
    """A third atom walks through the cutoff of the first: its force there is zero with its slope, and is not further in."""
    net = model(["energy", "forces"])

    def force(x: float) -> float:
        pos = torch.tensor([[0.0, 0, 0], [0.3, 1.0, 0], [0.0, 0, x]], dtype=torch.float64)
        pos[1] -= torch.tensor([0.0, 0, 1.0], dtype=torch.float64)  # sees the first only, near the cutoff
        return float(net(connect(Graph.single(pos, [1, 6, 8]), 4.0))["forces"][2, 2])

    assert force(4.0 + 1e-9) == 0.0 and abs(force(4.0 - 1e-4)) < 1e-6 < 1e-3 < abs(force(3.0))


def test_a_node_that_sees_nobody_and_structures_of_any_size():
    net = model(["energy", "forces"])
    structures = [cloud(0, 1), cloud(1, 5), cloud(2, 3).replace(pos=50 * cloud(2, 3).pos)]
    together = net(collate([connect(g, 4.0) for g in structures]))
    alone = [net(connect(g, 4.0)) for g in structures]
    assert torch.allclose(together["energy"], torch.cat([a["energy"] for a in alone]), atol=1e-12)
    assert together["forces"][0].tolist() == [0, 0, 0] and float(together["forces"][1:6].abs().max()) > 1e-3


@pytest.mark.parametrize("dim", [1, 2, 4])
@pytest.mark.parametrize("options", [dict(cutoff=None), dict(cutoff=3.0), dict(cutoff=3.0, k=2)])
def test_any_dimension(dim, options):
    net = model(["energy", ARROW], dim=dim, **options)
    out = net(connect(cloud(0, 6, dim), net.cutoff, net.k))
    assert out["arrow"].shape == (6, dim) and float(out["arrow"].abs().min()) > 0
    with pytest.raises(
        ModelError,
        match=rf"vectors of {dim} components, these structures have {dim + 1}; build it with dim={dim + 1}",
    ):
        net(connect(cloud(0, 6, dim + 1), net.cutoff, net.k))


def test_velocities_and_given_vectors_enter_component_by_component():
    graph = connect(cloud(vel=torch.rand(6, 3), vec=torch.rand(6, 2, 3)), 4.0)
    net = model(["energy"], inputs=Inputs(velocity=True, node_vectors=2))
    start = float(net(graph)["energy"])
    turned = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    assert abs(float(net(graph.replace(vel=graph.vel @ turned))["energy"]) - start) > 1e-4
    assert abs(float(net(graph.replace(vec=graph.vec @ turned))["energy"]) - start) > 1e-4
    with pytest.raises(ModelError, match="reads velocities .* give Graph.vel"):
        net(graph.replace(vel=None))


def test_heads_divide_the_channels():
    with pytest.raises(ModelError, match="heads: found 3 with channels=16.* multiple of heads"):
        model(heads=3)
