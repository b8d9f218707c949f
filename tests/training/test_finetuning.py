"""Fine-tuning: what is trained, reference energies, new elements, replay, and the report of what changed."""

import importlib
import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError, DataWarning, TrainingError
from molequi.finetuning.conservation import conservation
from molequi.finetuning.elements import add_elements, group_of, nearest
from molequi.finetuning.energies import ElementEnergy, ReferenceEnergies, energy_shifts, with_labels
from molequi.finetuning.low_rank import LowRank, Rows
from molequi.finetuning.methods import Method, depths_of, matrices
from molequi.finetuning.options import Finetuning, Replay
from molequi.finetuning.pairs import PairCurve, curve_of, pair_curves
from molequi.finetuning.replay import ReplayLoss, labelled_by, read_old
from molequi.finetuning.report import FineTuningReport
from molequi.finetuning.session import FineTuning
from molequi.hooks import Hook
from molequi.inference.known_energies import reference_energies_of, single_atom_energies
from molequi.losses import Loss, Objective
from molequi.quantities import SYMBOLS
from molequi.training import trainer as module

from ..morse_kit import morse, tiny

SHIFT = {1: 0.7, 8: -2.0}  # eV, of another level of theory
QUICK = dict(epochs=2, batch_size=4, lr=3e-3, logging={"progress": False})
BACKBONES = {
    "PaiNN": dict(channels=12, layers=2),
    "EGNN": dict(channels=12, layers=2),
    "NequIP": dict(channels=12, layers=2, l_max=1, l_out=0, radial_hidden=[12]),
    "MACE": dict(channels=12, layers=2, l_max=2, l_hidden=1, l_out=0, correlation=2, radial_hidden=[12]),
    "GauntACE": dict(channels=12, layers=2, l_max=2, l_hidden=1, l_out=0, correlation=2),
}


def build(name="PaiNN", elements=(1, 8), predict=("energy", "forces")):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = getattr(mq, name)(elements=list(elements), cutoff=4.0, **BACKBONES[name])
        return mq.Model(backbone, predict)


def shifted(data, shifts):
    labels = [
        {**g.targets, "energy": g.targets["energy"] + sum(shifts[z] for z in g.z.tolist())} for g in data
    ]
    return with_labels(data, labels, data.quantities)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Trainings without a symmetry report, which takes longer than they do, but where it is what is tested."""
    if "equivariant" not in request.node.name:
        monkeypatch.setattr("molequi.training.symmetry.measure_symmetry", lambda *_: None)


@pytest.fixture(scope="module")
def old():
    return morse(24)


@pytest.fixture(scope="module")
def new():
    """Other structures, with energies of another level of theory."""
    return shifted(morse(16, seed=1), SHIFT)


@pytest.fixture(scope="module")
def start(old, tmp_path_factory):
    """The file of a trained model."""
    folder = tmp_path_factory.mktemp("start")
    mq.fit(build(), old[:20], old[20:], **QUICK | {"epochs": 8}, out=folder)
    return folder / "model.safetensors"


def tune(start, new, finetune="all", **options):
    wanted = {"method": finetune} if isinstance(finetune, str) else finetune
    return mq.fit(mq.load(start), new[:12], new[12:], **QUICK | options, finetune={"nve": 0} | wanted)


# What is trained.


@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 5, 7)])
def test_low_rank_gradients_are_those_of_the_product(shape):
    """The chain rule by hand against autograd through W + B A, with two backward passes that add up."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    change = LowRank(weight, 2, generator)
    change.parts["b"].data.normal_(generator=generator)
    change.merge()
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    for factor in (first, second):
        (weight.sin() * factor).sum().backward()
    a, b = (change.parts[n].detach().requires_grad_() for n in "ab")
    ((change.start + b @ a).sin() * (first + second)).sum().backward()
    torch.testing.assert_close(change.parts["a"].grad, a.grad)
    torch.testing.assert_close(change.parts["b"].grad, b.grad)
    assert weight.grad is None and not torch.equal(weight, change.start)
    change.close()
    weight.sum().backward()
    assert weight.grad is not None  # an ordinary parameter again


