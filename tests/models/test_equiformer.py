"""Equiformer: options, symmetry that it declares, neighbors that come and go, training from a run file."""

import pytest
import torch

import molequi as mq
from molequi.audit import audit
from molequi.errors import ConfigError, ModelError
from molequi.ops import irreps as ir
from molequi.symmetry import random_orthogonal

SMALL = dict(elements=["H", "C", "O"], cutoff=3.0, channels=4, hidden=4, layers=2, l_max=2, radial=4)


def molecule(n: int = 6) -> mq.Graph:
    generator = torch.Generator().manual_seed(3)
    pos = 3 * torch.rand(n, 3, dtype=torch.float64, generator=generator)
    return mq.Graph.single(pos, [[1, 6, 8][k % 3] for k in range(n)])


def network(**options) -> mq.Equiformer:
    torch.manual_seed(0)
    return mq.Equiformer(**SMALL | options).double().eval()


@torch.no_grad()
def breaking(backbone: mq.Backbone, g: torch.Tensor) -> float:
    """Relative error of equivariance of the features."""
    graph = molecule()
    a, b = (backbone(mq.connect(mq.Graph.single(p, graph.z), 3.0)) for p in (graph.pos, graph.pos @ g.T))
    d = torch.block_diag(*[ir.wigner(i, g) for i in a.blocks])
    wanted = torch.cat([*a.blocks.values()], dim=2) @ d.T
    return float((torch.cat([*b.blocks.values()], dim=2) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("options", "group"),
    [
        (dict(), "O(3)"),
        (dict(group="SO(3)"), "SO(3)"),
        (dict(activation="sphere"), "Oh"),
        (dict(activation="sphere", group="SO(3)"), "O"),
        (dict(axis="learned"), "O(n-1)"),
        (dict(axis="learned", group="SO(3)"), "SO(n-1)"),
    ],
)
def test_the_group_is_declared_and_the_audit_agrees(options, group):
    backbone = network(**options)
    assert backbone.group == group
    checks = ["rotation", "reflection", "features", "layers"]
    report = audit(mq.Model(backbone, ["energy", "forces", "dipole"]), [molecule()], draws=4, checks=checks)
    report.raise_if_failed()


def test_mirror_images_differ_for_rotations_alone():
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    turn = random_orthogonal(3, proper=True, generator=torch.Generator().manual_seed(1))
    for group, same in (("O(3)", True), ("SO(3)", False)):
        assert breaking(network(group=group), turn) < 1e-13
        assert (breaking(network(group=group), mirror) < 1e-13) == same


def test_the_sphere_is_approximate_and_the_octahedron_is_not():
    turn = random_orthogonal(3, proper=True, generator=torch.Generator().manual_seed(1))
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    backbone = network(activation="sphere")
    assert breaking(backbone, quarter) < 1e-13 and 1e-8 < breaking(backbone, turn) < 1e-2


@pytest.mark.parametrize("m_max", [0, 1])
def test_fewer_orders_are_exact_too(m_max):
    turn = random_orthogonal(3, generator=torch.Generator().manual_seed(1))
    few, all_of_them = network(m_max=m_max), network()
    assert breaking(few, turn) < 1e-13
    assert sum(p.numel() for p in few.parameters()) < sum(p.numel() for p in all_of_them.parameters())


@torch.no_grad()
def test_a_neighbor_that_leaves_and_a_lonely_atom():
    backbone = network()

    def center(distance, cutoff=3.0):
        pos = torch.tensor([[0.0, 0, 0], [0, 1.0, 0], [0, 0, distance]], dtype=torch.float64)
        return backbone(mq.connect(mq.Graph.single(pos, ["C", "H", "O"]), cutoff)).flat()[0]

    gone = center(3.5)
    assert torch.allclose(center(3.5, 4.0), gone, rtol=0, atol=1e-14)  # edges beyond the cutoff add nothing
    assert float((center(2.999999) - gone).abs().max()) < 1e-12
    assert float((center(2.0) - gone).abs().max()) > 1e-4
    alone = backbone(mq.connect(mq.Graph.single([[0.0, 0, 0]], ["C"]), 3.0))
    assert alone.flat().isfinite().all() and float(alone.blocks["1o"].abs().max()) < 1e-15


@torch.no_grad()
def test_attention_weights_are_shares():
    """They are positive, add up to less than one, and change with the features of both nodes."""
    backbone, seen = network(), []
    attention = backbone.layers[1].attention
    weights = attention._weights

    def spy(s, edges):
        seen.append((weights(s, edges), edges))
        return seen[-1][0]

    attention._weights = spy
    backbone(mq.connect(molecule(), 3.0))
    weight, edges = seen[0]
    total = edges.sum(weight)
    assert float(weight.min()) >= 0 and float(total.max()) < 1 and float(total.min()) > 0
    assert float((weight / edges.envelope[:, None]).std()) > 1e-3


def test_what_is_refused():
    with pytest.raises(ModelError, match="found 4 with hidden=6; each head"):
        network(hidden=6)
    with pytest.raises(ModelError, match="Equiformer.l_out: found 3 with l_max=2"):
        network(l_out=3)
    with pytest.raises(ModelError, match="Equiformer.m_max: found 3 with l_max=2"):
        network(m_max=3)
    with pytest.raises(ModelError, match="Equiformer.axis: found 'learned' with activation='sphere'"):
        network(activation="sphere", axis="learned")
    with pytest.raises(ConfigError, match="activation"):
        network(activation="relu")
    with pytest.raises(ModelError, match="works in 3 dimensions"):
        network(elements=[0])(mq.connect(mq.Graph.single(torch.rand(4, 2)), 3.0))


def test_training_from_a_run_file(tmp_path):
    result = mq.run(
        {
            "data": {
                "extxyz": {"path": str(mq.shipped("ethanol_300K.xyz")), "split": {"train": 8, "valid": 4}}
            },
            "backbone": {"Equiformer": {"channels": 4, "hidden": 4, "layers": 1, "l_max": 2}},
            "predict": ["energy", "forces"],
            "train": {
                "epochs": 2,
                "batch_size": 4,
                "out": str(tmp_path / "run"),
                "logging": {"progress": False},
            },
        }
    )
    again = mq.load(tmp_path / "run" / "model.safetensors")
    graph = mq.connect(mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))[0], again.cutoff)
    for name, value in result.model(graph).items():
        assert torch.equal(value, again(graph)[name]), name
