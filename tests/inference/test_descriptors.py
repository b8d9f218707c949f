"""Descriptors: they transform as their names say, are those of the chosen layer, and come back from files."""

import importlib
import json

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.cli import main
from molequi.errors import ConfigError, DataError, ModelError
from molequi.inference import descriptor_files, descriptors, read_descriptors, write_descriptors
from molequi.inference import descriptors as function
from molequi.inference.layer_features import LayerFeatures
from molequi.nn import edges_of
from molequi.ops import irreps as ir
from molequi.symmetry.groups import random_orthogonal

MODULE = importlib.import_module("molequi.inference.descriptors")  # not the function of the same name
EXACT = 1e-10
COMMON = {"elements": ["H", "O"], "cutoff": 3.0, "channels": 4, "layers": 2}
WIDTHS = ({"0e": 4}, {"0e": 4, "1o": 3, "2e": 2}, {"0e": 4, "1o": 3, "1e": 2})
BACKBONES = {
    "EGNN": lambda: mq.EGNN(**COMMON),
    "Equiformer": lambda: mq.Equiformer(**COMMON, hidden=4, l_max=2),
    "PaiNN": lambda: mq.PaiNN(**COMMON),
    "NequIP": lambda: mq.NequIP(**COMMON, l_max=2, parity=True, radial_hidden=(4,)),
    "SevenNet": lambda: mq.SevenNet(
        elements=["H", "O"], cutoff=3.0, channels=WIDTHS, l_max=2, radial_hidden=(4,)
    ),
    "NequIPGNN": lambda: mq.NequIPGNN(
        elements=["H", "O"], cutoff=3.0, channels=WIDTHS, l_max=2, radial_hidden=(4,)
    ),
    "MACE": lambda: mq.MACE(**COMMON, l_max=2, l_hidden=2, radial_hidden=(4,)),
    "GauntACE": lambda: mq.GauntACE(**COMMON, l_max=2),
    "RelaxedEGNN": lambda: mq.RelaxedEGNN(**COMMON, gates=(1.0, 1.0, 0.0)),
    "RelaxedNequIP": lambda: mq.RelaxedNequIP(**COMMON, l_max=2, radial_hidden=(4,), gates=(1.0, 1.0, 0.0)),
}
REFLECTION = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))


def model_of(name: str) -> mq.Model:
    torch.manual_seed(0)
    model = mq.Model(BACKBONES[name](), ["energy"]).double().eval()
    with torch.no_grad():  # EGNN moves by 1 % at first
        for value in model.parameters():
            value += 0.3 * torch.randn_like(value)
        for layer in model.modules():  # what was open stays closed
            if hasattr(layer, "free_groups"):
                layer.c.fill_(0.0)
    return model


def graphs(count: int = 3, dim: int = 3) -> list[mq.Graph]:
    generator = torch.Generator().manual_seed(1)
    return [
        mq.Graph.single(
            torch.rand(n, dim, dtype=torch.float64, generator=generator) * 2, (["O", "H", "H"] * n)[:n]
        )
        for n in range(3, 3 + count)
    ]


def moved(given: list[mq.Graph], g: torch.Tensor) -> list[mq.Graph]:
    return [graph.replace(pos=graph.pos @ g.T + 0.7) for graph in given]


def matrix(irrep: str, g: torch.Tensor) -> np.ndarray:
    d = ir.wigner(irrep, g) if len(g) == 3 else g if irrep == "1o" else torch.eye(1, dtype=g.dtype)
    return d.numpy()


def law(model, given, g, layer=None, **options) -> dict[str, float]:
    """Largest |f(g x) - D(g) f(x)| of each irrep relative to the size of the block."""
    here = descriptors(model, given, layer=layer, progress=False, **options)
    there = descriptors(model, moved(given, g), layer=layer, progress=False, **options)
    errors = {}
    for irrep, block in here.blocks.items():
        size = np.abs(block).max()
        assert size > 1e-3, f"{layer} {irrep}: nothing passes by being zero"
        errors[irrep] = float(np.abs(there.blocks[irrep] - block @ matrix(irrep, g).T).max() / size)
    return errors


