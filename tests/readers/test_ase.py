"""Structures from and to ASE: where labels are found, what is asked for, round trips, published data."""

import ase
import ase.build
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import molequi as mq
from molequi.data import Key
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.graph import Graph
from molequi.quantities import Quantity
from molequi.readers import READERS, from_atoms, read_ase, read_extxyz, read_npz, to_atoms, write_npz

# extxyz as ASE writes it has eight decimals in columns
COLUMNS = 6e-9


def hydrogen(**info):
    return ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.75]], info=info)


@st.composite
def structures(draw):
    n = draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pbc = draw(st.lists(st.booleans(), min_size=3, max_size=3))
    grid = np.array([[x, y, z] for x in range(2) for y in range(2) for z in range(2)], float)
    atoms = ase.Atoms(
        random.integers(1, 119, n),
        positions=1.5 * random.permutation(grid)[:n] + random.uniform(-0.2, 0.2, (n, 3)),
    )
    if any(pbc):
        # any handedness, rows of a periodic direction only if asked; large enough that images do not touch
        cell = (8 * np.eye(3) + random.uniform(-1, 1, (3, 3)))[random.permutation(3)]
        atoms.set_cell(np.where(np.array(pbc)[:, None] | draw(st.booleans()), cell, 0.0))
        atoms.pbc = pbc
    results = {"energy": float(random.normal()), "forces": random.normal(size=(n, 3))}
    if all(pbc):
        results["stress"] = random.normal(size=6)
    results["dipole"] = random.normal(size=3)
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info = {
        "polarizability": np.diag(random.normal(size=3)),
        "charge": int(random.integers(-2, 3)),
        "name": "a b",
    }
    atoms.arrays["magmoms"] = random.normal(size=n)
    return atoms


@given(frames=st.lists(structures(), min_size=1, max_size=4), compressed=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path, frames, compressed):
    path = tmp_path / ("frames.xyz.gz" if compressed else "frames.xyz")
    ase.io.write(path, frames, format="extxyz")
    data = (
        read_extxyz(path, partial=["stress"])
        if any("stress" in a.calc.results for a in frames)
        else read_extxyz(path)
    )
    assert data.info["name"] == ("a b",) * len(frames)
    for graph, atoms in zip(data, frames):
        back = to_atoms(graph)
        assert (back.numbers == atoms.numbers).all() and (back.pbc == atoms.pbc).all()
        np.testing.assert_allclose(back.positions, atoms.positions, atol=COLUMNS)
        if atoms.pbc.any():
            np.testing.assert_array_equal(back.cell[:], atoms.cell[:])
        assert back.info["charge"] == atoms.info["charge"]
        assert set(back.calc.results) == {*atoms.calc.results, "magmoms"}
        for name, value in atoms.calc.results.items():
            np.testing.assert_allclose(back.calc.results[name], value, atol=COLUMNS)
        np.testing.assert_allclose(back.info["polarizability"], atoms.info["polarizability"], rtol=1e-14)
    # and once more, from the Atoms that were made
    again = from_atoms([to_atoms(g) for g in data], partial=["stress"] if "stress" in data.quantities else [])
    assert set(again.quantities) == set(data.quantities)
    for name in data.quantities:
        assert torch.equal(again.values(name).nan_to_num(), data.values(name).nan_to_num())


@pytest.mark.parametrize("suffix", ["traj", "xyz", "json", "db"])
def test_other_formats_and_sign_of_stress(tmp_path, suffix):
    """Compressed copper wants to expand: its stress is negative in ASE's sign; forces and stress are those of the "
    "calculator."""
    atoms = ase.build.bulk("Cu", cubic=True, a=3.4)
    atoms.rattle(0.05, seed=1)
    atoms.calc = EMT()
    wanted = atoms.get_stress(voigt=False), atoms.get_forces()
    ase.io.write(tmp_path / f"cu.{suffix}", atoms)
    graph = read_ase(tmp_path / f"cu.{suffix}")[0]
    np.testing.assert_allclose(graph.targets["stress"][0], wanted[0], rtol=1e-12)
    np.testing.assert_allclose(graph.targets["forces"], wanted[1], atol=COLUMNS)
    assert graph.targets["stress"][0].trace() < 0


