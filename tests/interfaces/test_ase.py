"""The ASE calculator: physics against finite differences, and each fault that inference can meet, by its row."""

import copy
import math
import multiprocessing
import pickle
import sys
import threading

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

import molequi as mq
from molequi.errors import CheckpointError, DataError, ModelError
from molequi.graph import Graph, collate
from molequi.interfaces.ase import Calculator
from molequi.model import Model
from molequi.models import BACKBONES
from molequi.neighbors import connect

SMALL = {
    "EGNN": dict(channels=16, layers=2),
    "Equiformer": dict(channels=8, hidden=8, layers=2, l_max=2),
    "GauntACE": dict(channels=8, l_max=2),
    "GroupConvNet": dict(channels=8, layers=2, group="T"),
    "MACE": dict(channels=8, l_max=2),
    "NequIP": dict(channels=8, layers=2, l_max=2),
    "SevenNet": dict(channels=8, layers=2, l_max=2),
    "NequIPGNN": dict(channels=8, layers=2, l_max=2),
    "PaiNN": dict(channels=16, layers=2),
    "RelaxedEGNN": dict(channels=16, layers=2),
    "RelaxedNequIP": dict(channels=8, layers=2, l_max=2),
    "So3krates": dict(channels=16, layers=2, l_max=2),
    "Transformer": dict(channels=16, layers=2),
}
both = pytest.mark.parametrize("name", SMALL)


def small(name="NequIP", predict=("energy", "forces"), cutoff=4.0, **options) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = BACKBONES[name](elements=["H", "C", "O"], cutoff=cutoff, **{**SMALL[name], **options})
        return Model(backbone, predict).double().eval()


def ethanol(calculator=None) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    atoms.calc = calculator
    return atoms


def crystal(calculator=None) -> Atoms:
    """A skewed cell, smaller than the cutoff."""
    atoms = Atoms(
        "COHH",
        [[0.1, 0.2, 0.0], [1.5, 0.4, 1.1], [0.3, 1.9, 2.0], [2.2, 2.3, 0.3]],
        cell=[[3.4, 0, 0], [0.7, 3.6, 0], [0.3, -0.4, 3.8]],
        pbc=True,
    )
    atoms.calc = calculator
    return atoms


# What it computes.


@both
def test_forces_and_stress_are_derivatives_of_the_energy(name):
    atoms = crystal(Calculator(small(name)))
    assert np.abs(atoms.get_forces()).max() > 0.01 and np.abs(atoms.get_stress()).min() > 1e-5
    assert np.allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-5), rtol=0, atol=1e-7)
    assert np.allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), rtol=0, atol=1e-8)
    atoms = ethanol(Calculator(small(name)))
    assert np.allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-5), rtol=0, atol=1e-7)


def test_properties_and_their_sums():
    atoms = ethanol(Calculator(small(predict=["energy", "forces", "dipole", "charges"])))
    assert {"energy", "free_energy", "energies", "forces", "stress", "dipole", "charges"} == set(
        atoms.calc.implemented_properties
    )
    energy = atoms.get_potential_energy()
    assert isinstance(energy, float) and energy == atoms.get_potential_energy(force_consistent=True)
    assert math.isclose(atoms.get_potential_energies().sum(), energy, rel_tol=1e-12)
    assert atoms.get_dipole_moment().shape == (3,) and atoms.get_charges().shape == (9,)


