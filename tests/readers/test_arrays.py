"""Arrays: frames of MD17, molecules laid end to end, QM9, and what is written comes back."""

from unittest import mock

import ase.units
import numpy as np
import pytest
import torch

from molequi.data import Dataset
from molequi.errors import DataError
from molequi.graph import Graph
from molequi.quantities import Quantity
from molequi.readers import read_npz, write_npz
from molequi.readers.npz import Arrays

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
            **{
                z: np.array([8, 1, 1], np.uint8),
                r: POS,
                e: E[:, None] if column else E,
                f: F,
                "old_energies": E + 1,
            }
        ),
        units=UNITS,
    )
    assert set(data.quantities) == {"energy", "forces"} and data[0].z.tolist() == [8, 1, 1]
    np.testing.assert_allclose(data.values("energy"), E * KCAL, rtol=1e-7)
    np.testing.assert_allclose(data[4].targets["forces"], F[4] * KCAL, rtol=1e-7)
    np.testing.assert_array_equal(data[5].pos, POS[5])
    assert (
        data.unused == {"old_energies": 6}
        and data.sources[0].frames == 6
        and data.info["old_energies"][2] == E[2] + 1
    )


def test_keys_index_and_numbers_by_frame(write):
    z = np.array([[8, 1, 1]] * 5 + [[1, 8, 1]])
    path = write(z=z, R=POS, E=E, F=F, old_E=E + 1)
    data = read_npz(path, units=UNITS, index="::-2", keys={"energy": "old_E"})
    np.testing.assert_allclose(data.values("energy"), (E[::-2] + 1) * KCAL, rtol=1e-7)
    assert data[0].z.tolist() == [1, 8, 1]
    assert set(read_npz(path, units=UNITS, quantities=["forces"]).quantities) == {"forces"}
    assert (
        read_npz(write(a=[8, 1, 1], b=POS), keys={"z": "a", "positions": "b"}, units={"positions": "nm"})[
            0
        ].pos[1, 2]
        == 10 * POS[0, 1, 2]
    )


