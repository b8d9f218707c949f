"""Bad files and labels, each refused with its place, its value and what to do; tests are named by the row of a list."""

import gzip
import os
import pickle
import re
import zipfile
from pathlib import Path
from unittest import mock

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from molequi.data import DataWarning
from molequi.errors import DataError
from molequi.readers import from_atoms, read_ase, read_extxyz, read_npz

HEAD = 'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy} pbc="F F F"'
ROWS = ["O 0.0 0.0 0.0 0.0 0.1 0.0", "H 0.0 0.0 1.0 0.0 -0.1 0.0", "H 0.0 1.0 0.0 0.0 0.0 0.0"]


def frame(rows=ROWS, count=None, head=HEAD, energy=-76.0):
    return "\n".join([str(len(rows) if count is None else count), head.format(energy=energy), *rows]) + "\n"


def write(folder, *frames, name="train.xyz"):
    path = folder / name
    path.write_text("".join(frames))
    return path


def refused(path, *words, **options):
    with pytest.raises(DataError) as caught:
        read_ase(path, **options)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)


def changed(row, column, value):
    words = ROWS[row].split()
    words[column] = value
    return [*ROWS[:row], " ".join(words), *ROWS[row + 1 :]]


def test_control(tmp_path):
    data = read_ase(write(tmp_path, frame(), frame()))
    assert len(data) == 2 and set(data.quantities) == {"energy", "forces"}


def test_A1_cut_within_a_line(tmp_path):
    refused(
        write(tmp_path, frame(), frame(), frame()[:-15]),
        "frame 2 (line 15)",
        "atom 2 has 4 columns, wanted 7",
        "looks truncated",
    )


def test_A2_cut_after_a_line(tmp_path):
    refused(
        write(tmp_path, frame(), frame(ROWS[:2], count=3)),
        "frame 1 (line 6)",
        "wanted 3 atoms, found 2",
        "truncated",
    )


@pytest.mark.parametrize("end", ["3\n", "3"])
def test_A3_cut_after_the_count(tmp_path, end):
    refused(write(tmp_path, frame(), end), "frame 1 (line 6)", "comment line", "truncated")


def test_A4_cut_at_the_end_of_a_frame(tmp_path):
    cache = tmp_path / "cache"
    read_ase(write(tmp_path, frame(), frame(energy=-75))).connected(3.0, cache)
    shorter = read_ase(write(tmp_path, frame()))
    with pytest.warns(DataWarning, match="1 frames, 2 when it was last prepared"):
        shorter.connected(3.0, cache)


def test_A4_last_number_may_be_cut(tmp_path):
    path = write(tmp_path, frame()[:-1])
    with pytest.warns(DataWarning, match="last line does not end"):
        read_ase(path)


def test_A5_empty(tmp_path):
    refused(write(tmp_path, ""), "no frames")
    refused(write(tmp_path, "", name="empty.traj"), "no frames")


def test_A6_no_atoms(tmp_path):
    refused(write(tmp_path, frame(), "0\nenergy=1\n"), "frame 1 (line 6)", "0 atoms")
    with pytest.raises(DataError, match="frame 1: no atoms"):
        from_atoms([ase.Atoms("H"), ase.Atoms()])


@pytest.mark.parametrize(
    "count, words",
    [(2, ["frame 1 (line 5)", "frame 0 says 2 atoms"]), (4, ["frame 1 (line 7)", "frame 0 says 4 atoms"])],
)
def test_A7_wrong_count(tmp_path, count, words):
    refused(write(tmp_path, frame(count=count), frame()), *words)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_A8_energy_not_finite(tmp_path, value):
    bad = [frame(energy=value)] * 7
    refused(
        write(tmp_path, frame(), *bad),
        "frame 1 (line 6): energy is",
        value,
        "and 6 more",
        "frame 5 (line 26)",
        "…",
    )


def test_A9_energy_is_text(tmp_path):
    refused(write(tmp_path, frame(energy="abc")), "frame 0 (line 1)", "energy is 'abc'; wanted numbers")


