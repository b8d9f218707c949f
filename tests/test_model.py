"""The model: what it predicts, what it refuses, and the physics at its edges."""

import math
from types import SimpleNamespace

import pytest
import torch

from molequi.errors import ConfigError, ModelError
from molequi.graph import Graph, collate
from molequi.heads import HEADS, Vector, default_head, head_from
from molequi.model import Model
from molequi.models import BACKBONES, EGNN, Inputs, NequIP
from molequi.neighbors import connect
from molequi.quantities import KNOWN, Quantity, atomic_number, quantity
from molequi.symmetry import Transform, random_orthogonal

SMALL = {
    "EGNN": dict(channels=16, layers=2),
    "Equiformer": dict(channels=8, hidden=8, layers=2, l_max=2),
    "GauntACE": dict(channels=8, l_max=2),
    "GroupConvNet": dict(channels=8, layers=2, group="T"),
    "MACE": dict(channels=8, l_max=2),
    "NequIP": dict(channels=8, layers=2, l_max=2),
    "SevenNet": dict(channels=8, layers=2, l_max=2),
    "NequIPGNN": dict(channels=8, layers=2, l_max=2),
    "PaiNN": dict(channels=16, layers=2),
    "RelaxedEGNN": dict(channels=16, layers=2),
    "RelaxedNequIP": dict(channels=8, layers=2, l_max=2),
    "So3krates": dict(channels=16, layers=2, l_max=2),
    "Transformer": dict(channels=16, layers=2),
}
ATOMIC = [name for name, kind in BACKBONES.items() if not kind.clouds_alone]
ELEMENTS = ["H", "C", "O"]


def small(name: str, predict=("energy", "forces", "stress"), **options) -> Model:
    torch.manual_seed(0)
    return (
        Model(BACKBONES[name](elements=ELEMENTS, cutoff=4.0, **{**SMALL[name], **options}), predict)
        .double()
        .eval()
    )


def molecule(seed=0, n=6, **given) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand(n, 3, dtype=torch.float64, generator=generator) * 3
    return connect(Graph.single(pos, [[1, 6, 8][k % 3] for k in range(n)], **given), 4.0)


def crystal(seed=0) -> Graph:
    cell = torch.tensor([[3.1, 0, 0], [0.4, 3.3, 0], [0.2, 0.1, 2.9]])
    return molecule(seed, 4, cell=cell, pbc=True)


@pytest.mark.parametrize("name", ATOMIC)
def test_every_backbone_is_in_the_matrix(name):
    assert name in SMALL, "a new backbone needs a small size here, and then passes all of these"
    model = small(name)
    assert Model.from_hparams(model.hparams).hparams == model.hparams


def test_a_pseudoscalar_changes_sign_in_a_mirror():
    chirality = Quantity(name="chirality", pseudo=True)
    model, graph = small("NequIP", [chirality], parity=True, layers=3, l_max=2), molecule(n=7)
    mirror = Transform.single(rotation=torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)))
    value, mirrored = model(graph)["chirality"], model(connect(mirror.graph(graph), 4.0))["chirality"]
    assert torch.allclose(value, -mirrored, atol=1e-12) and abs(float(value)) > 1e-6


def test_building_from_a_description_leaves_random_numbers_alone():
    model = small("NequIP")
    before = torch.get_rng_state()
    Model.from_hparams(model.hparams)
    assert torch.equal(before, torch.get_rng_state())


def test_coupling_constants_stay_float64_through_float32():
    """Rounded once, they would break the symmetry of a float64 copy at 1e-8."""
    model = small("NequIP", ["energy", "polarizability"]).float().double()
    graph = molecule()
    turn = Transform.single(rotation=random_orthogonal(3, generator=torch.Generator().manual_seed(0)))
    out, turned = model(graph)["polarizability"], model(connect(turn.graph(graph), 4.0))["polarizability"]
    assert torch.allclose(
        turn.value(KNOWN["polarizability"], out), turned, atol=1e-12 * float(out.abs().max())
    )


