"""Training and fine-tuning of several levels of theory: data, reference energies, reports, and what stays."""

import importlib
import warnings

import pytest
import torch

import molequi as mq
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.finetuning.energies import with_labels
from molequi.hooks import Hook
from molequi.inference.known_energies import reference_energies_of
from molequi.training import trainer
from molequi.training.levels import LevelReports

from ..morse_kit import ELEMENTS, morse

QUICK = dict(epochs=2, batch_size=4, lr=3e-3, logging={"progress": False})
SHIFT = {1: 0.7, 8: -2.0}  # eV, of another level of theory


def shifted(data, shifts=SHIFT):
    labels = [
        {**g.targets, "energy": g.targets["energy"] + sum(shifts[z] for z in g.z.tolist())} for g in data
    ]
    return with_labels(data, labels, data.quantities)


def build(levels=("pbe", "r2scan"), elements=ELEMENTS, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = mq.EGNN(elements=elements, cutoff=4.0, channels=8, layers=1)
        return mq.Model(backbone, ["energy", "forces"], levels=levels and list(levels))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    if "report" not in request.node.name:
        monkeypatch.setattr("molequi.training.symmetry.measure_symmetry", lambda *_: None)


@pytest.fixture(scope="module")
def data():
    old, new = morse(20).with_level("pbe"), shifted(morse(14, seed=1)).with_level("r2scan")
    return {"train": old[:14] + new[:9], "valid": old[14:] + new[9:]}


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    """The folder of a trained model of two levels."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("molequi.training.symmetry.measure_symmetry", lambda *_: None)
        mq.fit(build(), **data, **QUICK | {"epochs": 4}, out=folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The file of a trained model of one level without a name."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("molequi.training.symmetry.measure_symmetry", lambda *_: None)
        mq.fit(build(None), morse(14), morse(6, seed=7), **QUICK, out=folder)
    return folder / "model.safetensors"


# Training.


def test_one_level_trains_as_a_model_without_levels():
    """The same weights, bit for bit, and the same errors."""
    train, valid = morse(12), morse(4, seed=5)
    first = mq.fit(build(None), train, valid, **QUICK)
    second = mq.fit(build(["pbe"]), train.with_level("pbe"), valid.with_level("pbe"), **QUICK)
    ours = second.model.at("pbe").state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in first.model.state_dict().items())
    assert first.errors["valid"].numbers() == second.errors["valid pbe"].numbers()
    assert first.best_loss == second.best_loss


def test_reference_energies_are_those_of_each_level(data):
    """They differ by what was added to the labels; in one model for both the fit is between them."""

    class Look(Hook):
        def report(self, run):
            return None

        def start(self, run):
            seen.update({level: reference_energies_of(run.model.at(level)) for level in run.model.levels})
            return self

    seen = {}
    energies = {1: -1.0, 8: -24.0}
    given = {"pbe": energies, "r2scan": {z: e + SHIFT[z] for z, e in energies.items()}}
    mq.fit(
        build(), **data, **QUICK | {"epochs": 1}, normalization={"reference_energies": given}, terms=[Look()]
    )
    for z, shift in SHIFT.items():
        assert seen["r2scan"][z] - seen["pbe"][z] == pytest.approx(shift, abs=1e-12)
    seen.clear()
    # Fitted ones: the same structures at both levels, so that the difference is exact.
    both = {part: morse(10, seed=k) for k, part in enumerate(("train", "valid"))}
    both = {part: d.with_level("pbe") + shifted(d).with_level("r2scan") for part, d in both.items()}
    mq.fit(build(), **both, **QUICK | {"epochs": 1}, terms=[Look()])
    for z, shift in SHIFT.items():
        assert seen["r2scan"][z] - seen["pbe"][z] == pytest.approx(shift, abs=1e-9)


def test_what_is_reported_of_each_level(data, tmp_path):
    result = mq.fit(build(), **data, **QUICK, out=tmp_path)
    assert list(result.errors) == ["train pbe", "train r2scan", "valid pbe", "valid r2scan"]
    one = mq.load(tmp_path, level="r2scan")
    again = mq.evaluate(one, data["valid"].at_level("r2scan"), progress=False)
    assert again.numbers() == pytest.approx(result.errors["valid r2scan"].numbers())
    train = data["train"].connected(4.0)
    mean = train.graphs.edge_counts.sum() / train.counts.sum()
    assert float(result.model.backbone.mean_neighbors) == pytest.approx(mean, rel=1e-6)
    text = str(result)
    assert "valid r2scan" in text and "level 'pbe': symmetry report" in text
    one.symmetry_report.verify(one)  # of these weights
    assert one.symmetry_report != mq.load(tmp_path, level="pbe").symmetry_report
    assert {"trained_on", "lowest_energy", "residuals", "level"} <= one.metadata.keys()
    assert (tmp_path / "symmetry_report.json").read_text().startswith('{\n  "pbe"')
    # The losses of the levels add up to that of both: each is a mean over its own labels.
    row, weights = result.history[-1], {"energy": 1, "forces": 100}
    losses = {}
    for level in ("pbe", "r2scan"):
        found = mq.evaluate(result.model.at(level), data["valid"].at_level(level), progress=False)
        losses[level] = row[f"valid_level_loss_{level}"]
        if result.best_epoch == len(result.history):
            wanted = sum(
                w * found[f"{'energy_per_atom' if n == 'energy' else n}_rmse"] ** 2
                for n, w in weights.items()
            )
            assert losses[level] == pytest.approx(wanted, rel=1e-4)
    assert min(losses.values()) <= row["valid_loss"] <= max(losses.values())


def test_elements_that_a_level_lacks_are_named():
    train = morse(14).with_level("pbe")
    hydrogen = [g for g in shifted(morse(60, seed=1)) if set(g.z.tolist()) == {1}]
    new, valid = mq.Dataset(hydrogen[1:]).with_level("r2scan"), mq.Dataset(hydrogen[:1]).with_level("r2scan")
    with pytest.warns(
        DataWarning, match=r"level 'r2scan': no training structure with a label of the energy has O"
    ):
        mq.fit(build(), train[4:] + new, train[:4] + valid, **QUICK | {"epochs": 1})


def test_trainings_of_wrong_levels(data):
    cases = {
        "level 'ccsd': the training data have no structure of it": (
            build(["pbe", "r2scan", "ccsd"]),
            data,
            {},
        ),
        "structure 0 has the level 'r2scan', which is none of the model": (build(["pbe"]), data, {}),
        "structure 0 has no level, and the model has": (build(), {"train": morse(4), "valid": morse(2)}, {}),
        "'H' is no level of the model, which has 'pbe', 'r2scan'": (
            build(),
            data,
            {"normalization": {"reference_energies": {"H": -13.6, "O": -430.0}}},
        ),
        r"seed=\[0, 1\]: an ensemble is of one level": (build(), data, {"seed": [0, 1]}),
    }
    for message, (model, parts, more) in cases.items():
        with pytest.raises((ConfigError, DataError), match=message):
            mq.fit(model, **parts, **QUICK, **more)
    with pytest.warns(DataWarning, match="of several levels .'pbe', 'r2scan'. and the model has one for all"):
        mq.fit(build(None), **data, **QUICK | {"epochs": 1})
    with pytest.warns(DataWarning, match="level 'r2scan': the validation data have no structure of it"):
        mq.fit(build(), data["train"], data["valid"].at_level("pbe"), **QUICK | {"epochs": 1})


def test_equal_structures_of_two_levels_are_no_contradiction():
    """The same geometries with other energies, in one part and in both, are what several levels are for."""
    far = {1: 300.0, 8: 300.0}
    parts = {name: morse(22 - 18 * k, seed=k) for k, name in enumerate(("train", "valid"))}
    both = {n: d.with_level("pbe") + shifted(d, far).with_level("r2scan") for n, d in parts.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        mq.fit(build(), **both, **QUICK | {"epochs": 1})
    with pytest.warns(DataWarning, match="26 equal structures have different labels"):  # the control
        mq.fit(build(None), *(mq.Dataset(list(d)) for d in both.values()), **QUICK | {"epochs": 1})


class Stop(Exception):
    pass


def test_stopped_and_continued(plain, tmp_path, monkeypatch):
    """A fine-tuning with a new level and replay: the same weights, bit for bit."""
    replay = {"data": morse(12, seed=8), "level": "pbe"}
    wanted = {"level": "r2scan", "from_level": "pbe", "replay": replay}
    whole = tune(mq.load(plain), wanted, epochs=3)
    original = trainer.Training.step

    def stopping(self, *arguments):
        if self.place.step == 4:
            raise Stop
        original(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(trainer.Training, "step", stopping)
        logging = {"progress": False, "save_minutes": 0}
        tune(mq.load(plain), wanted, epochs=3, logging=logging, out=tmp_path)
    again = tune(mq.load(plain), wanted, epochs=3, out=tmp_path)
    state_of = again.model.state_dict()
    assert all(torch.equal(value, state_of[name]) for name, value in whole.model.state_dict().items())
    with pytest.raises(ConfigError, match="from_level|level"):
        tune(mq.load(plain), wanted | {"level": "ccsd"}, epochs=3, out=tmp_path)


def test_a_compiled_training(data, monkeypatch, tmp_path):
    program = importlib.import_module("molequi.accelerate")
    monkeypatch.setattr(program, "BACKEND", lambda traced, inputs: traced)
    monkeypatch.setenv("MOLEQUI_CACHE", str(tmp_path))
    found = []
    for accelerate in (False, True):
        compute = {"precision": "float64", "accelerate": accelerate}
        parts = {"train": data["train"][::2], "valid": data["valid"][::3]}
        found.append(mq.fit(build(), **parts, **QUICK | {"epochs": 1, "compute": compute}).model)
    assert found[1].program is not None
    for name, value in found[0].state_dict().items():
        torch.testing.assert_close(value, found[1].state_dict()[name], rtol=1e-9, atol=1e-9)


# Fine-tuning.


def tune(model, finetune, seed=3, shifts=None, **more):
    new = shifted(morse(14, seed=seed), shifts or {1: 0.2, 8: -1.0})
    return mq.fit(model, new[:10], new[10:], **QUICK | more, finetune={"nve": 0} | finetune)


def test_a_new_level_for_a_model_of_one(plain):
    """Its heads begin as the old ones, which stay bit for bit; the report has both levels."""
    before = mq.load(plain)
    wanted = {"level": "r2scan", "from_level": "pbe", "old": morse(5, seed=9)}
    result = tune(mq.load(plain), wanted)
    model = result.model
    assert model.levels == ("pbe", "r2scan")
    old, first = model.at("pbe").heads.state_dict(), before.heads.state_dict()
    assert all(torch.equal(old[name], value) for name, value in first.items())
    assert not torch.equal(
        model.at("r2scan").heads.state_dict()["energy.net.0.weight"], first["energy.net.0.weight"]
    )
    changed = [
        n
        for n, v in model.backbone.state_dict().items()
        if not torch.equal(v, before.backbone.state_dict()[n])
    ]
    assert changed  # the body is shared, so that the old level changes, too
    rows = {(r.data, r.quantity): r for r in result.reports["finetuning"].errors}
    assert {data for data, _ in rows} == {"new, r2scan (valid)", "old, pbe"}
    forces = rows["old, pbe", "forces"]
    assert forces.before == pytest.approx(
        mq.evaluate(before, morse(5, seed=9), progress=False)["forces_rmse"]
    )
    after = mq.evaluate(model.at("pbe"), morse(5, seed=9), progress=False)["forces_rmse"]
    assert forces.after == pytest.approx(after) and forces.after != forces.before
    shift = reference_energies_of(model.at("r2scan")) - reference_energies_of(model.at("pbe"))
    assert shift[1] > 0 > shift[8]
    kept = model.metadata["levels"]
    assert kept["pbe"]["lowest_energy"] == before.metadata["lowest_energy"] and "residuals" not in kept["pbe"]
    assert kept["r2scan"]["trained_on"]["elements"] == ["H", "O"]


def test_heads_of_the_new_level_alone(plain):
    """With the body frozen the old level predicts bit for bit as before, also with a decay of weights."""
    before, graph = mq.load(plain), mq.connect(morse(1, seed=9)[0], 4.0)
    wanted = {"method": "heads", "level": "r2scan", "from_level": "pbe"}
    model = tune(mq.load(plain), wanted, optimizer={"name": "adamw", "weight_decay": 0.1}).model
    assert torch.equal(model.at("pbe")(graph)["forces"], before(graph)["forces"])
    assert not torch.equal(model.at("r2scan")(graph)["forces"], before(graph)["forces"])


@pytest.mark.parametrize("labels", ["data", "model"])
def test_replay_belongs_to_the_old_level(start, labels):
    """It trains the heads of its level, and those of a third one stay."""
    before = state(mq.load(start))
    replay = {"data": morse(12, seed=8), "level": "pbe", "labels": labels}
    result = tune(mq.load(start), {"level": "ccsd", "from_level": "r2scan", "replay": replay})
    model, after = result.model, result.model.state_dict()
    assert model.levels == ("pbe", "r2scan", "ccsd")
    moved = {
        k: any(not torch.equal(after[n], before[n]) for n in before if f".heads.{k}.net" in n) for k in (0, 1)
    }
    assert moved == {0: True, 1: False}
    assert result.history[-1]["replay_gradient_share"] > 0
    row = next(
        r for r in result.reports["finetuning"].errors if r.data == "old, pbe" and r.quantity == "forces"
    )
    assert row.before == 0.0 if labels == "model" else row.before > 0
    # Labels of the old level are not shifted with the reference energies of the new one.
    names = [n for n in before if n.endswith("heads.0.reference_energies")]
    assert names and all(torch.equal(after[n], before[n]) for n in names)


def test_labels_of_another_level_are_not_shifted(start):
    """Replay of the model's own labels has no error before the first step, whatever the new energies are."""
    replay = {"data": morse(12, seed=8), "level": "pbe", "labels": "model"}
    wanted = {"level": "ccsd", "from_level": "r2scan", "replay": replay}
    row = tune(mq.load(start), wanted, lr=1e-9, epochs=1).history[0]
    assert row["replay_loss"] < 1e-6
    wanted = {"level": "r2scan", "replay": replay | {"level": "r2scan"}}
    row = tune(mq.load(start), wanted, lr=1e-9, epochs=1).history[0]
    assert row["replay_loss"] < 1e-6  # of the same level they are shifted as the reference energies are


def test_more_data_of_a_level_that_is_there(start):
    model = mq.load(start)
    before = state(model)
    tune(model, {"level": "r2scan"}, shifts=SHIFT)
    assert model.levels == ("pbe", "r2scan")
    after = model.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items() if ".heads.0." in n)


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({}, "the model has the levels of theory 'pbe', 'r2scan'; say of which one the new data are"),
        ({"level": "ccsd"}, "the model has no level 'ccsd'; to add it, name the level .* from_level='pbe'"),
        ({"level": "pbe", "from_level": "r2scan"}, "the model has the level 'pbe' already"),
        ({"level": "ccsd", "from_level": "ccsd"}, "are both 'ccsd'"),
        ({"level": "ccsd", "from_level": "mp2"}, "'mp2' is no level of the model, which has 'pbe', 'r2scan'"),
        (
            {"level": "ccsd", "from_level": "pbe", "replay": {"data": morse(4), "level": "mp2"}},
            "finetune.replay.level: 'mp2' is no level of the model, which has 'pbe', 'r2scan', 'ccsd'",
        ),
        (
            {"level": "pbe", "replay": {"data": morse(4)}},
            "finetune.replay.data: it is not known of which level of theory they are",
        ),
        (
            {"level": "pbe", "replay": {"data": morse(4).with_level("mp2")}},
            "finetune.replay.data: they are of the level 'mp2', and the model has 'pbe', 'r2scan'",
        ),
        (
            {"level": "pbe", "replay": {"data": morse(4).with_level("pbe"), "level": "r2scan"}},
            "they are of the level 'pbe', and .* says 'r2scan'",
        ),
        (
            {"level": "pbe", "method": "heads", "replay": {"data": morse(4), "level": "r2scan"}},
            "the loss of 'energy' on the replay data has no gradient",
        ),
    ],
)
def test_wrong_levels_of_a_fine_tuning(start, wanted, message):
    with pytest.raises(ConfigError, match=message):
        tune(mq.load(start), wanted)


