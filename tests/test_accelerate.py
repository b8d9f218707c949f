"""Compiled models against plain ones. Most tests run what was traced as it is; one, for all backbones, has it differentiated as for C++ (torch's
backend "aot_eager"), and some go all the way."""

import copy
import importlib
import logging
import shutil
import threading
from collections import Counter

import ase
import numpy as np
import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

import molequi as mq
from molequi.compiled import keys
from molequi.compiled.trials import with_cluster
from molequi.errors import AccelerateError, ModelError
from molequi.features import Features
from molequi.graph import collate
from molequi.models import BACKBONES, Backbone
from molequi.nn.radial import edges_of
from molequi.regular_graphs import regular

program = importlib.import_module("molequi.accelerate")  # the name in the package is the function
ELEMENTS = ["H", "C", "O"]
SMALL = {
    "EGNN": dict(channels=8, layers=2),
    "Equiformer": dict(channels=4, hidden=4, layers=1, l_max=1, radial=4),
    "GauntACE": dict(channels=4, radial=4, l_max=2),
    "GroupConvNet": dict(channels=4, layers=1, group="T", radial=4),
    "MACE": dict(channels=4, radial=4, l_max=1, radial_hidden=(8,), correlation=2, layers=1),
    "NequIP": dict(channels=4, layers=2, l_max=1, radial=4, radial_hidden=(8,)),
    "SevenNet": dict(channels=4, layers=2, l_max=1, radial=4, radial_hidden=(8,)),
    "NequIPGNN": dict(channels=4, layers=2, l_max=1, radial=4, radial_hidden=(8,)),
    "PaiNN": dict(channels=8, layers=2, radial=6),
    "RelaxedEGNN": dict(channels=8, layers=1),
    "RelaxedNequIP": dict(channels=4, layers=1, l_max=1, radial=4, radial_hidden=(8,)),
    "So3krates": dict(channels=8, layers=1, heads=2, l_max=2, radial=6),
    "Transformer": dict(channels=8, layers=1, heads=2, vectors=4, radial=6),
}


@pytest.fixture(autouse=True)
def compiled(request, monkeypatch):
    """Counts the programs that are compiled, by a compiler that needs no C++."""
    counts = Counter()
    monkeypatch.setattr(
        logging.getLogger("torch.__trace"), "propagate", False
    )  # pytest would keep thousands of lines
    if "cpp" not in request.fixturenames:

        def backend(graph, inputs):
            counts["programs"] += 1
            trained = torch.is_grad_enabled()  # the program for evaluation differentiates itself
            return aot_eager(graph, inputs) if trained and "differentiated" in request.fixturenames else graph

        monkeypatch.setattr(program, "BACKEND", backend)
    return counts


def molecule(seed: int, atoms: int = 5, *, cell: float | None = None, spread: float = 1.6):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.randn(atoms, 3, generator=generator, dtype=torch.float64) * spread
    z = torch.tensor([1, 6, 8])[torch.randint(3, (atoms,), generator=generator)]
    return mq.Graph.single(
        pos,
        z,
        cell=None if cell is None else torch.eye(3, dtype=torch.float64) * cell + 0.1,
        pbc=None if cell is None else True,
    )


def batch(*graphs, cutoff=4.0):
    return collate([mq.connect(g, cutoff) for g in graphs])