@pytest.mark.parametrize("name", ATOMIC)
def test_one_atom_has_the_energy_of_the_isolated_atom(name):
    model = small(name)
    model.standardize(
        SimpleNamespace(
            mean_neighbors=3.0,
            reference_energies={1: -13.5, 6: -1026.0, 8: -2040.0},
            scale={"energy": 2.0},
            shift={"energy": {1: -1.0, 6: -2.0, 8: -3.0}},
        )
    )
    out = model(connect(Graph.single([[0.1, 0.2, 0.3]], [6]), 4.0))
    assert out["energy"].tolist() == [-1026.0] and out["forces"].tolist() == [[0, 0, 0]]
    pair = model(connect(Graph.single([[0.0, 0, 0], [3.99, 0, 0]], [6, 8]), 4.0))
    bound = model(connect(Graph.single([[0.0, 0, 0], [1.2, 0, 0]], [6, 8]), 4.0))
    assert abs(float(pair["energy"]) + 3066.0) < 1e-4 < abs(float(bound["energy"]) + 3066.0)


@pytest.mark.parametrize("name", ATOMIC)
def test_total_energies_do_not_lose_digits_in_float32(name):
    model = small(name).float()
    model.standardize(
        SimpleNamespace(
            mean_neighbors=3.0, reference_energies={1: 0.0, 6: -1.0e6 + 0.0001, 8: 0.0}, scale={}, shift={}
        )
    )
    model = model.double().float()
    out = model(connect(Graph.single([[0.0, 0, 0]], [6]), 4.0))
    assert out["energy"].dtype == torch.float64 and float(out["energy"]) == -1.0e6 + 0.0001


@pytest.mark.parametrize("name", ATOMIC)
def test_far_from_the_origin_in_float32(name):
    """Differences are taken in float64: what is left is the rounding of the positions themselves."""
    model, graph = small(name).float(), molecule()
    far = graph.replace(pos=graph.pos + 1000.0)
    assert torch.allclose(model(graph)["forces"], model(far)["forces"], atol=1e-10)


@pytest.mark.parametrize("name", ATOMIC)
def test_coincident_atoms_are_finite(name):
    model = small(name)
    pos = torch.tensor([[0.0, 0, 0], [0.0, 0, 0], [1.0, 0, 0]])
    graph = connect(Graph.single(pos, [6, 8, 1]), 4.0)
    assert graph.edge_index.shape[1] == 6, (
        "the coincident pair must be an edge for this test to mean anything"
    )
    out = model.train()(graph)
    (out["forces"].square().sum() + out["energy"].sum()).backward()
    assert all(torch.isfinite(v).all() for k, v in out.items() if k != "stress")
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ATOMIC)
def test_gradients_under_no_grad_and_inference_mode(name):
    model, graph = small(name), molecule()
    plain = model(graph)["forces"]
    with torch.no_grad():
        assert torch.equal(model(graph)["forces"], plain)
    with torch.inference_mode():
        assert torch.equal(model(graph)["forces"], plain)
        made_inside = graph.replace(pos=graph.pos + 0.0)
        assert torch.equal(model(made_inside)["forces"], plain)
    assert not plain.requires_grad and float(plain.abs().max()) > 1e-3


def test_create_graph_follows_training_mode():
    model, graph = small("NequIP"), molecule()
    assert not model(graph)["energy"].requires_grad
    assert model(graph, create_graph=True)["forces"].requires_grad
    assert model.train()(graph)["forces"].requires_grad


@pytest.mark.parametrize("name", ATOMIC)
def test_stress_is_nan_only_where_there_is_no_cell(name):
    model = small(name)
    both = model(collate([crystal(), molecule()]))
    assert torch.isfinite(both["stress"][0]).all() and torch.isnan(both["stress"][1]).all()
    assert torch.allclose(both["stress"][0], model(crystal())["stress"][0], atol=1e-12)