def test_old_data_of_another_level_than_the_replay(start):
    """Each has the labels of its own level, and only the replay trains heads."""
    before = state(mq.load(start))
    replay = {"data": morse(8, seed=8), "level": "pbe"}
    measured = shifted(morse(4, seed=9)).with_level("r2scan")
    wanted = {"level": "ccsd", "from_level": "pbe", "replay": replay, "old": measured}
    result = tune(mq.load(start), wanted)
    after = result.model.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items() if ".heads.1." in n)
    row = next(
        r for r in result.reports["finetuning"].errors if r.data == "old, r2scan" and r.quantity == "forces"
    )
    model = result.model.at("r2scan")
    assert row.after == pytest.approx(mq.evaluate(model, measured, progress=False)["forces_rmse"])


def test_a_loss_of_functions_alone(data):
    def slope(predictions, graph):
        return predictions["energy"].square().mean()

    result = mq.fit(build(), **data, **QUICK | {"epochs": 1}, loss=[mq.Loss(slope)])
    assert not any("level" in name for name in result.history[-1])


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"level": "pbe"}, "finetune.level: the model is of the level 'pbe' itself"),
        ({"level": "pbe", "from_level": "r2scan"}, "finetune.level: the model is of the level 'pbe' itself"),
        (
            {"level": "ccsd", "from_level": "lda"},
            "the model is of the level 'pbe', and from_level says 'lda'; leave from_level out",
        ),
        ({"level": "a@b"}, "finetune.level: found 'a@b'; wanted a name without @"),
    ],
)
def test_a_model_whose_level_is_known(start, wanted, message):
    with pytest.raises(ConfigError, match=message):
        tune(mq.load(start, level="pbe"), wanted)


