"""Nodes in blocks of one kind, and back."""

import pytest
import torch

from molequi.ops.blocks import blocks_of


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize(
    "kind", [[0], [2], [1] * 40, [0, 1, 2, 0, 1, 2, 2, 2], [2, 0] * 17, [0] * 16 + [1] * 16 + [2] * 16]
)
def test_every_node_is_in_a_block_of_its_kind(kind, size):
    kind = torch.tensor(kind)
    blocks = blocks_of(kind, 3, size)
    x = torch.arange(len(kind))[:, None] + torch.zeros(1, 2)
    assert torch.equal(blocks.join(blocks.split(x)), x)
    assert torch.equal(blocks.kind[blocks.place // size], kind)
    assert len(blocks.place.unique()) == len(kind)
    assert len(blocks.node) == len(blocks.kind) * size
    assert len(blocks.kind) == sum(-(-int((kind == k).sum()) // size) for k in range(3))


def test_a_compiled_function_has_blocks_for_all_distributions_of_kinds():
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.randn(9, 2)

    def there_and_back(kind):
        blocks = blocks_of(kind, 3, 4)
        return blocks.join(blocks.split(x)), blocks.kind

    traced = make_fx(there_and_back)(torch.zeros(9, dtype=torch.int64))
    for kind in ([0, 1, 2] * 3, [2] * 9, [0] * 5 + [1] * 4):
        back, kinds = traced(torch.tensor(kind))
        assert torch.equal(back, x) and len(kinds) == (9 + 3 * 3) // 4


def test_places_left_over_give_no_derivative():
    x = torch.randn(5, 3, requires_grad=True)
    blocks = blocks_of(torch.tensor([0, 1, 1, 0, 1]), 2)
    (blocks.join(blocks.split(x).square())).sum().backward()
    assert torch.allclose(x.grad, 2 * x.detach())
