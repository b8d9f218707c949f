"""Sampled frames: the ensemble, labels, interrupts, failures of the calculator, and what it is told of charge and spin."""

import importlib
import json
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

import molequi as mq
from molequi.errors import (
    CheckpointError,
    ConfigError,
    MissingPackageError,
    OtherSettingsError,
    SimulationError,
    SimulationWarning,
)
from molequi.simulation.inputs import as_calculator

QUIET = {"progress": False}


class Springs(Calculator):
    """Each atom on a spring to its place; it can fail."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, places, stiffness=20.0, fails_at=(), error=RuntimeError("no convergence")):
        super().__init__()
        self.places, self.stiffness, self.calls = places, stiffness, 0
        self.fails_at, self.error, self.seen = fails_at, error, []

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        self.seen.append((atoms.get_initial_charges().sum(), atoms.get_initial_magnetic_moments().sum()))
        if self.calls in self.fails_at:
            raise self.error
        away = atoms.positions - self.places
        self.results = {"energy": self.stiffness * (away**2).sum() / 2, "forces": -self.stiffness * away}


def argon(n=6) -> Atoms:
    return Atoms(f"Ar{n}", np.arange(3.0 * n).reshape(n, 3) * 2)


@pytest.mark.parametrize("temperature", [300.0, 600.0])
def test_the_frames_are_those_of_the_canonical_ensemble(temperature):
    """Equipartition: the mean energy of N atoms on springs is 3 N k T / 2. 300 K and 600 K are each other's control."""
    atoms = argon(10)
    data = mq.sample_frames(
        [atoms],
        Springs(atoms.positions),
        frames=300,
        temperature=temperature,
        spacing=100.0,
        timestep=4.0,
        **QUIET,
    )
    wanted = 3 * len(atoms) * units.kB * temperature / 2
    assert float(data.values("energy").mean()) == pytest.approx(wanted, rel=0.06)


def test_labels_are_those_of_the_calculator():
    starts = [bulk("Cu", cubic=True), bulk("Ag", cubic=True)]
    data = mq.sample_frames(starts, EMT(), frames=7, **QUIET)
    assert len(data) == 7 and {tuple(sorted(set(g.z.tolist()))) for g in data} == {(29,), (47,)}
    for graph in data:
        atoms = mq.to_atoms(graph.replace(targets={}))
        atoms.calc = EMT()
        np.testing.assert_allclose(graph.targets["forces"], atoms.get_forces(), atol=1e-8)
        assert float(graph.targets["energy"]) == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(graph.targets["stress"][0], atoms.get_stress(voigt=False), atol=1e-9)
    moved = np.stack([data[k].pos.numpy() - data[0].pos.numpy() for k in (1, 2, 3)])
    assert (np.abs(moved).max((1, 2)) > 1e-3).all()
    assert mq.sample_frames(starts, EMT(), frames=7, **QUIET).digest == data.digest
    assert mq.sample_frames(starts, EMT(), frames=7, seed=1, **QUIET).digest != data.digest


