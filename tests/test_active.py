"""Active learning in rounds: it learns, goes on where it was, and says what is wrong."""

import ase.io
import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.morse import MorsePotential

import molequi as mq
from molequi.active import _new
from molequi.errors import (
    CheckpointError,
    ConfigError,
    OtherSettingsError,
    SimulationError,
    SimulationWarning,
)

from .morse_kit import tiny


class Counting(MorsePotential):
    """A calculator that counts, and that may fail."""

    calls, fail_from = 0, 10**9

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        type(self).calls += 1
        if type(self).calls >= self.fail_from:
            raise RuntimeError("no convergence")
        super().calculate(atoms, properties, system_changes)


@pytest.fixture
def oracle():
    Counting.calls, Counting.fail_from = 0, 10**9
    return Counting(epsilon=1.0, r0=1.5, rho0=3.0)


def frames(oracle, count, seed):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        atoms = ase.Atoms("OH3", 1.5 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]))
        atoms.positions += 0.05 * rng.standard_normal((4, 3))
        out.append(atoms)
    return labelled(out)


def labelled(atoms):
    from ase.calculators.singlepoint import SinglePointCalculator

    for one in atoms:
        one.calc = MorsePotential(epsilon=1.0, r0=1.5, rho0=3.0)
        values = {"energy": one.get_potential_energy(), "forces": one.get_forces()}
        one.calc = SinglePointCalculator(one, **values)
    return mq.from_atoms(atoms)


def learn(oracle, out, rounds=1, train=None, **options):
    settings = {
        "n": 3,
        "training": {"epochs": 2},
        "dynamics": {"steps": 6, "every": 2, "ensemble": "nvt", "temperature": 100.0},
        "simulations": 2,
        "progress": False,
    }
    return mq.active_learning(
        tiny(),
        frames(oracle, 10, 0) if train is None else train,
        frames(oracle, 10, 1),
        oracle,
        out=out,
        rounds=rounds,
        **(settings | options),
    )


def test_rounds_add_labels_of_the_oracle_and_go_on(oracle, tmp_path):
    found = learn(oracle, tmp_path)
    assert [one["structures"] for one in found.rounds] == [10, 13] and len(found.train) == 13
    assert Counting.calls >= 3 and "stopped" in str(found)
    new = ase.io.read(tmp_path / "round0" / "labelled.xyz", ":")
    for frame in new:
        wanted = frame.get_forces()
        frame.calc = MorsePotential(epsilon=1.0, r0=1.5, rho0=3.0)
        assert np.allclose(frame.get_forces(), wanted, atol=1e-6)
    calls = Counting.calls
    again = learn(oracle, tmp_path)
    assert Counting.calls == calls and again.rounds == found.rounds  # nothing is computed twice
    more = learn(oracle, tmp_path, rounds=2)
    assert [one["structures"] for one in more.rounds] == [10, 13, 16]
    with pytest.raises(OtherSettingsError, match="holds rounds of other settings:\n.*n"):
        learn(oracle, tmp_path, n=4)
    with pytest.raises(OtherSettingsError, match="holds rounds of other settings:\n.*train"):
        learn(oracle, tmp_path, train=frames(oracle, 10, 2))
    (tmp_path / "active.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"active.json: damaged"):
        learn(oracle, tmp_path)


def test_interrupted_labels_go_on(oracle, tmp_path):
    Counting.fail_from = 2  # the second label of the first round fails, and is left out
    found = learn(oracle, tmp_path)
    assert found.rounds[1]["structures"] == 11
    Counting.calls, Counting.fail_from = 0, 1
    with pytest.raises(
        SimulationError, match="failed for all 3 frames .*no convergence.*wanted another calculator"
    ):
        learn(oracle, tmp_path / "other")


def test_structures_that_are_labelled_are_not_labelled_again(oracle):
    """Simulations begin at training structures, and the guard writes frames of the trajectory once more."""
    known = frames(oracle, 3, 0)
    old = mq.to_atoms(known[1].replace(targets={}))
    new, other = old.copy(), old.copy()
    new.positions += 0.01
    other.numbers[0] = 1
    assert _new([old, new, new.copy(), other], known) == [new, other]
    assert _new([old], known) == []


def test_messages(oracle, tmp_path):
    with pytest.raises(ConfigError, match=r"training\['out'\] is set in each round"):
        learn(oracle, tmp_path, training={"epochs": 2, "out": "x"})
    with pytest.raises(ConfigError, match="predicts charges, which the calculator is not asked for"):
        mq.active_learning(
            mq.Model(mq.PaiNN(elements=["H"]), ["energy", "charges"]),
            [],
            [],
            oracle,
            out=tmp_path,
            training={},
            dynamics={},
        )
    with pytest.raises(ConfigError, match="wanted a Model, found str"):
        mq.active_learning("model", [], [], oracle, out=tmp_path, training={}, dynamics={})
    with pytest.raises(ConfigError, match="active_learning.rounds"):
        learn(oracle, tmp_path, rounds=0)
    assert issubclass(Counting, Calculator)


def test_energies_below_those_of_the_data_are_in_the_table_and_no_warning(oracle, tmp_path, monkeypatch):
    """The loop does what the warning advises. A simulation by itself still warns."""
    monkeypatch.setattr("molequi.inference.known_energies.MARGIN", -1e9)  # all energies are too low
    found = learn(oracle, tmp_path / "low")
    assert found.rounds[0]["too_low"] == found.rounds[0]["simulations"] == 2
    assert "energies below the data" in str(found) and "2 of 2" in str(found)
    with pytest.warns(SimulationWarning, match="below that of every training structure"):
        mq.md(mq.to_atoms(frames(oracle, 1, 0)[0]), found.model, steps=1, progress=False)
    monkeypatch.setattr("molequi.inference.known_energies.MARGIN", 1e9)
    assert learn(oracle, tmp_path / "high").rounds[0]["too_low"] == 0