@pytest.mark.parametrize("key", ["Energy", "REF_energy", "dft_energy"])
def test_A10_energy_under_another_key(tmp_path, key):
    path = write(tmp_path, frame(head=HEAD.replace("energy=", f"{key}=")))
    refused(
        path,
        "frame 0 (line 1)",
        "no 'energy'",
        "1 of 1",
        f"did you mean {key!r}?",
        f"keys={{'energy': {key!r}}}",
        quantities=["energy"],
    )
    assert f"not read: {key} (1)" in read_ase(path).summary()
    assert read_ase(path, keys={"energy": key}).values("energy").item() == -76.0


def test_A11_forces_under_another_key(tmp_path):
    path = write(tmp_path, frame(head=HEAD.replace("forces", "force")))
    refused(
        path,
        "no 'forces'",
        "did you mean 'force'?",
        "keys={'forces': 'force'}",
        quantities=["energy", "forces"],
    )
    assert "force (1)" in read_ase(path).summary()


def test_A12_some_frames_without_forces(tmp_path):
    bare = frame([" ".join(r.split()[:4]) for r in ROWS], head=HEAD.replace(":forces:R:3", ""))
    path = write(tmp_path, frame(), bare, frame(), bare)
    refused(path, "frame 1 (line 6)", "no 'forces'", "2 of 4 structures", "partial=['forces']")
    data = read_ase(path, partial=["forces"])
    assert data.known("forces").tolist() == [True, False, True, False]
    assert np.isnan(data[1].targets["forces"].numpy()).all() and data[1].targets["forces"].shape == (3, 3)
    refused(path, "no 'stress' (missing in 4 of 4", partial=["forces", "stress"])


def test_A13_one_component_is_nan(tmp_path):
    refused(
        write(tmp_path, frame(), frame(changed(1, 5, "nan"))),
        "frame 1 (line 6): forces of atom 1 is [0.0, nan, 0.0]",
    )


@pytest.mark.parametrize(
    "word, hint",
    [
        ("********", "overflowed its Fortran format"),
        ("1.0D+00", "write exponents with E"),
        ("x", "wanted a number"),
    ],
)
def test_A14_not_a_number(tmp_path, word, hint):
    refused(
        write(tmp_path, frame(), frame(changed(2, 4, word))),
        "frame 1 (line 10, column 5)",
        "forces of atom 2",
        repr(word),
        hint,
    )


def test_A15_stress_layouts_virial_and_sign(tmp_path):
    box = 'Lattice="4 0 0 0 5 0 0 0 6" '
    matrix = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])

    def read(text, name="stress", **options):
        return read_ase(
            write(tmp_path, frame(head=f'{box}{name}="{text}" ' + HEAD.replace("F F F", "T T T"))), **options
        )[0].targets["stress"][0]

    assert (read("1 2 3 4 5 6").numpy() == matrix).all()
    assert (read("1 6 5 6 2 4 5 4 3").numpy() == matrix).all()
    assert (read("1 2 3 6 4 5", keys={"stress": {"order": "vasp"}}).numpy() == matrix).all()
    assert (read("1 2 3 6 5 4", keys={"stress": {"order": "xx yy zz xy xz yz"}}).numpy() == matrix).all()
    assert (read("1 2 3 4 5 6", "raw", keys={"stress": {"key": "raw", "sign": -1}}).numpy() == -matrix).all()
    virial = read("1 2 3 4 5 6", "virial", keys={"stress": {"key": "virial", "virial": True}})
    np.testing.assert_allclose(virial.numpy(), -matrix / 120, rtol=1e-14)
    kbar = read("1 2 3 4 5 6", units={"stress": "kbar"})
    np.testing.assert_allclose(kbar.numpy(), matrix * ase.units.GPa / 10, rtol=1e-7)
    with pytest.raises(DataError, match="no 'stress'"):
        read("1 2 3 4 5 6", "virial", quantities=["stress"])
    with pytest.raises(DataError, match="wanted a symmetric tensor"):
        read("1 6 5 7 2 4 5 4 3")
    with pytest.raises(DataError, match="wanted 6 or 9"):
        read("1 2 3")


