"""Before a training: silent for good data, one warning for each fault, and quick."""

import warnings

import pytest
import torch

import molequi as mq
from molequi.errors import DataWarning
from molequi.lint.checking import warn_of_faults


def told(parts):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_faults(parts)
    return [str(one.message) for one in caught if issubclass(one.category, DataWarning)]


@pytest.mark.parametrize("name", ["ethanol_300K.xyz", "ethanol_600K.xyz", "bn.xyz", "isolated_atoms.xyz"])
def test_silent_for_shipped_frames(name):
    data = mq.read_extxyz(mq.shipped(name))
    assert told({"train": data, "valid": data[:2]}) == []
    half = max(len(data) // 2, 1)
    for start in (0, half - 1):
        assert told({"train": data[start : start + half]}) == []


def test_silent_for_shipped_molecules_and_clouds():
    assert told({"train": mq.read_npz(mq.shipped("molecules.npz"), index=":300")}) == []
    assert told({"train": mq.read_points(mq.shipped("shapes.npz"), index=":50")}) == []


@pytest.mark.parametrize("size", [8, 20, 60, 200])
def test_silent_for_random_parts_of_any_size(size):
    """As the README and the recipes split data: random parts, in which neighbors are not neighbors in time."""
    data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))
    for seed in range(5):
        train, valid = data.split([size, size // 4], seed=seed)
        assert told({"train": train, "valid": valid}) == []
    nitride = mq.read_extxyz(mq.shipped("bn.xyz"))
    for seed in range(3):
        train, valid = nitride.split([min(size, 120), 10], seed=seed)
        assert told({"train": train, "valid": valid}) == []


def test_a_training_with_gradients_warns_and_can_be_told_not_to(tmp_path):
    data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index=":60")
    wrong = [g.replace(targets={"energy": g.targets["energy"], "forces": -g.targets["forces"]}) for g in data]
    torch.manual_seed(0)
    options = dict(epochs=1, batch_size=20, logging={"progress": False})

    def fit(train):
        model = mq.Model(mq.EGNN(elements=train.elements, channels=4, layers=1), ["energy", "forces"])
        return mq.fit(model, train, mq.Dataset(wrong[50:], allow=train.allow), **options)

    with pytest.warns(DataWarning, match="wrong sign") as caught:
        fit(mq.Dataset(wrong[:50]))
    assert "allow=['force-unit']" in "".join(str(one.message) for one in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        fit(mq.Dataset(wrong[:50], allow=["force-unit", "energy-force-scale"]))


def test_a_large_set_is_sampled(monkeypatch):
    from molequi.lint import checking

    data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))
    many = data + data + data
    seen = []
    monkeypatch.setattr(checking, "_by_labels", lambda frames, allow: seen.append(len(frames)) or [])
    told({"train": many, "valid": data})
    assert seen[0] <= 600
