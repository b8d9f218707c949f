"""SOAP: the algorithm as published, its symmetry under rotations of the weights, and what it shares with other optimizers."""

import copy
import pickle

import pytest
import torch
from torch import nn

import molequi as mq
from molequi.errors import ConfigError, TrainingError
from molequi.training import soap as module
from molequi.training.soap import SOAP, forget_moments


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(weight, target, metric):
    """The gradient of tr (W - T)ᵀ M (W - T) + ‖W - T‖⁴ / 4, of full rank."""
    off = weight - target
    return 2 * metric @ off + off.square().sum() * off


def published(weight, steps, *, lr, beta, frequency, eps=1e-8):
    """Algorithm 3 of arXiv 2409.11321, one matrix, step by step; the first moment is kept in the original basis."""
    target, metric = (
        random(*weight.shape, seed=1),
        torch.diag(torch.arange(1.0, len(weight) + 1, dtype=torch.float64)),
    )
    gradient = slope(weight, target, metric)
    left, right = (1 - beta) * gradient @ gradient.T, (1 - beta) * gradient.T @ gradient
    q_l, q_r = (torch.linalg.eigh(m).eigenvectors.flip(-1) for m in (left, right))
    moment, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for t in range(1, steps):
        gradient = slope(weight, target, metric)
        turned = q_l.T @ gradient @ q_r
        moment = beta * moment + (1 - beta) * gradient
        second = beta * second + (1 - beta) * turned**2
        direction = (q_l.T @ moment @ q_r / (1 - beta**t)) / ((second / (1 - beta**t)).sqrt() + eps)
        weight = weight - lr * q_l @ direction @ q_r.T
        left = beta * left + (1 - beta) * gradient @ gradient.T
        right = beta * right + (1 - beta) * gradient.T @ gradient
        if t % frequency == 0:
            order_l = (q_l.T @ left @ q_l).diag().argsort(descending=True)
            order_r = (q_r.T @ right @ q_r).diag().argsort(descending=True)
            second = second[order_l][:, order_r]
            q_l, q_r = torch.linalg.qr(left @ q_l[:, order_l]).Q, torch.linalg.qr(right @ q_r[:, order_r]).Q
    return weight


def trained(start, steps, *, parameter=None, gradient=None, **options):
    parameter = nn.Parameter(start.clone()) if parameter is None else parameter
    optimizer = SOAP([parameter], **options)
    for _ in range(steps):
        parameter.grad = gradient(parameter.detach())
        optimizer.step()
    return parameter.detach()


def well(weight):
    return slope(
        weight,
        random(*weight.shape, seed=1),
        torch.diag(torch.arange(1.0, len(weight) + 1, dtype=torch.float64)),
    )


@pytest.mark.parametrize("frequency", [1, 4])
def test_it_is_the_published_algorithm(frequency):
    start = random(6, 6)
    found = trained(start, 40, gradient=well, lr=0.02, betas=(0.95, 0.95), frequency=frequency)
    wanted = published(start, 40, lr=0.02, beta=0.95, frequency=frequency)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert (found - published(start, 40, lr=0.02, beta=0.95, frequency=3)).abs().max() > 1e-4  # the control


def test_parameters_of_one_shape_do_not_see_each_other():
    starts = [random(5, 5, seed=k) for k in range(3)]
    parameters = [nn.Parameter(starts[0].clone()), nn.Parameter(torch.stack(starts[1:]))]
    vector = nn.Parameter(random(4))
    optimizer = SOAP([*parameters, vector], lr=0.02)
    for _ in range(25):
        parameters[0].grad = well(parameters[0].detach())
        parameters[1].grad = torch.stack([well(w) for w in parameters[1].detach()])
        vector.grad = vector.detach() ** 3
        optimizer.step()
    alone = [trained(start, 25, gradient=well, lr=0.02) for start in starts]
    torch.testing.assert_close(torch.cat([parameters[0][None], parameters[1]]).detach(), torch.stack(alone))


def test_a_long_side_is_cut_into_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    top, bottom = random(4, 4), random(4, 4, seed=5)
    both = trained(
        torch.cat([top, bottom]), 15, gradient=lambda w: torch.cat([well(w[:4]), well(w[4:])]), lr=0.02
    )
    torch.testing.assert_close(both[:4], trained(top, 15, gradient=well, lr=0.02))
    torch.testing.assert_close(both[4:], trained(bottom, 15, gradient=well, lr=0.02))
    wide = trained(
        torch.cat([top, bottom], 1),
        15,
        gradient=lambda w: torch.cat([well(w[:, :4]), well(w[:, 4:])], 1),
        lr=0.02,
    )
    torch.testing.assert_close(wide, torch.cat([both[:4], both[4:]], 1))


