"""Equations of state, elastic constants, vibrations and phonons against analytic results and other libraries."""

import importlib.util

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.eos import calculate_eos
from ase.io import read, write
from ase.neighborlist import neighbor_list

import molequi as mq
from molequi import plotting
from molequi.analysis import elastic, eos, phonons, vibrations
from molequi.cli import main
from molequi.errors import ConfigError, DataError, MissingPackageError


class NearSprings(Calculator):
    """Springs between nearest neighbors of fcc: E = k/2 Σ (d - d0)² over bonds."""

    implemented_properties = ["energy", "forces", "stress"]
    k, length = 2.0, 3.6 / np.sqrt(2)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, vector, d = neighbor_list("iDd", atoms, 1.2 * self.length)
        pull = (self.k * (d - self.length) / d)[:, None] * vector
        forces = np.stack([np.bincount(i, pull[:, c], len(atoms)) for c in range(3)], 1)
        s = pull.T @ vector / 2 / atoms.cell.volume
        self.results = {
            "energy": float(self.k / 4 * ((d - self.length) ** 2).sum()),
            "forces": forces,
            "stress": s.ravel()[[0, 4, 8, 5, 2, 1]],
        }


class Argon(Calculator):
    """Lennard-Jones between all pairs."""

    implemented_properties = ["energy", "forces"]
    epsilon, sigma = 0.0104, 3.4

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = atoms.positions[:, None] - atoms.positions[None]
        r2 = (away**2).sum(-1) + np.diag(np.full(len(atoms), np.inf))
        s6 = (self.sigma**2 / r2) ** 3
        slope = 24 * self.epsilon * (2 * s6**2 - s6) / r2
        self.results = {
            "energy": float(2 * self.epsilon * (s6**2 - s6).sum()),
            "forces": (slope[:, :, None] * away).sum(1),
        }


# Equation of state.


def test_the_equation_of_state_of_springs():
    """fcc with springs at rest: E = 6 · k/2 (d - d0)² per atom, and so B = V d²E/dV² = 2 k d0² / (3 V)."""
    found = eos(bulk("Cu", a=3.7), NearSprings())
    volume, d0, k = 3.6**3 / 4, NearSprings.length, NearSprings.k
    # V = d³/√2; dV/dd = 3V/d; d²E/dd² = 6k; B = V · 6k / (3V/d)² = 2 k d² / (3 V)
    assert found.volume == pytest.approx(volume, rel=1e-4) and abs(found.energy) < 1e-4
    assert found.bulk_modulus == pytest.approx(2 * k * d0**2 / (3 * volume) / units.GPa, rel=5e-3)
    assert len(found.volumes) == 11 and found.start.converged and found.start.force < 2e-3


def test_the_equation_of_state_of_copper_is_that_of_ase():
    atoms = bulk("Cu", a=3.59)
    atoms.calc = EMT()
    volume, energy, modulus = calculate_eos(atoms, npoints=11, eps=0.02).fit()
    found = eos(bulk("Cu", a=3.7), EMT())
    assert found.volume == pytest.approx(volume, rel=1e-4) and found.energy == pytest.approx(energy, abs=1e-5)
    assert found.bulk_modulus == pytest.approx(modulus / units.GPa, rel=0.01)
    assert "relaxed start: largest force" in str(found)
    unrelaxed = eos(bulk("Cu", a=3.65), EMT(), relax=False, strain=0.05)
    assert "NOT relaxed" in str(unrelaxed) and unrelaxed.start.pressure == pytest.approx(-6.6, abs=1.5)


def test_no_minimum_is_named():
    with pytest.raises(
        DataError, match="eos: the energy falls to the end of the volumes, .*no minimum between them"
    ):
        eos(bulk("Cu", a=4.0), EMT(), relax=False)
    for changes, words in [
        ({"strain": 0}, "strain=0: wanted"),
        ({"points": 3}, "points=3: wanted a whole number, five"),
        ({"form": "cubic"}, "form='cubic': wanted one of birchmurnaghan"),
        ({"relax": 1}, "relax=1: wanted True or False"),
    ]:
        with pytest.raises(ConfigError, match=words):
            eos(bulk("Cu"), EMT(), **changes)
    with pytest.raises(ConfigError, match=r"eos of a structure with pbc=\[False.*wanted a crystal"):
        eos(molecule("H2O"), EMT())


# Elastic constants.