@pytest.mark.parametrize("name", BACKBONES)
def test_descriptors_transform_as_their_irreps(name):
    model, given = model_of(name), graphs()
    turn, other = (
        random_orthogonal(3, proper=True, generator=torch.Generator().manual_seed(k)) for k in (1, 2)
    )
    for layer in [None, *model.backbone.states()]:
        for g in (turn, turn @ REFLECTION):
            for pool in (None, "sum"):
                errors = law(model, given, g, layer, pool=pool)
                assert max(errors.values()) < EXACT, (layer, pool, errors)
        # The control: they are no invariants, and turn by g and by no other element.
        here = descriptors(model, given, layer=layer, progress=False)
        there = descriptors(model, moved(given, turn), layer=layer, progress=False)
        for irrep, block in here.blocks.items():
            if ir.parse(irrep)[0] > 0:
                assert np.abs(there.blocks[irrep] - block @ matrix(irrep, other).T).max() > 1e-3, irrep


def test_parity_matters_and_is_declared():
    """Blocks of SO(3) have no parity, and the descriptors say so."""
    torch.manual_seed(0)
    backbone = mq.NequIP(**COMMON, l_max=1, group="SO(3)", radial_hidden=(4,))
    model = mq.Model(backbone, ["energy"]).double()
    turn = random_orthogonal(3, proper=True, generator=torch.Generator().manual_seed(1))
    assert max(law(model, graphs(), turn).values()) < EXACT
    assert law(model, graphs(), turn @ REFLECTION)["1o"] > 1e-3
    assert descriptors(model, graphs(), progress=False).group == "SO(3)"
    transformer = mq.Model(mq.Transformer(**COMMON, heads=2, vectors=2), ["energy"]).double()
    assert law(transformer, graphs(), turn)["0e"] > 1e-3
    assert descriptors(transformer, graphs(), progress=False).group == "C1"


@pytest.mark.parametrize("name", ["EGNN", "PaiNN"])
def test_two_dimensions(name):
    g = random_orthogonal(2, proper=True, generator=torch.Generator().manual_seed(3))
    g = g @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    for layer in [None, *model_of(name).backbone.states()]:
        assert max(law(model_of(name), graphs(dim=2), g, layer).values()) < EXACT


@pytest.mark.parametrize("name", ["EGNN", "PaiNN", "NequIP", "GauntACE"])
def test_components_of_vectors_are_x_y_z(name):
    """Atoms on a line have vectors along it."""
    for axis in range(3):
        pos = torch.zeros(2, 3, dtype=torch.float64)
        pos[1, axis] = 1.1
        block = descriptors(model_of(name), [mq.Graph.single(pos, ["O", "H"])], progress=False).blocks["1o"]
        others = [k for k in range(3) if k != axis]
        assert np.abs(block[..., axis]).max() > 1e-3 and np.abs(block[..., others]).max() < EXACT


def test_blocks_are_those_of_the_layer():
    model = model_of("MACE")
    graph = mq.connect(mq.collate(graphs()), 3.0)
    with torch.no_grad():
        features = model.backbone(graph)
        first = model.backbone.layers[0]
    found = descriptors(model, graphs(), progress=False)
    assert found.layer == "output" and list(found.blocks) == list(features.blocks)
    for irrep, block in features.blocks.items():
        assert np.abs(found.blocks[irrep] - block.numpy()).max() < EXACT
    # "0e" of the output has the scalars of both layers side by side.
    one = descriptors(model, graphs(), layer="layers.0", progress=False)
    assert {irrep: block.shape[1:] for irrep, block in one.blocks.items()} == {
        "0e": (4, 1),
        "1o": (4, 3),
        "2e": (4, 5),
    }
    assert np.array_equal(one.blocks["0e"], found.blocks["0e"][:, :4])
    assert sum(ir.sizes(model.backbone.layouts[1])) == 9 and first is not None
    start = descriptors(model, graphs(), layer="embedding", progress=False)
    assert (
        list(start.blocks) == ["0e"] and len(np.unique(start.invariants[:, 0])) == 2
    )  # one for each element


