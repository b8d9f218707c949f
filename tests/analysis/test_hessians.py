"""Analytic Hessians: laws, finite differences, a potential with a known Hessian, every backbone."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength

import molequi as mq
from molequi.analysis.second_derivatives import second_derivatives
from molequi.errors import ConfigError, DataError
from molequi.models import BACKBONES

WATER = molecule("H2O")
WATER.rattle(0.05, seed=1)
SMALL = {"channels": 8, "layers": 1}


def model(elements=("H", "O"), backbone=mq.NequIP, **options):
    torch.manual_seed(0)
    return mq.Model(backbone(elements=list(elements), cutoff=4.0, **(SMALL | options)))


def differences(given, atoms, step=1e-4):
    return mq.hessian(given, atoms, method="finite-differences", step=step).matrix


@pytest.mark.parametrize("name", sorted({*BACKBONES} - {"PointHierarchy"}))  # which has no energy of atoms
def test_every_backbone(name):
    """Both methods agree, the matrix is symmetric, and the rigid motions are what they must be."""
    torch.manual_seed(0)
    made = mq.Model(BACKBONES[name](elements=["H", "O"], cutoff=4.0, channels=8))
    found, rows = mq.hessian(made, WATER), mq.hessian(made, WATER, method="loop")
    scale = np.abs(found.matrix).max()
    assert (found.method, found.note, rows.method) == ("vmap", "", "loop")
    assert scale > 1e-3 and np.allclose(found.matrix, rows.matrix, rtol=0, atol=1e-10 * scale)
    assert found.asymmetry < 1e-10 * scale and found.translation < 1e-10 * scale
    assert np.allclose(found.matrix, differences(made, WATER), atol=1e-4 * scale)
    if made.group == "O(3)":
        assert found.rotation < 1e-9 * scale


def test_a_broken_law_is_seen():
    """A model of absolute coordinates: translations are no null modes; a symmetric model passes the same test."""

    class Pinned(mq.PaiNN):
        def forward(self, graph):
            found = super().forward(graph)
            factor = 1 + 0.1 * graph.pos.to(self.dtype)[:, :1, None]
            blocks = {irrep: block * factor for irrep, block in found.blocks.items()}
            return mq.Features(blocks=blocks, coordination=found.coordination)

    torch.manual_seed(0)
    pinned = mq.Model(Pinned(elements=["H", "O"], cutoff=4.0, **SMALL))
    found, sound = mq.hessian(pinned, WATER), mq.hessian(model(backbone=mq.PaiNN), WATER)
    assert found.translation > 1e-4 and found.rotation > 1e-4 and found.asymmetry < 1e-12
    assert sound.translation < 1e-12 and sound.rotation < 1e-12
    assert "translations" in str(found) and "<" in found._repr_html_()


def test_crystals_and_blocks():
    atoms = bulk("Cu", "hcp", a=2.54, c=4.15) * (2, 1, 1)
    atoms.rattle(0.05, seed=2)
    made = model(["Cu"], l_max=1)
    found = mq.hessian(made, atoms, block=5)
    assert np.allclose(found.matrix, differences(made, atoms), atol=1e-4 * np.abs(found.matrix).max())
    assert np.isnan(found.rotation) and found.translation < 1e-10
    assert np.allclose(found.matrix, mq.hessian(made, atoms).matrix, rtol=0, atol=1e-12)


def test_ensembles_and_lists():
    members = [mq.Model(mq.PaiNN(elements=["H", "O"], cutoff=4.0, **SMALL)) for _ in range(2)]
    ensemble = mq.Ensemble(members)
    (both, single) = mq.hessian(ensemble, [WATER, Atoms("H")])
    one, two = (mq.hessian(member, WATER).matrix for member in members)
    assert np.allclose(both.matrix, (one + two) / 2, atol=1e-12) and not single.matrix.any()
    assert np.allclose(both.std, np.abs(one - two) / np.sqrt(2), atol=1e-12)
    data = mq.from_atoms([WATER])
    assert np.allclose(mq.hessian(ensemble, data)[0].matrix, both.matrix)


def test_products():
    made, rng = model(), np.random.default_rng(0)
    vectors = rng.normal(size=(4, 3, 3))
    matrix = mq.hessian(made, WATER).matrix
    wanted = (vectors.reshape(4, 9) @ matrix).reshape(4, 3, 3)
    for method in ("vmap", "loop"):
        found = mq.hessian_vector_product(made, WATER, vectors, method=method)
        assert np.allclose(found, wanted, atol=1e-12)
    near = mq.hessian_vector_product(made, WATER, vectors[0], method="finite-differences", step=1e-3)
    assert near.shape == (3, 3) and np.allclose(near, wanted[0], atol=1e-4) and np.abs(wanted[0]).max() > 1e-2


def test_other_calculators_take_differences():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    found = mq.hessian(EMT(), atoms)
    assert found.method == "finite-differences" and 0 < found.asymmetry < 1e-2 and found.translation < 1e-2


def test_float32_and_the_weights_are_left_alone():
    made = model()
    found = mq.hessian(made, WATER, dtype="float32")
    assert 1e-9 < np.abs(found.matrix - mq.hessian(made, WATER).matrix).max() < 1e-4
    assert made.dtype == torch.float32 and all(p.requires_grad for p in made.parameters())


def test_an_operation_that_cannot_be_batched():
    class Frozen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone() if bool(torch.isfinite(value).all()) else value  # reads numbers

        @staticmethod
        def backward(ctx, slope):
            return Frozen.apply(slope)

    class Odd(mq.PaiNN):
        def forward(self, graph):
            return super().forward(graph.replace(pos=Frozen.apply(graph.pos)))

    torch.manual_seed(0)
    odd = mq.Model(Odd(elements=["H", "O"], cutoff=4.0, **SMALL))
    found = mq.hessian(odd, WATER)
    assert found.method == "loop" and found.note and "not by vmap: " in str(found)
    with pytest.raises(ConfigError, match="method='vmap': this Odd has an operation that torch cannot batch"):
        mq.hessian(odd, WATER, method="vmap")


def test_wrong_calls_are_named():
    made = model()
    for changes, words in [
        ({"method": "fast"}, "method='fast'"),
        ({"method": "loop", "block": 3}, "block=3 has no effect with method='loop'"),
        ({"step": 0.1}, "step=0.1 has no effect: this Hessian is analytic"),
        ({"dtype": "float16"}, "dtype"),
        ({"block": 0}, "block"),
        ({"step": True, "method": "finite-differences"}, "step=True: wanted Å, above zero"),
    ]:
        with pytest.raises(ConfigError, match=words):
            mq.hessian(made, WATER, **changes)
    with pytest.raises(ConfigError, match="method='vmap' differentiates a model; EMT is another calculator"):
        mq.hessian(EMT(), bulk("Cu"), method="vmap")
    with pytest.raises(ConfigError, match="need an energy"):
        mq.hessian(mq.Model(mq.PaiNN(elements=["H", "O"]), ["dipole"]), WATER)
    with pytest.raises(DataError, match=r"vectors of shape \(2, 3\) for 3 atoms; wanted \(3, 3\)"):
        mq.hessian_vector_product(made, WATER, np.zeros((2, 3)))
    with pytest.raises(DataError, match="not finite"):
        mq.hessian_vector_product(made, WATER, np.full((3, 3), np.nan))


def test_second_derivatives_by_strain():
    """∂²E/∂ε∂ε and ∂²E/∂ε∂u of a crystal against differences of its stress and forces."""
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.1, seed=3)
    calculator = mq.Calculator(model(["Na", "Cl"], l_max=1), dtype="float64", skin=0.0)
    atoms.calc = calculator
    found = second_derivatives(calculator.model, calculator.graph(atoms), strain=True).values.numpy()
    volume, h = atoms.cell.volume, 1e-4
    scale = np.abs(found).max()
    assert np.allclose(found, found.T, atol=1e-10 * scale) and np.abs(found[6:, :6]).max() > 1e-3 * scale

    def stress(strain):
        frame = atoms.copy()
        frame.calc = calculator
        frame.set_cell(frame.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        return frame.get_forces() @ (np.eye(3) + strain), frame.get_stress() * frame.cell.volume

    along = np.diag([h, 0, 0])  # dE/dε_yy does not change its meaning under a strain along x
    ends = [stress(along), stress(-along)]
    assert np.allclose(found[6, :6], -((ends[0][0] - ends[1][0]) / (2 * h)).ravel(), atol=1e-5 * scale)
    yy = (ends[0][1][1] - ends[1][1][1]) / (2 * h)
    assert found[6, 7] == pytest.approx(yy, abs=1e-5 * scale) and volume > 0


def springs_of(elements, backbone=mq.NequIP, **options):
    """A model and its calculator."""
    return mq.Calculator(model(elements, backbone, **({"l_max": 1} | options)), dtype="float64")


def test_vibrations_and_elastic_constants_by_both_methods():
    water, calculator = molecule("H2O"), springs_of(["H", "O"])
    water.set_constraint(FixAtoms([1]))
    found = [
        mq.vibrations(water, calculator, relax=False, method=method, **more)
        for method, more in (("analytic", {}), ("finite-differences", {"displacement": 1e-3}))
    ]
    scale = np.abs(found[0].wavenumber).max()
    assert [one.method for one in found] == ["analytic", "finite-differences"] and scale > 10
    assert np.allclose(found[0].wavenumber, found[1].wavenumber, atol=0.01 * scale)
    assert mq.vibrations(water, calculator, relax=False).method == "analytic"
    assert mq.vibrations(water, calculator, relax=False, displacement=0.01).method == "finite-differences"
    crystal, own = bulk("Cu", "hcp", a=2.54, c=4.15), springs_of(["Cu"])
    matrix = mq.elastic(crystal, own, relax=False).matrix * units.GPa
    crystal.calc, h, energies = own, 1e-3, []
    for strain in (-h, 0, h):  # frozen ions: V C_11 = d²E/dε²
        frame = crystal.copy()
        frame.calc = own
        frame.set_cell(frame.cell.array @ np.diag([1 + strain, 1, 1]), scale_atoms=True)
        energies.append(frame.get_potential_energy())
    second = (energies[0] - 2 * energies[1] + energies[2]) / h**2
    assert matrix[0, 0] == pytest.approx(second / crystal.cell.volume, rel=1e-3) and matrix[0, 0] > 1e-3
    assert mq.elastic(crystal, own, relax=False, strain=0.01).method == "finite-differences"


def test_methods_without_effect_are_named():
    water, calculator = molecule("H2O"), springs_of(["H", "O"])
    with pytest.raises(ConfigError, match="displacement=0.1 has no effect with method='analytic'"):
        mq.vibrations(water, calculator, relax=False, method="analytic", displacement=0.1)
    with pytest.raises(ConfigError, match="method='analytic' differentiates a model; EMT is another"):
        mq.vibrations(molecule("N2"), EMT(), relax=False, method="analytic")
    with pytest.raises(ConfigError, match="method='exact': wanted 'analytic' or"):
        mq.vibrations(water, calculator, relax=False, method="exact")
    water.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ConfigError, match="the constraint FixBondLengths: only FixAtoms is known"):
        mq.vibrations(water, calculator, relax=False, method="analytic")


@pytest.fixture(scope="module")
def copper():
    """A model of hcp copper that was trained on a few strained cells."""
    torch.manual_seed(0)
    rng, frames = np.random.default_rng(0), []
    for k in range(12):
        frame = bulk("Cu", "hcp", a=2.54, c=4.15)
        frame.set_cell(frame.cell.array @ (np.eye(3) + 0.05 * rng.normal(size=(3, 3))), scale_atoms=True)
        frame.rattle(0.08, seed=k)
        frame.calc = EMT()
        frame.get_stress()
        frames.append(frame)
    data = mq.from_atoms(frames, allow=["energy-force-scale"])
    made = mq.Model(
        mq.NequIP(elements=["Cu"], cutoff=4.0, channels=8, layers=1, l_max=1),
        ["energy", "forces", "stress"],
    )
    options = {"epochs": 40, "lr": 1e-2, "batch_size": 4, "logging": {"progress": False}}
    mq.fit(made, data[:10], data[10:], **options)
    return made


def test_elastic_constants_and_phonons_by_both_methods(copper):
    """Relaxed ions in closed form against relaxations in strained cells; force constants against phonopy's."""
    pytest.importorskip("phonopy")
    crystal = bulk("Cu", "hcp", a=2.54, c=4.15)
    exact = mq.elastic(crystal, copper, fmax=1e-4)
    near = mq.elastic(crystal, copper, fmax=1e-4, method="finite-differences", strain=1e-3)
    frozen = mq.elastic(exact.start.atoms, copper, relax=False)
    assert np.allclose(exact.matrix, near.matrix, atol=0.05) and exact.stable
    assert frozen.matrix[0, 0] > exact.matrix[0, 0] + 1  # the ions do relax
    options = {"relax": False, "supercell": [2, 2, 2], "mesh": 3, "points": 20}
    bands = mq.phonons(exact.start.atoms, copper, **options)
    wanted = mq.phonons(exact.start.atoms, copper, displacement=1e-3, **options)
    assert (bands.method, wanted.method) == ("analytic", "finite-differences")
    assert np.allclose(bands.bands, wanted.bands, atol=1e-3) and bands.bands.max() > 1
