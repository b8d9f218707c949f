"""NequIP as the package nequip has it: laws of its cutoffs, and its errors. Values: tests/foreign/test_nequip.py."""

import math

import pytest
import torch

import molequi as mq
from molequi.errors import ModelError
from molequi.heads import ZBLEnergy
from molequi.nn import ZBL, edges_of, pair_stretch

SMALL = {"elements": ["H", "O"], "cutoff": 3.0, "channels": 4, "layers": 2, "l_max": 1}


def pair(length: float, symbols=("H", "O"), cutoff: float = 3.0) -> mq.Graph:
    return mq.connect(mq.Graph.single([[0, 0, 0], [0, 0, length]], list(symbols)), cutoff)


def test_an_atom_without_neighbors_has_no_features():
    backbone = mq.NequIPGNN(**SMALL).double()
    alone = backbone(mq.connect(mq.Graph.single([[0, 0, 0]], ["O"]), 3.0))
    assert all(bool((block == 0).all()) for block in alone.blocks.values())
    assert float(backbone(pair(1.0)).blocks["0e"].detach().abs().max()) > 1e-3


def test_a_pair_cutoff_is_that_of_one_direction():
    """H sees O up to 2 Å, O sees H up to 3 Å; the control is a shorter distance."""
    backbone = mq.NequIPGNN(**SMALL | {"layers": 1}, pair_cutoffs={"H": {"O": 2.0}}).double()
    for length, seen in ((2.0, False), (2.5, False), (1.9, True)):
        h, o = backbone(pair(length)).blocks["0e"].detach().abs().amax((1, 2))
        assert (float(h) > 0) == seen and float(o) > 0


def test_functions_of_a_pair_are_those_of_the_stretched_distance():
    torch.manual_seed(0)
    one = mq.NequIPGNN(**SMALL | {"layers": 1}).double()
    other = mq.NequIPGNN(**SMALL | {"layers": 1}, pair_cutoffs={"H": {"O": 2.0}}).double()
    other.load_state_dict(one.state_dict())
    far, near = one(pair(1.5)), other(pair(1.0))
    torch.testing.assert_close(far.blocks["0e"][0], near.blocks["0e"][0], rtol=1e-12, atol=0)


def test_messages_are_divided_by_the_root_of_the_neighbors_of_the_sender():
    torch.manual_seed(0)
    one = mq.NequIPGNN(**SMALL | {"layers": 1}).double()
    one.mean_neighbors.fill_(5.0)
    other = mq.NequIPGNN(**SMALL | {"layers": 1}, neighbors={"O": 20.0}).double()
    other.load_state_dict(one.state_dict())
    sums = []
    for backbone in (one, other):
        backbone.interactions[0].after.register_forward_pre_hook(lambda _, given: sums.append(given[0][0]))
        backbone(pair(1.2))
    torch.testing.assert_close(sums[0][0], 2 * sums[1][0])  # H receives from O
    torch.testing.assert_close(sums[0][1], sums[1][1])


def test_repulsion_is_that_of_ziegler_biersack_and_littmark():
    """Two protons at 0.4685/2 Å: x = 1, so that the screening is Σ c exp(-a)."""
    graph = pair(0.234250, ("H", "H"))
    found = float(ZBL(3.0, 6)(graph.z, edges_of(graph, 3.0, torch.float64)).sum())
    terms = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))
    u = 0.234250 / 3.0
    smooth = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
    wanted = 14.399645 / 0.234250 * sum(c * math.exp(-a) for c, a in terms) * smooth
    assert found == pytest.approx(wanted, rel=1e-9)


def test_repulsion_ends_at_the_cutoff_of_a_pair():
    repulsion = ZBL(3.0, 6, {"H": {"O": 2.0}, "O": {"H": 2.0}})
    energies = [
        float(repulsion(pair(r).z, edges_of(pair(r), 3.0, torch.float64)).sum()) for r in (1.9, 2.0, 2.9)
    ]
    assert energies[0] > 0 and energies[1:] == [0.0, 0.0]


@pytest.mark.parametrize(
    "options, told",
    [
        ({"pair_cutoffs": {"H": {"O": 3.5}}}, "pair_cutoffs: found 3.5 for H and O; wanted at most 3.0"),
        ({"pair_cutoffs": {"C": {"O": 2.0}}}, "pair_cutoffs: found 2.0 for C and O; .* for two of H, O"),
        ({"neighbors": {"C": 4.0}}, "NequIPGNN.neighbors: found C; wanted elements of it: H, O"),
        ({"l_out": 2}, "NequIPGNN.l_out: found 2 with l_max=1"),
        (
            {"self_connection": ["none"]},
            "NequIPGNN.self_connection: found 1; wanted one for each of 2 layers",
        ),
    ],
)
def test_options_that_contradict_each_other(options, told):
    with pytest.raises(ModelError, match=told):
        mq.NequIPGNN(**SMALL, **options)


def test_a_repulsion_beyond_the_edges_and_of_another_quantity():
    model = mq.Model(mq.NequIPGNN(**SMALL), [ZBLEnergy(cutoff=4.0)])
    with pytest.raises(ModelError, match=r"looks up to 4 Å and the graph was connected up to 3 Å"):
        model(pair(1.0))
    with pytest.raises(ModelError, match="ZBLEnergy.gap.: wanted an extensive scalar, such as 'energy'"):
        ZBLEnergy(mq.Quantity("gap", unit="eV"))
    assert pair_stretch([1], 3.0, {}, "x").tolist() == [[1.0]]
