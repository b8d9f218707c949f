"""Lie derivatives: zero where a model turns, known values where it does not, and the whole of them in the layer that is at fault."""

import json
import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from molequi import EGNN, MACE, Ensemble, Graph, Model, NequIP, PaiNN, Quantity, connect
from molequi.audit.layers import Chain, casimir, generators
from molequi.audit.lie import lie_errors
from molequi.errors import ConfigError, DataError, ModelError
from molequi.features import Features
from molequi.heads import Scalar, Vector
from molequi.models import Backbone, Equiformer, GauntACE, Inputs
from molequi.ops import irreps as ir
from molequi.quantities import KNOWN

from .kit import ELEMENTS, crystal, molecule

SMALL = {
    "EGNN": (EGNN, dict(channels=6, layers=3, radial=4)),
    "GauntACE": (GauntACE, dict(channels=3, layers=3, l_max=2, radial=4)),
    "MACE": (MACE, dict(channels=3, layers=3, l_max=2, correlation=2, radial=4, radial_hidden=(8,))),
    "NequIP": (NequIP, dict(channels=3, layers=3, radial=4, radial_hidden=(8,))),
    "PaiNN": (PaiNN, dict(channels=6, layers=3, radial=4)),
}
# Its last norm takes away what the faults below add to all invariants of a node.
SOUND = SMALL | {"Equiformer": (Equiformer, dict(channels=4, hidden=4, layers=3, l_max=2, radial=4))}
LAYERS = {
    "EGNN": "layers",
    "GauntACE": "layers",
    "MACE": "layers",
    "NequIP": "interactions",
    "PaiNN": "updates",
}


def model_of(name, predict=("energy", "forces", "dipole"), **options):
    torch.manual_seed(0)
    kind, small = SOUND[name]
    return Model(kind(elements=ELEMENTS, cutoff=3.5, **small | options), predict)


class Function(nn.Module):
    """A function of the positions as a model."""

    cutoff, group = 3.0, "nothing"

    def __init__(self, function, **quantity):
        super().__init__()
        self.quantities = {"f": Quantity(name="f", **{"per": "node", **quantity})}
        self.function = function

    def forward(self, graph):
        return {"f": self.function(graph)}


def spoilt(model, layer, fault):
    """The model with what one of its layers returns changed by fault(output, graph)."""
    seen = {}
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.update(graph=inputs[0]))
    model.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: fault(output, seen["graph"])
    )
    return model


def shares(row):
    return {s.layer: s.share for s in row.layers}


def test_generators_are_derivatives_of_the_representations():
    for generator in generators(3)[:3]:
        h = 1e-4
        ends = [
            ir.wigner(f"{l}e", torch.linalg.matrix_exp(s * h * generator.matrix))
            for s in (1, -1)
            for l in range(5)
        ]
        for l in range(5):
            slope = (ends[l] - ends[5 + l]) / (2 * h)
            assert torch.allclose(
                generator.act(f"{l}e", torch.eye(2 * l + 1, dtype=torch.float64)).T, slope, atol=1e-6
            )
    for dim in (2, 3, 4):
        v = torch.randn(dim, dtype=torch.float64)
        turns = [g for g in generators(dim) if g.matrix is not None]
        assert len(turns) == dim * (dim - 1) // 2
        assert sum(g.act("1o", v).square().sum() for g in turns) == pytest.approx(
            casimir("1o", dim) * float(v.square().sum())
        )


@pytest.mark.parametrize("name", SOUND)
def test_sound_models_have_none(name):
    high = {"EGNN": {}, "PaiNN": {}, "NequIP": {}}.get(name, dict(l_out=2))
    predict = [
        "energy",
        "forces",
        "stress",
        "dipole",
        "polarizability",
        Quantity(name="arrow", per="node", rank=1),
        "mu",
        "r2",
    ]
    report = lie_errors(model_of(name, predict, layers=2, **high), [crystal(), molecule(0)])
    names = {r.quantity for r in report.rows if r.measured}
    assert names == {
        "energy",
        "energies",
        "forces",
        "stress",
        "dipole",
        "polarizability",
        "arrow",
        "mu",
        "r2",
        "features",
    }
    assert all(r.error <= 1e-12 or (r.noise > 1e-9 and r.error < r.noise) for r in report.rows if r.measured)
    assert sum(r.error <= 1e-12 for r in report.rows) >= 12
    assert all(r.agrees and not r.broken and r.inversion < 1e-12 for r in report.rows if r.measured)
    assert all(s.lee < 1e-24 for s in report.states) and len(report.states) >= 6
    assert "no more than round-off" in report.summary and "charged" not in str(report)


