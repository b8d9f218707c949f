"""A backbone and a head in files outside the package train, save, load, are audited, compile and run in ASE."""

import ase
import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import CheckpointError, ConfigError, ModelError
from molequi.heads import Scalar

from .own_backbone import SchNet
from .own_head import Positive

OWN = {"backbones": {"SchNet": SchNet}, "heads": {"Positive": Positive}}


def molecules(count: int) -> list[mq.Graph]:
    generator = torch.Generator().manual_seed(0)
    corners = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 3) * 1.2
    out = []
    for _ in range(count):
        pos = corners[:6] + 0.1 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
        mean = (pos[:, None] - pos[None]).norm(dim=2).mean()
        targets = {
            "energy": mean.reshape(1),
            "forces": torch.zeros(6, 3, dtype=torch.float64),
            "gap": mean.reshape(1) / 2,
        }
        out.append(mq.Graph.single(pos, [6, 1, 8, 1, 6, 1], targets=targets))
    return out


def build(**options) -> mq.Model:
    torch.manual_seed(0)
    backbone = SchNet(elements=["H", "C", "O"], cutoff=3.0, channels=8, layers=2, radial=6, **options)
    return mq.Model(backbone, ["energy", "forces", Positive("gap", sharpness=2.0)])


@pytest.fixture
def model() -> mq.Model:
    return build().double().eval()


def same(a, b, graph):
    first, second = a(graph), b(graph)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_it_trains_and_its_file_loads(tmp_path):
    data = mq.Dataset(molecules(6))
    result = mq.fit(
        build(),
        data,
        data,
        epochs=2,
        batch_size=3,
        lr=1e-3,
        out=tmp_path / "run",
        logging={"progress": False},
    )
    path = tmp_path / "run" / "model.safetensors"
    again = mq.load(path, **OWN)
    graph = mq.connect(molecules(1)[0], 3.0)
    assert same(result.model.double(), again.double(), graph)
    assert type(again.backbone) is SchNet and again.heads["gap"].options == {"sharpness": 2.0}
    assert mq.evaluate(again, data)["energy_mae"] > 0
    found = mq.predict(again, data)
    assert len(found) == 6 and all(row["gap"] > 0 for row in found)


def test_ensembles_of_own_models(tmp_path, model):
    other = build().double()
    with torch.no_grad():
        other.backbone.vectors.weight.add_(0.1)
        other.backbone.layers[0].filter[0].weight.add_(0.1)
    ensemble = mq.Ensemble([model, other])
    again = mq.load(mq.save(ensemble, tmp_path / "two.safetensors"), **OWN)
    assert same(ensemble, again, mq.connect(molecules(1)[0], 3.0)) and again.own_classes == OWN


def test_its_layers_are_audited(model):
    graphs = molecules(2)
    assert mq.audit(model, graphs, draws=2).passed
    layers = {layer.layer for layer in mq.lie_errors(model, graphs).row("energy").layers}
    assert {"backbone.embedding", "backbone.layers.0", "backbone.layers.1", "backbone"} <= layers
    del SchNet.states
    try:
        layers = {layer.layer for layer in mq.lie_errors(model, graphs).row("energy").layers}
    finally:
        SchNet.states = STATES
    assert not any(name.startswith("backbone.") for name in layers)


STATES = SchNet.states


def test_it_runs_in_ase_and_travels_to_other_processes(model, tmp_path):
    atoms = ase.Atoms("CHOHCH", molecules(1)[0].pos.numpy())
    path = mq.save(model, tmp_path / "own.safetensors")
    calculator = mq.Calculator(mq.load(path, **OWN))
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    graph = mq.connect(molecules(1)[0], 3.0)
    assert energy == float(model(graph)["energy"]) and calculator.results["gap"] > 0
    assert np.array_equal(forces, model(graph)["forces"].numpy())
    with pytest.raises(CheckpointError, match=r"mq\.load\(path, heads=\{'Positive': Positive\}\)"):
        mq.Calculator(path)
    function, arguments = calculator.__reduce__()
    assert arguments[-1] == OWN
    again = ase.Atoms("CHOHCH", molecules(1)[0].pos.numpy(), calculator=function(*arguments))
    assert again.get_potential_energy() == energy


def test_it_compiles(model):
    graph = mq.connect(molecules(1)[0], 3.0)
    plain, fast = model(graph), mq.accelerate(build().double().eval())(graph)
    for name, value in plain.items():
        assert torch.allclose(value, fast[name], rtol=0, atol=1e-10)


def test_inputs_reach_it():
    model = build(inputs=mq.Inputs(charge=True)).double().eval()
    graph = mq.connect(molecules(1)[0], 3.0)
    energies = [float(model(graph.replace(charge=torch.tensor([q])))["energy"]) for q in (0.0, 1.0)]
    assert energies[0] != energies[1]
    with pytest.raises(ConfigError, match=r"SchNet\.inputs\.velocity: found True; SchNet cannot read it"):
        build(inputs=mq.Inputs(velocity=True))


def test_a_file_says_what_to_hand_over(model, tmp_path):
    path = mq.save(model, tmp_path / "own.safetensors")
    with pytest.raises(
        CheckpointError, match=r"backbone 'SchNet' is not known.*backbones=\{'SchNet': SchNet\}"
    ):
        mq.load(path, heads={"Positive": Positive})
    with pytest.raises(
        CheckpointError, match=r"head 'Positive' is not known.*heads=\{'Positive': Positive\}"
    ):
        mq.load(path, backbones={"SchNet": SchNet})
    with pytest.raises(CheckpointError, match="wanted a subclass of Backbone"):
        mq.load(path, backbones={"SchNet": Positive}, heads={"Positive": Positive})
    with pytest.raises(CheckpointError, match="molequi has a Backbone of this name"):
        mq.load(path, backbones={"SchNet": SchNet, "EGNN": SchNet}, heads={"Positive": Positive})
    with pytest.raises(CheckpointError, match="molequi has a Head of this name"):
        mq.load(path, backbones={"SchNet": SchNet}, heads={"Positive": Positive, "Scalar": Positive})


def test_names_and_options_that_a_file_cannot_hold(tmp_path):
    class EGNN(SchNet):
        pass

    with pytest.raises(ModelError, match=r"EGNN \(.*own_classes\): molequi has a class of this name"):
        mq.save(mq.Model(EGNN(elements=["H"])), tmp_path / "m.safetensors")

    class Filtered(SchNet):
        def __init__(self, *, how=torch.tanh) -> None:
            super().__init__(elements=["H"])

    with pytest.raises(ModelError, match=r"Filtered\.how: found builtin.*a model file holds numbers"):
        mq.save(mq.Model(Filtered()), tmp_path / "m.safetensors")

    class Vector(Scalar):
        pass

    with pytest.raises(ModelError, match="Vector .*molequi has a class of this name"):
        mq.save(mq.Model(SchNet(elements=["H"]), [Vector("energy")]), tmp_path / "m.safetensors")
