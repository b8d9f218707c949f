"""`gather` along edges whose way back is known: values and both derivatives, against indexing."""

import pytest
import torch

from molequi.graph import Graph
from molequi.neighbors import connect
from molequi.ops.regular import gather
from molequi.regular_graphs import regular


@pytest.fixture
def edges() -> tuple[torch.Tensor, torch.Tensor]:
    """Senders and ways back of a regular graph with a node that has no neighbours, and one that only fills up."""
    pos = torch.tensor(
        [[0.0, 0, 0], [1.0, 0, 0], [0, 1.2, 0], [9.0, 0, 0], [2.0, 0.3, 0]], dtype=torch.float64
    )
    graph = regular(connect(Graph.single(pos), 1.7), nodes=1, degree=4)
    assert graph.reverse.shape == (6, 4) and not bool(graph.real[3].any())
    return graph.edge_index[0], graph.reverse


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_equals_indexing(edges, shape):
    sender, reverse = edges
    values = torch.randn(6, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gather(values, sender, reverse), values[sender])
    assert torch.equal(gather(values, sender, None), values[sender])


@pytest.mark.parametrize("shape", [(), (2, 3)])
@pytest.mark.parametrize("known", [True, False])
def test_first_and_second_derivatives(edges, shape, known):
    sender, reverse = edges
    values = torch.randn(
        6, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()

    def squared(values):  # linear functions have no second derivative to test
        return gather(values, sender, reverse if known else None).square()

    assert torch.autograd.gradcheck(squared, (values,))
    assert torch.autograd.gradgradcheck(squared, (values,))


def test_a_way_back_that_is_none_is_seen(edges):
    """The derivative trusts `reverse`; the check above must see one that is wrong."""
    sender, reverse = edges
    values = torch.randn(6, dtype=torch.float64).requires_grad_()
    wrong = reverse.flatten().roll(1).reshape(reverse.shape)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda v: gather(v, sender, wrong), (values,))
