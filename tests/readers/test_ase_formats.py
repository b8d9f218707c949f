"""What ASE's readers invent, guess or lose is removed, refused or read; one reader serves all commands."""

import gzip

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import molequi as mq
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.readers import read_ase
from molequi.readers.atoms import read_frames, split_frames

BOX = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 8\n0 8\n0 8\nITEM: ATOMS "
FORCES = "x y z fx fy fz\n"


def dump(tmp_path, columns, rows, head=""):
    path = tmp_path / "d.lammpstrj"
    path.write_text(head + BOX + columns + FORCES + "".join(row + "\n" for row in rows))
    return path


def test_the_energy_of_zero_of_lammps_dumps_is_no_label(tmp_path):
    rows = ["1 Cu 1 1 1 .1 .2 .3", "2 Cu 1 1 3.4 -.1 -.2 -.3"]
    path = dump(tmp_path, "id element ", rows)
    assert ase.io.read(path).get_potential_energy() == 0.0  # the control: ASE invents it
    data = read_ase(path)
    assert list(data.quantities) == ["forces"] and data.elements == (29,)
    assert data.values("forces").tolist() == [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]
    with pytest.raises(DataError, match="no 'energy'"):
        read_ase(path, quantities=["energy", "forces"])


def test_types_of_lammps_are_no_elements(tmp_path):
    rows = ["1 1 1 1 1 0 0 0", "2 1 1 1 3.4 0 0 0"]
    with pytest.raises(DataError, match=r"\(line 9\).*no column 'element'(.|\n)*dump_modify 1 element"):
        read_ase(dump(tmp_path, "id type ", rows))
    by_mass = dump(tmp_path, "id mass ", ["1 63.546 1 1 1 0 0 0", "2 26.98 1 1 3.4 0 0 0"])
    assert read_ase(by_mass).elements == (13, 29)
    with pytest.raises(DataError, match=r"\(line 2\): units 'real', and ASE reads .* 'metal'"):
        read_ase(dump(tmp_path, "id mass ", rows, head="ITEM: UNITS\nreal\n"))
    crystal, path = bulk("Cu", cubic=True), tmp_path / "cu.data"
    ase.io.write(path, crystal, format="lammps-data")
    assert set(ase.io.read(path, format="lammps-data").numbers) == {1}  # the control: hydrogen
    with pytest.raises(DataError, match="without the section 'Masses'"):
        read_ase(path, format="lammps-data")
    ase.io.write(path, crystal, format="lammps-data", masses=True)
    assert read_ase(path, format="lammps-data").elements == (29,)
    with pytest.raises(DataError, match="a binary LAMMPS dump does not say its elements"):
        from molequi.readers.ase_formats import check_format

        check_format([crystal], path, "lammps-dump-binary")


def test_elements_that_ase_guesses_from_names(tmp_path):
    atom = "ATOM      1  CA  ALA A   1       0.000   0.000   0.000  1.00  0.00{}\n"
    path = tmp_path / "a.pdb"
    path.write_text(atom.format("           C"))
    assert read_ase(path).elements == (6,)
    path.write_text(atom.format(""))
    assert ase.io.read(path).numbers.tolist() == [20]  # the control: ASE takes it for calcium
    with pytest.raises(DataError, match=r"a.pdb \(line 1\): no element in columns 77 and 78"):
        read_ase(path)
    gro = tmp_path / "a.gro"
    gro.write_text("ions\n    1\n    1NA      NA    1   0.000   0.000   0.000\n   2.0   2.0   2.0\n")
    with pytest.warns(DataWarning, match=r"ASE guesses them from the names of the atoms \(NA → N\)"):
        read_ase(gro)


def test_cells_that_ase_loses_or_adds(tmp_path):
    path, water = tmp_path / "a.pdb", molecule("H2O")
    ase.io.write(path, water)
    no_crystal = "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n"
    path.write_text(no_crystal + path.read_text())
    assert ase.io.read(path).pbc.all()  # the control
    assert read_ase(path)[0].pbc is None
    ase.io.write(tmp_path / "a.con", bulk("Cu", cubic=True), format="eon")
    assert not ase.io.read(tmp_path / "a.con", format="eon").pbc.any()  # the control
    assert read_ase(tmp_path / "a.con", format="eon")[0].pbc.all()


CELL = 'Lattice="9 0 0 0 9 0 0 0 9"'


