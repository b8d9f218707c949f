"""Long range and repulsion as terms of any backbone: laws, known answers, and what goes on with such a model."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

import molequi as mq
from molequi.config.names import Names
from molequi.config.schema import build_model, read_config
from molequi.config.start import start_model
from molequi.errors import AccelerateError, ConfigError, MolequiError
from molequi.nn.pair_energies import COULOMB
from molequi.terms import EquilibratedCharges
from molequi.terms.long_range import RIDGE
from tests.terms.kit import as_graph, differences, model, salt, water

CHARGES = {1: 0.4, 8: -0.8, 11: 1.0, 17: -1.0, 18: 0.3}  # e, by atomic number
TERMS = [
    {"long_range": "latent"},
    {"long_range": {"charges": "latent", "channels": 3, "width": 0.7}},
    {"long_range": "equilibrated"},
    {"repulsion": "zbl"},
]


def fixed(made: mq.Model) -> mq.Model:
    """The model with the charges of the table, whatever the features are."""
    term = made.terms["long_range"]
    torch.nn.init.zeros_(term.net[-1].weight)
    torch.nn.init.zeros_(term.net[-1].bias)
    with torch.no_grad():
        for z, q in CHARGES.items():
            term.shift[z] = q
    return made


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize(
    "atoms", [water(), salt(), salt([True, True, False])], ids=["molecule", "crystal", "slab"]
)
def test_forces_and_stress_are_derivatives(terms, atoms):
    made = model(charge=True, **terms)
    atoms = atoms[:4]  # for the time
    atoms.set_cell(0.75 * atoms.cell.array, scale_atoms=True)  # close, for the repulsion
    atoms.positions *= 1.0 if atoms.pbc.any() else 0.85
    graph = mq.connect(as_graph(atoms, charge=1), 4.5)
    out = made(graph)
    bare = mq.Model(made.backbone, ["energy"])
    bare.heads = made.heads
    assert abs(out["energy"].item() - bare(graph)["energy"].item()) > 1e-3  # the term does something
    forces, stress = differences(made, graph)
    assert np.allclose(out["forces"], forces, atol=2e-7 * max(1, np.abs(forces).max()))
    assert float((out["energies"].sum() - out["energy"]).abs()) < 1e-12
    if stress is not None:
        assert np.allclose(out["stress"][0], stress, atol=1e-8)


def pair(distance: float) -> mq.Graph:
    return mq.connect(as_graph(Atoms("NaCl", [[0, 0, 0], [0, 0, distance]])), 4.5)


def test_ions_attract_each_other_like_one_over_r():
    made = fixed(model(["energy"], long_range="latent"))
    alone = sum(made(mq.connect(as_graph(Atoms(s)), 4.5))["energy"].item() for s in ("Na", "Cl"))
    distances = np.array([8.0, 12.0, 20.0, 40.0])
    energies = np.array([made(pair(d))["energy"].item() - alone for d in distances])
    slope, intercept = np.polyfit(np.log(distances), np.log(-energies), 1)
    assert slope == pytest.approx(-1, abs=1e-6) and math.exp(intercept) == pytest.approx(COULOMB, rel=1e-6)
    without = model(["energy"])
    assert float(without(pair(8.0))["energy"]) == float(without(pair(40.0))["energy"])  # the control


def test_neutral_molecules_far_apart_add_up_and_dipoles_fall_like_the_third_power():
    made = fixed(model(["energy"], long_range="latent"))
    one, energies = water(), []
    alone = made(mq.connect(as_graph(one), 4.5))["energy"].item()
    for distance in (50.0, 100.0, 200.0, 1e4):
        other = one.copy()
        other.positions += [0, 0, distance]
        energies.append(made(mq.connect(as_graph(one + other), 4.5))["energy"].item() - 2 * alone)
    assert abs(energies[-1]) < 1e-9 < abs(energies[0])
    assert math.log2(energies[0] / energies[1]) == pytest.approx(3, abs=0.02)
    assert math.log2(energies[1] / energies[2]) == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("terms", TERMS)
def test_supercell_has_as_many_times_the_energy(terms):
    made = model(["energy"], charge=True, **terms)
    one, two = salt(), salt().repeat((1, 2, 1))
    small, large = (made(mq.connect(as_graph(a, charge=0), 4.5))["energy"].item() for a in (one, two))
    assert large == pytest.approx(2 * small, rel=1e-10)


def test_equilibrated_charges_of_two_atoms():
    """Known answer: q = (χ_2 - χ_1 + Q (η_2 + s - J)) / (η_1 + η_2 + 2 s - 2 J) for the first atom."""
    made = model(["energy", "charges", "dipole"], charge=True, long_range="equilibrated")
    term = made.terms["long_range"]
    assert isinstance(term, EquilibratedCharges) and made.heads["charges"].charges is term
    torch.nn.init.zeros_(term.net[-1].weight)
    torch.nn.init.zeros_(term.net[-1].bias)
    term.shift.data[11], term.shift.data[17] = torch.tensor([-2.0, 1.0]), torch.tensor([3.0, -2.0])
    hardness = [RIDGE + math.log1p(math.exp(10.0 - RIDGE + x)) for x in (1.0, -2.0)]
    itself, both = COULOMB / math.sqrt(math.pi), COULOMB * math.erf(3.0 / 2) / 3.0
    for total in (0.0, 1.0, -2.0):
        graph = mq.connect(as_graph(Atoms("NaCl", [[0, 0, 0], [0, 0, 3.0]]), charge=total), 4.5)
        out = made(graph)
        wanted = (3.0 + 2.0 + total * (hardness[1] + itself - both)) / (sum(hardness) + 2 * (itself - both))
        assert out["charges"].tolist() == pytest.approx([wanted, total - wanted], abs=1e-12)
        # μ = Σ q (r - r̄)
        assert float(out["dipole"][0, 2]) == pytest.approx(1.5 * (total - 2 * wanted), abs=1e-12)


def test_charges_add_up_to_the_total_charge_of_each_structure():
    made = model(["energy", "charges"], charge=True, long_range="equilibrated")
    atoms = [water(), salt(), salt([True, True, False]), salt(False)]
    graphs = [
        mq.Graph.single(a.positions, a.numbers, cell=a.cell.array, pbc=a.pbc, charge=q)
        for a, q in zip(atoms, (1, 0, -2, 0.5))
    ]
    batch = mq.collate([mq.connect(g, 4.5) for g in graphs])
    out = made(batch)
    sums = torch.zeros(4, dtype=torch.float64).index_add(0, batch.batch, out["charges"])
    assert sums.tolist() == pytest.approx([1, 0, -2, 0.5], abs=1e-12)
    for k, graph in enumerate(graphs):  # a batch is what its structures are
        alone = made(mq.connect(graph, 4.5))
        assert float(alone["energy"]) == pytest.approx(float(out["energy"][k]), abs=1e-9)
        assert torch.allclose(alone["charges"], out["charges"][batch.batch == k], atol=1e-10)


def test_charges_minimize_the_energy():
    made = model(["energy", "charges"], charge=True, long_range="equilibrated")
    graph = mq.connect(as_graph(salt(False), charge=1), 4.5)
    features = made.backbone(graph)
    term = made.terms["long_range"]
    _, potential, electronegativity = term._solved(graph, features)
    level = electronegativity + potential  # ∂E/∂q is one chemical potential
    assert (level - level.mean()).abs().max().item() < 1e-9
    assert electronegativity.std().item() > 0.1  # the control


@pytest.mark.parametrize(
    "terms", [{"long_range": "latent"}, {"long_range": "equilibrated"}, {"repulsion": "zbl"}]
)
def test_audit_passes_and_knows_that_fragments_interact(terms):
    charge = terms.get("long_range") == "equilibrated"
    fields = {"charge": 0} if charge else {}
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    crystal.rattle(0.1)
    structures = [as_graph(a, **fields) for a in (water(), crystal)[: 1 if "repulsion" in terms else 2]]
    report = mq.audit(model(["energy", "forces"], charge=charge, **terms), structures, draws=2)
    assert report.passed, str(report)
    skipped = {row.check: row.reason for row in report.rows if row.verdict == "not applicable"}
    if "repulsion" in terms:
        assert "fragments" not in skipped
    elif not charge:
        assert skipped["fragments"] == "the model has a long range: distant atoms interact"
        assert skipped["no edges"] == skipped["fragments"]


def test_file_ensemble_level_and_dynamics(tmp_path):
    made = model(long_range={"charges": "latent", "channels": 2}, repulsion="zbl")
    again = mq.load(mq.save(made, tmp_path / "model.safetensors"))
    graph = mq.connect(as_graph(salt()), 4.5)
    assert all(torch.equal(v, again(graph)[n]) for n, v in made(graph).items())
    assert "latent charges in 2 channels of width 1 Å" in str(again) and "ZBL" in str(again)
    both = mq.Ensemble(
        [made, model(seed=1, long_range={"charges": "latent", "channels": 2}, repulsion="zbl")]
    )
    assert "long range" in str(both)
    loaded = mq.load(mq.save(both, tmp_path / "both.safetensors"))
    assert torch.equal(loaded(graph)["energy_std"], both(graph)["energy_std"])
    atoms = salt()
    run = mq.md(atoms, made, steps=5, temperature=300, ensemble="nve", seed=0, progress=False)
    assert run.steps == 5
    levels = model(levels=["pbe", "r2scan"], long_range="latent")
    assert levels.at("pbe").terms["long_range"] is levels.terms["long_range"]


def test_gradient_reaches_the_weights_of_the_charges():
    made = model(long_range="latent").train()
    made(mq.connect(as_graph(salt()), 4.5))["forces"].square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for n, p in made.terms.named_parameters() if "shift" not in n)


def test_repulsion_keeps_atoms_apart_and_leaves_bonds_alone():
    made = model(["energy"], repulsion="zbl")
    term = made.terms["repulsion"]

    def energy(symbols: str, distance: float) -> float:
        graph = mq.connect(as_graph(Atoms(symbols, [[0, 0, 0], [0, 0, distance]])), 4.5)
        return term.energies(graph, made.backbone(graph)).sum().item()

    assert energy("OH", 0.97) == 0.0 < energy("OH", 0.96)  # 0.66 and 0.31 Å
    assert energy("NaCl", 2.68) == pytest.approx(0, abs=1e-12)  # 1.66 and 1.02 Å
    # The bare law (constants of LAMMPS) times the cutoff function at a tenth of its end.
    r, end = 0.097, 0.97
    x = r * (8**0.23 + 1) / 0.4685
    parts = ((0.02817, 0.20162), (0.28022, 0.4029), (0.50986, 0.94229), (0.18175, 3.1998))
    u = r / end
    smooth = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
    wanted = 14.399645 * 8 / r * sum(c * math.exp(-a * x) for c, a in parts) * smooth
    assert energy("OH", r) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize(
    ("quantities", "terms", "message"),
    [
        (["energy"], {"long_range": "ewald"}, "long_range"),
        (["energy"], {"long_range": {"width": 0}}, "long_range.width"),
        (["energy"], {"long_range": {"charge": "latent"}}, "charges"),
        (["energy"], {"long_range": {"charges": "equilibrated", "channels": 2}}, "leave channels out"),
        (["energy"], {"repulsion": "lj"}, "repulsion"),
        (["dipole"], {"long_range": "latent"}, "predict 'energy'"),
        (["energy"], {"long_range": "equilibrated"}, r"PaiNN\(inputs=mq.Inputs\(charge=True\)\)"),
        ([mq.heads.ZBLEnergy(cutoff=4.0)], {"repulsion": "zbl"}, "has a repulsion of its own"),
    ],
)
def test_wrong_terms_say_what_to_write(quantities, terms, message):
    with pytest.raises(MolequiError, match=message):
        model(quantities, **terms)


def test_electrostatics_twice_and_a_missing_charge_are_refused():
    head = mq.heads.PhysicalEnergy(cutoff=4.0, repulsion=None, switch=1.0)
    with pytest.raises(
        MolequiError, match="PhysicalEnergy has electrostatics already; build it with width=None"
    ):
        model([head], charge=True, long_range="latent")
    made = model(["energy"], charge=True, long_range="equilibrated")
    graph = mq.connect(as_graph(water(), charge=0), 4.5)
    with pytest.raises(MolequiError, match="needs the total charge of each structure"):
        made.terms["long_range"](graph.replace(charge=None), made.backbone(graph))


def test_long_range_is_not_compiled_nor_aligned():
    with pytest.raises(AccelerateError, match=r"leave accelerate away \(--accelerate,"):
        mq.accelerate(model(long_range="latent"))
    assert mq.accelerate(model(repulsion="zbl", dispersion={"d3": "pbe"})).program is not None
    from molequi.merging.tables import channels_of

    with pytest.raises(MolequiError, match="long_range: molequi has no table"):
        channels_of(model(long_range="latent"))


def test_sections_of_a_run(tmp_path):
    config = {
        "data": {"extxyz": {"path": "salt.xyz", "split": {"train": 8, "valid": 4}}},
        "backbone": {"PaiNN": {"channels": 8, "layers": 1, "cutoff": 4.0}},
        "predict": ["energy", "forces"],
        "long_range": {"charges": "latent", "channels": 2},
        "repulsion": "zbl",
        "dispersion": {"d3": "pbe"},
        "train": {"epochs": 1},
    }
    made = build_model(read_config(config, ["dispersion.d3=scan", "long_range.width=0.8"]), ["Na", "Cl"])
    found = made.energy_terms
    assert [*found] == ["long_range", "repulsion", "dispersion"]
    assert (found["long_range"].width, found["dispersion"].functional) == (0.8, "scan")
    file = str(mq.save(made, tmp_path / "model.safetensors"))
    again = {name: config[name] for name in ("data", "train")} | {"start_from": file}
    settings = read_config(again | {"dispersion": {"d4": "pbe"}})
    assert settings["long_range"] == {"charges": "latent", "channels": 2, "width": 0.8}
    assert start_model(settings, Names()).dispersion.kind == "d4"
    assert start_model(read_config(again), Names()).dispersion.functional == "scan"
    with pytest.raises(ConfigError, match="long_range: found .*; its weights belong to what it has"):
        read_config(again | {"long_range": "latent"})
    with pytest.raises(ConfigError, match="repulsion"):
        read_config(config | {"repulsion": "lj"})
