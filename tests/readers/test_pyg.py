"""torch_geometric: its objects and ours are the same structures, and its data sets have their units.

No data set is downloaded: tiny raw files in the layout of the published ones are processed by torch_geometric itself.
"""

import os
import pickle
import shutil
import sys
import tarfile
import warnings

import ase.units
import numpy as np
import pytest
import torch

from molequi.data import Dataset, DataWarning
from molequi.errors import ConfigError, DataError
from molequi.graph import Graph
from molequi.neighbors import connect
from molequi.quantities import Quantity
from molequi.readers import READERS, from_pyg, read_pyg, to_pyg

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    import torch_geometric.datasets
    from torch_geometric.data import Batch, Data

KCAL = ase.units.kcal / ase.units.mol
POS = torch.tensor([[0.0, 0.1, 0.2], [0, 0, 1.0], [0, 1.0, 0]])
BONDS = torch.tensor([[0, 1, 0, 2], [1, 0, 2, 0]])


def water(k=0, **more):
    fields = dict(
        pos=POS + 0.01 * k,
        z=torch.tensor([8, 1, 1]),
        x=torch.eye(3) + k,
        edge_index=BONDS,
        edge_attr=torch.ones(4, 2) * k,
        y=torch.tensor([[1.0, 2.0 + k]]),
        force=torch.arange(9.0).reshape(3, 3) + k,
        smiles="O",
        idx=torch.tensor([k]),
    )
    return Data(**{name: v for name, v in (fields | more).items() if v is not None})


def test_names_and_units():
    targets, units = {"gap": ("y", 1), "forces": "force"}, {"gap": "Ha", "forces": "kcal/mol/Å"}
    data = from_pyg([water(0), water(1)], targets=targets, units=units)
    np.testing.assert_allclose(data.values("gap"), [2 * ase.units.Ha, 3 * ase.units.Ha], rtol=1e-7)
    np.testing.assert_allclose(
        data[1].targets["forces"], (torch.arange(9.0).reshape(3, 3) + 1) * KCAL, rtol=1e-6
    )
    assert data[1].z.tolist() == [8, 1, 1] and data[1].pos.dtype == torch.float64
    assert torch.equal(data[1].pos, (POS + 0.01).double()) and torch.equal(
        data[1].x, (torch.eye(3) + 1).double()
    )
    assert torch.equal(data[1].pair_index, BONDS) and torch.equal(
        data[1].pair_attr, torch.ones(4, 2).double()
    )
    assert data.info == {"smiles": ("O", "O"), "idx": (0, 1)} and not data.unused
    plain = from_pyg(water(), features=False)
    assert plain[0].x is None and plain[0].pair_index is None and len(plain) == 1 and not plain.quantities
    assert plain.unused == {"x": 1, "edge_index": 1, "edge_attr": 1, "y": 1, "force": 1}


def test_a_batch_is_its_members():
    items = [water(k) for k in range(3)]
    one, other = from_pyg(items), from_pyg(Batch.from_data_list(items))
    assert one.digest == other.digest and len(other) == 3


def test_points_in_two_dimensions_with_classes():
    shape = Quantity(name="shape", classes=("ring", "square"))
    heading = Quantity(name="heading", rank=1)
    clouds = [Data(pos=torch.rand(n, 2), y=torch.tensor([n % 2]), heading=torch.rand(1, 2)) for n in (5, 40)]
    data = from_pyg(clouds, targets={"shape": "y", "heading": "heading"}, quantities=[shape, heading])
    assert data.values("shape").tolist() == [1, 0] and data[0].dim == 2 and data.elements == (0,)
    assert data.values("heading").shape == (2, 2) and data[1].targets["heading"].tolist() == [
        clouds[1].heading[0].double().tolist()
    ]


