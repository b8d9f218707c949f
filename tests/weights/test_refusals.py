"""What would be wrong silently: refused with a sentence, or done right at the edges."""

import re
import signal

import numpy as np
import pytest
import torch
from torch import nn

import molequi as mq
from molequi import weights
from molequi.errors import ConfigError, DataError, ModelError
from molequi.weights import Architecture, Networks, NeuronGroup, WeightModel

X = torch.linspace(-1, 1, 14).view(7, 2)


def random(activation: str, count: int = 4, sizes=(2, 6, 5, 2)) -> Networks:
    return Networks.random(Architecture(sizes, activation), count, generator=torch.Generator().manual_seed(0))


def fitted(targets, valid=None, nets=None, outputs=2, **options):
    nets = random("tanh") if nets is None else nets
    valid = None if valid is None else (random("tanh", len(valid)), valid)
    model = WeightModel(nets.architecture, outputs, channels=4, layers=1)
    return weights.fit(model, nets, targets, valid=valid, **({"epochs": 1} | options))


def spoiled(nets: Networks, index: int) -> Networks:
    flat = nets.flat().clone()
    flat[index, 3] = torch.nan
    return Networks.from_flat(nets.architecture, flat)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x):
        return x + self.net(x)


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))
    net[0].register_forward_hook(lambda layer, x, out: 2 * out)
    return net


def state(*shapes: tuple[int, ...], bias: int | None = None) -> dict[str, torch.Tensor]:
    found = {f"{k}.weight": torch.ones(shape) for k, shape in enumerate(shapes)}
    return found | ({} if bias is None else {"0.bias": torch.ones(bias)})


@pytest.mark.parametrize(
    "act, error, message",
    [
        *(
            (
                lambda a=activation, k=kind: weights.align(random(a), random(a), symmetry=k),
                ModelError,
                message,
            )
            for activation, kind, message in (
                ("relu", "signs", "networks with relu have scales"),
                ("gelu", "signs", "networks with gelu have permutations"),
                ("tanh", "scales", "networks with tanh have signs"),
                ("tanh", "none", "nothing to align"),
                ("tanh", "sign", "did you mean 'signs'"),
            )
        ),
        (
            lambda: fitted(torch.zeros(4, 2), augment=NeuronGroup((2, 6, 5, 2), "scales")),
            ModelError,
            "networks with tanh have signs",
        ),
        (lambda: Networks.from_modules(Residual()), ModelError, r"Residual.*\[m.net for m in modules\]"),
        (lambda: Networks.from_modules(Doubled(*Residual().net)), ModelError, "Doubled has its own forward"),
        (lambda: Networks.from_modules(hooked()), ModelError, "Linear has hooks"),
        (lambda: Networks.from_state_dicts([{"weight": torch.ones(2)}], "relu"), ModelError, "weight"),
        (lambda: Networks.from_state_dicts([{"a_weight": torch.ones(2, 2)}], "relu"), ModelError, "a_weight"),
        (
            lambda: Networks.from_state_dicts([state((3, 2), (1, 3), bias=2)], "relu"),
            ModelError,
            r"0.bias has the shape \(2,\); wanted \(3,\)",
        ),
        (
            lambda: Networks.from_state_dicts([state((3, 2), (1, 3), bias=1)], "relu"),
            ModelError,
            r"0.bias has the shape \(1,\); wanted \(3,\)",
        ),
        (
            lambda: Networks.from_state_dicts(
                [
                    {
                        f"{n}.{p}": torch.ones((2, 2)[: 1 + (p == "weight")])
                        for n in "ab"
                        for p in ("bias", "weight")
                    }
                ],
                "relu",
            ),
            ModelError,
            "sorted by name",
        ),
        (lambda: fitted(torch.zeros(4, 2), nets=spoiled(random("tanh"), 2)), DataError, "network 2"),
        (
            lambda: WeightModel(random("tanh").architecture, 2).predict(spoiled(random("tanh"), 1)),
            DataError,
            "network 1 is not finite, and 1 of 4 are not",
        ),
        (lambda: fitted(torch.tensor([[0.0, 1]] * 3 + [[1, torch.nan]])), DataError, "training: target 3"),
        (
            lambda: WeightModel(random("tanh").architecture, 2).standardize(random("tanh"), torch.zeros(4)),
            DataError,
            r"wanted \(4, 2\)",
        ),
        (lambda: fitted(torch.zeros(4, 1), torch.zeros(3), outputs=1), ConfigError, r"validation.*\(3, 1\)"),
        (lambda: fitted(torch.zeros(4).long(), torch.tensor([0, 2])), ConfigError, "validation.*from 0 to 2"),
        (lambda: fitted(torch.zeros(4, 2), torch.full((3, 2), torch.inf)), DataError, "validation: target 0"),
        (
            lambda: fitted(torch.zeros(4, 2), torch.zeros(3), loss=lambda a, b: a.mean()),
            ConfigError,
            "validation",
        ),
        (lambda: fitted(torch.zeros(4, 2), max_seconds=0), ConfigError, r"fit\.max_seconds: found 0"),
        (lambda: fitted(torch.zeros(0, 2), nets=random("tanh")[:0]), DataError, "no networks"),
        (
            lambda: weights.fit_fields(weights.grid(2), torch.ones(1, 4, 1, dtype=torch.uint8)),
            DataError,
            "uint8.*real values",
        ),
        (
            lambda: weights.fit_fields(
                weights.grid(2), torch.tensor([0.0, torch.nan])[:, None, None].expand(2, 4, 1)
            ),
            DataError,
            "signal 1",
        ),
        (lambda: random("tanh")(torch.ones(5, 3)), DataError, r"\(5, 3\).*\(n, 2\) or \(4, n, 2\)"),
        (lambda: random("tanh")(torch.ones(3, 5, 2)), DataError, r"\(4, n, 2\)"),
        (lambda: random("tanh")(torch.ones(2)), DataError, r"\(2,\)"),
        (lambda: random("tanh")(X.double()), DataError, "float64.*float32"),
        (lambda: random("tanh").map(lambda v: v.repeat_interleave(3, -1))(X), DataError, "3 channels"),
        (lambda: weights.audit(lambda n: torch.ones(()), random("tanh")), ModelError, r"shape \(\)"),
        (lambda: weights.audit(lambda n: torch.ones(2, 2), random("tanh")), ModelError, r"\(2, 2\)"),
        (
            lambda: weights.train_many(random("tanh"), lambda n, k: n.flat().sum(1), steps=[1, 2]),
            DataError,
            "steps.*one for each of the 4",
        ),
        (lambda: weights.train_many(random("tanh"), lambda n, k: n.flat().sum(1), steps=-1), DataError, "-1"),
        (
            lambda: weights.train_many(random("tanh"), lambda n, k: n.flat().sum(1), lr=torch.ones(3)),
            DataError,
            "lr",
        ),
        (
            lambda: mq.audit(WeightModel(random("tanh").architecture, 2), random("tanh")),
            ConfigError,
            re.escape("molequi.weights.audit(model, networks)"),
        ),
    ],
)
def test_refused_with_a_sentence(act, error, message):
    with pytest.raises(error, match=message):
        act()


