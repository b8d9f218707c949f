"""Equilibrated charges in an electric field: the energy -Σ q F·r, its derivatives, and what is left out."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms

import molequi as mq
from molequi.heads import AtomicCharges, PhysicalEnergy
from molequi.nn.pair_energies import COULOMB
from molequi.terms.long_range import HARDNESS, RIDGE
from tests.terms.kit import as_graph, differences, model, salt, water

FIELD = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
QUANTITIES = ("energy", "forces", "charges", *mq.response())


def in_field(atoms: Atoms, charge: float, field: torch.Tensor = FIELD) -> mq.Graph:
    return mq.connect(as_graph(atoms, charge=charge, electric_field=field), 4.5)


def charges_alone(made: mq.Model) -> mq.Model:
    """The model with an energy of charges alone, whose parameters depend on nothing but the element."""
    term = made.terms["long_range"]
    for last in (made.heads["energy"].net[-1], term.net[-1]):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    return made


@pytest.mark.parametrize("total", [0.0, 1.0])
def test_two_atoms_along_a_field(total):
    """Known answer: χ_2 - χ_1 becomes χ_2 - χ_1 - F d of two atoms at the distance d along the field, so that
    the polarizability along the axis is d² / (η_1 + η_2 + 2 s - 2 J), and zero across it.
    """
    made = charges_alone(model(QUANTITIES, charge=True, field=True, long_range="equilibrated"))
    term, d, size = made.terms["long_range"], 3.0, 0.4
    term.shift.data[11], term.shift.data[17] = torch.tensor([-2.0, 1.0]), torch.tensor([3.0, -2.0])
    hardness = [RIDGE + math.log1p(math.exp(HARDNESS - RIDGE + x)) for x in (1.0, -2.0)]
    itself, both = COULOMB / math.sqrt(math.pi), COULOMB * math.erf(d / 2) / d
    stiffness = sum(hardness) + 2 * (itself - both)
    start = np.array([0.4, -0.7, 1.1])  # of the first atom: a net charge feels where it is
    out = made(in_field(Atoms("NaCl", [start, start + [0, 0, d]]), total, size * FIELD.new_tensor([0, 0, 1])))
    first = (5.0 - size * d + total * (hardness[1] + itself - both)) / stiffness
    assert out["charges"].tolist() == pytest.approx([first, total - first], abs=1e-12)
    moment = total * start + [0, 0, (total - first) * d]
    assert out["dipole"][0].numpy() == pytest.approx(moment, abs=1e-12)  # about the origin
    alpha = np.diag([0, 0, d**2 / stiffness])
    assert out["polarizability"][0].numpy() == pytest.approx(alpha, abs=1e-12)
    pushed = out["forces"].sum(0).numpy()
    assert pushed == pytest.approx([0, 0, total * size], abs=1e-12)


@pytest.mark.parametrize("total", [0, 1])
def test_dipole_and_forces_are_derivatives_and_the_charges_are_in_them(total):
    made = model(
        ["energy", "forces", "charges", *mq.response("dipole", "polarizability")],
        charge=True,
        field=True,
        long_range="equilibrated",
    )
    graph, h = in_field(salt(False)[:4], total), 1e-4
    out = made(graph)
    made = made.predicting(["energy", "forces", "dipole", "charges"])
    forces, _ = differences(made, graph)
    assert np.allclose(out["forces"], forces, atol=1e-6)
    steps = h * torch.eye(3, dtype=torch.float64)
    ahead, behind = (
        [made(graph.replace(electric_field=graph.electric_field + s * e)) for e in steps] for s in (1, -1)
    )
    dipole = [-(a["energy"] - b["energy"]).item() / (2 * h) for a, b in zip(ahead, behind)]
    assert out["dipole"][0].tolist() == pytest.approx(dipole, abs=1e-6)
    alpha = [(a["dipole"] - b["dipole"])[0] / (2 * h) for a, b in zip(ahead, behind)]
    torch.testing.assert_close(out["polarizability"][0], torch.stack(alpha, dim=1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(out["energies"].sum()[None], out["energy"])
    # The charges follow the field, and are at their minimum in it.
    free = made(graph.replace(electric_field=None))
    assert float((out["charges"] - free["charges"]).abs().max()) > 1e-2
    with torch.no_grad():
        _, potential, shifted = made.terms["long_range"]._solved(graph, made.backbone(graph))
    assert float((shifted + potential).std()) < 1e-9 < float(shifted.std())


@pytest.mark.parametrize("total", [0, 2])
def test_a_translation_changes_the_energy_of_a_net_charge_alone(total):
    made = model(QUANTITIES, charge=True, field=True, long_range="equilibrated")
    graph, step = in_field(water(), total), torch.tensor([5.0, -3.0, 7.0], dtype=torch.float64)
    out, moved = made(graph), made(graph.replace(pos=graph.pos + step))
    torch.testing.assert_close(
        moved["energy"] - out["energy"], -total * (FIELD @ step)[None], atol=1e-9, rtol=0
    )
    torch.testing.assert_close(moved["charges"], out["charges"], atol=1e-10, rtol=0)
    torch.testing.assert_close(out["forces"].sum(0), total * FIELD, atol=1e-10, rtol=0)
    torch.testing.assert_close(moved["dipole"] - out["dipole"], total * step[None], atol=1e-9, rtol=0)
    born = total * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(out["born_charges"].sum(0), born, atol=1e-9, rtol=0)


def test_a_crystal_is_the_same_whatever_image_an_atom_is():
    """r is not defined in a lattice, so that the field acts through the features alone."""
    made = model(["energy", "charges"], charge=True, field=True, long_range="equilibrated")
    atoms, other = salt()[:4], salt()[:4]
    other.positions[1] += other.cell[2]
    one, two = (made(in_field(a, 0)) for a in (atoms, other))
    torch.testing.assert_close(one["energy"], two["energy"], atol=1e-9, rtol=0)
    torch.testing.assert_close(one["charges"], two["charges"], atol=1e-9, rtol=0)
    molecule, batch = in_field(water(), 1), in_field(atoms, 0)
    together = made(mq.collate([molecule, batch]))["energy"]
    assert together.tolist() == pytest.approx(
        [made(molecule)["energy"].item(), one["energy"].item()], abs=1e-9
    )


@pytest.mark.parametrize("long_range", ["latent", "equilibrated"])
def test_audit_of_charges_in_a_field(long_range):
    charge = long_range == "equilibrated"
    made = model(["energy", "forces", *mq.response()], charge=charge, field=True, long_range=long_range)
    structures = [as_graph(water(seed), charge=q if charge else None) for seed, q in enumerate((0, 1))]
    checks = ["rotation", "reflection", "translation", "finite differences", "momentum", "sum rules"]
    report = mq.audit(made, structures, draws=2, checks=checks)
    assert report.passed, str(report)
    assert {row.check for row in report.rows if row.verdict == "pass"} == set(checks)


def physical(quantities=QUANTITIES) -> mq.Model:
    """A model with `heads.PhysicalEnergy` and random weights."""
    torch.manual_seed(0)
    inputs = mq.Inputs(charge=True, electric_field=True)
    backbone = mq.So3krates(
        elements=["H", "O", "Na", "Cl"], cutoff=6.0, message_cutoff=4.5, channels=8, layers=1, inputs=inputs
    )
    rest = [AtomicCharges() if name == "charges" else name for name in quantities[1:]]
    made = mq.Model(backbone, [PhysicalEnergy(cutoff=6.0, repulsion=4.0), *rest]).double().eval()
    for name, parameter in made.heads.named_parameters():
        if "bias" in name or name.endswith("charges.shift"):
            torch.nn.init.normal_(parameter, std=0.5)
    return made


@pytest.mark.parametrize("total", [0, 1])
def test_partial_charges_of_a_physical_energy_are_pushed_by_a_field(total):
    """Known answer: where no parameter depends on the field, the dipole -∂E/∂F is Σ q r, and each force is
    that without the field and q F of its atom.
    """
    made = physical()
    for net in (made.heads["energy"].charges.net, made.heads["energy"].ratios.net, made.heads["energy"].net):
        torch.nn.init.zeros_(net[-1].weight)
    graph = mq.connect(as_graph(water(), charge=total, electric_field=FIELD), 6.0)
    out, free = made(graph), made(graph.replace(electric_field=None))
    charges = out["charges"].double()
    assert float(charges.std()) > 0.1
    torch.testing.assert_close(out["dipole"][0], charges @ graph.pos, atol=1e-10, rtol=0)
    pushed = out["forces"] - free["forces"]
    torch.testing.assert_close(pushed, charges[:, None] * FIELD, atol=1e-10, rtol=0)
    assert out["energies"].sum().item() == pytest.approx(out["energy"].item(), abs=1e-10)


def test_a_physical_energy_in_a_field_passes_the_audit_and_leaves_crystals():
    made = physical(("energy", "forces", *mq.response()))
    structures = [as_graph(water(seed), charge=q) for seed, q in enumerate((0, 1))]
    checks = ["rotation", "translation", "finite differences", "momentum", "sum rules"]
    report = mq.audit(made, structures, draws=2, checks=checks)
    assert report.passed, str(report)
    atoms, other = salt()[:4], salt()[:4]
    other.positions[1] += other.cell[2]
    made = physical(("energy",))
    one, two = (made(mq.connect(as_graph(a, charge=0, electric_field=FIELD), 6.0)) for a in (atoms, other))
    torch.testing.assert_close(one["energy"], two["energy"], atol=1e-9, rtol=0)
