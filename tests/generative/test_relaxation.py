"""Relaxed structures from unrelaxed ones: learnt on pairs, also of crystals, and symmetric."""

import pytest
import torch

import molequi as mq
from molequi.errors import DataError
from molequi.generative import FlowMatching, audit_flow, paths, read_samples

from .flow_kit import QUIET, flow_model

WATER = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], dtype=torch.float64)
RELAXED = mq.Quantity("relaxed", per="node", rank=1, point=True, unit="Å")


def pairs(count, seed):
    """Stretched and rattled waters with their relaxed positions, in any orientation."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for _ in range(count):
        stretch = 1 + 0.4 * torch.rand((), generator=generator, dtype=torch.float64)
        rattle = 0.05 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        graphs.append(
            mq.Graph.single(WATER * stretch + rattle, ["O", "H", "H"], targets={"relaxed": WATER.clone()})
        )
    return mq.Dataset(graphs, quantities={"relaxed": RELAXED})


def lengths(graph):
    return torch.pdist(graph.pos)


def test_a_learnt_relaxation_leads_most_of_the_way(tmp_path):
    data = paths(pairs(40, 0), "relaxation")
    model = flow_model(data, channels=16)
    model = mq.fit(
        model, data[:32], data[32:], epochs=30, batch_size=8, lr=1e-2, terms=[FlowMatching()], logging=QUIET
    ).model
    unseen = pairs(8, 1)
    found = mq.sample(model, unseen, steps=5, out=tmp_path / "relaxed.xyz", progress=False)
    wanted = torch.pdist(WATER)
    before = torch.stack([lengths(g) - wanted for g in unseen]).abs().mean()
    after = torch.stack([lengths(g) - wanted for g in found]).abs().mean()
    assert after < 0.4 * before
    assert len(read_samples(tmp_path / "relaxed.xyz")) == 8 and len(found.starts) == 8
    assert audit_flow(model, unseen[:3], steps=4).passed


def test_crystals_keep_their_cell():
    cell = 4.0 * torch.eye(3, dtype=torch.float64)
    place = torch.tensor([[0.1, 0, 0], [2.0, 2.0, 1.9]], dtype=torch.float64)
    targets = {"relaxed": torch.tensor([[0.0, 0, 0], [2.0, 2.0, 2.0]], dtype=torch.float64)}
    graph = mq.Graph.single(place, ["B", "N"], cell=cell, pbc=True, targets=targets)
    data = paths(mq.Dataset([graph] * 4, quantities={"relaxed": RELAXED}), "relaxation", scale=0.05)
    inputs = mq.Inputs(node_features=1, node_vectors=2)
    net = mq.EGNN(elements=data.elements, cutoff=4.0, inputs=inputs, channels=8, layers=1)
    model = mq.Model(net, [mq.heads.Velocity()])
    model = mq.fit(model, data[:3], data[3:], epochs=8, lr=1e-2, terms=[FlowMatching()], logging=QUIET).model
    found = mq.sample(model, data[:1], each=2, steps=3, progress=False)
    assert torch.equal(found[0].cell[0], cell) and bool(found[0].pbc.all())
    assert not torch.allclose(found[0].pos, found[1].pos)  # noise around the start
    assert audit_flow(model, data[:1], steps=3).passed
    with pytest.raises(DataError, match="2 dimensions; flows are made in 3"):
        mq.sample(model, [mq.Graph.single([[0, 0], [1, 0]], ["B", "N"])], progress=False)
