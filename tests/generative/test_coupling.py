"""Coupling by optimal transport: known answers, and what must not move."""

import torch

from molequi.generative.coupling import centered, couple, rotations
from molequi.symmetry.groups import random_orthogonal


def batch_of(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    pos = torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64)
    return centered(pos, batch, len(sizes)), batch, generator


def cost(a, b):
    return float((a - b).square().sum())


def test_rotated_structures_are_turned_back():
    end, batch, generator = batch_of([5, 8])
    turns = torch.stack([random_orthogonal(3, proper=True, generator=generator) for _ in range(2)])
    noise = torch.einsum("nij,nj->ni", turns[batch], end)
    assert torch.allclose(rotations(noise, end, batch, 2), turns.transpose(1, 2), atol=1e-12)
    assert cost(couple(noise, end, batch, 2), end) < 1e-20


def test_a_mirror_image_stays_one():
    end, batch, _ = batch_of([6])
    found = rotations(-end, end, batch, 1)
    assert torch.allclose(torch.linalg.det(found), torch.ones(1, dtype=torch.float64))
    assert cost(couple(-end, end, batch, 1), end) > 0.1  # nothing but a reflection would do


def test_permuted_like_atoms_come_back_and_others_stay():
    end, batch, _ = batch_of([6, 4])
    order = torch.tensor([2, 1, 0, 3, 4, 5, 6, 7, 9, 8])
    alike = torch.tensor([0, 0, 0, 1, 2, 3, 4, 5, 6, 6])
    assert cost(couple(end[order], end, batch, 2, alike), end) < 1e-20
    assert cost(couple(end[order], end, batch, 2, torch.arange(10)), end) > 0.1  # no two are alike


def test_noise_is_only_moved_and_comes_nearer():
    end, batch, generator = batch_of([7, 9, 3])
    noise = centered(torch.randn(19, 3, generator=generator, dtype=torch.float64), batch, 3)
    free, turned = (couple(noise, end, batch, 3, a) for a in (torch.zeros(19, dtype=torch.int64), None))
    assert cost(free, end) < cost(turned, end) < cost(noise, end)
    for found in (free, turned):  # lengths are those of the noise, structure by structure
        for k in range(3):
            one, other = (torch.sort(x[batch == k].norm(dim=1)).values for x in (found, noise))
            assert torch.allclose(one, other, atol=1e-12)
