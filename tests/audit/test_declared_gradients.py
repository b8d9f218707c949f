"""The check of declared gradients: any parent, any variable, and models whose gradients are wrong."""

import pytest
import torch

from molequi import Ensemble, Graph, Model, Quantity, add_field
from molequi.audit import Declared, audit
from molequi.audit.images import lattice, with_edges_in_order
from molequi.errors import DataError
from molequi.features import Features
from molequi.graph import FIELDS
from molequi.models import EGNN
from molequi.models.base import Backbone

from . import kit

FIELD = "field_of_audit"
BORN = Quantity("born", per="node", rank=2, gradient_of="dipole", wrt="positions")
RESPONSE = Quantity("response", rank=1, gradient_of="energy", wrt=FIELD, factor=-1.0)
ALPHA = Quantity("alpha_tensor", rank=2, symmetry="ij=ji", gradient_of="response", wrt=FIELD)
BETA = Quantity("beta", rank=3, symmetry="ijk=jik=ikj", gradient_of="alpha_tensor", wrt=FIELD, factor=0.5)
RAMAN = Quantity("raman", per="node", rank=3, gradient_of="alpha_tensor", wrt="positions")
POTENTIAL = Quantity("potential", gradient_of="energy", wrt="charge")
VIRIAL = Quantity("virial", rank=2, gradient_of="energy", wrt="strain", per_volume=False, factor=-1.0)
ELASTIC = Quantity("elastic", rank=4, gradient_of="stress", wrt="strain")
MOMENT = Quantity("moment", rank=1, extensive=True)
PIEZO = Quantity("piezo", rank=3, gradient_of="moment", wrt="strain", per_volume=True)
STRAINED = Quantity("electrostriction", rank=3, gradient_of="response", wrt="strain")
PRESSED = Quantity("pressed", rank=2, gradient_of="stress", wrt="charge")
TWICE = Quantity("twice", rank=4, gradient_of="pressed", wrt="strain")
MOLECULES = ["energy", "forces", RESPONSE, ALPHA, BETA, RAMAN, POTENTIAL, "dipole", BORN]
CRYSTALS = ["energy", "stress", VIRIAL, ELASTIC, MOMENT, PIEZO]


@pytest.fixture(autouse=True)
def field():
    """A field of the user, for these tests only."""
    add_field(FIELD, per="graph", rank=1, unit="V/Å")
    yield
    FIELDS.pop(FIELD, None)


