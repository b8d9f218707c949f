"""Relaxation finds minima that are known otherwise, goes on where it stopped, and stops where forces are none."""

import os
import signal

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixBondLength, FixCom, FixScaledParametricRelations, MirrorForce
from ase.eos import calculate_eos
from ase.io import read, write
from ase.optimize import LBFGS

import molequi as mq
from molequi.cli import main
from molequi.errors import ConfigError, SimulationError, UnknownKeywordError
from molequi.simulation import relax

QUIET = {"progress": False}


def test_a_pair_of_argon_atoms_comes_to_the_bottom(calculators, tmp_path):
    pair = Atoms("Ar2", [[0, 0, 0], [3.5, 0.4, 0]])
    result = relax(pair, calculators["argon"](), fmax=1e-6, out=tmp_path, **QUIET)
    assert result.converged and result.fmax <= 1e-6
    assert result.energy == pytest.approx(-0.0104, abs=1e-9)  # -ε
    assert result.atoms.get_distance(0, 1) == pytest.approx(2 ** (1 / 6) * 3.4, abs=1e-4)  # 2^(1/6) σ
    assert np.array_equal(pair.positions, [[0, 0, 0], [3.5, 0.4, 0]])
    frames = read(tmp_path / "trajectory.xyz", index=":")
    assert (
        [f.info["step"] for f in frames] == list(range(result.steps + 1)) == result.history["step"].tolist()
    )
    assert "converged in" in str(result) and result.history["fmax"][-1] == result.fmax


def test_a_lattice_comes_to_its_constant():
    """Copper by EMT, against the minimum of its equation of state; ASE's stress takes no part in that."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    volume, _, _ = calculate_eos(atoms, npoints=9, eps=0.02).fit()
    atoms = bulk("Cu", a=3.8, cubic=True)
    result = relax(atoms, EMT(), cell=True, fmax=1e-4, out=None, **QUIET)
    assert result.converged and result.atoms.cell.volume == pytest.approx(volume, rel=1e-3)
    assert np.abs(result.atoms.get_stress()).max() < 1e-4
    still = relax(atoms, EMT(), cell=False, fmax=1e-4, out=None, **QUIET)
    assert np.array_equal(still.atoms.cell, atoms.cell)


def test_a_model_relaxes_a_molecule_and_goes_on(model, tmp_path):
    options = dict(fmax=1e-3, out=tmp_path, every=3, **QUIET)
    first = relax(molecule("CH3CH2OH"), model, steps=4, **options)
    assert not first.converged and first.steps == 4 and "NOT converged" in str(first)
    second = relax(molecule("CH3CH2OH"), model, steps=400, **options)
    assert second.converged and second.steps > 4 and second.energy < first.energy
    assert np.all(np.diff(second.history["step"]) == 3) and second.history["step"][0] == 0
    third = relax(molecule("CH3CH2OH"), model, steps=400, **options)
    assert (
        third.converged
        and third.steps == second.steps
        and third.energy == pytest.approx(second.energy, abs=1e-9)
    )
    assert np.allclose(read(tmp_path / "last.xyz").positions, third.atoms.positions, atol=1e-7)


def test_an_interrupt_loses_nothing(calculators, tmp_path):
    calculator = calculators["argon"]()
    whole, seen = calculator.calculate, []

    def calculate(*args, **kwargs):
        seen.append(1)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        whole(*args, **kwargs)

    calculator.calculate = calculate
    pair = Atoms("Ar3", [[0, 0, 0], [3.6, 0.4, 0], [1.5, 3.5, 0.3]])
    with pytest.raises(SystemExit, match="143"):
        relax(pair, calculator, fmax=1e-5, every=100, out=tmp_path, **QUIET)
    with np.load(tmp_path / "state.npz") as state:
        assert int(state["step"]) == read(tmp_path / "last.xyz").info["step"] > 0
    after = relax(pair, calculators["argon"](), fmax=1e-5, every=100, out=tmp_path, **QUIET)
    assert after.converged and after.energy == pytest.approx(
        -3 * 0.0104, abs=1e-7
    )  # a triangle of three bonds


def test_forces_that_are_none_stop_it(calculators, tmp_path):
    together = Atoms("Ar2", [[0, 0, 0], [0, 0, 0]])
    told = pytest.raises(SimulationError, match="step 0: the force on atom 0 .*nan.*It begins so")
    with np.errstate(all="ignore"), told:
        relax(together, calculators["argon"](), out=tmp_path, **QUIET)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"fmax": 0}, "fmax=0: wanted a number above zero"),
        ({"steps": -1}, "steps=-1"),
        ({"every": 0}, "every=0"),
        ({"cell": "no"}, "cell='no': wanted True or False"),
        ({"cell": 1}, "cell=1: wanted True or False"),
        ({"cell": True}, r"cell=True with pbc=\[False, False, False\]"),
    ],
)
def test_settings_are_checked(changes, words, calculators):
    with pytest.raises(ConfigError, match=words):
        relax(Atoms("Ar"), calculators["argon"](), out=None, **QUIET, **changes)


@pytest.mark.parametrize(
    "old, new",
    [
        ({"index": 1}, 'now a part of the path, as in ASE: "frames.xyz@1"'),
        ({"device": "cuda"}, r"now calculator=mq.Calculator\(model, device='cuda'\)"),
        ({"step": 1}, r"relax\(step=1\): relax has no such argument; did you mean 'steps'"),
    ],
)
def test_keywords_of_an_earlier_version_name_the_new_ones(old, new, calculators):
    with pytest.raises(UnknownKeywordError, match=new):
        relax(Atoms("Ar"), calculators["argon"](), **QUIET, **old)


def test_without_out_nothing_is_written_and_classes_are_no_calculators(calculators, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = Atoms("Ar2", [[0, 0, 0], [3.5, 0.4, 0]])
    assert relax(pair, calculators["argon"](), steps=2, **QUIET).out is None
    with pytest.raises(ConfigError, match="calculator is the class Argon"):
        relax(pair, calculators["argon"], steps=2, **QUIET)
    assert not list(tmp_path.iterdir())


def test_from_the_command_line(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mq.save(model, "m.safetensors")
    write("frames.xyz", molecule("CH3CH2OH"))
    assert main(["relax", "m.safetensors", "frames.xyz", "--steps", "2", "--out", "run"]) == 0
    assert "NOT converged in 2 steps" in capsys.readouterr().out
    assert read("run/last.xyz").info["step"] == 2
    assert main(["relax", "m.safetensors", "frames.xyz", "--steps", "2"]) == 0
    assert read("relax/last.xyz").info["step"] == 2


class Line:
    """A constraint with what ASE's manual asks of one: two methods."""

    def __init__(self, atom, direction):
        self.atom, self.direction = atom, np.asarray(direction) / np.linalg.norm(direction)

    def adjust_positions(self, atoms, new):
        step = new[self.atom] - atoms.positions[self.atom]
        new[self.atom] = atoms.positions[self.atom] + (step @ self.direction) * self.direction

    def adjust_forces(self, atoms, forces):
        forces[self.atom] = (forces[self.atom] @ self.direction) * self.direction


