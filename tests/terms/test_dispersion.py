"""D3(BJ) and D4: against direct calls of their packages, added once, subtracted once."""

import numpy as np
import pytest
import torch
from ase import Atoms

import molequi as mq
from molequi.errors import ConfigError, MissingPackageError, ModelError, MolequiError
from molequi.nn.pair_energies import BOHR, HARTREE
from molequi.quantities import KNOWN
from molequi.terms import Dispersion, add_dispersion, as_dispersion
from tests.terms.kit import as_graph, differences, model, salt, water

D3 = {"d3": {"functional": "pbe"}}
D4 = {"d4": {"functional": "pbe", "three_body": False}}  # a hundred times as fast in a crystal as with it


def package(kind: str, atoms: Atoms, three_body: bool, charge: float = 0.0) -> dict[str, np.ndarray]:
    """Energy, gradient and virial of the package in its own units."""
    if kind == "d3":
        from dftd3.interface import DispersionModel
        from dftd3.interface import RationalDampingParam as Damping
    else:
        from dftd4.interface import DampingParam as Damping
        from dftd4.interface import DispersionModel
    lattice = (atoms.cell.array / BOHR, np.array(atoms.pbc)) if atoms.pbc.any() else (None, None)
    more = () if kind == "d3" else (charge,)
    made = DispersionModel(atoms.numbers, atoms.positions / BOHR, *more, *lattice)
    return made.get_dispersion(Damping(method="pbe", atm=three_body), grad=True)


@pytest.mark.parametrize(
    ("atoms", "options", "three_body", "charge"),
    [
        (water(), D3, False, 0),
        (salt(), D3, False, 0),
        (water(), {"d3": {"functional": "pbe", "three_body": True}}, True, 0),
        (water(), {"d4": "pbe"}, True, 0),
        (water(), {"d4": "pbe"}, True, 1),
        (salt(), D4, False, 0),
    ],
)
def test_direct_calls_of_the_packages(atoms, options, three_body, charge):
    names = ["energy", "forces"] + ["stress"] * bool(atoms.pbc.all())
    made = model(names, charge=True, dispersion=options)
    graph = mq.connect(as_graph(atoms, charge=charge), 4.5)
    out, bare = made(graph), made.with_dispersion(None)(graph)
    wanted = package(next(iter(options)), atoms, three_body, charge)
    assert abs(float(wanted["energy"])) > 1e-5  # the control
    assert abs((out["energy"] - bare["energy"]).item() / HARTREE - float(wanted["energy"])) < 1e-8
    assert np.abs((out["forces"] - bare["forces"]).numpy() * BOHR / HARTREE + wanted["gradient"]).max() < 1e-8
    if "stress" in names:
        virial = (out["stress"] - bare["stress"])[0].numpy() * atoms.cell.volume / HARTREE
        assert np.abs(virial - wanted["virial"]).max() < 1e-8
    assert float((out["energies"].sum() - out["energy"]).abs()) < 1e-12