def test_rows_belong_to_structures():
    given = graphs()
    found = descriptors(model_of("PaiNN"), given, progress=False)
    assert len(found) == 3 and found.offsets.tolist() == [0, 3, 7, 12]
    assert found.elements.tolist() == [z for graph in given for z in graph.z.tolist()]
    assert repr(found) == "Descriptors(12 atoms of 3 structures, layer 'output', 4x0e+4x1o)"
    alone = descriptors(model_of("PaiNN"), given[1:2], progress=False)
    assert np.allclose(found.of(1)["1o"], alone.blocks["1o"], atol=EXACT)
    assert np.allclose(found.of(-2)["1o"], alone.blocks["1o"], atol=EXACT)
    for pool, reduce in (("mean", np.mean), ("sum", np.sum)):
        pooled = descriptors(model_of("PaiNN"), given, pool=pool, progress=False)
        assert repr(pooled) == f"Descriptors({pool} of 3 structures, layer 'output', 4x0e+4x1o)"
        for irrep, block in found.blocks.items():
            wanted = np.stack([reduce(block[a:b], axis=0) for a, b in zip(found.offsets, found.offsets[1:])])
            assert np.abs(pooled.blocks[irrep] - wanted).max() < EXACT
        assert np.array_equal(pooled.of(1)["1o"], pooled.blocks["1o"][1])


def test_sums_are_in_double_precision():
    """Those of single precision would depend on the order of the atoms."""
    options = {"dtype": "float32", "progress": False}
    atoms = descriptors(model_of("PaiNN"), graphs(), **options).blocks["1o"].astype(np.float64)
    pooled = descriptors(model_of("PaiNN"), graphs(), pool="sum", **options).blocks["1o"]
    wanted = np.stack([atoms[:3].sum(0), atoms[3:7].sum(0), atoms[7:].sum(0)])
    assert np.array_equal(pooled, wanted.astype(np.float32))


def test_irreps_are_chosen():
    found = descriptors(model_of("NequIP"), graphs(), irreps=["2e", "0e"], progress=False)
    assert list(found.blocks) == ["0e", "2e"]
    vectors = descriptors(model_of("NequIP"), graphs(), irreps=["1o"], progress=False)
    with pytest.raises(ConfigError, match="these descriptors have 1o and no invariants '0e'"):
        vectors.invariants


def test_parts_and_batches_change_nothing(monkeypatch):
    given, model = graphs(7), model_of("GauntACE")
    whole = descriptors(model, given, progress=False)
    monkeypatch.setattr(MODULE, "PART_ATOMS", 10)
    cut = descriptors(model, given, batch_edges=1, progress=False)
    assert all(np.allclose(cut.blocks[i], block, atol=EXACT) for i, block in whole.blocks.items())
    assert cut.offsets.tolist() == whole.offsets.tolist()


def test_parts_have_as_many_atoms_as_fit(monkeypatch):
    """Structures of 3, 4, … 9 atoms: 18, 15 and 9 atoms, since the next structure would exceed 20."""
    monkeypatch.setattr(MODULE, "PART_ATOMS", 20)
    work = MODULE.DescriptorWork(
        model_of("EGNN"), graphs(7), None, None, None, None, None, None, None, {}, "here"
    )
    assert [done for done, _ in work.parts(progress=False)] == [4, 6, 7]
    assert [done for done, _ in work.parts(5, progress=False)] == [7]


