"""What files state of units, cells, elements and spins is read or refused, in every reader; nothing is lost."""

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

import molequi as mq
from molequi.errors import DataError, DataWarning
from molequi.readers import from_atoms, read_ase, read_extxyz, read_npz
from molequi.readers.atoms import read_frames

H2, HARTREE = "H 0 0 0\nH 0 0 0.8\n", 27.211386245988
CELL = 'Lattice="9 0 0 0 9 0 0 0 9"'
POS, Z = np.array([[[0.0, 0, 0], [0, 0, 1.0]], [[0, 0, 0], [0, 0, 1.1]]]), np.array([8, 1])


def write(folder, comment, rows=H2, name="a.xyz"):
    path = folder / name
    path.write_text(f"2\n{comment}\n{rows}")
    return path


@pytest.mark.parametrize(
    ("comment", "entry"),
    [
        ("energy=-1.0 units=Hartree", "units='Hartree'"),
        ("energy=-1.0 unit=kcal/mol", "unit='kcal/mol'"),
        ("energy=-1.0 energy_unit=Hartree", "energy_unit='Hartree'"),
        ("energy=-1.0 Energy_Units=Ry", "Energy_Units='Ry'"),
        ("energy=-1.0 units=real", "units='real'"),
        ("energy=-1.0 pos_unit=bohr", "pos_unit='bohr'"),
        ("energy=-1.0 length_unit=nm", "length_unit='nm'"),
        ('dipole="0 0 1" dipole_unit=Debye', "dipole_unit='Debye'"),
    ],
)
def test_other_units_that_a_file_states(tmp_path, comment, entry):
    with pytest.raises(DataError, match=rf"a.xyz, frame 0 .*{entry} states the unit of \w+.*say units="):
        read_extxyz(write(tmp_path, comment))


def test_stated_units_that_are_ours_or_the_callers(tmp_path):
    for words in (
        "energy_unit=eV",
        "units=eV",
        "note_unit=Hartree",
        'units="see the paper"',
        "length_unit=Å",
    ):
        assert read_extxyz(write(tmp_path, f"energy=-1.0 {words}")).values("energy").tolist() == [-1.0]
    path = write(tmp_path, "energy=-1.0 energy_unit=Hartree")
    assert read_extxyz(path, units={"energy": "Hartree"}).values("energy").item() == pytest.approx(-HARTREE)
    with pytest.raises(DataError, match="units= says 'kcal/mol'"):
        read_extxyz(path, units={"energy": "kcal/mol"})
    assert "energy" not in read_extxyz(path, keys={"energy": None}).quantities
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], info={"my": -1.0, "my_unit": "Hartree"})
    with pytest.raises(DataError, match="structure 0|frame 0"):
        from_atoms([atoms], keys={"energy": "my"})


def test_energies_of_cp2k(tmp_path):
    path = write(tmp_path, " i =        0, time =        0.000, E =       -17.1645")
    assert not read_extxyz(path).quantities
    with pytest.raises(DataError, match="E_unit='Hartree' states the unit of energy"):
        read_extxyz(path, keys={"energy": "E"})
    data = read_extxyz(path, keys={"energy": "E"}, units={"energy": "Hartree"})
    assert data.values("energy").item() == pytest.approx(-17.1645 * HARTREE)


def test_units_of_databases_that_are_not_known(tmp_path):
    path = tmp_path / "a.db"
    with ase.db.connect(path) as database:
        database.write(Atoms("H"), data={"energy": np.array([-1.0])})
        database.metadata = {"_property_unit_dict": {"energy": "blah"}}
    with pytest.raises(DataError, match=r"a.db: its metadata state the unit 'blah' of 'energy'.*units="):
        read_ase(path)
    assert read_ase(path, units={"energy": "eV"}).values("energy").tolist() == [-1.0]


@pytest.mark.parametrize(
    ("comment", "rows", "why"),
    [
        ("energy=-1.0 energy=-2.0", H2, "energy=-1.0 and energy=-2.0; wanted each key once"),
        ("Properties=species:S:1:frac_pos:R:3", H2, "no column 'pos' among species, frac_pos"),
        (f'{CELL} stress="[[1,0,0],[0,1,0],[0,0,1]]"', H2, "wanted six or nine numbers"),
        ('Lattice="5 5 5"', H2, 'Lattice="5 5 5"; wanted nine numbers'),
        (
            "Properties=species:S:1:pos:R:3:Z:I:1",
            "H 0 0 0 1\nH 0 0 0.8 6\n",
            r"line 4\): atom 1 is H in the column species and has Z=6",
        ),
    ],
)
def test_contradictions_of_extended_xyz(tmp_path, comment, rows, why):
    path = write(tmp_path, comment, rows)
    for read in (read_extxyz, read_frames, lambda p: mq.predict(model(), p)):
        with pytest.raises(DataError, match=f"a.xyz, frame 0 .*{why}"):
            read(path)


