"""Atomic reference energies: what was given for an element is kept, and elements without new data keep theirs."""

import pytest
import torch

from molequi import EGNN, Dataset, Model, fit, load
from molequi.errors import ModelError
from molequi.inference.known_energies import set_reference_energies

GIVEN = {"H": -3.0, "O": -24.0, "C": -17.0}
QUIET = dict(epochs=1, logging={"progress": False})


def table(model, *elements):
    return [float(model.heads["energy"].reference_energies[z]) for z in elements]


@pytest.fixture
def base(make, parts, tmp_path):
    fit(make.tiny(), **parts, **QUIET, normalization={"reference_energies": GIVEN}, out=tmp_path / "base")
    return tmp_path / "base" / "model.safetensors"


def test_energies_of_elements_without_data_are_kept(base):
    model = load(base)
    assert table(model, 1, 8, 6) == [-3.0, -24.0, -17.0]
    isolated = model.predicting(["energy"])
    assert isolated.heads["energy"].reference_energies[6] == -17.0


def test_given_energies_replace_those_of_a_loaded_model_and_leave_its_scales(base, parts):
    model = load(base)
    scale, shift = model.heads["energy"].scale.clone(), model.heads["energy"].shift.clone()
    other = {"H": -1.0, "O": -2.0}
    fit(model, **parts, **QUIET, normalization={"reference_energies": other})
    assert table(model, 1, 8, 6) == [-1.0, -2.0, -17.0]
    assert torch.equal(model.heads["energy"].scale, scale)
    assert torch.equal(model.heads["energy"].shift, shift)
    kept = load(base)  # the control: without given energies nothing changes
    fit(kept, **parts, **QUIET)
    assert table(kept, 1, 8, 6) == [-3.0, -24.0, -17.0]


def test_standardize_leaves_elements_that_new_data_lack(base, make):
    hydrogen = Dataset([g.replace(z=torch.ones_like(g.z)) for g in make.morse(20)])
    model = load(base)
    shift = float(model.heads["energy"].shift[8])
    fit(model, hydrogen[:4], hydrogen[4:8], **QUIET, normalization={"standardize": True})
    assert table(model, 8, 6) == [-24.0, -17.0]
    assert float(model.heads["energy"].shift[8]) == shift
    assert table(model, 1) != [-3.0]


def test_data_without_energies_leave_the_table_of_energies(base, parts):
    forces = {
        part: Dataset([g.replace(targets={"forces": g.targets["forces"]}) for g in d])
        for part, d in parts.items()
    }
    model = load(base)
    scale = model.heads["energy"].scale.clone()
    options = {"standardize": True}
    fit(model, **forces, **QUIET, loss={"forces": 1}, normalization=options)
    assert table(model, 1, 8, 6) == [-3.0, -24.0, -17.0]
    assert torch.equal(model.heads["energy"].scale, scale)


def test_a_model_without_energy_has_no_reference_energies(make):
    model = Model(EGNN(elements=["H"], channels=8, layers=1), ["dipole"])
    with pytest.raises(ModelError, match="predicts dipole and no energy"):
        set_reference_energies(model, {1: -13.6})
