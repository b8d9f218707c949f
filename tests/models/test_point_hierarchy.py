"""PointHierarchy and the pooling of clouds."""

from importlib import import_module

import pytest
import torch

import molequi as mq
from molequi.audit import audit
from molequi.errors import AccelerateError, ModelError
from molequi.graph import collate
from molequi.nn import ClusterPool, FarthestPool, FeatureNorm, Unpool
from molequi.nn import hierarchy as pooling
from molequi.nn.hierarchy import relative_lengths
from molequi.nn.radial import edges_of
from molequi.regular_graphs import regular
from molequi.symmetry.groups import random_orthogonal

KIND = mq.Quantity("kind", classes=["ball", "rod", "sheet"])
PART = mq.Quantity("part", per="node", classes=["end", "middle"])
ARROW = mq.Quantity("arrow", per="node", rank=1)
SMALL = [
    dict(channels=8),
    dict(channels=8, levels=3, layers=2, ratio=0.5, inputs=mq.Inputs(node_features=1, node_vectors=2)),
    dict(channels=8, pooling="clusters", clusters=6, inputs=mq.Inputs(node_vectors=2)),
    dict(channels=8, axis=[0.0, 0.0, 1.0]),
    dict(channels=8, axis="learned", pooling="clusters"),
]


def cloud(seed: int = 0, n: int = 40, dim: int = 3, inputs: mq.Inputs | None = None) -> mq.Graph:
    generator = torch.Generator().manual_seed(seed)
    inputs = inputs or mq.Inputs()
    vec, x = (torch.randn(n, *shape, generator=generator) for shape in ((inputs.node_vectors, dim), (1,)))
    return mq.Graph.single(
        torch.randn(n, dim, generator=generator, dtype=torch.float64),
        vec=vec if inputs.node_vectors else None,
        x=x if inputs.node_features else None,
    )


def small(predict=(KIND, PART, ARROW), **options) -> mq.Model:
    torch.manual_seed(0)
    model = mq.Model(mq.PointHierarchy(elements=["X"], **options), list(predict))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("options", SMALL, ids=lambda o: "-".join(map(str, o)))
def test_audit(options):
    model = small(**options)
    clouds = [cloud(k, 30 + k, inputs=options.get("inputs")) for k in range(2)]
    audit(model, clouds, draws=3).raise_if_failed()


@pytest.mark.parametrize("dim", [2, 4])
def test_other_dimensions(dim):
    audit(small(), [cloud(dim=dim)], draws=2).raise_if_failed()


def test_the_audit_finds_a_choice_by_order(monkeypatch):
    """Control: every fourth point in place of the farthest ones."""
    import numpy as np

    monkeypatch.setattr(pooling, "farthest_points", lambda pos, ratio: np.arange(0, len(pos), 4))
    monkeypatch.setattr(pooling, "_remembered", pooling._Remembered())
    failed = {row.check for row in audit(small(), [cloud()], draws=2).failed}
    assert "permutation" in failed


def test_a_symmetric_cloud_has_symmetric_outputs():
    """The corners of a cube and the middles of its edges: ties are chosen together, so all corners are equal."""
    grid = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 3)
    grid = grid[grid.abs().sum(1) > 1.5]
    model = small([PART], channels=8).double().eval()
    out = model(mq.connect(mq.Graph.single(grid), None, 8))["part"]
    corners = out[grid.abs().sum(1) > 2.5]
    assert corners.shape[0] == 8 and (corners - corners[0]).abs().max() < 1e-12
    assert (out - out[0]).abs().max() > 1e-6


def test_coarse_clouds():
    pos, batch = cloud(n=60).pos, torch.arange(2).repeat_interleave(30)
    features = [torch.randn(60, 8), torch.randn(60, 3, 8)]
    chosen, coarse = FarthestPool(8, 2, ratio=0.2, k=5)(features, pos, batch, 2)
    assert torch.equal(coarse.pos, pos[coarse.index]) and torch.bincount(coarse.batch).tolist() == [6, 6]
    assert [h.shape for h in chosen] == [(12, 8), (12, 3, 8)]
    clusters, soft = ClusterPool(8, 2, clusters=4)(features, pos, batch, 2)
    assert [h.shape for h in clusters] == [(8, 8), (8, 3, 8)]
    for found in (coarse, soft):
        ones = found.interpolate(torch.ones(len(found.pos), 1), 60)
        assert torch.allclose(ones, torch.ones_like(ones), atol=1e-6)
        assert torch.equal(found.batch[found.node], batch[found.point])  # no link between clouds
        back = Unpool(8, 2)([torch.randn(len(found.pos), 8)] * 2, features[:1] * 2, found)
        assert back[0].shape == (60, 8)
    near = coarse.interpolate(coarse.pos.float(), 60)[coarse.index]  # chosen points are themselves
    assert torch.allclose(near, coarse.pos.float(), atol=1e-3)
    middle = [soft.pos[soft.batch == b].mean(0) - pos[batch == b].mean(0) for b in (0, 1)]
    assert all(float(m.detach().norm()) < 0.5 for m in middle)