def small(name: str, predict=("energy", "forces"), dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = mq.Model(BACKBONES[name](elements=ELEMENTS, cutoff=4.0, **(SMALL[name] | options)), predict).to(
        dtype
    )
    model.backbone.mean_neighbors.fill_(4.0)
    return model


def both(model, graph):
    """Outputs, and the gradients of all parameters by a loss on all of them, of the model as it is."""
    model.zero_grad()
    out = model.train()(graph)
    loss = sum(torch.where(torch.isfinite(v), v, 0.0).double().square().sum() for v in out.values())
    loss.backward()
    return {n: v.detach() for n, v in out.items()}, {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def same(model, graph, tolerance=1e-10):
    """In training, gradients included, and in evaluation."""
    fast, gradients = both(model, graph)
    evaluated = model.eval()(graph)
    kept = model.program
    model.use_program(None)
    plain, wanted = both(model, graph)
    model.use_program(kept)
    assert fast.keys() == plain.keys() == evaluated.keys()
    for name in plain:
        # Forces on an atom among its own images are zero up to round-off.
        scale = max(float(torch.nan_to_num(plain[name]).abs().max()), 1e-4)
        torch.testing.assert_close(fast[name], plain[name], rtol=0, atol=tolerance * scale, equal_nan=True)
        torch.testing.assert_close(
            evaluated[name], plain[name], rtol=0, atol=tolerance * scale, equal_nan=True
        )
        assert not evaluated[name].requires_grad
    scale = max((float(g.abs().max()) for g in wanted.values()), default=1.0) or 1.0
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            gradients.get(name, torch.zeros_like(gradient)), gradient, rtol=0, atol=tolerance * scale
        )


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_backbone_after_changes_of_size(name, compiled, differentiated, capfd):
    """Energies, forces, stress, and gradients of a loss on all of them (so of forces and stress), of cells smaller than the cutoff, alone and with
    what is not periodic, of single atoms, without neighbours, as many graphs as nodes: other structures than the program was compiled for."""
    model = mq.accelerate(small(name, ("energy", "forces", "stress")))
    same(model, batch(molecule(0, 3, cell=3.1), molecule(1, 5)))
    assert compiled["programs"] == 2  # evaluation, training
    far = molecule(5, 1, cell=30.0)
    for graph in (
        batch(molecule(2, 2, cell=3.2)),
        batch(molecule(3, 1, cell=3.1)),
        batch(far),
        batch(far, molecule(4, 3, spread=40.0)),
        batch(far, far, far),
        batch(far, *(molecule(k, 2 + k) for k in range(6))),
        batch(molecule(0, 1, cell=3.3), molecule(6, 6), molecule(7, 3, spread=40.0)),
    ):
        same(model, graph)
    assert compiled["programs"] == 2
    told = capfd.readouterr()
    assert (
        told.err.count(f"compiling {name} for") == 2
        and told.err.count("differs from the plain model by") == 2
        and not told.out
    )


def test_weights_under_two_names(compiled):
    """The gradient of a weight that two layers share is the sum over both."""
    model = small("PaiNN")
    first, second = model.backbone.updates
    second.mix.weight = first.mix.weight
    same(mq.accelerate(model), batch(molecule(0), molecule(1, 4)))
    assert compiled["programs"] == 2 and first.mix.weight is second.mix.weight


@pytest.mark.parametrize("name", ["EGNN", "PaiNN"])
def test_molecules_from_the_smallest_on(name, compiled):
    """The first structure is one atom, of which nothing can be learned about the program."""
    model = mq.accelerate(small(name, layers=1))
    same(model, batch(molecule(3, 1)))
    for graph in (
        batch(molecule(2, 3)),
        batch(molecule(0, 3), molecule(1, 3)),
        batch(molecule(4, 3, spread=40.0), molecule(5, 1)),
    ):
        same(model, graph)
    assert compiled["programs"] == 2
    same(model, batch(molecule(2, 7)))  # more neighbours
    assert compiled["programs"] == 4


def test_float32():
    same(
        mq.accelerate(small("PaiNN", layers=1, dtype=torch.float32)),
        batch(molecule(0, 6), molecule(1, 4)),
        1e-4,
    )


def test_more_neighbours_take_another_program_of_which_there_are_few(compiled, monkeypatch):
    model = mq.accelerate(small("EGNN", ["gap"])).eval()
    for atoms in (4, 5, 9, 12, 13, 14, 15, 16):
        model(batch(molecule(atoms, atoms, spread=0.8)))
    assert 1 < compiled["programs"] <= 5
    monkeypatch.setattr(program, "LIMIT", compiled["programs"])
    before, dense = compiled["programs"], batch(molecule(0, 40, spread=0.8))
    same(model, dense)  # the first ones are forgotten
    assert sum(map(len, model.program.functions.values())) == before and compiled["programs"] == before + 2
    same(model, dense)
    assert compiled["programs"] == before + 2


def test_charge_spin_and_what_is_given():
    model = mq.accelerate(
        small("PaiNN", inputs=mq.Inputs(charge=True, spin=True, node_features=2, node_vectors=1))
    )
    graphs = [
        molecule(k, 4).replace(
            charge=torch.tensor([float(k)]),
            spin=torch.tensor([1.0]),
            x=torch.randn(4, 2, dtype=torch.float64),
            vec=torch.randn(4, 1, 3, dtype=torch.float64),
        )
        for k in range(3)
    ]
    same(model, batch(*graphs))
    same(model, batch(graphs[0]))


@pytest.mark.parametrize(
    "predict",
    [
        ["energy", "forces", "dipole"],
        ["gap"],
        [mq.Quantity(name="kind", classes=("a", "b"))],
        [mq.Quantity(name="alpha_tensor", per="graph", rank=2, unit="Å^3", extensive=True)],
        ["energy", mq.heads.Vector("forces")],
    ],
)
def test_other_heads_and_models_without_gradients(predict):
    same(mq.accelerate(small("PaiNN", predict)), batch(molecule(0, 6), molecule(1, 4)))


def test_nearest_neighbours_of_clouds():
    torch.manual_seed(0)
    model = mq.accelerate(
        mq.Model(
            mq.EGNN(elements=[0], cutoff=None, k=3, channels=8, layers=2),
            [mq.Quantity(name="kind", classes=("a", "b"))],
        ).double()
    )
    clouds = [mq.connect(mq.Graph.single(torch.randn(n, 3, dtype=torch.float64)), None, 3) for n in (7, 9)]
    same(model, collate(clouds))


def test_weights_are_inputs(compiled, tmp_path):
    """Training goes on, weights are loaded, copies are made: without compiling again, and each answers with its own weights."""
    model = mq.accelerate(small("PaiNN", layers=1))
    graph = batch(molecule(0, 6), molecule(1, 4))
    first = model.eval()(graph)["energy"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    assert (other(graph)["energy"] - first).abs().max() > 1e-4 and torch.equal(model(graph)["energy"], first)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(graph)["energy"], other(graph)["energy"])
    assert compiled["programs"] == 1
    mq.save(model, tmp_path / "m.safetensors")
    loaded = mq.load(tmp_path / "m.safetensors")
    assert loaded.program is None
    torch.testing.assert_close(loaded(graph)["energy"], model(graph)["energy"])
    make, given = model.program.__reduce__()  # how it travels: another process compiles its own
    assert make(*given).functions == {}
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


def test_ensemble(compiled):
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
    assert compiled["programs"] == 1 and float(fast["energy_std"]) > 0


def test_calculator_molecule_and_crystal():
    model = small("PaiNN", layers=1)
    for atoms in (
        ase.Atoms(
            "CH4", [[0, 0, 0], [0.6, 0.6, 0.6], [-0.6, -0.6, 0.6], [0.6, -0.6, -0.6], [-0.6, 0.6, -0.6]]
        ),
        ase.Atoms("CO", [[0, 0, 0], [1.5, 1.4, 1.3]], cell=[3.1, 3.2, 3.3], pbc=True),
    ):
        plain, fast = mq.Calculator(model), mq.Calculator(model, accelerate=True)
        for shift in (0.0, 0.05):
            atoms.positions[0, 0] += shift
            assert abs(plain.get_potential_energy(atoms) - fast.get_potential_energy(atoms)) < 1e-9
            np.testing.assert_allclose(fast.get_forces(atoms), plain.get_forces(atoms), atol=1e-10)
        if atoms.pbc.all():
            np.testing.assert_allclose(fast.get_stress(atoms), plain.get_stress(atoms), atol=1e-11)
    with pytest.raises(ModelError, match="does not know Fe"):
        fast.get_potential_energy(ase.Atoms("Fe"))


def test_calculator_along_a_walk(compiled):
    """Steps within the skin, whose edges the program does as well, beyond it, with other elements and cells in one calculator: each as a plain one
    finds it that has seen nothing before. Some atoms cross the cutoff within the skin."""
    model = small("GauntACE", layers=1, l_hidden=0)
    fast, generator, crossed = mq.Calculator(model, accelerate=True, skin=0.8), np.random.default_rng(0), 0
    atoms = ase.Atoms("COHH", generator.normal(size=(4, 3)) * 1.5, cell=np.eye(3) * 5.5)
    for step in range(24):
        atoms.positions[:] += generator.normal(size=(4, 3)) * 0.12
        if step % 6 == 3:
            atoms.numbers = generator.permutation(atoms.numbers)
        if step % 8 == 5:
            atoms.pbc = not atoms.pbc.any()
            atoms.cell[:] += 0.02
        plain = mq.Calculator(model, skin=0.0)
        assert abs(plain.get_potential_energy(atoms) - fast.get_potential_energy(atoms)) < 1e-9
        np.testing.assert_allclose(fast.get_forces(atoms), plain.get_forces(atoms), atol=1e-10)
        lengths = (
            fast._neighbors._graph.replace(pos=torch.from_numpy(atoms.positions)).edge_vectors().norm(dim=1)
        )
        crossed += int((lengths > 4.0).sum())
    assert crossed > 20 and 1 < fast.searches < 24 and compiled["programs"] < 6


class Unbounded(Backbone):
    """Messages that do not end at the cutoff, but far beyond."""

    group = "O(n)"

    def __init__(self, *, elements, cutoff=3.0):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": 4}
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, graph):
        edges = edges_of(graph, self.cutoff, self.weight.dtype)
        sums = edges.sum(torch.exp(-edges.length.square() / 10)[:, None] * self.weight)
        return Features(blocks={"0e": sums[:, :, None]}, coordination=edges.coordination)


