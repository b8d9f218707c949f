"""Vectors that are given with the nodes: velocities enter every layer of EGNN, so that depth does not multiply them; PaiNN starts from any."""

import pytest
import torch

import molequi as mq


def structures(n):
    torch.manual_seed(0)
    given = [(torch.randn(5, 3), torch.randn(5, 3)) for _ in range(n)]
    moved = mq.Quantity(name="moved", per="node", rank=1, point=True)
    return moved, mq.data.Dataset([mq.Graph.single(x, vel=v, targets={"moved": x.double() + v}) for x, v in given], quantities={"moved": moved})


@pytest.mark.parametrize("layers", [1, 4, 8])
def test_steps_are_of_the_order_of_the_velocity(layers):
    """Before training: a step that grew by a factor with each layer would be thousands of times the velocity."""
    moved, data = structures(20)
    model = mq.Model(mq.EGNN(elements=[0], cutoff=None, channels=64, layers=layers, velocity=True), predict=[moved])
    model.standardize(data.statistics(None))
    for graph in data.connected(None):
        step = model(graph)["moved"] - graph.pos
        assert 1e-4 < step.norm() < 10 * graph.vel.norm()


def test_free_flight_is_along_the_velocity():
    model = mq.Model(mq.EGNN(elements=[0], cutoff=None, channels=8, layers=3, velocity=True), predict=[structures(1)[0]])
    vel = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    graph = mq.connect(mq.Graph.single(torch.zeros(1, 3), vel=vel), None)
    step = model(graph)["moved"]
    assert step.norm() > 1e-4
    assert torch.linalg.cross(step, vel).norm() < 1e-6 * step.norm()


def test_painn_starts_from_given_vectors():
    """What points along a given vector alone can be learnt: gravity, without a neighbour in its direction."""
    model = mq.Model(mq.PaiNN(elements=[0], cutoff=None, channels=8, layers=2, node_vectors=1), predict=[structures(1)[0]])
    up = torch.tensor([[[0.0, 0.6, -0.8]]], dtype=torch.float64)
    step = model(mq.connect(mq.Graph.single(torch.zeros(1, 3), vec=up), None))["moved"]
    assert step.norm() > 1e-4
    assert torch.linalg.cross(step, up[:, 0]).norm() < 1e-6 * step.norm()
