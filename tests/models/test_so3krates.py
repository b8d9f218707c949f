"""So3krates and the heads with terms of long range: totals, cutoffs, charges, and what is refused."""

import importlib

import pytest
import torch

import molequi as mq
from molequi.audit import audit
from molequi.errors import ModelError
from molequi.heads import AtomicCharges, ChargeDipole, PhysicalEnergy
from molequi.models import Inputs, So3krates
from molequi.regular_graphs import regular

OPTIONS = dict(elements=["H", "C", "O"], channels=8, layers=2, l_max=2, heads=2, radial=6)
TOTALS = Inputs(charge=True, spin=True)


def molecule(charge=1, spin=2, n=6, **given):
    generator = torch.Generator().manual_seed(4)
    pos = torch.rand(n, 3, dtype=torch.float64, generator=generator) * 4
    return mq.Graph.single(pos, [[1, 6, 8][k % 3] for k in range(n)], charge=charge, spin=spin, **given)


def crystal():
    return molecule(n=4, cell=[[4.1, 0, 0], [0.4, 4.3, 0], [0.2, 0.1, 3.9]], pbc=True)


@pytest.fixture(scope="module")
def physical():
    torch.manual_seed(0)
    backbone = So3krates(cutoff=6.0, message_cutoff=3.0, inputs=TOTALS, **OPTIONS)
    heads = [PhysicalEnergy(cutoff=6.0, repulsion=3.0, hidden=5), AtomicCharges(), ChargeDipole()]
    return mq.Model(backbone, [*heads, "forces", "stress"]).double().eval()


