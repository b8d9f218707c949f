"""Spreads against errors: numbers that follow from a law, and factors that are found again."""

import numpy as np
import pytest
import torch

from molequi import Ensemble, evaluate, save
from molequi.errors import ConfigError
from molequi.inference import Calibration, calibration
from molequi.quantities import KNOWN


def drawn(factor, law="normal", count=20_000):
    """Errors from a law whose standard deviation is `factor` times a std that differs from value to value."""
    rng = np.random.default_rng(0)
    std = np.exp(rng.normal(size=count))
    unit = rng.standard_normal(count) if law == "normal" else rng.uniform(-np.sqrt(3), np.sqrt(3), count)
    return Calibration(KNOWN["gap"], "eV", factor * std * unit, std)


def test_calibrated_data_are_found_to_be_so():
    one = drawn(1.0)
    assert one.scale == pytest.approx(1, abs=0.03)
    assert one.within == pytest.approx((0.6827, 0.9545), abs=0.01)
    assert one.miscalibration < 0.01
    std, error = one.bins(10)
    assert np.allclose(error, std, rtol=0.1) and np.all(np.diff(std) > 0)


@pytest.mark.parametrize("factor, within", [(3.0, (0.2611, 0.4950)), (0.5, (0.9545, 0.99994))])
def test_stds_that_are_too_small_or_too_large(factor, within):
    """Fractions of a normal law within 1/factor and 2/factor standard deviations."""
    one = drawn(factor)
    assert one.scale == pytest.approx(factor, rel=0.03)
    assert one.within == pytest.approx(within, abs=0.01) and one.miscalibration > 0.1
    again = one.scaled(one.scale)
    assert again.scale == pytest.approx(1, abs=1e-12) and again.miscalibration < 0.02
    assert again.within == pytest.approx((0.6827, 0.9545), abs=0.02)


def test_miscalibration_at_its_extremes_and_of_another_law():
    size = np.ones(1000)
    assert Calibration(KNOWN["gap"], "eV", 1e9 * size, size).miscalibration == pytest.approx(0.5, abs=1e-3)
    assert Calibration(KNOWN["gap"], "eV", 0 * size, size).miscalibration == pytest.approx(0.5, abs=1e-3)
    assert Calibration(KNOWN["gap"], "eV", size, 0 * size).miscalibration == pytest.approx(0.5, abs=1e-3)
    assert Calibration(KNOWN["gap"], "eV", size, 0 * size).scale == np.inf
    flat = drawn(1.0, law="uniform")  # as large as the std says, and yet no normal law: 1/√3 of it within one
    assert (
        flat.scale == pytest.approx(1, abs=0.03)
        and flat.within == pytest.approx((0.5774, 1.0), abs=0.01)
        and flat.miscalibration > 0.03
    )


@pytest.fixture
def many(make):
    members = [make.tiny(seed=seed) for seed in range(3)]
    for member in members:
        member.standardize(make.morse(8).statistics(4.0))
    return Ensemble([member.double() for member in members])


def test_of_an_ensemble_by_hand(many, data, tmp_path):
    path = save(many, tmp_path / "e.safetensors")
    found = calibration(path, data)
    outs = [many(g) for g in data.connected(4.0)]
    force = np.concatenate(
        [(out["forces"] - g.targets["forces"]).numpy().ravel() for out, g in zip(outs, data)]
    )
    std = np.concatenate([np.repeat(out["forces_std"].numpy(), 3) for out in outs])
    assert np.allclose(found["forces"].error, force, atol=1e-12) and np.allclose(
        found["forces"].std, std, atol=1e-12
    )
    energy = [float(out["energy_std"]) / g.num_nodes for out, g in zip(outs, data)]
    assert np.allclose(found["energy"].std, energy, atol=1e-12) and found["energy"].unit == "eV/atom"
    errors = evaluate(many, data)
    assert np.sqrt(np.mean(found["energy"].error ** 2)) == pytest.approx(
        errors["energy_per_atom_rmse"], rel=1e-9
    )
    assert "within two (95%)" in str(found["forces"]) and f"{found['forces'].scale:.3g} ×" in str(
        found["forces"]
    )
    calibrated = many.calibrated({name: c.scale for name, c in found.items()})
    assert [c.scale for c in calibration(calibrated, data).values()] == pytest.approx([1.0, 1.0], abs=1e-12)


def test_what_is_not_known_is_left_out(many, make):
    data = make.morse(8, missing=(1, 3))
    assert len(calibration(many, data)["forces"].error) == 3 * sum(
        g.num_nodes for k, g in enumerate(data) if k not in (1, 3)
    )
    bare = type(data)([g.replace(targets={"energy": g.targets["energy"]}) for g in data])
    assert list(calibration(many, bare)) == ["energy"]
    with pytest.raises(
        ConfigError,
        match=r"one Model, which gives no standard deviation; make several with fit\(..., seed=\[0, 1, 2\]\)",
    ):
        calibration(many.members[0], data)
    assert torch.is_grad_enabled()