def test_quantities_that_ase_has_no_name_for_are_properties_too():
    shielding = mq.Quantity(name="shielding", per="node", rank=2, unit="ppm")
    strength = mq.Quantity(name="strength")
    atoms = ethanol(Calculator(small(predict=[shielding, strength, "energy"])))
    assert atoms.calc.get_property("shielding", atoms, allow_calculation=False) is None
    value = atoms.calc.get_property("shielding", atoms)
    (wanted,) = mq.predict(atoms.calc.model, [atoms], progress=False)
    assert value.shape == (9, 3, 3) and np.allclose(value, wanted["shielding"], rtol=1e-4, atol=1e-6)
    assert isinstance(atoms.calc.get_property("strength", atoms), float)
    value[:] = 0  # a copy, as ASE hands out
    assert np.allclose(atoms.calc.get_property("shielding"), wanted["shielding"], rtol=1e-4, atol=1e-6)
    atoms.rattle(0.1, seed=0)  # another structure is calculated again
    (moved,) = mq.predict(atoms.calc.model, [atoms], progress=False)
    assert np.allclose(atoms.calc.get_property("shielding", atoms), moved["shielding"], rtol=1e-4, atol=1e-6)
    assert not np.allclose(moved["shielding"], wanted["shielding"], rtol=1e-4, atol=1e-6)
    assert atoms.get_potential_energy() == pytest.approx(float(moved["energy"]), rel=1e-5)


def test_what_is_not_predicted_is_refused_as_in_ase():
    atoms = ethanol(Calculator(small()))
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()
    other = mq.Quantity(name="shielding", per="graph", rank=2, unit="ppm")
    atoms.calc = Calculator(small(predict=[other]))
    atoms.calc.calculate(atoms)
    assert atoms.calc.results["shielding"].shape == (3, 3)
    with pytest.raises(PropertyNotImplementedError, match="sheilding: .*did you mean 'shielding'"):
        atoms.calc.get_property("sheilding", atoms)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energy()


def test_a_file_and_its_model_agree(tmp_path):
    path = mq.save(small(), tmp_path / "m.safetensors")
    assert np.array_equal(ethanol(Calculator(path)).get_forces(), ethanol(Calculator(small())).get_forces())
    with pytest.raises(CheckpointError, match="no such file"):
        Calculator(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="found int"):
        Calculator(3)
    for skin in (-1.0, math.nan, "wide"):
        with pytest.raises(ModelError, match="skin"):
            Calculator(path, skin=skin)
    assert Calculator(path, skin=np.float32(0.25)).skin == 0.25


def test_calculate_without_atoms_takes_those_of_before_as_in_ase():
    calculator = Calculator(small())
    with pytest.raises(DataError, match="no structure to calculate"):
        calculator.calculate()
    energy = ethanol(calculator).get_potential_energy()
    calculator.results = {}
    calculator.calculate()
    assert calculator.results["energy"] == energy == calculator.get_property("energy")


def test_the_model_that_is_handed_over_stays_as_it_was():
    model = small()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    calculator = Calculator(model.train(), dtype="float32")
    crystal(calculator).get_stress()
    copy.copy(calculator)
    assert model.dtype == torch.float64 and model.training and list(model.quantities) == ["energy", "forces"]
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


# The list of neighbours under its skin.


@both
@pytest.mark.parametrize("start", [ethanol, crystal])
def test_a_kept_list_of_neighbours_changes_nothing(name, start):
    """A walk long enough for several searches, against a search at every step: equal to the last bit."""
    kept, fresh = Calculator(small(name), skin=0.5), Calculator(small(name), skin=0.0)
    atoms, rng = start(), np.random.default_rng(0)
    for _ in range(30):
        atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape)
        one, two = atoms.copy(), atoms.copy()
        one.calc, two.calc = kept, fresh
        assert np.array_equal(one.get_forces(), two.get_forces())
        assert one.get_potential_energy() == two.get_potential_energy()
    assert 1 < kept.searches < 15 and fresh.searches == 30


def test_when_neighbours_are_searched_again():
    atoms = ethanol(Calculator(small(), skin=0.5))
    moves = [(0.0, 1), (0.24, 1), (0.02, 2), (-0.24, 2), (-0.02, 3)]
    for move, searches in moves:
        atoms.positions[2, 1] += move
        atoms.get_forces()
        assert atoms.calc.searches == searches, (move, searches)