def test_gradients_mode_and_precision_stay():
    model = model_of("EGNN").train()
    found = descriptors(model, graphs(), dtype="float32", progress=False)
    assert found.blocks["0e"].dtype == np.float32
    assert model.training and model.dtype == torch.float64 and torch.is_grad_enabled()


def test_a_member_of_an_ensemble():
    members = [model_of("PaiNN"), mq.Model(BACKBONES["PaiNN"](), ["energy"]).double()]
    ensemble = mq.Ensemble(members)
    with pytest.raises(ConfigError, match=r"an ensemble: each of the 2 members .* member=0 \(up to 1\)"):
        descriptors(ensemble, graphs(), progress=False)
    with pytest.raises(ConfigError, match="member=2: each of the 2 members"):
        descriptors(ensemble, graphs(), member=2, progress=False)
    with pytest.raises(ConfigError, match="member=0: this is a single model; leave it out"):
        descriptors(members[0], graphs(), member=0, progress=False)
    found = descriptors(ensemble, graphs(), member=1, progress=False)
    alone = descriptors(members[1], graphs(), progress=False)
    assert np.array_equal(found.blocks["0e"], alone.blocks["0e"])


def test_wrong_choices_are_refused():
    model = model_of("PaiNN")
    with pytest.raises(
        ConfigError,
        match="layer='update.0': PaiNN has no such layer; did you mean 'updates.0'.*wanted one of output, embedding",
    ):
        descriptors(model, graphs(), layer="update.0")
    with pytest.raises(ConfigError, match="irreps: the layer 'output' has no '2e'.*it has 0e, 1o"):
        descriptors(model, graphs(), irreps=["2e"])
    with pytest.raises(ConfigError, match="pool='max': wanted 'mean' or 'sum', or None"):
        descriptors(model, graphs(), pool="max")
    with pytest.raises(
        ConfigError, match="as_frame=True: a table has invariants .* these descriptors have 1o"
    ):
        descriptors(model, graphs(), irreps=["1o"], as_frame=True)
    with pytest.raises(ModelError, match="atom 0 is C"):
        descriptors(model, [mq.Graph.single([[0.0, 0, 0]], ["C"])])


class Own(mq.Backbone):
    """The number of neighbors, vectors and moved points; an edge function beside them."""

    group = "O(n)"

    def __init__(self, *, elements, described: dict[str, str] | None = None, missing: bool = False):
        super().__init__(elements=elements, cutoff=3.0)
        self.out, self.described, self.missing = {"0e": 1}, described or {}, missing
        self.layer, self.edge, self.idle = Both(), torch.nn.Identity(), torch.nn.Identity()
        self.twice = torch.nn.Identity()

    def states(self):
        return (
            {"layer": ("1x0e", "point", None)} | self.described | ({"gone": "1x0e"} if self.missing else {})
        )

    def forward(self, graph):
        edges = edges_of(graph, self.cutoff, torch.float64)
        self.edge(edges.length[:, None])
        count, _, _ = self.layer(edges.coordination, graph.pos)
        self.twice(self.twice(count) + 1.0)
        return mq.Features(blocks={"0e": count[:, :, None]}, coordination=edges.coordination)


class Both(torch.nn.Module):
    def forward(self, count, pos):
        return count[:, None], pos, "nothing"


def own(**options) -> mq.Model:
    return mq.Model(Own(elements=["H", "O"], **options), ["energy"]).double()


def test_own_backbones():
    found = descriptors(own(), graphs(), layer="layer", progress=False)
    assert list(found.blocks) == ["0e"]  # positions are no features
    assert np.array_equal(found.blocks["0e"], descriptors(own(), graphs(), progress=False).blocks["0e"])
    model = own(described={"twice": "1x0e"})
    last = descriptors(model, graphs(), layer="twice", progress=False)
    assert np.array_equal(last.invariants, found.invariants + 1)


