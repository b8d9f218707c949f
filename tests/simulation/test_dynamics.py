"""Ensembles against what is known on paper; restart, interrupts, kills and explosions."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron
from ase.constraints import FixAtoms
from ase.io import read, write

import molequi as mq
from molequi.cli import main
from molequi.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DataWarning,
    SimulationError,
    TrainingError,
    UnknownKeywordError,
)
from molequi.simulation import drift, md
from molequi.simulation.integrators import draw_velocities

FORMATS = Path(__file__).resolve().parent.parent / "formats"
QUIET = {"progress": False}
SAME = ("trajectory.xyz", "log.csv", "last.xyz")


def cluster() -> Atoms:
    return Icosahedron("Ar", 2, latticeconstant=5.2)  # 13 atoms


def crystal() -> Atoms:
    return Atoms(
        "COHH",
        [[0.1, 0.2, 0.0], [1.5, 0.4, 1.1], [0.3, 1.9, 2.0], [2.2, 2.3, 0.3]],
        cell=[[3.4, 0, 0], [0.7, 3.6, 0], [0.3, -0.4, 3.8]],
        pbc=True,
    )


def step_of(folder) -> int:
    with np.load(folder / "state.npz", allow_pickle=False) as state:
        return int(state["step"])


class Interrupting:
    """Another calculator that sends this process a signal, or answers something else, at its n-th new structure."""

    def __init__(self, calculator, at, then):
        self.calculator, self.at, self.then, self.seen = calculator, at, then, 0
        self.implemented_properties = calculator.implemented_properties

    def __getattr__(self, name):
        return getattr(self.calculator, name)

    def calculate_once(self, atoms):
        if self.calculator.check_state(atoms):
            self.seen += 1
            if self.seen == self.at:
                self.then(self.calculator)

    def get_property(self, name, atoms=None, allow_calculation=True):
        self.calculate_once(atoms)
        return self.calculator.get_property(name, atoms, allow_calculation)

    def get_potential_energy(self, atoms=None, force_consistent=False):
        return self.get_property("energy", atoms)

    def get_forces(self, atoms=None):
        return self.get_property("forces", atoms)


# Laws.


def test_drift_by_hand():
    times = np.linspace(0, 10, 101)
    noise = 2e-6 * (-1.0) ** np.arange(101)
    slope, rms = drift(times, -9000 + 3e-5 * times + noise, n_atoms=15)
    assert slope == pytest.approx(2e-3, rel=1e-3) and rms == pytest.approx(2e-3 / 15, rel=1e-2)
    with pytest.raises(DataError, match="three or more"):
        drift([0, 1], [0, 1], n_atoms=1)
    with pytest.raises(DataError, match="wanted two series"):
        drift([0, 1, 2], [0, 1], n_atoms=1)


def test_nve_keeps_the_energy_and_its_error_falls_with_the_square_of_the_time_step(calculators):
    options = dict(temperature=30, time=10, every=1, seed=1, out=None, **QUIET)
    runs = [md(cluster(), calculators["argon"](), timestep=dt, **options) for dt in (8.0, 4.0, 2.0)]
    rms = [run.drift.rms for run in runs]
    assert 3.7 < rms[0] / rms[1] < 4.3 and 3.7 < rms[1] / rms[2] < 4.3
    assert abs(runs[-1].drift.slope) < 1e-3 and "meV/atom/ps" in str(runs[-1])
    momentum = runs[-1].atoms.get_momenta().sum(0)
    assert np.abs(momentum).max() < 1e-9 and np.abs(runs[-1].atoms.get_angular_momentum()).max() < 1e-6


def test_langevin_has_the_temperature_in_positions_and_velocities(calculators):
    """Equipartition: each of 3N coordinates and velocities has kT/2 on average. 5 standard errors of a long run."""
    places = np.random.default_rng(0).uniform(0, 20, (100, 3))
    run = md(
        Atoms("C100", places),
        calculators["springs"](places, k=5.0),
        ensemble="langevin",
        temperature=400,
        timestep=2.0,
        thermostat=mq.Thermostat(friction=0.02),
        steps=4000,
        every=10,
        seed=2,
        out=None,
        **QUIET,
    )
    wanted = 300 / 2 * units.kB * 400
    for column in ("E_pot", "E_kin"):
        values = run.history[column][100:]
        assert values.mean() == pytest.approx(wanted, rel=0.03), column
    assert run.history["T"][100:].mean() == pytest.approx(400, rel=0.03)


def test_npt_of_an_ideal_gas_has_its_volume(calculators):
    """⟨V⟩ = (N + 1) k T / P, from half and from twice of it; and V fluctuates by √(N + 1) k T / P."""
    n, kelvin, bar = 100, 300.0, 2000.0
    volume = (n + 1) * units.kB * kelvin / (bar * units.bar)
    for start in (0.5, 2.0):
        side = (start * volume) ** (1 / 3)
        gas = Atoms(f"Ar{n}", np.random.default_rng(0).uniform(0, side, (n, 3)), cell=[side] * 3, pbc=True)
        run = md(
            gas,
            calculators["gas"](),
            ensemble="npt",
            temperature=kelvin,
            timestep=5.0,
            barostat=mq.Barostat(pressure=bar, time=200.0),
            steps=8000,
            every=10,
            seed=3,
            out=None,
            **QUIET,
        )
        settled = run.history["volume"][200:]
        assert settled.mean() == pytest.approx(volume, rel=0.06)
        assert 0.5 < settled.std() / (volume / np.sqrt(n + 1)) < 2
        assert run.history["pressure"][200:].mean() == pytest.approx(bar, rel=0.06)
        assert np.allclose(run.atoms.cell.cellpar()[3:], 90)


@pytest.mark.parametrize(
    "atoms, freedom",
    [
        (Atoms("C"), 0),
        (Atoms("CO", [[0, 0, 0], [0.3, 1, 0.2]]), 1),
        (Atoms("OCO", [[-1, -1, 0], [0, 0, 0], [1, 1, 0]]), 4),
        (molecule("H2O"), 3),
        (molecule("CH3CH2OH"), 21),
        (crystal(), 9),
    ],
)
def test_velocities_are_still_as_a_whole_and_of_the_temperature(atoms, freedom):
    stilled = draw_velocities(atoms, 300.0, np.random.default_rng(0), still=True)
    assert 3 * len(atoms) - stilled == freedom
    assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-12
    if not atoms.pbc.any():
        assert np.abs(atoms.get_angular_momentum()).max() < 1e-12
    assert atoms.get_kinetic_energy() == pytest.approx(freedom / 2 * units.kB * 300, abs=1e-12)


def test_velocities_that_are_given_are_kept(calculators):
    atoms = cluster()
    atoms.set_momenta(np.random.default_rng(0).normal(size=(13, 3)))
    run = md(atoms, calculators["argon"](), temperature=None, steps=0, out=None, **QUIET)
    assert np.array_equal(run.atoms.get_momenta(), atoms.get_momenta()) and run.atoms is not atoms
    other = md(atoms, calculators["argon"](), temperature=30, steps=0, seed=5, out=None, **QUIET)
    again = md(atoms, calculators["argon"](), temperature=30, steps=0, seed=5, out=None, **QUIET)
    assert np.array_equal(other.atoms.get_momenta(), again.atoms.get_momenta())
    assert not np.array_equal(other.atoms.get_momenta(), atoms.get_momenta())


def test_atoms_that_are_fixed_stay(calculators):
    atoms = cluster()
    atoms.set_constraint(FixAtoms([0]))
    run = md(atoms, calculators["argon"](), temperature=30, steps=20, out=None, **QUIET)
    assert np.array_equal(run.atoms.positions[0], atoms.positions[0])
    assert not np.array_equal(run.atoms.positions[1], atoms.positions[1])


# Files.


def test_what_is_in_the_files(model, tmp_path):
    atoms = molecule("CH3CH2OH")
    atoms.info.update(label="old", charge=0, spin_multiplicity=1)
    atoms.arrays["REF_forces"] = np.ones((9, 3))
    run = md(atoms, model, timestep=0.5, steps=45, every=20, out=tmp_path / "md", **QUIET)
    frames = read(tmp_path / "md" / "trajectory.xyz", index=":")
    assert [f.info["step"] for f in frames] == [0, 20, 40] and [f.info["time_ps"] for f in frames] == [
        0.0,
        0.01,
        0.02,
    ]
    assert all(
        "label" not in f.info and "REF_forces" not in f.arrays and f.info["charge"] == 0 for f in frames
    )
    assert all(f.info["spin_multiplicity"] == 1 for f in frames)
    assert np.allclose(frames[2].get_potential_energy(), run.history["E_pot"][2], rtol=0, atol=1e-9)
    frames[2].calc, kept = mq.Calculator(model), frames[2].get_forces()
    assert np.allclose(frames[2].get_forces(), kept, rtol=0, atol=1e-6)
    last = read(tmp_path / "md" / "last.xyz")
    assert last.info["step"] == run.steps == 45 and np.allclose(
        last.positions, run.atoms.positions, atol=1e-7
    )
    assert list(run.history) == ["step", "time_ps", "E_pot", "E_kin", "E_tot", "T"]
    assert np.allclose(run.history["E_pot"] + run.history["E_kin"], run.history["E_tot"])
    assert "nve: 45 steps, 0.0225 ps" in str(run) and "trajectory.xyz" in str(run)
    assert not list((tmp_path / "md").glob(".*"))
    assert mq.read_extxyz(tmp_path / "md" / "trajectory.xyz")[1].targets["forces"].shape == (9, 3)


def test_masses_and_fixed_atoms_are_in_the_files(model, tmp_path):
    """So that who starts from a frame has the same simulation, and the momenta the same temperature."""
    atoms = molecule("CH3CH2OH")
    atoms.set_masses([2.014 if symbol == "H" else None for symbol in atoms.symbols])
    atoms.set_constraint(FixAtoms([0, 3]))
    run = md(atoms, model, temperature=300, steps=3, every=1, out=tmp_path, **QUIET)
    for frame in (read(tmp_path / "last.xyz"), read(tmp_path / "trajectory.xyz", index=-1)):
        assert np.allclose(frame.get_masses(), run.atoms.get_masses(), rtol=0, atol=1e-7)
        assert sorted(frame.constraints[0].index) == [0, 3] and len(frame.constraints) == 1
        assert frame.get_kinetic_energy() == pytest.approx(run.atoms.get_kinetic_energy(), rel=1e-6) != 0
        kept = run.atoms.get_forces(apply_constraint=False)
        assert (
            np.allclose(frame.get_forces(apply_constraint=False), kept, rtol=0, atol=1e-6) and kept[0].any()
        )
    forces = mq.read_extxyz(tmp_path / "trajectory.xyz")[-1].targets["forces"].numpy()
    assert np.allclose(forces, kept, rtol=0, atol=1e-6)
    plain = md(molecule("CH3CH2OH"), model, steps=1, out=tmp_path / "plain", **QUIET)
    assert plain.out and not read(tmp_path / "plain" / "last.xyz").has("masses")


def test_without_out_nothing_is_written(calculators, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = md(cluster(), calculators["argon"](), temperature=30, steps=2, **QUIET)
    other = md(cluster()[:5], calculators["argon"](), temperature=30, steps=2, **QUIET)
    assert run.out is other.out is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "ensemble, start", [("nve", "molecule"), ("langevin", "molecule"), ("npt", "crystal")]
)
def test_c17_a_restart_gives_the_trajectory_without_interruption(ensemble, start, model, tmp_path):
    atoms = molecule("CH3CH2OH") if start == "molecule" else crystal()
    options = dict(ensemble=ensemble, timestep=0.5, every=4, seed=7, **QUIET)
    if ensemble != "nve":
        options["thermostat"] = {"friction": 0.05}
    whole = md(atoms, model, steps=40, out=tmp_path / "whole", **options)
    for steps in (6, 20, 21, 40):
        parts = md(atoms, model, steps=steps, out=tmp_path / "parts", **options)
    assert parts.steps == 40
    for name in SAME:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    assert np.array_equal(whole.atoms.positions, parts.atoms.positions)
    assert np.array_equal(whole.atoms.get_momenta(), parts.atoms.get_momenta())
    assert np.array_equal(whole.atoms.cell, parts.atoms.cell)
    assert all(np.array_equal(whole.history[k], parts.history[k]) for k in whole.history)
    other = md(atoms, model, steps=40, out=None, **{**options, "seed": 8})
    assert not np.array_equal(other.atoms.positions, whole.atoms.positions)


@pytest.mark.parametrize("number, ending", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interrupt_loses_nothing(number, ending, calculators, tmp_path):
    options = dict(ensemble="langevin", temperature=30, timestep=5.0, every=10, **QUIET)
    md(cluster(), calculators["argon"](), steps=50, out=tmp_path / "whole", **options)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    ends = Interrupting(calculators["argon"](), 24, lambda _: os.kill(os.getpid(), number))
    with pytest.raises(ending):
        md(cluster(), ends, steps=50, out=tmp_path / "cut", **options)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert read(tmp_path / "cut" / "last.xyz").info["step"] == 23  # the first structure is step 0
    assert step_of(tmp_path / "cut") == 23
    md(cluster(), calculators["argon"](), steps=50, out=tmp_path / "cut", **options)
    for name in SAME:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


def test_kills_lose_no_more_than_the_steps_between_frames(model, tmp_path):
    """SIGKILL in the middle of a run that writes at every second step; the last call ends as if it were the only one."""
    mq.save(model, tmp_path / "m.safetensors")
    write(tmp_path / "start.xyz", molecule("CH3CH2OH"))
    script = textwrap.dedent("""
        import os, sys, signal, threading, random
        from molequi.simulation import files, md
        folder, seconds = sys.argv[1], float(sys.argv[2])
        save = files.SimulationFiles.save_state
        def saved(self, atoms, step, **more):      # the clock starts with the first state of this process
            save(self, atoms, step, **more)
            if not hasattr(self, "clock"):
                self.clock = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL))
                self.clock.daemon = True
                self.clock.start()
        if seconds:
            files.SimulationFiles.save_state = saved
        md("start.xyz", "m.safetensors", ensemble="langevin", steps=300, every=2, out=folder, progress=False)
    """)

    def run(folder, seconds):
        command, env = (
            [sys.executable, "-c", script, folder, str(seconds)],
            {**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)

    reached = -1
    for seconds in (0.05, 0.25):
        assert run("killed", seconds).returncode == -signal.SIGKILL
        step = step_of(tmp_path / "killed")
        frames = read(tmp_path / "killed" / "trajectory.xyz", index=":")
        assert step > reached and step - 2 <= frames[-1].info["step"] <= step + 2
        reached = step
    assert reached < 300
    for folder in ("killed", "whole"):
        done = run(folder, 0)
        assert done.returncode == 0, done.stderr
    for name in SAME:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {
        p.name for p in (tmp_path / "whole").iterdir()
    }


def test_settings_structure_and_calculator_must_be_those_of_the_folder(calculators, model, tmp_path):
    def run(atoms=None, calculator=None, **changes):
        given = {
            "temperature": 30.0,
            "timestep": 5.0,
            "steps": 10,
            "every": 5,
            "out": tmp_path / "md",
            **changes,
        }
        return md(atoms or cluster(), calculator or calculators["argon"](), **QUIET, **given)

    run()
    told = r"another simulation:\n  temperature: 30.0 → 40.0\n  timestep: 5.0 → 2.0\n(.*\n)*Begin anew"
    with pytest.raises(ConfigError, match=told):
        run(temperature=40, timestep=2)
    moved = cluster()
    moved.positions[0, 0] += 1e-3
    with pytest.raises(ConfigError, match="structure:"):
        run(moved)
    held = cluster()
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(ConfigError, match="structure:"):
        run(held)
    stiff = calculators["argon"]()
    stiff.epsilon = 0.02
    with pytest.raises(ConfigError, match="the calculator is another one"):
        run(calculator=stiff)
    assert run(steps=20).steps == 20 and run(steps=10).steps == 20
    assert run(temperature=40, resume="restart").steps == 10
    assert [f.info["step"] for f in read(tmp_path / "md" / "trajectory.xyz", index=":")] == [0, 5, 10]


def test_a_folder_of_an_earlier_version_is_continued(calculators, tmp_path):
    """tests/formats/simulation1 has settings without groups, and a column forces_spread."""

    class Watched(calculators["argon"]):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["forces_std"] = np.linalg.norm(self.results["forces"], axis=1) / 10

    def run(out, friction=0.02, **changes):
        atoms = Atoms("Ar3", [[0, 0, 0], [3.6, 0.4, 0], [1.5, 3.5, 0.3]])
        given = dict(ensemble="langevin", temperature=30, timestep=5.0, every=2, seed=1, **QUIET)
        return md(atoms, Watched(), thermostat={"friction": friction}, out=out, **{**given, **changes})

    shutil.copytree(FORMATS / "simulation1", tmp_path / "old")
    continued, whole = run(tmp_path / "old", steps=8), run(tmp_path / "new", steps=8)
    assert continued.steps == 8 and continued.history["step"].tolist() == [0, 2, 4, 6, 8]
    assert list(continued.history) == list(whole.history) and "forces_std" in whole.history
    for name, values in whole.history.items():
        assert np.allclose(continued.history[name], values, rtol=1e-9, atol=1e-12), name
    assert run(tmp_path / "old", steps=9).steps == 9  # its state has the present names now
    with pytest.raises(
        ConfigError, match=r"another simulation:\n  thermostat.friction: 0.02 → 0.5\n(.*\n)*Begin"
    ):
        run(tmp_path / "old", friction=0.5, steps=10)


def test_damaged_files_are_refused(calculators, tmp_path):
    def run(**changes):
        given = dict(temperature=30, steps=10, every=5, out=tmp_path, **QUIET)
        return md(cluster(), calculators["argon"](), **given, **changes)

    run()
    state, log = tmp_path / "state.npz", tmp_path / "log.csv"
    content, rows = state.read_bytes(), log.read_bytes()
    log.write_bytes(rows[:-9])
    with pytest.raises(CheckpointError, match=f"log.csv: {len(rows) - 9} bytes, and it had {len(rows)}"):
        run()
    log.write_bytes(rows + b"15,torn")
    assert run().steps == 10 and log.read_bytes() == rows
    flipped = content[:500] + bytes([content[500] ^ 1]) + content[501:]
    for damaged in (content[:100], content[: len(content) // 2], b"", flipped):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="state.npz: not a whole file of a simulation"):
            run()
    assert run(resume="restart").steps == 10


@pytest.mark.parametrize("kind", ["langevin", "bussi", "nose-hoover"])
def test_every_damaged_entry_of_a_state_is_answered(calculators, tmp_path, kind):
    def run(**changes):
        given = dict(
            temperature=30,
            steps=10,
            every=5,
            out=tmp_path,
            ensemble="nvt",
            thermostat={"kind": kind},
            **QUIET,
        )
        return md(cluster(), calculators["argon"](), **given | changes)

    run()
    path = tmp_path / "state.npz"
    with np.load(path, allow_pickle=False) as state:
        good = dict(state)
    content = path.read_bytes()
    assert {"step", "positions", "momenta", "cell", "energy", "sizes", "settings", "rng"} <= set(good)
    text = np.array("{")
    tried = 0
    for name, value in good.items():
        damaged = [None, value[None], text]
        if value.dtype.kind == "f":
            damaged += [np.full_like(value, np.nan), value.astype(str)]
            damaged += [value[:-1]] if value.ndim else []
        if value.dtype.kind == "i":
            damaged += [-value - 1]
        for other in damaged:
            if name in ("rng", "settings") and other is not text and other is not None:
                continue
            kept = {k: v for k, v in good.items() if k != name} | ({} if other is None else {name: other})
            np.savez(path, allow_pickle=False, **kept)
            with pytest.raises(
                CheckpointError, match="state.npz: not a whole file of a simulation .*restart"
            ):
                run(steps=20)
            tried += 1
    assert tried > 30
    path.write_bytes(content)
    log = tmp_path / "log.csv"
    rows = log.read_bytes()
    for damage in (rows.replace(b"10,", b"1x,", 1), rows.replace(b",", b"\n", 3)):
        log.write_bytes(damage.ljust(len(rows)))
        with pytest.raises(CheckpointError, match="log.csv: not a whole file of a simulation"):
            run(steps=20)
    log.write_bytes(rows)
    assert run(steps=20).steps == 20  # the control


def test_one_simulation_at_a_time_in_a_folder(calculators, tmp_path):
    def meddle(_):
        with pytest.raises(TrainingError, match="another run uses this folder"):
            md(cluster(), calculators["argon"](), temperature=30, steps=1, out=tmp_path, **QUIET)
        met.append(True)

    met = []
    md(
        cluster(),
        Interrupting(calculators["argon"](), 3, meddle),
        temperature=30,
        steps=5,
        out=tmp_path,
        **QUIET,
    )
    assert met == [True]


def test_a_full_disk_is_named(calculators, tmp_path):
    """No file of this process may grow beyond 20 kB: half a frame is written. With room it goes on as if nothing was."""
    options = dict(temperature=30, timestep=5.0, steps=60, every=2, **QUIET)
    md(cluster(), calculators["argon"](), out=tmp_path / "whole", **options)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(SimulationError, match="trajectory.xyz: .*make room, then start the same again"):
            md(cluster(), calculators["argon"](), out=tmp_path / "cut", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "cut" / "trajectory.xyz").stat().st_size == 20_000
    md(cluster(), calculators["argon"](), out=tmp_path / "cut", **options)
    for name in SAME:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name


# Explosions.


def test_c16_forces_that_explode(calculators, tmp_path):
    def repel(calculator):
        calculator.epsilon = 1e6

    atoms = cluster()
    ends = Interrupting(calculators["argon"](), 8, repel)
    told = r"step 7: the force on atom \d+ \(Ar\) is .* more than 1000.*good frame, of step 6, is .*last.xyz"
    with pytest.raises(SimulationError, match=told) as caught:
        md(atoms, ends, temperature=30, timestep=5.0, steps=50, every=5, out=tmp_path, **QUIET)
    good = read(tmp_path / "last.xyz")
    assert good.info["step"] == 6 and np.allclose(good.positions, caught.value.last_good.positions, atol=1e-7)
    assert read(tmp_path / "trajectory.xyz", index=-1).info["step"] == 5
    assert step_of(tmp_path) == 5


@pytest.mark.parametrize(
    "what, words", [("forces", "force on atom 3 .* is nan eV/Å"), ("energy", "the energy is nan")]
)
def test_c16_numbers_that_are_none(what, words, calculators):
    def break_it(calculator):
        whole = calculator.calculate

        def calculate(*args, **kwargs):
            whole(*args, **kwargs)
            if what == "forces":
                calculator.results["forces"][3, 1] = np.nan
            else:
                calculator.results["energy"] = np.nan

        calculator.calculate = calculate

    with pytest.raises(SimulationError, match=f"step 4: .*{words}.*last_good") as caught:
        md(
            cluster(),
            Interrupting(calculators["argon"](), 5, break_it),
            temperature=30,
            steps=9,
            out=None,
            **QUIET,
        )
    assert np.isfinite(caught.value.last_good.positions).all()


def test_c16_temperature_that_explodes(calculators):
    """An argon cluster far too hot for the step: ASE alone runs on."""
    atoms = cluster()
    atoms.positions *= 0.75
    told = r"step \d+: the temperature is \d+ K, more than 530; fastest is atom \d+ \(Ar\)"
    with pytest.raises(SimulationError, match=told):
        md(
            atoms,
            calculators["argon"](),
            temperature=30,
            timestep=2.0,
            steps=2000,
            limits=mq.Limits(max_heating=500),
            out=None,
            **QUIET,
        )
    atoms.positions *= 0.3
    with pytest.raises(SimulationError, match=r"step 0: the force .*It begins so") as caught:
        md(atoms, calculators["argon"](), temperature=30, steps=2, out=None, **QUIET)
    assert caught.value.last_good is None


def test_c16_a_model_that_refuses_a_structure(model, tmp_path):
    """What the calculator itself refuses on the way ends with the last good frame too."""

    def refuse(calculator):
        calculator.model.backbone.elements = (1,)

    atoms = molecule("CH3CH2OH")
    with pytest.raises(SimulationError, match="step 3: atom 0: this model does not know C, O.*of step 2"):
        md(atoms, Interrupting(mq.Calculator(model), 4, refuse), steps=9, out=tmp_path, **QUIET)
    assert read(tmp_path / "last.xyz").info["step"] == 2


# Settings and inputs.


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"ensemble": "nvt_langevin"},
            r"ensemble='nvt_langevin': wanted 'nve' \(constant energy\), 'nvt' \(constant temperature\) or 'npt'",
        ),
        (
            {"thermostat": {"friction": 0.1}},
            r"ensemble='nve' with thermostat=\{'friction': 0.1\}: constant energy has no thermostat; leave",
        ),
        (
            {"ensemble": "langevin", "barostat": {"pressure": 5}},
            r"ensemble='langevin' with barostat=\{'pressure': 5.0\}: the volume is constant; leave barostat",
        ),
        (
            {"ensemble": "langevin", "thermostat": "bussi"},
            "ensemble='langevin' with thermostat 'bussi': wanted ensemble='nvt'",
        ),
        (
            {"ensemble": "npt", "thermostat": "bussi"},
            "ensemble='npt' with thermostat 'bussi': there is no barostat .* wanted 'langevin' or 'nose-hoover'",
        ),
        (
            {"ensemble": "npt", "barostat": {"cell": "anisotropic"}},
            "thermostat 'langevin': cells that change their shape need thermostat='nose-hoover'",
        ),
        (
            {"ensemble": "nvt", "thermostat": {"kind": "bussi", "friction": 0.5}},
            "md.thermostat: friction=0.5 is for 'langevin'; wanted time=… .fs. for 'bussi'",
        ),
        (
            {"ensemble": "nvt", "thermostat": {"time": 5.0}},
            "md.thermostat: time=5 is for 'bussi' and 'nose-hoover'; wanted friction",
        ),
        ({"ensemble": "nvt", "thermostat": "berendsen"}, "md.thermostat: found 'berendsen' .*'bussi'"),
        (
            {"ensemble": "nvt", "thermostat": "nose-hoover", "temperature": 0},
            "temperature=0: ensemble='nvt' with the thermostat 'nose-hoover' needs a temperature above zero",
        ),
        (
            {"temperature": [300, 600]},
            r"temperature=\[300, 600\]: one simulation has one temperature; .* mq.md_many\(",
        ),
        ({"temperature": -1}, "temperature=-1: wanted a number, zero or more"),
        ({"temperature": None, "ensemble": "langevin"}, "needs one in K"),
        (
            {"temperature": 0, "ensemble": "npt"},
            "temperature=0: ensemble='npt' with the thermostat 'langevin' needs a temperature above zero",
        ),
        ({"timestep": 0}, "timestep=0: wanted a number above zero"),
        ({"timestep": "1"}, "timestep='1': wanted a number"),
        (
            {"thermostat": {"friction": float("nan")}},
            "md.thermostat.friction: found nan .*wanted a finite number",
        ),
        (
            {"thermostat": 0.02},
            r"md.thermostat: found 0.02 \(float\); wanted 'langevin', 'bussi' or 'nose-hoover'",
        ),
        ({"barostat": {"presure": 1}}, "md.barostat.presure: no such option .* did you mean 'pressure'"),
        ({"barostat": {"time": -1.0}}, "md.barostat.time: found -1.0 .*wanted .*greater than 0"),
        ({"every": 2.5}, "every=2.5: wanted a whole number above zero"),
        ({"seed": -1}, "seed=-1: wanted a whole number, zero or more"),
        ({"limits": {"max_force": 0}}, "md.limits.max_force: found 0 .*wanted .*greater than 0"),
        (
            {"barostat": {"pressure": float("inf")}},
            "md.barostat.pressure: found inf .*wanted a finite number",
        ),
        ({"steps": None}, "wanted one of the two"),
        ({"time": 1.0}, "wanted one of the two"),
        ({"steps": -1}, "steps=-1: wanted a whole number, zero or more"),
        ({"steps": None, "time": -1.0}, "time=-1.0: wanted ps"),
        ({"steps": None, "time": [1, 2]}, r"time=\[1, 2\]: wanted ps"),
        ({"steps": True}, "steps=True: wanted a whole number, zero or more"),
        ({"out": 5}, "out=5: wanted the path of a folder, or None"),
        ({"ensemble": "npt"}, r"ensemble='npt' with pbc=\[False, False, False\]"),
        ({"resume": "maybe"}, "resume='maybe': wanted 'auto' or 'restart'"),
    ],
)
def test_settings_are_checked(changes, words, calculators):
    with pytest.raises(ConfigError, match=words):
        md(cluster(), calculators["argon"](), **{"steps": 1, "out": None, **QUIET, **changes})


def test_numbers_of_numpy_are_numbers(calculators, tmp_path):
    plain = dict(temperature=30.0, timestep=4.0, steps=6, every=2, seed=3, **QUIET)
    numpy = dict(
        temperature=np.float32(30),
        timestep=np.float64(4),
        steps=np.int64(6),
        every=np.int32(2),
        seed=np.int64(3),
        **QUIET,
    )
    one = md(cluster(), calculators["argon"](), out=tmp_path, **plain)
    other = md(
        cluster(), calculators["argon"](), out=tmp_path, **numpy
    )  # the same settings: the folder is its own
    assert other.steps == one.steps and np.array_equal(one.atoms.positions, other.atoms.positions)


def test_npt_refuses_constraints(calculators):
    gas = Atoms("Ar2", [[0, 0, 0], [5, 5, 5]], cell=[10, 10, 10], pbc=True, constraint=FixAtoms([0]))
    with pytest.raises(
        ConfigError, match="ensemble='npt' with FixAtoms: a change of the volume would move constrained atoms"
    ):
        md(gas, calculators["gas"](), ensemble="npt", steps=1, out=None, **QUIET)


def test_inputs_are_checked(calculators, tmp_path):
    (tmp_path / "junk.xyz").write_text("not a structure\n")
    for given, words in [
        (tmp_path / "none.xyz", "none.xyz: no such file"),
        (tmp_path / "junk.xyz", "wanted a number of atoms, found .not a structure."),
        (Atoms(), "has no atoms"),
        ([cluster()], "the structure is list"),
    ]:
        with pytest.raises(DataError, match=words):
            md(given, calculators["argon"](), steps=1, out=None, **QUIET)
    with pytest.raises(ConfigError, match="calculator is NoneType"):
        md(cluster(), None, steps=1, out=None, **QUIET)
    with pytest.raises(
        ConfigError, match=r"calculator is the class Calculator; wanted one made with Calculator\("
    ):
        md(cluster(), mq.Calculator, steps=1, out=None, **QUIET)
    write(tmp_path / "two.xyz", [cluster(), cluster()])
    for index in (2, -3, 9999999):
        with pytest.raises(DataError, match=rf"two.xyz: no frame {index}; the file has 2, numbered from 0"):
            md(tmp_path / f"two.xyz@{index}", calculators["argon"](), steps=1, **QUIET)
    with pytest.raises(DataError, match=r"two.xyz@0:2: found @0:2; wanted one frame, such as .*two.xyz@3"):
        md(f"{tmp_path}/two.xyz@0:2", calculators["argon"](), steps=1, **QUIET)


def test_a_frame_of_a_file_is_named_as_in_ase(calculators, tmp_path):
    write(tmp_path / "three.xyz", [cluster(), cluster()[:5], cluster()[:3]])
    write(tmp_path / "a@b.xyz", cluster()[:2], format="extxyz")
    found = [("three.xyz", 13), ("three.xyz@1", 5), ("three.xyz@-1", 3), ("a@b.xyz", 2)]
    for name, count in found:
        assert len(md(tmp_path / name, calculators["argon"](), steps=0, **QUIET).atoms) == count


@pytest.mark.parametrize(
    "old, new",
    [
        ({"friction": 0.1}, "md(friction=0.1): now thermostat=mq.Thermostat(friction=0.1)"),
        ({"pressure": 2.0}, "md(pressure=2.0): now barostat=mq.Barostat(pressure=2.0)"),
        ({"barostat_time": 1.0}, "md(barostat_time=1.0): now barostat=mq.Barostat(time=1.0)"),
        ({"max_heating": 1.0}, "md(max_heating=1.0): now limits=mq.Limits(max_heating=1.0)"),
        (
            {"max_force": 1.0, "max_spread": 0.1},
            "limits=mq.Limits(max_force=1.0)\nmd(max_spread=0.1): now limits=mq.Limits(max_std=0.1)",
        ),
        ({"index": 3}, 'md(index=3): now a part of the path, as in ASE: "frames.xyz@3"'),
        ({"device": "cuda"}, "md(device='cuda'): now calculator=mq.Calculator(model, device='cuda')"),
        ({"dtype": "float32"}, "now calculator=mq.Calculator(model, dtype='float32')"),
        ({"accelerate": True}, "now calculator=mq.Calculator(model, accelerate=True)"),
        ({"temprature": 3}, "md(temprature=3): md has no such argument; did you mean 'temperature'"),
    ],
)
def test_keywords_of_an_earlier_version_name_the_new_ones(old, new, calculators):
    with pytest.raises(UnknownKeywordError, match=re.escape(new)):
        md(cluster(), calculators["argon"](), steps=1, **QUIET, **old)


def test_groups_of_options_check_themselves_and_take_numbers_of_numpy():
    assert type(mq.Thermostat(friction=np.float32(0.5)).friction) is float
    assert mq.Barostat(pressure=np.int64(-3), time=2) == mq.Barostat(pressure=-3.0, time=2.0)
    with pytest.raises(ConfigError, match=r"Limits.max_force: found True \(bool\); wanted number"):
        mq.Limits(max_force=True)
    with pytest.raises(ConfigError, match="Thermostat.friction: found 0.0 .*wanted .*greater than 0"):
        mq.Thermostat(friction=0)


def test_from_the_command_line(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mq.save(model, "m.safetensors")
    write("frames.xyz", [molecule("CH4"), molecule("CH3CH2OH")])
    command = [
        "md",
        "m.safetensors",
        "frames.xyz",
        "--ensemble",
        "langevin",
        "--time",
        "0.005",
        "--out",
        "run",
        "--index",
        "1",
    ]
    assert main(command) == 0
    assert "nvt (langevin): 10 steps, 0.005 ps" in capsys.readouterr().out
    assert len(read("run/last.xyz")) == 9
    assert main([*command, "--temperature", "-3"]) == 2
    assert "temperature=-3" in capsys.readouterr().err
    assert (
        main(["md", "m.safetensors", "frames.xyz", "--steps", "1"]) == 0
        and (tmp_path / "md" / "last.xyz").exists()
    )
    assert main(["md", "m.safetensors", "frames.xyz", "--help"]) == 0 and re.search(
        r"--out +path +md +Folder of the files.*--friction +float > 0 +0.01 +1/fs +Friction of",
        capsys.readouterr().out,
        re.DOTALL,
    )


def settings_of(folder):
    with np.load(folder / "state.npz", allow_pickle=False) as state:
        return json.loads(str(state["settings"]))


def test_flags_of_the_groups_reach_the_simulation(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mq.save(model, "m.safetensors")
    write("frames.xyz", [molecule("CH4"), crystal()], format="extxyz")
    command = "md m.safetensors frames.xyz@1 --ensemble npt --steps 2"
    flags = "--friction 0.5 --pressure 3 --barostat-time 7 --max-heating 999 --dtype float32"
    assert main(f"{command} {flags}".split()) == 0
    found = settings_of(tmp_path / "md")
    assert found["thermostat"]["friction"] == 0.5 and found["barostat"]["pressure"] == 3.0
    assert found["barostat"]["time"] == 7.0
    assert len(read("md/last.xyz")) == len(crystal())
    command = command.replace("@1", "@0").replace("npt", "langevin")
    for flags, words in [
        (["--max-heating", "1e-9", "--temperature", "0"], "the temperature is .* more than"),
        (["--max-force", "1e-9"], "the force on atom .* more than 1e-09"),
        (["--max-std", "1"], "limits.max_std=1: the calculator gives no standard deviation"),
        (["--max-spread", "1"], "--max-spread: molequi md has no such option; it is now --max-std"),
        (["--max-force", "big"], r"--max-force: found 'big' \(str\); wanted number"),
        (["--frictoin", "1"], "--frictoin: molequi md has no such option; did you mean '--friction'"),
        (["--thermostat", "1"], "--thermostat: found '1' .*wanted 'langevin', 'bussi'"),
        (["--barostat", "1"], "--barostat: molequi md has no such option"),
        (["--dtype", "float16"], "--dtype: found 'float16'"),
        (["--index", "x"], "--index: found 'x'"),
    ]:
        assert main([*command.split(), "--resume", "restart", *flags]) == 2
        assert re.search(words, capsys.readouterr().err), flags


def test_progress_tells_the_time_left(calculators, capsys):
    md(cluster(), calculators["argon"](), temperature=30, steps=40, every=20, out=None)
    shown = capsys.readouterr().err
    assert "20/40 step" in shown and "40/40" in shown and "0:00 left" in shown
    md(cluster(), calculators["argon"](), temperature=30, steps=40, every=20, out=None, progress=False)
    assert capsys.readouterr().err == ""


# An ensemble that watches itself.


@pytest.fixture(scope="module")
def committee():
    def one(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return mq.Model(mq.EGNN(elements=["H", "O"], cutoff=4.0, channels=8, layers=1)).double()

    return mq.Ensemble([one(k) for k in range(3)])


def test_it_stops_where_members_disagree(committee, tmp_path):
    water = molecule("H2O")
    free = md(water, committee, steps=20, every=5, progress=False)
    std = free.history["forces_std"]
    assert len(std) == 5 and (std > 0).all()
    watched = md(
        water, committee, steps=20, every=5, limits=mq.Limits(max_std=10 * std.max()), progress=False
    )
    assert np.array_equal(watched.atoms.positions, free.atoms.positions)
    with pytest.raises(
        SimulationError,
        match=r"step 0: the force on atom \d \((O|H)\) is uncertain: its standard "
        r"deviation is .* eV/Å, more than max_std=.* It begins so",
    ):
        md(water, committee, steps=20, limits={"max_std": 0.5 * std[0]}, progress=False)
    steady = np.maximum.accumulate(std)
    later = int(np.argmax(steady > 1.0001 * std[0]))
    if later:  # a limit that the start keeps and the walk does not
        with pytest.raises(SimulationError, match="The last good frame, of step"):
            md(
                water,
                committee,
                steps=20,
                limits=mq.Limits(max_std=(std[0] + steady[later]) / 2),
                out=tmp_path / "md",
                progress=False,
            )
        assert (tmp_path / "md" / "last.xyz").exists()
    resumed = md(water, committee, steps=10, every=5, out=tmp_path / "two", progress=False)
    resumed = md(water, committee, steps=20, every=5, out=tmp_path / "two", progress=False)
    assert np.array_equal(resumed.history["forces_std"], std)


def test_a_limit_of_the_uncertainty_needs_an_ensemble(committee, model):
    with pytest.raises(
        ConfigError,
        match="limits.max_std=1: the calculator gives no standard deviation of the forces; wanted an Ensemble",
    ):
        md(molecule("H2O"), model, steps=1, limits={"max_std": 1.0}, progress=False)
    with pytest.raises(ConfigError, match="md.limits.max_std: found -1"):
        md(molecule("H2O"), committee, steps=1, limits={"max_std": -1.0}, progress=False)


def test_files_of_something_else_are_not_overwritten(tmp_path):
    text = "precious\n" * 10
    (tmp_path / "trajectory.xyz").write_text(text)
    for run in (
        lambda **o: mq.md(bulk("Cu"), EMT(), steps=1, out=tmp_path, progress=False, **o),
        lambda **o: mq.relax(molecule("H2O"), EMT(), out=tmp_path, progress=False, **o),
    ):
        with pytest.raises(ConfigError, match="there is trajectory.xyz and no state.npz.*resume='restart'"):
            run()
    assert (tmp_path / "trajectory.xyz").read_text() == text
    mq.md(bulk("Cu"), EMT(), steps=3, every=1, out=tmp_path, progress=False, resume="restart")
    assert "precious" not in (tmp_path / "trajectory.xyz").read_text()
    (tmp_path / "state.npz").unlink()
    with pytest.raises(ConfigError, match="there is trajectory.xyz and log.csv and no state.npz"):
        mq.md(bulk("Cu"), EMT(), steps=2, out=tmp_path, progress=False)


def test_velocities_that_are_kept_and_missing(calculators):
    atoms, calculator = cluster(), calculators["argon"]()
    with pytest.warns(DataWarning, match=r"temperature=None keeps the velocities .* none: .* starts at 0 K"):
        md(atoms, calculator, temperature=None, steps=0, **QUIET)
    atoms.set_momenta(np.zeros((len(atoms), 3)))  # at rest on purpose
    assert md(atoms, calculator, temperature=None, steps=0, **QUIET).history["T"].tolist() == [0.0]


@pytest.mark.parametrize("change", ["position of atom 1", "cell of lattice vector 2"])
def test_structures_that_are_not_finite_are_refused(change):
    """Before velocities are drawn, or a step is made."""
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[5, 5, 5], pbc=True)
    if "position" in change:
        atoms.positions[1, 1] = np.inf
    else:
        atoms.cell[2, 2] = np.nan
    with pytest.raises(DataError, match=f"the structure: {change} is .*; wanted finite numbers"):
        mq.relax(atoms, EMT())
