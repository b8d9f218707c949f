"""The data that the project ships are what their README says."""

import hashlib
import importlib.util
from collections import Counter
from functools import cache

import ase.io
import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from ase.units import kB

from molequi.readers import read_extxyz, read_npz, read_points, to_atoms

MODES = 3 * 9 - 6  # vibrations of ethanol


@cache
def frames(path):
    return ase.io.read(path, index=":")


def test_checksums_and_size(shipped):
    lines = (shipped / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split()) for line in lines)
    files = {path.name for pattern in ("*.xyz", "*.npz") for path in shipped.glob(pattern)}
    assert set(listed) == files
    for name, digest in listed.items():
        assert hashlib.sha256((shipped / name).read_bytes()).hexdigest() == digest, name
    assert sum(path.stat().st_size for path in shipped.iterdir() if path.is_file()) < 12e6


@pytest.mark.parametrize(
    "name, count, labels",
    [
        ("ethanol_300K.xyz", 400, {"energy", "forces", "dipole"}),
        ("ethanol_600K.xyz", 200, {"energy", "forces", "dipole"}),
        ("bn.xyz", 160, {"energy", "forces", "stress"}),
    ],
)
def test_every_frame_has_its_labels(shipped, name, count, labels):
    data = read_extxyz(shipped / name)
    assert len(data) == count and set(data.quantities) == labels
    for graph in data:
        assert all(bool(value.isfinite().all()) for value in graph.targets.values())
        assert abs(graph.targets["forces"].sum(0)).max() < 1e-6, (
            "forces on a whole structure add up to nothing"
        )


def test_isolated_atoms_lie_above_the_molecule(shipped):
    reference_energies = {
        atoms[0].symbol: atoms.get_potential_energy() for atoms in frames(shipped / "isolated_atoms.xyz")
    }
    assert set(reference_energies) == {"H", "C", "O"}
    for atoms in frames(shipped / "ethanol_600K.xyz"):
        binding = sum(reference_energies[symbol] for symbol in atoms.symbols) - atoms.get_potential_energy()
        assert 3 < binding / 9 < 6, (
            "eV per atom; 3.7 in nature, which the method, without spin polarisation, exceeds"
        )


@pytest.mark.parametrize("temperature", [300, 600])
def test_no_torque_on_the_free_molecule(shipped, temperature):
    for atoms in frames(shipped / f"ethanol_{temperature}K.xyz"):
        assert abs(np.cross(atoms.positions, atoms.get_forces()).sum(axis=0)).max() < 1e-4


def test_energies_follow_equipartition(shipped):
    """Mean and spread of the potential energy of harmonic vibrations: (3N - 6) kT / 2 and sqrt((3N - 6) / 2) kT."""
    energy = {
        t: np.array([a.get_potential_energy() for a in frames(shipped / f"ethanol_{t}K.xyz")])
        for t in (300, 600)
    }
    assert energy[600].mean() - energy[300].mean() == pytest.approx(MODES / 2 * kB * 300, rel=0.25)
    for temperature, values in energy.items():
        assert values.std() == pytest.approx(np.sqrt(MODES / 2) * kB * temperature, rel=0.25)


@pytest.mark.parametrize("temperature, trajectories", [(300, 8), (600, 4)])
def test_trajectories_are_named_and_start_equilibrated(shipped, temperature, trajectories):
    path = shipped / f"ethanol_{temperature}K.xyz"
    column = read_extxyz(path).info["trajectory"]
    assert sorted(set(column)) == list(range(trajectories)) and len(set(map(column.count, set(column)))) == 1
    energy = np.array([a.get_potential_energy() for a in frames(path)]).reshape(trajectories, -1)
    early, late = np.array_split(energy, 2, axis=1)
    error = energy.std() * np.sqrt(2 / early.size)
    assert abs(early.mean() - late.mean()) < 4 * error, "the energy still drifts"
    deviation = energy - energy.mean()
    assert abs((deviation[:, 1:] * deviation[:, :-1]).mean() / deviation.var()) < 0.25, (
        "frames resemble the one before"
    )


def test_only_the_hot_molecule_reaches_trans(shipped):
    """C-C-O-H within 60 degrees of 180."""
    share = {
        t: np.mean(
            [abs(a.get_dihedral(0, 1, 2, 3) - 180) < 60 for a in frames(shipped / f"ethanol_{t}K.xyz")]
        )
        for t in (300, 600)
    }
    assert share[300] == 0 and share[600] == 0.09


def test_no_bond_breaks_or_forms(shipped):
    """Distances in units of the sum of covalent radii: bonds stay below 1.25, all other pairs above."""
    radii = covalent_radii[frames(shipped / "ethanol_300K.xyz")[0].numbers]
    pairs = np.triu_indices(9, 1)
    bonds = None
    for temperature in (300, 600):
        for atoms in frames(shipped / f"ethanol_{temperature}K.xyz"):
            near = (atoms.get_all_distances() / np.add.outer(radii, radii))[pairs] < 1.25
            bonds = near if bonds is None else bonds
            assert near.sum() == 8 and (near == bonds).all()