@pytest.mark.parametrize(
    "items, options, error, sentence",
    [
        (
            [water()],
            {"targets": {"gap": ("y", 1)}},
            DataError,
            "does not say the unit of gap; say it, for instance units={'gap': 'eV'}",
        ),
        (
            [water()],
            {"targets": {"gap": ("y", 2)}},
            DataError,
            r"structure 0: y has the shape \(1, 2\), so there is no column 2 for gap",
        ),
        (
            [water()],
            {"targets": {"gap": "y"}},
            DataError,
            "structure 0: y has the shape .1, 2.; wanted one number",
        ),
        ([water()], {"targets": {"gap": 3}}, ConfigError, "wanted an attribute such as 'y'"),
        ([water()], {"targets": {"gapp": "y"}}, ConfigError, "did you mean 'gap'"),
        (
            [water(), water(y=None)],
            {"targets": {"gap": ("y", 1)}},
            DataError,
            "structure 1: no 'y' .missing in 1 of 2",
        ),
        (
            [water(y=torch.tensor([[1, np.nan]]))],
            {"targets": {"gap": ("y", 1)}},
            DataError,
            "structure 0: y is nan",
        ),
        ([water(), water(pos=None)], {}, DataError, "structure 1 .Data.: no positions 'pos'"),
        ([{"a": 1}], {}, DataError, "structure 0 .dict.: no positions 'pos'"),
        ([water(z=torch.ones(3))], {}, DataError, "atomic numbers of shape"),
        ([water(z=torch.tensor([8, 1, 0]))], {}, DataError, "structure 0: atom 2 has the atomic number 0"),
        ([water(pos=POS * 0)], {}, DataError, "structure 0: atoms 0 and 1 are 0.0000 Å apart"),
        (
            [water(edge_attr=torch.arange(8.0).reshape(4, 2))],
            {},
            DataError,
            "structure 0: pair_index and pair_attr",
        ),
        ([], {}, DataError, "no structures"),
    ],
)
def test_refused(items, options, error, sentence):
    with pytest.raises(error, match=sentence):
        from_pyg(items, **{"units": {} if "does not say" in sentence else {"gap": "eV"}, **options})


def test_energies_in_single_precision_are_told():
    heavy = [water(y=torch.tensor([[-97000.0]])), water(y=torch.tensor([[-97001.0]]))]
    with pytest.warns(DataWarning, match="energy: in single precision.*0.34 meV apart"):
        from_pyg(heavy, targets={"energy": "y"}, units={"energy": "kcal/mol"})
    from_pyg([water(y=h.y.double()) for h in heavy], targets={"energy": "y"}, units={"energy": "kcal/mol"})


def complete(k, periodic):
    return Graph.single(
        POS.double() + 0.1 * k,
        [8, 1, 1],
        charge=k,
        spin=1,
        vel=torch.rand(3, 3),
        vec=torch.rand(3, 2, 3),
        x=torch.rand(3, 4),
        cell=np.eye(3) * 9 if periodic else None,
        pbc=periodic,
        pair_index=None if periodic else BONDS,
        pair_attr=None if periodic else torch.full((4, 2), k + 0.5),
        targets={
            "gap": torch.rand(1).double(),
            "forces": torch.rand(3, 3).double(),
            "polarizability": torch.eye(3).double()[None],
        },
    )


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("cutoff", [None, 1.7])
def test_there_and_back(periodic, cutoff):
    data = Dataset([complete(k, periodic) for k in range(2)], info={"smiles": ["O", "[OH2]"], "row": [4, 7]})
    items = to_pyg(data if cutoff is None else data.connected(cutoff), y="gap")
    targets = {"gap": "y", "forces": "forces", "polarizability": "polarizability"}
    back = from_pyg(
        items, targets=targets, units={"gap": "eV", "forces": "eV/Å", "polarizability": "e^2 Å^2/eV"}
    )
    assert back.digest == data.digest and back.info == data.info
    for old, new in zip(data, back):
        for name in ("pair_index", "pair_attr", "vec", "x", "vel", "cell", "pbc", "charge", "spin"):
            a, b = getattr(old, name), getattr(new, name)
            assert (a is None and b is None) or torch.equal(a, b), name


def test_edges_are_theirs_and_batches_shift_them():
    """Row 0 sends in both, and torch_geometric moves edges and pairs along when it batches."""
    graphs = [connect(complete(k, False), 1.2) for k in range(2)]
    batch = Batch.from_data_list([to_pyg(g) for g in graphs])
    sender, receiver = batch.edge_index
    torch.testing.assert_close(
        batch.pos[sender] - batch.pos[receiver], torch.cat([g.edge_vectors() for g in graphs])
    )
    assert torch.equal(batch.pair_index, torch.cat([BONDS, BONDS + 3], 1)) and batch.gap.shape == (2,)
    assert batch.edge_attr.shape == (batch.edge_index.shape[1], 2)


