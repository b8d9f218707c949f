"""Laws of the Laplace approximation of the last layer: Bayesian regression, files, symmetry, and what it refuses."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

import molequi as mq
from molequi.audit import symmetry_report, verify
from molequi.cli import main
from molequi.errors import ConfigError, DataWarning, ModelError
from molequi.heads import LinearScalar, Scalar
from molequi.inference import calibration
from molequi.last_layer import LaplaceEnsemble, check_linear, last_layer
from molequi.models import BACKBONES
from molequi.quantities import KNOWN
from molequi.symmetry import random_orthogonal

from .audit.test_all_models import SMALL

CUTOFF = 3.0
DATA = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))


def model(predict=("energy", "forces"), seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = mq.PaiNN(elements=["C", "H", "O"], cutoff=CUTOFF, channels=6, layers=1, **options)
        return mq.Model(backbone, predict).double().eval()


def trusted(of=None, n=20, **options):
    of = model() if of is None else of
    return mq.laplace(of, DATA[:n], DATA[n : 2 * n], progress=False, **options)


def graph(count=3):
    return mq.connect(mq.collate([DATA[k] for k in range(count)]), CUTOFF)


def design(of, data):
    """Rows of energies (per atom) and forces by the weights of a linear head, one backward pass a weight."""
    energy, forces = [], []
    head = of.heads["energy"]
    for one in data:
        g = mq.connect(one, CUTOFF)
        pos = g.pos.detach().requires_grad_()
        h = of.backbone(g.replace(pos=pos)).scalars
        total = (h * float(head.scale)).sum(0)  # (C,): the energy is w · total + constants
        rows = [torch.autograd.grad(total[c], pos, retain_graph=True)[0] for c in range(len(total))]
        energy.append(total.detach().numpy() / len(pos))
        forces.append(-torch.stack(rows, -1).reshape(-1, len(total)).numpy())
    return np.stack(energy), np.concatenate(forces)


def test_equals_bayesian_linear_regression():
    of = model([LinearScalar("energy"), "forces"])
    of.standardize(DATA[:20].statistics(CUTOFF))
    found = trusted(of, directions=6)
    train, valid, new = DATA[:20], DATA[20:40], DATA[40:45]
    energy, forces = design(of, train)
    predicted = {
        name: np.stack([one[name] for one in mq.predict(of, valid, progress=False)]) for name in of.quantities
    }
    energy_error = (predicted["energy"] - valid.values("energy").numpy()) / 9
    forces_error = predicted["forces"].reshape(-1, 3) - valid.values("forces").numpy()
    gram = energy.T @ energy / np.mean(energy_error**2) + forces.T @ forces / np.mean(forces_error**2)
    e, f = design(of, valid)
    cost, best = np.inf, None
    for regularizer in np.linalg.eigvalsh(gram)[-1] * 10.0 ** np.arange(-10, 1):
        posterior = np.linalg.inv(gram + regularizer * np.eye(len(gram)))
        total, factors = 0.0, {}
        for name, rows, error in (("energy", e, energy_error[:, None]), ("forces", f, forces_error)):
            s2 = np.einsum("ni,ij,nj->n", rows, posterior, rows).reshape(len(error), -1).mean(1)
            e2 = np.square(error).mean(1)
            factors[name] = np.sqrt(e2.mean() / s2.mean())
            total += np.mean(np.log(factors[name] ** 2 * s2) + e2 / (factors[name] ** 2 * s2))
        if total < cost:
            cost, best = total, (posterior, factors)
    posterior, factors = best
    root = found.roots["energy"].numpy()
    assert np.allclose(root @ root.T, posterior, rtol=1e-6, atol=1e-9 * posterior.max())
    assert found.scales == pytest.approx(factors, rel=1e-6)
    e, f = design(of, new)
    out = mq.predict(found, new, progress=False)
    wanted = factors["energy"] * 9 * np.sqrt(np.einsum("ni,ij,nj->n", e, posterior, e))
    assert np.allclose([one["energy_std"] for one in out], wanted, rtol=1e-6)
    by_atom = np.einsum("ni,ij,nj->n", f, posterior, f).reshape(-1, 3).mean(1)
    wanted = factors["forces"] * np.sqrt(by_atom)
    assert np.allclose(np.concatenate([one["forces_std"] for one in out]), wanted, rtol=1e-6)
    assert wanted.min() > 0 and np.ptp(wanted) > 0.1 * wanted.mean()


def test_directions_estimate_the_exact_variance():
    """Over many random bases the mean of the estimated variance is the exact one; each differs from it."""
    exact, g = trusted(directions=7), graph()
    root = exact.roots["energy"]
    wanted = exact(g)["forces_std"].square()
    few, found = LaplaceEnsemble(model(), exact.roots, exact.scales, 3), []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        few.root_energy = root @ torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=root.dtype))[0]
        found.append(few(g)["forces_std"].square())
    mean = torch.stack(found).mean(0)
    assert torch.allclose(mean, wanted, rtol=0.3)
    assert float(mean.sum()) == pytest.approx(float(wanted.sum()), rel=0.1)
    assert (found[0] / wanted - 1).abs().max() > 0.2


def test_predictions_are_those_of_the_model_and_files_keep_all(tmp_path):
    of = model()
    found, g = trusted(of), graph()
    out = found(g)
    assert all(torch.equal(out[name], value) for name, value in of(g).items())
    assert set(out) - set(of(g)) == {"energy_std", "forces_std"} == {q.name for q in found.stds.values()}
    mq.save(found, tmp_path / "model.safetensors")
    again = mq.load(tmp_path / "model.safetensors")
    assert isinstance(again, LaplaceEnsemble) and again.directions == found.directions
    assert all(torch.equal(value, out[name]) for name, value in again(g).items())
    assert "Laplace" in str(again) and again.metadata["laplace"]["valid"] == 20
    again.metadata["lowest_energy"] = "a record of the training"
    assert again.mean_model.metadata == {"lowest_energy": "a record of the training"}
    assert next(again.mean_model.parameters()) is next(again.parameters())
    half = again.calibrated({"forces": 0.5})(g)
    assert torch.allclose(half["forces_std"], out["forces_std"] / 2) and torch.equal(
        half["energy_std"], out["energy_std"]
    )


def test_a_view_of_fewer_quantities_is_saved_and_calibrated(tmp_path):
    of = trusted(model(("energy", "forces", "dipole")))
    for whole, names in ((of, ["energy", "forces"]), (of, ["energy"]), (_pair(), ["energy"])):
        view, g = whole.predicting(names), graph()
        again = mq.load(mq.save(view, tmp_path / "view.safetensors"))
        out = whole(g)
        assert list(again.quantities) == names
        assert all(torch.equal(value, out[name]) for name, value in again(g).items())
        twice = view.calibrated({"energy": 2.0})(g)
        assert torch.allclose(twice["energy_std"], 2 * out["energy_std"])


def _pair():
    return mq.Ensemble([model(seed=0), model(seed=1)], {"energy": 3.0, "forces": 2.0})


def test_rotations_and_batches_change_nothing():
    found, g = trusted(), graph()
    out = found(g)
    turn = random_orthogonal(3, generator=torch.Generator().manual_seed(1)).double()
    turned = found(
        mq.connect(mq.collate([DATA[k].replace(pos=DATA[k].pos @ turn.T) for k in range(3)]), CUTOFF)
    )
    single = found(mq.connect(DATA[1], CUTOFF))
    for name in ("energy_std", "forces_std"):
        assert torch.allclose(turned[name], out[name], rtol=1e-9), name
    assert torch.allclose(single["forces_std"], out["forces_std"][9:18], rtol=1e-9)
    assert torch.allclose(single["energy_std"], out["energy_std"][1:2], rtol=1e-9)


def test_stress_has_one_with_the_scale_of_the_energy():
    found = trusted()
    both = found.predicting([*found.quantities.values(), KNOWN["stress"]])
    crystal = mq.connect(mq.from_atoms([bulk("C", "diamond", 3.6)])[0], CUTOFF)
    out = both(crystal.map(lambda v: v.double() if v.is_floating_point() else v))
    assert float(out["stress_std"]) > 0
    doubled = found.calibrated({"energy": 2.0}).predicting([*found.quantities.values(), KNOWN["stress"]])
    again = doubled(crystal.map(lambda v: v.double() if v.is_floating_point() else v))
    assert torch.allclose(again["stress_std"], 2 * out["stress_std"])


def test_uncertainty_has_a_gradient():
    found, g = trusted(), graph(1)
    pos = g.pos.clone().requires_grad_()
    slope = torch.autograd.grad(found(g.replace(pos=pos), create_graph=True)["forces_std"].sum(), pos)[0]
    step = torch.zeros_like(pos)
    step[0, 0] = 1e-5
    up, down = (found(g.replace(pos=g.pos + s * step))["forces_std"].sum() for s in (1, -1))
    assert torch.isclose(slope[0, 0], (up - down) / 2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_heads_of_every_backbone_are_linear_in_their_last_layer(name):
    options = SMALL[name][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        of = mq.Model(
            BACKBONES[name](elements=["C", "H", "O"], **({"cutoff": CUTOFF} | options)), ["energy"]
        ).eval()
    with torch.no_grad():
        for p in of.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    check_linear(of, mq.connect(mq.collate([DATA[0], DATA[1]]), of.cutoff, k=of.k))


class Squared(Scalar):
    """A head whose output is a square of that of its last layer."""

    def contributions(self, graph, features):
        return super().contributions(graph, features).square()


def test_what_it_refuses_is_named():
    with pytest.raises(ModelError, match=r"Squared of 'energy': its output is not linear in its last layer"):
        trusted(model([Squared("energy")]))
    taste = mq.Quantity("taste", classes=("sweet", "sour"))
    with pytest.raises(
        ModelError,
        match=r"Classes of 'taste': it predicts classes.*leave it out: model.predicting\(\['energy'\]\)",
    ):
        LaplaceEnsemble(model(["energy", taste]), {}, {})
    with pytest.raises(ConfigError, match=r"no labels of charges; wanted some"):
        trusted(model(["energy", "forces", "charges"]))
    with pytest.raises(ModelError, match=r"is of one Model, found Ensemble; an Ensemble has standard"):
        mq.laplace(mq.Ensemble([model(), model(seed=1)]), DATA[:20], DATA[20:40], progress=False)
    with pytest.raises(ModelError, match=r"has the levels of theory 'a', 'b'.*model.at\('a'\)"):
        LaplaceEnsemble(mq.Model(mq.PaiNN(elements=["H"]), ["energy"], levels=["a", "b"]), {}, {})
    with pytest.raises(
        ModelError, match=r"roots\['energy'\]: found one of shape \(2, 2\); wanted a matrix of shape \(7, 7\)"
    ):
        LaplaceEnsemble(model(), {"energy": torch.eye(2)}, {})
    with pytest.raises(ModelError, match="directions is 1; wanted a whole number from 2"):
        LaplaceEnsemble(model(), {"energy": torch.eye(7)}, {}, 1)
    with pytest.raises(ConfigError, match="9 validation structures; wanted 10 or more"):
        trusted(n=9)
    with pytest.raises(ConfigError, match=r"laplace.*directions.*found 0"):
        trusted(directions=0)
    assert list(last_layer(torch.nn.SiLU())) == []


def test_calculator_calibration_and_limits_use_it():
    found = trusted()
    atoms = molecule("CH3CH2OH")
    atoms.calc = mq.Calculator(found)
    atoms.get_forces()
    assert atoms.calc.results["forces_std"].shape == (9,) and atoms.calc.get_property("energy_std", atoms) > 0
    with pytest.raises(
        mq.errors.SimulationError, match=r"the force on atom \d+ \(.\) is uncertain: its standard deviation"
    ):
        mq.md(atoms, found, steps=2, limits={"max_std": 1e-6}, progress=False)
    report = calibration(found, DATA[40:60])
    assert 0.3 < report["forces"].scale < 3


def test_a_second_approximation_and_single_atoms_are_named():
    made = mq.Model(mq.PaiNN(elements=["H"], channels=6, layers=1), ["energy"])
    atom = mq.Graph.single([[0.0, 0.0, 0.0]], [1], targets={"energy": torch.tensor([-13.0])})
    done = LaplaceEnsemble(made, {"energy": torch.eye(7)}, {})
    with pytest.raises(ModelError, match="has a Laplace approximation already; model.mean_model is the"):
        mq.laplace(done, [atom], [atom])
    with pytest.raises(
        ConfigError, match="found LaplaceEnsemble.*model.mean_model is the Model of mq.laplace"
    ):
        mq.fit(done, [], [], epochs=1)
    with pytest.raises(ConfigError, match="energy of the training data does not depend on the last layer"):
        with pytest.warns(DataWarning, match="in more than one part"):
            mq.laplace(made, [atom], [atom] * 10, progress=False)


def test_validation_data_that_were_trained_on_are_named():
    with pytest.warns(DataWarning, match="1 structure is in more than one part.*in train is .*in valid"):
        mq.laplace(model(), DATA[:12], DATA[11:23], progress=False)


def test_the_symmetry_report_is_that_of_the_trained_model(tmp_path, capsys):
    made = model(["energy"])
    made.metadata = {"symmetry_report": symmetry_report(made, DATA[:1], draws=2).to_dict()}
    file = str(mq.save(trusted(made), tmp_path / "laplace.safetensors"))
    assert main(["info", file, "--verify"]) == 0
    assert "nothing grew" in capsys.readouterr().out
    other = mq.load(file)
    next(other.mean_model.parameters()).data += 1.0
    with pytest.raises(ModelError, match="for other weights"):
        verify(other)
