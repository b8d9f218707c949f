"""Point clouds: every kind of file, folders of classes, surfaces, centring and scaling, batches of all sizes."""

import numpy as np
import pytest
import torch
import trimesh

from molequi import EGNN, Model, PaiNN
from molequi.config.schema import read_data
from molequi.data import Dataset, duplicates
from molequi.errors import ConfigError, DataError
from molequi.graph import collate, separate
from molequi.neighbors import connect
from molequi.quantities import Quantity
from molequi.readers import read_points
from molequi.symmetry import random_orthogonal

RANDOM = np.random.default_rng(0)
POS = RANDOM.normal(size=(5, 3))
PART = Quantity(name="part", per="node", classes=("leg", "seat"))
SHAPE = Quantity(name="shape", classes=("chair", "lamp"))


def text(folder, rows, name="a.csv", mark=",", head=None):
    lines = ([] if head is None else [head]) + [mark.join(map(str, row)) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


@pytest.mark.parametrize("mark", [",", ";", "\t", " ", ", "])
@pytest.mark.parametrize("head", [True, False])
def test_columns_of_text(tmp_path, mark, head):
    path = text(tmp_path, POS.tolist(), mark=mark, head=mark.join("xyz") if head else None)
    graph = read_points(path)[0]
    np.testing.assert_array_equal(graph.pos, POS)
    assert graph.z.tolist() == [0] * 5 and graph.x is None and graph.vec is None and graph.vel is None


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7])
def test_any_number_of_dimensions(tmp_path, dim):
    pos = RANDOM.normal(size=(6, dim))
    names = list("xyz"[:dim]) if dim <= 3 else [f"x{k}" for k in range(dim)]
    np.save(tmp_path / "a.npy", pos)
    np.savez(tmp_path / "a.npz", pos=pos)
    by_name = read_points(text(tmp_path, pos.tolist(), head=",".join(names)))
    said = read_points(tmp_path / "a.npy", columns=names)
    for data in (by_name, said, read_points(tmp_path / "a.npz")):
        np.testing.assert_array_equal(data[0].pos, pos)
    swapped = read_points(text(tmp_path, pos[:, ::-1].tolist(), head=",".join(names[::-1])))
    np.testing.assert_array_equal(swapped[0].pos, pos)


def test_columns_that_mean_something(tmp_path):
    rows = [
        [*p, *n, *v, s, t, label]
        for p, n, v, s, t, label in zip(
            POS, POS[::-1], 2 * POS, range(5), range(5, 10), ["leg", "seat", "leg", "leg", "seat"]
        )
    ]
    path = text(tmp_path, rows, head="x,y,z,nx,ny,nz,vx,vy,vz,heat,time,part")
    data = read_points(path, features=["time", "heat"], normals=True, quantities=[PART])
    graph = data[0]
    np.testing.assert_array_equal(graph.vec[:, 0], POS[::-1])
    np.testing.assert_array_equal(graph.vel, 2 * POS)
    np.testing.assert_array_equal(graph.x, np.stack([np.arange(5, 10), np.arange(5)], axis=1))
    assert graph.targets["part"].tolist() == [0, 1, 0, 0, 1] and data.quantities == {"part": PART}
    assert read_points(path).unused == {"heat": 1, "time": 1, "part": 1}


def test_names_in_a_comment_and_text_of_other_systems(tmp_path):
    (tmp_path / "a.xyz").write_bytes(
        "\ufeff# made by hand\r\n# x y z heat\r\n1 2 3 4\r\n\r\n5 6 7 8\r\n".encode()
    )
    graph = read_points(tmp_path / "a.xyz", features=["heat"])[0]
    assert graph.pos.tolist() == [[1, 2, 3], [5, 6, 7]] and graph.x.tolist() == [[4], [8]]
    (tmp_path / "a.txt").write_text("1 2 3 4 5 6\n")
    assert read_points(tmp_path / "a.txt", columns=["z", "y", "x", "nx", "ny", "nz"])[0].pos.tolist() == [
        [3, 2, 1]
    ]