def test_labels_are_found_in_info_arrays_and_calculator():
    a, b, c = hydrogen(energy=-1.0), hydrogen(), hydrogen(energy=-1.0)
    a.arrays["forces"] = np.ones((2, 3))
    b.calc = SinglePointCalculator(b, energy=-1.0, forces=np.ones((2, 3)))
    c.info["forces"] = np.ones((2, 3))
    data = from_atoms([a, b, c])
    assert (data.values("energy") == -1).all() and (data.values("forces") == 1).all()
    b.info["energy"] = -2.0
    with pytest.raises(
        DataError, match="frame 0: 'energy' has different values in info, arrays and calculator"
    ):
        from_atoms([b])


@pytest.mark.parametrize(
    "given, words",
    [
        (hydrogen(), r"one ase.Atoms; wanted a sequence of them: from_atoms\(\[atoms\]\)"),
        ("a.xyz", "'a.xyz' is a path; files are read by read_ase"),
        (3, "int; wanted a sequence of ase.Atoms"),
        ([hydrogen(), "a.xyz"], "structure 1 is str; wanted ase.Atoms"),
    ],
)
def test_what_is_no_sequence_of_atoms(given, words):
    with pytest.raises(ConfigError, match=f"from_atoms: {words}"):
        from_atoms(given)


def test_calculators_are_not_run():
    atoms = hydrogen()
    atoms.calc = LennardJones()
    assert not from_atoms([atoms]).quantities


def test_a_quantity_of_ones_own():
    q = Quantity(name="spread", per="graph", rank=0, unit="Å")
    data = from_atoms([hydrogen(spread=2.0, energy=1.0)], quantities=[q], units={"spread": "Bohr"})
    assert data.quantities == {"spread": q} and data.unused == {"energy": 1}
    assert data.values("spread").item() == pytest.approx(2 * ase.units.Bohr)
    atoms = to_atoms(data[0], {"spread": data[0].targets["spread"]}, {"spread": q})
    assert atoms.info["spread"] == data.values("spread").item() and atoms.calc is None
    with pytest.raises(DataError, match="wanted one number"):
        from_atoms([hydrogen(spread=[1.0, 2.0])], quantities=[q])


