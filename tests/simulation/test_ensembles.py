"""Each thermostat and barostat samples its ensemble: laws known on paper, within statistical errors, and controls that fail."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.cluster import Icosahedron
from ase.constraints import FixAtoms
from ase.md.nvtberendsen import NVTBerendsen

import molequi as mq
from molequi.errors import ConfigError
from molequi.simulation import block_average, md
from molequi.simulation.integrators import draw_velocities

QUIET = {"progress": False}
KINDS = ("langevin", "bussi", "nose-hoover")


def kinetic_errors(kinetic, freedom, kelvin):
    """How many standard errors mean and variance of the kinetic energy are away from f kT / 2 and f (kT)² / 2."""
    heat = units.kB * kelvin
    mean, spread = freedom / 2 * heat, freedom / 2 * heat**2
    found = block_average(kinetic)
    square = block_average((kinetic - mean) ** 2)
    return abs(found.mean - mean) / found.error, abs(square.mean - spread) / square.error


def argon(calculators):
    return Icosahedron("Ar", 2, latticeconstant=5.2), calculators["argon"]()  # 13 atoms


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinetic_energy_is_canonical(kind, calculators):
    """Langevin: 3N degrees of freedom. The others keep momentum and angular momentum zero, and 3N - 6 are left."""
    freedom = 39 if kind == "langevin" else 33
    bath = {"kind": kind, **({"friction": 0.02} if kind == "langevin" else {"time": 50.0})}
    options = dict(timestep=8.0, steps=6000, every=4, seed=1, thermostat=bath, **QUIET)
    run = md(*argon(calculators), ensemble="nvt", temperature=25.0, **options)
    kinetic = run.history["E_kin"][150:]
    mean, variance = kinetic_errors(kinetic, freedom, 25.0)
    assert mean < 4 and variance < 4, (mean, variance)
    assert kinetic_errors(kinetic, freedom, 27.5)[0] > 4  # the test can tell 10 % of the temperature
    if kind != "langevin":
        assert np.abs(run.atoms.get_momenta().sum(0)).max() < 1e-8
        assert kinetic_errors(kinetic, 39, 25.0)[0] > 4  # and what ASE counts
    assert f"nvt ({kind})" in str(run)


def test_a_thermostat_that_is_not_canonical_fails_this_test(calculators):
    """Control: Berendsen's has the mean of the kinetic energy and not its variance."""
    atoms, atoms.calc = argon(calculators)
    rng = np.random.default_rng(0)
    draw_velocities(atoms, 25.0, rng, still=True)
    walk, kinetic = NVTBerendsen(atoms, 8 * units.fs, temperature_K=25.0 * 33 / 39, taut=50 * units.fs), []
    for _ in range(4000):
        walk.step()
        kinetic.append(atoms.get_kinetic_energy())
    assert kinetic_errors(np.array(kinetic[600:]), 33, 25.0)[1] > 4


def net(calculators):
    atoms = bulk("Ar", a=5.3, cubic=True) * (2, 2, 2)
    return atoms, calculators["net"](atoms, 4.0, k=0.1)


@pytest.mark.parametrize(
    "ensemble, kind, cell",
    [
        ("nvt", "bussi", "isotropic"),
        ("nvt", "nose-hoover", "isotropic"),
        ("npt", "nose-hoover", "isotropic"),
        ("npt", "nose-hoover", "anisotropic"),
    ],
)
def test_the_conserved_quantity_is_conserved(ensemble, kind, cell, calculators):
    """Its error falls with the square of the time step, while the total energy changes by far more."""
    atoms, calculator = net(calculators)
    atoms.rattle(0.05, seed=0)
    barostat = {"barostat": {"time": 400.0, "pressure": 500.0, "cell": cell}} if ensemble == "npt" else {}
    options = dict(
        ensemble=ensemble,
        temperature=40.0,
        thermostat={"kind": kind, "time": 200.0},
        every=1,
        seed=2,
        **barostat,
    )
    runs = [md(atoms, calculator, timestep=dt, time=0.8, **options, **QUIET) for dt in (16.0, 8.0)]
    rms = [run.drift.rms for run in runs]
    assert 2.5 < rms[0] / rms[1] < 7, rms
    assert np.ptp(runs[1].history["E_tot"]) * 1e3 / len(atoms) > 20 * rms[1]
    assert "conserved quantity" in str(runs[1])
    plain = md(atoms, calculator, ensemble="nvt", temperature=40.0, steps=3, every=1, **QUIET)
    assert "E_conserved" not in plain.history and "conserved" not in str(plain)


