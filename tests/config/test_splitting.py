"""What a run file can say of its split beside `Dataset.split`."""

import collections

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.config.splitting import split_data
from molequi.data.splits import block_groups, choose, stratified
from molequi.errors import ConfigError, DataError


def clouds(classes, labels=None):
    """Clouds of two points with a class each."""
    q = mq.Quantity("shape", classes=["a", "b", "c"])
    graphs = [
        mq.Graph.single(
            [[0, 0, 0], [1, 0, float(k)]], ["X", "X"], targets={"shape": torch.tensor([float(c)]).double()}
        )
        for k, c in enumerate(classes)
    ]
    return mq.Dataset(graphs, quantities={"shape": q}, info={"place": list(range(len(graphs)))})


@pytest.mark.parametrize("seed", range(5))
def test_each_stratum_has_its_share_of_every_part(seed):
    strata = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    parts = stratified(100, [0.8, 0.1, 0.1], ["train", "valid", "test"], seed=seed, strata=strata)
    counts = [collections.Counter(strata[k] for k in part) for part in parts]
    assert [dict(c) for c in counts] == [
        {"a": 40, "b": 24, "c": 16},
        {"a": 5, "b": 3, "c": 2},
        {"a": 5, "b": 3, "c": 2},
    ]
    assert sorted(k for part in parts for k in part) == list(range(100))
    assert parts == stratified(100, [0.8, 0.1, 0.1], ["train", "valid", "test"], seed=seed, strata=strata)


def test_stratified_parts_are_random_and_have_their_sizes():
    strata = np.random.RandomState(0).choice(list("abcde"), 97).tolist()
    one, two = (stratified(97, [60, 20], ["train", "valid"], seed=s, strata=strata) for s in (0, 1))
    assert [len(p) for p in one] == [60, 20] and one != two
    shares = collections.Counter(strata)
    for name, total in shares.items():
        assert abs(sum(strata[k] == name for k in one[0]) - 60 / 97 * total) < 3
    at_random = choose(97, [60, 20], ["train", "valid"], seed=0, groups=None)
    assert at_random != one
    with pytest.raises(DataError, match="lists of indices are a choice already"):
        stratified(4, [[0], [1]], ["train", "valid"], seed=0, strata="aabb")
    with pytest.raises(DataError, match="wants 5 structures; there are 4"):
        stratified(4, [3, 2], ["train", "valid"], seed=0, strata="aabb")


def test_blocks_are_successive_and_stay_together():
    data = clouds([0] * 100)
    parts = split_data(data, {"split": {"train": 0.8, "valid": 0.2}, "by": "blocks"}, ["shape"])
    assert {name: len(part) for name, part in parts.items()} == {"train": 80, "valid": 20}
    places = set(parts["valid"].info["place"])
    assert {p // 5 for p in places} == {min(b) // 5 for b in [[p] for p in places if p % 5 == 0]}
    assert all(set(range(5 * (p // 5), 5 * (p // 5) + 5)) <= places for p in places)
    assert block_groups(100) == [k // 5 for k in range(100)]


def test_by_class_and_by_column_of_a_run_file():
    data = clouds([0] * 20 + [1] * 10)
    parts = split_data(
        data, {"split": {"train": 0.8, "valid": 0.2}, "stratify": "shape", "seed": 3}, ["shape"]
    )
    assert parts["valid"].values("shape").tolist().count(1.0) == 2
    assert split_data(data, {}, ["shape"])["train"] is data
    with pytest.raises(DataError, match=r"stratify='shap': no such column .*did you mean 'shape'"):
        split_data(data, {"split": {"train": 0.8, "valid": 0.2}, "stratify": "shap"}, ["shape"])


def test_structures_without_a_label_are_left_out_on_request():
    classes = [0.0, float("nan"), 1.0, float("nan"), 2.0]
    data = clouds(classes)
    parts = split_data(data, {"labelled": True, "split": {"train": 2, "valid": 1}}, ["shape"])
    assert sorted(k for part in parts.values() for k in part.info["place"]) == [0, 2, 4]
    with pytest.raises(DataError, match="none of the 2 structures has a label of shape"):
        split_data(data[[1, 3]], {"labelled": True}, ["shape"])


def test_contradictions_are_found_before_data_are_read():
    def config(**options):
        return {
            "data": {"points": {"path": "a.npz", **options}},
            "backbone": {"PaiNN": {"cutoff": None}},
            "predict": [{"name": "shape", "classes": ["a", "b"]}],
            "train": {"epochs": 1},
        }

    half = {"train": 0.5, "valid": 0.5}
    with pytest.raises(ConfigError, match=r"data.points: by=x keeps .* and stratify=y spreads them"):
        mq.run(config(split=half, by="x", stratify="y"))
    with pytest.raises(ConfigError, match=r"data.points.split.vali: no such part; did you mean 'valid'"):
        mq.run(config(split={"train": 0.5, "vali": 0.5}))
    with pytest.raises(ConfigError, match=r"data.points.stratify: has no effect without split"):
        mq.run(
            config(stratify="y")
            | {"data": {"points": {"path": "a", "stratify": "y"}, "valid": {"points": {"path": "b"}}}}
        )