def test_a_wider_skin_searches_again():
    calculator = Calculator(small(), skin=0.5)
    pair = Atoms("CO", [[0, 0, 0], [4.55, 0, 0]], calculator=calculator)  # beyond cutoff and skin
    assert pair.get_forces()[0, 0] == 0
    calculator.skin = 2.0
    pair.positions[1, 0] = 3.7
    assert (
        pair.get_forces()[0, 0]
        == Atoms("CO", pair.positions, calculator=Calculator(small(), skin=0.0)).get_forces()[0, 0]
        != 0
    )


def test_what_is_ignored_of_changes_as_ase_says():
    class Blind(Calculator):
        ignored_changes = {"initial_magmoms"}

    atoms = ethanol(Blind(small()))
    atoms.get_forces()
    moved = atoms.copy()
    moved.positions[0, 0] += 1e-8
    moved.set_initial_magnetic_moments([1.0] * len(atoms))
    assert atoms.calc.check_state(moved) == ["positions"] and atoms.calc.check_state(moved, tol=1e-6) == []
    moved.set_initial_charges([1.0] * len(atoms))
    moved.pbc = True
    assert set(atoms.calc.check_state(moved, tol=1e-6)) == {"pbc", "initial_charges"}


def test_an_atom_that_comes_into_sight_is_seen():
    """One that starts beyond cutoff and skin and walks in by steps shorter than half the skin."""
    calculator, fresh = Calculator(small(), skin=0.5), Calculator(small(), skin=0.0)
    forces = []
    for x in np.arange(6.0, 2.0, -0.2):
        pair = Atoms("CO", [[0, 0, 0], [x, 0, 0]])
        pair.calc = calculator
        forces.append(pair.get_forces()[0, 0])
        pair.calc = fresh
        assert pair.get_forces()[0, 0] == forces[-1]
    assert forces[0] == 0 and abs(forces[-1]) > 1e-3


# Faults, by their rows.


def test_c1_unknown_elements_are_named():
    with pytest.raises(ModelError, match="atom 0: this model does not know Na, Cl; it knows H, C, O"):
        bulk_salt = bulk("NaCl", "rocksalt", a=5.6)
        bulk_salt.numbers[:] = [17, 11]
        bulk_salt.calc = Calculator(small())
        bulk_salt.get_potential_energy()


def test_c2_no_atoms():
    with pytest.raises(DataError, match="no atoms"):
        Atoms(calculator=Calculator(small())).get_potential_energy()


@both
def test_c3_one_atom_and_no_neighbours(name):
    calculator = Calculator(small(name))
    one, far = Atoms("O", calculator=calculator), Atoms("OO", [[0, 0, 0], [50, 0, 0]], calculator=calculator)
    energy = one.get_potential_energy()
    assert np.isfinite(energy) and np.array_equal(one.get_forces(), np.zeros((1, 3)))
    assert math.isclose(far.get_potential_energy(), 2 * energy) and np.array_equal(
        far.get_forces(), np.zeros((2, 3))
    )
    boxed = Atoms("O", cell=[20, 20, 20], pbc=True, calculator=calculator)
    assert np.array_equal(boxed.get_stress(), np.zeros(6)) and boxed.get_potential_energy() == energy


@both
def test_c4_a_batch_with_empty_graphs_is_as_each_alone(name):
    structures = [Atoms("O"), ethanol(), Atoms("HC", [[0, 0, 0], [30, 0, 0]]), crystal()]
    model = small(name)
    graphs = [
        connect(Graph.single(a.positions, a.numbers, cell=a.cell.array, pbc=a.pbc), 4.0) for a in structures
    ]
    out, start = model(collate(graphs)), 0
    for k, atoms in enumerate(structures):
        atoms.calc = Calculator(model)
        assert math.isclose(float(out["energy"][k]), atoms.get_potential_energy(), abs_tol=1e-10)
        forces = out["forces"][start : start + len(atoms)].numpy()
        assert np.allclose(forces, atoms.get_forces(), rtol=0, atol=1e-10)
        start += len(atoms)


