"""A model file is either whole and true or refused."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from molequi import checkpoint
from molequi.checkpoint import load, save
from molequi.ensemble import Ensemble
from molequi.errors import CheckpointError, ModelError
from molequi.features import Features
from molequi.graph import Graph
from molequi.model import Model
from molequi.models import BACKBONES, Backbone
from molequi.neighbors import connect
from molequi.nn import edges_of
from molequi.training import fit, trainer
from molequi.upgrades import FORMAT, upgrade
from molequi.util.digests import weights_digest

SMALL = {
    "EGNN": dict(channels=8, layers=1),
    "Equiformer": dict(channels=4, hidden=4, layers=2, l_max=1),
    "GauntACE": dict(channels=4, l_max=1),
    "GroupConvNet": dict(channels=4, layers=1, group="T"),
    "MACE": dict(channels=4, l_max=1),
    "NequIP": dict(channels=4, layers=2, l_max=1),
    "SevenNet": dict(channels=4, layers=2, l_max=1),
    "NequIPGNN": dict(channels=4, layers=2, l_max=1),
    "PaiNN": dict(channels=8, layers=2),
    "RelaxedEGNN": dict(channels=8, layers=1),
    "RelaxedNequIP": dict(channels=4, layers=2, l_max=1),
    "So3krates": dict(channels=8, layers=2, l_max=2),
    "Transformer": dict(channels=8, layers=2),
}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model(BACKBONES["NequIP"](elements=["H", "O"], cutoff=3.0, **SMALL["NequIP"])).eval()


GRAPH = connect(Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1]), 3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SMALL)
def test_round_trip_is_bit_equal(name, dtype, tmp_path):
    model = (
        Model(BACKBONES[name](elements=["H", "O"], cutoff=3.0, **SMALL[name]), ["energy", "forces", "dipole"])
        .to(dtype)
        .eval()
    )
    model.heads["energy"].reference_energies[8] = -2041.123456789012
    save(model, tmp_path / "m.safetensors", metadata={"note": "å"})
    again = load(tmp_path / "m.safetensors")
    assert again.metadata == {"note": "å"} and again.dtype == dtype and not again.training
    assert again.heads["energy"].reference_energies[8] == -2041.123456789012
    for key, value in model(GRAPH).items():
        assert torch.equal(value, again(GRAPH)[key]), key


def test_device_and_precision_by_argument(model, tmp_path):
    save(model, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors", dtype="float64").dtype == torch.float64
    with pytest.raises(ModelError, match="wanted 'float32' or 'float64'"):
        load(tmp_path / "m.safetensors", dtype="float8")
    with pytest.raises(ModelError, match="device='quantum'"):
        load(tmp_path / "m.safetensors", device="quantum")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA"):
            load(tmp_path / "m.safetensors", device="cuda")


def test_b15_flipped_bytes_and_truncation_are_refused(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save(model, path)
    whole = path.read_bytes()
    reference = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for k in range(300):
        damaged = bytearray(whole)
        place = int(torch.randint(len(whole), (1,), generator=generator))
        if k % 3:
            damaged[place] ^= 1 << int(torch.randint(8, (1,), generator=generator))
        else:
            damaged = damaged[:place]
        path.write_bytes(damaged)
        try:
            loaded = load(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert all(torch.equal(value, reference[name]) for name, value in loaded.state_dict().items())
    assert refused >= 295


def rewrite(path, change):
    """Change the header of a model file and make its digest right again."""
    header, tensors = checkpoint.read(path)
    header = change(header) or header
    text = json.dumps(header, sort_keys=True)
    save_file(tensors, path, metadata={"molequi": text, "sha256": checkpoint.digest(text, tensors)})


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda h: h.update(format=99), "format 99 .* Update molequi"),
        (lambda h: h["model"].update(backbone="Sequential"), "'Sequential' is not known"),
        (lambda h: h["model"]["options"].update(channels=5), "do not fit"),
        (lambda h: h["model"]["options"].update(colour=5), "colour"),
        (
            lambda h: h["model"]["predict"].append({"head": "os.system", "quantity": {"name": "x"}}),
            "head 'os.system' is not known",
        ),
        (lambda h: h.pop("model"), "cannot be built"),
    ],
)
def test_b16_b17_foreign_descriptions_are_refused(model, tmp_path, change, words):
    path = tmp_path / "m.safetensors"
    save(model, path)
    rewrite(path, lambda h: change(h) and None)
    with pytest.raises(CheckpointError, match=words):
        load(path)


@pytest.mark.parametrize("number", range(1, checkpoint.FORMAT))
def test_past_formats_without_a_description_are_refused(model, tmp_path, number):
    path = tmp_path / "m.safetensors"
    save(model, path)
    rewrite(path, lambda header: {"format": number, "metadata": header["metadata"]})
    with pytest.raises(CheckpointError, match="its description of the model cannot be built"):
        load(path)


def test_other_files_are_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not one that molequi wrote"):
        load(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable model file"):
        load(tmp_path / "text.safetensors")
    with pytest.raises(CheckpointError, match="ends in .safetensors"):
        save(model, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(model, tmp_path / "missing" / "m.safetensors")


def test_a37_a_pickle_in_disguise_runs_nothing(tmp_path):
    import pickle

    class Probe:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Probe()))
    with pytest.raises(CheckpointError):
        load(tmp_path / "evil.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_header_longer_than_the_file_is_refused(model, tmp_path):
    path = tmp_path / "m.safetensors"
    save(model, path)
    whole = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 1 << 40) + whole[8:])
    with pytest.raises(CheckpointError, match="not a readable model file"):
        load(path)


def test_a_failed_write_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(model, path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(model, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", range(1, checkpoint.FORMAT))
def test_files_of_past_formats_predict_the_same(number):
    model = load(Path(__file__).parent / "formats" / f"format{number}.safetensors")
    water = connect(Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1]), model.cutoff)
    out = model(water)
    # What the version that wrote the file predicted; standard deviations of ensembles had other names.
    before = {re.sub("_spread$", "_std", name): value for name, value in model.metadata["outputs"].items()}
    assert set(out) == set(before)
    for name, value in before.items():
        assert torch.allclose(out[name], torch.tensor(value, dtype=torch.float64), rtol=0, atol=1e-12)


def test_options_of_past_formats_mean_the_same():
    """A model of format 3 that is given charge, spin, velocities, features of atoms and pairs, vectors and an axis."""
    model = load(Path(__file__).parent / "formats" / "format3_inputs.safetensors")
    positions = [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]
    water = connect(Graph.single(positions, [8, 1, 1], **model.metadata["given"]), model.cutoff)
    out = model(water)
    for name, value in model.metadata["outputs"].items():
        assert torch.allclose(out[name], torch.tensor(value, dtype=torch.float64), rtol=0, atol=1e-12)


def test_symmetry_cards_of_past_formats_are_symmetry_reports(model, tmp_path):
    """Formats up to 3 called the report a card; its digest of the weights is that of the names they have now."""
    energies = {
        "heads.energy.isolated": torch.zeros(119, dtype=torch.float64),
        "backbone.weight": torch.ones(2),
    }
    before = {
        "format": 3,
        "metadata": {"card": {"weights": weights_digest(energies)}, "run": {}},
        "model": {},
    }
    header, tensors = upgrade(before, energies)
    assert header["format"] == FORMAT and set(tensors) == {
        "heads.energy.reference_energies",
        "backbone.weight",
    }
    assert header["metadata"] == {"run": {}, "symmetry_report": {"weights": weights_digest(tensors)}}
    before["metadata"]["card"]["weights"] = "another model"
    assert upgrade(before, energies)[0]["metadata"]["symmetry_report"]["weights"] == "another model"


class Tied(Backbone):
    """Two layers share a weight, and two buffers are views of another one."""

    group = "O(n)"

    def __init__(self, *, elements: list[str | int], cutoff: float = 3.0, tie: bool = True):
        super().__init__(elements=elements, cutoff=cutoff)
        self.out = {"0e": 4}
        self.embedding = torch.nn.Embedding(len(self.elements), 4)
        self.first, self.second = (torch.nn.Linear(4, 4, bias=False) for _ in range(2))
        if tie:
            self.second.weight = self.first.weight
        table = torch.randn(3, 4)
        for name, value in (("table", table), ("turned", table.T), ("row", table[1])):
            self.register_buffer(name, value if tie else value.clone())

    def forward(self, graph):
        edges = edges_of(graph, self.cutoff, self.dtype)
        h = self.embedding(self.element_index(graph))
        for layer in (self.first, self.second):
            h = h + torch.tanh(layer(edges.sum(edges.gather(h) * edges.envelope[:, None])))
        h = h + self.row + (h @ self.turned) @ self.table
        return Features(blocks={"0e": h[:, :, None]}, coordination=edges.coordination)


def tied(seed: int = 0, **options) -> Model:
    torch.manual_seed(seed)
    return Model(Tied(elements=["H", "O"], **options), ["energy", "forces"]).eval()


def same_outputs(a, b) -> bool:
    return all(torch.equal(value, b(GRAPH)[name]) for name, value in a(GRAPH).items())


def test_shared_tensors_are_written_once_and_loaded_under_all_names(tmp_path):
    model, path = tied(), tmp_path / "m.safetensors"
    save(model, path)
    header, tensors = checkpoint.read(path)
    assert header["shared"] == {"backbone.second.weight": "backbone.first.weight"}
    assert "backbone.second.weight" not in tensors
    assert torch.equal(tensors["backbone.turned"], tensors["backbone.table"].T)  # a view has its own copy
    assert torch.equal(tensors["backbone.row"], tensors["backbone.table"][1])
    again = load(path, backbones={"Tied": Tied})
    assert again.backbone.second.weight is again.backbone.first.weight
    assert same_outputs(model, again)
    assert load(path, backbones={"Tied": Tied}, dtype="float64").backbone.row.dtype == torch.float64


def test_shared_tensors_in_a_model_that_does_not_tie_them(tmp_path):
    class Separate(Tied):
        def __init__(self, *, elements: list[str | int], cutoff: float = 3.0, tie: bool = True):
            super().__init__(elements=elements, cutoff=cutoff, tie=False)

    model, path = tied(), tmp_path / "m.safetensors"
    save(model, path)
    again = load(path, backbones={"Tied": Separate})
    assert again.backbone.second.weight is not again.backbone.first.weight
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert same_outputs(model, again)


def test_separate_tensors_in_a_model_that_ties_them_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save(tied(tie=False), path)
    rewrite(path, lambda h: h["model"]["options"].update(tie=True))
    with pytest.raises(
        CheckpointError, match=r"one tensor as 'backbone\.first\.weight' and .* two different"
    ):
        load(path, backbones={"Tied": Tied})


@pytest.mark.parametrize(
    "shared, words",
    [
        (
            {"backbone.second.weight": "backbone.third.weight"},
            "'backbone.third.weight', and .* no such tensor",
        ),
        ({"backbone.row": "backbone.first.weight"}, "the file has both"),
    ],
)
def test_wrong_names_of_shared_tensors_are_refused(tmp_path, shared, words):
    path = tmp_path / "m.safetensors"
    save(tied(), path)
    rewrite(path, lambda h: h.update(shared=shared))
    with pytest.raises(CheckpointError, match=words):
        load(path, backbones={"Tied": Tied})


def test_a_model_without_shared_tensors_says_nothing_of_them(model, tmp_path):
    save(model, tmp_path / "m.safetensors")
    assert "shared" not in checkpoint.read(tmp_path / "m.safetensors")[0]


def test_an_ensemble_of_models_with_shared_tensors(tmp_path):
    ensemble, path = Ensemble([tied(0), tied(1)]), tmp_path / "e.safetensors"
    save(ensemble, path)
    assert checkpoint.read(path)[0]["shared"] == {
        f"members.{k}.backbone.second.weight": f"members.{k}.backbone.first.weight" for k in range(2)
    }
    again = load(path, backbones={"Tied": Tied})
    assert same_outputs(ensemble, again)
    assert all(m.backbone.second.weight is m.backbone.first.weight for m in again.members)


@pytest.mark.parametrize("seed", [0, [0, 1]])
def test_training_with_shared_tensors(tmp_path, monkeypatch, seed):
    """A training leaves a file that predicts the same, and one that was stopped ends with the same weights."""
    graphs = []
    for k in range(6):
        torch.manual_seed(k)
        forces, energy = torch.randn(3, 3, dtype=torch.float64), torch.randn(1, dtype=torch.float64)
        pos = GRAPH.pos + 0.1 * forces
        graphs.append(
            Graph.single(pos, [8, 1, 1], targets={"energy": energy, "forces": forces - forces.mean(0)})
        )
    settings = dict(
        epochs=2,
        batch_size=2,
        seed=seed,
        lr=0.05,
        optimizer={"ema": 0.9},
        logging={"progress": False, "save_minutes": 0},
    )
    whole = fit(tied(3), graphs[:4], graphs[4:], **settings, out=tmp_path / "whole")
    again = load(tmp_path / "whole" / "model.safetensors", backbones={"Tied": Tied})
    assert same_outputs(whole.model.eval(), again)
    step = trainer.Training.step

    def stopping(self, *arguments):
        if self.place.step == 3:
            raise KeyError("stopped")
        step(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyError, match="stopped"):
        patched.setattr(trainer.Training, "step", stopping)
        fit(tied(3), graphs[:4], graphs[4:], **settings, out=tmp_path / "parts")
    resumed = fit(tied(3), graphs[:4], graphs[4:], **settings, out=tmp_path / "parts")
    assert same_outputs(whole.model, resumed.model)
    for model in getattr(resumed.model, "members", [resumed.model]):
        assert torch.equal(model.backbone.second.weight, model.backbone.first.weight)


def test_what_cannot_be_saved_is_told(tmp_path):
    backbone = BACKBONES["PaiNN"](elements=["H"], channels=8, layers=1)
    with pytest.raises(ModelError, match=r"found PaiNN; wanted a Model or an Ensemble"):
        save(backbone, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"metadata\['a'\] is object .*which JSON cannot hold"):
        save(Model(backbone, ["energy"]), tmp_path / "m.safetensors", metadata={"a": object()})
    assert not list(tmp_path.iterdir())