class SquareOnce(torch.autograd.Function):
    """x² with the right derivative, which does not depend on x for a second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope * ctx.saved_tensors[0].detach()


class InField(Backbone):
    """EGNN whose features depend smoothly on a field and the charge; `cut` names a lost derivative."""

    group, translations = "O(n)", True

    def __init__(self, *, elements: list, cut: str = "", steepness: float = 1.0):
        super().__init__(elements=elements, cutoff=4.0)
        self.inner = EGNN(elements=elements, cutoff=4.0, channels=8, layers=2)
        self.mix = torch.nn.Linear(self.inner.out["1o"], 8)
        self.out, self.cut, self.steepness = dict(self.inner.out), cut, steepness

    def forward(self, graph):
        if self.cut == "positions":
            # half of the influence of the positions has no derivative
            fixed = self.inner(graph.replace(pos=graph.pos.detach()))
            features = self.inner(graph)
            scalars = (features.scalars + fixed.scalars) / 2
        else:
            features = self.inner(graph)
            scalars = features.scalars
        vectors = features.blocks["1o"]
        field = getattr(graph, FIELD)[graph.batch].to(scalars.dtype) * self.steepness
        along = torch.einsum("ncd,nd->nc", vectors, field)
        square = SquareOnce.apply(field) if self.cut == "second" else field.square()
        square = square.detach() if self.cut == "field" else square
        scalars = scalars + torch.tanh(self.mix(along + 0.3 * square.sum(1, keepdim=True)))
        if graph.charge is not None:
            scalars = scalars * (1 + 0.1 * graph.charge[graph.batch, None].to(scalars.dtype))
        vectors = vectors + 0.2 * field[:, None]
        return Features(blocks={"0e": scalars[..., None], "1o": vectors}, coordination=features.coordination)


class Wrong(Model):
    """A sound model whose results are changed."""

    def __init__(self, backbone, predict, change):
        super().__init__(backbone, predict)
        self.change = change

    def forward(self, graph, *, create_graph=None):
        out = super().forward(graph, create_graph=create_graph)
        return out | {name: function(out[name], graph) for name, function in self.change.items()}


def in_field(predict, change=None, **options):
    torch.manual_seed(0)
    backbone = InField(elements=kit.ELEMENTS, **options)
    return Model(backbone, predict) if change is None else Wrong(backbone, predict, change)


def given(graph, size=1.0, charge=1.0):
    generator = torch.Generator().manual_seed(graph.num_nodes)
    field = size * torch.randn(1, 3, dtype=torch.float64, generator=generator)
    return graph.replace(**{FIELD: field, "charge": torch.tensor([charge], dtype=torch.float64)})


def molecules(**options):
    return [given(kit.molecule(0, 5), **options), given(kit.molecule(1, 4), **options)]


def crystals():
    return [given(kit.crystal())]


def differences(model, structures, **options):
    """Rows of the check by quantity."""
    report = audit(model, structures, draws=2, checks=["finite differences"], **options)
    assert len({r.quantity for r in report.rows}) == len(report.rows)
    return {r.quantity: r for r in report.rows}


def failed(rows):
    return {name for name, row in rows.items() if row.verdict == "fail"}


def test_gradients_of_molecules():
    rows = differences(in_field(MOLECULES), molecules())
    assert set(rows) == {"forces", "response", "alpha_tensor", "beta", "raman", "potential", "born"}
    assert all(r.verdict == "pass" and 0 < r.maximum < 1e-8 for r in rows.values()), rows
    assert {r.element for r in rows.values()} == {"positions", FIELD, "charge"}


def test_gradients_of_crystals():
    """Second derivatives by strain are those at the given cell, with a charge between them too."""
    rows = differences(in_field(CRYSTALS), crystals())
    assert set(rows) == {"stress", "virial", "elastic", "piezo"}
    rows |= differences(in_field(["energy", "stress", PRESSED, TWICE]), crystals())
    rows |= differences(in_field(["energy", RESPONSE, STRAINED]), crystals())
    assert len(rows) == 8
    assert all(r.verdict == "pass" and 0 < r.maximum < 1e-7 for r in rows.values()), rows


@pytest.mark.parametrize("name", ["forces", "response", "beta", "raman", "potential", "born"])
def test_a_wrong_sign_or_size_of_molecules(name):
    for factor in (-1.0, 1.01):
        wrong = {name: lambda value, graph, factor=factor: factor * value}
        rows = differences(in_field(MOLECULES, wrong), molecules())
        found = failed(rows)
        # the derivatives of a wrong quantity do not fit to it either
        assert name in found and found <= {name, *(["alpha_tensor"] if name == "response" else [])}
        assert rows[name].maximum > 1e-3


@pytest.mark.parametrize(
    ("name", "predict"),
    [
        ("virial", ["energy", VIRIAL]),
        ("elastic", ["energy", "stress", ELASTIC]),
        ("piezo", [MOMENT, PIEZO]),
        ("twice", ["energy", "stress", PRESSED, TWICE]),
    ],
)
def test_a_wrong_sign_or_size_of_crystals(name, predict):
    for factor in (-1.0,) if name == "twice" else (-1.0, 1.01):
        wrong = {name: lambda value, graph, factor=factor: factor * value}
        rows = differences(in_field(predict, wrong), crystals())
        assert failed(rows) == {name} and rows[name].maximum > 1e-3


def test_a_stress_without_its_volume_and_born_charges_with_indices_exchanged():
    volume = {"stress": lambda value, graph: value * torch.linalg.det(graph.cell).abs()[:, None, None]}
    rows = differences(in_field(["energy", "stress"], volume), crystals())
    assert failed(rows) == {"stress"} and rows["stress"].maximum > 0.1
    exchanged = {"born": lambda value, graph: value.transpose(1, 2)}
    assert failed(differences(in_field(["dipole", BORN], exchanged), molecules())) == {"born"}


def test_the_derivative_of_the_stress_of_strained_crystals_is_not_the_declared_one():
    """∂σ/∂ε of a stress over the strained volume lacks σ tr(ε): the control of the reference."""

    def with_volume(value, graph):
        stress = in_field(["energy", "stress"]).double()(graph)["stress"]
        return value - torch.einsum("gij,kl->gijkl", stress, torch.eye(3, dtype=stress.dtype))

    rows = differences(in_field(["energy", "stress", ELASTIC], {"elastic": with_volume}), crystals())
    assert failed(rows) == {"elastic"}


@pytest.mark.parametrize(
    ("cut", "wrong"),
    [
        ("positions", {"forces"}),
        ("field", {"response", "alpha_tensor"}),
        ("second", {"alpha_tensor"}),
    ],
)
def test_a_path_without_derivative(cut, wrong):
    """A `detach`, and a function whose derivative has none, are found where the derivative is lost."""
    model = in_field(["energy", "forces", RESPONSE, ALPHA], cut=cut)
    rows = differences(model, molecules())
    assert failed(rows) == wrong and all(rows[name].maximum > 1e-4 for name in wrong)


def test_a_gradient_that_is_zero_though_its_parent_changes():
    rows = differences(in_field(["energy", "forces"], {"forces": lambda v, _: 0 * v}), molecules())
    assert failed(rows) == {"forces"}
    # where the parent is constant, zero is right, and nothing was measured
    constant = {"energy": lambda v, _: 0 * v + 1, "forces": lambda v, _: 0 * v}
    assert not differences(in_field(["energy", "forces"], constant), molecules())


@pytest.mark.parametrize("size", [0.0, 1e-3, 30.0])
def test_the_step_follows_the_size_of_a_field(size):
    """The model bends on the scale of the field's values."""
    model = in_field(["energy", RESPONSE, ALPHA], steepness=1 / size if size else 1.0)
    rows = differences(model, molecules(size=size))
    assert not failed(rows) and rows["alpha_tensor"].maximum < 1e-6
    assert rows["alpha_tensor"].verdict == "pass"


