"""Channels of models: maps that must leave all outputs unchanged, maps that must not, and their recovery."""

import copy

import pytest
import torch
from torch import nn

import molequi as mq
from molequi.errors import ModelError
from molequi.heads import (
    Classes,
    Dipole,
    LayerReadouts,
    LinearScalar,
    Position,
    Scalar,
    SpatialExtent,
    Tensor2,
    TensorN,
    Vector,
)
from molequi.merging import Channels, align, channels_of, closeness, transformed
from molequi.merging.alignment import _Matching
from molequi.symmetry.groups import random_orthogonal

EXACT = 1e-10
COMMON = {"elements": ["H", "O"], "cutoff": 3.0, "channels": 5, "layers": 2}
WIDTHS = ({"0e": 5}, {"0e": 4, "1o": 3}, {"0e": 4, "1o": 3, "1e": 2}, {"0e": 4, "1o": 2})
SEVEN = {"elements": ["H", "O"], "cutoff": 3.0, "channels": WIDTHS}
BACKBONES = {
    "EGNN": lambda **more: mq.EGNN(**COMMON, attention=True, normalize=True, **more),
    "PaiNN": lambda **more: mq.PaiNN(**COMMON, **more),
    "NequIP": lambda **more: mq.NequIP(**COMMON | {"layers": 3}, l_max=2, radial_hidden=(5,), **more),
    "NequIP, l_out": lambda **more: mq.NequIP(**COMMON, l_max=2, l_out=1, radial_hidden=(5,), **more),
    "NequIP, parity": lambda **more: mq.NequIP(
        **COMMON | {"layers": 3}, l_max=2, parity=True, radial_hidden=(5,), **more
    ),
    "NequIP, SO(3)": lambda **more: mq.NequIP(**COMMON, l_max=1, group="SO(3)", radial_hidden=(5,), **more),
    "MACE": lambda **more: mq.MACE(**COMMON, l_max=2, radial_hidden=(5, 5), **more),
    "MACE, l_hidden": lambda **more: mq.MACE(
        **COMMON | {"layers": 3}, l_max=2, l_hidden=2, l_out=1, correlation=2, radial_hidden=(5,), **more
    ),
    "MACE, published": lambda **more: mq.MACE(
        **COMMON,
        l_max=2,
        correlation=2,
        radial_hidden=(5,),
        variant={
            "mix_paths": True,
            "self_connection": [False, True],
            "normalize": "density",
            "distance": "soft",
            "train_frequencies": True,
        },
        **more,
    ),
    "GauntACE": lambda **more: mq.GauntACE(**COMMON, l_max=2, **more),
    "GauntACE, l_hidden": lambda **more: mq.GauntACE(
        **COMMON | {"layers": 3}, l_max=2, l_hidden=2, l_out=1, **more
    ),
    "SevenNet": lambda **more: mq.SevenNet(**SEVEN, l_max=1, radial_hidden=(5,), biases=True, **more),
    "SevenNet, elements": lambda **more: mq.SevenNet(
        **SEVEN, l_max=2, radial_hidden=(5,), self_connection=["linear", "elements", "linear"], **more
    ),
    "NequIPGNN": lambda **more: mq.NequIPGNN(**SEVEN, l_max=2, radial_hidden=(5,), **more),
    "RelaxedEGNN": lambda **more: mq.RelaxedEGNN(**COMMON, **more),
    "RelaxedNequIP": lambda **more: mq.RelaxedNequIP(**COMMON, l_max=1, radial_hidden=(5,), **more),
}
INPUTS = {"charge": True, "spin": True, "node_features": 2, "edge_features": 1, "node_vectors": 1}


def structure(dim: int = 3, **more) -> mq.Graph:
    generator = torch.Generator().manual_seed(3)
    pos = torch.rand(5, dim, dtype=torch.float64, generator=generator) * 2
    return mq.Graph.single(pos, ["O", "H", "H", "O", "H"], **more)


def random_model(backbone: mq.Backbone, predict) -> mq.Model:
    """No weight is zero or the same as others, so that nothing passes by being zero."""
    torch.manual_seed(1)
    model = mq.Model(backbone, predict).double().eval()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.3 * torch.randn_like(value)
    return model


