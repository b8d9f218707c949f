"""Intervals of atoms, and scaled ones: structures are what is exchangeable, coverage holds, messages help."""

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError
from molequi.inference import coverage
from molequi.inference.conformal import Scores

DATA = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))


@pytest.fixture(scope="module")
def trusted():
    torch.manual_seed(0)
    backbone = mq.PaiNN(elements=["C", "H", "O"], cutoff=3.0, channels=6, layers=1)
    model = mq.Model(backbone, ["energy", "forces"]).double().eval()
    model.standardize(DATA[:20].statistics(3.0))
    return mq.laplace(model, DATA[:20], DATA[20:60], progress=False)


def test_half_width_by_hand():
    """Two structures of 1 and 4 components: each has the weight 1/3, the missing third is the new one."""
    scores = Scores(np.array([5.0, 1.0, 2.0, 3.0, 4.0]), np.array([0, 1, 1, 1, 1]))
    assert (
        scores.half_width(1 / 12) == 1.0 and scores.half_width(1 / 3) == 4.0 and scores.half_width(0.6) == 5.0
    )
    one_each = Scores(np.array([3.0, 1.0, 2.0, 4.0]), np.arange(4))
    assert one_each.half_width(0.6) == 3.0  # the split-conformal ⌈5 · 0.6⌉ = 3rd


def test_coverage_holds_though_components_of_a_structure_are_alike():
    """Structures with a size of error of their own, large ones worse: mean coverage over many repetitions."""
    rng = np.random.default_rng(0)

    def structures(count):
        sizes = rng.integers(1, 30, count)
        return [np.abs(rng.standard_normal()) * m * rng.uniform(0.9, 1.1, m) for m in sizes]

    found, pooled = [], []
    for _ in range(400):
        held, new = structures(30), structures(1)[0]
        rows = np.repeat(np.arange(30), [len(one) for one in held])
        found.append(np.mean(new <= Scores(np.concatenate(held), rows).half_width(0.9)))
        pooled.append(np.mean(new <= np.quantile(np.concatenate(held), 0.9)))
    assert np.mean(found) > 0.9 - 2 * np.std(found) / 20
    assert np.mean(pooled) > np.mean(found)  # the pool counts large structures often, and those are worse


def test_scaled_intervals_follow_the_standard_deviation(trusted):
    data = DATA[60:100]
    results = mq.predict(trusted, data, interval=0.8, scaled=True, progress=False)
    kept = mq.predict(trusted, data, interval=0.8, scaled=True, calibration=DATA[20:60], progress=False)
    factors = {}
    for name in ("energy", "forces"):
        for one, other in zip(results, kept):
            half = (one[f"{name}_high"] - one[f"{name}_low"]) / 2
            std = one[f"{name}_std"]
            ratio = half / (std[:, None] if half.ndim > std.ndim else std)
            factors.setdefault(name, []).append(ratio.ravel())
            assert np.allclose(one[f"{name}_low"], other[f"{name}_low"], rtol=2e-3, atol=2e-3)
    for ratios in factors.values():
        assert np.ptp(np.concatenate(ratios)) < 1e-6 * np.concatenate(ratios).mean()
    report = coverage(trusted, data, interval=0.8, scaled=True)
    by_hand = [
        np.mean(
            (one["forces_low"] <= g.targets["forces"].numpy())
            & (g.targets["forces"].numpy() <= one["forces_high"])
        )
        for one, g in zip(results, data)
    ]
    assert report["forces"].share == pytest.approx(np.mean(by_hand)) and 0.7 < report["forces"].share < 0.9
    assert report["forces"].lowest == pytest.approx(min(by_hand)) and "within the 80% interval" in str(
        report["forces"]
    )


def test_files_keep_the_scores(trusted, tmp_path):
    mq.save(trusted, tmp_path / "model.safetensors")
    one = mq.predict(trusted, DATA[:2], interval=0.8, scaled=True, progress=False)[0]
    again = mq.predict(tmp_path / "model.safetensors", DATA[:2], interval=0.8, scaled=True, progress=False)[0]
    assert np.array_equal(one["forces_low"], again["forces_low"])
    mq.predict(trusted, DATA[:2], interval=0.8, scaled=True, progress=False, out=tmp_path / "o.xyz")
    import ase.io

    atoms = ase.io.read(tmp_path / "o.xyz", index=0)
    assert np.allclose(atoms.arrays["forces_low"], one["forces_low"], atol=1e-6)


def test_what_is_missing_is_named(trusted):
    with pytest.raises(
        ConfigError, match="scaled=True needs standard deviations; give an Ensemble, or mq.laplace"
    ):
        mq.predict(trusted.mean_model, DATA[:2], interval=0.9, scaled=True, progress=False)
    with pytest.raises(ConfigError, match="scaled=True would have no effect with no interval"):
        mq.predict(trusted, DATA[:2], scaled=True, progress=False)
    with pytest.raises(
        ConfigError,
        match="interval=0.99 needs 99 errors of energy or more, and there are 40 kept in the model",
    ):
        mq.predict(trusted, DATA[:2], interval=0.99, scaled=True, progress=False)
    many = mq.Ensemble([trusted.mean_model, trusted.mean_model])
    with pytest.raises(ConfigError, match=r"there are 0 kept in the model; give held-out data.*calibration="):
        mq.predict(many, DATA[:2], interval=0.9, scaled=True, progress=False)


def test_data_without_labels_are_named(trusted):
    bare = mq.Dataset([graph.replace(targets={}) for graph in DATA[:12]])
    with pytest.raises(ConfigError, match="coverage: the data have no labels of energy, forces; wanted some"):
        coverage(trusted, bare, scaled=True)
    with pytest.raises(ConfigError, match="there are 0 in the calibration data"):
        mq.predict(trusted, DATA[0], interval=0.9, scaled=True, calibration=bare, progress=False)


def test_calibration_by_other_data_changes_no_interval(trusted):
    """What the file keeps are errors in standard deviations."""
    other = trusted.calibrated({"forces": 2.0, "energy": 3.0})
    old, new = (
        mq.predict(one, DATA[0], interval=0.8, scaled=True, progress=False)[0] for one in (trusted, other)
    )
    assert np.allclose(new["forces_std"], 2 * old["forces_std"])
    for name in ("energy_low", "energy_high", "forces_low", "forces_high"):
        assert np.allclose(new[name], old[name])
