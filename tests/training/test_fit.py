"""Training: it learns, its settings do what they say, it refuses contradictions, it ends as it should."""

import ast
import csv
import importlib
import inspect
import json
import math
import os
import re
import signal
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from molequi import (
    EGNN,
    Dataset,
    EquivarianceSelection,
    Graph,
    Model,
    Quantity,
    RelaxedEGNN,
    accelerate,
    evaluate,
    fit,
    load,
    write_npz,
)
from molequi.errors import (
    ConfigError,
    DataError,
    DataWarning,
    TrainingError,
    TrainingWarning,
    UnknownKeywordError,
)
from molequi.training import trainer as module
from molequi.training.options import GROUPS
from molequi.training.renamed import RENAMED

# The small data of these tests are not split as real ones are.
pytestmark = [pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning")]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_energy_and_forces(make):
    data = make.morse(60)
    parts = {"train": data[:48], "valid": data[48:]}
    model = make.tiny()
    result = fit(
        model,
        **parts,
        epochs=40,
        batch_size=4,
        lr=1e-2,
        compute={"precision": "float64"},
        logging={"progress": False},
    )
    first, last = result.history[0], result.history[result.best_epoch - 1]
    assert last["valid_forces_rmse"] < 0.35 * first["valid_forces_rmse"]
    assert result.errors["valid"]["forces_r2"] > 0.5
    assert result.errors["valid"]["forces_rmse"] == pytest.approx(last["valid_forces_rmse"], rel=1e-9)
    assert result.best_loss == min(row["valid_loss"] for row in result.history) == last["valid_loss"]
    assert result.model is model and not model.training


def test_files_of_a_run(parts, model, quick, tmp_path):
    result = fit(model, **parts, test=parts["valid"][:3], **quick, out=tmp_path / "run")
    assert {p.name for p in result.out.iterdir()} == {
        "config.yaml",
        "errors.csv",
        "errors.json",
        "metrics.csv",
        "model.safetensors",
        "run.lock",
        "run.log",
        "state-0.pt",
        "state-1.pt",
    }
    again = load(result.out / "model.safetensors")
    assert equal(weights(again), weights(model))
    assert evaluate(again, parts["valid"]).numbers() == result.errors["valid"].numbers()
    assert again.metadata["training"]["errors"]["test"]["forces_mae"] == result.errors["test"]["forces_mae"]
    rows = list(csv.DictReader((result.out / "metrics.csv").read_text().splitlines()))
    assert [float(r["valid_loss"]) for r in rows] == [r["valid_loss"] for r in result.history]
    assert json.loads((result.out / "errors.json").read_text()).keys() == {"train", "valid", "test"}
    assert "forces" in str(result) and "test" in str(result)


def test_the_symmetry_of_a_compiled_model_is_measured_without_compiling_it_again(make, monkeypatch):
    from molequi.training.symmetry import measure_symmetry

    def compiling(*_):
        raise AssertionError("a function was compiled for the report")

    monkeypatch.setattr(importlib.import_module("molequi.accelerate"), "BACKEND", compiling)
    model = accelerate(make.tiny())
    report = measure_symmetry(model, make.morse(3))
    assert report.passed and model.symmetry_report == report and model.program is not None


def test_a_symmetry_card_is_measured_at_the_end(parts, model, quick, tmp_path):
    result = fit(model, **parts, **quick, out=tmp_path / "run")
    assert (
        result.symmetry_report.passed
        and "symmetry report" in str(result)
        and result.model.symmetry_report == result.symmetry_report
    )
    report = load(result.out / "model.safetensors").symmetry_report
    assert report.to_dict() == result.symmetry_report.to_dict() and report.verify(result.model) is report
    assert {"rotation", "reflection", "translation", "permutation", "batch"} <= set(report.checks["float64"])
    assert max(report.checks["float64"].values()) < 1e-9
    held_out = [g.pos for g in parts["valid"]]
    assert all(any(torch.equal(g.pos, pos) for pos in held_out) for g in report.graphs)


def test_structures_without_a_card_are_told(parts, make, quick):
    """Features of given edges cannot be found anew by a neighbour search; and a backbone may not bear to be asked so. The training is kept."""
    from molequi import connect
    from molequi.training.symmetry import measure_symmetry

    graph = connect(Graph.single(torch.rand(3, 3), [1, 8, 1]), None)
    data = Dataset([graph.replace(edge_attr=torch.rand(graph.edge_index.shape[1], 2))] * 2)
    with pytest.warns(DataWarning, match="no symmetry report, .* structure 0 has features of given edges"):
        assert measure_symmetry(make.tiny(), data) is None

    class Shy(EGNN):
        def forward(self, graph):
            if graph.pos.abs().max() > 30:
                raise RuntimeError("so far out?")
            return super().forward(graph)

    model = Model(Shy(elements=[1, 8], channels=4, layers=1, cutoff=4.0), ["energy"])
    with pytest.warns(DataWarning, match="ended with RuntimeError: so far out"):
        result = fit(model, **parts, **quick)
    assert result.symmetry_report is None and result.errors["valid"]


def test_without_a_folder_nothing_is_written(parts, model, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(model, **parts, **quick).out is None
    assert not list(tmp_path.iterdir())


def test_random_numbers_and_types_of_the_caller_stay(parts, model, quick):
    torch.manual_seed(5)
    before, dtype = torch.get_rng_state(), torch.get_default_dtype()
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    fit(model, **parts, **quick, compute={"precision": "float64"})
    assert torch.equal(before, torch.get_rng_state()) and torch.get_default_dtype() == dtype
    assert model.dtype == torch.float64
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_b23_same_seed_same_weights_other_seed_others(parts, make, quick):
    first, second, other = make.tiny(), make.tiny(), make.tiny()
    fit(first, **parts, **quick, seed=1)
    torch.randn(7)
    fit(second, **parts, **quick, seed=1)
    fit(other, **parts, **quick, seed=2)
    assert equal(weights(first), weights(second))
    assert not equal(weights(first), weights(other))


def test_b23_workers_do_not_change_the_result(parts, make, quick):
    none, two = make.tiny(), make.tiny()
    fit(none, **parts, **quick)
    fit(two, **parts, **quick, compute={"workers": 2})
    assert equal(weights(none), weights(two))


def test_average_is_what_is_validated_and_kept(parts, make, quick):
    plain, averaged = make.tiny(), make.tiny()
    a = fit(plain, **parts, **quick, optimizer={"ema": 0.0})
    b = fit(averaged, **parts, **quick, optimizer={"ema": 0.99})
    assert a.history[0]["train_loss"] == b.history[0]["train_loss"]  # the same steps
    assert a.history[0]["valid_loss"] != b.history[0]["valid_loss"]
    assert b.errors["valid"]["forces_rmse"] == pytest.approx(
        b.history[b.best_epoch - 1]["valid_forces_rmse"], rel=1e-6
    )


def test_clipping_is_done_and_counted(parts, make, quick):
    tight, loose = make.tiny(), make.tiny()
    a = fit(tight, **parts, **quick, optimizer={"clip": 1e-6}).history
    b = fit(loose, **parts, **quick, optimizer={"clip": None}).history
    assert a[0]["clipped"] == 1 and b[0]["clipped"] == 0
    assert a[0]["gradient_norm"] > 1e-6


def test_learning_rates_follow_the_schedule(parts, model, quick):
    rows = fit(
        model,
        **parts,
        **quick | {"epochs": 4},
        lr=0.01,
        schedule={"name": "cosine", "floor": 0.05},
        optimizer={"clip": None},
    ).history
    steps = 4
    expected = [0.01 * max((1 + math.cos(math.pi * (e + 3 / steps) / 4)) / 2, 0.05) for e in range(4)]
    assert [row["lr"] for row in rows] == pytest.approx(expected)


def test_time_budget_ends_and_anneals(parts, model):
    result = fit(
        model,
        **parts,
        max_minutes=0.1,
        batch_size=4,
        lr=0.01,
        schedule={"floor": 0.0},
        logging={"progress": False},
    )
    assert result.stopped == "time is up"
    assert result.history[-1]["lr"] < 2e-3 < result.history[0]["lr"]
    assert result.history[-1]["seconds"] >= 6


def test_patience_ends_early(parts, model, quick):
    result = fit(
        model, **parts, **quick | {"epochs": 50}, lr=1e-12, validation={"patience": 2}, optimizer={"ema": 0.0}
    )
    assert len(result.history) < 20 and "no better for 2" in result.stopped


def test_validate_every(parts, model, quick):
    rows = fit(model, **parts, **quick | {"epochs": 5}, validation={"every": 2}).history
    assert ["valid_loss" in row for row in rows] == [False, True, False, True, True]


def test_the_last_epoch_is_kept_if_that_is_asked_for(parts, make, quick):
    """With a learning rate that makes it worse from epoch to epoch."""
    worse = quick | {"epochs": 4, "lr": 0.3, "schedule": "constant", "optimizer": {"ema": 0.0}}
    best, last = (fit(make.tiny(), **parts, **worse, validation={"keep": keep}) for keep in ("best", "last"))
    assert best.best_epoch < 4 and last.best_epoch == 4
    assert [r["valid_loss"] for r in best.history] == [r["valid_loss"] for r in last.history]
    assert last.errors["valid"]["forces_rmse"] == pytest.approx(
        last.history[-1]["valid_forces_rmse"], rel=1e-6
    )
    assert not equal(weights(best.model), weights(last.model))
    with pytest.raises(ConfigError, match="patience=3 is for keep='best'; leave one of them out"):
        fit(make.tiny(), **parts, **quick, validation={"keep": "last", "patience": 3})


def test_every_other_setting_changes_the_weights(parts, make, quick):
    """No option does nothing."""
    base = make.tiny()
    fit(base, **parts, **quick)
    for option in (
        dict(optimizer={"name": "adamw", "weight_decay": 0.1}),
        dict(optimizer={"weight_decay": 0.1}),
        dict(loss="huber"),
        dict(loss="mae"),
        dict(loss="l2"),
        dict(schedule="constant"),
        dict(schedule={"warmup": 1.0}),
        dict(batch_size=3),
        dict(lr=1e-4),
        dict(normalization={"standardize": False}),
        dict(loss={"energy": 1, "forces": 10}),
    ):
        other = make.tiny()
        fit(other, **parts, **quick | option)
        assert not equal(weights(base), weights(other)), option


def test_amsgrad_changes_the_weights_once_gradients_shrink(parts, make, quick):
    a, b = make.tiny(), make.tiny()
    fit(a, **parts, **quick | {"epochs": 6}, optimizer={"amsgrad": True, "clip": None})
    fit(b, **parts, **quick | {"epochs": 6}, optimizer={"amsgrad": False, "clip": None})
    assert not equal(weights(a), weights(b))


def test_batches_by_edges_and_atoms(parts, make):
    for limit in (dict(batch_size={"atoms": 20}), dict(batch_size={"edges": 60})):
        assert fit(make.tiny(), **parts, epochs=1, logging={"progress": False}, **limit).history


def test_isolated_energies_and_standardize(parts, make, quick):
    model = make.tiny()
    fit(model, **parts, **quick, normalization={"reference_energies": {"H": -3.0, "O": -24.0}})
    assert float(model.heads["energy"].reference_energies[8]) == -24.0
    tuned = make.tiny()
    tuned.load_state_dict(model.state_dict())
    fit(tuned, parts["train"][:4], parts["valid"], **quick, normalization={"standardize": False})
    assert torch.equal(tuned.heads["energy"].reference_energies, model.heads["energy"].reference_energies)
    assert torch.equal(tuned.heads["energy"].scale, model.heads["energy"].scale)


def test_missing_labels_are_masked(make, quick):
    data = make.morse(20, missing=(0, 3, 4))
    result = fit(make.tiny(), data[:12], data[12:], **quick)
    atoms = sum(data[k].num_nodes for k in range(12) if k not in (0, 3, 4))
    row = next(r for r in result.errors["train"].rows if r.quantity == "forces" and not r.element)
    assert row.count == 3 * atoms and math.isfinite(row.mae)


def test_any_quantity(quick):
    spin = Quantity(name="spin_density", per="node", unit="e")
    box = Quantity(name="box", rank=2, unit="Å^2")
    random = torch.Generator().manual_seed(0)
    graphs = [
        Graph.single(
            torch.randn(4, 3, generator=random),
            [1, 8, 1, 1],
            targets={
                "spin_density": torch.randn(4, generator=random).double(),
                "box": torch.eye(3).double()[None] * k,
            },
        )
        for k in range(10)
    ]
    data = Dataset(graphs, quantities={"spin_density": spin, "box": box})
    model = Model(EGNN(elements=[1, 8], channels=8, layers=2), [spin, box])
    result = fit(model, data[:6], data[6:], **quick)
    assert {"box_mae", "spin_density_mae"} <= result.errors["valid"].numbers().keys()


def test_b5_weights_that_contradict_model_or_data_name_both(parts, make, quick):
    with pytest.raises(ConfigError, match=r"loss\.forces is 100.*predict is \[energy\]"):
        fit(make.tiny(["energy"]), **parts, **quick, loss={"energy": 1, "forces": 100})
    with pytest.raises(ConfigError, match=r"loss\.force is 1.*did you mean 'forces'"):
        fit(make.tiny(), **parts, **quick, loss={"force": 1})
    bare = {
        part: Dataset([g.replace(targets={"energy": g.targets["energy"]}) for g in d])
        for part, d in parts.items()
    }
    with pytest.raises(
        ConfigError, match=r"loss\.forces is 100.*train data have no labels of 'forces'.*keys="
    ):
        fit(make.tiny(), **bare, **quick, loss={"energy": 1, "forces": 100})
    with pytest.raises(ConfigError, match="valid data have no labels of 'forces'"):
        fit(make.tiny(), parts["train"], bare["valid"], **quick, loss={"forces": 1})
    with pytest.raises(ConfigError, match="all weights are zero"):
        fit(make.tiny(), **parts, **quick, loss={"forces": 0})


def test_a_loss_that_would_be_zero_is_refused(make, quick):
    data = make.morse(12, missing=(2,))
    with pytest.raises(ConfigError, match="structure 2 has no label of forces.*exactly zero"):
        fit(make.tiny(), data[:8], data[8:], **quick, loss={"forces": 1})


def test_nothing_to_learn(parts, quick):
    model = Model(EGNN(elements=[1, 8], channels=8, layers=2), ["dipole"])
    with pytest.raises(ConfigError, match="predicts dipole.*labels of energy, forces.*nothing to learn"):
        fit(model, **parts, **quick)


def test_same_name_other_meaning(parts, quick):
    model = Model(
        EGNN(elements=[1, 8], channels=8, layers=2), [Quantity("forces", per="node", rank=1, unit="eV/Å")]
    )
    with pytest.raises(
        ConfigError, match="'forces' has gradient_of=None, .*gradient_of='energy'.* in the train data"
    ):
        fit(model, **parts, **quick, loss={"forces": 1})


def test_elements_the_model_does_not_know(parts, quick):
    model = Model(EGNN(elements=["H"], channels=8, layers=1))
    with pytest.raises(ConfigError, match="train data have O and the model knows only H"):
        fit(model, **parts, **quick)


@pytest.mark.parametrize(
    "options,words",
    [
        (dict(), "how long to train"),
        (dict(epochs=0), "fit.epochs: found 0"),
        (dict(epochs=1, lr=-1.0), "fit.lr: found -1.0"),
        (dict(epochs=1, batch_size=0), "fit.batch_size: found 0"),
        (
            dict(epochs=1, batch_size={"structures": 2, "atoms": 9}),
            "fit.batch_size: found structures and atoms",
        ),
        (dict(epochs=True), r"fit.epochs: found True \(bool\)"),
        (dict(epochs=1, lr="1e-3"), r"fit.lr: found '1e-3' \(str\)"),
        (dict(epochs=1, loss={"energy": -1}), r"fit.loss.energy: found -1"),
        (dict(epochs=1, schedule="cosin"), "fit.schedule"),
        (dict(epochs=1, logging={"loggers": ["tensorboard"]}), "no folder"),
    ],
)
def test_b4_settings_out_of_range(parts, model, options, words):
    with pytest.raises(ConfigError, match=words):
        fit(model, **parts, **{"logging": {"progress": False}} | options)


@pytest.mark.parametrize("name", RENAMED)
def test_each_old_argument_names_the_new_one(parts, model, quick, name):
    """The new way is one that works: its group and its field exist."""
    with pytest.raises(UnknownKeywordError, match=rf"^fit\({name}=1\): now ") as info:
        fit(model, **parts, **quick, **{name: 1})
    new = str(info.value).partition(": now ")[2]
    assert "…" not in new
    argument = new.partition("=")[0]
    assert argument in inspect.signature(fit).parameters
    group = GROUPS.get(argument)
    if group is not None:
        (field,) = ast.literal_eval(new.partition("=")[2])
        assert field in {f.name for f in fields(group)}


def test_every_old_argument_of_the_changelog_is_in_the_table():
    changelog = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    table = changelog[changelog.index("`fit` has 20 arguments") :].split("\n\n")[1]
    old = {n for line in table.splitlines()[2:] for n in re.findall(r"`(\w+)=`", line.split("|")[1])}
    assert len(old) > 25
    assert old - set(inspect.signature(fit).parameters) <= set(RENAMED)


def test_unknown_arguments_name_the_nearest(parts, model, quick):
    with pytest.raises(
        TypeError, match=r"^fit\(ephocs=3\): fit has no such argument; did you mean 'epochs'\?$"
    ):
        fit(model, **parts, **quick, ephocs=3)
    assert len(inspect.signature(fit).parameters) <= 21


def test_a_kind_that_a_term_cannot_take_is_refused_before_data_are_read(quick):
    model = Model(RelaxedEGNN(elements=[1, 8], channels=8, layers=1), ["energy"])
    terms = [EquivarianceSelection("evidence", every=1)]
    with pytest.raises(
        ConfigError, match=r"^fit\.terms\.0: method='evidence' and loss\.energy with kind='mae'"
    ):
        fit(model, "nowhere.xyz", "nowhere.xyz", **quick, loss="mae", terms=terms)
    with pytest.raises(DataError, match="nowhere"):
        fit(model, "nowhere.xyz", "nowhere.xyz", **quick, terms=terms)


def test_names_of_parts_in_place_of_data(model, data, quick, tmp_path, monkeypatch):
    """A dict was unpacked, which gives its keys."""
    train, valid = data.split({"train": 16, "valid": 8})
    with pytest.raises(
        ConfigError, match=r"^fit: train is the text 'train', and there is no file.*fit\(model, \*\*parts"
    ):
        fit(model, train, valid, **quick)
    with pytest.raises(ConfigError, match="test is the text 'valid'"):
        fit(model, data, data, test="valid", **quick)
    monkeypatch.chdir(tmp_path)
    write_npz(data, "train.npz")
    Path("train.npz").rename("train")
    with pytest.raises(DataError, match="train"):  # a file of this name is read
        fit(model, "train", data, **quick)


def test_device_that_is_not_there(parts, model, quick):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA, so asking for it is no error")
    with pytest.raises(ConfigError, match=r"^fit\.device='cuda': PyTorch finds no CUDA"):
        fit(model, **parts, **quick, device="cuda")


def break_step(monkeypatch, at, action):
    """Do `action(training)` before step number `at`."""
    step = module.Training.step

    def broken(self, *arguments):
        if self.place.step == at:
            action(self)
        step(self, *arguments)

    monkeypatch.setattr(module.Training, "step", broken)


def poison(training):
    with torch.no_grad():
        next(training.model.parameters()).fill_(float("nan"))


def test_b7_a_loss_that_is_not_finite_names_step_and_structures(parts, model, quick, tmp_path, monkeypatch):
    break_step(monkeypatch, 5, poison)
    with pytest.raises(
        TrainingError,
        match=r"step 6 \(epoch 2\).*not finite.*structure \d+, structure \d+.*best model so far is in",
    ) as info:
        fit(model, **parts, **quick, out=tmp_path / "run")
    batch = module.Batches(parts["train"].connected(4.0), batch_size=4).epoch(1)[1]
    assert ", ".join(f"structure {k}" for k in batch) in str(info.value)
    kept = load(tmp_path / "run" / "model.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in kept.state_dict().values())


def test_b9_out_of_memory_says_how_much_was_asked(parts, model, quick, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(model.backbone, "forward", full)
    with pytest.raises(
        TrainingError,
        match=r"step 1: out of memory with a batch of 4 structures, \d+ atoms and \d+ edges on cpu",
    ):
        fit(model, **parts, **quick)


@pytest.mark.parametrize(
    "number,raised,code", [(signal.SIGTERM, SystemExit, 143), (signal.SIGINT, KeyboardInterrupt, None)]
)
def test_b12_signals_finish_the_step_save_and_leave(
    parts, make, quick, tmp_path, monkeypatch, number, raised, code
):
    whole = make.tiny()
    fit(whole, **parts, **quick)
    with monkeypatch.context() as patched:
        break_step(patched, 5, lambda training: os.kill(os.getpid(), number))
        with pytest.raises(raised) as info:
            fit(
                make.tiny(),
                **parts,
                **quick | {"logging": {"progress": False, "save_minutes": 60}},
                out=tmp_path / "run",
            )
    if code is None:
        kept = f"the state after step 6 is saved in {tmp_path / 'run'}; the same command goes on from there"
        assert str(info.value) == kept
    else:
        assert info.value.code == code
    assert module.StateFiles(tmp_path / "run").load()["place"]["step"] == 6
    model = make.tiny()
    fit(model, **parts, **quick, out=tmp_path / "run")
    assert equal(weights(model), weights(whole))


def test_an_interrupt_without_a_folder_says_that_nothing_is_kept(parts, model, quick, monkeypatch):
    break_step(monkeypatch, 0, lambda training: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=r"^nothing is kept; with out=… the state is saved"):
        fit(model, **parts, **quick, compute={"accelerate": False})


def test_tensorboard_files(parts, model, quick, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    fit(
        model,
        **parts,
        **quick | {"logging": {"progress": False, "loggers": ["tensorboard"]}},
        out=tmp_path / "run",
    )
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_tensorboard_asked_for_and_missing(parts, model, quick, tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tensorboard is not installed: pip install tensorboard"):
        fit(
            model,
            **parts,
            **quick | {"logging": {"progress": False, "loggers": ["tensorboard"]}},
            out=tmp_path / "run",
        )


def test_epochs_count_from_1_everywhere(parts, model, quick, tmp_path, capsys):
    result = fit(model, **parts, **quick | {"logging": {"progress": True}}, out=tmp_path)
    assert [row["epoch"] for row in result.history] == [1, 2]
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    losses = [row["valid_loss"] for row in result.history]
    assert result.best_epoch == 1 + losses.index(min(losses))
    assert str(result).startswith(f"best epoch {result.best_epoch} of 2")
    assert load(tmp_path / "model.safetensors").metadata["training"]["best_epoch"] == result.best_epoch
    assert "epoch 2" in capsys.readouterr().err


def test_progress_is_told(parts, model, quick, capsys):
    fit(model, **parts, **quick | {"logging": {"progress": True}})
    assert "epoch 2" in capsys.readouterr().err
    fit(model, **parts, **quick)
    assert capsys.readouterr().err == ""


def test_a_predicted_quantity_without_labels_is_an_error(parts):
    """A misnamed column of forces must not train on energies alone."""
    bare = {
        name: Dataset(
            [g.replace(targets={"energy": g.targets["energy"]}) for g in data], unused={"force": len(data)}
        )
        for name, data in parts.items()
    }
    backbone = EGNN(elements=parts["train"].elements, cutoff=3.0, channels=4, layers=1)
    with pytest.raises(ConfigError, match="no labels of 'forces'.*did you mean 'force'"):
        fit(Model(backbone, ["energy", "forces"]), **bare, epochs=1, logging={"progress": False})


def test_a_validation_loss_that_is_not_finite_is_an_error(parts):
    broken = parts["valid"][0]
    broken = broken.replace(
        targets=broken.targets
        | {"energy": torch.tensor([1e200], dtype=torch.float64)}  # its square is infinite
    )
    backbone = EGNN(elements=parts["train"].elements, cutoff=3.0, channels=4, layers=1)
    with pytest.raises(TrainingError, match="validation loss of energy is not finite.*structure 0"):
        fit(
            Model(backbone, ["energy", "forces"]),
            train=parts["train"],
            valid=Dataset([broken]),
            epochs=1,
            logging={"progress": False},
        )


def test_a_charge_that_the_model_does_not_take_is_told(parts):
    def charged(data):
        return Dataset(
            [g.replace(charge=torch.tensor([float(k % 2)], dtype=torch.float64)) for k, g in enumerate(data)]
        )

    backbone = EGNN(elements=parts["train"].elements, cutoff=3.0, channels=4, layers=1)
    with pytest.warns(DataWarning, match="charge of 0, 1 and the backbone does not take it.*charge=True"):
        fit(
            Model(backbone, ["energy"]),
            charged(parts["train"]),
            charged(parts["valid"]),
            epochs=1,
            logging={"progress": False},
        )


def test_a_loaded_model_keeps_its_scales(parts, tmp_path):
    backbone = EGNN(elements=parts["train"].elements, cutoff=3.0, channels=4, layers=1)
    fit(
        Model(backbone, ["energy", "forces"]),
        **parts,
        epochs=1,
        logging={"progress": False},
        out=tmp_path / "first",
    )
    model = load(tmp_path / "first" / "model.safetensors")
    scale, shift = float(model.heads["energy"].scale), model.heads["energy"].shift.clone()
    fit(model, parts["train"][:2], parts["valid"], epochs=1, logging={"progress": False})
    assert float(model.heads["energy"].scale) == scale and torch.equal(model.heads["energy"].shift, shift)
    fit(
        model,
        parts["train"][:2],
        parts["valid"],
        epochs=1,
        logging={"progress": False},
        normalization={"standardize": True},
    )
    assert float(model.heads["energy"].scale) != scale


def test_a_finished_training_says_so(parts, tmp_path, capsys):
    torch.manual_seed(0)
    for told in (False, True):
        backbone = EGNN(elements=parts["train"].elements, cutoff=3.0, channels=4, layers=1)
        fit(
            Model(backbone, ["energy", "forces"]),
            **parts,
            epochs=1,
            logging={"progress": False},
            out=tmp_path,
        )
        assert ("this training was finished already (all epochs)" in capsys.readouterr().out) == told


def crystals(**labels):
    """Copper with labels of EMT: forces, and what is asked for."""
    import ase.build
    from ase.calculators.emt import EMT
    from ase.calculators.singlepoint import SinglePointCalculator

    from molequi import from_atoms

    frames = []
    for k in range(6):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=k)
        atoms.calc = EMT()
        found = {name: atoms.calc.get_property(name, atoms) for name in ("energy", "forces")}
        virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
        kept = {name: value for name, value in found.items() if labels.get(name, True)}
        atoms.calc = SinglePointCalculator(atoms, **kept)
        if labels.get("virial"):
            atoms.info["virial"] = virial
        frames.append(atoms)
    return from_atoms(frames, keys=labels.get("keys"))


def copper(*predict):
    return Model(EGNN(elements=["Cu"], cutoff=3.5, channels=4, layers=1), predict)


FEW = {"epochs": 1, "logging": {"progress": False}}


def test_a_virial_that_is_not_read_is_said():
    data = crystals(virial=True)
    with pytest.warns(
        TrainingWarning, match=r"stress is predicted, and not trained: .* found 'virial'. Read it"
    ):
        fit(copper("energy", "forces", "stress"), data[:4], data[4:], **FEW)
    # What the message says to type works, without a warning.
    data = crystals(virial=True, keys={"stress": {"key": "virial", "virial": True}})
    result = fit(copper("energy", "forces", "stress"), data[:4], data[4:], **FEW)
    assert "valid_stress_rmse" in result.history[0]
    data = crystals()  # the control: nothing like a stress in the data
    fit(copper("energy", "forces", "stress"), data[:4], data[4:], **FEW)


def test_forces_alone():
    """No weight was given, so none is to be taken away; what the message says to type works."""
    data = crystals(energy=False)
    with pytest.raises(
        ConfigError,
        match=r"^predict has 'energy' and .* train the others alone with loss={'forces': 100}, or say",
    ):
        fit(copper("energy", "forces"), data[:4], data[4:], **FEW)
    result = fit(copper("energy", "forces"), data[:4], data[4:], loss={"forces": 100}, **FEW)
    assert "valid_forces_rmse" in result.history[0]
    with pytest.raises(ConfigError, match=r"^loss.energy is 1 and .* take loss.energy away, or say"):
        fit(copper("energy", "forces"), data[:4], data[4:], loss={"forces": 100, "energy": 1}, **FEW)
