"""Declared derivatives: right values, laws, and errors."""

import pytest
import torch

import molequi as mq
from molequi.audit import audit
from molequi.checkpoint import load, save
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, ModelError
from molequi.features import Features
from molequi.graph import FIELDS, Graph, add_field, collate
from molequi.heads import Scalar, Vector
from molequi.model import Model
from molequi.models import EGNN
from molequi.models.base import Backbone
from molequi.neighbors import connect
from molequi.ops.indices import index_permutations, symmetrize
from molequi.quantities import KNOWN, Quantity
from molequi.upgrades import upgrade_quantity

FIELD = "field_of_gradients"
STEP = 1e-4
BORN = Quantity("born", per="node", rank=2, unit="e", gradient_of="dipole", wrt="positions")
RESPONSE = Quantity("response", rank=1, gradient_of="energy", wrt=FIELD, factor=-1.0)
ALPHA = Quantity("alpha_tensor", rank=2, symmetry="ij=ji", gradient_of="response", wrt=FIELD)
BETA = Quantity("beta", rank=3, symmetry="ijk=jik=ikj", gradient_of="alpha_tensor", wrt=FIELD)
RAMAN = Quantity("raman", per="node", rank=3, gradient_of="alpha_tensor", wrt="positions")
ELASTIC = Quantity("elastic", rank=4, gradient_of="stress", wrt="strain", per_volume=False)
PIEZO = Quantity("piezo", rank=3, gradient_of="moment", wrt="strain")
MOMENT = Quantity("moment", rank=1, extensive=True)
FUKUI = Quantity("potential", gradient_of="energy", wrt="charge")


@pytest.fixture(autouse=True)
def field():
    """A field of the user, for these tests only."""
    add_field(FIELD, per="graph", rank=1, unit="V/Å")
    yield
    FIELDS.pop(FIELD, None)


class InField(Backbone):
    """EGNN whose invariants and vectors depend smoothly on a field and on the total charge."""

    group, translations = "O(n)", True

    def __init__(self, *, elements: list, cutoff: float = 4.0):
        super().__init__(elements=elements, cutoff=cutoff)
        self.inner = EGNN(elements=elements, cutoff=cutoff, channels=8, layers=2)
        self.mix = torch.nn.Linear(self.inner.out["1o"], 8)
        self.out = dict(self.inner.out)

    def forward(self, graph):
        features = self.inner(graph)
        scalars, vectors = features.scalars, features.blocks["1o"]
        field = getattr(graph, FIELD)[graph.batch].to(scalars.dtype)
        along = torch.einsum("ncd,nd->nc", vectors, field)
        scalars = scalars + torch.tanh(self.mix(along + 0.3 * field.square().sum(1, keepdim=True)))
        if graph.charge is not None:
            scalars = scalars * (1 + 0.1 * graph.charge[graph.batch, None].to(scalars.dtype))
        vectors = vectors + 0.2 * field[:, None]
        return Features(blocks={"0e": scalars[..., None], "1o": vectors}, coordination=features.coordination)


def in_field(predict) -> Model:
    torch.manual_seed(0)
    return Model(InField(elements=["H", "C", "O"]), predict).double().eval()


def molecule(seed=0, n=5, **fields) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand(n, 3, dtype=torch.float64, generator=generator) * 3
    fields = {FIELD: torch.randn(3, dtype=torch.float64, generator=generator), "charge": 1.0} | fields
    return connect(Graph.single(pos, [[1, 6, 8][k % 3] for k in range(n)], **fields), 4.0)


def crystal(seed=0) -> Graph:
    return molecule(seed, 4, cell=torch.tensor([[3.1, 0, 0], [0.4, 3.3, 0], [0.2, 0.1, 2.9]]), pbc=True)


def strained(graph, change):
    return graph.strained(change[None])


def moved(graph, change):
    return graph.replace(pos=graph.pos + change)


def with_field(graph, change):
    return graph.replace(**{FIELD: getattr(graph, FIELD) + change})


