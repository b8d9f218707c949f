"""Networks as data: conversion from and to modules, the neural graph, errors."""

import pytest
import torch
from torch import nn

import molequi as mq
from molequi import weights
from molequi.errors import DataError, ModelError
from molequi.weights import ACTIVATIONS, Architecture, Networks, Sine


def modules(count: int = 3, activation=nn.Tanh) -> list[nn.Sequential]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(2, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 3)).double()
        for _ in range(count)
    ]


X = torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_outputs_are_those_of_the_modules(name):
    nets = modules(activation=ACTIVATIONS[name])
    found = Networks.from_modules(nets)
    assert found.architecture == Architecture((2, 5, 4, 3), name)
    wanted = torch.stack([net(X) for net in nets])
    torch.testing.assert_close(found(X), wanted, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.module(2)(X), wanted[2], rtol=1e-13, atol=1e-13)
    states = Networks.from_state_dicts([net.state_dict() for net in nets], name)
    assert torch.equal(states.flat(), found.flat())
    assert torch.equal(Networks.from_flat(found.architecture, found.flat()).flat(), found.flat())


def test_omega_of_a_sine_is_in_the_weights():
    siren = nn.Sequential(nn.Linear(2, 4), Sine(30.0), nn.Dropout(0.5), nn.Linear(4, 1)).double().eval()
    found = Networks.from_modules([siren])
    torch.testing.assert_close(found(X)[0], siren(X), rtol=1e-12, atol=1e-12)
    half = found.map(lambda value: value / 2)
    half.write_to(siren)
    torch.testing.assert_close(siren(X), half(X)[0], rtol=1e-12, atol=1e-12)


def test_networks_without_hidden_layers_biases_and_with_a_last_activation():
    net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1), nn.ReLU()).double()
    found = Networks.from_modules([net])
    assert found.architecture.activate_last and not found.biases[0].any()
    torch.testing.assert_close(found(X)[0], net(X))
    with pytest.raises(ModelError, match="map 0 of the module has no biases"):
        found.map(lambda value: value + 1).write_to(net)


def test_batches():
    nets = Networks.from_modules(modules())
    assert len(nets) == 3 and len(nets[1]) == 1 and len(nets[[0, 2]]) == 2 and len(list(nets)) == 3
    assert torch.equal(Networks.cat([nets[2:], nets[:2]]).flat(), nets.flat().roll(1, 0))
    assert torch.equal(nets[-1].flat(), nets.flat()[2:])
    each = torch.stack([X, X + 1, X + 2])
    torch.testing.assert_close(nets(each)[1], nets(X + 1)[1])
    with pytest.raises(IndexError):
        nets[3]


def test_the_graph_computes_what_the_network_computes():
    """Node by node: h_i = tanh(b_i + Σ w_ij h_j) along the edges."""
    nets = Networks.from_modules(modules())
    graph = nets.graph(1)
    assert graph.layer.tolist() == [0] * 2 + [1] * 5 + [2] * 4 + [3] * 3
    h = torch.zeros(14, 7, dtype=torch.float64)
    h[:2] = X.T
    for layer in (1, 2, 3):
        into = graph.layer[graph.edge_index[1]] == layer
        sender, receiver = graph.edge_index[:, into]
        sums = torch.zeros_like(h).index_add(0, receiver, graph.edges[into] * h[sender]) + graph.nodes
        here = graph.layer == layer
        h[here] = sums[here].tanh() if layer < 3 else sums[here]
    torch.testing.assert_close(h[-3:].T, nets(X)[1])


def test_perceptrons_of_a_model_are_read_and_written():
    torch.manual_seed(0)
    model = mq.Model(mq.PaiNN(elements=["H", "O"], channels=8, layers=2), ["energy"]).double()
    found = weights.mlps_of(model)
    linear = {
        name.rpartition(".")[0] for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    assert found and found.keys() <= linear
    water = mq.connect(mq.Graph.single([[0, 0, 0], [0.9, 0, 0], [0, 0.9, 0]], ["O", "H", "H"]), 5.0)
    before = model(water)["energy"]
    for name, nets in found.items():
        group = weights.NeuronGroup.of(nets.architecture)
        generator = torch.Generator().manual_seed(0)
        group.act(group.sample(generator=generator), nets).write_to(model.get_submodule(name))
    torch.testing.assert_close(model(water)["energy"], before)
    nets.map(lambda value: value * 1.1).write_to(model.get_submodule(name))
    assert (model(water)["energy"] - before).abs() > 1e-4


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda: Architecture((2,)), ModelError, "wanted inputs, hidden layers and outputs"),
        (lambda: Architecture((2, 3), "sin"), ModelError, "did you mean 'sine'"),
        (lambda: Networks.from_modules([]), ModelError, "wanted at least one"),
        (lambda: Networks.from_modules([nn.Bilinear(2, 2, 2)]), ModelError, "Bilinear: wanted nn.Sequential"),
        (lambda: Networks.from_modules([nn.Linear(2, 2)]), ModelError, "activations none"),
        (
            lambda: Networks.from_modules([nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))]),
            ModelError,
            "layer 1 of the network, LayerNorm",
        ),
        (
            lambda: Networks.from_modules([nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))]),
            ModelError,
            "layer 1 of the network is Linear",
        ),
        (
            lambda: Networks.from_modules(
                [nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.5), nn.Linear(2, 1))]
            ),
            ModelError,
            "default settings",
        ),
        (
            lambda: Networks.from_modules([*modules(1), *modules(1, nn.ReLU)]),
            ModelError,
            "network 1 is 2-5-4-3, relu; network 0 is 2-5-4-3, tanh",
        ),
        (
            lambda: Networks.from_state_dicts([{"0.weight": torch.ones(2, 2, 3)}], "relu"),
            ModelError,
            "state dict 0: 0.weight",
        ),
        (
            lambda: Networks.from_state_dicts(
                [{"a.weight": torch.ones(2, 2), "b.weight": torch.ones(1, 3)}], "relu"
            ),
            ModelError,
            "b.weight has the shape",
        ),
        (
            lambda: Networks(Architecture((2, 3)), (torch.ones(1, 2, 3, 1),), (torch.ones(1, 3, 1),)),
            DataError,
            "weights of map 0 have the shape",
        ),
        (lambda: Networks(Architecture((2, 3)), (), ()), DataError, "0 weights and 0 biases"),
        (lambda: Networks.from_flat(Architecture((2, 3)), torch.ones(1, 4)), DataError, "has 9"),
        (
            lambda: Networks.cat([Networks.random(Architecture((1, n)), 1) for n in (2, 3)]),
            DataError,
            "exactly one",
        ),
        (
            lambda: Networks.random(Architecture((1, 2)), 1).write_to(
                nn.Sequential(nn.Linear(1, 2), nn.ReLU())
            ),
            ModelError,
            "the networks are 1-2, sine",
        ),
    ],
)
def test_errors_say_what_was_found(act, error, message):
    with pytest.raises(error, match=message):
        act()


def test_what_notebooks_show():
    nets = Networks.random(Architecture((2, 4, 1)), 2)
    assert repr(nets) == "2 networks 2-4-1, sine" and "2-4-1" in nets._repr_html_()
    assert "7 neurons and 12 weights" in repr(nets.graph()) and "12" in nets.graph()._repr_html_()
    assert repr(nets.map(lambda v: v.repeat_interleave(3, -1))).endswith("3 channels")