def test_large_total_energies_leave_the_check_sharp():
    def shifted(value, graph):
        return value - 1e5 * graph.num_nodes / graph.num_graphs

    right = in_field(["energy", RESPONSE, ALPHA], {"energy": shifted})
    assert not failed(differences(right, molecules()))
    wrong = in_field(["energy", RESPONSE, ALPHA], {"energy": shifted, "alpha_tensor": lambda v, _: -v})
    assert failed(differences(wrong, molecules())) == {"alpha_tensor"}


def test_second_derivatives_by_strain_need_a_differentiable_energy():
    model = in_field(["energy", "stress", ELASTIC], {"energy": lambda value, graph: value.detach()})
    row = differences(model, crystals())["elastic"]
    assert row.verdict == "not applicable" and "'energy' is not differentiable" in row.reason


def test_ensembles():
    models = [in_field(["energy", "stress", ELASTIC]) for _ in range(2)]
    with torch.no_grad():
        models[1].backbone.mix.weight.mul_(1.5)
    rows = differences(Ensemble(models), crystals())
    assert {name: row.verdict for name, row in rows.items()} == {"stress": "pass", "elastic": "pass"}


def test_structures_without_the_quantity_are_left_out():
    rows = differences(in_field(["energy", "stress", "dipole", BORN]), molecules() + crystals())
    assert {name: row.verdict for name, row in rows.items()} == {"stress": "pass", "born": "pass"}
    assert set(differences(in_field(["energy", "forces", "stress"]), molecules())) == {"forces"}
    broken = {"forces": lambda value, graph: value / 0}
    rows = differences(in_field(["energy", "forces"], broken), molecules())
    assert rows["forces"].verdict == "fail" and "not finite" in rows["forces"].reason


class Springs(torch.nn.Module):
    """Energy of all pairs and its gradient."""

    def forward(self, pos):
        away = pos[:, None] - pos[None]
        return away.square().sum() / 4, away.sum(1)


def springs(gradient):
    return Declared(Springs(), takes=["pos"], gives=["energy", gradient], edges=False, batched=False)


def test_declarations_of_other_modules():
    right = Quantity("slope", per="node", rank=1, gradient_of="energy", wrt="positions", factor=1.0)
    assert differences(springs(right), [kit.molecule()])["slope"].verdict == "pass"
    force = Quantity("slope", per="node", rank=1, gradient_of="energy", wrt="positions", factor=-1.0)
    assert failed(differences(springs(force), [kit.molecule()])) == {"slope"}
    unknown = Quantity("slope", per="node", rank=1, gradient_of="energy", wrt="nothing")
    row = differences(springs(unknown), [kit.molecule()])["slope"]
    assert row.verdict == "fail" and "wrt='nothing' is no variable" in row.reason
    charged = Quantity("potential", gradient_of="energy", wrt="charge")

    def no_charge(pos):
        return pos.sum().reshape(1), pos.sum().reshape(1)

    module = torch.nn.Module()
    module.forward = no_charge
    declared = Declared(module, takes=["pos"], gives=["energy", charged], edges=False, batched=False)
    row = differences(declared, [kit.molecule()])["potential"]
    assert row.verdict == "not applicable" and "the structures have no 'charge'" in row.reason


def test_whole_audits_raise_no_alarm():
    """Born charges at the cutoff, of single atoms and in fragments, and responses of supercells."""

    def without_charge(graphs):
        return [g.replace(charge=None) for g in graphs]

    predict = ["energy", "forces", RESPONSE, ALPHA, RAMAN, "dipole", BORN]
    report = audit(in_field(predict), without_charge(molecules()), draws=2).raise_if_failed()
    rows = {(r.check, r.quantity, r.element): r for r in report.rows}
    assert rows["one atom", "raman", "alone"].tolerance == 0  # as forces are
    assert rows["one atom", "born", "alone"].reason == "finite"
    assert rows["energy against force", "born", "atoms moving"].verdict == "pass"
    assert rows["fragments", "raman", "far apart"].verdict == "pass"
    torque = rows["momentum", "forces", "torque"]
    assert torque.verdict == "not applicable" and FIELD in torque.reason
    predict = ["energy", "forces", "stress", RESPONSE, ALPHA, STRAINED]
    report = audit(in_field(predict), without_charge(crystals()), draws=2).raise_if_failed()
    assert {"alpha_tensor", "electrostriction"} <= {r.quantity for r in report.rows if r.check == "supercell"}


def test_parts_of_structures_that_do_not_exist():
    with pytest.raises(DataError, match="without a cell; wanted a periodic one"):
        lattice(kit.molecule())
    with pytest.raises(DataError, match="without edges; connect it first"):
        with_edges_in_order(Graph.single([[0, 0, 0]], ["H"]), torch.Generator())
