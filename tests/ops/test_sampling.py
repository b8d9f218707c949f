"""Farthest and nearest points."""

import numpy as np
import pytest

from molequi.ops import sampling
from molequi.ops.sampling import farthest_points, nearest_points


def cloud(n: int, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim))


def plain(pos: np.ndarray, wanted: int) -> list[int]:
    """The definition, with all distances."""
    chosen = [int(np.square(pos - pos.mean(0)).sum(1).argmax())]
    nearest = np.full(len(pos), np.inf)
    while len(chosen) < wanted:
        nearest = np.minimum(nearest, np.square(pos - pos[chosen[-1]]).sum(1))
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


@pytest.mark.parametrize(("n", "dim", "ratio"), [(1, 3, 0.5), (60, 3, 0.25), (700, 2, 0.3), (900, 3, 0.9)])
def test_farthest_points_are_those_of_the_definition(n, dim, ratio, monkeypatch):
    pos = cloud(n, dim)
    wanted = plain(pos, int(np.ceil(ratio * n)))
    assert farthest_points(pos, ratio).tolist() == wanted
    monkeypatch.setattr(sampling, "LEAF", 16)
    assert farthest_points(pos, ratio).tolist() == wanted


def test_order_and_orientation_do_not_matter():
    pos, rng = cloud(500), np.random.default_rng(1)
    order, (q, _) = rng.permutation(500), np.linalg.qr(rng.normal(size=(3, 3)))
    moved = (pos @ q.T + 5.0)[order]
    assert sorted(order[farthest_points(moved, 0.2)]) == farthest_points(pos, 0.2).tolist()


def test_ties_are_chosen_together():
    """Of a cube all corners, in any orientation, where distances differ by round-off; if one is farther, that one alone (control)."""
    cube = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    assert farthest_points(cube, 0.1).tolist() == list(range(8))
    assert farthest_points(cube @ turn, 0.1).tolist() == list(range(8))
    cube[3] *= 1.001
    assert farthest_points(cube, 0.1).tolist() == [3]


def test_points_in_the_same_place(monkeypatch):
    pos = np.concatenate([np.zeros((50, 3)), np.ones((50, 3))])
    assert len(farthest_points(pos[:50], 0.5)) == 50  # all are as far as the farthest
    monkeypatch.setattr(sampling, "LEAF", 8)
    pos[0] = 3.0
    chosen = farthest_points(pos, 0.9)
    assert 0 in chosen and {tuple(p) for p in pos[chosen]} == {(3.0,) * 3, (1.0,) * 3, (0.0,) * 3}


def test_points_in_the_same_place_are_chosen_together():
    assert farthest_points(np.array([[0.0], [0.0], [1.0], [4.0], [4.0]]), 0.2).tolist() == [3, 4]


@pytest.mark.parametrize("k", [1, 5, 200])
def test_nearest_points_are_those_of_the_definition(k):
    pos, centers = cloud(120), cloud(30, seed=1)
    points, of = nearest_points(pos, centers, k)
    away = np.linalg.norm(centers[:, None] - pos, axis=2)
    for i in range(30):
        assert points[of == i].tolist() == sorted(away[i].argsort()[:k].tolist())


def test_all_ties_are_neighbors():
    """More equal distances than one query asks for."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    far = np.concatenate([ring, [[9.0, 0.0], [9.5, 0.0]]])
    points, of = nearest_points(far, np.array([[0.0, 0.0], [9.1, 0.0]]), 1)
    assert points[of == 0].tolist() == list(range(12)) and points[of == 1].tolist() == [12]
