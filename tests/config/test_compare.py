"""Networks trained for the same processor time: budgets, failures, resumption, and data whose answer is known."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read as ase_read
from ase.io import write as ase_write

import molequi as mq
from molequi.approximate.equivariance_errors import equivariance_errors
from molequi.cli import main
from molequi.config import candidates as candidates_module
from molequi.config.candidates import with_cutoff
from molequi.config.names import Names
from molequi.config.schema import read_config
from molequi.errors import ConfigError, DataError
from molequi.inference.comparisons import Comparison
from molequi.inference.structure_errors import structure_errors
from molequi.symmetry import random_orthogonal
from molequi.training import clock

from ..morse_kit import morse, pair_energy

module = sys.modules["molequi.config.compare"]
QUICK = ["train.logging.progress=false"]


def write(path, graphs, *, rotate, seed=0):
    """Frames of the data, all as they are or each in a random orientation, with forces that follow."""
    random, frames = torch.Generator().manual_seed(seed), []
    for graph in graphs:
        turn = random_orthogonal(3, generator=random) if rotate else torch.eye(3, dtype=torch.float64)
        atoms = Atoms(graph.z.tolist(), (graph.pos @ turn.T).numpy())
        atoms.info["energy"] = float(graph.targets["energy"])
        atoms.arrays["forces"] = (graph.targets["forces"] @ turn.T).numpy()
        frames.append(atoms)
    ase_write(path, frames, format="extxyz")


def chains(count, seed):
    """Three atoms of hydrogen in a row along z, with the energy and forces of a Morse potential."""
    random, graphs = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        noise = torch.randn(3, 3, generator=random, dtype=torch.float64) * torch.tensor([0.003, 0.003, 0.03])
        pos = (0.78 * torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 2]]) + noise).requires_grad_()
        energy = pair_energy(pos, torch.ones(3, dtype=torch.long))
        (forces,) = torch.autograd.grad(-energy, pos)
        targets = {"energy": energy.detach().reshape(1), "forces": forces}
        graphs.append(mq.Graph.single(pos.detach(), ["H"] * 3, targets=targets))
    return mq.Dataset(graphs)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("upright.xyz", chains(40, 0), rotate=False)
    write("turned.xyz", chains(40, 0), rotate=True)
    (tmp_path / "small.yaml").write_text(
        "data: {extxyz: {path: upright.xyz, split: {train: 24, valid: 8, test: 8}}}\n"
        "backbone: {EGNN: {channels: 8, layers: 2, radial: 6, cutoff: 4.0}}\npredict: [energy, forces]\n"
        "train: {epochs: 99, batch_size: 8, lr: 1e-2, logging: {progress: false}}\n"
    )
    # The audit at the end of each training takes longer than these trainings.
    monkeypatch.setattr("molequi.training.symmetry.measure_symmetry", lambda *_: None)
    monkeypatch.setitem(candidates_module.SIZES, "Transformer", {"channels": 8, "layers": 1, "vectors": 2})
    monkeypatch.setitem(candidates_module.SIZES, "RelaxedEGNN", {"channels": 4, "layers": 1})
    return tmp_path / "small.yaml"


TINY = dict(networks=["EGNN", "Transformer"], minutes=0.005, seeds=[0], rates=[1.0], simulate=0)


@pytest.fixture
def trainings(monkeypatch):
    """What was trained: options and results."""
    seen = []
    train_model = module.train_model

    def watched(model, parts, options, *rest):
        result = train_model(model, parts, options, *rest)
        seen.append((model, parts, options, result))
        return result

    monkeypatch.setattr(module, "train_model", watched)
    return seen


@pytest.fixture
def fake_clock(monkeypatch):
    """Processor time in which nothing takes time but a forward pass: 1 s for EGNN, 0.5 s for the Transformer."""
    now = [0.0]
    forward = mq.Model.forward

    def counted(self, graph, *rest, **more):
        now[0] += {"EGNN": 1.0, "Transformer": 0.5}.get(type(self.backbone).__name__, 2.0)
        return forward(self, graph, *rest, **more)

    monkeypatch.setattr(mq.Model, "forward", counted)
    monkeypatch.setattr(clock, "processor_seconds", lambda: now[0])
    return now


def test_a_strict_network_wins_in_orientations_that_were_not_trained(run, fake_clock):
    """The other data are all structures in random orientations. In one orientation nothing is said about others: the
    errors of a strict network are the same in both, and an unconstrained one has to fail."""
    options = TINY | {"minutes": 2}
    found = mq.compare(run, ["predict=[{Vector: forces}]"], **options, other="turned.xyz")
    ranking = found.ranking("other")
    assert ranking.order == ["EGNN", "Transformer"] and ranking.tied == ["EGNN"]
    strict, free = (found.of(name)[0] for name in ("EGNN", "Transformer"))

    def errors(name):
        file = f"runs/small-compare/{name}/n24-s0/model.safetensors"
        return [mq.evaluate(file, f"{data}.xyz")["forces_rmse"] for data in ("upright", "turned")]

    upright, turned = errors("EGNN")
    assert turned == pytest.approx(upright, rel=1e-3)
    upright, turned = errors("Transformer")
    assert turned > 2 * upright
    assert strict.symmetry["rotation"] < 1e-12 < 1e-2 < free.symmetry["rotation"]
    assert {one.name: one.kind for one in found.networks} == {
        "EGNN": "strict",
        "Transformer": "unconstrained",
    }


def test_budgets_are_equal_in_counted_time(run, fake_clock, trainings):
    found = mq.compare(run, networks=["EGNN", "Transformer"], minutes=1, seeds=[0], rates=[1], simulate=0)
    for trial, cost in zip(found.trials, (1.0, 0.5)):
        # An epoch is three steps and one validation: four forward passes. The budget is overrun by a step at most.
        passes = trial.steps + (trial.steps - 1) // 3
        assert 60.0 <= passes * cost <= 60.0 + cost
        assert trial.seconds == pytest.approx(passes * cost)
    assert found.trials[1].steps > 1.9 * found.trials[0].steps
    assert [options.epochs for _, _, options, _ in trainings] == [None, None]
    assert all(options.compute.clock == "processor" for _, _, options, _ in trainings)


def test_a_failure_is_a_row_and_the_others_go_on(run, capsys):
    own = {"Diverges": {"backbone": {"EGNN": {"channels": 8, "layers": 1}}, "train": {"lr": 1e30}}}
    found = mq.compare(run, own=own, **TINY)
    failed = found.of("Diverges")[0]
    assert "not finite" in failed.failed and not failed.errors
    assert found.recommendation in ("EGNN", "Transformer") and len(found.trials) == 3
    assert "Not ranked, since a training failed: Diverges." in str(found)
    assert "Diverges failed: " in capsys.readouterr().out
    again = mq.compare(run, own=own, **TINY)  # a failure is not tried again
    assert again.trials == found.trials
    assert "Diverges/n24-s0/trial.json to try it again" in capsys.readouterr().out


def test_memory_that_is_not_enough_is_a_failure_and_a_bug_is_not(run, monkeypatch):
    def no_memory(*arguments):
        raise MemoryError

    monkeypatch.setattr(module, "train_model", no_memory)
    found = mq.compare(run, **TINY)
    assert {one.failed for one in found.trials} == {"out of memory"}
    assert not list(run.parent.glob("runs/**/trial.json"))  # the next time there may be more

    def bug(*arguments):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(module, "train_model", bug)
    with pytest.raises(RuntimeError, match="shapes differ"):
        mq.compare(run, out="other", **TINY)


def test_an_interrupted_comparison_goes_on(run, fake_clock, trainings, monkeypatch, capsys):
    options = TINY | {"seeds": [0, 1], "minutes": 0.5}
    whole = mq.compare(run, out="whole", **options)
    assert len(trainings) == 4
    trainings.clear()
    train_model, calls = module.train_model, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train_model(*arguments)

    monkeypatch.setattr(module, "train_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mq.compare(run, out="part", **options)
    kept = Comparison.from_json((run.parent / "part" / "comparison.json").read_text())
    assert [one.network for one in kept.trials] == ["EGNN", "EGNN"]
    again = mq.compare(run, out="part", **options)
    assert len(trainings) == 4  # the three before, and the fourth
    assert [t.errors for t in again.trials] == [t.errors for t in whole.trials]
    assert "done before" in capsys.readouterr().out
    more = mq.compare(run, out="part", **options | {"seeds": [0, 1, 2]})
    assert len(trainings) == 6 and len(more.trials) == 6
    with pytest.raises(ConfigError, match="holds a training with other settings") as error:
        mq.compare(run, out="part", **options | {"minutes": 1})
    more = "--networks EGNN Transformer --minutes 1 --rates 1.0 --simulate 0"  # seeds are those by default
    assert f"molequi compare {run} {more} --out part-2" in str(error.value)
    assert f"molequi compare {run} train.resume=restart {more} --out part" in str(error.value)


def test_the_learning_rate_is_that_of_the_best_short_training(run, fake_clock, trainings):
    found = mq.compare(run, **TINY | {"minutes": 1, "rates": [0.001, 1.0]})
    short = [(m, o, r) for m, _, o, r in trainings if o.max_minutes == 0.25]
    assert [type(m.backbone).__name__ for m, _, _ in short] == ["EGNN"] * 2 + ["Transformer"] * 2
    for trial, pair in zip(found.trials, (short[:2], short[2:])):
        best = min(pair, key=lambda one: one[2].errors["valid"]["forces_mae"])
        assert trial.lr == best[1].lr == 0.01 and f"lr {trial.lr:g}" in str(found)
    assert "the highest learning rate that was tried was the best of EGNN and Transformer" in str(found)


def test_sizes_and_terms(run, fake_clock, trainings):
    found = mq.compare(
        run, **TINY | {"networks": ["RelaxedEGNN", "Transformer+rotations"], "sizes": [8], "minutes": 0.5}
    )
    assert [len(parts["train"]) for _, parts, _, _ in trainings] == [8, 24, 8, 24]
    assert set(trainings[0][1]["train"].origins) == set(trainings[2][1]["train"].origins)
    assert [o.validation.every for _, _, o, _ in trainings] == [3, 1, 3, 1]
    assert [type(t).__name__ for t in trainings[0][2].terms] == ["EquivarianceRegularizer", "Stopwatch"]
    assert [type(t).__name__ for t in trainings[2][2].terms] == ["Augmentation", "Stopwatch"]
    assert [one.kind for one in found.networks] == ["approximate", "unconstrained"]
    assert found.sizes == [8, 24] and "With 8 structures:" in str(found)
    kept = read_config(
        run.parent / "runs" / "small-compare" / "Transformer+rotations" / "n24-s0" / "config.yaml"
    )
    assert kept["train"]["terms"] == ["Augmentation"] and "Transformer" in kept["backbone"]


def test_what_is_measured(run, trainings):
    found = mq.compare(run, **TINY | {"minutes": 0.02, "simulate": 20}, other="turned.xyz")
    model, parts, _, result = trainings[0]
    trial = found.trials[0]
    assert trial.errors["test"]["forces"] == result.errors["test"]["forces_mae"]
    for quantity, name in (("forces", "forces_mae"), ("energy", "energy_per_atom_mae")):
        table = np.array(structure_errors(model, parts["test"], quantity))
        assert table[:, 0].sum() / table[:, 1].sum() == pytest.approx(result.errors["test"][name])
    assert np.array(trial.sums["test"])[:, 1].tolist() == [9.0] * 8
    assert trial.curve[-1][1] == result.history[-1]["valid_forces_mae"]
    assert trial.step is not None and 0 < trial.step * trial.steps < trial.seconds
    assert trial.drift is not None and trial.drift["steps"] == 20
    assert trial.seconds >= 1.2 and found.clock == "processor"
    folder = run.parent / "runs" / "small-compare"
    assert {"comparison.json", "comparison.csv", "comparison.html", "comparison.png", "run.log"} <= {
        path.name for path in folder.iterdir()
    }
    assert json.loads((folder / "comparison.json").read_text())["quantity"] == "forces"
    assert "Recommended: " in (folder / "comparison.html").read_text()


def test_clouds_get_a_cutoff_that_loses_no_neighbor(shipped):
    data = mq.read_points(shipped / "shapes.npz", part="test", centroid=True)[:6]
    backbone = with_cutoff({"NequIP": {"cutoff": None, "k": 8}}, data, Names())
    cutoff = backbone["NequIP"]["cutoff"]
    edges = [sum(data.connected(c, k=8).graphs.edge_counts) for c in (None, cutoff, 0.5 * cutoff)]
    assert edges[0] == edges[1] > edges[2]
    kept = {"EGNN": {"cutoff": None, "k": 8}}
    assert with_cutoff(kept, data, Names()) == kept
    assert with_cutoff({"NequIP": {"cutoff": 3.0}}, data, Names()) == {"NequIP": {"cutoff": 3.0}}


def test_the_command_takes_data_and_runs(run, capsys):
    words = ["--networks", "EGNN", "Transformer", "--minutes", "0.005", "--seeds", "0", "--rates", "1"]
    words += ["--simulate", "0"]
    assert main(["compare", "small.yaml", *words]) == 0
    assert "Recommended: " in capsys.readouterr().out
    table = "smiles,y\n" + "".join(f"{'C' * (1 + k % 12)}{'O' * (1 + k // 12)},{k}\n" for k in range(24))
    (run.parent / "mine.csv").write_text(table)
    assert main(["compare", "mine.csv", "--target", "y", *words, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "Recommended: " in out and "y MAE" in out
    assert (run.parent / "runs" / "mine-compare" / "comparison.json").exists()
    assert main(["compare", "small.yaml", *words, "train.epochs=3"]) == 2
    assert "train.epochs is the same for all networks" in capsys.readouterr().err
    assert main(["compare", "mine.csv", *words]) == 2
    assert "molequi compare mine.csv --target y" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words,message",
    [
        ("--networks EGNN Transfromer", "networks: no backbone 'Transfromer'; did you mean 'Transformer'"),
        ("--networks EGNN", "wanted two or more to compare"),
        ("--networks EGNN EGNN", "networks: 'EGNN' occurs twice"),
        ("--networks EGNN NequIP --column y", "--column: small.yaml is a YAML file"),
        ("--minutes 0", "--minutes: found 0 .int.; wanted greater than 0"),
        ("--seeds 0 0", "--seeds 0 0; wanted different whole numbers from 0"),
        ("--sizes 24", "--sizes 24, and there are 24 training structures; wanted smaller numbers"),
        ("--rates 1 1", "--rates 1 1; wanted different factors of the learning rate above zero"),
        ("--other nothing.xyz", "nothing.xyz"),
        ("pretrain=gfn2-xtb", "compare: the section pretrain is for one network"),
    ],
)
def test_mistakes(run, capsys, words, message):
    assert main(["compare", "small.yaml", *words.split()]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (run.parent / "runs").exists()


def test_mistakes_from_python(run):
    for options, message in (
        ({"seeds": []}, "seeds is empty"),
        ({"own": {"mine": {"EGNN": {}}}}, "own.'mine'.: found EGNN; wanted the sections backbone"),
        ({"target": ["forces"]}, "target describes a file of data, and this is a run"),
        ({"networks": ["EGNN", "NequIP"], "own": {"mine": {"backbone": {"NequIP": {"l_max": 9}}}}}, "l_max"),
    ):
        with pytest.raises(ConfigError, match=message):
            mq.compare(run, **{"minutes": 0.01, **options})
    with pytest.raises(ConfigError, match="members"):
        mq.compare("upright.xyz", members=2)


def test_networks_that_do_not_fit_are_left_out_and_named(run, capsys):
    """Of the default networks those are left out that cannot be built; named ones are an error."""
    settings = read_config(run)
    settings["backbone"] = {"EGNN": {"channels": 8, "layers": 1, "inputs": {"velocity": True}}}
    options = module.CompareOptions(simulate=0)
    parts = {"train": morse(4), "valid": morse(2)}
    job = module._Job(settings, Names(), options, parts, run.parent, "processor")
    broken = module.Candidate("MACE", {"MACE": {"cutoff": 5.0, "l_max": 1, "l_out": 3}})
    good = [module.Candidate(name, {name: {"cutoff": 5.0}}) for name in ("EGNN", "PaiNN")]
    ready, left_out = module._fitting(job, [*good, broken], False)
    assert [one.name for one, _ in ready] == ["EGNN", "PaiNN"] and "l_out" in left_out["MACE"]
    assert "MACE is left out: " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="fewer than two networks can be trained on these data .MACE: "):
        module._fitting(job, [good[0], broken], False)


def plane(count, seed=0):
    """Triangles in the plane, with their area."""
    random, graphs = torch.Generator().manual_seed(seed), []
    area = mq.Quantity("area", per="graph", rank=0, unit="Å²")
    for _ in range(count):
        pos = torch.randn(3, 2, generator=random, dtype=torch.float64)
        a, b = pos[1] - pos[0], pos[2] - pos[0]
        label = (0.5 * (a[0] * b[1] - a[1] * b[0])).abs().reshape(1)
        graphs.append(mq.Graph.single(pos, ["H"] * 3, targets={"area": label}))
    return mq.Dataset(graphs, quantities={"area": area})


def test_networks_that_refuse_the_plane_are_left_out_before_a_training(run):
    """Six default networks take any dimension by their constructors, and four of them refuse in `forward`."""
    settings = read_config(run)
    settings |= {"backbone": {"EGNN": {"channels": 8, "layers": 1}}}
    settings["predict"] = [{"name": "area", "per": "graph", "rank": 0, "unit": "Å²"}]
    parts = {"train": plane(8), "valid": plane(4, 1)}
    job = module._Job(settings, Names(), module.CompareOptions(), parts, run.parent, "processor")
    chosen = candidates_module.candidates(module.NETWORKS[:6], {}, settings, Names())
    ready, left_out = module._fitting(job, chosen, False)
    assert [one.name for one, _ in ready] == ["EGNN", "PaiNN"]
    assert set(left_out) == {"So3krates", "GauntACE", "MACE", "NequIP"}
    assert all("3 dimensions" in reason for reason in left_out.values())


def test_labels_are_missed_before_the_first_training(run, trainings):
    write("bare.xyz", chains(4, 1), rotate=False)
    frames = ase_read("bare.xyz", ":")
    for frame in frames:
        frame.calc = None
    ase_write("bare.xyz", frames, format="extxyz")
    with pytest.raises(DataError, match="bare.xyz.*no labels of 'forces', whose errors decide"):
        mq.compare(run, other="bare.xyz", **TINY)
    with pytest.raises(DataError, match="bare.xyz.*the test data have no labels of 'forces'"):
        mq.compare(
            run,
            ["data.extxyz.split={train: 24, valid: 8}", "data.test={extxyz: {path: bare.xyz}}"],
            out="other",
            **TINY,
        )
    assert not trainings


def test_predictions_that_are_not_finite_are_a_failure(run, monkeypatch):
    def broken(model, data, quantity):
        wrong = np.nan if type(model.backbone).__name__ == "EGNN" else 1.0
        return [[wrong, 9.0]] * len(data)

    monkeypatch.setattr(module, "structure_errors", broken)
    found = mq.compare(run, **TINY)
    assert (
        found.of("EGNN")[0].failed == "not finite on the test data" and found.recommendation == "Transformer"
    )


def test_a_restart_trains_again(run, trainings):
    first = mq.compare(run, **TINY)
    mq.compare(run, **TINY)
    assert len(trainings) == 2
    second = mq.compare(run, ["train.resume=restart"], **TINY)
    assert len(trainings) == 4 and len(second.trials) == len(first.trials)


def test_nothing_is_compiled_and_one_process_works(run, trainings, capsys):
    settings = read_config(run)
    settings["train"]["compute"] = {"accelerate": True, "workers": 2}
    mq.compare(settings, out="out", **TINY)
    assert {(o.compute.accelerate, o.compute.workers) for _, _, o, _ in trainings} == {(False, 0)}
    said = "have equal minutes and seeds: train.epochs, train.compute.accelerate, train.compute.workers"
    assert capsys.readouterr().out.count(said) == 1


def test_less_than_an_epoch_is_called_so(run, fake_clock):
    found = mq.compare(run, **TINY | {"minutes": 1.5 / 60})
    assert [(one.steps, one.epochs) for one in found.trials] == [(2, 2 / 3), (3, 1.0)]
    assert "for EGNN the time was not enough to see each structure once" in str(found)


@pytest.mark.parametrize(
    "option",
    [
        "epochs=3",
        "seed=4",
        "max_minutes=1",
        "validation.patience=3",
        "compute={clock: wall}",
        "compute.workers=2",
    ],
)
def test_options_without_effect_are_refused(run, option):
    name = option.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"train\.{name}.* is the same for all networks"):
        mq.compare(run, [f"train.{option}"], **TINY)
    train = {"epochs": 3}
    for above, below in (n.split(".") for n in [name] if "." in n):
        train = {above: {below: 1}}
    with pytest.raises(ConfigError, match=r"own\['mine'\]: train\..* is the same for all networks"):
        mq.compare(run, own={"mine": {"backbone": "EGNN", "train": train}}, **TINY)


def test_options_of_own_networks_are_merged_with_those_of_the_run():
    run = {"lr": 1, "optimizer": {"name": "adam", "clip": 5, "ema": 0.9}, "loss": {"energy": 1, "forces": 2}}
    found = candidates_module.merged(run, {"optimizer": {"clip": 9}, "loss": {"energy": 3}})
    assert found == {"lr": 1, "optimizer": {"name": "adam", "clip": 9, "ema": 0.9}, "loss": {"energy": 3}}
    found = candidates_module.merged(run, {"optimizer": {"name": "soap"}})
    assert found["optimizer"] == {"name": "soap"} and run["optimizer"]["clip"] == 5


def test_candidates():
    def of(*names, backbone=None, train=None, own=None):
        settings = {"backbone": backbone or {"EGNN": {}}, "train": train or {}}
        return candidates_module.candidates(names, own or {}, settings, Names())

    flat, _ = of("EGNN", "PointHierarchy", backbone={"PointHierarchy": {"channels": 24}})
    assert (flat.backbone["EGNN"]["cutoff"], flat.backbone["EGNN"]["k"]) == (None, 8)  # k by default
    regular = [{"EquivarianceRegularizer": {"weights": {"rotation": 1.0}}}, "Augmentation"]
    for one in of("RelaxedEGNN", "Transformer+rotations", train={"terms": regular}):
        assert one.train["terms"] == regular
    for names, message in (
        (("a b", "a_b"), "'a b' and 'a_b' would have the same folder"),
        (("A", "a"), "'A' and 'a' would have the same folder"),
        (("",), "'' is no name of a network"),
        (("..",), "'..' is no name of a network"),
    ):
        with pytest.raises(ConfigError, match=message):
            of("EGNN", "PaiNN", own={name: {"backbone": "EGNN"} for name in names})


@pytest.mark.parametrize(
    "group,kind",
    [
        ("O(n)", "strict"),
        ("SO(3)", "strict"),
        ("Oh", "approximate"),
        ("O(n-1)", "approximate"),
        ("C1", "unconstrained"),
    ],
)
def test_networks_of_some_rotations_are_not_strict(group, kind):
    model = SimpleNamespace(group=group, named_modules=list)
    assert candidates_module.kind_of(model, {}) == kind


def test_predictions_that_are_not_finite_have_no_finite_errors():
    data = morse(3)
    model = mq.Model(mq.EGNN(elements=["H", "O", "C"], channels=4, layers=1), ["energy", "forces"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    turned = equivariance_errors(model, data, symmetries=["rotation"])
    assert np.isnan(turned["rotation", "forces"].relative_error)
    assert np.isnan(np.array(structure_errors(model, data, "forces"))[:, 0]).all()