def test_clusters_are_smooth_and_chosen_points_jump():
    """The largest change along a path, and what is left of it in steps that are 100 times finer."""
    start, end = cloud(1, 12).pos, cloud(2, 12).pos

    def left(**options) -> float:
        model = small([KIND], channels=8, k=11, levels=1, **options).double().eval()

        def steps(at: torch.Tensor) -> torch.Tensor:
            graphs = [mq.connect(mq.Graph.single(start + s * (end - start)), None, 11) for s in at]
            return model(collate(graphs))["kind"].diff(dim=0).abs().max(1).values

        coarse = torch.linspace(0, 0.3, 101, dtype=torch.float64)
        change = steps(coarse)
        worst = int(change.argmax())
        fine = torch.linspace(coarse[worst], coarse[worst + 1], 101, dtype=torch.float64)
        return float(steps(fine).max() / change.max())

    assert left(pooling="clusters", clusters=3) < 0.05 < 0.5 < left(ratio=0.25)


def test_features_stay_bounded():
    s, v = FeatureNorm(4)([torch.randn(3, 4), 1e8 * torch.randn(3, 3, 4)])
    assert float(v.square().sum(1).mean(1).max()) <= 1 + 1e-5
    tiny = 1e-6 * torch.randn(3, 3, 4)
    assert torch.allclose(FeatureNorm(4)([s, tiny])[1], tiny)


@pytest.mark.parametrize("pooling", ["farthest", "clusters"])
@pytest.mark.parametrize("places", [[0], [0, 1, 2], [0, 0, 0], [0, 0, 0, 1, 2]], ids=str)
def test_gradients_of_small_clouds_are_bounded(places, pooling):
    """At initialization, with points in the same place, too."""
    torch.manual_seed(0)
    pos = torch.randn(3, 3, dtype=torch.float64)[places]
    model = mq.Model(mq.PointHierarchy(elements=["X"], channels=8, levels=3, pooling=pooling), [KIND, PART])
    out = model(mq.connect(mq.Graph.single(pos), None, 8))
    sum(out[name].sum() for name in ("kind", "part")).backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert 0 < largest < 1e3


def test_a_chosen_point_sees_itself():
    """With no other point in sight its pooled features depend on its own."""
    pool, pos = FarthestPool(4, 2, ratio=0.5, k=1), torch.tensor([[0.0, 0, 0]], dtype=torch.float64)
    features = [torch.randn(1, 4), torch.randn(1, 3, 4)]
    for h, wanted in zip(pool(features, pos, torch.zeros(1, dtype=torch.int64), 1)[0], features):
        assert 0.05 < float(h.detach().norm() / wanted.norm()) < 5


def test_certain_assignments_leave_clusters_without_points():
    """Shares of a cluster add up to one, however small its mass; softmax over clusters alone underflows."""
    torch.manual_seed(0)
    pool, pos = ClusterPool(8, 2, clusters=4), cloud(n=6).pos
    batch = torch.tensor([0, 0, 0, 1, 1, 1])
    with torch.no_grad():
        for p in pool.assign.parameters():
            p.mul_(30.0)
    features = [torch.randn(6, 8), torch.randn(6, 3, 8)]
    masses = torch.softmax(pool.assign(features[0]), dim=1).reshape(2, 3, 4).sum(1)
    assert float(masses.detach().min()) == 0.0  # the test is one
    pooled, coarse = pool(features, pos, batch, 2)
    assert all(bool(h.isfinite().all()) for h in (*pooled, coarse.pos))
    for b in (0, 1):  # centers are in the hull of the points
        inside = coarse.pos[coarse.batch == b]
        assert (inside <= pos[batch == b].max(0).values + 1e-6).all()
        assert (inside >= pos[batch == b].min(0).values - 1e-6).all()
    sum(h.sum() for h in pooled).backward()
    assert all(bool(p.grad.isfinite().all()) for p in pool.parameters())


@pytest.mark.parametrize("pooling", ["farthest", "clusters"])
def test_a_lattice_in_single_precision(pooling):
    """Turned and stored as float32: equal distances differ by round-off and are equal all the same."""
    lattice = torch.cartesian_prod(*[torch.arange(5, dtype=torch.float64) - 2] * 3)
    turn = random_orthogonal(3, generator=torch.Generator().manual_seed(4))
    model = small([PART], channels=8, pooling=pooling).double().eval()
    here, there = (
        model(mq.connect(mq.Graph.single(pos.float().double()), None, 8))["part"]
        for pos in (lattice, lattice @ turn.T)
    )
    assert (here - there).abs().max() < 1e-4 * here.abs().max()