def test_networks_that_train_no_step_stay_and_the_others_are_trained():
    nets = random("tanh", 3)
    for decay in (True, False):
        found = weights.train_many(
            nets, lambda some, k: (some(X) - 1).square().mean((1, 2)), steps=[0, 5, 0], decay=decay
        )
        assert [torch.equal(a.flat(), b.flat()) for a, b in zip(found, nets)] == [True, False, True]
        assert found.flat().isfinite().all()


@pytest.mark.parametrize("at", [2, 4])
def test_one_network_that_diverges_does_not_cost_the_others(at):
    """Its loss is infinite in a step, or (at 4) after the last one; it stays as it was before that step."""
    nets = random("tanh", 3)

    def breaking(some, step):
        moved = (some.flat() - nets.flat()).abs().amax(1)
        broken = moved > (at - 0.5) * 1e-2  # Adam with constant gradients moves by 1e-2 in each step
        return torch.where(broken & (torch.arange(3) == 1), torch.inf, some.flat().sum(1))

    with pytest.raises(match="the loss of 1 of 3 networks.*network 1.*learning rate 0.01") as e:
        weights.train_many(nets, breaking, steps=4, decay=False)
    assert e.value.failed == (1,)
    assert bool(e.value.networks.flat().isfinite().all())
    want = nets.flat() - 4e-2
    torch.testing.assert_close(e.value.networks.flat()[[0, 2]], want[[0, 2]])
    torch.testing.assert_close(e.value.networks.flat()[1], nets.flat()[1] - at * 1e-2)