def test_rows_change_nothing_else():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    change = Rows(weight, [1])
    (weight * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert change.parts["rows"].grad.tolist() == [[2.0, 2.0]]
    change.parts["rows"].data.fill_(5.0)
    change.merge()
    assert weight.tolist() == [[1, 1], [6, 6], [1, 1]]


@pytest.mark.parametrize("name", BACKBONES)
def test_lora_is_equivariant_small_and_merged(name, old, new, tmp_path):
    """The audit passes before and after, changes have the rank, the rest stays, and the file is ordinary."""
    model = build(name)
    model.standardize(old.statistics(4.0))
    before = state(model)
    wanted = {"method": "lora", "rank": 2, "reference_energies": "keep"}
    result = mq.fit(
        model,
        new[:12],
        new[12:],
        **QUICK | {"lr": 0.02, "epochs": 1},
        optimizer={"ema": 0},
        finetune=wanted | {"nve": 0},
        out=tmp_path,
    )
    assert result.symmetry_report.passed
    after, large = state(model), set(matrices(model))
    for key, value in after.items():
        if key not in large:
            assert torch.equal(value, before[key]), key
    found = [
        (key, int(torch.linalg.matrix_rank(after[key] - before[key], rtol=1e-4).max()))
        for key in large
        if 2 * sum(after[key].shape[-2:]) < after[key].shape[-2:].numel()
    ]
    assert len(found) > 5 and all(rank <= 2 for _, rank in found), found
    assert sum(rank == 2 for _, rank in found) > len(found) / 2
    again = mq.load(tmp_path)
    assert again.hparams == build(name).hparams
    assert all(torch.equal(value, after[key]) for key, value in again.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    report = result.reports["finetuning"]
    assert "changes of rank 2" in report.method
    trained = int(report.method.split(": ")[1].split()[0].replace(",", ""))
    assert 0 < trained < 0.7 * sum(p.numel() for p in model.parameters())


def test_lora_is_compiled_as_any_other(new, monkeypatch, tmp_path):
    """A compiled training has the weights of a plain one; what was traced runs as it is."""
    program = importlib.import_module("molequi.accelerate")
    monkeypatch.setattr(program, "BACKEND", lambda traced, inputs: traced)
    monkeypatch.setenv("MOLEQUI_CACHE", str(tmp_path))
    found = []
    for accelerate in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            backbone = mq.EGNN(elements=["H", "O"], cutoff=3.0, channels=8, layers=1)
            model = mq.Model(backbone, ["energy", "forces"])
        before = state(model)
        compute = {"precision": "float64", "accelerate": accelerate}
        options = QUICK | {"epochs": 1, "batch_size": 2, "compute": compute}
        options["finetune"] = {"method": "lora", "rank": 2, "nve": 0}
        mq.fit(model, new[:4], new[12:14], **options)
        assert (model.program is not None) == accelerate
        found.append(state(model))
    assert any(not torch.equal(found[0][key], before[key].double()) for key in matrices(model))
    for key in before:
        torch.testing.assert_close(found[0][key], found[1][key], rtol=1e-9, atol=1e-9)


def test_layers_have_their_own_rates():
    model = build()
    method = Method(model, Finetuning(layer_decay=0.5), add_elements(model, [1]), 0)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: rate for p, rate in method.rates}
    assert len(rates) == len(names)
    assert rates["heads.energy.net.2.weight"] == 1
    assert rates["backbone.updates.1.mix.weight"] == rates["backbone.messages.1.filters.0.weight"] == 0.5
    assert rates["backbone.updates.0.mix.weight"] == 0.25
    assert rates["backbone.embedding.element.weight"] == 0.125
    assert depths_of(build("MACE"))["backbone.layers.1.keep.weight"] == 2
    parameters, factors = zip(*method.rates)
    optimizer = mq.Optimizer(ema=0).make(parameters, 1e-2, factors)
    assert [group["rate"] for group in optimizer.param_groups] == [1, 0.5, 0.25, 0.125]
    method.close()


def test_rates_are_those_of_the_steps(start, new):
    """The first step of Adam is the learning rate times the sign of the gradient."""
    before = mq.load(start).state_dict()
    options = dict(epochs=1, batch_size=12, optimizer={"ema": 0, "clip": None}, schedule="constant", lr=1e-3)
    after = tune(start, new, finetune={"layer_decay": 0.1}, **options).model.state_dict()
    sizes = {key: float((after[key] - before[key]).abs().max()) for key in before}
    assert sizes["heads.energy.net.0.weight"] == pytest.approx(1e-3, rel=1e-3)
    assert sizes["backbone.updates.1.mix.weight"] == pytest.approx(1e-4, rel=1e-3)
    assert sizes["backbone.updates.0.mix.weight"] == pytest.approx(1e-5, rel=2e-2)


@pytest.mark.parametrize(
    "options,stays",
    [
        ("heads", lambda name: name.startswith("backbone.")),
        (
            {"method": "frozen", "frozen": ["embedding", "updates.0"]},
            lambda n: "embedding" in n or "updates.0" in n,
        ),
        ({"method": "frozen", "frozen": ["messages"]}, lambda n: "messages" in n),
    ],
)
def test_frozen_blocks_stay(start, new, options, stays):
    before = mq.load(start)
    result = tune(start, new, finetune=options)
    after = result.model.state_dict()
    moved = {name for name, p in before.named_parameters() if not torch.equal(p, after[name])}
    assert moved and not any(stays(name) for name in moved)
    assert {n for n, _ in before.named_parameters() if not stays(n)} == moved


@pytest.mark.parametrize(
    "options,message",
    [
        (
            {"method": "frozen", "frozen": ["update.0"]},
            "'update.0' matches no parameter.*did you mean 'updates.0'",
        ),
        ({"method": "frozen"}, "needs the names of what stays"),
        ({"method": "frozen", "frozen": ["backbone", "heads"]}, "leaves nothing to train"),
        ({"method": "lora", "frozen": ["embedding"]}, "is for method='frozen'"),
        ({"method": "all", "rank": 4}, "rank=4 is for method='lora'"),
        ({"method": "lora", "layer_decay": 0.5}, "layer_decay=0.5 has no effect with method='lora'"),
        ({"methods": "lora"}, "did you mean 'method'"),
        ({"layer_decay": 1.5}, "layer_decay"),
    ],
)
def test_wrong_methods(start, new, options, message):
    model = mq.load(start)
    with pytest.raises(ConfigError, match=message):
        mq.fit(model, new[:12], new[12:], **QUICK, finetune=options)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "more,message",
    [
        ({"seed": [0, 1]}, "one model is fine-tuned"),
        ({"normalization": {"standardize": True}}, "leave standardize out"),
    ],
)
def test_what_does_not_go_together(start, new, more, message):
    with pytest.raises(ConfigError, match=message):
        tune(start, new, **more)


