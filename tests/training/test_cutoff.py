"""A cutoff in which atoms have no neighbors is named before the first step."""

import pytest
import torch

from molequi import EGNN, Dataset, Graph, Model, fit
from molequi.errors import ConfigError, DataWarning

QUIET = dict(epochs=1, logging={"progress": False})


def pairs(distances):
    return Dataset(
        [
            Graph.single(
                [[0, 0, 0], [d, 0, 0]],
                ["O", "H"],
                targets={"energy": torch.tensor([-14.0 + d], dtype=torch.float64)},
            )
            for d in distances
        ]
    )


def model(cutoff):
    return Model(EGNN(elements=["H", "O"], channels=8, layers=1, cutoff=cutoff), ["energy"])


def test_a_cutoff_in_nm_is_refused():
    data = pairs([0.9, 1.0, 1.1, 1.2])
    with pytest.raises(
        ConfigError, match=r"6 of 6 atoms.*within the cutoff of 0\.5 Å.*0\.5 nm is 5 Å.*larger cutoff"
    ):
        fit(model(0.5), data[:3], data[3:], **QUIET)
    fit(model(5.0), data[:3], data[3:], **QUIET)  # the control


def test_some_atoms_without_neighbors_are_counted():
    data = pairs([0.9, 1.0, 7.0, 1.2])
    with pytest.warns(DataWarning, match="2 of 6 atoms of the training data have no neighbor"):
        fit(model(5.0), data[:3], data[3:], **QUIET)