def test_elastic_constants_are_second_derivatives_of_the_energy():
    """C_ij from energies alone, which the stress takes no part in; cubic symmetry; the bulk modulus of the eos."""
    found = elastic(bulk("Cu"), EMT())
    c = found.matrix
    start = found.start.atoms

    def energy(strain):
        atoms = start.copy()
        atoms.calc = EMT()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        return atoms.get_potential_energy()

    h = 4e-3
    along, shear = np.diag([1.0, 0, 0]), np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]])
    for strain, wanted in (
        (along, c[0, 0]),
        (shear, c[5, 5]),
        (np.diag([1.0, 1, 0]), 2 * (c[0, 0] + c[0, 1])),
    ):
        second = (energy(h * strain) - 2 * energy(0 * strain) + energy(-h * strain)) / h**2
        assert second / start.cell.volume / units.GPa == pytest.approx(wanted, rel=0.01)
    assert np.allclose([c[1, 1], c[2, 2]], c[0, 0], rtol=1e-3) and np.allclose(c[:3, 3:], 0, atol=0.1)
    assert found.stable and found.bulk_modulus == pytest.approx((c[0, 0] + 2 * c[0, 1]) / 3)
    assert found.bulk_modulus == pytest.approx(eos(bulk("Cu"), EMT()).bulk_modulus, rel=0.02)


def test_elastic_constants_of_springs_are_known():
    """Born: fcc with nearest springs has C11 = 2 C12 = 2 C44 = √2 k / d0."""
    c = elastic(bulk("Cu", a=3.6), NearSprings(), strain=1e-3).matrix * units.GPa
    wanted = np.sqrt(2) * NearSprings.k / NearSprings.length
    assert c[0, 0] == pytest.approx(wanted, rel=1e-3)
    assert c[0, 1] == pytest.approx(wanted / 2, rel=1e-3) and c[3, 3] == pytest.approx(wanted / 2, rel=1e-3)


def test_atoms_relax_in_a_strained_cell():
    """hcp: its two atoms move against each other, which makes it softer than with frozen ions."""
    atoms = mq.relax(bulk("Cu", "hcp", a=2.54, c=4.15), EMT(), cell=True, fmax=1e-3, progress=False).atoms
    soft, frozen = elastic(atoms, EMT()), elastic(atoms, EMT(), relax=False)
    assert soft.matrix[0, 0] < frozen.matrix[0, 0] - 1 and soft.stable
    assert soft.asymmetry < 0.5 and "NOT relaxed" in str(frozen)
    assert soft.matrix[5, 5] == pytest.approx(
        (soft.matrix[0, 0] - soft.matrix[0, 1]) / 2, rel=0.02
    )  # hexagonal
    shear = soft.shear_modulus
    assert soft.young_modulus == pytest.approx(2 * shear * (1 + soft.poisson_ratio))
    with pytest.raises(ConfigError, match=r"strain=1: wanted a number between 0 and 0.1"):
        elastic(atoms, EMT(), strain=1)


# Vibrations.


def test_a_pair_has_the_frequency_of_its_bond():
    """Lennard-Jones: k = 72 ε / (2^(1/3) σ²) at the minimum, ω = √(2k/m)."""
    found = vibrations(Atoms("Ar2", [[0, 0, 0], [3.7, 0.5, 0]]), Argon(), fmax=1e-6)
    k = 72 * Argon.epsilon / (2 ** (1 / 3) * Argon.sigma**2)
    omega = np.sqrt(2 * k / Atoms("Ar").get_masses()[0]) * units._hbar * units.J * units.s
    assert found.rigid == 5 and found.internal.sum() == 1 and found.imaginary == 0
    assert found.zero_point_energy == pytest.approx(omega / 2, rel=1e-3)
    assert found.wavenumber[-1] == pytest.approx(omega / units.invcm, rel=1e-3)
    assert np.abs(found.wavenumber[:5]).max() < 0.5


def test_a_saddle_point_has_imaginary_modes():
    """Three argon atoms in a line: bending lowers the energy, in two planes."""
    far = 3.4 * 2 ** (1 / 6) * 0.9986
    line = Atoms("Ar3", [[-far, 0, 0], [0, 0, 0], [far, 0, 0]])
    found = vibrations(line, Argon(), relax=False)
    assert found.rigid == 5 and found.imaginary == 2 and "2 imaginary (i)" in str(found)
    assert "NOT relaxed: largest force" in str(found) and found.start.force < 2e-3
    relaxed = vibrations(Atoms("Ar3", [[-2, 0, 0], [2, 0, 0], [0, 3.2, 0]]), Argon(), fmax=1e-5)
    assert relaxed.imaginary == 0 and relaxed.rigid == 6 and "imaginary" not in str(relaxed)
    k = relaxed.wavenumber[relaxed.internal] ** 2
    assert k[2] / k[0] == pytest.approx(
        2, rel=0.01
    )  # A1' and E' of an equilateral triangle of springs: 3k/m, 3k/2m