@pytest.mark.parametrize("totals", ["charge", "spin"])
@pytest.mark.parametrize("name", ATOMIC)
def test_charge_and_spin_reach_the_model(name, totals):
    model = small(name, ["energy"], inputs=Inputs(**{totals: True}))
    energies = [float(model(molecule(**{totals: value}))["energy"]) for value in (0.0, 1.0)]
    assert abs(energies[0] - energies[1]) > 1e-6
    with pytest.raises(ModelError, match=f"total {totals}"):
        model(molecule())


@pytest.mark.parametrize("name", ATOMIC)
def test_node_features_reach_the_model(name):
    model, graph = small(name, ["energy"], inputs=Inputs(node_features=2)), molecule()
    energies = [float(model(graph.replace(x=torch.full((6, 2), value)))["energy"]) for value in (0.0, 1.0)]
    assert abs(energies[0] - energies[1]) > 1e-6
    with pytest.raises(ModelError, match="2 features of each node"):
        model(graph)
    with pytest.raises(ModelError, match="node_features=3"):
        small(name)(graph.replace(x=torch.zeros(6, 3)))


def test_velocities_and_edge_features_reach_egnn():
    graph = molecule()
    vel = torch.randn(6, 3, dtype=torch.float64)
    model = small("EGNN", ["energy"], inputs=Inputs(velocity=True))
    assert (
        abs(float(model(graph.replace(vel=vel))["energy"] - model(graph.replace(vel=2 * vel))["energy"]))
        > 1e-6
    )
    with pytest.raises(ModelError, match="velocities"):
        model(graph)
    edges = torch.randn(graph.edge_index.shape[1], 2)
    model = small("EGNN", ["energy"], inputs=Inputs(edge_features=2))
    assert (
        abs(
            float(
                model(graph.replace(edge_attr=edges))["energy"]
                - model(graph.replace(edge_attr=-edges))["energy"]
            )
        )
        > 1e-6
    )
    with pytest.raises(ModelError, match="2 features of each edge"):
        model(graph)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_egnn_in_any_dimension(dim):
    torch.manual_seed(dim)
    velocity = Quantity(name="drift", per="node", rank=1)
    model = Model(
        EGNN(elements=["X"], cutoff=None, channels=16, layers=2, attention=True),
        ["energy", "forces", velocity],
    )
    model = model.double().eval()
    graph = Graph.single(torch.randn(7, dim, dtype=torch.float64))
    g = Transform.single(rotation=random_orthogonal(dim), translation=torch.randn(dim, dtype=torch.float64))
    out, turned = model(connect(graph, None)), model(connect(g.graph(graph), None))
    assert (
        torch.allclose(out["energy"], turned["energy"], atol=1e-10) and float(out["drift"].abs().max()) > 1e-6
    )
    for name in ("forces", "drift"):
        assert torch.allclose(g.value(model.quantities[name], out[name]), turned[name], atol=1e-10)


@pytest.mark.parametrize("parity, group", [(True, "O(3)"), (False, "O(3)"), (False, "SO(3)")])
def test_nequip_groups(parity, group):
    """SO(3) is not blind to a reflection; O(3) is, and with parity it has pseudovectors that turn as they should."""
    model = small("NequIP", ["energy"], parity=parity, group=group, l_max=2, layers=3)
    graph = molecule(n=7)
    mirror = Transform.single(rotation=torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)))
    difference = float(model(graph)["energy"] - model(connect(mirror.graph(graph), 4.0))["energy"])
    assert (abs(difference) > 1e-6) == (group == "SO(3)")
    if parity:
        assert {"0o", "1e", "2o"} & set(model.backbone.out)
        spin = Quantity(name="moment", per="node", rank=1, pseudo=True)
        head = small("NequIP", [spin], parity=True, layers=3)
        out, turned = head(graph)["moment"], head(connect(mirror.graph(graph), 4.0))["moment"]
        assert torch.allclose(mirror.value(spin, out), turned, atol=1e-10) and float(out.abs().max()) > 1e-6


