"""Many structures: a store is not turned into graphs, what was looked at in part is said, and results do not change."""

import numpy as np
import pytest
import torch

import molequi as mq
from molequi import Dataset, Graph
from molequi.data.structures import Structures
from molequi.lint import checking, frames
from molequi.lint.fits import absolute_fit, medians_of
from molequi.lint.frames import Frames, nearest_atoms
from molequi.lint.kinds import kind_numbers


@pytest.fixture(scope="module")
def ethanol():
    return mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))


def test_a_store_has_the_findings_of_its_files(tmp_path):
    path = mq.shipped("bn.xyz")
    one = mq.lint(path, costs=False)
    mq.prepare(path, tmp_path / "store", cutoff=4.0, progress=False)
    assert mq.lint(tmp_path / "store", costs=False).findings == one.findings


def test_few_structures_are_made_of_many(tmp_path, monkeypatch):
    """Checks of all structures work on columns; single ones are made for a sample alone."""
    mq.prepare(mq.shipped("ethanol_300K.xyz"), tmp_path / "store", progress=False)
    monkeypatch.setattr(checking, "SAMPLED", 40)
    made = []
    own = Structures._one
    monkeypatch.setattr(Structures, "_one", lambda self, k: made.append(k) or own(self, k))
    report = mq.lint(tmp_path / "store", costs=False)
    (text,) = report.sampled.values()
    assert "40 of 400 structures" in text and "checked in part:" in str(report)
    assert "checked in part" in report.to_html() and report.to_dict()["sampled"] == report.sampled
    assert report.structures == 400 and len(made) < 400


def test_a_fault_is_found_in_a_sample(ethanol, monkeypatch):
    monkeypatch.setattr(checking, "SAMPLED", 200)
    wrong = [
        g if k < 320 else g.replace(targets=g.targets | {"forces": -g.targets["forces"]})
        for k, g in enumerate(ethanol)
    ]
    report = mq.lint(Dataset(wrong, origins=ethanol.origins), costs=False)
    (found,) = report.errors
    assert found.name == "force-unit" and 30 <= found.count <= 40
    assert {ethanol.origins.index(origin) for origin in found.origins} <= set(range(320, 400))


def test_crystals_are_searched_in_part(monkeypatch):
    monkeypatch.setattr(frames, "SEARCHED", 10)
    report = mq.lint(mq.shipped("bn.xyz"), costs=False)
    assert report.sampled["distances in crystals"] == "10 of 160 structures" and report.passed


def test_nearest_atoms_of_blocks_are_those_of_single_structures(ethanol):
    data = mq.read_npz(mq.shipped("molecules.npz"), index=":40")
    of_all = Frames({"a": data, "b": ethanol[:5]})
    alone = [nearest_atoms(g.replace(pos=g.pos)) for part in (data, ethanol[:5]) for g in part]
    assert np.allclose(of_all.near_length, np.concatenate([length for length, _ in alone]), atol=1e-6)
    assert np.allclose(of_all.near_ratio, np.concatenate([ratio for _, ratio in alone]), atol=1e-6)


def test_neighbor_lists_of_a_store_are_used():
    from molequi.neighbors import connect

    graph = mq.read_extxyz(mq.shipped("bn.xyz"))[0]
    for one in (connect(graph, 4.0), connect(graph, 9.0)):
        assert all(np.allclose(a, b) for a, b in zip(nearest_atoms(one), nearest_atoms(graph)))
    apart = Graph.single([[0, 0, 0], [0, 0, 8.5]], ["H", "F"])  # farther than 8 Å, and in a list of 9 Å
    assert all(
        np.isinf(values).all() for one in (apart, connect(apart, 9.0)) for values in nearest_atoms(one)
    )


def test_kinds_differ_by_charge_order_and_periodicity():
    def one(symbols=("H", "F"), **more):
        return Graph.single([[0, 0, 0], [0, 0, 0.9]], symbols, **more)

    plain = kind_numbers(Structures.of([one(), one(("F", "H"))]))
    assert plain[0] != plain[1]
    charged = kind_numbers(Structures.of([one(charge=0.0), one(charge=1.0), one(charge=1.0)]))
    assert charged[0] != charged[1] == charged[2] and charged[0] != plain[0]
    boxes = [one(cell=np.eye(3) * 9, pbc=pbc) for pbc in ([True] * 3, [True, True, False])]
    periodic = kind_numbers(Structures.of([*boxes, one()]))
    assert len(set(periodic.tolist())) == 3


def test_fits_and_medians_by_hand():
    x = np.arange(1.0, 11.0)
    y = 3 * x
    y[:4] = -500.0
    assert absolute_fit(x[:, None], y)[0] == pytest.approx(3.0, abs=1e-3)
    found = medians_of(np.array([5.0, 1.0, 2.0, 8.0]), np.array([1, 1, 1, 0]), 3)
    assert found[:2].tolist() == [8.0, 2.0] and np.isnan(found[2])


def test_plain_numbers_are_enough_for_a_label():
    graph = Graph.single([[0, 0, 0], [0, 0, 0.74]], ["H", "H"], targets={"energy": torch.tensor([-31.7])})
    assert mq.lint([graph] * 2, costs=False).passed
