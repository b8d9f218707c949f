"""Processor time as the limit of a training, and what its steps cost."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError
from molequi.ops.memory import PeakMemory
from molequi.training import clock as module
from molequi.training.clock import Clock, processor_seconds
from molequi.training.stopwatch import Cost, Stopwatch

MB = 1e6


def test_processor_time_is_work_and_not_waiting():
    started, wall = processor_seconds(), time.monotonic()
    time.sleep(0.3)
    waited = processor_seconds() - started
    while processor_seconds() - started < waited + 0.1:
        sum(range(10_000))
    assert waited < 0.1 and time.monotonic() - wall >= 0.4


def test_everything_counts_in_processor_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "processor_seconds", lambda: now[0])
    model = mq.accelerate(mq.Model(mq.EGNN(elements=["H"])))
    clock = Clock(model, "processor")
    now[0] += 10.0
    model.program.seconds += 4.0  # compilation, which the clock of the wall leaves out
    assert clock.seconds() == 10.0
    with clock.stopped():
        now[0] += 5.0
    assert clock.seconds() == 15.0
    clock.set(50.0)
    now[0] += 3.0
    assert clock.seconds() == 53.0


def test_max_minutes_of_processor_time(parts, model, quick):
    started = processor_seconds()
    options = {name: value for name, value in quick.items() if name != "epochs"}
    result = mq.fit(model, **parts, **options, max_minutes=0.01, compute={"clock": "processor"})
    assert result.stopped == "time is up" and 0.6 <= result.history[-1]["seconds"] < 1.0
    assert processor_seconds() - started >= 0.6


def test_records_of_earlier_trainings_stay_valid():
    options = mq.training.TrainingOptions
    assert "clock" not in options().record()
    assert options(compute=mq.Compute(clock="processor")).record()["clock"] == "processor"


def test_workers_and_gpus_have_no_processor_time(parts, model, quick, monkeypatch):
    with pytest.raises(ConfigError, match="clock='processor' does not see the time of worker processes"):
        mq.Compute(clock="processor", workers=2)
    with pytest.raises(ConfigError, match="clock: found 'cpu'"):
        mq.Compute(clock="cpu")
    gpu = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(sys.modules["molequi.training.fit"], "connect", lambda *_: gpu)
    with pytest.raises(
        ConfigError, match="does not see the time of cuda; take clock='wall', or train on the CPU"
    ):
        mq.fit(model, **parts, **quick, compute={"clock": "processor"})


def test_a_stopwatch_measures_and_changes_nothing(parts, make, quick):
    plain = mq.fit(make.tiny(), **parts, **quick)
    watched = mq.fit(make.tiny(), **parts, **quick, terms=[Stopwatch("wall")])
    assert watched.history[-1]["valid_loss"] == plain.history[-1]["valid_loss"]
    cost = watched.reports["cost"]
    assert isinstance(cost, Cost) and 0 < cost.step * 8 < watched.history[-1]["seconds"]
    assert "ms a step" in str(cost) and str(Cost(None, None)) == "cost: not measured"


def test_a_stopwatch_goes_on():
    first = Stopwatch("processor")
    first.times, first.peak = [1.0, 2.0, 9.0], 5 * MB
    second = Stopwatch("processor")
    second.restore(first.state())
    assert second.report(None) == Cost(2.0, 5 * MB)  # the median


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="peak memory is measured on Linux and CUDA alone"
)
def test_peak_memory_is_that_of_what_was_freed_too():
    before = np.ones(int(30 * MB))  # 240 MB, freed before the measurement begins
    del before
    peak = PeakMemory(torch.device("cpu"))
    if peak.bytes() is None:
        pytest.skip("needs a system on which a process may reset its peak memory (not so in some containers)")
    assert peak.bytes() < 40 * MB
    inside = np.ones(int(20 * MB))  # 160 MB
    del inside
    assert 150 * MB < peak.bytes() < 220 * MB
