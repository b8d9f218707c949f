"""Three waters, a chiral molecule, and models that were trained for a few steps."""

import pytest
import torch

import molequi as mq
from molequi.generative import paths

from .flow_kit import conformers, trained


@pytest.fixture(scope="session")
def waters():
    pos = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], dtype=torch.float64)
    return [mq.Graph.single(pos * (1 + 0.01 * k), ["O", "H", "H"]) for k in range(16)]


@pytest.fixture(scope="session")
def molecules(waters):
    """A model of waters."""
    return trained(paths(waters, "molecules"))


@pytest.fixture(scope="session")
def embedded():
    """Conformers of a chiral molecule as an RDKit molecule."""
    return conformers("C[C@H](F)O", 8)


@pytest.fixture(scope="session")
def chiral(embedded):
    """Paths to these conformers, and a model of them."""
    data = paths([embedded, conformers("CC[C@H](F)O", 8)], "conformers")
    return data, trained(data)
