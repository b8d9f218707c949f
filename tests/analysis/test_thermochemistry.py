"""Rigid motions of normal modes, and thermochemistry against measured entropies and ASE."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import write
from ase.thermochemistry import HarmonicThermo, IdealGasThermo

import molequi as mq
from molequi.analysis import vibrations, write_tables
from molequi.cli import main
from molequi.errors import ConfigError, DataError

JOULE = units._Nav / units.J  # J/mol of 1 eV
WATER = molecule("H2O")


class Springs(Calculator):
    """Springs between all pairs, at rest in a reference structure, and one at the center of mass."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, rest, strength, pin=0.0):
        super().__init__()
        self.rest, self.strength, self.pin = rest, strength, pin

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        size = self.rest.get_all_distances() + np.eye(len(atoms))
        away = atoms.positions[:, None] - atoms.positions[None]
        d = np.linalg.norm(away, axis=-1) + np.eye(len(atoms))
        masses = atoms.get_masses()
        off = atoms.get_center_of_mass() - self.rest.get_center_of_mass()
        forces = -((self.strength * (1 - size / d))[:, :, None] * away).sum(1)
        energy = (self.strength * (d - size) ** 2).sum() / 4 + self.pin * (off @ off) / 2
        forces = forces - self.pin * masses[:, None] / masses.sum() * off
        self.results = {"energy": float(energy), "forces": forces}


def peroxide(torsion=1e-4, pin=0.0):
    """H2O2 whose torsion is soft, and whose translations are harder if it is pinned."""
    atoms = molecule("H2O2")
    strength = np.full((4, 4), 10.0)
    first, second = atoms.symbols.indices()["H"]
    strength[first, second] = strength[second, first] = torsion
    return atoms, Springs(atoms, strength, pin)


def gas(name, wavenumber=None, **options):
    """A relaxed molecule; of a diatomic the wavenumber is given."""
    atoms = molecule(name)
    strength = np.full((len(atoms),) * 2, 30.0)
    if wavenumber is not None:
        atoms.positions[:, 2] = [0, options.pop("length")]
        one, two = atoms.get_masses()
        strength[:] = (
            one * two / (one + two) * (wavenumber * units.invcm / (units._hbar * units.J * units.s)) ** 2
        )
    return vibrations(atoms, Springs(atoms, strength), relax=False, displacement=1e-3)


def test_a_soft_torsion_is_a_vibration():
    """A torsion softer than the translations, which a pinned molecule has: the projection tells them apart."""
    atoms, soft = peroxide(pin=2.0)
    found = vibrations(atoms, soft, relax=False, displacement=1e-3)
    torsion = found.wavenumber[found.internal][0]
    whole = np.sort(found.wavenumber[~found.internal])
    assert 0 < torsion < whole[3] and np.allclose(whole[3:], whole[-1], rtol=1e-3) and found.rigid == 6
    free = vibrations(*peroxide(), relax=False, displacement=1e-3)
    assert np.allclose(found.wavenumber[found.internal], free.wavenumber[free.internal], rtol=1e-3)
    ase = np.sort(free.data.get_energies().real)[-6:] / units.invcm
    assert np.allclose(free.wavenumber[free.internal], ase, rtol=1e-3)
    norms = np.einsum("n,knd,knd->k", atoms.get_masses(), found.modes, found.modes)
    assert np.allclose(norms, 1)


@pytest.mark.parametrize(
    "atoms, fixed, rigid",
    [
        (molecule("CO2"), [], 5),
        (Atoms("H"), [], 3),
        (WATER, [0], 3),
        (WATER, [0, 1], 1),
        (molecule("CO2"), [0], 2),
        (molecule("CO2"), [0, 1], 0),
        (molecule("CH4"), [0, 1, 2], 0),
    ],
)
def test_motions_of_the_whole(atoms, fixed, rigid):
    atoms = atoms.copy()
    atoms.set_constraint(FixAtoms(fixed) if fixed else None)
    springs = Springs(atoms, np.full((len(atoms),) * 2, 5.0))
    found = vibrations(atoms, springs, relax=False, displacement=1e-4)
    assert found.rigid == rigid and np.abs(found.wavenumber[~found.internal]).max(initial=0) < 1
    assert found.imaginary == 0 and found.modes.shape == (3 * (len(atoms) - len(fixed)), len(atoms), 3)


def test_all_atoms_fixed():
    atoms = WATER.copy()
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    with pytest.raises(ConfigError, match="vibrations: all atoms are fixed"):
        vibrations(atoms, Springs(atoms, np.ones((3, 3))), relax=False)


def test_measured_entropies():
    """CODATA key values (Cox, Wagman and Medvedev, 1989) at 298.15 K and 1 bar in J/(mol K)."""
    nitrogen = gas("N2", 2358.6, length=1.0977)  # Huber and Herzberg
    hydrogen_chloride = gas("HCl", 2990.9, length=1.2746)
    argon = vibrations(Atoms("Ar"), Springs(Atoms("Ar"), np.zeros((1, 1))), relax=False)
    for modes, wanted in ((argon, 154.846), (nitrogen, 191.609), (hydrogen_chloride, 186.902)):
        found = modes.thermochemistry(298.15, pressure=1e5)
        assert found.entropy[0] * JOULE == pytest.approx(wanted, abs=0.2)
    assert argon.thermochemistry().enthalpy[0] == pytest.approx(2.5 * units.kB * 298.15)


