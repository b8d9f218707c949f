"""A cutoff in which atoms have no neighbors is named before the first step."""

import warnings

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


def test_fitted_reference_energies_of_lone_ions_are_named():
    """Of a model with charges, unless the energies of the ions are given or in the data, or none is alone."""
    ionic = lambda: Model(  # noqa: E731
        EGNN(elements=["H", "O"], channels=8, layers=1, cutoff=5.0), ["energy"], long_range="latent"
    )
    data = pairs([0.9, 6.0, 7.0, 1.2])
    with pytest.warns(
        DataWarning, match=r'4 of 6 atoms.*\(H, O\).*\{"reference_energies": \{"H": …, "O": …\}\}.*one atom'
    ):
        fit(ionic(), data[:3], data[3:], **QUIET)
    alone = [Graph.single([[0, 0, 0]], [e], targets={"energy": torch.tensor([-7.0])}) for e in "HO"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        fit(ionic(), Dataset([*data[:3], *alone]), data[3:], **QUIET)
        given = {"reference_energies": {"H": -7.0, "O": -7.0}}
        fit(ionic(), data[:3], data[3:], normalization=given, **QUIET)
        fit(ionic(), pairs([0.9, 1.0, 1.1]), data[3:], **QUIET)