def random_maps(channels: Channels, seed: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    eye = {s.name: torch.eye(s.size, dtype=torch.float64) for s in channels.spaces.values()}
    return {
        s.name: random_orthogonal(s.size, generator=generator)
        if s.group == "orthogonal"
        else eye[s.name][torch.randperm(s.size, generator=generator)]
        for s in channels.spaces.values()
    }


def with_weights(model: mq.Model, weights: dict[str, torch.Tensor]) -> mq.Model:
    new = copy.deepcopy(model)
    new.load_state_dict({**model.state_dict(), **weights})
    return new


def difference(a: mq.Model, b: mq.Model, graph: mq.Graph) -> float:
    """The largest difference of two models relative to the size of each output."""
    graph = mq.connect(graph, a.cutoff)
    first, second = a(graph), b(graph)
    return max(float((first[n] - second[n]).abs().max() / first[n].abs().max()) for n in first)


def check(model: mq.Model, graph: mq.Graph) -> Channels:
    """Maps of all spaces leave the outputs unchanged, and are found again."""
    weights, channels = dict(model.named_parameters()), channels_of(model)
    maps = random_maps(channels)
    moved = transformed(weights, channels, maps)
    assert closeness(weights, moved) < 0.7  # the maps do something
    assert difference(model, with_weights(model, moved), graph) < EXACT
    found = align(weights, moved, channels)
    assert found.keys() == channels.spaces.keys()
    for name, space in channels.spaces.items():
        if space.group == "permutations":
            assert torch.equal(found[name], maps[name].T), name
        else:
            assert torch.allclose(found[name], maps[name].T, rtol=0, atol=EXACT), name
    back = transformed(moved, channels, found)
    assert all(torch.allclose(back[n], weights[n], rtol=0, atol=EXACT) for n in weights)
    return channels


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_change_no_output_and_are_found_again(name):
    model = random_model(
        BACKBONES[name](), ["energy", "forces", Vector(mq.Quantity("v", per="node", rank=1))]
    )
    check(model, structure())


@pytest.mark.parametrize("name", ["EGNN", "PaiNN", "NequIP", "SevenNet", "MACE", "GauntACE", "RelaxedEGNN"])
def test_maps_with_all_inputs(name):
    velocity = {"velocity": True} if "EGNN" in name else {}
    axis = {} if name in ("SevenNet", "RelaxedEGNN") else {"axis": "learned"}
    backbone = BACKBONES[name](inputs=mq.Inputs(**INPUTS, **velocity), **axis)
    generator = torch.Generator().manual_seed(5)
    pairs = torch.combinations(torch.arange(5)).T
    both, bonds = torch.cat([pairs, pairs.flip(0)], dim=1), torch.randn(10, 1, generator=generator)
    graph = structure(
        charge=1.0,
        spin=2.0,
        x=torch.randn(5, 2, generator=generator),
        vec=torch.randn(5, 1, 3, generator=generator, dtype=torch.float64),
        vel=torch.randn(5, 3, generator=generator, dtype=torch.float64) if velocity else None,
        pair_index=both,
        pair_attr=torch.cat([bonds, bonds]),
    )
    check(random_model(backbone, ["energy", Vector(mq.Quantity("v", per="node", rank=1))]), graph)


@pytest.mark.parametrize("name", ["EGNN", "PaiNN", "NequIP, parity", "MACE, l_hidden"])
def test_maps_with_all_heads(name):
    def q(name, **more):
        return mq.Quantity(name, **more)

    heads = [
        Scalar(q("s", unit="eV"), pool="attention"),
        LinearScalar(q("ls", unit="eV"), hidden=(4, 3)),
        LinearScalar(q("la", unit="eV"), hidden=(4, 3), activation="silu"),
        SpatialExtent("r2"),
        Dipole("dipole"),
        Classes(q("kind", classes=["a", "b"])),
        Position(q("place", per="node", rank=1, point=True)),
        Tensor2(q("t", rank=2)),
        TensorN(q("n", rank=3, symmetry="ijk=jik")),
    ]
    if "parity" in name:
        heads += [
            Scalar(q("p", pseudo=True)),
            Vector(q("w", rank=1, pseudo=True)),
            Tensor2(q("pt", rank=2, pseudo=True, symmetry="ij=ji")),
        ]
    backbone = BACKBONES[name]()
    check(random_model(backbone, heads), structure())


@pytest.mark.parametrize(("name", "layers"), [("MACE", 2), ("MACE, published", 2)])
def test_maps_with_readouts_of_layers(name, layers):
    head = LayerReadouts(layers=layers, hidden=4, repulsion=3.0)
    channels = check(random_model(BACKBONES[name](), [head, "forces"]), structure())
    assert any(space.startswith("heads.energy.net.last") for space in channels.spaces)


def test_maps_in_two_dimensions_and_without_cutoff():
    for kind in (mq.EGNN, mq.PaiNN):
        backbone = kind(elements=["H", "O"], cutoff=None, channels=5, layers=2)
        model = random_model(backbone, [Vector(mq.Quantity("v", per="node", rank=1))])
        check(model, structure(dim=2))


@pytest.mark.parametrize(
    "name",
    ["EGNN", "PaiNN", "NequIP, l_out", "SevenNet", "NequIPGNN", "MACE", "MACE, published", "GauntACE"],
)
def test_spaces_of_permutations_allow_no_rotation(name):
    """The control: a rotation of any space that the table calls permutations changes the outputs."""
    model = random_model(BACKBONES[name](), ["energy", "dipole"])
    weights, channels, graph = dict(model.named_parameters()), channels_of(model), structure()
    generator = torch.Generator().manual_seed(4)
    groups = {space.group for space in channels.spaces.values()}
    assert groups == (
        {"permutations"} if name in ("PaiNN", "NequIP, l_out") else {"permutations", "orthogonal"}
    )
    for space in channels.spaces.values():
        if space.group == "permutations":
            turn = {space.name: random_orthogonal(space.size, generator=generator)}
            moved = with_weights(model, transformed(weights, channels, turn))
            assert difference(model, moved, graph) > 1e-7, space.name


def test_which_spaces_allow_rotations():
    def rotated(name):
        model = random_model(BACKBONES[name](), ["energy"])
        return {
            s.name.removeprefix("backbone.")
            for s in channels_of(model).spaces.values()
            if s.group == "orthogonal"
        }

    assert rotated("EGNN") == {"h"}
    assert rotated("MACE") == {"h", "layers.0.h.0e", "layers.0.h.1o", "layers.1.h.0e", "layers.1.h.1o"}
    first = {f"layers.0.gather.{part}" for part in ("species", "a.0", "a.1", "a.2")}
    assert rotated("GauntACE") == rotated("MACE") | first
    charged = mq.Model(BACKBONES["MACE"](inputs=mq.Inputs(charge=True)), ["energy"])
    assert channels_of(charged).spaces["backbone.h"].group == "permutations"


def test_alignment_ends_at_a_common_order_despite_noise():
    model = random_model(BACKBONES["PaiNN"](), ["energy"])
    weights, channels = dict(model.named_parameters()), channels_of(model)
    maps = random_maps(channels)
    moved = transformed(weights, channels, maps)
    generator = torch.Generator().manual_seed(6)
    noisy = {n: v + 0.05 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in moved.items()}
    found = align(weights, noisy, channels)
    assert all(torch.equal(found[name], maps[name].T) for name in maps)
    assert closeness(weights, transformed(noisy, channels, found)) > 0.95


def test_equal_models_stay():
    model = random_model(BACKBONES["GauntACE"](), ["energy"])
    weights, channels = dict(model.named_parameters()), channels_of(model)
    for name, found in align(weights, weights, channels).items():
        assert torch.allclose(found, torch.eye(len(found), dtype=torch.float64), atol=EXACT), name


def test_the_better_one_of_two_alignments_is_kept():
    """The steps begin at the maps that spread from the fixed axes, and at the order as it is."""
    stayed_is_better = 0
    for seed in range(8):
        torch.manual_seed(seed)
        one, two = (
            mq.Model(mq.PaiNN(elements=["H", "O"], channels=8, layers=2), ["energy"]).double()
            for _ in range(2)
        )
        weights, other, channels = (
            dict(one.named_parameters()),
            dict(two.named_parameters()),
            channels_of(one),
        )
        matching = _Matching(weights, other, channels)
        same = {s.name: torch.eye(s.size, dtype=torch.float64) for s in channels.spaces.values()}
        spread, stayed = (matching.overlap(matching.improved(maps)) for maps in (matching.spread(), same))
        assert matching.overlap(align(weights, other, channels)) == pytest.approx(max(spread, stayed))
        stayed_is_better += stayed > 1.001 * spread
    assert 0 < stayed_is_better < 8


def test_closeness():
    torch.manual_seed(0)
    one, two = (mq.Model(mq.PaiNN(elements=["H"], channels=32, layers=2), ["energy"]) for _ in range(2))
    assert closeness(dict(one.named_parameters()), dict(one.named_parameters())) == pytest.approx(1.0)
    assert abs(closeness(dict(one.named_parameters()), dict(two.named_parameters()))) < 0.1


def test_weights_without_a_description_are_refused():
    layer = nn.Linear(3, 2)
    channels = Channels(layer)
    channels.put("weight", channels.permuted("out", 2), None)
    with pytest.raises(ModelError, match=r"describes 0 of the 2 weights 'bias'.*merge models of one start"):
        channels.check()
    with pytest.raises(ModelError, match="names 'wieght', which the model does not have"):
        channels.fixed("wieght")
    with pytest.raises(ModelError, match=r"gives 'bias' the shape \(3,\); it has \(2,\)"):
        channels.put("bias", channels.permuted("wrong", 3))


def test_models_without_a_table_are_refused():
    transformer = mq.Model(mq.Transformer(elements=["H"], channels=8, layers=1, heads=2), ["energy"])
    with pytest.raises(ModelError, match=r"Transformer: the channels of its attention heads.*mq.Ensemble"):
        channels_of(transformer)

    class Own(mq.EGNN):
        pass

    class OwnHead(Scalar):
        pass

    with pytest.raises(ModelError, match="Own: molequi has no table of its channels"):
        channels_of(mq.Model(Own(elements=["H"], channels=4, layers=1), ["energy"]))
    with pytest.raises(ModelError, match="OwnHead: molequi has no table of the channels of this head"):
        channels_of(mq.Model(mq.EGNN(elements=["H"], channels=4, layers=1), [OwnHead("energy")]))