def test_an_ensemble_is_no_start(start, new):
    one = mq.load(start)
    with pytest.raises(ConfigError, match="fine-tune each member"):
        mq.fit(mq.Ensemble([one, mq.load(start)]), new[:12], new[12:], **QUICK, finetune="all")


# Reference energies and elements.


def test_planted_shifts_are_found(start, new, monkeypatch):
    """Labels that differ from predictions by energies of elements alone. The last fit is left out."""
    monkeypatch.setattr(FineTuning, "before_report", lambda *_: None)
    model = mq.load(start)
    out = mq.predict(model, new, progress=False)
    labels = [
        {**g.targets, "energy": torch.tensor([float(o["energy"])]) + sum(SHIFT[z] for z in g.z.tolist())}
        for g, o in zip(new, out)
    ]
    planted = with_labels(new, labels, new.quantities)
    before = reference_energies_of(model)
    result = tune(start, planted)
    after = reference_energies_of(result.model)
    for z, value in SHIFT.items():
        assert after[z] - before[z] == pytest.approx(value, abs=1e-5)
    rows = {row.element: row for row in result.reports["finetuning"].energies.rows}
    assert rows["O"].after == pytest.approx(after[8]) and rows["O"].before == pytest.approx(before[8])
    assert not rows["O"].note
    refitted = {row.quantity: row for row in result.reports["finetuning"].errors}["energy_per_atom"]
    assert refitted.before > 0.1 and refitted.refitted < 1e-5
    same = tune(start, planted, finetune={"reference_energies": "keep"})
    assert np.array_equal(reference_energies_of(same.model), before)
    given = tune(start, planted, normalization={"reference_energies": {"H": -1.0, "O": -2.0}})
    assert reference_energies_of(given.model)[[1, 8]].tolist() == [-1.0, -2.0]


def test_what_compositions_do_not_determine():
    """With one composition only the sum is known: known elements share it, a new one takes all of it."""
    table = np.array([[4.0, 2.0], [2.0, 1.0]])
    shifts, left = energy_shifts(np.array([12.0, 6.0]), table, np.array([False, False]))
    assert shifts == pytest.approx([2.0, 2.0], abs=1e-3) and left < 1e-9
    shifts, _ = energy_shifts(np.array([12.0, 6.0]), table, np.array([False, True]))
    assert shifts == pytest.approx([0.0, 6.0], abs=1e-3)


def test_structures_count_by_their_error_per_atom():
    """Labels that no shift explains: 1 eV/atom in one atom, 3 eV/atom in four; the mean of both is 2."""
    shifts, left = energy_shifts(np.array([1.0, 12.0]), np.array([[1.0], [4.0]]), np.array([False]))
    assert shifts == pytest.approx([2.0], abs=1e-9) and left == pytest.approx(1.0)


def test_elements_without_data_keep_theirs(start, new):
    hydrogen = mq.Dataset([mq.Graph.single(g.pos, [1] * g.num_nodes, targets=dict(g.targets)) for g in new])
    before = reference_energies_of(mq.load(start))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        result = tune(start, hydrogen, epochs=1)
    after = reference_energies_of(result.model)
    assert after[8] == before[8] and after[1] != before[1]
    rows = {row.element: row for row in result.reports["finetuning"].energies.rows}
    assert rows["O"].note == "not in the new data: kept"


