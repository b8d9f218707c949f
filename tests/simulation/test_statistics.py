"""Errors by blocking against processes whose error is known on paper."""

import re

import numpy as np
import pytest

from molequi.errors import DataError
from molequi.simulation import block_average, equilibration


def autoregressive(n, memory, seed):
    """x_t = a x_{t-1} + noise, with variance 1 and correlation time (1 + a) / (1 - a)."""
    noise = np.random.default_rng(seed).normal(0, np.sqrt(1 - memory**2), n)
    x = np.empty(n)
    x[0] = noise[0] / np.sqrt(1 - memory**2)
    for t in range(1, n):
        x[t] = memory * x[t - 1] + noise[t]
    return x


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_the_error_is_that_of_the_process(memory):
    """σ² (1 + a) / (1 - a) / n; the plain formula would be too small by √19 for a = 0.9."""
    n = 1 << 14
    wanted = np.sqrt((1 + memory) / (1 - memory) / n)
    found = [block_average(autoregressive(n, memory, seed)) for seed in range(20)]
    assert np.mean([f.error for f in found]) == pytest.approx(wanted, rel=0.1)
    inside = np.mean([abs(f.mean) < 2 * f.error for f in found])
    assert inside >= 0.8
    assert all(f.count == n and f.std == pytest.approx(1, abs=0.1) for f in found)


def test_short_and_constant_series():
    short = block_average(range(15))
    assert short.mean == 7 and np.isnan(short.error) and str(short) == "7"
    constant = block_average([2.5] * 64)
    assert constant.mean == 2.5 and constant.error == 0
    assert re.fullmatch(
        r"\d{3}\.\d\d ± 0\.\d\d", str(block_average(np.random.default_rng(0).normal(300, 10, 400)))
    )
    assert np.isnan(block_average([1.0]).std)
    for values, words in [
        ([], "wanted a series"),
        ([[1.0]], "wanted a series"),
        ([1, np.nan], "value 1 of the series is nan"),
    ]:
        with pytest.raises(DataError, match=words):
            block_average(values)


def test_equilibration_finds_the_end_of_a_decay():
    noise = autoregressive(4000, 0.5, 0)
    assert equilibration(noise) < 800
    decay = noise + 1e4 + 50 * np.exp(-np.arange(4000) / 100)
    assert 250 < equilibration(decay) < 1200
    assert equilibration([3.0, 1.0]) == 0
    kept = decay[equilibration(decay) :]
    assert abs(kept.mean() - 1e4) < 5 * block_average(kept).error
    assert abs(decay.mean() - 1e4) > 5 * block_average(kept).error  # control
