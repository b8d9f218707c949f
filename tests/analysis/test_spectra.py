"""Infrared and Raman spectra: a diatomic whose lines are known, ASE's finite differences, and trajectories."""

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.vibrations import Infrared

import molequi as mq
from molequi import plotting
from molequi.analysis import vibrations, write_tables
from molequi.analysis.free_motion import continuous, free_velocities
from molequi.cli.program import main
from molequi.errors import ConfigError, DataError, DataWarning

from .springs import A1, CHARGE, REDUCED, WAVENUMBER, diatomic, model, trajectory

KM = 974.88  # km/mol of e²/u; 42.2561 of (D/Å)²/u, with 1 e Å = 4.80320 D
VOLUME = 14.399645  # e²/(4πε₀) in eV Å
INFRARED = KM * CHARGE**2 / REDUCED
ISOTROPIC, ANISOTROPIC = (A1 * VOLUME / 3) ** 2 / REDUCED, (A1 * VOLUME) ** 2 / REDUCED  # ā'², γ'²
RAMAN = 45 * ISOTROPIC + 7 * ANISOTROPIC
KT = units.kB * 300.0


def test_lines_of_a_diatomic_are_those_of_theory():
    modes = vibrations(diatomic(), model(), displacement=1e-3)
    found, scattered = mq.infrared(modes, model()), mq.raman(modes, model())
    assert found.lines == pytest.approx([WAVENUMBER], rel=1e-5)
    assert found.strength == pytest.approx([INFRARED], rel=2e-5)
    assert scattered.strength == pytest.approx([RAMAN], rel=1e-5)
    assert scattered.depolarization == pytest.approx([3 * ANISOTROPIC / (45 * ISOTROPIC + 4 * ANISOTROPIC)])
    # the curve has the integral of the lines, but for the tails of the Lorentzians
    assert np.trapezoid(found.intensity, found.wavenumber) == pytest.approx(found.total, rel=0.02)
    assert found.wavenumber[found.intensity.argmax()] == pytest.approx(WAVENUMBER, abs=1.0)
    assert found.integral(1000, 3000) == found.total and found.integral(0, 1000) == 0


@pytest.mark.parametrize("way", ["Born charges", "dipoles"])
def test_spectra_of_a_trajectory_have_the_same_integrals(way):
    frames = trajectory(KT)
    if way == "dipoles":  # those of the frames, which have no velocities
        for frame in frames:
            bond = frame.positions[1] - frame.positions[0]
            length = np.linalg.norm(bond)
            alpha = np.outer(bond, bond) / length**2 * (0.1 + A1 * (length - 1.2))
            results = {"dipole": CHARGE * bond}
            frame.calc = SinglePointCalculator(frame, **results)
            frame.info["polarizability"] = alpha
            frame.set_momenta(None)
    given = (model(),) if way == "Born charges" else ()
    settings = {"spacing": 1.0, "temperature": 300.0}
    found, scattered = mq.infrared(frames, *given, **settings), mq.raman(frames, *given, **settings)
    assert way in found.source and "polarizabilities" in scattered.source
    for spectrum, wanted in ((found, INFRARED), (scattered, RAMAN)):
        step = spectrum.wavenumber[1]
        assert spectrum.wavenumber[spectrum.intensity.argmax()] == pytest.approx(WAVENUMBER, abs=step)
        assert spectrum.integral(WAVENUMBER - 5 * step, WAVENUMBER + 5 * step) == pytest.approx(
            wanted, rel=1e-2
        )
    doubled = mq.infrared(frames, *given, spacing=1.0, temperature=600.0)  # the same motion, called hotter
    assert doubled.total == pytest.approx(found.total / 2)