@pytest.mark.parametrize("options", [D3, D4])
def test_slab_is_the_middle_of_a_large_cluster(options):
    """Pair energies of the middle cell of a cluster. D4 has charges of the atoms, which its edges change."""
    slab, n = salt([True, True, False])[:4], 9
    found = as_dispersion(options).energies(as_graph(slab), False).item() / HARTREE
    cluster = slab.repeat((n, n, 1))
    middle = 4 * ((n // 2) * n + n // 2)
    if "d3" in options:
        from dftd3.interface import DispersionModel
        from dftd3.interface import RationalDampingParam as Damping
    else:
        from dftd4.interface import DampingParam as Damping
        from dftd4.interface import DispersionModel
    made = DispersionModel(cluster.numbers, cluster.positions / BOHR)
    pairs = made.get_pairwise_dispersion(Damping(method="pbe", atm=False))["additive pairwise energy"]
    wanted = float(pairs[middle : middle + 4].sum())
    assert found == pytest.approx(wanted, rel=1e-3 if "d3" in options else 0.02)


@pytest.mark.parametrize("options", [D3, D4])
def test_forces_and_stress_are_derivatives(options):
    made = model(dispersion=options)
    graph = mq.connect(as_graph(salt()[[0, 1, 2]]), 4.5)
    forces, stress = differences(made, graph, h=1e-5)  # pairs at the abrupt ends of both packages are rare
    out = made(graph)
    assert np.allclose(out["forces"], forces, atol=1e-6) and np.allclose(out["stress"][0], stress, atol=1e-7)


@pytest.mark.parametrize("options", [D3, D4])
def test_dispersion_falls_like_the_sixth_power(options):
    made = model(["energy"], dispersion=options)
    alone = 2 * made(mq.connect(as_graph(Atoms("Ar")), 4.5))["energy"].item()
    distances = np.array([16.0, 20.0, 25.0])
    energies = [
        made(mq.connect(as_graph(Atoms("Ar2", [[0, 0, 0], [0, 0, d]])), 4.5))["energy"].item() - alone
        for d in distances
    ]
    slope = np.polyfit(np.log(distances), np.log(-np.array(energies)), 1)[0]
    assert slope == pytest.approx(-6, abs=0.1)  # C8 adds a little: 3 <r⁴>/<r²> / r² of it


def test_supercell_and_distant_molecules_add_up():
    made = model(["energy"], dispersion=D3)
    one, two = (
        made(mq.connect(as_graph(a), 4.5))["energy"].item() for a in (salt(), salt().repeat((1, 2, 1)))
    )
    assert two == pytest.approx(2 * one, rel=1e-8)
    far = water()
    far.positions += [0, 0, 500.0]
    both, alone = (made(mq.connect(as_graph(a), 4.5))["energy"].item() for a in (water() + far, water()))
    assert both == pytest.approx(2 * alone, abs=1e-10)


def test_second_derivatives_are_central_differences_and_third_ones_are_refused():
    dispersion = as_dispersion(D3)
    graph = as_graph(water())

    def energy(pos: torch.Tensor) -> torch.Tensor:
        return dispersion.energies(graph.replace(pos=pos), False).sum()

    pos = graph.pos.clone().requires_grad_()
    hessian = torch.autograd.functional.hessian(energy, pos.detach()).reshape(9, 9)
    h, columns = 3e-5, []
    for k in range(9):
        step = torch.zeros(9, dtype=torch.float64)
        step[k] = h
        ends = [
            torch.autograd.functional.jacobian(energy, graph.pos + s * step.reshape(3, 3)).flatten()
            for s in (1, -1)
        ]
        columns.append((ends[0] - ends[1]) / (2 * h))
    assert torch.allclose(hessian, torch.stack(columns), rtol=1e-5, atol=1e-8)
    (slope,) = torch.autograd.grad(energy(pos), pos, create_graph=True)
    many = torch.func.vmap(lambda v: torch.autograd.grad(slope, pos, v, retain_graph=True)[0])
    assert torch.allclose(many(torch.eye(9).double().reshape(9, 3, 3)).reshape(9, 9), hessian)
    (second,) = torch.autograd.grad(slope.square().sum(), pos, create_graph=True)
    with pytest.raises(ModelError, match=r"model\.with_dispersion\(None\)"):
        torch.autograd.grad(second.sum(), pos)


def labelled(count: int, *, with_dispersion: bool, names=("energy", "forces", "stress")) -> mq.Dataset:
    """Structures whose labels are numbers that mean nothing, with or without the dispersion."""
    graphs = []
    for seed in range(count):
        atoms = salt(seed=seed)
        found = package("d3", atoms, False) if with_dispersion else {"energy": 0, "gradient": 0, "virial": 0}
        values = {
            "energy": np.reshape(found["energy"], 1) * HARTREE,
            "forces": np.broadcast_to(-np.array(found["gradient"]) * HARTREE / BOHR, (8, 3)),
            "stress": np.broadcast_to(np.array(found["virial"]) * HARTREE / atoms.cell.volume, (1, 3, 3)),
        }
        rng = np.random.default_rng(seed)
        noise = {n: 0.01 * rng.normal(size=v.shape) for n, v in values.items()}
        targets = {n: torch.tensor(values[n] + noise[n], dtype=torch.float64) for n in names}
        graphs.append(as_graph(atoms).replace(targets=targets))
    return mq.Dataset(graphs)


def dispersion_of(seed: int) -> dict[str, torch.Tensor]:
    """Energy, forces and stress of one of these structures."""
    own = (labelled(seed + 1, with_dispersion=with_it)[seed].targets for with_it in (True, False))
    with_it, without = own
    return {name: value - without[name] for name, value in with_it.items()}


def small(in_labels: bool, *, direct: bool = False) -> mq.Model:
    torch.manual_seed(0)
    forces = mq.heads.Vector("forces") if direct else "forces"
    options = {"d3": {"functional": "pbe", "in_labels": in_labels}}
    backbone = mq.PaiNN(elements=["Na", "Cl"], cutoff=4.0, channels=4, layers=1)
    return mq.Model(backbone, ["energy", forces, "stress"], dispersion=options)


TRAINING = {"epochs": 1, "lr": 1e-3, "loss": {"energy": 1, "forces": 1, "stress": 1}}


def test_labels_are_without_dispersion_in_a_training_and_predictions_with_it(tmp_path):
    parts = labelled(6, with_dispersion=True)
    results = []
    for in_labels in (True, False):
        data = parts if in_labels else labelled(6, with_dispersion=False)
        options = TRAINING | {"out": tmp_path / str(in_labels), "logging": {"progress": False}}
        results.append(mq.fit(small(in_labels), data[:4], data[4:], **options))
        # What a training says of the errors is what the finished model has.
        again = mq.evaluate(mq.load(tmp_path / str(in_labels)), data[4:], progress=False)
        for name in ("energy_mae", "forces_mae", "stress_mae"):
            assert again[name] == pytest.approx(results[-1].errors["valid"][name], rel=1e-6)
    # The network learned the same: labels with dispersion less the dispersion are those without it.
    one, two = (r.model.state_dict() for r in results)
    assert all(torch.allclose(one[n], two[n], atol=1e-6) for n in one)
    graph = mq.connect(parts[5], 4.0)
    with_it = results[0].model(graph)
    without = results[0].model.with_dispersion(None)(graph)
    wanted = dispersion_of(5)
    for name in ("energy", "forces", "stress"):  # once, not twice
        assert torch.allclose(with_it[name] - without[name], wanted[name], atol=1e-6)
    log = (tmp_path / "True" / "run.log").read_text()
    assert "dispersion: D3(BJ) of pbe, added to what the network predicts; subtracted from the labels" in log
    assert "dispersion  D3(BJ) of pbe" in str(results[0].model)
    # Energies of simulations are compared with the lowest one of the training, with dispersion.
    bounds = [mq.load(tmp_path / name).metadata["lowest_energy"] for name in ("True", "False")]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-6)
    assert bounds[0] < 0.9 * min(dispersion_of(seed)["energy"].item() for seed in range(4)) / 8 < 0


@pytest.mark.filterwarnings("ignore::molequi.errors.TrainingWarning")
def test_forces_without_energies_and_forces_of_a_head_of_their_own():
    data = labelled(6, with_dispersion=True, names=("forces",))
    quiet = {"epochs": 1, "lr": 1e-9, "logging": {"progress": False}}
    for direct in (False, True):
        made = small(True, direct=direct).predicting(["energy", "forces"])
        mq.fit(made, data[:4], data[4:], loss={"forces": 1}, **quiet)
        graph = mq.connect(data[5], 4.0)
        difference = made(graph)["forces"] - made.with_dispersion(None)(graph)["forces"]
        assert torch.allclose(difference, dispersion_of(5)["forces"], atol=1e-8)


def test_an_ensemble_and_a_further_training_count_it_once(tmp_path):
    data = labelled(6, with_dispersion=True)
    quiet = TRAINING | {"logging": {"progress": False}}
    result = mq.fit(small(True), data[:4], data[4:], seed=[0, 1], **quiet)
    graph = mq.connect(data[5], 4.0)
    difference = result.model(graph)["energy"] - result.model.with_dispersion(None)(graph)["energy"]
    assert difference.item() == pytest.approx(dispersion_of(5)["energy"].item(), abs=1e-6)
    assert result.model.energy_terms["dispersion"].kind == "d3"
    made = result.members[0].model
    mq.fit(made, data[:4], data[4:], finetune="all", **quiet)
    difference = made(graph)["energy"] - made.with_dispersion(None)(graph)["energy"]
    assert difference.item() == pytest.approx(dispersion_of(5)["energy"].item(), abs=1e-6)


def test_calculator_has_forces_and_stress_of_the_dispersion():
    made = model(dispersion=D3)
    atoms = salt()
    found = {}
    for name, one in (("with", made), ("without", made.with_dispersion(None))):
        atoms.calc = mq.Calculator(one)
        found[name] = (atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False))
    wanted = package("d3", atoms, False)
    energy, forces, stress = (a - b for a, b in zip(found["with"], found["without"]))
    assert energy == pytest.approx(float(wanted["energy"]) * HARTREE, abs=1e-9)
    assert np.allclose(forces, -wanted["gradient"] * HARTREE / BOHR, atol=1e-9)
    assert np.allclose(stress, wanted["virial"] * HARTREE / atoms.cell.volume, atol=1e-10)