def model():
    return mq.Model(mq.PaiNN(elements=["H"], cutoff=3.0, channels=4, layers=1), ["energy"])


def test_columns_and_quotes_that_are_no_contradiction(tmp_path):
    comment = 'note="energy=1 energy=2" step=1 step=1 Properties=species:S:1:pos:R:3:Z:I:1 energy=-1.0'
    assert read_extxyz(write(tmp_path, comment, "H 0 0 0 1\nH 0 0 0.8 1\n")).values("energy").tolist() == [
        -1.0
    ]


def test_cells_under_other_names():
    Data = pytest.importorskip("torch_geometric.data").Data
    torch = pytest.importorskip("torch")
    atoms = {"pos": torch.tensor(POS[0]), "z": torch.tensor(Z)}
    for name in ("lattice", "box", "unit_cell", "Lattice_vectors"):
        with pytest.raises(DataError, match=f"structure 0: '{name}' would not be read.*no cell"):
            mq.from_pyg(Data(**atoms, **{name: 5 * torch.eye(3)}))
    for name in ("charges", "node_attrs"):
        with pytest.raises(DataError, match=f"'{name}', which atoms have, and no atomic numbers"):
            mq.from_pyg(Data(pos=atoms["pos"], **{name: atoms["z"]}))
    assert mq.from_pyg(Data(pos=atoms["pos"], nuclear_charges=atoms["z"])).elements == (1, 8)


def test_cells_without_directions_in_npz(tmp_path):
    path = tmp_path / "a.npz"
    flat = {"z": np.tile(Z, 2), "pos": POS.reshape(4, 3), "n_atoms": np.array([2, 2])}
    np.savez(path, **flat, cell=np.stack([9 * np.eye(3), np.zeros((3, 3))]))
    data = read_npz(path)
    assert data[0].pbc.all() and data[0].cell[0, 0, 0] == 9 and data[1].pbc is None
    for name in ("box", "cell_lengths"):
        np.savez(path, **flat, **{name: 9 * np.eye(3)})
        with pytest.raises(DataError, match=f"'{name}' would not be read"):
            read_npz(path)


def test_charges_and_units_of_frames_in_npz(tmp_path):
    path, units = tmp_path / "a.npz", {"units": {"energy": "eV"}}
    frames = {"z": Z, "R": POS, "E": np.array([-1.0, -2.0])}
    np.savez(path, **frames, charge=np.array([1, -1]), spin=np.array([[2], [1]]))
    data = read_npz(path, **units)
    assert [(g.charge.item(), g.spin.item()) for g in data] == [(1, 2), (-1, 1)]
    assert read_npz(path, keys={"charge": None, "spin": None}, **units)[0].charge is None
    np.savez(path, **frames, charge=np.ones((2, 2)))  # of atoms: something else under the same name
    assert read_npz(path, **units)[0].charge is None
    np.savez(path, **frames, energy_unit="Hartree")
    with pytest.raises(
        DataError, match="energy_unit='Hartree' states the unit of energy, and units= says 'eV'"
    ):
        read_npz(path, **units)


def test_a_spin_that_is_no_multiplicity(tmp_path):
    for spin in (0, 0.5, -1, 1.5):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], info={"spin": spin})
        with pytest.warns(
            DataWarning, match=rf"spin is {spin:g} .*; the spin is the multiplicity 2S \+ 1.*None"
        ):
            assert from_atoms([atoms])[0].spin.tolist() == [spin]
        assert from_atoms([atoms], keys={"spin": None})[0].spin is None
        for taken in (False, True):
            backbone = mq.PaiNN(
                elements=["H"], cutoff=3.0, channels=4, layers=1, inputs=mq.Inputs(spin=taken)
            )
            atoms.calc = mq.Calculator(mq.Model(backbone, ["energy"]))
            if not taken:  # what the model does not take is not looked at
                assert np.isfinite(atoms.get_potential_energy())
                continue
            with pytest.raises(DataError, match=rf"info\['spin'\] is {spin:g}; the spin is the multiplicity"):
                atoms.get_potential_energy()
            # A model that was trained on such numbers gets them.
            model = mq.Model(backbone, ["energy"])
            model.metadata = {"trained_on": {"elements": ["H"], "spin": [float(spin)]}}
            atoms.calc = mq.Calculator(model)
            assert np.isfinite(atoms.get_potential_energy())


