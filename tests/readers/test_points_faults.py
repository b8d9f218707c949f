"""Bad and awkward clouds: each gives a finite and equivariant result, or an error that names the sample. In the order of a list."""

import numpy as np
import pytest
import torch

from molequi import EGNN, Inputs, Model, NequIP, PaiNN
from molequi.data import Dataset
from molequi.errors import DataError, ModelError
from molequi.graph import Graph, collate
from molequi.inference.metrics import Metrics
from molequi.losses import Loss, Objective
from molequi.neighbors import connect
from molequi.quantities import Quantity
from molequi.readers import read_points
from molequi.symmetry import Transform, random_orthogonal

SHAPE = Quantity(name="shape", classes=("chair", "lamp", "mug"))
PART = Quantity(name="part", per="node", classes=("leg", "top"))
ARROW = Quantity(name="arrow", rank=1)
K, CUTOFF, DIGITS = 4, 2.5, 1e-9
BACKBONES = [EGNN, PaiNN]


def model(kind, *, cutoff=CUTOFF, k=K, **options):
    """Random weights, biases too, so that nothing passes by being zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = (
            Model(
                kind(elements=["X"], cutoff=cutoff, k=k, channels=8, layers=2, **options),
                [SHAPE, PART, ARROW],
            )
            .double()
            .eval()
        )
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def predict(made, graph):
    return made(connect(graph, made.cutoff, k=made.k))


def finite_and_equivariant(pos, *, draws=4, scale=1.0, shift=1.0, kinds=BACKBONES, k=K, cutoff=CUTOFF):
    """Every backbone on this cloud, against itself turned, mirrored, shifted and in another order. Returns the last result."""
    graph = Graph.single(pos)
    generator = torch.Generator().manual_seed(1)
    for kind in kinds:
        made = model(kind, cutoff=cutoff, k=k)
        out = predict(made, graph)
        assert all(bool(value.isfinite().all()) for value in out.values())
        for _ in range(draws):
            g = Transform.single(
                rotation=random_orthogonal(graph.dim, generator=generator),
                translation=shift * torch.randn(graph.dim, generator=generator, dtype=torch.float64),
                permutation=torch.randperm(graph.num_nodes, generator=generator),
            )
            moved = predict(made, g.graph(graph))
            for quantity in (SHAPE, PART, ARROW):
                wanted = g.value(quantity, out[quantity.name])
                torch.testing.assert_close(moved[quantity.name], wanted, rtol=DIGITS, atol=DIGITS * scale)
    return out


def saved(folder, **arrays):
    np.savez(folder / "clouds.npz", **arrays)
    return folder / "clouds.npz"


def refused(path, *words, **options):
    with pytest.raises(DataError) as caught:
        read_points(path, **options)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)


CLOUD = np.random.default_rng(0).normal(size=(12, 3))


def test_control():
    """The check itself sees a difference: a model whose arrow is that of another cloud, and one that is not equivariant."""
    out = finite_and_equivariant(CLOUD)
    assert out["arrow"].abs().max() > 1e-3 and out["shape"].std() > 1e-3 and out["part"].std(0).min() > 1e-4
    with pytest.raises(AssertionError):
        finite_and_equivariant(CLOUD, k=4, shift=1e8)  # shifted so far that half of the digits are lost
    with pytest.raises(DataError, match="from the origin, where two neighboring numbers are"):
        finite_and_equivariant(CLOUD, k=4, shift=1e15)


def test_d01_one_point_or_none(tmp_path):
    finite_and_equivariant([[3.0, -1.0, 2.0]])
    finite_and_equivariant([[3.0, -1.0]])
    one = read_points(saved(tmp_path, pos=[[3.0, -1, 2]]), normalize="rms")
    assert one[0].pos.tolist() == [[0, 0, 0]] and one.info["scale"] == (1.0,)
    refused(saved(tmp_path, pos=np.zeros((4, 3)), n_points=[4, 0]), "cloud 1: 0 points; wanted at least one")
    refused(saved(tmp_path, pos=np.zeros((0, 3))), "cloud 0: 0 points")
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    refused(tmp_path / "none.npy", "no points")
    (tmp_path / "none.xyz").write_text("\n\n")
    refused(tmp_path / "none.xyz", "no points in this file")
    (tmp_path / "none.off").write_text("OFF\n0 0 0\n")
    refused(tmp_path / "none.off", "no points in this .off file")


def test_d02_points_twice():
    twice = np.concatenate([CLOUD, CLOUD[:5], CLOUD[:2]])
    for k, cutoff in ((K, CUTOFF), (1, CUTOFF), (None, CUTOFF), (K, None), (None, None)):
        finite_and_equivariant(twice, k=k, cutoff=cutoff)
    graph = Graph.single(twice)
    linked = connect(graph, CUTOFF, k=2)
    assert bool((linked.edge_index[0] != linked.edge_index[1]).all()), "no point is its own neighbour"
    assert {(0, 12), (12, 0), (0, 17), (17, 0), (12, 17)} <= set(map(tuple, linked.edge_index.T.tolist()))
    # gradients at zero distances are finite too
    for kind in BACKBONES:
        made = model(kind)
        pos = torch.tensor(twice, requires_grad=True)
        out = made(connect(graph, CUTOFF, k=K).replace(pos=pos), create_graph=True)
        (out["shape"].sum() + out["arrow"].sum()).backward()
        assert bool(pos.grad.isfinite().all()) and float(pos.grad.abs().max()) > 0


def test_d03_all_points_equal(tmp_path):
    for far in (0.0, 1.0, 1e6, 1 / 3 * 1e8):
        data = read_points(saved(tmp_path, pos=np.full((2, 6, 3), far)), normalize="rms")
        assert all(bool((g.pos == 0).all()) for g in data) and data.info["scale"] == (1.0, 1.0)
    same = finite_and_equivariant(np.full((6, 3), 0.7))
    assert same["arrow"].abs().max() < 1e-12, "no direction is singled out"
    assert (same["part"] - same["part"][0]).abs().max() < 1e-12


def test_d04_points_on_a_line():
    line = np.outer(np.array([-2.0, -1.1, -0.4, 0.0, 0.7, 1.9]), [1.0, 2.0, -0.5])
    out = finite_and_equivariant(line)
    along = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    assert torch.linalg.cross(out["arrow"][0], along).abs().max() < 1e-9, "a vector of a line lies on it"
    finite_and_equivariant(line[:, :1])


def test_d05_points_in_a_plane():
    """A method that builds a frame finds no third axis here, or flips its sign; vectors of a plane lie in it."""
    flat = CLOUD * [1, 1, 0]
    out = finite_and_equivariant(flat)
    assert out["arrow"][0, 2].abs() < 1e-12 < out["arrow"].abs().max()
    nearly = flat + np.outer(np.random.default_rng(1).normal(size=12), [0, 0, 1e-9])
    close = finite_and_equivariant(nearly)
    for name in out:
        torch.testing.assert_close(close[name], out[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name, pos",
    [
        ("cube", np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(-1, 3)),
        ("octahedron", np.concatenate([np.eye(3), -np.eye(3)])),
        ("square", np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])),
        ("hexagon", np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], axis=1)),
        ("lattice", np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)),
    ],
)
def test_d06_equal_principal_moments(name, pos):
    pos = pos.astype(float)
    for k in (1, 3, None):
        out = finite_and_equivariant(pos, k=k, cutoff=2.5)
        assert out["arrow"].abs().max() < 1e-10, "its symmetry leaves no direction"
    nudged = pos.copy()
    nudged[0] *= 1 + 1e-7
    after = finite_and_equivariant(nudged, k=None)
    for name in out:
        torch.testing.assert_close(after[name], out[name], rtol=1e-4, atol=1e-4)


def test_d07_nan_and_infinity(tmp_path):
    for value in (np.nan, np.inf, -np.inf):
        pos = CLOUD.copy()
        pos[7, 1] = value
        refused(saved(tmp_path, pos=np.stack([CLOUD, pos])), "cloud 1: position of point 7 is", str(value))
        refused(saved(tmp_path, pos=CLOUD, x=pos), "cloud 0: x of point 7 is")
        refused(saved(tmp_path, pos=CLOUD, normals=pos), "cloud 0: normals of point 7 is", normals=True)
        (tmp_path / "a.csv").write_text(f"x,y,z\n1,2,3\n4,{value},6\n")
        refused(tmp_path / "a.csv", "position of point 1 is")
        (tmp_path / "a.off").write_text(f"OFF\n3 1 0\n0 0 0\n1 0 {value}\n0 1 0\n3 0 1 2\n")
        refused(tmp_path / "a.off", "a.off")
        with pytest.raises(DataError, match="position of atom 7"):
            Graph.single(pos)
        graph = Graph.single(CLOUD)
        with pytest.raises(DataError, match="not finite"):
            connect(graph.replace(pos=torch.tensor(pos)), 1.0, k=3)


@pytest.mark.parametrize("size", [1e6, 1e-6])
def test_d08_huge_and_tiny(tmp_path, size):
    """Of another scale: the same after normalisation. Far away: differences keep their digits."""
    clouds = np.stack([CLOUD, CLOUD * size, CLOUD * size + 1e6 * size, CLOUD + 1e6])
    data = read_points(saved(tmp_path, pos=clouds), normalize="rms")
    for graph, digits in zip(data, (1e-12, 1e-12, 1e-9, 1e-9)):
        np.testing.assert_allclose(graph.pos, data[0].pos, atol=digits)
    outs = [predict(model(PaiNN), g) for g in data]
    for out, digits in zip(outs, (1e-12, 1e-9, 1e-6, 1e-6)):
        for name in out:
            torch.testing.assert_close(out[name], outs[0][name], rtol=digits, atol=digits)
    finite_and_equivariant(CLOUD * size, shift=size, scale=max(size, 1.0))
    finite_and_equivariant(CLOUD * size, shift=size, cutoff=None, scale=max(size, 1.0))
    finite_and_equivariant(CLOUD * size, shift=size, cutoff=2.5 * size, scale=max(size, 1.0))


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_d09_fewer_points_than_k(n):
    graph = connect(Graph.single(CLOUD[:n]), None, k=50)
    assert graph.edge_index.shape[1] == n * (n - 1), "all others"
    finite_and_equivariant(CLOUD[:n], k=50, cutoff=None)
    finite_and_equivariant(CLOUD[:n], k=50)


@pytest.mark.parametrize("kind", BACKBONES)
def test_d10_very_different_sizes(kind):
    rng = np.random.default_rng(2)
    graphs = [Graph.single(rng.normal(size=(n, 3))) for n in (1, 2000, 3, 50)]
    made = model(kind)
    together = made(collate([connect(g, CUTOFF, k=K) for g in graphs]))
    for name, value in together.items():
        torch.testing.assert_close(
            value, torch.cat([predict(made, g)[name] for g in graphs]), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("kind", BACKBONES)
def test_d11_number_of_features(kind, tmp_path):
    graph = Graph.single(CLOUD, x=np.ones((12, 3)), vec=np.ones((12, 1, 3)))
    with pytest.raises(
        ModelError, match="3 features a node and the model takes none; build it with .*node_features=3"
    ):
        predict(model(kind, inputs=Inputs(node_vectors=1)), graph)
    with pytest.raises(ModelError, match=r"takes 2 features of each node \(Graph.x\); found 3"):
        predict(model(kind, inputs=Inputs(node_features=2, node_vectors=1)), graph)
    with pytest.raises(
        ModelError, match="takes 0 vectors of each node.*found 1; build it with .*node_vectors=1"
    ):
        predict(model(kind, inputs=Inputs(node_features=3)), graph)
    with pytest.raises(ModelError, match=r"takes 3 features of each node \(Graph.x\); found none"):
        predict(model(kind, inputs=Inputs(node_features=3)), Graph.single(CLOUD))
    assert (
        predict(model(kind, inputs=Inputs(node_features=3, node_vectors=1)), graph)["shape"].isfinite().all()
    )
    with pytest.raises(DataError, match=r"x of shape \(11, 3\) for 12 nodes"):
        Graph.single(CLOUD, x=np.ones((11, 3)))
    for name, width in (("a", 2), ("b", 3)):
        np.savez(tmp_path / f"{name}.npz", pos=CLOUD, x=np.ones((12, width)))
    with pytest.raises(DataError, match="b.npz, cloud 0: 3 columns of x, and .*a.npz, cloud 0 has 2"):
        read_points([tmp_path / "a.npz", tmp_path / "b.npz"])


def test_d12_labels_out_of_range_and_missing_classes(tmp_path):
    pos, names = np.stack([CLOUD] * 3), np.array(SHAPE.classes)
    for label, word in (
        (3, "is 3; wanted the number of a class, 0 to 2 (chair, lamp, mug)"),
        (-2, "is -2;"),
        (-1, "not known (-1)"),
    ):
        refused(
            saved(tmp_path, pos=pos, shape=np.array([0, 1, label]), shape_classes=names),
            "cloud 2: shape",
            word,
        )
    refused(
        saved(tmp_path, pos=pos, shape=np.array([0, 0.5, 1]), shape_classes=names), "cloud 1: shape is 0.5"
    )
    refused(
        saved(tmp_path, pos=pos, shape=np.array(["mug", "lamp", "lmap"])),
        "cloud 2: shape is 'lmap'",
        "did you mean 'lamp'",
        quantities=[SHAPE],
    )
    part = np.zeros((3, 12), int)
    part[1, 4] = 2
    refused(saved(tmp_path, pos=pos, part=part), "cloud 1: part of point 4 is 2", quantities=[PART])
    (tmp_path / "a.csv").write_text("x,y,z,part\n1,2,3,leg\n1,2,4,tpo\n")
    refused(tmp_path / "a.csv", "part of point 1 is 'tpo'", "did you mean 'top'", quantities=[PART])
    # unknown where that was said: masked, and nothing else
    data = read_points(
        saved(tmp_path, pos=pos, shape=np.array([0, -1, 1]), shape_classes=names), partial=["shape"]
    )
    assert torch.isnan(data.values("shape")).tolist() == [False, True, False]
    # a class without a single example, and a batch without a known label: finite
    made = model(PaiNN)
    metrics = Metrics({"shape": SHAPE}, data)
    for graphs in (list(data), [data[1]]):
        batch = collate([connect(g, CUTOFF, k=K) for g in graphs])
        out = made(batch)
        loss = Objective([Loss("shape")], {"shape": SHAPE})
        assert bool(loss.total(loss.sums(out, batch), loss.known(batch)).isfinite())
        metrics.update(out, batch)
    errors = metrics.errors()
    assert "mug" not in str(errors) and "chair" in str(errors)
    data.statistics(CUTOFF, k=K)


PLY = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
THREE = np.arange(9).reshape(3, 3)


@pytest.mark.parametrize(
    "name, content, word",
    [
        (
            "few.ply",
            PLY.format("ascii", 5) + "0 0 0\n1 2 3\n",
            "the header says 5 lines of elements, and there are 2",
        ),
        (
            "many.ply",
            PLY.format("ascii", 1) + "0 0 0\n1 2 3\n",
            "the header says 1 lines of elements, and there are 2",
        ),
        ("text.ply", PLY.format("ascii", 2) + "0 0 0\n1 two 3\n", "not a readable .ply file"),
        (
            "few_big.ply",
            PLY.format("binary_big_endian", 4).encode() + THREE.astype(">f4").tobytes(),
            "not a readable .ply file",
        ),
        (
            "few_little.ply",
            PLY.format("binary_little_endian", 4).encode() + THREE.astype("<f4").tobytes(),
            "not a readable .ply file",
        ),
        ("junk.ply", bytes(range(256)), "not a readable .ply file"),
        ("few.off", "OFF\n5 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "not a readable .off file"),
        ("text.off", "OFF\n3 1 0\n0 0 0\n1 0 zero\n0 1 0\n3 0 1 2\n", "not a readable .off file"),
        ("face.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n", "not a readable .off file"),
        (
            "face.obj",
            "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n",
            "line 4: a face names a vertex that is not there",
        ),
        ("text.obj", "v 0 0 0\nv 1 0 x\nv 0 1 0\nf 1 2 3\n", "line 2: vertex '1 0 x'"),
        ("empty.obj", "", "no points"),
        ("junk.stl", "hello", "no points"),
        ("few.stl", b"\0" * 80 + (12).to_bytes(4, "little") + b"\0" * 120, "no points"),
        ("junk.npy", "hello", "not a readable .npy file"),
        ("junk.npz", "hello", "not a readable .npz file"),
        ("empty.npz", "", "npz file"),
        ("text.npy", None, "wanted numbers"),
        ("objects.npy", None, "not a readable .npy file"),
        ("flat.npy", None, "wanted numbers (N, columns)"),
        ("cut.npy", None, "not a readable .npy file"),
        ("text.xyz", "1 2 3\n1 2 ***\n", "line 2: column 'z' is '***'"),
        ("ragged.xyz", "1 2 3\n1 2\n", "line 2: 2 columns"),
    ],
)
def test_d13_malformed_files(tmp_path, name, content, word):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    else:
        arrays = {
            "text": np.array([["a", "b"]]),
            "objects": np.array([[{}]]),
            "flat": np.zeros(3),
            "cut": np.zeros((9, 3)),
        }
        np.save(path, arrays[path.stem], allow_pickle=True)
        if path.stem == "cut":
            path.write_bytes(path.read_bytes()[:-40])
    refused(path, word)


def test_d13_big_endian_is_read(tmp_path):
    for mark, order in (("binary_big_endian", ">f4"), ("binary_little_endian", "<f4")):
        (tmp_path / "a.ply").write_bytes(PLY.format(mark, 3).encode() + THREE.astype(order).tobytes())
        assert read_points(tmp_path / "a.ply")[0].pos.tolist() == THREE.tolist()
    np.save(tmp_path / "a.npy", THREE.astype(">f8"))
    assert read_points(tmp_path / "a.npy")[0].pos.tolist() == THREE.tolist()


def test_d14_ties_order_and_mirrors():
    """Ties on the radius: all or none of the equally far, whatever the order. Permuted: the same. Mirrored: O(n) models see no
    difference, one of SO(3) may, and still turns along."""
    square = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), -1).reshape(-1, 2)
    for cutoff, degree in ((1.0, 0), (np.nextafter(1.0, 2), 4), (np.sqrt(2.0), 4)):
        edges = connect(Graph.single(square), cutoff).edge_index
        assert int((edges[1] == 12).sum()) == degree, "a distance equal to the cutoff is no edge"
    for k, degree in ((1, 4), (4, 4), (5, 8), (8, 8), (9, 12)):
        edges = connect(Graph.single(square), None, k=k).edge_index
        assert int((edges[1] == 12).sum()) == degree, "all that are as far as the k-th are neighbours"
    for cutoff in (1.0, np.sqrt(2.0)):
        finite_and_equivariant(square, k=None, cutoff=float(cutoff))
    # left and right hands
    mirror = Transform.single(rotation=torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)))
    graph = Graph.single(CLOUD)
    for kind in BACKBONES:
        made = model(kind)
        assert made.group == "O(n)"
        there, here = predict(made, mirror.graph(graph)), predict(made, graph)
        for quantity in (SHAPE, PART, ARROW):
            torch.testing.assert_close(
                there[quantity.name], mirror.value(quantity, here[quantity.name]), rtol=DIGITS, atol=DIGITS
            )
    # a model of rotations alone tells them apart, and still turns along
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = (
            Model(
                NequIP(elements=["X"], cutoff=CUTOFF, channels=4, layers=3, group="SO(3)"),
                [SHAPE, PART, ARROW],
            )
            .double()
            .eval()
        )
    here, there = (made(connect(g, CUTOFF)) for g in (graph, mirror.graph(graph)))
    assert (here["shape"] - there["shape"]).abs().max() > 1e-6
    g = Transform.single(
        rotation=random_orthogonal(3, proper=True, generator=torch.Generator().manual_seed(3))
    )
    turned = made(connect(g.graph(graph), CUTOFF))
    for quantity in (SHAPE, PART, ARROW):
        torch.testing.assert_close(
            turned[quantity.name], g.value(quantity, here[quantity.name]), rtol=DIGITS, atol=DIGITS
        )
    hand = Quantity(name="hand", pseudo=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = (
            Model(NequIP(elements=["X"], cutoff=CUTOFF, channels=4, layers=3, parity=True), [SHAPE, hand])
            .double()
            .eval()
        )
    left, right = (made(connect(g, CUTOFF)) for g in (graph, mirror.graph(graph)))
    torch.testing.assert_close(left["shape"], right["shape"], rtol=DIGITS, atol=DIGITS)
    torch.testing.assert_close(left["hand"], -right["hand"], rtol=DIGITS, atol=DIGITS)
    assert left["hand"].abs().max() > 1e-8, "a pseudoscalar tells the hands apart"


def test_data_of_clouds_hold_together():
    with pytest.raises(DataError, match="one has 'x' and the other has not"):
        Dataset([Graph.single(CLOUD, x=np.ones((12, 1))), Graph.single(CLOUD)])