def test_options_of_models_and_two_dimensions():
    pos = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for flat in (
        EGNN(elements=["X"], cutoff=None, channels=6, layers=1, inputs=Inputs(velocity=True)),
        PaiNN(elements=["X"], cutoff=3.0, channels=6, layers=1, inputs=Inputs(node_vectors=1)),
    ):
        given = {"vel": pos.flip(0) + 1} if flat.inputs.velocity else {"vec": (pos.flip(0) + 1)[:, None]}
        moved = Quantity(name="moved", per="node", rank=1, point=True)
        report = lie_errors(Model(flat, ["energy", "forces", "dipole", moved]), [Graph.single(pos, **given)])
        assert {r.quantity for r in report.rows if r.measured} == {
            "energy",
            "energies",
            "forces",
            "dipole",
            "moved",
            "features",
        }
        assert all(
            r.error <= 1e-12 and set(r.generators) == {"rotation xy", "translation x", "translation y"}
            for r in report.rows
        )
    chiral = lie_errors(model_of("NequIP", ("energy",), group="SO(3)", layers=2), [molecule(0)])
    assert not any(r.broken for r in chiral.rows) and max(r.inversion for r in chiral.rows) > 1e-12


def test_precision_of_the_copy():
    report = lie_errors(model_of("NequIP", layers=2), [molecule(0)], precision="float32")
    assert all(1e-12 < r.error < r.noise for r in report.rows if r.quantity != "energies")
    assert not any(r.broken or not r.agrees for r in report.rows)


def test_a_coordinate_as_a_scalar():
    # L x_1: the rotations that move x_1 give x_2 and x_3, the translation along it gives 1
    graphs = [molecule(k) for k in range(3)]
    (row,) = lie_errors(Function(lambda g: g.pos[:, 0]), graphs, draws=1).rows
    pos = torch.cat([g.pos for g in graphs])
    assert row.rotations * row.scale**2 == pytest.approx(float(pos[:, 1:].square().sum(1).mean()), rel=1e-12)
    assert row.translations * row.scale**2 == pytest.approx(1.0, rel=1e-12)
    assert {n for n, v in row.generators.items() if v > 0} == {"rotation xy", "rotation xz", "translation x"}
    assert (
        row.exact == ["rotation yz", "translation y", "translation z"]
        and row.remark == "exact: rotation yz, translation y, translation z"
    )
    assert row.agrees and row.gap < 1e-6 and row.differences == pytest.approx(row.lee, rel=1e-6)


def test_the_square_of_a_distance_from_the_origin():
    graph = molecule(0)
    (row,) = lie_errors(Function(lambda g: g.pos.square().sum(1)), graph, draws=1).rows
    assert row.rotations < 1e-24
    assert row.translations * row.scale**2 == pytest.approx(
        4 * float(graph.pos.square().sum(1).mean()), rel=1e-12
    )


def test_constants_have_one_from_rotations_and_points_move_along():
    def arrow(g):
        return torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).expand(g.num_nodes, 3) + 0 * g.pos

    def traceless(g):
        a = torch.tensor([[1.0, 2, 0], [2, -3, 1], [0, 1, 2]], dtype=torch.float64)
        return a.expand(g.num_nodes, 3, 3) + 0 * g.pos[:, :, None]

    (row,) = lie_errors(Function(arrow, rank=1), molecule()).rows
    assert (row.rotations, row.translations) == (pytest.approx(1.0, rel=1e-12), 0.0)
    isotropic, row = lie_errors(Function(traceless, rank=2, symmetry="ij=ji"), molecule()).rows
    assert not isotropic.measured and isotropic.remark == "zero, or the same for all positions of the atoms"
    assert (row.irrep, row.rotations) == ("2e", pytest.approx(1.0, rel=1e-12))
    # a point that stays behind: L_t f = t; of one that moves along there is nothing
    (stays,) = lie_errors(Function(arrow, rank=1, point=True), molecule()).rows
    assert stays.translations * stays.scale**2 == pytest.approx(3.0, rel=1e-12)
    (moves,) = lie_errors(Function(lambda g: g.pos + 0, rank=1, point=True), molecule()).rows
    assert moves.lee < 1e-30 and moves.measured
    far = molecule()
    (far,) = lie_errors(
        Function(lambda g: g.pos + 0, rank=1, point=True), far.replace(pos=far.pos + 100.0)
    ).rows
    assert far.scale == pytest.approx(moves.scale, rel=1e-9)
    assert lie_errors(Function(lambda g: g.pos + 0, rank=1), molecule()).row("f").translations > 0.1


