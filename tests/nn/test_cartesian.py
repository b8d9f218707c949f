"""Vectors that are given with the nodes: velocities enter every layer of EGNN, so that depth does not multiply them; PaiNN starts from any."""

import pytest
import torch

import molequi as mq
from molequi.nn.radial import edges_of


def structures(n):
    torch.manual_seed(0)
    given = [(torch.randn(5, 3), torch.randn(5, 3)) for _ in range(n)]
    moved = mq.Quantity(name="moved", per="node", rank=1, point=True)
    return moved, mq.data.Dataset(
        [mq.Graph.single(x, vel=v, targets={"moved": x.double() + v}) for x, v in given],
        quantities={"moved": moved},
    )


@pytest.mark.parametrize("layers", [1, 4, 8])
def test_steps_are_of_the_order_of_the_velocity(layers):
    """Before training: a step that grew by a factor with each layer would be thousands of times the velocity."""
    moved, data = structures(20)
    model = mq.Model(
        mq.EGNN(elements=[0], cutoff=None, channels=64, layers=layers, inputs=mq.Inputs(velocity=True)),
        predict=[moved],
    )
    model.standardize(data.statistics(None))
    for graph in data.connected(None):
        step = model(graph)["moved"] - graph.pos
        assert 1e-4 < step.norm() < 10 * graph.vel.norm()


def test_free_flight_is_along_the_velocity():
    model = mq.Model(
        mq.EGNN(elements=[0], cutoff=None, channels=8, layers=3, inputs=mq.Inputs(velocity=True)),
        predict=[structures(1)[0]],
    )
    vel = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    graph = mq.connect(mq.Graph.single(torch.zeros(1, 3), vel=vel), None)
    step = model(graph)["moved"]
    assert step.norm() > 1e-4
    assert torch.linalg.cross(step, vel).norm() < 1e-6 * step.norm()


def test_painn_starts_from_given_vectors():
    """What points along a given vector alone can be learnt: gravity, without a neighbour in its direction."""
    model = mq.Model(
        mq.PaiNN(elements=[0], cutoff=None, channels=8, layers=2, inputs=mq.Inputs(node_vectors=1)),
        predict=[structures(1)[0]],
    )
    up = torch.tensor([[[0.0, 0.6, -0.8]]], dtype=torch.float64)
    step = model(mq.connect(mq.Graph.single(torch.zeros(1, 3), vec=up), None))["moved"]
    assert step.norm() > 1e-4
    assert torch.linalg.cross(step, up[:, 0]).norm() < 1e-6 * step.norm()


def test_a_layer_sees_where_the_nodes_have_moved_to():
    """Moved before the layer, or placed there from the start: the same messages and steps."""
    generator = torch.Generator().manual_seed(1)
    pos, moved = (torch.randn(6, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    torch.manual_seed(0)
    model = mq.EGNN(elements=[0], cutoff=None, channels=8, layers=1).double()
    h, scale = (
        torch.randn(6, 8, dtype=torch.float64, generator=generator),
        torch.tensor(0.5, dtype=torch.float64),
    )

    def stepped(start, displacement):
        edges = edges_of(mq.connect(mq.Graph.single(start), None), None, torch.float64)
        return model.layers[0](h, displacement, None, edges, None, scale)

    there, here = stepped(pos + moved, torch.zeros_like(pos)), stepped(pos, moved)
    unmoved = stepped(pos, torch.zeros_like(pos))
    for a, b, c in zip(there, here, unmoved):
        assert torch.allclose(a, b, atol=1e-12) and not torch.allclose(a, c, atol=1e-3)
