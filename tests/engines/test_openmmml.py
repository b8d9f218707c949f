"""openmmml: systems have the energies and forces of the Calculator, and mixed ones add up with the force field."""

import gc
import os
import subprocess
import sys
import tomllib
import weakref
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule

import molequi as mq
from molequi import engines
from molequi.errors import CheckpointError, ConfigError, DataError, ModelError, UnknownKeywordError

from .test_evaluator import model, silicon

openmm = pytest.importorskip("openmm", reason="openmm is not installed: pip install 'molequi[openmm]'")
openmmml = pytest.importorskip(
    "openmmml", reason="openmmml is not installed: pip install 'molequi[openmmml]'"
)
from openmm import app  # noqa: E402

ROOT = Path(mq.__file__).parents[1]
GROUP = "openmmml.potentials"
KJ = units.kJ / units.mol  # eV
OHH = [8, 1, 1]
PLACES = [[6, 6, 6], [9, 6.3, 6], [6, 9, 7]]  # Å


@pytest.fixture(scope="module")
def entry_point():
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]["entry-points"][GROUP]


@pytest.fixture(autouse=True)
def registered(entry_point):
    """What openmmml does with the entry points of an installed package; the tests may run in a source tree."""
    (name, value), *_ = entry_point.items()
    openmmml.MLPotential.registerImplFactory(name, EntryPoint(name, value, GROUP).load()())


def potential(net=None):
    return openmmml.MLPotential("molequi", modelPath=net or model())


def state(system, positions, parameters=(), steps=0, groups=-1):
    """Energy in eV, forces in eV/Å and positions in Å, of the real particles."""
    context = openmm.Context(
        system, openmm.VerletIntegrator(5e-4), openmm.Platform.getPlatformByName("Reference")
    )
    count = len(positions)
    sites = np.zeros((system.getNumParticles() - count, 3))  # sites of link atoms come last
    context.setPositions(np.concatenate([positions, sites]) / 10)
    context.computeVirtualSites()
    for name, value in dict(parameters).items():
        context.setParameter(name, value)
    context.getIntegrator().step(steps)
    found = context.getState(energy=True, forces=True, positions=True, groups=groups)
    forces = found.getForces(asNumpy=True)._value[:count] * KJ / 10
    return (
        found.getPotentialEnergy()._value * KJ,
        forces,
        found.getPositions(asNumpy=True)._value[:count] * 10,
    )


def computed(net, atoms):
    """Of the Calculator."""
    atoms = atoms.copy()
    atoms.calc = mq.Calculator(net, dtype="float64")
    return atoms.get_potential_energy(), atoms.get_forces()


def waters(count=3, box=None, **options):
    """Topology, positions and system of TIP3P water; without a box in a vacuum."""
    rng = np.random.default_rng(0)
    topology, positions = app.Topology(), []
    chain = topology.addChain()
    for place in PLACES[:count]:
        residue = topology.addResidue("HOH", chain)
        o, *hydrogens = (
            topology.addAtom(name, app.Element.getByAtomicNumber(z), residue)
            for name, z in zip(("O", "H1", "H2"), OHH)
        )
        for h in hydrogens:
            topology.addBond(o, h)
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        positions.append(molecule("H2O").positions @ turn + place + rng.normal(scale=0.03, size=(3, 3)))
    usual = {"rigidWater": False, "nonbondedMethod": app.NoCutoff}
    if box is not None:
        topology.setPeriodicBoxVectors(
            [openmm.Vec3(*row) for row in np.eye(3) * box / 10] * openmm.unit.nanometer
        )
        usual |= {
            "nonbondedMethod": app.PME, "nonbondedCutoff": 0.5 * openmm.unit.nanometer, "ewaldErrorTolerance": 1e-6,
        }  # fmt: skip
    system = app.ForceField("tip3p.xml").createSystem(topology, **usual | options)
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setUseDispersionCorrection(False)
    return topology, np.concatenate(positions), system