def test_calculator_shows_a_backbone_of_the_user_the_cutoff_and_no_skin():
    model = mq.Model(Unbounded(elements=ELEMENTS)).double()
    atoms = ase.Atoms("COH", [[0, 0, 0], [3.2, 0, 0], [0, 1, 0]])
    plain, fast = (
        mq.Calculator(model, skin=skin, accelerate=on).get_potential_energy(atoms)
        for skin, on in ((0.0, False), (0.5, True))
    )
    assert abs(plain - fast) < 1e-10


def test_molecular_dynamics_is_the_same():
    model = small("PaiNN", layers=1)
    atoms = ase.Atoms(
        "CH4", [[0, 0, 0], [0.6, 0.6, 0.6], [-0.6, -0.6, 0.6], [0.6, -0.6, -0.6], [-0.6, 0.6, -0.6]]
    )
    plain, fast = (
        mq.md(
            atoms,
            mq.Calculator(model, accelerate=on, dtype="float64"),
            ensemble="nve",
            temperature=50,
            timestep=0.25,
            steps=20,
            every=1,
            progress=False,
        )
        for on in (False, True)
    )
    np.testing.assert_allclose(fast.history["E_tot"], plain.history["E_tot"], atol=1e-8)


def test_training_is_the_same(tmp_path):
    """A few steps of training, validation by averaged weights and a continuation give what the plain ones give."""
    data = mq.read_extxyz(mq_data("ethanol_300K.xyz"), index=":12")
    train, valid = data.split([8, 4], seed=0)
    results = {}
    for on in (False, True):
        torch.manual_seed(0)
        model = mq.Model(
            mq.PaiNN(elements=data.elements, cutoff=4.0, channels=4, radial=4, layers=1), ["energy", "forces"]
        )
        common = dict(
            batch_size=4,
            lr=1e-3,
            compute=mq.Compute(precision="float64", accelerate=on),
            logging=mq.Logging(progress=False),
            out=tmp_path / str(on),
        )
        mq.fit(model, train, valid, epochs=1, **common)
        results[on] = mq.fit(model, train, valid, epochs=2, resume="force", **common)
    assert results[True].model.program is not None
    for a, b in zip(results[False].history, results[True].history):
        assert (
            abs(a["train_loss"] - b["train_loss"]) <= 1e-8 * a["train_loss"]
            and abs(a["valid_loss"] - b["valid_loss"]) <= 1e-8 * a["valid_loss"]
        )


