"""Measures over several models: names of files, what is no measure, and models that declare nothing."""

import pytest
import torch
from torch import nn

from molequi import Model
from molequi.checkpoint import save
from molequi.discovery.curves import audit_errors, local_equivariance_errors, symmetry_curves
from molequi.errors import ConfigError
from molequi.models import EGNN
from molequi.quantities import Quantity

from ..audit.kit import molecule

SIZE = {"size": lambda m: sum(float(p.detach().square().sum()) for p in m.parameters())}


class Heights(nn.Module):
    """A function without symmetry under rotations that declares none."""

    cutoff, group, quantities = None, "nothing", {"energy": Quantity(name="energy")}
    sees_edges = False

    def forward(self, graph):
        inside = (
            graph.pos
            - torch.stack([graph.pos[graph.batch == k].mean(0) for k in range(graph.num_graphs)])[graph.batch]
        )
        value = inside[:, 2].square() + 0.1 * inside.square().sum(1)
        return {"energy": torch.zeros(graph.num_graphs, dtype=value.dtype).index_add(0, graph.batch, value)}


def saved(folder, seed: int):
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return save(
            Model(EGNN(elements=["C"], channels=4, layers=1), ["energy"]), folder / "model.safetensors"
        )


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    plain, augmented = saved(tmp_path / "plain" / "last", 0), saved(tmp_path / "augmented" / "last", 1)
    other = saved(tmp_path / "plain", 2)
    found = symmetry_curves([plain, str(augmented), nn.Linear(2, 2)], SIZE)
    assert found.x == ("plain/last/model", "augmented/last/model", 2)
    assert found.values["size"][:2] == tuple(
        symmetry_curves([f], SIZE).values["size"][0] for f in (plain, augmented)
    )
    assert found.values["size"][0] != found.values["size"][1]
    assert symmetry_curves([plain, other], SIZE).x == ("last/model", "plain/model") and symmetry_curves(
        [plain], SIZE
    ).x == ("model",)
    with pytest.raises(ConfigError, match="occurs twice; give models by name"):
        symmetry_curves([plain, plain], SIZE)


def test_a_model_that_declares_nothing_is_measured_too():
    found = symmetry_curves(
        [Heights()],
        {
            "error": audit_errors([molecule()], checks=["rotation", "translation"]),
            "lie": local_equivariance_errors([molecule()]),
        },
    )
    assert (
        found.values["error: rotation of energy"][0] > 0.1
        and found.values["error: translation of energy"][0] < 1e-9
    )
    assert found.values["lie: energy 0e"][0] > 0.1
    upright = symmetry_curves(
        [Heights()], {"error": audit_errors([molecule()], checks=["rotation"], group="O(2)")}
    )
    assert upright.values["error: rotation of energy"][0] > 0.1  # a group that is given is not replaced


@pytest.mark.parametrize(
    ("models", "measures", "words"),
    [
        ([None], SIZE, "models: 0 is of type NoneType; wanted a torch.nn.Module or a model file"),
        ({"first": 3}, SIZE, "models: 'first' is of type int"),
        (
            [nn.Linear(1, 1)],
            {"a": lambda m: torch.ones(2)},
            r"measure 'a': found Tensor tensor\(\[1., 1.\]\); wanted one number, or several by name",
        ),
        ([nn.Linear(1, 1)], {"a": lambda m: (1, 2)}, r"measure 'a': found tuple \(1, 2\)"),
        ([nn.Linear(1, 1)], {"a": lambda m: {"b": None}}, "measure 'a: b': found NoneType"),
        (
            [nn.Linear(1, 1)],
            {"a": lambda m: {"b": 1}, "a: b": lambda m: 2},
            "'a: b' returns a number named 'a: b', and so does another measure",
        ),
    ],
)
def test_what_cannot_be_shown(models, measures, words):
    with pytest.raises(ConfigError, match=words):
        symmetry_curves(models, measures)