@pytest.mark.parametrize("dim", [2, 3])
def test_inversion_is_improper_in_any_dimension(dim):
    # a signed area or volume is no scalar: rotations and translations do not see it, a mirror turns it over
    def signed(g):
        away = (g.pos - g.pos.mean(0))[:dim]
        return torch.linalg.det(away).expand(g.num_nodes)

    graph = Graph.single(molecule().pos[:, :dim])
    (row,) = lie_errors(Function(signed), graph, draws=1).rows
    assert row.error < 1e-12
    assert row.inversion * row.scale**2 == pytest.approx(4 * float(signed(graph)[0]) ** 2, rel=1e-9)
    assert lie_errors(Function(signed, pseudo=True), graph, draws=1).rows[0].inversion < 1e-24


def test_extensive_scalars_are_judged_per_atom():
    def column(g):
        return torch.zeros(g.num_graphs, dtype=torch.float64).index_add(0, g.batch, g.pos[:, 0] + 100.0)

    (row,) = lie_errors(Function(column, per="graph", extensive=True), [molecule(0), molecule(1, 5)]).rows
    assert row.translations * row.scale**2 == pytest.approx(1.0, rel=1e-12) and row.scale < 1


def test_terms_of_linear_layers_by_matrix_algebra():
    # f = B A x: L f = [D B - B D] A x + B [D A - A D] x, exactly
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 3, dtype=torch.float64, generator=generator) for _ in range(2))

    class Linear(nn.Module):
        def __init__(self, matrix):
            super().__init__()
            self.matrix = nn.Parameter(matrix)

        def forward(self, x):
            return x @ self.matrix.T

    class Two(Function):
        def forward(self, g):
            return {"f": self.b(self.a(g.pos))}

    model, graph = Two(None, rank=1), molecule(0)
    model.a, model.b = Linear(first), Linear(second)
    row = lie_errors(model, graph, layers={"a": "1x1o", "b": "1o"}, draws=1).row("f")
    terms = {"a": [], "b": []}
    for turn in generators(3):
        x, xi = graph.pos.T, turn.matrix
        if xi is None:
            terms["a"].append(-second @ first @ turn.vector[:, None].expand(3, 7))  # D(t) h = 0, J t = A t
            terms["b"].append(torch.zeros(3, 7))
        else:
            terms["a"].append(second @ (xi @ first - first @ xi) @ x / math.sqrt(2))
            terms["b"].append((xi @ second - second @ xi) @ first @ x / math.sqrt(2))
    a, b = (torch.stack([t.double() for t in terms[k]]) / (row.scale * math.sqrt(7)) for k in "ab")
    total = a + b
    assert row.lee == pytest.approx(float(total.square().sum()), rel=1e-12)
    for share, term in zip(row.layers, (a, b)):
        assert share.size == pytest.approx(float(term.square().sum()), rel=1e-12)
        assert share.share == pytest.approx(float((term * total).sum() / total.square().sum()), rel=1e-12)
    assert [s.layer for s in row.layers] == ["a", "b", "remainder"] and row.layers[2].size < 1e-28
    # one layer by itself: ‖D A - A D‖ over ‖A x‖
    (alone,) = (s for s in lie_errors(model, graph, layers={"a": "1x1o"}, draws=1).states)
    turned = [(g.matrix @ first - first @ g.matrix) @ graph.pos.T for g in generators(3)[:3]]
    wanted = sum(float(t.square().sum()) for t in turned) / (2 * float((first @ graph.pos.T).square().sum()))
    assert alone.rotations == pytest.approx(wanted, rel=1e-12)


def clamp(v):
    size = 0.5 * v.square().mean().sqrt()
    return torch.minimum(torch.maximum(v, -size), size)


def vectors_of(name):
    """The vectors of what a layer returns, with the axis of components last, and the way back."""
    if name == "EGNN":
        return lambda out: out[1], lambda out, v: (out[0], v)
    if name == "PaiNN":
        return lambda out: out[1].transpose(1, 2), lambda out, v: (out[0], v.transpose(1, 2))
    return lambda out: out[:, 1:4].transpose(1, 2), lambda out, v: torch.cat(
        [out[:, :1], v.transpose(1, 2), out[:, 4:]], dim=1
    )


FAULTS = {
    "component clamp": lambda name: lambda out, g: vectors_of(name)[1](out, clamp(vectors_of(name)[0](out))),
    "relu on vectors": lambda name: lambda out, g: vectors_of(name)[1](out, vectors_of(name)[0](out).relu()),
    "mean over x, y, z": lambda name: lambda out, g: _scalars(out, vectors_of(name)[0](out).mean(-1)),
    "absolute coordinate": lambda name: lambda out, g: _scalars(out, 0.1 * g.pos[:, :1]),
}