def charged(graph, change):
    return graph.replace(charge=graph.charge + change)


CHANGES = {"positions": moved, "strain": strained, FIELD: with_field, "charge": charged}


def differences(model, graph, parent, wrt):
    """∂parent/∂wrt by central differences, axes of the parent first."""
    shape = {"positions": tuple(graph.pos.shape), "strain": (3, 3), FIELD: (1, 3), "charge": (1,)}[wrt]
    rows = []
    for k in range(torch.Size(shape).numel()):
        unit = torch.zeros(shape, dtype=torch.float64)
        unit.view(-1)[k] = STEP
        unit = (unit + unit.T) / 2 if wrt == "strain" else unit
        plus, minus = (model(CHANGES[wrt](graph, s * unit))[parent][0] for s in (1, -1))
        rows.append((plus - minus) / (2 * STEP))
    slope = torch.stack(rows, -1).reshape(*rows[0].shape, *shape)
    axes = slope.ndim - len(shape)
    if wrt == "strain":
        return slope[None]
    return slope.movedim(axes, 0)


@pytest.mark.parametrize(
    ("predict", "what", "make"),
    [
        (["energy", "forces"], KNOWN["forces"], molecule),
        (["dipole", BORN], BORN, molecule),
        (["energy", RESPONSE], RESPONSE, molecule),
        (["energy", RESPONSE, ALPHA], ALPHA, molecule),
        (["energy", BETA, ALPHA, RESPONSE], BETA, molecule),
        (["energy", RESPONSE, ALPHA, RAMAN], RAMAN, molecule),
        ([MOMENT, Quantity("chi", rank=2, gradient_of="moment", wrt=FIELD)], "chi", crystal),
        (["energy", FUKUI], FUKUI, molecule),
        ([MOMENT, PIEZO], PIEZO, crystal),
    ],
    ids=lambda x: getattr(x, "name", None) or (x if isinstance(x, str) else getattr(x, "__name__", "")),
)
def test_every_kind_against_finite_differences(predict, what, make):
    model, graph = in_field(predict), make()
    what = model.quantities[getattr(what, "name", what)]
    found = model(graph)[what.name]
    rows = graph.num_nodes if what.per == "node" else 1
    assert found.shape == (rows, *what.shape()) and not found.requires_grad
    wanted = differences(model, graph, what.gradient_of, what.wrt) * (what.factor or 1.0)
    assert float(found.abs().max()) > 1e-6
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    for permutation, sign in index_permutations(what.symmetry, what.rank).items():
        assert torch.equal(found, sign * found.permute(0, *(1 + k for k in permutation)))


def test_elastic_constants_are_second_derivatives_of_the_energy():
    """C = ∂²E/∂ε∂ε / V at the given cell, not the derivative of a stress whose volume and reference change."""
    model, graph, step = in_field(["energy", "stress", ELASTIC]), crystal(), 2e-4
    found = model(graph)["elastic"][0]

    def energy(i, j, a, k, l, b):
        change = torch.zeros(3, 3, dtype=torch.float64)
        change[i, j] += a * step
        change[k, l] += b * step
        return float(model(strained(graph, (change + change.T) / 2))["energy"])

    volume = float(torch.linalg.det(graph.cell).abs())
    for i, j, k, l in ((0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 1), (0, 2, 1, 1)):
        values = [a * b * energy(i, j, a, k, l, b) for a in (1, -1) for b in (1, -1)]
        wanted = sum(values) / (4 * step**2) / volume
        assert float(found[i, j, k, l]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_stress_over_the_volume_and_virial():
    virial = Quantity("virial", rank=2, gradient_of="energy", wrt="strain", per_volume=False)
    out, graph = in_field(["energy", "stress", virial])(crystal()), crystal()
    volume = torch.linalg.det(graph.cell).abs()
    torch.testing.assert_close(out["virial"], out["stress"] * volume, rtol=1e-12, atol=0)


def test_a_batch_gives_what_its_structures_give():
    model = in_field(["energy", RESPONSE, ALPHA, RAMAN, "dipole", BORN])
    graphs = [molecule(0), molecule(1, 7), molecule(2, 1)]
    whole, parts = model(collate(graphs)), [model(g) for g in graphs]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.cat([p[name] for p in parts]), rtol=1e-9, atol=1e-11)


