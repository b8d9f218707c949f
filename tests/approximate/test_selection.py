"""Layer-wise equivariance selection: pruned on symmetric data, open with a field, the same after an interruption."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from molequi import EGNN, Dataset, Ensemble, Graph, Model, Quantity, fit
from molequi.approximate import laplace
from molequi.approximate import layerwise_equivariance as measure
from molequi.approximate.annealing import ConstraintAnnealing
from molequi.approximate.laplace import linearised_evidence
from molequi.approximate.regularizers import EquivarianceRegularizer
from molequi.approximate.report import FreePath, LayerwiseEquivariance, verdict
from molequi.approximate.selection import EquivarianceSelection, Selection
from molequi.approximate.shares import output_shares
from molequi.data.batches import Loader
from molequi.errors import CheckpointError, ConfigError, TrainingWarning
from molequi.heads import Vector
from molequi.losses import Loss, Objective
from molequi.models import RelaxedEGNN, RelaxedNequIP
from molequi.nn.relaxed import free_groups, relaxed_layers, set_theta
from molequi.training import symmetry
from molequi.training import trainer as module

from ..benchmarks.degree import points as pairs

# The small data of these tests are not split as real ones are.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning"),
    pytest.mark.filterwarnings("ignore:.*equal structures? ha:molequi.errors.DataWarning"),
]


def relaxed(seed=0, predict=None, kind=RelaxedEGNN, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size = dict(channels=8, layers=1, radial=6, cutoff=4.0) | options
        return Model(kind(elements=[1], **size), predict or [Vector("forces")])


def objective(weights, quantities):
    """The loss of quantities with these weights."""
    return Objective([Loss(name, weight=weight) for name, weight in weights.items()], quantities)


def selection(model, loss, train, method="evidence", every=1):
    """The selection of a training with the seed 0."""
    return Selection(EquivarianceSelection(method, every=every), model, loss, train, 0)


def selected(result):
    """What a training reports of its selection."""
    return result.reports["equivariance_selection"]


class FakeRun:
    """What a selection needs of a training: the validation structures and the history."""

    def __init__(self, graphs, history=()):
        self.found, self.history = graphs, history

    def graphs(self, part):
        return self.found


QUICK = dict(
    epochs=5, batch_size=10, terms=[EquivarianceSelection("evidence", every=2)], logging={"progress": False}
)


@pytest.fixture(scope="module")
def trained():
    """The same training without and with a field; few epochs are enough, as the effect of the field is large."""
    found = {}
    for field in (0.0, 0.3):
        parts = {
            "train": pairs(24, 1, field),
            "valid": pairs(12, 2, field),
            "test": pairs(40, 3, field, noise=0.0),
        }
        found[field] = fit(
            relaxed(),
            **parts,
            epochs=30,
            batch_size=8,
            lr=1e-2,
            terms=[EquivarianceSelection("evidence", every=8)],
            logging={"progress": False},
        )
    return found


def test_symmetric_data_close_the_free_path_and_a_field_opens_it(trained):
    closed, opened = (
        trained[0.0].reports["equivariance_selection"],
        trained[0.3].reports["equivariance_selection"],
    )
    assert closed.verdict == "symmetric" and closed.share == 0 and len(closed.pruned) == 2
    assert opened.verdict == "broken" and opened.share > 0.1 and "backbone.layers.0/1o" not in opened.pruned
    assert all(bool((p == 0).all()) for group in free_groups(trained[0.0].model).values() for p in group)
    assert any(bool((p != 0).all()) for group in free_groups(trained[0.3].model).values() for p in group)
    # Against the strict network on the same data: nothing is lost without the field, most is won with it.
    assert trained[0.3].errors["test"]["forces_rmse"] < 0.5 * 0.3 / 3**0.5  # the field alone makes 0.3 / √3


def test_a_model_whose_paths_are_pruned_is_equivariant_and_others_are_not(trained):
    turn = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ).Q
    for field, result in trained.items():
        model = result.model.double().eval()
        graph = pairs(1, 8).connected(4.0)[0]
        there, back = model(graph)["forces"] @ turn, model(graph.replace(pos=graph.pos @ turn))["forces"]
        assert (float((there - back).abs().max()) < 1e-12) == (field == 0.0)
        result.model.float()


def test_report_as_table_and_json(trained):
    report = trained[0.3].reports["equivariance_selection"]
    text = str(report)
    assert (
        all(f"{p.layer}  {p.irrep}" in text for p in report.paths)
        and f"{report.share:.1e} of the outputs' variance (evidence, 3 updates, the last after 24 epochs)"
        in text
    )
    assert str(report) in str(trained[0.3])
    plain = json.loads(report.to_json())
    assert plain["verdict"] == "broken" and plain["share"] == report.share
    assert [p["weights"] for p in plain["paths"]] == [
        sum(p.numel() for p in g) for g in free_groups(trained[0.3].model).values()
    ]
    closed = json.loads(trained[0.0].reports["equivariance_selection"].to_json())
    assert {p["precision"] for p in closed["paths"]} == {None} and {
        p["verdict"] for p in closed["paths"]
    } == {"symmetric"}
    assert 0.005 < plain["noise"]["forces"] < 0.2
    assert [verdict(s) for s in (0, 1e-5, 2e-5, 5e-3, 6e-3)] == ["symmetric"] * 2 + ["weakly broken"] * 2 + [
        "broken"
    ]


def test_measured_afterwards(trained):
    """`layerwise_equivariance` changes nothing, and finds for a trained model what the training found."""
    for field, result in trained.items():
        before = {name: value.clone() for name, value in result.model.state_dict().items()}
        asked = {name: p.requires_grad for name, p in result.model.named_parameters()}
        report = measure(result.model, pairs(24, 1, field), pairs(12, 2, field), labels=200)
        assert all(torch.equal(value, before[name]) for name, value in result.model.state_dict().items())
        assert asked == {name: p.requires_grad for name, p in result.model.named_parameters()}
        assert report.verdict == result.reports[
            "equivariance_selection"
        ].verdict and report.share == pytest.approx(result.reports["equivariance_selection"].share, rel=1e-6)
        assert ("backbone.layers.0/1o" in report.pruned) == (field == 0.0)


def test_derivatives_of_the_labels_against_differences():
    """What the evidence is given, for energies and forces of a network: rows of J by small changes of weights; the target from its parts."""
    model = relaxed(kind=RelaxedNequIP, predict=["energy", "forces"], channels=4, l_max=1).double()
    graph = pairs(1, 3)[0]
    graphs = Dataset(
        [graph.replace(targets=graph.targets | {"energy": torch.tensor([0.7]).double()})]
    ).connected(4.0)
    graphs = Loader(graphs, ["energy", "forces"]).graphs
    loss, groups = objective({"energy": 1.0, "forces": 1.0}, model.quantities), free_groups(model)
    seen, original = {}, laplace.maximum_evidence

    def capture(target, grams, **options):
        seen.update(target=target, grams=grams, **options)
        return original(target, grams, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laplace, "maximum_evidence", capture)
        patch.setattr(laplace, "TOO_FEW", 1)
        linearised_evidence(model.eval(), groups, graphs, loss, torch.Generator().manual_seed(0))

    def outputs():
        out = model(graphs[0])
        return torch.cat([out["energy"] / 4, out["forces"].flatten()])

    def gram(parameters):
        columns = []
        for p in parameters:
            for k in range(p.numel()):
                flat, was = p.data.view(p.numel()), float(p.data.view(p.numel())[k])
                flat[k] = was + 1e-5
                up = outputs()
                flat[k] = was - 1e-5
                columns.append((up - outputs()) / 2e-5)
                flat[k] = was
        return torch.stack(columns, dim=1)

    labels = torch.cat([graphs[0].targets["energy"] / 4, graphs[0].targets["forces"].flatten()])
    target = labels - outputs()
    for name, group in groups.items():
        jacobian = gram(group)
        assert sorted(seen["grams"][name].diagonal().tolist()) == pytest.approx(
            sorted(jacobian.square().sum(1).tolist()), rel=1e-5, abs=1e-12
        )
        assert float(seen["grams"][name].norm()) == pytest.approx(
            float((jacobian @ jacobian.T).norm()), rel=1e-5
        )
        target = target + jacobian @ torch.cat([p.detach().flatten() for p in group])
    assert sorted(seen["target"].tolist()) == pytest.approx(sorted(target.tolist()), abs=1e-7)
    assert seen["kinds"].tolist().count(0) == 1 and seen["kinds"].tolist().count(1) == 12


def test_shares_by_closing_paths_one_by_one():
    model, data = relaxed(gates=(1.0, 1.0, 0.5)), pairs(6, 1).connected(4.0)
    graphs, loss = Loader(data, []).graphs, objective({"forces": 1.0}, model.quantities)
    parts, whole = output_shares(model.eval(), graphs, loss, data)
    assert set(parts) == set(free_groups(model)) and whole > 0
    before = torch.cat([model(g)["forces"] for g in graphs])
    with torch.no_grad():
        for group in free_groups(model).values():
            for p in group:
                p.zero_()
    after = torch.cat([model(g)["forces"] for g in graphs])
    assert whole == pytest.approx(float((before - after).square().mean() / before.square().mean()), rel=1e-5)
    assert output_shares(model, graphs, loss, data)[1] == 0


def test_precisions_enter_the_gradient_and_pruned_weights_have_none():
    model = relaxed()
    learned = selection(model, objective({"forces": 1.0}, model.quantities), pairs(3, 1))
    one, other = learned.groups
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    learned.after_gradients(None)
    assert all(bool((p.grad == 1).all()) for p in model.parameters())  # nothing is known yet
    learned.strength = {one: 3.0, other: math.inf}
    learned.after_gradients(None)
    assert all(torch.allclose(p.grad, 1 + 6 * p.detach()) for p in learned.groups[one])
    assert all(bool((p.grad == 0).all()) for p in learned.groups[other])
    mine = {id(p) for group in learned.groups.values() for p in group}
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if id(p) not in mine)


def test_gates_stay_where_they_are(trained):
    for result in trained.values():
        for _, layer in relaxed_layers(result.model):
            assert [float(g.detach()) for g in (layer.a, layer.b, layer.c)] == pytest.approx([1.0, 1.0, 0.1])
    free = fit(relaxed(), pairs(10, 1), pairs(5, 2), epochs=2, logging={"progress": False})
    assert any(
        float(layer.c.detach()) != pytest.approx(0.1, abs=1e-6) for _, layer in relaxed_layers(free.model)
    )  # the control


@pytest.mark.parametrize("method", ["evidence", "hypergradient"])
def test_an_interrupted_training_selects_the_same(method, tmp_path, monkeypatch):
    parts = {"train": pairs(20, 1, 0.1), "valid": pairs(10, 2, 0.1)}
    settings = QUICK | {"terms": [EquivarianceSelection(method, every=2)]}
    whole = fit(relaxed(), **parts, **settings, out=tmp_path / "whole")
    original = module.Training.step

    def stopping(self, *arguments):
        if self.place.step == 7:
            raise InterruptedError
        original(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(module.Training, "step", stopping)
        fit(
            relaxed(),
            **parts,
            **settings | {"logging": {"progress": False, "save_minutes": 0}},
            out=tmp_path / "parts",
        )
    state = module.StateFiles(tmp_path / "parts").load()["hooks"]["equivariance_selection"]
    assert state["epoch"] == 2 and set(state["precision"]) == set(free_groups(relaxed()))
    resumed = fit(relaxed(seed=5), **parts, **settings, out=tmp_path / "parts")
    assert all(
        torch.equal(value, whole.model.state_dict()[name])
        for name, value in resumed.model.state_dict().items()
    )
    assert resumed.reports["equivariance_selection"] == whole.reports["equivariance_selection"] or str(
        resumed.reports["equivariance_selection"]
    ) == str(whole.reports["equivariance_selection"])  # a gain may be NaN
    assert json.loads((tmp_path / "parts" / "equivariance_selection.json").read_text()) == json.loads(
        whole.reports["equivariance_selection"].to_json()
    )
    assert (tmp_path / "whole" / "equivariance_selection.json").exists()


def test_states_and_reports_of_earlier_versions_have_the_same_keys():
    """A training that was saved by an earlier version continues, and programs read its reports."""
    model = relaxed()
    one, other = free_groups(model)
    saved = {
        "strength": {one: 0.5, other: math.inf},
        "precision": {one: 2.0, other: math.inf},
        "gain": {one: 7.0, other: 0.1},
        "noise": {"forces": 0.04},
        "epoch": 4,
        "updates": 2,
    }
    learned = selection(model, objective({"forces": 1.0}, model.quantities), pairs(3, 1))
    assert list(learned.state()) == list(saved)
    learned.restore(saved)
    assert learned.state() == saved
    report = LayerwiseEquivariance("evidence", (FreePath("a", "1o", 5, math.inf, math.nan, 0.2),), 0.1, {})
    plain = json.loads(report.to_json())
    assert list(plain) == [
        *("method", "verdict", "share", "noise", "updates", "epoch", "caveat", "would_close", "paths")
    ]
    assert plain["paths"] == [
        {"layer": "a", "irrep": "1o", "weights": 5, "precision": None, "share": None, "gain": 0.2}
        | {"verdict": "not known"}
    ]


@pytest.mark.parametrize(
    "first, then",
    [
        (dict(terms=[EquivarianceSelection("evidence", every=1)]), {}),
        ({}, dict(terms=[EquivarianceSelection("evidence", every=1)])),
    ],
)
def test_a_training_does_not_continue_with_another_selection(first, then, tmp_path):
    settings = dict(batch_size=10, logging={"progress": False}, out=tmp_path)
    fit(relaxed(), pairs(10, 1), pairs(5, 2), epochs=2, **settings, **first)
    with pytest.raises(
        CheckpointError,
        match="resume='restart'",
    ):
        fit(relaxed(), pairs(10, 1), pairs(5, 2), epochs=3, **settings, **then, resume="force")


def test_the_search_for_the_best_begins_anew_when_a_path_is_pruned(monkeypatch):
    """A model with other constraints is no candidate, however small its loss."""
    pruned = []

    def by_hand(self, training):
        self.strength = dict.fromkeys(self.groups, math.inf)
        self.precision = dict(self.strength)
        pruned.append(training.epoch)
        if len(pruned) == 1:
            training.place.best_loss = -1.0  # of a model before, which nothing could ever beat

    monkeypatch.setattr(Selection, "_by_evidence", by_hand)
    result = fit(relaxed(), pairs(10, 1), pairs(5, 2), **QUICK)
    assert pruned and result.best_epoch >= pruned[0] and result.best_loss > 0
    assert (
        result.reports["equivariance_selection"].share == 0
        and len(result.reports["equivariance_selection"].pruned) == 2
    )


def test_hypergradients_follow_the_validation_loss():
    """λ grows where shrinking the free weights would lower the validation loss, and falls where it would raise it."""

    changes = {}
    for name, target in (("too large", 0.0), ("too small", 3.0)):
        model = relaxed(seed=1).eval()
        data = pairs(6, 1).connected(4.0)
        free = [p for group in free_groups(model).values() for p in group]
        with torch.no_grad():
            now = [model(g)["forces"] for g in data]
            for p in free:
                p.zero_()
            strict = [model(g)["forces"] for g in data]
        model = relaxed(seed=1).eval()
        labelled = [
            g.replace(targets={"forces": (s + target * (n - s)).double()})
            for g, s, n in zip(data, strict, now)
        ]
        loss = objective({"forces": 1.0}, model.quantities)
        learned = selection(model, loss, Dataset(labelled), "hypergradient")
        training = FakeRun(Loader(Dataset(labelled), ["forces"]).graphs)
        learned.strength = dict.fromkeys(learned.groups, 1.0)
        learned._by_hypergradient(training)
        changes[name] = learned.strength["backbone.layers.0/1o"]
    assert changes["too large"] > 1.02 and changes["too small"] < 0.98


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model=EGNN), r"EGNN has no free paths.*take a relaxed backbone, such as RelaxedEGNN"),
        (
            dict(theta=0.0),
            r"free path of backbone.layers.0 is closed \(c = 0.1, theta = 0\).*set_theta\(model, 1.0\)",
        ),
        (dict(gates=(1, 1, 0)), r"free path of backbone.layers.0 is closed \(c = 0, theta = 1\)"),
        (
            dict(terms=[EquivarianceSelection("evidence", every=5)]),
            r"every is 5 and epochs 5: precisions are updated only in the first 80% of the training, so there would be no update",
        ),
        (
            dict(terms=[*QUICK["terms"], ConstraintAnnealing(0.01)]),
            "EquivarianceSelection and ConstraintAnnealing: annealing ends strictly equivariant.*take one of the two",
        ),
        (
            dict(terms=[*QUICK["terms"], EquivarianceRegularizer({"rotation": 0.1}, form="weights")]),
            r"EquivarianceSelection and EquivarianceRegularizer\(form='weights'\): both penalise.*take one of the two",
        ),
        (dict(loss="mae"), "method='evidence' and loss.forces with kind='mae': .*method='hypergradient'"),
    ],
)
def test_what_leaves_nothing_to_be_selected(change, message):
    options = dict(change)
    gates, theta, kind = (
        options.pop("gates", (1.0, 1.0, 0.1)),
        options.pop("theta", None),
        options.pop("model", RelaxedEGNN),
    )
    model = relaxed(gates=gates) if kind is RelaxedEGNN else relaxed(kind=EGNN)
    if theta is not None:
        set_theta(model, theta)
    with pytest.raises(ConfigError, match=message):
        fit(model, pairs(4, 1), pairs(2, 2), **QUICK | options)


def test_options_of_the_selection():
    with pytest.raises(ConfigError, match=r"method: found 'marginal'.*'evidence' or 'hypergradient'"):
        EquivarianceSelection("marginal")
    with pytest.raises(ConfigError, match="every: found 0"):
        EquivarianceSelection("evidence", every=0)


def test_classes_have_no_evidence():
    from molequi import Quantity

    model = relaxed(predict=[Quantity(name="shape", classes=("chair", "lamp"))])
    data = Dataset(
        [g.replace(targets={"shape": torch.zeros(1).double()}) for g in pairs(4, 1)],
        quantities={"shape": Quantity(name="shape", classes=("chair", "lamp"))},
    )
    with pytest.raises(ConfigError, match=r"method='evidence' and classes \(shape\).*method='hypergradient'"):
        fit(model, data, data, **QUICK)


def test_data_without_labels_and_models_without_free_paths():
    bare = Dataset([g.replace(targets={}) for g in pairs(3, 1)])
    with pytest.raises(
        ConfigError,
        match=r"the model predicts forces and the data have labels of nothing; name labels with keys=",
    ):
        measure(relaxed(), bare)
    with pytest.raises(ConfigError, match=r"layerwise_equivariance: EGNN has no free paths"):
        measure(relaxed(kind=EGNN), pairs(3, 1))


def test_a_training_that_ended_before_the_first_update():
    with pytest.warns(
        TrainingWarning,
        match=r"EquivarianceSelection\('evidence'\): the training ended before the first update, after 2 epochs.*Lower every",
    ):
        result = fit(relaxed(), pairs(4, 1), pairs(2, 2), **QUICK | {"epochs": None, "max_minutes": 1e-6})
    assert "(evidence, 0 updates)" in str(
        result.reports["equivariance_selection"]
    ) and "caution: the precisions were never updated" in str(result.reports["equivariance_selection"])
    assert (
        math.isnan(result.reports["equivariance_selection"].paths[0].precision)
        and json.loads(result.reports["equivariance_selection"].to_json())["paths"][0]["precision"] is None
    )


def test_selection_in_a_configuration(tmp_path):
    from molequi.config.schema import read_config

    sections = {
        "data": {"extxyz": {"path": str(Path(tmp_path) / "a.xyz"), "split": {"train": 8, "valid": 2}}},
        "backbone": {"RelaxedEGNN": {"channels": 8, "layers": 1}},
        "predict": ["energy"],
        "train": {"epochs": 50, "terms": [{"EquivarianceSelection": {"method": "evidence", "every": 10}}]},
    }
    read_config(sections)
    with pytest.raises(ConfigError, match=r"train.terms.*EGNN has no free paths"):
        read_config(sections | {"backbone": {"EGNN": {"channels": 8, "layers": 1}}})
    with pytest.raises(ConfigError, match=r"train.terms.*found 'marginal'"):
        read_config(sections | {"train": {"epochs": 50, "terms": [{"EquivarianceSelection": "marginal"}]}})


def test_a_report_by_hand():
    report = LayerwiseEquivariance(
        "evidence",
        (FreePath("layers.0", "1o", 5, math.inf, 0.0, 0.2), FreePath("layers.1", "0e", 7, 2.0, 3e-3, 9.0)),
        3e-3,
        {},
    )
    assert (
        report.pruned == ("layers.0/1o",)
        and report.verdict == "weakly broken"
        and str(report).count("\n") == 3
    )


# The scale of shares.


def clouds(count, seed, offset=0.0, level=0.5):
    """Energies of H and O with a dipole along z, which breaks rotations; `offset` adds the energy of the free atoms."""
    random, graphs = torch.Generator().manual_seed(seed), []
    for k in range(count):
        n = 4 + k % 4
        z = [1] * (n // 2) + [8] * (n - n // 2) if k % 2 else [1] * (n - 1) + [8]
        pos = 1.5 * torch.randn(n, 3, generator=random, dtype=torch.float64)
        charge = torch.tensor([1.0 if a == 8 else -1.0 for a in z]).double()
        energy = offset * sum({1: -13.6, 8: -2040.0}[a] for a in z) - level * float(
            ((pos - pos.mean(0))[:, 2] * charge).sum()
        )
        graphs.append(Graph.single(pos, z, targets={"energy": torch.tensor([energy], dtype=torch.float64)}))
    return Dataset(graphs)


def energies(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model(
            RelaxedEGNN(elements=[1, 8], channels=8, layers=1, radial=6, cutoff=6.0, gates=(1.0, 1.0, 1.0)),
            ["energy"],
        )


ENERGIES = dict(
    epochs=10,
    batch_size=8,
    lr=1e-2,
    compute={"precision": "float64"},
    terms=[EquivarianceSelection("hypergradient", every=1)],
    logging={"progress": False},
)


def test_a_share_does_not_depend_on_the_energies_of_free_atoms(monkeypatch):
    """The same function of positions, with the energies of the atoms in the labels and without: same shares, same paths closed."""
    monkeypatch.setattr(symmetry, "measure_symmetry", lambda *_: None)
    bare, whole = (
        fit(energies(), clouds(40, 1, offset), clouds(10, 2, offset), **ENERGIES).reports[
            "equivariance_selection"
        ]
        for offset in (0.0, 1.0)
    )
    assert bare.verdict == whole.verdict == "broken" and bare.pruned == whole.pruned
    assert [p.share for p in whole.paths] == pytest.approx([p.share for p in bare.paths], rel=1e-2)
    assert [p.precision for p in whole.paths] == pytest.approx([p.precision for p in bare.paths], rel=1e-2)


def test_a_share_does_not_depend_on_the_origin():
    end = Quantity(name="end", per="node", rank=1, point=True, unit="Å")
    loss, found = objective({"end": 1.0}, {"end": end}), []
    model = relaxed(predict=[end], gates=(1.0, 1.0, 0.5)).double().eval()
    for origin in (0.0, 50.0):
        moved = [
            g.replace(pos=g.pos + origin, targets={"end": g.pos + origin + 0.1 * g.targets["forces"]})
            for g in pairs(8, 1)
        ]
        data = Dataset(moved, quantities={"end": end}).connected(4.0)
        found.append(output_shares(model, Loader(data, []).graphs, loss, data)[1])
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0] > 1e-4


def test_a_share_of_classes_does_not_depend_on_what_all_scores_have_in_common():
    shape = Quantity(name="shape", classes=("chair", "lamp"))
    model, data = relaxed(predict=[shape], gates=(1.0, 1.0, 0.5)).double().eval(), pairs(6, 1).connected(4.0)
    graphs, loss = Loader(data, []).graphs, objective({"shape": 1.0}, model.quantities)
    whole, score = (
        output_shares(model, graphs, loss, data)[1],
        torch.cat([model(g)["shape"].log_softmax(-1) for g in graphs]),
    )
    with torch.no_grad():
        for group in free_groups(model).values():
            for p in group:
                p.zero_()
    without = torch.cat([model(g)["shape"].log_softmax(-1) for g in graphs])
    wanted = float((score - without).square().mean() / (score - score.mean(0)).square().mean())
    assert whole == pytest.approx(wanted, rel=1e-9) and whole > 1e-8


def test_one_validation_structure_is_enough(monkeypatch):
    """Its only energy has no spread, and that for the training data is taken: broken stays broken, and nothing is pruned for it."""
    monkeypatch.setattr(symmetry, "measure_symmetry", lambda *_: None)
    found = fit(energies(), clouds(40, 1), clouds(1, 2), **ENERGIES).reports["equivariance_selection"]
    assert found.verdict == "broken" and found.share > 0.01 and "backbone.layers.0/0e" not in found.pruned
    assert measure(energies(), clouds(20, 1), clouds(20, 2)[:1]).share > 1e-3


def test_what_has_no_size_is_not_known_and_never_pruned():
    model = energies().double().eval()
    same = Dataset([clouds(1, 1)[0]] * 12).connected(6.0)
    report = measure(model, same)
    assert (
        report.verdict == "not known"
        and math.isnan(report.share)
        and "not known: the outputs are the same for all" in str(report)
    )
    plain = json.loads(report.to_json())
    assert (
        plain["share"] is None
        and plain["verdict"] == "not known"
        and {p["share"] for p in plain["paths"]} <= {None, 0.0}
    )
    learned = selection(model, objective({"energy": 1.0}, model.quantities), same, "hypergradient")
    learned.strength = dict.fromkeys(learned.groups, 1.0)

    learned._by_hypergradient(FakeRun(Loader(same, ["energy"]).graphs))
    assert [name for name, s in learned.strength.items() if math.isfinite(s)] == [
        name for name, path in zip(learned.groups, report.paths) if path.share
    ]
    assert math.isfinite(learned.strength["backbone.layers.0/0e"])
    with torch.no_grad():
        for group in free_groups(model).values():
            for p in group:
                p.zero_()
    assert measure(model, same).verdict == "symmetric"  # whatever the size, closing them changes nothing


# The labels of the evidence.


def two_kinds(count, seed, atoms=24, known=None):
    """Many forces and one energy a structure; `known` energies."""
    random, graphs = torch.Generator().manual_seed(seed), []
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3)[:atoms].double()
    for k in range(count):
        energy = torch.randn(1, generator=random, dtype=torch.float64) * atoms * 0.1
        if known is not None and k >= known:
            energy = torch.full((1,), float("nan")).double()
        graphs.append(
            Graph.single(
                1.5 * grid,
                [1] * atoms,
                targets={"energy": energy, "forces": torch.randn(atoms, 3, generator=random).double()},
            )
        )
    return Dataset(graphs)


def heads(order=("energy", "forces")):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(
            RelaxedEGNN(elements=[1], channels=4, layers=1, radial=4, cutoff=2.0),
            [Vector("forces") if n == "forces" else n for n in order],
        )


@pytest.mark.parametrize("order", [("energy", "forces"), ("forces", "energy")])
def test_labels_of_each_quantity_are_drawn(order):
    """Among 24 · 3 + 1 labels of a structure the energy is one: its noise is found all the same."""
    for seed in range(2):
        noise = measure(heads(order), two_kinds(40, 1), labels=64, seed=seed).noise
        assert (
            set(noise) == {"energy", "forces"}
            and 0.5 < noise["energy"] / 0.1 < 1.5
            and 0.5 < noise["forces"] < 1.5
        )


@pytest.mark.parametrize(
    "known, labels, wanted",
    [
        ([10], 512, [10]),
        ([1000], 512, [512]),
        ([1000, 30], 512, [482, 30]),
        ([10_000, 500], 512, [459, 52]),
        ([10_000, 3], 512, [512, 0]),
        ([5, 3], 512, [5, 0]),
        ([5000, 5000], 32, [16, 16]),
        ([0, 40], 32, [0, 32]),
        ([2, 2], 512, [2, 2]),
    ],
)
def test_how_many_labels_of_each_quantity(known, labels, wanted):
    found = laplace._quotas(known, labels)
    assert found == wanted and sum(found) <= labels


def test_a_quantity_with_too_few_labels_is_left_out_with_a_warning(monkeypatch):
    with pytest.warns(TrainingWarning, match="fewer than 8 labels of energy, too few to estimate the noise"):
        assert set(measure(heads(), two_kinds(12, 1, known=1)).noise) == {"forces"}
    monkeypatch.setattr(symmetry, "measure_symmetry", lambda *_: None)
    with pytest.warns(TrainingWarning, match="evidence is that of forces alone"):
        result = fit(
            heads(),
            two_kinds(12, 1, known=1),
            two_kinds(3, 2),
            epochs=3,
            terms=[EquivarianceSelection("evidence", every=1)],
            logging={"progress": False},
        )
    assert set(result.reports["equivariance_selection"].noise) == {"forces"}


def test_the_verdict_is_of_the_weights_and_the_evidence_may_say_otherwise():
    """Open paths that the evidence of symmetric data would close: both are said."""
    report = measure(relaxed(gates=(1.0, 1.0, 1.0)), pairs(24, 1), labels=200)
    assert report.verdict == "broken" and report.would_close == report.pruned == ("backbone.layers.0/1o",)
    assert "broken: the free paths contribute" in str(
        report
    ) and "; the evidence would prune backbone.layers.0/1o" in str(report)
    both = replace(report, paths=tuple(replace(p, precision=math.inf) for p in report.paths))
    assert "; the evidence would prune all free paths" in str(both)
    assert json.loads(report.to_json())["would_close"] == list(report.would_close)
    closed = LayerwiseEquivariance("evidence", (FreePath("layers.0", "1o", 5, math.inf, 0.0, 0.2),), 0.0, {})
    assert closed.would_close == () and "would prune" not in str(closed)


def test_compiled_models_can_be_measured(monkeypatch):
    """The plain model is asked, as compiled ones can be differentiated once only."""

    class Program:
        def __call__(self, *_):
            raise RuntimeError("donated buffers")

        def __deepcopy__(self, memo):
            return self

    model, data = relaxed(), pairs(8, 1).connected(4.0)
    report = measure(model, data, labels=64)
    program = Program()
    model.use_program(program)
    assert measure(model, data, labels=64) == report and model.program is program
    assert (
        measure(Ensemble([model, model]), data, labels=64).verdict == report.verdict
        and model.program is program
    )
    learned = selection(model, objective({"forces": 1.0}, model.quantities), data, "hypergradient")
    learned._by_hypergradient(FakeRun(Loader(data, ["forces"]).graphs))
    assert set(learned.strength) == set(learned.groups) and model.program is program


# Messages.


def test_frozen_free_weights_are_refused():
    model = relaxed()
    for p in free_groups(model)["backbone.layers.0/1o"]:
        p.requires_grad_(False)
    for method in ("evidence", "hypergradient"):
        with pytest.raises(ConfigError, match="free weights of backbone.layers.0/1o are frozen"):
            fit(model, pairs(4, 1), pairs(2, 2), **QUICK | {"terms": [EquivarianceSelection(method)]})
    assert measure(model, pairs(8, 1)).verdict in ("broken", "weakly broken")  # nothing is trained there


def test_a_validation_loss_of_zero():
    model = relaxed().eval()
    with torch.no_grad():
        data = Dataset(
            [g.replace(targets={"forces": model(g)["forces"].double()}) for g in pairs(4, 1).connected(4.0)]
        )

    training = FakeRun(Loader(data.connected(4.0), ["forces"]).graphs)
    learned = selection(model, objective({"forces": 1.0}, model.quantities), data, "hypergradient")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(Objective, "total", lambda self, sums, known: 0.0 * sums.sum())
        learned._by_hypergradient(training)
    assert all(math.isfinite(s) and s > 0 for s in learned.strength.values())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(labels="many"), r"layerwise_equivariance.labels: found 'many' \(str\); wanted"),
        (
            dict(labels=0),
            r"layerwise_equivariance.labels: found 0 \(int\); wanted greater than or equal to 32",
        ),
        (dict(seed=-1), r"layerwise_equivariance.seed: found -1 \(int\); wanted greater than or equal to 0"),
        (
            dict(lables=40),
            r"layerwise_equivariance.lables: no such option, of layerwise_equivariance or of a reader; did you mean 'labels'\?",
        ),
    ],
)
def test_options_of_layerwise_equivariance(options, message):
    with pytest.raises(ConfigError, match=message):
        measure(relaxed(), pairs(4, 1), **options)


def test_a_report_has_the_number_of_updates_and_a_caveat_if_they_are_few(trained, monkeypatch):
    monkeypatch.setattr(symmetry, "measure_symmetry", lambda *_: None)
    short = trained[0.3].reports["equivariance_selection"]
    assert (
        (short.updates, short.epoch) == (3, 24)
        and "few" not in short.caveat
        and "in the 8 epochs before the last update" in short.caveat
    )
    single = fit(
        relaxed(),
        pairs(24, 1),
        pairs(12, 2),
        **QUICK | {"terms": [EquivarianceSelection("evidence", every=4)]},
    ).reports["equivariance_selection"]
    assert (single.updates, single.epoch) == (1, 4) and "evidence, 1 update, the last after 4 epochs" in str(
        single
    )
    assert "caution: 1 update of this method is few (wanted 2 or more); the training loss ended at" in str(
        single
    )
    assert str(single).endswith(
        "far from the fit for which the precisions were found. Train longer, or lower every"
    )
    assert (
        json.loads(single.to_json())["caveat"] == single.caveat
        and json.loads(single.to_json())["updates"] == 1
    )
    data = pairs(4, 1).connected(4.0)
    learned = selection(relaxed(), objective({"forces": 1.0}, relaxed().quantities), data)
    learned.strength, learned.updates, learned.epoch = dict.fromkeys(learned.groups, 1.0), 5, 2
    history = [{"train_loss": loss} for loss in (9.0, 4.0, 3.0)]
    assert learned.report(FakeRun(Loader(data, []).graphs, history)).caveat == ""
    history[0]["train_loss"] = 13.0
    assert (
        "the training loss fell from 13 to 4 in the 1 epoch before the last update"
        in learned.report(FakeRun(Loader(data, []).graphs, history)).caveat
    )
    history[-1]["train_loss"] = 1.0
    assert (
        "the training loss fell from 4 to 1 after the last update"
        in learned.report(FakeRun(Loader(data, []).graphs, history)).caveat
    )
    history, learned.noise = [{"train_loss": 4.0}] * 3, {"forces": 1.1}
    assert learned.report(FakeRun(Loader(data, []).graphs, history)).caveat == ""
    learned.noise = {"forces": 0.9}
    assert (
        "the training loss ended at 4, of which noise alone is 0.9"
        in learned.report(FakeRun(Loader(data, []).graphs, history)).caveat
    )