@both
def test_c5_coincident_atoms_are_finite(name):
    atoms = ethanol(Calculator(small(name)))
    atoms.positions[3] = atoms.positions[5]
    assert np.isfinite(atoms.get_potential_energy()) and np.isfinite(atoms.get_forces()).all()
    box = crystal(Calculator(small(name)))
    box.positions[3] = box.positions[1] + box.cell[0]
    assert np.isfinite(box.get_forces()).all() and np.isfinite(box.get_stress()).all()


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_c6_atoms_that_nearly_touch_are_finite(name, dtype):
    calculator = Calculator(small(name), dtype=dtype)
    for distance in (1e-1, 1e-3, 1e-6, 1e-9, 1e-12, 0.0):
        pair = Atoms("CH", [[0, 0, 0], [distance, 0, 0]], calculator=calculator)
        assert np.isfinite(pair.get_potential_energy()) and np.isfinite(pair.get_forces()).all(), distance


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_c7_positions_and_cells_must_be_finite(bad):
    atoms = ethanol(Calculator(small()))
    atoms.positions[4, 1] = bad
    with pytest.raises(DataError, match="position of atom 4"):
        atoms.get_forces()
    atoms = crystal(Calculator(small()))
    atoms.cell[1, 1] = bad
    for ask in (atoms.get_potential_energy, atoms.get_stress):
        with pytest.raises(DataError, match="cell.*non-finite"):
            ask()


def test_c8_periodic_without_a_cell():
    atoms = ethanol(Calculator(small()))
    atoms.pbc = True
    for name in ("energy", "forces"):
        with pytest.raises(DataError, match="needs a lattice vector"):
            atoms.calc.get_property(name, atoms)


def test_c9_changes_of_the_structure_are_seen():
    calculator = Calculator(small())

    def energy(atoms):
        atoms.calc = calculator
        fresh = atoms.copy()
        fresh.calc = Calculator(small())
        assert atoms.get_potential_energy() == fresh.get_potential_energy()
        return atoms.get_potential_energy()

    atoms = crystal()
    seen = [energy(atoms)]
    for factor in (1.02, 0.7, 1.8):  # more and fewer images in sight, the atoms where they were
        atoms.set_cell(atoms.cell * factor)
        seen.append(energy(atoms))
    atoms.pbc = [True, True, False]
    seen.append(energy(atoms))
    atoms.pbc = False
    seen.append(energy(atoms))
    atoms.numbers[0] = 1
    seen.append(energy(atoms))
    del atoms[3]
    seen.append(energy(atoms))
    atoms.positions[0] += 1e-6
    seen.append(energy(atoms))
    assert len(set(seen)) == len(seen)


def test_c10_a_change_of_charge_or_spin_alone_is_seen():
    atoms = ethanol(Calculator(small(inputs=mq.Inputs(charge=True, spin=True))))
    with pytest.raises(ModelError, match="charge"):
        atoms.get_potential_energy()
    atoms.info.update(charge=0, spin=1)
    neutral, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.info["charge"] = 1
    cation = atoms.get_potential_energy()
    atoms.info["spin"] = 2
    assert len({neutral, cation, atoms.get_potential_energy()}) == 3
    atoms.info.update(charge=0, spin=1)
    assert np.array_equal(atoms.get_forces(), forces)
    atoms.info["charge"] = "+1?"
    with pytest.raises(DataError, match=r"atoms.info\['charge'\] is '\+1\?'; wanted a finite number"):
        atoms.get_forces()
    for bad in (math.nan, math.inf):
        atoms.info.update(charge=0, spin=bad)
        with pytest.raises(DataError, match=rf"atoms.info\['spin'\] is {bad}; wanted a finite number"):
            atoms.get_forces()


