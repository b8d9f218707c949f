"""Responses to an electric field: derivatives of one energy, net charges, and what is said if something is missing."""

import importlib

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

import molequi as mq
from molequi.config.inputs import with_inputs
from molequi.config.names import Names
from molequi.config.schema import build_model
from molequi.data.checks import check_same_quantities
from molequi.errors import ConfigError, DataError, ModelError
from molequi.graph import FIELDS
from molequi.models import BACKBONES
from molequi.quantities import KNOWN, as_label
from molequi.symmetry import Group, Transform

FIELD = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
POS = torch.tensor(
    [[0.1, 0.0, 0.0], [0.9, 0.3, -0.2], [-0.4, 0.8, 0.3], [1.2, 1.1, 0.9]], dtype=torch.float64
)


def structure(**given) -> mq.Graph:
    return mq.Graph.single(POS, ["O", "H", "H", "O"], **given)


def model(kind: str = "PaiNN", *, charge: bool = False, **options) -> mq.Model:
    torch.manual_seed(0)
    inputs = mq.Inputs(electric_field=True, charge=charge)
    small = {"channels": 8, "layers": 1} | (
        {"l_max": 1} if kind in ("MACE", "Equiformer", "RelaxedNequIP") else {}
    )
    net = getattr(mq, kind)(elements=["H", "O"], cutoff=4.0, inputs=inputs, **small, **options)
    return mq.Model(net, ["energy", "forces", *mq.response()]).double().eval()


def outputs(net: mq.Model, graph: mq.Graph, **options) -> dict[str, torch.Tensor]:
    return net(mq.connect(graph, net.cutoff, net.k), **options)


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbones_read_the_field_or_say_so(kind):
    if kind == "PointHierarchy":
        with pytest.raises(
            ConfigError, match=r"inputs\.electric_field: found True; PointHierarchy cannot read it"
        ):
            mq.PointHierarchy(elements=["X"], inputs=mq.Inputs(electric_field=True))
        return
    net, graph = model(kind), structure(electric_field=FIELD[0])
    out = outputs(net, graph)
    step = torch.tensor([[1e-5, -2e-5, 1.5e-5]], dtype=torch.float64)
    ahead, behind = (outputs(net, graph.replace(electric_field=FIELD + s * step)) for s in (1, -1))
    for name, parent in (("dipole", "energy"), ("polarizability", "dipole")):
        slope = (ahead[parent] - behind[parent]) / 2 * (-1 if name == "dipole" else 1)
        found = (out[name] * step).sum(-1)
        assert float((slope - found).abs().max()) < 1e-6 * float(found.abs().max()) + 1e-12
        assert float(found.abs().max()) > 1e-9
    if net.group != "O(n)":
        return  # its finite group is measured by the audit
    turn = Transform.random(
        Group(name="O(n)", dim=3), proper=False, generator=torch.Generator().manual_seed(1)
    )
    for name, value in outputs(net, turn.graph(graph)).items():
        if name in net.quantities:
            wanted = turn.value(net.quantities[name], out[name])
            torch.testing.assert_close(value, wanted, atol=1e-9, rtol=1e-8)
    alone = outputs(net, graph.replace(electric_field=turn.graph(graph).electric_field))
    assert float((alone["energy"] - out["energy"]).abs()) > 1e-9  # the field alone does not turn


def test_no_field_is_a_field_of_zero():
    net, plain = model(), structure()
    zero, field = structure(electric_field=[0, 0, 0]), structure(electric_field=FIELD[0])
    together = outputs(net, mq.collate([plain, field]))
    for name, value in outputs(net, plain).items():
        assert torch.equal(value, outputs(net, zero)[name])
        rows = slice(4) if value.shape[0] == 4 else slice(1)
        torch.testing.assert_close(together[name][rows], value, atol=1e-10, rtol=1e-8)
    assert not torch.equal(outputs(net, field)["energy"], outputs(net, zero)["energy"])


