"""The table of figures: few draws here, and each kind of figure sees a fault."""

import json
from dataclasses import replace

import numpy as np
import pytest

from . import __main__ as command
from . import figures

FEW = replace(figures.QUICK, draws=1, lists=10)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def two(monkeypatch):
    """Only two backbones."""
    monkeypatch.setattr(figures, "SMALL", {name: figures.SMALL[name] for name in ("PaiNN", "GauntACE")})


@pytest.mark.parametrize("name", ["transforms", "batches", "differences", "zeros"])
def test_figures_of_models_and_their_control(name, two, monkeypatch):
    assert all(row.good for row in figures.FIGURES[name](FEW))
    true = figures.predicted

    def wrong(model, graph):
        energy, forces = true(model, graph)
        place = 1.0 + float(graph.pos[0, 0])
        return energy + 1e-3 * place, forces + 1e-3 * place

    monkeypatch.setattr(figures, "predicted", wrong)
    assert not any(row.good for row in figures.FIGURES[name](FEW) if "stress" not in row.quantity)


def test_neighbors_and_their_control(monkeypatch):
    assert figures.lists(FEW)[0].good
    true = figures.mq.connect
    monkeypatch.setattr(figures.mq, "connect", lambda graph, cutoff: true(graph, 0.97 * cutoff))
    assert not figures.lists(FEW)[0].good


def test_harmonics_and_their_control(monkeypatch):
    assert all(row.good for row in figures.harmonics(FEW))
    true = figures.irreps.wigner
    monkeypatch.setattr(figures.irreps, "wigner", lambda irrep, q: true(irrep, q) * (1 + 1e-9))
    assert [row.good for row in figures.harmonics(FEW)] == [True, False]


@pytest.mark.parametrize(("error", "status"), [(1e-15, 0), (1e-3, 1)])
def test_the_command_prints_a_table_and_writes_json(error, status, tmp_path, capsys, monkeypatch):
    row = figures.largest("a figure", {"float64": np.float64(error), "float32": 1e-7}, (1e-10, 1e-5))
    monkeypatch.setitem(command.FIGURES, "harmonics", lambda length: [row])
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["reliability", "harmonics", "--quick"])
    assert command.main() == status
    head, line, last = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["figure", "float64", "wanted", "float32"]
    assert ("NO" in line) == bool(status) and "python -m tests.reliability harmonics --quick" in line
    assert last == f"build/reliability.json: 1 figures, {status} not reached"
    (record,) = json.loads((tmp_path / "build" / "reliability.json").read_text())
    assert record["good"] is (not status) and record["found"] == error