@pytest.mark.parametrize("known", ["level", "origin"])
def test_the_name_of_the_start_may_be_left_out(start, known):
    """Its heads begin as those of the model, and old data without a level are of its level."""
    model = mq.load(start, level="pbe")
    if known == "origin":
        model.metadata = {"origin": {"level": "pbe"}}
    first = {n: v.clone() for n, v in model.heads.state_dict().items()}
    replay = {"data": morse(8, seed=8), "labels": "model"}
    result = tune(model, {"level": "ccsd", "method": "heads", "old": morse(4, seed=9)}, epochs=1)
    assert result.model.levels == ("pbe", "ccsd") and "level" not in result.model.metadata
    kept = result.model.at("pbe").heads.state_dict()
    assert all(torch.equal(kept[n], v) for n, v in first.items())
    assert {row.data for row in result.reports["finetuning"].errors} == {"new, ccsd (valid)", "old, pbe"}
    again = tune(mq.load(start, level="pbe"), {"level": "ccsd", "replay": replay}, epochs=1)
    assert again.model.levels == ("pbe", "ccsd")


@pytest.mark.parametrize("finetune", [None, "all"])
def test_labels_of_another_level_are_not_trained(start, finetune, monkeypatch, tmp_path):
    """They are refused before the first step, and a training of the own level keeps its name."""
    new = morse(8, seed=3).with_level("r2scan")
    options = QUICK | {"epochs": 1} | ({} if finetune is None else {"finetune": finetune})
    with monkeypatch.context() as patched:
        patched.setattr(trainer.Training, "step", lambda *_: pytest.fail("a step was made"))
        with pytest.raises(ConfigError, match="the train data have labels of the level 'r2scan'"):
            mq.fit(mq.load(start, level="pbe"), new[:6], new[6:], **options)
        mixed = new[6:].with_level("pbe") + morse(2)
        with pytest.raises(DataError, match="the valid data: 2 of 4 structures have no level"):
            mq.fit(mq.load(start, level="pbe"), new[:6].with_level("pbe"), mixed, **options)
    mq.fit(mq.load(start, level="r2scan"), new[:6], new[6:], **options, out=tmp_path)
    assert mq.load(tmp_path).metadata["level"] == "r2scan"


