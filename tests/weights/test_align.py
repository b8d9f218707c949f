"""Alignment: planted maps are found exactly; networks of other starts come closer and stay what they are."""

import pytest
import torch

from molequi import weights
from molequi.errors import DataError
from molequi.weights import Architecture, Networks, NeuronGroup

X = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def random(activation: str, count: int, seed: int = 0) -> Networks:
    architecture = Architecture((2, 16, 24, 8, 3), activation)
    generator = torch.Generator().manual_seed(seed)
    return Networks.random(architecture, count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("activation", ["silu", "tanh", "sine", "relu"])
def test_planted_maps_are_found_exactly(activation):
    nets = random(activation, 3)
    group = NeuronGroup.of(nets.architecture)
    planted = group.sample(3, generator=torch.Generator().manual_seed(3))
    found = weights.align(nets, group.act(planted, nets))
    for m in group.layers:
        assert torch.equal(
            planted.order[m].gather(1, found.element.order[m]), torch.arange(group.sizes[m]).expand(3, -1)
        )
    if group.kind == "scales":
        torch.testing.assert_close(found.networks.flat(), nets.flat(), rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(found.networks.flat(), nets.flat())
    assert min(found.after) == pytest.approx(1.0) and max(found.before) < 0.5


def test_permutations_alone_do_not_undo_signs():
    """The control of signs."""
    nets = random("tanh", 1)
    group = NeuronGroup.of(nets.architecture)
    turned = group.act(group.sample(generator=torch.Generator().manual_seed(3)), nets)
    assert (
        weights.align(nets, turned, symmetry="permutations").after[0]
        < 0.5
        < weights.align(nets, turned).after[0]
    )


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_other_networks_come_closer_and_compute_the_same(activation):
    first, others = random(activation, 1), random(activation, 3, seed=7)
    found = weights.align(first, others)
    torch.testing.assert_close(found.networks(X), others(X), rtol=1e-11, atol=1e-11)
    assert all(after > before + 0.1 for before, after in zip(found.before, found.after))
    assert "→" in str(found) and "→" in found._repr_html_()


def test_noise_does_not_hide_the_planted_map():
    nets = random("tanh", 1)
    group = NeuronGroup.of(nets.architecture)
    planted = group.sample(generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(0)
    noisy = nets.map(lambda v: v + 0.02 * torch.randn(v.shape, generator=generator, dtype=v.dtype))
    found = weights.align(nets, group.act(planted, noisy))
    torch.testing.assert_close(found.networks.flat(), noisy.flat(), rtol=1e-12, atol=1e-12)


def test_errors():
    with pytest.raises(DataError, match="wanted one architecture"):
        weights.align(random("tanh", 1), random("relu", 1))
    with pytest.raises(DataError, match="one reference or one for each"):
        weights.align(random("tanh", 2), random("tanh", 3))