def mq_data(name: str):
    from pathlib import Path

    return Path(__file__).resolve().parent.parent / "data" / name


def test_audit_passes():
    model = mq.accelerate(small("PaiNN", layers=1))
    report = mq.audit(model, [molecule(k, 5) for k in range(2)], draws=2)
    report.raise_if_failed()


class Faulty(Backbone):
    """`counts`: edges, whether they are real or not; `bias`: the same by a weight that is zero at first; `values`, `sizes`, `length`: asks for values, for the number of nodes, takes len() of a tensor;
    `random`: never the same twice."""

    group = "O(n)"

    def __init__(self, *, elements, cutoff: float = 4.0, fault: str = "none"):
        super().__init__(elements=elements, cutoff=cutoff)
        self.fault, self.out = fault, {"0e": 2}
        self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, graph):
        edges = edges_of(graph, self.cutoff, self.weight.dtype)
        near = edges.sum(torch.ones_like(edges.envelope) if self.fault == "counts" else edges.envelope)
        if self.fault == "bias":
            near = near + self.bias * edges.sum(torch.ones_like(edges.envelope))
        if self.fault == "values" and bool(near.detach().max() > 1.0):
            near = near * 2
        if self.fault == "sizes" and near.shape[0] > 30:
            near = near * 2
        if self.fault == "length":
            near = near.reshape(len(near), 1)[:, 0]
        if self.fault == "random":
            near = near * torch.rand_like(near)
        return mq.Features(
            blocks={"0e": (near[:, None] * self.weight)[:, :, None]}, coordination=edges.coordination
        )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "counts",
            "compiled Faulty differs from the plain one in .*, by .* of its largest value .allowed: 1e-10.; it is not used. Leave accelerate away",
        ),
        ("random", "compiled Faulty differs from the plain one"),
        (
            "values",
            r"Faulty for evaluation .float64. could not be compiled: the values of a tensor decide.*leave accelerate away",
        ),
        ("sizes", "Faulty does not do the same for all sizes: it asks whether nodes.*30"),
        (
            "length",
            "Faulty does not do the same for all sizes: it asks whether .*nodes.*len.. of a tensor does too; take .shape",
        ),
    ],
)
def test_backbones_that_cannot_be_compiled_are_refused_and_told_why(fault, words, capfd):
    graph = batch(molecule(0, 6))
    model = mq.accelerate(
        mq.Model(Faulty(elements=ELEMENTS, fault=fault), ["energy", "forces"]).double()
    ).eval()
    for _ in range(2):  # no program is left behind
        with pytest.raises(AccelerateError, match=words):
            model(graph)
    assert capfd.readouterr().err.endswith("\n")
    assert mq.accelerate(model, on=False)(graph)["forces"].shape == (6, 3)
    sound = mq.accelerate(mq.Model(Faulty(elements=ELEMENTS), ["energy", "forces"]).double())
    same(sound, graph)


