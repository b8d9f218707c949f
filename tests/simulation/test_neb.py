"""Nudged elastic bands: those of ASE, in one batch."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.mep import NEB
from ase.optimize import FIRE
from ase.utils.forcecurve import fit_images

import molequi as mq
from molequi.errors import ConfigError, ModelError, SimulationError


def ends():
    first = molecule("CH3CH2OH")
    last = first.copy()
    last.rattle(0.15, seed=1)
    last.positions[0] = first.positions[0]
    for frame in (first, last):
        frame.set_constraint(FixAtoms([0]))
    return first, last


def net():
    torch.manual_seed(0)
    return mq.Model(mq.PaiNN(elements=["C", "O", "H"], channels=8, layers=1, cutoff=4.0))


def test_a_band_in_one_batch_is_that_of_ase():
    first, last = ends()
    found = mq.neb([first, last], mq.Calculator(net(), dtype="float64"), number=5, steps=4, progress=False)
    path = [first.copy() for _ in range(4)] + [last.copy()]
    NEB(path, method="improvedtangent").interpolate("idpp")
    for image in path:
        image.calc = mq.Calculator(net(), dtype="float64")
    FIRE(NEB(path, k=0.1, climb=True, method="improvedtangent"), logfile=None).run(fmax=0.05, steps=4)
    for one, other in zip(found.images, path):
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-10)
    np.testing.assert_allclose(found.path, fit_images(path).path, atol=1e-8)
    (axis,) = mq.plotting.analysis(found).axes
    assert axis.get_ylabel() == "energy above the start (eV)" and "barrier" in axis.get_title()
    np.testing.assert_allclose(axis.lines[1].get_xdata(), found.path)
    np.testing.assert_allclose(found.energies, [image.get_potential_energy() for image in path], atol=1e-10)
    assert (found.images[2].positions[0] == first.positions[0]).all()
    assert found.steps == 4 and not found.converged
    assert "barrier" in str(found) and "<table" in found._repr_html_()


def test_the_barrier_of_three_atoms_in_a_row():
    """An atom passes between two others: the top is the middle by symmetry, with the energy of EMT itself."""
    from ase import Atoms

    def frame(y):
        return Atoms("Cu3", [[0, 0, 0], [5.2, 0, 0], [2.6, y, 0]], constraint=FixAtoms([0, 1]))

    found = mq.neb([frame(0.8), frame(-0.8)], EMT(), number=5, fmax=0.01, climb=False, progress=False)
    middle = frame(0.0)
    middle.calc = EMT()
    assert found.converged
    assert found.energies[2] == pytest.approx(middle.get_potential_energy(), abs=1e-6)
    assert found.energies[0] == pytest.approx(found.energies[-1], abs=1e-9)
    assert found.barrier == pytest.approx(found.reverse_barrier, abs=1e-9)


def test_what_a_band_refuses():
    first, last = ends()
    for images, message in [
        ([first], "wanted a start and an end"),
        ([first, molecule("H2O")], "the last structure is H2O and the first structure "),
        ([first, last[::-1]], "the order of their atoms differs"),
    ]:
        with pytest.raises(ConfigError, match=message):
            mq.neb(images, EMT(), progress=False)
    with pytest.raises(ConfigError, match="number=2"):
        mq.neb([first, last], EMT(), number=2, progress=False)


def test_a_band_that_is_not_finite_stops():
    class Broken(EMT):
        def calculate(self, *given, **more):
            super().calculate(*given, **more)
            self.results["energy"] = float("nan")

    with pytest.raises(SimulationError, match="the first structure of the band"):
        mq.neb(ends(), Broken(), progress=False)

    class Inside(EMT):
        calls = 0

        def calculate(self, *given, **more):
            super().calculate(*given, **more)
            Inside.calls += 1
            if Inside.calls == 4:  # the two ends, then the images 1 and 2
                self.results["energy"] = float("nan")

    with pytest.raises(SimulationError, match="image 2 of the band"):
        mq.neb(ends(), Inside(), number=5, progress=False)
    first, last = ends()
    last.set_constraint(FixAtoms([1]))
    with pytest.raises(ConfigError, match="the last structure has other constraints than the first"):
        mq.neb([first, last], EMT(), progress=False)


def test_the_images_are_calculated_once_a_step(monkeypatch):
    """FIRE asks for the forces of each step twice."""
    asked, forward = [], mq.Model.forward
    monkeypatch.setattr(mq.Model, "forward", lambda *a, **k: (asked.append(1), forward(*a, **k))[1])
    found = mq.neb(ends(), net(), number=5, steps=3, fmax=1e-6, progress=False)
    assert found.steps == 3 and len(asked) == 1 + 1 + 3  # the ends, the start of the band, the steps


def test_a_band_in_an_electric_field_is_that_of_the_calculator():
    torch.manual_seed(0)
    inputs = mq.Inputs(electric_field=True)
    model = mq.Model(mq.PaiNN(elements=["C", "O", "H"], channels=8, layers=1, cutoff=4.0, inputs=inputs))
    model = model.double()
    without = mq.neb(ends(), model, number=4, steps=1, progress=False)
    first, last = ends()
    for frame in (first, last):
        frame.info["electric_field"] = [0.0, 0.2, 0.5]
    found = mq.neb([first, last], model, number=4, steps=1, progress=False)
    for frame, energy in zip(found.images, found.energies):
        alone = frame.copy()
        alone.calc = mq.Calculator(model)
        assert alone.get_potential_energy() == pytest.approx(energy, abs=1e-10)
        np.testing.assert_allclose(alone.get_forces(), frame.get_forces(), atol=1e-10)
    assert np.abs(found.energies - without.energies).max() > 1e-4
    del last.info["electric_field"]
    with pytest.raises(
        ConfigError,
        match="the last structure has no charge, spin or field, the first structure .*electric_field",
    ):
        mq.neb([first, last], model, progress=False)
    with pytest.raises(ConfigError, match="climb='yes'"):
        mq.neb(ends(), model, climb="yes", progress=False)
    with pytest.raises(ModelError, match="electric field"):  # a model that reads none
        mq.neb([first, first], net(), progress=False)


def test_ends_that_do_not_fit_are_refused():
    first, last = ends()
    torch.manual_seed(0)
    inputs = mq.Inputs(charge=True)
    charged = mq.Model(mq.PaiNN(elements=["C", "O", "H"], channels=8, layers=1, cutoff=4.0, inputs=inputs))
    with pytest.raises(ConfigError, match=r"set atoms.info\['charge'\]"):
        mq.neb([first, last], charged, progress=False)
    first.info["charge"], last.info["charge"] = 0, 1
    with pytest.raises(ConfigError, match="the last structure has .*wanted the same"):
        mq.neb([first, last], charged, progress=False)
    last.cell = [9, 9, 9]
    with pytest.raises(ConfigError, match="the last structure has another cell or pbc"):
        mq.neb([first, last], EMT(), progress=False)