@pytest.mark.parametrize(
    ("words", "pbc"),
    [
        ('"T T F"', [1, 1, 0]),
        ('"t f t"', [1, 0, 1]),
        ("F", [0, 0, 0]),
        ("FFF", [0, 0, 0]),
        ('".FALSE. .FALSE. .TRUE."', [0, 0, 1]),
        ('"1 0 0"', [1, 0, 0]),
        (None, [1, 1, 1]),
    ],
)
def test_flags_of_periodic_directions(tmp_path, words, pbc):
    path = tmp_path / "a.xyz"
    path.write_text(f"1\n{CELL} {'' if words is None else f'pbc={words}'}\nH 0 0 0\n")
    assert read_frames(path)[0].pbc.tolist() == [bool(flag) for flag in pbc]


@pytest.mark.parametrize("words", ["no", "none", '"no no no"', '"p p f"', '"T F"', "2"])
def test_other_words_are_no_flags(tmp_path, words):
    path = tmp_path / "a.xyz"
    path.write_text(f"1\n{CELL} pbc={words}\nH 0 0 0\n")
    with pytest.raises(DataError, match=r"a.xyz, frame 0 \(line 2\): pbc=.*; wanted T or F for each lattice"):
        read_ase(path)


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ('lattice="9 0 0 0 9 0 0 0 9"', 'lattice="…" would not be read.*wanted Lattice='),
        ('Cell="9 9 9"', 'Cell="…" would not be read'),
        (f'PBC="F F F" {CELL}', "PBC=…: wanted the name pbc"),
        ("# CELL(abcABC): 9 9 9 90 90 90 Step: 0 positions{atomic_unit} cell{atomic_unit}", "of i-PI"),
    ],
)
def test_a_cell_is_read_or_refused(tmp_path, comment, message):
    path = tmp_path / "a.xyz"
    path.write_text(f"1\n{comment}\nH 0 0 0\n")
    with pytest.raises(DataError, match=rf"frame 0 \(line 2\): .*{message}"):
        read_ase(path)


def rows(tmp_path, metadata=None, **written):
    path = tmp_path / "x.db"
    path.unlink(missing_ok=True)
    with ase.db.connect(path) as db:
        db.write(bulk("Cu", cubic=True), **written)
        if metadata:
            db.metadata = metadata
    return path


def test_labels_in_data_and_key_value_pairs_of_databases(tmp_path):
    labels = {"energy": np.array([-1.0]), "forces": np.full((4, 3), 0.5)}
    path = rows(tmp_path, my_energy=-2.0, data=labels)
    data = read_ase(path)
    assert data.values("energy").tolist() == [-1.0] and (data.values("forces") == 0.5).all()
    assert data.info["my_energy"] == (-2.0,)
    assert read_ase(path, keys={"energy": "my_energy"}).values("energy").tolist() == [-2.0]
    with pytest.raises(DataError, match=r"no 'stress'.*found 'energy', 'forces', 'my_energy'"):
        read_ase(path, quantities=["stress"])


def test_two_values_of_one_name_in_a_database(tmp_path):
    path = rows(tmp_path, my_energy=-2.0, data={"my_energy": -3.0})
    with pytest.raises(DataError, match=r"row 1: 'my_energy' is -2.0 among .* -3.0 in data; wanted one"):
        read_ase(path)
    frame = bulk("Cu", cubic=True)
    frame.calc = SinglePointCalculator(frame, energy=-5.0)
    (tmp_path / "y").mkdir()
    with ase.db.connect(tmp_path / "y" / "x.db") as db:
        db.write(frame, data={"energy": np.array([-1.0]), "note": {"a": 1}})
    with pytest.raises(DataError, match="'energy' has different values in info, arrays and calculator"):
        read_ase(tmp_path / "y" / "x.db")


def test_units_that_the_metadata_of_a_database_state(tmp_path):
    """As SchNetPack writes them. 1 kcal/mol is 0.0433641 eV (NIST), 1 Bohr 0.529177 Å."""
    units = {"energy": "kcal/mol", "forces": "kcal/mol/Ang"}
    labels = {"energy": np.array([-1.0]), "forces": np.full((4, 3), 1.0)}
    path = rows(tmp_path, {"_property_unit_dict": units, "_distance_unit": "Bohr"}, data=labels)
    data = read_ase(path)
    assert data.values("energy").item() == pytest.approx(-0.0433641, abs=1e-7)
    assert data.values("forces")[0, 0].item() == pytest.approx(0.0433641, abs=1e-7)
    assert data[0].cell[0, 0, 0].item() == pytest.approx(bulk("Cu", cubic=True).cell[0, 0] * 0.529177, 1e-6)
    given = read_ase(path, units={"energy": "eV", "forces": "eV/Å", "positions": "Å"})
    assert given.values("energy").item() == -1.0
    other = rows(tmp_path, None, data=labels).rename(tmp_path / "z.db")
    path = rows(tmp_path, {"_property_unit_dict": units}, data=labels)
    with pytest.raises(DataError, match="state different units of 'energy': None, kcal/mol; read each one"):
        read_ase([path, other])