def test_units_and_keys():
    data = from_atoms([hydrogen(e=1.0)], keys={"energy": "e"}, units={"energy": "Hartree", "positions": "nm"})
    assert (
        data.values("energy").item() == pytest.approx(ase.units.Hartree, rel=1e-7)
        and data[0].pos[1, 2] == 7.5
    )
    assert "from 'e', in Hartree" in data.summary()
    assert from_atoms([hydrogen(e=1.0)], keys={"energy": Key("e", sign=-1)}).values("energy").item() == -1.0
    a = hydrogen(energy=1.0)
    a.arrays["forces"] = np.zeros((2, 3))
    with pytest.raises(DataError, match="energy in Hartree but no unit for forces"):
        from_atoms([a], units={"energy": "Hartree"})


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"keys": {"enrgy": "e"}}, "'enrgy' is not a quantity; did you mean 'energy'"),
        ({"units": {"enrgy": "eV"}}, "'enrgy' is not a quantity; did you mean 'energy'"),
        ({"quantities": ["enrgy"]}, "'enrgy'.*did you mean 'energy'"),
        ({"partial": ["enrgy"]}, "'enrgy'.*did you mean 'energy'"),
        ({"keys": {"stress": {"sing": -1}}}, "no option 'sing'; did you mean 'sign'"),
        ({"keys": {"stress": {"sign": 2}}}, "sign 2"),
        ({"keys": {"stress": {"order": "xx yy zz xy xy xz"}}}, "order 'xx yy zz xy xy xz'"),
        ({"keys": {"energy": {"virial": True}}}, "only a stress"),
        ({"keys": {"energy": 3}}, "is 3; wanted a name"),
    ],
)
def test_misspelt_options(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        from_atoms([hydrogen(energy=1.0)], **options)


def test_charge_and_spin():
    frames = [hydrogen(total_charge=1, spin_multiplicity=2), hydrogen(charge=-1, spin=1)]
    data = from_atoms(frames)
    assert [g.charge.item() for g in data] == [1, -1] and [g.spin.item() for g in data] == [2, 1]
    assert from_atoms(frames, keys={"charge": None, "spin": None})[0].charge is None
    assert from_atoms([hydrogen(q=3)], keys={"charge": "q"})[0].charge.item() == 3
    with pytest.raises(
        DataError,
        match="frame 1: no 'charge' or 'total_charge', which 1 of 2 structures have; wanted all or none",
    ):
        from_atoms([hydrogen(charge=1), hydrogen()])
    with pytest.raises(DataError, match="charge = 1 and total_charge = 0; say which"):
        from_atoms([hydrogen(charge=1, total_charge=0)])
    with pytest.raises(DataError, match="no 'q'"):
        from_atoms([hydrogen(charge=1)], keys={"charge": "q"})
    with pytest.raises(DataError, match="charge is nan; wanted one finite number"):
        from_atoms([hydrogen(charge=float("nan"))])


def test_velocities():
    atoms = hydrogen()
    atoms.set_velocities(np.ones((2, 3)))
    assert from_atoms([atoms])[0].vel is None
    data = from_atoms([atoms], keys={"velocities": "momenta"})
    np.testing.assert_allclose(data[0].vel, 1.0)
    np.testing.assert_allclose(to_atoms(data[0]).get_velocities(), 1.0)
    atoms.arrays["v"] = np.ones((2, 3))
    found = from_atoms([atoms], keys={"velocities": "v"}, units={"velocities": "Å/fs"})[0].vel
    np.testing.assert_allclose(found, 1 / ase.units.fs)
    with pytest.raises(DataError, match="no velocities 'w'"):
        from_atoms([atoms], keys={"velocities": "w"})


def test_several_files_and_indices(tmp_path):
    for name in "ab":
        ase.io.write(tmp_path / f"{name}.xyz", [hydrogen(step=k, name=name) for k in range(5)])
    pattern = str(tmp_path / "*.xyz")
    assert read_ase(pattern).info["name"] == ("a",) * 5 + ("b",) * 5
    assert read_ase([tmp_path / "b.xyz", tmp_path / "a.xyz"], index="1::2").info["step"] == (1, 3, 1, 3)
    for index, steps in [
        (":2", (0, 1)),
        ("-1", (4,)),
        (2, (2,)),
        (slice(None, None, -2), (4, 2, 0)),
        ("::-1", (4, 3, 2, 1, 0)),
    ]:
        assert read_extxyz(tmp_path / "a.xyz", index=index).info["step"] == steps
    assert read_ase(tmp_path / "a.xyz", index=3).origins == (f"{tmp_path / 'a.xyz'}, frame 3",)
    for index, sentence in [
        ("a", "index 'a'; wanted"),
        (5, "no frame 5; the file has 5"),
        ("7:", "selects none of its 5"),
        ("1:2:3:4", "wanted a"),
    ]:
        with pytest.raises(DataError, match=sentence):
            read_ase(tmp_path / "a.xyz", index=index)
    with pytest.raises(DataError, match="empty list of files"):
        read_ase([])
    assert {"ase", "extxyz", "npz", "pyg"} <= set(READERS)


def test_results_of_a_model_become_atoms():
    graph = from_atoms([hydrogen(charge=1)])[0]
    atoms = to_atoms(
        graph,
        {
            "energy": torch.tensor([2.0], requires_grad=True),
            "forces": torch.ones(2, 3),
            "energies": torch.ones(2),
            "gap": torch.tensor([0.5]),
            "stress": torch.tensor([[[1.0, 6, 5], [6, 2, 4], [5, 4, 3]]]),
        },
    )
    assert atoms.get_potential_energy() == 2.0 and (atoms.get_stress() == [1, 2, 3, 4, 5, 6]).all()
    assert (
        atoms.get_forces().shape == (2, 3)
        and atoms.calc.results["energies"].shape == (2,)
        and atoms.info == {"charge": 1.0, "gap": 0.5}
    )
    with pytest.raises(DataError, match="2 structures in 3 dimensions"):
        to_atoms(graph.replace(num_graphs=2))


def test_acac(real_data):
    data = read_ase(real_data / "acac" / "train_300K.xyz")
    frames = ase.io.read(real_data / "acac" / "train_300K.xyz", ":")
    assert len(data) == 500 and all(g.cell is None for g in data)
    for graph, atoms in zip(data, frames):
        assert graph.targets["energy"].item() == atoms.get_potential_energy()
        assert (graph.targets["forces"].numpy() == atoms.get_forces()).all() and (
            graph.pos.numpy() == atoms.positions
        ).all()
    statistics = data.split([450, 50])[0].statistics(
        5.0, reference_energies=read_ase(real_data / "acac" / "isolated_atoms.xyz")
    )
    assert -7 < statistics.shift["energy"][6] < -3  # binding of an organic molecule, eV an atom


def test_zundel_cation_has_no_cell(real_data):
    data = read_ase(
        real_data / "water_tensors" / "zundel_first800.xyz",
        keys={"energy": "potential", "dipole": "mu", "polarizability": "alpha"},
        units={"energy": "Hartree", "dipole": "e Bohr", "polarizability": "e^2 Bohr^2/Hartree"},
    )
    assert (
        len(data) == 800
        and all(g.cell is None for g in data)
        and data.values("polarizability").shape == (800, 3, 3)
    )


def test_charged_clusters(real_data):
    with pytest.warns(DataWarning, match="spin is 0 .*in 1760 of 1760 structures.*multiplicity"):
        data = read_ase(
            real_data / "charged_clusters" / "ag3_train.xyz",
            keys={"energy": "REF_energy", "forces": "REF_forces", "dipole": "dipole_moment"},
        )
    assert len(data) == 1760 and {g.charge.item() for g in data} == {-1.0, 1.0}


SHEARED = {"Si": (186, 213), "Ge": (200, 227), "Cu": (0, 0)}


@pytest.mark.parametrize("element", SHEARED)
def test_mlearn_virials_are_pressures_in_kbar(real_data, element):
    """Unit, sign and order of the raw components, from the energies of cells that differ by a strain.

    Along a series of strains with all atoms at rest dE/dε = V σ: along x, and, in copper, under shear of each of the
    three planes. The sheared
    cells of silicon and germanium have another order than the rest of their files: there the component that answers the
    shear says so. In copper all diagonal stresses lie above those of the energies by one constant, as when plane waves
    are kept from growing with the cell.
    """
    path = real_data / "mlearn" / f"{element}_train.extxyz"
    start, stop = SHEARED[element]

    def read(order):
        return read_ase(
            path,
            keys={"stress": {"key": "stress_kbar_raw", "sign": -1, "order": order}},
            units={"stress": "kbar"},
        )

    data, other = read("xx yy zz xy xz yz"), read("vasp")
    still = [k for k, g in enumerate(data) if g.targets["forces"].abs().max() < 0.01]
    sides = torch.stack([data[k].cell[0] for k in still])
    relaxed = sides[:, 1, 1].median()
    series = [
        (
            g.cell[0, 0, 0].item(),
            g.targets["energy"].item(),
            g.targets["stress"][0, 0, 0].item(),
            torch.linalg.det(g.cell[0]).item(),
        )
        for g in (data[k] for k in still)
        if (g.cell[0] - torch.diag(torch.tensor([g.cell[0, 0, 0], relaxed, relaxed]))).abs().max() < 2e-3
    ]
    side, energy, stress, volume = np.array(sorted(series)).T
    fitted = (
        np.polyval(np.polyder(np.polyfit(side - relaxed.item(), energy, 4)), side - relaxed.item())
        * side
        / volume
    )
    assert len(side) >= 6 and np.ptp(stress) > 0.05
    offset = np.mean(stress - fitted) if element == "Cu" else 0.0
    assert 0.01 < offset < 0.02 or element != "Cu"
    np.testing.assert_allclose(stress - offset, fitted, atol=0.05 * np.ptp(stress))
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        for k in range(start, stop):
            graph = other[k]
            shear = (graph.cell[0] + graph.cell[0].T)[a, b].item() / 2 / graph.cell[0, 0, 0].item()
            if abs(shear) > 1e-3:
                assert graph.targets["stress"][0, a, b].item() / shear > 0.1
                assert (a, b) == (0, 1) or abs(data[k].targets["stress"][0, a, b].item()) < 1e-3
        if element == "Cu":
            sheared = []
            for k in still:
                cell = data[k].cell[0] / relaxed - torch.eye(3)
                strain = (cell + cell.T) / 2
                rest = strain.clone()
                rest[a, b] = rest[b, a] = 0
                if (
                    rest.abs().max() < 7e-3
                    and strain[a, b].abs() > 1e-3
                    and rest[[0, 0, 1], [1, 2, 2]].abs().max() < 1e-4
                ):
                    sheared.append(
                        (
                            strain[a, b].item(),
                            data[k].targets["energy"].item(),
                            data[k].targets["stress"][0, a, b].item(),
                            torch.linalg.det(data[k].cell[0]).item(),
                        )
                    )
            strain, energy, stress, volume = np.array(sheared).T
            fitted = np.polyval(np.polyder(np.polyfit(strain, energy, 4)), strain) / 2 / volume
            np.testing.assert_allclose(stress, fitted, atol=0.06 * np.ptp(stress))


def test_a_stress_without_a_volume_is_no_label():
    frames = [
        Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.75]], cell=[4, 4, 4], pbc=pbc)
        for pbc in (True, False, False)
    ]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, stress=np.zeros(6))
    with pytest.warns(DataWarning, match="a stress, and no periodic cell.*1 other"):
        data = from_atoms(frames)
    assert data.known("stress").tolist() == [True, False, False]


