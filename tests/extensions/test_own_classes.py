"""A backbone, head, reader, quantity and loss outside the package train, save, load, are audited, compile, run in ASE and from YAML."""

import csv
import math

import ase
import numpy as np
import pytest
import torch
from ase.io import write
from ase.units import Bohr, Hartree

import molequi as mq
from molequi.errors import CheckpointError, ConfigError, DataError, ModelError, TrainingWarning
from molequi.heads import Scalar
from molequi.nn import mlp

from .own_backbone import SchNet
from .own_head import Positive
from .own_loss import direction
from .own_reader import read_turbomole

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


@pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning")  # toy data
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


@pytest.fixture
def coordinates(tmp_path):
    """Six structures as Turbomole writes them, in Bohr and Hartree."""
    folder = tmp_path / "turbomole"
    folder.mkdir()
    for k, graph in enumerate(molecules(6)):
        lines = [
            f"{x / Bohr:.12f} {y / Bohr:.12f} {z / Bohr:.12f} {s}"
            for (x, y, z), s in zip(graph.pos, "chohch")
        ]
        (folder / f"{k}.coord").write_text("\n".join(["$coord", *lines, "$end"]))
        (folder / f"{k}.energy").write_text(str(float(graph.targets["energy"]) / Hartree))
    return folder


def test_a_reader_a_quantity_and_a_backbone_run_from_yaml(coordinates, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        f"data: {{turbomole: {{folder: {coordinates}, split: {{train: 4, valid: 2}}}}}}\n"
        "backbone: {SchNet: {cutoff: 3.0, channels: 8, layers: 1, radial: 6}}\n"
        "predict: [energy, {Positive: {quantity: hardness, sharpness: 2.0}}]\n"
        "train: {epochs: 1, batch_size: 2, loss: {energy: 1}, logging: {progress: false}, "
        f"out: {tmp_path / 'run'}}}\n"
    )
    own = OWN | {
        "readers": {"turbomole": read_turbomole},
        "quantities": {"hardness": mq.Quantity("hardness", unit="eV")},
    }
    with pytest.warns(
        mq.errors.TrainingWarning, match="hardness is predicted but not trained: it has no loss"
    ):
        result = mq.run(path, **own)
    graph, again = mq.connect(molecules(1)[0], 3.0), mq.load(result.out / "model.safetensors", **OWN)
    assert same(result.model.double(), again.double(), graph) and again(graph)["hardness"] > 0
    assert math.isclose(
        float(read_turbomole(coordinates)[0].targets["energy"]), float(graph.targets["energy"])
    )
    with pytest.raises(ConfigError, match=r"data\.turbomole: no such reader"):
        mq.run(path, **OWN, quantities=own["quantities"])
    with pytest.raises(ConfigError, match=r"data\.turbomole\.fodler"):
        mq.run(
            {
                "data": {"turbomole": {"fodler": "x"}},
                "backbone": "SchNet",
                "predict": "energy",
                "train": {"epochs": 1},
            },
            **own,
        )
    (coordinates / "0.coord").write_text("$coord\n0.0 0.0 c\n$end")
    with pytest.raises(DataError, match=r"0\.coord, line 2: found '0\.0 0\.0 c'; wanted"):
        mq.run(path, **own)


def test_data_of_an_own_reader_train_are_saved_and_audited(coordinates, tmp_path):
    data = read_turbomole(coordinates)
    model = mq.Model(SchNet(elements=data.elements, cutoff=3.0, channels=8, layers=1), ["energy"])
    parts = data.split({"train": 4, "valid": 2})
    result = mq.fit(model, **parts, epochs=2, batch_size=2, logging={"progress": False})
    assert result.history[1]["train_loss"] != result.history[0]["train_loss"]
    assert mq.audit(result.model.double(), data[:2], draws=2).passed
    mq.write_npz(data, tmp_path / "same.npz")
    again = mq.read_npz(tmp_path / "same.npz")
    assert again.digest == data.digest
    assert mq.evaluate(result.model, again).numbers() == mq.evaluate(result.model, data).numbers()