def test_stress_has_the_sign_of_ase(shipped):
    """A crystal that is stretched pulls (positive), one that is compressed pushes; its slope is the bulk modulus."""
    cold = [atoms for atoms in frames(shipped / "bn.xyz") if atoms.info["sampling"] == "cold"]
    volume = np.log([atoms.get_volume() for atoms in cold])
    stress = np.array([atoms.get_stress()[:3].mean() for atoms in cold])
    assert np.corrcoef(volume, stress)[0, 1] > 0.9
    slope = np.polyfit(volume, stress, 1)[0] * 160.2177  # GPa
    assert 250 < slope < 500, "boron nitride: about 400 GPa measured in nature"


@pytest.mark.parametrize("name", ["ethanol_600K.xyz", "bn.xyz"])
def test_labels_agree_with_tblite(shipped, name):
    """Where tblite is at hand: the same energy again, and forces and stress against finite differences of it."""
    tblite = pytest.importorskip(
        "tblite.ase", reason="tblite, with which the data are made, is not installed"
    )
    frame = frames(shipped / name)[-1]
    calculator = tblite.TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)

    def energy(move=0.0, strain=0.0):
        atoms = frame.copy()
        atoms.calc = calculator
        atoms.positions[0, 0] += move
        if strain:
            deformation = np.eye(3)
            deformation[0, 1] = deformation[1, 0] = strain / 2
            atoms.set_cell(atoms.cell @ deformation, scale_atoms=True)
        return atoms.get_potential_energy()

    assert energy() == pytest.approx(frame.get_potential_energy(), abs=1e-5)
    slope = (energy(move=1e-3) - energy(move=-1e-3)) / 2e-3
    assert -slope == pytest.approx(frame.get_forces()[0, 0], abs=2e-3)
    if frame.pbc.all():
        slope = (energy(strain=1e-3) - energy(strain=-1e-3)) / 2e-3 / frame.get_volume()
        assert slope == pytest.approx(frame.get_stress()[5], abs=2e-4)