@pytest.mark.parametrize("fault", ["counts", "bias"])
@pytest.mark.parametrize("atoms", [2, 3, 4, 5, 7, 9])
def test_edges_that_fill_up_are_looked_at_for_every_number_of_neighbours(fault, atoms):
    """All atoms see all others, so that those at hand have no room to fill up for some numbers."""
    for train in (False, True):
        model = mq.accelerate(
            mq.Model(Faulty(elements=ELEMENTS, fault=fault), ["energy", "forces"]).double()
        ).train(train)
        with pytest.raises(AccelerateError, match="differs from the plain one"):
            model(batch(molecule(0, atoms, spread=0.5)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["GauntACE", "MACE", "PaiNN"])
def test_round_off_of_a_perfect_crystal_is_no_difference(name, dtype):
    from ase.build import bulk

    def copper(n, rattle=0.0):
        atoms = bulk("Cu", cubic=True) * (n, n, n)
        atoms.rattle(rattle, seed=0)
        return atoms

    torch.manual_seed(0)
    model = mq.Model(BACKBONES[name](elements=["Cu"], cutoff=3.2, **SMALL[name]), ["energy", "forces"])
    calculator = mq.Calculator(model, dtype=dtype, skin=0.0, accelerate=True)
    for first in (copper(1, rattle=0.1), copper(2)):
        calculator.get_potential_energy(first)
        for functions in calculator.model.program.functions.values():
            for function in functions.values():
                function.sizes.tried.clear()  # compared again
        calculator.reset()  # ASE would remember
        calculator.get_potential_energy(copper(2))
        forces = calculator.get_forces(copper(2))
        assert abs(forces).max() < (1e-10 if dtype == torch.float64 else 1e-3)
        calculator = mq.Calculator(mq.accelerate(model, on=False), dtype=dtype, skin=0.0, accelerate=True)


def test_what_no_program_knows_goes_through_the_plain_model(compiled):
    model, graph = mq.accelerate(small("PaiNN")), batch(molecule(0, 4), molecule(1, 5))
    plain = mq.accelerate(copy.deepcopy(model), on=False)
    with torch.autocast("cpu", torch.bfloat16):
        model.eval()(graph)
    model = mq.accelerate(copy.deepcopy(plain)).eval()
    padded = regular(graph, nodes=1, degree=9)
    torch.testing.assert_close(model(padded)["forces"][:9], plain.eval()(graph)["forces"], rtol=0, atol=1e-12)
    model.requires_grad_(False).train()
    torch.testing.assert_close(model(graph)["forces"], plain(graph)["forces"], rtol=0, atol=1e-12)
    assert compiled["programs"] == 0


def test_hooks_are_called(compiled):
    model, graph, seen = mq.accelerate(small("PaiNN")).eval(), batch(molecule(0, 4)), []
    before = model(graph)["energy"]
    handle = model.backbone.register_forward_hook(lambda *_: seen.append(1))
    after = model(graph)["energy"]
    handle.remove()
    model(graph)
    assert seen == [1] and torch.allclose(before, after) and compiled["programs"] == 1


class Dropping(Faulty):
    """Drops what it has seen, in training."""

    def __init__(self, *, elements, cutoff: float = 4.0):
        super().__init__(elements=elements, cutoff=cutoff)
        self.drop = torch.nn.Dropout(1.0)

    def forward(self, graph):
        out = super().forward(graph)
        return mq.Features(blocks={"0e": self.drop(out.blocks["0e"])}, coordination=out.coordination)


def test_modules_of_different_modes_cutoffs_and_weights_have_programs_of_their_own():
    model, graph = (
        mq.accelerate(mq.Model(Dropping(elements=ELEMENTS), ["energy"]).double()).eval(),
        batch(molecule(0, 5)),
    )

    def compared(model):
        fast, kept = model(graph)["energy"].detach(), model.program
        plain = mq.accelerate(model, on=False)(graph)["energy"].detach()
        model.use_program(kept)
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
        return fast

    whole = compared(model)
    model.backbone.drop.train()
    assert not torch.allclose(compared(model), whole)
    model.backbone.drop.eval()
    assert torch.equal(compared(model), whole)
    other = copy.deepcopy(model)
    other.backbone.cutoff = 2.0
    assert other.program is model.program and not torch.allclose(compared(other), whole)
    egnn = mq.accelerate(small("EGNN", layers=3)).eval()
    egnn(graph)
    egnn.backbone.layers = egnn.backbone.layers[:2]
    compared(egnn)
    matrix = next(p for p in egnn.backbone.layers[0].parameters() if p.ndim == 2)
    matrix.data = matrix.data.t().contiguous().t()
    compared(egnn)


def test_programs_are_kept_and_shared(compiled, tmp_path):
    model, graph = mq.accelerate(small("EGNN", dtype=torch.float32)), batch(molecule(0, 4), molecule(1, 4))
    model.eval()(graph)
    assert mq.accelerate(model).program is model.program and compiled["programs"] == 1
    calculator = mq.Calculator(model, accelerate=True)
    assert calculator.model.program is model.program
    labelled = [
        molecule(k, 4).replace(targets={"energy": torch.zeros(1), "forces": torch.zeros(4, 3)})
        for k in range(6)
    ]
    options = dict(
        train=labelled[:4],
        valid=labelled[4:],
        epochs=1,
        compute=mq.Compute(accelerate=True),
        logging=mq.Logging(progress=False),
    )
    ensemble = mq.fit(small("EGNN", dtype=torch.float32), **options, seed=[0, 1]).model
    # one for training, one for validation, one each for more neighbours: in the other structures and in the shaken ones of the card
    assert (
        compiled["programs"] <= 4 and ensemble.members[0].program is ensemble.members[1].program is not None
    )
    with pytest.raises(ModelError, match="accelerate='false': wanted True or False"):
        mq.Calculator(model, accelerate="false")


class Own(mq.Head):
    """Somebody's own energy."""

    def make(self, channels):
        self.net = torch.nn.Linear(channels["0e"], 1)

    def forward(self, graph, features):
        return self.pool(self.net(features.blocks["0e"][:, :, 0])[:, 0].double(), graph, features)


def test_a_head_of_the_user_for_the_energy():
    same(mq.accelerate(small("EGNN", [Own("energy")])), batch(molecule(0, 4), molecule(1, 5)))


def test_sizes_of_which_the_compiler_assumed_otherwise_are_compared_again(monkeypatch):
    """A compiler that chooses by the number of nodes, and is wrong for many of them."""

    def choosing(graph, inputs):
        nodes = next(v for v in inputs if v.ndim == 2 and v.shape[1] == 3 and not isinstance(v.shape[0], int))
        assert nodes.shape[0] < 40  # what it was compiled for
        call = aot_eager(graph, inputs)
        return lambda *values: [
            v * (1.0 if next(v for v in values if v.shape[1:] == (3,)).shape[0] < 40 else 1.001)
            for v in call(*values)
        ]

    monkeypatch.setattr(program, "BACKEND", choosing)
    model = mq.accelerate(mq.Model(Faulty(elements=ELEMENTS), ["energy", "forces"]).double()).eval()
    model(batch(molecule(0, 5)))
    model(batch(molecule(1, 4)))
    with pytest.raises(AccelerateError, match="differs from the plain one"):
        model(batch(*(molecule(k, 5) for k in range(9))))


def test_errors_of_the_model_stay_what_they_are():
    graph = batch(molecule(0, 4))
    with pytest.raises(ModelError, match="takes the total charge"):
        mq.accelerate(small("EGNN", inputs=mq.Inputs(charge=True)))(graph)
    model = mq.accelerate(small("EGNN", ["gap"], inputs=mq.Inputs(node_features=2))).eval()
    model(graph.replace(x=torch.ones(4, 2)))
    with pytest.raises(ModelError, match="takes 2 features of each node .* found 3"):
        model(graph.replace(x=torch.ones(4, 3)))
    with pytest.raises(AccelerateError, match="takes float32 and float64"):
        model.to(torch.bfloat16)(graph.replace(x=torch.ones(4, 2)))


def test_structures_one_after_the_other_with_equal_and_other_edges():
    """Where edges stand is kept from one call to the next: the same edges with other positions, elements and batches, the same number of other ones, in
    place too, in another order."""
    model = mq.accelerate(small("PaiNN", layers=1)).eval()
    first, second = batch(molecule(0, 4, spread=0.8)), batch(molecule(1, 4, spread=0.8))
    assert torch.equal(first.edge_index, second.edge_index)
    crystal = batch(molecule(0, 4, cell=3.2))
    fewer = first.replace(edge_index=first.edge_index[:, (first.edge_index != 3).all(0)])
    other = first.replace(edge_index=first.edge_index[:, (first.edge_index != 0).all(0)])
    for graph in (
        first,
        second,
        first.replace(z=first.z.flip(0)),
        fewer,
        other,
        first.replace(edge_index=first.edge_index.flip(1)),
        first,
        crystal,
        crystal.replace(cell=crystal.cell * 1.02),
        collate([first, second]),
    ):
        check_evaluation(model, graph)
    fewer.edge_index.copy_(other.edge_index)
    check_evaluation(model, fewer)


def check_evaluation(model, graph):
    kept, fast = model.program, model(graph)
    model.use_program(None)
    plain = model(graph)
    model.use_program(kept)
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], rtol=1e-10, atol=1e-11)


