"""The guard of dynamics: same trajectory, stops in time, frames to label, messages, command line."""

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule

import molequi as mq
from molequi.cli.program import main
from molequi.errors import ConfigError, ModelError, SimulationError, SimulationWarning
from molequi.last_layer import LaplaceEnsemble
from molequi.simulation.files import SimulationFiles
from molequi.simulation.guard import Watch, is_possible

DATA = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))
START = mq.to_atoms(DATA[0].replace(targets={}))


def model(seed=0):
    torch.manual_seed(seed)
    backbone = mq.PaiNN(elements=["C", "H", "O"], cutoff=3.0, channels=6, layers=1)
    made = mq.Model(backbone, ["energy", "forces"]).double().eval()
    made.standardize(DATA[:20].statistics(3.0))
    return made


@pytest.fixture(scope="module")
def trusted():
    return mq.laplace(model(), DATA[:20], DATA[20:40], progress=False)


def run(of, guard=None, limits=None, **options):
    options["limits"] = (limits or {}) | {"guard": guard}
    return mq.md(START, of, ensemble="nvt", progress=False, **({"steps": 40, "temperature": 300.0} | options))


def test_trajectory_is_that_without_a_guard_and_the_log_has_the_uncertainty(trusted):
    free, watched = run(trusted.mean_model), run(trusted, guard=1e3)
    assert np.array_equal(free.atoms.positions, watched.atoms.positions)
    last = mq.predict(trusted, [watched.atoms], progress=False)[0]["forces_std"].max()
    assert watched.history["forces_std"][-1] == pytest.approx(float(last), rel=1e-9)
    assert "forces_std" not in free.history