def test_A15_virial_without_a_cell(tmp_path):
    path = write(tmp_path, frame(head='w="1 2 3 4 5 6" ' + HEAD))
    refused(path, "no full cell", keys={"stress": {"key": "w", "virial": True}})


def test_A16_kcal_read_as_ev(tmp_path):
    loud = [" ".join([*r.split()[:4], "40.0", "-30.0", "20.0"]) for r in ROWS]
    with pytest.warns(DataWarning, match="root mean square of 31.1 eV/Å.*kcal/mol/Å"):
        read_ase(write(tmp_path, frame(loud)))


def test_A17_positions_in_another_unit(tmp_path):
    tiny = [
        " ".join([r.split()[0], *(str(float(w) * 0.3) for w in r.split()[1:4]), *r.split()[4:]]) for r in ROWS
    ]
    path = write(tmp_path, frame(tiny), frame(tiny))
    refused(path, "2 of 2 structures have atoms closer than 0.6 Å", "units={'positions'")
    assert (
        read_ase(
            path,
            units={"positions": "Bohr", "energy": "eV"},
            keys={"forces": None},
            quantities=["energy"],
            index=0,
        )[0].num_nodes
        == 3
    )


def test_A18_energies_per_atom_mixed_in(tmp_path):
    frames = [frame(ROWS[:n], energy=e) for n, e in [(3, -300.0), (2, -200.0), (3, -100.0), (2, -100.0)]]
    with pytest.warns(DataWarning, match="eV an atom: total energies mixed"):
        read_ase(write(tmp_path, *frames))


def test_A19_coincident_atoms(tmp_path):
    refused(
        write(tmp_path, frame(), frame(changed(1, 3, "0.05"))),
        "frame 1 (line 6)",
        "atoms 0 and 1 are 0.0500 Å apart",
    )


def test_A19_coincident_with_an_image():
    atoms = ase.Atoms("Si2", positions=[[0, 0, 0.02], [0, 0, 4.97]], cell=[5, 5, 5], pbc=True)
    with pytest.raises(DataError, match="frame 0: atoms 0 and 1 are 0.05"):
        from_atoms([atoms])


def test_A20_the_same_frame_in_two_parts(tmp_path):
    data = read_ase(write(tmp_path, frame(), frame(changed(0, 1, "0.1")), frame()))
    with pytest.warns(
        DataWarning, match="1 structures occur in more than one part.*frame 0 in train is .*frame 2 in test"
    ):
        data.split({"train": [0, 1], "test": [2]})


def test_A21_periodic_without_a_cell(tmp_path):
    zeros = 'Lattice="0 0 0 0 0 0 0 0 0" '
    refused(
        write(tmp_path, frame(head=zeros + HEAD.replace("F F F", "T T T"))),
        "frame 0 (line 1)",
        "periodic direction needs a lattice vector",
    )
    # Control: zeros without a word on periodicity, and with pbc F, are no cell.
    for head in (zeros + HEAD, zeros + HEAD.replace(' pbc="F F F"', "")):
        assert read_ase(write(tmp_path, frame(head=head)))[0].cell is None


def test_A22_mixed_periodicity():
    slab = ase.Atoms("Cu", cell=[2.5, 2.5, 0], pbc=[True, True, False])
    wire = ase.Atoms("Cu", cell=[0, 0, 2.5], pbc=[False, False, True])
    data = from_atoms([slab, wire, ase.Atoms("Cu")])
    assert [None if g.pbc is None else g.pbc[0].tolist() for g in data] == [
        [True, True, False],
        [False, False, True],
        None,
    ]
    connected = data.connected(2.6)
    assert [g.edge_index.shape[1] for g in connected] == [4, 2, 0]


def test_A23_awkward_cells_give_the_same_neighbours():
    """A primitive cell of fcc copper, a left-handed one, a skewed one: twelve nearest neighbours in each."""
    a = 3.6
    primitive = np.array([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]])
    left = primitive[[1, 0, 2]]
    skewed = primitive + np.array([[0, 0, 0], 3 * primitive[0], 5 * primitive[0]])
    assert np.linalg.det(primitive) * np.linalg.det(left) < 0
    data = from_atoms([ase.Atoms("Cu", cell=cell, pbc=True) for cell in (primitive, left, skewed)]).connected(
        2.7
    )
    assert [g.edge_index.shape[1] for g in data] == [12, 12, 12]


