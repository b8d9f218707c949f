"""Small structures whose energy and forces are known in closed form, and a model that learns them in seconds."""

import pytest
import torch

from molequi import EGNN, Dataset, Graph, Model

ELEMENTS = [1, 8]


def pair_energy(pos, z):
    """Σ over pairs of ε (1 - exp(-a (r - r0)))² - ε with r0 by the elements: a Morse potential, eV."""
    i, j = torch.triu_indices(len(z), len(z), 1)
    r = (pos[i] - pos[j]).norm(dim=1)
    r0 = 0.9 + 0.05 * (z[i] + z[j]).double() / 8
    return (0.5 * ((1 - torch.exp(-1.3 * (r - r0))) ** 2 - 1)).sum() - 3.0 * z.double().sum()


def morse(count, seed=0, missing=()):
    """`count` structures of three to five atoms with energy and forces; `missing` ones have no forces."""
    random = torch.Generator().manual_seed(seed)
    graphs = []
    for k in range(count):
        n = 3 + k % 3
        grid = torch.tensor(
            [[0, 0, 0], [1.3, 0, 0], [0, 1.4, 0], [0, 0, 1.5], [1.3, 1.4, 0.0]], dtype=torch.float64
        )[:n]
        pos = (grid + 0.15 * torch.randn(n, 3, generator=random, dtype=torch.float64)).requires_grad_()
        z = torch.tensor(ELEMENTS)[torch.randint(0, 2, (n,), generator=random)]
        energy = pair_energy(pos, z)
        (forces,) = torch.autograd.grad(-energy, pos)
        if k in missing:
            forces = torch.full_like(forces, float("nan"))
        graphs.append(
            Graph.single(pos.detach(), z, targets={"energy": energy.detach().reshape(1), "forces": forces})
        )
    return Dataset(graphs)


def tiny(predict=("energy", "forces"), seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model(EGNN(elements=ELEMENTS, channels=8, layers=2, radial=6, cutoff=4.0), predict)


@pytest.fixture
def data():
    return morse(24)


@pytest.fixture
def parts(data):
    return {"train": data[:16], "valid": data[16:]}


@pytest.fixture
def model():
    return tiny()


QUICK = dict(epochs=2, batch_size=4, logging={"progress": False})


@pytest.fixture
def quick():
    return dict(QUICK)


@pytest.fixture
def make():
    """Functions that make data and models, for tests that need several."""

    class Makers:
        pass

    Makers.morse, Makers.tiny = staticmethod(morse), staticmethod(tiny)
    return Makers