def test_between_two_looks_no_standard_deviation_is_computed(trusted, monkeypatch):
    calls = []
    forward = type(trusted).forward
    monkeypatch.setattr(type(trusted), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    run(trusted, guard={"max_std": 1e3, "every": 20}, every=20)
    assert len(calls) == 3  # steps 0, 20 and 40


def test_it_stops_and_writes_frames_to_label(trusted, tmp_path):
    level = float(run(trusted, guard=1e3, every=5, steps=60, temperature=400.0).history["forces_std"].max())
    with pytest.raises(
        SimulationError,
        match=r"step \d+: the force on atom .* of the guard.*The guard chose 3 frames to label: .*to_label.xyz",
    ) as found:
        run(
            trusted,
            guard={"max_std": 0.999 * level, "every": 5, "frames": 3},
            steps=60,
            temperature=400.0,
            out=tmp_path,
        )
    frames = ase.io.read(tmp_path / "to_label.xyz", ":")
    assert len(frames) == len(found.value.to_label) == 3
    assert all(f.calc is None and "uncertain" in f.info["reason"] for f in frames)
    steps = [int(f.info["step"]) for f in frames]
    assert steps == sorted(steps)
    std = mq.predict(trusted, frames, progress=False)
    assert [f.info["uncertainty"] for f in frames] == pytest.approx(
        [s["forces_std"].max() for s in std], rel=1e-4
    )


def test_physical_bounds_give_frames_too(trusted):
    with pytest.raises(
        SimulationError, match=r"the temperature is .* frames to label: `to_label` of this error"
    ) as found:
        run(trusted, guard={"max_std": 1e3, "every": 1}, limits={"max_heating": 1e-3}, steps=200)
    assert found.value.to_label and found.value.last_good is not None
    with pytest.raises(SimulationError, match="step 0: the force on atom"):
        run(trusted, guard=1e-9)


def test_ensembles_are_watched_too():
    many = mq.Ensemble([model(0), model(1)])
    with pytest.raises(SimulationError, match="of the guard"):
        run(many, guard=1e-9)
    with pytest.raises(
        ConfigError,
        match=r"limits={'guard': 'auto'} compares environments with the training data that mq.laplace",
    ):
        run(many, guard="auto")


def test_automatic_threshold_is_that_of_the_validation_data(trusted):
    found = Watch(mq.Guard(), mq.Calculator(trusted), None)
    largest = [float(trusted.distances(mq.connect(graph, 3.0)).max()) for graph in DATA[20:40]]
    assert found.limit == pytest.approx(1.2 * np.quantile(largest, 0.99), rel=1e-9)
    assert trusted.calibrated({"forces": 2.0}).metadata["laplace"]["distance"] == found.limit / 1.2


def test_automatic_guard_stops_at_new_environments_without_backward_passes(trusted, tmp_path, monkeypatch):
    """Frames of the training data pass, a bond that is too short does not."""

    def forward(*args, **options):
        raise AssertionError("a standard deviation was computed")

    monkeypatch.setattr(type(trusted), "forward", forward)
    saved = mq.load(mq.save(trusted, tmp_path / "sure.safetensors"))
    watch = Watch(mq.Guard(), mq.Calculator(saved), None)
    assert not any(watch.look(mq.to_atoms(graph), 2 * k, 0.0) for k, graph in enumerate(DATA[:20]))
    broken = START.copy()
    broken.set_distance(0, 1, 0.8 * broken.get_distance(0, 1), fix=0)
    problem = watch.look(broken, 1000, 0.0)
    assert "the environment of atom" in problem and "is unlike those of the training data" in problem
    assert watch.every == 2 and watch.look(broken, 1001, 0.0) == ""  # no time to look
    with pytest.raises(SimulationError, match=r"step 0: the environment of atom \d \([CHO]\)") as found:
        mq.md(broken, saved, ensemble="nvt", steps=5, limits={"guard": "auto"}, progress=False)
    assert len(found.value.to_label) == 1
    free = run(saved, guard="auto", steps=4, every=2)
    assert (free.history["distance"] < watch.limit).all() and "forces_std" not in free.history


def test_files_of_before_keep_no_environments(trusted, tmp_path):
    old = LaplaceEnsemble(trusted.mean_model, trusted.roots, trusted.scales)
    old = mq.load(mq.save(old, tmp_path / "old.safetensors"))
    with pytest.raises(ConfigError, match="this model has none; make it again with mq.laplace"):
        run(old, guard="auto")
    with pytest.raises(
        ModelError, match=r"keeps no features of its training data; wanted one that mq.laplace"
    ):
        old.distances(mq.connect(DATA[0], 3.0))


def waters(count):
    """Structures of water, and labels as those of `DATA` have it."""
    water = mq.from_atoms([molecule("H2O")])[0].replace(
        targets={"energy": DATA[0].targets["energy"], "forces": DATA[0].targets["forces"][:3]}
    )
    return [water.replace(pos=water.pos * (1 + 0.005 * k)) for k in range(count)]


def ethanols(count):
    keep = ("energy", "forces")
    return [g.replace(targets={name: g.targets[name] for name in keep}) for g in DATA[:count]]


def test_unknown_elements_stop_the_automatic_guard_and_are_labelled(tmp_path):
    """The model knows carbon, and no training structure of this one has any."""
    known = mq.Dataset(waters(20))
    of_water = mq.laplace(model(), known[:8], known[8:], progress=False)
    watch = Watch(mq.Guard(), mq.Calculator(of_water), None)
    assert watch.look(molecule("H2O"), 0, 0.0) == ""
    assert "atom 0 (C) is unlike those of the training data: its distance is inf" in watch.look(START, 4, 0.0)
    with pytest.raises(SimulationError, match="its distance is inf.*The guard chose 1 frames to label"):
        run(of_water, guard="auto", out=tmp_path)
    (frame,) = ase.io.read(tmp_path / "to_label.xyz", ":")
    assert frame.info["uncertainty"] == np.inf and np.array_equal(frame.numbers, START.numbers)


@pytest.mark.parametrize("guard", ["auto", 1e3])
def test_energies_below_those_of_the_training_are_told_under_a_guard_too(trusted, tmp_path, guard):
    """The record of them is in the file, which the trained model inside comes from."""
    saved = mq.load(mq.save(trusted, tmp_path / "sure.safetensors"))
    saved.metadata["lowest_energy"] = 100.0
    with pytest.warns(SimulationWarning, match="below that of every training structure"):
        run(saved, guard=guard, steps=1)


def test_elements_of_few_training_structures_are_known():
    """Structures are taken by chance, and none of those has carbon."""
    train = mq.Dataset([*waters(60), *ethanols(1)])
    sure = mq.laplace(model(), train, mq.Dataset(waters(80)[60:]), structures=10, progress=False)
    assert sure.environments.elements.tolist() == [1, 6, 8] and sure.metadata["laplace"]["train"] == 10
    assert torch.isfinite(sure.distances(mq.connect(DATA[0], 3.0))).all()


def test_validation_data_of_other_elements_give_no_threshold():
    sure = mq.laplace(model(), mq.Dataset(waters(10)), mq.Dataset(ethanols(10)), progress=False)
    with pytest.raises(ConfigError, match="and validation structures of the elements of the training"):
        run(sure, guard="auto")


def test_frames_that_nobody_can_label_are_left_out(trusted):
    watch = Watch(mq.Guard(), mq.Calculator(trusted), None)
    broken = START.copy()
    broken.positions[1] = broken.positions[0] + 0.1
    for step, frame in enumerate((START, broken)):
        watch._remember(frame, step, 0.0, 1.0)
    assert [f.info["step"] for f in watch.to_label("a test")] == [0] and is_possible(START)


def test_messages():
    with pytest.raises(
        ConfigError,
        match="guard: the calculator gives no standard deviation of the forces; wanted an Ensemble",
    ):
        run(model(), guard=0.3)
    broken = model()
    torch.nn.init.constant_(next(broken.parameters()), float("nan"))
    with pytest.raises(
        ConfigError, match="the predictions of energy, forces for the validation data are not"
    ):
        mq.laplace(broken, DATA[:20], DATA[20:40], progress=False)
    with pytest.raises(ConfigError, match="md.limits.guard"):
        run(model(), guard={"max_std": -1.0})
    with pytest.raises(ConfigError, match="md.limits.guard.every"):
        run(model(), guard={"every": 0})
    with pytest.raises(ConfigError, match="md.limits.guard: a guard is of one simulation"):
        mq.md_many(START, model(), replicas=2, steps=1, limits={"guard": 0.3}, progress=False)


def test_commands(trusted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mq.save(trusted.mean_model, "plain.safetensors")
    ase.io.write("start.xyz", molecule("CH3CH2OH"))
    cold = mq.shipped("ethanol_300K.xyz")
    assert (
        main(["laplace", "plain.safetensors", f"{cold}@:20", f"{cold}@20:40", "--out", "sure.safetensors"])
        == 0
    )
    assert "Laplace approximation of its last layers" in capsys.readouterr().out
    line = ["md", "sure.safetensors", "start.xyz", "--steps", "40", "--guard", "1e-9", "--guard-frames", "2"]
    assert main(line) == 2
    assert "1 frames to label" in capsys.readouterr().err
    assert (
        main(["select", "sure.safetensors", str(cold), "--n", "3", "--index", ":30", "--out", "picks.xyz"])
        == 0
    )
    assert "3 of 30 structures" in capsys.readouterr().out and len(ase.io.read("picks.xyz", ":")) == 3
    assert main(["finetune", "sure.safetensors", str(cold)]) == 2
    assert "has a Laplace approximation; name the file of the model without it" in capsys.readouterr().err
    with pytest.raises(ModelError, match="is a model with a Laplace approximation; wanted a single Model"):
        mq.merge([trusted, trusted])
    assert main(["info", "sure.safetensors"]) == 0
    assert "standard deviations: Laplace approximation, 8 directions" in capsys.readouterr().out
    assert main(["select", "sure.safetensors", str(cold)]) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert main(["laplace", "plain.safetensors", str(cold), str(cold), "--out", "x.pt"]) == 2
    assert "wanted a .safetensors file" in capsys.readouterr().err


def test_frames_of_an_earlier_call_are_kept_and_a_restart_removes_them(trusted, tmp_path):
    options = {"steps": 60, "temperature": 400.0, "out": tmp_path}
    level = float(run(trusted, guard=1e3, every=5, steps=60, temperature=400.0).history["forces_std"].max())
    guard = {"max_std": 0.999 * level, "every": 5}
    wanted = None
    for _ in range(2):
        with pytest.raises(SimulationError, match="frames to label") as found:
            run(trusted, guard=guard, **options)
        steps = [int(frame.info["step"]) for frame in ase.io.read(tmp_path / "to_label.xyz", ":")]
        wanted = steps if wanted is None else wanted
        assert steps == wanted == [f.info["step"] for f in found.value.to_label] and len(steps) > 3
    run(trusted, guard=1e3, resume="restart", **options)
    assert not (tmp_path / "to_label.xyz").exists()


@pytest.mark.parametrize("first", [True, False])
def test_the_log_keeps_its_columns_if_a_guard_is_added_or_left_out(trusted, tmp_path, first):
    plain, watched = (trusted.mean_model, {}), (trusted, {"limits": {"guard": 1e3}})
    crystal = START.copy()
    crystal.set_cell([12.0, 12.0, 12.0])
    crystal.pbc = True
    for steps, (of, more) in zip((20, 40), (watched, plain) if first else (plain, watched)):
        found = mq.md(crystal, of, ensemble="nvt", steps=steps, out=tmp_path, progress=False, **more)
    assert np.allclose(found.history["volume"], 12.0**3)
    assert ("forces_std" in found.history) == first
    if first:
        assert np.isfinite(found.history["forces_std"]).tolist() == [True, True, False]
    again = mq.md(crystal, of, ensemble="nvt", steps=40, out=tmp_path, progress=False, **more)
    assert np.array_equal(again.history["volume"], found.history["volume"])


def test_the_advice_fits_the_reason(trusted):
    """A shorter time step changes nothing where the model does not know the forces."""
    for limits in ({"guard": {"max_std": 1e-9, "every": 1}}, {"max_std": 1e-9}):
        with pytest.raises(SimulationError, match="is uncertain") as found:
            mq.md(START, trusted, steps=9, limits=limits, progress=False)
        assert "time step" not in str(found.value)
    begin = START.copy()
    simulation = mq.md(begin, trusted, steps=1, limits={"guard": 1e3}, progress=False)
    files = SimulationFiles(None, {"what": "md"}, "auto")
    unsure = str(files.explosion(simulation.atoms, 1, "x", unknown=True))
    assert unsure.endswith(
        "Train on such structures, or stay nearer to the training data, at a lower temperature"
    )
    assert str(files.explosion(simulation.atoms, 1, "x")).endswith(
        "Use a shorter time step, or train on such structures"
    )
    relaxing = SimulationFiles(None, {"what": "relax"}, "auto").explosion(simulation.atoms, 1, "x")
    assert "time step" not in str(relaxing) and "Begin at another structure" in str(relaxing)