def test_intensities_are_those_of_ase(tmp_path):
    torch.manual_seed(0)
    inputs = mq.Inputs(electric_field=True)
    backbone = mq.PaiNN(elements=["H", "O"], channels=8, layers=1, inputs=inputs)
    net = mq.Model(backbone, ["energy", "forces", *mq.response()]).double().eval()
    water = molecule("H2O")
    modes = vibrations(water, net, relax=False, displacement=1e-3)
    water.calc = mq.Calculator(net)
    reference = Infrared(water, name=str(tmp_path / "ir"), delta=1e-3)
    reference.run()
    peers = np.asarray(reference.get_spectrum(start=1, end=1e5, npts=10)[1])  # makes intensities
    assert len(peers) == 10
    real = modes.internal & (modes.wavenumber > 0)
    wanted = reference.intensities[real] * KM / units.Debye**-2  # (D/Å)²/u
    assert wanted.max() > 1.0
    np.testing.assert_allclose(mq.infrared(modes, net).strength, wanted, rtol=1e-3, atol=1e-3 * wanted.max())


def test_periodic_cells_and_ions_have_infrared_spectra():
    torch.manual_seed(0)
    inputs = mq.Inputs(electric_field=True, charge=True)
    backbone = mq.PaiNN(elements=["H", "O"], channels=8, layers=1, inputs=inputs, cutoff=3.0)
    net = mq.Model(backbone, ["energy", *mq.response()]).double().eval()
    frames, generator = [], np.random.default_rng(0)
    for _ in range(20):
        frame = Atoms("OH2", positions=generator.normal(size=(3, 3)), cell=[6, 6, 6], pbc=True)
        frame.info["charge"] = 0
        frame.set_velocities(generator.normal(size=(3, 3)))
        frames.append(frame)
    found = mq.infrared(frames, net, spacing=1.0)
    assert np.isfinite(found.intensity).all() and found.total > 0
    # motion of the whole adds nothing, not even that of an ion
    for frame in frames:
        frame.pbc, frame.info["charge"] = False, 1
    still = mq.infrared(frames, net, spacing=1.0, temperature=300.0).intensity
    for frame in frames:
        frame.set_velocities(frame.get_velocities() + generator.normal(size=3))
    np.testing.assert_allclose(mq.infrared(frames, net, spacing=1.0, temperature=300.0).intensity, still)


def test_results_are_printed_written_and_drawn(tmp_path):
    modes = vibrations(diatomic(), model(), displacement=1e-3)
    lines, moving = mq.raman(modes, model()), mq.infrared(trajectory(KT), model(), spacing=1.0)
    assert "depolarization" in str(lines) and "1 normal modes; in total" in str(lines)
    assert "peak at cm⁻¹" in str(moving) and "table" in moving._repr_html_()
    names = [path.name for path in write_tables(lines, tmp_path)]
    assert names == ["raman.csv", "raman_lines.csv"]
    head = (tmp_path / "raman_lines.csv").read_text().splitlines()[0]
    assert head == "wavenumber_cm-1,activity_A4/u,depolarization"
    for result in (lines, moving):
        assert plotting.analysis(result).axes[0].get_xlabel() == "wavenumber (cm⁻¹)"
    names = [text.get_text() for text in plotting.analysis(lines).axes[0].get_legend().get_texts()]
    assert names == ["broadened", "intensities of modes"]
    assert f"a point every {moving.wavenumber[1]:.3g} cm⁻¹ up to {moving.wavenumber[-1]:.0f}" in str(moving)


def test_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    backbone = mq.PaiNN(elements=["H", "O"], channels=8, layers=1, inputs=mq.Inputs(electric_field=True))
    mq.save(
        mq.Model(backbone, ["energy", "forces", *mq.response("dipole", "polarizability")]), "m.safetensors"
    )
    ase.io.write("water.xyz", molecule("H2O"))
    assert main(["raman", "m.safetensors", "water.xyz"]) == 0
    assert "raman.csv, raman_lines.csv, raman.png" in capsys.readouterr().out
    frames = []
    for k in range(20):
        frame = molecule("H2O")
        frame.rattle(0.01, seed=k)
        frame.set_velocities(frame.positions * 0.01)
        frame.info["time_ps"] = k * 1e-3
        frames.append(frame)
    ase.io.write("md.xyz", frames, format="extxyz")
    assert main(["infrared", "m.safetensors", "md.xyz"]) == 0
    assert "of 20 frames" in capsys.readouterr().out and (tmp_path / "infrared" / "infrared.png").exists()