@pytest.mark.parametrize("cell", ["isotropic", "anisotropic"])
def test_the_barostat_of_martyna_keeps_pressure_and_shape(cell, calculators):
    """⟨V (P_int - P)⟩ = -kT for the volume (Martyna, Tobias and Klein 1994, eq. 2.7), here within its error."""
    atoms, calculator = net(calculators)
    atoms.set_cell(atoms.cell * np.diag([1.02, 1.0, 0.98]), scale_atoms=True)
    run = md(
        atoms,
        calculator,
        ensemble="npt",
        temperature=40.0,
        timestep=8.0,
        steps=4000,
        every=4,
        seed=2,
        thermostat={"kind": "nose-hoover", "time": 200.0},
        barostat={"time": 500.0, "pressure": 300.0, "cell": cell},
        **QUIET,
    )
    volume, pressure = run.history["volume"][200:], run.history["pressure"][200:] * units.bar
    work = block_average(volume * (pressure - 300 * units.bar))
    assert abs(work.mean + units.kB * 40) < 4 * work.error
    assert (
        abs(block_average(volume * (pressure - 900 * units.bar)).mean + units.kB * 40) > 4 * work.error
    )  # control
    lengths, angles = np.split(run.atoms.cell.cellpar(), 2)
    ratio = lengths[0] / lengths[2]
    if cell == "isotropic":
        assert ratio == pytest.approx(1.02 / 0.98, abs=1e-9) and np.allclose(angles, 90)
    else:
        assert ratio != pytest.approx(1.02 / 0.98, abs=1e-3) and not np.allclose(angles, 90)


