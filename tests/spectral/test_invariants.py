"""Power spectrum and bispectrum of environments and clouds."""

from itertools import combinations

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError, DataError
from molequi.spectral import bispectrum, power_spectrum
from molequi.symmetry.groups import random_orthogonal

KINDS = [power_spectrum, bispectrum]


def cloud(seed: int = 0, n: int = 12) -> mq.Graph:
    pos = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return mq.Graph.single(pos, ["C", "O"] * (n // 2))


def turned(graph: mq.Graph, proper: bool) -> mq.Graph:
    generator = torch.Generator().manual_seed(3)
    g = random_orthogonal(3, proper=proper, generator=generator)
    order = torch.randperm(graph.num_nodes, generator=generator)
    return graph.replace(pos=(graph.pos @ g.T + 1.5)[order], z=graph.z[order]), order


@pytest.mark.parametrize("center", ["atoms", "centroid"])
@pytest.mark.parametrize("spectrum", KINDS)
def test_invariance(spectrum, center):
    """Rotations change nothing; reflections change the sign of "0o" alone, which is not zero (control)."""
    graph = cloud()
    here = spectrum(graph, cutoff=4.0, center=center).blocks
    for proper in (True, False):
        other, order = turned(graph, proper)
        there = spectrum(other, cutoff=4.0, center=center).blocks
        for irrep, block in here.items():
            wanted = block[order.numpy()] if center == "atoms" else block
            sign = -1 if irrep == "0o" and not proper else 1
            assert np.abs(there[irrep] - sign * wanted).max() < 1e-12 * np.abs(block).max()
            assert np.abs(block).max(1).min() > 1e-6
            assert np.abs(block).max(0).min() > 0  # none that is always zero
    assert ("0o" in here) == (spectrum is bispectrum)


@pytest.mark.parametrize("spectrum", KINDS)
def test_shape_changes_it(spectrum):
    graph = cloud()
    moved = graph.replace(pos=graph.pos * torch.tensor([1.0, 1.0, 1.01]))
    a, b = (spectrum(g, cutoff=4.0).invariants for g in (graph, moved))
    assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()


def tuples(neighbors: np.ndarray, size: int) -> list:
    """What determines all invariants of `size` neighbors: lengths and angles of each choice of them."""
    gram = [neighbors[list(c)] @ neighbors[list(c)].T for c in combinations(range(len(neighbors)), size)]
    return sorted(tuple(np.round(sorted_gram(g), 6).tolist()) for g in gram)


def sorted_gram(gram: np.ndarray) -> np.ndarray:
    """A Gram matrix in the smallest order of its vectors."""
    from itertools import permutations

    orders = (gram[np.ix_(p, p)].flatten() for p in permutations(range(len(gram))))
    return min(orders, key=lambda x: tuple(np.round(x, 6)))


def tilted(points: list, angle: float) -> list:
    c, s = np.cos(angle), np.sin(angle)
    return (np.array(points) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])).tolist()


A = [[3.0, 2.0, -4.0], [0.0, 2.0, 5.0], [0.0, 2.0, -5.0]]
B = tilted([[3.0, -2.0, -4.0], [0.0, -2.0, 5.0], [0.0, -2.0, -5.0]], np.pi / 10)
COMMON = [[5.0, 0.0, 5.0], [5.0, 5.0, 5.0], [-5.0, -5.0, 5.0]]
PAIRS = {  # Pozdnyakov et al. 2020, arXiv 2001.11696: Fig. 1 b and Fig. 2 e, with numbers of arXiv 2301.09308
    "three bodies": ([*COMMON, [0.0, 5.0, 5.0]], [*COMMON, [0.0, -5.0, 5.0]]),
    "four bodies": ([*A, *B, [0.0, 5.0, 0.0]], [*A, *B, [0.0, -5.0, 0.0]]),
}


def difference(spectrum, pair, irrep, **options) -> float:
    found = []
    for neighbors in pair:
        graph = mq.Graph.single([[0.0, 0.0, 0.0], *neighbors], ["C"] + ["H"] * len(neighbors))
        found.append(spectrum(graph, cutoff=10.0, elements=["H", "C"], **options).blocks[irrep][0])
    return float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())


@pytest.mark.parametrize("name", PAIRS)
def test_incompleteness(name):
    """Two environments differ in a spectrum where, and only where, their pairs or triples of neighbors differ."""
    pair = PAIRS[name]
    arrays = [np.array(p) for p in pair]
    same_pairs, same_triples = (tuples(arrays[0], s) == tuples(arrays[1], s) for s in (2, 3))
    whole = len(arrays[0])
    assert (same_pairs, same_triples) == (True, name == "four bodies")
    assert tuples(arrays[0], whole) != tuples(arrays[1], whole)  # no rotation or reflection joins them
    assert difference(power_spectrum, pair, "0e", l_max=6) < 1e-12
    found = difference(bispectrum, pair, "0e", l_max=4)
    assert found < 1e-12 if same_triples else found > 1e-3


