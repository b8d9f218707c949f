"""The loss against numbers worked out by hand; blind to unknown labels, in value and gradient."""

import functools
import math

import pytest
import torch

from molequi import Graph, Quantity, collate
from molequi.errors import ConfigError
from molequi.losses import Loss, Objective, read_losses
from molequi.quantities import KNOWN, per_atom

NAN = float("nan")


def batch(energies, forces):
    """Structures of two and three atoms."""
    z = [torch.tensor([1, 1]), torch.tensor([1, 8, 8])]
    return collate(
        [
            Graph.single(
                torch.randn(len(n), 3),
                n,
                targets={
                    "energy": torch.tensor([e], dtype=torch.float64),
                    "forces": torch.full((len(n), 3), f, dtype=torch.float64),
                },
            )
            for n, e, f in zip(z, energies, forces)
        ]
    )


def predicted(energies, force):
    return {
        "energy": torch.tensor(energies, dtype=torch.float64, requires_grad=True),
        "forces": torch.full((5, 3), force, dtype=torch.float32, requires_grad=True),
    }


def objective(weights, quantities, kind=None, delta=None):
    """The loss of some quantities, all of one kind."""
    own = {"kind": kind} | ({} if kind != "huber" else {"delta": delta})
    return Objective([Loss(name, weight=weight, **own) for name, weight in weights.items()], quantities)


def value(loss, out, graph):
    return loss.total(loss.sums(out, graph), loss.known(graph))


def test_energy_is_per_atom_and_forces_per_component():
    graph = batch([1.0, 2.0], [0.0, 0.0])
    out = predicted([1.4, 2.9], 0.5)
    found = value(objective({"energy": 2.0, "forces": 3.0}, KNOWN), out, graph)
    assert found.item() == pytest.approx(2 * ((0.4 / 2) ** 2 + (0.9 / 3) ** 2) / 2 + 3 * 0.25, rel=1e-12)


@pytest.mark.parametrize("kind,expected", [("mse", 0.25), ("mae", 0.5), ("huber", 0.1 * (0.5 - 0.05))])
def test_kinds(kind, expected):
    graph = batch([0.0, 0.0], [0.0, 0.0])
    loss = objective({"forces": 1.0}, KNOWN, kind, delta=0.1)
    assert value(loss, predicted([0.0, 0.0], 0.5), graph).item() == pytest.approx(expected, rel=1e-6)


def test_l2_is_the_length_of_vectors_over_their_known_components():
    graph = batch([0.0, 1.0], [0.0, 0.0])
    forces = predicted([0.4, 1.0], 0.0)["forces"].detach().double()
    forces[0] = torch.tensor([0.3, 0.0, 0.4], dtype=torch.float64)
    out = {"energy": torch.tensor([0.4, 1.0], dtype=torch.float64), "forces": forces.requires_grad_()}
    found = value(objective({"energy": 1.0, "forces": 1.0}, KNOWN, "l2"), out, graph)
    assert found.item() == pytest.approx((0.4 / 2 + 0.0) / 2 + 0.5 / forces.numel(), rel=1e-12)
    found.backward()
    assert bool(torch.isfinite(forces.grad).all()) and not bool(
        forces.grad[1:].any()
    )  # the others have no error
    turned = forces.detach()[:, [1, 2, 0]] @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    again = value(objective({"energy": 1.0, "forces": 1.0}, KNOWN, "l2"), out | {"forces": turned}, graph)
    assert again.item() == pytest.approx(found.item(), rel=1e-12)


def test_l2_of_a_tensor_is_its_frobenius_norm():
    graph = batch([0.0, 1.0], [0.0, 0.0])
    graph = graph.replace(targets={"stress": torch.zeros(2, 3, 3, dtype=torch.float64)})
    out = {"stress": torch.ones(2, 3, 3, dtype=torch.float64)}
    assert value(objective({"stress": 1.0}, KNOWN, "l2"), out, graph).item() == pytest.approx(
        3 / 9, rel=1e-12
    )


def test_huber_is_quadratic_inside():
    graph = batch([0.0, 0.0], [0.0, 0.0])
    loss = objective({"forces": 1.0}, KNOWN, "huber", delta=1.0)
    assert value(loss, predicted([0.0, 0.0], 0.5), graph).item() == pytest.approx(0.125, rel=1e-6)