def test_what_was_interrupted_goes_on(tmp_path):
    """Ctrl-C in a trajectory, and a kill in the middle of a write: the same bytes as without."""
    atoms = argon()
    whole = mq.sample_frames([atoms], Springs(atoms.positions), frames=120, out=tmp_path / "whole", **QUIET)
    assert not torch.equal(whole[0].pos, whole[50].pos)  # the first frames of two trajectories
    stopped = Springs(atoms.positions, fails_at=[700], error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        mq.sample_frames([atoms], stopped, frames=120, out=tmp_path / "b", **QUIET)
    assert json.loads((tmp_path / "b" / "frames.json").read_text())["counts"] == [50]
    with open(tmp_path / "b" / "frames.xyz", "ab") as file:
        file.write(b"6\nProperties=species:S:1:pos")
    fresh = Springs(atoms.positions)
    data = mq.sample_frames([atoms], fresh, frames=120, out=tmp_path / "b", **QUIET)
    same = [(tmp_path / name / "frames.xyz").read_bytes() for name in ("whole", "b")]
    assert same[0] == same[1] and data.digest == whole.digest and len(data) == 120
    calls = fresh.calls
    assert mq.sample_frames([atoms], fresh, frames=120, out=tmp_path / "b", **QUIET).digest == data.digest
    assert fresh.calls == calls + 1  # is it the same calculator?


def test_a_folder_of_other_frames_is_refused(tmp_path):
    atoms = argon()
    sample = lambda **options: mq.sample_frames(  # noqa: E731
        [atoms], Springs(atoms.positions), out=tmp_path / "a", **({"frames": 60} | options), **QUIET
    )
    sample()
    for change in ({"temperature": 400.0}, {"seed": 1}):
        with pytest.raises(OtherSettingsError, match=f"(?s)other settings or structures.*{[*change][0]}"):
            sample(**change)
    with pytest.raises(OtherSettingsError, match="structures"):
        mq.sample_frames([argon(5)], Springs(argon(5).positions), frames=60, out=tmp_path / "a", **QUIET)
    assert len(sample(frames=70, resume="restart")) == 70
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "frames.xyz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="0 bytes, and it had"):
        sample(frames=70)
    (tmp_path / "a" / "frames.json").write_text('{"counts": ')
    with pytest.raises(CheckpointError, match="damaged.*begin anew with resume='restart'"):
        sample(frames=70)
    (tmp_path / "b" / "run.lock").unlink()
    with pytest.raises(ConfigError, match="molequi did not make this folder"):
        mq.sample_frames([atoms], Springs(atoms.positions), frames=70, out=tmp_path / "b", **QUIET)


def test_frames_of_another_calculator_are_not_taken(tmp_path):
    """By its energy: two objects of one class may be two methods, and a model file may have been written anew."""
    atoms = argon()
    mq.sample_frames([atoms], Springs(atoms.positions), frames=60, out=tmp_path, **QUIET)
    with pytest.raises(
        OtherSettingsError, match="holds frames of another calculator: the energy of the first one is"
    ):
        mq.sample_frames([atoms], Springs(atoms.positions, stiffness=25.0), frames=60, out=tmp_path, **QUIET)


def test_crystals_beside_molecules(tmp_path):
    """The stress is a label only where all have one; single atoms are no starts beside larger structures."""
    given = [bulk("Cu", cubic=True), molecule("N2"), Atoms("Cu")]
    data = mq.sample_frames(
        given, EMT(), frames=6, out=tmp_path, temperature=np.float32(300), seed=np.int64(0), **QUIET
    )
    assert sorted(data.quantities) == ["energy", "forces"] and {g.num_nodes for g in data} == {2, 4}
    assert len(mq.sample_frames([Atoms("Cu")], EMT(), frames=2, **QUIET)) == 2


def test_after_a_failure_all_is_tried_again(tmp_path):
    atoms = argon()
    with pytest.raises(SimulationError):
        mq.sample_frames(
            [atoms], Springs(atoms.positions, fails_at=range(10**6)), frames=60, out=tmp_path, **QUIET
        )
    assert len(mq.sample_frames([atoms], Springs(atoms.positions), frames=60, out=tmp_path, **QUIET)) == 60


def test_a_calculator_that_fails():
    atoms = argon()
    with pytest.warns(
        SimulationWarning,
        match="failed in 1 of 3 trajectories at 500 K .the first time: RuntimeError: no convergence",
    ):
        data = mq.sample_frames([atoms], Springs(atoms.positions, fails_at=[700]), frames=120, **QUIET)
    assert 70 <= len(data) < 120
    with pytest.raises(
        SimulationError,
        match="failed in 2 of 2 trajectories.*wanted a calculator for these elements, or a lower",
    ):
        mq.sample_frames([atoms], Springs(atoms.positions, fails_at=range(10**6)), frames=120, **QUIET)
    with pytest.raises(SimulationError, match="atoms 0 and 1 are .* Å apart, closer than in any bond"):
        mq.sample_frames(
            [atoms], Springs(0 * atoms.positions), frames=60, spacing=200.0, timestep=2.0, **QUIET
        )
    stiff = Springs(atoms.positions, stiffness=1e5)
    with pytest.raises(SimulationError, match="largest force"):
        mq.sample_frames([atoms], stiff, frames=60, timestep=5.0, **QUIET)


def test_charge_and_spin_reach_the_calculator_and_the_frames(tmp_path):
    atoms = argon()
    atoms.info |= {"charge": -1.0, "spin": 2.0}
    springs = Springs(atoms.positions)
    data = mq.sample_frames([atoms], springs, frames=4, out=tmp_path / "a", **QUIET)
    np.testing.assert_allclose(springs.seen, [(-1.0, 1.0)] * len(springs.seen))
    assert [float(g.charge) for g in data] == [-1.0] * 4 and [float(g.spin) for g in data] == [2.0] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "sample_frames.frames"),
        ({"temperature": -1.0}, "sample_frames.temperature"),
        ({"spacing": 10.0, "timestep": 3.0}, "spacing=10 fs: wanted a multiple of timestep=3 fs"),
        ({"resume": "force"}, "sample_frames.resume"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ConfigError, match=message):
        mq.sample_frames([argon()], Springs(argon().positions), **change, **QUIET)