def test_layouts_have_programs_of_their_own(compiled):
    """Dimensions and frozen weights: what a program takes for granted."""
    torch.manual_seed(0)
    model = mq.accelerate(
        mq.Model(mq.EGNN(elements=[0], cutoff=None, channels=4, layers=1), ["energy", "forces"]).double()
    )
    for dim in (2, 3):
        same(model, collate([mq.connect(mq.Graph.single(torch.rand(n, dim)), None) for n in (3, 5)]))
    assert compiled["programs"] == 4
    plane = mq.connect(mq.Graph.single(torch.rand(4, 2)), None)
    model.backbone.embedding.requires_grad_(False)
    same(model, plane)
    assert compiled["programs"] == 5 and model.backbone.embedding.element.weight.grad is None
    model.requires_grad_(True)
    same(model, plane)
    assert compiled["programs"] == 5


def test_variables_of_the_user_go_through_the_plain_model(compiled):
    """Second derivatives by positions, which no program has."""
    model = mq.accelerate(small("PaiNN", layers=1)).eval()
    graph = batch(molecule(0, 4))
    moved = graph.replace(pos=graph.pos.clone().requires_grad_())
    (slope,) = torch.autograd.grad(
        model(moved, create_graph=True)["forces"].square().sum(), moved.pos, create_graph=True
    )
    (again,) = torch.autograd.grad(slope.square().sum(), moved.pos)
    assert bool(torch.isfinite(again).all()) and float(again.abs().max()) > 0 and compiled["programs"] == 0


