"""Simulations warn where the energy is far below that of all training structures."""

import warnings

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT

import molequi as mq
from molequi.errors import SimulationWarning
from molequi.inference.known_energies import MARGIN

from ..morse_kit import morse, tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = morse(20)
    out = tmp_path_factory.mktemp("run")
    result = mq.fit(tiny(), data[:16], data[16:], epochs=1, out=out, logging={"progress": False})
    return data[:16], result, out


def moved(model, lowest):
    """The model as if it had been trained on structures with at least this energy."""
    model.metadata = {**model.metadata, "lowest_energy": lowest}
    return model


def test_the_lowest_energy_of_the_training_data_is_kept(trained):
    train, result, out = trained
    head = result.model.heads["energy"]
    single = [float(head.reference_energies[z] + head.shift[z]) for z in range(9)]
    wanted = min(
        (float(g.targets["energy"]) - sum(single[z] for z in g.z.tolist())) / g.num_nodes for g in train
    )
    assert result.model.metadata["lowest_energy"] == pytest.approx(wanted, rel=1e-12)
    assert (
        mq.load(out / "model.safetensors").metadata["lowest_energy"] == result.model.metadata["lowest_energy"]
    )


def test_ensembles_keep_it_too():
    data = morse(20)
    ensemble = mq.fit(tiny(), data[:16], data[16:], epochs=1, seed=[0, 1], logging={"progress": False}).model
    with pytest.warns(SimulationWarning, match="below that of every training structure"):
        mq.md(
            molecule("H2O"),
            moved(ensemble, ensemble.metadata["lowest_energy"] + 100),
            steps=2,
            progress=False,
        )


def test_the_model_of_a_training_that_was_stopped_has_it(trained, tmp_path, monkeypatch):
    from molequi.training import trainer

    train, result, _ = trained
    monkeypatch.setattr(trainer.Training, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        mq.fit(tiny(), train, morse(20)[16:], epochs=1, out=tmp_path, logging={"progress": False})
    found = mq.load(tmp_path / "model.safetensors").metadata["lowest_energy"]
    assert found == result.model.metadata["lowest_energy"]


def test_training_without_energies_forgets_it(trained):
    model = mq.load(trained[2] / "model.safetensors")
    graphs = [g.replace(targets={"forces": g.targets["forces"]}) for g in morse(10)]
    parts = mq.Dataset(graphs[:8]), mq.Dataset(graphs[8:])
    tuned = mq.fit(
        model.predicting(["forces"]), *parts, epochs=1, loss={"forces": 1}, logging={"progress": False}
    ).model
    assert "lowest_energy" not in tuned.metadata


def test_data_without_energies_have_none():
    data = morse(8)
    graphs = [g.replace(targets={"dipole": torch.zeros(1, 3)}) for g in data]
    model = mq.Model(mq.EGNN(elements=[1, 8], channels=8, layers=1), ["dipole"])
    parts = mq.Dataset(graphs[:6]), mq.Dataset(graphs[6:])
    assert "lowest_energy" not in mq.fit(model, *parts, epochs=1, logging={"progress": False}).model.metadata


def energy_per_atom(model, atoms):
    """As the training counts it: without the part of single atoms."""
    head = model.heads["energy"]
    own = sum(float(head.reference_energies[z] + head.shift[z]) for z in atoms.numbers)
    return (mq.Calculator(model).get_potential_energy(atoms) - own) / len(atoms)


@pytest.mark.parametrize("far", [False, True])
def test_dynamics_and_relaxations_warn_once_and_say_it_in_their_results(trained, tmp_path, far):
    model, water = mq.load(trained[2] / "model.safetensors"), molecule("H2O")
    # Frames of a cold simulation have the energy of the first one, within a small part of the margin.
    moved(model, energy_per_atom(model, water) + (1.5 if far else 0.5) * MARGIN)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = mq.md(water, model, temperature=1, steps=4, every=1, timestep=0.01, progress=False)
        many = mq.md_many(water, model, temperature=[1, 2], steps=2, every=1, timestep=0.01, progress=False)
    own = [w for w in caught if issubclass(w.category, SimulationWarning)]
    assert len(own) == 3 * far  # one for each simulation
    assert bool(run.unknown) == ("below that of every training structure" in str(run)) == far
    assert ("from 0 ps on, the energy is up to 0.30 eV/atom below" in str(run)) == far
    assert ("note: 1K, 2K: from 0 ps on, " in str(many)) == far
    relaxed = mq.relax(water, model, steps=0, progress=False)
    assert ("note: the energy is up to 0.30 eV/atom below" in str(relaxed)) == far


def test_other_calculators_are_not_judged():
    run = mq.md(molecule("H2O"), EMT(), steps=2, progress=False)
    assert run.unknown == "" and np.isfinite(run.history["E_pot"]).all()