def test_groups_of_the_periodic_table():
    known = {
        1: "H Li Na K Rb Cs Fr",
        2: "Be Mg Ca Sr Ba Ra",
        3: "Sc Y Lu Lr",
        4: "Ti Zr Hf Rf",
        11: "Cu Ag Au Rg",
        14: "C Si Ge Sn Pb Fl",
        17: "F Cl Br I At Ts",
        18: "He Ne Ar Kr Xe Rn Og",
    }
    for group, symbols in known.items():
        assert {group_of(SYMBOLS.index(s)) for s in symbols.split()} == {group}, group
    assert [group_of(SYMBOLS.index(s)) for s in ("La", "Yb", "Ac", "No")] == [103, 1403, 103, 1403]
    assert group_of(SYMBOLS.index("Eu")) == group_of(SYMBOLS.index("Am")) > 18
    assert SYMBOLS[nearest(SYMBOLS.index("Br"), [1, 9, 17, 53])] == "Cl"


class ByElement(mq.Backbone):
    """A backbone that depends on the number of its elements in a way that is not known."""

    group = "O(n)"

    def __init__(self, *, elements, squared: bool = False):
        super().__init__(elements=elements, cutoff=3.0)
        count = len(elements)
        self.out, self.pairs = {"0e": 1}, torch.nn.Parameter(torch.zeros(count**2 if squared else 1))
        self.nets = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(1 if squared else count))

    def forward(self, graph):
        raise NotImplementedError


@pytest.mark.parametrize(
    "squared,message",
    [
        (False, r"backbone\.nets has the submodules 0, 1 for 2 elements and 0, 1, 2 for 3; train anew"),
        (True, r"backbone\.pairs has the shape \(4,\) for 2 elements and \(9,\) for 3; train anew"),
    ],
)
def test_new_elements_of_an_unknown_backbone_are_refused(squared, message):
    model = mq.Model(ByElement(elements=["H", "O"], squared=squared), ["energy"])
    with pytest.raises(ConfigError, match=message):
        add_elements(model, [1, 8, 16])
    assert model.elements == (1, 8)


@pytest.mark.parametrize("name", BACKBONES)
def test_new_elements_begin_like_those_of_their_group(name, old):
    """Old structures keep their predictions; S in the place of O has those of O; a metal is a mean."""
    model = build(name).double()
    model.standardize(old.statistics(4.0))
    model.heads["energy"].shift[[1, 8]] = torch.tensor([0.3, -0.2], dtype=torch.float64)
    graph = mq.connect(mq.collate([old[0], old[1]]), 4.0)
    model.eval()
    before = model(graph)
    model.use_program(lambda *_: pytest.fail("the program of the smaller model was used"))
    new = add_elements(model, [1, 16, 26])
    assert model.elements == (1, 8, 16, 26) and new.donors == {16: 8, 26: None}
    assert new.text() == "S like O, Fe like the mean of all"
    after, sulfur = model(graph), model(graph.replace(z=torch.where(graph.z == 8, 16, graph.z)))
    for key in before:
        torch.testing.assert_close(after[key], before[key], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sulfur[key], before[key], rtol=1e-12, atol=1e-12)
    iron = model(graph.replace(z=torch.where(graph.z == 8, 26, graph.z)))
    assert not torch.allclose(iron["forces"], before["forces"])
    assert mq.audit(model, old[:2], draws=2).passed
    assert not add_elements(model, [1, 8]).donors


def test_the_scale_of_a_new_element_is_that_of_its_donor():
    head = mq.heads.LinearScalar("energy", hidden=[4])
    model = mq.Model(mq.PaiNN(elements=[1, 8], channels=8, layers=1), [head])
    head.element_scale[[1, 8]] = torch.tensor([0.5, 3.0], dtype=torch.float64)
    add_elements(model, [16, 26])
    assert head.element_scale[[1, 8, 16, 26]].tolist() == [0.5, 3.0, 3.0, 1.75]


