"""Compiled models against plain ones. Most tests trace the differentiation as always and run what was traced as it is (torch's backend "eager")."""

import copy
import importlib
import shutil
import threading
from collections import Counter

import ase
import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import AccelerateError, ConfigError, ModelError
from molequi.graph import collate
from molequi.models import BACKBONES, Backbone
from molequi.nn.radial import edges_of

program = importlib.import_module("molequi.accelerate")      # the name in the package is the function
ELEMENTS = ["H", "C", "O"]
SMALL = {
    "EGNN": dict(channels=8, layers=2), "GauntACE": dict(channels=4, radial=4, l_max=2), "MACE": dict(channels=4, radial=4, l_max=1, radial_hidden=(8,), correlation=2),
    "NequIP": dict(channels=4, layers=2, l_max=1, radial=4, radial_hidden=(8,)), "PaiNN": dict(channels=8, layers=2, radial=6),
}


@pytest.fixture(autouse=True)
def without_compiler(request, monkeypatch):
    """Counts what is compiled, under the backend that needs no C++."""
    counts = Counter()
    if "cpp" not in request.fixturenames:
        from torch._dynamo.backends.registry import lookup_backend

        def backend(graph, inputs, **options):
            counts["compiled"] += 1
            return lookup_backend("eager")(graph, inputs, **options)

        monkeypatch.setattr(program, "BACKEND", backend)
    torch._dynamo.reset()
    return counts


def molecule(seed: int, atoms: int = 5, *, cell: float | None = None, spread: float = 1.6):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.randn(atoms, 3, generator=generator, dtype=torch.float64) * spread
    z = torch.tensor([1, 6, 8])[torch.randint(3, (atoms,), generator=generator)]
    return mq.Graph.single(pos, z, cell=None if cell is None else torch.eye(3, dtype=torch.float64) * cell + 0.1, pbc=None if cell is None else True)


def batch(*graphs, cutoff=4.0):
    return collate([mq.connect(g, cutoff) for g in graphs])