CIF = """data_x
_cell_length_a 5.0
_cell_length_b 5.0
_cell_length_c 5.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""


def test_sites_that_are_occupied_in_part(tmp_path):
    path = tmp_path / "a.cif"
    path.write_text(CIF + "Cu1 Cu 0 0 0 0.6\nAu1 Au 0 0 0 0.4\n")
    assert ase.io.read(path).symbols.get_chemical_formula() == "Cu"  # the control: ASE takes the first
    for read in (read_ase, read_frames):
        with pytest.raises(
            DataError, match="a.cif, frame 0: site 0 is occupied by 0.6 Cu, 0.4 Au on average"
        ):
            read(path)
    with pytest.raises(DataError, match="structure 0|frame 0"):
        from_atoms([ase.io.read(path)])
    path.write_text(CIF + "Cu1 Cu 0 0 0 1.0\nCu2 Cu 0.5 0.5 0.5 1.0\n")
    assert read_ase(path).counts.tolist() == [2]
    path.write_text(CIF + "Cu1 Cu 0 0 0 1.0\nCu2 Cu 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DataError, match="site 1 is occupied by 0.5 Cu"):
        read_ase(path)


def test_alternative_places_of_a_protein(tmp_path):
    row = "ATOM      {}  CA {}ALA A   1       0.000   0.000   {}  {}  0.00           C\n"
    path = tmp_path / "a.pdb"
    path.write_text(row.format(1, "A", "0.000", "0.60") + row.format(2, "B", "1.000", "0.40"))
    assert len(ase.io.read(path)) == 2  # the control: ASE reads both
    with pytest.raises(DataError, match=r"a.pdb \(line 2\): alternative places A and B"):
        read_ase(path)
    path.write_text(row.format(1, "A", "0.000", "0.60"))
    assert len(read_frames(path)[0]) == 1


def test_elements_from_names_and_cells_from_grids(tmp_path):
    poscar = tmp_path / "POSCAR"
    text = "C N sample\n1.0\n4 0 0\n0 4 0\n0 0 4\n{}1 1\nDirect\n0 0 0\n.5 .5 .5\n"
    poscar.write_text(text.format(""))
    with pytest.warns(DataWarning, match="POSCAR: a POSCAR without elements.*C, N from its first line"):
        assert read_ase(poscar).elements == (6, 7)
    poscar.write_text(text.format("Cu Al\n"))
    assert read_ase(poscar).elements == (13, 29)
    config = tmp_path / "CONFIG"
    config.write_text("water\n 0 1 2\n 5 0 0\n 0 5 0\n 0 0 5\nOW 1\n 0 0 0\nHW 2\n 0 0 0.96\n")
    with pytest.warns(DataWarning, match=r"from the names of the atoms \(HW → H, OW → O\)"):
        read_ase(config, format="dlp4")
    ase.io.write(tmp_path / "a.g96", bulk("NaCl", "rocksalt", a=5.6, cubic=True), format="gromos")
    with pytest.warns(DataWarning, match="Cl → Cl, Na → Na"):
        read_ase(tmp_path / "a.g96", format="gromos")
    water = molecule("H2O")
    water.center(3)
    ase.io.write(tmp_path / "a.cube", water, data=np.zeros((2, 2, 2)))
    with pytest.warns(DataWarning, match="does not say whether the structure is periodic"):
        read_ase(tmp_path / "a.cube")


def test_a_label_is_no_column_of_info():
    tox = mq.Quantity(name="tox", classes=("lo", "hi"))
    atoms = [
        Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], info={"tox": t, "id": k}) for k, t in enumerate(["hi", "lo"])
    ]
    data = from_atoms(atoms, quantities=[tox])
    assert dict(data.info) == {"id": (0, 1)}
    assert dict(from_atoms(atoms).info) == {"tox": ("hi", "lo"), "id": (0, 1)}


def test_what_was_read_from_info_is_written(tmp_path):
    tox = mq.Quantity(name="tox", classes=("lo", "hi"))
    infos = [{"tox": "hi", "charge": 1, "energy": -1.0}, {"tox": "lo", "charge": 0, "energy": -2.0}]
    atoms = [Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], info=info) for info in infos]
    data = from_atoms(atoms, quantities=[tox, "energy"])
    mq.write_npz(data, tmp_path / "a.npz")
    back = read_npz(tmp_path / "a.npz")
    assert back.values("tox").tolist() == [1, 0] and [g.charge.item() for g in back] == [1, 0]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_texts_of_two_bytes_with_and_without_a_mark(tmp_path, encoding):
    path = tmp_path / "a.xyz"
    path.write_bytes(f"2\nenergy=-1.0\n{H2}".encode(encoding))
    assert read_extxyz(path).values("energy").tolist() == [-1.0]
    pytest.importorskip("rdkit")
    table = tmp_path / "a.csv"
    table.write_bytes("smiles,logS\nCCO,1\n".encode(encoding))
    data = mq.read_smiles(table, quantities=[mq.Quantity(name="logS")], optimize=None)
    assert data.values("logS").tolist() == [1.0]