@pytest.mark.parametrize("method", ["all", "heads", "lora"])
def test_new_elements_are_learnt_by_every_method(start, new, tmp_path, method):
    """Their rows move, those of other elements only with method "all"; predictions know both trainings."""
    sulfur = mq.Dataset([g.replace(z=torch.where(g.z == 8, 16, g.z), targets=dict(g.targets)) for g in new])
    with pytest.raises(ConfigError, match="have S and the model knows only"):
        mq.fit(mq.load(start), sulfur[:12], sulfur[12:], **QUICK)
    result = tune(start, sulfur, finetune=method, out=tmp_path, lr=0.02)
    assert result.reports["finetuning"].elements == "S like O"
    before, after = mq.load(start), mq.load(tmp_path)
    assert after.elements == (1, 8, 16)
    rows = after.backbone.embedding.element.weight
    assert not torch.equal(rows[2], rows[1])
    old_rows = before.backbone.embedding.element.weight
    assert torch.equal(rows[:2], old_rows) == (method != "all")
    assert after.metadata["trained_on"]["elements"] == ["H", "O", "S"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mq.predict(after, [new[0], sulfur[0]], progress=False)
    chlorine = mq.load(tmp_path)
    add_elements(chlorine, [17])
    with pytest.warns(DataWarning, match="Cl occurs in no structure"):
        mq.predict(chlorine, new[0].replace(z=torch.full_like(new[0].z, 17), targets={}), progress=False)


# Replay.


class Seen(Hook):
    """Keeps the gradients of the first step."""

    found: list = []

    def after_gradients(self, run):
        if len(self.found) < 1:
            self.found.append({n: p.grad.clone() for n, p in run.model.named_parameters()})


def test_gradients_of_replay_add_up(start, old, new):
    """The gradient of a step is that on new data plus the weight times that on old ones."""
    Seen.found.clear()
    weight, size = 3.0, 12
    options = dict(epochs=1, batch_size=size, optimizer={"clip": None}, loss={"energy": 1, "forces": 10})
    wanted = {
        "reference_energies": "keep",
        "replay": {"data": old, "weight": weight, "batch_size": len(old) - 2, "valid": 2 / len(old)},
    }
    result = tune(start, new, compute={"precision": "float64"}, finetune=wanted, terms=[Seen()], **options)
    model = mq.load(start, dtype="float64")
    terms = (Loss("energy", 1), Loss("forces", 10))
    objective = Objective(terms, model.quantities)
    replayed = read_old(old, Replay(old, valid=2 / len(old)), model, terms, 0).train
    own = {}
    for name, data in {"new": new[:12], "old": replayed}.items():
        graph = data.connected(4.0).graphs.batch(range(len(data)))
        model.zero_grad()
        out = model.train()(graph)
        objective.total(objective.sums(out, graph), objective.known(graph)).backward()
        own[name] = {n: p.grad.clone() for n, p in model.named_parameters()}
    for name, found in Seen.found[0].items():
        torch.testing.assert_close(found, own["new"][name] + weight * own["old"][name], rtol=1e-8, atol=1e-10)
    a, b = (
        torch.cat([g.reshape(-1) for g in own[k].values()]).norm() * f
        for k, f in (("old", weight), ("new", 1))
    )
    assert result.history[0]["replay_gradient_share"] == pytest.approx(float(a / (a + b)), rel=1e-6)


def test_replay_is_logged_and_forgets_less(start, old, new, tmp_path):
    """New data of other physics: without replay the old error grows more; both are in the tables."""
    other = with_labels(
        new, [{"energy": -g.targets["energy"], "forces": -g.targets["forces"]} for g in new], new.quantities
    )
    options = dict(epochs=6, lr=1e-2)
    alone = tune(start, other, finetune={"old": old[:4]}, **options)
    both = tune(start, other, finetune={"old": old[:4], "replay": {"data": old[4:], "weight": 20}}, **options)
    errors = [
        {(row.data, row.quantity): row for row in r.reports["finetuning"].errors}["old", "forces"]
        for r in (alone, both)
    ]
    assert errors[0].before == errors[1].before
    assert errors[1].after < 0.7 * errors[0].after
    for row in both.history:
        assert (
            0 < row["replay_gradient_share"] < 1 and row["replay_loss"] > 0 and row["valid_replay_loss"] > 0
        )
    assert both.best_loss == pytest.approx(
        min(row["valid_loss"] + row["valid_replay_loss"] for row in both.history)
    )
    judged = tune(
        start, other, finetune={"replay": {"data": old[4:], "weight": 20, "judge": "new"}}, **options
    )
    assert judged.best_loss == pytest.approx(min(row["valid_loss"] for row in judged.history))
    assert "valid_replay_loss" not in judged.history[0]


def test_labels_of_the_model_itself(start, old, new):
    """Structures without labels: the error on them begins at zero, also with other reference energies."""
    bare = mq.Dataset([g.replace(targets={}) for g in old])
    replay = {"data": bare, "labels": "model"}
    result = tune(start, new, finetune={"replay": replay})
    rows = {(row.data, row.quantity): row for row in result.reports["finetuning"].errors}
    assert rows["old", "forces"].before == pytest.approx(0, abs=1e-6)
    assert rows["old", "energy_per_atom"].before == pytest.approx(0, abs=1e-5)
    assert 0 < rows["old", "energy_per_atom"].after < 0.1  # not the 1 eV of the new reference energies
    assert result.history[-1]["replay_gradient_share"] > 0
    assert "labels of the starting model" in result.reports["finetuning"].old
    result = tune(start, new, loss={"energy": 1}, finetune={"replay": replay})
    assert result.history[0]["replay_loss"] < 0.05  # they are shifted, too: not the square of that eV


def test_replay_passes_over_all_old_structures(start, old, new, monkeypatch):
    """Each pass has all of them once, in an order of its own."""
    seen, original = [], ReplayLoss._loss_of

    def noted(self, run, model, graphs, mine):
        seen.append(list(mine))
        return original(self, run, model, graphs, mine)

    monkeypatch.setattr(ReplayLoss, "_loss_of", noted)
    tune(start, new, finetune={"replay": {"data": old, "batch_size": 11, "valid": 2 / len(old)}})
    passes = [seen[k] + seen[k + 1] for k in (0, 2, 4)]  # 6 steps of 11 of 22 structures
    assert len(seen) == 6 and all(sorted(one) == list(range(22)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_the_validation_loss_of_replay(start, old):
    """It is that of the structures that are not trained, times the weight."""
    model, terms = mq.load(start).double(), (Loss("energy", 1), Loss("forces", 10))
    options = Replay(old, weight=3.0)
    read = read_old(old, options, model, terms, 0)
    assert len(read.held) == 2 and not {*read.held.origins} & {*read.train.origins}
    graph = read.held.graphs.batch([0, 1])
    loss = read.objective.total(read.objective.sums(model(graph), graph), read.objective.known(graph))
    run = SimpleNamespace(share=(0, 1), add_up=lambda value: value)
    assert ReplayLoss(read, options).validation_loss(run, model) == pytest.approx(3 * float(loss), rel=1e-6)


def test_labels_of_classes_are_their_numbers(old):
    kind = mq.Quantity("kind", classes=("a", "b", "c"))
    model, data = build(predict=[kind]), old.connected(4.0)
    found = labelled_by(model, data, ["kind"])
    scores = model.eval()(data.graphs.batch(range(len(data))))["kind"]
    assert found.values("kind").reshape(-1).tolist() == scores.argmax(-1).tolist()


def test_labels_of_old_data_follow_the_reference_energies(start, old, new):
    result = tune(start, new, finetune={"replay": old})
    rows = {(row.data, row.quantity): row for row in result.reports["finetuning"].errors}
    row = rows["old", "energy_per_atom"]
    assert row.after < 1.2 * row.before < 0.5  # without the shift it would be 1.5 eV


@pytest.mark.parametrize(
    "replay,message",
    [
        (dict(data=[]), "data is empty, so that nothing is replayed"),
        (dict(weight=0), "weight is 0, so that replay has no effect"),
        (dict(weight=-1.0), "replay.weight"),
        (dict(quantities=[]), "quantities is empty"),
        (dict(quantities=["stress"]), "'stress' is not predicted by the starting model"),
        (dict(quantities=["force"]), "did you mean 'forces'"),
        (dict(data="bare"), "no labels of 'energy'.*labels='model'"),
        (dict(data="energies"), r"no labels of 'forces'.*quantities=\['energy'\]"),
        (dict(data="one"), "1 structure; wanted at least 2"),
        (dict(data="other elements"), "they have S, which the starting model does not know"),
        (dict(wieght=1), "did you mean 'weight'"),
    ],
)
def test_replay_that_does_nothing_is_refused(start, old, new, replay, message):
    known = {
        "bare": mq.Dataset([g.replace(targets={}) for g in old]),
        "energies": mq.Dataset([g.replace(targets={"energy": g.targets["energy"]}) for g in old]),
        "one": old[:1],
        "other elements": mq.Dataset(
            [g.replace(z=torch.full_like(g.z, 16), targets=dict(g.targets)) for g in old]
        ),
    }
    given = {"data": old} | replay
    given["data"] = known[given["data"]] if isinstance(given["data"], str) else given["data"]
    with pytest.raises(ConfigError, match=message):
        tune(start, new, finetune={"replay": given})


def test_replay_of_what_has_no_weight_in_the_loss(start, old, new):
    with pytest.raises(ConfigError, match="'energy' is no term of the loss"):
        tune(
            start,
            new,
            loss={"forces": 1, "energy": 0},
            finetune={"replay": {"data": old, "quantities": ["energy"]}},
        )


def test_replay_of_a_head_that_is_not_trained(old, new, tmp_path):
    """Charges belong to one head and energies to another, which is frozen: its replay would have no gradient."""
    charge = mq.Quantity("q0", per="graph")
    model = build(predict=("energy", charge))
    both = [
        with_labels(
            d,
            [{"energy": g.targets["energy"], "q0": g.targets["energy"]} for g in d],
            {"energy": d.quantities["energy"], "q0": charge},
        )
        for d in (old, new)
    ]
    model.standardize(both[0].statistics(4.0))
    options = {"method": "frozen", "frozen": ["backbone", "heads.q0"]}
    with pytest.raises(ConfigError, match="'q0' on the replay data has no gradient"):
        mq.fit(model, both[1][:12], both[1][12:], **QUICK, finetune=options | {"replay": both[0]})
    assert all(p.requires_grad for p in model.parameters())
    mq.fit(
        model,
        both[1][:12],
        both[1][12:],
        **QUICK,
        finetune=options | {"replay": {"data": both[0], "quantities": ["energy"]}},
    )


def test_a_replay_that_stops_acting_is_an_error(start, old, new, monkeypatch):
    monkeypatch.setattr(ReplayLoss, "_loss_of", lambda self, run, *_: torch.zeros((), dtype=torch.float64))
    with pytest.raises(TrainingError, match="exactly zero in all 3 steps"):
        tune(start, new, finetune={"replay": old})


def test_a_replay_that_is_not_finite_is_an_error(start, old, new, monkeypatch):
    monkeypatch.setattr(ReplayLoss, "_loss_of", lambda self, run, *_: torch.tensor(math.nan))
    with pytest.raises(TrainingError, match="the loss on old structures is nan in step 0"):
        tune(start, new, finetune={"replay": old})


class Endless(Hook):
    def validation_loss(self, run, model):
        return math.inf


def test_a_validation_loss_of_a_hook_that_is_not_finite(start, new):
    with pytest.raises(TrainingError, match="valid_endless_loss is inf after epoch 1"):
        tune(start, new, terms=[Endless()])


def test_old_data_without_labels_measure_nothing(start, old, new):
    bare = mq.Dataset([g.replace(targets={}) for g in old])
    with pytest.raises(ConfigError, match=r"finetune\.old: no labels of energy, forces"):
        tune(start, new, finetune={"old": bare})


# Going on, and the report.


class Stop(Exception):
    pass


def test_stopped_and_continued(start, old, new, tmp_path, monkeypatch):
    """With changes of low rank, layers, replay and new elements: the same weights, bit for bit."""
    sulfur = mq.Dataset([g.replace(z=torch.where(g.z == 8, 16, g.z), targets=dict(g.targets)) for g in new])
    options = dict(epochs=3, finetune={"method": "lora", "rank": 2, "replay": {"data": old, "batch_size": 3}})
    whole = tune(start, sulfur, **options, out=tmp_path / "whole")
    original = module.Training.step

    def stopping(self, *arguments):
        if self.place.step == 4:
            raise Stop
        original(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(module.Training, "step", stopping)
        tune(
            start,
            sulfur,
            **options | {"logging": {"progress": False, "save_minutes": 0}},
            out=tmp_path / "parts",
        )
    again = tune(start, sulfur, **options, out=tmp_path / "parts")
    a, b = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in again.history] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in whole.history
    ]
    other = mq.load(start)
    with torch.no_grad():
        next(other.parameters()).add_(1e-4)
    with pytest.raises(ConfigError, match=r"terms\.finetuning\.start"):  # from another model
        mq.fit(other, sulfur[:12], sulfur[12:], **QUICK | options, out=tmp_path / "parts")
    with pytest.raises(ConfigError, match="rank"):
        other = {"method": "lora", "rank": 3, "replay": {"data": old, "batch_size": 3}}
        tune(start, sulfur, **options | {"finetune": other}, out=tmp_path / "parts")


def test_the_report(start, old, new, tmp_path):
    result = tune(start, new, test=morse(3, seed=2), finetune={"replay": old, "nve": 20}, out=tmp_path)
    report = result.reports["finetuning"]
    text = str(report)
    for word in (
        "E0 fitted",
        "new (test)",
        "old",
        "reference energies",
        "two atoms alone",
        "H-O",
        "20 steps of NVE",
    ):
        assert word in text
    assert text in str(result)
    written = json.loads((tmp_path / "finetuning.json").read_text())
    again = FineTuningReport.from_dict(written)
    assert str(again) == text
    assert mq.load(tmp_path).metadata["finetuning"] == written
    page = mq.report(result, {"train": new[:12], "valid": new[12:]}, out=tmp_path / "page.html").read_text()
    assert "Fine-tuning" in page and "reference energies, fitted to" in page and "E0 fitted" in page
    first = mq.report(start.parent, {"train": old[:20], "valid": old[20:]}, out=tmp_path / "first.html")
    assert "Fine-tuning" not in first.read_text()


def test_the_origin_of_the_start_stays_in_the_file(start, new, tmp_path):
    model = mq.load(start)
    model.metadata = {**model.metadata, "origin": {"licence": "MIT"}}
    mq.fit(model, new[:12], new[12:], **QUICK, finetune="heads", out=tmp_path)
    assert mq.load(tmp_path).metadata["origin"] == {"licence": "MIT"}


def test_two_atoms_that_attract_each_other_when_close():
    distances = np.arange(0.4, 4.0, 0.05)
    well = (1 - np.exp(-1.5 * (distances - 1.0))) ** 2 - 1
    hole = np.where(distances < 0.6, -5.0, well)
    shallow = np.where(distances < 0.58, -1.1, well)  # lowest below the length of any bond
    falling = np.where(distances < 0.48, -0.5, well)  # not as low as the well
    short = (1 - np.exp(-1.5 * (distances - 0.55))) ** 2 - 1  # repulsive, at the distance of no bond
    model = tiny()
    single = single_atom_energies(model)[[1, 8]].sum()
    first, *others = (
        curve_of(model, (1, 8), distances, single + energies)
        for energies in (well, hole, shallow, falling, short)
    )
    assert first.repulsive and first.distance == pytest.approx(1.0) and first.atoms == "H-O"
    assert first.lowest == pytest.approx(-1.0) and first.short == pytest.approx(math.expm1(0.75) ** 2 - 1)
    assert not any(curve.repulsive for curve in others)


class Own(mq.Head):
    """An energy without reference energies."""

    rank, kind = 0, "value"

    def make(self, channels):
        self.net = torch.nn.Linear(channels["0e"], 1)

    def forward(self, graph, features):
        return self.pool(self.net(features.scalars)[:, 0], graph, features)


def test_pairs_of_a_model_without_energies_of_single_atoms():
    assert pair_curves(build(), [1, 8])
    assert pair_curves(build(predict=("dipole",)), [1, 8]) == []
    assert pair_curves(build(predict=[Own("energy")]), [1, 8]) == []


def test_what_the_report_says_of_pairs():
    good = PairCurve("H-O", 1.0, -1.0, 0.5, repulsive=True)
    bad = PairCurve("H-O", 1.0, -1.0, -2.0, repulsive=False)
    pairs = ((good, good), (bad, good), (good, bad), (bad, bad))
    ((_, _, rows),) = (one for one in FineTuningReport("", "", (), pairs=pairs).tables() if "alone" in one[0])
    note = "not repulsive at short distances"
    assert [row[-1] for row in rows] == ["", "", note, f"{note}, as before"]


def test_energy_is_conserved_in_a_short_simulation(old):
    model = build()
    model.standardize(old.statistics(4.0))
    found = conservation(model, old[:2], 40)
    assert abs(found.slope) < 20 and 0 < found.rms < 1 and not found.stopped
    assert conservation(model, old[:2], 0) is None
    with torch.no_grad():
        model.heads["energy"].scale.fill_(1e6)  # no time step is short enough for such forces
    assert "more than 1000" in conservation(model, old[:2], 40).stopped


def test_many_elements_that_the_data_lack_are_one_row():
    rows = [ElementEnergy(f"X{k}", 0.0, 0.0, "not in the new data: kept") for k in range(89)]
    table = ReferenceEnergies((ElementEnergy("B", 0.0, -1.5), *rows), "fitted")
    assert [row[0] for row in table.table()[1]] == ["B", "89 others"]
    assert table.text().splitlines()[-1].split() == [
        "89",
        "others",
        "not",
        "in",
        "the",
        "new",
        "data:",
        "kept",
    ]
    few = ReferenceEnergies((ElementEnergy("B", 0.0, -1.5), *rows[:5]), "fitted")
    assert len(few.table()[1]) == 6


def per_atom(model, data):
    """Predicted energies minus labels, per atom."""
    found = torch.tensor([float(row["energy"]) for row in mq.predict(model, data, progress=False)])
    return (found - data.values("energy").reshape(-1)) / torch.as_tensor(data.counts)


def test_energies_are_not_wrong_by_a_constant_after_the_training(start, old, new):
    """Least squares leave residuals without a mean; with a weight of energies that hardly counts, training does not."""
    loss = [Loss("energy", weight=1e-6), Loss("forces", weight=1.0)]
    alone = tune(start, new, loss=loss)
    assert abs(float(per_atom(alone.model, new[:12]).mean())) < 1e-5
    energies = alone.reports["finetuning"].energies
    assert "fitted once more after the training" in energies.why
    after = reference_energies_of(alone.model)
    assert [row.after for row in energies.rows] == [pytest.approx(after[z]) for z in (1, 8)]
    # The control: what a replay holds, or the user, is not fitted.
    held = tune(start, new, {"replay": {"data": old[:10]}}, loss=loss)
    assert "once more" not in held.reports["finetuning"].energies.why
    kept = tune(start, new, {"reference_energies": "keep"}, loss=loss)
    assert "once more" not in kept.reports["finetuning"].energies.why
    assert abs(float(per_atom(kept.model, new[:12]).mean())) > 1e-3


def test_replayed_energies_of_another_zero_are_refused(start, old, new):
    far = shifted(old[:10], {1: 3.0, 8: 3.0})
    with pytest.raises(
        ConfigError, match=r"the starting model is 2\.\d+ eV/atom away .* replay.labels='model'"
    ):
        tune(start, new, {"replay": {"data": far}})
    tune(start, new, {"replay": {"data": far, "labels": "model"}}, epochs=1)
    tune(start, new, {"replay": {"data": far, "quantities": ["forces"]}}, epochs=1)