def test_A24_position_or_cell_not_finite(tmp_path):
    refused(write(tmp_path, frame(changed(1, 2, "nan"))), "frame 0 (line 1)", "position of atom 1")
    refused(
        write(tmp_path, frame(head='Lattice="nan 0 0 0 5 0 0 0 5" ' + HEAD.replace("F F F", "T T T"))),
        "frame 0 (line 1)",
        "cell",
    )


def test_A25_unknown_symbol(tmp_path):
    refused(
        write(tmp_path, frame(), frame(changed(1, 0, "Xx"))),
        "frame 1 (line 9)",
        "'Xx' is not the symbol of an element",
    )


@pytest.mark.parametrize("z", [0, 119, -1])
def test_A26_no_element(tmp_path, z):
    rows = [f"{z} 0 0 0 0 0 0", "1 0 0 1 0 0 0"]
    path = write(tmp_path, frame(rows, head=HEAD.replace("species:S:1", "Z:I:1")))
    refused(path, "frame 0 (line 1)", *([] if z < 0 else [f"atom 0 has the atomic number {z}"]))
    refused(write(tmp_path, frame(changed(0, 0, "X"))), "atomic number 0", "dummy")


def test_A27_element_that_a_fit_cannot_know(tmp_path):
    lone = frame(["He 0 0 0 0 0 0", *ROWS[1:]])
    data = read_ase(write(tmp_path, frame(), frame(ROWS[:2]), frame(ROWS[:1]), lone))
    with pytest.warns(DataWarning, match="He occur in one structure only.*reference_energies="):
        data.statistics(3.0)
    tied = read_ase(
        write(
            tmp_path,
            frame(),
            frame([*ROWS, *(r.replace("0.0 0.0", "3.0 0.0", 1) for r in ROWS)], energy=-152),
        )
    )
    with pytest.warns(DataWarning, match="H, O cannot be told apart"):
        tied.statistics(3.0)


def test_A28_one_atom(tmp_path):
    data = read_ase(write(tmp_path, frame(["H 0 0 0 0 0 0"], energy=-13.6))).connected(5.0)
    assert data[0].edge_index.shape == (2, 0)
    statistics = data.statistics(5.0)
    assert (
        statistics.reference_energies[1] == pytest.approx(-13.6)
        and statistics.mean_neighbors == 0
        and statistics.scale["forces"] == 1.0
    )


@pytest.mark.parametrize("kind", ["bom", "crlf", "gz", "blank lines"])
def test_A29_harmless_bytes(tmp_path, kind):
    text = frame() + frame(energy=-75)
    path = tmp_path / ("train.xyz.gz" if kind == "gz" else "train.xyz")
    path.write_bytes(
        {
            "bom": b"\xef\xbb\xbf" + text.encode(),
            "crlf": text.replace("\n", "\r\n").encode(),
            "gz": gzip.compress(text.encode()),
            "blank lines": (frame() + "\n\n" + frame(energy=-75) + "\n").encode(),
        }[kind]
    )
    assert read_ase(path).values("energy").tolist() == [-76, -75]


def test_A29_damaged_gz(tmp_path):
    path = tmp_path / "train.xyz.gz"
    path.write_bytes(gzip.compress(frame().encode() * 50)[:-20])
    refused(path, "gzip")


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\x00\x00\xff", b"\x00\x01\x02\x03", b"hello\nworld\n"]
)
def test_A30_not_an_extxyz_file(tmp_path, content):
    path = tmp_path / "train.xyz"
    path.write_bytes(content)
    refused(path, "not an extxyz file")