@pytest.mark.parametrize("kind", [kind for kind in BACKBONES if kind != "PointHierarchy"])
def test_third_derivatives(kind):
    """Losses of polarizabilities and Born charges are differentiated through three derivatives. Those of
    torch's layer norm are wrong.
    """
    net = model(kind)
    # half of the backbones in a periodic cell, where dipoles are only defined modulo charges times lattice vectors
    cell = {"cell": 4.5 * torch.eye(3), "pbc": True} if len(kind) % 2 else {}
    graph = mq.connect(structure(**cell), net.cutoff)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 3, 3, generator=generator, dtype=torch.float64)

    def responses(pos, field):
        out = net(graph.replace(pos=pos, electric_field=field), create_graph=True)
        return (out["polarizability"] * weights[:1]).sum() + (out["born_charges"] * weights[1:]).sum()

    given = (graph.pos.clone().requires_grad_(), FIELD.clone().requires_grad_())
    slopes = torch.autograd.grad(responses(*given), given)
    steps = [1e-5 * torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in given]
    ahead, behind = (
        float(responses(*(x.detach() + s * d for x, d in zip(given, steps))).detach()) for s in (1, -1)
    )
    found = float(sum((a * d).sum() for a, d in zip(slopes, steps)))
    assert found == pytest.approx((ahead - behind) / 2, rel=1e-4) and abs(found) > 1e-9
    net.zero_grad()
    responses(*given).backward()
    name, weight = max(
        net.named_parameters(), key=lambda p: 0 if p[1].grad is None else float(p[1].grad.abs().max())
    )
    index, values = int(weight.grad.abs().argmax()), []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            weight.view(-1)[index] += step
        values.append(float(responses(*given).detach()))
    slope = (values[0] - values[1]) / 2e-5
    assert slope == pytest.approx(float(weight.grad.view(-1)[index]), rel=1e-4), name


def test_born_charges_are_derivatives_of_forces_and_of_a_predicted_dipole():
    net, graph = model(), mq.connect(structure(electric_field=FIELD[0]), 4.0)
    field = FIELD.clone().requires_grad_()
    out = net(graph.replace(electric_field=field), create_graph=True)
    rows = [torch.autograd.grad(f, field, retain_graph=True)[0][0] for f in out["forces"].flatten()]
    other = torch.stack(rows).reshape(4, 3, 3).transpose(1, 2)
    assert (
        float((other - out["born_charges"]).detach().abs().max()) < 1e-12 < float(other.detach().abs().max())
    )
    plain = mq.Model(mq.PaiNN(elements=["H", "O"], channels=8), ["dipole", "born_charges"]).double().eval()
    graph = mq.connect(structure(), plain.cutoff)
    moved = graph.pos.clone()
    moved[1, 2] += 1e-5
    back = 2 * graph.pos - moved
    slope = (plain(graph.replace(pos=moved))["dipole"] - plain(graph.replace(pos=back))["dipole"])[0] / 2e-5
    torch.testing.assert_close(plain(graph)["born_charges"][1, :, 2], slope, atol=1e-4, rtol=1e-4)


def test_a_net_charge_is_pushed_by_the_field():
    net = model(charge=True)
    graph, step = structure(charge=2, electric_field=FIELD[0]), torch.tensor([1.0, 2.0, -3.0]).double()
    out, moved = outputs(net, graph), outputs(net, graph.replace(pos=graph.pos + step))
    torch.testing.assert_close(out["forces"].sum(0), 2 * FIELD[0])
    torch.testing.assert_close(out["born_charges"].sum(0), 2 * torch.eye(3).double())
    torch.testing.assert_close(moved["dipole"] - out["dipole"], 2 * step[None])
    torch.testing.assert_close(moved["energy"] - out["energy"], -2 * FIELD @ step)
    torch.testing.assert_close(out["energies"].sum()[None], out["energy"])
    neutral = outputs(net, graph.replace(charge=torch.zeros(1).double()))
    assert float(neutral["forces"].sum(0).abs().max()) < 1e-12
    # the position of a lattice in space means nothing, so that its energy is as without a net charge
    cell = structure(charge=2, electric_field=FIELD[0], cell=5 * torch.eye(3), pbc=True)
    assert float(outputs(net, cell)["forces"].sum(0).abs().max()) < 1e-12
    batch = outputs(net, mq.collate([graph, cell]))
    torch.testing.assert_close(batch["forces"][:4], out["forces"], atol=1e-10, rtol=1e-8)