def test_to_pyg_refuses():
    with pytest.raises(DataError, match="y='gapp': no such label; did you mean 'gap'"):
        to_pyg(complete(0, False), y="gapp")
    with pytest.raises(DataError, match="'pos' is a label or a column of info"):
        to_pyg(Dataset([complete(0, False)], info={"pos": ["here"]}))
    from molequi.graph import collate

    with pytest.raises(DataError, match="2 structures in one"):
        to_pyg(collate([complete(0, False), complete(1, False)]))


# ------------------------------------------------------------------------------------------------ published data sets

# Methane and ammonia as the first lines of the published table have them (Hartree, D, a0^3 …; atomization kcal/mol).
HEADER = (
    "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom,u298_atom,h298_atom,g298_atom"
)
ROWS = [
    [
        157.7118,
        157.70997,
        157.70699,
        0.0,
        13.21,
        -0.3877,
        0.1171,
        0.5048,
        35.3641,
        0.044749,
        -40.47893,
        -40.476062,
        -40.475117,
        -40.498597,
        6.469,
        -395.999594594,
        -398.643290011,
        -401.014646522,
        -372.471772148,
    ],
    [
        293.60975,
        293.54111,
        191.39397,
        1.6256,
        9.46,
        -0.257,
        0.0829,
        0.3399,
        26.1563,
        0.034358,
        -56.525887,
        -56.523026,
        -56.522082,
        -56.544961,
        6.316,
        -276.861363363,
        -278.620270977,
        -280.399258597,
        -259.338802018,
    ],
]
METHANE = (
    [6, 1, 1, 1, 1],
    [[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [-0.63, 0.63, -0.63], [0.63, -0.63, -0.63]],
)
AMMONIA = ([7, 1, 1, 1], [[0, 0, 0.1], [0, 0.94, -0.27], [0.81, -0.47, -0.27], [-0.81, -0.47, -0.27]])
EXPECTED = dict(  # column of the row, and its unit in eV, Å, e
    mu=(3, ase.units.Debye),
    alpha=(4, ase.units.Bohr**3),
    homo=(5, ase.units.Ha),
    lumo=(6, ase.units.Ha),
    gap=(7, ase.units.Ha),
    r2=(8, ase.units.Bohr**2),
    zpve=(9, ase.units.Ha),
    u0=(10, ase.units.Ha),
    u298=(11, ase.units.Ha),
    h298=(12, ase.units.Ha),
    g298=(13, ase.units.Ha),
    cv=(14, KCAL / 1000),
    u0_atom=(15, KCAL),
    g298_atom=(18, KCAL),
    rotation_a=(0, 1.0),
    rotation_c=(2, 1.0),
)


def sdf(name, z, pos):
    symbols = {6: "C", 7: "N", 1: "H"}
    lines = [name, "", "", f"{len(z):3d}{len(z) - 1:3d}  0  0  0  0  0  0  0  0999 V2000"]
    lines += [
        f"{x:10.4f}{y:10.4f}{w:10.4f} {symbols[e]:<3} 0  0  0  0  0  0  0  0  0  0  0  0"
        for e, (x, y, w) in zip(z, pos)
    ]
    lines += [f"  1{k + 2:3d}  1  0  0  0  0" for k in range(len(z) - 1)]
    return "\n".join([*lines, "M  END", "$$$$"]) + "\n"


@pytest.fixture(params=["raw", "preprocessed"])
def qm9(request, tmp_path, monkeypatch):
    """Two molecules in the files that torch_geometric downloads: those of the authors with RDKit, its own without."""
    raw = tmp_path / "raw"
    raw.mkdir()
    if request.param == "raw":
        pytest.importorskip("rdkit", reason="the authors' files of QM9 are read by RDKit")
        (raw / "gdb9.sdf").write_text(sdf("gdb_1", *METHANE) + sdf("gdb_2", *AMMONIA))
        (raw / "gdb9.sdf.csv").write_text(
            "\n".join([HEADER, *(f"gdb_{k + 1}," + ",".join(map(str, r)) for k, r in enumerate(ROWS))]) + "\n"
        )
        (raw / "uncharacterized.txt").write_text("\n" * 10)  # a heading of nine lines, no molecule, an end
    else:
        monkeypatch.setitem(sys.modules, "rdkit", None)
        units = torch_geometric.datasets.qm9.conversion
        items = [
            dict(
                x=torch.rand(len(z), 11),
                z=torch.tensor(z),
                pos=torch.tensor(pos, dtype=torch.float),
                edge_index=torch.zeros(2, 0).long(),
                edge_attr=torch.zeros(0, 4),
                y=(torch.tensor([row[3:] + row[:3]]) * units),
                name=f"gdb_{k + 1}",
                idx=k,
            )
            for k, ((z, pos), row) in enumerate(zip((METHANE, AMMONIA), ROWS))
        ]
        torch.save(items, raw / "qm9_v3.pt")
    return tmp_path


def test_qm9_has_our_names_and_units(qm9):
    with pytest.warns(DataWarning, match="u0, u298, h298, g298: in single precision"):
        data = read_pyg("QM9", qm9)
    assert set(data.quantities) == {n for n, (k, _) in EXPECTED.items() if 3 <= k <= 14} and data.info[
        "name"
    ] == ("gdb_1", "gdb_2")
    own = [
        Quantity(name=n, unit="GHz" if k < 3 else "eV") for n, (k, _) in EXPECTED.items() if not 3 <= k <= 14
    ]
    own = read_pyg("QM9", qm9, quantities=own)
    for name, (k, unit) in EXPECTED.items():
        values = (data if 3 <= k <= 14 else own).values(name)
        np.testing.assert_allclose(
            values, [row[k] * unit for row in ROWS], rtol=1e-6, err_msg=name
        )  # single precision, their kcal/mol
    assert (
        data[0].z.tolist() == METHANE[0] and data[0].x is None and data.sources[0].file.endswith("data_v3.pt")
    )
    chosen = read_pyg("QM9", qm9, quantities=["gap"], index="1:", features=True)
    assert (
        len(chosen) == 1
        and chosen[0].x.shape == (4, 11)
        and chosen[0].pair_attr.shape[1] == 4
        and set(chosen.quantities) == {"gap"}
    )


@pytest.mark.parametrize("qm9", ["raw"], indirect=True)
def test_rdkit_keeps_its_log(qm9):
    """torch_geometric turns it off, and with it the reasons why a molecule cannot be read."""
    from rdkit import RDLogger, rdBase

    RDLogger.EnableLog("rdApp.error")
    read_pyg("QM9", qm9, quantities=["gap"])
    assert "rdApp.error:enabled" in rdBase.LogStatus()
    shutil.rmtree(qm9 / "processed")
    torch_geometric.datasets.QM9(str(qm9))  # control
    assert "rdApp.error:disabled" in rdBase.LogStatus()
    for level in ("warning", "error"):
        RDLogger.EnableLog(f"rdApp.{level}")


def write_md17(folder, name, revised):
    folder.mkdir(parents=True)
    z, r, e, f = ("nuclear_charges", "coords", "energies", "forces") if revised else ("z", "R", "E", "F")
    frames = POS.double().numpy() + np.arange(4)[:, None, None] * 0.01
    arrays = {z: np.array([8, 1, 1]), r: frames, e: -97000.123456789 - np.arange(4), f: frames * 2}
    np.savez(folder / name, **arrays)
    return arrays[e], arrays[f]


@pytest.mark.parametrize("member", ["ethanol", "revised ethanol"])
def test_md17_keeps_every_digit(tmp_path, member):
    revised = "revised" in member
    folder = tmp_path / "raw" / "rmd17" / "npz_data" if revised else tmp_path / "ethanol" / "raw"
    energy, forces = write_md17(folder, ("r" if revised else "") + "md17_ethanol.npz", revised)
    data = read_pyg("MD17", tmp_path, member=member, index=":3")
    assert len(data) == 3 and set(data.quantities) == {"energy", "forces"}
    np.testing.assert_allclose(data.values("energy"), energy[:3] * KCAL, rtol=1e-7)
    np.testing.assert_allclose(np.diff(data.values("energy")), np.diff(energy[:3]) * KCAL, rtol=1e-7)
    np.testing.assert_allclose(data[2].targets["forces"], forces[2] * KCAL, rtol=1e-7)
    # the control: torch_geometric's own form of the same file has lost them
    theirs = torch_geometric.datasets.MD17(str(tmp_path), member)
    assert abs(theirs[0].energy.item() - energy[0]) > 1e-4


def pack(path, *members):
    with tarfile.open(path, "w:bz2") as file:
        for source, name in members:
            file.add(source, name)


def test_A38_revised_md17_is_unpacked_inside_its_folder(tmp_path, monkeypatch):
    write_md17(tmp_path / "made", "rmd17_ethanol.npz", True)
    archive, made = tmp_path / "rmd17.tar.bz2", tmp_path / "made" / "rmd17_ethanol.npz"
    monkeypatch.setattr(torch_geometric.datasets.MD17, "revised_url", archive.as_uri())
    good = (made, "rmd17/npz_data/rmd17_ethanol.npz")
    pack(archive, good, (made, "../../escaped"))
    with pytest.raises(DataError, match="'../../escaped', a path that leads out of the folder"):
        read_pyg("MD17", tmp_path / "a" / "b", member="revised ethanol")
    assert not list(tmp_path.rglob("escaped"))
    pack(archive, good)
    assert len(read_pyg("MD17", tmp_path / "c", member="revised ethanol")) == 4
    assert [f.name for f in (tmp_path / "c" / "raw").iterdir()] == ["rmd17"]


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_geometric.datasets.MD17, "gdml_url", (tmp_path / "none").as_uri())
    with pytest.raises(DataError, match="torch_geometric cannot download or read its files"):
        read_pyg("MD17", tmp_path, member="ethanol")


