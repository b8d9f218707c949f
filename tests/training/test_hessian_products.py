"""Hessian-vector products in the loss: labels, third derivatives, files, errors."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.io import write

import molequi as mq
from molequi.errors import ConfigError, DataError, DataWarning, ModelError
from molequi.models import BACKBONES
from molequi.nn.norms import LayerNorm
from molequi.quantities import KNOWN, Quantity

QUIET = {"logging": {"progress": False}}
LOSS = {"energy": 1, "forces": 10, "hessian_products": 0.1}


class Springs(Calculator):
    """Springs between all pairs of atoms, at rest at 1 Å."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = atoms.positions[:, None] - atoms.positions[None]
        d = np.linalg.norm(away, axis=-1) + np.eye(len(atoms))
        energy = ((d - 1) ** 2).sum() / 2
        self.results = {"energy": energy, "forces": -2 * ((1 - 1 / d)[:, :, None] * away).sum(1)}


def waters(count=6):
    frames = []
    for k in range(count):
        frame = molecule("H2O")
        frame.rattle(0.1, seed=k)
        frame.calc = Springs()
        frame.get_forces()
        frames.append(frame)
    return mq.from_atoms(frames)


def model(backbone=mq.PaiNN, **options):
    torch.manual_seed(0)
    return mq.Model(backbone(elements=["H", "O"], cutoff=4.0, channels=4, **({"layers": 1} | options)))


def view(made):
    return made.predicting(
        [*made.quantities.values(), KNOWN["energy_slope"], KNOWN["hessian_products"]]
    ).double()


def directed(made):
    data = mq.add_hessian_products(waters(2), Springs(), seed=3)
    return mq.collate([mq.connect(graph, made.cutoff) for graph in data])


def test_products_are_those_of_the_hessian():
    made = view(model())
    graph = directed(made)
    found = made(graph)["hessian_products"].detach().numpy()
    for k, graph in enumerate(mq.add_hessian_products(waters(2), Springs(), seed=3)):
        wanted = mq.hessian_vector_product(
            made.predicting(["energy", "forces"]), graph, graph.hessian_vectors
        )
        assert np.abs(wanted).max() > 1e-3 and np.allclose(found[3 * k : 3 * k + 3], wanted, atol=1e-10)


def test_structures_without_directions_take_no_second_pass(monkeypatch):
    made, passes = view(model()), []
    graph = directed(made)
    still = graph.replace(hessian_vectors=torch.zeros_like(graph.pos))
    plain, grad = made(graph), torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **more: passes.append(1) or grad(*args, **more))
    found = made(still, create_graph=True)
    assert len(passes) == 1 and not found["hessian_products"].any()
    assert torch.equal(found["forces"].detach(), plain["forces"])
    found["hessian_products"].sum().backward()
    made(graph)
    assert len(passes) == 3


def test_without_directions_derivatives_have_the_shape_and_the_nan_of_others():
    """Of a dipole, too, which a periodic structure does not have."""
    slope = Quantity(name="slope", rank=1, unit="e", gradient_of="dipole", wrt="displacement")
    product = Quantity(name="product", per="node", rank=2, unit="e/Å", gradient_of="slope", wrt="positions")
    made = mq.Model(mq.PaiNN(elements=["H", "O"], cutoff=4.0, channels=4, layers=1), ["dipole"])
    made = made.predicting([*made.quantities.values(), slope, product]).double()
    frames = [molecule("H2O"), Atoms("OH", [[0, 0, 0], [0, 0, 1.0]], cell=[8.0] * 3, pbc=True)]
    graph = mq.collate([mq.connect(graph, made.cutoff) for graph in mq.from_atoms(frames)])
    still, moved = (
        made(graph.replace(hessian_vectors=torch.full_like(graph.pos, size)))["product"] for size in (0, 1)
    )
    assert still.shape == moved.shape == (5, 3, 3)
    assert not still[:3].any() and torch.equal(still.isnan(), moved.isnan()) and still[3:].isnan().all()