def small(name: str, predict=("energy", "forces"), dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = mq.Model(BACKBONES[name](elements=ELEMENTS, cutoff=4.0, **(SMALL[name] | options)), predict).to(dtype)
    model.backbone.mean_neighbors.fill_(4.0)
    return model


def both(model, graph):
    """Outputs, and the gradients of all parameters by a loss on all of them, of the model as it is."""
    model.zero_grad()
    out = model.train()(graph)
    loss = sum(torch.where(torch.isfinite(v), v, 0.0).double().square().sum() for v in out.values())
    loss.backward()
    return {n: v.detach() for n, v in out.items()}, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(model, graph, tolerance=1e-10):
    """In training, gradients included, and in evaluation."""
    fast, gradients = both(model, graph)
    evaluated = model.eval()(graph)
    kept, model.program = model.program, None
    plain, wanted = both(model, graph)
    model.program = kept
    assert fast.keys() == plain.keys() == evaluated.keys()
    for name in plain:
        scale = float(torch.nan_to_num(plain[name]).abs().max()) or 1.0
        torch.testing.assert_close(fast[name], plain[name], rtol=0, atol=tolerance * scale, equal_nan=True)
        torch.testing.assert_close(evaluated[name], plain[name], rtol=0, atol=tolerance * scale, equal_nan=True)
        assert not evaluated[name].requires_grad
    scale = max((float(g.abs().max()) for g in wanted.values()), default=1.0) or 1.0
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients.get(name, torch.zeros_like(gradient)), gradient, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_after_changes_of_size(name, without_compiler, capsys):
    """Energies, forces, stress, and gradients of a loss on all of them (so of forces and stress), for structures that the program was not compiled for."""
    model = mq.accelerate(small(name, ("energy", "forces", "stress")))
    same(model, batch(molecule(0, 6), molecule(1, 4)))
    assert without_compiler["compiled"] == 2      # training and evaluation
    before = without_compiler["compiled"]
    for graph in (batch(molecule(2, 7)), batch(molecule(3, 1)), batch(molecule(4, 3, spread=40.0)), batch(*(molecule(k, 2 + k) for k in range(5))),
                  batch(molecule(5, 1), molecule(6, 6), molecule(7, 3, spread=40.0))):
        same(model, graph)
    assert without_compiler["compiled"] == before
    told = capsys.readouterr()
    assert told.err.count(f"compiling {name} for") == 2 and not told.out


@pytest.mark.parametrize("name", ["GauntACE", "PaiNN"])
def test_periodic_structures_smaller_than_the_cutoff(name):
    model = mq.accelerate(small(name, ("energy", "forces", "stress")))
    same(model, batch(molecule(0, 3, cell=3.1), molecule(1, 2, cell=3.3)))
    same(model, batch(molecule(2, 2, cell=3.2), molecule(3, 5)))      # and one that is not periodic
    same(model, batch(molecule(4, 1, cell=3.0)))


def test_float32():
    same(mq.accelerate(small("GauntACE", dtype=torch.float32)), batch(molecule(0, 6), molecule(1, 4)), 1e-4)


def test_more_neighbours_take_another_program_of_which_there_are_few(without_compiler, monkeypatch):
    model = mq.accelerate(small("EGNN")).eval()
    for atoms in (4, 5, 9, 12, 13, 14, 15, 16):
        model(batch(molecule(atoms, atoms, spread=0.8)))
    assert 1 < without_compiler["compiled"] <= 5
    monkeypatch.setattr(program, "LIMIT", without_compiler["compiled"])
    with pytest.raises(AccelerateError, match="programs have been compiled for this model.*call mq.accelerate"):
        model(batch(molecule(0, 40, spread=0.8)))


def test_charge_spin_and_what_is_given():
    model = mq.accelerate(small("PaiNN", charge=True, spin=True, node_features=2, node_vectors=1))
    graphs = [molecule(k, 4).replace(charge=torch.tensor([float(k)]), spin=torch.tensor([1.0]), x=torch.randn(4, 2, dtype=torch.float64),
                                     vec=torch.randn(4, 1, 3, dtype=torch.float64)) for k in range(3)]
    same(model, batch(*graphs))
    same(model, batch(graphs[0]))


@pytest.mark.parametrize("predict", [
    ["energy", "forces", "dipole"], ["gap"], [mq.Quantity(name="kind", classes=("a", "b"))],
    [mq.Quantity(name="alpha_tensor", per="graph", rank=2, unit="Å^3", extensive=True)], ["energy", mq.heads.Vector("forces")],
])
def test_other_heads_and_models_without_gradients(predict):
    same(mq.accelerate(small("PaiNN", predict)), batch(molecule(0, 6), molecule(1, 4)))


def test_nearest_neighbours_of_clouds():
    torch.manual_seed(0)
    model = mq.accelerate(mq.Model(mq.EGNN(elements=[0], cutoff=None, k=3, channels=8, layers=2), [mq.Quantity(name="kind", classes=("a", "b"))]).double())
    clouds = [mq.connect(mq.Graph.single(torch.randn(n, 3, dtype=torch.float64)), None, 3) for n in (7, 9)]
    same(model, collate(clouds))


def test_weights_are_inputs(without_compiler, tmp_path):
    """Training goes on, weights are loaded, copies are made: without compiling again, and each answers with its own weights."""
    model = mq.accelerate(small("GauntACE"))
    graph = batch(molecule(0, 6), molecule(1, 4))
    first = model.eval()(graph)["energy"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    assert (other(graph)["energy"] - first).abs().max() > 1e-4 and torch.equal(model(graph)["energy"], first)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(graph)["energy"], other(graph)["energy"])
    assert without_compiler["compiled"] == 1
    mq.save(model, tmp_path / "m.safetensors")
    loaded = mq.load(tmp_path / "m.safetensors")
    assert loaded.program is None
    torch.testing.assert_close(loaded(graph)["energy"], model(graph)["energy"])
    same(model.float(), graph, 1e-4)
    assert mq.accelerate(model, on=False).program is None


def test_grad_modes_and_threads():
    model = mq.accelerate(small("EGNN")).eval()
    graph = batch(molecule(0, 6))
    wanted = model(graph)["forces"]
    with torch.no_grad():
        torch.testing.assert_close(model(graph)["forces"], wanted)
    with torch.inference_mode():
        torch.testing.assert_close(model(batch(molecule(0, 6)))["forces"], wanted)
    found = []
    threads = [threading.Thread(target=lambda: found.append(model(graph)["forces"])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(torch.equal(f, wanted) for f in found)


def test_ensemble(without_compiler):
    members = [small("EGNN") for _ in range(2)]
    with torch.no_grad():
        for p in members[1].parameters():
            p.mul_(0.9)
    ensemble = mq.Ensemble(members)
    graph = batch(molecule(0, 6))
    plain = ensemble(graph)
    fast = mq.accelerate(ensemble)(graph)
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], rtol=1e-9, atol=1e-11)
    assert without_compiler["compiled"] == 1 and float(fast["energy_spread"]) > 0


def test_calculator_molecule_and_crystal():
    model = small("GauntACE")
    for atoms in (ase.Atoms("CH4", [[0, 0, 0], [0.6, 0.6, 0.6], [-0.6, -0.6, 0.6], [0.6, -0.6, -0.6], [-0.6, 0.6, -0.6]]),
                  ase.Atoms("CO", [[0, 0, 0], [1.5, 1.4, 1.3]], cell=[3.1, 3.2, 3.3], pbc=True)):
        plain, fast = mq.Calculator(model), mq.Calculator(model, accelerate=True)
        for shift in (0.0, 0.05):
            atoms.positions[0, 0] += shift
            assert abs(plain.get_potential_energy(atoms) - fast.get_potential_energy(atoms)) < 1e-9
            np.testing.assert_allclose(fast.get_forces(atoms), plain.get_forces(atoms), atol=1e-10)
        if atoms.pbc.all():
            np.testing.assert_allclose(fast.get_stress(atoms), plain.get_stress(atoms), atol=1e-11)
    with pytest.raises(ModelError, match="does not know Fe"):
        fast.get_potential_energy(ase.Atoms("Fe"))


def test_molecular_dynamics_conserves_energy():
    model = small("GauntACE")
    atoms = ase.Atoms("CH4", [[0, 0, 0], [0.6, 0.6, 0.6], [-0.6, -0.6, 0.6], [0.6, -0.6, -0.6], [-0.6, 0.6, -0.6]])
    plain, fast = (mq.md(atoms, model, ensemble="nve", temperature=50, timestep=0.25, steps=20, every=1, progress=False, accelerate=on) for on in (False, True))
    np.testing.assert_allclose(fast.history["E_tot"], plain.history["E_tot"], atol=1e-8)
    with pytest.raises(ConfigError, match="accelerate=True with a calculator"):
        mq.md(atoms, mq.Calculator(model), ensemble="nve", temperature=50, steps=1, accelerate=True, progress=False)


def test_training_is_the_same(tmp_path):
    """A few steps of training, validation by averaged weights and a continuation give what the plain ones give."""
    data = mq.data.read_extxyz(mq_data("ethanol_300K.xyz"), index=":12")
    train, valid = data.split([8, 4], seed=0)
    results = {}
    for on in (False, True):
        torch.manual_seed(0)
        model = mq.Model(mq.GauntACE(elements=data.elements, cutoff=4.0, channels=4, radial=4, l_max=1), ["energy", "forces"])
        common = dict(batch_size=4, lr=1e-3, precision="float64", accelerate=on, progress=False, out=tmp_path / str(on))
        mq.fit(model, train, valid, epochs=1, **common)
        results[on] = mq.fit(model, train, valid, epochs=2, resume="force", **common)
    assert results[True].model.program is not None
    for a, b in zip(results[False].history, results[True].history):
        assert abs(a["train_loss"] - b["train_loss"]) <= 1e-8 * a["train_loss"] and abs(a["valid_loss"] - b["valid_loss"]) <= 1e-8 * a["valid_loss"]


def mq_data(name: str):
    from pathlib import Path

    return Path(__file__).resolve().parent.parent / "data" / name


def test_audit_passes():
    model = mq.accelerate(small("GauntACE"))
    report = mq.audit(model, [molecule(k, 5) for k in range(2)], draws=2)
    report.raise_if_failed()


class Forgetful(Backbone):
    """A backbone with faults: `counts` counts edges, whether they are real or not; `branches` asks for values."""

    group = "O(n)"

    def __init__(self, *, elements, cutoff: float = 4.0, fault: str = "counts"):
        super().__init__(elements=elements, cutoff=cutoff, hparams={"fault": fault})
        self.fault, self.out = fault, {"0e": 2}
        self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, graph):
        edges = edges_of(graph, self.cutoff, self.weight.dtype)
        degree = edges.sum(torch.ones_like(edges.envelope) if self.fault == "counts" else edges.envelope)
        if self.fault == "branches" and float(degree.max()) > 1.0:
            degree = degree * 2
        return mq.Features(blocks={"0e": (degree[:, None] * self.weight)[:, :, None]}, coordination=edges.coordination)