def test_fixed_atoms_do_not_vibrate():
    pair = Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]])
    pair.set_constraint(FixAtoms([0]))
    found = vibrations(pair, Argon(), fmax=1e-6)
    free = vibrations(Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]]), Argon(), fmax=1e-6)
    assert found.rigid == 2 and len(found.wavenumber) == 3  # it turns about the fixed atom
    assert found.wavenumber[-1] == pytest.approx(free.wavenumber[-1] / np.sqrt(2), rel=1e-3)
    with pytest.raises(ConfigError, match="displacement=0: wanted Å"):
        vibrations(pair, Argon(), displacement=0)


# Phonons.


@pytest.fixture(scope="module")
def springs():
    pytest.importorskip("phonopy")
    return phonons(bulk("Cu", a=3.6, cubic=True), NearSprings(), supercell=[2, 2, 2], points=60)


def test_phonons_of_springs_are_known(springs):
    """fcc with nearest springs: at X √(8k/m) and √(4k/m), at L √(8k/m) and √(2k/m); zero at Γ, all real."""
    unit = np.sqrt(NearSprings.k / Atoms("Cu").get_masses()[0]) / (2 * np.pi) * units.fs * 1e3
    assert springs.bands.shape[1] == 3  # the primitive cell of the four atoms
    at = {name: int(np.abs(springs.distance - place).argmin()) for place, name in springs.labels}
    assert np.allclose(springs.bands[at["X"]], unit * np.sqrt([4, 4, 8]), rtol=2e-3)
    assert np.allclose(springs.bands[at["L"]], unit * np.sqrt([2, 2, 8]), rtol=2e-3)
    assert np.abs(springs.bands[at["Γ"]]).max() < 1e-3
    assert springs.stable and springs.lowest > -1e-3


def test_density_of_states_and_heat_capacity(springs):
    assert np.trapezoid(springs.density, springs.frequency) == pytest.approx(3, rel=0.02)
    heat = springs.thermal([10.0, 3000.0])["heat_capacity_eV_per_K"]
    assert heat[1] == pytest.approx(3 * units.kB, rel=0.005) and heat[0] < 0.1 * units.kB  # Dulong and Petit


def test_phonons_agree_with_those_of_ase(tmp_path):
    pytest.importorskip("phonopy")
    from ase.phonons import Phonons

    found = phonons(bulk("Cu", a=3.6), EMT(), supercell=[3, 3, 3], points=30, mesh=4)
    theirs = Phonons(found.start.atoms, EMT(), supercell=(3, 3, 3), delta=0.01, name=str(tmp_path / "ph"))
    theirs.run()
    theirs.read(acoustic=True)
    points = [[0, 0, 0], [0.5, 0, 0.5], [0.5, 0.5, 0.5]]
    wanted = (
        theirs.band_structure(points, verbose=False) / (units._hplanck * units.J * units.s) * units.s / 1e12
    )
    found.phonopy.run_qpoints(points)
    assert np.allclose(found.phonopy.qpoints.frequencies[1:], wanted[1:], rtol=0.01)


def test_imaginary_phonons_are_named():
    pytest.importorskip("phonopy")

    stretched = phonons(bulk("Cu", a=3.6), NearSprings(), supercell=[2, 2, 2], relax=False, mesh=4)
    assert stretched.stable
    pressed = NearSprings()
    pressed.length = 4.2 / np.sqrt(2)  # every spring pushes: the crystal buckles
    found = phonons(bulk("Cu", a=3.6), pressed, supercell=[2, 2, 2], relax=False, mesh=4)
    assert not found.stable and "imaginary frequencies down to" in str(found) and "NOT relaxed" in str(found)