def test_total_charge_and_spin_under_the_names_that_the_readers_know():
    model = small(inputs=mq.Inputs(charge=True, spin=True))

    def energy(**info):
        atoms = ethanol(Calculator(model))
        atoms.info.update(info)
        return atoms.get_potential_energy()

    cation = energy(charge=1, spin=2)
    assert cation == energy(total_charge=1, spin_multiplicity=2) == energy(total_charge=1, charge=1, spin=2)
    assert (
        cation != energy(total_charge=0, spin_multiplicity=2) != energy(total_charge=0, spin_multiplicity=1)
    )
    with pytest.raises(
        DataError, match=r"\['charge'\] is 1 and atoms.info\['total_charge'\] is 0; wanted one of them"
    ):
        energy(charge=1, total_charge=0, spin=1)
    with pytest.raises(DataError, match=r"atoms.info\['total_charge'\] is nan; wanted a finite number"):
        energy(total_charge=math.nan, spin=1)
    atoms = ethanol(Calculator(model))
    atoms.info.update(total_charge=1, spin_multiplicity=2)
    assert atoms.get_potential_energy() == cation
    atoms.info["total_charge"] = 0
    assert atoms.get_potential_energy() == energy(charge=0, spin=2)  # a change of it is seen


def test_a_model_of_velocities_is_refused():
    """Forces of such a model are no function of the positions, and ASE asks for forces by the positions."""
    with pytest.raises(ModelError, match=r"EGNN.*velocity=True.*wanted a model of positions alone"):
        Calculator(small("EGNN", inputs=mq.Inputs(velocity=True)))


def test_c11_arrays_that_the_caller_changes_do_not_reach_the_cache():
    atoms = crystal(Calculator(small()))
    forces, stress, energies = atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energies()
    kept = [a.copy() for a in (forces, stress, energies)]
    for array in (forces, stress, energies):
        array[:] = 7.0
    again = (atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energies())
    assert all(np.array_equal(a, b) for a, b in zip(kept, again))
    before = atoms.positions.copy()
    atoms.positions[1, 0] += 0.3  # in place
    assert not np.allclose(atoms.get_forces(), kept[0])
    atoms.arrays["positions"][:] = before
    assert np.array_equal(atoms.get_forces(), kept[0])


def test_c12_positions_of_any_kind():
    calculator, places = Calculator(small()), np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    expected = Atoms("OHH", places, calculator=calculator).get_forces()
    wide = np.zeros((3, 6))
    wide[:, ::2] = places
    kinds = (
        places,
        places.astype(np.float32),
        wide[:, ::2],
        np.asfortranarray(places),
        places[::-1].copy()[::-1],
    )
    for given in kinds:
        atoms = Atoms("OHH", places)
        atoms.arrays["positions"] = given
        atoms.calc = calculator
        assert np.array_equal(atoms.get_forces(), expected)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_c13_precision_is_the_models_and_the_default_stays(default):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        forces = {
            dtype: ethanol(Calculator(small(), dtype=dtype)).get_forces() for dtype in ("float32", "float64")
        }
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(before)
    assert forces["float32"].dtype == forces["float64"].dtype == np.float64
    assert 0 < np.abs(forces["float32"] - forces["float64"]).max() < 1e-5
    with pytest.raises(ModelError, match="float16"):
        Calculator(small(), dtype="float16")


@both
def test_c14_far_from_the_origin(name):
    near, far = (
        ethanol(Calculator(small(name), dtype="float32")),
        ethanol(Calculator(small(name), dtype="float32")),
    )
    far.positions += 1000.0
    assert np.allclose(near.get_forces(), far.get_forces(), rtol=0, atol=1e-5)