def test_a_loss_from_python_and_from_yaml(tmp_path):
    """Both give the same weights, which are not those without the term; the model file needs no loss to load."""
    forces = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3)
    graphs = [g.replace(targets={**g.targets, "forces": forces}) for g in molecules(6)]
    write(tmp_path / "own.xyz", [mq.readers.to_atoms(g) for g in graphs])
    settings = dict(epochs=2, batch_size=2, lr=1e-2, logging={"progress": False})

    def from_yaml(loss, name, **own):
        config = {
            "data": {"extxyz": {"path": str(tmp_path / "own.xyz"), "split": {"train": 4, "valid": 2}}},
            "backbone": {"SchNet": {"cutoff": 3.0, "channels": 8, "layers": 1, "radial": 6}},
            "predict": ["energy", "forces"],
            "train": settings | {"loss": loss, "out": str(tmp_path / name)},
        }
        return mq.run(config, backbones={"SchNet": SchNet}, **own)

    yaml = from_yaml({"energy": 1, "direction": 5}, "yaml", losses={"direction": direction})
    plain = from_yaml({"energy": 1}, "plain")
    parts = mq.read_extxyz(tmp_path / "own.xyz").split({"train": 4, "valid": 2}, seed=0)
    torch.manual_seed(0)
    model = mq.Model(
        SchNet(elements=parts["train"].elements, cutoff=3.0, channels=8, layers=1, radial=6),
        ["energy", "forces"],
    )
    python = mq.fit(
        model,
        parts["train"],
        parts["valid"],
        loss=[mq.Loss("energy"), mq.Loss(direction, weight=5)],
        out=tmp_path / "python",
        **settings,
    )
    graph = mq.connect(molecules(1)[0], 3.0)
    assert same(yaml.model, python.model, graph) and not same(yaml.model, plain.model, graph)
    assert same(
        yaml.model, mq.load(tmp_path / "yaml" / "model.safetensors", backbones={"SchNet": SchNet}), graph
    )
    with open(tmp_path / "yaml" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:  # the own term has columns, and the loss is the weighted sum
        energy = float(row["valid_energy_per_atom_rmse"]) ** 2
        total = energy + 5 * float(row["valid_loss_direction"])
        assert float(row["valid_loss"]) == pytest.approx(total, rel=1e-5)
        assert math.isfinite(float(row["train_loss_direction"]))
    with pytest.raises(ConfigError, match="loss.direction is 5.*the model does not predict 'direction'"):
        from_yaml({"energy": 1, "direction": 5}, "unknown")


class Scaled(mq.Head):
    """A head that says nothing of its options."""

    rank, kind = 0, "value"

    def __init__(self, item, *, factor: float = 1.0, **more):
        super().__init__(item, **more)
        self.factor = factor

    def make(self, channels):
        self.net = mlp([channels["0e"], 4, 1])

    def forward(self, graph, features):
        return self.factor * self.pool(self.net(features.scalars)[:, 0], graph, features)


def test_the_options_of_an_own_head_are_recorded(tmp_path):
    torch.manual_seed(0)
    backbone = SchNet(elements=["H", "C", "O"], cutoff=3.0, channels=8, layers=1, radial=6)
    model = mq.Model(backbone, [Scaled(mq.Quantity("length"), factor=2.0, pool="attention")]).eval()
    path = mq.save(model, tmp_path / "m.safetensors")
    again = mq.load(path, backbones={"SchNet": SchNet}, heads={"Scaled": Scaled})
    assert again.heads["length"].options == {"factor": 2.0, "pool": "attention"}
    assert again.heads["length"].factor == 2.0
    assert same(model, again, mq.connect(molecules(1)[0], 3.0))
    assert Scalar("gap").options == {} and Scalar("gap", pool="sum").options == {"pool": "sum"}


@pytest.mark.parametrize(
    "wrong, found",
    [
        (lambda x: x.mean(), r"shape \(\), torch.float32"),
        (lambda x: x[:, None], r"shape \(1, 1\), torch.float32"),
        (lambda x: None, "NoneType"),
        (lambda x: x.long(), r"shape \(1,\), torch.int64"),
    ],
)
def test_what_an_own_head_returns_is_checked(wrong, found):
    class Wrong(Scaled):
        def forward(self, graph, features):
            return wrong(super().forward(graph, features))

    backbone = SchNet(elements=["H", "C", "O"], cutoff=3.0, channels=8, layers=1, radial=6)
    model = mq.Model(backbone, [Wrong(mq.Quantity("length"))])
    with pytest.raises(ModelError, match=rf"Wrong\.forward: found {found}; wanted a tensor of shape \(1,\)"):
        model(mq.connect(molecules(1)[0], 3.0))


@pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning")  # toy data
def test_a_loss_of_the_wrong_shape(tmp_path):
    data = mq.Dataset(molecules(4))
    with pytest.raises(
        ConfigError, match=r"loss 'per_atom': found shape \(12,\); wanted a tensor of shape \(\)"
    ):
        mq.fit(
            build(),
            data,
            data,
            epochs=1,
            batch_size=2,
            loss=[mq.Loss("energy"), mq.Loss(lambda out, graph: out["forces"][:, 0], name="per_atom")],
            logging={"progress": False},
        )


@pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning")  # toy data
def test_a_loss_without_gradient_is_told(tmp_path):
    data = mq.Dataset(molecules(4))

    def detached(out, graph):
        return out["energy"].detach().square()

    with pytest.warns(TrainingWarning, match="loss 'detached': its value has no gradient"):
        mq.fit(build(), data, data, epochs=1, loss=[mq.Loss("energy"), detached])


def test_own_classes_and_functions_are_checked(tmp_path):
    path = mq.save(build(), tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError, match=r'found list; wanted classes by the names.*backbones=\{"MyClass"'
    ):
        mq.load(path, backbones=[SchNet], heads=OWN["heads"])
    with pytest.raises(ConfigError, match=r"backbones=\[.*found list; wanted objects by the names"):
        mq.run({}, backbones=[SchNet])
    with pytest.raises(ConfigError, match=r"wanted the class, .* SchNet and not an object of it"):
        mq.run({}, backbones={"SchNet": build().backbone})
    with pytest.raises(ConfigError, match=r"heads\['Positive'\].*wanted the class, a subclass of Head"):
        mq.run({}, heads={"Positive": SchNet})
    with pytest.raises(
        ConfigError, match=r"cannot be called with two arguments; wanted a function \(predictions"
    ):
        mq.Loss(lambda predictions: predictions)