def test_tensors_of_atoms_come_back(tmp_path):
    shield = Quantity(name="shield", per="node", rank=2)
    value = np.random.default_rng(0).normal(size=(2, 3, 3))
    value = value + value.transpose(0, 2, 1)
    graph = Graph.single([[0, 0, 0], [0, 0, 0.75]], [1, 1])
    to_atoms(graph, {"shield": value}, {"shield": shield}).write(tmp_path / "t.xyz")
    again = read_extxyz(tmp_path / "t.xyz", quantities=[shield])
    assert np.allclose(again[0].targets["shield"].numpy(), value, atol=1e-7)


def test_a_name_with_two_meanings():
    """`mu` is a magnitude in QM9 and a vector elsewhere: told to be the dipole it is that only; untold it is not read."""
    atoms = [
        ase.Atoms("OH", [[0, 0, 0], [0, 0, 1.0 + 0.1 * k]], info={"mu": np.array([0.0, 0, 1.0])})
        for k in range(2)
    ]
    data = from_atoms(atoms, keys={"dipole": "mu"}, units={"dipole": "Debye"})
    assert set(data.quantities) == {"dipole"} and not data.unused
    assert from_atoms(atoms).unused == {"mu": 2} and not from_atoms(atoms).quantities
    with pytest.raises(DataError, match="mu has the shape .3,.; wanted one number"):
        from_atoms(atoms, quantities=["mu"])
    for a in atoms:
        a.info["mu"] = 1.0
    assert from_atoms(atoms, units={"mu": "D"}).values("mu").tolist() == pytest.approx([0.2081943] * 2)
    assert set(from_atoms(atoms, quantities=["gap"], keys={"gap": "mu"}).quantities) == {"gap"}


