"""The work of forces and stress between similar structures: laws, and ASE's EMT as a second source."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

import molequi as mq
from molequi import Dataset, Graph
from molequi.lint.frames import Frames
from molequi.lint.pairs import similar_pairs, superimposed
from molequi.lint.work import fitted


def springs(count, seed=0):
    """Four atoms in a cell, held at corners by springs of 7 eV/Å²: the trapezoidal rule is exact for a harmonic energy."""
    random = np.random.default_rng(seed)
    corners = np.array([[0, 0, 0], [1.5, 0, 0], [0, 1.5, 0], [0, 0, 1.5]])
    graphs = []
    for _ in range(count):
        step = 0.05 * random.normal(size=(4, 3))
        step -= step.mean(0)  # a translation of all atoms would cost energy here, as in no molecule
        targets = {
            "energy": torch.tensor([3.5 * (step**2).sum()]),
            "forces": torch.tensor(-7.0 * step),
        }
        graphs.append(
            Graph.single(corners + step, ["C", "N", "O", "F"], targets=targets, cell=np.eye(3) * 9, pbc=True)
        )
    return Dataset(graphs)


def copper(count, strain=0.0, rattle=0.02, seed=0):
    """Eight copper atoms of EMT with random displacements, and perhaps random strains; labels from ASE."""
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        shape = random.uniform(-strain, strain, size=(3, 3))
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + (shape + shape.T) / 2), scale_atoms=True)
        atoms.rattle(rattle, seed=int(random.integers(10_000)))
        atoms.calc = EMT()
        atoms.get_stress(), atoms.get_forces()
        frames.append(atoms)
    return mq.from_atoms(frames)


def test_superimposed_structures_coincide():
    random = np.random.default_rng(0)
    first = random.normal(size=(3, 5, 3))
    first -= first.mean(1, keepdims=True)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    found = superimposed(first, first @ turn)
    assert np.allclose(found, turn.T) and np.allclose(np.linalg.det(found), 1)


def test_rotated_molecules_have_the_same_work():
    data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index=":40")
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    turn = torch.tensor(turn * np.linalg.det(turn))
    turned = Dataset(
        [
            g.replace(
                pos=g.pos @ turn + k,
                targets={"energy": g.targets["energy"], "forces": g.targets["forces"] @ turn},
            )
            if k % 2
            else g.replace(targets={name: g.targets[name] for name in ("energy", "forces")})
            for k, g in enumerate(data)
        ]
    )
    one, other = (similar_pairs(Frames({"all": d})) for d in (data, turned))
    assert len(one) > 50 and np.array_equal(one.first, other.first)
    assert np.allclose(one.work, other.work, atol=1e-9) and np.allclose(one.moved, other.moved, atol=1e-9)


def test_work_of_springs_is_their_energy():
    data = springs(30)
    pairs = similar_pairs(Frames({"all": data}))
    assert len(pairs) > 60 and np.allclose(pairs.work, pairs.difference, atol=1e-12)


def test_work_of_forces_in_a_crystal_of_emt():
    """Slope 1, whatever cell the atoms are wrapped into."""
    data = copper(30)
    pairs = similar_pairs(Frames({"all": data}))
    fit = fitted(pairs.work[:, None], pairs.difference)
    assert fit.slopes[0] == pytest.approx(1.0, abs=0.03) and fit.explained > 0.9
    wrapped = Dataset(
        [g.replace(pos=g.pos + (torch.arange(8) % 3)[:, None] * g.cell[0, 0]) for g in data],
        quantities=data.quantities,
    )
    again = similar_pairs(Frames({"all": wrapped}))
    assert np.allclose(sorted(pairs.work), sorted(again.work), atol=1e-9)


def test_work_of_the_stress_of_emt():
    """ASE's stress is positive where the crystal wants to contract: dE = V σ : dε."""
    data = copper(40, strain=0.015, rattle=0.01)
    pairs = similar_pairs(Frames({"all": data}))
    columns = np.stack([pairs.work, pairs.by_stress.sum((1, 2))], axis=1)
    fit = fitted(columns, pairs.difference)
    assert np.allclose(fit.slopes, 1.0, atol=0.05) and fit.explained > 0.9
    assert not mq.lint(data, costs=False).errors
    flipped = Dataset(
        [g.replace(targets=g.targets | {"stress": -g.targets["stress"]}) for g in data],
        quantities=data.quantities,
    )
    assert [f.name for f in mq.lint(flipped, costs=False).errors] == ["stress-sign"]


def test_a_fit_by_absolute_deviations_ignores_a_third_of_foreign_values():
    x = np.random.default_rng(0).normal(size=90)
    y = 2.5 * x
    y[::3] += 100.0
    fit = fitted(x[:, None], y)
    assert fit.slopes[0] == pytest.approx(2.5, abs=0.01)


def test_dimers_and_noble_gases_are_no_wrong_unit():
    """Two helium or argon atoms at 3 to 6 Å, and the dissociation of H2: far from bonds, and right."""

    def dimers(symbol, lengths):
        return Dataset(
            [
                Graph.single(
                    [[0, 0, 0], [0, 0, d]], [symbol] * 2, targets={"energy": torch.tensor([-0.01 / d])}
                )
                for d in lengths
            ]
        )

    assert not mq.lint(dimers("Ar", np.linspace(3, 6, 30)), costs=False).errors
    assert not mq.lint(dimers("H", np.linspace(0.62, 5, 60)), costs=False).errors