def test_A33_missing_folder_or_forbidden(tmp_path):
    path = write(tmp_path, frame())
    refused(tmp_path / "trian.xyz", "no such file; did you mean 'train.xyz'?")
    refused(tmp_path / "nowhere" / "train.xyz", "no folder")
    refused(tmp_path, "is a folder")
    with pytest.raises(DataError, match="no file matches"):
        read_ase(str(tmp_path / "*.extxyz"))
    with mock.patch("builtins.open", side_effect=PermissionError(13, "Permission denied")):
        refused(path, "Permission denied")


def test_A34_truncated_traj_and_db(tmp_path):
    atoms = ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.75]])
    atoms.calc = SinglePointCalculator(atoms, energy=-31.0, forces=np.zeros((2, 3)))
    traj = tmp_path / "md.traj"
    ase.io.write(traj, [atoms] * 5)
    assert len(read_ase(traj)) == 5
    traj.write_bytes(traj.read_bytes()[:-200])
    refused(traj, "cannot read", "truncated")
    with ase.db.connect(tmp_path / "all.db") as db:
        for _ in range(50):
            db.write(atoms)
    assert read_ase(tmp_path / "all.db").values("energy").tolist() == [-31.0] * 50
    damaged = tmp_path / "half.db"
    damaged.write_bytes((tmp_path / "all.db").read_bytes()[:5000])
    refused(damaged, "cannot read")


