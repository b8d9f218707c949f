"""Simulations and relaxations in one batch are those that run alone."""

import os
import signal
import threading

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import read, write

import molequi as mq
from molequi.cli import main
from molequi.errors import ConfigError, DataError, ModelError, SimulationError, UnknownKeywordError
from molequi.interfaces.together import Together
from molequi.simulation import md, md_many, relax, relax_many

QUIET = {"progress": False}


def crystal() -> Atoms:
    return Atoms(
        "COHH",
        [[0.1, 0.2, 0.0], [1.5, 0.4, 1.1], [0.3, 1.9, 2.0], [2.2, 2.3, 0.3]],
        cell=[[3.4, 0, 0], [0.7, 3.6, 0], [0.3, -0.4, 3.8]],
        pbc=True,
    )


@pytest.mark.parametrize(
    "start, options",
    [
        ("CH3CH2OH", {"ensemble": "nve"}),
        ("CH3CH2OH", {"ensemble": "nvt", "thermostat": "bussi"}),
        ("crystal", {"ensemble": "npt"}),
        ("crystal", {"ensemble": "npt", "thermostat": "nose-hoover", "barostat": {"cell": "anisotropic"}}),
    ],
)
def test_each_replica_is_the_simulation_alone(start, options, model):
    atoms = crystal() if start == "crystal" else molecule(start)
    calculator = mq.Calculator(model, dtype="float64")
    runs = md_many(
        atoms,
        calculator,
        temperature=[100, 300],
        replicas=2,
        seed=5,
        timestep=0.5,
        steps=30,
        every=10,
        **options,
        **QUIET,
    )
    assert len(runs) == 4 and runs.names == ("100K-0", "100K-1", "300K-0", "300K-1")
    for k, run in enumerate(runs):
        alone = md(
            atoms,
            calculator,
            temperature=[100, 100, 300, 300][k],
            seed=5 + k,
            timestep=0.5,
            steps=30,
            every=10,
            **options,
            **QUIET,
        )
        assert np.allclose(run.atoms.positions, alone.atoms.positions, rtol=0, atol=1e-10)
        assert np.allclose(run.atoms.cell, alone.atoms.cell, rtol=0, atol=1e-10)
        for name, column in alone.history.items():
            assert np.allclose(run.history[name], column, rtol=1e-8, atol=1e-8), name
    assert np.abs(runs[0].atoms.positions - runs[1].atoms.positions).max() > 1e-3  # other seeds


def test_structures_are_calculated_in_one_batch(model):
    """Four structures of two kinds: one call of the model for all of them in each step."""
    sizes = []

    class Counting(mq.Calculator):
        def results_of(self, graph, *, stress):
            sizes.append(graph.num_graphs)
            return super().results_of(graph, stress=stress)

    md_many([molecule("CH4"), molecule("CH3CH2OH")], Counting(model), replicas=2, steps=10, **QUIET)
    assert set(sizes) == {4} and len(sizes) == 11
    sizes.clear()
    md_many([molecule("CH4"), crystal()], Counting(model), steps=10, **QUIET)  # with a cell there is stress
    assert set(sizes) == {1} and len(sizes) == 22


def test_charges_are_those_of_each_structure():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = mq.Inputs(charge=True)
        model = mq.Model(mq.PaiNN(elements=["H", "O"], channels=8, layers=2, inputs=inputs)).double()
    water, ion = molecule("H2O"), molecule("H2O")
    water.info["charge"], ion.info["charge"] = 0, 1
    runs = md_many([water, ion], model, steps=5, every=1, temperature=50, **QUIET)
    for k, atoms in enumerate((water, ion)):
        alone = md(atoms, model, steps=5, every=1, temperature=50, seed=k, **QUIET)
        assert np.allclose(runs[k].history["E_pot"], alone.history["E_pot"], rtol=0, atol=1e-10)
    assert abs(runs[0].history["E_pot"][0] - runs[1].history["E_pot"][0]) > 1e-6


