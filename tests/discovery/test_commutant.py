"""Linear maps against representations, pruning, and curves over models: laws with controls, and nets made equivariant by a projection."""

import json
import math

import pytest
import torch
from e3nn import o3
from torch import nn
from torch.nn.utils import prune as masks

from molequi import Model, connect
from molequi.audit import audit
from molequi.checkpoint import save
from molequi.discovery.actions import hidden_action
from molequi.discovery.commutant import (
    commutant_distance,
    equivariant_projection,
    parse_irreps,
    representation_matrices,
)
from molequi.discovery.curves import (
    audit_errors,
    local_equivariance_errors,
    spectrum_shares,
    symmetry_curves,
)
from molequi.discovery.pruning import prune
from molequi.discovery.rotations import rotation_quadrature
from molequi.errors import CheckpointError, ConfigError
from molequi.graph import Graph
from molequi.models import NequIP, Transformer
from molequi.symmetry import random_orthogonal

from ..audit.kit import ELEMENTS, molecule

INTO, OUT = "2x0e+3x1o+1x1e+2x2e", "1x0e+1x0o+2x1o+1x2e+1x2o"


def matrix(out: int, into: int, seed: int = 0):
    return torch.randn(out, into, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(into: int, out: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(into, out, bias)
    layer.load_state_dict(
        {"weight": matrix(out, into), **({"bias": matrix(out, 1, 1)[:, 0]} if bias else {})}
    )
    return layer


def transformer(predict=("energy", "forces"), **options) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(
            Transformer(
                **{
                    "elements": ELEMENTS,
                    "cutoff": 4.0,
                    "channels": 8,
                    "layers": 2,
                    "vectors": 2,
                    "radial": 4,
                    **options,
                }
            ),
            predict,
        )


# The projection.


def test_the_representation_of_a_layout_is_e3nns():
    turn = torch.stack([random_orthogonal(3, generator=torch.Generator().manual_seed(k)) for k in range(4)])
    for layout in (INTO, OUT):
        assert torch.allclose(
            representation_matrices(layout, turn), o3.Irreps(layout).D_from_matrix(turn), atol=1e-6
        )  # e3nn's angles cost digits near the poles
    assert parse_irreps("0e+2x1o", 5) == [(1, "0e", 1), (2, "1o", 5)]


@pytest.mark.parametrize("group", ["O(n)", "SO(n)"])
@pytest.mark.parametrize(
    ("into", "out", "dim"),
    [
        (INTO, OUT, 3),
        ("1x0e+2x1o", "2x0e+1x1o", 2),
        ("3x1o", "2x1o+1x0o", 2),
        ("1x0e+2x1o+1x1e", "1x1o+2x1e+1x0o", 2),
    ],
)
def test_schur_is_the_mean_over_the_group(group, into, out, dim):
    """The closed form against the integral; what it gives commutes, is a projection, and the control does not commute."""
    weight = matrix(*(sum(n * m for n, _, m in parse_irreps(layout, dim)) for layout in (out, into)))
    found = equivariant_projection(weight, into, out, group=group, dim=dim)
    one_by_one = [lambda R, r=r: representation_matrices(r, R[None])[0] for r in (into, out)]
    assert torch.allclose(
        found,
        equivariant_projection(weight, *one_by_one, group=group, dim=dim, quadrature_degree=4),
        atol=1e-12,
    )
    assert (
        torch.allclose(equivariant_projection(found, into, out, group=group, dim=dim), found, atol=1e-14)
        and float(found.norm()) > 0.1
    )
    for proper in (True, *([False] if group == "O(n)" else [])):
        turn = random_orthogonal(dim, proper=proper, generator=torch.Generator().manual_seed(1))[None]
        left, right = representation_matrices(out, turn)[0], representation_matrices(into, turn)[0]
        assert (
            float((found @ right - left @ found).abs().max())
            < 1e-12
            < 1e-1
            < float((weight @ right - left @ weight).abs().max())
        )


def test_in_the_plane_vectors_and_pseudovectors_are_one():
    """The turn J by 90° goes from R to det(R) R and back; in space nothing does."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    for into, out in (("1x1e", "1x1o"), ("1x1o", "1x1e")):
        assert (
            torch.equal(equivariant_projection(turn, into, out, dim=2), turn)
            and commutant_distance(turn, into, out, dim=2).relative == 0
        )
        assert torch.equal(
            equivariant_projection(torch.eye(2), into, out, dim=2), torch.zeros(2, 2)
        ) and not torch.any(equivariant_projection(matrix(3, 3), into, out))
    assert commutant_distance(turn, "1x1o", "1x1o", dim=2).relative == 1


@pytest.mark.parametrize("group", ["O(n)", "SO(n)"])
def test_twice_the_distance_is_the_mean_defect(group):
    """E |W ρ_in − ρ_out W|² = 2 |(1 − P) W|²: by quadrature, and by elements at random."""
    weight = matrix(1 + 1 + 6 + 5 + 5, 2 + 9 + 3 + 10)
    broken = commutant_distance(weight, INTO, OUT, group=group)
    assert math.isclose(broken.squared_norm, float(weight.square().sum())) and 0.5 < broken.relative < 1

    def defect(turns):
        left, right = representation_matrices(OUT, turns), representation_matrices(INTO, turns)
        return (weight @ right - left @ weight).square().sum((1, 2))

    turns, weights = rotation_quadrature(3, 4)
    exact = float(weights @ defect(turns))
    if group == "O(n)":
        exact = (exact + float(weights @ defect(-turns))) / 2
    assert math.isclose(exact, 2 * broken.squared_distance, rel_tol=1e-12)
    generator = torch.Generator().manual_seed(0)
    drawn = defect(
        torch.stack(
            [
                random_orthogonal(3, proper=None if group == "O(n)" else True, generator=generator)
                for _ in range(300)
            ]
        )
    )
    assert abs(float(drawn.mean()) - 2 * broken.squared_distance) < 4 * float(drawn.std()) / math.sqrt(300)


def test_pairs_say_which_paths_break():
    layer = nn.Linear(4, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0, 0, 2.0], [0.0, 0, 0, 0]]))
        layer.bias.copy_(torch.tensor([0.0, 2.0]))
    found = commutant_distance(layer, "1x0e+1x1o", "1x0e+1x0o", name="first")
    assert found.by_irreps["1o → 0e"] == pytest.approx((4 / 9, 4 / 9)) and found.by_irreps[
        "0e → 0o"
    ] == pytest.approx((4 / 9, 4 / 9))
    assert found.by_irreps["0e → 0e"] == pytest.approx((1 / 9, 0)) and found.relative == pytest.approx(8 / 9)
    assert commutant_distance(layer, "1x0e+1x1o", "1x0e+1x0o", group="SO(n)").relative == pytest.approx(
        4 / 9
    )  # 0o is 0e to rotations
    data = json.loads(found.to_json())
    assert (
        data["relative"] == found.relative
        and "first" in str(found)
        and "1o → 0e" in str(found)
        and "<table>" in found._repr_html_()
    )
    assert (
        commutant_distance(equivariant_projection(matrix(3, 3), "1o", "1o"), "1o", "1o").summary
        == "equivariant"
    )


def test_weights_that_are_not_finite_are_null_in_json():
    found = commutant_distance(torch.full((3, 3), math.nan), "1o", "1o")
    data = json.loads(found.to_json())
    assert data["relative"] is None and data["by_irreps"] == {"1o → 1o": [None, None]} and data["name"] == "W"
    layer = nn.Linear(3, 3)
    nn.init.constant_(layer.weight, math.inf)
    data = json.loads(prune(layer, {"": ("1o", "1o")}, measures={"loss": lambda model: math.nan}).to_json())
    assert (
        data["distances_before"][0]["squared_norm"] is None
        and data["distances_after"][0]["squared_distance"] is None
        and data["measures_after"] == {"loss": None}
    )


def test_a_layer_between_hidden_representations():
    """A map between two equivariant feature spaces, each behind a mix that is unknown: by the actions that are found there it commutes, and
    another map does not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = (
            Model(NequIP(elements=ELEMENTS, cutoff=4.0, channels=2, layers=1, l_max=1), ["energy"])
            .double()
            .eval()
        )
    into = random_orthogonal(8, generator=torch.Generator().manual_seed(1))
    out = random_orthogonal(8, generator=torch.Generator().manual_seed(2))
    inner = equivariant_projection(matrix(8, 8), "2x0e+2x1o", "2x0e+2x1o")
    weight = out @ inner @ into.T
    structures = [connect(molecule(k, 6), 4.0) for k in range(9)]

    def first(graph: Graph):
        with torch.no_grad():
            return net.backbone(graph).flat() @ into.T

    actions = [
        hidden_action(f, structures, l_max=1, quadrature_degree=2)
        for f in (first, lambda graph: first(graph) @ weight.T)
    ]
    assert [a.irreps for a in actions] == ["2x0+2x1"] * 2
    found = equivariant_projection(
        weight, actions[0].matrix, actions[1].matrix, group="SO(n)", quadrature_degree=2
    )
    assert torch.allclose(found, weight, atol=1e-8 * float(weight.norm()) + 1e-10)
    other = matrix(8, 8, 5)
    kept = equivariant_projection(
        other, actions[0].matrix, actions[1].matrix, group="SO(n)", quadrature_degree=2
    )
    assert float(kept.norm()) < 0.8 * float(other.norm())
    assert torch.allclose(
        equivariant_projection(
            kept, actions[0].matrix, actions[1].matrix, group="SO(n)", quadrature_degree=2
        ),
        kept,
        atol=1e-8,
    )


# Pruning.

LAYOUTS = {"backbone.edge.0": ("1x1o+4x0e", "8x0e")}


def test_a_transformer_whose_edges_see_no_directions_is_invariant():
    """Its one map from components of vectors, projected: what is left sees distances alone."""
    net, structures = transformer(), [molecule(0, 5), molecule(1, 5)]
    found = prune(
        net,
        LAYOUTS,
        measures={
            "error": audit_errors(structures),
            "spectrum": spectrum_shares(structures, "energy", l_max=1, quadrature_degree=4),
        },
    )
    assert (
        found.measures_before["error: rotation of energy"] > 0.1
        and found.measures_before["spectrum: 0"] < 0.99
    )
    assert (
        found.measures_after["error: rotation of energy"] < 1e-10
        and found.measures_after["error: rotation of forces"] < 1e-10
    )
    assert (
        abs(found.measures_after["spectrum: 0"] - 1) < 1e-10
        and 0.1 < found.distances_before[0].relative < 0.6
    )
    still = connect(structures[0], 4.0)
    assert not torch.allclose(net(still)["energy"], found.model(still)["energy"]), (
        "the net itself stays as it was"
    )
    judged = audit(found.model, structures, checks=["rotation", "reflection"], draws=2, group="O(n)")
    assert judged.passed and not audit(net, structures, checks=["rotation"], draws=2, group="O(n)").passed
    data = json.loads(found.to_json())
    assert (
        data["measures_before"] == found.measures_before
        and "backbone.edge.0" in str(found)
        and "<table>" in found._repr_html_()
    )


def test_a_lone_linear_is_pruned_with_its_bias():
    layer = nn.Linear(6, 4)
    found = prune(layer, {"": ("2x1o", "1x0e+1x1o")})
    weight, bias = found.model.weight, found.model.bias
    assert (
        torch.equal(weight[0], torch.zeros(6))
        and torch.equal(bias[1:], torch.zeros(3))
        and bias[0] == layer.bias[0]
    )
    blocks_left = weight[1:].unflatten(1, (2, 3))
    assert torch.allclose(
        blocks_left,
        blocks_left.diagonal(dim1=0, dim2=2).mean(1)[None, :, None] * torch.eye(3)[:, None],
        atol=1e-7,
    )
    assert (
        weight.dtype == torch.float32
        and found.measures_before == {}
        and float(weight.detach().abs().max()) > 0
    )


def test_what_is_left_of_a_layer_is_measured():
    """Nothing but round-off; more where two layers share weights, of which the last has its way."""
    net = nn.ModuleDict({name: linear(3, 3, bias=False) for name in "ab"})
    found = prune(net, {"a": ("1x1o", "1x1o"), "b": ("1x1o", "1x1o")})
    assert (
        max(c.relative for c in found.distances_after)
        < 1e-13
        < 0.1
        < min(c.relative for c in found.distances_before)
        and "not all" not in found.summary
    )
    assert [c.squared_distance for c in found.distances_after] == [
        commutant_distance(m, "1o", "1o").squared_distance for m in found.model.values()
    ]
    net["b"].weight = net["a"].weight
    assert all(
        c.relative < 1e-13 for c in prune(net, {"a": ("1x1o", "1x1o"), "b": ("3x0e", "3x0e")}).distances_after
    ), "multiples of one are both"
    nn.init.eye_(net["a"].weight)
    found = prune(net, {"a": ("1x1o", "1x1o"), "b": ("1x0e+2x0o", "2x0o+1x0e")})
    assert (
        found.distances_after[0].relative == pytest.approx(2 / 3) and found.distances_after[1].relative == 0
    )  # diag(0, 1, 0) is left of one
    assert found.summary.endswith(
        "not all in a, because another layer shares the weights with other irreps"
    ) and "6.67e-01" in str(found)
    assert (
        json.loads(found.to_json())["distances_after"][0]["squared_distance"]
        == found.distances_after[0].squared_distance
    )


def test_weights_that_are_computed_are_refused():
    """What a projection writes to them would be lost at the next call."""
    parametrizations = nn.utils.parametrizations
    for wrap in (
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: parametrizations.orthogonal(layer, "weight"),
        lambda layer: masks.l1_unstructured(layer, "weight", 2),
    ):
        net = nn.Sequential(wrap(linear(6, 6)))
        with pytest.raises(
            ConfigError,
            match=r"the weight of '0' is computed from other parameters .*remove_parametrizations\(layer, 'weight'\)",
        ):
            prune(net, {"0": ("2x1o", "2x1o")})
    net = nn.Sequential(parametrizations.weight_norm(linear(6, 6)))
    nn.utils.parametrize.remove_parametrizations(net[0], "weight")
    found = prune(net, {"0": ("2x1o", "2x1o")})
    assert (
        commutant_distance(found.model[0], "2x1o", "2x1o").relative
        < 1e-13
        < 0.1
        < found.distances_before[0].relative
    )


def test_a_layer_of_two_names_is_found_by_either():
    layer = linear(3, 3)
    net = nn.ModuleDict({"p": layer, "q": layer})
    for name in "pq":
        found = prune(net, {name: ("1x1o", "1x1o")})
        assert (
            found.model["p"] is found.model["q"]
            and found.distances_before[0].name == name
            and commutant_distance(found.model["p"], "1o", "1o").relative < 1e-13
        )


# Curves.


def test_measures_of_several_models(tmp_path):
    """From a free net nearly to the pruned one and there: the errors fall, and the invariant share grows to one."""
    net = transformer()
    pruned = prune(net, LAYOUTS).model
    structures, models = [molecule(0, 5), molecule(1, 5)], {}
    for part in (0.0, 0.99, 1.0):
        between = transformer()
        with torch.no_grad():
            for p, a, b in zip(between.parameters(), net.parameters(), pruned.parameters()):
                p.copy_((1 - part) * a + part * b)
        models[part] = save(between, tmp_path / f"{part}.safetensors")
    found = symmetry_curves(
        models,
        {
            "error": audit_errors(structures[:1], checks=["rotation", "translation"], draws=8),
            "E": spectrum_shares(structures, "energy", l_max=1, quadrature_degree=4),
            "LEE": local_equivariance_errors(structures[:1]),
            "weights": lambda m: commutant_distance(m.backbone.edge[0], *LAYOUTS["backbone.edge.0"]).relative,
        },
        x_label="part",
    )
    assert found.x == (0.0, 0.99, 1.0) and found.x_label == "part"
    for name in ("error: rotation of energy", "error: rotation of forces", "weights", "LEE: energy 0e"):
        column = found.values[name]
        assert column[0] > column[1] > column[2] and column[2] < 1e-10, (name, column)
    invariant = found.values["E: 0"]
    assert invariant[0] < invariant[1] < invariant[2] and abs(invariant[2] - 1) < 1e-10
    assert max(found.values["error: translation of energy"]) < 1e-9
    data = json.loads(found.to_json())
    assert data["x"] == [0.0, 0.99, 1.0] and data["values"]["weights"][0] > 0.1
    assert (
        "error: rotation of energy" in str(found)
        and "<table>" in found._repr_html_()
        and "weights from" in found.summary
    )
    listed = symmetry_curves(
        [tmp_path / "0.0.safetensors", net], {"size": lambda m: sum(p.numel() for p in m.parameters())}
    )
    assert listed.x == ("0.0", 1) and listed.values["size"][0] == listed.values["size"][1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: commutant_distance(matrix(2, 2), "2x0e", "1x1o"),
            r"W goes from 2 to 2 dimensions; 2x0e → 1x1o from 2 to 3",
        ),
        (lambda: commutant_distance(matrix(2, 2), "2y0e", "2x0e"), "term '2y0e': wanted a form such as"),
        (
            lambda: commutant_distance(matrix(5, 5), "2x0+1x1", "2x0+1x1"),
            "term '2x0': wanted a form such as '4x0e\\+2x1o'; hidden_action finds parities with parity=True",
        ),
        (lambda: commutant_distance(matrix(2, 2), "2x0e", "-2x0e"), "term '-2x0e'"),
        (lambda: commutant_distance(matrix(4, 4), "1x2e", "1x2e", dim=2), "exist in 2 dimensions"),
        (
            lambda: equivariant_projection(matrix(3, 3), "1o", "1o", group="O(3)"),
            r"group 'O\(3\)': weights are projected for O\(n\) or SO\(n\)",
        ),
        (lambda: equivariant_projection(matrix(1, 1), "1o", "1o", dim=1), "dim=1: wanted at least two"),
        (
            lambda: equivariant_projection(matrix(3, 2), "1o", lambda R: R),
            r"shape \(3, 2\); the representations act on 3 → 3",
        ),
        (
            lambda: commutant_distance(torch.zeros(6), "2x1o", "2x1o"),
            r"W has shape \(6,\); wanted a matrix \(out, in\), for 2x1o → 2x1o of shape \(6, 6\)",
        ),
        (
            lambda: equivariant_projection(torch.zeros(2, 3, 3), "1o", "1o"),
            r"the map has shape \(2, 3, 3\); wanted a matrix",
        ),
        (
            lambda: equivariant_projection(torch.zeros(3), "1o", lambda R: R),
            r"a map of shape \(3,\); the representations act on 3 → 3",
        ),
        (lambda: prune(nn.Linear(3, 3), {"edge": ("1o", "1o")}), "'edge' is no nn.Linear"),
        (lambda: prune(nn.Linear(3, 3), {}), "names no layer"),
        (lambda: prune(nn.Linear(3, 3), {"": ("1o", "2x0e")}), "Linear goes from 3 to 3"),
        (lambda: symmetry_curves(nn.Linear(1, 1), {"a": lambda m: 0}), "found one Linear; wanted several"),
        (lambda: symmetry_curves([], {"a": lambda m: 0}), "models: found none"),
        (lambda: symmetry_curves([nn.Linear(1, 1)], {}), "measures: found none"),
        (
            lambda: symmetry_curves([nn.Linear(1, 1)], {"a": lambda m: {"b": 1}, "a: b": lambda m: 2}),
            "'a: b' returns .*'a: b', and so does",
        ),
        (
            lambda: prune(
                nn.Linear(3, 3), {"": ("1o", "1o")}, measures={"a": lambda m: {"b": 1}, "a: b": lambda m: 2}
            ),
            "'a: b' returns .*'a: b', and so does",
        ),
    ],
)
def test_what_cannot_be_asked(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        symmetry_curves([tmp_path / "none.safetensors"], {"a": lambda m: 0})
