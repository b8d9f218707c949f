"""samples=None are the vertices of the file in its order, all of them; and damaged files of points are refused."""

import re

import numpy as np
import pytest

from molequi.errors import DataError
from molequi.readers import read_points
from molequi.readers.obj import read_obj

CUBE = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
QUADS = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]


def rows(mark="", more=""):
    return "".join(f"{mark}{x:g} {y:g} {z:g}{more}\n" for x, y, z in CUBE)


OBJ = {
    "plain": rows("v ") + "".join("f {} {} {} {}\n".format(*q) for q in QUADS),
    "a normal for each face": rows("v ")
    + "".join(f"vn 0 0 {k}\n" for k in range(1, 7))
    + "".join("f " + " ".join(f"{i}//{k + 1}" for i in q) + "\n" for k, q in enumerate(QUADS)),
    "places on a picture": rows("v ") + "vt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\nf 1/3 2/2 4/1\n",
    "vertices without a face": rows("v ") + "f 8 7 6\n",
    "two materials": rows("v ") + "usemtl b\nf 5 6 7\nusemtl a\nf 1 2 3\n",
    "two objects": "o b\n" + rows("v ") + "f -4 -3 -2\no a\nf 1 2 3\n",
    "colors": rows("v ", " 1 0 0") + "f 1 2 3\n",
    "weights, comments": "# cube\n" + rows("v ", " 1.0 # corner") + "f 1 2 \\\n 3\n",
    "faces first": "f 1 2 3\n" + rows("v "),
    "no faces": rows("v ") + "l 1 2\n",
}
PLY = "ply\nformat ascii 1.0\n{}element vertex 8\nproperty float x\nproperty float y\nproperty float z\n{}"
LIST = "property list uchar int vertex_indices\n"
OTHER = {
    "off": "OFF\n8 1 0\n" + rows() + "3 7 6 5\n",
    "modelnet.off": "OFF8 1 0\n" + rows() + "3 7 6 5\n",
    "color.off": "COFF\n8 1 0\n" + rows(more=" 255 0 0 255") + "3 7 6 5\n",
    "ply": PLY.format("", "element face 1\n" + LIST + "end_header\n") + rows() + "3 7 6 5\n",
    "texture.ply": PLY.format(
        "comment TextureFile a.png\n",
        "element face 2\n" + LIST + "property list uchar float texcoord\nend_header\n",
    )
    + rows()
    + "3 0 1 2 6 0 0 1 0 0 1\n3 0 1 3 6 .5 .5 .2 .2 .1 .1\n",
}


@pytest.mark.parametrize("text", OBJ.values(), ids=OBJ)
def test_vertices_of_obj_are_those_of_the_file(tmp_path, text):
    pytest.importorskip("trimesh")
    (tmp_path / "a.obj").write_text(text)
    np.testing.assert_array_equal(read_points(tmp_path / "a.obj", samples=None)[0].pos, CUBE)


@pytest.mark.parametrize("name", OTHER)
def test_vertices_of_other_surfaces_are_those_of_the_file(tmp_path, name):
    pytest.importorskip("trimesh")
    path = tmp_path / f"a.{name}"
    path.write_text(OTHER[name])
    np.testing.assert_array_equal(read_points(path, samples=None)[0].pos, CUBE)


def test_stl_has_the_corners_of_each_facet(tmp_path):
    pytest.importorskip("trimesh")
    facets, text = CUBE[[[0, 1, 2], [3, 1, 0]]], ""
    for name, facet in zip("ba", facets):  # two solids, not in alphabetical order
        corners = "".join("vertex {} {} {}\n".format(*p) for p in facet)
        text += f"solid {name}\nfacet normal 0 0 1\nouter loop\n{corners}endloop\nendfacet\nendsolid {name}\n"
    (tmp_path / "a.stl").write_text(text)
    np.testing.assert_array_equal(read_points(tmp_path / "a.stl", samples=None)[0].pos, facets.reshape(-1, 3))


