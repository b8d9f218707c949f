"""Overrides: another reader or backbone takes the place of the one of the file; full names are told."""

import warnings

import pytest

from molequi.config.schema import read_config
from molequi.errors import ConfigError, DataWarning

RUN = {
    "data": {
        "extxyz": {"path": "a.xyz", "keys": {"forces": "F"}, "split": {"train": 0.9, "valid": 0.1}, "seed": 3}
    },
    "backbone": {"EGNN": {"channels": 8, "layers": 2}},
    "predict": ["energy"],
    "train": {"epochs": 1},
}


def test_another_reader_takes_the_place_of_the_old_one_and_keeps_the_split():
    found = read_config(RUN, ["data.smiles.path=x.csv", "data.smiles.column=smi", "predict=[gap]"])
    assert found["data"] == {
        "smiles": {"path": "x.csv", "column": "smi", "split": {"train": 0.9, "valid": 0.1}, "seed": 3}
    }
    assert RUN["data"]["extxyz"]["path"] == "a.xyz"


def test_a_split_of_the_new_reader_counts():
    split = "data.smiles.split={train: 5, valid: 5}"
    found = read_config(RUN, ["data.smiles.path=x.csv", split, "predict=[gap]"])
    assert found["data"]["smiles"]["split"] == {"train": 5, "valid": 5}


def test_parts_with_readers_of_their_own_stay_in_the_users_own_file():
    own = RUN | {"data": RUN["data"] | {"test": {"extxyz": {"path": "t.xyz"}}}}
    found = read_config(own, ["data.npz.path=x.npz"])
    assert found["data"]["test"] == {"extxyz": {"path": "t.xyz"}} and "npz" in found["data"]


def test_the_same_reader_keeps_its_other_options():
    found = read_config(RUN, ["data.extxyz.path=b.xyz"])
    assert found["data"]["extxyz"] == RUN["data"]["extxyz"] | {"path": "b.xyz"}


def test_another_backbone_takes_the_place_of_the_old_one():
    assert read_config(RUN, ["backbone.PaiNN.channels=16"])["backbone"] == {"PaiNN": {"channels": 16}}
    assert read_config(RUN, ["backbone=PaiNN"])["backbone"] == "PaiNN"
    assert read_config(RUN, ["backbone=PaiNN", "backbone.PaiNN.channels=16"])["backbone"] == {
        "PaiNN": {"channels": 16}
    }


def test_two_readers_are_still_an_error():
    with pytest.raises(ConfigError, match="found extxyz and smiles"):
        read_config(RUN | {"data": RUN["data"] | {"smiles": {"path": "x.csv"}}})
    with pytest.raises(ConfigError, match="found"):
        read_config(RUN, ["data.smiles.path=x.csv", "data.sdf.path=x.sdf"])


def test_a_recipe_with_data_of_the_user_leaves_out_what_belongs_to_its_own():
    with pytest.warns(DataWarning, match=r"^recipe demo: data\.test, data\.extxyz\.by") as told:
        found = read_config("demo", ["data.extxyz.path=mine.xyz"])
    assert len(told) == 1 and "train.normalization.reference_energies" in str(told[0].message)
    assert found["data"]["extxyz"]["path"] == "mine.xyz" and "by" not in found["data"]["extxyz"]
    assert "test" not in found["data"] and found["data"]["extxyz"]["split"]
    assert "reference_energies" not in found["train"].get("normalization", {})
    with pytest.warns(DataWarning, match=r"^recipe demo: data\.test, train"):
        found = read_config("demo", ["data.smiles.path=mine.csv", "predict=[gap]", "train.loss=null"])
    assert {*found["data"]} == {"smiles"}


def test_what_is_given_again_is_kept():
    given = [
        "data.extxyz.path=mine.xyz",
        "data.extxyz.by=run",
        "data.test.extxyz.path=t.xyz",
        "train.normalization.reference_energies=atoms.xyz",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_config("demo", given)
    assert found["data"]["extxyz"]["by"] == "run" and found["data"]["test"]["extxyz"]["path"] == "t.xyz"
    assert found["train"]["normalization"]["reference_energies"] == "atoms.xyz"


def test_a_recipe_as_it_is_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "test" in read_config("demo", ["train.lr=1e-3"])["data"]


@pytest.mark.parametrize(
    "override, right",
    [
        ("lr=1e-2", "train.lr=1e-2"),
        ("learning_rate=1e-2", "train.lr=1e-2"),
        ("early_stopping_patience=7", "train.validation.patience=7"),
        ("channels=64", "backbone.EGNN.channels=64"),
        ("r_max=5", "backbone.EGNN.cutoff=5"),
        ("path=b.xyz", "data.extxyz.path=b.xyz"),
        ("backbone.layers=3", "backbone.EGNN.layers=3"),
        ("backbone.num_layers=3", "backbone.EGNN.layers=3"),
        ("data.path=b.xyz", "data.extxyz.path=b.xyz"),
        ("data.split={train: 1}", "data.extxyz.split={train: 1}"),
    ],
)
def test_the_full_name_is_told(override, right):
    with pytest.raises(ConfigError) as info:
        read_config(RUN, [override])
    assert str(info.value).endswith(f"write {right}") and str(info.value).startswith(
        f"override {override!r}:"
    )


def test_an_option_of_fit_at_the_top_of_a_file():
    with pytest.raises(ConfigError, match=r"^epochs: no such section; write train\.epochs$"):
        read_config(RUN | {"epochs": 3})
