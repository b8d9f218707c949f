"""What a backbone reads of a graph is declared once, in `Inputs`, and checked wherever it is given."""

import pytest
import torch

import molequi as mq
from molequi.config.schema import build_model
from molequi.errors import ConfigError
from molequi.models import BACKBONES
from molequi.upgrades import upgrade


@pytest.mark.parametrize("name", [n for n, kind in BACKBONES.items() if "charge" in kind.accepts])
def test_inputs_are_recorded_and_build_the_backbone_again(name):
    backbone = BACKBONES[name](elements=["O", "H"], inputs=mq.Inputs(charge=True, edge_features=2), layers=1)
    assert backbone.hparams["inputs"]["charge"] is True and backbone.hparams["elements"] == [1, 8]
    again = BACKBONES[name](**backbone.hparams)
    assert again.hparams == backbone.hparams and again.inputs == backbone.inputs
    assert again.reads("charge") and again.reads("edge_features") and not again.reads("spin")


@pytest.mark.parametrize("name", BACKBONES)
def test_an_input_that_a_backbone_cannot_read_is_an_error(name):
    kind = BACKBONES[name]
    if "velocity" in kind.accepts:
        assert kind(elements=["H"], inputs={"velocity": True}).inputs.velocity
        return
    words = rf"{name}\.inputs\.velocity: found True; {name} cannot read it, only {', '.join(kind.accepts)}"
    for inputs in (mq.Inputs(velocity=True), {"velocity": True}):
        with pytest.raises(ConfigError, match=words):
            kind(elements=["H"], inputs=inputs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"charge": True, "node_features": 2},
            r"EGNN\(inputs=Inputs\(charge=True, node_features=2\)\), in YAML EGNN: "
            r"\{inputs: \{charge: true, node_features: 2\}\}",
        ),
        ({"inputs": {"chrge": True}}, r"inputs\.chrge: no such option of Inputs; did you mean 'charge'\?"),
        ({"inputs": {"charge": 1}}, r"inputs\.charge: found 1 \(int\); wanted boolean"),
        ({"inputs": {"node_vectors": -1}}, r"inputs\.node_vectors: found -1 .* greater than or equal to 0"),
        ({"inputs": ["charge"]}, r"EGNN\.inputs: found \['charge'\]"),
        ({"colour": 5}, r"EGNN\.colour: no such option of EGNN"),
    ],
)
def test_wrong_options_are_named_in_python_and_in_yaml(options, words):
    with pytest.raises(ConfigError, match=words):
        mq.EGNN(elements=["H"], **options)
    with pytest.raises(ConfigError, match=r"backbone\.EGNN\..*" + words.removeprefix(r"EGNN\.")):
        build_model({"backbone": {"EGNN": options}, "predict": "energy"}, ["H"])


def test_inputs_check_themselves():
    assert mq.Inputs(charge=True, node_vectors=2).used == ("charge", "node_vectors")
    with pytest.raises(ConfigError, match=r"Inputs\.node_features: found 1\.5"):
        mq.Inputs(node_features=1.5)


def test_options_of_earlier_formats_move_into_inputs():
    options = {"elements": [1], "charge": True, "node_features": 2, "channels": 4}
    for model in ({"options": options}, {"options": options, "members": 2}):
        header, _ = upgrade({"format": 1, "model": model}, {"a": torch.zeros(1)})
        assert header["model"] == model | {
            "options": {"elements": [1], "channels": 4, "inputs": {"charge": True, "node_features": 2}}
        }


def test_a_parent_does_not_record():
    class Small(mq.EGNN):
        def __init__(self, *, width: int = 4):
            super().__init__(elements=["H"], channels=width, layers=1)

    backbone = Small(width=6)
    assert backbone.hparams == {"width": 6} and Small(**backbone.hparams).out["0e"] == 6