def test_c18_threads_with_one_calculator_and_with_their_own():
    structures = [ethanol(), crystal(), molecule("CH4"), molecule("H2O")]
    expected = []
    for atoms in structures:
        atoms.calc = Calculator(small())
        expected.append(atoms.get_forces())
    shared, found, wrong = Calculator(small()), [0] * 4, []

    def work(k, calculator):
        for _ in range(10):
            atoms = structures[k].copy()
            atoms.calc = calculator
            if not np.array_equal(atoms.get_forces(), expected[k]):
                wrong.append(k)
            found[k] += 1

    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for calculators in ([shared] * 4, [shared.copy() for _ in range(4)]):
            threads = [threading.Thread(target=work, args=(k, c)) for k, c in enumerate(calculators)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(often)
    assert found == [20] * 4 and not wrong


def test_c18_a_thread_does_not_enter_a_calculation_of_another():
    """The first is held in its model until the second has finished, or until it is plain that the second waits."""
    expected = crystal(Calculator(small())).get_forces()
    shared, inside, finished = Calculator(small()), threading.Event(), threading.Event()
    one, two = ethanol(shared), crystal(shared)

    def hold(*_):
        if not inside.is_set():
            inside.set()
            finished.wait(0.2)

    shared.model.register_forward_hook(hold)
    thread = threading.Thread(target=one.get_forces)
    thread.start()
    assert inside.wait(60)
    assert np.array_equal(two.get_forces(), expected)
    finished.set()
    thread.join()
    assert np.array_equal(two.get_forces(), expected)  # and not what the first left behind


def _forces(calculator):
    return (
        ethanol(calculator).get_forces(),
        calculator.skin,
        str(calculator.model.dtype),
        list(calculator.model.quantities),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_c19_copies_and_other_processes(dtype):
    calculator = Calculator(small(), dtype=dtype, skin=0.3)
    expected = _forces(calculator)
    content = pickle.dumps(calculator)
    assert b"molequi.models" not in content and b"torch" not in content  # bytes of a model file, no modules
    others = [copy.copy(calculator), copy.deepcopy(calculator), pickle.loads(content)]
    others.append(copy.deepcopy(ethanol(calculator)).calc)
    results = [_forces(c) for c in others]
    if dtype == "float64":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(_forces, (calculator,)))
    for found in results:
        assert np.array_equal(found[0], expected[0])
        assert found[1:] == expected[1:] == (0.3, f"torch.{dtype}", ["energy", "forces"])
    assert all(c is not calculator and c.model is not calculator.model for c in others)


def test_c20_a_device_that_is_absent():
    if torch.cuda.is_available():
        atoms = ethanol(Calculator(small(), device="cuda"))
        assert atoms.calc.model.device.type == "cuda"
        assert np.allclose(atoms.get_forces(), ethanol(Calculator(small())).get_forces(), rtol=0, atol=1e-9)
        return
    with pytest.raises(ModelError, match="no CUDA.*write device='cpu'"):
        Calculator(small(), device="cuda")


@both
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_c22_under_any_mode_of_gradients(name, mode):
    expected = crystal(Calculator(small(name)))
    with mode():
        atoms = crystal(Calculator(small(name)))
        assert np.array_equal(atoms.get_forces(), expected.get_forces())
        assert np.array_equal(atoms.get_stress(), expected.get_stress())
    atoms.positions[0] += 0.01  # the list of neighbours that was made there serves here
    expected.positions[0] += 0.01
    assert np.array_equal(atoms.get_forces(), expected.get_forces()) and atoms.calc.searches == 1


def test_c23_no_neighbour_is_left_out():
    """A clump of 300 atoms where each sees nearly all others, against all pairs counted by brute force."""
    rng = np.random.default_rng(0)
    atoms = Atoms("H300", rng.uniform(0, 3.5, (300, 3)), calculator=Calculator(small("EGNN")))
    seen = {}
    model = atoms.calc.model
    model.register_forward_pre_hook(lambda _, inputs: seen.update(edges=inputs[0].edge_index.shape[1]))
    atoms.get_potential_energy()
    distances = np.linalg.norm(atoms.positions[:, None] - atoms.positions[None], axis=-1)
    assert seen["edges"] == (distances < 4.0).sum() - 300 > 80_000


def test_c24_stress_needs_a_cell():
    atoms = ethanol(Calculator(small(predict=["energy", "forces", "stress"])))
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="a cell of 0 Å"):
        atoms.get_stress()
    atoms.cell = [10, 10, 10]
    with pytest.raises(PropertyNotImplementedError, match=r"pbc=\[False, False, False\]"):
        atoms.get_stress()
    atoms.pbc = True
    assert np.isfinite(atoms.get_stress()).all()


