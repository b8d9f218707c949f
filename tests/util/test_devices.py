"""Devices by the names that users write, checked before anything is read."""

import pytest
import torch

import molequi as mq
from molequi.cli import main
from molequi.errors import ConfigError, ModelError
from molequi.util.devices import as_device


@pytest.fixture
def cuda(monkeypatch):
    """A machine with two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_cuda(monkeypatch):
    """A machine without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_names_with_cuda(cuda):
    found = {
        name: str(as_device(name)) for name in ("auto", "cpu", "cuda", "gpu", "GPU", "cuda:1", "gpu:1", 1)
    }
    assert found == {
        "auto": "cuda", "cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "GPU": "cuda",
        "cuda:1": "cuda:1", "gpu:1": "cuda:1", 1: "cuda:1",
    }  # fmt: skip
    with pytest.raises(
        ModelError, match="'cuda:2': this machine has 2 CUDA devices; wanted one of 'cuda:0', 'cuda:1'"
    ):
        as_device("cuda:2")


def test_names_without_cuda(no_cuda):
    assert as_device("auto") == as_device("cpu") == as_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("cuda", "gpu", "cuda:1", 0):
        with pytest.raises(ModelError, match="write device='cpu', or device='auto'"):
            as_device(name)


@pytest.mark.parametrize("name", ["mps", "mps:0", "Metal"])
def test_apple(cuda, name):
    with pytest.raises(ModelError, match="Apple's GPU computes in float32 alone.*write device='cpu'"):
        as_device(name)


@pytest.mark.parametrize("name", ["quantum", "", "cuda:x", None, True, 1.5])
def test_what_is_no_device(no_cuda, name):
    with pytest.raises(ModelError, match="wanted 'auto', 'cpu', 'cuda' or 'cuda:1'"):
        as_device(name)


def test_the_device_is_checked_before_data_are_read(tmp_path, capsys, no_cuda):
    model = mq.Model(mq.EGNN(elements=["H"], channels=4, layers=1), ["energy"])
    saved = str(mq.save(model, tmp_path / "m.safetensors"))
    absent = str(tmp_path / "absent.xyz")
    for call in (
        lambda: mq.fit(model, absent, absent, epochs=1, device="cuda"),
        lambda: mq.predict(saved, absent, device="cuda"),
        lambda: mq.evaluate(model, absent, device="cuda"),
        lambda: mq.audit(model, absent, device="cuda"),
        lambda: mq.Calculator(saved, device="cuda"),
        lambda: mq.load("absent.safetensors", device="cuda"),
    ):
        with pytest.raises((ModelError, ConfigError), match="device='cuda'"):
            call()
    for command in ("md", "relax", "predict", "evaluate", "audit"):
        more = {"predict": [str(tmp_path / "o.xyz")], "md": ["--steps", "1"]}.get(command, [])
        assert main([command, saved, absent, *more, "--device", "cuda"]) == 2
        assert "device='cuda'" in capsys.readouterr().err.replace("--device cuda", "device='cuda'")
    run = {"data": {"extxyz": {"path": absent, "split": {"train": 1, "valid": 1}}}, "backbone": "EGNN"}
    with pytest.raises(ConfigError, match=r"^train\.device='mps'"):
        mq.run(run | {"predict": ["energy"], "train": {"epochs": 1, "device": "mps"}})


def test_a_calculator_has_no_device():
    from ase.calculators.emt import EMT

    with pytest.raises(ConfigError, match="a calculator runs where it is"):
        mq.audit(EMT(), "a.xyz", device="cpu")


def test_a_file_is_audited_as_its_model(tmp_path):
    water = mq.Graph.single([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], ["O", "H", "H"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1), ["energy"])
    path = mq.save(model, tmp_path / "m.safetensors")
    given = {"draws": 2, "checks": ["rotation"]}
    rows = [mq.audit(one, [water], **given).rows for one in (model, path, str(path))]
    assert rows[0] == rows[1] == rows[2]
    assert mq.lie_errors(path, water).rows == mq.lie_errors(model, water).rows
    assert mq.symmetries(path, [water], draws=2).group == mq.symmetries(model, [water], draws=2).group


def test_predictions_in_another_precision_leave_the_model_as_it_is(tmp_path):
    water = mq.Graph.single([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], ["O", "H", "H"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1), ["energy", "forces"])
    (single,), (double,) = mq.predict(model, [water]), mq.predict(model, [water], dtype="float64")
    assert model.dtype == torch.float32
    assert 0 < abs(single["energy"] - double["energy"]) < 1e-4 and double["energy"].dtype == "float64"
    atoms = mq.to_atoms(water)
    atoms.calc = mq.Calculator(model, dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(float(double["energy"]), abs=1e-10)
    path = mq.save(model, tmp_path / "m.safetensors")
    (again,) = mq.predict(path, [water], dtype="float64")
    assert again["energy"] == double["energy"]
