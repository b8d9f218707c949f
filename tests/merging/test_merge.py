"""Merged models: what is averaged, what is refused, and what the file says."""

import copy
import json

import pytest
import torch

import molequi as mq
from molequi.cli import main
from molequi.errors import ConfigError, DataWarning, ModelError
from molequi.heads import Scalar
from molequi.merging import channels_of, transformed
from molequi.merging.merge import SAME_START

from .test_alignment import difference, random_maps, structure, with_weights

LOSS = {"energy": 1, "forces": 100}


def fresh(seed=0, **more):
    torch.manual_seed(seed)
    backbone = mq.PaiNN(**{"elements": ["H", "O"], "cutoff": 3.0, "channels": 8, "layers": 2} | more)
    return mq.Model(backbone, ["energy", "forces"]).eval()


def tuned(model, seed, size=0.02):
    generator = torch.Generator().manual_seed(seed)
    new = copy.deepcopy(model)
    with torch.no_grad():
        for value in new.parameters():
            value += size * torch.randn(value.shape, generator=generator)
    return new


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two fine-tunes of one start, on cold and on hot frames, as files, and held-out frames of both."""
    folder = tmp_path_factory.mktemp("runs")
    cold, cold_test = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index="::8").split([24, 16], seed=0)
    hot, hot_test = mq.read_extxyz(mq.shipped("ethanol_600K.xyz"), index="::4").split([24, 16], seed=0)
    torch.manual_seed(0)
    model = mq.Model(mq.PaiNN(elements=cold.elements, cutoff=4.0, channels=8, layers=2), ["energy", "forces"])
    quiet = {"loss": LOSS, "logging": {"progress": False}, "batch_size": 8}
    mq.fit(model, cold + hot, cold_test, epochs=5, lr=1e-2, seed=0, **quiet)
    for name, data, valid in (("cold", cold, cold_test), ("hot", hot, hot_test)):
        start = copy.deepcopy(model)
        mq.fit(start, data, valid, epochs=3, lr=5e-3, seed=1, **quiet)
        (folder / name).mkdir()
        mq.save(start, folder / name / "model.safetensors")
    return folder, cold_test + hot_test


def test_fine_tunes_of_one_start_are_averaged(trained):
    folder, test = trained
    merged = mq.merge([folder / "cold", folder / "hot"], data=test)
    one, two = (mq.load(folder / name) for name in ("cold", "hot"))
    for name, value in merged.model.named_parameters():
        mean = (one.get_parameter(name).double() + two.get_parameter(name).double()) / 2
        assert torch.equal(value, mean.float()), name
    assert [p.aligned for p in merged.parents] == [None, None]
    assert merged.parents[0].closeness == pytest.approx(1.0) and 0.9 < merged.parents[1].closeness < 1.0
    better = min(p.errors["forces_rmse"] for p in merged.parents)
    assert merged.errors["forces_rmse"] <= better  # on the union of their data
    assert merged.errors["forces_rmse"] == pytest.approx(mq.evaluate(merged.model, test)["forces_rmse"])
    shown = str(merged)
    assert shown.splitlines()[0].split()[:3] == ["model", "weight", "closeness"]
    assert f"{1000 * merged.errors['forces_rmse']:.4g}" in shown and str(folder / "hot") in shown


def test_weights_count():
    one = fresh()
    two = tuned(one, 1)
    merged = mq.merge([one, two], weights=[1, 3]).model
    for name, value in merged.named_parameters():
        mean = 0.25 * one.get_parameter(name) + 0.75 * two.get_parameter(name)
        assert torch.allclose(value, mean, atol=1e-7), name


def test_models_of_different_starts_are_aligned():
    """The same model with its channels in another order is another start; the mean is the model again."""
    one = mq.Model(mq.GauntACE(elements=["H", "O"], cutoff=3.0, channels=6, l_max=2), ["energy", "dipole"])
    one = one.double().eval()
    channels = channels_of(one)
    moved = transformed(dict(one.named_parameters()), channels, random_maps(channels))
    merged = mq.merge([one, with_weights(one, moved)])
    assert merged.parents[1].closeness < SAME_START
    assert merged.parents[1].aligned == pytest.approx(1.0)
    assert difference(one, merged.model, structure()) < 1e-10
    assert " → 1.000" in str(merged)


def test_different_starts_can_be_refused():
    with pytest.raises(ModelError, match=r"model 1 and model 0 have different starts \(closeness .*Ensemble"):
        mq.merge([fresh(0), fresh(1)], align=False)
    transformer = {"elements": ["H"], "channels": 8, "layers": 1, "heads": 2}
    pair = [mq.Model(mq.Transformer(**transformer), ["energy"]) for _ in range(2)]
    with pytest.raises(ModelError, match="attention heads"):
        mq.merge(pair)
    mq.merge([pair[0], tuned(pair[0], 1)])  # one start needs no table


def test_the_parents_are_not_changed():
    one = fresh().train()
    two = tuned(one, 1)
    before = copy.deepcopy(one.state_dict())
    assert not mq.merge([one, two]).model.training
    assert one.training and all(torch.equal(before[n], v) for n, v in one.state_dict().items())


def test_models_that_differ_are_refused():
    with pytest.raises(
        ModelError, match=r"model 1 has backbone.channels 8 and model 0 has 16; wanted models"
    ):
        mq.merge([fresh(channels=16), fresh()])
    with pytest.raises(ModelError, match="precision"):
        mq.merge([fresh(), fresh().double()])
    with pytest.raises(ModelError, match=r"found one model; wanted two models or more, mq.merge\(\[a, b\]\)"):
        mq.merge([fresh()])
    ensemble = mq.Ensemble([fresh(0), fresh(1)])
    with pytest.raises(ModelError, match=r"found an Ensemble.*mq.merge\(list\(ensemble.members\)\)"):
        mq.merge(ensemble)
    with pytest.raises(ModelError, match="model 1 is an Ensemble; wanted a single Model"):
        mq.merge([fresh(), ensemble])

    class Counted(mq.PaiNN):
        def __init__(self, **options):
            super().__init__(**options)
            self.register_buffer("counter", torch.tensor(0))

    one = mq.Model(Counted(elements=["H"], channels=4, layers=1), ["energy"])
    two = copy.deepcopy(one)
    two.backbone.counter += 1
    with pytest.raises(ModelError, match="backbone.counter is not the same in all models"):
        mq.merge([one, two])


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("inf")], [1, True], "12", 2])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ConfigError, match=r"wanted a number above 0 for each of the 2 models"):
        mq.merge([fresh(), fresh()], weights=weights)


def test_options_without_data_are_refused():
    with pytest.raises(
        ConfigError, match="merge.index: no such argument; known: .*; options of molequi.evaluate need data="
    ):
        mq.merge([fresh(), fresh()], index=":3")
    with pytest.raises(ConfigError, match="did you mean 'weights'"):
        mq.merge([fresh(), fresh()], weight=[1, 2])


def test_reference_energies_are_shown_where_they_differ():
    one, two = fresh(), fresh()
    one.heads["energy"].reference_energies[8] = -2000.0
    two.heads["energy"].reference_energies[8] = -2000.05
    merged = mq.merge([one, two])
    assert float(merged.model.heads["energy"].reference_energies[8]) == pytest.approx(-2000.025)
    lines = str(merged).splitlines()
    start = lines.index("reference energies differ (eV):")
    assert lines[start + 1].split() == ["O"]  # those of H are the same
    assert [line.split()[-1] for line in lines[start + 2 :]] == ["-2000.0000", "-2000.0500", "-2000.0250"]
    two.heads["energy"].reference_energies[8] = -2041.0
    with pytest.warns(DataWarning, match="that of O by 41 eV, as those of different levels of theory do"):
        mq.merge([one, two])
    assert "reference energies" not in str(mq.merge([one, tuned(one, 1)]))


def test_models_without_an_energy():
    pair = [mq.Model(fresh().backbone, [Scalar(mq.Quantity("gap", unit="eV"))]) for _ in range(1)]
    assert mq.merge([pair[0], tuned(pair[0], 1)]).parents[0].reference_energies == {}


def test_the_file_says_where_the_model_comes_from(tmp_path):
    one = fresh()
    two = tuned(one, 1)
    both = {"licence": "MIT", "residuals": {"energy": [0.1]}, "symmetry_report": {}, "run": {"a": 1}}
    one.metadata = both | {
        "origin": "here",
        "trained_on": {"elements": ["H"], "charge": [0.0]},
        "lowest_energy": -3.0,
        "reading": {"normalize": True},
    }
    two.metadata = both | {
        "origin": "there",
        "trained_on": {"elements": ["H", "O"], "charge": [0.0, 1.0]},
        "lowest_energy": -4.0,
        "reading": {"normalize": True},
    }
    merged = mq.merge([one, two])
    mq.save(merged.model, tmp_path / "merged.safetensors")
    found = mq.load(tmp_path / "merged.safetensors").metadata
    assert found["trained_on"] == {"elements": ["H", "O"], "charge": [0.0, 1.0]}
    assert found["licence"] == "MIT" and found["lowest_energy"] == -4.0
    assert found["reading"] == {"normalize": True}
    assert not {"residuals", "symmetry_report", "run", "origin"} & found.keys()
    first, second = found["merged"]["parents"]
    assert first["metadata"] == {"origin": "here"} and second["metadata"] == {"origin": "there"}
    assert first["weights"] != second["weights"] and first["share"] == 0.5
    assert first["trained_on"]["elements"] == ["H"]
    notes = str(merged).splitlines()[-2:]
    assert notes == ["O: only model 1 was trained on it", "charge 1: only model 1 was trained on it"]
    del one.metadata["trained_on"], one.metadata["lowest_energy"]
    found = mq.merge([one, two]).model.metadata
    assert "trained_on" not in found and "lowest_energy" not in found


def test_command(trained, tmp_path, capsys, monkeypatch):
    folder, _ = trained
    monkeypatch.chdir(folder)
    data = str(mq.shipped("ethanol_600K.xyz"))
    out = tmp_path / "merged.safetensors"
    words = [
        "merge",
        "cold",
        "hot",
        "--weights",
        "1",
        "2",
        "--out",
        str(out),
        "--data",
        data,
        "--index",
        ":5",
    ]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["cold", "0.333", "1.000"] and lines[3].split()[0] == "merged"
    assert lines[-1] == str(out)
    expected = mq.merge(["cold", "hot"], weights=[1, 2]).model
    written = mq.load(out)
    assert all(torch.equal(v, expected.state_dict()[n]) for n, v in written.state_dict().items())
    assert json.dumps(written.metadata["merged"])
    assert main(words) == 2
    assert "this file exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["a", "b"],
            "--out is missing; wanted a name that ends in .safetensors, for example\n  molequi merge",
        ),
        (["a", "b", "--out", "c.pt"], "--out c.pt; wanted a name that ends in .safetensors"),
        (["a", "b", "--out", "c.safetensors", "--alpha", "3"], "write --weights 0.7 0.3"),
        ([], "MODELS is missing"),
    ],
)
def test_mistakes_of_the_command(words, message, capsys):
    assert main(["merge", *words]) == 2
    assert message in capsys.readouterr().err