def test_tied_weights_and_shared_modules():
    torch.manual_seed(0)
    model = small("EGNN", ["gap"], channels=4)
    model.backbone.layers[1].update = model.backbone.layers[0].update
    model.backbone.layers[1].message[0].weight = model.backbone.layers[0].message[0].weight
    same(mq.accelerate(model), batch(molecule(0, 4), molecule(1, 3)))


def test_nothing_global_changes_and_the_model_neither():
    import warnings

    model = small("PaiNN", ["gap"], layers=1)
    before = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_rng_state(),
        torch.get_num_threads(),
        list(warnings.filters),
    )
    kept = {n: v.clone() for n, v in [*model.named_parameters(), *model.named_buffers()]}
    same(mq.accelerate(model), batch(molecule(0, 4)))
    after = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_rng_state(),
        torch.get_num_threads(),
        list(warnings.filters),
    )
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after))
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert type(value) in (torch.nn.Parameter, torch.Tensor) and torch.equal(value, kept[name])


def test_gradients_are_compared_too(monkeypatch):
    """A program whose values are right and whose gradients are not."""

    def wrong(graph, inputs):
        call = aot_eager(graph, inputs)
        return lambda *values: [v.detach() + (v - v.detach()) * 1.01 for v in call(*values)]

    monkeypatch.setattr(program, "BACKEND", wrong)
    model = mq.accelerate(small("EGNN", ["gap"]))
    model.eval()(batch(molecule(0, 6)))
    with pytest.raises(AccelerateError, match="differs from the plain one in gradient of"):
        model.train()(batch(molecule(0, 6)))