# An ensemble.


def committee(count=3, **options):
    def one(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Model(
                BACKBONES["PaiNN"](elements=["H", "C", "O"], cutoff=4.0, channels=8, layers=2),
                options.get("predict", ["energy"]),
            ).double()

    return mq.Ensemble([one(k) for k in range(count)])


def test_an_ensemble_gives_means_and_spreads():
    many = committee()
    atoms = crystal(Calculator(many))
    each = [crystal(Calculator(m)) for m in many.members]
    forces = np.stack([a.get_forces() for a in each])
    assert np.allclose(atoms.get_forces(), forces.mean(0), atol=1e-12)
    assert np.allclose(atoms.get_stress(), np.mean([a.get_stress() for a in each], 0), atol=1e-12)
    results = atoms.calc.results
    energies = [a.get_potential_energy() for a in each]
    assert isinstance(results["energy_std"], float) and results["energy_std"] == pytest.approx(
        np.std(energies, ddof=1), rel=1e-9
    )
    assert np.allclose(results["forces_std"], np.sqrt(forces.var(0, ddof=1).mean(1)), rtol=1e-9)
    assert isinstance(results["stress_std"], float) and results["stress_std"] > 0
    assert np.allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-5), rtol=0, atol=1e-7)
    free = ethanol(atoms.calc)
    free.get_forces()
    assert "stress_std" not in free.calc.results and list(many.quantities) == ["energy"]


def test_an_ensemble_from_a_file_in_copies_and_in_other_processes(tmp_path):
    many = committee(predict=["energy", "forces"]).calibrated({"forces": 2.0})
    path = mq.save(many, tmp_path / "e.safetensors")
    wanted, spread = ethanol(Calculator(many)).get_forces(), None
    for calculator in (
        Calculator(path),
        Calculator(many).copy(),
        pickle.loads(pickle.dumps(Calculator(many))),
    ):
        atoms = ethanol(calculator)
        assert np.array_equal(atoms.get_forces(), wanted)
        spread = calculator.results["forces_std"] if spread is None else spread
        assert np.array_equal(calculator.results["forces_std"], spread)


@pytest.mark.parametrize(
    "info",
    [
        {"spin": "singlet"},
        {"charge": np.array([1, 2])},
        {"spin": 1, "spin_multiplicity": 2},
        {"total_charge": math.nan},
    ],
)
def test_charge_and_spin_that_a_model_does_not_take_are_not_looked_at(info):
    atoms = ethanol(Calculator(small()))
    wanted = atoms.get_potential_energy()
    atoms.info.update(info)
    assert atoms.calc.check_state(atoms) == [] and atoms.get_potential_energy() == wanted
    charged = ethanol(Calculator(small(inputs=mq.Inputs(charge=True, spin=True))))
    charged.info.update({"charge": 0, "spin": 1} | info)
    with pytest.raises(DataError, match="wanted"):  # the control: a model that takes them
        charged.get_potential_energy()


def test_one_number_in_an_array_is_a_charge():
    atoms = ethanol(Calculator(small(inputs=mq.Inputs(charge=True))))
    atoms.info["charge"] = 1
    wanted = atoms.get_potential_energy()
    for value in (np.array([1]), np.array(1.0), [1]):
        atoms.info["charge"] = value
        assert atoms.get_potential_energy() == wanted