@pytest.mark.parametrize(
    "ensemble, kind, cell",
    [
        ("nvt", "bussi", ""),
        ("nvt", "nose-hoover", ""),
        ("npt", "nose-hoover", "isotropic"),
        ("npt", "nose-hoover", "anisotropic"),
    ],
)
def test_a_restart_gives_the_trajectory_without_interruption(ensemble, kind, cell, model, tmp_path):
    atoms = Atoms(
        "COHH",
        [[0.1, 0.2, 0.0], [1.5, 0.4, 1.1], [0.3, 1.9, 2.0], [2.2, 2.3, 0.3]],
        cell=[[3.4, 0, 0], [0.7, 3.6, 0], [0.3, -0.4, 3.8]],
        pbc=True,
    )
    options = dict(ensemble=ensemble, thermostat=kind, timestep=0.5, every=4, seed=7, **QUIET)
    if cell:
        options["barostat"] = {"cell": cell, "time": 100.0}
    whole = md(atoms, model, steps=24, out=tmp_path / "whole", **options)
    for steps in (6, 12, 24):
        parts = md(atoms, model, steps=steps, out=tmp_path / "parts", **options)
    for name in ("trajectory.xyz", "log.csv", "last.xyz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    assert np.array_equal(whole.atoms.get_momenta(), parts.atoms.get_momenta())
    assert np.array_equal(whole.atoms.cell, parts.atoms.cell)


def test_what_a_thermostat_cannot_do_is_said(calculators):
    held = Icosahedron("Ar", 2, latticeconstant=5.2)
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(
        ConfigError, match="thermostat 'nose-hoover' with FixAtoms: it does not count constraints; wanted"
    ):
        md(held, calculators["argon"](), ensemble="nvt", thermostat="nose-hoover", steps=1, **QUIET)
    run = md(
        held, calculators["argon"](), ensemble="nvt", thermostat="bussi", temperature=20, steps=3, **QUIET
    )
    assert np.array_equal(run.atoms.positions[0], held.positions[0])
    with pytest.raises(ConfigError, match="thermostat 'bussi' with one atom: .*wanted thermostat='langevin'"):
        md(Atoms("Ar"), calculators["argon"](), ensemble="nvt", thermostat="bussi", steps=1, **QUIET)


def test_langevin_is_nvt(calculators):
    options = dict(temperature=20.0, steps=10, seed=4, **QUIET)
    runs = [md(*argon(calculators), ensemble=name, **options) for name in ("langevin", "nvt")]
    assert np.array_equal(runs[0].atoms.positions, runs[1].atoms.positions) and runs[0].ensemble == "nvt"
    assert mq.Thermostat(kind="bussi", time=np.int64(5)).time == 5.0


# What is reported.


def test_a_model_without_an_energy_is_answered_in_one_line(tmp_path, capsys):
    shielding = mq.Quantity("shielding", per="node", unit="ppm")
    model = mq.Model(mq.PaiNN(elements=["H", "O"], channels=8, layers=1), predict=[shielding])
    atoms = Atoms("OHH", [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    words = (
        "this model predicts shielding; dynamics and relaxation need an energy and its forces: train one with"
    )
    for function in (md, mq.relax):
        with pytest.raises(ConfigError, match=words):
            function(atoms, model, steps=1, **QUIET)
    mq.save(model, tmp_path / "m.safetensors")
    atoms.write(tmp_path / "a.xyz")
    from molequi.cli import main

    for command in ("md", "relax"):
        assert main([command, str(tmp_path / "m.safetensors"), str(tmp_path / "a.xyz"), "--steps", "1"]) == 2
        assert words in capsys.readouterr().err


def test_other_predictions_are_in_the_trajectory(tmp_path):
    from ase.io import read

    quantities = ["energy", "forces", "dipole", "charges", mq.Quantity("tensor", rank=2, unit="Å^3")]
    model = mq.Model(mq.PaiNN(elements=["H", "O"], channels=8, layers=1), predict=quantities)
    atoms = Atoms("OHH", [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    md(atoms, model, temperature=10, steps=2, every=1, out=tmp_path, **QUIET)
    frame = read(tmp_path / "trajectory.xyz", index=-1)
    calculator = mq.Calculator(model, dtype="float64")
    calculator.calculate(frame)
    assert np.allclose(frame.get_dipole_moment(), calculator.results["dipole"], atol=1e-6)
    assert np.allclose(frame.get_charges(), calculator.results["charges"], atol=1e-6)
    assert np.allclose(frame.info["tensor"], calculator.results["tensor"], atol=1e-6)
    assert np.abs(calculator.results["tensor"]).max() > 1e-4


def test_an_unrelaxed_start_is_named(calculators):
    atoms = Icosahedron("Ar", 2, latticeconstant=5.2)
    options = dict(temperature=5.0, timestep=4.0, steps=400, every=4, **QUIET)
    relaxed = mq.relax(atoms, calculators["argon"](), **QUIET).atoms
    assert not md(relaxed, calculators["argon"](), **options).hint
    atoms.positions *= 0.97
    hot = md(atoms, calculators["argon"](), **options)
    assert "was asked for: the structure was not relaxed" in hot.hint and "note: the mean temp" in str(hot)
    assert "Relax it first: mq.relax" in hot.hint


def test_a_simulation_that_is_still_cold_says_so(calculators):
    """A relaxed start loses half of its kinetic energy; a weak thermostat gives it back only slowly."""
    relaxed = mq.relax(Icosahedron("Ar", 2, latticeconstant=5.2), calculators["argon"](), **QUIET).atoms
    options = dict(ensemble="nvt", temperature=10.0, timestep=4.0, every=4, **QUIET)
    cold = md(relaxed, calculators["argon"](), thermostat={"friction": 1e-5}, steps=400, **options)
    assert cold.history["T"].mean() < 8
    assert "not heated the structure yet" in cold.hint and "larger time= (--time)" in str(cold)
    warm = md(relaxed, calculators["argon"](), thermostat={"friction": 0.02}, steps=4000, **options)
    assert abs(warm.history["T"].mean() - 10) < 1 and not warm.hint  # the control


def test_speed_and_averages_are_reported(calculators, capsys):
    run = md(*argon(calculators), ensemble="nvt", temperature=20.0, steps=200, every=2)
    assert run.ns_per_day > 0 and "ns/day" in str(run) and "ns/day" in capsys.readouterr().err
    found = run.averages
    assert set(found) == {"T", "E_pot"} and found["T"].error > 0
    first = run.discarded
    assert found["T"].mean == pytest.approx(run.history["T"][first:].mean())
    assert f"means of {101 - first} frames, with standard errors" in str(run)
    few = md(*argon(calculators), temperature=20.0, steps=2, every=1, **QUIET)
    assert "standard errors need more: 16" in str(few)


def test_a_simulation_that_is_not_in_equilibrium_says_so(calculators):
    places = np.random.default_rng(0).uniform(0, 20, (30, 3))
    slow = dict(thermostat={"friction": 1e-4}, timestep=2.0, steps=400, every=4, **QUIET)
    run = md(Atoms("C30", places), calculators["springs"](places), ensemble="nvt", temperature=300, **slow)
    run.history["E_pot"][:] = np.linspace(0, 1, 101)
    assert "half of the simulation is left out, and it may still not be in equilibrium" in str(run)
    run.history["E_pot"][:] = np.random.default_rng(0).normal(size=101)
    run.history["T"][:] = 300 + np.random.default_rng(1).normal(size=101)
    assert "may still not be" not in str(run)
