"""Models of weights: the audit and its controls, training, files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from molequi import weights
from molequi.errors import CheckpointError, ConfigError, DataError, ModelError, TrainingError
from molequi.weights import Architecture, Networks, NeuronGroup, WeightModel

SIZES = (2, 6, 5, 2)


def random(activation: str, count: int = 6, sizes=SIZES, dtype=torch.float64) -> Networks:
    generator = torch.Generator().manual_seed(0)
    return Networks.random(Architecture(sizes, activation), count, generator=generator, dtype=dtype)


def model(nets: Networks, outputs, **options) -> WeightModel:
    """A model whose weights are all random, those that begin at zero too."""
    torch.manual_seed(0)
    made = WeightModel(nets.architecture, outputs, channels=8, layers=2, **options)
    for value in made.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return made.double().standardize(nets)


@pytest.mark.parametrize("probes", [0, 4])
@pytest.mark.parametrize("outputs", [3, "weights"])
@pytest.mark.parametrize(
    "activation, symmetry",
    [("sine", "signs"), ("tanh", "permutations"), ("relu", "scales"), ("silu", "permutations")],
)
def test_the_audit_passes(activation, symmetry, outputs, probes):
    nets = random(activation)
    report = weights.audit(model(nets, outputs, symmetry=symmetry, probes=probes), nets, draws=4)
    report.raise_if_failed()
    checks = {"sine": ["sign"], "tanh": ["sign"], "relu": ["scale"]}.get(activation, [])
    assert [row.check for row in report.rows] == ["not zero", "permutation", *checks]
    judged = [row for row in report.rows[1:] if row.verdict == "pass"]
    assert len(judged) == 1 + (symmetry != "permutations") and all(row.maximum <= 1e-10 for row in judged)
    assert report.rows[1].float32 > 1e4 * report.rows[1].maximum > 0
    assert report.rows[1].quantity == ("new weights" if outputs == "weights" else "outputs")


@pytest.mark.parametrize("outputs", [3, "weights"])
def test_a_perceptron_on_flattened_weights_fails_with_its_error(outputs):
    """The control: the error is no round-off, and as large as the outputs."""
    nets = random("sine")
    report = weights.audit(model(nets, outputs, symmetry="none"), nets, draws=4)
    assert [row.verdict for row in report.rows] == ["pass", "fail", "fail"]
    assert all(row.maximum > 0.1 and row.ratio < 10 for row in report.rows[1:])
    with pytest.raises(ModelError, match="no round-off"):
        report.raise_if_failed()


def test_less_symmetry_than_asked_fails_in_this_check_alone():
    nets = random("sine")
    report = weights.audit(model(nets, 3, symmetry="permutations"), nets, group=NeuronGroup(SIZES, "signs"))
    assert [row.verdict for row in report.rows] == ["pass", "pass", "fail"]


def test_faults_put_in_are_found():
    nets = random("sine")
    sound = model(nets, 3)
    for layer, fault in (
        (sound.body.layers[0].mix, lambda layer, x, out: {a: v + 0.1 for a, v in out.items()}),
        (sound.body.layers[1], lambda layer, x, out: ({a: v.cumsum(1) for a, v in out[0].items()}, out[1])),
    ):
        handle = layer.register_forward_hook(fault)
        assert not weights.audit(sound, nets, draws=2).passed
        handle.remove()
    assert weights.audit(sound, nets, draws=2).passed
    assert not weights.audit(lambda some: torch.ones(len(some), 2).to(some.biases[0]), nets).passed
    assert weights.audit(lambda some: some.map(lambda v: 2 * v), nets).passed


def test_a_new_model_for_edits_changes_nothing():
    nets = random("sine")
    new = WeightModel(nets.architecture, "weights", channels=8).double()
    assert torch.equal(new(nets).flat(), nets.flat())


def test_training_learns_and_is_reproducible():
    """The norm of the hidden biases, of networks that were not seen; permuted ones have the same output."""
    nets = random("silu", 400, (1, 8, 8, 1), torch.float32)
    target = nets.biases[1].square().sum((1, 2))[:, None]
    target = (target - target.mean()) / target.std()
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        made = WeightModel(nets.architecture, 1, channels=16, layers=1)
        result = weights.fit(
            made,
            nets[:300],
            target[:300],
            valid=(nets[300:], target[300:]),
            epochs=20,
            lr=3e-2,
            batch_size=32,
        )
        runs.append(result.model.predict(nets[300:], batch_size=33))
    assert torch.equal(*runs)
    assert not result.model.training and len(result.history) == 20
    assert result.history[-1]["valid"] < 0.1 < 0.5 < result.history[0]["valid"]
    assert result.history[-1]["valid"] == pytest.approx(
        float((runs[0] - target[300:]).square().mean()), rel=1e-4
    )
    assert "valid" in str(result) and "valid" in result._repr_html_()


def test_classes_augmentation_and_processor_seconds():
    nets = random("relu", 60, (1, 4, 1), torch.float32)
    labels = (nets.biases[0].mean((1, 2)) > 0).long()
    result = weights.fit(
        WeightModel(nets.architecture, 2, channels=16, layers=1, symmetry="none"),
        nets, labels, valid=(nets, labels), epochs=10**6, max_seconds=1.0, augment=NeuronGroup(nets.architecture.sizes),
    )  # fmt: skip
    assert result.history[-1]["accuracy"] > 0.8 and 1.0 <= result.history[-1]["seconds"] < 3


def test_an_edit_is_trained_by_a_loss_of_the_new_networks():
    """Twice the function: the last map is multiplied by 2."""
    torch.manual_seed(0)
    nets, x = random("tanh", 64, (1, 6, 1), torch.float32), torch.linspace(-1, 1, 9)[:, None]
    wanted = 2 * nets(x)
    made = WeightModel(nets.architecture, "weights", channels=8, layers=1)
    before = float((made.predict(nets)(x) - wanted).square().mean())
    result = weights.fit(
        made, nets, wanted, loss=lambda new, y: (new(x) - y).square().mean(), epochs=30, lr=1e-2
    )
    after = float((result.model.predict(nets)(x) - wanted).square().mean())
    assert after < 0.1 * before


@pytest.mark.parametrize("outputs", [3, "weights"])
def test_files(tmp_path, outputs):
    nets = random("sine")
    made = model(nets, outputs, probes=3)
    found = weights.load(weights.save(made, tmp_path / "model.safetensors"))
    same = [one(nets) for one in (made.eval(), found)]
    rows = [one.flat() if isinstance(one, Networks) else one for one in same]
    assert torch.equal(*rows) and found.config() == made.config() and not found.training
    again = weights.load(weights.save(nets, tmp_path / "nets.safetensors"))
    assert again.architecture == nets.architecture and torch.equal(again.flat(), nets.flat())


def test_files_that_are_refused(tmp_path):
    path = weights.save(random("sine"), tmp_path / "nets.safetensors")
    with pytest.raises(CheckpointError, match="no such file; wanted networks"):
        weights.load(tmp_path / "missing.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        weights.load(path)
    path.write_bytes(whole[:20])
    with pytest.raises(CheckpointError, match="not a readable file"):
        weights.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="no file of molequi.weights"):
        weights.load(path)
    from molequi.checkpoint import digest

    for header, message in (
        ({"format": 99}, "format 99"),
        ({"format": 1, "kind": "WeightModel", "config": {}}, "sizes"),
    ):
        text, tensors = json.dumps(header), {"a": torch.ones(1)}
        save_file(tensors, path, metadata={"molequi.weights": text, "sha256": digest(text, tensors)})
        with pytest.raises(CheckpointError, match=message):
            weights.load(path)
    with pytest.raises(CheckpointError, match="ends in .safetensors"):
        weights.save(random("sine"), tmp_path / "nets.pt")
    with pytest.raises(ModelError, match="found dict"):
        weights.save({}, tmp_path / "x.safetensors")


NETS = random("relu", 4, dtype=torch.float32)


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda: WeightModel(NETS.architecture, 1, symmetry="scale"), ModelError, "did you mean 'scales'"),
        (lambda: WeightModel(NETS.architecture, 1, symmetry="signs"), ModelError, "relu have scales"),
        (lambda: WeightModel(NETS.architecture, 0), ModelError, "wanted a number of outputs"),
        (lambda: WeightModel(NETS.architecture, 1, layers=0), ConfigError, r"WeightModel\.layers: found 0"),
        (lambda: WeightModel(NETS.architecture, 1, channels=0), ConfigError, r"\.channels: found 0"),
        (lambda: WeightModel(NETS.architecture, 1, probes=-1), ConfigError, r"\.probes: found -1"),
        (lambda: WeightModel(NETS.architecture, 1, dropout=1.0), ConfigError, r"\.dropout: found 1.0"),
        (lambda: WeightModel(NETS.architecture, 1, probes=torch.ones(3, 5)), ModelError, "probes of shape"),
        (lambda: WeightModel(Architecture((2, 1)), 1), ModelError, "no hidden neurons"),
        (
            lambda: WeightModel(NETS.architecture, 1)(random("tanh")),
            ModelError,
            "the model reads 2-6-5-2, relu",
        ),
        (lambda: fitted(torch.zeros(3, 1)), DataError, "4 networks and 3 targets"),
        (lambda: fitted(torch.zeros(4, 2)), ConfigError, r"wanted real values of shape \(4, 1\)"),
        (lambda: fitted(torch.ones(4).long()), ConfigError, "from 1 to 1; the model has 1 outputs"),
        (lambda: fitted(torch.zeros(4, 1), loss="mae"), ConfigError, "loss 'mae' is not known"),
        (lambda: fitted(torch.zeros(4, 1), outputs="weights"), ConfigError, "wanted loss=f"),
        (lambda: fitted(torch.zeros(4, 1), epochs=0), ConfigError, r"fit\.epochs: found 0"),
        (lambda: fitted(torch.zeros(4, 1), lr=-1.0), ConfigError, r"fit\.lr: found -1"),
        (lambda: fitted(torch.zeros(4, 1), weight_decay=-1.0), ConfigError, r"fit\.weight_decay: found -1"),
        (
            lambda: fitted(torch.zeros(4, 1), loss=lambda x, y: x.sum() * float("nan")),
            TrainingError,
            "step 0",
        ),
        (lambda: weights.audit(lambda n: n, NETS, draws=0), ConfigError, "draws=0"),
        (
            lambda: weights.fit_fields(weights.grid(2), torch.ones(1, 5, 1)),
            DataError,
            r"values \(B, n, out\)",
        ),
        (lambda: weights.train_many(NETS, lambda n, k: n.flat().sum()), DataError, "one of each network"),
        (
            lambda: weights.train_many(NETS, lambda n, k: n.flat().sum(1) * float("inf")),
            TrainingError,
            "the loss of 4 of 4 networks is not finite",
        ),
    ],
)
def test_errors_say_what_was_found(act, error, message):
    with pytest.raises(error, match=message):
        act()


def fitted(targets, outputs=1, epochs=1, **options):
    return weights.fit(
        WeightModel(NETS.architecture, outputs, channels=4), NETS, targets, epochs=epochs, **options
    )


def test_many_networks_are_trained_as_each_alone():
    """Adam of PyTorch on one network, with its own learning rate and number of steps."""
    nets, x = random("tanh", 3, (1, 4, 1)), torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    rates, steps = torch.tensor([1e-2, 3e-3, 1e-3]).double(), [20, 10, 15]
    found = weights.train_many(
        nets, lambda some, step: (some(x) - x).square().mean((1, 2)), lr=rates, steps=steps, decay=False
    )
    for k in range(3):
        module = nets.module(k)
        optimizer = torch.optim.Adam(module.parameters(), lr=float(rates[k]))
        for _ in range(steps[k]):
            optimizer.zero_grad()
            (module(x) - x).square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(
            found[k].flat(), Networks.from_modules(module).flat(), rtol=1e-9, atol=1e-9
        )


def test_fields_fit_their_pictures():
    pictures = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))[..., None]
    nets = weights.fit_fields(weights.grid(4), pictures, hidden=[12, 12], steps=300)
    assert (nets(weights.grid(4)) - pictures).square().mean() < 1e-3 * pictures.var()


@pytest.mark.parametrize("activation, outputs", [("sine", 3), ("relu", "weights")])
def test_a_model_is_one_graph_of_the_compiler(activation, outputs):
    nets = random(activation)
    made = model(nets, outputs, probes=3)
    found = [one.flat() if isinstance(one, Networks) else one for one in (made(nets), compiled(made)(nets))]
    torch.testing.assert_close(*found)


def compiled(made):
    return torch.compile(made, backend="eager", fullgraph=True)
