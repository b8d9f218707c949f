"""Layers: equivariant, and all that is equivariant (their dimension is that of the commutant)."""

import pytest
import torch

from molequi.errors import ModelError
from molequi.weights import (
    Architecture,
    EquivariantLinear,
    Networks,
    NeuronGroup,
    NeuronMap,
    PermutationLayer,
    PointwiseLinear,
    SignLayer,
    pack,
    spaces_of,
    unpack,
)

TINY = [(2, 3, 1), (2, 3, 2, 1), (1, 2, 3, 2, 1)]


def random(sizes, count=2, seed=0) -> Networks:
    generator = torch.Generator().manual_seed(seed)
    return Networks.random(Architecture(sizes, "tanh"), count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("sizes", [*TINY, (3, 2)])
def test_pack_and_back(sizes, ends):
    nets = random(sizes)
    packed = pack(nets, ends=ends)
    assert {axes: value.shape[-1] for axes, value in packed.items()} == spaces_of(
        nets.architecture, ends=ends
    )
    assert all(value.shape[1:-1] == tuple(sizes[a] for a in axes) for axes, value in packed.items())
    assert torch.equal(unpack(packed, nets.architecture, ends=ends).flat(), nets.flat())


def generators(group: NeuronGroup) -> list[NeuronMap]:
    """A transposition and a cycle of each layer, and one sign."""
    found = []
    for m in group.layers:
        size = group.sizes[m]
        same = {k: torch.arange(group.sizes[k])[None] for k in group.layers}
        one = {k: torch.ones(1, group.sizes[k]).double() for k in group.layers}
        swap = torch.arange(size)
        swap[:2] = torch.tensor([1, 0])[:size]
        found += [NeuronMap(same | {m: order[None]}, one) for order in (swap, torch.arange(size).roll(1))]
        if group.kind == "signs":
            minus = torch.ones(1, size).double()
            minus[0, 0] = -1
            found.append(NeuronMap(same, one | {m: minus}))
    return found


def commutant(group: NeuronGroup, architecture: Architecture) -> int:
    """Dimension of all matrices M with M ρ(g) = ρ(g) M for each generator g, from singular values."""
    unit = Networks.from_flat(architecture, torch.eye(architecture.parameters, dtype=torch.float64))
    rows = []
    for element in generators(group):
        matrix = group.act(element, unit).flat().T.contiguous()  # columns are images of unit vectors
        one = torch.eye(len(matrix), dtype=torch.float64)
        rows.append(torch.kron(matrix, one) - torch.kron(one, matrix.T.contiguous()))
    gram = sum(block.T @ block for block in rows)
    return int((torch.linalg.eigvalsh(gram) < 1e-8).sum())


def fixed(group: NeuronGroup, architecture: Architecture) -> int:
    """Dimension of the vectors b with ρ(g) b = b for each generator g: the biases that are equivariant."""
    unit = Networks.from_flat(architecture, torch.eye(architecture.parameters, dtype=torch.float64))
    rows = torch.cat([(group.act(g, unit).flat() - unit.flat()).T for g in generators(group)])
    return architecture.parameters - int(torch.linalg.matrix_rank(rows))


def reached(layer: torch.nn.Module, architecture: Architecture, ends: bool = False) -> int:
    """Dimension of the affine maps that a layer has, from its derivative by its parameters."""
    points = torch.eye(architecture.parameters + 1, architecture.parameters, dtype=torch.float64)  # and zero
    unit = Networks.from_flat(architecture, points)
    packed, names = pack(unit, ends=ends), dict(layer.named_parameters())

    def matrix(parameters):
        out = torch.func.functional_call(layer, parameters, (packed,))
        return unpack(out, architecture, ends=ends).flat().flatten()

    jacobian = torch.func.jacrev(matrix)(names)
    return int(torch.linalg.matrix_rank(torch.cat([j.flatten(1) for j in jacobian.values()], dim=1)))


@pytest.mark.parametrize(
    "sizes, ends, wanted",
    [
        # By hand for 2-3-1: (1,) with 2 + 1 + 1 channels and () with 1: 2·4² + 4 + 4 + 1.
        ((2, 3, 1), False, 41),
        ((2, 3, 2, 1), False, None),
        ((2, 2, 2), True, None),
    ],
)
def test_linear_maps_are_complete(sizes, ends, wanted):
    architecture = Architecture(sizes, "silu")
    spaces = spaces_of(architecture, ends=ends)
    layer = EquivariantLinear(spaces, spaces, bias=False).double()
    found = commutant(NeuronGroup(sizes, ends=ends), architecture)
    count = sum(p.numel() for p in layer.parameters())
    assert found == count == reached(layer, architecture, ends)
    assert wanted is None or found == wanted
    assert found < architecture.parameters**2 / 2


@pytest.mark.parametrize(
    "sizes, ends", [((2, 3, 2, 1), False), ((2, 2, 2), True), ((2, 1, 1), False), ((2, 1, 3, 1), False)]
)
def test_affine_maps_are_complete_also_with_a_single_neuron(sizes, ends):
    """A layer of one neuron is its own mean: there are more parameters than maps, and still all maps."""
    architecture, group = Architecture(sizes, "silu"), NeuronGroup(sizes, ends=ends)
    spaces = spaces_of(architecture, ends=ends)
    layer = EquivariantLinear(spaces, spaces).double()
    found = commutant(group, architecture) + fixed(group, architecture)
    assert found == reached(layer, architecture, ends)
    assert (found < sum(p.numel() for p in layer.parameters())) == (1 in sizes[1:-1])


def test_linear_maps_with_signs_are_complete():
    architecture = Architecture((2, 3, 2, 1), "tanh")
    spaces = spaces_of(architecture)
    layer = PointwiseLinear(spaces, spaces).double()
    found = commutant(NeuronGroup(architecture.sizes, "signs"), architecture)
    assert found == sum(n * n for n in spaces.values()) == reached(layer, architecture)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("kind", [EquivariantLinear, PermutationLayer])
@pytest.mark.parametrize("sizes", TINY)
def test_layers_are_equivariant(kind, sizes, ends):
    torch.manual_seed(0)
    nets, group = random(sizes), NeuronGroup(sizes, ends=ends)
    spaces = spaces_of(nets.architecture, ends=ends)
    layer = kind(spaces, spaces).double()
    element = group.sample(2, generator=torch.Generator().manual_seed(5))

    def through(networks):
        return unpack(layer(pack(networks, ends=ends)), networks.architecture, ends=ends)

    new, wanted = through(group.act(element, nets)).flat(), group.act(element, through(nets)).flat()
    torch.testing.assert_close(new, wanted, rtol=1e-12, atol=1e-12)
    other = NeuronGroup(sizes, "signs")
    new, wanted = (
        through(other.act(other.sample(2, generator=torch.Generator().manual_seed(5)), nets)).flat(),
        through(nets).flat(),
    )
    assert (new - wanted).abs().max() > 1e-3  # signs are not built in


@pytest.mark.parametrize("sizes", TINY)
def test_layers_of_signs_are_equivariant(sizes):
    torch.manual_seed(0)
    nets, group = random(sizes), NeuronGroup(sizes, "signs")
    spaces = spaces_of(nets.architecture)
    odd, even = {a: n for a, n in spaces.items() if a}, {a: n for a, n in spaces.items() if not a}
    first = SignLayer(even, odd, 6).double()
    layers = [first, SignLayer(first.even_out, first.odd_out, 6).double()]
    last = PointwiseLinear(first.odd_out, odd).double()

    def through(networks):
        packed = pack(networks)
        e, o = {(): packed[()]}, {a: packed[a] for a in odd}
        for layer in layers:
            e, o = layer(e, o)
        return e, unpack({**last(o), (): packed[()]}, networks.architecture)

    element = group.sample(2, generator=torch.Generator().manual_seed(5))
    plus = NeuronMap(element.order, {m: torch.ones_like(f) for m, f in element.factor.items()})
    (even_new, new), (even_old, old) = through(group.act(element, nets)), through(nets)
    torch.testing.assert_close(new.flat(), group.act(element, old).flat(), rtol=1e-12, atol=1e-12)
    assert (new.flat() - group.act(plus, old).flat()).abs().max() > 1e-3
    for axes, value in even_new.items():  # even features are permuted alone
        want = even_old[axes]
        for dim, m in enumerate(axes, start=1):
            shape = [2, *(1 for _ in axes), 1]
            shape[dim] = -1
            want = want.take_along_dim(element.order[m].view(shape), dim)
        torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)


def test_variance_at_initialization():
    torch.manual_seed(0)
    spaces = {(1,): 64, (2, 1): 64, (2,): 64, (): 64}
    layer = EquivariantLinear(spaces, spaces)
    x = {a: torch.randn(64, *((8,) * len(a)), 64) for a in spaces}
    for axes, value in layer(x).items():
        assert 0.1 < value.square().mean() < 2, axes


def test_neurons_that_nothing_is_known_of():
    with pytest.raises(ModelError, match=r"neurons of layers \[2\]"):
        EquivariantLinear({(1,): 2}, {(2, 1): 2})
