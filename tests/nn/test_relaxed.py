"""Relaxed layers: what each gate opens, that nothing but it does, and what the free path must not hold."""

import pytest
import torch
from torch import nn

from molequi.errors import ConfigError, ModelError
from molequi.nn.irreps import Convolution
from molequi.nn.relaxed import (
    RelaxedConvolution,
    RelaxedGroupConvolution,
    free_groups,
    group_table,
    is_strict,
    lift,
    lower,
    relaxed_layers,
    set_theta,
)
from molequi.ops import irreps as ir
from molequi.symmetry import group, random_orthogonal

LAYOUT = ["0e", "1o", "2e"]


def convolution(gates, reflections=True) -> RelaxedConvolution:
    torch.manual_seed(0)
    strict = Convolution(
        inputs=LAYOUT, outputs=LAYOUT, l_max=2, channels=4, radial=(3, 8), reflections=reflections
    )
    return RelaxedConvolution(strict, gates).double()


def representation(layout, rotation):
    matrices = {i: ir.wigner(i, rotation) for i in set(layout)}
    return torch.block_diag(*(matrices[i] for i in layout))


@pytest.mark.parametrize("reflections", [True, False])
def test_free_kernels_have_no_equivariant_part(reflections):
    """The mean of D_out(g)⁻¹ K(g r̂) D_in(g) over the group is the equivariant part of a kernel K, here within the noise of a sample."""
    layer = convolution((0.0, 0.0, 1.0), reflections)
    coupling = layer.coupling(torch.float64).detach()
    unit = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    total, size, count = 0.0, 0.0, 300
    rows = [(i, l) for i, l, _ in layer.product.paths]
    inputs = [LAYOUT[i] for i, _ in rows]
    for _ in range(count):
        g = random_orthogonal(3, proper=None if reflections else True, generator=generator)
        harmonics = torch.cat(ir.spherical_harmonics(2, unit @ g.T), dim=1)
        kernel = (harmonics @ coupling).reshape(layer.shape[1:])  # (O, rows)
        back = representation(LAYOUT, g).T @ kernel @ representation(inputs, g)
        total, size = total + back, size + float(back.square().sum())
    noise = (size / count) ** 0.5 / count**0.5
    assert float((total / count).norm()) < 1.5 * noise
    strict = convolution((1.0, 1.0, 0.0), reflections)  # the control: there it is the kernel itself
    kernel = (
        torch.cat(ir.spherical_harmonics(2, unit @ g.T), dim=1) @ strict.coupling(torch.float64).detach()
    ).reshape(layer.shape[1:])
    here = (
        torch.cat(ir.spherical_harmonics(2, unit), dim=1) @ strict.coupling(torch.float64).detach()
    ).reshape(layer.shape[1:])
    assert torch.allclose(representation(LAYOUT, g).T @ kernel @ representation(inputs, g), here, atol=1e-12)


def test_free_kernels_are_orthogonal_to_every_coupling():
    layer = convolution((1.0, 1.0, 1.0))
    for name, kernel in layer.free_kernels().items():
        target, source = name.split("_")
        for l in range(3):
            l3, l1 = ir.parse(target)[0], ir.parse(source)[0]
            if not abs(l1 - l3) <= l <= l1 + l3 or (l1 + l + l3) % 2:
                continue
            coupling = ir.clebsch_gordan(l1, l, l3)
            kernels = kernel.reshape(-1, 9, 2 * l3 + 1, 2 * l1 + 1)[:, l * l : (l + 1) ** 2]
            overlap = torch.einsum("psoi,iso->p", kernels, coupling)
            assert float(overlap.detach().abs().max()) < 1e-12
        assert float(kernel.detach().norm()) > 0.1


def test_gate_one_is_as_much_freedom_as_symmetry():
    """c says how large the free kernel is beside the equivariant one: at the start they are alike, path by path on average."""
    layer = convolution((1.0, 1.0, 0.0))
    strict = float(layer.coupling(torch.float64).detach().square().sum())
    free = sum(float(k.detach().square().sum()) for k in layer.free_kernels().values())
    assert 0.8 < free / strict < 1.1


def test_names_theta_and_what_is_strict():
    model = nn.Sequential(convolution((1, 1, 0.5)), nn.Linear(2, 2), convolution((1, 1, 0.0)))
    assert [name for name, _ in relaxed_layers(model)] == ["0", "2"]
    groups = free_groups(model)
    assert list(groups) == ["0/0e", "0/1o", "0/2e", "2/0e", "2/1o", "2/2e"] and all(
        len(p) == 3 for p in groups.values()
    )
    assert sum(len(p) for p in free_groups(model[0]).values()) == 9 and list(free_groups(model[0])) == LAYOUT
    assert not is_strict(model)
    set_theta(model, 0.0)
    assert is_strict(model)
    assert torch.equal(model[0].coupling(torch.float64), model[2].coupling(torch.float64))
    set_theta(model, 0.25)
    assert float(model[0].free.detach()) == 0.125 and "0.theta" in model.state_dict()
    with pytest.raises(ModelError, match="Linear has no relaxed layers, whose theta could be set"):
        set_theta(nn.Linear(1, 1), 0.0)
    assert free_groups(nn.Linear(1, 1)) == {}


