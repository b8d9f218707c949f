"""Energies of isolated atoms, shifts and scales, against data whose answers are known."""

import ase
import ase.build
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from molequi.data.statistics import statistics_of
from molequi.errors import ConfigError, DataError
from molequi.graph import Graph
from molequi.quantities import Quantity
from molequi.readers import from_atoms, read_ase

E0 = {"H": -13.0, "C": -1030.0, "O": -2040.0}


def molecules(formulas, binding=0.0, noise=0.0, forces=None):
    random, out = np.random.default_rng(0), []
    for formula in formulas:
        atoms = ase.Atoms(formula)
        atoms.positions = np.arange(len(atoms))[:, None] * [1.0, 0, 0]
        atoms.info["energy"] = (
            sum(E0[s] for s in atoms.symbols) + binding * len(atoms) + noise * random.normal()
        )
        if forces is not None:
            atoms.arrays["forces"] = forces * random.normal(size=(len(atoms), 3))
        out.append(atoms)
    return from_atoms(out)


def test_fit_recovers_the_energies_of_the_elements():
    found = molecules(["CH4", "CO2", "H2O", "CH2O", "H2", "CO"]).statistics(1.5)
    assert not found.reference_energies_given
    assert [found.reference_energies[z] for z in (1, 6, 8)] == pytest.approx([-13, -1030, -2040], abs=1e-9)
    assert list(found.shift["energy"].values()) == pytest.approx([0, 0, 0], abs=1e-9)


def test_one_composition_is_fitted_by_its_sum():
    data = molecules(["CH4"] * 5)
    found = data.statistics(1.5)
    assert 4 * found.reference_energies[1] + found.reference_energies[6] == pytest.approx(-1082, abs=1e-9)
    # smallest norm: in proportion to the composition
    assert found.reference_energies[1] == pytest.approx(4 * found.reference_energies[6])


@pytest.mark.parametrize("formulas", [["CH4"] * 5, ["CH4", "CO2", "H2O", "CH2O", "H2", "CO"]])
def test_given_energies_leave_the_binding_per_atom(formulas):
    found = molecules(formulas, binding=-4.5).statistics(1.5, reference_energies=E0)
    assert found.reference_energies_given and found.reference_energies[6] == -1030.0
    assert list(found.shift["energy"].values()) == pytest.approx([-4.5] * len(found.elements), abs=1e-9)


def test_isolated_energies_from_a_file(tmp_path):
    path = tmp_path / "atoms.xyz"
    path.write_text("".join(f"1\nenergy={e}\n{s} 0 0 0\n" for s, e in E0.items()))
    found = molecules(["CH4", "CO2"]).statistics(1.5, reference_energies=read_ase(path))
    assert found.reference_energies == {1: -13.0, 6: -1030.0, 8: -2040.0}
    with pytest.raises(DataError, match="5 atoms; isolated atoms are frames of one atom"):
        molecules(["CH4"]).statistics(1.5, reference_energies=molecules(["CH4"]))
    with pytest.raises(DataError, match="wanted one"):
        molecules(["CH4"]).statistics(
            1.5, reference_energies=molecules(["H", "C"]) + molecules(["H"], binding=1)
        )


@pytest.mark.parametrize(
    "reference_energies, error, sentence",
    [
        ({"H": -13.0}, DataError, "no energy of C; found H"),
        ({"H": float("nan"), "C": 0.0}, DataError, "'H' has the energy nan"),
        ({"Hh": 1.0}, ConfigError, "element 'Hh'"),
        (3.0, DataError, "reference_energies is 3.0"),
    ],
)
def test_isolated_refused(reference_energies, error, sentence):
    with pytest.raises(error, match=sentence):
        molecules(["CH4"]).statistics(1.5, reference_energies=reference_energies)


def test_scales():
    data = molecules(["CH4"] * 50, noise=2.0, forces=0.7)
    found = data.statistics(1.5)
    rms = np.sqrt(np.mean(data.values("forces").numpy() ** 2))
    assert found.scale["forces"] == pytest.approx(rms) and found.scale["energy"] == found.scale["forces"]
    alone = molecules(["CH4"] * 50, noise=2.0)
    assert alone.statistics(1.5).scale["energy"] == pytest.approx(np.std(alone.values("energy").numpy()) / 5)


def test_mean_neighbours():
    """A chain of five atoms 1 Å apart: 8 directed edges within 1.5 Å; 20 of all pairs."""
    data = molecules(["CH4"])
    assert data.statistics(1.5).mean_neighbors == 8 / 5 and data.statistics(None).mean_neighbors == 4


def test_other_quantities():
    frames = []
    for k in range(4):
        atoms = ase.Atoms("H", info={"gap": 5.0 + k, "dipole": [0.0, 3.0, 4.0]})
        frames.append(atoms)
    found = from_atoms(frames).statistics(1.0)
    assert found.shift["gap"] == 6.5 and found.scale["gap"] == pytest.approx(np.sqrt(1.25))
    assert "dipole" not in found.shift and found.scale["dipole"] == pytest.approx(np.sqrt(25 / 3))
    assert found.reference_energies == {}  # no energies, so nothing is known of them


def test_missing_labels_do_not_count():
    data = molecules(["CH4", "CO2", "H2O", "CH2O", "H2", "CO"])
    last = data[-1].replace(targets={"energy": torch.full((1,), float("nan"), dtype=torch.float64)})
    masked = type(data)([*data.graphs[:-1], last])
    assert masked.statistics(1.5).reference_energies[8] == pytest.approx(-2040, abs=1e-9)


