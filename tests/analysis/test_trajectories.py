"""Distributions, diffusion and spectra against laws, by hand, and against other libraries."""

import re

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.geometry.rdf import get_rdf
from ase.io import read, write

import molequi as mq
from molequi.analysis import analyze, angles, bonds, msd, rdf, read_frames, vdos, write_tables
from molequi.analysis.frames import unwrapped_positions
from molequi.cli import main
from molequi.errors import ConfigError, DataError, DataWarning


def gas(n, side, frames, seed=0, skew=0.0):
    rng = np.random.default_rng(seed)
    cell = side * np.array([[1, 0, 0], [skew, 1, 0], [0, skew, 1]])
    return [
        Atoms(f"Ar{n // 2}Ne{n - n // 2}", rng.random((n, 3)) @ cell, cell=cell, pbc=True)
        for _ in range(frames)
    ]


# Radial distribution.


@pytest.mark.parametrize("skew", [0.0, 0.6])
def test_an_ideal_gas_has_g_of_one(skew):
    """1 - 1/N below the lattice vectors; expected counts are known, so are their errors."""
    frames = gas(40, 10.0, 60, skew=skew)
    found = rdf(frames, cutoff=7.0, bins=14)
    shells = 4 / 3 * np.pi * np.diff(np.linspace(0, 7, 15) ** 3)
    counts = 60 * 40 * 39 / 2 * shells / 1000
    away = (found.g["all"] - (1 - 1 / 40)) * np.sqrt(counts)
    assert np.abs(away).max() < 4 and np.abs(away).mean() > 0.2
    assert np.abs((found.g["all"] - 1.2) * np.sqrt(counts)).max() > 4  # control
    assert found.g["Ne-Ar"][6:].mean() == pytest.approx(1, abs=0.05)  # different elements: 1, not 1 - 1/N
    assert found.neighbors["Ne-Ar"][-1] == pytest.approx(20 * 4 / 3 * np.pi * 7**3 / 1000, rel=0.03)


def test_a_crystal_in_any_cell():
    """The shells of fcc, from one atom in a skewed cell with images beyond half of it, and from 108 atoms."""
    one, many = bulk("Cu", a=3.63), bulk("Cu", a=3.63, cubic=True) * 3
    found = [rdf([atoms], cutoff=5.0, bins=50) for atoms in (one, many)]
    assert np.allclose(found[0].g["Cu-Cu"], found[1].g["Cu-Cu"])
    assert [round(found[0].neighbors["Cu-Cu"][k]) for k in (24, 26, 37, 45)] == [0, 12, 18, 42]
    g, r = get_rdf(many, 5.0, 50)
    assert np.allclose(found[1].g["Cu-Cu"], g, rtol=1e-9) and np.allclose(found[1].r, r)


def test_pairs_of_elements_by_hand():
    salt = bulk("NaCl", "rocksalt", a=5.62, cubic=True)
    found = rdf([salt], cutoff=4.2, bins=42)
    assert set(found.g) == {"Na-Na", "Na-Cl", "Cl-Cl", "all"}
    assert found.neighbors["Na-Cl"][-1] == 6 and found.neighbors["Na-Na"][-1] == 12
    shell = 4 / 3 * np.pi * (2.9**3 - 2.8**3)
    assert found.g["Na-Cl"][28] == pytest.approx(6 / (4 / 5.62**3 * shell))
    assert "Na-Cl highest at 2.85 Å" in str(found)


def test_what_has_no_density_is_refused():
    for atoms in (molecule("H2O"), Atoms("Ar", cell=[5, 5, 5], pbc=[1, 1, 0])):
        with pytest.raises(DataError, match=r"frame 0 has pbc=.*g\(r\) needs a density.*take bonds\(\)"):
            rdf([atoms])
    for changes, words in [
        ({"cutoff": -1}, "cutoff=-1: wanted a number"),
        ({"bins": 1.5}, "bins=1.5: wanted a whole"),
    ]:
        with pytest.raises(ConfigError, match=words):
            rdf(gas(4, 5.0, 1), **changes)


# Displacement.


def walk(frames, atoms, seed, size=0.3):
    steps = np.random.default_rng(seed).normal(0, size, (frames, atoms, 3))
    return steps.cumsum(0) + np.random.default_rng(9).random((atoms, 3)) * 8


