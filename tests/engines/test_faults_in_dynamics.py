"""The checks of dynamics by `check_engines`: steep models pass, and planted faults are found in them."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.md.verlet import VelocityVerlet

import molequi as mq
from molequi.engines import BatchNeighborList, checking, probes
from molequi.engines.reference import Reference
from molequi.interfaces import NeighborList

ORDER, TRAJECTORY, LIST = "energy error and timestep", "trajectory", "neighbors renewed"
STEEP = (2, 17, 19)  # seeds whose atoms fly apart: 0.5 fs is far too long


def untrained(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mq.Model(mq.PaiNN(elements=["H", "O"], channels=8, layers=1, cutoff=3.0))


def found(monkeypatch, net, checks, engines=("ase",)):
    monkeypatch.setattr(checking, "CHECKS", tuple(c for c in checking.CHECKS if c.name in checks))
    return mq.check_engines(net, engines=list(engines)).engines


@pytest.mark.parametrize("seed", STEEP)
def test_a_steep_model_passes_and_an_error_of_a_percent_is_found_in_it(monkeypatch, seed):
    net, real = untrained(seed), VelocityVerlet.step
    right = found(monkeypatch, net, [ORDER])["ase"][ORDER]
    assert right.passed and 0 < right.value < 0.02
    # A timestep that follows the surface, and no longer than needed.
    assert Reference(net.double().eval(), checking._frames(None, net)[1], {}).timestep < 0.25

    def step(self, forces=None):
        """Other masses than those of the kinetic energy: as if the forces were 1 % too large."""
        atoms = self.atoms
        masses = atoms.get_masses()
        atoms.set_masses(masses / 1.01)
        atoms.set_momenta(atoms.get_momenta() / 1.01, apply_constraint=False)
        real(self)
        atoms.set_momenta(atoms.get_momenta() * 1.01, apply_constraint=False)
        atoms.set_masses(masses)

    monkeypatch.setattr(VelocityVerlet, "step", step)
    wrong = found(monkeypatch, net, [ORDER])["ase"][ORDER]
    assert not wrong.passed and wrong.value > 1


def test_forces_that_are_no_derivative_find_no_timestep_and_fail(monkeypatch):
    def swirl(self, frame):
        found = real(self, frame)
        return found._replace(forces=1.01 * found.forces)

    real = Reference.evaluate

    class Off(mq.Calculator):
        def calculate(self, *given, **named):
            super().calculate(*given, **named)
            self.results["forces"] = 1.01 * self.results["forces"]

    net = untrained(0)
    assert found(monkeypatch, net, [ORDER])["ase"][ORDER].passed
    monkeypatch.setattr(probes.ASE, "_calculator", lambda self: Off(self.model, dtype="float64"))
    assert not found(monkeypatch, net, [ORDER])["ase"][ORDER].passed
    monkeypatch.setattr(Reference, "evaluate", swirl)  # the model and the engine have the same fault
    assert not found(monkeypatch, net, [ORDER])["ase"][ORDER].passed


def test_a_wrong_unit_of_mass_is_found(monkeypatch):
    real = probes.ASE.nve

    def heavy(self, atoms, timestep, steps, *, restart=False):
        atoms, speed = atoms.copy(), atoms.get_velocities()
        atoms.set_masses(atoms.get_masses() * 1.01)
        atoms.set_velocities(speed)
        return real(self, atoms, timestep, steps, restart=restart)

    net = untrained(2)
    assert found(monkeypatch, net, [TRAJECTORY])["ase"][TRAJECTORY].passed
    monkeypatch.setattr(probes.ASE, "nve", heavy)
    assert not found(monkeypatch, net, [TRAJECTORY])["ase"][TRAJECTORY].passed


def test_a_neighbor_list_that_is_never_renewed_is_found_in_every_engine(monkeypatch):
    engines = [probe.name for probe in probes.PROBES if checking.find_spec(probe.package)]
    right = found(monkeypatch, untrained(0), [LIST], engines)
    assert all(one[LIST].passed for one in right.values()), right
    compared = BatchNeighborList._compared

    def kept(self, key, pos, cell):
        last = self._graph
        return (None, None) if last is None or pos.shape != last.pos.shape else (last, None)

    def hold(self, graph):
        graph, valid = compared(self, graph)
        return graph, [True] * len(valid)

    monkeypatch.setattr(NeighborList, "_valid_graph", kept)
    monkeypatch.setattr(BatchNeighborList, "_compared", hold)
    wrong = found(monkeypatch, untrained(0), [LIST], engines)
    assert not any(one[LIST].passed or one[LIST].note for one in wrong.values()), wrong


def test_a_molecule_alone_and_an_atom_alone(monkeypatch):
    """Their lists: that of the molecule is renewed, that of the atom is always empty."""
    net = untrained(0)
    for atoms in (Atoms("OH", [[0, 0, 0], [0, 0, 0.97]]), Atoms("H")):
        monkeypatch.setattr(checking, "CHECKS", tuple(c for c in checking.CHECKS if c.name in (ORDER, LIST)))
        report = mq.check_engines(net, atoms, engines=["ase"])
        assert report.passed, str(report)
        assert np.isfinite(report.engines["ase"][LIST].value)
