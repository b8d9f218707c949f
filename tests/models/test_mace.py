"""MACE: A and B against sums written out, body order, what the options say, derivatives."""

import math
from dataclasses import replace

import pytest
import torch

from molequi import MACE, Graph, Model, collate, connect
from molequi.errors import ConfigError, ModelError
from molequi.nn.irreps import AtomicBasis, ElementLinear
from molequi.nn.radial import edges_of
from molequi.ops import irreps as ir
from molequi.ops.blocks import blocks_of

CUTOFF = 4.0


def star(arms, seed=0):
    """A carbon in the middle and hydrogens around it that do not see each other: the edges between them are left out."""
    directions = torch.tensor(
        [[0, 0, 1.0], [0.94, 0, -0.33], [-0.47, 0.82, -0.33], [-0.47, -0.82, -0.33], [0.6, 0.6, 0.53]]
    )[list(arms)]
    lengths = torch.tensor([0.9, 1.0, 1.1, 0.85, 0.95])[list(arms)]
    pos = torch.cat(
        [torch.zeros(1, 3), torch.nn.functional.normalize(directions) * lengths[:, None]]
    ).double()
    graph = connect(Graph.single(pos, ["C", *["H"] * len(arms)]), 3.0)
    keep = (graph.edge_index == 0).any(0)
    return replace(graph, edge_index=graph.edge_index[:, keep])


def molecule(n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return connect(
        Graph.single(
            torch.rand(n, 3, dtype=torch.float64, generator=generator) * 3,
            [[1, 6, 8][k % 3] for k in range(n)],
        ),
        CUTOFF,
    )


def small(**options):
    torch.manual_seed(0)
    return (
        MACE(
            elements=["H", "C", "O"],
            **{"cutoff": CUTOFF, "channels": 4, "radial": 4, "radial_hidden": (8,), **options},
        )
        .double()
        .eval()
    )


def middle(model, arms):
    return model(star(arms)).scalars[0].detach()


@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_body_order(correlation):
    """What ν + 1 neighbours do together, beyond all that fewer of them do, is nothing in one layer; what ν do together is something."""
    model = small(layers=1, cutoff=3.0, correlation=correlation, l_max=2)

    def together(count):
        return sum(
            (-1) ** (count - sum(use)) * middle(model, [k for k, used in enumerate(use) if used])
            for use in torch.cartesian_prod(*[torch.arange(2)] * (count + 1))[: 2**count, 1:].tolist()
        )

    assert float(together(correlation).abs().max()) > 1e-6
    assert float(together(correlation + 1).abs().max()) < 1e-13


@pytest.mark.parametrize("inputs", [["0e"], ["0e", "1o"], ["0e", "1o", "2e"]])
def test_atomic_basis_equals_its_definition(inputs):
    torch.manual_seed(1)
    l_max, outputs, channels = 3, ["0e", "1o", "2e", "3o"], 3
    layer = AtomicBasis(
        inputs=inputs, outputs=outputs, l_max=l_max, channels=channels, radial=(4, 5)
    ).double()
    graph = molecule(6)
    edges = edges_of(graph, CUTOFF, torch.float64)
    width = sum(2 * ir.parse(i)[0] + 1 for i in inputs)
    h, radial = (
        torch.randn(6, width, channels, dtype=torch.float64),
        torch.randn(len(edges.length), 4, dtype=torch.float64),
    )
    harmonics = ir.spherical_harmonics(l_max, edges.unit)
    found = layer(h, radial, torch.cat(harmonics, dim=1), edges, torch.tensor(0.25, dtype=torch.float64))
    sent, weights = layer.before(h), layer.radial(radial).reshape(len(radial), -1, channels)
    expected, path = torch.zeros(6, 16, channels, dtype=torch.float64), 0
    for l3 in range(l_max + 1):
        into = [
            (l1, l2)
            for l1 in range(len(inputs))
            for l2 in range(l_max + 1)
            if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
        ]
        for l1, l2 in into:
            for e, (j, i) in enumerate(graph.edge_index.T.tolist()):
                coupled = torch.einsum(
                    "abk,ac,b->kc",
                    ir.clebsch_gordan(l1, l2, l3),
                    sent[j, l1 * l1 : (l1 + 1) ** 2],
                    harmonics[l2][e],
                )
                expected[i, l3 * l3 : (l3 + 1) ** 2] += (
                    0.25 * math.sqrt((2 * l3 + 1) / len(into)) * weights[e, path] * coupled
                )
            path += 1
    assert path == weights.shape[1]
    assert torch.allclose(found, layer.after(expected), atol=1e-12)


def test_element_linear_equals_a_loop():
    torch.manual_seed(2)
    layer = ElementLinear(["0e", "1o"], 3, 4).double()
    element, x = torch.tensor([3, 0, 0, 2, 3]), torch.randn(5, 4, 3, dtype=torch.float64)
    expected = torch.stack(
        [
            torch.cat([x[n, :1] @ layer.weight[z, 0], x[n, 1:] @ layer.weight[z, 1]])
            for n, z in enumerate(element.tolist())
        ]
    )
    assert torch.allclose(layer(x, blocks_of(element, 4)), expected, atol=1e-14)


@pytest.mark.parametrize(("l_hidden", "l_out"), [(1, 0), (1, 1), (1, 2), (0, 1)])
def test_layers_add_products_to_what_was_there(l_hidden, l_out):
    """h' = W B(A) + W_z h (eqs. 11, 12), on the irreps that both have; the rest is B alone."""
    layer = small(l_max=2, l_hidden=l_hidden, l_out=l_out).layers[-1]
    graph = molecule()
    edges, blocks = edges_of(graph, CUTOFF, torch.float64), blocks_of(torch.arange(7) % 3, 3)
    generator = torch.Generator().manual_seed(4)
    h, radial, harmonics = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((7, (l_hidden + 1) ** 2, 4), (len(edges.length), 4), (len(edges.length), 9))
    )
    scale = torch.tensor(0.2, dtype=torch.float64)
    b = layer.product(layer.atomic(h, radial, harmonics, edges, scale), blocks)
    both, irreps = (min(l_hidden, l_out) + 1) ** 2, min(l_hidden, l_out) + 1
    own = torch.cat(
        [
            torch.einsum(
                "nmc,ncd->nmd", h[:, l * l : (l + 1) ** 2], layer.keep.weight[torch.arange(7) % 3, l]
            )
            for l in range(irreps)
        ],
        dim=1,
    )
    expected = torch.cat([b[:, :both] + own, b[:, both:]], dim=1)
    assert expected.shape[1] == (l_out + 1) ** 2
    assert torch.allclose(layer(h, blocks, radial, harmonics, edges, scale), expected, atol=1e-13)