def test_a_random_walk_has_its_diffusion_coefficient():
    """D = σ² / 2 per step; 0.09 Å² / 2 / 2 fs here, within the error, which is that of other walks."""
    wanted, found = 0.09 / 2 / 2e-3, []
    for seed in range(6):
        frames = [Atoms("Li16", x) for x in walk(2000, 16, seed)]
        found.append(msd(frames, spacing=2.0, still=False).diffusion["Li"])
    means, errors = np.array([[f.mean, f.error] for f in found]).T
    assert (np.abs(means - wanted) < 4 * errors).all() and errors.max() < 0.15 * wanted
    assert 0.4 < np.sqrt(np.mean(errors**2)) / means.std(ddof=1) < 2.5
    assert found[0].count == 5


def test_the_displacement_is_that_of_the_definition():
    x = walk(40, 3, 1)
    found = msd([Atoms("LiNa2", p) for p in x], spacing=1.0, still=False, blocks=2)
    for name, chosen in (("Li", [0]), ("Na", [1, 2]), ("all", [0, 1, 2])):
        own = x[:, chosen]
        for m in (0, 1, 7, 20):
            by_hand = np.mean([((own[t + m] - own[t]) ** 2).sum(-1).mean() for t in range(40 - m)])
            assert found.msd[name][m] == pytest.approx(by_hand, abs=1e-9)
    assert found.lag[7] == pytest.approx(0.007)


def test_atoms_that_are_wrapped_into_the_cell_are_followed():
    cell = [[8, 0, 0], [3, 7, 0], [0, 1, 9]]
    frames = [Atoms("Li4", x, cell=cell, pbc=True) for x in walk(300, 4, 2)]
    wrapped = [frame.copy() for frame in frames]
    for frame in wrapped:
        frame.wrap()
    assert any(not np.allclose(a.positions, b.positions) for a, b in zip(frames, wrapped))
    free, folded = msd(frames, spacing=1.0), msd(wrapped, spacing=1.0)
    assert np.allclose(free.msd["Li"], folded.msd["Li"]) and free.msd["Li"][-1] > 20
    assert (
        np.abs(unwrapped_positions(frames).mean(1)[50] - unwrapped_positions(frames).mean(1)[0]).max() < 1e-9
    )


def test_atoms_at_their_sites_do_not_diffuse():
    rng = np.random.default_rng(0)
    frames = [Atoms("Li8", 0.1 * rng.normal(size=(8, 3))) for _ in range(400)]
    found = msd(frames, spacing=10.0, still=False)
    assert abs(found.exponent["Li"]) < 0.2 and "Li does not diffuse" in str(found)
    assert found.msd["Li"][5:].mean() == pytest.approx(6 * 0.01, rel=0.1)
    velocity = rng.normal(size=(8, 3))
    flying = msd([Atoms("Li8", k * velocity) for k in range(100)], spacing=1.0, still=False)
    assert flying.exponent["Li"] == pytest.approx(2) and "Li too short a time for diffusion" in str(flying)
    moving = msd([Atoms("Li8", x) for x in walk(400, 8, 0)], spacing=10.0, still=False)
    assert re.search(r"Li D = \(.*e-0\d ± .*\) cm²/s", str(moving)) and moving.exponent["Li"] > 0.8
    assert float(re.search(r"\((.*?) ±", str(moving))[1]) == pytest.approx(
        0.09 / 2 / 1e-2 * 1e-4, rel=0.3
    )  # cm²/s


@pytest.mark.parametrize(
    "frames, changes, error, words",
    [
        (30, {"spacing": 1.0}, DataError, "30 frames in 5 blocks: the fit has 3 points|wanted three or more"),
        (
            10,
            {"spacing": 1.0},
            DataError,
            "10 frames in 5 blocks: .*simulate longer, write frames more often",
        ),
        (
            100,
            {},
            ConfigError,
            "frame 0 has no time .'time_ps'.; say the time between two frames in fs with spacing",
        ),
        (100, {"spacing": 0}, ConfigError, "spacing=0: wanted"),
        (100, {"spacing": 1.0, "blocks": 1}, ConfigError, "blocks=1: wanted a whole number, two or more"),
        (100, {"spacing": 1.0, "window": (0.5, 0.1)}, ConfigError, "window=.0.5, 0.1.: wanted two fractions"),
        (1, {"spacing": 1.0}, DataError, "1 frame: wanted two"),
    ],
)
def test_settings_of_the_displacement(frames, changes, error, words):
    given = [Atoms("Li2", x) for x in walk(frames, 2, 0)]
    if frames == 30:
        assert len(msd(given, **changes).lag) == 16
        return
    with pytest.raises(error, match=words):
        msd(given, **changes)