def test_a_difference_is_refused_and_named(capsys):
    model = mq.accelerate(mq.Model(Forgetful(elements=ELEMENTS), ["energy", "forces"]).double())
    with pytest.raises(AccelerateError, match="compiled Forgetful differs from the plain one in .*not used. Leave accelerate away"):
        model.eval()(batch(molecule(0, 6)))
    assert not model.program.functions or not any(model.program.functions.values())


def test_what_cannot_be_compiled_says_so():
    model = mq.accelerate(mq.Model(Forgetful(elements=ELEMENTS, fault="branches"), ["energy", "forces"]).double())
    with pytest.raises(AccelerateError, match="Forgetful for evaluation .float64. could not be compiled.*the plain model computes the same"):
        model.eval()(batch(molecule(0, 6)))


def test_gradients_are_compared_too(monkeypatch):
    """A program whose values are right and whose gradients are not."""
    real = program._trace

    def wrong(model, graph, create_graph):
        function = real(model, graph, create_graph)
        return lambda weights, values: [v + 0 * v.detach() if k else v.detach() + (v - v.detach()) * 1.01 for k, v in enumerate(function(weights, values))]

    monkeypatch.setattr(program, "_trace", wrong)
    model = mq.accelerate(small("EGNN"))
    model.eval()(batch(molecule(0, 6)))
    with pytest.raises(AccelerateError, match="differs from the plain one in gradient of"):
        model.train()(batch(molecule(0, 6)))