def test_openmmml_finds_the_potential_and_imports_nothing_heavy(tmp_path, entry_point):
    """As it is installed: openmmml reads the entry points of all packages when it is imported."""
    folder = tmp_path / "source_tree_of_molequi-0.dist-info"
    folder.mkdir()
    lines = [f"{name} = {value}" for name, value in entry_point.items()]
    (folder / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: source-tree-of-molequi\nVersion: 0\n")
    code = (
        "import sys, {first}; import openmmml; print('torch' in sys.modules);"
        "print(type(openmmml.MLPotential._implFactories['molequi']).__module__)"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    for first in ("openmmml", "molequi.openmmml"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(first=first)],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == ["False", "molequi.openmmml"]


@pytest.mark.parametrize("atoms", [molecule("H2O"), silicon()], ids=["molecule", "cell"])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_system_has_energy_and_forces_of_the_calculator(tmp_path, atoms, as_file):
    net = model()
    made = engines.openmm_system(atoms, net)  # for its topology and turned cell
    path = mq.save(net, tmp_path / "m.safetensors") if as_file else net
    system = openmmml.MLPotential("molequi", modelPath=path).createSystem(made.topology)
    assert system.usesPeriodicBoundaryConditions() == atoms.pbc.all()
    turned = Atoms(
        atoms.numbers, made.positions * 10, pbc=atoms.pbc, cell=_box(system) if atoms.pbc.all() else None
    )
    energy, forces, _ = state(system, turned.positions)
    wanted = computed(net, turned)
    assert energy == pytest.approx(wanted[0], abs=1e-9)
    np.testing.assert_allclose(forces, wanted[1], atol=1e-9)
    assert np.abs(forces).max() > 0.01


def _box(system):
    return np.array([row._value for row in system.getDefaultPeriodicBoxVectors()]) * 10


def test_options_reach_the_model():
    net = model(inputs=mq.Inputs(charge=True))
    topology, positions, _ = waters(1)
    energies = []
    for charge in (0, 1):
        system = potential(net).createSystem(topology, charge=charge, skin=0.0)
        energies.append(state(system, positions)[0])
        atoms = Atoms(OHH, positions, info={"charge": charge})
        assert energies[-1] == pytest.approx(computed(net, atoms)[0], abs=1e-9)
    assert abs(energies[0] - energies[1]) > 1e-3
    with pytest.raises(ModelError, match="give charge=… to the engine"):
        potential(net).createSystem(topology)


def test_energy_and_forces_of_a_mixed_system_add_up():
    """E(force field, all) - E(force field, the part alone) + E(model, the part), whatever the order of the part."""
    net, part = model(), [5, 3, 4]
    topology, positions, system = waters()
    mixed = potential(net).createMixedSystem(topology, system, part, forceGroup=3)
    energy, forces, _ = state(mixed, positions)
    whole = state(system, positions)
    alone = state(waters(1)[2], positions[3:6])
    own = computed(net, Atoms([1, 8, 1], positions[part]))
    assert energy == pytest.approx(whole[0] - alone[0] + own[0], abs=1e-9)
    wanted = whole[1].copy()
    wanted[3:6] -= alone[1]
    wanted[part] += own[1]
    np.testing.assert_allclose(forces, wanted, atol=1e-8)
    assert abs(own[0] - alone[0]) > 0.1  # the control
    assert state(mixed, positions, groups={3})[0] == pytest.approx(own[0], abs=1e-9)


def test_a_parameter_leads_from_the_force_field_to_the_mixed_system():
    topology, positions, system = waters()
    mixed = potential().createMixedSystem(topology, system, [3, 4, 5], interpolate=True)
    ends = (
        state(system, positions)[0],
        state(potential().createMixedSystem(topology, system, [3, 4, 5]), positions)[0],
    )
    for share in (0.0, 0.25, 1.0):
        found = state(mixed, positions, {"lambda_interpolate": share})[0]
        assert found == pytest.approx((1 - share) * ends[0] + share * ends[1], abs=1e-8)


@pytest.mark.parametrize("long_range", [None, "latent"])
def test_images_of_the_part_belong_to_the_force_field_or_to_a_model_with_a_long_range(long_range):
    net = model(long_range=long_range)
    if long_range:  # charges that matter
        net.terms["long_range"].shift.data[[1, 8]] = net.terms["long_range"].shift.new_tensor([[0.4], [-0.8]])
    assert openmmml.MLPotential("molequi", modelPath=net)._impl.getMLLongRange() == bool(long_range)
    size = 12.0
    topology, positions, system = waters(box=size)
    mixed = potential(net).createMixedSystem(topology, system, [3, 4, 5])
    own, _ = computed(net, Atoms(OHH, positions[3:6], cell=[size] * 3, pbc=True))
    alone = [state(waters(1, box)[2], positions[3:6])[0] for box in (None, size)]
    images = alone[1] - alone[0]  # of the charges of the force field
    wanted = state(system, positions)[0] - alone[0] + own - (images if long_range else 0)
    assert state(mixed, positions)[0] == pytest.approx(wanted, abs=1e-5)
    assert abs(images) > 1e-3  # the control


def test_constraints_stay_in_the_force_field_and_go_in_the_part():
    topology, positions, system = waters(rigidWater=True)
    assert system.getNumConstraints() == 9
    mixed = potential().createMixedSystem(topology, system, [3, 4, 5])
    kept = [mixed.getConstraintParameters(k)[:2] for k in range(mixed.getNumConstraints())]
    assert sorted({k for pair in kept for k in pair}) == [0, 1, 2, 6, 7, 8]
    context = openmm.Context(
        mixed, openmm.VerletIntegrator(5e-4), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(positions / 10)
    context.applyConstraints(1e-8)
    context.getIntegrator().step(20)
    end = context.getState(positions=True).getPositions(asNumpy=True)._value * 10
    lengths = np.linalg.norm(end[1::3] - end[::3], axis=1)
    assert np.abs(lengths[[0, 2]] - 0.9572).max() < 1e-4  # TIP3P
    assert abs(lengths[1] - np.linalg.norm(positions[4] - positions[3])) > 1e-3


def test_a_bond_between_part_and_force_field_ends_in_a_hydrogen():
    ethane, net = molecule("C2H6"), model(["C", "H"])
    bonds = [(0, 1), *((0, k) for k in (2, 3, 4)), *((1, k) for k in (5, 6, 7))]
    topology, system, springs = app.Topology(), openmm.System(), openmm.HarmonicBondForce()
    residue = topology.addResidue("ETH", topology.addChain())
    atoms = [
        topology.addAtom(f"A{k}", app.Element.getByAtomicNumber(int(z)), residue)
        for k, z in enumerate(ethane.numbers)
    ]
    for mass in ethane.get_masses():
        system.addParticle(float(mass))
    for a, b in bonds:
        topology.addBond(atoms[a], atoms[b])
        springs.addBond(a, b, 0.12, 1e5)
    system.addForce(springs)
    nm = openmm.unit.nanometer
    mixed = potential(net).createMixedSystem(
        topology, system, [0, 2, 3, 4], linkAtomDistances=[(0, 1, 0.11 * nm)]
    )
    pos = ethane.positions
    end = pos[0] + 1.1 * (pos[1] - pos[0]) / np.linalg.norm(pos[1] - pos[0])
    own, _ = computed(net, Atoms("CH4", np.concatenate([pos[[0, 2, 3, 4]], end[None]])))
    outside = [(0, 1), (1, 5), (1, 6), (1, 7)]
    stretched = sum(5e4 * (np.linalg.norm(pos[a] - pos[b]) / 10 - 0.12) ** 2 for a, b in outside) * KJ
    energy, forces, _ = state(mixed, pos)
    assert energy == pytest.approx(own + stretched, abs=1e-9)
    way = np.random.default_rng(0).normal(size=pos.shape)
    slope = (state(mixed, pos + 1e-5 * way)[0] - state(mixed, pos - 1e-5 * way)[0]) / 2e-5
    assert slope == pytest.approx(-(forces * way).sum(), abs=1e-6)


def test_what_the_potential_refuses(tmp_path):
    made = openmmml.MLPotential
    for given, kind, message in [
        (
            {},
            ConfigError,
            r"modelPath is missing; wanted a model or its file: MLPotential\('molequi', modelPath=",
        ),
        ({"modelPath": 3}, ConfigError, "modelPath is 3; wanted a model or its file"),
        ({"modelPath": tmp_path / "no.safetensors"}, CheckpointError, "no such file"),
        ({"model": "x"}, UnknownKeywordError, "did you mean 'modelPath'"),
        ({"modelPath": model(), "charge": 1}, UnknownKeywordError, r"createSystem\(topology, charge=1\)"),
    ]:
        with pytest.raises(kind, match=message):
            made("molequi", **given)


@pytest.mark.parametrize("given, message", [
    ({"multiplicity": 2}, r"createSystem\(multiplicity=…\): the name here is 'spin'"),
    ({"precision": "double"}, "the name here is 'dtype'"),
    ({"skn": 1}, r"createSystem\(skn=…\): molequi has no such option; did you mean 'skin'"),
    ({"linkAtomDistances": []}, "no such option; known: level"),
])  # fmt: skip
def test_options_that_would_do_nothing_are_refused(given, message):
    with pytest.raises(UnknownKeywordError, match=message):
        potential().createSystem(waters(1)[0], **given)


def test_options_of_a_mixed_system_may_be_those_of_an_embedding():
    topology, _, system = waters()
    made = potential()
    made.createMixedSystem(topology, system, [0, 1, 2], linkAtomDistances=[], ofAnotherEmbedding=True)
    with pytest.raises(UnknownKeywordError, match=r"createMixedSystem\(devce=…\).*did you mean 'device'"):
        made.createMixedSystem(topology, system, [0, 1, 2], devce="cpu")


@pytest.mark.parametrize("part, message", [
    ([], "no atoms for the model"),
    ([0, 9], "atom 9: the topology has 9; wanted 0 to 8"),
    ([-1], "atom -1: the topology has 9"),
    ([3, 4, 5, 5], "atom 5 is named 2 times; wanted each atom of the part once"),
])  # fmt: skip
def test_a_part_that_is_not_there_is_refused(part, message):
    """An empty one would be computed for all particles by OpenMM."""
    topology, _, system = waters()
    with pytest.raises(DataError, match=message):
        potential()._impl.addForces(topology, system, part, 0)


def test_a_system_of_other_molecules_is_refused():
    topology, _, _ = waters(2)
    with pytest.raises(DataError, match="the System has 3 particles and the topology 6 atoms"):
        potential().createMixedSystem(topology, waters(1)[2], [0, 1, 2])


def test_the_check_of_engines_keeps_no_model():
    """openmmml keeps its factories for as long as the process runs."""
    from molequi.engines.openmmml import system_of

    net = model()
    kept = weakref.ref(net)
    system_of(molecule("H2O"), net)
    del net
    gc.collect()
    assert kept() is None


def test_sites_without_an_element_and_unknown_elements_are_refused():
    topology, _, _ = waters(1)
    topology.addAtom("M", None, list(topology.residues())[0])
    with pytest.raises(DataError, match=r"atom 3 \(M of HOH\) has no element"):
        potential().createSystem(topology)
    with pytest.raises(ModelError, match="atom 0: this model does not know O"):
        potential(model(["H"])).createSystem(waters(1)[0])


@pytest.mark.parametrize("boxed, message", [
    (True, r"has a periodic box, and the force field sees no .*\n?.*setPeriodicBoxVectors\(None\)"),
    (False, "has no periodic box, and the force field sees periodic .*getDefaultPeriodicBoxVectors"),
])  # fmt: skip
def test_a_force_field_and_a_topology_that_disagree_about_images_are_refused(boxed, message):
    topology, _, system = waters(box=None if boxed else 12.0)
    topology.setPeriodicBoxVectors(
        [openmm.Vec3(*row) for row in np.eye(3) * 1.2] * openmm.unit.nanometer if boxed else None
    )
    with pytest.raises(DataError, match=message):
        potential().createMixedSystem(topology, system, [0, 1, 2])
