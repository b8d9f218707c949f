"""The group of hidden neurons: what it leaves unchanged, and that what lies outside it changes outputs."""

import math

import pytest
import torch

from molequi.errors import ConfigError
from molequi.weights import Architecture, Networks, NeuronGroup, NeuronMap, balanced, rescaled

X = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def random(activation: str, sizes=(2, 6, 5, 3)) -> Networks:
    generator = torch.Generator().manual_seed(0)
    return Networks.random(Architecture(sizes, activation), 4, generator=generator, dtype=torch.float64)


def error(nets: Networks, group: NeuronGroup) -> float:
    turned = group.act(group.sample(4, generator=torch.Generator().manual_seed(2)), nets)
    assert (turned.flat() - nets.flat()).abs().max() > 0.1  # something happened
    return float((turned(X) - nets(X)).abs().max())


@pytest.mark.parametrize("activation", ["sine", "tanh", "relu", "leaky_relu", "silu"])
def test_outputs_stay(activation):
    nets = random(activation)
    assert error(nets, NeuronGroup.of(nets.architecture)) <= 1e-13


@pytest.mark.parametrize("activation, kind", [("relu", "signs"), ("silu", "signs"), ("tanh", "scales")])
def test_outputs_change_outside_of_the_group(activation, kind):
    nets = random(activation)
    assert error(nets, NeuronGroup(nets.architecture.sizes, kind)) > 1e-2


def test_symmetries_that_the_groups_leave_out():
    """Of a sine, b + π with the other sign, and b + 2π; of a sigmoid, its sign with v added to the next bias."""
    for activation, sign, turn in (("sine", 1, 2 * math.pi), ("sine", -1, math.pi), ("sigmoid", -1, 0.0)):
        nets = random(activation)
        (w, *ws), (b, *bs) = ([v.clone() for v in some] for some in (nets.weights, nets.biases))
        b[:, 0] += turn
        if activation == "sigmoid":
            w[:, 0], b[:, 0] = -w[:, 0], -b[:, 0]
            bs[0] += ws[0][:, :, 0]
        ws[0][:, :, 0] *= sign
        torch.testing.assert_close(Networks(nets.architecture, (w, *ws), (b, *bs))(X), nets(X))


def test_inputs_and_outputs_are_no_symmetry():
    nets = random("tanh")
    assert error(nets, NeuronGroup(nets.architecture.sizes, ends=True)) > 1e-2


def test_elements_of_the_batch_are_their_own():
    nets = random("tanh")
    group = NeuronGroup.of(nets.architecture)
    one, four = group.sample(1), group.sample(4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(group.act(one, nets)[2].flat(), group.act(one, nets[2]).flat())
    third = NeuronMap({m: o[2:3] for m, o in four.order.items()}, {m: f[2:3] for m, f in four.factor.items()})
    assert torch.equal(group.act(four, nets)[2].flat(), group.act(third, nets[2]).flat())


def test_balancing_is_one_network_of_each_orbit():
    nets = random("relu")
    group = NeuronGroup.of(nets.architecture)
    flat, factor = balanced(nets)
    torch.testing.assert_close(flat(X), nets(X), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rescaled(flat, factor).flat(), nets.flat(), rtol=1e-12, atol=1e-12)
    incoming = torch.cat([flat.weights[1][..., 0], flat.biases[1]], dim=-1)
    torch.testing.assert_close(incoming.norm(dim=-1), torch.ones(4, 5, dtype=torch.float64))
    scaled = group.act(
        NeuronMap({m: torch.arange(group.sizes[m])[None] for m in (1, 2)}, group.sample().factor), nets
    )
    assert (scaled.flat() - nets.flat()).abs().max() > 0.1
    torch.testing.assert_close(balanced(scaled)[0].flat(), flat.flat(), rtol=1e-12, atol=1e-12)
    dead = nets.map(lambda value: value * 0)
    assert torch.equal(balanced(dead)[0].flat(), dead.flat())


def test_orders_names_and_subgroups():
    signs, plain = (NeuronGroup((2, 3, 4, 1), kind) for kind in ("signs", "permutations"))
    assert plain.order == 6 * 24 and signs.order == 6 * 24 * 2**7
    assert NeuronGroup((2, 3, 1), "scales").order == math.inf and NeuronGroup((2, 3, 1), "none").order == 1
    assert str(plain) == "S_3 × S_4" and str(NeuronGroup((2, 3, 1), "none")) == "identity"
    assert "S_3" in plain._repr_html_()
    assert signs.holds(plain) and not plain.holds(signs) and plain.holds(plain)
    assert plain.holds(NeuronGroup((2, 3, 4, 1), "none")) and not NeuronGroup((2, 3, 4, 1), "none").holds(
        plain
    )
    assert NeuronGroup((2, 3, 4, 1), ends=True).holds(plain) and not plain.holds(NeuronGroup((2, 4, 3, 1)))


def test_errors():
    with pytest.raises(ConfigError, match="did you mean 'signs'"):
        NeuronGroup((2, 3, 1), "sign")
    with pytest.raises(ConfigError, match="permutations alone"):
        NeuronGroup((2, 3, 1), "signs", ends=True)
    group = NeuronGroup((2, 3, 1))
    with pytest.raises(ConfigError, match="the group is one of sizes"):
        group.act(group.sample(), random("relu"))
