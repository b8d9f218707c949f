"""HDF5: the published layouts of ANI-1x, SPICE and MACE, their units and signs, and files that are refused."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, Hartree

import molequi as mq
from molequi.errors import DataError, MissingPackageError
from molequi.readers.files import select

h5py = pytest.importorskip("h5py", reason="h5py (the extra hdf5) is not installed")
RANDOM = np.random.default_rng(4)
WATER = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
HYDROGEN = np.array([[0, 0, 0], [0, 0, 0.74]])
ANI = {
    "keys": {"energy": "wb97x_dz.energy", "forces": "wb97x_dz.forces"},
    "units": {"energy": "Hartree", "forces": "Hartree/Å"},
}


def moved(pos, count):
    return pos + 0.01 * RANDOM.normal(size=(count, *pos.shape))


@pytest.fixture
def write(tmp_path):
    """Write arrays by path; a value (array, unit) has an attribute."""

    def write(arrays, name="data.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in arrays.items():
                array, unit = value if isinstance(value, tuple) else (value, None)
                file[key] = array
                if unit is not None:
                    file[key].attrs["units"] = unit
        return tmp_path / name

    return write


def ani():
    """Two formulas as in ANI-1x; the forces of one structure are missing."""
    arrays = {}
    for name, numbers, pos, count in (("H2O1", [8, 1, 1], WATER, 4), ("H2", [1, 1], HYDROGEN, 3)):
        forces = 0.01 * RANDOM.normal(size=(count, *pos.shape))
        forces[2] = np.nan
        arrays |= {
            f"{name}/atomic_numbers": np.array(numbers, np.uint8),
            f"{name}/coordinates": moved(pos, count).astype(np.float32),
            f"{name}/wb97x_dz.energy": np.linspace(-1, -1.02, count),
            f"{name}/wb97x_dz.forces": forces,
            f"{name}/wb97x_dz.cm5_charges": np.zeros((count, len(pos))),
        }
    return arrays


def spice(unit="bohr"):
    return {
        "oxidane/atomic_numbers": np.array([8, 1, 1], np.int16),
        "oxidane/conformations": (moved(WATER, 5) / Bohr, unit),
        "oxidane/dft_total_energy": (np.arange(5) / 100 - 76.0, "hartree"),
        "oxidane/dft_total_gradient": (0.01 * RANDOM.normal(size=(5, 3, 3)), "hartree/bohr"),
        "oxidane/scf_dipole": (RANDOM.normal(size=(5, 3)), "elementary_charge*bohr"),
        "oxidane/mayer_indices": RANDOM.normal(size=(5, 3, 3)),
        "oxidane/smiles": np.array([b"[O:1]([H:2])[H:3]"]),
        "oxidane/subset": np.array([b"a subset"]),
    }


def mace(**more):
    """Twelve configurations, so that config_10 follows config_9; the energy of the first is missing."""
    arrays = {}
    for k in range(12):
        place = f"config_batch_{k // 6}/config_{k % 6}" if k < 6 else f"config_batch_1/config_{k + 3}"
        arrays |= {
            f"{place}/atomic_numbers": np.array([8, 1, 1]),
            f"{place}/positions": WATER + 0.001 * k,
            f"{place}/properties/energy": float(k),
            f"{place}/properties/forces": np.full((3, 3), k / 10),
            f"{place}/properties/stress": "None",
            f"{place}/property_weights/energy": float(k > 0),
            f"{place}/cell": np.eye(3) * 9.0 if k else np.zeros((3, 3)),
            f"{place}/pbc": np.array([k > 0] * 3),
            f"{place}/weight": 1.0,
            f"{place}/config_type": "Default",
        }
    return arrays | more


def test_ani(write):
    arrays = ani()
    data = mq.read_hdf5(write(arrays), **ANI, partial=["forces"])
    assert len(data) == 7 and data.info["group"] == ("H2",) * 3 + ("H2O1",) * 4
    assert [g.num_nodes for g in data] == [2] * 3 + [3] * 4 and data[3].z.tolist() == [8, 1, 1]
    np.testing.assert_array_equal(data[4].pos, arrays["H2O1/coordinates"][1])
    np.testing.assert_allclose(
        data.values("energy"),
        [*np.linspace(-1, -1.02, 3) * Hartree, *np.linspace(-1, -1.02, 4) * Hartree],
        rtol=1e-8,
    )
    np.testing.assert_allclose(
        data[6].targets["forces"], arrays["H2O1/wb97x_dz.forces"][3] * Hartree, rtol=1e-8
    )
    assert data.known("forces").tolist() == [True, True, False, True, True, False, True]
    assert data.unused == {"wb97x_dz.cm5_charges": 7} and data.sources[0].frames == 7
    assert {len(set(part.info["group"])) for part in data.split([0.5, 0.5], by="group")} == {1}
    with pytest.raises(
        DataError, match=r"group H2, structure 2: wb97x_dz.forces of atom 0 is .*partial=\['forces'"
    ):
        mq.read_hdf5(write(arrays), **ANI)
    with pytest.raises(DataError, match="does not say the unit of energy.*ANI-1x has units="):
        mq.read_hdf5(write(arrays), keys=ANI["keys"])


@pytest.mark.parametrize("index", [":", "::2", "1:6:3", "::-1", "-2::-3", "3:5", 6, -7])
def test_index(write, index):
    path = write(ani())
    everything = mq.read_hdf5(path, **ANI, partial=["forces"])
    part = mq.read_hdf5(path, **ANI, partial=["forces"], index=index)
    chosen = list(range(7))[index] if isinstance(index, int) else list(select(index, 7, ""))
    chosen = [chosen] if isinstance(chosen, int) else chosen
    assert list(part.origins) == [everything.origins[k] for k in chosen]
    np.testing.assert_array_equal(part.values("energy"), everything.values("energy")[chosen])
    assert part[0].pos.tolist() == everything[chosen[0]].pos.tolist()


def test_spice(write):
    arrays = spice()
    data = mq.load_dataset(write(arrays, "spice.hdf5"))
    assert sorted(data.quantities) == ["energy", "forces"]  # units, names and the sign are known
    np.testing.assert_allclose(data[2].pos, arrays["oxidane/conformations"][0][2] * Bohr, rtol=1e-8)
    np.testing.assert_allclose(data.values("energy"), (np.arange(5) / 100 - 76.0) * Hartree, rtol=1e-8)
    gradient = arrays["oxidane/dft_total_gradient"][0]
    np.testing.assert_allclose(data[4].targets["forces"], -gradient[4] * Hartree / Bohr, rtol=1e-8)
    assert data.info["subset"] == ("a subset",) * 5 and data.info["smiles"][0].startswith("[O:1]")
    with_dipole = mq.read_hdf5(write(arrays), keys={"dipole": "scf_dipole", "forces": None})
    np.testing.assert_allclose(
        with_dipole.values("dipole"), arrays["oxidane/scf_dipole"][0] * Bohr, rtol=1e-8
    )
    assert "forces" not in with_dipole.quantities
    formation = {"oxidane/formation_energy": (np.zeros(5), "hartree")}
    data = mq.read_hdf5(write(arrays | formation), keys={"energy": "formation_energy"})
    assert not data.values("energy").any()


def test_mace(write):
    units = {"energy": "eV", "forces": "eV/Å"}
    data = mq.read_hdf5(write(mace()), units=units, partial=["energy"])
    assert sorted(data.quantities) == ["energy", "forces"] and len(data) == 12
    assert [group.split("_")[-1] for group in data.info["group"]] == list("012345") + [
        "9",
        *map(str, range(10, 15)),
    ]
    assert data.known("energy").tolist() == [False] + [True] * 11  # zero with the weight zero is missing
    assert data.values("energy")[1:].tolist() == list(range(1, 12))
    assert data[7].targets["forces"][2, 1] == 0.7 and data[7].cell[0, 0, 0] == 9
    assert data[0].cell is None or not data[0].pbc.any()
    assert data.info["config_type"][3] == "Default" and data.info["weight"][3] == 1.0
    with pytest.raises(DataError, match=r"config_0: 'energy' is empty.*partial=\['energy'\]"):
        mq.read_hdf5(write(mace()), units=units)
    early = {f"c_{k}/{n}": v for k in range(2) for n, v in (
        ("atomic_numbers", [1, 1]), ("positions", HYDROGEN), ("energy", 0.5 * k), ("energy_weight", float(k)),
        ("cell", "None"), ("pbc", "None"))}  # fmt: skip
    data = mq.read_hdf5(write(early), units={"energy": "eV"}, partial="energy")
    assert data.known("energy").tolist() == [False, True] and data[1].cell is None


def test_an_array_may_be_called_properties(write):
    data = mq.read_hdf5(write(spice() | {"oxidane/properties": np.zeros(5)}))
    assert len(data) == 5 and data.info["properties"] == (0.0,) * 5


def test_own_names_symbols_charges_and_several_files(write, tmp_path):
    arrays = {
        "a/b/atXYZ": moved(HYDROGEN, 2),
        "a/b/species": np.array([b"H", b"H"]),
        "a/b/energy": ([1.0, 2.0], "kcal/mol"),
        "a/b/charge": [1, 1],
        "a/b/cell": np.eye(3) * [7, 8, 9],
    }
    first = write(arrays, "1.h5")
    write(arrays | {"a/b/charge": [0, 0]}, "2.h5")
    data = mq.read_hdf5(str(tmp_path / "*.h5"), keys={"positions": "atXYZ"})
    assert len(data) == 4 and [float(g.charge) for g in data] == [1, 1, 0, 0] and data[0].z.tolist() == [1, 1]
    assert data[1].pbc.all() and data[1].cell[0].diagonal().tolist() == [7, 8, 9]
    one = mq.load_dataset(first, keys={"positions": "atXYZ"}, units={"energy": "kcal/mol"})
    np.testing.assert_array_equal(one.values("energy"), data.values("energy")[:2])
    write(arrays | {"a/b/energy": ([1.0, 2.0], "Hartree")}, "2.h5")
    with pytest.raises(DataError, match="state different units or names"):
        mq.read_hdf5(str(tmp_path / "*.h5"), keys={"positions": "atXYZ"})
    write(arrays | {"a/b/atXYZ": (arrays["a/b/atXYZ"], "bohr")}, "2.h5")
    with pytest.raises(DataError, match="state different units or names"):
        mq.read_hdf5(str(tmp_path / "*.h5"), keys={"positions": "atXYZ"})


def test_links_are_not_followed_twice(write, tmp_path):
    path = write(ani())
    with h5py.File(path, "a") as file:
        file["H2/again"] = file["H2O1"]  # the same group under another name
        file["H2O1/up"] = file["/"]
        file["H2O1/soft"] = h5py.SoftLink("/H2")
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/")
    assert len(mq.read_hdf5(path, **ANI, partial="forces")) == 7


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {},
            {"units": {"energy": "eV"}},
            "'dft_total_energy' states the unit 'hartree', and units= says 'eV'",
        ),
        ({}, {"units": {"positions": "Å"}}, "'positions' states the unit 'bohr', and units= says 'Å'"),
        (
            {"oxidane/dft_total_energy": (np.zeros(5), "x")},
            {},
            "states the unit 'x', which is not known; say",
        ),
        (
            {"water/conformations": (moved(WATER, 2), "angstrom"), "water/z": [8, 1, 1]},
            {},
            "states the unit 'angstrom', and .*group oxidane 'bohr'; write the file with one unit",
        ),
        (
            {"water/conformations": moved(WATER, 2), "water/z": [8, 1, 1]},
            {},
            "states the unit None, and .*'bohr'",
        ),
        (
            {
                "water/conformations": (moved(WATER, 2) / Bohr, "bohr"),
                "water/z": [8, 1, 1],
                "water/dft_total_energy": ([-76.0, -76.0], "eV"),
            },
            {},
            "'dft_total_energy' states the unit 'eV', and others of these groups state 'hartree'",
        ),
        (
            {
                "water/conformations": (moved(WATER, 2) / Bohr, "bohr"),
                "water/z": [8, 1, 1],
                "water/dft_total_energy": [-76.0, -76.0],
            },
            {},
            "water: 'dft_total_energy' states no unit, and that of .*oxidane 'hartree'; say it with units=",
        ),
        ({"oxidane/dft_total_energy": (np.zeros(4), "eV")}, {}, r"the shape \(4,\) for 5 structures"),
        ({"oxidane/atomic_numbers": [8, 1]}, {}, r"atomic numbers of shape \(2,\)"),
        ({"oxidane/atomic_numbers": ["O", "H", "Hh"]}, {}, "'Hh' is not the symbol of an element"),
        ({"oxidane/z": [8, 1, 1]}, {}, "'atomic_numbers' and 'z' both look like atomic numbers"),
        ({"oxidane/conformations": (WATER[None, :, :2], "bohr")}, {}, r"\(1, 3, 2\).*wanted positions"),
        ({"oxidane/lattice": np.eye(3)}, {}, "'lattice' would not be read"),
        ({"oxidane/cell": np.eye(2)}, {}, r"'cell' has the shape \(2, 2\)"),
        ({}, {"keys": {"cell": "box"}}, "no array 'box'; found"),
        ({"oxidane/cell": np.eye(3), "oxidane/pbc": [1, 2, 0]}, {}, "three flags, 0 or 1"),
        ({"more/positions": moved(WATER, 2)}, {}, "group more: has no atomic numbers .*keys={'z': ...}"),
        (
            {},
            {"keys": {"positions": "xyz"}},
            r"no group with positions .*found 'oxidane'; name them with keys=",
        ),
        ({}, {"keys": {"energy": "energi"}}, "no 'energi'"),
        ({}, {"index": 5}, "no frame 5"),
    ],
)
def test_refused(write, change, options, message):
    with pytest.raises(DataError, match=message):
        mq.read_hdf5(write(spice() | change), **options)


def test_files_that_are_not_hdf5(tmp_path, write, monkeypatch):
    (tmp_path / "no.h5").write_bytes(b"something else")
    with pytest.raises(DataError, match="no.h5: not a readable HDF5 file"):
        mq.read_hdf5(tmp_path / "no.h5")
    path = write(ani())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="damaged or truncated"):
        mq.load_dataset(path)
    monkeypatch.setattr("molequi.util.optional.find_spec", lambda package: None)
    with pytest.raises(
        MissingPackageError, match=r"h5py, which is not installed: pip install 'molequi\[hdf5\]'"
    ):
        mq.read_hdf5(path)


def test_files_of_mace_are_those_of_ase(write):
    """The same structures, as extended XYZ and as MACE prepares them."""
    frames = []
    for k in range(1, 3):
        atoms = Atoms("OH2", WATER + 0.001 * k, cell=np.eye(3) * 9, pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=float(k), forces=np.full((3, 3), k / 10))
        frames.append(atoms)
    wanted = mq.from_atoms(frames)
    data = mq.read_hdf5(write(mace()), index="1:3", units={"energy": "eV", "forces": "eV/Å"})
    for a, b in zip(wanted, data):
        np.testing.assert_allclose(a.pos, b.pos)
        np.testing.assert_array_equal(a.cell, b.cell)
        np.testing.assert_allclose(a.targets["forces"], b.targets["forces"])