def test_l_out_trims_what_heads_do_not_need():
    model = small("NequIP", l_out=0)
    assert set(model.backbone.out) == {"0e"}
    with pytest.raises(ModelError, match="l_out"):
        small("NequIP", ["dipole"], l_out=0)


@pytest.mark.parametrize("name", ATOMIC)
def test_dipole_of_a_neutral_molecule_and_its_origin(name):
    model, graph = small(name, ["dipole"]), molecule()
    shifted = graph.replace(pos=graph.pos + 7.0)
    assert torch.allclose(model(graph)["dipole"], model(shifted)["dipole"], atol=1e-10)
    both = model(collate([crystal(), molecule()]))["dipole"]
    assert torch.isnan(both[0]).all() and torch.allclose(both[1], model(graph)["dipole"][0], atol=1e-12)


@pytest.mark.parametrize("name", ATOMIC)
def test_direct_vectors_and_tensors(name):
    model = small(name, ["energy", Vector("forces"), "polarizability", "charges", "gap"])
    graph = molecule()
    out = model(graph)
    assert out["forces"].shape == (6, 3) and out["polarizability"].shape == (1, 3, 3)
    assert out["charges"].shape == (6,) and out["gap"].shape == (1,) and out["energies"].shape == (6,)
    assert torch.allclose(out["polarizability"], out["polarizability"].transpose(1, 2))
    trace = (
        out["polarizability"]
        - torch.eye(3) * out["polarizability"].diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    )
    assert float(trace.abs().max()) > 1e-6, "there must be a traceless part"