def _scalars(out, extra):
    if isinstance(out, tuple):
        return out[0] + (
            extra if extra.ndim == 2 and extra.shape[1] in (1, out[0].shape[1]) else extra[:, None]
        ), *out[1:]
    return torch.cat([out[:, :1] + extra[:, None], out[:, 1:]], dim=1)


CASES = [
    (list(SMALL)[k % 5], fault, k % 3) for k, fault in enumerate(list(FAULTS) * 3)
]  # each fault in each place, each model twice


def test_all_faults_in_all_places_are_tried():
    assert len({case[1:] for case in CASES}) == 12 and {case[0] for case in CASES} == set(SMALL)


@pytest.mark.parametrize(("name", "fault", "place"), CASES)
def test_one_broken_layer_has_it_all(name, fault, place):
    layer = f"backbone.{LAYERS[name]}.{place}"
    scalars = fault in ("mean over x, y, z", "absolute coordinate")
    model = spoilt(model_of(name), layer, FAULTS[fault](name))
    report = lie_errors(model, [molecule(0, 5)], draws=1)
    # vectors of a last layer are not seen by scalars
    hidden = not scalars and place == 2
    broken = {"dipole", "features"} if hidden else {"energy", "forces", "energies", "dipole", "features"}
    for row in report.rows:
        assert row.agrees
        if row.quantity in broken - {"features"}:
            assert row.broken and row.error > 1e-7
        if row.broken:
            found = shares(row)
            assert found[layer] > 0.9999
            assert sum(found.values()) == pytest.approx(1.0, abs=1e-10)
            assert all(abs(v) < 1e-6 for n, v in found.items() if n != layer)
    assert {r.quantity for r in report.rows if r.broken} >= broken
    assert {s.layer for s in report.states if s.lee > 1e-15} == {layer}
    assert f"from {layer}" in report.summary


def test_in_a_crystal_with_stress():
    layer = "backbone.interactions.0"
    model = spoilt(
        model_of("NequIP", ("energy", "forces", "stress"), layers=2),
        layer,
        FAULTS["component clamp"]("NequIP"),
    )
    report = lie_errors(model, [crystal(), molecule(0)])
    assert {(r.quantity, r.irrep) for r in report.rows if r.broken} >= {
        ("energy", "0e"),
        ("forces", "1o"),
        ("stress", "0e"),
        ("stress", "2e"),
    }
    for row in report.rows:
        if row.broken:
            assert shares(row)[layer] == pytest.approx(1.0, abs=1e-9) and row.agrees
    # and a layer that sees the cell as it lies
    model = spoilt(
        model_of("NequIP", ("energy", "forces", "stress"), layers=2),
        layer,
        lambda out, g: _scalars(out, 0.1 * g.cell[g.batch, 0, :1]),
    )
    report = lie_errors(model, [crystal()])
    assert all(
        shares(r)[layer] == pytest.approx(1.0, abs=1e-9) and r.translations < 1e-24
        for r in report.rows
        if r.broken
    )
    assert report.row("stress", "2e").broken


def test_faults_in_the_embedding_behind_the_layers_in_a_head_and_after_it():
    class Behind(NequIP):
        def forward(self, graph):
            f = super().forward(graph)
            return Features(
                blocks={**f.blocks, "0e": f.blocks["0e"] + f.blocks["1o"].mean(-1, keepdim=True)},
                coordination=f.coordination,
            )

    class Counting(NequIP):
        def forward(self, graph):
            f = super().forward(graph)
            return Features(blocks=f.blocks, coordination=f.coordination * (1 + 0.1 * graph.pos[:, 0].sin()))

    class Wrong(Scalar):
        def contributions(self, graph, features):
            return super().contributions(graph, features) + 0.1 * graph.pos[:, 0].sin()

    class After(Model):
        def forward(self, graph, *, create_graph=None):
            out = super().forward(graph, create_graph=create_graph)
            return {**out, "forces": out["forces"].clamp(-0.05, 0.05)}

    torch.manual_seed(0)
    small = dict(elements=ELEMENTS, cutoff=3.5, channels=3, layers=1, radial=4)
    for model, layer, names in [
        (
            spoilt(
                model_of("PaiNN", layers=1), "backbone.embedding", lambda out, g: out + 0.1 * g.pos[:, :1]
            ),
            "backbone.embedding",
            {"energy", "forces", "dipole"},
        ),
        (Model(Behind(**small), ["energy", "forces", "dipole"]), "backbone", {"energy", "forces", "dipole"}),
        (Model(Counting(**small), ["energy", "forces", "dipole"]), "backbone", {"energy", "forces"}),
        (
            Model(NequIP(**small), [Wrong("energy"), "forces", "dipole"]),
            "heads.energy",
            {"energy", "energies", "forces"},
        ),
        (After(NequIP(**small), ["energy", "forces", "dipole"]), "remainder", {"forces"}),
    ]:
        report = lie_errors(model, [molecule(0, 5)])
        assert {r.quantity for r in report.rows if r.broken} - {"features", "energies"} == names - {
            "energies"
        }
        for row in report.rows:
            if row.broken:
                assert shares(row)[layer] == pytest.approx(1.0, abs=1e-6)
                assert sum(shares(row).values()) == pytest.approx(1.0, abs=1e-10)


