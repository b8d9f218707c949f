"""Models and files as a newcomer has them."""

import pytest
import torch
from ase.build import molecule
from ase.io import write

import molequi as mq

RUN = """data: {extxyz: {path: frames.xyz, keys: {forces: REF_forces}, split: {train: 6, valid: 2}}}
backbone: {EGNN: {channels: 8, layers: 1}}
predict: [energy, forces]
train: {epochs: 1, logging: {progress: false}, out: runs/c}
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A force field for water, labelled frames, a property of molecules, a table, a run file; and the folder."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        water = mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1, cutoff=4.0), ["energy", "forces"])
        gap = mq.Model(mq.EGNN(elements=["H", "C", "O"], channels=8, layers=1), ["gap"])
    mq.save(water, "model.safetensors")
    mq.save(gap, "gaps.safetensors")
    frames = []
    for k in range(8):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.info["energy"] = -1.0 * k
        atoms.set_array("REF_forces", atoms.positions * 0.1)
        frames.append(atoms)
    write("frames.xyz", frames, format="extxyz")
    write("more.xyz", frames + frames, format="extxyz")
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.csv").write_text(
        "smiles,gap\nCCO,1.0\nCC,2.0\nC,3.0\nCO,4.0\nO,2.0\nOCO,3.5\nCCC,4.5\nCOC,1.5\n"
    )
    (tmp_path / "new.csv").write_text("Compound ID,smiles\n" + "".join(f"{k}a,CCO\n" for k in range(20)))
    rows = [f"{'C' * k}O,-{k}.5\n" for k in range(1, 21)]
    (tmp_path / "limits.csv").write_text("smiles,logS\n" + "".join(rows) + "CCC,<-5\n")
    (tmp_path / "salts.csv").write_text("smiles,logS\n" + "".join(rows) + "[Na+].[Cl-],-1\n")
    (tmp_path / "salt.csv").write_text("smiles\n[Na+].[Cl-]\n")
    (tmp_path / "real.xlsx").write_bytes(b"PK")
    write("methane.xyz", molecule("CH4"), format="extxyz")
    mq.save(mq.Model(water.backbone, ["energy", "forces", "stress"]), "stress.safetensors")
    (tmp_path / "c.yaml").write_text(RUN)
    for folder in ("kept", "runs/a", "runs/npt/300K", "runs/npt/600K"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("1", "2"):
        mq.save(water, f"kept/{name}.safetensors")
    mq.save(water, "runs/a/model.safetensors")
    (tmp_path / "runs/a/state-0.pt").write_bytes(b"molequi-state")
    for kelvin in ("300K", "600K"):
        write(f"runs/npt/{kelvin}/trajectory.xyz", frames, format="extxyz")
    (tmp_path / "runs/npt/300K/log.csv").write_text("time_ps\n0\n")
    return tmp_path


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Tables are as wide as the terminal; a test has one of the same width everywhere."""
    monkeypatch.setenv("COLUMNS", "110")