@pytest.mark.parametrize(
    "arrays, options, sentence",
    [
        (dict(z=[8, 1, 1], R=POS, E=E), {"units": None}, "does not say the unit of energy.*kcal/mol"),
        (
            dict(z=[8, 1, 1], R=POS, E=E, F=F),
            {"units": {"energy": "kcal/mol"}},
            "no unit for forces|unit of forces",
        ),
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


# Water, ammonia, a hydrogen molecule: 3, 4 and 2 atoms.
COUNTS = np.array([3, 4, 2])
RAGGED = dict(
    n_atoms=COUNTS,
    z=np.array([8, 1, 1, 7, 1, 1, 1, 1, 1]),
    pos=np.concatenate([POS[0], POS[1], [[1.0, 1, 1]], [[0, 0, 0], [0, 0, 0.74]]]),
    gap=np.array([7.0, 6.0, 11.0]),
    dipole=RANDOM.normal(size=(3, 3)),
    charges=RANDOM.normal(size=9),
    smiles=np.array(["O", "N", "[H][H]"]),
    number=np.array([11, 22, 33]),
)
SAID = {"gap": "eV", "dipole": "e Å", "charges": "e"}


def test_molecules_of_any_size(write):
    data = read_npz(write(**RAGGED), units=SAID)
    assert [g.num_nodes for g in data] == [3, 4, 2] and [g.z[0].item() for g in data] == [8, 7, 1]
    assert data.info == {"smiles": ("O", "N", "[H][H]"), "number": (11, 22, 33)}
    assert data.values("gap").tolist() == [7, 6, 11]
    np.testing.assert_array_equal(data[1].targets["dipole"], RAGGED["dipole"][1:2])
    np.testing.assert_array_equal(data[1].targets["charges"], RAGGED["charges"][3:7])
    np.testing.assert_array_equal(data[2].pos, RAGGED["pos"][7:])
    kcal = read_npz(write(**RAGGED), units={"gap": "kcal/mol"}, quantities="gap")
    np.testing.assert_allclose(kcal.values("gap"), RAGGED["gap"] * KCAL, rtol=1e-7)
    assert kcal.unused == {"dipole": 3, "charges": 3}
    nanometres = read_npz(write(**{**RAGGED, "pos": RAGGED["pos"] / 10}), units={**SAID, "positions": "nm"})
    np.testing.assert_allclose(nanometres[2].pos, RAGGED["pos"][7:], atol=1e-14)


def test_parts_and_places(write):
    rows = dict(index=np.array([5, 3, 9]), train=np.array([9, 5]), valid=np.array([3]))
    path = write(**RAGGED, **rows)
    options = dict(units=SAID, quantities=["gap"])
    assert read_npz(path, part="train", **options).info["smiles"] == ("[H][H]", "O")
    assert read_npz(path, part="train", index=0, **options).info["index"] == (9,)
    assert read_npz(path, index=[2, 0], **options).info["index"] == (9, 5)
    assert read_npz(path, index="1:", **options).info["index"] == (3, 9)
    # without a column `index` a part is a list of positions
    assert read_npz(write(**RAGGED, train=np.array([2, 0])), part="train", **options).info["number"] == (
        33,
        11,
    )
    assert len(read_npz(write(z=[8, 1, 1], R=POS, train=[4, 2]), part="train")) == 2


def test_only_what_is_asked_for_is_read(write):
    path = write(**RAGGED, huge=np.zeros((3, 1000)))
    with (
        mock.patch.object(Arrays, "__getitem__", autospec=True, side_effect=Arrays.__getitem__) as read,
        mock.patch.object(Graph, "single", side_effect=Graph.single) as made,
    ):
        read_npz(path, units=SAID, quantities=["gap"], index=[1])
    assert {call.args[1] for call in read.call_args_list} == {
        "n_atoms",
        "z",
        "pos",
        "gap",
        "smiles",
        "number",
    }
    assert made.call_count == 1


@pytest.mark.parametrize(
    "change, options, sentence",
    [
        ({}, {"units": None}, "does not say the unit of (gap|dipole|charges); say it"),
        ({"n_atoms": COUNTS + 1}, {}, r"adds up to 12 atoms, but z has the shape \(9,\)"),
        ({"n_atoms": np.array([9, 0, 0])}, {}, "wanted integers .G,. from 1"),
        ({"n_atoms": COUNTS.astype(float)}, {}, "wanted integers .G,. from 1"),
        ({"z": RAGGED["z"].astype(float)}, {}, "wanted integers"),
        (
            {"z": np.where(np.arange(9) == 4, 0, RAGGED["z"])},
            {},
            "structure 1: atom 1 has the atomic number 0",
        ),
        ({"gap": np.array([7.0, 6.0])}, {}, "gap has the shape .2,.; wanted one entry a structure, 3 in all"),
        ({"charges": np.zeros(3)}, {}, "charges has the shape .3,.; wanted one entry an atom, 9 in all"),
        ({"gap": np.array([7.0, np.nan, 11.0])}, {}, "structure 1: gap is nan"),
        ({"pos": np.zeros((9, 3))}, {}, "structure 0: atoms 0 and 1 are 0.0000 Å apart"),
        ({"x": np.zeros((3, 2))}, {}, "x has the shape .3, 2.; wanted 9 entries"),
        ({"n_pairs": np.array([1, 0, 0])}, {}, "no array 'pair_index'"),
        (
            {"n_pairs": np.array([1, 0, 0]), "pair_index": np.zeros((2, 2)), "pair_attr": np.zeros((2, 1))},
            {},
            "adds up to 1",
        ),
        ({}, {"part": "trian"}, "no array 'trian'"),
        ({"train": np.array([7])}, {"part": "train"}, "names 7, which is not in 'index'"),
        (
            {"index": np.array([1, 1, 2]), "train": np.array([1])},
            {"part": "train"},
            "'index' has a number twice",
        ),
        ({"train": np.array([0.5])}, {"part": "train"}, "wanted integers in a row"),
        ({}, {"index": [0, 3]}, "no structure 3; there are 3"),
        ({}, {"index": [[0]]}, "a list of positions"),
        ({}, {"index": []}, "a list of positions"),
        ({}, {"index": "7:"}, "selects none of its 3"),
        ({"quantities": np.array("{}")}, {}, "not what write_npz writes"),
        ({"quantities": np.array('[{"name": "gap"}]')}, {}, "not what write_npz writes"),
    ],
)
def test_molecules_refused(write, change, options, sentence):
    with pytest.raises(DataError, match=sentence):
        read_npz(write(**{**RAGGED, **change}), **{"units": SAID, **options})


def everything(periodic):
    """Structures with every field that a Graph can be given (pairs or periods), labels missing in one."""
    graphs = []
    for k, n in enumerate((3, 1, 4)):
        index = torch.tensor([[0, 1], [1, 0]]) if n > 1 else torch.zeros(2, 0, dtype=torch.int64)
        graphs.append(
            Graph.single(
                torch.randn(n, 3, dtype=torch.float64) * 3 + torch.arange(n)[:, None],
                torch.arange(1, n + 1),
                cell=np.eye(3) * 20 if periodic and k == 2 else None,
                pbc=[True, True, False] if periodic and k == 2 else None,
                charge=k - 1,
                spin=k + 1,
                vel=torch.randn(n, 3),
                vec=torch.randn(n, 2, 3),
                x=torch.randn(n, 5),
                pair_index=None if periodic else index,
                pair_attr=None if periodic else torch.full((index.shape[1], 3), k + 0.5),
                targets={
                    "energy": torch.randn(1, dtype=torch.float64),
                    "forces": torch.randn(n, 3, dtype=torch.float64),
                    "polarizability": torch.eye(3, dtype=torch.float64)[None] * (k + 1),
                    "gap": torch.tensor([np.nan if k == 1 else k], dtype=torch.float64),
                    "kind": torch.tensor([k % 2], dtype=torch.float64),
                    "shift": torch.randn(n, 3, dtype=torch.float64),
                },
            )
        )
    own = [
        Quantity(name="kind", classes=("chair", "lamp")),
        Quantity(name="shift", per="node", rank=1, unit="nm"),
    ]
    info = {
        "smiles": ["C", "CC", "é"],
        "good": [True, False, True],
        "row": [1, 2, 3],
        "mixed": [1, "a", None],
    }
    return Dataset(graphs, quantities={q.name: q for q in own}, info=info)


@pytest.mark.parametrize("periodic", [False, True])
def test_what_is_written_comes_back(tmp_path, periodic):
    data = everything(periodic)
    write_npz(data, tmp_path / "all.npz")
    back = read_npz(tmp_path / "all.npz")
    assert back.quantities == data.quantities and back.digest == data.digest
    assert back.info == {k: v for k, v in data.info.items() if k != "mixed"}
    for old, new in zip(data, back):
        for name in (
            "pos",
            "z",
            "cell",
            "pbc",
            "charge",
            "spin",
            "vel",
            "vec",
            "x",
            "pair_index",
            "pair_attr",
        ):
            a, b = getattr(old, name), getattr(new, name)
            assert (a is None and b is None) or torch.equal(a, b), name
        for name, value in old.targets.items():
            assert torch.equal(value.nan_to_num(7), new.targets[name].nan_to_num(7)), name
    assert set(read_npz(tmp_path / "all.npz", quantities=["kind"]).quantities) == {"kind"}
    # a label is not taken for what it is not, because the file says what it is
    assert read_npz(tmp_path / "all.npz", units={"shift": "Å"}).values("shift")[0, 0].item() == pytest.approx(
        data.values("shift")[0, 0].item() / 10
    )


def test_writing_is_refused(tmp_path):
    graph = Graph.single([[0.0, 0]], targets={})
    with pytest.raises(DataError, match="2 dimensions; wanted 3"):
        write_npz(Dataset([graph]), tmp_path / "a.npz")
    water = Graph.single(POS[0], [8, 1, 1], targets={"gap": torch.ones(1, dtype=torch.float64)})
    for name in ("pos", "gap", "charge"):
        with pytest.raises(DataError, match=f"a column '{name}', a name that has another meaning"):
            write_npz(Dataset([water], info={name: [1]}), tmp_path / "a.npz")
    with pytest.raises(DataError, match="cannot be written"):
        write_npz(Dataset([water]), tmp_path / "none" / "a.npz")
    assert not list(tmp_path.iterdir())


def test_a_text_with_the_name_of_something_else_is_kept(tmp_path):
    """spin="singlet" of a published set is no multiplicity."""
    water = Graph.single(POS[0], [8, 1, 1], targets={"gap": torch.ones(1, dtype=torch.float64)})
    data = Dataset([water] * 2, info={"spin": ["singlet", "triplet"], "kind": ["a", "b"]})
    write_npz(data, tmp_path / "a.npz")
    back = read_npz(tmp_path / "a.npz")
    assert back.info == data.info and back[0].spin is None and back.digest == data.digest


def test_qm9(real_data):
    """Methane (B3LYP/6-31G(2df,p)) and the difference of labels that no single unit can hide: gap = LUMO - HOMO."""
    path = real_data / "qm9" / "qm9_train_valid.npz"
    data = read_npz(path, index=":200")
    assert set(data.quantities) == {
        "mu",
        "alpha",
        "homo",
        "lumo",
        "gap",
        "r2",
        "zpve",
        "u0",
        "u298",
        "h298",
        "g298",
        "cv",
    }
    assert data.info["smiles"][:3] == ("C", "N", "O")
    methane = {n: v.item() for n, v in data[0].targets.items()}
    assert methane["u0"] / ase.units.Hartree == pytest.approx(-40.47893, abs=1e-5)
    assert methane["alpha"] / ase.units.Bohr**3 == pytest.approx(13.21, abs=1e-5) and methane["mu"] == 0
    assert methane["cv"] * ase.units.mol / ase.units.kcal * 1000 == pytest.approx(6.469, abs=1e-5)
    np.testing.assert_allclose(data.values("gap"), data.values("lumo") - data.values("homo"), atol=3e-3)
    # H = U + RT at 298.15 K
    np.testing.assert_allclose(data.values("h298") - data.values("u298"), ase.units.kB * 298.15, atol=1e-4)
    train, valid = (read_npz(path, part=p, index="::1000", quantities=["gap"]) for p in ("train", "valid"))
    assert len(train) == 110 and len(valid) == 10 and not set(train.info["index"]) & set(valid.info["index"])


CELL = np.array([[9.0, 0, 0], [1.0, 8.0, 0], [0, 0.5, 7.0]])  # lattice vectors in rows
SGDML = dict(z=np.array([8, 1, 1]), R=POS, E=E[:, None], F=F, e_unit="kcal/mol", type="d")


def test_lattice_and_units_of_sgdml(write):
    """Lattice vectors are its columns; forces have e_unit / r_unit. 1 Bohr is 0.529177 Å."""
    data = read_npz(write(**SGDML | {"R": POS / 0.529177}, lattice=CELL.T, r_unit="bohr"))
    assert data[0].pbc.all() and data[0].cell[0].numpy() == pytest.approx(CELL * 0.529177, rel=1e-6)
    assert data[3].pos.numpy() == pytest.approx(POS[3], rel=1e-6)
    assert data.values("energy").numpy() == pytest.approx(E * KCAL)
    assert data.values("forces").numpy() == pytest.approx(F.reshape(-1, 3) * KCAL / 0.529177, rel=1e-6)
    assert data.summary().endswith("not read: type (6)")
    same = {"energy": "kcal/mol", "forces": "kcal/mol/Å"}
    assert read_npz(write(**SGDML, r_unit="Ang"), units=same)[0].pbc is None
    with pytest.raises(DataError, match="states the unit 'kcal/mol' of energy.* and units= says 'eV'"):
        read_npz(write(**SGDML, r_unit="Ang"), units={"energy": "eV", "forces": "eV/Å"})
    with pytest.raises(DataError, match="it states the unit 'ell' of positions, from its r_unit and e_unit"):
        read_npz(write(**SGDML, r_unit="ell"))


@pytest.mark.parametrize("name", ["cell", "cells", "my_box"])
@pytest.mark.parametrize("frames", [False, True])
def test_cells_in_rows(write, name, frames):
    cells = CELL + np.arange(6)[:, None, None] if frames else CELL
    path = write(**SGDML, r_unit="Ang", **{name: cells}, pbc=[True, True, False])
    data = read_npz(path, keys={"cell": name} if name == "my_box" else None)
    assert np.array_equal(data[5].cell[0].numpy(), CELL + 5 if frames else CELL)
    assert data[5].pbc[0].tolist() == [True, True, False]


def test_cells_that_would_be_lost(write):
    for name in ("box", "lattice_vectors", "Cell"):
        with pytest.raises(DataError, match=f"md.npz: {name!r} would not be read, and .* no cell"):
            read_npz(write(**SGDML, r_unit="Ang", **{name: CELL}))
    with pytest.raises(DataError, match="'cell' and 'lattice' both look like cells; name one"):
        read_npz(write(**SGDML, r_unit="Ang", cell=CELL, lattice=CELL.T))
    with pytest.raises(DataError, match=r"'cell' has the shape \(3,\).*wanted the lattice vectors"):
        read_npz(write(**SGDML, r_unit="Ang", cell=[9.0, 8.0, 7.0]))
    with pytest.raises(DataError, match=r"'pbc' has the shape \(2,\); wanted three flags"):
        read_npz(write(**SGDML, r_unit="Ang", cell=CELL, pbc=[True, False]))
    molecules = dict(n_atoms=[3, 3], z=[8, 1, 1] * 2, pos=POS[:2].reshape(-1, 3))
    with pytest.raises(DataError, match="'lattice' would not be read"):
        read_npz(write(**molecules, lattice=CELL))
    assert read_npz(write(**molecules, cell=np.stack([CELL] * 2), pbc=[[True] * 3] * 2))[0].pbc.all()