@pytest.mark.parametrize("output", ["energy", "forces", "stress", "energies"])
def test_a_small_error_anywhere_is_seen(monkeypatch, output):
    """Of one part in 10⁸, in one row of one output, though the total energy is large."""
    names = ["energy", "forces", "stress", "energies"]

    def wrong(graph, inputs):
        call = aot_eager(graph, inputs)

        def run(*values):
            out = list(call(*values))
            k = names.index(output)
            slip = torch.zeros_like(out[k])
            slip[1] = 1e-8 * (out[k][1] if output != "energy" else out[3].sum())
            out[k] = out[k] + slip
            return out

        return run

    monkeypatch.setattr(program, "BACKEND", wrong)
    model = mq.accelerate(small("EGNN", names[:3], layers=1)).eval()
    graph = batch(molecule(0, 3, cell=3.1), molecule(1, 5, cell=3.5))
    with pytest.raises(AccelerateError, match=f"differs from the plain one in {output},"):
        model(graph)


def test_zero_by_symmetry_is_no_difference():
    """Forces and stress of a perfect crystal are round-off, of which nothing is to be asked; those of the cluster beside it are not."""
    crystal = mq.Graph.single(
        [[0.0, 0, 0], [0.5, 0.5, 0.5]], ["C", "O"], cell=torch.eye(3, dtype=torch.float64), pbc=True
    )
    scaled = crystal.replace(pos=crystal.pos * 3.3, cell=crystal.cell * 3.3)
    model = mq.accelerate(small("PaiNN", ("energy", "forces", "stress"), layers=1)).eval()
    out = model(mq.connect(scaled, 4.0))
    assert float(out["forces"].abs().max()) < 1e-12 and float(out["energy"].abs()) > 1e-3
    both = with_cluster(model, mq.connect(scaled, 4.0), 8)
    assert both.num_graphs == 2 and float(model.predict(both, False)["forces"][2:].abs().max()) > 1e-3


def test_takes_models_only():
    with pytest.raises(AccelerateError, match="takes a Model or an Ensemble, found EGNN"):
        mq.accelerate(mq.EGNN(elements=ELEMENTS))
    model = mq.accelerate(small("EGNN")).eval()
    with pytest.raises(ModelError, match="knows only"):
        model(mq.connect(mq.Graph.single([[0.0, 0, 0], [1.5, 0, 0]], ["Fe", "H"]), 4.0))


@pytest.fixture
def cpp():
    """A test that goes all the way."""


@pytest.fixture
def differentiated():
    """A test whose programs are differentiated ahead of time, which takes twice as long as to trace them."""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (Debian: apt-get install g++)")
def test_machine_code(cpp, capfd, monkeypatch, tmp_path):
    """The whole way, with C++, and through sizes at which inductor chooses otherwise; then from disk, gradients too."""
    monkeypatch.setenv("MOLEQUI_CACHE", str(tmp_path))
    for word in ("compiling", "loading the compiled"):
        model = mq.accelerate(small("PaiNN", channels=4, layers=1))
        for graph in (
            batch(molecule(0, 6), molecule(1, 4)),
            batch(molecule(2, 7)),
            batch(molecule(3, 1)),
            batch(*(molecule(k, 6) for k in range(9))),
        ):
            same(model, graph)
        told = capfd.readouterr()
        assert told.err.count(f"{word} PaiNN for") == told.err.count("\n") == 2 and not told.out
        assert model.program.seconds > 0


def test_no_compiler_says_what_to_install(cpp, monkeypatch, tmp_path):
    import torch._inductor.config as config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    keys._environment.cache_clear()
    # monkeypatch would delete these settings afterwards instead of restoring them
    nowhere = config.patch({"cpp.cxx": (None, "/nowhere/g++"), "force_disable_caches": True})
    from torch._inductor import cpp_builder

    if hasattr(cpp_builder.get_cpp_compiler, "cache_clear"):
        cpp_builder.get_cpp_compiler.cache_clear()
    model = mq.accelerate(small("PaiNN", channels=4, layers=1)).eval()
    with (
        nowhere,
        pytest.raises(
            AccelerateError,
            match="needs a C\\+\\+ compiler and none was found: install one .Debian: apt-get install g\\+\\+.",
        ),
    ):
        model(batch(molecule(0, 6)))