@pytest.mark.parametrize(
    "options, layer, message",
    [
        ({"described": {"edge": "1x0e"}}, "edge", r"layer 'edge': \d+ rows for \d+ atoms"),
        ({"described": {"edge": "2x0e"}}, "edge", "the layout '2x0e' has 2 components"),
        ({"described": {"idle": "1x0e"}}, "idle", "the layer 'idle' was not called"),
        ({"described": {"layer": "1x0e"}}, "layer", "1 layouts, and the layer returns 3 tensors"),
        ({"described": {"edge": "point"}}, "edge", r"states\(\) describes no features of atoms there"),
        ({"missing": True}, "gone", "names the layer 'gone', which is no submodule"),
    ],
)
def test_own_backbones_with_wrong_layouts(options, layer, message):
    with pytest.raises(ModelError, match=message):
        descriptors(own(**options), graphs(), layer=layer, progress=False)


def test_a_backbone_without_layers():
    transformer = mq.Model(mq.Transformer(**COMMON, heads=2), ["energy"])
    with pytest.raises(
        ConfigError, match=r"wanted one of output \(Transformer.states\(\) describes no layers\)"
    ):
        LayerFeatures(transformer, "layers.0")


def test_molecules_and_frames():
    pandas = pytest.importorskip("pandas")
    model = mq.Model(mq.PaiNN(elements=["H", "C", "O"], cutoff=3.0, channels=4, layers=1), ["energy"])
    data = mq.read_smiles(["CCO", "O"], conformers=2)
    frame = function(model, data, pool="mean", as_frame=True, progress=False)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns[:3]) == ["structure", "origin", "atoms"]
    assert list(frame.columns[-4:]) == ["0e_0", "0e_1", "0e_2", "0e_3"]
    assert (
        frame["smiles"].tolist() == list(data.info["smiles"])
        and frame["atoms"].tolist() == data.counts.tolist()
    )
    found = function(model, data, pool="mean", progress=False)
    assert np.array_equal(frame[["0e_0", "0e_1", "0e_2", "0e_3"]].to_numpy(), found.invariants)
    assert frame.attrs == {"layer": "output", "pool": "mean", "group": "O(n)"}
    atoms = function(model, data, as_frame=True, progress=False)
    assert list(atoms.columns[:3]) == ["structure", "atom", "element"]
    assert atoms["atom"].tolist() == [k for n in data.counts for k in range(n)]
    assert atoms["element"].tolist()[:3] == ["C", "C", "O"]
    single = function(model, ["CCO"], progress=False)
    assert len(single) == 1 and single.info["smiles"] == ["CCO"]


def test_columns_with_a_taken_name():
    pytest.importorskip("pandas")
    data = mq.Dataset(graphs(2), info={"0e_0": ["a", "b"], "origin": [1, 2]})
    frame = descriptors(model_of("EGNN"), data, pool="sum", as_frame=True, progress=False)
    assert frame["0e_0_given"].tolist() == ["a", "b"] and frame["origin_given"].tolist() == [1, 2]