def test_mirror_images():
    """A chiral environment and its mirror image: "0o" tells them apart, the power spectrum and "0e" do not."""
    neighbors = cloud(5, 6).pos
    pair = (neighbors.tolist(), (neighbors * torch.tensor([1.0, 1.0, -1.0])).tolist())
    assert difference(power_spectrum, pair, "0e") < 1e-12
    assert difference(bispectrum, pair, "0e") < 1e-12
    assert difference(bispectrum, pair, "0o") == pytest.approx(2.0, abs=1e-9)
    flat = [[x, y, 0.0] for x, y, _ in neighbors.tolist()]
    graph = mq.Graph.single([[0.0, 0.0, 0.0], *flat], ["C"] + ["H"] * 6)
    found = bispectrum(graph, cutoff=10.0).blocks
    assert np.abs(found["0o"]).max() < 1e-12 * np.abs(found["0e"]).max()


def test_size_of_a_cloud_does_not_matter():
    """Each point twice is the same shape; seen from atoms it is another environment (control)."""
    graph = mq.Graph.single(cloud().pos)
    double = mq.Graph.single(torch.cat([graph.pos, graph.pos]))
    a, b = (power_spectrum(g, cutoff=4.0, center="centroid").invariants for g in (graph, double))
    assert np.abs(a - b).max() < 1e-12 * np.abs(a).max()
    a, b = (power_spectrum(g, cutoff=4.0).invariants[0] for g in (graph, double))
    assert np.abs(a - b).max() > 0.1 * np.abs(a).max()


def test_batches_do_not_matter(monkeypatch):
    graphs = [cloud(k) for k in range(5)]
    whole = bispectrum(graphs, cutoff=3.0)
    assert len(whole) == 5 and whole.of(3)["0e"].shape[0] == 12
    monkeypatch.setattr("molequi.spectral.descriptors.BATCH", 10)
    assert np.allclose(bispectrum(graphs, cutoff=3.0).invariants, whole.invariants, rtol=1e-12, atol=1e-15)


def test_errors():
    with pytest.raises(DataError, match="has O, which is not in elements: C"):
        power_spectrum(cloud(), cutoff=4.0, elements=["C"])
    with pytest.raises(DataError, match="3 dimensions; these have 2"):
        power_spectrum(mq.Graph.single([[0.0, 0.0]]), cutoff=4.0)
    with pytest.raises(DataError, match="center='atoms'"):
        power_spectrum(
            mq.Graph.single([[0.0, 0, 0]], ["C"], cell=5 * torch.eye(3), pbc=True),
            cutoff=4.0,
            center="centroid",
        )
    with pytest.raises(ConfigError, match="l_max"):
        power_spectrum(cloud(), cutoff=4.0, l_max=12)
    with pytest.raises(ConfigError, match="center"):
        bispectrum(cloud(), cutoff=4.0, center="middle")
    with pytest.raises(ConfigError, match=r"'cutoff'; wanted power_spectrum\(structures, cutoff=…, …\)"):
        power_spectrum(cloud())


@pytest.mark.parametrize("symbols", ["CHHHH", "COO"])
@pytest.mark.parametrize("spectrum", KINDS)
def test_an_atom_may_cross_the_centroid(spectrum, symbols):
    """Its direction is undefined there: what degrees above 0 have of it must vanish with its distance."""
    tetrahedron = [[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    outside = tetrahedron if symbols == "CHHHH" else [[0.0, 0.3, 1.1], [0.0, -0.3, -1.1]]

    def seen(step: float) -> np.ndarray:
        pos = torch.tensor([[0.0, 0, 0], *outside], dtype=torch.float64)
        pos[0] += step * torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
        return spectrum(mq.Graph.single(pos, list(symbols)), cutoff=4.0, center="centroid").invariants[0]

    middle = seen(0.0)
    for step in (1e-7, -1e-7):
        assert np.abs(seen(step) - middle).max() < 1e-5 * np.abs(middle).max()
    assert np.abs(seen(0.3) - middle).max() > 1e-2 * np.abs(middle).max()  # and it is seen (control)


def test_without_pseudoscalars_there_is_no_block():
    assert "0o" not in bispectrum(mq.Graph.single(cloud().pos), cutoff=4.0, radial=1, l_max=2).blocks
    assert "0o" in bispectrum(mq.Graph.single(cloud().pos), cutoff=4.0, radial=2, l_max=2).blocks
