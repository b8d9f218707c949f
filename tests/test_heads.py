"""Heads against formulas written out again, the pools, and what they refuse."""

from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import torch

from molequi import EGNN, Graph, Inputs, Model, NequIP, PaiNN, Quantity, collate, connect
from molequi.errors import ConfigError, ModelError, UnknownKeywordError
from molequi.features import Features
from molequi.heads import (
    HEADS,
    Classes,
    Dipole,
    DipoleMagnitude,
    LinearScalar,
    PhysicalEnergy,
    Position,
    Scalar,
    SpatialExtent,
    Vector,
    Velocity,
    default_head,
    head_from,
)
from molequi.symmetry import Transform, random_orthogonal

SHAPE = Quantity(name="shape", classes=["ball", "rod", "sheet"])
PART = Quantity(name="part", per="node", classes=["end", "middle"])
MOVED = Quantity(name="moved", per="node", rank=1, point=True)


def molecule(nodes=6, seed=0, **given) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    pos = 3 * torch.rand(nodes, 3, dtype=torch.float64, generator=generator)
    return connect(Graph.single(pos, torch.tensor([1, 6, 8])[torch.arange(nodes) % 3], **given), 4.0)


def features(graph: Graph, channels=4, seed=1) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    n = graph.num_nodes
    return Features(
        blocks={"0e": random(n, channels, 1), "1o": random(n, channels, 3)},
        coordination=torch.ones(n, dtype=torch.float64),
    )


def built(head):
    torch.manual_seed(3)
    head.build({"0e": 4, "1o": 4})
    return head.double().requires_grad_(False)


def test_attention_is_a_mean_with_weights_that_add_up_to_one():
    graph = collate([molecule(6), molecule(3, 1)])
    given = features(graph)
    head = built(Scalar("gap", pool="attention"))
    head.standardize(scale=2.0, shift=5.0)
    own, score = head.net(given.scalars).squeeze(-1), head.attend(given.scalars).squeeze(-1)
    for k, rows in enumerate((slice(0, 6), slice(6, 9))):
        weights = torch.softmax(score[rows], 0)
        assert float(head(graph, given)[k]) == pytest.approx(
            float((weights * own[rows]).sum() * 2.0 + 5.0), abs=1e-12
        )
    assert abs(float(head(graph, given)[0]) - float(own[:6].mean() * 2 + 5)) > 1e-3  # and not the plain mean


def test_sum_mean_and_attention_differ_as_they_should():
    graph = molecule()
    values = {}
    for pool in ("sum", "mean", "attention"):
        head = built(Scalar("gap", pool=pool))
        values[pool] = float(head(graph, features(graph)))
    assert values["sum"] == pytest.approx(6 * values["mean"], rel=1e-12)
    assert min(abs(values["attention"] - values["mean"]), abs(values["attention"] - values["sum"])) > 1e-6


def test_the_magnitude_is_that_of_the_dipole():
    graph = collate([molecule(charge=1.0), molecule(4, 1, charge=0.0)])
    given = features(graph)
    vector, length = built(Dipole("dipole")), built(DipoleMagnitude("mu"))
    length.load_state_dict(vector.state_dict())
    assert torch.allclose(length(graph, given), vector(graph, given).norm(dim=1), atol=1e-12)
    zero = Features(
        blocks={k: torch.zeros_like(v) for k, v in given.blocks.items()}, coordination=given.coordination
    )
    neutral = graph.replace(charge=torch.zeros(2, dtype=torch.float64))
    inputs = [p.requires_grad_() for p in length.parameters()]
    for p in length.parameters():
        p.data.zero_()
    slopes = torch.autograd.grad(
        length(neutral, zero).sum(), inputs, allow_unused=True
    )  # |0| has no NaN in its slope
    assert all(s is None or bool(torch.isfinite(s).all()) for s in slopes)