def test_frames_named_in_a_path(tmp_path):
    frames = [Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2 + k / 10]], info={"energy": float(k)}) for k in range(4)]
    path = tmp_path / "run@300K.xyz"
    ase.io.write(path, frames)
    assert split_frames(path) == (path, None) and split_frames(tmp_path / "none@300K.xyz")[1] is None
    assert read_ase(f"{path}@1:3").values("energy").tolist() == [1.0, 2.0]
    assert mq.load_dataset(f"{path}@-1").values("energy").tolist() == [3.0]
    with pytest.raises(DataError, match="two selections of frames; wanted one"):
        read_ase(f"{path}@1", index=2)
    with pytest.raises(DataError, match=r"run@300K.xyz: no frame 9; the file has 4, numbered from 0"):
        read_ase(f"{path}@9")
    for index in (3, -1):
        ase.io.write(tmp_path / "a.traj", frames)
        assert read_frames(tmp_path / "a.traj", index=index)[0].positions[1, 2] == 2.5


ATOMS = "H 0 0 0\nH 0 0 0.9\n"
FILES = {
    "six.xyz": f'2\n{CELL} energy=1 stress="0.1 0.2 0.3 0 0 0"\n{ATOMS}',
    "zero.xyz": f'2\nLattice="0 0 0 0 0 0 0 0 0" energy=1\n{ATOMS}',
    "mark.xyz": f"\ufeff2\nenergy=1\n{ATOMS}",
    "blank.xyz": f"\n2\nenergy=1\n{ATOMS}",
    "run@300K.xyz": f"2\nenergy=1\n{ATOMS}",
}


@pytest.mark.parametrize("name", FILES)
def test_simulations_and_analyses_read_what_read_ase_reads(tmp_path, name):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    wanted = read_ase(path)[0]
    periodic = wanted.pbc is not None
    run = mq.md(path, EMT(), steps=0, progress=False)
    relaxed = mq.relax(path, EMT(), steps=0, progress=False)
    many = mq.relax_many(path, EMT(), steps=0, progress=False)
    read = mq.analysis.read_frames(path)
    for atoms in (run.atoms, relaxed.atoms, many[0].atoms, read[0]):
        assert np.array_equal(atoms.positions, wanted.pos) and atoms.pbc.all() == periodic
    mq.view(path).save(tmp_path / "view.html")
    assert (tmp_path / "view.html").stat().st_size


def test_simulations_refuse_what_read_ase_refuses(tmp_path):
    path = dump(tmp_path, "id type ", ["1 1 1 1 1 0 0 0", "2 1 1 1 3.4 0 0 0"])
    for function in (mq.md, mq.relax, mq.relax_many):
        more = {"steps": 1, "progress": False}
        with pytest.raises(DataError, match="no column 'element'"):
            function(path, EMT(), **more)
    for function in (mq.analysis.read_frames, mq.view):
        with pytest.raises(DataError, match="no column 'element'"):
            function(path)


def test_two_frames_on_the_command_line(tmp_path):
    from molequi.cli.simulate import ModelInputs

    ase.io.write(tmp_path / "a.xyz", [molecule("H2O")] * 3)
    with pytest.raises(ConfigError, match=r"a.xyz@1 with --index 2: two frames; wanted one of them"):
        ModelInputs(index=2, device="cpu").read(f"{tmp_path}/a.xyz@1", "model.safetensors")


@pytest.mark.parametrize("count", ["7", "1" * 400])
@pytest.mark.parametrize("name", ["d.lammpstrj", "d.lammpstrj.gz"])
def test_a_dump_that_states_more_atoms_than_it_has_lines(tmp_path, name, count):
    path = tmp_path / name
    with gzip.open(path, "wt") if name.endswith(".gz") else open(path, "w") as file:
        file.write(f"ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n{count}\nITEM: ATOMS id\n1\n")
    with pytest.raises(DataError, match=r"states 1?[07]+ atoms, and has 6 lines; is it truncated\?"):
        mq.read_ase(path)