def test_terms_that_cancel_are_shown():
    # a head of direct forces that takes back what the layer before it put in: no error, and two terms of equal size
    model = spoilt(
        model_of("NequIP", [Vector("forces")]),
        "backbone.interactions.2",
        lambda out, g: torch.cat([out[:, :1], out[:, 1:4] + 1.0, out[:, 4:]], dim=1),
    )
    model.heads["forces"].register_forward_pre_hook(
        lambda module, inputs: (
            inputs[0],
            Features(
                blocks={**inputs[1].blocks, "1o": inputs[1].blocks["1o"] - 1.0},
                coordination=inputs[1].coordination,
            ),
        )
    )
    row = lie_errors(model, molecule()).row("forces")
    sizes = {s.layer: s.size for s in row.layers}
    assert row.error < 1e-12 and sizes["backbone.interactions.2"] > 1e-3
    assert sizes["heads.forces"] == pytest.approx(sizes["backbone.interactions.2"], rel=1e-9)


def test_two_broken_layers_share_and_sum():
    model = spoilt(model_of("MACE"), "backbone.layers.0", FAULTS["component clamp"]("MACE"))
    model = spoilt(model, "backbone.layers.1", FAULTS["mean over x, y, z"]("MACE"))
    for row in lie_errors(model, [molecule(0), molecule(1, 5)]).rows:
        if row.broken:
            found = shares(row)
            assert sum(found.values()) == pytest.approx(1.0, abs=1e-10) and abs(found["remainder"]) < 1e-10
            assert abs(found["backbone.layers.0"]) > 1e-4 and abs(found["backbone.layers.1"]) > 1e-4
            assert abs(found["backbone.layers.2"]) < 1e-10


def test_an_unknown_backbone_is_one_row_and_layouts_open_it():
    class Own(Backbone):
        group = "O(n)"

        def __init__(self, *, elements, cutoff):
            super().__init__(elements=elements, cutoff=cutoff)
            self.out = {"0e": 4, "1o": 1}
            self.embed = nn.Embedding(3, 4)
            self.pull, self.norm = nn.Linear(4, 1), nn.LayerNorm(4)

        def forward(self, graph):
            h = self.embed(self.element_index(graph))
            j, i = graph.edge_index
            pulls = (
                self.pull(h)[j].tanh()
                * graph.edge_vectors()
                * torch.exp(-graph.edge_vectors().square().sum(1, keepdim=True))
            )
            v = torch.zeros_like(graph.pos).index_add(0, i, pulls)
            v = self.bend(v)
            h = self.norm(h + torch.softmax(v.square().sum(1, keepdim=True) * h, dim=1))
            return Features(blocks={"0e": h[:, :, None], "1o": v[:, None]}, coordination=v.square().sum(1))

    class Bend(nn.Module):
        def forward(self, v):
            return torch.sin(3 * v)

    torch.manual_seed(0)
    backbone = Own(elements=ELEMENTS, cutoff=3.5)
    backbone.bend = Bend()
    model = Model(backbone, ["energy", "forces"])
    assert set(shares(lie_errors(model, molecule()).row("forces"))) == {
        "backbone",
        "heads.energy",
        "remainder",
    }
    backbone.states = lambda: {"embed": "4x0e", "bend": "1x1o"}
    for described in (
        lie_errors(model, molecule()),
        lie_errors(model, molecule(), layers={"backbone.bend": "1x1o"}),
    ):
        for row in described.rows:
            # forces through a layer norm and a softmax: charged by reverse mode, and the rest says that both ways agree
            assert (
                row.broken
                and shares(row)["backbone.bend"] == pytest.approx(1.0, abs=1e-9)
                and abs(shares(row)["remainder"]) < 1e-10
            )


