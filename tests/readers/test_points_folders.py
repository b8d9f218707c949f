"""Folders of classes as data sets are shipped: lists, tables and texts beside them are no clouds."""

import numpy as np
import pytest

from molequi.errors import DataError
from molequi.readers import read_points

COLUMNS = {"columns": ["x", "y", "z", "nx", "ny", "nz"], "normals": True}


@pytest.fixture
def modelnet(tmp_path):
    """The layout of modelnet40_normal_resampled, with two classes."""
    rng = np.random.default_rng(0)
    for name in ("bed", "airplane"):
        (tmp_path / name).mkdir()
        for k in (1, 2):
            np.savetxt(tmp_path / name / f"{name}_000{k}.txt", rng.normal(size=(5, 6)), delimiter=",")
    (tmp_path / "filelist.txt").write_text("airplane/airplane_0001.txt\nbed/bed_0001.txt\n")
    (tmp_path / "modelnet40_shape_names.txt").write_text("airplane\nbed\n")
    (tmp_path / "modelnet40_train.txt").write_text("airplane_0001\nbed_0002\n")
    (tmp_path / "modelnet40_test.txt").write_text("airplane_0002\nbed_0001\n")
    (tmp_path / "metadata.csv").write_text("object_id,class,split\nbed_0001,bed,train\n")
    (tmp_path / "README.txt").write_text("Point clouds of 10 classes\n\n 2048 points\n")
    return tmp_path


def test_lists_beside_folders_and_their_parts(modelnet):
    data = read_points(modelnet, **COLUMNS)
    assert len(data) == 4 and data.quantities["shape"].classes == ("airplane", "bed")
    train, test = (read_points(modelnet, part=f"modelnet40_{p}", **COLUMNS) for p in ("train", "test"))
    for part, number in ((train, (1, 2)), (test, (2, 1))):
        assert part.quantities["shape"].classes == ("airplane", "bed")
        for graph, name, k in zip(part, ("airplane", "bed"), number):
            want = np.loadtxt(modelnet / name / f"{name}_000{k}.txt", delimiter=",")
            np.testing.assert_allclose(graph.pos, want[:, :3])
            assert part.quantities["shape"].classes[int(graph.targets["shape"])] == name
    assert len(read_points(modelnet, part="filelist", **COLUMNS)) == 2


def test_what_a_list_may_not_say(modelnet):
    (modelnet / "modelnet40_train.txt").write_text("airplane_0001\nsofa_0002\n")
    with pytest.raises(DataError, match="train.txt, line 2: 'sofa_0002'; no file has this name"):
        read_points(modelnet, part="modelnet40_train", **COLUMNS)
    (modelnet / "bed" / "airplane_0001.txt").write_text("0,0,0,0,0,1\n")
    with pytest.raises(DataError, match="line 1: 'airplane_0001'; 2 files have this name"):
        read_points(modelnet, part="modelnet40_train", **COLUMNS)
    (modelnet / "modelnet40_train.txt").write_text("\n")
    with pytest.raises(DataError, match="an empty list; wanted a name of a cloud in each line"):
        read_points(modelnet, part="modelnet40_train", **COLUMNS)
    with pytest.raises(
        DataError, match="no files of points .*say part='README', or another of .*modelnet40_test"
    ):
        read_points(modelnet, part="train", **COLUMNS)


@pytest.mark.parametrize("name", ["cloud.txt", "cloud.csv", "cloud.xyz", "cloud.npy", "cloud.off"])
def test_clouds_beside_folders_are_still_refused(modelnet, name):
    (modelnet / name).write_text("x,y,z\n0.0,1.0,2.0\n1.0,2.0,3.0\n")
    with pytest.raises(DataError, match=f"files such as {name} beside folders such as airplane"):
        read_points(modelnet, **COLUMNS)