def test_the_extent_starts_from_the_electrons_of_neutral_atoms():
    """With a network of zeros: Σ z |r - r̄|² about the centre of nuclear charge, here in numpy."""
    graph = molecule()
    head = built(SpatialExtent("r2"))
    for p in head.parameters():
        p.data.zero_()
    pos, z = graph.pos.numpy(), graph.z.numpy()
    centre = (z[:, None] * pos).sum(0) / z.sum()
    assert float(head(graph, features(graph))) == pytest.approx(
        float((z * ((pos - centre) ** 2).sum(1)).sum()), rel=1e-12
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda d: EGNN(elements=[1, 6, 8], cutoff=4.0, channels=8, layers=2),
        lambda d: EGNN(elements=[1, 6, 8], cutoff=None, channels=8, layers=2, inputs=Inputs(velocity=True)),
        lambda d: PaiNN(elements=[1, 6, 8], cutoff=4.0, channels=8, layers=2),
        lambda d: PaiNN(elements=[1, 6, 8], cutoff=None, channels=8, layers=2, k=3),
    ],
    ids=["EGNN", "EGNN-all-velocity", "PaiNN", "PaiNN-k"],
)
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_points_classes_and_vectors_turn_in_any_dimension(make, dim):
    torch.manual_seed(0)
    backbone = make(dim)
    arrow = Quantity(name="arrow", per="node", rank=1)
    model = Model(backbone, [SHAPE, PART, MOVED, arrow]).double().eval()
    generator = torch.Generator().manual_seed(dim)
    graph = Graph.single(
        torch.randn(7, dim, dtype=torch.float64, generator=generator),
        [1, 6, 8, 6, 6, 1, 8],
        vel=torch.randn(7, dim, dtype=torch.float64, generator=generator),
    )
    g = Transform.single(
        rotation=random_orthogonal(dim, generator=generator),
        translation=torch.randn(dim, dtype=torch.float64, generator=generator),
        permutation=torch.randperm(7, generator=generator),
    )
    out = model(connect(graph, model.cutoff, model.k))
    turned = model(connect(g.graph(graph), model.cutoff, model.k))
    for name, quantity in model.quantities.items():
        assert torch.allclose(turned[name], g.value(quantity, out[name]), atol=1e-9)
        assert float(out[name].std()) > 1e-6
    assert not torch.allclose(
        turned["arrow"], g.value(MOVED, out["arrow"])
    )  # the control: vectors do not move along, points do


def test_velocities_and_given_vectors_are_heard():
    torch.manual_seed(0)
    model = Model(PaiNN(elements=[1, 6, 8], cutoff=4.0, channels=8, layers=2), [MOVED]).double().eval()
    still = molecule(vel=torch.zeros(6, 3))
    assert not torch.allclose(
        model(still)["moved"], model(still.replace(vel=torch.ones(6, 3, dtype=torch.float64)))["moved"]
    )
    for kind in (EGNN, PaiNN, NequIP):
        torch.manual_seed(0)
        model = (
            Model(
                kind(
                    elements=[1, 6, 8],
                    cutoff=4.0,
                    channels=8,
                    layers=2,
                    inputs=Inputs(node_vectors=1, edge_features=2),
                ),
                ["gap"],
            )
            .double()
            .eval()
        )
        normals = torch.nn.functional.normalize(
            torch.randn(6, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), dim=2
        )
        pairs = {"pair_index": [[0, 1], [1, 0]], "pair_attr": [[1.0, 0.0], [1.0, 0.0]]}
        graph = connect(molecule(vec=normals, **pairs), 4.0)
        other = connect(molecule(vec=-normals, **pairs), 4.0)
        unbound = connect(
            molecule(vec=normals, pair_index=[[0, 1], [1, 0]], pair_attr=[[0.0, 1.0], [0.0, 1.0]]), 4.0
        )
        values = [float(model(g)["gap"]) for g in (graph, other, unbound)]
        assert len({round(v, 9) for v in values}) == 3
        turned = Transform.single(
            rotation=random_orthogonal(3, generator=torch.Generator().manual_seed(3)),
            permutation=torch.tensor([3, 0, 1, 5, 4, 2]),
        )
        assert float(model(connect(turned.graph(graph), 4.0))["gap"]) == pytest.approx(values[0], abs=1e-10)