def test_what_is_no_charge_or_spin_under_these_names_is_not_read():
    """Texts and lists are something else, as a label of the wrong shape is."""
    frames = [hydrogen(spin="singlet", charge=np.array([0.1, -0.1]))] * 2
    data = from_atoms(frames)
    assert data[0].spin is None and data[0].charge is None
    assert "not read: charge (2), spin (2)" in data.summary()
    with pytest.raises(DataError, match=r"spin is 'singlet'; wanted numbers"):
        from_atoms(frames, keys={"spin": "spin"})
    one = from_atoms([hydrogen(charge=np.array([1]), total_charge=1.0, spin_multiplicity=2, spin="doublet")])
    assert one[0].charge.item() == 1 and one[0].spin.item() == 2
    with pytest.raises(
        DataError, match=r"spin = 1 and spin_multiplicity = 2; say .*, or None to read neither"
    ):
        from_atoms([hydrogen(spin=1, spin_multiplicity=2)])
    with pytest.raises(
        DataError, match=r"charge is nan; wanted one finite number; keys=.*None} does not read"
    ):
        from_atoms([hydrogen(charge=float("nan"))])


def partly(known):
    """A crystal with forces of the first atoms only."""
    atoms = bulk("Cu", cubic=True)
    forces = np.arange(12.0).reshape(4, 3)
    forces[known:] = np.nan
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=forces)
    return atoms