def test_a_model_without_forces_is_refused():
    model = mq.Model(mq.EGNN(elements=["Ar"], channels=4, layers=1), ["dipole"])
    with pytest.raises(ConfigError, match="predicts dipole; dynamics and relaxation need"):
        mq.sample_frames([argon()], model, **QUIET)


def test_a_model_labels_frames():
    torch.manual_seed(0)
    model = mq.Model(mq.EGNN(elements=["Ar"], channels=4, layers=1), ["energy", "forces"])
    data = mq.sample_frames([argon()], model, frames=3, **QUIET)
    wanted = model.double().eval()(mq.connect(data[0], model.cutoff))["energy"]
    assert float(data.values("energy")[0]) == pytest.approx(float(wanted), abs=1e-8)


def test_xtb_needs_tblite(monkeypatch):
    optional = importlib.import_module("molequi.util.optional")
    monkeypatch.setattr(optional, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r"gfn2-xtb needs tblite.*pip install 'molequi\[xtb\]'"):
        mq.sample_frames([molecule("H2O")], "gfn2-xtb", **QUIET)


def test_xtb_by_name_gives_the_labels_of_the_shipped_data():
    pytest.importorskip("tblite", reason="needs tblite (pip install 'molequi[xtb]')")
    data = mq.load_dataset(mq.shipped("ethanol_300K.xyz"))
    for k in (0, 100):
        atoms = mq.to_atoms(data[k])
        labels = atoms.calc
        atoms.calc = as_calculator("GFN2-xTB")
        assert atoms.get_potential_energy() == pytest.approx(labels.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(atoms.get_forces(), labels.get_forces(), atol=5e-4)  # self-consistency
    cation = Atoms("H3O", [[0.0, 0.94, 0.1], [0.81, -0.47, 0.1], [-0.81, -0.47, 0.1], [0.0, 0.0, 0.0]])
    neutral = mq.sample_frames([cation], "gfn2-xtb", frames=1, **QUIET)
    cation.info["charge"] = 1.0
    charged = mq.sample_frames([cation], "gfn2-xtb", frames=1, **QUIET)
    assert abs(float(neutral.values("energy")[0] - charged.values("energy")[0])) > 1.0


@pytest.mark.parametrize("word", ["gfn3-xtb", "GFN2", "gfn2xtb", "xtb", "gfn2_xtb"])
def test_a_method_that_is_misspelt_is_no_missing_file(word):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
    for run in (lambda a, c: mq.md(a, c, steps=1), mq.relax):
        with pytest.raises(
            ConfigError, match=f"calculator '{word}': no such method and no such file.*gfn2-xtb"
        ):
            run(atoms, word)
    with pytest.raises(CheckpointError, match="no such file"):  # a path, as before
        as_calculator("runs/gfn2-xtb.safetensors")
