"""Model files with a valid digest and a strange description are refused before anything is built from it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from molequi import EGNN, Ensemble, Model, evaluate, load, save
from molequi.checkpoint import digest, read
from molequi.errors import CheckpointError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(EGNN(elements=["H", "O"], cutoff=3.0, channels=8, layers=1), ["energy"])


def written(path, text, tensors):
    tensors = {name: value.clone() for name, value in tensors.items()}
    save_file(tensors, path, metadata={"molequi": text, "sha256": digest(text, tensors)})
    return path


def changed(model, path, change):
    header, tensors = read(save(model, path))
    change(header)
    return written(path, json.dumps(header), tensors)


@pytest.mark.parametrize(
    "text", ["", "no json", "[1, 2]", "3", "null", '{"format": "5", "model": {}}', '{"format": true, "model": {}}',
             '{"format": 0, "model": {}}', '{"format": -3, "model": {}}', '{"format": 2.5, "model": {}}',
             '{"model": {}}', '{"format": 5}', '{"format": 5, "model": []}',
             '{"format": 5, "model": {}, "metadata": 3}', "[" * 100_000]
)  # fmt: skip
def test_headers_that_describe_no_model(model, tmp_path, text):
    path = written(tmp_path / "m.safetensors", text, model.state_dict())
    with pytest.raises(
        CheckpointError, match="its header (is no JSON|has).*make the file again with mq.save"
    ):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("layers", 10**9), ("channels", 10**12), ("layers", "many"), ("elements", None), ("cutoff", [1])],
)
def test_sizes_that_no_model_of_these_tensors_has(model, tmp_path, name, value):
    path = changed(model, tmp_path / "m.safetensors", lambda h: h["model"]["options"].update({name: value}))
    with pytest.raises(CheckpointError, match=f"{name}|description of the model cannot be built"):
        load(path)


def test_a_number_of_members_that_no_file_has(model, tmp_path):
    both = Ensemble([model, model])
    path = changed(both, tmp_path / "m.safetensors", lambda h: h["model"].update({"members": 10**9}))
    with pytest.raises(CheckpointError, match=r"model.members is 1000000000, and the file has \d+ weights"):
        load(path)


def test_weights_that_are_not_finite_are_refused(model, tmp_path):
    first = next(iter(model.parameters()))
    with torch.no_grad():
        first.view(-1)[0] = float("nan")
    path = save(model, tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has 1 of \d+ numbers that are not finite.*NaN; use an earlier"
    ):
        evaluate(path, [])
    with torch.no_grad():
        first.view(-1)[0] = 0.0
    assert load(save(model, tmp_path / "m.safetensors")).elements == (1, 8)  # the control


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions_are_refused(model, tmp_path, dtype):
    header, tensors = read(save(model, tmp_path / "m.safetensors"))
    half = {n: v.to(dtype) if v.dtype == torch.float32 else v for n, v in tensors.items()}
    path = written(tmp_path / "m.safetensors", json.dumps(header), half)
    with pytest.raises(CheckpointError, match=r"float16; wanted float32 or float64: save the model in one"):
        load(path)