def test_a_layer_that_is_called_twice():
    class Pair(NamedTuple):
        first: torch.Tensor
        second: torch.Tensor

    class Named(nn.Linear):
        def forward(self, x):
            return Pair(super().forward(x), x.sum(1))

    class Twice(Function):
        def forward(self, g):
            return {"f": self.a(self.a(g.pos).first).first}

    model = Twice(None, rank=1)
    model.a = Named(3, 3, bias=False)
    row = lie_errors(model, molecule(), layers={"a": ("1o", None)}).row("f")
    assert [s.layer for s in row.layers] == ["a", "a, call 2", "remainder"]
    assert all(s.size > 1e-3 for s in row.layers[:2]) and row.layers[2].size < 1e-28


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_foreign_net_of_e3nn_that_takes_its_own_forces():
    from e3nn import o3

    layout = "4x0e+2x1o+1x2e"

    class Foreign(nn.Module):
        cutoff, group = 4.0, "O(3)"

        def __init__(self):
            super().__init__()
            self.quantities = {name: KNOWN[name] for name in ("energy", "forces")}
            self.harmonics = o3.Irreps.spherical_harmonics(2)
            self.embed = nn.Embedding(10, 4)
            self.first = o3.FullyConnectedTensorProduct("4x0e", self.harmonics, layout)
            self.mix = o3.Linear(layout, layout)
            self.last = o3.FullyConnectedTensorProduct(layout, self.harmonics, "1x0e")

        def forward(self, graph):
            graph = (
                graph if graph.pos.requires_grad else graph.replace(pos=graph.pos.clone().requires_grad_())
            )
            (j, i), vectors, h = graph.edge_index, graph.edge_vectors(), self.embed(graph.z)
            y = o3.spherical_harmonics(self.harmonics, vectors, True, "component")
            radial = torch.exp(-vectors.square().sum(1, keepdim=True) / 4)
            messages = self.first(h[j] * radial, y)
            h = self.mix(messages.new_zeros(len(h), messages.shape[1]).index_add(0, i, messages))
            energy = (self.last(h[j], y) * radial).tanh()[:, 0]
            energy = energy.new_zeros(graph.num_graphs).index_add(0, graph.batch[i], energy)
            (forces,) = torch.autograd.grad(energy.sum(), graph.pos, create_graph=True)
            return {"energy": energy, "forces": -forces}

    torch.manual_seed(0)
    model, layers = Foreign(), {"embed": "4x0e", "first": layout, "mix": layout}
    sound = lie_errors(model, [molecule(0)], layers=layers)
    assert all(r.error < 1e-12 for r in sound.rows) and len(sound.states) == 7
    model.mix.register_forward_hook(
        lambda module, inputs, out: torch.cat([out[:, :4], out[:, 4:].relu()], dim=1)
    )
    for row in lie_errors(model, [molecule(0)], layers=layers).rows:
        assert row.broken and row.agrees and shares(row)["mix"] == pytest.approx(1.0, abs=1e-9)


def test_ensembles():
    torch.manual_seed(0)
    members = [
        Model(PaiNN(elements=ELEMENTS, cutoff=3.5, channels=4, layers=1, radial=4), ["energy", "forces"])
        for _ in range(2)
    ]
    ensemble = Ensemble(members)
    ensemble.members[1].backbone.messages[0].register_forward_hook(
        lambda m, i, out: FAULTS["component clamp"]("PaiNN")(out, None)
    )
    report = lie_errors(ensemble, molecule(0, 4))
    for name in ("energy", "forces"):
        assert shares(report.row(name))["members.1.backbone.messages.0"] == pytest.approx(1.0, abs=1e-9)


def test_the_control_sees_a_derivative_that_is_cut():
    report = lie_errors(Function(lambda g: g.pos[:, 0].detach() + 0 * g.pos[:, 1]), molecule())
    (row,) = report.rows
    assert row.lee < 1e-30 and row.differences > 0.1 and not row.agrees
    assert "finite differences disagree" in str(report) and report.summary.startswith("NOT TO BE TRUSTED")
    assert json.loads(report.to_json())["rows"][0]["agrees"] is False


class Two(Function):
    """Two outputs, a and b."""

    def __init__(self, a, b):
        super().__init__(None)
        self.quantities = {n: Quantity(name=n, per="node") for n in "ab"}
        self.both = a, b

    def forward(self, graph):
        return {n: f(graph) for n, f in zip("ab", self.both)}


def radius(g):
    return torch.cat([(p - p.mean(0)).norm(dim=1) for p in g.pos.split(g.counts.tolist())])