def test_means_and_scales_of_each_output():
    """By hand, with a constant column and with a single network."""
    nets = random("tanh")
    model = WeightModel(nets.architecture, 2)
    model.standardize(nets, torch.tensor([[1.0, 0.1], [3.0, 0.1], [1.0, 0.1], [3.0, 0.1]]))
    torch.testing.assert_close(model.output_mean, torch.tensor([2.0, 0.1]))
    torch.testing.assert_close(model.output_scale, torch.tensor([(4 / 3) ** 0.5, 1.0]))
    model.standardize(nets[0], torch.tensor([[1.0, 5.0]]))
    assert model.output_mean.tolist() == [1, 5] and model.output_scale.tolist() == [1, 1]
    assert bool(model(nets).isfinite().all())


def test_state_dicts_in_the_order_of_numbers():
    """Eleven hidden layers, in the alphabetical order in which safetensors lists them: 0, 1, 10, 11, 2, …"""
    torch.manual_seed(0)
    steps = [step for _ in range(12) for step in (nn.Linear(2, 2), nn.Tanh())][:-1]
    net = nn.ModuleDict({"hidden": nn.ModuleList(steps[::2])})
    named = dict(sorted(net.state_dict().items()))
    found = Networks.from_state_dicts([named], "tanh")
    torch.testing.assert_close(found(X)[0], nn.Sequential(*steps)(X))
    given = {"first.weight": torch.ones(3, 2), "a.weight": torch.ones(1, 3)}  # as they were made
    assert Networks.from_state_dicts([given], "tanh").architecture.sizes == (2, 3, 1)
    alone = Networks.from_state_dicts([nn.Linear(2, 3).state_dict()], "tanh")
    assert alone.architecture.sizes == (2, 3)


def test_indices_and_empty_batches():
    nets = random("tanh", 4)
    for index in (np.int64(1), torch.tensor(1), -3, np.array([1])):
        assert torch.equal(nets[index].flat(), nets.flat()[1:2])
    assert torch.equal(nets[np.array([True, False, True, False])].flat(), nets.flat()[::2])
    for empty in (nets[[]], nets[:0]):
        assert len(empty) == 0
        assert WeightModel(nets.architecture, 3, channels=4).predict(empty).shape == (0, 3)
        assert len(WeightModel(nets.architecture, "weights", channels=4).predict(empty)) == 0
    for index in (np.int64(4), torch.tensor(-5)):
        with pytest.raises(IndexError, match="of 4"):
            nets[index]


def test_one_number_for_each_network_is_audited():
    nets = random("tanh")
    assert weights.audit(lambda some: some.flat().square().sum(1), nets, draws=2).passed
    assert not weights.audit(lambda some: some.flat()[:, 0], nets, draws=2).passed


def test_the_audit_shows_what_a_model_of_less_symmetry_leaves_out():
    nets = random("tanh")
    report = weights.audit(WeightModel(nets.architecture, 3, symmetry="permutations"), nets, draws=2)
    row = report.rows[-1]
    assert report.passed and [r.check for r in report.rows] == ["not zero", "permutation", "sign"]
    assert row.verdict == "not applicable" and row.maximum > 1e-4 and "declares S_6 × S_5" in row.reason


def test_nothing_is_written_if_a_later_map_has_no_place():
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2, bias=False))
    before = net[0].weight.clone()
    with pytest.raises(ModelError, match="map 1 of the module has no biases"):
        random("tanh", 1, (2, 5, 2)).write_to(net)
    assert torch.equal(net[0].weight, before)
    bound = nn.utils.parametrizations.weight_norm(nn.Linear(2, 5))
    with pytest.raises(ModelError, match="map 0 of the module is parametrized"):
        random("tanh", 1, (2, 5, 2)).write_to(nn.Sequential(bound, nn.Tanh(), nn.Linear(5, 2)))


@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.ELU])
def test_activations_in_place_are_the_same(kind):
    net = nn.Sequential(nn.Linear(2, 5), kind(inplace=True), nn.Linear(5, 2))
    torch.testing.assert_close(Networks.from_modules(net)(X)[0], net(X))


def test_ctrl_c_keeps_what_was_trained():
    nets, steps, handler = random("tanh"), [], signal.getsignal(signal.SIGINT)

    def loss(outputs, targets):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return (outputs - targets).square().mean()

    with pytest.raises(weights.Interrupted, match="after 2 epochs") as caught:
        fitted(torch.rand(4, 2), nets=nets, loss=loss, epochs=9, batch_size=2)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert [row["epoch"] for row in caught.value.fitted.history] == [1, 2]
    assert not caught.value.fitted.model.training
    assert signal.getsignal(signal.SIGINT) is handler