@pytest.mark.parametrize("name", sorted({*BACKBONES} - {"PointHierarchy"}))
def test_the_gradient_of_the_loss(name):
    """Third derivatives of every backbone against a finite difference."""
    torch.manual_seed(0)
    made = view(mq.Model(BACKBONES[name](elements=["H", "O"], cutoff=4.0, channels=4)))
    graph, weights = directed(made), list(made.parameters())
    along = [torch.randn_like(p) for p in weights]

    def loss():
        return made(graph, create_graph=True)["hessian_products"].square().sum()

    slopes = torch.autograd.grad(loss(), weights, materialize_grads=True)
    wanted = sum((s * a).sum().item() for s, a in zip(slopes, along))
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, a in zip(weights, along):
                p.add_(step * a)
        ends.append(loss().item())
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(wanted, rel=1e-4)


def test_layer_norms_of_torch_have_wrong_third_derivatives():
    """The reason for `nn.norms.LayerNorm`: the derivative of torch's is another number. If this fails, torch is repaired."""
    x = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def slope(norm, y):
        return torch.autograd.grad(norm(y).pow(3).sum(), y, create_graph=True)[0][0]

    def third(kind):
        norm = kind(4).double()
        return torch.autograd.functional.hessian(lambda y: slope(norm, y), x + 0)

    def second(y):
        y = y.detach().requires_grad_()
        return torch.autograd.grad(slope(torch.nn.LayerNorm(4).double(), y), y)[0]

    h = 1e-5
    wanted = torch.stack([(second(x + h * e) - second(x - h * e)) / (2 * h) for e in torch.eye(4).double()])
    assert torch.allclose(third(LayerNorm), wanted, atol=1e-5 * float(wanted.abs().max()))
    assert not torch.allclose(third(torch.nn.LayerNorm), wanted, atol=1e-2 * float(wanted.abs().max()))


def test_training_learns_them_and_the_file_has_none(tmp_path):
    data = waters(12)
    train, valid = data[:8], data[8:]
    labelled = mq.add_hessian_products(train, Springs())
    made = model()
    options = dict(epochs=6, lr=1e-2, out=tmp_path / "run", **QUIET)
    loss = {"energy": 1e-3, "forces": 1e-3, "hessian_products": 1}
    test = mq.add_hessian_products(valid, Springs())
    result = mq.fit(made, labelled, valid, test=test, loss=loss, **options)
    assert result.model is made and list(made.quantities) == ["energy", "forces"] and not made.training
    column = [row["train_hessian_products_mae"] for row in result.history]
    assert column[-1] < column[0] and "valid_hessian_products_mae" not in result.history[0]
    assert result.errors["test"]["hessian_products_mae"] > 0 and result.symmetry_report.passed
    kept = mq.load(tmp_path / "run" / "model.safetensors")
    assert list(kept.quantities) == ["energy", "forces"] and kept.metadata["trained_on"]
    assert torch.equal(kept(mq.connect(data[0], 4.0))["energy"], made(mq.connect(data[0], 4.0))["energy"])
    again = mq.fit(model(), labelled, valid, loss=LOSS, seed=[0, 1], epochs=1, **QUIET)
    assert list(again.model.quantities) == ["energy", "forces"] and len(again.model.members) == 2


def test_labels_through_files(tmp_path):
    labelled = mq.add_hessian_products(waters(3), Springs(), seed=1)
    mq.write_npz(labelled, tmp_path / "a.npz")
    frames = []
    for graph in labelled:
        frame = mq.to_atoms(graph)
        frame.arrays["hvp"] = frame.arrays.pop("hessian_products")
        frame.arrays["hessian_vectors"] = graph.hessian_vectors.numpy()
        frames.append(frame)
    for back in (
        mq.read_npz(tmp_path / "a.npz"),
        mq.from_atoms(frames, keys={"hessian_products": "hvp"}),
    ):
        assert torch.allclose(back.values("hessian_products"), labelled.values("hessian_products"))
        assert torch.allclose(back[1].hessian_vectors, labelled[1].hessian_vectors)