def test_born_charges_add_up_to_zero():
    """A translation leaves the dipole about the centre as it is: Σ_i ∂μ/∂r_i = 0. The terms themselves are
    not zero.
    """
    born = in_field(["dipole", BORN])(molecule())["born"]
    assert float(born.sum(0).abs().max()) < 1e-12 < 1e-3 < float(born.abs().max())


def test_several_parents_and_modes_of_autograd():
    gap = Quantity("gap_gradient", per="node", rank=1, gradient_of="gap", wrt="positions", factor=1.0)
    model, graph = in_field(["energy", "forces", "gap", gap, "dipole", BORN, RESPONSE, ALPHA]), molecule()
    plain = model(graph)
    with torch.no_grad():
        again = model(graph)
    with torch.inference_mode():
        inference = model(molecule())
    for name, value in plain.items():
        assert torch.equal(value, again[name]) and torch.equal(value, inference[name])
    kept = model(graph, create_graph=True)
    assert [name for name, value in kept.items() if not value.requires_grad] == []
    for name, value in kept.items():
        torch.testing.assert_close(value.detach(), plain[name], rtol=1e-12, atol=1e-14)


def test_training_on_second_derivatives():
    model = in_field(["energy", RESPONSE, ALPHA]).train()
    loss = model(molecule())["alpha_tensor"].square().sum()
    loss.backward()
    weight = model.backbone.mix.weight
    at, found = weight.detach().clone(), weight.grad[0, 0].item()

    def value(shift):
        with torch.no_grad():
            weight.copy_(at)
            weight[0, 0] += shift
        return float(model(molecule())["alpha_tensor"].detach().square().sum())

    assert found != 0 and found == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-5)


def test_nan_where_the_parent_does_not_exist():
    elastic = Quantity("elastic", rank=4, gradient_of="stress", wrt="strain")
    model = in_field(["energy", "stress", elastic, "dipole", BORN])
    single, periodic = model(molecule()), model(crystal())
    assert single["stress"].isnan().all() and single["elastic"].isnan().all()
    assert single["born"].isfinite().all()
    assert periodic["born"].isnan().all() and periodic["elastic"].isfinite().all()
    both = model(collate([molecule(), crystal()]))
    assert both["born"][:5].isfinite().all() and both["born"][5:].isnan().all()
    assert both["elastic"][0].isnan().all() and both["elastic"][1].isfinite().all()


@pytest.mark.parametrize("quantity", [BORN, ALPHA, RAMAN], ids=lambda q: q.name)
def test_the_audit_measures_their_equivariance(quantity):
    model = in_field(["energy", RESPONSE, ALPHA, RAMAN] if quantity is not BORN else ["dipole", BORN])
    checks = ["not zero", "rotation", "reflection", "translation", "permutation"]
    report = audit(model, [molecule(1)], draws=2, checks=checks)
    assert report.passed, str(report)
    # Control: declared as a pseudotensor it must fail for reflections, and for them alone.
    model._quantities[quantity.name] = Quantity(
        quantity.name, per=quantity.per, rank=quantity.rank, pseudo=True
    )
    failed = {
        row.check for row in audit(model, [molecule(1)], draws=2, checks=checks).rows if row.verdict == "fail"
    }
    assert failed == {"reflection"}