def test_times_of_frames_must_be_equal():
    frames = [Atoms("Li", info={"time_ps": t}) for t in (0.0, 0.1, 0.2, 0.5)]
    with pytest.raises(DataError, match="frames 2 and 3 are 300 fs apart, others 100 fs"):
        msd(frames)


# Vibrations from velocities.


def test_oscillators_have_their_peaks(oscillators):
    frames, frequencies = oscillators
    found = vdos(frames, resolution=1.0)
    for name, wanted in frequencies.items():
        assert found.frequency[found.density[name].argmax()] == pytest.approx(wanted, abs=1.0), name
    total = found.density["C"] + found.density["Ge"]
    assert np.allclose(total, found.density["all"]) and np.trapezoid(total, found.frequency) == pytest.approx(
        1
    )
    assert found.highest == pytest.approx(125) and found.wavenumber[1] == pytest.approx(
        33.3564 * found.frequency[1], rel=1e-4
    )
    # Equipartition: √m v has the same variance for all, so each element has its share of the atoms.
    assert np.trapezoid(found.density["C"], found.frequency) == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def oscillators():
    """Exact trajectories of independent oscillators at 300 K, 4 fs apart."""
    rng, k = np.random.default_rng(0), 20.0  # eV/Å²
    atoms = Atoms("C20Ge20")
    masses = atoms.get_masses()[:, None]
    omega = np.sqrt(k / masses)
    phase, size = rng.random((40, 3)) * 2 * np.pi, rng.rayleigh(1, (40, 3)) * np.sqrt(units.kB * 300 / k)
    frames = []
    for step in range(1000):
        t = step * 4 * units.fs
        frame = atoms.copy()
        frame.set_positions(size * np.cos(omega * t + phase))
        frame.set_velocities(-size * omega * np.sin(omega * t + phase))
        frame.info["time_ps"] = step * 4e-3
        frames.append(frame)
    terahertz = omega.ravel()[[0, -1]] / (2 * np.pi) * units.fs * 1e3
    return frames, {"C": terahertz[0], "Ge": terahertz[1]}


def test_frames_that_are_too_far_apart_are_named(oscillators):
    with pytest.warns(
        DataWarning, match="frames 20 fs apart resolve 25 THz; faster vibrations, up to about 60 THz"
    ):
        vdos(oscillators[0][::5])
    with pytest.raises(DataError, match="frame 0 has no velocities; `molequi md` writes them"):
        vdos([Atoms("Ar")] * 10, spacing=1.0)
    with pytest.raises(DataError, match="5 frames: wanted 8"):
        vdos(oscillators[0][:5])
    with pytest.raises(ConfigError, match="resolution=0.001: 4 ps resolve 0.25 THz"):
        vdos(oscillators[0], resolution=0.001)


# Bonds and angles.


def test_bonds_and_angles_of_a_molecule():
    atoms = molecule("CH3CH2OH")
    found = bonds([atoms])
    assert {name: a.count for name, a in found.averages.items()} == {"H-C": 5, "H-O": 1, "C-C": 1, "C-O": 1}
    assert found.averages["C-C"].mean == pytest.approx(atoms.get_distance(0, 1))
    assert all(np.trapezoid(p, found.x) == pytest.approx(1, abs=0.01) for p in found.density.values())
    angle = angles([molecule("H2O")]).averages["H-O-H"]
    assert angle.mean == pytest.approx(molecule("H2O").get_angle(1, 0, 2)) and angle.count == 1
    ethanol = angles([atoms]).averages
    assert ethanol["C-C-O"].mean == pytest.approx(atoms.get_angle(0, 1, 2)) or ethanol[
        "C-C-O"
    ].mean == pytest.approx(atoms.get_angle(1, 0, 2))
    assert sum(a.count for a in ethanol.values()) == 6 + 6 + 1  # two tetrahedral carbons and an oxygen