def test_labels_of_calculators_and_hessians():
    data = waters(3)
    exact = [mq.hessian(Springs(), mq.to_atoms(graph), step=1e-4).matrix for graph in data]
    given = mq.add_hessian_products(data, exact, directions=2, seed=5)
    found = mq.add_hessian_products(data, Springs(), directions=2, seed=5, step=1e-4)
    assert len(found) == 6 and found.origins[0] == found.origins[1] == data.origins[0]
    assert torch.allclose(given.values("hessian_products"), found.values("hessian_products"), atol=1e-5)
    along = found[0].hessian_vectors
    assert along.norm().item() == pytest.approx(1) and along.sum(0).abs().max() < 1e-12
    assert not torch.allclose(along, found[1].hessian_vectors)
    cubes = [h.reshape(3, 3, 3, 3) for h in exact]
    assert torch.equal(
        mq.add_hessian_products(data, cubes).values("hessian_products"),
        mq.add_hessian_products(data, exact).values("hessian_products"),
    )
    results = mq.hessian(Springs(), data, step=1e-4)
    tensors = torch.from_numpy(np.stack(exact)).requires_grad_()
    for same in (np.stack(exact), np.stack(cubes), results, tensors, list(tensors)):
        again = mq.add_hessian_products(data, same, directions=2, seed=5)
        assert torch.equal(again.values("hessian_products"), given.values("hessian_products"))
    few = mq.add_hessian_products(data, Springs(), structures=2)
    assert few.known("hessian_products").tolist() == [True, False, True]


def test_single_atoms_have_no_products():
    """The Hessian of an atom alone is zero: it stays without label, is not copied, and takes no Hessian."""
    atom = Atoms("O", calculator=Springs())
    atom.get_forces()
    water = waters(5)
    data = water[:2] + mq.from_atoms([atom]) + water[2:3]
    for found in (
        mq.add_hessian_products(data, Springs(), directions=2),
        mq.add_hessian_products(data, np.stack([np.eye(9)] * 3), directions=2),
    ):
        assert found.known("hessian_products").tolist() == [True] * 4 + [False] + [True] * 2
        assert not found[4].hessian_vectors.any() and found[0].hessian_vectors.any()
    few = mq.add_hessian_products(data, Springs(), structures=2)
    assert few.known("hessian_products").tolist() == [True, False, False, True]
    result = mq.fit(model(), few, water[3:], loss=LOSS, epochs=1, **QUIET)
    assert np.isfinite(result.history[0]["train_hessian_products_mae"])
    with pytest.raises(DataError, match="each structure has one atom, whose Hessian is zero"):
        mq.add_hessian_products(mq.from_atoms([atom]), Springs())


def test_structures_without_label_go_through_files(tmp_path):
    atom = Atoms("O", calculator=Springs())
    atom.get_forces()
    few = mq.add_hessian_products(mq.from_atoms([atom]) + waters(3), Springs(), structures=2)
    write(tmp_path / "few.xyz", [mq.to_atoms(graph) for graph in few])
    mq.write_npz(few, tmp_path / "few.npz")
    with pytest.raises(DataError, match=r"no 'hessian_products'.*say partial=\['hessian_products'\]"):
        mq.read_extxyz(tmp_path / "few.xyz")
    for back in (
        mq.read_extxyz(tmp_path / "few.xyz", partial=["hessian_products"]),
        mq.read_npz(tmp_path / "few.npz"),
    ):
        assert back.known("hessian_products").tolist() == [False, True, False, True]
        wanted = few.values("hessian_products")
        assert torch.allclose(back.values("hessian_products"), wanted, atol=1e-7, equal_nan=True)
        for one, other in zip(back, few):
            assert torch.allclose(one.hessian_vectors, other.hessian_vectors, atol=1e-7)


