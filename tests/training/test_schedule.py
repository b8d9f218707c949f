"""Learning rates at known points; averaged weights against the sum written out."""

import math

import pytest
import torch
from torch import nn

from molequi.training.options import Schedule
from molequi.training.schedule import Average, LearningRate


def test_cosine_ends_at_the_floor_and_passes_the_middle():
    rate = LearningRate(Schedule("cosine", floor=0.02))
    assert (
        rate(0, 0.0) == 1
        and rate(5, 0.5) == pytest.approx(0.5)
        and rate(10, 1.0) == 0.02
        and rate(11, 1.2) == 0.02
    )
    assert rate(1, 0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_warmup_rises_linearly():
    rate = LearningRate(Schedule("constant", warmup=2.0))
    assert [rate(e, 0.0) for e in (0.0, 0.5, 1.0, 2.0, 9.0)] == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_plateau_waits_and_falls():
    rate = LearningRate(Schedule("plateau", factor=0.5, patience=1))
    found = []
    for loss in (3.0, 2.0, 2.0, 2.5, 1.0, 1.1, 1.1):
        rate.measured(loss)
        found.append(rate(1, 0.5))
    assert found == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    again = LearningRate(Schedule("plateau", factor=0.5, patience=1))
    again.restore(rate.state())
    assert again(1, 0.5) == 0.25


def test_average_is_the_exponential_sum():
    model = nn.Linear(2, 1).double()
    average = Average(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(1, 120):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert torch.allclose(average.ready().weight, expected, rtol=1e-12)
    assert (
        not average.model.training and not average.model.weight.requires_grad and model.weight.requires_grad
    )


def test_average_takes_buffers_as_they_are():
    model = nn.BatchNorm1d(2)
    average = Average(model, 0.99)
    model(torch.randn(8, 2) + 5)
    assert torch.equal(average.ready().running_mean, model.running_mean)
