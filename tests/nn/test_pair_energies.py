"""Energies of pairs against their laws: short range, long range, and the cutoff."""

import math

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.nn import Dispersion, Electrostatics, Repulsion, edges_of
from molequi.nn.pair_energies import switch

COULOMB, HARTREE, BOHR = 14.3996454, 27.2113862, 0.529177211


def pair(r, z=(1, 1), cutoff=200.0, dtype=torch.float64):
    graph = mq.connect(mq.Graph.single([[0.0, 0, 0], [0, 0, r]], list(z)), cutoff)
    return graph.z, edges_of(graph, cutoff, dtype)


def test_nuclei_repel_as_in_the_universal_potential():
    """The constants are those that Ziegler, Biersack and Littmark published."""
    z, edges = pair(0.1, (6, 8))
    found = Repulsion(cutoff=50.0).double()(z, edges).detach()
    scaled = 0.1 / (0.8854 * BOHR / (6**0.23 + 8**0.23))
    terms = [(0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4028), (0.02817, 0.2016)]
    wanted = COULOMB * 48 / 0.1 * sum(c * math.exp(-a * scaled) for c, a in terms)
    assert float(found.sum()) == pytest.approx(wanted, rel=1e-4) and wanted > 100
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-12)


@pytest.mark.parametrize("r", [1.5, 1.7])
def test_repulsion_ends(r):
    z, edges = pair(r, (6, 8))
    assert float(Repulsion(cutoff=4.0).double()(z, edges).detach().abs().max()) == 0.0
    z, edges = pair(1.2, (6, 8))
    assert float(Repulsion(cutoff=4.0).double()(z, edges).detach().sum()) > 1e-3
    assert float(Repulsion(cutoff=1.2).double()(z, edges).detach().sum()) == 0.0


def test_charges_far_apart_follow_coulomb():
    charges = torch.tensor([0.5, -0.25], dtype=torch.float64)
    _, edges = pair(20.0)
    found = float(Electrostatics(width=4.0, cutoff=100.0)(charges, edges).sum())
    assert found == pytest.approx(-0.125 * COULOMB * (1 / 20 - 1 / 100), rel=1e-6)
    # Spread charges in the same place have a finite energy.
    _, edges = pair(1e-4)
    found = float(Electrostatics(width=4.0, cutoff=100.0)(charges, edges).sum())
    assert found == pytest.approx(-0.125 * COULOMB * (2 / math.sqrt(math.pi) / 4 - 1 / 100), rel=1e-4)


def slope(energy, r):
    """Energy of a pair, and its derivative by the distance."""
    graph = mq.connect(mq.Graph.single([[0.0, 0, 0], [0, 0, r]], [1, 1]), 20.0)
    pos = graph.pos.requires_grad_()
    value = energy(edges_of(graph.replace(pos=pos), 20.0, torch.float64)).sum()
    return float(value.detach()), float(torch.autograd.grad(value, pos)[0][1, 2])


@pytest.mark.parametrize("kind", ["electrostatics", "dispersion"])
def test_energy_and_force_are_zero_at_the_cutoff(kind):
    ones = torch.ones(2, dtype=torch.float64)
    z = torch.tensor([1, 1])
    term = Electrostatics(4.0, 8.0) if kind == "electrostatics" else Dispersion(1.2, 8.0, 2.0)

    def energy(edges):
        return term(ones, edges) if kind == "electrostatics" else term(ones, z, edges)

    inside, near, outside = (slope(energy, r) for r in (6.5, 7.999, 8.001))
    assert abs(inside[0]) > 1e-6 and abs(inside[1]) > 1e-6
    assert abs(near[0]) < 1e-3 * abs(inside[0]) and abs(near[1]) < 5e-3 * abs(inside[1])
    assert outside == (0.0, 0.0)


def test_dispersion_far_apart_has_the_coefficients_of_the_free_atoms():
    """Those of carbon and oxygen, combined as Tkatchenko and Scheffler do, times the ratio of volumes of carbon squared."""
    z, edges = pair(40.0, (6, 8))
    ratios = torch.tensor([1.0, 1.0], dtype=torch.float64)
    term = Dispersion(1.2, 150.0, 2.0)
    r6 = (40.0 / BOHR) ** 6
    for v in (1.0, 0.7):
        c, o, ac, ao = 46.6 * v**2, 15.6, 12.0 * v, 5.4
        wanted = -HARTREE * 2 * c * o / (ao / ac * c + ac / ao * o) / r6
        assert float(term(ratios * torch.tensor([v, 1.0]), z, edges).sum()) == pytest.approx(wanted, rel=0.01)


def test_dispersion_is_damped():
    ratios = torch.ones(2, dtype=torch.float64)
    z, edges = pair(0.5, (6, 6))
    found = float(Dispersion(1.2, 12.0, 2.0)(ratios, z, edges).sum())
    assert -1.0 < found < 0  # without damping: -5e4 eV
    less = float(Dispersion(0.8, 12.0, 2.0)(ratios, z, edges).sum())
    assert less < 2 * found


def test_there_are_coefficients_of_all_elements_to_nobelium():
    term = Dispersion(1.2, 12.0, 2.0)
    for table in (term.polarizabilities, term.c6):
        assert len(table) == 103 and bool((table[1:] > 0).all()) and math.isnan(float(table[0]))
    # Known values: argon 11.1 and 64.3, xenon 27.3 and 285.9 atomic units
    assert np.allclose(term.polarizabilities[[18, 54]], [11.1, 27.3])
    assert np.allclose(term.c6[[18, 54]], [64.3, 285.9])


def test_the_switch_is_smooth_in_float32():
    near = torch.tensor([1e-12], requires_grad=True)  # atoms in one place
    (first,) = torch.autograd.grad(switch(near, 0.0, 1.5).sum(), near, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(first.sum(), near)[0]).all()
    r = torch.tensor([0.5, 2.0, 2.0 + 1e-5, 3.0, 4.0 - 1e-5, 4.0, 5.0], requires_grad=True)
    value = switch(r, 2.0, 4.0)
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    value, first = value.detach(), first.detach()
    assert value[[0, 1, 3, 5, 6]].tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert torch.isfinite(second).all() and float(first[3]) == pytest.approx(-1.0, abs=1e-4)
    assert float(first[[0, 1, 2, 4, 5, 6]].abs().max()) < 1e-6