def test_blocks_of_features():
    graph = molecule()
    assert {k: tuple(v.shape) for k, v in small()(graph).blocks.items()} == {"0e": (7, 8, 1), "1o": (7, 4, 3)}
    assert {k: tuple(v.shape) for k, v in small(layers=3, l_out=0)(graph).blocks.items()} == {
        "0e": (7, 12, 1)
    }
    model = small(l_hidden=0, l_out=2, l_max=2)
    assert {k: v.shape[2] for k, v in model(graph).blocks.items()} == {"0e": 1, "1o": 3, "2e": 5}
    assert model.out == {"0e": 8, "1o": 4, "2e": 4}


def test_the_order_of_nodes_and_the_other_structures_of_a_batch_change_nothing():
    model, graphs = small(), [molecule(5, 1), molecule(9, 2), molecule(6, 3)]
    together = model(collate(graphs)).flat()
    apart = torch.cat([model(g).flat() for g in graphs])
    assert torch.allclose(together, apart, atol=1e-12)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    turned = connect(Graph.single(graphs[1].pos[order], graphs[1].z[order]), CUTOFF)
    assert torch.allclose(model(turned).flat(), model(graphs[1]).flat()[order], atol=1e-12)


def test_features_have_variance_of_order_one_at_first():
    """On dense random structures with the mean number of neighbours of the graph itself."""
    graph = collate([molecule(12, seed) for seed in range(8)])
    model = small(channels=32, layers=3, l_hidden=2, radial=8)
    model.mean_neighbors.fill_(graph.edge_index.shape[1] / graph.num_nodes)
    for part in model(graph).scalars.detach().split(32, dim=1):
        assert 0.1 < float(part.square().mean()) < 10.0


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # torch's own, on first forward derivatives
def test_forward_and_reverse_derivatives_agree():
    """The derivative of the energy along a displacement, and its gradient in all parameters, both ways."""
    model, graph = Model(small(l_max=2, l_out=0), ["energy"]).double(), molecule()
    moved = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameters = list(model.parameters())

    def energy(pos):
        return model.heads["energy"](graph, model.backbone(graph.replace(pos=pos))).sum()

    _, forward = torch.func.jvp(energy, (graph.pos,), (moved,))
    pos = graph.pos.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(pos), pos, create_graph=True)
    reverse = (slope * moved).sum()
    assert abs(float(forward.detach() - reverse.detach())) < 1e-12 * max(1.0, abs(float(reverse.detach())))
    for a, b in zip(*(torch.autograd.grad(d, parameters, allow_unused=True) for d in (forward, reverse))):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-10 * max(1.0, float(b.abs().max())))


def test_coupling_constants_stay_float64_through_float32():
    model = small().float().double()
    fresh = small()
    for (name, a), (_, b) in zip(model.named_buffers(), fresh.named_buffers()):
        assert "coupling" not in name or torch.equal(a, b), name


def test_traced_without_looking_at_values():
    """One program for other elements and places of the same sizes: no shape and no branch depends on them."""
    from torch.fx.experimental.proxy_tensor import make_fx

    model, first = small(l_max=2), molecule()
    element = {"z": first.z}

    class Known(MACE):
        def element_index(self, graph):
            return self.lookup[graph.z]

    model.__class__ = Known

    def scalars(pos, z):
        return model(first.replace(pos=pos, z=z)).scalars

    traced = make_fx(scalars)(first.pos, element["z"])
    pos, z = first.pos + 0.1, torch.tensor([8, 8, 8, 8, 1, 8, 8])
    assert torch.allclose(traced(pos, z), scalars(pos, z), atol=1e-13)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(l_max=1, l_hidden=2), ModelError, "MACE.l_hidden: found 2 with l_max=1"),
        (dict(l_max=1, l_out=2), ModelError, "MACE.l_out: found 2 with l_max=1"),
        (dict(correlation=0), ConfigError, "MACE.correlation: found 0"),
        (dict(correlation=[2]), ModelError, "correlation: found 1 values; wanted one for each of 2 layers"),
        (
            dict(variant={"self_connection": [True] * 3}),
            ModelError,
            "variant.self_connection: found 3 values; .* of 2 layers",
        ),
        (dict(variant={"distance": "linear"}), ConfigError, "MACE.variant.distance: found 'linear'"),
        (dict(radial_hidden=[0]), ConfigError, "MACE.radial_hidden"),
    ],
)
def test_options_that_do_not_fit(options, error, words):
    with pytest.raises(error, match=words):
        small(**options)


def test_three_dimensions_only():
    with pytest.raises(ModelError, match="MACE works in 3 dimensions, these structures have 2"):
        MACE(elements=[0])(connect(Graph.single([[0.0, 0.0], [1.0, 0.0]]), 5.0))