def test_audit_passes():
    report = mq.audit(model(["energy", "forces"], dispersion=D3), [as_graph(water())], draws=2)
    assert report.passed, str(report)
    reasons = {row.check: row.reason for row in report.rows}
    assert reasons["fragments"] == "the model has a dispersion: distant atoms interact"


def test_other_quantities_do_not_change():
    known = {n: KNOWN[n] for n in ("energy", "dipole")}
    out = {"dipole": torch.ones(1, 3)}
    graph = as_graph(water())
    again = add_dispersion(out, graph, as_dispersion(D3), known, charges=False, create_graph=False)
    assert again == out
    assert model(["energy", "dipole"], dispersion=D3).predicting(["dipole"])(mq.connect(graph, 4.5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("d3", "wanted {d3: pbe}"),
        ({"d3": "pbe", "d4": "pbe"}, "wanted {d3: pbe}"),
        ({"d2": "pbe"}, "wanted {d3: pbe}"),
        ({"d3": {}}, "wanted a functional"),
        ({"d3": "nonsense"}, "dispersion.d3: functional='nonsense'.*such as 'pbe'"),
        ({"d4": "nonsense"}, "dispersion.d4: functional='nonsense'"),
        ({"d3": {"functional": "pbe", "labels": True}}, "dispersion.d3.*labels"),
        ({"d3": {"functional": "pbe", "in_labels": "yes"}}, "in_labels"),
    ],
)
def test_wrong_descriptions_say_what_to_write(given, message):
    with pytest.raises(ConfigError, match=message):
        as_dispersion(given)
    with pytest.raises(ModelError, match=message):
        model(["energy"], dispersion=given)


def test_missing_package_and_element_without_parameters(monkeypatch):
    graph = mq.Graph.single([[0.0, 0, 0], [0, 0, 3.0]], [118, 118])
    for options in (D3, D4):
        with pytest.raises(
            ModelError, match=r"no parameters of Og \(atomic number 118\); wanted .* Lr \(103\)"
        ):
            as_dispersion(options).energies(graph, False)
    alike = mq.Graph.single([[0.0, 0, 0], [0, 0, 0]], ["H", "H"])
    with pytest.raises(
        ModelError, match=r"dispersion D4 of a structure of 2 atoms \(H\): the package dftd4 says"
    ):
        as_dispersion(D4).energies(alike, False)
    monkeypatch.setattr("molequi.util.optional.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"needs dftd3, .*pip install 'molequi\[dispersion\]'"):
        Dispersion(kind="d3", functional="pbe")
    with pytest.raises(MolequiError):
        model(["energy"], dispersion=D4)