@pytest.mark.parametrize(
    "constraint",
    [
        Line(0, [0, 0, 1]),
        FixCom(),
        FixBondLength(0, 1),
        MirrorForce(0, 1),
        FixScaledParametricRelations.from_expressions(
            [0, 1, 2, 3], ["x"], ["x", "0", "0", "0", "1/2", "1/2", "1/2", "0", "1/2", "1/2", "1/2", "0"]
        ),
    ],
    ids=lambda constraint: type(constraint).__name__,
)
def test_constraints_of_all_kinds_relax_as_with_the_optimizer_of_ase(constraint, tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_constraint(constraint)
    other = atoms.copy()
    other.calc = EMT()
    LBFGS(other, logfile=None).run(fmax=0.05, steps=20)
    result = relax(atoms, EMT(), fmax=0.05, steps=20, out=tmp_path, **QUIET)
    assert result.atoms.positions == pytest.approx(other.positions, abs=1e-10)
    again = relax(atoms, EMT(), fmax=0.05, steps=20, out=tmp_path, **QUIET)  # the same simulation
    assert again.steps == result.steps
    atoms.set_constraint()
    with pytest.raises(ConfigError, match="holds another simulation"):
        relax(atoms, EMT(), fmax=0.05, steps=20, out=tmp_path, **QUIET)


def test_another_direction_is_another_simulation(tmp_path):
    atoms = bulk("Cu", cubic=True)
    for direction in ([0, 0, 1], [0, 1, 0]):
        atoms.set_constraint(Line(0, direction))
        if direction == [0, 1, 0]:
            with pytest.raises(ConfigError, match="holds another simulation"):
                relax(atoms, EMT(), steps=1, out=tmp_path, **QUIET)
        else:
            relax(atoms, EMT(), steps=1, out=tmp_path, **QUIET)
    with pytest.raises(ConfigError, match=r"constraint Line: a temperature .*get_removed_dof\(self, atoms\)"):
        mq.md(atoms, EMT(), steps=1, **QUIET)