def test_wrong_labels_are_named():
    data = waters(2)
    with pytest.warns(DataWarning, match="the forces of Springs differ from the labels by"):
        mq.add_hessian_products(_other(data), Springs())
    for source, changes, words in [
        ([np.eye(9)], {}, "1 Hessians for 2 structures"),
        (np.eye(9), {}, r"an array of shape \(9, 9\); wanted .* One Hessian alone is \[hessian\]"),
        (np.stack([np.eye(9)] * 3), {}, "3 Hessians for 2 structures"),
        (["a", "b"], {}, r"a Hessian that is str; wanted an array of numbers, shape \(9, 9\)"),
        (np.stack([np.eye(9) + 1j] * 2), {}, "a Hessian that is ndarray; wanted an array of numbers"),
        (mq.hessian(Springs(), data[0]), {}, r"one result of mq.hessian; wanted .* alone is \[hessian\]"),
        (mq.hessian(Springs(), data)[::-1], {}, "0: a Hessian of H2O at other positions"),
        ([np.eye(6)] * 2, {}, r"a Hessian of shape \(6, 6\) for 3 atoms; wanted \(9, 9\) or"),
        ([np.full((9, 9), np.nan)] * 2, {}, "not finite"),
        ([np.triu(np.ones((9, 9)))] * 2, {}, "a Hessian is symmetric"),
    ]:
        with pytest.raises(DataError, match=words):
            mq.add_hessian_products(data, source, **changes)
    for changes, words in [
        ({"directions": 0}, "directions=0: wanted a whole number, 1 or more"),
        ({"structures": 3}, "structures=3: wanted a whole number, 1 to 2"),
        ({"seed": -1}, "seed=-1"),
        ({"step": 0}, "step=0: wanted Å"),
    ]:
        with pytest.raises(ConfigError, match=words):
            mq.add_hessian_products(data, Springs(), **changes)
    with pytest.raises(ConfigError, match="step=0.1 has no effect: the Hessians are given"):
        mq.add_hessian_products(data, [np.eye(9)] * 2, step=0.1)
    with pytest.raises(ConfigError, match="data is list; wanted a Dataset"):
        mq.add_hessian_products([], Springs())


def _other(data):
    """The same structures with forces of another method."""
    graphs = [g.replace(targets=g.targets | {"forces": 2 * g.targets["forces"]}) for g in data]
    return mq.Dataset(graphs)


def test_wrong_trainings_are_named():
    data = waters(4)
    labelled = mq.add_hessian_products(data, Springs())
    bare = mq.Dataset([g.replace(hessian_vectors=None) for g in labelled])
    options = dict(loss=LOSS, epochs=1, **QUIET)
    for made, train, more, words in [
        (model(), data, {}, "the training data have no labels of 'hessian_products'.*add_hessian_products"),
        (model(), bare, {}, "the train data have labels of hessian_products and no 'hessian_vectors'"),
        (model(), labelled, {"compute": {"accelerate": True}}, "compute.accelerate: a compiled model"),
        (mq.accelerate(model()), labelled, {}, "mq.accelerate: a compiled model is differentiated once"),
        (
            mq.Model(mq.PaiNN(elements=["H", "O"]), ["dipole"]),
            labelled,
            {"loss": {"dipole": 1, "hessian_products": 1}},
            "derivatives of an energy",
        ),
    ]:
        with pytest.raises(ConfigError, match=words):
            mq.fit(made, train, data, **options | more)
    with pytest.raises(ModelError, match="the structures have none; mq.add_hessian_products"):
        view(model())(mq.connect(data[0], 4.0))
    with pytest.raises(DataError, match="hessian_products has the shape"):
        frame = mq.to_atoms(data[0])
        frame.info["hessian_products"] = np.zeros(4)
        mq.from_atoms([frame], keys={"hessian_products": "hessian_products"})


def test_a_backbone_with_a_wrong_third_derivative_is_refused():
    class Constant(torch.autograd.Function):
        """The square, whose second derivative is taken as a constant."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, slope):
            (x,) = ctx.saved_tensors
            return slope.detach() * 2 * x

    class Odd(mq.PaiNN):
        def forward(self, graph):
            found = super().forward(graph)
            blocks = {irrep: Constant.apply(block) for irrep, block in found.blocks.items()}
            return mq.Features(blocks=blocks, coordination=found.coordination)

    data = waters(4)
    labelled = mq.add_hessian_products(data, Springs())
    with pytest.raises(ConfigError, match="the gradient of this loss with respect to the weights of the Odd"):
        mq.fit(model(Odd), labelled, data, loss=LOSS, epochs=1, **QUIET)