def test_options_of_heads_come_back_from_their_description():
    for head in (
        Scalar("gap", pool="attention"),
        Vector(Quantity(name="field", rank=1), pool="mean"),
        Classes(SHAPE, pool="sum"),
        Position(MOVED),
    ):
        again = head_from(head.hparams)
        assert type(again) is type(head) and again.hparams == head.hparams and again.pooling == head.pooling
    for quantity, kind in ((SHAPE, Classes), (PART, Classes), (MOVED, Position)):
        assert type(default_head(quantity)) is kind
    assert all(kind.__name__ == name for name, kind in HEADS.items())


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Scalar("energy", pool="mean"), ModelError, "'mean' of an extensive quantity"),
        (lambda: Scalar("charges", pool="sum"), ModelError, "per node, which is not pooled"),
        (lambda: Scalar("gap", pool="max"), ModelError, "wanted 'sum', 'mean' or 'attention'"),
        (lambda: Scalar(SHAPE), ModelError, "one of several classes"),
        (lambda: Classes("gap"), ModelError, "Classes predicts one of several classes"),
        (lambda: Vector(MOVED), ModelError, "a position in space"),
        (lambda: Position("forces"), ModelError, "Position predicts a position in space"),
        (lambda: Vector("energy"), ModelError, "wanted a quantity of rank 1"),
        (
            lambda: built(Position(Quantity(name="goal", rank=1, point=True), pool="sum")),
            ModelError,
            "a sum of points is no point",
        ),
        (lambda: Quantity(name="a", classes=["x"]), ConfigError, "two or more different names"),
        (lambda: Quantity(name="a", classes="xy"), ConfigError, "wanted a list of names"),
        (lambda: Quantity(name="a", classes=["x", "y"], rank=1), ConfigError, "neither vectors nor sums"),
        (lambda: Quantity(name="a", point=True), ConfigError, "which have rank=1"),
        (
            lambda: NequIP(elements=[0])(connect(Graph.single([[0.0, 0.0], [1.0, 0.0]]), 5.0)),
            ModelError,
            "have 2; EGNN and PaiNN take any",
        ),
        (
            lambda: PaiNN(elements=[1, 6, 8], inputs=Inputs(edge_features=1))(molecule()),
            ModelError,
            "takes 1 features of each edge .*found 0",
        ),
        (
            lambda: EGNN(elements=[1, 6, 8], cutoff=4.0)(molecule(vec=torch.ones(6, 2, 3))),
            ModelError,
            "node_vectors=2",
        ),
        (
            lambda: Model(PaiNN(elements=[1], cutoff=None, k=4), ["energy", "forces"]),
            ModelError,
            "take a cutoff instead of k",
        ),
        (
            lambda: Model(PaiNN(elements=[1, 6, 8], cutoff=4.0, k=2), ["gap"])(molecule()),
            ModelError,
            r"connected with k=None .*connect\(graph, 4.0, k=2\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_numbers_out_of_range_are_refused_in_every_head():
    """Of each head each option that has a range, in Python as in files; values in the range are taken."""
    tried = 0
    for kind in HEADS.values():
        needed = {"LayerReadouts": {"layers": 1}, "LinearScalar": {"item": "energy"}}.get(kind.__name__, {})
        for name, hint in get_type_hints(kind.__init__, include_extras=True).items():
            ranges = [one for one in (hint, *get_args(hint)) if get_origin(one) is Annotated]
            if not ranges:
                continue
            tried += 1
            for wrong in (-1, 0):
                with pytest.raises(ConfigError, match=rf"{kind.__name__}.{name}: found {wrong}"):
                    kind(**needed | {name: wrong})
    assert tried >= 12
    for call in (
        lambda: Velocity(floor=0),
        lambda: Velocity(farthest=-1.0),
        lambda: Velocity(floor=float("nan")),
        lambda: LinearScalar("energy", hidden=[8, 0]),
        lambda: PhysicalEnergy(hidden=0),
        lambda: PhysicalEnergy(cutoff="12"),
    ):
        with pytest.raises(ConfigError, match="found .*; wanted"):
            call()
    assert Velocity(farthest=None, floor=1).floor == 1 and LinearScalar("energy", hidden=(8,)).hidden == (8,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearScalar(), r"LinearScalar: missing 1 required .*'item'; wanted LinearScalar\(item"),
        (lambda: LinearScalar("energy", hiden=8), r"LinearScalar\(hiden=8\): .*hidden"),
        (lambda: Velocity(flor=1.0), r"Velocity\(flor=1.0\): .*floor"),
    ],
)
def test_arguments_that_a_head_does_not_have_or_needs_are_named(call, message):
    with pytest.raises(UnknownKeywordError, match=message):
        call()


def test_options_that_a_head_of_ones_own_hands_on_are_checked_by_its_parent():
    class Own(LinearScalar):
        def __init__(self, item="energy", *, scale: float = 1.0, **options):
            super().__init__(item, **options)

    for wrong in ({"hidden": [0]}, {"scale": "large"}):
        with pytest.raises(ConfigError, match=rf"Own.{next(iter(wrong))}: found .*; wanted"):
            Own(**wrong)
    with pytest.raises(UnknownKeywordError, match="did you mean 'hidden'"):
        Own(hiden=[4])
    assert Own(scale=2.0, hidden=[4]).options == {"scale": 2.0, "hidden": [4]}
