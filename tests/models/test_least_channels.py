"""A layer norm of one number is zero, so that networks with layer norms need two channels."""

import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError
from molequi.nn import FeatureNorm, GroupPointConvolution, IrrepsNorm
from molequi.symmetry import group

NORMED = {  # what else they need with two channels
    "Equiformer": dict(hidden=2, heads=1, layers=1, l_max=1),
    "GroupConvNet": {},
    "PaiNN": {},
    "PointHierarchy": {},
    "Transformer": dict(heads=1),
}


@pytest.mark.parametrize("name", NORMED)
def test_one_channel_is_too_few_and_two_are_enough(name):
    with pytest.raises(ConfigError, match="channels: found 1"):
        getattr(mq, name)(elements=["X"], channels=1, **NORMED[name])
    torch.manual_seed(0)
    kind = mq.Quantity("kind", classes=["ball", "rod"])
    backbone = getattr(mq, name)(elements=["X"], channels=2, **NORMED[name])
    model = mq.Model(backbone, [kind])
    clouds = [mq.Graph.single(torch.randn(6, 3)) for _ in range(2)]
    one, two = (model(mq.connect(g, backbone.cutoff, backbone.k))["kind"] for g in clouds)
    assert (one - two).abs().max() > 0


def test_layers_of_one_channel():
    with pytest.raises(ConfigError, match="IrrepsNorm: found channels=1; wanted 2 or more"):
        IrrepsNorm(1, 1)
    with pytest.raises(ConfigError, match="FeatureNorm: found channels=1"):
        FeatureNorm(1)
    with pytest.raises(ConfigError, match="GroupPointConvolution: found channels=1"):
        GroupPointConvolution(group("T", 3).elements, 1, 4)
