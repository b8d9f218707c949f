"""Frames of edges: Wigner matrices against those of e3nn, all couplings, free turns, and derivatives everywhere."""

import math

import pytest
import torch

import molequi as mq
from molequi.nn import edge_frames
from molequi.nn.edge_frames import EdgeFrames, SO2Linear, frames_of, into_frames, sum_from_frames
from molequi.nn.radial import edges_of
from molequi.ops import irreps as ir
from molequi.symmetry import random_orthogonal

AXES = torch.cat([torch.eye(3), -torch.eye(3)]).double()


def directions(n: int = 20) -> torch.Tensor:
    """Directions of all kinds: axes, near the poles and near where both charts meet, and at random."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    near = torch.tensor([[1e-9, 1.0, 0], [0, -1.0, 1e-12], [1.0, 1e-12, 0.3], [1.0, -1e-12, 0.3]]).double()
    return torch.nn.functional.normalize(torch.cat([AXES, near, random]), dim=1)


def test_frames_are_right_handed_and_hold_the_edge():
    unit = directions()
    frames = frames_of(unit).transpose(0, 1)  # rows x, y, z
    assert torch.allclose(frames @ frames.transpose(1, 2), torch.eye(3).double().expand(len(unit), 3, 3))
    assert torch.allclose(torch.linalg.det(frames), torch.ones(len(unit)).double())
    assert torch.equal(frames[:, 1], unit)


def test_matrices_are_those_of_e3nn():
    unit = directions(6)
    frames = frames_of(unit).transpose(0, 1)
    for l, found in enumerate(EdgeFrames(6, 6)(unit)):
        order = [l] + [l + s * m for m in range(1, l + 1) for s in (1, -1)]
        wanted = torch.stack([ir.wigner(ir.name(l, 1), frame) for frame in frames])[:, order]
        assert torch.allclose(found, wanted, atol=1e-13), l


def test_orders_above_m_max_are_left_out():
    for full, part in zip(EdgeFrames(4, 4)(AXES), EdgeFrames(4, 2)(AXES)):
        assert torch.allclose(part, full[:, : part.shape[1]], rtol=0, atol=1e-14)


def test_an_edge_without_direction_passes_invariants_alone():
    first, *others = EdgeFrames(3, 3)(torch.zeros(1, 3))
    assert float(first) == pytest.approx(1.0) and all(float(d.abs().max()) == 0 for d in others)


def operator(unit, layer: SO2Linear, l_in: int, l_out: int) -> torch.Tensor:
    """The map of `SO2Linear` from degree l_in to l_out with one channel, in the laboratory frame."""
    frames = EdgeFrames(max(l_in, l_out), max(l_in, l_out))(unit[None])
    size = (l_in + 1) ** 2
    basis = torch.eye(size, dtype=torch.float64)[:, :, None]
    graph = mq.connect(mq.Graph.single(torch.stack([unit, 0 * unit]), ["C", "C"]), 2.0)
    edges = edges_of(graph, 2.0, torch.float64)
    columns = []
    for column in basis:
        x = torch.stack([column, column])
        both = [d.expand(2, *d.shape[1:]) for d in frames]
        blocks, _ = layer(into_frames(x, both, l_in, layer.m_max))
        columns.append(sum_from_frames(blocks, both, edges)[0, :, 0])
    return torch.stack(columns, dim=1)[l_out**2 : (l_out + 1) ** 2, l_in**2 : (l_in + 1) ** 2]


@pytest.mark.parametrize("reflections", [True, False])
@pytest.mark.parametrize(("l_in", "l_out"), [(1, 1), (2, 3), (3, 1), (2, 2)])
def test_all_couplings_and_no_others(reflections, l_in, l_out):
    """The maps for one edge span the same space as all couplings with its spherical harmonics."""
    unit = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8]).double(), dim=0)
    harmonics = ir.spherical_harmonics(l_in + l_out, unit[None])
    steps = 2 if reflections else 1
    couplings = torch.stack(
        [
            torch.einsum("ijk,j->ki", ir.clebsch_gordan(l_in, l, l_out), harmonics[l][0]).flatten()
            for l in range(abs(l_in - l_out), l_in + l_out + 1, steps)
        ]
    )
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        layer = SO2Linear(
            l_in=l_in, l_out=l_out, m_max=6, channels=1, invariants=0, reflections=reflections
        ).double()
        found.append(operator(unit, layer, l_in, l_out).detach().flatten())
    maps = torch.stack(found)
    rank = torch.linalg.matrix_rank
    assert int(rank(couplings, rtol=1e-10)) == len(couplings) == int(rank(maps, rtol=1e-10))
    assert int(rank(torch.cat([couplings, maps]), rtol=1e-10)) == len(couplings)


OPTIONS = dict(elements=["H", "C"], cutoff=3.0, channels=4, hidden=4, layers=2, radial=4)


def backbone(**options) -> mq.Equiformer:
    torch.manual_seed(0)
    return mq.Equiformer(**OPTIONS | dict(l_max=3) | options).double().eval()


def along_axes() -> mq.Graph:
    """Atoms at the origin and along all axes, so that edges point along ±x, ±y and ±z."""
    scale = torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], dtype=torch.float64)[:, None]
    pos = torch.cat([torch.zeros(1, 3, dtype=torch.float64), AXES * scale])
    return mq.connect(mq.Graph.single(pos, ["C", *["H"] * 6]), 3.0)


def turned(angle):
    """Frames that are turned about their edges by random angles, or tilted away from them."""

    def frames(unit):
        x, y, z = frames_of(unit)
        generator = torch.Generator().manual_seed(5)
        phi = 2 * math.pi * torch.rand(len(unit), 1, dtype=torch.float64, generator=generator)
        c, s = phi.cos(), phi.sin()
        if angle == "about the edge":
            return torch.stack([c * x - s * z, y, s * x + c * z])
        return torch.stack([c * x - s * y, s * x + c * y, z])

    return frames


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
def test_frames_do_not_leak(group, monkeypatch):
    graph = along_axes()
    model = mq.Model(backbone(group=group), ["energy", "forces", "dipole"]).double().eval()
    wanted = model(graph) | {"features": model.backbone(graph).flat()}
    for how, same in (("about the edge", True), ("tilted", False)):
        monkeypatch.setattr(edge_frames, "frames_of", turned(how))
        found = model(graph) | {"features": model.backbone(graph).flat()}
        for name in ("energy", "forces", "dipole", "features"):
            error = float(((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()).detach())
            assert (error < 1e-12) == same, (how, name, error)


def test_mirrored_frames_give_the_same_with_reflections_alone(monkeypatch):
    """Left-handed frames: O(3) has no hand, SO(3) has one."""
    graph = along_axes()
    for group, same in (("O(3)", True), ("SO(3)", False)):
        model = backbone(group=group)
        with torch.no_grad():
            wanted = model(graph).flat()
            with monkeypatch.context() as patch:
                patch.setattr(
                    edge_frames,
                    "frames_of",
                    lambda unit: frames_of(unit) * torch.tensor([-1.0, 1, 1])[:, None, None],
                )
                found = model(graph).flat()
        assert (float((found - wanted).abs().max()) < 1e-12) == same, group


@pytest.mark.parametrize("l_max", [2, 6])
def test_derivatives_along_the_axes(l_max):
    """Forces, and second derivatives as training needs them, against finite differences."""
    model = backbone(l_max=l_max, channels=2, hidden=2, heads=1)
    graph = along_axes()

    def energy(pos):
        out = model(graph.replace(pos=pos))
        return out.scalars.sum() + out.blocks["1o"].square().sum()

    pos = graph.pos.clone().requires_grad_()
    assert torch.autograd.gradcheck(energy, pos, fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, pos, fast_mode=True)


def test_nothing_jumps_where_the_frames_do():
    """Just above and below the equator frames differ by half a turn."""
    model = backbone()

    def values(y):
        pos = torch.tensor([[0.0, 0, 0], [1.2, y, 0.3], [0.1, 1.0, 0.7]], dtype=torch.float64)
        pos.requires_grad_()
        out = model(mq.connect(mq.Graph.single(pos, ["C", "H", "H"]), 3.0))
        (gradient,) = torch.autograd.grad(out.scalars.sum(), pos)
        return torch.cat([out.flat().detach().flatten(), gradient.flatten()])

    assert float((frames_of(directions()[8:9]) - frames_of(directions()[9:10])).abs().max()) > 0.5
    assert float((values(1e-12) - values(-1e-12)).abs().max()) < 1e-9


def test_points_in_the_same_place_keep_the_symmetry():
    model = backbone(elements=["X"])
    generator = torch.Generator().manual_seed(1)
    pos = torch.rand(5, 3, dtype=torch.float64, generator=generator) * 2
    pos[1] = pos[0]
    turn = random_orthogonal(3, generator=generator)
    a, b = (model(mq.connect(mq.Graph.single(p), 3.0)) for p in (pos, pos @ turn.T))
    for l, irrep in enumerate(a.blocks):
        wanted = a.blocks[irrep] @ ir.wigner(irrep, turn).T
        assert torch.allclose(b.blocks[irrep], wanted, atol=1e-12), l