def test_settings_of_phonons(monkeypatch):
    pytest.importorskip("phonopy")
    for changes, words in [
        ({"supercell": [2, 2]}, "supercell=.2, 2.: wanted three whole numbers above zero"),
        ({"supercell": [2, 2, 0]}, "supercell"),
        ({"mesh": 0}, "mesh=0: wanted a whole number, 1 or more"),
        ({"points": 1}, "points=1"),
        ({"displacement": -1}, "displacement=-1"),
    ]:
        with pytest.raises(ConfigError, match=words):
            phonons(bulk("Cu"), EMT(), **changes)
    with pytest.raises(ConfigError, match="phonons of a structure with pbc"):
        phonons(molecule("H2O"), EMT())


def test_without_phonopy_the_extra_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "molequi.util.optional.find_spec", lambda name: None if name == "phonopy" else real(name)
    )
    with pytest.raises(
        MissingPackageError, match=r"phonons needs phonopy, .* pip install 'molequi\[phonons\]'"
    ):
        phonons(bulk("Cu"), EMT())


# Pictures and commands.


def test_each_result_has_a_picture(springs, tmp_path):
    results = [
        springs,
        eos(bulk("Cu", a=3.6), NearSprings()),
        elastic(bulk("Cu", a=3.6), NearSprings()),
        vibrations(Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]]), Argon()),
    ]
    for result in results:
        figure = plotting.analysis(result)
        assert figure.axes and len(figure._repr_png_()) > 5000
        assert all(axis.get_xlabel() for axis in figure.axes[-1:])
        assert repr(result) == str(result) and str(result).split()[0] in result._repr_html_()
    with pytest.raises(ConfigError, match="found int; wanted a result of molequi.analysis"):
        plotting.analysis(3)


def test_pictures_say_what_they_show():
    """Equal curves are both seen, names are those of the literature, and noise does not take half of the axis."""
    from molequi.analysis import RadialDistribution, VibrationalDensity

    r = np.linspace(0.0, 5.0, 51)
    same = {"B-B": np.ones(51), "N-N": np.ones(51)}
    (axis,) = plotting.analysis(RadialDistribution(r, same, same, 3)).axes
    curves = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in curves] == ["B-B", "N-N"]
    assert len({line.get_linestyle() for line in curves}) == len({line.get_color() for line in curves}) == 2
    (axis,) = plotting.analysis(eos(bulk("Cu", a=3.6), NearSprings())).axes
    assert "fit of Birch–Murnaghan" in [text.get_text() for text in axis.get_legend().get_texts()]
    frequency = np.linspace(0.0, 250.0, 251)
    density = np.where(frequency <= 100, 1.0, 1e-5)
    axis = plotting.analysis(VibrationalDensity(frequency, {"all": density}, 250.0)).axes[0]
    assert 100 < axis.get_xlim()[1] < 120 and "vibrational" in axis.get_ylabel()


def test_commands(tmp_path, monkeypatch, capsys):
    """A model that is not trained has no crystal of its own, so nothing is relaxed here."""
    import torch

    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mq.Model(mq.EGNN(elements=["H", "O", "Cu"], cutoff=3.0, channels=8, layers=1))
    mq.save(model, "m.safetensors")
    write("cu.xyz", bulk("Cu", a=3.6))
    write("water.xyz", molecule("H2O"))
    commands = {
        "elastic": ("cu.xyz", "", ["elastic.csv", "elastic.png", "structure.xyz"]),
        "vibrations": ("water.xyz", "", ["modes.xyz", "structure.xyz", "vibrations.csv", "vibrations.png"]),
    }
    if importlib.util.find_spec("phonopy"):
        names = ["phonon_dos.csv", "phonons.csv", "phonons.png", "phonopy.yaml", "structure.xyz"]
        commands["phonons"] = ("cu.xyz", "--supercell 2 2 2 --mesh 3", names)
    for name, (structure, flags, files) in commands.items():
        assert main(f"{name} m.safetensors {structure} --relax false {flags}".split()) == 0, (
            capsys.readouterr().err
        )
        assert "NOT relaxed: largest force" in capsys.readouterr().out
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted([*files, "run.lock"])
    assert len(read("vibrations/modes.xyz", ":")) == 9
    assert main(["eos", "m.safetensors", "cu.xyz", "--points", "2"]) == 2
    assert "points=2: wanted a whole number" in capsys.readouterr().err
    assert main(["eos", "m.safetensors", "cu.xyz", "--strian", "2"]) == 2
    assert "--strian: molequi eos has no such option; did you mean '--strain'" in capsys.readouterr().err
    assert main(["elastic", "m.safetensors", "cu.xyz", "--help"]) == 0
    assert "--strain " in capsys.readouterr().out
