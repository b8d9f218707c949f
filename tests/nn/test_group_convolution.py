"""Convolutions with features on finite groups."""

import pytest
import torch

import molequi as mq
from molequi.nn import GroupKernel, GroupLinear, GroupPool
from molequi.nn.radial import BesselBasis, edges_of
from molequi.nn.relaxed import lift
from molequi.symmetry import Group

KERNELS = ["harmonics", "gaussians", "mlp"]


def moved(f: torch.Tensor, elements: torch.Tensor, k: int) -> torch.Tensor:
    """f(k⁻¹g): what a group element does to features."""
    wanted = elements[k].T @ elements
    order = [(elements - w).abs().amax((1, 2)).argmin() for w in wanted]
    return f[:, torch.stack(order)]


@pytest.mark.parametrize("name", ["T", "O", "Th"])
def test_group_linear_is_its_formula(name):
    """f'(g) = Σ_h W(g⁻¹h) f(h), each product of elements looked up."""
    torch.manual_seed(0)
    elements = Group(name=name).elements
    layer, f = GroupLinear(elements, 2, 3).double(), torch.randn(1, len(elements), 2).double()
    for g in (0, 4):
        terms = []
        for h in range(len(elements)):
            product = elements[g].T @ elements[h]
            index = int((elements - product).abs().amax((1, 2)).argmin())
            terms.append(f[0, h] @ layer.weight[index])
        assert torch.allclose(layer(f)[0, g], torch.stack(terms).sum(0), atol=1e-13)


@pytest.mark.parametrize("name", ["T", "O", "Th"])
@pytest.mark.parametrize("degree", [None, 1])
def test_group_linear_commutes_with_the_group(name, degree):
    torch.manual_seed(0)
    elements = Group(name=name).elements
    layer, f = GroupLinear(elements, 3, 4, degree=degree).double(), torch.randn(5, len(elements), 3).double()
    out = layer(f)
    for k in (1, 5, len(elements) - 1):
        assert torch.allclose(layer(moved(f, elements, k)), moved(out, elements, k), atol=1e-13)
    assert (moved(out, elements, 1) - out).abs().max() > 0.1  # not only invariants


def test_smooth_filters_are_integrals_over_all_rotations():
    """Functions of degree 1 on a sample of 60 rotations: exact for any rotation, as 12 rotations are not."""

    def error(name: str, degree: int) -> float:
        torch.manual_seed(0)
        elements = Group(name=name).elements
        layer, r = GroupLinear(elements, 1, 1, degree=degree).double(), torch.eye(3, dtype=torch.float64)
        axis = torch.linalg.matrix_exp(0.7 * torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 0.0]]).double())
        m = torch.randn(3, 3, dtype=torch.float64)
        f = [(rotation.T @ elements * m).sum((1, 2)) for rotation in (r, axis)]  # tr(mᵀ k⁻¹g)
        # f' has degree 1, too: nine numbers on the group fix it for all rotations.
        out = [layer(x[None, :, None])[0, :, 0] for x in f]
        n = torch.linalg.lstsq(elements.flatten(1), out[0]).solution.reshape(3, 3)
        return float((out[1] - (axis.T @ elements * n).sum((1, 2))).abs().max() / out[1].abs().max())

    with torch.no_grad():
        assert error("I", 2) < 1e-12 and error("O", 1) < 1e-12


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_turn_with_the_group(kind):
    torch.manual_seed(0)
    elements = Group(name="Oh").elements
    kernel = GroupKernel(elements, 3, 4, kind, 3).double()
    graph = mq.connect(mq.Graph.single(torch.randn(6, 3, dtype=torch.float64)), 3.0)

    def values(g: mq.Graph) -> torch.Tensor:
        edges = edges_of(g, 3.0, torch.float64)
        return kernel(edges.vector / 3, edges, BesselBasis(4, 3.0).double()(edges.length))

    here = values(graph)
    for k in (3, 40):
        there = values(graph.replace(pos=graph.pos @ elements[k].T))
        assert torch.allclose(there, moved(here, elements, k), atol=1e-12)
    assert (here - here.mean(1, keepdim=True)).abs().max() > 0.1


def test_vectors_survive_lift_and_pool():
    """lift and lower are inverse; the pool returns vectors that turn with the group."""
    torch.manual_seed(0)
    elements = Group(name="O").elements
    pool, v = GroupPool(elements, 6).double(), torch.randn(4, 2, 3, dtype=torch.float64)
    s, out = pool(lift(v, elements))
    for k in (2, 17):
        s2, out2 = pool(lift(v @ elements[k].T, elements))
        assert torch.allclose(s, s2, atol=1e-13) and torch.allclose(out @ elements[k].T, out2, atol=1e-13)
    assert out.norm() > 0.1


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_group_is_found(kernel):
    """Exact for the group of the octahedron; for all rotations there is an error, and for its reflections."""
    torch.manual_seed(0)
    arrow = mq.Quantity("arrow", per="node", rank=1)
    backbone = mq.GroupConvNet(elements=["X"], cutoff=3.0, kernel=kernel, channels=4, layers=2, radial=4)
    clouds = [mq.Graph.single(torch.randn(8, 3, dtype=torch.float64))]
    found = mq.symmetries(mq.Model(backbone, [arrow]), clouds, draws=3)
    assert str(found.group) == "O" and found.group.translations and found.permutations
    errors = {row.check: row.maximum for row in found.rows}
    assert errors["O"] < 1e-13 and errors["rotations"] > 1e-3 and not found.holds("reflections")


def test_more_rotations_and_smooth_filters_make_the_error_smaller():
    def error(group: str, degree: int | None) -> float:
        found = []
        for seed in range(4):
            torch.manual_seed(seed)
            net = mq.GroupConvNet(
                elements=["X"], cutoff=3.0, group=group, degree=degree, l_max=1, channels=8, layers=2
            ).double()
            graph = mq.connect(mq.Graph.single(torch.randn(8, 3, dtype=torch.float64)), 3.0)
            turn = mq.symmetry.random_orthogonal(3, proper=True)
            here, there = (net(g).blocks["1o"] for g in (graph, graph.replace(pos=graph.pos @ turn.T)))
            found.append(float((there - here @ turn.T).norm() / here.norm()))
        return sum(found) / 4

    with torch.no_grad():
        assert error("I", 1) < error("O", 1) < error("T", None)
