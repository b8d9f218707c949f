"""The loss against numbers worked out by hand; blind to unknown labels, in value and gradient."""

import functools
import math

import pytest
import torch

from molequi import Graph, Quantity, collate
from molequi.errors import ConfigError
from molequi.losses import Loss, Objective, read_losses
from molequi.quantities import KNOWN, per_atom
from molequi.training.loss_terms import check_losses, with_class_weights

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


TASTE = Quantity("taste", classes=["sweet", "sour", "bitter"])


def tasted(labels):
    return collate(
        [
            Graph.single(torch.zeros(1, 3), targets={"taste": torch.tensor([t], dtype=torch.float64)})
            for t in labels
        ]
    )


def weighted(labels, weights="balanced"):
    (term,) = with_class_weights(
        [Loss("taste", class_weights=weights)],
        {"taste": torch.tensor(labels, dtype=torch.float64)},
        {"taste": TASTE.classes},
    )
    return Objective([term], {"taste": TASTE})


def test_balanced_weights_are_sampling_each_class_equally_often():
    """The loss and its gradient are those of data in which each structure is repeated until all classes are as many."""
    labels = [0.0] * 4 + [1.0] * 2 + [2.0, NAN]
    repeats = [1] * 4 + [2] * 2 + [4, 1]
    scores = torch.randn(
        8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    many = [k for k, n in enumerate(repeats) for _ in range(n)]
    sampled = value(
        Objective([Loss("taste")], {"taste": TASTE}),
        {"taste": scores[many]},
        tasted([labels[k] for k in many]),
    )
    balanced = value(weighted(labels), {"taste": scores}, tasted(labels))
    assert balanced.item() == pytest.approx(sampled.item(), rel=1e-12)
    (a,), (b,) = (torch.autograd.grad(x, scores, retain_graph=True) for x in (balanced, sampled))
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-15) and bool((a[:7] != 0).any(1).all())
    plain = value(Objective([Loss("taste")], {"taste": TASTE}), {"taste": scores}, tasted(labels))
    assert abs(plain.item() - balanced.item()) > 0.01


def test_weights_of_classes_by_hand():
    weights = {"sour": 2.0, "sweet": 0.5, "bitter": 1.0}  # by name, in any order
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    log = math.log(math.e + 2)
    found = value(weighted([0.0, 1.0], weights), {"taste": scores}, tasted([0.0, 1.0]))
    assert found.item() == pytest.approx((0.5 * (log - 1) + 2.0 * (log - 1)) / 2, rel=1e-12)
    assert Loss("taste", class_weights=weights).record()["class_weights"] == weights
    assert Loss("taste", class_weights="balanced").record()["class_weights"] == "balanced"
    assert "class_weights" not in Loss("taste").record()  # settings of former trainings stay as they are


def test_weights_of_classes_that_mean_nothing():
    quantities = {"taste": TASTE, "gap": KNOWN["gap"]}
    for term, words in (
        (
            Loss("gap", class_weights="balanced"),
            "loss.gap.class_weights would have no effect: 'gap' has no classes",
        ),
        (Loss("taste", class_weights={"swet": 1.0}), "'swet' is not a class of taste; did you mean 'sweet'"),
        (
            Loss("taste", class_weights={"sweet": 1.0}),
            "has no weight of 'sour', 'bitter'; wanted one of each class, such as {'sweet': 1.0, 'sour': 1.0",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            check_losses([term], quantities)
    with pytest.raises(ConfigError, match="class_weights of the function 'f' would have no effect"):
        Loss(lambda out, graph: 0, name="f", class_weights="balanced")
    for wrong in ("equal", {"sweet": 0.0}, {"sweet": "1"}, 2.0):
        with pytest.raises(ConfigError, match="class_weights"):
            Loss("taste", class_weights=wrong)
    with pytest.raises(
        ConfigError,
        match="loss.taste.class_weights is 'balanced', and no training label of taste is 'bitter'",
    ):
        weighted([0.0, 1.0, 1.0])


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