def test_unknown_labels_count_neither_in_value_nor_gradient():
    graph = batch([1.0, NAN], [0.0, NAN])
    out = predicted([1.4, 77.0], 0.5)
    found = value(objective({"energy": 1.0, "forces": 1.0}, KNOWN), out, graph)
    found.backward()
    assert found.item() == pytest.approx((0.4 / 2) ** 2 + 0.25, rel=1e-12)
    assert out["energy"].grad[1] == 0 and out["energy"].grad[0] != 0
    assert bool((out["forces"].grad[2:] == 0).all()) and bool((out["forces"].grad[:2] != 0).all())


def test_a_batch_without_any_label_of_a_quantity_is_finite():
    graph = batch([NAN, NAN], [1.0, 1.0])
    found = value(objective({"energy": 1.0, "forces": 1.0}, KNOWN), predicted([5.0, 5.0], 0.0), graph)
    assert math.isclose(found.item(), 1.0)


def test_weight_zero_is_left_out():
    assert list(objective({"energy": 0.0, "forces": 1.0}, KNOWN).weights) == ["forces"]


def test_who_is_per_atom():
    assert per_atom(KNOWN["energy"])
    assert (
        not per_atom(KNOWN["dipole"])
        and not per_atom(KNOWN["gap"])
        and not per_atom(Quantity(name="a", per="node"))
    )


def test_classes_are_learnt_by_cross_entropy():
    """-log of the softmax, by hand; an unknown label has neither value nor slope."""
    shape = Quantity(name="shape", classes=["a", "b", "c"])
    graphs = [
        Graph.single(torch.zeros(1, 3), targets={"shape": torch.tensor([t], dtype=torch.float64)})
        for t in (2.0, NAN, 0.0)
    ]
    scores = torch.tensor([[1.0, 2.0, 0.5], [9.0, 9.0, 1.0], [0.0, -1.0, 1.0]], requires_grad=True)
    found = value(objective({"shape": 3.0}, {"shape": shape}, "huber"), {"shape": scores}, collate(graphs))
    first = -(0.5 - math.log(math.exp(1.0) + math.exp(2.0) + math.exp(0.5)))
    third = -(0.0 - math.log(math.exp(0.0) + math.exp(-1.0) + math.exp(1.0)))
    assert found.item() == pytest.approx(3.0 * (first + third) / 2, rel=1e-6)
    found.backward()
    assert torch.equal(scores.grad[1], torch.zeros(3)) and bool((scores.grad[0] != 0).all())


def test_a_loss_object_in_a_mapping_has_the_name_of_its_key():
    def own(predictions, graph):
        return predictions["energy"].square().mean()

    assert read_losses({"energy": Loss("energy", weight=3)}) == (Loss("energy", weight=3),)
    assert read_losses({"mine": Loss(own, weight=2)})[0].label == "mine"
    with pytest.raises(
        ConfigError, match=r"loss\.energy: found Loss\('forces'\); wanted Loss\('energy', …\)"
    ):
        read_losses({"energy": Loss("forces")})


def test_functions_with_other_values_are_other_losses():
    def scaled(predictions, graph, factor):
        return factor * predictions["energy"].mean()

    def closure(factor):
        return lambda predictions, graph: factor * predictions["energy"].mean()

    for make in (lambda f: functools.partial(scaled, factor=f), closure):
        assert Loss(make(1.0)).record() == Loss(make(1.0)).record() != Loss(make(2.0)).record()


def test_a_name_that_a_function_does_not_find():
    graph = Graph.single([[0.0, 0, 0]], ["H"], targets={"energy": torch.zeros(1)})
    objective = Objective([Loss(lambda p, g: p["force"].mean(), name="own")], {"energy": KNOWN["energy"]})
    with pytest.raises(
        ConfigError, match=r"loss 'own': there is no 'force'.*Predictions: energy; labels.*: energy"
    ):
        objective.sums({"energy": torch.zeros(1, requires_grad=True)}, graph)

    def assigns(predictions, graph):
        predictions["energy"] = predictions["energy"] * 2

    with pytest.raises(TypeError, match="does not support item assignment"):
        Objective([Loss(assigns)], {"energy": KNOWN["energy"]}).sums({"energy": torch.zeros(1)}, graph)