def test_a_broken_output_is_named_beside_one_that_resolves_little():
    # a small variation of a large number has a larger LEE, all of it within its round-off, than the broken b
    report = lie_errors(
        Two(lambda g: radius(g) - 2000.0 + 3e-3 * g.pos[:, 0], lambda g: radius(g) + 1e-3 * g.pos[:, 0]),
        molecule(),
        precision="float32",
    )
    a, b = report.row("a"), report.row("b")
    assert a.lee > b.lee and b.broken and not a.broken
    assert "b 0e" in report.summary and "round-off" not in report.summary


def test_how_much_finite_differences_would_have_seen_is_said():
    report = lie_errors(Function(lambda g: radius(g) + 1e-9 * g.pos[:, 0].detach()), molecule())
    assert report.rows[0].error < 1e-12 and report.rows[0].differences ** 0.5 > 1e-9
    assert (
        f"finite differences would show errors above {report.rows[0].differences ** 0.5:.0e}"
        in report.summary
    )


def test_the_error_of_positions_does_not_depend_on_how_far_apart_structures_lie():
    class Ripple(Function):
        def __init__(self):
            super().__init__(None, rank=1, point=True)
            self.layer = Sine()

        def forward(self, graph):
            return {"f": self.layer(graph.pos)}

    class Sine(nn.Module):
        def forward(self, pos):
            return pos + 0.05 * pos.sin()

    far = molecule(1).replace(pos=molecule(1).pos + 40 * math.pi * torch.tensor([1.0, 0, 0]).double())
    near, apart = (
        lie_errors(Ripple(), [molecule(0), other], layers={"layer": "point"}).states[0]
        for other in (molecule(1), far)
    )
    assert apart.translations == pytest.approx(near.translations, rel=1e-9) and apart.scale == pytest.approx(
        near.scale, rel=1e-9
    )


def test_values_that_are_not_finite_or_not_resolved_are_said():
    nothing = lie_errors(Function(lambda g: g.pos[:, 2] * math.nan), molecule())
    assert nothing.rows[0].remark == "not finite" and nothing.summary == "NOT TO BE TRUSTED: not finite: f 0e"
    some = lie_errors(
        Function(lambda g: radius(g) * (math.nan if g.num_nodes < 7 else 1.0)),
        [molecule(0), molecule(1, 5)],
        draws=1,
    )
    assert (
        not some.rows[0].measured
        or some.rows[0].remark == "not finite for some of the structures, which are left out"
    )
    assert some.summary.startswith("NOT TO BE TRUSTED: not finite")
    flat = lie_errors(Function(lambda g: radius(g) - 2e9), molecule(), precision="float32")
    assert "by less than float32 resolves in 2.0e+09" in flat.rows[0].remark and flat.summary.startswith(
        "nothing could be measured: f is constant, or"
    )
    stress = lie_errors(model_of("EGNN", ("energy", "stress"), layers=1), molecule(0, 4)).row("stress")
    assert stress.remark == "not there: no structure has a volume"