@pytest.mark.parametrize(
    "make, error, words",
    [
        (
            lambda: Model(EGNN(elements=["H"]), ["forces"]),
            ModelError,
            r"predict both: \['energy', 'forces'\]",
        ),
        (lambda: Model(EGNN(elements=["H"]), []), ModelError, "empty"),
        (lambda: Model(EGNN(elements=["H"]), ["energy", "energy"]), ModelError, "twice"),
        (lambda: Model(EGNN(elements=["H"]), ["enrgy"]), ConfigError, "did you mean 'energy'"),
        (lambda: Model(EGNN(elements=["H"]), [3]), ConfigError, "wanted the name"),
        (lambda: EGNN(elements=[]), ModelError, "wanted a list of symbols"),
        (lambda: EGNN(elements="CHO"), ModelError, "wanted a list of symbols"),
        (lambda: EGNN(elements=["Xx"]), ConfigError, "chemical symbol"),
        (lambda: NequIP(elements=["H"], cutoff=-1.0), ConfigError, "NequIP.cutoff: found -1.0"),
        (lambda: NequIP(elements=["H"], channels=0), ConfigError, "NequIP.channels: found 0"),
        (lambda: NequIP(elements=["H"], group="O3"), ConfigError, "NequIP.group: found 'O3'"),
        (lambda: NequIP(elements=["H"], radial_hidden=[0]), ConfigError, "NequIP.radial_hidden"),
        (lambda: NequIP(elements=["H"], l_max=1, l_out=2), ModelError, "l_out is at most l_max"),
        (lambda: NequIP(elements=["H"], parity=True, group="SO(3)"), ModelError, "mean nothing"),
        (lambda: EGNN(elements=["H"], layers=0), ConfigError, "EGNN.layers: found 0"),
        (lambda: EGNN(elements=["H"], cutoff="5"), ConfigError, "EGNN.cutoff: found '5'"),
        (lambda: EGNN(elements=["H"], cutoff=float("inf")), ConfigError, "EGNN.cutoff: found inf"),
        (lambda: small("NequIP", [Quantity(name="chi", pseudo=True)]), ModelError, "reads '0o' features"),
        (lambda: Model("NequIP"), ModelError, "wanted a Backbone"),
        (lambda: small("EGNN")("water"), ModelError, "a model takes a Graph, found str"),
        (lambda: small("EGNN")(molecule().replace(edge_index=None)), ModelError, "no edges yet"),
        (lambda: small("EGNN")(connect(molecule(), 3.0)), ModelError, "looks up to 4.0"),
        (
            lambda: small("EGNN")(molecule().replace(z=torch.full((6,), 14))),
            ModelError,
            "is Si .* knows only H, C, O",
        ),
        (lambda: Vector("energy"), ModelError, "rank 0"),
        (lambda: head_from({"head": "Vectr"}), ModelError, "did you mean 'Vector'"),
        (lambda: Quantity(name="a b"), ConfigError, "identifier"),
        (lambda: Quantity("a", rank=-1), ConfigError, "rank=-1; wanted the number of tensor indices"),
        (lambda: Quantity("a", rank=10**9), ConfigError, "rank=1000000000; wanted at most 10 tensor indices"),
        (lambda: Quantity("a", rank=True), ConfigError, "rank=True"),
        (
            lambda: Quantity("a", rank=3, symmetry="ij=ji"),
            ConfigError,
            "wanted 3 different letters.*'ijk=jik'",
        ),
        (lambda: Quantity("a", rank=2, symmetry="ij=kk"), ConfigError, "'kk' is not a permutation of 'ij'"),
        (lambda: Quantity("a", rank=2, symmetry="ij=-ij"), ConfigError, "only the zero tensor"),
        (lambda: Quantity(name="a", per="atom"), ConfigError, "neither 'graph' nor 'node'"),
        (lambda: Quantity("a", wrt="not a name"), ConfigError, "the name of a field of the graph"),
        (lambda: Quantity("a", wrt="strain"), ConfigError, "wrt='strain' belongs to a gradient"),
        (lambda: Quantity("a", factor=-1.0), ConfigError, "factor=-1.0 belongs to a gradient"),
        (lambda: Quantity("a", per_volume=True), ConfigError, "per_volume=True belongs to a gradient"),
        (
            lambda: Quantity("a", gradient_of="b", factor=0.0),
            ConfigError,
            "factor=0.0; wanted a finite number",
        ),
        (lambda: Quantity(name="a", per="node", extensive=True), ConfigError, "not extensive"),
        (lambda: atomic_number(119), ConfigError, "0 .a plain point. to 118"),
    ],
)
def test_bad_models_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_quantities_say_what_they_are():
    assert quantity("forces").label == "forces (eV/Å)" and quantity("stress").shape() == (3, 3)
    assert Quantity(name="a").label == "a" and atomic_number("Si") == 14
    for known in KNOWN.values():
        if known.gradient_of is None:
            head = default_head(known)
            assert type(head) in HEADS.values() and head_from(head.hparams).hparams == head.hparams


@pytest.mark.parametrize("name", ATOMIC)
def test_initial_outputs_are_of_order_one(name):
    """So that `standardize` alone sets the scale: measured over ten random models of full size."""
    spread = []
    for seed in range(10):
        torch.manual_seed(seed)
        model = Model(BACKBONES[name](elements=ELEMENTS, cutoff=4.0), ["energy"]).eval()
        model.backbone.mean_neighbors.fill_(5.0)
        spread.append(model(molecule(seed))["energies"])
    rms = float(torch.cat(spread).square().mean().sqrt())
    assert 0.1 < rms < 10.0, rms


def test_nothing_global_changes():
    before = (torch.get_default_dtype(), torch.initial_seed(), torch.get_rng_state().clone())
    with torch.random.fork_rng():
        small("NequIP")(molecule())
    assert torch.get_default_dtype() == before[0] and torch.equal(torch.get_rng_state(), before[2])
    assert math.isfinite(before[1])


def test_a_declaration_cannot_change_what_a_known_quantity_is():
    with pytest.raises(
        ConfigError,
        match=r"'energy' is known and has extensive=True; this declaration has extensive=False\. Write 'energy'",
    ):
        quantity(Quantity("energy", unit="eV"))
    direct = Quantity("forces", per="node", rank=1, unit="eV/Å")  # predicted by a head of its own
    assert quantity(direct) is direct
