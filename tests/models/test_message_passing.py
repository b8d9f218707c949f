"""Layers of torch_geometric inside a backbone of ours: they train, and the audit judges them like any other."""

import warnings

import torch
from torch import nn

from molequi import Graph, Model
from molequi.audit import audit
from molequi.features import Features
from molequi.graph import collate
from molequi.models.base import Backbone
from molequi.neighbors import connect
from molequi.nn.radial import BesselBasis, edges_of

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    from torch_geometric.nn import MessagePassing
    from torch_geometric.nn.models.schnet import InteractionBlock


class SchNet(Backbone):
    """Continuous-filter convolutions (Schütt et al. 2017, arXiv 1706.08566), the blocks of torch_geometric."""

    group = "O(n)"

    def __init__(
        self, *, elements, cutoff: float = 5.0, channels: int = 64, layers: int = 3, radial: int = 32
    ):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": channels}
        self.embedding = nn.Embedding(len(self.elements), channels)
        self.basis = BesselBasis(radial, cutoff)
        self.layers = nn.ModuleList(
            InteractionBlock(channels, radial, channels, cutoff) for _ in range(layers)
        )

    def forward(self, graph: Graph) -> Features:
        edges = edges_of(graph, self.cutoff, self.dtype)
        h = self.embedding(self.element_index(graph))
        for layer in self.layers:
            h = h + layer(h, graph.edge_index, edges.length, self.basis(edges.length))
        return Features(blocks={"0e": h[:, :, None]}, coordination=edges.coordination)


class Directions(MessagePassing):
    """Sums directions to the neighbours, weighted by what both ends are; `absolute` puts in the place in the room, a fault."""

    def __init__(self, channels: int, absolute: bool):
        super().__init__(aggr="add")
        self.weight = nn.Linear(2 * channels, channels)
        self.absolute = absolute

    def forward(self, h, edges, graph):
        along = graph.pos[edges.sender].to(h.dtype) if self.absolute else edges.unit
        edge_index = torch.stack([edges.sender, edges.receiver])
        return self.propagate(edge_index, h=h, along=along, envelope=edges.envelope).unflatten(
            1, (h.shape[1], -1)
        )

    def message(self, h_i, h_j, along, envelope):
        weight = self.weight(torch.cat([h_i, h_j], dim=1)).tanh() * envelope[:, None]
        return (weight[:, :, None] * along[:, None, :]).flatten(1)


class Arrows(Backbone):
    group = "O(n)"

    def __init__(self, *, elements, cutoff: float = 4.0, channels: int = 8, absolute: bool = False):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": channels, "1o": channels}
        self.embedding = nn.Embedding(len(self.elements), channels)
        self.layer = Directions(channels, absolute)

    def forward(self, graph: Graph) -> Features:
        edges = edges_of(graph, self.cutoff, self.dtype)
        h = self.embedding(self.element_index(graph))
        vectors = self.layer(h, edges, graph)
        return Features(
            blocks={"0e": (h + vectors.square().sum(2))[:, :, None], "1o": vectors},
            coordination=edges.coordination,
        )


def molecules(count=4):
    generator = torch.Generator().manual_seed(1)
    grid = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 3) * 1.3
    out = []
    for _ in range(count):
        pos = grid[:7] + 0.1 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
        lengths = (pos[:, None] - pos[None]).norm(dim=2)
        targets = {"energy": lengths.sum().reshape(1) / 10, "forces": torch.zeros(7, 3, dtype=torch.float64)}
        out.append(Graph.single(pos, [6, 1, 8, 1, 6, 1, 1], targets=targets))
    return out


def test_blocks_of_torch_geometric_train_and_pass_the_audit():
    torch.manual_seed(0)
    model = Model(
        SchNet(elements=["H", "C", "O"], cutoff=4.0, channels=8, layers=2, radial=6), ["energy", "forces"]
    )
    batch = collate([connect(g, 4.0) for g in molecules()])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss():
        return (model(batch)["energy"] - batch.targets["energy"]).square().mean()

    before = loss().item()
    for _ in range(5):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.9 * before
    report = audit(model, molecules(), draws=4)
    assert report.passed, report


def test_vectors_of_a_layer_of_ones_own():
    torch.manual_seed(0)
    good = Model(Arrows(elements=["H", "C", "O"]), ["energy", "dipole"])
    report = audit(good, molecules(), draws=4)
    assert report.passed, report


def test_a_layer_that_knows_where_it_is_fails():
    """Places turn with the room, so a rotation about the origin does not find them; a translation does."""
    torch.manual_seed(0)
    bad = Model(Arrows(elements=["H", "C", "O"], absolute=True), ["dipole"])
    report = audit(bad, molecules(), draws=4, checks=["translation", "rotation"])
    assert {row.check for row in report.rows if row.verdict == "fail"} == {"translation"}