def test_single_atoms_among_the_data_are_the_isolated_atoms():
    """As in files that mark them config_type=IsolatedAtom: their energies are known, not fitted."""
    alone = {1: -13.6, 8: -2040.0}
    rng = np.random.default_rng(0)
    atoms = [Atoms("H"), Atoms("O")] + [
        Atoms("OH2", positions=rng.normal(size=(3, 3)) + 2 * np.eye(3)) for _ in range(6)
    ]
    for a in atoms:
        a.calc = SinglePointCalculator(
            a, energy=sum(alone[z] for z in a.numbers) - (5.0 * len(a) if len(a) > 1 else 0.0)
        )
    stats = from_atoms(atoms).statistics(4.0)
    assert stats.reference_energies == alone
    assert all(abs(value + 5.0) < 1e-9 for value in stats.shift["energy"].values())
    assert (
        from_atoms(atoms).statistics(4.0, reference_energies={"H": -13.6, "O": -2040.0}).reference_energies
        == alone
    )
    with pytest.raises(
        DataError, match="a single H with the energy -13.6 eV, and -13.0 eV given with reference_energies="
    ):
        from_atoms(atoms).statistics(4.0, reference_energies={"H": -13.0, "O": -2040.0})
    atoms[1] = atoms[2]
    partly = from_atoms(atoms).statistics(4.0)
    assert (
        partly.reference_energies[1] == -13.6 and abs(partly.reference_energies[8] - (-2040.0 - 15.0)) < 1e-6
    )


def _with_energy(atoms, energy):
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


@pytest.mark.parametrize("pbc", [False, True, (True, True, False)])
def test_an_atom_is_isolated_if_it_has_no_neighbors_whatever_its_box(pbc):
    """Plane-wave codes compute isolated atoms in a periodic box; the law is that pbc changes no energy."""
    alone = [_with_energy(Atoms("Cu", cell=[16] * 3, pbc=pbc), 3.5)]
    pairs = [_with_energy(Atoms("Cu2", [[0, 0, 0], [0, 0, d]]), 7.0 - 2 * d) for d in (2.2, 2.4)]
    assert from_atoms(alone + pairs).statistics(4.5).reference_energies == {29: 3.5}


def test_an_atom_with_periodic_images_within_the_cutoff_is_not_isolated():
    crystal = _with_energy(ase.build.bulk("Cu"), 0.01)
    pairs = [_with_energy(Atoms("Cu2", [[0, 0, 0], [0, 0, d]]), 7.0 - 2 * d) for d in (2.2, 2.4)]
    found = from_atoms([crystal, *pairs]).statistics(4.5).reference_energies
    assert found[29] != pytest.approx(0.01, abs=1e-3)
    # 12 nearest and 6 next neighbors of the face-centred lattice at 2.55 and 3.61 Å, 24 at 4.42 Å
    with pytest.raises(DataError, match="42 of its own periodic images within the cutoff; an isolated atom"):
        from_atoms(pairs).statistics(4.5, reference_energies=from_atoms([crystal]))


@pytest.mark.parametrize("unit", [1e-200, 1e-14, 1.0, 1e12, 1e160])
def test_scales_of_labels_in_any_unit(unit):
    """Rate constants of 1e-14 have a scale, too: a change of unit changes the scale by its factor alone."""
    values = np.array([1.0, 2.0, 4.0, 7.0])
    declared = {
        "k": Quantity(name="k"),
        "c": Quantity(name="c", extensive=True),
        "v": Quantity(name="v", rank=1),
    }
    graphs = [
        Graph.single(
            torch.tensor([[0.0, 0, 0], [0.9, 0, 0], [0, 1.8, 0]])[: 2 + k % 2],
            [1] * (2 + k % 2),
            targets={
                "k": torch.tensor([x * unit], dtype=torch.float64),
                "c": torch.tensor([x * unit], dtype=torch.float64),
                "v": torch.tensor([[x * unit, 0, 0]], dtype=torch.float64),
            },
        )
        for k, x in enumerate(values)
    ]
    found = statistics_of(graphs, declared, ["here"] * 4, [0] * 4)
    assert found.scale["k"] == pytest.approx(unit * np.std(values), rel=1e-9)
    assert found.scale["v"] == pytest.approx(unit * np.sqrt(np.mean(values**2) / 3), rel=1e-9)
    counts = np.array([2.0, 3, 2, 3])
    slope = (values @ counts) / (counts @ counts)  # least squares by hand
    assert found.shift["c"][1] == pytest.approx(unit * slope, rel=1e-9)
    assert found.scale["c"] == pytest.approx(unit * np.std(values / counts - slope), rel=1e-9)


@pytest.mark.parametrize(("value", "scale"), [(0.0, 1.0), (3e-14, 3e-14), (5.0, 1.0), (-1e9, 1.0)])
def test_scale_of_equal_labels(value, scale):
    """Round-off of large equal labels is no variation."""
    graphs = [
        Graph.single(
            torch.zeros(1, 3), [1], targets={"k": torch.tensor([value * (1 + e)], dtype=torch.float64)}
        )
        for e in (0.0, 2e-16, -2e-16)
    ]
    assert statistics_of(graphs, {"k": Quantity(name="k")}, ["here"] * 3, [0] * 3).scale[
        "k"
    ] == pytest.approx(scale)
