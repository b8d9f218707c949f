"""What a user reads who calls a function whose optional package is not installed."""

import importlib.util

import pytest

import molequi as mq
from molequi.errors import MissingPackageError
from molequi.util.optional import require


@pytest.fixture
def without(monkeypatch):
    """Makes a package look as if it were not installed."""
    find_spec = importlib.util.find_spec

    def hide(name: str) -> None:
        monkeypatch.setattr(
            "molequi.util.optional.find_spec",
            lambda package: None if package == name else find_spec(package),
        )

    return hide


def test_an_installed_package_is_accepted():
    require("numpy", "none", "this test")


def test_a_mesh_without_trimesh_names_the_extra(without, tmp_path):
    without("trimesh")
    file = tmp_path / "square.off"
    file.write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    with pytest.raises(
        MissingPackageError, match=r"\.off files needs trimesh.*pip install 'molequi\[points\]"
    ):
        mq.read_points(file)


def test_torch_geometric_data_without_it_names_the_extra(without, tmp_path):
    without("torch_geometric")
    graph = mq.Graph.single([[0.0, 0.0, 0.0]], ["H"])
    for call in (lambda: mq.to_pyg(graph), lambda: mq.from_pyg([]), lambda: mq.read_pyg("QM9", tmp_path)):
        with pytest.raises(MissingPackageError, match=r"needs torch_geometric.*pip install 'molequi\[pyg\]'"):
            call()