def test_the_temperature_is_that_of_the_free_motion():
    """A diatomic on its spring has 2 n - 5 = 1 degree of freedom; fixed atoms have none."""
    assert " 299 K" in mq.infrared(trajectory(KT), model(), spacing=1.0).source  # not whole periods
    frames = trajectory(KT)
    for frame in frames:
        frame.set_velocities(np.zeros((2, 3)) + [1.0, 0, 0])
    with pytest.raises(DataError, match="do not move against each other.*temperature="):
        mq.infrared(frames, model(), spacing=1.0)


def test_born_charges_of_a_head_in_a_cell_are_an_error():
    head = mq.Model(mq.PaiNN(elements=["C", "O"], channels=8, layers=1), ["dipole"]).double().eval()
    frames = trajectory(KT, steps=20)
    for frame in frames:
        frame.cell, frame.pbc = [6, 6, 6], True
    with pytest.raises(DataError, match=r"born_charges of frame 0 is not finite.*mq\.response\('dipole'\)"):
        mq.infrared(frames, head, spacing=1.0)


def moving(atoms, *, rotation=False, count=20):
    """Frames with velocities of a thermal distribution, without translation."""
    frames = []
    for k in range(count):
        frame = atoms.copy()
        masses, places = frame.get_masses()[:, None], frame.positions - frame.get_center_of_mass()
        momenta = np.sqrt(masses * KT) * np.random.default_rng(k).normal(size=places.shape)
        if not atoms.constraints:
            momenta -= masses * momenta.sum(0) / masses.sum()
        if not rotation:
            inertia = np.eye(3) * (masses * places**2).sum() - (masses * places).T @ places
            spin = np.linalg.pinv(inertia, rcond=1e-9) @ np.cross(places, momenta).sum(0)
            momenta -= masses * np.cross(spin, places)
        frame.set_momenta(momenta)
        frames.append(frame)
    return frames


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("H2O", {}, 3),
        ("CO2", {}, 4),
        ("H2O", {"rotation": True}, 6),
        ("H2O", {"cell": True}, 6),
        ("H2O", {"held": True}, 6),
    ],
)
def test_degrees_of_freedom_of_a_trajectory(name, options, wanted):
    """3 N - 6, linear 3 N - 5; 3 N - 3 if it rotates or is in a cell; what is held has none."""
    atoms = molecule(name)
    if options.pop("cell", False):
        atoms.cell, atoms.pbc, options["rotation"] = [8, 8, 8], True, True
    if options.pop("held", False):
        atoms.set_constraint(FixAtoms([0]))
    frames = moving(atoms, **options)
    velocities, free = free_velocities(frames)
    assert free == wanted
    held = [0] if atoms.constraints else []
    assert not velocities[:, held].any()


def test_frames_too_far_apart_for_the_vibrations_are_named():
    frames = moving(molecule("H2O"))
    for k, frame in enumerate(frames):
        frame.calc = SinglePointCalculator(frame, dipole=np.full(3, 0.01 * (-1) ** k))
    with pytest.warns(DataWarning, match=r"10 fs apart resolve 1668 cm⁻¹.*at most 4\.2 fs apart.*every=8 "):
        mq.infrared(frames, spacing=10.0)
    mq.infrared(frames, spacing=4.0)  # warnings are errors


def test_dipoles_of_cells_do_not_jump():
    frames = [Atoms("OH2", positions=np.zeros((3, 3)), cell=[5, 6, 7], pbc=[True, True, False])] * 30
    smooth = np.linspace(0, 20, 30)[:, None] * np.ones(3)
    jumps = smooth.copy()
    jumps[:, :2] %= [5.0, 6.0]
    assert np.abs(jumps - smooth).max() > 5
    np.testing.assert_allclose(continuous(jumps, frames), smooth, atol=1e-9)


def test_a_steady_translation_of_an_ion_adds_nothing():
    frames, found = trajectory(KT, steps=64), []
    for drift in (0.0, 0.3):
        for k, frame in enumerate(frames):
            still = CHARGE * (frame.positions[1] - frame.positions[0])
            frame.calc = SinglePointCalculator(frame, dipole=still + drift * k)
        found.append(mq.infrared(frames, spacing=1.0, temperature=300.0).intensity)
    np.testing.assert_allclose(*found, atol=1e-8 * found[0].max())


