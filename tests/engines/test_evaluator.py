"""The evaluator and its neighbor list: the same numbers as the model alone, whatever an engine does to positions and cells."""

import pickle

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

import molequi as mq
from molequi.engines import BatchNeighborList, Evaluator
from molequi.errors import DataError, DataWarning, ModelError
from molequi.graph import Graph, collate
from molequi.quantities import KNOWN


def model(elements=("Si", "O", "H"), inputs=None, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = inputs or mq.Inputs()
        backbone = mq.PaiNN(elements=list(elements), channels=8, layers=2, cutoff=4.0, inputs=inputs)
        return mq.Model(backbone, ["energy", "forces"], **options)


def silicon():
    atoms = bulk("Si", "diamond", a=5.43)
    atoms.rattle(0.1, seed=0)
    atoms.numbers[1] = 8
    return atoms


def alone(net, atoms):
    """Energy, forces and -V·stress of the model, with a search of its own."""
    net = net.double().eval()
    cell = dict(cell=atoms.cell.array, pbc=atoms.pbc) if atoms.pbc.any() else {}
    graph = mq.connect(Graph.single(atoms.positions, atoms.numbers, **cell), net.cutoff)
    out = net.predicting(["energy", "forces", KNOWN["stress"]])(graph)
    return float(out["energy"]), out["forces"].numpy(), -out["stress"][0].numpy() * atoms.cell.volume


def test_energy_forces_and_virial_are_those_of_the_model():
    atoms, net = silicon(), model()
    found = Evaluator(net)(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=True)
    for value, wanted in zip(found, alone(net, atoms)):
        np.testing.assert_allclose(value, wanted, atol=1e-12)
    assert np.abs(found.virial).max() > 0.1


def test_the_virial_of_a_molecule_is_the_moment_of_its_forces():
    water = molecule("H2O")
    found = Evaluator(model())(water.positions, water.numbers)
    np.testing.assert_allclose(
        found.virial, np.einsum("na,nb->ab", water.positions, found.forces), atol=1e-12
    )
    assert np.abs(found.forces).max() > 0.1


def test_a_list_survives_strain_and_wrapping_and_is_renewed_when_it_must_be():
    atoms, net, random = silicon(), model(), np.random.default_rng(0)
    evaluate, neighbors = Evaluator(net), BatchNeighborList(4.0, 0.5)
    for k in range(12):
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.01 * random.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.02 * random.normal(size=atoms.positions.shape)
        atoms.positions[k % 2] += atoms.cell.array[k % 3]
        graph = Graph.single(atoms.positions.copy(), atoms.numbers, cell=atoms.cell.array.copy(), pbc=True)
        found = evaluate.evaluate(graph, neighbors)
        energy, forces, virial = alone(net, atoms)
        assert float(found["energy"]) == pytest.approx(energy, abs=1e-10)
        np.testing.assert_allclose(found["forces"], forces, atol=1e-10)
        np.testing.assert_allclose(found["virial"][0], virial, atol=1e-10)
    assert 1 < neighbors.searches < 12


def test_a_list_without_a_skin_has_no_edges_beyond_the_cutoff():
    """A list of a stretched cell would have pairs that are farther apart than the cutoff: it is searched again."""
    atoms = silicon()

    class Counting(mq.PaiNN):
        lengths = []

        def forward(self, graph):
            far = graph.pos[graph.edge_index[0]] - graph.pos[graph.edge_index[1]]
            far = far + graph.shift @ graph.cell[0]
            self.lengths.append(float(far.detach().norm(dim=1).max()))
            return super().forward(graph)

    evaluate = Evaluator(mq.Model(Counting(elements=["Si", "O"], channels=4, layers=1, cutoff=4.0)), skin=0.0)
    for _ in range(2):
        evaluate(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=True)
        atoms.set_cell(atoms.cell.array * 1.05, scale_atoms=True)
    assert evaluate._single.searches == 2 and max(Counting.lengths) <= 4.0


def test_a_compressed_cell_is_searched_again():
    """All atoms move with the cell, so that only the strain can say that pairs have come within the cutoff."""
    atoms, net = silicon(), model()
    evaluate = Evaluator(net, skin=0.2)
    evaluate(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=True)
    atoms.set_cell(atoms.cell.array * 0.85, scale_atoms=True)
    found = evaluate(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=True)
    assert found.energy == pytest.approx(alone(net, atoms)[0], abs=1e-10)


def test_only_structures_that_moved_are_searched():
    atoms = silicon()
    parts = [Graph.single(atoms.positions.copy(), atoms.numbers, cell=atoms.cell.array, pbc=True)] * 3
    neighbors = BatchNeighborList(4.0, 0.5)
    neighbors(collate(parts))
    moved = parts[1].replace(pos=parts[1].pos + torch.tensor([[0.4, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    graph = neighbors(collate([parts[0], moved, parts[2]]))
    assert neighbors.searches == 4
    fresh = mq.connect(collate([parts[0], moved, parts[2]]), 4.5)
    assert graph.edge_index.tolist() == fresh.edge_index.tolist()
    assert graph.shift.tolist() == fresh.shift.tolist()


@pytest.mark.parametrize("pbc", [(True, True, False), (True, False, False), (False, True, False)])
def test_partly_periodic_structures_are_wrapped_in_their_directions_alone(pbc):
    atoms, net = silicon().repeat((2, 1, 1)), model()
    atoms.pbc = pbc
    evaluate = Evaluator(net)
    first = evaluate(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=pbc)
    atoms.positions[0] += atoms.cell.array[int(np.argmax(pbc))]
    again = evaluate(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=pbc)
    assert again.energy == pytest.approx(first.energy, abs=1e-10)
    np.testing.assert_allclose(again.forces, first.forces, atol=1e-10)
    np.testing.assert_allclose(again.forces, alone(net, atoms)[1], atol=1e-10)


def test_it_is_pickled_as_a_model_file():
    atoms = silicon()
    evaluate = Evaluator(model(inputs=mq.Inputs(charge=True)), charge=1.0)
    again = pickle.loads(pickle.dumps(evaluate))
    given = dict(cell=atoms.cell.array, pbc=True)
    assert again.totals == {"charge": 1.0}
    assert (
        again(atoms.positions, atoms.numbers, **given).energy
        == evaluate(atoms.positions, atoms.numbers, **given).energy
    )


def test_a_level_is_chosen():
    net = model(levels=["pbe", "r2scan"])
    with pytest.raises(ModelError, match="pbe"):
        Evaluator(net)
    with pytest.raises(ModelError, match="no levels"):
        Evaluator(model(), level="pbe")
    water = molecule("H2O")
    values = [Evaluator(net, level=one)(water.positions, water.numbers).energy for one in net.levels]
    assert values[0] == pytest.approx(alone(net.at("pbe"), water)[0], abs=1e-10)


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ModelError, match=r"gap and no energy.*predict="):
        Evaluator(mq.Model(mq.PaiNN(elements=["H"]), ["gap"]))
    with pytest.raises(ModelError, match=r"reads charge, spin.*charge=….*spin=…"):
        Evaluator(model(inputs=mq.Inputs(charge=True, spin=True)))
    with pytest.raises(ModelError, match="no engine has these"):
        Evaluator(model(inputs=mq.Inputs(node_features=2)))
    evaluate = Evaluator(model())
    with pytest.raises(ModelError, match="atom 1: this model does not know Fe; it knows"):
        evaluate(np.eye(3), [1, 26, 1])
    with pytest.raises(DataError, match=r"\(2, 3\) and 3 elements"):
        evaluate(np.eye(3)[:2], [1, 1, 1])
    for given, message in [
        (dict(charge=1), r"charge=1: this model reads no charge.*Inputs\(charge=True\)"),
        (dict(spin=2.0), "spin=2.0: this model reads no spin"),
    ]:
        with pytest.raises(ModelError, match=message):
            Evaluator(model(), **given)
    net = model(inputs=mq.Inputs(spin=True))
    for spin, message in [("x", "wanted a finite"), (float("nan"), "wanted a finite")] + [
        (spin, "the multiplicity") for spin in (0, -1, 1.5)
    ]:
        with pytest.raises(DataError, match=f"spin={spin!r}: .*{message}"):
            Evaluator(net, spin=spin)
    with pytest.raises(ModelError, match="skin=-1"):
        BatchNeighborList(4.0, -1)


def test_elements_without_training_are_said_once():
    net = model()
    net.metadata = {"trained_on": {"elements": ["H", "O"]}}
    evaluate = Evaluator(net)
    with pytest.warns(DataWarning, match="Si occurs in no structure"):
        evaluate(np.eye(3), [14, 1, 1])
    evaluate(np.eye(3), [14, 1, 1])