def test_forces_of_some_atoms_only(tmp_path):
    with pytest.raises(DataError, match=r"forces of atom 2 is \[nan, nan, nan\].*say partial=\['forces'\]"):
        from_atoms([partly(2)])
    data = from_atoms([partly(2), partly(4), partly(0)], partial=["forces"])
    assert torch.isnan(data[0].targets["forces"]).any(1).tolist() == [False, False, True, True]
    assert data.statistics(3.0).scale["forces"] == pytest.approx(
        np.sqrt(np.mean(np.concatenate([np.arange(6.0), np.arange(12.0)]) ** 2))
    )
    ase.io.write(tmp_path / "a.xyz", [to_atoms(graph) for graph in data])
    again = read_extxyz(tmp_path / "a.xyz", partial=["forces"])
    assert torch.equal(again.values("forces").isnan(), data.values("forces").isnan())
    assert torch.equal(again.values("forces").nan_to_num(), data.values("forces").nan_to_num())
    write_npz(data, tmp_path / "a.npz")
    assert torch.equal(read_npz(tmp_path / "a.npz").values("forces").isnan(), data.values("forces").isnan())
    broken = partly(4)
    for value in (np.nan, np.inf):
        broken.calc.results["forces"][1, 2] = value
        with pytest.raises(DataError, match=r"forces of atom 1 is .*wanted finite numbers$"):
            from_atoms([broken], partial=["forces"])


@pytest.mark.parametrize("kind", ["mse", "mae", "l2"])
def test_neither_loss_nor_errors_count_atoms_without_forces(kind):
    """The law: they are those of the known components alone, computed by hand."""
    from molequi.losses import Objective

    model = mq.Model(mq.EGNN(elements=["Cu"], channels=4, layers=1, cutoff=3.0), ["energy", "forces"])
    data = from_atoms([partly(2)], partial=["forces"])
    graph = data.connected(3.0)[0]
    objective = Objective([mq.Loss("forces", kind=kind)], model.quantities)
    loss = objective.total(objective.sums(model(graph), graph), objective.known(graph).double())
    error = model(graph)["forces"][:2].detach().double() - torch.arange(6.0).reshape(2, 3)
    known = {"mse": error.square().sum(), "mae": error.abs().sum(), "l2": error.norm(dim=1).sum()}
    assert loss.item() == pytest.approx(known[kind].item() / 6, rel=1e-6)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    row = next(row for row in mq.evaluate(model, data).rows if row.quantity == "forces")
    assert row.count == 6 and row.mae == pytest.approx(error.abs().mean().item(), rel=1e-5)