class Probe:
    """Unpickling it runs code, which leaves a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


UNITS = {"energy": "kcal/mol", "forces": "kcal/mol/Å"}


def test_A35_objects_in_npz_are_not_loaded(tmp_path):
    path = tmp_path / "md.npz"
    np.savez(path, z=[1], R=np.array([[[Probe(tmp_path / "ran")] * 3]], dtype=object))
    with pytest.raises(DataError, match="pickled Python objects, which are never loaded"):
        read_npz(path, units=UNITS)
    assert not (tmp_path / "ran").exists()
    np.load(path, allow_pickle=True)["R"]  # control: the probe works
    assert (tmp_path / "ran").exists()


def test_A35_objects_in_a_column_that_nobody_asked_for(tmp_path):
    path = tmp_path / "molecules.npz"
    arrays = dict(n_atoms=[1, 1], z=[1, 2], pos=np.zeros((2, 3)), gap=[1.0, 2.0])
    np.savez(path, **arrays)
    assert len(read_npz(path, quantities=["gap"], units={"gap": "eV"})) == 2
    np.savez(path, **arrays, notes=np.array([Probe(tmp_path / "ran"), None], dtype=object))
    with pytest.raises(
        DataError, match="molecules.npz: 'notes' holds pickled Python objects, which are never loaded"
    ):
        read_npz(path, quantities=["gap"], units={"gap": "eV"})
    assert not (tmp_path / "ran").exists()


def test_A36_truncated_molecules(tmp_path):
    path = tmp_path / "molecules.npz"
    random = np.random.default_rng(0)
    np.savez_compressed(
        path,
        n_atoms=np.ones(500, int),
        z=np.ones(500, int),
        pos=random.normal(size=(500, 3)),
        gap=random.normal(size=500),
    )
    whole = path.read_bytes()
    data = read_npz(path, units={"gap": "eV"})
    for size in (*range(0, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="molecules.npz: .*npz file"):
            read_npz(path, units={"gap": "eV"})
    # a byte that changed on the way is found, or was one that says nothing (a time, a gap)
    noticed = 0
    for place in range(0, len(whole), 401):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            assert read_npz(path, units={"gap": "eV"}).digest == data.digest
        except DataError as error:
            assert "molecules.npz" in str(error)
            noticed += 1
    assert noticed > 0.9 * len(range(0, len(whole), 401))


def test_A36_truncated_npz(tmp_path):
    path = tmp_path / "md.npz"
    np.savez(path, z=[1, 1], R=np.zeros((50, 2, 3)))
    whole = path.read_bytes()
    for size in (len(whole) // 2, 100, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="md.npz: .*npz file"):
            read_npz(path, units=UNITS)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("R.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(DataError, match="md.npz"):
        read_npz(path, units=UNITS)


@pytest.mark.parametrize("name", ["model.pt", "data.pkl", "data.npz", "data.xyz", "data.traj", "data.db"])
def test_A37_pickles_do_not_run(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Probe(tmp_path / "ran")))
    for reader in (read_ase, read_extxyz, lambda p: read_npz(p, units=UNITS)):
        with pytest.raises(DataError, match=name):
            reader(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())  # control
    assert (tmp_path / "ran").exists()


def test_A37_nothing_of_ours_unpickles():
    import molequi

    forbidden = re.compile(
        r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|\bpickle\.loads?\(|(?<![.\w])(eval|exec)\("
    )
    loads = re.compile(r"torch\.load\((?!.*weights_only=True)")
    for file in Path(molequi.__file__).parent.rglob("*.py"):
        for pattern in (forbidden, loads):
            assert not pattern.search(file.read_text()), f"{file}: {pattern.search(file.read_text())[0]}"


STRESS = np.array([[0.01, 0.002, 0.003], [0.002, -0.02, 0.004], [0.003, 0.004, 0.005]])


def _with_virial(path, virial, stress=STRESS, voigt=False):
    """A cell of 4 x 5 x 6 Å with both labels."""
    stress = stress.ravel()[[0, 4, 8, 5, 2, 1]] if voigt else stress
    words = {"stress": stress, "virial": virial}
    text = " ".join(f'{name}="{" ".join(f"{x:.9g}" for x in np.ravel(v))}"' for name, v in words.items())
    path.write_text(
        f'1\nLattice="4 0 0 0 5 0 0 0 6" Properties=species:S:1:pos:R:3 {text} energy=-1\nAr 0 0 0\n'
    )
    return path


def test_a_stress_agrees_with_the_virial_beside_it(tmp_path):
    for voigt in (False, True):
        path = _with_virial(tmp_path / "a.xyz", -120 * STRESS, voigt=voigt)
        np.testing.assert_allclose(read_extxyz(path).values("stress")[0].numpy(), STRESS, rtol=1e-8)


@pytest.mark.parametrize(
    "virial, stress, said",
    [
        (120 * STRESS, STRESS, "'virial' is -1 times -V times the stress.*opposite sign"),
        (-120 * STRESS, 160.21766 * STRESS, "fits a stress in GPa, which units={'stress': 'GPa'} says"),
        (-120 * STRESS + 0.3 * np.eye(3), STRESS, "not -V times the stress in any unit"),
    ],
)
def test_a_stress_that_contradicts_the_virial_is_refused(tmp_path, virial, stress, said):
    path = _with_virial(tmp_path / "a.xyz", virial, stress)
    with pytest.raises(DataError, match=said) as caught:
        read_extxyz(path)
    assert str(caught.value).startswith(f"{path}, frame 0") and "'virial': True" in str(caught.value)
    # What the message says to type.
    right = read_extxyz(path, keys={"stress": "stress"}).values("stress")[0].numpy()
    np.testing.assert_allclose(right, stress, rtol=1e-8)
    by_virial = read_extxyz(path, keys={"stress": {"key": "virial", "virial": True}})
    np.testing.assert_allclose(by_virial.values("stress")[0].numpy(), -virial / 120, rtol=1e-8)
    if "GPa" in said:
        in_gpa = read_extxyz(path, units={"stress": "GPa"}).values("stress")[0].numpy()
        np.testing.assert_allclose(in_gpa, STRESS, rtol=1e-5)


def test_arrays_with_a_stress_and_a_virial(tmp_path):
    cell = np.diag([4.0, 5.0, 6.0])[None]
    arrays = dict(n_atoms=[1], z=[18], pos=[[0.0, 0, 0]], cell=cell, stress=STRESS[None])
    np.savez(tmp_path / "a.npz", **arrays, virial=-120 * STRESS[None])
    assert "stress" in read_npz(tmp_path / "a.npz", units={"stress": "eV/Å^3"}).quantities
    np.savez(tmp_path / "a.npz", **arrays, virial=120 * STRESS[None])
    with pytest.raises(DataError, match="a.npz, structure 0: 'virial' is -1 times"):
        read_npz(tmp_path / "a.npz", units={"stress": "eV/Å^3"})