def test_thermodynamic_laws():
    """G = H - T S, dG/dT = -S, dG/dp = k T / p, and the numbers of ASE."""
    modes = gas("H2O")
    found = modes.thermochemistry([299.9, 300, 300.1], pressure=2e5)
    t, g = found.temperature, found.gibbs_energy
    assert np.allclose(g, found.enthalpy - t * found.entropy)
    assert -(g[2] - g[0]) / 0.2 == pytest.approx(found.entropy[1], rel=1e-6)
    assert np.allclose(found.enthalpy - found.internal_energy, units.kB * t)
    double = modes.thermochemistry(300, pressure=4e5)
    assert double.gibbs_energy[0] - g[1] == pytest.approx(units.kB * 300 * np.log(2))
    quanta = modes.wavenumber[modes.internal] * units.invcm
    ase = IdealGasThermo(quanta, "nonlinear", 0.0, WATER, symmetrynumber=2, spin=0.5)
    radical = modes.start.atoms
    radical.info["charge"] = 1
    assert modes.thermochemistry(300).gibbs_energy[0] == pytest.approx(
        ase.get_gibbs_energy(300, 101325, verbose=False), rel=1e-6
    )
    assert "symmetry number 2, multiplicity 2" in str(modes.thermochemistry(300))


def test_symmetry_numbers():
    for name, wanted in (("CO2", 2), ("HCN", 1), ("NH3", 3), ("CH4", 12), ("C6H6", 12), ("CH3CH2OH", 1)):
        assert f"symmetry number {wanted}," in gas(name).thermochemistry().note
    heavy = gas("H2O")
    heavy.start.atoms.set_masses([15.999, 1.008, 2.014])
    assert "symmetry number 1," in heavy.thermochemistry().note
    assert "symmetry number 2," in heavy.thermochemistry(symmetry_number=2).note


def test_what_only_vibrates(tmp_path):
    crystal = vibrations(bulk("Cu", cubic=True), EMT())
    found = crystal.thermochemistry(300)
    quanta = crystal.wavenumber[crystal.internal] * units.invcm
    energy = crystal.start.atoms.get_potential_energy()
    ase = HarmonicThermo(quanta, energy).get_helmholtz_energy(300, verbose=False)
    assert found.gibbs_energy[0] == pytest.approx(ase) and "vibrations only" in str(found)
    assert [path.name for path in write_tables(found, tmp_path)] == ["thermochemistry.csv"]
    with pytest.raises(ConfigError, match="pressure=100000.0 has no effect: a structure that is periodic"):
        crystal.thermochemistry(pressure=1e5)


def test_transition_states():
    """The torsion of H2O2 with a spring that pushes: one imaginary vibration."""
    found = vibrations(*peroxide(torsion=-0.1), relax=False, displacement=1e-3)
    assert found.imaginary == 1
    with pytest.raises(DataError, match="1 imaginary vibrations; wanted none.*transition_state=True"):
        found.thermochemistry()
    assert "without the imaginary mode" in found.thermochemistry(transition_state=True).note
    with pytest.raises(DataError, match="0 imaginary vibrations; wanted one of a transition state"):
        gas("H2O").thermochemistry(transition_state=True)


def test_wrong_calls_are_named():
    modes = gas("H2O")
    for options, words in [
        ({"temperature": 0}, "temperature=0: wanted K, above zero"),
        ({"temperature": [300, -1]}, "temperature="),
        ({"temperature": []}, "temperature="),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"pressure": 0}, "pressure=0: wanted Pa"),
        ({"symmetry_number": 0}, "symmetry_number=0: wanted a whole number"),
        ({"spin": 0.5}, "spin=0.5: wanted a whole number"),
        ({"spin": 2}, "spin=2 of 10 electrons: the multiplicity 2S . 1 is odd"),
        ({"transition_state": 1}, "transition_state=1: wanted True or False"),
    ]:
        with pytest.raises(ConfigError, match=words):
            modes.thermochemistry(**options)
    apart = molecule("H2O2")
    with pytest.raises(DataError, match="vibrations cost nothing"):
        vibrations(apart, Springs(apart, np.zeros((4, 4))), relax=False).thermochemistry()
    fixed = WATER.copy()
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(ConfigError, match="fixed atoms about which the others turn freely"):
        vibrations(fixed, Springs(fixed, np.ones((3, 3))), relax=False).thermochemistry()


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mq.save(mq.Model(mq.PaiNN(elements=["Ar"], channels=8, layers=1)), "model.safetensors")
    write("argon.xyz", Atoms("Ar"))
    command = ["vibrations", "model.safetensors", "argon.xyz", "--relax", "false"]
    assert main([*command, "--out", "a"]) == 0
    assert "ideal gas" not in capsys.readouterr().out and not (tmp_path / "a/thermochemistry.csv").exists()
    assert main([*command, "--temperature", "298.15", "400", "--pressure", "1e5"]) == 0
    assert "ideal gas of atoms at 100000 Pa, multiplicity 1" in capsys.readouterr().out
    entropy = np.loadtxt("vibrations/thermochemistry.csv", delimiter=",", skiprows=1)[:, 3] * JOULE
    assert len(entropy) == 2 and entropy[0] == pytest.approx(154.846, abs=0.01)  # CODATA
    assert main([*command, "--spin", "2"]) == 2
    assert "spin=2 of 18 electrons: the multiplicity 2S + 1 is odd" in capsys.readouterr().err