def test_a_long_side_of_prime_length_has_no_basis():
    (stack,) = module._stacks([nn.Parameter(torch.zeros(131, 3))])
    state = stack.first_state()
    assert "left" not in state and state["right"].shape == (1, 3, 3)


def test_vectors_have_the_steps_of_adam():
    start = random(7)
    other = nn.Parameter(start.clone())
    adam = torch.optim.Adam([other], lr=0.02, betas=(0.9, 0.97))
    for _ in range(20):
        other.grad = other.detach() ** 3 - 1
        adam.step()
    found = trained(start, 20, gradient=lambda w: w**3 - 1, lr=0.02, betas=(0.9, 0.97))
    torch.testing.assert_close(found, other.detach())


def test_rotated_weights_stay_rotated():
    """The loss f(Uᵀ W V) from the start U W Vᵀ: SOAP makes the rotated steps, Adam does not."""
    start = random(5, 5)
    u, v = (torch.linalg.qr(random(5, 5, seed=k)).Q for k in (2, 3))

    def turned(weight):
        return u @ well(u.T @ weight @ v) @ v.T

    plain = trained(start, 30, gradient=well, lr=0.02)
    rotated = trained(u @ start @ v.T, 30, gradient=turned, lr=0.02)
    torch.testing.assert_close(rotated, u @ plain @ v.T, rtol=1e-6, atol=1e-6)

    def adam(start, gradient):
        weight = nn.Parameter(start.clone())
        optimizer = torch.optim.Adam([weight], lr=0.02)
        for _ in range(30):
            weight.grad = gradient(weight.detach())
            optimizer.step()
        return weight.detach()

    control = adam(u @ start @ v.T, turned) - u @ adam(start, well) @ v.T
    assert control.abs().max() > 0.05


def test_weight_decay_is_decoupled():
    weight = nn.Parameter(torch.eye(3, dtype=torch.float64))
    optimizer = SOAP([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.eye(3, dtype=torch.float64))  # the first step only measures
    optimizer.step()
    torch.testing.assert_close(weight.detach(), 0.95 * torch.eye(3, dtype=torch.float64))


def test_parameters_without_gradients_stay():
    used, unused = nn.Parameter(random(3, 3)), nn.Parameter(random(3, 3, seed=1))
    optimizer = SOAP([used, unused], lr=0.1, weight_decay=0.1)
    for _ in range(5):
        used.grad = well(used.detach())
        optimizer.step()
    assert torch.equal(unused.detach(), random(3, 3, seed=1)) and not torch.equal(used.detach(), random(3, 3))


@pytest.mark.parametrize("kind", ["soap", "adam"])
def test_forgotten_parameters_stay_at_zero(kind):
    one, two, vector = nn.Parameter(random(3, 3)), nn.Parameter(random(3, 3, seed=1)), nn.Parameter(random(3))
    optimizer = mq.Optimizer(kind).make([one, two, vector], lr=0.01)

    def step(*slopes):
        one.grad, two.grad, vector.grad = slopes
        optimizer.step()

    for _ in range(5):
        step(well(one.detach()), well(two.detach()), vector.detach().clone())
    for p in (two, vector):
        p.data.zero_()
    before = one.detach().clone()
    forget_moments(optimizer, [two, vector])
    step(well(one.detach()), torch.zeros(3, 3).double(), torch.zeros(3).double())
    assert not two.any() and not vector.any() and not torch.equal(one.detach(), before)


def stepped(optimizer, parameter, steps):
    for _ in range(steps):
        parameter.grad = well(parameter.detach())
        optimizer.step()
    return parameter.detach().clone()


def test_states_are_continued_and_forgotten_before_the_first_step():
    first = nn.Parameter(random(3, 3))
    optimizer = SOAP([first], lr=0.02)
    stepped(optimizer, first, 12)
    second = nn.Parameter(first.detach().clone())
    other = SOAP([second], lr=0.02)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    forget_moments(other, [second])
    assert not other.state[second]["moment"].any() and optimizer.state[first]["moment"].any()
    forget_moments(optimizer, [first])
    assert torch.equal(stepped(optimizer, first, 5), stepped(other, second, 5))


# Processes hand objects to each other by pickle.
@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_optimizers_of_the_copied_parameters(way):
    parameter = nn.Parameter(random(3, 3))
    optimizer = SOAP([parameter], lr=0.02)
    stepped(optimizer, parameter, 3)
    twin, own = way((optimizer, parameter))
    assert torch.equal(stepped(twin, own, 9), stepped(optimizer, parameter, 9))


def test_the_state_of_another_optimizer_is_refused():
    parameter = nn.Parameter(random(3, 3))
    adam = torch.optim.Adam([parameter])
    stepped(adam, parameter, 1)
    with pytest.raises(ValueError, match="the state of another optimizer; wanted that of SOAP"):
        SOAP([parameter]).load_state_dict(adam.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e25])
