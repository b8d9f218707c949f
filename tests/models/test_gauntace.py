"""Messages of GauntACE: all equivariant linear maps of a neighbor's features about the edge."""

import pytest
import torch

import molequi as mq
from molequi.models.gauntace import Messages
from molequi.nn.radial import edges_of
from molequi.ops import irreps as ir


def maps(messages: Messages, l_in: int, l_max: int, samples: int) -> torch.Tensor:
    """Matrices from h_j to A_i of one edge for random radial weights, (samples, (l_max + 1)², (l_in + 1)²)."""
    graph = mq.connect(mq.Graph.single([[0.3, -0.2, 0.1], [-0.4, 0.5, 0.9]], ["H", "H"]), 5.0)
    edges = edges_of(graph, 5.0, torch.float64)
    harmonics = ir.spherical_harmonics(2 * l_max, edges.unit)
    size, receiver = (l_in + 1) ** 2, 0
    found = []
    for _ in range(samples):
        torch.nn.init.normal_(messages.radial.weight)
        radial = torch.randn(1, 60, dtype=torch.float64).expand(2, 60)
        h = torch.eye(size, dtype=torch.float64)[:, :, None]  # one unit vector after the other
        columns = [
            messages(
                torch.stack([torch.zeros_like(row), row]), torch.zeros(2).long(), radial, harmonics, edges
            )
            for row in h
        ]
        found.append(torch.stack([column[:, receiver, 0] for column in columns], dim=1))
    return torch.stack(found).detach()


@pytest.mark.parametrize("l_in, l_max", [(0, 2), (1, 3), (2, 2), (3, 3)])
def test_messages_have_all_couplings(l_in, l_max):
    """Maps that commute with rotations about the edge act on each |m| by a number, if parities are kept."""
    torch.manual_seed(0)
    messages = Messages(1, l_max, 60, l_in).double()
    for weight in messages.before.parameters():
        torch.nn.init.ones_(weight)
    found = maps(messages, l_in, l_max, messages.count + 3)
    for l1 in range(l_in + 1):
        for l2 in range(l_max + 1):
            block = found[:, l2**2 : (l2 + 1) ** 2, l1**2 : (l1 + 1) ** 2].flatten(1)
            assert torch.linalg.matrix_rank(block, rtol=1e-6) == min(l1, l2) + 1
    assert torch.linalg.matrix_rank(found.flatten(1), rtol=1e-6) == messages.count
    if l_in:  # the control: without the couplings only m = 0 and the unit matrices are left
        for number, path in enumerate(messages.paths):
            if path[1] > 0:
                getattr(messages, f"coupling_{number}").zero_()
        rest = (l_in + 1) * (l_max + 1) + l_in
        assert torch.linalg.matrix_rank(maps(messages, l_in, l_max, rest + 3).flatten(1), rtol=1e-6) == rest