def test_born_charges_that_miss_the_charge_are_named():
    frames = trajectory(KT, steps=20)
    assert "add up" not in mq.infrared(frames, model(), spacing=1.0).source
    for frame in frames:
        frame.info["charge"] = 1
    note = "add up to 0.00 e, not to the charge 1"  # those of two opposite point charges
    assert note in mq.infrared(frames, model(), spacing=1.0).source
    modes = vibrations(frames[0], model(), displacement=1e-3, relax=False)
    assert note in mq.infrared(modes, model()).source


def with_results(**results):
    frames = trajectory(KT, steps=20)
    for frame in frames:
        frame.info.update(results)
    return frames


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: mq.infrared(diatomic()), ConfigError, r"needs a model: mq\.infrared\(structure, model\)"),
        (
            lambda: mq.infrared(diatomic(), "gfn2-xtb"),
            ConfigError,
            "found the calculator gfn2-xtb; wanted a m",
        ),
        (lambda: mq.infrared(diatomic(), model(), spacing=1.0), ConfigError, "leave spacing out"),
        (lambda: mq.infrared(diatomic(), model(), width=-1.0), ConfigError, r"width=-1\.0: wanted a number"),
        (
            lambda: mq.infrared(trajectory(KT, steps=5), model(), spacing=1.0),
            DataError,
            "5 frames: wanted 16.*or write more frames, as with md",
        ),
        (
            lambda: mq.infrared(trajectory(KT, steps=20), spacing=1.0),
            DataError,
            "frame 0 has no dipole; give",
        ),
        (
            lambda: mq.raman(trajectory(KT, steps=20), model(), spacing=1.0, width=1.0),
            ConfigError,
            r"0\.02 ps resolve 1\.67e\+03 cm⁻¹; wanted as much or more",
        ),
        (
            lambda: mq.raman(trajectory(KT, steps=20), spacing=1.0),
            DataError,
            r"frame 0 has no polarizability; give .*mq\.raman\(",
        ),
        (
            lambda: mq.raman(with_results(polarizability=np.zeros(6)), spacing=1.0),
            DataError,
            r"polarizability of frame 0 has the shape \(6,\); wanted 9 numbers",
        ),
        (
            lambda: mq.infrared(with_results(dipole=np.zeros(4)), spacing=1.0),
            DataError,
            r"dipole of frame 0 has the shape \(4,\); wanted 3",
        ),
        (lambda: mq.infrared(with_results(dipole="a"), spacing=1.0), DataError, "is 'a'; wanted numbers"),
        (lambda: mq.infrared(diatomic(), model(), width="a"), ConfigError, "width='a': wanted a number"),
        (lambda: mq.infrared(diatomic(), model(), spacing="1"), ConfigError, "spacing='1': wanted a number"),
        (lambda: mq.infrared(diatomic(), model(), width=1e-5), ConfigError, r"width=1e-05: wanted 0\.1 "),
        (
            lambda: mq.infrared([diatomic() for _ in range(20)], model(), spacing=1.0),
            ConfigError,
            "no velocities; say their temperature",
        ),
        (
            lambda: mq.raman(diatomic(), model().predicting(["energy", "forces", "dipole"])),
            ConfigError,
            r"predicts energy, forces, dipole; wanted 'polarizability' too.*mq\.response",
        ),
        (
            lambda: mq.infrared(diatomic(), SinglePointCalculator(diatomic())),
            ConfigError,
            "found the calculator SinglePointCalculator; wanted a model of molequi",
        ),
    ],
)
def test_messages(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("kind", [mq.infrared, mq.raman])
def test_a_file_is_loaded_once(kind, tmp_path, monkeypatch):
    torch.manual_seed(0)
    backbone = mq.PaiNN(elements=["H", "O"], channels=8, layers=1)
    file = mq.save(mq.Model(backbone, ["energy", "dipole", "polarizability"]), tmp_path / "m.safetensors")
    loads, build = [], mq.Model.from_hparams
    monkeypatch.setattr(mq.Model, "from_hparams", lambda *a, **k: (loads.append(a), build(*a, **k))[1])
    kind(molecule("H2O"), file)
    assert len(loads) == 1
