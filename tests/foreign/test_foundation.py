"""Published models by name, and the command `molequi convert`."""

import hashlib
import importlib.metadata
from pathlib import Path

import pytest
import torch

import molequi as mq
from molequi.cli import main
from molequi.errors import CheckpointError, ConfigError
from molequi.foreign import installed
from molequi.foreign.published import BY_DIGEST, PUBLISHED, Published

FOLDER = Path(__file__).parent
FILE = FOLDER / "sevennet_o3.pth"


def installed_package(name):
    """Whether a package is installed; it is not imported."""
    return any(True for _ in importlib.metadata.distributions(name=name))


def test_digests_and_names():
    assert len(BY_DIGEST) == len(PUBLISHED) and all(len(d) == 64 for d in BY_DIGEST)
    assert list(PUBLISHED) == list(mq.foreign.FOUNDATIONS)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An installed package with published weights; it would fail if it were imported."""
    site, digest = tmp_path / "site", hashlib.sha256(FILE.read_bytes()).hexdigest()
    (site / "tiny_weights").mkdir(parents=True)
    (site / "tiny_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    (site / "tiny_weights" / "m.pth").write_bytes(FILE.read_bytes())
    (site / "tiny_weights-1.0.dist-info").mkdir()
    (site / "tiny_weights-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MOLEQUI_CACHE", str(tmp_path / "cache"))
    one = Published(
        name="tiny",
        package="tiny-weights",
        file="tiny_weights/m.pth",
        sha256=digest,
        licence="MIT",
        training="nothing",
    )
    monkeypatch.setattr(installed, "PUBLISHED", {"tiny": one})
    return site / "tiny_weights" / "m.pth"


def test_weights_come_from_the_wheel_and_then_from_the_cache(wheel):
    model = mq.foundation("tiny")
    wheel.unlink()
    again = mq.foundation("TINY", dtype="float64")
    assert again.dtype == torch.float64 and again.symmetry_report.passed
    for one, other in zip(model.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one.double(), other.double())


def test_other_weights_in_the_wheel_are_refused(wheel):
    wheel.write_bytes((FOLDER / "sevennet_levels.pth").read_bytes())
    with pytest.raises(CheckpointError, match=r"tiny: m.pth of the installed tiny-weights has other weights"):
        mq.foundation("tiny")
    wheel.unlink()
    with pytest.raises(
        CheckpointError, match="is installed without tiny_weights/m.pth; write\n  pip install --no-deps tiny"
    ):
        mq.foundation("tiny")


def test_what_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MOLEQUI_CACHE", str(tmp_path))
    monkeypatch.setattr(installed.importlib.metadata, "distribution", _no_package)
    with pytest.raises(
        CheckpointError, match="is not installed; write\n  pip install --no-deps sevenn\nNothing of it is run"
    ):
        mq.foundation("7net-0")
    with pytest.raises(ConfigError, match="'7net0' is unknown; did you mean '7net-0'?"):
        mq.foundation("7net0")
    with pytest.raises(ConfigError, match=r"level=None of 7net-mf-0; wanted one of PBE, R2SCAN"):
        mq.foundation("7net-mf-0")
    with pytest.raises(ConfigError, match=r"level='PBE' of 7net-0; wanted none, since it has only one"):
        mq.foundation("7net-0", level="PBE")


def _no_package(name):
    raise installed.importlib.metadata.PackageNotFoundError(name)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(FILE), "seven.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "citation: Park, Kim" in out and "symmetry report: declared O(3); passed" in out
    assert main(["convert", str(FILE), "seven.safetensors"]) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert main(["convert", str(FILE), "seven.safetensors", "--overwrite"]) == 0
    assert main(["convert", str(FILE), "nowhere/seven.safetensors"]) == 2
    assert "OUT=nowhere/seven.safetensors: there is no folder nowhere" in capsys.readouterr().err
    assert main(["convert", "seven.safetensors", "again.safetensors"]) == 2
    assert "a model of molequi is one already" in capsys.readouterr().err
    assert main(["info", str(FILE)]) == 2
    assert f"molequi convert {FILE} {FILE.stem}.safetensors" in capsys.readouterr().err
    assert main(["info", "7net"]) == 2
    assert "a published model is mq.foundation(NAME) in Python, and its name in a" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"mq.foundation\(NAME\)"):
        mq.Calculator("7net-0")
    assert main(["convert", str(FILE), "seven.pth"]) == 2
    assert "wanted a name that ends in .safetensors" in capsys.readouterr().err
    assert main(["convert", str(FOLDER / "sevennet_levels.pth"), "l.safetensors", "--level", "PBE"]) == 0
    assert main(["info", "l.safetensors"]) == 0
    assert "level: PBE" in capsys.readouterr().out


@pytest.mark.skipif(
    not installed_package("sevenn"), reason="needs the weights in the wheel: pip install --no-deps sevenn"
)
def test_published_weights(monkeypatch, tmp_path, capsys):
    """Energies of sevenn 0.13.0 in float64 (tests/benchmarks/published_models.py has 20 structures and all models)."""
    monkeypatch.setenv("MOLEQUI_CACHE", str(tmp_path))
    model = mq.foundation("7net-0", dtype="float64")
    cell = [[0, 2.75, 2.75], [2.75, 0, 2.75], [2.75, 2.75, 0]]
    graph = mq.Graph.single([[0, 0, 0], [2.875, 2.75, 2.625]], ["Na", "Cl"], cell=cell, pbc=True)
    found = model(mq.connect(graph, model.cutoff))
    assert float(found["energy"].detach()) == pytest.approx(-6.698731367, abs=1e-6)
    assert found["forces"].detach()[0].tolist() == pytest.approx([0.2279613183, 0, -0.2279613183], abs=1e-6)
    assert model.metadata["origin"]["name"] == "7net-0"
    monkeypatch.chdir(tmp_path)
    assert main(["info", "7net-0"]) == 0
    assert "origin, name: 7net-0" in capsys.readouterr().out
    assert main(["info", "7net-mf-0"]) == 2
    assert "in commands and run files 7net-mf-0@PBE" in capsys.readouterr().err
    Path("7net-0").mkdir()  # a folder of the user of that name comes first
    assert main(["info", "7net-0"]) == 2
    assert "7net-0" in capsys.readouterr().err