def test_choices_are_remembered(monkeypatch):
    monkeypatch.setattr(pooling, "_remembered", pooling._Remembered())
    calls, found = [], pooling.farthest_points
    monkeypatch.setattr(
        pooling, "farthest_points", lambda pos, ratio: calls.append(len(pos)) or found(pos, ratio)
    )
    model, graph = small([KIND], channels=8), mq.connect(cloud(), None, 8)
    one, two = model(graph)["kind"], model(graph)["kind"]
    assert calls == [40, 10] and torch.equal(one, two)
    model(mq.connect(cloud(1), None, 8))
    assert calls == [40, 10, 40, 10]
    monkeypatch.setattr(pooling, "KEPT_POINTS", 60)
    for seed in range(4):
        model(mq.connect(cloud(seed), None, 8))
    assert pooling._remembered.points <= 60


def test_trains_from_the_recipe_and_loads(tmp_path):
    small = ["index='::80'", "split={train: 8, valid: 2}"]
    settings = [
        *(f"data.points.{o}" for o in small),
        "data.test=null",
        "train.epochs=1",
        "backbone.PointHierarchy.levels=1",
    ]
    options = ["backbone.PointHierarchy.channels=8", "train.optimizer.name=adam"]
    result = mq.run("parts", [*settings, *options, f"train.out={tmp_path / 'out'}"])
    whole = mq.read_points(mq.shipped("shapes.npz"), index=":1", centroid=True)
    again = mq.load(tmp_path / "out" / "model.safetensors")
    graph = mq.connect(whole[0], None, 8)
    assert torch.equal(again(graph)["part"], result.model.eval()(graph)["part"])


def test_errors():
    model = small([KIND])
    with pytest.raises(ModelError, match="for point clouds; these structures are periodic"):
        crystal = mq.Graph.single(torch.rand(3, 3), cell=9 * torch.eye(3), pbc=True)
        model.backbone(mq.connect(crystal, 3.0))
    for extensive in ("energy", "dipole", mq.Quantity("mass", extensive=True)):
        with pytest.raises(ModelError, match="is extensive.*PointHierarchy sees whole clouds.*such as PaiNN"):
            mq.Model(mq.PointHierarchy(elements=["X"]), [KIND, extensive])
    words = (
        "farthest' chooses points on the CPU by their positions, .*leave accelerate away, or take pooling='cl"
    )
    with pytest.raises(AccelerateError, match=words):
        mq.accelerate(model)
    assert mq.accelerate(model, on=False) is model


def test_clusters_are_compiled_exactly(monkeypatch):
    """Without machine code, for other sizes, too; the comparison with the plain model is that of `accelerate`."""
    monkeypatch.setattr(import_module("molequi.accelerate"), "BACKEND", lambda traced, inputs: traced)
    model = small([KIND, PART], channels=8, levels=2, pooling="clusters", clusters=5).double().eval()
    batches = [collate([mq.connect(cloud(k, n), None, 8) for k in range(b)]) for n, b in ((30, 3), (22, 1))]
    plain = [model(batch) for batch in batches]
    mq.accelerate(model)
    for batch, wanted in zip(batches, plain):
        found = model(batch)
        assert all((found[name] - wanted[name]).abs().max() < 1e-11 for name in ("kind", "part"))
    assert model.program.functions


def test_edges_of_padding_change_no_relative_length():
    """Of a regular graph the real edges have the lengths of the plain one."""
    graph = mq.connect(cloud(n=12), None, 3)
    padded = regular(graph, degree=5)
    plain, known = (relative_lengths(edges_of(g, None, torch.float64)) for g in (graph, padded))
    assert torch.allclose(known[padded.real.flatten()], plain, atol=1e-14)
    assert not bool(padded.real.all())


def test_rotations_of_features_of_any_degree():
    """The layers take the parts of features on irreps, too."""
    from molequi.ops.irreps import wigner

    torch.manual_seed(0)
    g = random_orthogonal(3)
    pos, batch = cloud(n=20).pos, torch.zeros(20, dtype=torch.int64)
    s, t = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 5, 4, dtype=torch.float64)
    turn = wigner("2e", g)
    for pool in (FarthestPool(4, 2, ratio=0.3, k=4), ClusterPool(4, 2, clusters=3)):
        pool = pool.double()
        (s1, t1), here = pool([s, t], pos, batch, 1)
        (s2, t2), there = pool([s, turn @ t], pos @ g.T, batch, 1)
        assert torch.allclose(s1, s2, atol=1e-12) and torch.allclose(turn @ t1, t2, atol=1e-12)
        assert torch.allclose(here.pos @ g.T, there.pos, atol=1e-12)
