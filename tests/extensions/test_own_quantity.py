"""A quantity of your own, a gradient by a field of your own, trains, is saved and loaded, audited and runs from YAML."""

import math

import pytest
import torch
from ase.io import write

import molequi as mq
from molequi.errors import CheckpointError
from molequi.graph import FIELDS

from .own_quantity import RESPONSE, SchNetInField, declare

BACKBONES = {"SchNetInField": SchNetInField}
CHARGES = {1: 0.4, 8: -0.8}
QUIET = {"progress": False}


@pytest.fixture(autouse=True)
def declared():
    declare()


def water(count: int, seed: int = 0) -> list[mq.Graph]:
    """Fixed charges q in a field F: E = Σ |r_i - r_j|² - F·d, with d = Σ q r = -∂E/∂F."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        pos = torch.tensor([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], dtype=torch.float64)
        pos = pos + 0.1 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        field = torch.randn(3, generator=generator, dtype=torch.float64)
        dipole = torch.tensor([CHARGES[z] for z in (8, 1, 1)], dtype=torch.float64) @ pos
        energy = torch.pdist(pos).square().sum() - field @ dipole
        targets = {"energy": energy.reshape(1), "response": dipole[None]}
        out.append(mq.Graph.single(pos, [8, 1, 1], efield=field, targets=targets))
    return out


def data(count: int, seed: int = 0) -> mq.Dataset:
    return mq.Dataset(
        water(count, seed), quantities={"energy": mq.quantities.KNOWN["energy"], "response": RESPONSE}
    )


def build() -> mq.Model:
    torch.manual_seed(0)
    return mq.Model(
        SchNetInField(elements=["H", "O"], cutoff=3.0, channels=8, layers=1), ["energy", RESPONSE]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training in which the quantity is learnt, and its folder."""
    declare()
    return mq.fit(
        build(),
        data(24),
        data(8, seed=1),
        epochs=30,
        lr=1e-2,
        loss={"energy": 1, "response": 10},
        compute={"precision": "float64"},
        logging=QUIET,
        out=tmp_path_factory.mktemp("own") / "run",
    )


def test_it_trains(trained):
    first, best = trained.history[0], trained.history[trained.best_epoch - 1]
    assert best["valid_response_rmse"] < 0.5 * first["valid_response_rmse"]
    assert trained.errors["valid"]["response_mae"] < 0.1


def test_it_is_the_slope_of_the_energy(trained):
    graph = mq.connect(water(1, seed=2)[0], 3.0)
    found = trained.model(graph)["response"][0]
    for axis in range(3):
        step = torch.zeros(1, 3, dtype=torch.float64)
        step[0, axis] = 1e-4
        plus, minus = (
            trained.model(graph.replace(efield=graph.efield + s * step))["energy"] for s in (1, -1)
        )
        assert float(found[axis]) == pytest.approx(-float(plus - minus) / 2e-4, rel=1e-6)


def test_it_is_saved_and_loaded(trained):
    again = mq.load(trained.out / "model.safetensors", backbones=BACKBONES)
    graph = mq.connect(water(1, seed=2)[0], 3.0)
    assert again.quantities["response"] == RESPONSE
    assert torch.equal(again(graph)["response"], trained.model(graph)["response"])
    assert mq.evaluate(again, data(8, seed=1)).numbers() == trained.errors["valid"].numbers()


def test_it_is_audited(trained):
    field = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)  # one, in which fragments are put together
    report = mq.audit(trained.model, [g.replace(efield=field) for g in water(2, seed=3)], draws=2)
    assert report.passed and trained.symmetry_report.passed
    measured = {(r.check, r.quantity) for r in report.rows if r.verdict == "pass"}
    assert {("rotation", "response"), ("reflection", "response"), ("translation", "response")} <= measured


def test_it_runs_from_yaml(tmp_path):
    frames = []
    for graph in water(8):
        atoms = mq.to_atoms(graph.replace(targets={}))
        atoms.info |= {
            "energy": float(graph.targets["energy"]),
            "response": graph.targets["response"][0].numpy(),
        }
        frames.append(atoms)
    write(tmp_path / "water.xyz", frames, format="extxyz")
    path = tmp_path / "own.yaml"
    path.write_text(
        f"data: {{extxyz: {{path: {tmp_path / 'water.xyz'}, split: {{train: 6, valid: 2}}}}}}\n"
        "backbone: {SchNetInField: {cutoff: 3.0, channels: 8, layers: 1}}\n"
        "predict: [energy, response]\n"
        "train: {epochs: 1, batch_size: 2, loss: {energy: 1, response: 10}, logging: {progress: false}, "
        f"out: {tmp_path / 'run'}}}\n"
    )
    result = mq.run(path, backbones=BACKBONES, quantities={"response": RESPONSE})
    assert math.isfinite(result.errors["valid"]["response_mae"])
    assert math.isfinite(result.history[0]["valid_response_rmse"])
    assert mq.load(result.out / "model.safetensors", backbones=BACKBONES).quantities["response"] == RESPONSE


def test_a_file_says_which_field_to_declare(trained):
    del FIELDS["efield"]
    with pytest.raises(
        CheckpointError,
        match=r"'response': wrt='efield' is no variable.*mq\.add_field\('efield', per='graph', rank=1, unit='…'\)",
    ):
        mq.load(trained.out / "model.safetensors", backbones=BACKBONES)
    mq.add_field("efield", per="graph", rank=1, unit="V/Å")  # what the message says, with the unit
    assert mq.load(trained.out / "model.safetensors", backbones=BACKBONES).quantities["response"] == RESPONSE