@pytest.mark.parametrize("where", ["the train data", "finetune.replay.data", "finetune.old"])
def test_partly_named_data_of_a_fine_tuning(start, where):
    """Structures without a level do not get that of the others."""
    new, mixed = morse(8, seed=3), morse(5).with_level("r2scan") + morse(7, seed=4)
    wanted = {"level": "r2scan", "nve": 0}
    if where == "finetune.old":
        wanted["old"] = mixed
    elif where == "finetune.replay.data":
        wanted["replay"] = {"data": mixed}
    train = mixed if where == "the train data" else new[:6]
    model = mq.load(start)
    with pytest.raises(DataError, match=f"{where}: 7 of 12 structures have no level, .* have 'r2scan'"):
        mq.fit(model, train, new[6:], **QUICK, finetune=wanted)


def test_levels_without_effect(plain):
    with pytest.raises(ConfigError, match=r"finetune.from_level has no effect without finetune.level"):
        tune(mq.load(plain), {"from_level": "pbe"})
    with pytest.raises(
        ConfigError, match="the train data: they are of the level 'pbe', and finetune.level says"
    ):
        new = morse(8).with_level("pbe")
        mq.fit(mq.load(plain), new[:6], new[6:], **QUICK, finetune={"level": "r2scan", "from_level": "pbe"})


def test_new_elements_and_a_new_level(plain):
    """Both at once: the new element has a reference energy at each level, and the old predictions stay."""
    graphs = [g.replace(z=torch.where(g.z == 8, 16, g.z)) for g in shifted(morse(14, seed=3))]
    new = mq.Dataset(graphs)
    before, graph = mq.load(plain), mq.connect(morse(1, seed=9)[0], 4.0)
    options = {"level": "r2scan", "from_level": "pbe", "method": "heads", "nve": 0}
    model = mq.fit(mq.load(plain), new[:10], new[10:], **QUICK, finetune=options).model
    assert model.elements == (1, 8, 16)
    assert reference_energies_of(model.at("pbe"))[16] == reference_energies_of(before)[8]
    assert reference_energies_of(model.at("r2scan"))[16] != 0
    torch.testing.assert_close(model.at("pbe")(graph)["energy"], before(graph)["energy"])


def test_reports_of_levels_in_a_notebook():
    class Shown:
        def _repr_html_(self):
            return "<b>seen</b>"

    found = LevelReports({"pbe": Shown(), "r2scan": "plain <"}, {})._repr_html_()
    assert "level pbe" in found and "<b>seen</b>" in found and "level r2scan: plain &lt;" in found