def test_zero_free_parameters_are_a_strict_layer():
    layer, strict = convolution((1, 1, 0.7)), convolution((1, 1, 0.0))
    assert not torch.allclose(layer.coupling(torch.float64), strict.coupling(torch.float64), atol=1e-3)
    with torch.no_grad():
        for parameters in layer.free_groups().values():
            for p in parameters:
                p.zero_()
    assert torch.equal(layer.coupling(torch.float64), strict.coupling(torch.float64))


# Finite groups.

GROUPS = ["T", "Td", "O", "Oh", "I"]


def stack(elements, gates, filters=2):
    torch.manual_seed(0)
    return [
        RelaxedGroupConvolution(elements, a, b, filters=filters, gates=gates).double()
        for a, b in ((6, 4), (4, 6))
    ]


def net(layers, vectors, elements):
    f = layers[0](lift(vectors, elements))
    return lower(layers[1](torch.tanh(f)), elements)


@pytest.mark.parametrize("name", GROUPS)
def test_equal_coefficients_are_exactly_equivariant(name):
    elements = group(name).elements
    vectors = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    errors = {}
    for gates in ((1, 1, 0), (0.3, -2, 0), (1, 1, 0.1), (1, 1, 0.3), (1, 1, 1.0)):
        layers = stack(elements, gates)
        out = net(layers, vectors, elements)
        assert float(out.detach().abs().max()) > 1e-2
        errors[gates] = max(
            float((net(layers, vectors @ g.T, elements) - out @ g.T).detach().norm() / out.detach().norm())
            for g in elements[1:8]
        )
    strict = [errors.pop((1, 1, 0)), errors.pop((0.3, -2, 0))]
    assert max(strict) < 1e-12
    free = list(errors.values())
    assert free == sorted(free) and free[0] > 1e-3
    across = torch.linalg.matrix_exp(
        torch.tensor([[0.0, -0.4, 0.2], [0.4, 0.0, -0.1], [-0.2, 0.1, 0.0]], dtype=torch.float64)
    )
    layers = stack(elements, (1, 1, 0))
    assert (
        float(
            (net(layers, vectors @ across.T, elements) - net(layers, vectors, elements) @ across.T)
            .detach()
            .norm()
        )
        > 1e-3
    )


def test_gate_a_alone_is_invariant_and_theta_closes_the_free_path():
    elements = group("O").elements
    f = torch.randn(3, 24, 6, dtype=torch.float64)
    moved = f[:, group_table(elements)[5]]  # f(k⁻¹g)
    layer = stack(elements, (1, 0, 0))[0]
    out = layer(f)
    assert (
        torch.allclose(out, out[:, :1], atol=1e-13)
        and torch.allclose(layer(moved), out, atol=1e-13)
        and float(out.detach().norm()) > 0.1
    )
    layer = stack(elements, (1, 1, 0.5))[0]
    assert not torch.allclose(layer(moved), layer(f)[:, group_table(elements)[5]], atol=1e-3)
    set_theta(layer, 0.0)
    assert torch.allclose(layer(moved), layer(f)[:, group_table(elements)[5]], atol=1e-12)


def test_gradients_of_group_convolutions_reach_everything():
    layer = stack(group("T").elements, (1, 1, 0.1))[0]
    layer(torch.randn(3, 12, 6, dtype=torch.float64)).square().sum().backward()
    assert all(float(p.grad.norm()) > 1e-6 for p in layer.parameters())
    assert list(layer.free_groups()) == ["regular"]


def test_lifting_and_lowering_are_inverse():
    elements = group("Oh").elements
    vectors = torch.randn(4, 2, 3, dtype=torch.float64)
    assert torch.allclose(lower(lift(vectors, elements), elements), vectors, atol=1e-13)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (
            lambda: RelaxedGroupConvolution(group("T").elements[:5], 1, 1),
            ModelError,
            "5 matrices are no group",
        ),
        (
            lambda: RelaxedGroupConvolution(torch.eye(3), 1, 1),
            ModelError,
            r"elements of the shape \(3, 3\) are no group: wanted one or more square matrices",
        ),
        (
            lambda: RelaxedGroupConvolution(torch.zeros(0, 3, 3), 1, 1),
            ModelError,
            r"elements of the shape \(0, 3, 3\) are no group",
        ),
        (
            lambda: RelaxedGroupConvolution(torch.eye(3).repeat(2, 1, 1), 1, 1),
            ModelError,
            "2 matrices are no group: one of them is there twice",
        ),
        (
            lambda: RelaxedGroupConvolution(torch.full((1, 3, 3), float("nan")), 1, 1),
            ModelError,
            "1 matrices are no group",
        ),
        (lambda: group("SO(3)").elements, ConfigError, r"SO\(3\) has infinitely many elements; .* T, Td"),
    ],
)
def test_what_is_no_finite_group(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_elements_of_finite_groups():
    orders = {"T": 12, "Td": 24, "Th": 24, "O": 24, "Oh": 48, "I": 60, "Ih": 120, "C1": 1}
    assert {name: len(group(name).elements) for name in orders} == orders
    assert torch.equal(group("Oh").elements[0], torch.eye(3, dtype=torch.float64))