def test_arrays_of_one_size(tmp_path):
    many = RANDOM.normal(size=(4, 5, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", many)
    np.savez(
        tmp_path / "a.npz",
        pos=many,
        part=np.arange(20).reshape(4, 5) % 2,
        shape=np.array([0, 1, 1, 0]),
        x=np.ones((4, 5, 2)),
    )
    for data in (read_points(tmp_path / "a.npy"), read_points(tmp_path / "a.npz", quantities=[PART, SHAPE])):
        np.testing.assert_array_equal(np.stack([g.pos for g in data]), many.astype(float))
        assert data.origins[2].endswith("cloud 2")
    assert data[1].targets["part"].tolist() == [1, 0, 1, 0, 1] and data.values("shape").tolist() == [
        0,
        1,
        1,
        0,
    ]
    assert data[0].x.shape == (5, 2)
    assert [len(read_points(tmp_path / f"a.{e}", index="1:3")) for e in ("npy", "npz")] == [2, 2]


RAGGED = dict(
    n_points=np.array([2, 3, 1]),
    pos=RANDOM.normal(size=(6, 3)),
    x=np.arange(6.0),
    normals=RANDOM.normal(size=(6, 3)),
    vel=RANDOM.normal(size=(6, 3)),
    part=np.array([0, 1, 0, 0, 1, 1]),
    part_classes=np.array(["seat", "leg"]),
    shape=np.array([1, 0, 1]),
    shape_classes=np.array(["chair", "lamp"]),
    volume=np.array([1.0, 2.0, 3.0]),
    name=np.array(["a", "b", "c"]),
    train=np.array([2, 0]),
    other=np.zeros((6, 4)),
)


@pytest.fixture
def ragged(tmp_path):
    np.savez(tmp_path / "a.npz", **RAGGED)
    return tmp_path / "a.npz"


def test_arrays_of_all_sizes(ragged):
    data = read_points(ragged, normals=True)
    assert data.counts.tolist() == [2, 3, 1] and data.info == {"name": ("a", "b", "c")}
    assert data.quantities["shape"] == SHAPE and data.quantities["part"].classes == ("seat", "leg")
    assert data.values("shape").tolist() == [1, 0, 1] and data[1].targets["part"].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(data[1].pos, RAGGED["pos"][2:5])
    np.testing.assert_array_equal(data[1].vec[:, 0], RAGGED["normals"][2:5])
    np.testing.assert_array_equal(data[1].vel, RAGGED["vel"][2:5])
    assert data[1].x.tolist() == [[2], [3], [4]] and set(data.unused) == {"other", "volume"}
    assert read_points(ragged, part="train").info["name"] == ("c", "a")
    assert read_points(ragged, index=[1]).info["name"] == ("b",)


def test_classes_go_by_their_names(ragged):
    """The caller's order of classes, which is the model's, may be another than that of the file."""
    whole = Quantity(name="shape", classes=("lamp", "sofa", "chair"))
    data = read_points(ragged, quantities=[whole, PART, Quantity(name="volume")])
    assert data.values("shape").tolist() == [0, 2, 0]
    assert data.values("part").tolist() == [1, 0, 1, 1, 0, 0]
    assert data.values("volume").tolist() == [1, 2, 3]


@pytest.fixture
def meshes(tmp_path):
    """A box of 1 x 2 x 3 in four formats."""
    box = trimesh.creation.box(extents=(1, 2, 3))
    for kind in ("ply", "off", "obj", "stl"):
        box.export(tmp_path / f"box.{kind}")
    return tmp_path


@pytest.mark.parametrize("kind", ["ply", "off", "obj", "stl"])
def test_surfaces_are_sampled_uniformly(meshes, kind):
    graph = read_points(meshes / f"box.{kind}", samples=4000, normals=True)[0]
    pos, normal, half = graph.pos.numpy(), graph.vec[:, 0].numpy(), np.array([1, 2, 3]) / 2
    assert (abs(pos) <= half + 1e-6).all()
    on = abs(abs(pos) - half) < 1e-6
    assert on.any(1).all(), "every point lies on the surface"
    share = on.mean(0)  # 6, 3 and 2 of 11 of the area
    np.testing.assert_allclose(share, np.array([6, 3, 2]) / 11, atol=0.03)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-6)
    axis = abs(normal).argmax(1)
    rows = np.arange(len(pos))
    assert on[rows, axis].all() and (normal[rows, axis] * pos[rows, axis] > 0).all(), (
        "normals point outwards from that face"
    )
    for k in range(3):  # uniform on a face: variance of the two other coordinates
        for other in {0, 1, 2} - {k}:
            assert pos[axis == k, other].var() == pytest.approx(half[other] ** 2 / 3, rel=0.12)


def test_samples_follow_from_the_seed_and_the_file(meshes):
    first = read_points(meshes / "box.off")[0].pos
    assert first.shape == (1024, 3)
    assert torch.equal(read_points([meshes / "box.stl", meshes / "box.off"])[1].pos, first), (
        "not from files before it"
    )
    assert not torch.equal(read_points(meshes / "box.off", seed=1)[0].pos, first)
    (meshes / "large.off").write_text((meshes / "box.off").read_text().replace("0.5", "1.0"))
    large = read_points(meshes / "large.off")[0].pos / torch.tensor([2.0, 1, 1])
    assert (large - first).norm(dim=1).median() > 0.1, "other files are sampled with other random numbers"
    (meshes / "copy.off").write_bytes((meshes / "box.off").read_bytes())
    assert duplicates([read_points(meshes / "box.off"), read_points(meshes / "copy.off")]), (
        "a copy is seen as one"
    )
    vertices = read_points(meshes / "box.ply", samples=None, normals=True)[0]
    assert vertices.num_nodes == 8 and vertices.vec.shape == (8, 1, 3)


@pytest.mark.parametrize(
    "order, mark", [(">", "binary_big_endian"), ("<", "binary_little_endian"), ("", "ascii")]
)
def test_ply_of_points_in_any_order_of_bytes(tmp_path, order, mark):
    columns = [
        ("x", "f4"),
        ("y", "f4"),
        ("z", "f4"),
        ("nx", "f4"),
        ("ny", "f4"),
        ("nz", "f4"),
        ("heat", "f8"),
        ("part", "u1"),
    ]
    names = {"f4": "float", "f8": "double", "u1": "uchar"}
    table = np.zeros(5, [(n, (order or "<") + t) for n, t in columns])
    for n, _ in columns:
        table[n] = RANDOM.integers(0, 2, 5) if n == "part" else RANDOM.integers(-50, 50, 5) / 8
    head = "\n".join(
        [
            "ply",
            f"format {mark} 1.0",
            "element vertex 5",
            *(f"property {names[t]} {n}" for n, t in columns),
            "end_header",
        ]
    )
    body = (
        table.tobytes()
        if order
        else "\n".join(" ".join(str(v) for v in row) for row in table.tolist()).encode()
    )
    (tmp_path / "a.ply").write_bytes(head.encode() + b"\n" + body)
    graph = read_points(tmp_path / "a.ply", features=["heat"], normals=True, quantities=[PART])[0]
    np.testing.assert_array_equal(graph.pos, np.stack([table[n] for n in "xyz"], axis=1).astype(float))
    np.testing.assert_array_equal(graph.vec[:, 0, 1], table["ny"].astype(float))
    np.testing.assert_array_equal(graph.x[:, 0], table["heat"].astype(float))
    assert graph.targets["part"].tolist() == table["part"].tolist()


@pytest.fixture
def folder(tmp_path):
    for kind, size in (("chair", 3), ("lamp", 4), ("table", 5)):
        for part, count in (("train", 2), ("test", 1)):
            (tmp_path / "all" / kind / part).mkdir(parents=True)
            for k in range(count):
                np.save(tmp_path / "all" / kind / part / f"{k}.npy", RANDOM.normal(size=(size, 3)))
                np.save(tmp_path / "all" / kind / f"{part}{k}.npy", RANDOM.normal(size=(size, 3)))
    (tmp_path / "all" / "chair" / "notes.md").write_text("not points")
    return tmp_path / "all"


def test_folder_of_classes(folder):
    data = read_points(folder, part="train")
    assert data.quantities["shape"] == Quantity(name="shape", classes=("chair", "lamp", "table"))
    assert data.values("shape").tolist() == [0, 0, 1, 1, 2, 2] and data.counts.tolist() == [3, 3, 4, 4, 5, 5]
    assert len(read_points(folder, part="test")) == 3 and len(read_points(folder)) == 9
    assert read_points(folder, index="::3").values("shape").tolist() == [0, 1, 2]
    kind = Quantity(name="kind", classes=("table", "chair", "lamp", "sofa"))
    assert read_points(folder, part="test", quantities=[kind]).values("kind").tolist() == [1, 2, 0]
    with pytest.raises(DataError, match="'table', which is no class; known: chair, lamp"):
        read_points(folder, part="test", quantities=[SHAPE])


def test_folder_without_classes_and_lists(folder):
    data = read_points(folder / "lamp" / "train")
    assert len(data) == 2 and not data.quantities and [s.frames for s in data.sources] == [1, 1]
    files = sorted((folder / "lamp" / "train").iterdir())
    assert (
        read_points(files).digest
        == data.digest
        == read_points(str(folder / "lamp" / "train" / "*.npy")).digest
    )


@pytest.mark.parametrize(
    "make, options, sentence",
    [
        (
            lambda f: np.save(f / "beside.npy", POS),
            {},
            "files such as beside.npy beside folders such as chair",
        ),
        (lambda f: (f / "empty").mkdir(), {}, "empty: no files of points"),
        (lambda f: (f / "empty" / "train").mkdir(parents=True), {}, "say part='train'"),
        (
            lambda f: None,
            {"part": "valid"},
            "chair/valid: no files of points.*say part='test', or another of test, train",
        ),
        (lambda f: None, {"index": [9]}, "wanted places among 9 files"),
    ],
)
def test_folders_refused(folder, make, options, sentence):
    make(folder)
    with pytest.raises(DataError, match=sentence):
        read_points(folder, **options)


def test_centring_and_scaling_keep_equivariance(tmp_path):
    """Turned and shifted clouds stay turned; one number for all axes; and it can be undone."""
    turn, shift = random_orthogonal(3).numpy(), np.array([300.0, -20.0, 7.0])
    flat = POS * [1, 5, 0.1]
    np.savez(
        tmp_path / "a.npz", pos=np.stack([flat, flat @ turn.T + shift, 40 * flat]), vel=np.stack([flat] * 3)
    )
    data = read_points(tmp_path / "a.npz", normalize="rms")
    one, turned, large = (g.pos.numpy() for g in data)
    np.testing.assert_allclose(turned, one @ turn.T, atol=1e-12)
    np.testing.assert_allclose(large, one, atol=1e-12)
    assert abs(one.mean(0)).max() < 1e-12 and np.square(one).sum(1).mean() == pytest.approx(1, abs=1e-12)
    ratio = (flat - flat.mean(0)) / one
    np.testing.assert_allclose(ratio, data.info["scale"][0], rtol=1e-9)
    for graph, raw, centre, scale in zip(
        data, (flat, flat @ turn.T + shift, 40 * flat), data.info["centre"], data.info["scale"]
    ):
        np.testing.assert_allclose(scale * graph.pos.numpy() + np.array(centre), raw, atol=1e-12)
        np.testing.assert_allclose(scale * graph.vel.numpy(), flat, atol=1e-12)
    untouched = read_points(tmp_path / "a.npz")
    np.testing.assert_array_equal(untouched[1].pos, flat @ turn.T + shift)
    assert not untouched.info


def test_vector_from_the_centroid(tmp_path):
    """Turns with the cloud, does not move with it; with normals and features it comes last."""
    turn = random_orthogonal(3).numpy()
    np.savez(
        tmp_path / "a.npz",
        pos=np.stack([POS, POS @ turn.T + 1e3]),
        normals=np.stack([POS, POS]),
        x=np.ones((2, 5, 2)),
    )
    one, turned = read_points(tmp_path / "a.npz", centroid=True, normals=True)
    np.testing.assert_allclose(one.vec[:, 1], POS - POS.mean(0), atol=1e-12)
    np.testing.assert_allclose(turned.vec[:, 1], one.vec[:, 1].numpy() @ turn.T, atol=1e-11)
    np.testing.assert_allclose(turned.x, one.x, atol=1e-11)
    np.testing.assert_allclose(one.x[:, 2], np.linalg.norm(POS - POS.mean(0), axis=1), atol=1e-12)
    np.testing.assert_array_equal(one.vec[:, 0], POS)
    alone = read_points(tmp_path / "a.npz", centroid=True, normalize="rms", index=0)[0]
    np.testing.assert_allclose(alone.vec[:, 0], alone.pos, atol=1e-14)


def test_labels_that_are_positions_move_along(tmp_path):
    later = POS + [0.5, 0, 0]
    np.savez(tmp_path / "a.npz", pos=POS, later=later, pull=POS)
    wanted = [
        Quantity(name="later", per="node", rank=1, point=True),
        Quantity(name="pull", per="node", rank=1),
    ]
    data = read_points(tmp_path / "a.npz", normalize="rms", quantities=wanted)
    moved = data[0].targets["later"] - data[0].pos
    np.testing.assert_allclose(moved * data.info["scale"][0], later - POS, atol=1e-12)
    np.testing.assert_array_equal(data[0].targets["pull"], POS)


@pytest.mark.parametrize("kind", [EGNN, PaiNN])
def test_very_different_sizes_in_one_batch(kind, tmp_path):
    sizes = [1, 3000, 2, 40, 7]
    np.savez(tmp_path / "a.npz", pos=RANDOM.normal(size=(sum(sizes), 3)), n_points=sizes)
    data = read_points(tmp_path / "a.npz", normalize="rms")
    model = Model(kind(elements=["X"], cutoff=1.0, k=6, channels=8, layers=2), [SHAPE, PART]).double().eval()
    graphs = [connect(g, 1.0, k=6) for g in data]
    together = model(collate(graphs))
    alone = [model(g) for g in graphs]
    for name in ("shape", "part"):
        torch.testing.assert_close(
            together[name], torch.cat([a[name] for a in alone]), rtol=1e-10, atol=1e-10
        )
    assert together["part"].shape == (sum(sizes), 2) and together["shape"].shape == (5, 2)
    assert [g.num_nodes for g in separate(collate(graphs))] == sizes
    assert together["shape"].std(0).min() > 1e-6, "and the clouds are told apart"


def test_from_a_configuration(folder):
    options = {"path": str(folder), "normalize": "rms", "split": {"train": 6, "valid": 3}}
    predict = [{"name": "shape", "classes": ["lamp", "chair", "table"]}]
    parts = read_data({"data": {"points": options}, "predict": predict, "train": {"epochs": 1}})
    assert isinstance(parts["train"], Dataset) and len(parts["train"]) == 6
    assert parts["valid"].quantities["shape"].classes == ("lamp", "chair", "table")
    with pytest.raises(
        ConfigError, match="normalise: no such option of read_points; did you mean 'normalize'"
    ):
        read_data(
            {"data": {"points": {**options, "normalise": "rms"}}, "predict": predict, "train": {"epochs": 1}}
        )
    with pytest.raises(ConfigError, match="samples: found 0"):
        read_data({"data": {"points": {**options, "samples": 0}}, "predict": predict, "train": {"epochs": 1}})


@pytest.mark.parametrize(
    "name, content, options, sentence",
    [
        ("a.csv", "x,y,z\n", {}, "no points below the names"),
        ("a.csv", "x,y,z\n1,2,3\n1,2\n", {}, "line 3: 2 columns; wanted 3"),
        ("a.csv", "x,y,z\n1,2,3\n1,two,3\n", {}, "line 3: column 'y' is 'two'; wanted a number"),
        ("a.csv", "x,y,x\n1,2,3\n", {}, "two columns of the same name"),
        ("a.csv", "a,b\n1,2\n", {}, "no columns 'x', 'y', 'z'"),
        ("a.csv", "1,2,3,4,5,6\n", {}, "6 columns without names; say what they are"),
        ("a.csv", "1,2,3\n", {"columns": ["x", "y"]}, "3 columns, and columns=.* names 2"),
        ("a.csv", "x,y,z\n1,2,3\n", {"features": ["heat"]}, "no column 'heat' for features"),
        ("a.csv", "x,y,z,nx\n1,2,3,4\n", {}, "3 columns of positions and 1 of normals"),
        ("a.csv", "x,y,z\n1,2,3\n", {"normals": True}, "no normals in it"),
        ("a.csv", "x,y,z\n1,2,3\n", {"quantities": [PART]}, "no 'part' for each point"),
        (
            "a.csv",
            "x,y,z\n1,2,3\n",
            {"part": "train"},
            "an array of an .npz or a subfolder, which .csv does not have",
        ),
        ("a.xyz", "3\nwater\nO 0 0 0\nH 0 0 1\nH 0 1 0\n", {}, "read those with mq.read_extxyz"),
        ("a.xyz", b"\xff\xfe\x00\x01", {}, "not a text file"),
        ("a.off", "OFF\n0 0 0\n", {}, r"not a readable|no points"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n", {}, "a surface without area"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", {"features": ["heat"]}, "say samples=None"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", {"columns": ["x"]}, "has names of its own"),
        ("a.bin", "1 2 3\n", {}, "files of points end in .npy"),
    ],
)
def test_refused(tmp_path, name, content, options, sentence):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_points(path, **options)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change, options, sentence",
    [
        ({"n_points": [2, 3, 2]}, {}, "n_points adds up to 7 points, and pos has 6"),
        ({"n_points": [2.0, 3, 1]}, {}, "wanted integers"),
        ({"pos": RAGGED["pos"].astype(str)}, {}, "wanted numbers"),
        ({"pos": np.zeros((3, 2, 3))}, {}, r"\(G, N, D\) without"),
        ({"x": np.zeros(3)}, {}, r"x has the shape \(3,\); wanted \(6,\) first"),
        ({"normals": np.zeros((6, 2))}, {"normals": True}, "cloud 0: vec of shape"),
        ({"shape_classes": np.array(["one"])}, {}, "wanted two or more different names"),
        ({"part_classes": np.arange(2)}, {}, "wanted two or more different names"),
        (
            {"shape": np.zeros(4, int)},
            {},
            r"shape has the shape \(4,\); wanted one entry a cloud \(3\) or a point",
        ),
        (
            {},
            {"quantities": [Quantity(name="shape", per="node", classes=("chair", "lamp"))]},
            "one for each cloud, say per='graph'",
        ),
        (
            {},
            {"quantities": [Quantity(name="volumes")]},
            "no 'volumes' for each cloud; did you mean 'volume'",
        ),
        ({}, {"partial": ["part", "shpae"]}, "partial: 'shpae' is not read; did you mean 'shape'"),
        (
            {"volume": np.array([1.0, np.nan, 2])},
            {"quantities": [Quantity(name="volume")]},
            "cloud 1: volume is nan",
        ),
        ({}, {"part": "trian"}, "no array 'trian'"),
        ({}, {"features": ["heat"]}, "no array 'heat' for features"),
        ({"vec": np.zeros((6, 1, 3))}, {"normals": True}, "'vec' is there already"),
    ],
)
def test_arrays_refused(tmp_path, change, options, sentence):
    np.savez(tmp_path / "a.npz", **{**RAGGED, **change})
    with pytest.raises(DataError, match=sentence) as caught:
        read_points(tmp_path / "a.npz", **options)
    assert str(tmp_path / "a.npz") in str(caught.value) or "partial" in sentence


def test_clouds_that_do_not_fit_together(tmp_path):
    flat = text(tmp_path, [[1, 2]], "flat.csv", head="x,y")
    deep = text(tmp_path, [[1, 2, 3]], "deep.csv", head="x,y,z")
    with pytest.raises(DataError, match="deep.csv: 3 dimensions, and .*flat.csv has 2"):
        read_points([flat, deep])
    for name, order in (("a", ["chair", "lamp"]), ("b", ["lamp", "chair"])):
        np.savez(tmp_path / f"{name}.npz", pos=POS[None], shape=[0], shape_classes=order)
    with pytest.raises(DataError, match="b.npz, cloud 0: shape has the classes lamp, chair"):
        read_points([tmp_path / "a.npz", tmp_path / "b.npz"])
    both = read_points([tmp_path / "a.npz", tmp_path / "b.npz"], quantities=[SHAPE])
    assert both.values("shape").tolist() == [0, 1], "named classes settle it"
