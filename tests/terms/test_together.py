"""Dispersion and long range with Hessians, products of them, uncertainties, replayed data and engines."""

import numpy as np
import pytest
import torch
from ase.build import molecule

import molequi as mq
from molequi.analysis.second_derivatives import second_derivatives
from molequi.engines.aot import export_aot
from molequi.engines.evaluator import Evaluator
from molequi.engines.lammps_files import export_lammps
from molequi.errors import AccelerateError, ConfigError
from molequi.finetuning.dispersion import learnt_labels
from molequi.finetuning.report import FineTuningReport
from molequi.inference.intervals import absolute_errors
from molequi.nn.pair_energies import BOHR, HARTREE
from tests.terms.kit import as_graph, model, salt, water
from tests.terms.test_dispersion import D3, labelled, package, small

TERMS = [{"dispersion": D3}, {"long_range": "latent"}, {"long_range": "equilibrated", "charge": True}]


def product_of_package(atoms, vectors: np.ndarray, h: float = 1e-3) -> np.ndarray:
    """Hessian of D3 times a direction, by central differences of the gradients of the package, in eV/Å."""
    ends = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions += sign * h * vectors
        ends.append(package("d3", moved, False)["gradient"] * HARTREE / BOHR)
    return (ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_hessian_has_the_term(terms, method):
    made = model(["energy", "forces"], **terms)
    atoms = water()
    graph = mq.connect(as_graph(atoms, charge=0), 4.5)
    if "dispersion" in terms and method == "vmap":
        with pytest.raises(ConfigError, match="this dispersion has an operation.*take method='loop'"):
            second_derivatives(made, graph, method="vmap")
        assert second_derivatives(made, graph).method == "loop"
        return
    found = second_derivatives(made, graph, method=method).values
    h, rows = 1e-4, []
    for k in range(9):
        step = torch.zeros(9, dtype=torch.float64)
        step[k] = h
        ends = [
            made(graph.replace(pos=graph.pos + s * step.reshape(3, 3)))["forces"].flatten() for s in (1, -1)
        ]
        rows.append((ends[1] - ends[0]) / (2 * h))
    assert torch.allclose(found, torch.stack(rows), atol=1e-5)
    if "dispersion" in terms:  # what the package says, and not zero
        v = np.random.default_rng(0).normal(size=(3, 3))
        bare = second_derivatives(made.with_dispersion(None), graph, method=method).values
        wanted = product_of_package(atoms, v)
        assert np.abs(wanted).max() > 1e-4
        assert np.allclose((found - bare).numpy() @ v.ravel(), wanted.ravel(), atol=1e-6)


def products(count: int, with_dispersion: bool) -> mq.Dataset:
    """Molecules with labels that mean nothing, with or without the dispersion."""
    graphs = []
    for seed in range(count):
        atoms, rng = molecule("H2O"), np.random.default_rng(seed)
        atoms.rattle(0.05, seed=seed)
        vectors = rng.normal(size=(3, 3))
        values = [rng.normal(size=shape) for shape in (1, (3, 3), (3, 3))]
        if with_dispersion:
            own = package("d3", atoms, False)
            values[0] = values[0] + own["energy"] * HARTREE
            values[1] = values[1] - own["gradient"] * HARTREE / BOHR
            values[2] = values[2] + product_of_package(atoms, vectors)
        targets = dict(zip(("energy", "forces", "hessian_products"), map(torch.from_numpy, values)))
        graphs.append(as_graph(atoms).replace(targets=targets, hessian_vectors=torch.from_numpy(vectors)))
    return mq.Dataset(graphs)


def test_products_in_the_loss_are_without_the_dispersion():
    data = products(2, True), products(2, False)
    made = model(["energy", "forces", "energy_slope", "hessian_products"], dispersion=D3)
    rest = learnt_labels(made, data[0])
    for name in ("energy", "forces", "hessian_products"):
        assert not torch.allclose(data[0].values(name), data[1].values(name), atol=1e-4)
        assert torch.allclose(rest.values(name), data[1].values(name), atol=1e-6)
    graph = mq.connect(data[0][0], 4.5)
    difference = made(graph)["hessian_products"] - made.with_dispersion(None)(graph)["hessian_products"]
    assert torch.allclose(difference, rest[0].targets["hessian_products"] * 0 + difference)
    wanted = data[0][0].targets["hessian_products"] - data[1][0].targets["hessian_products"]
    assert torch.allclose(difference, wanted, atol=1e-6)


def test_training_with_products_and_a_long_range_keeps_its_weights():
    data = products(4, True)
    torch.manual_seed(0)
    backbone = mq.PaiNN(elements=["H", "O"], cutoff=4.0, channels=4, layers=1)
    made = mq.Model(backbone, ["energy", "forces"], long_range="latent", dispersion=D3)
    before = made.terms["long_range"].shift.detach().clone()
    loss = {"energy": 1, "forces": 1, "hessian_products": 1}
    result = mq.fit(made, data[:2], data[2:], epochs=2, loss=loss, logging={"progress": False})
    assert [*made.quantities] == ["energy", "forces"] and made.dispersion is not None
    assert not torch.equal(made.terms["long_range"].shift, before)
    again = mq.evaluate(made, data[2:], progress=False)
    assert again["forces_mae"] == pytest.approx(result.errors["valid"]["forces_mae"], rel=1e-6)


def test_old_data_of_a_replay_are_without_the_dispersion():
    data = labelled(6, with_dispersion=True)
    made = small(True)
    finetune = {"method": "all", "replay": {"data": data[:4]}, "reference_energies": "keep"}
    options = {"epochs": 1, "lr": 1e-9, "loss": {"forces": 1}, "logging": {"progress": False}}
    result = mq.fit(made, data[:4], data[4:], finetune=finetune, **options)
    (report,) = (found for found in result.reports.values() if isinstance(found, FineTuningReport))
    (row,) = (r for r in report.errors if r.data == "old" and r.quantity == "forces" and r.kind == "RMSE")
    each = [mq.evaluate(made, data[k : k + 1], progress=False)["forces_rmse"] for k in range(4)]
    assert min(abs(row.after - one) for one in each) < 1e-6  # one structure is held
    assert result.model.dispersion is not None


def bare_labels(count: int) -> mq.Dataset:
    """Labels that are predictions of a model without its dispersion, and a little noise."""
    made = model(["energy", "forces"], seed=1)
    graphs = []
    for seed in range(count):
        graph, rng = as_graph(water(seed)), np.random.default_rng(seed)
        out = made(mq.connect(graph, 4.5))
        noise = {n: 1e-3 * torch.from_numpy(rng.normal(size=out[n].shape)) for n in ("energy", "forces")}
        graphs.append(graph.replace(targets={n: out[n] + noise[n] for n in noise}))
    return mq.Dataset(graphs)


def test_standard_deviations_and_intervals_of_labels_without_dispersion():
    data, options = bare_labels(24), {"d3": {"functional": "pbe", "in_labels": False}}
    plain, made = (model(["energy", "forces"], seed=1, dispersion=d) for d in (None, options))
    graph = mq.connect(data[0], 4.5)
    one, two = (mq.laplace(m, data[:12], data[12:], progress=False) for m in (plain, made))
    for name in ("energy_std", "forces_std"):
        assert torch.allclose(one(graph)[name], two(graph)[name], rtol=1e-9)
    assert torch.equal(two(graph)["energy"], made(graph)["energy"])  # the model keeps it
    assert abs((made(graph)["energy"] - plain(graph)["energy"]).item()) > 5e-3
    errors = [absolute_errors(m, data)["energy"] for m in (plain, made)]
    assert np.allclose(*errors, rtol=1e-9)


@pytest.mark.parametrize("terms", TERMS)
def test_engines_have_the_term_once_or_refuse_it(terms, tmp_path):
    made = model(["energy", "forces"], **terms)
    totals = {"charge": 0.0} if "charge" in terms else {}
    evaluate, atoms = Evaluator(made, device="cpu", **totals), salt()
    out = evaluate(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=True)
    graph = mq.connect(as_graph(atoms, charge=0), 4.5)
    view = made.predicting(["energy", "forces", mq.quantities.KNOWN["stress"]])(graph)
    assert out.energy == pytest.approx(view["energy"].item(), abs=1e-10)
    assert np.allclose(out.forces, view["forces"], atol=1e-10)
    assert np.allclose(out.virial, -view["stress"][0] * atoms.cell.volume, atol=1e-9)
    with pytest.raises(AccelerateError, match="the model has a .*which cannot be compiled ahead of time"):
        export_aot(made, tmp_path / "model.pt2", atoms, **totals)
    folder = export_lammps(made, tmp_path / "lammps", atoms, **totals)
    assert mq.load(folder / "model.safetensors").energy_terms == made.energy_terms


@pytest.mark.parametrize("terms", [*TERMS, {"repulsion": "zbl"}, {"dispersion": {"d4": "pbe"}}])
def test_float32_positions(terms):
    made = model(charge=True, **{n: t for n, t in terms.items() if n != "charge"})
    rough = model(charge=True, **{n: t for n, t in terms.items() if n != "charge"}).float()
    for pbc in (True, [True, True, False], False):
        graph = mq.connect(as_graph(salt(pbc)[:4], charge=0), 4.5)
        same = graph.map(lambda value: value.float() if value.is_floating_point() else value)
        one, two = made(graph), rough(same)
        assert torch.allclose(one["energy"], two["energy"].double(), atol=1e-4)
        assert torch.allclose(one["forces"], two["forces"].double(), atol=1e-4)


def test_skewed_vectors_of_one_lattice():
    atoms = salt()
    skewed = atoms.copy()
    skewed.set_cell(np.array([[1, 0, 0], [3, 1, 0], [2, 2, 1]]) @ atoms.cell.array)
    for options in ({"d3": "pbe"}, {"d4": {"functional": "pbe", "three_body": False}}):
        made = model(dispersion=options)
        one, two = (made(mq.connect(as_graph(a), 4.5)) for a in (atoms, skewed))
        assert all(torch.allclose(one[name], two[name], atol=1e-9) for name in one)