def test_npz(tmp_path):
    model, given = model_of("NequIP"), graphs()
    written = write_descriptors(model, given, tmp_path / "all.npz", layer="interactions.0", progress=False)
    assert str(written) == (
        f"3 structures (12 atoms), layer interactions.0, 4x0e+4x1o+4x2e: {tmp_path / 'all.npz'}"
    )
    found = descriptors(model, given, layer="interactions.0", progress=False)
    again = read_descriptors(tmp_path / "all.npz")
    assert list(again.blocks) == list(found.blocks)
    for irrep, block in found.blocks.items():
        assert np.array_equal(again.blocks[irrep], block) and again.blocks[irrep].dtype == block.dtype
    for name in ("layer", "pool", "group", "origins"):
        assert getattr(again, name) == getattr(found, name), name
    assert np.array_equal(again.offsets, found.offsets) and np.array_equal(again.elements, found.elements)
    with np.load(tmp_path / "all.npz", allow_pickle=False) as file:
        assert file["2e"].shape == (12, 4, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["all.npz"]
    pooled = write_descriptors(model, given, tmp_path / "all.npz", pool="mean", progress=False)
    assert str(pooled).startswith("mean over the atoms of 3 structures (12 atoms), layer output")
    assert read_descriptors(tmp_path / "all.npz").pool == "mean"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("pool", [None, "mean"])
def test_tables(tmp_path, suffix, pool):
    pandas = pytest.importorskip("pandas")
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    data = mq.Dataset(graphs(), info={"name": ["a", "b", "c"], "number": [1, 2.5, None]})
    path = tmp_path / f"table.{suffix}"
    write_descriptors(model_of("PaiNN"), data, path, pool=pool, progress=False)
    table = pandas.read_csv(path) if suffix == "csv" else pandas.read_parquet(path)
    frame = descriptors(model_of("PaiNN"), data, pool=pool, as_frame=True, progress=False)
    assert list(table.columns) == list(frame.columns)
    for name in frame.columns:
        if name.startswith("0e_") or name == "number":
            assert np.allclose(
                table[name].to_numpy(float), frame[name].to_numpy(float), atol=1e-9, equal_nan=True
            )
        else:
            assert table[name].tolist() == frame[name].tolist(), name


class Stopped(Exception):
    pass


def stop_after(monkeypatch, parts: int) -> list[int]:
    """The parts that are computed; after some of them an exception, as a kill would end the call."""
    computed: list[int] = []
    add = descriptor_files.PartialBlocks.add

    def counted(self, done, blocks):
        add(self, done, blocks)
        computed.append(done)
        if len(computed) == parts:
            raise Stopped

    monkeypatch.setattr(MODULE, "PART_ATOMS", 6)
    monkeypatch.setattr(descriptor_files.PartialBlocks, "add", counted)
    return computed


def test_an_interrupted_file_goes_on(tmp_path, monkeypatch):
    model, given, path = model_of("PaiNN"), graphs(5), tmp_path / "all.npz"
    wanted = descriptors(model, given, progress=False)
    computed = stop_after(monkeypatch, 2)
    with pytest.raises(Stopped):
        write_descriptors(model, given, path, progress=False)
    partial = tmp_path / "all.npz.partial"
    assert computed == [1, 2] and not path.exists() and partial.is_dir()
    with open(partial / "1o.bin", "ab") as file:  # cut off in the middle of a part
        file.write(b"half a part")
    write_descriptors(model, given, path, progress=False)
    assert computed == [1, 2, 3, 4, 5] and not partial.exists()
    again = read_descriptors(path)
    assert all(np.allclose(again.blocks[i], block, atol=EXACT) for i, block in wanted.blocks.items())


@pytest.mark.parametrize("change", ["pool", "layer", "model", "data", "damage"])
def test_what_another_call_began_is_not_continued(tmp_path, monkeypatch, change):
    model, given, path = model_of("PaiNN"), graphs(5), tmp_path / "all.npz"
    computed = stop_after(monkeypatch, 2)
    with pytest.raises(Stopped):
        write_descriptors(model, given, path, progress=False)
    options = {"pool": {"pool": "mean"}, "layer": {"layer": "updates.0"}}.get(change, {})
    if change == "model":
        with torch.no_grad():
            next(model.parameters()).add_(0.1)
    if change == "data":
        given = moved(given, torch.eye(3, dtype=torch.float64))
    if change == "damage":
        (tmp_path / "all.npz.partial" / "0e.bin").write_bytes(b"")
    write_descriptors(model, given, path, progress=False, **options)
    assert computed == [1, 2, 1, 2, 3, 4, 5]
    wanted = descriptors(model, given, progress=False, **options)
    again = read_descriptors(path)
    assert all(np.allclose(again.blocks[i], block, atol=EXACT) for i, block in wanted.blocks.items())


def test_wrong_files_are_refused(tmp_path):
    model, given = model_of("NequIP"), graphs()
    with pytest.raises(
        ConfigError, match=r"out=.*all.h5: wanted a name that ends in .npz .* such as .*all.npz"
    ):
        write_descriptors(model, given, tmp_path / "all.h5")
    with pytest.raises(
        ConfigError, match="irreps: 0e, 1o in a table all.csv, which has invariants .* all.npz"
    ):
        write_descriptors(model, given, tmp_path / "all.csv", irreps=["0e", "1o"])
    with pytest.raises(ConfigError, match="there is no folder"):
        write_descriptors(model, given, tmp_path / "none" / "all.npz")
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "text.npz", "missing.npz"):
        with pytest.raises(DataError, match=f"{name}: no file of descriptors"):
            read_descriptors(tmp_path / name)
    write_descriptors(model, given, tmp_path / "new.npz", progress=False)
    with np.load(tmp_path / "new.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "new.npz", **arrays | {"format": np.array(99)})
    with pytest.raises(
        DataError, match="descriptors in format 99; this version reads up to 1; update molequi"
    ):
        read_descriptors(tmp_path / "new.npz")


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(descriptor_files, "write_atomically", full)
    with pytest.raises(DataError, match="No space left on device.*it goes on where it was"):
        write_descriptors(model_of("EGNN"), graphs(), tmp_path / "all.npz", progress=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = mq.Model(mq.GauntACE(elements=["H", "C", "O"], cutoff=3.0, channels=4), ["energy"])
    return mq.save(model, folder / "model.safetensors")


@pytest.mark.filterwarnings("default::molequi.errors.DataWarning")
def test_command(saved, tmp_path, capsys):
    out, data = tmp_path / "features.npz", str(mq.shipped("ethanol_300K.xyz"))
    words = ["features", str(saved), data, "--out", str(out), "--index", ":3", "--pool", "mean"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip().endswith(f"layer output, 8x0e+4x1o: {out}")
    found = mq.descriptors(saved, data, index=":3", pool="mean", progress=False)
    assert np.allclose(read_descriptors(out).blocks["1o"], found.blocks["1o"], atol=1e-6)
    assert main(words) == 2
    assert "this file exists; choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--irreps", "0e", "--layer", "layers.0"]) == 0
    assert list(read_descriptors(out).blocks) == ["0e"] and read_descriptors(out).layer == "layers.0"
    (tmp_path / "mols.csv").write_text("name,SMILES\na,CCO\nb,not one\nc,CO\n")
    table = tmp_path / "mols_out.csv"
    words = [
        "features",
        str(saved),
        str(tmp_path / "mols.csv"),
        "--out",
        str(table),
        "--pool",
        "sum",
        "--skip",
    ]
    assert main(words) == 0
    assert "not one" in capsys.readouterr().err
    lines = table.read_text().splitlines()
    assert lines[0].startswith("structure,origin,atoms") and len(lines) == 3 and ",CO," in lines[2]


@pytest.mark.parametrize(
    "more, message",
    [
        (
            [],
            "features: --out is missing; wanted a file for the descriptors, for example\n  molequi features",
        ),
        (["--out", "a.npz", "--pooling", "mean"], "write --pool mean, or sum"),
        (["--out", "a.npz", "--pool", "max"], "--pool: found 'max'"),
        (["--out", "a.npz", "--layer", "last"], "GauntACE has no such layer"),
    ],
)
def test_mistakes_of_the_command(saved, more, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["features", str(saved), str(mq.shipped("ethanol_300K.xyz")), *more]) == 2
    assert message in capsys.readouterr().err


def test_the_note_is_json(tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    with pytest.raises(Stopped):
        write_descriptors(model_of("EGNN"), graphs(), tmp_path / "a.csv", progress=False)
    note = json.loads((tmp_path / "a.csv.partial" / "note.json").read_text())
    assert note["structures"] == 1 and note["shapes"] == {"0e": [4, 1]}  # a table needs no vectors