def test_normals_and_surface_of_the_same_obj(tmp_path):
    """The cube has an area of 6 by hand; normals of its corners are the diagonals."""
    trimesh = pytest.importorskip("trimesh")
    vertices, faces = read_obj(tmp_path, OBJ["a normal for each face"].encode())
    assert trimesh.triangles.area(vertices[faces]).sum() == pytest.approx(6)
    (tmp_path / "a.obj").write_text(OBJ["two materials"])
    drawn = read_points(tmp_path / "a.obj", samples=200)[0].pos
    assert set(np.unique(drawn[:, 0]).round(9)) == {0.0, 1.0}, "both materials are drawn from"
    corner = read_points(tmp_path / "a.obj", samples=None, normals=True)[0]
    assert corner.vec.shape == (8, 1, 3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("v 1 2\nv 1 2 3\n", "line 1: vertex '1 2'; wanted three finite numbers"),
        ("v 1 2 a\n", "line 1: vertex '1 2 a'"),
        ("v 1 2 nan\n", "line 1: vertex '1 2 nan'"),
        ("v 1 2 3 0.5\n", "line 1: vertex '1 2 3 0.5' has the weight 0.5"),
        (rows("v ") + "f 1 2\n", "line 9: face '1 2'; wanted three or more"),
        (rows("v ") + "f 0 1 2\n", "line 9: face '0 1 2'"),
        (rows("v ") + "f 1 2 x/3\n", "line 9: face '1 2 x/3'"),
        (rows("v ") + "f 1 2 3\nf 1 2 9\n", "line 10: a face names a vertex that is not there; there are 8"),
        (rows("v ") + "f -1 -2 -9\n", "line 9: a face names a vertex"),
        (
            "v 1e155 0 0\nv 0 0 0\nv 0 1 0\nf 1 2 3\n",
            "vertex 0 is .1e.155, 0.0, 0.0.; wanted finite numbers below",
        ),
    ],
)
@pytest.mark.parametrize("samples", [None, 5])
def test_damaged_obj(tmp_path, text, sentence, samples):
    pytest.importorskip("trimesh")
    (tmp_path / "a.obj").write_text(text)
    if samples is None and "1e155" in text:
        sentence = "position of point 0 is .1e.155, 0.0, 0.0.; wanted numbers below 1e.100"
    with pytest.raises(DataError, match=f"a.obj.*{sentence}"):
        read_points(tmp_path / "a.obj", samples=samples)


@pytest.mark.parametrize("cut", ["8 6 12\n" + rows() + "3 0 1 2\n", "8 0 0\n" + rows() + "5 5 5\n"])
def test_off_with_lines_too_few_or_many(tmp_path, cut):
    pytest.importorskip("trimesh")
    (tmp_path / "a.off").write_text("OFF\n" + cut)
    with pytest.raises(DataError, match="a.off: the header says 8 vertices and . faces, and 9 lines follow"):
        read_points(tmp_path / "a.off", samples=None)


@pytest.mark.parametrize("header", ["0,1,2", "2,3,0", "2,3"])
def test_a_header_of_numbers_is_no_point(tmp_path, header):
    """pandas writes 0,1,2 above columns without names; others write the number of points."""
    width = header.count(",") + 1
    lines = [",".join(f"{k}.5" for k in range(width)), ",".join(["1"] * (width - 1) + ["2e-1"])]
    (tmp_path / "p.csv").write_text("\n".join([header, *lines]) + "\n")
    with pytest.raises(DataError, match=re.escape(f"p.csv, line 1: '{header}' looks like a header")):
        read_points(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("\n".join([header.replace(",", ".0,"), *lines]) + "\n")
    assert read_points(tmp_path / "p.csv")[0].num_nodes == 3
    (tmp_path / "p.csv").write_text("0,1,2\n1,2,3\n5,0,0\n")  # whole numbers in all lines are points
    assert read_points(tmp_path / "p.csv")[0].num_nodes == 3


@pytest.mark.parametrize("options", [{}, {"normalize": "rms"}, {"centroid": True}])
def test_coordinates_whose_squares_overflow(tmp_path, options):
    for kind in ("csv", "npy", "npz"):
        path, pos = tmp_path / f"a.{kind}", np.array([[1e155, 0, 0], [0, 0, 0]])
        if kind == "csv":
            path.write_text("x,y,z\n1e155,0,0\n0,0,0\n")
        else:
            np.save(path, pos) if kind == "npy" else np.savez(path, pos=pos)
        with pytest.raises(
            DataError, match="position of point 0 is .1e.155, 0.0, 0.0.; wanted numbers below 1e.100"
        ):
            read_points(path, **options)


@pytest.mark.parametrize(
    "change",
    [
        (b"(4, 3)", b"(4, -3"),
        (b"(4, 3)", b"(4, 3 "),
        (b"(4, 3)", b"(4,'3)"),
        (b"(4, 3)", b"[4, 3]"),
        (b"'<f8'", b"'<q9'"),
        (b"'<f8'", b"'<f8,"),
        (b"{", b"("),
        (b"'shape'", b"'shope'"),
    ],
)
def test_damaged_headers_of_arrays(tmp_path, change):
    """Every damage of a header is a DataError with the file, in .npy and in .npz."""
    import io
    import zipfile

    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    damaged = (tmp_path / "a.npy").read_bytes().replace(*change)
    (tmp_path / "b.npy").write_bytes(damaged)
    with pytest.raises(DataError, match="b.npy: not a readable .npy file"):
        read_points(tmp_path / "b.npy")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("pos.npy", io.BytesIO(damaged).getvalue())
    with pytest.raises(DataError, match="b.npz: (damaged or truncated|not a readable) .npz file"):
        read_points(tmp_path / "b.npz")
