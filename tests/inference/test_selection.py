"""Choice of structures: the determinant, what each way takes, files, and messages."""

import itertools

import ase.io
import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError
from molequi.inference.selection import greedy, uncertainties

DATA = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))


@pytest.fixture(scope="module")
def trusted():
    torch.manual_seed(0)
    backbone = mq.PaiNN(elements=["C", "H", "O"], cutoff=3.0, channels=6, layers=1)
    model = mq.Model(backbone, ["energy", "forces"]).double().eval()
    return mq.laplace(model, DATA[:20], DATA[20:40], progress=False)


def kernel(x, length):
    return np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / (2 * length**2))


def test_greedy_choice_has_the_largest_determinant_step_by_step():
    rng = np.random.default_rng(3)
    x, s = rng.standard_normal((12, 3)), rng.uniform(0.5, 2, 12)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2)]
    cov = s[:, None] * kernel(x, np.median(distances)) * s
    chosen, novelty = greedy(x, s, 4, None, np.random.default_rng(0))
    for step in range(4):
        dets = {
            k: np.linalg.det(cov[np.ix_([*chosen[:step], k], [*chosen[:step], k])])
            for k in set(range(12)) - set(chosen[:step].tolist())
        }
        assert max(dets, key=dets.get) == chosen[step]
    assert novelty[0] == pytest.approx(1.0) and np.all(novelty[1:] < 1)


def test_copies_and_known_structures_are_left_out():
    x = np.array([[0.0], [0.0], [1.0], [2.0], [3.0]])
    chosen, novelty = greedy(x, np.ones(5), 4, None, np.random.default_rng(0))
    assert {0, 1} - set(chosen.tolist())  # one of the two copies is missing
    chosen, novelty = greedy(x, np.ones(5), 2, np.array([[0.0], [3.0]]), np.random.default_rng(0))
    assert set(chosen.tolist()) <= {2, 3} and novelty.max() < 1


def test_ways_of_choosing(trusted, tmp_path):
    pool = DATA[40:100]
    std, what = uncertainties(trusted, pool)
    by_hand = [one["forces_std"].max() for one in mq.predict(trusted, pool, progress=False)]
    assert np.allclose(std, by_hand) and what == "largest forces_std (eV/Å)"
    sure = mq.select(trusted, pool, 8, by="uncertainty", progress=False)
    assert sure.indices.tolist() == np.argsort(-std, kind="stable")[:8].tolist()
    both = mq.select(trusted, pool, 8, out=tmp_path / "picks.xyz", progress=False)
    assert std[both.indices].mean() > std.mean() and len(set(both)) == 8
    assert both.indices.tolist() == mq.select(trusted, pool, 8, progress=False).indices.tolist()
    frames = ase.io.read(tmp_path / "picks.xyz", ":")
    assert [f.info["uncertainty"] for f in frames] == pytest.approx(std[both.indices], rel=1e-6)
    assert all(f.calc is None for f in frames) and "frame" in frames[0].info["origin"]
    assert "8 of 60 structures" in str(both) and "novelty" in both._repr_html_()
    a, b, c = (
        mq.select(trusted.mean_model, pool, 8, by="random", seed=k).indices.tolist() for k in (0, 0, 1)
    )
    assert a == b != c
    spread = mq.select(trusted.mean_model, pool, 8, by="diversity", known=DATA[:20], progress=False)
    assert len(set(spread)) == 8 and spread.uncertainty is None
    limit = float(np.median(std))
    below = mq.select(trusted, pool, 8, max_std=limit, progress=False)
    assert std[below.indices].max() <= limit and below.left_out == 30
    copies = mq.Dataset(
        [pool[int(std.argmax())].replace(targets={})] * 3 + [pool[k].replace(targets={}) for k in range(6)]
    )
    assert sorted(mq.select(trusted, copies, 2, by="uncertainty", progress=False)) == [0, 1]
    assert len({0, 1, 2} & set(mq.select(trusted, copies, 2, progress=False))) == 1


def test_messages(trusted):
    with pytest.raises(ConfigError, match="n=70 of a pool of 60 structures"):
        mq.select(trusted, DATA[40:100], 70, progress=False)
    with pytest.raises(ConfigError, match="gives no standard deviation; add it with mq.laplace"):
        mq.select(trusted.mean_model, DATA[:9], 3, progress=False)
    with pytest.raises(ConfigError, match="known would have no effect with by='random'"):
        mq.select(trusted, DATA[:9], 3, by="random", known=DATA[:3])
    with pytest.raises(ConfigError, match="max_std would have no effect with by='diversity'"):
        mq.select(trusted, DATA[:9], 3, by="diversity", max_std=1.0)
    with pytest.raises(ConfigError, match=r"out=picks.csv; wanted an extended XYZ file"):
        mq.select(trusted, DATA[:9], 3, out="picks.csv")
    with pytest.raises(ConfigError, match=r"at most max_std=1e-09; wanted n=3 of them"):
        mq.select(trusted, DATA[:9], 3, max_std=1e-9, progress=False)
    with pytest.raises(ConfigError, match="select.by"):
        mq.select(trusted, DATA[:9], 3, by="entropy")


def test_copies_have_no_novelty(trusted):
    """Their invariants differ by rounding, which must not be divided by its own standard deviation."""
    single = mq.load_dataset(DATA[:1])
    pool = mq.Dataset([*(single[0] for _ in range(20)), *(single[0].replace(pos=single[0].pos + 3.0),)])
    for model in (trusted, trusted.float()):
        found = mq.select(model, pool, 3, progress=False)
        assert np.all(found.novelty[1:] < 1e-6)
    trusted.double()
    with pytest.raises(ConfigError, match="n=30 of a pool of 21 structures; wanted at most 21"):
        mq.select(trusted, pool, 30, progress=False)