def test_a_pose_with_a_symmetry_of_its_own_hides_nothing():
    water = Graph.single([[0.0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], ["O", "H", "H"])
    square = Function(lambda g: g.pos[:, 2].square())
    assert not lie_errors(square, water, draws=1).rows[0].broken, "the derivative is zero where z is"
    assert lie_errors(square, water).rows[0].broken


def test_forms_of_the_report():
    model = spoilt(
        model_of("NequIP", ("energy", "forces", "stress"), layers=2),
        "backbone.interactions.0",
        FAULTS["component clamp"]("NequIP"),
    )
    report = lie_errors(
        model,
        [molecule(k, 4) for k in range(4)],
        limit=2,
        layers={"backbone.interactions.0.gate": ["0e", "1o", "2e"]},
    )
    assert shares(report.row("energy"))["backbone.interactions.0.gate"] == pytest.approx(
        0.0, abs=1e-9
    )  # the fault comes after its gate
    assert (report.structures, report.given, report.group) == (2, 4, "O(3)") and "2 of 4 structures" in str(
        report
    )
    kept = json.loads(report.to_json())
    assert [r["quantity"] for r in kept["rows"]] == [r.quantity for r in report.rows]
    stress = report.row("stress")
    assert (
        not stress.measured
        and math.isnan(stress.error)
        and kept["rows"][report.rows.index(stress)]["lee"] is None
    )
    assert "share of each layer" in str(report) and "100.00 %" in str(report)
    assert "<table>" in report._repr_html_() and "&lt;" not in report._repr_html_()
    with pytest.raises(KeyError):
        report.row("dipole")
    one, again, other = (
        lie_errors(Function(lambda g: g.pos[:, 0]), molecule(), seed=s).rows for s in (0, 0, 1)
    )
    assert one == again != other


def test_of_an_accelerated_model_the_plain_one_is_measured():
    model = model_of("EGNN", layers=1)
    model.use_program("any")
    assert not any(r.broken for r in lie_errors(model, molecule(0, 4)).rows) and model.program == "any"


def test_nothing_outside_changes():
    model = model_of("NequIP", layers=1).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    lie_errors(model, connect(molecule(), 3.5))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not any(
        len(m._forward_hooks) for m in model.modules()
    )


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        (
            {"backbone.interaction.0": "1x0e"},
            ConfigError,
            "no submodule 'backbone.interaction.0'; did you mean 'backbone.interactions.0'",
        ),
        ({"backbone": "1x0e"}, ConfigError, "returns Features and needs no layout"),
        ({"backbone.interactions.0": "3x0e+3y1o"}, ConfigError, "'3x0e[+]3y1o' is no layout"),
        ({"backbone.interactions.0": ["0e", "vector"]}, ConfigError, "'vector' is no irrep"),
        ({"backbone.interactions.0": 5}, ConfigError, "5 is no layout"),
        (
            {"backbone.interactions.0": "3x0e+3x1o"},
            ModelError,
            r"has 12 components on the last axis.*shape \(7, 9, 3\)",
        ),
        (
            {"backbone.interactions.0": ["0e", "1o"]},
            ModelError,
            r"has 4 components on the second axis.*shape \(7, 9, 3\)",
        ),
        (
            {"backbone.interactions.0": ("3x0e", None)},
            ModelError,
            "2 layouts, and the layer returns 1 tensors",
        ),
        ({"heads.energy": "0e"}, ConfigError, "'heads.energy' is never called"),
        (["backbone"], ConfigError, "wanted layouts by name"),
    ],
)
def test_layouts_that_cannot_be(layers, error, words):
    with pytest.raises(error, match=words):
        lie_errors(model_of("NequIP"), [molecule()], layers=layers)


def test_other_errors():
    model = model_of("EGNN")
    with pytest.raises(DataError, match="no structures"):
        lie_errors(model, [])
    with pytest.raises(ConfigError, match="limit=0"):
        lie_errors(model, [molecule()], limit=0)
    for draws in (0, 2.5, "2", None):
        with pytest.raises(ConfigError, match=f"draws={draws!r}: wanted at least 1"):
            lie_errors(model, [molecule()], draws=draws)
    with pytest.raises(ConfigError, match="Linear does not say its quantities, cutoff; declare"):
        lie_errors(nn.Linear(2, 2), [molecule()])
    with pytest.raises(ModelError, match="Function gives f as float; wanted a tensor"):
        lie_errors(Function(lambda g: 1.0), [molecule()])
    with pytest.raises(ConfigError, match="precision='half'"):
        lie_errors(model, [molecule()], precision="half")
    with pytest.raises(ConfigError, match="2e in 2 dimensions"):
        Chain(nn.Sequential(nn.Linear(1, 1)), {"0": "2e"}, 2)

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * x

        @staticmethod
        def backward(ctx, slope):
            return slope

    with pytest.raises(ModelError, match="without a derivative in forward mode"):
        lie_errors(Function(lambda g: Square.apply(g.pos[:, 0])), molecule())

    class Numbers(EGNN):
        def forward(self, graph):
            return super().forward(graph).scalars

    with pytest.raises(ModelError, match="a Backbone that returns Tensor; wanted Features"):
        lie_errors(Model(Numbers(elements=ELEMENTS, channels=4, layers=1), ["energy"]), molecule())
    with pytest.raises(ModelError, match="returns dict; wanted a tensor"):

        class Dict(nn.Module):
            def forward(self, x):
                return {"x": x}

        class Strange(Function):
            def forward(self, g):
                return {"f": self.inner(g.pos)["x"][:, 0]}

        strange = Strange(None)
        strange.inner = Dict()
        lie_errors(strange, molecule(), layers={"inner": "1o"})


def test_a_head_may_be_a_layer_too():
    model = spoilt(model_of("PaiNN", ("dipole",), layers=1), "heads.dipole", lambda out, g: out + 0.1)
    for layers in (None, {"heads.dipole": "1x1o"}):
        found = shares(lie_errors(model, molecule(0, 4), layers=layers).row("dipole"))
        assert found["heads.dipole"] == pytest.approx(1.0, abs=1e-9) and abs(found["remainder"]) < 1e-12