def test_gradients_that_are_not_finite(value):
    parameter = nn.Parameter(torch.eye(3))
    parameter.grad = torch.full((3, 3), value)
    with pytest.raises(TrainingError, match="SOAP: gradients are not finite, or their squares"):
        SOAP([parameter]).step()


def test_half_precision():
    parameter = nn.Parameter(torch.eye(4, dtype=torch.bfloat16))
    optimizer = SOAP([parameter], lr=0.01)
    for _ in range(25):
        parameter.grad = parameter.detach() - 2
        optimizer.step()
    # Without a limit for the steps, entries of thousands appear.
    assert parameter.abs().max() < 1 and parameter.detach().float().mean() > 0.3


@pytest.mark.parametrize("before", [50, 400])
def test_steps_of_a_component_are_limited(before):
    vector = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = SOAP([vector], lr=0.1, betas=(0.0, 0.9999))
    for size in [1e-6] * before + [1.0]:
        start = vector.detach().clone()
        vector.grad = torch.tensor([size, 0.0], dtype=torch.float64)
        optimizer.step()
    # Adam's last step: g / √v with v = (1 - β) g² / (1 - βⁿ), the other gradients being negligible.
    adam = ((1 - 0.9999 ** (before + 1)) / (1 - 0.9999)) ** 0.5
    assert (adam > 10) == (before == 400)
    step = (vector.detach() - start).abs()
    assert float(step[0]) == pytest.approx(0.1 * min(10, adam), rel=1e-6) and step[1] == 0


def test_a_closure_is_called_with_gradients():
    weight = nn.Parameter(random(3, 3))
    optimizer = SOAP([weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == pytest.approx(float(random(3, 3).square().sum()))


def test_groups_have_their_own_options():
    fast, slow = nn.Parameter(random(4, 4)), nn.Parameter(random(4, 4))
    optimizer = SOAP([{"params": [fast], "lr": 0.02}])
    optimizer.add_param_group({"params": [slow], "lr": 0.001})
    for _ in range(8):
        fast.grad, slow.grad = well(fast.detach()), well(slow.detach())
        optimizer.step()
    torch.testing.assert_close(fast.detach(), trained(random(4, 4), 8, gradient=well, lr=0.02))
    torch.testing.assert_close(slow.detach(), trained(random(4, 4), 8, gradient=well, lr=0.001))


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0},
        {"lr": "a"},
        {"betas": (0.9, 1.0)},
        {"betas": 0.9},
        {"betas": (0.9, 0.9, 0.9)},
        {"eps": 0.0},
        {"weight_decay": -1.0},
        {"frequency": 0},
        {"frequency": 2.5},
    ],
)
def test_options_out_of_range(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"SOAP: {name}=.*; wanted "):
        SOAP([nn.Parameter(torch.eye(2))], **options)
    with pytest.raises(ConfigError, match=f"SOAP: {name}=.*; wanted "):
        SOAP([{"params": [nn.Parameter(torch.eye(2))], **options}])


def test_options_of_another_optimizer():
    with pytest.raises(
        ConfigError, match="amsgrad=True has no effect on the optimizer 'soap'; leave amsgrad out"
    ):
        mq.Optimizer("soap", amsgrad=True)
    with pytest.raises(ConfigError, match="frequency=5 has no effect .* 'adam'; .* or take optimizer 'soap'"):
        mq.Optimizer(frequency=5)
    assert mq.Optimizer().record()["amsgrad"] is True and "frequency" not in mq.Optimizer().record()
    assert mq.Optimizer("soap").record()["frequency"] == 5


def test_a_model_learns_with_it(make):
    """Better than with Adam after the same steps, on forces that are known in closed form."""
    data = make.morse(60)
    errors = {
        name: mq.fit(
            make.tiny(),
            data[:48],
            data[48:],
            epochs=25,
            batch_size=4,
            lr=1e-2,
            optimizer=name,
            logging={"progress": False},
        ).errors["valid"]["forces_rmse"]
        for name in ("soap", "adam")
    }
    assert errors["soap"] < 0.8 * errors["adam"], errors