def test_views_share_weights_and_compute_less():
    model = in_field(["energy", "forces", "dipole", BORN])
    view = model.predicting(["born"])
    assert list(view.quantities) == ["dipole", "born"] and list(view.heads) == ["dipole"]
    assert list(model.quantities) == ["energy", "forces", "dipole", "born"] and "energies" in model.names
    graph = molecule()
    assert list(view(graph)) == ["dipole", "born"]
    assert torch.equal(view(graph)["born"], model(graph)["born"])
    with torch.no_grad():
        model.heads["dipole"].scale.mul_(2.0)
    assert torch.equal(view(graph)["dipole"], model(graph)["dipole"])
    more = model.predicting(["energy", KNOWN["stress"]])
    assert list(more(crystal())) == ["energy", "stress", "energies"]
    model.use_program(lambda *_: {"energy": torch.zeros(1)})
    assert list(model.plain()(graph)) == [*model.quantities, "energies"] and model.plain().program is None
    assert list(model(graph)) == ["energy"]
    for name, value in (("quantities", {}), ("program", None)):
        with pytest.raises(AttributeError):
            setattr(model, name, value)


def test_views_of_an_ensemble():
    models = [in_field(["energy", "forces", "dipole"]) for _ in range(2)]
    with torch.no_grad():
        models[1].backbone.mix.weight.mul_(1.1)
    many = Ensemble(models)
    view = many.predicting(["dipole"])
    assert list(view(molecule())) == ["dipole", "dipole_std"] and "energy" in many.quantities
    many.use_program(print)
    assert many.program is print and many.plain().program is None and many.program is print


def test_no_module_assigns_the_quantities_or_the_program_of_a_model():
    import re
    from pathlib import Path

    import molequi

    pattern = re.compile(r"(?<!\bself)\.(quantities|program|_quantities|_program)(\[.*?\])? = ")
    allowed = {"model.py": ["view._program = None", "view._quantities = "]}
    # A part of a data set, which has no program.
    allowed["dataset.py"] = ["data.graphs, data.quantities = ", "data.quantities = {name: self.quantities"]
    found = []
    for path in Path(molequi.__file__).parent.rglob("*.py"):
        for line in path.read_text("utf-8").splitlines():
            if pattern.search(line) and not any(a in line for a in allowed.get(path.name, [])):
                found.append(f"{path.name}: {line.strip()}")
    assert not found
    assert pattern.search("        self.model.quantities = asked") and pattern.search("m.program = None")


def test_files_keep_declarations(tmp_path):
    born = Quantity("born", per="node", rank=2, gradient_of="dipole", wrt="positions", factor=2.0)
    model = Model(EGNN(elements=["H", "C", "O"], channels=4, layers=1, cutoff=4.0), ["dipole", born]).eval()
    again = load(save(model, tmp_path / "m.safetensors"))
    assert again.quantities == model.quantities
    graph = molecule()
    assert torch.equal(again(graph)["born"], model(graph)["born"])


def test_declarations_in_earlier_files():
    old = {"name": "a", "per": "node", "rank": 1, "gradient_of": "energy", "wrt": "positions", "classes": []}
    assert Quantity(**upgrade_quantity(old)).factor == -1.0
    strain = {"name": "a", "rank": 2, "gradient_of": "energy", "wrt": "strain"}
    assert Quantity(**upgrade_quantity(strain)) == Quantity(
        "a", rank=2, symmetry="ij=ji", gradient_of="energy", wrt="strain", per_volume=True
    )
    direct = {"name": "a", "rank": 2, "gradient_of": None, "wrt": "positions"}
    assert Quantity(**upgrade_quantity(direct)) == Quantity("a", rank=2, symmetry="ij=ji")
    new = {"name": "a", "rank": 2, "symmetry": ""}
    assert upgrade_quantity(new) == new


