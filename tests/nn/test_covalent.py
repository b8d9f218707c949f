"""Functions of the distance with covalent radii: their ends and limits, and the head that adds the repulsion."""

import math

import pytest
import torch

import molequi as mq
from molequi.errors import ModelError
from molequi.heads import LayerReadouts
from molequi.nn import AgnesiDistance, BondRepulsion, SoftDistance, edges_of

RADII = {1: 0.31, 6: 0.76, 8: 0.66}  # Å, Cordero et al. 2008


def pair(r, z=(6, 8), cutoff=20.0):
    graph = mq.connect(mq.Graph.single([[0.0, 0, 0], [0, 0, r]], list(z)), cutoff)
    return graph.z, edges_of(graph, cutoff, torch.float64)


def test_nuclei_repel_up_to_the_length_of_a_bond():
    """The law of Ziegler, Biersack and Littmark with the constants that mace-torch documents."""
    bond, repulsion = RADII[6] + RADII[8], BondRepulsion(cutoff=5.0)
    scaled = 0.1 / (0.4543 * 0.529 / (6**0.3 + 8**0.3))
    terms = [(0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4028), (0.02817, 0.2016)]
    bare = 14.3996 * 48 / 0.1 * sum(c * math.exp(-a * scaled) for c, a in terms)
    x = 0.1 / bond
    end = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    found = repulsion(*pair(0.1))
    assert float(found.sum()) == pytest.approx(bare * end, rel=1e-5) and bare > 100
    assert float(repulsion(*pair(0.98 * bond)).sum()) > 0
    for r in (bond + 1e-9, 1.2 * bond):
        assert float(repulsion(*pair(r)).abs().max()) == 0
    assert float(repulsion(*pair(1.0, cutoff=0.9)).sum()) == 0  # no edge is so long


@pytest.mark.parametrize("z", [(6, 8), (1, 1)])
def test_transformed_distances(z):
    bond = RADII[z[0]] + RADII[z[1]]

    def agnesi(r):
        return float(AgnesiDistance()(*pair(r, z))[0])

    def soft(r):
        return float(SoftDistance()(*pair(r, z))[0])

    found = [agnesi(x * bond) for x in (1e-3, 0.2, 0.5, 0.6, 1.0, 3.0)]
    assert found == sorted(found, reverse=True) and found[0] == pytest.approx(1, abs=1e-6) and found[-1] > 0
    assert agnesi(bond / 2) == pytest.approx(1 / (1 + 1.0805 / 2), rel=1e-12)  # x = 1
    assert soft(1e-3) == pytest.approx(0.75 * bond, abs=5e-3)  # it stays there
    assert soft(3 * bond) == pytest.approx(3 * bond, rel=1e-6)  # and is the distance again
    middle = (3 / 4 + 4 / 3) / 2 * bond
    assert soft(middle) == pytest.approx((0.75 * bond + middle) / 2, rel=1e-12)


def test_readouts_of_layers():
    """The energy is a sum over the layers: linear ones, and a perceptron of the last one."""
    backbone = mq.MACE(elements=["H", "O"], cutoff=4.0, channels=5, layers=3, l_max=1)
    model = mq.Model(backbone, [LayerReadouts(layers=3, hidden=4, repulsion=4.0)]).double().eval()
    graph = mq.connect(mq.Graph.single([[0, 0, 0], [0.9, 0, 0], [-0.24, 0.93, 0]], ["O", "H", "H"]), 4.0)
    head, h = model.heads["energy"], model.backbone(graph).scalars
    own = h[:, :10] @ head.net.linear.weight[0] + head.net.last(h[:, 10:])[:, 0]
    pairs = head.repulsion(graph.z, edges_of(graph, 4.0, torch.float64))
    assert float(pairs.sum()) > 1e-3
    assert float(model(graph)["energy"].detach()) == pytest.approx(
        float((own + pairs).sum().detach()), rel=1e-12
    )
    linear = mq.Model(backbone, [LayerReadouts(layers=3, hidden=None)])
    assert [tuple(p.shape) for p in linear.heads.parameters()] == [(1, 10), (1, 5)]


def test_readouts_that_do_not_fit():
    backbone = mq.MACE(elements=["H", "O"], cutoff=3.0, channels=5, layers=2, l_max=1)
    with pytest.raises(ModelError, match=r"LayerReadouts\(energy\).layers: found 3 with 10 invariants"):
        mq.Model(backbone, [LayerReadouts(layers=3)])
    with pytest.raises(ModelError, match=r"LayerReadouts\(gap\): wanted an extensive scalar"):
        LayerReadouts("gap", layers=2)
    model = mq.Model(backbone, [LayerReadouts(layers=2, repulsion=4.0)])
    graph = mq.Graph.single([[0.0, 0, 0], [0, 0, 1]], ["O", "H"])
    with pytest.raises(ModelError, match=r"looks up to 4 Å and the graph was connected up to 3 Å"):
        model(mq.connect(graph, 3.0))