@torch.no_grad()
def test_messages_go_as_far_as_their_cutoff():
    torch.manual_seed(0)
    long = So3krates(cutoff=6.0, message_cutoff=3.0, **OPTIONS).double()
    short = So3krates(cutoff=3.0, **OPTIONS).double()
    short.load_state_dict(long.state_dict())
    graph = molecule()
    wanted = short(mq.connect(graph, 3.0)).flat()
    far = mq.connect(graph, 6.0)
    assert far.edge_index.shape[1] > mq.connect(graph, 3.0).edge_index.shape[1]
    for connected in (far, regular(far)):
        assert torch.allclose(long(connected).flat(), wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_totals_of_neutral_singlets_change_nothing():
    torch.manual_seed(0)
    backbone = So3krates(cutoff=4.0, inputs=TOTALS, **OPTIONS).double()
    graph = mq.connect(molecule(0, 1), 4.0)
    element = backbone.element_index(graph)
    assert all(float(t(graph, element).abs().max()) == 0 for t in backbone.totals.values())
    found = {}
    for charge, spin in ((0, 1), (1, 1), (-1, 1), (0, 3)):
        found[charge, spin] = backbone(mq.connect(molecule(charge, spin), 4.0)).scalars
    for one in list(found)[1:]:
        assert float((found[one] - found[0, 1]).abs().max()) > 1e-3
    # A charge is not the negative of the opposite one: each sign has its own keys and values.
    odd = found[1, 1] + found[-1, 1] - 2 * found[0, 1]
    assert float(odd.abs().max()) > 1e-3


@torch.no_grad()
def test_a_total_is_shared_by_the_atoms():
    """Without its perceptron, twice the charge is twice the vector, and copies of an atom have equal parts."""
    torch.manual_seed(0)
    backbone = So3krates(cutoff=4.0, inputs=Inputs(charge=True), **OPTIONS).double()
    total = backbone.totals["charge"]
    torch.nn.init.zeros_(total.net[3].weight)

    def parts(charge, n):
        graph = mq.connect(mq.Graph.single(torch.eye(3)[:n] * 1.5, ["C"] * n, charge=charge), 4.0)
        return total(graph, backbone.element_index(graph))

    assert torch.allclose(parts(2.0, 3), 2 * parts(1.0, 3), rtol=1e-12)
    assert torch.allclose(parts(1.0, 3).sum(0), parts(1.0, 1)[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(channels=8, heads=3), "multiple of heads, such as 12"),
        (dict(channels=8, l_max=3), "multiple of l_max"),
        (dict(channels=6, heads=2), "the number 4"),
        (dict(message_cutoff=9.0), "found 9.0 with cutoff=5.0; wanted at most the cutoff"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(ModelError, match=words):
        So3krates(**(OPTIONS | options))


def test_other_dimensions_are_refused():
    with pytest.raises(ModelError, match="So3krates works in 3 dimensions"):
        So3krates(**(OPTIONS | {"elements": [0]}))(mq.connect(mq.Graph.single(torch.rand(4, 2)), 5.0))


def test_symmetries_and_derivatives_with_all_terms(physical):
    """The energy of a single atom is that of the network, and not a reference energy."""
    report = audit(physical, [molecule(), crystal()], draws=2)
    failed = {(r.check, r.quantity) for r in report.failed if r.quantity != "dipole"}
    assert failed <= {("one atom", "energy")}
    assert {r.quantity for r in report.failed} <= {"energy"}
    assert any(r.check == "finite differences" and r.quantity == "stress" for r in report.rows)


def test_regular_graphs_are_the_same(physical):
    graph = mq.connect(crystal(), 6.0)
    wanted, found = physical(graph), physical(regular(graph))
    for name in ("energy", "forces", "stress", "charges"):
        assert torch.allclose(found[name], wanted[name], rtol=0, atol=1e-10), name


def test_compiled_with_all_terms(physical, monkeypatch):
    program = importlib.import_module("molequi.accelerate")
    monkeypatch.setattr(program, "BACKEND", lambda graph, inputs: graph)
    graph = mq.connect(molecule(), 6.0)
    wanted = physical(graph)
    fast = mq.accelerate(mq.Model.from_hparams(physical.hparams).double().eval())
    fast.load_state_dict(physical.state_dict())
    found = fast(graph)
    assert fast.program is not None and fast.program.functions
    for name in ("energy", "forces", "charges", "dipole"):
        assert torch.allclose(found[name], wanted[name], rtol=0, atol=1e-10), name


def test_charges_add_up_and_make_the_dipole(physical):
    for charge in (-1, 0, 2):
        graph = molecule(charge)
        out = physical(mq.connect(graph, 6.0))
        assert float(out["charges"].sum()) == pytest.approx(charge, abs=1e-12)
        center = graph.pos.mean(0)
        assert torch.allclose(out["dipole"][0], out["charges"] @ (graph.pos - center), atol=1e-12)
    assert torch.isnan(physical(mq.connect(crystal(), 6.0))["dipole"]).all()


def test_all_heads_have_the_same_charges(physical):
    again = mq.Model.from_hparams(physical.hparams)
    for model in (physical, again):
        assert len({id(model.heads[name].charges) for name in ("energy", "charges", "dipole")}) == 1
    assert physical.heads["energy"].charges.net[0].weight.shape == (5, 8)
    # Electrostatics act: other charges, another energy
    graph = mq.connect(molecule(), 6.0)
    before = float(physical(graph)["energy"])
    shift = physical.heads["charges"].charges.shift
    with torch.no_grad():
        shift[8] += 0.5
        after = float(physical(graph)["energy"])
        shift[8] -= 0.5
    assert abs(after - before) > 1e-3


def test_terms_can_be_left_out():
    torch.manual_seed(0)
    backbone = So3krates(cutoff=4.0, **OPTIONS)
    model = mq.Model(backbone, [PhysicalEnergy(repulsion=None, width=None, damping=None)]).double().eval()
    assert model.heads["energy"].charges is None and model.heads["energy"].ratios is None
    graph = mq.connect(molecule(), 4.0)  # neither a charge nor a longer cutoff is needed
    with torch.no_grad():
        wanted = model.heads["energy"].net(backbone(graph).scalars).sum()
    assert float(model(graph)["energy"]) == pytest.approx(float(wanted), rel=1e-12)


def test_what_heads_refuse(physical):
    with pytest.raises(ModelError, match="switch: found 9.0 with cutoff=4.0"):
        PhysicalEnergy(cutoff=4.0, switch=9.0)
    with pytest.raises(ModelError, match=r"PhysicalEnergy\(gap\): wanted an extensive scalar"):
        PhysicalEnergy("gap")
    with pytest.raises(ModelError, match=r"AtomicCharges\(gap\): wanted a quantity with per='node'"):
        AtomicCharges("gap")
    with pytest.raises(ModelError, match="wanted a vector with per='graph'"):
        ChargeDipole(mq.Quantity("moments", per="node", rank=1))
    short = mq.Model(So3krates(cutoff=4.0, inputs=TOTALS, **OPTIONS), [PhysicalEnergy(cutoff=6.0)])
    with pytest.raises(ModelError, match=r"looks up to 6 Å and the graph was connected up to 4 Å"):
        short(mq.connect(molecule(), 4.0))
    plain = mq.Model(So3krates(cutoff=6.0, **OPTIONS), [AtomicCharges()])
    with pytest.raises(ModelError, match="partial charges need the total charge"):
        plain(mq.connect(molecule().replace(charge=None), 6.0))
    heavy = So3krates(cutoff=6.0, inputs=TOTALS, **(OPTIONS | {"elements": [1, 103]}))
    model = mq.Model(heavy, [PhysicalEnergy(cutoff=6.0)])
    graph = mq.Graph.single([[0.0, 0, 0], [0, 0, 2]], [1, 103], charge=0, spin=1)
    with pytest.raises(ModelError, match=r"no dispersion of Lr \(atomic number 103\).* to No \(102\)"):
        model(mq.connect(graph, 6.0))