def test_bonds_to_images_count():
    """fcc with one atom: 12 neighbors are 6 bonds of one length; diamond: 4 bonds of two atoms, all tetrahedral."""
    copper = bonds([bulk("Cu", a=3.6)])
    assert copper.averages["Cu-Cu"].count == 6 and copper.averages["Cu-Cu"].mean == pytest.approx(
        3.6 / np.sqrt(2)
    )
    diamond = [bulk("C", "diamond", a=3.57)]
    assert bonds(diamond).averages["C-C"].count == 4
    found = angles(diamond).averages["C-C-C"]
    assert (
        found.count == 12 and found.mean == pytest.approx(np.degrees(np.arccos(-1 / 3))) and found.std < 1e-6
    )
    assert str(bonds([Atoms("Ar2", [[0, 0, 0], [9, 0, 0]])])) == "bonds: none found"


# All together.


def test_all_of_a_trajectory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    start, frames = bulk("Cu", cubic=True), []
    for k in range(60):
        frame = start.copy()
        frame.positions += 0.05 * rng.normal(size=(4, 3))
        frame.set_momenta(rng.normal(size=(4, 3)))
        frame.info["time_ps"] = 0.005 * k
        frames.append(frame)
    write("t.xyz", frames)
    assert main(["analyze", "t.xyz", "--cutoff", "4", "--out", "found"]) == 0
    shown = capsys.readouterr().out
    assert "60 frames\nrdf of 60 frames" in shown and "found: rdf.csv, rdf.png, msd.csv" in shown
    for name in ("rdf", "msd", "vdos", "bonds", "angles"):
        table = np.genfromtxt(f"found/{name}.csv", delimiter=",", names=True)
        assert len(table) > 10 and (tmp_path / f"found/{name}.png").stat().st_size > 5000
    direct = rdf("t.xyz", cutoff=4.0)
    assert np.allclose(np.genfromtxt("found/rdf.csv", delimiter=",", names=True)["g_CuCu"], direct.g["Cu-Cu"])
    assert main(["analyze", "t.xyz", "--what", "rdf", "--skip", "10", "--out", "some"]) == 0
    assert "50 frames; the first 10 are left out" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["rdf.csv", "rdf.png", "run.lock"]
    write("m.xyz", molecule("H2O"))
    assert main(["analyze", "m.xyz"]) == 0
    shown = capsys.readouterr().out
    assert "rdf left out: frame 0 has pbc" in shown and "msd left out: 1 frame" in shown and "H-O-H" in shown
    for words, message in [
        ("analyze m.xyz --what rdf", "needs a density"),
        ("analyze m.xyz --what rfd", "--what: found .'rfd'. .*wanted 'rdf', 'msd'"),
        ("analyze m.xyz --cutof 3", "--cutof: molequi analyze has no such option; did you mean '--cutoff'"),
        ("analyze none.xyz", "none.xyz: no such file"),
        ("analyze m.xyz --skip 3", "skip=3: the trajectory has 1 frames"),
    ]:
        assert main(words.split()) == 2
        assert re.search(message, capsys.readouterr().err), words
    assert main(["analyze", "m.xyz", "--help"]) == 0 and "--cutoff" in capsys.readouterr().out


def test_the_start_is_left_out(calm=20):
    rng, frames = np.random.default_rng(0), []
    from ase.calculators.singlepoint import SinglePointCalculator

    for k in range(200):
        frame = bulk("Cu", cubic=True)
        frame.calc = SinglePointCalculator(frame, energy=rng.normal() + (50 if k < calm else 0))
        frames.append(frame)
    assert analyze(frames, what=["bonds"]).skipped == calm
    assert analyze(frames, what=["bonds"], skip=0).frames == 200


def test_trajectories_are_checked(tmp_path):
    with pytest.raises(
        DataError, match="frame 1 of the trajectory is Ne, frame 0 is Ar: wanted the same atoms"
    ):
        read_frames([Atoms("Ar"), Atoms("Ne")])
    with pytest.raises(DataError, match="no frames"):
        read_frames([])
    with pytest.raises(DataError, match="frame 0 of the trajectory is str"):
        read_frames(["x"])
    run = mq.md(
        molecule("H2O"),
        mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1)),
        steps=20,
        every=1,
        temperature=10,
        out=tmp_path,
        progress=False,
    )
    assert len(read_frames(run.out / "trajectory.xyz")) == 21
    paths = write_tables(bonds(run.out / "trajectory.xyz"), tmp_path / "new")
    assert (
        paths[0].read_text().splitlines()[0] == "r_A,p_H-O"
        and len(read(run.out / "trajectory.xyz", ":")) == 21
    )
