"""The head for velocities of flows: its bound, and files of before it."""

import torch

import molequi as mq
from molequi.features import Features

from ..test_checkpoint import rewrite


def model(**options):
    torch.manual_seed(0)
    net = mq.EGNN(elements=["H", "O"], inputs=mq.Inputs(node_features=1), channels=8, layers=1)
    return mq.Model(net, [mq.heads.Velocity(**options)]).double()


WATER = mq.Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1], x=[[0.5], [0.5], [0.5]])


def test_no_way_is_farther_than_the_bound_and_short_ones_stay():
    made, plain = model(farthest=20.0), model(farthest=None)
    head, free = (m.heads["flow_velocity"] for m in (made, plain))
    graph = mq.connect(WATER, 5.0)
    features = made.backbone(graph)
    wild = Features(
        blocks={k: v * (1e12 if k == "1o" else 1) for k, v in features.blocks.items()},
        coordination=features.coordination,
    )
    speed, unbound = (h(graph, wild).detach().norm(dim=1).max() for h in (head, free))
    assert speed <= 2 * 20 / (0.5 + 0.1) and unbound > 1e6
    way = free.vectors(features)
    shrunk = (1 + way.square().sum(1) / 400).rsqrt()
    wanted = (way * shrunk[:, None] - (way * shrunk[:, None]).mean(0)) / 0.6
    torch.testing.assert_close(head(graph, features), wanted)


def test_a_training_goes_on_after_features_that_explode():
    made = model()
    graph = mq.connect(WATER, 5.0)
    with torch.no_grad():
        for parameter in made.heads["flow_velocity"].parameters():
            parameter *= 1e6
    loss = made(graph)["flow_velocity"].square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)
    assert float(loss.detach()) <= 3 * (2 * 20 / 0.6) ** 2


def test_files_of_before_have_no_bound(tmp_path):
    path = mq.save(model(farthest=None), tmp_path / "m.safetensors")

    def older(header):
        header["format"] = 6
        assert header["model"]["predict"][0]["options"].pop("farthest", 0) is None

    rewrite(path, older)
    assert mq.load(path).heads["flow_velocity"].farthest is None
    assert mq.load(mq.save(model(), tmp_path / "new.safetensors")).heads["flow_velocity"].farthest == 20.0
