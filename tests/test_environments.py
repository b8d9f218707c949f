"""Distances of environments: known answers, batches, invariance, and what has no distance."""

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.environments import Environments, fit_environments, invariants_of
from molequi.features import Features

GENERATOR = torch.Generator().manual_seed(0)


def atoms(count, scale=1.0):
    """Features of correlated channels, and elements of which each has its own mean."""
    mix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.3, 0.0, 0.1]], dtype=torch.float64)
    z = torch.arange(count) % 2 * 7 + 1
    random = torch.randn(count, 3, generator=GENERATOR, dtype=torch.float64)
    return scale * random @ mix + z[:, None], z


def test_distances_of_a_normal_law_are_those_of_mahalanobis():
    train, valid = atoms(4000), atoms(4000)
    found = fit_environments([train], [valid])
    distance = found(*valid)
    for z in (1, 8):
        own = distance[valid[1] == z]
        assert float(own.square().mean()) == pytest.approx(1.0, rel=1e-9)
        x, known = valid[0][valid[1] == z].numpy(), train[0][train[1] == z].numpy()
        covariance = np.cov(known.T, bias=True)
        inverse = np.linalg.inv(covariance + 1e-3 * np.trace(covariance) / 3 * np.eye(3))
        away = x - known.mean(0)
        wanted = np.sqrt(np.einsum("ni,ij,nj->n", away, inverse, away))
        assert np.allclose(own.numpy() / own.norm().item(), wanted / np.linalg.norm(wanted), rtol=1e-6)
    assert float(found(*atoms(4000, scale=3.0)).square().mean()) == pytest.approx(9.0, rel=0.3)


def test_batches_and_a_shift_change_nothing():
    (x, z), valid = atoms(100), atoms(50)
    one = fit_environments([(x, z)], [valid])
    many = fit_environments(zip(x.split(7), z.split(7)), zip(valid[0].split(9), valid[1].split(9)))
    assert torch.allclose(one(*valid), many(*valid), rtol=1e-9)
    far = fit_environments([(x + 1e4, z)], [(valid[0] + 1e4, valid[1])])
    assert torch.allclose(one(*valid), far(valid[0] + 1e4, valid[1]), rtol=1e-5)


def test_an_element_without_training_data_is_infinitely_far_and_a_constant_is_not():
    x, z = atoms(20)
    found = fit_environments([(x, z)], [(x, z)])
    assert found(x[:1], torch.tensor([6])).tolist() == [float("inf")]
    same = fit_environments([(torch.ones_like(x), z)], [(torch.ones_like(x), z)])
    assert same(torch.ones_like(x), z).tolist() == [0.0] * 20
    single = fit_environments([(x[:2], z[:2])], [(x[2:], z[2:])])
    assert torch.isfinite(single(x, z)).all() and (single(x, z)[2:] > 0).all()


def test_features_are_invariant_under_rotations_and_reflections():
    vector = torch.randn(5, 4, 3, generator=GENERATOR, dtype=torch.float64)
    scalar = torch.randn(5, 2, 1, generator=GENERATOR, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=GENERATOR, dtype=torch.float64))[0]
    pseudo, sign = vector[..., :1], torch.linalg.det(turn).sign()
    one, other = (
        invariants_of(Features(blocks={"0e": scalar, "0o": p, "1o": v}, coordination=torch.ones(5)))
        for p, v in ((pseudo, vector), (-pseudo, vector @ (-sign * turn)))
    )
    assert one.shape == (5, 10) and torch.allclose(one, other)
    assert not torch.allclose(one, one + vector[..., :1].sum(1))


def test_hyperparameters_rebuild_it():
    x, z = atoms(20)
    found = fit_environments([(x, z)], [(x, z)])
    again = Environments(**found.hparams).double()
    again.load_state_dict(found.state_dict())
    assert torch.equal(found(x, z), again(x, z))


def test_distances_of_a_model_are_those_of_its_structures_one_by_one():
    data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"))[:30]
    torch.manual_seed(0)
    model = mq.Model(mq.PaiNN(elements=["C", "H", "O"], cutoff=3.0, channels=6, layers=1)).double()
    sure = mq.laplace(model, data[:20], data[20:], progress=False)
    one = torch.cat([sure.distances(mq.connect(graph, 3.0)) for graph in data[:3]])
    many = sure.distances(mq.collate([mq.connect(graph, 3.0) for graph in data[:3]]))
    assert torch.allclose(one, many, rtol=1e-6) and one.shape == (27,)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=GENERATOR, dtype=torch.float64))[0]
    moved = data[0].replace(pos=data[0].pos @ turn)
    assert torch.allclose(sure.distances(mq.connect(moved, 3.0)), one[:9], rtol=1e-6)