@pytest.fixture(scope="module")
def script(shipped):
    """data/make_shapes.py as a module."""
    spec = importlib.util.spec_from_file_location("make_shapes", shipped / "make_shapes.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "make_shapes", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


def test_shapes_are_what_the_readme_says(shipped):
    train, test = (read_points(shipped / "shapes.npz", part=part) for part in ("train", "test"))
    assert (len(train), len(test)) == (800, 200) and train.quantities == test.quantities
    kinds, parts = train.quantities["shape"], train.quantities["part"]
    assert (
        len(kinds.classes) == 10 and len(parts.classes) == 11 and (kinds.per, parts.per) == ("graph", "node")
    )
    for data, each in ((train, 80), (test, 20)):
        assert np.bincount(data.values("shape").long().numpy()).tolist() == [each] * 10
        assert data.counts.min() >= 128 and data.counts.max() <= 256
    assert set(train.values("part").tolist()) == set(range(11))
    table = kinds.classes.index("table")
    assert {
        parts.classes[int(p)] for g in train if g.targets["shape"] == table for p in g.targets["part"]
    } == {"leg", "plate"}


def test_neither_size_nor_place_nor_number_of_points_tells_the_shape(shipped):
    data = read_points(shipped / "shapes.npz")
    for graph in data:
        assert abs(graph.pos.mean(0)).max() < 2e-4 and graph.pos.square().sum(
            1
        ).mean().sqrt().item() == pytest.approx(1, abs=2e-4)
    means = data.counts.reshape(10, 100).mean(1)
    assert abs(means - 192).max() < 4 * 37 / np.sqrt(100), "uniform from 128 to 256: a spread of 37"


def test_orientations_are_uniform_in_rotations(shipped):
    """Haar on SO(3): det 1, E[R] = 0, E[R_ij^2] = 1/3, E[tr R] = 0, E[(tr R)^2] = 1."""
    with np.load(shipped / "shapes.npz") as file:
        turns = file["rotation"].astype(float)
    assert np.allclose(np.linalg.det(turns), 1, atol=1e-5) and np.allclose(
        turns @ turns.swapaxes(1, 2), np.eye(3), atol=1e-5
    )
    trace, error = np.trace(turns, axis1=1, axis2=2), 4 / np.sqrt(1000)
    assert (
        abs(turns.mean(0)).max() < error * np.sqrt(1 / 3)
        and abs((turns**2).mean(0) - 1 / 3).max() < error * 0.3
    )
    assert abs(trace.mean()) < error and abs((trace**2).mean() - 1) < error * 1.5


def test_shapes_come_again_from_the_script(shipped, script):
    with np.load(shipped / "shapes.npz") as file:
        ends, n = np.cumsum(file["n_points"]), file["n_points"]
        for kind, name in enumerate(file["shape_classes"].tolist()):
            k = 100 * kind + 99
            pos, part, turn = script.shape(name, np.random.default_rng([script.SEED, kind, 99]))
            np.testing.assert_allclose(file["pos"][ends[k] - n[k] : ends[k]], pos, atol=2e-3)
            np.testing.assert_array_equal(file["part"][ends[k] - n[k] : ends[k]], part)
            np.testing.assert_allclose(file["rotation"][k], turn, atol=1e-6)


@pytest.mark.parametrize(
    "name, options, area, moments",
    [
        # areas, and means of x², y², z² over the surface where they are known, by elementary integrals
        ("box", (2, 4, 6), 88, [(48 * 1 + 40 / 3) / 88, (24 * 4 + 64 * 4 / 3) / 88, (16 * 9 + 72 * 3) / 88]),
        ("round_body", (1, 1, 2), 6 * np.pi, [None, None, (4 / 3 + 2) / 6]),
        (
            "round_body",
            (1, 0, 1),
            np.pi * (1 + np.sqrt(2)),
            [None, None, (np.sqrt(2) / 12 + 1 / 4) / (1 + np.sqrt(2))],
        ),
        ("ball", (2, 2, 2), 16 * np.pi, [4 / 3, 4 / 3, 4 / 3]),
        (
            "ball",
            (1, 1, 2),
            2 * np.pi * (1 + 2 / np.sqrt(0.75) * np.arcsin(np.sqrt(0.75))),
            [None, None, None],
        ),
        ("ring", (2, 1), 8 * np.pi**2, [None, None, 1 / 2]),
    ],
)
def test_solids_are_sampled_uniformly(script, name, options, area, moments):
    made = getattr(script, name)("part", *options)
    points = made.sample(np.random.default_rng(0), 40_000)
    assert made.area == pytest.approx(area, rel=1e-6)
    for axis, moment in enumerate(moments):
        if moment is not None:
            assert (points[:, axis] ** 2).mean() == pytest.approx(moment, rel=0.03)
    if name == "ring":
        tube = np.hypot(points[:, 0], points[:, 1])[:, None] - 2
        towards = np.concatenate([points[:, :2] * (2 / (2 + tube)), np.zeros((len(points), 1))], axis=1)
    else:
        towards = np.zeros(3)
    assert made.contains(points + 1e-3 * (towards - points)).all(), "a little towards the middle is inside"
    assert not made.contains(points - 1e-3 * (towards - points)).any(), "a little away from it is outside"


def molecules(shipped):
    return read_npz(shipped / "molecules.npz")


def test_molecules_are_different_and_small(shipped):
    data = molecules(shipped)
    assert len(data) >= 2000 and len(set(data.info["smiles"])) == len(data)
    assert set(data.quantities) == {"energy", "homo", "lumo", "gap", "dipole", "polarizability", "charges"}
    values = {name: data.values(name) for name in data.quantities}
    assert all(bool(v.isfinite().all()) for v in values.values())
    assert torch.allclose(values["gap"], values["lumo"] - values["homo"], atol=3e-6) and bool(
        (values["gap"] > 0).all()
    )
    assert max(abs(float(g.targets["charges"].sum())) for g in data) < 1e-4, "neutral"
    assert float(torch.linalg.eigvalsh(values["polarizability"]).min()) > 0
    lightest = min(float(torch.cdist(g.pos, g.pos).fill_diagonal_(9.0).min()) for g in data)
    assert 0.9 < lightest < 1.1


def test_molecules_are_what_their_smiles_say(shipped):
    from rdkit import Chem

    data = molecules(shipped)
    radii = torch.tensor(covalent_radii)
    for graph, smiles in zip(data, data.info["smiles"]):
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        assert sorted(a.GetAtomicNum() for a in molecule.GetAtoms()) == sorted(graph.z.tolist()), smiles
        near = torch.cdist(graph.pos, graph.pos) < 1.25 * (radii[graph.z][:, None] + radii[graph.z])
        found = {(a, b): int(n) for a, b, n in _counted(graph.z.tolist(), near)}
        told = {
            (a, b): int(n)
            for a, b, n in _counted(
                [a.GetAtomicNum() for a in molecule.GetAtoms()],
                torch.tensor(Chem.GetAdjacencyMatrix(molecule)),
            )
        }
        assert found == told, smiles


def _counted(z, joined):
    """How often elements a and b are neighbours."""
    pairs = Counter(tuple(sorted((z[i], z[j]))) for i, j in joined.triu(1).nonzero().tolist())
    return [(a, b, n) for (a, b), n in pairs.items()]


def test_molecules_have_the_properties_of_another_calculation(shipped):
    """Through the calculator of ASE, which the script does not use for them; and forces vanish."""
    tblite = pytest.importorskip(
        "tblite.ase", reason="needs tblite, which is not a dependency (pip install .[xtb])"
    )
    data = molecules(shipped)
    for k in (0, 700, 1500, 2200):
        atoms = to_atoms(data[k], {})
        atoms.calc = tblite.TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0)
        targets = data[k].targets
        assert abs(atoms.get_potential_energy() - float(targets["energy"])) < 1e-4
        assert abs(atoms.get_dipole_moment() - targets["dipole"][0].numpy()).max() < 1e-3
        assert abs(atoms.get_charges() - targets["charges"].numpy()).max() < 1e-4
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.012
