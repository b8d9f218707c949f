"""The ten faults, each in the second of three layers: the exact audit says which symmetry, and that it is lost there and not before."""

import pytest
import torch

from molequi import Model, NequIP
from molequi.audit import audit

from .kit import ELEMENTS, crystal, molecule

SECOND = "interactions.1"


def component_mean(h, graph, edges):
    return torch.cat([h[:, :1] + 0.1 * h[:, 1:4].mean(1, keepdim=True), h[:, 1:]], dim=1)


def clamped(h, graph, edges):
    return torch.cat([h[:, :1], h[:, 1:4].clamp(-0.1, 0.1), h[:, 4:]], dim=1)


def absolute(h, graph, edges):
    return torch.cat([h[:, :1] + 1e-2 * graph.pos[:, None, :1].to(h), h[:, 1:]], dim=1)


def normalised(h, graph, edges):
    v = h[:, 1:4]
    return torch.cat([h[:, :1], (v - v.mean(0)) / (v.std(0) + 1e-6), h[:, 4:]], dim=1)


def rectified(h, graph, edges):
    return torch.cat([h[:, :4], h[:, 4:].relu()], dim=1)


def slipped(h, graph, edges):
    v = h[:, 1:4]
    triple = (torch.linalg.cross(v[..., 0], v[..., 1]) * v[..., 2]).sum(1)
    return torch.cat([h[:, :1] + triple[:, None, None], h[:, 1:]], dim=1)


def cell_as_it_lies(h, graph, edges):
    return torch.cat([h[:, :1] + 0.1 * graph.cell[graph.batch, 0, 0][:, None, None].to(h), h[:, 1:]], dim=1)


def signed_edges(h, graph, edges):
    j, i = graph.edge_index
    along = graph.edge_vectors().to(h) * torch.where(j < i, -1.0, 1.0)[:, None]
    return torch.cat(
        [
            h[:, :1],
            h[:, 1:4] + 0.1 * torch.zeros_like(graph.pos).to(h).index_add(0, i, along)[:, :, None],
            h[:, 4:],
        ],
        dim=1,
    )


def first_neighbours(h, graph, edges):
    receiver = graph.edge_index[1]
    rank = torch.arange(len(receiver)) - torch.searchsorted(receiver.contiguous(), receiver.contiguous())
    few = (rank < 2).to(h) * graph.edge_vectors().to(h).norm(dim=1)
    return torch.cat(
        [h[:, :1] + 0.1 * torch.zeros_like(h[:, 0, 0]).index_add(0, receiver, few)[:, None, None], h[:, 1:]],
        dim=1,
    )


FAULTS = {
    "absolute coordinates": (absolute, {"rotation", "reflection", "translation"}),
    "a mean over x, y, z": (component_mean, {"rotation", "reflection"}),
    "a component-wise clamp": (clamped, {"rotation", "reflection"}),
    "an unrotated cell": (cell_as_it_lies, {"rotation", "reflection"}),
    "a parity slip": (slipped, {"reflection"}),
    "batch norm on vectors": (
        normalised,
        {"rotation", "reflection", "translation"},
    ),  # it sees the company, which is another there
    "ReLU on l > 0": (rectified, {"rotation", "reflection"}),
    "neighbour truncation": (first_neighbours, {"permutation"}),
    "a wrong edge sign": (signed_edges, {"permutation"}),
    "low-precision Wigner matrices": (None, {"rotation", "reflection"}),
}
CHECKS = ["rotation", "reflection", "translation", "permutation", "layers"]


def model(fault):
    torch.manual_seed(0)
    backbone = NequIP(elements=ELEMENTS, cutoff=3.5, channels=4, layers=3, radial=4)
    if fault is None:
        product = backbone.interactions[1].convolution.product
        product.coupling = product.coupling.half().double()
    elif fault != "sound":
        seen = {}
        backbone.register_forward_pre_hook(lambda module, inputs: seen.update(graph=inputs[0]))
        backbone.interactions[1].register_forward_hook(
            lambda module, inputs, h: fault(h, seen["graph"], inputs[4])
        )
    return Model(backbone, ["energy", "forces"])


def structures(name):
    return [crystal()] if name == "an unrotated cell" else [molecule(0), molecule(1, 5)]


def test_ten():
    assert len(FAULTS) == 10
    report = audit(model("sound"), [molecule(0), crystal()], draws=4, checks=CHECKS)
    assert report.passed
    assert {"embedding", "interactions.0", SECOND, "interactions.2"} <= {
        r.quantity for r in report.rows if r.check == "layers"
    }


@pytest.mark.parametrize("name", FAULTS)
def test_the_symmetry_and_the_layer_are_named(name):
    fault, broken = FAULTS[name]
    report = audit(model(fault), structures(name), draws=4, checks=CHECKS)
    failed = {r.check for r in report.failed}
    assert failed - {"layers"} == broken
    rows = [r for r in report.failed if r.check == "layers"]
    assert {r.quantity for r in rows if "lost here" in r.explanation} == {SECOND}
    kinds = {"rotation": "proper", "reflection": "improper", "permutation": "permutation"}
    assert {r.element for r in rows} == {kinds[b] for b in broken if b in kinds}