def test_a_field_that_would_be_ignored_is_an_error():
    net = mq.Model(mq.PaiNN(elements=["H", "O"]), ["energy"])
    assert outputs(net, structure(electric_field=[0, 0, 0]))["energy"].shape == (1,)
    graph = mq.collate([structure(), structure(electric_field=[0, 0, 0.5])])
    message = (
        r"structure 1 of the batch is in an electric field of \[0\.0, 0\.0, 0\.5\] V/Å.*electric_field=True"
    )
    with pytest.raises(ModelError, match=message):
        outputs(net, graph)
    with pytest.raises(ModelError, match=r"such as PaiNN\(inputs=Inputs\(electric_field=True\), …\)"):
        outputs(mq.Model(mq.PaiNN(elements=["H", "O"]), ["energy", *mq.response("dipole")]), structure())
    with pytest.raises(
        ModelError, match=r"takes 0 vectors of each node .*besides the electric field; found 1"
    ):
        outputs(model(), structure(vec=torch.ones(4, 1, 3)))


def test_node_vectors_beside_the_field():
    inputs = mq.Inputs(electric_field=True, node_vectors=1)
    assert inputs.vectors == 2 and inputs.used == ("node_vectors", "electric_field")
    net = mq.Model(mq.NequIP(elements=["H", "O"], channels=8, inputs=inputs), ["energy"]).eval()
    graph = structure(vec=torch.ones(4, 1, 3), electric_field=FIELD[0])
    assert outputs(net, graph)["energy"] != outputs(net, graph.replace(electric_field=None))["energy"]
    assert mq.Inputs(electric_field=True, charge=True).vectors == 1


def test_declarations():
    dipole, alpha, born = mq.response()
    assert dipole.formula == "-∂energy/∂electric_field" and alpha.symmetric and born == KNOWN["born_charges"]
    assert mq.response("polarizability") == [alpha]
    assert as_label(dipole) == KNOWN["dipole"] and as_label(KNOWN["energy"]) == KNOWN["energy"]
    with pytest.raises(ConfigError, match=r"response 'dipol' is not known.*'dipole'.*Wanted some of dipole"):
        mq.response("dipol")
    config = {
        "backbone": {"PaiNN": {"inputs": {"electric_field": True}, "channels": 8}},
        "predict": [
            "energy",
            {"name": "dipole", "gradient_of": "energy"},
            {"name": "polarizability", "gradient_of": "dipole"},
            "born_charges",
        ],
    }
    net = build_model(config, ["H", "O"])
    assert [net.quantities[q.name] for q in mq.response()] == mq.response()
    assert mq.Model.from_hparams(net.hparams).quantities == net.quantities
    assert FIELDS["electric_field"].unit == "V/Å"


def test_labels_of_responses_are_those_of_the_known_quantities(tmp_path):
    net = model().float().train()
    graphs = []
    for k in range(6):
        targets = {"energy": torch.ones(1), "dipole": torch.full((1, 3), 0.1 * k)}
        graphs.append(structure(targets=targets).replace(pos=POS + 0.05 * k * POS.flip(0)))
    known = {name: KNOWN[name] for name in ("energy", "dipole")}
    data = mq.Dataset(graphs, quantities=known)
    result = mq.fit(net, data[:4], data[4:], epochs=1, loss={"dipole": 1}, logging={"progress": False})
    assert result.model.quantities["dipole"].gradient_of == "energy"
    backwards = mq.Quantity(
        "dipole", rank=1, unit="e Å", extensive=True, gradient_of="energy", wrt="electric_field", factor=1.0
    )
    wrong = mq.Model(net.backbone, ["energy", backwards])
    with pytest.raises(ConfigError, match=r"'dipole' has gradient_of='energy'.*factor=1\.0 in the model"):
        check_same_quantities(wrong.quantities, data)


def test_the_calculator_takes_the_field_of_the_atoms():
    atoms, net = molecule("H2O"), model()
    atoms.calc = mq.Calculator(net)
    free = atoms.get_potential_energy()
    assert atoms.get_dipole_moment().shape == (3,)
    assert atoms.calc.get_property("born_charges", atoms).shape == (3, 3, 3)
    atoms.info["electric_field"] = [0.0, 0.0, 0.5]
    assert atoms.get_potential_energy() != free
    found = mq.predict(net, [atoms], progress=False)[0]["energy"]
    assert found == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    plain = molecule("H2O")
    plain.info["electric_field"] = [0.0, 0.0, 0.5]
    plain.calc = mq.Calculator(mq.Model(mq.PaiNN(elements=["H", "O"]), ["energy"]))
    with pytest.raises(ModelError, match="is in an electric field"):
        plain.get_potential_energy()


