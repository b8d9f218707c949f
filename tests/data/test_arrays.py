"""MD17 arrays."""

import ase.units
import numpy as np
import pytest

from molequi.data import read_npz
from molequi.errors import DataError

KCAL = ase.units.kcal / ase.units.mol
UNITS = {"energy": "kcal/mol", "forces": "kcal/mol/Å"}
RANDOM = np.random.default_rng(0)
POS = np.array([[0.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]) + 0.05 * RANDOM.normal(size=(6, 3, 3))
E, F = RANDOM.normal(size=6), RANDOM.normal(size=(6, 3, 3))


@pytest.fixture
def write(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "md.npz", **arrays)
        return tmp_path / "md.npz"

    return write


@pytest.mark.parametrize("names", [("nuclear_charges", "coords", "energies", "forces"), ("z", "R", "E", "F")])
@pytest.mark.parametrize("column", [False, True])
def test_layouts(write, names, column):
    z, r, e, f = names
    data = read_npz(
        write(
            **{z: np.array([8, 1, 1], np.uint8), r: POS, e: E[:, None] if column else E, f: F, "old_energies": E + 1}
        ),
        units=UNITS,
    )
    assert set(data.quantities) == {"energy", "forces"} and data[0].z.tolist() == [8, 1, 1]
    np.testing.assert_allclose(data.values("energy"), E * KCAL, rtol=1e-7)
    np.testing.assert_allclose(data[4].targets["forces"], F[4] * KCAL, rtol=1e-7)
    np.testing.assert_array_equal(data[5].pos, POS[5])
    assert (
        data.unused == {"old_energies": 6} and data.sources[0].frames == 6 and data.info["old_energies"][2] == E[2] + 1
    )


def test_keys_index_and_numbers_by_frame(write):
    z = np.array([[8, 1, 1]] * 5 + [[1, 8, 1]])
    path = write(z=z, R=POS, E=E, F=F, old_E=E + 1)
    data = read_npz(path, units=UNITS, index="::-2", keys={"energy": "old_E"})
    np.testing.assert_allclose(data.values("energy"), (E[::-2] + 1) * KCAL, rtol=1e-7)
    assert data[0].z.tolist() == [1, 8, 1]
    assert set(read_npz(path, units=UNITS, quantities=["forces"]).quantities) == {"forces"}
    assert (
        read_npz(write(a=[8, 1, 1], b=POS), keys={"z": "a", "positions": "b"}, units={"positions": "nm"})[0].pos[1, 2]
        == 10 * POS[0, 1, 2]
    )


@pytest.mark.parametrize(
    "arrays, options, sentence",
    [
        (dict(z=[8, 1, 1], R=POS, E=E), {"units": None}, "does not say the unit of energy.*kcal/mol"),
        (dict(z=[8, 1, 1], R=POS, E=E, F=F), {"units": {"energy": "kcal/mol"}}, "no unit for forces|unit of forces"),
        (dict(z=[8, 1], R=POS), {}, r"atomic numbers of shape \(2,\)"),
        (dict(z=[8.0, 1, 1], R=POS), {}, "integers"),
        (dict(z=[8, 1, 1], pos=POS), {}, "no array 'coords' or 'R'; found 'z', 'pos'"),
        (dict(z=[8, 1, 1], R=POS, E=E[:5]), {}, r"energy has the shape \(5,\) for 6 frames"),
        (dict(z=[8, 1, 1], R=POS, E=np.where(np.arange(6) == 2, np.nan, E)), {}, "frame 2: E is nan"),
        (dict(z=[8, 1, 0], R=POS), {}, "frame 0: atom 2 has the atomic number 0"),
        (dict(z=[8, 1, 1], R=POS[:0]), {}, "no frames"),
        (dict(z=[8, 1, 1], R=POS), {"quantities": ["energy"]}, "no 'energy' .missing in 6 of 6"),
        (dict(z=[8, 1, 1], R=POS), {"index": 6}, "no frame 6; the file has 6"),
    ],
)
def test_refused(write, arrays, options, sentence):
    with pytest.raises(DataError, match=sentence):
        read_npz(write(**arrays), **{"units": UNITS, **options})


def test_single_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", POS)
    with pytest.raises(DataError, match="a single array"):
        read_npz(tmp_path / "a.npy")


def test_revised_md17(real_data):
    """The total energy of ethanol, about -155 Hartree with PBE in a small basis, comes out only if kcal/mol was "
    "converted."""
    data = read_npz(real_data / "rmd17" / "rmd17_ethanol_train_01.npz", units=UNITS)
    assert len(data) == 1000 and data.elements == (1, 6, 8)
    raw = np.load(real_data / "rmd17" / "rmd17_ethanol_train_01.npz")
    np.testing.assert_allclose(data.values("energy"), raw["energies"] * KCAL, rtol=1e-7)
    assert data.values("energy").mean().item() / ase.units.Hartree == pytest.approx(-154.7, abs=0.5)