def test_md17_coupled_cluster_parts(tmp_path):
    for k, part in enumerate(("train", "test")):
        _energy, _ = write_md17(tmp_path / f"{k}", f"ethanol_ccsd_t-{part}.npz", False)
        target = tmp_path / "ethanol CCSD(T)" / "raw" / f"ethanol_ccsd_t-{part}.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{k}" / target.name).rename(target)
    data = read_pyg("MD17", tmp_path, member="ethanol CCSD(T)", part="test")
    assert data.sources[0].file.endswith("ethanol_ccsd_t-test.npz")
    for part, member, sentence in (
        (None, "ethanol CCSD(T)", "wanted 'train' or 'test'"),
        ("train", "ethanol", "it is not divided"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            read_pyg("MD17", tmp_path, member=member, part=part)


OFF = (
    "OFF\n8 12 0\n"
    + "\n".join(f"{x} {y} {z}" for x in (0, 2) for y in (0, 2) for z in (0, 2))
    + "\n"
    + "\n".join(
        f"3 {a} {b} {c}"
        for a, b, c in [
            (0, 1, 3),
            (0, 3, 2),
            (4, 6, 7),
            (4, 7, 5),
            (0, 4, 5),
            (0, 5, 1),
            (2, 3, 7),
            (2, 7, 6),
            (0, 2, 6),
            (0, 6, 4),
            (1, 5, 7),
            (1, 7, 3),
        ]
    )
    + "\n"
)


def test_modelnet_is_sampled_from_its_surface(tmp_path):
    for category in torch_geometric.datasets.ModelNet.raw_file_names.fget(None):
        for part in ("train", "test"):
            (tmp_path / "raw" / category / part).mkdir(parents=True)
    for category, part, k in [("bed", "train", 1), ("sofa", "train", 2), ("chair", "test", 3)]:
        (tmp_path / "raw" / category / part / f"{category}_000{k}.off").write_text(OFF)
    before = torch.random.get_rng_state()
    data = read_pyg("ModelNet", tmp_path, points=200, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    shape = data.quantities["shape"]
    assert [shape.classes[int(v)] for v in data.values("shape")] == ["bed", "sofa"] and len(
        shape.classes
    ) == 10
    cube = data[0]
    assert cube.pos.shape == (200, 3) and cube.z.eq(0).all() and cube.vec.shape == (200, 1, 3)
    on_face = ((cube.pos - 1).abs() - 1).abs() < 1e-6
    assert on_face.any(1).all() and ((cube.pos > -1e-6) & (cube.pos < 2 + 1e-6)).all()
    # normals have length 1 and stand on the face that the point is of
    torch.testing.assert_close(
        cube.vec.square().sum(2), torch.ones(200, 1, dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert (cube.vec[:, 0].abs() * on_face).sum(1).gt(0.999).all()
    one = read_pyg("ModelNet", tmp_path, points=200, seed=3, index=1)
    assert torch.equal(one[0].pos, data[1].pos) and not torch.equal(data[0].pos, data[1].pos)
    assert [
        shape.classes[int(v)] for v in read_pyg("ModelNet", tmp_path, part="test", points=5).values("shape")
    ] == ["chair"]
    with pytest.raises(ConfigError, match="has the label 'shape' only"):
        read_pyg("ModelNet", tmp_path, quantities=["gap"])


def test_names_that_do_not_exist(tmp_path):
    assert READERS["pyg"] is read_pyg
    for options, sentence in (
        (dict(name="QM7"), "no data set 'QM7'; did you mean 'QM9'"),
        (dict(name="QM9", quantities=["energy"]), "QM9 has no 'energy'"),
        (dict(name="MD17", member="ethanal"), "no member 'ethanal'; did you mean 'ethanol'"),
        (dict(name="ModelNet", member="20"), "wanted '10' or '40'"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            read_pyg(root=tmp_path, **options)


# -------------------------------------------------------------------------------------------------- A36, A37


class Probe:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return shutil.copyfile, (__file__, self.path)


@pytest.mark.parametrize("name", ["data_v3.pt", "pre_transform.pt", "pre_filter.pt"])
def test_A37_processed_files_of_others_do_not_run(qm9, name):
    read_pyg("QM9", qm9, quantities=["gap"])
    file = qm9 / "processed" / name
    torch.save(Probe(qm9 / "ran"), file)
    before = dict(os.environ)
    with pytest.raises(DataError, match="holds Python objects other than tensors, which are never loaded"):
        read_pyg("QM9", qm9, quantities=["gap"])
    assert not (qm9 / "ran").exists() and dict(os.environ) == before
    # the control: torch_geometric by itself runs it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch_geometric.datasets.QM9(str(qm9))
        except AssertionError:
            pass  # what it ran returns no data set
    assert (qm9 / "ran").exists()


def test_A37_preprocessed_download_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    (tmp_path / "raw").mkdir()
    torch.save([Probe(tmp_path / "ran")], tmp_path / "raw" / "qm9_v3.pt")
    with pytest.raises(DataError, match="never loaded"):
        read_pyg("QM9", tmp_path, quantities=["gap"])
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Probe(tmp_path / "ran")))  # control
    assert (tmp_path / "ran").exists()


def test_A36_truncated_processed_file(qm9):
    read_pyg("QM9", qm9, quantities=["gap"])
    file = qm9 / "processed" / "data_v3.pt"
    whole = file.read_bytes()
    for size in (len(whole) // 2, 10, 0):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match="damaged or truncated|never loaded"):
            read_pyg("QM9", qm9, quantities=["gap"])


def test_atomic_numbers_of_other_packages():
    """Open Catalyst says atomic_numbers, as floats; without elements atoms must not become points."""
    for name, z in (
        ("atomic_numbers", torch.tensor([8.0, 1, 1])),
        ("atomic_number", torch.tensor([8, 1, 1])),
    ):
        data = from_pyg([Data(pos=POS, **{name: z})])
        assert data.elements == (1, 8) and data[0].z.tolist() == [8, 1, 1] and not data.unused
    assert from_pyg([Data(pos=POS)]).elements == (0,)
    for name in ("natoms", "species", "pbc", "atom_types"):
        with pytest.raises(
            DataError, match=f"structure 0: '{name}', which atoms have, and no atomic numbers"
        ):
            from_pyg([Data(pos=POS, **{name: torch.tensor([3])})])
    with pytest.raises(DataError, match="'z' and 'atomic_numbers' are different"):
        from_pyg([Data(pos=POS, z=torch.tensor([8, 1, 1]), atomic_numbers=torch.tensor([6, 1, 1]))])
    with pytest.raises(DataError, match="'atomic_numbers' has atomic numbers of shape .3,. .float32."):
        from_pyg([Data(pos=POS, atomic_numbers=torch.tensor([8.5, 1, 1]))])


def test_cell_without_pbc_is_not_taken_as_isolated():
    from ase.build import bulk

    copper = bulk("Cu", a=3.6, cubic=True)
    cell = torch.tensor(np.array(copper.cell))
    item = Data(pos=torch.tensor(copper.positions), z=torch.tensor(copper.numbers), cell=cell[None])
    with pytest.raises(DataError, match="structure 0: a cell and no 'pbc'.*pbc=True"):
        from_pyg([item])
    for pbc, edges in ((True, 48), (False, 12)):  # by hand: 12 neighbors each; 3 each within the cube
        assert connect(from_pyg([item], pbc=pbc)[0], 2.7).edge_index.shape[1] == edges
    slab = from_pyg([item], pbc=(True, True, False))[0]
    assert slab.pbc.tolist() == [[True, True, False]]
    own = Data(pos=item.pos, z=item.z, cell=cell, pbc=torch.tensor([[False, True, True]]))
    assert from_pyg([own], pbc=True)[0].pbc.tolist() == [[False, True, True]], "the file's own is kept"
    assert from_pyg([Data(pos=POS, z=item.z[:3], cell=torch.zeros(1, 3, 3))])[0].cell is None
    for wrong in ({"cell": torch.ones(3)}, {"cell": torch.eye(3), "pbc": torch.ones(2, dtype=torch.bool)}):
        with pytest.raises(DataError, match="structure 0: (cell|pbc) of shape"):
            from_pyg([Data(pos=POS, z=item.z[:3], **wrong)])


def test_nested_batches_are_separated():
    from torch_geometric.data import Batch
    from torch_geometric.loader import DataLoader

    items = [water(pos=POS + 3.0 * k) for k in range(4)]
    want = [g.pos for g in from_pyg(items)]
    nested = (
        DataLoader(items, batch_size=3),
        [Batch.from_data_list(items[:2]), *items[2:]],
        [items[:3], items[3:]],
    )
    for data in nested:
        found = from_pyg(data)
        assert len(found) == 4 and all(torch.equal(g.pos, pos) for g, pos in zip(found, want))
    two = torch.cat([POS, POS + 9])
    for more in ({"batch": torch.tensor([0, 0, 0, 1, 1, 1])}, {"natoms": torch.tensor([3, 3])}):
        with pytest.raises(
            DataError, match="structure 0: '(batch|natoms)' says that this Data holds several"
        ):
            from_pyg([Data(pos=two, z=torch.tensor([8, 1, 1, 8, 1, 1]), **more)])
    with pytest.raises(DataError, match="hand over the list of its Data"):
        from_pyg(Batch(pos=two, batch=torch.tensor([0, 0, 0, 1, 1, 1])))


def test_names_of_classes_survive():
    tox, other = (Quantity(name="tox", classes=names) for names in (("lo", "hi"), ("hi", "lo")))
    data = from_pyg([water(tox=word) for word in ("hi", "lo")], targets={"tox": "tox"}, quantities=[tox])
    assert data.values("tox").tolist() == [1, 0]
    for y in (None, "tox"):
        items = to_pyg(data, y=y)
        assert items[0][f"{(y and 'y') or 'tox'}_classes"] == ["lo", "hi"]
        for found in (items, Batch.from_data_list(items)):
            back = from_pyg(found, targets={"tox": (y and "y") or "tox"}, quantities=[other])
            assert [other.classes[int(v)] for v in back.values("tox")] == ["hi", "lo"]
            assert "tox_classes" not in back.unused
    part = Quantity(name="part", per="node", classes=("b", "a"))
    found = from_pyg([water(part=["a", "b", "a"])], targets={"part": "part"}, quantities=[part])
    assert found.values("part").tolist() == [1, 0, 1]