@pytest.mark.parametrize("charge", [False, True])
def test_models_that_read_a_field_are_compiled(monkeypatch, charge):
    program = importlib.import_module("molequi.accelerate")
    monkeypatch.setattr(program, "BACKEND", lambda traced, inputs: traced)
    net = model(charge=charge).predicting(["energy", "forces"])
    given = {"charge": 1} if charge else {}
    graph = mq.connect(structure(electric_field=FIELD[0], **given), net.cutoff)
    plain = net(graph)
    fast = mq.accelerate(net)(graph)
    assert sum(map(len, net.program.functions.values())) == 1
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, atol=1e-12, rtol=1e-10)


def in_fields(path=None, *, charge=None, count=24) -> list:
    """Waters, every second one in a field."""
    frames = []
    for k in range(count):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        if k % 2:
            atoms.info["electric_field"] = np.array([0.0, 0.0, 0.1])
        if charge is not None:
            atoms.info["charge"] = charge
        atoms.calc = SinglePointCalculator(atoms, energy=0.01 * k, forces=np.zeros((3, 3)))
        frames.append(atoms)
    if path is not None:
        ase.io.write(path, frames, format="extxyz")
    return frames


def test_files_may_mix_structures_in_a_field_and_others(tmp_path):
    frames = in_fields(tmp_path / "mixed.xyz")
    data = mq.read_extxyz(tmp_path / "mixed.xyz")
    assert [g.electric_field.tolist() for g in data[:2]] == [[[0, 0, 0]], [[0, 0, 0.1]]]
    net = model()
    wanted = [float(mq.predict(net, [atoms], progress=False)[0]["energy"]) for atoms in frames[:2]]
    for given in (frames, tmp_path / "mixed.xyz"):
        found = [float(row["energy"]) for row in mq.predict(net, given, progress=False)[:2]]
        assert found == pytest.approx(wanted, abs=1e-7)  # files round positions
    assert with_inputs("PaiNN", {"train": data}, Names()) == {"PaiNN": {"inputs": {"electric_field": True}}}
    assert with_inputs("PaiNN", {"train": data[::2]}, Names()) == "PaiNN"


@pytest.mark.parametrize("charge", [None, 1])
def test_data_in_a_field_are_linted(tmp_path, charge):
    in_fields(tmp_path / "mixed.xyz", charge=charge)
    assert "PaiNN of 64 channels" in str(mq.lint(tmp_path / "mixed.xyz").costs)


def test_an_ion_in_a_field_needs_a_model_that_reads_the_charge(tmp_path):
    net, graph = model(), structure(charge=1, electric_field=FIELD[0])
    message = r"has the charge 1 .*PaiNN does not read the charge.*Inputs\(charge=True, electric_field=True\)"
    with pytest.raises(ModelError, match=message):
        outputs(net, graph)
    outputs(net, graph.replace(electric_field=0 * FIELD))  # no field: nothing is pushed
    outputs(net, structure(charge=1, electric_field=FIELD[0], cell=5 * torch.eye(3), pbc=True))
    atoms = in_fields(charge=1)[1]
    atoms.calc = mq.Calculator(net)
    with pytest.raises(ModelError, match=message):
        atoms.get_forces()
    with pytest.raises(DataError, match="the charge 1 in an electric field, which pushes it"):
        mq.predict(net, in_fields(charge=1), progress=False)
    atoms.info["electric_field"] = [True, False, False]
    with pytest.raises(DataError, match=r"electric_field is \[True, False, False\]; wanted numbers in V/Å"):
        atoms.get_forces()


def test_own_backbones_declare_that_they_read_the_field():
    """One that ignores `Graph.vec` would have no response."""

    class Blind(mq.Backbone):
        group = "O(n)"

        def __init__(self, *, elements, inputs=None):
            super().__init__(elements=elements, cutoff=None, inputs=inputs)
            self.out = {"0e": 1}

        def forward(self, graph):
            ones = graph.pos.new_ones(graph.num_nodes, 1, 1)
            return mq.Features(blocks={"0e": ones}, coordination=ones[:, 0, 0])

    with pytest.raises(ConfigError, match="Blind cannot read it, only charge"):
        Blind(elements=["H"], inputs=mq.Inputs(electric_field=True))
    Blind.accepts = (*mq.Backbone.accepts, "electric_field")
    Blind(elements=["H"], inputs=mq.Inputs(electric_field=True))


def test_names_of_responses_are_text():
    with pytest.raises(ConfigError, match=r"found \['dipole'\]; wanted names, as in mq\.response"):
        mq.response(["dipole"])