NODES = Quantity("slope", per="node", rank=1, gradient_of="charges", wrt="positions", factor=1.0)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: Quantity("f", per="node", rank=1, gradient_of="energy"),
            ConfigError,
            "factor=-1 for forces .* factor=1 for the gradient itself",
        ),
        (
            lambda: Quantity("dipole", rank=1, gradient_of="energy", wrt="electric_field"),
            ConfigError,
            r"factor=-1 for a dipole moment \(-denergy/dF\), factor=1 for the gradient itself",
        ),
        (
            lambda: Quantity("s", rank=2, gradient_of="energy", wrt="strain"),
            ConfigError,
            "per_volume=True for a stress .* per_volume=False",
        ),
        (lambda: in_field([BORN]), ModelError, "'dipole', which is not predicted; predict both"),
        (lambda: in_field(["charges", NODES]), ModelError, "one value per node.*each pair of nodes"),
        (
            lambda: in_field(["dipole", Quantity("b", rank=2, gradient_of="dipole")]),
            ModelError,
            "declared with per='graph', rank=2, pseudo=False; .* has per='node', rank=2, pseudo=False",
        ),
        (
            lambda: in_field(["energy", Quantity("b", rank=1, gradient_of="energy", wrt="efeld")]),
            ModelError,
            "wrt='efeld' is no variable .*Wanted one of positions, strain",
        ),
        (
            lambda: in_field(["energy", Quantity("b", rank=1, pseudo=True, gradient_of="energy", wrt=FIELD)]),
            ModelError,
            "pseudo=True; .* pseudo=False",
        ),
        (
            lambda: in_field(
                [Quantity("a", gradient_of="b", wrt="charge"), Quantity("b", gradient_of="a", wrt="charge")]
            ),
            ModelError,
            "'a', 'b': each is declared as a gradient of another",
        ),
        (
            lambda: in_field(
                [Quantity("taste", classes=["x", "y"]), Quantity("b", gradient_of="taste", wrt="charge")]
            ),
            ModelError,
            "which has classes",
        ),
        (
            lambda: in_field(["energy", FUKUI])(molecule(charge=None)),
            ModelError,
            "differentiates by 'charge', and the structures have no 'charge'",
        ),
        (
            lambda: Model(
                EGNN(elements=["H", "C", "O"], channels=4, layers=1, cutoff=4.0), ["energy", RESPONSE]
            )(molecule()),
            ModelError,
            "on which neither the backbone nor the head depends",
        ),
        (lambda: in_field(["energy"]).predicting(["forces"]), ModelError, "'forces' is not predicted"),
    ],
)
def test_wrong_declarations_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_direct_heads_need_no_parent():
    model = in_field([Vector("forces"), Scalar("energy")])
    assert not model.gradients and model(molecule())["forces"].shape == (5, 3)


def test_symmetrizing_is_exact_and_a_projection():
    value = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for formula, order in (("ijk=jik=ikj", 6), ("ijk=jki", 3), ("ijk=-jik=-ikj", 6), ("ijk=ikj", 2)):
        found, permutations = symmetrize(value, formula, 3), index_permutations(formula, 3)
        assert len(permutations) == order and float((found - value).abs().max()) > 0.1
        for permutation, sign in permutations.items():
            assert torch.equal(found, sign * found.permute(0, *(1 + k for k in permutation)))
        torch.testing.assert_close(symmetrize(found, formula, 3), found, rtol=1e-14, atol=1e-15)
    assert symmetrize(value, "", 3) is value


def test_files_with_a_dipole_of_the_energy_without_its_factor_are_still_read(tmp_path):
    """Such a dipole was +dE/dF."""
    backbone = mq.PaiNN(
        elements=["H", "O"], cutoff=4.0, channels=8, layers=1, inputs=mq.Inputs(electric_field=True)
    )
    declaration = dict(per="graph", rank=1, gradient_of="energy", wrt="electric_field")
    model = mq.Model(backbone, ["energy", mq.Quantity("slope", factor=1.0, **declaration)]).double().eval()
    object.__setattr__(model.quantities["slope"], "factor", None)  # as an earlier version kept it
    path = mq.save(model, tmp_path / "old.safetensors")
    read = mq.load(path)
    assert read.quantities["slope"].factor == 1.0
    graph = mq.connect(mq.Graph.single([[0, 0, 0], [0, 0.6, 0.8]], ["O", "H"]), 4.0)
    assert float(read(graph)["slope"].abs().max()) > 1e-6
    torch.testing.assert_close(read(graph)["slope"], model(graph)["slope"])