def test_takes_models_only():
    with pytest.raises(AccelerateError, match="takes a Model or an Ensemble, found EGNN"):
        mq.accelerate(mq.EGNN(elements=ELEMENTS))
    model = mq.accelerate(small("EGNN")).eval()
    with pytest.raises(ModelError, match="knows only"):
        model(mq.connect(mq.Graph.single([[0.0, 0, 0], [1.5, 0, 0]], ["Fe", "H"]), 4.0))


@pytest.fixture
def cpp():
    """A test that goes all the way."""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (Debian: apt-get install g++)")
def test_machine_code(cpp):
    """The whole way, with C++."""
    model = mq.accelerate(small("PaiNN", channels=4, layers=1))
    same(model, batch(molecule(0, 6), molecule(1, 4)))
    same(model, batch(molecule(2, 7)))


def test_no_compiler_says_what_to_install(cpp, monkeypatch, tmp_path):
    import torch._inductor.config as config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config.cpp, "cxx", (None, "/nowhere/g++"))
    monkeypatch.setattr(config, "force_disable_caches", True)
    from torch._inductor import cpp_builder

    if hasattr(cpp_builder.get_cpp_compiler, "cache_clear"):
        cpp_builder.get_cpp_compiler.cache_clear()
    model = mq.accelerate(small("PaiNN", channels=4, layers=1)).eval()
    with pytest.raises(AccelerateError, match="needs a C\\+\\+ compiler and none was found: install one .Debian: apt-get install g\\+\\+."):
        model(batch(molecule(0, 6)))