def test_ensembles_of_models_and_other_calculators():
    def one(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return mq.Model(mq.EGNN(elements=["H", "O"], cutoff=4.0, channels=8, layers=1)).double()

    committee = mq.Ensemble([one(k) for k in range(2)])
    runs = md_many(molecule("H2O"), committee, replicas=2, steps=4, every=2, temperature=50, **QUIET)
    alone = md(molecule("H2O"), committee, steps=4, every=2, temperature=50, seed=1, **QUIET)
    assert np.allclose(runs[1].history["forces_std"], alone.history["forces_std"], rtol=1e-9)
    pair = Atoms("Cu2", [[0, 0, 0], [2.3, 0, 0]])
    runs = md_many(pair, EMT(), temperature=[10, 20], steps=5, **QUIET)
    alone = md(pair, EMT(), temperature=20, seed=1, steps=5, **QUIET)
    assert np.array_equal(runs[1].atoms.positions, alone.atoms.positions)


def test_files_and_continuation(model, tmp_path):
    options = dict(temperature=[100, 200], ensemble="nvt", every=5, **QUIET)
    md_many(molecule("CH4"), model, steps=10, out=tmp_path / "two", **options)
    md_many(molecule("CH4"), model, steps=20, out=tmp_path / "two", **options)
    whole = md_many(molecule("CH4"), model, steps=20, out=tmp_path / "whole", **options)
    assert whole[1].out == tmp_path / "whole" / "200K" and whole[1].steps == 20
    for name in ("100K", "200K"):
        two, one = (read(tmp_path / way / name / "trajectory.xyz", ":") for way in ("two", "whole"))
        assert [frame.info["step"] for frame in two] == [0, 5, 10, 15, 20]
        assert np.allclose([f.positions for f in two], [f.positions for f in one], rtol=0, atol=1e-7)


def test_averages_over_replicas(model):
    runs = md_many(
        molecule("CH4"), model, replicas=3, temperature=[50, 100], ensemble="nvt", steps=40, every=2, **QUIET
    )
    found = runs.averages(100)["T"]
    means = [run.averages["T"].mean for run in runs[3:]]
    assert found.mean == pytest.approx(np.mean(means)) and found.error == pytest.approx(
        np.std(means, ddof=1) / 3**0.5
    )
    shown = str(runs)
    assert shown.startswith("6 simulations, ") and "ns/day together" in shown and "mean 100K" in shown
    with pytest.raises(
        ConfigError, match="temperature=200, structure=0: wanted one of 50, 100 K and of the 1 struct"
    ):
        runs.averages(200)


def test_one_that_explodes_is_named_and_the_others_end(model, tmp_path):
    far = molecule("CH4")
    near = far.copy()
    near.positions *= 0.4
    free = md(far, model, steps=0, every=1, temperature=1, **QUIET)
    limit = 3 * np.linalg.norm(free.atoms.get_forces(), axis=1).max()
    assert np.linalg.norm(md(near, model, steps=0, **QUIET).atoms.get_forces(), axis=1).max() > limit
    told = r"1-10K: step 0: the force on atom .*; the other 1 have ended and are in "
    with pytest.raises(SimulationError, match=told):
        md_many(
            [far, near], model, temperature=10, steps=6, limits={"max_force": limit}, out=tmp_path, **QUIET
        )
    assert read(tmp_path / "0-10K" / "last.xyz").info["step"] == 6
    unknown = Atoms("Ar")
    with pytest.raises(ModelError, match="this model does not know Ar"):
        md_many([far, unknown], model, steps=6, **QUIET)


def test_a_signal_ends_all_after_their_step(model, tmp_path):
    class Interrupting(mq.Calculator):
        calls = 0

        def results_of(self, graph, *, stress):
            self.calls += 1
            if self.calls == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().results_of(graph, stress=stress)

    before = threading.active_count()
    options = dict(replicas=3, every=100, temperature=50, out=tmp_path, **QUIET)
    with pytest.raises(SystemExit, match="143"):
        md_many(molecule("CH4"), Interrupting(model), steps=50, **options)
    steps = [read(tmp_path / f"50K-{k}" / "last.xyz").info["step"] for k in range(3)]
    assert steps == [5, 5, 5]
    again = md_many(molecule("CH4"), model, steps=8, **options)
    alone = md(molecule("CH4"), model, steps=8, seed=2, temperature=50, **QUIET)
    assert np.allclose(again[2].atoms.positions, alone.atoms.positions, rtol=0, atol=1e-10)
    assert threading.active_count() == before


def test_relaxations_in_one_batch(model, tmp_path):
    rng = np.random.default_rng(0)
    frames = []
    for name in ("CH3CH2OH", "CH4", "CH3CH2OH"):
        atoms = molecule(name)
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        frames.append(atoms)
    sizes = []

    class Counting(mq.Calculator):
        def results_of(self, graph, *, stress):
            sizes.append(graph.num_graphs)
            return super().results_of(graph, stress=stress)

    # A model that is not trained has so many minima that round-off decides between them after 50 steps.
    found = relax_many(frames, Counting(model, dtype="float64"), fmax=0.035, out=tmp_path, **QUIET)
    alone = [relax(atoms, model, fmax=0.035, **QUIET) for atoms in frames]
    assert max(run.steps for run in alone) < 40
    for one, other in zip(found, alone):
        assert one.converged and one.steps == other.steps
        assert np.allclose(one.atoms.positions, other.atoms.positions, rtol=0, atol=1e-7)
    assert sizes[0] == 3 and sorted(sizes, reverse=True) == sizes  # who has converged leaves the batch
    assert len(sizes) < sum(run.steps for run in alone)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2"}
    assert found[-1] is list(found)[2] and len(found[:2]) == len(found) - 1 == 2 and found.converged
    assert str(found).startswith("3 of 3 relaxations converged") and len(str(found).splitlines()) >= 5
    assert str(found[0].steps) in str(found) and "<table" in found._repr_html_()
    write(tmp_path / "all.xyz", frames)
    from_file = relax_many(tmp_path / "all.xyz", model, fmax=0.035, **QUIET)
    assert [run.steps for run in from_file] == [run.steps for run in found]
    with pytest.raises(DataError, match="none.xyz"):
        relax_many(tmp_path / "none.xyz", model, **QUIET)


def test_an_error_of_the_model_reaches_every_task(model):
    class Broken(mq.Calculator):
        def results_of(self, graph, *, stress):
            raise ModelError("broken")

    tasks = [lambda own, k=k: own.get_potential_energy(molecule("CH4")) + k for k in range(3)]
    found = Together(Broken(model), tasks).run()
    assert [str(error) for error in found] == ["broken"] * 3
    assert Together(mq.Calculator(model), []).run() == []


def test_settings_are_checked(model):
    for changes, words in [
        ({"replicas": 0}, "replicas=0: wanted a whole number above zero"),
        ({"temperature": [300, 300]}, r"temperature=\[300, 300\]: wanted different temperatures; replicas"),
        ({"temperature": []}, r"temperature=\[\]: wanted different"),
        ({"temperature": [-1]}, "temperature=-1: wanted a number, zero or more"),
        ({"steps": None}, "wanted one of the two"),
        ({"ensemble": "nvt_x"}, "ensemble='nvt_x'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            md_many(molecule("CH4"), model, **{"steps": 1, **QUIET, **changes})
    with pytest.raises(UnknownKeywordError, match=r"md_many\(frictoin=…\): md has no such argument"):
        md_many(molecule("CH4"), model, steps=1, frictoin=3)
    with pytest.raises(
        UnknownKeywordError, match=r"md\(replicas=4\): now mq.md_many\(atoms, calculator, replicas=4\)"
    ):
        md(molecule("CH4"), model, steps=1, replicas=4)
    with pytest.raises(ConfigError, match="no structures"):
        md_many([], model, steps=1)


def test_from_the_command_line(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mq.save(model, "m.safetensors")
    write("a.xyz", [molecule("CH4"), molecule("CH3CH2OH")])
    words = "md m.safetensors a.xyz --temperature 50 100 --replicas 2 --steps 4 --every 2 --ensemble nvt"
    assert main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "4 simulations, " in shown and "mean 50K" in shown
    assert sorted(path.name for path in (tmp_path / "md").iterdir()) == ["100K-0", "100K-1", "50K-0", "50K-1"]
    assert (tmp_path / "md" / "50K-1" / "trajectory.png").exists()
    assert main(["md", "m.safetensors", "a.xyz", "--temperature", "50", "--steps", "2", "--out", "one"]) == 0
    assert (tmp_path / "one" / "last.xyz").exists()
    assert main(["relax", "m.safetensors", "a.xyz", "--all", "--steps", "2", "--out", "both"]) == 0
    shown = capsys.readouterr().out
    assert "0 of 2 relaxations converged" in shown and "both: 0, 1, each with" in shown
    assert [line.split()[:4] for line in shown.splitlines() if "NO" in line] == [
        ["0", "CH4", "NO", "2"],
        ["1", "C2H6O", "NO", "2"],
    ]
    assert len(read("both/1/last.xyz")) == 9
    assert main(["md", "m.safetensors", "a.xyz", "--temperature", "50", "x", "--steps", "2"]) == 2
    assert "--temperature: found" in capsys.readouterr().err


def test_structures_are_not_averaged_together(model):
    atoms = molecule("CH4")
    other = atoms.copy()
    other.positions *= 1.1
    runs = md_many([atoms, other], model, replicas=2, temperature=50, steps=3, every=1, **QUIET)
    assert "mean 0-50K" in str(runs) and "mean 1-50K" in str(runs) and runs.structures == (0, 0, 1, 1)
    found = runs.averages(50, structure=1)["E_pot"].mean
    assert found == pytest.approx(np.mean([run.averages["E_pot"].mean for run in runs[2:]]))


def test_the_picture_of_npt_shows_pressure_and_volume(tmp_path, monkeypatch, capsys):
    from ase.build import bulk

    from molequi import plotting

    drawn = {}
    real = plotting.trajectory

    def record(time, *, title, **curves):
        drawn.update(curves, title=title)
        return real(time, title=title, **curves)

    monkeypatch.setattr(plotting, "trajectory", record)
    monkeypatch.chdir(tmp_path)
    mq.save(
        mq.Model(mq.EGNN(elements=["Cu"], channels=4, layers=1), ["energy", "forces", "stress"]),
        "m.safetensors",
    )
    write("cu.xyz", bulk("Cu", cubic=True))
    words = "md m.safetensors cu.xyz --temperature 50 --steps 4 --every 2 --ensemble npt --out npt"
    assert main(words.split()) == 0
    log = np.genfromtxt("npt/log.csv", delimiter=",", names=True)
    assert np.allclose(drawn["volume_Å³"], log["volume"]) and np.allclose(
        drawn["pressure_bar"], log["pressure"]
    )
    assert drawn["title"] == "npt, 4 atoms, 50 K asked for"
    assert drawn["total_-_start_eV"][0] == 0 and drawn["kinetic_eV"][0] > 0
