"""A field that a user declares goes through every station: construction, batches, readers, files, compiled programs, audit."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

import molequi as mq
from molequi.audit.foreign import Declared
from molequi.compiled.inputs import graph_of, tensors_of
from molequi.data import Dataset
from molequi.data.digests import fingerprint
from molequi.errors import ConfigError, DataError
from molequi.graph import FIELDS, Field, Graph, collate, separate
from molequi.neighbors import connect
from molequi.quantities import KNOWN
from molequi.regular_graphs import regular
from molequi.symmetry_report import record_of

POS = [[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]
EFIELD, MOMENTS = [0.1, -0.2, 0.3], [[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]]


@pytest.fixture(autouse=True)
def declared(no_declared_fields):
    mq.add_field("efield", per="graph", rank=1, unit="V/Å")
    mq.add_field("moments", per="node", rank=1, pseudo=True, padding=None)


def water(scale: float = 1.0, **given) -> Graph:
    given = {"efield": [scale * e for e in EFIELD], "moments": MOMENTS} | given
    return Graph.single(POS, ["O", "H", "H"], **given)


def has_fields(graph: Graph, scale: float = 1.0) -> bool:
    return torch.allclose(
        graph.efield, scale * torch.tensor([EFIELD], dtype=torch.float64)
    ) and torch.allclose(graph.moments, torch.tensor(MOMENTS, dtype=torch.float64))


def test_a_structure_has_its_fields_as_attributes():
    graph = water()
    assert (
        has_fields(graph)
        and graph.efield.dtype == torch.float64
        and list(graph.more) == ["efield", "moments"]
    )
    assert Graph.single(POS).efield is None
    replaced = graph.replace(efield=2 * graph.efield, charge=torch.ones(1))
    assert has_fields(replaced, 2.0) and replaced.charge.tolist() == [1.0] and has_fields(graph)
    assert graph.replace(efield=None).efield is None and "moments" in graph.replace(efield=None).more
    assert has_fields(graph.to("cpu")) and has_fields(
        graph.strained(torch.ones(1, 3, 3, dtype=torch.float64))
    )


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: water(efield=[1.0, 2.0]),
            r"efield of shape \(2,\) for 3 nodes in 3 dimensions; wanted \(3\)",
        ),
        (lambda: water(moments=EFIELD), r"moments of shape .*wanted \(3, 3\)"),
        (lambda: water(efield=[0, 0, float("nan")]), "efield has entries that are not finite"),
        (lambda: water(field=1), r"'field' is no field of a structure.*mq.add_field\('field'"),
        (lambda: water(edge_attr=[[1.0]]), "'edge_attr' is no field of a structure"),
        (lambda: water().replace(bfield=1), r"no field 'bfield'.*mq.add_field\('bfield'"),
        (lambda: collate([water(), Graph.single(POS)]), "one has 'efield' and the other has not"),
        (lambda: Dataset([water(), water(moments=None)]), "one has 'moments' and the other has not"),
    ],
)
def test_what_is_wrong_with_a_value(make, words):
    with pytest.raises(DataError, match=words):
        make()
    with pytest.raises(AttributeError, match="a Graph has no field 'electric'"):
        water().electric


@pytest.mark.parametrize(
    "name, declaration, words",
    [
        ("e field", {"per": "graph"}, "wanted a Python identifier"),
        ("_e", {"per": "graph"}, "wanted a Python identifier"),
        ("pos", {"per": "node"}, "already has an attribute of this name"),
        ("replace", {"per": "node"}, "already has an attribute of this name"),
        ("dipole", {"per": "graph", "rank": 1}, "the name of a quantity, which models predict"),
        ("efield", {"per": "graph", "rank": 2}, "already declared as Field"),
        ("bond", {"per": "pair"}, "Features of pairs are columns of pair_attr"),
        ("thing", {"per": "atom"}, "wanted 'node', 'graph', 'pair' or 'edge'"),
        ("thing", {"per": "node", "rank": -1}, "wanted a number of spatial axes"),
        ("thing", {"per": "node", "dtype": "number"}, "wanted a dtype of torch"),
        ("thing", {"per": "graph", "rank": 1, "point": True}, "a position has per='node'"),
        ("thing", {"per": "edge", "rank": 1}, "have no spatial axes"),
        ("class", {"per": "graph"}, "wanted a Python identifier"),
        ("thing", {"per": "node", "channels": 2}, r"channels=2\): wanted True or False"),
        ("thing", {"per": "node", "default": "a"}, r"default='a'\): wanted a number or None"),
        ("thing", {"per": "node", "unit": 5}, r"unit=5\): wanted text"),
        ("thing", {"per": "node", "rnk": 1}, "did you mean 'rank'"),
        ("thing", {"per": "node", "size": 3}, "Field has no such argument"),
    ],
)
def test_declarations_that_are_refused(name, declaration, words):
    with pytest.raises(ConfigError, match=words):
        mq.add_field(name, **declaration)


def test_the_same_declaration_again_changes_nothing():
    assert mq.add_field("efield", per="graph", rank=1, unit="V/Å") == FIELDS["efield"]
    flag = mq.add_field("flag", per="graph", dtype="bool")
    assert flag.dtype == torch.bool and Field(**flag.declaration()) == flag
    assert json.dumps(FIELDS["efield"].declaration())


def test_batches_come_apart_again():
    parts = [water(), water(2.0), water(-1.0)]
    batch = collate(parts)
    assert batch.efield.shape == (3, 3) and batch.moments.shape == (9, 3)
    assert all(has_fields(g, s) for g, s in zip(separate(batch), (1.0, 2.0, -1.0)))
    assert has_fields(connect(water(), 1.5).without("edge"))


def test_padding_is_what_the_field_says():
    padded = regular(connect(collate([water(), water(2.0)]), 1.5), nodes=2, graphs=1)
    assert padded.efield.shape == (5, 3) and padded.efield[2:].abs().max() == 0
    assert padded.moments.shape == (8, 3) and torch.equal(padded.moments[6:], padded.moments[:1].expand(2, 3))
    again = graph_of(tensors_of(padded), None)  # tensors that a compiled program takes
    assert torch.equal(again.efield, padded.efield) and torch.equal(again.moments, padded.moments)
    assert torch.equal(again.edge_vectors(), padded.edge_vectors())


def test_digests_tell_values_and_names_apart():
    mq.add_field("bfield", per="graph", rank=1)
    plain, one, other = water(efield=None), water(), water(2.0)
    renamed = plain.replace(bfield=one.efield)
    assert len({fingerprint(g) for g in (plain, one, other, renamed)}) == 4
    assert len({Dataset([g]).digest for g in (plain, one, other, renamed)}) == 4
    assert "efield" in Dataset([one]).summary() and "V/Å" in Dataset([one]).summary()


def test_extended_xyz(tmp_path):
    frames = [Atoms("OHH", POS) for _ in range(2)]
    for k, atoms in enumerate(frames):
        atoms.info["E"] = (1 + k) * np.array(EFIELD) * 0.1
        atoms.set_array("moments", np.array(MOMENTS))
    write(tmp_path / "a.xyz", frames, format="extxyz")
    data = mq.read_extxyz(tmp_path / "a.xyz", keys={"efield": "E"}, units={"efield": "V/nm"})
    assert has_fields(data[0], 0.01) and has_fields(data[1], 0.02)
    assert data.found["efield"] == "from 'E'" and "E" not in data.unused
    assert mq.read_extxyz(tmp_path / "a.xyz", keys={"moments": None})[0].moments is None
    with pytest.raises(DataError, match="no 'F', which 0 of 2 structures have; wanted all or none"):
        mq.read_extxyz(tmp_path / "a.xyz", keys={"efield": "F"})
    with pytest.raises(ConfigError, match="wanted the name of the field in the file"):
        mq.read_extxyz(tmp_path / "a.xyz", keys={"efield": {"key": "E"}})
    del frames[1].info["E"]
    with pytest.raises(DataError, match="frame 1.*no 'E', which 1 of 2 structures have"):
        mq.from_atoms(frames, keys={"efield": "E"})


def test_atoms_and_back():
    graph = water()
    assert has_fields(mq.from_atoms([mq.to_atoms(graph)])[0])


def test_npz_and_back(tmp_path):
    mq.write_npz(Dataset([water(), water(2.0)]), tmp_path / "a.npz")
    data = mq.read_npz(tmp_path / "a.npz")
    assert has_fields(data[0]) and has_fields(data[1], 2.0)
    assert data.digest == Dataset([water(), water(2.0)]).digest
    del FIELDS["efield"]
    call = r"mq.add_field\('efield', per='graph', rank=1, unit='V/Å'\)"
    with pytest.raises(DataError, match=f"not declared here; declare it first: {call}"):
        mq.read_npz(tmp_path / "a.npz")
    assert mq.read_npz(tmp_path / "a.npz", keys={"efield": None})[0].moments is not None
    mq.add_field("efield", per="graph", rank=1, unit="eV/Å")
    with pytest.raises(DataError, match=f"declared in another way here; declare it first: {call}"):
        mq.read_npz(tmp_path / "a.npz")


def test_npz_of_others_says_units_and_sizes(tmp_path):
    arrays = {"n_atoms": np.array([3]), "z": np.array([8, 1, 1]), "pos": np.array(POS)}
    np.savez(tmp_path / "a.npz", **arrays, efield=np.array([EFIELD]))
    with pytest.raises(
        DataError, match=r"does not say the unit of efield; say it, .*units=\{'efield': 'V/Å'\}"
    ):
        mq.read_npz(tmp_path / "a.npz")
    assert has_fields(
        mq.read_npz(tmp_path / "a.npz", units={"efield": "V/Å"})[0].replace(moments=water().moments)
    )
    np.savez(tmp_path / "b.npz", **arrays, moments=np.array([EFIELD]))
    with pytest.raises(
        DataError, match=r"moments has the shape \(1, 3\); wanted one entry an atom, 3 in all"
    ):
        mq.read_npz(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", **arrays, fields=np.array("{"))
    with pytest.raises(DataError, match="its array 'fields' is not what write_npz writes"):
        mq.read_npz(tmp_path / "c.npz")


def test_pyg_and_back():
    pytest.importorskip("torch_geometric")
    assert has_fields(mq.from_pyg([mq.to_pyg(water())])[0])


def test_json():
    record = json.loads(json.dumps(record_of(water(charge=1))))
    again = Graph.single(**record)
    assert has_fields(again) and again.charge.tolist() == [1.0] and again.z.tolist() == [8, 1, 1]


class Stark(torch.nn.Module):
    """A dipole of fixed charges in the field, and one per atom along the moments."""

    def forward(self, graph):
        charges = (graph.z == 8).double() * 3 - 1
        dipole = (
            torch.zeros(graph.num_graphs, 3).double().index_add(0, graph.batch, charges[:, None] * graph.pos)
        )
        return -(dipole * graph.efield).sum(1), 2 * graph.moments


def stark(group: str = "O(3)"):
    spin = mq.Quantity(name="spin_vectors", per="node", rank=1, pseudo=True)
    return Declared(Stark(), takes=[lambda graph: graph], gives=["energy", spin], cutoff=None, group=group)


def test_the_audit_transforms_the_field_and_fails_where_it_is_not_transformed():
    structures = [water(), water(2.0)]
    report = mq.audit(stark(), structures, draws=2, limit=2)
    rows = [
        r
        for r in report.rows
        if r.check in ("rotation", "reflection") and r.quantity in ("energy", "spin_vectors")
    ]
    assert rows and all(r.verdict == "pass" for r in rows), report
    # the control: fields that do not turn
    FIELDS["efield"], FIELDS["moments"] = (
        Field(per="graph", channels=True),
        Field(per="node", channels=True, padding=None),
    )
    broken = mq.audit(stark(), structures, draws=2, limit=2)
    failed = {(r.check, r.quantity) for r in broken.rows if r.verdict == "fail"}
    assert {("rotation", "energy"), ("rotation", "spin_vectors"), ("reflection", "energy")} <= failed, broken


def test_the_lie_derivative_sees_the_field_turn():
    (row,) = (r for r in mq.lie_errors(stark(), water(), draws=1).rows if r.quantity == "energy")
    assert row.rotations < 1e-24
    FIELDS["efield"] = Field(per="graph", channels=True)
    (row,) = (r for r in mq.lie_errors(stark(), water(), draws=1).rows if r.quantity == "energy")
    assert row.rotations > 1e-3


def test_it_can_be_differentiated():
    field = torch.tensor([EFIELD], dtype=torch.float64, requires_grad=True)
    energy, _ = Stark()(water().replace(efield=field))
    (slope,) = torch.autograd.grad(energy.sum(), field)
    oxygen, *hydrogens = torch.tensor(POS, dtype=torch.float64)
    assert torch.allclose(-slope[0], 2 * oxygen - sum(hydrogens))
    assert "efield" not in KNOWN


def test_replace_casts_and_checks_declared_fields():
    graph = water()
    changed = graph.replace(efield=torch.zeros(1, 3))
    assert changed.efield.dtype == torch.float64 and changed.replace(efield=[0, 0, 1]).efield.shape == (1, 3)
    for wrong in (torch.zeros(1, 4), torch.zeros(2, 3), torch.zeros(4)):
        with pytest.raises(
            DataError,
            match=r"efield of shape .*; wanted \(1, 3\): a row for each graph, declared with rank=1",
        ):
            graph.replace(efield=wrong)
    with pytest.raises(DataError, match="efield: found 'up' .str.; wanted numbers"):
        graph.replace(efield="up")
    assert collate([changed, changed]).replace(efield=torch.ones(2, 3)).efield.dtype == torch.float64


def test_a_field_with_a_default_is_filled_by_rows_and_kept_in_files(tmp_path):
    mq.add_field("weight_in", per="node", default=1.5)
    mq.add_field("marks", per="node", channels=True, default=0.0)
    mq.add_field("temperature_in", per="graph", default=300.0)

    def pair(**fields):
        return Graph.single([[0, 0, 0], [0.7, 0, 0], [0, 0.8, 0]], ["H", "H", "O"], **fields)

    graphs = [
        pair(weight_in=[1.0, 2.0, 3.0], marks=[[1.0, 2.0]] * 3, temperature_in=500.0),
        pair(),
    ]
    for batch in (collate(graphs), collate([connect(g, 0.75) for g in graphs])):
        assert batch.weight_in.tolist() == [1, 2, 3, 1.5, 1.5, 1.5]
        assert batch.marks.tolist() == [[1, 2]] * 3 + [[0, 0]] * 3
        assert batch.temperature_in.tolist() == [500, 300]
    mq.write_npz(mq.Dataset(graphs), tmp_path / "m.npz")
    again = mq.read_npz(tmp_path / "m.npz")
    assert [g.temperature_in.tolist() for g in again] == [[500.0], [300.0]]
    assert again[1].weight_in.tolist() == [1.5, 1.5, 1.5] and again[0].marks.tolist() == [[1, 2]] * 3


def test_a_field_whose_name_has_another_meaning_in_a_file(tmp_path):
    mq.add_field("props", per="graph")
    data = mq.Dataset([Graph.single([[0, 0, 0]], ["H"], props=1.0)])
    with pytest.raises(DataError, match="'props', a name that has another meaning in this file; rename it"):
        mq.write_npz(data, tmp_path / "m.npz")


def test_tensors_and_channels_per_node_go_through_an_xyz_file(tmp_path):
    mq.add_field("tensors", per="node", rank=2)
    mq.add_field("several", per="node", rank=1, channels=True)
    mq.add_field("gradient", per="graph", rank=2)
    graph = Graph.single(
        POS,
        ["O", "H", "H"],
        tensors=torch.arange(27.0).reshape(3, 3, 3),
        several=torch.arange(18.0).reshape(3, 2, 3),
        gradient=torch.arange(9.0).reshape(3, 3),
    )
    write(tmp_path / "m.xyz", mq.to_atoms(graph))
    again = mq.read_extxyz(tmp_path / "m.xyz")[0]
    for name in ("tensors", "several", "gradient"):
        assert torch.equal(getattr(again, name), getattr(graph, name))
    with pytest.raises(
        DataError, match=r"tensors of shape \(3, 8\) for 3 nodes in 3 dimensions; wanted \(3, 3, 3\)"
    ):
        Graph.single(POS, ["O", "H", "H"], tensors=torch.zeros(3, 8))
    with pytest.raises(DataError, match="found Dataset; wanted a Graph"):
        mq.to_atoms(mq.Dataset([graph]))
